"""The errors of the command and of training; each says what, where, and how to mend it."""


class DataError(ValueError):
    """The data cannot be used as they are."""


class TrainingError(RuntimeError):
    """Training stopped; what was done until then is kept."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a training, after so many finished epochs of the run in `folder`."""

    def __init__(self, folder: str, epochs_done: int) -> None:
        super().__init__(f"interrupted after {epochs_done} epochs; the run is in {folder}")
        self.folder, self.epochs_done = folder, epochs_done
