"""What ``"mean"`` divides by: the weight of the kept rows, before the forward kernel, on the device."""

import triton
import triton.language as tl

from labelsmooth.torch._triton._tile import cells_of_tile, kept_rows, weight_of_rows

PARTIALS = 64  # programs, each with its own sum: no atomics, so the same number every time


@triton.jit
def kept_weight(
    labels, q, weight, partials, rows, K, inner, ignore_index,
    CLASS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program p's part of Σ_i ŵ_i over the kept rows i, with ŵ_i = Σ_k w_k q_k, or 1 without weights."""
    kept = tl.zeros([ROWS], tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in range(first, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        keep, y, _ = kept_rows(labels, q, row, row < rows, K, ignore_index)
        w = tl.full([ROWS], 1.0, tl.float32)
        if weight is not None:
            if q is None:
                w = tl.load(weight + y).to(tl.float32)
            else:
                w = tl.zeros([ROWS], tl.float32)
                for classes in range(0, K, BLOCK):
                    k = classes + tl.arange(0, BLOCK)
                    cells = cells_of_tile(row // inner, row % inner, k, K, inner, CLASS_LAST)
                    w += weight_of_rows(k, cells, y, keep[:, None] & (k < K)[None, :], K, q, weight)
        kept += tl.where(keep, w, 0.0)
    tl.store(partials + tl.program_id(0), tl.sum(kept))
