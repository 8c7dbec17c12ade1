"""Whether the values of a tensor may be looked at: without synchronising a device, outside any transformation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.nn import Parameter


def at_hand(*tensors: Tensor, allow_device: bool = False) -> bool:
    """True where every tensor's values can be read at once.

    They cannot under torch.compile, torch.func transformations (vmap, grad) or fake tensors; and on a device other
    than the CPU, which would have to be waited for, only where `allow_device` is set.
    """
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return False
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0:  # pyright: ignore
        return False
    for x in tensors:
        if type(x) is not Tensor and type(x) is not Parameter:
            return False
        if not x.is_cpu and not (allow_device and not x.is_meta):
            return False
    return True
