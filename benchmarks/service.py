"""The service with many flows and run records: how soon it is ready, how fast it answers and looks at what is due.

1,000 flows and 100,000 runs, and a tenth of both, on SQLite and, where its programs are, on PostgreSQL. Readiness is
the time from the start of the process to the first 200 of /readyz; answers are taken over HTTP, one after the other;
ticks are those of a scheduler that finds nothing to run. Medians are printed, all lies under `.bench/`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen
from uuid import uuid4

from sqlalchemy import create_engine, insert, make_url, text

from worker.errors import SourceError
from worker.events import FlowKnown
from worker.keeper import Keeper
from worker.model import Receipt, Run, RunState, Tally
from worker.registry import (
    CONNECTIONS,
    DATA_LAKE_SPEC,
    FLOW_SPEC,
    FLOWS,
    MAPPING_SETS,
    MIXPANEL_SPEC,
    SOURCES,
    TARGETS,
    Registry,
)
from worker.secret_box import SecretBox, load_or_create_key
from worker.settings import load_settings
from worker.store import RunQuery, open_store
from worker.store.documents import encode, time_text
from worker.store.schema import LOADS, OBJECTS, RUNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

    from worker.events import Event
    from worker.mixpanel.spool import Spool
    from worker.model import Source
    from worker.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
RUNS_A_FLOW = 100
READY_SECONDS, ANSWER_SECONDS, TICK_SECONDS = 5.0, 0.05, 0.1
"""What is aimed at with 1,000 flows and 100,000 runs."""
PATIENCE_SECONDS = 120.0
FLOW_SERVICE = "/data/foundation/flowservice"


@dataclass(frozen=True)
class Measure:
    ready: float
    answers: dict[str, float]
    first_tick: float
    known: float
    tick: float


class NoExports:
    """Nothing is due, so nothing is asked for."""

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        raise SourceError("This benchmark exports nothing.")


# Content


def fill(settings: Settings, flows: int, now: datetime) -> list[str]:
    """Flows that ran once a day, the last time an hour ago, but for a tenth that waits for its start; their ids.

    Those that ran have the runs of those that wait too.
    """
    waiting = range(10, flows, 10)
    days = -(-flows * RUNS_A_FLOW // (flows - len(waiting)))
    with open_store(settings.state) as store:
        registry = registry_of(settings, store)
        base = registry.create(
            CONNECTIONS,
            {
                "name": "Mixpanel",
                "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
                "auth": {
                    "specName": "Basic Authentication",
                    "params": {"username": "user", "password": "secret", "host": "http://127.0.0.1:9"},
                },
            },
        )
        source = registry.create(
            SOURCES,
            {
                "name": "Events",
                "baseConnectionId": base.id,
                "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
                "data": {"format": "json"},
                "params": {"projectId": "1", "timezone": "UTC"},
            },
        )
        target = registry.create(
            TARGETS,
            {
                "name": "Lake",
                "connectionSpec": {"id": DATA_LAKE_SPEC, "version": "1.0"},
                "data": {"format": "delta"},
                "params": {"dataSetId": "events"},
            },
        )
        mapping = {"sourceType": "ATTRIBUTE", "source": "properties.$insert_id", "destination": "id"}
        mapping_set = registry.create(MAPPING_SETS, {"mappings": [mapping]})
        start = now - timedelta(days=days, hours=1)
        flow = registry.create(
            FLOWS,
            {
                "name": "Flow 0",
                "flowSpec": {"id": FLOW_SPEC, "version": "1.0"},
                "sourceConnectionIds": [source.id],
                "targetConnectionIds": [target.id],
                "transformations": [
                    {"name": "Mapping", "params": {"mappingId": mapping_set.id, "mappingVersion": "0"}}
                ],
                "scheduleParams": {"startTime": int(start.timestamp()), "frequency": "day", "interval": 1},
            },
        )
    later = int((now + timedelta(days=300)).timestamp())
    objects, ids = [], [flow.id]
    for number in range(1, flows):
        ids.append(str(uuid4()))
        own_target = str(uuid4())
        schedule = {**flow.document["scheduleParams"], **({"startTime": later} if number in waiting else {})}
        document = {**flow.document, "name": f"Flow {number}", "scheduleParams": schedule}
        objects += [
            object_row(TARGETS, own_target, {**target.document, "params": {"dataSetId": f"events_{number}"}}, now),
            object_row(FLOWS, ids[-1], {**document, "targetConnectionIds": [own_target]}, now),
        ]
    runs, loads = [], []
    for number, flow_id in enumerate(ids):
        for run, load in (one_run(flow_id, number, back, now) for back in range(0 if number in waiting else days)):
            runs.append(run)
            loads.append(load)
    url = make_url(settings.state)
    engine = create_engine(url.set(drivername="postgresql+psycopg") if url.drivername != "sqlite" else url)
    with engine.begin() as connection:
        for table, rows in ((OBJECTS, objects), (RUNS, runs), (LOADS, loads)):
            connection.execute(insert(table), rows)
        if url.drivername != "sqlite":
            # as its own housekeeping would soon do
            connection.execute(text("ANALYZE"))
    engine.dispose()
    return ids


def object_row(kind: str, object_id: str, document: dict[str, Any], now: datetime) -> dict[str, Any]:
    moment = time_text(now)
    return {
        "kind": kind,
        "object_id": object_id,
        "document": encode(document),
        "sealed": None,
        "etag": str(uuid4()),
        "created_at": moment,
        "updated_at": moment,
    }


def one_run(flow_id: str, number: int, back: int, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of one day with its load; one of ten failed, one of five has rejects."""
    started = now - timedelta(days=back, minutes=59) + timedelta(seconds=number / 100)
    day = started.date()
    failed = (number + back) % 10 == 3
    rejects = 7 if back % 5 == 1 else 0
    tally = Tally() if failed else Tally(input=100_000, output=100_000 - rejects, failed=rejects)
    batch_id = f"01H{uuid4().hex[:23].upper()}"
    run = Run(
        id=str(uuid4()),
        flow_id=flow_id,
        flow_name=f"Flow {number}",
        dataset_id=f"events_{number}",
        state=RunState.SUCCESS,
        started_at=started,
        first_day=day,
        last_day=day,
        window_start=started,
        window_end=started + timedelta(days=1),
        completed_at=started + timedelta(minutes=1),
        updated_at=started + timedelta(minutes=1),
        tally=tally,
        batch_ids=() if failed else (batch_id,),
    )
    if failed:
        run = replace(run, state=RunState.FAILED, error_code="CONNECTOR-1001-503", error_message="Mixpanel was away.")
    receipt = Receipt(
        flow_id=flow_id,
        day=day,
        generation=1,
        batch_id=batch_id,
        run_id=run.id,
        exported_at=started,
        committed_at=started + timedelta(minutes=1),
        tally=tally,
        input_bytes=20_000_000,
        output_bytes=5_000_000,
        file_count=1,
    )
    return (
        {
            "run_id": run.id,
            "flow_id": flow_id,
            "flow_name": run.flow_name,
            "state": run.state.value,
            "started_at": time_text(started),
            "document": encode(run),
        },
        {
            "batch_id": batch_id,
            "flow_id": flow_id,
            "day": day.isoformat(),
            "generation": 1,
            "run_id": run.id,
            "started_at": time_text(started),
            "state": "failed" if failed else "succeeded",
            "receipt": None if failed else encode(receipt),
            "error_code": run.error_code,
            "error_message": run.error_message,
        },
    )


