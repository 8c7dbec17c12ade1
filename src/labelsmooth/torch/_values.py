"""Whether the values of a tensor may be looked at: without synchronising a device, outside any transformation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.nn import Parameter


def as_written() -> bool:
    """Whether operations compute at once: not under torch.compile, torch.func, tracing or fake tensors."""
    return not (torch.compiler.is_compiling() or transformed() or torch._C._len_torch_dispatch_stack())  # pyright: ignore


def transformed() -> bool:
    """Whether torch.func or torch.jit.trace looks at operations."""
    return peek_interpreter_stack() is not None or torch.jit.is_tracing()  # pyright: ignore


def readable(x: Tensor, allow_device: bool = False) -> bool:
    """Whether `x` has values that can be read, where operations compute at once.

    On other devices than the CPU, which would have to be waited for, only where `allow_device` is set.
    """
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    return x.is_cpu or (allow_device and not x.is_meta)


def times_(gradient: Tensor, factor: Tensor, dim: int) -> Tensor:
    """`gradient` times `factor`, in place, on the CPU.

    Along `dim`, where all is 0, as in rows that are not kept, it stays 0: 0 · inf is nan.
    """
    if bool(factor.isfinite().all()):
        return gradient.mul_(factor)
    nothing = (gradient == 0).all(dim, keepdim=True)
    return gradient.mul_(factor).masked_fill_(nothing, 0)


def at_hand(*tensors: Tensor, allow_device: bool = False) -> bool:
    """True where every tensor's values can be read at once."""
    return as_written() and all(readable(x, allow_device) for x in tensors)
