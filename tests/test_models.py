"""Models: the published parameter counts, Keras' defaults, and MiniGoogLeNet written out a second time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import shift as scipy_shift

from labelsmooth.training.augmentation import shift_and_flip
from labelsmooth.training.models import Classifier, MiniGoogLeNet, SmallNet, build


def test_minigooglenet_has_the_published_number_of_parameters():
    network = MiniGoogLeNet(10)
    trainable = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert trainable == 1_652_826
    assert trainable + statistics == 1_656_250


def test_minigooglenet_computes_what_the_original_does():
    torch.manual_seed(0)
    network = MiniGoogLeNet(10).eval()
    for name, buffer in network.named_buffers():
        if "running_mean" in name:
            buffer.normal_()
        elif "running_var" in name:
            buffer.uniform_(0.5, 2)
    weights = network.state_dict()

    def conv(x, name, stride=1, pad=0):
        x = F.conv2d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride, pad)
        mean, var, scale, shift = (weights[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        normal = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-3)
        return F.relu(normal * scale[:, None, None] + shift[:, None, None])

    def inception(x, name):
        return torch.cat([conv(x, f"{name}.ones"), conv(x, f"{name}.threes", pad=1)], 1)

    def downsample(x, name):
        return torch.cat([conv(x, f"{name}.conv", stride=2), F.max_pool2d(x, 3, 2)], 1)

    x = torch.randn(2, 3, 32, 32)
    y = conv(x, "body.0", pad=1)
    for i in range(1, 11):
        y = (downsample if i in (3, 8) else inception)(y, f"body.{i}")
    assert y.shape == (2, 336, 7, 7)
    features = F.avg_pool2d(y, 7).flatten(1)
    torch.testing.assert_close(network.features(x), features, rtol=1e-4, atol=1e-4)
    logits = features @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(x), logits, rtol=1e-4, atol=1e-4)


def test_initial_weights_are_keras_defaults():
    torch.manual_seed(0)
    for module in MiniGoogLeNet(10).modules():
        if isinstance(module, torch.nn.Conv2d):
            outputs, inputs, height, width = module.weight.shape
            bound = np.sqrt(6 / ((inputs + outputs) * height * width))
            assert float(module.weight.detach().abs().max()) <= bound
            assert float(module.weight.detach().std()) == pytest.approx(bound / np.sqrt(3), rel=0.1)
            assert not module.bias.any()
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == 1e-3
            assert module.momentum == pytest.approx(1 - 0.99)


@pytest.mark.parametrize(("name", "size"), [("minigooglenet", 7), ("minigooglenet", 50), ("small", 4), ("small", 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_image_sizes(name, size, channels):
    network = build(name, image_shape=(size, size + 1, channels), num_classes=7, dropout=0.5).eval()
    assert network(torch.zeros(2, channels, size, size + 1)).shape == (2, 7)


def test_errors():
    with pytest.raises(ValueError, match=r"model must be one of 'minigooglenet', 'small'; got 'resnet'"):
        build("resnet", image_shape=(32, 32, 3), num_classes=2, dropout=0)
    with pytest.raises(ValueError, match=r"minigooglenet needs at least 7x7 .*; got minigooglenet for images of 6x32"):
        build("minigooglenet", image_shape=(6, 32, 3), num_classes=2, dropout=0)


def test_the_classifier_subtracts_the_mean_image():
    mean = torch.rand(1, 8, 8) * 255
    network = SmallNet(3).eval()
    classifier = Classifier(network, mean).eval()
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    x = classifier.normalise(pixels)
    torch.testing.assert_close(x, pixels.float() - mean)
    features, logits = classifier.features_and_logits(x)
    torch.testing.assert_close(logits, network(x))
    torch.testing.assert_close(features, network.features(x))


# Augmentation, against SciPy's shift, which is what Keras calls.


def test_shift_is_scipys_with_nearest_fill():
    images = torch.rand(6, 2, 9, 11)
    shifted = shift_and_flip(images, torch.Generator().manual_seed(3), shift=0.3, flip=False)
    draws = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)).double().numpy()
    for image, result, (_, x, y) in zip(images.numpy(), shifted.numpy(), draws, strict=True):
        move = -(2 * y - 1) * 0.3 * 9, -(2 * x - 1) * 0.3 * 11
        for channel, moved in zip(image, result, strict=True):
            np.testing.assert_allclose(moved, scipy_shift(channel, move, order=1, mode="nearest"), atol=2e-5)


def test_shifts_and_flips_cover_their_range():
    n = 4000
    ramp = torch.arange(41.0).expand(n, 1, 41, 41)  # a pixel's value is its column
    generator = torch.Generator().manual_seed(0)
    centre = shift_and_flip(ramp, generator, shift=0.1, flip=False)[:, 0, 20, 20] - 20
    assert float(centre.min()) == pytest.approx(-4.1, abs=0.02)
    assert float(centre.max()) == pytest.approx(4.1, abs=0.02)
    assert float(centre.std()) == pytest.approx(8.2 / np.sqrt(12), rel=0.03)
    flipped = shift_and_flip(ramp, generator, shift=0.0, flip=True)
    mirrored = (flipped[:, 0, 0, 0] - 40).abs() < 1e-3
    assert 0.47 < float(mirrored.float().mean()) < 0.53
    torch.testing.assert_close(flipped[mirrored], ramp[mirrored].flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(flipped[~mirrored], ramp[~mirrored], atol=1e-4, rtol=0)
    assert shift_and_flip(ramp, generator, shift=0.0, flip=False) is ramp
