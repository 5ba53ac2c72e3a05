"""One run of a flow: attempts, intent, commit, record, recovery.

The order of a day is the promise: the attempt is saved before the work, the intent before the target changes, rejects
are committed before rows, the record comes last. Whatever dies in between, the target holds the day as it was or whole,
and the next run asks the target, never its own memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from worker import events
from worker.errors import (
    CommitUnknownError,
    DayNotBegunError,
    ExportRefusedError,
    ExportThrottledError,
    InterruptedRunError,
    SourceError,
    WorkerError,
    place_of,
)
from worker.model import Issue, LoadState, Receipt, Run, RunState, Tally
from worker.pipeline import REJECTS_SCHEMA, DayPlan
from worker.sinks.base import Table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import date, tzinfo

    from worker.events import Listener
    from worker.mapping.mapper import Mapper
    from worker.mixpanel.export import Exports
    from worker.mixpanel.spool import Spool
    from worker.model import Flow, Load, Source
    from worker.pipeline import Pipeline, StagedDay
    from worker.settings import Settings
    from worker.sinks.base import Sink
    from worker.store import Store

Result = TypeVar("Result")

FIRST_RETRY_SECONDS = 1.0
KEPT_ISSUES = 100
QUEUED = "queued"
"""In `Run.extra`: the run was asked for and has not begun."""
SETTLED_RUNS = 100
"""How far back a run looks for runs of its flow whose process died: each of them has looked too."""


def now_utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A flow, compiled, and the days to run, ascending, all of which exist in `zone`.

    `run_id` is that of a run that was asked for and waits in the store, None for a new one.
    """

    flow: Flow
    mapper: Mapper
    days: tuple[date, ...]
    zone: tzinfo
    window: tuple[datetime, datetime]
    run_id: str | None = None


