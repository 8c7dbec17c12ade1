"""Dropout that is drawn for each example: neither its place in a batch nor the batch's size changes what is dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelsmooth import _checks

_WORD = 0xFFFFFFFF


class Dropout(nn.Module):
    """Each feature of an example is 0 with probability p, else divided by 1 - p; in training mode only.

    What is dropped is a hash of the example's key and the feature's number. No generator is asked: batches may be cut
    into pieces, spread over devices and begun anew, and every example keeps its draws.

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _checks.smoothing(p, "dropout")

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """`x` with features dropped.

        Args:
            x: float ``[N, D]``.
            keys: from `keys`, ``int64[N, 2]``; may be None where nothing is dropped.

        Raises:
            ValueError: there are no keys in training mode.
        """
        if not (self.training and self.p):
            return x
        if keys is None:
            raise _checks.error("keys", "be given in training mode, where dropout is above 0", None)
        features = _mixed(torch.arange(1, x.shape[1] + 1, device=x.device))
        draws = _mixed(_mixed(keys[:, :1] ^ features) ^ keys[:, 1:])
        return torch.where(draws >= round(self.p * 2**32), x / (1 - self.p), 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keys(seed: int, examples: Tensor) -> Tensor:
    """What dropout draws by: a function of the seed and of the examples' numbers, ``int64[N, 2]``.

    Args:
        seed: at least 0; one for each epoch.
        examples: numbers below 2**32, ``int64[N]``.

    Example:
        >>> import torch
        >>> both, second = keys(5, torch.tensor([0, 1])), keys(5, torch.tensor([1]))
        >>> torch.equal(both[1], second[0])
        True
    """
    first = _mixed(examples ^ (seed & _WORD))
    return torch.stack([first, _mixed(first ^ (seed >> 32 & _WORD))], 1)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 0..2**32-1 in which every bit depends on all: xor with shifts, and odd factors.

    The factors are below 2**31, so that no product leaves an int64.
    """
    for factor in (0x7FEB352D, 0x31848BAB, 0x21F0AAAD):
        x = ((x ^ (x >> 16)) * factor) & _WORD
    return x ^ (x >> 15)
