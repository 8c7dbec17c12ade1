"""Comparisons: arms, trials that fail or are interrupted, resuming, processes and clusters, the answer."""

import csv
import json
import os
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from labelsmooth import _files
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.comparison import Predictions, Watcher, compare
from labelsmooth.comparison.arms import Arm, grid

pytestmark = pytest.mark.usefixtures("undrawn")


def toy(seed, smoothing, gain=0.0, examples=2000, classes=4):
    """A classifier of known accuracy: .8, and ε x `gain` more; pairing by examples and by seeds as in a training."""
    hardness = np.random.default_rng(99).random(2 * examples)
    noise = np.random.default_rng(1000 + seed).normal(0, 0.02, 2 * examples)
    labels = np.random.default_rng(98).integers(0, classes, 2 * examples)
    right = hardness + noise < 0.8 + smoothing * gain
    said = np.where(right, labels, (labels + 1) % classes)
    logits = np.eye(classes)[said] * (3.0 - 4 * smoothing + hardness[:, None])
    return Predictions(logits[:examples], labels[:examples], logits[examples:], labels[examples:])


def helpful(seed, smoothing):
    return toy(seed, smoothing, gain=0.3)


class Counting(Watcher):
    def __init__(self):
        self.plan, self.outcomes = None, []

    def begin(self, plan):
        self.plan = plan

    def trial(self, outcome, done, total, left):
        self.outcomes.append(outcome)


def read(folder):
    return json.loads((folder / "stats.json").read_text())


def test_it_finds_what_is_there(tmp_path):
    result = compare(helpful, [0, 0.1, 0.2], seeds=4, name="toys", out=tmp_path)
    effect = result.analysis.effect(Arm(0.2))
    assert effect.verdict == "helps"
    assert effect.estimate == pytest.approx(0.06, abs=0.02)
    assert effect.low <= effect.estimate <= effect.high
    assert effect.low > 0
    assert result.analysis.chosen == Arm(0.2)
    assert not result.partial
    assert result.answer.startswith("On toys, ε = 0.2, chosen on validation, helps: +")
    assert "4 seeds, 2,000 test examples" in result.answer
    stats = read(result.folder)
    assert stats["answer"] == result.answer
    assert stats["chosen"] == "smoothing-0.2"
    assert len(stats["effects"]) == 16
    with (result.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[0]["arm"] == "smoothing-0"
    assert float(rows[0]["accuracy"]) == pytest.approx(0.8, abs=0.03)
    means = {arm["name"]: arm["metrics"]["accuracy"]["mean"] for arm in stats["arms"]}
    by_hand = np.mean([float(row["accuracy"]) for row in rows if row["arm"] == "smoothing-0.1"])
    assert means["smoothing-0.1"] == pytest.approx(by_hand)


def test_what_changes_nothing_is_equivalent(tmp_path):
    result = compare(lambda seed, smoothing: toy(seed, 0.0), [0, 0.1], seeds=3, out=tmp_path)
    assert {effect.verdict for effect in result.analysis.effects} == {"equivalent"}
    assert "validation prefers ε = 0" in result.answer
    assert "makes no difference beyond ±0.5 points" in result.answer


def test_the_factor_is_chosen_on_validation_alone(tmp_path):
    def misleading(seed, smoothing):
        good, bad = toy(seed, 0.2, gain=0.3), toy(seed, 0.0)
        best = smoothing == 0.1
        return (
            (good if best else bad).val_logits,
            good.val_labels,
            (bad if best else good).test_logits,
            good.test_labels,
        )

    result = compare(misleading, [0, 0.1, 0.2], seeds=3, out=tmp_path)
    assert result.analysis.chosen == Arm(0.1)
    assert result.analysis.effect(Arm(0.1)).verdict == "hurts"
    assert "ε = 0.1, chosen on validation, hurts" in result.answer


def test_one_seed_cannot_answer(tmp_path):
    result = compare(toy, [0, 0.1], seeds=1, out=tmp_path)
    assert result.answer.startswith("One seed cannot answer")
    assert result.analysis.effects == ()
    assert result.analysis.arms[0].metrics["accuracy"][0] == pytest.approx(0.8, abs=0.05)
    assert "test acc" in result.analysis.table()


def test_a_missing_baseline_is_added_and_said(tmp_path):
    watcher = Counting()
    result = compare(toy, [0.1], seeds=2, out=tmp_path, watcher=watcher)
    assert watcher.plan.added
    assert [arm.smoothing for arm in watcher.plan.arms] == [0.0, 0.1]
    assert any("has been added" in note for note in result.analysis.notes)


def test_arms_are_every_combination():
    arms, added = grid([0, 0.1], {"method": ["labels", "loss"], "dropout": [0.0, 0.5]}, only_smoothed=["method"])
    assert not added
    assert arms[0] == Arm(0.0, (("dropout", 0.0),))
    assert len(arms) == 2 + 4  # the method says nothing where nothing is smoothed
    assert arms[2].name == "smoothing-0.1_method-labels_dropout-0.0"
    assert arms[2].label == "ε = 0.1, method labels, dropout 0.0"


@pytest.mark.parametrize(
    ("smoothing", "options", "message"),
    [
        ([0], {}, "smoothing must name a factor above 0"),
        ([0, 1.0], {}, "smoothing must be a number in"),
        ([0, float("nan")], {}, "smoothing must be a number in"),
        ([0.1, 0.1], {}, "smoothing must name no value twice"),
        ([0.1], {"method": "loss"}, "method must be a list of values"),
        ([0.1], {"method": []}, "method must be a list of values"),
    ],
)
def test_arms_that_make_no_sense(smoothing, options, message):
    with pytest.raises(ValueError, match=message):
        grid(smoothing, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"seeds": 2.5}, "seeds must be"),
        ({"margins": {"acuracy": 0.1}}, "margins must name metrics among accuracy, nll, "),
        ({"margins": {"nll": -1}}, "margins of nll must be a number of at least 0"),
        ({"jobs": 0}, "jobs must be"),
        ({"backend": "slurm"}, "backend must be one of 'loky', 'dask'"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "scheduler must come with the dask backend"),
        ({"max_time": 0}, "max_time must be seconds above 0"),
        ({"max_time": float("nan")}, "max_time must be seconds above 0"),
        ({"out": 3}, "out must be a folder"),
    ],
)
def test_bad_options_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(toy, [0, 0.1], **{"out": tmp_path, **changes})
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_function(tmp_path):
    seen = []

    def train(seed, smoothing, depth=0):
        seen.append((seed, smoothing, depth))
        return toy(seed, smoothing)

    compare(train, [0, 0.1], seeds=1, options={"depth": [1, 2]}, out=tmp_path)
    assert seen == [(0, 0.0, 1), (0, 0.0, 2), (0, 0.1, 1), (0, 0.1, 2)]


