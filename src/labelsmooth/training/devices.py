"""Where and in which precision to compute, and why."""

from __future__ import annotations

import torch

from labelsmooth import _checks


def choose_device(name: str) -> torch.device:
    """The device called `name`; ``"auto"`` is the first CUDA device, else the CPU.

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise _checks.error("device", "be auto, cpu, cuda or cuda:N", repr(name)) from None
    if device.type not in ("cpu", "cuda"):
        raise _checks.error("device", "be auto, cpu, cuda or cuda:N", repr(name))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _checks.error(
            "device", f"be one of the {torch.cuda.device_count()} CUDA devices here, or cpu", repr(name)
        )
    return device


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and the reason in words; ``"auto"`` is what the device is fast in.

    For bfloat16 the weights stay float32.

    Raises:
        ValueError: bfloat16 on a CUDA device without it.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        why = "this GPU computes in it" if fast else "this GPU has no bfloat16"
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") or capabilities.get("bf16"))
        why = "this CPU has instructions for it" if fast else "this CPU has no bfloat16 instructions"
    if name == "auto":
        return (torch.bfloat16, f"bfloat16 ({why})") if fast else (torch.float32, f"float32 ({why})")
    if name == "bfloat16" and device.type == "cuda" and not fast:
        raise _checks.error("precision", "be float32 on this GPU, which has no bfloat16", name)
    return getattr(torch, name), f"{name} (as asked)"


def storage_dtype(precision: torch.dtype) -> torch.dtype:
    """The dtype of weights, for a precision to compute in."""
    return torch.float64 if precision == torch.float64 else torch.float32
