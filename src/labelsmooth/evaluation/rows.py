"""One pass over the logits: all that is said of a single example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.evaluation import _blocks
from labelsmooth.evaluation._sums import row_sums
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
    edges = bin_edges(bins).astype(dtype)
    predicted, top5 = np.empty(n, np.int64), np.empty(n, bool)
    margin, normalised = np.empty(n), np.empty(n)
    nll, brier, confidence, p_label = np.empty((4, len(temperatures), n))

    def work(blocks: Iterator[slice], size: int) -> np.ndarray:
        sums, buffers = np.zeros((len(temperatures), 3, count * bins)), np.empty((2, size, count), dtype)
        for at in blocks:
            seen = row_sums(logits[at], labels[at], at.start, temperatures, edges, sums, buffers)
            predicted[at], top5[at] = seen.predicted, seen.top5
            z_y, other, total, square = seen.whole
            margin[at] = z_y - other
            normalised[at] = _normalised(logits[at], total, square)
            for t, temperature in enumerate(temperatures):
                others, square, e_y, p_label[t, at] = seen.scaled[t]
                total = others + e_y
                nll[t, at] = np.log1p(others - (1 - e_y)) - z_y / np.float64(temperature)
                brier[t, at] = (square + others**2) / total**2
                confidence[t, at] = 1 / total
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


def _normalised(block: np.ndarray, total: np.ndarray, square: np.ndarray) -> np.ndarray:
    """The largest entry of centred z over its 2-norm, from Σz and Σz²; the largest of z is 0."""
    count = np.full(len(block), block.shape[1])
    wide = ~np.isfinite(square)  # -inf, and float32 logits below -1e19
    if wide.any():
        z = np.empty((int(wide.sum()), block.shape[1]), _blocks.precision(block.dtype))
        _blocks.shifted(block[wide], 0, z)
        finite = np.isfinite(z)
        kept = np.where(finite, z, 0).astype(np.float64)
        kept /= np.maximum(-kept.min(axis=1), 1)[:, None]  # no scale changes the result, and no square overflows
        total, square = total.copy(), square.copy()
        total[wide], square[wide], count[wide] = kept.sum(axis=1), (kept**2).sum(axis=1), finite.sum(axis=1)
    norm = np.sqrt(np.maximum(square - total**2 / count, 0))
    return np.divide(-total / count, norm, out=np.zeros(len(block)), where=norm > 0)
