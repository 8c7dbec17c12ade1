"""The loss, forward and backward, beside others in the same run: time, bytes per second, memory. Right numbers first.

python -m benchmarks.bench_loss [--seconds 4] [--compiled] [--memory]
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._machine import header, spread
from labelsmooth import losses
from labelsmooth.torch import _paths, cross_entropy

EPSILON = 0.1
CASES = [
    ((256, 10), torch.float32, 1.0),
    ((256, 1000), torch.float32, 3.0),
    ((4096, 1000), torch.float32, 4.0),
    ((2048, 32000), torch.float32, 4.0),
    ((4096, 1000), torch.bfloat16, 4.0),
    ((2048, 32000), torch.bfloat16, 4.0),
    ((8, 21, 256, 256), torch.float32, 3.0),
]  # and the least ratio to F.cross_entropy that each must reach
ROW = 6
Loss = Callable[[Tensor, Tensor], Tensor]
Times = dict[str, list[float]]


class LSR(torch.nn.Module):
    """The hand-written module of the classic material: one-hot labels, smoothed, times log-softmax."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        if logits.dim() > 2:
            one_hot = one_hot.movedim(-1, 1)
        smoothed = one_hot * (1 - EPSILON) + EPSILON / logits.shape[1]
        return -(F.log_softmax(logits, 1) * smoothed).sum(1).mean()


def timm(logits: Tensor, labels: Tensor) -> Tensor:
    """timm's LabelSmoothingCrossEntropy, its formula."""
    log_p = F.log_softmax(logits, 1)
    nll = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    return ((1 - EPSILON) * nll - EPSILON * log_p.mean(1)).mean()


def ours(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, label_smoothing=EPSILON)


def in_place(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, label_smoothing=EPSILON, inplace=True)


def pytorch(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=EPSILON)


