"""The optimisers of the recipes. A group of parameters has a `scale`: its learning rate, as a share of the recipe's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from labelsmooth.training.models import Classifier
from labelsmooth.training.recipes import Recipe


def make(model: Classifier, recipe: Recipe, precision: torch.dtype) -> torch.optim.Optimizer:
    """The recipe's optimiser for the parameters that learn.

    Weight decay is on kernels, not on biases and batch norm. `precision` is what the training computes in.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "muon":
        kernels = [parameter for parameter in learning if parameter.ndim == 4]
        others = [parameter for parameter in learning if parameter.ndim != 4]
        return Muon(
            kernels, others, lr=recipe.lr, momentum=recipe.momentum, other_lr=recipe.other_lr, precision=precision
        )
    kernels = [parameter for parameter in learning if parameter.ndim > 1]
    others = [parameter for parameter in learning if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": recipe.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def state_tensors(model: Classifier, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state for a checkpoint, by PARAMETER/NAME."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def put_state(model: Classifier, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The state that a checkpoint holds, in the memory format of the parameters."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        value = parameters[parameter]
        target = torch.empty_like(value) if tensor.shape == value.shape else torch.empty_like(tensor)
        optimizer.state[value][key] = target.copy_(tensor)


class Muon(torch.optim.Optimizer):
    """Muon for convolutions that a batch norm follows, and Adam for everything else.

    A kernel, as a matrix of outputs by inputs, moves along its Nesterov momentum with all singular values made about
    equal, and is put back to a norm of sqrt(outputs) before every step: its scale does not matter behind a batch norm.

    Args:
        kernels: 4-dimensional parameters.
        others: all others.
        lr: of the kernels.
        momentum: of the kernels, in [0, 1).
        other_lr: of the others.
        precision: in which the singular values are made equal.

    References:
        Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; Kingma and Ba 2015, arXiv
        1412.6980.
    """

    betas = (0.85, 0.95)
    eps = 1e-8

    def __init__(
        self, kernels: Sequence[Tensor], others: Sequence[Tensor], *, lr: float, momentum: float, other_lr: float,
        precision: torch.dtype,
    ) -> None:  # fmt: skip
        groups = [
            {"params": kernels, "muon": True, "scale": 1.0},
            {"params": others, "muon": False, "scale": other_lr / lr},
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            update = self._step_kernel if group["muon"] else self._step_other
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)

    def _step_kernel(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(state["momentum"], alpha=group["momentum"])
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
        kernel.sub_(orthogonalised(direction.flatten(1), self.precision).view_as(kernel), alpha=group["lr"])

    def _step_other(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = self.betas
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        steps = float(state["step"])
        size = (state["square"] / (1 - second**steps)).sqrt_().add_(self.eps)
        parameter.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - first**steps))


def orthogonalised(matrix: Tensor, precision: torch.dtype, steps: int = 3) -> Tensor:
    """`matrix` with its singular values brought near 1, by Newton and Schulz's iteration.

    The polynomial is steep at 0 and does not converge to 1; singular values end between about 0.5 and 1.5.

    Args:
        matrix: ``[M, N]``.
        precision: in which it is computed. bfloat16 is precise enough, and slow where a processor has to emulate it.
        steps: how often the polynomial is applied.

    Returns:
        A matrix of the same shape and dtype.
    """
    x = matrix.to(precision)
    x = x / (x.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
