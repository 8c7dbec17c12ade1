"""Experiment trackers, such as TensorBoard, through Accelerate; nothing of it is imported where none is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelsmooth import _checks
from labelsmooth.training.loop import Reporter, Training

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_PROJECT = "labelsmooth"


def check(name: str) -> None:
    """Whether the tracker `name` can be used, found out before anything is trained.

    Raises:
        ValueError: Accelerate knows no such tracker.
        ModuleNotFoundError: its package, or Accelerate, is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    _checks.one_of(name, "track", tuple(LOGGER_TYPE_TO_CLASS))
    # Accelerate says nothing about the packages of trackers that were registered with it.
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise ModuleNotFoundError(f"--track {name} needs {name}", name=name)


class Tracked(Reporter):
    """Hands on what it is told to another reporter, and the settings and figures to a tracker too.

    Trouble with the tracker is noted once; from then on it is finished, and the training goes on.

    Args:
        name: of a tracker that Accelerate knows.
        reporter: the other one.
    """

    def __init__(self, name: str, reporter: Reporter) -> None:
        self.name, self.reporter = name, reporter
        self.tracker: GeneralTracker | None = None

    def begin(self, training: Training, folder: Path) -> None:
        self.reporter.begin(training, folder)
        self._guarded(self._start, {**training.plan.settings.flat(), "run": folder.name}, folder / "tracking")

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        self.reporter.step(epoch, done, steps, loss)

    def epoch(self, row: dict[str, Any], best: bool) -> None:
        self.reporter.epoch(row, best)
        if self.tracker is not None:
            figures = {name: value for name, value in row.items() if name != "epoch" and value is not None}
            self._guarded(self.tracker.log, figures, step=row["epoch"])

    def note(self, text: str) -> None:
        self.reporter.note(text)

    def end(self, summary: dict[str, Any] | None) -> None:
        self.reporter.end(summary)
        if self.tracker is not None and summary is not None:
            figures = {f"test_{name}": summary["test"][name] for name in ("accuracy", "nll")}
            self._guarded(self.tracker.log, figures, step=summary["epochs"])
        if self.tracker is not None:
            self._guarded(self.tracker.finish)

    def _start(self, config: dict[str, Any], folder: Path) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # without it the log messages of some trackers raise
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        tracker = kind(_PROJECT, str(folder)) if kind.requires_logging_directory else kind(_PROJECT)
        tracker.start()
        self.tracker = tracker
        tracker.store_init_configuration(config)

    def _guarded(self, action: Callable[..., object], *arguments: Any, **options: Any) -> None:
        try:
            action(*arguments, **options)
        except Exception as error:
            tracker, self.tracker = self.tracker, None
            if tracker is not None and action != tracker.finish:  # what it was told before may wait to be sent
                with suppress(Exception):
                    tracker.finish()
            self.note(f"{self.name} tracks no more ({type(error).__name__}: {error}); the training goes on without it")
