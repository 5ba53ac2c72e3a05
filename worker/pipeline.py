"""One day: the bytes of its export to staged rows and rejects. Commits nothing, changes nothing that anybody sees.

    export → spool → blocks of lines → decode → map → spill → deduplicate → stage

The export runs on the event loop. Everything behind the spool runs on threads: one a day that inflates, keeps the order
and writes, and a few that decode and map. The rows of a day wait in a spill file until the export has proved whole and
the duplicates are known; only then does the target hear of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from worker import events
from worker.errors import ExportBrokenError, RejectLimitError, ResourceError
from worker.mapping.mapper import REJECT_CODE
from worker.memory import give_memory_back
from worker.mixpanel.body import OversizedLine, is_sentinel, read_blocks
from worker.mixpanel.decode import Decoder, LineReject
from worker.mixpanel.deduplicate import Deduplicator
from worker.mixpanel.spool import ExportAbandonedError, Spool
from worker.model import Issue, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from numpy.typing import NDArray

    from worker.events import Listener
    from worker.mapping.mapper import Mapper
    from worker.mixpanel.body import Block
    from worker.mixpanel.export import Exports
    from worker.model import Load, Options, Source
    from worker.settings import Settings
    from worker.sinks.base import Sink, Stage, Table

REJECTS_SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("stage", pa.string()),
        ("code", pa.string()),
        ("reason", pa.string()),
        ("raw", pa.string()),
    ]  # type: ignore[arg-type]  # the stubs want one type for all columns
)
"""Columns of the rejects table. `line` counts the lines of the export from 1; bytes of `raw` that are no UTF-8 are
written as `\\xNN`."""

DUPLICATE_KEY_CODE = "INGEST-1301-400"
"""The worker's own: a line with two equal keys in one object, of which the last counts."""

PROGRESS_SECONDS = 0.2
TRIM_BLOCKS = 16
"""So many blocks leave about a hundred MiB in holes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How WORKER_MAX_MEMORY_BYTES is shared out: the one place where memory is bounded.

    The interpreter and its libraries take about 200 MiB, decoding a block about five times its size, a row group being
    written about 64 MiB; two days may be under way at once.
    """

    block_bytes: int
    blocks_under_way: int
    key_bytes: int
    line_bytes: int
    raw_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        mebibytes = settings.max_memory_bytes >> 20
        return cls(
            block_bytes=(8 << 20) if mebibytes >= 512 else (4 << 20),
            blocks_under_way=settings.processors + 1,
            key_bytes=settings.max_memory_bytes // 16,
            line_bytes=settings.max_line_bytes,
            raw_bytes=settings.max_reject_bytes,
        )


@dataclass(frozen=True, slots=True)
class StagedDay:
    """A day that is ready to be committed: its export proved whole, its rows and rejects counted and staged."""

    load: Load
    rows: Stage
    rejects: Stage
    tally: Tally
    exported_at: datetime
    input_bytes: int
    output_bytes: int
    file_count: int
    issues: tuple[Issue, ...]

    def abandon(self) -> None:
        self.rows.abandon()
        self.rejects.abandon()


@dataclass(frozen=True, slots=True)
class DayPlan:
    """What one day needs: where from, how mapped, where to."""

    source: Source
    mapper: Mapper
    sink: Sink
    rows_table: Table
    rejects_table: Table
    options: Options


@dataclass(frozen=True, slots=True)
class _Converted:
    """One block, decoded and mapped. Line numbers count from 1 within the block."""

    lines: int
    blank: int
    batch: pa.RecordBatch
    rejects: list[LineReject]
    keys: NDArray[np.uint64]
    processed: NDArray[np.int64]
    content: NDArray[np.uint64]
    issues: tuple[Issue, ...]
    last_line_rejected: bool


@dataclass(slots=True)
class _Issues:
    """Issues of the same code and message, added up; the sample is the first one's."""

    counted: dict[tuple[str, str], Issue] = field(default_factory=dict)

    def add(self, issue: Issue) -> None:
        key = (issue.code, issue.message)
        known = self.counted.get(key)
        self.counted[key] = issue if known is None else replace(known, count=known.count + issue.count)


