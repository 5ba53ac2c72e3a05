"""Delta Lake tables on a local file system: one table per dataset, partitioned by `mp_date`, one commit per day.

A day's files are written to `_staged`, where neither readers nor VACUUM look, move to the partition just before the
commit, and become rows by one entry of the table's log. That entry removes the day's old files, adds the new ones, and
holds the generation (a `txn` action, which lives as long as the table) and the receipt (commit information, which goes
when somebody cleans old log entries; `landed` then gives what the table itself still says).

Replaced files stay for time travel until somebody runs VACUUM, and so do the few that a crash leaves between move and
commit. What a crash leaves in `_staged` is removed when the day is staged again.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from worker.errors import (
    CommitUnknownError,
    ConfigurationError,
    OwnerConflictError,
    ResourceError,
    SchemaConflictError,
    SinkError,
    StaleGenerationError,
    WorkerError,
)
from worker.model import DAY_COLUMN, Receipt, Tally
from worker.sinks.receipts import receipt_from_json, receipt_to_json
from worker.sinks.schema import widened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from deltalake.transaction import RemoveAction

    from worker.model import Load
    from worker.sinks.base import Table

OWNER_PROPERTY = "mixpanelWorker.flowId"
"""The table property that holds the id of the flow that the table belongs to."""
RECEIPT_KEY = "mixpanelWorker.receipt"
"""The key in the commit information (`history`) that holds the receipt as JSON."""

# CPU seconds per million rows of eleven columns: zstd level 1 in groups of 64 Ki rows 0.63, of 128 Ki 0.58, of 512 Ki
# 0.53; level 3 takes 0.84 and saves no byte. A dictionary only where values repeat takes it from 0.58 to 0.50.
_COMPRESSION_LEVEL = 1
_GROUP_ROWS = 64 * 1024
_GROUP_BYTES = 32 * 1024 * 1024
_FILE_BYTES = 256 * 1024 * 1024
_LANES = 2
_DICTIONARY_SAMPLE_ROWS = 16 * 1024
_DICTIONARY_DISTINCT_SHARE = 0.8

_ATTEMPTS = 20
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 1.0

_HISTORY_LIMITS = (16, 1024, None)
_DESCRIPTION_CHARACTERS = 4000
_STATISTICS_COLUMNS = 32
_STATISTICS_CHARACTERS = 32

_STAGED_FOLDER = "_staged"
_FILE_NAME = re.compile(r"(?P<generation>\d+)-(?P<batch_id>\w+)-[0-9a-f]{8}-\d+\.parquet")
_EPOCH = datetime.fromtimestamp(0, UTC)
_ONCE = CommitProperties(max_commit_retries=0)


class DeltaSink:
    """Delta tables under the folder `lake`, which is created with the first table."""

    def __init__(self, lake: str) -> None:
        if "://" in lake:
            raise ConfigurationError(f"The lake {lake} is not a folder.", advice="Give a path on this machine.")
        self._lake = Path(lake).absolute()
        self._receipts = _Receipts()

    def prepare(self, table: Table) -> None:
        folder = self._folder(table.name)
        for attempt in range(_ATTEMPTS):
            _pause_before(attempt)
            with _translated(f"Table {table.name} could not be prepared"), suppress(CommitFailedError):
                live = _open(folder)
                if live is None:
                    _create(folder, table)
                else:
                    _widen(live, table)
                return
        raise SinkError(
            f"Table {table.name} could not be prepared: somebody else wrote to it {_ATTEMPTS} times meanwhile.",
            advice="Find out who else writes to it.",
        )

    def stage(self, table: Table, load: Load) -> DeltaStage:
        folder = self._folder(table.name)
        with _translated(f"Table {table.name}: {load.day} could not be staged"):
            _remove_staged_before(folder, load.day, load.generation)
        return DeltaStage(folder, table, load, self._receipts)

    def landed(self, table_name: str, flow_id: str, day: date) -> Receipt | None:
        folder = self._folder(table_name)
        with _translated(f"Table {table_name} could not be read"):
            live = _open(folder)
            return None if live is None else self._receipts.newest(live, flow_id, day)

    def receipts(self, table_name: str, flow_id: str) -> list[Receipt]:
        folder = self._folder(table_name)
        with _translated(f"Table {table_name} could not be read"):
            live = _open(folder)
            if live is None:
                return []
            days = self._receipts.days(live, flow_id)
            days.update(date.fromisoformat(str(partition[DAY_COLUMN])) for partition in live.partitions())
            found = [self._receipts.newest(live, flow_id, day) for day in sorted(days)]
        return [receipt for receipt in found if receipt is not None]

    def _folder(self, table_name: str) -> Path:
        folder = self._lake / table_name
        if folder.parent != self._lake or table_name.startswith((".", "_")) or "\0" in table_name:
            raise SinkError(f"{table_name!r} cannot be the name of a table.", advice="Use letters, digits and '-'.")
        # deltalake 1.6.6 decodes the path of a table twice, and writes its log into another folder.
        if "%" in str(folder):
            raise SinkError(f"The path {folder} holds a '%'.", advice="Choose a path for the lake without it.")
        return folder


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the stage, complete and durable."""

    staged: Path
    final: Path
    row_count: int
    size_bytes: int
    statistics: str


