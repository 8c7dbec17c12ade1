"""Images: decoded to uint8 arrays of one size, and cached by the content that they came from."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from labelsmooth._errors import DataError

CACHE_VERSION = 1
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: $LABELSMOOTH_CACHE, or the user's cache folder."""
    chosen = os.environ.get("LABELSMOOTH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("labelsmooth"))


def decode(source: bytes | Path, where: str, *, channels: int | None = None) -> np.ndarray:
    """An image file as ``uint8[H, W, C]``, turned upright; C is 1 for a grey image and 3 for any other.

    Args:
        source: the file's bytes, or its path.
        where: what to call it in an error.
        channels: 1 or 3, whatever the file has; None keeps the file's own.

    Raises:
        DataError: it is no image that Pillow can read, or it is damaged.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = ImageOps.exif_transpose(opened)
            grey = image.mode in _GREY_MODES
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if (channels == 1 or (channels is None and grey)) else "RGB")
            array = np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"{where}: there is no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{where} cannot be decoded: it is no image of a format that Pillow knows") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be decoded: {error}") from None
    return array[..., None] if array.ndim == 2 else array


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image`, ``uint8[H, W, C]``, at another (height, width), by an antialiased bilinear filter."""
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    array = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return array[..., None] if array.ndim == 2 else array


def decode_all(
    sources: Iterable[tuple[bytes | Path, str]],
    count: int,
    image_size: int | None,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """All images as one array ``uint8[N, H, W, C]``, decoded by a thread per core.

    Args:
        sources: per image its bytes or path, and what to call it in an error.
        count: N.
        image_size: resize to this height and width; None: all must be of one size.
        progress: is called with how many are done, and N.

    Raises:
        DataError: an image cannot be decoded, or sizes differ and `image_size` is None.
    """
    size = None if image_size is None else (image_size, image_size)

    def read(item: tuple[bytes | Path, str]) -> np.ndarray:
        image = decode(*item)
        return image if size is None else resize(image, size)

    images: list[np.ndarray] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _batches(sources, 1024):
            images.extend(pool.map(read, batch))
            progress(len(images), count)
    if not images:
        return np.empty((0, 1, 1, 1), np.uint8)
    sizes = Counter(image.shape[:2] for image in images)
    if len(sizes) > 1:
        some = ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes.most_common(3))
        raise DataError(f"the images have {len(sizes)} sizes: {some}, ...; choose one with --image-size, such as 32")
    channels = max(image.shape[-1] for image in images)
    result = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for row, image in zip(result, images, strict=True):
        row[...] = image  # a grey image fills all channels
    return result


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class Decoded:
    """The images and labels of one source, before any split; `labels` are ids, or names as strings."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None


def cached(key: str, make: Callable[[], Decoded], note: Callable[[str], None]) -> Decoded:
    """What `make` gives, kept in the cache folder under `key`, which stands for the content and how it is decoded.

    A cache that cannot be written to is noted and done without; one that is damaged is made anew.
    """
    folder = cache_folder() / f"decoded-v{CACHE_VERSION}" / key
    if folder.is_dir():
        try:
            return Decoded(
                np.load(folder / "images.npy", allow_pickle=False),
                np.load(folder / "labels.npy", allow_pickle=False),
                _class_names(json.loads((folder / "classes.json").read_text(encoding="utf-8"))),
            )
        except (OSError, ValueError, EOFError) as error:
            note(f"the cache in {folder} is damaged ({error}); decoding again")
    decoded = make()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            np.save(temporary / "images.npy", decoded.images)
            np.save(temporary / "labels.npy", decoded.labels)
            (temporary / "classes.json").write_text(json.dumps(decoded.classes), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        note(f"the decoded images could not be cached in {folder} ({error.strerror}); they are decoded at every start")
    return decoded


def _class_names(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
