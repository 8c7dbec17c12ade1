"""Cross-entropy with label smoothing in PyTorch's eager operations: the closed form, which never builds q'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from labelsmooth import _checks
from labelsmooth.torch._values import at_hand


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
            under torch.compile, torch.func transformations and tracing.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of `input` without the class axis; float64 for float64
        logits, else float32. Gradients come back in the dtype of `input`.

    Raises:
        ValueError: an argument out of its range or of the wrong shape; and where values are checked: class ids out of
            range, targets or priors that are negative or do not sum to 1, a masked true class, a kept row whose
            logits are all -inf.

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
    epsilon = _checks.smoothing(label_smoothing, "label_smoothing")
    _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
    _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
    _checks.one_prior(prior, class_prior)
    if not isinstance(ignore_index, int):
        raise _checks.error("ignore_index", "be a whole number", repr(ignore_index))
    weight, prior, class_prior, mask, class_mask = (
        as_tensor(x, name, input.device)
        for x, name in (
            (weight, "weight"),
            (prior, "prior"),
            (class_prior, "class_prior"),
            (mask, "mask"),
            (class_mask, "class_mask"),
        )
    )
    _check_shapes(input, target, weight, prior, class_prior, mask, class_mask)

    dim = 0 if input.dim() == 1 else 1
    labelled = target.dim() == input.dim() - 1
    if not labelled and ignore_index >= 0:
        raise _checks.error("ignore_index", "be negative where target is no class ids (use mask)", ignore_index)
    keep = mask
    if labelled:
        target = target.long()  # in a narrow dtype ignore_index would wrap around
        keep = target != ignore_index if mask is None else mask & (target != ignore_index)
    looked_at = at_hand(input, target, weight, prior, class_prior, mask, class_mask, allow_device=bool(validate))
    checked = looked_at and validate is not False
    number_at_hand = not isinstance(normalizer, Tensor) or (
        checked and at_hand(normalizer, allow_device=bool(validate))
    )
    _checks.normalizer(normalizer, reduction, at_hand=number_at_hand)
    if looked_at and keep is not None and bool(keep.all()):
        keep = None

    # Rows that are not kept are emptied before anything is computed from them.
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape = [1] * input.dim()
    shape[dim] = -1
    if labelled:
        q = None
        ids = target if keep is None else target.masked_fill(~keep, 0)
    else:
        q, ids = _emptied(target.to(dtype), keep, dim), None
    valid = class_mask if class_mask is None or class_mask.dim() > 1 else class_mask.view(shape)
    if checked:
        _check_target(ids, q, keep, input.shape[dim], dim, target.dtype)
    u = _prior(prior, class_prior, ids, q, keep, dtype, dim, shape)
    if checked:
        if prior is not None:
            _check_distribution(
                prior, keep if prior.dim() > 1 else None, dim if prior.dim() > 1 else 0, "prior", prior.dtype
            )
        if class_prior is not None:
            _check_distribution(class_prior, None, 1, "class_prior", class_prior.dtype)
        if valid is not None:
            _check_class_mask(valid, ids, q, u, keep, input, dim)

    logits = input if valid is None else input.masked_fill(~valid, -torch.inf)
    log_p = torch.log_softmax(_emptied(logits, keep, dim), dim, dtype=dtype)
    if checked and bool(log_p.detach().select(dim, 0).isnan().any()):
        _check_finite_rows(logits, keep, dim)
    w = None if weight is None else weight.to(dtype)

    # The two parts of the loss, and the weight ŵ of each row.
    row_weight = None
    inside = w if weight_mode == "class" else None
    if ids is not None:
        loss = -log_p.gather(dim, ids.unsqueeze(dim)).squeeze(dim)
        if w is not None:
            row_weight = w[ids]
            # A class of weight 0 counts 0, even where its log p is -inf.
            loss = loss if inside is None else torch.where(row_weight == 0, 0, loss) * row_weight
    else:
        assert q is not None
        loss = -_expectation(q if inside is None else q * inside.view(shape), log_p, dim)
        if w is not None:
            row_weight = (q * w.view(shape)).sum(dim)
    if epsilon > 0:
        if u is None and inside is None and valid is None:
            towards_prior = -log_p.mean(dim)
        else:
            u = _over_kept_classes(u, valid, log_p, dim)
            towards_prior = -_expectation(u if inside is None else u * inside.view(shape), log_p, dim)
        loss = (1.0 - epsilon) * loss + epsilon * towards_prior
    if row_weight is not None and inside is None:
        loss = torch.where(row_weight == 0, 0, loss) * row_weight
    if keep is not None:
        loss = torch.where(keep, loss, 0)

    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if normalizer is not None:
        divisor = normalizer if isinstance(normalizer, Tensor) else total.new_full((), float(normalizer))
        divisor = divisor.to(total)
    elif row_weight is not None:
        divisor = (row_weight if keep is None else torch.where(keep, row_weight, 0)).sum()
    elif keep is not None:
        divisor = keep.sum().to(dtype)
    else:
        return total / loss.numel() if loss.numel() else total
    nothing = divisor == 0
    return torch.where(nothing, 0, total) / torch.where(nothing, 1, divisor)


def as_tensor(x: Any, name: str, device: torch.device | None = None) -> Tensor | None:
    """`x` as a tensor: NumPy's arrays, such as `labelsmooth.priors` gives, and lists are taken too."""
    if x is None or isinstance(x, Tensor):
        return x
    try:
        return torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise _checks.error(name, "be a tensor, or an array of numbers", repr(type(x))) from None