def test_a_trial_that_fails_is_tried_again_and_then_reported(tmp_path):
    calls = []

    def train(seed, smoothing):
        calls.append((seed, smoothing))
        if (seed, smoothing) == (1, 0.1) or (seed, smoothing, calls.count((0, 0.1))) == (0, 0.1, 1):
            raise RuntimeError("boom <b>")
        return toy(seed, smoothing)

    result = compare(train, [0, 0.1], seeds=4, out=tmp_path)
    assert calls.count((1, 0.1)) == 2
    assert calls.count((0, 0.1)) == 2
    assert [(each.arm.smoothing, each.seed, each.error) for each in result.failed] == [
        (0.1, 1, "RuntimeError: boom <b>")
    ]
    assert result.partial
    assert result.analysis.seeds == (0, 2, 3)
    assert result.answer.startswith("Partial: ")
    assert read(result.folder)["failed"] == [{"arm": "smoothing-0.1", "seed": 1, "error": "RuntimeError: boom <b>"}]
    trials = json.loads((result.folder / "manifest.json").read_text())["trials"]
    assert trials["smoothing-0.1-1"]["status"] == "failed"
    assert trials["smoothing-0.1-0"]["attempts"] == 2
    assert "boom" in (result.folder / "runs" / "smoothing-0.1-1" / "error.txt").read_text()
    again = compare(toy_like(train), [0, 0.1], seeds=4, out=tmp_path, resume=result.folder)
    assert not again.partial
    assert again.analysis.seeds == (0, 1, 2, 3)


def toy_like(train):
    """`toy` under another function's name, as if a mistake in it had been mended."""

    def mended(seed, smoothing):
        return toy(seed, smoothing)

    mended.__module__, mended.__qualname__ = train.__module__, train.__qualname__
    return mended


def test_if_all_fail_the_first_error_is_told(tmp_path):
    def train(seed, smoothing):
        raise MemoryError("too large")

    with pytest.raises(
        TrainingError, match="the first 2 trials failed, and no other was begun; the first with: Memory"
    ):
        compare(train, [0, 0.1], seeds=2, out=tmp_path)


