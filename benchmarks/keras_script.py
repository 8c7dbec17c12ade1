"""The classic script, as it is published, on TensorFlow: the peer of bench_train. Prints images/s of each chunk.

MiniGoogLeNet in Keras, ImageDataGenerator for shift and flip, labels smoothed beforehand, SGD with momentum. The data
are random pixels of CIFAR-10's size: the speed does not depend on them.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator

import labelsmooth as ls

BATCH = 64


def conv(x, filters, size, strides=1, padding="same"):
    x = layers.Conv2D(filters, size, strides=strides, padding=padding)(x)
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def inception(x, ones, threes):
    return layers.concatenate([conv(x, ones, 1), conv(x, threes, 3)])


def downsample(x, filters):
    return layers.concatenate([conv(x, filters, 3, 2, "valid"), layers.MaxPooling2D(3, strides=2)(x)])


def minigooglenet() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = conv(inputs, 96, 3)
    x = inception(inception(x, 32, 32), 32, 48)
    x = downsample(x, 80)
    for ones, threes in ((112, 48), (96, 64), (80, 80), (48, 96)):
        x = inception(x, ones, threes)
    x = downsample(x, 96)
    x = inception(inception(x, 176, 160), 176, 160)
    x = layers.Dropout(0.5)(layers.Flatten()(layers.AveragePooling2D(7)(x)))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def main(chunks: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH * steps, 32, 32, 3)).astype("float32")
    images -= images.mean(axis=0)
    labels = ls.smooth_labels(rng.integers(0, 10, len(images)), 0.1, num_classes=10)
    augmentation = ImageDataGenerator(
        width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True, fill_mode="nearest"
    )
    model = minigooglenet()
    assert model.count_params() == 1_656_250
    model.compile(
        optimizer=keras.optimizers.SGD(5e-3, momentum=0.9), loss="categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(augmentation.flow(images, labels, batch_size=BATCH), epochs=1, verbose=0)
    for _ in range(chunks):
        start = time.perf_counter()
        model.fit(augmentation.flow(images, labels, batch_size=BATCH), epochs=1, verbose=0)
        print(f"images/s {len(images) / (time.perf_counter() - start):.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
