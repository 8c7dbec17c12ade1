"""Argument checks. Every message has one form: ``NAME must RULE; got VALUE``."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

# How far from 1 the sum of a row of targets (or a prior) may be, by the dtype that it came in.
SUM_TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}

FEW_ROWS = 16  # tell whether targets are smoothed already

REDUCTIONS = ("none", "sum", "mean")
WEIGHT_MODES = ("class", "example")


def error(name: str, rule: str, value: object) -> ValueError:
    """The one form of an error message."""
    return ValueError(f"{name} must {rule}; got {value}")


def number(value: Any, name: str, rule: str) -> float:
    """`value` as a float; strings, booleans and arrays of more than one element are refused."""
    if isinstance(value, (str, bytes, bool)):
        raise error(name, rule, repr(value))
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise error(name, rule, repr(value)) from None


def smoothing(value: Any, name: str = "smoothing") -> float:
    rule = "be a number in [0, 1)"
    epsilon = number(value, name, rule)
    if not 0.0 <= epsilon < 1.0:
        raise error(name, rule, value)
    return epsilon


def whole_number(value: Any, name: str, rule: str = "be a whole number") -> int:
    """`value` as an int, which fits into 64 bits; floats and booleans are refused."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise error(name, rule, repr(value)) from None
    if isinstance(value, bool):
        raise error(name, rule, value)
    if not -(2**63) <= whole < 2**63:
        raise error(name, f"{rule} of 64 bits", value)
    return whole


def class_count(value: Any, name: str = "num_classes", least: int = 1, most: int | None = None) -> int:
    rule = f"be a whole number of at least {least}" if most is None else f"be a whole number from {least} to {most}"
    count = number(value, name, rule)
    if not (least <= count < math.inf and count == int(count)) or (most is not None and count > most):
        raise error(name, rule, value)
    return int(value if isinstance(value, (int, np.integer)) else count)  # a float holds whole numbers up to 2^53 alone


def image_size(value: Any) -> int:
    """Height and width in pixels; beyond, a few images would fill the memory."""
    return class_count(value, "image_size", least=4, most=4096)


def one_of(value: Any, name: str, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise error(name, f"be one of {', '.join(map(repr, choices))}", repr(value))


def normalizer(value: Any, reduction: str, *, at_hand: bool = True) -> None:
    """A `normalizer` belongs to ``reduction="mean"``; it is a scalar, finite and not negative where it is `at_hand`."""
    if value is None:
        return
    if reduction != "mean":
        raise error("normalizer", "be None unless reduction is 'mean'", f"reduction={reduction!r}")
    rule = "be a number that is finite and not negative"
    if not isinstance(value, (int, float)):
        if tuple(getattr(value, "shape", ())) != ():
            raise error("normalizer", rule, f"shape {tuple(value.shape)}")
        if not at_hand:
            return
        value = number(value, "normalizer", rule)
    if not 0 <= value < math.inf:
        raise error("normalizer", rule, value)


def one_prior(prior: object, class_prior: object) -> None:
    if prior is not None and class_prior is not None:
        raise error("prior", "be None where class_prior is given", "both")


def is_float(dtype: np.dtype) -> bool:
    """True for NumPy's floats and for the bfloat16 that ml_dtypes adds to them."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def tolerance(dtype: object) -> float:
    """The tolerance for a sum of 1 in a dtype of any framework (``torch.float16`` and ``float16`` alike)."""
    return SUM_TOLERANCE.get(str(dtype).rpartition(".")[2], SUM_TOLERANCE["float64"])


def label_range(labels: np.ndarray, num_classes: int, name: str = "labels") -> None:
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < num_classes):
        return
    bad = np.argwhere((labels < 0) | (labels >= num_classes))[0]
    where = f" at index {_index(bad)}" if labels.ndim else ""
    raise error(name, f"be class ids in 0..{num_classes - 1}", f"{labels[tuple(bad)]}{where}")


def distribution(rows: np.ndarray, name: str, tol: float, keep: np.ndarray | None = None) -> None:
    """`rows`, shape ``[..., K]``, are not negative and sum to 1, but for those that `keep` leaves out."""
    if keep is not None:
        rows = np.where(keep[..., None], rows, 1.0 / rows.shape[-1])
    rule = "be non-negative and sum to 1 over the classes"
    sums = rows.sum(axis=-1, dtype=np.float64)
    if rows.size and not rows.min() >= 0:
        bad = np.argwhere(~(rows >= 0))[0]
        raise error(name, rule, f"{rows[tuple(bad)]} at index {_index(bad)}")
    wrong = ~(np.abs(sums - 1.0) <= tol)
    if wrong.any():
        bad = np.argwhere(wrong)[0]
        where = f" in row {_index(bad)}" if sums.ndim else ""
        raise error(name, rule, f"a sum of {sums[tuple(bad)]:.6g}{where}")


def smoothed_twice(rows: np.ndarray, epsilon: float, name: str) -> None:
    """Warn where the first `rows` ``[n, K]`` of targets look like smoothed labels, and a loss smooths them by ε again.

    They do where all have the same two values, one of them once in each row. A row alone may be so by chance.
    """
    rows = rows[:FEW_ROWS]
    if epsilon == 0 or len(rows) < 2 or rows.shape[-1] < 2:
        return
    low, high = float(rows[0].min()), float(rows[0].max())
    once = (rows == high).sum(axis=-1) == 1
    if not 0 < low < high or not once.all() or not ((rows == low) | (rows == high)).all():
        return
    already = rows.shape[-1] * low
    both = 1 - (1 - already) * (1 - epsilon)
    warnings.warn(
        f"{name} looks like labels that are smoothed already, by {already:.3g}, and label_smoothing={epsilon:g} "
        f"smooths them again, to {both:.3g}; give the labels as they are, or label_smoothing=0",
        stacklevel=4,
    )


def no_target_on_masked(mass: np.ndarray) -> None:
    """`mass`, shape ``[...]``: the target's mass on classes that `class_mask` takes out."""
    if (mass > 0).any():
        bad = np.argwhere(mass > 0)[0]
        where = f" in row {_index(bad)}" if mass.ndim else ""
        raise error("class_mask", "keep the true class of every kept row", f"a masked true class{where}")


def empty_row(name: str = "input") -> ValueError:
    return error(name, "have a finite value in every kept row", "a row that is -inf in all its classes")


def empty_prior() -> None:
    rule = "keep a class that the prior gives mass to, in every kept row"
    raise error("class_mask", rule, "a prior of 0 on all kept classes")


def _index(position: np.ndarray) -> str:
    return ", ".join(map(str, position.tolist()))
