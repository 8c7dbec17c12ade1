"""What every benchmark prints first, and the one way of quoting a spread."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np


def header(title: str, *packages: str) -> None:
    """Title, date, hardware and versions."""
    from torch import cpu, get_num_threads

    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", *packages))
    print(f"## {title}")
    processor = cpu.get_capabilities().get("cpu_name") or platform.processor()
    print(
        f"{datetime.date.today()}; {processor}, {os.cpu_count()} cores, "
        f"{get_num_threads()} threads; Python {platform.python_version()}, {versions}\n"
    )


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, smallest and largest, and n."""
    return (
        f"{np.median(values):.{digits}g} (min {min(values):.{digits}g}, max {max(values):.{digits}g}, n={len(values)})"
    )
