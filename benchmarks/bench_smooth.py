"""`smooth` of long files: the memory that it takes, and its rate beside a plain pyarrow write of the same targets.

python -m benchmarks.bench_smooth [N] [FOLDER]: N labels (5,000,000) of 100 classes and twice as many, to float16 in
parquet, in a new folder in FOLDER. Each measurement is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._machine import header, spread
from labelsmooth.files import smooth_file
from labelsmooth.files.tables import parquet_sink

K, ROUNDS, MOST = 100, 3, 512  # MiB, the budget
ROWS = (8 << 20) // (2 * K)  # of a row group, as smooth writes it


def smooth(labels: Path, out: Path) -> None:
    smooth_file(labels, 0.1, num_classes=K, dtype="float16", out=out, overwrite=True)


def targets_of(labels: np.ndarray) -> np.ndarray:
    expected = np.full((len(labels), K), 0.1 / K)
    expected[np.arange(len(labels)), labels] = 0.9 + 0.1 / K
    return expected.astype(np.float16)


def plain(labels: Path, out: Path) -> None:
    """The same columns by pyarrow with the same settings, the targets of the first rows again and again."""
    import pyarrow as pa

    ids = np.load(labels)
    targets = targets_of(ids[:ROWS])
    with out.open("wb") as file, parquet_sink(file, pa.schema([("label", pa.int64())]), K, targets.dtype) as write:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            write(targets[: len(part)], part, None)


def defaults(labels: Path, out: Path) -> None:
    """The same, with pyarrow's own settings: a dictionary, snappy, values that may be missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = np.load(labels)
    flat = pa.array(targets_of(ids[:ROWS]).reshape(-1))
    schema = pa.schema([("label", pa.int64()), ("targets", pa.list_(pa.float16(), K))])
    with pq.ParquetWriter(out, schema) as writer:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            column = pa.FixedSizeListArray.from_arrays(flat[: len(part) * K], K)
            writer.write_table(pa.table([pa.array(part), column], schema=schema))


WORKS = {"smooth": smooth, "plain": plain, "defaults": defaults}


def measure(work: str, labels: Path, out: Path) -> tuple[float, float]:
    """Seconds, and the process's largest memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.bench_smooth", work, str(labels), str(out)]
    return tuple(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def measured(work: str, labels: Path, out: Path) -> None:
    """In a process of its own, whose peak VmHWM counts from its start; ru_maxrss knows its parent's too."""
    start = time.perf_counter()
    WORKS[work](labels, out)
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps([seconds, peak]))


def check(labels: Path, out: Path) -> None:
    """The targets of the first and the last rows by the formula, and their number."""
    import pyarrow.parquet as pq

    ids, file = np.load(labels, mmap_mode="r"), pq.ParquetFile(out)
    assert file.metadata.num_rows == len(ids)
    for group in (0, file.num_row_groups - 1):
        table = file.read_row_group(group)
        part = ids[: len(table)] if group == 0 else ids[-len(table) :]
        got = table["targets"].combine_chunks().values.to_numpy().reshape(-1, K)
        assert np.array_equal(got, targets_of(part))
        assert np.array_equal(table["label"].to_numpy(), part)


def main(n: int, parent: str | None) -> None:
    header(f"smooth, {n:,} and {2 * n:,} labels, {K} classes, .npy to float16 in .parquet", "pyarrow")
    with tempfile.TemporaryDirectory(dir=parent) as name:
        labels, twice, out = (Path(name) / each for each in ("labels.npy", "twice.npy", "out.parquet"))
        rng = np.random.default_rng(0)
        np.save(labels, rng.integers(0, K, n))
        np.save(twice, rng.integers(0, K, 2 * n))
        found: dict[str, list[tuple[float, float]]] = {work: [] for work in WORKS}
        for number in range(ROUNDS):
            for work, results in found.items():
                results.append(measure(work, labels, out))
                if number == 0 and work == "smooth":
                    check(labels, out)
        size = n * K * 2 / 1e6
        for work, results in found.items():
            print(f"{work}: {spread([size / seconds for seconds, _ in results])} MB/s of targets")
        for peer in ("plain", "defaults"):
            ratios = [mine[0] / theirs[0] for mine, theirs in zip(found["smooth"], found[peer], strict=True)]
            print(f"time of smooth / {peer}: {spread(ratios)}")
        _, peak = measure("smooth", twice, out)
        check(twice, out)
        print(f"memory: {spread([peak for _, peak in found['smooth']])} MiB for {n:,}, budget {MOST}")
        print(f"memory: {peak:.3g} MiB for {2 * n:,}, budget: no higher")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measured(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000, sys.argv[2] if len(sys.argv) > 2 else None)
