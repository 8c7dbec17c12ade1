"""What a reader of data finds before any image is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labelsmooth._errors import DataError
from labelsmooth.training.images import Decoded

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How reading data reports; each does nothing unless it is replaced.

    Attributes:
        decoded: is called with how many images are decoded, and of how many.
        note: is told what is worth a line.
        download: an object with tqdm's `total`, `update`, `reset` and `close`; or False.
    """

    decoded: Callable[[int, int], None] = lambda done, count: None
    note: Callable[[str], None] = lambda text: None
    download: object = False


@dataclass(frozen=True)
class Listing:
    """Labelled examples of a source, their images yet to be decoded.

    Attributes:
        name: what to call the data.
        labels: class ids ``int64[N]``, or class names as strings.
        splits: ``"train"``, ``"val"`` or ``"test"`` for each.
        classes: the names of ids; None where `labels` are names, or where the ids have none.
        digest: SHA-256 of the content.
        decode: gives the images at a size (None: the data's own).
        skipped: what was left out, a line for each.
        notes: what else is worth a line.
        other_labels: gives what another column holds as labels of the training examples, ids or names; None where
            there are no columns.
    """

    name: str
    labels: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...] | None
    digest: str
    decode: Callable[[int | None, Progress], Decoded]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    other_labels: Callable[[str], np.ndarray] | None = None


def split_of(name: str) -> str | None:
    """The split that goes by such a name: Train, validation, test_set.

    Example:
        >>> split_of("Training-Set"), split_of("dev"), split_of("set")
        ('train', 'val', None)
    """
    return SPLIT_NAMES.get(name.strip().lower().removesuffix("set").rstrip("_- "))


def one_file_per_split(names: list[str], where: str) -> dict[str, str]:
    """{split: the one of `names` that stands for it}; other names are left out.

    Raises:
        DataError: two stand for the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        split = split_of(os.path.splitext(name)[0])
        if split in found:
            raise DataError(f"{where} has {found[split]} and {name} for the {split} split; keep one of them")
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPLITS if split in found}
