"""The command, as a user runs it: output, exit codes, and messages that say what, where and how to mend it."""

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from labelsmooth.cli import main

COMMAND = [sys.executable, "-m", "labelsmooth"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in this process, in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run, and what the command printed."""
    folder = tmp_path_factory.mktemp("cli")
    result = subprocess.run(
        [*COMMAND, "train", "--epochs", "3", "--plot", "mine.png"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / "runs" / "digits-001", result.stdout


def test_train_prints_the_story(finished):
    folder, out = finished
    for expected in (
        "data        digits: 10 classes, images 8x8x1; 1293 training, 144 validation, 360 test",
        "model       small, 94,410 trainable parameters",
        "smoothing   0.1, method loss (the loss smooths): true class 0.91, others 0.01",
        "cannot go below its floor 0.5003",
        "precision    recall  f1-score   support",
        "weighted avg",
        "runs/digits-001/plots/curves.png",
        "runs/digits-001/plots/confusion.png",
    ):
        assert expected in out, expected
    first = re.search(r"first label, (\d): before ([01 ]+)\n +after  ([0-9. ]+)\n", out)
    assert first[2].split()[int(first[1])] == "1"
    assert first[3].split()[int(first[1])] == "0.91"
    line = (
        r"epoch \d/3  smoothed loss \d\.\d{4} \(ε=0\.1, floor 0\.5003\)  train acc .*val NLL .*val acc .*lr .*images/s"
    )
    assert len(re.findall(line, out)) == 3
    assert "\x1b" not in out  # no colours where nobody sees them
    assert (folder.parent.parent / "mine.png").stat().st_size > 10_000


def test_evaluate_a_run_and_a_file(finished, run, tmp_path):
    folder, out = finished
    code, text, _ = run("evaluate", folder)
    assert code == 0
    report = text[: text.index("\n\n/")]
    assert report.strip() in out
    code, text, _ = run("evaluate", folder, "--split", "val", "--json")
    assert json.loads(text)["examples"] == 144
    np.savez(tmp_path / "p.npz", logits=np.eye(3), labels=[0, 1, 1])
    code, text, err = run("evaluate", tmp_path / "p.npz", "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["accuracy"] == pytest.approx(2 / 3)


def test_json_is_pure_and_words_go_to_stderr(run):
    code, out, err = run("train", "--epochs", "1", "--json", "--out", "elsewhere", "--smoothing", "0", "--seed", "3")
    assert code == 0
    summary = json.loads(out)
    assert summary["run"] == "elsewhere/digits-001"
    assert summary["smoothing"] == 0
    assert summary["seed"] == 3
    assert "hard labels" in err
    assert "epoch 1/1  loss " in err


def test_explain(run):
    code, out, _ = run("explain", "--smoothing", ".1", "--classes", "10")
    assert code == 0
    assert "true class 0.91, others 0.01" in out
    code, out, _ = run("explain", "--json", "-s", "0", "--classes", "3")
    assert json.loads(out) == {
        "smoothing": 0.0, "num_classes": 3, "true_class": 1.0, "other_classes": 0.0, "entropy_floor": 0.0,
        "best_logit_gap": None, "conventions": {"inclusive": 0.0, "exclusive": 0.0, "classy_vision": 0.0},
    }  # fmt: skip


def test_doctor(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert "torch 2." in out
    code, out, _ = run("doctor", "--json")
    assert json.loads(out)["device"] in ("cpu", "cuda")


def test_predict(finished, run, tmp_path):
    from PIL import Image

    from labelsmooth.training import load

    data = load("digits")
    for i in range(3):
        Image.fromarray(data.test.images[i, ..., 0]).resize((40, 40)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    folder, _ = finished
    code, out, err = run("predict", folder, "0.png", "bad.png", "1.png", "--top", "2")
    assert code == 3
    assert [line.partition(":")[0] for line in out.splitlines()] == ["0.png", "1.png"]
    assert re.fullmatch(r"0\.png: \d \d\.\d{4}, \d \d\.\d{4}", out.splitlines()[0])
    assert err == "labelsmooth: bad.png cannot be decoded: it is no image of a format that Pillow knows\n"
    code, out, _ = run("predict", folder, "bad.png", "2.png", "--json")
    assert code == 3
    failed, row = map(json.loads, out.splitlines())
    assert failed == {"file": "bad.png", "error": err.removeprefix("labelsmooth: ").strip()}
    assert row["file"] == "2.png"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
    assert [one["label"] for one in row["top"]] == sorted(row["probabilities"], key=lambda k: -row["probabilities"][k])[
        :3
    ]


def test_predict_needs_the_checkpoint_that_was_tested(finished, run, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoints" / "best.safetensors").unlink()
    code, out, err = run("predict", "copy", "any.png")
    assert (code, out) == (3, "")
    assert re.fullmatch(r"labelsmooth: \S+best.safetensors is missing, which the figures of copy are of; .*\n", err)


def test_predict_folders_and_a_list_on_stdin(finished, run, tmp_path, monkeypatch):
    from PIL import Image

    folder, _ = finished
    for name in ("b.png", "deeper/a.jpg", "deeper/notes.txt"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 99).save(tmp_path / "mine" / name, "png")
    code, out, err = run("predict", folder, "mine", "--json")
    assert code == 0
    assert [json.loads(line)["file"] for line in out.splitlines()] == ["mine/b.png", "mine/deeper/a.jpg"]
    assert err == "labelsmooth: passed over in mine: 1 file that is no image: mine/deeper/notes.txt\n"
    listed = io.TextIOWrapper(io.BytesIO(b"mine/b.png\n\nmine/deeper\r\ngone\xff.png\n"))
    monkeypatch.setattr(sys, "stdin", listed)
    code, out, err = run("predict", folder, "-", "--top", "1")
    assert code == 3
    assert [line.partition(":")[0] for line in out.splitlines()] == ["mine/b.png", "mine/deeper/a.jpg"]
    assert "labelsmooth: gone\\xff.png: there is no such file" in err
    (tmp_path / "empty").mkdir()
    code, out, err = run("predict", folder, "mine/b.png", "empty")
    assert (code, len(out.splitlines())) == (3, 1)
    assert err == "labelsmooth: empty holds no image that can be opened\n"
    code, out, err = run("predict", folder, "empty", "./gone.png", "--json")
    assert [json.loads(line)["error"] for line in out.splitlines()] == [
        "empty holds no image that can be opened", "./gone.png: there is no such file"
    ]  # fmt: skip
    odd = [os.fsencode(tmp_path / "odd") + name for name in (b"/a\nb.png", b"/bad\xff.png")]
    (tmp_path / "odd").mkdir()
    for name in odd:
        shutil.copy(tmp_path / "mine" / "b.png", name)
    code, out, err = run("predict", folder, tmp_path / "odd", "--json")
    assert (code, err) == (0, "")
    assert [os.fsencode(json.loads(line)["file"]) for line in out.splitlines()] == odd
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert run("predict", folder, "-") == (0, "", "labelsmooth: the list on stdin names no file\n")


def test_data(run, tmp_path):
    from tests.test_own_data import classes, tree

    files = classes("train/") | classes("test/", 6, seed=1) | {"train/cat/notes.txt": b"x"}
    tree(tmp_path / "pets", files)
    (tmp_path / "pets/test/dog/leak.png").write_bytes((tmp_path / "pets/train/dog/001.png").read_bytes())
    code, out, _ = run("data", "pets")
    assert code == 0
    for line in (
        "examples     20 train, 0 val, 7 test (its own: train, test; a training takes validation from train)",
        "images       9x9\n",
        "trained at   9x9, RGB",
        "classes      2; all have the same number of training images",
        "             cat  10 train, 0 val, 3 test",
        "duplicates   1 test in train",
        "left out     1 file that is no image: pets/train/cat/notes.txt\n",
    ):
        assert line in out
    code, out, _ = run("data", "pets", "--json")
    assert json.loads(out)["duplicates"]["test in train"] == 1
    code, _, err = run("data", "nowhere")
    assert code == 3
    assert "there is no nowhere; give digits, cifar10, a folder with a sub-folder per class" in err


def test_looking_at_data_needs_no_pytorch(tmp_path):
    code = "import sys; from labelsmooth.cli import main; main(['data']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0


def test_more_epochs_from_the_command_line(run, tmp_path, undrawn):
    assert run("train", "--epochs", "1")[0] == 0
    code, out, _ = run("train", "--resume", "runs/digits-001", "--epochs", "2")
    assert code == 0
    assert "resuming runs/digits-001 after 1 epoch" in out
    code, _, err = run("train", "--resume", "runs/digits-001", "--epochs", "2", "--seed", "1")
    assert code == 2
    assert "--resume goes on with the run's own settings, but for --epochs and --devices; leave out --seed" in err


def test_config_and_its_precedence(run, tmp_path, undrawn):
    (tmp_path / "c.yaml").write_text("epochs: 1\nlr: 1e-2\nsmoothing: 0.3\nval-split: 0.2\n")
    code, out, _ = run("train", "--config", "c.yaml", "--smoothing", "0.2", "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["epochs"], summary["smoothing"]) == (1, 0.2)
    text = (tmp_path / "runs" / "digits-001" / "config.yaml").read_text()
    assert "lr: 0.01\n" in text
    assert "val_split: 0.2\n" in text
    (tmp_path / "p.yaml").write_text("epochs: 1\nplot: theirs.png\nout: there\n")
    for arguments, drawn in ((("--plot", "ours.png"), "ours.png"), ((), "theirs.png")):
        code, out, err = run("train", "--config", "p.yaml", *arguments)
        assert code == 0, err
        assert (tmp_path / drawn).exists()
        assert drawn in out
    assert len(list((tmp_path / "there").iterdir())) == 2
    code, _, _ = run("train", "--config", "runs/digits-001/config.yaml")
    assert code == 0
    again, first = ((tmp_path / "runs" / f"digits-00{i}" / "config.yaml").read_text() for i in (2, 1))
    assert again == first
    for content, message in (
        ("data: 5", "data must be a name or a path; got 5"),
        ("deterministic: 'no'", "deterministic must be true or false; got 'no'"),
        ("epochz: 1", "c.yaml has an unknown option epochz; did you mean epochs?"),
        ("[1, 2]", "c.yaml must hold option names and values"),
        ("a: [", "c.yaml cannot be read as YAML"),
    ):
        (tmp_path / "c.yaml").write_text(content)
        code, _, err = run("train", "--config", "c.yaml")
        assert code == (2 if "must be" in message else 3)
        assert message in err
    assert "there is no file gone.yaml" in run("train", "--config", "gone.yaml")[2]


def test_config_of_a_recipe_made_in_python(run, tmp_path, undrawn):
    from dataclasses import replace

    from labelsmooth.training import DIGITS, train

    first = train("digits", replace(DIGITS, name="mine", momentum=0.8), epochs=1, out=tmp_path / "one")
    code, _, err = run("train", "--config", first.folder / "config.yaml", "--out", "two")
    assert code == 0, err
    assert (tmp_path / "two" / "digits-001" / "config.yaml").read_text() == (first.folder / "config.yaml").read_text()


def test_a_run_goes_on_from_any_folder(run, tmp_path, monkeypatch, undrawn):
    from tests.test_data import pictures, png, write

    (tmp_path / "some").mkdir()
    write(tmp_path / "some" / "train.parquet", [png(x) for x in pictures(120)], [i % 2 for i in range(120)])
    assert run("train", "some", "--epochs", "1", "--batch-size", "16")[0] == 0
    (tmp_path / "runs" / "some-001" / "summary.json").unlink()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert run("train", "--resume", "../runs/some-001")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "-s", "nan"), 2, "smoothing must be a number in [0, 1); got nan"),
        (("train", "-s", "-0.1"), 2, "smoothing must be a number in [0, 1); got -0.1"),
        (("train", "-s", "1.0"), 2, "smoothing must be a number in [0, 1); got 1.0"),
        (("train", "-s", "abc"), 2, 'unable to convert "abc" into float'),
        (("train", "--smothing", "0.1"), 2, "Did you mean --smoothing?"),
        (("trian",), 2, 'Did you mean "train"?'),
        (("train", "digits", "more"), 2, "more"),
        (("train", "--method", "both"), 2, "both"),
        (("train", "--seed", "1.5"), 2, "--seed"),
        (("explain", "--classes", "2.5"), 2, "--classes"),
        (("train", "--resume", "gone", "--out", "x"), 2, "leave out --out"),
        (("train", "--epochs", "0"), 2, "epochs must be a positive number; got 0.0"),
        (("train", "--plot", "c.bmp"), 2, "plot must end in one of .png, .svg, .pdf; got c.bmp"),
        (("train", "gone.parquet"), 3, "there is no file gone.parquet"),
        (("train", "imagenet"), 3, "there is no imagenet; give digits, cifar10"),
        (("train", "--resume", "gone"), 3, "there is no run folder gone"),
        (
            ("train", "--resume", "gone", "--lr", "1"),
            2,
            "--resume goes on with the run's own settings, but for --epochs and --devices; leave out --lr",
        ),
        (("train", "--lr", "1e9"), 4, "the loss became"),
        (("train", "--out", "/proc/nowhere"), 2, "/proc/nowhere"),
        (("train", "--out", sys.executable), 2, "out must be a folder; got "),
        (("evaluate", "gone"), 3, "there is no file gone"),
        (("evaluate", "."), 3, "has no predictions for test"),
        (("predict", "gone", "x.png"), 3, "there is no run folder gone"),
        (("predict", "gone"), 2, "files must name at least one image"),
        (("explain", "--classes", "1"), 2, "num_classes must be a whole number of at least 2; got 1"),
    ],
)
def test_mistakes(arguments, code, message, run):
    got, _, err = run(*arguments)
    assert got == code
    assert err.startswith("labelsmooth: ")
    assert message in err
    assert "Traceback" not in err
    assert "Traceback" in run("--debug", *arguments)[2]


def test_a_missing_extra_prints_the_pip_line(tmp_path):
    code = "import sys; sys.modules['{}'] = None; from labelsmooth.cli import main; sys.exit(main({}))"
    for module, arguments in (
        ("cyclopts", ["--help"]),
        ("torch", ["train"]),
        ("sklearn", ["train"]),
        ("yaml", ["doctor"]),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code.format(module, arguments)], capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 6, result.stderr
        assert f"needs {module}: pip install 'labelsmooth[train]'" in result.stderr


def test_help_imports_no_framework():
    code = """
import sys
from labelsmooth.cli import main
for arguments in ([], ["--help"], *([name, "--help"] for name in ("train", "evaluate", "predict", "data", "explain", "doctor"))):
    assert main(arguments) == 0
heavy = {"torch", "numpy", "sklearn", "matplotlib", "pyarrow", "PIL", "yaml", "jax", "tensorflow", "keras"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert "--weight-decay" in result.stdout


@pytest.mark.parametrize("moment", ["while it trains", "at once"])
def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(moment, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "500"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if re.match(r"epoch +3/" if moment == "while it trains" else "run ", line):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert re.search(r"interrupted; saved: .*\. Go on with:\n  labelsmooth train --resume runs/digits-001\n", err)
    folder = tmp_path / "runs" / "digits-001"
    assert not list(folder.rglob(".*"))  # nothing half-written
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 500.0", "epochs: 6"))
    result = subprocess.run(
        [*COMMAND, "train", "--resume", "runs/digits-001"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "test accuracy" in result.stdout


def test_a_terminal_gets_a_live_bar(tmp_path):
    terminal, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "5"], cwd=tmp_path, env=env, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # the process has closed its end
            break
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    text = output.decode()
    assert "━" in text  # the bar
    assert text.count("(ε=0.1, floor") == 5


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = " ".join([*COMMAND, "train", "--epochs", "2"])
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stderr == ""
    assert result.returncode == 0
    assert (tmp_path / "runs" / "digits-001" / "summary.json").exists()  # the training went on
