"""The training loop: what is trained, that both methods are one, that it can be stopped anywhere, and what it leaves."""

import csv
import ctypes
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from labelsmooth import losses, smooth_labels
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.cli import main
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.images import ImageTrials
from labelsmooth.evaluation import evaluate, load_predictions
from labelsmooth.schedules import PolynomialDecay
from labelsmooth.training import CLASSIC, DIGITS, FAST, Predictor, Recipe, Reporter, load, memory, resume, train
from labelsmooth.training import session as sessions
from labelsmooth.training.plan import Plan
from labelsmooth.training.run import RunFolder, Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine

pytestmark = pytest.mark.usefixtures("undrawn")

QUICK = {"epochs": 2, "lr": 0.05}


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def training(recipe=DIGITS, data=None, seed=0, **changes):
    data = data or load("digits", seed=seed)
    settings = Settings("digits", recipe.changed(**changes), 0.1, seed, None, None, None, "cpu", False)
    return TorchEngine(Plan(settings, data), StopRequest())


class Steps(Reporter):
    """Remembers each step's loss by watching the method that computes it."""

    def __init__(self, watched):
        self.losses, original = [], watched.loss

        def loss(logits, rows, whole):
            value = original(logits, rows, whole)
            self.losses.append(float(value.detach()))
            return value

        watched.loss = loss


def test_the_classic_recipe_is_the_original():
    assert Recipe(
        name="classic", model="minigooglenet", epochs=70, batch_size=64, drop_last=True, lr=5e-3, schedule="polynomial",
        schedule_every="epoch", momentum=0.9, nesterov=False, weight_decay=0.0, dropout=0.5, shift=0.1, flip=True,
        smoothing=0.1, method="loss", precision="auto",
    ) == CLASSIC  # fmt: skip
    assert CLASSIC.make_schedule() == PolynomialDecay(5e-3, epochs=70, power=1.0)
    assert not DIGITS.flip  # digits are not symmetric


# In float32 the classic recipe's first steps enlarge a rounding error of 1e-8 a millionfold, so that any two ways of
# computing the same loss drift apart; float64 shows that they are the same.
@pytest.mark.parametrize(
    "recipe", [DIGITS, CLASSIC.changed(precision="float64", batch_size=32)], ids=["digits", "classic"]
)
def test_both_methods_give_the_same_losses(recipe):
    data = load("digits")
    runs = {method: training(recipe, data, method=method) for method in ("labels", "loss")}
    rows = torch.arange(32)
    logits = torch.randn(32, 10)
    first, second = (float(run.loss(logits, rows, len(rows))) for run in runs.values())
    assert first == pytest.approx(second, abs=1e-6)
    watched = {method: Steps(run) for method, run in runs.items()}
    for run in runs.values():
        run.plan.total_steps = 20
        run.train_epoch(0, Reporter())
    assert len(watched["loss"].losses) == 20
    np.testing.assert_allclose(watched["labels"].losses, watched["loss"].losses, rtol=0, atol=1e-6)


def test_the_loss_is_the_reference():
    run = training(smoothing=0.3)
    logits, rows = torch.randn(64, 10), torch.arange(64)
    reference = losses.cross_entropy(logits.numpy(), run.plan.data.train.labels[:64], label_smoothing=0.3)
    assert float(run.loss(logits, rows, len(rows))) == pytest.approx(reference, rel=1e-6)
    labelled = training(smoothing=0.3, method="labels")
    smoothed = smooth_labels(run.plan.data.train.labels, 0.3, num_classes=10)
    assert np.array_equal(labelled.targets[labelled.labels].numpy(), smoothed)
    assert float(labelled.loss(logits, rows, len(rows))) == pytest.approx(reference, rel=1e-6)


def test_arms_of_one_seed_share_split_weights_order_and_augmentation():
    data = [load("digits", seed=3) for _ in range(2)]
    arms = [
        training(data=d, seed=3, smoothing=s, method=m)
        for d, s, m in zip(data, (0.0, 0.2), ("loss", "labels"), strict=True)
    ]
    for one, other in zip(arms[0].model.state_dict().values(), arms[1].model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    seen = []
    for arm in arms:
        batches = []
        arm.model.register_forward_pre_hook(lambda module, args, batches=batches: batches.append(args[0].clone()))
        arm.plan.total_steps = 3
        arm.train_epoch(0, Reporter())
        seen.append(batches)
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)
    other_seed = training(seed=4)
    assert not torch.equal(other_seed.model.network.head.weight, arms[0].model.network.head.weight)


