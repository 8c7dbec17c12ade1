"""What the peers publish, as numbers, and the peers themselves run beside ours where they install."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax

import labelsmooth as ls
from labelsmooth.jax import cross_entropy as jax_cross_entropy
from labelsmooth.losses import cross_entropy, cross_entropy_and_grad
from labelsmooth.torch import cross_entropy as torch_cross_entropy

RNG = np.random.default_rng(0)
Z, Y = RNG.normal(size=(6, 5)) * 3, np.array([0, 4, 2, 2, 1, 3])


@pytest.fixture(scope="module")
def tf():
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


def ours(logits, labels, **options):
    """The loss, which all of ours agree on."""
    reference = cross_entropy(logits, labels, **options)
    logits = np.asarray(logits, np.float64)
    in_torch = torch_cross_entropy(torch.tensor(logits), torch.as_tensor(np.asarray(labels)), **options)
    in_jax = jax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), **{"reduction": "mean"} | options)
    np.testing.assert_allclose(in_torch, reference, rtol=1e-13)
    np.testing.assert_allclose(in_jax, reference, rtol=2e-6)
    return reference


# PyTorch.


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 0.1, 3.0]])
def test_pytorch_beside_ours(reduction, weight):
    ids = np.where(np.arange(6) == 1, -100, Y)
    w = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    options = dict(reduction=reduction, label_smoothing=0.15)
    mine = ours(Z, ids, weight=weight and np.array(weight), **options)
    np.testing.assert_allclose(mine, F.cross_entropy(torch.tensor(Z), torch.tensor(ids), w, **options), rtol=1e-13)


# Keras and TensorFlow.


def test_keras_docstring():
    """keras.losses.CategoricalCrossentropy: y_pred are probabilities, array([0.0513, 2.303]), mean 1.177."""
    y_true, y_pred = [[0, 1, 0], [0, 0, 1]], np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
    with np.errstate(divide="ignore"):
        logits = np.log(y_pred)
    np.testing.assert_allclose(ours(logits, y_true, reduction="none"), [0.0513, 2.303], atol=5e-4)
    assert ours(logits, y_true) == pytest.approx(1.177, abs=5e-4)


def test_keras_beside_ours(tf):
    one_hot = np.eye(5)[Y]
    for smoothing in (0.0, 0.1, 0.4):
        peer = tf.keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        assert float(peer(one_hot, Z)) == pytest.approx(float(ours(Z, one_hot, label_smoothing=smoothing)), rel=1e-6)


def test_tensorflows_published_number(tf):
    """TensorFlow's losses_test, testSoftmaxLabelSmoothing: for logits [100, -100, -100] the loss is 400 ε/3."""
    logits, labels = np.array([[100.0, -100.0, -100.0]]), [[1, 0, 0]]
    assert ours(logits, labels, label_smoothing=0.1) == pytest.approx(400 * 0.1 / 3, rel=1e-12)
    peer = tf.compat.v1.losses.softmax_cross_entropy(labels, logits, label_smoothing=0.1)
    assert float(peer) == pytest.approx(400 * 0.1 / 3, rel=1e-6)


def test_tensorflow_v1_beside_ours(tf):
    one_hot, row_weights = np.eye(5)[Y], np.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])
    peer = tf.compat.v1.losses.softmax_cross_entropy(one_hot, Z, label_smoothing=0.2)
    assert float(peer) == pytest.approx(float(ours(Z, Y, label_smoothing=0.2)), rel=1e-6)
    # With `weights` its mean divides by the number of rows whose weight is not 0, which a normalizer says here.
    peer = tf.compat.v1.losses.softmax_cross_entropy(one_hot, Z, weights=row_weights, label_smoothing=0.2)
    rows = cross_entropy(Z, Y, label_smoothing=0.2, reduction="none")
    assert float(peer) == pytest.approx((rows * row_weights).sum() / 5, rel=1e-6)


# optax.


def test_optaxs_published_number():
    """optax's _smoothing_test: alpha = 0.1 on [0, 1, 0] and [1, 0, 0], as rows of 3."""
    expected = [[0.0333333, 0.9333333, 0.0333333], [0.9333333, 0.0333333, 0.0333333]]
    np.testing.assert_allclose(ls.smooth_labels([[0, 1, 0], [1, 0, 0]], 0.1), expected, atol=1e-6)


