"""The CPU kernel: what is its own. That it computes the same as every other path is the contract suite's to show."""

import gc
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from labelsmooth import losses
from labelsmooth.torch import _native as path
from labelsmooth.torch import _paths, cross_entropy, linear_cross_entropy

kernel = path.kernel
pytestmark = pytest.mark.skipif(kernel is None, reason="installed without a compiler")
KERNELS = [] if kernel is None else kernel.kernels()
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def native(monkeypatch):
    """Only the kernel: a call that it refuses is an error."""
    monkeypatch.setenv(_paths.VARIABLE, "native")


def ulps(ours, exact):
    """Errors in units of the last place of `exact`, which is of a wider type."""
    exact = np.asarray(exact)
    nearest = exact.astype(ours.dtype)
    return np.abs((ours.astype(exact.dtype) - exact) / np.spacing(np.abs(nearest)).astype(exact.dtype))


@pytest.mark.parametrize("name", KERNELS)
def test_exp_is_within_two_ulp_over_the_whole_range(name):
    # Every 1,000th of all finite float32 patterns between the arguments where exp is 0 and where it is infinite.
    bits = np.arange(0, 2**32, 997, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (x > -104) & (x < 88.72)]
    y = np.empty_like(x)
    kernel.exp(x, y, name)
    assert ulps(y, np.exp(x.astype(np.float64))).max() <= 2

    x = np.concatenate([np.linspace(-745.1, 709.7, 400_001), np.linspace(-1, 1, 100_001), [0.0, -0.0, 1e-300]])
    y = np.empty_like(x)
    kernel.exp(x, y, name)
    assert ulps(y, np.exp(x.astype(np.longdouble))).max() <= 2

    for dtype in (np.float32, np.float64):
        x = np.array([-np.inf, -1e30, np.inf, 1e30, np.nan, 0], dtype)
        y = np.empty_like(x)
        kernel.exp(x, y, name)
        np.testing.assert_array_equal(y, np.array([0, 0, np.inf, np.inf, np.nan, 1], dtype))