class Pipeline:
    """Stages days. One instance serves a whole process; use as a context manager."""

    def __init__(self, settings: Settings, exports: Exports, listener: Listener) -> None:
        self._settings = settings
        self._exports = exports
        self._listener = listener
        self._budget = Budget.of(settings)
        self._pool = ThreadPoolExecutor(settings.processors, thread_name_prefix="decode")
        self._exporting = asyncio.Lock()
        self._blocks = threading.Semaphore(self._budget.blocks_under_way)
        self._converter: _Converter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _converter_of(self, mapper: Mapper) -> _Converter:
        """Days of one flow share their decoders, which are heavy."""
        if self._converter is None or self._converter.mapper is not mapper:
            self._converter = _Converter(mapper, self._settings)
        return self._converter

    async def stage_day(self, plan: DayPlan, load: Load, attempt: int, exported_at: datetime) -> StagedDay:
        """Export the day of `load` once and stage what it holds.

        `exported_at` is a moment not after the request. Exports follow one another in the order of the calls, while the
        work behind them overlaps. Raises SourceError (`retry` says whether another attempt may help), RejectLimitError,
        SinkError, ResourceError. Leaves nothing behind when it raises or is cancelled.
        """
        folder = self._settings.spool
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (
                tempfile.TemporaryDirectory(prefix=f"{load.day}-", dir=folder) as own,
                Spool(Path(own) / "export") as spool,
            ):
                converter = self._converter_of(plan.mapper)
                work = _DayWork(
                    self._budget, self._blocks, self._pool, converter, self._listener, plan, load, spool, Path(own)
                )
                return await self._export_and_work(plan, load, attempt, spool, work, exported_at)
        except OSError as error:
            raise ResourceError(
                f"The spool folder {folder} cannot be used: {error.strerror or error}.",
                advice="Free some disk, or let WORKER_SPOOL name a folder with room that the worker may write to.",
            ) from error

    async def _export_and_work(
        self, plan: DayPlan, load: Load, attempt: int, spool: Spool, work: _DayWork, exported_at: datetime
    ) -> StagedDay:
        working: asyncio.Task[StagedDay] | None = None
        export: asyncio.Future[None] | None = None
        try:
            async with self._exporting:
                working = asyncio.create_task(asyncio.to_thread(work.run, exported_at))
                self._listener(events.ExportOpened(load, attempt))
                started = time.monotonic()
                export = asyncio.ensure_future(self._exports.fetch(plan.source, load.day, spool, work.received))
                await asyncio.wait({export, working}, return_when=asyncio.FIRST_COMPLETED)
                if not export.done():
                    # the work stopped early: the body has proved broken, or a disk is full
                    export.cancel()
                    await asyncio.gather(export, return_exceptions=True)
                elif (error := export.exception()) is not None:
                    spool.fail(error if isinstance(error, Exception) else ExportAbandonedError())
                else:
                    self._listener(events.ExportEnded(load, spool.size, time.monotonic() - started))
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            if export is not None:
                export.cancel()
                await asyncio.gather(export, return_exceptions=True)
            spool.fail(ExportAbandonedError())
            if working is not None:
                staged = (await asyncio.gather(working, return_exceptions=True))[0]
                if isinstance(staged, StagedDay):
                    await asyncio.to_thread(staged.abandon)
            raise


