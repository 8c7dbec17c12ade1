"""Predictions files: logits and labels of one split, as `.npz` or as a folder of `.npy`, without anything pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about one split.

    Attributes:
        logits: float32 ``[N, K]``.
        labels: int64 ``[N]``.
        features: float32 ``[N, D]``, the penultimate layer; None where it is not known.
        index: int64 ``[N]``, the examples' positions in their source; None where they are not known.
        classes: K names; None where they are not known.
        templates: float32 ``[K, D]``, the rows of the last layer's weights; None where they are not known.
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None
    index: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    templates: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        arrays = {"logits": self.logits, "labels": self.labels, "features": self.features, "index": self.index}
        arrays["templates"] = self.templates
        arrays["classes"] = None if self.classes is None else np.array(self.classes, np.str_)
        with _files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def load_predictions(
    path: str | Path, split: Literal["test", "val"] = "test", only: Sequence[str] | None = None
) -> Predictions:
    """Predictions from an ``.npz`` file or a folder of ``.npy`` files, which are memory-mapped.

    Args:
        path: a file with the arrays `logits` and `labels`, and perhaps the others of `Predictions`; or a folder with
            ``logits.npy``, ``labels.npy`` and perhaps ``features.npy``, ``index.npy``, ``templates.npy``, and
            ``classes.npy`` or ``classes.txt``, a name per line.
        split: of a folder: "val" takes ``val_logits.npy``, ``val_labels.npy``, ``val_features.npy`` and
            ``val_index.npy`` instead. A file has one split.
        only: the arrays to read beside `logits` and `labels`, such as ``["index"]``; the others are None. None: all.

    Raises:
        DataError: there is no such file, it is damaged, it lacks `logits` or `labels`, or `index` or `classes` are of
            another kind or shape.
        ValueError: `only` names something else.
    """
    path, known = Path(path), tuple(field.name for field in fields(Predictions))
    for name in only or ():
        _checks.one_of(name, "only", known)
    wanted = known if only is None else ("logits", "labels", *only)
    arrays, held = _folder(path, "val_" if split == "val" else "", wanted) if path.is_dir() else _file(path, wanted)
    missing = [name for name in ("logits", "labels") if name not in arrays]
    if missing:
        listed = ", ".join(held) or "nothing"
        raise DataError(f"{path} has no array called {' and none called '.join(missing)}; it holds {listed}")
    index, length = arrays.get("index"), arrays["logits"].shape[:1]
    if index is not None and (index.dtype.kind not in "iu" or index.shape != length):
        what = f"{index.dtype} {index.shape}"
        raise DataError(f"the array index of {path} is {what}; it should be a whole number for each row of the logits")
    names = _names(arrays["classes"], path) if "classes" in arrays else None
    return Predictions(
        arrays["logits"], arrays["labels"], arrays.get("features"), index, names, arrays.get("templates")
    )


def check_disjoint(test: Predictions, validation: Predictions) -> None:
    """An example that the temperature is fitted on must not be tested on, as far as `index` tells.

    Raises:
        DataError: an index in both.
    """
    if test.index is None or validation.index is None:
        return
    common = np.intersect1d(test.index, validation.index)
    if len(common):
        what = f"{len(common)} in both, the first with index {common[0]}"
        raise DataError(str(_checks.error("validation", "share no example with the tested predictions", what)))


def _names(classes: np.ndarray, path: Path) -> tuple[str, ...]:
    if classes.ndim != 1:
        raise DataError(f"the array classes of {path} has shape {classes.shape}; it should be a list of names")
    if classes.dtype.kind == "S":
        try:
            classes = np.char.decode(classes, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"the array classes of {path} is not UTF-8 ({error})") from None
    return tuple(map(str, classes))


def _file(path: Path, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are wanted, and the names of all."""
    with _files.reading(path, "is no readable .npz file ({})"), path.open("rb") as opened:
        if not opened.read(6).startswith((b"PK", b"\x93NUMPY")):  # which NumPy takes for a pickle
            raise ValueError("it is another kind of file")
        opened.seek(0)
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array; give a file with the arrays logits and labels")
        return {name: file[name] for name in file.files if name in wanted}, list(file.files)


def _folder(path: Path, prefix: str, wanted: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are wanted, and the names of all."""
    own = {name: path / f"{prefix}{name}.npy" for name in ("logits", "labels", "features", "index")}
    files = {**own, "classes": path / "classes.npy", "templates": path / "templates.npy"}
    held = [name for name, file in files.items() if file.is_file()]
    arrays = {name: _array(files[name]) for name in held if name in wanted}
    listed = path / "classes.txt"
    if "classes" in wanted and "classes" not in arrays and listed.is_file():
        with _files.reading(listed, "is not UTF-8 ({})", (UnicodeDecodeError,)):
            arrays["classes"] = np.array(listed.read_text(encoding="utf-8").splitlines(), np.str_)
    return arrays, held


def _array(file: Path) -> np.ndarray:
    with _files.reading(file, "is no readable .npy file ({})"):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an .npz file")
        return array
