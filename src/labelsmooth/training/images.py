"""Images: decoded to uint8 arrays of one size, by a thread per core, straight into a file."""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from labelsmooth._errors import DataError
from labelsmooth._text import printable, shortened

OWN_SIZE = 128  # images of one size keep it up to here
CHOSEN_SIZE = 64  # others are resized to at most this
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_CHUNK = 32  # images that a thread takes at once: one by one, handing them over costs more than decoding small ones
_WINDOW = 3  # chunks in flight per thread
_SMALL = 5e-4  # seconds for an item; below, Python is what takes the time, and Python runs one thread at a time

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF

_ORIENTING = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

Encoded = bytes | str | Path | None  # an image file's content, its path, or nothing


def decode(source: Encoded, where: object, *, channels: int | None = None) -> np.ndarray:
    """An image file as ``uint8[H, W, C]``, turned upright; C is 1 for a grey image and 3 for any other.

    Args:
        source: the file's bytes, or its path.
        where: what to call it in an error, as `str` gives it.
        channels: 1 or 3, whatever the file has; None keeps the file's own.

    Raises:
        DataError: it is no image that Pillow can read, it is damaged, or it is so large that it must be a bomb.
    """
    with _opened(source, where) as opened:
        opened.load()  # what a file says after its pixels counts too
        if _is_plain(opened) and channels in (None, len(opened.getbands())):
            array = np.asarray(opened)
            return array[..., None] if array.ndim == 2 else array
        image = ImageOps.exif_transpose(opened)
        grey = image.mode in _GREY_MODES
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            image = Image.fromarray(_to_bytes(np.asarray(image)))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if (channels == 1 or (channels is None and grey)) else "RGB")
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as ``uint8``: whole numbers up to 65535, floats up to 1."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"its values lie in {values.min():g}..{values.max():g}; {values.dtype} must be in 0..{top:g}")
    return (values / top * 255).round().astype(np.uint8)


def _is_plain(image: Image.Image) -> bool:
    """True where there is nothing to convert, and the file says nothing of an orientation: most files, and quick."""
    silent = image.format in ("JPEG", "PNG", "BMP") and not any(key in image.info for key in _ORIENTING)
    return image.mode in ("RGB", "L") and silent and not image.has_transparency_data


class _Passing(DataError):
    """An image cannot be read for a reason that lies outside of it, and may pass: permissions, memory, a bad disk."""


