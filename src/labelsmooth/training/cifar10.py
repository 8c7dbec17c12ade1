"""CIFAR-10: the authors' binary archive, downloaded with its checksum, or a local copy of it."""

from __future__ import annotations

import hashlib
import logging
import lzma
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.training import arrays
from labelsmooth.training.cache import cache_folder
from labelsmooth.training.listing import Listing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE = "cifar-10-binary.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32


def fetch(progressbar: Any, *, url: str = URL, sha256: str = SHA256) -> Path:
    """The archive in the cache folder, downloaded if it is not there yet.

    Args:
        progressbar: an object with tqdm's `total`, `update`, `reset` and `close`; or False.
        url: where to download it from.
        sha256: its checksum; a file with another one is refused.

    Raises:
        DataError: it cannot be downloaded, or is not the file that it should be.
    """
    import pooch
    import requests

    folder = cache_folder()
    by_hand = (
        f"download {ARCHIVE} elsewhere and give its path (labelsmooth train {ARCHIVE}), or put it at {folder / ARCHIVE}"
    )
    logger, level = pooch.get_logger(), pooch.get_logger().level
    logger.setLevel(logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        downloader: Any = pooch.HTTPDownloader(progressbar=progressbar, chunk_size=1 << 16)
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=ARCHIVE, path=folder, downloader=downloader))
    except requests.exceptions.RequestException as error:
        raise DataError(f"CIFAR-10 could not be downloaded from {url} ({type(error).__name__}); {by_hand}") from None
    except ValueError as error:
        raise DataError(
            f"the CIFAR-10 archive from {url} is not the one that it should be ({error}); {by_hand}"
        ) from None
    except OSError as error:
        raise DataError(
            f"CIFAR-10 could not be kept in {folder} ({error.strerror}); set LABELSMOOTH_CACHE to another folder"
        ) from None
    finally:
        logger.setLevel(level)


def read(path: Path) -> Listing:
    """The training and the test images of a binary archive, or of the folder that it unpacks to.

    Raises:
        DataError: a file is missing or has another size.
    """
    blobs = _from_folder(path) if path.is_dir() else _from_archive(path)
    digest = hashlib.sha256()
    for name in (*TRAIN_FILES, TEST_FILE):
        blob = blobs.get(name)
        if blob is None:
            raise DataError(f"{path} holds no {name}; is it CIFAR-10's binary version ({ARCHIVE})?")
        if len(blob) == 0 or len(blob) % _RECORD:
            raise DataError(f"{name} in {path} has {len(blob)} bytes, no multiple of {_RECORD}; it is damaged")
        digest.update(blob)
    train = _records(b"".join(blobs[name] for name in TRAIN_FILES), path)
    test = _records(blobs[TEST_FILE], path)
    images, labels = ({"train": one, "test": other} for one, other in zip(train, test, strict=True))
    return arrays.of_arrays("cifar10", images, labels, CLASSES, digest.hexdigest())


def _from_folder(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in (*TRAIN_FILES, TEST_FILE) if (path / name).is_file()}


def _from_archive(path: Path) -> dict[str, bytes]:
    """The members, read in memory: nothing is unpacked to the disk."""
    blobs = {}
    damage = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
    with (
        _files.reading(path, "is no readable archive ({}); is it damaged, or cut off?", damage),
        tarfile.open(path, "r:*") as archive,
    ):
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and name in (*TRAIN_FILES, TEST_FILE):
                stream = archive.extractfile(member)
                assert stream is not None
                blobs[name] = stream.read()
    return blobs


def _records(blob: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(blob, np.uint8).reshape(-1, _RECORD)
    labels = rows[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise DataError(f"{path} holds the label {labels.max()}; CIFAR-10's are 0..9, so this is another file")
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels
