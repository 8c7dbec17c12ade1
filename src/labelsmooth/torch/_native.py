"""The loss by the CPU kernel, which computes the gradient in the same pass over the logits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.autograd import forward_ad

from labelsmooth import _checks
from labelsmooth.torch import _eager
from labelsmooth.torch._call import VARIABLE, Call, forced
from labelsmooth.torch._values import times_

try:
    from labelsmooth import _native as kernel
except ImportError as error:  # installed without a compiler
    kernel = None
    _missing = str(error)

_capsule: Callable[[Tensor], Any] = torch._C._to_dlpack  # pyright: ignore[reportAttributeAccessIssue]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NO_LABEL = -(1 << 63)
_PLAIN = frozenset((type(None), bool, int, float, str))  # to ask whether something is a tensor takes longer
_POOLED = 1 << 16  # bytes; smaller memory is quick to get, and page faults are few


def described() -> str:
    """Which kernel runs here, or why none does."""
    if kernel is None:
        return f"eager PyTorch (there is no kernel: {_missing}; reinstall where there is a C++ compiler)"
    return f"the kernel for {kernel.kernels()[0]}"


def refusal(call: Call) -> str | None:
    """Why the kernel cannot compute `call`, or None."""
    if kernel is None:
        return "the CPU kernel is not installed"
    if not call.input.is_cpu:
        return f"the logits are on {call.input.device}"
    if not call.looked_at:
        return "it is compiled, traced, transformed, or of tensors of another kind"
    if call.input.dtype not in _DTYPES:
        return f"the logits are {call.input.dtype}"
    if forward_ad._current_level >= 0:
        return "it is differentiated forward"
    if call.normalizer is not None and math.isnan(_number(call.normalizer)):
        return "normalizer is nan"
    if torch.is_grad_enabled():
        for x in (call.target, call.weight, call.prior, call.class_prior, call.normalizer):
            if isinstance(x, Tensor) and x.requires_grad:
                return "something beside the logits requires grad"
    return None


def rouse(logits: Tensor) -> None:
    """Wake the kernel's threads, if a loss of these logits is shared out among them: soon there is work."""
    if kernel is not None and logits.numel() >= kernel.PARALLEL_FROM and logits.is_cpu and torch.get_num_threads() > 1:
        kernel.rouse()


def takes_at_once(logits: Tensor, labels: Tensor, ignore_index: int, reduction: str, epsilon: float) -> bool:
    """Whether these are logits ``[N, K]`` and labels that the kernel can have as they are: there is nothing to be said.

    It is most calls, and their checks would take longer than a small loss. The logits' values are known to be at hand.
    """
    return (
        type(labels) is Tensor
        and labels.dtype == torch.int64
        and logits.dtype in _DTYPES
        and logits.dim() == 2
        and labels.shape == logits.shape[:1]
        and logits.shape[1] > 0
        and labels.is_cpu
        and type(epsilon) is float
        and 0 <= epsilon < 1
        and reduction in _checks.REDUCTIONS
        and type(ignore_index) is int
        and abs(ignore_index) < 1 << 63
        and kernel is not None
        and forward_ad._current_level < 0
        and VARIABLE not in os.environ
    )


def loss(call: Call) -> Tensor | None:
    """The loss of a call that is not refused; None where a value is wrong, which the eager path says in words."""
    shared = call.class_prior if call.prior is None or call.prior.dim() > 1 else call.prior
    if call.checked and shared is not None and bool(_eager.no_distribution(shared, -1, shared.dtype).any()):
        return None
    try:
        if torch.is_grad_enabled() and call.input.requires_grad:
            apply = super(torch.autograd.Function, _Loss).apply  # pyright: ignore[reportAttributeAccessIssue]
            return apply(call.input, call)  # without what Function.apply does for torch.func
        return _run(call, _lay_out(call.input.detach(), call).rows, None)
    except _WrongValue:
        return None


def takes(logits: Tensor) -> bool:
    """Whether `loss_and_gradient_` can have these logits, ``[n, K]``."""
    here = kernel is not None and logits.device.type == "cpu" and len(logits) > 0
    return forced() in (None, "native") and here


