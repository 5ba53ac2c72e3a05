"""One day: the bytes of its export to staged rows and rejects. Commits nothing, changes nothing that anybody sees.

    export → spool → pieces → decode → map → spill → deduplicate → stage

The export runs on the event loop. Everything behind the spool runs on threads: one a day that inflates the body into
pieces and writes the rows to the target, and a few that decode and map pieces, each into spill files of its own. The
rows of a day wait in these until the export has proved whole and the duplicates are known; only then does the target
hear of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from worker import duck, events
from worker.errors import ExportBrokenError, RejectLimitError, ResourceError
from worker.mapping.context import Context
from worker.mapping.mapper import REJECT_CODE
from worker.memory import give_memory_back
from worker.mixpanel.body import OversizedLine, is_sentinel
from worker.mixpanel.decode import Decoder, LineReject, NotPlainError
from worker.mixpanel.deduplicate import Deduplicator
from worker.mixpanel.pieces import PieceFiles, read_pieces
from worker.mixpanel.spool import ExportAbandonedError, Spool
from worker.model import Issue, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from datetime import datetime
    from types import TracebackType

    from numpy.typing import NDArray

    from worker.events import Listener
    from worker.mapping.mapper import Mapper
    from worker.mixpanel.body import Piece
    from worker.mixpanel.decode import Decoded
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
HASHED_ROWS = 32_768
"""Rows of one key that are compared together: a query costs as much as some thousand of them."""
TRIM_PIECES = 8
"""So many pieces leave some MiB in holes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How WORKER_MAX_MEMORY_BYTES is shared out: the one place where memory is bounded.

    The interpreter and its libraries take about 200 MiB, each thread that decodes up to twice a piece of large lines,
    the row groups being written about 64 MiB. Pieces and rows that wait lie on disk.
    """

    piece_bytes: int
    block_bytes: int
    pieces: int
    key_bytes: int
    line_bytes: int
    raw_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        large = settings.max_memory_bytes >= 512 << 20
        return cls(
            # DuckDB reads 32 MiB at once, and a piece ends at the first line end from here on
            piece_bytes=(31 << 20) if large else (8 << 20),
            block_bytes=(8 << 20) if large else (4 << 20),
            pieces=settings.processors + 2,
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
    reject_codes: Mapping[str, int]

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


@dataclass(slots=True)
class _Issues:
    """Issues of the same code and message, added up; the sample is the first one's."""

    counted: dict[tuple[str, str], Issue] = field(default_factory=dict)

    def add(self, issue: Issue) -> None:
        key = (issue.code, issue.message)
        known = self.counted.get(key)
        self.counted[key] = issue if known is None else replace(known, count=known.count + issue.count)


@dataclass(slots=True)
class _Converted:
    """A piece, decoded and mapped: its rows and rejects lie in spill files, `keys` and `processed` go with the rows."""

    rows: Path
    rejects: Path
    lines: int = 0
    blank: int = 0
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    keys: list[NDArray[np.uint64]] = field(default_factory=list)
    processed: list[NDArray[np.int64]] = field(default_factory=list)
    issues: _Issues = field(default_factory=_Issues)
    last_line_rejected: bool = False


