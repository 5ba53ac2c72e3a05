"""The scheduler over a simulated clock: what is due is run, nothing twice at once, and every day ends as its export."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support import MAPPER, flow_of, run_of, settings_for
from worker import events
from worker.errors import (
    ConfigurationError,
    DayNotBegunError,
    ExportUnavailableError,
    InterruptedRunError,
    StoreError,
)
from worker.keeper import REQUESTS, RUNS_A_LOOK, Keeper
from worker.lease import lease_name
from worker.metrics import Metrics
from worker.mixpanel.calendar import day_bounds, today
from worker.mixpanel.export import MixpanelExports
from worker.mixpanel.simulator import DEMO_PASSWORD, DEMO_PROJECT_ID, DEMO_USERNAME, Simulator
from worker.model import Credentials, RunState, Schedule, Secret
from worker.registry import DISABLED, ENABLED, FlowEntry
from worker.service import PreparedFlow
from worker.sinks.memory import MemorySink
from worker.store import MemoryStore, RunQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.mixpanel.spool import Spool
    from worker.model import Flow, Source

ZONE = ZoneInfo("America/New_York")
NOON = datetime(2024, 2, 20, 12, tzinfo=ZONE).astimezone(UTC)
HOURLY = Schedule(int(NOON.timestamp()), "hour", 1)


@dataclass
class Mixpanel:
    """Projects whose events arrive over time; it tells of a day what has arrived by now."""

    clock: Callable[[], datetime]
    arrived: dict[date, list[str]] = field(default_factory=dict)
    requests: list[tuple[datetime, date]] = field(default_factory=list)
    under_way: Counter[tuple[str, date]] = field(default_factory=Counter)
    most_projects: int = 0
    failing: bool = False
    gate: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        self.requests.append((self.clock(), day))
        self.under_way[source.project_id, day] += 1
        assert self.under_way[source.project_id, day] == 1, "two runs of one flow export one day at a time"
        self.most_projects = max(self.most_projects, len({project for project, _ in +self.under_way}))
        self.asked.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failing:
                raise ExportUnavailableError("Mixpanel answered 502.")
            if day > today(source.timezone, self.clock()):
                raise DayNotBegunError(f"{day} has not begun.")
            body = gzip.compress(body_of_names(day, self.arrived.get(day, [])), 1)
            on_bytes(len(body))
            spool.write(body)
            spool.finish(proves_end=True)
        finally:
            self.under_way[source.project_id, day] -= 1


@dataclass
class Flows:
    """Flows of one project; the ports that a keeper asks."""

    all: dict[str, tuple[Flow, bool]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def add(self, name: str, schedule: Schedule | None = HOURLY, *, enabled: bool = True) -> str:
        flow = flow_of(name=name)
        source = replace(flow.source, project_id=name, timezone=ZONE, time_basis="project")
        target = replace(flow.target, dataset_id=name)
        self.all[flow.id] = (replace(flow, source=source, target=target, schedule=schedule), enabled)
        return flow.id

    def flows(self) -> list[FlowEntry]:
        states = {True: ENABLED, False: DISABLED}
        return [FlowEntry(flow.id, flow.name, states[enabled], flow.schedule) for flow, enabled in self.all.values()]

    def prepared(self, flow_id: str) -> PreparedFlow:
        if flow_id in self.broken:
            raise ConfigurationError("The mapping set is gone.")
        return PreparedFlow(self.all[flow_id][0], MAPPER, {})


class World:
    """What replicas share: a clock, a project, a store and tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOON
        self.store = MemoryStore()
        self.sink = MemorySink()
        self.flows = Flows()
        self.mixpanel = Mixpanel(lambda: self.now)
        self.heard: list[Any] = []

    def keeper(self, **settings: object) -> Keeper:
        chosen = settings_for(self.folder, export_attempts=1, **settings)
        return Keeper(
            chosen,
            self.store,
            self.flows,
            self.mixpanel,
            self.heard.append,
            clock=lambda: self.now,
            sink_of=lambda flow: self.sink,
        )

    def days(self, table: str) -> dict[date, list[str]]:
        content = self.sink._contents[table]
        return {day: sorted(row["id"] for row in self.sink.rows(table, day).to_pylist()) for day in content.receipts}

    def runs(self, flow_id: str) -> list[Any]:
        return self.store.find_runs(RunQuery(flow_ids=(flow_id,)), 10_000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def settle(keeper: Keeper) -> None:
    """Until nothing runs here and nothing is about to."""
    while keeper._running or keeper._beside:
        await asyncio.gather(*keeper._running.values(), *keeper._beside, return_exceptions=True)


async def tick(keeper: Keeper) -> None:
    await keeper.tick()
    await settle(keeper)


# What is due


async def test_a_flow_runs_once_a_slot(world: World) -> None:
    flow_id = world.flows.add("events")
    keeper = world.keeper()
    for minutes in (0, 1, 30, 59, 60, 61, 119, 120):
        world.now = NOON + timedelta(minutes=minutes)
        await tick(keeper)
    starts = [run.started_at - NOON for run in world.runs(flow_id)]
    assert starts == [timedelta(hours=2), timedelta(hours=1), timedelta(0)]
    assert all(run.state is RunState.SUCCESS for run in world.runs(flow_id))


async def test_F061_a_restart_and_missed_slots_give_one_run(world: World) -> None:
    flow_id = world.flows.add("events")
    await tick(world.keeper())
    world.now += timedelta(hours=30)
    await tick(world.keeper())
    await tick(world.keeper())
    assert len(world.runs(flow_id)) == 2


async def test_before_its_start_and_disabled_and_without_schedule_nothing_runs(world: World) -> None:
    later = replace(HOURLY, start_time=HOURLY.start_time + 60)
    names = [world.flows.add("later", later), world.flows.add("off", enabled=False), world.flows.add("never", None)]
    keeper = world.keeper()
    await tick(keeper)
    assert [run for name in names for run in world.runs(name)] == []
    world.now += timedelta(seconds=60)
    await tick(keeper)
    assert [len(world.runs(name)) for name in names] == [1, 0, 0]


async def test_a_failed_run_is_tried_again_within_the_hour_and_no_day_is_skipped(world: World) -> None:
    flow_id = world.flows.add("events", Schedule(HOURLY.start_time, "day", 1))
    keeper = world.keeper()
    world.mixpanel.failing = True
    await tick(keeper)
    world.mixpanel.failing = False
    world.now += timedelta(minutes=59)
    await tick(keeper)
    assert [run.state for run in world.runs(flow_id)] == [RunState.FAILED]
    world.now += timedelta(minutes=1)
    await tick(keeper)
    assert [run.state for run in world.runs(flow_id)] == [RunState.SUCCESS, RunState.FAILED]
    first = today(ZONE, NOON) - timedelta(days=5)
    assert sorted(world.days("events")) == [first + timedelta(days=number) for number in range(6)]


async def test_the_lookback_is_exported_once_a_project_day(world: World) -> None:
    world.flows.add("events")
    keeper = world.keeper()
    for _ in range(48):
        await tick(keeper)
        world.now += timedelta(hours=1)
    asked = Counter((today(ZONE, at), day) for at, day in world.mixpanel.requests)
    for (at, day), times in asked.items():
        assert times == 1 or day == at, f"{day} was exported {times} times on {at}"


@pytest.mark.parametrize(
    ("backfill", "first"), [(None, date(2024, 2, 15)), (True, date(2024, 2, 1)), (False, date(2024, 2, 15))]
)
async def test_what_the_first_run_covers(world: World, backfill: bool | None, first: date) -> None:
    start = datetime(2024, 2, 1, 9, tzinfo=ZONE)
    world.flows.add("events", Schedule(int(start.timestamp()), "day", 1, backfill))
    await tick(world.keeper())
    assert min(world.days("events")) == first


async def test_without_backfill_nothing_before_the_start_is_exported(world: World) -> None:
    start = datetime(2024, 2, 19, 9, tzinfo=ZONE)
    world.flows.add("events", Schedule(int(start.timestamp()), "hour", 1, backfill=False))
    await tick(world.keeper())
    assert sorted(world.days("events")) == [date(2024, 2, 19), date(2024, 2, 20)]


# Runs that are asked for


async def test_a_run_can_be_asked_for(world: World) -> None:
    flow_id = world.flows.add("events", None)
    world.mixpanel.arrived[date(2024, 1, 5)] = ["a"]
    keeper = world.keeper()
    run_id = await keeper.request_run(flow_id, date(2024, 1, 5), date(2024, 1, 6))
    run = world.store.run(run_id)
    assert run is not None
    assert run.state is RunState.IN_PROGRESS
    await settle(keeper)
    run = world.store.run(run_id)
    assert run is not None
    assert (run.state, run.first_day, run.last_day) == (RunState.SUCCESS, date(2024, 1, 5), date(2024, 1, 6))
    assert world.days("events") == {date(2024, 1, 5): ["a"], date(2024, 1, 6): []}
    assert world.store.objects(REQUESTS) == []
    with pytest.raises(ConfigurationError, match="after the last"):
        await keeper.request_run(flow_id, date(2024, 1, 7), date(2024, 1, 6))


async def test_a_request_outlives_the_process_and_waits_for_the_run_under_way(world: World) -> None:
    flow_id = world.flows.add("events")
    world.mixpanel.gate = asyncio.Event()
    keeper = world.keeper()
    await keeper.tick()
    await world.mixpanel.asked.wait()
    run_id = await keeper.request_run(flow_id, None, None)
    await keeper.tick()
    assert [request.id for request in world.store.objects(REQUESTS)] == [run_id]
    await keeper.close()
    world.mixpanel.gate.set()
    other = world.keeper()
    await tick(other)
    runs = {run.id: run.state for run in world.runs(flow_id)}
    assert runs[run_id] is RunState.SUCCESS
    assert sorted(runs.values()) == [RunState.FAILED, RunState.SUCCESS]


async def test_a_flow_that_cannot_be_run_leaves_a_failed_run(world: World) -> None:
    flow_id = world.flows.add("events")
    world.flows.broken.add(flow_id)
    await tick(world.keeper())
    (run,) = world.runs(flow_id)
    assert (run.state, run.error_message) == (RunState.FAILED, "The mapping set is gone.")


# Replicas


async def test_two_replicas_run_a_flow_once(world: World) -> None:
    flow_id = world.flows.add("events")
    world.mixpanel.gate = asyncio.Event()
    one, other = world.keeper(), world.keeper()
    await asyncio.gather(one.tick(), other.tick())
    await world.mixpanel.asked.wait()
    world.mixpanel.gate.set()
    await settle(one)
    await settle(other)
    assert len([run for run in world.runs(flow_id) if run.state is RunState.SUCCESS]) == 1
    assert len(world.runs(flow_id)) == 1


DAILY = Schedule(HOURLY.start_time, "day", 1)
ONCE = Schedule(HOURLY.start_time, "once", None)


@pytest.mark.parametrize("schedule", [DAILY, ONCE])
async def test_what_a_killed_replica_ran_is_taken_over_when_its_lease_has_run_out(
    world: World, schedule: Schedule
) -> None:
    flow_id = world.flows.add("events", schedule)
    # what is left of a process that was killed
    left = run_of(id="left", flow_id=flow_id, flow_name="events", state=RunState.IN_PROGRESS, started_at=world.now)
    world.store.save_run(left)
    assert world.store.take_lease(lease_name(flow_id), "the killed one", world.now, 30)
    keeper = world.keeper()
    world.now += timedelta(seconds=29)
    await tick(keeper)
    assert [run.id for run in world.runs(flow_id)] == ["left"]
    world.now += timedelta(seconds=1)
    await tick(keeper)
    taken, killed = world.runs(flow_id)
    assert (taken.state, killed.id, killed.state) == (RunState.SUCCESS, "left", RunState.FAILED)
    assert killed.error_code == InterruptedRunError.code
    await tick(keeper)
    assert len(world.runs(flow_id)) == 2


async def test_a_lease_by_a_clock_that_was_set_back_since_keeps_nobody_out(world: World) -> None:
    flow_id = world.flows.add("events", ONCE)
    world.store.save_run(run_of(id="left", flow_id=flow_id, state=RunState.IN_PROGRESS, started_at=world.now))
    assert world.store.take_lease(lease_name(flow_id), "the killed one", world.now + timedelta(days=1), 30)
    await tick(world.keeper())
    assert [run.state for run in world.runs(flow_id)].count(RunState.SUCCESS) == 1


async def test_a_run_that_another_replica_is_at_is_left_to_it(world: World) -> None:
    flow_id = world.flows.add("events", ONCE)
    world.mixpanel.gate = asyncio.Event()
    one, other = world.keeper(), world.keeper()
    await one.tick()
    await world.mixpanel.asked.wait()
    for _ in range(3):
        await tick(other)
    world.mixpanel.gate.set()
    await settle(one)
    for _ in range(3):
        await tick(other)
    assert [run.state for run in world.runs(flow_id)] == [RunState.SUCCESS]


@pytest.mark.parametrize("schedule", [DAILY, ONCE])
async def test_what_a_process_was_told_to_end_goes_on_with_the_next_one(world: World, schedule: Schedule) -> None:
    flow_id = world.flows.add("events", schedule)
    world.mixpanel.gate = asyncio.Event()
    keeper = world.keeper()
    await keeper.tick()
    await world.mixpanel.asked.wait()
    await keeper.close()
    world.mixpanel.gate.set()
    world.now += timedelta(seconds=1)
    other = world.keeper()
    for _ in range(3):
        await tick(other)
    assert [run.state for run in world.runs(flow_id)] == [RunState.SUCCESS, RunState.FAILED]


@pytest.mark.parametrize("killed", [True, False])
async def test_a_run_that_was_asked_for_is_done_again_with_its_days(world: World, killed: bool) -> None:
    flow_id = world.flows.add("events", None)
    world.mixpanel.arrived[date(2024, 1, 5)] = ["a"]
    world.mixpanel.gate = asyncio.Event()
    keeper = world.keeper()
    run_id = await keeper.request_run(flow_id, date(2024, 1, 5), date(2024, 1, 5))
    await world.mixpanel.asked.wait()
    begun = world.store.run(run_id)
    assert begun is not None
    await keeper.close()
    if killed:
        # as if it had had no time to say so, nor to give its lease back
        world.store.save_run(begun)
        assert world.store.take_lease(lease_name(flow_id), "the killed one", world.now, 30)
    world.mixpanel.gate.set()
    other = world.keeper()
    if killed:
        await tick(other)
        assert world.days("events") == {}
        world.now += timedelta(seconds=30)
    await tick(other)
    await tick(other)
    assert world.days("events") == {date(2024, 1, 5): ["a"]}
    states = {run.id: (run.state, run.first_day, run.last_day) for run in world.runs(flow_id)}
    assert states.pop(run_id)[0] is RunState.FAILED
    assert [*states.values()] == [(RunState.SUCCESS, date(2024, 1, 5), date(2024, 1, 5))]
    assert world.store.objects(REQUESTS) == []


async def test_flows_wait_for_room_and_the_one_that_waited_longest_is_first(world: World) -> None:
    ids = [world.flows.add(f"flow-{number}") for number in range(5)]
    keeper = world.keeper(flows_at_once=2)
    world.mixpanel.gate = asyncio.Event()
    await keeper.tick()
    while world.mixpanel.most_projects < 2:
        world.mixpanel.asked.clear()
        await world.mixpanel.asked.wait()
    world.mixpanel.gate.set()
    await settle(keeper)
    assert world.mixpanel.most_projects == 2
    assert [[run.state for run in world.runs(flow_id)] for flow_id in ids] == [[RunState.SUCCESS]] * 5


async def test_a_tick_asks_as_often_for_many_flows_as_for_few(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    later = replace(HOURLY, start_time=HOURLY.start_time + 3600)
    keeper = world.keeper()
    asked = Counter[str]()

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(world.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return method(*arguments, **options)

        return call

    for name in ("find_runs", "newest_runs", "object", "objects", "run", "runs", "succeeded_receipts"):
        # what is known of a flow is asked for once
        monkeypatch.setattr(world.store, name, counted(name))
    times = []
    for number in range(40):
        flow_id = world.flows.add(f"flow-{number}", later)
        if number % 2:
            world.store.save_run(run_of(id=flow_id, flow_id=flow_id, state=RunState.SUCCESS, started_at=NOON))
        if number in {3, 39}:
            await tick(keeper)
            asked.clear()
            await tick(keeper)
            times.append(dict(asked))
    assert times[0] == times[1]


async def test_a_store_that_fails_is_told_and_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_id = world.flows.add("events")
    keeper = world.keeper()

    def fail(*_: object) -> Iterator[Any]:
        raise StoreError("The database is away.")

    with monkeypatch.context() as away:
        away.setattr(world.store, "objects", fail)
        await tick(keeper)
        troubles = [keeper.trouble]
    await tick(keeper)
    assert [*troubles, keeper.trouble] == ["The database is away.", None]
    assert len(world.runs(flow_id)) == 1


async def test_the_newest_run_that_has_begun_counts_however_many_wait(world: World) -> None:
    flow_id = world.flows.add("events", Schedule(HOURLY.start_time, "day", 1))
    await tick(world.keeper())
    world.flows.all[flow_id] = (world.flows.all[flow_id][0], False)
    world.mixpanel.gate = asyncio.Event()
    keeper = world.keeper(flows_at_once=1)
    world.now += timedelta(minutes=1)
    world.mixpanel.asked.clear()
    # it takes the only room
    await keeper.request_run(world.flows.add("busy", None), None, None)
    await world.mixpanel.asked.wait()
    asked = [await keeper.request_run(flow_id, None, None) for _ in range(RUNS_A_LOOK + 1)]
    await keeper.close()
    for request in world.store.objects(REQUESTS):
        world.store.delete_object(REQUESTS, request.id)
    world.flows.all[flow_id] = (world.flows.all[flow_id][0], True)
    world.mixpanel.gate.set()
    await tick(world.keeper())
    assert {run.id for run in world.runs(flow_id) if run.completed_at is not None} - set(asked) != set()
    assert len(world.runs(flow_id)) == 1 + len(asked), "the flow is not due, whatever waits"


# What is told


async def test_the_quota_that_is_left_is_that_of_the_projects_that_were_run(world: World) -> None:
    ids = [world.flows.add(f"flow-{number}") for number in range(3)]
    for number, flow_id in enumerate(ids):
        flow, enabled = world.flows.all[flow_id]
        source = replace(flow.source, project_id=f"{number // 2}", lookback_days=0)
        world.flows.all[flow_id] = (replace(flow, source=source), enabled)
    keeper = world.keeper(exports_per_hour=60)
    assert keeper.quota_left() == {}
    await tick(keeper)
    assert keeper.quota_left() == {"0": 58.0, "1": 59.0}
    world.store.hold_requests("1", world.now + timedelta(minutes=10))
    text = Metrics(quota_left=keeper.quota_left).text().decode()
    assert 'mixpanel_worker_export_quota_left{project="0"} 58.0' in text
    assert 'mixpanel_worker_export_quota_left{project="1"} 0.0' in text
    del world.flows.all[ids[2]]
    world.now += timedelta(hours=1)
    await tick(keeper)
    assert keeper.quota_left() == {"0": 58.0}


async def test_the_quota_is_told_of_a_bounded_number_of_projects(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.keeper.MOST_PROJECTS", 2)
    keeper = world.keeper()
    for number in (1, 2, 3, 1):
        flow_id = world.flows.add(f"flow-{number}", None)
        flow, enabled = world.flows.all[flow_id]
        world.flows.all[flow_id] = (replace(flow, source=replace(flow.source, project_id=f"{number}")), enabled)
        await keeper.request_run(flow_id, None, None)
        await settle(keeper)
    assert set(keeper.quota_left()) == {"1", "3"}


async def test_who_is_ending_is_not_ready(world: World) -> None:
    keeper = world.keeper()
    assert keeper.reasons_not_ready() == []
    closing = asyncio.ensure_future(keeper.close())
    await asyncio.sleep(0)
    assert keeper.reasons_not_ready() == ["the service is ending"]
    await closing


def known_of(world: World, flow_id: str) -> list[events.FlowKnown]:
    return [event for event in world.heard if isinstance(event, events.FlowKnown) and event.flow_id == flow_id]


async def test_a_new_process_tells_how_far_each_flow_is_before_it_runs_it(world: World) -> None:
    flow_id, never = world.flows.add("events"), world.flows.add("never", None)
    await tick(world.keeper())
    [run] = world.runs(flow_id)
    midnight = datetime(2024, 2, 20, tzinfo=ZONE)
    assert known_of(world, flow_id)[-1].complete_until == midnight
    world.heard.clear()
    keeper = world.keeper()
    for _ in range(3):
        await tick(keeper)
    assert known_of(world, flow_id) == [events.FlowKnown(flow_id, "events", run.completed_at, midnight)]
    assert known_of(world, never) == [events.FlowKnown(never, "never", None, None)]


async def test_of_a_flow_that_cannot_be_run_the_last_success_is_told(world: World) -> None:
    flow_id = world.flows.add("events")
    await tick(world.keeper())
    [run] = world.runs(flow_id)
    world.heard.clear()
    world.flows.broken.add(flow_id)
    keeper = world.keeper()
    await tick(keeper)
    await tick(keeper)
    assert known_of(world, flow_id) == [events.FlowKnown(flow_id, "events", run.completed_at, None)]


async def test_a_run_waits_for_nothing_that_is_told_of_other_flows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [world.flows.add(f"flow-{number}", None) for number in range(3)]
    prepared, going_on = world.flows.prepared, threading.Event()

    def slow(flow_id: str) -> PreparedFlow:
        assert flow_id != ids[0] or going_on.wait(20)
        return prepared(flow_id)

    monkeypatch.setattr(world.flows, "prepared", slow)
    keeper = world.keeper()
    await keeper.tick()
    run_id = await keeper.request_run(ids[1], NOON.date(), NOON.date())
    await keeper.tick()
    while keeper._running:
        await asyncio.gather(*keeper._running.values())
    run = world.store.run(run_id)
    assert run is not None
    assert run.state is RunState.SUCCESS
    assert known_of(world, ids[0]) == []
    going_on.set()
    await settle(keeper)
    assert len(known_of(world, ids[0])) == len(known_of(world, ids[2])) == 1


async def test_a_store_that_is_away_is_asked_again_what_it_knows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    flow_id = world.flows.add("events", None)
    keeper = world.keeper()

    def fail(*_: object) -> Iterator[Any]:
        raise StoreError("The database is away.")

    with monkeypatch.context() as away:
        away.setattr(world.store, "find_runs", fail)
        await tick(keeper)
    assert known_of(world, flow_id) == []
    await tick(keeper)
    assert known_of(world, flow_id) == [events.FlowKnown(flow_id, "events", None, None)]


async def test_a_flow_by_a_new_name_is_told_again(world: World) -> None:
    flow_id = world.flows.add("events", None)
    keeper = world.keeper()
    await tick(keeper)
    flow, enabled = world.flows.all[flow_id]
    world.flows.all[flow_id] = (replace(flow, name="renamed"), enabled)
    await tick(keeper)
    assert [event.flow_name for event in known_of(world, flow_id)] == ["events", "renamed"]


async def test_a_flow_that_was_deleted_is_gone_when_its_run_has_ended(world: World) -> None:
    flow_id = world.flows.add("events")
    world.mixpanel.gate = asyncio.Event()
    keeper = world.keeper()
    await keeper.tick()
    await world.mixpanel.asked.wait()
    del world.flows.all[flow_id]
    await keeper.tick()
    assert events.FlowGone(flow_id) not in world.heard
    world.mixpanel.gate.set()
    await settle(keeper)
    assert world.heard[-1] == events.FlowGone(flow_id)
    metrics = Metrics()
    for event in world.heard:
        metrics(event)
    assert b'flow="' not in metrics.text()
    assert world.heard.count(events.FlowGone(flow_id)) == 1


# What nobody foresaw


async def test_F080_a_tick_that_breaks_ends_the_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[FlowEntry]:
        raise LookupError("a bug")

    monkeypatch.setattr(world.flows, "flows", fail)
    async with world.keeper() as keeper:
        with pytest.raises(LookupError, match="a bug"):
            await keeper.watch()


async def test_F080_a_scheduler_that_breaks_ends_the_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise LookupError("a bug")

    handled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: handled.append(context))
    async with world.keeper() as keeper:
        monkeypatch.setattr("apscheduler.schedulers.base.BaseScheduler._process_jobs", fail)
        keeper._scheduler.wakeup()
        with pytest.raises(LookupError, match="a bug"):
            await keeper.watch()


async def test_F080_a_run_that_breaks_is_told_and_the_other_flows_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = world.flows.add("broken"), world.flows.add("sound")
    prepare = world.sink.prepare

    def fail(table: Any) -> None:
        if table.flow_id == broken:
            raise LookupError("a secret bug")
        prepare(table)

    monkeypatch.setattr(world.sink, "prepare", fail)
    keeper = world.keeper()
    await tick(keeper)
    [run] = world.runs(broken)
    assert (run.state, run.error_code) == (RunState.FAILED, "WORKER-1000-500")
    assert "LookupError" in run.error_message
    assert "secret" not in run.error_message
    [trouble] = [event for event in world.heard if isinstance(event, events.ServiceTrouble)]
    assert trouble.flow_id == broken
    assert [run.state for run in world.runs(sound)] == [RunState.SUCCESS]
    await keeper.close()


# Months


def held_now() -> dict[str, int]:
    """What a process must not hold more of from day to day."""
    gc.collect()
    own = Path("/proc/self")
    if not own.exists():
        return {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}
    threads, files = (len(list((own / kind).iterdir())) for kind in ("task", "fd"))
    return {"threads": threads, "files": files, "tasks": len(asyncio.all_tasks())}


async def test_F082_three_hundred_runs_leave_no_thread_file_or_task_behind(world: World) -> None:
    """Some fail, some are of days with events, so that all that a run opens is opened."""
    flow_id = world.flows.add("events", Schedule(int(NOON.timestamp()), "hour", 1))
    flow, enabled = world.flows.all[flow_id]
    world.flows.all[flow_id] = (replace(flow, source=replace(flow.source, lookback_days=0)), enabled)
    keeper = world.keeper(processors=2)
    # the loop's own threads are made when they are wanted, up to a bound: all of them at once
    pool = ThreadPoolExecutor(4)
    asyncio.get_running_loop().set_default_executor(pool)
    together = threading.Barrier(4)
    await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(4)))
    held: list[dict[str, int]] = []
    for number in range(300):
        world.mixpanel.arrived.setdefault(today(ZONE, world.now), []).append(f"{number}")
        world.mixpanel.failing = number % 10 == 7
        await tick(keeper)
        if number in {19, 299}:
            held.append(held_now())
        world.now += timedelta(hours=1)
    await keeper.close()
    states = Counter(run.state for run in world.runs(flow_id))
    assert states == {RunState.SUCCESS: 270, RunState.FAILED: 30}
    after_twenty, after_all = held
    # a library may have taken up a thread of its own meanwhile; a leak would show hundreds
    assert all(abs(after_all[kind] - after_twenty[kind]) <= 2 for kind in after_all), held


# Sixty days


FAULTS = ("server_error", "cut_intact", "terminated_early", "truncated_line")


@pytest.mark.parametrize("seed", [1, 2])
async def test_F055_F058_F059_F061_after_sixty_days_every_day_is_its_export(tmp_path: Path, seed: int) -> None:
    """Late events, a week and a half without a process, clocks that step, restarts, broken exports, a day of 23 hours.

    Over HTTP, against the simulated Mixpanel, whose calendar goes by the same clock.
    """
    chance = random.Random(seed)
    world = World(tmp_path)
    arrived: dict[date, list[str]] = {}
    # a plain body that a proxy cuts between two lines is an export like any other: nobody could notice
    simulator = Simulator(today=lambda: today(ZONE, world.now), gzip=True)
    chosen = settings_for(tmp_path, export_attempts=1)
    async with simulator, MixpanelExports(chosen) as exports:
        credentials = Credentials(DEMO_USERNAME, Secret(DEMO_PASSWORD))
        flow_id = world.flows.add("events", Schedule(int(NOON.timestamp()), "hour", 6))
        flow, enabled = world.flows.all[flow_id]
        source = replace(flow.source, base_url=simulator.base_url, credentials=credentials, project_id=DEMO_PROJECT_ID)
        world.flows.all[flow_id] = (replace(flow, source=source), enabled)

        def new_process() -> Keeper:
            return Keeper(
                chosen,
                world.store,
                world.flows,
                exports,
                world.heard.append,
                clock=lambda: world.now,
                sink_of=lambda flow: world.sink,
            )

        keeper = new_process()
        down = (NOON + timedelta(days=20), NOON + timedelta(days=31, hours=5))
        first = today(ZONE, NOON) - timedelta(days=5)
        number = 0
        real = NOON
        end = NOON + timedelta(days=60)
        while real < end + timedelta(days=6):
            real += timedelta(hours=chance.choice([1, 3, 6]))
            for _ in range(chance.randrange(3) if real < end else 0):
                day = max(today(ZONE, real) - timedelta(days=chance.choice([0, 0, 0, 1, 2, 4])), first)
                number += 1
                arrived.setdefault(day, []).append(f"{number}")
                simulator.set_day(day, body_of_names(day, arrived[day]))
            if down[0] < real < down[1]:
                continue
            step = chance.choice([0] * 12 + [-2, 2]) if real < end else 0
            world.now = real + timedelta(hours=step)
            simulator.clear_faults()
            if chance.random() < 0.2 and real < end:
                simulator.fault(chance.choice(FAULTS))
            if chance.random() < 0.1:
                keeper = new_process()
            await tick(keeper)
    states = Counter(run.state for run in world.runs(flow_id))
    assert states[RunState.FAILED] > 5
    assert states[RunState.SUCCESS] > 100
    found = world.days("events")
    assert {day: names for day, names in found.items() if names} == {
        day: sorted(names) for day, names in arrived.items()
    }
    assert sorted(found) == [first + timedelta(days=count) for count in range(len(found))]


def body_of_names(day: date, names: list[str]) -> bytes:
    start = int(day_bounds(day, ZONE)[0].timestamp())
    lines = [
        json.dumps({"event": "E", "properties": {"time": start, "$insert_id": name, "version": "1"}}) for name in names
    ]
    return "".join(line + "\n" for line in lines).encode()
