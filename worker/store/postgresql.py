"""PostgreSQL: for several workers with one state."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from worker.errors import ConfigurationError, StoreError
from worker.store.backend import Backend

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import ConnectionPoolEntry

_CONNECT_TIMEOUT_SECONDS = 10
_LOCK_TIMEOUT_SECONDS = 60
# Shorter, so that a process that was stopped within a transaction loses its lock before the others lose patience.
_IDLE_TIMEOUT_SECONDS = 30
_POOL_TIMEOUT_SECONDS = 90

_WRITERS = 0x6D70_776B_7374_6F72
"""The key of the lock that puts writers in a row: of a transaction, because a connection pooler in front of the
database may give each transaction another session."""

_CONNECT_OPTIONS = {
    "application_name": "mixpanel-worker",
    "client_encoding": "utf8",
    "connect_timeout": str(_CONNECT_TIMEOUT_SECONDS),
    # A server that is gone without a word is noticed within a minute.
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
}

# One round trip. A server that may lose what it said is committed is asked for more; a careful one is left as it is.
_BEGIN_TO_WRITE = f"""
SELECT
    set_config('lock_timeout', '{_LOCK_TIMEOUT_SECONDS}s', true),
    set_config('idle_in_transaction_session_timeout', '{_IDLE_TIMEOUT_SECONDS}s', true),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END,
    pg_advisory_xact_lock({_WRITERS})
"""


def open_postgresql(url: URL, *, advice: str) -> Backend:
    """The database that `url` names; its query takes the connection parameters of PostgreSQL (`sslmode`, …)."""
    if not url.database:
        raise ConfigurationError("The url of the state database does not name a database.", advice=advice)
    if "@" in (url.host or "") + url.database:
        # Else a part of the password would be taken for the host, and come up in messages.
        raise ConfigurationError(
            "The url of the state database has more than one @.",
            advice="Write the characters @ : / ? # % of a user name or password as %40 %3A %2F %3F %23 %25.",
        )
    options = {name: value for name, value in _CONNECT_OPTIONS.items() if name not in url.query}
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                **options,
                # A connection pooler in front of the database may not know statements prepared before.
                "prepare_threshold": None,
            },
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            hide_parameters=True,
        )
    except ImportError as error:
        raise ConfigurationError(
            "The state database is a PostgreSQL one, and the driver psycopg is not installed.",
            advice="Install mixpanel-worker[postgres].",
        ) from error
    event.listen(engine, "connect", _check_encoding)
    event.listen(engine, "begin", _begin)
    host = url.host or url.query.get("host", "")
    place = f"{host}{'' if url.port is None else f':{url.port}'}/{url.database}"
    return Backend(engine, place, partial(_store_error, place=place, secrets=_secrets(url)))


def _begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("reads_only", False):
        connection.exec_driver_sql(_BEGIN_TO_WRITE)


def _check_encoding(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise StoreError(
            f"The state database has the encoding {encoding}, which does not hold every text.",
            advice="Create it with ENCODING 'UTF8'.",
        )


def _secrets(url: URL) -> list[str]:
    named = [value for name, value in url.query.items() if name.endswith("password")]
    return [value for value in (url.password, *named) if isinstance(value, str) and value]


def _store_error(error: SQLAlchemyError | UnicodeDecodeError, place: str, secrets: list[str]) -> StoreError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    text = re.sub(r"\s+", " ", str(cause)).strip().removesuffix(".")
    for secret in secrets:
        text = text.replace(secret, "***")
    if isinstance(error, PoolTimeoutError):
        return _in_use(place, text)
    state = getattr(cause, "sqlstate", None)
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if is_lost or (state is None and isinstance(error, OperationalError)):
        return StoreError(
            f"The state database {place} cannot be reached: {text}.",
            advice="Check that the server runs, and the host, user, password and database in its url.",
        )
    match state:
        case "53100":
            return StoreError(
                f"There is no room to write the state database {place}: {text}.",
                advice="Free some space and start again: what was recorded is kept.",
            )
        case "42501" | "25006" | "3F000":
            return StoreError(
                f"The state database {place} cannot be written: {text}.",
                advice="Check that the user of the worker may create tables there and write to them.",
            )
        case "55P03" | "57014" | "40P01" | "25P03":
            return _in_use(place, text)
        case _:
            return StoreError(f"The state database {place} cannot be used: {text}.")


def _in_use(place: str, text: str) -> StoreError:
    return StoreError(
        f"The state database {place} is in use by somebody who did not let go: {text}.",
        advice="Look for a process that keeps a transaction open.",
    )
