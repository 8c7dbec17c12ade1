"""A recipe's time and accuracy over seeds, and what each ingredient of the fast one is worth.

``python -m benchmarks.bench_recipes time DATA [SEEDS] [RECIPE]``, and ``... ablation DATA [EPOCHS]``. Neither chooses
anything on the test set; the ablation looks at validation alone.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._machine import header, spread
from labelsmooth.training import train

# What is left out or put in place, one at a time.
ABLATIONS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "full size throughout": {"small_share": 0.0},
    "random flips": {"alternate": False},
    "no flips": {"flip": False},
    "no shifts": {"shift": 0.0},
    "no smoothing": {"smoothing": 0.0},
    "batches of 500": {"batch_size": 500, "lr": 0.17},
    "SGD for all (lr 0.05, momentum 0.9)": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "cosine schedule": {"schedule": "cosine"},
}


def time(data: str, seeds: int, recipe: str) -> None:
    header(f"recipe {recipe} on {data}, as it is", "scikit-learn")
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as out:
        for seed in range(seeds):
            summary = train(data, recipe, seed=seed, out=out).summary
            accuracies.append(summary["test"]["accuracy"])
            seconds.append(summary["train_seconds"])
            print(f"seed {seed}: test accuracy {accuracies[-1]:.4f}, {seconds[-1]:.0f} s of training", flush=True)
    print(
        f"mean test accuracy {np.mean(accuracies):.4f} (sd {np.std(accuracies, ddof=min(1, seeds - 1)):.4f}, n={seeds})"
    )
    print(f"seconds of training {spread(seconds)}")


def ablation(data: str, epochs: float) -> None:
    header(f"recipe fast on {data}, {epochs:g} epochs, one ingredient changed at a time, seed 0", "scikit-learn")
    with tempfile.TemporaryDirectory() as out:
        for name, changes in ABLATIONS.items():
            _line(name, train(data, "fast", epochs=epochs, out=out, **changes).summary)
        with patch("labelsmooth.training.session.memory.kept", nullcontext):
            _line("freed memory given back", train(data, "fast", epochs=1, out=out).summary)


def _line(name: str, summary: dict[str, Any]) -> None:
    best = summary["best"]
    print(
        f"{name}: validation accuracy {best['val_accuracy']:.4f}, NLL {best['val_nll']:.4f}; "
        f"{summary['train_seconds']:.0f} s, {summary['images_per_second']:.0f} images/s",
        flush=True,
    )


if __name__ == "__main__":
    what, data, *rest = sys.argv[1:]
    if what == "time":
        time(data, int(rest[0]) if rest else 3, rest[1] if len(rest) > 1 else "fast")
    else:
        ablation(data, float(rest[0]) if rest else 4.0)
