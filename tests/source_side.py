"""Tools of the tests of the source side: settings with small limits, and a day from a server to tables in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import ZoneInfo

import pytest

from worker.errors import ExportBrokenError
from worker.mapping.mapper import Mapper, compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mapping.xdm import XdmSchema
from worker.mixpanel.body import OversizedLine, Piece
from worker.mixpanel.export import MixpanelExports
from worker.mixpanel.pieces import PieceFiles, read_pieces
from worker.mixpanel.simulator import DEMO_PASSWORD, DEMO_PROJECT_ID, DEMO_USERNAME
from worker.mixpanel.spool import Spool
from worker.model import Credentials, Load, Options, Receipt, Secret, Source, Tally
from worker.pipeline import REJECTS_SCHEMA, DayPlan, Pipeline
from worker.settings import load_settings
from worker.sinks.base import Table
from worker.sinks.memory import MemorySink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from worker.mixpanel.export import Exports
    from worker.model import Issue
    from worker.settings import Settings

DAY = date(2024, 3, 1)
FLOW_ID = "5f1c7c1e-0000-5000-8000-000000000001"
BATCH_ID = "01HQ0000000000000000000000"
MOMENT = datetime(2024, 3, 9, 12, tzinfo=UTC)

_SAMPLES = Path(__file__).parent.parent.parent / "shared" / "samples"


def sample(name: str) -> bytes:
    """A file of the samples of third parties, which are not in the repository: without them the test is skipped."""
    path = _SAMPLES / name
    if not path.exists():
        pytest.skip(f"the samples of third parties are not here ({name})")
    return path.read_bytes()


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Settings with limits that a test reaches in seconds."""
    usual = load_settings({"WORKER_SPOOL": str(folder / "spool")})
    small = {"connect_seconds": 5.0, "first_byte_seconds": 20.0, "idle_seconds": 20.0, "processors": 2}
    return replace(usual, **{**small, **changes})


def source_at(base_url: str, username: str = DEMO_USERNAME, password: str = DEMO_PASSWORD, **changes: Any) -> Source:
    return Source(
        base_url=base_url,
        credentials=Credentials(username, Secret(password)),
        project_id=DEMO_PROJECT_ID,
        timezone=ZoneInfo("UTC"),
        **changes,
    )


def pieces_of(
    folder: Path,
    content: bytes,
    *,
    piece_bytes: int,
    max_line_bytes: int,
    max_raw_bytes: int = 1 << 16,
    proves_end: bool = True,
    file_count: int = 2,
) -> Iterator[Piece | OversizedLine]:
    """The pieces of an export; a file holds its piece until the next but `file_count` is asked for, or to the end."""
    files = PieceFiles(folder, file_count)
    with Spool(folder / "export") as export:
        export.write(content)
        export.finish(proves_end=proves_end)
        reading = read_pieces(
            export, files, piece_bytes=piece_bytes, max_line_bytes=max_line_bytes, max_raw_bytes=max_raw_bytes
        )
        try:
            for item in reading:
                yield item
                if isinstance(item, Piece):
                    files.give_back(item.path)
        except ExportBrokenError:
            # whatever was being written, nobody waits for its file for ever
            assert files._free.qsize() == file_count
            raise
    assert files._free.qsize() == file_count


def mapper_of(mappings: dict[str, str], schema: dict[str, Any] | None = None) -> Mapper:
    """A mapper of destination → source."""
    entries = [
        {"sourceType": "ATTRIBUTE", "source": source, "destination": destination}
        for destination, source in mappings.items()
    ]
    return compile_mapper(parse_mapping_set({"mappings": entries}), XdmSchema(schema) if schema else None)


MAPPER = mapper_of(
    {
        "name": "event",
        "time": "properties.time",
        "who": "properties.distinct_id",
        "insert_id": "properties.$insert_id",
        "p": "properties.p",
        "q": "properties.q",
    }
)


@dataclass(frozen=True)
class Landed:
    """What a committed day holds."""

    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    tally: Tally
    issues: tuple[Issue, ...]


class Worker:
    """Loads days as a run does, into tables in memory. An async context manager."""

    def __init__(
        self, folder: Path, *, mapper: Mapper = MAPPER, exports: Exports | None = None, **changes: Any
    ) -> None:
        self.settings = settings_for(folder, **changes)
        self._mapper = mapper
        self._own = MixpanelExports(self.settings)
        self._pipeline = Pipeline(self.settings, exports or self._own, lambda _event: None)
        self._generations = count(1)

    async def __aenter__(self) -> Self:
        await self._own.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._own.__aexit__(kind, error, trace)
        await asyncio.to_thread(self._pipeline.__exit__, kind, error, trace)

    async def load(self, source: Source, day: date = DAY, options: Options | None = None) -> Landed:
        """Stage and commit one day; what goes wrong is raised, and then the spool is empty and the tables are, too."""
        sink = MemorySink()
        rows = Table("events", self._mapper.schema, FLOW_ID)
        rejects = Table("events_rejects", REJECTS_SCHEMA, FLOW_ID)
        sink.prepare(rows)
        sink.prepare(rejects)
        generation = next(self._generations)
        load = Load(FLOW_ID, day, generation, BATCH_ID, "run", MOMENT)
        plan = DayPlan(source, self._mapper, sink, rows, rejects, options or Options())
        try:
            staged = await self._pipeline.stage_day(plan, load, 1, MOMENT)
        except BaseException:
            assert sink.landed("events", FLOW_ID, day) is None
            raise
        finally:
            assert not list(self.settings.spool.iterdir())
            files = self._pipeline._files
            assert files._free.qsize() == len(files._paths)
        receipt = Receipt(FLOW_ID, day, generation, BATCH_ID, "run", MOMENT, MOMENT, staged.tally)
        staged.rejects.commit(receipt)
        staged.rows.commit(receipt)
        landed = Landed(
            sink.rows("events", day).to_pylist(),
            sink.rows("events_rejects", day).to_pylist(),
            staged.tally,
            staged.issues,
        )
        assert len(landed.rows) == landed.tally.output
        assert len(landed.rejects) == landed.tally.failed
        return landed
