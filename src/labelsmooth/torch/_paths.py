"""Which of the loss's paths computes a call: PyTorch's eager operations, the CPU kernel, or the Triton kernels."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from labelsmooth import _checks
from labelsmooth.torch import _call, _eager, _native, _triton
from labelsmooth.torch._call import VARIABLE, Call


def loss(call: Call) -> Tensor:
    """The loss by the fastest path that can compute it, or by the one that `LABELSMOOTH_PATH` names.

    Raises:
        ValueError: a value of the call is wrong; or `LABELSMOOTH_PATH` names no path, or one that cannot compute it.
    """
    forced = _call.forced()
    path = forced or ("triton" if call.input.is_cuda else "native")
    if path == "eager":
        return _eager.loss(call)
    reason = _native.refusal(call) if path == "native" else _refused_by_triton(call)
    if reason is None:
        result = _native.loss(call) if path == "native" else _by_triton(call)
        if result is not None:
            return result
    elif forced:
        raise _checks.error(VARIABLE, f"name a path that can compute this loss ({reason})", repr(forced))
    return _eager.loss(call)


def _refused_by_triton(call: Call) -> str | None:
    others = (call.target, call.weight, call.prior, call.class_prior, call.mask, call.class_mask, call.normalizer)
    return _triton.unsupported(call.input, *others)


def _by_triton(call: Call) -> Tensor:
    if call.checked:  # the device is waited for anyway
        with torch.no_grad():
            _eager.loss(call)
    return _triton.cross_entropy(
        call.input, call.target, weight=call.weight, ignore_index=call.ignore_index, reduction=call.reduction,
        label_smoothing=call.epsilon, prior=call.prior, class_prior=call.class_prior, mask=call.mask,
        class_mask=call.class_mask, weight_mode=call.weight_mode, normalizer=call.normalizer, inplace=call.inplace,
    )  # fmt: skip


def described() -> str:
    """Which path this machine takes, and why."""
    forced = os.environ.get(VARIABLE)
    if forced:
        return f"{forced} ({VARIABLE} is set)"
    missing = _triton.unavailable()
    on_gpu = "Triton kernels" if missing is None else f"eager PyTorch ({missing})"
    return f"on the CPU {_native.described()}; on a GPU {on_gpu}"
