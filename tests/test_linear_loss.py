"""`linear_cross_entropy`: against the float64 loss of the whole logits, in every plan of chunks; and its memory."""

# ruff: noqa: B023  (each lambda is called before its loop goes on)

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from labelsmooth.torch import cross_entropy, linear_cross_entropy
from labelsmooth.torch import linear as module

EPS = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = list(EPS)
INF = float("inf")


@pytest.fixture(params=["whole", "rows", "classes"])
def plan(request, monkeypatch):
    """All at once, a few rows at a time, or a few rows and classes at a time."""
    if request.param != "whole":
        monkeypatch.setattr(module, "_ROWS", 3)
    if request.param == "rows":
        monkeypatch.setattr(module, "_LEAST_ROWS", 1)
    if request.param == "classes":
        monkeypatch.setattr(module, "_WHOLE_ROWS", 1)
        monkeypatch.setattr(module, "_PART", 4 * 7 * 4)
    return request.param


def layer(n=7, d=5, k=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in ((n, d), (k, d), (k,)))
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), torch.randint(0, k, (n,), generator=generator)


def value_and_grads(function, tensors, upstream=None):
    loss = function(*tensors)
    upstream = torch.linspace(1, 2, loss.numel()).view(loss.shape).to(loss) if upstream is None else upstream.to(loss)
    return loss.detach(), torch.autograd.grad(loss, [t for t in tensors if t is not None], upstream)


def whole(x, w, b, target, **options):
    """The loss of logits that exist, in float64."""
    options = {
        name: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for name, v in options.items()
    }
    target = target.double() if target.is_floating_point() else target
    return cross_entropy(F.linear(x, w, b), target, validate=False, **options)


