"""Predictions files: logits and labels of one split, as `.npz` or as a folder of `.npy`, without anything pickled."""

from __future__ import annotations

from dataclasses import dataclass
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


def load_predictions(path: Path, split: Literal["test", "val"] = "test") -> Predictions:
    """Predictions from an ``.npz`` file or a folder of ``.npy`` files, which are memory-mapped.

    Args:
        path: a file with the arrays `logits` and `labels`, and perhaps the others of `Predictions`; or a folder with
            ``logits.npy``, ``labels.npy`` and perhaps ``features.npy``, ``index.npy``, ``templates.npy``, and
            ``classes.npy`` or ``classes.txt``, a name per line.
        split: of a folder: "val" takes ``val_logits.npy``, ``val_labels.npy``, ``val_features.npy`` and
            ``val_index.npy`` instead. A file has one split.

    Raises:
        DataError: there is no such file, it is damaged, or it lacks `logits` or `labels`.
    """
    arrays = _folder(path, "val_" if split == "val" else "") if path.is_dir() else _file(path)
    missing = [name for name in ("logits", "labels") if name not in arrays]
    if missing:
        held = ", ".join(arrays) or "nothing"
        raise DataError(f"{path} has no array called {' and none called '.join(missing)}; it holds {held}")
    classes = arrays.get("classes")
    if classes is not None and classes.ndim != 1:
        raise DataError(f"the array classes of {path} has shape {classes.shape}; it should be a list of names")
    names = None if classes is None else tuple(map(str, classes))
    return Predictions(
        arrays["logits"], arrays["labels"], arrays.get("features"), arrays.get("index"), names, arrays.get("templates")
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


def _file(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array; give a file with the arrays logits and labels")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except _files.NPZ_DAMAGE as error:
        raise DataError(f"{path} is no readable .npz file ({error})") from None


def _folder(path: Path, prefix: str) -> dict[str, np.ndarray]:
    own = {name: path / f"{prefix}{name}.npy" for name in ("logits", "labels", "features", "index")}
    files = {**own, "classes": path / "classes.npy", "templates": path / "templates.npy"}
    arrays = {name: _array(file) for name, file in files.items() if file.is_file()}
    listed = path / "classes.txt"
    if "classes" not in arrays and listed.is_file():
        try:
            arrays["classes"] = np.array(listed.read_text(encoding="utf-8").splitlines(), np.str_)
        except UnicodeDecodeError as error:
            raise DataError(f"{listed} is not UTF-8 ({error})") from None
    return arrays


def _array(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except _files.NPZ_DAMAGE as error:
        raise DataError(f"{file} is no readable .npy file ({error})") from None
