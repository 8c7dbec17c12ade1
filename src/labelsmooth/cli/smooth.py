"""``labelsmooth smooth``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from labelsmooth.cli.output import Bar, Json, WholeNumber, console, duration, print_json


def smooth(
    file: Path,
    *,
    classes: WholeNumber | None = None,
    smoothing: Annotated[float, Parameter(name=["--smoothing", "-s"])] = 0.1,
    prior: str = "uniform",
    dtype: Literal["float16", "float32", "float64"] | None = None,
    column: str | None = None,
    out: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Smooth the labels of a file into soft targets in another, in memory that does not grow with the file.

    A table that becomes a table keeps its columns; of a .csv, the class ids are written as whole numbers ("3" for
    "3.0"). In .npy and .npz (array `targets`) the targets are [N, K]; in .parquet they are a column `targets` of
    lists; in .csv they are the columns target_0, target_1, and so on.

    Args:
        file: .npy, .npz, .csv or .parquet: class ids 0..K-1; or one-hot rows or soft targets [N, K], in an array or a
            parquet column of lists. The first line of a .csv names its columns.
        classes: K, the number of classes; needed for class ids.
        smoothing: ε, from 0 up to but not including 1.
        prior: what labels are smoothed towards: uniform; frequency, the share of each class in the file; or a file of
            K numbers that sum to 1 (.npy, .npz, or text with one on each line).
        dtype: of the targets; float32 if not given, or that of soft targets.
        column: of the labels, in a table; found by its name (label, labels, ...) if not given. Of an .npz, the array.
        out: .npy, .npz, .csv or .parquet; beside the labels as NAME-targets if not given.
        force: replace what is there.
    """
    import time

    from labelsmooth.files import smooth_file

    start, screen = time.perf_counter(), console(json)
    with Bar(console(True)) as bar:

        def progress(text: str, done: int, count: int | None) -> None:
            if count is None:
                bar.show(f"{text}: {done:,} rows", 0, 1)
            else:
                bar.show(text, done, count)

        done = smooth_file(
            file, smoothing, num_classes=classes, prior=prior, dtype=dtype, out=out, column=column, overwrite=force,
            progress=progress,
        )  # fmt: skip
    seconds, size = time.perf_counter() - start, Path(done.out).stat().st_size
    if json:
        print_json({**done.as_dict(), "bytes": size, "seconds": round(seconds, 3)})
        return
    lines = [
        f"labels     {file}: {done.rows:,} of {done.num_classes:,} classes",
        f"smoothing  {done.smoothing:g}, prior {done.prior}",
        f"targets    {done.out}: {done.dtype} [{done.rows}, {done.num_classes}], {size / 1e6:.1f} MB, "
        f"{duration(seconds)}",
    ]
    screen.print("\n".join(lines), markup=False)
