"""Intervals of means and of shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.evaluation._ties import runs

_GROUPS = 256
_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def bootstrap_mean(values: Any, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`.

    More than 256 values are put into at most 257 groups of neighbours, none of which spans more than 1/128 of their
    range or, but for equal values, of their number; a draw resamples the groups' means. That takes (range / 256)² off
    the variance of a value at most, and a million values take hardly longer than a thousand.

    Args:
        values: finite numbers ``[N]`` or bool.
        level: the share of the bootstrap distribution that lies inside, in (0, 1).
        draws: how many resamples.
        seed: of NumPy's generator.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: no values, or some that are not finite; a level outside (0, 1); no draws.

    References:
        Efron 1979, Bootstrap methods: another look at the jackknife.

    Example:
        >>> bootstrap_mean([0.5, 0.5])
        (0.5, 0.5)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise _checks.error("values", "be finite numbers of shape [N] with N above 0", f"shape {values.shape}")
    rule = "be a number in (0, 1)"
    if not 0 < _checks.number(level, "level", rule) < 1:
        raise _checks.error("level", rule, level)
    draws = _checks.class_count(draws, "draws")
    n, generator = len(values), np.random.default_rng(seed)
    if n <= _GROUPS:
        means = values[generator.integers(0, n, (draws, n))].mean(axis=1)
    else:
        sizes, sums = _groups(np.sort(values))
        means = generator.multinomial(n, sizes / n, draws) @ (sums / sizes) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(share: Any, count: Any) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share s of n: (s + z²/2n ± z sqrt(s (1 - s)/n + z²/4n²)) / (1 + z²/n), z = 1.96.

    It has a width where the bootstrap has none: at a share of 0 or 1.

    Args:
        share: in 0..1, of any shape.
        count: n above 0, of a shape that goes with it.

    Returns:
        The lower and the upper ends, float64, in 0..1.

    References:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.

    Example:
        >>> low, high = wilson(1.0, 360)
        >>> round(float(low), 4), float(high)
        (0.9894, 1.0)
    """
    share, count = np.asarray(share, np.float64), np.asarray(count, np.float64)
    middle = share + _Z**2 / (2 * count)
    half = _Z * np.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    low, high = ((middle + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    # rounding must not leave an end that is known just inside
    return np.where(share > 0, np.maximum(low, 0.0), 0.0), np.where(share < 1, np.minimum(high, 1.0), 1.0)


def _groups(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and sums of the groups of neighbours; equal values are in one group."""
    starts, sizes = runs(ordered)
    different = ordered[starts]
    place = starts / len(ordered) + (different - different[0]) / max(different[-1] - different[0], np.finfo(float).tiny)
    groups, _ = runs((place * (_GROUPS / 2)).astype(np.int64))
    return np.add.reduceat(sizes, groups), np.add.reduceat(sizes * different, groups)
