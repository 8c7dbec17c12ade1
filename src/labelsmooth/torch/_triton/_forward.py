"""The forward kernels: every row's loss, and its gradient in the same launch.

A row that fits on chip is read once and written once. A longer one is read twice: an online softmax first, then the
gradient from the last block to the first, since the last ones are still in the cache.
"""

import triton
import triton.language as tl

from labelsmooth.torch._triton._tile import (
    cells_of_tile,
    coefficients,
    gradient_of_tile,
    kept_classes,
    kept_rows,
    logit_of_label,
    multiple,
    prior_of_tile,
    rows_of_tile,
    weight_of_rows,
)

TILE = 2048  # cells of a tile of short rows
# Cells of a tile that 32 warps of an sm_90 keep in registers without spilling; `_op._plan` takes less where there is
# more than labels. Longer rows go in blocks, with few rows at a time, so that the second read finds them cached.
ON_CHIP = 32768


@triton.jit
def _scale(divisor, PARTIALS: tl.constexpr):
    """1 / the sum of the partial divisors; 0 where that is 0."""
    total = tl.sum(tl.load(divisor + tl.arange(0, PARTIALS)).to(tl.float32))
    return tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))


@triton.jit
def _finish(
    loss, row, keep, there, wrong, row_weight, divisor, upstream, losses,
    EXAMPLE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Stores the loss of the rows; returns what their gradients are multiplied by."""
    factor = tl.where(wrong, float("nan"), 1.0)
    if EXAMPLE:
        loss = tl.where(row_weight == 0, 0.0, loss * row_weight)
        factor *= row_weight
    loss = tl.where(wrong, float("nan"), loss)
    if divisor is not None:
        scale = _scale(divisor, PARTIALS)
        loss = tl.where(scale == 0, 0.0, loss * scale)
        factor *= scale
    if upstream is not None:
        factor *= tl.load(upstream + row, mask=there, other=0)
    if losses is not None:
        tl.store(losses + row, tl.where(keep, loss, 0.0), mask=there)
    return factor


@triton.jit
def _logits_of_tile(
    logits, o, i, k, there, valid, K, z_outer, z_inner, z_class, CLASS_LAST: tl.constexpr, EVICT: tl.constexpr
):  # fmt: skip
    """z, -inf where a cell is not kept."""
    place = logits + (o * z_outer + i * z_inner)[:, None]
    if CLASS_LAST:
        z = tl.load(place + k[None, :], mask=valid, other=float("-inf"), eviction_policy=EVICT)  # pyright: ignore
        return z.to(tl.float32)
    # Neighbours in memory are rows here: a mask that depends on their labels would load them one by one.
    inside = there[:, None] & (k < K)[None, :]
    z = tl.load(place + (k.to(tl.int64) * z_class)[None, :], mask=inside, other=0, eviction_policy=EVICT)  # pyright: ignore
    return tl.where(valid, z.to(tl.float32), float("-inf"))


@triton.jit
def rows_on_chip(
    logits, labels, q, weight, prior, class_mask, divisor, upstream, losses, gradient,
    K, inner, z_outer, z_inner, z_class, ignore_index, smoothing,
    CLASS_LAST: tl.constexpr, PRIOR: tl.constexpr, CLASS_MASK: tl.constexpr, INSIDE: tl.constexpr,
    PARTIALS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    K, z_outer, z_inner = multiple(K, ALIGN), multiple(z_outer, ALIGN), multiple(z_inner, ALIGN)
    EXAMPLE: tl.constexpr = weight is not None and not INSIDE
    # Labels and uniform smoothing alone: the coefficients take two values, and no tile of them is needed.
    PLAIN: tl.constexpr = (PRIOR == "none" or PRIOR == "uniform") and CLASS_MASK == "none" and q is None and not INSIDE
    o, i, row = rows_of_tile(tl.program_id(0), inner, ROWS)
    there = i < inner
    k = tl.arange(0, BLOCK)
    cells = cells_of_tile(o, i, k, K, inner, CLASS_LAST)
    keep, y, wrong = kept_rows(labels, q, row, there, K, ignore_index)
    inside = keep[:, None] & (k < K)[None, :]
    valid = kept_classes(k, cells, inside, K, class_mask, CLASS_MASK)

    z = _logits_of_tile(logits, o, i, k, there, valid, K, z_outer, z_inner, z_class, CLASS_LAST, "")
    top = tl.max(z, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    z -= top[:, None]

    share = tl.full([ROWS], smoothing, tl.float32)
    if CLASS_MASK != "none" and PRIOR != "none":
        mass = tl.sum(prior_of_tile(k, cells, y, valid, K, prior, PRIOR), 1)
        share /= tl.where(mass == 0, 1.0, mass)
    # Σ_k c_k and Σ_k c_k z_k, before the exponentials, so that no second tile is live beside z.
    if PLAIN:
        total = tl.full([ROWS], 1.0, tl.float32)
        weighted = (1.0 - smoothing) * (logit_of_label(logits, o, i, y, keep, z_outer, z_inner, z_class) - top)
        if PRIOR == "uniform":
            weighted += smoothing / K * tl.sum(tl.where(inside, z, 0.0), 1)
    else:
        c = coefficients(k, cells, y, inside, valid, share, K, smoothing, q, weight, prior, PRIOR, INSIDE)
        total = tl.sum(c, 1)
        weighted = tl.sum(tl.where(c == 0, 0.0, c * z), 1)  # 0·(-inf) is 0
    e = tl.exp(z)
    d = tl.sum(e, 1)

    row_weight = total
    if EXAMPLE:
        row_weight = weight_of_rows(k, cells, y, inside, K, q, weight)
    loss = total * tl.log(d) - weighted
    factor = _finish(loss, row, keep, there, wrong, row_weight, divisor, upstream, losses, EXAMPLE, PARTIALS)
    if gradient is not None:
        g = gradient_of_tile(
            e, k, cells, y, inside, valid, total / d, factor, share, K, smoothing, q, weight, prior,
            PLAIN, PRIOR, INSIDE,
        )  # fmt: skip
        if IN_PLACE:
            tl.debug_barrier()  # another thread may not have read its logit yet
        tl.store(gradient + cells, tl.where(valid, g, 0.0), mask=there[:, None] & (k < K)[None, :])


@triton.jit
def rows_in_blocks(
    logits, labels, q, weight, prior, class_mask, divisor, upstream, losses, gradient,
    K, inner, z_outer, z_inner, z_class, ignore_index, smoothing,
    CLASS_LAST: tl.constexpr, PRIOR: tl.constexpr, CLASS_MASK: tl.constexpr, INSIDE: tl.constexpr,
    PARTIALS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    K, z_outer, z_inner = multiple(K, ALIGN), multiple(z_outer, ALIGN), multiple(z_inner, ALIGN)
    EXAMPLE: tl.constexpr = weight is not None and not INSIDE
    # Labels and uniform smoothing alone: the coefficients take two values, and no tile of them is needed.
    PLAIN: tl.constexpr = (PRIOR == "none" or PRIOR == "uniform") and CLASS_MASK == "none" and q is None and not INSIDE
    o, i, row = rows_of_tile(tl.program_id(0), inner, ROWS)
    there = i < inner
    keep, y, wrong = kept_rows(labels, q, row, there, K, ignore_index)

    share = tl.full([ROWS], smoothing, tl.float32)
    if CLASS_MASK != "none" and PRIOR != "none":
        mass = tl.zeros([ROWS], tl.float32)
        for start in range(0, K, BLOCK):
            k = start + tl.arange(0, BLOCK)
            cells = cells_of_tile(o, i, k, K, inner, CLASS_LAST)
            inside = keep[:, None] & (k < K)[None, :]
            valid = kept_classes(k, cells, inside, K, class_mask, CLASS_MASK)
            mass += tl.sum(prior_of_tile(k, cells, y, valid, K, prior, PRIOR), 1)
        share /= tl.where(mass == 0, 1.0, mass)

    # d, Σ_k c_k and Σ_k c_k z_k, with z relative to the maximum of the blocks so far.
    top = tl.full([ROWS], float("-inf"), tl.float32)
    shift = tl.zeros([ROWS], tl.float32)
    d = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS], tl.float32)
    row_weight = tl.zeros([ROWS], tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        cells = cells_of_tile(o, i, k, K, inner, CLASS_LAST)
        inside = keep[:, None] & (k < K)[None, :]
        valid = kept_classes(k, cells, inside, K, class_mask, CLASS_MASK)
        z = _logits_of_tile(logits, o, i, k, there, valid, K, z_outer, z_inner, z_class, CLASS_LAST, "evict_last")
        before = top
        top = tl.maximum(top, tl.max(z, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        moved = tl.where(before == float("-inf"), 0.0, before - shift)
        z -= shift[:, None]
        weighted += total * moved
        if not PLAIN:
            c = coefficients(k, cells, y, inside, valid, share, K, smoothing, q, weight, prior, PRIOR, INSIDE)
            weighted += tl.sum(tl.where(c == 0, 0.0, c * z), 1)
            total += tl.sum(c, 1)
        elif PRIOR == "uniform":
            weighted += smoothing / K * tl.sum(tl.where(inside, z, 0.0), 1)
            total += smoothing / K * tl.minimum(K - start, BLOCK)
        if EXAMPLE:
            row_weight += weight_of_rows(k, cells, y, inside, K, q, weight)
        d = d * tl.exp(moved) + tl.sum(tl.exp(z), 1)
    if PLAIN:
        total = tl.full([ROWS], 1.0, tl.float32)
        weighted += (1.0 - smoothing) * (logit_of_label(logits, o, i, y, keep, z_outer, z_inner, z_class) - shift)

    if EXAMPLE and q is None:
        row_weight = tl.load(weight + y).to(tl.float32)
    loss = total * tl.log(d) - weighted
    factor = _finish(loss, row, keep, there, wrong, row_weight, divisor, upstream, losses, EXAMPLE, PARTIALS)
    if gradient is not None:
        blocks = tl.cdiv(K, BLOCK)
        for block in range(blocks):
            k = (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
            cells = cells_of_tile(o, i, k, K, inner, CLASS_LAST)
            inside = keep[:, None] & (k < K)[None, :]
            valid = kept_classes(k, cells, inside, K, class_mask, CLASS_MASK)
            z = _logits_of_tile(logits, o, i, k, there, valid, K, z_outer, z_inner, z_class, CLASS_LAST, "evict_first")
            e = tl.exp(z - shift[:, None])
            g = gradient_of_tile(
                e, k, cells, y, inside, valid, total / d, factor, share, K, smoothing, q, weight, prior,
                PLAIN, PRIOR, INSIDE,
            )  # fmt: skip
            here = there[:, None] & (k < K)[None, :]
            if IN_PLACE:
                tl.debug_barrier()
            tl.store(gradient + cells, tl.where(valid, g, 0.0), mask=here, eviction_policy="evict_first")
