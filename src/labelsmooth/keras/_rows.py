"""What the losses share: a loss for each row, in a dtype that fits, and the reductions of Keras over the kept rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from labelsmooth import _checks
from labelsmooth.keras import _values
from labelsmooth.keras._arithmetic import times
from labelsmooth.keras._values import ops

_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Rows:
    """The loss of each row, 0 where it is not kept; which rows are (None: all); and their class weights, if any."""

    losses: Any
    keep: Any = None
    weight: Any = None

    def counts(self, *, weighted: bool = False) -> Any:
        """1 for each kept row, or its class weight, and 0 for the others."""
        counts = ops.ones_like(self.losses)
        if weighted and self.weight is not None:
            counts = self.weight
        return counts if self.keep is None else ops.where(self.keep, counts, 0)


class RowLoss(keras.losses.Loss):
    """A Keras loss that leaves dtypes alone: Keras' own casts labels and predictions to float32 before anything else.

    A subclass gives `rows`. What is not kept counts neither in the sum nor in what it is divided by.
    """

    def __init__(self, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)  # pyright: ignore (None is a reduction)
        self.asked_dtype = None if dtype is None else self.dtype
        if self.asked_dtype not in (None, *_DTYPES):
            raise _checks.error("dtype", "be None, 'float32' or 'float64'", repr(self.asked_dtype))

    def rows(self, y_true: Any, y_pred: Any) -> Rows:
        raise NotImplementedError

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each row, not reduced."""
        return self.rows(y_true, y_pred).losses

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of `y_pred` and `y_true`, weighted by `sample_weight` and reduced."""
        with keras.name_scope(self.name):
            return reduced(self.rows(y_true, y_pred), sample_weight, self.reduction)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.asked_dtype}


def row_weights(sample_weight: Any, losses: Any) -> Any:
    """`sample_weight` laid out like the losses, in their dtype."""
    weights = _values.tensor(sample_weight, "sample_weight")
    return ops.cast(_values.by_row(weights, _values.static_shape(losses), "sample_weight"), losses.dtype)


def reduced(rows: Rows, sample_weight: Any, reduction: str | None) -> Any:
    losses = rows.losses
    weights = None if sample_weight is None else row_weights(sample_weight, losses)
    if weights is not None:
        losses = times(weights, losses)  # a weight of 0 takes a loss of inf out, too
    if reduction in (None, "none"):
        return losses
    total = ops.sum(losses)
    if reduction == "sum":
        return total
    counts = rows.counts(weighted=reduction != "sum_over_batch_size")
    if reduction == "mean_with_sample_weight" and weights is not None:
        counts = counts * weights
    divisor = ops.sum(counts)
    nothing = divisor == 0
    return _per_replica(ops.where(nothing, 0, total) / ops.where(nothing, 1, divisor))


def _per_replica(mean: Any) -> Any:
    """`mean`, divided by the number of replicas: TensorFlow's `tf.distribute` sums what they give, as Keras expects."""
    if keras.backend.backend() != "tensorflow":
        return mean
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return mean / replicas if replicas > 1 else mean
