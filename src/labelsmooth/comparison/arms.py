"""Arms: what is compared, a smoothing factor and perhaps other options."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelsmooth import _checks


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        smoothing: ε.
        options: everything else that differs between arms.
    """

    smoothing: float
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """As in the names of folders."""
        parts = [f"smoothing-{self.smoothing:g}", *(f"{key}-{value}" for key, value in self.options)]
        return re.sub(r"[^\w.=+-]+", "-", "_".join(parts))

    @property
    def label(self) -> str:
        """As in tables."""
        return ", ".join([f"ε = {self.smoothing:g}", *(f"{key} {value}" for key, value in self.options)])

    def as_dict(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing, **dict(self.options)}


def grid(
    smoothing: Sequence[float], options: Mapping[str, Sequence[Any]], only_smoothed: Sequence[str] = ()
) -> tuple[list[Arm], bool]:
    """Every combination of the smoothing factors and options, the baseline first, and whether it had to be added.

    The baseline is ε = 0 with the first value of every option.

    Args:
        smoothing: factors, each in [0, 1).
        options: their values by name: strings, numbers, booleans or None.
        only_smoothed: options that say how labels are smoothed, and are left out where ε = 0.

    Raises:
        ValueError: a factor out of range, a value named twice, an option without values, or nothing to compare.
    """
    asked: list[Any] = list(smoothing) if isinstance(smoothing, Iterable) else [smoothing]
    factors = [_checks.smoothing(value) for value in asked]
    for name, values in {"smoothing": factors, **options}.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or (name != "smoothing" and not values):
            raise _checks.error(name, "be a list of values", repr(values))
        if len(values) != len(set(map(repr, values))):
            raise _checks.error(name, "name no value twice", ", ".join(map(str, values)))
        for value in values:
            if not isinstance(value, str | int | float | bool | None):
                raise _checks.error(name, "be strings, numbers, booleans or None", repr(value))
    added = 0.0 not in factors
    factors = [0.0, *(factor for factor in factors if factor)]
    arms: list[Arm] = []
    for factor, *values in itertools.product(factors, *options.values()):
        chosen = zip(options, values, strict=True)
        arm = Arm(factor, tuple((key, value) for key, value in chosen if factor or key not in only_smoothed))
        if arm not in arms:
            arms.append(arm)
    if len(arms) < 2:
        raise _checks.error(
            "smoothing", "name a factor above 0, to compare with 0", ", ".join(map(str, asked)) or "none"
        )
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise _checks.error("arms", "have names that differ", ", ".join(names))
    return arms, added
