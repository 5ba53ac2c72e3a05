"""The service as a whole: who may reach it, what ends it, and what it says while it ends."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import pytest
from aiohttp import ClientSession

from tests.support import free_port, settings_for, until_closed
from tests.test_replicas import SERVICE, Replica, ended, self_signed, state_of
from worker import events
from worker.daemon import check_exposure, own_names, serve
from worker.errors import ConfigurationError
from worker.keeper import Keeper
from worker.metrics import Metrics
from worker.registry import Registry
from worker.secret_box import new_key
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from worker.events import Event

TOKEN = "canary-static-token-0815"
CLIENTS = "me:canary-client-secret"


@asynccontextmanager
async def served(folder: Path, seen: list[Event], **settings: object) -> AsyncIterator[tuple[asyncio.Task[None], str]]:
    """The service on a task of this loop, and its address; it is cancelled at the end if it has not ended."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    chosen = settings_for(
        folder, **{"state": state_of(folder), "http": f"127.0.0.1:{free_port()}", "tick_seconds": 0.05, **settings}
    )
    service = asyncio.create_task(serve(chosen, [], {}, seen.append, on_ready=ready.set_result))
    try:
        waited: list[asyncio.Future[Any]] = [service, ready]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await service
        yield service, ready.result()
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)


# Who may reach it


def settings_of(**environ: str) -> Any:
    return load_settings({f"WORKER_{name}": value for name, value in environ.items()})


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "WORKER_API_TOKENS"),
        ({"API_TOKENS": TOKEN}, "WORKER_TLS_PROXY"),
        ({"API_CLIENTS": CLIENTS}, "WORKER_TLS_PROXY"),
        ({"API_TOKENS": TOKEN, "TLS_PROXY": "yes"}, "WORKER_KEY_FILE"),
        ({"API_TOKENS": TOKEN, "TLS_PROXY": "yes", "KEY_FILE": "key"}, None),
        ({"API_CLIENTS": CLIENTS, "TLS_PROXY": "yes", "KEY_FILE": "key"}, None),
        ({"TLS_PROXY": "yes", "KEY_FILE": "key", "HTTP_HOSTS": "worker.example"}, "WORKER_API_TOKENS"),
    ],
)
def test_beyond_loopback_there_must_be_credentials_of_either_kind(environ: dict[str, str], told: str | None) -> None:
    settings = settings_of(HTTP="192.0.2.1:8080", **environ)
    if told is None:
        check_exposure(settings)
        return
    with pytest.raises(ConfigurationError, match=told):
        check_exposure(settings)


