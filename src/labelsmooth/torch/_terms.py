"""The loss of a block of logits: rows of examples, columns of classes, which may be a part of all K.

The loss of a row is Σ_k c_k (lse(z) - z_k), with coefficients c = α q w + β u w: the label's part, and the prior's.
What a block says of it (`Statistics`) is put together with what the blocks beside it say, here or on other processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from labelsmooth import _checks
from labelsmooth.torch._eager import check_distribution, expectation
from labelsmooth.torch._values import at_hand
from labelsmooth.torch.functions import check_shapes, checked_normalizer, given_tensors, warn_if_smoothed

_BLOCK = 1 << 20  # numbers that a CPU works on at once, so that they stay in cache
_BLOCK_ELSEWHERE = 1 << 25  # and another device, which would wait for the next call


def outside_graphs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, which torch.compile breaks its graph for; its compiler, slow to import, is left alone otherwise."""
    return _disable_dynamo(function) if torch.compiler.is_compiling() else function


def refuse_a_second_derivative(loss: str) -> None:
    """In a backward pass: raise where the gradient is to be differentiated itself, which would leave out its part."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{loss} has no second derivative (create_graph=True was asked for); "
            "labelsmooth.torch.cross_entropy of whole logits has one"
        )


def blocks(number: int, step: int) -> Iterator[slice]:
    """Slices of about `step` that cover `number`, as equal as can be; at least one, if empty."""
    count = max(1, -(-number // max(1, step)))
    for i in range(count):
        yield slice(number * i // count, number * (i + 1) // count)


def parts_of(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Slices that cover the rows of `shape` ``[n, k]``, as many at once as is good for the device."""
    rows, width = shape
    return blocks(rows, (_BLOCK if device.type == "cpu" else _BLOCK_ELSEWHERE) // max(1, width))


@dataclass(frozen=True)
class Arguments:
    """What a loss was called with, checked but for what every class has, and laid out in N rows."""

    epsilon: float
    reduction: str
    weight_mode: str
    normalizer: Tensor | float | None
    checked: bool
    dtype: torch.dtype
    lead: tuple[int, ...]
    ids: Tensor | None
    q: Tensor | None
    keep: Tensor | None
    weight: Tensor | None
    prior: Tensor | None
    class_prior: Tensor | None
    class_mask: Tensor | None

    def check_vectors(self, logits: Tensor, target: Tensor, count: int) -> None:
        """The shapes of what has all `count` classes."""
        given = given_tensors(
            weight=self.weight, prior=self.prior, class_prior=self.class_prior, class_mask=self.class_mask
        )
        of_all = {name: x for name, x in given.items() if x.dim() == 1 or name == "class_prior"}
        check_shapes(logits, target, of_all, count)

    def terms(self, start: int, width: int, count: int, summed: Callable[[Tensor], Tensor] = lambda x: x) -> Terms:
        return resolve(
            self.ids, self.q, start=start, width=width, count=count, dtype=self.dtype, epsilon=self.epsilon,
            weight=self.weight, prior=self.prior, class_prior=self.class_prior, keep=self.keep,
            class_mask=self.class_mask, weight_mode=self.weight_mode, lead=self.lead, checked=self.checked,
            summed=summed,
        )  # fmt: skip


def arguments(
    logits: Tensor,
    target: Any,
    values: tuple[Tensor | None, ...],
    *,
    weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    prior: Any,
    class_prior: Any,
    mask: Any,
    class_mask: Any,
    weight_mode: str,
    normalizer: Any,
    validate: bool | None,
    whole: bool = True,
) -> Arguments:
    """Check the arguments of a loss as `cross_entropy` does; only the shape and dtype of `logits` are looked at.

    `values`: tensors whose values are to be at hand, besides. Where `logits` are not the `whole` of the classes, the
    shape of what every class has is left to `Arguments.check_vectors`.
    """
    epsilon = _checks.smoothing(label_smoothing, "label_smoothing")
    _checks.one_of(reduction, "reduction", _checks.REDUCTIONS)
    _checks.one_of(weight_mode, "weight_mode", _checks.WEIGHT_MODES)
    _checks.one_prior(prior, class_prior)
    ignore_index = _checks.whole_number(ignore_index, "ignore_index")
    device = next((x.device for x in values if x is not None), logits.device)
    given = given_tensors(device, weight=weight, prior=prior, class_prior=class_prior, mask=mask, class_mask=class_mask)
    weight, prior, class_prior, mask, class_mask = (
        given.get(name) for name in ("weight", "prior", "class_prior", "mask", "class_mask")
    )
    if not isinstance(target, Tensor):
        raise _checks.error("target", "be a tensor", repr(type(target)))
    if whole:
        check_shapes(logits, target, given)
    else:
        check_shapes(logits, target, {} if mask is None else {"mask": mask}, total=1)
        for name, x in given.items():
            if name in ("prior", "class_mask") and x.dim() != 1 and x.shape != logits.shape:
                rule = f"have shape [K], for all classes, or {tuple(logits.shape)}, for those here"
                raise _checks.error(name, rule, tuple(x.shape))
    for name, x in (
        ("target", target),
        ("weight", weight),
        ("prior", prior),
        ("class_prior", class_prior),
        ("normalizer", normalizer),
    ):
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            rule = "require no gradient (this loss has none for it: cross_entropy has)"
            raise _checks.error(name, rule, "a tensor that requires one")

    dim = 0 if logits.dim() == 1 else 1
    lead = (*logits.shape[:dim], *logits.shape[dim + 1 :])
    number, width = math.prod(lead), logits.shape[dim]

    def in_rows(x: Tensor | None) -> Tensor | None:
        """What is laid out like the logits; of one row, only a part is told from what every class has."""
        if x is None or x.shape != logits.shape or (whole and x.dim() == 1):
            return x
        return x.movedim(dim, -1).reshape(number, width)

    keep = mask
    if target.dim() == logits.dim() - 1:
        target = target.long()  # in a narrow dtype ignore_index would wrap around
        keep = target != ignore_index if mask is None else mask & (target != ignore_index)
    elif ignore_index >= 0:
        raise _checks.error("ignore_index", "be negative where target is no class ids (use mask)", ignore_index)
    needed = (x for x in values if x is not None)
    looked_at = at_hand(*needed, target, *given.values(), allow_device=bool(validate))
    checked = looked_at and validate is not False
    normalizer = checked_normalizer(normalizer, reduction, device, checked, validate)
    if looked_at and keep is not None and bool(keep.all()):
        keep = None
    keep = None if keep is None else keep.reshape(number)
    if target.dim() == logits.dim() - 1:
        ids, q = target.reshape(number), None
        ids = ids if keep is None else ids.masked_fill(~keep, 0)
    else:
        ids, q = None, target.movedim(dim, -1).reshape(number, width)
    prior, class_mask = in_rows(prior), in_rows(class_mask)
    if checked and q is not None and whole and epsilon > 0:
        warn_if_smoothed(target, epsilon)
    if checked:
        for name, x in (("target", q), ("prior", prior)):
            if x is not None and x.dim() == 2:
                check_not_negative(x, keep, name, lead)
    return Arguments(
        epsilon, reduction, weight_mode, normalizer, checked, torch.float64 if logits.dtype == torch.float64 else
        torch.float32, lead, ids, q, keep, weight, prior, class_prior, class_mask,
    )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """The coefficients of n rows and k classes.

    `label` holds columns ``[n]`` (α is 0 where the class lies outside) or q w ``[n, k]``; `prior` is u w as a number,
    as ``[k]`` or as ``[n, k]``, or None; `holes`: an entry of a vector may be 0.
    """

    label: Tensor
    alpha: Tensor
    prior: Tensor | float | None
    beta: Tensor
    holes: bool

    def dot(self, z: Tensor) -> Tensor:
        """Σ_k c_k z_k, where 0·(-inf) is 0."""
        if z.shape[1] == 0:
            return torch.zeros_like(self.alpha)
        if self.label.dim() == 1:
            towards = z.gather(1, self.label.unsqueeze(1)).squeeze(1)
        else:
            towards = expectation(self.label, z, 1)
        result = torch.where(self.alpha == 0, 0, towards) * self.alpha
        if self.prior is None:
            return result
        if not isinstance(self.prior, Tensor):
            towards = z.sum(1) * self.prior
        elif self.prior.dim() == 1:
            towards = (torch.where(self.prior == 0, 0, z) if self.holes else z).mv(self.prior)
        else:
            towards = expectation(self.prior, z, 1)
        return result + torch.where(self.beta == 0, 0, towards) * self.beta

    def total(self, width: int) -> Tensor:
        """Σ_k c_k."""
        result = self.alpha if self.label.dim() == 1 else self.alpha * self.label.sum(1)
        if self.prior is None:
            return result
        mass = self.prior * width if not isinstance(self.prior, Tensor) else self.prior.sum(-1)
        return result + self.beta * mass

    def subtract_(self, z: Tensor, scale: Tensor) -> None:
        """z - scale c, in place; `scale` is a number or has one for each row."""
        if z.shape[1] == 0:
            return
        if self.prior is not None:
            beta = scale * self.beta
            if not isinstance(self.prior, Tensor):
                z.sub_((beta * self.prior).unsqueeze(1))
            elif self.prior.dim() == 1:
                z.addr_(beta, self.prior, alpha=-1)
            else:
                z.addcmul_(self.prior, beta.unsqueeze(1), value=-1)
        alpha = (scale * self.alpha).unsqueeze(1)
        if self.label.dim() == 1:
            z.scatter_add_(1, self.label.unsqueeze(1), -alpha)
        else:
            z.addcmul_(self.label, alpha, value=-1)


@dataclass(frozen=True)
class Statistics:
    """What the loss of rows needs to know of some classes: m = max z, Σ exp(z - m), Σ c (z - m) and Σ c."""

    top: Tensor
    exps: Tensor
    dots: Tensor
    seen: Tensor

    def towards(self, top: Tensor) -> Statistics:
        """The same, about another maximum."""
        exps = self.exps * (self.top - finite(top)).exp()
        return Statistics(top, exps, self.dots + self.seen * (finite(self.top) - finite(top)), self.seen)

    def with_those_of(self, other: Statistics) -> Statistics:
        """Those of the classes of both."""
        top = torch.maximum(self.top, other.top)
        a, b = self.towards(top), other.towards(top)
        return Statistics(top, a.exps + b.exps, a.dots + b.dots, a.seen + b.seen)

    def loss(self, total: Tensor) -> Tensor:
        """The loss of each row, where these are the statistics of all its classes and `total` its Σ c."""
        return total * self.exps.log() - self.dots


def finite(top: Tensor) -> Tensor:
    """What logits are shifted by: their maximum, or 0 where they are all -inf."""
    return torch.where(top.isneginf(), 0, top)


def statistics_(z: Tensor, tile: Tile) -> Statistics:
    """The statistics of logits ``[n, k]``, in whose place exp(z - m) is left."""
    top = z.amax(1) if z.shape[1] else z.new_full((len(z),), -torch.inf)
    dots = tile.dot(z.sub_(finite(top).unsqueeze(1)))
    return Statistics(top, z.exp_().sum(1), dots, tile.total(z.shape[1]))


def joined(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all rows from those of some."""
    return Statistics(*(torch.cat(x) for x in zip(*((p.top, p.exps, p.dots, p.seen) for p in parts), strict=True)))


def gradient_(
    z: Tensor, terms: Terms, rows: slice, columns: slice, top: Tensor, exps: Tensor, upstream: Tensor
) -> Tensor:
    """Logits of some rows and classes turned into the gradient of Σ upstream · loss: upstream (Σc p - c), in place."""
    counts = (terms.alpha[rows] != 0) | (terms.beta[rows] != 0)
    upstream = torch.where(counts, upstream, 0)  # inf · 0 would be nan in rows that are not kept
    z.sub_(finite(top).unsqueeze(1)).exp_().mul_((terms.total[rows] * upstream / exps).unsqueeze(1))
    terms.tile(rows, columns).subtract_(z, upstream)
    return z


@dataclass(frozen=True)
class Terms:
    """The smoothed targets of N rows over the classes ``start .. start + width``, which may be a part of all.

    The prior's part is `vector` where it is the same for every row (u w, or the number 1/K), else made of `rows` or of
    `table`. `alpha`, `beta` and `total` are 0 in the rows that are not kept.
    """

    dtype: torch.dtype
    start: int
    width: int
    ids: Tensor | None  # [N], of all classes
    q: Tensor | None  # [N, width]
    keep: Tensor | None  # [N]
    valid: Tensor | None  # [width] or [N, width]
    vector: Tensor | float | None  # [width]
    holes: bool
    rows: Tensor | None  # [N, width]
    table: Tensor | None  # [K, width]
    inside: Tensor | None  # [width]
    alpha: Tensor
    beta: Tensor
    total: Tensor
    row_weight: Tensor | None

    @property
    def plain(self) -> bool:
        """Class ids that count alike, smoothed towards all classes alike, and nothing left out."""
        others = (self.keep, self.valid, self.rows, self.table, self.inside, self.row_weight)
        return self.ids is not None and not isinstance(self.vector, Tensor) and all(x is None for x in others)

    def part(self, rows: slice | Tensor) -> Terms:
        """Those of some of the rows."""

        def of(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        return replace(
            self, ids=of(self.ids), q=of(self.q), keep=of(self.keep), rows=of(self.rows), alpha=self.alpha[rows],
            valid=self.valid if self.valid is None or self.valid.dim() == 1 else self.valid[rows],
            beta=self.beta[rows], total=self.total[rows], row_weight=of(self.row_weight),
        )  # fmt: skip

    def kept(self) -> tuple[Tensor, Terms] | None:
        """Which rows are kept, and their terms, where leaving the others out costs no copy of N x K numbers."""
        by_row = self.rows is not None or (self.valid is not None and self.valid.dim() == 2)
        if self.keep is None or self.ids is None or by_row or not at_hand(self.keep):
            return None
        index = self.keep.nonzero().squeeze(1)
        return index, replace(self.part(index), keep=None)

    def watched(self) -> list[Tensor]:
        """What the backward pass reads and others may change meanwhile."""
        return [x for x in (self.ids, self.q, self.keep, self.valid, self.rows, self.table) if x is not None]

    def tile(self, rows: slice, columns: slice) -> Tile:
        """The coefficients of some rows and of some of the classes here."""
        alpha, beta = self.alpha[rows], self.beta[rows]
        weights = None if self.inside is None else self.inside[columns]
        if self.ids is not None:
            label = self.ids[rows] - (self.start + columns.start)
            here = (label >= 0) & (label < columns.stop - columns.start)
            label, alpha = torch.where(here, label, 0), torch.where(here, alpha, 0)
        else:
            label = self.targets(rows, columns)
            label = label if weights is None else label * weights
        prior = self.vector
        if isinstance(prior, Tensor):
            prior = prior[columns]
        elif self.rows is not None or self.table is not None:
            prior = self.priors(rows, columns)
            prior = prior if weights is None else prior * weights
        return Tile(label, alpha, prior, beta, self.holes)

    def targets(self, rows: slice, columns: slice) -> Tensor:
        """q, where it is soft."""
        assert self.q is not None
        return self._emptied(self.q[rows, columns].to(self.dtype), rows)

    def priors(self, rows: slice, columns: slice) -> Tensor:
        """u over the kept classes, not renormalised, where it differs from row to row."""
        if self.rows is not None:
            u = self.rows[rows, columns].to(self.dtype)
        else:
            assert self.table is not None
            table = self.table[:, columns].to(self.dtype)
            u = table[self.ids[rows]] if self.ids is not None else self.targets(rows, slice(None)) @ table
        return self._emptied(u if self.valid is None else u * self._valid(rows, columns), rows)

    def masked_(self, z: Tensor, rows: slice, columns: slice) -> Tensor:
        """Logits, with -inf in the classes that are taken out and 0 in the rows that are not kept, in place."""
        if self.valid is not None:
            z.masked_fill_(~self._valid(rows, columns), -torch.inf)
        return z if self.keep is None else z.masked_fill_(~self.keep[rows].unsqueeze(1), 0)

    def _valid(self, rows: slice, columns: slice) -> Tensor:
        assert self.valid is not None
        return self.valid[columns] if self.valid.dim() == 1 else self.valid[rows, columns]

    def _emptied(self, x: Tensor, rows: slice) -> Tensor:
        return x if self.keep is None else x.masked_fill(~self.keep[rows].unsqueeze(1), 0)

    def check_finite(self, top: Tensor, rows: slice) -> None:
        """No kept row has the maximum -inf."""
        empty = top.isneginf()
        if bool((empty if self.keep is None else empty & self.keep[rows]).any()):
            raise _checks.empty_row()

    def divisor(self, normalizer: Tensor | float | None) -> Tensor:
        """What ``"mean"`` divides by."""
        if isinstance(normalizer, Tensor):
            return normalizer.to(self.alpha)
        if normalizer is not None:
            return self.alpha.new_full((), float(normalizer))
        if self.row_weight is not None:
            return (self.row_weight if self.keep is None else torch.where(self.keep, self.row_weight, 0)).sum()
        return self.alpha.new_full((), float(len(self.alpha))) if self.keep is None else self.keep.sum().to(self.dtype)


def divided(total: Tensor, divisor: Tensor) -> Tensor:
    """The mean; where nothing is kept, 0."""
    nothing = divisor == 0
    return torch.where(nothing, 0, total) / torch.where(nothing, 1, divisor)


def resolve(
    ids: Tensor | None,
    q: Tensor | None,
    *,
    start: int,
    width: int,
    count: int,
    dtype: torch.dtype,
    epsilon: float,
    weight: Tensor | None,
    prior: Tensor | None,
    class_prior: Tensor | None,
    keep: Tensor | None,
    class_mask: Tensor | None,
    weight_mode: str,
    lead: tuple[int, ...],
    checked: bool,
    summed: Callable[[Tensor], Tensor] = lambda x: x,
) -> Terms:
    """The terms of arguments that are laid out in N rows: ids ``[N]``, or q ``[N, width]``, of what had shape `lead`.

    A vector or table has all `count` classes, what has a row per example those here; `summed` adds up over the
    processes what each knows of its classes. What is raised where values are `checked` is the same on all of them.
    """
    some = ids if ids is not None else q
    assert some is not None
    ones = torch.ones(len(some), dtype=dtype, device=some.device)
    here = slice(start, start + width)
    w = None if weight is None else weight.to(dtype)
    inside = w if weight_mode == "class" else None
    if checked:
        _check_vectors(ids, prior, class_prior, count, lead)

    # The prior: a row per example, a table, the number 1/K, or one vector u w for all rows.
    u = vector = rows = table = None
    if class_prior is not None:
        table = class_prior[:, here]
    elif any(x is not None and x.dim() == 2 for x in (prior, class_mask)):
        u = ones.new_full((count,), 1.0 / count) if prior is None else prior
        rows = u if u.dim() == 2 else u[here].expand(len(ones), -1)
    elif prior is None and class_mask is None and inside is None:
        vector = 1.0 / count
    else:
        u = ones.new_full((count,), 1.0 / count) if prior is None else prior.to(dtype)
        if class_mask is not None:
            u = u * class_mask
            mass = u.sum()
            if checked and bool(mass == 0) and bool((ones if keep is None else keep).any()):
                _checks.empty_prior()
            u = u / torch.where(mass == 0, 1, mass)
        u = u if inside is None else u * inside
        vector = u[here]

    terms = Terms(
        dtype=dtype, start=start, width=width, ids=ids, q=q, keep=keep,
        valid=class_mask if class_mask is None or class_mask.dim() == 2 else class_mask[here],
        vector=vector, holes=isinstance(vector, Tensor) and (not checked or bool((vector == 0).any())),
        rows=rows, table=table, inside=None if inside is None else inside[here],
        alpha=ones, beta=ones, total=ones, row_weight=None,
    )  # fmt: skip
    given = rows if prior is not None and prior.dim() == 2 else None
    sums = _sums(terms, None if w is None else w[here], given, checked, summed)
    if checked:
        _check_rows(terms, sums, None if given is None else given.dtype, lead)

    row_weight = w if w is None else w[ids] if ids is not None else sums["qw"].to(dtype)
    outside = ones if row_weight is None or inside is not None else row_weight
    alpha, beta = (1.0 - epsilon) * outside, epsilon * outside
    if ids is not None and not checked:  # a class that nobody has would go without notice
        alpha = torch.where((ids >= 0) & (ids < count), alpha, torch.nan)
    if ids is not None:
        total = alpha = alpha if row_weight is None or inside is None else alpha * row_weight
    else:
        total = alpha * sums["q" if inside is None else "qw"].to(dtype)
    if epsilon == 0:
        terms = replace(terms, vector=None, rows=None, table=None)
    elif isinstance(vector, float):
        total = total + beta
    elif u is not None and vector is not None:
        total = total + beta * u.sum()
    else:
        kept = sums["u"].to(dtype)
        beta = beta if class_mask is None else beta / torch.where(kept == 0, 1, kept)
        total = total + beta * (kept if inside is None else sums["uw"].to(dtype))
    if keep is not None:
        alpha, beta, total = (torch.where(keep, x, 0) for x in (alpha, beta, total))
    return replace(terms, alpha=alpha, beta=beta, total=total, row_weight=row_weight)


def _sums(
    terms: Terms, weights: Tensor | None, given: Tensor | None, checked: bool, summed: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What has a number per row and is summed over its classes: of soft targets, of priors by row, for the checks."""
    dtype = torch.float64 if checked else terms.dtype
    columns = slice(0, terms.width)
    found: dict[str, list[Tensor]] = {}
    for rows in parts_of((len(terms.alpha), terms.width), terms.alpha.device):
        sums = {}
        if terms.q is not None:
            q = terms.targets(rows, columns)
            sums["q"] = q.sum(1, dtype=dtype)
            if weights is not None:
                sums["qw"] = q @ weights
            if checked and terms.valid is not None:
                sums["masked"] = (q * ~terms._valid(rows, columns)).sum(1)
        elif checked and terms.valid is not None and terms.ids is not None:
            label = terms.ids[rows] - terms.start
            outside = (label < 0) | (label >= terms.width)
            label = label.masked_fill(outside, 0).unsqueeze(1)
            masked = ~terms._valid(rows, columns).expand(len(label), -1)
            sums["masked"] = masked.gather(1, label).squeeze(1) & ~outside if terms.width else outside & False
        if terms.rows is not None or terms.table is not None:
            u = terms.priors(rows, columns)
            sums["u"] = u.sum(1, dtype=dtype)
            if terms.inside is not None:
                sums["uw"] = u @ terms.inside
        if checked and given is not None:
            sums["prior"] = terms._emptied(given[rows], rows).sum(1, dtype=dtype)
        for name, values in sums.items():
            found.setdefault(name, []).append(values.to(dtype))
    if not found:
        return {}
    joined = summed(torch.stack([torch.cat(values) for values in found.values()]))
    return dict(zip(found, joined.unbind(), strict=True))


def _check_vectors(
    ids: Tensor | None, prior: Tensor | None, class_prior: Tensor | None, count: int, lead: tuple[int, ...]
) -> None:
    if ids is not None and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= count):
        _checks.label_range(ids.view(lead).cpu().numpy(), count, "target")
    if prior is not None and prior.dim() == 1:
        check_distribution(prior, None, 0, "prior", prior.dtype)
    if class_prior is not None:
        check_distribution(class_prior, None, 1, "class_prior", class_prior.dtype)


def _check_rows(terms: Terms, sums: dict[str, Tensor], prior_dtype: torch.dtype | None, lead: tuple[int, ...]) -> None:
    def kept(x: Tensor, otherwise: float) -> np.ndarray:
        return (x if terms.keep is None else torch.where(terms.keep, x, otherwise)).view(lead).cpu().numpy()

    if not len(terms.alpha):
        return
    if terms.q is not None:
        _checks.distribution(kept(sums["q"], 1)[..., None], "target", _checks.tolerance(terms.q.dtype))
    if prior_dtype is not None:
        _checks.distribution(kept(sums["prior"], 1)[..., None], "prior", _checks.tolerance(prior_dtype))
    if "masked" in sums:
        _checks.no_target_on_masked(kept(sums["masked"], 0))
        if "u" in sums and bool((kept(sums["u"], 1) == 0).any()):
            _checks.empty_prior()


def check_not_negative(x: Tensor, keep: Tensor | None, name: str, lead: tuple[int, ...]) -> None:
    """The kept rows of `x`, ``[N, k]``, have no negative number and no nan."""
    for rows in parts_of(x.shape, x.device):
        wrong = ~(x[rows] >= 0)
        wrong = wrong if keep is None else wrong & keep[rows].unsqueeze(1)
        if bool(wrong.any()):
            row, column = (int(i) for i in wrong.nonzero()[0])
            where = [*np.unravel_index(rows.start + row, lead), column] if lead else [column]
            rule = "be non-negative and sum to 1 over the classes"
            raise _checks.error(name, rule, f"{x[rows][row, column].item()} at index {', '.join(map(str, where))}")
