"""Training with PyTorch: a short loop over batches that are made on the device."""

from __future__ import annotations

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
from torch.nn.parallel import DistributedDataParallel

from labelsmooth._errors import DataError, TrainingError
from labelsmooth.evaluation import Predictions
from labelsmooth.targets import smooth_labels
from labelsmooth.torch import cross_entropy
from labelsmooth.training import checkpoints, optimizers
from labelsmooth.training.augmentation import Augmentation, smaller
from labelsmooth.training.data import Split
from labelsmooth.training.devices import choose_device, choose_precision, storage_dtype
from labelsmooth.training.feed import Feed
from labelsmooth.training.loop import Diverged, OutOfMemory, Reporter, Stopped
from labelsmooth.training.plan import Plan, initial_model
from labelsmooth.training.ranks import Ranks
from labelsmooth.training.signals import StopRequest

_EVAL_BATCH = 500
_TICK = 0.5  # seconds between looks at the running loss
_TIMED_STEPS = 3
_TIMED_IMAGES = 500


@dataclass
class _Epoch:
    """How far the running epoch is.

    Attributes:
        number: which it is, from 0.
        figures: of each step the loss, the sum of the NLL and the hits, float64 ``[steps, 3]``; of those to come 0.
        steps: how many are done.
        seconds: how long they took.
    """

    number: int
    figures: Tensor
    steps: int = 0
    seconds: float = 0.0


