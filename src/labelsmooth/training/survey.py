"""What there is to know of data before a training: classes, splits, sizes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth.training.data import ImageData, gather
from labelsmooth.training.listing import SPLITS, Progress


def survey(
    source: str | Path,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read data, train nothing, and say what they are.

    Args:
        source: see `labelsmooth.training.load`, as for the others.
        image_size: resize to this height and width.
        image_column: of a table.
        label_column: of a table.
        progress: how to report.

    Returns:
        What `data.json` of a run holds, and: `sizes`, the images' own {"smallest", "median", "largest", "different"};
        `imbalance`, the largest class of the training set over the smallest; `duplicates`, the copies that an image
        has, in each split, and the images of one split that are in another too; `contradictions`, images that have
        copies with another label.

    Raises:
        DataError: see `labelsmooth.training.load`.
    """
    data = gather(source, 0.0, 0, image_size, image_column, label_column, None, progress or Progress())
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    height, width = data.sizes[:, 0], data.sizes[:, 1]
    order = np.argsort(height.astype(np.int64) * width, kind="stable")
    pick = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return {
        **data.describe(),
        "sizes": {name: [int(height[i]), int(width[i])] for name, i in pick.items()}
        | {"different": len(np.unique(data.sizes, axis=0))},
        "imbalance": float(counts.max() / counts.min()),
        "duplicates": _duplicates(data),
        "contradictions": _contradictions(data),
    }


def _duplicates(data: ImageData) -> dict[str, int]:
    within = {name: len(split) - len(np.unique(split.hashes)) for name, split in data.splits.items()}
    pairs = [(SPLITS[i], SPLITS[j]) for i in range(3) for j in range(i + 1, 3)]
    return within | {f"{held_out} in {seen}": data.leaks(seen, held_out) for seen, held_out in pairs}


def _contradictions(data: ImageData) -> int:
    hashes = np.concatenate([split.hashes for split in data.splits.values()])
    labels = np.concatenate([split.labels for split in data.splits.values()])
    pairs = np.unique(np.stack([hashes, labels.astype(np.uint64)]), axis=1)[0]
    _, first, labels_of_each = np.unique(pairs, return_index=True, return_counts=True)
    contradicted = pairs[first[labels_of_each > 1]]
    return int(np.isin(hashes, contradicted).sum())
