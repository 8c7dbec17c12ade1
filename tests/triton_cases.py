"""The Triton kernels against the float64 reference. tests/test_triton.py runs this file: interpreted, and on a GPU."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelsmooth import losses
from labelsmooth.torch import _triton
from labelsmooth.torch import cross_entropy as eager
from tests.test_torch_loss import EPS, INF, KINDS, options_for, to_numpy, value_and_grad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter computes with NumPy, which warns of what the device's arithmetic defines: log 0, inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEFAULTS = {
    "weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "prior": None,
    "class_prior": None, "mask": None, "class_mask": None, "weight_mode": "class", "normalizer": None,
}  # fmt: skip


def fused(input, target, **options):
    options = DEFAULTS | options
    assert _triton.unsupported(input, target, *options.values()) is None
    return _triton.cross_entropy(input, target, **options)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs one program after the other."""
    from labelsmooth.torch._triton import _divisor

    if INTERPRETED:
        monkeypatch.setattr(_divisor, "PARTIALS", 2)


@pytest.fixture
def short_blocks(monkeypatch):
    """Rows of more than 64 classes (32 with more operands than labels) do not fit on chip."""
    from labelsmooth.torch._triton import _forward

    monkeypatch.setattr(_forward, "ON_CHIP", 64)
    monkeypatch.setattr(_forward, "TILE", 32)


def check(shape, dtype, kind, weight_mode, reduction, soft, masked, class_masked, smoothing, seed, layout="dense"):
    """The contract: max|err| <= 2·max|eager err| + 8·eps·s, s = max(1, max|ref|), for gradients the row factor."""
    rng = np.random.default_rng(seed)
    dim = 0 if len(shape) == 1 else 1
    count = shape[dim]
    lead = shape[:dim] + shape[dim + 1 :]
    labels = rng.integers(0, count - 1 if class_masked == "classes" and count > 1 else count, lead)
    z = torch.tensor(rng.normal(size=shape) * 4).to(dtype)
    q = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, dim) if soft else None
    options, q = options_for(rng, shape, dim, kind, weight_mode is not None, masked, class_masked, labels, q)
    tensors = {name: torch.tensor(x) if x.dtype == bool else torch.tensor(x).to(dtype) for name, x in options.items()}
    common = {"label_smoothing": smoothing, "weight_mode": weight_mode or "class", "ignore_index": -100}
    if soft:
        target = torch.tensor(q).to(dtype)
    else:
        common["ignore_index"] = -7
        ids = torch.int32 if seed % 2 else torch.int64
        target = torch.tensor(np.where(rng.random(lead) < 0.2, -7, labels), dtype=ids)

    arrays = {name: to_numpy(x) for name, x in tensors.items()} | common | {"axis": dim}
    reference, reference_gradient = losses.cross_entropy_and_grad(
        to_numpy(z), to_numpy(target), reduction=reduction, **arrays
    )
    of_eager = value_and_grad(eager, z, target, reduction=reduction, **tensors, **common)
    tensors = {name: x.to(DEVICE) for name, x in tensors.items()}
    on_device = z.to(DEVICE)
    if layout == "strided":
        on_device = torch.zeros(*shape[:-1], 2 * shape[-1] + 3, dtype=dtype, device=DEVICE)[..., 1 : 2 * shape[-1] : 2]
        on_device.copy_(z)
    elif layout == "transposed":
        on_device = on_device.movedim(dim, 0).contiguous().movedim(0, dim)
    elif layout == "channels last":
        on_device = on_device.movedim(dim, -1).contiguous().movedim(-1, dim)
    with torch.no_grad():
        on_device = on_device.detach()
    on_device.requires_grad_()
    loss = fused(on_device, target.to(DEVICE), reduction=reduction, **tensors, **common)
    (gradient,) = torch.autograd.grad(loss, on_device, torch.ones_like(loss))

    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.shape == reference.shape
    assert gradient.shape == tuple(shape)
    eps = EPS[torch.float32]
    bound = 2 * distance(of_eager[0], reference) + 8 * eps * max(1.0, float(np.abs(reference).max(initial=0)))
    assert distance(loss, reference) <= bound
    rows = losses.cross_entropy(to_numpy(z), to_numpy(target), reduction="none", **arrays)
    divisor = float(rows.sum() / reference) if reduction == "mean" and reference else 1.0
    row_factor = float(np.max(arrays.get("weight", 1.0))) / divisor
    bound = 2 * distance(of_eager[1], reference_gradient) + 8 * eps * row_factor
    assert distance(gradient, reference_gradient) <= bound + (EPS[dtype] * row_factor if dtype != torch.float32 else 0)