class Pipeline:
    """Stages days. One instance serves a whole process; use as a context manager."""

    def __init__(self, settings: Settings, exports: Exports, listener: Listener) -> None:
        self._settings = settings
        self._exports = exports
        self._listener = listener
        self._budget = Budget.of(settings)
        self._pool = ThreadPoolExecutor(settings.processors, thread_name_prefix="decode")
        self._exporting = asyncio.Lock()
        self._turns = _Turns()
        self._files = PieceFiles(settings.spool, self._budget.pieces, f"piece-{token_hex(4)}")
        self._days = 0
        self._converter: _Converter | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._files.remove()
        self._closing.close()

    def _converter_of(self, mapper: Mapper) -> _Converter:
        """Days of one flow share their decoders, which are heavy."""
        if self._converter is None or self._converter.mapper is not mapper:
            self._converter = _Converter(mapper, self._budget)
            self._closing.callback(self._converter.close)
        return self._converter

    async def stage_day(self, plan: DayPlan, load: Load, attempt: int, exported_at: datetime) -> StagedDay:
        """Export the day of `load` once and stage what it holds.

        `exported_at` is a moment not after the request. Exports follow one another in the order of the calls, while the
        work behind them overlaps. Raises SourceError (`retry` says whether another attempt may help), RejectLimitError,
        SinkError, ResourceError. Leaves nothing behind when it raises or is cancelled.
        """
        folder = self._settings.spool
        self._days += 1
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (
                tempfile.TemporaryDirectory(prefix=f"{load.day}-", dir=folder) as own,
                Spool(Path(own) / "export") as spool,
            ):
                converter = self._converter_of(plan.mapper)
                work = _DayWork(
                    self._budget,
                    self._pool,
                    self._turns,
                    self._files,
                    converter,
                    self._listener,
                    plan,
                    load,
                    spool,
                    Path(own),
                )
                return await self._export_and_work(plan, load, attempt, spool, work, exported_at)
        except OSError as error:
            raise ResourceError(
                f"The spool folder {folder} cannot be used: {error.strerror or error}.",
                advice="Free some disk, or let WORKER_SPOOL name a folder with room that the worker may write to.",
            ) from error
        finally:
            self._days -= 1
            if not self._days:
                self._files.remove()

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


class _Turns:
    """What the days of a process do one after another: side by side they would all end late, and take more memory."""

    def __init__(self) -> None:
        self.reading = threading.Lock()
        self.finishing = threading.Lock()


class _DayWork:
    """The blocking side of one day, on a thread of its own."""

    def __init__(
        self,
        budget: Budget,
        pool: ThreadPoolExecutor,
        turns: _Turns,
        files: PieceFiles,
        converter: _Converter,
        listener: Listener,
        plan: DayPlan,
        load: Load,
        spool: Spool,
        folder: Path,
    ) -> None:
        self._budget = budget
        self._pool = pool
        self._turns = turns
        self._files = files
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
        spilled: list[_Converted] = []
        with Deduplicator(self._folder, self._budget.key_bytes) as duplicates:
            for piece in self._converted(exported_at):
                if deduplicate:
                    for keys, processed in zip(piece.keys, piece.processed, strict=True):
                        duplicates.add(keys, processed)
                piece.keys, piece.processed = [], []
                spilled.append(piece)
            with self._turns.finishing:
                give_memory_back()
                staged = self._finish(spilled, duplicates if deduplicate else None, exported_at)
        output = staged.tally.output
        self._listener(events.DayStaged(self._load, output, staged.output_bytes, time.monotonic() - started))
        return staged

    def _finish(self, pieces: list[_Converted], duplicates: Deduplicator | None, exported_at: datetime) -> StagedDay:
        """Count and stage what has been decoded."""
        issues = _Issues()
        for issue in chain.from_iterable(piece.issues.counted.values() for piece in pieces):
            issues.add(issue)
        blank = sum(piece.blank for piece in pieces)
        failed = sum(piece.failed for piece in pieces)
        lines = self._lines
        if failed and failed + blank == lines:
            raise ExportBrokenError("No line of the export is an event.", reason="no_events")
        self._check_rejects(failed, lines - blank)
        rows = _Spilled([piece.rows for piece in pieces])
        rejects = _Spilled([piece.rejects for piece in pieces])
        kept = None if duplicates is None else duplicates.kept(rows.contents)
        dropped = 0 if kept is None else int(len(kept) - np.count_nonzero(kept))
        tally = Tally(
            input=lines,
            output=lines - blank - failed - dropped,
            failed=failed,
            skipped=blank,
            deduplicated=dropped,
            warnings=sum(issue.count for issue in issues.counted.values()),
        )
        codes = sum((piece.codes for piece in pieces), Counter[str]())
        return self._stage(rows, rejects, kept, tally, issues, codes, exported_at)

    def _check_rejects(self, failed: int, lines: int) -> None:
        limit = self._plan.options.partial_ingestion_percent
        if limit is None or not failed or failed * 100 <= limit * lines:
            return
        raise RejectLimitError(
            f"{failed} of {lines} rows of {self._load.day} were rejected, {failed * 100 / lines:.3g} percent; "
            f"the flow accepts {limit:g}.",
            advice="The day was not committed. `preview` shows what is wrong; the limit is partialIngestionPercent.",
        )

    def _converted(self, exported_at: datetime) -> Iterator[_Converted]:
        """The pieces of the export in order, decoded and mapped by the pool a few at a time."""
        context = Context.of(self._plan.source, exported_at)
        files = self._files
        under_way: deque[tuple[Piece | OversizedLine, Future[_Converted]]] = deque()
        try:
            with self._turns.reading:
                for number, piece in enumerate(
                    read_pieces(
                        self._spool,
                        files,
                        piece_bytes=self._budget.piece_bytes,
                        max_line_bytes=self._budget.line_bytes,
                        max_raw_bytes=self._budget.raw_bytes,
                    )
                ):
                    outputs = _Converted(self._folder / f"rows-{number}", self._folder / f"rejects-{number}")
                    under_way.append((piece, self._pool.submit(self._converter, piece, files, outputs, context)))
                    while under_way and under_way[0][1].done():
                        yield self._counted(under_way.popleft()[1].result())
                    if number % TRIM_PIECES == TRIM_PIECES - 1:
                        give_memory_back()
            while under_way:
                yield self._counted(under_way.popleft()[1].result())
        finally:
            left = []
            for piece, future in under_way:
                if not future.cancel():
                    left.append(future)
                elif not isinstance(piece, OversizedLine):
                    files.give_back(piece.path)
            wait(left)

    def _counted(self, piece: _Converted) -> _Converted:
        self._lines += piece.lines
        self._tell()
        return piece

    def _stage(
        self,
        spilled_rows: _Spilled,
        spilled_rejects: _Spilled,
        kept: NDArray[np.bool_] | None,
        tally: Tally,
        issues: _Issues,
        codes: Mapping[str, int],
        exported_at: datetime,
    ) -> StagedDay:
        rows = self._plan.sink.stage(self._plan.rows_table, self._load)
        try:
            rejects = self._plan.sink.stage(self._plan.rejects_table, self._load)
            try:
                written = spilled_rows.copy_to(rows, kept)
                spilled_rejects.copy_to(rejects, None)
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
            codes,
        )


