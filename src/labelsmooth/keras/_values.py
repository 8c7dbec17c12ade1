"""Tensors of any Keras backend: their dtypes and shapes, their mask, and their values where these are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras.src.backend import get_keras_mask  # Keras has no public name for it

from labelsmooth import _arrays, _checks

Shape = tuple[int | None, ...]
ops: Any = keras.ops  # untyped: Keras' own annotations say that most results may be None


def tensor(x: Any, name: str) -> Any:
    """`x` as a tensor of the backend."""
    try:
        return ops.convert_to_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise _checks.error(name, "be an array of numbers", repr(type(x))) from None


def at_hand(x: Any) -> np.ndarray | None:
    """The values of `x`; None where they are traced or symbolic, or a device would have to be waited for."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly() or "GPU" in x.device:
            return None
        values = x.numpy()
    else:
        framework, x = _arrays.adapter(x), ops.stop_gradient(x)
        values = np.asarray(x) if framework is None else framework.to_host(x)
    return values.astype(np.float32) if values is not None and values.dtype.name == "bfloat16" else values


def loss_dtype(y_pred: Any, asked: str | None) -> str:
    """The dtype of a loss: the one that was asked for, or float64 for float64 predictions and float32 for others."""
    return asked or ("float64" if ops.dtype(y_pred) == "float64" else "float32")


def is_integer(x: Any) -> bool:
    return ops.dtype(x).startswith(("int", "uint"))


def as_ids(x: Any) -> Any:
    """Integers in a dtype that holds `ignore_index` too."""
    dtype = ops.dtype(x)
    if dtype in ("int32", "int64"):
        return x
    wide = dtype in ("uint32", "uint64") and keras.backend.backend() != "jax"  # JAX has no int64 unless asked
    return ops.cast(x, "int64" if wide else "int32")


def static_shape(x: Any) -> Shape:
    """The shape of `x`, with None where it is not known before the graph runs."""
    return tuple(x.shape)


def fits(shape: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """True where the shapes can be equal; None stands for any size."""
    return len(shape) == len(other) and all(a == b or a is None or b is None for a, b in zip(shape, other, strict=True))


def mask_of(y_pred: Any) -> Any:
    """The mask that Keras' layers attached to `y_pred` (True = kept); None if there is none."""
    mask = get_keras_mask(y_pred)
    return None if mask is None else ops.cast(mask, "bool")


def by_row(x: Any, losses: Shape, name: str) -> Any:
    """`x`, a number per loss or per leading part of them (``[N]`` for losses ``[N, T]``), laid out like the losses."""
    given = static_shape(x)
    if len(given) == len(losses) + 1 and given[-1] == 1:
        x = ops.squeeze(x, -1)
    while len(x.shape) < len(losses):
        x = ops.expand_dims(x, -1)
    if len(x.shape) != len(losses) or not all(
        a in (1, None) or fits([a], [b]) for a, b in zip(static_shape(x), losses, strict=True)
    ):
        raise _checks.error(name, f"have the shape of the losses, {losses}, or begin like it", given)
    return x