class DeltaStage:
    """One load of one table, in memory up to a row group or two and in `_staged` beyond.

    Row groups are encoded on threads, each of which writes files of its own, one group at a time.
    """

    def __init__(self, folder: Path, table: Table, load: Load, receipts: _Receipts) -> None:
        self._folder = folder
        self._table = table
        self._load = load
        self._receipts = receipts
        # The token keeps two stages of one load apart: no file is ever written twice.
        self._prefix = f"{load.generation:08d}-{load.batch_id}-{token_hex(4)}"
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._dictionary_columns: list[str] | None = None
        self._encoders = ThreadPoolExecutor(_LANES, thread_name_prefix="encode")
        self._lanes = [_Lane() for _ in range(_LANES)]
        self._file_count = 0
        self._files: list[_File] = []
        self._may_have_landed = False

    def write(self, batch: pa.RecordBatch) -> None:
        rows = self._pending_rows + batch.num_rows
        if rows > _GROUP_ROWS or self._pending_bytes + batch.nbytes > _GROUP_BYTES:
            with _translated(f"{self._name} could not be staged"):
                self._write_group()
        if batch.num_rows:
            self._pending.append(batch)
            self._pending_rows += batch.num_rows
            self._pending_bytes += batch.nbytes

    def seal(self) -> tuple[int, int]:
        with _translated(f"{self._name} could not be staged"):
            self._write_group()
            for lane in self._lanes:
                self._finish_file(lane)
        self._encoders.shutdown()
        return sum(file.size_bytes for file in self._files), len(self._files)

    def commit(self, receipt: Receipt) -> None:
        assert not self._pending, "a stage is sealed before it is committed"
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            _pause_before(attempt)
            try:
                with _translated(f"{self._name} could not be committed"):
                    live = self._table_before_commit()
                    if live is None:
                        return
            except (StaleGenerationError, OwnerConflictError, SchemaConflictError):
                raise
            except Exception as error:
                if self._may_have_landed:
                    raise CommitUnknownError(
                        f"{self._name}: whether the commit landed is not known: {_text(error)}"
                    ) from error
                raise
            if failure is not None:
                raise SinkError(f"{self._name} could not be committed: {_text(failure)}") from failure
            with _translated(f"{self._name} could not be committed"):
                self._move_files()
                actions: list[AddAction | RemoveAction] = [self._add_action(file) for file in self._files]
            self._may_have_landed = True
            try:
                live.create_write_transaction(
                    actions,
                    mode="overwrite",
                    schema=live.schema(),
                    partition_by=[DAY_COLUMN],
                    partition_filters=[(DAY_COLUMN, "=", self._load.day.isoformat())],
                    commit_properties=CommitProperties(
                        app_transactions=[Transaction(self._load.scope, self._load.generation)],
                        custom_metadata={RECEIPT_KEY: receipt_to_json(receipt)},
                        # A repeat inside of the library would not look at the generation again.
                        max_commit_retries=0,
                    ),
                    post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
                )
                _make_durable(self._folder, live.version() + 1)
            except CommitFailedError:
                continue
            except Exception as error:  # noqa: BLE001 whatever it is, only the table knows whether the commit landed
                failure = error
            else:
                return
        raise SinkError(
            f"{self._name} could not be committed: somebody else wrote to the table {_ATTEMPTS} times meanwhile.",
            advice="Find out who else writes to it.",
        )

    def abandon(self) -> None:
        self._pending = []
        self._encoders.shutdown()
        paths = [path for file in self._files for path in (file.staged, file.final)]
        for lane in self._lanes:
            paths += lane.abandon()
        if not self._may_have_landed:
            for path in paths:
                with suppress(OSError):
                    path.unlink()

    @property
    def _name(self) -> str:
        return f"Table {self._table.name}: {self._load.day}"

    def _write_group(self) -> None:
        if not self._pending:
            return
        rows = pa.Table.from_batches(self._pending, self._table.schema)
        self._pending = []
        self._pending_rows = 0
        self._pending_bytes = 0
        if self._dictionary_columns is None:
            self._dictionary_columns = _repeating_columns(rows.slice(0, _DICTIONARY_SAMPLE_ROWS))
        # the last one to be free got its group first
        lane = self._lanes[0]
        self._lanes.append(self._lanes.pop(0))
        lane.wait()
        if lane.output is not None and lane.output.size_bytes() >= _FILE_BYTES:
            self._finish_file(lane)
        if lane.output is None:
            staged = self._folder / _STAGED_FOLDER
            staged.mkdir(exist_ok=True)
            path = staged / f"{_partition(self._load.day)}-{self._prefix}-{self._file_count:05d}.staged"
            self._file_count += 1
            lane.output = _Output(path, self._table.schema, self._dictionary_columns)
        lane.writing = self._encoders.submit(lane.output.write, rows)

    def _finish_file(self, lane: _Lane) -> None:
        """Close the file of a lane, if it has one, and take note of it. Where that fails the lane keeps it."""
        lane.wait()
        output = lane.output
        if output is None:
            return
        output.close()
        _fsync(output.path)
        footer = pq.read_metadata(output.path)
        if footer.num_rows != output.row_count:
            raise SinkError(f"{output.path} holds {footer.num_rows} rows, and {output.row_count} were written to it.")
        final = self._folder / _partition(self._load.day) / f"{self._prefix}-{len(self._files):05d}.parquet"
        statistics = _statistics(footer, self._table.schema)
        self._files.append(_File(output.path, final, output.row_count, output.path.stat().st_size, statistics))
        lane.output = None

    def _table_before_commit(self) -> DeltaTable | None:
        """The table as it is now, to commit on exactly this version; None when this batch landed already."""
        load = self._load
        live = _open(self._folder)
        if live is None:
            raise SinkError(f"{self._folder} does not exist any more.")
        generation = live.transaction_version(load.scope)
        if generation is not None and generation >= load.generation:
            newest = self._receipts.newest(live, load.flow_id, load.day)
            assert newest is not None
            if (newest.generation, newest.batch_id) == (load.generation, load.batch_id):
                return None
            raise StaleGenerationError(
                f"{self._name} holds generation {newest.generation} (batch {newest.batch_id or 'unknown'}), which"
                f" generation {load.generation} (batch {load.batch_id}) may not replace."
            )
        self._may_have_landed = False
        _require_owner(live, self._table)
        present = _columns(live)
        if not widened(self._table.name, present, self._table.schema).equals(present):
            raise SchemaConflictError(
                f"{self._name}: somebody has removed columns from the table since the run began.",
                advice="Run the flow again: it adds them.",
            )
        return live

    def _move_files(self) -> None:
        """Bring the files, after a look at each, to where the commit says they are; harmless when they are there."""
        if not self._files:
            return
        partition = self._files[0].final.parent
        partition.mkdir(exist_ok=True)
        for file in self._files:
            present = file.staged if file.staged.exists() else file.final
            try:
                size_bytes = present.stat().st_size
            except FileNotFoundError:
                raise SinkError(f"{self._name}: the staged file {file.staged} is gone.") from None
            if size_bytes != file.size_bytes:
                raise SinkError(f"{self._name}: {present} has {size_bytes} bytes, and had {file.size_bytes}.")
            present.rename(file.final)
        _fsync(partition)
        _fsync(self._folder)

    def _add_action(self, file: _File) -> AddAction:
        return AddAction(
            path=file.final.relative_to(self._folder).as_posix(),
            size=file.size_bytes,
            partition_values={DAY_COLUMN: self._load.day.isoformat()},
            modification_time=int(file.final.stat().st_mtime * 1000),
            data_change=True,
            stats=file.statistics,
        )


