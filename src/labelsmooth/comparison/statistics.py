"""What a difference between two arms is worth on new test examples and new seeds, from seeds x examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from labelsmooth import _checks

ALPHA = 0.05
POWER = 0.8  # with which `seeds_needed` wants to tell
LEAST_FOR_PERMUTATION = 8  # seeds; with fewer its smallest p is above 0.0078
_EXACT_FLIPS = 14  # seeds up to which every pattern of signs is looked at
_FLIPS = 20_000
MOST_SEEDS = 1000
_UNSEEN = 2  # examples on which right and wrong arms may differ, one each way, beside those on which they did
_QUANTILES = (np.arange(64) + 0.5) / 64


@dataclass(frozen=True)
class Difference:
    """An estimated difference, arm minus baseline, and how uncertain it is.

    Attributes:
        estimate: the mean over seeds.
        variance: of the estimate, over new seeds and new examples.
        dof: degrees of freedom of its t distribution.
        seeds: n.
        examples: N.
        seed_variance: of a seed's effect, s²_α.
        example_variance: of an example's effect, s²_β.
        residual_variance: of what is left, s²_ε.
    """

    estimate: float
    variance: float
    dof: float
    seeds: int
    examples: int
    seed_variance: float
    example_variance: float
    residual_variance: float

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided t interval."""
        half = self._quantile((1 + level) / 2) * self.standard_error
        return self.estimate - half, self.estimate + half

    @property
    def p(self) -> float:
        """Of the two-sided test that there is no difference."""
        if self.variance == 0:
            return 1.0 if self.estimate == 0 else 0.0
        return float(2 * special.stdtr(self.dof, -abs(self.estimate) / self.standard_error))

    def _quantile(self, q: float) -> float:
        return float(special.stdtrit(self.dof, q)) if self.variance else 0.0

    def planned(self, seeds: int) -> tuple[float, float]:
        """The variance and the degrees of freedom to expect of so many seeds, with the same examples."""
        a = (self.seed_variance + self.residual_variance / self.examples) / seeds
        total = a + self.example_variance / self.examples
        return total, _dof(a, total, seeds, self.examples)


def mean_difference(values: np.ndarray, *, binary: bool = False) -> Difference:
    """The difference of a mean over examples.

    Model: d_si = μ + α_s + β_i + ε_si, seeds s = 1..n and examples i = 1..N both drawn at random. With A = s²(means of
    seeds)/n, B = s²(means of examples)/N and C = s²(residual)/(nN), the variance of the mean is A + B - C, which counts
    ε once; it is taken as at least A and at least B. The degrees of freedom are those of A and of the rest, weighted by
    their shares of the variance: 1/ν = (A/v)/(n-1) + (1-A/v)/(N-1). Satterthwaite squares the shares, which at 3 to 5
    seeds trusts a small A too much (7 to 8 % false verdicts at n = 3 where seeds make most of the variance).

    Args:
        values: ``float[n, N]``, the difference on each example under each seed; n and N at least 2.
        binary: see `difference`.

    Raises:
        ValueError: another shape, or nan.

    Example:
        >>> difference = mean_difference(np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]]))
        >>> round(difference.estimate, 3), round(difference.p, 3)
        (0.5, 0.103)
    """
    values = np.asarray(values, np.float64)
    return difference(values.mean(axis=1) if values.ndim == 2 else values, values, binary=binary)


def difference(per_seed: np.ndarray, pseudovalues: np.ndarray, *, binary: bool = False) -> Difference:
    """The difference of any metric, from its value under each seed and its jackknife pseudo-values over examples.

    Args:
        per_seed: ``float[n]``, the difference under each seed.
        pseudovalues: ``float[n, N]``; of a mean over examples, its differences themselves.
        binary: each example is right or wrong under each arm. Where the arms seldom differ, the variance that is seen
            is too small, and 0 where they never do; B is then that of two more examples on which they do, one each
            way (which hardly changes B where they differ on twenty).

    Raises:
        ValueError: shapes that do not match, fewer than 2 seeds or examples, or nan.

    References:
        Efron and Stein 1981, The jackknife estimate of variance; Agresti and Min 2005, Simple improved confidence
        intervals for comparing matched proportions (their pseudo-observations, which are one such example, are too few
        for a test of equivalence).
    """
    if pseudovalues.ndim != 2 or min(pseudovalues.shape) < 2:
        raise _checks.error("values", "have shape [seeds, examples] with at least 2 of each", pseudovalues.shape)
    if not (np.isfinite(pseudovalues).all() and np.isfinite(per_seed).all()):
        raise _checks.error("values", "be finite", "nan or inf")
    n, count = pseudovalues.shape
    seeds, examples, mean = pseudovalues.mean(axis=1), pseudovalues.mean(axis=0), pseudovalues.mean()
    within = (pseudovalues - seeds[:, None]).ravel()
    squares = float(within @ within) - n * float(np.square(examples - mean).sum())
    residual = max(0.0, squares) / ((n - 1) * (count - 1))
    of_seeds = float(per_seed.var(ddof=1))
    of_examples = float(examples.var(ddof=1)) + (_UNSEEN / count if binary else 0)
    a, b, c = of_seeds / n, of_examples / count, residual / (n * count)
    variance = max(a + b - c, a, b)
    return Difference(
        float(per_seed.mean()), variance, _dof(a, variance, n, count), n, count,
        max(0.0, of_seeds - residual / count), max(0.0, of_examples - residual / n), residual,
    )  # fmt: skip


