"""Targets: label smoothing as an explicit change of the labels, its conventions and what it means in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelsmooth import _arrays, _checks, _prior
from labelsmooth.labels import parse


def smooth_labels(
    labels: Any,
    smoothing: float = 0.1,
    *,
    num_classes: int | None = None,
    prior: Any = None,
    class_prior: Any = None,
    class_mask: Any = None,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    """Smoothed targets: q' = (1-ε) q + ε u.

    Integers are class ids where `num_classes` is given, and one-hot rows where it is not. Floats are always targets.
    Only `out` is ever modified.

    Args:
        labels: class ids ``[...]`` in ``0..K-1``, one-hot rows ``[..., K]`` of integers, or soft targets ``[..., K]``
            of floats that sum to 1; an array of NumPy, PyTorch, JAX or TensorFlow, or a list.
        smoothing: ε, in [0, 1).
        num_classes: K.
        prior: u, shape ``[K]``, or ``[..., K]`` for a row per example; uniform (1/K) if None.
        class_prior: ``[K, K]``; row y is the u of true class y (``q @ class_prior`` for soft targets).
        class_mask: bool, ``[K]`` or ``[..., K]``; True = kept. u is renormalised over the kept classes.
        dtype: a float dtype of the result. If None: float32 for integers, else the dtype of `labels`.
        out: an array of the result's shape to write to, which may be `labels` itself (NumPy and PyTorch).

    Returns:
        Targets of shape ``[..., K]``, of the same kind as `labels` (NumPy for lists); `out` where it is given.

    Raises:
        ValueError: a smoothing outside [0, 1); labels out of range; rows that are negative or do not sum to 1; a prior
            of the wrong shape or sum; a masked true class; both priors. Values that are not at hand (traced, on a GPU,
            part of a gradient) are not checked.

    References:
        Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, section 7, q'(k|x).

    Example:
        >>> import labelsmooth as ls
        >>> ls.smooth_labels([2], 0.1, num_classes=4)
        array([[0.025, 0.025, 0.925, 0.025]], dtype=float32)
        >>> ls.smooth_labels([[0.0, 1.0]], 0.1, prior=[0.75, 0.25])
        array([[0.075, 0.925]])
    """
    epsilon = _checks.smoothing(smoothing)
    framework = _arrays.adapter(labels)
    if framework is None:
        return _smooth(labels, epsilon, num_classes, prior, class_prior, class_mask, dtype, out)

    kind = _float_kind(dtype, "float32" if _arrays.is_integer(labels) else _arrays.dtype_name(labels))
    if out is not None:
        kind = _output_kind(framework, out, labels, kind if dtype is not None else None)
    if _arrays.at_hand(labels) and _arrays.at_hand(prior, class_prior, class_mask):
        work = "float32" if kind == "bfloat16" else kind
        smoothed = _smooth(labels, epsilon, num_classes, prior, class_prior, class_mask, work, None)
        result = framework.from_host(smoothed, labels, framework.dtype(kind))
    else:
        result = _smooth_native(framework, labels, epsilon, num_classes, prior, class_prior, class_mask, kind)
    if out is None:
        return result
    if tuple(out.shape) != tuple(result.shape):
        raise _checks.error("out", f"have shape {tuple(result.shape)}", tuple(out.shape))
    return out.copy_(result)


def _float_kind(dtype: Any, default: str) -> str:
    """The name of a float dtype; `default` where it is None."""
    if dtype is None:
        return default
    try:
        kind = _arrays.dtype_name(dtype)
    except TypeError:
        raise _checks.error("dtype", "be a float dtype", dtype) from None
    if not kind.startswith(("float", "bfloat")):
        raise _checks.error("dtype", "be a float dtype", kind)
    return kind


def _output_kind(framework: Any, out: Any, labels: Any, asked: str | None) -> str:
    """The dtype's name of an `out` of another framework."""
    if not framework.writes or type(out) is not type(labels):
        kind = type(labels).__name__ if framework.writes else "None for arrays that cannot be written to"
        raise _checks.error("out", f"be a {kind}" if framework.writes else f"be {kind}", repr(type(out)))
    kind = _arrays.dtype_name(out)
    if not kind.startswith(("float", "bfloat")) or (asked is not None and kind != asked):
        raise _checks.error("out", "have a float dtype" + ("" if asked is None else f", {asked} as dtype says"), kind)
    return kind


