"""Models: MiniGoogLeNet, the classic one, a fast one, and a small network for small images."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelsmooth import _checks
from labelsmooth.training.data import Split
from labelsmooth.training.dropout import Dropout


class _ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU; ``same`` padding where `pad` is set. Keras' defaults: its momentum is 1 - ours."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, pad: bool = True, momentum: float = 0.01
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2 if pad else 0),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=momentum),
            nn.ReLU(inplace=True),
        )


class _Inception(nn.Module):
    """A 1x1 and a 3x3 convolution side by side."""

    def __init__(self, inputs: int, ones: int, threes: int) -> None:
        super().__init__()
        self.ones = _ConvBlock(inputs, ones, 1)
        self.threes = _ConvBlock(inputs, threes, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ones(x), self.threes(x)], 1)


class _Downsample(nn.Module):
    """A 3x3 convolution and a 3x3 max pooling side by side, both of stride 2 and without padding."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _ConvBlock(inputs, outputs, 3, stride=2, pad=False)
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.pool(x)], 1)


class Network(nn.Module):
    """Images to logits: `features`, then dropout, then `head`.

    Attributes:
        smallest: the least height and width of images.
        per_channel: the input is each channel standardised; else the mean image is taken off.
        looks_at: how many training images `fit_to` wants to see.
    """

    smallest: int
    per_channel = False
    looks_at = 0
    dropout: Dropout
    head: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        """What enters the dropout, ``[N, D]``."""
        raise NotImplementedError

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits; `keys` are what `Dropout` wants in training mode."""
        return self.head(self.dropout(self.features(x), keys))

    def fit_to(self, x: Tensor) -> None:
        """Look at some of the training images, as they will come in."""


class _ConvNet(Network):
    """Convolutions, global average pooling, dropout and a dense layer, with Keras' initial weights."""

    def __init__(self, body: nn.Sequential, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class MiniGoogLeNet(_ConvNet):
    """MiniGoogLeNet (Zhang et al. 2017, arXiv 1611.03530, figure 3), with global average pooling for any image size.

    1,652,826 trainable parameters for 3 channels and 10 classes, and 3,424 batch-norm statistics.

    Args:
        num_classes: K.
        channels: of the images, 1 or 3.
        dropout: the share of features dropped before the dense layer.
    """

    smallest = 7

    def __init__(self, num_classes: int, channels: int = 3, dropout: float = 0.5) -> None:
        body = nn.Sequential(
            _ConvBlock(channels, 96, 3),
            _Inception(96, 32, 32),
            _Inception(64, 32, 48),
            _Downsample(80, 80),
            _Inception(160, 112, 48),
            _Inception(160, 96, 64),
            _Inception(160, 80, 80),
            _Inception(160, 48, 96),
            _Downsample(144, 96),
            _Inception(240, 176, 160),
            _Inception(336, 176, 160),
        )
        super().__init__(body, 336, num_classes, dropout)


class SmallNet(_ConvNet):
    """Three convolutions and one pooling: for images of about 8x8, such as `digits`.

    Args:
        num_classes: K.
        channels: of the images, 1 or 3.
        dropout: the share of features dropped before the dense layer.
    """

    smallest = 4

    def __init__(self, num_classes: int, channels: int = 1, dropout: float = 0.0) -> None:
        # Few steps make an epoch of few images, so the statistics follow faster than Keras' do.
        body = nn.Sequential(
            _ConvBlock(channels, 32, 3, momentum=0.1),
            _ConvBlock(32, 64, 3, momentum=0.1),
            nn.MaxPool2d(2),
            _ConvBlock(64, 128, 3, momentum=0.1),
        )
        super().__init__(body, 128, num_classes, dropout)


class FastNet(Network):
    """A whitening layer and three residual stages: little work, and most of it in large products.

    After airbench94 (Jordan 2024, arXiv 2404.00498), with its stages pooled as far as the image size allows, and a
    stride of the whitening layer that brings larger images to about 31x31. 3,151,512 trainable parameters for 32x32x3
    and 10 classes. For `tiny` images all stages are as wide as the first: 263,816 for 8x8x1 and 10 classes.

    Args:
        num_classes: K.
        channels: of the images, 1 or 3.
        dropout: the share of features dropped before the dense layer.
        size: the smaller of height and width.
    """

    smallest = 8
    per_channel = True
    looks_at = 2000

    def __init__(self, num_classes: int, channels: int = 3, dropout: float = 0.0, *, size: int = 32) -> None:
        super().__init__()
        stride = max(1, round(size / 32))
        kernel = stride + 1
        width = min(24, 2 * channels * kernel**2)
        self.whiten = nn.Conv2d(channels, width, kernel, stride)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.weight)
        nn.init.zeros_(self.whiten.bias)  # pyright: ignore[reportArgumentType]
        pools = min(3, int(math.log2(((size - kernel) // stride + 1) / 3)))  # to 3x3 or more
        wide = 64 if tiny((size, size, channels)) else 256
        self.stages = nn.Sequential(
            _Stage(width, 64, depth=2, pool=pools > 0),
            _Stage(64, wide, depth=3, pool=pools > 1),
            _Stage(wide, wide, depth=3, pool=pools > 2),
        )
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(wide, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / wide)

    def fit_to(self, x: Tensor) -> None:
        """Set the whitening layer to the largest principal components of patches, of variance 1, and their negatives.

        Tysam (2022), hlb-CIFAR10, and Page (2018), "How to train your ResNet", part 8.
        """
        outputs, channels, kernel, _ = self.whiten.weight.shape
        patches = F.unfold(x, kernel, stride=self.whiten.stride).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        components = vectors.T / (values[:, None] + 5e-4).sqrt()
        components = components.flip(0)[: outputs // 2].reshape(-1, channels, kernel, kernel)
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([components, -components]))

    def features(self, x: Tensor) -> Tensor:
        return self.stages(F.gelu(self.whiten(x))).amax((2, 3))


class _Stage(nn.Module):
    """A convolution, pooled, and others around which its output is led; all begin as the identity."""

    def __init__(self, inputs: int, outputs: int, *, depth: int, pool: bool) -> None:
        super().__init__()
        self.first, self.pool = _identity(inputs, outputs), nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm = _BiasNorm(outputs)
        self.others = nn.Sequential()
        for _ in range(depth - 1):
            self.others.extend([_identity(outputs, outputs), _BiasNorm(outputs), nn.GELU()])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.pool(self.first(x))))
        return x + self.others(x)


def _identity(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first outputs are its inputs, and the others Kaiming-uniform."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


class _BiasNorm(nn.BatchNorm2d):
    """Batch norm that learns a bias and no scale, with fast statistics: there are few steps."""

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=0.4)
        self.weight.requires_grad_(False)


def tiny(image_shape: tuple[int, int, int]) -> bool:
    """Whether images of a height, a width and channels are too small for what suits photographs: below 16 pixels."""
    return min(image_shape[:2]) < 16


MODELS: dict[str, type[Network]] = {"minigooglenet": MiniGoogLeNet, "fast": FastNet, "small": SmallNet}


class Classifier(nn.Module):
    """A network behind its input's normalisation.

    Args:
        network: maps float images ``[N, C, H, W]`` to logits ``[N, K]``.
        image_shape: height, width and channels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        height, width, channels = image_shape
        self.register_buffer(
            "mean", torch.zeros((channels, 1, 1) if network.per_channel else (channels, height, width))
        )
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.mean.dtype

    def fit_to(self, train: Split) -> None:
        """Take the normalisation, and what the network wants to know, from the training images."""
        if self.network.per_channel:
            mean, std = train.channel_moments()
            self.mean.copy_(torch.from_numpy(mean)[:, None, None])
            self.scale.copy_(torch.from_numpy(np.where(std > 0, std, 1.0))[:, None, None])
        else:
            self.mean.copy_(torch.from_numpy(train.mean_image().transpose(2, 0, 1).copy()))
        if self.network.looks_at:  # at some of every class, also where they are sorted
            some = np.linspace(0, len(train) - 1, min(len(train), self.network.looks_at)).astype(np.int64)
            self.network.fit_to(self.normalise(torch.from_numpy(train.pixels(some)).permute(0, 3, 1, 2)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 ``[N, C, H, W]`` to the network's input, in the dtype of its weights."""
        x = pixels.to(self.mean.dtype) - self.mean
        return x / self.scale if self.network.per_channel else x

    def autocast(self, precision: torch.dtype) -> torch.autocast:
        """The context in which to call it: bfloat16 convolutions where `precision` says so."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits of normalised images; `keys` are what `Dropout` wants in training mode."""
        return self.network(x, keys)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The penultimate layer and the logits, in evaluation mode (no dropout between the two)."""
        features = self.network.features(x)
        return features, self.network.head(features)


def build(name: str, *, image_shape: tuple[int, int, int], num_classes: int, dropout: float) -> Network:
    """The network called `name`, with fresh weights from PyTorch's global generator.

    Raises:
        ValueError: an unknown name, or images too small for it.
    """
    _checks.one_of(name, "model", tuple(MODELS))
    kind = MODELS[name]
    height, width, channels = image_shape
    if min(height, width) < kind.smallest:
        rule = (
            f"suit the images; {name} needs at least {kind.smallest}x{kind.smallest} (--image-size, or another --model)"
        )
        raise _checks.error("model", rule, f"{name} for images of {height}x{width}")
    if kind is FastNet:
        return FastNet(num_classes, channels, dropout, size=min(height, width))
    return kind(num_classes, channels, dropout)  # pyright: ignore[reportCallIssue]
