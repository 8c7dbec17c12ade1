"""What a run leaves for its report: templates, predictions on training images, mistakes; and plots that may fail."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax

from labelsmooth.evaluation import load_predictions
from labelsmooth.evaluation.rows import rows
from labelsmooth.report import page, plots
from labelsmooth.training import DIGITS, Reporter, artefacts, load, train
from labelsmooth.training.data import Split
from labelsmooth.training.loop import Training
from labelsmooth.training.run import Settings
from tests.processes import undrawn

QUICK = DIGITS.changed(epochs=1, batch_size=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on noisy labels, and its data."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "finish", undrawn)
        result = train("digits", QUICK, noise="symmetric:0.4", out=tmp_path_factory.mktemp("runs"))
    return result, load("digits", noise="symmetric:0.4")


def test_templates_are_the_last_layers_rows(run):
    weights = load_file(run[0].folder / "checkpoints/best.safetensors")
    for split in ("train", "val", "test"):
        predictions = load_predictions(run[0].folder / f"predictions/{split}.npz")
        assert predictions.templates.dtype == np.float32
        assert np.array_equal(predictions.templates, weights["network.head.weight"].numpy())
        logits = predictions.features @ predictions.templates.T + weights["network.head.bias"].numpy()
        np.testing.assert_allclose(predictions.logits, logits, atol=1e-4)


def test_templates_do_not_change_with_the_model():
    training = Training(Settings("digits", QUICK, 0.1, 0, None, None, None, "cpu", False), load("digits"))
    before = training.engine.model.network.head.weight.detach().numpy().copy()
    predictions = training.engine.predict(training.plan.data.val)
    with torch.no_grad():
        training.engine.model.network.head.weight.zero_()
    assert np.array_equal(predictions.templates, before)


def test_training_predictions_are_of_images_as_they_are_with_clean_labels(run):
    result, data = run
    predictions = load_predictions(result.folder / "predictions/train.npz")
    assert len(predictions.labels) == len(data.test) == 360
    where = np.searchsorted(data.train.index, predictions.index)
    assert np.array_equal(data.train.index[where], predictions.index)
    assert np.array_equal(predictions.labels, data.noise.clean[where])
    assert not np.array_equal(predictions.labels, data.train.labels[where])
    counts, share = np.bincount(predictions.labels), np.bincount(data.noise.clean) * 360 / len(data.train)
    assert np.abs(counts - share).max() < 1
    training = Training(Settings("digits", QUICK, 0.1, 0, None, None, None, "cpu", False), data)
    weights = load_file(result.folder / "checkpoints/best.safetensors")
    training.engine.model.load_state_dict(weights)
    plain = training.engine.predict(data.train.take(where))
    np.testing.assert_allclose(predictions.logits, plain.logits, atol=1e-5)


def split(labels, shape=(2, 3, 1)):
    n = len(labels)
    pool = np.arange(n * np.prod(shape), dtype=np.uint8).reshape(n, *shape)
    return Split(pool, np.arange(n), np.asarray(labels), np.arange(n) + 100, np.zeros(n, np.uint64))


@pytest.mark.parametrize("count", [0, 1, 5, 7, 50, 99, 100, 1000])
def test_a_sample_is_stratified(count):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [70, 20, 9, 1]))
    taken = artefacts.sample(split(labels), count)
    n = min(count, 100)
    assert len(np.unique(taken.index)) == len(taken) == n
    assert np.array_equal(taken.labels, labels[taken.index - 100])
    assert np.abs(np.bincount(taken.labels, minlength=4) - np.array([0.7, 0.2, 0.09, 0.01]) * n).max() < 1
    assert (np.diff(taken.index) > 0).all()


def test_a_sample_is_never_too_large(monkeypatch):
    monkeypatch.setattr(artefacts, "MOST_SAMPLED", 30)
    assert len(artefacts.sample(split(np.zeros(100, int)), 100)) == 30


def test_mistakes_of_a_run(run):
    result, data = run
    predictions = load_predictions(result.folder / "predictions/test.npz")
    p = softmax(predictions.logits.astype(float), axis=1)
    wrong = np.flatnonzero(p.argmax(1) != predictions.labels)
    with np.load(result.folder / "predictions/mistakes.npz") as file:
        mistakes = dict(file)
    assert len(wrong) > len(mistakes["labels"]) == 24  # after one epoch on bad labels
    expected = wrong[np.argsort(-p.max(1)[wrong], kind="stable")[:24]]
    assert np.array_equal(mistakes["index"], data.test.index[expected])
    assert np.array_equal(mistakes["images"], data.test.images[expected])
    assert mistakes["images"].dtype == np.uint8
    assert np.array_equal(mistakes["labels"], data.test.labels[expected])
    assert np.array_equal(mistakes["predicted"], p.argmax(1)[expected])
    np.testing.assert_allclose(mistakes["confidence"], p.max(1)[expected], rtol=1e-6)
    assert np.array_equal(mistakes["confidence"], result.test.rows.confidence[expected])


def test_few_mistakes_none_and_extreme_logits(tmp_path):
    logits = np.array([[0, 1e4, 0], [-np.inf, 0, 0], [5, 0, 0], [0, 0, 1]], np.float32)
    for labels, index in (([0, 2, 0, 0], [100, 103, 101]), ([1, 1, 0, 2], [])):
        artefacts.save_mistakes(split(labels), rows(logits, labels), tmp_path / "m.npz")
        with np.load(tmp_path / "m.npz") as file:
            assert file["index"].tolist() == index
            assert file["images"].shape == (len(index), 2, 3, 1)
            if index:
                np.testing.assert_allclose(file["confidence"], [1, np.e / (np.e + 2), 0.5], rtol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("no font"), OSError(28, "No space left on device"), MemoryError()])
def test_a_plot_that_fails_ends_no_run(error, tmp_path, monkeypatch, capsys):
    from labelsmooth.cli import main

    def fail(*arguments, **options):
        raise error

    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    monkeypatch.setattr(page, "inline", lambda panel, prefix: "")  # takes its time
    monkeypatch.setattr(page, "together", fail)
    result = train("digits", QUICK, epochs=0.2, out=tmp_path, reporter=Notes())
    assert (result.folder / "summary.json").is_file()
    reason = "No space left on device" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    text = f"{result.folder / 'report.html'} could not be drawn ({reason})"
    assert notes == [text]
    assert text in (result.folder / "log.txt").read_text()
    monkeypatch.setattr(plots, "curves", fail)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "0.1", "--plot", "mine.png"]) == 0
    out = capsys.readouterr().out
    assert out.count("could not be drawn") == 2
    assert "pictures" not in out
    assert "report    " not in out
