"""Arrays of PyTorch, JAX and TensorFlow: the same kind out, NumPy's bits where values are at hand, and tracing."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import labelsmooth as ls
from labelsmooth import _arrays


@pytest.fixture(scope="module")
def tf():
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


@pytest.fixture(params=["torch", "jax", "tensorflow"])
def framework(request):
    """(make an array, is it of this kind, its dtype's name)"""
    if request.param == "torch":
        return torch.as_tensor, torch.Tensor
    if request.param == "jax":
        return jnp.asarray, jax.Array
    tf = request.getfixturevalue("tf")
    return tf.convert_to_tensor, tf.Tensor


LABELS = np.array([[2, 0, 1], [1, 1, 2]])
Q = np.eye(3, dtype=np.float32)[LABELS]
PRIOR = np.array([0.5, 0.25, 0.25], np.float32)
TABLE = np.roll(np.eye(3, dtype=np.float32), 1, axis=1)


@pytest.mark.parametrize("array", [LABELS, Q, Q.astype(int), Q * 0.4 + 0.2], ids=["ids", "one-hot", "integers", "soft"])
@pytest.mark.parametrize(
    "options", [{}, {"prior": PRIOR}, {"prior": Q[:, ::-1].copy()}, {"class_prior": TABLE}, {"class_mask": Q > -1}],
    ids=["uniform", "prior", "rows", "class_prior", "class_mask"],
)  # fmt: skip
def test_same_kind_and_same_bits_as_numpy(framework, array, options):
    make, kind = framework
    num_classes = 3 if array is LABELS else None
    expected = ls.smooth_labels(array, 0.1, num_classes=num_classes, **options)
    for convert in (np.asarray, make):  # the prior in NumPy's kind and in the labels' own
        own = {name: convert(x) for name, x in options.items()}
        result = ls.smooth_labels(make(array), 0.1, num_classes=num_classes, **own)
        assert isinstance(result, kind)
        assert np.array_equal(np.asarray(result), expected)


def test_values_are_checked_and_results_carry_the_dtype(framework):
    make, _ = framework
    with pytest.raises(ValueError, match=r"labels must be class ids in 0..2; got 3 at index 1"):
        ls.smooth_labels(make(np.array([0, 3])), num_classes=3)
    with pytest.raises(ValueError, match=r"labels must be non-negative and sum to 1"):
        ls.smooth_labels(make(np.array([[0.5, 0.6]], np.float32)))
    for name in ("float16", "bfloat16", "float32"):
        assert _arrays.dtype_name(ls.smooth_labels(make(LABELS), num_classes=3, dtype=name)) == name
        assert _arrays.dtype_name(ls.smooth_labels(ls.one_hot(make(LABELS), 3, dtype=name))) == name
    drawn = ls.sample_labels(make(LABELS), 0.5, num_classes=3, rng=0)
    assert type(drawn) is type(make(LABELS))
    assert np.array_equal(np.asarray(drawn), ls.sample_labels(LABELS, 0.5, num_classes=3, rng=0))
    assert np.array_equal(ls.priors.class_frequency(make(LABELS), 3), ls.priors.class_frequency(LABELS, 3))


OPTIONS = [
    {},
    {"prior": PRIOR},
    {"prior": np.full((2, 3, 3), 1 / 3, np.float32)},
    {"class_prior": TABLE},
    {"class_prior": TABLE, "class_mask": np.array([True, True, True])},
    {"class_mask": Q > -1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("array", [LABELS, Q, Q.astype(int)], ids=["ids", "targets", "one-hot"])
def test_under_jit_vmap_compile_and_graph(tf, array, options):
    num_classes = 3 if array is LABELS else None
    expected = ls.smooth_labels(array, 0.1, num_classes=num_classes, **options)

    def smooth(x):
        return ls.smooth_labels(x, 0.1, num_classes=num_classes, **options)

    compiled = torch.compile(smooth, backend="eager", fullgraph=True)
    results = {
        "jax.jit": jax.jit(smooth)(jnp.asarray(array)),
        "torch.compile": compiled(torch.as_tensor(array)),
        "tf.function": tf.function(smooth)(tf.convert_to_tensor(array)),
    }
    if all(np.ndim(x) <= 2 for x in options.values()):
        results["jax.vmap"] = jax.vmap(smooth)(jnp.asarray(array))
        results["torch.vmap"] = torch.func.vmap(smooth)(torch.as_tensor(array))
    for name, result in results.items():
        np.testing.assert_allclose(np.asarray(result), expected, rtol=0, atol=2**-23, err_msg=name)
    if not options and array is LABELS:
        for name, result in results.items():
            assert np.array_equal(np.asarray(result), expected), name


def test_gradients_flow_through_soft_targets(tf):
    variable = tf.Variable(tf.fill((2, 4), 0.25))
    prior = tf.Variable(tf.fill((4,), 0.25))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(ls.smooth_labels(variable, 0.2, prior=prior) * tf.range(4, dtype=tf.float32))
    gradients = tape.gradient(total, [variable, prior])
    np.testing.assert_allclose(gradients[0], np.tile([0, 0.8, 1.6, 2.4], (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(gradients[1], 2 * 0.2 * np.arange(4), rtol=1e-6)
    q = torch.full((2, 4), 0.25, requires_grad=True)
    ls.smooth_labels(q, 0.2).sum().backward()
    assert torch.allclose(q.grad, torch.full((2, 4), 0.8))
    gradient = jax.grad(lambda x: ls.smooth_labels(x, 0.2).sum())(jnp.full((2, 4), 0.25))
    np.testing.assert_allclose(gradient, 0.8, rtol=1e-6)


def test_shapes_are_checked_under_tracing():
    for call, message in (
        (lambda x: ls.smooth_labels(x, num_classes=4), r"labels must have num_classes=4 classes on their last axis"),
        (lambda x: ls.smooth_labels(x, prior=np.ones(2) / 2), r"prior must have shape \(3,\) or \(2, 3\); got \(2,\)"),
        (lambda x: ls.smooth_labels(x, class_prior=np.eye(2)), r"class_prior must have shape \(3, 3\)"),
        (lambda x: ls.smooth_labels(x, class_prior=np.eye(3), prior=np.ones(3) / 3), "prior must be None"),
        (lambda x: ls.smooth_labels(x[0, 0], num_classes=3), "labels must have the classes on their last axis"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.jit(call)(jnp.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="labels must have its values at hand|labels must have their values"):
        jax.jit(lambda x: ls.sample_labels(x, num_classes=3))(jnp.zeros(2, int))


def test_the_dtype_of_the_result_is_a_float_under_tracing_too(tf):
    soft = torch.tensor([[0.3, 0.7]], requires_grad=True)
    for call in (
        lambda: jax.jit(lambda x: ls.smooth_labels(x, num_classes=4, dtype=jnp.int32))(jnp.array([0, 2])),
        lambda: tf.function(lambda x: ls.smooth_labels(x, num_classes=4, dtype="int32"))(tf.constant([0, 2])),
        lambda: ls.smooth_labels(soft, 0.1, dtype=torch.int32),
    ):
        with pytest.raises(ValueError, match="dtype must be a float dtype; got int32"):
            call()


def test_narrow_and_boolean_ids_under_tracing(tf):
    expected = ls.smooth_labels([1, 0], 0.1, num_classes=2)
    for dtype in (np.int8, np.uint8, np.int16, bool):
        ids = np.array([1, 0], dtype)
        results = [
            jax.jit(lambda x: ls.smooth_labels(x, 0.1, num_classes=2))(jnp.asarray(ids)),
            tf.function(lambda x: ls.smooth_labels(x, 0.1, num_classes=2))(tf.constant(ids)),
            torch.func.vmap(lambda x: ls.smooth_labels(x, 0.1, num_classes=2))(torch.as_tensor(ids)),
        ]
        for result in results:
            assert np.array_equal(np.asarray(result), expected)


def test_a_mask_that_leaves_no_mass_gives_no_nan_under_tracing():
    smooth = jax.jit(lambda x, m: ls.smooth_labels(x, 0.1, prior=np.array([1.0, 0.0]), class_mask=m))
    assert np.isfinite(smooth(jnp.array([[0.0, 1.0]]), jnp.array([False, True]))).all()


def test_half_precision_targets_and_priors_keep_their_tolerance(framework):
    make, _ = framework
    half = ls.smooth_labels(make(LABELS), 0.1, num_classes=3, dtype="bfloat16")
    expected = ls.smooth_labels(LABELS, 0.1, num_classes=3)
    assert np.abs(np.asarray(ls.smooth_labels(half, 0.0, dtype="float32")) - expected).max() < 5e-3
    with pytest.warns(UserWarning, match="smoothed already"):
        assert np.isfinite(ls.losses.cross_entropy(np.zeros((2, 3, 3)), half, prior=half, label_smoothing=0.1))
    assert ls.priors.class_frequency(half).sum() == pytest.approx(1)
    assert ls.smooth_labels([0], 0.1, num_classes=3, prior=half[0, 0]).shape == (1, 3)


def test_torch_out_is_written():
    labels = torch.tensor([2, 0])
    out = torch.zeros(2, 3)
    assert ls.smooth_labels(labels, 0.3, num_classes=3, out=out) is out
    assert torch.equal(out, ls.smooth_labels(labels, 0.3, num_classes=3))
    wide = torch.zeros(2, 3, dtype=torch.float64)  # computed in the dtype of `out`
    assert np.array_equal(
        ls.smooth_labels(labels, 0.3, num_classes=3, out=wide),
        ls.smooth_labels([2, 0], 0.3, num_classes=3, dtype=float),
    )
    with pytest.raises(ValueError, match="out must have a float dtype, float32 as dtype says; got float64"):
        ls.smooth_labels(labels, num_classes=3, out=wide, dtype=torch.float32)
    with pytest.raises(ValueError, match="out must be a Tensor; got <class 'numpy.ndarray'>"):
        ls.smooth_labels(labels, num_classes=3, out=np.zeros((2, 3)))
    soft = torch.eye(3)
    assert ls.smooth_labels(soft, 0.3, out=soft) is soft
    assert torch.equal(soft, ls.smooth_labels(torch.eye(3), 0.3))
    for bad, message in (
        (torch.zeros(2, 2), r"out must have shape \(2, 3\); got \(2, 2\)"),
        (torch.zeros(2, 3).int(), "out must have a float dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            ls.smooth_labels(labels, num_classes=3, out=bad)
    with pytest.raises(ValueError, match="out must be None for arrays that cannot be written to"):
        ls.smooth_labels(jnp.zeros(2, int), num_classes=3, out=np.empty((2, 3)))


def test_lists_and_pandas_like_objects_go_through_numpy():
    class Series:
        def __array__(self, dtype=None, copy=None):
            return np.array([1, 0])

    assert np.array_equal(ls.smooth_labels(Series(), num_classes=2), ls.smooth_labels([1, 0], num_classes=2))
    assert "torch" in sys.modules  # the adapters were there to be tried
