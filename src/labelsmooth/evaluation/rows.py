"""One pass over the logits: all that is said of a single example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.evaluation import _blocks
from labelsmooth.evaluation.calibration import Cells, bin_count, bin_edges, bin_of


@dataclass(frozen=True)
class Rows:
    """One entry per example; p = softmax(logits / temperature).

    Attributes:
        predicted: int64 ``[N]``, the class of the largest logit, of equal ones the first.
        hits: bool ``[N]``, the predicted class is the label.
        top5: bool ``[N]``, fewer than five classes come before the label; of equal logits the first comes first.
        nll: float64 ``[N]``, -log p of the label.
        brier: float64 ``[N]``, the squared distance of p from the one-hot label, 0..2.
        confidence: float64 ``[N]``, the largest p.
        margin: float64 ``[N]``, the label's logit less the largest other, over the temperature.
        normalised: float64 ``[N]``, the largest entry of (z - mean z) / |z - mean z| over the logits z above -inf;
            0 where they are all equal. The temperature does not change it.
        classwise: the cells ``[K, bins]`` of the classwise ECE.

    References:
        Cattelan & Silva 2023, arXiv 2305.15508; Xia et al. 2024, arXiv 2403.14715 (logit normalisation).
    """

    predicted: np.ndarray
    hits: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    normalised: np.ndarray
    classwise: Cells


def rows(logits: Any, labels: Any, *, temperature: float = 1.0, bins: int = 15) -> Rows:
    """What a classifier does on each example, from one pass over its logits.

    It goes in blocks that fit the cache, on a thread per core; exponentials are float32 for float32 and float16
    logits, else float64. The same logits give the same digits, however many cores there are.

    Args:
        logits: real array ``[N, K]``, perhaps memory-mapped; -inf is a probability of 0.
        labels: class ids ``[N]`` in ``0..K-1``.
        temperature: what the logits are divided by, positive.
        bins: of the classwise ECE, at most 1000.

    Returns:
        `Rows`.

    Raises:
        ValueError: shapes that do not match, no example, nan or +inf in the logits, a row of nothing but -inf, labels
            out of range, a temperature that is not positive, bins out of range.

    Example:
        >>> one = rows([[2.0, 0.0, 0.0]], [1])
        >>> one.predicted.tolist(), one.margin.tolist(), one.nll.round(4).tolist(), one.brier.round(4).tolist()
        ([0], [-2.0], [2.2395], [1.429])
    """
    value = _checks.number(temperature, "temperature", "be a positive number")
    if not 0 < value < np.inf:
        raise _checks.error("temperature", "be a positive number", temperature)
    return rows_at(*_blocks.checked(logits, labels), (value,), bins)[0]


def rows_at(logits: np.ndarray, labels: np.ndarray, temperatures: Sequence[float], bins: int) -> list[Rows]:
    """`rows` at some temperatures, from one pass; the arrays are as `_blocks.checked` returns them."""
    n, count = logits.shape
    dtype, bins = _blocks.precision(logits.dtype), bin_count(bins)
    edges, ones = bin_edges(bins).astype(dtype), np.ones((1, count), dtype)
    predicted, top5 = np.empty(n, np.int64), np.ones(n, bool)
    margin, normalised = np.empty(n), np.empty(n)
    nll, brier, confidence, p_label = np.empty((4, len(temperatures), n))

    def work(blocks: Iterator[slice], size: int) -> np.ndarray:
        sums = np.zeros((len(temperatures), 3, count * bins))
        shifted, scaled = np.empty((2, size, count), dtype)
        for at in blocks:
            block, y, each = logits[at], labels[at], np.arange(at.stop - at.start)
            z, predicted[at] = _blocks.shifted(block, at.start, shifted)
            normalised[at] = _normalised(z, ones)
            if count > 5:
                top5[at] = _in_top(5, block, y, predicted[at])
            z_y = z[each, y]
            z[each, y] = -np.inf
            margin[at] = np.subtract(z_y, z.max(axis=1), dtype=np.float64)
            z[each, y] = z_y
            e = scaled[: len(y)]
            for t, temperature in enumerate(temperatures):
                np.multiply(z, 1 / temperature, out=e)
                if dtype == np.float64:  # float32's exp is not slow where it underflows
                    _blocks.at_least(e, _blocks.LEAST)
                np.exp(e, out=e)
                e_y = e[each, y].astype(np.float64)
                e[each, y] = 0  # sums over the other classes keep their digits where the label's p is nearly 1
                others = _blocks.dot(e, ones)
                total = others + e_y
                nll[t, at] = np.log1p(others - (1 - e_y)) - z_y / np.float64(temperature)
                brier[t, at] = (_blocks.dot(e, e) + others**2) / total**2
                confidence[t, at] = 1 / total
                e[each, y] = e_y
                e *= (1 / total).astype(dtype)[:, None]
                p_label[t, at] = e[each, y]
                _add_to_cells(sums[t], e, edges)
        return sums

    sums = np.zeros((len(temperatures), 3, count * bins))
    for part in _blocks.over_blocks((n, count), work, 3 * count * bins):
        sums += part
    results = []
    for t, temperature in enumerate(temperatures):
        counts, mass, variance = sums[t].reshape(3, count, bins)
        counts[:, 0] = n - counts[:, 1:].sum(axis=1)
        cell = labels * bins + bin_of(p_label[t].astype(dtype), edges)
        of_class = np.bincount(cell, minlength=count * bins).reshape(count, bins)
        classwise = Cells(counts.astype(np.int64), mass, of_class.astype(np.float64), variance)
        with np.errstate(over="ignore"):
            own = (nll[t], brier[t], confidence[t], margin / temperature)
        results.append(Rows(predicted, predicted == labels, top5, *own, normalised, classwise))
    return results


def _normalised(z: np.ndarray, ones: np.ndarray) -> np.ndarray:
    """The largest entry of centred z over its 2-norm; the largest of z is 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # -inf, and float32 logits below -1e19
        total, square, count = _blocks.dot(z, ones), _blocks.dot(z, z), np.full(len(z), z.shape[1])
    wide = ~np.isfinite(square)
    if wide.any():
        finite = np.isfinite(z[wide])
        kept = np.where(finite, z[wide], 0).astype(np.float64)
        total[wide], square[wide], count[wide] = kept.sum(axis=1), (kept**2).sum(axis=1), finite.sum(axis=1)
    norm = np.sqrt(np.maximum(square - total**2 / count, 0))
    return np.divide(-total / count, norm, out=np.zeros(len(z)), where=norm > 0)