# Measures


def registry_of(settings: Settings, store: Any) -> Registry:  # noqa: ANN401 - any store
    assert settings.key_file is not None
    return Registry(store, SecretBox(load_or_create_key(settings.key_file)), settings, allow_loopback=True)


@contextmanager
def service(environ: dict[str, str]) -> Iterator[tuple[str, float]]:
    """The service as a process, its address, and the seconds until it was ready."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run"], env=os.environ | environ, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    base = f"http://{environ['WORKER_HTTP']}"
    try:
        while True:
            try:
                with urlopen(f"{base}/readyz", timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - our own
                    assert answer.status == 200
                    break
            except URLError:
                if process.poll() is not None or time.monotonic() - started > PATIENCE_SECONDS:
                    raise SystemExit("The service did not get ready.") from None
                time.sleep(0.01)
        yield base, time.monotonic() - started
    finally:
        process.terminate()
        process.wait()


def answers_of(base: str, ids: list[str], now: datetime, rounds: int) -> dict[str, float]:
    """Median seconds of GET /runs by filter, in pages of 100; every round asks about another flow."""
    yesterday = int((now - timedelta(days=1)).timestamp() * 1000)

    def runs(*conditions: str, count: bool = False) -> str:
        properties = [f"property={quote(condition)}" for condition in conditions]
        return f"/runs?{'&'.join([*properties, *(['count=true'] if count else [])])}"

    failed = "metrics.statusSummary.status==failed"
    questions: dict[str, Callable[[str], str]] = {
        "runs of a flow": lambda flow_id: runs(f"flowId=={flow_id}"),
        "runs that failed": lambda flow_id: runs(failed),
        "runs of a flow that failed": lambda flow_id: runs(f"flowId=={flow_id}", failed),
        "runs since yesterday": lambda flow_id: runs(f"createdAt>{yesterday}"),
        "number of runs of a flow": lambda flow_id: runs(f"flowId=={flow_id}", count=True),
    }
    medians = {}
    for name, path in questions.items():
        taken = []
        for number in range(rounds + 3):
            begun = time.monotonic()
            address = base + FLOW_SERVICE + path(ids[number * 7 % len(ids)])
            with urlopen(address, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - our own
                assert len(answer.read()) > 10
            taken.append(time.monotonic() - begun)
        medians[name] = statistics.median(taken[3:])
    return medians


async def ticks_of(settings: Settings, flows: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of the first tick, until all flows are known, and the median of the ticks after it."""
    known, every = 0, asyncio.Event()

    def listen(event: Event) -> None:
        nonlocal known
        known += isinstance(event, FlowKnown)
        if known == flows:
            every.set()

    with open_store(settings.state) as store:
        keeper = Keeper(settings, store, registry_of(settings, store), NoExports(), listen)
        runs = store.count_runs(RunQuery())
        started = time.monotonic()
        await keeper.tick()
        first = time.monotonic() - started
        async with asyncio.timeout(PATIENCE_SECONDS):
            await every.wait()
        told = time.monotonic() - started
        taken = []
        for _ in range(rounds):
            begun = time.monotonic()
            await keeper.tick()
            taken.append(time.monotonic() - begun)
        await keeper.close()
        assert keeper.trouble is None, keeper.trouble
        assert store.count_runs(RunQuery()) == runs, "nothing is due"
    return first, told, statistics.median(taken)


