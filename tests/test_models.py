"""Models: the published parameter counts, Keras' defaults, and MiniGoogLeNet written out a second time."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import shift as scipy_shift

from labelsmooth.training import Recipe, load
from labelsmooth.training.augmentation import Augmentation, continuous, cut_out, whole_pixels
from labelsmooth.training.data import Split
from labelsmooth.training.models import Classifier, FastNet, MiniGoogLeNet, SmallNet, build
from labelsmooth.training.optimizers import Muon, orthogonalised


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
    with pytest.raises(ValueError, match=r"model must be one of 'minigooglenet', 'fast', 'small'; got 'resnet'"):
        build("resnet", image_shape=(32, 32, 3), num_classes=2, dropout=0)
    with pytest.raises(ValueError, match=r"minigooglenet needs at least 7x7 .*; got minigooglenet for images of 6x32"):
        build("minigooglenet", image_shape=(6, 32, 3), num_classes=2, dropout=0)


def test_the_classifier_subtracts_the_mean_image():
    data = load("digits")
    classifier = Classifier(SmallNet(3).eval(), (8, 8, 1)).eval()
    classifier.fit_to(data.train)
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    x = classifier.normalise(pixels)
    mean = torch.from_numpy(data.train.images.mean(axis=0, dtype=np.float64)).permute(2, 0, 1)
    torch.testing.assert_close(x, pixels.float() - mean.float())
    features, logits = classifier.features_and_logits(x)
    torch.testing.assert_close(logits, classifier.network(x))
    torch.testing.assert_close(features, classifier.network.features(x))


# FastNet.


def test_fastnet_sees_standardised_channels_through_a_whitening_layer():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(300, 40, 40, 3)).cumsum(1).cumsum(2)[:, 8:, 8:]  # neighbours alike, as in pictures
    pixels = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    images = (pixels * [1, 0.5, 0.25]).astype(np.uint8)
    rows = np.arange(300)
    split = Split(images, rows, rows % 3, rows, rows.astype(np.uint64))
    classifier = Classifier(build("fast", image_shape=(32, 32, 3), num_classes=3, dropout=0.0), (32, 32, 3))
    classifier.fit_to(split)
    x = classifier.normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    white = classifier.network.whiten(x).transpose(0, 1).flatten(1)[:12].double()
    second = white @ white.T / white.shape[1]
    variances = second.diagonal()
    assert (variances[:6] - 1).abs().max() < 0.05  # the smallest ones are damped
    assert (second - torch.diag(variances)).abs().max() < 0.05
    torch.testing.assert_close(classifier.network.whiten.weight[12:], -classifier.network.whiten.weight[:12])
    assert not classifier.network.whiten.weight.requires_grad


def test_fastnet_begins_as_the_identity_and_has_the_documented_size():
    assert sum(p.numel() for p in FastNet(10, 1, size=8).parameters() if p.requires_grad) == 263_816  # a narrow one
    network = FastNet(10)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 3_151_512
    x = torch.rand(2, 24, 6, 6)
    torch.testing.assert_close(network.stages[0].first(x)[:, :24], x)
    assert network.eval()(torch.rand(2, 3, 32, 32)).abs().max() < 0.5  # small logits at first


def test_fastnet_pools_as_far_as_the_images_allow():
    for size, side in ((8, 3), (12, 5), (16, 3), (28, 3), (32, 3), (48, 5), (64, 3), (128, 3)):
        network = FastNet(5, 1, size=size).eval()
        assert network.stages(network.whiten(torch.rand(1, 1, size, size))).shape[2:] == (side, side), size
        smaller = round(0.75 * size)
        assert network(torch.rand(1, 1, smaller, smaller)).shape == (1, 5)


# Augmentation, against SciPy's shift, which is what Keras calls.


def test_shift_is_scipys_with_nearest_fill():
    images, draws = torch.rand(6, 2, 9, 11), torch.rand(6, 2) * 0.6 - 0.3
    shifted = continuous(images, draws, torch.zeros(6, dtype=torch.bool))
    for image, result, (x, y) in zip(images.numpy(), shifted.numpy(), draws.double().numpy(), strict=True):
        for channel, moved in zip(image, result, strict=True):
            np.testing.assert_allclose(
                moved, scipy_shift(channel, (-y * 9, -x * 11), order=1, mode="nearest"), atol=2e-5
            )


def test_whole_pixels_are_numpys_reflection():
    images, draws = torch.rand(50, 3, 9, 16), torch.rand(50, 2) * 2 - 1
    flips = torch.arange(50) % 2 == 0
    result = whole_pixels(images, draws, flips, 0.125).numpy()
    seen = set()
    for i, (image, one) in enumerate(zip(images.numpy(), result, strict=True)):
        padded = np.pad(image, ((0, 0), (1, 1), (2, 2)), mode="reflect")
        found = []
        for down, right in itertools.product(range(3), range(5)):
            crop = padded[:, down : down + 9, right : right + 16]
            if np.array_equal(crop[..., ::-1] if flips[i] else crop, one):
                found.append((down, right))
        assert found, i
        seen |= set(found)
    assert {down for down, _ in seen} == {0, 1, 2}
    assert {right for _, right in seen} == {0, 1, 2, 3, 4}


def epoch(recipe, number, n=4000):
    seeded = [torch.Generator().manual_seed(seed) for seed in (10 + number, 7)]
    return Augmentation(recipe, n, number, *seeded, torch.device("cpu"))


@pytest.mark.parametrize(("size", "share", "side"), [((8, 12), 0.5, 4), ((9, 9), 1 / 3, 3), ((32, 32), 0.01, 0)])
def test_cutout_blanks_a_square_as_far_as_it_lies_inside(size, share, side):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 3, *size)).astype(np.float32)
    centres = rng.random((200, 2)).astype(np.float32)
    result = cut_out(torch.from_numpy(images), torch.from_numpy(centres), share).numpy()
    expected = images.copy()
    for image, centre in zip(expected, centres, strict=True):
        top, left = (int(np.round(c * s - side / 2)) for c, s in zip(centre, size, strict=True))
        image[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
    assert (result == expected).all()
    blanked = (result[:, 0] == 0).sum((1, 2))
    assert blanked.max() == side**2


def test_cutout_is_part_of_the_augmentation_and_keeps_the_other_draws():
    images = torch.ones(50, 3, 32, 32)
    rows = torch.arange(50)
    results = []
    for cutout in (0.0, 0.25):
        recipe = Recipe(cutout=cutout, shift=0.1)
        draws, first = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        augment = Augmentation(recipe, 50, 0, draws, first, torch.device("cpu"))
        results.append((augment.shifts, augment.flips, augment(images, rows)))
    assert (results[0][0] == results[1][0]).all()
    assert (results[0][1] == results[1][1]).all()
    assert (results[0][2] > 0.99).all()  # interpolated
    assert ((results[1][2] == 0).sum((1, 2, 3)) >= 3 * 4 * 4).all()  # at a corner a quarter of the square is left


def test_shifts_and_flips_cover_their_range():
    n = 4000
    ramp, rows = torch.arange(41.0).expand(n, 1, 41, 41), torch.arange(n)  # a pixel's value is its column
    centre = epoch(Recipe(shift=0.1, flip=False), 0)(ramp, rows)[:, 0, 20, 20] - 20
    assert float(centre.min()) == pytest.approx(-4.1, abs=0.02)
    assert float(centre.max()) == pytest.approx(4.1, abs=0.02)
    assert float(centre.std()) == pytest.approx(8.2 / np.sqrt(12), rel=0.03)
    flipped = epoch(Recipe(shift=0.0), 0)(ramp, rows)
    mirrored = (flipped[:, 0, 0, 0] - 40).abs() < 1e-3
    assert 0.47 < float(mirrored.float().mean()) < 0.53
    torch.testing.assert_close(flipped[mirrored], ramp[mirrored].flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(flipped[~mirrored], ramp[~mirrored], atol=1e-4, rtol=0)
    assert epoch(Recipe(shift=0.0, flip=False), 0)(ramp, rows) is ramp


def test_what_happens_to_an_image_depends_on_its_number_and_not_on_its_batch():
    recipe, images = Recipe(shift=0.1), torch.rand(40, 3, 8, 8)
    whole = epoch(recipe, 0, 40)(images, torch.arange(40))
    rows = torch.tensor([31, 2, 17])
    torch.testing.assert_close(epoch(recipe, 0, 40)(images[rows], rows), whole[rows])


def test_alternate_flips_mirror_every_image_every_second_epoch():
    recipe, n = Recipe(alternate=True), 1000
    flips = [epoch(recipe, number, n).flips for number in range(4)]
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert 400 < int(flips[0].sum()) < 600
    at_random = [epoch(Recipe(), number, n).flips for number in range(2)]
    assert 400 < int((at_random[0] ^ at_random[1]).sum()) < 600


# Muon.


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_orthogonalised_matrices_have_singular_values_near_1(precision):
    for shape in ((64, 576), (256, 40), (32, 32)):
        matrix = torch.randn(shape, dtype=torch.float64)
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        result = orthogonalised(matrix, precision)
        assert result.dtype == torch.float64
        singular = torch.linalg.svdvals(result)[s > 0.2 * s[0]]
        assert float(singular.min()) > 0.4
        assert float(singular.max()) < 1.6
        cosine = (result * (u @ vt)).sum() / result.norm() / (u @ vt).norm()
        assert float(cosine) > 0.85  # the same directions


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_muon_steps_as_written_down(precision):
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    bias = torch.nn.Parameter(torch.randn(5))
    adam_bias = torch.nn.Parameter(bias.detach().clone())
    ours = Muon([kernel], [bias], lr=0.1, momentum=0.6, other_lr=0.02, precision=precision)
    for group in ours.param_groups:
        group["lr"] = 0.1 * group["scale"]
    theirs = torch.optim.Adam([adam_bias], lr=0.02, betas=Muon.betas, eps=Muon.eps)
    before, velocity = kernel.detach().clone(), torch.zeros(8, 4, 3, 3)
    for _ in range(3):
        kernel.grad, bias.grad = torch.randn_like(kernel), torch.randn_like(bias)
        adam_bias.grad = bias.grad.clone()
        velocity = 0.6 * velocity + kernel.grad
        direction = kernel.grad + 0.6 * velocity
        step = orthogonalised(direction.reshape(8, 36), precision).reshape(8, 4, 3, 3)
        before = before * (8**0.5 / before.norm()) - 0.1 * step
        ours.step()
        theirs.step()
        torch.testing.assert_close(kernel.detach(), before)
        torch.testing.assert_close(bias, adam_bias)