class _Converter:
    """Decodes and maps pieces; called by the threads of the pool, each with a decoder of its own."""

    def __init__(self, mapper: Mapper, budget: Budget) -> None:
        self.mapper = mapper
        self._budget = budget
        # a decoder holds a file, which does not go with its thread
        self._decoders = contextlib.ExitStack()
        self._own = threading.local()

    def __call__(
        self, piece: Piece | OversizedLine, files: PieceFiles, converted: _Converted, context: Context
    ) -> _Converted:
        """Fill `converted` and give the file of the piece back. Raises ExportBrokenError."""
        if isinstance(piece, OversizedLine):
            self._convert([self._decoder().decode(piece)], piece.first_line, converted, context)
            return converted
        try:
            converted = self._decoded(self._decoder(), piece, converted, context)
        finally:
            files.give_back(piece.path)
        if piece.unterminated and converted.last_line_rejected:
            raise ExportBrokenError("The export ends inside a line.", reason="truncated_line")
        return converted

    def close(self) -> None:
        """Close the decoders; no thread uses one any more."""
        self._decoders.close()

    def _decoder(self) -> Decoder:
        decoder: Decoder | None = getattr(self._own, "decoder", None)
        if decoder is None:
            decoder = self._own.decoder = Decoder(
                self.mapper.paths,
                max_line_bytes=self._budget.line_bytes,
                max_raw_bytes=self._budget.raw_bytes,
                kinds_of=self.mapper.kinds_of,
                rounded=self.mapper.rounded,
            )
            self._decoders.callback(decoder.close)
        return decoder

    def _decoded(self, decoder: Decoder, piece: Piece, converted: _Converted, context: Context) -> _Converted:
        if piece.plain:
            try:
                with contextlib.closing(decoder.decode_piece(piece)) as parts:
                    self._convert(parts, piece.first_line, converted, context)
            except NotPlainError:
                converted = _Converted(converted.rows, converted.rejects)
            else:
                return converted
        blocks = decoder.decode_blocks(piece, self._budget.block_bytes)
        self._convert(blocks, piece.first_line, converted, context)
        assert converted.lines == piece.lines, f"{converted.lines} of {piece.lines} lines were decoded"
        return converted

    def _convert(self, parts: Iterable[Decoded], first_line: int, converted: _Converted, context: Context) -> None:
        wanted = len(self.mapper.paths)
        with (
            _spill(converted.rows, self.mapper.schema) as rows,
            _spill(converted.rejects, REJECTS_SCHEMA) as rejects,
        ):
            for decoded in parts:
                refused = list(decoded.rejects)
                for reject in refused:
                    if is_sentinel(reject.raw):
                        raise ExportBrokenError(
                            "Mixpanel ended the export before its end: "
                            f"{reject.raw[:100].decode('utf-8', 'replace')!r}.",
                            reason="terminated_early",
                        )
                start = 0
                for mapped in self.mapper.map_parts(decoded.texts[:wanted], decoded.kinds[:wanted], context):
                    batch = mapped.batch
                    end = start + batch.num_rows
                    keys, processed = decoded.keys[start:end], decoded.processed[start:end]
                    if len(mapped.rejected):
                        keep = np.ones(batch.num_rows, dtype=bool)
                        keep[mapped.rejected] = False
                        refused += decoded.refused(
                            mapped.rejected + start, REJECT_CODE, mapped.reasons, self._budget.raw_bytes
                        )
                        batch = batch.filter(pa.array(keep))
                        keys, processed = keys[keep], processed[keep]
                    if batch.num_rows:
                        rows.write_batch(batch)
                        converted.keys.append(keys)
                        converted.processed.append(processed)
                    for issue in mapped.warnings:
                        converted.issues.add(issue)
                    start = end
                if refused:
                    rejects.write_batch(_rejects_batch(sorted(refused), first_line + converted.lines))
                if decoded.duplicate_keys:
                    converted.issues.add(
                        Issue(
                            DUPLICATE_KEY_CODE,
                            "A line has two equal keys in one object; the last one counts.",
                            decoded.duplicate_keys,
                            decoded.duplicate_key_sample,
                        )
                    )
                converted.blank += decoded.blank
                converted.failed += len(refused)
                converted.codes.update(reject.code for reject in refused)
                converted.lines += decoded.lines
                converted.last_line_rejected = decoded.last_line_rejected


