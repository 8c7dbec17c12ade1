"""The table of cases: every choice beside every other at least once, and the corners by name. NumPy alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

INF = float("inf")
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float64", "float32", "bfloat16", "float16")}
EPS = {"float64": 2**-52, "float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}

CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "prior": ("uniform", "prior", "prior rows", "class_prior"),
    "weight_mode": (None, "class", "example"),
    "target": ("labels", "one-hot", "soft"),
    "reduction": ("none", "sum", "mean"),
    "masked": (False, True),
    "class_mask": (None, "classes", "rows"),
    "smoothing": (0.0, 0.1),
    "shape": ((5, 7), (3, 4, 2, 2)),
}

_PRODUCT = ("prior", "weight_mode", "target", "reduction")


@dataclass(frozen=True, eq=False)
class Case:
    """The arguments of a loss in NumPy's arrays; `logits` have the classes on `axis`."""

    name: str
    logits: np.ndarray
    target: np.ndarray
    label_smoothing: float = 0.1
    reduction: str = "mean"
    weight_mode: str = "class"
    ignore_index: int = -100
    axis: int = -1
    normalizer: float | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # weight, prior, class_prior, mask, class_mask
    choices: dict[str, Any] = field(default_factory=dict)  # what a case of the table was built from

    @property
    def dtype(self) -> str:
        return self.logits.dtype.name

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords that hold no arrays, alike in NumPy, PyTorch and JAX (which have an `axis`, or not)."""
        names = ("label_smoothing", "reduction", "weight_mode", "ignore_index", "normalizer")
        return {name: getattr(self, name) for name in names}

    @property
    def fits_keras(self) -> bool:
        """A Keras loss is built once for all batches: it takes nothing that has a row per example, and no normalizer.

        It keeps bfloat16 arrays as float32, which a saved loss can hold, and asks for float32's sum of 1.
        """
        by_row = any(np.ndim(self.arrays.get(name)) > 1 for name in ("prior", "class_mask"))
        half = any(
            self.arrays[name].dtype.name == "bfloat16" for name in ("prior", "class_prior") if name in self.arrays
        )
        return self.logits.ndim > 1 and self.normalizer is None and not by_row and not half

    def __str__(self) -> str:
        return self.name


def build(seed: int, **choices: Any) -> Case:
    """A random case of these choices, one of each of CHOICES. Rows that are not kept hold nan or inf wherever they can."""
    dtype, prior, weight_mode, target, reduction, masked, class_mask, smoothing, shape = (choices[x] for x in CHOICES)
    rng = np.random.default_rng(seed)
    axis = 0 if len(shape) == 1 else 1
    lead, count = shape[:axis] + shape[axis + 1 :], shape[axis]

    def classes_on_axis(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, -1, axis)

    kept_classes = np.ones((*lead, count), bool)
    if class_mask == "classes":
        classes = np.arange(count) < max(1, count - 1)
        kept_classes &= classes
    elif class_mask == "rows":
        kept_classes = rng.random((*lead, count)) < 0.6
        kept_classes[..., 0] = True
    labels = (rng.random((*lead, count)) * kept_classes).argmax(-1)
    keep = np.asarray(rng.random(lead) < 0.6 if masked else np.ones(lead, bool))
    poison = (np.nan, INF, -INF)[seed % 3]

    logits = np.where(keep[..., None], rng.normal(size=(*lead, count)) * 4, poison)
    arrays = {}
    beside = DTYPES[dtype] if seed % 2 or dtype == "float64" else np.dtype(np.float32)  # of prior and weight
    if prior == "prior":
        arrays["prior"] = rng.dirichlet(np.ones(count)).astype(beside)
    elif prior == "prior rows":
        rows = rng.dirichlet(np.ones(count), lead)
        rows = np.where(keep[..., None], rows, np.nan) if lead else rows  # [K] is one for all, and checked
        arrays["prior"] = classes_on_axis(rows).astype(beside)
    elif prior == "class_prior":
        arrays["class_prior"] = rng.dirichlet(np.ones(count), count).astype(beside)
    if weight_mode is not None:
        arrays["weight"] = rng.uniform(0, 2, count).astype(beside)
    if class_mask is not None:
        rows = kept_classes & keep[..., None]
        arrays["class_mask"] = classes if class_mask == "classes" else classes_on_axis(rows)

    ignore_index = -100
    if target == "labels":
        ids = np.array(labels)
        if masked and seed % 2:
            ignore_index = -7
            ids[~keep] = ignore_index
        elif masked:
            arrays["mask"] = keep
            ids[~keep] = 77
        given = ids
    else:
        if masked:
            arrays["mask"] = keep
        if target == "one-hot":
            given = classes_on_axis(np.eye(count, dtype=int)[labels])
        else:
            q = (rng.dirichlet(np.ones(count), lead) + 1e-3) * kept_classes
            q = np.where(keep[..., None], q / q.sum(-1, keepdims=True), np.nan)
            given = classes_on_axis(q).astype(DTYPES[dtype])
    return Case(
        name=" ".join(f"{name}={value}" for name, value in choices.items() if value),
        logits=classes_on_axis(logits).astype(DTYPES[dtype]),
        target=given,
        label_smoothing=smoothing,
        reduction=reduction,
        weight_mode=weight_mode or "class",
        ignore_index=ignore_index,
        axis=axis,
        arrays=arrays,
        choices=choices,
    )


def _table() -> list[Case]:
    """Every prior, weight mode, target and reduction with each other; beside them the other choices, drawn."""
    product = [CHOICES[name] for name in _PRODUCT]
    drawn, table = random.Random(0), []
    for seed, values in enumerate(itertools.product(*product)):
        choices = {name: drawn.choice(CHOICES[name]) for name in CHOICES}
        table.append(build(seed, **choices | dict(zip(_PRODUCT, values, strict=True))))
    return table


def pairs(case: Case) -> set[Any]:
    """The choices of a case of the table, two by two."""
    return set(itertools.combinations(case.choices.items(), 2))


def cover(cases: list[Case]) -> list[Case]:
    """A few of the cases, in which every pair of choices occurs that occurs in all of them."""
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def _corner(name: str, logits: Any, target: Any, *, dtype: str = "float32", axis: int = -1, **options: Any) -> Case:
    arrays = {key: np.asarray(options.pop(key)) for key in list(options) if key in _ARRAYS}
    logits = np.asarray(logits, np.float64).astype(DTYPES[dtype])
    return Case(name=name, logits=logits, target=np.asarray(target), axis=axis, arrays=arrays, **options)


_ARRAYS = ("weight", "prior", "class_prior", "mask", "class_mask")
_HARD = [[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]
_HALVES = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], np.float32)

CORNERS = [
    _corner("-inf beside the label", [[0.0, -INF, 1.0], [3.0, 0.0, 0.0]], [0, 2], label_smoothing=0.0),
    _corner("-inf at the label", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [1, 2], label_smoothing=0.0, reduction="none"),
    _corner("-inf beside the soft target", [[0.0, 1.0, -INF], [3.0, 0.0, 0.0]], _HALVES, label_smoothing=0.0),
    _corner("-inf, smoothed", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [0, 0], reduction="none"),
    _corner("-inf in a class that is taken out", [[0.0, -INF, 1.0], [1.0, -INF, 2.0]], [0, 2], class_mask=[True, False, True]),
    _corner("-inf where the prior is 0", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [0, 1], prior=[0.5, 0.0, 0.5]),
    _corner("-inf where class_prior is 0", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [0, 1], class_prior=[[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]]),
    _corner("-inf at a label of weight 0", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [1, 2], label_smoothing=0.0, weight=[1.0, 0.0, 1.0], reduction="none"),
    _corner("-inf at a label of weight 0, example", [[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], [1, 2], weight=[1.0, 0.0, 1.0], weight_mode="example", reduction="none"),
    _corner("-inf but one", [[-INF, -INF, 1.0], [1.0, -INF, -INF]], [2, 0], label_smoothing=0.0),
    *(
        _corner(f"{dtype} {sign}1e4 {reduction}", np.array(_HARD) * 8 + float(f"{sign}1e4"), target, dtype=dtype, reduction=reduction)
        for dtype, sign, reduction, target in (
            ("float64", "+", "mean", [0, 2]), ("float64", "-", "none", _HALVES), ("float32", "+", "none", _HALVES),
            ("float32", "-", "mean", [0, 2]), ("float16", "+", "sum", [0, 2]), ("bfloat16", "-", "mean", [0, 2]),
        )
    ),
    _corner("spread of 2e4", [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [0, 0], reduction="none"),
    _corner("spread of 2e4 in float64", [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [0, 0], dtype="float64", reduction="sum"),
    _corner("confident and right, unsmoothed", [[200.0, 0.0, 0.0], [0.0, 0.0, 300.0]], [0, 2], label_smoothing=0.0),
    *(_corner(f"no rows, {reduction}", np.zeros((0, 3)), np.zeros(0, int), reduction=reduction) for reduction in CHOICES["reduction"]),
    _corner("no rows of soft targets", np.zeros((0, 3)), np.zeros((0, 3), np.float32), class_prior=np.eye(3)),
    *(_corner(f"nothing kept, {reduction}", np.full((2, 3), np.nan), [-100, -100], reduction=reduction) for reduction in CHOICES["reduction"]),
    _corner("nothing kept of soft targets", np.full((2, 3), INF), np.full((2, 3), np.nan, np.float32), mask=[False, False]),
    _corner("only weights of 0", _HARD, [0, 0], weight=[0.0, 1.0, 1.0]),
    _corner("a nan weight that does not occur", _HARD, [0, 1], label_smoothing=0.0, weight=[1.0, 2.0, np.nan]),
    _corner("one class", [[3.0], [-2.0]], [0, 0], reduction="sum"),
    _corner("one row", [1.0, 2.0, 4.0], 1, axis=0),
    _corner("one row of soft targets", [1.0, 2.0, 4.0], np.float32([0.25, 0.25, 0.5]), axis=0, prior=[0.0, 0.5, 0.5]),
    _corner("1001 classes in half precision", np.sin(np.arange(2002.0)).reshape(2, 1001) * 9, [3, 1000], dtype="float16", reduction="none"),
    _corner("labels of uint8", _HARD, np.uint8([2, 1])),
    _corner("labels of int8 and an ignore_index beyond it", _HARD, np.int8([2, 1]), ignore_index=258),
    _corner("an ignore_index that is a class", _HARD, [2, 1], ignore_index=1),
    _corner("one-hot of booleans", _HARD, np.eye(3, dtype=bool)[[2, 1]]),
    _corner("smoothing of 0.999", _HARD, [2, 1], label_smoothing=0.999),
    _corner("normalizer", _HARD, [2, 1], normalizer=5.0),
    _corner("normalizer and weights", _HARD, [2, -100], normalizer=2.5, weight=[1.0, 2.0, 3.0], weight_mode="example"),
    _corner("normalizer of 0", _HARD, [2, 1], normalizer=0.0),
]  # fmt: skip

TABLE = _table()
CASES = TABLE + CORNERS
BY_NAME = {case.name: case for case in CASES}
