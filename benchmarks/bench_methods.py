"""Digits, both methods and no smoothing, over seeds: test accuracy and NLL on hard labels."""

from __future__ import annotations

import tempfile

from benchmarks._machine import header, spread
from labelsmooth.training import train

SEEDS = 5
ARMS = {
    "smoothing 0": {"smoothing": 0.0},
    "smoothing 0.1, method loss": {"method": "loss"},
    "smoothing 0.1, method labels": {"method": "labels"},
}


def main() -> None:
    header(f"labelsmooth train digits, {SEEDS} seeds, test set of 360", "scikit-learn")
    with tempfile.TemporaryDirectory() as out:
        for name, options in ARMS.items():
            results = [train("digits", seed=seed, out=out, **options) for seed in range(SEEDS)]
            print(name)
            print(f"  accuracy  {spread([result.test.accuracy for result in results], 4)}")
            print(f"  NLL       {spread([result.test.nll for result in results])}")
            print(f"  seconds   {spread([result.summary['train_seconds'] for result in results])}")


if __name__ == "__main__":
    main()
