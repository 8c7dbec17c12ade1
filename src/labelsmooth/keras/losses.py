"""Cross-entropy with label smoothing in Keras' own operations, and its binary form."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from labelsmooth import _arrays, _checks, _prior
from labelsmooth.keras import _values
from labelsmooth.keras._rows import RowLoss, Rows

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
    Logits (``from_logits=True``, no softmax in the model) have neither trouble: prefer them.

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
            with ``from_logits=True``. Where values are at hand (eager, on the CPU): class ids out of range, targets
            that are negative or do not sum to 1, probabilities that are none, a masked true class, a row whose logits
            are all -inf. Where they are not, under `fit` in TensorFlow and JAX, a class id out of range or a negative
            probability makes the loss nan.

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
        _check_flag(from_logits)
        _check_whole(axis, "axis")
        _check_whole(ignore_index, "ignore_index")
        _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
        self.from_logits = from_logits
        self.label_smoothing = _checks.smoothing(label_smoothing, "label_smoothing")
        self.axis = axis
        self.weight_mode = weight_mode
        self.ignore_index = ignore_index
        self.weight = _read(weight, "weight")
        self.prior = _read(prior, "prior")
        self.class_prior = _read(class_prior, "class_prior", ndim=(2,))
        self.class_mask = _read(class_mask, "class_mask", boolean=True)
        self._towards_prior = self._resolved_prior()

    def _resolved_prior(self) -> np.ndarray | None:
        """ε u as ``[K]``, or ``[K, K]`` with a row per true class; None where it is ε/K. Float64."""
        _checks.one_prior(self.prior, self.class_prior)
        given, name = (self.prior, "prior") if self.class_prior is None else (self.class_prior, "class_prior")
        if given is not None:
            _checks.distribution(given, name, _checks.tolerance(given.dtype))
        mask = self.class_mask
        if given is None and mask is None:
            return None
        if given is not None and mask is not None and given.shape[-1:] != mask.shape:
            raise _checks.error("class_mask", f"have shape {given.shape[-1:]}, as {name} has", mask.shape)
        if mask is not None:
            mass = np.ones(mask.shape) if given is None else given if given.ndim == 1 else given[mask]
            if not (mass * mask).sum(axis=-1).all():
                _checks.empty_prior()
        base = np.ones(mask.shape if mask is not None else ()) if given is None else given.astype(np.float64)
        prior = _prior.Prior(base, mask, base.ndim == 2, given is None)
        return prior.table(self.label_smoothing) if base.ndim == 2 else prior.vector(self.label_smoothing)

    def rows(self, y_true: Any, y_pred: Any, *, hard: bool = False) -> Rows:
        """The loss of each row; with `hard` that of the class which has most of the target."""
        if self.from_logits:
            _refuse_activation(y_pred)
        mask, y_pred, y_true = _values.mask_of(y_pred), ops.convert_to_tensor(y_pred), ops.convert_to_tensor(y_true)
        shape = _values.static_shape(y_pred)
        axis, count = self._class_axis(shape)
        lead = shape[:axis] + shape[axis + 1 :]
        if mask is not None:
            mask = _values.by_row(mask, lead, "the mask of y_pred")
        y_true, labelled = _told_apart(y_true, shape, axis)
        y_pred = _classes_last(y_pred, axis)
        if labelled:
            y_true = _values.as_ids(y_true)
            keep = y_true != self.ignore_index if mask is None else mask & (y_true != self.ignore_index)
        else:
            y_true, keep = _classes_last(y_true, axis), mask
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
            losses = ops.where(ids == y_true, losses, math.nan)  # out of range is loud where it cannot be checked
        else:
            losses, weight = self._losses(log_p, None, _emptied(ops.cast(y_true, dtype), keep, 0))
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
        if self.from_logits:
            z = _emptied(y_pred, keep, 0)
        else:
            z = _log(_emptied(y_pred, keep, 1))
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
                loss = loss if inside is None else _times(row_weight, loss)
        else:
            loss = -_expectation(q if inside is None else q * w, log_p)
            if w is not None:
                row_weight = ops.sum(q * w, -1)
        if epsilon > 0:
            u = self._towards_prior
            if u is None and inside is None:
                towards_prior = -epsilon * ops.mean(log_p, -1)
            else:
                u = np.full(count, epsilon / count) if u is None else u
                u = ops.convert_to_tensor(u if inside is None else u * inside, log_p.dtype)
                if len(u.shape) == 2:
                    u = ops.take(u, ids, axis=0) if q is None else ops.matmul(q, u)
                towards_prior = -_expectation(u, log_p)
            loss = (1.0 - epsilon) * loss + towards_prior
        if row_weight is not None and inside is None:
            loss = _times(row_weight, loss)
        return loss, row_weight

    def _check_values(self, y_true: Any, y_pred: Any, labelled: bool, kept: np.ndarray | None) -> None:
        """Check what is at hand; `y_true` and `y_pred` have their classes last, and `kept` are the rows that count."""
        target, predicted = _values.at_hand(y_true), _values.at_hand(y_pred)
        if predicted is None:
            return
        count = predicted.shape[-1]
        kept = np.ones(predicted.shape[:-1], bool) if kept is None else np.broadcast_to(kept, predicted.shape[:-1])
        out = np.zeros(count, bool) if self.class_mask is None else ~self.class_mask
        if target is not None and labelled:
            ids = np.where(kept, target, 0)
            _checks.label_range(ids, count, "y_true")
            _checks.no_target_on_masked(kept & out[ids])
        elif target is not None:
            _checks.distribution(target, "y_true", _checks.tolerance(ops.dtype(y_true)), kept)
            _checks.no_target_on_masked(np.where(kept, (target * out).sum(axis=-1), 0))
        if self.from_logits:
            _check_logits(predicted[kept], out)
        else:
            kept = kept & ~np.isnan(predicted).any(axis=-1)  # what has diverged gives nan, as with logits
            tolerance = max(_checks.tolerance(ops.dtype(y_pred)), _PROBABILITY_TOLERANCE)
            _checks.distribution(predicted, "y_pred, with from_logits=False,", tolerance, kept)

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


@keras.saving.register_keras_serializable(package="labelsmooth")
class SmoothedBinaryCrossentropy(RowLoss):
    """Binary cross-entropy of smoothed labels: loss = -y' log p - (1-y') log(1-p), with y' = (1-ε) y + ε u.

    For `model.compile`, in the place of `keras.losses.BinaryCrossentropy`: the same arguments, defaults and numbers, u =
    1/2 unless a prior is given. Several labels per row are averaged. Nothing is clipped: p = 0 (or below the smallest
    normal number, 1e-38 in float32) where y' > 0, and p = 1 where y' < 1, have loss +inf and gradient 0; Keras clips p
    to [1e-7, 1 - 1e-7]. With ``from_logits=True`` neither happens.

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
            [0, 1].

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
        _check_flag(from_logits)
        _check_whole(axis, "axis")
        self.from_logits = from_logits
        self.label_smoothing = _checks.smoothing(label_smoothing, "label_smoothing")
        self.axis = axis
        self.prior = None if prior is None else _read(prior, "prior", ndim=(0, 1))
        if self.prior is not None and not ((self.prior >= 0) & (self.prior <= 1)).all():
            raise _checks.error("prior", "hold probabilities in [0, 1]", self.prior)

    def rows(self, y_true: Any, y_pred: Any) -> Rows:
        """The mean loss of each row."""
        if self.from_logits:
            _refuse_activation(y_pred)
        mask, y_pred, y_true = _values.mask_of(y_pred), ops.convert_to_tensor(y_pred), ops.convert_to_tensor(y_true)
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
        y_pred, y_true = _classes_last(y_pred, axis), _classes_last(y_true, axis)
        epsilon = self.label_smoothing
        y = (1.0 - epsilon) * ops.cast(y_true, dtype) + ops.convert_to_tensor(np.multiply(epsilon, u), dtype)
        lead = shape[:axis] + shape[axis + 1 :]
        keep = None if mask is None else _values.by_row(mask, lead, "the mask of y_pred")
        x = _emptied(ops.cast(y_pred, dtype), keep, 0.5)
        if self.from_logits:
            log_p, log_not_p = ops.log_sigmoid(x), ops.log_sigmoid(-x)
        else:
            log_p, log_not_p = _log(x), _log(1.0 - x)
        losses = -ops.mean(_times(y, log_p) + _times(1.0 - y, log_not_p), -1)
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


