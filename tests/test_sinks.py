"""What every kind of target must do, and what only Delta tables can get wrong. F numbers: the fault catalogue."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from tests import support
from worker.errors import (
    CommitUnknownError,
    ConfigurationError,
    OwnerConflictError,
    ResourceError,
    SchemaConflictError,
    SinkError,
    StaleGenerationError,
)
from worker.model import Load, Receipt, Tally, flow_id_of
from worker.sinks import delta, open_sink
from worker.sinks.base import Sink, Stage, Table
from worker.sinks.memory import MemorySink
from worker.sinks.receipts import receipt_from_json, receipt_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]

ROOT = Path(__file__).parent.parent

FLOW_ID = flow_id_of("purchases")
DAY = date(2024, 1, 9)
NOON = datetime(2024, 1, 10, 12, 0, 0, 123456, tzinfo=UTC)


def columns_of(**types: pa.DataType) -> pa.Schema:
    return pa.schema(types)


PROPERTIES = pa.struct([("city", pa.string()), ("count", pa.int64())])
SCHEMA = columns_of(event=pa.string(), time=pa.timestamp("us", "UTC"), properties=PROPERTIES)
TABLE = Table("events", SCHEMA, FLOW_ID, notes="types by hand")


@dataclass
class Lake:
    """A place for tables that several processes could open: `open` gives a handle, `rows` what a reader sees."""

    kind: str
    folder: Path
    shared: MemorySink

    def open(self) -> Sink:
        return self.shared if self.kind == "memory" else open_sink("delta", str(self.folder))

    def rows(self, day: date = DAY, name: str = TABLE.name) -> list[Row]:
        if self.kind == "memory":
            return self.shared.rows(name, day).to_pylist()
        return delta_rows(self.folder / name, day)


def delta_columns(folder: Path) -> pa.Schema:
    schema: pa.Schema = pa.schema(DeltaTable(str(folder)).schema().to_arrow())  # type: ignore[arg-type]
    return schema


def delta_rows(folder: Path, day: date = DAY) -> list[Row]:
    """The rows of a day, read without the worker: the files that the log names, in the columns of the table."""
    columns = [field for field in delta_columns(folder) if field.name != "mp_date"]
    uris = DeltaTable(str(folder)).file_uris(file_pruning_predicate=[("mp_date", "=", day.isoformat())])
    paths = sorted(Path(unquote(uri)) for uri in uris)
    assert all(path.parent.name == f"mp_date={day}" for path in paths)
    rows = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns)).to_pylist()


@pytest.fixture(params=["memory", "delta"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(request.param, tmp_path / "lake", MemorySink())


@pytest.fixture
def delta_lake(tmp_path: Path) -> Lake:
    return Lake("delta", tmp_path / "lake", MemorySink())


def load_of(generation: int = 1, day: date = DAY, batch: str = "A") -> Load:
    return Load(FLOW_ID, day, generation, f"01HZ{batch}{generation:04d}", f"run-{generation}", NOON)


def receipt_of(load: Load, rows: int = 0) -> Receipt:
    return support.receipt_of(
        load, tally=Tally(input=rows + 3, output=rows, failed=1, skipped=1, deduplicated=1, warnings=7)
    )


def rows_of(*cities: str | None) -> list[Row]:
    return [
        {"event": "Buy", "time": NOON + timedelta(seconds=number), "properties": {"city": city, "count": number}}
        for number, city in enumerate(cities)
    ]


def batch_of(rows: list[Row], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def sealed(sink: Sink, load: Load, rows: list[Row], table: Table = TABLE) -> Stage:
    stage = sink.stage(table, load)
    if rows:
        stage.write(batch_of(rows, table.schema))
    stage.seal()
    return stage


def put(sink: Sink, load: Load, rows: list[Row], table: Table = TABLE) -> Receipt:
    """Stage and commit."""
    receipt = receipt_of(load, len(rows))
    sealed(sink, load, rows, table).commit(receipt)
    return receipt


def prepared(lake: Lake, table: Table = TABLE) -> Sink:
    sink = lake.open()
    sink.prepare(table)
    return sink


def cities(rows: list[Row]) -> list[str]:
    return [row["properties"]["city"] for row in rows]


def data_files(lake: Lake) -> list[Path]:
    """Every file under the table's folder that is not the log."""
    return sorted((lake.folder / TABLE.name).glob("[!_]*/*")) + staged_files(lake)


def staged_files(lake: Lake) -> list[Path]:
    return sorted((lake.folder / TABLE.name / "_staged").glob("*"))


# ---------------------------------------------------------------------------------------------------- conformance


def test_commit_makes_rows_visible_and_a_later_generation_replaces_them(lake: Lake) -> None:
    sink = prepared(lake)
    stage = sealed(sink, load_of(1), rows_of("Oslo", "Bern"))
    assert lake.rows() == []
    stage.commit(receipt_of(load_of(1), 2))
    assert lake.rows() == rows_of("Oslo", "Bern")
    put(sink, load_of(2), rows_of("Rome"))
    assert lake.rows() == rows_of("Rome")


