"""How the process holds memory: freed memory goes back, instead of staying with whoever freed it.

Blocks of some MiB pass from thread to thread. The C library would keep an arena a thread, and Arrow's own pool would
keep what it once had: measured on days of a million rows, a third of the peak.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable

ARENAS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""`mallopt`'s names (glibc, malloc.h)."""
TRIM_BYTES = 64 << 20
"""So much may lie free at an arena's end: `give_memory_back` is called often enough."""
MAPPED_BYTES = 32 << 20
"""Blocks of up to so many bytes, the most that glibc takes here, are used again: to the kernel and back costs more."""


def keep_memory_small() -> None:
    """Set the allocators of this process: once, before threads are started. Harmless where there is no glibc."""
    pa.set_memory_pool(pa.system_memory_pool())
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, ARENAS)
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def give_memory_back() -> None:
    """Return what lies free between blocks that are in use. To be called now and then: it takes some milliseconds."""
    if (malloc_trim := _glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