def one_hot(labels: Any, num_classes: int, *, dtype: Any = None) -> Any:
    """One-hot targets: q_k = 1 for the true class and 0 elsewhere.

    Args:
        labels: class ids, integers of any shape ``[...]``, in ``0..num_classes-1``; an array of any framework.
        num_classes: K, at least 1.
        dtype: a float dtype of the result; float32 if None.

    Returns:
        Targets of shape ``[..., K]``, of the same kind as `labels`.

    Raises:
        ValueError: `labels` are no integers or out of range.

    Example:
        >>> import labelsmooth as ls
        >>> ls.one_hot([0, 2], 3)
        array([[1., 0., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    if not _arrays.is_integer(labels):
        raise _checks.error("labels", "be integers (class ids)", f"dtype {_arrays.kind(labels)}")
    return smooth_labels(labels, 0.0, num_classes=num_classes, dtype=dtype)


def _smooth(
    labels: Any, epsilon: float, num_classes: Any, prior: Any, class_prior: Any, class_mask: Any, dtype: Any, out: Any
) -> np.ndarray:
    rows = parse(labels, num_classes)
    u = _prior.resolve(prior, class_prior, class_mask, rows)
    ids, count, shape = rows.ids, rows.count, (*rows.lead, rows.count)
    out = _output(out, shape, dtype, np.dtype(np.float32) if rows.soft is None else rows.soft.dtype)

    vector, table = u.vector(epsilon), u.table(epsilon)
    if ids is not None and vector is not None:
        out[...] = vector[0] if u.uniform and u.mask is None else vector.astype(out.dtype)
        true_class = ((1.0 - epsilon) + vector).astype(out.dtype)[ids]
        if out.flags.c_contiguous:
            flat = np.arange(0, out.size, count)
            flat += ids.reshape(-1).astype(np.intp, copy=False)
            out.reshape(-1)[flat] = true_class.reshape(-1)
        else:
            np.put_along_axis(out, ids.astype(np.intp)[..., None], true_class[..., None], axis=-1)
        return out
    if ids is not None and table is not None:
        out[...] = ((1.0 - epsilon) * np.eye(count) + table).astype(out.dtype)[ids]
        return out

    if rows.soft is not None and _overlaps(out, rows.soft):
        rows = _prior.Rows.of_targets(rows.soft.copy())
    u = u.detached_from(out)
    flat = (out if out.flags.c_contiguous else np.empty(shape, out.dtype)).reshape(-1, count)
    for part in _prior.chunks(len(flat), count):
        q = rows.dense(part)
        flat[part] = (1.0 - epsilon) * q + u.rows(part, q, epsilon)
    if not out.flags.c_contiguous:
        out[...] = flat.reshape(shape)
    return out


def _output(out: Any, shape: tuple[int, ...], dtype: Any, default: np.dtype) -> np.ndarray:
    default = np.dtype(_float_kind(dtype, default.name) if default.name != "bfloat16" or dtype is not None else default)
    if out is None:
        return np.empty(shape, default)
    if not isinstance(out, np.ndarray):
        raise _checks.error("out", "be a NumPy array", repr(type(out)))
    if out.shape != shape:
        raise _checks.error("out", f"have shape {shape}", out.shape)
    if not _checks.is_float(out.dtype) or (dtype is not None and out.dtype != default):
        rule = "have a float dtype" + ("" if dtype is None else f", {default} as dtype says")
        raise _checks.error("out", rule, out.dtype)
    if not out.flags.writeable:
        raise _checks.error("out", "be writeable", "a read-only array")
    return out


def _overlaps(out: np.ndarray, x: np.ndarray) -> bool:
    """True where writing a row of `out` could change another row of `x`."""
    same = out.__array_interface__["data"] == x.__array_interface__["data"] and out.strides == x.strides
    return np.may_share_memory(out, x) and not same


def _smooth_native(
    framework: Any,
    labels: Any,
    epsilon: float,
    num_classes: Any,
    prior: Any,
    class_prior: Any,
    class_mask: Any,
    kind: str,
) -> Any:
    """q' by the framework's own operations: traceable, differentiable, on the labels' device; shapes are checked."""
    _checks.one_prior(prior, class_prior)
    integer = _arrays.is_integer(labels)
    lead = tuple(labels.shape) if integer and num_classes is not None else tuple(labels.shape[:-1])
    if lead == tuple(labels.shape):
        if not integer:
            raise _checks.error(
                "labels", "have the classes on their last axis where they are floats", tuple(labels.shape)
            )
        count, ids = _checks.class_count(num_classes), labels
    else:
        count, ids = labels.shape[-1], framework.argmax(labels) if integer else None
        if num_classes is not None and count != _checks.class_count(num_classes):
            raise _checks.error(
                "labels", f"have num_classes={num_classes} classes on their last axis", tuple(labels.shape)
            )
    for name, value, shapes in (
        ("prior", prior, [(count,), (*lead, count)]),
        ("class_prior", class_prior, [(count, count)]),
        ("class_mask", class_mask, [(count,), (*lead, count)]),
    ):
        if value is not None and tuple(np.shape(value)) not in shapes:
            raise _checks.error(name, f"have shape {' or '.join(map(str, shapes))}", tuple(np.shape(value)))

    dtype = framework.dtype(kind)
    one_hot = None if ids is None else framework.one_hot(ids, count, dtype)
    if one_hot is not None and prior is None and class_prior is None and class_mask is None:
        on, off = (1.0 - epsilon) + epsilon / count, epsilon / count
        on, off = (framework.asarray(np.float64(value), labels, dtype) for value in (on, off))
        return framework.where(one_hot > 0, on, off)
    q = framework.asarray(labels, labels, dtype) if one_hot is None else one_hot
    u: Any = 1.0 / count
    if prior is not None:
        u = framework.asarray(prior, labels, dtype)
    elif class_prior is not None:
        u = framework.dot(q, framework.asarray(class_prior, labels, dtype))
    if class_mask is not None:
        u = u * framework.asarray(class_mask, labels, dtype)
        total = framework.total(u)
        u = u / framework.where(total == 0, framework.asarray(np.float64(1), labels, dtype), total)
    return (1.0 - epsilon) * q + epsilon * u


