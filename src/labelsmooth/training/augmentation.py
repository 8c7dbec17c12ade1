"""Random shift and flip of a batch, on its device, in one resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(images: Tensor, generator: torch.Generator, *, shift: float, flip: bool) -> Tensor:
    """Each image moved by up to `shift` of its size in both directions, and mirrored with probability 1/2.

    Shifts are continuous: bilinear interpolation, and the nearest pixel where nothing is left to show (what Keras'
    ImageDataGenerator does with ``width_shift_range``, ``height_shift_range`` and ``fill_mode="nearest"``).

    Args:
        images: float ``[N, C, H, W]``.
        generator: a CPU generator; the draws are the same on every device.
        shift: the largest shift, as a share of height and of width, in [0, 1).
        flip: mirror left and right.

    Returns:
        Images of the same shape and dtype.
    """
    if shift == 0 and not flip:
        return images
    n = images.shape[0]
    draws = torch.rand(n, 3, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) if flip else 1.0
    theta[:, 1, 1] = 1.0
    theta[:, :, 2] = (draws[:, 1:] * 2 - 1) * 2 * shift  # an image is 2 wide in these coordinates
    theta = theta.to(images.device, images.dtype, non_blocking=True)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
