"""The reference: cross-entropy with label smoothing, its loss and gradient, in NumPy float64.

Written for clarity, with q' built densely. Every fast path is bound to it by tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labelsmooth import _arrays, _checks, _prior


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    prior: Any = None,
    class_prior: Any = None,
    mask: Any = None,
    class_mask: Any = None,
    weight_mode: str = "class",
    normalizer: Any = None,
    axis: int = -1,
) -> np.ndarray | np.float64:
    """Cross-entropy of smoothed targets: loss = -Σ_k q'_k log p_k = (1-ε) H(q,p) + ε H(u,p), with p = softmax(logits).

    A row that is not kept has loss 0 and gradient 0, whatever its logits, target and prior hold. 0·(-inf) is 0. A
    class with target mass and logit -inf gives +inf, never nan. Where nothing is kept, loss and gradient are 0.

    Args:
        logits: real array with K classes on `axis`.
        target: class ids (integers, the shape of `logits` without `axis`), or one-hot or soft targets laid out like
            `logits`, whose rows sum to 1.
        weight: class weights, shape ``[K]``.
        ignore_index: rows with this class id are not kept.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the row weights Σ_k w_k q_k of the kept rows.
        label_smoothing: ε, in [0, 1).
        prior: u, shape ``[K]``, or laid out like `logits`; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y (``q @ class_prior`` for soft targets).
        mask: bool, the shape of `logits` without `axis`; True = kept.
        class_mask: bool, ``[K]`` or laid out like `logits`; True = kept. Taken-out classes have no probability, and u
            is renormalised over the others.
        weight_mode: ``"class"`` (w_k inside the sum, as PyTorch) or ``"example"`` (the row times Σ_k w_k q_k).
        normalizer: what ``"mean"`` divides by instead; 0 gives 0.
        axis: the class axis.

    Returns:
        float64: a scalar, or for ``"none"`` an array of the shape of `logits` without `axis`.

    Raises:
        ValueError: an argument out of its range or of the wrong shape; class ids out of range; targets or priors that
            are negative or do not sum to 1; a masked true class; a kept row whose logits are all -inf.

    Warns:
        UserWarning: of soft targets that look smoothed already and are to be smoothed.

    References:
        Szegedy et al. 2016, arXiv 1512.00567, section 7.

    Example:
        >>> import labelsmooth as ls
        >>> round(float(ls.losses.cross_entropy([[2.0, 0.0, 0.0]], [0], label_smoothing=0.1)), 6)
        0.372878
    """
    return cross_entropy_and_grad(
        logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
        prior=prior, class_prior=class_prior, mask=mask, class_mask=class_mask, weight_mode=weight_mode,
        normalizer=normalizer, axis=axis,
    )[0]  # fmt: skip


def cross_entropy_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    prior: Any = None,
    class_prior: Any = None,
    mask: Any = None,
    class_mask: Any = None,
    weight_mode: str = "class",
    normalizer: Any = None,
    axis: int = -1,
) -> tuple[np.ndarray | np.float64, np.ndarray]:
    """The loss of `cross_entropy` and its gradient with respect to the logits: p - q', weighted and reduced alike.

    Args:
        logits: and all others as in `cross_entropy`.

    Returns:
        ``(loss, gradient)``, float64; the gradient has the shape of `logits`. For ``reduction="none"`` it is the
        gradient of the sum.

    Raises:
        ValueError: as `cross_entropy`.

    Example:
        >>> import labelsmooth as ls
        >>> loss, gradient = ls.losses.cross_entropy_and_grad([[0.0, 0.0]], [0], label_smoothing=0.2)
        >>> gradient.round(6)
        array([[-0.4,  0.4]])
    """
    epsilon = _checks.smoothing(label_smoothing, "label_smoothing")
    _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
    _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
    _checks.normalizer(normalizer, reduction)
    ignore_index = _checks.whole_number(ignore_index, "ignore_index")

    raw = _arrays.to_host(logits, "logits")
    if raw.ndim == 0 or not -raw.ndim <= axis < raw.ndim:
        raise _checks.error("axis", "be an axis of logits", f"{axis} for shape {raw.shape}")

    def classes_last(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, axis, -1) if array.shape == raw.shape else array

    if raw.dtype.kind not in "iu" and not _checks.is_float(raw.dtype):
        raise _checks.error("logits", "be real numbers", f"dtype {raw.dtype}")
    z = classes_last(raw).astype(np.float64)
    lead, count = z.shape[:-1], z.shape[-1]
    if count == 0:
        raise _checks.error("logits", "have at least one class", raw.shape)

    # Which rows are kept, and their targets q and priors u; the other rows may hold anything.
    given = classes_last(_arrays.to_host(target, "target"))
    keep = np.ones(lead, bool)
    if mask is not None:
        keep = _arrays.to_host(mask, "mask")
        if keep.dtype != np.bool_ or keep.shape != lead:
            raise _checks.error("mask", f"be boolean of shape {lead}", f"{keep.dtype} of shape {keep.shape}")
    if given.dtype.kind in "iu" and given.shape == lead:
        keep = keep & (given != ignore_index)
        ids = np.where(keep, given, 0)
        _checks.label_range(ids, count, "target")
        rows = _prior.Rows.of_ids(ids, count)
    elif given.shape == z.shape and (given.dtype.kind in "biu" or _checks.is_float(given.dtype)):
        rows = _prior.Rows.of_targets(np.where(keep[..., None], given, 0))
        if ignore_index >= 0:
            raise _checks.error("ignore_index", "be negative where target is no class ids (use mask)", ignore_index)
        _checks.distribution(given, "target", _checks.tolerance(_arrays.kind(target)), keep)
        _checks.smoothed_twice(given[keep], epsilon, "target")
    else:
        rule = f"be class ids of shape {lead} or targets laid out like the logits"
        raise _checks.error("target", rule, f"{given.dtype} of shape {given.shape}")
    u = _prior.resolve(prior, class_prior, class_mask, rows, keep, classes_last)

    kept, everything = keep.reshape(-1), slice(None)
    q = rows.dense(everything)
    smoothed = ((1.0 - epsilon) * q + u.rows(everything, q, epsilon))[kept]
    q = q[kept]

    # log p over the kept classes of the kept rows, shifted by the row's maximum.
    z = z.reshape(-1, count)[kept]
    if u.mask is not None:
        z = np.where(np.broadcast_to(u.mask, (kept.size, count))[kept], z, -np.inf)
    top = z.max(axis=-1, keepdims=True)
    if np.isneginf(top).any():
        raise _checks.empty_row("logits")
    with np.errstate(invalid="ignore"):
        z = z - top
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    coefficients, row_weight = smoothed, np.ones(len(q))
    if weight is not None:
        w = _arrays.to_host(weight, "weight").astype(np.float64)
        if w.shape != (count,):
            raise _checks.error("weight", f"have shape {(count,)}", w.shape)
        # For labels the weight is picked, not multiplied: that of a class which does not occur may be anything.
        row_weight = q @ w if rows.ids is None else w[rows.ids.reshape(-1)[kept]]
        coefficients = np.where(smoothed == 0, 0.0, smoothed * (w if weight_mode == "class" else row_weight[:, None]))

    losses = np.zeros(kept.size)
    losses[kept] = -(coefficients * np.where(coefficients == 0, 0.0, log_p)).sum(axis=-1)
    gradient = np.zeros((kept.size, count))
    gradient[kept] = coefficients.sum(axis=-1, keepdims=True) * np.exp(log_p) - coefficients

    def laid_out(g: np.ndarray) -> np.ndarray:
        return np.moveaxis(g.reshape(*lead, count), -1, axis)

    if reduction == "none":
        return losses.reshape(lead), laid_out(gradient)
    if reduction == "sum":
        return losses.sum(), laid_out(gradient)
    divisor = float(row_weight.sum() if normalizer is None else normalizer)
    if divisor == 0:
        return np.float64(0.0), laid_out(np.zeros_like(gradient))
    return losses.sum() / divisor, laid_out(gradient / divisor)
