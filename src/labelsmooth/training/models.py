"""Models: MiniGoogLeNet, the classic one, and a small network for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelsmooth import _checks


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


class _ConvNet(nn.Module):
    """Convolutions, global average pooling, dropout and a dense layer; `features` is what enters the dropout."""

    smallest: int  # the least height and width

    def __init__(self, body: nn.Sequential, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # Keras' defaults
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))


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


MODELS = {"minigooglenet": MiniGoogLeNet, "small": SmallNet}


class Classifier(nn.Module):
    """A network behind its input's normalisation: uint8 pixels less the training set's mean image.

    Args:
        network: maps float images ``[N, C, H, W]`` to logits ``[N, K]``.
        mean: float32 ``[C, H, W]``, in 0..255.
    """

    mean: Tensor

    def __init__(self, network: _ConvNet, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 ``[N, C, H, W]`` to the network's input, in the dtype of its weights."""
        return pixels.to(self.mean.dtype) - self.mean

    def autocast(self, precision: torch.dtype) -> torch.autocast:
        """The context in which to call it: bfloat16 convolutions where `precision` says so."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        return self.network(x)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The penultimate layer and the logits, in evaluation mode (no dropout between the two)."""
        features = self.network.features(x)
        return features, self.network.head(features)


def build(
    name: str, *, image_shape: tuple[int, int, int], num_classes: int, dropout: float
) -> MiniGoogLeNet | SmallNet:
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
    return kind(num_classes, channels, dropout)
