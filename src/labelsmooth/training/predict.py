"""Predicting image files with a finished run, at the preprocessing that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from labelsmooth import _checks
from labelsmooth._errors import DataError
from labelsmooth._text import printable
from labelsmooth.training import checkpoints, models
from labelsmooth.training.devices import choose_device, choose_precision, storage_dtype
from labelsmooth.training.images import decode, resize
from labelsmooth.training.run import RunFolder

_BATCH = 64


class Predictor:
    """A trained classifier for image files.

    Args:
        run: the run's folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Attributes:
        classes: the class names.

    Raises:
        DataError: it is no run, or has no checkpoint yet.
    """

    def __init__(self, run: str | Path, device: str = "auto") -> None:
        folder = RunFolder.open(run)
        recipe = folder.read_settings().recipe
        described = folder.read_json("data.json")
        self.classes: tuple[str, ...] = tuple(described["classes"])
        height, width, channels = described["image_shape"]
        self.size, self.channels = (int(height), int(width)), int(channels)
        self.device = choose_device(device)
        self.precision, _ = choose_precision(recipe.precision, self.device)
        network = models.build(
            recipe.model, image_shape=(height, width, channels), num_classes=len(self.classes), dropout=recipe.dropout
        )
        self.model = models.Classifier(network, (height, width, channels))
        checkpoints.load_weights(checkpoints.chosen(folder), self.model)
        self.model.to(self.device, storage_dtype(self.precision)).eval()

    def probabilities(self, files: Iterable[str | Path]) -> Iterator[tuple[str | Path, np.ndarray | DataError]]:
        """For each file its class probabilities, float64 ``[K]``, or the error that it gives."""
        if isinstance(files, str | bytes):  # whose letters would be taken for files
            raise _checks.error("files", "be a list of files", repr(files))
        batch: list[tuple[str | Path, np.ndarray | DataError]] = []
        for file in files:
            try:
                image = decode(str(file), printable(str(file)), channels=self.channels)
                batch.append((file, resize(image, self.size)))
            except DataError as error:
                batch.append((file, error))
            if len(batch) == _BATCH:
                yield from self._predict(batch)
                batch = []
        yield from self._predict(batch)

    @torch.inference_mode()
    def _predict(
        self, batch: list[tuple[str | Path, np.ndarray | DataError]]
    ) -> Iterator[tuple[str | Path, np.ndarray | DataError]]:
        images = [item for _, item in batch if isinstance(item, np.ndarray)]
        rows: Iterator[np.ndarray] = iter(())
        if images:
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device)
            with self.model.autocast(self.precision):
                logits = self.model(self.model.normalise(pixels))
            rows = iter(torch.softmax(logits.double(), dim=1).cpu().numpy())
        for file, item in batch:
            yield file, item if isinstance(item, DataError) else next(rows)
