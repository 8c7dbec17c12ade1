"""`evaluate` of memory-mapped logits, beside passes of softmax over the same file; and the memory that it takes.

python -m benchmarks.bench_evaluate [N] [FOLDER]: N rows (1,000,000) of 1,000 float32 logits, in a new folder in FOLDER.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from benchmarks._machine import header, spread
from labelsmooth.evaluation import Evaluation, evaluate, fit_temperature, load_predictions

K, ROUNDS, THREADS, BLOCK = 1000, 5, 2, 1024
PASSES = 8  # the budget


def make(folder: Path, name: str, n: int, seed: int) -> None:
    """Logits, many of which have their largest at the label."""
    rng = np.random.default_rng(seed)
    logits = np.lib.format.open_memmap(folder / f"{name}logits.npy", mode="w+", dtype=np.float32, shape=(n, K))
    labels = rng.integers(0, K, n)
    for start in range(0, n, 10_000):
        block = rng.standard_normal((min(10_000, n - start), K), np.float32) * 2
        block[np.arange(len(block)), labels[start : start + len(block)]] += rng.normal(8.5, 3, len(block))
        logits[start : start + len(block)] = block
    logits.flush()
    np.save(folder / f"{name}labels.npy", labels)


def torch_pass(logits: np.ndarray) -> None:
    for start in range(0, len(logits), BLOCK):
        torch.softmax(torch.from_numpy(logits[start : start + BLOCK]), 1)


def scipy_pass(logits: np.ndarray) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda start: softmax(logits[start : start + BLOCK], 1)[0, 0], range(0, len(logits), BLOCK)))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def own_memory() -> int:
    """Bytes of this process that are no file's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def extra_memory(work: Callable[[], object]) -> int:
    """How much more than before this process held at most while `work` ran."""
    before, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak - before


def check(result: Evaluation, logits: np.ndarray, labels: np.ndarray) -> None:
    """The figures of some rows, and the temperature that they want, by the formulas in float64."""
    n = 2000
    z, each, labels = logits[:n].astype(np.float64), np.arange(n), labels[:n]
    np.testing.assert_allclose(result.rows.nll[:n], -log_softmax(z, 1)[each, labels], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.rows.confidence[:n], softmax(z, 1).max(1), rtol=1e-5)
    assert np.array_equal(result.rows.predicted[:n], z.argmax(1))
    confidence, hits = result.rows.confidence, result.rows.hits
    bins = np.ceil(confidence * 15)
    by_hand = sum(abs(confidence[bins == b].sum() - hits[bins == b].sum()) for b in range(1, 16)) / len(hits)
    assert abs(result.metric("ece").value - by_hand) < 1e-9
    best = minimize_scalar(
        lambda log_t: -log_softmax(z / np.exp(log_t), 1)[each, labels].mean(), bounds=(-2, 2), method="bounded"
    )
    assert abs(np.log(fit_temperature(logits[:n], labels)) - best.x) < 1e-4


def main(n: int, parent: str | None) -> None:
    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
    if len(os.sched_getaffinity(0)) > THREADS:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    header(f"evaluate, {n:,} x {K:,} float32 logits from a file, on {THREADS} cores", "scipy")
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        make(folder, "", n, 0)
        make(folder, "val_", n // 10, 1)
        test, held_out = load_predictions(folder), load_predictions(folder, "val")

        def plain() -> Evaluation:
            return evaluate(test.logits, test.labels)

        def scaled() -> Evaluation:
            return evaluate(test.logits, test.labels, validation=(held_out.logits, held_out.labels))

        def scaled_by_all() -> Evaluation:
            return evaluate(test.logits, test.labels, validation=(test.logits, test.labels))

        results: list[Evaluation] = []
        memory = extra_memory(lambda: results.append(scaled()))
        result = results[0]
        check(result, test.logits, test.labels)
        print(f"{result.table()}\n")
        works = {
            "evaluate": plain,
            f"evaluate with {n // 10:,} validation rows": scaled,
            f"evaluate with {n:,} validation rows": scaled_by_all,
            "a softmax pass, torch": lambda: torch_pass(test.logits),
            "a softmax pass, scipy on threads": lambda: scipy_pass(test.logits),
        }
        found: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(ROUNDS):
            for what, work in works.items():
                found[what].append(seconds(work))
        for what, times in found.items():
            print(f"{what}: {spread(times)} s")
        peers = [what for what in works if "pass" in what]
        for what in works:
            for peer in peers if what.startswith("evaluate") else []:
                ratios = [a / b for a, b in zip(found[what], found[peer], strict=True)]
                print(f"{what} / {peer}: {spread(ratios)}, budget {PASSES}")
        print(f"extra memory of evaluate with validation rows: {memory / 2**20:.0f} MiB, budget 1024")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, sys.argv[2] if len(sys.argv) > 2 else None)
