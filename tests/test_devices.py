"""One training on several processes, or in parts: the same draws, the same steps, one run folder."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labelsmooth.cli import main
from labelsmooth.training import CLASSIC, DIGITS, Reporter, load, ranks, resume, train
from labelsmooth.training.data import Split
from labelsmooth.training.devices import processor_cores
from labelsmooth.training.dropout import Dropout, keys
from labelsmooth.training.plan import Plan
from labelsmooth.training.ranks import Ranks
from labelsmooth.training.run import Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.torch_engine import TorchEngine
from tests.test_training import table

# Dropout and shifts; 1,293 examples, so that a last batch of 13 is left when none is dropped.
EXACT = CLASSIC.changed(model="small", precision="float64", lr=1e-5, batch_size=64, drop_last=False, prior="class_frequency")  # fmt: skip


def without_batch_norm(engine):
    """Batch norm computes with its running statistics, and every example counts for itself."""

    def trained(mode=True):
        torch.nn.Module.train(engine.model, False)
        engine.model.network.dropout.train(mode)
        return engine.model

    engine.model.train = trained
    return engine


def engine(recipe=EXACT, data=None, **settings):
    settings = Settings("digits", recipe, 0.1, 0, None, None, None, "cpu", False, **settings)
    return without_batch_norm(TorchEngine(Plan(settings, data or load("digits")), StopRequest()))


# Dropout


def test_dropout_is_drawn_for_the_example():
    layer, x = Dropout(0.3), torch.rand(400, 50) + 1
    of_all = keys(1 << 60 | 17, torch.arange(400))
    whole = layer(x, of_all)
    kept = whole != 0
    torch.testing.assert_close(whole, torch.where(kept, x / 0.7, 0.0))
    order = torch.randperm(400)
    pieces = [layer(x[part], keys(1 << 60 | 17, part)) for part in order.split(7)]
    assert torch.equal(torch.cat(pieces), whole[order])
    for other in (18, 1 << 61 | 17):  # both halves of the seed count
        assert 0.5 < float((layer(x, keys(other, torch.arange(400))) != 0).eq(kept).double().mean()) < 0.66
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_is_as_random_as_independent_draws():
    count, width = 20_000, 64
    kept = (Dropout(0.5)(torch.ones(count, width), keys(3, torch.arange(count))) > 0).double().numpy() * 2 - 1
    assert abs(kept.mean()) < 4 / np.sqrt(count * width)
    assert np.abs(kept.mean(0)).max() < 4.5 / np.sqrt(count)
    features = np.corrcoef(kept.T) - np.eye(width)
    assert np.abs(features).max() < 5 / np.sqrt(count)
    examples = kept[:1000] @ kept[:1000].T / np.sqrt(width)
    assert examples[np.triu_indices(1000, 1)].std() == pytest.approx(1, abs=0.02)


def test_dropout_without_keys_and_out_of_range():
    with pytest.raises(ValueError, match="keys must be given in training mode, where dropout is above 0; got None"):
        Dropout(0.5)(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\); got 1"):
        Dropout(1)


# Gradient accumulation


@pytest.mark.parametrize("method", ["loss", "labels"])
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_give_the_step_of_the_whole(parts, method):
    data, recipe = load("digits"), EXACT.changed(method=method)
    whole, cut = (engine(recipe, data, accumulate=count) for count in (1, parts))
    rows = [run.train_epoch(0, Reporter()) for run in (whole, cut)]  # 21 steps, the last of 13 examples
    for (name, one), other in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12, msg=name)
    for name in ("train_loss_smoothed", "train_nll", "train_accuracy"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-12)


def test_a_part_is_what_the_memory_has_to_hold(monkeypatch, tmp_path, undrawn):
    seen, original = [], TorchEngine.gradients

    def gradients(engine, rows, *args):
        seen.append(len(rows))
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(engine, rows, *args)

    monkeypatch.setattr(TorchEngine, "gradients", gradients)
    with pytest.raises(
        Exception, match=r"batch of 64 in parts of 32; 16 would fit: --batch-size 16, or --accumulate 4 "
    ):
        train("digits", recipe=EXACT, accumulate=2, out=tmp_path)
    seen.clear()
    assert train("digits", recipe=EXACT, accumulate=4, epochs=1, out=tmp_path).summary["epochs"] == 1
    assert max(seen) == 16


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [
        (0, "accumulate must be a whole number of at least 1; got 0"),
        (1.5, "accumulate must be a whole number of at least 1; got 1.5"),
        (65, "batch_size must be at least 65: accumulate 65 times devices 1; got 64"),
    ],
)
def test_numbers_of_parts_that_cannot_be(accumulate, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("digits", recipe=EXACT, accumulate=accumulate, out=tmp_path)
    assert not list(tmp_path.iterdir())


# Several processes

ROOT = Path(__file__).parents[1]
two_cores = pytest.mark.skipif(processor_cores() < 2, reason="needs two processor cores")


def free_port():
    """Of those that no system gives to anybody who asks for any: it would be gone before it is used."""
    while True:
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", random.randrange(10_000, 30_000)))
            return found.getsockname()[1]


def started(code, count=2, *arguments, **environment):
    """`count` processes of one training that run `code`."""
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "OMP_NUM_THREADS": "1", **environment}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes, timeout=300):
    """Their exit codes, outputs and errors."""
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]


def together(code, count=2, timeout=100, **environment):
    """What `count` processes of one training do that run `code`: their exit codes, outputs and errors."""
    return ended(started(code, count, **environment), timeout)


_EXACT = """
import sys
from labelsmooth.report import page
from labelsmooth.training import train
from labelsmooth.training.torch_engine import TorchEngine
from tests.test_devices import EXACT, without_batch_norm

