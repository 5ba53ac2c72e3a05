"""The use cases that every door calls: run flows, check a flow, preview one, list runs, ask the lake."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from worker import events
from worker.errors import ConfigurationError, DayNotBegunError, ExportBrokenError, FlowBusyError
from worker.flow_file import load_flow
from worker.lease import FlowLease, holder_name
from worker.mapping.context import Context
from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import load_mapping_set, parse_mapping_set
from worker.mixpanel.calendar import calendar_zone, day_bounds, today
from worker.mixpanel.spool import own_spool
from worker.model import Flow, RunState
from worker.runner import PacedExports, Runner, RunRequest, now_utc, to_end
from worker.schedule import complete_until, days_due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date, datetime
    from zoneinfo import ZoneInfo

    import duckdb

    from worker.events import Event, Listener
    from worker.mapping.mapper import Mapper
    from worker.mixpanel.export import Exports
    from worker.model import Receipt, Run, Source
    from worker.settings import Settings
    from worker.store import Store

Result = TypeVar("Result")
PREVIEW_BYTES = 4 << 20
MOST_DIGITS = 19
"""An integer with fewer digits fits into 64 bits."""
MOST_LEVELS = 32
"""How deep a preview shows nested values."""


@dataclass(frozen=True, slots=True)
class PreparedFlow:
    """A flow file that was read, checked and compiled without a network."""

    flow: Flow
    mapper: Mapper
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Planned:
    """What one run of a flow will cover. `not_begun`: days that were asked for but lie after today."""

    prepared: PreparedFlow
    request: RunRequest | None
    not_begun: tuple[date, date] | None


def prepare_flow(path: Path, environ: Mapping[str, str], settings: Settings) -> PreparedFlow:
    """Read, check and compile the flow file at `path`. Raises ConfigurationError; nothing is started."""
    file = load_flow(path, environ, settings)
    if file.mapping_path is not None:
        mapping_set, schema = load_mapping_set(file.mapping_path)
        where = str(file.mapping_path)
    else:
        assert file.mapping_document is not None
        schema, where = None, f"{path}: mappingSet"
        mapping_set = _located(where, lambda: parse_mapping_set(file.mapping_document or {}))
    mapper = _located(where, lambda: compile_mapper(mapping_set, schema))
    flow = Flow(file.flow_id, file.name, file.source, file.target, file.options, file.schedule, file.description)
    return PreparedFlow(flow, mapper, file.definition)


def _located(where: str, step: Callable[[], Result]) -> Result:
    """Do `step`; a ConfigurationError of it says where."""
    try:
        return step()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error.message}", advice=error.advice) from error


def plan_run(prepared: PreparedFlow, store: Store, first: date | None, last: date | None, now: datetime) -> Planned:
    """The days that a run started `now` covers: those asked for, or those since the last complete day."""
    flow = prepared.flow
    zone = calendar_zone(flow.source)
    plan = days_due(
        zone,
        now,
        complete_until=complete_until(export_times(store, flow.id), zone),
        lookback_days=flow.source.lookback_days,
        first=first,
        last=last,
    )
    if not plan.days:
        return Planned(prepared, None, plan.not_begun)
    return Planned(prepared, run_request(prepared, plan.days), plan.not_begun)


def export_times(store: Store, flow_id: str) -> dict[date, datetime]:
    """When the committed export of each day of a flow was begun."""
    return {day: receipt.exported_at for day, receipt in store.succeeded_receipts(flow_id).items()}


def flow_known(store: Store, flow_id: str, name: str, source: Source | None) -> events.FlowKnown:
    """What the store says of the flow; without its source, nothing of its days."""
    from worker.store import RunQuery

    newest = store.find_runs(RunQuery(flow_ids=(flow_id,), states=(RunState.SUCCESS,)), 1)
    until = None if source is None else _complete_end(export_times(store, flow_id), calendar_zone(source))
    return events.FlowKnown(flow_id, name, newest[0].completed_at if newest else None, until)


def telling_progress(flow: Flow, receipts: dict[date, datetime], listener: Listener) -> Listener:
    """A listener for a run of the flow that passes everything on, and tells with each day how far it is complete."""
    zone = calendar_zone(flow.source)

    def listen(event: Event) -> None:
        listener(event)
        if isinstance(event, events.DaySucceeded | events.DayRecovered):
            receipts[event.receipt.day] = event.receipt.exported_at
            listener(events.FlowKnown(flow.id, flow.name, None, _complete_end(receipts, zone)))

    return listen


def _complete_end(receipts: Mapping[date, datetime], zone: ZoneInfo) -> datetime | None:
    newest = complete_until(receipts, zone)
    return None if newest is None else day_bounds(newest, zone)[1]


def run_request(prepared: PreparedFlow, days: tuple[date, ...], run_id: str | None = None) -> RunRequest:
    """What to run for these days, of which there is at least one."""
    zone = calendar_zone(prepared.flow.source)
    window = day_bounds(days[0], zone)[0], day_bounds(days[-1], zone)[1]
    return RunRequest(prepared.flow, prepared.mapper, days, zone, window, run_id)


async def run_once(
    prepared: Sequence[PreparedFlow],
    settings: Settings,
    listener: Listener,
    *,
    first: date | None = None,
    last: date | None = None,
    on_planned: Callable[[Planned], None] = lambda planned: None,
    on_busy: Callable[[Flow, FlowBusyError], None],
    clock: Callable[[], datetime] = now_utc,
) -> list[Run]:
    """Run each flow once and give the records. Raises ConfigurationError before anything is started.

    A run that fails does not keep the next flow from running, nor does a flow that another process works on, which
    `on_busy` is told. When this is cancelled, the run under way ends in order.
    """
    from worker.memory import keep_memory_small
    from worker.mixpanel.export import MixpanelExports
    from worker.store import open_store

    _check_datasets(prepared)
    keep_memory_small()
    holder = holder_name("run --once")
    runs: list[Run] = []
    async with AsyncExitStack() as stack:
        store = stack.enter_context(await asyncio.to_thread(open_store, settings.state))
        _check_begun([plan_run(one, store, first, last, clock()) for one in prepared], clock())
        own = replace(settings, spool=stack.enter_context(own_spool(settings.spool)))
        exports = await stack.enter_async_context(MixpanelExports(own))
        for one in prepared:
            flow = one.flow

            def tell_wait(holder: str, seconds: float, flow: Flow = flow) -> None:
                listener(events.FlowAwaited(flow.id, flow.name, holder, seconds))

            listener(await asyncio.to_thread(flow_known, store, flow.id, flow.name, flow.source))
            async with FlowLease(store, flow.id, holder, own.lease_seconds, clock) as lease:
                try:
                    await lease.take_over(tell_wait)
                    # only now, for another process may have loaded some of the days
                    plan = plan_run(one, store, first, last, clock())
                    on_planned(plan)
                    if plan.request is not None:
                        work = _run_planned(one, plan.request, own, store, exports, listener, clock)
                        runs.append(await lease.keep_while(work))
                except FlowBusyError as error:
                    on_busy(flow, error)
    return runs


async def _run_planned(
    prepared: PreparedFlow,
    request: RunRequest,
    settings: Settings,
    store: Store,
    exports: Exports,
    listener: Listener,
    clock: Callable[[], datetime],
) -> Run:
    from worker.pipeline import Pipeline
    from worker.sinks import open_sink

    flow = prepared.flow
    await to_end(asyncio.to_thread(store.save_flow, flow.id, flow.name, prepared.definition))
    sink = open_sink(flow.target.format, str(settings.lake))
    listen = telling_progress(flow, export_times(store, flow.id), listener)
    paced = PacedExports(exports, settings, store, listen, flow.id, clock)
    with Pipeline(settings, paced, listen) as pipeline:
        return await Runner(settings, store, sink, pipeline, listen, clock).run(request)


def _check_begun(planned: Sequence[Planned], now: datetime) -> None:
    if any(plan.request is not None for plan in planned):
        return
    zone = calendar_zone(planned[0].prepared.flow.source)
    raise ConfigurationError(
        "None of the days that were asked for has begun, so nothing was run.",
        advice=f"Today is {today(zone, now)} in {zone.key}.",
    )


def _check_datasets(prepared: Sequence[PreparedFlow]) -> None:
    """Two flows with one name, or one dataset, would overwrite each other."""
    names: dict[str, None] = {}
    datasets: dict[str, str] = {}
    for one in prepared:
        name, dataset = one.flow.name, one.flow.target.dataset_id
        if name in names:
            raise ConfigurationError(
                f"Two flow files have the name {name!r}.", advice="Give each flow a name of its own."
            )
        if dataset in datasets:
            raise ConfigurationError(
                f"The flows {datasets[dataset]!r} and {name!r} have one dataset, {dataset}.",
                advice="Give each flow a dataset of its own: a run replaces whole days of it.",
            )
        names[name] = None
        datasets[dataset] = name


def recover(prepared: Sequence[PreparedFlow], settings: Settings) -> dict[str, list[Receipt]]:
    """Write into the state what the tables say of each flow's days; give the receipts, by the name of the flow.

    Changes no table. What the state knows already stays, for the target is right. Raises SinkError, StoreError.
    """
    from worker.sinks import open_sink
    from worker.store import open_store

    _check_datasets(prepared)
    found: dict[str, list[Receipt]] = {}
    with open_store(settings.state) as store:
        for one in prepared:
            flow = one.flow
            store.save_flow(flow.id, flow.name, one.definition)
            receipts = open_sink(flow.target.format, str(settings.lake)).receipts(flow.target.dataset_id, flow.id)
            for receipt in receipts:
                store.adopt(receipt)
            found[flow.name] = receipts
    return found


def failed_runs(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.state is RunState.FAILED]


def list_runs(settings: Settings, flow_name: str | None, limit: int) -> list[Run]:
    """The newest runs, newest first. Raises ConfigurationError when there is no state database yet."""
    from worker.store import open_store

    path = Path(settings.state.removeprefix("sqlite:///"))
    if settings.state.startswith("sqlite:///") and not path.exists():
        raise ConfigurationError(f"There is no state database at {path}: nothing has run here yet.")
    with open_store(settings.state) as store:
        runs = store.runs(flow_name, limit)
        if flow_name is not None and not runs and flow_name not in {flow.name for flow in store.flows()}:
            known = ", ".join(repr(flow.name) for flow in store.flows()) or "none"
            raise ConfigurationError(f"There is no flow {flow_name!r}; the flows that have run are: {known}.")
        return runs


@dataclass(frozen=True, slots=True)
class Preview:
    """Real rows of one day: as Adobe's explore call shows them, and as the mapping set makes them."""

    day: date
    explore: dict[str, Any]
    mapped: list[dict[str, Any]]
    rejects: list[str]
    warnings: list[str]


