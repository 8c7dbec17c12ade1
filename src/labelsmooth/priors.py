"""Priors: distributions u over the classes, towards which labels are smoothed. Any array that sums to 1 is one."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth.labels import parse


def uniform(num_classes: int) -> np.ndarray:
    """The uniform prior: u_k = 1/K.

    Args:
        num_classes: K, at least 1.

    Returns:
        float64 array of shape ``[K]``.

    Raises:
        ValueError: `num_classes` is no positive whole number.

    References:
        Szegedy et al. 2016, arXiv 1512.00567, section 7.

    Example:
        >>> import labelsmooth as ls
        >>> ls.priors.uniform(4)
        array([0.25, 0.25, 0.25, 0.25])
    """
    count = _checks.class_count(num_classes)
    return np.full(count, 1.0 / count)


def class_frequency(labels: Any, num_classes: int | None = None, *, pseudo_count: float = 0.0) -> np.ndarray:
    """The frequency of each class: u_k = (n_k + a) / (N + K a), with a = `pseudo_count`.

    Args:
        labels: class ids ``[...]`` (with `num_classes`), one-hot rows or soft targets ``[..., K]``; any framework's.
        num_classes: K; makes integers class ids.
        pseudo_count: a >= 0, added to the count of every class, so that an absent one keeps some mass.

    Returns:
        float64 array of shape ``[K]``.

    Raises:
        ValueError: labels out of range, no labels at all, or a negative `pseudo_count`.

    References:
        Szegedy et al. 2016, arXiv 1512.00567, section 7 ("u(k), the prior distribution over labels").

    Example:
        >>> import labelsmooth as ls
        >>> ls.priors.class_frequency([0, 0, 0, 1], 2)
        array([0.75, 0.25])
    """
    rows = parse(labels, num_classes)
    extra = _checks.number(pseudo_count, "pseudo_count", "be a number of at least 0")
    if not 0.0 <= extra < np.inf:
        raise _checks.error("pseudo_count", "be a number of at least 0", pseudo_count)
    if rows.ids is not None:
        counts = np.bincount(rows.ids.reshape(-1).astype(np.intp), minlength=rows.count).astype(np.float64)
    else:
        assert rows.soft is not None
        counts = rows.soft.reshape(-1, rows.count).sum(axis=0, dtype=np.float64)
    counts += extra
    if not counts.sum() > 0:
        raise _checks.error("labels", "hold at least one label (or give a pseudo_count)", "none")
    return counts / counts.sum()