def test_replaced_day_leaves_its_neighbours_alone(lake: Lake) -> None:
    sink = prepared(lake)
    days = [DAY + timedelta(days=number) for number in (-1, 0, 1)]
    for day in days:
        put(sink, load_of(1, day), rows_of(day.isoformat()))
    put(sink, load_of(2), rows_of("new"))
    assert [cities(lake.rows(day)) for day in days] == [["2024-01-08"], ["new"], ["2024-01-10"]]


def test_seal_counts_bytes_and_files(lake: Lake) -> None:
    sink = prepared(lake)
    stage = sink.stage(TABLE, load_of())
    stage.write(batch_of(rows_of("Oslo")))
    stage.write(batch_of(rows_of("Bern")))
    size_bytes, file_count = stage.seal()
    assert size_bytes > 0
    assert file_count == 1
    assert sink.stage(TABLE, load_of(2)).seal() == (0, 0)


def test_f101_repeat_of_a_commit_changes_nothing(lake: Lake) -> None:
    sink = prepared(lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))
    stage.commit(receipt_of(load_of(), 1))
    stage.commit(receipt_of(load_of(), 1))
    stage.abandon()
    twin = sealed(lake.open(), load_of(), rows_of("Bern"))
    twin.commit(receipt_of(load_of(), 1))
    twin.abandon()
    assert lake.rows() == rows_of("Oslo")
    if lake.kind == "delta":
        assert DeltaTable(str(lake.folder / TABLE.name)).version() == 1
        assert len(data_files(lake)) == 1


@pytest.mark.parametrize("late", [load_of(1), load_of(2, batch="B")], ids=["older", "equal, of another batch"])
def test_f85_f110_late_generation_is_refused(lake: Lake, late: Load) -> None:
    sink = prepared(lake)
    stage = sealed(sink, late, rows_of("late"))
    receipt = put(lake.open(), load_of(2), rows_of("newer"))
    with pytest.raises(StaleGenerationError, match="generation 2"):
        stage.commit(receipt_of(late, 1))
    stage.abandon()
    assert lake.rows() == rows_of("newer")
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY) == receipt
    assert lake.kind == "memory" or len(data_files(lake)) == 1


def test_abandoned_stage_is_never_seen_and_leaves_nothing(lake: Lake) -> None:
    sink = prepared(lake)
    put(sink, load_of(1), rows_of("Oslo"))
    before = data_files(lake)
    unsealed = sink.stage(TABLE, load_of(2))
    unsealed.write(batch_of(rows_of("Bern")))
    stages = [unsealed, sealed(sink, load_of(3), rows_of("Rome")), sink.stage(TABLE, load_of(4))]
    assert lake.rows() == rows_of("Oslo")
    for stage in stages:
        stage.abandon()
        stage.abandon()
    assert lake.rows() == rows_of("Oslo")
    assert data_files(lake) == before


def test_f109_landed_tells_what_is_in_the_target(lake: Lake) -> None:
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY) is None
    sink = prepared(lake)
    assert sink.landed(TABLE.name, FLOW_ID, DAY) is None
    stage = sealed(sink, load_of(1), rows_of("Oslo"))
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY) is None
    stage.commit(receipt_of(load_of(1), 1))
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY) == receipt_of(load_of(1), 1)
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY + timedelta(days=1)) is None
    assert lake.open().landed(TABLE.name, flow_id_of("other"), DAY) is None
    empty = put(sink, load_of(2), [])
    assert sink.landed(TABLE.name, FLOW_ID, DAY) == empty
    assert lake.open().landed(TABLE.name, FLOW_ID, DAY) == empty


def test_empty_day_removes_rows_and_moves_the_fence(lake: Lake) -> None:
    sink = prepared(lake)
    put(sink, load_of(1), rows_of("Oslo"))
    late = sealed(sink, load_of(2), rows_of("late"))
    put(sink, load_of(3), [])
    assert lake.rows() == []
    with pytest.raises(StaleGenerationError):
        late.commit(receipt_of(load_of(2), 1))
    assert lake.rows() == []


