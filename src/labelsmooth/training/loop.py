"""The training, whatever the framework: epoch after epoch, validated on hard labels, and nothing done is lost."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from labelsmooth._errors import TrainingError
from labelsmooth.evaluation import Predictions
from labelsmooth.evaluation.metrics import nll
from labelsmooth.training import frameworks
from labelsmooth.training.data import ImageData, Split
from labelsmooth.training.listing import Progress
from labelsmooth.training.plan import Plan
from labelsmooth.training.ranks import Ranks
from labelsmooth.training.run import RunFolder, Settings
from labelsmooth.training.signals import StopRequest


class Stopped(Exception):
    """Asked to stop, between two steps."""


class Diverged(Exception):
    """The loss is nan or inf."""


class OutOfMemory(TrainingError):
    """A device's memory is too small to predict with."""


class Reporter:
    """What a training tells while it goes on; every method does nothing, to be replaced where somebody listens."""

    def data_progress(self) -> Progress:
        return Progress()

    def begin(self, training: Training, folder: Path) -> None:
        """Everything is ready, and nothing is trained yet."""

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        """So many steps of the epoch are done; called about twice a second."""

    def epoch(self, row: dict[str, Any], best: bool) -> None:
        """An epoch is over; `row` is its line of `metrics.csv`."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def end(self, summary: dict[str, Any] | None) -> None:
        """The run is over: `summary` is what `summary.json` holds; None where it was stopped, or failed."""


class Engine(Protocol):
    """What a framework does of a training: it holds the weights, fits them for an epoch, and predicts."""

    @property
    def device(self) -> object:
        """Where it computes; its text is shown."""
        ...

    @property
    def precision_reason(self) -> str:
        """In which precision, and why, in words."""
        ...

    @property
    def parameters(self) -> int:
        """How many learn."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that it computes with, beside PyTorch."""
        ...

    @property
    def begun(self) -> tuple[int, float]:
        """The steps that are done of an epoch that is not, and the seconds that they took."""
        ...

    def global_state(self) -> AbstractContextManager[None]:
        """The context in which to train: the framework's global switches and generators are as before after it."""
        ...

    def train_epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """One epoch, or the rest of it; returns its line of `metrics.csv`, validation left out.

        Raises:
            Stopped: asked to stop, between two steps. Diverged: the loss is nan or inf.
            TrainingError: the device's memory is too small.
        """
        ...

    def end_epoch(self) -> None:
        """The epoch is over, its validation too."""
        ...

    def predict(self, split: Split) -> Predictions:
        """Logits and features of a split, in evaluation mode and without augmentation.

        Raises:
            Stopped: asked to stop. OutOfMemory: the device's memory is too small.
        """
        ...

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """`last.safetensors`: all that going on from here needs, in the middle of an epoch too."""
        ...

    def restore(self, path: Path) -> dict[str, Any]:
        """Go to where a checkpoint was made; returns the state that was saved with it.

        Raises:
            DataError: it is missing or damaged, or belongs to another model.
        """
        ...

    def estimate(self) -> float | None:
        """The seconds of the whole training, found out by some of it; None where that would take too long."""
        ...

    def save_weights(self, path: Path, state: dict[str, Any]) -> None: ...

    def load_weights(self, path: Path) -> None: ...


def make_engine(plan: Plan, stop: StopRequest, ranks: Ranks) -> Engine:
    """That of the framework which the settings name.

    Raises:
        ValueError: Keras is loaded with another backend. ModuleNotFoundError: Keras or its backend is not installed.
    """
    if plan.settings.framework == "keras":
        frameworks.use_keras(plan.settings.keras_backend)  # before the first import of Keras
        from labelsmooth.keras.training import KerasEngine

        return KerasEngine(plan, stop)
    from labelsmooth.training.torch_engine import TorchEngine

    return TorchEngine(plan, stop, ranks)


