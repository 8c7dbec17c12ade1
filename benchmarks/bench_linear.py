"""linear_cross_entropy, forward and backward, beside a matmul and F.cross_entropy: time, and memory beside the result.

python -m benchmarks.bench_linear [SHARE]: the issue's sizes, or SHARE (such as 0.1) of their rows and classes.
One step of 4096 x 1024 x 128,256 is 3.2 TFLOP. On a GPU also beside PyTorch's own (which saves memory without smoothing
alone), and Liger's where that can be imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._machine import header, spread
from benchmarks.bench_evaluate import extra_memory
from labelsmooth.torch import linear_cross_entropy

SIZE, CATALOGUE = (4096, 1024, 128_256), (512, 1024, 1_000_000)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SMOOTHING, ROUNDS, THREADS = 0.1, 3, 2
TIME, MEMORY, MOST = 1.1, 0.15, 2**30  # the budgets

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def losses(device: str) -> dict[str, Loss]:
    """Ours, a matmul and a loss, and others."""
    found: dict[str, Loss] = {
        "ours": lambda x, w, y: linear_cross_entropy(x, w, y, label_smoothing=SMOOTHING),
        "matmul": lambda x, w, y: F.cross_entropy(F.linear(x, w), y, label_smoothing=SMOOTHING),
    }
    if device == "cuda":
        if hasattr(F, "linear_cross_entropy"):
            options = torch.nn.LinearCrossEntropyOptions()
            found["torch without smoothing"] = lambda x, w, y: F.linear_cross_entropy(x, w, y, options=options)
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore
        except ImportError:
            print("Liger cannot be imported here: not compared")
        else:
            found["liger"] = lambda x, w, y: LigerFusedLinearCrossEntropyLoss(label_smoothing=SMOOTHING)(w, x, y)
    return found


def tensors(n: int, d: int, k: int, dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n, d, dtype=DTYPES[dtype], device=device, generator=generator)
    w = torch.randn(k, d, dtype=DTYPES[dtype], device=device, generator=generator).mul_(d**-0.5)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(0, k, (n,), device=device, generator=generator)


def step(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The seconds of one, and its loss."""
    x.grad = w.grad = None
    start = time.perf_counter()
    value = loss(x, w, y)
    value.backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, value.detach()


def first_step(name: str, n: int, d: int, k: int, dtype: str, device: str) -> dict[str, Any]:
    """What one step takes beyond its inputs and the gradients that it leaves, its seconds, and some of its results."""
    torch.set_num_threads(THREADS)
    loss, done = losses(device)[name], []
    loss(*tensors(8, d, 8, dtype, device)).backward()  # what is loaded once
    x, w, y = tensors(n, d, k, dtype, device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        done.append(step(loss, x, w, y))
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = extra_memory(lambda: done.append(step(loss, x, w, y)))
    assert x.grad is not None
    assert w.grad is not None
    extra = peak - sum(g.numel() * g.element_size() for g in (x.grad, w.grad))
    (seconds, value), rows = done[0], checked(n)
    return {
        "extra": extra, "seconds": seconds, "loss": value.cpu(),
        "dx": x.grad[rows].cpu(), "dw": w.grad[y[rows]].cpu(),
    }  # fmt: skip


def checked(n: int) -> slice:
    """Some rows, with whose gradients, and with those of their labels' classes, results are compared."""
    return slice(None, None, max(1, n // 16))


def apart(*arguments: object) -> dict[str, Any]:
    """`first_step` in a process of its own, whose peak is that of one step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.pt"
        code = (
            "import torch; from benchmarks.bench_linear import first_step; "
            f"torch.save(first_step(*{arguments!r}), {str(path)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        return torch.load(path)


def check(ours: dict[str, Any], matmul: dict[str, Any], x: Tensor, w: Tensor, y: Tensor) -> None:
    """Some rows of the gradient of `x` against float64; the loss, and some classes' gradients, against the matmul's."""
    (n, k), eps, rows = (len(x), len(w)), torch.finfo(x.dtype).eps, checked(len(x))
    some, labels = x.detach()[rows].double(), y[rows]
    parts = [slice(start, start + 8192) for start in range(0, k, 8192)]
    z = torch.cat([some @ w.detach()[part].double().T for part in parts], 1)
    g = (z.softmax(1) - SMOOTHING / k - (1 - SMOOTHING) * F.one_hot(labels, k)) / n
    exact = torch.stack([g[:, part] @ w.detach()[part].double() for part in parts]).sum(0).cpu()
    mine, theirs = (float((found["dx"].double() - exact).abs().max()) for found in (ours, matmul))
    assert mine <= 2 * theirs + 8 * eps / n, (mine, theirs)
    torch.testing.assert_close(ours["loss"].double(), matmul["loss"].double(), rtol=4 * eps, atol=0)
    worst = (ours["dw"].double() - matmul["dw"].double()).abs().max()
    assert worst <= 8 * eps * max(1 / n, float(matmul["dw"].abs().max())), worst


def tell(text: str) -> None:
    print(text, flush=True)


def compare(n: int, d: int, k: int, dtype: str, device: str) -> None:
    """Time and memory of all losses."""
    tell(f"N={n:,} D={d:,} K={k:,} {dtype}: {n * k * DTYPES[dtype].itemsize / 2**20:,.0f} MiB of logits")
    found, firsts = losses(device), {}
    for name in found:
        firsts[name] = apart(name, n, d, k, dtype, device)
        tell(
            f"  {name:<24} extra {firsts[name]['extra'] / 2**20:,.0f} MiB; a first step {firsts[name]['seconds']:.3g} s"
        )
    x, w, y = tensors(n, d, k, dtype, device)
    check(firsts["ours"], firsts["matmul"], x, w, y)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, loss in found.items():
            times[name].append(step(loss, x, w, y)[0])
    for name in found:
        line = f"  {name:<24} {spread(times[name])} s"
        if name != "ours":
            ratios = [a / b for a, b in zip(times["ours"], times[name], strict=True)]
            line += f"; ours / it: time {spread(ratios)}, memory {firsts['ours']['extra'] / firsts[name]['extra']:.3f}"
        tell(line + (f" (budgets {TIME} and {MEMORY})" if name == "matmul" else ""))


def main(share: float) -> None:
    torch.set_num_threads(THREADS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    header(f"linear_cross_entropy, forward and backward, on the {device}")
    for dtype in DTYPES:
        n, d, k = SIZE
        compare(max(64, int(n * share)), d, max(64, int(k * share)), dtype, device)
    for dtype in DTYPES:
        n, d, k = CATALOGUE
        n, k = max(64, int(n * share)), max(64, int(k * share))
        one = apart("ours", n, d, k, dtype, device)
        tell(f"N={n:,} D={d:,} K={k:,} {dtype}: extra {one['extra'] / MOST:.3f} GiB (budget 1), {one['seconds']:.3g} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
