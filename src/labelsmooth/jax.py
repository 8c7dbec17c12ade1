"""Label smoothing for JAX: a loss in the shape of optax's, from labels in a closed form that never builds q'."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from labelsmooth import _checks, _prior

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
    prior: ArrayLike | None = None,
    class_prior: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    weight_mode: str = "class",
    ignore_index: int = -100,
    reduction: str = "none",
    normalizer: ArrayLike | None = None,
    validate: bool | None = None,
) -> Array:
    """Cross-entropy of smoothed targets: loss = lse(z) - (1-ε) Σ_k q_k z_k - ε Σ_k u_k z_k, gradient softmax(z) - q'.

    Called like `optax.softmax_cross_entropy_with_integer_labels` and `optax.softmax_cross_entropy`, it gives their
    numbers, a loss per example, and with `label_smoothing` those of ``optax.smooth_labels`` before the second. It
    works under jit, vmap and forward- and reverse-mode differentiation; soft targets, priors, weights and ε may be
    differentiated too. Two things differ: float16 and bfloat16 logits give a float32 loss, and what is wrong is
    refused (see Raises).

    Args:
        logits: any float dtype, K classes on `axis`.
        labels: class ids (integers, the shape of `logits` without `axis`), or one-hot or soft targets of the shape of
            `logits`, whose rows sum to 1.
        label_smoothing: ε, in [0, 1); a traced scalar is taken too.
        axis: the class axis.
        prior: u, shape ``[K]``, or laid out like `logits`; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y (``q @ class_prior`` for soft targets).
        mask: bool, the shape of `logits` without `axis`; True = kept. Rows that are not kept have loss 0 and gradient
            0, whatever their logits, labels and prior hold.
        class_mask: bool, ``[K]`` or laid out like `logits`; True = kept. Taken-out classes have no probability, and u
            is renormalised over the others.
        where: optax's word, for `mask` or for both: bool, the shape of `logits` without `axis` (as `mask`), or of
            `logits` (as `class_mask`, and a row without any kept class is not kept).
        weight: class weights, shape ``[K]``.
        weight_mode: ``"class"`` (w_k inside the sum, as PyTorch) or ``"example"`` (the row times Σ_k w_k q_k, so that
            the optimum stays q').
        ignore_index: rows with this class id are not kept.
        reduction: ``"none"`` (as in optax), ``"sum"``, or ``"mean"``, which divides by the row weights Σ_k w_k q_k of
            the kept rows, and is 0 where nothing is kept.
        normalizer: what ``"mean"`` divides by instead (for gradient accumulation and distributed means); 0 gives 0.
        validate: check the values of the arguments. None: of those that are at hand on the CPU; True: of those on
            accelerators too, which are waited for. What is traced is never checked.

    Returns:
        An array of the shape of `logits` without `axis`, or a scalar for ``"sum"`` and ``"mean"``; float64 for float64
        logits (with ``jax_enable_x64``), else float32. Gradients come back in the dtype of `logits`.

    Raises:
        ValueError: an argument out of its range or of the wrong shape; and where values are checked: class ids out of
            range, targets or priors that are negative or do not sum to 1, a masked true class, a kept row whose
            logits are all -inf.

    Warns:
        UserWarning: where values are checked, of soft targets that look smoothed already and are to be smoothed.

    References:
        Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, section 7.

    Example:
        >>> import jax.numpy as jnp
        >>> from labelsmooth.jax import cross_entropy
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> print(cross_entropy(logits, jnp.array([0, 2]), label_smoothing=0.1))
        [0.37287816 1.0986123 ]
        >>> print(cross_entropy(logits, jnp.array([0, -100]), label_smoothing=0.1, reduction="mean"))
        0.37287816
    """
    _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
    _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
    _checks.one_prior(prior, class_prior)
    _checks.normalizer(normalizer, reduction, at_hand=_at_hand(normalizer, bool(validate)) is not None)
    ignore_index = _checks.whole_number(ignore_index, "ignore_index")
    epsilon: Any = label_smoothing
    if not isinstance(epsilon, Tracer):
        epsilon = _checks.smoothing(epsilon, "label_smoothing")
    elif epsilon.shape != ():
        raise _checks.error("label_smoothing", "be a number in [0, 1)", f"shape {epsilon.shape}")

    # What is NumPy's stays so until its values are checked: without x64, JAX would cut them to 32 bits.
    z, y = _array(logits, "logits"), _array(labels, "labels")
    dim, labelled = _layout(z, y, axis)
    if not labelled and ignore_index >= 0:
        raise _checks.error("ignore_index", "be negative where labels are no class ids (use mask)", ignore_index)
    count, lead = z.shape[dim], z.shape[:dim] + z.shape[dim + 1 :]
    if where is not None:
        if mask is not None or class_mask is not None:
            raise _checks.error("where", "be None where mask or class_mask is given", "both")
        given = _option(where, "where", [lead, z.shape])
        mask = given if given.shape == lead else given.any(dim)
        class_mask = given if given.shape == z.shape else None
    prior, class_prior, mask, class_mask, weight = (
        _option(value, name, shapes)
        for value, name, shapes in (
            (prior, "prior", [(count,), z.shape]),
            (class_prior, "class_prior", [(count, count)]),
            (mask, "mask", [lead]),
            (class_mask, "class_mask", [(count,), z.shape]),
            (weight, "weight", [(count,)]),
        )
    )
    if validate is not False:
        known = 0.0 if isinstance(epsilon, Tracer) else epsilon
        ignored = ignore_index if labelled else None
        _check_values(z, y, known, ignored, mask, prior, class_prior, class_mask, dim, validate)

    keep, ids, q = mask, None, None
    if labelled:
        ids = y if jnp.iinfo(y.dtype).bits >= 32 else y.astype(np.int32)
        if jnp.iinfo(ids.dtype).min <= ignore_index <= jnp.iinfo(ids.dtype).max:  # it would wrap around to a class id
            keep = ids != ignore_index if mask is None else (ids != ignore_index) & mask
        ids = jnp.where((ids >= 0) & (ids < count), ids, count)  # an id that no check could refuse gives nan
        ids = ids if keep is None else jnp.where(keep, ids, 0)

    # Rows that are not kept are emptied before anything is computed from them.
    def emptied(x: Array) -> Array:
        return x if keep is None or x.ndim < z.ndim else jnp.where(jnp.expand_dims(keep, dim), x, 0)

    def along_axis(x: Any) -> Array:
        """A vector over the classes, or what is laid out like the logits, broadcastable to them."""
        return jnp.reshape(x, [-1 if i == dim else 1 for i in range(z.ndim)]) if x.ndim == 1 else jnp.asarray(x)

    dtype = jnp.float64 if jax.dtypes.canonicalize_dtype(z.dtype) == np.float64 else jnp.float32
    valid = None if class_mask is None else along_axis(class_mask)
    w = None if weight is None else jnp.asarray(weight, dtype)
    inside = w if weight_mode == "class" else None
    z = jnp.asarray(z, dtype)
    z = emptied(z if valid is None else jnp.where(valid, z, -jnp.inf))
    top = jax.lax.stop_gradient(z.max(dim, keepdims=True))
    shifted = z - top
    log_sum = jnp.log(jnp.exp(shifted).sum(dim))

    def cross(c: Array) -> Array:
        """-Σ_k w_k c_k log p_k, where 0·(-inf) is 0."""
        c = c if inside is None else c * along_axis(inside)
        return c.sum(dim) * log_sum - (c * jnp.where((c == 0) & jnp.isneginf(shifted), 0, shifted)).sum(dim)

    # The two parts of the loss, and the weight ŵ of each row.
    row_weight = None
    if ids is not None:
        # Picked from z, not from z - top, which then need not be stored.
        loss = log_sum - (jnp.take_along_axis(z, jnp.expand_dims(ids, dim), dim, mode="fill") - top).squeeze(dim)
        if w is not None:
            row_weight = w[ids]
            loss = loss if inside is None else _weighted(loss, row_weight)
    else:
        q = emptied(jnp.asarray(y, dtype))
        loss = cross(q)
        if w is not None:
            row_weight = (q * along_axis(w)).sum(dim)
    traced = isinstance(epsilon, Tracer)
    if not traced and prior is None and class_prior is None and valid is None and inside is None:
        loss = (1.0 - epsilon) * loss + epsilon * (log_sum - shifted.mean(dim)) if epsilon > 0 else loss
    elif traced or epsilon > 0:
        epsilon = jnp.asarray(epsilon, dtype)
        if prior is not None:
            u = along_axis(emptied(jnp.asarray(prior, dtype)))
        elif class_prior is None:
            u = along_axis(jnp.full(count, 1.0 / count, dtype))
        elif ids is not None:
            u = jnp.moveaxis(jnp.asarray(class_prior, dtype)[ids], -1, dim)
        else:
            assert q is not None
            rows = jnp.dot(jnp.moveaxis(q, dim, -1), jnp.asarray(class_prior, dtype), precision="highest")
            u = jnp.moveaxis(rows, -1, dim)
        if valid is not None:
            u = jnp.where(valid, u, 0)
            total = u.sum(dim, keepdims=True)
            u = u / jnp.where(total == 0, 1, total)
        loss = (1.0 - epsilon) * loss + cross(epsilon * u)
    if row_weight is not None and inside is None:
        loss = _weighted(loss, row_weight)
    if keep is not None:
        loss = jnp.where(keep, loss, 0)

    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if normalizer is not None:
        divisor = jnp.asarray(normalizer, dtype)
    else:
        row_weight = jnp.ones(lead, dtype) if row_weight is None else row_weight
        divisor = row_weight.sum(where=keep)
    nothing = divisor == 0
    return jnp.where(nothing, 0, total) / jnp.where(nothing, 1, divisor)


def _weighted(loss: Array, weight: Array) -> Array:
    """A weight of 0 counts 0, even where the loss is inf."""
    return jnp.where(weight == 0, 0, loss) * weight


def _array(x: Any, name: str) -> Any:
    """`x` as it is where it is JAX's, else as NumPy's array."""
    if not isinstance(x, Array):
        try:
            x = np.asarray(x)
        except (TypeError, ValueError, RuntimeError):
            raise _checks.error(name, "be an array of numbers", repr(type(x))) from None
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (np.bool_, np.integer, np.floating)):
        raise _checks.error(name, "be an array of real numbers", f"dtype {x.dtype}")
    return x


def _layout(z: Any, y: Any, axis: Any) -> tuple[int, bool]:
    """The class axis, and whether `y` are class ids; the shapes fit."""
    if not jnp.issubdtype(z.dtype, np.floating):
        raise _checks.error("logits", "have a float dtype", z.dtype)
    rule = "be an axis of logits"
    dim = _checks.whole_number(axis, "axis", rule)
    if not -z.ndim <= dim < z.ndim:
        raise _checks.error("axis", rule, f"{axis} for shape {z.shape}")
    dim %= z.ndim
    if z.shape[dim] == 0:
        raise _checks.error("logits", "have at least one class", z.shape)
    lead = z.shape[:dim] + z.shape[dim + 1 :]
    labelled = y.shape == lead and jnp.issubdtype(y.dtype, np.integer)
    if not labelled and y.shape != z.shape:
        rule = f"be class ids of shape {lead} or targets of shape {z.shape}"
        raise _checks.error("labels", rule, f"{y.dtype} of shape {y.shape}")
    return dim, labelled


def _option(x: Any, name: str, shapes: list[tuple[int, ...]]) -> Any:
    if x is None:
        return None
    x = _array(x, name)
    if x.shape not in shapes:
        raise _checks.error(name, f"have shape {' or '.join(map(str, dict.fromkeys(shapes)))}", x.shape)
    if name in ("mask", "class_mask", "where") and x.dtype != np.bool_:
        raise _checks.error(name, "be boolean", x.dtype)
    return x


def _at_hand(x: Any, wait: bool) -> np.ndarray | None:
    """`x` as NumPy's array; None where it is traced, or on a device that is not to be waited for."""
    if isinstance(x, Array):
        if isinstance(x, Tracer) or not x.is_fully_addressable:
            return None
        if not wait and any(device.platform != "cpu" for device in x.devices()):
            return None
    return np.asarray(x)


def _check_values(
    logits: Any, labels: Any, epsilon: float, ignore_index: int | None, mask: Any, prior: Any, class_prior: Any,
    class_mask: Any, dim: int, wait: bool | None,
) -> None:  # fmt: skip
    """Check what is at hand, in NumPy; `ignore_index` is None where `labels` are targets."""

    def read(x: Any) -> np.ndarray | None:
        return None if x is None else _at_hand(x, bool(wait))

    lead, count = logits.shape[:dim] + logits.shape[dim + 1 :], logits.shape[dim]
    y, kept = read(labels), np.ones(lead, bool) if mask is None else read(mask)
    rows = _prior.Rows.of_ids(np.zeros(lead, int), count)
    if y is None or kept is None:
        kept = np.zeros(lead, bool)  # nothing is known of any row
    elif ignore_index is not None:
        kept = kept & (y != ignore_index)
        ids = np.where(kept, y, 0)
        _checks.label_range(ids, count, "labels")
        rows = _prior.Rows.of_ids(ids, count)
    else:
        q = np.moveaxis(y, dim, -1)
        _checks.distribution(q, "labels", _checks.tolerance(q.dtype), kept)
        rows = _prior.Rows.of_targets(np.where(kept[..., None], q, 0))
        _checks.smoothed_twice(q[kept], epsilon, "labels")

    def classes_last(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, dim, -1) if x.shape == logits.shape else x

    valid = read(class_mask)
    _prior.resolve(read(prior), read(class_prior), valid, rows, kept, classes_last)
    z = read(logits)
    if z is not None:
        empty = (
            np.moveaxis(z == -np.inf, dim, -1) if valid is None else classes_last(z == -np.inf) | ~classes_last(valid)
        )
        if (empty.all(-1) & kept).any():
            raise _checks.empty_row("logits")