def row_by_row(name, logits, labels, dtype, **options):
    """Loss and gradient of each row from the kernel of that name."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    loss, gradient = torch.empty(len(logits), dtype=real), torch.empty_like(logits)
    assert not kernel.cross_entropy(logits, labels, loss, gradient, 0.1, kernel=name, **options)
    return loss, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_right(name, dtype):
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for count in (1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 500, 513, 2049, 5000):
        logits = (torch.randn(5, count) * 4).to(dtype)
        labels = torch.randint(0, count, (5,))
        weight = torch.rand(count, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        prior = torch.rand(count, dtype=weight.dtype)
        prior /= prior.sum()
        for options in ({}, {"weight": weight, "prior": prior, "prior_tolerance": 1e-4}):
            loss, gradient = row_by_row(name, logits, labels, dtype, **options)
            given = {"weight": weight.double().numpy(), "prior": prior.double().numpy()} if options else {}
            exact, slope = losses.cross_entropy_and_grad(
                logits.double().numpy(), labels.numpy(), label_smoothing=0.1, reduction="none", **given
            )
            assert np.abs(loss.double().numpy() - exact).max() <= 8 * eps * max(1, np.abs(exact).max())
            rounding = torch.finfo(dtype).eps if dtype in HALVES else 0
            assert (
                np.abs(gradient.double().numpy() - slope)
                <= 8 * eps + rounding * np.abs(slope) + 1e-7 * (dtype == torch.float16)
            ).all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_labels_at_every_place_of_a_row_and_rows_that_are_not_numbers(name, dtype):
    count = 83  # pairs of vectors, one vector, and a part of one
    logits, labels = (torch.randn(count, count) * 2).to(dtype), torch.arange(count)
    _, gradient = row_by_row(name, logits, labels, dtype)
    _, slope = losses.cross_entropy_and_grad(
        logits.double().numpy(), labels.numpy(), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(gradient.double().numpy(), slope, rtol=torch.finfo(dtype).eps * 4, atol=2e-6)

    for wrong in (torch.nan, torch.inf):
        logits[labels, labels] = wrong
        loss, gradient = row_by_row(name, logits, labels.flip(0), dtype)
        assert loss.isnan().all()
        assert gradient.isnan().all()


def numbers(logits, labels, **options):
    x = logits.detach().clone().requires_grad_()
    loss = cross_entropy(x, labels, label_smoothing=0.1, **options)
    loss.sum().backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 21, 16, 16), (1, 3, 1000), (4, 600, 9), (2, 1, 8)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_layouts_of_images(shape, layout):
    logits = torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    labels[0, ..., 0] = -100
    expected = numbers(logits, labels)
    rows = numbers(logits.movedim(1, -1).reshape(-1, shape[1]), labels.reshape(-1))
    laid_out = logits
    if layout == "channels last":
        laid_out = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "strided":
        laid_out = torch.stack([logits, logits], -1)[..., 0]
    x = laid_out.detach().requires_grad_()
    loss = cross_entropy(x, labels, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(loss, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, expected[1], rtol=1e-12, atol=1e-12)
    back = rows[1].view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    torch.testing.assert_close(expected[1], back, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["transposed", "rows of a wider one", "every second class"])
def test_layouts_of_matrices(layout):
    logits, labels = torch.randn(40, 30), torch.randint(0, 30, (40,))
    expected = numbers(logits, labels)
    wide = torch.full((40, 60), torch.nan)
    if layout == "transposed":
        given = logits.t().contiguous().t()
    elif layout == "every second class":
        given = wide[:, ::2]
        given.copy_(logits)
    else:
        given = wide[:, 7:37]
        given.copy_(logits)
    x = given.detach().requires_grad_()
    loss = cross_entropy(x, labels, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(x.grad, expected[1])


@pytest.mark.parametrize("columns", [False, True])
def test_rows_that_are_not_kept_may_hold_anything(columns):
    logits = torch.randn(64, 40) if not columns else torch.randn(2, 40, 32)
    labels = torch.randint(0, 40, (64,) if not columns else (2, 32))
    first = (0,) if not columns else (0, slice(None), 0)
    logits[first] = torch.nan
    labels[first[0] if not columns else (0, 0)] = -100
    loss, gradient = numbers(logits, labels, reduction="none")
    assert loss.flatten()[0] == 0
    assert torch.equal(gradient[first], torch.zeros(40))
    assert gradient.isfinite().all()
    assert loss.isfinite().all()


def test_a_gradient_is_written_by_backward_times_what_comes_from_above():
    logits, labels = torch.randn(50, 20), torch.randint(0, 20, (50,))
    for dtype in (torch.float32, torch.float16):
        plain = numbers(logits.to(dtype), labels)[1].float()
        x = logits.to(dtype, copy=True).requires_grad_()
        (cross_entropy(x, labels, label_smoothing=0.1) * 3).backward()
        torch.testing.assert_close(x.grad.float(), plain * 3, rtol=2e-3, atol=1e-4 if dtype == torch.float16 else 1e-8)
        x = logits.to(dtype, copy=True).requires_grad_()
        above = torch.arange(50.0)
        (cross_entropy(x, labels, label_smoothing=0.1, reduction="none") * above).sum().backward()
        torch.testing.assert_close(
            x.grad.float(), plain * 50 * above[:, None], rtol=2e-3, atol=1e-2 if dtype == torch.float16 else 1e-6
        )


def test_a_loss_scale_saves_small_gradients_in_float16():
    logits = torch.zeros(20_000, 100, dtype=torch.float16).requires_grad_()
    labels = torch.zeros(20_000, dtype=torch.int64)
    cross_entropy(logits, labels).backward()
    assert (logits.grad[:, 1] < 6e-7).all()  # half of 1/20,000/100 is already lost
    logits.grad = None
    (cross_entropy(logits, labels) * 65536).backward()
    torch.testing.assert_close(
        logits.grad[:, 1].float(), torch.full((20_000,), 65536 / 20_000 / 100), rtol=1e-3, atol=0
    )


def test_backward_twice_gives_the_same_and_no_alias():
    logits, labels = torch.randn(300, 1000).requires_grad_(), torch.randint(0, 1000, (300,))
    loss = cross_entropy(logits * 1, labels, label_smoothing=0.1)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss * 2, logits)
    assert first.data_ptr() != second.data_ptr()
    second.zero_()
    assert torch.equal(first, kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_several_upstream_gradients_at_once(dtype, reduction):
    z = torch.randn(4, 5).to(dtype).requires_grad_()
    loss = cross_entropy(z, torch.arange(4), label_smoothing=0.1, reduction=reduction)
    upstreams = torch.eye(4) if reduction == "none" else torch.tensor([1.0, 2.0, 3.0])
    (together,) = torch.autograd.grad(loss, z, upstreams, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(loss, z, upstream, retain_graph=True)[0] for upstream in upstreams]
    torch.testing.assert_close(together, torch.stack(each), rtol=1e-5, atol=1e-6)


def test_double_backward():
    logits = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, -100])
    for reduction in ("mean", "none"):
        assert torch.autograd.gradgradcheck(
            lambda x, r=reduction: cross_entropy(x, labels, label_smoothing=0.1, reduction=r), logits
        )


def test_the_logits_may_change_before_backward():
    logits, labels = torch.randn(8, 5).requires_grad_(), torch.randint(0, 5, (8,))
    x = logits * 1
    loss = cross_entropy(x, labels)
    expected = torch.autograd.grad(cross_entropy(logits, labels), logits)[0]
    x.data.zero_()
    loss.backward()
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("given", ["target", "weight"])
def test_what_changes_before_the_gradient_is_made_anew_is_noticed(given, dtype):
    x, labels, weight = torch.randn(4, 5).to(dtype).requires_grad_(), torch.arange(4), torch.ones(5)
    loss = cross_entropy(x, labels, weight)
    if dtype != torch.float16:
        loss.backward(retain_graph=True)  # of the gradient that the forward pass made
    (labels if given == "target" else weight).fill_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_checkpoints_that_recompute(dtype):
    x, labels = torch.randn(4, 5).to(dtype).requires_grad_(), torch.arange(4)
    loss = checkpoint(lambda x: cross_entropy(x * 1, labels), x, use_reentrant=False)
    for _ in range(2):
        torch.testing.assert_close(
            torch.autograd.grad(loss, x, retain_graph=True), torch.autograd.grad(cross_entropy(x * 1, labels), x)
        )


def test_the_loss_does_not_keep_the_logits_once_they_are_differentiated():
    x, labels = torch.randn(4, 5).requires_grad_(), torch.arange(4)
    for reduction in ("mean", "none"):
        logits = x * 1
        there = weakref.ref(logits)
        loss = cross_entropy(logits, labels, reduction=reduction)
        loss.sum().backward()
        del logits
        gc.collect()
        assert there() is None


def test_on_the_cpu_whatever_the_default_device():
    x, labels = torch.randn(4, 5), torch.arange(4)
    with torch.device("meta"):
        loss = cross_entropy(x, labels), linear_cross_entropy(x, x, labels)
    torch.testing.assert_close(loss, (F.cross_entropy(x, labels), F.cross_entropy(x @ x.T, labels)))


class TestInplace:
    def test_the_gradient_takes_the_place_of_the_logits(self):
        logits, labels = torch.randn(300, 1000).requires_grad_(), torch.randint(0, 1000, (300,))
        expected = torch.autograd.grad(cross_entropy(logits, labels, label_smoothing=0.1), logits)[0]
        x = logits + 0
        seen = []
        x.register_hook(lambda g: seen.append(g.data_ptr()))
        loss = cross_entropy(x, labels, label_smoothing=0.1, inplace=True)
        assert torch.equal(x.detach(), expected)
        (loss * 2).backward(retain_graph=True)
        assert seen == [x.data_ptr()]
        torch.testing.assert_close(logits.grad, expected * 2)
        with pytest.raises(RuntimeError, match="inplace=True overwrites the logits"):
            loss.backward()

    @pytest.mark.parametrize("overlap", ["expanded", "transposed", "windows", "images"])
    def test_logits_that_share_memory_keep_it(self, overlap):
        base = torch.randn(40).requires_grad_()

        def logits(x):
            y = x * 1
            if overlap == "images":
                return y.view(1, 5, 8).expand(6, 5, 8)
            if overlap == "windows":
                return y.as_strided((6, 5), (1, 1))
            return y[:5].expand(6, 5) if overlap == "expanded" else y[:6].expand(5, 6).t()

        labels = torch.randint(0, 5, (6, 8) if overlap == "images" else (6,))
        expected = F.cross_entropy(logits(base), labels, label_smoothing=0.1)
        loss = cross_entropy(logits(base), labels, label_smoothing=0.1, inplace=True)
        torch.testing.assert_close(loss, expected)
        slopes = (torch.autograd.grad(each, base)[0] for each in (loss, expected))
        torch.testing.assert_close(*slopes)

    @pytest.mark.parametrize("shape", [(6, 40), (2, 40, 30)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
    def test_the_loss_is_that_of_the_logits_as_they_were(self, shape, dtype):
        logits = (torch.randn(shape) * 3).to(dtype).requires_grad_()
        labels = torch.randint(0, 40, (shape[0], *shape[2:]))
        for reduction in ("none", "mean"):
            options = {"label_smoothing": 0.1, "reduction": reduction}
            expected = cross_entropy(logits, labels, **options)
            loss = cross_entropy(logits + 0, labels, **options, inplace=True)
            assert torch.equal(loss, expected)

    def test_a_layer_that_needs_its_output_is_told(self):
        logits, labels = torch.randn(4, 5).requires_grad_(), torch.randint(0, 5, (4,))
        loss = cross_entropy(torch.tanh(logits), labels, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("name", ["eager", "native"])
    def test_a_leaf_is_refused(self, name, monkeypatch):
        monkeypatch.setenv(_paths.VARIABLE, name)
        logits = torch.randn(4, 5).requires_grad_()
        before = logits.detach().clone()
        with pytest.raises(ValueError, match="inplace must be False for a leaf that requires grad; got True"):
            cross_entropy(logits, torch.zeros(4, dtype=torch.int64), inplace=True)
        assert torch.equal(logits, before)

    @pytest.mark.parametrize("name", ["eager", "native"])
    def test_a_view_of_a_leaf_is_refused(self, name, monkeypatch):
        monkeypatch.setenv(_paths.VARIABLE, name)
        parameter = torch.nn.Parameter(torch.randn(4, 5))
        with pytest.raises(ValueError, match="inplace must be False for a view of a leaf that requires grad"):
            cross_entropy(parameter.view(4, 5), torch.arange(4), inplace=True)

    def test_small_gradients_in_float16_wait_for_the_loss_scale(self):
        logits = torch.zeros(20_000, 100, dtype=torch.float16).requires_grad_()
        labels = torch.zeros(20_000, dtype=torch.int64)
        gradients = [
            torch.autograd.grad(cross_entropy(logits * 1, labels, inplace=inplace) * 65536, logits)[0]
            for inplace in (False, True)
        ]
        assert torch.equal(*gradients)
        assert (gradients[1] != 0).all()

    def test_refused_values_leave_the_logits_as_they_were(self):
        logits = torch.randn(4, 5)
        logits[2] = -torch.inf
        labels, soft = torch.tensor([0, 1, 2, 3]), torch.eye(5)[:4]
        soft[3] = 0.3
        masked = torch.tensor([True, True, True, False, True])
        for target, options, words in (
            (labels, {}, "input must have a finite value in every kept row"),
            (soft, {}, "target must"),
            (labels, {"class_mask": masked}, "class_mask must"),
        ):
            x = logits.clone().requires_grad_() + 0
            with pytest.raises(ValueError, match=words):
                cross_entropy(x, target, inplace=True, label_smoothing=0.1, **options)
            assert torch.equal(x, logits)

    def test_nothing_is_overwritten_without_a_gradient_or_with_a_wrong_label(self):
        logits = torch.randn(4, 5)
        before = logits.clone()
        cross_entropy(logits, torch.zeros(4, dtype=torch.int64), inplace=True)
        x = logits.requires_grad_() + 0
        with pytest.raises(ValueError, match="target"):
            cross_entropy(x, torch.tensor([0, 1, 2, 5]), inplace=True)
        assert torch.equal(x, before)


def test_memory_comes_back_and_is_bounded():
    kernel.drop_buffers()
    logits, labels = torch.randn(600, 1000).requires_grad_(), torch.randint(0, 1000, (600,))
    size = logits.numel() * 4
    places = set()
    for _ in range(10):
        logits.grad = None
        cross_entropy(logits, labels).backward()
        places.add(logits.grad.data_ptr())
    assert len(places) == 1  # the gradient is the kernel's own memory, and it is used again
    outlives = logits.grad
    kept = outlives.clone()
    logits.grad = None
    for _ in range(3):
        cross_entropy(logits, labels, label_smoothing=0.5).backward()
        logits.grad = None
    assert torch.equal(outlives, kept)  # a gradient that somebody holds is nobody else's memory
    del outlives
    gc.collect()
    assert kernel.drop_buffers() == 2 * size
    assert kernel.drop_buffers() == 0

    # Other sizes: what does not fit is freed before more is taken.
    for rows in (600, 100, 300, 599):
        x = torch.randn(rows, 3000).requires_grad_()
        cross_entropy(x, torch.zeros(rows, dtype=torch.int64)).backward()
        del x
    assert kernel.drop_buffers() <= 600 * 3000 * 4 * 2


def test_wrong_values_are_said_in_the_eager_paths_words(monkeypatch):
    cases = [
        ((torch.randn(3, 4), torch.tensor([0, 4, 1])), {}),
        ((torch.randn(3, 4), torch.tensor([0, -1, 1])), {}),
        ((torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 0], [0.5, 0.2, 0, 0], [1, 0, 0, 0]])), {}),
        ((torch.randn(3, 4), torch.tensor([0, 1, 2])), {"prior": torch.tensor([0.5, 0.6, 0, 0])}),
        ((torch.randn(3, 4), torch.tensor([0, 1, 2])), {"prior": torch.full((3, 4), 0.3)}),
        ((torch.randn(3, 4), torch.tensor([0, 1, 2])), {"class_prior": torch.full((4, 4), 0.3)}),
        ((torch.full((3, 4), -torch.inf), torch.tensor([0, 1, 2])), {}),
        ((torch.randn(3, 4), torch.tensor([0, 1, 2])), {"class_mask": torch.tensor([True, False, True, True])}),
        (
            (torch.randn(3, 4), torch.tensor([0, 0, 0])),
            {"class_mask": torch.tensor([True, False, True, True]), "prior": torch.tensor([0.0, 1, 0, 0])},
        ),
    ]
    zero = {"weight": torch.tensor([0.0, 1, 1, 1]), "weight_mode": "example"}  # rows that weigh 0 are looked at too
    images = torch.randn(3, 4, 2), torch.zeros(3, 2, dtype=torch.int64)
    lost = images[0].clone()
    lost[1, :, 1] = -torch.inf
    cases += [
        ((torch.randn(3, 4), torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])), zero),
        ((torch.randn(3, 4), torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])), zero),
        ((torch.randn(3, 4), torch.tensor([0, 1, 2])), {"class_mask": torch.tensor([False, True, True, True]), **zero}),
        (images, {"class_mask": torch.tensor([False, True, True, True]), **zero}),
        ((torch.full((3, 4), -torch.inf), torch.tensor([0, 0, 0])), zero),
        ((lost, images[1]), zero),
        ((torch.randn(3, 4), torch.tensor([0, 0, 0])), {"prior": torch.full((3, 4), torch.nan), **zero}),
    ]
    for arguments, options in cases:
        said = []
        for name in ("eager", "native"):
            monkeypatch.setenv(_paths.VARIABLE, name)
            with pytest.raises(ValueError, match="must") as caught:
                cross_entropy(*arguments, label_smoothing=0.1, **options)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_the_path_can_be_forced(monkeypatch):
    logits, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    monkeypatch.setenv(_paths.VARIABLE, "fast")
    with pytest.raises(ValueError, match="LABELSMOOTH_PATH must be one of 'eager', 'native', 'triton'"):
        cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="LABELSMOOTH_PATH must be one of 'eager', 'native', 'triton'"):
        linear_cross_entropy(logits, logits, labels)
    monkeypatch.setenv(_paths.VARIABLE, "native")
    with pytest.raises(
        ValueError, match="a path that can compute this loss .something beside the logits requires grad"
    ):
        cross_entropy(logits, labels, weight=torch.ones(5).requires_grad_())
    monkeypatch.setenv(_paths.VARIABLE, "eager")
    assert "eager (LABELSMOOTH_PATH is set)" in _paths.described()


def test_numpy_arrays_need_no_framework():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    loss, gradient = np.empty(6, np.float32), np.empty_like(logits)
    labels = np.arange(6) % 5
    assert not kernel.cross_entropy(logits, labels, loss, gradient, 0.1)
    np.testing.assert_allclose(
        loss, losses.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none"), rtol=1e-5
    )
    with pytest.raises(ValueError, match="gradient must be of the logits' dtype and shape"):
        kernel.cross_entropy(logits, labels, loss, gradient[:5], 0.1)
    with pytest.raises(ValueError, match="target must have a label for each row"):
        kernel.cross_entropy(logits, labels[:5], loss, gradient, 0.1)
    with pytest.raises(ValueError, match="no kernels named fast"):
        kernel.cross_entropy(logits, labels, loss, gradient, 0.1, kernel="fast")


def test_threads_and_forked_children_give_identical_results():
    code = """
