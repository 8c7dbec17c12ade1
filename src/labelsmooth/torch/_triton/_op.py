"""Launches of the kernels, and their place in autograd and torch.compile.

Where PyTorch runs eagerly, the forward pass computes the gradient too, and backward hands it over, scaled in place
where the upstream gradient is not 1. A compiled graph may not hand over what it saved, and float16 would underflow
before a loss scaler's factor reached it: there an operator computes the losses, and another one, in the backward pass,
the gradient from the logits.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor  # pyright: ignore[reportMissingImports]

from labelsmooth.torch._triton import _divisor, _forward
from labelsmooth.torch._triton._backward import scale_rows

# `logits` are [rows, K] or [outer, inner, K], of any strides; `labels` and the losses have no class axis. Every
# function below takes these operands in this order.
OPERANDS = (
    "Tensor logits, Tensor? labels, Tensor? q, Tensor? weight, Tensor? prior, Tensor? class_prior, Tensor? class_mask, "
    "int ignore_index, float label_smoothing, bool weight_inside"
)
TENSORS = 7


def losses_of_rows(operands: tuple, normalizer: Tensor | None, mean: bool, inplace: bool) -> Tensor:
    """The loss of every row, over what ``"mean"`` divides by if `mean`; differentiable in the logits.

    `inplace`: where the forward pass computes the gradient, it takes the place of dense logits.
    """
    logits = operands[0]
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:  # pyright: ignore
        return cross_entropy_rows(*operands, normalizer, mean)[0]
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return _forward_pass(operands, normalizer, mean, None)[0]
    if logits.dtype == torch.float16:
        return cross_entropy_rows(*operands, normalizer, mean)[0]
    return _Fused.apply(logits, operands, normalizer, mean, inplace)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, operands: tuple, normalizer: Tensor | None, mean: bool, inplace: bool
    ) -> Tensor:
        if inplace and (logits if _class_last(logits) else logits.mT).is_contiguous():
            gradient = logits.detach()
            torch.autograd.graph.increment_version(logits)
        else:
            gradient = _dense_like(logits)
        losses, _ = _forward_pass(operands, normalizer, mean, gradient)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        _refuse_a_second_derivative()
        (gradient,) = ctx.saved_tensors
        several = is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream)
        if several or torch._C._len_torch_dispatch_stack() > 0:  # pyright: ignore[reportAttributeAccessIssue]
            # Several upstream gradients at once, or a graph that is recorded: what was saved may not be changed.
            return (gradient * upstream.unsqueeze(-1)).to(gradient.dtype), None, None, None, None
        if torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore[reportAttributeAccessIssue]
            gradient = gradient.clone(memory_format=torch.preserve_format)
        _scale_rows(gradient, upstream)
        return gradient, None, None, None, None


def _refuse_a_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused cross-entropy has no second derivative (create_graph=True was asked for); "
            "LABELSMOOTH_PATH=eager has one"
        )


# The operators.


@torch.library.custom_op(
    "labelsmooth::cross_entropy_rows",
    mutates_args=(),
    schema=f"({OPERANDS}, Tensor? normalizer, bool mean) -> (Tensor, Tensor)",
)
def cross_entropy_rows(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The losses, and what they are divided by, which is empty without `mean`."""
    *operands, normalizer, mean = inputs
    return _forward_pass(tuple(operands), normalizer, mean, None)


@torch.library.custom_op(
    "labelsmooth::cross_entropy_gradient",
    mutates_args=(),
    schema=f"({OPERANDS}, Tensor divisor, Tensor upstream) -> Tensor",
)
def cross_entropy_gradient(*inputs: Any) -> Tensor:
    """The gradient of Σ_i upstream_i loss_i with respect to the logits."""
    *operands, divisor, upstream = inputs
    gradient = _dense_like(operands[0])
    _launch(tuple(operands), divisor, upstream.contiguous(), None, gradient)
    return gradient


@cross_entropy_rows.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    logits, normalizer, mean = inputs[0], *inputs[-2:]
    return _losses_like(logits), _divisor_like(logits, normalizer, mean)


@cross_entropy_gradient.register_fake
def _(*inputs: Any) -> Tensor:
    return _dense_like(inputs[0])


def _keep_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    divisor = output[1]
    ctx.mark_non_differentiable(divisor)
    ctx.options = inputs[TENSORS:-2]
    ctx.save_for_backward(*inputs[:TENSORS], divisor)