def test_f112_schema_grows_and_old_rows_read_null(lake: Lake) -> None:
    sink = prepared(lake)
    put(sink, load_of(1), rows_of("Oslo"))
    grown = Table(
        TABLE.name,
        pa.schema(
            [
                ("plan", pa.string()),
                ("properties", pa.struct([("zip", pa.string()), *PROPERTIES])),
                ("tags", pa.list_(pa.struct([("name", pa.string())]))),
            ]
        ),
        FLOW_ID,
    )
    sink = prepared(lake, grown)
    sink.prepare(grown)
    new_row = {"plan": "pro", "properties": {"zip": "0150", "city": "Oslo", "count": 1}, "tags": [{"name": "a"}]}
    put(sink, load_of(1, DAY + timedelta(days=1)), [new_row], grown)
    old_row = rows_of("Oslo")[0]
    assert lake.rows() == [
        old_row | {"properties": old_row["properties"] | {"zip": None}, "plan": None, "tags": None},
    ]
    assert lake.rows(DAY + timedelta(days=1)) == [{"event": None, "time": None, **new_row}]
    twice_grown = replace(grown, schema=pa.schema([("tags", pa.list_(pa.struct([("rank", pa.int64())])))]))
    sink = prepared(lake, twice_grown)
    put(sink, load_of(2, DAY + timedelta(days=1)), [{"tags": [{"rank": 1}]}], twice_grown)
    assert lake.rows(DAY + timedelta(days=1))[0]["tags"] == [{"name": None, "rank": 1}]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.field("event", pa.int64()), "event is string in the table and int64"),
        (pa.field("properties", pa.string()), r"properties is struct<.*> in the table and string"),
        (pa.field("event", pa.struct([("name", pa.string())])), "event is string in the table and struct"),
        (
            pa.field("properties", pa.struct([("count", pa.float64())])),
            "properties.count is int64 in the table and double",
        ),
        (pa.field("Event", pa.string()), "event and Event differ only in case"),
        (pa.field("properties", pa.struct([("City", pa.string())])), "properties.city and properties.City differ"),
        (pa.field("mp_date", pa.date32()), "mp_date of the mapping set takes the place"),
        (pa.field("at", pa.timestamp("ns")), r"at has the type timestamp\[ns\]"),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.Field) else "",
)
def test_f112_column_that_does_not_fit_is_a_conflict(lake: Lake, column: pa.Field[Any], message: str) -> None:
    sink = prepared(lake)
    put(sink, load_of(1), rows_of("Oslo"))
    with pytest.raises(SchemaConflictError, match=message) as caught:
        lake.open().prepare(replace(TABLE, schema=pa.schema([column])))
    assert caught.value.advice
    assert lake.rows() == rows_of("Oslo")


def test_table_of_another_flow_is_refused(lake: Lake) -> None:
    put(prepared(lake), load_of(1), rows_of("Oslo"))
    other = flow_id_of("other")
    with pytest.raises(OwnerConflictError, match=f"{FLOW_ID}.*{other}") as caught:
        lake.open().prepare(replace(TABLE, flow_id=other))
    assert caught.value.advice
    stage = sealed(lake.open(), replace(load_of(1), flow_id=other), [], replace(TABLE, flow_id=other))
    with pytest.raises(OwnerConflictError):
        stage.commit(receipt_of(load_of(1)))
    assert lake.rows() == rows_of("Oslo")


def test_commit_into_a_table_that_is_gone_fails(lake: Lake) -> None:
    with pytest.raises(SinkError, match="not exist"):
        sealed(lake.open(), load_of(), []).commit(receipt_of(load_of()))


def test_f108_days_committed_at_once_by_two_handles_all_land(lake: Lake) -> None:
    prepared(lake)
    days = [DAY + timedelta(days=number) for number in range(8)]

    def work(sink: Sink, mine: list[date]) -> None:
        stages = [sealed(sink, load_of(1, day), rows_of(day.isoformat())) for day in mine]
        barrier.wait()
        for stage, day in zip(stages, mine, strict=True):
            stage.commit(receipt_of(load_of(1, day), 1))

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [lake.open(), lake.open()], [days[::2], days[1::2]]))
    assert [cities(lake.rows(day)) for day in days] == [[day.isoformat()] for day in days]
    assert [lake.open().landed(TABLE.name, FLOW_ID, day) for day in days] == [
        receipt_of(load_of(1, day), 1) for day in days
    ]


@pytest.mark.parametrize("batches", ["AB", "AA"], ids=["two batches", "one batch"])
def test_f84_f108_of_twin_writers_one_wins(lake: Lake, batches: str) -> None:
    prepared(lake)
    for generation in range(1, 6):
        stages = [sealed(lake.open(), load_of(generation, batch=name), rows_of(name)) for name in batches]
        receipts = [receipt_of(load_of(generation, batch=name), 1) for name in batches]
        barrier = threading.Barrier(2)

        def commit(stage: Stage, receipt: Receipt, barrier: threading.Barrier = barrier) -> Receipt | None:
            barrier.wait()
            try:
                stage.commit(receipt)
            except StaleGenerationError:
                return None
            return receipt

        with ThreadPoolExecutor(2) as pool:
            winners = [receipt for receipt in pool.map(commit, stages, receipts) if receipt is not None]
        assert len(winners) == (1 if batches == "AB" else 2)
        assert lake.open().landed(TABLE.name, FLOW_ID, DAY) == winners[0]
        assert len(lake.rows()) == 1


def test_f125_reader_sees_one_generation_or_the_other(lake: Lake) -> None:
    sink = prepared(lake)
    put(sink, load_of(1), rows_of(*["1"] * 50))
    written = threading.Event()
    seen: list[list[str]] = []

    def read() -> None:
        while not written.is_set():
            seen.append(cities(lake.rows()))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for generation in range(2, 22):
                put(sink, load_of(generation), rows_of(*[str(generation)] * 50))
        finally:
            written.set()
        reader.result()
    assert seen
    assert all(len(set(names)) == 1 and len(names) == 50 for names in seen)