def test_sgd_steps_as_written_down():
    run = training(model="small", weight_decay=0.1, nesterov=False, momentum=0.9, smoothing=0.1, shift=0.0)
    weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    gradients = []
    step = run.optimizer.step
    run.optimizer.step = lambda: (
        gradients.append({n: p.grad.clone() for n, p in run.model.named_parameters()}),
        step(),
    )
    run.plan.total_steps = 2
    run.train_epoch(0, Reporter())
    rates = [run.plan.schedule(0), run.plan.schedule(1 / run.plan.steps_per_epoch)]
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for rate, gradient in zip(rates, gradients, strict=True):
        for name, w in weights.items():
            decay = 0.1 if w.ndim > 1 else 0.0  # kernels only
            velocity[name] = 0.9 * velocity[name] + gradient[name] + decay * w
            weights[name] = w - rate * velocity[name]
    for name, p in run.model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-5, atol=1e-7)


def test_the_learning_rate_follows_the_schedule():
    run = training(CLASSIC.changed(precision="float32", epochs=4, model="small"))
    rates = [run.train_epoch(epoch, Reporter())["lr"] for epoch in range(2)]
    assert rates == [5e-3, 5e-3 * 3 / 4]  # by epoch, as Keras' LearningRateScheduler
    run = training(DIGITS.changed(schedule="step:factor=0.5,every=2", epochs=3))
    assert [run.train_epoch(epoch, Reporter())["lr"] for epoch in range(2)] == [0.05, 0.025]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train("digits", out=tmp_path_factory.mktemp("runs"), seed=1, plot=tmp_path_factory.mktemp("plot") / "c.svg")


def test_digits_are_learned(finished):
    assert finished.test.accuracy >= 0.97
    assert finished.test.examples == 360


def test_the_run_folder_is_complete(finished):
    folder = finished.folder
    assert folder.name == "digits-001"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "env.json", "data.json", "metrics.csv", "summary.json", "log.txt",
        "checkpoints/best.safetensors", "checkpoints/last.safetensors", "checkpoints/previous.safetensors",
        "predictions/train.npz", "predictions/val.npz", "predictions/test.npz", "predictions/mistakes.npz",
        "plots/curves.png", "plots/confusion.png", "plots/reliability.png", "plots/confidence.png",
        "plots/risk_coverage.png", "plots/projection.png", "report.html",
    }  # fmt: skip
    rows = table(folder)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 31))
    assert {row["smoothing"] for row in rows} == {"0.1"}
    assert (
        float(rows[-1]["train_loss_smoothed"])
        > float(rows[-1]["train_loss_floor"])
        == pytest.approx(0.500288, abs=1e-6)
    )
    summary = json.loads((folder / "summary.json").read_text())
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_nll"])))
    assert summary["best"] == {
        "epoch": int(best["epoch"]), "val_accuracy": float(best["val_accuracy"]), "val_nll": float(best["val_nll"]),
    }  # fmt: skip
    assert summary["train_seconds"] > 0


def test_figures_are_of_hard_labels_and_of_the_best_checkpoint(finished):
    data = load("digits", seed=1)
    for split in ("val", "test"):
        predictions = load_predictions(finished.folder / "predictions" / f"{split}.npz")
        assert np.array_equal(predictions.labels, getattr(data, split).labels)
        assert predictions.features.shape == (len(predictions.labels), 128)
        assert predictions.classes == data.classes
        measured = evaluate(predictions.logits, predictions.labels)
        told = finished.summary["best"] if split == "val" else finished.summary["test"]
        assert measured.accuracy == told["val_accuracy" if split == "val" else "accuracy"]
        assert measured.nll == pytest.approx(told["val_nll" if split == "val" else "nll"], rel=1e-6)
        plain = losses.cross_entropy(predictions.logits, predictions.labels)
        assert measured.nll == pytest.approx(float(plain), rel=1e-6)


