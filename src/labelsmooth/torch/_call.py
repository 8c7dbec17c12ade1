"""One call of the loss: what every path is given, its shapes and arguments checked, its values not yet."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from labelsmooth import _checks

VARIABLE = "LABELSMOOTH_PATH"  # of the environment: the path that every call takes
PATHS = ("eager", "native", "triton")


def forced() -> str | None:
    """The path that the environment asks for.

    Raises:
        ValueError: it is none.
    """
    path = os.environ.get(VARIABLE)
    if path:
        _checks.one_of(path, VARIABLE, PATHS)
    return path or None


class Call(NamedTuple):
    """The arguments of `labelsmooth.torch.cross_entropy`.

    Attributes:
        looked_at: values are at hand: the path may read them, and choose by them.
        checked: values are checked, and wrong ones refused.
    """

    input: Tensor
    target: Tensor
    weight: Tensor | None
    ignore_index: int
    reduction: str
    epsilon: float
    prior: Tensor | None = None
    class_prior: Tensor | None = None
    mask: Tensor | None = None
    class_mask: Tensor | None = None
    weight_mode: str = "class"
    normalizer: Tensor | float | None = None
    inplace: bool = False
    looked_at: bool = True
    checked: bool = True

    @property
    def dim(self) -> int:
        """The class axis."""
        return 0 if self.input.dim() == 1 else 1

    @property
    def labelled(self) -> bool:
        """`target` is class ids."""
        return self.target.dim() == self.input.dim() - 1

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return torch.float64 if self.input.dtype == torch.float64 else torch.float32