def test_values_come_back_as_they_went_in(lake: Lake) -> None:
    types: dict[str, pa.DataType] = {
        "text": pa.string(),
        "number": pa.int64(),
        "share": pa.float64(),
        "yes": pa.bool_(),
        "raw": pa.binary(),
        "day": pa.date32(),
        "nested": pa.struct([("inner", pa.struct([("text", pa.string()), ("at", pa.timestamp("us", "UTC"))]))]),
        "list": pa.list_(pa.struct([("tags", pa.list_(pa.string()))])),
        "map": pa.map_(pa.string(), pa.int64()),
        "with space, and \N{SNOWMAN}": pa.string(),
    }
    schema = pa.schema(types)
    table = Table("values", schema, FLOW_ID)
    rows: list[Row] = [
        {
            "text": "żółw \N{SNOWMAN} \U0001f40c \0 \N{COMBINING ACUTE ACCENT} '\"\\\n",
            "number": -(2**63),
            "share": 1e-300,
            "yes": True,
            "raw": b"\0\xff",
            "day": date(1, 1, 1),
            "nested": {"inner": {"text": "\U0010ffff" * 50, "at": datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)}},
            "list": [{"tags": ["a", None, ""]}, None, {"tags": None}],
            "map": [("k", 1), ("l", None)],
            "with space, and \N{SNOWMAN}": "",
        },
        {"nested": {"inner": None}, "list": [], "map": [], "number": 2**63 - 1},
        {"text": "x" * 100_000, "nested": {"inner": {"text": "a" * 5000, "at": None}}},
        {},
    ]
    expected = [dict.fromkeys(schema.names) | row for row in rows]
    put(prepared(lake, table), load_of(), rows, table)
    assert lake.rows(name="values") == expected


def test_receipt_survives_json() -> None:
    receipt = receipt_of(load_of(), 9)
    assert receipt_from_json(receipt_to_json(receipt)) == receipt
    newer = json.loads(receipt_to_json(receipt)) | {"added": 1}
    assert receipt_from_json(json.dumps(newer)) == receipt


def test_sinks_are_opened_by_the_format_of_the_target_connection(tmp_path: Path) -> None:
    assert isinstance(open_sink("memory", ""), MemorySink)
    assert isinstance(open_sink("delta", str(tmp_path)), delta.DeltaSink)
    with pytest.raises(ConfigurationError, match="csv"):
        open_sink("csv", str(tmp_path))
    with pytest.raises(ConfigurationError, match="s3://lake"):
        open_sink("delta", "s3://lake")


def test_opening_no_sink_costs_no_import() -> None:
    code = "import sys, worker.sinks; sys.exit(bool({'deltalake', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------- Delta


def log_files(lake: Lake) -> list[Path]:
    return sorted((lake.folder / TABLE.name / "_delta_log").glob("*.json"))


def edge(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Callable[[], None]], None]) -> None:
    """Put `answer` between the worker and deltalake's commit; it gets the real commit to call or not to call."""
    real = DeltaTable.create_write_transaction
    monkeypatch.setattr(
        DeltaTable,
        "create_write_transaction",
        lambda *arguments, **options: answer(partial(real, *arguments, **options)),
    )


def test_delta_table_tells_its_owner_and_its_notes(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    put(sink, load_of(), rows_of("Oslo"))
    sink.prepare(replace(TABLE, notes="types of version 2", schema=pa.schema([("plan", pa.string())])))
    put(sink, load_of(2), rows_of("Oslo"))
    live = DeltaTable(str(delta_lake.folder / TABLE.name))
    live.create_checkpoint()
    metadata = DeltaTable(str(delta_lake.folder / TABLE.name)).metadata()
    assert metadata.configuration == {delta.OWNER_PROPERTY: FLOW_ID}
    assert metadata.description == "types of version 2"
    assert metadata.partition_columns == ["mp_date"]
    assert delta_columns(delta_lake.folder / TABLE.name).names == ["mp_date", *SCHEMA.names, "plan"]


def test_delta_prepare_writes_nothing_when_nothing_is_new(delta_lake: Lake) -> None:
    for _ in range(3):
        prepared(delta_lake)
    assert len(log_files(delta_lake)) == 1


def test_delta_table_is_read_by_duckdb_with_its_partition_column(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    put(sink, load_of(1), rows_of("Oslo", "Bern"))
    put(sink, load_of(1, DAY + timedelta(days=1)), rows_of("Rome"))
    put(sink, load_of(2), rows_of("Oslo"))
    uris = DeltaTable(str(delta_lake.folder / TABLE.name)).file_uris()
    with duckdb.connect() as connection:
        query = "select mp_date, properties.city from read_parquet($uris, hive_partitioning = true) order by all"
        assert connection.execute(query, {"uris": uris}).fetchall() == [
            (DAY, "Oslo"),
            (DAY + timedelta(days=1), "Rome"),
        ]


def test_delta_table_is_created_once_by_many(delta_lake: Lake) -> None:
    barrier = threading.Barrier(6)

    def create(number: int) -> None:
        sink = delta_lake.open()
        barrier.wait()
        sink.prepare(replace(TABLE, schema=pa.schema([*SCHEMA, (f"column{number}", pa.string())])))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, range(6)))
    names = delta_columns(delta_lake.folder / TABLE.name).names
    assert sorted(names) == sorted(["mp_date", *SCHEMA.names, *(f"column{number}" for number in range(6))])


