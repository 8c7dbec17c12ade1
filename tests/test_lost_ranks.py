"""Two processes that train together, started and stopped, or killed, again and again."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labelsmooth.training import resume, train
from tests import processes
from tests.test_devices import EXACT, TorchEngine, ended, free_port, started, without_batch_norm
from tests.test_training import table

EPOCHS = 5

START = """
import sys
from labelsmooth.report import page
from labelsmooth.training import train
from tests.processes import undrawn

page.finish = undrawn
train(sys.argv[1], epochs=1, out=sys.argv[2])
"""


@pytest.fixture
def data(tmp_path):
    """Images with splits of their own."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 330), ("val", 40), ("test", 40)):
        y = np.arange(count) % 4
        noise = rng.integers(0, 60, (count, 8, 8))
        arrays |= {f"x_{split}": (noise + 45 * y[:, None, None]).astype(np.uint8), f"y_{split}": y}
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays)
    return path


def epochs_done(run):
    return len(table(run)) if (run / "metrics.csv").exists() else 0


def go(rank, count, port, what, data, where):
    """Without batch norm, in float64: what is seen in another order, twice or not at all, gives other weights."""
    made = TorchEngine.__init__

    def init(engine, *args):
        made(engine, *args)
        without_batch_norm(engine)

    TorchEngine.__init__ = init
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    try:
        if what == "train":
            train(data, EXACT, batch_size=32, lr=1e-3, epochs=EPOCHS, out=where)
        else:
            resume(where)
    except Exception as error:
        (Path(data).parent / f"error{os.getpid()}").write_text(str(error))
        raise


def ranks(count, *arguments):
    """Processes of one training."""
    port = free_port()
    return [processes.start(go, rank, count, port, *arguments) for rank in range(count)]


def codes(ranks):
    for rank in ranks:
        rank.join(timeout=300)
    return [rank.exitcode for rank in ranks]


def wait_until(condition, ranks):
    deadline = time.monotonic() + 300
    while not condition():
        assert all(rank.is_alive() for rank in ranks)
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_fifty_starts_and_stops(data, tmp_path):
    """Gloo likes to abort a process after its success."""
    for number in range(50):
        results = ended(started(START, 2, data, tmp_path / "runs"))
        assert [code for code, *_ in results] == [0, 0], (number, results)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 50


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(data, tmp_path):
    """One process, then both; at the end on one process or on two: ten of ten end with the weights of a quiet run."""
    assert codes(ranks(2, "train", data, tmp_path / "quiet")) == [0, 0]
    quiet = tmp_path / "quiet/tiny-001"
    expected = load_file(quiet / "checkpoints/last.safetensors")
    epoch = float(np.mean([float(row["seconds"]) for row in table(quiet)]))
    rng = np.random.default_rng()
    for trial in range(10):
        run = tmp_path / f"trial{trial}/tiny-001"
        first, second = sorted(rng.integers(0, EPOCHS - 1, 2))
        moments, victim = rng.uniform(0, epoch, 2), int(rng.integers(2))
        told = f"trial {trial}: rank {victim} {moments[0]:.3f} s after epoch {first}, both {moments[1]:.3f} s after {second}"

        def begun():
            return (run / "log.txt").read_text().count("begin") if (run / "log.txt").exists() else 0  # noqa: B023

        both = ranks(2, "train", data, run.parent)
        wait_until(lambda: begun() and epochs_done(run) >= first, both)  # noqa: B023
        time.sleep(moments[0])
        both[victim].kill()
        found = codes(both)
        assert found[victim] == -signal.SIGKILL, (told, found)
        assert found[1 - victim] == 1, (told, found)
        (error,) = tmp_path.glob("error*")
        assert error.read_text().startswith("another process of the training has ended"), told
        error.unlink()

        both = ranks(2, "resume", data, run)
        wait_until(lambda: begun() == 2 and epochs_done(run) >= second, both)  # noqa: B023
        time.sleep(moments[1])
        for one in both:
            one.kill()
        assert codes(both) == [-signal.SIGKILL] * 2, told

        before, count = epochs_done(run), 1 + trial % 2
        assert codes(ranks(count, "resume", data, run)) == [0] * count, told
        assert [int(row["epoch"]) for row in table(run)] == list(range(1, EPOCHS + 1)), told
        for name in ("train_loss_smoothed", "train_nll", "train_accuracy", "val_nll"):
            for mine, theirs in zip(table(run), table(quiet), strict=True):
                assert float(mine[name]) == pytest.approx(float(theirs[name]), abs=1e-9), (told, name)
        weights = load_file(run / "checkpoints/last.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-10, msg=f"{told}: {name}")
        assert json.loads((run / "summary.json").read_text())["epochs"] == EPOCHS
        print(f"{told}; {before} epochs were done, ended on {count}: the same weights", flush=True)
