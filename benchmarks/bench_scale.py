"""The cost model of docs/scale.md beside what is counted and measured here; what differs from it ends with an error.

python -m benchmarks.bench_scale
"""

from __future__ import annotations

import doctest
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._machine import header
from benchmarks.bench_evaluate import extra_memory
from labelsmooth import smooth_labels
from labelsmooth.torch import _shards, cross_entropy, linear, linear_cross_entropy, vocab_parallel_cross_entropy
from labelsmooth.training.torch_engine import _summed

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SIZES = [(10, 64, 336), (1000, 256, 2048), (128_256, 4096, 4096), (1_000_000, 512, 1024)]  # K, N, D
MEMORY = (32_000, 1024, 64)
WIRED, MANY, REPEATS = (1000, 256, 512), 50_000, 10  # sizes of what is sent, which dwarf its headers


def the_pages_model() -> Callable[..., tuple[float, ...]]:
    scope: dict[str, Any] = {}
    exec(doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8"))[0].source, scope)
    return scope["cost"]


def line(what: str, model: float, measured: float, tolerance: float) -> None:
    ratio = measured / model if model else 1.0 + (measured != 0)
    print(f"  {what:<66} {model:>11.4g} {measured:>11.4g} {ratio:>7.3f}", flush=True)
    assert abs(ratio - 1) <= tolerance, f"{what}: the model does not hold"


@contextmanager
def counted(count: int, width: int) -> Iterator[list[int]]:
    """The bytes handed to each all-reduce, as the first of `count` processes with `width` classes each."""
    handed: list[int] = []

    def agree(group: Any, facts: Any, here: int, problem: Exception | None, always: bool) -> _shards.Shards:
        if problem is not None:
            raise problem
        return _shards.Shards(group, 0, (width,) * count)

    kept = _shards._agree, linear.members, dist.all_reduce
    _shards._agree = agree
    linear.members = lambda group: group
    dist.all_reduce = lambda x, *args, **options: handed.append(x.numel() * x.element_size())
    try:
        yield handed
    finally:
        _shards._agree, linear.members, dist.all_reduce = kept


def operations_and_all_reduces() -> None:
    """At the page's own sizes, on tensors without memory."""
    print("classes sharded (linear_cross_entropy): operations, and bytes to send of a ring, per step and device")
    for (k, n, d), p in product(SIZES, (1, 8, 1024)):
        with FakeTensorMode():
            width = -(-k // p)
            _, _, operations, _, loss, below = cost(width * p, n, d, p)
            x, w = (torch.empty(s, d, requires_grad=True) for s in (n, width))
            labels = torch.empty(n, dtype=torch.long)
            counter = FlopCounterMode(display=False)
            with counted(p, width) as handed, counter:
                linear_cross_entropy(x, w, labels, label_smoothing=0.1, group="all").backward()
            what, ring = f"K={k:,} N={n} D={d} P={p}", 2 * (p - 1) / p
            four = linear._plan(n, width, w, None).columns is not None  # it makes the logits twice
            line(f"{what}: operations" + (", 4 matmuls for 3" if four else ""), operations / p * (4 / 3 if four else 1),
                 counter.get_total_flops(), 1e-9)  # fmt: skip
            line(f"{what}: loss", loss, ring * sum(b for b in handed if b < 4 * n * d), 1e-9)
            line(f"{what}: layer below", below, ring * sum(b for b in handed if b == 4 * n * d), 1e-9)


def sent() -> int:
    """Bytes that went over the loopback so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.split()[0] == "lo:")


def over_the_wire(rank: int, count: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    measure(rank, count, results)
    gc.collect()  # what still holds the group
    dist.destroy_process_group()


def measure(rank: int, count: int, results: Any) -> None:
    """What a step sends by gloo, by what is sharded."""
    k, n, d = WIRED
    mine = torch.randn((rank + 1) * k // count - rank * k // count, d, requires_grad=True)
    x, labels = torch.randn(n, d, generator=torch.Generator().manual_seed(0)), torch.arange(n)
    layer = torch.nn.Linear(d, k, bias=False)
    parallel = DistributedDataParallel(layer)
    parallel.register_comm_hook(None, _summed)

    def data() -> None:
        F.cross_entropy(parallel(x), labels).backward()

    def loss() -> None:
        logits = torch.zeros(MANY, 2, requires_grad=True)
        zeros = torch.zeros(MANY, dtype=torch.long)
        vocab_parallel_cross_entropy(logits, zeros, label_smoothing=0.1, validate=False).backward()

    def both() -> None:
        hidden = x.clone().requires_grad_()
        linear_cross_entropy(hidden, mine, labels, group=dist.group.WORLD, validate=False).backward()

    for name, step in (("data", data), ("loss", loss), ("both", both)):
        step()
        told = []
        for _ in range(5):
            dist.barrier()
            before = sent()
            dist.barrier()
            for _ in range(REPEATS):
                step()
            dist.barrier()
            told.append((sent() - before) / REPEATS / count)
        if rank == 0:
            results.put((name, min(told)))  # others use the loopback too
    dist.barrier()


def bytes_sent() -> None:
    print("bytes sent per step and process by gloo over the loopback, its headers included (validate=False)")
    context = multiprocessing.get_context("spawn")
    for count in (2, 4):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        results = context.SimpleQueue()
        processes = [context.Process(target=over_the_wire, args=(r, count, port, results)) for r in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        k, n, d = WIRED
        _, _, _, data, loss, below = cost(k, n, d, count)
        many = cost(2 * count, MANY, d, count)[4]
        models = {"data": ("data-parallel gradient", data), "loss": (f"sharded loss, N={MANY}", many),
                  "both": ("sharded loss and layer below", loss + below)}  # fmt: skip
        while not results.empty():
            name, measured = results.get()
            line(f"K={k} N={n} D={d} P={count}: {models[name][0]}", models[name][1], measured, 0.1)


def extra(name: str) -> int:
    """What a step takes beyond what it is given and the gradient of the layer."""
    k, n, d = MEMORY
    torch.set_num_threads(1)

    def step(k: int) -> torch.Tensor:
        labels = torch.arange(n) % k
        x, w = torch.randn(n, d), torch.randn(k, d, requires_grad=True)
        if name == "targets":
            cross_entropy(F.linear(x, w), smooth_labels(labels, 0.1, num_classes=k)).backward()
        elif name == "fused":
            linear_cross_entropy(x, w, labels, label_smoothing=0.1).backward()
        else:
            cross_entropy(F.linear(x, w), labels, label_smoothing=0.1).backward()
        return w

    step(8)
    width = k // 2 if name == "half" else k
    return extra_memory(lambda: step(width)) - 2 * width * d * 4 - n * d * 4


def memory() -> None:
    k, n, d = MEMORY
    print(f"memory of a step, K={k:,} N={n} D={d}, float32")
    whole, half, *_ = cost(k, n, d, 2)
    for name, what, model in (
        ("loss", "logits and their gradient", 2 * whole),
        ("half", "the same, half of the classes", 2 * half),
        ("targets", "and the targets of method 1", 3 * whole),
        ("fused", "linear_cross_entropy: 256 rows of logits at a time", 256 * k * 4),
    ):
        code = f"from benchmarks.bench_scale import extra; print(extra({name!r}))"
        told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        line(what, model, int(told.split()[-1]), 0.25)


def main() -> None:
    header("The cost model of docs/scale.md")
    print(f"  {'':<66} {'model':>11} {'measured':>11}   ratio")
    operations_and_all_reduces()
    bytes_sent()
    memory()


cost = the_pages_model()

if __name__ == "__main__":
    main()
