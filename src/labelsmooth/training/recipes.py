"""Recipes: all that decides how a training goes, beside its data and its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from labelsmooth import _checks, schedules
from labelsmooth._text import nearest
from labelsmooth.training.models import MODELS, tiny

METHODS = ("labels", "loss")
PRIORS = ("uniform", "class_frequency")
PRECISIONS = ("auto", "float64", "float32", "bfloat16")
OPTIMIZERS = ("sgd", "muon")
CHECKPOINTS = ("best", "last")
_SCHEDULE_STEPS = ("epoch", "step")
_SHIFTS = ("part", "pixels")
_LEAST_STEPS = 280  # of a training by the fast recipe
_STEPS = 20  # per epoch, which the fast recipe aims at with fewer examples than its batches were made for
_TINY: dict[str, Any] = {"cutout": 0.0, "shift": 0.1, "shift_by": "part"}  # of `fast`, for tiny images
VAL_SHARE = 0.1  # of the training examples
_VAL_MOST, _VAL_MOST_PER_CLASS = 1000, 10  # validation images of the fast recipe, the larger of the two


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        name: what `config.yaml` calls it.
        model: ``"minigooglenet"``, ``"fast"`` or ``"small"``.
        epochs: passes over the training set, above 0; may be fractional.
        batch_size: examples per step.
        drop_last: leave out the incomplete last batch of an epoch.
        optimizer: ``"sgd"``, or ``"muon"``: Muon for convolutions, Adam for the rest.
        lr: the first learning rate, above 0; with Muon that of convolutions.
        other_lr: with Muon, the first learning rate of everything else.
        schedule: see `labelsmooth.schedules.parse`.
        schedule_every: ``"epoch"`` (as Keras' LearningRateScheduler) or ``"step"``.
        momentum: of SGD or Muon, in [0, 1).
        nesterov: Nesterov's momentum, for SGD; Muon's always is.
        weight_decay: of SGD, on convolution and dense kernels, not on biases and batch norm; at least 0.
        dropout: before the dense layer, in [0, 1).
        shift: random shift, as a share of the image size, in [0, 1).
        shift_by: ``"part"``: by any part of a pixel, the nearest one repeated at the edge; or ``"pixels"``: by whole
            ones, the edge reflected.
        flip: random horizontal flip.
        alternate: flip each image in every second epoch, instead of at random.
        cutout: the side of a square that is blanked out somewhere, as a share of the image size, in [0, 1).
        small_share: the share of the steps that see smaller images, in [0, 1).
        small_scale: their height and width, as a share of the full ones, in (0, 1].
        smoothing: ε, in [0, 1).
        prior: u, towards which labels are smoothed: ``"uniform"``, or ``"class_frequency"``, that of training labels.
        method: ``"labels"`` (the targets are smoothed before training) or ``"loss"`` (the loss smooths).
        checkpoint: which weights are tested and used: ``"best"``, of the epoch best on validation, or ``"last"``.
        precision: ``"float64"``, ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: what the device is fast in.

    Raises:
        ValueError: an argument out of its range.
    """

    name: str = "classic"
    model: str = "minigooglenet"
    epochs: float = 70
    batch_size: int = 64
    drop_last: bool = True
    optimizer: str = "sgd"
    lr: float = 5e-3
    other_lr: float = 0.02
    schedule: str = "polynomial"
    schedule_every: str = "epoch"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    dropout: float = 0.5
    shift: float = 0.1
    shift_by: str = "part"
    flip: bool = True
    alternate: bool = False
    cutout: float = 0.0
    small_share: float = 0.0
    small_scale: float = 0.75
    smoothing: float = 0.1
    prior: str = "uniform"
    method: str = "loss"
    checkpoint: str = "best"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "other_lr"):
            value = _checks.number(getattr(self, name), name, "be a positive number")
            if not (math.isfinite(value) and value > 0):
                raise _checks.error(name, "be a positive number", value)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "batch_size", _checks.class_count(self.batch_size, "batch_size"))
        for name in ("momentum", "dropout", "shift", "cutout", "small_share", "smoothing"):
            object.__setattr__(self, name, _checks.smoothing(getattr(self, name), name))
        decay = _checks.number(self.weight_decay, "weight_decay", "be a number of at least 0")
        if not (math.isfinite(decay) and decay >= 0):
            raise _checks.error("weight_decay", "be a number of at least 0", self.weight_decay)
        object.__setattr__(self, "weight_decay", decay)
        for name in ("drop_last", "nesterov", "flip", "alternate"):
            if not isinstance(getattr(self, name), bool):
                raise _checks.error(name, "be true or false", repr(getattr(self, name)))
        if self.nesterov and self.momentum == 0:
            raise _checks.error("nesterov", "be false where momentum is 0", True)
        scale = _checks.number(self.small_scale, "small_scale", "be a number in (0, 1]")
        if not 0 < scale <= 1:
            raise _checks.error("small_scale", "be a number in (0, 1]", self.small_scale)
        object.__setattr__(self, "small_scale", scale)
        _checks.one_of(self.optimizer, "optimizer", OPTIMIZERS)
        _checks.one_of(self.shift_by, "shift_by", _SHIFTS)
        if self.optimizer == "muon" and self.weight_decay:
            raise _checks.error("weight_decay", "be 0 with Muon, which keeps the norm of kernels", self.weight_decay)
        _checks.one_of(self.model, "model", tuple(MODELS))
        _checks.one_of(self.schedule_every, "schedule_every", _SCHEDULE_STEPS)
        _checks.one_of(self.prior, "prior", PRIORS)
        _checks.one_of(self.method, "method", METHODS)
        _checks.one_of(self.checkpoint, "checkpoint", CHECKPOINTS)
        _checks.one_of(self.precision, "precision", PRECISIONS)
        schedule = self.make_schedule()
        for part in range(101):  # a rate that is not finite is found before the data are read
            schedule(self.epochs * part / 100)

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

    def for_data(self, examples: int, image_shape: tuple[int, int, int]) -> Recipe:
        """This recipe for so many training images, of a height, a width and channels.

        No batch is larger than all of them. `fast` takes smaller batches and more epochs where there are few, mirrors
        no grey images, which tend to be characters, and is careful with tiny ones: nothing is blanked out, since a
        stroke or an eye is not much wider than the square, they are shifted by parts of a pixel, and the learning rate
        falls with the square root of the batch.
        """
        if self.name != "fast":
            return replace(self, batch_size=min(self.batch_size, max(1, examples)))
        batch = min(self.batch_size, max(32, examples // _STEPS))
        epochs = max(self.epochs, math.ceil(_LEAST_STEPS / max(1, examples // batch)))
        careful = _TINY | {"lr": round(self.lr * math.sqrt(batch / self.batch_size), 3)} if tiny(image_shape) else {}
        return replace(self, batch_size=batch, epochs=epochs, flip=self.flip and image_shape[2] > 1, **careful)

    def val_share(self, examples: int, classes: int) -> float:
        """The share of so many training examples that validation gets, where nobody says how much.

        10 %; `fast`, which learns from every image that it gets, keeps no more than 1,000 (or 10 of each class).

        Example:
            >>> FAST.val_share(50_000, 10), FAST.val_share(50_000, 200), FAST.val_share(1_437, 10)
            (0.02, 0.04, 0.1)
        """
        if self.name != "fast":
            return VAL_SHARE
        return min(VAL_SHARE, max(_VAL_MOST, _VAL_MOST_PER_CLASS * classes) / max(1, examples))

    def changed(self, **changes: Any) -> Recipe:
        """This recipe with `changes`; those that are None change nothing.

        Raises:
            ValueError: an unknown name, or a value out of its range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"a recipe has no option {name}{nearest(name, known)}; it has {', '.join(known)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


CLASSIC = Recipe()
DIGITS = Recipe(
    name="digits", model="small", epochs=30, lr=0.05, schedule="cosine", schedule_every="step", nesterov=True,
    weight_decay=5e-4, dropout=0.0, flip=False, precision="float32",
)  # fmt: skip
FAST = Recipe(
    name="fast", model="fast", epochs=12, batch_size=1000, optimizer="muon", lr=0.24, schedule_every="step",
    momentum=0.6, dropout=0.0, shift=1 / 16, shift_by="pixels", alternate=True, cutout=0.25,
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (CLASSIC, FAST, DIGITS)}


def named(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is none.
    """
    _checks.one_of(name, "recipe", tuple(RECIPES))
    return RECIPES[name]


def suited(image_shape: tuple[int, int, int]) -> Recipe:
    """The recipe for those who name none: `digits` for images smaller than 16 pixels, `classic` for others."""
    return DIGITS if tiny(image_shape) else CLASSIC
