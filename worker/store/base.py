"""The contract of a store, and its rules as pure functions: every store keeps the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from ulid import ULID

from worker.errors import EtagConflictError, ObjectExistsError, ObjectMissingError, StoreError
from worker.model import Load, LoadRecord, LoadState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date, datetime
    from types import TracebackType
    from typing import Self

    from worker.model import Receipt, Run, RunState

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)

CLOCK_TOLERANCE = timedelta(minutes=1)
"""How far apart the clock readings of callers that ask at the same time may be: a caller reads its clock, then queues
for the database. Only a request recorded further ahead than this proves that the clock stepped back."""

OPEN_STATES = (LoadState.STARTED, LoadState.COMMITTING)

_NEXT_STATES: Mapping[LoadState, tuple[LoadState, ...]] = {
    LoadState.STARTED: (LoadState.COMMITTING, LoadState.FAILED),
    LoadState.COMMITTING: (LoadState.SUCCEEDED, LoadState.FAILED),
    LoadState.SUCCEEDED: (),
    LoadState.FAILED: (),
}


@dataclass(frozen=True, slots=True)
class StoredFlow:
    """A flow as it was saved; `definition` is a JSON document without secrets."""

    flow_id: str
    name: str
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of the API: a connection, a flow, a mapping set and so on.

    `kind` is the name of its collection (`connections`, `sourceConnections`, …). `document` is JSON without secrets;
    these are in `sealed`, encrypted, or there are none. `etag` is another one after every change.
    """

    kind: str
    id: str
    document: Mapping[str, Any]
    sealed: bytes | None
    etag: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds something, and until when."""

    holder: str
    until: datetime


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs: a run has to meet all that is not None. Bounds are exclusive.

    Newest start first, or oldest first; `after` is the id of the run behind which the answer goes on.
    """

    flow_ids: tuple[str, ...] | None = None
    states: tuple[RunState, ...] | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None
    newest_first: bool = True
    after: str | None = None