async def preview(prepared: PreparedFlow, settings: Settings, *, day: date | None, rows: int) -> Preview:
    """Export one day (today, or the newest earlier day of the lookback that has events) and show its first rows.

    The export is left as soon as there are enough lines; it takes one request of the quota a day that is tried.
    """
    from worker.mixpanel.export import MixpanelExports
    from worker.store import open_store

    flow = prepared.flow
    zone = calendar_zone(flow.source)
    plan = days_due(zone, now_utc(), complete_until=None, lookback_days=flow.source.lookback_days, first=day, last=day)
    if not plan.days:
        raise ConfigurationError(f"{day} has not begun; today is {today(zone, now_utc())}.")
    async with AsyncExitStack() as stack:
        store = stack.enter_context(await asyncio.to_thread(open_store, settings.state))
        own = replace(settings, spool=stack.enter_context(own_spool(settings.spool)))
        exports = await stack.enter_async_context(MixpanelExports(own))
        paced = PacedExports(exports, own, store, lambda event: None, flow.id)
        found = await first_lines(paced, flow.source, plan.days, own, rows)
        if found is not None:
            return _preview(prepared, own, *found, rows)
    return Preview(plan.days[-1], {"format": "hierarchical", "schema": {"type": "object"}, "data": []}, [], [], [])


