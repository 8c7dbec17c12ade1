"""Calibration: how far confidence is from accuracy, and how far it would be by chance alone.

Bins are equal-width (lo, hi]: a confidence of exactly 1 is in the last one, and 0 is in the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from labelsmooth import _checks
from labelsmooth.evaluation._ties import runs

MOST_BINS = 1000
_CELLS = 1 << 16


@dataclass(frozen=True)
class Cells:
    """Sums over the examples in each bin; with more than one axis, the bins of each class.

    Attributes:
        counts: int64 ``[..., bins]``, how many examples.
        confidence: float64 ``[..., bins]``, Σ c.
        hits: float64 ``[..., bins]``, how many of them are right.
        variance: float64 ``[..., bins]``, the variance of `hits` where each is right with probability c: Σ c(1-c).
    """

    counts: np.ndarray
    confidence: np.ndarray
    hits: np.ndarray
    variance: np.ndarray

    def ece(self) -> float:
        """Σ_bins |hits - Σ c| / N; the mean over classes, if there are any."""
        return self._mean(np.abs(self.hits - self.confidence))

    def expected_ece(self) -> float:
        """The expectation of `ece` where each example is right with probability c."""
        deviation, flat = np.empty(self.counts.size), [a.ravel() for a in (self.counts, self.confidence, self.variance)]
        for at in range(0, len(deviation), _CELLS):  # what is held for a cell is several times its own size
            deviation[at : at + _CELLS] = _mean_deviation(*(a[at : at + _CELLS] for a in flat))
        return self._mean(deviation.reshape(self.counts.shape))

    def mce(self) -> float:
        """The largest |hits - Σ c| / count of the cells that hold an example."""
        held = self.counts > 0
        return float((np.abs(self.hits - self.confidence)[held] / self.counts[held]).max())

    def _mean(self, gaps: np.ndarray) -> float:
        return float((gaps.sum(axis=-1) / self.counts.sum(axis=-1)).mean())


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: what a bin claims, and what it holds.

    Attributes:
        edges: float64 ``[bins + 1]``; bin b is (edges[b], edges[b + 1]].
        counts: int64 ``[bins]``.
        confidence: float64 ``[bins]``, the mean confidence; nan in an empty bin.
        accuracy: float64 ``[bins]``; nan in an empty bin.
        variance: float64 ``[bins]``, Σ c(1-c).
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    variance: np.ndarray


def bin_count(bins: Any) -> int:
    """`bins` as an int.

    Raises:
        ValueError: it is no whole number in 1..1000.
    """
    count = _checks.class_count(bins, "bins")
    if count > MOST_BINS:
        raise _checks.error("bins", f"be at most {MOST_BINS}", bins)
    return count


def bin_edges(bins: int) -> np.ndarray:
    """The ``bins + 1`` edges of equal-width bins, each the nearest float64 to b / bins."""
    count = bin_count(bins)
    return np.arange(count + 1) / count


def bin_of(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin (lo, hi] of each confidence; 0 is in the first."""
    return np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)


def equal_width(confidence: Any, hits: Any, bins: int = 15) -> Cells:
    """The cells of equal-width bins.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        `Cells` of shape ``[bins]``.

    Raises:
        ValueError: shapes that do not match, no example, a confidence outside 0..1, bins outside 1..1000.
    """
    confidence, hits = _examples(confidence, hits)
    edges = bin_edges(bins)
    own, bins = bin_of(confidence, edges), len(edges) - 1
    sums = (np.bincount(own, values, bins) for values in (confidence, hits, confidence * (1 - confidence)))
    return Cells(np.bincount(own, minlength=bins), *sums)


