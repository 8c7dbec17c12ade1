"""What tests/test_keras_loss.py runs once per Keras backend, in a process of its own: ``keras_checks.py RESULTS [CHECK ...]``.

RESULTS gets, for each `check_*`, null or the traceback of its failure. References are NumPy's float64 formulas,
`labelsmooth.losses`, and Keras' own losses where they can do the same.
"""

import doctest
import importlib
import json
import os
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # not installed, for all that Keras and this package know

import keras
import numpy as np
import pytest
from keras import ops

import labelsmooth as ls
from labelsmooth.keras import NLL, SmoothedBinaryCrossentropy, SmoothedCrossentropy

BACKEND = keras.backend.backend()
X64 = BACKEND != "jax" or os.environ.get("JAX_ENABLE_X64") == "1"
FLOATS = ("float32", "float64") if X64 else ("float32",)
KERAS_REDUCTIONS = (None, "none", "sum", "sum_over_batch_size", "mean", "mean_with_sample_weight")
N, K = 7, 5


class Data:
    """The same arrays for every check."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.z = rng.normal(size=(N, K)) * 3
        self.y = rng.integers(0, K, N)
        self.onehot = np.eye(K)[self.y]
        self.q = rng.dirichlet(np.ones(K), N)
        self.w = rng.uniform(0.5, 2.0, K)
        self.s = rng.uniform(0.5, 2.0, N)
        self.prior = rng.dirichlet(np.ones(K))
        self.class_prior = rng.dirichlet(np.ones(K), K)
        self.class_mask = np.array([True, True, False, True, True])
        self.x = rng.normal(size=(48, 6)).astype("float32")
        self.labels = rng.integers(0, K, 48)


D = Data()


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def host(x):
    return ops.convert_to_numpy(x)


def value_and_gradient(loss, y, z, dtype, activation=None, sample_weight=None):
    """The loss of `y` and the activation of `z`, and the gradient of its sum, computed by the backend itself."""

    def f(x):
        return loss(y, x if activation is None else activation(x), sample_weight)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.constant(z, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = f(x)
            total = tf.reduce_sum(value)
        return value, tape.gradient(total, x)
    if BACKEND == "jax":
        import jax

        x = jax.numpy.asarray(z, dtype)
        return f(x), jax.grad(lambda x: f(x).sum())(x)
    import torch

    x = torch.tensor(z, dtype=getattr(torch, dtype), requires_grad=True)
    value = f(x)
    value.sum().backward()
    return value.detach(), x.grad


def jitted(f):
    """`f`, traced: values are not at hand inside."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(f)
    if BACKEND == "jax":
        import jax

        return jax.jit(f)
    return None  # Keras on PyTorch is eager


def close(actual, expected, dtype, eps=16.0, scale=None):
    """Design.md's rule between frameworks: max|err| <= 16 eps s."""
    actual, expected = host(actual).astype(np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(actual), finite), (actual, expected)
    assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True), (actual, expected)
    if scale is None:
        scale = max(1.0, np.abs(expected[finite]).max(initial=0))
    error = np.abs(actual[finite] - expected[finite]).max(initial=0)
    assert error <= eps * np.finfo(dtype).eps * scale, f"{error} > {eps} eps {scale}"


def refused(message, f, *arguments, **keywords):
    with pytest.raises(ValueError, match=re.escape(message)):
        f(*arguments, **keywords)


def warned(message, f, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f(*arguments)
    assert any(message in str(w.message) for w in caught), [str(w.message) for w in caught]


def model_of(*layers, **compiled):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), **compiled)
    return model