class _DayWork:
    """The blocking side of one day, on a thread of its own."""

    def __init__(
        self,
        budget: Budget,
        blocks: threading.Semaphore,
        pool: ThreadPoolExecutor,
        converter: _Converter,
        listener: Listener,
        plan: DayPlan,
        load: Load,
        spool: Spool,
        folder: Path,
    ) -> None:
        self._budget = budget
        self._blocks = blocks
        self._pool = pool
        self._listener = listener
        self._plan = plan
        self._load = load
        self._spool = spool
        self._folder = folder
        self._converter = converter
        self._received_bytes = 0
        self._lines = 0
        self._told = 0.0

    def received(self, size: int) -> None:
        """`size` more bytes came over the wire."""
        self._received_bytes += size
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._listener(events.ExportProgressed(self._load, self._received_bytes, self._lines))

    def run(self, exported_at: datetime) -> StagedDay:
        started = time.monotonic()
        deduplicate = self._plan.source.deduplicate == "mixpanel"
        blank = failed = 0
        issues = _Issues()
        schema = self._plan.mapper.schema
        rows_path, rejects_path = self._folder / "rows", self._folder / "rejects"
        with Deduplicator(self._folder, self._budget.key_bytes) as keys:
            with _spill(rows_path, schema) as rows, _spill(rejects_path, REJECTS_SCHEMA) as rejects:
                for number, block in enumerate(self._converted(), start=1):
                    if number % TRIM_BLOCKS == 0:
                        give_memory_back()
                    if block.rejects:
                        rejects.write_batch(_rejects_batch(block.rejects, self._lines))
                    if block.batch.num_rows:
                        rows.write_batch(block.batch)
                        if deduplicate:
                            keys.add(block.keys, block.processed, block.content)
                    for issue in block.issues:
                        issues.add(issue)
                    blank += block.blank
                    failed += len(block.rejects)
                    self._lines += block.lines
                    self._tell()
            if failed and failed + blank == self._lines:
                raise ExportBrokenError("No line of the export is an event.", reason="no_events")
            kept = keys.kept() if deduplicate else None
        lines = self._lines
        self._check_rejects(failed, lines - blank)
        dropped = 0 if kept is None else int(len(kept) - np.count_nonzero(kept))
        tally = Tally(
            input=lines,
            output=lines - blank - failed - dropped,
            failed=failed,
            skipped=blank,
            deduplicated=dropped,
            warnings=sum(issue.count for issue in issues.counted.values()),
        )
        staged = self._stage(rows_path, rejects_path, kept, tally, issues, exported_at)
        self._listener(events.DayStaged(self._load, tally.output, staged.output_bytes, time.monotonic() - started))
        return staged

    def _check_rejects(self, failed: int, lines: int) -> None:
        limit = self._plan.options.partial_ingestion_percent
        if limit is None or not failed or failed * 100 <= limit * lines:
            return
        raise RejectLimitError(
            f"{failed} of {lines} rows of {self._load.day} were rejected, {failed * 100 / lines:.3g} percent; "
            f"the flow accepts {limit:g}.",
            advice="The day was not committed. `preview` shows what is wrong; the limit is partialIngestionPercent.",
        )

    def _converted(self) -> Iterator[_Converted]:
        """The blocks of the export in order, decoded and mapped by the pool a few at a time.

        All days share the places for blocks. A day that finds none free first gives back its own oldest one, so none
        waits for another that waits for it.
        """
        under_way: deque[Future[_Converted]] = deque()
        unterminated = False

        def oldest() -> _Converted:
            try:
                return under_way[0].result()
            finally:
                under_way.popleft()
                self._blocks.release()

        try:
            for block in read_blocks(
                self._spool,
                block_bytes=self._budget.block_bytes,
                max_line_bytes=self._budget.line_bytes,
                max_raw_bytes=self._budget.raw_bytes,
            ):
                unterminated = not isinstance(block, OversizedLine) and block.unterminated
                while not self._blocks.acquire(blocking=not under_way):
                    yield self._checked(oldest(), last=False)
                under_way.append(self._pool.submit(self._converter, block))
            while under_way:
                result = oldest()
                yield self._checked(result, last=unterminated and not under_way)
        finally:
            for future in under_way:
                future.cancel()
                self._blocks.release()

    @staticmethod
    def _checked(block: _Converted, *, last: bool) -> _Converted:
        """`last`: this block ends with the last line of the export, and that line has no end."""
        for reject in block.rejects:
            if is_sentinel(reject.raw):
                raise ExportBrokenError(
                    f"Mixpanel ended the export before its end: {reject.raw[:100].decode('utf-8', 'replace')!r}.",
                    reason="terminated_early",
                )
        if last and block.last_line_rejected:
            raise ExportBrokenError("The export ends inside a line.", reason="truncated_line")
        return block

    def _stage(
        self,
        rows_path: Path,
        rejects_path: Path,
        kept: NDArray[np.bool_] | None,
        tally: Tally,
        issues: _Issues,
        exported_at: datetime,
    ) -> StagedDay:
        rows = self._plan.sink.stage(self._plan.rows_table, self._load)
        try:
            rejects = self._plan.sink.stage(self._plan.rejects_table, self._load)
            try:
                written = _copy(rows_path, rows, kept)
                _copy(rejects_path, rejects, None)
                assert written == tally.output, f"{written} rows were staged, {tally.output} were counted"
                output_bytes, files = rows.seal()
                rejects.seal()
            except BaseException:
                rejects.abandon()
                raise
        except BaseException:
            rows.abandon()
            raise
        return StagedDay(
            self._load,
            rows,
            rejects,
            tally,
            exported_at,
            self._spool.size,
            output_bytes,
            files,
            tuple(issues.counted.values()),
        )


