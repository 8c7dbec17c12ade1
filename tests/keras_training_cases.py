"""Training with Keras on the backend that KERAS_BACKEND names; test_keras_training.py runs this in a process for each.

The reference is the PyTorch engine, which is tested against formulas; both start from the same weights and batches.
"""

import csv
import json
import os

import keras
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from labelsmooth import _files, losses
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.cli import main
from labelsmooth.evaluation import load_predictions
from labelsmooth.keras import load_run
from labelsmooth.keras.training import KerasEngine
from labelsmooth.training import CLASSIC, DIGITS, Predictor, Reporter, load, resume, train
from labelsmooth.training.plan import Plan
from labelsmooth.training.run import Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine

BACKEND = os.environ["KERAS_BACKEND"]
QUICK = {"epochs": 3, "batch_size": 128}
# TensorFlow and JAX compile for seconds what PyTorch begins at once; it runs all cases in every suite.
slow_in_jax = pytest.mark.slow if BACKEND == "jax" else []  # half a minute of XLA each
longer = pytest.mark.slow if BACKEND != "torch" else lambda test: test


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """Ninety colour images of 12x12 in three classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.integers(0, 200, (90, 12, 12, 3), np.uint8)
    images[labels == 1, :6] += 50
    path = tmp_path_factory.mktemp("data") / "colour.npz"
    np.savez(path, images=images, labels=labels)
    return load(path)


def engines(data, recipe, **changes):
    """The PyTorch engine and Keras' for the same plan."""
    told = recipe.changed(precision="float32", **changes)
    plans = [
        Plan(Settings("x", told, 0.1, 0, None, None, None, "auto", False, framework=name), data)
        for name in ("torch", "keras")
    ]
    settings = plans[0].settings
    assert settings.recipe == plans[1].settings.recipe
    return TorchEngine(plans[0], StopRequest()), KerasEngine(plans[1], StopRequest())


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def close(one, other, tolerance):
    """Equal to a share of the largest."""
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


# The same weights and batch, the same numbers.


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        pytest.param("loss", {}, marks=[] if BACKEND == "torch" else pytest.mark.slow),
        pytest.param("labels", {"weight_decay": 0.3}, marks=slow_in_jax),  # so much that it is seen after one step
        pytest.param("loss", {"prior": "class_frequency", "nesterov": True, "smoothing": 0.3}, marks=slow_in_jax),
    ],
)
def test_minigooglenet_is_that_of_pytorch(colour, method, changes):
    ours, other = engines(colour, CLASSIC, method=method, dropout=0.0, batch_size=16, **changes)
    assert ours.parameters == other.parameters
    expected, found = ours.predict(colour.val), other.predict(colour.val)
    close(found.logits, expected.logits, 1e-4)
    close(found.features, expected.features, 1e-4)
    close(found.templates, expected.templates, 1e-6)
    rows = []
    for engine in (ours, other):
        engine.plan.total_steps = 1
        rows.append(engine.train_epoch(0, Reporter()))
    assert rows[1]["train_loss_smoothed"] == pytest.approx(rows[0]["train_loss_smoothed"], abs=1e-5)
    assert rows[1]["train_nll"] * 72 == pytest.approx(rows[0]["train_nll"] * 72, abs=1e-3)
    assert rows[1]["train_accuracy"] == rows[0]["train_accuracy"]
    assert rows[1]["lr"] == rows[0]["lr"] == 5e-3
    # The step that followed tells whether the gradients were the same, those of the penalty too.
    other._give_weights()
    before = TorchEngine(ours.plan, StopRequest()).model.state_dict()
    for name, weight in ours.model.named_parameters():
        step = (weight - before[name]).detach().numpy()
        found = (other.twin.get_parameter(name) - before[name]).detach().numpy()
        if ".0.bias" in name:  # a batch norm follows: the gradient is 0 but for rounding
            assert np.abs(found).max() < 1e-6
        else:
            # Taken together: a rounding error can change which input a maximum is taken from, and a few weights with it.
            assert np.linalg.norm(found - step) < 1e-2 * np.linalg.norm(step) + 1e-8, name


def test_a_batch_is_normalised_ordered_and_augmented_as_with_pytorch(colour):
    from labelsmooth.keras.training import _Batches

    ours, other = engines(colour, CLASSIC, cutout=0.3, batch_size=16, method="labels")
    seen = []
    ours.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    ours.train_epoch(1, Reporter())
    batches = _Batches(other, 1, 1)  # from its second step on
    assert len(batches) == len(seen) - 1
    images, labels = batches[0]
    assert np.array_equal(images, seen[1].permute(0, 2, 3, 1).numpy())
    hard = colour.train.labels[ours.plan.order(1)[16:32].numpy()]
    assert np.array_equal(labels["hard"], hard)
    np.testing.assert_allclose(labels["smoothed"], 0.9 * np.eye(3)[hard] + 0.1 / 3, rtol=1e-6)