def reloaded(model, suffix=".keras"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        model.save(path)
        return keras.saving.load_model(path)


# Every kind of prior, weights, class mask and ignored rows, against labelsmooth.losses: values and gradients.


def check_values_and_gradients_agree_with_the_reference():
    ignored = D.y.copy()
    ignored[[1, 4]] = -100
    unmasked = np.where(D.y == 2, 3, D.y)
    soft_unmasked = softmax(np.where(D.class_mask, D.q, -np.inf))
    cases = [(target, {}) for target in (D.y, D.onehot, D.onehot.astype(int), D.q, ignored)]
    for target in (ignored, D.q):
        cases += [
            (target, dict(prior=D.prior)),
            (target, dict(class_prior=D.class_prior)),
            (target, dict(weight=D.w)),
            (target, dict(weight=D.w, weight_mode="example")),
            (target, dict(weight=D.w, class_prior=D.class_prior)),
            (target, dict(weight=D.w, weight_mode="example", prior=D.prior)),
        ]
    for target in (unmasked, soft_unmasked):
        for kind in ({}, dict(prior=D.prior), dict(class_prior=D.class_prior), dict(weight=D.w)):
            cases.append((target, dict(class_mask=D.class_mask, **kind)))
    for dtype in FLOATS:
        z = D.z.astype(dtype)
        for epsilon, reduction in ((0.1, "none"), (0.1, "mean"), (0.0, "mean"), (0.1, "sum")):
            factor = (1.0 / N if reduction == "mean" else 1.0) * D.w.max()
            for target, options in cases if reduction != "sum" else cases[::4]:
                options = dict(options, label_smoothing=epsilon, reduction=reduction)
                value, gradient = ls.losses.cross_entropy_and_grad(z, target, **options)
                loss = SmoothedCrossentropy(True, **options)
                actual, slope = value_and_gradient(loss, target, z, dtype)
                assert ops.dtype(actual) == dtype
                close(actual, value, dtype)
                close(slope, gradient, dtype, scale=factor)
                if reduction != "mean":
                    continue
                # The same from probabilities: through the softmax, the gradient is that of the logits.
                loss = SmoothedCrossentropy(False, **options)
                actual, slope = value_and_gradient(loss, target, z, dtype, ops.softmax)
                close(actual, value, dtype, eps=64)
                close(slope, gradient, dtype, eps=64, scale=factor)


def check_labels_and_onehot_give_the_same_number_in_every_reduction():
    for reduction in KERAS_REDUCTIONS:
        for options in ({}, dict(weight=D.w), dict(weight=D.w, weight_mode="example"), dict(class_prior=D.class_prior)):
            loss = SmoothedCrossentropy(True, 0.1, reduction=reduction, **options)
            for s in (None, D.s):
                close(loss(D.y, D.z.astype("float32"), s), host(loss(D.onehot, D.z.astype("float32"), s)), "float32")


def check_the_class_axis_and_every_shape_of_labels():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, 3, 4, K)).astype("float32")
    y = rng.integers(0, K, (2, 3, 4))
    y[0, 1] = -100
    expected = ls.losses.cross_entropy(z, y, label_smoothing=0.1, prior=D.prior, reduction="none")
    for axis in (-1, 1, -2, 3):
        moved = np.moveaxis(z, -1, axis)
        loss = SmoothedCrossentropy(True, 0.1, axis, None, prior=D.prior)
        for labels in (y, np.expand_dims(y, axis), y.astype("int8"), y.tolist()):
            close(loss(labels, moved), expected, "float32")
        targets = np.moveaxis(np.eye(K)[np.maximum(y, 0)], -1, axis)
        close(host(loss(targets, moved))[y >= 0], expected[y >= 0], "float32")
        p = np.moveaxis(softmax(z.astype(float)), -1, axis).astype("float32")
        close(SmoothedCrossentropy(False, 0.1, axis, None, prior=D.prior)(y, p), expected, "float32", eps=64)
    for dtype in ("uint8", "int16", "uint16", "int32", "uint32", "int64"):
        for labels in (D.y.astype(dtype), D.y.astype(dtype)[:, None]):
            close(
                SmoothedCrossentropy(True)(labels, D.z.astype("float32")), ls.losses.cross_entropy(D.z, D.y), "float32"
            )
    # As many rows as classes, and one example without a batch.
    square = D.z[:K].astype("float32")
    for target in (D.y[:K], D.y[:K, None], D.onehot[:K]):
        close(SmoothedCrossentropy(True)(target, square), ls.losses.cross_entropy(square, D.y[:K]), "float32")
    for target in (D.y[0], D.y[:1], D.onehot[0]):
        close(
            SmoothedCrossentropy(True)(target, D.z[0].astype("float32")),
            ls.losses.cross_entropy(D.z[0], D.y[0]),
            "float32",
        )
    # One class: the loss is 0, and a word about it.
    one = SmoothedCrossentropy(True, 0.1)
    for target in (np.zeros(3, int), np.ones((3, 1))):
        warned(
            "y_pred has one class", lambda target=target: close(one(target, np.ones((3, 1), "float32")), 0.0, "float32")
        )


def check_ids_beyond_float32():
    count, odd = 2**24 + 4, 2**24 + 1  # as float32 the odd id is 2**24
    z = np.zeros((1, count), "float32")
    z[0, odd] = 20.0
    expected = np.log(count - 1 + np.exp(20.0)) - 20.0
    for y in ([odd], [[odd]]):
        np.testing.assert_allclose(host(SmoothedCrossentropy(True)(np.array(y), z)), expected, atol=1e-3)
        np.testing.assert_allclose(host(SmoothedCrossentropy(True)(np.array(y) - 1, z)), expected + 20.0, atol=1e-3)


def check_dtypes():
    for dtype in ("float16", "bfloat16"):
        rounded = host(ops.cast(ops.cast(D.z, dtype), "float32")).astype(float)
        for target in (D.y, D.q):
            value, gradient = ls.losses.cross_entropy_and_grad(rounded, target, label_smoothing=0.1)
            loss = SmoothedCrossentropy(True, 0.1)
            actual, slope = value_and_gradient(loss, target, rounded, dtype)
            assert ops.dtype(actual) == "float32"
            assert ops.dtype(slope) == dtype
            close(actual, value, "float32")
            np.testing.assert_allclose(host(ops.cast(slope, "float32")), gradient, atol=2e-3)
            binary = SmoothedBinaryCrossentropy(True)
            assert ops.dtype(binary(ops.cast(D.onehot, dtype), ops.cast(rounded, dtype))) == "float32"
    z32 = D.z.astype("float32")
    assert ops.dtype(SmoothedCrossentropy(True, reduction=None)(D.q.astype("float16"), z32)) == "float32"
    assert ops.dtype(SmoothedCrossentropy(True)(D.y, [[2, 0, 0, 0, 0]] * N)) == "float32"
    if X64:
        loss = SmoothedCrossentropy(True, 0.1, dtype="float64")
        close(loss(D.y, z32), ls.losses.cross_entropy(z32, D.y, label_smoothing=0.1), "float64")
        assert ops.dtype(SmoothedCrossentropy(True, dtype="float32")(D.y, D.z)) == "float32"
    refused("dtype must be None, 'float32' or 'float64'; got 'float16'", SmoothedCrossentropy, dtype="float16")


# Against Keras' own losses.


def masked(z, mask):
    """`z` with the mask that Keras' layers attach."""
    from keras.src.backend import set_keras_mask

    z = ops.convert_to_tensor(z)
    set_keras_mask(z, ops.convert_to_tensor(mask))
    return z


