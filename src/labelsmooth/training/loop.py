"""The training: a short loop over data that live on the device."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelsmooth import _checks
from labelsmooth._errors import DataError, Interrupted, TrainingError
from labelsmooth.evaluation import Evaluation, Predictions, evaluate
from labelsmooth.evaluation.metrics import nll
from labelsmooth.report import plots
from labelsmooth.targets import explanation, smooth_labels
from labelsmooth.torch import cross_entropy
from labelsmooth.training import checkpoints, models, recipes
from labelsmooth.training.augmentation import shift_and_flip
from labelsmooth.training.data import ImageData, Progress, Split, load
from labelsmooth.training.devices import choose_device, choose_precision, storage_dtype
from labelsmooth.training.recipes import Recipe
from labelsmooth.training.run import RunFolder, Settings, environment

_EVAL_BATCH = 500
_TICK = 0.5  # seconds between looks at the running loss


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


@dataclass
class Result:
    """A finished run: its folder, what `summary.json` holds, and the figures on the test set."""

    folder: Path
    summary: dict[str, Any]
    test: Evaluation


def train(
    data: str | Path = "digits",
    recipe: str | Recipe | None = None,
    *,
    val_split: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    device: str = "auto",
    deterministic: bool = False,
    out: str | Path = "runs",
    plot: str | Path | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Result:
    """Train an image classifier with label smoothing, evaluate it on hard labels, and write a run folder.

    The same seed gives the same split, initial weights, batch order, augmentation and dropout, whatever the smoothing
    and the method.

    Args:
        data: see `labelsmooth.training.load`.
        recipe: a `Recipe`, or the name of one (``"classic"``, ``"digits"``); None chooses by the image size.
        val_split: the share of the training examples that validation gets, in [0, 1). With 0 there is no `best`
            checkpoint, and the last one is tested.
        seed: a whole number of at least 0.
        image_size: resize to this height and width.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        deterministic: refuse operations that are not deterministic.
        out: the parent folder of runs.
        plot: also write the curves to this file (.png, .svg or .pdf).
        reporter: told of what happens; None: nobody.
        **changes: fields of `Recipe` to change, such as ``smoothing=0.2, epochs=5``.

    Returns:
        A `Result`.

    Raises:
        ValueError: an argument out of its range. DataError: the data cannot be used.
        TrainingError: the loss became nan or inf, or the disk is full; what was done is kept.

    Example:
        >>> from labelsmooth.training import train
        >>> result = train("digits", smoothing=0.1, epochs=1, out=getfixture("tmp_path"))
        >>> sorted(path.name for path in result.folder.iterdir())  # doctest: +NORMALIZE_WHITESPACE
        ['checkpoints', 'config.yaml', 'data.json', 'env.json', 'log.txt', 'metrics.csv', 'plots', 'predictions',
         'summary.json']
    """
    reporter = reporter or Reporter()
    if plot is not None:
        plots.check_file(Path(plot))
    named = recipes.choose(recipe, (0, 0, 0)) if isinstance(recipe, str) else recipe
    # A wrong option is found before the data are read; which recipe suits them, only afterwards.
    source = str(data) if isinstance(data, Path) else data
    first = (named or recipes.CLASSIC).changed(**changes)
    settings = Settings(source, first, val_split, seed, image_size, device, deterministic)
    choose_device(device)
    images = load(
        settings.data,
        val_split=settings.val_split,
        seed=settings.seed,
        image_size=settings.image_size,
        progress=reporter.data_progress(),
    )
    if named is None:
        settings = replace(settings, recipe=recipes.choose(None, images.image_shape).changed(**changes))
    training = Training(settings, images)
    folder = RunFolder.create(Path(out), images.name)
    try:
        folder.write_settings(replace(settings, data=images.source))
        folder.write_json("data.json", images.describe())
        folder.write_json("env.json", environment(str(training.device), training.precision_reason))
    except BaseException as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            text = f"{error.strerror or error} while writing a run folder in {out}; nothing was trained"
            raise TrainingError(text) from error
        raise
    return _finish(training, folder, reporter, plot)


def resume(run: str | Path, *, plot: str | Path | None = None, reporter: Reporter | None = None) -> Result:
    """Go on with an interrupted run, bit for bit as if it had not been interrupted.

    Args:
        run: its folder.
        plot: also write the curves to this file.
        reporter: told of what happens.

    Returns:
        A `Result`.

    Raises:
        ValueError: the run is finished. DataError: it is no run, or its data have changed. TrainingError: as `train`.
    """
    reporter = reporter or Reporter()
    if plot is not None:
        plots.check_file(Path(plot))
    folder = RunFolder.open(run)
    if folder.finished:
        raise _checks.error("resume", "name a run that is not finished", str(run))
    settings = folder.read_settings()
    images = load(
        settings.data, val_split=settings.val_split, seed=settings.seed, image_size=settings.image_size,
        progress=reporter.data_progress(),
    )  # fmt: skip
    known = folder.read_json("data.json")["sha256"]
    if images.digest != known:
        raise DataError(
            f"{settings.data} has changed since {run} began (SHA-256 {images.digest[:12]}, then {known[:12]})"
        )
    training, problems = Training(settings, images), []
    for name in ("last", "previous"):
        path = folder.checkpoints / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            training.restore(checkpoints.load_training(path, training.model, training.optimizer))
            break
        except DataError as error:
            reporter.note(f"{error}; looking at the checkpoint before")
            problems.append(str(error))
            training = Training(settings, images)
    if problems and not training.saved_epochs:
        raise DataError(f"{run} has no checkpoint that can be used: {'; '.join(problems)}")
    if training.best is not None and not (folder.checkpoints / "best.safetensors").exists():
        reporter.note("best.safetensors is gone; the best of the epochs to come is tested, or the last one")
        training.best = None
    reporter.note(f"resuming {folder.path} after {training.saved_epochs} epochs")
    return _finish(training, folder, reporter, plot)


def _finish(training: Training, folder: RunFolder, reporter: Reporter, plot: str | Path | None) -> Result:
    try:
        reporter.begin(training, folder.path)
        folder.log(f"begin at epoch {training.saved_epochs}")
        with training.global_state():
            training.run(folder, reporter)
            result = training.conclude(folder)
    except KeyboardInterrupt:
        folder.log(f"interrupted after {training.saved_epochs} epochs")
        raise Interrupted(str(folder.path), training.saved_epochs) from None
    except TrainingError as error:
        folder.log(f"failed: {error}")
        raise
    except OSError as error:
        hint = "free some room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
        raise TrainingError(
            f"{error.strerror or error} while writing {error.filename or folder.path}; the checkpoint after "
            f"{training.saved_epochs} epochs is kept: {hint}, then labelsmooth train --resume {folder.path}"
        ) from error
    if plot is not None:
        try:
            plots.save(plots.curves(training.rows, training.recipe.smoothing), Path(plot))
        except OSError as error:
            reporter.note(f"the curves could not be written to {plot} ({error.strerror}); they are in {folder.path}")
    return result


class Training:
    """A model, its data on the device, its optimiser, and how far it is.

    Attributes:
        settings: what it was told.
        data: the images.
        model: the classifier.
        rows: the lines of `metrics.csv` so far.
        best: {"epoch", "val_accuracy", "val_nll"} of the best epoch so far, or None.
        saved_epochs: how many epochs the last checkpoint holds.
    """

    def __init__(self, settings: Settings, data: ImageData) -> None:
        recipe = settings.recipe
        self.settings, self.data, self.recipe = settings, data, recipe
        self.device = choose_device(settings.device)
        self.precision, self.precision_reason = choose_precision(recipe.precision, self.device)
        self.steps_per_epoch = recipe.steps_per_epoch(len(data.train))
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.schedule = recipe.make_schedule()
        self.floor = explanation(recipe.smoothing, data.num_classes).entropy_floor
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.saved_epochs = 0

        mean = data.train.images.mean(axis=0, dtype=np.float64).astype(np.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("weights"))
            network = models.build(
                recipe.model, image_shape=data.image_shape, num_classes=data.num_classes, dropout=recipe.dropout
            )
        model = models.Classifier(network, torch.from_numpy(mean.transpose(2, 0, 1).copy()))
        dtype = storage_dtype(self.precision)
        self.model = model.to(self.device, dtype)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.SGD(
            _decay_groups(self.model, recipe.weight_decay), lr=recipe.lr, momentum=recipe.momentum,
            nesterov=recipe.nesterov, fused=True,
        )  # fmt: skip
        self.images = _pixels(data.train.images).to(self.device)
        self.labels = torch.from_numpy(data.train.labels).to(self.device)
        self.targets = None
        if recipe.method == "labels":
            smoothed = smooth_labels(self.labels.cpu(), recipe.smoothing, num_classes=data.num_classes, dtype=dtype)
            self.targets = smoothed.to(self.device)

    @property
    def epochs(self) -> int:
        """How many epochs there are, a fraction at the end counted as one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def _seed(self, purpose: str, *position: int) -> int:
        """A seed of its own for each purpose and epoch, so that none depends on how often another was drawn from."""
        words = np.random.SeedSequence([self.settings.seed, *purpose.encode(), *position]).generate_state(2)
        return int(words[0]) << 31 ^ int(words[1])

    @contextmanager
    def global_state(self) -> Iterator[None]:
        """Leave PyTorch's global generator and switches as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        with torch.random.fork_rng(devices=devices):
            try:
                if self.settings.deterministic:
                    torch.use_deterministic_algorithms(True)
                yield
            finally:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The smoothed loss of a batch, by the recipe's method."""
        if self.targets is not None:
            return cross_entropy(logits, self.targets[rows], validate=False)
        return cross_entropy(logits, self.labels[rows], label_smoothing=self.recipe.smoothing, validate=False)

    def run(self, folder: RunFolder, reporter: Reporter) -> None:
        """Train to the end; after every epoch write metrics and checkpoints."""
        for epoch in range(len(self.rows), self.epochs):
            began = time.perf_counter()
            row = self.train_epoch(epoch, reporter)
            better = False
            if len(self.data.val):
                logits = self.predict(self.data.val).logits
                row["val_nll"] = float(nll(logits, self.data.val.labels).mean())
                row["val_accuracy"] = float((logits.argmax(1) == self.data.val.labels).mean())
                better = self.best is None or (row["val_accuracy"], -row["val_nll"]) > (
                    self.best["val_accuracy"], -self.best["val_nll"],
                )  # fmt: skip
            if better:
                self.best = {key: row[key] for key in ("epoch", "val_accuracy", "val_nll")}
            self.seconds += time.perf_counter() - began
            self.rows.append(row)
            folder.write_metrics(self.rows)
            state = {"best": self.best, "seconds": self.seconds, "rows": self.rows}
            if better:
                checkpoints.save_weights(folder.checkpoints / "best.safetensors", self.model, state)
            checkpoints.save_training(folder.checkpoints, self.model, self.optimizer, state)
            self.saved_epochs = len(self.rows)
            reporter.epoch(row, better)
            folder.log(", ".join(f"{key} {value:.6g}" for key, value in row.items() if value is not None))

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint was made."""
        self.rows, self.best, self.seconds = state["rows"], state["best"], float(state["seconds"])
        self.saved_epochs = len(self.rows)

    def train_epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """One epoch, whole or the last fraction of one; returns its line of `metrics.csv`, validation left out."""
        recipe = self.recipe
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self._seed("order", epoch)))
        order = order.to(self.device)
        augmentation = torch.Generator().manual_seed(self._seed("augmentation", epoch))
        torch.manual_seed(self._seed("dropout", epoch))
        losses = torch.zeros(steps, dtype=self.model.mean.dtype, device=self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of the NLL, of hits

        self.model.train()
        began = tick = time.perf_counter()
        checked, lr = 0, 0.0
        for step in range(steps):
            fraction = step / self.steps_per_epoch if recipe.schedule_every == "step" else 0.0
            lr = self.schedule(epoch + fraction)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            x = shift_and_flip(
                self.model.normalise(self.images[rows]), augmentation, shift=recipe.shift, flip=recipe.flip
            )
            with self.model.autocast(self.precision):
                logits = self.model(x)
            loss = self.loss(logits, rows)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

            with torch.no_grad():
                losses[step] = loss
                sums[0] += F.cross_entropy(logits.to(losses.dtype), self.labels[rows], reduction="sum")
                sums[1] += (logits.argmax(1) == self.labels[rows]).sum()
            now = time.perf_counter()
            if now - tick >= _TICK or step == steps - 1:
                tick, checked = now, self._check_losses(losses, checked, step + 1, epoch, lr)
                reporter.step(epoch, step + 1, steps, float(losses[step]))
        seconds = time.perf_counter() - began
        seen = min(steps * recipe.batch_size, len(self.labels))
        return {
            "epoch": epoch + 1,
            "lr": lr,
            "smoothing": recipe.smoothing,
            "train_loss_smoothed": float(losses.double().mean()),
            "train_loss_floor": self.floor,
            "train_nll": float(sums[0]) / seen,
            "train_accuracy": float(sums[1]) / seen,
            "val_nll": None,
            "val_accuracy": None,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }

    def _check_losses(self, losses: Tensor, first: int, last: int, epoch: int, lr: float) -> int:
        """Stop at a loss that is nan or inf; returns how many are checked."""
        wrong = ~losses[first:last].isfinite()
        if bool(wrong.any()):
            step = first + int(wrong.int().argmax())
            kept = f"the checkpoint after epoch {self.saved_epochs} is kept" if self.rows else "no epoch was finished"
            raise TrainingError(
                f"the loss became {float(losses[step])} in epoch {epoch + 1}, step {step + 1}, "
                f"at learning rate {lr:g}; {kept}; try a lower --lr"
            )
        return last

    @torch.inference_mode()
    def predict(self, split: Split) -> Predictions:
        """Logits and features of a split, in evaluation mode and without augmentation."""
        self.model.eval()
        logits, features = [], []
        for start in range(0, len(split), _EVAL_BATCH):
            pixels = _pixels(split.images[start : start + _EVAL_BATCH]).to(self.device)
            with self.model.autocast(self.precision):
                f, z = self.model.features_and_logits(self.model.normalise(pixels))
            features.append(f.float().cpu().numpy())
            logits.append(z.float().cpu().numpy())
        return Predictions(
            np.concatenate(logits), split.labels, np.concatenate(features), split.index, self.data.classes
        )

    def conclude(self, folder: RunFolder) -> Result:
        """Restore the best weights, predict, evaluate on hard labels, draw and summarise."""
        tested = "best" if self.best is not None else "last"
        checkpoints.load_weights(folder.checkpoints / f"{tested}.safetensors", self.model)
        if len(self.data.val):
            self.predict(self.data.val).save(folder.predictions_file("val"))
        predictions = self.predict(self.data.test)
        predictions.save(folder.predictions_file("test"))
        test = evaluate(predictions.logits, predictions.labels, self.data.classes)
        plots.save(plots.curves(self.rows, self.recipe.smoothing), folder.plot_file("curves"))
        plots.save(plots.confusion(test), folder.plot_file("confusion"))
        rates = [row["images_per_second"] for row in self.rows]
        summary = {
            "status": "finished",
            "data": self.data.name,
            "model": self.recipe.model,
            "parameters": self.parameters,
            "smoothing": self.recipe.smoothing,
            "method": self.recipe.method,
            "entropy_floor": self.floor,
            "seed": self.settings.seed,
            "epochs": len(self.rows),
            "tested_checkpoint": tested,
            "best": self.best,
            "test": {"accuracy": test.accuracy, "nll": test.nll, "examples": test.examples},
            "train_seconds": self.seconds,
            "images_per_second": float(np.median(rates)),
            "report": test.as_dict()["classes"],
        }
        folder.write_json("summary.json", summary)
        folder.log(f"finished: test accuracy {test.accuracy:.4f}, test NLL {test.nll:.4f}")
        return Result(folder.path, summary, test)


def _pixels(images: np.ndarray) -> Tensor:
    """uint8 ``[N, H, W, C]`` as a tensor ``[N, C, H, W]``, channels last in memory as in NumPy."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels decay; biases and batch-norm parameters do not."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
