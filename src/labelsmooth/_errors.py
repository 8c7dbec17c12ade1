"""The errors of the command and of training; each says what, where, and how to mend it."""

import errno
import os

LAUNCHED = "LABELSMOOTH_LAUNCHED"  # in the environment of processes that `labelsmooth train --devices` started


class DataError(ValueError):
    """The data cannot be used as they are."""


def refused(path: object) -> DataError:
    """What is there cannot be used, for want of the permission to read it; nothing says that it is damaged."""
    return DataError(f"{path} cannot be opened ({os.strerror(errno.EACCES)})")


class TrainingError(RuntimeError):
    """Training stopped; what was done until then is kept."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `saved` says what in `folder` is kept, or nothing; labelsmooth's `command` goes on there."""

    def __init__(self, folder: str, saved: str, command: str = "train --resume") -> None:
        super().__init__(f"interrupted after {saved or 'nothing'}; the run is in {folder}")
        self.folder, self.saved, self.command = folder, saved, command

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.folder, self.saved, self.command)


def silence(error: BaseException) -> None:
    """Another process tells of it."""
    error.__dict__["silent"] = True


def is_silent(error: BaseException | None) -> bool:
    return error is not None and "silent" in error.__dict__
