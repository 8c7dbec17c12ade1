"""Trials of labelsmooth's own trainer, on images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from labelsmooth._errors import DataError
from labelsmooth.comparison.arms import Arm
from labelsmooth.training import memory, session
from labelsmooth.training.augmentation import Augmentation
from labelsmooth.training.data import ImageData
from labelsmooth.training.loop import Reporter, Training
from labelsmooth.training.run import RunFolder, Settings

_TIMED_STEPS = 3
_TIMED_IMAGES = 500


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
        first, images = session.prepare(data, reporter=reporter, **options)
        told = {"data": images.source, **options}
        if first.noise is not None:
            told["noise"] = first.noise  # a file's path, made absolute
        noise = None if images.noise is None else images.noise.digest
        recipe = asdict(first.recipe)  # which another version may understand otherwise by its name
        settings = {**told, "sha256": images.digest, "noise_sha256": noise, "resolved": recipe}
        return ImageTrials(settings, images.name, images.classes, _first=(first, images))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_first": None}  # other processes read the cache themselves

    def _options(self) -> dict[str, Any]:
        return asked(self.settings)

    def describe(self) -> str:
        return "labelsmooth train"

    def check(self, arm: Arm) -> None:
        """Raises:
        ValueError: an option that there is not, or a value out of its range.
        """
        assert self._first is not None  # as in the process that made it
        self._first[0].recipe.changed(**arm.as_dict())

    def run(self, folder: Path, arm: Arm, seed: int, reporter: Any) -> None:
        """Train in `folder`, or go on there."""
        if RunFolder(folder).finished:
            return
        if (folder / "config.yaml").is_file():
            session.resume(folder, reporter=reporter)
        else:
            settings, images = session.prepare(**self._options(), **arm.as_dict(), seed=seed, reporter=reporter)
            if images.digest != self.settings["sha256"]:
                raise DataError(f"{settings.data} has changed since the comparison began")
            shutil.rmtree(folder)
            session.start(Training(settings, images), RunFolder.at(folder), reporter)

    def estimate(self, arm: Arm) -> float:
        """The seconds of a trial, from a few steps and some predictions."""
        assert self._first is not None  # as in the process that made it
        settings, images = self._first
        settings = replace(settings, recipe=settings.recipe.changed(**arm.as_dict()))
        with memory.kept():
            return _seconds(Training(settings, images))


def asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `labelsmooth.training.train` among the settings of a comparison."""
    return {name: value for name, value in settings.items() if name not in ("sha256", "noise_sha256", "resolved")}


def _seconds(training: Training) -> float:
    recipe = training.recipe
    order = torch.arange(len(training.labels))
    draws = torch.Generator().manual_seed(0)
    augment = Augmentation(recipe, len(order), 0, draws, draws, training.device)
    training.model.train()
    total = 0.0
    for share, part in ((0.0, recipe.small_share), (1.0, 1 - recipe.small_share)):
        if part == 0:
            continue
        began = 0.0
        for step in range(_TIMED_STEPS + 1):
            if step == 1:  # the first prepares
                if training.on_gpu:
                    torch.cuda.synchronize(training.device)
                began = time.perf_counter()
            rows = order[: recipe.batch_size].to(training.feed.rows_on)
            training.gradients(rows, augment, share, training.network)
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
        if training.on_gpu:
            torch.cuda.synchronize(training.device)
        total += (time.perf_counter() - began) / _TIMED_STEPS * training.total_steps * part
    held_out = training.data.test.take(order[: min(_TIMED_IMAGES, len(training.data.test))].numpy())
    began = time.perf_counter()
    training.predict(held_out)
    each = (time.perf_counter() - began) / len(held_out)
    return total + each * (len(training.data.val) * training.epochs + 2 * len(training.data.test))