class PacedExports:
    """Exports that keep the project's quota, which the store remembers over restarts.

    The turn is taken right before the request, so an export that waits behind another one does not go out on a turn
    that was taken long ago, nor in spite of a Retry-After that the other one was told. After a refusal that time does
    not mend nothing is asked any more. One instance serves one run.
    """

    def __init__(
        self,
        exports: Exports,
        settings: Settings,
        store: Store,
        listener: Listener,
        flow_id: str,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._exports = exports
        self._settings = settings
        self._store = store
        self._listener = listener
        self._flow_id = flow_id
        self._clock = clock
        self._refusal: ExportRefusedError | None = None

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        if self._refusal is not None:
            raise self._refusal
        await self._take_turn(source.project_id, day)
        try:
            await self._exports.fetch(source, day, spool, on_bytes)
        except ExportRefusedError as error:
            self._refusal = error
            raise
        except ExportThrottledError as error:
            if error.retry_after_seconds is not None:
                seconds = min(error.retry_after_seconds, self._settings.retry_after_max_seconds)
                until = self._clock() + timedelta(seconds=seconds)
                await to_end(asyncio.to_thread(self._store.hold_requests, source.project_id, until))
            raise

    async def _take_turn(self, project_id: str, day: date) -> None:
        """Wait until the quota has room, and take it."""
        while True:
            wait_seconds = await to_end(
                asyncio.to_thread(
                    self._store.reserve_request,
                    project_id,
                    self._clock(),
                    self._settings.exports_per_hour,
                    self._settings.exports_per_second,
                )
            )
            if wait_seconds <= 0:
                return
            self._listener(events.ExportWaiting(self._flow_id, day, wait_seconds, "quota"))
            await asyncio.sleep(wait_seconds)


async def to_end(step: Awaitable[Result]) -> Result:
    """Await `step` to its end even when this task is cancelled meanwhile, and be cancelled after it."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        with contextlib.suppress(WorkerError):
            task.result()
        raise


class Runner:
    """Runs flows, one run at a time. The ports are given: a store, a sink, a pipeline over the exports."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sink: Sink,
        pipeline: Pipeline,
        listener: Listener,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._settings = settings
        self._store = store
        self._sink = sink
        self._pipeline = pipeline
        self._listener = listener
        self._clock = clock

    async def run(self, request: RunRequest) -> Run:
        """Run the days in order and give the record of the run, whether it succeeded or failed.

        Raises StoreError when nothing can be recorded, and CancelledError after leaving everything in order: a commit
        that was under way is finished, all other days are as they were.
        """
        flow = request.flow
        run = Run(
            id=request.run_id or str(uuid4()),
            flow_id=flow.id,
            flow_name=flow.name,
            dataset_id=flow.target.dataset_id,
            state=RunState.IN_PROGRESS,
            started_at=self._clock(),
            first_day=request.days[0],
            last_day=request.days[-1],
            window_start=request.window[0],
            window_end=request.window[1],
        )
        progress = _Progress(run)
        error: WorkerError | None = None
        try:
            await to_end(asyncio.to_thread(self._store.save_run, run))
            self._listener(events.RunStarted(run, request.days))
            await self._run_days(request, progress)
        except WorkerError as failure:
            error = failure
        except asyncio.CancelledError:
            await self._end(progress, InterruptedRunError())
            raise
        except Exception as unforeseen:
            told = WorkerError(f"The worker has met an error that nobody foresaw: {place_of(unforeseen)}.")
            await self._end(progress, told)
            raise
        return await self._end(progress, error)

    async def _end(self, progress: _Progress, error: WorkerError | None) -> Run:
        now = self._clock()
        message = str(error) if error else None
        if message is not None and progress.failed_day is not None and str(progress.failed_day) not in message:
            message = f"{progress.failed_day}: {message}"
        run = replace(
            progress.run,
            state=RunState.FAILED if error else RunState.SUCCESS,
            completed_at=now,
            updated_at=now,
            error_code=error.code if error else None,
            error_message=message,
        )
        await to_end(asyncio.to_thread(self._store.save_run, run))
        self._listener(events.RunEnded(run))
        return run

    async def _run_days(self, request: RunRequest, progress: _Progress) -> None:
        flow = request.flow
        plan = DayPlan(
            flow.source,
            request.mapper,
            self._sink,
            Table(flow.target.dataset_id, request.mapper.schema, flow.id, request.mapper.notes),
            Table(flow.target.rejects_table, REJECTS_SCHEMA, flow.id),
            flow.options,
        )
        await to_end(asyncio.to_thread(self._settle, flow, progress.run.id))
        await to_end(asyncio.to_thread(self._sink.prepare, plan.rows_table))
        await to_end(asyncio.to_thread(self._sink.prepare, plan.rejects_table))
        waiting = deque(request.days)
        under_way = progress.under_way
        try:
            while waiting or under_way:
                while waiting and not progress.stopping and len(under_way) <= self._settings.days_ahead:
                    load = await to_end(asyncio.to_thread(self._begin, flow, progress.run.id, waiting.popleft()))
                    under_way.append(asyncio.create_task(self._stage(plan, flow, load, progress)))
                staged = await under_way[0]
                under_way.popleft()
                if staged is not None:
                    await to_end(self._commit(staged, progress))
        finally:
            for task in under_way:
                task.cancel()
            for left in await asyncio.gather(*under_way, return_exceptions=True):
                if not isinstance(left, BaseException) and left is not None:
                    await to_end(asyncio.to_thread(left.abandon))
            await to_end(asyncio.to_thread(self._close, flow, progress.run.id))

    def _settle(self, flow: Flow, run_id: str) -> None:
        """A load that an earlier process left open is a question to the target, never a guess; its run has ended."""
        for record in self._store.open_loads(flow.id):
            load = record.load
            landed = self._sink.landed(flow.target.dataset_id, flow.id, load.day)
            if landed is not None and landed.batch_id == load.batch_id:
                self._store.adopt(landed)
                self._listener(events.DayRecovered(landed))
            else:
                self._fail(load, InterruptedRunError())
        dead = [run for run in self._store.runs(flow.name, SETTLED_RUNS) if run.state is RunState.IN_PROGRESS]
        receipts = self._store.succeeded_receipts(flow.id).values() if dead else ()
        for run in dead:
            if run.id == run_id or run.extra.get(QUEUED):
                continue
            counted = _Progress(_uncounted(run))
            for receipt in receipts:
                if receipt.run_id == run.id:
                    counted.add(receipt, (), max(receipt.committed_at, counted.run.updated_at or run.started_at))
            error = InterruptedRunError()
            ended = counted.run.updated_at or run.started_at
            self._store.save_run(
                replace(
                    counted.run,
                    state=RunState.FAILED,
                    completed_at=ended,
                    updated_at=ended,
                    error_code=error.code,
                    error_message=str(error),
                )
            )

    def _close(self, flow: Flow, run_id: str) -> None:
        """The loads that this run began and did not get to."""
        for record in self._store.open_loads(flow.id):
            if record.load.run_id == run_id and record.state is LoadState.STARTED:
                self._fail(record.load, InterruptedRunError())

    async def _stage(self, plan: DayPlan, flow: Flow, load: Load, progress: _Progress) -> StagedDay | None:
        """Stage the day of `load`, trying again where that helps. None: the day has not begun there."""
        attempt = throttled = 0
        try:
            while True:
                attempt += 1
                try:
                    return await self._pipeline.stage_day(plan, load, attempt, self._clock())
                except DayNotBegunError as error:
                    await to_end(asyncio.to_thread(self._save_failed, load, error))
                    self._listener(events.DayLeftOut(flow.id, load.day))
                    return None
                except SourceError as error:
                    if isinstance(error, ExportThrottledError) and throttled < 2 * self._settings.export_attempts:
                        throttled += 1
                        attempt -= 1
                        wait_seconds = self._throttle_seconds(error, throttled)
                        until = self._clock() + timedelta(seconds=wait_seconds)
                        await to_end(asyncio.to_thread(self._store.hold_requests, flow.source.project_id, until))
                    elif error.retry and attempt < self._settings.export_attempts:
                        wait_seconds = self._backoff_seconds(attempt)
                    else:
                        if error.retry and error.advice is None:
                            tried = attempt + throttled
                            error.advice = (
                                f"Given up after {tried} attempt{'s' * (tried > 1)}; run the flow again later."
                            )
                        self._listener(events.ExportFailed(flow.id, load.day, error.code, str(error), None))
                        raise
                    self._listener(events.ExportFailed(flow.id, load.day, error.code, str(error), wait_seconds))
                    await asyncio.sleep(wait_seconds)
        except WorkerError as error:
            # before anything is awaited: a later day's request that waits behind this one is not sent any more
            progress.stop_after(asyncio.current_task(), load.day)
            await to_end(asyncio.to_thread(self._fail, load, error))
            raise

    def _begin(self, flow: Flow, run_id: str, day: date) -> Load:
        landed = self._sink.landed(flow.target.dataset_id, flow.id, day)
        return self._store.begin_load(
            flow.id, day, run_id, self._clock(), after_generation=landed.generation if landed else 0
        )

    def _throttle_seconds(self, error: ExportThrottledError, times: int) -> float:
        own = self._backoff_seconds(times)
        asked = error.retry_after_seconds or 0.0
        return min(max(own, asked), self._settings.retry_after_max_seconds)

    def _backoff_seconds(self, attempt: int) -> float:
        """Exponential, with full jitter above a floor, so that several workers do not come back together."""
        ceiling = min(FIRST_RETRY_SECONDS * 2.0 ** (attempt - 1), self._settings.retry_wait_max_seconds)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    async def _commit(self, staged: StagedDay, progress: _Progress) -> None:
        load = staged.load
        receipt = Receipt(
            flow_id=load.flow_id,
            day=load.day,
            generation=load.generation,
            batch_id=load.batch_id,
            run_id=load.run_id,
            exported_at=staged.exported_at,
            committed_at=self._clock(),
            tally=staged.tally,
            input_bytes=staged.input_bytes,
            output_bytes=staged.output_bytes,
            file_count=staged.file_count,
        )
        try:
            await asyncio.to_thread(self._store.save_load, load, LoadState.COMMITTING)
            self._listener(events.DayCommitting(load))
            await asyncio.to_thread(staged.rejects.commit, receipt)
            self._listener(events.RejectsCommitted(load, staged.tally.failed, staged.reject_codes))
            await asyncio.to_thread(staged.rows.commit, receipt)
            self._listener(events.RowsCommitted(receipt))
        except CommitUnknownError as error:
            # the load stays committing: the next run asks the target, and nothing is deleted meanwhile
            progress.failed_day = load.day
            error.advice = error.advice or "Run the flow again: it asks the target first."
            raise
        except WorkerError as error:
            progress.failed_day = load.day
            await asyncio.to_thread(staged.abandon)
            await asyncio.to_thread(self._fail, load, error)
            raise
        progress.add(receipt, staged.issues, self._clock())
        await asyncio.to_thread(self._store.save_load, load, LoadState.SUCCEEDED, receipt=receipt)
        await asyncio.to_thread(self._store.save_run, progress.run)
        self._listener(events.DaySucceeded(receipt))

    def _fail(self, load: Load, error: WorkerError) -> None:
        self._save_failed(load, error)
        self._listener(events.DayFailed(load, error.code, str(error)))

    def _save_failed(self, load: Load, error: WorkerError) -> None:
        self._store.save_load(load, LoadState.FAILED, error_code=error.code, error_message=str(error))


class _Progress:
    """The run as far as it has come, and the days under way, in their order."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.under_way: deque[asyncio.Task[StagedDay | None]] = deque()
        self.stopping = False
        self.failed_day: date | None = None

    def stop_after(self, task: asyncio.Task[Any] | None, day: date) -> None:
        """The day of `task` has failed: cancel those after it, and begin no more. Earlier ones go on."""
        self.stopping = True
        self.failed_day = day if self.failed_day is None else min(day, self.failed_day)
        for later in reversed(self.under_way):
            if later is task:
                return
            later.cancel()

    def add(self, receipt: Receipt, issues: Sequence[Issue], now: datetime) -> None:
        run = self.run
        counted = {(issue.code, issue.message): issue for issue in run.issues}
        for issue in issues:
            known = counted.get((issue.code, issue.message))
            if known is not None:
                counted[issue.code, issue.message] = replace(known, count=known.count + issue.count)
            elif len(counted) < KEPT_ISSUES:
                counted[issue.code, issue.message] = issue
        self.run = replace(
            run,
            updated_at=now,
            days_committed=run.days_committed + 1,
            tally=run.tally + receipt.tally,
            input_bytes=run.input_bytes + receipt.input_bytes,
            output_bytes=run.output_bytes + receipt.output_bytes,
            input_files=run.input_files + 1,
            output_files=run.output_files + receipt.file_count,
            batch_ids=(*run.batch_ids, receipt.batch_id),
            issues=tuple(counted.values()),
        )


def _uncounted(run: Run) -> Run:
    return replace(
        run,
        days_committed=0,
        tally=Tally(),
        input_bytes=0,
        output_bytes=0,
        input_files=0,
        output_files=0,
        batch_ids=(),
    )