class Store(Protocol):
    """What the worker remembers between runs.

    Every method is one short transaction, safe to call from any thread, and durable when it returns. Several processes
    may use one database. Every datetime given is aware; every datetime returned is in UTC, exact to the microsecond.
    Texts are valid Unicode; ids and names are without U+0000, which PostgreSQL does not hold. A database that cannot be
    used raises `StoreError`; a change that was under way may then have been made or not.
    """

    def save_flow(self, flow_id: str, name: str, definition: Mapping[str, Any]) -> None:
        """Create or replace a flow. The caller guarantees that `definition` holds no secret."""

    def flows(self) -> list[StoredFlow]:
        """All flows, by name."""

    def save_run(self, run: Run) -> None:
        """Create or replace the record of a run."""

    def run(self, run_id: str) -> Run | None:
        """The run, or None."""

    def runs(self, flow_name: str | None, limit: int) -> list[Run]:
        """At most `limit` runs, newest start first; of one flow, or of all (None)."""

    def find_runs(self, query: RunQuery, limit: int) -> list[Run]:
        """At most `limit` of these runs, in order; of one start, by id. A `query.after` that is no run gives none.

        Going on behind the last run of an answer neither skips nor repeats one, whatever runs are added meanwhile.
        """

    def count_runs(self, query: RunQuery) -> int:
        """How many runs there are, `after` left aside."""

    def newest_runs(self, flow_ids: Collection[str]) -> dict[str, Run]:
        """The run with the newest start of each of these flows that has one; of one start, the one of the last id."""

    def create_object(
        self, kind: str, object_id: str, document: Mapping[str, Any], sealed: bytes | None, now: datetime
    ) -> StoredObject:
        """Add an object. Raises ObjectExistsError when there is one of this kind and id."""

    def object(self, kind: str, object_id: str) -> StoredObject | None:
        """The object, or None."""

    def objects(self, kind: str, object_ids: Collection[str] | None = None) -> list[StoredObject]:
        """All objects of a kind, or those with these ids; oldest first, of one age by id."""

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
        """Change an object as a whole. Of callers with one etag one wins, the others get EtagConflictError.

        None for `etag` takes any. Raises ObjectMissingError.
        """

    def delete_object(self, kind: str, object_id: str, *, etag: str | None = None) -> bool:
        """Remove an object; whether there was one. Of callers that change or delete it with one etag one wins.

        None for `etag` takes any. Raises EtagConflictError.
        """

    def take_lease(self, name: str, holder: str, now: datetime, seconds: float) -> bool:
        """Hold `name` until `seconds` from `now`: free, run out, or held by `holder` already. False: another has it.

        A lease that ends further ahead than an hour and `seconds` was written by a clock that stepped back: it has
        run out.
        """

    def lease(self, name: str) -> Lease | None:
        """Who took `name` last and has not given it back; it may have run out."""

    def release_lease(self, name: str, holder: str) -> None:
        """Give `name` back, if `holder` has it."""

    def begin_load(self, flow_id: str, day: date, run_id: str, now: datetime, after_generation: int) -> Load:
        """Start the next attempt at a day: STARTED is durable before this returns.

        The generation is one more than the newest of this day, here and in the target (`after_generation`, 0 if the
        target has none); no two calls get the same one.
        """

    def save_load(
        self,
        load: Load,
        state: LoadState,
        *,
        receipt: Receipt | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> None:
        """Move a load on: STARTED to COMMITTING or FAILED, COMMITTING to SUCCEEDED (with its receipt) or FAILED.

        Saying the same state again changes nothing. Any other step, or a load that was not begun here, raises
        `StoreError` and changes nothing.
        """

    def adopt(self, receipt: Receipt) -> None:
        """Record a receipt found in the target as a succeeded load, whatever was known of it: the target is right.

        Adopting it again changes nothing. An adopted load that was not begun here starts when its export ended.
        """

    def load(self, batch_id: str) -> LoadRecord | None:
        """The load with this batch id, begun or adopted here, or None."""

    def open_loads(self, flow_id: str) -> list[LoadRecord]:
        """The loads that are STARTED or COMMITTING, oldest start first: on start, each is a question to the target."""

    def succeeded_receipts(self, flow_id: str) -> dict[date, Receipt]:
        """The receipt of the newest succeeded load of each day that has one, in the order of the days."""

    def newest_receipts(self, days: Collection[tuple[str, date]]) -> dict[tuple[str, date], Receipt]:
        """What `succeeded_receipts` gives for each of these flows and days that has a receipt."""

    def reserve_request(self, project_id: str, now: datetime, per_hour: int, per_second: int) -> float:
        """Record a request at `now` and return 0.0, or record none and return the seconds to wait before asking again.

        No hour and no second (the end included, the start not) gets more requests than allowed, over all processes and
        restarts. The wait is never longer than an hour, and asking again may give another one.

        A clock that stepped back locks nobody out for longer than an hour (and a minute, for steps below a minute): a
        request recorded more than a minute ahead of `now` counts as made now, and a hold reaches at most an hour ahead.
        """

    def requests_left(self, project_id: str, now: datetime, per_hour: int) -> int:
        """How many requests the hour has room for at `now`, whatever the second has; 0 during a hold."""

    def hold_requests(self, project_id: str, until: datetime) -> None:
        """No request of the project before `until` (Retry-After); a hold that is already longer stays.

        What lies more than an hour ahead is cut to an hour when the next request asks.
        """

    def close(self) -> None:
        """Let go of the database; the store is not used after that."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def next_load(flow_id: str, day: date, run_id: str, now: datetime, *, newest_generation: int) -> Load:
    """The attempt that follows the newest one, with a new batch id."""
    return Load(
        flow_id=flow_id,
        day=day,
        generation=newest_generation + 1,
        batch_id=str(ULID.from_datetime(now)),
        run_id=run_id,
        started_at=_in_utc(now),
    )


def changed_load(
    known: LoadRecord | None,
    load: Load,
    state: LoadState,
    *,
    receipt: Receipt | None,
    error_code: str | None,
    error_message: str | None,
) -> LoadRecord | None:
    """What `save_load` has to write over the record it found, None if that is nothing; an illegal step raises."""
    if known is None or known.load != load:
        raise StoreError(f"The load {load.batch_id} of {load.day} is not in the state database.")
    if state == known.state:
        return None
    if state not in _NEXT_STATES[known.state]:
        raise StoreError(f"The load {load.batch_id} of {load.day} is {known.state}; it cannot become {state}.")
    if (receipt is not None) != (state == LoadState.SUCCEEDED):
        raise StoreError(f"The load {load.batch_id} of {load.day} needs a receipt if it succeeded, and only then.")
    if receipt is not None and _key(receipt) != _key(load):
        raise StoreError(f"The load {load.batch_id} of {load.day} was given the receipt of {receipt.batch_id}.")
    if state != LoadState.FAILED and (error_code is not None or error_message is not None):
        raise StoreError(f"The load {load.batch_id} of {load.day} has an error although it has not failed.")
    if error_message is not None:
        # what a server said may hold a character that PostgreSQL does not
        error_message = error_message.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return LoadRecord(load, state, receipt, error_code, error_message)


def adopted_load(known: LoadRecord | None, receipt: Receipt) -> LoadRecord:
    """The succeeded load that a receipt in the target proves."""
    load = Load(
        flow_id=receipt.flow_id,
        day=receipt.day,
        generation=receipt.generation,
        batch_id=receipt.batch_id,
        run_id=receipt.run_id,
        started_at=known.load.started_at if known else receipt.exported_at,
    )
    return LoadRecord(load, LoadState.SUCCEEDED, receipt)


def _key(item: Load | Receipt) -> tuple[str, date, int, str, str]:
    return item.flow_id, item.day, item.generation, item.batch_id, item.run_id


def created_object(
    known: StoredObject | None,
    kind: str,
    object_id: str,
    document: Mapping[str, Any],
    sealed: bytes | None,
    now: datetime,
) -> StoredObject:
    """What `create_object` has to write where it found `known`."""
    if known is not None:
        raise ObjectExistsError(f"There is an object {object_id} in {kind} already.")
    created_at = _in_utc(now)
    return StoredObject(kind, object_id, document, sealed, str(uuid4()), created_at, created_at)


def replaced_object(
    known: StoredObject | None,
    kind: str,
    object_id: str,
    document: Mapping[str, Any],
    sealed: bytes | None,
    now: datetime,
    *,
    etag: str | None,
) -> StoredObject:
    """What `replace_object` has to write over `known`."""
    if known is None:
        raise ObjectMissingError(f"There is no object {object_id} in {kind}.")
    check_etag(known, etag)
    return StoredObject(kind, object_id, document, sealed, str(uuid4()), known.created_at, _in_utc(now))


def check_etag(known: StoredObject, etag: str | None) -> None:
    """Whoever changes or deletes `known` has to mean it as it is."""
    if etag not in (None, known.etag):
        raise EtagConflictError(f"The object {known.id} in {known.kind} has changed: it is not at {etag} any more.")


def taken_lease(known: Lease | None, holder: str, now: datetime, seconds: float) -> Lease | None:
    """What `take_lease` has to write over `known`, None if that is nothing, for another one has it."""
    end = _in_utc(now) + timedelta(seconds=seconds)
    is_free = known is None or known.holder == holder or known.until <= now or known.until > end + HOUR
    return Lease(holder, end) if is_free else None


def _in_utc(moment: datetime) -> datetime:
    assert moment.utcoffset() is not None, "a time without a zone is not a moment"
    return moment.astimezone(UTC)


def seconds_to_wait(
    asked_at: Sequence[datetime], held_until: datetime | None, now: datetime, *, per_hour: int, per_second: int
) -> float:
    """The ledger's rule: 0.0 if a request may be made at `now`. `asked_at` is ascending.

    Requests a little ahead of `now` (other callers' clock readings) count in full, so that the limits hold for the
    readings of all callers in whatever order they arrive.
    """
    assert per_hour >= 1, "no request would ever be allowed"
    assert per_second >= 1, "no request would ever be allowed"
    free_at = [held_until or now]
    for window, limit in ((HOUR, per_hour), (SECOND, per_second)):
        counted = [moment for moment in asked_at if moment > now - window]
        if len(counted) >= limit:
            free_at.append(counted[-limit] + window)
    wait = min(max(free_at) - now, HOUR)
    return max(wait.total_seconds(), 0.0)


def requests_left(asked_at: Sequence[datetime], held_until: datetime | None, now: datetime, *, per_hour: int) -> int:
    """How many requests `seconds_to_wait` would let through at `now`, were there no limit of the second."""
    if held_until is not None and held_until > now:
        return 0
    return max(per_hour - sum(moment > now - HOUR for moment in asked_at), 0)