_CONVENTIONS = ("inclusive", "exclusive", "classy_vision", "keras_binary")


def convert_smoothing(smoothing: float, num_classes: int, *, from_: str = "exclusive", to: str = "inclusive") -> float:
    """The ε that gives the same targets in another convention.

    ``inclusive``: q' = (1-ε) q + ε/K, the true class included (here, PyTorch, Keras, TensorFlow, optax, timm,
    fairseq up to 0.10).
    ``exclusive``: ε goes to the K-1 wrong classes, the true one keeps 1-ε (fairseq since 0.12, Megatron,
    tensor2tensor).
    ``classy_vision``: q' = (q + ε/K) / (1 + ε). ``keras_binary``: y' = y (1-ε) + ε/2, for two classes.

    Args:
        smoothing: ε in the convention `from_`, in [0, 1).
        num_classes: K, at least 2.
        from_: a convention.
        to: a convention.

    Returns:
        The equal ε, exact up to float64 rounding.

    Raises:
        ValueError: an unknown convention; a smoothing outside [0, 1), or whose equal is (K = 2 with an exclusive ε of
            0.5 asks for an inclusive 1); ``keras_binary`` with K other than 2.

    References:
        ε_incl = ε_excl K/(K-1); ε_incl = ε_cv/(1+ε_cv).

    Example:
        >>> import labelsmooth as ls
        >>> round(ls.convert_smoothing(0.1, 10, from_="exclusive", to="inclusive"), 6)
        0.111111
    """
    for name, value in (("from_", from_), ("to", to)):
        _checks.one_of(value, name, _CONVENTIONS)
    epsilon = _checks.smoothing(smoothing)
    count = _checks.class_count(num_classes, least=2)
    if "keras_binary" in (from_, to) and count != 2:
        raise _checks.error("num_classes", "be 2 for keras_binary", count)
    if from_ == to:
        return epsilon
    inclusive = {"exclusive": epsilon * count / (count - 1), "classy_vision": epsilon / (1.0 + epsilon)}.get(
        from_, epsilon
    )
    if inclusive < 1.0:
        result = {"exclusive": inclusive * (count - 1) / count, "classy_vision": inclusive / (1.0 - inclusive)}.get(
            to, inclusive
        )
        if result < 1.0:
            return result
    raise _checks.error(
        "smoothing", f"have an equal in [0, 1) in the convention {to!r}", f"{smoothing} ({from_}, K={count})"
    )


