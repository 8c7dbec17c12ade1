"""Batches of pixels, from memory, from a file that is larger than it, or from the device itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from labelsmooth.training.data import Split

_SHARE = 0.5  # of the device's free memory that images may take


class Feed:
    """The images of a split, as ``uint8[N, C, H, W]``, channels last in memory, on a device.

    On a GPU they are copied there once, if they take less than half of its free memory; else batch by batch.

    Args:
        split: the images.
        device: where batches go.

    Attributes:
        rows_on: the device on which `batch` wants its rows.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self.resident = None
        size = len(split) * int(np.prod(split.pool.shape[1:]))
        if device.type == "cuda" and size < _SHARE * torch.cuda.mem_get_info(device)[0]:
            height, width, channels = split.pool.shape[1:]
            shape = (len(split), channels, height, width)
            self.resident = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=torch.channels_last)
            start = 0
            for block in split.blocks():
                self.resident[start : start + len(block)] = _tensor(block).to(device)
                start += len(block)
        self.rows_on = torch.device("cpu") if self.resident is None else device

    def batch(self, rows: Tensor) -> Tensor:
        """The images of `rows`, ``int64[n]``."""
        if self.resident is not None:
            return self.resident[rows]
        pixels = _tensor(self.split.pixels(rows.numpy()))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)


def _tensor(images: np.ndarray) -> Tensor:
    """uint8 ``[N, H, W, C]`` as a tensor ``[N, C, H, W]``, channels last in memory as in NumPy."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
