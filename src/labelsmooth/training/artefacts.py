"""What a report looks at beside the predictions on validation and test: training images, and the worst mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labelsmooth import _files
from labelsmooth.evaluation import Rows
from labelsmooth.report.sources import MOST_MISTAKES
from labelsmooth.training.data import Split

MOST_SAMPLED = 10_000


def sample(split: Split, count: int) -> Split:
    """Some of a split, stratified by class: evenly spaced in the order of the labels, so that nothing is drawn.

    Args:
        split: of N examples.
        count: how many are wanted; at most `MOST_SAMPLED` and N are given.
    """
    count = min(count, MOST_SAMPLED, len(split))
    by_class = np.argsort(split.labels, kind="stable")
    return split.take(np.sort(by_class[np.arange(count) * len(split) // max(1, count)]))


def save_mistakes(split: Split, rows: Rows, path: Path) -> None:
    """Write the examples that are wrong with the highest confidence, at most `MOST_MISTAKES`, the worst first.

    The arrays are `images` ``uint8[n, H, W, C]``, `labels` and `predicted` ``int64[n]``, `confidence` ``float64[n]``
    (the probability of the predicted class) and `index` ``int64[n]`` (the positions in the source).

    Args:
        split: the examples.
        rows: the figures of each, in their order.
        path: an ``.npz`` file.
    """
    wrong = np.flatnonzero(~rows.hits)
    worst = wrong[np.argsort(-rows.confidence[wrong], kind="stable")[:MOST_MISTAKES]]
    with _files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file, images=split.pixels(worst), labels=split.labels[worst], predicted=rows.predicted[worst],
            confidence=rows.confidence[worst], index=split.index[worst],
        )  # fmt: skip
