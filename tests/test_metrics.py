"""Metrics: what events become, what is forgotten, what a scrape shows, and how the file is written."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.support import DAYS, FIRST, NOON, Clock, World, flow_of, load_of, receipt_of, run_of
from worker import events
from worker.errors import ExportBrokenError, InterruptedRunError, ResourceError
from worker.metrics import STEP_BUCKETS, UNKNOWN_CODE, Metrics
from worker.model import RunState, Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.model import Run

ROOT = Path(__file__).parent.parent
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def values_of(metrics: Metrics, name: str) -> dict[str, float]:
    """The samples of this name: by the values of their labels, joined; the empty text without labels."""
    found = {}
    for line in metrics.text().decode().splitlines():
        match = SAMPLE.fullmatch(line)
        if match and match[1] == name:
            found[" ".join(re.findall(r'="((?:[^"\\]|\\.)*)"', match[2] or ""))] = float(match[3])
    return found


def ended(run: Run, code: str | None = None) -> events.RunEnded:
    state = RunState.FAILED if code else RunState.SUCCESS
    return events.RunEnded(replace(run, state=state, completed_at=NOON, error_code=code))


def test_a_day_from_start_to_end() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock.monotonic)
    run, load = run_of(), load_of()
    tally = Tally(input=10, output=5, failed=2, skipped=1, deduplicated=2, warnings=4)
    receipt = receipt_of(load, tally=tally, input_bytes=700, output_bytes=300)
    metrics(events.RunStarted(run, (FIRST,)))
    assert values_of(metrics, "mixpanel_worker_runs_in_progress") == {"Flow": 1}
    metrics(events.ExportWaiting("flow", FIRST, 0.5, "quota"))
    metrics(events.ExportOpened(load, 1))
    metrics(events.ExportEnded(load, 700, 3.0))
    clock.move(seconds=4)
    metrics(events.DayStaged(load, 5, 300, 4.0))
    metrics(events.DayCommitting(load))
    metrics(events.RejectsCommitted(load, 2, {"INGEST-1401-400": 1, "INGEST-1555-400": 1}))
    clock.move(seconds=0.25)
    metrics(events.RowsCommitted(receipt))
    metrics(events.DaySucceeded(receipt))
    clock.move(seconds=1)
    metrics(ended(run))

    expected: dict[str, dict[str, float]] = {
        "runs_total": {"Flow success": 1, "Flow failed": 0, "Flow interrupted": 0},
        "runs_in_progress": {"Flow": 0},
        "run_failures_total": {},
        "flow_last_failure_timestamp_seconds": {},
        "flow_last_success_timestamp_seconds": {"Flow": NOON.timestamp()},
        "days_total": {"Flow success": 1, "Flow failed": 0, "Flow interrupted": 0},
        "input_rows_total": {"Flow": 10},
        "rows_total": {"Flow output": 5, "Flow rejected": 2, "Flow deduplicated": 2, "Flow skipped": 1},
        "rejected_rows_total": {"INGEST-1401-400 Flow": 1, "INGEST-1555-400 Flow": 1},
        "warnings_total": {"Flow": 4},
        "input_bytes_total": {"Flow": 700},
        "output_bytes_total": {"Flow": 300},
        "export_wait_seconds_sum": {"quota": 0.5, "retry": 0},
        "export_wait_seconds_count": {"quota": 1, "retry": 0},
        "step_seconds_sum": {"export": 3, "stage": 4, "commit": 0.25, "day": 4.25, "run": 5.25},
        "step_seconds_count": {"export": 1, "stage": 1, "commit": 1, "day": 1, "run": 1},
        "listener_errors_total": {"": 0},
    }
    found = {name: values_of(metrics, f"mixpanel_worker_{name}") for name in expected}
    assert {name: by_order(values) for name, values in found.items()} == {
        name: by_order(values) for name, values in expected.items()
    }
    assert outcomes(metrics) == {"success": 1}


def by_order(values: Mapping[str, float]) -> dict[frozenset[str], float]:
    """Labels come in the order of their names, which does not matter here."""
    return {frozenset(key.split()): value for key, value in values.items()}


def outcomes(metrics: Metrics) -> dict[str, float]:
    """The outcomes of export requests that have happened."""
    found = values_of(metrics, "mixpanel_worker_export_requests_total")
    return {key.removeprefix("Flow "): value for key, value in found.items() if value}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([events.ExportFailed("flow", FIRST, "CONNECTOR-1001-429", "", 60.0)], {"throttled": 1}),
        ([events.ExportFailed("flow", FIRST, "CONNECTOR-1001-503", "", 1.0)], {"unavailable": 1}),
        ([events.ExportFailed("flow", FIRST, "CONNECTOR-1001-401", "", None)], {"refused": 1}),
        (
            [
                events.ExportEnded(load_of(), 9, 1.0),
                events.ExportFailed("flow", FIRST, ExportBrokenError.code, "", 1.0),
            ],
            {"broken": 1},
        ),
        ([events.DayLeftOut("flow", FIRST)], {"not_begun": 1}),
        ([events.DayFailed(load_of(), InterruptedRunError.code, "")], {"interrupted": 1}),
        (
            [
                events.ExportFailed("flow", FIRST, "CONNECTOR-1001-401", "", None),
                events.DayFailed(load_of(), "CONNECTOR-1001-401", ""),
            ],
            {"refused": 1},
        ),
        ([events.ExportEnded(load_of(), 9, 1.0), events.DayFailed(load_of(), "INGEST-1212-400", "")], {"success": 1}),
    ],
)
def test_each_request_has_one_outcome(told: list[events.Event], expected: dict[str, float]) -> None:
    metrics = Metrics()
    metrics(events.RunStarted(run_of(), (FIRST,)))
    metrics(events.ExportOpened(load_of(), 1))
    for event in told:
        metrics(event)
    metrics(ended(run_of(), "CONNECTOR-1001-401"))
    assert outcomes(metrics) == expected


def test_waits_for_another_attempt_are_waits() -> None:
    metrics = Metrics()
    metrics(events.ExportFailed("flow", FIRST, "CONNECTOR-1001-429", "", 60.0))
    metrics(events.ExportFailed("flow", FIRST, "CONNECTOR-1001-429", "", None))
    assert values_of(metrics, "mixpanel_worker_export_wait_seconds_sum") == {"quota": 0, "retry": 60}


def test_a_run_that_was_interrupted_has_not_failed() -> None:
    metrics = Metrics()
    for code in (None, InterruptedRunError.code, "CONNECTOR-1001-401", "not a code at all: {secret}"):
        metrics(events.RunStarted(run_of(), (FIRST,)))
        metrics(ended(run_of(), code))
    runs = by_order(values_of(metrics, "mixpanel_worker_runs_total"))
    assert list(runs.values()) == [1, 2, 1]
    failures = by_order(values_of(metrics, "mixpanel_worker_run_failures_total"))
    assert failures == by_order({"CONNECTOR-1001-401 Flow": 1, f"{UNKNOWN_CODE} Flow": 1})
    for newest in ("success", "failure"):
        name = f"mixpanel_worker_flow_last_{newest}_timestamp_seconds"
        assert values_of(metrics, name) == {"Flow": NOON.timestamp()}


def test_a_run_that_could_not_be_prepared_is_counted() -> None:
    metrics = Metrics()
    metrics(ended(run_of(), "CONFIG-1000-400"))
    assert by_order(values_of(metrics, "mixpanel_worker_runs_total"))[frozenset(("Flow", "failed"))] == 1
    assert values_of(metrics, "mixpanel_worker_flow_last_failure_timestamp_seconds") == {"Flow": NOON.timestamp()}
    assert values_of(metrics, "mixpanel_worker_step_seconds_count")["run"] == 0


def test_f70_a_day_that_another_process_committed_is_counted() -> None:
    metrics = Metrics()
    metrics(events.RunStarted(run_of(), (FIRST,)))
    metrics(events.DayRecovered(receipt_of(load_of(), tally=Tally(input=3, output=2, failed=1))))
    assert values_of(metrics, "mixpanel_worker_input_rows_total") == {"Flow": 3}
    assert by_order(values_of(metrics, "mixpanel_worker_rejected_rows_total")) == by_order({"unknown Flow": 1})


def test_deleted_and_renamed_flows_are_forgotten() -> None:
    metrics = Metrics()
    for flow_id, name in (("f1", "One"), ("f2", "Two"), ("f3", "Two")):
        run = run_of(flow_id=flow_id, flow_name=name)
        metrics(events.FlowKnown(flow_id, name, NOON, NOON))
        metrics(events.RunStarted(run, (FIRST,)))
        metrics(ended(run))
    metrics(events.FlowGone("f1"))
    metrics(events.FlowGone("unknown"))
    assert b"One" not in metrics.text()
    metrics(events.FlowGone("f2"))
    assert b"Two" in metrics.text(), "another flow has this name"
    metrics(events.FlowKnown("f3", "Three", NOON, NOON))
    assert b"Two" not in metrics.text()
    assert values_of(metrics, "mixpanel_worker_flow_last_success_timestamp_seconds") == {"Three": NOON.timestamp()}
    metrics(events.FlowGone("f3"))
    assert b'flow="' not in metrics.text()


def test_codes_and_flows_of_months_do_not_grow_the_page() -> None:
    metrics = Metrics()
    size = 0
    for number in range(300):
        metrics(events.RunStarted(run_of(), (FIRST,)))
        metrics(events.ExportOpened(load_of(day=FIRST + timedelta(days=number)), 1))
        metrics(ended(run_of(), f"CONNECTOR-1001-{number}"))
        if number == 100:
            size = metrics.text().count(b"\n")
    assert metrics.text().count(b"\n") == size
    flow = metrics._flows["flow"]
    assert (flow.days, flow.requests, flow.rejects) == ({}, {}, {})


def test_last_success_is_remembered_and_never_goes_back() -> None:
    metrics = Metrics()
    for known in (NOON, NOON - timedelta(days=1), None):
        metrics(events.FlowKnown("flow", "Flow", known, None))
    metrics(ended(run_of(), "CONNECTOR-1001-401"))
    assert values_of(metrics, "mixpanel_worker_flow_last_success_timestamp_seconds") == {"Flow": NOON.timestamp()}


def test_lag_grows_until_a_later_day_is_complete() -> None:
    now = NOON.timestamp()
    metrics = Metrics(now=lambda: now)
    metrics(events.FlowKnown("f1", 'A "new" flow\n', None, NOON - timedelta(hours=12)))
    metrics(events.FlowKnown("f2", "Nothing is known", None, None))
    name = "mixpanel_worker_flow_lag_seconds"
    assert values_of(metrics, name) == {'A \\"new\\" flow\\n': 12 * 3600}
    now += 3600
    assert values_of(metrics, name) == {'A \\"new\\" flow\\n': 13 * 3600}
    metrics(events.FlowKnown("f1", 'A "new" flow\n', None, NOON + timedelta(days=1)))
    assert values_of(metrics, name) == {'A \\"new\\" flow\\n': 0}


def test_the_quota_is_asked_for_at_each_scrape() -> None:
    left = {"2384945": 59}
    metrics = Metrics(quota_left=lambda: left)
    assert values_of(metrics, "mixpanel_worker_export_quota_left") == {"2384945": 59}
    left = {"1": 60}
    assert values_of(metrics, "mixpanel_worker_export_quota_left") == {"1": 60}


def test_a_scrape_survives_a_database_that_is_away() -> None:
    def away() -> Mapping[str, float]:
        raise OSError("away")

    metrics = Metrics(quota_left=away)
    assert values_of(metrics, "mixpanel_worker_export_quota_left") == {}
    assert values_of(metrics, "mixpanel_worker_collect_failures_total")["quota"] >= 1


def test_an_event_that_cannot_be_counted_is_not_raised() -> None:
    metrics = Metrics()
    metrics(events.RunStarted(cast("Run", None), ()))
    metrics(events.ServiceTrouble(None, "the database is away"))
    assert values_of(metrics, "mixpanel_worker_listener_errors_total") == {"": 1}
    assert values_of(metrics, "mixpanel_worker_service_troubles_total") == {"": 1}


def test_events_of_many_threads_are_all_counted() -> None:
    metrics = Metrics()
    metrics(events.RunStarted(run_of(), (FIRST,)))
    receipt = receipt_of(load_of(), tally=Tally(input=1, output=1))

    def tell() -> None:
        for _ in range(200):
            metrics(events.DaySucceeded(receipt))
            metrics.text()

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values_of(metrics, "mixpanel_worker_input_rows_total") == {"Flow": 800}


async def test_f175_loop_lag_is_the_longest_of_the_last_minute() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock.monotonic)
    delays = iter([0.0, 3.0, *[0.5] * 12])
    seen = []

    async def slept(seconds: float) -> None:
        seen.append(loop_lag(metrics))
        delay = next(delays, None)
        if delay is None:
            raise asyncio.CancelledError
        clock.move(seconds=seconds + delay)

    with contextlib.suppress(asyncio.CancelledError):
        await metrics.watch_loop(10.0, sleep=slept)
    assert seen == [0, 0, 3, 3, 3, 3, 3, 3, *[0.5] * 7]
    assert loop_lag(metrics) == 0.5


def loop_lag(metrics: Metrics) -> float:
    return values_of(metrics, "mixpanel_worker_event_loop_lag_seconds")[""]


async def test_the_watch_ends_with_its_task() -> None:
    metrics = Metrics()
    watching, rounds = asyncio.Event(), 0

    async def slept(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            watching.set()
        await asyncio.sleep(seconds)

    task = asyncio.create_task(metrics.watch_loop(0.001, sleep=slept))
    await watching.wait()
    assert loop_lag(metrics) > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_names_keep_to_the_rules() -> None:
    text = Metrics().text().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    own = {name: kind for name, kind in types.items() if name.startswith("mixpanel_worker_")}
    assert {name for name in types if name not in own} <= {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    }
    for name, kind in own.items():
        assert re.fullmatch(r"mixpanel_worker_[a-z_]+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
    assert not re.search(r"_created\b", text)
    assert re.search(r'^mixpanel_worker_build_info\{python="\d\S*",version="\S+"\} 1.0$', text, re.MULTILINE)
    assert all(f'le="{float(bucket)}"' in text for bucket in STEP_BUCKETS)


def test_every_event_is_counted_or_left_aside_on_purpose() -> None:
    source = (ROOT / "worker" / "metrics.py").read_text(encoding="utf-8")
    counted = set(re.findall(r"case events\.(\w+)\(", source))
    told = {kind.__name__ for kind in events.Event.__args__}
    assert told - counted <= {"ExportProgressed", "FlowAwaited"}
    assert counted <= told


def test_the_file_is_whole_and_readable_by_all(tmp_path: Path) -> None:
    metrics = Metrics()
    path = tmp_path / "worker.prom"
    path.write_text("old")
    metrics.write_file(path)
    assert path.stat().st_mode & 0o777 == 0o644
    assert b"mixpanel_worker_build_info" in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["worker.prom"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for path in (folder, tmp_path / "none" / "worker.prom"):
        with pytest.raises(ResourceError, match="--metrics-file"):
            Metrics().write_file(path)
    assert list(tmp_path.iterdir()) == [folder]


def test_commands_do_not_load_it_at_start() -> None:
    check = (
        "import sys, worker.cli, worker.service, worker.runner, worker.pipeline, worker.telemetry;"
        "print([name for name in sys.modules if name.startswith(('prometheus_client', 'worker.metrics'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


async def test_a_real_run_adds_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.put(DAYS[:2], "v1")
    metrics = Metrics()
    run = await world.run(DAYS[:2], listener=metrics)
    assert run.state is RunState.SUCCESS
    flow = flow_of().name
    assert values_of(metrics, "mixpanel_worker_input_rows_total") == {flow: run.tally.input}
    rows = values_of(metrics, "mixpanel_worker_rows_total")
    assert sum(rows.values()) == run.tally.input
    assert sum(values_of(metrics, "mixpanel_worker_rejected_rows_total").values()) == run.tally.failed
    assert outcomes(metrics) == {"success": 2}
    assert values_of(metrics, "mixpanel_worker_step_seconds_count") == {
        "export": 2,
        "stage": 2,
        "commit": 2,
        "day": 2,
        "run": 1,
    }
    assert values_of(metrics, "mixpanel_worker_listener_errors_total") == {"": 0}