async def first_lines(
    exports: Exports, source: Source, days: Sequence[date], settings: Settings, rows: int
) -> tuple[date, bytes] | None:
    """The newest of these days that has events, and its first `rows` lines or more; None when none has.

    It takes one request of the quota a day that is tried. Raises SourceError.
    """
    for day in reversed(days):
        try:
            head = await _head(exports, source, day, settings, rows)
        except DayNotBegunError:
            continue
        if head.strip():
            return day, head
    return None


def explored(head: bytes, rows: int) -> dict[str, Any]:
    """What Adobe's explore call shows of the first `rows` lines: fields with types, and the events."""
    from worker.mixpanel.body import BYTE_ORDER_MARK
    from worker.mixpanel.explore import explore_document

    lines = [line for line in head.removeprefix(BYTE_ORDER_MARK).split(b"\n")[:rows] if line.strip()]
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(_record(line))
    return explore_document(records)


async def _head(exports: Exports, source: Source, day: date, settings: Settings, rows: int) -> bytes:
    """The first lines of a day, whole; the rest of the export is not waited for."""
    from worker.mixpanel.body import inflate
    from worker.mixpanel.spool import ExportAbandonedError, Spool

    settings.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        tempfile.TemporaryDirectory(prefix="preview-", dir=settings.spool) as folder,
        Spool(Path(folder) / "export") as spool,
    ):

        def read() -> tuple[bytes, bool]:
            head = bytearray()
            for piece in inflate(spool):
                head += piece
                if head.count(b"\n") >= rows or len(head) >= PREVIEW_BYTES:
                    return bytes(head), False
            return bytes(head), True

        reading = asyncio.create_task(asyncio.to_thread(read))
        fetching = asyncio.ensure_future(exports.fetch(source, day, spool, lambda size: None))
        try:
            await asyncio.wait({reading, fetching}, return_when=asyncio.FIRST_COMPLETED)
            if fetching.done() and isinstance(error := fetching.exception(), Exception):
                spool.fail(error)
            head, ended = await reading
        finally:
            fetching.cancel()
            spool.fail(ExportAbandonedError())
            await asyncio.gather(fetching, reading, return_exceptions=True)
    return head if ended else head[: head.rfind(b"\n") + 1]