@dataclass(slots=True)
class _Lane:
    """The file that one thread writes, and the row group that it writes now."""

    output: _Output | None = None
    writing: Future[None] | None = None

    def wait(self) -> None:
        """Raises what went wrong with the last group."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def abandon(self) -> list[Path]:
        """Close the file without asking how it went; nothing may be writing to it. Gives its path."""
        if self.output is None:
            return []
        with suppress(OSError):
            self.output.close()
        return [self.output.path]


class _Output:
    """A Parquet file that is being written."""

    def __init__(self, path: Path, schema: pa.Schema, dictionary_columns: list[str]) -> None:
        self.path = path
        self.row_count = 0
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=dictionary_columns,  # type: ignore[arg-type]  # the stubs only know True and False
        )

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=_GROUP_ROWS)
        self.row_count += rows.num_rows

    def size_bytes(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._writer.close()
        self._file.close()


class _Receipts:
    """Receipts found in the logs of tables, kept so that asking for many days reads a log once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, date], Receipt] = {}

    def newest(self, live: DeltaTable, flow_id: str, day: date) -> Receipt | None:
        """The receipt of the newest generation in `live`; without times, run and batch id where the log is cleaned."""
        generation = live.transaction_version(f"mixpanel-worker:{flow_id}:{day.isoformat()}")
        if generation is None:
            return None
        key = (str(live.metadata().id), flow_id, day)
        if not self._knows(key, generation):
            for limit in _HISTORY_LIMITS:
                self._read(key[0], live.history(limit))
                if self._knows(key, generation):
                    break
            else:
                return _rebuilt_receipt(live, flow_id, day, generation)
        return self._known[key]

    def days(self, live: DeltaTable, flow_id: str) -> set[date]:
        """The days of a flow that the table's history tells of."""
        table_id = str(live.metadata().id)
        self._read(table_id, live.history(None))
        return {day for table, flow, day in self._known if (table, flow) == (table_id, flow_id)}

    def _knows(self, key: tuple[str, str, date], generation: int) -> bool:
        return key in self._known and self._known[key].generation == generation

    def _read(self, table_id: str, commits: list[dict[str, Any]]) -> None:
        for commit in reversed(commits):
            if RECEIPT_KEY in commit:
                receipt = receipt_from_json(commit[RECEIPT_KEY])
                self._known[table_id, receipt.flow_id, receipt.day] = receipt


