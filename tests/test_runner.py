"""One run over ports in memory: the order of its effects, what failures leave behind, and how it ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from datetime import UTC, datetime
from io import StringIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import (
    DAYS,
    FIRST,
    MAPPER,
    CrashError,
    Effects,
    World,
    body_of,
    flow_of,
    reject_of,
    settings_for,
)
from worker import events
from worker.errors import (
    CommitUnknownError,
    DayNotBegunError,
    ExportBrokenError,
    ExportRefusedError,
    ExportThrottledError,
    ExportUnavailableError,
    SinkError,
    StoreError,
)
from worker.model import Load, LoadState, Options, Receipt, RunState, Tally
from worker.pipeline import REJECTS_SCHEMA
from worker.sinks.base import Table
from worker.sinks.memory import MemorySink
from worker.store import MemoryStore
from worker.telemetry import LogListener

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

SECOND, THIRD, FOURTH = DAYS[1:4]
TWO = DAYS[:2]
GENEROUS_SECONDS = 20.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.put(DAYS, "new")
    return made


def commits(effects: Effects) -> list[str]:
    return [name for name in effects.names if name.endswith("events committed")]


def state_of(world: World, day: date) -> LoadState | None:
    """What became of the newest attempt at the day."""
    records = [record for record in world.store._loads.values() if record.load.day == day]
    return max(records, key=lambda record: record.load.generation).state if records else None


# The order of effects


async def test_whole_order_of_effects_of_one_day(world: World) -> None:
    effects = Effects()
    run = await world.run([FIRST], effects)
    assert effects.names == [
        "run inProgress, 0 days",
        "events prepared",
        "events_rejects prepared",
        "2024-03-01 attempt saved",
        "turn asked for",
        "2024-03-01 export opened",
        "2024-03-01 events staged",
        "2024-03-01 events_rejects staged",
        "2024-03-01 committing saved",
        "2024-03-01 events_rejects committed",
        "2024-03-01 events committed",
        "2024-03-01 succeeded saved",
        "run inProgress, 1 days",
        "run success, 1 days",
    ]
    assert [type(event).__name__ for event in world.events if not isinstance(event, events.ExportProgressed)] == [
        "RunStarted",
        "ExportOpened",
        "ExportEnded",
        "DayStaged",
        "DayCommitting",
        "RejectsCommitted",
        "RowsCommitted",
        "DaySucceeded",
        "RunEnded",
    ]
    assert run.tally == Tally(input=23, output=20, failed=1, skipped=1, deduplicated=1)
    assert (run.state, run.days_committed, len(run.batch_ids)) == (RunState.SUCCESS, 1, 1)
    assert world.store.run(run.id) == run
    assert world.version(FIRST) == "new"
    assert world.rejects(FIRST) == [reject_of("new")]
    assert world.store.succeeded_receipts(flow_of().id)[FIRST] == world.sink.landed("events", flow_of().id, FIRST)
    world.assert_settled()


async def test_f51_next_day_is_exported_while_this_one_is_worked_on(world: World) -> None:
    opened = threading.Event()
    overlapped: list[bool] = []
    effects = Effects()

    def at(name: str, after: bool) -> None:
        if name == f"{SECOND} export opened":
            opened.set()
        if name == f"{FIRST} events staged" and not after:
            overlapped.append(opened.wait(GENEROUS_SECONDS))

    effects.at = at
    await world.run(TWO, effects)
    assert overlapped == [True]
    assert commits(effects) == [f"{FIRST} events committed", f"{SECOND} events committed"]


async def test_days_are_committed_in_order_though_the_later_one_is_ready_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline.PROGRESS_SECONDS", 0)
    ready = threading.Event()
    effects = Effects()

    def at(name: str, after: bool) -> None:
        if name == f"{SECOND} events_rejects staged" and after:
            ready.set()

    def listener(event: events.Event) -> None:
        # the rows of the first day are decoded, and not one of them is staged
        if isinstance(event, events.ExportProgressed) and event.load.day == FIRST and event.rows:
            assert ready.wait(GENEROUS_SECONDS)

    effects.at = at
    await world.run(TWO, effects, listener=listener, processors=2)
    staged_first = effects.names.index(f"{FIRST} events staged")
    assert effects.names.index(f"{SECOND} events_rejects staged") < staged_first
    assert effects.names.index(f"{FIRST} succeeded saved") < effects.names.index(f"{SECOND} committing saved")


async def test_one_day_after_another_is_staged_though_all_are_decoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline.PROGRESS_SECONDS", 0)
    decoded = threading.Semaphore(0)
    effects = Effects()

    def listener(event: events.Event) -> None:
        if isinstance(event, events.ExportProgressed) and event.rows:
            decoded.release()

    def at(name: str, after: bool) -> None:
        if name.endswith(" events staged") and not after and sum(" staged" in known for known in effects.names) == 1:
            # before the first of them is staged all others have got as far as they can get
            assert all(decoded.acquire(timeout=GENEROUS_SECONDS) for _ in DAYS)

    effects.at = at
    await world.run(DAYS, effects, listener=listener, days_ahead=len(DAYS))
    staged = [name for name in effects.names if name.endswith(" staged")]
    days = [name.partition(" ")[0] for name in staged[::2]]
    assert sorted(days) == [str(day) for day in DAYS]
    assert staged == [f"{day} {table} staged" for day in days for table in ("events", "events_rejects")]


@pytest.mark.parametrize("days_ahead", [0, 1, 3])
async def test_days_are_begun_and_exported_in_their_order(world: World, days_ahead: int) -> None:
    run = await world.run(DAYS, days_ahead=days_ahead)
    assert world.requests == list(DAYS)
    assert run.days_committed == len(DAYS)
    assert run.batch_ids == tuple(receipt.batch_id for receipt in world.store.succeeded_receipts(flow_of().id).values())


async def test_no_more_days_are_under_way_than_the_setting_says(world: World) -> None:
    effects = Effects()
    await world.run(DAYS, effects, days_ahead=0)
    for day, following in pairwise(DAYS):
        assert effects.names.index(f"{day} succeeded saved") < effects.names.index(f"{following} attempt saved")


async def test_second_run_replaces_nothing_but_generations(world: World) -> None:
    await world.run(TWO)
    before = [world.rows(day) for day in TWO]
    await world.run(TWO)
    assert [world.rows(day) for day in TWO] == before
    assert [receipt.generation for receipt in world.store.succeeded_receipts(flow_of().id).values()] == [2, 2]


async def test_f22_empty_day_is_a_day(world: World) -> None:
    world.answers[FIRST] = [b""]
    run = await world.run([FIRST])
    assert (run.state, run.days_committed, run.tally) == (RunState.SUCCESS, 1, Tally())
    assert world.version(FIRST) == ""


# Failures of the export

BROKEN = [
    pytest.param(gzip.compress(body_of(FIRST, "new"))[:-9], id="f14_cut_gzip"),
    pytest.param(body_of(FIRST, "new") + b"terminated early", id="f19_terminated_early"),
    pytest.param(body_of(FIRST, "new")[:-40], id="f20_cut_line"),
    pytest.param(ExportBrokenError("The export broke off.", reason="transport"), id="f12_reset"),
    pytest.param(ExportUnavailableError("Mixpanel answered 503."), id="f8_unavailable"),
    pytest.param(ExportThrottledError("Mixpanel answered 429.", retry_after_seconds=None), id="f6_throttled"),
]


@pytest.mark.parametrize("answer", BROKEN)
async def test_broken_export_is_fetched_again(world: World, answer: bytes | Exception) -> None:
    world.answers[FIRST] = [answer, body_of(FIRST, "new")]
    run = await world.run([FIRST])
    assert (run.state, world.requests) == (RunState.SUCCESS, [FIRST, FIRST])
    assert world.version(FIRST) == "new"
    [failed] = world.seen(events.ExportFailed)
    assert failed.retry_seconds is not None
    world.assert_settled()


@pytest.mark.parametrize("answer", BROKEN[:5])
async def test_f8_attempts_used_up_leave_the_day_as_it_was(world: World, answer: bytes | Exception) -> None:
    world.put(TWO, "old")
    await world.run(TWO)
    world.requests.clear()
    world.answers[FIRST] = [answer]
    world.put([SECOND], "new")
    run = await world.run(TWO, export_attempts=3, days_ahead=0)
    assert (run.state, world.requests) == (RunState.FAILED, [FIRST] * 3)
    assert [world.version(day) for day in TWO] == ["old", "old"]
    assert run.error_message is not None
    assert run.error_message.startswith(f"{FIRST}: ")
    assert "run the flow again" in run.error_message
    assert world.store.run(run.id) == run
    assert world.seen(events.ExportFailed)[-1].retry_seconds is None
    world.assert_settled()


@pytest.mark.parametrize("status", [400, 401, 402, 403])
async def test_f1_f2_f3_refusal_ends_the_run_after_one_request(world: World, status: int) -> None:
    refusal = ExportRefusedError(f"Mixpanel answered {status}: no", status=status, advice="Do something.")
    world.answers.update({day: [refusal] for day in DAYS})
    run = await world.run(DAYS, days_ahead=2)
    assert world.requests == [FIRST]
    assert run.error_message == f"{FIRST}: Mixpanel answered {status}: no. Do something."
    assert run.error_code == f"CONNECTOR-1001-{status}"
    world.assert_settled()


async def test_f4_day_that_has_not_begun_is_left_out(world: World) -> None:
    world.answers[SECOND] = [DayNotBegunError("Mixpanel answered 400: to_date cannot be later than today")]
    run = await world.run(DAYS[:3])
    assert (run.state, run.days_committed) == (RunState.SUCCESS, 2)
    assert [left.day for left in world.seen(events.DayLeftOut)] == [SECOND]
    assert world.seen(events.DayFailed) == []
    assert world.requests.count(SECOND) == 1
    world.assert_settled()


async def test_first_day_that_fails_stops_the_run(world: World) -> None:
    world.put(DAYS, "old")
    await world.run(DAYS)
    world.requests.clear()
    world.put(DAYS, "new")
    world.answers[SECOND] = [ExportRefusedError("Mixpanel answered 400: no.", status=400)]
    run = await world.run(DAYS)
    assert (run.state, run.days_committed) == (RunState.FAILED, 1)
    assert [world.version(day) for day in DAYS] == ["new", "old", "old", "old", "old"]
    assert world.requests == [FIRST, SECOND]
    assert state_of(world, FIRST) is LoadState.SUCCEEDED
    assert state_of(world, SECOND) is LoadState.FAILED
    world.assert_settled()


async def test_days_before_the_one_that_fails_go_on(world: World) -> None:
    """The later day fails while the earlier one is still worked on."""
    failed = threading.Event()
    world.answers[SECOND] = [ExportUnavailableError("Mixpanel answered 503.")]
    effects = Effects()

    def at(name: str, after: bool) -> None:
        if name == f"{SECOND} failed saved" and after:
            failed.set()
        if name == f"{FIRST} events staged" and not after:
            assert failed.wait(GENEROUS_SECONDS)

    effects.at = at
    run = await world.run(DAYS[:4], effects, export_attempts=1)
    assert (run.state, run.days_committed) == (RunState.FAILED, 1)
    assert run.error_message == f"{SECOND}: Mixpanel answered 503. Given up after 1 attempt; run the flow again later."
    assert world.version(FIRST) == "new"
    assert world.requests == [FIRST, SECOND]
    assert f"{THIRD} attempt saved" not in effects.names
    world.assert_settled()


# 429


async def test_f5_retry_after_is_honoured_by_all_days_under_way(world: World) -> None:
    moments: list[float] = []
    effects = Effects()

    def at(name: str, after: bool) -> None:
        if "export opened" in name and not after:
            moments.append(asyncio.get_running_loop().time())

    effects.at = at
    throttled = ExportThrottledError("Mixpanel answered 429.", retry_after_seconds=0.3)
    world.answers[FIRST] = [throttled, body_of(FIRST, "new")]
    run = await world.run(TWO, effects)
    assert (run.state, len(moments)) == (RunState.SUCCESS, 3)
    assert moments[1] - moments[0] >= 0.29
    assert {waiting.reason for waiting in world.seen(events.ExportWaiting)} <= {"quota"}


async def test_f5_retry_after_is_bounded(world: World) -> None:
    throttled = ExportThrottledError("Mixpanel answered 429.", retry_after_seconds=1e9)
    world.answers[FIRST] = [throttled, body_of(FIRST, "new")]
    run = await asyncio.wait_for(world.run([FIRST], retry_after_max_seconds=0.05), GENEROUS_SECONDS)
    assert run.state is RunState.SUCCESS
    assert world.seen(events.ExportFailed)[0].retry_seconds == 0.05


async def test_f5_f7_retry_after_survives_the_process(world: World) -> None:
    throttled = ExportThrottledError("Mixpanel answered 429.", retry_after_seconds=600.0)
    world.answers[FIRST] = [throttled]
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listener(event: events.Event) -> None:
        if isinstance(event, events.ExportFailed | events.ExportWaiting):
            loop.call_soon_threadsafe(waiting.set)

    for _ in range(2):
        waiting.clear()
        run = asyncio.create_task(world.run([FIRST], listener=listener))
        await asyncio.wait_for(waiting.wait(), GENEROUS_SECONDS)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    assert world.requests == [FIRST]
    [told] = world.seen(events.ExportWaiting)
    assert 500 < told.seconds <= 600
    world.assert_settled()


async def test_f6_throttling_for_ever_ends(world: World) -> None:
    world.answers[FIRST] = [ExportThrottledError("Mixpanel answered 429: slow down", retry_after_seconds=0.001)]
    run = await world.run([FIRST], export_attempts=2)
    assert run.state is RunState.FAILED
    assert 2 < len(world.requests) <= 6
    assert run.error_message is not None
    assert run.error_message.startswith(f"{FIRST}: Mixpanel answered 429: slow down. Given up after")


# Failures of the target and the store


async def test_f23_too_many_rejects_leave_the_old_day(world: World) -> None:
    world.put([FIRST], "old")
    await world.run([FIRST])
    world.answers[FIRST] = [body_of(FIRST, "new") + b"[]\n" * 5]
    effects = Effects()
    run = await world.run([FIRST], effects, options=Options(partial_ingestion_percent=10))
    assert run.state is RunState.FAILED
    assert run.error_message is not None
    assert str(FIRST) in run.error_message
    assert "partialIngestionPercent" in run.error_message
    assert commits(effects) == []
    assert (world.version(FIRST), world.rejects(FIRST)) == ("old", [reject_of("old")])
    world.assert_settled()


@pytest.mark.parametrize("landed", [True, False])
async def test_f109_unknown_commit_is_a_question_to_the_target(world: World, landed: bool) -> None:
    world.put(DAYS, "old")
    await world.run(TWO)
    world.put(DAYS, "new")
    effects = Effects()
    effects.fail_at(f"{FIRST} events committed", CommitUnknownError("No answer to the commit."), after=landed)
    run = await world.run(TWO, effects)
    assert run.error_message == f"{FIRST}: No answer to the commit. Run the flow again: it asks the target first."
    assert state_of(world, FIRST) is LoadState.COMMITTING
    assert f"{FIRST} events abandoned" not in effects.names
    assert [world.version(day) for day in TWO] == ["new" if landed else "old", "old"]
    again = await world.run([SECOND])
    assert [event.receipt.day for event in world.seen(events.DayRecovered)] == ([FIRST] if landed else [])
    assert state_of(world, FIRST) is (LoadState.SUCCEEDED if landed else LoadState.FAILED)
    assert again.state is RunState.SUCCESS
    assert (await world.run(TWO)).days_committed == 2
    assert [world.version(day) for day in TWO] == ["new", "new"]
    world.assert_settled()


@pytest.mark.parametrize(
    "effect", ["events staged", "events_rejects staged", "events_rejects committed", "events committed"]
)
async def test_failing_target_leaves_the_day_and_the_earlier_ones(world: World, effect: str) -> None:
    effects = Effects()
    effects.fail_at(f"{SECOND} {effect}", SinkError("The disk is on fire.", advice="Put it out."))
    run = await world.run(DAYS[:3], effects)
    assert run.error_message == f"{SECOND}: The disk is on fire. Put it out."
    assert [world.version(day) for day in DAYS[:3]] == ["new", "", ""]
    assert f"{SECOND} events abandoned" in effects.names
    assert f"{SECOND} events_rejects abandoned" in effects.names or effect == "events staged"
    world.assert_settled()
    assert (await world.run(DAYS[:3])).state is RunState.SUCCESS
    assert {world.version(day) for day in DAYS[:3]} == {"new"}


@pytest.mark.parametrize("effect", ["committing saved", "succeeded saved"])
async def test_f92_state_that_cannot_be_saved(world: World, effect: str) -> None:
    """Before the commit: nothing is committed that could not be recorded. After it: the next run finds it there."""
    effects = Effects()
    effects.fail_at(f"{FIRST} {effect}", StoreError("The disk is full."))
    run = await world.run([FIRST], effects)
    assert run.error_message is not None
    assert "The disk is full." in run.error_message
    assert world.version(FIRST) == ("" if effect == "committing saved" else "new")
    await world.run([SECOND])
    assert len(world.seen(events.DayRecovered)) == (effect == "succeeded saved")
    world.assert_settled()


async def test_f85_day_that_another_worker_has_committed_meanwhile_stays(world: World) -> None:
    effects = Effects()
    flow = flow_of()

    def at(name: str, after: bool) -> None:
        if name == f"{FIRST} committing saved" and after:
            load = Load(flow.id, FIRST, 7, "OTHER", "other-run", datetime.now(UTC))
            moment = datetime.now(UTC)
            receipt = Receipt(flow.id, FIRST, 7, "OTHER", "other-run", moment, moment, Tally())
            for table, schema in (("events_rejects", REJECTS_SCHEMA), ("events", MAPPER.schema)):
                stage = world.sink.stage(Table(table, schema, flow.id), load)
                stage.seal()
                stage.commit(receipt)

    effects.at = at
    run = await world.run([FIRST], effects)
    assert run.error_code == "CONNECTOR-2001-412"
    landed = world.sink.landed("events", flow.id, FIRST)
    assert landed is not None
    assert landed.batch_id == "OTHER"
    # the next attempt comes after the other worker's
    assert (await world.run([FIRST])).state is RunState.SUCCESS
    assert world.store.succeeded_receipts(flow.id)[FIRST].generation == 8
    assert world.version(FIRST) == "new"


async def test_f131_lost_state_is_no_excuse_for_an_old_generation(world: World) -> None:
    for _ in range(3):
        await world.run([FIRST])
    world.store = MemoryStore()
    await world.run([FIRST])
    landed = world.sink.landed("events", flow_of().id, FIRST)
    assert landed is not None
    assert (landed.generation, world.version(FIRST)) == (4, "new")


async def test_f174_target_that_was_emptied_is_filled_again(world: World) -> None:
    await world.run([FIRST])
    world.sink = MemorySink()
    assert (await world.run([FIRST])).state is RunState.SUCCESS
    assert world.version(FIRST) == "new"


async def test_run_of_a_dead_process_is_closed_with_what_it_had_committed(world: World) -> None:
    effects = Effects()
    # dead after the second day's commit, before anything of it is recorded
    effects.crash_at(f"{SECOND} events committed", after=True)
    with pytest.raises(CrashError):
        await world.run(TWO, effects)
    dead = world.store.runs(None, 1)[0]
    await world.run([THIRD])
    closed = world.store.run(dead.id)
    assert closed is not None
    assert dead.state is RunState.IN_PROGRESS
    assert (closed.state, closed.days_committed, closed.tally.output) == (RunState.FAILED, 2, 40)
    assert closed.completed_at is not None
    assert (closed.error_message or "").startswith("Interrupted")


# Cancellation


async def steps_of(world: World, days_ahead: int) -> list[str]:
    effects = Effects()
    await world.copy().run(TWO, effects, days_ahead=days_ahead)
    return effects.names


@pytest.mark.parametrize("days_ahead", [0, 1])
async def test_f81_cancellation_at_each_step_leaves_everything_in_order(world: World, days_ahead: int) -> None:
    loop = asyncio.get_running_loop()
    world.put(TWO, "old")
    await world.run(TWO)
    world.put(TWO, "new")
    for step in await steps_of(world, days_ahead):
        place = world.copy()
        effects = Effects()
        cancelled_at: list[str] = []
        run: asyncio.Future[Any] = asyncio.ensure_future(asyncio.sleep(0))

        def at(name: str, after: bool) -> None:
            if name != step or after:  # noqa: B023 - the run ends before the next round
                return
            cancelled_at.append(name)  # noqa: B023
            if threading.current_thread() is threading.main_thread():
                run.cancel()  # noqa: B023
                return
            told = threading.Event()
            loop.call_soon_threadsafe(run.cancel)  # noqa: B023
            loop.call_soon_threadsafe(loop.call_soon, told.set)
            assert told.wait(GENEROUS_SECONDS)

        await run
        effects.at = at
        run = asyncio.ensure_future(place.run(TWO, effects, days_ahead=days_ahead))
        with pytest.raises(asyncio.CancelledError):
            await run
        place.assert_settled()
        assert cancelled_at == [step]
        name, under_way = step, step.split()[0]
        if name.endswith(("committing saved", "committed", "succeeded saved")):
            assert place.version(TWO[[str(day) for day in TWO].index(under_way)]) == "new", name
        versions = [place.version(day) for day in TWO]
        assert versions in (["old", "old"], ["new", "old"], ["new", "new"]), name
        record = place.store.runs(None, 1)[0]
        assert record.days_committed == versions.count("new")
        assert record.state is (RunState.SUCCESS if name.startswith("run success") else RunState.FAILED)
        assert (await place.run(TWO)).state is RunState.SUCCESS
        assert [place.version(day) for day in TWO] == ["new", "new"]


# What the log says


async def test_each_line_of_the_log_is_json_and_says_which_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = LogListener(settings_for(tmp_path, log_level="debug"), as_json=True)
    world.answers[FIRST] = [ExportUnavailableError('Mixpanel answered 503: "oh\nno"'), body_of(FIRST, "new")]
    throttled = ExportThrottledError("Mixpanel answered 429.", retry_after_seconds=0.3)
    world.answers[SECOND] = [throttled, throttled, body_of(SECOND, "new")]
    world.answers[THIRD] = [DayNotBegunError("Mixpanel answered 400: later than today")]
    world.answers[FOURTH] = [ExportRefusedError("Mixpanel answered 402.", status=402)]
    effects = Effects()
    effects.fail_at(f"{FIRST} succeeded saved", StoreError("full"))
    dead = await world.run([FIRST], effects)
    run = await world.run(DAYS[:4], listener=listener)
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["run_id"] for line in lines} == {run.id}
    assert {line["flow_id"] for line in lines} == {flow_of().id}
    assert {line["event"] for line in lines} >= {
        "run_started",
        "day_recovered",
        "export_opened",
        "export_waiting",
        "export_failed",
        "day_staged",
        "day_succeeded",
        "day_left_out",
        "day_failed",
        "run_ended",
    }
    assert [line["recovered_run_id"] for line in lines if line["event"] == "day_recovered"] == [dead.id]
    ended = lines[-1]
    assert (ended["event"], ended["state"], ended["output"]) == ("run_ended", "failed", 40)
    assert ended["error_message"] == f"{FOURTH}: Mixpanel answered 402."
    assert all(datetime.fromisoformat(line["timestamp"]) for line in lines)


def test_f89_log_that_nobody_takes_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    for as_json in (True, False):
        monkeypatch.setattr("sys.stderr", Closed())
        listener = LogListener(settings_for(tmp_path), as_json=as_json)
        listener(events.DayLeftOut("flow", FIRST))