def test_pictures_show_something(finished):
    from PIL import Image

    for name in ("curves", "confusion"):
        with Image.open(finished.folder / "plots" / f"{name}.png") as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_its_config_runs_it_again(finished, tmp_path, undrawn):
    values = yaml.safe_load((finished.folder / "config.yaml").read_text())
    again = train(values.pop("data"), out=tmp_path, **values)
    assert again.test.nll == finished.test.nll
    ours, theirs = (load_file(r.folder / "checkpoints" / "last.safetensors") for r in (again, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_predictor_agrees_with_the_run(finished, tmp_path):
    from PIL import Image

    data = load("digits", seed=1)
    files = []
    for i in range(70):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(data.test.images[i, ..., 0]).save(files[-1])
    files[5].write_text("no image")
    results = list(Predictor(finished.folder).probabilities(files))
    assert [file for file, _ in results] == files
    assert isinstance(results[5][1], DataError)
    expected = torch.softmax(
        torch.tensor(load_predictions(finished.folder / "predictions" / "test.npz").logits[:70]).double(), 1
    )
    for i, (_, probabilities) in enumerate(results):
        if i != 5:
            np.testing.assert_allclose(probabilities, expected[i], atol=1e-5)


# Interruption.


class StopAt(Reporter):
    def __init__(self, epoch):
        self.at = epoch

    def step(self, epoch, done, steps, loss):
        if epoch == self.at:
            raise KeyboardInterrupt


def same_weights(one, other):
    a, b = (load_file(folder / "checkpoints" / "last.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("recipe", [DIGITS, CLASSIC.changed(model="small", lr=0.01)], ids=["digits", "with dropout"])
def test_an_interrupted_run_goes_on_bit_for_bit(recipe, tmp_path):
    options = {"recipe": recipe, "epochs": 4, "smoothing": 0.2}
    whole = train("digits", out=tmp_path / "whole", **options)
    with pytest.raises(Interrupted) as caught:
        train("digits", out=tmp_path / "cut", reporter=StopAt(2), **options)
    assert caught.value.saved == "2 epochs"
    went_on = resume(caught.value.folder)
    assert same_weights(went_on.folder, whole.folder)
    assert went_on.summary["test"] == whole.summary["test"]
    assert went_on.summary["best"] == whole.summary["best"]
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in table(r.folder)] for r in (whole, went_on)]
    assert rows[0] == rows[1]
    with pytest.raises(ValueError, match="resume must name a run that is not finished, or come with more --epochs"):
        resume(went_on.folder)


def test_a_run_stopped_before_its_first_checkpoint_starts_over(tmp_path):
    whole = train("digits", out=tmp_path / "whole", **QUICK)
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", reporter=StopAt(0), **QUICK)
    assert same_weights(resume(tmp_path / "cut" / "digits-001").folder, whole.folder)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    whole = train("digits", out=tmp_path / "whole", **(QUICK | {"epochs": 4}))
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", reporter=StopAt(3), **(QUICK | {"epochs": 4}))
    folder = tmp_path / "cut" / "digits-001"
    last = folder / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    assert same_weights(resume(folder, reporter=Notes()).folder, whole.folder)
    assert "is damaged" in notes[0]
    assert notes[-1].endswith("after 2 epochs")


def test_damage_in_the_middle_of_a_checkpoint_is_found(tmp_path):
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path, reporter=StopAt(1), **QUICK)
    folder = tmp_path / "digits-001"
    last = folder / "checkpoints" / "last.safetensors"
    blob = bytearray(last.read_bytes())
    blob[-5000:-4000] = bytes(1000)
    last.write_bytes(blob)
    before = sorted(path.name for path in last.parent.iterdir())
    with pytest.raises(
        DataError, match=r"has no checkpoint that can be used: .*last.safetensors is damaged .*checksum"
    ):
        resume(folder)  # rather than start over and write over what is there
    assert sorted(path.name for path in last.parent.iterdir()) == before


def test_checkpoints_of_another_model_are_named_with_what_differs(tmp_path):
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path, reporter=StopAt(1), **QUICK)
    settings = tmp_path / "digits-001" / "config.yaml"
    settings.write_text(settings.read_text().replace("model: small", "model: minigooglenet"))
    with pytest.raises(
        DataError,
        match=r"last.safetensors belongs to another model \(network.body\S+weight: \[.*\] there, \[.*\] here\)$",
    ):
        resume(tmp_path / "digits-001")


