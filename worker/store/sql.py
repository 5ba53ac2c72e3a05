"""The store in a SQL database, through SQLAlchemy core: SQLite now.

The statements are those that PostgreSQL takes too. They rely on one thing: transactions that write come one after the
other, which BEGIN IMMEDIATE gives in SQLite and a transaction-level advisory lock would give in PostgreSQL.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Integer,
    String,
    and_,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    table,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from worker.errors import ConfigurationError, StoreError
from worker.model import Load, LoadRecord, LoadState
from worker.store.base import (
    CLOCK_TOLERANCE,
    HOUR,
    OPEN_STATES,
    StoredFlow,
    adopted_load,
    changed_load,
    next_load,
    seconds_to_wait,
)
from worker.store.documents import (
    decode_day,
    decode_definition,
    decode_receipt,
    decode_run,
    decode_time,
    encode,
    time_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date, datetime
    from types import TracebackType
    from typing import Self

    from sqlalchemy import ColumnElement, Connection, Engine, Row, TableClause

    from worker.model import Receipt, Run

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
)
"""The statements that lead from one schema version to the next. What was released is never edited, only followed."""

_VERSIONS = table("worker_schema", column("version", Integer))
_FLOWS = table("flows", column("flow_id", String), column("name", String), column("definition", String))
_RUNS = table(
    "runs",
    column("run_id", String),
    column("flow_id", String),
    column("flow_name", String),
    column("state", String),
    column("started_at", String),
    column("document", String),
)
_LOADS = table(
    "loads",
    column("batch_id", String),
    column("flow_id", String),
    column("day", String),
    column("generation", Integer),
    column("run_id", String),
    column("started_at", String),
    column("state", String),
    column("receipt", String),
    column("error_code", String),
    column("error_message", String),
)
_REQUESTS = table("requests", column("project_id", String), column("asked_at", String))
_HOLDS = table("request_holds", column("project_id", String), column("held_until", String))

_BUSY_TIMEOUT_SECONDS = 30

# A file that SQLite creates gets the mode of the umask, so it is made beforehand. The lock keeps the handle that makes
# it apart from a store that another thread opens: closing any handle of a file drops all locks of the process on it.
_CREATING = Lock()


def open_store(url: str) -> SqlStore:
    """Open the state database, and create it or bring its schema up to date where needed.

    `url` is `sqlite:///relative/file.db` or `sqlite:////absolute/file.db`; another one raises `ConfigurationError`.
    A new file can be read and written by its owner only. A database that is damaged, not this worker's, newer than
    this worker or not writable raises `StoreError`.
    """
    path = _sqlite_file(url)
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
    return SqlStore(engine, str(path))


class SqlStore:
    """A store in a SQL database, opened by `open_store`; the contract is that of `Store`."""

    def __init__(self, engine: Engine, place: str) -> None:
        """`place` names the database in messages."""
        self._writer = engine
        self._reader = engine.execution_options(reads_only=True)
        self._place = place
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def save_flow(self, flow_id: str, name: str, definition: Mapping[str, Any]) -> None:
        values = {"flow_id": flow_id, "name": name, "definition": encode(definition)}
        with self._transaction(self._writer) as connection:
            _upsert(connection, _FLOWS, _FLOWS.c.flow_id == flow_id, values)

    def flow(self, flow_id: str) -> StoredFlow | None:
        with self._transaction(self._reader) as connection:
            row = connection.execute(select(_FLOWS).where(_FLOWS.c.flow_id == flow_id)).one_or_none()
        return None if row is None else _stored_flow(row)

    def flows(self) -> list[StoredFlow]:
        with self._transaction(self._reader) as connection:
            rows = connection.execute(select(_FLOWS).order_by(_FLOWS.c.name, _FLOWS.c.flow_id)).all()
        return [_stored_flow(row) for row in rows]

    def save_run(self, run: Run) -> None:
        values = {
            "run_id": run.id,
            "flow_id": run.flow_id,
            "flow_name": run.flow_name,
            "state": run.state.value,
            "started_at": time_text(run.started_at),
            "document": encode(run),
        }
        with self._transaction(self._writer) as connection:
            _upsert(connection, _RUNS, _RUNS.c.run_id == run.id, values)

    def run(self, run_id: str) -> Run | None:
        with self._transaction(self._reader) as connection:
            document = connection.scalar(select(_RUNS.c.document).where(_RUNS.c.run_id == run_id))
        return None if document is None else decode_run(document)

    def runs(self, flow_name: str | None, limit: int) -> list[Run]:
        query = select(_RUNS.c.document).order_by(_RUNS.c.started_at.desc(), _RUNS.c.run_id.desc()).limit(limit)
        if flow_name is not None:
            query = query.where(_RUNS.c.flow_name == flow_name)
        with self._transaction(self._reader) as connection:
            documents = connection.scalars(query).all()
        return [decode_run(document) for document in documents]

    def begin_load(self, flow_id: str, day: date, run_id: str, now: datetime, after_generation: int) -> Load:
        of_day = and_(_LOADS.c.flow_id == flow_id, _LOADS.c.day == day.isoformat())
        with self._transaction(self._writer) as connection:
            newest = connection.scalar(select(func.max(_LOADS.c.generation)).where(of_day)) or 0
            load = next_load(flow_id, day, run_id, now, newest_generation=max(newest, after_generation))
            connection.execute(insert(_LOADS).values(_load_values(LoadRecord(load, LoadState.STARTED))))
        return load

    def save_load(
        self,
        load: Load,
        state: LoadState,
        *,
        receipt: Receipt | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> None:
        with self._transaction(self._writer) as connection:
            changed = changed_load(
                _load_of_batch(connection, load.batch_id),
                load,
                state,
                receipt=receipt,
                error_code=error_code,
                error_message=error_message,
            )
            if changed is not None:
                _save_load_record(connection, changed)

    def adopt(self, receipt: Receipt) -> None:
        with self._transaction(self._writer) as connection:
            known = _load_of_batch(connection, receipt.batch_id)
            adopted = adopted_load(known, receipt)
            if adopted != known:
                _save_load_record(connection, adopted)

    def open_loads(self, flow_id: str) -> list[LoadRecord]:
        query = (
            select(_LOADS)
            .where(_LOADS.c.flow_id == flow_id, _LOADS.c.state.in_([state.value for state in OPEN_STATES]))
            .order_by(_LOADS.c.started_at, _LOADS.c.generation, _LOADS.c.day)
        )
        with self._transaction(self._reader) as connection:
            rows = connection.execute(query).all()
        return [_load_record(row) for row in rows]

    def newest_load(self, flow_id: str, day: date) -> LoadRecord | None:
        query = (
            select(_LOADS)
            .where(_LOADS.c.flow_id == flow_id, _LOADS.c.day == day.isoformat())
            .order_by(_LOADS.c.generation.desc(), _LOADS.c.receipt.is_(None), _LOADS.c.batch_id.desc())
            .limit(1)
        )
        with self._transaction(self._reader) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _load_record(row)

    def succeeded_receipts(self, flow_id: str) -> dict[date, Receipt]:
        succeeded = and_(_LOADS.c.flow_id == flow_id, _LOADS.c.state == LoadState.SUCCEEDED.value)
        newest = (
            select(_LOADS.c.day, func.max(_LOADS.c.generation).label("generation"))
            .where(succeeded)
            .group_by(_LOADS.c.day)
            .subquery()
        )
        query = (
            select(_LOADS.c.receipt)
            .join(newest, and_(_LOADS.c.day == newest.c.day, _LOADS.c.generation == newest.c.generation))
            .where(succeeded)
            .order_by(_LOADS.c.day, _LOADS.c.batch_id)
        )
        with self._transaction(self._reader) as connection:
            receipts = [decode_receipt(text) for text in connection.scalars(query)]
        return {receipt.day: receipt for receipt in receipts}

    def reserve_request(self, project_id: str, now: datetime, per_hour: int, per_second: int) -> float:
        asked_at, held_until = _REQUESTS.c.asked_at, _HOLDS.c.held_until
        of_project, hold_of_project = _REQUESTS.c.project_id == project_id, _HOLDS.c.project_id == project_id
        now_text, in_an_hour = time_text(now), time_text(now + HOUR)
        with self._transaction(self._writer) as connection:
            connection.execute(
                update(_REQUESTS)
                .where(of_project, asked_at > time_text(now + CLOCK_TOLERANCE))
                .values(asked_at=now_text)
            )
            connection.execute(
                update(_HOLDS).where(hold_of_project, held_until > in_an_hour).values(held_until=in_an_hour)
            )
            recent = connection.scalars(
                select(asked_at).where(of_project, asked_at > time_text(now - HOUR)).order_by(asked_at)
            ).all()
            held = connection.scalar(select(held_until).where(hold_of_project))
            wait_seconds = seconds_to_wait(
                [decode_time(text) for text in recent],
                None if held is None else decode_time(held),
                now,
                per_hour=per_hour,
                per_second=per_second,
            )
            if wait_seconds == 0:
                too_old = time_text(now - HOUR - CLOCK_TOLERANCE)
                connection.execute(delete(_REQUESTS).where(asked_at <= too_old))
                connection.execute(insert(_REQUESTS).values(project_id=project_id, asked_at=now_text))
        return wait_seconds

    def hold_requests(self, project_id: str, until: datetime) -> None:
        of_project = _HOLDS.c.project_id == project_id
        with self._transaction(self._writer) as connection:
            known = connection.scalar(select(_HOLDS.c.held_until).where(of_project))
            held_until = max(known or "", time_text(until))
            _upsert(connection, _HOLDS, of_project, {"project_id": project_id, "held_until": held_until})

    def close(self) -> None:
        self._writer.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _store_error(error, self._place) from error
        except UnicodeDecodeError as error:
            # The message of SQLite quotes the damaged text.
            raise _damaged(self._place, "a text in it is not UTF-8") from error

    def _migrate(self) -> None:
        with self._transaction(self._writer) as connection:
            tables = inspect(connection).get_table_names()
            version = 0
            if _VERSIONS.name in tables:
                version = connection.scalar(select(func.max(_VERSIONS.c.version))) or 0
            elif tables:
                raise StoreError(
                    f"{self._place} is a database of something else, not the state of this worker.",
                    advice="Name another file.",
                )
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"The state database {self._place} has schema version {version}; this worker knows versions up to"
                    f" {len(MIGRATIONS)}.",
                    advice="Start the newer worker that wrote it, or move the file aside and keep it. "
                    + _WITHOUT_STATE,
                )
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in statements:
                    connection.exec_driver_sql(statement)
                connection.execute(insert(_VERSIONS).values(version=number))
            # A read-only file lets a transaction begin; only a write tells.
            connection.execute(update(_VERSIONS).values(version=_VERSIONS.c.version))


def _sqlite_file(url: str) -> Path:
    advice = "Supported is sqlite:///file.db, or sqlite:////folder/file.db for an absolute path."
    # The url of another database may hold a password: it is not repeated.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError("The url of the state database is not a url.", advice=advice) from error
    if parsed.drivername != "sqlite":
        raise ConfigurationError(f"A state database of kind {parsed.drivername} is not supported.", advice=advice)
    if parsed.host or parsed.query or not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise ConfigurationError("The url of the state database does not name a plain file.", advice=advice)
    return Path(parsed.database).absolute()


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


def _store_error(error: SQLAlchemyError, place: str) -> StoreError:
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
        advice="Stop the worker, move the file aside and keep it, then start again. " + _WITHOUT_STATE,
    )


_WITHOUT_STATE = "The tables know what they hold; give --from once, if days before the lookback are missing."


def _upsert(connection: Connection, into: TableClause, key: ColumnElement[bool], values: dict[str, Any]) -> None:
    if connection.execute(update(into).where(key).values(values)).rowcount == 0:
        connection.execute(insert(into).values(values))


def _stored_flow(row: Row[Any]) -> StoredFlow:
    return StoredFlow(row.flow_id, row.name, decode_definition(row.definition))


def _load_of_batch(connection: Connection, batch_id: str) -> LoadRecord | None:
    row = connection.execute(select(_LOADS).where(_LOADS.c.batch_id == batch_id)).one_or_none()
    return None if row is None else _load_record(row)


def _save_load_record(connection: Connection, record: LoadRecord) -> None:
    _upsert(connection, _LOADS, _LOADS.c.batch_id == record.load.batch_id, _load_values(record))


def _load_values(record: LoadRecord) -> dict[str, Any]:
    return {
        "batch_id": record.load.batch_id,
        "flow_id": record.load.flow_id,
        "day": record.load.day.isoformat(),
        "generation": record.load.generation,
        "run_id": record.load.run_id,
        "started_at": time_text(record.load.started_at),
        "state": record.state.value,
        "receipt": None if record.receipt is None else encode(record.receipt),
        "error_code": record.error_code,
        "error_message": record.error_message,
    }


def _load_record(row: Row[Any]) -> LoadRecord:
    load = Load(
        flow_id=row.flow_id,
        day=decode_day(row.day),
        generation=row.generation,
        batch_id=row.batch_id,
        run_id=row.run_id,
        started_at=decode_time(row.started_at),
    )
    receipt = None if row.receipt is None else decode_receipt(row.receipt)
    return LoadRecord(load, LoadState(row.state), receipt, row.error_code, row.error_message)
