"""Cross-entropy with label smoothing for PyTorch: its arguments, checked, and the path that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from labelsmooth import _checks
from labelsmooth.torch import _native, _paths
from labelsmooth.torch._call import Call
from labelsmooth.torch._values import as_written, at_hand, readable


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    prior: Tensor | None = None,
    class_prior: Tensor | None = None,
    mask: Tensor | None = None,
    class_mask: Tensor | None = None,
    weight_mode: str = "class",
    normalizer: Tensor | float | None = None,
    validate: bool | None = None,
    inplace: bool = False,
) -> Tensor:
    """Cross-entropy of smoothed targets: loss = -(1-ε) Σ_k q_k log p_k - ε Σ_k u_k log p_k, with p = softmax(input).

    A drop-in for `torch.nn.functional.cross_entropy`: the same arguments, defaults and numbers, and keyword-only ones
    beyond. It differs in four things: float16 and bfloat16 logits give a float32 loss; ε = 1 is refused; with soft
    targets and `weight` the mean divides by Σ_k w_k q_k, so that one-hot targets and labels give the same number;
    where nothing is kept, loss and gradient are 0 (PyTorch: nan). It also takes any integer dtype for class ids,
    integer one-hot targets, and refuses targets that do not sum to 1.

    Args:
        input: logits, shape ``[K]``, ``[N, K]`` or ``[N, K, d1, ...]``; any float dtype.
        target: class ids (integers, the shape of `input` without the class axis), or one-hot or soft targets of the
            shape of `input`, whose rows sum to 1.
        weight: class weights, shape ``[K]``.
        size_average: deprecated, as in PyTorch; use `reduction`.
        ignore_index: rows with this class id are not kept. Soft targets use `mask`.
        reduce: deprecated, as in PyTorch; use `reduction`.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the row weights Σ_k w_k q_k of the kept rows.
        label_smoothing: ε, in [0, 1).
        prior: u, shape ``[K]``, or laid out like `input`; uniform if None. NumPy's arrays are taken too.
        class_prior: ``[K, K]``, row y is the u of true class y (``q @ class_prior`` for soft targets).
        mask: bool, the shape of `input` without the class axis; True = kept. Rows that are not kept have loss 0 and
            gradient 0, whatever their logits, target and prior hold.
        class_mask: bool, ``[K]`` or laid out like `input`; True = kept. Taken-out classes have no probability, and u
            is renormalised over the others.
        weight_mode: ``"class"`` (w_k inside the sum, as PyTorch) or ``"example"`` (the row times Σ_k w_k q_k, so that
            the optimum stays q').
        normalizer: what ``"mean"`` divides by instead (for gradient accumulation and distributed means); 0 gives 0.
        validate: check the values of the arguments. None: where that waits for no device. Values are never checked
            under torch.compile, torch.func transformations, tracing and dispatch modes, nor those of tensor subclasses.
        inplace: the logits may be overwritten with their gradient, which then takes no memory of its own. `input` must
            not be needed afterwards (by the layer that made it, say: PyTorch then raises), and must not be a leaf, nor
            a view of one. Values are checked first, in a pass of their own, which `validate=False` leaves out. In
            float16 nothing is overwritten: its gradient waits for the loss scale, which comes from above.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of `input` without the class axis; float64 for float64
        logits, else float32. Gradients come back in the dtype of `input`.

    Raises:
        ValueError: an argument out of its range or of the wrong shape; and where values are checked: class ids out of
            range, targets or priors that are negative or do not sum to 1, a masked true class, a kept row whose
            logits are all -inf.

    Warns:
        UserWarning: where values are checked, of soft targets that look smoothed already and are to be smoothed.

    References:
        Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, section 7.

    Example:
        >>> import torch
        >>> from labelsmooth.torch import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0]), label_smoothing=0.1)
        tensor(0.3729)
        >>> cross_entropy(logits, torch.tensor([0]), label_smoothing=0.1, prior=torch.tensor([0.5, 0.5, 0.0]))
        tensor(0.3395)
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    plain = as_written()
    if plain and readable(input):
        _native.rouse(input)  # they take as long to wake as the checks that follow
        alone = weight is prior is class_prior is mask is class_mask is normalizer is validate is None and not inplace
        alone = alone and weight_mode in _checks.WEIGHT_MODES
        if alone and _native.takes_at_once(input, target, ignore_index, reduction, label_smoothing):
            loss = _native.loss(Call(input, target, None, ignore_index, reduction, label_smoothing))
            if loss is not None:
                return loss
    for name, x in (("input", input), ("target", target)):
        if not isinstance(x, Tensor):
            raise _checks.error(name, "be a tensor", repr(type(x)))
    epsilon = _checks.smoothing(label_smoothing, "label_smoothing")
    _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
    _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
    _checks.one_prior(prior, class_prior)
    ignore_index = _checks.whole_number(ignore_index, "ignore_index")
    given: dict[str, Tensor] = {}
    if not (weight is prior is class_prior is mask is class_mask is None):
        given = given_tensors(
            input.device, weight=weight, prior=prior, class_prior=class_prior, mask=mask, class_mask=class_mask
        )
    check_shapes(input, target, given)
    tensors = {"target": target, **given}
    for name, x in tensors.items():
        if x.device != input.device:
            raise _checks.error(name, f"be on the device of input, {input.device}", x.device)
    if target.dim() == input.dim() and ignore_index >= 0:
        raise _checks.error("ignore_index", "be negative where target is no class ids (use mask)", ignore_index)
    if inplace and torch.is_grad_enabled():
        for x, rule in ((input, "a leaf"), (input._base, "a view of a leaf")):
            if x is not None and x.requires_grad and x.is_leaf:
                raise _checks.error("inplace", f"be False for {rule} that requires grad", inplace)

    tensors["input"] = input
    looked_at = plain and all(readable(x, bool(validate)) for x in tensors.values())
    checked = looked_at and validate is not False
    if checked and epsilon > 0 and target.is_floating_point() and target.shape == input.shape:
        warn_if_smoothed(target, epsilon)
    normalizer = checked_normalizer(normalizer, reduction, input.device, checked, validate)
    return _paths.loss(
        Call(
            input, target, given.get("weight"), ignore_index, reduction, epsilon, given.get("prior"),
            given.get("class_prior"), given.get("mask"), given.get("class_mask"), weight_mode, normalizer, inplace,
            looked_at, checked,
        )
    )  # fmt: skip


