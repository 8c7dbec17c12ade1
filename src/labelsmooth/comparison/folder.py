"""A comparison's folder: what was asked, which trials are done, and what came out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import __version__, _files
from labelsmooth._errors import DataError
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.scores import METRICS, Scores

FORMAT = 1


@dataclass(frozen=True)
class ComparisonFolder:
    """The folder, `runs/NAME-compare-001`; a new one never takes the place of another."""

    path: Path

    @staticmethod
    def create(parent: Path, name: str) -> ComparisonFolder:
        """The next free folder for `name` under `parent`.

        Raises:
            ValueError: `parent` is a file.
        """
        _files.check_parent(parent)
        path = _files.next_folder(parent, f"{name}-compare")
        for sub in ("runs", "plots"):
            (path / sub).mkdir()
        return ComparisonFolder(path)

    @staticmethod
    def open(path: str | Path) -> ComparisonFolder:
        """An existing one.

        Raises:
            DataError: there is none.
        """
        folder = ComparisonFolder(Path(path))
        if not folder.path.is_dir():
            raise DataError(f"there is no folder {path}")
        if not folder.manifest_file.is_file():
            run = ", and is a run's: labelsmooth train --resume goes on with it" * (folder.path / "data.json").is_file()
            raise DataError(f"{path} is no comparison: it has no manifest.json{run}")
        return folder

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    def trial(self, arm: Arm, seed: int) -> Path:
        return self.path / "runs" / f"{arm.name}-{seed}"

    def done(self, arm: Arm, seed: int) -> dict[str, Any] | None:
        """The seconds of a finished trial, and what it was tested on; None where it is not finished."""
        try:
            done = json.loads((self.trial(arm, seed) / "trial.json").read_text(encoding="utf-8"))
            return {"seconds": float(done["seconds"]), "tested_on": str(done["tested_on"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def forget(self, arm: Arm, seed: int) -> None:
        """Make a finished trial an unfinished one."""
        (self.trial(arm, seed) / "trial.json").unlink(missing_ok=True)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        _files.write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def read_manifest(self) -> dict[str, Any]:
        """Raises:
        DataError: it is damaged, or of another version.
        """
        with _files.reading(self.manifest_file, "is damaged ({})", (OSError, ValueError, KeyError, TypeError)):
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}; this version reads {FORMAT}")
            return manifest

    def write_results(self, trials: Mapping[tuple[Arm, int], Scores], arms: Sequence[Arm]) -> None:
        """`results.csv`: a row per arm and seed."""
        options = list(dict.fromkeys(key for arm in arms for key in arm.as_dict()))
        expected = ["expected_ece", "expected_ece_scaled"]
        figures = ["temperature", "seconds", "val_accuracy", "val_nll", *METRICS, *expected]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["arm", "seed", *options, *figures])
        for (arm, seed), scores in sorted(trials.items(), key=lambda item: (arms.index(item[0][0]), item[0][1])):
            values = [
                scores.temperature,
                (self.done(arm, seed) or {}).get("seconds"),
                scores.val_accuracy,
                scores.val_nll,
            ]
            values += [*(scores.values[metric] for metric in METRICS), *(getattr(scores, name) for name in expected)]
            writer.writerow([arm.name, seed, *(arm.as_dict().get(key, "") for key in options), *values])
        _files.write_text(self.path / "results.csv", buffer.getvalue())


def new_manifest(
    function: str, name: str, settings: Mapping[str, Any], asked: Mapping[str, Any], arms: Sequence[Arm], seeds: int,
    margins: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """What a comparison is told; `asked` are its `smoothing` and `options`, from which the arms follow."""
    return {
        "format": FORMAT,
        "labelsmooth": __version__,
        "numpy": np.__version__,
        "function": function,
        "name": name,
        "settings": dict(settings),
        **asked,
        "arms": [arm.as_dict() for arm in arms],
        "margins": dict(margins),
        "seeds": seeds,
        "judged": [],  # with how many seeds, each time that all that were asked for were there
        "trials": {},
    }


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a comparison that goes on was told otherwise than the first time, in words; more seeds are no difference."""
    new = json.loads(json.dumps(new))
    words = []
    for key in ("function", "name", "arms"):
        if old.get(key) != new[key]:
            words.append(f"{key} was {_short(old.get(key))} and is {_short(new[key])}")
    words += _entries(old.get("margins", {}), new["margins"], "margin of ")
    words += _entries(old.get("settings", {}), new["settings"])
    if new["seeds"] < old.get("seeds", 0):
        words.append(f"seeds were {old['seeds']} and are {new['seeds']}")
    return words


def _entries(old: Mapping[str, Any], new: Mapping[str, Any], kind: str = "") -> list[str]:
    words = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            words += _entries(before, now, f"{key}: ")
        elif before != now:
            words.append(f"{kind}{key} was {_short(before)} and is {_short(now)}")
    return words


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
