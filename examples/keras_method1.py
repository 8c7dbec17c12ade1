"""Method 1 on a Keras model: the label arrays are smoothed before training, and the loss stays the plain one.

With any of Keras' backends; where TensorFlow is not installed, name another:

    KERAS_BACKEND=torch python examples/keras_method1.py
"""

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer

import labelsmooth as ls

SMOOTHING = 0.1

images, labels = load_digits(return_X_y=True)
one_hot = LabelBinarizer().fit_transform(labels)
train_images, test_images, train_targets, test_targets = train_test_split(
    (images / 16).astype(np.float32), one_hot, test_size=0.25, random_state=0
)

print("first label before", train_targets[0])
train_targets = ls.smooth_labels(train_targets, SMOOTHING)  # the training labels alone: test labels stay hard
print("first label after ", train_targets[0].round(4))

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10),
])  # fmt: skip
model.compile(keras.optimizers.Adam(3e-3), keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
history = model.fit(train_images, train_targets, batch_size=64, epochs=10, verbose=0).history
test_loss, test_accuracy = model.evaluate(test_images, test_targets, verbose=0)

floor = ls.explain(SMOOTHING, 10).entropy_floor
print(f"smoothed training loss {history['loss'][-1]:.4f} (ε={SMOOTHING}, floor {floor:.4f})")
print(f"test NLL on hard labels {test_loss:.4f}, test accuracy {test_accuracy:.4f}")

# The same number comes out of a loss that smooths hard labels itself: method 2.
logits = model.predict(train_images, verbose=0)
hard = np.eye(10, dtype=np.float32)[train_targets.argmax(axis=1)]
method_1 = float(keras.losses.CategoricalCrossentropy(from_logits=True)(train_targets, logits))
method_2 = float(ls.losses.cross_entropy(logits, hard, label_smoothing=SMOOTHING))
print(f"method 1 {method_1:.6f}, method 2 {method_2:.6f}, difference {abs(method_1 - method_2):.1e}")