made = TorchEngine.__init__
def init(engine, *args):
    made(engine, *args)
    without_batch_norm(engine)
TorchEngine.__init__ = init
page.finish = lambda folder: (folder / "report.html").write_text("undrawn")
train("digits", EXACT, batch_size=68, epochs=1, accumulate=int(sys.argv[1]) if sys.argv[1:] else 1, out={out!r})
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """19 batches of 68, then one of a single example, of which the second process has no share."""
    results = together(_EXACT.format(out=str(tmp_path / "two")))
    assert [code for code, *_ in results] == [0, 0], results
    alone = subprocess.run(
        [sys.executable, "-c", _EXACT.format(out=str(tmp_path / "one"))], cwd=ROOT, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    one, two = tmp_path / "one/digits-001", tmp_path / "two/digits-001"
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["digits-001"]
    weights, others = (load_file(run / "checkpoints/last.safetensors") for run in (one, two))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-10, msg=name)
    for name in ("train_loss_smoothed", "train_nll", "train_accuracy", "val_nll", "val_accuracy"):
        assert float(table(two)[0][name]) == pytest.approx(float(table(one)[0][name]), abs=1e-10)
    for split in ("val", "test", "train"):
        with np.load(one / f"predictions/{split}.npz") as a, np.load(two / f"predictions/{split}.npz") as b:
            assert np.array_equal(a["labels"], b["labels"])
            assert np.array_equal(a["index"], b["index"])
            np.testing.assert_allclose(b["logits"], a["logits"], rtol=0, atol=1e-5)  # float32
            np.testing.assert_allclose(b["features"], a["features"], rtol=0, atol=1e-5)
    assert json.loads((two / "env.json").read_text())["devices"] == 2


def command(*words, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "labelsmooth", "train", *map(str, words)], env=environment, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def until(process, text):
    for line in process.stdout:
        if line.startswith(text):
            return
    pytest.fail(f"no line {text}: {process.stderr.read()}")


@two_cores
def test_stopped_on_two_and_resumed_on_one(tmp_path, undrawn):
    with command("--devices", 2, "--epochs", 60, "--out", tmp_path) as running:
        until(running, "epoch  2/60")
        running.terminate()
        _, errors = running.communicate(timeout=60)
    run = tmp_path / "digits-001"
    assert running.returncode == 130
    assert errors.count("interrupted; saved: 2 epochs") == 1
    assert errors.count("labelsmooth") == 2  # the message, and the command that goes on
    assert not (run / "summary.json").exists()
    assert resume(run, epochs=4).summary["epochs"] == 4
    assert [int(row["epoch"]) for row in table(run)] == [1, 2, 3, 4]


@two_cores
@pytest.mark.slow
def test_one_is_killed_and_the_run_resumed_on_two_and_on_one(tmp_path):
    run = tmp_path / "digits-001"
    assert main(["train", "--epochs", "3", "--out", str(tmp_path)]) == 0
    with command("--resume", run, "--epochs", 60, "--devices", 2) as running:
        until(running, "epoch  4/60")
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        if not children.exists():
            pytest.skip("finds processes in /proc")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        began = time.monotonic()
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 4
    assert time.monotonic() - began < 25
    assert errors.count("labelsmooth:") == 1
    assert "the process of rank 1 ended by SIGKILL" in errors
    assert f"labelsmooth train --resume {run}" in errors
    with command("--resume", run, "--epochs", 6, "--devices", 2, "--json") as resumed:
        told, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert json.loads(told)["epochs"] == 6
    assert "batch norm sees each one's share of a batch alone" in errors
    assert "devices is 2, and was 1 when the run began" in errors
    assert main(["train", "--resume", str(run), "--epochs", "7"]) == 0
    assert [int(row["epoch"]) for row in table(run)] == [1, 2, 3, 4, 5, 6, 7]