def _backward_pass(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_a_second_derivative()
    *tensors, divisor = ctx.saved_tensors
    return cross_entropy_gradient(*tensors, *ctx.options, divisor, upstream), *(None,) * 11


cross_entropy_rows.register_autograd(_backward_pass, setup_context=_keep_for_backward)


# Launches.


def _forward_pass(
    operands: tuple, normalizer: Tensor | None, mean: bool, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    logits = operands[0]
    losses, divisor = _losses_like(logits), _divisor_like(logits, normalizer, mean)
    if normalizer is not None:
        divisor.copy_(normalizer.reshape(1))
    elif mean:
        _kept_weight(operands, divisor)
    _launch(operands, divisor, None, losses, gradient)
    return losses, divisor


def _launch(
    operands: tuple, divisor: Tensor, upstream: Tensor | None, losses: Tensor | None, gradient: Tensor | None
) -> None:
    """One launch of a forward kernel: the losses, the gradient, or both."""
    logits, labels, q, weight, prior, class_prior, class_mask, ignore_index, smoothing, inside = operands
    outer, inner, classes = _sizes(logits)
    if outer * inner == 0:
        return
    class_last = _class_last(logits)
    if smoothing == 0:
        prior, prior_kind = None, "none"
    elif class_prior is not None:
        prior, prior_kind = class_prior.contiguous(), "labels"
    elif prior is None:
        prior_kind = "uniform"
    elif prior.dim() == 1:
        prior, prior_kind = prior.contiguous(), "classes"
    else:
        prior, prior_kind = _dense(prior, class_last), "rows"
    if class_mask is None:
        mask_kind = "none"
    elif class_mask.dim() == 1:
        class_mask, mask_kind = class_mask.contiguous().view(torch.uint8), "classes"
    else:
        class_mask, mask_kind = _dense(class_mask, class_last).view(torch.uint8), "rows"
    inside = inside and weight is not None
    plain = q is None and prior_kind in ("none", "uniform") and mask_kind == "none" and not inside
    kernel, rows, block, warps = _plan(classes, inner, class_last, plain)
    strides = _strides(logits)
    with torch.cuda.device_of(logits):
        kernel[(outer * -(-inner // rows),)](
            logits, labels, None if q is None else _dense(q, class_last),
            None if weight is None else weight.contiguous(), prior, class_mask,
            divisor if divisor.numel() else None, upstream, losses, gradient,
            classes, inner, *strides, ignore_index, smoothing,
            CLASS_LAST=class_last, PRIOR=prior_kind, CLASS_MASK=mask_kind, INSIDE=inside, PARTIALS=divisor.numel(),
            ROWS=rows, BLOCK=block, ALIGN=_alignment(classes, *strides[:2]) if class_last else 1,
            IN_PLACE=gradient is not None and gradient.data_ptr() == logits.data_ptr(), num_warps=warps,
        )  # fmt: skip


def _alignment(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all sizes."""
    return math.gcd(16, *sizes)


def _power_of_2(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _plan(classes: int, inner: int, class_last: bool, plain: bool) -> tuple[Any, int, int, int]:
    """Kernel, rows and classes of a tile, and warps."""
    # Where classes are not adjacent, each cell has its own 64-bit address, which takes registers too.
    room = _forward.ON_CHIP if class_last else _forward.ON_CHIP // 4
    on_chip, in_blocks = (room, room) if plain else (room // 2, room // 4)
    block = _power_of_2(classes)
    # Where classes are not adjacent, rows are, and 32 of them make a full memory transaction.
    rows = min(max(_forward.TILE // block, 1 if class_last else 32), _power_of_2(inner))
    kernel = _forward.rows_on_chip
    if rows * block > on_chip:
        kernel, block = _forward.rows_in_blocks, max(in_blocks // rows, 1)
    return kernel, rows, block, min(max(rows * block // 512, 4), 32)


def _kept_weight(operands: tuple, partials: Tensor) -> None:
    logits, labels, q, weight = operands[:4]
    ignore_index = operands[TENSORS]
    outer, inner, classes = _sizes(logits)
    class_last = _class_last(logits)
    rows, block = (1024, 1) if q is None or weight is None else (1, 4096)
    kernel: Any = _divisor.kept_weight
    with torch.cuda.device_of(logits):
        kernel[(partials.numel(),)](
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
    kernel: Any = scale_rows
    tiles = outer * -(-inner // rows)
    u_outer, u_inner = (0, *upstream.stride())[-2:]
    align = _alignment(classes) if class_last else 1
    with torch.cuda.device_of(gradient):
        kernel[(min(tiles, 8 * _multiprocessors(gradient.device)),)](
            gradient, upstream, tiles, classes, inner, u_outer, u_inner,
            CLASS_LAST=class_last, ROWS=rows, BLOCK=block, ALIGN=align, num_warps=warps,
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


def _losses_like(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.float32)


def _divisor_like(logits: Tensor, normalizer: Tensor | None, mean: bool) -> Tensor:
    parts = 0 if not mean else _divisor.PARTIALS if normalizer is None else 1
    return logits.new_empty(parts, dtype=torch.float32)