def forward_and_backward(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def timed(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    forward_and_backward(loss, logits, labels)
    return time.perf_counter() - start


def copied(logits: Tensor, into: Tensor) -> float:
    start = time.perf_counter()
    into.copy_(logits)
    return time.perf_counter() - start


def refuse_wrong(name: str, loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Against the float64 reference, on some of the rows."""
    some = slice(0, max(1, 200_000 // logits.shape[1]) if logits.dim() == 2 else 1)
    logits, labels = logits[some], labels[some]
    value, gradient = forward_and_backward(loss, logits, labels)
    exact, slope = losses.cross_entropy_and_grad(
        logits.double().numpy(), labels.numpy(), label_smoothing=EPSILON, axis=1
    )
    # PyTorch's float32 gradients err by up to 1e-4 of the row factor where classes are many.
    tolerance = 1e-3 if logits.dtype == torch.float32 else 2e-2
    wrong = abs(value.item() - exact) > tolerance * max(1.0, abs(float(exact)))
    wrong |= float((gradient.double() - torch.from_numpy(slope)).abs().max()) > tolerance / labels.numel()
    if wrong:
        raise SystemExit(f"{name} is wrong for {tuple(logits.shape)} in {logits.dtype}: nothing is timed")


def peers(compiled: bool) -> dict[str, Loss]:
    found: dict[str, Loss] = {"F.cross_entropy": pytorch, "LSR": LSR(), "timm": timm}
    if compiled:
        found["compiled F.cross_entropy"] = torch.compile(pytorch, dynamic=False)
    return found


def time_all(seconds: float, compiled: bool) -> None:
    others = peers(compiled)
    for shape, dtype, budget in CASES:
        draws = torch.Generator().manual_seed(0)
        logits = (torch.randn(shape, generator=draws) * 3).to(dtype)
        labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=draws)
        functions = {"ours": ours, **others}
        for name, function in functions.items():
            refuse_wrong(name, function, logits, labels)
        into = torch.empty_like(logits)
        calls = {name: partial(timed, function, logits, labels) for name, function in functions.items()}
        first, again = in_turns({**calls, "copy": partial(copied, logits, into)}, seconds)
        moved = 2 * logits.numel() * logits.element_size() / np.median(again["ours"]) / 1e9
        print(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}, budget {budget:g}")
        for heading, taken in (("in a row", again), ("in turns", first)):
            ratios = {name: np.divide(taken[name], taken["ours"]) for name in taken}
            verdict = "reached" if np.median(ratios["F.cross_entropy"]) >= budget else "MISSED"
            rest = [f"{name} {spread(ratios[name])}" for name in others if name != "F.cross_entropy"]
            print(
                f"  {heading}  ours {spread([x * 1e3 for x in taken['ours']])} ms; F.cross_entropy / ours "
                f"{spread(ratios['F.cross_entropy'])}: {verdict}\n"
                f"            {'; '.join(rest)}; ours / copy {spread(1 / ratios['copy'])}"
            )
        # A shared machine has slow spells, of one thread or of both: the fastest tell of the times between.
        least = {name: float(np.quantile(again[name], 0.1)) for name in ("ours", "F.cross_entropy")}
        print(
            f"            the fastest tenth of each in a row: ours {least['ours'] * 1e3:.3g} ms, "
            f"F.cross_entropy / ours {least['F.cross_entropy'] / least['ours']:.3g}; {moved:.3g} GB/s"
        )


def in_turns(calls: dict[str, Callable[[], float]], seconds: float) -> tuple[Times, Times]:
    """Every call in turn, `ROW` times in a row.

    The first of a row comes after others' work, which cooled the caches and left PyTorch's threads waiting awake, as a
    model does; the median of the rest is the time of the loss itself.
    """
    first: Times = {name: [] for name in calls}
    again: Times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(first.values()))) < 7:
        for name, call in calls.items():
            first[name].append(call())
            again[name].append(statistics.median(call() for _ in range(ROW - 1)))
    return first, again


# In a process of its own: what a training loop needs beyond logits and model, the pool's memory included.
_MEMORY = """
import resource, sys, torch
from benchmarks.bench_loss import in_place, ours, pytorch
torch.set_num_threads(2)
logits = torch.randn(2048, 16000)
labels = torch.randint(0, 16000, (2048,))
loss = {"ours": ours, "inplace": in_place, "pytorch": pytorch}[sys.argv[1]]
loss(torch.zeros(300, 1000).requires_grad_() * 1, torch.zeros(300, dtype=torch.int64)).backward()
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def now():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
class Source(torch.autograd.Function):  # logits that are no leaf and need no copy
    @staticmethod
    def forward(ctx, seed):
        return logits.view_as(logits)
    @staticmethod
    def backward(ctx, gradient):
        return None
open("/proc/self/clear_refs", "w").write("5")
before = now()
for _ in range(4):
    loss(Source.apply(torch.zeros(1, requires_grad=True)), labels).backward()
print((peak() - before) / (logits.numel() * 4))
"""


def memory() -> None:
    print("\nExtra memory in a loop of four steps, (2048, 16000) float32, in units of the logits:")
    for name, budget in (("ours", 1.05), ("inplace", 0.05), ("pytorch", math.inf)):
        command = [sys.executable, "-c", _MEMORY, name]
        used = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        verdict = "" if budget == math.inf else f", budget {budget}: {'reached' if max(used) <= budget else 'MISSED'}"
        print(f"  {name:<8} {spread(used)}{verdict}")
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0, help="for each shape")
    parser.add_argument("--compiled", action="store_true", help="beside torch.compile(F.cross_entropy) too")
    parser.add_argument("--memory", action="store_true", help="extra memory only")
    options = parser.parse_args()
    header(f"Loss, forward and backward; ratios of times in one run (above 1: ours is faster); {_paths.described()}")
    if not options.memory:
        time_all(options.seconds, options.compiled)
    memory()


if __name__ == "__main__":
    main()
