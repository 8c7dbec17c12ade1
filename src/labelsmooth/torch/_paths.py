"""Which of the loss's paths computes a call: PyTorch's eager operations, or the CPU kernel."""

from __future__ import annotations

import os

from torch import Tensor

from labelsmooth import _checks
from labelsmooth.torch import _eager, _native
from labelsmooth.torch._call import Call

VARIABLE = "LABELSMOOTH_PATH"
PATHS = ("eager", "native")


def loss(call: Call) -> Tensor:
    """The loss by the fastest path that can compute it, or by the one that `LABELSMOOTH_PATH` names.

    Raises:
        ValueError: a value of the call is wrong; or `LABELSMOOTH_PATH` names no path, or one that cannot compute it.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        _checks.one_of(forced, VARIABLE, PATHS)
    if forced == "eager":
        return _eager.loss(call)
    reason = _native.refusal(call)
    if reason is None:
        result = _native.loss(call)
        if result is not None:
            return result
    elif forced:
        raise _checks.error(VARIABLE, f"name a path that can compute this loss ({reason})", repr(forced))
    return _eager.loss(call)


def described() -> str:
    """Which path this machine takes, and why."""
    forced = os.environ.get(VARIABLE)
    if forced:
        return f"{forced} ({VARIABLE} is set)"
    return _native.described()
