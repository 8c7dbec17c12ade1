"""smooth_labels, one_hot, convert_smoothing and explain: values from the formula, every way in, every error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import labelsmooth as ls

CLASS_7 = [0.01] * 7 + [0.91] + [0.01] * 2


def formula(q, epsilon, u):
    return (1 - epsilon) * np.asarray(q, np.float64) + epsilon * np.asarray(u, np.float64)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_class_7_of_10_at_a_tenth_is_exact(dtype):
    expected = np.array(CLASS_7).astype(dtype)
    assert np.array_equal(ls.smooth_labels([7], 0.1, num_classes=10, dtype=dtype)[0], expected)
    assert np.array_equal(ls.smooth_labels(np.eye(10, dtype=dtype)[7], 0.1), expected)
    assert np.array_equal(ls.smooth_labels(np.eye(10, dtype=int)[7], 0.1, dtype=dtype), expected)


def test_the_classic_call_smooths_one_hot_integers_without_touching_them():
    labels = np.eye(10, dtype=int)[[7, 0]]
    before = labels.copy()
    smoothed = ls.smooth_labels(labels, 0.1)
    assert smoothed.dtype == np.float32
    assert np.array_equal(smoothed[0], np.float32(CLASS_7))
    assert np.array_equal(labels, before)


def test_shapes_and_dtypes_follow_the_rule():
    assert ls.smooth_labels(3, num_classes=5).shape == (5,)
    assert ls.smooth_labels(np.zeros((2, 3), np.uint8), num_classes=5).shape == (2, 3, 5)
    assert ls.smooth_labels(np.zeros((0,), int), num_classes=5).shape == (0, 5)
    assert ls.smooth_labels(np.eye(3, dtype=np.float64)).dtype == np.float64
    assert ls.smooth_labels(np.eye(3, dtype=np.float16)).dtype == np.float16
    assert ls.smooth_labels(np.eye(3, dtype=bool)).dtype == np.float32
    assert ls.smooth_labels([[True, False]]).tolist() == [[np.float32(0.95), np.float32(0.05)]]
    assert ls.smooth_labels([0, 0], 0.5, num_classes=1).tolist() == [[1.0], [1.0]]
    assert ls.smooth_labels([], num_classes=3).shape == (0, 3)


@pytest.mark.parametrize("options", [{}, {"prior": [0.7, 0.3]}, {"class_prior": [[0.7, 0.3], [0.2, 0.8]]}])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64])
def test_ids_of_any_integer_dtype(dtype, options):
    ids = np.array([[0, 1], [1, 0]])
    expected = ls.smooth_labels(ids, 0.1, num_classes=2, **options)
    assert np.array_equal(ls.smooth_labels(ids.astype(dtype), 0.1, num_classes=2, **options), expected)


@pytest.mark.parametrize("given_as", ["ids", "one-hot", "float one-hot"])
@pytest.mark.parametrize("kind", ["uniform", "prior", "prior rows", "class_prior"])
@pytest.mark.parametrize("masked", [None, "classes", "rows"])
def test_every_prior_and_mask_against_the_formula(given_as, kind, masked):
    rng = np.random.default_rng(0)
    count, labels = 6, rng.integers(0, 6, (4, 5))
    q = np.eye(count)[labels]
    options, u = {}, np.full(q.shape, 1 / count)
    if kind == "prior":
        options["prior"] = rng.dirichlet(np.ones(count))
        u = np.broadcast_to(options["prior"], q.shape)
    elif kind == "prior rows":
        u = options["prior"] = rng.dirichlet(np.ones(count), labels.shape)
    elif kind == "class_prior":
        options["class_prior"] = rng.dirichlet(np.ones(count), count)
        u = q @ options["class_prior"]
    if masked:
        keep = rng.random(q.shape) < 0.5
        keep[q > 0] = True
        if masked == "classes":
            keep = np.array([True, True, True, False, True, True])
            labels = np.where(labels == 3, 2, labels)
            q = np.eye(count)[labels]
            if kind == "class_prior":
                u = q @ options["class_prior"]
        options["class_mask"] = keep
        u = u * keep / (u * keep).sum(-1, keepdims=True)
    ways = {"ids": (labels, count), "one-hot": (q.astype(int), None), "float one-hot": (q, None)}
    array, num_classes = ways[given_as]
    smoothed = ls.smooth_labels(array, 0.3, num_classes=num_classes, dtype=np.float64, **options)
    np.testing.assert_allclose(smoothed, formula(q, 0.3, u), rtol=0, atol=1e-15)
    np.testing.assert_allclose(smoothed.sum(-1), 1, atol=1e-14)


def test_soft_targets_with_a_class_prior():
    rng = np.random.default_rng(1)
    q, table = rng.dirichlet(np.ones(4), 50_000), rng.dirichlet(np.ones(4), 4)  # several chunks
    np.testing.assert_allclose(ls.smooth_labels(q, 0.2, class_prior=table), formula(q, 0.2, q @ table), atol=1e-15)


def test_out_is_written_and_returned_and_may_be_the_labels():
    q = np.random.default_rng(0).dirichlet(np.ones(3), 7)
    expected = ls.smooth_labels(q, 0.2)
    buffer = q.copy()
    assert ls.smooth_labels(buffer, 0.2, out=buffer) is buffer
    assert np.array_equal(buffer, expected)
    strided = np.empty((7, 6))[:, ::2]
    assert ls.smooth_labels(q, 0.2, out=strided) is strided
    assert np.array_equal(strided, expected)
    ids = ls.smooth_labels([1, 2], 0.2, num_classes=3, out=strided[:2])
    assert np.array_equal(ids, ls.smooth_labels([1, 2], 0.2, num_classes=3, dtype=float))
    transposed = np.empty((3, 2)).T
    assert np.array_equal(ls.smooth_labels([1, 2], 0.2, num_classes=3, out=transposed), ids)


def test_out_that_overlaps_labels_or_prior_still_gives_the_formula():
    memory = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    expected = ls.smooth_labels(memory[:-1].copy(), 0.2)
    assert np.array_equal(ls.smooth_labels(memory[:-1], 0.2, out=memory[1:]), expected)
    rows = np.random.default_rng(1).dirichlet(np.ones(3), 8)
    q = np.eye(3)[np.arange(8) % 3]
    expected = ls.smooth_labels(q, 0.2, prior=rows.copy())
    assert np.array_equal(ls.smooth_labels(q, 0.2, prior=rows, out=rows), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(labels=[1], smoothing=float("nan"), num_classes=3), r"smoothing must be a number in \[0, 1\); got nan"),
        (dict(labels=[1], smoothing=-0.1, num_classes=3), r"smoothing must be .* got -0.1"),
        (dict(labels=[1], smoothing=1.0, num_classes=3), r"smoothing must be .* got 1.0"),
        (dict(labels=[1], smoothing="abc", num_classes=3), r"smoothing must be .* got 'abc'"),
        (dict(labels=[1], smoothing=[0.1, 0.2], num_classes=3), r"smoothing must be .* got \[0.1, 0.2\]"),
        (dict(labels=[[0, 1], [2, 3]], num_classes=3), r"labels must be class ids in 0..2; got 3 at index 1, 1"),
        (dict(labels=[-1], num_classes=3), r"labels must be class ids in 0..2; got -1 at index 0"),
        (dict(labels=3, num_classes=3), r"labels must be class ids in 0..2; got 3$"),
        (dict(labels=[0.5, 1.5], num_classes=3), r"labels must have the classes on their last axis .*shape \(2,\)"),
        (dict(labels=[1, 2, 3]), r"labels must be one-hot rows where num_classes is not given .* got \[1 2 3\]"),
        (dict(labels=[[1, -1, 1]]), r"labels must be one-hot rows"),
        (dict(labels=5), r"labels must be one-hot rows .* got shape \(\)"),
        (dict(labels=0.5), r"labels must have the classes on their last axis"),
        (dict(labels=["cat"], num_classes=3), r"labels must be integers .* or floats .* got dtype <U3"),
        (dict(labels=[[0.5, 0.5], [0.6, 0.5]]), r"labels must be .* sum to 1 .* got a sum of 1.1 in row 1"),
        (dict(labels=[[1.5, -0.5]]), r"labels must be non-negative .* got -0.5 at index 0, 1"),
        (dict(labels=[[np.nan, 1.0]]), r"labels must be non-negative .* got nan"),
        (dict(labels=np.zeros((2, 0))), r"labels must have at least one class on their last axis; got shape \(2, 0\)"),
        (dict(labels=[1], num_classes=2, prior=["a", "b"]), r"prior must hold numbers; got dtype <U1"),
        (dict(labels=[1], num_classes=2, prior=[0.5j, 0.5]), r"prior must hold numbers; got dtype complex128"),
        (dict(labels=[1], num_classes=0), r"num_classes must be a whole number of at least 1; got 0"),
        (dict(labels=[1], num_classes=2.5), r"num_classes must be a whole number"),
        (dict(labels=[1], num_classes=3, prior=[0.5, 0.5]), r"prior must have shape \(3,\) or \(1, 3\); got \(2,\)"),
        (dict(labels=[1], num_classes=2, prior=[0.5, 0.6]), r"prior must be .* got a sum of 1.1"),
        (dict(labels=[1], num_classes=2, class_prior=[0.5, 0.5]), r"class_prior must have shape \(2, 2\); got \(2,\)"),
        (dict(labels=[1], num_classes=2, class_prior=[[1, 0], [2, -1]]), r"class_prior must be non-negative"),
        (dict(labels=[1], num_classes=2, prior=[0.5, 0.5], class_prior=np.eye(2)), r"prior must be None where class_prior"),
        (dict(labels=[1], num_classes=2, class_mask=[True, False]), r"class_mask must keep the true class .*row 0"),
        (dict(labels=[[0.5, 0.5]], class_mask=[True, False]), r"class_mask must keep the true class"),
        (dict(labels=[1], num_classes=2, class_mask=[1, 1]), r"class_mask must be boolean; got dtype int"),
        (dict(labels=[1], num_classes=2, class_mask=[False, True], prior=[1.0, 0.0]), r"class_mask must keep a class that"),
        (dict(labels=[1], num_classes=2, dtype=int), r"dtype must be a float dtype; got int64"),
        (dict(labels=[1], num_classes=2, dtype="nonsense"), r"dtype must be a float dtype"),
        (dict(labels=[1], num_classes=2, out=np.empty((1, 3))), r"out must have shape \(1, 2\); got \(1, 3\)"),
        (dict(labels=[1], num_classes=2, out=np.empty((1, 2), int)), r"out must have a float dtype; got int64"),
        (dict(labels=[1], num_classes=2, out=[[0.0, 0.0]]), r"out must be a NumPy array"),
        (dict(labels=[1], num_classes=2, out=np.empty((1, 2)), dtype="float32"), r"out must have .* float32 as dtype says"),
        (dict(labels=[1], num_classes=2, out=np.broadcast_to(0.5, (1, 2))), r"out must be writeable"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_the_rule_and_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        ls.smooth_labels(**arguments)


def test_nothing_is_written_when_a_check_fails():
    out = np.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="labels"):
        ls.smooth_labels([0, 9], num_classes=3, out=out)
    assert (out == 7).all()


def test_one_hot():
    assert ls.one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert ls.one_hot(np.array(1), 2, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="labels must be integers"):
        ls.one_hot([0.0, 1.0], 2)


@given(st.floats(0, 0.49), st.integers(2, 1000), st.sampled_from(["inclusive", "exclusive", "classy_vision"]))
def test_conventions_give_the_same_targets(epsilon, count, convention):
    q = np.eye(count)[0]
    build = {
        "inclusive": lambda e: formula(q, e, 1 / count),
        "exclusive": lambda e: np.where(q == 1, 1 - e, e / (count - 1)),
        "classy_vision": lambda e: (q + e / count) / (1 + e),
    }
    equal = ls.convert_smoothing(epsilon, count, from_="inclusive", to=convention)
    np.testing.assert_allclose(build[convention](equal), build["inclusive"](epsilon), atol=1e-14)
    assert ls.convert_smoothing(equal, count, from_=convention, to="inclusive") == pytest.approx(epsilon, abs=1e-14)


def test_keras_binary_is_the_inclusive_one_for_two_classes():
    equal = ls.convert_smoothing(0.2, 2, from_="keras_binary", to="inclusive")
    assert ls.smooth_labels(1, equal, num_classes=2)[1] == np.float32(1 * (1 - 0.2) + 0.2 / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 2, "exclusive", "inclusive"), r"smoothing must have an equal in \[0, 1\) .*'inclusive'; got 0.5"),
        ((0.6, 10, "inclusive", "classy_vision"), r"smoothing must have an equal"),
        ((0.1, 3, "keras_binary", "inclusive"), r"num_classes must be 2 for keras_binary; got 3"),
        ((0.1, 1, "exclusive", "inclusive"), r"num_classes must be a whole number of at least 2; got 1"),
        ((0.1, 3, "fairseq", "inclusive"), r"from_ must be one of 'inclusive', .*got 'fairseq'"),
        ((1.0, 3, "exclusive", "inclusive"), r"smoothing must be a number in \[0, 1\)"),
    ],
)
def test_convert_smoothing_refuses(arguments, message):
    smoothing, count, source, goal = arguments
    with pytest.raises(ValueError, match=message):
        ls.convert_smoothing(smoothing, count, from_=source, to=goal)


def test_explain_prints_and_returns_the_numbers(capsys):
    result = ls.explain(0.1, 10)
    text = capsys.readouterr().out
    assert "true class 0.91, others 0.01" in text
    q = np.array(CLASS_7)
    assert result.entropy_floor == pytest.approx(-(q * np.log(q)).sum())
    assert f"{result.entropy_floor:.3f}" == "0.500"
    assert result.best_logit_gap == pytest.approx(math.log(0.91 / 0.01))
    assert result.conventions["exclusive"] == pytest.approx(0.09)
    plain = ls.explain(0.0, 2)
    assert plain.entropy_floor == 0
    assert plain.best_logit_gap == math.inf
    assert "keras_binary" in plain.conventions
    assert ls.explain(0.7, 5).conventions["classy_vision"] is None
    with pytest.raises(ValueError, match="smoothing must be"):
        ls.explain(1.0, 10)
