"""Label noise: training labels other than the data's own, to see what smoothing does as labels get worse."""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError
from labelsmooth._text import nearest
from labelsmooth.training import arrays
from labelsmooth.training.listing import Listing

_FLIPS = ("symmetric", "asymmetric")
_SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt")
_RULE = (
    "be symmetric:P or asymmetric:P with P in [0, 1), column:NAME of a table, or a file of labels "
    f"({', '.join(_SUFFIXES)})"
)
_SHOWN = 10  # classes that an error names


@dataclass(frozen=True)
class Noise:
    """What noise did to the training labels.

    Attributes:
        asked: what it is, as `checked` gives it.
        clean: the labels before, ``int64[N]``.
        noisy: the labels after, ``int64[N]``.
        content: the SHA-256 of the file that they came from, empty where there is none.
    """

    asked: str
    clean: np.ndarray
    noisy: np.ndarray
    content: bytes

    @property
    def changed(self) -> int:
        """How many labels are others now."""
        return int((self.noisy != self.clean).sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the labels after, and of the file that they came from."""
        return hashlib.sha256(self.content + self.noisy.tobytes()).hexdigest()

    def __str__(self) -> str:
        count = len(self.clean)
        return (
            f"{self.asked}, {self.changed:,} of {count:,} training labels changed ({100 * self.changed / count:.1f} %)"
        )

    def describe(self) -> dict[str, Any]:
        """What `data.json` says of it."""
        return {"asked": self.asked, "changed": self.changed, "of": len(self.clean), "sha256": self.digest}


def checked(noise: object) -> str:
    """`noise` as `config.yaml` holds it: a file's path is made absolute.

    Args:
        noise: ``symmetric:P``, ``asymmetric:P``, ``column:NAME``, or a file's path.

    Raises:
        ValueError: it is none of them.
    """
    text = str(noise) if isinstance(noise, Path) else noise
    if not isinstance(text, str):
        raise _checks.error("noise", _RULE, repr(noise))
    kind, value = _parsed(text)
    if kind in _FLIPS:
        try:
            good = 0 <= float(value) < 1
        except ValueError:
            good = False
    else:
        good = bool(value) if kind == "column" else value.lower().endswith(_SUFFIXES)
    if not good:
        raise _checks.error("noise", _RULE, repr(text))
    return os.path.abspath(os.path.expanduser(text)) if kind == "file" else text


def relabelled(
    noise: str, labels: np.ndarray, listing: Listing, classes: tuple[str, ...], seed: int
) -> tuple[np.ndarray, bytes]:
    """Labels with noise, of which those of the training examples are meant.

    ``symmetric:P`` puts one of the K-1 other classes in a label's place with probability P, each as likely;
    ``asymmetric:P`` the next class, (y + 1) mod K. Which labels are changed, and to what, follows from the seed and
    from each example's position in its source alone; those that a smaller P changes, a larger one changes too.

    Args:
        noise: see `checked`. A file holds a class (name or id) for each example of the source's own training split, or
            for each of all.
        labels: class ids of all of the source's examples, ``int64[N]``.
        listing: the source.
        classes: the names of ids.
        seed: of the run.

    Returns:
        The new labels, ``int64[N]``, and the SHA-256 of the file that they came from, empty where there is none.

    Raises:
        DataError: the file or the column is missing or damaged, or does not hold a class for each training example.

    References:
        Han et al. 2018, arXiv 1804.06872, section 4 (symmetric, and asymmetric as "pair flipping").
    """
    kind, value = _parsed(noise)
    if kind in _FLIPS:
        draws = np.random.default_rng([seed, *b"noise"]).random((len(labels), 2))
        steps = 1 + np.floor(draws[:, 1] * (len(classes) - 1)).astype(np.int64) if kind == "symmetric" else 1
        return np.where(draws[:, 0] < float(value), (labels + steps) % len(classes), labels), b""
    own, content = listing.splits == "train", b""
    if kind == "column":
        given, numbers, what = _of_column(value, listing), np.flatnonzero(own), f"the column {value}"
    else:
        (given, numbers, content), what = _of_file(Path(value), own), value
    noisy = labels.copy()
    noisy[own] = _ids(given, numbers, classes, what)
    return noisy, content


def _parsed(noise: str) -> tuple[str, str]:
    """(symmetric, asymmetric, column or file; what stands behind the colon, or the path)"""
    kind, colon, value = noise.partition(":")
    return (kind, value) if colon and kind in (*_FLIPS, "column") else ("file", noise)


def _of_column(name: str, listing: Listing) -> np.ndarray:
    if listing.other_labels is None:
        raise DataError(
            f"--noise column:{name} needs a table (.parquet or .csv), and {listing.name} is none; "
            f"give the labels in a file ({', '.join(_SUFFIXES)})"
        )
    return listing.other_labels(name)


def _of_file(path: Path, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, bytes]:
    """The labels for the training split, their positions in the file, and its SHA-256."""
    with _files.reading(path, "is no readable file of labels ({})", (*_files.NPZ_DAMAGE, csv.Error)):
        if not path.exists():
            raise DataError(f"there is no file {path}, which --noise names")
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        given = _array(path) if path.suffix.lower() in (".npy", ".npz") else _text(path)
    if len(given) == own.sum():
        return given, np.arange(len(given)), content
    if len(given) == len(own):
        return given[own], np.flatnonzero(own), content
    wanted = f"each of the {own.sum()} examples of the training split"
    if not own.all():
        wanted += f", or for each of all {len(own)}"
    raise DataError(f"{path} holds {len(given)} labels; it must hold one for {wanted}, in the order of the data")


def _array(path: Path) -> np.ndarray:
    with path.open("rb") as opened:
        file = np.load(opened, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            names = list(file.files)
            if "labels" not in names and len(names) != 1:
                raise DataError(
                    f"{path} holds {', '.join(names) or 'nothing'}; it must hold an array labels, or one array alone"
                )
            file = file["labels" if "labels" in names else names[0]]
    return arrays.as_labels(file, str(path))


def _text(path: Path) -> np.ndarray:
    """The column `label` of a table in text, or its lines where no column is called so."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t", key=first.count)
        rows = list(csv.reader(file, delimiter=delimiter))
    while rows and not any(rows[-1]):  # empty lines at the end
        rows.pop()
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "label" in header:
        column = header.index("label")
        labels = [row[column].strip() if column < len(row) else "" for row in rows[1:]]
    else:
        labels = [delimiter.join(row).strip() for row in rows]
    if "" in labels:
        raise DataError(f"{path} has no label at position {labels.index('')} (from 0)")
    return np.array(labels, np.str_)


def _ids(given: np.ndarray, numbers: np.ndarray, classes: tuple[str, ...], what: str) -> np.ndarray:
    """Names or ids as ids; `numbers` are their positions in `what`, for an error."""
    if given.dtype.kind == "U":
        known = {name: k for k, name in enumerate(classes)}
        if not any(name.isdecimal() for name in classes):  # else a number is a name
            known |= {str(k): k for k in range(len(classes))}
        ids = np.array([known.get(label, -1) for label in given.tolist()], np.int64)
    else:
        ids = np.where((given >= 0) & (given < len(classes)), given, -1)
    wrong = np.flatnonzero(ids < 0)
    if wrong.size:
        label, place = given[wrong[0]], numbers[wrong[0]]
        shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
        raise DataError(
            f"{what} has the label {label} at position {place} (from 0); it must be one of the classes {shown}, or an "
            f"id in 0..{len(classes) - 1}{nearest(str(label), list(classes))}"
        )
    return ids
