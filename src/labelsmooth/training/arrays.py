"""Arrays of images in an .npz file, as Keras and MedMNIST keep them, and scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.training import cache
from labelsmooth.training.images import Decoded
from labelsmooth.training.listing import SPLIT_NAMES, SPLITS, Listing

_IMAGE_NAMES = ("images", "image", "x", "data")
_CLASS_NAMES = ("classes", "class_names")
_LABEL_NAMES = ("labels", "label", "y", "target", "targets")


def read(path: Path) -> Listing:
    """An .npz file of ``images`` and ``labels``, or of ``x_train``, ``y_train``, ``x_test``, ``y_test``, or the like.

    Images are ``[N, H, W]`` or ``[N, H, W, C]`` with C of 1 or 3: whole numbers 0..255, uint16 up to 65535 (up to 255
    if none is above), floats 0..1, or booleans. Labels are ``[N]`` or ``[N, 1]``: ids or names. ``classes``, if it is
    there, names the ids.

    Raises:
        DataError: the file is damaged, or an array is missing or of another shape or range.
    """
    with _files.reading(path, "is no readable .npz file ({})"), path.open("rb") as opened:
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array; it must hold images and labels")
        pairs, others = _pairs(list(file.files), path)
        arrays = {split: file[x] for split, (x, _) in pairs.items()}
        words = [array for array in arrays.values() if array.dtype == np.uint16 and array.size]
        as_bytes = bool(words) and max(array.max() for array in words) <= 255  # in all of them
        if as_bytes:
            arrays = {s: array.astype(np.uint8) if array.dtype == np.uint16 else array for s, array in arrays.items()}
        images = {split: _images(arrays[split], f"{x} in {path}") for split, (x, _) in pairs.items()}
        labels = {split: as_labels(file[y], f"{y} in {path}") for split, (_, y) in pairs.items()}
        names = next((name for name in _CLASS_NAMES if name in file.files), None)
        classes = None if names is None else tuple(map(str, _text(np.ravel(file[names]))))
    for split, (x, y) in pairs.items():
        if len(images[split]) == 0:
            raise DataError(f"the {split} split of {path} is empty ({x})")
        if len(images[split]) != len(labels[split]):
            raise DataError(f"{path} has {len(images[split])} images in {x}, but {len(labels[split])} labels in {y}")
    shapes = {array.shape[1:] for array in images.values()}
    if len(shapes) > 1:
        raise DataError(f"the images of {path} have different shapes: {' and '.join(map(str, sorted(shapes)))}")
    if len({array.dtype.kind for array in labels.values()}) > 1:
        raise DataError(f"{path} has labels of different kinds: numbers in one split, names in another")
    listing = of_arrays(
        path.stem, images, labels, classes, cache.digest([str(path)], ["npz of bytes" if as_bytes else "npz"])
    )
    return replace(listing, notes=(f"{path} holds arrays that are not used: {', '.join(others)}",) if others else ())


def digits() -> Listing:
    """Scikit-learn's 1,797 digits of 8x8 pixels."""
    import hashlib

    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return of_arrays("digits", {"train": images}, {"train": labels}, tuple("0123456789"), digest)


def of_arrays(
    name: str,
    images: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    classes: tuple[str, ...] | None,
    digest: str,
) -> Listing:
    """A listing of images that are in memory, ``uint8[N, H, W, C]`` for each split."""
    pixels = np.concatenate(list(images.values())) if len(images) > 1 else next(iter(images.values()))
    return Listing(
        name=name,
        labels=np.concatenate(list(labels.values())),
        splits=np.repeat(list(labels), [len(part) for part in labels.values()]),
        classes=classes,
        digest=digest,
        decode=lambda size, progress: Decoded.of(pixels).resized(size),
    )


def _pairs(names: list[str], path: Path) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """{split: (its images, its labels)} by the arrays' names, and the names of others.

    Raises:
        DataError: there are none for training; or a split has images and no labels, or the other way round.
    """
    found: dict[str, tuple[str, str]] = {}
    lower = {name.lower(): name for name in names}
    splits = [("train", "{}"), *((s, f) for w, s in SPLIT_NAMES.items() for f in (f"{w}_{{}}", f"{{}}_{w}"))]
    for split, form in splits:
        for x, y in product(_IMAGE_NAMES, _LABEL_NAMES):
            x, y = form.format(x), form.format(y)
            if split not in found and x in lower and y in lower:
                found[split] = (lower[x], lower[y])
    if "train" not in found:
        listed = ", ".join(names) or "nothing"
        raise DataError(
            f"{path} holds {listed}; it must hold images and labels, or x_train and y_train (and x_test, y_test, ...)"
        )
    used = {name for pair in found.values() for name in pair} | set(_CLASS_NAMES)
    others = [name for name in names if name not in used]
    for split, form in splits:
        for kind, missing in ((_IMAGE_NAMES, "labels"), (_LABEL_NAMES, "images")):
            alone = next((lower[form.format(x)] for x in kind if lower.get(form.format(x)) in others), None)
            if alone is not None and split not in found:
                raise DataError(
                    f"{path} has {alone}, but no {missing} for the {split} split; it holds {', '.join(names)}"
                )
    return {split: found[split] for split in SPLITS if split in found}, others


def _text(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _images(array: np.ndarray, where: str) -> np.ndarray:
    """As ``uint8[N, H, W, C]``."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        hint = "; move its channels to the last axis" if array.ndim == 4 and array.shape[1] in (1, 3) else ""
        raise DataError(f"{where} has the shape {array.shape}; it must be [N, H, W] or [N, H, W, 1 or 3]{hint}")
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = array.min(), array.max()
    if array.dtype == np.uint16:
        return (array / 257).round().astype(np.uint8)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return (array * 255).round().astype(np.uint8)
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    rule = "floats must be in 0..1" if array.dtype.kind == "f" else "pixels must be in 0..255 (uint16: 0..65535)"
    raise DataError(f"{where} has {array.dtype} values from {low} to {high}; {rule}")


def as_labels(array: np.ndarray, where: str) -> np.ndarray:
    """Class ids ``int64[N]`` or names ``str[N]`` of an array ``[N]`` or ``[N, 1]``; `where` names it in an error.

    Raises:
        DataError: it has another shape, or holds neither.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{where} has the shape {array.shape}; labels must be [N] or [N, 1]")
    array = _text(array)
    if array.dtype.kind == "f" and whole(array).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iubU" or (array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1):
        first = ""
        if array.dtype.kind == "f":
            wrong = int(np.argmin(whole(array)))
            first = f"; the first is {array[wrong]}, at position {wrong} (from 0)"
        raise DataError(f"{where} has {array.dtype} values that are neither class ids nor names{first}")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def whole(values: np.ndarray) -> np.ndarray:
    """Which floats are whole numbers that int64 holds, bool ``[N]``."""
    values = values.astype(np.float64)
    return (np.abs(values) < 2.0**63) & (values == np.floor(values))