@pytest.mark.parametrize(
    ("http", "hosts", "names"),
    [
        ("127.0.0.1:80", "", {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.1:80", "worker.example", {"localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0:80", "", None),
        ("0.0.0.0:80", "worker.example", {"worker.example", "localhost", "127.0.0.1", "[::1]"}),
    ],
)
def test_the_names_that_the_service_goes_by(http: str, hosts: str, names: set[str] | None) -> None:
    assert own_names(settings_of(HTTP=http, HTTP_HOSTS=hosts)) == names


async def test_beyond_loopback_only_tokens_come_in_and_only_by_its_names(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(new_key().hex())
    (tmp_path / "key").chmod(0o600)
    beyond = {
        "http": f"0.0.0.0:{free_port()}",
        "tls_proxy": "yes",
        "key_file": tmp_path / "key",
        "api_tokens": f"another-token-of-16,{TOKEN}",
        "http_hosts": "worker.example,[2001:db8::1]",
    }
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with served(tmp_path, [], **beyond) as (_, url), ClientSession() as client:
        address = url.replace("0.0.0.0", "127.0.0.1")
        for headers, path, status in (
            ({"Host": "worker.example"}, f"{SERVICE}/flows", 403),
            ({"Host": "worker.example", "Authorization": "Bearer wrong-token-0123456789"}, f"{SERVICE}/flows", 401),
            ({"Host": "worker.example", **bearer}, f"{SERVICE}/flows", 200),
            ({"Host": "[2001:db8::1]:443", **bearer}, "/metrics", 200),
            ({"Host": "evil.example", **bearer}, f"{SERVICE}/flows", 421),
            ({"Host": "10.1.2.3"}, "/readyz", 200),
        ):
            async with client.get(address + path, headers=headers) as answer:
                assert answer.status == status, (headers, path)


def test_a_token_needs_no_login_and_is_found_nowhere(tmp_path: Path) -> None:
    replica = Replica(tmp_path, state_of(tmp_path), "http://127.0.0.1:9", WORKER_API_TOKENS=TOKEN)
    with ended(replica):
        replica.ready()
        with pytest.raises(HTTPError) as refused:
            replica.ask(f"{SERVICE}/flows")
        assert refused.value.code == 403
        refused.value.close()
        assert replica.ask(f"{SERVICE}/flows", Authorization=f"Bearer {TOKEN}")["items"] == []
        assert replica.end(signal.SIGTERM) == 0
    assert not [line for line in replica.said if "open to everybody" in line]
    assert TOKEN not in "".join(replica.said)
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("tls", [False, True])
async def test_who_only_connects_does_not_stay(tmp_path: Path, tls: bool) -> None:
    settings: dict[str, object] = {"http_idle_seconds": 0.3}
    if tls:
        certificate, key = self_signed(tmp_path)
        settings |= {"tls_certificate": certificate, "tls_key": key}
    async with served(tmp_path, [], **settings) as (_, url):
        assert await until_closed(url, b"") == b""


# What ends it


async def test_F080_the_service_ends_when_the_watch_over_its_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Metrics) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(Metrics, "watch_loop", fail)
    seen: list[Event] = []
    async with served(tmp_path, seen) as (service, _):
        with pytest.raises(
            RuntimeError, match="the watch over the event loop has ended: LookupError at fail"
        ) as raised:
            await service
    assert isinstance(raised.value.__cause__, LookupError)
    assert [event.message for event in seen if isinstance(event, events.ServiceTrouble)] == [str(raised.value)]


async def test_F080_the_service_ends_when_its_scheduler_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Registry) -> Iterator[Any]:
        raise LookupError("a bug")

    monkeypatch.setattr(Registry, "flows", fail)
    async with served(tmp_path, []) as (service, url):
        with pytest.raises(RuntimeError, match="the scheduler has ended: LookupError at fail"):
            await service
        async with ClientSession() as client:
            with pytest.raises(OSError, match="onnect"):
                await client.get(f"{url}/healthz")


async def test_who_is_told_to_end_is_alive_and_not_ready_until_its_runs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Keeper.close
    answers: dict[str, tuple[int, Any]] = {}

    async def slow(self: Keeper) -> None:
        closing = asyncio.ensure_future(close(self))
        await asyncio.sleep(0)
        async with ClientSession() as client:
            for path in ("/healthz", "/readyz"):
                async with client.get(url + path) as answer:
                    answers[path] = answer.status, json.loads(await answer.read())
        await closing

    async with served(tmp_path, []) as (service, url):
        async with ClientSession() as client, client.get(f"{url}/readyz") as answer:
            assert answer.status == 200
        monkeypatch.setattr(Keeper, "close", slow)
        service.cancel()
        with pytest.raises(asyncio.CancelledError):
            await service
    assert answers == {
        "/healthz": (200, {"status": "alive"}),
        "/readyz": (503, {"status": "not ready", "reasons": ["the service is ending"]}),
    }


def test_F088_a_crash_leaves_where_it_was(tmp_path: Path) -> None:
    replica = Replica(tmp_path, state_of(tmp_path), "http://127.0.0.1:9")
    with ended(replica):
        replica.ready()
        # a thread that runs while it is written down may fault, once in a hundred times
        assert replica.end(signal.SIGABRT) in {-signal.SIGABRT, -signal.SIGSEGV}
        replica.wait_for(lambda: any(line.startswith("Fatal Python error: Aborted") for line in replica.said))
