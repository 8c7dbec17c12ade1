"""`labelsmooth compare` on digits: pairing, cost, resuming, exit codes."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from labelsmooth.cli import main
from tests.processes import command, wait_for

pytestmark = pytest.mark.usefixtures("undrawn")

QUICK = ["--epochs", "1", "--smoothing", "0", "0.1"]


def run(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    assert main(["compare", *QUICK, "--seeds", "2", "--out", str(out)]) == 0
    return out / "digits-compare-001"


@pytest.fixture
def copied(folder, tmp_path):
    """`folder`, to be gone on with."""
    return shutil.copytree(folder, tmp_path / "copy" / folder.name)


def test_the_same_seed_is_the_same_training_but_for_the_arm(folder):
    indices, first_order = {}, {}
    for name in ("smoothing-0-0", "smoothing-0.1-0", "smoothing-0-1"):
        run_folder = folder / "runs" / name
        with np.load(run_folder / "predictions" / "val.npz") as file:
            indices[name] = file["index"]
        config = (run_folder / "config.yaml").read_text()
        first_order[name] = [line for line in config.splitlines() if not line.startswith("smoothing")]
    assert (indices["smoothing-0-0"] == indices["smoothing-0.1-0"]).all()
    assert not (indices["smoothing-0-0"] == indices["smoothing-0-1"]).all()
    assert first_order["smoothing-0-0"] == first_order["smoothing-0.1-0"]


def test_the_folder_holds_everything(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "manifest.json", "results.csv", "stats.json", "report.html", "plots", "runs"} <= names
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["classes"] == [str(digit) for digit in range(10)]
    assert stats["answer"].startswith("On digits, ")
    for run_folder in (folder / "runs").iterdir():
        assert (run_folder / "summary.json").is_file()
        assert not (run_folder / "report.html").exists()  # for `labelsmooth report` to draw
        with np.load(run_folder / "predictions" / "test.npz") as file:
            accuracy = float((file["logits"].argmax(1) == file["labels"]).mean())
        assert json.loads((run_folder / "summary.json").read_text())["test"]["accuracy"] == pytest.approx(accuracy)
    assert not list(folder.rglob(".*"))


def test_a_trial_that_was_tested_is_not_tested_again(copied, capsys):
    trial = copied / "runs" / "smoothing-0-0"
    (trial / "trial.json").unlink()
    tested = (trial / "predictions" / "test.npz").stat().st_mtime_ns
    assert run(capsys, "--resume", copied)[0] == 0
    assert (trial / "trial.json").is_file()
    assert (trial / "predictions" / "test.npz").stat().st_mtime_ns == tested


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:900])])
def test_predictions_that_were_lost_are_made_again(damage, copied, capsys):
    trial = copied / "runs" / "smoothing-0-0"
    lost, metrics = trial / "predictions" / "test.npz", (trial / "metrics.csv").read_bytes()
    with np.load(lost) as file:
        logits = file["logits"]
    answer = json.loads((copied / "stats.json").read_text())["answer"]
    damage(lost)
    code, out, err = run(capsys, "--resume", copied)
    assert code == 0, err
    assert "ε = 0 with seed 0 is done again" in " ".join(out.split())
    with np.load(lost) as file:
        assert np.array_equal(file["logits"], logits)
    assert (trial / "metrics.csv").read_bytes() == metrics  # tested anew, not trained
    assert json.loads((copied / "stats.json").read_text())["answer"] == answer


def test_a_test_set_of_one_is_refused_before_anything_is_trained(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.arange(40) % 2, x_test=images[:1], y_test=[0])
    code, _, err = run(capsys, tmp_path / "a.npz", "--out", tmp_path / "out")
    assert (code, "has one image; a comparison needs two" in " ".join(err.split())) == (3, True), err
    assert not (tmp_path / "out").exists()


def test_an_ece_stands_beside_its_bins_and_its_expectation(copied, capsys):
    code, out, _ = run(capsys, "--resume", copied)
    assert code == 0
    stats = json.loads((copied / "stats.json").read_text())
    (line,) = [line for line in out.splitlines() if line.startswith("ε = 0.1")]
    arm = next(arm for arm in stats["arms"] if arm["label"] == "ε = 0.1")
    assert "  ECE (15 bins)  " in out
    assert f"  {arm['metrics']['ece']['mean']:.4f} ({arm['expected_ece']:.4f})  " in line
    (note,) = [note for note in stats["notes"] if note.startswith("Calibration: ")]
    assert "(ECE, 15 bins, and under perfect calibration: ε = 0 after temperature scaling " in note
    base = stats["arms"][0]
    assert (
        f"scaling {base['metrics']['ece_scaled']['mean']:.4f}, {base['expected_ece_scaled']:.4f}; ε = 0.1 as " in note
    )
    expected = []
    for seed in (0, 1):
        with np.load(copied / "runs" / f"smoothing-0.1-{seed}" / "predictions" / "test.npz") as file:
            z = file["logits"].astype(float)
        p = np.exp(z - z.max(1, keepdims=True))
        confidence, rng = (p.max(1) / p.sum(1)), np.random.default_rng(0)
        hits = rng.random((2000, len(confidence))) < confidence  # labels redrawn
        bins = np.ceil(15 * confidence).astype(int)
        gaps = [np.abs((hits - confidence)[:, bins == b].sum(1)) for b in np.unique(bins)]
        expected.append(sum(gaps).mean() / len(confidence))
    assert arm["expected_ece"] == pytest.approx(np.mean(expected), rel=0.02)


def test_more_seeds_by_resuming(copied, capsys):
    folder = copied
    code, out, err = run(capsys, "--resume", folder, "--seeds", 3, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["complete_seeds"] == 3
    assert "2 arms x 3 seeds, 4 of them done; 2 to train" in err
    again = run(capsys, "--resume", folder, "--json")
    assert json.loads(again[1])["effects"] == answer["effects"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--smoothing", "0"], "smoothing must name a factor above 0"),
        (["--smoothing"], "smoothing must name a factor above 0, to compare with 0; got none"),
        (["--smoothing", "1"], "smoothing must be a number in [0, 1)"),
        (["--seeds", "1.5"], "Invalid value for --seeds: it must be a whole number; got 1.5"),
        (["--seeds", "0"], "seeds must be a whole number of at least 1"),
        (["--val-split", "0"], "val_split must be above 0"),
        (["--vary", "dropout"], "vary must be NAME=VALUE"),
        (["--vary", "lr=[1,2"], "vary must be NAME=VALUE"),
        (["--vary", "dropout=.1,.2", "dropout=.3"], "vary must name an option once"),
        (["--method", "labels", "loss", "--vary", "method=loss"], "--vary method and --method both say"),
        (["--margin", "ece=.1", "ece=.2"], "margin must name a metric once"),
        (["--batch-size", "5000"], "batch_size must be at most"),
        (["--scheduler", "tcp://127.0.0.1:1", "--backend", "dask", "--jobs", "2"], "jobs must be left out"),
        (["--vary", "dropuot=0,0.5"], "a recipe has no option dropuot; did you mean dropout?; it has name, model"),
        (["--vary", "dropout=0,2"], "dropout must be a number in [0, 1)"),
        (["--vary", "epochs=1,2", "--epochs", "3"], "--vary epochs and --epochs both say"),
        (["--margin", "accuracy=x"], "margin must be METRIC=NUMBER"),
        (["--margin", "acc=.1"], "--margin must name metrics among accuracy, nll, "),
        (["--margin", "nll=-1"], "--margin of nll must be a number of at least 0; got -1.0"),
        (["--scheduler", "tcp://127.0.0.1:1"], "scheduler must come with the dask backend"),
        (["--smothing", "0.1"], "Did you mean"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, capsys, arguments, message):
    code, _, err = run(capsys, *arguments, "--out", tmp_path)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_wrong_data_and_wrong_folders(tmp_path, capsys, folder):
    assert run(capsys, tmp_path / "nothing", "--out", tmp_path)[0] == 3
    assert run(capsys, "--resume", tmp_path)[0] == 3
    trial = folder / "runs" / "smoothing-0-0"
    for words_of, path, words in (
        (
            "compare --resume",
            trial,
            "is no comparison: it has no manifest.json, and is a run's: labelsmooth train --resume",
        ),
        ("train --resume", folder, "is a comparison's folder: labelsmooth compare --resume goes on with it"),
        ("evaluate", folder, f"is a comparison; give one of its runs, such as {trial}"),
        ("evaluate", trial / "config.yaml", "is no readable .npz file (it is another kind of file)"),
    ):
        assert main([*words_of.split(), str(path)]) == 3
        assert words in capsys.readouterr().err
    code, _, err = run(capsys, "--resume", folder, "--smoothing", "0.3")
    assert code == 2
    assert "leave out --smoothing" in err


def test_one_seed_cannot_answer(tmp_path, capsys):
    code, out, _ = run(capsys, *QUICK, "--seeds", 1, "--out", tmp_path)
    assert code == 0
    assert "one seed cannot answer" in out
    assert "One seed cannot answer whether label smoothing helps on digits" in out


def test_options_that_vary_and_noise(tmp_path, capsys):
    arguments = ["--epochs", 1, "-s", 0.1, "--method", "labels", "loss", "--noise", "symmetric:0.4", "--seeds", 1]
    code, out, _ = run(capsys, *arguments, "--out", tmp_path)
    assert code == 0
    assert "ε = 0; ε = 0.1, method labels; ε = 0.1, method loss (ε = 0, the baseline, is added)" in out
    data = json.loads((tmp_path / "digits-compare-001" / "runs" / "smoothing-0-0" / "data.json").read_text())
    assert data["noise"]["asked"] == "symmetric:0.4"


def test_time_that_is_up_gives_a_partial_answer(copied, capsys):
    code, out, _ = run(capsys, "--resume", copied, "--seeds", 200, "--max-time", 0.01)
    assert code == 5
    assert "4 of them done; 396 to train" in out
    assert "Partial: " in out
    assert "go on with   labelsmooth compare --resume" in out


def test_numbers_in_any_spelling_and_schedules_with_commas():
    from labelsmooth.cli.compare import _varied

    assert _varied(["lr=1e-3,0.01", 'schedule=[cosine, "step:factor=.5,every=10"]', "flip=true,false"]) == {
        "lr": [0.001, 0.01], "schedule": ["cosine", "step:factor=.5,every=10"], "flip": [True, False],
    }  # fmt: skip


def test_an_interrupted_comparison_goes_on(tmp_path, capsys, monkeypatch):
    begun = command(tmp_path, "compare", *QUICK, "--seeds", "30")
    wait_for(tmp_path, "runs/*/runs/*/trial.json", begun)
    os.kill(begun.pid, signal.SIGINT)
    begun.join(60)
    assert begun.exitcode == 130
    err = (tmp_path / "err").read_text()
    assert "of 60 trials. Go on with:\n  labelsmooth compare --resume runs/digits-compare-001" in err
    assert "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "--resume", "runs/digits-compare-001", "--max-time", 0.5)
    assert code == 5
    assert "of them done" in out


def test_killed_in_a_trial_and_gone_on_with_from_elsewhere(tmp_path, capsys, monkeypatch):
    """Paths with spaces, relative to another folder; the noise too."""
    from sklearn.datasets import load_digits

    here, there = tmp_path / "one place", tmp_path / "another"
    here.mkdir()
    there.mkdir()
    images, labels = load_digits(return_X_y=True)
    images, labels = (images[:400] * 15).astype(np.uint8).reshape(-1, 8, 8), labels[:400]
    np.savez(here / "my digits.npz", images=images, labels=labels)
    (here / "others.txt").write_text("\n".join(str((label + 1) % 10) for label in labels))
    arguments = ["my digits.npz", "--noise", "others.txt", "--epochs", "8", "-s", "0", "0.1", "--seeds", "2"]
    begun = command(here, "compare", *arguments, "--out", "my runs")
    wait_for(here, "my runs/*/runs/*/checkpoints/last.safetensors", begun)
    begun.kill()
    begun.join(60)
    folder = here / "my runs" / "my-digits-compare-001"
    monkeypatch.chdir(there)
    code, out, err = run(capsys, "--resume", os.path.relpath(folder, there), "--json")
    assert code == 0, err
    assert "resuming" in err
    assert json.loads(out)["complete_seeds"] == 2
    assert not list(folder.glob("runs/*/report.html"))
    data = json.loads((folder / "runs" / "smoothing-0-1" / "data.json").read_text())
    assert data["noise"]["changed"] == data["noise"]["of"]  # every label is another one
    (here / "others.txt").write_text("0\n" * 400)
    code, _, err = run(capsys, "--resume", folder, "--seeds", "3")
    assert code == 3
    assert "noise_sha256 was" in err
