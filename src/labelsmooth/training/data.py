"""Data for training: where images come from, and their split into training, validation and test."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._errors import DataError, refused
from labelsmooth._text import counted, nearest, shortened
from labelsmooth.training import arrays, cifar10, folders, tables
from labelsmooth.training.images import Decoded
from labelsmooth.training.listing import SPLITS, Listing, Progress, split_of
from labelsmooth.training.noise import Noise, checked, relabelled

TEST_SHARE = 0.2  # of data that come without a test set; the same examples for every seed
KINDS = (
    "digits, cifar10, a folder with a sub-folder per class, a folder of train.parquet (or .csv) and test.parquet, "
    "a .parquet, .csv or .npz file"
)
NAMED = ("digits", "cifar10")
_BLOCK = 1 << 24  # bytes of images that are looked at together
_SHOWN = 3  # left-out images that are named
_LOOKED_AT = 256  # images, for whether they are black


@dataclass(frozen=True)
class Split:
    """Examples: some rows of an array of images, which may be larger than memory.

    Attributes:
        pool: ``uint8[M, H, W, C]``, memory-mapped where it comes from the cache.
        rows: ``int64[N]``, which of them.
        labels: class ids ``int64[N]``.
        index: ``int64[N]``, the positions in the source.
        hashes: ``uint64[N]``, of the pixels.
    """

    pool: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> np.ndarray:
        """All images, ``uint8[N, H, W, C]``, in memory."""
        return self.pixels(slice(None))

    def pixels(self, which: slice | np.ndarray) -> np.ndarray:
        """Some of the images, in memory."""
        return self.pool[self.rows[which]]

    def blocks(self) -> Iterator[np.ndarray]:
        """All images in their order, some at a time."""
        size = max(1, _BLOCK // int(np.prod(self.pool.shape[1:])))
        for start in range(0, len(self), size):
            yield self.pixels(slice(start, start + size))

    def take(self, which: np.ndarray) -> Split:
        return Split(self.pool, self.rows[which], self.labels[which], self.index[which], self.hashes[which])

    def mean_image(self) -> np.ndarray:
        """float64 ``[H, W, C]``"""
        total = np.zeros(self.pool.shape[1:], np.int64)
        for block in self.blocks():
            total += block.sum(axis=0, dtype=np.int64)
        return total / len(self)

    def channel_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the standard deviation of each channel, float64 ``[C]``."""
        total, squares = (np.zeros(self.pool.shape[-1], np.int64) for _ in range(2))
        for block in self.blocks():
            total += block.sum((0, 1, 2), dtype=np.int64)
            squares += np.square(block, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64)
        pixels = len(self) * self.pool.shape[1] * self.pool.shape[2]
        mean = total / pixels
        return mean, np.sqrt(np.maximum(squares / pixels - mean * mean, 0))


@dataclass(frozen=True)
class ImageData:
    """Images in three splits that share no example; `val` is empty where it was not asked for.

    Attributes:
        name: what a run of it is called.
        source: what `load` was given, made absolute.
        digest: SHA-256 of the content.
        classes: the names of ids.
        skipped: what was left out, a line for each.
        notes: what else is worth a line.
        own_splits: the splits that the source itself has.
        sizes: ``int32[N, 2]``, height and width of all images before resizing.
        noise: what was done to the training labels; None: nothing.
    """

    name: str
    source: str
    digest: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    skipped: tuple[str, ...]
    own_splits: tuple[str, ...]
    sizes: np.ndarray
    noise: Noise | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)"""
        height, width, channels = self.train.pool.shape[1:]
        return height, width, channels

    @property
    def splits(self) -> dict[str, Split]:
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def clean_train(self) -> Split:
        """The training split with the labels that it had before any noise."""
        return self.train if self.noise is None else replace(self.train, labels=self.noise.clean)

    def leaks(self, seen: str = "train", held_out: str = "test") -> int:
        """How many images of one split are, pixel for pixel, in another too."""
        return int(np.isin(self.splits[held_out].hashes, self.splits[seen].hashes).sum())

    def describe(self) -> dict[str, Any]:
        """What `data.json` holds."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.digest,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "examples": {name: len(split) for name, split in self.splits.items()},
            "class_counts": {
                name: np.bincount(split.labels, minlength=self.num_classes).tolist()
                for name, split in self.splits.items()
            },
            "noise": None if self.noise is None else self.noise.describe(),
            "own_splits": list(self.own_splits),
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "test_images_in_train": self.leaks(),
        }


