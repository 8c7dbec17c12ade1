"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from labelsmooth import _checks
from labelsmooth._errors import DataError, refused
from labelsmooth._text import printable, reason

# What NumPy raises while it reads an .npz file that is damaged, cut off, or none at all.
NPZ_DAMAGE = (
    OSError, ValueError, EOFError, TypeError, RuntimeError, SyntaxError, OverflowError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def reading(path: object, says: str, damage: tuple[type[Exception], ...] = NPZ_DAMAGE) -> Iterator[None]:
    """What goes wrong in the block, which reads `path`, becomes a sentence about it.

    Args:
        path: the file, as people know it.
        says: what follows that where it is damaged; ``{}`` in it is why.
        damage: the errors that mean damage.

    Raises:
        DataError: nothing is there, it must not be opened, or it is damaged.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except PermissionError:
        raise refused(path) from None
    except damage as error:
        raise DataError(f"{path} {says.format(printable(reason(error)))}") from None


_UNFINISHED = ".labelsmooth-"  # in the names of temporary files, by which those of killed processes are known


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and vanishes when it does not.

    Args:
        path: the file to be.
        keep: where the file goes that was there before, once the new one is safe on the disk.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}{_UNFINISHED}", suffix=path.suffix)
    except OSError as error:
        error.filename = str(path)  # which people know
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove the temporary files below `folder` that a killed process left."""
    for path in folder.rglob(f".*{_UNFINISHED}*"):
        if path.is_file():
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path`, which is there meanwhile, as a lock; where the system has no such locks, do nothing.

    Raises:
        BlockingIOError: somebody holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                break  # a file system without locks
            if os.fstat(file.fileno()).st_nlink:  # else whoever held it removed it after it was opened here
                break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Work in `folder`, for one process alone.

    Raises:
        DataError: another process works there, or nobody may.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock"))
        except BlockingIOError:
            raise DataError(f"another labelsmooth is at work in {folder}; wait for it, or stop it") from None
        except OSError as error:
            raise DataError(f"{folder} cannot be written to ({error.strerror or error})") from None
        yield


def next_folder(parent: Path, name: str) -> Path:
    """A new folder `name`-001 in `parent`, or with the next free number; what is unsafe in a name becomes a dash."""
    parent.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    taken = [int(m[1]) for item in parent.iterdir() if (m := re.fullmatch(rf"{re.escape(safe)}-(\d+)", item.name))]
    number = max(taken, default=0) + 1
    while True:
        try:
            path = parent / f"{safe}-{number:03d}"
            path.mkdir()
            return path
        except FileExistsError:  # somebody else took it meanwhile
            number += 1


def check_parent(parent: Path) -> None:
    """Raises:
    ValueError: no folder can be made in `parent`, which need not be there yet.
    """
    if parent.exists() and not parent.is_dir():
        raise _checks.error("out", "be a folder", str(parent))
    nearest = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise _checks.error("out", "be a folder that can be written to", str(parent))


def check_file(path: Path, name: str) -> None:
    """Whether a file can be written to `path`, found out before the work; `name` is what an error calls it.

    Raises:
        ValueError: it cannot.
    """
    if not path.parent.is_dir():
        raise _checks.error(name, "lie in a folder that exists", str(path))
    if path.is_dir():
        raise _checks.error(name, "be a file", str(path))
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _checks.error(name, "lie in a folder that can be written to", f"{path} ({error.strerror})") from None


def _sync_folder(path: Path) -> None:
    """Make a renaming in `path` outlast a power cut, where the system lets folders be opened."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def umask() -> int:
    """The process's; what it takes away from the permissions of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
