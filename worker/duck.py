"""DuckDB in memory, one for the whole process: to open one takes as long as to read some thousand events."""

from __future__ import annotations

import atexit
import threading
import weakref
from functools import cache

import duckdb

SHARE_BYTES = 256 << 20
"""What all queries together may take, for each cursor that there is. A reader of JSON sets some 50 MiB aside, however
short its file; a query that would take too much fails, and is asked again for less."""

_opening = threading.Lock()
_cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
_shares = 0


def cursor() -> duckdb.DuckDBPyConnection:
    """A cursor of its own for a thread, on which its queries run. What is registered with it nobody else sees.

    To be closed by who asked for it, or left to go with it.
    """
    global _shares  # noqa: PLW0603 - it is of the one database
    with _opening:
        own = _database().cursor()
        _cursors.add(own)
        if len(_cursors) > _shares:
            # it never goes down: what is taken cannot be given back at once
            _shares = len(_cursors)
            own.execute(f"set memory_limit = '{_shares * SHARE_BYTES >> 20}MiB'")
    return own


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
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