def test_delta_refuses_a_folder_that_is_no_table(delta_lake: Lake) -> None:
    (delta_lake.folder / TABLE.name).mkdir(parents=True)
    (delta_lake.folder / "file").write_text("a file")
    prepared(delta_lake)
    (delta_lake.folder / "other").mkdir()
    (delta_lake.folder / "other" / "precious.csv").write_text("a,b")
    for name in ("other", "file"):
        with pytest.raises(SinkError) as caught:
            delta_lake.open().prepare(replace(TABLE, name=name))
        assert type(caught.value) is SinkError
    assert [path.name for path in (delta_lake.folder / "other").iterdir()] == ["precious.csv"]


def test_delta_refuses_tables_that_the_worker_did_not_make(delta_lake: Lake) -> None:
    write_deltalake(str(delta_lake.folder / TABLE.name), pa.table({"event": ["theirs"]}))
    with pytest.raises(OwnerConflictError, match="not created by this worker"):
        delta_lake.open().prepare(TABLE)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/etc", "_log", ".hidden", "a\0b", "50%41", "x" * 300])
def test_f114_delta_refuses_names_that_leave_the_lake(delta_lake: Lake, name: str) -> None:
    prepared(delta_lake)
    before = sorted(delta_lake.folder.parent.rglob("*"))
    with pytest.raises(SinkError):
        delta_lake.open().prepare(replace(TABLE, name=name))
    assert sorted(delta_lake.folder.parent.rglob("*")) == before


def test_f114_delta_path_may_hold_unusual_characters(tmp_path: Path) -> None:
    lake = Lake("delta", tmp_path / "a lake? #1 +&ü", MemorySink())
    put(prepared(lake), load_of(), rows_of("Oslo"))
    assert lake.rows() == rows_of("Oslo")
    assert [path.name for path in tmp_path.iterdir()] == ["a lake? #1 +&ü"]


@pytest.mark.parametrize("damage", [Path.unlink, partial(os.truncate, length=100)], ids=["deleted", "shortened"])
def test_f107_damaged_staged_file_fails_the_commit(delta_lake: Lake, damage: Callable[[Path], None]) -> None:
    sink = prepared(delta_lake)
    put(sink, load_of(1), rows_of("Oslo"))
    kept = data_files(delta_lake)
    stage = sealed(sink, load_of(2), rows_of("Bern"))
    (staged,) = staged_files(delta_lake)
    damage(staged)
    with pytest.raises(SinkError, match=staged.name):
        stage.commit(receipt_of(load_of(2), 1))
    stage.abandon()
    assert delta_lake.rows() == rows_of("Oslo")
    assert data_files(delta_lake) == kept


def test_f97_seal_finds_a_valid_file_with_fewer_rows(delta_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = prepared(delta_lake)
    real = pq.ParquetWriter.write_table
    monkeypatch.setattr(
        pq.ParquetWriter, "write_table", lambda writer, table, **options: real(writer, table.slice(1), **options)
    )
    stage = sink.stage(TABLE, load_of())
    stage.write(batch_of(rows_of("Oslo", "Bern")))
    with pytest.raises(SinkError, match="holds 1 rows, and 2 were written"):
        stage.seal()
    stage.abandon()
    assert data_files(delta_lake) == []


def test_f96_files_stay_out_of_sight_until_the_commit(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))
    (staged,) = data_files(delta_lake)
    assert staged.suffix == ".staged"
    assert staged in staged_files(delta_lake)
    live = DeltaTable(str(delta_lake.folder / TABLE.name))
    live.vacuum(0, enforce_retention_duration=False, dry_run=False, full=True)
    stage.commit(receipt_of(load_of(), 1))
    assert delta_lake.rows() == rows_of("Oslo")
    (final,) = data_files(delta_lake)
    assert final.relative_to(delta_lake.folder / TABLE.name / f"mp_date={DAY}").suffix == ".parquet"


def test_f87_staging_removes_files_of_earlier_dead_loads_of_the_day_only(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    put(sink, load_of(1), rows_of("replaced"))
    put(sink, load_of(2), rows_of("live"))
    sealed(sink, load_of(5), rows_of("a later one"))
    sealed(sink, load_of(3, DAY + timedelta(days=1)), rows_of("another day"))
    stranger = delta_lake.folder / TABLE.name / "_staged" / "stranger"
    stranger.write_text("not ours")
    kept = data_files(delta_lake)
    dead = sink.stage(TABLE, load_of(3))
    dead.write(batch_of(rows_of("dead")))
    dead.seal()
    assert len(data_files(delta_lake)) == len(kept) + 1
    delta_lake.open().stage(TABLE, load_of(4))
    assert data_files(delta_lake) == kept
    with pytest.raises(SinkError, match="gone"):
        dead.commit(receipt_of(load_of(3), 1))
    assert DeltaTable(str(delta_lake.folder / TABLE.name), version=1).count() == 1


def test_f109_answer_lost_after_the_commit_landed(delta_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))

    def land_and_lose(commit: Callable[[], None]) -> None:
        commit()
        raise OSError("connection reset")

    edge(monkeypatch, land_and_lose)
    stage.commit(receipt_of(load_of(), 1))
    stage.abandon()
    assert delta_lake.rows() == rows_of("Oslo")
    assert len(log_files(delta_lake)) == 2


