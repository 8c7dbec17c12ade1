"""What a training is going to do, the same in any framework: its steps, its rates, and all that is drawn for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelsmooth import _checks, priors
from labelsmooth.training import dropout, models
from labelsmooth.training.augmentation import Augmentation
from labelsmooth.training.data import ImageData
from labelsmooth.training.run import Settings


class Plan:
    """A recipe for some data.

    Attributes:
        settings: what the training was told.
        data: the images.
        recipe: that of the settings.
        steps_per_epoch: batches of a whole epoch.
        total_steps: of all epochs, a fraction at the end included.
        prior: u, float64 ``[K]``.
        floor: the least that the smoothed training loss can be.

    Raises:
        ValueError: there are fewer training examples than a batch, or fewer examples in a batch than parts.
    """

    def __init__(self, settings: Settings, data: ImageData) -> None:
        self.settings, self.data, self.recipe = settings, data, settings.recipe
        parts = settings.accumulate * settings.devices
        if self.recipe.batch_size < parts:
            rule = f"be at least {parts}: accumulate {settings.accumulate} times devices {settings.devices}"
            raise _checks.error("batch_size", rule, self.recipe.batch_size)
        self.steps_per_epoch = self.recipe.steps_per_epoch(len(data.train))
        self.total_steps = max(1, round(self.recipe.epochs * self.steps_per_epoch))
        self.schedule = self.recipe.make_schedule()
        self.prior = priors.uniform(data.num_classes)
        if self.recipe.prior == "class_frequency":
            self.prior = priors.class_frequency(data.train.labels, data.num_classes)
        self.floor = entropy_floor(data.train.labels, self.recipe.smoothing, self.prior)

    @property
    def epochs(self) -> int:
        """How many epochs there are, a fraction at the end counted as one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps(self, epoch: int) -> int:
        """The batches of one epoch, fewer in a last fraction of one."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

    def learning_rate(self, epoch: int, step: int) -> float:
        fraction = step / self.steps_per_epoch if self.recipe.schedule_every == "step" else 0.0
        return self.schedule(epoch + fraction)

    def seed(self, purpose: str, *position: int) -> int:
        """A seed of its own for each purpose and epoch, so that none depends on how often another was drawn from."""
        words = np.random.SeedSequence([self.settings.seed, *purpose.encode(), *position]).generate_state(2)
        return int(words[0]) << 31 ^ int(words[1])

    def order(self, epoch: int) -> Tensor:
        """The training examples in the order of an epoch, ``int64[N]``."""
        return torch.randperm(len(self.data.train), generator=self._draws("order", epoch))

    def augmentation(self, epoch: int, device: torch.device) -> Augmentation:
        draws, first_flips = self._draws("augmentation", epoch), self._draws("flip")
        return Augmentation(self.recipe, len(self.data.train), epoch, draws, first_flips, device)

    def dropout_keys(self, epoch: int, rows: Tensor) -> Tensor:
        """What `labelsmooth.training.dropout.Dropout` draws by, for some rows of the training split."""
        return dropout.keys(self.seed("dropout", epoch), rows)

    def _draws(self, purpose: str, *position: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed(purpose, *position))

    def row(self, epoch: int, *, loss: float, nll: float, hits: float, seconds: float) -> dict[str, Any]:
        """The line of `metrics.csv` of an epoch, its validation left out.

        Args:
            epoch: from 0.
            loss: the mean smoothed loss.
            nll: the sum of the NLL over the examples seen.
            hits: how many of them were classified correctly.
            seconds: the training alone.
        """
        steps = self.steps(epoch)
        seen = min(steps * self.recipe.batch_size, len(self.data.train))
        return {
            "epoch": epoch + 1,
            "lr": self.learning_rate(epoch, steps - 1),
            "smoothing": self.recipe.smoothing,
            "train_loss_smoothed": loss,
            "train_loss_floor": self.floor,
            "train_nll": nll / seen,
            "train_accuracy": hits / seen,
            "val_nll": None,
            "val_accuracy": None,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }


def initial_model(plan: Plan, *, fitted: bool = True) -> models.Classifier:
    """The recipe's network behind its input's normalisation, with the weights that the seed gives.

    Args:
        plan: of the training.
        fitted: whether it has looked at the training images; if not, another process's model takes its place.
    """
    recipe, data = plan.recipe, plan.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed("weights"))
        network = models.build(
            recipe.model, image_shape=data.image_shape, num_classes=data.num_classes, dropout=recipe.dropout
        )
        model = models.Classifier(network, data.image_shape)
        if fitted:
            model.fit_to(data.train)
    return model


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