def distance(x, reference):
    return np.abs(x.detach().cpu().double().numpy() - reference).max(initial=0)


OPERANDS = list(itertools.product(KINDS, (None, "class", "example"), (False, True)))
TABLE = list(itertools.product((None, "classes", "rows"), (False, True), ("none", "sum", "mean"), (0.1, 0.0)))


@pytest.mark.parametrize(("kind", "weight_mode", "soft"), OPERANDS)
def test_contract(kind, weight_mode, soft):
    first = OPERANDS.index((kind, weight_mode, soft))
    for seed in range(first, len(TABLE), 11):  # every row of the table is met twice
        class_masked, masked, reduction, smoothing = TABLE[seed]
        shape = ((5, 6), (2, 4, 3))[seed % 2]
        check(shape, torch.float32, kind, weight_mode, reduction, soft, masked, class_masked, smoothing, seed)


@pytest.mark.parametrize(("kind", "weight_mode", "soft"), OPERANDS)
def test_contract_in_blocks(short_blocks, kind, weight_mode, soft):
    first = OPERANDS.index((kind, weight_mode, soft))
    for seed in range(first % 18, len(TABLE), 18):
        class_masked, masked, reduction, smoothing = TABLE[seed]
        shape = ((3, 150), (1, 70, 2))[seed % 2]
        check(shape, torch.float32, kind, weight_mode, reduction, soft, masked, class_masked, smoothing, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "weight_mode", "soft"), OPERANDS)
def test_contract_whole(kind, weight_mode, soft):
    for seed, (class_masked, masked, reduction, smoothing) in enumerate(TABLE):
        check((5, 6), torch.float32, kind, weight_mode, reduction, soft, masked, class_masked, smoothing, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 2, 1023, 1024, 1025, 5000])
def test_block_boundaries(dtype, classes):
    for kind, smoothing, rows in (("uniform", 0.1, 1), ("uniform", 0.0, 4), ("prior", 0.1, 3)):
        check((rows, classes), dtype, kind, None, "mean", False, False, None, smoothing, classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [63, 64, 65, 127, 128, 129, 1000])
def test_block_boundaries_of_blocks(short_blocks, dtype, classes):
    for kind, smoothing in (("uniform", 0.1), ("uniform", 0.0), ("prior rows", 0.1)):
        check((2, classes), dtype, kind, None, "mean", False, False, None, smoothing, classes)


@pytest.mark.parametrize("classes", [32768, 32769, 70000])
def test_long_rows(classes):
    check((2, classes), torch.float32, "uniform", None, "mean", False, False, None, 0.1, 1)


RANDOM = dict(
    shape=st.one_of(
        st.tuples(st.integers(1, 9)),
        st.tuples(st.integers(0, 5), st.integers(1, 40)),
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4)),
        st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(KINDS),
    weight_mode=st.sampled_from([None, "class", "example"]),
    reduction=st.sampled_from(["none", "sum", "mean"]),
    soft=st.booleans(),
    masked=st.booleans(),
    class_masked=st.sampled_from([None, "classes", "rows"]),
    smoothing=st.one_of(st.just(0.0), st.floats(0, 0.99)),
    seed=st.integers(0, 2**32 - 1),
    layout=st.sampled_from(["dense", "strided", "transposed", "channels last"]),
)


def check_random(**arguments):
    if arguments["dtype"] != torch.float32 and arguments["shape"][-1] > 20:
        arguments["shape"] = (2, 7)  # in half precision a long row's sum of targets leaves its tolerance
    check(**arguments)


@settings(max_examples=120, deadline=None)
@given(**RANDOM)
def test_contract_on_random_cases(**arguments):
    check_random(**arguments)


@pytest.mark.slow
@settings(max_examples=1200, deadline=None)
@given(**RANDOM)
def test_contract_on_many_random_cases(**arguments):
    check_random(**arguments)