def test_f109_commit_that_certainly_failed_is_an_error_and_may_be_repeated(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))

    def fail(_commit: Callable[[], None]) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        edge(patch, fail)
        with pytest.raises(SinkError, match="no space left"):
            stage.commit(receipt_of(load_of(), 1))
        assert delta_lake.open().landed(TABLE.name, FLOW_ID, DAY) is None
        failed = sealed(sink, load_of(2), rows_of("Bern"))
        with pytest.raises(SinkError):
            failed.commit(receipt_of(load_of(2), 1))
        failed.abandon()
    stage.commit(receipt_of(load_of(), 1))
    assert delta_lake.rows() == rows_of("Oslo")
    assert len(data_files(delta_lake)) == 1


@pytest.mark.parametrize("lands", [True, False])
def test_f109_commit_that_nobody_can_judge_is_unknown_and_deletes_nothing(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch, *, lands: bool
) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))
    log = delta_lake.folder / TABLE.name / "_delta_log"

    def land_and_go_dark(commit: Callable[[], None]) -> None:
        if lands:
            commit()
        log.rename(log.with_name("_away"))
        raise OSError("connection reset")

    edge(monkeypatch, land_and_go_dark)
    with pytest.raises(CommitUnknownError):
        stage.commit(receipt_of(load_of(), 1))
    stage.abandon()
    assert len(data_files(delta_lake)) == 1
    log.with_name("_away").rename(log)
    assert sink.landed(TABLE.name, FLOW_ID, DAY) == (receipt_of(load_of(), 1) if lands else None)


def test_f108_twin_that_commits_between_check_and_commit_wins(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(1, batch="A"), rows_of("A"))
    twin = sealed(delta_lake.open(), load_of(1, batch="B"), rows_of("B"))
    neighbour = sealed(delta_lake.open(), load_of(1, DAY + timedelta(days=1)), rows_of("neighbour"))
    others = [
        partial(neighbour.commit, receipt_of(load_of(1, DAY + timedelta(days=1)), 1)),
        partial(twin.commit, receipt_of(load_of(1, batch="B"), 1)),
    ]

    def after_somebody_else(commit: Callable[[], None]) -> None:
        if others:
            other, later = others[0], others[1:]
            others.clear()
            other()
            others.extend(later)
        commit()

    edge(monkeypatch, after_somebody_else)
    with pytest.raises(StaleGenerationError):
        stage.commit(receipt_of(load_of(1, batch="A"), 1))
    assert delta_lake.rows() == rows_of("B")
    assert others == []


