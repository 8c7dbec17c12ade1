"""`labelsmooth.jax` beside optax's losses, and JAX's transformations; tests/contract binds it to the reference."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from labelsmooth import losses, smooth_labels
from labelsmooth.jax import cross_entropy

INF = float("inf")
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(4, 5)) * 3, jnp.float32)
Y = jnp.array([0, 4, 2, 2])
Q = jnp.asarray(RNG.dirichlet(np.ones(5), 4), jnp.float32)
PRIOR = jnp.array([0.1, 0.2, 0.3, 0.2, 0.2])
KEPT = jnp.array([True, False, True, True])
ELEMENTS = jnp.asarray(RNG.random((4, 5)) < 0.6).at[jnp.arange(4), Y].set(True)


def close(ours, theirs):
    """Within 16·eps of the largest, for losses and gradients of order 1."""
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.shape == other.shape
        bound = 16 * 2**-23 * max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=0, atol=bound)


def with_grad(function, *arguments, **options):
    def total(z):
        loss = function(z, *arguments, **options)
        return loss.sum(), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(Z)
    return loss, gradient


# Beside optax.


@pytest.mark.parametrize("where", [None, KEPT, ELEMENTS], ids=["all", "rows", "elements"])
def test_in_the_place_of_optax(where):
    ours = with_grad(cross_entropy, Y, where=where)
    if where is None or where.ndim == 2:
        close(ours, with_grad(optax.softmax_cross_entropy_with_integer_labels, Y, where=where))
    one_hot = jax.nn.one_hot(Y, 5)
    close(with_grad(cross_entropy, one_hot, where=where), ours)
    if where is None:
        close(with_grad(cross_entropy, Q), with_grad(optax.softmax_cross_entropy, Q))


@pytest.mark.parametrize("where", [None, ELEMENTS], ids=["all", "elements"])
def test_smoothing_is_that_of_optax_smooth_labels(where):
    one_hot = jax.nn.one_hot(Y, 5)
    smoothed = optax.smooth_labels(one_hot, 0.1, where=where)
    if where is not None:
        smoothed = jnp.where(where, smoothed, 0)
    expected = with_grad(lambda z: jnp.where(smoothed == 0, 0, -smoothed * jax.nn.log_softmax(z, -1, where)).sum(-1))
    if where is None:
        close(expected, with_grad(optax.softmax_cross_entropy, smoothed))
    for labels in (Y, one_hot, one_hot.astype(int)):
        close(with_grad(cross_entropy, labels, label_smoothing=0.1, where=where), expected)


def test_where_says_mask_or_class_mask_and_a_row_without_classes_is_not_kept():
    assert jnp.array_equal(cross_entropy(Z, Y, where=KEPT), cross_entropy(Z, Y, mask=KEPT))
    assert jnp.array_equal(cross_entropy(Z, Y, where=ELEMENTS), cross_entropy(Z, Y, class_mask=ELEMENTS))
    nothing = ELEMENTS.at[1].set(False)
    loss, gradient = with_grad(cross_entropy, Y, where=nothing, label_smoothing=0.1)
    expected = cross_entropy(Z, Y, where=ELEMENTS, label_smoothing=0.1)
    assert loss[1] == 0
    assert jnp.array_equal(loss[KEPT], expected[KEPT])
    assert bool((gradient[1] == 0).all())


# Transformations.

OPTIONS = [
    {},
    {"prior": PRIOR, "mask": KEPT},
    {"class_prior": jnp.asarray(RNG.dirichlet(np.ones(5), 5), jnp.float32), "weight": PRIOR * 4},
    {"class_mask": ELEMENTS | (Q > 0.2), "weight": PRIOR, "weight_mode": "example"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "prior", "class_prior", "class_mask"])
def test_derivatives_of_every_order_and_direction(options):
    with jax.enable_x64(True):
        arrays = {
            name: jnp.asarray(x, jnp.float64) if name in ("prior", "class_prior", "weight") else x
            for name, x in options.items()
        }
        for name in ("prior", "class_prior"):
            if name in arrays:
                arrays[name] = arrays[name] / arrays[name].sum(-1, keepdims=True)

        def rows(z):
            return cross_entropy(z, Y, label_smoothing=0.2, **arrays)

        z = jnp.asarray(Z, jnp.float64) / 3
        forward, backward = jax.jit(lambda z: (jax.jacfwd(rows)(z), jax.jacrev(rows)(z)))(z)
        np.testing.assert_allclose(forward, backward, rtol=0, atol=1e-14)
        gradient = jax.jit(jax.grad(lambda z: rows(z).sum()))
        check_grads(gradient, (z,), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_vmap_gives_the_rows_and_their_gradients():
    for labels in (Y, Q):
        rows = cross_entropy(Z, labels, label_smoothing=0.1)
        close(jax.vmap(lambda z, y: cross_entropy(z, y, label_smoothing=0.1))(Z, labels), rows)
        per_example = jax.vmap(jax.grad(lambda z, y: cross_entropy(z, y, label_smoothing=0.1)))(Z, labels)
        close(per_example, with_grad(cross_entropy, labels, label_smoothing=0.1)[1])


def test_smoothing_may_be_traced_and_differentiated():
    compiled = jax.jit(lambda e, **options: cross_entropy(Z, Y, label_smoothing=e, **options))
    for smoothing, options in itertools.product((0.0, 0.1), ({}, {"prior": PRIOR}, {"class_mask": ELEMENTS})):
        close(compiled(smoothing, **options), cross_entropy(Z, Y, label_smoothing=smoothing, **options))
    slope = jax.grad(lambda e: cross_entropy(Z, Y, label_smoothing=e).sum())(0.1)
    cross = cross_entropy(Z, jnp.full((4, 5), 0.2)).sum() - cross_entropy(Z, Y).sum()  # H(u,p) - H(q,p)
    assert float(slope) == pytest.approx(float(cross), rel=1e-5)
    infinite = jnp.array([[0.0, -INF, 1.0]])
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda z, e: cross_entropy(z, jnp.array([0]), label_smoothing=e, reduction="mean"))
    )(infinite, 0.0)
    assert float(loss) == pytest.approx(np.log(1 + np.e))  # 0·(-inf) is 0, for a traced ε of 0 too
    assert bool(jnp.isfinite(gradient).all())
    with jax.enable_x64(True):
        assert jax.jit(lambda z, e: cross_entropy(z, Y, label_smoothing=e))(Z, 0.1).dtype == jnp.float32


def test_gradient_with_respect_to_targets_prior_and_weight():
    with jax.enable_x64(True):
        z, q, u, w = (jnp.asarray(x, jnp.float64) for x in (Z, Q, PRIOR, PRIOR * 5))
        q = (q / q.sum(-1, keepdims=True)).at[0].set(jnp.array([0, 0, 0, 0.4, 0.6]))
        u = u / u.sum()

        def loss(q, u, w):
            return cross_entropy(z, q, prior=u, weight=w, label_smoothing=0.2, reduction="mean", validate=False)

        check_grads(jax.jit(loss), (q, u, w), order=1, atol=1e-6, rtol=1e-6)
        slope = jax.grad(lambda q: cross_entropy(z, q).sum())(q)
        np.testing.assert_allclose(slope, -jax.nn.log_softmax(z), rtol=1e-12)  # of zero entries as well


def test_normalizer_accumulates_to_the_whole_batch_and_may_be_traced():
    y = Y.at[1].set(-100)
    whole = cross_entropy(Z, y, label_smoothing=0.1, reduction="mean", weight=PRIOR)
    part = jax.jit(
        lambda z, y, n: cross_entropy(z, y, label_smoothing=0.1, reduction="mean", weight=PRIOR, normalizer=n)
    )
    total = PRIOR[Y[KEPT]].sum()
    close(part(Z[:2], y[:2], total) + part(Z[2:], y[2:], total), whole)
    assert part(Z, y, 0) == 0


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("given", [jnp.float16, jnp.bfloat16, jnp.float32, np.float64])
def test_dtypes_of_loss_and_gradient(given, x64):
    with jax.enable_x64(x64):
        z = jnp.asarray(np.asarray(Z), jnp.float32).astype(given if x64 or given != np.float64 else jnp.float32)
        expected = jnp.float64 if z.dtype == jnp.float64 else jnp.float32
        for labels in (Y, np.asarray(Y, np.int64), np.asarray(Q, np.float64)):  # which promote nothing
            loss, gradient = jax.value_and_grad(
                lambda z, y=labels: cross_entropy(
                    z, y, reduction="mean", prior=np.asarray(PRIOR, np.float64), label_smoothing=0.1, validate=False
                )
            )(z)
            assert loss.dtype == expected
            assert gradient.dtype == z.dtype


def test_strict_promotion_and_debug_nans_find_nothing():
    z = Z.at[0, 1].set(-INF).at[1].set(jnp.inf)
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        for target in (Y, Q.at[0].set(jnp.array([0.4, 0, 0, 0, 0.6]))):
            for options in ({"mask": KEPT}, {"mask": KEPT, "class_mask": z > -INF, "label_smoothing": 0.1}):
                options = options | {"weight": PRIOR, "reduction": "mean"}
                grad = jax.jit(jax.value_and_grad(lambda z, y=target, o=options: cross_entropy(z, y, **o)))
                assert bool(jnp.isfinite(grad(z)[0]))


def test_axis_and_arrays_of_numpy_and_lists():
    z, q = np.asarray(Z), np.asarray(Q)
    expected = cross_entropy(Z, Y, label_smoothing=0.1)
    close(cross_entropy(z.T, np.asarray(Y), axis=0, label_smoothing=0.1), expected)
    close(cross_entropy(z.tolist(), Y.tolist(), label_smoothing=0.1), expected)
    close(cross_entropy(z.T, q.T, axis=np.int64(-2), prior=np.asarray(Q).T, label_smoothing=0.1),
          cross_entropy(Z, Q, prior=Q, label_smoothing=0.1))  # fmt: skip


def test_ignore_index_never_wraps_around():
    for dtype, ignore_index in ((np.uint8, -254), (np.int8, 258), (np.uint8, 258), (np.int64, 2**33 + 2)):
        close(cross_entropy(Z, np.asarray(Y, dtype), ignore_index=ignore_index), cross_entropy(Z, Y))
    close(cross_entropy(Z, Y, ignore_index=2), jnp.where(Y == 2, 0, cross_entropy(Z, Y)))


# What is checked.


def test_what_is_traced_is_not_checked_but_loud():
    bad, twice, table = jnp.array([0, 5, -1, -100]), PRIOR * 2, jnp.eye(5).at[3, 0].set(0.1)
    rows = jax.jit(cross_entropy)(Z, bad)
    assert rows[0] == cross_entropy(Z, Y)[0]
    assert bool(jnp.isnan(rows[1:3]).all())
    assert rows[3] == 0
    assert bool(jnp.isfinite(jax.jit(cross_entropy)(Z, Q * 2)).all())
    assert bool(jnp.isnan(cross_entropy(Z, bad, validate=False)[1]))
    with pytest.raises(ValueError, match=r"labels must be class ids in 0..4; got 5 at index 1"):
        jax.grad(lambda z: cross_entropy(z, bad).sum())(Z)  # the labels are at hand there
    with pytest.raises(ValueError, match=r"prior must be .* got a sum of 2"):
        jax.jit(lambda z, y: cross_entropy(z, y, prior=twice))(Z, Y)  # and the prior here
    with pytest.raises(ValueError, match=r"class_prior must be .* got a sum of 1.1 in row 3"):
        jax.jit(lambda z, y: cross_entropy(z, y, class_prior=table))(Z, Y)


def test_rows_of_a_prior_count_only_where_the_row_is_known_to_be_kept():
    rows = jnp.full((4, 5), 0.2).at[1].set(jnp.nan)
    assert bool(jnp.isfinite(cross_entropy(Z, Y, prior=rows, mask=KEPT, label_smoothing=0.1)).all())
    assert bool(jnp.isfinite(jax.jit(lambda y: cross_entropy(Z, y, prior=rows))(Y.at[1].set(-100))).all())
    with pytest.raises(ValueError, match=r"prior must be non-negative .* got nan at index 1, 0"):
        cross_entropy(Z, Y, prior=rows)


EMPTY = Z.at[1].set(-INF)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (Z, [0, 1, 2, 5], {}, r"labels must be class ids in 0..4; got 5 at index 3"),
        (Z, [0, -1, 2, 3], {}, r"labels must be class ids in 0..4; got -1 at index 1"),
        (Z, np.array([0, 1, 2, 2**32 + 1]), {}, r"labels must be class ids in 0..4; got 4294967297 at index 3"),
        (Z, [0.0, 1.0, 2.0, 3.0], {}, r"labels must be class ids of shape \(4,\) or targets of shape \(4, 5\); got float64 of shape \(4,\)"),
        (Z, jnp.array([0]), {}, r"labels must be class ids of shape \(4,\) .* got int32 of shape \(1,\)"),
        (Z, KEPT, {}, r"labels must be class ids of shape \(4,\) .* got bool"),
        (Z, Q * 1.1, {}, r"labels must be non-negative and sum to 1 over the classes; got a sum of 1.1 in row 0"),
        (Z, jnp.ones((4, 5), int), {}, r"labels must be .* got a sum of 5 in row 0"),
        (Z, -Q, {}, r"labels must be non-negative"),
        (Z, None, {}, r"labels must be an array of real numbers; got dtype object"),
        (Z, [[1], [2, 3]], {}, r"labels must be an array of numbers; got <class 'list'>"),
        (Z.astype(int), Y, {}, r"logits must have a float dtype; got int32"),
        (Z.astype(complex), Y, {}, r"logits must be an array of real numbers; got dtype complex64"),
        (jnp.zeros((4, 0)), Y, {}, r"logits must have at least one class; got \(4, 0\)"),
        (jnp.zeros(()), Y, {}, r"axis must be an axis of logits; got -1 for shape \(\)"),
        (EMPTY, Y, {}, r"logits must have a finite value in every kept row; got a row that is -inf"),
        (Z.at[:, :3].set(-INF), Y, {"class_mask": jnp.arange(5) < 3}, r"class_mask must keep the true class .* row 1"),
        (Z.at[:, :3].set(-INF), Y % 3, {"class_mask": jnp.arange(5) < 3}, r"logits must have a finite value"),
        (Z, Y, {"axis": 2}, r"axis must be an axis of logits; got 2 for shape \(4, 5\)"),
        (Z, Y, {"axis": (0, 1)}, r"axis must be an axis of logits; got \(0, 1\)"),
        (Z, Y, {"label_smoothing": 1.0}, r"label_smoothing must be a number in \[0, 1\); got 1.0"),
        (Z, Y, {"label_smoothing": jnp.array([0.1, 0.2])}, r"label_smoothing must be a number in \[0, 1\)"),
        (Z, Y, {"reduction": None}, r"reduction must be one of 'none', 'sum', 'mean'; got None"),
        (Z, Y, {"weight_mode": "row"}, r"weight_mode must be one of 'class', 'example'; got 'row'"),
        (Z, Y, {"weight": jnp.ones(4)}, r"weight must have shape \(5,\); got \(4,\)"),
        (Z, Y, {"weight": "heavy"}, r"weight must be an array of real numbers"),
        (Z, Y, {"prior": jnp.ones(5)}, r"prior must be non-negative and sum to 1 .* got a sum of 5"),
        (Z, Y, {"prior": jnp.ones((5, 4)) / 4}, r"prior must have shape \(5,\) or \(4, 5\); got \(5, 4\)"),
        (Z[0], Y[0], {"prior": jnp.ones(4) / 4}, r"prior must have shape \(5,\); got \(4,\)"),
        (Z, Y, {"class_prior": jnp.eye(5), "prior": PRIOR}, r"prior must be None where class_prior is given; got both"),
        (Z, Y, {"class_prior": PRIOR}, r"class_prior must have shape \(5, 5\); got \(5,\)"),
        (Z, Y, {"mask": jnp.ones(4)}, r"mask must be boolean; got float32"),
        (Z, Y, {"mask": KEPT[:2]}, r"mask must have shape \(4,\); got \(2,\)"),
        (Z, Y, {"class_mask": jnp.arange(5) < 4}, r"class_mask must keep the true class of every kept row; got a masked true class in row 1"),
        (Z, Q, {"class_mask": jnp.arange(5) < 4}, r"class_mask must keep the true class"),
        (Z, Y, {"class_mask": jnp.arange(5) != 1, "prior": jnp.eye(5)[1]}, r"class_mask must keep a class that the prior gives mass to"),
        (Z, Y, {"where": KEPT, "mask": KEPT}, r"where must be None where mask or class_mask is given; got both"),
        (Z, Y, {"where": KEPT[:, None]}, r"where must have shape \(4,\) or \(4, 5\); got \(4, 1\)"),
        (Z, Y, {"where": ELEMENTS.astype(int)}, r"where must be boolean; got int32"),
        (Z, Y, {"normalizer": 3}, r"normalizer must be None unless reduction is 'mean'; got reduction='none'"),
        (Z, Y, {"normalizer": jnp.nan, "reduction": "mean"}, r"normalizer must be a number that is finite and not negative; got nan"),
        (Z, Y, {"normalizer": jnp.float32(-1), "reduction": "mean"}, r"normalizer must be a number .* got -1"),
        (Z, Y, {"normalizer": jnp.ones(2), "reduction": "mean"}, r"normalizer must be a number .* got shape \(2,\)"),
        (Z, Y, {"ignore_index": 0.5}, r"ignore_index must be a whole number; got 0.5"),
        (Z, Q, {"ignore_index": 0}, r"ignore_index must be negative where labels are no class ids \(use mask\); got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_the_rule_and_the_value(logits, labels, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, labels, **options)


def test_targets_that_are_smoothed_already_are_told_of():
    smoothed = smooth_labels(Y, 0.1, num_classes=5)
    message = (
        r"labels looks like labels that are smoothed already, by 0\.1, and label_smoothing=0\.1 smooths them again"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        cross_entropy(Z, smoothed, label_smoothing=0.1)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        cross_entropy(Z.T, smoothed.T, label_smoothing=0.1, axis=0)
    jax.jit(lambda e: cross_entropy(Z, smoothed, label_smoothing=e))(0.1)  # what is traced is never checked
    cross_entropy(Z, smoothed)


def test_a_traced_argument_of_the_wrong_kind_is_told():
    with pytest.raises(ValueError, match=r"label_smoothing must be a number in \[0, 1\); got shape \(2,\)"):
        jax.jit(lambda e: cross_entropy(Z, Y, label_smoothing=e))(jnp.ones(2))
    for name in ("axis", "ignore_index"):
        with pytest.raises(ValueError, match=f"{name} must be .* JitTracer|{name} must be .*[Tt]race"):
            jax.jit(cross_entropy)(Z, Y, **{name: -1})


def test_values_on_a_device_are_read_only_if_asked(monkeypatch):
    """There is no accelerator here: the CPU is taken for one."""
    monkeypatch.setattr(type(Z), "devices", lambda self: [SimpleNamespace(platform="gpu")])
    assert bool(jnp.isfinite(cross_entropy(Z, Q * 2)).all())
    with pytest.raises(ValueError, match="labels must be"):
        cross_entropy(Z, Q * 2, validate=True)
    with pytest.raises(ValueError, match="labels must be"):
        cross_entropy(Z, np.asarray(Q * 2))  # NumPy's are always at hand


def test_reference_by_hand():
    assert float(cross_entropy(jnp.array([2.0, 0, 0]), 0, label_smoothing=0.1)) == pytest.approx(
        float(losses.cross_entropy([2.0, 0, 0], 0, label_smoothing=0.1)), rel=1e-6
    )
