"""A run over ports in memory whose effects are written down, and can fail, crash or be waited for, one by one."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections import Counter
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
from deltalake import DeltaTable

from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mixpanel.calendar import day_bounds
from worker.mixpanel.simulator import DEMO_PROJECT_ID, DEMO_USERNAME
from worker.model import (
    Credentials,
    Flow,
    Load,
    Options,
    Receipt,
    Run,
    RunState,
    Secret,
    Source,
    Tally,
    Target,
    flow_id_of,
)
from worker.pipeline import Pipeline
from worker.runner import PacedExports, Runner, RunRequest
from worker.settings import load_settings
from worker.sinks.memory import MemorySink
from worker.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from worker.events import Event, Listener
    from worker.mixpanel.spool import Spool
    from worker.settings import Settings

FIRST = date(2024, 3, 1)
NOON = datetime(2024, 3, 2, 12, tzinfo=UTC)
"""When FIRST is over."""
DAYS = tuple(FIRST + timedelta(days=number) for number in range(5))
MAPPINGS = [
    {"sourceType": "ATTRIBUTE", "source": "properties.$insert_id", "destination": "id"},
    {"sourceType": "ATTRIBUTE", "source": "properties.version", "destination": "version"},
]
MAPPER = compile_mapper(parse_mapping_set({"mappings": MAPPINGS}), None)
PASSWORD = "canary/pässword+1"

FLOW_FILE: dict[str, Any] = {
    "baseConnection": {
        "auth": {
            "specName": "Basic Authentication",
            "params": {
                "host": "${MIXPANEL_HOST}",
                "username": DEMO_USERNAME,
                "password": "${MIXPANEL_PASSWORD}",
            },
        }
    },
    "sourceConnection": {"data": {"format": "json"}, "params": {"projectId": DEMO_PROJECT_ID, "timezone": "UTC"}},
    "targetConnection": {"data": {"format": "delta"}, "params": {"dataSetId": "events"}},
    "mappingSet": {"mappings": MAPPINGS},
    "flow": {"name": "Flow"},
}

Rows = Counter[tuple[str, str]]


# Content: `count` events of a version, one of them twice, a line that is no event, a blank line


def event_line(day: date, number: int, version: str, processed: int = 1) -> bytes:
    properties = {
        "time": int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) + number,
        "distinct_id": f"user-{number % 7}",
        "$insert_id": f"{day}-{number}",
        "mp_processing_time_ms": processed,
        "version": version,
    }
    return json.dumps({"event": "Item viewed", "properties": properties}).encode() + b"\n"


def body_of(day: date, version: str, count: int = 20) -> bytes:
    lines = [event_line(day, number, version) for number in range(count)]
    return b"".join([event_line(day, 0, "superseded", 0), *lines, b"\n", reject_of(version).encode() + b"\n"])


def reject_of(version: str) -> str:
    return f'["no event of {version}"]'


def rows_of(day: date, version: str, count: int = 20) -> Rows:
    return Counter((f"{day}-{number}", version) for number in range(count))


# Effects


class CrashError(BaseException):
    """The process dies here: no handler and no clean-up of it has any effect any more."""


class Effects:
    """Everything that a run does to the world, in order, under names that differ.

    `at` is called just before and just after each effect, and says what else happens there.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.dead = False
        self.at: Callable[[str, bool], None] = lambda name, after: None
        self._lock = Lock()

    def crash_at(self, wanted: str, *, after: bool) -> None:
        def crash(name: str, is_after: bool) -> None:
            if (name, is_after) == (wanted, after):
                self.dead = True
                raise CrashError(name)

        self.at = crash

    def fail_at(self, wanted: str, error: Exception, *, after: bool = False) -> None:
        """Raise `error` at the effect of this name."""

        def fail(name: str, is_after: bool) -> None:
            if (name, is_after) == (wanted, after):
                raise error

        self.at = fail

    def check(self) -> None:
        if self.dead:
            raise CrashError("dead")

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        with self._lock:
            self.check()
            times = sum(known.partition(" (")[0] == name for known in self.names)
            unique = f"{name} ({times + 1})" if times else name
            self.names.append(unique)
        self.at(unique, False)
        yield
        self.at(unique, True)