class Training:
    """A training, and how far it is.

    Attributes:
        plan: what it is going to do.
        engine: what does it.
        rows: the lines of `metrics.csv` so far.
        best: {"epoch", "val_accuracy", "val_nll"} of the best epoch so far, or None: without validation, or where the
            recipe takes the last one.
        seconds: that it took so far, validation included.
        saved: what the last checkpoint holds, in words; empty where there is none.
        stop: when asked to, the training saves what it has, and raises Stopped.
        ranks: the processes that train together; all go through the same lines, and one of them writes.
    """

    def __init__(self, settings: Settings, data: ImageData, ranks: Ranks | None = None) -> None:
        self.plan = Plan(settings, data)
        self.stop = StopRequest()
        self.ranks = ranks or Ranks()
        self.engine = make_engine(self.plan, self.stop, self.ranks)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.saved = ""

    @property
    def steps_done(self) -> int:
        """In whole epochs, and in the one that runs."""
        return len(self.rows) * self.plan.steps_per_epoch + self.engine.begun[0]

    def run(self, folder: RunFolder, reporter: Reporter) -> None:
        """Train to the end; after every epoch, and when asked to stop, write metrics and checkpoints.

        Raises:
            Stopped: asked to stop; everything is saved.
            TrainingError: the loss or a validation logit became nan or inf, or the device's memory is too small.
        """
        val = self.plan.data.val
        for epoch in range(len(self.rows), self.plan.epochs):
            began, before = time.perf_counter(), self.engine.begun[1]
            try:
                row = self.engine.train_epoch(epoch, reporter)
                better = False
                if len(val):
                    logits = self.engine.predict(val).logits
                    self._check_logits(logits, epoch, row["lr"])
                    row["val_nll"] = float(nll(logits, val.labels).mean())
                    row["val_accuracy"] = float((logits.argmax(1) == val.labels).mean())
                    better = self.plan.recipe.checkpoint == "best" and (
                        self.best is None
                        or (row["val_accuracy"], -row["val_nll"]) > (self.best["val_accuracy"], -self.best["val_nll"])
                    )
            except Stopped:  # no step is half done
                self._save(folder)
                raise
            except OutOfMemory as error:
                self._save(folder)
                raise TrainingError(f"{error}; saved after {self.saved}") from error
            except Diverged as error:
                raise TrainingError(f"{error}; {self._kept()}; start again with a lower --lr") from None
            if better:
                self.best = {key: row[key] for key in ("epoch", "val_accuracy", "val_nll")}
            self.seconds += time.perf_counter() - began + before
            self.rows.append(row)
            self.engine.end_epoch()
            folder.write_metrics(self.rows)
            if better:
                self.engine.save_weights(folder.checkpoints / "best.safetensors", self._state())
            self._save(folder)
            reporter.epoch(row, better)
            folder.log(", ".join(f"{key} {value:.6g}" for key, value in row.items() if value is not None))

    def _state(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds, "rows": self.rows}

    def _save(self, folder: RunFolder) -> None:
        self.engine.save(folder.checkpoints, self._state())
        self.ranks.wait()  # nobody ends before it is on the disk
        self._name_saved()

    def restore(self, path: Path) -> None:
        """Go to where a checkpoint was made.

        Raises:
            DataError: it is missing or damaged, or belongs to another model.
        """
        state = self.engine.restore(path)
        self.rows, self.best, self.seconds = state["rows"], state["best"], float(state["seconds"])
        self._name_saved()

    def _name_saved(self) -> None:
        epochs = "1 epoch" if len(self.rows) == 1 else f"{len(self.rows)} epochs"
        steps = self.engine.begun[0]
        self.saved = f"{epochs} and {steps} of {self.plan.steps_per_epoch} steps" if steps else epochs

    def _check_logits(self, logits: np.ndarray, epoch: int, lr: float) -> None:
        """Stop at validation logits that are nan or inf, before they are saved or become the best."""
        wrong = logits[~np.isfinite(logits)]
        if wrong.size:
            raise TrainingError(
                f"validation gives logits of {wrong[0]} after epoch {epoch + 1}, at learning rate {lr:g}; "
                f"{self._kept()}; start again with a lower --lr"
            )

    def _kept(self) -> str:
        return f"the checkpoint after {self.saved} is kept" if self.saved else "there is no checkpoint yet"
