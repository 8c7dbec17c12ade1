"""Memory that a training frees and takes again in every step, kept by the process meanwhile."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def kept() -> Iterator[None]:
    """In the block, freed memory stays with the process; after it, all goes back to the system.

    Glibc returns large tensors to the system as soon as they are freed, and every step pays for their pages again:
    half of a step's time at batch 1000 (benchmarks/README.md). With another C library nothing changes.
    """
    glibc = None
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt"):
            glibc = library
    if glibc is None:
        yield
        return
    glibc.mallopt(_M_MMAP_MAX, 0)
    glibc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        glibc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        glibc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        glibc.malloc_trim(0)
