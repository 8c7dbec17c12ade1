"""Cross-entropy with label smoothing of logits whose classes are spread over the processes of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labelsmooth import _checks
from labelsmooth.torch._shards import Prepared, Shards, local, local_like, members, settle
from labelsmooth.torch._terms import (
    Terms,
    divided,
    gradient_,
    joined,
    outside_graphs,
    parts_of,
    refuse_a_second_derivative,
    statistics_,
)


def vocab_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: Any = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    prior: Tensor | None = None,
    class_prior: Tensor | None = None,
    mask: Tensor | None = None,
    class_mask: Tensor | None = None,
    weight_mode: str = "class",
    normalizer: Tensor | float | None = None,
    validate: bool | None = None,
) -> Tensor:
    """`labelsmooth.torch.cross_entropy` of logits whose K classes are spread over processes (tensor parallelism).

    Every process of the group calls it with its own classes of the same examples, and gets the loss over all K classes
    and the exact gradient of its own logits; ε is spread over all K. A call takes one MAX all-reduce of N values and
    one SUM of 2N (and one more of what soft targets, and priors and class masks by example, add up to); the backward
    pass takes none.

    What every class has (`weight`, a `prior` or `class_mask` of shape ``[K]``, `class_prior`) is given whole, the same
    on every process; what is laid out like `input` is sharded like `input`.

    Args:
        input: this process's classes of the logits, shape ``[K_r]``, ``[N, K_r]`` or ``[N, K_r, d1, ...]``, K = Σ_r
            K_r in the order of the ranks; or a DTensor, sharded on its class dimension over one mesh dimension.
        target: class ids in 0..K-1, the same on every process; or this process's classes of the targets, laid out
            like `input`.
        group: the process group; that of all processes if None (a DTensor brings its own).
        weight: class weights, shape ``[K]``.
        ignore_index: rows with this class id are not kept.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        label_smoothing: ε, in [0, 1).
        prior: u, shape ``[K]``, or laid out like `input`; uniform over all K if None.
        class_prior: ``[K, K]``, row y is the u of true class y; with class ids alone.
        mask: bool, the shape of `input` without the class axis; True = kept.
        class_mask: bool, ``[K]`` or laid out like `input`; True = kept.
        weight_mode: ``"class"`` or ``"example"``.
        normalizer: what ``"mean"`` divides by instead.
        validate: check the values, and in every call that all processes were called alike. None: where that waits for
            no device; there, and for False, only the first call with the same options and sizes compares them, and a
            class id that no process has makes the loss nan.

    Returns:
        The same on every process: a scalar, or for ``"none"`` a tensor of the shape of `input` without the class axis;
        float64 for float64 logits, else float32. Gradients come back as `input` came, in its dtype and as a DTensor.
        Every process must use the result alike: the gradient that comes from above is not summed over them.

    Raises:
        ValueError: as `cross_entropy`, raised on all processes where values are checked; processes that disagree on an
            argument, each one's value named; no process group.

    References:
        Shoeybi et al. 2019, Megatron-LM, arXiv 1909.08053, section 3 (without smoothing).

    Example:
        Under ``torchrun --nproc-per-node 2``, each process with half of the classes::

            logits = hidden @ my_half_of_the_classes.T
            loss = vocab_parallel_cross_entropy(logits, labels, label_smoothing=0.1)
            loss.backward()
    """
    given = {
        "weight": weight, "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing,
        "prior": prior, "class_prior": class_prior, "mask": mask, "class_mask": class_mask, "weight_mode": weight_mode,
        "normalizer": normalizer, "validate": validate,
    }  # fmt: skip
    return outside_graphs(_vocab_parallel_cross_entropy)(input, target, group, given)


def _vocab_parallel_cross_entropy(input: Any, target: Any, group: Any, given: dict[str, Any]) -> Tensor:
    dim = 0 if isinstance(input, Tensor) and input.dim() == 1 else 1
    placements = tuple(getattr(input, "placements", ()))
    input, group = local(input, "input", group, dim)

    def prepare() -> Prepared:
        if not isinstance(input, Tensor):
            raise _checks.error("input", "be a tensor", repr(type(input)))
        here = {name: local_like(x, name, placements) for name, x in given.items()}
        return Prepared(input, local_like(target, "target", placements), here, {}, (input,))

    with torch.autocast(getattr(input, "device", torch.device("cpu")).type, enabled=False):
        _, asked, terms, shards = settle(members(group), prepare)
        rows = input.movedim(dim, -1).reshape(len(terms.alpha), shards.width)
        losses = _Losses.apply(rows, terms, shards, asked.checked)
        assert isinstance(losses, Tensor)
        if asked.reduction == "none":
            return losses.view(asked.lead)
        return losses.sum() if asked.reduction == "sum" else divided(losses.sum(), terms.divisor(asked.normalizer))


class _Losses(torch.autograd.Function):
    """Logits ``[N, K_r]`` to losses ``[N]``; what the backward pass needs beside the logits has one number per row."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, terms: Terms, shards: Shards, checked: bool) -> Tensor:
        columns, parts = slice(0, terms.width), []
        for rows in parts_of(input.shape, input.device):
            z = terms.masked_(input[rows].to(terms.dtype, copy=True), rows, columns)
            parts.append(statistics_(z, terms.tile(rows, columns)))
        found = shards.together(joined(parts))
        if checked:
            terms.check_finite(found.top, slice(None))
        ctx.save_for_backward(input, found.top, found.exps, *terms.watched())
        ctx.terms = terms
        return found.loss(terms.total)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        refuse_a_second_derivative("vocab_parallel_cross_entropy")
        input, top, exps, *_ = ctx.saved_tensors
        terms: Terms = ctx.terms
        columns, gradient = slice(0, terms.width), torch.empty_like(input)
        with torch.autocast(input.device.type, enabled=False):
            for rows in parts_of(input.shape, input.device):
                z = terms.masked_(input[rows].to(terms.dtype, copy=True), rows, columns)
                gradient[rows] = gradient_(z, terms, rows, columns, top[rows], exps[rows], upstream[rows])
        return gradient, None, None, None
