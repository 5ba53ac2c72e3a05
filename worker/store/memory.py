"""A store that lives as long as the process: for tests of everything that needs a store."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from worker.model import LoadRecord, LoadState
from worker.store.base import (
    CLOCK_TOLERANCE,
    HOUR,
    OPEN_STATES,
    StoredFlow,
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
from worker.store.documents import decode_document, decode_run, encode

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import date, datetime
    from types import TracebackType
    from typing import Self

    from worker.model import Load, Receipt, Run
    from worker.store.base import Lease, RunQuery, StoredObject


class MemoryStore:
    """The twin of `SqlStore` without a database; the contract is that of `Store`, but for durability.

    Flows, runs and objects are kept as the documents that a database would hold, so that what cannot be stored fails
    here too.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._flows: dict[str, tuple[str, str]] = {}
        self._runs: dict[str, str] = {}
        self._objects: dict[tuple[str, str], StoredObject] = {}
        self._leases: dict[str, Lease] = {}
        self._loads: dict[str, LoadRecord] = {}
        self._requests: list[tuple[str, datetime]] = []
        self._held_until: dict[str, datetime] = {}

    def save_flow(self, flow_id: str, name: str, definition: Mapping[str, Any]) -> None:
        with self._lock:
            self._flows[flow_id] = (name, encode(definition))

    def flows(self) -> list[StoredFlow]:
        with self._lock:
            found = [StoredFlow(key, name, decode_document(text)) for key, (name, text) in self._flows.items()]
        return sorted(found, key=lambda flow: (flow.name, flow.flow_id))

    def save_run(self, run: Run) -> None:
        with self._lock:
            self._runs[run.id] = encode(run)

    def run(self, run_id: str) -> Run | None:
        with self._lock:
            text = self._runs.get(run_id)
        return None if text is None else decode_run(text)

    def runs(self, flow_name: str | None, limit: int) -> list[Run]:
        with self._lock:
            found = [decode_run(text) for text in self._runs.values()]
        found = [run for run in found if flow_name in (None, run.flow_name)]
        return sorted(found, key=lambda run: (run.started_at, run.id), reverse=True)[:limit]

    def find_runs(self, query: RunQuery, limit: int) -> list[Run]:
        with self._lock:
            every = [decode_run(text) for text in self._runs.values()]
        found = [run for run in every if _meets(run, query)]
        if query.after is not None:
            anchor = next((_place(run) for run in every if run.id == query.after), None)
            found = [] if anchor is None else [run for run in found if _is_behind(_place(run), anchor, query)]
        return sorted(found, key=_place, reverse=query.newest_first)[:limit]

    def count_runs(self, query: RunQuery) -> int:
        with self._lock:
            return sum(_meets(decode_run(text), query) for text in self._runs.values())

    def newest_runs(self, flow_ids: Collection[str]) -> dict[str, Run]:
        with self._lock:
            every = [decode_run(text) for text in self._runs.values()]
        every.sort(key=_place)
        newest = {run.flow_id: run for run in every}
        return {flow_id: newest[flow_id] for flow_id in flow_ids if flow_id in newest}

    def create_object(
        self, kind: str, object_id: str, document: Mapping[str, Any], sealed: bytes | None, now: datetime
    ) -> StoredObject:
        with self._lock:
            known = self._objects.get((kind, object_id))
            created = _copy(created_object(known, kind, object_id, document, sealed, now))
            self._objects[kind, object_id] = created
            return _copy(created)

    def object(self, kind: str, object_id: str) -> StoredObject | None:
        with self._lock:
            found = self._objects.get((kind, object_id))
            return None if found is None else _copy(found)

    def objects(self, kind: str, object_ids: Collection[str] | None = None) -> list[StoredObject]:
        with self._lock:
            every = [item for item in self._objects.values() if item.kind == kind]
            found = [_copy(item) for item in every if object_ids is None or item.id in object_ids]
        return sorted(found, key=lambda item: (item.created_at, item.id))

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
        with self._lock:
            known = self._objects.get((kind, object_id))
            replaced = _copy(replaced_object(known, kind, object_id, document, sealed, now, etag=etag))
            self._objects[kind, object_id] = replaced
            return _copy(replaced)

    def delete_object(self, kind: str, object_id: str, *, etag: str | None = None) -> bool:
        with self._lock:
            known = self._objects.get((kind, object_id))
            if known is None:
                return False
            check_etag(known, etag)
            del self._objects[kind, object_id]
            return True

    def take_lease(self, name: str, holder: str, now: datetime, seconds: float) -> bool:
        with self._lock:
            taken = taken_lease(self._leases.get(name), holder, now, seconds)
            if taken is not None:
                self._leases[name] = taken
            return taken is not None

    def lease(self, name: str) -> Lease | None:
        with self._lock:
            return self._leases.get(name)

    def release_lease(self, name: str, holder: str) -> None:
        with self._lock:
            if name in self._leases and self._leases[name].holder == holder:
                del self._leases[name]

    def begin_load(self, flow_id: str, day: date, run_id: str, now: datetime, after_generation: int) -> Load:
        with self._lock:
            generations = [
                record.load.generation
                for record in self._loads.values()
                if (record.load.flow_id, record.load.day) == (flow_id, day)
            ]
            load = next_load(flow_id, day, run_id, now, newest_generation=max([*generations, after_generation]))
            self._loads[load.batch_id] = LoadRecord(load, LoadState.STARTED)
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
        with self._lock:
            known = self._loads.get(load.batch_id)
            changed = changed_load(
                known, load, state, receipt=receipt, error_code=error_code, error_message=error_message
            )
            if changed is not None:
                self._loads[load.batch_id] = changed

    def adopt(self, receipt: Receipt) -> None:
        with self._lock:
            self._loads[receipt.batch_id] = adopted_load(self._loads.get(receipt.batch_id), receipt)

    def load(self, batch_id: str) -> LoadRecord | None:
        with self._lock:
            return self._loads.get(batch_id)

    def open_loads(self, flow_id: str) -> list[LoadRecord]:
        with self._lock:
            found = [item for item in self._loads.values() if item.load.flow_id == flow_id]
        found = [item for item in found if item.state in OPEN_STATES]
        return sorted(found, key=lambda item: (item.load.started_at, item.load.generation, item.load.day))

    def succeeded_receipts(self, flow_id: str) -> dict[date, Receipt]:
        with self._lock:
            receipts = [item.receipt for item in self._loads.values() if item.load.flow_id == flow_id and item.receipt]
        receipts.sort(key=lambda item: (item.day, item.generation, item.batch_id))
        return {receipt.day: receipt for receipt in receipts}

    def newest_receipts(self, days: Collection[tuple[str, date]]) -> dict[tuple[str, date], Receipt]:
        known = {flow_id: self.succeeded_receipts(flow_id) for flow_id, _ in days}
        return {(flow_id, day): known[flow_id][day] for flow_id, day in days if day in known[flow_id]}

    def reserve_request(self, project_id: str, now: datetime, per_hour: int, per_second: int) -> float:
        with self._lock:
            self._requests = [
                (project, now if project == project_id and moment > now + CLOCK_TOLERANCE else moment)
                for project, moment in self._requests
            ]
            if project_id in self._held_until:
                self._held_until[project_id] = min(self._held_until[project_id], now + HOUR)
            wait_seconds = seconds_to_wait(
                sorted(moment for project, moment in self._requests if project == project_id),
                self._held_until.get(project_id),
                now,
                per_hour=per_hour,
                per_second=per_second,
            )
            if wait_seconds == 0:
                too_old = now - HOUR - CLOCK_TOLERANCE
                self._requests = [request for request in self._requests if request[1] > too_old]
                self._requests.append((project_id, now))
            return wait_seconds

    def requests_left(self, project_id: str, now: datetime, per_hour: int) -> int:
        with self._lock:
            asked_at = [moment for project, moment in self._requests if project == project_id]
            return requests_left(asked_at, self._held_until.get(project_id), now, per_hour=per_hour)

    def hold_requests(self, project_id: str, until: datetime) -> None:
        with self._lock:
            self._held_until[project_id] = max(self._held_until.get(project_id, until), until)

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _place(run: Run) -> tuple[datetime, str]:
    return run.started_at, run.id


def _is_behind(place: tuple[datetime, str], anchor: tuple[datetime, str], query: RunQuery) -> bool:
    return place < anchor if query.newest_first else place > anchor


def _meets(run: Run, query: RunQuery) -> bool:
    return (
        (query.flow_ids is None or run.flow_id in query.flow_ids)
        and (query.states is None or run.state in query.states)
        and (query.started_after is None or run.started_at > query.started_after)
        and (query.started_before is None or run.started_at < query.started_before)
    )


def _copy(item: StoredObject) -> StoredObject:
    # through the text that a database would hold, so that nobody changes what another one has
    return replace(item, document=decode_document(encode(item.document)))
