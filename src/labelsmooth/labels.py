"""Labels: class ids, one-hot rows and soft targets, told apart and checked; and their stochastic smoothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelsmooth import _arrays, _checks, _prior


def parse(labels: Any, num_classes: Any = None) -> _prior.Rows:
    """Tell class ids from targets by dtype and by `num_classes`, never by the values.

    Integers are class ids where `num_classes` is given and one-hot rows where it is not; floats are targets.

    Raises:
        ValueError: neither; ids out of range; rows that are not one-hot, or no distribution.
    """
    array = _arrays.to_host(labels, "labels")
    count = None if num_classes is None else _checks.class_count(num_classes)
    if array.dtype.kind == "b" or (isinstance(labels, (list, tuple)) and array.size == 0 and count is not None):
        array = array.astype(np.uint8)
    if array.dtype.kind in "iu":
        if count is None:
            return _prior.Rows.of_ids(_ids_of_one_hot(array), array.shape[-1])
        _checks.label_range(array, count)
        return _prior.Rows.of_ids(array, count)
    if not _checks.is_float(array.dtype):
        rule = "be integers (class ids or one-hot rows) or floats (targets)"
        raise _checks.error("labels", rule, f"dtype {array.dtype}")
    if array.ndim == 0 or (count is not None and array.shape[-1] != count):
        rule = "have the classes on their last axis where they are floats (class ids are integers)"
        given = "" if count is None else f" with num_classes={count}"
        raise _checks.error("labels", rule, f"shape {array.shape}{given}")
    if array.shape[-1] == 0:
        raise _checks.error("labels", "have at least one class on their last axis", f"shape {array.shape}")
    _checks.distribution(array, "labels", _checks.tolerance(_arrays.kind(labels)))
    return _prior.Rows.of_targets(array)


def _ids_of_one_hot(rows: np.ndarray) -> np.ndarray:
    rule = "be one-hot rows where num_classes is not given (class ids need num_classes)"
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise _checks.error("labels", rule, f"shape {rows.shape}")
    wrong = (rows.sum(axis=-1) != 1) | (rows.min(axis=-1) < 0)
    if wrong.any():
        row = rows[tuple(np.argwhere(wrong)[0])]
        raise _checks.error("labels", rule, np.array2string(row, threshold=8, edgeitems=3))
    return rows.argmax(axis=-1)


def sample_labels(
    labels: Any,
    smoothing: float = 0.1,
    *,
    num_classes: int | None = None,
    prior: Any = None,
    class_prior: Any = None,
    class_mask: Any = None,
    rng: np.random.Generator | int | None = None,
) -> Any:
    """Draw class ids from the smoothed targets: the stochastic view of label smoothing.

    With probability ε a label is replaced by a draw from u, so that the expected one-hot target is
    q' = (1-ε) q + ε u: averaged over draws, the plain cross-entropy has the smoothed one's value and gradient.

    Args:
        labels: class ids ``[...]`` (with `num_classes`), one-hot rows or soft targets ``[..., K]``;
            an array of any framework.
        smoothing: ε, in [0, 1).
        num_classes: K; makes integers class ids.
        prior: u, shape ``[K]`` or ``[..., K]``; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y.
        class_mask: bool, ``[K]`` or ``[..., K]``; True = kept, and only kept classes are drawn.
        rng: a NumPy generator, or a seed.

    Returns:
        Class ids of shape ``[...]``, of the same kind as `labels`; in their dtype where they are class ids
        and it can hold K-1, else int64.

    Raises:
        ValueError: as `smooth_labels`.

    References:
        Szegedy et al. 2016, arXiv 1512.00567, section 7; Xie et al. 2016 (DisturbLabel), arXiv 1605.00055.

    Example:
        >>> import labelsmooth as ls
        >>> ls.sample_labels([3, 3, 3, 3, 3, 3], 0.9, num_classes=4, rng=0)
        array([2, 2, 2, 3, 3, 3])
    """
    rows = parse(labels, num_classes)
    u = _prior.resolve(prior, class_prior, class_mask, rows)
    epsilon = _checks.smoothing(smoothing)
    noise, replacement, own = np.random.default_rng(rng).random((3, rows.number))

    drawn = np.empty(rows.number, np.int64)
    for part in _prior.chunks(rows.number, rows.count):
        q = rows.dense(part)
        from_u = _invert(np.broadcast_to(u.rows(part, q, 1.0), q.shape), replacement[part])
        from_q = _invert(q, own[part]) if rows.ids is None else rows.ids.reshape(-1)[part]
        drawn[part] = np.where(noise[part] < epsilon, from_u, from_q)
    dtype = np.dtype(np.int64)
    if rows.ids is not None and num_classes is not None and np.iinfo(rows.ids.dtype).max >= rows.count - 1:
        dtype = rows.ids.dtype
    return _arrays.from_host(drawn.reshape(rows.lead).astype(dtype), labels)


def _invert(rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A class id per row, by inverting its cumulative distribution; a class of probability 0 is never drawn."""
    cumulative = np.cumsum(rows, axis=-1)
    return (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=-1)
