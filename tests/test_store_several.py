"""What databases keep when several threads and processes use one at a time, and how fast they find among many runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert

from tests.support import run_of
from tests.test_store import DAY, KINDS, NOW, new_state, opened
from worker.errors import EtagConflictError, ObjectExistsError, ObjectMissingError
from worker.model import Issue, RunState
from worker.store import RunQuery, open_store, schema
from worker.store.documents import encode, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from worker.store import SqlStore

CALLERS = 50


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with new_state(request.param) as found:
        yield found


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    with open_store(url) as opened:
        yield opened


def processes(count: int, body: str, *arguments: object) -> list[str]:
    """The lines that `count` processes print, which run `body` at once with `arguments` in `sys.argv`.

    Each starts when it is told to, after it has imported what it needs; `number` is which one it is.
    """
    start = (
        "import sys\nfrom datetime import UTC, date, datetime\nfrom worker.errors import *\n"
        "from worker.store import open_store\nfrom worker.store.postgresql import create_engine\n"
        "number = int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", start + body, str(number), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line for process in started for line in process.communicate(timeout=100)[0].splitlines()]
    assert [process.returncode for process in started] == [0] * count
    return lines


def at_once(calls: Sequence[Callable[[], object]]) -> list[object]:
    """What each of the calls returned or raised, made by as many threads at one moment."""
    barrier = Barrier(len(calls))

    def make(call: Callable[[], object]) -> object:
        barrier.wait(60)
        try:
            return call()
        except (EtagConflictError, ObjectExistsError, ObjectMissingError) as error:
            return type(error).__name__

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


# Loads and requests


def test_f126_threads_get_distinct_generations(url: str) -> None:
    with open_store(url) as one, open_store(url) as other, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(store.begin_load, "flow", DAY, "r", NOW, 0) for store in (one, other) for _ in range(40)]
        assert sorted(job.result().generation for job in jobs) == list(range(1, 81))


def test_f126_processes_get_distinct_generations_and_share_the_limits(url: str) -> None:
    body = """
now = datetime(2024, 3, 10, tzinfo=UTC)
with open_store(sys.argv[2]) as store:
    for _ in range(60):
        print("generation", store.begin_load("flow", date(2024, 3, 9), "run", now, 0).generation)
        print("hour", store.reserve_request("p", now, 20, 1000))
        print("second", store.reserve_request("q", now, 60, 3))
"""
    lines = processes(2, body, url)
    assert sorted(int(line.split()[1]) for line in lines if line.startswith("generation")) == list(range(1, 121))
    assert (lines.count("hour 0.0"), lines.count("hour 3600.0")) == (20, 100)
    assert (lines.count("second 0.0"), lines.count("second 1.0")) == (3, 117)


# Objects


def test_of_fifty_threads_with_one_etag_one_changes_the_object(url: str) -> None:
    with open_store(url) as one, open_store(url) as other:
        etag = one.create_object("flows", "a", {"winner": None}, None, NOW).etag

        def change(number: int) -> object:
            store = (one, other)[number % 2]
            return store.replace_object("flows", "a", {"winner": number}, None, NOW, etag=etag).document["winner"]

        found = at_once([lambda number=number: change(number) for number in range(CALLERS)])  # type: ignore[misc]
        winners = [item for item in found if item != "EtagConflictError"]
        assert len(winners) == 1
        kept = other.object("flows", "a")
        assert kept is not None
        assert kept.document == {"winner": winners[0]}
        assert kept.etag != etag


@pytest.mark.parametrize("kind", KINDS)
def test_of_threads_that_change_and_delete_with_one_etag_one_wins(kind: str) -> None:
    with opened(kind) as store:
        for turn in range(10):
            name = f"object-{turn}"
            etag = store.create_object("flows", name, {}, None, NOW).etag

            def change(name: str = name, etag: str = etag) -> str:
                store.replace_object("flows", name, {"changed": True}, None, NOW, etag=etag)
                return "changed"

            def delete(name: str = name, etag: str = etag) -> str:
                return "deleted" if store.delete_object("flows", name, etag=etag) else "ObjectMissingError"

            # who comes last to the barrier is first behind it
            found = Counter(at_once(([change, delete] if turn % 2 else [delete, change]) * 10))
            [winner] = found.keys() - {"EtagConflictError", "ObjectMissingError"}
            assert found[winner] == 1
            assert (store.object("flows", name) is None) == (winner == "deleted")


def test_of_processes_with_one_etag_one_changes_the_object_each_time(url: str) -> None:
    body = """