def equal_mass(confidence: Any, hits: Any, bins: int = 15) -> Cells:
    """The cells of bins that hold equally many examples, to within one; a bin is empty where N < bins.

    Examples of the same confidence may fall into two bins: each of them counts as their mean hit, so that their order
    never matters.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        `Cells` of shape ``[bins]``.

    Raises:
        ValueError: as `equal_width`.
    """
    confidence, hits = _examples(confidence, hits)
    n, bins = len(hits), len(bin_edges(bins)) - 1
    order = np.argsort(confidence)
    ordered = confidence[order]
    starts, sizes = runs(ordered)
    ends = starts + sizes
    cuts = np.arange(bins + 1) * n // bins
    low, high, counts = cuts[:-1], cuts[1:], np.diff(cuts)
    hits_below = np.interp(cuts, np.r_[0, ends], np.r_[0, np.cumsum(hits[order])[ends - 1]])
    variance = _between(ordered * (1 - ordered), cuts)
    # g ties of which w are in a bin add w/g of a binomial there, so w²/g of the variance of one, not w
    first, last = np.searchsorted(ends, low, side="right"), np.searchsorted(ends, high - 1, side="right")
    for run, cut in ((first, counts > 0), (last, (counts > 0) & (first != last))):
        g = run[cut]
        w = np.minimum(high[cut], ends[g]) - np.maximum(low[cut], starts[g])
        variance[cut] -= w * (1 - w / sizes[g]) * ordered[starts[g]] * (1 - ordered[starts[g]])
    return Cells(counts, _between(ordered, cuts), np.diff(hits_below), variance)


def reliability(confidence: Any, hits: Any, bins: int = 15) -> Reliability:
    """The reliability diagram of equal-width bins.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        `Reliability`.

    Raises:
        ValueError: as `equal_width`.

    Example:
        >>> diagram = reliability([0.5, 0.6, 1.0], [True, False, True], bins=2)
        >>> diagram.counts.tolist(), diagram.accuracy.tolist(), diagram.confidence.tolist()
        ([1, 2], [1.0, 0.5], [0.5, 0.8])
    """
    return diagram(equal_width(confidence, hits, bins))


def diagram(cells: Cells) -> Reliability:
    """The reliability diagram of the cells of `equal_width`."""
    held = np.maximum(cells.counts, 1)
    confidence, accuracy = (np.where(cells.counts > 0, sums / held, np.nan) for sums in (cells.confidence, cells.hits))
    return Reliability(bin_edges(len(held)), cells.counts, confidence, accuracy, cells.variance)


def ece(confidence: Any, hits: Any, bins: int = 15) -> float:
    """Expected calibration error: Σ_b n_b/N |accuracy_b - confidence_b| over equal-width bins.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        A number in 0..1. It is biased upwards; `expected_ece` says by how much where the calibration is perfect.

    Raises:
        ValueError: as `equal_width`.

    References:
        Guo et al. 2017, arXiv 1706.04599.

    Example:
        >>> round(ece([0.5, 0.6, 1.0], [True, False, True], bins=2), 4)
        0.3667
    """
    return equal_width(confidence, hits, bins).ece()


def adaptive_ece(confidence: Any, hits: Any, bins: int = 15) -> float:
    """The ECE over bins of equal mass; examples of the same confidence count as their mean hit.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        A number in 0..1.

    Raises:
        ValueError: as `equal_width`.

    References:
        Nixon et al. 2019, arXiv 1904.01685.
    """
    return equal_mass(confidence, hits, bins).ece()


def classwise_ece(cells: Cells) -> float:
    """The mean over classes k of the ECE of p_k as a forecast of the label being k.

    Args:
        cells: of shape ``[K, bins]``, as in `Rows.classwise`.

    References:
        Kull et al. 2019, arXiv 1910.12656.
    """
    return cells.ece()


