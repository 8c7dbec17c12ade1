"""The loss, forward and backward, beside F.cross_entropy(label_smoothing=0.1): time, and whether the numbers agree."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from benchmarks._machine import header, spread
from labelsmooth.torch import cross_entropy

SHAPES = [(256, 10), (256, 1000), (4096, 1000), (2048, 32000)]
SECONDS = 4.0  # for each shape


def forward_and_backward(function, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.detach().requires_grad_()
    function(logits, labels, label_smoothing=0.1).backward()
    assert logits.grad is not None
    return logits.grad


def timed(function, logits: torch.Tensor, labels: torch.Tensor) -> float:
    start = time.perf_counter()
    forward_and_backward(function, logits, labels)
    return time.perf_counter() - start


def main() -> None:
    header("Loss, float32, forward and backward; ratio = PyTorch's time / ours (above 1: ours is faster)")
    for shape in SHAPES:
        logits, labels = torch.randn(shape) * 3, torch.randint(0, shape[1], (shape[0],))
        ours, theirs = (forward_and_backward(function, logits, labels) for function in (cross_entropy, F.cross_entropy))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 / shape[0])
        pairs = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(pairs) < 7:
            pairs.append((timed(cross_entropy, logits, labels), timed(F.cross_entropy, logits, labels)))
        print(
            f"{shape!s:<14} ours {spread([a * 1e3 for a, _ in pairs])} ms, "
            f"PyTorch {spread([b * 1e3 for _, b in pairs])} ms, "
            f"ratio {spread([b / a for a, b in pairs])}"
        )


if __name__ == "__main__":
    main()
