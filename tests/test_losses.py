"""The float64 reference, bound to the formula written out, to numerical differentiation and to PyTorch's own loss."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, softmax

import labelsmooth as ls
from labelsmooth.losses import cross_entropy, cross_entropy_and_grad

N, K = 5, 4
INF = float("inf")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def priors(rng, labels):
    n = len(labels)
    rows = rng.dirichlet(np.ones(K), n)
    table = rng.dirichlet(np.ones(K), K)
    return {
        "uniform": ({}, np.full((n, K), 1 / K)),
        "prior": ({"prior": rows[0]}, np.tile(rows[0], (n, 1))),
        "prior rows": ({"prior": rows}, rows),
        "class_prior": ({"class_prior": table}, table[labels]),
    }


@pytest.mark.parametrize("kind", ["uniform", "prior", "prior rows", "class_prior"])
def test_loss_identity_and_gradient_for_every_kind_of_prior(rng, kind):
    z, labels = rng.normal(size=(N, K)) * 3, rng.integers(0, K, N)
    q = np.eye(K)[labels]
    options, u = priors(rng, labels)[kind]
    log_p = log_softmax(z, axis=-1)
    identity = (1 - 0.3) * -(q * log_p).sum(-1) + 0.3 * -(u * log_p).sum(-1)
    smoothed = 0.7 * q + 0.3 * u
    for target in (labels, q, q.astype(int)):
        loss, gradient = cross_entropy_and_grad(z, target, label_smoothing=0.3, reduction="none", **options)
        np.testing.assert_allclose(loss, identity, rtol=1e-13)
        np.testing.assert_allclose(gradient, softmax(z, axis=-1) - smoothed, atol=1e-14)
        assert cross_entropy(z, target, label_smoothing=0.3, **options) == pytest.approx(identity.mean(), rel=1e-13)


@pytest.mark.parametrize("weight_mode", ["class", "example"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["uniform", "prior rows", "class_prior"])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_the_derivative_with_weights_masks_and_normalizer(rng, weight_mode, reduction, kind, soft):
    z, labels = rng.normal(size=(N, K)), np.array([0, 1, 2, 0, 1])
    options = dict(priors(rng, labels)[kind][0])
    options |= {"weight": rng.uniform(0.5, 2, K), "weight_mode": weight_mode, "reduction": reduction}
    options |= {"label_smoothing": 0.2, "class_mask": np.array([True, True, True, False]), "mask": labels != 2}
    if reduction == "mean":
        options["normalizer"] = 2.5
    target = np.pad(rng.dirichlet(np.ones(3), N), ((0, 0), (0, 1))) if soft else labels

    def loss(flat):
        return cross_entropy(flat.reshape(N, K), target, **options)

    _, gradient = cross_entropy_and_grad(z, target, **options)
    np.testing.assert_allclose(gradient.ravel(), approx_fprime(z.ravel(), loss, 1e-7), atol=3e-6)
    assert (gradient[labels == 2] == 0).all()
    assert (gradient[:, 3] == 0).all()


def test_class_weights_by_hand(rng):
    z = rng.normal(size=(3, K))
    labels, w = np.array([0, 2, 2]), np.array([1.0, 2.0, 4.0, 8.0])
    log_p, q = log_softmax(z, axis=-1), np.eye(K)[labels]
    smoothed = 0.9 * q + 0.1 / K
    by_class = -(w * smoothed * log_p).sum(-1)
    by_example = -w[labels] * (smoothed * log_p).sum(-1)
    for mode, rows in (("class", by_class), ("example", by_example)):
        options = {"weight": w, "weight_mode": mode, "label_smoothing": 0.1}
        for target in (labels, q):
            np.testing.assert_allclose(cross_entropy(z, target, reduction="none", **options), rows, rtol=1e-13)
            assert cross_entropy(z, target, reduction="sum", **options) == pytest.approx(rows.sum())
            assert cross_entropy(z, target, **options) == pytest.approx(rows.sum() / (1 + 4 + 4))


def test_example_mode_keeps_the_optimum_at_the_smoothed_target():
    smoothed = ls.smooth_labels([1], 0.2, num_classes=K, dtype=float)
    _, gradient = cross_entropy_and_grad(
        np.log(smoothed), [1], label_smoothing=0.2, weight=[1, 5, 2, 3], weight_mode="example"
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_infinite_logits():
    z = np.array([[0.0, -INF, 1.0]])
    loss, gradient = cross_entropy_and_grad(z, [0], reduction="none")
    assert loss[0] == pytest.approx(np.log(1 + np.e))  # 0 * (-inf) is 0
    assert gradient[0, 1] == 0
    loss, gradient = cross_entropy_and_grad(z, [1])
    assert loss == INF
    np.testing.assert_allclose(gradient[0], softmax(z[0]) - [0, 1, 0])
    loss, gradient = cross_entropy_and_grad(z, [0], label_smoothing=0.3)
    assert loss == INF
    assert np.isfinite(gradient).all()
    masked = {"class_mask": [True, False, True], "label_smoothing": 0.3}
    loss, gradient = cross_entropy_and_grad(z, [0], **masked)
    assert loss == pytest.approx(float(cross_entropy(z[:, ::2], [0], label_smoothing=0.3)))
    assert gradient[0, 1] == 0
    prior = {"prior": [0.5, 0.0, 0.5], "label_smoothing": 0.3}
    assert np.isfinite(cross_entropy(z, [0], **prior))


def test_a_row_shift_changes_nothing(rng):
    z, labels = rng.normal(size=(N, K)), rng.integers(0, K, N)
    plain, gradient = cross_entropy_and_grad(z, labels, label_smoothing=0.1)
    for shift in (1e4, -1e4):
        shifted, shifted_gradient = cross_entropy_and_grad(z + shift, labels, label_smoothing=0.1)
        assert shifted == pytest.approx(plain, abs=1e-11)
        np.testing.assert_allclose(shifted_gradient, gradient, atol=1e-11)


def test_rows_that_are_not_kept_may_hold_anything(rng):
    z, labels = rng.normal(size=(N, K)), rng.integers(0, K, N)
    prior = rng.dirichlet(np.ones(K), N)
    expected, expected_gradient = cross_entropy_and_grad(z[1:], labels[1:], label_smoothing=0.1, prior=prior[1:])
    for poison in (np.nan, INF, -INF):
        z[0], prior[0] = poison, np.nan
        ids = np.where(np.arange(N) == 0, -1, labels)
        loss, gradient = cross_entropy_and_grad(z, ids, label_smoothing=0.1, prior=prior, ignore_index=-1)
        assert loss == pytest.approx(expected, rel=1e-14)
        assert (gradient[0] == 0).all()
        np.testing.assert_allclose(gradient[1:], expected_gradient, atol=1e-15)
        q = np.eye(K)[labels]
        q[0] = np.nan
        masked = cross_entropy(z, q, label_smoothing=0.1, prior=prior, mask=np.arange(N) > 0)
        assert masked == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_kept_is_zero(reduction):
    loss, gradient = cross_entropy_and_grad(np.full((3, K), np.nan), [-100] * 3, reduction=reduction)
    assert (np.asarray(loss) == 0).all()
    assert (gradient == 0).all()
    loss, gradient = cross_entropy_and_grad(np.zeros((0, K)), np.zeros(0, int), reduction=reduction)
    assert np.sum(loss) == 0
    assert gradient.shape == (0, K)
    loss, gradient = cross_entropy_and_grad(np.ones((1, K)), [0], weight=[0.0, 1, 1, 1], label_smoothing=0.1)
    assert loss == 0
    assert (gradient == 0).all()
    assert cross_entropy(np.ones((1, K)), [0], normalizer=0) == 0


def test_what_does_not_count_may_be_anything():
    z, prior = np.zeros((2, 3)), [[1 / 3] * 3, [np.inf] * 3]
    loss = cross_entropy(z, [0, -100], prior=prior, label_smoothing=0.1)
    assert loss == pytest.approx(np.log(3))
    assert cross_entropy(z, [0, 1], weight=[1, 1, np.nan]) == pytest.approx(np.log(3))  # class 2 does not occur


def test_axis_moves_the_classes(rng):
    z, labels = rng.normal(size=(2, K, 3)), rng.integers(0, K, (2, 3))
    rows = rng.dirichlet(np.ones(K), (2, 3))
    last, gradient = cross_entropy_and_grad(np.moveaxis(z, 1, -1), labels, label_smoothing=0.2, prior=rows)
    moved, moved_gradient = cross_entropy_and_grad(
        z, labels, label_smoothing=0.2, prior=np.moveaxis(rows, -1, 1), axis=1
    )
    assert moved == last
    assert np.array_equal(moved_gradient, np.moveaxis(gradient, -1, 1))
    square, table = rng.normal(size=(K, K)), rng.dirichlet(np.ones(K), K)  # a table is never transposed
    labels = rng.integers(0, K, K)
    by_row = cross_entropy(square.T, labels, label_smoothing=0.2, class_prior=table)
    assert cross_entropy(square, labels, label_smoothing=0.2, class_prior=table, axis=0) == by_row


def test_one_row_and_one_class():
    assert cross_entropy([1.0, 2.0], 1) == pytest.approx(np.log1p(np.exp(-1)))
    assert cross_entropy([[3.0]], [0], label_smoothing=0.5) == 0


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        ([[0.0, 1]], [2], {}, r"target must be class ids in 0..1; got 2 at index 0"),
        (
            [[0.0, 1]],
            [0.5],
            {},
            r"target must be class ids of shape \(1,\) or targets laid out like the logits; got float64",
        ),
        ([[0.0, 1]], [0, 1], {}, r"target must be class ids of shape \(1,\)"),
        ([[0.0, 1]], [[0.9, 0.2]], {}, r"target must be .* got a sum of 1.1 in row 0"),
        (
            np.zeros((3, 2)),
            [[9, 9], [0.5, 0.5], [0.9, 0.2]],
            {"mask": np.array([False, True, True])},
            r"a sum of 1.1 in row 2",
        ),
        ([[0.0, 1]], [0], {"label_smoothing": 1}, r"label_smoothing must be a number in \[0, 1\); got 1"),
        ([[0.0, 1]], [0], {"reduction": None}, r"reduction must be one of 'none', 'sum', 'mean'; got None"),
        ([[0.0, 1]], [0], {"weight_mode": "row"}, r"weight_mode must be one of 'class', 'example'; got 'row'"),
        ([[0.0, 1]], [0], {"weight": [1, 2, 3]}, r"weight must have shape \(2,\); got \(3,\)"),
        ([[0.0, 1]], [0], {"normalizer": 2, "reduction": "sum"}, r"normalizer must be None unless reduction is 'mean'"),
        ([[0.0, 1]], [0], {"normalizer": -1}, r"normalizer must be a number that is finite and not negative; got -1"),
        ([[0.0, 1]], [0], {"normalizer": np.ones(2)}, r"normalizer must be a number .* got shape \(2,\)"),
        ([[0.0, 1]], [[0.5, 0.5]], {"ignore_index": 0}, r"ignore_index must be negative where target is no class ids"),
        ([[0.0j, 1]], [0], {}, r"logits must be real numbers; got dtype complex128"),
        ([[0.0, 1]], [0], {"prior": ["a", "b"]}, r"prior must hold numbers; got dtype <U1"),
        ([[0.0, 1]], [0], {"mask": [1]}, r"mask must be boolean of shape \(1,\)"),
        ([[0.0, 1]], [0], {"class_mask": [False, True]}, r"class_mask must keep the true class"),
        ([[0.0, 1]], [0], {"prior": [1, 1]}, r"prior must be .* got a sum of 2"),
        ([[0.0, 1]], [0], {"axis": 2}, r"axis must be an axis of logits; got 2 for shape \(1, 2\)"),
        ([[-INF, -INF]], [0], {}, r"logits must have a finite value in every kept row"),
        (np.zeros((2, 0)), [0, 0], {}, r"logits must have at least one class"),
        (1.0, 0, {}, r"axis must be an axis of logits"),
    ],
)
def test_errors(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, target, **options)


def test_targets_that_are_smoothed_already_are_told_of():
    smoothed = ls.smooth_labels([2, 0, 1], 0.1, num_classes=K)
    message = (
        r"target looks like labels that are smoothed already, by 0\.1, and label_smoothing=0\.2 smooths them again, to "
        r"0\.28; give the labels as they are, or label_smoothing=0"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        cross_entropy(np.zeros((3, K)), smoothed, label_smoothing=0.2)
    assert caught[0].filename == __file__
    rows = np.concatenate([smoothed, np.full((1, K), np.nan)])
    with pytest.warns(UserWarning, match="smoothed already, by 0.1,"):
        cross_entropy(np.zeros((4, K)), rows, mask=np.arange(4) < 3, label_smoothing=0.2)
    mixed = 0.3 * smoothed + 0.7 * smoothed[::-1]
    for innocent in (smoothed[:1], mixed, np.eye(K)[:3], np.full((3, K), 1 / K), smoothed * [[1], [1], [0]] + [[0], [0], [1 / K]]):  # fmt: skip
        cross_entropy(np.zeros((len(innocent), K)), innocent, label_smoothing=0.2)  # warnings are errors here
    cross_entropy(np.zeros((3, K)), smoothed)
