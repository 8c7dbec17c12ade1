"""Every case over every framework: values and gradients against the same float64 reference."""

import itertools

import jax
import numpy as np
import pytest
import torch

from tests.contract import frameworks, reference
from tests.contract.cases import CHOICES, CORNERS, EPS, TABLE, Case, cover, pairs

PATHS = ["eager"]  # of labelsmooth.torch, which the variable LABELSMOOTH_PATH chooses
CASES = TABLE + CORNERS
FEW = cover(TABLE)


def check(case: Case, outcome: frameworks.Outcome, dtypes: tuple[str, str] | None = None) -> None:
    """max|err| <= 16·eps·s: s = max(1, max|ref|) for losses, the row factor (1/N in a mean) for gradients.

    eps is that of the loss's dtype; a gradient that comes back in half precision is rounded to that besides.
    """
    loss_dtype, gradient_dtype = dtypes or ("float64" if case.dtype == "float64" else "float32", case.dtype)
    assert (outcome.loss_dtype, outcome.gradient_dtype) == (loss_dtype, gradient_dtype)
    expected, eps = reference.loss_and_grad(case), EPS[loss_dtype]
    scale = max(1.0, float(np.abs(expected.loss[np.isfinite(expected.loss)]).max(initial=0)))
    _assert_within(outcome.loss, expected.loss, 16 * eps * scale, "loss")
    rounding = EPS[gradient_dtype] if gradient_dtype != loss_dtype else 0
    _assert_within(outcome.gradient, expected.gradient, (16 * eps + rounding) * expected.row_factor, "gradient")


def _assert_within(value: np.ndarray, expected: np.ndarray, bound: float, name: str) -> None:
    assert value.shape == expected.shape, name
    infinite = np.isinf(expected)
    assert np.array_equal(value[infinite], expected[infinite]), name
    error = np.abs(value[~infinite] - expected[~infinite])
    assert (error <= bound).all(), f"{name}: off by {error.max():.3g}, allowed {bound:.3g}"


def slowly(cases: list[Case], few: list[Case]) -> list:
    """The cases, those that are none of the few marked slow."""
    return [case if case in few else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def test_every_pair_of_choices_occurs():
    every = [
        ((one, x), (other, y)) for one, other in itertools.combinations(CHOICES, 2) for x in CHOICES[one] for y in CHOICES[other]
    ]  # fmt: skip
    assert set().union(*map(pairs, TABLE)) == set().union(*map(pairs, FEW)) == set(every)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy(case):
    check(case, frameworks.numpy(case), ("float64", "float64"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch(case, path, monkeypatch):
    monkeypatch.setenv("LABELSMOOTH_PATH", path)
    check(case, frameworks.torch(case))


@pytest.mark.parametrize("case", slowly(CASES, FEW + CORNERS), ids=str)
def test_jax(case):
    check(case, frameworks.jax(case))


@pytest.mark.parametrize("case", slowly(CASES, FEW[::4] + CORNERS[::6]), ids=str)
def test_jax_under_jit(case):
    check(case, frameworks.jax(case, jax.jit))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", FEW[::4], ids=str)
def test_torch_compiled_in_one_graph(case, backend):
    check(case, frameworks.torch(case, torch.compile(fullgraph=True, backend=backend)))