def check_keras_numbers_in_every_reduction():
    z = D.z.astype("float32")
    p = softmax(D.z).astype("float32")
    kept = np.array([True, False, True, True, False, True, True])
    ignored = np.where(kept, D.y, 255).astype("int64")
    dense = np.random.default_rng(2).normal(size=(3, 4, K)).astype("float32")
    dense_y = np.random.default_rng(3).integers(0, K, (3, 4))
    dense_kept = np.arange(12).reshape(3, 4) % 3 > 0
    dense_s = np.random.default_rng(4).uniform(0.5, 2, (3, 4)).astype("float32")

    def same(ours, theirs):
        # For weights [N, 1] and no reduction Keras gives [N, 1] back; ours keep the shape of the losses.
        close(ours, np.reshape(host(theirs), tuple(ours.shape)), "float32", eps=32)

    for reduction in KERAS_REDUCTIONS:
        for logits, y_pred in ((True, z), (False, p)):
            theirs = keras.losses.CategoricalCrossentropy(logits, 0.1, reduction=reduction)
            sparse = keras.losses.SparseCategoricalCrossentropy(logits, reduction=reduction)
            skips = keras.losses.SparseCategoricalCrossentropy(logits, 255, reduction=reduction)
            for s in (None, D.s.astype("float32"), D.s[:, None].astype("float32"), np.zeros(N, "float32")):
                ours = SmoothedCrossentropy(logits, 0.1, reduction=reduction)
                same(ours(D.onehot, y_pred, s), theirs(D.onehot, y_pred, s))
                same(ours(D.onehot, masked(y_pred, kept), s), theirs(D.onehot, masked(y_pred, kept), s))
                ours = SmoothedCrossentropy(logits, reduction=reduction, ignore_index=255)
                same(ours(D.y, y_pred, s), sparse(D.y, y_pred, s))
                same(ours(ignored, y_pred, s), skips(ignored, y_pred, s))
        theirs = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
        ours = SmoothedCrossentropy(True, reduction=reduction)
        for s in (None, dense_s):
            same(ours(dense_y, dense, s), theirs(dense_y, dense, s))
            same(ours(dense_y, masked(dense, dense_kept), s), theirs(dense_y, masked(dense, dense_kept), s))
    # A weight per example of many rows, which Keras refuses or spreads over the wrong axis.
    ours = SmoothedCrossentropy(True, reduction="mean_with_sample_weight")
    rows = ls.losses.cross_entropy(dense, dense_y, reduction="none")
    s = np.array([1.0, 0.0, 3.0])
    close(ours(dense_y, dense, s), (rows * s[:, None]).sum() / (4 * s.sum()), "float32")


def check_class_weights_in_each_mean():
    z, s = D.z.astype("float32"), D.s.astype("float32")
    y = D.y.copy()
    y[2] = -100
    kept = y >= 0
    for mode in ("class", "example"):
        options = dict(label_smoothing=0.1, weight=D.w, weight_mode=mode)
        rows = ls.losses.cross_entropy(D.z, y, reduction="none", **options)
        weights = np.where(kept, D.w[D.y], 0)
        for reduction, divisor in (
            ("sum_over_batch_size", kept.sum()),
            ("mean", weights.sum()),
            ("mean_with_sample_weight", weights.sum()),
        ):
            close(SmoothedCrossentropy(True, reduction=reduction, **options)(y, z), rows.sum() / divisor, "float32")
        loss = SmoothedCrossentropy(True, reduction="mean_with_sample_weight", **options)
        close(loss(y, z, s), (rows * D.s).sum() / (weights * D.s).sum(), "float32")
    # fit's class_weight is weight_mode="example".
    rows = ls.losses.cross_entropy(D.z, D.y, reduction="none", label_smoothing=0.1)
    loss = SmoothedCrossentropy(True, 0.1, weight=D.w, weight_mode="example")
    close(loss(D.y, z), (rows * D.w[D.y]).mean(), "float32")


# Extremes.


def check_rows_that_are_not_kept_have_loss_and_gradient_0():
    z = D.z.copy()
    z[1], z[4] = np.nan, [np.inf, -np.inf, 0, np.nan, 0]
    y = D.y.copy()
    y[[1, 4]] = -7
    kept = y >= 0
    for logits in (True, False):
        x = z if logits else np.where(kept[:, None], softmax(np.where(kept[:, None], z, 0)), np.nan)
        for options in ({}, dict(prior=D.prior), dict(class_prior=D.class_prior, weight=D.w)):
            loss = SmoothedCrossentropy(logits, 0.1, reduction=None, ignore_index=-7, **options)
            value, slope = value_and_gradient(loss, y, x.astype("float32"), "float32")
            assert (host(value)[~kept] == 0).all()
            assert (host(slope)[~kept] == 0).all()
            assert np.isfinite(host(slope)).all()
        nothing = np.full(N, -7)
        for reduction in ("sum", "mean", "sum_over_batch_size", "mean_with_sample_weight"):
            loss = SmoothedCrossentropy(logits, 0.1, reduction=reduction, ignore_index=-7)
            for s in (None, D.s):
                value, slope = value_and_gradient(loss, nothing, np.full((N, K), np.nan), "float32", None, s)
                assert host(value) == 0
                assert (host(slope) == 0).all()
    # Keras' mask does the same for soft targets, and in the binary loss.
    x = masked(z.astype("float32"), kept)
    close(
        SmoothedCrossentropy(True, 0.1)(D.q, x),
        ls.losses.cross_entropy(z, D.q, mask=kept, label_smoothing=0.1),
        "float32",
    )
    assert np.isfinite(host(SmoothedBinaryCrossentropy(True, 0.1)(D.onehot, x)))


def check_empty_batches():
    for logits in (True, False):
        for target in (np.zeros(0, int), np.zeros((0, K))):
            for reduction in ("sum", "mean", "sum_over_batch_size"):
                value = host(
                    SmoothedCrossentropy(logits, 0.1, reduction=reduction)(target, np.zeros((0, K), "float32"))
                )
                assert value.shape == ()
                assert value == 0
    assert host(SmoothedBinaryCrossentropy(True)(np.zeros((0, 2)), np.zeros((0, 2), "float32"))) == 0


