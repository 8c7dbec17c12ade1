"""Learning-rate schedules: callables from epoch to learning rate. Epochs may be fractional."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from labelsmooth import _checks

Schedule = Callable[[float], float]


def _positive(value: float, name: str) -> None:
    rule = "be a positive number"
    if not (math.isfinite(_checks.number(value, name, rule)) and value > 0):
        raise _checks.error(name, rule, value)


@dataclass(frozen=True)
class StepDecay:
    """Step decay: lr(epoch) = initial_lr · factor^floor((1 + epoch) / every).

    Args:
        initial_lr: the first learning rate, above 0.
        factor: what a step multiplies it by, above 0.
        every: the number of epochs between steps, above 0.

    Raises:
        ValueError: an argument that is not a positive number.

    Example:
        >>> import labelsmooth as ls
        >>> [ls.schedules.StepDecay(0.01, factor=0.5, every=2)(epoch) for epoch in range(4)]
        [0.01, 0.005, 0.005, 0.0025]
    """

    initial_lr: float = 0.01
    factor: float = 0.25
    every: float = 10

    def __post_init__(self) -> None:
        for name in ("initial_lr", "factor", "every"):
            _positive(getattr(self, name), name)

    def __call__(self, epoch: float) -> float:
        return self.initial_lr * self.factor ** math.floor((1 + epoch) / self.every)


@dataclass(frozen=True)
class PolynomialDecay:
    """Polynomial decay to zero: lr(epoch) = initial_lr · (1 - epoch / epochs)^power; power 1 is linear.

    Args:
        initial_lr: the first learning rate, above 0.
        epochs: the epoch from which on it is 0, above 0.
        power: above 0.

    Raises:
        ValueError: an argument that is not a positive number.

    Example:
        >>> import labelsmooth as ls
        >>> [ls.schedules.PolynomialDecay(0.005, epochs=4)(epoch) for epoch in (0, 1, 2.5, 4)]
        [0.005, 0.00375, 0.001875, 0.0]
    """

    initial_lr: float = 0.01
    epochs: float = 100
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("initial_lr", "epochs", "power"):
            _positive(getattr(self, name), name)

    def __call__(self, epoch: float) -> float:
        return self.initial_lr * max(0.0, 1.0 - epoch / self.epochs) ** self.power


@dataclass(frozen=True)
class CosineDecay:
    """Cosine decay to zero: lr(epoch) = initial_lr · (1 + cos(π epoch / epochs)) / 2.

    Args:
        initial_lr: the first learning rate, above 0.
        epochs: the epoch from which on it is 0, above 0.

    Raises:
        ValueError: an argument that is not a positive number.

    References:
        Loshchilov and Hutter 2017 (SGDR), arXiv 1608.03983, equation 5, without restarts.

    Example:
        >>> import labelsmooth as ls
        >>> [round(ls.schedules.CosineDecay(0.1, epochs=4)(epoch), 6) for epoch in (0, 2, 4)]
        [0.1, 0.05, 0.0]
    """

    initial_lr: float = 0.01
    epochs: float = 100

    def __post_init__(self) -> None:
        for name in ("initial_lr", "epochs"):
            _positive(getattr(self, name), name)

    def __call__(self, epoch: float) -> float:
        return self.initial_lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, epoch / self.epochs))))


def parse(text: str, initial_lr: float, epochs: float) -> Schedule:
    """The schedule that `text` names: ``polynomial``, ``step`` or ``cosine``, with arguments if they are given.

    Args:
        text: such as ``polynomial``, ``polynomial:power=2`` or ``step:factor=0.5,every=25``.
        initial_lr: the first learning rate, above 0.
        epochs: the length of the training, above 0.

    Raises:
        ValueError: an unknown name or argument, or one out of its range.

    Example:
        >>> from labelsmooth.schedules import parse
        >>> parse("step:factor=0.5,every=25", initial_lr=0.01, epochs=100)
        StepDecay(initial_lr=0.01, factor=0.5, every=25.0)
    """
    rule = "be polynomial[:power=P], step[:factor=F,every=E] or cosine"
    name, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    kinds = {
        "polynomial": (PolynomialDecay, {"power"}),
        "step": (StepDecay, {"factor", "every"}),
        "cosine": (CosineDecay, set()),
    }
    if name not in kinds:
        raise _checks.error("schedule", rule, repr(text))
    kind, known = kinds[name]
    arguments = {} if kind is StepDecay else {"epochs": epochs}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise _checks.error("schedule", rule, repr(text))
        try:
            arguments[key] = float(value)
        except ValueError:
            raise _checks.error("schedule", rule, repr(text)) from None
    return kind(initial_lr=initial_lr, **arguments)