def _rebuilt_receipt(live: DeltaTable, flow_id: str, day: date, generation: int) -> Receipt:
    """What the day's files say. An empty day, and files that somebody compacted, do not tell the batch."""
    columns = ["path", "size_bytes", "modification_time", "num_records", "partition"]
    actions = pa.table(live.get_add_actions()).select(columns).to_pylist()
    files = [file for file in actions if file["partition"][DAY_COLUMN] == day]
    names = [_FILE_NAME.fullmatch(Path(file["path"]).name) for file in files]
    batch_ids = {name["batch_id"] for name in names if name is not None and int(name["generation"]) == generation}
    row_count = sum(file["num_records"] or 0 for file in files)
    written_at = max((_EPOCH + timedelta(milliseconds=file["modification_time"]) for file in files), default=_EPOCH)
    return Receipt(
        flow_id=flow_id,
        day=day,
        generation=generation,
        batch_id=batch_ids.pop() if len(batch_ids) == 1 else "",
        run_id="",
        exported_at=written_at,
        committed_at=written_at,
        tally=Tally(input=row_count, output=row_count),
        output_bytes=sum(file["size_bytes"] for file in files),
        file_count=len(files),
    )


def _partition(day: date) -> str:
    return f"{DAY_COLUMN}={day.isoformat()}"


def _open(folder: Path) -> DeltaTable | None:
    """The table as it is now, or None when there is none. What it gives survives a power cut."""
    try:
        live = DeltaTable(str(folder))
    except TableNotFoundError:
        # It says so of a folder that may not be read, too.
        with suppress(FileNotFoundError):
            os.scandir(folder / "_delta_log").close()
        return None
    _make_durable(folder, live.version())
    return live


