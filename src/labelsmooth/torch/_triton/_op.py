"""The kernels as PyTorch operators, which torch.compile keeps whole.

Outside torch.compile the forward pass computes the gradient too, and backward hands it over, scaled in place where the
upstream gradient is not 1. A compiled graph may not hand over what it saved, and would pay for a copy; there the
backward pass computes the gradient from the logits, in one read and one write.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor

from labelsmooth.torch._triton import _divisor, _forward
from labelsmooth.torch._triton._backward import scale_rows

ARGUMENTS = (
    "Tensor logits, Tensor? labels, Tensor? q, Tensor? weight, Tensor? prior, Tensor? class_prior, Tensor? class_mask, "
    "int ignore_index, float label_smoothing, bool weight_inside"
)


@torch.library.custom_op(
    "labelsmooth::cross_entropy_rows",
    mutates_args=(),
    schema=f"({ARGUMENTS}, Tensor? normalizer, bool mean, bool with_gradient) -> (Tensor, Tensor, Tensor)",
)
def cross_entropy_rows(
    logits: Tensor, labels: Tensor | None, q: Tensor | None, weight: Tensor | None, prior: Tensor | None,
    class_prior: Tensor | None, class_mask: Tensor | None, ignore_index: int, label_smoothing: float,
    weight_inside: bool, normalizer: Tensor | None, mean: bool, with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss of every row, the gradient of their sum, and the divisor of the mean that both are divided by.

    `logits` are ``[rows, K]`` or ``[outer, inner, K]``, of any strides. What is not asked for comes out empty.
    """
    rows, gradient, divisor = _outputs(logits, normalizer, mean, with_gradient)
    if normalizer is not None:
        divisor.copy_(normalizer.reshape(1))
    elif mean:
        _kept_weight(logits, labels, q, weight, ignore_index, divisor)
    _launch(
        logits, labels, q, weight, prior, class_prior, class_mask, ignore_index, label_smoothing, weight_inside,
        divisor if mean else None, None, rows, gradient if with_gradient else None,
    )  # fmt: skip
    return rows, gradient, divisor