class _opened:
    """The image that Pillow opens from `source`; whatever it raises in the block becomes a DataError.

    Pillow's decoders raise anything at all on damaged files, struct.error and ZeroDivisionError among others.
    """

    def __init__(self, source: Encoded, where: object) -> None:
        self.source, self.where = source, where

    def __enter__(self) -> Image.Image:
        try:
            if self.source is None:
                raise DataError(f"{self.where} has no image")
            self.image = Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source)
            width, height = self.image.size
            if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"Image size {width}x{height} is above {Image.MAX_IMAGE_PIXELS} pixels: a decompression bomb?"
                )
        except Exception as error:
            self.__exit__(type(error), error, None)
            raise
        return self.image

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if hasattr(self, "image"):
            self.image.close()
        if error is None or isinstance(error, DataError) or not isinstance(error, Exception):
            return
        where = str(self.where)
        if isinstance(self.source, (str, Path)) and (path := shortened(printable(str(self.source)), 300)) != where:
            where = f"{where} ({path})"
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{where}: there is no such file") from None
        if isinstance(error, UnidentifiedImageError):
            empty = self.source == b"" or (isinstance(self.source, (str, Path)) and os.path.getsize(self.source) == 0)
            why = "it is empty" if empty else "it is no image of a format that Pillow knows"
            raise DataError(f"{where} cannot be decoded: {why}") from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        raise (_Passing if passing else DataError)(f"{where} cannot be decoded: {reason}") from None


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image`, ``uint8[H, W, C]``, at another (height, width), by an antialiased bilinear filter."""
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    array = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return array[..., None] if array.ndim == 2 else array


@dataclass(frozen=True)
class Items:
    """Image files to decode.

    Attributes:
        count: N.
        read: begins a new round over their contents or paths.
        where: what to call number i in an error, as `str` gives it.
        lenient: leave out those that cannot be decoded, instead of stopping at the first.
    """

    count: int
    read: Callable[[], Iterable[Encoded]]
    where: Callable[[int], object]
    lenient: bool = False


@dataclass(frozen=True)
class Decoded:
    """Images of one size.

    Attributes:
        images: ``uint8[M, H, W, C]``, memory-mapped where it comes from the cache.
        kept: ``int64[M]``, which of the N items they are: those that could be decoded.
        sizes: ``int32[M, 2]``, height and width before resizing.
        hashes: ``uint64[M]``, of the pixels.
        skipped: why the others were left out, a line for each.
        passing: some were left out for a reason that may pass.
    """

    images: np.ndarray
    kept: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    skipped: tuple[str, ...]
    passing: bool = False

    @staticmethod
    def of(images: np.ndarray) -> Decoded:
        """Images that need no decoding, ``uint8[N, H, W, C]``."""
        n = len(images)
        sizes = np.tile(np.array(images.shape[1:3], np.int32), (n, 1))
        return Decoded(images, np.arange(n), sizes, np.array([_hash(image) for image in images], np.uint64), ())

    def resized(self, size: int | None) -> Decoded:
        """At another height and width; None keeps them up to 128 pixels, as `decode_all` does."""
        if size is None and max(self.images.shape[1:3]) > OWN_SIZE:
            size = min(CHOSEN_SIZE, *self.images.shape[1:3])
        if size is None or self.images.shape[1:3] == (size, size):
            return self
        images = np.stack([resize(image, (size, size)) for image in self.images])
        hashes = np.array([_hash(image) for image in images], np.uint64)
        return Decoded(images, self.kept, self.sizes, hashes, self.skipped)


@dataclass(frozen=True)
class _Form:
    """What all images become: a size, channels, and whether images of another size are resized to it."""

    size: tuple[int, int]
    channels: int
    resizes: bool


@dataclass(frozen=True)
class _Unlike:
    """An image that does not have the form of the first one."""


def decode_all(
    items: Items, image_size: int | None, file: BinaryIO, progress: Callable[[int, int], None]
) -> tuple[tuple[int, int, int], Decoded]:
    """Decode `items` and write their pixels to `file`, one after the other.

    Memory holds a few hundred images at a time, however many there are. Without `image_size`, images of one size up
    to 128 pixels keep it; others become squares of the median of their shorter sides, at most 64 pixels.

    Args:
        items: N image files.
        image_size: resize to this height and width.
        file: where to write, from its present position on, M images ``uint8[H, W, C]``.
        progress: is called with how many are done, and N.

    Returns:
        (H, W, C), and a `Decoded` without its images.

    Raises:
        DataError: one cannot be decoded; where `items` are lenient, not one can.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        form, start = _form_of_first(items, image_size), file.tell()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = _fill(items, form, file, pool, progress)
            if decoded is None:  # the first image was not like all
                file.seek(start)
                file.truncate()
                form = _form_of_all(items, image_size, form, pool)
                decoded = _fill(items, form, file, pool, progress)
    assert decoded is not None
    return (*form.size, form.channels), decoded


def _form_of_first(items: Items, image_size: int | None) -> _Form:
    first = None
    for number, source in enumerate(items.read()):
        try:
            image = decode(source, items.where(number))
        except DataError as error:
            if not items.lenient:
                raise
            first = first or error
            continue
        height, width, channels = image.shape
        if image_size is not None:
            return _Form((image_size, image_size), channels, True)
        return _Form((height, width), channels, False)
    if first is None:
        return _Form((1, 1), 1, False)
    raise DataError(f"not one of the {items.count} images can be decoded; the first: {first}")


def _form_of_all(items: Items, image_size: int | None, form: _Form, pool: ThreadPoolExecutor) -> _Form:
    """From the headers of all files."""

    def look(chunk: list[tuple[int, Encoded]]) -> list[tuple[tuple[int, int], bool]]:
        seen = []
        for number, source in chunk:
            try:
                with _opened(source, items.where(number)) as image:
                    turned = image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
                    seen.append((image.size[::-1] if turned else image.size, image.mode in _GREY_MODES))
            except DataError:
                pass
        return seen

    seen = [one for many in bounded_map(pool, look, _chunks(items)) for one in many]
    channels = 1 if all(grey for _, grey in seen) else 3
    if image_size is not None or (len({size for size, _ in seen}) == 1 and max(form.size) <= OWN_SIZE):
        return _Form(form.size, channels, True)
    side = int(np.clip(np.median([min(size) for size, _ in seen]), 8, CHOSEN_SIZE))
    return _Form((side, side), channels, True)


def _fill(
    items: Items, form: _Form, file: BinaryIO, pool: ThreadPoolExecutor, progress: Callable[[int, int], None]
) -> Decoded | None:
    """All images written to `file`; None at the first that has not the form that it should have."""
    if not form.resizes and max(form.size) > OWN_SIZE:
        return None

    def read(chunk: list[tuple[int, Encoded]]) -> list[tuple[int, np.ndarray, tuple[int, int]] | DataError | _Unlike]:
        result = []
        for number, source in chunk:
            try:
                image = decode(source, items.where(number), channels=None if form.channels == 1 else 3)
            except DataError as error:
                if not items.lenient:
                    raise
                result.append(error)
                continue
            size = image.shape[:2]
            if image.shape[-1] > form.channels or (size != form.size and not form.resizes):
                return [_Unlike()]
            result.append((number, resize(image, form.size), size))
        return result

    kept, sizes, hashes, skipped, passing, done = [], [], [], [], False, 0
    for batch in bounded_map(pool, read, _chunks(items)):
        for one in batch:
            if isinstance(one, _Unlike):
                return None
            if isinstance(one, DataError):
                skipped.append(str(one))
                passing = passing or isinstance(one, _Passing)
                continue
            number, image, size = one
            file.write(np.ascontiguousarray(image).data)
            kept.append(number)
            sizes.append(size)
            hashes.append(_hash(image))
        done += len(batch)
        progress(done, items.count)
    return Decoded(
        np.empty(0), np.array(kept, np.int64), np.array(sizes, np.int32).reshape(-1, 2), np.array(hashes, np.uint64),
        tuple(skipped), passing,
    )  # fmt: skip


def _hash(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest())


def _chunks(items: Items) -> Iterator[list[tuple[int, Encoded]]]:
    numbered = enumerate(items.read())
    while chunk := list(islice(numbered, _CHUNK)):
        yield chunk


def bounded_map(pool: ThreadPoolExecutor, function: Callable, chunks: Iterator) -> Iterator:
    """`pool.map` without taking all of `chunks` at once; without threads where items are so small that they would wait
    for each other more than they gain."""
    for chunk in chunks:
        began = time.perf_counter()
        yield function(chunk)
        if time.perf_counter() - began > _SMALL * len(chunk):
            break
    pending = deque(pool.submit(function, chunk) for chunk in islice(chunks, _WINDOW * (os.cpu_count() or 1)))
    try:
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, chunk) for chunk in islice(chunks, 1))
    finally:
        for future in pending:  # of a caller that is interrupted, say
            future.cancel()
