"""Whether the values of a tensor may be looked at: without synchronising a device, outside any transformation."""

from __future__ import annotations

import torch
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]


def at_hand(*tensors: torch.Tensor | None, allow_device: bool = False) -> bool:
    """True where every tensor's values can be read at once.

    They cannot under torch.compile, torch.func transformations (vmap, grad) or fake tensors; and on a device other
    than the CPU, which would have to be waited for, only where `allow_device` is set.
    """
    if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:
        return False
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0:  # pyright: ignore
        return False
    return all(
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and (x.device.type == "cpu" or (allow_device and x.device.type != "meta"))
        for x in tensors
        if x is not None
    )