_PROBABILITY_TOLERANCE = 1e-3  # a row of probabilities may have come through a softmax over many classes


def _check_flag(from_logits: Any) -> None:
    if not isinstance(from_logits, bool):
        raise _checks.error("from_logits", "be True or False", repr(from_logits))


def _check_whole(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _checks.error(name, "be a whole number", repr(value))


def _read(x: Any, name: str, *, ndim: tuple[int, ...] = (1,), boolean: bool = False) -> np.ndarray | None:
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


def _told_apart(y_true: Any, shape: _values.Shape, axis: int) -> tuple[Any, bool]:
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


def _classes_last(x: Any, axis: int) -> Any:
    return x if axis == len(x.shape) - 1 else ops.moveaxis(x, axis, -1)


def _emptied(x: Any, keep: Any, fill: float) -> Any:
    """`x`, classes last, with `fill` in the rows that are not kept."""
    return x if keep is None else ops.where(ops.expand_dims(keep, -1), x, fill)


def _log(p: Any) -> Any:
    """log p; -inf, with gradient 0, where p is 0 or so small that 1/p overflows. Negative p gives nan."""
    none = (p >= 0) & (p < float(np.finfo(ops.dtype(p)).tiny))
    return ops.where(none, -math.inf, ops.log(ops.where(none, 1, p)))


def _times(weights: Any, x: Any) -> Any:
    """Their product, where 0·inf is 0."""
    return weights * ops.where(weights == 0, 0, x)


def _expectation(weights: Any, log_p: Any) -> Any:
    return ops.sum(_times(weights, log_p), -1)


def _refuse_activation(y_pred: Any) -> None:
    """Keras' softmax and sigmoid leave their logits at what they give, where tensors can have attributes."""
    if hasattr(y_pred, "_keras_logits"):
        rule = "be logits where from_logits=True (take the last activation away, or say from_logits=False)"
        raise _checks.error("y_pred", rule, "the result of a softmax or sigmoid")


def _check_logits(rows: np.ndarray, out: np.ndarray) -> None:
    """`rows`, the kept ones ``[n, K]``, are no distributions, and none is -inf in all classes but those that are `out`."""
    if np.isneginf(np.where(out, -np.inf, rows)).all(axis=-1).any():
        raise _checks.error("y_pred", "have a finite value in every kept row", "a row that is -inf in all its classes")
    # One row, or rows of 0 and 1, may be so by chance.
    if len(rows) < 2 or not rows.min() >= 0 or np.isin(rows, (0, 1)).all():
        return
    if np.allclose(rows.sum(axis=-1, dtype=np.float64), 1, rtol=0, atol=_checks.tolerance(rows.dtype)):
        warnings.warn(
            "y_pred looks like probabilities: every row is non-negative and sums to 1; from_logits=True takes logits",
            stacklevel=2,
        )