class TorchEngine:
    """A PyTorch model and its optimiser: see `labelsmooth.training.loop.Engine`.

    Attributes:
        plan: what to do.
        stop: when asked to, it stops between two steps.
        ranks: the processes that train together, each on a device of its own.
        model: the classifier.
    """

    def __init__(self, plan: Plan, stop: StopRequest, ranks: Ranks | None = None) -> None:
        recipe, data = plan.recipe, plan.data
        self.plan, self.stop, self.recipe = plan, stop, recipe
        self.ranks = ranks or Ranks()
        self.alone = self.ranks.count == 1
        self.device = choose_device(plan.settings.device, None if self.alone else self.ranks.local)
        self.precision, self.precision_reason = choose_precision(recipe.precision, self.device)
        self._running: _Epoch | None = None

        model = initial_model(plan, fitted=self.ranks.first)
        if self.on_gpu and not self.alone:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # its layers are exchanged in place
        dtype = storage_dtype(self.precision)
        self.model = model.to(self.device, dtype)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        compiled = plan.settings.compile or (plan.settings.compile is None and self.on_gpu and self.alone)
        self.network = self._compiled() if compiled else self.model
        self.optimizer = optimizers.make(self.model, recipe, self.precision)
        self.feed = Feed(data.train, self.device)
        self.labels = torch.from_numpy(data.train.labels).to(self.device)
        u = None if recipe.prior == "uniform" else torch.from_numpy(plan.prior)  # None: the loss builds no u
        self._loss_prior = None if u is None else u.to(self.device, dtype)
        self.targets = None
        if recipe.method == "labels":
            classes = torch.arange(data.num_classes)
            smoothed = smooth_labels(classes, recipe.smoothing, num_classes=data.num_classes, prior=u, dtype=dtype)
            self.targets = smoothed.to(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _compiled(self) -> torch.nn.Module:
        """The model, compiled for batches of one size."""
        # A CUDA graph's gradients lie where its next run puts its own: parts of a batch could not be added up.
        mode = "reduce-overhead" if self.on_gpu and self.plan.settings.accumulate == 1 else "default"
        return torch.compile(self.model, mode=mode, dynamic=False)  # pyright: ignore[reportReturnType]

    @property
    def versions(self) -> dict[str, str]:
        return {}

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @contextmanager
    def global_state(self) -> Iterator[None]:
        """Leave PyTorch's switches as they were; its global generators are not drawn from."""
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        try:
            if self.plan.settings.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which PyTorch asks for
                torch.use_deterministic_algorithms(True)
            with self._as_far_as_it_compiles(), self._together():
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def _as_far_as_it_compiles(self) -> AbstractContextManager[None]:
        """What PyTorch cannot compile here runs as it is, with PyTorch's warning."""
        if self.network is self.model:
            return nullcontext()
        import torch._dynamo

        return torch._dynamo.config.patch(suppress_errors=True)  # pyright: ignore[reportReturnType]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """All begin with the weights of rank 0, and their gradients are added up."""
        if self.alone:
            yield
            return
        devices = [self.device] if self.on_gpu else None
        self.network = DistributedDataParallel(self.model, devices)
        self.network.broadcast_buffers = False  # from now on: running statistics are mixed, or alike
        self.network.register_comm_hook(None, _summed)
        try:
            yield
        finally:
            self.network = self.model  # it holds the process group

    def loss(self, logits: Tensor, rows: Tensor, whole: int) -> Tensor:
        """The share of some rows in the mean smoothed loss of a batch of `whole`, by the recipe's method."""
        if self.targets is not None:
            return cross_entropy(logits, self.targets[self.labels[rows]], normalizer=whole, validate=False)
        return cross_entropy(
            logits, self.labels[rows], label_smoothing=self.recipe.smoothing, prior=self._loss_prior,
            normalizer=whole, validate=False,
        )  # fmt: skip

    @property
    def begun(self) -> tuple[int, float]:
        """The steps that are done of an epoch that is not, and the seconds that they took."""
        return (0, 0.0) if self._running is None else (self._running.steps, self._running.seconds)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """`last.safetensors`: all that a bitwise continuation needs, in the middle of an epoch too."""
        tensors = {}
        if self._running is not None:
            state = {**state, "running": {"steps": self._running.steps, "seconds": self._running.seconds}}
            tensors = {"figures": self.ranks.summed(self._running.figures.clone())}
        if not self.ranks.first:
            return
        optimizer = optimizers.state_tensors(self.model, self.optimizer)
        checkpoints.save_training(folder, self.model, optimizer, state, tensors)

    def restore(self, path: Path) -> dict[str, Any]:
        """Go to where a checkpoint was made; returns the state that was saved with it.

        Raises:
            DataError: it is missing or damaged, or belongs to another model.
        """
        state, optimizer, tensors = checkpoints.load_training(path, self.model)
        optimizers.put_state(self.model, self.optimizer, optimizer)
        if "running" in state:
            if "figures" not in tensors:
                raise DataError(f"{path} was made in the middle of an epoch, by another version of labelsmooth")
            figures = tensors["figures"].to(self.device) * self.ranks.first  # everybody's are added up
            self._running = _Epoch(len(state["rows"]), figures, **state["running"])
        return state

    def save_weights(self, path: Path, state: dict[str, Any]) -> None:
        if self.ranks.first:
            checkpoints.save_weights(path, self.model, state)

    def load_weights(self, path: Path) -> None:
        if self.ranks.first:
            checkpoints.load_weights(path, self.model)
        if not self.alone:
            weights = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
            self.model.load_state_dict(self.ranks.told(weights))

    def train_epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """One epoch, whole or the last fraction of one; returns its line of `metrics.csv`, validation left out."""
        recipe = self.recipe
        steps = self.plan.steps(epoch)
        order = self.plan.order(epoch).to(self.feed.rows_on)
        augment = self.plan.augmentation(epoch, self.device)
        running = self._begin(epoch, steps)
        self.model.train()
        began = tick = time.perf_counter()
        before, checked = running.seconds, running.steps
        for step in range(running.steps, steps):
            self._set_rates(epoch, step)
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            fits = True
            try:
                self._step(rows, augment, running, (epoch * self.plan.steps_per_epoch + step) / self.plan.total_steps)
            except torch.OutOfMemoryError:
                if not self.alone:
                    raise TrainingError(self._part_too_large(rows)) from None
                fits = False  # looked into below, where the error does not hold the step's tensors any more
            if not fits:
                raise TrainingError(self._fitting_batch(augment))
            now = time.perf_counter()
            running.seconds = before + now - began
            due, asked = self.ranks.any(now - tick >= _TICK or step == steps - 1, self.stop.asked)
            if due or asked:
                losses = self.ranks.summed(running.figures[checked : step + 1, 0].clone())
                self._check_losses(losses, checked, epoch)
                tick, checked = now, step + 1
                reporter.step(epoch, step + 1, steps, float(losses[-1]))
            if asked:
                raise Stopped
        losses, nll, hits = self.ranks.summed(running.figures.clone()).cpu().unbind(1)
        return self.plan.row(
            epoch, loss=float(losses.mean()), nll=float(nll.sum()), hits=float(hits.sum()), seconds=running.seconds
        )

    def end_epoch(self) -> None:
        self._running = None

    def _begin(self, epoch: int, steps: int) -> _Epoch:
        """The epoch that is to run, or to run on after an interruption in its middle."""
        if self._running is None or self._running.number != epoch:
            self._running = _Epoch(epoch, torch.zeros(steps, 3, dtype=torch.float64, device=self.device))
        missing = steps - len(self._running.figures)  # a last fraction of an epoch may have become a whole one
        self._running.figures = F.pad(self._running.figures, (0, 0, 0, missing))
        return self._running

    def _set_rates(self, epoch: int, step: int) -> None:
        """Set the learning rates of a step."""
        lr = self.plan.learning_rate(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]

    def _step(self, rows: Tensor, augment: Augmentation, running: _Epoch, share: float) -> None:
        """One batch; nothing in it waits for a GPU."""
        figures = running.figures[running.steps]
        figures.zero_()  # of a step that did not come to its end
        mine = rows.tensor_split(self.ranks.count)[self.ranks.rank]
        # The last part, with which gradients are added up over the ranks, is the largest.
        parts = mine.tensor_split(self.plan.settings.accumulate)[::-1]
        for number, part in enumerate(parts, 1):
            with self._apart() if number < len(parts) else nullcontext():
                logits, loss, part = self.gradients(part, augment, share, self.network, len(rows))
            with torch.no_grad():
                nll = F.cross_entropy(logits.to(self.model.dtype), self.labels[part], reduction="sum")
                hits = (logits.argmax(1) == self.labels[part]).sum()
                figures += torch.stack([loss.double(), nll.double(), hits.double()])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not (self.alone or self.on_gpu):
            self._mix_statistics(len(mine) / len(rows))
        running.steps += 1

    def _apart(self) -> AbstractContextManager[None]:
        """Gradients stay on their rank."""
        return nullcontext() if self.alone else self.network.no_sync()  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def _mix_statistics(self, share: float) -> None:
        """Batch norm's running statistics, the mean over the ranks by their shares of the batch."""
        layers = [module for module in self.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        statistics = [x for layer in layers for x in (layer.running_mean, layer.running_var) if x is not None]
        if statistics:
            mixed = self.ranks.summed(torch.cat(statistics) * share)
            for one, value in zip(statistics, mixed.split([len(x) for x in statistics]), strict=True):
                one.copy_(value)

    def gradients(
        self, rows: Tensor, augment: Augmentation, share: float, network: torch.nn.Module, whole: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logits and the loss of a part of a batch, its gradients added to the parameters'.

        Args:
            rows: the part, ``int64[n]``.
            augment: of the epoch.
            share: of the steps that are done.
            network: the model, or what stands for it.
            whole: how many examples the batch has.

        Returns:
            Logits; the part's share of the batch's mean loss; and `rows` on the device.
        """
        pixels, rows = self.feed.batch(rows), rows.to(self.device, non_blocking=True)
        x = self.model.normalise(pixels)
        if len(rows):  # a rank may have none of a small last batch
            x = augment(x, rows)
            if share < self.recipe.small_share:
                x = smaller(x, self.recipe.small_scale)
        keys = self.plan.dropout_keys(augment.epoch, rows) if self.recipe.dropout else None
        # Batch norm on a CPU would make its statistics nan by a rank without rows; across GPUs it counts rows.
        aside = not len(rows) and not self.on_gpu
        if aside:
            self.model.eval()
        with self.model.autocast(self.precision):
            logits = network(x, keys)
        if aside:
            self.model.train()
        loss = self.loss(logits, rows, whole)
        loss.backward()
        return logits, loss.detach(), rows

    def _fitting_batch(self, augment: Augmentation) -> str:
        """What to say when the device's memory is too small: the largest halved batch, or part of one, that fits."""
        batch = self.recipe.batch_size
        size = part = -(-batch // self.plan.settings.accumulate)
        while size > 1:
            size //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if self.on_gpu:
                torch.cuda.empty_cache()
            try:
                self.gradients(torch.arange(size, device=self.feed.rows_on), augment, 1.0, self.model, size)
            except torch.OutOfMemoryError:
                continue
            what = f"a batch of {batch}" if part == batch else f"a batch of {batch} in parts of {part}"
            return (
                f"the memory of {self.device} is too small for {what}; {size} would fit: --batch-size {size}, or "
                f"--accumulate {-(-batch // size)} for the same batch in parts"
            )
        return f"the memory of {self.device} is too small for a single image; try --image-size or another --model"

    def _part_too_large(self, rows: Tensor) -> str:
        """What to say when the memory of one device of several is too small; the others wait for no trials."""
        settings = self.plan.settings
        part = -(-len(rows) // (settings.devices * settings.accumulate))
        return (
            f"rank {self.ranks.rank}: the memory of {self.device} is too small for its {part} of a batch of "
            f"{len(rows)}; try --accumulate {2 * settings.accumulate} for the same batch in smaller parts, "
            "or a smaller --batch-size"
        )

    def _check_losses(self, losses: Tensor, first: int, epoch: int) -> None:
        """Stop at a loss that is nan or inf; `first` is the step of the first of them."""
        wrong = ~losses.isfinite()
        if bool(wrong.any()):
            place = int(wrong.int().argmax())
            raise Diverged(
                f"the loss became {float(losses[place])} in epoch {epoch + 1}, step {first + place + 1}, "
                f"at learning rate {self.plan.learning_rate(epoch, first + place):g}"
            )

    def predict(self, split: Split) -> Predictions:
        """Logits and features of a split, in evaluation mode and without augmentation.

        Raises:
            Stopped: asked to stop. OutOfMemory: the device's memory is too small.
        """
        blocks = torch.arange(len(split)).split(_EVAL_BATCH)  # cut alike for any number of ranks
        first, last = (len(blocks) * rank // self.ranks.count for rank in (self.ranks.rank, self.ranks.rank + 1))
        mine = torch.cat([torch.arange(0), *blocks[first:last]])
        features = logits = np.empty((0, 0), np.float32)
        problem = None
        try:
            features, logits = self._predict(split if self.alone else split.take(mine.numpy()))
        except torch.OutOfMemoryError as error:
            problem = error
        full, stopped = self.ranks.any(problem is not None, self.stop.asked and len(logits) < len(mine))
        if full:
            raise OutOfMemory(
                f"the memory of {self.device} is too small to predict {_EVAL_BATCH} images at once; try --image-size"
            ) from problem
        if stopped:
            raise Stopped
        return Predictions(
            logits=self.ranks.gathered(logits),
            labels=split.labels,
            features=self.ranks.gathered(features),
            index=split.index,
            classes=self.plan.data.classes,
            templates=self.model.network.head.weight.detach().float().cpu().numpy().copy(),
        )

    @torch.inference_mode()
    def _predict(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Features and logits here, of as many images as there were before somebody asked to stop."""
        self.model.eval()
        feed, (classes, width) = Feed(split, self.device), self.model.network.head.weight.shape
        features, logits = [np.empty((0, width), np.float32)], [np.empty((0, classes), np.float32)]
        for rows in torch.arange(len(split), device=feed.rows_on).split(_EVAL_BATCH):
            if self.stop.asked:
                break
            with self.model.autocast(self.precision):
                f, z = self.model.features_and_logits(self.model.normalise(feed.batch(rows)))
            features.append(f.float().cpu().numpy())
            logits.append(z.float().cpu().numpy())
        return np.concatenate(features), np.concatenate(logits)

    def estimate(self) -> float:
        """The seconds of the whole training, from a few steps and some predictions; the weights change."""
        recipe, data = self.recipe, self.plan.data
        order, augment = torch.arange(len(data.train)), self.plan.augmentation(0, self.device)
        self.model.train()
        total = 0.0
        for share, part in ((0.0, recipe.small_share), (1.0, 1 - recipe.small_share)):
            if part == 0:
                continue
            began = 0.0
            for step in range(_TIMED_STEPS + 1):
                if step == 1:  # the first prepares
                    if self.on_gpu:
                        torch.cuda.synchronize(self.device)
                    began = time.perf_counter()
                rows = order[: recipe.batch_size].to(self.feed.rows_on)
                for some in rows.tensor_split(self.plan.settings.accumulate):
                    self.gradients(some, augment, share, self.network, len(rows))
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            if self.on_gpu:
                torch.cuda.synchronize(self.device)
            total += (time.perf_counter() - began) / _TIMED_STEPS * self.plan.total_steps * part
        held_out = data.test.take(order[: min(_TIMED_IMAGES, len(data.test))].numpy())
        began = time.perf_counter()
        self.predict(held_out)
        each = (time.perf_counter() - began) / len(held_out)
        return total + each * (len(data.val) * self.plan.epochs + 2 * len(data.test))


def _summed(state, bucket):  # PyTorch takes no annotation that is a string
    """Gradients of ranks added up, where DistributedDataParallel takes their mean: each is of its share of a batch."""
    done = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()  # pyright: ignore[reportOptionalMemberAccess]
    return done.then(lambda future: future.value()[0])
