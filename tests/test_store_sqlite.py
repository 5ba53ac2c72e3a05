"""What the SQLite file survives: other processes, kills, damage, full and read-only disks, other versions."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import receipt_of, run_of
from worker.errors import ConfigurationError, StoreError
from worker.model import LoadState, Receipt, Run, RunState, Tally
from worker.store import RunQuery, SqlStore, open_store, schema, sqlite
from worker.store.documents import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2024, 3, 10, 9, 30, tzinfo=UTC)
DAY = date(2024, 3, 9)
NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


def fill(store: SqlStore, days: int) -> None:
    for number in range(days):
        load = store.begin_load("flow", DAY + timedelta(days=number), "run", NOW, 0)
        store.save_load(load, LoadState.COMMITTING)
        store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load))


def script(body: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `body` with `arguments` in `sys.argv`."""
    start = "import sys\nfrom datetime import UTC, date, datetime\nfrom worker.store import open_store\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + body, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


# Opening


def test_a_new_file_is_for_its_owner_only(file: Path) -> None:
    before = os.umask(0)
    try:
        open_store(url_of(file)).close()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_relative_path_is_relative_to_where_the_store_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///./a b#é.db") as store:
        monkeypatch.chdir("/")
        store.save_flow("a", "A", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a b#é.db"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://worker:geheim@host/state",
        "postgresql+asyncpg://worker:geheim@host/state",
        "sqlite+aiosqlite:///a.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:geheim?uri=true",
        "sqlite:///a.db?mode=ro",
        "sqlite://host/a.db",
        "a.db",
        "",
        "postgresql://worker:geheim@host:port/state",
    ],
)
def test_a_url_that_names_no_database_is_a_configuration_error_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///file\.db") as caught:
        open_store(url)
    assert "geheim" not in str(caught.value)


def test_f127_the_settings_that_keep_a_commit_are_in_force(file: Path) -> None:
    with open_store(url_of(file)) as store, store._writer.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert found == ["delete", 3, 1, 30_000]


def test_f127_a_setting_that_is_not_taken_is_an_error() -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(StoreError, match="does not take journal_mode = DELETE: it stays memory"),
    ):
        sqlite._set_up(connection, Path("state.db"))


