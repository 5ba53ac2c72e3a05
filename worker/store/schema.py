"""The tables of the state database, and the numbered steps that lead to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Integer, LargeBinary, String, column, func, insert, inspect, select, table, update

from worker.errors import StoreError
from worker.store.backend import WITHOUT_STATE

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE worker_schema (version INTEGER NOT NULL PRIMARY KEY)",
        """
        CREATE TABLE flows (
            flow_id TEXT NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            definition TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE runs (
            run_id TEXT NOT NULL PRIMARY KEY,
            flow_id TEXT NOT NULL,
            flow_name TEXT NOT NULL,
            state TEXT NOT NULL,
            started_at TEXT NOT NULL,
            document TEXT NOT NULL
        )
        """,
        "CREATE INDEX runs_by_start ON runs (started_at)",
        "CREATE INDEX runs_of_flow_by_start ON runs (flow_name, started_at)",
        """
        CREATE TABLE loads (
            batch_id TEXT NOT NULL PRIMARY KEY,
            flow_id TEXT NOT NULL,
            day TEXT NOT NULL,
            generation BIGINT NOT NULL,
            run_id TEXT NOT NULL,
            started_at TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('started', 'committing', 'succeeded', 'failed')),
            receipt TEXT,
            error_code TEXT,
            error_message TEXT,
            CHECK ((state = 'succeeded') = (receipt IS NOT NULL))
        )
        """,
        "CREATE INDEX loads_of_day ON loads (flow_id, day, generation)",
        "CREATE INDEX loads_of_flow_by_state ON loads (flow_id, state)",
        "CREATE TABLE requests (project_id TEXT NOT NULL, asked_at TEXT NOT NULL)",
        "CREATE INDEX requests_of_project ON requests (project_id, asked_at)",
        "CREATE TABLE request_holds (project_id TEXT NOT NULL PRIMARY KEY, held_until TEXT NOT NULL)",
    ),
    (
        "DROP INDEX runs_by_start",
        "CREATE INDEX runs_by_start ON runs (started_at, run_id, flow_id, state)",
        "CREATE INDEX runs_of_flow_id_by_start ON runs (flow_id, started_at, run_id, state)",
        "CREATE INDEX runs_in_state_by_start ON runs (state, started_at, run_id, flow_id)",
        """
        CREATE TABLE objects (
            kind TEXT NOT NULL,
            object_id TEXT NOT NULL,
            document TEXT NOT NULL,
            sealed BLOB,
            etag TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            PRIMARY KEY (kind, object_id)
        )
        """,
        "CREATE INDEX objects_by_age ON objects (kind, created_at, object_id)",
        "CREATE TABLE leases (name TEXT NOT NULL PRIMARY KEY, holder TEXT NOT NULL, held_until TEXT NOT NULL)",
    ),
)
"""The statements that lead from one schema version to the next, in the words of SQLite. What was released is never
edited, only followed."""

# Texts are compared byte by byte everywhere: a time as text sorts by that, and so do names on every machine.
_IN_POSTGRESQL = {"TEXT": 'TEXT COLLATE "C"', "BLOB": "BYTEA"}

VERSIONS = table("worker_schema", column("version", Integer))
FLOWS = table("flows", column("flow_id", String), column("name", String), column("definition", String))
RUNS = table(
    "runs",
    column("run_id", String),
    column("flow_id", String),
    column("flow_name", String),
    column("state", String),
    column("started_at", String),
    column("document", String),
)
OBJECTS = table(
    "objects",
    column("kind", String),
    column("object_id", String),
    column("document", String),
    column("sealed", LargeBinary),
    column("etag", String),
    column("created_at", String),
    column("updated_at", String),
)
LEASES = table("leases", column("name", String), column("holder", String), column("held_until", String))
LOADS = table(
    "loads",
    column("batch_id", String),
    column("flow_id", String),
    column("day", String),
    column("generation", BigInteger),
    column("run_id", String),
    column("started_at", String),
    column("state", String),
    column("receipt", String),
    column("error_code", String),
    column("error_message", String),
)
REQUESTS = table("requests", column("project_id", String), column("asked_at", String))
HOLDS = table("request_holds", column("project_id", String), column("held_until", String))


def migrate(connection: Connection, place: str) -> None:
    """Bring the schema up to date within this transaction, which writes; an empty database gets all of it.

    A database that something else uses, or one that a newer worker wrote, is left as it is and raises `StoreError`.
    """
    tables = inspect(connection).get_table_names()
    version = 0
    if VERSIONS.name in tables:
        version = connection.scalar(select(func.max(VERSIONS.c.version))) or 0
    elif tables:
        raise StoreError(
            f"{place} is a database of something else, not the state of this worker.",
            advice="Name another file, or a database of the worker's own.",
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"The state database {place} has schema version {version}; this worker knows versions up to"
            f" {len(MIGRATIONS)}.",
            advice="Update the worker: a newer worker wrote it. Or move the database aside and keep it. "
            + WITHOUT_STATE,
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            connection.exec_driver_sql(_in_words_of(connection.dialect.name, statement))
        connection.execute(insert(VERSIONS).values(version=number))
    # A database that is read only lets a transaction begin; only a write tells.
    connection.execute(update(VERSIONS).values(version=VERSIONS.c.version))


def _in_words_of(dialect: str, statement: str) -> str:
    if dialect != "postgresql":
        return statement
    return re.sub(r"\b(TEXT|BLOB)\b", lambda found: _IN_POSTGRESQL[found[0]], statement)