def test_f112_columns_dropped_between_prepare_and_commit_are_noticed(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    stage = sealed(sink, load_of(), rows_of("Oslo"))
    write_deltalake(
        str(delta_lake.folder / TABLE.name),
        pa.table({"mp_date": [DAY], "event": ["theirs"]}),
        mode="overwrite",
        schema_mode="overwrite",
        partition_by=["mp_date"],
    )
    with pytest.raises(SchemaConflictError, match="removed columns"):
        stage.commit(receipt_of(load_of(), 1))


def test_f95_everything_that_a_commit_needs_is_brought_to_the_disk(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    synced: list[int] = []

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    def commit_after_files(commit: Callable[[], None]) -> None:
        (file,) = data_files(delta_lake)
        assert {path.stat().st_ino for path in (file, file.parent, file.parent.parent)} <= set(synced)
        commit()

    monkeypatch.setattr(os, "fsync", note)
    edge(monkeypatch, commit_after_files)
    put(prepared(delta_lake), load_of(), rows_of("Oslo"))
    log = log_files(delta_lake)
    assert [path.stat().st_ino in synced for path in log] == [True, True]
    assert synced[-1] == log[0].parent.stat().st_ino
    synced.clear()
    delta_lake.open().landed(TABLE.name, FLOW_ID, DAY)
    assert synced == [log[-1].stat().st_ino, log[0].parent.stat().st_ino]


def test_f111_receipts_are_found_behind_many_commits_and_checkpoints(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    days = [DAY + timedelta(days=number) for number in range(delta._HISTORY_LIMITS[0] or 0)]
    receipts = [put(sink, load_of(1, day), []) for day in days]
    DeltaTable(str(delta_lake.folder / TABLE.name)).create_checkpoint()
    receipts += [put(sink, load_of(2, day), []) for day in days[5:]]
    other = delta_lake.open()
    for day in days:
        expected = max((receipt for receipt in receipts if receipt.day == day), key=lambda found: found.generation)
        assert other.landed(TABLE.name, FLOW_ID, day) == expected


def test_f111_landed_outlives_the_cleaning_of_the_log(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    empty_day = DAY + timedelta(days=1)
    put(sink, load_of(3), rows_of("Oslo", "Bern"))
    put(sink, load_of(4, empty_day), [])
    DeltaTable(str(delta_lake.folder / TABLE.name)).create_checkpoint()
    for path in log_files(delta_lake)[:-1]:
        path.unlink()
    put(sink, load_of(1, DAY + timedelta(days=9)), rows_of("Rome"))
    log_files(delta_lake)[0].unlink()

    found = delta_lake.open().landed(TABLE.name, FLOW_ID, DAY)
    assert found is not None
    assert (found.generation, found.batch_id, found.tally) == (3, load_of(3).batch_id, Tally(input=2, output=2))
    assert found.file_count == 1
    late = sealed(sink, load_of(2), rows_of("late"))
    with pytest.raises(StaleGenerationError):
        late.commit(receipt_of(load_of(2), 1))
    empty = delta_lake.open().landed(TABLE.name, FLOW_ID, empty_day)
    assert empty is not None
    assert (empty.generation, empty.batch_id, empty.tally) == (4, "", Tally())


def test_deltalake_writes_checkpoints_by_itself(delta_lake: Lake) -> None:
    sink = prepared(delta_lake)
    live = DeltaTable(str(delta_lake.folder / TABLE.name))
    live.alter.set_table_properties({"delta.checkpointInterval": "5"})
    for generation in range(1, 11):
        put(sink, load_of(generation), [])
    log = delta_lake.folder / TABLE.name / "_delta_log"
    assert list(log.glob("*.checkpoint.parquet"))
    for path in log_files(delta_lake)[:5]:
        path.unlink()
    assert sink.landed(TABLE.name, FLOW_ID, DAY) == receipt_of(load_of(10))


@pytest.mark.parametrize("content", [b"", b'{"commitInfo":{'], ids=["empty", "torn"])
def test_f72_torn_entry_of_the_log_is_never_taken_for_a_commit(delta_lake: Lake, content: bytes) -> None:
    sink = prepared(delta_lake)
    put(sink, load_of(1), rows_of("Oslo"))
    put(sink, load_of(2), rows_of("Bern"))
    log_files(delta_lake)[-1].write_bytes(content)
    if content:
        with pytest.raises(SinkError):
            delta_lake.open().landed(TABLE.name, FLOW_ID, DAY)
        return
    assert delta_lake.open().landed(TABLE.name, FLOW_ID, DAY) == receipt_of(load_of(1), 1)
    put(sink, load_of(3), rows_of("Rome"))
    assert delta_lake.rows() == rows_of("Rome")


def test_statistics_of_many_files_are_bounds_of_their_rows(delta_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_GROUP_ROWS", 100)
    monkeypatch.setattr(delta, "_FILE_BYTES", 1)
    sink = prepared(delta_lake)
    stage = sink.stage(TABLE, load_of())
    for number in range(60):
        long_name = "\N{LATIN SMALL LETTER Z WITH STROKE}" * 40 + str(number)
        stage.write(
            batch_of([*rows_of(None, "Bern", long_name), {"event": None, "time": None, "properties": None}] * 20)
        )
    assert stage.seal()[1] == 60
    stage.commit(receipt_of(load_of(), 4800))
    live = DeltaTable(str(delta_lake.folder / TABLE.name))
    assert live.count() == len(delta_lake.rows()) == 4800
    actions = pa.table(live.get_add_actions()).to_pylist()
    assert len(actions) == 60
    for action in actions:
        assert action["num_records"] == 80
        assert action["null_count"] == {"event": 20, "time": 20, "properties": {"city": 40, "count": 20}}
        assert action["min"] == {"event": "Buy", "time": NOON, "properties": {"city": "Bern", "count": 0}}
        highest = action["max"]["properties"]["city"]
        assert action["max"]["time"] == NOON + timedelta(seconds=2)
        assert len(highest) == 33
        assert highest > "\N{LATIN SMALL LETTER Z WITH STROKE}" * 40 + "59"
    assert len(live.file_uris(file_pruning_predicate="properties['count'] > 1")) == 60
    assert live.file_uris(file_pruning_predicate=[("event", "=", "Sell")]) == []


def test_statistics_leave_out_what_is_no_safe_bound(delta_lake: Lake) -> None:
    schema = columns_of(
        share=pa.float64(),
        at=pa.timestamp("us", "UTC"),
        day=pa.date32(),
        list=pa.list_(pa.struct([("a", pa.int64()), ("b", pa.int64())])),
        empty=pa.string(),
        number=pa.int64(),
    )
    table = Table(TABLE.name, schema, FLOW_ID)
    far = pa.array([2**62], pa.timestamp("us", "UTC"))
    row = {"share": float("nan"), "day": DAY, "list": [{"a": 1, "b": 2}], "number": 5}
    stage = prepared(delta_lake, table).stage(table, load_of())
    stage.write(batch_of([row], schema).set_column(1, "at", far))
    stage.seal()
    stage.commit(receipt_of(load_of(), 1))
    entry = log_files(delta_lake)[-1].read_text().splitlines()
    (statistics,) = [json.loads(json.loads(line)["add"]["stats"]) for line in entry if '"add"' in line]
    assert statistics == {
        "numRecords": 1,
        "minValues": {"day": "2024-01-09", "number": 5},
        "maxValues": {"day": "2024-01-09", "number": 5},
        "nullCount": {"share": 0, "at": 0, "day": 0, "empty": 1, "number": 0},
    }


def test_batches_are_gathered_into_large_groups(delta_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_GROUP_ROWS", 1000)
    stage = prepared(delta_lake).stage(TABLE, load_of())
    for _ in range(25):
        stage.write(batch_of(rows_of(*"abcdefghij" * 10)))
    size_bytes, file_count = stage.seal()
    files = data_files(delta_lake)
    assert (size_bytes, file_count) == (sum(path.stat().st_size for path in files), 2)
    footers = [pq.read_metadata(path) for path in files]
    groups = [[footer.row_group(number).num_rows for number in range(footer.num_row_groups)] for footer in footers]
    assert groups == [[1000, 500], [1000]]


@pytest.mark.parametrize("file_bytes", [1 << 30, 20_000, 1])
def test_row_groups_are_encoded_side_by_side_and_no_row_is_lost(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(delta, "_GROUP_ROWS", 100)
    monkeypatch.setattr(delta, "_FILE_BYTES", file_bytes)
    stage = prepared(delta_lake).stage(TABLE, load_of())
    names = [f"city {number}" for number in range(3000)]
    for start in range(0, len(names), 70):
        stage.write(batch_of(rows_of(*names[start : start + 70])))
        stage.write(batch_of([]))
    _, file_count = stage.seal()
    if file_bytes == 1 << 30:
        assert file_count == 2
    elif file_bytes == 1:
        assert file_count == -(-len(names) // 70)
    else:
        assert 2 < file_count < len(names) // 70
    stage.commit(receipt_of(load_of(), len(names)))
    assert sorted(cities(delta_lake.rows())) == sorted(names)
    live = DeltaTable(str(delta_lake.folder / TABLE.name))
    actions = pa.table(live.get_add_actions()).to_pylist()
    assert (len(actions), sum(action["num_records"] for action in actions)) == (file_count, len(names))
    assert live.count() == len(names)
    assert encoders() == []


def encoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


@pytest.mark.parametrize("group", [1, 2, 3, 6, 7])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), ResourceError), (pa.ArrowInvalid("bad rows"), SinkError)],
    ids=["full", "bad"],
)
def test_f91_an_error_in_encoding_is_that_of_the_stage_and_leaves_nothing(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch, group: int, error: Exception, raised: type[Exception]
) -> None:
    put(prepared(delta_lake), load_of(1), rows_of("Oslo"))
    kept = data_files(delta_lake)
    monkeypatch.setattr(delta, "_GROUP_ROWS", 10)
    real = pq.ParquetWriter.write_table
    numbers = count(1)

    def fail(writer: pq.ParquetWriter, table: pa.Table, **options: Any) -> None:
        if next(numbers) == group:
            raise error
        real(writer, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    stage = delta_lake.open().stage(TABLE, load_of(2))
    with pytest.raises(raised, match="2024-01-09 could not be staged") as caught:  # noqa: PT012 - where it comes depends on the threads
        for _ in range(7):
            stage.write(batch_of(rows_of(*"abcdefghij")))
        stage.seal()
    assert type(caught.value) is raised
    assert str(error) in str(caught.value)
    stage.abandon()
    assert encoders() == []
    assert data_files(delta_lake) == kept
    stage.abandon()
    assert delta_lake.rows() == rows_of("Oslo")


def test_a_stage_that_is_abandoned_while_rows_are_encoded_leaves_nothing(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "_GROUP_ROWS", 1000)
    sink = prepared(delta_lake)
    for groups in range(1, 6):
        stage = sink.stage(TABLE, load_of(groups))
        for _ in range(groups + 1):
            stage.write(batch_of(rows_of(*"abcdefghij" * 100)))
        stage.abandon()
        assert encoders() == []
        assert data_files(delta_lake) == []


@pytest.mark.parametrize("group_rows", [1000, 1 << 16, 1 << 20])
def test_f91_full_disk_is_said_and_leaves_nothing(delta_lake: Lake, group_rows: int) -> None:
    put(prepared(delta_lake), load_of(1), rows_of("Oslo"))
    kept = data_files(delta_lake)
    code = f"""
import os, resource, signal
from worker.errors import ResourceError
from tests.test_sinks import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
delta._GROUP_ROWS = {group_rows}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
stage = open_sink("delta", {str(delta_lake.folder)!r}).stage(TABLE, load_of(2))
try:
    for number in range(200):
        stage.write(batch_of(rows_of(*(os.urandom(20).hex() for _ in range(1000)))))
    stage.seal()
except ResourceError as error:
    print(error)
    stage.abandon()
assert encoders() == []
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Make room" in result.stdout
    assert data_files(delta_lake) == kept
    assert delta_lake.rows() == rows_of("Oslo")


@pytest.mark.parametrize("lands", [True, False])
def test_f70_killed_in_the_commit_is_answered_by_the_table(delta_lake: Lake, *, lands: bool) -> None:
    prepared(delta_lake)
    code = f"""
import os, signal
from tests.test_sinks import *
real = DeltaTable.create_write_transaction
def commit_and_die(*arguments, **options):
    if {lands}:
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
DeltaTable.create_write_transaction = commit_and_die
put(open_sink("delta", {str(delta_lake.folder)!r}), load_of(), rows_of("Oslo"))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == -9, result.stderr
    sink = delta_lake.open()
    assert sink.landed(TABLE.name, FLOW_ID, DAY) == (receipt_of(load_of(), 1) if lands else None)
    put(sink, load_of(2), rows_of("Bern"))
    assert delta_lake.rows() == rows_of("Bern")