def _in_top(k: int, block: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """bool ``[n]``: fewer than k classes come before the label."""
    result = predicted == labels
    missed = np.flatnonzero(~result)
    z, y = block[missed], labels[missed]
    own = z[np.arange(len(z)), y][:, None]
    before = (z > own).sum(axis=1, dtype=np.int32)
    near = before < k
    before[near] += ((z[near] == own[near]) & (np.arange(z.shape[1]) < y[near, None])).sum(axis=1, dtype=np.int32)
    result[missed] = before < k
    return result


def _add_to_cells(sums: np.ndarray, p: np.ndarray, edges: np.ndarray) -> None:
    """Add to `sums` ``[3, K * bins]`` how many p each cell holds (but for the lowest bin), Σp and Σp(1-p).

    Few p lie above the lowest bin, fewer than bins in each row: they are looked up, and set to 0 in `p`.
    """
    bins, flat = len(edges) - 1, p.ravel()
    above = np.flatnonzero(p > edges[1])
    cell = above % p.shape[1] * bins + bin_of(flat[above], edges)
    value = flat[above].astype(np.float64)
    np.add.at(sums[0], cell, 1.0)
    np.add.at(sums[1], cell, value)
    np.add.at(sums[2], cell, value * (1 - value))
    flat[above] = 0
    lowest = p.sum(axis=0)
    sums[1, ::bins] += lowest
    sums[2, ::bins] += lowest - np.einsum("ij,ij->j", p, p)
