"""Data for training: where images come from, and their split into training, validation and test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._errors import DataError
from labelsmooth.training import cifar10, parquet
from labelsmooth.training.images import Decoded, resize

TEST_SHARE = 0.2  # of data that come without a test set; the same examples for every seed
_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Split:
    """Images ``uint8[N, H, W, C]``, class ids ``int64[N]``, and `index`, their positions in the source ``int64[N]``."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Split:
        return Split(self.images[rows], self.labels[rows], self.index[rows])


@dataclass(frozen=True)
class ImageData:
    """Images in three splits that share no example; `val` is empty where it was not asked for."""

    name: str
    source: str
    digest: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)"""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def describe(self) -> dict[str, Any]:
        """What `data.json` holds."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.digest,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "examples": {name: len(getattr(self, name)) for name in ("train", "val", "test")},
            "class_counts": {
                name: np.bincount(getattr(self, name).labels, minlength=self.num_classes).tolist()
                for name in ("train", "val", "test")
            },
        }


@dataclass
class Progress:
    """How reading data reports: all three do nothing unless they are replaced."""

    decoded: Callable[[int, int], None] = field(default=lambda done, count: None)
    note: Callable[[str], None] = field(default=lambda text: None)
    download: Any = False


def load(
    source: str | Path,
    *,
    val_split: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Read `source` and split it, stratified by class.

    Args:
        source: ``digits`` (scikit-learn's), ``cifar10`` (downloaded once), CIFAR-10's binary archive or its folder, a
            ``.parquet`` file, or a folder of ``train.parquet`` with or without ``val.parquet`` and ``test.parquet``.
        val_split: the share of the training examples that validation gets, in [0, 1); unless the data bring their own.
        seed: of the validation split. Data without a test set lose 20 % to one, the same examples for every seed.
        image_size: resize to this height and width; None: as they are.
        progress: how to report.

    Returns:
        The three splits.

    Raises:
        DataError: the data are missing, damaged, of one class only, or lack a class in training.
        ValueError: `val_split` or `image_size` is out of range.
    """
    share = _checks.smoothing(val_split, "val_split")
    size = None if image_size is None else _checks.class_count(image_size, "image_size", least=4)
    progress = progress or Progress()

    name, parts, digest = _read(source, size, progress)
    parts = {key: _resized(part, size) for key, part in parts.items()}
    classes, splits = _numbered(parts, str(source))
    splits = _same_channels(splits)
    if "test" not in splits:
        splits["train"], splits["test"] = _split(splits["train"], TEST_SHARE, 0, "test", classes)
    if "val" not in splits:
        splits["train"], splits["val"] = _split(splits["train"], share, seed, "validation", classes)
    _check_classes(splits["train"], classes, str(source))
    origin = str(source) if str(source) in ("digits", "cifar10") else str(Path(source).expanduser().resolve())
    return ImageData(name, origin, digest, classes, splits["train"], splits["val"], splits["test"])


def _read(source: str | Path, size: int | None, progress: Progress) -> tuple[str, dict[str, Decoded], str]:
    """(name, what each split holds, SHA-256)"""
    path = Path(source).expanduser()
    if str(source) == "digits":
        digits = _digits()
        return (
            "digits",
            {"train": digits},
            hashlib.sha256(digits.images.tobytes() + digits.labels.tobytes()).hexdigest(),
        )
    if str(source) == "cifar10":
        train, test, digest = cifar10.read(cifar10.fetch(progress.download))
        return "cifar10", {"train": train, "test": test}, digest
    if path.name.endswith((".tar.gz", ".tgz", ".tar")) or (path / cifar10.TEST_FILE).is_file():
        train, test, digest = cifar10.read(path)
        return "cifar10", {"train": train, "test": test}, digest
    if path.suffix.lower() == ".parquet":
        decoded, digest = parquet.read(path, size, progress.decoded, progress.note)
        return path.stem, {"train": decoded}, digest
    if path.is_dir():
        return _read_folder(path, size, progress)
    known = "digits, cifar10, a .parquet file, or a folder of train.parquet and test.parquet"
    if path.exists():
        raise DataError(f"{source} is no data that can be read; give {known}")
    raise DataError(f"there is no {source}; give {known}")


def _read_folder(path: Path, size: int | None, progress: Progress) -> tuple[str, dict[str, Decoded], str]:
    files = {"train": path / "train.parquet", "test": path / "test.parquet"}
    validation = [path / f"{name}.parquet" for name in _VAL_NAMES if (path / f"{name}.parquet").is_file()]
    if validation:
        files["val"] = validation[0]
    if not files["train"].is_file():
        found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise DataError(f"the folder {path} holds no train.parquet; it holds {found}")
    parts, digests = {}, []
    for key, file in files.items():
        if file.is_file():
            parts[key], digest = parquet.read(file, size, progress.decoded, progress.note)
            digests.append(f"{key} {digest}")
    return path.resolve().name, parts, hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _digits() -> Decoded:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)[..., None]
    return Decoded(images, bunch.target.astype(np.int64), tuple(str(digit) for digit in range(10)))


def _resized(part: Decoded, size: int | None) -> Decoded:
    if size is None or part.images.shape[1:3] == (size, size):
        return part
    return Decoded(np.stack([resize(image, (size, size)) for image in part.images]), part.labels, part.classes)


def _numbered(parts: dict[str, Decoded], source: str) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Class names, and the splits with their labels as ids into them."""
    for key, part in parts.items():
        if len(part.labels) == 0:
            raise DataError(f"the {key} split of {source} is empty")
    kinds = {part.labels.dtype.kind for part in parts.values()}
    if len(kinds) > 1:
        raise DataError(f"the splits of {source} have labels of different kinds: numbers in one, names in another")
    if kinds == {"U"}:
        classes = tuple(sorted({str(name) for part in parts.values() for name in np.unique(part.labels)}))
        numbers = {key: np.searchsorted(classes, part.labels) for key, part in parts.items()}
    else:
        numbers = {key: part.labels for key, part in parts.items()}
        lowest = min(int(labels.min()) for labels in numbers.values())
        highest = max(int(labels.max()) for labels in numbers.values())
        named = next((part.classes for part in parts.values() if part.classes), None)
        if lowest < 0:
            raise DataError(f"{source} has the label {lowest}; class ids begin at 0")
        for key, part in parts.items():
            if named is not None and part.classes is not None and part.classes != named:
                numbers[key] = _renumbered(numbers[key], part.classes, named, f"the {key} split of {source}")
        examples = sum(len(part.labels) for part in parts.values())
        if named is None and highest >= examples:
            raise DataError(
                f"{source} has the label {highest}, but {examples} examples only; "
                "class ids are 0, 1, 2, ... without gaps"
            )
        if named is not None and highest >= len(named):
            raise DataError(f"{source} has the label {highest}, but names {len(named)} classes only")
        classes = named or tuple(str(number) for number in range(highest + 1))
    splits = {
        key: Split(part.images, numbers[key].astype(np.int64), np.arange(len(part.labels)))
        for key, part in parts.items()
    }
    return classes, splits


def _renumbered(ids: np.ndarray, own: tuple[str, ...], classes: tuple[str, ...], where: str) -> np.ndarray:
    """Ids into the names `own` as ids into `classes`, which are the same names in another order."""
    if sorted(own) != sorted(classes):
        raise DataError(f"{where} names other classes ({', '.join(own)}) than the others ({', '.join(classes)})")
    if ids.size and ids.max() >= len(own):
        raise DataError(f"{where} has the label {ids.max()}, but names {len(own)} classes only")
    return np.array([classes.index(name) for name in own])[ids]


def _same_channels(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits with images of one shape: grey ones become RGB where others are."""
    sizes = {split.images.shape[1:3] for split in splits.values()}
    if len(sizes) > 1:
        listed = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise DataError(
            f"the splits have images of {listed}; choose one size with --image-size, such as {min(map(min, sizes))}"
        )
    channels = max(split.images.shape[-1] for split in splits.values())
    return {
        key: s if s.images.shape[-1] == channels else Split(np.repeat(s.images, channels, axis=-1), s.labels, s.index)
        for key, s in splits.items()
    }


def _split(split: Split, share: float, seed: int, name: str, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """(the rest, `share` of it), stratified and seeded."""
    everything = np.arange(len(split))
    if share == 0:
        return split, split.take(everything[:0])
    from sklearn.model_selection import train_test_split

    counts = np.bincount(split.labels, minlength=len(classes))
    present = np.flatnonzero(counts)
    wanted = math.ceil(share * len(split) - 1e-9)
    option = "with --val-split" if name == "validation" else "by giving a test set of your own (test.parquet)"
    if len(present) < 2:
        raise DataError(f"there is one class only ({classes[present[0]]}); a classifier needs two")
    single = [classes[k] for k in present if counts[k] < 2]
    if single:
        raise DataError(
            f"class {single[0]!r} has one example, too few to split off {name}; add some, or mend it {option}"
        )
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
    missing = [classes[k] for k in np.flatnonzero(counts == 0)]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(classes)} classes of {source} have no training example: "
            f"{', '.join(map(repr, missing[:5]))}{', ...' if len(missing) > 5 else ''}"
        )
