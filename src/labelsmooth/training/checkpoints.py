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
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    running: dict[str, Tensor],
) -> None:
    """`last.safetensors`, with the optimiser's state and the tensors of the running epoch, if one was begun.

    The one before becomes `previous.safetensors`.
    """
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = _tensors(model)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMISER}{names[parameter]}/{key}"] = value.detach().cpu().contiguous()
    tensors |= {_RUNNING + name: value.detach().cpu().contiguous() for name, value in running.items()}
    last = folder / "last.safetensors"
    with _files.replacing(last, keep=folder / "previous.safetensors") as temporary:
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


def load_training(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put weights and optimiser state of a checkpoint into `model` and `optimizer`.

    Returns:
        The state that was saved with them, and the tensors of the epoch that was running.

    Raises:
        DataError: as `load_weights`.
    """
    tensors, state = _read(path)
    _put_weights(path, model, tensors)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMISER):
            parameter, _, key = name.removeprefix(_OPTIMISER).rpartition("/")
            value = parameters[parameter]
            target = torch.empty_like(value) if tensor.shape == value.shape else torch.empty_like(tensor)
            optimizer.state[value][key] = target.copy_(tensor)
    running = {key.removeprefix(_RUNNING): tensor for key, tensor in tensors.items() if key.startswith(_RUNNING)}
    return state, running


def _put_weights(path: Path, model: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    weights = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{path} belongs to another model ({str(error).splitlines()[-1].strip()})") from None


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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = json.loads(metadata["labelsmooth"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, metadata["labelsmooth"]) != metadata["sha256"]:
            raise ValueError("its values do not have the checksum that they had")
    except FileNotFoundError:
        raise DataError(f"there is no checkpoint {path}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"the checkpoint {path} is damaged ({error})") from None
    return tensors, state
