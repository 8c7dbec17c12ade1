"""Calibration errors and temperatures against netcal, SciPy's optimiser, enumeration and redrawn labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcal.metrics import ECE, MCE
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from labelsmooth.evaluation import (
    _blocks,
    adaptive_ece,
    classwise_ece,
    ece,
    expected_adaptive_ece,
    expected_classwise_ece,
    expected_ece,
    fit_temperature,
    gap,
    mce,
    reliability,
    temperature,
)
from labelsmooth.evaluation.calibration import equal_mass
from labelsmooth.evaluation.rows import rows


def sample(seed, n, count, sharpness=1.0):
    """Logits, and labels drawn from softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, count)) * 2
    return logits, (logits / sharpness + rng.gumbel(size=(n, count))).argmax(1)


@pytest.mark.parametrize(("count", "bins"), [(2, 15), (3, 15), (10, 15), (10, 7), (10, 1)])
def test_agrees_with_netcal(count, bins):
    logits, labels = sample(count, 3000, count, 0.8)
    p = softmax(logits, 1)
    confidence, hits = p.max(1), p.argmax(1) == labels
    # netcal takes K = 2 as a forecast of class 1; the forecast "the prediction is right" is ours
    theirs = (p, labels) if count > 2 else (confidence, hits.astype(int))
    assert ece(confidence, hits, bins) == pytest.approx(ECE(bins).measure(*theirs), rel=1e-12)
    assert mce(confidence, hits, bins) == pytest.approx(MCE(bins).measure(*theirs), rel=1e-12)
    each = [ECE(bins).measure(p[:, k], (labels == k).astype(int)) for k in range(count)]
    assert classwise_ece(rows(logits, labels, bins=bins).classwise) == pytest.approx(np.mean(each), rel=1e-12)


def test_agrees_with_netcal_on_bins_of_equal_mass():
    rng = np.random.default_rng(0)
    confidence = np.linspace(0.4, 1, 3000)  # 200 in each bin, whose edges cannot be drawn in two ways
    hits = rng.random(3000) < confidence**1.2
    theirs = ECE(15, equal_intervals=False).measure(confidence, hits.astype(int))
    assert adaptive_ece(confidence, hits) == pytest.approx(theirs, rel=1e-12)
    by_hand = np.abs(confidence.reshape(15, 200).mean(1) - hits.reshape(15, 200).mean(1)).mean()
    assert adaptive_ece(confidence, hits) == pytest.approx(by_hand, rel=1e-12)


def test_where_libraries_differ():
    # (lo, hi]: 0.2 is in the first of five bins, 0.6 in the third, 1.0 in the last; the others are empty
    diagram = reliability([0.2, 0.6, 1.0, 1.0], np.array([False, True, True, False]), bins=5)
    assert diagram.counts.tolist() == [1, 0, 1, 0, 2]
    assert diagram.edges.tolist() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    np.testing.assert_array_equal(diagram.confidence, [0.2, np.nan, 0.6, np.nan, 1])
    np.testing.assert_array_equal(diagram.accuracy, [0, np.nan, 1, np.nan, 0.5])
    np.testing.assert_allclose(diagram.variance, [0.16, 0, 0.24, 0, 0], atol=1e-16)
    confidence, hits = [0.2, 0.6, 1.0, 1.0], [False, True, True, False]
    assert ece(confidence, hits, 5) == pytest.approx((0.2 + 0.4 + 1) / 4)
    assert mce(confidence, hits, 5) == pytest.approx(0.5)
    assert gap(confidence, hits) == pytest.approx(0.7 - 0.5)
    # right with confidence 1: perfect; netcal and we agree, torchmetrics would put it into a bin of its own
    assert ece([1.0, 1.0], [True, True]) == 0
    assert expected_ece([1.0, 1.0]) == 0
    # K = 2 and equal logits: 0.5 is in (0.467, 0.533]
    result = rows([[0.0, 0.0]], [1])
    assert reliability(result.confidence, result.hits).counts.tolist() == [0] * 7 + [1] + [0] * 7
    assert result.classwise.counts.tolist() == [[0] * 7 + [1] + [0] * 7] * 2
    # a p of 0 is in the first bin
    assert rows([[0.0, -np.inf]], [0], bins=2).classwise.counts.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_p_on_an_edge_belongs_to_the_bin_below_it(dtype):
    for count in range(2, 16):
        cells = rows(np.zeros((1, count), dtype), [0], bins=count).classwise  # p = 1/K
        assert (cells.counts[:, 0] == 1).all()
        assert cells.hits[0].tolist() == [1] + [0] * (count - 1)
    for half in range(2, 8):  # half of the classes share all, p = 2/K on the second edge
        logits = np.where(np.arange(2 * half) < half, 0, -np.inf).astype(dtype)[None]
        cells = rows(logits, [0], bins=2 * half).classwise
        assert (cells.counts[:half, 1] == 1).all()
        assert (cells.counts[half:, 0] == 1).all()
        assert cells.hits[0, 1] == 1


