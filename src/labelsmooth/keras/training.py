"""Training with Keras: `model.fit`, an epoch at a time, on whichever backend Keras was imported with.

The order of the batches, their augmentation and the initial weights are those of the PyTorch engine, for the same seed.
What differs: Keras' SGD has the learning rate inside the momentum (PyTorch's has it outside; the same while the rate
stays), its batch norm remembers the biased variance, and dropout draws otherwise.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch

from labelsmooth._errors import DataError, TrainingError
from labelsmooth.evaluation import Predictions
from labelsmooth.keras import models
from labelsmooth.keras.losses import SmoothedCrossentropy
from labelsmooth.keras.metrics import NLL
from labelsmooth.targets import smooth_labels
from labelsmooth.training import checkpoints
from labelsmooth.training.data import Split
from labelsmooth.training.loop import Diverged, OutOfMemory, Reporter, Stopped
from labelsmooth.training.plan import Plan, initial_model
from labelsmooth.training.signals import StopRequest

_EVAL_BATCH = 100
_TICK = 0.5  # seconds between looks at the running loss
_MOMENTUM = "momentum"


@dataclass
class _Epoch:
    """How far the running epoch is.

    Attributes:
        number: which it is, from 0.
        sums: of the smoothed loss, the NLL and hits over the examples seen, float64 ``[3]``.
        steps: how many are done.
        seconds: how long they took.
    """

    number: int
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    steps: int = 0
    seconds: float = 0.0


class KerasEngine:
    """A Keras model and its optimiser: see `labelsmooth.training.loop.Engine`.

    Attributes:
        plan: what to do.
        stop: when asked to, it stops between two steps.
        model: the network, from normalised images to logits.
    """

    def __init__(self, plan: Plan, stop: StopRequest) -> None:
        recipe, data = plan.recipe, plan.data
        self.plan, self.stop = plan, stop
        self.backend: str = keras.backend.backend()
        why = "as asked" if recipe.precision == "float32" else "what Keras computes in"
        self.precision_reason = f"float32 ({why})"
        self._running: _Epoch | None = None
        # PyTorch's model: where the weights begin, the normalisation, and the checkpoints' names and layout.
        self.twin = initial_model(plan)
        self.model = models.build(
            recipe.model,
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            dropout=recipe.dropout,
            weight_decay=recipe.weight_decay,
        )
        self._take_weights()
        logits = self.model.output
        # Hard labels stand beside smoothed targets: the NLL and hits are of these.
        self.fitted: Any = keras.Model(self.model.input, {"smoothed": logits, "hard": logits})
        self.both = keras.Model(self.model.input, [self.model.get_layer("features").output, logits])
        rate: Any = recipe.lr if recipe.schedule_every == "epoch" else _ByStep(plan)
        self.optimizer: Any = keras.optimizers.SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
        self.optimizer.build(self.fitted.trainable_variables)
        self.targets = None
        if recipe.method == "labels":
            self.targets = smooth_labels(
                np.arange(data.num_classes), recipe.smoothing, num_classes=data.num_classes, prior=plan.prior,
                dtype=np.float32,
            )  # fmt: skip
        self.fitted.compile(
            self.optimizer,
            loss={"smoothed": self.loss()},
            # fit's own "loss" has the penalty of weight decay in it.
            metrics={
                "smoothed": [keras.metrics.MeanMetricWrapper(self.loss(reduction="none"), name="loss")],
                "hard": [NLL(from_logits=True, name="nll"), keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            },
        )

    def loss(self, reduction: str = "sum_over_batch_size") -> keras.losses.Loss:
        """The loss of the recipe's method: of smoothed targets, or one that smooths."""
        if self.plan.recipe.method == "labels":
            return keras.losses.CategoricalCrossentropy(from_logits=True, reduction=reduction)
        prior = None if self.plan.recipe.prior == "uniform" else self.plan.prior
        return SmoothedCrossentropy(
            from_logits=True, label_smoothing=self.plan.recipe.smoothing, prior=prior, reduction=reduction
        )

    @property
    def device(self) -> str:
        if self.backend == "torch":
            return str(self.optimizer.iterations.value.device)
        return keras.distribution.list_devices()[0]

    @property
    def versions(self) -> dict[str, str]:
        return {"keras": keras.__version__, self.backend: sys.modules[self.backend].__version__}

    @property
    def parameters(self) -> int:
        return sum(math.prod(variable.shape) for variable in self.model.trainable_variables)

    @property
    def begun(self) -> tuple[int, float]:
        """The steps that are done of an epoch that is not, and the seconds that they took."""
        return (0, 0.0) if self._running is None else (self._running.steps, self._running.seconds)

    def global_state(self) -> AbstractContextManager[None]:
        """Nothing global is touched: every layer that draws has a generator of its own."""
        return nullcontext()

    def train_epoch(self, epoch: int, reporter: Reporter) -> dict[str, Any]:
        """One epoch, whole or the last fraction of one; returns its line of `metrics.csv`, validation left out."""
        steps = self.plan.steps(epoch)
        if self._running is None or self._running.number != epoch:
            self._running = _Epoch(epoch)
        running = self._running
        if running.steps < steps:
            self._seed_dropout(epoch, running.steps)
            watch = _Watch(running, steps, reporter, self.stop)
            callbacks: list[keras.callbacks.Callback] = [watch]
            if self.plan.recipe.schedule_every == "epoch":
                callbacks.append(keras.callbacks.LearningRateScheduler(self.plan.schedule))
            batches = _Batches(self, epoch, running.steps)
            try:
                self.fitted.fit(
                    batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, callbacks=callbacks, verbose=0
                )
            except Exception as error:
                if _is_out_of_memory(error):
                    raise TrainingError(
                        f"the memory of {self.device} is too small for a batch of {self.plan.recipe.batch_size}; "
                        "try a lower --batch-size, or --image-size"
                    ) from error
                raise
            self._add(running, watch)
            if not np.isfinite(running.sums[0]):
                lr = self.plan.learning_rate(epoch, running.steps - 1)
                raise Diverged(
                    f"the loss became {running.sums[0]} in epoch {epoch + 1}, by step {running.steps}, "
                    f"at learning rate {lr:g}"
                )
            if self.stop.asked:
                raise Stopped
        seen = min(steps * self.plan.recipe.batch_size, len(self.plan.data.train))
        loss, total, hits = (float(value) for value in running.sums)
        return self.plan.row(epoch, loss=loss / seen, nll=total, hits=hits, seconds=running.seconds)

    def _add(self, running: _Epoch, watch: _Watch) -> None:
        """The figures of a fit, which are means over the examples that it saw."""
        size, examples = self.plan.recipe.batch_size, len(self.plan.data.train)
        seen = min((running.steps + watch.steps) * size, examples) - running.steps * size
        means = [watch.logs[name] for name in ("smoothed_loss", "hard_nll", "hard_accuracy")]
        running.sums = running.sums + np.array(means, np.float64) * seen
        running.steps += watch.steps

    def _seed_dropout(self, epoch: int, step: int) -> None:
        """A function of seed, epoch and step: a generator counts its draws, one a step."""
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Dropout) and layer.rate:
                layer.seed_generator.state.assign([self.plan.seed("dropout", epoch) % 2**31, step])

    def end_epoch(self) -> None:
        self._running = None

    def predict(self, split: Split) -> Predictions:
        """Logits and features of a split, in evaluation mode and without augmentation.

        Raises:
            Stopped: asked to stop. OutOfMemory: the device's memory is too small.
        """
        logits, features = [], []
        for start in range(0, len(split), _EVAL_BATCH):
            if self.stop.asked:
                raise Stopped
            pixels = split.pixels(slice(start, start + _EVAL_BATCH))
            count = len(pixels)
            pixels = np.pad(pixels, [(0, _EVAL_BATCH - count), (0, 0), (0, 0), (0, 0)])  # one shape: compiled once
            images = _channels_last(self.twin.normalise(_channels_first(pixels)))
            try:
                f, z = self.both.predict_on_batch(images)
            except Exception as error:
                if _is_out_of_memory(error):
                    raise OutOfMemory(
                        f"the memory of {self.device} is too small to predict {_EVAL_BATCH} images at once; "
                        "try --image-size"
                    ) from error
                raise
            features.append(np.asarray(f, np.float32)[:count])
            logits.append(np.asarray(z, np.float32)[:count])
        return Predictions(
            logits=np.concatenate(logits),
            labels=split.labels,
            features=np.concatenate(features),
            index=split.index,
            classes=self.plan.data.classes,
            templates=models.to_torch(self.model.get_layer("head").kernel),
        )

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """`last.safetensors`: all that going on needs, in the middle of an epoch too."""
        self._give_weights()
        tensors = {}
        if self._running is not None:
            state = {**state, "running": {"steps": self._running.steps, "seconds": self._running.seconds}}
            tensors = {"sums": torch.from_numpy(self._running.sums)}
        momentum = {f"{name}/{_MOMENTUM}": torch.from_numpy(models.to_torch(m)) for name, m in self._momentum().items()}
        checkpoints.save_training(folder, self.twin, momentum, state, tensors)

    def restore(self, path: Path) -> dict[str, Any]:
        """Go to where a checkpoint was made; returns the state that was saved with it.

        Raises:
            DataError: it is missing or damaged, or belongs to another model.
        """
        state, optimizer, tensors = checkpoints.load_training(path, self.twin)
        self._take_weights()
        for name, momentum in self._momentum().items():
            if f"{name}/{_MOMENTUM}" not in optimizer:
                raise DataError(f"the checkpoint {path} was not made with Keras (it has no momentum of {name})")
            momentum.assign(models.to_keras(optimizer[f"{name}/{_MOMENTUM}"].numpy()))
        if "running" in state:
            self._running = _Epoch(len(state["rows"]), tensors["sums"].numpy(), **state["running"])
        done = min(len(state["rows"]) * self.plan.steps_per_epoch, self.plan.total_steps) + self.begun[0]
        self.optimizer.iterations.assign(done)
        return state

    def save_weights(self, path: Path, state: dict[str, Any]) -> None:
        self._give_weights()
        checkpoints.save_weights(path, self.twin, state)

    def load_weights(self, path: Path) -> None:
        checkpoints.load_weights(path, self.twin)
        self._take_weights()

    def estimate(self) -> None:
        """Not known: a backend that compiles takes its time for the first step, and it is not that of the others."""

    def _momentum(self) -> dict[str, Any]:
        """By PyTorch's names of the weights; empty where there is no momentum."""
        of = dict(zip((id(each) for each in self.fitted.trainable_variables), self.optimizer.momentums, strict=False))
        names = models.torch_names(self.model)
        return {f"network.{name}": of[id(variable)] for name, variable in names.items() if id(variable) in of}

    def _take_weights(self) -> None:
        models.set_torch_weights(self.model, self.twin.network.state_dict())

    def _give_weights(self) -> None:
        weights = {name: torch.from_numpy(array) for name, array in models.get_torch_weights(self.model).items()}
        self.twin.network.load_state_dict(weights, strict=False)  # it has no count of batches