def _create(folder: Path, table: Table) -> None:
    """Create the table; raises CommitFailedError when somebody else was faster."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(entry.name != "_delta_log" for entry in folder.iterdir()) and not DeltaTable.is_deltatable(str(folder)):
        raise SinkError(
            f"{folder} holds files and is not a Delta table.", advice="Move them away, or choose another dataset."
        )
    columns = widened(table.name, pa.schema([]), table.schema)
    schema = Schema.from_arrow(pa.schema([pa.field(DAY_COLUMN, pa.date32()), *columns]))
    try:
        DeltaTable.create(
            str(folder),
            schema,
            mode="error",
            partition_by=[DAY_COLUMN],
            description=table.notes[:_DESCRIPTION_CHARACTERS],
            configuration={OWNER_PROPERTY: table.flow_id},
            raise_if_key_not_exists=False,
            # A repeat inside of the library would put this schema and this owner over those of a faster process.
            commit_properties=_ONCE,
        )
    except DeltaError as error:
        if DeltaTable.is_deltatable(str(folder)):
            raise CommitFailedError(*error.args) from error
        raise
    _fsync(folder)
    _fsync(folder.parent)


def _widen(live: DeltaTable, table: Table) -> None:
    """Add what is new in `table` to `live`; raises CommitFailedError when somebody else wrote meanwhile."""
    _require_owner(live, table)
    present = _columns(live)
    wanted = widened(table.name, present, table.schema)
    grown = [field for field in wanted if field.name not in present.names or present.field(field.name) != field]
    if grown:
        live.alter.add_columns(Schema.from_arrow(pa.schema(grown)).fields, commit_properties=_ONCE)
    notes = table.notes[:_DESCRIPTION_CHARACTERS]
    if notes and notes != live.metadata().description:
        live.alter.set_table_description(notes, commit_properties=_ONCE)


def _require_owner(live: DeltaTable, table: Table) -> None:
    metadata = live.metadata()
    owner = metadata.configuration.get(OWNER_PROPERTY)
    if owner != table.flow_id:
        belongs = f"belongs to flow {owner}" if owner else "was not created by this worker"
        raise OwnerConflictError(
            f"Table {table.name} {belongs}; flow {table.flow_id} may not write to it.",
            advice=f"Give each flow a dataset of its own. The owner is the table property {OWNER_PROPERTY}.",
        )
    if metadata.partition_columns != [DAY_COLUMN]:
        raise SchemaConflictError(
            f"Table {table.name} is partitioned by {metadata.partition_columns}, not by {DAY_COLUMN}.",
            advice="Choose another dataset.",
        )


def _columns(live: DeltaTable) -> pa.Schema:
    """The columns of the table but the day column."""
    columns: pa.Schema = pa.schema(live.schema().to_arrow())  # type: ignore[arg-type]  # the stubs lack the C interface
    return pa.schema([column for column in columns if column.name != DAY_COLUMN])


def _remove_staged_before(folder: Path, day: date, generation: int) -> None:
    """Remove what dead loads of the day left. No version of the table refers to this folder."""
    with suppress(FileNotFoundError):
        for path in (folder / _STAGED_FOLDER).glob(f"{_partition(day)}-*.staged"):
            if int(path.name.removeprefix(f"{_partition(day)}-").partition("-")[0]) < generation:
                path.unlink(missing_ok=True)


def _repeating_columns(sample: pa.Table) -> list[str]:
    """The Parquet columns that a dictionary makes smaller: those whose values repeat, and all inside of lists."""
    while any(kinds.is_struct(field.type) for field in sample.schema):
        sample = sample.flatten()
    repeating = []
    for name, column in zip(sample.column_names, sample.columns, strict=True):
        paths = list(_parquet_paths(name, column.type))
        if paths != [name] or pc.count_distinct(column).as_py() <= _DICTIONARY_DISTINCT_SHARE * sample.num_rows:
            repeating += paths
    return repeating


def _parquet_paths(path: str, type_: pa.DataType) -> Iterator[str]:
    if isinstance(type_, pa.StructType):
        for field in type_:
            yield from _parquet_paths(f"{path}.{field.name}", field.type)
    elif isinstance(type_, pa.ListType):
        yield from _parquet_paths(f"{path}.list.element", type_.value_type)
    elif isinstance(type_, pa.MapType):
        yield from _parquet_paths(f"{path}.key_value.key", type_.key_type)
        yield from _parquet_paths(f"{path}.key_value.value", type_.item_type)
    else:
        yield path


def _statistics(footer: pq.FileMetaData, schema: pa.Schema) -> str:
    """The `stats` of an add action: what Delta readers skip files by, taken from the footer of a file."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    null_counts: dict[str, Any] = {}
    for number, (path, type_) in enumerate(_statistics_columns(schema)):
        chunks: list[Any] = [group.column(number).statistics for group in groups]
        if not path or any(chunk is None or chunk.null_count is None for chunk in chunks):
            continue
        _put(null_counts, path, sum(chunk.null_count for chunk in chunks))
        filled = [chunk for chunk in chunks if chunk.num_values]
        if filled and all(chunk.has_min_max for chunk in filled):
            low, high = _bounds(type_, filled)
            if low is not None and high is not None:
                _put(lowest, path, low)
                _put(highest, path, high)
    return orjson.dumps(
        {"numRecords": footer.num_rows, "minValues": lowest, "maxValues": highest, "nullCount": null_counts}
    ).decode()