@pytest.mark.parametrize("name", ["float64", "float32"])
@pytest.mark.parametrize(("count", "bins"), [(1, 15), (2, 3), (7, 15), (40, 15), (3, 200)])
def test_classwise_cells_by_brute_force(name, count, bins):
    logits, labels = sample(1, 400, count)
    logits = logits.astype(name)
    cells = rows(logits, labels, temperature=0.7, bins=bins).classwise
    p = softmax(logits / np.float64(0.7), 1)
    for k in range(count):
        for b in range(bins):
            here = (p[:, k] > b / bins) & (p[:, k] <= (b + 1) / bins)
            assert cells.counts[k, b] == here.sum()
            assert cells.hits[k, b] == (labels[here] == k).sum()
            assert cells.confidence[k, b] == pytest.approx(p[here, k].sum(), rel=3e-6)
            assert cells.variance[k, b] == pytest.approx((p[here, k] * (1 - p[here, k])).sum(), rel=3e-6, abs=1e-6)


def test_equal_mass_does_not_depend_on_the_order_of_ties():
    rng = np.random.default_rng(2)
    confidence = rng.choice([0.3, 0.5, 0.8, 1.0], 101)
    hits = rng.random(101) < confidence
    values = {adaptive_ece(confidence[order], hits[order], 7) for order in (rng.permutation(101) for _ in range(20))}
    assert max(values) - min(values) < 1e-15
    # the mean over all orders of ties, of hits and confidence: 3 examples, 2 bins of 1 and 2
    confidence, hits = np.full(3, 0.5), np.array([True, False, True])
    cells = equal_mass(confidence, hits, 2)
    assert sorted(cells.counts.tolist()) == [1, 2]
    np.testing.assert_allclose(cells.hits / cells.counts, 2 / 3)
    assert adaptive_ece([0.5, 0.9], [True, False], 15) == pytest.approx((0.5 + 0.9) / 2)  # fewer examples than bins


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (2, 0.8), (5, 0.5), (7, 0.99), (40, 0.1), (1000, 0.937)])
def test_expectation_is_exact_where_all_confidences_are_equal(n, p):
    from scipy.stats import binom

    k = np.arange(n + 1)
    assert expected_ece(np.full(n, p)) == pytest.approx((np.abs(k - n * p) @ binom.pmf(k, n, p)) / n, rel=1e-9)