def test_f128_a_file_in_wal_mode_is_brought_back(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    open_store(url_of(file)).close()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_what_was_written_is_there_after_a_restart(file: Path) -> None:
    with open_store(url_of(file)) as store:
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        store.hold_requests("p", NOW + timedelta(seconds=90))
        assert store.reserve_request("q", NOW, 1, 1) == 0.0
    with open_store(url_of(file)) as store:
        assert [record.load for record in store.open_loads("flow")] == [load]
        assert store.reserve_request("p", NOW, 60, 3) == 90.0
        assert store.reserve_request("q", NOW + timedelta(minutes=1), 1, 1) == 3540.0


def test_requests_that_no_longer_count_are_deleted(file: Path) -> None:
    with open_store(url_of(file)) as store:
        for hours in range(5):
            for project_id in ("p", "q"):
                assert store.reserve_request(project_id, NOW + timedelta(hours=2 * hours), 60, 3) == 0.0
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (2,)


# Schema


def test_the_tables_have_the_columns_that_the_statements_name(file: Path) -> None:
    open_store(url_of(file)).close()
    with closing(sqlite3.connect(file)) as connection:
        for table in (
            *(schema.VERSIONS, schema.FLOWS, schema.RUNS, schema.OBJECTS),
            *(schema.LEASES, schema.LOADS, schema.REQUESTS, schema.HOLDS),
        ):
            found = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
            assert found == table.c.keys()


def test_f133_a_migration_that_breaks_off_leaves_the_version_before_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = schema.MIGRATIONS[0], ("CREATE TABLE extra (a TEXT)", "ALTER TABLE flows ADD COLUMN note TEXT")
    monkeypatch.setattr(schema, "MIGRATIONS", (first,))
    with open_store(url_of(file)) as store:
        store.save_flow("a", "A", {})
    monkeypatch.setattr(schema, "MIGRATIONS", (first, (*second, "CREATE TABLE flows (a TEXT)")))
    with pytest.raises(StoreError, match="already exists"):
        open_store(url_of(file))
    monkeypatch.setattr(schema, "MIGRATIONS", (first, second))
    for _ in range(2):
        open_store(url_of(file)).close()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT version FROM worker_schema").fetchall() == [(1,), (2,)]
        assert connection.execute("SELECT name, note FROM flows").fetchall() == [("A", None)]


FIRST_SCHEMA = """
    CREATE TABLE worker_schema (version INTEGER NOT NULL PRIMARY KEY);
    CREATE TABLE flows (flow_id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, definition TEXT NOT NULL);
    CREATE TABLE runs (
        run_id TEXT NOT NULL PRIMARY KEY,
        flow_id TEXT NOT NULL,
        flow_name TEXT NOT NULL,
        state TEXT NOT NULL,
        started_at TEXT NOT NULL,
        document TEXT NOT NULL
    );
    CREATE INDEX runs_by_start ON runs (started_at);
    CREATE INDEX runs_of_flow_by_start ON runs (flow_name, started_at);
    CREATE TABLE loads (
        batch_id TEXT NOT NULL PRIMARY KEY,
        flow_id TEXT NOT NULL,
        day TEXT NOT NULL,
        generation BIGINT NOT NULL,
        run_id TEXT NOT NULL,
        started_at TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('started', 'committing', 'succeeded', 'failed')),
        receipt TEXT,
        error_code TEXT,
        error_message TEXT,
        CHECK ((state = 'succeeded') = (receipt IS NOT NULL))
    );
    CREATE INDEX loads_of_day ON loads (flow_id, day, generation);
    CREATE INDEX loads_of_flow_by_state ON loads (flow_id, state);
    CREATE TABLE requests (project_id TEXT NOT NULL, asked_at TEXT NOT NULL);
    CREATE INDEX requests_of_project ON requests (project_id, asked_at);
    CREATE TABLE request_holds (project_id TEXT NOT NULL PRIMARY KEY, held_until TEXT NOT NULL);
    INSERT INTO worker_schema VALUES (1);
"""


def test_a_file_of_the_first_schema_is_taken_over_with_all_it_holds(file: Path) -> None:
    run = Run("run", "flow", "Flow", "events", RunState.FAILED, NOW, DAY, DAY, NOW, NOW, error_code="A")
    receipt = Receipt("flow", DAY, 3, "BATCH", "run", NOW, NOW, Tally(input=2, output=2))
    moment = "2024-03-10T09:30:00.000000+00:00"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(FIRST_SCHEMA)
        connection.execute("INSERT INTO flows VALUES ('flow', 'Flow', '{\"days\": [1]}')")
        connection.execute(
            "INSERT INTO runs VALUES ('run', 'flow', 'Flow', 'failed', ?, ?)",
            (moment, encode(run)),
        )
        connection.execute(
            "INSERT INTO loads VALUES ('BATCH', 'flow', '2024-03-09', 3, 'run', ?, 'succeeded', ?, NULL, NULL)",
            (moment, encode(receipt)),
        )
        connection.execute(
            "INSERT INTO loads VALUES ('OPEN', 'flow', '2024-03-09', 4, 'run', ?, 'started', NULL, NULL, NULL)",
            (moment,),
        )
        connection.execute("INSERT INTO requests VALUES ('p', ?)", (moment,))
        connection.execute("INSERT INTO request_holds VALUES ('q', '2024-03-10T09:31:00.000000+00:00')")
    for _ in range(2):
        with open_store(url_of(file)) as store:
            assert [(flow.flow_id, flow.name, flow.definition) for flow in store.flows()] == [
                ("flow", "Flow", {"days": [1]})
            ]
            assert store.run("run") == run
            assert store.runs("Flow", 10) == store.find_runs(RunQuery(flow_ids=("flow",)), 10) == [run]
            assert store.succeeded_receipts("flow") == {DAY: receipt}
            assert [record.load.batch_id for record in store.open_loads("flow")] == ["OPEN"]
            assert store.reserve_request("p", NOW + timedelta(minutes=1), 1, 1) == 3540.0
            assert store.reserve_request("q", NOW, 60, 3) == 60.0
            assert store.objects("flows") == []
    with open_store(url_of(file)) as store:
        assert store.begin_load("flow", DAY, "run", NOW, 0).generation == 5
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT version FROM worker_schema").fetchall() == [(1,), (2,)]


def test_a_file_of_the_first_schema_ends_with_the_tables_and_indexes_of_a_new_one(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(FIRST_SCHEMA)
    new = file.with_name("new.db")
    found = []
    for path in (file, new):
        open_store(url_of(path)).close()
        with closing(sqlite3.connect(path)) as connection:
            names = connection.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall()
        found.append(names)
    assert found[0] == found[1]


def test_f134_a_newer_schema_is_refused_and_left_alone(file: Path) -> None:
    open_store(url_of(file)).close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO worker_schema VALUES (99)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"schema version 99; this worker knows versions up to 2\. Update the worker"):
        open_store(url_of(file))
    assert file.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_left_alone(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="not the state of this worker"):
        open_store(url_of(file))
    assert file.read_bytes() == before


# Damage


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_f130_a_file_that_is_no_database_is_refused_and_left_alone(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged: .* move the file aside .* give --from once"):
        open_store(url_of(file))
    assert file.read_bytes() == content


def test_f130_a_truncated_file_is_refused(file: Path) -> None:
    with open_store(url_of(file)) as store:
        fill(store, 40)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(StoreError, match="is damaged"):
        open_store(url_of(file))


def test_f130_a_flipped_byte_is_never_more_than_a_store_error(file: Path) -> None:
    with open_store(url_of(file)) as store:
        fill(store, 3)
        store.save_flow("flow", "Flow", {"a": 1})
        store.save_run(run_of(state=RunState.SUCCESS))
        store.create_object("flows", "flow", {"a": 1}, b"sealed", NOW)
        store.take_lease("flow", "one", NOW, 30)
        store.reserve_request("p", NOW, 60, 3)
        store.hold_requests("p", NOW)
    whole = file.read_bytes()
    used = [offset for offset, byte in enumerate(whole) if byte]
    generator = random.Random(130)
    refused = 0
    for _ in range(250):
        damaged = bytearray(whole)
        damaged[generator.choice(used)] ^= generator.randrange(1, 256)
        file.write_bytes(damaged)
        try:
            with open_store(url_of(file)) as store:
                store.flows()
                store.runs(None, 10)
                store.find_runs(RunQuery(flow_ids=("flow",)), 10)
                store.objects("flows")
                store.take_lease("flow", "other", NOW, 30)
                store.newest_receipts([("flow", DAY)])
                store.open_loads("flow")
                store.succeeded_receipts("flow")
                store.reserve_request("p", NOW, 60, 3)
        except StoreError:
            refused += 1
    assert refused > 20


# A disk that does not take it


@pytest.fixture
def folder_of_another() -> Iterator[Path]:
    """A folder with a state file in it that this process may read and not write."""
    folder = Path(tempfile.mkdtemp())
    open_store(url_of(folder / "state.db")).close()
    (folder / "state.db").chmod(0o444)
    folder.chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:  # to whom modes do not apply
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["state.db", "new.db"])
def test_a_read_only_folder_is_a_store_error(folder_of_another: Path, name: str) -> None:
    with pytest.raises(StoreError, match="may write to"):
        open_store(url_of(folder_of_another / name))


@pytest.mark.parametrize("name", ["missing/state.db", ".", "state.db/state.db"])
def test_a_path_where_no_file_can_be_is_a_store_error(file: Path, name: str) -> None:
    file.touch()
    with pytest.raises(StoreError, match="may write to"):
        open_store(url_of(file.parent / name))


def test_a_full_disk_is_a_store_error_and_what_was_recorded_stays(file: Path) -> None:
    with open_store(url_of(file)) as store:
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        with store._writer.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="no room"):
            store.save_flow("a", "A", {"a": "x" * 100_000})
        assert [record.load for record in store.open_loads("flow")] == [load]
        with store._writer.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        store.save_flow("a", "A", {"a": "x" * 100_000})


