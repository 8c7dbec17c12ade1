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

    Among equal scores errors grow linearly, as in the metric; without an example, among those that are left. What
    stands before an example's group keeps its risk, its group loses a place and perhaps an error, and all that follow
    move up by a place.

    Args:
        score: float ``[N]``, higher is more confident.
        hits: bool ``[N]``.

    Returns:
        float64 ``[N]``, in the order given.
    """
    n, wrong = len(score), (~hits).astype(np.float64)
    _, group, size = np.unique(-score, return_inverse=True, return_counts=True)
    errors, ends = np.bincount(group, wrong), np.cumsum(size)
    starts, before = ends - size, np.cumsum(errors) - errors
    place, of_place = np.arange(1, n + 1), np.repeat(np.arange(len(size)), size)
    risk = (before[of_place] + (errors / size)[of_place] * (place - starts[of_place])) / place
    up = np.where(place > 1, 1 / np.maximum(place - 1, 1), 0.0)  # of those that move to the place before
    sums = [np.concatenate([[0.0], np.cumsum(terms)]) for terms in (risk, 1 / place, risk * place * up, up)]
    risks, harmonic, moved, ups = sums

    first, last, members = starts[group], ends[group], size[group]
    inside = (harmonic[ends - 1] - harmonic[starts])[group]  # over the places that the group has left
    rate = np.where(members > 1, (errors[group] - wrong) / np.maximum(members - 1, 1), 0.0)
    own = before[group] * inside + rate * (members - 1 - first * inside)
    after = moved[-1] - moved[last] - wrong * (ups[-1] - ups[last])
    return risk.sum() - (risks[first] + own + after)