@dataclass(frozen=True)
class Explanation:
    """What a smoothing means in numbers, for hard labels and the uniform prior; ``str()`` is the text.

    Attributes:
        smoothing: ε.
        num_classes: K.
        true_class: q' of the true class.
        other_classes: q' of each other class.
        entropy_floor: H(q') in nats, the least value that the smoothed loss can reach.
        best_logit_gap: z_true - z_other at that minimum; inf for ε = 0.
        conventions: the equal ε of each convention; None where there is none in [0, 1).
    """

    smoothing: float
    num_classes: int
    true_class: float
    other_classes: float
    entropy_floor: float
    best_logit_gap: float
    conventions: dict[str, float | None]

    def __str__(self) -> str:
        used_by = {
            "inclusive": "labelsmooth, PyTorch, Keras, TensorFlow, optax, timm",
            "exclusive": "fairseq since 0.12, Megatron, tensor2tensor",
            "classy_vision": "classy-vision",
            "keras_binary": "Keras' BinaryCrossentropy",
        }
        lines = [
            f"smoothing {self.smoothing:g}, {self.num_classes} classes",
            f"  target q'        true class {self.true_class:.6g}, others {self.other_classes:.6g}",
            f"  entropy floor    {self.entropy_floor:.6g} nats (a smoothed loss cannot go below it)",
            f"  best logit gap   {self.best_logit_gap:.6g} (true class over the others, where the loss is least)",
            "  equal smoothing in each convention",
        ]
        for name, equal in self.conventions.items():
            value = "none in [0, 1)" if equal is None else f"{equal:.6g}"
            lines.append(f"    {name:<15}{value:<16}{used_by[name]}")
        return "\n".join(lines)


def explanation(smoothing: float, num_classes: int) -> Explanation:
    """The numbers that `explain` prints."""
    epsilon = _checks.smoothing(smoothing)
    count = _checks.class_count(num_classes, least=2)
    off = epsilon / count
    on = (1.0 - epsilon) + off
    floor = -on * math.log(on) - ((count - 1) * off * math.log(off) if off else 0.0)
    gap = math.log((count * (1.0 - epsilon) + epsilon) / epsilon) if epsilon else math.inf
    equal: dict[str, float | None] = {}
    for convention in _CONVENTIONS:
        if convention == "keras_binary" and count != 2:
            continue
        try:
            equal[convention] = convert_smoothing(epsilon, count, from_="inclusive", to=convention)
        except ValueError:
            equal[convention] = None
    return Explanation(epsilon, count, on, off, floor + 0.0, gap, equal)


def explain(smoothing: float, num_classes: int) -> Explanation:
    """Print what a smoothing means: q', the entropy floor, the best logit gap, the equal ε in each convention.

    Args:
        smoothing: ε, in [0, 1).
        num_classes: K, at least 2.

    Returns:
        An `Explanation` with the printed numbers.

    Raises:
        ValueError: a smoothing outside [0, 1), or fewer than 2 classes.

    References:
        H(q') and the gap log((K(1-ε)+ε)/ε) follow from the gradient p - q' = 0.

    Example:
        >>> import labelsmooth as ls
        >>> ls.explain(0.1, 10).true_class
        smoothing 0.1, 10 classes
          target q'        true class 0.91, others 0.01
          entropy floor    0.500288 nats (a smoothed loss cannot go below it)
          best logit gap   4.51086 (true class over the others, where the loss is least)
          equal smoothing in each convention
            inclusive      0.1             labelsmooth, PyTorch, Keras, TensorFlow, optax, timm
            exclusive      0.09            fairseq since 0.12, Megatron, tensor2tensor
            classy_vision  0.111111        classy-vision
        0.91
    """
    result = explanation(smoothing, num_classes)
    print(result)
    return result