def loss_and_gradient_(logits: Tensor, labels: Tensor, smoothing: float, scale: float, checked: bool) -> Tensor:
    """The losses of rows ``[n, K]``, which become the gradient of scale · Σ loss.

    Raises:
        ValueError: a label is out of range; or, where values are checked, a row is -inf in all its classes.
    """
    assert kernel is not None
    losses = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    faults = kernel.cross_entropy(
        _capsule(logits.detach()), _capsule(labels.contiguous()), _capsule(losses), _capsule(logits.detach()),
        smoothing, ignore_index=_NO_LABEL, upstream_scalar=scale, threads=torch.get_num_threads(),
    )  # fmt: skip
    if faults & kernel.UNDEFINED:
        _checks.label_range(labels.numpy(), logits.shape[1], "target")
    if faults and checked:
        raise _checks.empty_row()
    return losses


class _WrongValue(Exception):
    """The kernel found a value that it cannot compute with, or that is refused."""


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, call: Call) -> Tensor:
        laid_out = _lay_out(input.detach(), call)
        ctx.gradient, ctx.dim, ctx.arguments = None, call.dim, None
        # A loss scale comes with the upstream gradient, and float16 has no room for a gradient without it.
        at_once = input.dtype != torch.float16
        gradient = None
        if call.inplace and at_once and laid_out.rows.data_ptr() == input.data_ptr() and _is_apart(input):
            gradient = laid_out.rows
            if call.checked or call.class_mask is not None:
                _run(call, laid_out.rows, None)  # a value that is refused leaves the logits as they were
            torch.autograd.graph.increment_version(input)
        else:
            others = call[2:]
            tensors = [x for x in others if type(x) not in _PLAIN and isinstance(x, Tensor)]
            ctx.save_for_backward(input, call.target, *tensors)
            ctx.arguments = [Tensor if isinstance(x, Tensor) else x for x in others] if tensors else others
            if at_once:
                gradient = _empty(laid_out.rows)
        if gradient is not None:
            ctx.gradient = laid_out.back(gradient)
        return _run(call, laid_out.rows, gradient)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        (upstream,) = upstreams
        gradient, ctx.gradient = ctx.gradient, None  # nobody else has it: it may be changed, and given away
        several = is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream)  # upstream gradients at once
        if not torch.is_grad_enabled() and gradient is not None and not several:
            one = upstream.dim() < gradient.dim() - 1 or gradient.dim() == 1
            factor = upstream if one else upstream.unsqueeze(ctx.dim)
            if upstream.item() == 1 if one else bool((upstream == 1).all()):
                return gradient, None
            if ctx.arguments is None or bool(factor.isfinite().all()):
                return times_(gradient, factor, ctx.dim), None
            # Else it is made anew: 0 · inf is nan, and the kernel knows which rows are kept.
        if ctx.arguments is None:
            rule = "one upstream gradient at a time" if several and gradient is not None else "once, and not twice"
            raise RuntimeError(f"inplace=True overwrites the logits: the loss can be differentiated {rule}")
        saved = iter(ctx.saved_tensors)
        call = Call(next(saved), next(saved), *(next(saved) if x is Tensor else x for x in ctx.arguments))
        twice = torch.is_grad_enabled()  # the gradient will be differentiated itself
        if twice or several:
            with torch.enable_grad():
                again = _eager.loss(call._replace(checked=False))
            return torch.autograd.grad(again, call.input, upstream, create_graph=twice)[0], None
        laid_out = _lay_out(call.input.detach(), call)
        rows = _empty(laid_out.rows)
        _run(call, laid_out.rows, rows, upstream)
        return laid_out.back(rows), None


class _LaidOut(NamedTuple):
    """Logits as the kernel takes them.

    Attributes:
        rows: ``[n, K]`` with classes side by side, or ``[N, K, M]`` with rows side by side.
        back: makes a contiguous tensor of the shape of `rows` one of the shape of the logits, on the same memory.
    """

    rows: Tensor
    back: Callable[[Tensor], Tensor]


