"""sample_labels and the priors: distributions checked against their expectation."""

import numpy as np
import pytest

import labelsmooth as ls


def frequencies(drawn, count):
    return np.bincount(drawn, minlength=count) / drawn.size


@pytest.mark.parametrize("kind", ["uniform", "prior", "prior rows", "class_prior", "class_mask"])
@pytest.mark.parametrize("given_as", ["ids", "soft"])
def test_the_expected_one_hot_is_the_smoothed_target(kind, given_as):
    n, count = 200_000, 4
    labels = np.full(n, 2)
    options = {
        "uniform": {},
        "prior": {"prior": [0.1, 0.2, 0.3, 0.4]},
        "prior rows": {"prior": np.broadcast_to([0.4, 0.3, 0.2, 0.1], (n, count))},
        "class_prior": {"class_prior": np.roll(np.eye(count), 1, axis=1)},
        "class_mask": {"class_mask": [True, False, True, True]},
    }[kind]
    rows = np.broadcast_to([0.5, 0.0, 0.5, 0.0], (n, count))
    array, k = (labels, count) if given_as == "ids" else (rows, None)
    drawn = ls.sample_labels(array, 0.4, num_classes=k, rng=0, **options)
    expected = ls.smooth_labels(array, 0.4, num_classes=k, dtype=float, **options)[0]
    sigma = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(frequencies(drawn, count) - expected) <= 5 * sigma).all()
    assert (frequencies(drawn, count)[expected == 0] == 0).all()


def test_sample_labels_keeps_shape_dtype_kind_and_seed():
    labels = np.array([[1, 2, 0]], np.int16)
    drawn = ls.sample_labels(labels, 0.9, num_classes=3, rng=5)
    assert drawn.shape == labels.shape
    assert drawn.dtype == np.int16
    assert np.array_equal(drawn, ls.sample_labels(labels, 0.9, num_classes=3, rng=np.random.default_rng(5)))
    assert np.array_equal(ls.sample_labels(labels, 0.0, num_classes=3), labels)
    assert np.array_equal(ls.sample_labels(np.eye(3, dtype=int), 0.0), [0, 1, 2])
    assert ls.sample_labels(2, 0.5, num_classes=3, rng=0).shape == ()
    for narrow in (np.int8, np.uint8, bool):  # too narrow for the classes that may be drawn
        drawn = ls.sample_labels(np.zeros(1000, narrow), 0.99, num_classes=1000, rng=0)
        assert drawn.min() >= 0
        assert drawn.max() > 900
    with pytest.raises(ValueError, match=r"smoothing must be a number in \[0, 1\)"):
        ls.sample_labels(labels, 1.0, num_classes=3)
    with pytest.raises(ValueError, match="labels must be class ids in 0..1"):
        ls.sample_labels(labels, 0.1, num_classes=2)


def test_priors():
    assert ls.priors.uniform(5).tolist() == [0.2] * 5
    assert ls.priors.class_frequency([0, 0, 2], 4).tolist() == [2 / 3, 0, 1 / 3, 0]
    assert ls.priors.class_frequency([0, 0, 2], 4, pseudo_count=1).tolist() == [3 / 7, 1 / 7, 2 / 7, 1 / 7]
    assert ls.priors.class_frequency([[0.5, 0.5], [1.0, 0.0]]).tolist() == [0.75, 0.25]
    assert ls.priors.class_frequency(np.eye(2, dtype=int)).tolist() == [0.5, 0.5]
    for bad, message in (
        (lambda: ls.priors.uniform(0), "num_classes must be"),
        (lambda: ls.priors.class_frequency([], 3), r"labels must hold at least one label"),
        (lambda: ls.priors.class_frequency(np.zeros(0, int), 3), "labels must hold at least one label"),
        (
            lambda: ls.priors.class_frequency([0], 3, pseudo_count=-1),
            "pseudo_count must be a number of at least 0; got -1",
        ),
        (lambda: ls.priors.class_frequency([0, 3], 3), r"labels must be class ids in 0..2; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