def test_a_lost_metrics_file_or_best_checkpoint_loses_nothing_else(tmp_path):
    options = QUICK | {"epochs": 3}
    whole = train("digits", out=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", reporter=StopAt(2), **options)
    folder = tmp_path / "cut" / "digits-001"
    (folder / "metrics.csv").unlink()
    (folder / "checkpoints" / "best.safetensors").unlink()
    result = resume(folder)
    assert same_weights(result.folder, whole.folder)
    assert len(table(folder)) == 3
    assert result.summary["tested_checkpoint"] == "best"


def test_a_disk_that_is_full_at_once_leaves_no_folder(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_json", full)
    with pytest.raises(
        TrainingError, match=r"No space left on device while writing a run folder in .*; nothing was trained"
    ):
        train("digits", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_cannot_be_written_at_the_end_is_only_noted(tmp_path):
    notes = []

    class Remove(Reporter):
        def epoch(self, row, best):
            shutil.rmtree(tmp_path / "plots", ignore_errors=True)

        def note(self, text):
            notes.append(text)

    (tmp_path / "plots").mkdir()
    result = train("digits", out=tmp_path, plot=tmp_path / "plots" / "c.png", reporter=Remove(), **QUICK)
    assert (result.folder / "summary.json").exists()
    assert notes[-1] == f"{tmp_path / 'plots' / 'c.png'} could not be drawn (No such file or directory)"


def test_resume_refuses_other_data_and_no_run(tmp_path):
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path, reporter=StopAt(1), **QUICK)
    folder = tmp_path / "digits-001"
    described = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(described | {"sha256": "0" * 64}))
    with pytest.raises(DataError, match=r"digits has changed since .* began"):
        resume(folder)
    with pytest.raises(DataError, match=r"there is no run folder"):
        resume(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is no run folder: it has no config.yaml"):
        resume(tmp_path)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(DataError, match=r"has no checkpoint yet"):
        Predictor(folder)


# What can go wrong.


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_it(tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"the loss became (nan|inf) in epoch 1, step \d+, at learning rate .*there is no checkpoint yet",
    ) as stop:
        train("digits", lr=1e8, epochs=1, schedule="polynomial:power=1", out=tmp_path)
    step, rate = re.search(r"step (\d+), at learning rate (\S+);", str(stop.value)).groups()
    assert float(rate) == pytest.approx(1e8 * (1 - (int(step) - 1) / 20), rel=1e-3)  # that step's, of 20
    assert (tmp_path / "digits-001" / "config.yaml").is_file()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, undrawn):
    code = """
import resource, sys
from labelsmooth._errors import TrainingError
from labelsmooth.training import Reporter, train
class Fill(Reporter):
    def epoch(self, row, best):
        if row["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    train("digits", epochs=4, out=sys.argv[1], reporter=Fill())
except TrainingError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env)
    assert "File too large while writing" in result.stdout, result.stderr
    assert "the checkpoint after 2 epochs is kept: free some room, then labelsmooth train --resume" in result.stdout
    checkpoints = tmp_path / "digits-001" / "checkpoints"
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]  # nothing half-written
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    went_on = resume(tmp_path / "digits-001")
    assert same_weights(went_on.folder, train("digits", epochs=4, out=tmp_path / "whole").folder)


def test_without_validation_the_last_checkpoint_is_tested(tmp_path):
    result = train("digits", val_split=0, out=tmp_path, **QUICK)
    assert result.summary["best"] is None
    assert result.summary["tested_checkpoint"] == "last"
    assert not (result.folder / "checkpoints" / "best.safetensors").exists()
    assert not (result.folder / "predictions" / "val.npz").exists()
    assert {row["val_accuracy"] for row in table(result.folder)} == {""}


def test_the_last_checkpoint_is_tested_where_it_is_asked_for(tmp_path):
    result = train("digits", checkpoint="last", noise="symmetric:0.2", out=tmp_path, **QUICK | {"epochs": 2})
    assert (result.summary["best"], result.summary["tested_checkpoint"]) == (None, "last")
    assert not (result.folder / "checkpoints" / "best.safetensors").exists()
    val = load_predictions(result.folder / "predictions" / "val.npz")
    assert float(table(result.folder)[-1]["val_accuracy"]) == (val.logits.argmax(1) == val.labels).mean()
    values = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert values["checkpoint"] == "last"
    again = train(values.pop("data"), out=tmp_path, **values)
    assert again.summary["test"] == result.summary["test"]


@pytest.mark.parametrize(
    ("recipe", "examples", "classes", "count"),
    [
        (FAST, 50_000, 10, 1000), (FAST.changed(epochs=3), 12_345, 10, 1000), (FAST, 10_000, 10, 1000),
        (FAST, 9_999, 10, 1000), (FAST, 1437, 10, 144), (FAST, 20, 2, 2), (FAST, 100_000, 200, 2000),
        (FAST, 15_000, 1000, 1500), (CLASSIC, 50_000, 10, 5000), (DIGITS, 1437, 10, 144), (FAST, 0, 0, 0),
        (Recipe(name="mine", model="fast"), 50_000, 10, 5000),
    ],
)  # fmt: skip
def test_the_fast_recipe_keeps_few_images_for_validation(recipe, examples, classes, count):
    assert math.ceil(recipe.val_share(examples, classes) * examples - 1e-9) == count


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """12,345 images to train with, of which 10 % are 1,235, and 20 to test."""
    path, rng = tmp_path_factory.mktemp("many") / "many.npz", np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 12_345), ("test", 20)):
        arrays[f"x_{name}"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        arrays[f"y_{name}"] = np.arange(n) % 10
    np.savez(path, **arrays)
    return path


def test_how_many_validate_by_recipe_and_by_option(many, tmp_path):
    for recipe, val_split, count, share in (
        ("fast", None, 1000, 1000 / 12_345), (FAST, None, 1000, 1000 / 12_345), ("fast", 0.1, 1235, 0.1),
        ("fast", 0.02, 247, 0.02), ("fast", 0, 0, 0), ("digits", None, 1235, 0.1), (None, None, 1235, 0.1),
    ):  # fmt: skip
        settings, images = sessions.prepare(many, recipe, val_split=val_split)
        assert (len(images.val), settings.val_split) == (count, share)
        again = load(many, val_split=settings.val_split)  # what config.yaml holds is the same split
        assert np.array_equal(again.val.index, images.val.index)
    assert len(load(many, val_split=FAST.val_share).val) == 1000
    with pytest.raises(ValueError, match=r"val_split must be a number in \[0, 1\); got 2"):
        load(many, val_split=lambda examples, classes: 2)
    with np.load(many) as file:
        np.savez(tmp_path / "own.npz", x_val=file["x_test"], y_val=file["y_test"], **dict(file))
    settings, images = sessions.prepare(tmp_path / "own.npz", "fast")
    assert (len(images.train), len(images.val), settings.val_split) == (12_345, 20, 0.1)  # which nothing uses


def test_a_run_goes_on_with_the_validation_that_it_began_with(many, tmp_path):
    new = train(many, "fast", epochs=0.01, out=tmp_path)
    values = yaml.safe_load((new.folder / "config.yaml").read_text())
    assert values["val_split"] == 1000 / 12_345
    settings, images = sessions.prepare(**{name: value for name, value in values.items() if name != "devices"})
    assert (settings.val_split, len(images.val)) == (1000 / 12_345, 1000)
    old = train(many, "fast", val_split=0.1, epochs=0.01, out=tmp_path / "old")  # as earlier versions did by themselves
    (old.folder / "summary.json").unlink()
    assert len(load_predictions(resume(old.folder).folder / "predictions" / "val.npz").labels) == 1235
    (tmp_path / "written.yaml").write_text(f"data: {many}\nrecipe: fast\nepochs: 0.01\n")
    assert main(["train", "--config", str(tmp_path / "written.yaml"), "--out", str(tmp_path / "w")]) == 0
    assert json.loads((tmp_path / "w" / "many-001" / "data.json").read_text())["examples"]["val"] == 1000


def test_a_comparison_keeps_10_percent_for_validation_with_every_recipe(many, tmp_path):
    for options, count in (({}, 1235), ({"val_split": 0.02}, 247)):
        trials = ImageTrials.of(str(many), {"recipe": "fast", "epochs": 0.01, **options})
        folder = tmp_path / f"trial-{count}"
        folder.mkdir()
        trials.run(folder, Arm(0.1, ()), 0, Reporter())
        assert len(load_predictions(folder / "predictions" / "val.npz").labels) == count
        assert "val_split" not in trials.settings or options  # so that one that began before goes on


def test_epochs_may_be_fractional(tmp_path):
    result = train("digits", out=tmp_path, epochs=1.5)
    steps = int(load_file(result.folder / "checkpoints" / "last.safetensors")["network.body.0.1.num_batches_tracked"])
    assert steps == 30  # of 20 an epoch
    assert result.summary["epochs"] == 2


def test_run_folders_never_replace_each_other(tmp_path):
    (tmp_path / "digits-001").mkdir()
    (tmp_path / "digits-007").mkdir()
    assert RunFolder.create(tmp_path, "digits").path.name == "digits-008"
    assert RunFolder.create(tmp_path, "a b/c").path.name == "a-b-c-001"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder; got"):
        RunFolder.create(tmp_path / "file", "digits")


def test_training_leaves_pytorchs_global_state_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train("digits", epochs=0.1, deterministic=True, out=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_bfloat16_learns_too(tmp_path, undrawn):
    result = train("digits", precision="bfloat16", epochs=5, out=tmp_path)
    assert result.test.accuracy > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": float("nan")}, r"smoothing must be a number in \[0, 1\); got nan"),
        ({"smoothing": 1.0}, r"smoothing must be"),
        ({"smoothing": "abc"}, r"smoothing must be .* got 'abc'"),
        ({"method": "both"}, r"method must be one of 'labels', 'loss'; got 'both'"),
        ({"model": "vgg"}, r"model must be one of"),
        ({"epochs": 0}, r"epochs must be a positive number"),
        ({"batch_size": 0}, r"batch_size must be a whole number of at least 1"),
        ({"batch_size": 2000}, r"batch_size must be at most the number of training examples, 1293; got 2000"),
        ({"lr": -1}, r"lr must be a positive number"),
        ({"schedule": "linear"}, r"schedule must be polynomial\[:power=P\], step.* got 'linear'"),
        ({"schedule": "step:gamma=2"}, r"schedule must be .* got 'step:gamma=2'"),
        ({"schedule": "step:every=x"}, r"schedule must be"),
        ({"schedule": "step:factor=1e300,every=0.001"}, r"schedule must give finite learning rates"),
        ({"deterministic": "no"}, r"deterministic must be true or false; got 'no'"),
        ({"seed": 1.5}, r"seed must be a whole number of at least 0; got 1.5"),
        ({"val_split": "x"}, r"val_split must be a number in \[0, 1\); got 'x'"),
        ({"plot": "/proc/c.png"}, r"plot must lie in a folder that can be written to"),
        ({"weight_decay": -1}, r"weight_decay must be a number of at least 0"),
        ({"dropout": 1}, r"dropout must be a number in \[0, 1\)"),
        ({"shift": 2}, r"shift must be"),
        ({"momentum": 1}, r"momentum must be"),
        ({"momentum": 0, "nesterov": True}, r"nesterov must be false where momentum is 0"),
        ({"flip": "no"}, r"flip must be true or false; got 'no'"),
        ({"schedule_every": "batch"}, r"schedule_every must be one of 'epoch', 'step'"),
        ({"precision": "int8"}, r"precision must be one of"),
        ({"checkpoint": "first"}, r"checkpoint must be one of 'best', 'last'; got 'first'"),
        ({"seed": -1}, r"seed must be a whole number of at least 0; got -1"),
        ({"recipe": "best"}, r"recipe must be one of 'classic', 'fast', 'digits'; got 'best'"),
        ({"device": "tpu"}, r"device must be auto, cpu, cuda or cuda:N; got 'tpu'"),
        ({"momentun": 1}, r"a recipe has no option momentun; did you mean momentum\?; it has name, model"),
        ({"plot": "c.bmp"}, r"plot must end in one of .png, .svg, .pdf; got c.bmp"),
        ({"plot": "no/where/c.png"}, r"plot must lie in a folder that exists"),
        ({"image_size": 5, "model": "minigooglenet"}, r"minigooglenet needs at least 7x7"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("digits", out=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


# The classic run on real images.


def test_the_classic_recipe_learns_on_cifar10(cifar10_copy, tmp_path):
    (tmp_path / "some").mkdir()
    for name, count in (("train", 3000), ("test", 500)):
        pq.write_table(
            pq.read_table(cifar10_copy / f"{name}.parquet").slice(0, count), tmp_path / "some" / f"{name}.parquet"
        )
    result = train(tmp_path / "some", epochs=3, lr=0.02, image_size=16, seed=2, out=tmp_path)
    assert result.summary["model"] == "minigooglenet"
    assert result.summary["parameters"] == 1_652_826
    assert result.test.classes[0].name == "airplane"
    assert result.test.accuracy > 0.2
    rows = table(result.folder)
    assert float(rows[1]["train_loss_smoothed"]) < float(rows[0]["train_loss_smoothed"])


@pytest.mark.slow
def test_two_classic_epochs_on_cifar10_pass_55_percent(cifar10_copy, tmp_path):
    result = train(cifar10_copy, epochs=2, out=tmp_path)
    assert result.summary["best"]["val_accuracy"] > 0.55


# The fast recipe.


def test_the_fast_recipe_learns_digits(tmp_path, undrawn):
    results = [train("digits", "fast", seed=seed, out=tmp_path) for seed in range(2)]
    assert sum(result.test.accuracy for result in results) / 2 >= 0.985
    result = results[0]
    config = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert (config["recipe"], config["batch_size"], config["flip"]) == ("fast", 64, False)  # few images, and grey ones
    again = train("digits", "fast", epochs=1, batch_size=200, flip=True, out=tmp_path)
    config = yaml.safe_load((again.folder / "config.yaml").read_text())
    assert (config["batch_size"], config["flip"]) == (200, True)  # what is said goes before what suits


def test_the_fast_recipe_sees_small_images_first():
    run = training(FAST.changed(epochs=2, small_share=0.6, small_scale=0.75, batch_size=129))
    sides = []
    run.model.register_forward_pre_hook(lambda module, args: sides.append(args[0].shape[-1]))
    for epoch in range(2):
        run.train_epoch(epoch, Reporter())
    assert sides == [6] * 12 + [8] * 8


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (28, 1), (64, 3), (128, 1)])
def test_the_fast_recipe_on_other_sizes(size, channels, tmp_path, undrawn):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    images = rng.integers(0, 100, (120, size, size, channels), np.uint8)
    images[labels == 1, : size // 2] += 80  # brighter above
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    result = train(tmp_path / "own.npz", "fast", epochs=12, image_size=size, out=tmp_path)
    assert result.test.accuracy > 0.9


def test_the_fast_recipe_fits_the_data():
    few, many, grey = FAST.for_data(90, (64, 64, 3)), FAST.for_data(45_000, (32, 32, 3)), FAST.for_data(1293, (8, 8, 1))
    assert (few.batch_size, few.epochs, few.flip) == (32, 140, True)  # 2 steps an epoch
    assert many == FAST
    tiny = {"cutout": 0, "shift": 0.1, "shift_by": "part"}
    assert grey == replace(FAST, batch_size=64, epochs=14, flip=False, lr=0.061, **tiny)  # 0.24 √(64 / 1000)
    assert FAST.for_data(50_000, (8, 8, 3)) == replace(FAST, **tiny)
    assert CLASSIC.for_data(90, (8, 8, 1)) == CLASSIC
    assert CLASSIC.for_data(42, (8, 8, 1)) == replace(CLASSIC, batch_size=42)  # all that there is


def test_freed_memory_is_kept_only_while_training():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        pytest.skip("another C library than glibc")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            np.ones(16 << 20, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    outside = faults()
    with memory.kept():
        inside = faults()
    assert inside < 0.3 * outside
    assert faults() > 0.5 * outside


@pytest.mark.slow
def test_a_compiled_training_has_the_same_losses(tmp_path):
    rows = [table(train("digits", epochs=2, compile=flag, out=tmp_path).folder) for flag in (False, True)]
    for one, other in zip(*rows, strict=True):
        assert float(one["train_loss_smoothed"]) == pytest.approx(float(other["train_loss_smoothed"]), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", ["digits", "fast"])
def test_a_gpu_trains_and_goes_on_bit_for_bit(recipe, tmp_path):
    whole = train("digits", recipe, epochs=4, device="cuda", out=tmp_path / "whole")
    assert whole.test.accuracy > 0.9
    with pytest.raises(Interrupted):
        train("digits", recipe, epochs=4, device="cuda", out=tmp_path / "cut", reporter=StopAt(2))
    assert same_weights(resume(tmp_path / "cut" / "digits-001").folder, whole.folder)