@longer
def test_the_digits_recipe_takes_the_same_way_as_pytorch():
    """Many steps, at a rate that stays (which enters the momentum otherwise), with nesterov and weight decay."""
    data = load("digits")
    ours, other = engines(data, DIGITS, schedule="step:every=100")
    for engine in (ours, other):
        engine.plan.total_steps = 12
    first, second = (engine.train_epoch(0, Reporter()) for engine in (ours, other))
    assert second["train_loss_smoothed"] == pytest.approx(first["train_loss_smoothed"], rel=1e-4)
    assert second["train_nll"] == pytest.approx(first["train_nll"], rel=1e-4)


@longer
def test_the_rate_follows_the_schedule(colour):
    """A step's length, without momentum, is the rate."""
    for every, rates in (("epoch", [0.1, 0.1, 0.05]), ("step", [0.1, 0.075, 0.05])):
        _, engine = engines(
            colour, DIGITS, lr=0.1, momentum=0.0, nesterov=False, epochs=2, batch_size=32, schedule="polynomial",
            schedule_every=every, shift=0.0, weight_decay=0.0,
        )  # fmt: skip
        assert engine.plan.steps_per_epoch == 2
        seen = []

        class Rate(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None, seen=seen, engine=engine):
                seen.append(float(keras.ops.convert_to_numpy(engine.optimizer.learning_rate)))

        fit = engine.fitted.fit
        engine.fitted.fit = lambda *args, fit=fit, callbacks, **options: fit(
            *args, callbacks=[*callbacks, Rate()], **options
        )
        row = engine.train_epoch(0, Reporter())
        assert row["lr"] == pytest.approx(rates[1])
        if every == "epoch":
            assert seen == [pytest.approx(rates[1])]
        else:  # what the next step would take
            assert seen == [pytest.approx(rates[2])]
        assert int(engine.optimizer.iterations.numpy() if hasattr(engine.optimizer.iterations, "numpy") else 2) == 2


# A run.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Through the command, with dropout, on digits: (its folder, what it printed as JSON)."""
    out = tmp_path_factory.mktemp("runs")
    code = main([
        "train", "digits", "--framework", "keras", "--keras-backend", BACKEND, "--epochs", "3", "--batch-size", "128",
        "--method", "labels", "--dropout", ".2", "--out", str(out),
    ])  # fmt: skip
    assert code == 0
    return out / "digits-001"


def test_the_run_folder_is_that_of_every_run(finished):
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "env.json", "data.json", "metrics.csv", "summary.json", "log.txt",
        "checkpoints/best.safetensors", "checkpoints/last.safetensors", "checkpoints/previous.safetensors",
        "predictions/train.npz", "predictions/val.npz", "predictions/test.npz", "predictions/mistakes.npz",
        "plots/curves.png", "plots/confusion.png", "plots/reliability.png", "plots/confidence.png",
        "plots/risk_coverage.png", "plots/projection.png", "report.html",
    }  # fmt: skip
    env, summary = (json.loads((finished / f"{name}.json").read_text()) for name in ("env", "summary"))
    assert env["versions"]["keras"] == keras.__version__
    assert env["versions"][BACKEND]
    assert (summary["framework"], summary["keras_backend"], summary["method"]) == ("keras", BACKEND, "labels")
    assert summary["test"]["accuracy"] > 0.5
    rows = table(finished)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_loss_smoothed"]) > float(rows[-1]["train_loss_floor"])


def test_validation_is_on_hard_labels(finished):
    best = json.loads((finished / "summary.json").read_text())["best"]
    val = load_predictions(finished / "predictions/val.npz")
    assert best["val_nll"] == pytest.approx(losses.cross_entropy(val.logits, val.labels), rel=1e-5)
    assert float(table(finished)[best["epoch"] - 1]["val_nll"]) == best["val_nll"]