def as_tensor(x: Any, name: str, device: torch.device | None = None) -> Tensor:
    """`x` as a tensor: NumPy's arrays, such as `labelsmooth.priors` gives, and lists are taken too."""
    if isinstance(x, Tensor):
        return x
    try:
        return torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError):
        pass
    try:  # PyTorch takes neither negative strides nor foreign byte orders
        return torch.as_tensor(np.array(x, x.dtype.newbyteorder("="), order="C"), device=device)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise _checks.error(name, "be a tensor, or an array of numbers", repr(type(x))) from None


def checked_normalizer(
    normalizer: Any, reduction: str, device: torch.device, checked: bool, validate: bool | None
) -> Tensor | float | None:
    """What ``"mean"`` divides by: a tensor as it is, anything else as a number."""
    if not isinstance(normalizer, Tensor):
        _checks.normalizer(normalizer, reduction)
        return normalizer if normalizer is None or isinstance(normalizer, (int, float)) else float(normalizer)
    if normalizer.device != device and not normalizer.is_cpu:
        raise _checks.error("normalizer", f"be on the device of input, {device}, or on the CPU", normalizer.device)
    at_once = checked and at_hand(normalizer, allow_device=bool(validate))
    _checks.normalizer(normalizer.detach(), reduction, at_hand=at_once)
    return normalizer


def given_tensors(device: torch.device | None = None, **optional: Any) -> dict[str, Tensor]:
    """Those of the arguments that are given, as tensors."""
    return {name: as_tensor(x, name, device) for name, x in optional.items() if x is not None}


def warn_if_smoothed(target: Tensor, epsilon: float) -> None:
    """Look at a few rows of soft targets that a loss is to smooth."""
    few = target[: _checks.FEW_ROWS]
    if target.dim() > 2:  # without a copy of all positions
        few = target[(slice(4), slice(None), slice(4), *(0,) * (target.dim() - 3))].movedim(1, -1)
    if target.dim() > 1:
        few = few.reshape(-1, target.shape[1])
        _checks.smoothed_twice(few.detach().double().cpu().numpy(), epsilon, "target")


def check_shapes(input: Tensor, target: Tensor, given: Mapping[str, Tensor], total: int | None = None) -> None:
    """`given`: the optional arguments, by name; `total`: how many classes there are, where `input` has not all."""
    if not input.is_floating_point():
        raise _checks.error("input", "have a float dtype", input.dtype)
    if input.dim() == 0:
        raise _checks.error("input", "have shape [K], [N, K] or [N, K, d1, ...]", tuple(input.shape))
    dim = 0 if input.dim() == 1 else 1
    count, everything = input.shape[dim], tuple(input.shape)
    total = count if total is None else total
    if total == 0:
        raise _checks.error("input", "have at least one class", everything)
    lead = everything[:dim] + everything[dim + 1 :]
    ids = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    shape = tuple(target.shape)
    if not (ids and shape == lead) and not (shape == everything and not target.is_complex()):
        rule = f"be class ids of shape {lead} or targets of shape {everything}"
        raise _checks.error("target", rule, f"{target.dtype} of shape {shape}")
    if not given:
        return
    allowed = {
        "weight": [(total,)],
        "prior": [(total,), everything],
        "class_prior": [(total, total)],
        "mask": [lead],
        "class_mask": [(total,), everything],
    }
    for name, value in given.items():
        shapes = allowed[name]
        if tuple(value.shape) not in shapes:
            raise _checks.error(name, f"have shape {' or '.join(map(str, shapes))}", tuple(value.shape))
        boolean = name in ("mask", "class_mask")
        if boolean != (value.dtype == torch.bool) or value.is_complex():
            raise _checks.error(name, "be boolean" if boolean else "be real numbers", value.dtype)
