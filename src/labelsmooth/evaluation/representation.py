"""The penultimate layer: how far apart the classes lie, and what three of them look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.evaluation._ties import runs

_BLOCK = 1 << 20  # entries of the features that are looked at together


def class_separation(features: Any, labels: Any) -> float:
    """R² = 1 - (mean cosine distance within a class) / (mean cosine distance of all), classes weighted equally.

    With μ_k the mean of the unit features of class k it is 1 - (1 - mean_k |μ_k|²) / (1 - |mean_k μ_k|²).

    Args:
        features: real array ``[N, D]``, perhaps memory-mapped. A feature of zeros has similarity 0 to every other.
        labels: class ids ``[N]``.

    Returns:
        A number up to 1, the classes collapsed to points; nan where all features point the same way.

    Raises:
        ValueError: shapes that do not match, no example, features that are not finite.

    References:
        Kornblith et al. 2021, Why do better loss functions lead to less transferable features?, arXiv 2010.16402.

    Example:
        >>> class_separation([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], [0, 0, 1])
        1.0
    """
    features, labels = _checked(features, labels)
    classes, own = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    size = max(1, _BLOCK // features.shape[1])
    for start in range(0, len(labels), size):
        x = features[start : start + size].astype(np.float64)
        squared = np.einsum("ij,ij->i", x, x)
        if not np.isfinite(squared).all():
            raise _checks.error("features", "be finite", f"not so in row {start + int(np.isfinite(squared).argmin())}")
        x /= np.sqrt(np.where(squared > 0, squared, 1))[:, None]
        order = np.argsort(own[start : start + size], kind="stable")
        ordered = own[start : start + size][order]
        starts, _ = runs(ordered)
        sums[ordered[starts]] += np.add.reduceat(x[order], starts)
    means = sums / np.bincount(own)[:, None]
    within, total = 1 - (means**2).sum(axis=1).mean(), 1 - (means.mean(axis=0) ** 2).sum()
    return float(1 - within / total) if total > 1e-12 else float("nan")


def project(
    features: Any, labels: Any, templates: Any, classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples of three classes on the plane through the classes' templates.

    The coordinates are Euclidean; the origin is the middle of the three templates, the first axis points from the first
    template to the second, and the third is above it.

    Args:
        features: real array ``[N, D]``, the penultimate layer.
        labels: class ids ``[N]``.
        templates: ``[K, D]``, the last layer's row of each class; None takes the classes' mean features.
        classes: three different class ids.

    Returns:
        The points float64 ``[n, 2]`` of the n examples of the three classes, their labels int64 ``[n]``, and the
        templates' points float64 ``[3, 2]``.

    Raises:
        ValueError: shapes that do not match, classes that are not three different ids, a class without an example where
            there are no templates, templates that lie on a line.

    References:
        Müller et al. 2019, When does label smoothing help?, arXiv 1906.02629, section 2 and figure 1.
    """
    features, labels = _checked(features, labels)
    chosen = np.asarray(classes)
    if chosen.shape != (3,) or chosen.dtype.kind not in "iu" or len(set(chosen.tolist())) < 3:
        raise _checks.error("classes", "be three different class ids", classes)
    kept = np.flatnonzero(np.isin(labels, chosen))
    x, own = features[kept].astype(np.float64), labels[kept]
    if templates is None:
        absent = set(chosen.tolist()) - set(own.tolist())
        if absent:
            raise _checks.error(
                "classes", "have an example each where there are no templates", f"none of class {min(absent)}"
            )
        corners = np.stack([x[own == k].mean(axis=0) for k in chosen])
    else:
        rows = np.asarray(templates, np.float64)
        if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
            raise _checks.error("templates", f"have shape [K, {features.shape[1]}]", f"shape {rows.shape}")
        _checks.label_range(chosen, len(rows), "classes")
        corners = rows[chosen]
    middle = corners.mean(axis=0)
    first, second = corners[1] - corners[0], corners[2] - corners[0]
    first = first / max(np.linalg.norm(first), np.finfo(float).tiny)
    away = second - (second @ first) * first
    if np.linalg.norm(away) <= 1e-9 * np.linalg.norm(corners - middle):
        raise _checks.error("templates", "span a plane", f"those of the classes {classes}, which lie on a line")
    axes = np.stack([first, away / np.linalg.norm(away)], axis=1)
    return (x - middle) @ axes, own.astype(np.int64), (corners - middle) @ axes


def _checked(features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        rule = "be real numbers of shape [N, D] with N and D above 0"
        raise _checks.error("features", rule, f"{features.dtype} {features.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _checks.error("labels", "be class ids of shape [N]", f"{labels.dtype} {labels.shape}")
    if len(features) != len(labels):
        raise _checks.error("features", f"have {len(labels)} rows, one per label", len(features))
    return features, labels
