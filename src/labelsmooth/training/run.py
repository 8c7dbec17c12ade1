"""The run folder: where a training writes, and from which everything after it reads."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from labelsmooth import __version__, _checks, _files
from labelsmooth._errors import DataError
from labelsmooth.training import frameworks, noise
from labelsmooth.training.recipes import Recipe

COLUMNS = (
    "epoch", "lr", "smoothing", "train_loss_smoothed", "train_loss_floor", "train_nll", "train_accuracy",
    "val_nll", "val_accuracy", "seconds", "images_per_second",
)  # fmt: skip
_FOLDERS = ("checkpoints", "predictions", "plots")


@dataclass(frozen=True)
class Settings:
    """All that a run was told: what its `config.yaml` holds, and what runs it again."""

    data: str
    recipe: Recipe
    val_split: float
    seed: int
    image_size: int | None
    image_column: str | None
    label_column: str | None
    device: str
    deterministic: bool
    compile: bool | None = None
    noise: str | None = None
    track: str | None = None
    framework: str = "torch"
    keras_backend: str | None = None
    accumulate: int = 1
    devices: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.data, str):
            raise _checks.error("data", "be a name or a path", repr(self.data))
        object.__setattr__(self, "val_split", _checks.smoothing(self.val_split, "val_split"))
        object.__setattr__(self, "seed", _checks.class_count(self.seed, "seed", least=0))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", _checks.image_size(self.image_size))
        for name in ("image_column", "label_column"):
            if not isinstance(getattr(self, name), str | None):
                raise _checks.error(name, "be a column's name", repr(getattr(self, name)))
        if self.noise is not None:
            object.__setattr__(self, "noise", noise.checked(self.noise))
        if not isinstance(self.track, str | None):
            raise _checks.error("track", "be a tracker's name", repr(self.track))
        if not isinstance(self.device, str):
            raise _checks.error("device", "be auto, cpu, cuda or cuda:N", repr(self.device))
        if not isinstance(self.compile, bool | None):
            raise _checks.error("compile", "be true or false", repr(self.compile))
        if not isinstance(self.deterministic, bool):
            raise _checks.error("deterministic", "be true or false", repr(self.deterministic))
        object.__setattr__(self, "devices", _checks.class_count(self.devices, "devices"))
        if self.compile and self.devices > 1:
            raise _checks.error("compile", "be false with several devices", True)
        object.__setattr__(self, "accumulate", _checks.class_count(self.accumulate, "accumulate"))
        frameworks.check(self)

    def flat(self) -> dict[str, Any]:
        """A flat mapping of option names to values; the recipe's name stands under `recipe`."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "recipe"}
        recipe = asdict(self.recipe)
        return {"data": values.pop("data"), "recipe": recipe.pop("name"), **recipe, **values}


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, `runs/NAME-001`; a new one never takes the place of another.

    Attributes:
        path: where it is.
        writes: whether this process is the one that writes to it.
    """

    path: Path
    writes: bool = True

    @staticmethod
    def create(parent: Path, name: str) -> RunFolder:
        """The next free folder for `name` under `parent`.

        Raises:
            ValueError: `parent` is a file.
        """
        _files.check_parent(parent)
        return RunFolder.at(_files.next_folder(parent, name))

    @staticmethod
    def at(path: Path) -> RunFolder:
        """The folder `path`, without anything in it."""
        for sub in _FOLDERS:
            (path / sub).mkdir(parents=True, exist_ok=True)
        return RunFolder(path)

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            DataError: there is none.
        """
        if not isinstance(path, str | Path):
            raise _checks.error("run", "be a run's folder", repr(path))
        folder = RunFolder(Path(path))
        if not folder.path.is_dir():
            runs = (above for above in folder.path.parents if (above / "config.yaml").is_file())
            hint = next((f"; the run that this file is of is {run}" for run in runs if folder.path.exists()), "")
            raise DataError(f"there is no run folder {path}{hint}")
        if not folder.config_file.is_file():
            raise DataError(f"{path} is no run folder: it has no config.yaml, and nothing was trained in it")
        if (folder.path / "manifest.json").is_file():
            raise DataError(f"{path} is a comparison's folder: labelsmooth compare --resume goes on with it")
        return folder

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def predictions_file(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.npz"

    @property
    def tested(self) -> bool:
        """Its figures are there."""
        return (self.path / "summary.json").is_file()

    @property
    def finished(self) -> bool:
        """Its figures are there, and its pictures, which come last."""
        return self.tested and (self.path / "report.html").is_file()

    @property
    def tested_checkpoint(self) -> str | None:
        """Which one the figures are of; None where there are none."""
        try:
            return json.loads((self.path / "summary.json").read_text("utf-8"))["tested_checkpoint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one process that writes alone; what one that was killed left half-written is removed.

        Raises:
            DataError: another process trains here, or nothing can be written.
        """
        if not self.writes:
            yield
            return
        with _files.alone_in(self.path):
            _files.sweep(self.path)
            for sub in _FOLDERS:
                (self.path / sub).mkdir(parents=True, exist_ok=True)
            yield

    def reopen(self) -> None:
        """Make a finished run an unfinished one: no figure or picture of its weights stays beside later ones."""
        if not self.writes:
            return
        predictions, plots = (
            (self.path / name).glob(f"*{end}") for name, end in (("predictions", ".npz"), ("plots", ".png"))
        )
        for path in (*predictions, *plots, self.path / "report.html", self.path / "summary.json"):
            path.unlink(missing_ok=True)

    def write_settings(self, settings: Settings) -> None:
        if not self.writes:
            return
        text = "# What this run was told. `labelsmooth train --config THIS_FILE` runs it again.\n"
        _files.write_text(self.config_file, text + yaml.safe_dump(settings.flat(), sort_keys=False, allow_unicode=True))

    def read_settings(self) -> Settings:
        """The run's settings.

        Raises:
            DataError: `config.yaml` is damaged.
        """
        try:
            values = read_config(self.config_file)
            names = {field.name for field in fields(Recipe)} - {"name"}
            recipe = Recipe(name=values.pop("recipe"), **{name: values.pop(name) for name in names & set(values)})
            return Settings(recipe=recipe, **values)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.config_file} is damaged ({error})") from None

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        if not self.writes:
            return
        _files.write_text(self.path / name, json.dumps(value, indent=2, ensure_ascii=True) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises:
        DataError: the file is missing or damaged.
        """
        path = self.path / name
        with _files.reading(path, "is damaged ({})", (OSError, ValueError)):
            if not path.exists():
                raise DataError(f"{self.path} has no {name}")
            value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise DataError(f"{path} is damaged (it holds no mapping)")
        return value

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        if not self.writes:
            return
        buffer = io.StringIO()
        writer: csv.DictWriter[str] = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
        _files.write_text(self.path / "metrics.csv", buffer.getvalue())

    def log(self, line: str) -> None:
        if not self.writes:
            return
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        # A disk without room for a line of the log is told of by what fails to be written next.
        with suppress(OSError), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {line}\n")


def read_config(path: Path) -> dict[str, Any]:
    """A YAML file of option names and values.

    Raises:
        DataError: it is missing, or no mapping.
    """
    with _files.reading(path, "cannot be read as YAML ({})", (OSError, UnicodeDecodeError, yaml.YAMLError)):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataError(f"{path} must hold option names and values, such as `smoothing: 0.1`")
    return {key.replace("-", "_"): number(value) for key, value in values.items()}


def number(value: Any) -> Any:
    """YAML 1.1 takes 5e-3 for a string; here it is the number that its writer meant."""
    exponent = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value)
    return float(value) if exponent else value


def environment(
    device: str, precision: str, versions_of: Mapping[str, str] | None = None, devices: int = 1
) -> dict[str, Any]:
    """What `env.json` holds: versions (with `versions_of` other libraries), hardware, and what was chosen for it."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for name in ("numpy", "torch", "scikit-learn", "pillow", "pyarrow", "matplotlib", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "labelsmooth": __version__,
        "python": platform.python_version(),
        "versions": versions | dict(versions_of or {}),
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "devices": devices,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "precision": precision,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """The commit of the repository that this is run in, and whether files in it are changed; None outside of one."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
