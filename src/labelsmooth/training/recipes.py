"""Recipes: all that decides how a training goes, beside its data and its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from labelsmooth import _checks, schedules
from labelsmooth.training.models import MODELS

METHODS = ("labels", "loss")
PRECISIONS = ("auto", "float64", "float32", "bfloat16")
_SCHEDULE_STEPS = ("epoch", "step")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        name: what `config.yaml` calls it.
        model: ``"minigooglenet"`` or ``"small"``.
        epochs: passes over the training set, above 0; may be fractional.
        batch_size: examples per step.
        drop_last: leave out the incomplete last batch of an epoch.
        lr: the first learning rate of SGD, above 0.
        schedule: see `labelsmooth.schedules.parse`.
        schedule_every: ``"epoch"`` (as Keras' LearningRateScheduler) or ``"step"``.
        momentum: of SGD, in [0, 1).
        nesterov: Nesterov's momentum.
        weight_decay: on convolution and dense kernels, not on biases and batch norm; at least 0.
        dropout: before the dense layer, in [0, 1).
        shift: random shift, as a share of the image size, in [0, 1).
        flip: random horizontal flip.
        smoothing: ε, in [0, 1).
        method: ``"labels"`` (the targets are smoothed before training) or ``"loss"`` (the loss smooths).
        precision: ``"float64"``, ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: what the device is fast in.

    Raises:
        ValueError: an argument out of its range.
    """

    name: str = "classic"
    model: str = "minigooglenet"
    epochs: float = 70
    batch_size: int = 64
    drop_last: bool = True
    lr: float = 5e-3
    schedule: str = "polynomial"
    schedule_every: str = "epoch"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    dropout: float = 0.5
    shift: float = 0.1
    flip: bool = True
    smoothing: float = 0.1
    method: str = "loss"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "lr"):
            value = _checks.number(getattr(self, name), name, "be a positive number")
            if not (math.isfinite(value) and value > 0):
                raise _checks.error(name, "be a positive number", value)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "batch_size", _checks.class_count(self.batch_size, "batch_size"))
        for name in ("momentum", "dropout", "shift", "smoothing"):
            object.__setattr__(self, name, _checks.smoothing(getattr(self, name), name))
        decay = _checks.number(self.weight_decay, "weight_decay", "be a number of at least 0")
        if not (math.isfinite(decay) and decay >= 0):
            raise _checks.error("weight_decay", "be a number of at least 0", self.weight_decay)
        object.__setattr__(self, "weight_decay", decay)
        for name in ("drop_last", "nesterov", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise _checks.error(name, "be true or false", repr(getattr(self, name)))
        if self.nesterov and self.momentum == 0:
            raise _checks.error("nesterov", "be false where momentum is 0", True)
        _checks.one_of(self.model, "model", tuple(MODELS))
        _checks.one_of(self.schedule_every, "schedule_every", _SCHEDULE_STEPS)
        _checks.one_of(self.method, "method", METHODS)
        _checks.one_of(self.precision, "precision", PRECISIONS)
        schedule = self.make_schedule()
        try:
            rates = [schedule(self.epochs * part / 100) for part in range(101)]
        except OverflowError:
            rates = [math.inf]
        if not all(0 <= rate < math.inf for rate in rates):
            raise _checks.error("schedule", "give finite learning rates", repr(self.schedule))

    def make_schedule(self) -> schedules.Schedule:
        return schedules.parse(self.schedule, self.lr, self.epochs)

    def steps_per_epoch(self, examples: int) -> int:
        """The batches of an epoch over so many examples.

        Raises:
            ValueError: there are fewer examples than a batch, and the incomplete batch is dropped.
        """
        if self.drop_last and examples < self.batch_size:
            raise _checks.error(
                "batch_size", f"be at most the number of training examples, {examples}", self.batch_size
            )
        return examples // self.batch_size if self.drop_last else -(-examples // self.batch_size)

    def changed(self, **changes: Any) -> Recipe:
        """This recipe with `changes`; those that are None change nothing.

        Raises:
            ValueError: an unknown name, or a value out of its range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise _checks.error(name, f"be no option at all; a recipe has {', '.join(known)}", repr(changes[name]))
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


CLASSIC = Recipe()
DIGITS = Recipe(
    name="digits", model="small", epochs=30, lr=0.05, schedule="cosine", schedule_every="step", nesterov=True,
    weight_decay=5e-4, dropout=0.0, flip=False, precision="float32",
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (CLASSIC, DIGITS)}


def choose(name: str | None, image_shape: tuple[int, int, int]) -> Recipe:
    """The recipe called `name`; if None, `digits` for images smaller than 16 pixels and `classic` for others."""
    if name is None:
        return DIGITS if min(image_shape[:2]) < 16 else CLASSIC
    _checks.one_of(name, "recipe", tuple(RECIPES))
    return RECIPES[name]
