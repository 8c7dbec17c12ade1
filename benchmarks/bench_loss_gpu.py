"""The loss on a GPU, forward and backward: time, bandwidth and memory beside a copy and beside what others wrote.

    python -m benchmarks.bench_loss_gpu [--dtypes bfloat16 float32] [--shapes 4096x1000 2048x32000]

needs a CUDA device, torch and triton; Liger-Kernel and flash-attn are measured where they import. A result is compared
with float64 first, and a wrong one gets no number.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._machine import header, spread
from labelsmooth.torch import _triton, cross_entropy

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SMOOTHING = 0.1
# Small batches, where launches count; then 2^28 logits each (at most 2^20 rows), where bandwidth does.
SMALL = [(256, 10), (256, 1000), (4096, 1000), (2048, 32000)]
LARGE = [(min(2**20, 2**28 // k), k) for k in (10, 1000, 4096, 32000, 32768, 65536, 128256, 262144)]
REPEATS = 20
SLEEP = 2_000_000  # cycles, about 1 ms: longer than Python needs to launch a forward and a backward pass
DEVICE = "cuda"


def fused(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _triton.cross_entropy(
        logits, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=SMOOTHING, prior=None,
        class_prior=None, mask=None, class_mask=None, weight_mode="class", normalizer=None, inplace=False,
    )  # fmt: skip


def public(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def pytorch(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The dense q' that tutorials build."""
    classes = logits.shape[1]
    target = torch.full_like(logits, SMOOTHING / classes).scatter_add_(
        1, labels.unsqueeze(1), torch.full_like(logits[:, :1], 1 - SMOOTHING)
    )
    return -(target * logits.log_softmax(1)).sum(1).mean()


def timm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The formula of timm's LabelSmoothingCrossEntropy."""
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, labels.unsqueeze(1)).squeeze(1)
    return ((1 - SMOOTHING) * nll - SMOOTHING * log_p.mean(-1)).mean()


def contenders() -> tuple[dict[str, Loss], list[str]]:
    """The losses by name, and the names of what cannot be imported."""
    found: dict[str, Loss] = {
        "labelsmooth, Triton": fused,
        "labelsmooth, as dispatched": public,
        "F.cross_entropy": pytorch,
        "torch.compile of it": torch.compile(pytorch, dynamic=False),
        "by hand": by_hand,
        "timm's formula": timm,
    }
    missing = []
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        missing.append(f"Liger-Kernel ({error})")
    else:
        found["Liger-Kernel (in place)"] = lambda z, y: liger_cross_entropy(z, y, label_smoothing=SMOOTHING)
    try:
        from flash_attn.ops.triton.cross_entropy import cross_entropy_loss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        missing.append(f"flash-attn ({error})")
    else:
        found["flash-attn"] = lambda z, y: cross_entropy_loss(z, y, label_smoothing=SMOOTHING)[0].mean()
    return found, missing


def step(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def error_of(value: torch.Tensor, gradient: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> str | None:
    """What is wrong with a result, against float64; rounding in the result's own dtype is not."""
    rows, classes = logits.shape
    total, worst = torch.zeros((), dtype=torch.float64, device=logits.device), 0.0
    for first in range(0, rows, max(1, 2**24 // classes)):
        part = slice(first, first + max(1, 2**24 // classes))
        z, y = logits[part].double(), labels[part].unsqueeze(1)
        log_p = z.log_softmax(1)
        total -= ((1 - SMOOTHING) * log_p.gather(1, y).squeeze(1) + SMOOTHING * log_p.mean(1)).sum()
        expected = log_p.exp_().sub_(SMOOTHING / classes)
        expected.scatter_add_(1, y, torch.full_like(expected[:, :1], SMOOTHING - 1))
        worst = max(worst, float((gradient[part].double() * rows - expected).abs().max()))
    expected_loss = float(total) / rows
    if not abs(float(value) - expected_loss) <= (4 * torch.finfo(value.dtype).eps + 1e-5) * max(
        1.0, abs(expected_loss)
    ):
        return f"a loss of {float(value):.6g} where float64 has {expected_loss:.6g}"
    smallest = torch.finfo(logits.dtype).smallest_normal * torch.finfo(logits.dtype).eps  # float16 gradients underflow
    if not worst <= 2 * torch.finfo(logits.dtype).eps + smallest * rows + 1e-5:
        return f"a gradient that is off by {worst:.2g}/N"
    return None


def device_times(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds on the device, call after call in turn, with a cold cache, and a sleep that hides the launches."""
    flush = torch.empty(2**28, dtype=torch.uint8, device=DEVICE)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            flush.zero_()
            torch.cuda._sleep(SLEEP)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return times


def wall_time(call: Callable[[], object]) -> float:
    """Milliseconds of a call in a row of them, launches and Python included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / REPEATS * 1e3


def extra_memory(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(shape: tuple[int, int], dtype: torch.dtype, losses: dict[str, Loss]) -> None:
    torch._dynamo.reset()
    logits = (torch.randn(shape, device=DEVICE) * 3).to(dtype)
    labels = torch.randint(0, shape[1], shape[:1], device=DEVICE)
    size = logits.numel() * logits.element_size()
    print(f"\n{shape} {str(dtype).removeprefix('torch.')}, {size / 2**20:.4g} MiB of logits")
    target = torch.empty_like(logits)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(logits)}
    for name, loss in losses.items():
        own = logits.clone()  # Liger overwrites its logits
        try:
            problem = error_of(*step(loss, own, labels), logits, labels)
        except Exception as error:  # what others wrote may not take every shape
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if problem is not None:
            print(f"  {name:<28} no number: {problem}")
            continue
        own = own if "in place" in name else logits
        calls[name] = lambda loss=loss, own=own: step(loss, own, labels)
        calls[name]()  # the second call of a shape compiles nothing any more
    times = device_times(calls)
    copy = np.median(times["copy"])
    for name, call in calls.items():
        median = np.median(times[name])
        speed = f"{2 * size / median / 1e6:.0f} GB/s, {copy / median:.2f} of a copy"
        line = f"  {name:<28} device {spread(times[name])} ms, {speed}"
        if name != "copy":
            line += f"; a call {wall_time(call):.3g} ms; extra memory {extra_memory(call) / size:.3g}x the logits"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float16", "float32"]
    )
    parser.add_argument("--shapes", nargs="+", help="ROWSxCLASSES")
    arguments = parser.parse_args()
    reason = _triton.unavailable(DEVICE)
    if reason is not None:
        raise SystemExit(f"the benchmark needs a GPU and triton: {reason}")
    shapes = [tuple(map(int, x.split("x"))) for x in arguments.shapes] if arguments.shapes else SMALL + LARGE
    header(
        "Loss on a GPU, forward and backward, label_smoothing=0.1; GB/s = one read and one write of the logits",
        "triton",
    )
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    losses, missing = contenders()
    for name in missing:
        print(f"not measured: {name}")
    for dtype in arguments.dtypes:
        for rows, classes in shapes:
            measure((rows, classes), getattr(torch, dtype), losses)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