@torch.library.custom_op(
    "labelsmooth::cross_entropy_gradient",
    mutates_args=(),
    schema=f"({ARGUMENTS}, Tensor divisor, Tensor upstream) -> Tensor",
)
def cross_entropy_gradient(
    logits: Tensor, labels: Tensor | None, q: Tensor | None, weight: Tensor | None, prior: Tensor | None,
    class_prior: Tensor | None, class_mask: Tensor | None, ignore_index: int, label_smoothing: float,
    weight_inside: bool, divisor: Tensor, upstream: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of Σ_i upstream_i loss_i; an empty `divisor` is 1."""
    gradient = _dense_like(logits)
    _launch(
        logits, labels, q, weight, prior, class_prior, class_mask, ignore_index, label_smoothing, weight_inside,
        divisor if divisor.numel() else None, upstream.contiguous(), None, gradient,
    )  # fmt: skip
    return gradient


@cross_entropy_rows.register_fake
def _(logits, labels, q, weight, prior, class_prior, class_mask, ignore_index, label_smoothing, weight_inside,
      normalizer, mean, with_gradient):  # fmt: skip
    return _outputs(logits, normalizer, mean, with_gradient)


@cross_entropy_gradient.register_fake
def _(logits, *_):
    return _dense_like(logits)


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, ctx.options, ctx.with_gradient = inputs[:7], inputs[7:10], inputs[-1]
    _, gradient, divisor = output
    ctx.mark_non_differentiable(gradient, divisor)
    ctx.set_materialize_grads(False)  # of the gradient, it would be a tensor of zeros
    ctx.save_for_backward(*((gradient,) if ctx.with_gradient else (*tensors, divisor)))


def _backward_pass(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused cross-entropy has no second derivative (create_graph=True was asked for); the eager path has one"
        )
    if upstream is None:
        gradient = None
    elif not ctx.with_gradient:
        *tensors, divisor = ctx.saved_tensors
        gradient = cross_entropy_gradient(*tensors, *ctx.options, divisor, upstream)
    else:
        (gradient,) = ctx.saved_tensors
        if torch._C._len_torch_dispatch_stack() > 0:  # pyright: ignore[reportAttributeAccessIssue]
            gradient = (gradient * upstream.unsqueeze(-1)).to(gradient.dtype)  # traced: nothing saved may be changed
        else:
            if torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore[reportAttributeAccessIssue]
                gradient = gradient.clone(memory_format=torch.preserve_format)
            _scale_rows(gradient, upstream)
    return (gradient,) + (None,) * 12


cross_entropy_rows.register_autograd(_backward_pass, setup_context=_keep_for_backward)


# Launches.


def _launch(
    logits: Tensor, labels: Tensor | None, q: Tensor | None, weight: Tensor | None, prior: Tensor | None,
    class_prior: Tensor | None, class_mask: Tensor | None, ignore_index: int, smoothing: float, weight_inside: bool,
    divisor: Tensor | None, upstream: Tensor | None, losses: Tensor | None, gradient: Tensor | None,
) -> None:  # fmt: skip
    """One launch of a forward kernel: the losses, the gradient, or both."""
    outer, inner, classes = _sizes(logits)
    if outer * inner == 0:
        return
    class_last = _class_last(logits)
    u, prior_kind = prior, "classes"
    if smoothing == 0:
        u, prior_kind = None, "none"
    elif class_prior is not None:
        u, prior_kind = class_prior.contiguous(), "labels"
    elif prior is None:
        prior_kind = "uniform"
    elif prior.dim() > 1:
        u, prior_kind = _dense(prior, class_last), "rows"
    mask_kind = "none" if class_mask is None else "classes" if class_mask.dim() == 1 else "rows"
    if class_mask is not None:
        class_mask = (class_mask.contiguous() if mask_kind == "classes" else _dense(class_mask, class_last)).view(
            torch.uint8
        )
    inside = weight_inside and weight is not None
    plain = q is None and prior_kind in ("none", "uniform") and mask_kind == "none" and not inside
    kernel, rows, block, warps = _plan(classes, inner, class_last, plain)
    with torch.cuda.device_of(logits):
        kernel[(outer * triton.cdiv(inner, rows),)](
            logits, labels, None if q is None else _dense(q, class_last),
            None if weight is None else weight.contiguous(), None if u is None else u.contiguous() if u.dim() == 1 else u,
            class_mask, divisor, upstream, losses, gradient,
            classes, inner, *_strides(logits), ignore_index, smoothing,
            CLASS_LAST=class_last, PRIOR=prior_kind, CLASS_MASK=mask_kind, INSIDE=inside,
            PARTIALS=0 if divisor is None else divisor.numel(), ROWS=rows, BLOCK=block,
            ALIGN=_alignment(classes, *_strides(logits)[:2]) if class_last else 1, num_warps=warps,
        )  # fmt: skip


def _alignment(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all sizes."""
    return math.gcd(16, *sizes)


def _plan(classes: int, inner: int, class_last: bool, plain: bool) -> tuple[Any, int, int, int]:
    """Kernel, rows and classes of a tile, and warps."""
    on_chip = _forward.ON_CHIP if plain else _forward.ON_CHIP // 2
    in_blocks = _forward.ON_CHIP if plain else _forward.ON_CHIP // 4
    block = triton.next_power_of_2(classes)
    # Where classes are not adjacent, rows are, and 32 of them make a full memory transaction.
    rows = min(max(_forward.TILE // block, 1 if class_last else 32), triton.next_power_of_2(inner))
    kernel = _forward.rows_on_chip
    if rows * block > on_chip:
        kernel, block = _forward.rows_in_blocks, max(in_blocks // rows, 1)
    return kernel, rows, block, min(max(rows * block // 512, 4), 32)


def _kept_weight(
    logits: Tensor, labels: Tensor | None, q: Tensor | None, weight: Tensor | None, ignore_index: int, partials: Tensor
) -> None:
    outer, inner, classes = _sizes(logits)
    class_last = _class_last(logits)
    rows, block = (1024, 1) if q is None or weight is None else (1, 4096)
    with torch.cuda.device_of(logits):
        _divisor.kept_weight[(partials.numel(),)](
            labels, None if q is None else _dense(q, class_last), None if weight is None else weight.contiguous(),
            partials, outer * inner, classes, inner, ignore_index, CLASS_LAST=class_last, ROWS=rows, BLOCK=block,
            num_warps=4,
        )  # fmt: skip


def _scale_rows(gradient: Tensor, upstream: Tensor) -> None:
    outer, inner, classes = _sizes(gradient)
    if outer * inner == 0:
        return
    class_last = _class_last(gradient)
    _, rows, block, warps = _plan(classes, inner, class_last, plain=True)
    tiles = outer * triton.cdiv(inner, rows)
    u_outer, u_inner = (0, *upstream.stride())[-2:]
    with torch.cuda.device_of(gradient):
        scale_rows[(min(tiles, 8 * _multiprocessors(gradient.device)),)](
            gradient, upstream, tiles, classes, inner, u_outer, u_inner,
            CLASS_LAST=class_last, ROWS=rows, BLOCK=block, ALIGN=_alignment(classes) if class_last else 1, num_warps=warps,
        )  # fmt: skip


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# Layouts: rows are one axis or two, classes are last.


def _sizes(x: Tensor) -> tuple[int, int, int]:
    outer, inner, classes = (1, *x.shape)[-3:]
    return outer, inner, classes


def _strides(x: Tensor) -> tuple[int, int, int]:
    outer, inner, classes = (0, *x.stride())[-3:]
    return outer, inner, classes


def _class_last(x: Tensor) -> bool:
    """True where the classes of a row are adjacent in memory; otherwise it is best if rows are."""
    return x.shape[-1] == 1 or x.stride(-1) == 1


def _dense(x: Tensor, class_last: bool) -> Tensor:
    return x.contiguous() if class_last else x.mT.contiguous().mT


def _dense_like(x: Tensor) -> Tensor:
    if _class_last(x):
        return x.new_empty(x.shape)
    return x.new_empty(*x.shape[:-2], x.shape[-1], x.shape[-2]).mT


def _outputs(
    logits: Tensor, normalizer: Tensor | None, mean: bool, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    partials = 0 if not mean else _divisor.PARTIALS if normalizer is None else 1
    return (
        logits.new_empty(logits.shape[:-1], dtype=torch.float32),
        _dense_like(logits) if with_gradient else logits.new_empty(0),
        logits.new_empty(partials, dtype=torch.float32),
    )
