"""Tables of images, parquet or CSV: a column of image bytes or paths, one of labels, and perhaps one of splits."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth._text import nearest, shortened
from labelsmooth.files.tables import LABEL_NAMES, delimiter, is_text, line_of
from labelsmooth.training import cache
from labelsmooth.training.arrays import whole
from labelsmooth.training.images import Encoded, Items
from labelsmooth.training.listing import SPLITS, Listing, one_file_per_split, split_of

SUFFIXES = (".parquet", ".csv", ".tsv")
_BYTES_NAMES = ("image_bytes", "bytes", "image_base64", "base64")  # in a CSV file: base64
_IMAGE_NAMES = (
    "image", "img", "images", "picture", "pixels", "file", "path", "file_name", "filename", "filepath", "file_path",
    "image_path", "image_file", *_BYTES_NAMES,
)  # fmt: skip
_SPLIT_NAMES = ("split", "subset", "fold", "set", "partition")
_PART = re.compile(r"(.+)-\d+-of-0*(\d+)")
_ROWS = 128
_LONGEST_PATH = 4096
_BLOCKS = pc.ReadOptions(block_size=32 << 20)  # of a CSV file; no row may be larger


def read(
    paths: Sequence[tuple[str, Path]], name: str, *, image_column: str | None = None, label_column: str | None = None
) -> Listing:
    """Listing of one table, or of one or more for each split.

    Args:
        paths: of each file the split, and where it is; a single file may say each row's split in a column.
        name: what to call the data.
        image_column: the column of images; None: found by its type and name.
        label_column: the column of labels; None: found by its name.

    Raises:
        DataError: a file is missing or damaged, lacks a column, or has a label that is none.
    """
    tables = [_Table(path, image_column, label_column) for _, path in paths]
    names = [split for split, _ in paths]
    for split, table in zip(names, tables, strict=True):
        if table.rows == 0:
            raise DataError(f"the {split} split of {table.path} is empty")
    labels, classes = _together(tables, names)
    splits = [table.splits if table.splits is not None else np.full(table.rows, s) for s, table in zip(names, tables)]  # noqa: B905
    starts = np.cumsum([0, *(table.rows for table in tables)])

    def where(number: int) -> _Row:
        table = int(np.searchsorted(starts, number, "right")) - 1
        return _Row(tables[table], number - int(starts[table]))

    def sources() -> Iterator[Encoded]:
        for table in tables:
            yield from table.images()

    def other_labels(column: str) -> np.ndarray:
        rows = [np.flatnonzero(of_table == "train") for of_table in splits]
        return np.concatenate([t.other_labels(column, own) for t, own in zip(tables, rows, strict=True) if len(own)])

    content = cache.digest(
        [file for table in tables for file in (str(table.path), *table.named_files())],
        [f"{split} {table.image}" for split, table in zip(names, tables, strict=True)],
    )
    items = Items(int(starts[-1]), sources, where)
    return Listing(
        name=name,
        labels=labels,
        splits=np.concatenate(splits),
        classes=classes,
        digest=content,
        decode=partial(cache.decoded, items, content),
        notes=tuple(
            f"the column {column} of {tables[0].path} is not used: it names none of {', '.join(SPLITS)}"
            for column in dict.fromkeys(column for table in tables for column in table.unused)
        ),
        other_labels=other_labels,
    )


def in_folder(folder: Path) -> list[tuple[str, Path]]:
    """The tables in `folder` that are named after splits, and the split of each; empty if there are none.

    A table may be in parts, as Hugging Face's `datasets` writes it: ``train-00000-of-00002.parquet`` and so on.

    Raises:
        DataError: two tables are for the same split, there is one for test or validation only, or a part is missing.
    """
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for item in sorted(folder.iterdir(), key=lambda item: (len(item.name), item.name)):  # 2 comes before 10
        if item.suffix.lower() in SUFFIXES and item.is_file():
            part = _PART.fullmatch(item.stem)
            parts[f"{part[1]}{item.suffix}" if part else item.name].append(item.name)
    found = one_file_per_split(list(parts), f"the folder {folder}")
    if found and "train" not in found:
        raise DataError(f"the folder {folder} holds {', '.join(found.values())}, but no train.parquet or train.csv")
    for name in found.values():
        wanted = {int(part[2]) if (part := _PART.fullmatch(Path(file).stem)) else 1 for file in parts[name]}
        if wanted != {len(parts[name])}:
            listed = shortened(", ".join(parts[name]), 200)
            raise DataError(f"the folder {folder} holds {listed}: not all parts of one {name}, and nothing else")
    return [(split, folder / file) for split, name in found.items() for file in parts[name]]


@dataclass(frozen=True)
class _Row:
    """A row of a table, whose line is looked for where it is asked for."""

    table: _Table
    number: int

    def __str__(self) -> str:
        return self.table.where(self.number)


class _Table:
    """A parquet or CSV file, read in batches of rows.

    Attributes:
        rows: how many there are.
        image: the name of the image column.
        labels: ids ``int64[rows]``, or names.
        splits: of each row, if there is a column of them.
        unused: columns that are called like one of splits, and name none.
        classes: the class names that Hugging Face's `datasets` wrote into the file.
    """

    def __init__(self, path: Path, image_column: str | None, label_column: str | None) -> None:
        self.path, self.is_csv = path, path.suffix.lower() != ".parquet"
        kind = "CSV" if self.is_csv else "parquet"
        damage = (pa.ArrowException, OSError, UnicodeDecodeError)
        with _files.reading(path, f"is no readable {kind} file ({{}}); is it damaged, or cut off?", damage):
            self.delimiter = delimiter(path) if self.is_csv else ""
            self.schema = schema = self._open_csv(None).schema if self.is_csv else pq.read_schema(path)
        self.image = self._image_column(image_column)
        label = self._label_column(label_column)
        splits = {name: [] for name in schema.names if name.lower() in _SPLIT_NAMES and name != label}
        columns = [label, *sorted(splits, key=lambda name: _rank(name, _SPLIT_NAMES))]
        for name in (self.image, *columns):
            if schema.names.count(name) > 1:
                raise DataError(f"{path} has {schema.names.count(name)} columns called {name}; rename all but one")
        labels, self.rows = [], 0
        for batch in self._batches(columns):
            labels.append(self._labels(batch.column(label), label, range(self.rows, self.rows + batch.num_rows)))
            for name in columns[1:]:
                splits[name] += batch.column(name).to_pylist()
            self.rows += batch.num_rows
        self.labels = np.concatenate(labels) if labels else np.empty(0, np.int64)
        found = (self._splits(splits[name], name) for name in columns[1:])
        self.splits = next((of_rows for of_rows in found if of_rows is not None), None)
        self.unused = columns[1:] if self.splits is None else []
        self.classes = _names(schema, label)

    def other_labels(self, name: str, rows: np.ndarray) -> np.ndarray:
        """What the column `name` holds for some rows, ``int64[n]`` in ascending order: ids, or names."""
        self._asked(name, "--noise")
        labels, start = [], 0
        for batch in self._batches([name]):
            first, end = np.searchsorted(rows, [start, start + batch.num_rows])
            if first < end:
                wanted = rows[first:end]
                labels.append(self._labels(batch.column(name).take(pa.array(wanted - start)), name, wanted))
            start += batch.num_rows
        ids, own = np.concatenate(labels), _names(self.schema, name)
        if own is None or ids.dtype.kind == "U":
            return ids
        wrong = (ids < 0) | (ids >= len(own))
        if wrong.any():
            raise DataError(
                f"{self.where(rows[wrong.argmax()])} has the label {ids[wrong.argmax()]} in the column {name}, "
                f"which names {len(own)} classes only"
            )
        return np.array(own)[ids]

    def where(self, row: int) -> str:
        line = line_of(row, self.path, self.delimiter) if self.is_csv else None
        return f"row {row} of {self.path}" if line is None else f"line {line} of {self.path}"

    def images(self) -> Iterator[Encoded]:
        folder = str(self.path.parent)
        coded = self.is_csv and self.image.lower() in _BYTES_NAMES
        for batch in self._batches([self.image]):
            for value in batch.column(self.image).to_pylist():
                if isinstance(value, dict):
                    value = value["bytes"] if value["bytes"] is not None else value.get("path")
                if isinstance(value, str) and coded:
                    value = _from_base64(value)
                if isinstance(value, str) and len(value) > _LONGEST_PATH:
                    what = f"{len(value)} characters where a path should be: {shortened(value, 40)}"
                    hint = "; base64 is read from a column called image_base64" if self.is_csv else ""
                    raise DataError(f"the column {self.image} of {self.path} holds {what}{hint}")
                yield f"{folder}/{value}" if isinstance(value, str) and value and value[0] != "/" else value or None

    def named_files(self) -> list[str]:
        """The image files that the table names."""
        kind = self.schema.field(self.image).type
        if not is_text(kind) and not (pa.types.is_struct(kind) and self._may_lack_bytes()):
            return []
        return [file for file in self.images() if isinstance(file, str)]

    def _may_lack_bytes(self) -> bool:
        """True unless the file's statistics say that every image has its bytes in the file."""
        metadata = pq.read_metadata(self.path)
        names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
        column = names.index(f"{self.image}.bytes")
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return True
        return False

    def _open_csv(self, columns: list[str] | None) -> pc.CSVStreamingReader:
        """All columns are text: a type found in the first block of a file may not fit the last."""
        parse = pc.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        if columns is None:
            return pc.open_csv(self.path, _BLOCKS, parse)
        convert = pc.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        )
        return pc.open_csv(self.path, _BLOCKS, parse, convert)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        row = 0
        try:
            with ExitStack() as stack:
                if self.is_csv:
                    reader: Iterable[pa.RecordBatch] = stack.enter_context(self._open_csv(columns))
                else:
                    file = stack.enter_context(pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20))
                    reader = file.iter_batches(_ROWS, columns=columns)
                for batch in reader:
                    yield batch
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{self.path} is damaged after row {row} ({reason})") from None

    def _image_column(self, asked: str | None) -> str:
        if asked is not None:
            name = self._asked(asked, "--image-column")
            kind = self.schema.field(name).type
            if not (_holds_images(kind) or self._is_text(kind)):
                raise DataError(f"the column {name} of {self.path} is of {kind}; images are bytes or paths")
            return name
        fields = [field for field in self.schema if not self.is_csv and _holds_images(field.type)]
        fields += [field for field in self.schema if field.name.lower() in _IMAGE_NAMES and self._is_text(field.type)]
        if not fields:
            kinds = "bytes, a struct of bytes and path, or paths in a column called image, path or file_name"
            raise DataError(
                f"{self.path} has no column of images ({kinds}); its columns: {self._listed()}"
                f"{self._nearest(_IMAGE_NAMES)}; --image-column names another"
            )
        return min(fields, key=lambda field: _rank(field.name, _IMAGE_NAMES)).name

    def _label_column(self, asked: str | None) -> str:
        if asked is not None:
            return self._asked(asked, "--label-column")
        names = [field.name for field in self.schema if field.name.lower() in LABEL_NAMES]
        if not names:
            raise DataError(
                f"{self.path} has no label column (one of {', '.join(LABEL_NAMES)}); its columns: {self._listed()}"
                f"{self._nearest(LABEL_NAMES)}; --label-column names another"
            )
        return min(names, key=lambda name: _rank(name, LABEL_NAMES))

    def _asked(self, name: str, option: str) -> str:
        if name not in self.schema.names:
            raise DataError(
                f"{self.path} has no column {name!r}, which {option} names{nearest(name, self.schema.names)}; "
                f"its columns: {self._listed()}"
            )
        return name

    def _is_text(self, kind: pa.DataType) -> bool:
        return self.is_csv or is_text(kind)

    def _listed(self) -> str:
        return ", ".join(f"{field.name} ({field.type})" for field in self.schema)

    def _nearest(self, known: Sequence[str]) -> str:
        """The column that may be meant by one of the names that are looked for."""
        names = {name.lower(): name for name in self.schema.names}
        for name in known:
            hint = nearest(name, list(names))
            if hint:
                return hint
        return ""

    def _labels(self, column: pa.Array, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids or names; `rows` are their numbers, for an error."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            row = next(i for i, value in enumerate(column) if not value.is_valid)
            raise DataError(f"{self.where(rows[row])} has no label in the column {name}")
        values = column.to_numpy(zero_copy_only=False)
        if is_text(column.type):
            blank = [i for i, value in enumerate(values) if not value.strip()]
            if blank:
                raise DataError(f"{self.where(rows[blank[0]])} has no label in the column {name}")
            return np.array([value.strip() for value in values])
        if pa.types.is_floating(column.type) and whole(values).all():
            values = values.astype(np.int64)
        if values.dtype.kind not in "iub":
            bad = 0
            if values.dtype.kind == "f":
                bad = int(np.argmin(whole(values)))
            label = shortened(str(values[bad]), 60)
            raise DataError(f"{self.where(rows[bad])} has the label {label}, which is no class id and no name")
        if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
            raise DataError(
                f"{self.where(rows[int(values.argmax())])} has the label {values.max()}, which is no class id"
            )
        return values.astype(np.int64)

    def _splits(self, values: list[Any], name: str) -> np.ndarray | None:
        """The split of each row; None where the column says nothing of splits, as folds with numbers."""
        splits = [split_of(str(value)) for value in values]
        if name.lower() != "split" and not any(splits):
            return None
        if None in splits:
            row = splits.index(None)
            found = shortened(repr(values[row]), 60)
            raise DataError(f"{self.where(row)} has the {name} {found}; it must be one of {', '.join(SPLITS)}")
        return np.array(splits)


def _together(tables: list[_Table], splits: list[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The labels of all tables, and the class names of ids; tables may name the same classes in another order."""
    kinds = {table.labels.dtype.kind for table in tables}
    if len(kinds) > 1:
        listed = shortened(" and ".join(str(table.path) for table in tables), 300)
        raise DataError(f"{listed} have labels of different kinds: numbers in one, names in another")
    if kinds == {"U"}:
        return np.concatenate([table.labels for table in tables]), None
    named = next((table.classes for table in tables if table.classes), None)
    labels = []
    for split, table in zip(splits, tables, strict=True):
        ids = table.labels
        if named is not None and table.classes is not None and table.classes != named:
            ids = _renumbered(ids, table.classes, named, f"the {split} split of {table.path}")
        labels.append(ids)
    return np.concatenate(labels), named


def _renumbered(ids: np.ndarray, own: tuple[str, ...], classes: tuple[str, ...], where: str) -> np.ndarray:
    """Ids into the names `own` as ids into `classes`, which are the same names in another order."""
    if sorted(own) != sorted(classes):
        raise DataError(f"{where} names other classes ({', '.join(own)}) than the others ({', '.join(classes)})")
    if ids.size and ids.max() >= len(own):
        raise DataError(f"{where} has the label {ids.max()}, but names {len(own)} classes only")
    return np.array([classes.index(name) for name in own])[ids]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rank(name: str, names: tuple[str, ...]) -> int:
    return names.index(name.lower()) if name.lower() in names else len(names)


def _from_base64(text: str) -> bytes:
    """What `text` encodes; if it encodes nothing, text that is no image either, so that the row is told of."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        return text.encode()


def _names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's `datasets` writes into the file."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None
