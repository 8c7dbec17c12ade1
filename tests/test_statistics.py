"""The statistics of a comparison: against SciPy where they agree, and calibrated in simulations of 2,000 comparisons."""

import numpy as np
import pytest
from scipy import stats

from labelsmooth.comparison import jackknife, statistics
from labelsmooth.evaluation.selective import aurc

SIMULATIONS = 2000
SLACK = 3 * np.sqrt(0.05 * 0.95 / SIMULATIONS)  # of a rate of 5 %


def exchangeable(rng, seeds, examples, share=0.06):
    """Two arms that are the same: `share` of the examples are a coin's toss under every seed."""
    values = np.zeros((seeds, examples))
    tosses = rng.integers(0, 2, (2, seeds, int(share * examples)))
    values[:, : tosses.shape[2]] = tosses[0] - tosses[1]
    return values


def uncertain(rng, seeds, examples, share=0.06):
    """Two arms of one population accuracy that are right on different examples, each with a probability of its own."""
    values = np.zeros((seeds, examples))
    count = rng.binomial(examples, share)
    chances = rng.beta(0.3, 0.3, (2, 1, count))
    tosses = rng.random((2, seeds, count)) < chances
    values[:, :count] = tosses[0].astype(float) - tosses[1]
    return values


def mixed(rng, seeds, examples, of_seeds=0.01, of_examples=0.005, residual=0.0):
    """Normal effects of seeds and examples, by their share of the standard error with 3 seeds."""
    values = of_seeds * rng.standard_normal((seeds, 1)) + of_examples * np.sqrt(examples / 3) * rng.standard_normal(
        (1, examples)
    )
    return values + residual * np.sqrt(examples) * rng.standard_normal((seeds, examples))


def rare(rng, seeds, examples, share, own):
    """An arm that is right on `share` more of the examples: on the same under every seed, or under each on its own."""
    return np.broadcast_to(rng.random((seeds if own else 1, examples)) < share, (seeds, examples)).astype(float)


def simulate(make, *arguments, margin=0.005, effect=0.0, binary=False):
    """Rates of verdicts, and of 95 % intervals that hold the truth."""
    counted = dict.fromkeys(("helps", "hurts", "equivalent", "inconclusive", "covered"), 0)
    for number in range(SIMULATIONS):
        values = make(np.random.default_rng(number), *arguments)
        values = values if binary else values + effect
        difference = statistics.mean_difference(values, binary=binary)
        low, high = difference.interval(0.95)
        counted["covered"] += low <= effect <= high
        counted[statistics.judge([difference], margin, "higher")[0].verdict] += 1
    return {name: count / SIMULATIONS for name, count in counted.items()}


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("examples", [360, 10_000])
@pytest.mark.parametrize("make", [exchangeable, uncertain])
def test_arms_that_are_alike_are_seldom_told_apart(make, examples, seeds):
    rates = simulate(make, seeds, examples, margin=0.0, binary=True)
    assert rates["helps"] + rates["hurts"] <= 0.05 + SLACK
    assert rates["covered"] >= 0.95 - SLACK


def test_a_t_test_over_seeds_alone_is_wrong_where_examples_are_uncertain():
    wrong = [
        stats.ttest_1samp(uncertain(np.random.default_rng(number), 5, 360).mean(axis=1), 0.0).pvalue < 0.05
        for number in range(500)
    ]
    assert np.mean(wrong) > 0.35


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("shares", [(0.01, 0.01, 0.0), (0.01, 0.005, 0.0), (0.01, 0.01, 0.01), (0.003, 0.01, 0.01)])
def test_intervals_hold_the_truth_whatever_makes_the_noise(shares, seeds):
    rates = simulate(mixed, seeds, 360, *shares)
    assert rates["covered"] >= 0.935


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_are_exact_under_seed_noise_alone(seeds):
    rates = simulate(mixed, seeds, 100, 0.01, 0.0, 0.0)
    assert 0.935 <= rates["covered"] <= 0.965


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("shares", [(0.002, 0.0, 0.0), (0.001, 0.001, 0.0), (0.001, 0.001, 0.001)])
def test_a_difference_at_the_edge_of_the_margin_is_seldom_called_equivalent(shares, seeds):
    margin = 0.005
    assert simulate(mixed, seeds, 360, *shares, margin=margin, effect=margin)["equivalent"] <= 0.05 + SLACK


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("examples", "seeds", "share"),
    [(48, 2, 0.005), (48, 2, 0.02), (100, 3, 0.005), (360, 3, 0.005), (360, 10, 0.005), (1000, 5, 0.005)],
)
def test_arms_that_seldom_differ_are_not_called_equivalent_for_that(examples, seeds, share, own):
    rates = simulate(rare, seeds, examples, share, own, effect=share, binary=True)
    assert rates["equivalent"] <= 0.05 + SLACK
    assert rates["covered"] >= 0.95 - SLACK


