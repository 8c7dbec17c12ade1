"""Selective prediction against loops over all orders of ties, and scikit-learn's AUROC."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from labelsmooth.evaluation import augrc, aurc, coverage_at_risk, risk_coverage

EXAMPLES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


def orders(score, hits):
    """The hits in every order that the scores allow."""
    for order in itertools.permutations(range(len(score))):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order)):
            yield [hits[i] for i in order]


@given(EXAMPLES)
def test_areas_are_means_over_the_orders_of_ties(examples):
    score, hits = [s for s, _ in examples], np.array([h for _, h in examples])
    n, plain, generalised = len(hits), [], []
    for ordered in orders(score, hits):
        errors = [sum(not hit for hit in ordered[:i]) for i in range(n + 1)]
        plain.append(sum(errors[i] / i for i in range(1, n + 1)) / n)
        generalised.append(sum((errors[i] + errors[i + 1]) / 2 for i in range(n)) / n**2)
    assert aurc(score, hits) == pytest.approx(np.mean(plain), abs=1e-12)
    assert augrc(score, hits) == pytest.approx(np.mean(generalised), abs=1e-12)


@given(EXAMPLES, st.sampled_from([0.0, 0.05, 0.25, 1 / 3, 0.5, 1.0]))
def test_coverage_and_the_curve_by_thresholds(examples, risk):
    score, hits = np.array([s for s, _ in examples]), np.array([h for _, h in examples])
    curve, best = [], 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        kept = score >= threshold
        curve.append((kept.mean(), (~hits[kept]).sum() / kept.sum()))
        if curve[-1][1] <= risk:
            best = kept.mean()
    assert coverage_at_risk(score, hits, risk) == best
    np.testing.assert_allclose(np.transpose(risk_coverage(score, hits)), curve, rtol=1e-15)


def test_augrc_is_made_of_auroc_and_accuracy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(5, 300))
        hits = rng.random(n) < 0.7
        hits[:2] = True, False
        score = np.round(rng.normal(size=n) + hits, rng.integers(0, 3))
        accuracy = hits.mean()
        expected = (1 - roc_auc_score(hits, score)) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        assert augrc(score, hits) == pytest.approx(expected, rel=1e-10)


def test_by_hand():
    assert aurc([3, 2, 1], np.array([True, True, False])) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert aurc([1, 2, 3], np.array([True, True, False])) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert aurc([1, 1, 1], np.array([True, True, False])) == pytest.approx(1 / 3)
    assert augrc([1, 1, 1], np.array([True, True, False])) == pytest.approx(1 / 6)
    assert coverage_at_risk([1.0], [False]) == 0
    assert coverage_at_risk(np.arange(20), np.arange(20) > 0) == 1  # one error in 20: a risk of exactly 0.05
    assert coverage_at_risk(np.arange(19), np.arange(19) > 0) == pytest.approx(18 / 19)
    assert coverage_at_risk([np.inf, 0.0, -np.inf], [True, False, False]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("function", [aurc, augrc, coverage_at_risk, risk_coverage])
@pytest.mark.parametrize(
    ("score", "hits", "message"),
    [
        ([], np.zeros(0, bool), r"score must be real numbers of shape \[N\] with N above 0"),
        ([[1.0]], [True], r"score must be real numbers of shape \[N\] with N above 0; got float64 \(1, 1\)"),
        ([1.0, np.nan, 0.0], [True] * 3, "score must be numbers; got nan at index 1"),
        ([1.0], [1], r"hits must be bool of shape \(1,\); got int64"),
    ],
)
def test_errors(function, score, hits, message):
    with pytest.raises(ValueError, match=message):
        function(score, hits)


def test_errors_of_the_risk():
    for risk in (-0.1, 1.5, np.nan, "low"):
        with pytest.raises(ValueError, match="risk must be in 0..1; got"):
            coverage_at_risk([1.0], [True], risk)
