"""Logits and linear layers whose classes are spread over processes, against the float64 reference of all classes.

Every case runs inside the processes of one group for each world size; what it raises there is shown here.
"""

import datetime
import gc
import itertools
import multiprocessing
import os
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist

import labelsmooth.torch as lst
from labelsmooth import losses
from labelsmooth.torch import cross_entropy, linear_cross_entropy, vocab_parallel_cross_entropy
from labelsmooth.torch import linear as linear_module

EPS = {torch.float64: 2**-52, torch.float32: 2**-23, torch.bfloat16: 2**-7}
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def sizes_of(count, world, even):
    """How many classes each rank has; uneven: the last has most."""
    if even:
        return [count // world + (rank < count % world) for rank in range(world)]
    sizes = [1 + rank % 2 for rank in range(world - 1)]
    return [*sizes, count - sum(sizes)]


def mine(x, rank, sizes, dim=1):
    return x.split(sizes, dim)[rank].contiguous()


def problem(rng, shape, kind, weighted, masked, class_masked, soft):
    """Arguments of the loss over all classes, and which of them are laid out like the logits."""
    count, lead = shape[1], (shape[0], *shape[2:])
    labels = rng.integers(0, count - 1, lead)
    options, by_row = {}, set()
    if kind == "prior":
        options["prior"] = rng.dirichlet(np.ones(count))
        options["prior"][1] = 0
        options["prior"] /= options["prior"].sum()
    elif kind == "prior rows":
        options["prior"] = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, 1)
        by_row.add("prior")
    elif kind == "class_prior":
        options["class_prior"] = rng.dirichlet(np.ones(count), count)
    if weighted:
        options["weight"] = rng.uniform(0, 2, count)
    if masked:
        options["mask"] = rng.random(lead) < 0.6
    if class_masked == "classes":
        options["class_mask"] = np.arange(count) < count - 1
    elif class_masked == "rows":
        options["class_mask"] = np.moveaxis(np.eye(count, dtype=bool)[labels], -1, 1) | (rng.random(shape) < 0.6)
        by_row.add("class_mask")
    target = np.where(rng.random(lead) < 0.2, -100, labels)
    if soft:
        target = np.moveaxis(rng.dirichlet(np.ones(count), lead), -1, 1)
        if class_masked:
            keep = options["class_mask"]
            target = target * (keep if keep.ndim > 1 else keep.reshape(1, -1, *[1] * (len(shape) - 2)))
            target = target / target.sum(1, keepdims=True)
    return target, options, by_row


def table():
    """Every option against every reduction, some with three axes; soft targets have no class_prior here."""
    rows = itertools.product(
        ("uniform", "prior", "prior rows", "class_prior"), (None, "class", "example"), ("none", "sum", "mean"), (False, True)
    )  # fmt: skip
    for seed, (kind, mode, reduction, soft) in enumerate(rows):
        if not (soft and kind == "class_prior"):
            yield seed, kind, mode, reduction, soft, bool(seed % 2), (None, "classes", "rows")[seed % 3]


def assert_close(found, expected, bound, what):
    found, expected = found.detach().double().numpy(), np.asarray(expected)
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    worst = np.abs(found - expected).max(initial=0)
    assert worst <= bound, (what, worst, bound)


def check_logits(rank, world, dtype):
    for seed, kind, mode, reduction, soft, masked, class_masked in table():
        rng = np.random.default_rng(seed)
        shape = (5, 4, 2)[:2] if seed % 4 else (3, 9, 2)
        shape = (shape[0], 9, *shape[2:])
        sizes = sizes_of(9, world, even=bool(seed % 2))
        target, options, by_row = problem(rng, shape, kind, mode is not None, masked, class_masked, soft)
        z = torch.tensor(rng.normal(size=shape) * 4).to(dtype)
        common = dict(label_smoothing=(0.0, 0.1, 0.7)[seed % 3], weight_mode=mode or "class", reduction=reduction)
        number = dtype if dtype == torch.float64 else torch.float32
        tensors = {
            name: torch.tensor(x) if x.dtype == bool else torch.tensor(x).to(number) for name, x in options.items()
        }
        target = torch.tensor(target).to(number) if soft else torch.tensor(target)
        arrays = {name: x.numpy() for name, x in tensors.items()}
        expected, gradient = losses.cross_entropy_and_grad(
            z.double().numpy(), target.numpy(), axis=1, **arrays, **common
        )
        here = mine(z, rank, sizes).requires_grad_()
        local = {name: mine(x, rank, sizes) if name in by_row else x for name, x in tensors.items()}
        loss = vocab_parallel_cross_entropy(here, mine(target, rank, sizes) if soft else target, **local, **common)
        assert loss.dtype == number
        assert_close(loss, expected, 16 * EPS[number] * max(1.0, np.abs(expected).max(initial=0)), (seed, "loss"))
        (found,) = torch.autograd.grad(loss, here, torch.ones_like(loss))
        assert found.dtype == dtype
        scale = np.abs(gradient).max(initial=0)
        assert_close(
            found, mine(torch.tensor(gradient), rank, sizes),
            (16 * EPS[number] + EPS[dtype]) * max(scale, 1 / 8), (seed, "gradient"),
        )  # fmt: skip