def load(
    source: str | Path,
    *,
    val_split: float | Callable[[int, int], float] = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    noise: str | Path | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Read `source` and split it, stratified by class.

    In a folder, images that cannot be decoded are left out; `progress.note` and `ImageData.skipped` say which.
    In a table they are errors.

    Args:
        source: ``digits`` (scikit-learn's), ``cifar10`` (downloaded once), CIFAR-10's binary archive or its folder, a
            folder with a sub-folder per class (with or without ``train``, ``val`` and ``test`` above them), a folder of
            ``train.parquet`` or ``train.csv`` (with or without ``val`` and ``test``), or a ``.parquet``, ``.csv`` or
            ``.npz`` file.
        val_split: the share of the training examples that validation gets, in [0, 1); unless the data bring their own.
            Or a function that gives it for the numbers of these examples and of classes, such as `Recipe.val_share`.
        seed: of the validation split. Data without a test set lose 20 % to one, the same examples for every seed.
        image_size: resize to this height and width, of at least 4. None: images of one size up to 128 pixels keep it;
            others become squares of the median of their shorter sides, at most 64 pixels.
        image_column: of a table; None: found by its type and name.
        label_column: of a table; None: found by its name.
        noise: labels for training alone, validation and test keep theirs: ``symmetric:P`` puts any other class in a
            label's place with probability P, in [0, 1), ``asymmetric:P`` the next class; ``column:NAME`` takes those of
            another column of a table; a ``.npy``, ``.npz``, ``.csv``, ``.tsv`` or ``.txt`` file holds names or ids for
            each example of the source's own training split, or for each of all. None: the data's own labels.
        progress: how to report.

    Returns:
        The three splits.

    Raises:
        DataError: the data, or the labels that `noise` names, are missing or damaged; the data are of one class only,
            or lack a class in training.
        ValueError: `val_split`, `image_size` or `noise` is out of range.
    """
    progress = progress or Progress()
    data = gather(source, val_split, seed, image_size, image_column, label_column, noise, progress)
    if data.skipped:
        progress.note(f"left out: {_shown(data.skipped)} (all in data.json)")
    for note in data.notes:
        progress.note(f"note: {note}")
    low, high = data.sizes.min(axis=0), data.sizes.max(axis=0)
    resized = (low != high).any() or tuple(low) != data.image_shape[:2]
    if resized:
        told = "as asked" if image_size else "--image-size chooses another"
        sizes = f"{low[0]}x{low[1]}" + (f" to {high[0]}x{high[1]}" if (low != high).any() else "")
        progress.note(f"images of {sizes} are resized to {data.image_shape[0]}x{data.image_shape[1]} ({told})")
    once_resized = " once resized" if resized else ""
    for held_out, name in (("test", "test"), ("val", "validation")):
        if held_out != "test" and held_out not in data.own_splits:
            continue
        if leaks := data.leaks(held_out=held_out):
            progress.note(
                f"warning: {leaks} of the {len(data.splits[held_out])} {name} images {'is' if leaks == 1 else 'are'} "
                f"in the training set too, pixel for pixel{once_resized}; "
                f"{name} figures flatter (labelsmooth data shows more)"
            )
    lost = np.flatnonzero(np.bincount(data.train.labels, minlength=data.num_classes) == 0)
    if lost.size:
        progress.note(
            f"warning: the noise leaves {len(lost)} of {data.num_classes} classes without a training label: "
            f"{_listed(data.classes, lost)}"
        )
    return data


def gather(
    source: str | Path,
    val_split: float | Callable[[int, int], float],
    seed: int,
    image_size: int | None,
    image_column: str | None,
    label_column: str | None,
    noise: str | Path | None,
    progress: Progress,
) -> ImageData:
    """What `load` does, without a word about what it found."""
    share = val_split if callable(val_split) else _checks.smoothing(val_split, "val_split")
    size = None if image_size is None else _checks.image_size(image_size)
    asked = None if noise is None else checked(noise)
    source = source_text(source)
    listing = find(source, image_column=image_column, label_column=label_column, download=progress.download)
    if len(listing.labels) and "train" not in listing.splits:
        held = ", ".join(name for name in SPLITS if name in listing.splits)
        raise DataError(f"{source} has no training example, but {held} only; there must be a split train")
    classes, ids = _numbered(listing, source)
    _check_names(classes)
    if len(classes) == 1 and listing.skipped:
        out = _shown(listing.skipped)
        raise DataError(f"{source} has one class only ({classes[0]}); a classifier needs two (left out: {out})")
    noisy, content = ids, b""
    if asked is not None:  # a file that is wrong is found before hours of decoding
        noisy, content = relabelled(asked, ids, listing, classes, seed)
    decoded = listing.decode(size, progress)
    skipped = (*listing.skipped, *decoded.skipped)
    try:
        splits, own = _divided(listing, decoded, ids, classes, share, seed, source)
    except DataError as error:
        raise (DataError(f"{error} (left out: {_shown(skipped)})") if skipped else error) from None
    train, done = splits["train"], None
    if asked is not None:
        done = Noise(asked, train.labels, noisy[train.index], content)
        train = replace(train, labels=done.noisy)
    origin = source if source in NAMED else os.path.abspath(_path(source))
    return ImageData(
        listing.name, origin, listing.digest, classes, train, splits["val"], splits["test"], skipped, own,
        decoded.sizes, done, (*listing.notes, *_dark(decoded.images)),
    )  # fmt: skip


def _divided(
    listing: Listing, decoded: Decoded, ids: np.ndarray, classes: tuple[str, ...],
    share: float | Callable[[int, int], float], seed: int, source: str,
) -> tuple[dict[str, Split], tuple[str, ...]]:  # fmt: skip
    """The three splits of what could be decoded, and the names of those that the source has itself."""
    kept, names = decoded.kept, listing.splits[decoded.kept]
    everything = Split(decoded.images, np.arange(len(kept)), ids[kept], kept, decoded.hashes)
    splits = {name: everything.take(np.flatnonzero(names == name)) for name in SPLITS if name in listing.splits}
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"the {name} split of {source} is empty: not one of its images can be decoded")
    own = tuple(splits)
    if "test" not in splits:
        splits["train"], splits["test"] = _split(splits["train"], TEST_SHARE, 0, "test", classes)
    if "val" not in splits:
        if callable(share):
            share = _checks.smoothing(share(len(splits["train"]), len(classes)), "val_split")
        splits["train"], splits["val"] = _split(splits["train"], share, seed, "validation", classes)
    _check_classes(splits["train"], classes, source)
    return splits, own


def _shown(lines: Sequence[str]) -> str:
    """The beginnings of the first few."""
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(shortened(line, 200) for line in lines[:_SHOWN]) + more


def _dark(images: np.ndarray) -> list[str]:
    """A note where the images are all but black, as those are whose files hold less than they could."""
    few = images[:: max(1, len(images) // _LOOKED_AT)]
    brightest = int(few.max(initial=0))
    if brightest > 16:  # 12 of 16 bits
        return []
    return [
        f"the brightest pixel of {len(few)} images is {brightest} of 255: they are all but black. Grey files of more "
        "than 8 bits are taken to hold 0..65535, and floats 0..1; stretch the values if yours hold less"
    ]


def find(
    source: str, *, image_column: str | None = None, label_column: str | None = None, download: object = False
) -> Listing:
    """The labelled examples of `source`, their images yet to be decoded.

    Raises:
        DataError: there is none, it is damaged, or it cannot be opened.
    """
    if source == "":  # which a path would take for the working folder
        raise DataError(f"no data are named; give {KINDS}")
    try:
        return _find(source, image_column, label_column, download)
    except PermissionError:
        raise refused(source) from None


def source_text(source: str | Path) -> str:
    """`source` as text; a path never is the name of data that come along.

    Raises:
        ValueError: it is neither text nor a path.
    """
    if not isinstance(source, str | os.PathLike):
        raise _checks.error("data", "be a name or a path", shortened(repr(source), 60))
    text = os.fspath(source)
    return os.path.join(os.curdir, text) if not isinstance(source, str) and text in NAMED else text


def _find(source: str, image_column: str | None, label_column: str | None, download: object) -> Listing:
    path, columns = _path(source), {"image_column": image_column, "label_column": label_column}
    archive = path.name.endswith((".tar.gz", ".tgz", ".tar")) or (path / cifar10.TEST_FILE).is_file()
    if source not in NAMED and not archive:
        single = path.suffix.lower() in tables.SUFFIXES and not path.is_dir()
        files = [("train", path)] if single else tables.in_folder(path) if path.is_dir() else []
        if files:
            listing = tables.read(files, path.stem if single else path.resolve().name, **columns)
            return listing if single else replace(listing, notes=(*listing.notes, *_beside(path, files)))
    if source in NAMED or path.exists():
        for name, column in columns.items():
            if column is not None:
                option = f"--{name.replace('_', '-')} {column}"
                raise DataError(f"{source} is no table with columns, of which {option} would name one; leave it out")
    if source in NAMED:
        listing = arrays.digits() if source == "digits" else cifar10.read(cifar10.fetch(download))
        hint = f"{source} are data that come along; the folder of that name is {os.path.join(os.curdir, source)}"
        return replace(listing, notes=(hint,)) if path.is_dir() else listing
    if archive:
        return cifar10.read(path)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        return arrays.read(path)
    if path.is_dir():
        return folders.read(str(path))
    if path.exists():
        raise DataError(f"{source} is no data that can be read; give {KINDS}")
    raise DataError(f"there is no {source}{nearest(source, NAMED)}; give {KINDS}")


def _beside(folder: Path, files: Sequence[tuple[str, Path]]) -> list[str]:
    """A note where tables are read, and folders that could be classes are not."""
    others = [item.name for item in folder.iterdir() if item.is_dir() and split_of(item.name) is None]
    others = [name for name in others if not name.startswith(".")]
    if len(others) < 2:
        return []
    read, beside = ", ".join(file.name for _, file in files), counted(len(others), "folder")
    return [f"{read} in {folder} says what the images are; the {beside} beside it count only as far as it names files"]


def _path(source: str | Path) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~ of somebody who is not there
        raise DataError(f"{source}: {error}") from None


def _numbered(listing: Listing, source: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and the labels as ids into them."""
    labels = listing.labels
    if len(labels) == 0:
        raise DataError(f"{source} is empty")
    if labels.dtype.kind == "U":
        names = np.unique(labels)
        numeric = all(name.isdecimal() for name in names.tolist())
        classes = tuple(sorted(names.tolist(), key=lambda name: (int(name), name)) if numeric else names.tolist())
        place = {name: k for k, name in enumerate(classes)}
        return classes, np.array([place[name] for name in labels.tolist()], np.int64)
    lowest, highest, named = int(labels.min()), int(labels.max()), listing.classes
    if lowest < 0:
        raise DataError(f"{source} has the label {lowest}; class ids begin at 0")
    if named is None and highest >= len(labels):
        raise DataError(
            f"{source} has the label {highest}, but {len(labels)} examples only; "
            "class ids are 0, 1, 2, ... without gaps"
        )
    if named is not None and highest >= len(named):
        raise DataError(f"{source} has the label {highest}, but names {len(named)} classes only")
    return named or tuple(str(number) for number in range(highest + 1)), labels.astype(np.int64)


def _check_names(classes: tuple[str, ...]) -> None:
    """Cat and cat are one class, most likely, spelt in two ways; a and A are letters."""
    alike = defaultdict(list)
    for name in classes:
        if not name.strip():
            raise DataError(f"one of the classes has no name; the others: {_listed(classes, np.arange(len(classes)))}")
        alike[unicodedata.normalize("NFC", name).casefold()].append(name)
    for names in alike.values():
        if len(names) == 1 or (len(names[0]) == 1 and len(set(names)) == len(names)):
            continue
        if len(set(names)) < len(names):
            raise DataError(f"two classes are called {names[0]!r}")
        shown = " and ".join(map(ascii, names))
        if len({unicodedata.normalize("NFC", name) for name in names}) < len(names):
            raise DataError(f"the classes {shown} are the same letters, encoded in two ways; rename one, or merge them")
        raise DataError(
            f"the classes {' and '.join(map(repr, names))} differ by letter case only; rename one, or merge them"
        )


def _split(split: Split, share: float, seed: int, name: str, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """(the rest, `share` of it), stratified and seeded."""
    everything = np.arange(len(split))
    if share == 0:
        return split, split.take(everything[:0])
    from sklearn.model_selection import train_test_split

    counts = np.bincount(split.labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    wanted = math.ceil(share * len(split) - 1e-9)
    option = "with --val-split" if name == "validation" else "by giving a test set of your own"
    if len(present) < 2:
        raise DataError(f"there is one class only ({classes[present[0]]}); a classifier needs two")
    single = [classes[k] for k in present if counts[k] < 2]
    if single:
        who = f"class {single[0]!r} has" if len(single) == 1 else f"the classes {', '.join(map(repr, single))} have"
        raise DataError(f"{who} one example, too few to split off {name}; add some, or mend it {option}")
    if wanted < len(present) or len(split) - wanted < len(present):
        raise DataError(
            f"a {name} split of {share:g} of {len(split)} examples leaves {wanted} for {len(present)} classes; "
            f"mend it {option}"
        )
    rest, part = train_test_split(everything, test_size=wanted, random_state=seed % 2**32, stratify=split.labels)
    return split.take(np.sort(rest)), split.take(np.sort(part))


def _check_classes(train: Split, classes: tuple[str, ...], source: str) -> None:
    counts = np.bincount(train.labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    if len(present) == 1:
        raise DataError(f"{source} has one class only ({classes[present[0]]}); a classifier needs two")
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        raise DataError(
            f"{len(missing)} of the {len(classes)} classes of {source} {'has' if len(missing) == 1 else 'have'} "
            "no training example: "
            f"{_listed(classes, missing)}"
        )


def _listed(classes: tuple[str, ...], ids: np.ndarray) -> str:
    """The names of the first few."""
    return ", ".join(repr(classes[k]) for k in ids[:5]) + (", ..." if len(ids) > 5 else "")
