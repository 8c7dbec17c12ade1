"""What the figures of a row are made of: sums over its classes, by the CPU kernel or, where there is none, by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labelsmooth.evaluation import _blocks
from labelsmooth.evaluation.calibration import bin_of

try:
    from labelsmooth import _native as kernel
except ImportError:  # installed without a compiler
    kernel: Any = None


class Sums(NamedTuple):
    """Of n rows, with z the logits less their largest, y the label, e = exp(z / T) and p = e / Σe.

    Attributes:
        predicted: int64 ``[n]``, the first class of the largest logit.
        top5: bool ``[n]``, fewer than five classes come before the label; of equal logits the first comes first.
        whole: float64 ``[4, n]``: z of the label, the largest other z, Σz and Σz².
        scaled: float64 ``[temperatures, 4, n]``: over the classes but the label's Σe and Σe², then e and p of the
            label. Apart from it, sums over the others keep their digits where its p is nearly 1.
    """

    predicted: np.ndarray
    top5: np.ndarray
    whole: np.ndarray
    scaled: np.ndarray


def row_sums(
    block: np.ndarray,
    labels: np.ndarray,
    first: int,
    temperatures: Sequence[float],
    edges: np.ndarray,
    cells: np.ndarray,
    buffers: np.ndarray,
) -> Sums:
    """The sums of some rows, whose p are counted into cells.

    Args:
        block: logits ``[n, K]``, real.
        labels: int64 ``[n]``, in ``0..K-1``.
        first: the number of the first row, for messages.
        temperatures: what the logits are divided by.
        edges: ``[bins + 1]``, of the logits' `_blocks.precision`.
        cells: float64 ``[temperatures, 3, K * bins]``, added to: how many p lie in each bin of each class (but for the
            lowest, which is not counted), Σp and Σp(1-p).
        buffers: ``[2, n or more, K]`` of that precision, to work in.

    Raises:
        ValueError: nan, +inf, or a row of nothing but -inf.
    """
    limits = np.finfo(edges.dtype)  # between which 1 / T times 0 is 0, and times -inf is -inf
    inverse = [min(max(1 / temperature, float(limits.tiny)), float(limits.max)) for temperature in temperatures]
    if not _by_kernel(block.dtype):
        return _row_sums_by_numpy(block, labels, first, inverse, edges, cells, buffers)
    ids, numbers = np.empty((2, len(block)), np.int64), np.empty((4 + 4 * len(inverse), len(block)))
    plain = np.require(block, edges.dtype, ["C", "A"])
    wrong = kernel.row_sums(plain, labels, inverse, edges, ids, numbers, cells)
    if wrong >= 0:
        raise _blocks.without_softmax(block[wrong], first + wrong)
    return Sums(ids[0], ids[1] < 5, numbers[:4], numbers[4:].reshape(-1, 4, len(block)))


def slopes(
    block: np.ndarray, labels: np.ndarray, first: int, beta: float, name: str, stride: int, buffers: np.ndarray
) -> np.ndarray:
    """The first and the second derivative of the summed NLL in β = 1/T: Σ (E_p z - z_y) and Σ Var_p z.

    Args:
        block: logits ``[n, K]``, real.
        labels: int64 ``[n]``, in ``0..K-1``; a row whose label's logit is -inf is left out.
        first: the number of the first row, for messages.
        beta: β.
        name: what the logits are called in messages.
        stride: by how much the numbers of the rows grow.
        buffers: ``[2, n or more, K]`` of the logits' `_blocks.precision`, to work in.

    Raises:
        ValueError: nan, +inf, or a row of nothing but -inf.
    """
    if not _by_kernel(block.dtype):
        return _slopes_by_numpy(block, labels, first, beta, name, stride, buffers)
    sums = np.zeros(2)
    wrong = kernel.slopes(np.require(block, buffers.dtype, ["C", "A"]), np.ascontiguousarray(labels), beta, sums)
    if wrong >= 0:
        raise _blocks.without_softmax(block[wrong], first + wrong * stride, name)
    return sums


def _by_kernel(dtype: np.dtype) -> bool:
    """Whether there is a kernel for logits of this dtype, perhaps converted without a loss."""
    return kernel is not None and dtype.kind == "f" and dtype.itemsize <= 8


def _row_sums_by_numpy(
    block: np.ndarray,
    labels: np.ndarray,
    first: int,
    inverse: Sequence[float],
    edges: np.ndarray,
    cells: np.ndarray,
    buffers: np.ndarray,
) -> Sums:
    n, dtype, each = len(block), buffers.dtype, np.arange(len(block))
    ones, whole, scaled = np.ones((1, block.shape[1]), dtype), np.empty((4, n)), np.empty((len(inverse), 4, n))
    z, predicted = _blocks.shifted(block, first, buffers[0])
    with np.errstate(over="ignore", invalid="ignore"):  # -inf, and float32 logits below -1e19
        whole[2:] = _dot(z, ones), _dot(z, z)
    z_y = z[each, labels]
    z[each, labels] = -np.inf
    whole[:2] = z_y, z.max(axis=1)
    z[each, labels] = z_y
    e = buffers[1, :n]
    for t, beta in enumerate(inverse):
        np.multiply(z, beta, out=e)
        if dtype == np.float64:  # float32's exp is not slow where it underflows
            _at_least(e, _blocks.LEAST)
        np.exp(e, out=e)
        e_y = e[each, labels]
        e[each, labels] = 0
        others, squares = _dot(e, ones), _dot(e, e)
        e[each, labels] = e_y
        e *= (1 / (others + e_y)).astype(dtype)[:, None]
        scaled[t] = others, squares, e_y, e[each, labels]
        _add_to_cells(cells[t], e, edges)
    return Sums(predicted, _in_top(5, block, labels, predicted), whole, scaled)


def _slopes_by_numpy(
    block: np.ndarray, labels: np.ndarray, first: int, beta: float, name: str, stride: int, buffers: np.ndarray
) -> np.ndarray:
    z, _ = _blocks.shifted(block, first, buffers[0], name, stride)
    z_y = z[np.arange(len(z)), labels].astype(np.float64)
    possible = z_y > -np.inf
    _at_least(z, _blocks.LEAST / beta)
    e, ones = np.multiply(z, beta, out=buffers[1, : len(z)]), np.ones((1, z.shape[1]), z.dtype)
    total = _dot(np.exp(e, out=e), ones)
    e *= z
    mean, square = _dot(e, ones) / total, _dot(e, z) / total
    return np.array([(mean - z_y)[possible].sum(), (square - mean**2)[possible].sum()])


def _in_top(k: int, block: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """bool ``[n]``: fewer than k classes come before the label."""
    result = predicted == labels
    missed = np.flatnonzero(~result)
    z, y = block[missed], labels[missed]
    own = z[np.arange(len(z)), y][:, None]
    before = (z > own).sum(axis=1, dtype=np.int32)
    near = before < k
    before[near] += ((z[near] == own[near]) & (np.arange(z.shape[1]) < y[near, None])).sum(axis=1, dtype=np.int32)
    result[missed] = before < k
    return result


def _add_to_cells(sums: np.ndarray, p: np.ndarray, edges: np.ndarray) -> None:
    """Add to `sums` ``[3, K * bins]`` how many p each cell holds (but for the lowest bin), Σp and Σp(1-p).

    Few p lie above the lowest bin, fewer than bins in each row: they are looked up, and set to 0 in `p`.
    """
    bins, flat = len(edges) - 1, p.ravel()
    above = np.flatnonzero(p > edges[1])
    cell = above % p.shape[1] * bins + bin_of(flat[above], edges)
    value = flat[above].astype(np.float64)
    np.add.at(sums[0], cell, 1.0)
    np.add.at(sums[1], cell, value)
    np.add.at(sums[2], cell, value * (1 - value))
    flat[above] = 0
    lowest = p.sum(axis=0)
    sums[1, ::bins] += lowest
    sums[2, ::bins] += lowest - np.einsum("ij,ij->j", p, p)


def _at_least(z: np.ndarray, floor: float) -> None:
    """Raise what is below `floor`, in place."""
    if z.min() < floor:  # a maximum takes seven times as long as a look
        np.maximum(z, floor, out=z)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ_k a_k b_k of each row, float64 ``[n]``: BLAS adds in many short chains, einsum in one long."""
    return np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0].astype(np.float64)