def check_infinite_and_extreme_logits():
    inf = np.inf
    z = np.array([[0.0, -inf, 1.0], [-inf, 0.0, 1.0], [1e4, -1e4, 0.0], [10000.0, 10001.0, 10002.0]])
    for dtype in FLOATS:
        for epsilon, prior in ((0.0, None), (0.1, None), (0.1, [0.5, 0.0, 0.5])):
            for target in ([0, 0, 0, 1], np.eye(3)[[0, 0, 0, 1]]):
                loss = SmoothedCrossentropy(True, epsilon, reduction=None, prior=prior)
                value, gradient = ls.losses.cross_entropy_and_grad(
                    z, target, label_smoothing=epsilon, reduction="none", prior=prior
                )
                actual, slope = value_and_gradient(loss, np.array(target), z, dtype)
                close(actual, value, dtype)
                close(slope, gradient, dtype, scale=1.0)


def check_probabilities_are_not_clipped():
    tiny = float(np.finfo("float32").tiny)
    p = np.array([[1e-12, 1 - 1e-12], [1e-30, 1.0], [tiny, 1.0]], "float32")
    loss = SmoothedCrossentropy(reduction=None)
    value, slope = value_and_gradient(loss, np.zeros(3, int), p, "float32")
    close(value, -np.log(p[:, 0].astype(float)), "float32")
    np.testing.assert_allclose(host(slope)[:, 0], -1.0 / p[:, 0].astype(float), rtol=1e-5)  # Keras: 0
    # Nothing left of p: +inf where the target has mass, and no nan, also through the softmax.
    for y, epsilon, expected in (([1], 0.0, 0.0), ([0], 0.0, np.inf), ([1], 0.1, np.inf)):
        loss = SmoothedCrossentropy(False, epsilon, reduction=None)
        value, slope = value_and_gradient(loss, np.array(y), [[0.0, 1.0]], "float32")
        assert host(value) == expected
        assert np.isfinite(host(slope)).all()
        value, slope = value_and_gradient(loss, np.array(y), [[-300.0, 0.0]], "float32", ops.softmax)
        assert host(value) == expected
        assert np.isfinite(host(slope)).all()
    # Rows are divided by their sums, as Keras does; where values are at hand such rows are refused.
    f = jitted(lambda y, p: SmoothedCrossentropy(False, 0.1)(y, p))
    if f:
        p = np.array([[0.5, 0.9, 0.1], [0.2, 0.2, 0.2]], "float32")
        y = np.eye(3, dtype="float32")[[0, 2]]
        close(f(y, p), host(keras.losses.CategoricalCrossentropy(False, 0.1)(y, p)), "float32")


def check_the_logits_of_an_activation_are_left_alone():
    # Keras on TensorFlow takes the logits of a *sigmoid* for those of a softmax.
    z = ops.convert_to_tensor(D.z.astype("float32"))
    p = keras.activations.softmax(z)
    close(SmoothedCrossentropy()(D.y, p), ls.losses.cross_entropy(D.z, D.y), "float32", eps=64)
    s = keras.activations.sigmoid(z)
    refused("y_pred, with from_logits=False, must be non-negative and sum to 1", SmoothedCrossentropy(), D.y, s)
    if BACKEND == "jax":
        return
    for loss in (SmoothedCrossentropy(True), SmoothedBinaryCrossentropy(True)):
        target = D.onehot
        for activated in (p, s):
            refused("y_pred must be logits where from_logits=True", loss, target, activated)


def check_loud_where_values_cannot_be_checked():
    loss = SmoothedCrossentropy(True, 0.1, reduction=None)
    f = jitted(lambda y, z: loss(y, z))
    g = jitted(lambda y, p: SmoothedCrossentropy(False, reduction=None)(y, p))
    if f is None or g is None:
        return
    y = np.array([0, -1, K, -100, 2, 1, 0])
    value = host(f(y, D.z.astype("float32")))
    assert np.isnan(value).tolist() == [False, True, True, False, False, False, False]
    assert value[3] == 0
    assert np.isnan(host(g(D.y, D.z.astype("float32")))).all()  # logits where probabilities are due
    unsummed, negative = D.q.astype("float32"), D.q.astype("float32")
    unsummed[1] *= 0.9
    negative[2] += [-1, 1, 0, 0, 0]
    assert np.isnan(host(f(unsummed, D.z.astype("float32")))).tolist() == [row == 1 for row in range(N)]
    assert np.isnan(host(f(negative, D.z.astype("float32")))).tolist() == [row == 2 for row in range(N)]
    h = jitted(lambda y, z: SmoothedBinaryCrossentropy(True, reduction=None)(y, z))
    assert np.isnan(host(h(np.eye(2)[[0, 1]] * [1, 2], np.ones((2, 2), "float32")))).tolist() == [False, True]
    # What is right is the same as in eager mode.
    for target in (D.y, D.q.astype("float32")):
        close(f(target, D.z.astype("float32")), host(loss(target, D.z.astype("float32"))), "float32")


# The binary loss.


def binary(y, z, epsilon=0.0, u=0.5):
    y = (1 - epsilon) * np.asarray(y, float) + epsilon * np.asarray(u)
    return y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)


def check_binary_values_and_gradients():
    y = (D.q > 0.2).astype(int)
    sigmoid = 1 / (1 + np.exp(-D.z))
    for dtype in FLOATS:
        z = D.z.astype(dtype)
        for epsilon in (0.0, 0.1):
            for u in (None, 0.3, D.prior):
                smoothed = (1 - epsilon) * y + epsilon * (0.5 if u is None else np.asarray(u))
                expected = binary(y, D.z, epsilon, 0.5 if u is None else u).mean(-1)
                for target in (y, y.astype(bool), y.astype(dtype)):
                    loss = SmoothedBinaryCrossentropy(True, epsilon, reduction=None, prior=u)
                    value, slope = value_and_gradient(loss, target, z, dtype)
                    close(value, expected, dtype)
                    close(slope, (sigmoid - smoothed) / K, dtype, scale=1.0)
                loss = SmoothedBinaryCrossentropy(False, epsilon, reduction=None, prior=u)
                value, slope = value_and_gradient(loss, y, z, dtype, ops.sigmoid)
                close(value, expected, dtype, eps=2**12)  # 1 - p has lost what p is near 1
                close(slope, (sigmoid - smoothed) / K, dtype, eps=2**12, scale=1.0)