now = datetime(2024, 3, 10, tzinfo=UTC)
with open_store(sys.argv[2]) as store:
    for turn in range(25):
        try:
            store.create_object("flows", f"new-{turn}", {}, None, now)
            print("created", turn)
        except ObjectExistsError:
            pass
        known = store.object("flows", "a")
        try:
            changed = dict(known.document, turns=known.document["turns"] + 1)
            store.replace_object("flows", "a", changed, None, now, etag=known.etag)
            print("changed")
        except EtagConflictError:
            pass
"""
    with open_store(url) as store:
        store.create_object("flows", "a", {"turns": 0}, None, NOW)
        counted = Counter(processes(3, body, url))
        kept = store.object("flows", "a")
    assert kept is not None
    assert kept.document["turns"] == counted["changed"] >= 25
    assert [counted[f"created {turn}"] for turn in range(25)] == [1] * 25


def test_of_fifty_threads_one_creates_the_object(store: SqlStore) -> None:
    found = at_once([lambda: store.create_object("flows", "a", {}, None, NOW).id] * CALLERS)
    assert Counter(found) == {"a": 1, "ObjectExistsError": CALLERS - 1}


# Leases


def test_of_fifty_threads_one_gets_the_lease_and_after_it_the_next(store: SqlStore) -> None:
    for turn in range(3):
        now = NOW + timedelta(seconds=30 * turn)

        def take(number: int, now: datetime = now, turn: int = turn) -> object:
            return store.take_lease("flow", f"holder-{turn}-{number}", now, 30)

        found = at_once([lambda number=number: take(number) for number in range(CALLERS)])  # type: ignore[misc]
        assert Counter(found) == {True: 1, False: CALLERS - 1}


def test_of_processes_one_gets_each_lease(url: str) -> None:
    body = """
with open_store(sys.argv[2]) as store:
    for turn in range(50):
        if store.take_lease(f"lease-{turn}", f"process-{number}", datetime(2024, 3, 10, tzinfo=UTC), 30):
            print(turn)
"""
    lines = processes(3, body, url)
    assert sorted(map(int, lines)) == list(range(50))


def test_a_lease_of_a_process_that_died_runs_out(url: str) -> None:
    body = """
import os
store = open_store(sys.argv[2])
print(store.take_lease("flow", "dead", datetime(2024, 3, 10, 9, 30, 0, 123456, tzinfo=UTC), 30), flush=True)
os._exit(0)
"""
    assert processes(1, body, url) == ["True"]
    with open_store(url) as store:
        assert not store.take_lease("flow", "heir", NOW + timedelta(seconds=29), 30)
        assert store.take_lease("flow", "heir", NOW + timedelta(seconds=30), 30)


# Migrations


def test_processes_that_open_a_new_database_at_once_migrate_it_once(url: str) -> None:
    body = """
with open_store(sys.argv[2]) as store:
    store.save_flow(f"flow-{number}", "Flow", {})
    print("opened")
"""
    assert processes(4, body, url) == ["opened"] * 4
    with open_store(url) as store:
        assert len(store.flows()) == 4
        with store._reader.begin() as connection:
            versions = connection.exec_driver_sql("SELECT version FROM worker_schema ORDER BY version").scalars().all()
    assert versions == list(range(1, len(schema.MIGRATIONS) + 1))


def test_processes_that_open_an_old_database_at_once_migrate_it_once_and_lose_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with open_store(url) as store:
            store.save_flow("a", "A", {"kept": True})
            store.save_run(run_of())
            load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    body = """
with open_store(sys.argv[2]) as store:
    store.create_object("flows", f"flow-{number}", {}, None, datetime(2024, 3, 10, tzinfo=UTC))
