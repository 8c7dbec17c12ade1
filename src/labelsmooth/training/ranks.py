"""The processes that train one model together, each with a rank from 0, and what they tell each other.

`labelsmooth train --devices N`, torchrun and `accelerate launch` start them, and tell each its place by environment.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelsmooth import _checks
from labelsmooth._errors import LAUNCHED, TrainingError, silence

if TYPE_CHECKING:
    from torch import Tensor

_ACCELERATE = "ACCELERATE_USE_CPU"  # in the environment of what `accelerate launch` started
# A process's place, as torchrun tells it, and as MPI does, by which `accelerate launch` starts processes on CPUs.
_PLACE = (
    ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
FAILED = "labelsmooth/failed"  # in the store: the rank that tells of the failure
RUN = "labelsmooth/run"  # in the store: the run's folder
DONE = "labelsmooth/done"  # in the store, when rank 0 has nothing more to do
_LEFT = "labelsmooth/left"
_FELL = "labelsmooth/fell"
_MEETING = timedelta(seconds=60)  # for which a process looks for the others
_SILENCE = timedelta(minutes=30)  # after which another process is given up
_MOMENT = 2.0  # seconds in which all fail that fail alike
_LOOK = 0.02  # seconds between looks at the others
_LONG = timedelta(days=7)  # that reading the data, or drawing, may take


class LostRank(TrainingError):
    """Another process of the training has ended, or does not answer."""


@dataclass
class Ranks:
    """This process's place among those of its training; of one alone, all of this does nothing.

    Attributes:
        rank: which it is, from 0.
        count: how many there are.
        local: which it is on this machine, from 0.
        store: where they leave words for each other.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and tells."""
        return self.rank == 0

    def summed(self, x: Tensor) -> Tensor:
        """The sum of everybody's `x`, in place."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(x)
        return x

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which flags somebody has set."""
        if self.count == 1:
            return flags
        import torch
        import torch.distributed as dist

        told = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in told)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """Everybody's rows, in the order of ranks."""
        if self.count == 1:
            return rows
        import torch
        import torch.distributed as dist

        sizes = self.every(len(rows))
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=torch.from_numpy(rows).dtype)
        padded[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return np.concatenate([part[:size].numpy() for part, size in zip(parts, sizes, strict=True)])

    def every(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def told(self, value: Any) -> Any:
        """The value of rank 0."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, device="cpu")  # pyright: ignore[reportArgumentType]
        return values[0]

    def wait(self) -> None:
        """Until everybody is here."""
        self.any()

    def name_run(self, folder: Path) -> None:
        """Leave word of the run's folder, for those who tell how to go on."""
        if self.store is not None and self.first:
            self.store.set(RUN, str(folder))

    def alike(self, values: dict[str, Any]) -> None:
        """Whether everybody has the same values.

        Raises:
            ValueError: they differ; it names each.
        """
        everybody = self.every(values)
        for name in values:
            by_value: dict[str, list[int]] = {}
            for rank, theirs in enumerate(everybody):
                by_value.setdefault(repr(theirs.get(name)), []).append(rank)
            if len(by_value) > 1:
                told = ", ".join(f"{value} on rank {_numbers(ranks)}" for value, ranks in by_value.items())
                raise _checks.error(name, "be the same in all processes of a training", told)

    @contextmanager
    def in_turn(self, name: str, *, by_machine: bool = False) -> Iterator[None]:
        """Rank 0 (or the first of each machine) goes through the block before the others do."""
        if self.count == 1:
            yield
            return
        leads = self.local == 0 if by_machine else self.first
        key = f"labelsmooth/{name}/{socket.gethostname() if by_machine else ''}"
        if not leads:
            self.store.wait([key], _LONG)
        try:
            yield
        finally:
            if leads:  # after an error too: what is wrong with the data the others find for themselves
                self.store.set(key, "")

    def _leave(self) -> None:
        """Part in peace: gloo aborts a process whose others go while it still listens to them."""
        import torch.distributed as dist

        if self.first:
            self.store.set(DONE, "")
            self.store.wait([f"{_LEFT}/{rank}" for rank in range(1, self.count)], _SILENCE)
        else:
            self.store.wait([DONE], _LONG)
            self.store.set(f"{_LEFT}/{self.rank}", "")
        gc.collect()  # what still holds the group
        dist.destroy_process_group()

    def _leave_if_all_failed(self) -> None:
        """As after a success where everybody has found the same error; the others of a lost one end as they can."""
        self.store.set(f"{_FELL}/{self.rank}", "")
        fallen, until = [f"{_FELL}/{rank}" for rank in range(self.count)], time.monotonic() + _MOMENT
        while not self.store.check(fallen):  # where `wait` would warn of its timeout
            if time.monotonic() > until:
                return
            time.sleep(_LOOK)
        self._leave()

    def _failed(self, error: BaseException) -> BaseException:
        """What to raise; one process tells of it, and the others are silent."""
        if lost := _is_lost(error):
            run = ""
            with suppress(Exception):  # the store may be gone too
                run = self.store.get(RUN).decode() if self.store.check([RUN]) else ""
            hint = f"; what was saved is kept: labelsmooth train --resume {run}" if run else ""
            error = LostRank(f"another process of the training has ended, or does not answer{hint}")
        if lost and LAUNCHED in os.environ:  # whoever started us knows which, and how
            silence(error)
            return error
        with suppress(Exception):
            if self.store.compare_set(FAILED, "", str(self.rank)) != str(self.rank).encode():
                silence(error)
        return error


def found() -> tuple[int, int, int] | None:
    """(rank, how many, rank on this machine), as the environment has it; None in a process of its own.

    Raises:
        ValueError: the environment makes no sense, or tells of processes that were not started.
    """
    by_accelerate = {_ACCELERATE, "MASTER_ADDR"} <= set(os.environ)  # and so by MPI, if it is not by torchrun
    names = [next((n for n in (own, *(mpi if by_accelerate else ())) if n in os.environ), own) for own, *mpi in _PLACE]
    if not set(names[:2]) <= set(os.environ):
        if not by_accelerate:
            return None
        rule = (
            "start all of the processes (on CPUs it does so by mpirun alone: --mpirun_hostfile FILE), or leave it to "
            "torchrun --nproc-per-node N -m labelsmooth train, or to labelsmooth train --devices N"
        )
        raise _checks.error("accelerate launch", rule, "one process, with no word of its rank")
    values = []
    for name, least in zip(names, (0, 1, 0), strict=True):
        name = name if name in os.environ else names[0]
        try:
            value = int(os.environ[name])
        except ValueError:
            raise _checks.error(name, "be a whole number", repr(os.environ[name])) from None
        values.append(_checks.class_count(value, name, least))
    rank, count, local = values
    if rank >= count:
        raise _checks.error(names[0], f"be less than {names[1]}, {count}", rank)
    return None if count == 1 else (rank, count, local)


@contextmanager
def joined(devices: int | None, device: str) -> Iterator[Ranks]:
    """The processes that the environment tells of, met; in a process of its own, that one alone.

    Args:
        devices: how many there are to be; None: as many as there are.
        device: see `labelsmooth.training.devices.choose_device`.

    Raises:
        ValueError: there are not so many, or the first cannot be reached.
        LostRank: another process has ended.
    """
    if devices is not None:
        devices = _checks.class_count(devices, "devices")
    here = found()
    if here is None:
        if devices not in (None, 1):
            rule = "be 1 in a process of its own; the command starts others: labelsmooth train --devices"
            raise _checks.error("devices", rule, devices)
        yield Ranks()
        return
    rank, count, local = here
    if devices not in (None, count):
        raise _checks.error("devices", f"be {count}, as many as there are processes (WORLD_SIZE)", devices)
    ranks = Ranks(rank, count, local, _met(rank, count, device))
    try:
        yield ranks
        ranks._leave()
    except BaseException as error:
        told = ranks._failed(error)
        if not isinstance(told, LostRank):
            with suppress(Exception):  # of the store: not all of them failed
                ranks._leave_if_all_failed()
        raise told from error.__cause__


def _met(rank: int, count: int, device: str) -> Any:
    """The store, when the processes have found each other."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        raise RuntimeError("labelsmooth makes its own process group; train before torch.distributed is initialised")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _checks.error(name, "be set beside RANK and WORLD_SIZE, as torchrun does", None)
    if not os.environ["MASTER_PORT"].isdecimal():
        raise _checks.error("MASTER_PORT", "be a whole number", repr(os.environ["MASTER_PORT"]))
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    began = time.monotonic()
    try:
        store = _store(rank, count)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_SILENCE)
    except (dist.DistError, RuntimeError, TimeoutError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        rule = f"be the address of the first of the {count} processes, from where all answer"
        got = f"{where}, with no answer after {time.monotonic() - began:.0f} s ({str(error).splitlines()[0]})"
        raise _checks.error("MASTER_ADDR and MASTER_PORT", rule, got) from None
    return store


def _store(rank: int, count: int) -> Any:
    """The store, looked for beside the main thread: to what listens there and is none, PyTorch would listen for ever.

    Raises:
        TimeoutError: that is so. DistError, RuntimeError: there is nothing, or not everybody comes.
    """
    import torch.distributed as dist

    found: list[Any] = []

    def look() -> None:
        try:
            found.append(next(dist.rendezvous("env://", rank, count, timeout=_MEETING))[0])  # pyright: ignore
        except Exception as error:
            found.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(2 * _MEETING.total_seconds() + 1)  # for the first process, and then for the others
    if not found:
        raise TimeoutError("what listens there is something else")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _is_lost(error: BaseException) -> bool:
    """Whether it comes of another process's end: PyTorch says so by text alone."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text or "connection closed by peer" in text)


def _numbers(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
