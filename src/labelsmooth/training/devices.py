"""Where and in which precision to compute, and why."""

from __future__ import annotations

import os

import torch

from labelsmooth import _checks


def choose_device(name: str, local: int | None = None) -> torch.device:
    """The device called `name`; ``"auto"`` is the first CUDA device, else the CPU.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        local: which of the processes of a training on this machine asks: each gets a CUDA device; None: the only one.

    Raises:
        ValueError: no such device, or one device for several processes.
    """
    if local is not None:
        if name not in ("auto", "cpu", "cuda"):
            raise _checks.error("device", "be auto, cpu or cuda where several processes train", repr(name))
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            check_count(local + 1, "cuda")
            return torch.device("cuda", local)
        return torch.device("cpu")
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


def check_count(count: int, name: str) -> None:
    """Whether this machine has so many devices; on CPUs, so many cores.

    Args:
        count: how many.
        name: see `choose_device`.

    Raises:
        ValueError: it has less.
    """
    gpus = torch.cuda.device_count()
    if name == "cuda" or (name == "auto" and gpus):
        if count > gpus:
            raise _checks.error(
                "devices", f"be at most {gpus}, the CUDA devices here (or come with --device cpu)", count
            )
    elif count > (cores := processor_cores()):
        raise _checks.error("devices", f"be at most {cores}, the processor cores here", count)


def processor_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
