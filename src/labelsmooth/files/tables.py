"""Labels and targets as columns of `.csv` and `.parquet` tables, beside the columns that are there already."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from pyarrow import compute

from labelsmooth import _checks, _files
from labelsmooth._errors import DataError
from labelsmooth._text import nearest, printable
from labelsmooth.files.source import Source, Write

LABEL_NAMES = ("label", "labels", "class", "target", "y", "fine_label", "category", "class_name", "label_name")
TARGETS = "targets"
_compute: Any = compute  # which makes its functions while it is imported
_BLOCK = 1 << 20  # bytes of a CSV file, of which pyarrow reads 32 blocks ahead; no row may be larger
_BATCH = 32 << 20  # bytes of a parquet file's rows, as far as their average tells
_WHOLE = r"^[+-]?[0-9]+(\.0*)?$"


def line_of(row: int, path: Path, delimiter: str) -> int | None:
    """The line, from 1, on which a row of a CSV file begins: values may have several lines, and lines may be empty.

    The file is read once more. None: it cannot be told.
    """
    with path.open(encoding="utf-8-sig", newline="") as file, suppress(csv.Error, UnicodeDecodeError):
        reader, number = csv.reader(file, delimiter=delimiter), -2  # the first row is the header
        line = 1
        for cells in reader:
            number += bool(cells)  # an empty line is no row
            if number == row and cells:
                return line
            line = reader.line_num + 1
    return None


class CsvSource(Source):
    """A column of a CSV file, whose first line names the columns; all other columns stay the text that they are."""

    dtype = np.dtype(np.int64)

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        with self._reading():
            self._delimiter = delimiter(path)
            names = self._open().schema.names
        self._label = _label_column(names, column, path)
        self.name = f"the column {self._label} of {path}"
        kinds = [pa.int64() if name == self._label else pa.string() for name in names]
        self.schema = pa.schema(list(zip(names, kinds, strict=True)))
        self._index = names.index(self._label)

    def batches(self, most: int, keep: bool) -> Iterator[tuple[np.ndarray, Any]]:
        first, index = 0, self._index if keep else 0
        with self._reading():
            for block in self._open(None if keep else self._label):
                for start in range(0, block.num_rows, most):
                    batch = block.slice(start, most)
                    ids = _ids_of_text(batch.column(index), self, first)
                    yield ids.to_numpy(), _replaced(batch, index, ids, self.schema) if keep else None
                    first += batch.num_rows

    def where(self, row: int) -> str:
        line = line_of(row, self.path, self._delimiter)
        return super().where(row) if line is None else f"line {line} of {self.path}"

    def _open(self, only: str | None = None) -> pcsv.CSVStreamingReader:
        """All columns are text: a type found in the first block of a file may not fit the last."""
        read = pcsv.ReadOptions(block_size=_BLOCK)
        parse = pcsv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True)
        names = [] if self.schema is None else self.schema.names
        convert = pcsv.ConvertOptions(
            include_columns=None if only is None else [only],
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
        )
        return pcsv.open_csv(self.path, read, parse, convert)

    def _reading(self) -> AbstractContextManager[None]:
        return _files.reading(self.path, "is no readable CSV file ({})", (pa.ArrowException, UnicodeDecodeError))


class ParquetSource(Source):
    """A column of a parquet file, of numbers, or of lists that are one-hot rows or targets."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        with self._reading():
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
            self.schema = self._file.schema_arrow
        self._label = _label_column(self.schema.names, column, path)
        self.name = f"the column {self._label} of {path}"
        kind = self.schema.field(self._label).type
        rows = self._file.metadata.num_rows
        if _is_list(kind):
            width = self._list_width()
            self.describe((rows, width), _numpy(kind.value_type, self.name))
            self.width = width  # lists of one value are targets of one class
        else:
            self.describe((rows,), np.dtype(np.int64) if is_text(kind) else _numpy(_plain(kind), self.name))

    def batches(self, most: int, keep: bool) -> Iterator[tuple[np.ndarray, Any]]:
        if keep:
            most = max(1, min(most, _BATCH // max(1, self._row_size())))
        first, index = 0, self.schema.names.index(self._label) if keep else 0
        with self._reading():
            for batch in self._file.iter_batches(most, columns=None if keep else [self._label]):
                yield self._values(batch.column(index), first), batch if keep else None
                first += batch.num_rows

    def _row_size(self) -> int:
        data = self._file.metadata
        size = sum(data.row_group(number).total_byte_size for number in range(data.num_row_groups))
        return size // max(1, data.num_rows)

    def _list_width(self) -> int:
        kind = self.schema.field(self._label).type
        if pa.types.is_fixed_size_list(kind):
            return kind.list_size
        for batch in self._file.iter_batches(1, columns=[self._label]):
            return len(batch.column(0)[0].values or ())
        return 0

    def _values(self, column: Any, first: int) -> np.ndarray:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        self._no_null(column, first)
        if is_text(column.type):
            return _ids_of_text(column, self, first).to_numpy()
        if self.width is None:
            return column.to_numpy(zero_copy_only=False)
        lengths = _compute.list_value_length(column).to_numpy()
        if (lengths != self.width).any():
            row = int((lengths != self.width).argmax())
            raise DataError(
                f"{self.where(first + row)} has {lengths[row]} values; the first row has one for each of "
                f"{self.width} classes"
            )
        flat = column.flatten()
        if flat.null_count:
            row = next(place for place, value in enumerate(flat) if not value.is_valid) // self.width
            raise DataError(f"{self.where(first + row)} lacks a value")
        return flat.to_numpy(zero_copy_only=False).reshape(-1, self.width)

    def _no_null(self, column: Any, first: int) -> None:
        if column.null_count:
            row = next(place for place, value in enumerate(column) if not value.is_valid)
            raise DataError(f"{self.where(first + row)} has no label")

    def _reading(self) -> AbstractContextManager[None]:
        return _files.reading(self.path, "is no readable parquet file ({})", (pa.ArrowException, OSError))


@contextmanager
def parquet_sink(file: IO[bytes], schema: Any, count: int, dtype: np.dtype) -> Iterator[Write]:
    """Writes the columns of `schema`, and targets as a column of lists of a fixed size.

    Args:
        file: to write to.
        schema: the columns that are kept.
        count: K.
        dtype: of the targets.
    """
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), count)
    whole = schema.append(pa.field(TARGETS, kind, nullable=False))
    # A dictionary of targets is slow to make and to read; zstd finds the same repetitions.
    with pq.ParquetWriter(file, whole, compression="zstd", use_dictionary=schema.names) as writer:

        def write(targets: np.ndarray, values: np.ndarray, table: Any) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), type=kind)
            writer.write_table(pa.Table.from_arrays([*_kept(table, values, schema), column], schema=whole))

        yield write


