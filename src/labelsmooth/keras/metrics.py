"""A metric that is never smoothed: `fit` reports the smoothed loss of the validation data too, as ``val_loss``."""

from __future__ import annotations

from typing import Any

import keras

from labelsmooth.keras._rows import row_weights
from labelsmooth.keras._values import ops
from labelsmooth.keras.losses import SmoothedCrossentropy


@keras.saving.register_keras_serializable(package="labelsmooth")
class NLL(keras.metrics.Mean):
    """Negative log-likelihood of the hard labels: the mean of -log p_y over the kept rows.

    With ``metrics=[NLL()]`` in `model.compile`, `fit` reports it as ``nll`` and ``val_nll``. One-hot, soft and smoothed
    targets count as the class that has most of their mass (the first of equals), so that it can stand beside smoothed
    targets as well. Where nothing is kept it is 0.

    Args:
        from_logits: whether `y_pred` holds logits, or probabilities.
        axis: the class axis of `y_pred`.
        ignore_index: rows with this class id are not kept.
        class_mask: bool, ``[K]``; True = kept. Taken-out classes have no probability.
        name: the metric's name in logs and histories.
        dtype: of the sums and the result; None: Keras' floatx.

    Raises:
        ValueError: as `SmoothedCrossentropy`.

    Example:
        >>> from labelsmooth.keras import NLL
        >>> metric = NLL(from_logits=True)
        >>> metric.update_state([0, 1], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> round(float(metric.result()), 4)
        0.6691
    """

    def __init__(
        self,
        from_logits: bool = False,
        axis: int = -1,
        ignore_index: int = -100,
        class_mask: Any = None,
        name: str = "nll",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.loss = SmoothedCrossentropy(
            from_logits, axis=axis, reduction=None, ignore_index=ignore_index, class_mask=class_mask
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # pyright: ignore
        """Take in a batch; arguments as those of `SmoothedCrossentropy`."""
        rows = self.loss.rows(y_true, y_pred, hard=True)
        weights = rows.counts()
        if sample_weight is not None:
            weights = weights * row_weights(sample_weight, rows.losses)
        # Flat, so that every kept row counts the same, however many of its example are kept.
        losses = ops.where(weights == 0, 0, rows.losses)
        super().update_state(ops.reshape(losses, [-1]), ops.reshape(weights, [-1]))

    def get_config(self) -> dict[str, Any]:
        taken = ("from_logits", "axis", "ignore_index", "class_mask")
        config = self.loss.get_config()
        return {**super().get_config(), **{name: config[name] for name in taken}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NLL:
        return cls(**{**config, "class_mask": keras.saving.deserialize_keras_object(config["class_mask"])})
