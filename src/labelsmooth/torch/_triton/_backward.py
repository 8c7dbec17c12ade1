"""The backward kernel: the gradient of the forward pass times the upstream gradient, in place.

The device decides: where the upstream gradient is 1, nothing is read and nothing is written.
"""

import triton
import triton.language as tl

from labelsmooth.torch._triton._tile import cells_of_tile, multiple, rows_of_tile


@triton.jit
def scale_rows(
    gradient, upstream, tiles, K, inner, u_outer, u_inner,
    CLASS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    K = multiple(K, ALIGN)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        o, i, _ = rows_of_tile(tile, inner, ROWS)  # pyright: ignore[reportGeneralTypeIssues]
        there = i < inner
        factor = tl.load(upstream + o * u_outer + i * u_inner, mask=there, other=1.0)
        if tl.max((factor != 1.0).to(tl.int32)) == 1:
            for start in range(0, K, BLOCK):
                k = start + tl.arange(0, BLOCK)
                cells = cells_of_tile(o, i, k, K, inner, CLASS_LAST)
                inside = there[:, None] & (k < K)[None, :]
                g = tl.load(gradient + cells, mask=inside, other=0).to(tl.float32)
                # The gradient of a row that is not kept stays 0 where the upstream gradient is inf or nan.
                tl.store(gradient + cells, tl.where(g == 0, 0.0, g * factor[:, None]), mask=inside)
