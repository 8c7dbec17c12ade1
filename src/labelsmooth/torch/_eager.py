"""The loss in PyTorch's eager operations: the closed form, which never builds q'. Every other path is bound to it."""

from __future__ import annotations

import torch
from torch import Tensor

from labelsmooth import _checks
from labelsmooth.torch._call import Call


def loss(call: Call) -> Tensor:
    """The loss of `call`, differentiable as often as wanted, in every tensor that it holds.

    Raises:
        ValueError: where values are checked, what `labelsmooth.torch.cross_entropy` says.
    """
    input, target, dim, labelled = call.input, call.target, call.dim, call.labelled
    epsilon, reduction, normalizer, checked = call.epsilon, call.reduction, call.normalizer, call.checked
    prior, class_prior, class_mask = call.prior, call.class_prior, call.class_mask
    keep = call.mask
    if labelled:
        target = target.long()  # in a narrow dtype ignore_index would wrap around
        kept = target != call.ignore_index
        keep = kept if keep is None else keep & kept
    if call.looked_at and keep is not None and bool(keep.all()):
        keep = None

    # Rows that are not kept are emptied before anything is computed from them.
    dtype = call.dtype
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
            check_distribution(
                prior, keep if prior.dim() > 1 else None, dim if prior.dim() > 1 else 0, "prior", prior.dtype
            )
        if class_prior is not None:
            check_distribution(class_prior, None, 1, "class_prior", class_prior.dtype)
        if valid is not None:
            _check_class_mask(valid, ids, q, u, keep, input, dim)

    logits = input if valid is None else input.masked_fill(~valid, -torch.inf)
    log_p = torch.log_softmax(_emptied(logits, keep, dim), dim, dtype=dtype)
    if checked and bool(log_p.detach().select(dim, 0).isnan().any()):
        _check_finite_rows(logits, keep, dim)
    w = None if call.weight is None else call.weight.to(dtype)

    # The two parts of the loss, and the weight ŵ of each row.
    row_weight = None
    inside = w if call.weight_mode == "class" else None
    if ids is not None:
        loss = -log_p.gather(dim, ids.unsqueeze(dim)).squeeze(dim)
        if w is not None:
            row_weight = w[ids]
            # A class of weight 0 counts 0, even where its log p is -inf.
            loss = loss if inside is None else torch.where(row_weight == 0, 0, loss) * row_weight
    else:
        assert q is not None
        loss = -expectation(q if inside is None else q * inside.view(shape), log_p, dim)
        if w is not None:
            row_weight = (q * w.view(shape)).sum(dim)
    if epsilon > 0:
        if u is None and inside is None and valid is None:
            towards_prior = -log_p.mean(dim)
        else:
            u = _over_kept_classes(u, valid, log_p, dim)
            towards_prior = -expectation(u if inside is None else u * inside.view(shape), log_p, dim)
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


def expectation(weights: Tensor, log_p: Tensor, dim: int) -> Tensor:
    """Σ_k weights_k log p_k, where 0·(-inf) is 0."""
    return (weights * log_p.masked_fill(log_p.isneginf() & (weights == 0), 0)).sum(dim)


def _check_target(
    ids: Tensor | None, q: Tensor | None, keep: Tensor | None, count: int, dim: int, dtype: torch.dtype
) -> None:
    if q is not None:
        check_distribution(q, keep, dim, "target", dtype)
    elif ids is not None and ids.numel():
        low, high = ids.aminmax()
        if int(low) < 0 or int(high) >= count:
            _checks.label_range(ids.cpu().numpy(), count, "target")


def check_distribution(x: Tensor, keep: Tensor | None, dim: int, name: str, dtype: torch.dtype) -> None:
    """The kept rows of `x`, which came in `dtype`, are distributions; the message is `_checks`' own."""
    wrong = no_distribution(x, dim, dtype)
    if bool((wrong if keep is None else wrong & keep).any()):
        kept = None if keep is None else keep.cpu().numpy()
        rows = x.detach().movedim(dim, -1).cpu().double().numpy()
        _checks.distribution(rows, name, _checks.tolerance(dtype), kept)


def no_distribution(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Which rows of `x`, which came in `dtype`, hold something negative or do not sum to 1."""
    x = x.detach()
    return ~((x.sum(dim, dtype=torch.float64) - 1.0).abs() <= _checks.tolerance(dtype)) | ~(x >= 0).all(dim)


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
        raise _checks.empty_row()