def check_binary_keras_numbers_in_every_reduction():
    y = (D.q > 0.2).astype("float32")
    z = D.z.astype("float32")
    p = (1 / (1 + np.exp(-D.z))).astype("float32")
    for reduction in KERAS_REDUCTIONS:
        for logits, x in ((True, z), (False, p)):
            theirs = keras.losses.BinaryCrossentropy(logits, 0.1, reduction=reduction)
            ours = SmoothedBinaryCrossentropy(logits, 0.1, reduction=reduction)
            for s in (None, D.s.astype("float32")):
                close(ours(y, x, s), host(theirs(y, x, s)), "float32", eps=256)
            for a, b in ((y[:, 0], x[:, :1]), (y[:, :1], x[:, 0]), (y[:, :1], x[:, :1])):
                close(ours(a, x[:, :1]), host(theirs(y[:, :1], x[:, :1])), "float32", eps=256)
                if b.ndim == 1:
                    close(
                        ours(a, b),
                        host(SmoothedBinaryCrossentropy(logits, 0.1, reduction=reduction)(a[:, 0], b)),
                        "float32",
                    )
    # An axis other than the last.
    y, z = np.stack([y, 1 - y], 1), np.stack([z, z + 1], 1)
    close(SmoothedBinaryCrossentropy(True, axis=1, reduction=None)(y, z), binary(y, z).mean(1), "float32")
    close(
        SmoothedBinaryCrossentropy(True, 0.1, axis=1, reduction=None, prior=[0.1, 0.7])(y, z),
        binary(y, z, 0.1, np.array([[0.1], [0.7]])).mean(1),
        "float32",
    )


def check_binary_extremes():
    inf = np.inf
    z = np.array([[inf], [-inf], [1e4], [-1e4], [-inf], [0.0]])
    y = np.array([[1], [0], [1], [0], [1], [0]])
    loss = SmoothedBinaryCrossentropy(True, reduction=None)
    value, slope = value_and_gradient(loss, y, z, "float32")
    close(value, [0, 0, 0, 0, inf, np.log(2.0)], "float32")
    close(slope, [[0], [0], [0], [0], [-1], [0.5]], "float32")
    loss = SmoothedBinaryCrossentropy(reduction=None)
    value, slope = value_and_gradient(loss, y[:4], [[1.0], [0.0], [0.0], [1.0]], "float32")
    close(value, [0, 0, inf, inf], "float32")
    assert np.isfinite(host(slope)).all()


# Mistakes.


def check_mistakes_in_arguments():
    new = SmoothedCrossentropy
    for epsilon in (1.0, -0.1, float("nan"), "0.1", True):
        refused("label_smoothing must be a number in [0, 1)", new, label_smoothing=epsilon)
        refused("label_smoothing must be a number in [0, 1)", SmoothedBinaryCrossentropy, label_smoothing=epsilon)
    refused("from_logits must be True or False; got 0.1", new, 0.1)
    refused("from_logits must be True or False; got 'yes'", SmoothedBinaryCrossentropy, "yes")
    refused("axis must be a whole number; got True", new, axis=True)
    refused("axis must be a whole number; got 1.0", SmoothedBinaryCrossentropy, axis=1.0)
    refused("ignore_index must be a whole number; got None", new, ignore_index=None)
    refused("Invalid value for argument `reduction`", new, reduction="average")
    refused("weight_mode must be one of 'class', 'example'; got 'row'", new, weight_mode="row")
    refused("prior must be None where class_prior is given", new, prior=D.prior, class_prior=D.class_prior)
    refused("prior must be non-negative and sum to 1 over the classes; got a sum of 1.2", new, prior=[0.6, 0.6])
    refused("class_prior must be non-negative", new, class_prior=[[0.5, 0.5], [1.5, -0.5]])
    refused("prior must have shape [K]; got (5, 5)", new, prior=D.class_prior)
    refused("class_prior must have shape [K, K]; got (2, 5)", new, class_prior=D.class_prior[:2])
    refused("weight must hold numbers; got dtype object", new, weight={0: 1.0})
    refused("class_mask must be boolean; got dtype int64", new, class_mask=[1, 0])
    refused("class_mask must have shape (5,), as prior has; got (2,)", new, prior=D.prior, class_mask=[True, False])
    refused(
        "class_mask must keep a class that the prior gives mass to", new, prior=[1.0, 0.0], class_mask=[False, True]
    )
    refused("class_mask must keep a class that the prior gives mass to", new, class_mask=[False, False])
    refused("prior must hold probabilities in [0, 1]; got 1.5", SmoothedBinaryCrossentropy, prior=1.5)


