"""What evaluation sums over the classes of a row: by NumPy and by each of the CPU kernels, against the formulas."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax

from labelsmooth.evaluation import _sums, fit_temperature
from labelsmooth.evaluation.rows import rows, rows_at
from labelsmooth.evaluation.temperature import _derivatives
from tests.test_evaluation import reference

KERNELS = [] if _sums.kernel is None else _sums.kernel.kernels()
TOLERANCES = {"float64": 1e-11, "float32": 3e-6, "float16": 3e-6}


@pytest.fixture(params=["NumPy", *KERNELS])
def path(request, monkeypatch):
    """Every sum is taken by this one; the kernel says how many it took, NumPy nothing."""
    kernel, name, calls = _sums.kernel, request.param, []

    def call(function):
        def counted(*arrays):
            calls.append(function)
            return getattr(kernel, function)(*arrays, kernel=name)

        return counted

    own = None if name == "NumPy" else SimpleNamespace(row_sums=call("row_sums"), slopes=call("slopes"))
    monkeypatch.setattr(_sums, "kernel", own)
    return SimpleNamespace(name=name, calls=calls)


def sample(count, n=60, seed=0):
    """Logits on a grid of 1/64, with ties, -inf, and rows that are nearly sure; labels, at times of a logit of -inf."""
    rng = np.random.default_rng(seed + count)
    labels = rng.integers(0, count, n)
    logits = np.round(rng.normal(size=(n, count)) * 128) / 64
    logits[np.arange(n), labels] += rng.choice([0.0, 2.0, 30.0], n)
    logits[::3] = np.round(logits[::3])
    if count > 1:
        logits[::5, rng.integers(0, count)] = -np.inf
        logits[::5, 0] = np.where(np.isneginf(logits[::5]).all(1), 0, logits[::5, 0])
    logits[1::4] += 256
    return logits, labels


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 15, 16, 17, 64, 65, 127, 300, 1000, 2100])
def test_rows_by_the_formulas(path, count, name):
    logits, labels = sample(count)
    logits = logits.astype(name)
    for temperature, found in zip((1.0, 0.4), rows_at(logits, labels, (1.0, 0.4), 15), strict=True):
        wanted = reference(logits, labels, temperature)
        if count <= 5:
            wanted["top5"][:] = True
        for key, expected in wanted.items():
            tolerance = TOLERANCES[name] * (10 if key == "normalised" else 1)  # Σz² - (Σz)²/K of z far from their mean
            np.testing.assert_allclose(getattr(found, key), expected, rtol=tolerance, atol=tolerance, err_msg=key)
        for key in ("predicted", "hits", "top5"):
            assert np.array_equal(getattr(found, key), wanted[key])
    assert bool(path.calls) == (path.name != "NumPy")


@pytest.mark.parametrize(("count", "bins"), [(1, 15), (2, 1), (7, 15), (65, 2), (130, 15), (300, 1000)])
@pytest.mark.parametrize("name", ["float64", "float32"])
def test_cells_by_brute_force(path, name, count, bins):
    rng = np.random.default_rng(count)
    labels = rng.integers(0, count, 2000)
    logits = (rng.normal(size=(2000, count)) * 1.5).astype(name)
    logits[np.arange(2000), labels] += rng.choice([0, 3, 8], 2000).astype(name)
    p = softmax(logits / np.float64(0.7), 1)
    bin_of, ids = np.maximum(np.ceil(p * bins).astype(int) - 1, 0), np.arange(count)
    for start in (0, 1999):  # and a single row
        found = rows(logits[start:], labels[start:], temperature=0.7, bins=bins).classwise
        cell = (ids * bins + bin_of[start:]).ravel()
        counts, mass, variance = (
            np.bincount(cell, values.ravel(), count * bins).reshape(count, bins)
            for values in (np.ones_like(p[start:]), p[start:], p[start:] * (1 - p[start:]))
        )
        own = bin_of[start:][np.arange(2000 - start), labels[start:]]
        hits = np.bincount(labels[start:] * bins + own, minlength=count * bins).reshape(count, bins)
        if name == "float64":
            assert np.array_equal(found.counts, counts)
            assert np.array_equal(found.hits, hits)
        assert np.abs(found.counts - counts).sum() <= 4  # float32 may round a p over an edge
        kept = found.counts == counts
        tolerance = 1e-10 if name == "float64" else 5e-6
        np.testing.assert_allclose(found.confidence[kept], mass[kept], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.variance[kept], variance[kept], rtol=tolerance, atol=tolerance)


def test_p_on_an_edge_is_in_the_bin_below(path):
    for dtype in (np.float32, np.float64):
        for count, bins in ((2, 2), (2, 4), (4, 4), (32, 1000)):
            found = rows(np.zeros((3, count), dtype), [0, 1, 1], bins=bins)  # p is 1 / count, exactly
            b = int(np.ceil(bins / count)) - 1
            assert found.classwise.counts[:, b].tolist() == [3] * count
            sure = rows(np.where(np.arange(count) == 0, 900, -900)[None].astype(dtype), [0], bins=bins)
            assert sure.classwise.counts[0, bins - 1] == 1
            assert sure.classwise.counts[1:, 0].tolist() == [1] * (count - 1)


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("count", [1, 2, 7, 16, 33, 300, 3000])
def test_slopes_by_the_formulas(path, count, name):
    logits, labels = sample(count, 80, 1)
    labels[:3] = np.isneginf(logits[0]).argmax() if count > 1 else 0  # of a row whose label is impossible, nothing
    logits = logits.astype(name)
    z = np.maximum(logits.astype(np.float64), -1e5)
    z -= z.max(1, keepdims=True)
    each = np.arange(80)
    possible = ~np.isneginf(logits[each, labels])
    for beta in (0.01, 0.5, 1.0, 3.0, 100.0):
        p = softmax(z * beta, 1)
        mean = (p * z).sum(1)
        slope, curvature = (
            (mean - z[each, labels])[possible].sum(),
            (p * (z - mean[:, None]) ** 2).sum(1)[possible].sum(),
        )
        found = _derivatives(logits, labels, np.log(beta), "")
        scale = np.abs(mean).sum() + np.abs(z[each, labels])[possible].sum() + (p * z**2).sum()
        assert found == pytest.approx((slope, curvature), abs=TOLERANCES[name] * scale)
    assert bool(path.calls) == (path.name != "NumPy")


def test_layouts(path):
    logits, labels = sample(33, 200)
    plain, temperature = rows(logits, labels), fit_temperature(logits, labels)
    many = np.zeros((200, 3, 33), ">f8")
    many[:, 1] = logits
    frozen = logits.copy()
    frozen.flags.writeable = False
    packed = np.frombuffer(b"\0" + logits.tobytes(), np.uint8)[1:].view(np.float64).reshape(200, 33)  # not aligned
    for other in (
        np.asfortranarray(logits),
        logits.repeat(2, 1)[:, ::2],
        many[:, 1],
        frozen,
        packed,
        logits[::-1][::-1],
    ):
        found = rows(other, labels)
        for key in ("predicted", "top5", "nll", "brier", "confidence", "margin", "normalised"):
            assert np.array_equal(getattr(found, key), getattr(plain, key)), key
        assert fit_temperature(other, labels) == temperature


@pytest.mark.parametrize("name", TOLERANCES)
def test_rows_without_a_softmax(path, name):
    for count in (2, 16, 37, 700):
        for value in (np.nan, np.inf):
            for at in (0, count // 2, count - 1):
                logits = np.zeros((5, count), name)
                logits[3, at] = value
                logits[:, (at + 1) % count] = -np.inf
                for function in (rows, fit_temperature):
                    with pytest.raises(ValueError, match=rf"logits must be finite or -inf; got {value} in row 3$"):
                        function(logits, [0] * 5)
        logits = np.zeros((5, count), name)
        logits[2] = -np.inf
        for function in (rows, fit_temperature):
            with pytest.raises(ValueError, match="have a finite value in every row; got -inf in all of row 2$"):
                function(logits, [0] * 5)
    logits = np.zeros((45_000, 2), name)
    logits[30_000, 1] = np.nan  # first seen in the rows that the search starts from
    with pytest.raises(ValueError, match="got nan in row 30000$"):
        fit_temperature(logits, np.zeros(45_000, int))


def test_differences_that_overflow(path):
    for dtype in (np.float32, np.float64):
        most = np.finfo(dtype).max
        logits = np.array([[most, -most, 0], [-most, most, -np.inf], [0.0, 1.0, 0.5]], dtype)
        found = rows(logits, [0, 1, 1])
        assert found.hits.all()
        np.testing.assert_allclose(found.nll, [0, 0, np.log(1 + np.exp(-1) + np.exp(-0.5))], rtol=1e-6, atol=1e-300)
        np.testing.assert_allclose(found.confidence, np.exp(-found.nll))
        assert rows(logits, [1, 0, 1]).nll[:2].tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("name", TOLERANCES)
def test_temperatures_beyond_the_range_of_the_logits(path, name):
    logits = np.array([[3.0, 1.0, -np.inf], [0.0, 2.0, 1.0]] * 9).astype(name)
    for temperature, confidence in ((1e-310, [1, 1]), (1e-60, [1, 1]), (1e60, [1 / 2, 1 / 3]), (1e308, [1 / 2, 1 / 3])):
        found = rows(logits, [0, 1] * 9, temperature=temperature)
        np.testing.assert_allclose(found.confidence, confidence * 9, rtol=1e-6)
        np.testing.assert_allclose(found.nll, -np.log(confidence * 9), rtol=1e-6, atol=1e-300)
        assert found.classwise.counts.sum() == 3 * 18


@pytest.mark.skipif(not KERNELS, reason="installed without a compiler")
def test_the_kernel_refuses_what_is_not_its_own():
    logits, labels, edges = np.zeros((4, 3), np.float32), np.zeros(4, np.int64), np.array([0, 0.5, 1], np.float32)
    ids, numbers, cells, sums = np.empty((2, 4), np.int64), np.empty((8, 4)), np.zeros((1, 3, 6)), np.zeros(2)
    right = dict(logits=logits, labels=labels, inverse=[1.0], edges=edges, ids=ids, numbers=numbers, cells=cells)
    assert _sums.kernel.row_sums(**right) == -1
    for wrong in (
        {"logits": logits.astype(np.float16)},
        {"logits": logits[0]},
        {"logits": np.asfortranarray(logits)},
        {"labels": labels.astype(np.int32)},
        {"labels": labels[:3]},
        {"labels": labels + 3},
        {"labels": labels - 1},
        {"edges": edges.astype(np.float64)},
        {"edges": edges[:1]},
        {"ids": ids[:1]},
        {"numbers": numbers[:7]},
        {"numbers": numbers.astype(np.float32)},
        {"cells": cells[:, :2]},
        {"inverse": [1.0, 2.0]},
        {"kernel": "fast"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}|numbers"):
            _sums.kernel.row_sums(**(right | wrong))
    for wrong in ({"labels": labels + 3}, {"sums": np.zeros(3)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            _sums.kernel.slopes(**({"logits": logits, "labels": labels, "beta": 1.0, "sums": sums} | wrong))
