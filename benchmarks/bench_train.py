"""Training MiniGoogLeNet at batch 64: our classic recipe beside the classic Keras/TensorFlow script, taking turns."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from benchmarks._machine import header, spread
from labelsmooth.training import CLASSIC, Reporter, memory
from labelsmooth.training.data import ImageData, Split
from labelsmooth.training.plan import Plan
from labelsmooth.training.run import Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine

ROUNDS, STEPS = 5, 20
CLASSES = tuple("0123456789")


def ours(precision: str) -> TorchEngine:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64 * STEPS, 32, 32, 3), np.uint8)
    rows = np.arange(len(images))
    split = Split(images, rows, rng.integers(0, 10, len(images)), rows, rows.astype(np.uint64))
    sizes = np.full((len(images), 2), 32)
    data = ImageData("random", "random", "", CLASSES, split, split.take(rows[:0]), split, (), ("train",), sizes)
    recipe = CLASSIC.changed(precision=precision)
    plan = Plan(Settings("random", recipe, 0.0, 0, None, None, None, "cpu", False), data)
    training = TorchEngine(plan, StopRequest())
    assert training.parameters == 1_652_826
    training.train_epoch(0, Reporter())
    return training


def keras_chunk() -> float:
    """Images/s of one warm chunk of the script, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.keras_script", "1", str(STEPS)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def main() -> None:
    header(f"MiniGoogLeNet, 32x32, batch 64, {STEPS} steps a chunk, images/s", "tensorflow-cpu", "keras")
    runs = {precision: ours(precision) for precision in ("auto", "float32")}
    rates: dict[str, list[float]] = {**{name: [] for name in runs}, "keras": []}
    for epoch in range(1, ROUNDS + 1):
        for name, training in runs.items():
            with memory.kept():  # as in every run
                training.train_epoch(epoch, Reporter())
                rates[name].append(training.train_epoch(epoch + ROUNDS, Reporter())["images_per_second"])
        rates["keras"].append(keras_chunk())
    print(f"labelsmooth, {runs['auto'].precision_reason}: {spread(rates['auto'])}")
    print(f"labelsmooth, float32: {spread(rates['float32'])}")
    print(f"Keras/TensorFlow script: {spread(rates['keras'])}")
    for name in runs:
        ratios = [a / b for a, b in zip(rates[name], rates["keras"], strict=True)]
        print(f"ratio {name}: {spread(ratios)}, budget 3")


if __name__ == "__main__":
    main()
