"""The module form of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from labelsmooth import _checks
from labelsmooth.torch.functions import as_tensor, cross_entropy


class CrossEntropyLoss(torch.nn.Module):
    """Cross-entropy with label smoothing, a drop-in for `torch.nn.CrossEntropyLoss`.

    The arguments are those of `labelsmooth.torch.cross_entropy`. `weight`, `prior`, `class_prior` and `class_mask`
    become buffers: they move with the module, and `weight` has PyTorch's name in the state dict. What differs from
    one call to the next (`mask`, `normalizer`, a `prior` or `class_mask` per example) is given to the call.

    Args:
        weight: class weights, shape ``[K]``.
        size_average: deprecated, as in PyTorch; use `reduction`.
        ignore_index: rows with this class id are not kept.
        reduce: deprecated, as in PyTorch; use `reduction`.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        label_smoothing: ε, in [0, 1).
        prior: u, shape ``[K]``; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y.
        class_mask: bool, ``[K]``; True = kept.
        weight_mode: ``"class"`` or ``"example"``.
        validate: check values; None: where that waits for no device.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import torch
        >>> from labelsmooth.torch import CrossEntropyLoss
        >>> loss = CrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        tensor(0.3729)
    """

    weight: Tensor | None
    prior: Tensor | None
    class_prior: Tensor | None
    class_mask: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        prior: Tensor | None = None,
        class_prior: Tensor | None = None,
        class_mask: Tensor | None = None,
        weight_mode: str = "class",
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = legacy_get_string(size_average, reduce)
        _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
        _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
        _checks.one_prior(prior, class_prior)
        vectors = {"weight": weight, "prior": prior, "class_prior": class_prior, "class_mask": class_mask}
        for name, x in vectors.items():
            self.register_buffer(name, None if x is None else as_tensor(x, name))
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = _checks.smoothing(label_smoothing, "label_smoothing")
        self.weight_mode = weight_mode
        self.validate = validate

    def _apply(self, fn: Any, recurse: bool = True) -> CrossEntropyLoss:
        """Move, or convert; a prior that comes back from a narrower dtype sums to 1 in the wider one again."""
        given = {name: getattr(self, name) for name in ("prior", "class_prior")}
        super()._apply(fn, recurse)
        for name, before in given.items():
            now = getattr(self, name)
            if now is None or now.element_size() <= before.element_size():
                continue
            sums = now.sum(-1, keepdim=True)
            if not now.is_meta and bool(((sums - 1).abs() <= _checks.tolerance(before.dtype)).all()):
                setattr(self, name, now / sums)
        return self

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        prior: Tensor | None = None,
        mask: Tensor | None = None,
        class_mask: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of `input` and `target`; `prior` and `class_mask` replace the module's own for this call."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            prior=self.prior if prior is None else prior,
            class_prior=self.class_prior if prior is None else None,
            mask=mask,
            class_mask=self.class_mask if class_mask is None else class_mask,
            weight_mode=self.weight_mode,
            normalizer=normalizer,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        parts = [f"label_smoothing={self.label_smoothing:g}", f"reduction={self.reduction!r}"]
        if self.ignore_index != -100:
            parts.append(f"ignore_index={self.ignore_index}")
        if self.weight is not None:
            parts.append(f"weight_mode={self.weight_mode!r}")
        parts += [name for name in ("weight", "prior", "class_prior", "class_mask") if getattr(self, name) is not None]
        return ", ".join(parts)