@contextlib.contextmanager
def _spill(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        yield writer


class _Spilled:
    """Rows of a day in spill files, counted through from the first."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def copy_to(self, stage: Stage, kept: NDArray[np.bool_] | None) -> int:
        """Write the rows to `stage`, without those that are not kept, and remove the files; give the rows written."""
        read = written = 0
        for path in self._paths:
            for batch in _batches(path):
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

    def contents(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """64 bits for what each of these rows holds; `rows` ascend."""
        hashes = [np.empty(0, dtype=np.uint64)]
        with duck.cursor() as cursor:
            for chosen in self._tables_of(rows):
                cursor.register("chosen", chosen)
                hashed = cursor.sql("select hash(*columns(*)) as content from chosen").to_arrow_table()
                hashes.append(np.asarray(hashed["content"]))
        return np.concatenate(hashes)

    def _tables_of(self, rows: NDArray[np.int64]) -> Iterator[pa.Table]:
        """These rows, in tables of some thousand; `rows` ascend."""
        read = held = 0
        parts: list[pa.RecordBatch] = []
        for batch in chain.from_iterable(map(_batches, self._paths)):
            first, end = np.searchsorted(rows, [read, read + batch.num_rows])
            if first < end:
                parts.append(batch.take(pa.array(rows[first:end] - read, type=pa.int64())))
                held += parts[-1].num_rows
            read += batch.num_rows
            if held >= HASHED_ROWS:
                yield pa.Table.from_batches(parts)
                parts, held = [], 0
        if parts:
            yield pa.Table.from_batches(parts)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        yield from batches


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
