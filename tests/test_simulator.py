"""The simulated Mixpanel, met as a client meets it: through real sockets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import urllib.request
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import aiohttp
import pytest

from worker.mixpanel import synthetic
from worker.mixpanel.simulator import (
    DEMO_PASSWORD,
    DEMO_PROJECT_ID,
    DEMO_PROJECT_SECRET,
    DEMO_USERNAME,
    FRAMINGS,
    Framing,
    Quota,
    RecordedRequest,
    Simulator,
    SimulatorThread,
    describe_faults,
    fault_options,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

DAY = date(2024, 3, 1)
NEXT_DAY = date(2024, 3, 2)
BODY = b"".join(synthetic.iter_lines(DAY, 60, 1))
LINES = BODY.splitlines(keepends=True)
AUTH = (DEMO_USERNAME, DEMO_PASSWORD)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        simulator.set_day(DAY, BODY)
        yield simulator


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def query(first: date = DAY, last: date | None = None, **more: str) -> dict[str, str]:
    dates = {"from_date": first.isoformat(), "to_date": (last or first).isoformat()}
    return {**dates, "project_id": DEMO_PROJECT_ID, **more}


@dataclass(frozen=True)
class Met:
    """What a raw client met: the answer, whether its framing was whole, and how the connection ended."""

    status: int
    headers: Mapping[str, str]
    head: bytes
    body: bytes
    whole: bool
    reset: bool
    received: bytes

    @property
    def text(self) -> bytes:
        return gzip.decompress(self.body)


async def connect(simulator: Simulator, *, offer: str | None = "gzip", version: str = "HTTP/1.1") -> socket.socket:
    """A connection on which a request for ``DAY`` was sent."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    connection.setblocking(False)
    await loop.sock_connect(connection, (simulator.host, simulator.port))
    head = f"GET /api/2.0/export?{urlencode(query())} {version}\r\nHost: x\r\n"
    head += f"Authorization: {aiohttp.encode_basic_auth(*AUTH)}\r\n"
    head += f"Accept-Encoding: {offer}\r\n" if offer else ""
    await loop.sock_sendall(connection, f"{head}Connection: close\r\n\r\n".encode())
    return connection


async def receive(connection: socket.socket, size: int) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, size), 10)


async def meet(simulator: Simulator, *, offer: str | None = "gzip", version: str = "HTTP/1.1") -> Met:
    received, reset = b"", False
    with await connect(simulator, offer=offer, version=version) as connection:
        try:
            while piece := await receive(connection, 1 << 20):
                received += piece
        except ConnectionResetError:
            reset = True
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head:
        return Met(0, {}, b"", b"", whole=False, reset=reset, received=received)
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    body, whole = rest, True
    if headers.get("transfer-encoding") == "chunked":
        body, whole = dechunk(rest)
    elif "content-length" in headers:
        whole = len(rest) == int(headers["content-length"])
    return Met(int(lines[0].split(" ")[1]), headers, head, body, whole, reset, received)


