"""`labelsmooth.torch` beside PyTorch's own loss, and what is its alone; tests/contract binds it to the reference."""

import itertools
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labelsmooth import losses, smooth_labels
from labelsmooth.torch import CrossEntropyLoss, cross_entropy, linear_cross_entropy

INF = float("inf")
EPS = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def to_numpy(x):
    """The same values in the same dtype, so that the reference applies the same tolerance."""
    return x.float().numpy().astype(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def case(shape, dtype=torch.float32, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    dim = 0 if len(shape) == 1 else 1
    lead = shape[:dim] + shape[dim + 1 :]
    input = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    labels = torch.randint(0, shape[dim], lead, generator=generator)
    soft = torch.rand(shape, generator=generator, dtype=torch.float64).add(0.01)
    return input, labels, (soft / soft.sum(dim, keepdim=True)).to(dtype), dim


def value_and_grad(function, input, *args, **options):
    input = input.detach().clone().requires_grad_()
    loss = function(input, *args, **options)
    (gradient,) = torch.autograd.grad(loss, input, torch.ones_like(loss))
    return loss.detach(), gradient


def assert_equals_pytorch(ours, theirs, dtype):
    for mine, other, name in zip(ours, theirs, ("loss", "gradient"), strict=True):
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        bound = 16 * EPS[dtype] * scale
        assert mine.shape == other.shape, name
        assert float((mine.double() - other.double()).abs().max() if mine.numel() else 0) <= bound, name


SHAPES = [(5,), (4, 5), (3, 5, 2), (2, 5, 3, 2), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_pytorch_with_labels(shape, dtype, smoothing):
    input, labels, _, dim = case(shape, dtype)
    weights = torch.linspace(0.5, 2, shape[dim], dtype=dtype)
    for reduction, weight, ignore_index in itertools.product(("none", "sum", "mean"), (None, weights), (-100, 1, -1)):
        ids = labels.clone()
        if ids.dim() and ignore_index == -1:
            ids.view(-1)[0] = -1
        if bool((ids == ignore_index).all()):
            continue  # nothing kept: PyTorch's nan is our 0
        options = dict(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing)
        assert_equals_pytorch(
            value_and_grad(cross_entropy, input, ids, **options),
            value_and_grad(F.cross_entropy, input, ids, **options),
            dtype,
        )
        assert torch.equal(CrossEntropyLoss(**options)(input, ids), cross_entropy(input, ids, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_pytorch_with_soft_targets(shape, dtype, smoothing):
    input, _, soft, dim = case(shape, dtype)
    weights = torch.linspace(0.5, 2, shape[dim], dtype=dtype)
    for reduction, weight in itertools.product(("none", "sum", "mean"), (None, weights)):
        if reduction == "mean" and weight is not None:
            continue  # the difference that test_weighted_soft_mean_differs_from_pytorch names
        options = dict(weight=weight, reduction=reduction, label_smoothing=smoothing)
        assert_equals_pytorch(
            value_and_grad(cross_entropy, input, soft, **options),
            value_and_grad(F.cross_entropy, input, soft, **options),
            dtype,
        )


def test_difference_from_pytorch_weighted_soft_mean():
    input, labels, _, _ = case((4, 5), torch.float64)
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    one_hot = F.one_hot(labels, 5).double()
    options = dict(weight=weight, label_smoothing=0.1)
    by_label = cross_entropy(input, labels, **options)
    torch.testing.assert_close(cross_entropy(input, one_hot, **options), by_label)
    torch.testing.assert_close(F.cross_entropy(input, labels, **options), by_label)
    theirs = F.cross_entropy(input, one_hot, **options)  # divides by N, not by the weights
    torch.testing.assert_close(theirs * 4 / weight[labels].sum(), by_label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_difference_from_pytorch_half_logits_give_a_float32_loss(dtype, soft):
    input, labels, targets, _ = case((6, 7), dtype)
    target = targets if soft else labels
    loss, gradient = value_and_grad(cross_entropy, input, target, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert F.cross_entropy(input, target, label_smoothing=0.1).dtype == dtype
    reference, reference_gradient = losses.cross_entropy_and_grad(
        to_numpy(input.detach()), to_numpy(target), label_smoothing=0.1
    )
    assert float(loss) == pytest.approx(float(reference), rel=1e-6)
    np.testing.assert_allclose(gradient.double().numpy(), reference_gradient, atol=EPS[dtype] / 6)


def test_difference_from_pytorch_nothing_kept_is_zero():
    input, _, _, _ = case((4, 5))
    ids = torch.full((4,), -100)
    assert bool(F.cross_entropy(input, ids).isnan())
    for options in ({}, {"weight": torch.ones(5)}, {"label_smoothing": 0.1}):
        loss, gradient = value_and_grad(cross_entropy, input, ids, **options)
        assert loss == 0
        assert bool((gradient == 0).all())
    empty = torch.empty(0, 5, requires_grad=True)
    loss = cross_entropy(empty, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert empty.grad.shape == (0, 5)
    assert cross_entropy(empty, torch.empty(0, 5), reduction="none").shape == (0,)


def test_difference_from_pytorch_smoothing_of_one_is_refused():
    input, labels, _, _ = case((4, 5))
    assert bool(F.cross_entropy(input, labels, label_smoothing=1.0).isfinite())
    with pytest.raises(ValueError, match=r"label_smoothing must be a number in \[0, 1\); got 1.0"):
        cross_entropy(input, labels, label_smoothing=1.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropyLoss(label_smoothing=1.0)


def test_drop_in_arguments_by_position_and_the_deprecated_ones():
    input, labels, _, _ = case((4, 5))
    weight = torch.linspace(0.5, 2, 5)
    positional = (weight, None, 2, None, "sum", 0.1)
    torch.testing.assert_close(cross_entropy(input, labels, *positional), F.cross_entropy(input, labels, *positional))
    torch.testing.assert_close(
        CrossEntropyLoss(*positional)(input, labels), torch.nn.CrossEntropyLoss(*positional)(input, labels)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for legacy in ({"size_average": False}, {"reduce": False}, {"size_average": True}):
            ours = cross_entropy(input, labels, **legacy)
            torch.testing.assert_close(ours, F.cross_entropy(input, labels, **legacy))
            assert CrossEntropyLoss(**legacy)(input, labels).shape == ours.shape


def test_state_dict_has_pytorchs_name_for_the_weight():
    weight = torch.ones(3)
    assert (
        list(CrossEntropyLoss(weight).state_dict())
        == list(torch.nn.CrossEntropyLoss(weight).state_dict())
        == ["weight"]
    )
    module = CrossEntropyLoss(weight, prior=torch.tensor([0.2, 0.3, 0.5]), label_smoothing=0.1).double()
    assert module.prior.dtype == torch.float64
    assert repr(module) == "CrossEntropyLoss(label_smoothing=0.1, reduction='mean', weight_mode='class', weight, prior)"
    assert repr(CrossEntropyLoss(ignore_index=1)) == (
        "CrossEntropyLoss(label_smoothing=0, reduction='mean', ignore_index=1)"
    )


KINDS = ["uniform", "prior", "prior rows", "class_prior"]


def options_for(rng, shape, dim, kind, weight, masked, class_masked, labels, soft):
    count = shape[dim]
    lead = shape[:dim] + shape[dim + 1 :]
    options = {}
    if kind == "prior":
        options["prior"] = rng.dirichlet(np.ones(count))
    elif kind == "prior rows":
        options["prior"] = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, dim)
    elif kind == "class_prior":
        options["class_prior"] = rng.dirichlet(np.ones(count), count)
    if weight:
        options["weight"] = rng.uniform(0, 2, count)
    if masked:
        options["mask"] = np.asarray(rng.random(lead) < 0.6)
    if class_masked == "classes":
        options["class_mask"] = np.ones(count, bool)
        options["class_mask"][count - 1] = count == 1
    elif class_masked == "rows":
        options["class_mask"] = np.moveaxis(np.eye(count, dtype=bool)[labels], -1, dim) | (rng.random(shape) < 0.5)
    if soft is not None and class_masked:
        keep = options["class_mask"]
        keep = keep.reshape([-1 if i == dim else 1 for i in range(len(shape))]) if keep.ndim == 1 else keep
        soft = soft * keep + 1e-3 * keep
        soft = soft / soft.sum(dim, keepdims=True)
    return options, soft


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weight_mode", [None, "class", "example"])
def test_gradcheck_and_double_backward(kind, soft, weight_mode):
    rng = np.random.default_rng(3)
    input, labels, q, _ = case((3, 4), torch.float64, scale=1)
    options, _ = options_for(rng, (3, 4), 1, kind, weight_mode is not None, False, None, labels.numpy(), None)
    options = {name: torch.tensor(x) for name, x in options.items()} | {"weight_mode": weight_mode or "class"}
    mask = torch.tensor([True, False, True])

    def loss(z):
        return cross_entropy(z, q if soft else labels, label_smoothing=0.2, mask=mask, **options)

    assert torch.autograd.gradcheck(loss, (input,))
    assert torch.autograd.gradgradcheck(loss, (input,))


def test_gradient_with_respect_to_soft_targets_and_prior():
    input, _, soft, _ = case((3, 4), torch.float64)
    soft[0] = torch.tensor([0, 0, 0.4, 0.6])  # the gradient of a zero entry is -log p as well
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def loss(q, u):
        return cross_entropy(input.detach(), q, prior=u, label_smoothing=0.2, reduction="sum", validate=False)

    assert torch.autograd.gradcheck(loss, (soft.requires_grad_(), prior.requires_grad_()))


def test_infinite_logits():
    z = torch.tensor([[0.0, -INF, 1.0]])
    for target in (torch.tensor([0]), torch.tensor([[0.5, 0.0, 0.5]])):
        loss, gradient = value_and_grad(cross_entropy, z, target)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())
        assert gradient[0, 1] == 0
        loss, gradient = value_and_grad(cross_entropy, z, target, label_smoothing=0.1)
        assert loss == INF
        assert bool(gradient.isfinite().all())
        kept = {"class_mask": torch.tensor([True, False, True]), "label_smoothing": 0.1}
        loss, gradient = value_and_grad(cross_entropy, z, target, **kept)
        reference, reference_gradient = losses.cross_entropy_and_grad(
            z.numpy(), target.numpy(), class_mask=[True, False, True], label_smoothing=0.1
        )
        assert float(loss) == pytest.approx(float(reference), rel=1e-6)
        np.testing.assert_allclose(gradient.numpy(), reference_gradient, atol=1e-7)
    loss, gradient = value_and_grad(cross_entropy, z, torch.tensor([1]))
    assert loss == INF
    np.testing.assert_allclose(gradient.numpy(), losses.cross_entropy_and_grad(z.numpy(), [1])[1], atol=1e-7)
    weight = torch.tensor([1.0, 0.0, 1.0])  # a class of weight 0 counts 0, whatever its logit
    for mode in ("class", "example"):
        rows = cross_entropy(z, torch.tensor([1]), weight=weight, weight_mode=mode, reduction="none")
        assert rows.tolist() == losses.cross_entropy(
            z.numpy(), [1], weight=weight.numpy(), weight_mode=mode, reduction="none"
        ).tolist()  # fmt: skip


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_offsets_lose_no_digits(offset):
    z = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.0]])
    labels = torch.tensor([2, 1])
    plain, gradient = value_and_grad(cross_entropy, z, labels, label_smoothing=0.1)
    shifted, shifted_gradient = value_and_grad(cross_entropy, z + offset, labels, label_smoothing=0.1)
    assert float(shifted) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(shifted_gradient, gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("poison", [float("nan"), INF, -INF])
@pytest.mark.parametrize("kind", ["ignore_index", "mask", "soft"])
def test_rows_that_are_not_kept_may_hold_anything(poison, kind):
    input, labels, soft, _ = case((4, 5))
    prior = torch.full((4, 5), 0.2)
    mask = torch.tensor([False, True, True, True])
    class_mask = torch.ones(4, 5, dtype=torch.bool)
    class_mask[0] = False
    target = soft if kind == "soft" else labels
    options = {"label_smoothing": 0.1, "weight": torch.linspace(0.5, 2, 5)}
    expected, expected_gradient = value_and_grad(cross_entropy, input[1:], target[1:], **options)
    z = input.detach().clone()
    z[0], prior[0] = poison, float("nan")
    target = target.clone()
    target[0] = float("nan") if kind == "soft" else -100 if kind == "ignore_index" else 77
    given_mask = None if kind == "ignore_index" else mask
    loss, gradient = value_and_grad(
        cross_entropy, z, target, prior=prior, mask=given_mask, class_mask=class_mask, **options
    )
    torch.testing.assert_close(loss, expected)
    assert bool((gradient[0] == 0).all())
    torch.testing.assert_close(gradient[1:], expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_not_kept_have_no_gradient_whatever_comes_from_above(dtype):
    """The mean over a sequence of which nothing is kept: inf · 0."""
    x, w = torch.randn(6, 4).to(dtype).requires_grad_(), torch.randn(5, 4).to(dtype).requires_grad_()
    labels, soft = torch.tensor([0, 1, 2, -100, -100, -100]), torch.full((6, 5), 0.2, dtype=dtype)
    kept, lengths = labels >= 0, torch.tensor([3.0, 3, 3, 0, 0, 0])
    prior = torch.full((6, 5), 0.2)
    light = torch.tensor([1.0, 1, 1, 0, 0])  # rows of weight 0
    for target, options in (
        (labels, {}), (soft, {"mask": kept}), (labels, {"prior": prior}),
        (labels.where(kept, 3), {"weight": light, "weight_mode": "example"}),
    ):  # fmt: skip
        for loss in (
            cross_entropy(x @ w.T, target, reduction="none", label_smoothing=0.1, **options),
            linear_cross_entropy(x, w, target, reduction="none", label_smoothing=0.1, **options),
        ):
            above = torch.where(lengths > 0, loss / lengths, 0).sum()
            for gradient in torch.autograd.grad(above, (x, w)):
                assert gradient.isfinite().all(), (dtype, options)
        confident = torch.tensor([[200.0, 0, 0, 0, 0]]).to(dtype).requires_grad_()  # its gradient is 0
        assert torch.autograd.grad(cross_entropy(confident, labels[:1]) * torch.nan, confident)[0].isnan().all()
        nothing = cross_entropy(x @ w.T, torch.full_like(labels, -100), reduction="sum") / 0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(nothing, (x, w)))


def test_layouts_and_upstream_gradients():
    input, labels, _, _ = case((3, 5, 4))
    expected, expected_gradient = value_and_grad(cross_entropy, input, labels, reduction="none", label_smoothing=0.1)
    strided = torch.randn(3, 10, 8)[:, ::2, ::2]
    strided.copy_(input.detach())
    strided = strided.requires_grad_()
    loss = cross_entropy(strided, labels.T.contiguous().T, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, strided, torch.ones(()).expand(3, 4))  # stride 0
    torch.testing.assert_close(gradient, expected_gradient)


def test_normalizer_accumulates_to_the_whole_batch():
    input, labels, _, _ = case((6, 5), torch.float64)
    labels[4] = -100
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    whole, whole_gradient = value_and_grad(cross_entropy, input, labels, weight=weight, label_smoothing=0.1)
    total = weight[labels[labels >= 0]].sum()
    for normalizer in (total, float(total)):
        parts = [
            value_and_grad(cross_entropy, z, y, weight=weight, label_smoothing=0.1, normalizer=normalizer)
            for z, y in zip(input.split(2), labels.split(2), strict=True)
        ]
        torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
        torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole_gradient)
    assert cross_entropy(input, labels, normalizer=0) == 0
    assert cross_entropy(input, labels, normalizer=torch.tensor(0)) == 0


def test_integer_targets_of_any_dtype_and_one_hot_rows():
    input, labels, _, _ = case((4, 5))
    expected = cross_entropy(input, labels, label_smoothing=0.1)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.uint8):
        assert torch.equal(cross_entropy(input, labels.to(dtype), label_smoothing=0.1), expected)
    torch.testing.assert_close(cross_entropy(input, F.one_hot(labels, 5), label_smoothing=0.1), expected)


@pytest.mark.parametrize(
    ("dtype", "ignore_index"), [(torch.uint8, -100), (torch.int8, 300), (torch.int32, 2**33 + 1), (torch.uint16, 2)]
)
def test_ignore_index_never_wraps_around_in_a_narrow_dtype(dtype, ignore_index):
    input, labels = torch.randn(3, 200), torch.tensor([156, 2, 44]) % (128 if dtype == torch.int8 else 200)
    rows = cross_entropy(input, labels.to(dtype), ignore_index=ignore_index, reduction="none")
    torch.testing.assert_close(rows, F.cross_entropy(input, labels, ignore_index=ignore_index, reduction="none"))


def test_arrays_of_numpy_that_pytorch_does_not_take_as_they_are():
    z, y = torch.randn(2, 5), torch.tensor([0, 1])
    prior = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    expected = cross_entropy(z, y, label_smoothing=0.5, prior=torch.tensor(prior[::-1].copy()))
    for array in (prior[::-1], prior[::-1].astype(">f4")):
        assert cross_entropy(z, y, label_smoothing=0.5, prior=array) == pytest.approx(expected.item(), rel=1e-6)
    assert cross_entropy(z, y, normalizer=np.array(4.0)) == cross_entropy(z, y, normalizer=4)
    assert cross_entropy(z[0], y[0], mask=np.array(True)) == cross_entropy(z[0], y[0])


@pytest.mark.parametrize("normalizer", [torch.tensor(4.0), torch.tensor(4.0, requires_grad=True)])
def test_a_normalizer_may_require_grad_and_be_nan_where_nothing_is_checked(normalizer):
    z, y = torch.randn(2, 5), torch.tensor([0, 1])
    assert cross_entropy(z, y, normalizer=normalizer).item() == pytest.approx(cross_entropy(z, y, reduction="sum") / 4)
    assert cross_entropy(z, y, normalizer=normalizer * torch.nan, validate=False).isnan()


def test_a_module_keeps_its_prior_through_half_precision():
    z, y = torch.zeros(2, 5), torch.tensor([0, 1])
    shares = torch.tensor([0.17, 0.23, 0.13, 0.29, 0.18])
    for given in ({"prior": shares}, {"class_prior": shares.expand(5, 5)}):
        module = CrossEntropyLoss(label_smoothing=0.1, **given)
        expected = module(z, y)
        for trip in (module.half().float(), module.bfloat16().float(), module.half().double()):
            assert trip(z, y).item() == pytest.approx(expected.item(), rel=1e-2)
        assert module.half()(z, y).isfinite()
    wrong = CrossEntropyLoss(label_smoothing=0.1, prior=torch.ones(5))
    with pytest.raises(ValueError, match="prior must be non-negative and sum to 1"):
        wrong.double()(z, y)


def test_priors_of_numpy_are_taken():
    input, labels, _, _ = case((4, 5))
    prior = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    expected = cross_entropy(input, labels, label_smoothing=0.1, prior=torch.tensor(prior))
    assert torch.equal(cross_entropy(input, labels, label_smoothing=0.1, prior=prior), expected)
    assert torch.equal(CrossEntropyLoss(label_smoothing=0.1, prior=prior)(input, labels), expected)
    mask = np.array([True, False, True, True])
    assert torch.equal(cross_entropy(input, labels, mask=mask), cross_entropy(input, labels, mask=torch.tensor(mask)))


# Transformations.


def test_vmap_and_func_grad():
    input, labels, soft, _ = case((4, 5), torch.float64)
    for target in (labels, soft):
        rows = cross_entropy(input, target, label_smoothing=0.1, reduction="none")
        torch.testing.assert_close(
            torch.func.vmap(lambda z, y: cross_entropy(z, y, label_smoothing=0.1))(input, target), rows
        )
        _, gradient = value_and_grad(cross_entropy, input, target, label_smoothing=0.1)
        functional = torch.func.grad(lambda z, y: cross_entropy(z, y, label_smoothing=0.1))
        torch.testing.assert_close(functional(input.detach(), target), gradient)
        per_example = torch.func.vmap(functional)(input.detach(), target)
        torch.testing.assert_close(per_example / 4, gradient)


def test_compile_with_a_normalizer_that_changes():
    input, labels, _, _ = case((4, 5))
    compiled = torch.compile(lambda z, y, n: cross_entropy(z, y, normalizer=n), fullgraph=True, backend="eager")
    for normalizer in (8.0, 9.0, 11.0, 12):
        torch.testing.assert_close(
            compiled(input, labels, normalizer), cross_entropy(input, labels, normalizer=normalizer)
        )


def test_compile_with_inductor():
    input, labels, _, _ = case((4, 5))
    compiled = torch.compile(CrossEntropyLoss(label_smoothing=0.1), fullgraph=True)
    torch.testing.assert_close(compiled(input, labels), cross_entropy(input, labels, label_smoothing=0.1))


def test_autocast_gives_a_float32_loss_and_gradient_in_the_logits_dtype():
    layer, x, labels = torch.nn.Linear(6, 5), torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        loss = cross_entropy(logits, labels, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), labels, label_smoothing=0.1))


def test_autocast_leaves_a_class_prior_in_full_precision():
    input, _, soft, _ = case((8, 50))
    table = torch.softmax(torch.randn(50, 50) * 3, 1)
    plain = cross_entropy(input, soft, label_smoothing=0.3, class_prior=table)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cross_entropy(input, soft, label_smoothing=0.3, class_prior=table), plain)


# Errors.


def test_value_checks_are_skipped_where_they_may_not_look():
    input = torch.zeros(2, 3)
    bad = torch.tensor([[0.9, 0.9, 0.9]] * 2)
    with pytest.raises(ValueError, match="target must be .* sum of 2.7 in row 0"):
        cross_entropy(input, bad)
    assert bool(cross_entropy(input, bad, validate=False).isfinite())
    for validate in (None, True):
        rows = torch.func.vmap(lambda z, q, v=validate: cross_entropy(z, q, validate=v))(input, bad)
        assert bool(rows.isfinite().all())
        compiled = torch.compile(cross_entropy, backend="eager", fullgraph=True)
        assert bool(compiled(input, bad, validate=validate).isfinite())
    meta = cross_entropy(input.to("meta"), bad.to("meta"))
    assert meta.device.type == "meta"


Z, Y = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        (Z, torch.tensor([0, 3]), {}, r"target must be class ids in 0..2; got 3 at index 1"),
        (Z, torch.tensor([0, -1]), {}, r"target must be class ids in 0..2; got -1 at index 1"),
        (Z, torch.tensor([0.5, 1.5]), {}, r"target must be class ids of shape \(2,\) or targets of shape \(2, 3\); got torch.float32"),
        (Z, torch.tensor([0]), {}, r"target must be class ids of shape \(2,\)"),
        (Z, torch.tensor([True, False]), {}, r"target must be class ids"),
        (Z, torch.full((2, 3), 0.5), {}, r"target must be non-negative and sum to 1 over the classes; got a sum of 1.5 in row 0"),
        (Z, torch.tensor([[1.5, -0.5, 0], [1, 0, 0]]), {}, r"target must be non-negative .* got -0.5 at index 0, 1"),
        (Z, torch.full((2, 3), float("nan")), {}, r"target must be non-negative .* got nan"),
        (Z, torch.tensor([[7.0, 7, 7], [1, 1, 0]]), {"mask": torch.tensor([False, True])}, r"got a sum of 2 in row 1"),
        (Z, torch.ones(2, 3, dtype=torch.long), {}, r"target must be .* got a sum of 3 in row 0"),
        (Z.long(), Y, {}, r"input must have a float dtype; got torch.int64"),
        (torch.zeros(()), Y, {}, r"input must have shape \[K\], \[N, K\]"),
        (torch.zeros(2, 0), Y, {}, r"input must have at least one class"),
        (torch.full((2, 3), -INF), Y, {}, r"input must have a finite value in every kept row"),
        (Z, Y, {"label_smoothing": float("nan")}, r"label_smoothing must be a number in \[0, 1\); got nan"),
        (Z, Y, {"label_smoothing": "abc"}, r"label_smoothing must be a number in \[0, 1\); got 'abc'"),
        (Z, Y, {"reduction": "avg"}, r"reduction must be one of 'none', 'sum', 'mean'; got 'avg'"),
        (Z, Y, {"weight_mode": None}, r"weight_mode must be one of 'class', 'example'; got None"),
        (Z, Y, {"weight": torch.ones(2)}, r"weight must have shape \(3,\); got \(2,\)"),
        (Z, Y, {"prior": torch.ones(3)}, r"prior must be non-negative and sum to 1 .* got a sum of 3"),
        (Z, Y, {"prior": torch.full((3, 2), 0.5)}, r"prior must have shape \(3,\) or \(2, 3\); got \(3, 2\)"),
        (Z, Y, {"class_prior": torch.ones(3, 3)}, r"class_prior must be .* got a sum of 3 in row 0"),
        (Z, Y, {"class_prior": torch.eye(3), "prior": torch.ones(3) / 3}, r"prior must be None where class_prior is given"),
        (Z, Y, {"mask": torch.ones(2)}, r"mask must be boolean; got torch.float32"),
        (Z, Y, {"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have shape \(2,\); got \(3,\)"),
        (Z, Y, {"class_mask": torch.tensor([True, True, False])}, r"class_mask must keep the true class of every kept row; got .* row 1"),
        (Z, torch.full((2, 3), 1 / 3), {"class_mask": torch.tensor([True, True, False])}, r"class_mask must keep the true class"),
        (Z, Y, {"class_mask": torch.tensor([True, False, True]), "prior": torch.tensor([0.0, 1.0, 0.0])}, r"class_mask must keep a class that the prior"),
        (Z, Y, {"normalizer": 3, "reduction": "sum"}, r"normalizer must be None unless reduction is 'mean'"),
        (Z, Y, {"normalizer": float("nan")}, r"normalizer must be a number that is finite and not negative; got nan"),
        (Z, Y, {"normalizer": torch.tensor(-1.0)}, r"normalizer must be a number that is finite and not negative; got -1"),
        (Z, Y, {"normalizer": torch.ones(1)}, r"normalizer must be a number .* got shape \(1,\)"),
        (Z, Y, {"normalizer": np.float32(-1)}, r"normalizer must be a number .* got -1"),
        (Z, Y, {"ignore_index": None}, r"ignore_index must be a whole number; got None"),
        (Z, Y, {"ignore_index": True}, r"ignore_index must be a whole number; got True"),
        (Z, Y, {"ignore_index": 2**63}, r"ignore_index must be a whole number of 64 bits; got 9223372036854775808"),
        (Z, Y, {"ignore_index": -(2**70)}, r"ignore_index must be a whole number of 64 bits; got -1180591620717411303424"),
        (Z, Y, {"normalizer": torch.ones((), device="meta")}, r"normalizer must be on the device of input, cpu, or on the CPU; got meta"),
        (Z.tolist(), Y, {}, r"input must be a tensor; got <class 'list'>"),
        (Z, Y.tolist(), {}, r"target must be a tensor; got <class 'list'>"),
        (Z, Y, {"weight": object()}, r"weight must be a tensor, or an array of numbers"),
        (Z, Y, {"prior": torch.full((3,), 0.2, dtype=torch.bfloat16)}, r"prior must be non-negative and sum to 1"),
        (torch.tensor([[-INF] * 3, [0.0, 1, 2]]), Y, {"weight": torch.tensor([0.0, 1, 1])}, r"input must have a finite value"),
        (Z, torch.full((2, 3), 1 / 3), {"ignore_index": 0}, r"ignore_index must be negative where target is no class ids"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_the_rule_and_the_value(input, target, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(input, target, **options)


@pytest.mark.parametrize("name", ["target", "weight", "prior", "class_prior", "mask", "class_mask"])
def test_tensors_on_several_devices_are_refused(name):
    here = {
        "target": torch.zeros(3, dtype=torch.int64), "weight": torch.ones(4), "prior": torch.full((4,), 0.25),
        "class_prior": torch.full((4, 4), 0.25), "mask": torch.ones(3, dtype=torch.bool),
        "class_mask": torch.ones(4, dtype=torch.bool),
    }  # fmt: skip
    given = {"target": here["target"], name: here[name].to("meta")}
    with pytest.raises(ValueError, match=f"{name} must be on the device of input, cpu; got meta"):
        cross_entropy(torch.zeros(3, 4), **given)


def test_targets_that_are_smoothed_already_are_told_of():
    labels = torch.tensor([[2, 0, 1], [1, 1, 3]])
    message = r"target looks like labels that are smoothed already, by 0\.1, and label_smoothing=0\.1 smooths them again, to 0\.19"
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        smoothed = smooth_labels(labels, 0.1, num_classes=4, dtype=dtype)
        for target in (
            smoothed[0],
            smoothed.movedim(-1, 1),
            smoothed[:1].movedim(-1, 1),
            smoothed.movedim(-1, 1)[..., None],
        ):
            logits = torch.zeros(target.shape)
            with pytest.warns(UserWarning, match=message) as caught:
                cross_entropy(logits, target, label_smoothing=0.1)
            assert caught[0].filename == __file__
            cross_entropy(logits, target)  # warnings are errors here
            cross_entropy(logits, target, label_smoothing=0.1, validate=False)
    with pytest.warns(UserWarning, match=message):
        CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(3, 4), smoothed[0])
    with pytest.warns(UserWarning, match=message):
        linear_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), smoothed[0].float(), label_smoothing=0.1)
    cross_entropy(torch.zeros(4), smoothed[0, 0].float(), label_smoothing=0.1)