def test_an_interruption_loses_the_running_trial_only(tmp_path):
    calls = []

    def train(seed, smoothing):
        calls.append((seed, smoothing))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return toy(seed, smoothing)

    with pytest.raises(Interrupted, match="interrupted after 3 of 6 trials") as stop:
        compare(train, [0, 0.1], seeds=3, out=tmp_path)
    assert stop.value.command == "compare --resume"
    watcher = Counting()
    result = compare(train, [0, 0.1], seeds=3, resume=stop.value.folder, watcher=watcher)
    assert watcher.plan.done == 3
    assert len(watcher.outcomes) == 3
    assert calls[4:] == [(1, 0.1), (2, 0.0), (2, 0.1)]
    assert not result.partial
    whole = compare(toy_like(train), [0, 0.1], seeds=3, out=tmp_path)
    ours, theirs = read(result.folder), read(whole.folder)
    assert ours["effects"] == theirs["effects"]
    assert ours["arms"] == theirs["arms"]


def test_more_seeds_may_be_asked_for(tmp_path):
    first = compare(helpful, [0, 0.1], seeds=2, out=tmp_path)
    watcher = Counting()
    more = compare(helpful, [0, 0.1], seeds=4, resume=first.folder, watcher=watcher)
    assert watcher.plan.done == 4
    assert watcher.plan.left == 4
    assert more.analysis.seeds == (0, 1, 2, 3)


def test_seeds_that_were_added_after_an_answer_are_named(tmp_path):
    first = compare(helpful, [0, 0.1], seeds=2, out=tmp_path)
    again = compare(helpful, [0, 0.1], seeds=2, resume=first.folder)
    assert not any("Judged before" in note for note in (*first.analysis.notes, *again.analysis.notes))
    one_more = compare(helpful, [0, 0.1], seeds=3, resume=first.folder)
    (note,) = (note for note in one_more.analysis.notes if note.startswith("Judged before with 2 seeds."))
    assert "alone" not in note  # one seed cannot answer
    last = compare(helpful, [0, 0.1], seeds=5, resume=first.folder)
    (note,) = (note for note in last.analysis.notes if note.startswith("Judged before with 2 and 3 seeds."))
    pairs = {}
    for row in csv.DictReader((last.folder / "results.csv").read_text().splitlines()):
        pairs.setdefault(row["seed"], {})[row["arm"]] = float(row["accuracy"])
    mean = np.mean([100 * (pairs[seed]["smoothing-0.1"] - pairs[seed]["smoothing-0"]) for seed in "234"])
    assert f"The 3 seeds added since the first, alone: {mean:+.2f} points (9" in note
    assert json.loads((last.folder / "manifest.json").read_text())["judged"] == [2, 3, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing": [0, 0.2]}, r"arms was \[smoothing 0.0, smoothing 0.1\] and is \[smoothing 0.0, smoothing 0.2\]"),
        ({"margins": {"nll": 0.5}}, "margin of nll was 0.01 and is 0.5"),
        ({"seeds": 1}, "seeds were 2 and are 1"),
        ({"name": "others"}, "name was data and is others"),
        ({"train_fn": toy}, "function was .*helpful and is .*toy"),
    ],
)
def test_going_on_with_other_settings_is_refused(tmp_path, change, message):
    folder = compare(helpful, [0, 0.1], seeds=2, out=tmp_path).folder
    with pytest.raises(DataError, match=message):
        compare(**{"train_fn": helpful, "smoothing": [0, 0.1], "seeds": 2, "resume": folder, **change})


