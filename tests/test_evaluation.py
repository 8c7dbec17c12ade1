"""Metrics against scikit-learn, which is used nowhere in them, and predictions files."""

import io
import json
import zipfile

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax

from labelsmooth._errors import DataError
from labelsmooth.cli import main
from labelsmooth.evaluation import (
    Predictions,
    _blocks,
    adaptive_ece,
    augrc,
    aurc,
    bootstrap_mean,
    check_disjoint,
    class_separation,
    coverage_at_risk,
    ece,
    evaluate,
    expected_adaptive_ece,
    expected_ece,
    fit_temperature,
    gap,
    load_predictions,
    mce,
    project,
    wilson,
)
from labelsmooth.evaluation.rows import rows, rows_at


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    logits = rng.normal(size=(300, 6)).astype(np.float32)  # class 5 never occurs
    logits[np.arange(300), labels] += 1.5
    return logits, labels


def test_agrees_with_scikit_learn(predictions):
    logits, labels = predictions
    result = evaluate(logits, labels, list("abcdef"))
    predicted = logits.argmax(1)
    theirs = sklearn.metrics.classification_report(
        labels, predicted, labels=range(6), target_names=list("abcdef"), output_dict=True, zero_division=0
    )
    for row in (*result.classes, *result.averages()):
        expected = theirs[row.name]
        assert row.precision == pytest.approx(expected["precision"])
        assert row.recall == pytest.approx(expected["recall"])
        assert row.f1 == pytest.approx(expected["f1-score"])
        assert row.support == expected["support"]
    assert result.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert result.nll == pytest.approx(
        sklearn.metrics.log_loss(labels, softmax(logits.astype(float), 1), labels=range(6))
    )
    assert np.array_equal(result.confusion, sklearn.metrics.confusion_matrix(labels, predicted, labels=range(6)))
    text = result.report().splitlines()
    their_text = sklearn.metrics.classification_report(
        labels, predicted, labels=range(6), target_names=list("abcdef"), digits=4, zero_division=0
    ).splitlines()
    assert [line.split() for line in text] == [line.split() for line in their_text]


