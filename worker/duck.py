"""DuckDB in memory, one for the whole process: to open one takes as long as to read some thousand events."""

from __future__ import annotations

import atexit
import threading
import weakref
from functools import cache

import duckdb

MEMORY_LIMIT = "512MB"
"""For all queries under way together; one that would need more fails, and is asked again for less."""

_opening = threading.Lock()
_cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def cursor() -> duckdb.DuckDBPyConnection:
    """A cursor of its own for a thread, on which its queries run. What is registered with it nobody else sees.

    To be closed by who asked for it, or left to go with it.
    """
    with _opening:
        own = _database().cursor()
        _cursors.add(own)
    return own


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": MEMORY_LIMIT,
            # a file keeps its name and changes its content
            "enable_external_file_cache": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )


@atexit.register
def _close() -> None:
    # DuckDB complains of what is open when the interpreter is gone
    for own in list(_cursors):
        own.close()
    if _database.cache_info().currsize:
        _database().close()