_DIFFERENT = """
import os, sys
from labelsmooth.cli import main
rank = int(os.environ["RANK"])
sys.exit(main(["train", "--epochs", "1", "--out", sys.argv[1] if sys.argv[1:] else {out!r}] + {words!r}[rank]))
"""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([["-s", ".1"], ["-s", ".2"]], 2, "smoothing must be the same in all processes of a training; got 0.1 on rank 0, 0.2 on rank 1"),
        ([["--devices", "3"]] * 2, 2, "devices must be 2, as many as there are processes (WORLD_SIZE); got 3"),
    ],
)  # fmt: skip
def test_processes_that_disagree(words, code, message, tmp_path):
    results = together(_DIFFERENT.format(words=words, out=str(tmp_path)))
    assert {result[0] for result in results} == {code}, results
    told = "".join(result[2] for result in results)
    assert message in told
    assert not list(tmp_path.iterdir())


def test_data_that_differ(tmp_path):
    for name, shade in (("a", 10), ("b", 20)):
        images = np.full((60, 8, 8, 3), shade, np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(60) % 2)
    code = (
        "import os, sys, tempfile\nfrom labelsmooth.cli import main\n"
        f"here = tempfile.mkdtemp(); os.chdir(here); os.symlink([{str(tmp_path / 'a.npz')!r}, {str(tmp_path / 'b.npz')!r}]"
        "[int(os.environ['RANK'])], 'data.npz')\n"
        "from labelsmooth.training import run\nrun.Settings.flat = lambda settings: {}\n"
        "sys.exit(main(['train', 'data.npz', '--epochs', '1']))"
    )
    results = together(code)
    assert {result[0] for result in results} == {3}, results
    assert "the data (SHA-256) must be the same in all processes" in "".join(result[2] for result in results)


@pytest.mark.parametrize("mute", [False, True])
def test_an_address_where_nobody_answers(mute, tmp_path, monkeypatch):
    """Nothing listens there, or something that is no store, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if mute:
            listener.listen()
        for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(ranks, "_MEETING", timedelta(seconds=1))
        why = r"\(what listens there is something else\)" if mute else r"\("
        text = rf"MASTER_ADDR and MASTER_PORT must be the address of .*; got 127.0.0.1:{port}, with no answer after \d+ s {why}"
        with pytest.raises(ValueError, match=text):
            train("digits", out=tmp_path)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number; got 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be less than WORLD_SIZE, 2; got 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR must be set beside RANK and WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "p"}, "MASTER_PORT must be a whole number; got 'p'"),
    ],
)  # fmt: skip
def test_environments_that_make_no_sense(environment, message, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        train("digits", out=tmp_path)


MPI = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (MPI | {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (5, 8, 1)),
        (MPI | {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, (1, 2, 0)),
        (MPI | {"RANK": "1", "WORLD_SIZE": "2", "PMI_RANK": "0", "PMI_SIZE": "9"}, (1, 2, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, None),  # trainings of their own, which MPI or Slurm started side by side
    ],
)  # fmt: skip
def test_a_process_finds_its_place(environment, expected, monkeypatch):
    for name in (*sum(ranks._PLACE, ()), *MPI):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.found() == expected


_MPIRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("mpirun (Open MPI) 4.1.4"))
count = int(words[words.index("-n") + 1])
command = words[words.index({python!r}):]
started = [
    subprocess.Popen(command, env=os.environ | {{
        "OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_SIZE": str(count), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)
    }}) for i in range(count)
]
sys.exit(max([process.wait() for process in started], key=abs))
"""


@pytest.mark.slow
def test_accelerate_starts_several_on_a_cpu_by_mpi_alone(tmp_path):
    """Without a host file it starts one, whatever --num_processes says: that is no training on two."""
    pytest.importorskip("accelerate")
    mpirun = tmp_path / "bin/mpirun"
    mpirun.parent.mkdir()
    mpirun.write_text(_MPIRUN.format(python=sys.executable))
    mpirun.chmod(0o755)
    train = ["labelsmooth", "train", "--epochs", "1", "--out", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{mpirun.parent}{os.pathsep}{os.environ['PATH']}"}

    def launch(*words):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *words, "-m", *train]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)

    refused = launch("--num_processes", "2")
    assert refused.returncode != 0
    assert (
        "labelsmooth: accelerate launch must start all of the processes (on CPUs it does so by mpirun" in refused.stderr
    )
    assert not (tmp_path / "runs").exists()
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=2\n")
    both = launch("--num_processes", "2", "--main_process_port", str(free_port()), "--mpirun_hostfile", str(hosts))
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("test accuracy") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "env.json").read_text())["devices"] == 2