def _is_apart(x: Tensor) -> bool:
    """No two elements lie in one place: expanded logits cannot hold their gradient."""
    reach = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < reach:
            return False
        reach += stride * (size - 1)
    return True


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _lay_out(x: Tensor, call: Call) -> _LaidOut:
    if x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1):
        return _LaidOut(x, _as_it_is)
    if x.dim() == 1:
        return _LaidOut(x.contiguous().unsqueeze(0), lambda rows: rows[0])
    shape, count = x.shape, x.shape[call.dim]
    each_its_own = not call.labelled or call.class_prior is not None
    each_its_own = each_its_own or any(u is not None and u.dim() > 1 for u in (call.prior, call.class_mask))
    if each_its_own or x.movedim(1, -1).is_contiguous():
        lead = shape[:1] + shape[2:]
        rows = x.movedim(1, -1).reshape(-1, count).contiguous()
        return _LaidOut(rows, lambda rows: rows.view(*lead, count).movedim(-1, 1))
    if x.dim() == 2 and x.stride(0) == 1:
        return _LaidOut(x.t().unsqueeze(0), lambda rows: rows[0].t())
    return _LaidOut(x.contiguous().view(shape[0], count, -1), lambda rows: rows.view(shape))


def _empty(like: Tensor) -> Tensor:
    """Contiguous, not initialised; large ones from the pool, to which they go back when nothing refers to them."""
    if like.nbytes < _POOLED:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    assert kernel is not None
    return torch._C._from_dlpack(kernel.empty_like(_capsule(like)))  # pyright: ignore[reportAttributeAccessIssue]


def _run(call: Call, rows: Tensor, gradient: Tensor | None, upstream: Tensor | None = None) -> Tensor:
    """The loss of laid-out logits; `gradient` becomes its gradient times `upstream`.

    Raises:
        _WrongValue: as far as values are checked; what the kernel cannot compute with, always.
    """
    assert kernel is not None
    options = _options(call)
    if upstream is not None and upstream.dim() == 0:
        options.update(upstream_scalar=float(upstream))
    elif upstream is not None:
        options.update(upstream=_real(upstream.reshape(-1), call))
    if call.labelled:
        labels = call.target if call.target.dtype in (torch.int64, torch.int32) else call.target.long()
        target = _capsule(labels.contiguous())
        shape = labels.shape
    else:
        target = _real(_a_row_each(call.target, call) if call.input.dim() > 1 else call.target.unsqueeze(0), call)
        options.update(target_tolerance=_checks.tolerance(call.target.dtype))
        shape = call.input.shape[: call.dim] + call.input.shape[call.dim + 1 :]
    loss = rows.new_empty(shape if call.reduction == "none" else (), dtype=call.dtype)
    faults = kernel.cross_entropy(
        _capsule(rows), target, _capsule(loss), None if gradient is None else _capsule(gradient), call.epsilon,
        call.ignore_index, call.reduction == "mean", threads=torch.get_num_threads(), **options,
    )  # fmt: skip
    if faults and (call.checked or faults & kernel.UNDEFINED):
        raise _WrongValue
    return loss


def _a_row_each(x: Tensor, call: Call) -> Tensor:
    return x.movedim(call.dim, -1).reshape(-1, call.input.shape[call.dim]) if x.dim() > 1 else x


def _real(x: Tensor, call: Call) -> Any:
    return _capsule(x.detach().to(call.dtype).contiguous())


def _number(x: Tensor | float) -> float:
    return float(x.detach() if isinstance(x, Tensor) else x)


def _options(call: Call) -> dict[str, Any]:
    """What the kernel is told of the arguments beside logits and target that are given."""
    options: dict[str, Any] = {}
    if call.weight is not None:
        options.update(weight=_real(call.weight, call), weight_outside=call.weight_mode == "example")
    if call.prior is not None:
        tolerance = _checks.tolerance(call.prior.dtype)
        options.update(prior=_real(_a_row_each(call.prior, call), call), prior_tolerance=tolerance)
    if call.class_prior is not None and call.labelled:
        options.update(class_prior=_real(call.class_prior, call))
    elif call.class_prior is not None:
        with torch.autocast("cpu", enabled=False):  # it would multiply in half precision
            q = _a_row_each(call.target, call).detach().to(call.dtype).view(-1, call.input.shape[call.dim])
            u = q @ call.class_prior.detach().to(call.dtype)
        options.update(prior=_real(u, call), prior_tolerance=float("inf"))
    if call.mask is not None:
        options.update(mask=_capsule(call.mask.contiguous().view(torch.uint8)))
    if call.class_mask is not None:
        options.update(class_mask=_capsule(_a_row_each(call.class_mask, call).contiguous().view(torch.uint8)))
    if call.normalizer is not None:
        options.update(normalizer=_number(call.normalizer))
    return options