@case
def logits_float64(rank, world):
    check_logits(rank, world, torch.float64)


@case
def logits_float32(rank, world):
    check_logits(rank, world, torch.float32)


@case
def logits_bfloat16(rank, world):
    check_logits(rank, world, torch.bfloat16)


@case
def upstream_gradients_of_rows(rank, world):
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels, sizes = torch.tensor([0, 7, 3, -100]), sizes_of(8, world, even=True)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(cross_entropy(z, labels, reduction="none", label_smoothing=0.1), z, upstream)
    here = mine(z.detach(), rank, sizes).requires_grad_()
    rows = vocab_parallel_cross_entropy(here, labels, reduction="none", label_smoothing=0.1)
    for _ in range(2):
        (found,) = torch.autograd.grad(rows, here, upstream, retain_graph=True)
        torch.testing.assert_close(found, mine(expected, rank, sizes))


@case
def one_vector_of_logits(rank, world):
    z = torch.linspace(-1, 2, 8, dtype=torch.float64)
    sizes = sizes_of(8, world, even=False)
    prior = torch.softmax(z, 0)
    for u, local in ((prior, prior), (prior, mine(prior, rank, sizes, 0))):
        expected = cross_entropy(z, torch.tensor(6), label_smoothing=0.1, prior=u)
        found = vocab_parallel_cross_entropy(mine(z, rank, sizes, 0), torch.tensor(6), label_smoothing=0.1, prior=local)
        torch.testing.assert_close(found, expected)


@case
def logits_far_apart(rank, world):
    """The shards lie 200 and more apart: exp of the difference is 0 in float32, its logarithm would be -inf."""
    shard = torch.tensor([[1.0, 0.0, -1.0]] * 2, dtype=torch.float32)
    for step in (200.0, -200.0, 1e4):
        whole = torch.cat([shard + step * i for i in range(world)], 1)
        labels = torch.tensor([0, 3 * world - 1])
        expected, gradient = losses.cross_entropy_and_grad(whole.numpy(), labels.numpy(), label_smoothing=0.1)
        here = whole[:, 3 * rank : 3 * rank + 3].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(here, labels, label_smoothing=0.1)
        loss.backward()
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
        np.testing.assert_allclose(here.grad.numpy(), gradient[:, 3 * rank : 3 * rank + 3], atol=1e-6)


@case
def nothing_to_do(rank, world):
    for options in ({}, {"reduction": "none"}, {"weight": torch.ones(2 * world)}):
        z = torch.zeros(0, 2, requires_grad=True)
        loss = vocab_parallel_cross_entropy(z, torch.empty(0, dtype=torch.long), label_smoothing=0.1, **options)
        loss.sum().backward()
        assert loss.sum() == 0
        assert z.grad.shape == (0, 2)
        soft = vocab_parallel_cross_entropy(z, torch.zeros(0, 2), **options)
        assert soft.sum() == 0
    z = torch.zeros(3, 2, requires_grad=True)
    loss = vocab_parallel_cross_entropy(z, torch.full((3,), -100))
    loss.backward()
    assert loss == 0
    assert not z.grad.any()


@case
def shards_without_a_label_or_a_class(rank, world):
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([4, 4, 4, 4])
    for sizes in ([*[1] * (world - 1), 6 - world], [0] * (world - 1) + [5], [5] + [0] * (world - 1)):
        for options in ({}, {"weight": torch.rand(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)}):
            expected, gradient = losses.cross_entropy_and_grad(
                z.numpy(), labels.numpy(), label_smoothing=0.1, **{k: v.numpy() for k, v in options.items()}
            )
            here = mine(z, rank, sizes).requires_grad_()
            loss = vocab_parallel_cross_entropy(here, labels, label_smoothing=0.1, **options)
            loss.backward()
            np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)
            np.testing.assert_allclose(here.grad.numpy(), mine(torch.tensor(gradient), rank, sizes), atol=1e-15)