def check_mistakes_in_calls():
    loss, z = SmoothedCrossentropy(True, 0.1), D.z.astype("float32")
    rule = "y_true must be class ids (integers) of shape (7,) or (7, 1), or targets of shape (7, 5); got "
    refused(rule + "float32 of shape (7, 4)", loss, D.onehot[:, :4].astype("float32"), z)
    refused(rule + "float32 of shape (7,)", loss, D.y.astype("float32"), z)
    refused(rule + "float32 of shape (7, 1)", loss, D.y.astype("float32")[:, None], z)
    refused(rule + "int32 of shape (6,)", loss, D.y[:6].astype("int32"), z)
    refused(rule + "bool of shape (7,)", loss, D.y > 2, z)
    refused("y_true must be class ids in 0..4; got 5 at index 3", loss, [0, 1, 2, 5, 0, 0, 0], z)
    refused("y_true must be class ids in 0..4; got -1 at index 0", loss, [-1, 1, 2, 5, 0, 0, 0], z)
    unsummed = D.q.copy()
    unsummed[4] *= 0.9
    refused("y_true must be non-negative and sum to 1 over the classes; got a sum of 0.9 in row 4", loss, unsummed, z)
    refused("y_true must be non-negative", loss, D.q - 0.5, z)
    for name, value in (("prior", [0.5, 0.5]), ("weight", [1.0, 1.0]), ("class_mask", [True, True])):
        refused(f"{name} must have shape (5,); got (2,)", SmoothedCrossentropy(True, **{name: value}), D.y, z)
    refused("class_prior must have shape (5, 5)", SmoothedCrossentropy(True, class_prior=np.eye(2)), D.y, z)
    refused("axis must be an axis of y_pred; got 2", SmoothedCrossentropy(True, axis=2), D.y, z)
    refused("y_pred must have a known number of classes, at least one", loss, D.y, np.zeros((7, 0), "float32"))
    refused(
        "ignore_index must be negative where y_true is no class ids", SmoothedCrossentropy(True, ignore_index=0), D.q, z
    )
    only = SmoothedCrossentropy(True, class_mask=D.class_mask)
    refused(
        "class_mask must keep the true class of every kept row; got a masked true class in row 3",
        only,
        [0, 1, 3, 2, 2, 0, 0],
        z,
    )
    refused("class_mask must keep the true class", only, D.onehot * 0 + np.eye(K)[2], z)
    empty = z.copy()
    empty[2] = -np.inf
    refused("y_pred must have a finite value in every kept row", loss, D.y, empty)
    refused(
        "sample_weight must have the shape of the losses, (7,), or begin like it; got (5,)", loss, D.y, z, np.ones(5)
    )
    refused("sample_weight must have the shape of the losses", loss, D.y, z, np.ones((7, 5)))
    probabilities = SmoothedCrossentropy()
    refused("y_pred, with from_logits=False, must be non-negative and sum to 1", probabilities, D.y, z)
    refused("in row 2", probabilities, D.y, np.where(np.arange(7)[:, None] == 2, 0.5, softmax(D.z)).astype("float32"))
    warned("y_pred looks like probabilities", loss, D.y, softmax(D.z).astype("float32"))
    for innocent in (z, np.eye(K, dtype="float32")[D.y], np.abs(z)):
        loss(D.y, innocent)  # warnings are errors here
    loss([0], [[0.25, 0.75]])
    smoothed = ls.smooth_labels(D.y, 0.1, num_classes=K)
    again = "y_true looks like labels that are smoothed already, by 0.1, and label_smoothing=0.1 smooths them again, to 0.19"
    warned(again, loss, smoothed, z)
    warned(again, SmoothedCrossentropy(True, 0.1, 0), smoothed.T, z.T)
    SmoothedCrossentropy(True)(smoothed, z)
    refused("y_true must be an array of numbers; got <class 'list'>", loss, [[1], [2, 3]], z)
    refused("y_pred must be an array of numbers; got <class 'NoneType'>", loss, D.y, None)
    refused("sample_weight must be an array of numbers; got <class 'list'>", loss, D.y, z, [[1], [2, 3]])
    half = SmoothedBinaryCrossentropy()
    refused("y_true must be in [0, 1]; got 2 at index 0, 1", half, [[0, 2]], [[0.5, 0.5]])
    refused("y_pred, with from_logits=False, must be in [0, 1]; got -0.5 at index 0, 0", half, [[0, 1]], [[-0.5, 0.5]])
    refused("y_true must have the shape of y_pred, (7, 5); got (7,)", half, D.y, np.full((7, 5), 0.5))
    refused("axis must be an axis of y_pred; got 3", SmoothedBinaryCrossentropy(axis=3), D.onehot, D.onehot)
    refused(
        "prior must have shape () or (5,); got (2,)", SmoothedBinaryCrossentropy(prior=[0.5, 0.5]), D.onehot, D.onehot
    )


# In a model.


def check_fit_save_and_load():
    options = dict(
        label_smoothing=0.1, prior=D.prior.astype("float32"), weight=D.w, weight_mode="example", ignore_index=-1
    )
    labels = D.labels.copy()
    labels[:5] = -1
    kept = labels >= 0
    for dense, logits in ((keras.layers.Dense(K, activation="softmax"), False), (keras.layers.Dense(K), True)):
        metrics = [NLL(logits, ignore_index=-1)]
        model = model_of(dense, loss=SmoothedCrossentropy(logits, **options), metrics=metrics)
        kernel, bias = (w.astype(float) for w in model.get_weights())
        first = model.evaluate(D.x, labels, batch_size=48, verbose=0, return_dict=True)
        rows = ls.losses.cross_entropy(D.x @ kernel + bias, labels, reduction="none", **options)
        np.testing.assert_allclose(first["loss"], rows.sum() / kept.sum(), rtol=1e-5)
        hard = ls.losses.cross_entropy((D.x @ kernel + bias)[kept], labels[kept])
        np.testing.assert_allclose(first["nll"], hard, rtol=1e-5)
        data = dict(x=D.x, y=labels[:, None], batch_size=48, verbose=0)
        history = model.fit(**data, epochs=3, validation_data=(D.x, D.labels), validation_batch_size=48).history
        assert history["loss"][-1] < history["loss"][0]
        kernel, bias = (w.astype(float) for w in model.get_weights())
        hard = ls.losses.cross_entropy(D.x @ kernel + bias, D.labels)
        np.testing.assert_allclose(history["val_nll"][-1], hard, rtol=1e-5)
        assert abs(history["val_loss"][-1] - hard) > 1e-3
    copy = reloaded(model)
    assert type(copy.loss) is SmoothedCrossentropy
    assert copy.loss.get_config() == model.loss.get_config()
    after = (m.fit(**data).history["loss"] for m in (model, copy))
    np.testing.assert_allclose(*after, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras calls HDF5 legacy
        assert reloaded(model, ".h5").loss.get_config() == model.loss.get_config()


def check_the_first_step_of_fit_is_the_reference():
    """One SGD step from known weights, for each form of the labels and each method of smoothing."""
    smoothed = ls.smooth_labels(D.labels, 0.1, num_classes=K)
    onehot = np.eye(K, dtype="float32")[D.labels]
    kinds = [(D.labels, 0.1), (D.labels[:, None], 0.1), (onehot, 0.1), (onehot.astype("uint8"), 0.1), (smoothed, 0.0)]
    for jit in (False, True) if BACKEND == "tensorflow" else ("auto",):
        for target, epsilon in kinds[:2] if jit is True else kinds:
            model = model_of(keras.layers.Dense(K), loss=SmoothedCrossentropy(True, epsilon), jit_compile=jit)
            kernel, bias = (w.astype(float) for w in model.get_weights())
            loss, gradient = ls.losses.cross_entropy_and_grad(D.x @ kernel + bias, D.labels, label_smoothing=0.1)
            history = model.fit(D.x, target, batch_size=48, verbose=0, shuffle=False).history
            np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-5)
            np.testing.assert_allclose(model.get_weights()[0], kernel - 0.1 * D.x.T @ gradient, rtol=1e-4, atol=1e-6)