def test_expectation_of_unequal_confidences_is_near_the_exact_one():
    rng = np.random.default_rng(9)
    for n in (1, 2, 3, 5, 10, 30, 100, 1000):
        for _ in range(20):
            low = rng.integers(0, 15) / 15
            confidence = rng.uniform(low, low + 1 / 15, n)
            confidence[: n // 2] = rng.choice([confidence[0], 1.0])  # certain hits among the others
            chances = np.ones(1)
            for c in confidence:
                chances = np.convolve(chances, [1 - c, c])
            exact = np.abs(np.arange(n + 1) - confidence.sum()) @ chances / n
            assert expected_ece(confidence, 1) == pytest.approx(exact, rel=0.02), confidence


@pytest.mark.parametrize("n", [300, 2000])
def test_expectations_are_those_of_redrawn_labels(n):
    logits, _ = sample(3, n, 12)
    logits = np.round(logits, 1)
    logits[: n // 4] = [9, *[0] * 11]  # ties
    p, rng, draws = softmax(logits, 1), np.random.default_rng(0), 400
    confidence, found = p.max(1), []
    for _ in range(draws):
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        hits = p.argmax(1) == labels
        found.append(
            (ece(confidence, hits), adaptive_ece(confidence, hits), classwise_ece(rows(logits, labels).classwise))
        )
    means, errors = np.mean(found, 0), np.std(found, 0) / draws**0.5
    told = (
        expected_ece(confidence),
        expected_adaptive_ece(confidence),
        expected_classwise_ece(rows(logits, labels).classwise),
    )
    assert (np.abs(told - means) < 4 * errors + 0.01 * means).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_bounds(examples, bins):
    confidence, hits = np.array([c for c, _ in examples]), np.array([h for _, h in examples])
    n = len(hits)
    by_hand = 0.0
    for b in range(bins):
        here = (confidence > b / bins) & (confidence <= (b + 1) / bins) | ((b == 0) & (confidence == 0))
        by_hand += abs(confidence[here].sum() - hits[here].sum()) / n
    assert ece(confidence, hits, bins) == pytest.approx(by_hand, abs=1e-12)
    least = abs(gap(confidence, hits))
    for error in (ece, adaptive_ece):
        assert least - 1e-12 <= error(confidence, hits, bins) <= 1
    assert ece(confidence, hits, bins) <= mce(confidence, hits, bins) + 1e-12
    spread = np.sqrt((confidence * (1 - confidence)).sum()) / n
    for expected in (expected_ece, expected_adaptive_ece):
        assert 0 <= expected(confidence, bins) <= bins**0.5 * spread * 2 + 1e-9


@pytest.mark.parametrize(
    ("confidence", "hits", "bins", "message"),
    [
        ([], np.zeros(0, bool), 15, r"confidence must be numbers of shape \[N\] with N above 0; got shape \(0,\)"),
        ([1.1], [True], 15, r"confidence must be in 0..1; got 1.1 at index 0"),
        ([0.1, np.nan], [True, True], 15, r"confidence must be in 0..1; got nan at index 1"),
        ([0.1], [1], 15, r"hits must be bool of shape \(1,\); got int64 \(1,\)"),
        ([0.1], [True, False], 15, r"hits must be bool of shape \(1,\); got bool \(2,\)"),
        ([0.1], [True], 0, r"bins must be a whole number of at least 1; got 0"),
    ],
)
def test_errors(confidence, hits, bins, message):
    for function in (ece, adaptive_ece, mce, reliability):
        with pytest.raises(ValueError, match=message):
            function(confidence, hits, bins)


# Temperature.


def reference_temperature(logits, labels):
    def nll(log_t):
        return -log_softmax(logits / np.exp(log_t), 1)[np.arange(len(labels)), labels].mean()

    return np.exp(
        minimize_scalar(nll, bounds=(-np.log(100), np.log(100)), method="bounded", options={"xatol": 1e-10}).x
    )


@pytest.mark.parametrize("sharpness", [0.05, 0.4, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_temperature_is_the_minimiser(sharpness, name):
    logits, labels = sample(5, 3000, 10, sharpness)
    logits = logits.astype(name)
    # the bounded search compares values of the NLL, so it knows log T to the root of the rounding error
    assert fit_temperature(logits, labels) == pytest.approx(
        reference_temperature(logits.astype(float), labels), rel=1e-6
    )


def test_temperature_in_closed_form():
    # softmax over z/T of (m, 0) hits with probability a: T = m / logit(a); and far from T = 1 on both sides
    for m, a in ((3.0, 0.75), (0.05, 0.9), (400.0, 0.999), (40.0, 0.51)):
        n = 1000
        labels = (np.arange(n) >= round(a * n)).astype(int)
        for offset in (0.0, 1e4):
            logits = np.tile([m, 0.0], (n, 1)) + offset
            wanted = min(m / np.log(a / (1 - a)), 100)
            assert fit_temperature(logits, labels) == pytest.approx(wanted, rel=1e-7), (m, a)


def test_temperature_at_the_ends_and_where_it_changes_nothing():
    assert fit_temperature(np.eye(3) * 5, [0, 1, 2]) == pytest.approx(0.01)  # all right
    assert fit_temperature(np.eye(3) * 5, [1, 2, 0]) == pytest.approx(100)  # all wrong
    assert fit_temperature(np.zeros((4, 3)), [0, 1, 2, 0]) == 1
    assert fit_temperature([[0.0, -np.inf]], [1]) == 1


def test_temperature_with_masked_classes():
    logits, labels = sample(6, 2000, 5, 0.6)
    for mask in (-np.inf, -1e9, np.finfo(np.float32).min):
        masked = np.c_[logits[:, :3], np.full(2000, mask), logits[:, 3:]]
        assert fit_temperature(masked, np.where(labels > 2, labels + 1, labels)) == pytest.approx(
            fit_temperature(logits, labels), rel=1e-9
        )
    impossible = np.r_[masked, [[0, 0, 0, -np.inf, 0, 0]]], np.r_[np.where(labels > 2, labels + 1, labels), 3]
    assert fit_temperature(*impossible) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_temperature_of_many_rows_starts_on_some(monkeypatch):
    logits, labels = sample(7, 5000, 6, 2.5)
    order = np.argsort(labels, kind="stable")  # sorted by class
    wanted = fit_temperature(logits, labels)
    sizes, derivatives = [], temperature._derivatives

    def counted(logits, *rest):
        sizes.append(len(logits))
        return derivatives(logits, *rest)

    monkeypatch.setattr(temperature, "_derivatives", counted)
    monkeypatch.setattr(temperature, "_WARM", 700)
    assert fit_temperature(logits[order], labels[order]) == pytest.approx(wanted, rel=1e-8)
    assert sizes.count(5000) <= 3
    assert set(sizes) == {5000, 625}


def test_temperature_is_the_same_on_any_number_of_cores(monkeypatch):
    logits, labels = sample(8, 4000, 6)
    found = set()
    for cores in (1, 2, 5):
        monkeypatch.setattr(_blocks, "_cores", lambda cores=cores: cores)
        found.add(fit_temperature(logits.astype(np.float32), labels))
    assert len(found) == 1


def test_temperature_refuses_what_rows_refuse():
    for logits, labels, message in (
        ([[0.0, np.nan]], [0], "logits must be finite or -inf; got nan in row 0"),
        ([[0.0, 1.0]], [2], r"labels must be class ids in 0..1; got 2"),
        (np.zeros((0, 2)), [], r"logits must be real numbers of shape \[N, K\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_temperature(logits, labels)
    for wrong in (0, -1, np.nan, np.inf, "1"):
        with pytest.raises(ValueError, match="temperature must be a positive number; got"):
            rows([[0.0, 1.0]], [0], temperature=wrong)
