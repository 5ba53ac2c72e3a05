"""What PostgreSQL has of its own: addresses and passwords, servers that go away, other users, other orders of texts.

The server is of this machine, and started by the first test that asks for it; without one, the tests are skipped.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from sqlalchemy.exc import DBAPIError

from tests.support import run_of
from worker.errors import ConfigurationError, StoreError
from worker.model import LoadState, RunState
from worker.store import RunQuery, SqlStore, open_store, postgresql, schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

NOW = datetime(2024, 3, 10, 9, 30, tzinfo=UTC)
DAY = date(2024, 3, 9)
PASSWORD = "canary/pässword+1@#"
USER = "worker"

# The shell stops the server and clears up when its own input ends: whatever ends the tests ends the server.
SERVE = """
    pg_ctl start -s -w -D "$1" -l "$1/log" -o "$2" && echo started
    read -r _
    pg_ctl stop -s -w -m immediate -D "$1"
    cd / && rm -rf "$3"
"""


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int
    owner: dict[str, Any]

    @property
    def flags(self) -> str:
        return f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD, query: str = "") -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def run(self, *statements: str, database: str = "postgres") -> None:
        with self.connect(database) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def control(self, *arguments: str) -> None:
        options = ("-s", "-w", "-D", self.folder / "data", "-l", self.folder / "data/log")
        subprocess.run(["pg_ctl", *arguments, *options], check=True, cwd=self.folder, **self.owner)


@functools.cache
def _server() -> Server | str:
    """The server, or why there is none."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        return "there is no PostgreSQL on this machine (initdb, pg_ctl)"
    owner: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:  # as whom the server does not run
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        other = names.get("postgres") or names.get("nobody")
        if other is None:
            return "PostgreSQL does not run as root, and there is no other user to run it as"
        owner = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
        os.chown(folder, other.pw_uid, other.pw_gid)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    data = folder / "data"
    options = ("-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")
    subprocess.run(
        ["initdb", "-D", str(data), "--pwfile", str(folder / "password"), *options],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **owner,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    found = Server(folder, port, owner)
    keeper = subprocess.Popen(
        ["sh", "-c", SERVE, "sh", data, found.flags, folder],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **owner,
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"started\n", (data / "log").read_text()

    atexit.register(keeper.communicate)
    return found


def postgres_server() -> Server:
    """The server of these tests; skips the test where there is none."""
    found = _server()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@contextmanager
def postgres_state() -> Iterator[str]:
    """The url of an empty schema, which is as good as a database and faster made; skips where there is no server."""
    found = postgres_server()
    name = f"s{uuid4().hex}"
    found.run(f"CREATE SCHEMA {name}")
    try:
        yield found.url(query=f"?options=-csearch_path%3D{name}")
    finally:
        found.run("SET client_min_messages TO error", f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def server() -> Server:
    return postgres_server()


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_state() as found:
        yield found


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of a database of its own."""
    name = f"d{uuid4().hex}"
    server.run(f"CREATE DATABASE {name}")
    yield name
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


# Opening


def test_what_was_written_is_there_after_a_restart_of_the_worker(url: str) -> None:
    with open_store(url) as store:
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        store.create_object("flows", "a", {"name": "Ωmega"}, b"\x00\xff", NOW)
        assert store.take_lease("flow", "one", NOW, 30)
    with open_store(url) as store:
        assert [record.load for record in store.open_loads("flow")] == [load]
        found = store.object("flows", "a")
        assert found is not None
        assert (found.document, found.sealed) == ({"name": "Ωmega"}, b"\x00\xff")
        assert not store.take_lease("flow", "other", NOW, 30)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+psycopg"])
def test_the_other_names_of_the_scheme_are_taken(server: Server, database: str, scheme: str) -> None:
    with open_store(server.url(database).replace("postgresql", scheme)) as store:
        assert store.flows() == []


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("psycopg", "psycopg_binary")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"Install mixpanel-worker\[postgres\]") as caught:
        open_store(f"{scheme}://worker:geheim@host/state")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://worker:geheim@host",
        "postgresql://worker:ge@heim@host/state",
        "postgresql://worker:ge@he/im@host/state",
        "postgresql://worker:geheim:x@host:port/state",
    ],
)
def test_a_url_that_names_no_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert not any(part in str(caught.value) for part in ("geheim", "heim", "ge@"))


def test_the_password_is_never_in_an_error(server: Server) -> None:
    wrong = "wröng/canary"
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed_port = nobody.getsockname()[1]
    for url, told in [
        (server.url(password=wrong), "password authentication failed"),
        (server.url(user="stranger", password=wrong), "password authentication failed"),
        (server.url("missing"), 'database "missing" does not exist'),
        (server.url(query="?sslmode=require"), "does not support SSL"),
        (server.url(query="?sslmode=nonsense"), "sslmode"),
        (server.url(query="?colour=red"), "colour"),
        (server.url().replace(f":{server.port}/", f":{closed_port}/"), "refused"),
    ]:
        with pytest.raises(StoreError, match=told) as caught:
            open_store(url)
        chain: BaseException | None = caught.value
        while chain is not None:
            assert not any(text in str(chain) for text in (PASSWORD, wrong, quote(PASSWORD, safe="")))
            chain = chain.__cause__ or chain.__context__


def test_a_host_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5) as silent:  # takes the connection and says nothing
        port = silent.getsockname()[1]
        with pytest.raises(StoreError, match="cannot be reached"):
            open_store(f"postgresql://worker:geheim@127.0.0.1:{port}/state?connect_timeout=2")


def test_a_database_with_another_encoding_is_refused(server: Server) -> None:
    server.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(StoreError, match=r"has the encoding LATIN1.*UTF8"):
            open_store(server.url("latin"))
    finally:
        server.run("DROP DATABASE latin WITH (FORCE)")


def test_names_sort_by_code_point_whatever_the_order_of_the_database(server: Server) -> None:
    import psycopg

    try:
        server.run("CREATE DATABASE ordered LOCALE_PROVIDER icu ICU_LOCALE 'en' TEMPLATE template0")
    except psycopg.Error as error:
        pytest.skip(f"this PostgreSQL has no other order of texts: {error}")
    names = ["a", "B", "é", "Z", "_", "ab", "a b"]
    try:
        with open_store(server.url("ordered")) as store:
            for name in names:
                store.save_flow(name, name, {})
                store.create_object("flows", name, {}, None, NOW)
            assert [flow.name for flow in store.flows()] == sorted(names)
            assert [item.id for item in store.objects("flows")] == sorted(names)
    finally:
        server.run("DROP DATABASE ordered WITH (FORCE)")


# Schema


def test_the_tables_have_the_columns_that_the_statements_name(server: Server, database: str) -> None:
    open_store(server.url(database)).close()
    with server.connect(database) as connection:
        for table in (
            *(schema.VERSIONS, schema.FLOWS, schema.RUNS, schema.OBJECTS),
            *(schema.LEASES, schema.LOADS, schema.REQUESTS, schema.HOLDS),
        ):
            found = connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
                [table.name],
            )
            assert [name for (name,) in found] == table.c.keys()


def test_f133_a_migration_that_breaks_off_leaves_the_version_before_it(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url(database)
    first, second = schema.MIGRATIONS[0], ("CREATE TABLE extra (a TEXT)", "ALTER TABLE flows ADD COLUMN note TEXT")
    monkeypatch.setattr(schema, "MIGRATIONS", (first,))
    with open_store(url) as store:
        store.save_flow("a", "A", {})
    monkeypatch.setattr(schema, "MIGRATIONS", (first, (*second, "CREATE TABLE flows (a TEXT)")))
    with pytest.raises(StoreError, match="already exists"):
        open_store(url)
    monkeypatch.setattr(schema, "MIGRATIONS", (first, second))
    for _ in range(2):
        open_store(url).close()
    with server.connect(database) as connection:
        assert connection.execute("SELECT version FROM worker_schema ORDER BY 1").fetchall() == [(1,), (2,)]
        assert connection.execute("SELECT name, note FROM flows").fetchall() == [("A", None)]


def test_f134_a_newer_schema_is_refused_and_left_alone(server: Server, database: str) -> None:
    open_store(server.url(database)).close()
    server.run("INSERT INTO worker_schema VALUES (99)", database=database)
    with pytest.raises(StoreError, match=r"schema version 99; this worker knows versions up to 2\. Update the worker"):
        open_store(server.url(database))


def test_a_database_of_something_else_is_refused_and_left_alone(server: Server, database: str) -> None:
    server.run("CREATE TABLE bookmarks (url TEXT)", database=database)
    with pytest.raises(StoreError, match="not the state of this worker"):
        open_store(server.url(database))
    with server.connect(database) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert found == [("bookmarks",)]


def test_a_user_without_rights_is_a_store_error(server: Server, database: str) -> None:
    server.run("CREATE ROLE reader LOGIN PASSWORD 'x'")
    server.run("REVOKE CREATE ON SCHEMA public FROM public", database=database)
    try:
        with pytest.raises(StoreError, match=r"cannot be written.*may create tables"):
            open_store(server.url(database, user="reader", password="x"))
        open_store(server.url(database)).close()
        with pytest.raises(StoreError, match="cannot be written"):
            open_store(server.url(database, user="reader", password="x"))
    finally:
        server.run("DROP ROLE reader")


def test_a_read_only_database_is_a_store_error(server: Server, database: str) -> None:
    open_store(server.url(database)).close()
    server.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match="cannot be written"):
        open_store(server.url(database))


# Transactions


def test_a_commit_is_durable_and_isolated_as_the_rules_need_it_whatever_the_server_is_set_to(
    server: Server, database: str
) -> None:
    server.run(
        f"ALTER DATABASE {database} SET synchronous_commit = off",
        f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'",
    )
    names = ("synchronous_commit", "transaction_isolation", "lock_timeout", "idle_in_transaction_session_timeout")
    with open_store(server.url(database)) as store:
        with store._writer.begin() as connection:
            found = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
        with store._writer.connect() as connection:
            outside = connection.execution_options(reads_only=True).exec_driver_sql("SHOW synchronous_commit").scalar()
    assert found == ["on", "read committed", "1min", "30s"]
    assert outside == "off"


def test_a_more_careful_server_is_left_as_it_is(server: Server, database: str) -> None:
    server.run(f"ALTER DATABASE {database} SET synchronous_commit = 'remote_apply'")
    with open_store(server.url(database)) as store, store._writer.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "remote_apply"


def test_f136_no_session_keeps_anything_of_a_transaction(url: str) -> None:
    with open_store(url) as store:
        for _ in range(10):
            store.begin_load("flow", DAY, "run", NOW, 0)
        with store._reader.connect() as connection:
            for catalogue in ("pg_prepared_statements", "pg_locks WHERE locktype = 'advisory'", "pg_cursors"):
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {catalogue}").scalar() == 0


def test_f139_a_failure_gives_the_connection_back_without_its_transaction(server: Server, database: str) -> None:
    with open_store(server.url(database)) as store:
        with suppress(StoreError):
            store.save_flow("a", "no\0name", {})
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        with suppress(StoreError):
            store.save_load(load, LoadState.SUCCEEDED)
        with server.connect() as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state <> 'idle'", [database]
            ).fetchone()
        assert found == (0,)
        assert store.flows() == []


def test_f126_a_lock_that_stays_is_a_store_error_and_readers_do_not_wait(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(url) as store:
        store.save_flow("a", "A", {})
        held, ended = Event(), Event()

        def hold() -> None:
            with store._writer.begin():
                held.set()
                ended.wait(60)

        holder = Thread(target=hold)
        holder.start()
        try:
            assert held.wait(60)
            assert [flow.name for flow in store.flows()] == ["A"]
            monkeypatch.setattr(postgresql, "_BEGIN_TO_WRITE", postgresql._BEGIN_TO_WRITE.replace("'60s'", "'20ms'", 1))
            with pytest.raises(StoreError, match="in use by somebody"):
                store.save_flow("b", "B", {})
        finally:
            ended.set()
            holder.join()
        store.save_flow("b", "B", {})


def test_a_writer_that_stops_within_its_transaction_loses_its_lock(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert postgresql._IDLE_TIMEOUT_SECONDS < postgresql._LOCK_TIMEOUT_SECONDS
    with open_store(url) as stopped, open_store(url) as other:
        with monkeypatch.context() as patch:
            patch.setattr(postgresql, "_BEGIN_TO_WRITE", postgresql._BEGIN_TO_WRITE.replace("'30s'", "'50ms'"))
            connection = stopped._writer.connect()
            transaction = connection.begin()
        other.save_flow("a", "A", {})
        with pytest.raises(DBAPIError):  # what it goes on with once it wakes
            connection.exec_driver_sql("INSERT INTO flows VALUES ('b', 'B', '{}')")
        transaction.close()
        connection.close()
        stopped.save_flow("c", "C", {})
        assert [flow.name for flow in other.flows()] == ["A", "C"]


# A server that goes away


def test_a_connection_that_was_cut_is_made_anew(server: Server, database: str) -> None:
    with open_store(server.url(database)) as store:
        store.save_flow("a", "A", {})
        server.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'")
        assert [flow.name for flow in store.flows()] == ["A"]
        store.save_flow("b", "B", {})


def test_a_server_that_restarts_is_found_again_and_until_then_it_is_a_store_error(
    server: Server, database: str
) -> None:
    with open_store(server.url(database)) as store:
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        server.control("stop", "-m", "immediate")
        try:
            for _ in range(2):
                with pytest.raises(StoreError, match="cannot be reached") as caught:
                    store.begin_load("flow", DAY, "run", NOW, 0)
                assert PASSWORD not in str(caught.value)
        finally:
            server.control("start", "-o", server.flags)
        assert [record.load for record in store.open_loads("flow")] == [load]
        assert store.begin_load("flow", DAY, "run", NOW, 0).generation == 2


def test_a_connection_cut_within_a_transaction_is_a_store_error_and_changes_nothing(
    server: Server, database: str
) -> None:
    def cut(store: SqlStore) -> None:
        with store._transaction(store._writer) as connection:
            connection.exec_driver_sql("INSERT INTO flows VALUES ('a', 'A', '{}')")
            server.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'")
            connection.exec_driver_sql("INSERT INTO flows VALUES ('b', 'B', '{}')")

    with open_store(server.url(database)) as store:
        with pytest.raises(StoreError, match="cannot be reached"):
            cut(store)
        assert store.flows() == []


# Texts


def test_an_error_message_with_a_null_character_is_kept_without_it(url: str) -> None:
    with open_store(url) as store:
        load = store.begin_load("flow", DAY, "run", NOW, 0)
        store.save_load(load, LoadState.FAILED, error_code="A", error_message="bad \0 byte")
        found = store.load(load.batch_id)
        assert found is not None
        assert found.error_message == "bad \N{REPLACEMENT CHARACTER} byte"


def test_a_run_may_hold_a_null_character_in_what_is_not_searched(url: str) -> None:
    run = run_of(state=RunState.FAILED, error_message="bad \0 byte")
    with open_store(url) as store:
        store.save_run(run)
        assert store.find_runs(RunQuery(), 10) == [run]


def test_numbers_are_as_large_as_in_sqlite(url: str) -> None:
    with open_store(url) as store:
        assert store.begin_load("flow", DAY, "run", NOW, 2**40).generation == 2**40 + 1
        assert store.begin_load("flow", DAY, "run", NOW, 0).generation == 2**40 + 2
