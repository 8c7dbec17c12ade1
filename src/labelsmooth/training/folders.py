"""A folder with a sub-folder of image files per class, with or without splits above them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from labelsmooth._errors import DataError
from labelsmooth._text import counted, printable, shortened
from labelsmooth.training import cache
from labelsmooth.training.images import Items
from labelsmooth.training.listing import Listing, one_file_per_split, split_of

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".ico",
)  # fmt: skip
_JUNK = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")

Kind = tuple[str, str]  # of an entry, in the singular and in the plural
_FOLDER, _IMAGE = ("folder", "folders"), ("image", "images")
_BESIDE = ("folder beside the splits", "folders beside the splits")
_EMPTY = ("class folder without an image", "class folders without an image")
_LOOSE = ("image in no class folder", "images in no class folder")
_CLOSED_FOLDER = ("folder that cannot be opened", "folders that cannot be opened")
_CIRCLE = ("symbolic link that leads in a circle", "symbolic links that lead in a circle")
_NOWHERE = ("symbolic link that leads nowhere", "symbolic links that lead nowhere")
_SPECIAL = ("entry that is neither file nor folder", "entries that are neither files nor folders")
_HIDDEN = ("hidden or junk entry", "hidden or junk entries")
_CLOSED = ("entry that cannot be opened", "entries that cannot be opened")
_OTHER = ("file that is no image", "files that are no images")


@dataclass
class Found:
    """Image files below a folder, and what was passed over, by kind."""

    files: list[str] = field(default_factory=list)
    skipped: dict[Kind, list[str]] = field(default_factory=dict)

    def skip(self, kind: Kind, path: str) -> None:
        self.skipped.setdefault(kind, []).append(path)

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{counted(len(paths), *kind)}: {', '.join(map(printable, paths))}" for kind, paths in self.skipped.items()
        )


def read(path: str) -> Listing:
    """The images below `path`: ``CLASS/...``, or ``train/CLASS/...`` with or without ``val/`` and ``test/``.

    Class folders are searched at any depth, through symbolic links too. Hidden files, files that are no images by
    their names, and what cannot be opened are left out, and counted.

    Raises:
        DataError: there is no image, a split is empty or there twice, there are splits and no ``train`` among them, or
            two class folders look alike.
    """
    found = Found()
    notes: list[str] = []
    below = _subfolders(path, found)
    roots = _roots(path, below, found, notes)
    labels, splits = [], []
    shown_as: dict[str, str] = {}
    for split, name in roots.items():
        root = os.path.join(path, name) if name else path
        above = _above(path) | {_identity(path), _identity(root)}
        before = len(found.files)
        for class_name in _subfolders(root, found) if name else below:
            first = len(found.files)
            _search(os.path.join(root, class_name), found, above)
            if len(found.files) == first:
                found.skip(_EMPTY, os.path.join(root, class_name))
            shown = printable(class_name)
            if (other := shown_as.setdefault(shown, class_name)) != class_name:
                raise DataError(f"the class folders {other!a} and {class_name!a} both look like {shown}; rename one")
            labels += [shown] * (len(found.files) - first)
        splits += [split] * (len(found.files) - before)
        if len(found.files) == before:
            found.skipped.pop(_EMPTY, None)  # all are
            more = f" ({shortened('; '.join(found.lines()), 500)})" if found.skipped else ""
            raise DataError(
                f"the folder {printable(root)} holds no images in sub-folders, one per class; its sub-folders: "
                f"{', '.join(map(printable, _subfolders(root, Found()))) or 'none'}{more}"
            )
    files, base = found.files, os.path.join(path, "")

    def where(number: int) -> str:
        return printable(files[number])

    told = (f"{split}\0{label}\0{file.removeprefix(base)}" for split, label, file in zip(splits, labels, files))  # noqa: B905
    content = cache.digest(files, told)
    items = Items(len(files), lambda: files, where, lenient=True)
    return Listing(
        name=printable(os.path.basename(os.path.realpath(path))),
        labels=np.array(labels),
        splits=np.array(splits),
        classes=None,
        digest=content,
        decode=partial(cache.decoded, items, content),
        skipped=found.lines(),
        notes=tuple(notes),
    )


def _roots(path: str, below: list[str], found: Found, notes: list[str]) -> dict[str, str]:
    """{split: the one of the folders `below` that is for it}; without splits {"train": ""}.

    Raises:
        DataError: there are splits and no ``train`` among them, or two for one; the one class folder holds others.
    """
    named = {name: split_of(name) for name in below}
    beside = [name for name in below if named[name] is None]
    splits = [name for name in below if named[name] is not None]
    if len(beside) == len(below) == 1:
        only = os.path.join(path, below[0])
        inside = _subfolders(only, Found())
        if len(inside) > 1:
            classes = shortened(", ".join(map(printable, inside)), 200)
            raise DataError(
                f"the folder {printable(path)} has one class only ({printable(below[0])}); "
                f"if its sub-folders are the classes ({classes}), name {printable(only)}"
            )
    if beside and len(splits) == 1 and named[splits[0]] == "train" and _is_class(os.path.join(path, splits[0])):
        told = f"the folder {printable(splits[0])} in {printable(path)} holds images, and no sub-folders"
        notes.append(f"{told}: it is taken for a class")
        return {"train": ""}
    if "train" in named.values():
        roots = one_file_per_split(below, f"the folder {path}")
        for name in below:
            if name not in roots.values():
                found.skip(_BESIDE, os.path.join(path, name))
        return roots
    if splits and not beside:
        raise DataError(f"the folder {printable(path)} holds {', '.join(map(printable, below))}, but no train")
    return {"train": ""}


def search(path: str) -> Found:
    """All image files below `path`, sorted, through symbolic links too."""
    found = Found()
    _search(path, found, _above(path))
    return found


def _subfolders(path: str, found: Found) -> list[str]:
    """The names of the folders in `path` that may be classes or splits, sorted."""
    names = []
    for entry in _scan(path, found):
        kind = _kind(entry)
        if kind == _FOLDER:
            names.append(entry.name)
        else:
            found.skip(_LOOSE if kind == _IMAGE else kind, entry.path)
    return names


def _is_class(path: str) -> bool:
    """Whether a folder holds images itself, and no sub-folders."""
    found = Found()
    return not _subfolders(path, found) and _LOOSE in found.skipped


def _identity(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _above(path: str) -> frozenset[tuple[int, int]]:
    """The folders that `path` lies in: a link back to one of them would bring in all that is beside `path`."""
    above = set()
    for folder in Path(os.path.realpath(path)).parents:
        with suppress(OSError):
            above.add(_identity(str(folder)))
    return frozenset(above)


def _search(top: str, found: Found, above: frozenset[tuple[int, int]]) -> None:
    """Add the image files below `top`, in the order of their names, without coming back to a folder `above`."""
    stack = [(top, above)]
    while stack:
        path, above = stack.pop()
        try:
            own = _identity(path)
        except OSError:
            found.skip(_CLOSED_FOLDER, path)
            continue
        if own in above:
            found.skip(_CIRCLE, path)
            continue
        folders = []
        for entry in _scan(path, found):
            kind = _kind(entry)
            if kind == _FOLDER:
                folders.append((entry.path, above | {own}))
            elif kind == _IMAGE:
                found.files.append(entry.path)
            else:
                found.skip(kind, entry.path)
        stack += reversed(folders)


def _scan(path: str, found: Found) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError:
        found.skip(_CLOSED_FOLDER, path)


def _kind(entry: os.DirEntry[str]) -> Kind:
    """What an entry is: `_FOLDER`, `_IMAGE` by its extension (or by having none), or why it is passed over."""
    if entry.name.startswith(".") or entry.name.lower() in _JUNK:
        return _HIDDEN
    try:
        if entry.is_dir():
            return _FOLDER
        if not entry.is_file():
            return _NOWHERE if entry.is_symlink() else _SPECIAL
    except OSError:  # a symbolic link to itself, among others
        return _CLOSED
    extension = os.path.splitext(entry.name)[1].lower()
    return _IMAGE if extension in EXTENSIONS or not extension else _OTHER
