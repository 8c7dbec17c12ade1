"""Jackknife pseudo-values of metrics that are no mean over examples: N·θ - (N-1)·θ without example i."""

from __future__ import annotations

import numpy as np

from labelsmooth.evaluation.calibration import bin_edges, bin_of


def ece_pseudovalues(confidence: np.ndarray, hits: np.ndarray, bins: int) -> np.ndarray:
    """Of the expected calibration error with `bins` equal-width bins (lo, hi].

    θ = Σ_b |G_b| / N with G_b the bin's sum of confidence minus hit, so they are |G_b| - |G_b - g_i|.

    Args:
        confidence: float ``[N]`` in [0, 1].
        hits: bool ``[N]``.
        bins: how many.

    Returns:
        float64 ``[N]``.
    """
    gaps = confidence - hits
    places = bin_of(confidence, bin_edges(bins))
    sums = np.bincount(places, gaps, bins)[places]
    return np.abs(sums) - np.abs(sums - gaps)


def aurc_pseudovalues(score: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Of the area under the risk-coverage curve, θ = Σ_j E_j/j / N with E_j the errors among the j most confident.

    Among equal scores errors are counted as their mean, as in the metric.

    Args:
        score: float ``[N]``, higher is more confident.
        hits: bool ``[N]``.

    Returns:
        float64 ``[N]``, in the order given.
    """
    n = len(score)
    _, group = np.unique(-score, return_inverse=True)
    errors = (np.bincount(group, ~hits) / np.bincount(group))[group]
    order = np.argsort(group, kind="stable")
    e, place = errors[order], np.arange(1, n + 1)
    cumulated = np.cumsum(e)
    before = np.cumsum(cumulated / place) - cumulated / place
    with np.errstate(divide="ignore"):
        inverse = np.where(place > 1, 1 / (place - 1.0), 0.0)  # the first has nobody before it
    after = _following(cumulated * inverse) - e * _following(inverse)
    values = np.empty(n)
    values[order] = (cumulated / place).sum() - (before + after)
    return values


def _following(values: np.ndarray) -> np.ndarray:
    """The sum of all that follow each."""
    return np.cumsum(values[::-1])[::-1] - values