@case
def infinite_logits_and_poisoned_rows(rank, world):
    z = torch.zeros(2, 2)
    z[1] = float("nan")
    z[0, 1] = -torch.inf
    z.requires_grad_()
    loss = vocab_parallel_cross_entropy(z, torch.tensor([0, -100]))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert not z.grad[1].any()
    assert vocab_parallel_cross_entropy(z, torch.tensor([0, -100]), label_smoothing=0.1) == torch.inf
    assert vocab_parallel_cross_entropy(z, torch.tensor([1, -100])) == torch.inf


@case
def two_all_reduces(rank, world):
    """One MAX of N values and one SUM of 2N with class ids; the backward pass has none."""
    calls, reduce = [], dist.all_reduce

    def counted(x, op, group=None):
        calls.append((op, x.numel()))
        return reduce(x, op, group=group)

    dist.all_reduce = counted
    try:
        z = torch.randn(6, 3, requires_grad=True)
        options = dict(
            label_smoothing=0.1, prior=torch.full((3 * world,), 1 / (3 * world)), weight=torch.ones(3 * world)
        )
        vocab_parallel_cross_entropy(z, torch.zeros(6, dtype=torch.long), **options).backward()
    finally:
        dist.all_reduce = reduce
    assert calls == [(dist.ReduceOp.MAX, 6), (dist.ReduceOp.SUM, 12)], calls


@case
def unchecked_calls_talk_about_sizes_once(rank, world):
    calls, gather = [], dist.all_gather_object

    def counted(*args, **kwargs):
        calls.append(1)
        return gather(*args, **kwargs)

    dist.all_gather_object = counted
    try:
        for n in (4, 4, 3):
            z = torch.randn(n, 7 + rank)
            loss = vocab_parallel_cross_entropy(z, torch.full((n,), 7 * world), label_smoothing=0.125, validate=False)
            assert loss.isfinite()
    finally:
        dist.all_gather_object = gather
    assert len(calls) == 1


@case
def an_unchecked_label_in_no_shard_is_no_silence(rank, world):
    for wrong in (3 * world, -1):
        for smoothing in (0.0, 0.1):
            z = torch.zeros(2, 3, requires_grad=True)
            options = {"label_smoothing": smoothing, "validate": False}
            loss = vocab_parallel_cross_entropy(z, torch.tensor([0, wrong]), **options)
            loss.backward()
            assert loss.isnan()
            assert z.grad[1].isnan().all()
            w = torch.zeros(3, 3, requires_grad=True)
            assert linear_cross_entropy(z, w, torch.tensor([0, wrong]), group=dist.group.WORLD, **options).isnan()


@case
def normalizer_and_groups(rank, world):
    z, labels = torch.randn(3, 2 * world, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0])
    part = z[:, 2 * rank : 2 * rank + 2]
    for normalizer in (6, torch.tensor(6.0)):
        found = vocab_parallel_cross_entropy(part, labels, normalizer=normalizer)
        torch.testing.assert_close(found, cross_entropy(z, labels) / 2)
    alone = [dist.new_group([r]) for r in range(world)][rank]
    torch.testing.assert_close(vocab_parallel_cross_entropy(part, labels, group=alone), cross_entropy(part, labels))


@case
def compiled(rank, world):
    if world > 2:
        return  # each process imports the compiler, which takes seconds
    z, labels = torch.randn(3, 2, requires_grad=True), torch.tensor([0, 1, 0])

    def doubled(z):
        return 2 * vocab_parallel_cross_entropy(z * 1, labels, label_smoothing=0.1)

    expected = torch.autograd.grad(doubled(z), z)[0]
    found = torch.autograd.grad(torch.compile(doubled, backend="eager")(z), z)[0]
    torch.testing.assert_close(found, expected)


