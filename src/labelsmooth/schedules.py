"""Learning-rate schedules: callables from epoch to learning rate. Epochs count from 0 and may be fractional."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelsmooth import _checks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EVERY = ("epoch", "step")
_MOST_EPOCHS = 100_000  # in a picture or a table


class Schedule(ABC):
    """What all schedules can do; a schedule is one of `StepDecay`, `PolynomialDecay`, `CosineDecay` and `Warmup`.

    Keras: ``keras.callbacks.LearningRateScheduler(schedule)``.
    PyTorch: ``LambdaLR(optimizer, schedule.relative)``, where the optimizer's own lr is ``schedule.initial_lr``;
    or ``LambdaLR(optimizer, schedule)``, where it is 1. Once a step instead of once an epoch:
    ``LambdaLR(optimizer, lambda step: schedule.relative(step / steps_per_epoch))``.
    Optax: ``optax.sgd(schedule.optax(steps_per_epoch))``.

    Attributes:
        initial_lr: the rate that it decays from.
    """

    initial_lr: float

    def __call__(self, epoch: float) -> float:
        """The learning rate.

        Args:
            epoch: at least 0.

        Raises:
            ValueError: `epoch` is no such number, or a traced one; the rate is too large for a float.
        """
        rule = "be a number of at least 0 (under JAX, optax(steps_per_epoch) gives a schedule of steps)"
        at = _checks.number(epoch, "epoch", rule)
        if not 0 <= at < math.inf:
            raise _checks.error("epoch", rule, epoch)
        try:
            rate = self._rate(at)
        except OverflowError:
            rate = math.inf
        if rate == math.inf:
            raise _checks.error("schedule", "give finite learning rates", f"{self!r}, which gives none at epoch {at:g}")
        return rate

    def relative(self, epoch: float) -> float:
        """The learning rate as a multiple of `initial_lr`, which `torch.optim.lr_scheduler.LambdaLR` multiplies.

        Args:
            epoch: at least 0.

        Example:
            >>> import labelsmooth as ls
            >>> ls.schedules.StepDecay(0.01, factor=0.5, every=10).relative(9)
            0.5
        """
        return self(epoch) / self.initial_lr

    def optax(self, steps_per_epoch: int, *, schedule_every: str = "epoch") -> Callable[[Any], Any]:
        """The same schedule by steps, as Optax wants it: an integer step, traced or not, to a float32 JAX scalar.

        Args:
            steps_per_epoch: at least 1.
            schedule_every: ``"epoch"``: the rate changes between epochs only, as with Keras' LearningRateScheduler;
                ``"step"``: with every step.

        Raises:
            ValueError: an argument out of its range. ModuleNotFoundError: JAX is not installed.

        Example:
            >>> import labelsmooth as ls
            >>> rate = ls.schedules.PolynomialDecay(0.1, epochs=4).optax(steps_per_epoch=100)
            >>> [round(float(rate(step)), 4) for step in (0, 99, 100, 200)]
            [0.1, 0.1, 0.075, 0.05]
        """
        import jax.numpy as jnp

        _checks.one_of(schedule_every, "schedule_every", _EVERY)
        steps = _checks.class_count(steps_per_epoch, "steps_per_epoch")
        by_epoch = schedule_every == "epoch"

        def rate(step: Any) -> Any:
            step = jnp.asarray(step)
            return jnp.asarray(self._traced(step // steps, 1) if by_epoch else self._traced(step, steps), jnp.float32)

        return rate

    def plot(self, epochs: float | None = None, file: str | Path | None = None) -> Figure:
        """Draw the learning rate by epoch.

        Args:
            epochs: up to which; if None, up to the end of the decay. `StepDecay` has none and must be told.
            file: also write the picture to this file (.png, .svg or .pdf).

        Returns:
            A matplotlib figure, which no window shows.

        Raises:
            ValueError: `epochs` is no positive number up to 100,000, or not known; `file` cannot be written.
        """
        from labelsmooth.report import panels, plots, rates

        end = self._end() if epochs is None else epochs
        if end is None:
            raise _checks.error("epochs", "be given for a schedule that does not end", repr(self))
        end = check_length(end)
        if file is not None:
            plots.check_file(Path(file))
        figure = panels.together([rates.panel(self, end)])
        if file is not None:
            panels.save(figure, Path(file))
        return figure

    @abstractmethod
    def _rate(self, epoch: float) -> float:
        """The formula."""

    @abstractmethod
    def _traced(self, count: Any, per: int) -> Any:
        """The formula in JAX, at epoch count / per: from integers, since float32 would miss the edges of epochs."""

    def _end(self) -> float | None:
        """The epoch from which on the rate does not change any more, if there is one."""
        return None


@dataclass(frozen=True)
class StepDecay(Schedule):
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
        _as_floats(self, "initial_lr", "factor", "every")

    def _rate(self, epoch: float) -> float:
        return self.initial_lr * self.factor ** math.floor((1 + epoch) / self.every)

    def _traced(self, count: Any, per: int) -> Any:
        return self.initial_lr * self.factor ** ((count + per) // _int_if_whole(self.every * per))

    def __str__(self) -> str:
        return f"step decay from {self.initial_lr:g}, times {self.factor:g} every {_epochs(self.every)}"


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
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
        _as_floats(self, "initial_lr", "epochs", "power")

    def _rate(self, epoch: float) -> float:
        return self.initial_lr * max(0.0, 1.0 - epoch / self.epochs) ** self.power

    def _traced(self, count: Any, per: int) -> Any:
        import jax.numpy as jnp

        total = self.epochs * per
        return self.initial_lr * (jnp.maximum(0.0, total - count) / total) ** self.power

    def _end(self) -> float | None:
        return self.epochs

    def __str__(self) -> str:
        power = "linear decay" if self.power == 1 else f"polynomial decay of power {self.power:g}"
        return f"{power} from {self.initial_lr:g} to 0 in {_epochs(self.epochs)}"


@dataclass(frozen=True)
class CosineDecay(Schedule):
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
        _as_floats(self, "initial_lr", "epochs")

    def _rate(self, epoch: float) -> float:
        return self.initial_lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, epoch / self.epochs)))

    def _traced(self, count: Any, per: int) -> Any:
        import jax.numpy as jnp

        part = jnp.minimum(1.0, count / (self.epochs * per))
        return self.initial_lr * 0.5 * (1.0 + jnp.cos(math.pi * part))

    def _end(self) -> float | None:
        return self.epochs

    def __str__(self) -> str:
        return f"cosine decay from {self.initial_lr:g} to 0 in {_epochs(self.epochs)}"


@dataclass(frozen=True)
class Warmup(Schedule):
    """A linear warm-up, then another schedule from its own epoch 0 on.

    lr(epoch) = schedule(0) · (start_factor + (1 - start_factor) · epoch / epochs) while epoch < epochs, and
    schedule(epoch - epochs) from there on. So a warm-up of 5 epochs and a decay of 95 make 100 together.

    Args:
        schedule: what follows.
        epochs: the length of the warm-up, above 0.
        start_factor: what `schedule(0)` is multiplied by at epoch 0, in [0, 1]. 0 is for rates that change with every
            step: else nothing is learnt in the first epoch.

    Raises:
        ValueError: `schedule` is none of this module; another argument is out of its range.

    References:
        Goyal et al. 2017, arXiv 1706.02677, section 2.2 (gradual warm-up).

    Example:
        >>> import labelsmooth as ls
        >>> rate = ls.schedules.Warmup(ls.schedules.PolynomialDecay(0.1, epochs=2), epochs=2, start_factor=0.5)
        >>> [round(rate(epoch), 6) for epoch in range(5)]
        [0.05, 0.075, 0.1, 0.05, 0.0]
    """

    schedule: Schedule
    epochs: float = 5
    start_factor: float = 0.1
    initial_lr: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise _checks.error("schedule", "be a schedule of labelsmooth.schedules", repr(self.schedule))
        _as_floats(self, "epochs")
        rule = "be a number in [0, 1]"
        start = _checks.number(self.start_factor, "start_factor", rule)
        if not 0 <= start <= 1:
            raise _checks.error("start_factor", rule, self.start_factor)
        object.__setattr__(self, "start_factor", start)
        object.__setattr__(self, "initial_lr", self.schedule.initial_lr)

    def _rate(self, epoch: float) -> float:
        if epoch >= self.epochs:
            return self.schedule(epoch - self.epochs)
        return self.schedule(0) * self._share(epoch / self.epochs)

    def _traced(self, count: Any, per: int) -> Any:
        import jax.numpy as jnp

        length = _int_if_whole(self.epochs * per)
        later = self.schedule._traced(jnp.maximum(count - length, 0), per)
        return jnp.where(count < length, self.schedule(0) * self._share(count / length), later)

    def _share(self, part: Any) -> Any:
        return self.start_factor + (1.0 - self.start_factor) * part

    def _end(self) -> float | None:
        end = self.schedule._end()
        return None if end is None else self.epochs + end

    def __str__(self) -> str:
        return f"warm-up of {_epochs(self.epochs)}, then {self.schedule}"


_KINDS: dict[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "polynomial": (PolynomialDecay, ("power",)),
    "step": (StepDecay, ("factor", "every")),
    "cosine": (CosineDecay, ()),
}


def make(
    name: str,
    initial_lr: float,
    epochs: float,
    *,
    warmup: float = 0.0,
    start_factor: float = 0.1,
    **arguments: float,
) -> Schedule:
    """The schedule of a training of so many epochs.

    Args:
        name: ``"polynomial"``, ``"step"`` or ``"cosine"``.
        initial_lr: the rate that it decays from, above 0.
        epochs: the length of the training, above 0, its warm-up included.
        warmup: epochs of linear warm-up at the beginning, at least 0 and below `epochs`.
        start_factor: see `Warmup`.
        **arguments: of the schedule: `power`, or `factor` and `every`.

    Raises:
        ValueError: an unknown name or argument, or one out of its range.

    Example:
        >>> from labelsmooth.schedules import make
        >>> make("cosine", 0.1, epochs=100, warmup=5)
        Warmup(schedule=CosineDecay(initial_lr=0.1, epochs=95.0), epochs=5.0, start_factor=0.1)
    """
    _checks.one_of(name, "name", tuple(_KINDS))
    kind, known = _KINDS[name]
    for argument, value in arguments.items():
        if argument not in known:
            raise _checks.error(argument, f"be left out for {name}", value)
    _positive(epochs, "epochs")
    rule = f"be a number of at least 0 and below the epochs, {epochs:g}"
    if not 0 <= _checks.number(warmup, "warmup", rule) < epochs:
        raise _checks.error("warmup", rule, warmup)
    length = {} if name == "step" else {"epochs": epochs - warmup}
    schedule = kind(initial_lr=initial_lr, **length, **arguments)
    return Warmup(schedule, warmup, start_factor) if warmup else schedule


def parse(text: str, initial_lr: float, epochs: float) -> Schedule:
    """The schedule that `text` names: ``polynomial``, ``step`` or ``cosine``, with arguments if they are given.

    Args:
        text: such as ``polynomial``, ``polynomial:power=2``, ``step:factor=0.5,every=25`` or ``cosine:warmup=5``.
        initial_lr: the rate that it decays from, above 0.
        epochs: the length of the training, above 0, its warm-up included.

    Raises:
        ValueError: an unknown name or argument, or one out of its range.

    Example:
        >>> from labelsmooth.schedules import parse
        >>> parse("step:factor=0.5,every=25", initial_lr=0.01, epochs=100)
        StepDecay(initial_lr=0.01, factor=0.5, every=25.0)
    """
    rule = "be polynomial[:power=P], step[:factor=F,every=E] or cosine, each with warmup=W if wanted"
    name, _, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
    if name not in _KINDS:
        raise _checks.error("schedule", rule, repr(text))
    arguments: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in (*_KINDS[name][1], "warmup"):
            raise _checks.error("schedule", rule, repr(text))
        try:
            arguments[key] = float(value)
        except ValueError:
            raise _checks.error("schedule", rule, repr(text)) from None
    return make(name, initial_lr, epochs, **arguments)


def check_length(epochs: Any) -> float:
    """Raises:
    ValueError: `epochs` are not so many that each can be shown.
    """
    rule = f"be a positive number of at most {_MOST_EPOCHS}"
    number = _checks.number(epochs, "epochs", rule)
    if not 0 < number <= _MOST_EPOCHS:
        raise _checks.error("epochs", rule, epochs)
    return number


def _positive(value: Any, name: str) -> float:
    rule = "be a positive number"
    number = _checks.number(value, name, rule)
    if not 0 < number < math.inf:
        raise _checks.error(name, rule, value)
    return number


def _as_floats(schedule: Schedule, *names: str) -> None:
    """Check fields to be positive, and make floats of them: Keras refuses a rate that is an int."""
    for name in names:
        object.__setattr__(schedule, name, _positive(getattr(schedule, name), name))


def _int_if_whole(value: float) -> int | float:
    """`value` steps for integer arithmetic, where it can be exact; JAX counts them in int32."""
    return min(int(value), 2**31 - 1) if value == int(value) else value


def _epochs(count: float) -> str:
    return "1 epoch" if count == 1 else f"{count:g} epochs"
