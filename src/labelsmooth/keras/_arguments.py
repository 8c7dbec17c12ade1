"""The losses' arguments, checked, and `y_true` told apart."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from labelsmooth import _arrays, _checks
from labelsmooth.keras import _values
from labelsmooth.keras._values import ops

PROBABILITY_TOLERANCE = 1e-3  # a row of probabilities may have come through a softmax over many classes
TARGET_TOLERANCE = _checks.tolerance("float16")  # `fit` hands targets of half precision on as float32


def flag(from_logits: Any) -> None:
    if not isinstance(from_logits, bool):
        raise _checks.error("from_logits", "be True or False", repr(from_logits))


def class_array(x: Any, name: str, *, ndim: tuple[int, ...] = (1,), boolean: bool = False) -> np.ndarray | None:
    """An argument of class shape, an array of any framework or a list, as a NumPy array of its own."""
    if x is None:
        return None
    array = np.array(_arrays.to_host(x, name))
    real = array.dtype.kind in "iu" or _checks.is_float(array.dtype)
    if not (array.dtype == np.bool_ if boolean else real):
        raise _checks.error(name, "be boolean" if boolean else "hold numbers", f"dtype {array.dtype}")
    if array.ndim not in ndim or 0 in array.shape or len(set(array.shape)) > 1:
        shapes = " or ".join({0: "[]", 1: "[K]", 2: "[K, K]"}[n] for n in ndim)
        raise _checks.error(name, f"have shape {shapes}", array.shape)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def told_apart(y_true: Any, shape: _values.Shape, axis: int) -> tuple[Any, bool]:
    """`y_true` with True if it is class ids, without the class axis, and with False if it is targets."""
    given, lead = _values.static_shape(y_true), shape[:axis] + shape[axis + 1 :]
    if len(given) == len(shape) and given[axis] == shape[axis] and _values.fits(given, shape):
        return y_true, False
    if _values.is_integer(y_true):
        if _values.fits(given, lead):
            return y_true, True
        if len(given) == len(shape) and given[axis] == 1 and _values.fits(given[:axis] + given[axis + 1 :], lead):
            return ops.squeeze(y_true, axis), True
    with_axis = (*shape[:axis], 1, *shape[axis + 1 :])
    rule = f"be class ids (integers) of shape {lead} or {with_axis}, or targets of shape {shape}"
    raise _checks.error("y_true", rule, f"{ops.dtype(y_true)} of shape {given}")


def refuse_activation(y_pred: Any) -> None:
    """Keras' softmax and sigmoid leave their logits at what they give, where tensors can have attributes."""
    if hasattr(y_pred, "_keras_logits"):
        rule = "be logits where from_logits=True (take the last activation away, or say from_logits=False)"
        raise _checks.error("y_pred", rule, "the result of a softmax or sigmoid")


def check_logits(rows: np.ndarray, out: np.ndarray) -> None:
    """The kept `rows` ``[n, K]`` look like no distributions, and none is -inf in all classes but those `out`."""
    valid = rows[:, ~out] if out.any() else rows
    if np.isneginf(valid.max(axis=-1)).any():
        raise _checks.empty_row("y_pred")
    # One row, or rows of 0 and 1, may be so by chance.
    if len(rows) < 2 or not rows.min() >= 0 or np.isin(rows, (0, 1)).all():
        return
    if np.allclose(rows.sum(axis=-1, dtype=np.float64), 1, rtol=0, atol=_checks.tolerance(rows.dtype)):
        warnings.warn(
            "y_pred looks like probabilities: every row is non-negative and sums to 1; from_logits=True takes logits",
            stacklevel=2,
        )
