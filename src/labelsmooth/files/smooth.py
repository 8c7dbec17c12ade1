"""Labels in a file to smoothed targets in another: a batch of rows at a time, so that memory stays flat."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError
from labelsmooth._text import nearest
from labelsmooth.files import arrays
from labelsmooth.files.source import Source, Write, checked
from labelsmooth.targets import smooth_labels

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
DTYPES = ("float16", "float32", "float64")
PRIORS = ("uniform", "frequency")
_TABLES = (".csv", ".parquet")
_BATCH, _ROWS = 8 << 20, 1 << 17  # bytes of targets, and rows, that are worked on at once
_MOST_CLASSES = 1 << 24

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Smoothed:
    """What `smooth_file` has written.

    Attributes:
        out: the file.
        rows: N.
        num_classes: K.
        smoothing: ε.
        prior: ``"uniform"``, ``"frequency"``, the file that it was read from, or ``"given"``.
        dtype: of the targets.
    """

    out: str
    rows: int
    num_classes: int
    smoothing: float
    prior: str
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def smooth_file(
    path: str | Path,
    smoothing: float = 0.1,
    *,
    num_classes: int | None = None,
    prior: Any = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    column: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Smoothed:
    """Smooth the labels of a file into targets in another: q' = (1-ε) q + ε u, as `smooth_labels` gives them.

    The formats are .npy, .npz, .csv and .parquet, each from and to any other. Memory stays the same however long the
    file is. A table that becomes a table keeps its columns, the labels included; a CSV file's stay text, but for class
    ids, which are written as whole numbers.

    Args:
        path: class ids ``[N]`` or ``[N, 1]``, whole numbers in ``0..K-1``; or, in an array or in a parquet column of
            lists, one-hot rows or soft targets ``[N, K]``.
        smoothing: ε, in [0, 1).
        num_classes: K; needed for class ids.
        prior: u: None or ``"uniform"``; ``"frequency"``, the share of each class in the file, which is read twice for
            that; numbers of shape ``[K]``; or a file of them (.npy, .npz, or text with one on each line).
        dtype: ``"float16"``, ``"float32"`` or ``"float64"``. If None: float32 from integers, else that of the targets.
        out: the file to write, whole or not at all; None: beside `path`, ``NAME-targets`` with its suffix. In .npy and
            .npz (array `targets`) targets are ``[N, K]``; in .parquet a column `targets` of lists; in .csv K columns
            `target_0`, `target_1`, ...
        column: of a table, or the array of an .npz file; None: `label`, `labels` or the like.
        overwrite: `out` may be there, and is replaced.
        progress: is called with what goes on, how many rows are done, and of how many (None where nobody knows yet).

    Returns:
        A `Smoothed`.

    Raises:
        DataError: the file is missing, damaged or empty, or a label or a row in it is wrong; says where.
        ValueError: an argument out of its range. OSError: the targets cannot be written; nothing of them is kept.

    Example:
        >>> import numpy as np
        >>> from labelsmooth.files import smooth_file
        >>> folder = getfixture("tmp_path")
        >>> np.save(folder / "labels.npy", [2, 0])
        >>> done = smooth_file(folder / "labels.npy", 0.1, num_classes=4)
        >>> np.load(folder / "labels-targets.npy")
        array([[0.025, 0.025, 0.925, 0.025],
               [0.925, 0.025, 0.025, 0.025]], dtype=float32)
    """
    path, tell = Path(path), progress or (lambda text, done, count: None)
    epsilon = _checks.smoothing(smoothing)
    if dtype is not None:
        _checks.one_of(dtype, "dtype", DTYPES)
    source = _open(path, column)
    out = path.with_name(f"{path.stem}-targets{path.suffix}") if out is None else Path(out)
    _check_out(out, path, overwrite)
    count = _classes(source, num_classes)
    kind = np.dtype(dtype or _default_dtype(source))
    most = max(1, min(_ROWS, _BATCH // (count * kind.itemsize)))

    u, described = _prior(prior, count)
    rows, counts = source.rows, np.zeros(count)
    if rows is None or described == "frequency":
        rows, counts = _survey(source, count, most, tell)
    if rows == 0:
        raise DataError(f"{source.name} is empty: there are no labels to smooth")
    if described == "frequency":
        u = counts / counts.sum()
    try:
        _write(source, out, rows, count, kind, most, epsilon, u, tell)
    except OSError as error:
        reason = f"{error.strerror or error}; nothing of the targets is kept"
        raise OSError(error.errno, reason, str(out)) from error
    return Smoothed(str(out), rows, count, epsilon, described, kind.name)


def _write(
    source: Source, out: Path, rows: int, count: int, kind: np.dtype, most: int, epsilon: float, u: Any, tell: Progress
) -> None:
    keep = source.schema is not None and out.suffix.lower() in _TABLES
    ids = source.width is None
    buffer, done = np.empty((min(most, rows), count), kind), 0
    with (
        _files.replacing(out) as temporary,
        temporary.open("wb") as file,
        _sink(file, out, source, rows, count, kind) as write,
    ):
        for values, table in source.batches(most, keep):
            values = checked(source, values, done, count)
            targets = buffer[: len(values)]
            smooth_labels(values, epsilon, num_classes=count if ids else None, prior=u, out=targets)
            write(targets, values, table)
            done += len(values)
            tell("smoothing", done, rows)
        if done != rows:
            raise DataError(f"{source.path} has changed while it was read: it had {rows} rows, and then {done}")


def _open(path: Path, column: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is of no kind that is read here; labels are in {', '.join(SUFFIXES)}")
    if not path.exists():
        raise DataError(f"there is no file {path}")
    if not path.is_file():
        raise DataError(f"{path} is no file that can be read twice; give a regular one")
    if suffix == ".npy":
        return arrays.NpySource(path, column)
    if suffix == ".npz":
        return arrays.NpzSource(path, column)
    from labelsmooth.files import tables

    return tables.CsvSource(path, column) if suffix == ".csv" else tables.ParquetSource(path, column)


def _sink(
    file: IO[bytes], out: Path, source: Source, rows: int, count: int, kind: np.dtype
) -> AbstractContextManager[Write]:
    suffix = out.suffix.lower()
    if suffix not in _TABLES:
        size, free = rows * count * kind.itemsize, shutil.disk_usage(out.parent).free
        if size > free:
            text = f"{size / 1e9:.3g} GB of targets do not fit into the {free / 1e9:.3g} GB that are free there"
            raise OSError(errno.ENOSPC, text)
        return (arrays.npy_sink if suffix == ".npy" else arrays.npz_sink)(file, (rows, count), kind)
    from labelsmooth.files import tables

    schema = source.schema
    if schema is None:
        schema = tables.label_schema() if source.width is None else tables.no_columns()
    new = tables.csv_names(count) if suffix == ".csv" else [tables.TARGETS]
    taken = set(new) & set(schema.names)
    if taken:
        raise DataError(f"{source.path} has a column {min(taken)} already, which is what targets are called; rename it")
    return (tables.csv_sink if suffix == ".csv" else tables.parquet_sink)(file, schema, count, kind)


def _check_out(out: Path, path: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise _checks.error("out", f"end in one of {', '.join(SUFFIXES)}", str(out))
    _files.check_file(out, "out")
    if not out.exists():
        return
    if out.samefile(path):
        raise _checks.error("out", "be another file than the labels", str(out))
    if not overwrite:
        raise _checks.error("out", "be a file that is not there yet (overwrite=True or --force replaces it)", str(out))


def _classes(source: Source, given: Any) -> int:
    if given is None:
        if source.width is None:
            rule = f"be given (--classes K) where there are class ids, as in {source.name}"
            raise _checks.error("num_classes", rule, given)
        return source.width
    count = _checks.class_count(given)
    if count > _MOST_CLASSES:
        raise _checks.error("num_classes", f"be at most {_MOST_CLASSES}", given)
    if source.width not in (None, count):
        rule = f"be left out, or be the {source.width} classes of the targets in {source.name}"
        raise _checks.error("num_classes", rule, given)
    return count


def _default_dtype(source: Source) -> str:
    if source.width is None or source.dtype.kind != "f":
        return "float32"
    if source.dtype.name not in DTYPES:
        raise _checks.error("dtype", f"be given for targets of {source.dtype}", None)
    return source.dtype.name


def _survey(source: Source, count: int, most: int, tell: Progress) -> tuple[int, np.ndarray]:
    """The number of rows, and the sum of their targets for each class; labels are checked on the way."""
    rows, counts = 0, np.zeros(count)
    for values, _ in source.batches(most, keep=False):
        values = checked(source, values, rows, count)
        if source.width is None:
            counts += np.bincount(values, minlength=count)
        else:
            counts += values.sum(axis=0, dtype=np.float64)
        rows += len(values)
        tell("counting", rows, source.rows)
    return rows, counts


def _prior(prior: Any, count: int) -> tuple[Any, str]:
    """u as float64 ``[K]``, or None for the uniform one and for one that is yet to be counted; and its name."""
    if prior is None:
        return None, "uniform"
    if isinstance(prior, str) and prior in PRIORS:
        return None, prior
    from_file = isinstance(prior, (str, Path))
    u = _read_prior(Path(prior)) if from_file else np.asarray(prior)
    try:
        if u.dtype.kind not in "biuf":
            raise _checks.error("prior", "hold numbers", f"dtype {u.dtype}")
        if u.shape != (count,):
            raise _checks.error("prior", f"have shape {(count,)}, a share for each class", u.shape)
        _checks.distribution(u, "prior", _checks.tolerance(u.dtype.name))
    except ValueError as error:
        raise (DataError(f"{prior}: {error}") if from_file else error) from None
    return u.astype(np.float64), str(prior) if from_file else "given"


def _read_prior(path: Path) -> np.ndarray:
    """The numbers of a file: an array, or text with one on each line."""
    if not path.is_file():
        hint = nearest(str(path), PRIORS)
        raise DataError(f"there is no file {path}; a prior is {', '.join(PRIORS)} or a file of K numbers{hint}")
    with _files.reading(path, "is no readable file of a prior ({})"):
        if path.suffix.lower() in (".npy", ".npz"):
            with path.open("rb") as opened:
                file = np.load(opened, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    return file
                if "prior" not in file.files and len(file.files) != 1:
                    raise ValueError(f"it holds {', '.join(file.files)}; it must hold an array prior, or one alone")
                return file["prior" if "prior" in file.files else file.files[0]]
        words = re.split(r"[\s,;]+", path.read_text(encoding="utf-8-sig").strip())
        return np.array([float(word) for word in words])