class Recorded:
    """A port whose calls are passed on, and are effects where `names` has a name for them."""

    def __init__(self, port: object, effects: Effects, names: Mapping[str, Callable[..., str]]) -> None:
        self._port = port
        self._effects = effects
        self._names = names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        describe = self._names.get(name)

        def call(*arguments: Any, **options: Any) -> Any:
            if describe is None:
                self._effects.check()
                return method(*arguments, **options)
            with self._effects.one(describe(*arguments, **options)):
                return method(*arguments, **options)

        return call


def recorded_store(store: MemoryStore, effects: Effects) -> Any:
    names: dict[str, Callable[..., str]] = {
        "save_run": lambda run: f"run {run.state}, {run.days_committed} days",
        "begin_load": lambda flow_id, day, *others, **more: f"{day} attempt saved",
        "save_load": lambda load, state, **more: f"{load.day} {state} saved",
        "adopt": lambda receipt: f"{receipt.day} adopted",
        "reserve_request": lambda *others: "turn asked for",
        "hold_requests": lambda *others: "requests held",
    }
    return Recorded(store, effects, names)


class RecordedSink:
    def __init__(self, sink: MemorySink, effects: Effects) -> None:
        self._sink = sink
        self._effects = effects

    def prepare(self, table: Any) -> None:
        with self._effects.one(f"{table.name} prepared"):
            self._sink.prepare(table)

    def stage(self, table: Any, load: Any) -> Any:
        self._effects.check()
        names: dict[str, Callable[..., str]] = {
            "seal": lambda: f"{load.day} {table.name} staged",
            "commit": lambda receipt: f"{load.day} {table.name} committed",
            "abandon": lambda: f"{load.day} {table.name} abandoned",
        }
        return Recorded(self._sink.stage(table, load), self._effects, names)

    def landed(self, table_name: str, flow_id: str, day: date) -> Receipt | None:
        self._effects.check()
        return self._sink.landed(table_name, flow_id, day)

    def receipts(self, table_name: str, flow_id: str) -> list[Receipt]:
        self._effects.check()
        return self._sink.receipts(table_name, flow_id)


class MemoryExports:
    """Exports out of a dictionary: each answer of a day is given once, the last one for ever; an error is raised."""

    def __init__(self, effects: Effects) -> None:
        self.answers: dict[date, list[bytes | Exception]] = {}
        self.requests: list[date] = []
        self._effects = effects

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        self.requests.append(day)
        with self._effects.one(f"{day} export opened"):
            answers = self.answers.get(day, [b""])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            data = answer if answer.startswith(b"\x1f\x8b") else gzip.compress(answer, 1)
            on_bytes(len(data))
            spool.write(data)
            spool.finish(proves_end=True)


# A run


def flow_of(options: Options | None = None, name: str = "Flow") -> Flow:
    source = Source("http://127.0.0.1:9", Credentials("user", Secret(PASSWORD)), "1", ZoneInfo("UTC"))
    return Flow(flow_id_of(name), name, source, Target("events"), options or Options())


def settings_for(folder: Path, **changes: object) -> Settings:
    environ = {
        "WORKER_LAKE": folder / "lake",
        "WORKER_SPOOL": folder / "spool",
        "WORKER_EXPORTS_PER_HOUR": 1_000_000,
        "WORKER_EXPORTS_PER_SECOND": 1_000_000,
        "WORKER_RETRY_WAIT_MAX_SECONDS": 0.01,
        "WORKER_PROCESSORS": 1,
        **{f"WORKER_{name.upper()}": value for name, value in changes.items()},
    }
    return load_settings({name: str(value) for name, value in environ.items()})