def check(x, w, b, target, **options):
    """max|err| <= 2 max|eager err| + 8 eps s, each against float64; eager is a linear layer and `cross_entropy`."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, w, b)]
    expected, gradients = value_and_grads(lambda *t: whole(*t, target, **options), wide)
    eager, eager_gradients = value_and_grads(
        lambda x, w, b=None: cross_entropy(F.linear(x, w, b), target, validate=False, **options),
        [t for t in (x, w, b) if t is not None],
    )
    found, found_gradients = value_and_grads(
        lambda x, w, b=None: linear_cross_entropy(x, w, target, linear_bias=b, **options),
        [t for t in (x, w, b) if t is not None],
    )
    assert found.dtype == eager.dtype
    assert found.shape == eager.shape
    for mine, other, truth in zip(
        (found, *found_gradients), (eager, *eager_gradients), (expected, *gradients), strict=True
    ):
        assert mine.dtype == other.dtype
        scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
        bound = 2 * (other.double() - truth).abs().max() + 8 * EPS[x.dtype] * scale if truth.numel() else 0
        assert bool(((mine.double() - truth).abs() <= bound).all())


def options_for(rng, shape, kind, weighted, masked, class_masked, soft, dtype):
    lead, count = (shape[0], *shape[2:]), shape[1]
    labels = rng.integers(0, count - 1, lead)
    options = {}
    if kind == "prior":
        options["prior"] = np.arange(count) / np.arange(count).sum()  # has a 0
    elif kind == "prior rows":
        options["prior"] = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, 1)
    elif kind == "class_prior":
        options["class_prior"] = rng.dirichlet(np.ones(count), count)
    if weighted:
        options["weight"] = rng.uniform(0.5, 2, count)
        options["weight"][0] = 0
    if masked:
        options["mask"] = rng.random(lead) < 0.6
    if class_masked == "classes":
        options["class_mask"] = np.arange(count) < count - 1
    elif class_masked == "rows":
        options["class_mask"] = np.moveaxis(np.eye(count, dtype=bool)[labels], -1, 1) | (rng.random(shape) < 0.6)
    target = torch.tensor(np.where(rng.random(lead) < 0.2, -7, labels))
    if soft:
        q = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, 1)
        if class_masked:
            keep = options["class_mask"]
            q = q * (keep if keep.ndim > 1 else keep.reshape(1, -1, *[1] * (len(shape) - 2)))
        target = torch.tensor(q / q.sum(1, keepdims=True)).to(dtype)
    else:
        options["ignore_index"] = -7
    tensors = {n: torch.tensor(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    return target, {
        n: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in tensors.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [None, "class", "example"])
@pytest.mark.parametrize("kind", ["uniform", "prior", "prior rows", "class_prior"])
def test_equals_the_loss_of_whole_logits(plan, dtype, mode, kind):
    table = itertools.product(("none", "sum", "mean"), (False, True), (False, True), (None, "classes", "rows"))
    for seed, (reduction, soft, masked, class_masked) in enumerate(table):
        rng = np.random.default_rng(seed)
        x, w, b, _ = layer(dtype=dtype, seed=seed)
        number = dtype if dtype == torch.float64 else torch.float32
        target, options = options_for(rng, (7, 11), kind, mode is not None, masked, class_masked, soft, number)
        smoothing = (0.0, 0.1, 0.8)[seed % 3]
        check(
            x, w, b if seed % 2 else None, target,
            reduction=reduction, weight_mode=mode or "class", label_smoothing=smoothing, **options,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_drop_in_for_pytorchs(plan, reduction, smoothing):
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this PyTorch has no linear_cross_entropy")
    x, w, b, labels = layer()
    labels[2] = -100
    weight = torch.linspace(0.5, 2, 11, dtype=torch.float64)
    wide = torch.randn(11, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, 2, 3, dtype=torch.float64, requires_grad=True)
    many = torch.randint(0, 11, (7, 2, 3))
    soft = torch.softmax(torch.randn(7, 11, 2, 3, dtype=torch.float64), 1)
    for tensors, target, options in (
        ((x, w, b), labels, {"weight": weight}),
        ((x, w, None), labels.clamp_min(0), {"ignore_index": 3}),
        ((x.detach()[0].clone().requires_grad_(), w, b), labels[0], {}),
        ((x, wide, bias), many, {"weight": weight, "ignore_index": 2}),
        ((x, wide, None), soft, {}),
        ((x, w, b), soft[:, :, 0, 0], {}),
    ):
        options = {"reduction": reduction, "label_smoothing": smoothing, **options}
        results = [
            value_and_grads(lambda x, w, b=None: f(x, w, target, linear_bias=b, **options), [t for t in tensors if t is not None])
            for f in (linear_cross_entropy, F.linear_cross_entropy)
        ]  # fmt: skip
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_layers_of_several_outputs(plan, dtype, soft):
    for seed, (reduction, class_masked) in enumerate(itertools.product(("none", "mean"), (None, "classes", "rows"))):
        rng = np.random.default_rng(seed)
        number = dtype if dtype == torch.float64 else torch.float32
        target, options = options_for(rng, (4, 6, 3), "prior rows", True, True, class_masked, soft, number)
        x = torch.tensor(rng.normal(size=(4, 5)))
        w = torch.tensor(rng.normal(size=(6, 3, 5)))
        results = []
        for function in (
            lambda x, w: linear_cross_entropy(
                x.to(dtype), w.to(dtype), target, label_smoothing=0.2, reduction=reduction, **options
            ),
            lambda x, w: whole_3d(
                x.to(dtype), w.to(dtype), target, label_smoothing=0.2, reduction=reduction, **options
            ),
        ):
            results.append(value_and_grads(function, [x.clone().requires_grad_(), w.clone().requires_grad_()]))
        torch.testing.assert_close(*results, rtol=8 * EPS[dtype], atol=8 * EPS[dtype])


def whole_3d(x, w, target, **options):
    return cross_entropy(F.linear(x, w.reshape(-1, 5)).view(4, 6, 3), target, validate=False, **options)


def test_gradcheck(plan):
    x, w, b, labels = layer(3, 2, 9)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda x, w, b: linear_cross_entropy(x, w, labels, linear_bias=b, label_smoothing=0.2, reduction=reduction),
            (x, w, b),
        )


def test_only_what_requires_a_gradient_gets_one(plan):
    _, expected = value_and_grads(lambda *t: whole(*t, layer()[3], label_smoothing=0.1), layer()[:3])
    for wanted in itertools.product((False, True), repeat=3):
        *tensors, labels = layer()
        for tensor, needed in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(needed)
        loss = linear_cross_entropy(tensors[0], tensors[1], labels, linear_bias=tensors[2], label_smoothing=0.1)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        for tensor, needed, gradient in zip(tensors, wanted, expected, strict=True):
            assert (tensor.grad is not None) == needed
            if needed:
                torch.testing.assert_close(tensor.grad, gradient)
    with torch.no_grad():
        assert not linear_cross_entropy(*layer()[:2], layer()[3]).requires_grad


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_backward_more_than_once_and_from_above(plan, reduction):
    x, w, _, labels = layer()
    loss = linear_cross_entropy(x, w, labels, label_smoothing=0.1, reduction=reduction).sum()
    once = torch.autograd.grad(loss, (x, w), retain_graph=True)
    for gradient in torch.autograd.grad(3 * loss, (x, w), retain_graph=True):
        gradient.zero_()  # the next is none the wiser
    for factor in (-2.0, 0.0, 1.0):
        again = torch.autograd.grad(factor * loss, (x, w), retain_graph=True)
        torch.testing.assert_close(again, tuple(factor * g for g in once))
    torch.testing.assert_close(torch.autograd.grad(5 * loss, (x, w)), tuple(5 * g for g in once))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_second_derivative(plan, reduction):
    x, w, _, labels = layer()
    loss = linear_cross_entropy(x, w, labels, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"linear_cross_entropy has no second derivative .*create_graph=True"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_target_that_changes_before_the_backward_pass_is_noticed():
    x, w, _, labels = layer()
    loss = linear_cross_entropy(x, w, labels, reduction="none").sum()
    labels[0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("poison", [float("nan"), INF, -INF])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_rows_that_are_not_kept_may_hold_anything(plan, poison, soft, reduction):
    x, w, b, labels = layer()
    keep = torch.tensor([True, False, True, True, False, True, True])
    target = F.one_hot(labels, 11).double() if soft else labels
    prior = torch.softmax(torch.randn(7, 11, dtype=torch.float64), 1)
    for u in (None, prior):
        options = {"label_smoothing": 0.1, "reduction": reduction}
        expected, gradients = value_and_grads(
            lambda *t: whole(t[0][keep], *t[1:], target[keep], prior=None if u is None else u[keep], **options),
            (x, w, b), torch.ones(()).expand(5) if reduction == "none" else torch.ones(()),
        )  # fmt: skip
        bad, there = x.detach().clone(), target.clone()
        bad[~keep] = poison
        there[~keep] = poison if soft else 77
        given = None if u is None else u.masked_fill(~keep[:, None], poison)
        loss, found = value_and_grads(
            lambda x, w, b: linear_cross_entropy(x, w, there, linear_bias=b, mask=keep, prior=given, **options),
            (bad.requires_grad_(), w, b), torch.ones(()).expand(7) if reduction == "none" else torch.ones(()),
        )  # fmt: skip
        torch.testing.assert_close(loss[keep] if reduction == "none" else loss, expected)
        torch.testing.assert_close(found, gradients)
        assert not found[0][~keep].any()


def test_nothing_kept_and_nothing_at_all_are_zero(plan):
    x, w, b, labels = layer()
    for reduction, dtype in itertools.product(("none", "sum", "mean"), DTYPES):
        for rows, ids in ((x, labels * 0 - 100), (x[:0], labels[:0])):
            tensors = [t.detach().to(dtype).requires_grad_() for t in (rows, w, b)]
            loss, gradients = value_and_grads(
                lambda x, w, b: linear_cross_entropy(
                    x, w, ids, linear_bias=b, label_smoothing=0.1, reduction=reduction
                ),
                tensors,
            )
            assert not loss.any()
            assert all(not g.any() and g.shape == t.shape for g, t in zip(gradients, tensors, strict=True))
    assert linear_cross_entropy(x, w, labels, normalizer=0) == 0


def test_infinite_bias_takes_a_class_out(plan):
    x, w, b, labels = layer()
    labels = labels % 10
    with torch.no_grad():
        b[10] = -INF
    loss, gradients = value_and_grads(lambda *t: linear_cross_entropy(t[0], t[1], labels, linear_bias=t[2]), (x, w, b))
    expected = cross_entropy(x @ w[:10].T + b[:10], labels)
    torch.testing.assert_close(loss, expected)
    assert all(bool(g.isfinite().all()) for g in gradients)
    loss, gradients = value_and_grads(
        lambda *t: linear_cross_entropy(t[0], t[1], labels, linear_bias=t[2], label_smoothing=0.1), (x, w, b)
    )
    assert loss == INF
    assert all(bool(g.isfinite().all()) for g in gradients)
    prior = (torch.arange(11) < 10).double() / 10
    same = linear_cross_entropy(x, w, labels, linear_bias=b, label_smoothing=0.1, prior=prior)
    torch.testing.assert_close(same, cross_entropy(x @ w[:10].T + b[:10], labels, label_smoothing=0.1))


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_offsets_lose_no_digits(plan, offset):
    x, w, _, labels = layer(dtype=torch.float32)
    b = torch.full((11,), offset)
    b[::2] += 200
    logits = (x.detach() @ w.detach().T).double()
    z = (x @ w.T + b).detach().double()  # float32's rounding of the logits is no fault of the loss
    assert (z - b.double() - logits).abs().max() < 1e-2
    found = linear_cross_entropy(x, w, labels, linear_bias=b, label_smoothing=0.1, reduction="none")
    expected = cross_entropy(z, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-3)


def test_bfloat16_sums_are_float32_sums():
    """Many small products beside a large one: a bfloat16 sum would stand still."""
    n, w, labels = 600, torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True), torch.zeros(600, dtype=torch.long)
    x = torch.full((n, 8), 0.01, dtype=torch.bfloat16)
    x[0] = 100
    options = type("Options", (), dict(batch_chunk_size=1, chunking_method="auto", acc_policy="auto", acc_dtype=None))
    linear_cross_entropy(x, w, labels, reduction="sum", options=options()).backward()
    exact = x.double().sum(0) * -0.75
    torch.testing.assert_close(w.grad[0].double(), exact, rtol=2**-8, atol=0)
    stuck = torch.zeros((), dtype=torch.bfloat16)
    for row in x[:, 0]:
        stuck = stuck - 0.75 * row
    assert abs(float(stuck) - float(exact[0])) > 2**-6 * abs(float(exact[0]))


def test_float16_gradients_survive_until_the_loss_scale_comes():
    x, w, _, labels = layer(400, 8, 50, torch.float16)
    with torch.no_grad():
        x *= 1e-4
    scale = 2.0**16
    _, (dx, dw) = value_and_grads(
        lambda x, w: linear_cross_entropy(x, w, labels, normalizer=4e4), (x, w), torch.tensor(scale)
    )
    _, exact = value_and_grads(
        lambda x, w: whole(x, w, None, labels, normalizer=4e4),
        [t.detach().double().requires_grad_() for t in (x, w)], torch.tensor(scale, dtype=torch.float64),
    )  # fmt: skip
    for found, expected in zip((dx, dw), exact, strict=True):
        assert (found.double() - expected).abs().max() < 4e-3 * expected.abs().max()


def test_autocast_as_for_a_linear_layer():
    x, w, b, labels = layer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, gradients = value_and_grads(
            lambda *t: cross_entropy(F.linear(*t), labels, label_smoothing=0.1), (x, w, b)
        )
        loss, found = value_and_grads(
            lambda x, w, b: linear_cross_entropy(x, w, labels, linear_bias=b, label_smoothing=0.1), (x, w, b)
        )
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in found)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, gradients, rtol=2e-2, atol=2e-3)


def test_normalizer_accumulates_to_the_whole_batch(plan):
    x, w, b, labels = layer()
    whole_loss, gradients = value_and_grads(
        lambda *t: linear_cross_entropy(t[0], t[1], labels, linear_bias=t[2]), (x, w, b)
    )
    for normalizer in (7, torch.tensor(7.0)):
        loss, found = value_and_grads(
            lambda *t: sum(
                linear_cross_entropy(t[0][p], t[1], labels[p], linear_bias=t[2], normalizer=normalizer)
                for p in (slice(0, 3), slice(3, 7))
            ),
            (x, w, b),
        )
        torch.testing.assert_close(loss, whole_loss)
        torch.testing.assert_close(found, gradients)


def test_layouts():
    x, w, _, labels = layer()
    expected = value_and_grads(lambda *t: whole(*t, None, labels, label_smoothing=0.1), (x, w))
    for reduction in ("mean", "none"):
        found = value_and_grads(
            lambda x, w: linear_cross_entropy(x.T, w.T, labels, label_smoothing=0.1, reduction=reduction).mean(),
            (x.detach().T.contiguous().requires_grad_(), w.detach().T.contiguous().requires_grad_()),
        )
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], tuple(g.T for g in expected[1]))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo's, of what it passes on
def test_compiled_with_a_graph_break():
    x, w, b, labels = layer()

    def function(x, w, b):
        return 2 * linear_cross_entropy(x * 1, w, labels, linear_bias=b, label_smoothing=0.1)

    torch.testing.assert_close(
        value_and_grads(torch.compile(function, backend="aot_eager"), (x, w, b)), value_and_grads(function, (x, w, b))
    )


def test_options_of_pytorch(monkeypatch):
    options = pytest.importorskip("torch.nn").LinearCrossEntropyOptions
    x, w, _, labels = layer()
    sizes, made = [], module._logits
    monkeypatch.setattr(module, "_logits", lambda x, *rest, **more: sizes.append(len(x)) or made(x, *rest, **more))
    expected = whole(x, w, None, labels)
    for given, chunks in (
        (options(), [7]),
        (options(batch_chunk_size=2), [1, 2, 2, 2]),
        (options(batch_chunk_size=50, chunking_method=None, acc_policy="accurate", allow_retain_graph=True), [7]),
    ):
        torch.testing.assert_close(linear_cross_entropy(x, w, labels, options=given), expected)
        assert sorted(sizes) == chunks
        sizes.clear()


X, W, Y = torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 2])
OPTIONS = getattr(torch.nn, "LinearCrossEntropyOptions", None)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 5, 4), W, Y), {}, r"input must have shape \[D\] or \[N, D\] \(flatten .*; got \(2, 5, 4\)"),
        ((X.long(), W, Y), {}, r"input must have a float dtype; got torch.int64"),
        (([[0.0]], W, Y), {}, r"input must be a tensor; got <class 'list'>"),
        ((X, W.T, Y), {}, r"linear_weight must have shape \[K, 4\] or \[K, d1, ..., 4\]; got \(4, 3\)"),
        ((X[0], torch.zeros(3, 2, 4), Y), {}, r"linear_weight must have shape \[K, 4\]; got \(3, 2, 4\)"),
        ((X, W.half(), Y), {}, r"linear_weight must have the dtype and device of input, torch.float32 on cpu; got torch.float16 on cpu"),
        ((X, torch.zeros(0, 4), Y), {}, r"input must have at least one class"),
        ((X, W, Y), {"linear_bias": torch.zeros(4)}, r"linear_bias must have shape \(3,\); got \(4,\)"),
        ((X, W, Y), {"linear_bias": torch.zeros(3).double()}, r"linear_bias must have the dtype"),
        ((X, W, Y), {"linear_bias": [0, 0, 0]}, r"linear_bias must be a tensor"),
        ((X, W, [0, 2]), {}, r"target must be a tensor; got <class 'list'>"),
        ((X, W, torch.tensor([0, 3])), {}, r"target must be class ids in 0..2; got 3 at index 1"),
        ((X, W, torch.tensor([0.5, 1])), {}, r"target must be class ids of shape \(2,\) or targets of shape \(2, 3\); got torch.float32"),
        ((X, W, torch.full((2, 3), 0.5)), {}, r"target must be non-negative and sum to 1 over the classes; got a sum of 1.5 in row 0"),
        ((X, W, torch.tensor([[1.0, 0, 0], [1.5, -0.5, 0]])), {}, r"target must be non-negative .* got -0.5 at index 1, 1"),
        ((X, W, torch.full((2, 3), 1 / 3)), {"ignore_index": 0}, r"ignore_index must be negative where target is no class ids"),
        ((X, W, Y), {"label_smoothing": 1.0}, r"label_smoothing must be a number in \[0, 1\); got 1.0"),
        ((X, W, Y), {"reduction": "avg"}, r"reduction must be one of 'none', 'sum', 'mean'; got 'avg'"),
        ((X, W, Y), {"weight_mode": "rows"}, r"weight_mode must be one of"),
        ((X, W, Y), {"ignore_index": "0"}, r"ignore_index must be a whole number"),
        ((X, W, Y), {"weight": torch.ones(4)}, r"weight must have shape \(3,\); got \(4,\)"),
        ((X, W, Y), {"weight": torch.ones(3, requires_grad=True)}, r"weight must require no gradient \(.*cross_entropy has"),
        ((X, W, torch.zeros(2, 3, requires_grad=True)), {}, r"target must require no gradient"),
        ((X, W, Y), {"prior": torch.ones(3)}, r"prior must be non-negative and sum to 1 .* got a sum of 3"),
        ((X, W, Y), {"prior": torch.ones(2, 3)}, r"prior must be non-negative and sum to 1 .* got a sum of 3 in row 0"),
        ((X, W, Y), {"prior": torch.ones(3, 2)}, r"prior must have shape \(3,\) or \(2, 3\); got \(3, 2\)"),
        ((X, W, Y), {"class_prior": torch.ones(3, 3)}, r"class_prior must be .* got a sum of 3 in row 0"),
        ((X, W, Y), {"class_prior": torch.eye(3), "prior": torch.ones(3)}, r"prior must be None where class_prior is given"),
        ((X, W, Y), {"mask": torch.ones(2)}, r"mask must be boolean; got torch.float32"),
        ((X, W, Y), {"class_mask": torch.tensor([True, True, False])}, r"class_mask must keep the true class of every kept row; got .* row 1"),
        ((X, W, Y), {"class_mask": torch.tensor([[True, True, True], [True, True, False]])}, r"class_mask must keep the true class .* row 1"),
        ((X, W, Y), {"class_mask": torch.tensor([True, False, True]), "prior": torch.tensor([0.0, 1, 0])}, r"class_mask must keep a class that the prior"),
        ((X, W, Y), {"class_mask": torch.tensor([[True, False, True]] * 2), "prior": torch.tensor([0.0, 1, 0])}, r"class_mask must keep a class that the prior"),
        ((X, W, Y), {"linear_bias": torch.full((3,), -INF)}, r"input must have a finite value in every kept row"),
        ((X, W, Y), {"normalizer": 3, "reduction": "sum"}, r"normalizer must be None unless reduction is 'mean'"),
        ((X, W, Y), {"normalizer": torch.tensor(-1.0)}, r"normalizer must be a number .* got -1"),
        ((X, W, Y), {"options": 64}, r"options must be a torch.nn.LinearCrossEntropyOptions; got 64"),
        ((X, W, Y), {"group": "world"}, r"group must be a process group \(call torch.distributed.init_process_group first\); got 'world'"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_the_rule_and_the_value(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*arguments, **options)


@pytest.mark.skipif(OPTIONS is None, reason="this PyTorch has no LinearCrossEntropyOptions")
@pytest.mark.parametrize(
    ("field", "value"), [("acc_policy", "compact"), ("acc_dtype", torch.float16), ("chunking_method", "aspect_ratio:2")]
)
def test_options_that_ask_for_another_way_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"options.{field} must be .*accumulated in float32, anyway\); got "):
        linear_cross_entropy(X, W, Y, options=OPTIONS(**{field: value}))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_transformations_see_whole_logits():
    x, w, b, labels = layer()
    x, w, b = (t.detach() for t in (x, w, b))

    def loss(x, w, b):
        return linear_cross_entropy(x, w, labels, linear_bias=b, label_smoothing=0.1)

    expected = torch.autograd.grad(loss(*(t.requires_grad_() for t in (x, w, b))), (x, w, b))
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2))(x, w, b), expected)
    (rows,) = torch.func.vmap(lambda x, y: (linear_cross_entropy(x, w, y),))(x, labels.clamp(min=0))
    torch.testing.assert_close(rows, linear_cross_entropy(x, w, labels.clamp(min=0), reduction="none"))
    assert torch.func.jvp(loss, (x, w, b), (x, w, b))[1].isfinite()
    traced = torch.jit.trace(loss, (x, w, b))
    torch.testing.assert_close(traced(2 * x, w, b), loss(2 * x, w, b))
    with pytest.raises(ValueError, match="linear_bias must have shape"):
        torch.func.grad(lambda x: linear_cross_entropy(x, w, labels, linear_bias=b[:1]))(x)
    with pytest.raises(ValueError, match=r"input must have shape \[D\] or \[N, D\]"):
        torch.func.grad(lambda x: linear_cross_entropy(x, w, torch.zeros(2, 5).long()))(torch.zeros(2, 5, 5).double())


def test_several_upstream_gradients_at_once():
    x, w, _, labels = layer()
    loss = linear_cross_entropy(x, w, labels)
    each = torch.tensor([1.0, -2.0], dtype=loss.dtype)
    (together,) = torch.autograd.grad(loss, x, each, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(
        together, torch.stack([torch.autograd.grad(loss * u, x, retain_graph=True)[0] for u in each])
    )
    loss = linear_cross_entropy(x, w, labels, reduction="none")
    with pytest.raises(RuntimeError, match="by chunks of classes takes one upstream gradient at a time"):
        torch.autograd.grad(loss, x, torch.eye(7, dtype=loss.dtype), is_grads_batched=True)


@pytest.mark.parametrize("label", [-1, 1000])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_unchecked_labels_that_are_none_never_count_as_ignored(label, reduction):
    x, w, _, labels = layer()
    labels[1] = label
    try:
        loss = linear_cross_entropy(x, w, labels, reduction=reduction, validate=False)
    except (ValueError, IndexError):
        return
    assert loss.isnan().any()


def test_unchecked_values_pass():
    x, w, *_ = layer()
    bad = torch.full((7, 11), 0.5, dtype=torch.float64)
    assert linear_cross_entropy(x, w, bad, validate=False).isfinite()


def test_fake_tensors_and_counters_of_operations(plan):
    """What tools that plan memory and count operations look at has no values."""
    x, w, b, labels = layer(dtype=torch.float32)
    for reduction in ("mean", "none"):
        with FakeTensorMode():
            fake = [torch.empty(t.shape, requires_grad=True) for t in (x, w, b)]
            loss = linear_cross_entropy(
                *fake[:2],
                torch.empty(7, dtype=torch.long),
                linear_bias=fake[2],
                label_smoothing=0.1,
                reduction=reduction,
            )
            loss.sum().backward()
            assert [t.grad.shape for t in fake] == [t.shape for t in (x, w, b)]
    expected = value_and_grads(lambda *t: whole(*t, labels, label_smoothing=0.1), (x, w, b))
    with FlopCounterMode(display=False) as counter:
        found = value_and_grads(
            lambda *t: linear_cross_entropy(t[0], t[1], labels, linear_bias=t[2], label_smoothing=0.1), (x, w, b)
        )
    assert counter.get_total_flops() == (8 if plan == "classes" else 6) * x.numel() * len(w)
    torch.testing.assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_on_a_gpu(plan, dtype, reduction, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_ELSEWHERE", 3 if plan != "whole" else 1024)
    x, w, b, labels = layer(dtype=dtype)
    labels[1] = -100
    prior = torch.arange(11) / 55
    options = {"label_smoothing": 0.1, "reduction": reduction, "weight": torch.linspace(0.5, 2, 11)}
    expected = value_and_grads(
        lambda *t: whole(*t, labels, prior=prior, **options), [t.detach().double().requires_grad_() for t in (x, w, b)]
    )
    options["weight"] = options["weight"].cuda()
    found = value_and_grads(
        lambda x, w, b: linear_cross_entropy(x, w, labels.cuda(), linear_bias=b, prior=prior.cuda(), **options),
        [t.detach().cuda().requires_grad_() for t in (x, w, b)],
    )
    for mine, truth in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert (mine.cpu().double() - truth).abs().max() <= 32 * EPS[dtype] * max(1.0, float(truth.abs().max()))


def test_dtensor_is_not_imported_for_nothing():
    code = """