def test_the_other_commands_work_on_it(finished, capfd):
    assert main(["evaluate", str(finished), "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["accuracy"] == json.loads((finished / "summary.json").read_text())["test"]["accuracy"]
    (finished / "report.html").unlink()
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").stat().st_size > 10_000


def test_predictions_are_those_of_the_checkpoint_in_either_framework(finished, tmp_path):
    data, test = load("digits"), load_predictions(finished / "predictions/test.npz")
    weights = load_file(finished / "checkpoints/best.safetensors")
    assert np.array_equal(test.templates, weights["network.head.weight"].numpy())
    model = load_run(finished)
    close(model.predict(data.test.images[:50], verbose=0), test.logits[:50], 1e-5)
    model.save(tmp_path / "digits.keras")
    again = keras.saving.load_model(tmp_path / "digits.keras")
    close(again.predict(data.test.images[:50], verbose=0), test.logits[:50], 1e-5)
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(data.test.images[number, :, :, 0]).save(files[-1])
    found = np.stack([probabilities for _, probabilities in Predictor(finished).probabilities(files)])
    expected = torch.softmax(torch.from_numpy(test.logits[:20]).double(), 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Interruptions.


class StopAt(Reporter):
    def __init__(self, epoch, done):
        self.at = (epoch, done)

    def begin(self, training, folder):
        self.stop = training.stop

    def step(self, epoch, done, steps, loss):
        if (epoch, done) >= self.at:
            self.stop.asked = True


@longer
@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    from labelsmooth.keras import training

    monkeypatch.setattr(training, "_TICK", 0)  # each step is told of
    options = {"framework": "keras", "keras_backend": BACKEND, "dropout": 0.2, **QUICK}
    whole = train("digits", out=tmp_path / "whole", **options)
    with pytest.raises(Interrupted, match=r"interrupted after 1 epoch and 4 of 10 steps"):
        train("digits", out=tmp_path / "parts", reporter=StopAt(1, 4), **options)
    resumed = resume(tmp_path / "parts/digits-001")
    assert len(table(whole.folder)) == 3
    for one, other in zip(table(whole.folder), table(resumed.folder), strict=True):
        for name in ("lr", "train_loss_smoothed", "train_nll", "train_accuracy", "val_nll", "val_accuracy"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5), (one["epoch"], name)
    first, second = (load_file(run.folder / "checkpoints/last.safetensors") for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert any(name.endswith("head.weight/momentum") for name in first)
    for name in first:
        close(first[name].numpy(), second[name].numpy() + 0.0, 1e-4)
    longer = resume(resumed.folder, epochs=4)
    assert longer.summary["epochs"] == 4
    torchs = train("digits", out=tmp_path, **QUICK).folder
    config = torchs / "config.yaml"
    _files.write_text(config, config.read_text().replace("framework: torch", "framework: keras"))
    with pytest.raises(
        DataError, match=r"last.safetensors was not made with Keras \(it has no momentum of network\.body"
    ):
        resume(torchs, epochs=4)


@longer
@pytest.mark.usefixtures("undrawn")
def test_what_goes_wrong_is_told(tmp_path, monkeypatch):
    options = {"framework": "keras", "keras_backend": BACKEND, **QUICK}
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) in epoch 1, by step \d+, at learning rate .*; there is no checkpoint yet; start again with a lower --lr"):  # fmt: skip
        train("digits", lr=1e30, out=tmp_path, **options)

    class ResourceExhaustedError(Exception):
        pass

    def too_much(*args, **kwargs):
        raise ResourceExhaustedError("OOM when allocating tensor")

    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "fit", too_much)
        with pytest.raises(TrainingError, match=r"too small for a batch of 128; try a lower --batch-size"):
            train("digits", out=tmp_path, **options)
    original, calls = keras.Model.predict_on_batch, []

    def once(model, x):
        calls.append(len(x))
        return too_much() if len(calls) == 3 else original(model, x)

    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "predict_on_batch", once)
        with pytest.raises(TrainingError, match=r"too small to predict 100 images at once; .*; saved after 1 epoch and 10"):  # fmt: skip
            train("digits", out=tmp_path / "val", **options)
    assert set(calls) == {100}  # 144 validation images: one shape, compiled once
    assert resume(tmp_path / "val/digits-001").summary["epochs"] == 3
    other = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[BACKEND]
    with pytest.raises(ValueError, match=f"keras_backend must be '{BACKEND}', with which Keras is loaded in this process already .*; got '{other}'"):  # fmt: skip
        train("digits", framework="keras", keras_backend=other, out=tmp_path)
    config = tmp_path / "val/digits-001/config.yaml"
    _files.write_text(config, config.read_text().replace(f"keras_backend: {BACKEND}", f"keras_backend: {other}"))
    with pytest.raises(ValueError, match="with which Keras is loaded in this process already"):
        resume(tmp_path / "val/digits-001", epochs=4)


@pytest.mark.skipif(BACKEND != "torch", reason="once is enough")
def test_a_comparison_trains_with_keras(tmp_path, capfd, monkeypatch):
    from labelsmooth.report import page

    monkeypatch.setattr(page, "finish", lambda folder: (folder / "report.html").write_text("undrawn"))
    command = [
        "compare", "digits", "--framework", "keras", "--epochs", "1", "--batch-size", "256", "--smoothing", "0", ".1",
        "--seeds", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["partial"] is False
    configs = list(tmp_path.glob("digits-compare-001/runs/*/config.yaml"))
    assert len(configs) == 4
    assert all("keras_backend: torch\n" in path.read_text() for path in configs)
    assert main([*command, "--vary", "model=small,fast"]) == 2
    assert "model must be minigooglenet or small with framework keras; got 'fast'" in capfd.readouterr().err