@pytest.mark.slow
def test_torchrun(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        "-m", "labelsmooth", "train", "--epochs", "1", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert "batch norm sees each one's share of a batch alone" in done.stdout
    assert json.loads((tmp_path / "digits-001/env.json").read_text())["devices"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "0"], "devices must be a whole number of at least 1; got 0"),
        (["--devices", "two"], "Invalid value for --devices"),
        (["--devices", "100000"], "devices must be at most"),
        (["--devices", "2", "--device", "cuda"], "devices must be at most 0, the CUDA devices here (or come with --device cpu); got 2"),
    ],
)  # fmt: skip
def test_numbers_of_devices_that_cannot_be(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["train", *words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "compile must be false with several devices; got True"),
        ({"framework": "keras"}, "devices must be 1 with framework keras; got 2"),
        ({"device": "cuda:1"}, None),
    ],
)
def test_options_that_several_devices_exclude(options, message):
    told = {"compile": None, "framework": "torch", "device": "cpu"} | options
    if message is None:
        from labelsmooth.training.devices import choose_device

        with pytest.raises(
            ValueError, match="device must be auto, cpu or cuda where several processes train; got 'cuda:1'"
        ):
            choose_device(told["device"], 0)
        return
    with pytest.raises(ValueError, match=message):
        Settings("digits", DIGITS, 0.1, 0, None, None, None, "auto", False, told["compile"], framework=told["framework"], devices=2)  # fmt: skip


def test_devices_from_python_are_those_of_the_environment(tmp_path):
    with pytest.raises(ValueError, match="devices must be 1 in a process of its own; the command starts others: .*; got 2"):  # fmt: skip
        train("digits", devices=2, out=tmp_path)
    with pytest.raises(ValueError, match="batch_size must be at least 4: accumulate 2 times devices 2; got 3"):
        Plan(Settings("digits", DIGITS.changed(batch_size=3), 0.1, 0, None, None, None, "cpu", False, accumulate=2, devices=2), load("digits"))  # fmt: skip


class Store:
    """What a store does, for one process."""

    def __init__(self):
        self.words = {}

    def set(self, key, value):
        self.words[key] = value


_FAILS = """
import os, sys
from labelsmooth._errors import TrainingError
from labelsmooth.cli import main
from labelsmooth.training.torch_engine import TorchEngine
original, steps = TorchEngine._step, []
def step(engine, *args):
    steps.append(1)
    if len(steps) == 3 and os.environ["RANK"] == "{rank}":
        raise TrainingError("rank {rank}: the battery is empty")
    original(engine, *args)
TorchEngine._step = step
sys.exit(main(["train", "--epochs", "1", "--out", {out!r}]))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_one_is_shown_once_and_nothing_else(rank, tmp_path):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    code, place = _FAILS.format(rank=rank, out=str(tmp_path)), {"MASTER_PORT": str(store.port)}
    results = together(code, TORCHELASTIC_USE_AGENT_STORE="True", **place)
    assert [code for code, *_ in results] == [4, 4], results
    assert results[rank][2] == f"labelsmooth: rank {rank}: the battery is empty\n"
    assert results[1 - rank][2] == ""


@pytest.mark.parametrize("by_machine", [False, True])
def test_others_do_not_wait_for_one_that_failed(by_machine):
    store = Store()
    with pytest.raises(OSError, match="mine"), Ranks(0, 2, 0, store).in_turn("data", by_machine=by_machine):  # noqa: PT012
        assert not store.words
        raise OSError("mine")
    assert len(store.words) == 1


@two_cores
def test_data_that_are_not_there(tmp_path):
    with command(tmp_path / "none.npz", "--devices", 2, "--out", tmp_path) as running:
        _, errors = running.communicate(timeout=100)
    assert running.returncode == 3
    assert errors == f"labelsmooth: there is no file {tmp_path / 'none.npz'}\n"
    assert not list(tmp_path.iterdir())


class Unheard(Ranks):
    """One of two processes, the other of which has nothing to say."""

    def summed(self, x):
        return x

    def any(self, *flags):
        return flags


def test_a_rank_reads_its_own_rows_alone(monkeypatch):
    read, original = [], Split.pixels
    monkeypatch.setattr(
        Split, "pixels", lambda split, which: (read.append(split.rows[which]), original(split, which))[1]
    )
    data = load("digits")
    settings = Settings("digits", EXACT.changed(batch_size=100), 0.1, 0, None, None, None, "cpu", False, devices=2)
    shares = []
    for rank in range(2):
        run = without_batch_norm(TorchEngine(Plan(settings, data), StopRequest(), Unheard(rank, 2, rank)))
        read.clear()
        run.train_epoch(0, Reporter())
        assert max(map(len, read)) == 50
        shares.append(np.concatenate(read))
    assert sorted(np.concatenate(shares)) == sorted(data.train.rows)
