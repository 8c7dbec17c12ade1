"""What the kernels share: which rows and classes a tile holds, and the coefficients c_k of the loss Σ_k c_k (-log p_k).

Logits are ``[outer, inner, K]`` of any strides. Everything else that has a class axis is dense, and so is the
gradient: with `CLASS_LAST` the classes of a row are adjacent, otherwise the rows of an outer index are (images, whose
class axis stands before height and width). A tile is `ROWS` rows of one outer index by `BLOCK` classes.
"""

import triton
import triton.language as tl


@triton.jit
def multiple(size, ALIGN: tl.constexpr):
    """`size`, which is a multiple of `ALIGN`, so that the compiler knows it and moves 16 bytes at a time.

    Triton finds that out by itself for multiples of 16 alone; 1000 classes are none.
    """
    return size // ALIGN * ALIGN


@triton.jit
def rows_of_tile(tile, inner, ROWS: tl.constexpr):
    """Outer index, inner indices, and the rows' numbers; 64 bits, since rows x classes may exceed 2^31."""
    tiles = tl.cdiv(inner, ROWS)
    o = (tile // tiles).to(tl.int64)
    i = (tile % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return o, i, o * inner + i


@triton.jit
def cells_of_tile(o, i, k, K, inner, CLASS_LAST: tl.constexpr):
    """Where the cells of a tile lie in a dense array."""
    if CLASS_LAST:
        cells = ((o * inner + i) * K)[:, None] + k[None, :]
    else:
        cells = (o * inner * K + i)[:, None] + (k.to(tl.int64) * inner)[None, :]
    return cells


@triton.jit
def kept_rows(labels, q, row, there, K, ignore_index):
    """Which rows are kept, their class ids, and which ids are out of range (read as 0, so that no address is wrong).

    With soft targets `labels` is their mask or None: a row is kept where it differs from an `ignore_index` of 0.
    """
    keep = there
    y = tl.zeros_like(row)
    wrong = tl.zeros_like(there)
    if labels is not None:
        given = tl.load(labels + row, mask=there, other=0).to(tl.int64)
        keep = there & (given != ignore_index)
        if q is None:
            wrong = keep & ((given < 0) | (given >= K))
            y = tl.where(keep & ~wrong, given, 0)
    return keep, y, wrong


@triton.jit
def kept_classes(k, cells, inside, K, class_mask, CLASS_MASK: tl.constexpr):
    """Which cells of a tile are kept: those of kept rows that `class_mask` does not take out."""
    valid = inside
    if CLASS_MASK == "classes":
        valid = inside & (tl.load(class_mask + k, mask=k < K, other=0) != 0)[None, :]
    if CLASS_MASK == "rows":
        valid = inside & (tl.load(class_mask + cells, mask=inside, other=0) != 0)
    return valid


@triton.jit
def prior_of_tile(k, cells, y, valid, K, prior, PRIOR: tl.constexpr):
    """u_k, 0 where a cell is not kept; not yet renormalised over the kept classes."""
    if PRIOR == "uniform":
        u = tl.where(valid, 1.0 / K, 0.0)
    else:
        if PRIOR == "classes":
            u = tl.load(prior + k, mask=k < K, other=0).to(tl.float32)[None, :]
        elif PRIOR == "labels":
            u = tl.load(prior + (y * K)[:, None] + k[None, :], mask=valid, other=0).to(tl.float32)
        else:
            u = tl.load(prior + cells, mask=valid, other=0).to(tl.float32)
        u = tl.where(valid, u, 0.0)
    return u


@triton.jit
def coefficients(
    k, cells, y, inside, valid, share, K, smoothing, q, weight, prior, PRIOR: tl.constexpr, INSIDE: tl.constexpr
):  # fmt: skip
    """c_k = w_k ((1-ε) q_k + share·u_k), w only in weight mode "class"; `share` is ε over the kept mass of u."""
    if q is None:
        c = tl.where(k[None, :] == y[:, None], 1.0 - smoothing, 0.0)
    else:
        c = tl.load(q + cells, mask=inside, other=0).to(tl.float32) * (1.0 - smoothing)
    if PRIOR != "none":
        c += share[:, None] * prior_of_tile(k, cells, y, valid, K, prior, PRIOR)
    if INSIDE:
        w = tl.load(weight + k, mask=k < K, other=0).to(tl.float32)
        # The weight of a class without mass may be anything.
        c = tl.where(c == 0, 0.0, c * w[None, :])
    return c


@triton.jit
def weight_of_rows(k, cells, y, inside, K, q, weight):
    """This tile's part of Σ_k w_k q_k; with labels w_y."""
    if q is None:
        w = tl.load(weight + y).to(tl.float32)
    else:
        w = tl.load(weight + k, mask=k < K, other=0).to(tl.float32)
        w = tl.sum(tl.load(q + cells, mask=inside, other=0).to(tl.float32) * w[None, :], 1)
    return w


@triton.jit
def logit_of_label(logits, o, i, y, keep, z_outer, z_inner, z_class):
    return tl.load(logits + (o * z_outer + i * z_inner + y * z_class), mask=keep, other=0).to(tl.float32)


@triton.jit
def gradient_of_tile(
    e, k, cells, y, inside, valid, p_of_e, factor, share, K, smoothing, q, weight, prior,
    PLAIN: tl.constexpr, PRIOR: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """(Σ_j c_j p_k - c_k) times `factor`."""
    if PLAIN:
        floor = smoothing / K if PRIOR == "uniform" else 0.0
        at_label = ((floor + 1.0 - smoothing) * factor)[:, None]
        c = tl.where(k[None, :] == y[:, None], at_label, (floor * factor)[:, None])
        g = e * (p_of_e * factor)[:, None] - c
    else:
        c = coefficients(k, cells, y, inside, valid, share, K, smoothing, q, weight, prior, PRIOR, INSIDE)
        g = (e * p_of_e[:, None] - c) * factor[:, None]
    return g
