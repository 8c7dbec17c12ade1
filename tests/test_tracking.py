"""Trackers: what reaches them, that they change nothing and can end nothing, and that nobody pays who has none."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labelsmooth._errors import Interrupted
from labelsmooth.cli import main
from labelsmooth.training import DIGITS, Reporter, resume, train
from tests.test_training import StopAt, table

pytestmark = pytest.mark.usefixtures("undrawn")

accelerate_tracking = pytest.importorskip("accelerate.tracking")

TINY = DIGITS.changed(epochs=1.4, batch_size=256)


class Notes(Reporter):
    def __init__(self):
        self.notes, self.ended = [], []

    def note(self, text):
        self.notes.append(text)

    def end(self, summary):
        self.ended.append(summary)


@pytest.fixture
def wandb(monkeypatch):
    """A package that stands for wandb's, and remembers what it is told."""
    told = []
    run = types.SimpleNamespace(
        log=lambda values, step=None, **kwargs: told.append(("log", step, values)),
        finish=lambda: told.append(("finish",)),
    )
    package = types.ModuleType("wandb")
    package.init = lambda project, **kwargs: told.append(("init", project)) or run
    package.config = types.SimpleNamespace(update=lambda values, **kwargs: told.append(("config", values)))
    monkeypatch.setitem(sys.modules, "wandb", package)
    wandb_type = accelerate_tracking.LoggerType.WANDB
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [wandb_type])
    package.told, package.run = told, run
    return package


def test_a_tracker_is_told_of_settings_epochs_and_the_test(wandb, tmp_path):
    reporter = Notes()
    result = train("digits", TINY, track="wandb", noise="symmetric:0.1", out=tmp_path, reporter=reporter)
    assert reporter.notes == []
    assert reporter.ended == [result.summary]
    assert [entry[0] for entry in wandb.told] == ["init", "config", "log", "log", "log", "finish"]
    (_, project), (_, config), first, second, last, _ = wandb.told
    assert project == "labelsmooth"
    assert (config["run"], config["lr"], config["noise"], config["smoothing"]) == (
        "digits-001",
        0.05,
        "symmetric:0.1",
        0.1,
    )
    rows = table(result.folder)
    for (_, step, values), row in zip((first, second), rows, strict=True):
        assert step == int(row.pop("epoch"))
        assert values == {name: float(value) for name, value in row.items()}
    test = result.summary["test"]
    assert last == ("log", 2, {"test_accuracy": test["accuracy"], "test_nll": test["nll"]})


def test_what_there_is_not_is_not_logged(wandb, tmp_path):
    train("digits", TINY, epochs=1, val_split=0, track="wandb", out=tmp_path)
    logged = [entry[2] for entry in wandb.told if entry[0] == "log"]
    assert "train_nll" in logged[0]
    assert "val_nll" not in logged[0]


def test_tensorboard_writes_into_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reporter = Notes()
    result = train("digits", TINY, track="tensorboard", out=tmp_path, reporter=reporter)
    assert reporter.notes == []
    events = EventAccumulator(str(result.folder / "tracking/labelsmooth"))
    events.Reload()
    rows = table(result.folder)
    for name in ("train_nll", "val_accuracy", "train_loss_smoothed", "lr", "train_loss_floor"):
        logged = events.Scalars(name)
        assert [one.step for one in logged] == [1, 2]
        np.testing.assert_allclose([one.value for one in logged], [float(row[name]) for row in rows], rtol=1e-6)
    assert events.Scalars("test_accuracy")[0].value == pytest.approx(result.summary["test"]["accuracy"])
    (told,) = result.folder.rglob("hparams.yml")
    assert "smoothing: 0.1" in told.read_text()