def measured(folder: Path, state: str, flows: int, rounds: int) -> Measure:
    environ = {
        "WORKER_STATE": state,
        "WORKER_LAKE": str(folder / "lake"),
        "WORKER_SPOOL": str(folder / "spool"),
        "WORKER_KEY_FILE": str(folder / "key"),
        "WORKER_HTTP": f"127.0.0.1:{free_port()}",
    }
    settings = load_settings(environ)
    now = datetime.now(UTC)
    ids = fill(settings, flows, now)
    with service(environ) as (base, ready):
        answers = answers_of(base, ids, now, rounds)
    return Measure(ready, answers, *asyncio.run(ticks_of(settings, flows, rounds)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def new_state(kind: str, folder: Path) -> Iterator[str]:
    if kind == "SQLite":
        yield f"sqlite:///{folder}/worker.db"
        return
    # what starts the server for the tests needs them installed
    from tests.test_store_postgres import postgres_state  # noqa: PLC0415

    with postgres_state() as url:
        yield url


def show(kind: str, flows: int, measure: Measure) -> None:
    def line(name: str, seconds: float, aim: float) -> None:
        unit, times = ("s", 1) if aim >= 1 else ("ms", 1000)
        missed = "" if seconds < aim else "  missed"
        print(f"  {name:32}{seconds * times:>9.1f} {unit:2}  of {aim * times:g}{missed}")

    print(f"\n{kind}, {flows:,} flows, {flows * RUNS_A_FLOW:,} runs")
    line("ready", measure.ready, READY_SECONDS)
    for name, seconds in measure.answers.items():
        line(name, seconds, ANSWER_SECONDS)
    line("tick", measure.tick, TICK_SECONDS)
    print(f"  {'the first tick of all':32}{measure.first_tick * 1000:>9.1f} ms")
    print(f"  {'until all flows are known':32}{measure.known:>9.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, nargs="+", default=[1000, 100], help="one number of flows or several")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    kinds = ["SQLite"]
    if shutil.which("initdb") and shutil.which("pg_ctl"):
        kinds.append("PostgreSQL")
    else:
        print("There is no PostgreSQL on this machine (initdb, pg_ctl): SQLite only.", file=sys.stderr)
    for kind in kinds:
        for flows in arguments.flows:
            folder = ROOT / ".bench" / "service" / f"{kind.lower()}-{flows}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with new_state(kind, folder) as state:
                show(kind, flows, measured(folder, state, flows, arguments.rounds))


if __name__ == "__main__":
    main()
