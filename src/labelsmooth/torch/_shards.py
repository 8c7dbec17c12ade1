"""Classes that are spread over the processes of a group: who has which, and whether all were called alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from labelsmooth import _checks
from labelsmooth.torch._terms import Arguments, Statistics, Terms, arguments

# By group, the sizes of the shards for each set of options that its processes have agreed on.
_agreed: WeakKeyDictionary[Any, dict[tuple, tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Shards:
    """The classes of each process of a group, in the order of its ranks."""

    group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.sizes)

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    @property
    def width(self) -> int:
        return self.sizes[self.rank]

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if x.numel():
            dist.all_reduce(x, dist.ReduceOp.SUM, group=self.group)
        return x

    def together(self, statistics: Statistics) -> Statistics:
        """The statistics of the classes of all processes: one MAX of N values and one SUM of 2N."""
        top = statistics.top.clone()
        if not top.numel():
            return statistics
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self.group)
        here = statistics.towards(top)
        exps, dots = self.summed(torch.stack([here.exps, here.dots])).unbind()
        return replace(here, exps=exps, dots=dots)


@dataclass(frozen=True)
class Prepared:
    """What a loss of this process's classes is of: `logits` (of which shape and dtype count), `target`, options.

    `alike`: what else is to be the same on all processes; `values`: what is looked at besides.
    """

    logits: Tensor
    target: Any
    given: dict[str, Any]
    alike: dict[str, Any]
    values: tuple


def settle(group: Any, prepare: Callable[[], Prepared]) -> tuple[Prepared, Arguments, Terms, Shards]:
    """The terms of the classes here, once the processes of the group have told each other how they were called.

    An error on one process, in `prepare` or in its arguments, is raised on all.
    """
    facts, width, problem, asked, prepared = {}, 0, None, None, None
    try:
        prepared = prepare()
        asked = arguments(prepared.logits, prepared.target, prepared.values, **prepared.given, whole=False)
        if asked.q is not None and asked.class_prior is not None:
            rule = "be None where the classes of soft targets are spread over processes"
            raise _checks.error("class_prior", rule, "both")
        facts = _facts(asked, prepared)
        width = prepared.logits.shape[0 if prepared.logits.dim() == 1 else 1]
    except Exception as error:  # whatever it is: the others would wait for this process
        problem = error
    shards = _agree(group, facts, width, problem, always=asked is None or asked.checked)
    assert prepared is not None
    assert asked is not None
    asked.check_vectors(prepared.logits, prepared.target, shards.count)
    terms = asked.terms(shards.start, shards.width, shards.count, shards.summed)
    return prepared, asked, terms, shards


def _facts(asked: Arguments, prepared: Prepared) -> dict[str, Any]:
    """What all processes are to be called with alike."""

    def alike(x: Any) -> str:
        return Varying(checksum(x)) if asked.checked and isinstance(x, Tensor) else _kind(x)

    def by_class(x: Tensor | None) -> str:
        return "laid out like input" if x is not None and x.dim() == 2 else alike(x)

    given, normalizer = prepared.given, asked.normalizer
    number = not isinstance(normalizer, Tensor) or asked.checked
    return {
        "label_smoothing": asked.epsilon,
        **{name: given[name] for name in ("reduction", "weight_mode", "ignore_index", "validate")},
        "the dtype of input": str(prepared.logits.dtype),
        "the shape of input without its classes": Varying(asked.lead),
        "target": alike(asked.ids) if asked.ids is not None else "laid out like input",
        "mask": alike(asked.keep),
        "weight": alike(asked.weight),
        "prior": by_class(asked.prior),
        "class_prior": alike(asked.class_prior),
        "class_mask": by_class(asked.class_mask),
        "normalizer": Varying(None if normalizer is None else float(normalizer)) if number else "a tensor",
        **{name: alike(x) for name, x in prepared.alike.items()},
    }


def _agree(group: Any, facts: dict[str, Any], width: int, problem: Exception | None, always: bool) -> Shards:
    """The shards of the group; its processes talk `always`, or where they have not agreed on this yet."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    known = _agreed.setdefault(group, {})
    key = (width, *((name, value) for name, value in facts.items() if not isinstance(value, Varying)))
    if problem is None and not always and key in known:
        return Shards(group, rank, known[key])
    message = None if problem is None else str(problem) or type(problem).__name__
    told: list[Any] = [None] * size
    dist.all_gather_object(told, (facts, width, message), group=group)
    if problem is not None:
        raise problem
    for other, (_, _, message) in enumerate(told):
        if message is not None:
            raise ValueError(f"{message} (on rank {other})")
    for name in facts:
        values = [theirs.get(name) for theirs, _, _ in told]
        if any(value != values[0] for value in values):
            raise _checks.error(name, "be the same on every rank", _by_rank(values))
    known[key] = tuple(width for _, width, _ in told)
    return Shards(group, rank, known[key])


class Varying(str):
    """A fact that may change from one call to the next: what was agreed on holds all the same."""

    __slots__ = ()


def _by_rank(values: Sequence[Any]) -> str:
    """Each value and the ranks that have it; of many, the first four."""
    ranks: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    listed = [f"{value} on rank {', '.join(map(str, where[:4]))}" for value, where in list(ranks.items())[:4]]
    return "; ".join(listed)


def checksum(x: Tensor) -> str:
    """What tells two tensors apart, by their values."""
    values = zlib.crc32(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{_kind(x)} of shape {tuple(x.shape)} with checksum {values:08x}"


def _kind(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else repr(x)


def is_dtensor(x: Any) -> bool:
    """Without importing DTensor, which takes a second, where nothing can be one."""
    if not isinstance(x, Tensor) or type(x) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def local(x: Any, name: str, group: Any, dim: int) -> tuple[Any, Any]:
    """The shard of `x` here and its group, where `x` is a DTensor that is sharded on `dim`; else both as they are."""
    if not is_dtensor(x):
        return x, group
    from torch.distributed.tensor import Shard

    if group is not None:
        raise _checks.error("group", f"be None where {name} is a DTensor, which has its own", group)
    sharded = [i for i, placement in enumerate(x.placements) if type(placement) is Shard and placement.dim == dim]
    if len(sharded) != 1 or any(not p.is_replicate() for i, p in enumerate(x.placements) if i != sharded[0]):
        rule = f"be sharded on dimension {dim} over one dimension of its mesh and replicated over the others"
        raise _checks.error(name, rule, x.placements)
    return x.to_local(), x.device_mesh.get_group(sharded[0])


def local_like(x: Any, name: str, placements: tuple = ()) -> Any:
    """What a DTensor beside the sharded one holds here: the same for all, or sharded as that is."""
    if not is_dtensor(x):
        return x
    if tuple(x.placements) != placements and any(not placement.is_replicate() for placement in x.placements):
        rule = f"be replicated, or sharded as what it goes with: {placements}" if placements else "be replicated"
        raise _checks.error(name, rule, x.placements)
    return x.to_local()


def members(group: Any) -> Any:
    """`group`, or the one of all processes; this process is in it."""
    if not dist.is_available() or not dist.is_initialized():
        rule = "be a process group (call torch.distributed.init_process_group first)"
        raise _checks.error("group", rule, "no process group at all" if group is None else repr(group))
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        told = "one that it is not in" if group == dist.GroupMember.NON_GROUP_MEMBER else repr(group)
        raise _checks.error("group", "be a process group that this process is in", told)
    return group
