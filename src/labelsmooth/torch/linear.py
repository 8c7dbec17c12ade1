"""Cross-entropy with label smoothing of a linear layer's output that never exists as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph  # pyright: ignore[reportMissingImports]
from torch._C._functorch import is_batchedtensor, is_legacy_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.autograd import forward_ad

from labelsmooth import _checks
from labelsmooth.torch import _native
from labelsmooth.torch._call import forced
from labelsmooth.torch._shards import Prepared, Shards, local, local_like, members, settle
from labelsmooth.torch._terms import (
    Terms,
    arguments,
    blocks,
    divided,
    finite,
    gradient_,
    joined,
    outside_graphs,
    parts_of,
    refuse_a_second_derivative,
    statistics_,
)  # fmt: skip
from labelsmooth.torch._values import at_hand, times_, transformed
from labelsmooth.torch.functions import cross_entropy

_ROWS = 256  # rows of logits at once on a CPU: what a matmul needs
_ROWS_ELSEWHERE = 1024
_LEAST_ROWS = 64  # with fewer, reading the weights again for each chunk takes longer than a fourth matmul
_WHOLE_ROWS = 512 << 20  # bytes of logits of whole rows
_PART = 64 << 20  # bytes of logits of some classes
_CARRIED = 1 << 30  # bytes that a float32 sum of half gradients may take beside them


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    prior: Tensor | None = None,
    class_prior: Tensor | None = None,
    mask: Tensor | None = None,
    class_mask: Tensor | None = None,
    weight_mode: str = "class",
    normalizer: Tensor | float | None = None,
    validate: bool | None = None,
    group: Any = None,
) -> Tensor:
    """`labelsmooth.torch.cross_entropy` of ``input @ linear_weight.T + linear_bias``, without the N x K logits.

    A drop-in for `torch.nn.functional.linear_cross_entropy` that saves memory with smoothing and every other option,
    by default. Logits are made for a chunk of rows at a time and turned into their gradient at once, so that the
    forward pass leaves the gradients of `input`, `linear_weight` and `linear_bias` (of those that require one), and the
    backward pass only scales them. With ``reduction="none"``, and where K is so large that few rows fit, the logits
    are made for all rows and a chunk of classes, and once more in the backward pass. Under torch.func, torch.jit.trace
    and forward differentiation the logits are whole; torch.compile breaks its graph for it.

    Args:
        input: shape ``[D]`` or ``[N, D]``; any float dtype. In float16 and bfloat16 loss and gradients are accumulated
            in float32. Rows that are not kept may hold anything.
        linear_weight: shape ``[K, D]``, or ``[K, d1, ..., D]`` for logits ``[N, K, d1, ...]``.
        target: class ids, shape ``[]``, ``[N]`` or ``[N, d1, ...]``, or soft targets, laid out like the logits.
        linear_bias: shape ``[K]``, or ``[K, d1, ...]``.
        weight: class weights, shape ``[K]``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        ignore_index: rows with this class id are not kept; -100 if None. Soft targets use `mask`.
        label_smoothing: ε, in [0, 1).
        options: a `torch.nn.LinearCrossEntropyOptions`; its `batch_chunk_size` is the number of rows at a time.
        prior: u, shape ``[K]``, or laid out like the logits; uniform if None.
        class_prior: ``[K, K]``, row y is the u of true class y.
        mask: bool, the shape of class ids; True = kept.
        class_mask: bool, ``[K]`` or laid out like the logits; True = kept.
        weight_mode: ``"class"`` or ``"example"``.
        normalizer: what ``"mean"`` divides by instead.
        validate: check the values of the arguments. None: where that waits for no device.
        group: the process group over which the rows of `linear_weight` (and of `linear_bias`, and the classes of what
            is laid out like the logits) are spread, as in `vocab_parallel_cross_entropy`; None: they are all here. A
            DTensor that is sharded on dimension 0 brings its own. `input` and its gradient are the same everywhere.

    Returns:
        A scalar, or for ``"none"`` a tensor of the shape of class ids; float64 for float64 input, else float32.
        Gradients come back in the dtypes of `input`, `linear_weight` and `linear_bias`; there is no second derivative,
        but where the logits are whole.

    Raises:
        ValueError: as `cross_entropy`, whose logits are named ``input``; and shapes and dtypes that do not go together;
            anything else that requires a gradient.

    References:
        Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009.
        Hsu et al. 2024, Liger Kernel, arXiv 2410.10989, section 3.2: the gradient in the forward pass, in chunks.

    Example:
        >>> import torch
        >>> from labelsmooth.torch import linear_cross_entropy
        >>> hidden, classes = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], requires_grad=True)
        >>> loss = linear_cross_entropy(hidden, classes, torch.tensor([0, 1]), label_smoothing=0.1)
        >>> loss.detach()
        tensor(0.4955)
        >>> loss.backward()
    """
    given = {
        "weight": weight, "ignore_index": -100 if ignore_index is None else ignore_index, "reduction": reduction,
        "label_smoothing": label_smoothing, "prior": prior, "class_prior": class_prior, "mask": mask,
        "class_mask": class_mask, "weight_mode": weight_mode, "normalizer": normalizer, "validate": validate,
    }  # fmt: skip
    forced()  # is a path, though none of them but `_native` has a part in this
    if group is None and not torch.compiler.is_compiling() and (transformed() or forward_ad._current_level >= 0):
        return _of_whole_logits(input, linear_weight, linear_bias, target, options, given)
    return outside_graphs(_linear_cross_entropy)(input, linear_weight, linear_bias, target, options, group, given)


def _of_whole_logits(x: Any, w: Any, b: Any, target: Any, options: Any, given: dict[str, Any]) -> Tensor:
    """Under torch.func, tracing and forward differentiation, which need operations that they can see through."""
    x, w, b = _cast(x, w, b)
    _logits_like(x, w, b)
    _chunk_of(options)
    logits = torch.tensordot(x, w, ([-1], [-1]))  # pyright: ignore[reportArgumentType]
    return cross_entropy(logits if b is None else logits + b, target, **given)


def _linear_cross_entropy(
    input: Any, linear_weight: Any, linear_bias: Any, target: Any, options: Any, group: Any, given: dict[str, Any]
) -> Tensor:
    placements = tuple(getattr(linear_weight, "placements", ()))
    linear_weight, group = local(linear_weight, "linear_weight", group, 0)

    def prepare() -> Prepared:
        """All that can go wrong with the arguments of this process alone."""
        here = local_like(input, "input"), linear_weight, local_like(linear_bias, "linear_bias", placements)
        x, w, b = _cast(*here)
        alike = {
            "input": x,
            "what requires a gradient": [
                torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, w, b)
            ],
            "whether there is a linear_bias": b is not None,
            "rows at a time": _chunk_of(options),
        }
        here = {name: local_like(value, name) for name, value in given.items()}
        return Prepared(_logits_like(x, w, b), local_like(target, "target"), here, alike, (x, w, b))  # pyright: ignore

    if group is None:
        prepared, shards = prepare(), None
        asked = arguments(prepared.logits, prepared.target, prepared.values, **prepared.given)
        width = prepared.values[1].shape[0]
        terms = asked.terms(0, width, width)
    else:
        prepared, asked, terms, shards = settle(members(group), prepare)
        width = max(shards.sizes)
    x, w, b = prepared.values
    with torch.autocast(x.device.type, enabled=False):
        divisor = terms.divisor(asked.normalizer) if asked.reduction == "mean" else terms.alpha.new_ones(())

        # A layer with several outputs per class is a layer for each of them.
        outputs = math.prod(w.shape[1:-1])
        weights, biases = [w], [b]
        if w.dim() > 2:
            weights = w.flatten(1, -2).unbind(1)
            biases = [None] * outputs if b is None else b.flatten(1).unbind(1)
        x = x if x.dim() == 2 else x.unsqueeze(0)
        how = _How(asked.reduction, divisor, prepared.alike["rows at a time"], width, shards, asked.checked)
        results = [
            _of_one_layer(x, *layer, terms.part(slice(i, None, outputs)), how)
            for i, layer in enumerate(zip(weights, biases, strict=True))
        ]
    if asked.reduction == "none":
        return torch.stack(results, 1).view(asked.lead)
    return torch.stack(results).sum()


@dataclass(frozen=True)
class _How:
    """What is the same for all layers."""

    reduction: str
    divisor: Tensor
    chunk: int | None
    width: int
    shards: Shards | None
    checked: bool


def _of_one_layer(x: Tensor, w: Tensor, b: Tensor | None, terms: Terms, how: _How) -> Tensor:
    """The losses of the rows, or their sum over the divisor."""
    number, some = len(x), terms.kept()
    if some is not None:
        index, terms = some
        x = x.index_select(0, index)
    plan = _plan(len(x), how.width, w, how.chunk)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, w, b))
    if any(needs) and plan.columns is None and how.reduction != "none":
        return _Fused.apply(x, w, b, terms, how.divisor, plan, needs, how.shards, how.checked)  # pyright: ignore
    losses: Tensor = _Losses.apply(x, w, b, terms, plan, how.shards, how.checked)  # pyright: ignore
    if how.reduction != "none":
        return divided(losses.sum(), how.divisor)
    return losses if some is None else losses.new_zeros(number).index_copy(0, some[0], losses)


def _cast(x: Any, w: Any, b: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors of a layer, under autocast in its dtype, as those of a linear layer."""
    for value, name in ((x, "input"), (w, "linear_weight"), (b, "linear_bias")):
        if not isinstance(value, Tensor) and (value is not None or name != "linear_bias"):
            raise _checks.error(name, "be a tensor", repr(type(value)))
    if not torch.is_autocast_enabled(x.device.type):
        return x, w, b
    half = torch.get_autocast_dtype(x.device.type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(half) for t in (x, w, b))  # pyright: ignore