@pytest.mark.parametrize("damage", ["gone", "no manifest", "not json", "another format"])
def test_a_folder_that_is_no_comparison(tmp_path, damage):
    folder = compare(helpful, [0, 0.1], seeds=2, out=tmp_path).folder
    manifest = folder / "manifest.json"
    if damage == "gone":
        folder = tmp_path / "nothing"
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{" if damage == "not json" else '{"format": 99}')
    message = {"gone": "there is no folder", "no manifest": "is no comparison", "not json": "is damaged"}
    with pytest.raises(DataError, match=message.get(damage, "format 99; this version reads 1")):
        compare(helpful, [0, 0.1], seeds=2, resume=folder)


def test_it_stops_in_time_with_a_partial_answer(tmp_path):
    def slow(seed, smoothing):
        time.sleep(0.3)
        return toy(seed, smoothing)

    result = compare(slow, [0, 0.1], seeds=50, max_time=2.0, out=tmp_path)
    assert result.partial
    assert result.seconds < 4
    assert 2 <= len(result.analysis.seeds) < 6
    assert result.answer.startswith("Partial: ")
    assert read(result.folder)["partial"] is True


def test_no_seed_finished_in_time_is_said(tmp_path):
    def slow(seed, smoothing):
        time.sleep(0.5)
        return toy(seed, smoothing)

    result = compare(slow, [0, 0.1], seeds=2, max_time=0.6, out=tmp_path)
    assert result.analysis is None
    assert "nothing can be compared yet" in result.answer


def changed(field, value):
    def train(seed, smoothing):
        good = toy(seed, smoothing)
        return Predictions(**{**good.__dict__, field: value(getattr(good, field))})

    return train


def with_nan(logits):
    logits = logits.copy()
    logits[5, 1] = np.nan
    return logits


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (changed("test_logits", with_nan), "ε = 0 with seed 0, test: logits must be finite or -inf; got nan in row 5"),
        (changed("val_logits", with_nan), "validation: logits must be finite"),
        (changed("val_logits", lambda z: z[:, :3]), "3 classes on validation and 4 on test"),
        (changed("test_labels", lambda y: y[:-1]), "labels must be class ids of shape"),
        (changed("test_labels", lambda y: y + 3), "labels must be"),
    ],
)
def test_predictions_that_cannot_be_used(tmp_path, train, message):
    with pytest.raises(TrainingError, match=message):
        compare(train, [0, 0.1], seeds=2, out=tmp_path)


def test_validation_is_not_the_test_set(tmp_path):
    def train(seed, smoothing):
        good = toy(seed, smoothing)
        return good.test_logits, good.test_labels, good.test_logits, good.test_labels

    with pytest.raises(TrainingError, match="validation and test have the same logits"):
        compare(train, [0, 0.1], seeds=2, out=tmp_path)


def test_the_test_set_is_one_for_all(tmp_path):
    def train(seed, smoothing):
        good = toy(seed, smoothing)
        return good.val_logits, good.val_labels, good.test_logits, np.roll(good.test_labels, seed)

    result = compare(train, [0, 0.1], seeds=3, out=tmp_path)
    assert result.analysis.seeds == (0,)
    assert [(each.arm.smoothing, each.seed) for each in result.failed] == [(0, 1), (0.1, 1), (0, 2), (0.1, 2)]
    assert "tested on other examples or classes than ε = 0 with seed 0" in result.failed[0].error
    assert not (result.folder / "runs" / "smoothing-0-1" / "trial.json").exists()


def test_one_bad_trial_spoils_no_other(tmp_path):
    bad = changed("test_logits", with_nan)

    def train(seed, smoothing):
        return bad(seed, smoothing) if (seed, smoothing) == (1, 0.1) else toy(seed, smoothing)

    result = compare(train, [0, 0.1], seeds=3, out=tmp_path)
    assert result.partial
    assert result.analysis.seeds == (0, 2)
    assert "nan in row 5" in result.failed[0].error
    mended = compare(toy_like(train), [0, 0.1], seeds=3, resume=result.folder)
    assert mended.analysis.seeds == (0, 1, 2)
    assert not (result.folder / "runs" / "smoothing-0.1-1" / "error.txt").exists()


def test_an_arm_that_always_fails_is_left_out(tmp_path):
    def train(seed, smoothing):
        if smoothing == 0.2:
            raise RuntimeError
        return helpful(seed, smoothing)

    result = compare(train, [0, 0.1, 0.2], seeds=3, out=tmp_path)
    assert result.partial
    assert result.analysis.effect(Arm(0.1)).verdict == "helps"
    assert result.analysis.notes[0] == "ε = 0.2 is left out: all its trials failed."
    assert {each.error for each in result.failed} == {"RuntimeError: "}


def test_if_a_whole_seed_fails_no_more_are_begun(tmp_path):
    calls = []

    def train(seed, smoothing):
        calls.append(seed)
        raise ValueError

    with pytest.raises(
        TrainingError, match="the first 2 trials failed, and no other was begun; the first with: ValueError"
    ):
        compare(train, [0, 0.1], seeds=50, out=tmp_path)
    assert set(calls) == {0}


