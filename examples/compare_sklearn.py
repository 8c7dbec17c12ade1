"""Does label smoothing help a logistic regression? scikit-learn has no soft targets, but it has sample weights.

An example with the smoothed target q' is K examples, one with each label, of weights q': the same loss exactly.

    python examples/compare_sklearn.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import labelsmooth as ls
from labelsmooth.comparison import Predictions, compare

images, labels = load_digits(return_X_y=True)
images = images / 16
rest, test_images, rest_labels, test_labels = train_test_split(images, labels, test_size=0.4, random_state=0)


def train(seed, smoothing):
    """Of 200 images only: with few of them there is something to gain."""
    train_images, val_images, train_labels, val_labels = train_test_split(
        rest, rest_labels, train_size=200, random_state=seed
    )
    targets = ls.smooth_labels(train_labels, smoothing, num_classes=10, dtype=np.float64)
    model = LogisticRegression(C=100.0, max_iter=2000)
    model.fit(np.repeat(train_images, 10, axis=0), np.tile(np.arange(10), len(targets)), sample_weight=targets.ravel())
    return Predictions(
        model.decision_function(val_images), val_labels, model.decision_function(test_images), test_labels
    )


if __name__ == "__main__":
    result = compare(train, smoothing=[0, 0.05, 0.1, 0.2], seeds=5, name="digits, 200 images")
    print(result.analysis.table(), result.answer, *result.analysis.notes, sep="\n\n")