def _preview(prepared: PreparedFlow, settings: Settings, day: date, head: bytes, rows: int) -> Preview:
    from worker.mixpanel.body import BYTE_ORDER_MARK, Block, is_sentinel
    from worker.mixpanel.decode import Decoder
    from worker.mixpanel.explore import explore_document

    lines = head.removeprefix(BYTE_ORDER_MARK).split(b"\n")[:rows]
    data = b"\n".join(lines) + b"\n"
    mapper = prepared.mapper
    with closing(
        Decoder(
            mapper.paths,
            max_line_bytes=settings.max_line_bytes,
            max_raw_bytes=settings.max_reject_bytes,
            kinds_of=mapper.kinds_of,
            rounded=mapper.rounded,
        )
    ) as decoder:
        decoded = decoder.decode(Block(data))
    for reject in decoded.rejects:
        if is_sentinel(reject.raw):
            raise ExportBrokenError("Mixpanel ended the export before its end.", reason="terminated_early")
    wanted = len(mapper.paths)
    mapped = mapper.map(decoded.texts[:wanted], decoded.kinds[:wanted], Context.of(prepared.flow.source, now_utc()))
    records = [_record(lines[row]) for row in decoded.rows]
    kept = set(range(mapped.batch.num_rows)) - set(mapped.rejected.tolist())
    rejects = [f"line {reject.row + 1}: {reject.reason}" for reject in decoded.rejects]
    rejects += [
        f"line {decoded.rows[row] + 1}: {reason}" for row, reason in zip(mapped.rejected, mapped.reasons, strict=True)
    ]
    return Preview(
        day,
        explore_document(records),
        [row for index, row in enumerate(mapped.batch.to_pylist(maps_as_pydicts="lossy")) if index in kept],
        rejects,
        [f"{issue.message} ({issue.count} rows, first: {issue.sample!r})" for issue in mapped.warnings],
    )


def _record(line: bytes) -> dict[str, Any]:
    """An event to be shown: what is no number in Python or in JSON as its text, what is nested too deep left out.

    Raises ValueError for a line that is no object.
    """
    import json

    import orjson

    try:
        record: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = json.loads(
            line,
            parse_constant=str,
            parse_float=lambda text: float(text) if isfinite(float(text)) else text,
            parse_int=lambda text: int(text) if len(text) < MOST_DIGITS else text,
        )
    if not isinstance(record, dict):
        raise ValueError("the line is no object")  # noqa: TRY004 - what is wrong is the text
    return {name: _shallow(value, MOST_LEVELS) for name, value in record.items()}


def _shallow(value: Any, levels: int) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _shallow(inner, levels - 1) for name, inner in value.items()} if levels else "…"
    if isinstance(value, list):
        return [_shallow(inner, levels - 1) for inner in value] if levels else "…"
    return value


def query(settings: Settings, sql: str) -> duckdb.DuckDBPyRelation | None:
    """Run SQL over the tables of the lake with DuckDB and give the result as a DuckDB relation.

    Every table of the lake is a view of its name, reading the live files of its newest version.
    """
    from worker.lake import open_lake

    return open_lake(settings.lake).sql(sql)
