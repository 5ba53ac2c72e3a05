"""DuckDB in memory, one for the whole process: to open one takes as long as to read some thousand events."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from dataclasses import dataclass
from functools import cache

import duckdb

LEAST_BYTES, SHARE_BYTES = 256 << 20, 64 << 20
"""What all queries together may take: at least so much, and so much for each cursor that there is. A reader of JSON
sets some 40 MiB aside, however short its file; a query that would take too much fails, and is asked again for less."""

_opening = threading.Lock()
_cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()


def cursor() -> duckdb.DuckDBPyConnection:
    """A cursor of its own for a thread, on which its queries run. What is registered with it nobody else sees.

    To be closed by who asked for it, or left to go with it.
    """
    with _opening:
        try:
            own = _opened()
        except duckdb.Error:
            # one bad error makes a database unusable
            _database.cache_clear()
            own = _opened()
        _cursors.add(own)
    return own


def _opened() -> duckdb.DuckDBPyConnection:
    database = _database()
    own = database.connection.cursor()
    limit = max(LEAST_BYTES, (len(_cursors) + 1) * SHARE_BYTES)
    # it never goes down: what is taken cannot be given back at once
    database.limit_bytes = max(database.limit_bytes, limit)
    own.execute(f"set memory_limit = '{database.limit_bytes >> 20}MiB'")
    return own


@dataclass
class _Database:
    connection: duckdb.DuckDBPyConnection
    limit_bytes: int = 0


@cache
def _database() -> _Database:
    return _Database(
        duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                # a file keeps its name and changes its content
                "enable_external_file_cache": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
    )


@atexit.register
def _close() -> None:
    # DuckDB complains of what is open when the interpreter is gone
    held = list(_cursors)
    if _database.cache_info().currsize:
        held.append(_database().connection)
    for own in held:
        with contextlib.suppress(duckdb.Error):
            own.close()
