"""What the readers of all formats give: labels, or targets, a batch of rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._errors import DataError

# Takes a batch: targets, the labels that they are of, and the record batch whose columns are kept, if there is one.
Write = Callable[[np.ndarray, np.ndarray, Any], None]


class Source(ABC):
    """Labels ``[N]``, or one-hot rows or soft targets ``[N, K]``, in a file.

    Attributes:
        path: the file.
        name: what an error calls the labels: the file, or a column or an array of it.
        rows: N; None where only reading them all tells.
        width: K of targets; None for class ids.
        dtype: of the values as they are read.
        schema: the columns of a table, as a pyarrow schema; None for an array.
    """

    path: Path
    name: str
    rows: int | None = None
    width: int | None = None
    dtype: np.dtype
    schema: Any = None

    @abstractmethod
    def batches(self, most: int, keep: bool) -> Iterator[tuple[np.ndarray, Any]]:
        """Values, at most so many rows at a time, and the record batch that they are from, if its columns are kept."""

    def where(self, row: int) -> str:
        """The place of a row, for an error."""
        return f"row {row} (from 0) of {self.name}"

    def describe(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Take `rows`, `width` and `dtype` from the shape and dtype of an array.

        Raises:
            DataError: they are not those of labels or targets.
        """
        if dtype.hasobject:
            raise DataError(f"{self.name} holds Python objects, which are not loaded; save class ids as integers")
        if dtype.kind in "US":
            raise DataError(f"{self.name} holds text; class ids are the whole numbers 0..K-1")
        if dtype.kind not in "biuf":
            raise DataError(f"{self.name} holds {dtype}; labels are whole numbers, and targets are floats")
        if len(shape) not in (1, 2):
            raise DataError(
                f"{self.name} has the shape {shape}; labels are [N] or [N, 1], one-hot rows and targets [N, K]"
            )
        if shape[-1] == 0 and len(shape) == 2:
            raise DataError(f"{self.name} has the shape {shape}, without any class")
        self.rows, self.dtype = shape[0], dtype
        self.width = shape[1] if len(shape) == 2 and shape[1] != 1 else None


def checked(source: Source, values: np.ndarray, first: int, count: int) -> np.ndarray:
    """Values of `source` from row `first` on as what `smooth_labels` takes: class ids int64 ``[n]``, or ``[n, K]``.

    Raises:
        DataError: a label that is no class id of `count` classes, or a row that is no distribution; says which.
    """
    if source.width is None:
        return _ids(source, values.reshape(-1), first, count)
    if values.dtype.kind == "f":
        sums, bad = values.sum(axis=1, dtype=np.float64), ~(values.min(axis=1) >= 0)
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"{source.where(first + row)} holds {values[row].min()}; targets are not negative")
        bad = ~(np.abs(sums - 1.0) <= _checks.tolerance(values.dtype.name))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"{source.where(first + row)} sums to {sums[row]:.6g} over the classes; targets sum to 1")
        return values
    bad = (values.sum(axis=1, dtype=np.int64) != 1) | (values.min(axis=1) < 0)
    if bad.any():
        row = int(bad.argmax())
        shown = np.array2string(values[row], threshold=8, edgeitems=3)
        raise DataError(f"{source.where(first + row)} is {shown}, which is no one-hot row; class ids are [N] or [N, 1]")
    return values


def _ids(source: Source, values: np.ndarray, first: int, count: int) -> np.ndarray:
    if values.dtype.kind == "f":
        bad = ~(np.isfinite(values) & (values == np.floor(values)))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{source.where(first + row)} has the label {values[row]}, which is no whole number; class ids are "
                f"0..{count - 1}"
            )
    bad = np.zeros(len(values), bool) if values.dtype.kind == "b" else values < 0
    bad |= values >= count
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{source.where(first + row)} has the label {values[row]}; of {count} classes, the ids are 0..{count - 1}"
        )
    return values.astype(np.int64)
