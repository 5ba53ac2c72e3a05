"""How the process holds memory: freed memory goes back, instead of staying with whoever freed it.

Blocks of some MiB pass from thread to thread. The C library would keep an arena a thread, and Arrow's own pool would
keep what it once had: measured on days of a million rows, a third of the peak.
"""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa

ARENAS = 1
_M_ARENA_MAX = -8
"""`mallopt`'s name for the number of arenas (glibc, malloc.h)."""


def keep_memory_small() -> None:
    """Set the allocators of this process: once, before threads are started. Harmless where there is no glibc."""
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, ARENAS)
