"""What a folder holds, read for its report: what is missing or damaged is told in a line, and the rest is shown.

Every text in it comes from users: it is made printable here and escaped where it is written.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.evaluation import Predictions, load_predictions

_LOG_LINES = 5


@dataclass(frozen=True)
class Mistakes:
    """The worst mistakes: uint8 ``[n, H, W, C]``, class ids ``[n]``, and the confidence in the wrong class."""

    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    index: np.ndarray


@dataclass
class Source:
    """A folder.

    Attributes:
        path: where it is.
        left_out: a line for each thing that the report must do without.
        why: what to add where a file is missing.
    """

    path: Path
    left_out: list[str] = field(default_factory=list)
    why: str = ""

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def lacks(self, name: str, without: str, problem: str = "is missing") -> None:
        """Tell that a file cannot be used, and what is left out for it."""
        why = f", {self.why}" if self.why and problem == "is missing" else ""
        line = f"{without[:1].upper()}{without[1:]}: {printable(name)} {printable(problem)}{why}."
        if line not in self.left_out:
            self.left_out.append(line)

    def mapping(self, name: str, without: str) -> dict[str, Any]:
        """A JSON or YAML file; empty where there is none."""
        try:
            text = (self.path / name).read_text(encoding="utf-8")
            value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
            if not isinstance(value, dict):
                raise ValueError("it holds no mapping")
            return clean(value)
        except FileNotFoundError:
            self.lacks(name, without)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.lacks(name, without, f"cannot be read ({str(error).splitlines()[0]})")
        return {}

    def table(self, name: str, numbers: tuple[str, ...], without: str) -> list[dict[str, Any]]:
        """The rows of a CSV file, with the columns `numbers` as floats (None where empty or nan)."""
        try:
            with (self.path / name).open(encoding="utf-8", newline="") as file:
                rows: list[dict[str, Any]] = clean(list(csv.DictReader(file)))
            for row in rows:
                row.update({column: _number(row[column]) for column in numbers})
            return rows
        except FileNotFoundError:
            self.lacks(name, without)
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            self.lacks(name, without, f"cannot be read ({error})")
        return []

    def predictions(self, split: str, without: str) -> Predictions | None:
        name = f"predictions/{split}.npz"
        if not self.has(name):
            self.lacks(name, without)
            return None
        try:
            return load_predictions(self.path / name)
        except DataError as error:
            self.lacks(name, without, f"cannot be read ({error})")
            return None

    def mistakes(self, classes: int) -> Mistakes | None:
        """The worst mistakes with their pictures."""
        name, without = "predictions/mistakes.npz", "the pictures of the worst mistakes"
        try:
            with np.load(self.path / name, allow_pickle=False) as file:
                found = Mistakes(*(file[key] for key in Mistakes.__dataclass_fields__))
            _check(found, classes)
            return found
        except FileNotFoundError:
            self.lacks(name, without)
        except (*_files.NPZ_DAMAGE, KeyError) as error:
            self.lacks(name, without, f"cannot be read ({error})")
        return None

    def log(self) -> list[str]:
        """The last lines of the log."""
        try:
            lines = (self.path / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [printable(line) for line in lines[-_LOG_LINES:]]


def printable(text: str) -> str:
    """`text` as valid UTF-8 on one line: control characters stand as escapes."""
    valid = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in valid)


def clean(value: Any) -> Any:
    """`value` with every text in it made printable, and no number that is not finite."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _check(found: Mistakes, classes: int) -> None:
    """Raises:
    ValueError: the arrays do not fit together.
    """
    images, count = found.images, len(found.images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}")
    for name in ("labels", "predicted", "confidence", "index"):
        if getattr(found, name).shape != (count,):
            raise ValueError(f"{name} has shape {getattr(found, name).shape}, with {count} images")
    for ids in (found.labels, found.predicted):
        if ids.dtype.kind not in "iu" or (count and not 0 <= ids.min() <= ids.max() < classes):
            raise ValueError(f"class ids lie outside 0..{classes - 1}")
