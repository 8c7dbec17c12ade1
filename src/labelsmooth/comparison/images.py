"""Trials of labelsmooth's own trainer, on images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labelsmooth._errors import DataError
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.trials import read_predictions
from labelsmooth.training import memory, session
from labelsmooth.training.data import ImageData
from labelsmooth.training.loop import Reporter, Training
from labelsmooth.training.recipes import VAL_SHARE
from labelsmooth.training.run import RunFolder, Settings

# Whatever a recipe holds out alone: here the factor is chosen on validation, and the temperature fitted.
_SPLIT: dict[str, Any] = {"val_split": VAL_SHARE}

# Seconds that a trial takes beside its training on two cores: reading the data, evaluation.
_BESIDE_TRAINING = 1.0


@dataclass(frozen=True)
class ImageTrials:
    """Each trial is a run, in the folder that it is told, and goes on where it was interrupted.

    Attributes:
        settings: what all trials share, as keyword arguments of `labelsmooth.training.train`, and the data's `sha256`.
        name: of the data.
        classes: their names.
    """

    settings: Mapping[str, Any]
    name: str
    classes: tuple[str, ...]
    only_smoothed: tuple[str, ...] = ("method", "prior")
    _first: tuple[Settings, ImageData] | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def of(data: str, options: Mapping[str, Any], reporter: Reporter | None = None) -> ImageTrials:
        """Trials on `data`, looked at once, so that what is wrong with it is known before anything is trained.

        Args:
            data: see `labelsmooth.training.load`.
            options: further keyword arguments of `labelsmooth.training.train`.
            reporter: told of how the data are read.
        """
        first, images = session.prepare(data, reporter=reporter, **_SPLIT | dict(options))
        if len(images.test) < 2:
            raise DataError(f"the test set of {data} has one image; a comparison needs two, and many to tell anything")
        told = {"data": images.source, **options}
        if first.noise is not None:
            told["noise"] = first.noise  # a file's path, made absolute
        noise = None if images.noise is None else images.noise.digest
        if first.keras_backend is not None:
            told["keras_backend"] = first.keras_backend  # whatever another process would choose
        recipe = asdict(first.recipe)  # which another version may understand otherwise by its name
        settings = {**told, "sha256": images.digest, "noise_sha256": noise, "resolved": recipe}
        return ImageTrials(settings, images.name, images.classes, _first=(first, images))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_first": None}  # other processes read the cache themselves

    def _options(self) -> dict[str, Any]:
        return _SPLIT | asked(self.settings)

    def describe(self) -> str:
        return "labelsmooth train"

    def check(self, arm: Arm) -> None:
        """Raises:
        ValueError: an option that there is not, or a value out of its range.
        """
        assert self._first is not None  # as in the process that made it
        settings = self._first[0]
        replace(settings, recipe=settings.recipe.changed(**arm.as_dict()))  # which looks at what the framework can do

    def run(self, folder: Path, arm: Arm, seed: int, reporter: Any) -> None:
        """Train in `folder`, or go on there; its own report, of which few are looked at, is left to those who ask."""
        if RunFolder(folder).tested:
            try:
                read_predictions(folder)
                return
            except DataError:  # what the weights say is written anew
                (folder / "summary.json").unlink()
        if (folder / "config.yaml").is_file():
            session.resume(folder, reporter=reporter, report=False)
        else:
            settings, images = session.prepare(**self._options(), **arm.as_dict(), seed=seed, reporter=reporter)
            if images.digest != self.settings["sha256"]:
                raise DataError(f"{settings.data} has changed since the comparison began")
            shutil.rmtree(folder)
            session.start(Training(settings, images), RunFolder.at(folder), reporter, report=False)

    def estimate(self, arm: Arm) -> float | None:
        """The seconds of a trial; None where the framework cannot tell."""
        assert self._first is not None  # as in the process that made it
        settings, images = self._first
        settings = replace(settings, recipe=settings.recipe.changed(**arm.as_dict()))
        with memory.kept():
            seconds = Training(settings, images).engine.estimate()
        return None if seconds is None else seconds + _BESIDE_TRAINING


def asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `labelsmooth.training.train` among the settings of a comparison."""
    return {name: value for name, value in settings.items() if name not in ("sha256", "noise_sha256", "resolved")}