import sys, torch
from labelsmooth.torch import linear_cross_entropy
linear_cross_entropy(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 1]), prior=torch.ones(4) / 4, normalizer=2)
assert "torch.distributed.tensor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


MEMORY = """
import sys, threading, torch
from labelsmooth.torch import linear_cross_entropy
torch.set_num_threads(1)

def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

def run(n, k, dtype, reduction):
    x, w = torch.randn(n, 64, dtype=dtype, requires_grad=True), torch.randn(k, 64, dtype=dtype, requires_grad=True)
    linear_cross_entropy(x, w, torch.randint(0, k, (n,)), label_smoothing=0.1, reduction=reduction).sum().backward()

for dtype, reduction in ((torch.float32, "mean"), (torch.bfloat16, "mean"), (torch.float32, "none")):
    run(8, 8, dtype, reduction)
    before, peak, done = resident(), [0], threading.Event()
    watcher = threading.Thread(target=lambda: [peak.append(resident()) for _ in iter(lambda: done.wait(0.002), True)])
    watcher.start()
    run(2048, 50_000, dtype, reduction)
    done.set()
    watcher.join()
    print((max(peak) - before) / (2048 * 50_000 * dtype.itemsize))
"""


def test_memory_is_a_part_of_the_logits():
    """All that a step takes, inputs and gradients included, beside the logits alone: else it takes three times those."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    shares = [float(line) for line in result.stdout.split()]
    assert len(shares) == 3
    assert max(shares) < 0.6, shares


MILLION = """
import sys, torch
from labelsmooth.torch import linear_cross_entropy
torch.set_num_threads(1)
d, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
n, k, times, smoothing = 512, 1000, 1000, 0.1

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