"""
    processes(3, body, url)
    with open_store(url) as store:
        assert [flow.definition for flow in store.flows()] == [{"kept": True}]
        assert store.find_runs(RunQuery(flow_ids=("flow",)), 10) == [run_of()]
        assert [record.load for record in store.open_loads("flow")] == [load]
        assert len(store.objects("flows")) == 3


# Many


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full_store(request: pytest.FixtureRequest) -> Iterator[SqlStore]:
    """A store with 100,000 runs, half of them of ten flows, the rest of a thousand; few have failed."""
    with new_state(request.param) as found, open_store(found) as opened:
        issues = (Issue("MAPPER-3700-199", "not a date" * 10, 3, "x" * 100),) * 2
        with opened._writer.begin() as connection:
            for first in range(0, 100_000, 2000):
                runs = [
                    run_of(
                        id=f"run-{number * 7919 % 100_000:06}",
                        flow_id=f"flow-{number % 10 if number % 2 else number % 1000}",
                        state=RunState.SUCCESS if number % 1000 else RunState.FAILED,
                        started_at=NOW + timedelta(minutes=number),
                        issues=issues,
                    )
                    for number in range(first, first + 2000)
                ]
                values = [
                    {
                        "run_id": run.id,
                        "flow_id": run.flow_id,
                        "flow_name": run.flow_name,
                        "state": run.state.value,
                        "started_at": time_text(run.started_at),
                        "document": encode(run),
                    }
                    for run in runs
                ]
                connection.execute(insert(schema.RUNS), values)
            for number in range(1000):
                connection.execute(
                    insert(schema.OBJECTS).values(
                        kind="flows",
                        object_id=f"flow-{number}",
                        document=encode({"name": f"Flow {number}", "transformations": [{"a": "b" * 50}] * 10}),
                        etag="e",
                        created_at=time_text(NOW),
                        updated_at=time_text(NOW),
                    )
                )
        yield opened


MIDDLE = NOW + timedelta(minutes=50_000)
QUESTIONS = {
    "all": RunQuery(),
    "oldest first": RunQuery(newest_first=False),
    "a large flow": RunQuery(flow_ids=("flow-3",)),
    "a small flow": RunQuery(flow_ids=("flow-44",)),
    "two large flows": RunQuery(flow_ids=("flow-3", "flow-5")),
    "a thousand flows": RunQuery(flow_ids=tuple(f"flow-{number}" for number in range(1000))),
    "no such flow": RunQuery(flow_ids=("missing",)),
    "a rare state": RunQuery(states=(RunState.FAILED,)),
    "no such state": RunQuery(states=(RunState.IN_PROGRESS,)),
    "a rare state of a flow": RunQuery(flow_ids=("flow-0",), states=(RunState.FAILED,)),
    "bounds": RunQuery(started_after=MIDDLE - timedelta(days=3), started_before=MIDDLE),
    "bounds of a flow": RunQuery(flow_ids=("flow-3",), started_after=MIDDLE - timedelta(days=3), started_before=MIDDLE),
    "all of it": RunQuery(
        flow_ids=("flow-3", "flow-5"),
        states=(RunState.SUCCESS,),
        started_after=NOW,
        started_before=NOW + timedelta(days=60),
    ),
    "deep within": RunQuery(after=f"run-{1000 * 7919 % 100_000:06}"),
    "deep within flows": RunQuery(flow_ids=("flow-3", "flow-5"), after=f"run-{50_001 * 7919 % 100_000:06}"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_page_of_a_hundred_thousand_runs_takes_less_than_fifty_milliseconds(full_store: SqlStore, name: str) -> None:
    def seconds() -> float:
        start = perf_counter()
        full_store.find_runs(QUESTIONS[name], 20)
        return perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.05


def test_listing_a_thousand_objects_takes_less_than_a_tenth_of_a_second(full_store: SqlStore) -> None:
    def seconds() -> float:
        start = perf_counter()
        assert len(full_store.objects("flows")) == 1000
        return perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.1


def test_counting_a_hundred_thousand_runs_takes_less_than_half_a_second(full_store: SqlStore) -> None:
    def seconds(query: RunQuery) -> float:
        start = perf_counter()
        full_store.count_runs(query)
        return perf_counter() - start

    for query in QUESTIONS.values():
        assert min(seconds(query) for _ in range(3)) < 0.5
