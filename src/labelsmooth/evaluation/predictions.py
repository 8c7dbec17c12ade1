"""Predictions files: logits and labels of one split, as `.npz` without anything pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelsmooth import _files
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
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray | None = None
    index: np.ndarray | None = None
    classes: tuple[str, ...] | None = None

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        arrays = {"logits": self.logits, "labels": self.labels, "features": self.features, "index": self.index}
        arrays["classes"] = None if self.classes is None else np.array(self.classes, np.str_)
        with _files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def load_predictions(path: Path) -> Predictions:
    """The predictions in an ``.npz`` file with the arrays `logits` and `labels`, and perhaps the others.

    Raises:
        DataError: there is no such file, it is damaged, or it lacks `logits` or `labels`.
    """
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array; give a file with the arrays logits and labels")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except _files.NPZ_DAMAGE as error:
        raise DataError(f"{path} is no readable .npz file ({error})") from None
    missing = [name for name in ("logits", "labels") if name not in arrays]
    if missing:
        held = ", ".join(arrays) or "nothing"
        raise DataError(f"{path} has no array called {' and none called '.join(missing)}; it holds {held}")
    classes = arrays.get("classes")
    if classes is not None and classes.ndim != 1:
        raise DataError(f"the array classes of {path} has shape {classes.shape}; it should be a list of names")
    names = None if classes is None else tuple(map(str, classes))
    return Predictions(arrays["logits"], arrays["labels"], arrays.get("features"), arrays.get("index"), names)