def test_infinite_logits_ties_and_errors():
    result = evaluate(np.array([[0.0, -np.inf], [1.0, 1.0]]), [0, 1])
    assert result.accuracy == 0.5
    assert result.nll == pytest.approx(np.log(2) / 2)
    assert evaluate([[0.0, -np.inf]], [1]).nll == np.inf
    for logits, labels, names, message in (
        ([[0.0, np.nan]], [0], None, r"logits must be finite or -inf; got nan in row 0"),
        ([[0.0, 1.0], [0.0, np.inf]], [0, 0], None, r"logits must be finite or -inf; got inf in row 1"),
        ([[-np.inf, -np.inf]], [0], None, r"logits must have a finite value in every row"),
        ([[0.0, 1.0]], [2], None, r"labels must be class ids in 0..1; got 2"),
        ([[0.0, 1.0]], [0, 1], None, r"labels must be class ids of shape \(1,\)"),
        ([0.0, 1.0], [0], None, r"logits must be real numbers of shape \[N, K\]"),
        (np.zeros((0, 3)), [], None, r"logits must be real numbers of shape \[N, K\]"),
        ([[0.0, 1.0]], [0], ["a"], r"class_names must have 2 names, one per class of the logits; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(logits, labels, names)


def test_names_cannot_move_the_terminal():
    assert "\x1b" not in evaluate([[1.0, 0.0]], [0], ["\x1b[31mred", "a\nb"]).report()
    assert len(evaluate([[1.0, 0.0]], [0], ["a", "a\nb"]).report().splitlines()) == 8


def test_predictions_files(tmp_path, predictions):
    logits, labels = predictions
    path = tmp_path / "p.npz"
    Predictions(logits, labels, classes=("a", "ß", "<b>", "d", "e", "f")).save(path)
    loaded = load_predictions(path)
    assert np.array_equal(loaded.logits, logits)
    assert loaded.classes == ("a", "ß", "<b>", "d", "e", "f")
    assert loaded.features is None
    np.savez(path, logits=logits)
    with pytest.raises(DataError, match=r"has no array called labels; it holds logits"):
        load_predictions(path)
    np.savez(path, logits=np.array([object()]), labels=labels)  # would have to be unpickled
    with pytest.raises(DataError, match=r"is no readable .npz file"):
        load_predictions(path)
    np.savez(path, logits=logits, labels=labels, classes=np.array("abc"))
    with pytest.raises(DataError, match=r"the array classes of .* has shape \(\)"):
        load_predictions(path)
    np.save(tmp_path / "a.npy", logits)
    with pytest.raises(DataError, match=r"is no readable .npz file \(it is a single array"):
        load_predictions(tmp_path / "a.npy")
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"is no readable .npz file"):
        load_predictions(path)
    with pytest.raises(DataError, match=r"there is no file"):
        load_predictions(tmp_path / "gone.npz")


def test_predictions_files_that_are_odd(tmp_path, predictions):
    logits, labels = predictions
    path, folder = tmp_path / "p.npz", tmp_path / "arrays"
    names = np.array(["a", "ß", "c", "d", "e", "f"])
    np.savez(path, logits=logits, labels=labels, classes=np.char.encode(names, "utf-8"), features=logits, other=labels)
    assert load_predictions(str(path)).classes == tuple(names.tolist())
    few = load_predictions(path, only=["classes"])
    assert (few.classes, few.features) == (tuple(names.tolist()), None)
    with pytest.raises(ValueError, match="only must be one of 'logits', .*; got 'other'"):
        load_predictions(path, only=["other"])
    for index in (np.arange(300.0), np.arange(299), np.arange(300)[:, None]):
        np.savez(path, logits=logits, labels=labels, index=index)
        with pytest.raises(
            DataError, match="the array index of .* should be a whole number for each row of the logits"
        ):
            load_predictions(path)
        assert load_predictions(path, only=()).index is None
    np.savez(path, logits=logits, labels=labels, classes=np.array([b"\xff"] * 6))
    with pytest.raises(DataError, match="the array classes of .* is not UTF-8"):
        load_predictions(path)
    folder.mkdir()
    np.save(folder / "labels.npy", labels)
    path.rename(folder / "logits.npy")
    with pytest.raises(DataError, match=r"logits.npy is no readable .npy file \(it is an .npz file\)"):
        load_predictions(folder)
    np.save(folder / "classes.npy", names)
    (folder / "logits.npy").rename(folder / "classes.npy")
    np.save(folder / "logits.npy", logits)
    with pytest.raises(DataError, match=r"classes.npy is no readable .npy file \(it is an .npz file\)"):
        load_predictions(folder)
    assert load_predictions(str(folder), only=["index"]).classes is None


def test_mutated_files_are_damaged_and_never_a_crash(tmp_path, predictions):
    rng, path = np.random.default_rng(0), tmp_path / "p.npz"
    (tmp_path / "f").mkdir()
    array = io.BytesIO()
    np.save(array, predictions[0])
    for _ in range(300):
        content = bytearray(array.getvalue())
        content[rng.integers(10, 100)] = rng.choice(list(b"'(){}[],:#\\\n 09\"\xff"))
        (tmp_path / "f/logits.npy").write_bytes(content)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("logits.npy", content)
        for place in (path, tmp_path / "f"):
            with pytest.raises(DataError):  # it lacks labels at best
                load_predictions(place)


# One pass over the logits.


@pytest.fixture(scope="module")
def many():
    """Logits of several blocks and spans, with ties and -inf."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 30, 5000)
    logits = np.round(rng.normal(size=(5000, 30)) * 2, 2)
    logits[np.arange(5000), labels] += 3
    logits[::7, 4] = -np.inf
    logits[::11] = np.round(logits[::11])  # ties
    labels[::7][labels[::7] == 4] = 3
    return logits, labels


def reference(logits, labels, temperature=1.0):
    """What `rows` says, by the formulas, in float64."""
    z, each = np.asarray(logits, np.float64), np.arange(len(labels))
    p, onehot = softmax(z / temperature, 1), np.eye(z.shape[1])[labels]
    others = np.where(onehot > 0, -np.inf, z).max(1) if z.shape[1] > 1 else -np.inf
    order = np.argsort(-z, axis=1, kind="stable")
    normalised = []
    for row in z:
        kept = row[np.isfinite(row)] - row[np.isfinite(row)].mean()
        norm = np.linalg.norm(kept)
        normalised.append(kept.max() / norm if norm > 1e-12 else 0.0)
    return {
        "predicted": z.argmax(1),
        "hits": z.argmax(1) == labels,
        "top5": (order[:, :5] == np.asarray(labels)[:, None]).any(1),
        "nll": -log_softmax(z / temperature, 1)[each, labels],
        "brier": ((p - onehot) ** 2).sum(1),
        "confidence": p.max(1),
        "margin": (z[each, labels] - others) / temperature,
        "normalised": normalised,
    }


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize(("name", "tolerance"), [("float64", 1e-12), ("float32", 2e-6), ("float16", 2e-6)])
def test_rows_by_the_formulas(many, name, tolerance, temperature):
    logits, labels = many[0].astype(name), many[1]
    found = rows(logits, labels, temperature=temperature)
    for key, expected in reference(logits, labels, temperature).items():
        np.testing.assert_allclose(getattr(found, key), expected, rtol=tolerance, atol=tolerance, err_msg=key)
    for key in ("predicted", "hits", "top5"):
        assert np.array_equal(getattr(found, key), reference(logits, labels)[key])


@pytest.mark.parametrize("count", [1, 2, 5, 6, 1000])
def test_rows_of_any_width(count):
    rng = np.random.default_rng(count)
    for logits in (
        rng.normal(size=(300, count)),
        rng.integers(-3, 3, (300, count)),
        rng.integers(0, 9, (300, count), np.uint8),
    ):
        labels = rng.integers(0, count, 300)
        found, expected = rows(logits, labels), reference(logits, labels)
        for key, value in expected.items():
            np.testing.assert_allclose(getattr(found, key), value, rtol=1e-12, atol=1e-12, err_msg=key)


@given(
    arrays(
        np.float64,
        (4, 7),
        elements=st.one_of(st.floats(-1e4, 1e4, width=16), st.just(-np.inf), st.integers(-2, 2).map(float)),
    ),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
def test_rows_of_anything(logits, labels):
    logits[:, 0] = np.where(np.isneginf(logits).all(1), 0, logits[:, 0])
    found = rows(logits, labels)
    for key, value in reference(logits, labels).items():
        np.testing.assert_allclose(getattr(found, key), value, rtol=1e-7, atol=1e-9, err_msg=key)


def test_confident_rows_keep_their_digits():
    for dtype in (np.float32, np.float64):
        found = rows(np.array([[40.0, 0.0, -5.0]], dtype), [0])
        missing = np.exp(-40.0) + np.exp(-45.0)
        assert found.nll[0] == pytest.approx(missing, rel=1e-6)
        assert found.brier[0] == pytest.approx(missing**2 + np.exp(-80.0) + np.exp(-90.0), rel=1e-6)


def test_huge_masks_are_no_trouble():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 6, 50)
    masked = {}
    for mask in (-np.inf, np.finfo(np.float32).min, -1e9):
        logits[:, 6:] = mask
        masked[mask] = rows(logits, labels)
        np.testing.assert_allclose(masked[mask].nll, rows(logits[:, :6], labels).nll, rtol=1e-6)
        assert np.isfinite(masked[mask].normalised).all()
    np.testing.assert_allclose(masked[-np.inf].normalised, rows(logits[:, :6], labels).normalised, rtol=1e-5)


def test_the_same_digits_on_any_number_of_cores_and_from_a_file(many, monkeypatch, tmp_path):
    logits, labels = many[0].astype(np.float32), many[1]
    np.save(tmp_path / "z.npy", logits)
    results = []
    for cores, source in ((1, logits), (2, logits), (7, np.load(tmp_path / "z.npy", mmap_mode="r"))):
        monkeypatch.setattr(_blocks, "_cores", lambda cores=cores: cores)
        results.append(json.dumps(evaluate(source, labels, validation=(source, labels)).as_dict()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(("entries", "height"), [(1, 1), (30 * 3, 5000), (1 << 30, 1 << 30)])
def test_blocks_of_any_size_say_the_same(many, monkeypatch, entries, height):
    logits, labels = many
    expected = evaluate(logits, labels)
    monkeypatch.setattr(_blocks, "_ENTRIES", entries)
    monkeypatch.setattr(_blocks, "_ROWS", height)
    found = evaluate(logits[:1000], labels[:1000]) if entries == 1 else evaluate(logits, labels)
    if entries == 1:
        expected = evaluate(logits[:1000].copy(), labels[:1000])
    for metric in expected.metrics:
        assert found.metric(metric.key).value == pytest.approx(metric.value, rel=1e-12), metric.key


def test_several_temperatures_in_one_pass(many):
    logits, labels = many
    for temperature, found in zip((1.0, 0.5, 3.0), rows_at(logits, labels, (1.0, 0.5, 3.0), 15), strict=True):
        alone = rows(logits, labels, temperature=temperature)
        for key in ("nll", "brier", "confidence", "margin", "normalised", "top5"):
            assert np.array_equal(getattr(found, key), getattr(alone, key)), key
        assert np.array_equal(found.classwise.confidence, alone.classwise.confidence)


def test_the_first_wrong_row_is_named_wherever_it_is(monkeypatch):
    monkeypatch.setattr(_blocks, "_ROWS", 8)
    logits = np.zeros((2000, 3), np.float32)
    logits[1500:, 1], logits[1999, 0] = np.inf, np.nan
    with pytest.raises(ValueError, match="logits must be finite or -inf; got inf in row 1500"):
        evaluate(logits, np.zeros(2000, int))
    logits[700] = -np.inf
    with pytest.raises(ValueError, match="logits must have a finite value in every row; got -inf in all of row 700"):
        evaluate(logits, np.zeros(2000, int))


# The table.


def test_figures_are_those_of_the_functions(many):
    logits, labels = many
    rng = np.random.default_rng(2)
    held_out, held_labels = rng.normal(size=(500, 30)) * 3, rng.integers(0, 30, 500)
    held_out[np.arange(500), held_labels] += 4
    features = rng.normal(size=(5000, 4)) + np.eye(30, 4)[labels]
    result = evaluate(logits, labels, validation=(held_out, held_labels), features=features, bins=10)
    assert result.temperature == fit_temperature(held_out, held_labels)
    assert [metric.key for metric in result.metrics] == [metric.key for metric in result.scaled]
    for metrics, temperature, diagram in (
        (result.metrics, 1.0, result.reliability),
        (result.scaled, result.temperature, result.scaled_reliability),
    ):
        p = softmax(logits / temperature, 1)
        confidence, hits = p.max(1), logits.argmax(1) == labels
        own = rows(logits, labels, temperature=temperature, bins=10)
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, logits.argmax(1)),
            "top5": own.top5.mean(),
            "nll": sklearn.metrics.log_loss(labels, p),
            "brier": sklearn.metrics.brier_score_loss(labels, p, scale_by_half=False, labels=range(30)),
            "ece": ece(confidence, hits, 10),
            "adaptive_ece": adaptive_ece(own.confidence, hits, 10),
            "classwise_ece": own.classwise.ece(),
            "mce": mce(confidence, hits, 10),
            "gap": gap(confidence, hits),
            "aurc": aurc(own.confidence, hits),
            "augrc": augrc(own.confidence, hits),
            "coverage_at_5": coverage_at_risk(own.confidence, hits),
            "aurc_normalised": aurc(own.normalised, hits),
            "augrc_normalised": augrc(own.normalised, hits),
            "coverage_at_5_normalised": coverage_at_risk(own.normalised, hits),
            "margin": own.margin.mean(),
            "class_separation": class_separation(features, labels),
        }
        assert [metric.key for metric in metrics] == list(expected)
        found = {metric.key: metric for metric in metrics}
        for key, value in expected.items():
            assert found[key].value == pytest.approx(value, rel=1e-10), key
        assert found["ece"].expected == pytest.approx(expected_ece(confidence, 10))
        assert found["adaptive_ece"].expected == pytest.approx(expected_adaptive_ece(own.confidence, 10))
        assert {key for key, metric in found.items() if metric.interval} == {"accuracy", "top5", "nll", "brier"}
        assert {key for key, metric in found.items() if metric.bins == 10} == {
            "ece",
            "adaptive_ece",
            "classwise_ece",
            "mce",
        }
        assert np.nanmax(np.abs(diagram.accuracy - diagram.confidence)) == pytest.approx(found["mce"].value)
    assert result.metric("nll") == result.metrics[2]
    assert result.nll == result.metric("nll").value
    with pytest.raises(ValueError, match="key must be one of 'accuracy', 'top5'"):
        result.metric("acc")


def test_top5_agrees_with_scikit_learn(predictions):
    logits, labels = predictions
    theirs = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(6))
    assert evaluate(logits, labels).metric("top5").value == pytest.approx(theirs)
    assert [metric.key for metric in evaluate(logits[:, :5], labels).metrics][:2] == ["accuracy", "nll"]


def test_table_and_json(many):
    logits, labels = many
    plain = evaluate(logits, labels)
    assert "temperature" not in plain.table()
    assert (plain.temperature, plain.scaled, plain.scaled_reliability) == (None, (), None)
    scaled = evaluate(logits, labels, validation=(logits, labels), bins=12)
    lines = scaled.table().splitlines()
    assert lines[0].startswith("5000 examples ")
    assert lines[0].endswith(f"after temperature scaling, T = {scaled.temperature:.4f}")
    assert len(lines) == 1 + len(scaled.metrics)
    for line, before, after in zip(lines[1:], scaled.metrics, scaled.scaled, strict=True):
        assert line.startswith(before.label)
        assert f"{before.value:.4f}" in line
        expected = "" if after.expected is None else f"  {after.expected:.4f} if perfectly calibrated"
        assert line.endswith(f"  {after.value:.4f}{expected}")
        assert ("12 bins" in line) == ("ECE" in line or "MCE" in line)
        assert ("if perfectly calibrated" in line) == ("ECE" in line)
    as_json = json.loads(json.dumps(scaled.as_dict()))
    assert as_json["temperature"] == scaled.temperature
    metric = scaled.metric("ece")
    assert as_json["metrics"]["ece"] == {
        "value": metric.value, "low": None, "high": None, "expected": metric.expected, "bins": 12,
    }  # fmt: skip
    assert as_json["scaled"]["nll"]["value"] < as_json["metrics"]["nll"]["value"]
    low, high = scaled.metric("nll").interval
    assert (as_json["metrics"]["nll"]["low"], as_json["metrics"]["nll"]["high"]) == (low, high)


def test_infinite_figures_have_no_interval():
    result = evaluate([[0.0, -np.inf], [-np.inf, 0.0]], [1, 1])
    assert result.metric("nll").value == np.inf
    assert result.metric("nll").interval is None
    assert np.isnan(result.metric("margin").value)  # -inf and inf
    assert "inf" in result.table()


def test_validation_must_fit():
    for validation, message in (
        ((np.zeros((2, 4)), [0, 1]), "validation logits must have the 3 classes of the logits; got 4"),
        ((np.zeros((2, 3)), [0, 3]), r"validation labels must be class ids in 0..2; got 3 at index 1"),
        ((np.zeros((2, 3)), [0]), r"validation labels must be class ids of shape \(2,\)"),
        ((np.full((2, 3), np.nan), [0, 1]), "validation logits must be finite or -inf; got nan in row 0"),
        ((np.zeros((0, 3)), []), r"validation logits must be real numbers of shape \[N, K\]"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(np.eye(3), [0, 1, 2], validation=validation)
    with pytest.raises(ValueError, match="features must have 3 rows, one per label; got 4"):
        evaluate(np.eye(3), [0, 1, 2], features=np.zeros((4, 2)))


# Intervals.


@pytest.mark.parametrize("n", [400, 5000])
@pytest.mark.parametrize("shape", ["bool", "exponential", "outliers", "constant"])
def test_intervals_are_those_of_the_ordinary_bootstrap(n, shape):
    rng = np.random.default_rng(4)
    values = {
        "bool": rng.random(n) < 0.3,
        "exponential": rng.exponential(size=n) ** 2,
        "outliers": np.where(np.arange(n) < 5, 1e3, rng.random(n)),
        "constant": np.full(n, 0.25),
    }[shape]
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(4000)])
    wanted, scale = np.quantile(means, [0.05, 0.95]), means.std()
    found = bootstrap_mean(values, level=0.9, draws=4000)
    np.testing.assert_allclose(found, wanted, atol=0.12 * scale + 1e-12)
    assert found == bootstrap_mean(values, level=0.9, draws=4000)
    if shape == "exponential":
        assert found != bootstrap_mean(values, level=0.9, draws=4000, seed=1)
        centre, half = np.mean(found), np.ptp(found) / 2
        assert centre == pytest.approx(values.mean(), abs=0.2 * scale)
        assert half == pytest.approx(1.645 * values.std() / n**0.5, rel=0.06)


def test_errors_of_intervals():
    for values in ([], [np.inf], [[1.0]]):
        with pytest.raises(ValueError, match=r"values must be finite numbers of shape \[N\]"):
            bootstrap_mean(values)
    for draws in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"draws must be a whole number of at least 1; got"):
            bootstrap_mean([1.0], draws=draws)
    for level in (0, 1, np.nan):
        with pytest.raises(ValueError, match=r"level must be a number in \(0, 1\); got"):
            bootstrap_mean([1.0], level=level)


def test_a_share_of_all_or_none_has_an_interval_all_the_same():
    logits = np.eye(7)[np.arange(40) % 7] * 3
    result = evaluate(logits, np.arange(40) % 7)
    z2 = 1.959964**2
    for key in ("accuracy", "top5"):  # Wilson's at a share of 1 is n / (n + z²) to 1
        assert result.metric(key).interval == (pytest.approx(40 / (40 + z2), rel=1e-6), 1.0)
    none = evaluate(logits, (np.arange(40) + 1) % 7)
    assert none.metric("accuracy").interval == (0.0, pytest.approx(z2 / (40 + z2), rel=1e-6))
    assert 0 < none.metric("top5").interval[0] < none.metric("top5").value
    low, high = wilson(np.array([0.9, 0.25]), np.array([100, 8]))
    for share, n, ends in zip((0.9, 0.25), (100, 8), np.stack([low, high], 1), strict=True):
        for end in ends:  # where the normal approximation with the end's own variance just reaches the share
            assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n), rel=1e-6)


# Many classes, and other extremes.


def test_many_classes_have_no_confusion_matrix(predictions, monkeypatch):
    whole = evaluate(*predictions)
    monkeypatch.setattr("labelsmooth.evaluation.metrics.MOST_CONFUSED", 5)
    result = evaluate(*predictions)
    assert result.confusion is None
    assert result.as_dict()["confusion"] is None
    assert result.classes == whole.classes
    assert result.report() == whole.report()


def test_what_is_held_at_once_is_bounded(monkeypatch):
    monkeypatch.setattr(_blocks, "_cores", lambda: 2)
    held, most = [], 0

    def work(blocks, size):
        held.append(sum(at.stop - at.start for at in blocks))
        return held[-1]

    for entries, spans in ((1, 64), (1 << 21, 8), (1 << 30, 1)):
        held.clear()
        taken = 0
        for part in _blocks.over_blocks((64 * 1024, 200), work, entries):
            taken += 1
            most = max(most, len(held) - taken) if spans == 8 else most
            assert part == 64 * 1024 // spans
        assert (taken, len(held)) == (spans, spans)
    assert most <= 2


def test_a_bad_row_has_its_number_in_a_long_file_too():
    logits = np.zeros((45_000, 2))
    logits[30_000, 1] = np.nan
    with pytest.raises(ValueError, match="got nan in row 30000$"):
        fit_temperature(logits, np.zeros(45_000, int))


def test_bins_are_a_whole_number_of_at_most_1000(predictions):
    assert evaluate(*predictions, bins=15.0).metrics == evaluate(*predictions).metrics
    for call in (lambda bins: evaluate(*predictions, bins=bins), lambda bins: rows(*predictions, bins=bins)):
        with pytest.raises(ValueError, match="bins must be at most 1000; got 1001"):
            call(1001)
        with pytest.raises(ValueError, match="bins must be a whole number of at least 1; got 1.5"):
            call(1.5)


def test_differences_that_overflow_are_probabilities_of_0():
    logits = np.array([[1e308, -1e308], [-1e308, 1e308], [0.0, 1.0]])
    result = evaluate(logits, [0, 1, 1], validation=(logits, [0, 1, 0]))
    assert result.metric("accuracy").value == 1
    assert result.nll == pytest.approx(np.log1p(np.exp(-1)) / 3)
    assert evaluate(logits, [1, 1, 1]).nll == np.inf


# The penultimate layer.


def test_class_separation_by_all_pairs(monkeypatch):
    rng = np.random.default_rng(5)
    labels = rng.choice([0, 2, 3], 60, p=[0.6, 0.3, 0.1])
    features = rng.normal(size=(60, 5)) + np.eye(5)[labels] * 3
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance, ids = 1 - unit @ unit.T, [0, 2, 3]
    within = np.mean([distance[np.ix_(labels == k, labels == k)].mean() for k in ids])
    total = np.mean([distance[np.ix_(labels == j, labels == k)].mean() for j in ids for k in ids])
    assert class_separation(features, labels) == pytest.approx(1 - within / total, rel=1e-12)
    monkeypatch.setattr("labelsmooth.evaluation.representation._BLOCK", 5 * 7)
    assert class_separation(features, labels) == pytest.approx(1 - within / total, rel=1e-12)
    assert class_separation(np.eye(3)[labels % 3] * 7, labels % 3) == pytest.approx(1)
    assert np.isnan(class_separation(np.ones((4, 2)), [0, 0, 1, 1]))
    assert class_separation([[1, 0], [0, 0], [0, 1]], [0, 0, 1]) == pytest.approx(
        1 - (1 - (0.25 + 1) / 2) / (1 - 5 / 16)
    )
    with pytest.raises(ValueError, match="features must be finite; got not so in row 1"):
        class_separation([[1.0, 0.0], [np.nan, 0.0]], [0, 1])


@pytest.mark.parametrize("given", [True, False])
def test_projection(given):
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 6, 200)
    templates = rng.normal(size=(6, 9))
    features = templates[labels] + rng.normal(size=(200, 9)) * 0.3
    chosen = [4, 0, 5]
    points, own, corners = project(features, labels, templates if given else None, chosen)
    kept = np.isin(labels, chosen)
    assert np.array_equal(own, labels[kept])
    three = templates[chosen] if given else np.stack([features[labels == k].mean(0) for k in chosen])
    # the nearest point of the plane, by least squares in the plane's own (skew) coordinates
    directions = np.stack([three[1] - three[0], three[2] - three[0]], 1)
    skew = np.linalg.lstsq(directions, (features[kept] - three[0]).T, rcond=None)[0]
    on_plane = three[0] + (directions @ skew).T
    np.testing.assert_allclose(points @ points.T, (on_plane - three.mean(0)) @ (on_plane - three.mean(0)).T, atol=1e-10)
    np.testing.assert_allclose(corners.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose(corners @ points.T, (three - three.mean(0)) @ (on_plane - three.mean(0)).T, atol=1e-10)
    assert corners[1, 0] - corners[0, 0] == pytest.approx(np.linalg.norm(three[1] - three[0]))
    assert corners[1, 1] == pytest.approx(corners[0, 1])
    assert corners[2, 1] > corners[0, 1]


def test_errors_of_the_projection():
    features, labels = np.eye(3), np.array([0, 1, 2])
    for templates, classes, message in (
        (None, [0, 1, 1], r"classes must be three different class ids; got \[0, 1, 1\]"),
        (None, [0, 1], "classes must be three different class ids"),
        (None, [0, 1, 7], "classes must have an example each where there are no templates; got none of class 7"),
        (np.eye(3), [0, 1, 7], r"classes must be class ids in 0..2; got 7 at index 2"),
        (np.zeros((3, 4)), [0, 1, 2], r"templates must have shape \[K, 3\]; got shape \(3, 4\)"),
        (np.outer([1, 2, 3], [1, 1, 1]), [0, 1, 2], "templates must span a plane"),
        (np.ones((3, 3)), [0, 1, 2], "templates must span a plane"),
    ):
        with pytest.raises(ValueError, match=message):
            project(features, labels, templates, classes)


# Folders of arrays, and the command.


@pytest.fixture
def folder(tmp_path, predictions):
    """A folder of arrays with a validation split, and features and names."""
    logits, labels = predictions
    place = tmp_path / "arrays"
    place.mkdir()
    for name, array in (
        ("logits", logits[:200]), ("labels", labels[:200]), ("features", logits[:200, :3]), ("index", np.arange(200)),
        ("templates", np.ones((6, 3), np.float32)), ("val_logits", logits[200:]), ("val_labels", labels[200:]),
        ("val_index", np.arange(200, 300)),
    ):  # fmt: skip
        np.save(place / f"{name}.npy", array)
    (place / "classes.txt").write_text("a\nß\n<b>\nd e\nf\ng\n", encoding="utf-8")
    return place


def test_folders_of_arrays_are_memory_mapped(folder, predictions):
    loaded = load_predictions(folder)
    assert isinstance(loaded.logits, np.memmap)
    assert np.array_equal(loaded.logits, predictions[0][:200])
    assert np.array_equal(loaded.features, predictions[0][:200, :3])
    assert loaded.templates.shape == (6, 3)
    assert loaded.classes == ("a", "ß", "<b>", "d e", "f", "g")
    held_out = load_predictions(folder, "val")
    assert np.array_equal(held_out.labels, predictions[1][200:])
    assert held_out.features is None
    assert held_out.classes == loaded.classes
    check_disjoint(loaded, held_out)
    np.save(folder / "classes.npy", np.array(list("uvwxyz")))
    assert load_predictions(folder).classes == tuple("uvwxyz")
    np.save(folder / "labels.npy", np.array([object()]))
    with pytest.raises(DataError, match=r"labels.npy is no readable .npy file"):
        load_predictions(folder)
    (folder / "labels.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"labels.npy is no readable .npy file"):
        load_predictions(folder)
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"has no array called labels; it holds logits, features, index"):
        load_predictions(folder)
    (folder / "classes.npy").unlink()
    (folder / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes.txt is not UTF-8"):
        load_predictions(folder)


def test_templates_are_kept(tmp_path, predictions):
    logits, labels = predictions
    templates = np.arange(12, dtype=np.float32).reshape(6, 2)
    Predictions(logits, labels, templates=templates).save(tmp_path / "p.npz")
    assert np.array_equal(load_predictions(tmp_path / "p.npz").templates, templates)


def test_overlapping_splits_are_refused(predictions):
    logits, labels = predictions
    test, val = (Predictions(logits, labels, index=np.arange(300) + start) for start in (0, 298))
    with pytest.raises(
        DataError,
        match="validation must share no example with the tested predictions; got 2 in both, the first with index 298",
    ):
        check_disjoint(test, val)
    check_disjoint(test, Predictions(logits, labels))


def test_the_command(folder, predictions, tmp_path, capsys):
    def call(*arguments):
        code = main([str(argument) for argument in ("evaluate", *arguments)])
        return (code, *capsys.readouterr())

    logits, labels = predictions
    expected = evaluate(
        logits[:200],
        labels[:200],
        ["a", "ß", "<b>", "d e", "f", "g"],
        validation=(logits[200:], labels[200:]),
        features=logits[:200, :3],
    )
    code, out, err = call(folder)
    assert (code, err) == (0, "")
    assert out.endswith(f"{folder}\n{expected.table()}\n")
    code, out, _ = call(folder, "--json", "--bins", "7")
    assert code == 0
    told = json.loads(out)
    assert told["metrics"]["ece"]["bins"] == 7
    assert told["temperature"] == expected.temperature
    assert told["predictions"] == str(folder)
    code, out, _ = call(folder, "--split", "val", "--json")
    assert (json.loads(out)["examples"], json.loads(out)["temperature"]) == (100, None)

    test, val = tmp_path / "test.npz", tmp_path / "val.npz"
    Predictions(logits[:200], labels[:200], index=np.arange(200)).save(test)
    Predictions(logits[200:], labels[200:], index=np.arange(200, 300)).save(val)
    assert json.loads(call(test, "--json")[1])["temperature"] is None
    assert json.loads(call(test, "--validation", val, "--json")[1])["temperature"] == expected.temperature

    expected_val = json.loads(call(test, "--validation", folder, "--json")[1])["temperature"]
    assert expected_val == expected.temperature  # the folder's val split, not its test split

    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    test.rename(run / "predictions" / "test.npz")
    assert json.loads(call(run, "--json")[1])["temperature"] is None
    val.rename(run / "predictions" / "val.npz")
    assert json.loads(call(run, "--json")[1])["temperature"] == expected.temperature
    assert json.loads(call(run, "--split", "val", "--json")[1])["temperature"] is None

    test, val = run / "predictions" / "test.npz", run / "predictions" / "val.npz"
    assert json.loads(call(test, "--validation", run, "--json")[1])["temperature"] == expected.temperature
    (tmp_path / "bare").mkdir()
    for name in ("logits", "labels"):
        np.save(tmp_path / "bare" / f"{name}.npy", np.load(folder / f"{name}.npy"))
    Predictions(logits[:, :4], labels % 4).save(tmp_path / "other.npz")
    for arguments, code, message in (
        (
            (test, "--validation", test),
            3,
            "--validation must be other predictions than those that are tested; got",
        ),
        ((run, "--split", "val", "--validation", run), 3, "--validation must be other predictions than those"),
        ((folder, "--split", "val", "--validation", folder), 3, "--validation must be other predictions than those"),
        (
            (folder, "--validation", test),
            3,
            "validation must share no example with the tested predictions; got 200 in both",
        ),
        ((folder, "--validation", tmp_path / "bare"), 3, "has no val_logits.npy, and so no predictions for val"),
        ((test, "--bins", "1001"), 2, "bins must be at most 1000; got 1001"),
        (
            (test, "--validation", tmp_path / "other.npz"),
            3,
            "other.npz: validation logits must have the 6 classes of the logits; got 4",
        ),
        ((test, "--validation", tmp_path / "gone.npz"), 3, "there is no file"),
        ((test, "--split", "val"), 3, "is no folder, so it has no split val; leave out --split"),
        ((test, "--bins", "0"), 2, "bins must be a whole number of at least 1; got 0"),
        ((tmp_path,), 3, "has no predictions for test"),
    ):
        got, _, err = call(*arguments)
        assert got == code, err
        assert message in err
    (folder / "classes.txt").write_text("a\nb\n")
    assert "class_names must have 6 names, one per class of the logits; got 2" in call(folder)[2]
    np.save(folder / "logits.npy", np.full((200, 6), np.nan))
    (folder / "classes.txt").unlink()
    assert "logits must be finite or -inf; got nan in row 0" in call(folder)[2]