def test_looking_again_after_seeds_were_added_is_wrong_as_often_as_the_note_says():
    wrong = np.zeros(3)
    for number in range(SIMULATIONS):
        values = mixed(np.random.default_rng(number), 12, 50, 0.01, 0.0, 0.0)
        verdicts = [statistics.judge([statistics.mean_difference(values[:n])], 1e-5, "higher")[0] for n in (3, 6, 12)]
        wrong += np.cumsum([each.verdict in ("helps", "hurts") for each in verdicts]) > 0
    np.testing.assert_allclose(wrong / SIMULATIONS, [0.05, 0.09, 0.12], atol=SLACK)


@pytest.mark.parametrize("effect", [0.0, 0.004, 0.012])
def test_power_is_as_predicted(effect):
    """Planned from the true variances, with twice the seeds of a pilot, against what happens."""
    of_seeds, of_examples, residual, examples = 0.006, 0.003, 0.004, 400
    variances = (of_seeds**2, of_examples**2 * examples / 3, residual**2 * examples)
    pilot = statistics.Difference(effect, 1.0, 3.0, 5, examples, *variances)
    predicted = statistics.power(pilot, 10, margin=0.005, level=0.95)
    rates = simulate(mixed, 10, examples, of_seeds, of_examples, residual, margin=0.005, effect=effect)
    assert predicted == pytest.approx(1 - rates["inconclusive"], abs=0.04)


def test_with_seed_noise_alone_it_is_the_paired_t_test():
    per_seed = np.random.default_rng(0).normal(0.01, 0.02, 7)
    difference = statistics.mean_difference(np.repeat(per_seed[:, None], 50, axis=1))
    reference = stats.ttest_1samp(per_seed, 0.0)
    assert difference.p == pytest.approx(reference.pvalue)
    low, high = reference.confidence_interval(0.9)
    assert difference.interval(0.9) == pytest.approx((low, high))


def test_with_examples_alone_it_is_the_paired_t_test_over_examples():
    per_example = np.random.default_rng(1).normal(0.01, 0.3, 400)
    difference = statistics.mean_difference(np.repeat(per_example[None], 4, axis=0))
    reference = stats.ttest_1samp(per_example, 0.0)
    assert difference.p == pytest.approx(reference.pvalue, rel=1e-6)


def test_components_are_those_of_the_model():
    values = np.random.default_rng(2).normal(size=(40, 900)) * 0.5
    values += np.random.default_rng(3).normal(size=(40, 1)) * 0.2 + np.random.default_rng(4).normal(size=(1, 900)) * 0.3
    difference = statistics.mean_difference(values)
    assert difference.seed_variance == pytest.approx(0.04, rel=0.6)
    assert difference.example_variance == pytest.approx(0.09, rel=0.1)
    assert difference.residual_variance == pytest.approx(0.25, rel=0.02)
    variance, _ = difference.planned(40)
    assert variance == pytest.approx(difference.variance, rel=1e-9)


def test_no_difference_at_all_is_certain():
    difference = statistics.mean_difference(np.zeros((3, 10)))
    assert (difference.p, difference.interval()) == (1.0, (0.0, 0.0))
    assert statistics.judge([difference], 0.005, "higher")[0].verdict == "equivalent"
    never = statistics.mean_difference(np.zeros((3, 10)), binary=True)
    assert never.interval(0.9)[1] > 0.2  # ten examples on which nothing differed say little
    assert statistics.mean_difference(np.zeros((3, 10_000)), binary=True).interval(0.9)[1] < 0.0003
    always = statistics.mean_difference(np.full((3, 10), 0.5))
    assert always.p == 0
    assert statistics.judge([always], 0.005, "lower")[0].verdict == "hurts"


@pytest.mark.parametrize(
    "values", [np.zeros((1, 10)), np.zeros((3, 1)), np.zeros(5), np.array([[0.0, np.nan], [0.0, 1.0]])]
)
def test_what_cannot_be_judged_is_refused(values):
    with pytest.raises(ValueError, match="values must"):
        statistics.mean_difference(values)