class _Converter:
    """Decodes and maps a block; called by the threads of the pool, each with a decoder of its own."""

    def __init__(self, mapper: Mapper, settings: Settings) -> None:
        self.mapper = mapper
        self._settings = settings
        self._own = threading.local()

    def __call__(self, block: Block | OversizedLine) -> _Converted:
        decoder: Decoder | None = getattr(self._own, "decoder", None)
        if decoder is None:
            decoder = self._own.decoder = Decoder(
                self.mapper.paths,
                max_line_bytes=self._settings.max_line_bytes,
                max_raw_bytes=self._settings.max_reject_bytes,
            )
        decoded = decoder.decode(block)
        mapped = self.mapper.map(decoded.texts[: len(self.mapper.paths)])
        batch, keys, processed, content = mapped.batch, decoded.keys, decoded.processed, decoded.content
        rejects = decoded.rejects
        if len(mapped.rejected):
            keep = np.ones(batch.num_rows, dtype=bool)
            keep[mapped.rejected] = False
            rejects = sorted(
                [*rejects, *decoder.rejects(block, decoded.rows[mapped.rejected], REJECT_CODE, mapped.reasons)]
            )
            batch = batch.filter(pa.array(keep))
            keys, processed, content = keys[keep], processed[keep], content[keep]
        issues = mapped.warnings
        if decoded.duplicate_keys:
            issues = (
                *issues,
                Issue(
                    DUPLICATE_KEY_CODE,
                    "A line has two equal keys in one object; the last one counts.",
                    decoded.duplicate_keys,
                    decoded.duplicate_key_sample,
                ),
            )
        return _Converted(
            decoded.lines,
            decoded.blank,
            batch,
            rejects,
            keys,
            processed,
            content,
            issues,
            decoded.last_line_rejected,
        )


@contextlib.contextmanager
def _spill(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        yield writer


def _copy(path: Path, stage: Stage, kept: NDArray[np.bool_] | None) -> int:
    """Write the spilled batches to `stage`, without the rows that are not kept; give the rows written."""
    read = written = 0
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            chosen = batch
            if kept is not None:
                keep = kept[read : read + batch.num_rows]
                if not keep.all():
                    chosen = batch.filter(pa.array(keep))
            read += batch.num_rows
            written += chosen.num_rows
            stage.write(chosen)
    path.unlink()
    return written


def _rejects_batch(rejects: list[LineReject], lines_before: int) -> pa.RecordBatch:
    """Rejects as rows; the loop runs over rejects, not over rows."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([lines_before + reject.row + 1 for reject in rejects], type=pa.int64()),
            pa.array([_stage_of(reject) for reject in rejects], type=pa.string()),
            pa.array([reject.code for reject in rejects], type=pa.string()),
            pa.array([reject.reason for reject in rejects], type=pa.string()),
            pa.array([reject.raw.decode("utf-8", "backslashreplace") for reject in rejects], type=pa.string()),
        ],
        schema=REJECTS_SCHEMA,
    )


def _stage_of(reject: LineReject) -> str:
    return "map" if reject.code == REJECT_CODE else "decode"
