"""Labels and targets as `.npy` and `.npz`. Nothing pickled is ever loaded."""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth._text import nearest
from labelsmooth.files.source import Source, Write

_NAMES = ("labels", "label", "y", "targets", "target")  # of the array in an .npz file


class _ArraySource(Source):
    def _whole(self, size: int, needed: int) -> None:
        if size < needed:
            raise DataError(f"{self.name} is cut off: it has {size} bytes of {needed}")


class NpySource(_ArraySource):
    """An `.npy` file, mapped into memory a batch at a time, so that no more of it counts as this process's own."""

    def __init__(self, path: Path, column: str | None) -> None:
        if column is not None:
            raise DataError(f"{path} is one array, without columns; leave out --column")
        self.path, self.name = path, str(path)
        with _files.reading(path, "is no readable .npy file ({})"), path.open("rb") as file:
            shape, self._fortran, dtype = _header(file)
            self._offset = file.tell()
        self.describe(shape, dtype)
        self._shape = shape
        self._whole(path.stat().st_size, self._offset + math.prod(shape) * dtype.itemsize)

    def batches(self, most: int, keep: bool) -> Iterator[tuple[np.ndarray, Any]]:
        yield from _mapped(self.path, self.dtype, self._shape, self._fortran, self._offset, most)


class NpzSource(_ArraySource):
    """One array of an `.npz` file, unpacked while it is read."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        with _files.reading(path, "is no readable .npz file ({})"), zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            self._member = f"{_chosen(held, column, path)}.npy"
            with archive.open(self._member) as file:
                shape, self._fortran, dtype = _header(file)
        self.name = f"{self._member.removesuffix('.npy')} in {path}"
        self.describe(shape, dtype)
        self._shape = shape

    def batches(self, most: int, keep: bool) -> Iterator[tuple[np.ndarray, Any]]:
        with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as file:
            _header(file)
            if self._fortran:  # column by column, so that no row is whole before the end: on the disk for a while
                with tempfile.TemporaryFile() as unpacked:
                    while part := self._read(file, 1 << 20):
                        unpacked.write(part)
                    unpacked.flush()
                    self._whole(unpacked.tell(), math.prod(self._shape) * self.dtype.itemsize)
                    yield from _mapped(unpacked, self.dtype, self._shape, True, 0, most)
                return
            row = math.prod(self._shape[1:]) * self.dtype.itemsize
            for start in range(0, self._shape[0], most):
                count = min(most, self._shape[0] - start)
                data = self._read(file, count * row)
                self._whole(start * row + len(data), (start + count) * row)
                yield np.frombuffer(data, self.dtype).reshape(count, *self._shape[1:]), None

    def _read(self, file: IO[bytes], size: int) -> bytes:
        with _files.reading(self.name, "cannot be read ({}); is it damaged, or cut off?"):
            return file.read(size)


@contextmanager
def npy_sink(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype) -> Iterator[Write]:
    """Writes targets to an `.npy` file, the rows of `shape` in batches."""
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})

    def write(targets: np.ndarray, values: np.ndarray, table: Any) -> None:
        file.write(targets.data.cast("B"))

    yield write


@contextmanager
def npz_sink(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype) -> Iterator[Write]:
    """Writes targets to the array `targets` of an `.npz` file, not compressed, as `numpy.savez` does."""
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("targets.npy", "w", force_zip64=True) as member,
        npy_sink(member, shape, dtype) as write,
    ):
        yield write


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:  # which only arrays with named fields are written in
        raise ValueError(f"format version {version[0]}.{version[1]}")
    return readers[version](file)


def _mapped(
    file: Any, dtype: np.dtype, shape: tuple[int, ...], fortran: bool, offset: int, most: int
) -> Iterator[tuple[np.ndarray, None]]:
    """Copies of rows of an array that a file holds."""
    for start in range(0, shape[0], most):
        array = np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")
        yield np.array(array[start : start + most], order="C"), None


def _chosen(held: list[str], asked: str | None, path: Path) -> str:
    """The array of an `.npz` file to take the labels from."""
    listed = ", ".join(held) or "nothing"
    if asked is not None:
        if asked not in held:
            raise DataError(
                f"{path} has no array {asked!r}, which --column names{nearest(asked, held)}; it holds {listed}"
            )
        return asked
    if len(held) == 1:
        return held[0]
    for name in _NAMES:
        if name in held:
            return name
    raise DataError(f"{path} has no array called labels; it holds {listed}; --column names one")
