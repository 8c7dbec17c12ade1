"""Whether the values of a tensor may be looked at: without synchronising a device, outside any transformation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.nn import Parameter


def as_written() -> bool:
    """Whether operations compute at once: not under torch.compile, torch.func, tracing or fake tensors."""
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return False
    return not torch.jit.is_tracing() and not torch._C._len_torch_dispatch_stack()  # pyright: ignore


def readable(x: Tensor, allow_device: bool = False) -> bool:
    """Whether `x` has values that can be read, where operations compute at once.

    On other devices than the CPU, which would have to be waited for, only where `allow_device` is set.
    """
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    return x.is_cpu or (allow_device and not x.is_meta)


def at_hand(*tensors: Tensor, allow_device: bool = False) -> bool:
    """True where every tensor's values can be read at once."""
    return as_written() and all(readable(x, allow_device) for x in tensors)
