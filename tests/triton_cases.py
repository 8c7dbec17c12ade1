"""The Triton kernels against the float64 reference. tests/test_triton.py runs this file: interpreted, and on a GPU."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from labelsmooth import losses
from labelsmooth.torch import _triton
from labelsmooth.torch import cross_entropy as public
from tests.test_torch_loss import EPS, INF, KINDS, options_for, to_numpy, value_and_grad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter computes with NumPy, which warns of what the device's arithmetic defines: log 0, inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEFAULTS = {
    "weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "prior": None,
    "class_prior": None, "mask": None, "class_mask": None, "weight_mode": "class", "normalizer": None, "inplace": False,
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
    of_eager = value_and_grad(public, z, target, reduction=reduction, **tensors, **common)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 1023, 1024, 1025, 5000])
def test_block_boundaries(dtype, classes):
    for kind, smoothing, rows in (("uniform", 0.1, 1), ("uniform", 0.0, 3), ("prior", 0.1, 2)):
        check((rows, classes), dtype, kind, None, "mean", False, False, None, smoothing, classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [63, 64, 65, 129, 300])
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


@settings(max_examples=30, deadline=None)
@given(**RANDOM)
def test_contract_on_random_cases(**arguments):
    check_random(**arguments)


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@given(**RANDOM)
def test_contract_on_many_random_cases(**arguments):
    check_random(**arguments)


# What a table of random numbers does not meet.


def case(rows=4, classes=6, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, classes, generator=generator).to(dtype)
    return z.to(DEVICE).requires_grad_(), torch.randint(0, classes, (rows,), generator=generator).to(DEVICE)


def on_device(*x, dtype=None):
    return torch.tensor(x, dtype=dtype, device=DEVICE)


def test_infinite_logits():
    z = on_device([0.0, -INF, 1.0])
    for target in (on_device(0), on_device([0.5, 0.0, 0.5])):
        loss, gradient = value_and_grad(fused, z, target)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())
        assert gradient[0, 1] == 0
        loss, gradient = value_and_grad(fused, z, target, label_smoothing=0.1)
        assert loss == INF
        assert bool(gradient.isfinite().all())
        kept = {"class_mask": on_device(True, False, True), "label_smoothing": 0.1}
        loss, gradient = value_and_grad(fused, z, target, **kept)
        assert bool(loss.isfinite())
        assert gradient[0, 1] == 0
        prior = {"prior": on_device(0.5, 0.0, 0.5), "label_smoothing": 0.1}
        torch.testing.assert_close(value_and_grad(fused, z, target, **prior), (loss, gradient))


def test_infinite_logits_block_by_block(short_blocks):
    z = torch.full((4, 200), -INF, device=DEVICE)
    z[0, 150:160], z[1, 3], z[2, :] = 1e4, -1e4, 0  # the first blocks hold nothing; the maximum falls; row 3 is empty
    rows, gradient = value_and_grad(fused, z, on_device(151, 3, 7, 0), reduction="none")
    torch.testing.assert_close(rows[:3], on_device(10.0, 1.0, 200.0).log())
    assert bool(gradient[:3].isfinite().all())
    torch.testing.assert_close(gradient[0, 148:153], on_device(0, 0, 0.1, -0.9, 0.1))
    assert bool(rows[3].isnan())


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("fixture", [None, "short_blocks"])
def test_large_offsets_lose_no_digits(request, offset, fixture):
    if fixture:
        request.getfixturevalue(fixture)
    z, labels = case(3, 200)
    z = (z.detach() * 8).round()
    plain, gradient = value_and_grad(fused, z, labels, label_smoothing=0.1)
    shifted, shifted_gradient = value_and_grad(fused, z + offset, labels, label_smoothing=0.1)
    assert float(shifted) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(shifted_gradient, gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("poison", [float("nan"), INF, -INF])
@pytest.mark.parametrize("kind", ["ignore_index", "mask", "soft"])
@pytest.mark.parametrize("fixture", [None, "short_blocks"])
def test_rows_that_are_not_kept_may_hold_anything(request, poison, kind, fixture):
    if fixture:
        request.getfixturevalue(fixture)
    z, labels = case(3, 70)
    prior = torch.full((3, 70), 1 / 70, device=DEVICE)
    mask = on_device(False, True, True)
    target = torch.softmax(z.detach(), 1) if kind == "soft" else labels
    options = {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 70, device=DEVICE)}
    expected, expected_gradient = value_and_grad(fused, z[1:], target[1:], **options)
    z, target = z.detach().clone(), target.clone()
    z[0], prior[0] = poison, float("nan")
    target[0] = float("nan") if kind == "soft" else -100 if kind == "ignore_index" else 77
    given_mask = None if kind == "ignore_index" else mask
    loss, gradient = value_and_grad(fused, z, target, prior=prior, mask=given_mask, **options)
    torch.testing.assert_close(loss, expected)
    assert bool((gradient[0] == 0).all())
    torch.testing.assert_close(gradient[1:], expected_gradient)
    rows = fused(z.requires_grad_(), target, prior=prior, mask=given_mask, reduction="none", **options)
    (gradient,) = torch.autograd.grad(rows, z, on_device(INF, 1.0, 2.0))  # log(0) upstream
    assert bool((gradient[0] == 0).all())


@pytest.mark.parametrize("options", [{}, {"class_prior": True}, {"weight": True, "weight_mode": "example"}])
def test_a_class_id_out_of_range_gives_nan_in_its_row(options):
    z, labels = case(5, 6)
    labels[1], labels[3] = 6, -1
    if "class_prior" in options:
        options = {"class_prior": torch.full((6, 6), 1 / 6, device=DEVICE)}
    if "weight" in options:
        options = options | {"weight": torch.zeros(6, device=DEVICE)}
    rows, gradient = value_and_grad(fused, z, labels, label_smoothing=0.1, reduction="none", **options)
    assert rows.isnan().tolist() == [False, True, False, True, False]
    assert gradient.isnan().all(1).tolist() == gradient.isnan().any(1).tolist() == rows.isnan().tolist()


def test_nothing_kept_is_zero():
    z, _ = case()
    nothing = torch.full((4,), -100, device=DEVICE)
    for options in ({}, {"weight": torch.ones(6, device=DEVICE)}, {"label_smoothing": 0.1}):
        loss, gradient = value_and_grad(fused, z, nothing, **options)
        assert loss == 0
        assert bool((gradient == 0).all())
    for target in (torch.empty(0, dtype=torch.long, device=DEVICE), torch.empty(0, 6, device=DEVICE)):
        loss, gradient = value_and_grad(fused, torch.empty(0, 6, device=DEVICE), target)
        assert loss == 0
        assert gradient.shape == (0, 6)
    weightless = {"weight": torch.tensor([0.0, 1.0], device=DEVICE), "label_smoothing": 0.5}
    loss, gradient = value_and_grad(fused, on_device([0.0, -INF]), on_device(0), **weightless)
    assert loss == 0
    assert bool((gradient == 0).all())


def test_normalizers():
    z, labels = case()
    labels[2] = -100
    total, gradient = value_and_grad(fused, z, labels, reduction="sum", label_smoothing=0.1)
    for normalizer in (5, 5.0, on_device(5)[0], on_device(5.0)[0].double()):
        loss, scaled = value_and_grad(fused, z, labels, normalizer=normalizer, label_smoothing=0.1)
        torch.testing.assert_close(loss, total / 5)
        torch.testing.assert_close(scaled, gradient / 5)
    for normalizer in (0, on_device(0)[0]):
        loss, scaled = value_and_grad(fused, z, labels, normalizer=normalizer, label_smoothing=0.1)
        assert loss == 0
        assert bool((scaled == 0).all())


def test_integer_targets_of_any_dtype_and_one_hot_rows():
    z, labels = case()
    expected = fused(z, labels, label_smoothing=0.1)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16):
        assert torch.equal(fused(z, labels.to(dtype), label_smoothing=0.1), expected)
    for dtype in (torch.int64, torch.bool, torch.float64):
        one_hot = torch.nn.functional.one_hot(labels, 6).to(dtype)
        torch.testing.assert_close(fused(z, one_hot, label_smoothing=0.1), expected)
    for ignore_index in (2**33, -(2**40), 1):
        rows = fused(z, labels.int(), ignore_index=ignore_index, reduction="none", mask=labels >= 0)
        torch.testing.assert_close(rows, fused(z, labels, ignore_index=ignore_index, reduction="none"))


def test_offsets_beyond_32_bits(monkeypatch):
    """Rows and strides of 32 bits each, whose product is not: most of the 4 GiB are never touched."""
    from labelsmooth.torch._triton import _forward

    if INTERPRETED:  # one program for all rows
        monkeypatch.setattr(_forward, "TILE", 2**18)
        monkeypatch.setattr(_forward, "ON_CHIP", 2**18)
    rows, stride = 65_600, 32_768
    try:
        logits = torch.empty(rows * stride, dtype=torch.float16, device=DEVICE).as_strided((rows, 2), (stride, 1))
    except RuntimeError:
        pytest.skip("there are no 4 GiB for logits whose rows lie that far apart")
    logits[-1] = on_device([1.0, 3.0], dtype=torch.float16)[0]
    logits.requires_grad_()
    losses = fused(logits, torch.zeros(rows, dtype=torch.long, device=DEVICE), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    p = 1 / (1 + np.exp(2.0))
    assert losses[-1].item() == pytest.approx(-np.log(p), rel=1e-6)
    assert gradient[-1].tolist() == pytest.approx([p - 1, 1 - p], rel=1e-3)


# The upstream gradient, and what autograd may do with the buffer.


def saved(loss):
    """The tensors that the operator saved for backward."""
    node = loss.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    return node.saved_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_upstream_gradients(dtype):
    z, labels = case(dtype=dtype)
    labels[1] = -100
    _, gradient = value_and_grad(fused, z, labels, label_smoothing=0.1)
    (scaled,) = torch.autograd.grad(fused(z, labels, label_smoothing=0.1), z, torch.tensor(3.0, device=DEVICE))
    torch.testing.assert_close(scaled, 3 * gradient, rtol=2 * EPS[dtype], atol=EPS[dtype] / 4)
    rows = fused(z, labels, label_smoothing=0.1, reduction="none")
    (ones,) = torch.autograd.grad(rows, z, torch.ones((), device=DEVICE).expand(4), retain_graph=True)  # stride 0
    (steps,) = torch.autograd.grad(rows, z, on_device(1.0, 2.0, 0.0, -3.0))
    torch.testing.assert_close(ones, 3 * gradient, rtol=2 * EPS[dtype], atol=EPS[dtype] / 4)
    torch.testing.assert_close(
        steps, ones * on_device([1.0], [2.0], [0.0], [-3.0]).to(dtype), rtol=2 * EPS[dtype], atol=0
    )


def test_the_gradient_of_the_forward_pass_is_handed_over():
    z, labels = case()
    loss = fused(z, labels)
    (buffer,) = saved(loss)
    assert buffer.shape == z.shape
    address = buffer.data_ptr()
    del buffer
    loss.backward()
    assert z.grad.data_ptr() == address


def test_backward_twice_gives_the_same_gradient_and_never_an_alias():
    for upstream in (1.0, 3.0):
        z, labels = case()
        loss = fused(z, labels, label_smoothing=0.1) * upstream
        first, second, third = (torch.autograd.grad(loss, z, retain_graph=i < 2)[0] for i in range(3))
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert len({first.data_ptr(), second.data_ptr(), third.data_ptr()}) == 3
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, z)
        z.grad = None
        loss = fused(z, labels, label_smoothing=0.1) * upstream
        loss.backward(retain_graph=True)
        z.grad.zero_()
        loss.backward()
        torch.testing.assert_close(z.grad, first)


def test_several_upstream_gradients_at_once():
    for dtype in (torch.float32, torch.float16):
        z, labels = case(dtype=dtype)
        loss = fused(z, labels, label_smoothing=0.1, reduction="none")
        (rows,) = torch.autograd.grad(loss, z, torch.eye(4, device=DEVICE), is_grads_batched=True, retain_graph=True)
        (gradient,) = torch.autograd.grad(loss, z, torch.ones_like(loss))
        torch.testing.assert_close(rows, torch.diag_embed(gradient.T).permute(1, 2, 0))


def test_gradients_accumulate_over_two_losses_of_the_same_logits():
    z, labels = case()
    _, gradient = value_and_grad(fused, z, labels, label_smoothing=0.1)
    (fused(z, labels, label_smoothing=0.1) + 2 * fused(z, labels, label_smoothing=0.1)).backward()
    torch.testing.assert_close(z.grad, 3 * gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_second_derivative_raises(dtype):
    z, labels = case(dtype=dtype)
    with pytest.raises(RuntimeError, match=r"no second derivative .*create_graph=True"):
        torch.autograd.grad(fused(z, labels), z, create_graph=True)


def test_float16_gradients_survive_a_loss_scaler():
    z = torch.zeros(4, 6, dtype=torch.float16, device=DEVICE).requires_grad_()
    _, labels = case()
    loss = fused(z, labels, normalizer=1e9)
    (gradient,) = torch.autograd.grad(loss, z, torch.tensor(2.0**20, device=DEVICE))
    expected = (1 / 6 - torch.nn.functional.one_hot(labels, 6)) * (2.0**20 / 1e9)
    torch.testing.assert_close(gradient, expected.half())


def test_no_gradient_is_allocated_where_none_is_asked_for(monkeypatch):
    from labelsmooth.torch._triton import _op

    z, labels = case()
    expected = fused(z, labels, label_smoothing=0.1).detach()
    monkeypatch.setattr(_op, "_dense_like", lambda x: pytest.fail("a gradient was allocated"))
    assert torch.equal(fused(z.detach(), labels, label_smoothing=0.1), expected)
    with torch.no_grad():
        assert torch.equal(fused(z, labels, label_smoothing=0.1), expected)


@pytest.mark.parametrize("layout", ["dense", "rows adjacent", "strided"])
@pytest.mark.parametrize("fixture", [None, "short_blocks"])
def test_inplace_puts_the_gradient_where_dense_logits_were(request, layout, fixture):
    if fixture:
        request.getfixturevalue(fixture)
    leaf, labels = case(3, 70)
    options = {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 70, device=DEVICE)}
    _, expected = value_and_grad(fused, leaf, labels, **options)

    def step(retain=False):
        z = (leaf.t().contiguous().t() if layout == "rows adjacent" else leaf) * 1.0
        if layout == "strided":
            z = torch.cat([z, z], 1)[:, :70]
        before, version = z.detach().clone(), z._version
        loss = fused(z, labels, inplace=True, **options)
        (gradient,) = torch.autograd.grad(loss, z, retain_graph=retain)
        torch.testing.assert_close(gradient, expected)
        return z, loss, gradient.data_ptr() == z.data_ptr(), z._version > version, torch.equal(z.detach(), before)

    in_place = layout != "strided"
    *_, same, changed, kept = step()
    assert (same, changed, kept) == (in_place, in_place, not in_place)
    z, loss, same, *_ = step(retain=True)
    assert not same  # what is kept for the second time is given to nobody
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected)
    loss = fused((leaf * 1.0).view(3, 70), labels, inplace=True, **options)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected)


def test_inplace_is_told_to_the_layer_that_needs_its_output(monkeypatch):
    monkeypatch.setenv("LABELSMOOTH_PATH", "triton")
    leaf, labels = case()
    loss = public(leaf.exp(), labels, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_gradient_has_the_layout_of_the_logits():
    z = torch.randn(2, 5, 4, 3, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    labels = torch.randint(0, 5, (2, 4, 3), device=DEVICE)
    fused(z, labels).backward()
    assert z.grad.is_contiguous(memory_format=torch.channels_last)


# Operators.


def operands(**changes):
    z, labels = case()
    names = "logits labels q weight prior class_prior class_mask ignore_index label_smoothing weight_inside"
    given = dict.fromkeys(names.split()) | {"logits": z, "labels": labels, "ignore_index": -100, "label_smoothing": 0.1}
    return tuple((given | {"weight_inside": True} | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": None, "q": "soft", "weight": "weight", "prior": "soft", "class_mask": "kept"},
        {"logits": "images", "labels": "pixels"},
    ],
)
def test_operators_keep_pytorchs_rules(changes):
    tensors = {
        "soft": torch.full((4, 6), 1 / 6, device=DEVICE),
        "weight": torch.linspace(0.5, 2, 6, device=DEVICE),
        "kept": torch.ones(6, dtype=torch.bool, device=DEVICE),
        "images": torch.randn(2, 6, 5, device=DEVICE).transpose(1, 2).requires_grad_(),
        "pixels": torch.randint(0, 6, (2, 5), device=DEVICE),
    }
    args = operands(**{name: tensors.get(x) for name, x in changes.items()})
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    rows = torch.ops.labelsmooth.cross_entropy_rows.default
    torch.library.opcheck(rows, (*args, None, True), test_utils=checks)
    inputs = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
    upstream = torch.rand(inputs[0].shape[:-1], device=DEVICE)
    gradient = torch.ops.labelsmooth.cross_entropy_gradient.default
    torch.library.opcheck(gradient, (*inputs, torch.ones(1, device=DEVICE), upstream), test_utils=checks)


@pytest.mark.parametrize(
    ("backend", "soft"), [("eager", True), ("aot_eager", False), ("aot_eager", True), ("inductor", False)]
)
def test_compile_in_one_graph(backend, soft):
    z, labels = case()
    target = torch.softmax(z.detach() * 2, 1) if soft else labels
    options = {"weight": torch.linspace(0.5, 2, 6, device=DEVICE), "mask": on_device(True, False, True, True)}
    for reduction in ("mean", "none")[: 1 if backend == "inductor" else 2]:

        def loss(z, target, options, reduction=reduction):
            assert _triton.unsupported(z, target, *options.values()) is None
            return _triton.cross_entropy(z, target, **(DEFAULTS | options | {"reduction": reduction}))

        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        torch.testing.assert_close(
            value_and_grad(compiled, z, target, options), value_and_grad(loss, z, target, options)
        )


def test_compile_with_sizes_and_normalizers_that_change():
    compiled = torch.compile(
        lambda z, y, n: fused(z, y, normalizer=n), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for rows, classes, normalizer in ((4, 6, 8.0), (5, 7, 9.0), (3, 9, 11)):
        z, labels = case(rows, classes)
        torch.testing.assert_close(
            value_and_grad(compiled, z, labels, normalizer), value_and_grad(fused, z, labels, normalizer=normalizer)
        )


def test_a_backward_pass_that_is_recorded_leaves_the_saved_gradient_alone():
    z, labels = case()
    loss = fused(z, labels, label_smoothing=0.1)
    (buffer,) = saved(loss)
    before = buffer.clone()
    backward = make_fx(lambda upstream: torch.autograd.grad(loss, z, upstream, retain_graph=True)[0])
    upstream = torch.tensor(3.0, device=DEVICE)
    torch.testing.assert_close(backward(upstream)(upstream), 3 * before)
    assert torch.equal(buffer, before)


def test_recording_a_whole_step():
    z, labels = case()

    def step(z, labels):
        return torch.autograd.grad(2 * fused(z, labels, label_smoothing=0.1), z)[0]

    graph = make_fx(step)(z, labels)
    other, other_labels = case(seed=1)
    torch.testing.assert_close(graph(other, other_labels), step(other, other_labels))


def test_compile_sees_torch_func():
    z, labels = case()
    compiled = torch.compile(torch.func.vmap(lambda z, y: z.sum() if _triton.unsupported(z, y) else y), backend="eager")
    torch.testing.assert_close(compiled(z, labels), z.sum(1))


# What is left to the eager path, with the reason.


def reason(z, *others):
    return _triton.unsupported(z, *others)


def test_reasons():
    z, labels = case()
    soft = torch.softmax(z.detach(), 1)
    assert reason(z, labels, None, 3.0) is None
    assert reason(z.double(), labels) == "the Triton kernels take no torch.float64 logits"
    assert reason(z, soft.requires_grad_()) == "the Triton kernels have gradients for the logits alone"
    with torch.no_grad():
        assert reason(z, soft) is None
    assert reason(z, labels.to("meta")) == "tensors lie on several devices"
    assert reason(z.to("meta"), labels.to("meta")) == "the Triton kernels are not for meta devices"
    found = []
    torch.func.vmap(lambda z, y: found.append(reason(z, y)) or z)(z, labels)
    with torch.autograd.forward_ad.dual_level():
        found.append(reason(z, labels))
    found.append(reason(z.detach().as_subclass(type("Mine", (torch.Tensor,), {})), labels))
    assert found == [
        "the Triton kernels can be neither transformed by torch.func nor traced by torch.jit",
        "the Triton kernels have no forward-mode derivatives",
        "the Triton kernels take no tensor subclasses",
    ]


# On a GPU alone.

device_only = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")


@device_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_device_is_never_waited_for(dtype):
    z, labels = case(64, 1000, dtype)
    weight, mask = torch.ones(1000, device=DEVICE), labels > 10
    soft = torch.softmax(z.detach().float(), 1)
    for target, reduction in itertools.product((labels, soft), ("none", "sum", "mean")):
        for options in ({}, {"weight": weight}, {"mask": mask}, {"normalizer": 64.0} if reduction == "mean" else {}):
            fused(z, target, reduction=reduction, label_smoothing=0.1, **options)  # compiles
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                loss = fused(z, target, reduction=reduction, label_smoothing=0.1, **options)
                torch.autograd.grad(loss, z, torch.full_like(loss, 2.0))
            finally:
                torch.cuda.set_sync_debug_mode("default")


@device_only
@pytest.mark.parametrize(("rows", "classes"), [(4096, 1000), (2048, 32000), (256, 262144)])
def test_memory_is_the_gradient(rows, classes):
    z, labels = case(rows, classes, torch.bfloat16)
    fused(z, labels, label_smoothing=0.1).backward()
    z.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused(z, labels, label_smoothing=0.1).backward()
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * z.numel() * z.element_size()


@device_only
def test_the_same_call_gives_the_same_bits():
    z, labels = case(4096, 1000)
    weight = torch.rand(1000, device=DEVICE)
    first, second = (value_and_grad(fused, z, labels, weight=weight, label_smoothing=0.1) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@device_only
def test_more_than_2_to_the_31_logits():
    rows, classes = 70_000, 32_768
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("there are no 12 GiB free on the device")
    z = torch.zeros(rows, classes, dtype=torch.bfloat16, device=DEVICE)
    z[-1] = torch.randn(classes, device=DEVICE)
    z.requires_grad_()
    labels = torch.zeros(rows, dtype=torch.long, device=DEVICE)
    loss = fused(z, labels, label_smoothing=0.1, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    expected, expected_gradient = value_and_grad(fused, z[-1:], labels[-1:], label_smoothing=0.1, reduction="none")
    assert torch.equal(loss[-1:], expected)
    assert torch.equal(gradient[-1:], expected_gradient)
