"""Selective prediction: what is gained by answering only where the score is high.

Examples of the same score are accepted together: nothing depends on their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.evaluation._ties import runs


def risk_coverage(score: Any, hits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and selective risk at each threshold of the score.

    Args:
        score: ``[N]``, higher is more confident.
        hits: bool ``[N]``, the prediction is right.

    Returns:
        Two float64 arrays, an entry per different score, from the highest threshold to the lowest: the share of the
        examples whose score reaches it, and the share of errors among these.

    Raises:
        ValueError: shapes that do not match, no example, a score that is nan.

    Example:
        >>> coverage, risk = risk_coverage([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
        >>> coverage.tolist(), risk.round(4).tolist()
        ([0.25, 0.75, 1.0], [0.0, 0.3333, 0.5])
    """
    accepted, errors = _accepted(score, hits)
    return accepted / accepted[-1], errors / accepted


def aurc(score: Any, hits: Any) -> float:
    """Area under the risk-coverage curve: mean over i = 1..N of the error rate of the i highest scores.

    Among examples of the same score the expectation over their orders is taken.

    Args:
        score: ``[N]``, higher is more confident.
        hits: bool ``[N]``.

    Returns:
        A number in 0..1; lower is better.

    Raises:
        ValueError: as `risk_coverage`.

    References:
        Geifman & El-Yaniv 2017, arXiv 1705.08500; Geifman et al. 2019, arXiv 1805.08206.

    Example:
        >>> aurc([0.9, 0.8], [True, False])
        0.25
    """
    return _aurc(*_accepted(score, hits))


def augrc(score: Any, hits: Any) -> float:
    """Area under the generalised risk-coverage curve: that of (errors among the accepted) / N over coverage.

    = (1 - AUROC) acc (1 - acc) + (1 - acc)² / 2: the risk of an undetected failure, averaged over thresholds.

    Args:
        score: ``[N]``, higher is more confident.
        hits: bool ``[N]``.

    Returns:
        A number in 0..1/2; lower is better.

    Raises:
        ValueError: as `risk_coverage`.

    References:
        Traub et al. 2024, arXiv 2407.01032.

    Example:
        >>> augrc([0.9, 0.8], [True, False])
        0.125
    """
    return _augrc(*_accepted(score, hits))


def coverage_at_risk(score: Any, hits: Any, risk: float = 0.05) -> float:
    """The largest coverage that a threshold reaches with a selective risk of at most `risk`; 0 if none does.

    Args:
        score: ``[N]``, higher is more confident.
        hits: bool ``[N]``.
        risk: the share of errors that is allowed, in 0..1.

    Raises:
        ValueError: as `risk_coverage`; a risk outside 0..1.

    Example:
        >>> coverage_at_risk([0.9, 0.8, 0.8, 0.1], [True, True, False, False], risk=0.4)
        0.75
    """
    rule = "be in 0..1"
    if not 0 <= _checks.number(risk, "risk", rule) <= 1:
        raise _checks.error("risk", rule, risk)
    return _coverage(*_accepted(score, hits), risk)


def summary(score: Any, hits: Any, risk: float = 0.05) -> tuple[float, float, float]:
    """`aurc`, `augrc` and `coverage_at_risk`, with one sorting."""
    accepted, errors = _accepted(score, hits)
    return _aurc(accepted, errors), _augrc(accepted, errors), _coverage(accepted, errors, risk)


def _accepted(score: Any, hits: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many examples each threshold accepts, and how many errors are among them; from the highest threshold on."""
    score, hits = np.asarray(score), np.asarray(hits)
    if score.ndim != 1 or len(score) == 0 or score.dtype.kind not in "fiu":
        raise _checks.error("score", "be real numbers of shape [N] with N above 0", f"{score.dtype} {score.shape}")
    if hits.dtype != bool or hits.shape != score.shape:
        raise _checks.error("hits", f"be bool of shape {score.shape}", f"{hits.dtype} {hits.shape}")
    order = np.argsort(score)[::-1]
    if np.isnan(score[order[0]]):  # sorting puts nan last
        raise _checks.error("score", "be numbers", f"nan at index {np.isnan(score).argmax()}")
    starts, sizes = runs(score[order])
    accepted = starts + sizes
    return accepted, accepted - np.cumsum(hits[order])[accepted - 1]


def _aurc(accepted: np.ndarray, errors: np.ndarray) -> float:
    first = np.arange(1, accepted[-1] + 1)
    # within a run of equal scores the expected errors grow linearly
    return float((np.interp(first, np.r_[0, accepted], np.r_[0, errors]) / first).mean())


def _augrc(accepted: np.ndarray, errors: np.ndarray) -> float:
    heights = errors + np.r_[0, errors[:-1]]
    return float((np.diff(accepted, prepend=0) * heights).sum() / (2 * accepted[-1] ** 2))


def _coverage(accepted: np.ndarray, errors: np.ndarray, risk: float) -> float:
    reached = accepted[errors / accepted <= risk]
    return float(reached[-1] / accepted[-1]) if len(reached) else 0.0