def _logits_like(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """A tensor without memory of the shape and dtype of the logits, where everything fits."""
    if not x.is_floating_point():
        raise _checks.error("input", "have a float dtype", x.dtype)
    if x.dim() not in (1, 2) or 0 in x.shape[-1:]:
        rule = "have shape [D] or [N, D] (flatten what comes before the features, and target likewise)"
        raise _checks.error("input", rule, tuple(x.shape))
    if w.dim() < 2 or w.shape[-1] != x.shape[-1] or (w.dim() > 2 and x.dim() == 1):
        more = "" if x.dim() == 1 else f" or [K, d1, ..., {x.shape[-1]}]"
        raise _checks.error("linear_weight", f"have shape [K, {x.shape[-1]}]{more}", tuple(w.shape))
    if b is not None and b.shape != w.shape[:-1]:
        raise _checks.error("linear_bias", f"have shape {tuple(w.shape[:-1])}", tuple(b.shape))
    for name, value in (("linear_weight", w), ("linear_bias", b)):
        if value is not None and (value.dtype != x.dtype or value.device != x.device):
            rule = f"have the dtype and device of input, {x.dtype} on {x.device}"
            raise _checks.error(name, rule, f"{value.dtype} on {value.device}")
    return torch.empty((*x.shape[:-1], *w.shape[:-1]), dtype=x.dtype, device="meta")


def _chunk_of(options: Any) -> int | None:
    """How many rows at a time `options` asks for; what they ask for besides must be what is done anyway."""
    if options is None:
        return None
    try:
        asked = {name: getattr(options, name) for name in ("chunking_method", "acc_policy", "acc_dtype")}
        rows = options.batch_chunk_size
    except AttributeError:
        raise _checks.error("options", "be a torch.nn.LinearCrossEntropyOptions", repr(options)) from None
    for name, done in (
        ("chunking_method", ("auto", None)),
        ("acc_policy", ("auto", "accurate")),
        ("acc_dtype", (None, torch.float32)),
    ):
        if asked[name] not in done:
            rule = (
                f"be {' or '.join(map(repr, done))} (chunks are chosen, and gradients accumulated in float32, anyway)"
            )
            raise _checks.error(f"options.{name}", rule, repr(asked[name]))
    return rows


@dataclass(frozen=True)
class _Plan:
    """How many rows, and how many classes (None: all), are worked on at once."""

    rows: int
    columns: int | None = None


def _plan(number: int, width: int, w: Tensor, chunk: int | None) -> _Plan:
    """Whole rows where enough of them fit, and the sums that they need beside half gradients; else some classes."""
    size = w.element_size()
    rows = _ROWS if w.device.type == "cpu" else _ROWS_ELSEWHERE
    rows = max(1, min(number, rows, _WHOLE_ROWS // max(1, width * size))) if chunk is None else chunk
    carried = width * w.shape[-1] * 4 if size == 2 and rows < number else 0
    if chunk is not None or (rows >= min(number, _LEAST_ROWS) and carried <= _CARRIED):
        return _Plan(rows)
    rows = max(1, min(number, 4096))
    return _Plan(rows, max(1, _PART // (4 * rows)))


def _logits(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor | None = None) -> Tensor:
    return torch.mm(x, w.T, out=out) if b is None else torch.addmm(b, x, w.T, out=out)


def _rows_of(x: Tensor, terms: Terms, rows: slice) -> Tensor:
    """The rows, with 0 in those that are not kept: 0 times nan in them would be nan in the gradient of the weights."""
    x = x[rows]
    return x if terms.keep is None else x.masked_fill(~terms.keep[rows].unsqueeze(1), 0)


def loss_and_gradient_(
    z: Tensor, terms: Terms, rows: slice, scale: Tensor, shards: Shards | None, checked: bool
) -> Tensor:
    """The losses of `rows`, whose logits over all classes here become the gradient of scale · Σ loss, in place."""
    if shards is None and terms.plain and _native.takes(z):
        assert terms.ids is not None
        smoothing = 0.0 if terms.vector is None else float(terms.beta[0])
        return _native.loss_and_gradient_(z, terms.ids[rows], smoothing, float(scale), checked)
    losses = torch.empty(len(z), dtype=terms.dtype, device=z.device)
    columns = slice(0, terms.width)
    for part in parts_of(z.shape, z.device) if shards is None else (slice(0, len(z)),):
        at = slice(rows.start + part.start, rows.start + part.stop)
        total, tile = terms.total[at], terms.tile(at, columns)
        t = terms.masked_(z[part].to(terms.dtype), at, columns)
        here = statistics_(t, tile)
        found = here if shards is None else shards.together(here)
        if checked:
            terms.check_finite(found.top, at)
        losses[part] = found.loss(total)
        t.mul_((total * scale / found.exps * (here.top - finite(found.top)).exp()).unsqueeze(1))
        tile.subtract_(t, scale)
        if z.dtype != t.dtype:
            z[part] = t
    return losses


class _Fused(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows: three matmuls."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, terms: Terms, divisor: Tensor, plan: _Plan,
        needs: tuple[bool, bool, bool], shards: Shards | None, checked: bool,
    ) -> Tensor:  # fmt: skip
        # In float16 the gradient of a mean would vanish before the loss scale reaches it: it is divided in `backward`.
        late = x.dtype == torch.float16
        rate = divided(torch.ones_like(divisor), divisor)
        dtype = torch.promote_types(x.dtype, torch.float32)
        chunks = list(blocks(len(x), plan.rows))
        space = x.new_empty((max(rows.stop - rows.start for rows in chunks), terms.width))
        losses = torch.empty(len(x), dtype=dtype, device=x.device)
        dx = torch.empty_like(x, dtype=dtype if late or shards is not None else x.dtype) if needs[0] else None
        dw = _Products(w, alone=len(chunks) == 1 and not late) if needs[1] else None
        db = torch.zeros(len(w), dtype=dtype, device=w.device) if needs[2] else None
        for rows in chunks:
            some = _rows_of(x, terms, rows)
            z = _logits(some, w, b, out=space[: len(some)])
            losses[rows] = loss_and_gradient_(z, terms, rows, torch.ones_like(rate) if late else rate, shards, checked)
            if dx is not None:
                dx[rows] = z @ w
            if dw is not None:
                dw.add(z, some)
            if db is not None:
                db += z.sum(0, dtype=dtype)
        if dx is not None and shards is not None:
            shards.summed(dx)
        gradients = (dx, None if dw is None else dw.total, db)
        ctx.dtype = x.dtype
        ctx.save_for_backward(rate if late else None, *(g if g is None or late else g.to(x.dtype) for g in gradients))
        return divided(losses.sum(), divisor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        refuse_a_second_derivative("linear_cross_entropy")
        rate, *gradients = ctx.saved_tensors
        factor = upstream if rate is None else upstream * rate
        again = _get_current_graph_task_keep_graph()
        several = is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream)  # upstream gradients at once
        known = not several and at_hand(factor)
        one = known and float(factor) == 1

        def scaled(g: Tensor | None) -> Tensor | None:
            if g is None:
                return None
            if several or (again and not known):
                return (g * factor).to(ctx.dtype)
            g = g.clone() if again else g
            if not one:
                g = times_(g, factor, -1) if known else g.mul_(factor)
            return g.to(ctx.dtype)

        return *map(scaled, gradients), *(None,) * 6


class _Products:
    """Σ zᵀ x over chunks of rows, in float32 where z and x are half.

    On a CPU the sum of bfloat16 products takes no float32 beside the result: the upper half of its bits, rounded, are
    the result, and the lower half are kept in `rest`.
    """

    def __init__(self, like: Tensor, alone: bool) -> None:
        half = like.element_size() == 2
        self.alone = alone
        split = like.dtype == torch.bfloat16 and like.device.type == "cpu" and not alone
        self.rest = torch.zeros(like.shape, dtype=torch.int16, device="cpu") if split else None
        rows = next(parts_of(like.shape, like.device)).stop + 1 if split else 0
        self.space = torch.empty((rows, like.shape[1]), dtype=torch.int32, device="cpu")
        dtype = torch.float32 if half and not split and not alone else like.dtype
        self.total = torch.zeros(like.shape, dtype=dtype, device=like.device)

    def add(self, z: Tensor, x: Tensor) -> None:
        if self.alone or (z.dtype == self.total.dtype and self.rest is None):
            torch.addmm(self.total, z.T, x, out=self.total)  # counters of operations know no addmm_
            return
        for some in parts_of(self.total.shape, self.total.device):
            product, total = z[:, some].T @ x, self.total[some]
            if self.rest is None:
                total += product
                continue
            # The lower half is a number from -2^15, so that the upper half is rounded to nearest.
            upper, lower, bits = total.view(torch.int16), self.rest[some], self.space[: len(total)]
            bits.copy_(upper).bitwise_left_shift_(16).add_(lower)
            bits.view(torch.float32).add_(product)
            lower.copy_(bits)
            upper.copy_(bits.sub_(lower).bitwise_right_shift_(16))


class _Losses(torch.autograd.Function):
    """The losses of the rows; the backward pass makes the logits anew: four matmuls, but no sums beside the results."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        terms: Terms,
        plan: _Plan,
        shards: Shards | None,
        checked: bool,
    ) -> Tensor:
        parts = []
        for rows in blocks(len(x), plan.rows):
            some, found = _rows_of(x, terms, rows), None
            for columns in blocks(terms.width, plan.columns or terms.width):
                z = _logits(some, w[columns], None if b is None else b[columns]).to(terms.dtype)
                here = statistics_(terms.masked_(z, rows, columns), terms.tile(rows, columns))
                found = here if found is None else found.with_those_of(here)
            parts.append(found)
        found = joined(parts)
        found = found if shards is None else shards.together(found)
        if checked:
            terms.check_finite(found.top, slice(None))
        ctx.save_for_backward(x, w, b, found.top, found.exps, *terms.watched())
        ctx.terms, ctx.plan, ctx.shards = terms, plan, shards
        return found.loss(terms.total)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        refuse_a_second_derivative("linear_cross_entropy")
        if is_batchedtensor(upstream) or is_legacy_batchedtensor(upstream):
            raise RuntimeError("linear_cross_entropy by chunks of classes takes one upstream gradient at a time")
        x, w, b, top, exps, *_ = ctx.saved_tensors
        terms, plan, shards = ctx.terms, ctx.plan, ctx.shards
        dx = torch.zeros_like(x, dtype=terms.dtype) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(w) if ctx.needs_input_grad[1] else None
        db = torch.empty_like(b) if ctx.needs_input_grad[2] else None
        with torch.autocast(x.device.type, enabled=False):
            for columns in blocks(terms.width, plan.columns or terms.width):
                weights, bias = w[columns], None if b is None else b[columns]
                here = w.new_zeros(weights.shape, dtype=terms.dtype) if dw is not None else None
                along = w.new_zeros(len(weights), dtype=terms.dtype)
                for rows in blocks(len(x), plan.rows):
                    some = _rows_of(x, terms, rows)
                    z = _logits(some, weights, bias).to(terms.dtype)
                    z = terms.masked_(z, rows, columns)
                    z = gradient_(z, terms, rows, columns, top[rows], exps[rows], upstream[rows])
                    along += z.sum(0)
                    z = z.to(x.dtype)
                    if dx is not None:
                        dx[rows] += z @ weights
                    if here is not None:
                        here += z.T @ some
                if dw is not None and here is not None:
                    dw[columns] = here
                if db is not None:
                    db[columns] = along
            if dx is not None and shards is not None:
                shards.summed(dx)
        return None if dx is None else dx.to(x.dtype), dw, db, None, None, None, None