def test_optax_beside_ours():
    z, one_hot = jnp.asarray(Z, jnp.float32), jnp.eye(5)[Y]
    peer = optax.softmax_cross_entropy(z, optax.smooth_labels(one_hot, 0.1))
    np.testing.assert_allclose(ours(Z, Y, label_smoothing=0.1, reduction="none"), peer, rtol=2e-6)
    np.testing.assert_allclose(ls.smooth_labels(one_hot, 0.1), optax.smooth_labels(one_hot, 0.1), rtol=1e-6)


# Other conventions, through convert_smoothing.


def fairseq(logits, labels, epsilon):
    """fairseq's label_smoothed_nll_loss: eps_i = epsilon / (lprobs.size(-1) - 1) and

    loss = (1.0 - epsilon - eps_i) * nll_loss + eps_i * smooth_loss, where smooth_loss is -lprobs.sum(-1).
    """
    lprobs = log_softmax(logits, axis=-1)
    eps_i = epsilon / (lprobs.shape[-1] - 1)
    return (1.0 - epsilon - eps_i) * -lprobs[np.arange(len(labels)), labels] + eps_i * -lprobs.sum(-1)


def test_fairseq_is_the_exclusive_convention():
    number = 0.43954476  # of the formula: 0.85 · 0.23954476 + 0.05 · 4.71863427
    converted = ls.convert_smoothing(0.1, 3, from_="exclusive", to="inclusive")
    assert converted == pytest.approx(0.15, abs=1e-16)
    assert ours([[2.0, 0.0, 0.0]], [0], label_smoothing=converted) == pytest.approx(number, abs=1e-8)
    assert ours([[2.0, 0.0, 0.0]], [0], label_smoothing=0.1) != pytest.approx(number, abs=1e-2)
    for epsilon in (0.1, 0.5):
        converted = ls.convert_smoothing(epsilon, 5, from_="exclusive", to="inclusive")
        rows = ours(Z, Y, label_smoothing=converted, reduction="none")
        np.testing.assert_allclose(rows, fairseq(Z, Y, epsilon), rtol=1e-13)


def test_older_fairseq_is_the_inclusive_convention():
    """At its commit 00bc2798: eps_i = epsilon / lprobs.size(-1), loss = (1.0 - epsilon) * nll_loss + eps_i * smooth_loss."""
    lprobs = log_softmax(Z, axis=-1)
    old = 0.9 * -lprobs[np.arange(6), Y] + 0.1 / 5 * -lprobs.sum(-1)
    np.testing.assert_allclose(ours(Z, Y, label_smoothing=0.1, reduction="none"), old, rtol=1e-13)


@pytest.mark.parametrize(
    ("logits", "labels", "smoothing", "loss"),
    [
        ([[0.0, 7.0, 0.0, 0.0, 2.0]], [4], 0.5, 5.07609558),
        ([[1.0, 2.0], [0.0, 2.0]], [0, 1], 0.2, 0.76176142),
    ],
)
def test_classy_visions_published_losses(logits, labels, smoothing, loss):
    """Its tests of LabelSmoothingCrossEntropyLoss: q + ε/K, divided by its sum 1 + ε (and 1e-7)."""
    converted = ls.convert_smoothing(smoothing, len(logits[0]), from_="classy_vision", to="inclusive")
    assert ours(logits, labels, label_smoothing=converted) == pytest.approx(loss, abs=2e-6)


def test_classy_visions_published_targets():
    """From the same tests: ε = 0.1 on class 4 of 5 gives 0.2/11 and 10.2/11; ε = 0.5 gives 1/15 and 11/15."""
    for smoothing, off, on in ((0.1, 0.2 / 11, 10.2 / 11), (0.5, 1 / 15, 11 / 15)):
        converted = ls.convert_smoothing(smoothing, 5, from_="classy_vision", to="inclusive")
        targets = ls.smooth_labels(np.eye(5)[[4]], converted)
        np.testing.assert_allclose(targets, [[off] * 4 + [on]], rtol=1e-12)


def test_a_gradient_of_a_peer_is_that_of_ours(tf):
    z = tf.constant(Z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.compat.v1.losses.softmax_cross_entropy(np.eye(5)[Y], z, label_smoothing=0.1)
    _, gradient = cross_entropy_and_grad(Z, Y, label_smoothing=0.1)
    np.testing.assert_allclose(tape.gradient(loss, z), gradient, atol=16 * 2**-23 / 6)
