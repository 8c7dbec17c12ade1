"""Temperature scaling: the one number that the logits are divided by, fitted on validation logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from labelsmooth.evaluation import _blocks
from labelsmooth.evaluation._sums import slopes

LEAST_TEMPERATURE = 0.01  # T is looked for from here up to its inverse
_FARTHEST = -math.log(LEAST_TEMPERATURE)
_WARM = 20_000  # rows that are enough to start from
_CLOSE = 1e-4  # Newton's error after a step is about the step's square


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature T > 0 that minimises the NLL: mean over rows of lse(z / T) - z_y / T.

    The NLL is convex in 1/T. Newton's method on log T, kept inside a bracket, starts on at most 20,000 rows and ends
    with passes over all of them. The error in log T is about 1e-8, for float32 and float16 logits 1e-7.

    Args:
        logits: real array ``[N, K]``, perhaps memory-mapped; of examples that the classifier was not trained on. -inf
            is a probability of 0; a row whose label has it is infinite at every T, and is left out.
        labels: class ids ``[N]`` in ``0..K-1``.

    Returns:
        T in 1/100..100: above 1 where the classifier is overconfident. An end of the range where the NLL falls up to
        it, as it does for small T if every prediction is right; 1 where T changes nothing.

    Raises:
        ValueError: shapes that do not match, no example, nan or +inf in the logits, a row of nothing but -inf, labels
            out of range.

    References:
        Guo et al. 2017, arXiv 1706.04599.

    Example:
        >>> logits = [[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]
        >>> round(fit_temperature(logits, [0, 0, 0, 1]), 6)  # softmax(3 / T) = 3/4, so T = 3 / log 3
        2.730718
    """
    return fit_checked(*_blocks.checked(logits, labels))


def fit_checked(logits: np.ndarray, labels: np.ndarray, name: str = "") -> float:
    """`fit_temperature` of arrays as `_blocks.checked` returns them."""
    stride = -(-len(labels) // _WARM)
    sample = logits[::stride], labels[::stride]
    at_lowest, at_highest = (_derivatives(*sample, -end, name, stride)[0] for end in (-_FARTHEST, _FARTHEST))
    if at_lowest <= 0 <= at_highest:
        start = 0.0
    elif at_lowest <= 0:
        start = -_FARTHEST
    elif at_highest >= 0:
        start = _FARTHEST
    else:
        start = _newton(*sample, 0.0, name)
    return math.exp(start if stride == 1 else _newton(logits, labels, start, name))


def _newton(logits: np.ndarray, labels: np.ndarray, at: float, name: str) -> float:
    """log T where the NLL is least, looked for from `at` on; bisection where Newton's steps do not shrink by half."""
    low, high, last = -_FARTHEST, _FARTHEST, math.inf
    while True:
        slope, curvature = _derivatives(logits, labels, -at, name)
        low, high = (low, at) if slope < 0 else (at, high)
        step = slope / curvature * math.exp(at) if curvature > 0 else slope * math.inf if slope else 0.0
        to = min(max(at + step, -_FARTHEST), _FARTHEST)
        if not low <= to <= high or abs(to - at) > last / 2:
            to = (low + high) / 2
        last = abs(to - at)
        if last < _CLOSE:
            return to
        at = to


def _derivatives(
    logits: np.ndarray, labels: np.ndarray, log_beta: float, name: str, stride: int = 1
) -> tuple[float, float]:
    """The first and the second derivative of the summed NLL in β = 1/T: Σ (E_p z - z_y) and Σ Var_p z.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``.
        log_beta: log β.
        name: what the logits are called in messages.
        stride: which of the rows that are numbered there these are.
    """
    beta, dtype = math.exp(log_beta), _blocks.precision(logits.dtype)

    def work(blocks: Iterator[slice], size: int) -> np.ndarray:
        sums, buffers = np.zeros(2), np.empty((2, size, logits.shape[1]), dtype)
        for at in blocks:
            sums += slopes(logits[at], labels[at], at.start * stride, beta, name, stride, buffers)
        return sums

    slope, curvature = np.sum(list(_blocks.over_blocks(logits.shape, work)), axis=0)
    return float(slope), float(curvature)