def check_fit_takes_targets_of_half_precision():
    """`fit` makes float32 of them, and they sum to 1 as float16 does."""
    smoothed = ls.smooth_labels(D.labels, 0.15, num_classes=K, dtype="float16")
    assert abs(smoothed.sum(1, dtype=float) - 1).max() > 1e-4
    model = model_of(keras.layers.Dense(K), loss=SmoothedCrossentropy(True))
    z = np.asarray(model.predict(D.x, verbose=0), float)
    history = model.fit(D.x, smoothed, batch_size=48, verbose=0).history
    expected = ls.losses.cross_entropy(z, D.labels, label_smoothing=0.15)
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-3)


def check_fit_with_weights_masks_and_halves():
    # sample_weight and class_weight of fit, a mask of Keras' layers, mixed precision, the binary loss.
    s = np.random.default_rng(5).uniform(0.5, 2, 48)
    model = model_of(keras.layers.Dense(K), loss=SmoothedCrossentropy(True, 0.1))
    z = np.asarray(model.predict(D.x, verbose=0), float)
    rows = ls.losses.cross_entropy(z, D.labels, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(
        model.evaluate(D.x, D.labels, sample_weight=s, batch_size=48, verbose=0), (rows * s).mean(), rtol=1e-5
    )
    history = model.fit(D.x, D.labels, class_weight=dict(enumerate(D.w)), batch_size=48, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], (rows * D.w[D.labels]).mean(), rtol=1e-5)

    keras.utils.set_random_seed(0)
    tokens = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [2, 2, 0, 0]])
    layers = [keras.Input((4,)), keras.layers.Embedding(5, 3, mask_zero=True), keras.layers.Dense(K)]
    tagger = keras.Sequential(layers)
    tagger.compile("sgd", loss=SmoothedCrossentropy(True, 0.1), metrics=[NLL(True)])
    z = np.asarray(tagger.predict(tokens, verbose=0), float)
    tags = np.random.default_rng(6).integers(0, K, (3, 4))
    result = tagger.evaluate(tokens, tags, verbose=0, return_dict=True)
    kept = tokens != 0
    np.testing.assert_allclose(
        result["loss"], ls.losses.cross_entropy(z, tags, mask=kept, label_smoothing=0.1), rtol=1e-5
    )
    np.testing.assert_allclose(result["nll"], ls.losses.cross_entropy(z, tags, mask=kept), rtol=1e-5)

    mixed = model_of(
        keras.layers.Dense(K, dtype="mixed_float16"), loss=SmoothedCrossentropy(True, 0.1), metrics=[NLL(True)]
    )
    history = mixed.fit(D.x, D.labels, batch_size=48, verbose=0).history
    assert np.isfinite(history["loss"]).all()

    flags = (D.x[:, :3] > 0).astype("float32")
    loss = SmoothedBinaryCrossentropy(True, 0.1, prior=[0.2, 0.5, 0.8])
    model = model_of(keras.layers.Dense(3), loss=loss)
    z = np.asarray(model.predict(D.x, verbose=0), float)
    np.testing.assert_allclose(
        model.evaluate(D.x, flags, batch_size=48, verbose=0), binary(flags, z, 0.1, loss.prior).mean(), rtol=1e-5
    )
    copy = reloaded(model)
    assert type(copy.loss) is SmoothedBinaryCrossentropy
    assert copy.loss.get_config() == loss.get_config()


def check_mistakes_in_fit():
    labels = D.labels.copy()
    labels[3] = -1
    model = model_of(keras.layers.Dense(K), loss=SmoothedCrossentropy(True, 0.1))
    if BACKEND == "torch":
        refused("y_true must be class ids in 0..4; got -1", model.fit, D.x, labels, verbose=0)
    else:
        assert np.isnan(model.fit(D.x, labels, batch_size=48, verbose=0).history["loss"][0])
    for wrong in (labels.astype("float32"), np.eye(4)[labels % 4]):
        model = model_of(keras.layers.Dense(K), loss=SmoothedCrossentropy(True, 0.1))
        refused("y_true must be class ids (integers)", model.fit, D.x, wrong, verbose=0)
    if BACKEND != "jax":
        for activation in ("softmax", "sigmoid"):
            model = model_of(keras.layers.Dense(K, activation=activation), loss=SmoothedCrossentropy(True, 0.1))
            refused("y_pred must be logits where from_logits=True", model.fit, D.x, D.labels, verbose=0)


