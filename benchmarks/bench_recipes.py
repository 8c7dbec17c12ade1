"""A recipe's time and accuracy over seeds, and what each ingredient of the fast one is worth.

``python -m benchmarks.bench_recipes time DATA [SEEDS] [RECIPE]``, ``... ablation DATA [--epochs E]``, and ``... muon
DATA [--image-size S]``. None chooses anything on the test set. The ablation, for data like CIFAR-10, compares
validation accuracies on the same 10 % of the training examples; its last row validates on less and learns from the
rest, so that only the test set compares it with the first.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks._machine import header, spread
from labelsmooth.evaluation import load_predictions
from labelsmooth.training import Reporter, Result, memory, session, train
from labelsmooth.training.optimizers import Muon
from labelsmooth.training.plan import Plan
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine

# What is left out or put in place, one at a time.
ABLATIONS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "60 % of the steps on images of 3/4 of the size": {"small_share": 0.6},
    "random flips": {"alternate": False},
    "no flips": {"flip": False},
    "no shifts": {"shift": 0.0},
    "no cutout": {"cutout": 0.0},
    "no smoothing": {"smoothing": 0.0},
    "batches of 500": {"batch_size": 500, "lr": 0.17},
    "SGD for all (lr 0.05, momentum 0.9)": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "cosine schedule": {"schedule": "cosine"},
}
_SHARE = 0.1  # for validation, in all of these


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

        def row(name: str, *, tested: bool = False, **options: Any) -> None:
            result = train(data, "fast", out=out, **{"epochs": epochs, "val_split": _SHARE, **options})
            _print_row(name, result, tested)

        for name, changes in ABLATIONS.items():
            row(name, tested=not changes, **changes)
        with patch("labelsmooth.training.session.memory.kept", nullcontext):
            row("freed memory given back, 1 epoch", epochs=min(1.0, epochs))
        row("the recipe's own validation share", tested=True, val_split=None)


def _print_row(name: str, result: Result, tested: bool) -> None:
    summary, best = result.summary, result.summary["best"]
    examples = len(load_predictions(result.folder / "predictions" / "val.npz").labels)
    test = f"test accuracy {summary['test']['accuracy']:.4f}; " if tested else ""
    print(
        f"{name}: validation accuracy {best['val_accuracy']:.4f} (of {examples}), NLL {best['val_nll']:.4f}; {test}"
        f"{summary['train_seconds']:.0f} s, {summary['images_per_second']:.0f} images/s",
        flush=True,
    )


def muon(data: str, size: int | None, rounds: int) -> None:
    """Three steps of the fast recipe, with Muon's iteration in bfloat16 and in float32, in turns."""
    header(f"recipe fast on {data} at {size or 'its own size'}, by the precision of Muon's iteration", "scikit-learn")
    speeds: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    settings, images = session.prepare(data, "fast", image_size=size)
    three_steps = 3 / settings.recipe.steps_per_epoch(len(images.train))
    settings = replace(settings, recipe=settings.recipe.changed(epochs=three_steps))
    for _ in range(rounds):
        for precision, measured in speeds.items():
            engine = TorchEngine(Plan(settings, images), StopRequest())
            assert isinstance(engine.optimizer, Muon)
            engine.optimizer.precision = precision
            with memory.kept():
                row = engine.train_epoch(0, Reporter())
            measured.append(row["images_per_second"])
            print(f"{precision}: {measured[-1]:.0f} images/s, loss {row['train_loss_smoothed']:.4f}", flush=True)
    print(f"the network in {engine.precision_reason}")
    for precision, measured in speeds.items():
        print(f"{precision}: images/s {spread(measured)}")
    ratios = np.divide(speeds[torch.float32], speeds[torch.bfloat16])
    print(f"float32 / bfloat16 {spread(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    timed, changed, stepped = (tasks.add_parser(name) for name in ("time", "ablation", "muon"))
    for each in (timed, changed, stepped):
        each.add_argument("data")
    timed.add_argument("seeds", type=int, nargs="?", default=3)
    timed.add_argument("recipe", nargs="?", default="fast")
    changed.add_argument("--epochs", type=float, default=2.0, help="of each row; 2 on CIFAR-10 take half an hour")
    stepped.add_argument("--image-size", type=int)
    stepped.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    if told.task == "time":
        time(told.data, told.seeds, told.recipe)
    elif told.task == "ablation":
        ablation(told.data, told.epochs)
    else:
        muon(told.data, told.image_size, told.rounds)


if __name__ == "__main__":
    main()