def dechunk(rest: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        size, found, rest = rest.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            return body, False
        if length == 0:
            return body, bool(found) and rest == b"\r\n"
        body, rest = body + rest[:length], rest[length + 2 :]


# The happy path


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", ["gzip", "identity"])
async def test_a_day_arrives_byte_for_byte(session: aiohttp.ClientSession, framing: Framing, offer: str) -> None:
    async with Simulator(framing=framing) as simulator:
        simulator.set_day(DAY, BODY)
        for _ in range(2):
            async with session.get(
                f"{simulator.base_url}/api/2.0/export",
                params=query(),
                headers={"Accept-Encoding": offer, "Authorization": aiohttp.encode_basic_auth(*AUTH)},
            ) as response:
                body = await response.read()
                assert response.status == 200
                assert response.headers["Content-Type"] == "text/plain"
                assert response.headers.get("Content-Encoding") == ("gzip" if offer == "gzip" else None)
                assert ("Transfer-Encoding" in response.headers) == (framing == "chunked")
                assert ("Content-Length" in response.headers) == (framing == "length")
            assert (gzip.decompress(body) if offer == "gzip" else body) == BODY


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", ["gzip", None])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
async def test_a_large_file_of_the_data_directory_is_served(
    tmp_path: Path, framing: Framing, offer: str | None, suffix: str
) -> None:
    body = BODY * 60
    stored = body if suffix == ".jsonl" else gzip.compress(body, 1)
    (tmp_path / f"{DAY.isoformat()}{suffix}").write_bytes(stored)
    async with Simulator(data_directory=tmp_path, framing=framing) as simulator:
        met = await meet(simulator, offer=offer)
    assert met.whole
    assert (met.text if offer else met.body) == body
    if offer and suffix == ".jsonl.gz":
        assert met.body == stored


@pytest.mark.parametrize(("size", "encoding"), [(1400, None), (1401, "gzip")])
async def test_gzip_begins_above_1400_bytes(simulator: Simulator, tmp_path: Path, size: int, encoding: str) -> None:
    body = b"a" * (size - 1) + b"\n"
    simulator.set_day(DAY, body)
    met = await meet(simulator)
    assert met.headers.get("content-encoding") == encoding
    (tmp_path / f"{DAY.isoformat()}.jsonl.gz").write_bytes(gzip.compress(body))
    async with Simulator(data_directory=tmp_path) as other:
        met = await meet(other)
    assert met.headers.get("content-encoding") == encoding
    assert (met.text if encoding else met.body) == body


@pytest.mark.parametrize(
    ("offer", "encoded"),
    [("gzip;q=0.5", True), ("br, GZIP", True), ("*", True), ("gzip;q=0", False), ("gzip;q=0.0", False), ("br", False)],
)
async def test_gzip_is_sent_only_when_offered(simulator: Simulator, offer: str, encoded: bool) -> None:
    assert ("content-encoding" in (await meet(simulator, offer=offer)).headers) == encoded


@pytest.mark.parametrize("forced", [True, False])
async def test_the_encoding_can_be_forced(forced: bool) -> None:
    async with Simulator(gzip=forced) as simulator:
        simulator.set_day(DAY, BODY)
        met = await meet(simulator, offer=None if forced else "gzip")
    assert (met.text if forced else met.body) == BODY


async def test_an_http_1_0_client_gets_no_chunks(simulator: Simulator) -> None:
    met = await meet(simulator, version="HTTP/1.0")
    assert "transfer-encoding" not in met.headers
    assert met.text == BODY


async def test_a_client_that_ends_its_side_gets_the_whole_answer(simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY * 20)
    reader, writer = await asyncio.open_connection(simulator.host, simulator.port)
    target = f"/api/2.0/export?{urlencode(query())}"
    authorization = aiohttp.encode_basic_auth(*AUTH)
    writer.write(f"GET {target} HTTP/1.1\r\nAuthorization: {authorization}\r\n\r\n".encode())
    writer.write_eof()
    body, whole = dechunk((await reader.read()).partition(b"\r\n\r\n")[2])
    assert (body, whole) == (BODY * 20, True)
    writer.close()


async def test_a_missing_day_is_an_empty_200(session: aiohttp.ClientSession) -> None:
    async with Simulator() as simulator:
        status, text, _ = await ask(session, simulator, query())
    assert (status, text) == (200, "")


async def test_a_range_joins_its_days_and_a_day_may_change(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    simulator.set_day(NEXT_DAY, b"next\n")
    assert (await ask(session, simulator, query(DAY, NEXT_DAY)))[1].encode() == BODY + b"next\n"
    simulator.set_day(DAY, b"changed\n")
    assert (await ask(session, simulator, query(DAY, NEXT_DAY)))[1] == "changed\nnext\n"


async def test_synthetic_days_are_made_once_and_kept(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    expected = b"".join(synthetic.iter_lines(DAY, 30, 5)).decode()
    async with Simulator(events_per_day=30, seed=5, days=[DAY], cache_directory=tmp_path) as simulator:
        answers = await asyncio.gather(*(ask(session, simulator, query()) for _ in range(3)))
        assert [text for _, text, _ in answers] == [expected] * 3
        assert (await ask(session, simulator, query(NEXT_DAY)))[1] == ""
    assert (tmp_path / "seed-5-events-30" / f"{DAY.isoformat()}.jsonl.gz").exists()


async def test_large_synthetic_days_come_by_sendfile_and_joined(tmp_path: Path) -> None:
    async with Simulator(events_per_day=9000, cache_directory=tmp_path, framing="length") as simulator:
        met = await meet(simulator)
        assert met.text == b"".join(synthetic.iter_lines(DAY, 9000, 1))


# Refusals


async def ask(
    session: aiohttp.ClientSession,
    simulator: Simulator,
    parameters: Mapping[str, str],
    *,
    auth: tuple[str, str] | None = AUTH,
    path: str = "/api/2.0/export",
    method: str = "GET",
) -> tuple[int, str, Mapping[str, str]]:
    headers = {} if auth is None else {"Authorization": aiohttp.encode_basic_auth(*auth)}
    async with session.request(method, simulator.base_url + path, params=parameters, headers=headers) as response:
        body = await response.read()
        if response.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return response.status, body.decode(), response.headers


@pytest.mark.parametrize(
    ("username", "password", "project_id", "status"),
    [
        (DEMO_USERNAME, DEMO_PASSWORD, DEMO_PROJECT_ID, 200),
        (DEMO_PROJECT_SECRET, "", None, 200),
        (DEMO_USERNAME, DEMO_PASSWORD, None, 401),
        (DEMO_USERNAME, DEMO_PASSWORD, "1", 401),
        (DEMO_USERNAME, "wrong", DEMO_PROJECT_ID, 401),
        ("wrong", DEMO_PASSWORD, DEMO_PROJECT_ID, 401),
        (DEMO_PROJECT_SECRET, "", DEMO_PROJECT_ID, 401),
        (DEMO_PROJECT_SECRET, "x", None, 401),
        ("", "", None, 401),
    ],
)
async def test_credentials(
    simulator: Simulator,
    session: aiohttp.ClientSession,
    username: str,
    password: str,
    project_id: str | None,
    status: int,
) -> None:
    parameters = query()
    del parameters["project_id"]
    if project_id is not None:
        parameters["project_id"] = project_id
    met, text, _ = await ask(session, simulator, parameters, auth=(username, password))
    assert met == status
    assert status == 200 or set(json.loads(text)) == {"error", "request"}


async def test_no_or_unreadable_authorization_is_401(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    assert (await ask(session, simulator, query(), auth=None))[0] == 401
    for value in ("Bearer x", "Basic", "Basic !!!", "Basic bm9jb2xvbg=="):
        url = f"{simulator.base_url}/api/2.0/export"
        async with session.get(url, params=query(), headers={"Authorization": value}) as response:
            assert response.status == 401
    assert {request.headers.get("authorization") for request in simulator.requests} == {None, "(unreadable)"}


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"from_date": ""}, "yyyy-mm-dd"),
        ({"from_date": "2024-3-1"}, "yyyy-mm-dd"),
        ({"from_date": "2024-02-30"}, "yyyy-mm-dd"),
        ({"to_date": "20240301"}, "yyyy-mm-dd"),
        ({"to_date": "2024-02-01"}, "from_date"),
        ({"event": "Sign in"}, "JSON array"),
        ({"event": '{"a":1}'}, "JSON array"),
        ({"limit": "0"}, "limit"),
        ({"limit": "100001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"where": 'properties["$os"] in "x"'}, "selector"),
        ({"where": 'properties["$os"] == "\\x"'}, "selector"),
        ({"time_in_ms": "true"}, "time_in_ms"),
    ],
)
async def test_bad_parameters_are_400_with_a_json_error(
    simulator: Simulator, session: aiohttp.ClientSession, changes: dict[str, str], fragment: str
) -> None:
    status, text, _ = await ask(session, simulator, query() | changes)
    assert status == 400
    assert fragment in json.loads(text)["error"]


@pytest.mark.parametrize("missing", ["from_date", "to_date"])
async def test_dates_are_required(simulator: Simulator, session: aiohttp.ClientSession, missing: str) -> None:
    status, text, _ = await ask(session, simulator, {k: v for k, v in query().items() if k != missing})
    assert status == 400
    assert missing in json.loads(text)["error"]


async def test_the_day_after_today_is_refused(session: aiohttp.ClientSession) -> None:
    async with Simulator(today=lambda: DAY) as simulator:
        assert (await ask(session, simulator, query(DAY)))[0] == 200
        status, text, headers = await ask(session, simulator, query(NEXT_DAY))
    assert (status, text) == (400, "to_date cannot be later than today")
    assert headers["Content-Type"] == "text/plain"


async def test_today_is_the_utc_date_by_default(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    today = datetime.now(UTC).date()
    assert (await ask(session, simulator, query(today)))[0] == 200
    assert (await ask(session, simulator, query(today + timedelta(days=2))))[0] == 400


async def test_other_paths_and_methods_are_refused(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    assert (await ask(session, simulator, query(), path="/api/2.0/engage"))[0] == 404
    assert (await ask(session, simulator, query(), method="POST"))[0] == 405


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_an_unreadable_request_is_refused(simulator: Simulator, request_head: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection(simulator.host, simulator.port)
    writer.write(request_head)
    assert (await reader.readline()).split(b" ")[1] == status
    writer.close()


# Filters


@pytest.mark.parametrize(
    ("parameters", "keeps"),
    [
        ({"event": '["Sign in","Search"]'}, lambda event: event["event"] in {"Sign in", "Search"}),
        ({"event": "[]"}, lambda _event: False),
        ({"where": 'properties["$os"] == "Linux"'}, lambda event: event["properties"]["$os"] == "Linux"),
        (
            {"where": 'number(properties["mp_processing_time_ms"]) < 1709290000000'},
            lambda event: event["properties"]["mp_processing_time_ms"] < 1709290000000,
        ),
        (
            {"where": 'number(properties["item_price"]) < 300.5'},
            lambda event: float(event["properties"].get("item_price", "inf")) < 300.5,
        ),
        (
            {"event": '["Item viewed"]', "where": 'properties["$city"] == "Zürich"'},
            lambda event: event["event"] == "Item viewed" and event["properties"]["$city"] == "Zürich",
        ),
    ],
)
async def test_filters(
    simulator: Simulator,
    session: aiohttp.ClientSession,
    parameters: dict[str, str],
    keeps: Callable[[dict[str, object]], bool],
) -> None:
    lines = list(synthetic.iter_lines(DAY, 3000, 2))
    simulator.set_day(DAY, b"".join(lines))
    expected = b"".join(line for line in lines if keeps(json.loads(line)))
    assert (await ask(session, simulator, query() | parameters))[1].encode() == expected
    assert expected or parameters["event"] == "[]"


@pytest.mark.parametrize("limit", [1, 59, 60, 61])
async def test_limit(simulator: Simulator, session: aiohttp.ClientSession, limit: int) -> None:
    text = (await ask(session, simulator, query(limit=str(limit))))[1]
    assert text.encode() == b"".join(LINES[:limit])


async def test_a_last_line_without_line_end_stays_without(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.set_day(DAY, BODY[:-1])
    assert (await ask(session, simulator, query(limit="100")))[1].encode() == BODY[:-1]


# Quota


async def test_quota_per_second_and_hour_is_rolling(session: aiohttp.ClientSession) -> None:
    now = 0.0
    quota = Quota(queries_per_hour=4, queries_per_second=3, retry_after=True)
    async with Simulator(quota=quota, monotonic_seconds=lambda: now) as simulator:
        assert [(await ask(session, simulator, query()))[0] for _ in range(3)] == [200] * 3
        status, text, headers = await ask(session, simulator, query())
        assert (status, text, headers["Retry-After"]) == (429, "rate limit reached", "2")
        now = 10.0
        assert (await ask(session, simulator, query()))[0] == 200
        now = 12.0
        status, text, headers = await ask(session, simulator, query())
        assert (status, headers["Retry-After"]) == (429, "3589")
        assert (
            "0/100 queries running concurrently and 5/4 queries running in the last hour" in json.loads(text)["error"]
        )
        now = 3600.0
        assert (await ask(session, simulator, query()))[0] == 200


async def test_quota_default_is_mixpanels_without_retry_after(session: aiohttp.ClientSession) -> None:
    now = 0.0
    async with Simulator(quota=True, monotonic_seconds=lambda: now) as simulator:
        for number in range(61):
            now = float(number)
            status, _, headers = await ask(session, simulator, query())
            assert status == (200 if number < 60 else 429)
            assert "Retry-After" not in headers
        assert [request.status for request in simulator.requests].count(429) == 1


async def test_quota_of_concurrent_queries_and_a_refused_query_takes_no_fault(session: aiohttp.ClientSession) -> None:
    async with Simulator(quota=Quota(concurrent_queries=1)) as simulator:
        simulator.set_day(DAY, BODY)
        simulator.fault("stall")
        with await connect(simulator):
            await simulator.wait_for_requests(1)
            simulator.fault("html")
            status, text, _ = await ask(session, simulator, query())
            assert status == 429
            assert json.loads(text)["error"] == "too many export requests in progress for this project"
            assert simulator.pending_faults == ["html"]
            assert (await ask(session, simulator, {"project_id": DEMO_PROJECT_ID}))[0] == 400
            assert simulator.pending_faults == ["html"]


# What it records


async def test_requests_are_recorded_without_secrets(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    await ask(session, simulator, query())
    without_project = {k: v for k, v in query().items() if k != "project_id"}
    await ask(session, simulator, without_project, auth=(DEMO_PROJECT_SECRET, ""))
    simulator.fault("forbidden")
    await ask(session, simulator, query())
    first, second, third = simulator.requests
    assert (first.method, first.path, first.query, first.status) == ("GET", "/api/2.0/export", query(), 200)
    assert first.headers["authorization"] == DEMO_USERNAME
    assert first.received_at.tzinfo is UTC
    assert second.headers["authorization"] == "(project secret)"
    assert (third.fault, third.status) == ("forbidden", 403)
    for secret in (DEMO_PASSWORD, DEMO_PROJECT_SECRET):
        assert secret not in repr(simulator.requests)
        assert base64.b64encode(secret.encode()).decode().rstrip("=") not in repr(simulator.requests)
    simulator.clear_requests()
    assert simulator.requests == []


async def test_waiting_for_requests(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    waiting = asyncio.create_task(simulator.wait_for_requests(2))
    await ask(session, simulator, query())
    assert not waiting.done()
    await ask(session, simulator, query())
    assert len(await waiting) == 2
    with pytest.raises(TimeoutError):
        await simulator.wait_for_requests(3, timeout_seconds=0.01)


async def test_the_hook_sees_each_request_and_can_hold_the_answer(session: aiohttp.ClientSession) -> None:
    seen: list[RecordedRequest] = []
    release = asyncio.Event()

    def hook(request: RecordedRequest) -> Awaitable[None]:
        seen.append(request)
        return wait()

    async def wait() -> None:
        await release.wait()

    async with Simulator(on_request=hook) as simulator:
        asking = asyncio.create_task(ask(session, simulator, query()))
        await simulator.wait_for_requests(1)
        assert not asking.done()
        release.set()
        assert (await asking)[0] == 200
    assert len(seen) == 1


async def test_what_the_hook_raises_is_raised_by_stop(session: aiohttp.ClientSession) -> None:
    def hook(_request: RecordedRequest) -> None:
        raise LookupError("from the hook")

    simulator = Simulator(on_request=hook)
    await simulator.start()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await ask(session, simulator, query())
    with pytest.raises(LookupError, match="from the hook"):
        await simulator.stop()


# Faults, each at least once as what it claims to be

CHECKS: dict[str, Callable[[Simulator], Awaitable[None]]] = {}


def observes(name: str) -> Callable[[Callable[[Simulator], Awaitable[None]]], Callable[[Simulator], Awaitable[None]]]:
    def register(check: Callable[[Simulator], Awaitable[None]]) -> Callable[[Simulator], Awaitable[None]]:
        CHECKS[name] = check
        return check

    return register


def refusal(name: str, status: int, text: str, *, is_json: bool) -> None:
    async def check(simulator: Simulator) -> None:
        simulator.fault(name)
        met = await meet(simulator)
        assert (met.status, met.whole) == (status, True)
        assert "retry-after" not in met.headers
        if is_json:
            assert met.headers["content-type"] == "application/json"
            assert text in json.loads(met.body)["error"]
            assert json.loads(met.body)["request"].startswith("/api/2.0/export?")
        else:
            assert met.headers["content-type"] == "text/plain"
            assert met.body == text.encode()

    CHECKS[name] = check


refusal("unauthorized", 401, "Invalid credentials", is_json=True)
refusal("auth_400", 400, "Unable to authenticate request", is_json=False)
refusal("payment_required", 402, "payment is required", is_json=True)
refusal("forbidden", 403, "not permitted", is_json=True)
refusal("rate_limited", 429, "too many export requests in progress", is_json=True)
refusal("rate_limited_text", 429, "rate limit reached", is_json=False)
refusal("server_error", 500, "unknown error", is_json=False)
refusal("later_than_today", 400, "to_date cannot be later than today", is_json=False)


def early_end(name: str, tail: bytes) -> None:
    async def check(simulator: Simulator) -> None:
        simulator.fault(name)
        met = await meet(simulator)
        assert met.whole
        assert met.text.endswith(tail)
        lines = met.text.removesuffix(tail)
        assert lines.endswith(b"}\n")
        assert 0 < len(lines) < len(BODY)
        assert BODY.startswith(lines)

    CHECKS[name] = check


early_end("terminated_early", b"terminated early\n")
early_end("export_terminated_early", b"export terminated early\n")
early_end("quoted_terminated_early", b'"terminated early"\n')
early_end("error_tail", b'{"error":')


def broken_gzip(name: str, error: str) -> None:
    async def check(simulator: Simulator) -> None:
        whole = (await meet(simulator)).body
        simulator.fault(name)
        met = await meet(simulator)
        assert met.whole
        assert met.headers["content-encoding"] == "gzip"
        assert met.body != whole
        with pytest.raises((gzip.BadGzipFile, EOFError, zlib.error), match=error):
            gzip.decompress(met.body)

    CHECKS[name] = check


broken_gzip("bad_crc", "CRC")
broken_gzip("bad_length", "length")
broken_gzip("missing_trailer", "end-of-stream")
broken_gzip("trailing_text", "Not a gzipped file")
broken_gzip("cut_intact", "end-of-stream")
broken_gzip("flipped_bit", ".")


@observes("redirect")
async def _(simulator: Simulator) -> None:
    simulator.fault("redirect", location="http://other.example/")
    met = await meet(simulator)
    assert (met.status, met.headers["location"], met.body) == (302, "http://other.example/", b"")
    simulator.fault("redirect")
    assert (await meet(simulator)).headers["location"].startswith(simulator.base_url)


@observes("html")
async def _(simulator: Simulator) -> None:
    simulator.fault("html")
    met = await meet(simulator)
    assert met.status == 200
    assert met.headers["content-type"].startswith("text/html")
    assert met.body.startswith(b"<!DOCTYPE html>")


@observes("error_object")
async def _(simulator: Simulator) -> None:
    simulator.fault("error_object")
    met = await meet(simulator)
    assert met.status == 200
    assert set(json.loads(met.body)) == {"error", "request"}


@observes("empty")
async def _(simulator: Simulator) -> None:
    for framing in FRAMINGS:
        simulator.fault("empty", framing=framing)
        met = await meet(simulator)
        assert (met.status, met.body, met.whole) == (200, b"", True)


@observes("terminated_early_whole")
async def _(simulator: Simulator) -> None:
    simulator.fault("terminated_early_whole")
    assert (await meet(simulator)).body == b"terminated early"


@observes("truncated_line")
async def _(simulator: Simulator) -> None:
    simulator.fault("truncated_line")
    met = await meet(simulator)
    assert met.whole
    assert BODY.startswith(met.text)
    assert met.text.count(b"\n") > 0
    assert not met.text.endswith(b"}\n")


@observes("two_members")
async def _(simulator: Simulator) -> None:
    simulator.fault("two_members")
    met = await meet(simulator)
    assert met.text == BODY
    first = zlib.decompressobj(wbits=31)
    assert len(first.decompress(met.body)) < len(BODY)
    assert first.eof
    assert first.unused_data.startswith(b"\x1f\x8b")


@observes("zero_padding")
async def _(simulator: Simulator) -> None:
    simulator.fault("zero_padding")
    met = await meet(simulator)
    assert met.text == BODY
    assert met.body.endswith(bytes(512))


@observes("header_says_gzip_but_plain")
async def _(simulator: Simulator) -> None:
    simulator.fault("header_says_gzip_but_plain")
    met = await meet(simulator)
    assert (met.headers["content-encoding"], met.body) == ("gzip", BODY)


@observes("gzip_without_header")
async def _(simulator: Simulator) -> None:
    simulator.fault("gzip_without_header")
    met = await meet(simulator, offer=None)
    assert "content-encoding" not in met.headers
    assert met.text == BODY


@observes("unknown_encoding")
async def _(simulator: Simulator) -> None:
    simulator.fault("unknown_encoding")
    assert (await meet(simulator)).headers["content-encoding"] == "br"


@observes("gzip_bomb")
async def _(simulator: Simulator) -> None:
    simulator.fault("gzip_bomb", raw_bytes=8 << 20)
    met = await meet(simulator)
    assert len(met.text) > 8 << 20
    assert len(met.text) > 200 * len(met.body)
    assert all(json.loads(line)["event"] == "Bomb" for line in met.text.splitlines())


@observes("cut_at")
async def _(simulator: Simulator) -> None:
    for framing in FRAMINGS:
        simulator.fault("cut_at", offset=100, framing=framing)
        met = await meet(simulator)
        assert len(met.body) == 100
        assert not met.reset
        assert met.whole == (framing == "close")


@observes("reset_at")
async def _(simulator: Simulator) -> None:
    for framing in FRAMINGS:
        simulator.fault("reset_at", offset=100, framing=framing)
        met = await meet(simulator)
        assert len(met.body) == 100
        assert met.reset


@observes("close_before_response")
async def _(simulator: Simulator) -> None:
    simulator.fault("close_before_response")
    met = await meet(simulator)
    assert (met.received, met.reset) == (b"", False)
    assert simulator.requests[-1].status is None


@observes("slow_first_byte")
async def _(simulator: Simulator) -> None:
    started = asyncio.get_running_loop().time()
    simulator.fault("slow_first_byte", seconds=0.1)
    assert (await meet(simulator)).text == BODY
    assert asyncio.get_running_loop().time() - started >= 0.1


@observes("stall")
async def _(simulator: Simulator) -> None:
    simulator.fault("stall", gzip=False, framing="length")
    received = b""
    with await connect(simulator) as connection:
        while len(received.partition(b"\r\n\r\n")[2]) < len(BODY) // 2:
            received += await receive(connection, 1 << 20)
        assert BODY.startswith(received.partition(b"\r\n\r\n")[2])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), 0.05)


@observes("slow_loris")
async def _(simulator: Simulator) -> None:
    simulator.fault("slow_loris", piece_bytes=3, seconds=0.001, gzip=False, framing="close")
    with await connect(simulator) as connection:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await receive(connection, 1)
        pieces = [await receive(connection, 1000) for _ in range(5)]
    assert max(len(piece) for piece in pieces) < 1000
    assert BODY.startswith(b"".join(pieces))


@observes("drip")
async def _(simulator: Simulator) -> None:
    simulator.fault("drip")
    met = await meet(simulator)
    assert met.text == BODY
    assert met.received.count(b"\r\n7\r\n") >= len(met.body) // 7 - 1


@observes("bad_chunk_size")
async def _(simulator: Simulator) -> None:
    simulator.fault("bad_chunk_size")
    met = await meet(simulator)
    assert not met.whole
    assert b"\r\nzz\r\n" in met.received
    assert met.body


@observes("huge_header")
async def _(simulator: Simulator) -> None:
    simulator.fault("huge_header")
    met = await meet(simulator)
    assert len(met.head) > 20_000
    assert met.text == BODY


@pytest.mark.parametrize("name", describe_faults())
async def test_fault(simulator: Simulator, name: str) -> None:
    await CHECKS[name](simulator)
    assert simulator.pending_faults == []
    assert name in {request.fault for request in simulator.requests}
    met = await meet(simulator)
    assert (met.status, met.text, met.whole) == (200, BODY, True)


def test_every_fault_is_described_in_one_line() -> None:
    assert all(text and "\n" not in text for text in describe_faults().values())
    assert {"offset", "gzip", "framing"} <= set(fault_options("cut_at"))


@pytest.mark.parametrize(("framing", "use_gzip"), [(framing, use) for framing in FRAMINGS for use in (True, False)])
async def test_cut_at_every_offset(simulator: Simulator, framing: Framing, use_gzip: bool) -> None:
    simulator.set_day(DAY, b"0123456789\n")
    simulator.fault("cut_intact", offset=1000, framing=framing, gzip=use_gzip)
    encoded = (await meet(simulator)).body
    for offset in range(len(encoded) + 1):
        simulator.fault("cut_at", offset=offset, framing=framing, gzip=use_gzip)
        met = await meet(simulator)
        assert met.body == encoded[:offset]
        assert met.whole == (framing == "close" or (framing == "length" and offset == len(encoded)))
        simulator.fault("cut_intact", offset=offset, framing=framing, gzip=use_gzip)
        met = await meet(simulator)
        assert (met.body, met.whole) == (encoded[:offset], True)


async def test_a_large_file_is_cut_and_reset_where_asked(tmp_path: Path) -> None:
    content = bytes(range(256)) * 12_000
    (tmp_path / f"{DAY.isoformat()}.jsonl").write_bytes(content)
    async with Simulator(data_directory=tmp_path) as simulator:
        for framing in FRAMINGS:
            for name in ("cut_at", "reset_at"):
                simulator.fault(name, offset=2_000_001, framing=framing)
                met = await meet(simulator, offer=None)
                assert met.body == content[:2_000_001]
                assert met.reset == (name == "reset_at")


async def test_flipped_bit_changes_one_bit(simulator: Simulator) -> None:
    simulator.fault("flipped_bit", offset=7, bit=3, gzip=False)
    met = await meet(simulator)
    assert met.body == BODY[:7] + bytes([BODY[7] ^ 8]) + BODY[8:]


async def test_refusals_take_options(simulator: Simulator) -> None:
    simulator.fault("rate_limited", retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    assert (await meet(simulator)).headers["retry-after"] == "Wed, 21 Oct 2026 07:28:00 GMT"
    simulator.fault("rate_limited_text", retry_after=("1", "2"))
    assert (await meet(simulator)).head.count(b"Retry-After: ") == 2
    simulator.fault("server_error", status=503)
    assert (await meet(simulator)).status == 503
    simulator.fault("server_error", status=504)
    assert json.loads((await meet(simulator)).body)["error"] == "Timeout Error."
    simulator.fault("payment_required", text="no plan")
    assert json.loads((await meet(simulator)).body)["error"] == "no plan"


async def test_faults_queue_by_times_and_day(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    simulator.fault("server_error", times=2)
    simulator.fault("forbidden", day=NEXT_DAY)
    assert [(await ask(session, simulator, query()))[0] for _ in range(3)] == [500, 500, 200]
    assert simulator.pending_faults == ["forbidden"]
    assert (await ask(session, simulator, query(DAY, NEXT_DAY)))[0] == 403
    simulator.fault("server_error", times=3)
    simulator.clear_faults()
    assert (await ask(session, simulator, query()))[0] == 200


def test_wrong_faults_are_refused_at_once() -> None:
    simulator = Simulator()
    with pytest.raises(ValueError, match="unknown fault 'explode'"):
        simulator.fault("explode")
    with pytest.raises(ValueError, match="no option offset"):
        simulator.fault("html", offset=1)
    with pytest.raises(ValueError, match="no option gzip"):
        simulator.fault("bad_crc", gzip=False)
    with pytest.raises(ValueError, match="1 or more"):
        simulator.fault("html", times=0)


async def test_faults_of_text_work_on_filtered_and_tiny_days(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    simulator.fault("terminated_early")
    text = (await ask(session, simulator, query(limit="10")))[1].encode()
    lines = text.removesuffix(b"terminated early\n")
    assert 0 < lines.count(b"\n") < 10
    assert BODY.startswith(lines)
    simulator.set_day(DAY, b"")
    for name in ("terminated_early", "truncated_line", "flipped_bit", "bad_crc", "cut_at", "cut_intact", "two_members"):
        simulator.fault(name)
        assert (await meet(simulator)).status == 200


# Life and death


@pytest.mark.parametrize(
    ("name", "options"), [("stall", {}), ("slow_first_byte", {"seconds": 600.0}), ("slow_loris", {"seconds": 600.0})]
)
async def test_stop_is_prompt_whatever_a_connection_waits_for(name: str, options: dict[str, float]) -> None:
    simulator = Simulator()
    await simulator.start()
    simulator.set_day(DAY, BODY)
    simulator.fault(name, seconds=options.get("seconds"))
    with await connect(simulator) as connection, await idle(simulator):
        await simulator.wait_for_requests(1)
        async with asyncio.timeout(2):
            await simulator.stop()
        try:
            while await receive(connection, 1 << 20):
                pass
        except ConnectionResetError:
            pass
    with pytest.raises(RuntimeError, match="not started"):
        _ = simulator.port
    assert len(asyncio.all_tasks()) == 1


async def idle(simulator: Simulator) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (simulator.host, simulator.port))
    return connection


async def test_stop_is_prompt_while_a_day_is_made_and_while_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / f"{DAY.isoformat()}.jsonl").write_bytes(bytes(32 << 20))
    for options in ({"events_per_day": 100_000_000}, {"data_directory": tmp_path, "gzip": False}):
        simulator = Simulator(**options)
        await simulator.start()
        with await connect(simulator):
            await simulator.wait_for_requests(1)
            async with asyncio.timeout(5):
                await simulator.stop()
        await simulator.stop()


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_client_that_leaves_is_no_error(tmp_path: Path, framing: Framing) -> None:
    (tmp_path / f"{DAY.isoformat()}.jsonl").write_bytes(bytes(32 << 20))
    async with Simulator(data_directory=tmp_path, framing=framing, gzip=False) as simulator:
        for _ in range(3):
            with await connect(simulator) as connection:
                await receive(connection, 1000)
        simulator.fault("stall")
        with await connect(simulator) as connection:
            await receive(connection, 1000)
        (await idle(simulator)).close()
        assert len((await meet(simulator)).body) == 32 << 20


async def test_a_damaged_data_file_is_an_error_of_the_simulator(tmp_path: Path) -> None:
    (tmp_path / f"{DAY.isoformat()}.jsonl.gz").write_bytes(b"this is not a gzip file\n")
    simulator = Simulator(data_directory=tmp_path)
    await simulator.start()
    assert (await meet(simulator)).received == b""
    with pytest.raises(gzip.BadGzipFile):
        await simulator.stop()


async def test_start_and_stop_can_be_repeated(session: aiohttp.ClientSession) -> None:
    simulator = Simulator()
    simulator.set_day(DAY, BODY)
    for _ in range(2):
        async with simulator:
            with pytest.raises(RuntimeError, match="started already"):
                await simulator.start()
            assert (await ask(session, simulator, query()))[1].encode() == BODY


def fetch(base_url: str) -> bytes:
    request = urllib.request.Request(
        f"{base_url}/api/2.0/export?{urlencode(query())}", headers={"Authorization": aiohttp.encode_basic_auth(*AUTH)}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        content: bytes = response.read()
        return content


def test_a_simulator_in_a_thread_serves_code_that_is_not_async() -> None:
    with SimulatorThread(Simulator()) as running:
        running.simulator.set_day(DAY, BODY)
        assert fetch(running.base_url) == BODY
        running.simulator.set_day(DAY, b"changed\n")
        assert fetch(running.base_url) == b"changed\n"
        assert len(running.wait_for_requests(2)) == 2
        with pytest.raises(TimeoutError):
            running.wait_for_requests(3, timeout_seconds=0.01)


def test_a_thread_that_cannot_start_raises() -> None:
    with SimulatorThread(Simulator()) as running:
        second = SimulatorThread(Simulator(port=running.simulator.port))
        with pytest.raises(OSError, match="address already in use"):
            second.start()


# Synthetic events


def test_synthetic_days_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    lines = list(synthetic.iter_lines(DAY, 10_000, 3))
    path = synthetic.write_day(tmp_path, DAY, 10_000, 3)
    assert path == tmp_path / f"{DAY.isoformat()}.jsonl.gz"
    assert gzip.decompress(path.read_bytes()) == b"".join(lines)
    assert len(lines) == 10_000
    assert lines != list(synthetic.iter_lines(DAY, 10_000, 4))
    assert lines != list(synthetic.iter_lines(NEXT_DAY, 10_000, 3))
    assert list(synthetic.iter_lines(DAY, 0, 3)) == []


def test_synthetic_events_have_mixpanels_form() -> None:
    events = []
    lines = list(synthetic.iter_lines(DAY, 20_000, 3))
    midnight = int(datetime(2024, 3, 1, tzinfo=UTC).timestamp())
    for line in lines:
        assert line.endswith(b"}}\n")
        event = json.loads(line)
        assert list(event) == ["event", "properties"]
        properties = event["properties"]
        names = list(properties)
        assert names[0] == "time"
        rest = [name.encode() for name in names if name not in {"time", "distinct_id"}]
        assert rest == sorted(rest)
        assert isinstance(properties["time"], int)
        assert midnight <= properties["time"] < midnight + 86_400
        assert properties["time"] * 1000 < properties["$mp_api_timestamp_ms"] < properties["mp_processing_time_ms"]
        assert len(properties.get("$insert_id", "x" * 36)) == 36
        events.append(properties | {"event": event["event"]})
    assert 600 < sum(map(len, lines)) / len(lines) < 700
    assert {type(event["$browser_version"]) for event in events} == {int, float, str}
    assert {type(event.get("item_price")) for event in events} == {int, str, type(None)}
    assert any(not event["$city"].isascii() for event in events)
    assert {event.get("$import") for event in events} == {None, True}
    for name, share in (("$insert_id", 0.01), ("distinct_id", 0.005)):
        missing = sum(name not in event for event in events) / len(events)
        assert share / 2 < missing < share * 2


def test_synthetic_days_hold_exact_copies_and_later_ones() -> None:
    lines = list(synthetic.iter_lines(DAY, 50_000, 3))
    exact = len(lines) - len(set(lines))
    times: dict[tuple[object, ...], list[int]] = {}
    for line in set(lines):
        event = json.loads(line)
        properties = event["properties"]
        if "$insert_id" in properties:
            key = (event["event"], properties.get("distinct_id"), properties["time"], properties["$insert_id"])
            times.setdefault(key, []).append(properties["mp_processing_time_ms"])
    later = Counter(len(values) for values in times.values())[2]
    assert 40 <= exact <= 60
    assert 40 <= later <= 60
    assert all(len(set(values)) == len(values) for values in times.values())


def test_an_old_project_has_local_time_and_server_time_apart() -> None:
    (line,) = synthetic.iter_lines(DAY, 1, 3, utc_offset=timedelta(hours=-7))
    (utc,) = synthetic.iter_lines(DAY, 1, 3)
    local_event, event = json.loads(line)["properties"], json.loads(utc)["properties"]
    assert local_event["time"] == event["time"]
    assert local_event["$mp_api_timestamp_ms"] - event["$mp_api_timestamp_ms"] == 7 * 3_600_000


def test_an_interrupted_day_leaves_no_file(tmp_path: Path) -> None:
    progress = []

    def interrupt(made: int) -> None:
        progress.append(made)
        if len(progress) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        synthetic.write_day(tmp_path, DAY, 30_000, 3, on_progress=interrupt)
    assert progress == [synthetic.BLOCK_EVENTS, 2 * synthetic.BLOCK_EVENTS]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("day", "events", "seed"), [(DAY, -1, 1), (DAY, 1, -1), (date(1999, 1, 1), 1, 1)])
def test_impossible_days_are_refused(day: date, events: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must"):
        next(synthetic.iter_lines(day, events, seed))