def test_the_order_of_factors_does_not_matter_for_going_on(tmp_path):
    first = compare(toy, [0.2, 0.1], seeds=2, out=tmp_path)
    assert not compare(toy, [0.2, 0.1], seeds=2, resume=first.folder).partial
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["smoothing"] == [0.2, 0.1]
    assert len(manifest["trials"]) == 6


def test_numpy_scalars_are_options_and_lists_are_not(tmp_path):
    def train(seed, smoothing, depth):
        assert type(depth) is int
        return toy(seed, smoothing)

    compare(train, np.array([0, 0.1]), seeds=1, options={"depth": np.array([1, 2])}, out=tmp_path)
    with pytest.raises(ValueError, match="depth must be strings, numbers, booleans or None"):
        compare(train, [0, 0.1], options={"depth": [[1], [2]]}, out=tmp_path)


def test_infinite_losses_are_refused_with_their_row(tmp_path):
    def minus_inf(logits):
        logits = logits.copy()
        logits[7] = [-np.inf, -np.inf, -np.inf, 0]
        return logits

    train = changed("test_labels", lambda y: np.where(np.arange(len(y)) == 7, 0, y))

    def both(seed, smoothing):
        good = train(seed, smoothing)
        return good.val_logits, good.val_labels, minus_inf(good.test_logits), good.test_labels

    with pytest.raises(TrainingError, match="the label's logit is -inf in row 7, so the NLL is infinite; clip"):
        compare(both, [0, 0.1], seeds=1, out=tmp_path)


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    folder = compare(toy, [0, 0.1], seeds=1, out=tmp_path).folder

    def again(seed, smoothing):
        with pytest.raises(DataError, match="another labelsmooth is at work"):
            compare(toy_like(again), [0, 0.1], seeds=1, resume=folder)
        return toy(seed, smoothing)

    again.__module__, again.__qualname__ = toy.__module__, toy.__qualname__
    compare(again, [0, 0.1], seeds=2, resume=folder)


def test_two_at_once_in_one_trial_are_refused(tmp_path):
    """As a worker of a cluster may be at work still, when its comparison has been killed and goes on."""
    folder = compare(toy, [0, 0.1], seeds=1, out=tmp_path).folder
    with _files.locked(folder / "runs" / ".smoothing-0.1-1.lock"):
        result = compare(toy, [0, 0.1], seeds=2, resume=folder)
        (failed,) = result.failed
        assert failed.error == (
            f"another process is still at work in {folder.absolute() / 'runs' / 'smoothing-0.1-1'}; wait for it, or stop "
            "it, and go on"
        )
        assert not (folder / "runs" / "smoothing-0.1-1").exists()
    assert not compare(toy, [0, 0.1], seeds=2, resume=folder).partial
    assert not list(folder.rglob(".*"))


def test_a_lock_that_was_removed_is_no_lock(tmp_path):
    """Its file is opened, then removed by who held it, then locked: another process would lock a new file."""
    import fcntl

    flock, path = fcntl.flock, tmp_path / ".lock"

    def late(file, how):
        if path.exists() and not opened:
            path.unlink()
        opened.append(file)
        flock(file, how)

    opened = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fcntl, "flock", late)
        with _files.locked(path), pytest.raises(BlockingIOError), _files.locked(path):
            pass
        assert len(opened) == 3
        patched.setattr(fcntl, "flock", lambda *given: (_ for _ in ()).throw(OSError(37, "No locks available")))
        with _files.locked(path), _files.locked(path):  # a file system without them
            pass
    assert not path.exists()


