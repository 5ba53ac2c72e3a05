"""The store in a SQL database, through SQLAlchemy core: the same statements for SQLite and PostgreSQL.

They rely on one thing: transactions that write come one after the other, which BEGIN IMMEDIATE gives in SQLite and a
lock that lasts for the transaction in PostgreSQL.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, and_, column, delete, func, insert, literal, make_url, select, tuple_, update, values
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from worker.errors import ConfigurationError
from worker.model import Load, LoadRecord, LoadState
from worker.store.base import (
    CLOCK_TOLERANCE,
    HOUR,
    OPEN_STATES,
    Lease,
    StoredFlow,
    StoredObject,
    adopted_load,
    changed_load,
    check_etag,
    created_object,
    next_load,
    replaced_object,
    requests_left,
    seconds_to_wait,
    taken_lease,
)
from worker.store.documents import (
    decode_day,
    decode_document,
    decode_receipt,
    decode_run,
    decode_time,
    encode,
    time_text,
)
from worker.store.postgresql import open_postgresql
from worker.store.schema import FLOWS, HOLDS, LEASES, LOADS, OBJECTS, REQUESTS, RUNS, migrate
from worker.store.sqlite import open_sqlite

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import date, datetime
    from types import TracebackType
    from typing import Self

    from sqlalchemy import ColumnClause, ColumnElement, Connection, Engine, Row, Select, TableClause

    from worker.model import Receipt, Run
    from worker.store.backend import Backend
    from worker.store.base import RunQuery


_VALUES_AT_ONCE = 500
"""Databases bound how many values one statement takes."""


def open_store(url: str) -> SqlStore:
    """Open the state database, and create it or bring its schema up to date where needed.

    `url` is `sqlite:///relative/file.db`, `sqlite:////absolute/file.db` or `postgresql://user:password@host/database`;
    another one raises `ConfigurationError`. A database that is damaged, out of reach, not this worker's, newer than
    this worker or not writable raises `StoreError`. No message holds the password.
    """
    advice = (
        "Supported is sqlite:///file.db, or sqlite:////folder/file.db for an absolute path, and"
        " postgresql://user:password@host/database."
    )
    # The url may hold a password: it is not repeated.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("The url of the state database is not a url.", advice=advice) from None
    match parsed.drivername:
        case "sqlite":
            return SqlStore(open_sqlite(parsed, advice=advice))
        case "postgresql" | "postgresql+psycopg" | "postgres":
            return SqlStore(open_postgresql(parsed, advice=advice))
        case other:
            raise ConfigurationError(f"A state database of kind {other} is not supported.", advice=advice)


class SqlStore:
    """A store in a SQL database, opened by `open_store`; the contract is that of `Store`."""

    def __init__(self, backend: Backend) -> None:
        self._writer = backend.engine
        self._reader = backend.engine.execution_options(reads_only=True)
        self._explain = backend.explain
        try:
            with self._transaction(self._writer) as connection:
                migrate(connection, backend.place)
        except BaseException:
            self.close()
            raise

    def save_flow(self, flow_id: str, name: str, definition: Mapping[str, Any]) -> None:
        values = {"flow_id": flow_id, "name": name, "definition": encode(definition)}
        with self._transaction(self._writer) as connection:
            _upsert(connection, FLOWS, FLOWS.c.flow_id == flow_id, values)

    def flows(self) -> list[StoredFlow]:
        with self._transaction(self._reader) as connection:
            rows = connection.execute(select(FLOWS).order_by(FLOWS.c.name, FLOWS.c.flow_id)).all()
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
            _upsert(connection, RUNS, RUNS.c.run_id == run.id, values)

    def run(self, run_id: str) -> Run | None:
        with self._transaction(self._reader) as connection:
            document = connection.scalar(select(RUNS.c.document).where(RUNS.c.run_id == run_id))
        return None if document is None else decode_run(document)

    def runs(self, flow_name: str | None, limit: int) -> list[Run]:
        query = select(RUNS.c.document).order_by(RUNS.c.started_at.desc(), RUNS.c.run_id.desc()).limit(limit)
        if flow_name is not None:
            query = query.where(RUNS.c.flow_name == flow_name)
        with self._transaction(self._reader) as connection:
            documents = connection.scalars(query).all()
        return [decode_run(document) for document in documents]

    def find_runs(self, query: RunQuery, limit: int) -> list[Run]:
        place = tuple_(RUNS.c.started_at, RUNS.c.run_id)
        met = _meets(query)
        if query.after is not None:
            # A start that is not there compares as unknown, so that no run follows it.
            start = select(RUNS.c.started_at).where(RUNS.c.run_id == query.after).scalar_subquery()
            anchor = tuple_(start, literal(query.after))
            met.append(place < anchor if query.newest_first else place > anchor)
        order = [item.desc() if query.newest_first else item.asc() for item in (RUNS.c.started_at, RUNS.c.run_id)]
        # The indexes hold all that is asked for and ordered by: only the documents of the answer are read.
        found = select(RUNS.c.run_id).where(*met).order_by(*order).limit(limit).subquery()
        documents_of_found = select(RUNS.c.document).where(RUNS.c.run_id.in_(select(found.c.run_id))).order_by(*order)
        with self._transaction(self._reader) as connection:
            documents = connection.scalars(documents_of_found).all()
        return [decode_run(document) for document in documents]

    def count_runs(self, query: RunQuery) -> int:
        with self._transaction(self._reader) as connection:
            return connection.scalar(select(func.count()).select_from(RUNS).where(*_meets(query))) or 0

    def newest_runs(self, flow_ids: Collection[str]) -> dict[str, Run]:
        newest = select(RUNS.c.run_id).order_by(RUNS.c.started_at.desc(), RUNS.c.run_id.desc())
        asked = ((flow_id,) for flow_id in dict.fromkeys(flow_ids))
        with self._transaction(self._reader) as connection:
            documents = _first_of_each(connection, RUNS.c.document, newest, (RUNS.c.flow_id,), asked)
            runs = [decode_run(document) for document in documents]
        return {run.flow_id: run for run in runs}

    def create_object(
        self, kind: str, object_id: str, document: Mapping[str, Any], sealed: bytes | None, now: datetime
    ) -> StoredObject:
        with self._transaction(self._writer) as connection:
            known = _object(connection, kind, object_id)
            values = _object_values(created_object(known, kind, object_id, document, sealed, now))
            connection.execute(insert(OBJECTS).values(values))
        return _stored_object(values)

    def object(self, kind: str, object_id: str) -> StoredObject | None:
        with self._transaction(self._reader) as connection:
            return _object(connection, kind, object_id)

    def objects(self, kind: str, object_ids: Collection[str] | None = None) -> list[StoredObject]:
        query = select(OBJECTS).where(OBJECTS.c.kind == kind).order_by(OBJECTS.c.created_at, OBJECTS.c.object_id)
        if object_ids is not None:
            query = query.where(OBJECTS.c.object_id.in_(object_ids))
        with self._transaction(self._reader) as connection:
            rows = connection.execute(query).mappings().all()
        return [_stored_object(row) for row in rows]

    def replace_object(
        self,
        kind: str,
        object_id: str,
        document: Mapping[str, Any],
        sealed: bytes | None,
        now: datetime,
        *,
        etag: str | None,
    ) -> StoredObject:
        with self._transaction(self._writer) as connection:
            known = _object(connection, kind, object_id)
            values = _object_values(replaced_object(known, kind, object_id, document, sealed, now, etag=etag))
            connection.execute(update(OBJECTS).where(_is_object(kind, object_id)).values(values))
        return _stored_object(values)

    def delete_object(self, kind: str, object_id: str, *, etag: str | None = None) -> bool:
        with self._transaction(self._writer) as connection:
            known = _object(connection, kind, object_id)
            if known is None:
                return False
            check_etag(known, etag)
            connection.execute(delete(OBJECTS).where(_is_object(kind, object_id)))
            return True

    def take_lease(self, name: str, holder: str, now: datetime, seconds: float) -> bool:
        with self._transaction(self._writer) as connection:
            taken = taken_lease(_lease(connection, name), holder, now, seconds)
            if taken is not None:
                values = {"name": name, "holder": taken.holder, "held_until": time_text(taken.until)}
                _upsert(connection, LEASES, LEASES.c.name == name, values)
        return taken is not None

    def lease(self, name: str) -> Lease | None:
        with self._transaction(self._reader) as connection:
            return _lease(connection, name)

    def release_lease(self, name: str, holder: str) -> None:
        with self._transaction(self._writer) as connection:
            connection.execute(delete(LEASES).where(LEASES.c.name == name, LEASES.c.holder == holder))

    def begin_load(self, flow_id: str, day: date, run_id: str, now: datetime, after_generation: int) -> Load:
        of_day = and_(LOADS.c.flow_id == flow_id, LOADS.c.day == day.isoformat())
        with self._transaction(self._writer) as connection:
            newest = connection.scalar(select(func.max(LOADS.c.generation)).where(of_day)) or 0
            load = next_load(flow_id, day, run_id, now, newest_generation=max(newest, after_generation))
            connection.execute(insert(LOADS).values(_load_values(LoadRecord(load, LoadState.STARTED))))
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

    def load(self, batch_id: str) -> LoadRecord | None:
        with self._transaction(self._reader) as connection:
            return _load_of_batch(connection, batch_id)

    def open_loads(self, flow_id: str) -> list[LoadRecord]:
        query = (
            select(LOADS)
            .where(LOADS.c.flow_id == flow_id, LOADS.c.state.in_([state.value for state in OPEN_STATES]))
            .order_by(LOADS.c.started_at, LOADS.c.generation, LOADS.c.day)
        )
        with self._transaction(self._reader) as connection:
            rows = connection.execute(query).all()
        return [_load_record(row) for row in rows]

    def succeeded_receipts(self, flow_id: str) -> dict[date, Receipt]:
        succeeded = and_(LOADS.c.flow_id == flow_id, LOADS.c.state == LoadState.SUCCEEDED.value)
        newest = (
            select(LOADS.c.day, func.max(LOADS.c.generation).label("generation"))
            .where(succeeded)
            .group_by(LOADS.c.day)
            .subquery()
        )
        query = (
            select(LOADS.c.receipt)
            .join(newest, and_(LOADS.c.day == newest.c.day, LOADS.c.generation == newest.c.generation))
            .where(succeeded)
            .order_by(LOADS.c.day, LOADS.c.batch_id)
        )
        with self._transaction(self._reader) as connection:
            receipts = [decode_receipt(text) for text in connection.scalars(query)]
        return {receipt.day: receipt for receipt in receipts}

    def newest_receipts(self, days: Collection[tuple[str, date]]) -> dict[tuple[str, date], Receipt]:
        asked = ((flow_id, day.isoformat()) for flow_id, day in dict.fromkeys(days))
        newest = select(LOADS.c.batch_id).where(LOADS.c.state == LoadState.SUCCEEDED.value)
        newest = newest.order_by(LOADS.c.generation.desc(), LOADS.c.batch_id.desc())
        with self._transaction(self._reader) as connection:
            texts = _first_of_each(connection, LOADS.c.receipt, newest, (LOADS.c.flow_id, LOADS.c.day), asked)
            receipts = [decode_receipt(text) for text in texts]
        return {(receipt.flow_id, receipt.day): receipt for receipt in receipts}

    def reserve_request(self, project_id: str, now: datetime, per_hour: int, per_second: int) -> float:
        asked_at, held_until = REQUESTS.c.asked_at, HOLDS.c.held_until
        of_project, hold_of_project = REQUESTS.c.project_id == project_id, HOLDS.c.project_id == project_id
        now_text, in_an_hour = time_text(now), time_text(now + HOUR)
        with self._transaction(self._writer) as connection:
            connection.execute(
                update(REQUESTS)
                .where(of_project, asked_at > time_text(now + CLOCK_TOLERANCE))
                .values(asked_at=now_text)
            )
            connection.execute(
                update(HOLDS).where(hold_of_project, held_until > in_an_hour).values(held_until=in_an_hour)
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
                connection.execute(delete(REQUESTS).where(asked_at <= too_old))
                connection.execute(insert(REQUESTS).values(project_id=project_id, asked_at=now_text))
        return wait_seconds

    def requests_left(self, project_id: str, now: datetime, per_hour: int) -> int:
        recent = select(REQUESTS.c.asked_at).where(
            REQUESTS.c.project_id == project_id, REQUESTS.c.asked_at > time_text(now - HOUR)
        )
        hold = select(HOLDS.c.held_until).where(HOLDS.c.project_id == project_id)
        with self._transaction(self._reader) as connection:
            asked_at = [decode_time(text) for text in connection.scalars(recent)]
            held = connection.scalar(hold)
        return requests_left(asked_at, None if held is None else decode_time(held), now, per_hour=per_hour)

    def hold_requests(self, project_id: str, until: datetime) -> None:
        of_project = HOLDS.c.project_id == project_id
        with self._transaction(self._writer) as connection:
            known = connection.scalar(select(HOLDS.c.held_until).where(of_project))
            held_until = max(known or "", time_text(until))
            _upsert(connection, HOLDS, of_project, {"project_id": project_id, "held_until": held_until})

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
        except (SQLAlchemyError, UnicodeDecodeError) as error:
            raise self._explain(error) from error


def _upsert(connection: Connection, into: TableClause, key: ColumnElement[bool], values: dict[str, Any]) -> None:
    if connection.execute(update(into).where(key).values(values)).rowcount == 0:
        connection.execute(insert(into).values(values))


def _first_of_each(
    connection: Connection,
    told: ColumnElement[Any],
    rows: Select[Any],
    keys: tuple[ColumnClause[Any], ...],
    asked: Iterable[tuple[str, ...]],
) -> Iterator[str]:
    """What the first row for each of the `asked` values of `keys` tells; `rows` gives ids, which are unique, in order.

    One step down an index for each, where grouping would go through all rows.
    """
    (identity,) = rows.selected_columns
    waiting = iter(asked)
    while part := list(islice(waiting, _VALUES_AT_ONCE)):
        wanted = values(*(column(key.name, String) for key in keys), name="wanted").data(part).cte()
        first = rows.where(*(key == wanted.c[key.name] for key in keys)).limit(1).correlate(wanted)
        found = select(first.scalar_subquery()).select_from(wanted)
        yield from connection.scalars(select(told).where(identity.in_(found)))


def _stored_flow(row: Row[Any]) -> StoredFlow:
    return StoredFlow(row.flow_id, row.name, decode_document(row.definition))


def _meets(query: RunQuery) -> list[ColumnElement[bool]]:
    met: list[ColumnElement[bool]] = []
    if query.flow_ids is not None:
        met.append(RUNS.c.flow_id.in_(query.flow_ids))
    if query.states is not None:
        met.append(RUNS.c.state.in_([state.value for state in query.states]))
    if query.started_after is not None:
        met.append(RUNS.c.started_at > time_text(query.started_after))
    if query.started_before is not None:
        met.append(RUNS.c.started_at < time_text(query.started_before))
    return met


def _lease(connection: Connection, name: str) -> Lease | None:
    row = connection.execute(select(LEASES).where(LEASES.c.name == name)).one_or_none()
    return None if row is None else Lease(row.holder, decode_time(row.held_until))


def _is_object(kind: str, object_id: str) -> ColumnElement[bool]:
    return and_(OBJECTS.c.kind == kind, OBJECTS.c.object_id == object_id)


def _object(connection: Connection, kind: str, object_id: str) -> StoredObject | None:
    row = connection.execute(select(OBJECTS).where(_is_object(kind, object_id))).mappings().one_or_none()
    return None if row is None else _stored_object(row)


def _object_values(item: StoredObject) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "object_id": item.id,
        "document": encode(item.document),
        "sealed": item.sealed,
        "etag": item.etag,
        "created_at": time_text(item.created_at),
        "updated_at": time_text(item.updated_at),
    }


def _stored_object(values: Mapping[Any, Any]) -> StoredObject:
    return StoredObject(
        kind=values["kind"],
        id=values["object_id"],
        document=decode_document(values["document"]),
        sealed=values["sealed"],
        etag=values["etag"],
        created_at=decode_time(values["created_at"]),
        updated_at=decode_time(values["updated_at"]),
    )


def _load_of_batch(connection: Connection, batch_id: str) -> LoadRecord | None:
    row = connection.execute(select(LOADS).where(LOADS.c.batch_id == batch_id)).one_or_none()
    return None if row is None else _load_record(row)


def _save_load_record(connection: Connection, record: LoadRecord) -> None:
    _upsert(connection, LOADS, LOADS.c.batch_id == record.load.batch_id, _load_values(record))


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
