"""Whatever dies when: a day in the target is as it was or whole, and one more run makes all of them right.

First a simulated death before and after each effect of a run over ports in memory, then the real process: killed at
random moments over a Delta lake and a state file, and asked to end by signals.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import (
    DAYS,
    FLOW_FILE,
    PASSWORD,
    CrashError,
    Effects,
    World,
    body_of,
    flow_of,
    lake_rows,
    reject_of,
    rows_of,
)
from worker import events
from worker.mixpanel.simulator import Simulator, SimulatorThread
from worker.mixpanel.spool import own_spool
from worker.model import LoadState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from tests.support import Rows

TWO, THREE = DAYS[:2], DAYS[:3]
FIRST, SECOND, THIRD = THREE
KILLS = int(os.environ.get("MIXPANEL_WORKER_KILLS", "12"))
SEED = 20240301
EVENTS = 3000
PROMPT_SECONDS = 15.0
"""Far below every limit that a run could wait for, far above what a busy machine needs."""


# A death at each step, in memory


@pytest.mark.parametrize(
    ("days_ahead", "after"), [(0, False), (0, True), (1, True)], ids=["before", "after", "after_with_days_overlapping"]
)
async def test_f70_death_at_each_step(tmp_path: Path, days_ahead: int, after: bool) -> None:
    start = World(tmp_path)
    start.put(TWO, "old")
    await start.run(TWO)
    start.put(TWO, "new")
    effects = Effects()
    await start.copy().run(TWO, effects, days_ahead=days_ahead)
    landed_unrecorded = 0
    for died_at in effects.names:
        world = start.copy()
        dying = Effects()
        dying.crash_at(died_at, after=after)
        with pytest.raises(CrashError):
            await world.run(TWO, dying, days_ahead=days_ahead)
        versions = [world.version(day) for day in TWO]
        assert versions in (["old", "old"], ["new", "old"], ["new", "new"]), died_at
        for day, version in zip(TWO, versions, strict=True):
            # rejects go first: those of the new attempt may stand beside the old rows, never the other way round
            assert world.rejects(day) == [reject_of("new")] or (world.rejects(day), version) == (
                [reject_of("old")],
                "old",
            )
        expected = [
            record.load.day
            for record in world.store.open_loads(flow_of().id)
            if record.state is LoadState.COMMITTING and world.version(record.load.day) == "new"
        ]
        assert len(expected) <= 1
        landed_unrecorded += len(expected)

        run = await world.run(TWO, days_ahead=days_ahead)
        assert (str(run.state), run.days_committed) == ("success", 2), died_at
        assert [world.version(day) for day in TWO] == ["new", "new"]
        assert [world.rejects(day) for day in TWO] == [[reject_of("new")]] * 2
        assert [event.receipt.day for event in world.seen(events.DayRecovered)] == expected, died_at
        receipts = world.store.succeeded_receipts(flow_of().id)
        assert receipts == {day: world.sink.landed("events", flow_of().id, day) for day in TWO}
        world.assert_settled()
    # each day has a step between its commit and the record of it; steps of the next day may lie in between, too
    assert landed_unrecorded >= 2 if days_ahead else landed_unrecorded == 2


async def test_f70_deaths_one_after_the_other(tmp_path: Path) -> None:
    """Each run over the same store and target dies somewhere, whatever the one before left."""
    choices = random.Random(SEED)
    world = World(tmp_path)
    effects = Effects()
    await world.copy().run(THREE, effects)
    steps = effects.names
    before: list[str] = ["", "", ""]
    for number in range(25):
        version = f"v{number}"
        world.put(THREE, version)
        dying = Effects()
        dying.crash_at(choices.choice(steps), after=choices.random() < 0.5)
        with suppress(CrashError):
            await world.run(THREE, dying, days_ahead=choices.randrange(3))
        now = [world.version(day) if world.sink._contents else "" for day in THREE]
        assert all(new in (old, version) for old, new in zip(before, now, strict=True))
        before = now
    await world.run(THREE)
    assert [world.version(day) for day in THREE] == [version] * 3
    world.assert_settled()


# The real process


class Place:
    """A folder with a flow file, a lake, a state file and a spool, and a simulated Mixpanel."""

    def __init__(self, folder: Path, server: SimulatorThread) -> None:
        self.folder = folder
        self.server = server
        self.simulator = server.simulator
        (folder / "flow.json").write_text(json.dumps(FLOW_FILE))
        self.environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("WORKER_", "MIXPANEL_", "PYTHONUNBUFFERED"))
            },
            "MIXPANEL_HOST": server.base_url,
            "MIXPANEL_PASSWORD": PASSWORD,
            "WORKER_SPOOL": str(folder / "spool"),
            "WORKER_EXPORTS_PER_HOUR": "1000000",
            "WORKER_EXPORTS_PER_SECOND": "1000000",
            "WORKER_LEASE_SECONDS": "0.5",
        }

    def put(self, version: str, days: tuple[date, ...] = THREE, count: int = EVENTS) -> None:
        for day in days:
            self.simulator.set_day(day, body_of(day, version, count))

    @contextmanager
    def started(self, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "worker", "run", "flow.json", "--once", *arguments]
        with subprocess.Popen(
            [*command, "--from", str(FIRST), "--to", str(THIRD)],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str) -> dict[str, Any]:
        """A run to its end, which must be good; its record."""
        with self.started("--json", *arguments) as process:
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return dict(json.loads(output)["items"][0])

    def runs(self) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "worker", "runs", "--json", "--limit", "1000"]
        listed = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=True)
        return list(json.loads(listed.stdout)["items"])

    def days(self) -> dict[date, Rows]:
        table = self.folder / "lake" / "events"
        return lake_rows(table) if (table / "_delta_log").is_dir() else {}

    def spool_entries(self) -> list[Path]:
        spool = self.folder / "spool"
        return list(spool.iterdir()) if spool.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with SimulatorThread(Simulator(password=PASSWORD)) as server:
        yield Place(tmp_path, server)


def wait_for_line(process: subprocess.Popen[str], event: str, times: int = 1) -> list[str]:
    """Read the log until it has told `event` so often; the lines so far."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("{") and json.loads(line)["event"] == event:
            times -= 1
            if not times:
                return lines
    raise AssertionError(f"the process ended without {event}:\n{''.join(lines)}")


def test_f70_f71_kill_at_random_moments(place: Place) -> None:
    choices = random.Random(SEED)
    place.put("v0")
    began = time.monotonic()
    place.run()
    # from the first request to the end, as far as this machine lets it be known
    working_seconds = max(0.15, (time.monotonic() - began) / 3)
    before = dict.fromkeys(THREE, "v0")
    outcomes: Counter[str] = Counter()
    for number in range(1, KILLS + 1):
        version = f"v{number}"
        place.put(version)
        place.simulator.clear_requests()
        with place.started() as process:
            if choices.random() < 0.9:
                place.server.wait_for_requests(1, timeout_seconds=60)
            try:
                process.wait(choices.uniform(0, working_seconds))
            except subprocess.TimeoutExpired:
                process.kill()
        found = place.days()
        for day in THREE:
            matching = [one for one in {before[day], version} if found[day] == rows_of(day, one, EVENTS)]
            assert len(matching) == 1, f"kill {number}: {day} is neither {before[day]} nor {version}"
            before[day] = matching[0]
        outcomes[f"{[before[day] for day in THREE].count(version)} days new"] += 1
        # the leftover of the killed one at most: each run removes those before it
        assert len(place.spool_entries()) <= 1
    record = place.run()
    assert place.days() == {day: rows_of(day, version, EVENTS) for day in THREE}
    assert place.spool_entries() == []
    records = {str(one["metrics"]["statusSummary"]["status"]) for one in place.runs()}
    assert records <= {"success", "failed"}
    assert record["metrics"]["recordSummary"]["outputRecordCount"] == 3 * EVENTS
    print(f"after the kills: {dict(outcomes)}")  # shown by pytest -s


def test_who_finds_its_flow_in_the_hands_of_another_process_says_so(place: Place) -> None:
    place.put("new")
    place.simulator.fault("stall", day=FIRST)
    with place.started() as process:
        place.server.wait_for_requests(1, timeout_seconds=60)
        with place.started("--json") as other:
            output, errors = other.communicate(timeout=60)
        assert other.returncode == 1
        assert json.loads(output)["items"] == []
        awaited, last = errors.splitlines()
        assert f"process {process.pid} on " in json.loads(awaited)["holder"]
        assert last.startswith(f"Error: Flow: It is being run by run --once, process {process.pid} on ")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    with place.started() as process:
        # it was given back, so nobody waits
        assert "flow_awaited" not in "".join(wait_for_line(process, "run_started"))
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert place.days() == {day: rows_of(day, "new", EVENTS) for day in THREE}


def test_f70_who_comes_after_one_that_was_killed_says_for_whom_it_waits(place: Place) -> None:
    place.put("new")
    place.simulator.fault("stall", day=FIRST)
    lease = {"WORKER_LEASE_SECONDS": "5"}
    with place.started(**lease) as killed:
        place.server.wait_for_requests(1, timeout_seconds=60)
        killed.kill()
    with place.started(**lease) as process:
        awaited = json.loads(wait_for_line(process, "flow_awaited")[-1])
        assert (awaited["level"], awaited["flow_name"]) == ("warning", "Flow")
        assert f"process {killed.pid} on " in awaited["holder"]
        assert 0 < awaited["seconds"] <= 5
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert place.days() == {day: rows_of(day, "new", EVENTS) for day in THREE}


def test_f87_sweep_of_the_spool_takes_only_folders_of_dead_processes(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    dead, foreign = root / "worker-process-dead", root / "2024-03-01-somebody"
    for folder in (dead, foreign):
        folder.mkdir()
        (folder / "export").write_bytes(b"left")
    with own_spool(root) as first:
        (first / "export").write_bytes(b"in use")
        with own_spool(root) as second:
            assert sorted(root.iterdir()) == sorted([first, second, foreign])
            assert (first / "export").read_bytes() == b"in use"
        assert first.exists()
        assert not second.exists()
    assert list(root.iterdir()) == [foreign]


@pytest.mark.parametrize(
    ("number", "fault", "code"), [(signal.SIGINT, "stall", 130), (signal.SIGTERM, "drip", 143)], ids=["INT", "TERM"]
)
def test_f73_signal_during_a_slow_export(place: Place, number: signal.Signals, fault: str, code: int) -> None:
    place.put("old")
    place.run()
    place.put("new")
    place.simulator.clear_requests()
    options = {"seconds": 0.05} if fault == "drip" else {}
    place.simulator.fault(fault, day=SECOND, **options)  # type: ignore[arg-type]  # the option that this fault has
    with place.started() as process:
        wait_for_line(process, "day_succeeded")
        place.server.wait_for_requests(2)
        command_line = Path(f"/proc/{process.pid}/cmdline")
        assert not command_line.exists() or PASSWORD.encode() not in command_line.read_bytes()
        asked = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - asked < PROMPT_SECONDS
    *log, last = errors.splitlines()
    assert last == "Interrupted: days that were committed stay, all others are as they were."
    assert json.loads(log[-1])["event"] == "run_ended"
    assert all(line.startswith("{") for line in log), errors
    assert output == ""
    assert place.days() == {
        FIRST: rows_of(FIRST, "new", EVENTS),
        SECOND: rows_of(SECOND, "old", EVENTS),
        THIRD: rows_of(THIRD, "old", EVENTS),
    }
    newest = place.runs()[0]["metrics"]
    assert newest["statusSummary"]["status"] == "failed"
    assert newest["statusSummary"]["errors"][0]["code"] == "WORKER-1001-499"
    assert newest["recordSummary"]["outputRecordCount"] == EVENTS
    assert place.spool_entries() == []


def test_f73_f81_signal_during_a_commit_waits_for_it(place: Place) -> None:
    place.put("new")
    with place.started(WORKER_LOG_LEVEL="debug") as process:
        wait_for_line(process, "day_committing", times=2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert place.days() == {day: rows_of(day, "new", EVENTS) for day in TWO}
    with sqlite3.connect(place.folder / "worker.db") as database:
        states = dict(database.execute("select day, state from loads").fetchall())
    database.close()
    assert {day: states[str(day)] for day in TWO} == dict.fromkeys(TWO, "succeeded")
    assert set(states.values()) <= {"succeeded", "failed"}


def test_f74_second_signal_ends_at_once(place: Place) -> None:
    """The first signal wants to write down how the run ended, and somebody holds the state file: nothing can end."""
    place.put("new")
    place.simulator.fault("stall", day=FIRST)
    with place.started() as process:
        place.server.wait_for_requests(1, timeout_seconds=60)
        database = sqlite3.connect(place.folder / "worker.db", isolation_level=None)
        try:
            database.execute("begin exclusive")
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            database.close()
    # whichever of the two the process saw last
    assert process.returncode in {130, 143}
    assert time.monotonic() - asked < PROMPT_SECONDS
    assert "Traceback" not in errors
    assert place.days() == {}
    place.run()
    assert place.days() == {day: rows_of(day, "new", EVENTS) for day in THREE}
    assert place.spool_entries() == []
