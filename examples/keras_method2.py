"""Method 2 on a Keras model: integer labels stay as they are, and the loss smooths.

With any of Keras' backends; where TensorFlow is not installed, name another:

    KERAS_BACKEND=torch python examples/keras_method2.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import labelsmooth as ls
from labelsmooth.keras import NLL, SmoothedCrossentropy

SMOOTHING = 0.1

images, labels = load_digits(return_X_y=True)
train_images, test_images, train_labels, test_labels = train_test_split(
    (images / 16).astype(np.float32), labels, test_size=0.25, random_state=0
)

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10),
])  # fmt: skip
model.compile(
    keras.optimizers.Adam(3e-3),
    SmoothedCrossentropy(from_logits=True, label_smoothing=SMOOTHING),  # was: SparseCategoricalCrossentropy
    metrics=["accuracy", NLL(from_logits=True)],  # fit smooths val_loss too; the NLL is on hard labels
)
history = model.fit(
    train_images, train_labels, batch_size=64, epochs=10, verbose=0, validation_data=(test_images, test_labels)
).history

print(f"smoothed training loss {history['loss'][-1]:.4f} (ε={SMOOTHING}, floor 0.5003)")
print(f"test NLL on hard labels {history['val_nll'][-1]:.4f}, test accuracy {history['val_accuracy'][-1]:.4f}")

logits = model.predict(test_images, verbose=0)
smoothed = float(ls.losses.cross_entropy(logits, test_labels, label_smoothing=SMOOTHING))
print(f"smoothed test loss: Keras {history['val_loss'][-1]:.6f}, the float64 reference {smoothed:.6f}")
hard = float(ls.losses.cross_entropy(logits, test_labels))
print(f"test NLL: Keras {history['val_nll'][-1]:.6f}, the float64 reference {hard:.6f}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "digits.keras"
    model.save(path)
    loaded = keras.models.load_model(path)  # the loss and its ε come with it
print(f"loaded: {loaded.loss.name}, ε={loaded.loss.label_smoothing}")