import os, threading
import numpy as np
from labelsmooth import _native
logits = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
labels = np.arange(400) % 300
def once():
    loss, gradient = np.empty(400, np.float32), np.empty_like(logits)
    assert not _native.cross_entropy(logits, labels, loss, gradient, 0.1, threads=4)
    return loss, gradient
expected = once()
wrong = []
def check():
    for _ in range(125):
        if not all(np.array_equal(a, b) for a, b in zip(once(), expected)):
            wrong.append(1)
threads = [threading.Thread(target=check) for _ in range(4)]
for t in threads: t.start()
children = []
for _ in range(4):
    pid = os.fork()  # while the threads are in the kernel
    if pid == 0:
        check()
        os._exit(len(wrong) > 0)
    children.append(pid)
for t in threads: t.join()
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert not wrong and codes == [0] * 4, (len(wrong), codes)
assert np.float32(1e-40) * np.float32(1) != 0  # denormals are still numbers
print("identical")
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "identical\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads keep to cores on Linux only")
def test_threads_keep_to_the_cores_of_the_process():
    """They leave the caller's core to it, where PyTorch's threads wait awake on the others, and go to none but theirs."""
    code = """
import glob, os, torch
import torch.nn.functional as F
from labelsmooth.torch import cross_entropy
torch.set_num_threads(2)
logits, labels = torch.randn(2000, 1000), torch.zeros(2000, dtype=torch.int64)
def run(times):
    for _ in range(times):
        F.cross_entropy(logits, labels)
        cross_entropy(logits, labels)
def cores():
    masks = [os.sched_getaffinity(int(task.split("/")[-1])) for task in glob.glob("/proc/self/task/*")]
    assert all(masks)
    return set().union(*masks)
allowed = os.sched_getaffinity(0)
run(100)
assert cores() == allowed, cores()
os.sched_setaffinity(0, {min(allowed)})
run(20)
assert cores() <= allowed, cores()
print("kept")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "kept\n", done.stderr


def test_other_threads_run_meanwhile():
    """The GIL is not held: a counter in Python goes on while a large loss is computed."""
    rows = 60_000  # for longer than a busy machine lets a thread wait
    logits, labels = torch.randn(1, 5000).expand(rows, 5000), torch.zeros(rows, dtype=torch.int64)
    count, stop = [0], threading.Event()

    def counting():
        while not stop.is_set():
            count[0] += 1

    thread = threading.Thread(target=counting)
    thread.start()
    before = count[0]
    path.kernel.cross_entropy(logits, labels, torch.empty(()), None, 0.1)
    during = count[0] - before
    stop.set()
    thread.join()
    assert during > 1000


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 40),
    count=st.integers(1, 300),
    epsilon=st.sampled_from([0.0, 0.1, 0.9]),
    spread=st.sampled_from([0.1, 5.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64, *HALVES]),
    seed=st.integers(0, 2**31),
)
def test_random_cases_are_no_worse_than_the_eager_path(rows, count, epsilon, spread, dtype, seed):
    check_random_case(rows, count, epsilon, spread, dtype, seed)


def check_random_case(rows, count, epsilon, spread, dtype, seed):
    draws = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, count, generator=draws) * spread).to(dtype)
    labels = torch.randint(0, count, (rows,), generator=draws)
    results = {}
    for name in ("eager", "native"):
        os.environ[_paths.VARIABLE] = name  # monkeypatch is for a test, not for an example
        x = logits.clone().requires_grad_()
        loss = cross_entropy(x, labels, label_smoothing=epsilon)
        loss.backward()
        results[name] = loss.item(), x.grad.double().numpy()
    exact, slope = losses.cross_entropy_and_grad(logits.double().numpy(), labels.numpy(), label_smoothing=epsilon)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    (eager, eager_slope), (ours, our_slope) = results["eager"], results["native"]
    assert abs(ours - exact) <= 2 * abs(eager - exact) + 8 * eps * max(1, abs(exact))
    eps = torch.finfo(dtype).eps
    assert np.abs(our_slope - slope).max() <= 2 * np.abs(eager_slope - slope).max() + 8 * eps / rows


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(
    rows=st.integers(1, 40),
    count=st.integers(1, 3000),
    epsilon=st.floats(0, 0.999),
    spread=st.floats(0.01, 1e4),
    dtype=st.sampled_from([torch.float32, torch.float64, *HALVES]),
    seed=st.integers(0, 2**31),
)
def test_ten_thousand_random_cases(rows, count, epsilon, spread, dtype, seed):
    check_random_case(rows, count, epsilon, spread, dtype, seed)


def test_under_compile_the_eager_formula_is_traced(monkeypatch):
    monkeypatch.delenv(_paths.VARIABLE)
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    compiled = torch.compile(lambda x: cross_entropy(x, labels, label_smoothing=0.1), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), F.cross_entropy(logits, labels, label_smoothing=0.1))