x, few = torch.randn(n, d, dtype=dtype), torch.randn(k, d, dtype=dtype) / d**0.5
w, labels = few.repeat(times, 1), torch.randint(0, k * times, (n,))
before = status("VmRSS")
assert status("VmHWM") - before < 2**24
loss = linear_cross_entropy(x.requires_grad_(), w.requires_grad_(), labels, label_smoothing=smoothing)
loss.backward()
extra = status("VmHWM") - before - sum(t.numel() * t.element_size() for t in (x, w))

# A thousand copies of a thousand classes: everything is known from one of each.
with torch.no_grad():
    x, few, g, y = x.double(), few.double(), (x.grad, w.grad), labels % k
    z = x @ few.T
    lse, eps = z.logsumexp(1), torch.finfo(dtype).eps
    exact = (lse + torch.tensor(times).log() - (1 - smoothing) * z.gather(1, y[:, None])[:, 0] - smoothing * z.mean(1)).mean()
    assert abs(loss.double() - exact) < 8 * eps * exact, (loss, exact)
    p = (z - lse[:, None]).exp() - smoothing / k
    dx = (p @ few - (1 - smoothing) * few[y]) / n
    near = max(2 * eps, 1e-4)  # float32 sums of a million numbers, the same ones again and again
    assert (g[0].double() - dx).abs().max() < near * dx.abs().max()
    dw = p[:, y[:8]].T @ x / times / n
    for row in range(8):
        dw[row] -= (1 - smoothing) * x[labels == labels[row]].sum(0) / n
    assert (g[1][labels[:8]].double() - dw).abs().max() < near * dw.abs().max()
print(extra)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [64, 1024])
def test_a_million_classes_within_a_gigabyte(width, dtype):
    """All that a fresh process takes beyond the inputs and the gradients that it gives, whatever it loads included."""
    result = subprocess.run([sys.executable, "-c", MILLION, str(width), dtype], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2**30, int(result.stdout) / 2**30
    print(f"{width} wide, {dtype}: {int(result.stdout) / 2**30:.3f} GiB")
