"""A case run by each framework: its loss and the gradient of the loss's sum, each with the dtype that it came in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.contract.cases import Case


@dataclass(frozen=True)
class Outcome:
    """Float64 values, and the names of the dtypes that the framework gave."""

    loss: np.ndarray
    gradient: np.ndarray
    loss_dtype: str
    gradient_dtype: str


def numpy(case: Case) -> Outcome:
    from labelsmooth import losses

    settings = case.settings | case.arrays
    loss, gradient = losses.cross_entropy_and_grad(case.logits, case.target, axis=case.axis, **settings)
    assert np.array_equal(losses.cross_entropy(case.logits, case.target, axis=case.axis, **settings), loss)
    return Outcome(np.asarray(loss), gradient, "float64", "float64")


def to_torch(x: np.ndarray) -> Any:
    import torch

    return torch.tensor(x.astype(np.float32)).bfloat16() if x.dtype.name == "bfloat16" else torch.tensor(x)


def torch(case: Case, transform: Callable[[Any], Any] = lambda function: function) -> Outcome:
    """The class axis is 1, or 0 of one row: PyTorch's layout, and that of every case."""
    import torch

    from labelsmooth.torch import cross_entropy

    logits = to_torch(case.logits).requires_grad_()
    arrays = {name: to_torch(x) for name, x in case.arrays.items()}
    loss = transform(cross_entropy)(logits, to_torch(case.target), **arrays, **case.settings)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    dtypes = (str(x.dtype).removeprefix("torch.") for x in (loss, gradient))
    return Outcome(loss.detach().double().numpy(), gradient.double().numpy(), *dtypes)


def jax(case: Case, transform: Callable[[Any], Any] = lambda function: function) -> Outcome:
    import jax

    from labelsmooth.jax import cross_entropy

    with jax.enable_x64(case.dtype == "float64"):
        logits, target = jax.numpy.asarray(case.logits), jax.numpy.asarray(case.target)
        arrays = {name: jax.numpy.asarray(x) for name, x in case.arrays.items()}

        def total(logits: Any, target: Any, arrays: Any) -> Any:
            loss = cross_entropy(logits, target, axis=case.axis, **arrays, **case.settings)
            return loss.sum(), loss

        value_and_grad = transform(jax.value_and_grad(total, has_aux=True))
        (_, loss), gradient = value_and_grad(logits, target, arrays)
        values = (np.asarray(x).astype(np.float64) for x in (loss, gradient))
        return Outcome(*values, loss.dtype.name, gradient.dtype.name)
