"""smooth_labels from class ids, against numpy.full of the same array; the budget is 1.5 times."""

from __future__ import annotations

import time

import numpy as np

import labelsmooth as ls
from benchmarks._machine import header, spread

N, K, RUNS = 1_000_000, 100, 15


def main() -> None:
    labels = np.random.default_rng(0).integers(0, K, N)
    smoothed = ls.smooth_labels(labels, 0.1, num_classes=K)
    expected = np.full((N, K), 0.1 / K)
    expected[np.arange(N), labels] += 0.9
    assert np.abs(smoothed - expected).max() < 1e-7
    del smoothed, expected

    def timed(make) -> float:
        start = time.perf_counter()
        result = make()
        seconds = time.perf_counter() - start
        del result
        return seconds

    header(f"smooth_labels, N={N:,}, K={K}, float32, beside numpy.full")
    pairs = [
        (
            timed(lambda: ls.smooth_labels(labels, 0.1, num_classes=K)),
            timed(lambda: np.full((N, K), 0.001, np.float32)),
        )
        for _ in range(RUNS + 1)
    ][1:]
    print(f"smooth_labels  {spread([a * 1e3 for a, _ in pairs])} ms")
    print(f"numpy.full     {spread([b * 1e3 for _, b in pairs])} ms")
    print(f"ratio          {spread([a / b for a, b in pairs])}, budget 1.5")


if __name__ == "__main__":
    main()