@dataclass
class World:
    """What outlives a process: the store, the target, and what Mixpanel has; `run` is one process on it."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    sink: MemorySink = field(default_factory=MemorySink)
    answers: dict[date, list[bytes | Exception]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    requests: list[date] = field(default_factory=list)

    def copy(self) -> World:
        """Another world that goes on from here; nothing has been asked or told in it yet."""
        store, sink = MemoryStore(), MemorySink()
        for name, value in vars(self.store).items():
            if name != "_lock":
                setattr(store, name, copy(value))
        for name, content in self.sink._contents.items():
            sink._contents[name] = replace(content, days=dict(content.days), receipts=dict(content.receipts))
        return World(self.folder, store, sink, {day: list(answers) for day, answers in self.answers.items()})

    def put(self, days: Sequence[date], version: str) -> None:
        """From now on Mixpanel has this version of these days."""
        self.answers.update({day: [body_of(day, version)] for day in days})

    async def run(
        self,
        days: Sequence[date],
        effects: Effects | None = None,
        *,
        options: Options | None = None,
        listener: Listener | None = None,
        **settings: object,
    ) -> Run:
        effects = effects or Effects()
        chosen = settings_for(self.folder, **settings)
        flow = flow_of(options)
        store: Any = recorded_store(self.store, effects)
        exports = MemoryExports(effects)
        exports.answers, exports.requests = self.answers, self.requests

        def listen(event: Event) -> None:
            self.events.append(event)
            if listener is not None:
                listener(event)

        paced = PacedExports(exports, chosen, store, listen, flow.id)
        window = day_bounds(days[0], flow.source.timezone)[0], day_bounds(days[-1], flow.source.timezone)[1]
        request = RunRequest(flow, MAPPER, tuple(days), flow.source.timezone, window)
        with Pipeline(chosen, paced, listen) as pipeline:
            return await Runner(chosen, store, RecordedSink(self.sink, effects), pipeline, listen).run(request)

    def rows(self, day: date) -> Rows:
        return Counter((row["id"], row["version"]) for row in self.sink.rows("events", day).to_pylist())

    def rejects(self, day: date) -> list[str]:
        return [row["raw"] for row in self.sink.rows("events_rejects", day).to_pylist()]

    def version(self, day: date) -> str:
        """The version of the day that a reader sees, after a look at each row."""
        rows = self.rows(day)
        versions = {version for _, version in rows} or {""}
        assert len(versions) == 1, f"{day} holds rows of {versions}"
        version = versions.pop()
        assert rows == (rows_of(day, version) if version else Counter())
        return version

    def seen(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def assert_settled(self) -> None:
        """Nothing is left under way: no load, no run, no file."""
        assert self.store.open_loads(flow_of().id) == []
        assert {str(run.state) for run in self.store.runs(None, 1000)} <= {"success", "failed"}
        spool = self.folder / "spool"
        assert not spool.exists() or list(spool.iterdir()) == []


# Records


def run_of(**changes: Any) -> Run:
    """A run over FIRST that began at NOON and is in progress; one of another state took a minute."""
    run = Run(
        id="run-1",
        flow_id="flow",
        flow_name="Flow",
        dataset_id="events",
        state=RunState.IN_PROGRESS,
        started_at=NOON,
        first_day=FIRST,
        last_day=FIRST,
        window_start=NOON - timedelta(days=1),
        window_end=NOON,
    )
    run = replace(run, **changes)
    if run.state is RunState.IN_PROGRESS or "completed_at" in changes:
        return run
    return replace(run, completed_at=run.started_at + timedelta(minutes=1))


def load_of(**changes: Any) -> Load:
    """The first attempt of that run at its day."""
    return replace(Load("flow", FIRST, 1, "batch-1", "run-1", NOON), **changes)


def receipt_of(load: Load, **changes: Any) -> Receipt:
    """What a commit of the load leaves, a minute after it began."""
    receipt = Receipt(
        flow_id=load.flow_id,
        day=load.day,
        generation=load.generation,
        batch_id=load.batch_id,
        run_id=load.run_id,
        exported_at=load.started_at,
        committed_at=load.started_at + timedelta(minutes=1),
        tally=Tally(input=5, output=2, failed=1, skipped=1, deduplicated=1, warnings=7),
        input_bytes=1234,
        output_bytes=567,
        file_count=1,
    )
    return replace(receipt, **changes)


# Clocks and ports


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.now.timestamp()

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A client that is slow


async def until_closed(url: str, opening: bytes, trickle: bytes = b"") -> bytes:
    """What a server says until it closes a connection on which `opening` is sent, and `trickle` again and again."""
    found = bytearray()
    async with asyncio.timeout(8):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        with suppress(ConnectionError):
            writer.write(opening)
            while True:
                writer.write(trickle)
                try:
                    piece = await asyncio.wait_for(reader.read(1000), 0.02)
                except TimeoutError:
                    continue
                if not piece:
                    break
                found += piece
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return bytes(found)


# A lake on disk, read without the worker


def lake_rows(table: Path) -> dict[date, Rows]:
    """The rows of each day, in `_extconndev` or beside it: id and version."""
    found: dict[date, Rows] = {}
    for uri in DeltaTable(str(table)).file_uris():
        day = date.fromisoformat(Path(uri).parent.name.removeprefix("mp_date="))
        rows = pq.ParquetFile(uri).read(columns=["id", "version"]).to_pylist()
        found.setdefault(day, Counter()).update((row["id"], row["version"]) for row in rows)
    return found
