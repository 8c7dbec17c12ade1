"""Random shifts and flips of batches, in one resampling, and cutout; on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelsmooth.training.recipes import Recipe


class Augmentation:
    """What happens to each training image in one epoch: a function of the seeds and of the image's number alone.

    Args:
        recipe: its `shift`, `shift_by`, `flip`, `alternate` and `cutout` are used.
        examples: how many training images there are.
        epoch: from 0.
        draws: seeded for this epoch.
        first_flips: seeded once for all epochs.
        device: of the images.
    """

    def __init__(
        self, recipe: Recipe, examples: int, epoch: int, draws: torch.Generator, first_flips: torch.Generator,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.epoch = recipe, epoch
        self.shifts = (torch.rand(examples, 2, generator=draws) * 2 - 1).to(device)
        if recipe.alternate:  # each image is seen as often one way as the other (cifar10-airbench, section 3.6)
            flips = (torch.rand(examples, generator=first_flips) < 0.5) ^ (epoch % 2 == 1)
        else:
            flips = torch.rand(examples, generator=draws) < 0.5
        self.flips = (flips & recipe.flip).to(device)
        if recipe.cutout:
            self.centres = torch.rand(examples, 2, generator=draws).to(device)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Shifted, flipped and cut images, float ``[n, C, H, W]``; `rows` says which they are."""
        recipe = self.recipe
        if recipe.shift or recipe.flip:
            if recipe.shift_by == "pixels":
                images = whole_pixels(images, self.shifts[rows], self.flips[rows], recipe.shift)
            else:
                images = continuous(images, self.shifts[rows] * recipe.shift, self.flips[rows])
        return cut_out(images, self.centres[rows], recipe.cutout) if recipe.cutout else images


def continuous(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Each image moved, and mirrored where `flips` is True.

    Bilinear interpolation, and the nearest pixel where nothing is left to show: what Keras' ImageDataGenerator does
    with ``width_shift_range``, ``height_shift_range`` and ``fill_mode="nearest"``.

    Args:
        images: float ``[N, C, H, W]``.
        shifts: float ``[N, 2]``, to the left and upwards, as shares of width and height.
        flips: bool ``[N]``.

    Returns:
        Images of the same shape and dtype.
    """
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = 1.0 - 2.0 * flips.to(images.dtype)
    theta[:, 1, 1] = 1.0
    theta[:, :, 2] = shifts * 2  # an image is 2 wide in these coordinates
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def whole_pixels(images: Tensor, draws: Tensor, flips: Tensor, shift: float) -> Tensor:
    """Each image moved by whole pixels, the edge reflected, and mirrored where `flips` is True.

    Args:
        images: ``[N, C, H, W]``.
        draws: float ``[N, 2]`` in [-1, 1), for height and width; every number of pixels is as likely.
        flips: bool ``[N]``.
        shift: the largest shift, as a share of height and of width; below a half of a pixel it is none.

    Returns:
        Images of the same shape and dtype, channels last in memory.
    """
    height, width = images.shape[2:]
    down = _reflected(draws[:, 0], height, shift)
    right = _reflected(draws[:, 1], width, shift)
    right = torch.where(flips[:, None], right.flip(1), right)
    numbers = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[numbers, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def _reflected(draws: Tensor, size: int, shift: float) -> Tensor:
    """Which row (or column) each place of each image shows, ``int64[N, size]``."""
    most = min(round(shift * size), size - 1)
    moved = ((draws + 1) / 2 * (2 * most + 1)).floor().long().clamp(max=2 * most) - most
    place = torch.arange(size, device=draws.device) + moved[:, None]
    place = place.abs()
    return torch.where(place >= size, 2 * (size - 1) - place, place)


def cut_out(images: Tensor, centres: Tensor, share: float) -> Tensor:
    """Each image with a square of zeros, the mean of normalised pixels, as far as it lies inside.

    Args:
        images: ``[N, C, H, W]``.
        centres: float ``[N, 2]`` in [0, 1), of the squares, as shares of height and width.
        share: the square's side, as a share of the smaller of height and width.

    Returns:
        Images of the same shape, dtype and memory format.

    References:
        DeVries and Taylor 2017, arXiv 1708.04552.
    """
    side = round(share * min(images.shape[2:]))
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        first = (centres[:, axis] * size - side / 2).round()
        place = torch.arange(size, device=images.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + side))
    return images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.0)


def smaller(images: Tensor, scale: float) -> Tensor:
    """Images at a share of their height and width, by an antialiased bilinear filter."""
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
