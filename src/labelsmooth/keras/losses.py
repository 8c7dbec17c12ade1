"""Cross-entropy with label smoothing in Keras' own operations."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np

from labelsmooth import _checks
from labelsmooth.keras import _arguments, _values
from labelsmooth.keras._arithmetic import classes_last, emptied, expectation, log, mean, times
from labelsmooth.keras._rows import RowLoss, Rows
from labelsmooth.keras._values import ops

_ARRAYS = ("weight", "prior", "class_prior", "class_mask")


@keras.saving.register_keras_serializable(package="labelsmooth")
class SmoothedCrossentropy(RowLoss):
    """Cross-entropy of smoothed targets: loss = -(1-ε) Σ_k q_k log p_k - ε Σ_k u_k log p_k, with p = softmax(logits).

    For `model.compile`, in the place of `keras.losses.CategoricalCrossentropy` (the same arguments, defaults and, for
    one-hot targets, numbers) and of `SparseCategoricalCrossentropy`, which has no smoothing. Shapes tell class ids and
    targets apart: `y_true` of the shape of `y_pred` is targets; without the class axis, or with size 1 there, it is
    class ids, and these are integers. (``[N, 1]`` for one class is targets, too.)

    Probabilities, where `from_logits` is False, are taken as given: the loss is that of the logits log p, so a row is
    divided by its sum, as Keras does. Nothing is clipped: where a target has mass on p = 0 the loss is +inf and the
    gradient of that class 0. (Below the smallest normal number, 1e-38 in float32, p counts as 0.) Keras clips p to
    [1e-7, 1 - 1e-7], which makes gradients 0 there, and on TensorFlow goes back to the logits of the last activation.
    Logits (``from_logits=True``, no softmax in the model) have neither trouble: prefer them. (A float16 softmax gives 0
    below 6e-8: under mixed precision its layer needs ``dtype="float32"``.)

    Args:
        from_logits: whether `y_pred` holds logits, or probabilities.
        label_smoothing: ε, in [0, 1).
        axis: the class axis of `y_pred`.
        reduction: of Keras. None or ``"none"``; ``"sum"``; ``"sum_over_batch_size"`` divides by the number of kept
            rows; ``"mean"`` by the sum of their class weights (the same, without `weight`); and
            ``"mean_with_sample_weight"`` by the sum of class weight times sample weight. Nothing kept gives 0.
        name: the loss's name.
        dtype: of the loss, ``"float32"`` or ``"float64"``; None: float64 for float64 predictions, else float32.
        weight: class weights, shape ``[K]``.
        weight_mode: ``"class"`` (w_k inside the sum, as PyTorch) or ``"example"`` (the row times Σ_k w_k q_k, as
            `class_weight` of `fit` does, and the optimum stays q').
        ignore_index: rows with this class id are not kept (Keras' `ignore_class`): loss 0 and gradient 0, whatever
            their logits hold. The same holds for rows that Keras' mask of `y_pred` leaves out.
        prior: u, shape ``[K]``; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y (``q @ class_prior`` for soft targets).
        class_mask: bool, ``[K]``; True = kept. Taken-out classes have no probability, and u is renormalised over the
            others.

    Called with:
        y_true: class ids ``[N]``, ``[N, 1]``, ``[N, d1, ...]`` of any integer dtype; or one-hot or soft targets.
        y_pred: ``[N, K]``, or ``[N, d1, ..., K]`` with K on `axis`; float16 and bfloat16 give a float32 loss.
        sample_weight: a weight per row, or per leading part of the rows (``[N]`` for losses ``[N, T]``).

    Raises:
        ValueError: an argument out of its range or of the wrong shape; `y_pred` that comes from a softmax or sigmoid
            with ``from_logits=True`` (JAX' arrays do not tell). Where values are at hand (eager, on the CPU): class ids
            out of range, targets that are negative or do not sum to 1, probabilities that are none, a masked true
            class, a row whose logits are all -inf. Where they are not, under `fit` in TensorFlow and JAX, a class id
            out of range, a target that is no distribution or a negative probability makes the loss nan.

    Warns:
        UserWarning: where values are at hand, of targets that look smoothed already and of logits that look like
            probabilities.

    References:
        Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, section 7.

    Example:
        >>> from labelsmooth.keras import SmoothedCrossentropy
        >>> loss = SmoothedCrossentropy(from_logits=True, label_smoothing=0.1)
        >>> round(float(loss([0], [[2.0, 0.0, 0.0]])), 4)
        0.3729
        >>> round(float(loss([[1.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]])), 4)
        0.3729
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "smoothed_crossentropy",
        dtype: Any = None,
        *,
        weight: Any = None,
        weight_mode: str = "class",
        ignore_index: int = -100,
        prior: Any = None,
        class_prior: Any = None,
        class_mask: Any = None,
    ) -> None:
        super().__init__(reduction, name, dtype)
        _arguments.flag(from_logits)
        _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
        self.from_logits = from_logits
        self.label_smoothing = _checks.smoothing(label_smoothing, "label_smoothing")
        self.axis = _checks.whole_number(axis, "axis")
        self.weight_mode = weight_mode
        self.ignore_index = _checks.whole_number(ignore_index, "ignore_index")
        self.weight = _arguments.class_array(weight, "weight")
        self.prior = _arguments.class_array(prior, "prior")
        self.class_prior = _arguments.class_array(class_prior, "class_prior", ndim=(2,))
        self.class_mask = _arguments.class_array(class_mask, "class_mask", boolean=True)
        self._check_priors()

    def _check_priors(self) -> None:
        _checks.one_prior(self.prior, self.class_prior)
        given, name = (self.prior, "prior") if self.class_prior is None else (self.class_prior, "class_prior")
        if given is not None:
            _checks.distribution(given, name, _checks.tolerance(given.dtype))
        mask = self.class_mask
        if mask is None:
            return
        if given is not None and given.shape[-1:] != mask.shape:
            raise _checks.error("class_mask", f"have shape {given.shape[-1:]}, as {name} has", mask.shape)
        mass = np.ones(mask.shape) if given is None else given if given.ndim == 1 else given[mask]
        if not (mass * mask).sum(axis=-1).all() or not mask.any():
            _checks.empty_prior()

    def rows(self, y_true: Any, y_pred: Any, *, hard: bool = False) -> Rows:
        """The loss of each row; with `hard` that of the class which has most of the target."""
        if self.from_logits:
            _arguments.refuse_activation(y_pred)
        mask = _values.mask_of(y_pred)
        y_pred, y_true = _values.tensor(y_pred, "y_pred"), _values.tensor(y_true, "y_true")
        shape = _values.static_shape(y_pred)
        axis, count = self._class_axis(shape)
        lead = shape[:axis] + shape[axis + 1 :]
        if mask is not None:
            mask = _values.by_row(mask, lead, "the mask of y_pred")
        y_true, labelled = _arguments.told_apart(y_true, shape, axis)
        y_pred = classes_last(y_pred, axis)
        if labelled:
            y_true = _values.as_ids(y_true)
            keep = y_true != self.ignore_index if mask is None else mask & (y_true != self.ignore_index)
        else:
            y_true, keep = classes_last(y_true, axis), mask
            if self.ignore_index >= 0:
                raise _checks.error("ignore_index", "be negative where y_true is no class ids", self.ignore_index)
        kept = None if keep is None else _values.at_hand(keep)
        if keep is None or kept is not None:
            self._check_values(y_true, y_pred, labelled, kept)
        if kept is not None and kept.all():
            keep = None

        dtype = _values.loss_dtype(y_pred, self.asked_dtype)
        log_p = self._log_p(ops.cast(y_pred, dtype), keep)
        if hard and not labelled:
            y_true, labelled = ops.argmax(y_true, -1), True
        if labelled:
            ids = ops.clip(y_true, 0, count - 1)
            losses, weight = self._losses(log_p, ids, None)
            losses = ops.where(ids == y_true, losses, math.nan)  # what is wrong is loud where it cannot be checked
        else:
            q = emptied(ops.cast(y_true, dtype), keep, 0)
            losses, weight = self._losses(log_p, None, q)
            off = ops.abs(ops.sum(q, -1) - 1.0)
            losses = ops.where((off <= _arguments.TARGET_TOLERANCE) & ops.all(q >= 0, -1), losses, math.nan)
        return Rows(losses if keep is None else ops.where(keep, losses, 0), keep, weight)

    def _class_axis(self, shape: _values.Shape) -> tuple[int, int]:
        """The class axis, counted from the front, and K."""
        if not -len(shape) <= self.axis < len(shape):
            raise _checks.error("axis", "be an axis of y_pred", f"{self.axis} for shape {shape}")
        axis = self.axis % len(shape)
        count = shape[axis]
        if not count:
            raise _checks.error("y_pred", "have a known number of classes, at least one", f"shape {shape}")
        if count == 1:
            message = "y_pred has one class, so its loss is always 0; SmoothedBinaryCrossentropy takes labels 0 and 1"
            warnings.warn(message, stacklevel=2)
        for name in _ARRAYS:
            array = getattr(self, name)
            if array is not None and array.shape[-1] != count:
                raise _checks.error(name, f"have shape {(count,) * array.ndim}", array.shape)
        return axis, count

    def _log_p(self, y_pred: Any, keep: Any) -> Any:
        """log p over the kept classes; rows that are not kept are emptied before anything is computed from them."""
        z = emptied(y_pred, keep, 0) if self.from_logits else log(emptied(y_pred, keep, 1))
        if self.class_mask is not None:
            z = ops.where(self.class_mask, z, -math.inf)
        return ops.log_softmax(z, axis=-1)

    def _losses(self, log_p: Any, ids: Any, q: Any) -> tuple[Any, Any]:
        """The loss of each row, and its class weight (None without weights)."""
        epsilon, count = self.label_smoothing, log_p.shape[-1]
        inside = self.weight if self.weight_mode == "class" else None
        w = row_weight = None if self.weight is None else ops.convert_to_tensor(self.weight, log_p.dtype)
        if ids is not None:
            loss = -ops.squeeze(ops.take_along_axis(log_p, ops.expand_dims(ids, -1), axis=-1), -1)
            if w is not None:
                row_weight = ops.take(w, ids)
                loss = loss if inside is None else times(row_weight, loss)
        else:
            loss = -expectation(q if inside is None else q * w, log_p)
            if w is not None:
                row_weight = ops.sum(q * w, -1)
        if epsilon > 0:
            u = self._prior_of(ids, q, count, log_p.dtype)
            if u is None and inside is None:
                towards_prior = -mean(log_p)
            else:
                u = 1.0 / count if u is None else u
                towards_prior = -expectation(u if inside is None else u * w, log_p)
            loss = (1.0 - epsilon) * loss + epsilon * towards_prior
        if row_weight is not None and inside is None:
            loss = times(row_weight, loss)
        return loss, row_weight

    def _prior_of(self, ids: Any, q: Any, count: int, dtype: Any) -> Any:
        """u, ``[K]`` or a row for each row of the batch; None where it is uniform over all classes."""
        mask = self.class_mask
        if self.class_prior is None:
            if self.prior is None and mask is None:
                return None
            u = np.ones(count) if self.prior is None else self.prior.astype(np.float64)
            return ops.convert_to_tensor(u if mask is None else u * mask / (u * mask).sum(), dtype)
        table = ops.convert_to_tensor(self.class_prior if mask is None else self.class_prior * mask, dtype)
        u = ops.take(table, ids, axis=0) if q is None else ops.einsum("...j,jk->...k", q, table)
        if mask is None:
            return u
        total = ops.sum(u, -1, keepdims=True)  # 0 in rows that are not kept
        return u / ops.where(total == 0, 1, total)

    def _check_values(self, y_true: Any, y_pred: Any, labelled: bool, kept: np.ndarray | None) -> None:
        """Check what is at hand; `y_true` and `y_pred` have their classes last, and `kept` are the rows that count."""
        count = y_pred.shape[-1]
        out = np.zeros(count, bool) if self.class_mask is None else ~self.class_mask
        target = _values.at_hand(y_true)
        if target is not None:
            shape = target.shape if labelled else target.shape[:-1]
            rows = np.ones(shape, bool) if kept is None else np.broadcast_to(kept, shape)
            if labelled:
                ids = np.where(rows, target, 0)
                _checks.label_range(ids, count, "y_true")
                _checks.no_target_on_masked(rows & out[ids])
            else:
                _checks.distribution(target, "y_true", _arguments.TARGET_TOLERANCE, rows)
                _checks.smoothed_twice(target[rows], self.label_smoothing, "y_true")
                _checks.no_target_on_masked(np.where(rows, (target * out).sum(axis=-1), 0))
        predicted = _values.at_hand(y_pred)
        if predicted is None:
            return
        shape = predicted.shape[:-1]
        rows = np.ones(shape, bool) if kept is None else np.broadcast_to(kept, shape)
        if self.from_logits:
            _arguments.check_logits(predicted[rows], out)
        else:
            rows = rows & ~np.isnan(predicted).any(axis=-1)  # what has diverged gives nan, as with logits
            tolerance = max(_checks.tolerance(ops.dtype(y_pred)), _arguments.PROBABILITY_TOLERANCE)
            _checks.distribution(predicted, "y_pred, with from_logits=False,", tolerance, rows)

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, of plain types."""
        plain = ("from_logits", "label_smoothing", "axis", "weight_mode", "ignore_index")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in plain},
            **{name: keras.saving.serialize_keras_object(getattr(self, name)) for name in _ARRAYS},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SmoothedCrossentropy:
        """The loss whose `get_config` gave `config`."""
        arrays = {name: keras.saving.deserialize_keras_object(config[name]) for name in _ARRAYS if name in config}
        return cls(**{**config, **arrays})