@contextmanager
def csv_sink(file: IO[bytes], schema: Any, count: int, dtype: np.dtype) -> Iterator[Write]:
    """Writes the columns of `schema`, and targets as columns ``target_0``, ``target_1``, ...; see `parquet_sink`.

    Raises:
        ValueError: a column that text cannot hold.
    """
    number = pa.float64() if dtype == np.float64 else pa.float32()
    whole = pa.schema([*schema, *(pa.field(name, number) for name in csv_names(count))])
    shortest = _shortest() if dtype == np.float16 else None
    rule = "be no .csv file where a column is neither text nor numbers"
    for column in schema:
        if pa.types.is_nested(column.type) or _is_bytes(column.type):
            raise _checks.error("out", rule, f"{column.name} of {column.type}")
    with pcsv.CSVWriter(file, whole) as writer:

        def write(targets: np.ndarray, values: np.ndarray, table: Any) -> None:
            if shortest is not None:
                targets = shortest[targets.view(np.uint16)]
            columns = [pa.array(column) for column in np.ascontiguousarray(targets.T)]
            writer.write_batch(pa.RecordBatch.from_arrays([*_kept(table, values, schema), *columns], schema=whole))

        yield write


def csv_names(count: int) -> list[str]:
    """The names of the columns of targets in a CSV file."""
    return [f"target_{number}" for number in range(count)]


def delimiter(path: Path) -> str:
    """The one of comma, semicolon and tab that stands in the first line most often."""
    with path.open(encoding="utf-8-sig") as file:
        line = file.readline(1 << 16)
    return max(",;\t", key=line.count)


def is_text(kind: pa.DataType) -> bool:
    """True for strings, in a dictionary too."""
    kind = _plain(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def label_schema() -> Any:
    """The columns of a table of labels that are in no table yet."""
    return pa.schema([pa.field("label", pa.int64())])


def no_columns() -> Any:
    return pa.schema([])


def _kept(table: Any, values: np.ndarray, schema: Any) -> list[Any]:
    """The columns before the targets."""
    if table is not None:
        return table.columns
    return [pa.array(values)] if len(schema) else []


def _replaced(batch: Any, index: int, ids: Any, schema: Any) -> Any:
    return pa.RecordBatch.from_arrays(
        [ids if number == index else column for number, column in enumerate(batch.columns)], schema=schema
    )


def _label_column(names: Sequence[str], asked: str | None, path: Path) -> str:
    listed = ", ".join(map(printable, names))
    if asked is None:
        known = [name for wanted in LABEL_NAMES for name in names if name.lower() == wanted]
        if not known:
            hint = next((hint for wanted in LABEL_NAMES if (hint := nearest(wanted, names))), "")
            raise DataError(
                f"{path} has no label column (one of {', '.join(LABEL_NAMES)}); its columns: {listed}{hint}; "
                f"--column names another"
            )
        asked = known[0]
    elif asked not in names:
        raise DataError(
            f"{path} has no column {asked!r}, which --column names{nearest(asked, names)}; its columns: {listed}"
        )
    if names.count(asked) > 1:
        raise DataError(f"{path} has {names.count(asked)} columns {asked}; rename all but one")
    return asked


def _ids_of_text(column: Any, source: Source, first: int) -> Any:
    """Text as int64: whole numbers, perhaps with blanks around them, a sign, and decimals that are 0."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    text = _compute.utf8_trim_whitespace(column)
    wrong = ~_compute.match_substring_regex(text, _WHOLE).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        given = column[row].as_py()
        if not given.strip():
            raise DataError(f"{source.where(first + row)} has no label")
        raise DataError(
            f"{source.where(first + row)} has the label {given!r}, which is no whole number; class ids are 0..K-1"
        )
    digits = _compute.replace_substring_regex(text, r"^\+|\.0*$", "")
    try:
        return digits.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond int64
        row = next(place for place, value in enumerate(digits.to_pylist()) if abs(int(value)) >= 2**63)
        raise DataError(f"{source.where(first + row)} has the label {text[row]}, which is no class id") from None


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _numpy(kind: pa.DataType, name: str) -> np.dtype:
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{name} is of {kind}; labels are whole numbers, and targets are lists of floats")
    return np.dtype(kind.to_pandas_dtype())


def _shortest() -> np.ndarray:
    """For each float16, by its bits, the float32 that is written in as few digits: 0.901, not 0.90087890625."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return np.array([str(value) for value in every]).astype(np.float32)