def expected_ece(confidence: Any, bins: int = 15) -> float:
    """The expectation of `ece` under perfect calibration: the same confidences, the hits drawn with them.

    In each bin the number S of hits (or of misses, whichever it fits better) is taken as a binomial with the mean that
    it has and, but for n being whole, its variance Σc(1-c). Then E|S - np| is De Moivre's 2 ν (1-p) P(S = ν),
    ν = ⌊np⌋ + 1.

    Args:
        confidence: ``[N]``, in 0..1.
        bins: how many.

    Raises:
        ValueError: as `equal_width`.

    References:
        Diaconis & Zabell 1991, Closed form summation for classical distributions (De Moivre's formula);
        Widmann et al. 2019, arXiv 1910.11385 (the bias of the ECE).

    Example:
        >>> round(expected_ece([0.8, 0.8]), 4)  # the mean of |S - 1.6| / 2, S binomial of 2 and 0.8
        0.256
    """
    return equal_width(confidence, np.zeros(np.shape(confidence), bool), bins).expected_ece()


def expected_adaptive_ece(confidence: Any, bins: int = 15) -> float:
    """The expectation of `adaptive_ece` under perfect calibration; see `expected_ece`."""
    return equal_mass(confidence, np.zeros(np.shape(confidence), bool), bins).expected_ece()


def expected_classwise_ece(cells: Cells) -> float:
    """The expectation of `classwise_ece` where the labels are drawn from p; see `expected_ece`."""
    return cells.expected_ece()


def mce(confidence: Any, hits: Any, bins: int = 15) -> float:
    """Maximum calibration error: the largest |accuracy_b - confidence_b| of the bins that hold an example.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.
        bins: how many, of equal width.

    Returns:
        A number in 0..1.

    Raises:
        ValueError: as `equal_width`.
    """
    return equal_width(confidence, hits, bins).mce()


def gap(confidence: Any, hits: Any) -> float:
    """Mean confidence less accuracy: above 0 where the classifier is overconfident.

    Args:
        confidence: ``[N]``, in 0..1.
        hits: bool ``[N]``.

    Returns:
        A number in -1..1.

    Raises:
        ValueError: as `equal_width`.
    """
    confidence, hits = _examples(confidence, hits)
    return float(confidence.mean() - hits.mean())


def _examples(confidence: Any, hits: Any) -> tuple[np.ndarray, np.ndarray]:
    confidence, hits = np.asarray(confidence, np.float64), np.asarray(hits)
    if confidence.ndim != 1 or len(confidence) == 0:
        raise _checks.error("confidence", "be numbers of shape [N] with N above 0", f"shape {confidence.shape}")
    if hits.dtype != bool or hits.shape != confidence.shape:
        raise _checks.error("hits", f"be bool of shape {confidence.shape}", f"{hits.dtype} {hits.shape}")
    wrong = ~((confidence >= 0) & (confidence <= 1))
    if wrong.any():
        at = int(wrong.argmax())
        raise _checks.error("confidence", "be in 0..1", f"{confidence[at]} at index {at}")
    return confidence, hits


def _between(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The sums of `values` from each cut to the next."""
    return np.diff(np.r_[0, np.cumsum(values)][cuts])


def _mean_deviation(counts: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E|S - mean| of the number S of hits, which or whose complement is taken as a binomial."""
    hits, misses = _binomial(counts, mean, variance), _binomial(counts, counts - mean, variance)
    off, other = (np.abs(n * p * (1 - p) - variance) for n, p in (hits, misses))
    n, p = np.where(other < off, misses, hits)
    v = np.minimum(np.floor(n * p) + 1, n)  # at np = n: p is 1, and so the result 0
    log_pmf = gammaln(n + 1) - gammaln(v + 1) - gammaln(n - v + 1) + xlogy(v, p) + xlog1py(n - v, -p)
    return 2 * v * (1 - p) * np.exp(log_pmf)


def _binomial(counts: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n and p of the binomial with this mean and, but for n being whole, this variance; p = 0 where the mean is 0."""
    possible = mean > np.finfo(float).tiny
    m = np.where(possible, mean, 1.0)
    # Cauchy-Schwarz: m² / counts <= Σc² = m - variance, so that n is at most counts
    p = np.clip(1 - variance / m, m / np.maximum(counts, 1), 1)
    n = np.clip(np.rint(m / p), np.ceil(m), np.maximum(counts, 1))
    return n, np.where(possible, np.minimum(m / n, 1), 0.0)
