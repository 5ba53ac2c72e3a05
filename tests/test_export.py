"""The client of the export: what it sends, where to, what it makes of every answer, and that no secret leaves it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import random
import socket
import traceback
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.source_side import DAY, settings_for, source_at
from worker.errors import (
    DayNotBegunError,
    ExportBrokenError,
    ExportRefusedError,
    ExportThrottledError,
    ExportUnavailableError,
    SourceError,
)
from worker.mixpanel.export import ADVICE, LEAST_BYTES_PER_WINDOW, MixpanelExports, authorization, parameters, scrub
from worker.mixpanel.simulator import (
    DEMO_PROJECT_ID,
    DEMO_PROJECT_SECRET,
    DEMO_USERNAME,
    FRAMINGS,
    Framing,
    Simulator,
)
from worker.mixpanel.spool import Spool
from worker.model import Credentials, Secret, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d","$insert_id":"i"}}\n' * 100
CANARY = 'p4ss: "wörd" <&+%/\\ ü'
"""Every way to write a text changes this one: JSON, HTML, a URL, base64."""


class RawServer:
    """Answers every request with the same bytes, then closes, resets, or says nothing more. Keeps what it was sent."""

    def __init__(self, answer: bytes = b"", ending: str = "close") -> None:
        self.answer = answer
        self.ending = ending
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self._stop = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._stop.set()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            self.asked.set()
            writer.write(self.answer)
            await writer.drain()
            if self.ending == "hold":
                gone = asyncio.create_task(reader.read())
                stop = asyncio.create_task(self._stop.wait())
                await asyncio.wait({gone, stop}, return_when=asyncio.FIRST_COMPLETED)
                for task in (gone, stop):
                    task.cancel()
                await asyncio.gather(gone, stop, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def answer(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        simulator.set_day(DAY, BODY)
        yield simulator


class Fetched:
    """What one export brought: its plain or gzip bytes, the sizes that were told, and whether the end was proved."""

    def __init__(self) -> None:
        self.data = b""
        self.told: list[int] = []
        self.proves_end = False


async def fetch(folder: Path, source: Source, day: date = DAY, **limits: Any) -> Fetched:
    fetched = Fetched()
    async with MixpanelExports(settings_for(folder, **limits)) as exports:
        with Spool(folder / "export") as spool:
            await exports.fetch(source, day, spool, fetched.told.append)
            fetched.data = b"".join(spool.chunks())
            fetched.proves_end = spool.proves_end
    assert sum(fetched.told) == len(fetched.data)
    return fetched


async def failure(folder: Path, source: Source, **limits: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetch(folder, source, **limits)
    assert_no_secret(caught.value, source.credentials)
    return caught.value


def assert_no_secret(error: BaseException, credentials: Credentials) -> None:
    """Neither the error nor anything that a log may print of it holds a credential, however it is written."""
    texts = [str(error), repr(error), repr(error.args), repr(vars(error))]
    chained: BaseException | None = error
    while chained is not None:
        texts += [repr(chained), str(chained)]
        chained = chained.__cause__ or chained.__context__
    trace = traceback.TracebackException.from_exception(error, capture_locals=False)
    texts.append("".join(trace.format()))
    secret = credentials.username if credentials.is_project_secret else credentials.password.reveal()
    forms = {
        secret,
        authorization(credentials).removeprefix("Basic ").rstrip("="),
        json.dumps(secret)[1:-1],
        quote(secret),
    }
    for text in texts:
        assert not any(form in text for form in forms if form), text


def query_of(request: bytes) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.split(b" ")[1].decode()).query, strict_parsing=True))


def header_of(request: bytes, name: str) -> list[str]:
    lines = request.decode("latin-1").split("\r\n")[1:]
    return [value for key, _, value in (line.partition(": ") for line in lines) if key.lower() == name]


# The request


async def test_a_service_account_names_its_project(tmp_path: Path, simulator: Simulator) -> None:
    fetched = await fetch(tmp_path, source_at(simulator.base_url))
    assert gzip.decompress(fetched.data) == BODY
    assert fetched.proves_end
    (request,) = simulator.requests
    assert (request.method, request.path) == ("GET", "/api/2.0/export")
    assert dict(request.query) == {"from_date": "2024-03-01", "to_date": "2024-03-01", "project_id": DEMO_PROJECT_ID}
    assert request.headers["authorization"] == DEMO_USERNAME
    assert request.headers["accept-encoding"] == "gzip"
    assert "cookie" not in request.headers


async def test_a_project_secret_is_a_user_without_password_and_without_project(
    tmp_path: Path, simulator: Simulator
) -> None:
    await fetch(tmp_path, source_at(simulator.base_url, DEMO_PROJECT_SECRET, ""))
    (request,) = simulator.requests
    assert request.headers["authorization"] == "(project secret)"
    assert dict(request.query) == {"from_date": "2024-03-01", "to_date": "2024-03-01"}


@pytest.mark.parametrize(("username", "password"), [("user.x", CANARY), ("sécret", ""), ("a", "b:c:d")])
def test_the_header_is_basic_authentication(username: str, password: str) -> None:
    header = authorization(Credentials(username, Secret(password)))
    scheme, encoded = header.split(" ")
    assert scheme == "Basic"
    assert base64.b64decode(encoded, validate=True).decode() == f"{username}:{password}"


async def test_events_and_where_arrive_as_they_are(tmp_path: Path) -> None:
    events, where = ("Sign up", 'a"b', "größe & Co", "x=1#?"), 'properties["plan"] == "ä&b+c %"'
    async with RawServer(answer(200)) as server:
        await fetch(tmp_path, source_at(server.base_url, events=events, where=where))
        query = query_of(server.requests[0])
    assert json.loads(query["event"]) == list(events)
    assert query["where"] == where


async def test_the_server_applies_events_and_where(tmp_path: Path, simulator: Simulator) -> None:
    lines = [
        b'{"event":"%b","properties":{"time":1,"city":"%b"}}\n' % pair
        for pair in ((b"A", b"x"), (b"B", b"x"), (b"A", b"y"))
    ]
    simulator.set_day(DAY, b"".join(lines))
    source = source_at(simulator.base_url, events=("A",), where='properties["city"] == "y"')
    assert (await fetch(tmp_path, source)).data == lines[2]


def test_parameters_of_nothing_are_left_out() -> None:
    query = parameters(source_at("http://x", events=(), where=None), date(2024, 2, 29))
    assert query == {"from_date": "2024-02-29", "to_date": "2024-02-29", "project_id": DEMO_PROJECT_ID}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("gzipped", [False, True])
async def test_a_body_arrives_whole(tmp_path: Path, simulator: Simulator, framing: Framing, *, gzipped: bool) -> None:
    body = random.Random(1).randbytes(1_500_000)
    simulator.set_day(DAY, body)
    simulator.gzip, simulator.framing = gzipped, framing
    fetched = await fetch(tmp_path, source_at(simulator.base_url))
    assert (gzip.decompress(fetched.data) if gzipped else fetched.data) == body
    assert fetched.proves_end == (framing != "close")
    assert len(fetched.told) > 1


async def test_many_exports_over_one_pool(tmp_path: Path, simulator: Simulator) -> None:
    async with MixpanelExports(settings_for(tmp_path)) as exports:
        for number in range(5):
            simulator.fault("drip" if number % 2 else "two_members")
            with Spool(tmp_path / "export") as spool:
                await exports.fetch(source_at(simulator.base_url), DAY, spool, lambda _size: None)
                assert gzip.decompress(b"".join(spool.chunks())) == BODY


async def test_F050_a_connection_that_was_closed_in_the_pool(tmp_path: Path, simulator: Simulator) -> None:
    async with MixpanelExports(settings_for(tmp_path)) as exports:
        for _ in range(2):
            with Spool(tmp_path / "export") as spool:
                await exports.fetch(source_at(simulator.base_url), DAY, spool, lambda _size: None)
            for task in list(simulator._connections):
                task.cancel()
            await asyncio.gather(*simulator._connections, return_exceptions=True)


# Refusals


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "code", "advice"),
    [
        (400, ExportRefusedError, "CONNECTOR-1001-400", ADVICE[400]),
        (401, ExportRefusedError, "CONNECTOR-1001-401", ADVICE[401]),
        (402, ExportRefusedError, "CONNECTOR-1001-402", ADVICE[402]),
        (403, ExportRefusedError, "CONNECTOR-1001-403", ADVICE[403]),
        (404, ExportRefusedError, "CONNECTOR-1001-404", ADVICE[404]),
        (405, ExportRefusedError, "CONNECTOR-1001-405", None),
        (408, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (413, ExportRefusedError, "CONNECTOR-1001-413", None),
        (429, ExportThrottledError, "CONNECTOR-1001-429", None),
        (500, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (502, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (503, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (504, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (599, ExportUnavailableError, "CONNECTOR-1001-503", None),
        (204, ExportRefusedError, "CONNECTOR-1001-204", None),
        (206, ExportRefusedError, "CONNECTOR-1001-206", None),
    ],
)
async def test_F001_F002_F003_F008_each_status_has_its_error(
    tmp_path: Path, status: int, kind: type[SourceError], code: str, advice: str | None, *, as_json: bool, gzipped: bool
) -> None:
    said = "the server's own words, größe"
    body = json.dumps({"request": "/x", "error": said}).encode() if as_json else said.encode()
    headers = ["Content-Encoding: gzip"] if gzipped else []
    body = b"" if status == 204 else gzip.compress(body) if gzipped else body
    async with RawServer(answer(status, body, *headers)) as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert type(error) is kind
    assert error.code == code
    assert error.advice == advice
    assert error.retry == (kind is not ExportRefusedError)
    assert str(status) in error.message
    if status != 204:
        assert said in error.message
    if advice:
        assert advice in str(error)
    if isinstance(error, ExportRefusedError):
        assert error.status == status


async def test_F001_a_400_that_means_401(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault("auth_400")
    error = await failure(tmp_path, source_at(simulator.base_url))
    assert isinstance(error, ExportRefusedError)
    assert (error.status, error.code, error.advice) == (401, "CONNECTOR-1001-401", ADVICE[401])
    assert "Unable to authenticate request" in error.message


async def test_F001_wrong_credentials(tmp_path: Path, simulator: Simulator) -> None:
    error = await failure(tmp_path, source_at(simulator.base_url, "user", CANARY))
    assert isinstance(error, ExportRefusedError)
    assert error.status == 401
    assert "Invalid credentials" in error.message


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("payment_required", "payment is required"),
        ("forbidden", "not permitted"),
        ("rate_limited", "too many export requests"),
        ("rate_limited_text", "rate limit reached"),
    ],
)
async def test_F002_what_mixpanel_says_is_shown(tmp_path: Path, simulator: Simulator, fault: str, said: str) -> None:
    simulator.fault(fault)
    assert said in (await failure(tmp_path, source_at(simulator.base_url))).message


@pytest.mark.parametrize("text", ["to_date cannot be later than today", "To_date cannot be LATER THAN TODAY."])
async def test_F004_a_day_that_has_not_begun(tmp_path: Path, simulator: Simulator, text: str) -> None:
    simulator.fault("later_than_today", text=text)
    error = await failure(tmp_path, source_at(simulator.base_url))
    assert isinstance(error, DayNotBegunError)
    assert not error.retry


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ((), None),
        (("30",), 30),
        ((" 30 ",), 30),
        (("0",), None),
        (("-5",), None),
        (("1000000000",), 1e9),
        (("1e9",), None),
        (("1.5",), None),
        (("soon",), None),
        (("",), None),
        (("5", "60"), 60),
        (("60", "5"), 60),
        (("soon", "7"), 7),
        (("٣",), None),
        (("Wed, 21 Oct 2015 07:28:00 GMT",), None),
        (("Wed, 99 Oct 2015 07:28:00 GMT",), None),
        (("Mon, 01 Jan 99999 00:00:00 GMT",), None),
        (("Mon, 01 Jan 2035 00:00:00 +9999999",), None),
        (("5, 60",), None),
    ],
)
async def test_F005_retry_after(tmp_path: Path, values: tuple[str, ...], seconds: float | None) -> None:
    headers = [f"Retry-After: {value}".encode().decode("latin-1") for value in values]
    async with RawServer(answer(429, b"rate limit reached", *headers)) as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert isinstance(error, ExportThrottledError)
    assert error.retry_after_seconds == seconds


async def test_F005_retry_after_as_a_date(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for when in (
        format_datetime(now + timedelta(seconds=90), usegmt=True),
        format_datetime(now + timedelta(seconds=90)),
    ):
        async with RawServer(answer(429, b"", f"Retry-After: {when}")) as server:
            error = await failure(tmp_path, source_at(server.base_url))
        assert isinstance(error, ExportThrottledError)
        assert error.retry_after_seconds is not None
        assert 60 < error.retry_after_seconds <= 90


@given(
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,5} \d\d:\d\d:\d\d ([+-]\d{1,7}|GMT)", fullmatch=True)
)
def test_F005_no_retry_after_is_too_odd(value: str) -> None:
    from multidict import CIMultiDict

    from worker.mixpanel.export import _retry_after

    class Answer:
        headers = CIMultiDict({"Retry-After": value})

    seconds = _retry_after(Answer())  # type: ignore[arg-type]
    assert seconds is None or seconds > 0


async def test_the_text_of_a_refusal_is_bounded_and_printable(tmp_path: Path) -> None:
    async with RawServer(answer(500, b"a\x1b[31m\r\n\0\xff" + b"x" * 3_000_000)) as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert len(error.message) < 600
    assert error.message.isprintable()


async def test_a_refusal_in_two_pieces_is_read_whole(tmp_path: Path, simulator: Simulator) -> None:
    body = json.dumps({"error": "first half, second half"}).encode()
    head = b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:20], body[20:]))
    async with RawServer(head + pieces + b"0\r\n\r\n") as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert error.message == "Mixpanel answered 401: first half, second half"


@pytest.mark.parametrize("ending", ["close", "hold"])
async def test_F011_a_refusal_whose_text_never_ends_is_still_that_refusal(tmp_path: Path, ending: str) -> None:
    async with RawServer(answer(403, b"not permi", length=1000), ending) as server:
        error = await failure(tmp_path, source_at(server.base_url), idle_seconds=0.2)
    assert isinstance(error, ExportRefusedError)
    assert error.status == 403
    assert "not permi" in error.message


# Secrets


@pytest.mark.parametrize(
    ("username", "password"), [("user.mp-service-account", CANARY), (CANARY, ""), ("user", "hunter2hunter2")]
)
async def test_F149_a_server_that_repeats_the_secret(tmp_path: Path, username: str, password: str) -> None:
    secret = password or username
    credentials = Credentials(username, Secret(password))
    header = authorization(credentials)
    forms = [
        secret,
        header,
        header.rstrip("="),
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret, safe=""),
    ]
    bodies = [form.encode() for form in forms]
    bodies += [json.dumps({"error": f"bad {form}"}).encode() for form in forms]
    bodies += [json.dumps({"error": {"message": f"bad {form}"}}).encode() for form in forms[:2]]
    # the end of what is shown, and the end of what is read, fall into the secret
    bodies += [b"x" * padding + secret.encode() for padding in (495, 490, 499, 4090)]
    for body in bodies:
        for status in (400, 401, 429, 500):
            async with RawServer(answer(status, body)) as server:
                error = await failure(tmp_path, source_at(server.base_url, username, password))
        shown = error.message
        for start in range(len(secret) - 7):
            assert secret[start : start + 8] not in shown, (body, shown)


def test_F149_scrub_leaves_the_rest() -> None:
    credentials = Credentials("user", Secret("pass"))
    assert scrub("a user with a pass and dXNlcjpwYXNz.", credentials) == "a user with a *** and ***."
    assert scrub("nothing", Credentials("nothing", Secret(""))) == "***"


async def test_F149_a_redirect_does_not_show_where_to(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault("redirect", location=f"http://{quote(CANARY)}@elsewhere.example/")
    error = await failure(tmp_path, source_at(simulator.base_url))
    assert "elsewhere" not in str(error)


def test_F149_a_source_does_not_print_its_credentials() -> None:
    source = source_at("http://x", "user", CANARY)
    assert CANARY not in repr(source)
    assert CANARY not in repr(source.credentials)
    assert CANARY not in repr(MixpanelExports(settings_for(tmp_folder())))


def tmp_folder() -> Path:
    from pathlib import Path

    return Path("unused")


# Redirects and proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_F044_F045_no_redirect_is_followed(tmp_path: Path, status: int) -> None:
    async with RawServer(answer(200, BODY)) as other:
        redirect = answer(status, b"", f"Location: {other.base_url}/api/2.0/export")
        async with RawServer(redirect) as server:
            error = await failure(tmp_path, source_at(server.base_url, "user", CANARY))
            assert len(server.requests) == 1
        assert other.requests == []
    assert isinstance(error, ExportRefusedError)
    assert (error.status, error.advice) == (status, ADVICE[404])
    assert "redirect" in error.message


async def test_F047_the_environment_names_no_proxy_and_no_password(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\ndefault login other password other\n")
    async with RawServer(answer(200, BODY)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.base_url)
            monkeypatch.setenv(name.upper(), proxy.base_url)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        await fetch(tmp_path, source_at(simulator.base_url))
        assert proxy.requests == []
    assert simulator.requests[0].headers["authorization"] == DEMO_USERNAME


async def test_no_cookie_is_kept(tmp_path: Path) -> None:
    async with RawServer(answer(200, BODY, "Set-Cookie: a=b; Path=/", "Connection: close")) as server:
        async with MixpanelExports(settings_for(tmp_path)) as exports:
            for _ in range(2):
                with Spool(tmp_path / "export") as spool:
                    await exports.fetch(source_at(server.base_url), DAY, spool, lambda _size: None)
        assert [header_of(request, "cookie") for request in server.requests] == [[], []]


# Time


async def test_F010_a_slow_first_byte_is_waited_for(tmp_path: Path, simulator: Simulator) -> None:
    # longer than the longest silence within an answer
    simulator.fault("slow_first_byte", seconds=0.6)
    fetched = await fetch(tmp_path, source_at(simulator.base_url), first_byte_seconds=20.0, idle_seconds=0.3)
    assert gzip.decompress(fetched.data) == BODY


async def test_F010_but_not_for_ever(tmp_path: Path) -> None:
    async with RawServer(b"", "hold") as server:
        error = await failure(tmp_path, source_at(server.base_url), first_byte_seconds=0.2)
    assert isinstance(error, ExportUnavailableError)
    assert "nothing within 0.2 seconds" in error.message


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("offset", [0, 50])
async def test_F011_a_stall_is_noticed(tmp_path: Path, simulator: Simulator, offset: int, *, gzipped: bool) -> None:
    simulator.fault("stall", offset=offset, gzip=gzipped)
    error = await failure(tmp_path, source_at(simulator.base_url), idle_seconds=0.2)
    assert isinstance(error, ExportBrokenError)
    assert error.reason == "stalled"
    assert error.retry


async def test_F011_a_byte_now_and_then_is_a_stall(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault("slow_loris", seconds=0.02, framing="chunked")
    started = asyncio.get_running_loop().time()
    error = await failure(tmp_path, source_at(simulator.base_url), idle_seconds=0.4)
    assert isinstance(error, ExportBrokenError)
    assert error.reason == "stalled"
    assert asyncio.get_running_loop().time() - started < 5


async def test_F010_a_long_export_that_keeps_coming_is_no_stall(tmp_path: Path, simulator: Simulator) -> None:
    body = random.Random(2).randbytes(LEAST_BYTES_PER_WINDOW * 12)
    simulator.set_day(DAY, body)
    # twelve windows' worth of bytes, each of them well within its window, and all together longer than one
    simulator.fault("drip", gzip=False, framing="length", piece_bytes=LEAST_BYTES_PER_WINDOW // 2, seconds=0.05)
    started = asyncio.get_running_loop().time()
    fetched = await fetch(tmp_path, source_at(simulator.base_url), idle_seconds=0.8)
    assert fetched.data == body
    assert asyncio.get_running_loop().time() - started > 0.8


async def test_F009_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    error = await failure(tmp_path, source_at(f"http://127.0.0.1:{port}", "user", CANARY))
    assert isinstance(error, ExportUnavailableError)
    assert "could not be reached" in error.message


async def test_F009_a_name_that_does_not_exist(tmp_path: Path) -> None:
    error = await failure(tmp_path, source_at("http://nobody.invalid", "user", CANARY), first_byte_seconds=3.0)
    assert isinstance(error, ExportUnavailableError)
    assert error.retry


async def test_F009_a_server_that_accepts_nothing(tmp_path: Path) -> None:
    with socket.socket() as full, contextlib.ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # until the queue of connections is full, further ones wait
        for _ in range(8):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        source = source_at(f"http://127.0.0.1:{full.getsockname()[1]}")
        error = await failure(tmp_path, source, connect_seconds=0.3)
    assert isinstance(error, ExportUnavailableError)
    assert "0.3 seconds" in error.message


async def test_F046_a_server_that_speaks_no_tls(tmp_path: Path) -> None:
    async with RawServer(answer(200, BODY)) as server:
        error = await failure(
            tmp_path, source_at(server.base_url.replace("http:", "https:"), "user", CANARY), first_byte_seconds=0.5
        )
        assert all(b"Basic" not in request for request in server.requests)
    assert isinstance(error, ExportRefusedError | ExportUnavailableError)


async def test_an_export_can_be_cancelled(tmp_path: Path) -> None:
    async with RawServer(answer(200, b"x" * 10, length=1000), "hold") as server:
        fetching = asyncio.create_task(fetch(tmp_path, source_at(server.base_url)))
        await server.asked.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert not (tmp_path / "export").exists()


# Answers that are not HTTP, or not quite


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"nonsense\r\n\r\n", id="no status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", id="two lengths"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            id="length and chunks",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", id="long header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 50_000 + b"\r\n", id="many headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Len", id="half a head"),
        pytest.param(b"\x16\x03\x01\x02\x00", id="TLS"),
    ],
)
async def test_F048_an_answer_that_breaks_http_is_asked_for_again(tmp_path: Path, raw: bytes) -> None:
    async with RawServer(raw) as server:
        error = await failure(tmp_path, source_at(server.base_url, "user", CANARY))
    assert isinstance(error, ExportUnavailableError | ExportBrokenError)
    assert error.retry


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "compress", "x" * 3000])
async def test_F017_an_encoding_nobody_asked_for(tmp_path: Path, encoding: str) -> None:
    async with RawServer(answer(200, b"x", f"Content-Encoding: {encoding}")) as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert isinstance(error, ExportBrokenError)
    assert error.reason == "encoding"
    assert len(error.message) < 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity", ""])
async def test_F017_encodings_that_are_taken(tmp_path: Path, encoding: str) -> None:
    async with RawServer(answer(200, BODY, f"Content-Encoding: {encoding}")) as server:
        assert (await fetch(tmp_path, source_at(server.base_url))).data == BODY


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
    ],
)
async def test_F014_gzip_of_which_no_byte_came_is_no_empty_day(tmp_path: Path, head: str) -> None:
    end = b"0\r\n\r\n" if "chunked" in head else b""
    async with RawServer(f"{head}Content-Encoding: gzip\r\n\r\n".encode() + end) as server:
        error = await failure(tmp_path, source_at(server.base_url))
    assert isinstance(error, ExportBrokenError)
    assert error.reason == "cut_gzip"
