"""SQLite: one file, made to keep every commit through a power loss."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from worker.errors import ConfigurationError, StoreError
from worker.store.backend import WITHOUT_STATE, Backend

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection
    from sqlalchemy.exc import SQLAlchemyError

_BUSY_TIMEOUT_SECONDS = 30

# A file that SQLite creates gets the mode of the umask, so it is made beforehand. The lock keeps the handle that makes
# it apart from a store that another thread opens: closing any handle of a file drops all locks of the process on it.
_CREATING = Lock()


def open_sqlite(url: URL, *, advice: str) -> Backend:
    """The file that `url` names; a new one can be read and written by its owner only."""
    if url.host or url.query or not url.database or url.database.startswith((":memory:", "file:")):
        raise ConfigurationError("The url of the state database does not name a plain file.", advice=advice)
    path = Path(url.database).absolute()
    with _CREATING:
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(
                f"The state file {path} cannot be created: {error.strerror}.",
                advice="Name a file in a folder that exists and that the worker may write to.",
            ) from error
    # Threads queue for the one connection instead of polling the file's lock against each other.
    engine = create_engine(
        "sqlite://",
        creator=lambda: _connect(path),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=_BUSY_TIMEOUT_SECONDS,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return Backend(engine, str(path), partial(_store_error, place=str(path)))


def _connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings that keep every commit through a power loss; it never creates a file."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_TIMEOUT_SECONDS,
        isolation_level=None,  # transactions begin as `_begin` says, not as sqlite3 guesses
        check_same_thread=False,  # the pool gives it to one thread at a time
    )
    try:
        _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    for name, setting, read_back in (
        ("journal_mode", "DELETE", "delete"),
        ("synchronous", "EXTRA", 3),
        ("foreign_keys", "ON", 1),
    ):
        connection.execute(f"PRAGMA {name} = {setting}").close()
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != read_back:
            raise StoreError(f"The state file {path} does not take {name} = {setting}: it stays {found}.")
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise _damaged(str(path), problem)


def _begin(connection: Connection) -> None:
    # A transaction that reads first and then writes would fail at once when another one writes: it locks beforehand.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _store_error(error: SQLAlchemyError | UnicodeDecodeError, place: str) -> StoreError:
    if isinstance(error, UnicodeDecodeError):
        # The message of SQLite quotes the damaged text.
        return _damaged(place, "a text in it is not UTF-8")
    cause = error.orig if isinstance(error, DBAPIError) else error
    extended_code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if isinstance(error, PoolTimeoutError):
        extended_code = sqlite3.SQLITE_BUSY
    match extended_code & 0xFF:  # the low byte is the kind, the rest its detail
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(place, str(cause))
        case sqlite3.SQLITE_FULL:
            return StoreError(
                f"There is no room to write the state file {place}: {cause}.",
                advice="Free some space and start again: what was recorded is kept.",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreError(
                f"The state file {place} cannot be written: {cause}.",
                advice="Check that the file and its folder exist and that the worker may write to both.",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(
                f"The state file {place} is in use by another program, which did not let go: {cause}.",
                advice="Look for a program that keeps it open.",
            )
        case _:
            return StoreError(f"The state database {place} cannot be used: {cause}.")


def _damaged(place: str, problem: str) -> StoreError:
    return StoreError(
        f"The state file {place} is damaged: {problem}.",
        advice="Stop the worker, move the file aside and keep it, then start again. " + WITHOUT_STATE,
    )
