"""Passes over logits that may be larger than memory: checks, blocks of rows, a thread per core."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from labelsmooth import _checks

_ENTRIES = 1 << 18  # of a block, a MiB as float32: a few of them stay in cache, and calls from Python cost little
_ROWS = 1 << 10  # of a block: sums over rows are short, so float32 holds them
_SPANS = 64  # not as many as there are cores: the sums, and so their last digits, are the same on every machine
_RESULTS = 1 << 24  # entries of the results of all spans together
_HELD = 1 << 21  # entries of the results that wait for those before them, unless a thread has one of more

LEAST = -700.0  # exp of less is slow where it underflows, and adds nothing to a sum of at least 1

Result = TypeVar("Result")


def checked(logits: Any, labels: Any, name: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[N, K]`` as they are and labels as int64 ``[N]``; `shifted` checks the logits' values.

    Args:
        logits: real array ``[N, K]``.
        labels: class ids ``[N]`` in ``0..K-1``.
        name: what the two are called in messages, before "logits" and "labels".
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype.kind not in "fiu":
        rule = "be real numbers of shape [N, K] with N and K above 0"
        raise _checks.error(f"{name}logits", rule, f"{logits.dtype} {logits.shape}")
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        rule = f"be class ids of shape {logits.shape[:1]}"
        raise _checks.error(f"{name}labels", rule, f"{labels.dtype} {labels.shape}")
    _checks.label_range(labels, logits.shape[1], f"{name}labels")
    return logits, labels.astype(np.int64)


def over_blocks(
    shape: tuple[int, int], work: Callable[[Iterator[slice], int], Result], entries: int = 1
) -> Iterator[Result]:
    """What `work` makes of spans of rows, in the order of the rows, on a thread per core.

    Args:
        shape: N and K.
        work: takes the blocks of a span, as slices of rows, and how many rows a block has at most. It is not told of
            logits so far apart that their difference overflows to -inf, a probability of 0.
        entries: how large the result of a span is; there are fewer spans for large ones.
    """
    n, count = shape
    size = min(n, _ROWS, max(1, _ENTRIES // count))
    spans = max(1, min(_SPANS, _RESULTS // entries))
    span = -(-n // (size * spans)) * size

    def run(start: int) -> Result:
        stop = min(n, start + span)
        with np.errstate(over="ignore"):
            return work((slice(at, min(at + size, stop)) for at in range(start, stop, size)), size)

    cores, waiting = _cores(), deque()
    most = max(cores, _HELD // entries)
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, n, span):
            if len(waiting) == most:
                yield waiting.popleft().result()
            waiting.append(pool.submit(run, start))
        while waiting:
            yield waiting.popleft().result()


def precision(dtype: np.dtype) -> np.dtype:
    """What logits of this dtype are computed in: float32 for float16 and float32, else float64."""
    return np.dtype(np.float32 if dtype in (np.float16, np.float32) else np.float64)


def shifted(
    block: np.ndarray, first: int, out: np.ndarray, name: str = "", stride: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Logits less the largest of their row, and the class of the largest, of equal ones the first.

    Args:
        block: some rows of the logits.
        first: the number of its first row, for messages.
        out: of the logits' `precision`, at least as long as `block`; the result is its first rows.
        name: what the logits are called in messages, before "logits".
        stride: by how much the numbers of its rows grow.

    Raises:
        ValueError: nan, +inf, or a row of nothing but -inf.
    """
    largest = block.argmax(axis=1)
    top = block[np.arange(len(block)), largest].astype(out.dtype)
    wrong = ~(np.abs(top) < np.inf)  # argmax finds a nan
    if wrong.any():
        row = int(wrong.argmax())
        raise without_softmax(block[row], first + row * stride, name)
    return np.subtract(block, top[:, None], out=out[: len(block)], dtype=out.dtype), largest


def without_softmax(row: np.ndarray, number: int, name: str = "") -> ValueError:
    """The error of a row that holds nan, +inf, or nothing but -inf.

    Args:
        row: the logits ``[K]``.
        number: which row it is.
        name: what the logits are called, before "logits".
    """
    bad = row[~(row < np.inf)]
    if len(bad):
        return _checks.error(f"{name}logits", "be finite or -inf", f"{bad[0]} in row {number}")
    return _checks.error(f"{name}logits", "have a finite value in every row", f"-inf in all of row {number}")


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