def test_a_tracked_run_has_the_same_bits_and_goes_on(wandb, tmp_path):
    plain = train("digits", TINY, epochs=2.4, out=tmp_path / "plain")
    with pytest.raises(Interrupted):
        train("digits", TINY, epochs=2.4, track="wandb", out=tmp_path / "cut", reporter=StopAt(1))
    assert wandb.told[-1] == ("finish",)  # a run that is stopped is over for the tracker too
    assert [entry[1] for entry in wandb.told if entry[0] == "log"] == [1]
    wandb.told.clear()
    result = resume(tmp_path / "cut/digits-001")
    assert [entry[1] for entry in wandb.told if entry[0] == "log"] == [2, 3, 3]
    one, other = (load_file(run.folder / "checkpoints/last.safetensors") for run in (plain, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("moment", ["import", "init", "config", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_left_alone(wandb, moment, tmp_path, monkeypatch):
    calls = []

    def fail(*arguments, **options):
        calls.append(moment)
        raise ConnectionError("no network")

    if moment == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    elif moment == "init":
        wandb.init = fail
    elif moment == "config":
        wandb.config.update = fail
    else:
        setattr(wandb.run, moment, fail)
    reporter = Notes()
    result = train("digits", TINY, track="wandb", out=tmp_path, reporter=reporter)
    assert (result.folder / "summary.json").is_file()
    error = (
        "ModuleNotFoundError: import of wandb halted; None in sys.modules"
        if moment == "import"
        else "ConnectionError: no network"
    )
    assert reporter.notes == [f"wandb tracks no more ({error}); the training goes on without it"]
    assert len(calls) == (moment != "import")
    assert (wandb.told[-1:] == [("finish",)]) == (moment in ("config", "log"))  # what it was told before is not lost


def test_a_tracked_run_goes_on_where_the_tracker_is_not_installed(wandb, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train("digits", TINY, track="wandb", out=tmp_path, reporter=StopAt(1))
    wandb.told.clear()
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [])
    reporter = Notes()
    result = resume(tmp_path / "digits-001", epochs=2, reporter=reporter)
    assert reporter.notes[0] == "wandb tracks no more (--track wandb needs wandb); the training goes on without it"
    assert (result.summary["epochs"], wandb.told) == (2, [])
    assert "track: wandb\n" in (tmp_path / "digits-001/config.yaml").read_text()


def test_an_unknown_tracker_and_a_missing_package_are_known_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"track must be one of .*'mlflow', 'tensorboard', 'wandb'.*; got 'tensorbord'"
    ):
        train("no data at all", track="tensorbord")
    with pytest.raises(ValueError, match=r"track must be a tracker's name; got 5"):
        train("no data at all", track=5)
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [])
    with pytest.raises(ModuleNotFoundError, match="--track tensorboard needs tensorboard"):
        train("no data at all", track="tensorboard")
    assert main(["train", "--track", "tensorbord"]) == 2
    assert main(["train", "--track", "tensorboard"]) == 6
    assert "needs tensorboard: pip install" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "accelerate.tracking")
    assert main(["train", "--track", "tensorboard"]) == 6
    assert "needs accelerate: pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_registered_tracker_is_known_too(tmp_path, monkeypatch):
    class Mine(accelerate_tracking.GeneralTracker):
        name = "mine"
        requires_logging_directory = True
        main_process_only = False
        tracker = None

        def __init__(self, project, folder):
            super().__init__()
            self.folder = folder

        def store_init_configuration(self, values):
            told.append(self.folder)

        def log(self, values, step=None, **kwargs):
            told.append(step)

    told = []
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "mine", Mine)
    train("digits", TINY, track="mine", out=tmp_path)
    assert told == [str(tmp_path / "digits-001/tracking"), 1, 2, 2]


def test_without_a_tracker_nothing_of_it_is_imported(tmp_path):
    code = """
import sys
from labelsmooth.cli import main
from labelsmooth.report import page
page.finish = lambda folder: None
assert main(["train", "--epochs", "0.1"]) == 0
print(sorted({"accelerate", "tensorboard", "tensorflow", "wandb"} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert not list(tmp_path.rglob("tracking"))


def test_the_command_names_the_tracker(wandb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "0.1", "--track", "wandb"]) == 0
    assert "tracking    wandb\n" in capsys.readouterr().out
    assert "track: wandb\n" in (tmp_path / "runs/digits-001/config.yaml").read_text()
