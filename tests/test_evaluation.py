"""Metrics against scikit-learn, which is used nowhere in them, and predictions files."""

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax

from labelsmooth._errors import DataError
from labelsmooth.evaluation import Predictions, evaluate, load_predictions


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
