"""Parquet files of images: a column of image bytes or paths, and a column of labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labelsmooth._errors import DataError
from labelsmooth.training.images import Decoded, cached, decode_all

_IMAGE_NAMES = ("image", "img", "images", "picture", "pixels", "file", "path", "file_name")
_LABEL_NAMES = ("label", "labels", "class", "target", "y", "fine_label", "category")


def read(
    path: Path, image_size: int | None, progress: Callable[[int, int], None], note: Callable[[str], None]
) -> tuple[Decoded, str]:
    """Images and labels of a parquet file, from the cache where they were decoded before, and the file's SHA-256.

    Raises:
        DataError: it is missing or damaged, lacks an image or a label column, or holds an image that cannot be decoded.
    """
    digest = _sha256(path)
    try:
        file = pq.ParquetFile(path)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is no readable parquet file ({reason}); is it damaged, or cut off?") from None
    image, label = _columns(schema, path)
    digest = _with_files(digest, file, image, path.parent)

    def make() -> Decoded:
        labels: list[np.ndarray] = []

        def sources() -> Iterator[tuple[bytes | Path, str]]:
            row = 0
            try:
                for batch in file.iter_batches(1024, columns=[image, label]):
                    labels.append(_labels(batch.column(label), row, path))
                    for value in batch.column(image):
                        yield _source(value.as_py(), path.parent, f"row {row} of {path}")
                        row += 1
            except (pa.ArrowException, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise DataError(f"{path} is damaged after row {row} ({reason})") from None

        images = decode_all(sources(), rows, image_size, progress)
        return Decoded(images, np.concatenate(labels) if labels else np.empty(0, np.int64), _names(schema, label))

    return cached(f"{digest}-{image_size or 'own'}", make, note), digest


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _with_files(digest: str, file: pq.ParquetFile, image: str, folder: Path) -> str:
    """The digest of the parquet file and of the image files that it names, if it names any."""
    kind = file.schema_arrow.field(image).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return digest
    if pa.types.is_struct(kind) and not _may_lack_bytes(file, image):
        return digest
    together = hashlib.sha256(digest.encode())
    for batch in file.iter_batches(1024, columns=[image]):
        for value in batch.column(image).to_pylist():
            name = value if isinstance(value, str) else value and value["bytes"] is None and value.get("path")
            if name and (folder / name).is_file():  # one that is missing is told of by its row, when it is decoded
                together.update((folder / name).read_bytes())
    return together.hexdigest()


def _may_lack_bytes(file: pq.ParquetFile, image: str) -> bool:
    """True unless the file's statistics say that every image has its bytes in the file."""
    names = [file.schema.column(i).path for i in range(len(file.schema))]
    column = names.index(f"{image}.bytes")
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return True
    return False


def _columns(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """The names of the image column and of the label column."""

    def holds_images(field: pa.Field) -> bool:
        kind = field.type
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def holds_text(field: pa.Field) -> bool:
        return pa.types.is_string(field.type) or pa.types.is_large_string(field.type)

    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    images = [field.name for field in schema if holds_images(field)]
    images += [field.name for field in schema if holds_text(field) and field.name.lower() in _IMAGE_NAMES]
    images.sort(key=lambda name: _rank(name, _IMAGE_NAMES))
    if not images:
        raise DataError(
            f"{path} has no column of images (bytes, a struct of bytes and path, or paths); its columns: {listed}"
        )
    labels = [field.name for field in schema if field.name.lower() in _LABEL_NAMES]
    labels.sort(key=lambda name: _rank(name, _LABEL_NAMES))
    if not labels:
        known = ", ".join(_LABEL_NAMES)
        raise DataError(f"{path} has no label column (one of {known}); its columns: {listed}")
    return images[0], labels[0]


def _rank(name: str, names: tuple[str, ...]) -> int:
    return names.index(name.lower()) if name.lower() in names else len(names)


def _labels(column: pa.Array, first: int, path: Path) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        row = first + next(i for i, value in enumerate(column) if not value.is_valid)
        raise DataError(f"row {row} of {path} has no label")
    values = column.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type) and np.isfinite(values).all() and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return values.astype(np.str_)
    if values.dtype.kind not in "iub":
        bad = 0
        if values.dtype.kind == "f":
            bad = int(np.argmax(~np.isfinite(values) | (values != np.floor(values))))
        raise DataError(f"row {first + bad} of {path} has the label {values[bad]}, which is no class id and no name")
    if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise DataError(
            f"row {first + int(values.argmax())} of {path} has the label {values.max()}, which is no class id"
        )
    return values.astype(np.int64)


def _source(value: Any, folder: Path, where: str) -> tuple[bytes | Path, str]:
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    if value is None:
        raise DataError(f"{where} has no image")
    return (value if isinstance(value, bytes) else folder / value), where


def _names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names that Hugging Face's `datasets` writes into the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None
