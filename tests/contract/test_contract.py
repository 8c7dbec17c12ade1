"""Every case over every framework: values and gradients against the same float64 reference."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelsmooth.torch import _paths
from tests.contract import frameworks, reference
from tests.contract.cases import CASES, CHOICES, CORNERS, EPS, TABLE, Case, build, cover, pairs

FEW = cover(TABLE)
FOR_KERAS = [case for case in CASES if case.fits_keras]
FEW_FOR_KERAS = cover([case for case in FOR_KERAS if case in TABLE]) + [
    case for case in CORNERS[::2] if case.fits_keras
]


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
    expected = {
        ((one, x), (other, y))
        for one, other in itertools.combinations(CHOICES, 2)
        for x, y in itertools.product(CHOICES[one], CHOICES[other])
    }
    assert set().union(*map(pairs, TABLE)) == set().union(*map(pairs, FEW)) == expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numpy(case):
    check(case, frameworks.numpy(case), ("float64", "float64"))


@pytest.fixture(params=["eager", "native"])  # Triton's interpreter needs a process of its own: test_triton.py
def path(request, monkeypatch):
    monkeypatch.setenv(_paths.VARIABLE, request.param)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch(case):
    check(case, frameworks.torch(case))


@pytest.mark.usefixtures("path")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 9)),
        st.tuples(st.integers(0, 5), st.integers(1, 40)),
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4)),
    ),
    smoothing=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
    choices=st.fixed_dictionaries(
        {name: st.sampled_from(CHOICES[name]) for name in CHOICES if name not in ("shape", "smoothing")}
    ),
)
def test_torch_on_random_cases(shape, smoothing, seed, choices):
    if choices["dtype"] in ("float16", "bfloat16") and shape[-1] > 20:
        shape = (2, 7)  # in half precision a long row's sum of targets leaves its tolerance
    case = build(seed, shape=shape, smoothing=smoothing, **choices)
    check(case, frameworks.torch(case))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", FEW[::4], ids=str)
def test_torch_compiled_in_one_graph(case, backend):
    check(case, frameworks.torch(case, torch.compile(fullgraph=True, backend=backend)))


@pytest.mark.parametrize("case", slowly(CASES, FEW + CORNERS), ids=str)
def test_jax(case):
    check(case, frameworks.jax(case))


@pytest.mark.parametrize("case", slowly(CASES, FEW[::4] + CORNERS[::6]), ids=str)
def test_jax_under_jit(case):
    check(case, frameworks.jax(case, jax.jit))


@pytest.fixture(scope="module", params=["tensorflow", "jax", "torch"])
def keras(request, tmp_path_factory):
    """The outcomes of one backend, in a process of its own, for the cases that are to be tested on it."""
    names = [
        item.callspec.params["case"].name
        for item in request.session.items
        if item.path == request.path
        and item.originalname == "test_keras"
        and item.callspec.params["keras"] == request.param
    ]
    file = tmp_path_factory.mktemp("keras") / f"{request.param}.npz"
    result = subprocess.run(
        [sys.executable, "-m", "tests.contract.keras_worker", file],
        cwd=Path(__file__).parents[2], env=os.environ | {"KERAS_BACKEND": request.param},
        input="\n".join(names), text=True, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    with np.load(file) as outcomes:
        assert str(outcomes["backend"]) == request.param
        return dict(outcomes)


@pytest.mark.parametrize("case", slowly(FOR_KERAS, FEW_FOR_KERAS), ids=str)
def test_keras(keras, case):
    assert f"{case}: error" not in keras, str(keras[f"{case}: error"])
    loss, gradient, *dtypes = (keras[f"{case}: {key}"] for key in ("loss", "gradient", "loss_dtype", "gradient_dtype"))
    check(case, frameworks.Outcome(loss, gradient, *map(str, dtypes)))
