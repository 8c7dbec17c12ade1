"""The cache: downloads, and images decoded once, found again by the content that they came from."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from labelsmooth import _files
from labelsmooth.training.images import Decoded, Items, bounded_map, decode_all
from labelsmooth.training.listing import Progress

VERSION = 2
_UNFINISHED = ".new-"
_CHUNK = 64  # files that a thread reads at once
_HEADER = 128  # bytes before the pixels, as NumPy writes them
_DAMAGE = (*_files.NPZ_DAMAGE, KeyError, TypeError)


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: $LABELSMOOTH_CACHE, or the user's cache folder."""
    chosen = os.environ.get("LABELSMOOTH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("labelsmooth"))


def digest(files: Sequence[str], names: Iterable[str]) -> str:
    """SHA-256 of the contents of `files` and of what `names` says of them.

    Where the cache knows files of the same paths, sizes, times of change and names, they are not read again.

    A file that is missing or cannot be read counts as such; it is told of when it is decoded.
    """
    stamp = hashlib.sha256()
    told = hashlib.sha256()
    for name in names:
        told.update(name.encode("utf-8", "surrogateescape") + b"\0")
    stamp.update(told.digest())
    for file in files:
        try:
            s = os.stat(file)
            stamp.update(
                f"{os.path.abspath(file)}\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\0".encode(
                    "utf-8", "surrogateescape"
                )
            )
        except (OSError, ValueError):  # a name that cannot be one
            stamp.update(f"{file}\0-\0".encode("utf-8", "surrogateescape"))
    known = cache_folder() / "digests" / stamp.hexdigest()
    try:
        text = known.read_text(encoding="ascii")
        if len(text) == 64:
            return text
    except (OSError, ValueError):
        pass
    chunks = (files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK))
    complete = True
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for contents in bounded_map(pool, lambda chunk: list(map(_content, chunk)), chunks):
            for one in contents:
                told.update(one or b"-")
                complete = complete and one is not None
    if complete:  # what cannot be read now may be readable later
        with suppress(OSError):  # it only saves time
            known.parent.mkdir(parents=True, exist_ok=True)
            _files.write_text(known, told.hexdigest())
    return told.hexdigest()


def _content(file: str) -> bytes | None:
    """The digest of a file; of one that is missing or unreadable, which is told of when it is decoded, None."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):
        return None


def decoded(items: Items, content: str, image_size: int | None, progress: Progress) -> Decoded:
    """`items`, decoded: from the cache where it has them, or else into it.

    A cache that cannot be written is noted, and done without; one that is damaged is made anew.

    Args:
        items: what to decode.
        content: the digest of their content.
        image_size: see `decode_all`.
        progress: is told how far it is, and of trouble with the cache.

    Raises:
        DataError: see `decode_all`.
    """
    root = cache_folder()
    folder = root / f"decoded-v{VERSION}" / f"{content}-{image_size or 'own'}"
    try:
        if folder.is_dir():
            try:
                return _read(folder)
            except _DAMAGE as error:
                progress.note(f"the cache in {folder} is damaged ({error}); decoding again")
        old = [item.name for item in root.glob("decoded-v*") if item.name != f"decoded-v{VERSION}"]
        if old:
            progress.note(
                f"{root} holds a cache of an older version ({', '.join(sorted(old))}), which is not used; delete it"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        return _decode_into(folder, items, image_size, progress.decoded)
    except OSError as error:
        progress.note(
            f"the decoded images could not be cached in {folder} ({error.strerror or error}); "
            "they are decoded at every start"
        )
    try:
        return _decode_into(None, items, image_size, progress.decoded)
    except OSError as error:
        room = f"{tempfile.gettempdir()} has no room for them ({error.strerror or error})"
        progress.note(f"they are held in memory, since {room}")
    buffer = io.BytesIO()
    shape, rest = _write(items, image_size, buffer, progress.decoded)
    images = np.frombuffer(buffer.getbuffer(), np.uint8, offset=_HEADER).reshape(-1, *shape)
    return replace(rest, images=images)


def _decode_into(
    folder: Path | None, items: Items, image_size: int | None, progress: Callable[[int, int], None]
) -> Decoded:
    """Decode into files, which become `folder`; or, if it is None, files that vanish with the process.

    So do those with images that could not be read for reasons that may pass.
    """
    temporary = Path(tempfile.mkdtemp(dir=folder and folder.parent, prefix=_UNFINISHED))
    try:
        with (temporary / "images.npy").open("wb") as file:
            _, rest = _write(items, image_size, file, progress)
            os.fsync(file.fileno())
        with (temporary / "examples.npz").open("wb") as file:
            np.savez(file, kept=rest.kept, sizes=rest.sizes, hashes=rest.hashes)
            os.fsync(file.fileno())
        _files.write_text(temporary / "skipped.json", json.dumps(rest.skipped))
        if folder is None or rest.passing:
            return _read(temporary)  # mapped files stay when their names go
        os.chmod(temporary, 0o777 & ~_files.umask())
        if folder.is_dir() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was faster
            os.replace(temporary, folder)
        return _read(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        _read(folder)
    except _DAMAGE:
        return False
    return True


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed more than a day ago."""
    for item in folder.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - item.stat().st_mtime > 86_400:
                shutil.rmtree(item, ignore_errors=True)


def _write(
    items: Items, image_size: int | None, file: BinaryIO, progress: Callable[[int, int], None]
) -> tuple[tuple[int, int, int], Decoded]:
    """A .npy file; its header, which says how many images there are, is written last."""
    file.write(bytes(_HEADER))
    shape, rest = decode_all(items, image_size, file, progress)
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rest.kept), *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == _HEADER
    return shape, rest


def _read(folder: Path) -> Decoded:
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    with (folder / "examples.npz").open("rb") as file, np.load(file, allow_pickle=False) as examples:
        kept, sizes, hashes = examples["kept"], examples["sizes"], examples["hashes"]
    skipped = json.loads((folder / "skipped.json").read_text(encoding="utf-8"))
    if images.dtype != np.uint8 or not len(images) == len(kept) == len(sizes) == len(hashes):
        raise ValueError("its parts do not fit together")
    return Decoded(images, kept, sizes, hashes, tuple(map(str, skipped)))
