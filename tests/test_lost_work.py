"""Nothing is lost: runs that are interrupted or killed anywhere end with the bits of one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from labelsmooth import _files
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.report import page
from labelsmooth.training import CLASSIC, DIGITS, FAST, Reporter, artefacts, resume, train
from labelsmooth.training.run import RunFolder
from labelsmooth.training.torch_engine import TorchEngine
from tests.processes import command, start, wait_for
from tests.test_training import table

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = CLASSIC.changed(model="small", lr=0.01, epochs=3, batch_size=128)  # dropout, shifts and flips too


def same(one, other):
    """All that two runs leave is the same but for times."""
    for name in ("best", "last"):
        a, b = (load_file(folder / "checkpoints" / f"{name}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in table(folder)] for folder in (one, other)]
    assert rows[0] == rows[1]
    with np.load(one / "predictions/test.npz") as a, np.load(other / "predictions/test.npz") as b:
        assert np.array_equal(a["logits"], b["logits"])
    return True


class At:
    """Sends this process a signal after so many steps of a training."""

    def __init__(self, monkeypatch, number, steps):
        self.left, original = steps, TorchEngine._step

        def step(training, *args):
            original(training, *args)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(TorchEngine, "_step", step)


FAST_TINY = FAST.changed(model="small", epochs=3, batch_size=128, lr=0.05, small_share=0.6)


@pytest.mark.parametrize("recipe", [TINY, FAST_TINY, DIGITS.changed(epochs=2)], ids=["classic", "fast", "digits"])
@pytest.mark.parametrize(("number", "steps"), [(signal.SIGINT, 4), (signal.SIGTERM, 13), (signal.SIGTERM, 20)])
def test_a_signal_saves_in_the_middle_of_an_epoch(recipe, number, steps, tmp_path, monkeypatch):
    whole = train("digits", recipe=recipe, out=tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        At(patched, number, steps)
        with pytest.raises(Interrupted) as caught:
            train("digits", recipe=recipe, out=tmp_path / "cut")
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    per_epoch = 1293 // recipe.batch_size
    epochs, rest = divmod(steps, per_epoch)
    if rest == 0:  # it is seen before the validation
        epochs, rest = epochs - 1, per_epoch
    assert caught.value.saved == f"{epochs} epoch{'' if epochs == 1 else 's'} and {rest} of {per_epoch} steps"
    assert same(resume(caught.value.folder).folder, whole.folder)


def test_an_interruption_while_the_test_set_is_predicted(tmp_path, monkeypatch):
    whole = train("digits", recipe=TINY, out=tmp_path / "whole")
    original = TorchEngine.predict

    def predict(engine, split):
        if split is engine.plan.data.test:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(engine, split)

    with monkeypatch.context() as patched:
        patched.setattr(TorchEngine, "predict", predict)
        with pytest.raises(Interrupted, match="interrupted after 3 epochs"):
            train("digits", recipe=TINY, out=tmp_path / "cut")
    assert same(resume(tmp_path / "cut/digits-001").folder, whole.folder)


def test_more_epochs_replan_the_rest(tmp_path):
    first = train("digits", recipe=DIGITS, epochs=2, out=tmp_path)
    with pytest.raises(ValueError, match="epochs must be more than the 2 that .* has done; got 2"):
        resume(first.folder, epochs=2)
    with pytest.raises(ValueError, match="epochs must be a positive number; got -1"):
        resume(first.folder, epochs=-1)
    assert (first.folder / "summary.json").is_file()
    longer = resume(first.folder, epochs=4)
    assert longer.summary["epochs"] == 4
    assert [float(row["lr"]) for row in table(longer.folder)[2:]] == pytest.approx(
        [DIGITS.changed(epochs=4).make_schedule()(epoch + 19 / 20) for epoch in (2, 3)]
    )
    assert yaml.safe_load((longer.folder / "config.yaml").read_text())["epochs"] == 4
    with pytest.raises(ValueError, match="resume must name a run that is not finished, or come with more --epochs"):
        resume(first.folder)


def test_two_at_once_in_one_run_are_refused(tmp_path):
    class Again(Reporter):
        def epoch(self, row, best):
            with pytest.raises(DataError, match=r"another labelsmooth is at work in .*digits-001; wait for it"):
                resume(tmp_path / "digits-001", epochs=3)
            tried.append(row["epoch"])

    tried = []
    train("digits", recipe=DIGITS, epochs=1, out=tmp_path, reporter=Again())
    assert resume(tmp_path / "digits-001", epochs=2, reporter=Again()).summary["epochs"] == 2
    assert tried == [1, 2]
    assert not list(tmp_path.rglob(".*"))


def test_a_resume_removes_what_was_half_written_and_nothing_else(tmp_path):
    folder = train("digits", recipe=DIGITS, epochs=1, out=tmp_path).folder
    own = [folder / ".my-notes.txt", folder / "checkpoints/.git-keep", folder / ".git/.a-b"]
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    with _files.replacing(tmp_path / "last.safetensors") as temporary:
        left = folder / "checkpoints" / temporary.name
    left.write_text("what a kill would have left")
    shutil.rmtree(folder / "plots")  # as version control leaves empty folders out
    resume(folder, epochs=2)
    assert all(file.read_text() == "x" for file in own)
    assert not left.exists()


def test_a_run_that_cannot_be_written_to_is_refused_before_it_trains(tmp_path, monkeypatch):
    folder = train("digits", recipe=DIGITS, epochs=1, out=tmp_path).folder
    monkeypatch.setattr(TorchEngine, "train_epoch", lambda *given: pytest.fail("trained"))
    (folder / ".lock").mkdir()  # nothing can be opened there
    with pytest.raises(DataError, match=r"digits-001 cannot be written to \("):
        resume(folder, epochs=2)


def test_other_examples_than_the_run_began_with_are_refused(tmp_path):
    """The same files, of which fewer can be read."""
    folder = train("digits", recipe=DIGITS, epochs=1, out=tmp_path).folder
    known = json.loads((folder / "data.json").read_text())
    known["examples"]["val"] += 3
    (folder / "data.json").write_text(json.dumps(known))
    with pytest.raises(
        DataError, match="digits gives other examples than when .*: 1293 train, 144 val, 360 test, then"
    ):
        resume(folder, epochs=2)


def test_data_that_have_moved(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8), np.arange(60) % 2
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    np.savez(before, images=x, labels=y)
    whole, cut = (train(before, DIGITS, epochs=2, batch_size=16, out=tmp_path / name).folder for name in ("a", "b"))
    shutil.copy(before, after)
    before.unlink()
    for folder in (whole, cut):
        with pytest.raises(
            DataError, match=rf"before.npz, the data of {folder}, are not there any more; if they have moved"
        ):
            resume(folder, epochs=3)
    np.savez(tmp_path / "other.npz", images=x, labels=1 - y)
    with pytest.raises(DataError, match="other.npz is not the data that .* began with"):
        resume(cut, data=tmp_path / "other.npz", epochs=3)
    resume(cut, data=after, epochs=3)
    assert yaml.safe_load((cut / "config.yaml").read_text())["data"] == str(after)
    shutil.copy(after, before)
    assert same(resume(whole, epochs=3).folder, cut)
    resume(cut, epochs=4)


def test_a_missing_last_checkpoint_is_told_of(tmp_path):
    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    notes = []
    folder = train("digits", recipe=DIGITS, epochs=2, out=tmp_path).folder
    (folder / "checkpoints/last.safetensors").unlink()
    resume(folder, epochs=3, reporter=Notes())
    assert re.search(r"there is no .*last.safetensors; looking at the checkpoint before", notes[0])


def test_figures_of_earlier_weights_go_when_a_run_goes_on(tmp_path, monkeypatch):
    first = train("digits", recipe=DIGITS, epochs=1, out=tmp_path)
    assert (first.folder / "predictions/test.npz").is_file()
    with monkeypatch.context() as patched:
        At(patched, signal.SIGINT, 30)
        with pytest.raises(Interrupted):
            resume(first.folder, epochs=3)
    left = {path.name for path in first.folder.rglob("*") if path.is_file()}
    assert not left & {"test.npz", "val.npz", "train.npz", "mistakes.npz", "report.html", "curves.png", "summary.json"}
    assert {"best.safetensors", "last.safetensors", "config.yaml", "metrics.csv"} <= left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["drawing", "before"])
def test_an_interruption_while_the_report_is_drawn_says_what_is_missing(moment, number, tmp_path, monkeypatch, capsys):
    from labelsmooth.cli import main

    save, drawn = artefacts.save_mistakes, []

    def stop(*given):
        os.kill(os.getpid(), number)
        save(*given) if moment == "before" else pytest.fail("went on")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        if moment == "before":  # when the predictions are saved
            patched.setattr(artefacts, "save_mistakes", stop)
            patched.setattr(page, "finish", drawn.append)
        else:
            patched.setattr(page, "finish", stop)
        assert main(["train", "--epochs", "0.5"]) == 130
    captured, folder = capsys.readouterr(), RunFolder(tmp_path / "runs/digits-001")
    accuracy = json.loads((folder.path / "summary.json").read_text())["test"]["accuracy"]
    assert captured.err == (
        f"labelsmooth: interrupted; saved: the finished run, test accuracy {accuracy:.4f}, without its report and "
        "pictures. Go on with:\n  labelsmooth report runs/digits-001\n"
    )
    assert "report    " not in captured.out
    assert (drawn, folder.finished) == ([], False)
    assert (folder.path / "log.txt").read_text().endswith("interrupted when it was tested, without its report\n")
    assert main(["report", "runs/digits-001"]) == 0
    assert folder.finished


def test_more_epochs_in_the_middle_of_a_fraction(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        At(patched, signal.SIGTERM, 23)
        with pytest.raises(Interrupted):
            train("digits", recipe=DIGITS, epochs=1.5, out=tmp_path)
    result = resume(tmp_path / "digits-001", epochs=3)
    assert len(result.summary["best"]) == 3
    steps = load_file(result.folder / "checkpoints/last.safetensors")["network.body.0.1.num_batches_tracked"]
    assert int(steps) == 60


def test_epochs_that_end_before_what_is_done_or_follow_a_fraction_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        At(patched, signal.SIGTERM, 35)
        with pytest.raises(Interrupted):
            train("digits", recipe=DIGITS, epochs=3, out=tmp_path)
    with pytest.raises(ValueError, match=r"epochs must be more than the 1.75 that .* has done; got 1.5"):
        resume(tmp_path / "digits-001", epochs=1.5)
    with pytest.raises(ValueError, match=r"epochs must be more than the 1.75 that .* has done; got 1$"):
        resume(tmp_path / "digits-001", epochs=1)
    finished = train("digits", recipe=DIGITS, epochs=1.5, out=tmp_path)
    with pytest.raises(ValueError, match=r"resume must name a run of whole epochs, to add some; .* ended inside one"):
        resume(finished.folder, epochs=4)


def test_a_file_that_cannot_be_written_is_called_by_its_own_name(tmp_path, monkeypatch):
    def refuse(dir, prefix, suffix):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}gz022b99{suffix}")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)  # as a read-only folder does, but not to root
    with pytest.raises(PermissionError) as refused:
        _files.write_text(tmp_path / "config.yaml", "a: 1")
    assert refused.value.filename == str(tmp_path / "config.yaml")


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, monkeypatch):
    whole = train("digits", recipe=TINY, out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        At(patched, signal.SIGTERM, 25)
        with pytest.raises(Interrupted):
            train("digits", recipe=TINY, out=tmp_path / "cut")
    checkpoints = tmp_path / "cut/digits-001/checkpoints"
    last = checkpoints / "last.safetensors"
    blob = last.read_bytes()
    last.write_bytes(blob.replace(b'\\"steps\\": 5', b'\\"steps\\": 7'))  # in the state, not in a tensor
    assert last.read_bytes() != blob
    with monkeypatch.context() as patched:
        At(patched, signal.SIGTERM, 3)
        with pytest.raises(Interrupted):
            resume(tmp_path / "cut/digits-001", reporter=(reporter := Notes()))
    assert "last.safetensors is damaged" in reporter.notes[0]
    for name in ("last", "previous"):
        load_file(checkpoints / f"{name}.safetensors")
    assert (checkpoints / "damaged.safetensors").is_file()
    assert same(resume(tmp_path / "cut/digits-001").folder, whole.folder)


def cut_in_the_second_epoch(out, monkeypatch):
    with monkeypatch.context() as patched:
        At(patched, signal.SIGTERM, 15)
        with pytest.raises(Interrupted):
            train("digits", recipe=TINY, out=out)


def test_a_damaged_best_checkpoint_is_found_at_once(tmp_path, monkeypatch):
    cut_in_the_second_epoch(tmp_path, monkeypatch)
    best = tmp_path / "digits-001/checkpoints/best.safetensors"
    best.write_bytes(best.read_bytes()[:500])
    result = resume(tmp_path / "digits-001", reporter=(reporter := Notes()))
    assert "best.safetensors is damaged" in reporter.notes[0]
    assert result.summary["best"]["epoch"] > 1


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    cut_in_the_second_epoch(tmp_path, monkeypatch)
    file = tmp_path / "digits-001/env.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "cuda"}))
    resume(tmp_path / "digits-001", reporter=(reporter := Notes()))
    assert reporter.notes[0] == "device is cpu, and was cuda when the run began: it will not end with the same bits"


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    original = TorchEngine._step

    def step(training, *args):
        original(training, *args)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(TorchEngine, "_step", step)
    with pytest.raises(Interrupted, match="interrupted after nothing"):
        train("digits", recipe=TINY, out=tmp_path)


def test_the_command_on_sigterm(tmp_path):
    running = command(tmp_path, "train", "--epochs", "500")
    wait_for(tmp_path, "runs/digits-001/checkpoints/last.safetensors", running)
    running.terminate()
    running.join(60)
    assert running.exitcode == 130
    errors = (tmp_path / "err").read_text()
    assert "labelsmooth train --resume runs/digits-001" in errors
    assert "Traceback" not in errors
    assert "epoch   1/500" in (tmp_path / "out").read_text()
    state = load_file(tmp_path / "runs/digits-001/checkpoints/last.safetensors")
    assert "running/figures" in state


# Kills at any moment.


def _whole(folder):
    train("digits", recipe=TINY, out=folder)


def _again(folder):
    runs = sorted(folder.iterdir()) if folder.is_dir() else []
    if runs and RunFolder(runs[-1]).finished:
        return
    if runs and (runs[-1] / "config.yaml").is_file():
        resume(runs[-1])
    else:  # killed before there was a run
        train("digits", recipe=TINY, out=folder)


def kill_and_resume(tmp_path, times, seed):
    start(_whole, tmp_path / "warm").join()
    began = time.perf_counter()
    first = start(_whole, tmp_path / "whole")
    first.join()
    assert first.exitcode == 0
    length, draw, moments = time.perf_counter() - began, random.Random(seed), set()

    def trial(number, moment):
        folder = tmp_path / f"killed-{number}"
        process = start(_whole, folder)
        # Every second one after its first checkpoint, however long a busy machine takes to come to it.
        while number % 2 and process.is_alive() and not any(folder.rglob("last.safetensors")):
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
        process.join()
        left = {path.name for path in folder.rglob("*") if path.is_file()}
        moments.add("last.safetensors" in left)
        again = start(_again, folder)
        again.join()
        assert again.exitcode == 0, (number, moment, left)
        finished = [run for run in sorted(folder.iterdir()) if (run / "summary.json").is_file()]
        assert same(finished[-1], tmp_path / "whole/digits-001"), (number, moment)
        assert not list(finished[-1].rglob(".*"))
        shutil.rmtree(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(trial, range(times), [draw.uniform(0, (1.5, 0.5)[n % 2] * length) for n in range(times)]))
    assert moments == {True, False}  # before and after the first checkpoint


def test_20_runs_killed_at_random_moments_end_bitwise_equal(tmp_path):
    kill_and_resume(tmp_path, 20, seed=1)


@pytest.mark.slow
def test_200_runs_killed_at_random_moments_end_bitwise_equal(tmp_path):
    kill_and_resume(tmp_path, 200, seed=2)


# Memory.


def test_out_of_memory_says_which_batch_fits(tmp_path, monkeypatch):
    original = TorchEngine.gradients

    def gradients(engine, rows, *args):
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(engine, rows, *args)

    monkeypatch.setattr(TorchEngine, "gradients", gradients)
    with pytest.raises(TrainingError, match=r"too small for a batch of 128; 16 would fit: --batch-size 16"):
        train("digits", recipe=TINY, out=tmp_path)
    monkeypatch.setattr(TorchEngine, "gradients", original)
    predict = TorchEngine._predict

    def too_small(engine, split):
        if split is engine.plan.data.val:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(engine, split)

    with monkeypatch.context() as patched:
        patched.setattr(TorchEngine, "_predict", too_small)
        with pytest.raises(
            TrainingError, match=r"too small to predict 500 images at once; .*; saved after 0 epochs and 10"
        ):
            train("digits", recipe=TINY, out=tmp_path / "val")
    assert resume(tmp_path / "val/digits-001").summary["epochs"] == 3
    monkeypatch.setattr(TorchEngine, "gradients", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(TrainingError, match=r"too small for a single image; try --image-size"):
        train("digits", recipe=TINY, out=tmp_path)


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path, monkeypatch):
    class Break(Reporter):
        def begin(self, training, folder):
            self.model = training.engine.model

        def epoch(self, row, best):
            with torch.no_grad():
                self.model.network.head.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2, step 1, at learning rate 0.00666667; the checkpoint after 1 epoch is kept"):  # fmt: skip
        train("digits", recipe=TINY, out=tmp_path, reporter=Break())
    resumed = resume(tmp_path / "digits-001")
    assert same(resumed.folder, train("digits", recipe=TINY, out=tmp_path / "whole").folder)


def test_validation_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    original, calls = TorchEngine.train_epoch, []

    def train_epoch(engine, epoch, reporter):
        row = original(engine, epoch, reporter)
        calls.append(epoch)
        if len(calls) == 2:
            with torch.no_grad():
                engine.model.network.head.weight.fill_(float("nan"))
        return row

    with monkeypatch.context() as patched:
        patched.setattr(TorchEngine, "train_epoch", train_epoch)
        with pytest.raises(TrainingError, match=r"validation gives logits of nan after epoch 2, at learning rate 0.00666667; the checkpoint after 1 epoch is kept; start again with a lower --lr"):  # fmt: skip
            train("digits", recipe=TINY, out=tmp_path)
    whole = train("digits", recipe=TINY, out=tmp_path / "whole")
    assert same(resume(tmp_path / "digits-001").folder, whole.folder)
    calls.clear()
    monkeypatch.setattr(TorchEngine, "train_epoch", train_epoch)
    with pytest.raises(TrainingError, match=r"the last checkpoint cannot be tested \(logits must be finite .* got nan"):
        train("digits", recipe=TINY, epochs=2, val_split=0, out=tmp_path)


def test_env_json_names_the_commit_that_the_run_was_made_in(tmp_path, monkeypatch):
    result = train("digits", recipe=TINY, epochs=1, out=tmp_path / "runs")
    here = json.loads((result.folder / "env.json").read_text())["git"]
    monkeypatch.chdir(tmp_path)
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    result = train("digits", recipe=TINY, epochs=1, out=tmp_path / "runs")
    assert json.loads((result.folder / "env.json").read_text())["git"] == {"commit": commit, "changed": False}
    assert here is None or here["commit"] != commit
