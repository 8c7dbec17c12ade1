"""The prior u, checked and resolved against the labels: one form for a vector, a class table and a row per example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from labelsmooth import _arrays, _checks

_CHUNK = 1 << 18  # elements that are worked on at once in float64, so that they stay in cache


def chunks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` elements, each small enough to work on in cache."""
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@dataclass(frozen=True)
class Rows:
    """Labels of `count` classes, told apart: class ids of shape `lead`, or soft targets ``[*lead, K]``."""

    count: int
    lead: tuple[int, ...]
    ids: np.ndarray | None
    soft: np.ndarray | None

    @staticmethod
    def of_ids(ids: np.ndarray, count: int) -> Rows:
        return Rows(count, ids.shape, ids, None)

    @staticmethod
    def of_targets(soft: np.ndarray) -> Rows:
        return Rows(soft.shape[-1], soft.shape[:-1], None, soft)

    @property
    def number(self) -> int:
        """How many rows there are."""
        return math.prod(self.lead)

    def dense(self, part: slice) -> np.ndarray:
        """Rows `part` of the flattened targets, one-hot for ids, as float64 ``[n, K]``."""
        if self.soft is not None:
            return self.soft.reshape(-1, self.count)[part].astype(np.float64)
        assert self.ids is not None
        ids = self.ids.reshape(-1)[part].astype(np.intp)
        dense = np.zeros((ids.size, self.count))
        dense[np.arange(ids.size), ids] = 1.0
        return dense


@dataclass(frozen=True)
class Prior:
    """u, resolved: a vector for all rows, a table with a row per true class, or a row per example (float64).

    `base` is ``[K]`` (``[K, K]`` where `by_class`), or ``[n, K]`` with a row per example; `mask` is None or alike. The
    uniform one is kept as ones, so that ε u is ε/K exactly (0.1 · 0.1 is not 0.01).
    """

    base: np.ndarray
    mask: np.ndarray | None = None
    by_class: bool = False
    uniform: bool = False

    def vector(self, epsilon: float) -> np.ndarray | None:
        """ε u as ``[K]``, where it is the same for every row."""
        per_row = self.by_class or self.base.ndim == 2 or (self.mask is not None and self.mask.ndim == 2)
        return None if per_row else self._scaled(self.base, self.mask, epsilon)

    def table(self, epsilon: float) -> np.ndarray | None:
        """ε u as ``[K, K]``, where it depends on the true class alone."""
        if not self.by_class or (self.mask is not None and self.mask.ndim == 2):
            return None
        return self._scaled(self.base, self.mask, epsilon)

    def rows(self, part: slice, q: np.ndarray, epsilon: float) -> np.ndarray:
        """ε u for rows `part`, whose targets are q: ``[n, K]``, or ``[K]`` where it is the same for all."""
        u = q @ self.base if self.by_class else self.base if self.base.ndim == 1 else self.base[part]
        return self._scaled(u, self.mask if self.mask is None or self.mask.ndim == 1 else self.mask[part], epsilon)

    def _scaled(self, u: np.ndarray, mask: np.ndarray | None, epsilon: float) -> np.ndarray:
        if mask is not None:
            u = u * mask
        elif not self.uniform:
            return epsilon * u
        total = u.sum(axis=-1, keepdims=True)
        return epsilon * u / np.where(total == 0, 1, total)

    def detached_from(self, out: np.ndarray) -> Prior:
        """The same prior, with none of its memory in `out`."""
        return replace(self, base=self.base.copy()) if np.may_share_memory(self.base, out) else self


def resolve(
    prior: Any,
    class_prior: Any,
    class_mask: Any,
    rows: Rows,
    keep: np.ndarray | None = None,
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Prior:
    """Check the priors and `class_mask`, arrays of any framework, against the labels.

    `keep`, bool of shape `rows.lead`: the rows whose values count; the other rows may hold anything. `layout` puts the
    classes of what has a row per example on the last axis.
    """
    _checks.one_prior(prior, class_prior)
    count, lead = rows.count, rows.lead
    kept = np.ones(rows.number, bool) if keep is None else keep.reshape(-1)

    def read(x: Any, name: str, kinds: str, rule: str) -> np.ndarray:
        array = _arrays.to_host(x, name)
        if array.dtype.kind not in kinds and not _checks.is_float(array.dtype):
            raise _checks.error(name, rule, f"dtype {array.dtype}")
        return array

    def by_row(array: np.ndarray, name: str) -> np.ndarray:
        """`array` as ``[K]``, or ``[n, K]`` with 0 in the rows that are not kept."""
        array = layout(array)
        if array.shape != (count,) and array.shape != (*lead, count):
            raise _checks.error(name, f"have shape {(count,)} or {(*lead, count)}", array.shape)
        if array.ndim == 1:
            return array
        array = array.reshape(-1, count)
        return array if kept.all() else np.where(kept[:, None], array, 0)

    base = np.ones(count)
    if prior is not None:
        base = by_row(read(prior, "prior", "biu", "hold numbers"), "prior")
        by_example = kept if base.ndim == 2 else None
        _checks.distribution(base, "prior", _checks.tolerance(_arrays.kind(prior)), by_example)
    elif class_prior is not None:
        base = read(class_prior, "class_prior", "biu", "hold numbers")
        if base.shape != (count, count):
            raise _checks.error("class_prior", f"have shape {(count, count)}", base.shape)
        _checks.distribution(base, "class_prior", _checks.tolerance(_arrays.kind(class_prior)))
    mask = None
    if class_mask is not None:
        mask = _arrays.to_host(class_mask, "class_mask")
        if mask.dtype != np.bool_:
            raise _checks.error("class_mask", "be boolean", f"dtype {mask.dtype}")
        mask = by_row(mask, "class_mask")
    u = Prior(base.astype(np.float64, copy=False), mask, class_prior is not None, prior is None and class_prior is None)
    if mask is None:
        return u

    mass, total = np.zeros(len(kept)), np.zeros(len(kept))
    for part in chunks(len(kept), count):
        dense = rows.dense(part)
        dense[~kept[part]] = 0.0
        mass[part] = (dense * ~(mask if mask.ndim == 1 else mask[part])).sum(axis=-1)
        total[part] = u.rows(part, dense, 1.0).sum(axis=-1)
    _checks.no_target_on_masked(np.where(kept, mass, 0.0).reshape(lead))
    if (kept & (total == 0)).any():
        _checks.empty_prior()
    return u
