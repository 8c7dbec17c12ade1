"""The fused loss for GPUs: Triton kernels that compute loss and gradient in one pass over the logits.

Triton is imported by the first call of `unavailable`, `unsupported` or `cross_entropy`, never by importing this.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth  # pyright: ignore[reportMissingImports]

OLDEST = (8, 0)  # compute capability, Triton's own limit
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def unavailable(device: str = "cuda") -> str | None:
    """Why the kernels cannot run on a device of this type; None where they can.

    Under ``TRITON_INTERPRET=1``, set before the first call, they run on the CPU too: slowly, for tests.
    """
    return _unavailable(device)


# What torch.compiler.assume_constant_result does; that would import the compiler, and triton with it.
unavailable._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _unavailable(device: str) -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    from labelsmooth.torch._triton import _op  # registers the operators before any graph is traced

    if device == "cpu":
        compiled = isinstance(_op.scale_rows, triton.JITFunction)
        return "the Triton kernels are for GPUs" if compiled else None
    if device != "cuda":
        return f"the Triton kernels are not for {device} devices"
    if torch.version.cuda is None:
        return "this build of PyTorch has no CUDA"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return "the GPU's compute capability is {}.{}, and Triton needs {}.{}".format(*capability, *OLDEST)
    return None


def unsupported(input: Tensor, *others: Any) -> str | None:
    """Why the kernels do not take `input` with the `others` (target, weight, priors, masks); None where they do."""
    tensors = [x for x in others if isinstance(x, Tensor)]
    if input.dtype not in FLOATS:
        return f"the Triton kernels take no {input.dtype} logits"
    if any(x.device != input.device for x in tensors):
        return "tensors lie on several devices"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "the Triton kernels have gradients for the logits alone"
    if get_dynamic_layer_stack_depth() > 0 or torch.jit.is_tracing():  # pyright: ignore
        return "the Triton kernels can be neither transformed by torch.func nor traced by torch.jit"
    if torch.autograd.forward_ad._current_level >= 0:
        return "the Triton kernels have no forward-mode derivatives"
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in (input, *tensors)):
        return "the Triton kernels take no tensor subclasses"
    return unavailable(input.device.type)


def cross_entropy(
    input: Tensor, target: Tensor, *, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float,
    prior: Tensor | None, class_prior: Tensor | None, mask: Tensor | None, class_mask: Tensor | None, weight_mode: str,
    normalizer: Tensor | float | None, inplace: bool,
) -> Tensor:  # fmt: skip
    """`labelsmooth.torch.cross_entropy` of arguments whose types and shapes are checked and that are not `unsupported`.

    It waits for no device and looks at no value: a class id out of range gives its row a loss and a gradient of nan.
    A second derivative raises RuntimeError. `inplace` is heeded where the forward pass computes the gradient: not in
    float16, and not in compiled graphs.
    """
    from labelsmooth.torch._triton._op import losses_of_rows

    logits = _rows(input)
    q = labels = None
    if target.dim() == input.dim():
        q = _numbers(_rows(target))
        if mask is not None:
            labels, ignore_index = mask.to(torch.uint8), 0  # kept where it differs from 0
    else:
        labels = target if target.dtype in (torch.int32, torch.int64) else target.long()
        if mask is not None:
            labels = torch.where(mask, labels.long(), ignore_index)
    u = prior if prior is None or prior.dim() == 1 else _rows(prior)
    if class_prior is not None and q is not None:
        with torch.autocast(q.device.type, enabled=False):  # it would multiply in half precision
            u, class_prior = q.float() @ class_prior.float(), None
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.full((), normalizer, dtype=torch.float32, device=input.device)
    operands = (
        logits,
        None if labels is None else labels.reshape(logits.shape[:-1]).contiguous(),
        q,
        _numbers(weight),
        _numbers(u),
        _numbers(class_prior),
        class_mask if class_mask is None or class_mask.dim() == 1 else _rows(class_mask),
        ignore_index,
        label_smoothing,
        weight_mode == "class",
    )
    losses = losses_of_rows(operands, normalizer, reduction == "mean", inplace)
    if reduction != "none":
        return losses.sum()
    return losses.reshape(input.shape[:1] + input.shape[2:] if input.dim() > 1 else ())


def _rows(x: Tensor) -> Tensor:
    """`x`, laid out like the input, as ``[rows, K]`` or ``[outer, inner, K]``: a view where its strides allow."""
    if x.dim() < 3:
        return x.unsqueeze(0) if x.dim() == 1 else x
    return x.flatten(2).transpose(1, 2)


def _numbers(x: Tensor | None) -> Tensor | None:
    """In a dtype that the kernels read: integers, such as one-hot targets, become float32."""
    return x if x is None or x.dtype in (*FLOATS, torch.float64) else x.float()
