"""The long-running side: what is due is run, on this replica or another one, and never by two at once.

A tick looks at all flows; what is due follows from the store, so a tick that was missed skips nothing. A flow is worked
on under a lease. A replica that dies or is paused loses its leases, and what it began is taken over; should it wake up,
the target refuses its generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from worker import events
from worker.errors import (
    ConfigurationError,
    ExportRefusedError,
    InterruptedRunError,
    StoreError,
    WorkerError,
    place_of,
)
from worker.lease import FlowLease, holder_name, lease_name
from worker.mixpanel.calendar import calendar_zone, day_bounds, today
from worker.model import Run, RunState
from worker.pipeline import Pipeline
from worker.registry import ENABLED
from worker.runner import QUEUED, PacedExports, Runner, RunRequest, now_utc, to_end
from worker.schedule import days_due, is_due, scheduled_days
from worker.service import (
    explored,
    export_times,
    first_lines,
    flow_known,
    plan_run,
    run_request,
    telling_progress,
)
from worker.sinks import open_sink
from worker.store import RunQuery
from worker.store.base import taken_lease

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from types import TracebackType

    from worker.events import Listener
    from worker.mixpanel.export import Exports
    from worker.model import Flow, Source
    from worker.registry import FlowEntry
    from worker.service import PreparedFlow
    from worker.settings import Settings
    from worker.sinks.base import Sink
    from worker.store import Store

MOST_PROJECTS = 100
"""Of so many projects the quota is told."""
RUNS_A_LOOK = 100
REQUESTS = "runRequests"
"""The kind of object that a run which was asked for is kept as, under the id of the run, until it ends."""


class Flows(Protocol):
    """Where the flows come from: the registry. Both methods may block."""

    def flows(self) -> Sequence[FlowEntry]:
        """All flows."""

    def prepared(self, flow_id: str) -> PreparedFlow:
        """One flow, compiled. Raises ConfigurationError when it cannot be run."""


class _Scheduler(AsyncIOScheduler):  # type: ignore[misc]  # it has no types
    """Says when it has died: an error in it would only stop its timer."""

    def __init__(self, on_death: Callable[[Exception], None]) -> None:
        super().__init__(timezone=UTC)
        self._on_death = on_death

    def _process_jobs(self) -> Any:  # noqa: ANN401 - what it gives is its own business
        try:
            return super()._process_jobs()
        except Exception as error:
            self._on_death(error)
            raise


class Keeper:
    """Runs flows when they are due or asked for. Use as an async context manager: its end ends the runs in order.

    `settings.spool` belongs to this process alone.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        flows: Flows,
        exports: Exports,
        listener: Listener,
        *,
        clock: Callable[[], datetime] = now_utc,
        sink_of: Callable[[Flow], Sink] | None = None,
    ) -> None:
        # several pipelines share the memory
        share = max(settings.max_memory_bytes // settings.flows_at_once, 256 << 20)
        self._settings = replace(settings, max_memory_bytes=share)
        self._store = store
        self._flows = flows
        self._exports = exports
        self._listener = listener
        self._clock = clock
        self._sink_of = sink_of or (lambda flow: open_sink(flow.target.format, str(settings.lake)))
        self._holder = holder_name("the service")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._newest: dict[str, Run] = {}
        self._told: dict[str, str | None] = {}
        self._projects: dict[str, str] = {}
        self._ticking = asyncio.Lock()
        self._telling = False
        self._beside: set[asyncio.Task[None]] = set()
        self._scheduler = _Scheduler(self._die)
        self._closing = False
        self._dead = asyncio.Event()
        self._death: Exception | None = None
        self.trouble: str | None = None
        """Why the last tick failed, None if it did not."""

    async def __aenter__(self) -> Keeper:
        # it warns of ticks that it leaves out because one is under way, which is what it is told to do
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler.start()
        self._scheduler.add_job(
            self._tick_or_die,
            "interval",
            seconds=self._settings.tick_seconds,
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.shutdown(wait=False)
        await self.close()

    async def watch(self) -> None:
        """Wait for an error that nobody foresaw in a tick or the scheduler, and raise it: nothing is run after it."""
        await self._dead.wait()
        assert self._death is not None
        raise self._death

    async def close(self) -> None:
        """End the runs under way in order, and start none any more."""
        self._closing = True
        tasks = [*self._running.values(), *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reasons_not_ready(self) -> list[str]:
        """Why nothing can be run at the moment, fit for strangers; empty when it can."""
        reasons = ["the service is ending"] if self._closing else []
        return [*reasons, "the state database cannot be used"] if self.trouble else reasons

    def quota_left(self) -> Mapping[str, float]:
        """How many exports the hour has room for, by project: those of the flows that were prepared here last.

        Asks the store: raises StoreError.
        """
        now = self._clock()
        projects = dict.fromkeys(reversed(self._projects.copy().values()))
        return {
            project: float(self._store.requests_left(project, now, self._settings.exports_per_hour))
            for project in islice(projects, MOST_PROJECTS)
        }

    async def tick(self) -> None:
        """Start what is due, as far as there is room; never raises for trouble that may pass."""
        async with self._ticking:
            if self._closing:
                return
            try:
                await self._start_due()
            except WorkerError as error:
                self.trouble = str(error)
                self._listener(events.ServiceTrouble(None, str(error)))
            else:
                self.trouble = None

    async def request_run(self, flow_id: str, first: date | None, last: date | None) -> str:
        """Ask for a run of these days, or of those that are due, and give its id. It begins as soon as there is room.

        Raises ConfigurationError when the flow cannot be run.
        """
        prepared = await self._prepared(flow_id)
        now = self._clock()
        zone = calendar_zone(prepared.flow.source)
        first_day, last_day = first or today(zone, now), last or today(zone, now)
        if first_day > last_day:
            raise ConfigurationError(f"The first day, {first_day}, is after the last one, {last_day}.")
        run = Run(
            id=str(uuid4()),
            flow_id=flow_id,
            flow_name=prepared.flow.name,
            dataset_id=prepared.flow.target.dataset_id,
            state=RunState.IN_PROGRESS,
            started_at=now,
            first_day=first_day,
            last_day=last_day,
            window_start=day_bounds(first_day, zone)[0],
            window_end=day_bounds(last_day, zone)[1],
            extra={QUEUED: "true"},
        )
        document = {
            "flowId": flow_id,
            "first": first.isoformat() if first else None,
            "last": last.isoformat() if last else None,
        }

        def save() -> None:
            self._store.create_object(REQUESTS, run.id, document, None, now)
            self._store.save_run(run)

        await asyncio.to_thread(save)
        self._tick_soon()
        return run.id

    async def test_connection(self, source: Source) -> None:
        """Ask Mixpanel for the first event of today. Raises SourceError when it does not let this source in.

        Mixpanel lets nobody in without a project id; as long as none is known, this says that Mixpanel can be reached.
        """
        try:
            await self._look(source, 1, lookback_days=0)
        except ExportRefusedError:
            if source.project_id:
                raise

    async def explore(self, source: Source, *, rows: int) -> dict[str, Any]:
        """The first events of the newest day of the lookback that has some, as Adobe's explore call shows them.

        Raises SourceError.
        """
        return explored(await self._look(source, rows, lookback_days=source.lookback_days), rows)

    async def _look(self, source: Source, rows: int, *, lookback_days: int) -> bytes:
        now = self._clock()
        days = days_due(calendar_zone(source), now, complete_until=None, lookback_days=lookback_days).days
        paced = PacedExports(self._exports, self._settings, self._store, lambda event: None, "", self._clock)
        found = await first_lines(paced, source, days, self._settings, rows)
        return b"" if found is None else found[1]

    def _tick_soon(self) -> None:
        if not self._closing:
            self._begin(self.tick)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(self._or_die(work))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _tick_or_die(self) -> None:
        await self._or_die(self.tick)

    async def _or_die(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - `watch` raises it
            self._die(error)

    def _die(self, error: Exception) -> None:
        self._death = self._death or error
        self._dead.set()

    async def _prepared(self, flow_id: str) -> PreparedFlow:
        prepared = await asyncio.to_thread(self._flows.prepared, flow_id)
        # the newest stands last
        self._projects.pop(flow_id, None)
        self._projects[flow_id] = prepared.flow.source.project_id
        return prepared

    async def _start_due(self) -> None:
        flows = {flow.flow_id: flow for flow in await asyncio.to_thread(self._flows.flows)}
        for known in (self._newest, self._projects):
            for flow_id in known.keys() - flows.keys():
                del known[flow_id]
        unknown = [flow_id for flow_id in flows if flow_id not in self._newest]
        if unknown:
            await asyncio.to_thread(self._learn, unknown)
        for request in await asyncio.to_thread(self._store.objects, REQUESTS):
            flow_id = str(request.document["flowId"])
            if flow_id not in flows:
                await asyncio.to_thread(self._forget_request, request.id)
            elif (
                flow_id not in self._running
                and self._has_room()
                and await asyncio.to_thread(self._can_begin, flow_id, request.id)
            ):
                self._start(flow_id, request.id, request.document)
        now = self._clock()
        due = [
            flow
            for flow in flows.values()
            if flow.state == ENABLED
            and flow.schedule is not None
            and flow.flow_id not in self._running
            and (is_due(flow.schedule, self._newest.get(flow.flow_id), now) or self._is_under_way(flow.flow_id))
        ]
        # who has waited longest comes first
        due.sort(key=lambda flow: self._started_at(flow.flow_id))
        for flow in due:
            if not self._has_room():
                break
            left = self._is_under_way(flow.flow_id) and await asyncio.to_thread(self._is_free, flow.flow_id)
            # another replica may have run it meanwhile
            await asyncio.to_thread(self._learn, [flow.flow_id])
            due_now = flow.schedule is not None and is_due(flow.schedule, self._newest.get(flow.flow_id), now)
            # who began it had died when nobody had the lease, if it has not ended since
            if due_now or (left and self._is_under_way(flow.flow_id)):
                self._start(flow.flow_id, None, {})
        for flow_id in self._told.keys() - flows.keys() - self._running.keys():
            del self._told[flow_id]
            self._listener(events.FlowGone(flow_id))
        untold = [flow for flow in flows.values() if self._told.setdefault(flow.flow_id, None) != flow.name]
        if untold and not self._telling:
            self._telling = True
            self._begin(partial(self._tell_of, untold))

    async def _tell_of(self, flows: Sequence[FlowEntry]) -> None:
        """Tell what is known of flows that are here for the first time, or by a new name.

        This takes a while where there are many, so it goes on beside the ticks. A run tells of its flow itself.
        """
        try:
            for flow in flows:
                if self._is_untold(flow):
                    source = None
                    # why it cannot be run is told by the run that fails
                    with contextlib.suppress(ConfigurationError):
                        source = (await asyncio.to_thread(self._flows.prepared, flow.flow_id)).flow.source
                    known = await asyncio.to_thread(flow_known, self._store, flow.flow_id, flow.name, source)
                    # not what was read before a run that has begun meanwhile
                    if self._is_untold(flow):
                        self._tell(known)
        except StoreError:
            # the ticks say so, and the next one that can be done begins this again
            return
        finally:
            self._telling = False

    def _is_untold(self, flow: FlowEntry) -> bool:
        return self._told.get(flow.flow_id, flow.name) != flow.name and flow.flow_id not in self._running

    def _tell(self, known: events.FlowKnown) -> None:
        self._listener(known)
        self._told[known.flow_id] = known.flow_name

    def _has_room(self) -> bool:
        return len(self._running) < self._settings.flows_at_once

    def _is_under_way(self, flow_id: str) -> bool:
        """Whether the newest run that has begun has not ended, here, elsewhere, or with who began it."""
        newest = self._newest.get(flow_id)
        return newest is not None and newest.state is RunState.IN_PROGRESS

    def _is_free(self, flow_id: str) -> bool:
        """Whether the lease of the flow could be taken."""
        held = self._store.lease(lease_name(flow_id))
        return taken_lease(held, self._holder, self._clock(), self._settings.lease_seconds) is not None

    def _can_begin(self, flow_id: str, run_id: str) -> bool:
        """Whether a run that was asked for waits, or was left by who began it; one that has ended is forgotten."""
        run = self._store.run(run_id)
        if run is None or run.extra.get(QUEUED):
            return True
        if run.state is RunState.IN_PROGRESS or run.error_code == InterruptedRunError.code:
            return self._is_free(flow_id)
        self._store.delete_object(REQUESTS, run_id)
        return False

    def _started_at(self, flow_id: str) -> datetime:
        newest = self._newest.get(flow_id)
        return datetime.min.replace(tzinfo=UTC) if newest is None else newest.started_at

    def _learn(self, flow_ids: Collection[str]) -> None:
        """Read the newest run of each flow that has begun."""
        for flow_id, newest in self._store.newest_runs(flow_ids).items():
            begun = self._newest_begun(newest)
            if begun is not None:
                self._newest[flow_id] = begun

    def _newest_begun(self, newest: Run) -> Run | None:
        """This run, or the one before it that has begun."""
        found = [newest]
        while found:
            begun = next((run for run in found if not run.extra.get(QUEUED)), None)
            if begun is not None:
                return begun
            query = RunQuery(flow_ids=(newest.flow_id,), after=found[-1].id)
            found = self._store.find_runs(query, RUNS_A_LOOK)
        return None

    def _forget_request(self, run_id: str) -> None:
        run = self._store.run(run_id)
        if run is not None and run.extra.get(QUEUED):
            self._store.save_run(
                replace(
                    run,
                    state=RunState.FAILED,
                    completed_at=self._clock(),
                    error_code=ConfigurationError.code,
                    error_message="The flow was deleted before the run began.",
                    extra={},
                )
            )
        self._store.delete_object(REQUESTS, run_id)

    def _start(self, flow_id: str, run_id: str | None, request: Mapping[str, Any]) -> None:
        task = asyncio.create_task(self._run_leased(flow_id, run_id, request))
        self._running[flow_id] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._running.pop(flow_id, None)
            self._tick_soon()

        task.add_done_callback(ended)

    async def _run_leased(self, flow_id: str, run_id: str | None, request: Mapping[str, Any]) -> None:
        """Run the flow for as long as this replica has its lease."""
        try:
            async with FlowLease(
                self._store, flow_id, self._holder, self._settings.lease_seconds, self._clock
            ) as lease:
                if await lease.take():
                    await lease.keep_while(self._run(flow_id, run_id, request))
        except asyncio.CancelledError:
            raise
        except WorkerError as error:
            self._listener(events.ServiceTrouble(flow_id, str(error)))
        except Exception as error:  # noqa: BLE001 - the other flows go on
            self._listener(events.ServiceTrouble(flow_id, f"The run met what nobody foresaw: {place_of(error)}"))

    async def _run(self, flow_id: str, run_id: str | None, request: Mapping[str, Any]) -> None:
        try:
            prepared = await self._prepared(flow_id)
            receipts = await asyncio.to_thread(export_times, self._store, flow_id)
            planned = await asyncio.to_thread(self._plan, prepared, receipts, run_id, request)
        except WorkerError as error:
            await to_end(asyncio.to_thread(self._save_not_begun, flow_id, run_id, error))
            raise
        flow = prepared.flow
        sink = self._sink_of(flow)
        paced = PacedExports(self._exports, self._settings, self._store, self._listener, flow.id, self._clock)
        await to_end(asyncio.to_thread(self._store.save_flow, flow.id, flow.name, prepared.definition))
        self._tell(await asyncio.to_thread(flow_known, self._store, flow.id, flow.name, flow.source))
        listen = telling_progress(flow, receipts, self._listener)
        with Pipeline(self._settings, paced, listen) as pipeline:
            runner = Runner(self._settings, self._store, sink, pipeline, listen, self._clock)
            self._newest[flow_id] = await runner.run(planned)
        if run_id is not None:
            # not before: a request whose run was killed is done again
            await to_end(asyncio.to_thread(self._store.delete_object, REQUESTS, run_id))

    def _plan(
        self,
        prepared: PreparedFlow,
        receipts: Mapping[date, datetime],
        run_id: str | None,
        request: Mapping[str, Any],
    ) -> RunRequest:
        now = self._clock()
        known = self._store.run(run_id) if run_id else None
        if known is not None and not known.extra.get(QUEUED):
            # it had begun, and that run is ended as interrupted
            run_id = None
        first, last = (date.fromisoformat(request[key]) if request.get(key) else None for key in ("first", "last"))
        if first is not None or last is not None:
            planned = plan_run(prepared, self._store, first, last, now).request
            if planned is None:
                raise ConfigurationError(f"{first} has not begun.")
            return replace(planned, run_id=run_id)
        source = prepared.flow.source
        days = scheduled_days(
            calendar_zone(source),
            now,
            receipts,
            lookback_days=source.lookback_days,
            schedule=prepared.flow.schedule,
        )
        return run_request(prepared, days, run_id)

    def _save_not_begun(self, flow_id: str, run_id: str | None, error: WorkerError) -> None:
        """The record of a run that failed before its first day."""
        now = self._clock()
        known = self._store.run(run_id) if run_id else self._newest.get(flow_id)
        today_utc = now.astimezone(UTC).date()
        failed = Run(
            id=run_id or str(uuid4()),
            flow_id=flow_id,
            flow_name=known.flow_name if known else flow_id,
            dataset_id=known.dataset_id if known else "",
            state=RunState.FAILED,
            started_at=now,
            first_day=known.first_day if known else today_utc,
            last_day=known.last_day if known else today_utc,
            window_start=known.window_start if known else now,
            window_end=known.window_end if known else now,
            completed_at=now,
            updated_at=now,
            error_code=error.code,
            error_message=str(error),
        )
        self._store.save_run(failed)
        self._newest[flow_id] = failed
        if run_id is not None:
            self._store.delete_object(REQUESTS, run_id)
        self._listener(events.RunEnded(failed))
