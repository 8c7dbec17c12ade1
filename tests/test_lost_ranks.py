"""Two processes that train together, started and stopped, or killed, again and again."""

import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.test_devices import ended, started
from tests.test_training import table

EPOCHS = 5

# Without batch norm, in float64: what was seen in another order, twice or not at all, gives other weights.
RUN = """
import sys
from labelsmooth.report import page
from labelsmooth.training import resume, train
from labelsmooth.training.torch_engine import TorchEngine
from tests.processes import undrawn
from tests.test_devices import EXACT, without_batch_norm

made = TorchEngine.__init__
def init(engine, *args):
    made(engine, *args)
    without_batch_norm(engine)
TorchEngine.__init__ = init
page.finish = undrawn
what, data, where, epochs = sys.argv[1:]
if what == "train":
    train(data, EXACT, batch_size=32, lr=1e-3, epochs=int(epochs), out=where)
else:
    resume(where)
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


def wait_until(condition, processes):
    deadline = time.monotonic() + 120
    while not condition():
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_fifty_starts_and_stops(data, tmp_path):
    """Gloo likes to abort a process after its success."""
    for number in range(50):
        results = ended(started(RUN, 2, "train", data, tmp_path / "runs", 1))
        assert [code for code, *_ in results] == [0, 0], (number, results)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 50


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(data, tmp_path):
    """One process, then both; at the end on one process or on two: ten of ten end with the weights of a quiet run."""
    results = ended(started(RUN, 2, "train", data, tmp_path / "quiet", EPOCHS))
    assert [code for code, *_ in results] == [0, 0], results
    quiet = tmp_path / "quiet/tiny-001"
    expected = load_file(quiet / "checkpoints/last.safetensors")
    epoch = float(np.mean([float(row["seconds"]) for row in table(quiet)]))
    rng = np.random.default_rng()
    for trial in range(10):
        run = tmp_path / f"trial{trial}/tiny-001"
        first, second = sorted(rng.integers(0, EPOCHS - 1, 2))
        moments, victim = rng.uniform(0, epoch, 2), int(rng.integers(2))
        told = f"trial {trial}: rank {victim} {moments[0]:.3f} s after epoch {first}, both {moments[1]:.3f} s after {second}"

        processes = started(RUN, 2, "train", data, run.parent, EPOCHS)
        wait_until(lambda: (run / "config.yaml").exists() and epochs_done(run) >= first, processes)  # noqa: B023
        time.sleep(moments[0])
        processes[victim].kill()
        results = ended(processes)
        assert results[victim][0] == -9, (told, results)
        assert results[1 - victim][0] == 1, (told, results)
        assert "another process of the training has ended" in results[1 - victim][2], (told, results)

        lines = len((run / "log.txt").read_text().splitlines())
        processes = started(RUN, 2, "resume", data, run, EPOCHS)
        wait_until(
            lambda: len((run / "log.txt").read_text().splitlines()) > lines and epochs_done(run) >= second,  # noqa: B023
            processes,
        )
        time.sleep(moments[1])
        for process in processes:
            process.kill()
        assert [code for code, *_ in ended(processes)] == [-9, -9], told

        before, count = epochs_done(run), 1 + trial % 2
        results = ended(started(RUN, count, "resume", data, run, EPOCHS))
        assert [code for code, *_ in results] == [0] * count, (told, results)
        assert [int(row["epoch"]) for row in table(run)] == list(range(1, EPOCHS + 1)), told
        for name in ("train_loss_smoothed", "train_nll", "train_accuracy", "val_nll"):
            for mine, theirs in zip(table(run), table(quiet), strict=True):
                assert float(mine[name]) == pytest.approx(float(theirs[name]), abs=1e-9), (told, name)
        found = load_file(run / "checkpoints/last.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-10, msg=f"{told}: {name}")
        assert json.loads((run / "summary.json").read_text())["epochs"] == EPOCHS
        print(f"{told}; {before} epochs were done, ended on {count}: the same weights")
