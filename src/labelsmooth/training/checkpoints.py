"""Checkpoints: safetensors files of weights, and of all that a training needs to go on bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.training.run import RunFolder

# Before the names of the optimiser's tensors, and of those of the running epoch; a weight's name has no slash.
_OPTIMISER = "optimizer/"
_RUNNING = "running/"


def save_weights(path: Path, model: torch.nn.Module, state: dict[str, Any]) -> None:
    """The model's weights alone, and `state` as JSON."""
    with _files.replacing(path) as temporary:
        temporary.write_bytes(_serialised(_tensors(model), state))


def save_training(
    folder: Path,
    model: torch.nn.Module,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    running: dict[str, Tensor],
) -> None:
    """`last.safetensors`; the one before becomes `previous.safetensors`.

    Args:
        folder: where.
        model: its weights are saved.
        optimizer: its state, by PARAMETER/NAME.
        state: saved as JSON.
        running: of the running epoch, if one was begun.
    """
    tensors = _tensors(model)
    for prefix, others in ((_OPTIMISER, optimizer), (_RUNNING, running)):
        tensors |= {prefix + name: value.detach().cpu().contiguous() for name, value in others.items()}
    with _files.replacing(folder / "last.safetensors", keep=folder / "previous.safetensors") as temporary:
        temporary.write_bytes(_serialised(tensors, state))


def load_weights(path: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Put the weights of a checkpoint into `model`.

    Returns:
        The state that was saved with them.

    Raises:
        DataError: the file is missing or damaged, or belongs to another model.
    """
    tensors, state = _read(path)
    _put_weights(path, model, tensors)
    return state


def load_state(path: Path) -> dict[str, Any]:
    """The state that was saved with a checkpoint.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(path)[1]


def load_training(path: Path, model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Put the weights of a checkpoint into `model`.

    Returns:
        The state that was saved with them, that of the optimiser, and the tensors of the epoch that was running.

    Raises:
        DataError: as `load_weights`.
    """
    tensors, state = _read(path)
    _put_weights(path, model, tensors)
    optimizer, running = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (_OPTIMISER, _RUNNING)
    )
    return state, optimizer, running


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, by their names in `labelsmooth.training.models.Classifier`.

    Raises:
        DataError: the file is missing or damaged.
    """
    return {name: tensor for name, tensor in _read(path)[0].items() if "/" not in name}


def chosen(folder: RunFolder) -> Path:
    """The checkpoint that a run is to be used by: the best one, else the last.

    Raises:
        DataError: there is none yet; or the one that the run's figures are of is gone.
    """
    run, best, last = folder.path, *(folder.checkpoints / f"{name}.safetensors" for name in ("best", "last"))
    if best.is_file():
        return best
    if folder.tested_checkpoint == "best":
        raise DataError(f"{best} is missing, which the figures of {run} are of; train again, or put it back")
    if last.is_file():
        return last
    raise DataError(f"{run} has no checkpoint yet; finish it with labelsmooth train --resume {run}")


def _put_weights(path: Path, model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    weights, here = {name: tensor for name, tensor in tensors.items() if "/" not in name}, model.state_dict()
    for name in dict.fromkeys([*here, *weights]):
        theirs, ours = (list(x[name].shape) if name in x else "none" for x in (weights, here))
        if theirs != ours:
            raise DataError(f"{path} belongs to another model ({name}: {theirs} there, {ours} here)")
    model.load_state_dict(weights)


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _serialised(tensors: dict[str, Tensor], state: dict[str, Any]) -> bytes:
    """Bytes, which Python writes: safetensors' own writer hides the errno of a full disk."""
    text = json.dumps(state)
    return save(tensors, metadata={"labelsmooth": text, "sha256": _digest(tensors, text)})


def _digest(tensors: dict[str, Tensor], state: str) -> str:
    """Of the state, names and values, so that damage in the middle of a file is found."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _files.reading(f"the checkpoint {path}", "is damaged ({})", (SafetensorError, OSError, KeyError, ValueError)):
        if not path.exists():
            raise DataError(f"there is no checkpoint {path}")
        path.open("rb").close()  # what must not be opened is, to safe_open, not there
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = json.loads(metadata["labelsmooth"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, metadata["labelsmooth"]) != metadata["sha256"]:
            raise ValueError("its values do not have the checksum that they had")
    return tensors, state