@case
def dtensors(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    for count in (4 * world, 4 * world + 1, 3):  # the last leaves ranks without a class where there are four
        z = torch.randn(5, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        q = torch.softmax(torch.randn(5, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 1)
        labels = torch.tensor([0, 1, 2, 1, 0])
        for target in (labels, q):
            expected, gradient = losses.cross_entropy_and_grad(z.numpy(), target.numpy(), label_smoothing=0.1)
            logits = distribute_tensor(z, mesh, [Shard(-1)]).requires_grad_()
            given = distribute_tensor(target, mesh, [Shard(1)]) if target is q else target
            loss = vocab_parallel_cross_entropy(logits, given, label_smoothing=0.1)
            loss.backward()
            np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)
            assert isinstance(logits.grad, DTensor)
            np.testing.assert_allclose(logits.grad.full_tensor().numpy(), gradient, atol=1e-15)
        replicated = distribute_tensor(labels, mesh, [Replicate()])
        hard = losses.cross_entropy(z.numpy(), labels.numpy())
        np.testing.assert_allclose(vocab_parallel_cross_entropy(logits, replicated).item(), hard, rtol=1e-14)

        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
        w = torch.randn(count, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
        expected = cross_entropy(x @ w.T, labels, label_smoothing=0.1)
        dx, dw = torch.autograd.grad(expected, (x, w))
        sharded = distribute_tensor(w.detach(), mesh, [Shard(0)]).requires_grad_()
        for hidden in (
            x.detach().clone().requires_grad_(),
            distribute_tensor(x.detach(), mesh, [Replicate()]).requires_grad_(),
        ):
            sharded.grad = None
            loss = linear_cross_entropy(hidden, sharded, labels, label_smoothing=0.1)
            loss.backward()
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(sharded.grad.full_tensor(), dw)
            torch.testing.assert_close(
                hidden.grad.full_tensor() if isinstance(hidden.grad, DTensor) else hidden.grad, dx
            )

    rows = distribute_tensor(torch.zeros(world, 4), mesh, [Shard(0)])
    raises(r"input must be sharded on dimension 1 over one dimension of its mesh .* got \(Shard\(dim=0\),?\)",
           vocab_parallel_cross_entropy, rows, torch.zeros(world, dtype=torch.long))  # fmt: skip
    raises(
        r"group must be None where input is a DTensor",
        vocab_parallel_cross_entropy,
        logits,
        labels,
        group=dist.group.WORLD,
    )
    raises(r"prior must be replicated, or sharded as what it goes with", vocab_parallel_cross_entropy, logits, labels,
           prior=distribute_tensor(torch.full((5, 3), 1 / 3), mesh, [Shard(0)]))  # fmt: skip


def check_linear(rank, world, dtype):
    for seed, kind, mode, reduction, soft, masked, class_masked in table():
        rng = np.random.default_rng(seed)
        shape = (6, 9)
        sizes = sizes_of(9, world, even=bool(seed % 2))
        target, options, by_row = problem(rng, shape, kind, mode is not None, masked, class_masked, soft)
        number = dtype if dtype == torch.float64 else torch.float32
        tensors = {
            name: torch.tensor(x) if x.dtype == bool else torch.tensor(x).to(number) for name, x in options.items()
        }
        target = torch.tensor(target).to(number) if soft else torch.tensor(target)
        common = dict(label_smoothing=(0.1, 0.0, 0.7)[seed % 3], weight_mode=mode or "class", reduction=reduction)
        x, w, b = (torch.tensor(rng.normal(size=s)).to(dtype) for s in ((6, 4), (9, 4), (9,)))
        reference = [t.double().requires_grad_() for t in (x, w, b)]
        wide = {name: t if t.dtype == torch.bool else t.double() for name, t in tensors.items()}
        expected = cross_entropy(
            reference[0] @ reference[1].T + reference[2], target.double() if soft else target, **wide, **common,
            validate=False,
        )  # fmt: skip
        upstream = torch.linspace(1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
        gradients = torch.autograd.grad(expected, reference, upstream)
        local = {name: mine(t, rank, sizes) if name in by_row else t for name, t in tensors.items()}
        given = [t.requires_grad_() for t in (x, mine(w, rank, sizes, 0), mine(b, rank, sizes, 0))]
        loss = linear_cross_entropy(
            given[0], given[1], mine(target, rank, sizes) if soft else target, linear_bias=given[2],
            group=dist.group.WORLD, **local, **common,
        )  # fmt: skip
        assert_close(
            loss, expected.detach(), 64 * EPS[dtype] * max(1, float(expected.detach().abs().max())), (seed, "loss")
        )
        found = torch.autograd.grad(loss, given, upstream.to(loss.dtype))
        dx, dw, db = gradients
        for mine_, theirs, what in zip(
            found, (dx, mine(dw, rank, sizes, 0), mine(db, rank, sizes, 0)), ("dx", "dw", "db"), strict=True
        ):
            assert mine_.dtype == dtype
            assert_close(mine_, theirs, 64 * EPS[dtype] * max(1, float(gradients[1].abs().max())), (seed, what))


@case
def linear_float64(rank, world):
    check_linear(rank, world, torch.float64)


@case
def linear_float64_in_parts_of_classes(rank, world):
    whole, part = linear_module._WHOLE_ROWS, linear_module._PART
    linear_module._WHOLE_ROWS, linear_module._PART = 1, 4 * 6 * 2
    try:
        check_linear(rank, world, torch.float64)
    finally:
        linear_module._WHOLE_ROWS, linear_module._PART = whole, part


@case
def linear_in_bfloat16(rank, world):
    check_linear(rank, world, torch.bfloat16)


@case
def linear_in_chunks_of_rows(rank, world):
    before = linear_module._ROWS, linear_module._LEAST_ROWS
    linear_module._ROWS, linear_module._LEAST_ROWS = 2, 1
    try:
        check_linear(rank, world, torch.float32)
        check_linear(rank, world, torch.bfloat16)
    finally:
        linear_module._ROWS, linear_module._LEAST_ROWS = before


def raises(message, function, *args, **kwargs):
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)


@case
def errors_are_raised_on_all_ranks(rank, world):
    z, labels, last = torch.zeros(2, 3), torch.tensor([0, 2]), rank == world - 1
    count = 3 * world

    def fails(message, input=z, target=labels, **options):
        raises(message, vocab_parallel_cross_entropy, input, target, **options)

    # The same mistake everywhere.
    fails(rf"target must be class ids in 0..{count - 1}; got {count} at index 1", target=torch.tensor([0, count]))
    fails(r"label_smoothing must be a number in \[0, 1\); got 1.5", label_smoothing=1.5)
    fails(rf"weight must have shape \({count},\); got \(3,\)", weight=torch.ones(3))
    fails(rf"prior must have shape \({count},\) or \(2, 3\); got \(3,\)", prior=torch.full((3,), 1 / 3))
    fails(
        r"prior must have shape \[K\], for all classes, or \(2, 3\), for those here; got \(3, 2\)",
        prior=torch.zeros(3, 2),
    )
    fails(rf"prior must be non-negative and sum to 1 .* got a sum of {count}", prior=torch.ones(count))
    fails(r"prior must be non-negative and sum to 1 .* got a sum of .* in row 0", prior=torch.ones(2, 3))
    fails(rf"target must be non-negative and sum to 1 over the classes; got a sum of {world} in row 0",
          target=torch.full((2, 3), 1 / 3))  # fmt: skip
    fails(rf"class_prior must have shape \({count}, {count}\)", class_prior=torch.eye(3))
    fails(r"class_prior must be None where the classes of soft targets are spread",
          target=torch.full((2, 3), 1 / count), class_prior=torch.eye(count))  # fmt: skip
    fails(r"class_mask must keep the true class of every kept row; got a masked true class in row 1",
          class_mask=torch.arange(count) != 2)  # fmt: skip
    fails(r"class_mask must keep the true class of every kept row", class_mask=torch.zeros(2, 3, dtype=torch.bool))
    fails(r"class_mask must keep a class that the prior", class_mask=torch.arange(count) < 3,
          prior=(torch.arange(count) == count - 1).double())  # fmt: skip
    fails(r"input must have a finite value in every kept row", input=torch.full((2, 3), -torch.inf))
    fails(r"input must be a tensor; got <class 'list'>", input=[[0.0]])
    fails(r"group must be a process group that this process is in; got 'world'", group="world")
    fails(r"target must require no gradient", target=torch.zeros(2, 3, requires_grad=True))
    raises(
        r"linear_weight must have shape \[K, 3\]",
        linear_cross_entropy,
        z,
        torch.zeros(2, 4),
        labels,
        group=dist.group.WORLD,
    )

    # A mistake on one rank.
    there = "" if last else rf".* \(on rank {world - 1}\)"
    fails(r"target must be class ids of shape \(2,\) .* got torch.int64 of shape \(3,\)" + there,
          target=torch.zeros(3, dtype=torch.long) if last else labels)  # fmt: skip
    fails(r"target must be non-negative .* got -1.0 at index 1, 0" + there,
          target=torch.tensor([[0.0, 0, 0], [-1.0, 0, 0]]) if last else torch.zeros(2, 3))  # fmt: skip
    fails(r"mask must be boolean" + there, mask=torch.ones(2) if last else torch.ones(2, dtype=torch.bool))
    fails(
        r"prior must be None where class_prior is given" + there,
        prior=torch.ones(3),
        class_prior=torch.eye(count) if last else None,
    )

    fails(r"input must be a tensor" + there, input=None if last else z)
    raises(r"options must be a torch.nn.LinearCrossEntropyOptions; got 64" + there, linear_cross_entropy, z, torch.zeros(2, 3),
           labels, options=64 if last else None, group=dist.group.WORLD)  # fmt: skip
    raises(r"linear_weight must have shape \[K, 3\]" + there, linear_cross_entropy, z,
           torch.zeros(2, 4 if last else 3), labels, group=dist.group.WORLD)  # fmt: skip

    # A disagreement; each rank's value is named.
    for name, values in (
        ("label_smoothing", (0.1, 0.2)), ("reduction", ("mean", "sum")), ("weight_mode", ("class", "example")),
        ("ignore_index", (-100, -1)), ("validate", (True, None)),
        ("weight", (torch.ones(count), None)), ("normalizer", (3, 4)),
    ):  # fmt: skip
        fails(
            rf"{name} must be the same on every rank; got .* on rank 0.*; .* on rank {world - 1}",
            **{name: values[last]},
        )
    fails(rf"the shape of input without its classes must be .* got \(2,\) on rank 0.*; \(4,\) on rank {world - 1}",
          input=torch.zeros(4, 3) if last else z, target=torch.zeros(4 if last else 2, dtype=torch.long))  # fmt: skip
    fails(rf"the dtype of input must be .* got torch.float32 on rank 0.*; torch.float64 on rank {world - 1}",
          input=z.double() if last else z)  # fmt: skip
    fails(r"target must be the same on every rank; got int64 of shape \(2,\) with checksum", target=labels + last)
    raises(
        r"input must be the same on every rank",
        linear_cross_entropy,
        z + last,
        torch.zeros(2, 3),
        labels,
        group=dist.group.WORLD,
    )
    raises(r"whether there is a linear_bias must be the same on every rank; got False on rank 0.*; True on rank",
           linear_cross_entropy, z, torch.zeros(2, 3), labels, linear_bias=torch.zeros(2) if last else None,
           group=dist.group.WORLD)  # fmt: skip
    first = dist.new_group([0])
    if rank:
        fails(r"group must be a process group that this process is in; got one that it is not in", group=first)
    raises(r"what requires a gradient must be the same on every rank", linear_cross_entropy,
           z.clone().requires_grad_(last), torch.zeros(2, 3), labels, group=dist.group.WORLD)  # fmt: skip
    assert vocab_parallel_cross_entropy(z, labels).isfinite()  # and they are still together


def worker(rank, world, store, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    failed = {}
    for name, function in CASES.items():
        try:
            function(rank, world)
        except BaseException:
            failed[name] = traceback.format_exc()
            break  # the processes may be in different places now
    results.put((rank, failed))
    gc.collect()
    dist.destroy_process_group()


def run_all(world, folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_vocab_parallel"])
    results = context.SimpleQueue()
    processes = [
        context.Process(target=worker, args=(rank, world, folder / f"store{world}", results)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    failed = {}
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0, f"a process ended with {process.exitcode}"
    while not results.empty():
        rank, found = results.get()
        for name, text in found.items():
            failed[name] = failed.get(name, "") + f"rank {rank} of {world}\n{text}\n"
    return failed


@pytest.fixture(scope="module", params=[2, 4])
def failures(request, tmp_path_factory):
    previous = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        return run_all(request.param, tmp_path_factory.mktemp("gloo"))
    finally:
        if previous is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = previous


@pytest.mark.parametrize("name", list(CASES))
def test_over_processes(failures, name):
    assert name not in failures, failures[name]
    first = next(iter(failures), None)
    assert first is None or list(CASES).index(name) < list(CASES).index(first), f"not run: {first} failed before"


def test_without_a_process_group():
    with pytest.raises(
        ValueError, match=r"group must be a process group \(call torch.distributed.init_process_group first\)"
    ):
        vocab_parallel_cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert lst.vocab_parallel_cross_entropy is vocab_parallel_cross_entropy