def _statistics_columns(schema: pa.Schema) -> list[tuple[tuple[str, ...], pa.DataType]]:
    """The first Parquet columns in the order of the file. Those inside of lists and maps have statistics of their own
    kind, which Delta does not know: their path is empty."""

    def columns(
        fields: Iterable[pa.Field[Any]], parent: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
        for field in fields:
            if isinstance(field.type, pa.StructType):
                yield from columns(field.type, (*parent, field.name))
            elif kinds.is_nested(field.type):
                for _ in _parquet_paths("", field.type):
                    yield (), field.type
            else:
                yield (*parent, field.name), field.type

    return list(columns(schema, ()))[:_STATISTICS_COLUMNS]


def _bounds(type_: pa.DataType, chunks: list[Any]) -> tuple[Any, Any]:
    """The lowest and highest value as Delta writes them, or None where there is no safe bound.

    None for numbers with a fraction: Parquet leaves NaN out, and to Spark it is the greatest number.
    """
    if kinds.is_integer(type_):
        return min(chunk.min for chunk in chunks), max(chunk.max for chunk in chunks)
    if kinds.is_string(type_):
        low = min(chunk.min for chunk in chunks)[:_STATISTICS_CHARACTERS]
        high = max(chunk.max for chunk in chunks)
        cut = high if len(high) <= _STATISTICS_CHARACTERS else high[:_STATISTICS_CHARACTERS] + "\U0010ffff"
        return low, cut if cut >= high else None
    unit = {pa.date32(): "days", pa.timestamp("us", "UTC"): "microseconds"}.get(type_)
    if unit is None:
        return None, None
    try:
        low, high = (
            (_EPOCH + timedelta(**{unit: raw})).replace(tzinfo=None)
            for raw in (min(chunk.min_raw for chunk in chunks), max(chunk.max_raw for chunk in chunks))
        )
    except OverflowError:
        return None, None
    if unit == "days":
        return low.date().isoformat(), high.date().isoformat()
    return low.isoformat(timespec="microseconds") + "Z", high.isoformat(timespec="microseconds") + "Z"


def _put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _make_durable(folder: Path, version: int) -> None:
    """Bring an entry of the log to the disk, with its checkpoint: deltalake writes them and leaves that to chance.

    Whoever opens a table does this for the newest entry, whose writer may have been killed before it could: so nobody
    reports, or rests a new entry on, one that a power cut can take away.
    """
    log = folder / "_delta_log"
    for name in (f"{version:020d}.json", f"{version:020d}.checkpoint.parquet", "_last_checkpoint"):
        with suppress(FileNotFoundError):
            _fsync(log / name)
    _fsync(log)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pause_before(attempt: int) -> None:
    if attempt:
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt)
        time.sleep(random.uniform(0, longest))  # noqa: S311 it only keeps writers apart


@contextmanager
def _translated(what_failed: str) -> Iterator[None]:
    """Errors of the file system and of the libraries as errors of the worker."""
    try:
        yield
    except (WorkerError, CommitFailedError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"{what_failed}: {error}", advice="Make room on the disk.") from error
        raise SinkError(f"{what_failed}: {error}") from error
    except (DeltaError, pa.ArrowException) as error:
        raise SinkError(f"{what_failed}: {_text(error)}") from error


def _text(error: Exception) -> str:
    """The message without the stack of native frames that deltalake puts behind it."""
    return str(error).partition("\n   0:")[0]
