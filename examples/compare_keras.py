"""Does label smoothing help a Keras model? With any of its backends:

KERAS_BACKEND=torch python examples/compare_keras.py
"""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from labelsmooth.comparison import Predictions, compare

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
rest, test_images, rest_labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)


def train(seed, smoothing):
    """A small dense network; everything random follows from the seed."""
    keras.utils.set_random_seed(seed)
    train_images, val_images, train_labels, val_labels = train_test_split(
        rest, rest_labels, test_size=0.2, random_state=seed
    )
    model = keras.Sequential([
        keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10),
    ])  # fmt: skip
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(train_images, np.eye(10, dtype=np.float32)[train_labels], batch_size=64, epochs=20, verbose=0)
    return Predictions(
        model.predict(val_images, verbose=0), val_labels, model.predict(test_images, verbose=0), test_labels
    )


if __name__ == "__main__":
    result = compare(train, smoothing=[0, 0.1], seeds=3, name="digits, Keras")
    print(result.analysis.table(), result.answer, *result.analysis.notes, sep="\n\n")