def _check_shapes(
    input: Tensor, target: Tensor, weight: Tensor | None, prior: Tensor | None, class_prior: Tensor | None,
    mask: Tensor | None, class_mask: Tensor | None, total: int | None = None,
) -> None:  # fmt: skip
    """`total`: how many classes there are, where `input` has not all of them."""
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
    if not (shape == lead and ids) and not (shape == everything and not target.is_complex()):
        rule = f"be class ids of shape {lead} or targets of shape {everything}"
        raise _checks.error("target", rule, f"{target.dtype} of shape {shape}")
    for name, value, shapes in (
        ("weight", weight, [(total,)]),
        ("prior", prior, [(total,), everything]),
        ("class_prior", class_prior, [(total, total)]),
        ("mask", mask, [lead]),
        ("class_mask", class_mask, [(total,), everything]),
    ):
        if value is None:
            continue
        if tuple(value.shape) not in shapes:
            raise _checks.error(name, f"have shape {' or '.join(map(str, shapes))}", tuple(value.shape))
        boolean = name in ("mask", "class_mask")
        if boolean != (value.dtype == torch.bool) or value.is_complex():
            raise _checks.error(name, "be boolean" if boolean else "be real numbers", value.dtype)


def _emptied(x: Tensor, keep: Tensor | None, dim: int) -> Tensor:
    """`x` with 0 in the rows that are not kept."""
    return x if keep is None else x.masked_fill(~keep.unsqueeze(dim), 0)


def _prior(
    prior: Tensor | None, class_prior: Tensor | None, ids: Tensor | None, q: Tensor | None, keep: Tensor | None,
    dtype: torch.dtype, dim: int, shape: list[int],
) -> Tensor | None:  # fmt: skip
    """u, broadcastable to the logits; None where it is uniform."""
    if prior is not None:
        return (
            prior.to(dtype).view(shape) if prior.dim() == 1 and len(shape) > 1 else _emptied(prior.to(dtype), keep, dim)
        )
    if class_prior is None:
        return None
    table = class_prior.to(dtype)
    if ids is not None:
        return table[ids].movedim(-1, dim)
    assert q is not None
    with torch.autocast(q.device.type, enabled=False):  # it would multiply in half precision
        return torch.tensordot(q.movedim(dim, -1), table, dims=1).movedim(-1, dim)


def _over_kept_classes(u: Tensor | None, valid: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """u renormalised over the kept classes."""
    if u is None:
        u = like.new_full((), 1.0 / like.shape[dim])
    if valid is None:
        return u
    u = u * valid
    total = u.sum(dim, keepdim=True)
    return u / torch.where(total == 0, 1, total)


def _expectation(weights: Tensor, log_p: Tensor, dim: int) -> Tensor:
    """Σ_k weights_k log p_k, where 0·(-inf) is 0."""
    return (weights * log_p.masked_fill(log_p.isneginf() & (weights == 0), 0)).sum(dim)


def _check_target(
    ids: Tensor | None, q: Tensor | None, keep: Tensor | None, count: int, dim: int, dtype: torch.dtype
) -> None:
    if q is not None:
        _check_distribution(q, keep, dim, "target", dtype)
    elif ids is not None and ids.numel():
        low, high = ids.aminmax()
        if int(low) < 0 or int(high) >= count:
            _checks.label_range(ids.cpu().numpy(), count, "target")


def _check_distribution(x: Tensor, keep: Tensor | None, dim: int, name: str, dtype: torch.dtype) -> None:
    """The kept rows of `x`, which came in `dtype`, are distributions; the message is `_checks`' own."""
    x, tolerance = x.detach(), _checks.tolerance(dtype)
    wrong = ~((x.sum(dim, dtype=torch.float64) - 1.0).abs() <= tolerance) | ~(x >= 0).all(dim)
    if bool((wrong if keep is None else wrong & keep).any()):
        kept = None if keep is None else keep.cpu().numpy()
        _checks.distribution(x.movedim(dim, -1).cpu().double().numpy(), name, tolerance, kept)


def _check_class_mask(
    valid: Tensor, ids: Tensor | None, q: Tensor | None, u: Tensor | None, keep: Tensor | None, like: Tensor, dim: int
) -> None:
    masked = ~valid.expand_as(like)
    if ids is not None:
        mass = masked.gather(dim, ids.unsqueeze(dim)).squeeze(dim)
    else:
        assert q is not None
        mass = (q.detach() * masked).sum(dim) > 0
    if bool((mass if keep is None else mass & keep).any()):
        _checks.no_target_on_masked((mass if keep is None else mass & keep).cpu().numpy())
    kept = ~masked if u is None else (u.detach() * valid).expand_as(like) != 0
    empty = ~kept.any(dim)
    if bool((empty if keep is None else empty & keep).any()):
        _checks.empty_prior()


def _check_finite_rows(logits: Tensor, keep: Tensor | None, dim: int) -> None:
    empty = logits.detach().isneginf().all(dim)
    if bool((empty if keep is None else empty & keep).any()):
        raise _checks.error("input", "have a finite value in every kept row", "a row that is -inf in all its classes")
