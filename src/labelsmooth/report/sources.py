"""What a folder holds, read for its report: what is missing or damaged is told in a line, and the rest is shown.

Every text in it comes from users: it is made printable here and escaped where it is written.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth._text import printable, reason
from labelsmooth.evaluation import Predictions, load_predictions

T = TypeVar("T")
MOST_MISTAKES = 24
NUMBER = (int, float)
MAYBE = (int, float, None)
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

    def mapping(self, name: str, without: str, shape: Mapping[Any, Any] | None = None) -> dict[str, Any]:
        """A JSON or YAML file of the shape that is written here (see `misfit`); empty where it is another."""
        try:
            text = (self.path / name).read_text(encoding="utf-8")
            value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
            if not isinstance(value, dict):
                raise ValueError("it holds no mapping")
            value = clean(value)
            if odd := misfit(value, shape or {}):
                self.lacks(name, without, f"holds something else (see {odd})")
                return {}
            return value
        except FileNotFoundError:
            self.lacks(name, without)
        except RecursionError:
            self.lacks(name, without, "cannot be read (it is nested too deeply, or holds itself)")
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.lacks(name, without, f"cannot be read ({reason(error)})")
        return {}

    def table(self, name: str, numbers: tuple[str, ...], without: str) -> list[dict[str, Any]]:
        """The rows of a CSV file, with the columns `numbers` as floats (None where empty or nan).

        Rows without the first of these columns are left out.
        """
        try:
            with (self.path / name).open(encoding="utf-8", newline="") as file:
                rows: list[dict[str, Any]] = clean(list(csv.DictReader(file)))
            for row in rows:
                row.update({column: _number(row[column]) for column in numbers})
            whole = [row for row in rows if row[numbers[0]] is not None]
            if len(whole) < len(rows):
                self.lacks(name, f"some of {without}", f"has {len(rows) - len(whole)} rows without {numbers[0]}")
            return whole
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
            file = np.load(self.path / name, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with file:
                found = Mistakes(*(file[key] for key in Mistakes.__dataclass_fields__))
            _check(found, classes)
            return found
        except FileNotFoundError:
            self.lacks(name, without)
        except (*_files.NPZ_DAMAGE, KeyError) as error:
            self.lacks(name, without, f"cannot be read ({reason(error)})")
        return None

    def attempt(self, without: str, make: Callable[[], T], otherwise: T) -> T:
        """What `make` gives. Where it fails a line says so: files can be odd in more ways than anyone foresees."""
        try:
            return make()
        except Exception as error:
            self.lacks("what the files hold", without, f"cannot be shown ({type(error).__name__}: {reason(error)})")
            return otherwise

    def log(self) -> list[str]:
        """The last lines of the log."""
        try:
            lines = (self.path / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [printable(line) for line in lines[-_LOG_LINES:]]


def misfit(value: Any, shape: Any, where: str = "") -> str:
    """The first place in `value` that is not as `shape` says; "" where all is.

    Args:
        value: of a JSON or YAML file.
        shape: a type, None, a list of one shape, a mapping of keys to shapes (a key that is missing counts as None, and
            the key ... stands for all), or a tuple of shapes that will all do.
        where: `value` is found.
    """
    if isinstance(shape, tuple):
        return "" if any(not misfit(value, each, where) for each in shape) else where
    if isinstance(shape, list):
        if not isinstance(value, list):
            return where
        parts = [(item, shape[0], f"{where}[{k}]") for k, item in enumerate(value)]
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return where
        wanted = dict.fromkeys(value, shape[...]) if ... in shape else shape
        parts = [(value.get(key), each, f"{where}.{key}".lstrip(".")) for key, each in wanted.items()]
    else:
        return "" if (value is None if shape is None else isinstance(value, shape)) else where
    return next(filter(None, (misfit(*part) for part in parts)), "")


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
    if found.confidence.dtype.kind not in "fiu" or not np.isfinite(found.confidence).all():
        raise ValueError("confidence holds something else than numbers")
    if found.index.dtype.kind not in "iu":
        raise ValueError(f"index is {found.index.dtype}")