class _Batches(keras.utils.PyDataset):
    """The batches of an epoch, from one of its steps on: images, and labels smoothed or hard."""

    def __init__(self, engine: KerasEngine, epoch: int, first: int) -> None:
        super().__init__()
        plan = engine.plan
        self.plan, self.twin, self.targets, self.first = plan, engine.twin, engine.targets, first
        self.count = plan.steps(epoch) - first
        self.order, self.augment = plan.order(epoch), plan.augmentation(epoch, torch.device("cpu"))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        size, step = self.plan.recipe.batch_size, self.first + index
        rows = self.order[step * size : (step + 1) * size]
        train = self.plan.data.train
        images = self.augment(self.twin.normalise(_channels_first(train.pixels(rows.numpy()))), rows)
        labels = train.labels[rows.numpy()]
        return _channels_last(images), {
            "smoothed": labels if self.targets is None else self.targets[labels],
            "hard": labels,
        }


class _Watch(keras.callbacks.Callback):
    """Tells of the steps of an epoch, and ends it when somebody asks for that, or when its loss is not finite."""

    def __init__(self, running: _Epoch, steps: int, reporter: Reporter, stop: StopRequest) -> None:
        super().__init__()
        self.running, self.epoch_steps, self.reporter, self.stop = running, steps, reporter, stop
        self.steps, self.logs = 0, {}
        self.before, self.began = running.seconds, time.perf_counter()
        self.tick = self.began

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.steps = batch + 1
        now, done = time.perf_counter(), self.running.steps + self.steps
        self.running.seconds = self.before + now - self.began
        if now - self.tick >= _TICK or done == self.epoch_steps or self.stop.asked:
            self.tick = now
            mean: Any = keras.ops.convert_to_numpy((logs or {})["smoothed_loss"])  # of the steps so far
            loss = float(mean)
            self.reporter.step(self.running.number, done, self.epoch_steps, loss)
            if self.stop.asked or not math.isfinite(loss):
                assert self.model is not None
                self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.logs = {name: float(value) for name, value in (logs or {}).items()}


class _ByStep(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step, as a table: backends that compile cannot call a schedule of Python's."""

    def __init__(self, plan: Plan) -> None:
        per = plan.steps_per_epoch
        self.rates = np.array(
            [plan.learning_rate(step // per, step % per) for step in range(plan.total_steps)], np.float32
        )

    def __call__(self, step: Any) -> Any:
        last = len(self.rates) - 1
        return keras.ops.take(self.rates, keras.ops.minimum(keras.ops.cast(step, "int32"), last))

    def get_config(self) -> dict[str, Any]:
        return {"rates": self.rates.tolist()}


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    """``[N, H, W, C]`` as PyTorch takes images, ``[N, C, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def _channels_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _is_out_of_memory(error: Exception) -> bool:
    """By name and text: TensorFlow's ResourceExhaustedError, JAX' RESOURCE_EXHAUSTED, PyTorch's OutOfMemoryError."""
    return type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError") or "RESOURCE_EXHAUSTED" in str(error)