def test_a_file_that_is_moved_away_is_a_store_error(file: Path) -> None:
    with open_store(url_of(file)) as store:
        file.rename(file.with_name("aside.db"))
        with pytest.raises(StoreError, match="cannot be written"):
            store.save_flow("a", "A", {})
    assert not file.exists()


def test_a_connection_never_creates_a_file_with_another_mode(file: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        sqlite._connect(file)
    assert not file.exists()


# Several at once


def test_f126_a_lock_that_stays_is_a_store_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.01)
    with open_store(url_of(file)) as store:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert store.flows() == []
            with pytest.raises(StoreError, match="in use by another program"):
                store.save_flow("a", "A", {})
        store.save_flow("a", "A", {})


def test_f126_a_connection_that_does_not_come_free_is_a_store_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.01)
    with open_store(url_of(file)) as store:
        with store._writer.connect(), pytest.raises(StoreError, match="in use"):
            store.flows()
        assert store.flows() == []


def test_a_killed_process_leaves_all_that_it_was_told_is_written(file: Path) -> None:
    body = """
from worker.model import LoadState
with open_store(sys.argv[1]) as store:
    while True:
        load = store.begin_load("flow", date(2024, 3, 9), "run", datetime.now(UTC), 0)
        print(load.batch_id, "started", flush=True)
        store.save_load(load, LoadState.COMMITTING)
        print(load.batch_id, "committing", flush=True)
"""
    generator = random.Random(1)
    told: dict[str, str] = {}
    for _ in range(5):
        with script(body, url_of(file)) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(generator.randrange(5, 60))]
            process.kill()
            lines += process.stdout.readlines()
        for line in lines:
            batch_id, state = line.split()
            told[batch_id] = state
        with open_store(url_of(file)) as store:
            known = {record.load.batch_id: record.state for record in store.open_loads("flow")}
        order = list(LoadState)
        assert all(order.index(known[batch_id]) >= order.index(LoadState(state)) for batch_id, state in told.items())
        assert len(known) <= len(told) + 5