def _dof(of_seeds: float, variance: float, seeds: int, examples: int) -> float:
    if variance == 0:
        return float(examples - 1)
    share = min(1.0, of_seeds / variance)
    if seeds == 2 and share:  # two seeds tell too little of their own variance to weigh it
        share = 1.0
    return 1 / (share / (seeds - 1) + (1 - share) / (examples - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, which in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[which]))
        adjusted[which] = largest
    return adjusted


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The level of each arm's interval, which excludes 0 just where Holm's procedure rejects.

    Once a step does not reject, no later one does: its level is theirs too.
    """
    levels, tests = [0.0] * len(p_values), len(p_values)
    for which in np.argsort(p_values, kind="stable"):
        levels[which] = 1 - ALPHA / tests
        tests -= p_values[which] < ALPHA / tests
    return levels


@dataclass(frozen=True)
class Verdict:
    """``helps``, ``hurts``, ``equivalent`` or ``inconclusive``, and the interval that decided so."""

    verdict: str
    low: float
    high: float
    level: float


def judge(differences: Sequence[Difference], margin: float, better: str) -> list[Verdict]:
    """The verdict on each arm's difference from the same baseline.

    ``equivalent`` if the 90 % interval lies inside (-margin, margin), even where p < .05 (two one-sided tests,
    Schuirmann 1987); else ``helps`` or ``hurts`` if Holm's adjusted p is below .05; else ``inconclusive``.

    Args:
        differences: one per arm.
        margin: differences smaller than this do not matter; at least 0.
        better: ``"higher"`` or ``"lower"``.
    """
    p_values = [each.p for each in differences]
    verdicts = []
    for each, p, level in zip(differences, holm(p_values), holm_levels(p_values), strict=True):
        low, high = each.interval(1 - 2 * ALPHA)
        if -margin < low and high < margin:
            verdicts.append(Verdict("equivalent", low, high, 1 - 2 * ALPHA))
            continue
        verdict = "inconclusive"
        if p < ALPHA:
            verdict = "helps" if (each.estimate > 0) == (better == "higher") else "hurts"
        verdicts.append(Verdict(verdict, *each.interval(level), level))
    return verdicts


def power(difference: Difference, seeds: int, margin: float, level: float) -> float:
    """The probability of a verdict that is not ``inconclusive`` with so many seeds, if the estimate is the truth.

    Args:
        difference: as measured.
        seeds: n to plan for, at least 2.
        margin: of equivalence.
        level: of the interval that decides about ``helps`` and ``hurts``.
    """
    variance, dof = difference.planned(seeds)
    if variance == 0:
        return 1.0
    scale, effect = math.sqrt(variance), abs(difference.estimate)
    # The variance will itself be an estimate, distributed about as chi-squared: averaged over its quantiles.
    seen = scale * np.sqrt(special.gammaincinv(dof / 2, _QUANTILES) * 2 / dof)
    bound = special.stdtrit(dof, (1 + level) / 2) * seen
    room = margin - special.stdtrit(dof, 1 - ALPHA) * seen
    same = np.where(room > 0, special.ndtr((room - effect) / scale) - special.ndtr((-room - effect) / scale), 0.0)
    # Where both could be said, equivalence goes before.
    beyond = np.maximum(bound, room)
    differs = special.ndtr((effect - beyond) / scale) + special.ndtr((-effect - beyond) / scale)
    return float((same + differs).mean())


def seeds_needed(difference: Difference, margin: float, level: float) -> int | None:
    """The smallest number of seeds, more than now, with which a verdict is likely (a power of 0.8).

    More seeds do not help against the uncertainty of the test examples themselves: None where no number would do.
    Beyond `MOST_SEEDS` it is not looked for, and the result is that.
    """
    enough: Callable[[int], bool] = lambda n: power(difference, n, margin, level) >= POWER  # noqa: E731
    if difference.variance == 0 or not enough(1_000_000_000):
        return None
    if not enough(MOST_SEEDS):
        return MOST_SEEDS
    low, high = difference.seeds + 1, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def permutation_p(per_seed: np.ndarray) -> float | None:
    """The sign-flip permutation test of the seeds' differences, on these test examples; None below 8 seeds.

    Exact up to 14 seeds; beyond, 20,000 seeded patterns of signs, the observed one counted in.
    """
    n = len(per_seed)
    if n < LEAST_FOR_PERMUTATION:
        return None
    if n <= _EXACT_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    else:
        signs = np.random.default_rng(0).integers(0, 2, (_FLIPS, n)) * 2.0 - 1.0
        signs[0] = 1.0
    sums = np.abs(signs @ per_seed)
    return float((sums >= abs(per_seed.sum()) * (1 - 1e-12)).mean())
