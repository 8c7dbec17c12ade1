"""Binary cross-entropy with label smoothing, for one label per row or several."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from labelsmooth import _checks
from labelsmooth.keras import _arguments, _values
from labelsmooth.keras._arithmetic import classes_last, emptied, log, mean, times
from labelsmooth.keras._rows import RowLoss, Rows
from labelsmooth.keras._values import ops


@keras.saving.register_keras_serializable(package="labelsmooth")
class SmoothedBinaryCrossentropy(RowLoss):
    """Binary cross-entropy of smoothed labels: loss = -y' log p - (1-y') log(1-p), with y' = (1-ε) y + ε u.

    For `model.compile`, in the place of `keras.losses.BinaryCrossentropy`: the same arguments, defaults and numbers
    (u = 1/2 unless a prior is given); the labels of a row are averaged. Nothing is clipped: p = 0 (or below the
    smallest normal number, 1e-38 in float32) where y' > 0, and p = 1 where y' < 1, have loss +inf and gradient 0; Keras
    clips p to [1e-7, 1 - 1e-7]. With ``from_logits=True`` neither happens.

    Args:
        from_logits: whether `y_pred` holds logits, or probabilities.
        label_smoothing: ε, in [0, 1). The distance between the two smoothed labels is 1-ε, so that ε here is what ε is
            in `SmoothedCrossentropy` with two classes.
        axis: the axis of the labels of a row, over which the loss is averaged.
        reduction: of Keras, as in `SmoothedCrossentropy`.
        name: the loss's name.
        dtype: of the loss, ``"float32"`` or ``"float64"``; None: float64 for float64 predictions, else float32.
        prior: u, the probability of 1, in [0, 1]: a number, or one per label, shape ``[K]``; 1/2 if None.

    Called with:
        y_true: labels 0 and 1 of any dtype, or probabilities of 1, of the shape of `y_pred`; ``[N]`` and ``[N, 1]``
            go together.
        y_pred: ``[N]``, ``[N, K]``, ``[N, d1, ..., K]``; float16 and bfloat16 give a float32 loss.
        sample_weight: a weight per row, or per leading part of the rows.

    Raises:
        ValueError: an argument out of its range or of the wrong shape; `y_pred` that comes from a softmax or sigmoid
            with ``from_logits=True``; and where values are at hand (eager, on the CPU) labels or probabilities outside
            [0, 1]. Where they are not, such labels and probabilities make the loss nan.

    Example:
        >>> from labelsmooth.keras import SmoothedBinaryCrossentropy
        >>> loss = SmoothedBinaryCrossentropy(from_logits=True, label_smoothing=0.1)
        >>> round(float(loss([[1, 0]], [[2.0, -1.0]])), 4)
        0.2951
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "smoothed_binary_crossentropy",
        dtype: Any = None,
        *,
        prior: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        _arguments.flag(from_logits)
        self.from_logits = from_logits
        self.label_smoothing = _checks.smoothing(label_smoothing, "label_smoothing")
        self.axis = _checks.whole_number(axis, "axis")
        self.prior = None if prior is None else _arguments.class_array(prior, "prior", ndim=(0, 1))
        if self.prior is not None and not ((self.prior >= 0) & (self.prior <= 1)).all():
            raise _checks.error("prior", "hold probabilities in [0, 1]", self.prior)

    def rows(self, y_true: Any, y_pred: Any) -> Rows:
        """The mean loss of each row."""
        if self.from_logits:
            _arguments.refuse_activation(y_pred)
        mask = _values.mask_of(y_pred)
        y_pred, y_true = _values.tensor(y_pred, "y_pred"), _values.tensor(y_true, "y_true")
        given = _values.static_shape(y_true), _values.static_shape(y_pred)
        if len(given[0]) + 1 == len(given[1]) and given[1][-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        elif len(given[0]) == len(given[1]) + 1 and given[0][-1] == 1:
            y_true = ops.squeeze(y_true, -1)
        shape = _values.static_shape(y_pred)
        if not _values.fits(_values.static_shape(y_true), shape):
            raise _checks.error("y_true", f"have the shape of y_pred, {shape}", given[0])
        if not -len(shape) <= self.axis < len(shape):
            raise _checks.error("axis", "be an axis of y_pred", f"{self.axis} for shape {shape}")
        axis = self.axis % len(shape)
        u = 0.5 if self.prior is None else self.prior
        if np.ndim(u) and not _values.fits(np.shape(u), shape[axis : axis + 1]):
            raise _checks.error("prior", f"have shape () or {shape[axis : axis + 1]}", np.shape(u))
        self._check_values(y_true, y_pred)

        dtype = _values.loss_dtype(y_pred, self.asked_dtype)
        y_pred, y_true = classes_last(y_pred, axis), classes_last(y_true, axis)
        epsilon = self.label_smoothing
        y_true = ops.cast(y_true, dtype)
        y = (1.0 - epsilon) * y_true + ops.convert_to_tensor(np.multiply(epsilon, u), dtype)
        lead = shape[:axis] + shape[axis + 1 :]
        keep = None if mask is None else _values.by_row(mask, lead, "the mask of y_pred")
        x = emptied(ops.cast(y_pred, dtype), keep, 0.5)
        if self.from_logits:
            log_p, log_not_p = ops.log_sigmoid(x), ops.log_sigmoid(-x)
        else:
            log_p, log_not_p = log(x), log(1.0 - x)
        losses = -mean(times(y, log_p) + times(1.0 - y, log_not_p))
        # What is wrong is loud where it cannot be checked.
        losses = ops.where(ops.all((y_true >= 0) & (y_true <= 1), -1), losses, math.nan)
        return Rows(losses if keep is None else ops.where(keep, losses, 0), keep)

    def _check_values(self, y_true: Any, y_pred: Any) -> None:
        inputs = [("y_true", y_true)]
        if not self.from_logits:
            inputs.append(("y_pred, with from_logits=False,", y_pred))
        for name, x in inputs:
            values = _values.at_hand(x)
            if values is None:
                continue
            wrong = (values < 0) | (values > 1)
            if wrong.any():
                bad = tuple(np.argwhere(wrong)[0].tolist())
                raise _checks.error(name, "be in [0, 1]", f"{values[bad]} at index {', '.join(map(str, bad))}")

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, of plain types."""
        plain = {name: getattr(self, name) for name in ("from_logits", "label_smoothing", "axis")}
        return {**super().get_config(), **plain, "prior": None if self.prior is None else self.prior.tolist()}
