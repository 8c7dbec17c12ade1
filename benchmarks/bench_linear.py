"""linear_cross_entropy, forward and backward, beside a matmul and F.cross_entropy: time, and memory beside the result.

python -m benchmarks.bench_linear [SHARE]: the issue's sizes, or SHARE (such as 0.1) of their rows and classes.
On a GPU also beside Liger's, where that can be imported.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._machine import header, spread
from benchmarks.bench_evaluate import extra_memory
from labelsmooth.torch import linear_cross_entropy

SIZES = [(4096, 1024, 128_256), (512, 1024, 1_000_000)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMOOTHING, ROUNDS, THREADS = 0.1, 5, 2
TIME, MEMORY, MOST = 1.1, 0.15, 2**30  # the budgets

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def losses(device: str) -> dict[str, Loss]:
    """Ours, a matmul and a loss, and others; PyTorch's own saves memory only without smoothing."""
    found: dict[str, Loss] = {
        "ours": lambda x, w, y: linear_cross_entropy(x, w, y, label_smoothing=SMOOTHING),
        "matmul": lambda x, w, y: F.cross_entropy(F.linear(x, w), y, label_smoothing=SMOOTHING),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch without smoothing"] = lambda x, w, y: F.linear_cross_entropy(x, w, y, options=options)
    if device == "cuda":
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore
        except ImportError:
            print("Liger cannot be imported here: not compared")
        else:
            found["liger"] = lambda x, w, y: LigerFusedLinearCrossEntropyLoss(label_smoothing=SMOOTHING)(w, x, y)
    return found


def tensors(n: int, d: int, k: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n, d, dtype=dtype, device=device, generator=generator)
    w = torch.randn(k, d, dtype=dtype, device=device, generator=generator).mul_(d**-0.5)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(0, k, (n,), device=device, generator=generator)


def seconds(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> float:
    x.grad = w.grad = None
    start = time.perf_counter()
    loss(x, w, y).backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_bytes(name: str, n: int, d: int, k: int, dtype: str, device: str) -> int:
    """The most that one step takes beyond its inputs and the gradients that it leaves."""
    torch.set_num_threads(THREADS)
    loss = losses(device)[name]
    loss(*tensors(8, d, 8, DTYPES[dtype], device)).backward()  # what is loaded once
    x, w, y = tensors(n, d, k, DTYPES[dtype], device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(loss, x, w, y)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = extra_memory(lambda: seconds(loss, x, w, y))
    return peak - sum(g.numel() * g.element_size() for g in (x.grad, w.grad) if g is not None)


def apart(*arguments: object) -> int:
    """`extra_bytes` in a process of its own, whose peak is that of one step."""
    code = f"from benchmarks.bench_linear import extra_bytes; print(extra_bytes(*{arguments!r}))"
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def check(x: Tensor, w: Tensor, y: Tensor, found: dict[str, Loss]) -> None:
    """Loss and gradients on some rows agree with the matmul's in float64."""
    some, wide = slice(0, 64), w.detach().double().requires_grad_()
    rows = x.detach()[some].double().requires_grad_()
    expected = found["matmul"](rows, wide, y[some])
    expected.backward()
    x.grad = w.grad = None
    loss = found["ours"](x[some], w, y[some])
    loss.backward()
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(loss.double(), expected, rtol=4 * eps, atol=0)
    for mine, theirs in ((x.grad[some], rows.grad), (w.grad, wide.grad)):
        assert theirs is not None
        assert (mine.double() - theirs).abs().max() <= 8 * eps * max(1 / 64, theirs.abs().max())


def main(share: float) -> None:
    torch.set_num_threads(THREADS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    header(f"linear_cross_entropy, forward and backward, on the {device}")
    found = losses(device)
    for i, (n, d, k) in enumerate(SIZES):
        n, k = max(64, int(n * share)), max(64, int(k * share))
        for dtype in DTYPES:
            x, w, y = tensors(n, d, k, DTYPES[dtype], device)
            if i == 0:
                check(x, w, y, found)
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(ROUNDS + 1):
                for name, loss in found.items():
                    times[name].append(seconds(loss, x, w, y))
            del x, w, y
            memory = {name: apart(name, n, d, k, dtype, device) for name in found}
            print(f"N={n:,} D={d:,} K={k:,} {dtype}: {n * k * DTYPES[dtype].itemsize / 2**20:,.0f} MiB of logits")
            for name in found:
                ratios = [a / b for a, b in zip(times["ours"][1:], times[name][1:], strict=True)]
                line = f"  {name:<24} {spread(times[name][1:])} s, extra {memory[name] / 2**20:,.0f} MiB"
                if name != "ours":
                    line += f"; ours / it: time {spread(ratios)}, memory {memory['ours'] / memory[name]:.3f}"
                print(line + (f" (budgets {TIME} and {MEMORY})" if name == "matmul" else ""))
            if i == 1:
                print(f"  extra memory of ours: {memory['ours'] / MOST:.2f} GiB, budget 1")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
