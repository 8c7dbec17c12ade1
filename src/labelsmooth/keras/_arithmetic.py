"""The operations that the losses are made of, where 0·inf is 0 and no gradient is nan."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from labelsmooth.keras._values import ops


def classes_last(x: Any, axis: int) -> Any:
    return x if axis == len(x.shape) - 1 else ops.moveaxis(x, axis, -1)


def emptied(x: Any, keep: Any, fill: float) -> Any:
    """`x`, classes last, with `fill` in the rows that are not kept."""
    return x if keep is None else ops.where(ops.expand_dims(keep, -1), x, fill)


def log(p: Any) -> Any:
    """log p; -inf, with gradient 0, where p is 0 or so small that 1/p overflows. Negative p gives nan."""
    none = (p >= 0) & (p < float(np.finfo(ops.dtype(p)).tiny))
    return ops.where(none, -math.inf, ops.log(ops.where(none, 1, p)))


def times(weights: Any, x: Any) -> Any:
    """Their product, where 0·inf is 0."""
    return weights * ops.where(weights == 0, 0, x)


def mean(x: Any) -> Any:
    """The mean over the last axis; `ops.mean` gives float64 only float32's precision on PyTorch."""
    return ops.sum(x, -1) / ops.cast(ops.shape(x)[-1], x.dtype)


def expectation(weights: Any, log_p: Any) -> Any:
    return ops.sum(times(weights, log_p), -1)
