"""The training: a short loop over batches that are made on the device."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelsmooth import priors
from labelsmooth._errors import TrainingError
from labelsmooth.evaluation import Predictions
from labelsmooth.evaluation.metrics import nll
from labelsmooth.targets import smooth_labels
from labelsmooth.torch import cross_entropy
from labelsmooth.training import checkpoints, models, optimizers
from labelsmooth.training.augmentation import Augmentation, smaller
from labelsmooth.training.data import ImageData, Split
from labelsmooth.training.devices import choose_device, choose_precision, storage_dtype
from labelsmooth.training.feed import Feed
from labelsmooth.training.listing import Progress
from labelsmooth.training.run import RunFolder, Settings
from labelsmooth.training.signals import StopRequest

_EVAL_BATCH = 500
_TICK = 0.5  # seconds between looks at the running loss


class Stopped(Exception):
    """Asked to stop, between two steps."""


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


@dataclass
class _Epoch:
    """How far the running epoch is.

    Attributes:
        number: which it is, from 0.
        losses: of its steps, those to come 0.
        sums: of the NLL and of hits over the examples seen, float64 ``[2]``.
        steps: how many are done.
        seconds: how long they took.
    """

    number: int
    losses: Tensor
    sums: Tensor
    steps: int = 0
    seconds: float = 0.0


class Training:
    """A model, its data, its optimiser, and how far it is.

    Attributes:
        settings: what it was told.
        data: the images.
        model: the classifier.
        prior: u, float64 ``[K]``.
        floor: the least that the smoothed training loss can be.
        rows: the lines of `metrics.csv` so far.
        best: {"epoch", "val_accuracy", "val_nll"} of the best epoch so far, or None.
        saved: what the last checkpoint holds, in words; empty where there is none.
        stop: when asked to, the training saves what it has, and raises Stopped.
    """

    def __init__(self, settings: Settings, data: ImageData) -> None:
        recipe = settings.recipe
        self.settings, self.data, self.recipe = settings, data, recipe
        self.device = choose_device(settings.device)
        self.precision, self.precision_reason = choose_precision(recipe.precision, self.device)
        self.steps_per_epoch = recipe.steps_per_epoch(len(data.train))
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.schedule = recipe.make_schedule()
        self.prior = priors.uniform(data.num_classes)
        if recipe.prior == "class_frequency":
            self.prior = priors.class_frequency(data.train.labels, data.num_classes)
        self.floor = entropy_floor(data.train.labels, recipe.smoothing, self.prior)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.saved = ""
        self.stop = StopRequest()
        self._running: _Epoch | None = None
        self._generators: dict[str, Tensor] = {}

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("weights"))
            network = models.build(
                recipe.model, image_shape=data.image_shape, num_classes=data.num_classes, dropout=recipe.dropout
            )
            model = models.Classifier(network, data.image_shape)
            model.fit_to(data.train)
        dtype = storage_dtype(self.precision)
        self.model = model.to(self.device, dtype)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = (
            self._compiled() if settings.compile or (settings.compile is None and self.on_gpu) else self.model
        )
        self.optimizer = optimizers.make(self.model, recipe)
        self.feed = Feed(data.train, self.device)
        self.labels = torch.from_numpy(data.train.labels).to(self.device)
        u = None if recipe.prior == "uniform" else torch.from_numpy(self.prior)  # None: the loss builds no u
        self._loss_prior = None if u is None else u.to(self.device, dtype)
        self.targets = None
        if recipe.method == "labels":
            classes = torch.arange(data.num_classes)
            smoothed = smooth_labels(classes, recipe.smoothing, num_classes=data.num_classes, prior=u, dtype=dtype)
            self.targets = smoothed.to(self.device)

    @property
    def epochs(self) -> int:
        """How many epochs there are, a fraction at the end counted as one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _compiled(self) -> torch.nn.Module:
        """The model, compiled for batches of one size."""
        mode = "reduce-overhead" if self.on_gpu else "default"
        return torch.compile(self.model, mode=mode, dynamic=False)  # pyright: ignore[reportReturnType]

    @property
    def steps_done(self) -> int:
        """In whole epochs, and in the one that runs."""
        running = self._running.steps if self._running is not None else 0
        return min(len(self.rows) * self.steps_per_epoch, self.total_steps) + running

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def _seed(self, purpose: str, *position: int) -> int:
        """A seed of its own for each purpose and epoch, so that none depends on how often another was drawn from."""
        words = np.random.SeedSequence([self.settings.seed, *purpose.encode(), *position]).generate_state(2)
        return int(words[0]) << 31 ^ int(words[1])

    def _draws(self, purpose: str, *position: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(purpose, *position))

    @contextmanager
    def global_state(self) -> Iterator[None]:
        """Leave PyTorch's global generator and switches as they were."""
        devices = [self.device] if self.on_gpu else []
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        with torch.random.fork_rng(devices=devices):
            try:
                if self.settings.deterministic:
                    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which PyTorch asks for
                    torch.use_deterministic_algorithms(True)
                with self._as_far_as_it_compiles():
                    yield
            finally:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def _as_far_as_it_compiles(self) -> AbstractContextManager[None]:
        """What PyTorch cannot compile here runs as it is, with PyTorch's warning."""
        if self.network is self.model:
            return nullcontext()
        import torch._dynamo

        return torch._dynamo.config.patch(suppress_errors=True)  # pyright: ignore[reportReturnType]

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The smoothed loss of a batch, by the recipe's method."""
        if self.targets is not None:
            return cross_entropy(logits, self.targets[self.labels[rows]], validate=False)
        return cross_entropy(
            logits, self.labels[rows], label_smoothing=self.recipe.smoothing, prior=self._loss_prior, validate=False
        )

    def run(self, folder: RunFolder, reporter: Reporter) -> None:
        """Train to the end; after every epoch, and when asked to stop, write metrics and checkpoints.

        Raises:
            Stopped: asked to stop; everything is saved.
            TrainingError: the loss or a validation logit became nan or inf, or the device's memory is too small.
        """
        for epoch in range(len(self.rows), self.epochs):
            began, before = time.perf_counter(), self._running.seconds if self._running is not None else 0.0
            try:
                row = self.train_epoch(epoch, reporter)
                better = False
                if len(self.data.val):
                    logits = self.predict(self.data.val).logits
                    self._check_logits(logits, epoch, row["lr"])
                    row["val_nll"] = float(nll(logits, self.data.val.labels).mean())
                    row["val_accuracy"] = float((logits.argmax(1) == self.data.val.labels).mean())
                    better = self.best is None or (row["val_accuracy"], -row["val_nll"]) > (
                        self.best["val_accuracy"], -self.best["val_nll"],
                    )  # fmt: skip
            except Stopped:  # no step is half done
                self._save(folder)
                raise
            except torch.OutOfMemoryError as error:
                self._save(folder)
                raise TrainingError(
                    f"the memory of {self.device} is too small to predict {_EVAL_BATCH} images at once; "
                    f"try --image-size; saved after {self.saved}"
                ) from error
            if better:
                self.best = {key: row[key] for key in ("epoch", "val_accuracy", "val_nll")}
            self.seconds += time.perf_counter() - began + before
            self.rows.append(row)
            self._running = None
            folder.write_metrics(self.rows)
            if better:
                checkpoints.save_weights(folder.checkpoints / "best.safetensors", self.model, self._state())
            self._save(folder)
            reporter.epoch(row, better)
            folder.log(", ".join(f"{key} {value:.6g}" for key, value in row.items() if value is not None))

    def _state(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds, "rows": self.rows}

    def _save(self, folder: RunFolder) -> None:
        """`last.safetensors`: all that a bitwise continuation needs, in the middle of an epoch too."""
        state, tensors = self._state(), {}
        if self._running is not None:
            state["running"] = {"steps": self._running.steps, "seconds": self._running.seconds}
            tensors = {"losses": self._running.losses, "sums": self._running.sums, "rng": torch.get_rng_state()}
            if self.on_gpu:
                tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        checkpoints.save_training(folder.checkpoints, self.model, self.optimizer, state, tensors)
        self._name_saved()

    def restore(self, path: Path) -> None:
        """Go to where a checkpoint was made.

        Raises:
            DataError: it is missing or damaged, or belongs to another model.
        """
        state, tensors = checkpoints.load_training(path, self.model, self.optimizer)
        self.rows, self.best, self.seconds = state["rows"], state["best"], float(state["seconds"])
        if "running" in state:
            losses, sums = (tensors[name].to(self.device) for name in ("losses", "sums"))
            self._running = _Epoch(len(self.rows), losses, sums, **state["running"])
            self._generators = {name: tensors[name] for name in ("rng", "cuda_rng") if name in tensors}
        self._name_saved()

    def _name_saved(self) -> None:
        epochs = "1 epoch" if len(self.rows) == 1 else f"{len(self.rows)} epochs"
        steps = self._running.steps if self._running is not None else 0
        self.saved = f"{epochs} and {steps} of {self.steps_per_epoch} steps" if steps else epochs

    def train_epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """One epoch, whole or the last fraction of one; returns its line of `metrics.csv`, validation left out."""
        recipe = self.recipe
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        order = torch.randperm(len(self.labels), generator=self._draws("order", epoch)).to(self.feed.rows_on)
        augment = Augmentation(
            recipe, len(self.labels), epoch, self._draws("augmentation", epoch), self._draws("flip"), self.device
        )
        running = self._begin(epoch, steps)
        self.model.train()
        began = tick = time.perf_counter()
        before, checked, lr = running.seconds, running.steps, 0.0
        for step in range(running.steps, steps):
            lr = self._plan(epoch, step)
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            fits = True
            try:
                self._step(rows, augment, running, (epoch * self.steps_per_epoch + step) / self.total_steps)
            except torch.OutOfMemoryError:
                fits = False  # looked into below, where the error does not hold the step's tensors any more
            if not fits:
                raise TrainingError(self._fitting_batch(augment))
            now = time.perf_counter()
            running.seconds = before + now - began
            if now - tick >= _TICK or step == steps - 1 or self.stop.asked:
                tick, checked = now, self._check_losses(running.losses, checked, step + 1, epoch, lr)
                reporter.step(epoch, step + 1, steps, float(running.losses[step]))
            if self.stop.asked:
                raise Stopped
        seen = min(steps * recipe.batch_size, len(self.labels))
        return {
            "epoch": epoch + 1,
            "lr": self._plan(epoch, steps - 1),
            "smoothing": recipe.smoothing,
            "train_loss_smoothed": float(running.losses.double().mean()),
            "train_loss_floor": self.floor,
            "train_nll": float(running.sums[0]) / seen,
            "train_accuracy": float(running.sums[1]) / seen,
            "val_nll": None,
            "val_accuracy": None,
            "seconds": running.seconds,
            "images_per_second": seen / running.seconds,
        }

    def _begin(self, epoch: int, steps: int) -> _Epoch:
        """The epoch that is to run, or to run on after an interruption in its middle."""
        if self._running is None or self._running.number != epoch:
            torch.manual_seed(self._seed("dropout", epoch))
            losses = torch.zeros(steps, dtype=self.model.dtype, device=self.device)
            self._running = _Epoch(epoch, losses, torch.zeros(2, dtype=torch.float64, device=self.device))
        elif self._generators:
            torch.manual_seed(self._seed("dropout", epoch, self._running.steps))  # on a device that was not there
            torch.set_rng_state(self._generators["rng"])
            if "cuda_rng" in self._generators and self.on_gpu:
                torch.cuda.set_rng_state(self._generators["cuda_rng"], self.device)
            self._generators = {}
        missing = steps - len(self._running.losses)  # a last fraction of an epoch may have become a whole one
        self._running.losses = F.pad(self._running.losses, (0, missing))
        return self._running

    def _plan(self, epoch: int, step: int) -> float:
        """Set the learning rates of a step, and return the recipe's."""
        fraction = step / self.steps_per_epoch if self.recipe.schedule_every == "step" else 0.0
        lr = self.schedule(epoch + fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        return lr

    def _step(self, rows: Tensor, augment: Augmentation, running: _Epoch, share: float) -> None:
        """One batch; nothing in it waits for a GPU."""
        logits, loss, rows = self.gradients(rows, augment, share, self.network)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            running.losses[running.steps] = loss
            running.sums[0] += F.cross_entropy(logits.to(running.losses.dtype), self.labels[rows], reduction="sum")
            running.sums[1] += (logits.argmax(1) == self.labels[rows]).sum()
        running.steps += 1

    def gradients(
        self, rows: Tensor, augment: Augmentation, share: float, network: torch.nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logits and the loss of a batch, its gradients left in the parameters; and `rows` on the device."""
        pixels, rows = self.feed.batch(rows), rows.to(self.device, non_blocking=True)
        x = augment(self.model.normalise(pixels), rows)
        if share < self.recipe.small_share:
            x = smaller(x, self.recipe.small_scale)
        with self.model.autocast(self.precision):
            logits = network(x)
        loss = self.loss(logits, rows)
        loss.backward()
        return logits, loss, rows

    def _fitting_batch(self, augment: Augmentation) -> str:
        """What to say when the device's memory is too small: the largest halved batch that a step fits with."""
        size = self.recipe.batch_size
        while size > 1:
            size //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if self.on_gpu:
                torch.cuda.empty_cache()
            try:
                self.gradients(torch.arange(size, device=self.feed.rows_on), augment, 1.0, self.model)
            except torch.OutOfMemoryError:
                continue
            return (
                f"the memory of {self.device} is too small for a batch of {self.recipe.batch_size}; "
                f"{size} would fit: --batch-size {size}"
            )
        return f"the memory of {self.device} is too small for a single image; try --image-size or another --model"

    def _check_losses(self, losses: Tensor, first: int, last: int, epoch: int, lr: float) -> int:
        """Stop at a loss that is nan or inf; returns how many are checked."""
        wrong = ~losses[first:last].isfinite()
        if bool(wrong.any()):
            step = first + int(wrong.int().argmax())
            raise TrainingError(
                f"the loss became {float(losses[step])} in epoch {epoch + 1}, step {step + 1}, "
                f"at learning rate {lr:g}; {self._kept()}; try a lower --lr"
            )
        return last

    def _check_logits(self, logits: np.ndarray, epoch: int, lr: float) -> None:
        """Stop at validation logits that are nan or inf, before they are saved or become the best."""
        wrong = logits[~np.isfinite(logits)]
        if wrong.size:
            raise TrainingError(
                f"validation gives logits of {wrong[0]} after epoch {epoch + 1}, at learning rate {lr:g}; "
                f"{self._kept()}; try a lower --lr"
            )

    def _kept(self) -> str:
        return f"the checkpoint after {self.saved} is kept" if self.saved else "there is no checkpoint yet"

    @torch.inference_mode()
    def predict(self, split: Split) -> Predictions:
        """Logits and features of a split, in evaluation mode and without augmentation."""
        self.model.eval()
        feed, logits, features = Feed(split, self.device), [], []
        for rows in torch.arange(len(split), device=feed.rows_on).split(_EVAL_BATCH):
            if self.stop.asked:
                raise Stopped
            with self.model.autocast(self.precision):
                f, z = self.model.features_and_logits(self.model.normalise(feed.batch(rows)))
            features.append(f.float().cpu().numpy())
            logits.append(z.float().cpu().numpy())
        return Predictions(
            logits=np.concatenate(logits),
            labels=split.labels,
            features=np.concatenate(features),
            index=split.index,
            classes=self.data.classes,
            templates=self.model.network.head.weight.float().cpu().numpy().copy(),
        )


def entropy_floor(labels: np.ndarray, smoothing: float, prior: np.ndarray) -> float:
    """The least that the mean smoothed loss over labels can be: the mean over them of H(q') = -Σ_k q'_k log q'_k.

    Args:
        labels: class ids ``int64[N]``.
        smoothing: ε, in [0, 1).
        prior: u, float64 ``[K]``.

    Example:
        >>> round(entropy_floor(np.array([0, 0, 1]), 0.1, np.full(10, 0.1)), 6)
        0.500288
    """
    off = smoothing * prior
    on = (1.0 - smoothing) + off
    floors = _entropy_terms(off).sum() - _entropy_terms(off) + _entropy_terms(on)  # of each class, in K steps, not K²
    return float(floors[labels].mean())


def _entropy_terms(q: np.ndarray) -> np.ndarray:
    """-q log q, and 0 at 0."""
    return -q * np.log(np.where(q > 0, q, 1.0)) + 0.0