def check_configurations():
    losses = [
        SmoothedCrossentropy(),
        SmoothedCrossentropy(
            True, 0.1, 1, "none", "mine", "float32", weight=D.w, weight_mode="example", ignore_index=-1
        ),
        SmoothedCrossentropy(prior=D.prior.astype("float32"), class_mask=D.class_mask, reduction=None),
        SmoothedCrossentropy(class_prior=ops.convert_to_tensor(D.class_prior.astype("float32"))),
        SmoothedBinaryCrossentropy(True, 0.1, 1, "sum", "mine", "float64", prior=0.3),
        SmoothedBinaryCrossentropy(prior=[0.3, 0.4]),
        SmoothedBinaryCrossentropy(),
    ]
    # A float32 prior of many classes sums to 1 within float32's precision, and must still when it comes back.
    many = np.random.default_rng(7).dirichlet(np.ones(5000)).astype("float32") * np.float32(1 + 2e-5)
    losses.append(SmoothedCrossentropy(prior=many))
    for loss in losses:
        config = json.loads(json.dumps(loss.get_config()))
        copies = [
            type(loss).from_config(config),
            keras.losses.deserialize(json.loads(json.dumps(keras.losses.serialize(loss)))),
            keras.losses.get(keras.losses.serialize(loss)),
        ]
        for copy in copies:
            assert type(copy) is type(loss)
            assert copy.get_config() == loss.get_config()
        for name in ("name", "reduction", "label_smoothing", "from_logits", "axis"):
            assert getattr(copies[0], name) == getattr(loss, name)
    given = D.prior.copy()
    loss = SmoothedCrossentropy(True, 0.1, prior=given)
    before = host(loss(D.y, D.z))
    given[:] = 1.0 / K
    assert host(loss(D.y, D.z)) == before  # the loss keeps its own copy
    metric = NLL(True, 1, -1, D.class_mask, "mine", "float32")
    copy = NLL.from_config(json.loads(json.dumps(metric.get_config())))
    assert copy.get_config() == metric.get_config()
    assert keras.metrics.deserialize(keras.metrics.serialize(metric)).get_config() == metric.get_config()


# The metric.


def check_nll():
    def of(y, x, s=None, **options):
        metric = NLL(**options)
        metric.update_state(y, x, s)
        return host(metric.result())

    z, p = D.z.astype("float32"), softmax(D.z).astype("float32")
    hard = ls.losses.cross_entropy(D.z, D.y)
    smoothed = ls.smooth_labels(D.y, 0.3, num_classes=K)
    for y in (D.y, D.y[:, None], D.onehot, D.onehot.astype(int), smoothed):
        close(of(y, z, from_logits=True), hard, "float32")
        close(of(y, p), hard, "float32", eps=64)
    rows = ls.losses.cross_entropy(D.z, D.y, reduction="none")
    for s in (D.s, D.s[:, None]):
        close(of(D.y, z, s, from_logits=True), (rows * D.s).sum() / D.s.sum(), "float32")
    y = np.where(np.arange(N) < 2, 9, D.y)
    close(of(y, z, from_logits=True, ignore_index=9), rows[2:].mean(), "float32")
    kept = np.where(D.y == 2, 3, D.y)
    expected = ls.losses.cross_entropy(D.z, kept, class_mask=D.class_mask)
    close(of(kept, z, from_logits=True, class_mask=D.class_mask), expected, "float32")
    assert of(np.full(N, -100), z, from_logits=True) == 0
    # Every kept row counts the same, within an example and over batches of different sizes.
    dense = np.random.default_rng(8).normal(size=(3, 2, K)).astype("float32")
    tags = np.array([[0, -100], [1, 2], [-100, -100]])
    metric = NLL(True)
    metric.update_state(tags[:1], dense[:1])
    metric.update_state(tags[1:], dense[1:])
    close(metric.result(), ls.losses.cross_entropy(dense, tags), "float32")
    metric.reset_state()
    assert host(metric.result()) == 0
    close(
        of(np.moveaxis(tags, 0, 0), np.moveaxis(dense, -1, 1), from_logits=True, axis=1),
        ls.losses.cross_entropy(dense, tags),
        "float32",
    )
    assert of([0], [[0.0, 1.0]]) == np.inf
    assert of([0, 1], [[0.0, 1.0], [0.0, 1.0]], [0.0, 1.0]) == 0


def check_distributed_means():
    """Replicas' means are summed by TensorFlow's tf.distribute, so each is divided by their number."""
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    class Two:
        num_replicas_in_sync = 2

    original, z = tf.distribute.get_strategy, D.z.astype("float32")
    for ours, theirs, y in (
        (SmoothedCrossentropy, keras.losses.CategoricalCrossentropy, D.onehot),
        (SmoothedBinaryCrossentropy, keras.losses.BinaryCrossentropy, D.onehot),
    ):
        for reduction in KERAS_REDUCTIONS:
            one = host(ours(True, reduction=reduction)(y, z))
            tf.distribute.get_strategy = Two
            try:
                two, keras_two = ours(True, reduction=reduction)(y, z), theirs(True, reduction=reduction)(y, z)
            finally:
                tf.distribute.get_strategy = original
            close(two, one if reduction in (None, "none", "sum") else one / 2, "float32")
            close(two, host(keras_two), "float32")


def check_doctests():
    for name in ("losses", "binary", "metrics"):
        failed, tried = doctest.testmod(importlib.import_module(f"labelsmooth.keras.{name}"))
        assert tried
        assert not failed


def main(results, *chosen):
    # Keras and its backends warn of themselves; what this package says is in user warnings, which are errors here.
    warnings.simplefilter("error", UserWarning)
    outcomes = {}
    for name, check in list(globals().items()):
        if name in chosen or (not chosen and name.startswith("check_")):
            try:
                check()
                outcomes[name] = None
            except Exception:
                outcomes[name] = traceback.format_exc()
    Path(results).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