def test_holm_is_that_of_the_textbook():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize("number", range(200))
def test_the_interval_shown_is_the_one_that_decides(number):
    rng = np.random.default_rng(number)
    differences = [
        statistics.Difference(effect, 1e-4, 6.0, 5, 100, 1e-4, 0.0, 0.0) for effect in rng.normal(0, 0.03, 4)
    ]
    for verdict in statistics.judge(differences, 0.01, "higher"):
        if verdict.verdict == "equivalent":
            assert -0.01 < verdict.low < verdict.high < 0.01
            assert verdict.level == pytest.approx(0.9)
        else:
            assert (verdict.low > 0 or verdict.high < 0) == (verdict.verdict != "inconclusive")


def test_equivalence_goes_before_significance():
    tiny = statistics.Difference(0.002, 1e-8, 50.0, 10, 1000, 1e-7, 0.0, 0.0)
    assert tiny.p < 1e-6
    assert statistics.judge([tiny], 0.005, "higher")[0].verdict == "equivalent"


def test_seeds_needed():
    difference = statistics.Difference(0.01, 4e-5, 2.0, 3, 10_000, 1.2e-4, 0.0, 0.0)
    needed = statistics.seeds_needed(difference, 0.005, 0.95)
    assert needed is not None
    assert needed > 3
    assert statistics.power(difference, needed, 0.005, 0.95) >= 0.8
    assert statistics.power(difference, needed - 1, 0.005, 0.95) < 0.8
    examples_alone = statistics.Difference(0.01, 1e-3, 300.0, 3, 360, 0.0, 0.36, 0.0)
    assert statistics.seeds_needed(examples_alone, 0.005, 0.95) is None
    many = statistics.Difference(0.0, 4e-2, 2.0, 3, 10_000, 0.12, 0.0, 0.0)
    assert statistics.seeds_needed(many, 0.005, 0.95) == statistics.MOST_SEEDS
    assert statistics.seeds_needed(statistics.mean_difference(np.zeros((3, 9))), 0.0, 0.95) is None


def test_sign_flips():
    per_seed = np.random.default_rng(5).normal(0.5, 1.0, 10)
    reference = stats.permutation_test(
        (per_seed,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert statistics.permutation_p(per_seed) == pytest.approx(reference.pvalue)
    assert statistics.permutation_p(per_seed[:7]) is None
    assert statistics.permutation_p(np.zeros(8)) == 1.0
    many = np.random.default_rng(6).normal(0.3, 1.0, 40)
    assert statistics.permutation_p(many) == pytest.approx(stats.ttest_1samp(many, 0.0).pvalue, abs=0.02)


def ece(confidence, hits, bins):
    """Straight from the definition."""
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        total += abs((confidence[inside] - hits[inside]).sum())
    return total / len(hits)


@pytest.mark.parametrize("metric", ["ece", "aurc"])
@pytest.mark.parametrize("values", [0, 1, 2, 6])
def test_pseudovalues_are_those_of_leaving_each_example_out(metric, values):
    """With as many different confidences as there are examples (0), or so few."""
    rng = np.random.default_rng(7)
    confidence = rng.uniform(0.2, 1.0, 60)
    if values:
        confidence = rng.choice(confidence[:values], 60)
    hits = rng.random(60) < confidence
    if metric == "ece":
        value, pseudo = lambda c, h: ece(c, h, 15), jackknife.ece_pseudovalues(confidence, hits, 15)
    else:
        value, pseudo = aurc, jackknife.aurc_pseudovalues(confidence, hits)
    n, whole = len(hits), value(confidence, hits)
    left_out = [value(np.delete(confidence, i), np.delete(hits, i)) for i in range(n)]
    assert pseudo == pytest.approx(n * whole - (n - 1) * np.array(left_out))


def test_a_t_test_over_seeds_alone_would_not_do_for_ece():
    """Arms of one population whose errors differ by example: the jackknife keeps false verdicts rare."""
    wrong = alone = 0
    for number in range(600):
        rng = np.random.default_rng(number)
        confidence = np.full(360, 0.97)
        unsure = rng.random(360) < 0.06
        chances = np.where(unsure, rng.beta(0.3, 0.3, (2, 1, 360)), 0.99)
        hits = rng.random((2, 5, 360)) < chances
        pairs = list(zip(hits[0], hits[1], strict=True))
        per_seed = np.array([ece(confidence, a, 15) - ece(confidence, b, 15) for a, b in pairs])
        pseudo = np.stack([
            jackknife.ece_pseudovalues(confidence, a, 15) - jackknife.ece_pseudovalues(confidence, b, 15)
            for a, b in pairs
        ])  # fmt: skip
        wrong += statistics.difference(per_seed, pseudo).p < 0.05
        alone += stats.ttest_1samp(per_seed, 0.0).pvalue < 0.05
    assert wrong / 600 <= 0.07 < 0.15 < alone / 600