ORPHANS = """
import os, sys, time
from labelsmooth.comparison import compare
folder = sys.argv[1]
def train(seed, smoothing):
    with open(f"{folder}/{os.getpid()}", "a", buffering=1) as file:
        for _ in range(2000):
            file.write("alive\\n")
            time.sleep(0.05)
compare(train, [0, 0.1], seeds=1, jobs=2, out=folder + "/runs")
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)])
    beats = lambda: {path: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}  # noqa: E731
    deadline = time.monotonic() + 120
    while len(beats()) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    before, deadline = None, time.monotonic() + 30
    while before != (before := beats()):
        assert time.monotonic() < deadline
        time.sleep(1)


def vanishing(seed, smoothing):
    if seed == 2:
        time.sleep(2)  # let the other process finish what it has begun
        os._exit(1)
    return toy(seed, smoothing)


def test_a_process_that_dies_leaves_the_rest(tmp_path):
    notes = []

    class Notes(Watcher):
        def note(self, text):
            notes.append(text)

    result = compare(vanishing, [0, 0.1], seeds=3, jobs=2, out=tmp_path, watcher=Notes())
    assert result.partial
    assert result.analysis.seeds == (0, 1)
    assert "a process ended in the middle of a trial" in notes[0]


@pytest.mark.parametrize("returned", [None, 3, (1, 2), {"val_logits": 1}])
def test_what_a_function_must_return_is_said(tmp_path, returned):
    with pytest.raises(TrainingError, match="it must return labelsmooth.comparison.Predictions"):
        compare(lambda seed, smoothing: returned, [0, 0.1], seeds=1, out=tmp_path)


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_processes_and_clusters_give_the_same(tmp_path, backend):
    if backend == "dask":
        pytest.importorskip("distributed")
    environment = {**os.environ}
    alone = compare(helpful, [0, 0.1], seeds=2, out=tmp_path)
    together = compare(helpful, [0, 0.1], seeds=2, out=tmp_path, jobs=2, backend=backend)
    assert not together.partial
    of_imports = {"KMP_INIT_AT_FORK", "__DASK_PARENT_PID"}
    assert {
        name: value for name, value in os.environ.items() if name not in of_imports - environment.keys()
    } == environment
    assert read(alone.folder)["effects"] == read(together.folder)["effects"]


def test_a_cluster_of_somebody_else_is_used(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        mock.patch.dict(os.environ),  # where Dask leaves what its workers need
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
    ):
        result = compare(
            helpful, [0, 0.1], seeds=2, out=tmp_path, backend="dask", scheduler=cluster.scheduler_address
        )  # fmt: skip
    assert result.analysis.effect(Arm(0.1)).estimate > 0


def test_a_cluster_that_does_not_answer(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("labelsmooth.comparison.trials._ANSWER_SECONDS", 1)
    with pytest.raises(DataError, match="the Dask cluster at tcp://127.0.0.1:9 does not answer"):
        compare(helpful, [0, 0.1], seeds=2, out=tmp_path, backend="dask", scheduler="tcp://127.0.0.1:9")


def test_eight_seeds_bring_a_permutation_test(tmp_path):
    result = compare(helpful, [0, 0.1], seeds=8, out=tmp_path)
    assert result.analysis.effect(Arm(0.1)).permutation_p == pytest.approx(2 / 256)
    assert any("Sign-flip permutation test" in note and "p = 0.007812" in note for note in result.analysis.notes)
    fewer = compare(helpful, [0, 0.1], seeds=5, out=tmp_path)
    assert fewer.analysis.effect(Arm(0.1)).permutation_p is None
    assert any("its smallest p is 0.0625" in note for note in fewer.analysis.notes)


def test_inconclusive_says_how_many_seeds_would_tell(tmp_path):
    def noisy(seed, smoothing):
        rng = np.random.default_rng([seed, int(smoothing * 100)])
        good = toy(seed, smoothing)
        flip = rng.random(2000) < 0.05 + 0.05 * rng.random()
        logits = np.where(flip[:, None], np.roll(good.test_logits, 1, axis=1), good.test_logits)
        return good.val_logits, good.val_labels, logits, good.test_labels

    effect = compare(noisy, [0, 0.1], seeds=3, out=tmp_path).analysis.effect(Arm(0.1))
    assert effect.verdict == "inconclusive"
    assert effect.seeds_needed is None or effect.seeds_needed > 3
    assert "would" in effect.seeds_note


def test_the_note_on_temperature_scaling(tmp_path):
    """Arms that differ by a factor on the logits: scaling alone makes them the same."""

    def scaled(seed, smoothing):
        rng = np.random.default_rng(seed)
        labels = np.random.default_rng(1).integers(0, 3, 4000)
        truth = np.random.default_rng(2).normal(size=(4000, 3)) + 2 * np.eye(3)[labels]
        logits = 2 * truth + 0.05 * rng.normal(size=truth.shape)  # calibrated
        factor = 3.0 if smoothing == 0 else 1.0
        return factor * logits[:2000], labels[:2000], factor * logits[2000:], labels[2000:]

    result = compare(scaled, [0, 0.1], seeds=3, margins={"ece": 0.03}, out=tmp_path)
    assert result.analysis.effect(Arm(0.1), "ece").verdict == "helps"
    assert any("temperature scaling alone gives the same calibration" in note for note in result.analysis.notes)
    summary = {each.arm.smoothing: each for each in result.analysis.arms}
    assert summary[0.0].temperature == pytest.approx(3 * summary[0.1].temperature, rel=0.02)
