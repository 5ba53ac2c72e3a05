"""A Mixpanel export API on loopback that behaves like the real one and breaks on request.

The framing of HTTP is written by hand here: a web framework cannot send a chunk size of ``zz``, end a body short of its
Content-Length, or reset the connection after the 4711th byte, and real networks do all three.

Content comes, day by day, from ``Simulator.set_day``, else from the data directory, else from synthetic events.
Faults are queued by name (``describe_faults``), each for the next so many valid requests; then all is normal again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import socket
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import orjson
from isal import igzip, isal_zlib

from worker.mixpanel import synthetic

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO, Self

DEMO_USERNAME: Final = "demo.mp-service-account"
DEMO_PASSWORD: Final = "demo-secret"  # noqa: S105  # opens nothing but this simulator
DEMO_PROJECT_ID: Final = "2384945"
DEMO_PROJECT_SECRET: Final = "demo-project-secret"  # noqa: S105  # opens nothing but this simulator

EXPORT_PATH: Final = "/api/2.0/export"
GZIP_THRESHOLD_BYTES: Final = 1400
LIMIT_MAXIMUM: Final = 100_000

Framing = Literal["chunked", "length", "close"]
FRAMINGS: Final[tuple[Framing, ...]] = ("chunked", "length", "close")

_GZIP_WINDOW_BITS = 31
_PIECE_BYTES = 512 * 1024
_IN_LINE_BYTES = 256 * 1024
_REQUEST_HEAD_BYTES = 64 * 1024
_NO_LINGER = struct.pack("ii", 1, 0)
_TEXT_PLAIN = "text/plain"
_JSON = "application/json"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it arrived. ``fault`` is the fault it suffers, ``status`` the answer's (None: no answer).

    Header names are in lower case. Of Authorization only the user name is kept, of a project secret nothing.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    received_at: datetime
    status: int | None
    fault: str | None


OnRequest = Callable[[RecordedRequest], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Quota:
    """Mixpanel's limits of one project. ``retry_after``: whether a 429 says when to come again."""

    queries_per_hour: int = 60
    queries_per_second: int = 3
    concurrent_queries: int = 100
    retry_after: bool = False


@dataclass(frozen=True, slots=True)
class _FaultKind:
    description: str
    options: tuple[str, ...] = ()


_ENCODED = ("gzip", "framing")

_FAULTS: Final[Mapping[str, _FaultKind]] = MappingProxyType(
    {
        # refused
        "unauthorized": _FaultKind("401 with a JSON error", ("text",)),
        "auth_400": _FaultKind("400 with the text 'Unable to authenticate request'", ("text",)),
        "payment_required": _FaultKind("402: the account is blocked until it pays", ("text",)),
        "forbidden": _FaultKind("403 with a JSON error", ("text",)),
        "rate_limited": _FaultKind("429 with a JSON error; retry_after: header or headers", ("text", "retry_after")),
        "rate_limited_text": _FaultKind("429 with the plain text 'rate limit reached'", ("text", "retry_after")),
        "server_error": _FaultKind("status 500 (or 502, 503, 504)", ("status", "text", "retry_after")),
        "later_than_today": _FaultKind("400 with the text 'to_date cannot be later than today'", ("text",)),
        "redirect": _FaultKind("302 to location", ("location",)),
        # 200 with something else than events
        "html": _FaultKind("200 with a web page, as a captive portal sends", _ENCODED),
        "error_object": _FaultKind("200 with one JSON error object", _ENCODED),
        "empty": _FaultKind("200 with an empty body that ends properly", ("framing",)),
        # 200 with text that stops early
        "terminated_early": _FaultKind("half of the lines, then the line 'terminated early'", _ENCODED),
        "export_terminated_early": _FaultKind("half of the lines, then the line 'export terminated early'", _ENCODED),
        "terminated_early_whole": _FaultKind("a body of nothing but 'terminated early'", _ENCODED),
        "quoted_terminated_early": _FaultKind("half of the lines, then the line '\"terminated early\"'", _ENCODED),
        "error_tail": _FaultKind("half of the lines, then '{\"error\":' and the proper end of the body", _ENCODED),
        "truncated_line": _FaultKind("ends within a line; encoding and framing are intact", _ENCODED),
        # 200 with damaged encoding, framing intact
        "cut_intact": _FaultKind("encoded body cut at offset (half) inside intact framing", ("offset", *_ENCODED)),
        "flipped_bit": _FaultKind(
            "bit (0) of the encoded byte at offset (middle) flipped", ("offset", "bit", *_ENCODED)
        ),
        "bad_crc": _FaultKind("wrong checksum in the gzip trailer", ("framing",)),
        "bad_length": _FaultKind("wrong length in the gzip trailer", ("framing",)),
        "missing_trailer": _FaultKind("gzip body without its last 8 bytes", ("framing",)),
        "trailing_text": _FaultKind("the text 'terminated early' after the gzip trailer", ("framing",)),
        "two_members": _FaultKind("valid: gzip in two members", ("framing",)),
        "zero_padding": _FaultKind("valid: zero bytes after the gzip trailer", ("framing",)),
        "header_says_gzip_but_plain": _FaultKind("Content-Encoding says gzip, the body is plain", ("framing",)),
        "gzip_without_header": _FaultKind("gzip body without Content-Encoding", ("framing",)),
        "unknown_encoding": _FaultKind("Content-Encoding br", ("framing",)),
        "gzip_bomb": _FaultKind(
            "raw_bytes (1 GiB) of valid lines in about a thousandth of that", ("raw_bytes", "framing")
        ),
        # the connection
        "cut_at": _FaultKind("connection closed after offset (half) bytes of the encoded body", ("offset", *_ENCODED)),
        "reset_at": _FaultKind("connection reset after offset (half) bytes of the encoded body", ("offset", *_ENCODED)),
        "close_before_response": _FaultKind("connection closed without an answer"),
        "slow_first_byte": _FaultKind("valid: nothing for seconds (1), then the answer", ("seconds", *_ENCODED)),
        "stall": _FaultKind(
            "offset (half) bytes of the body, then silence until the client leaves", ("offset", *_ENCODED)
        ),
        "slow_loris": _FaultKind("piece_bytes (1) every seconds (5)", ("piece_bytes", "seconds", *_ENCODED)),
        "drip": _FaultKind(
            "valid: pieces of piece_bytes (7), seconds (0) apart", ("piece_bytes", "seconds", *_ENCODED)
        ),
        "bad_chunk_size": _FaultKind("a chunk size that is no number, in the middle of the body", ("gzip",)),
        "huge_header": _FaultKind("a header of header_bytes (20000)", ("header_bytes", *_ENCODED)),
    }
)


def describe_faults() -> dict[str, str]:
    """Every fault's name with one line on what the client meets; options are named, defaults in brackets."""
    return {name: kind.description for name, kind in _FAULTS.items()}


def fault_options(name: str) -> tuple[str, ...]:
    """The options that ``Simulator.fault`` takes for this fault, beside ``times`` and ``day``."""
    return _FAULTS[name].options


@dataclass(frozen=True, slots=True)
class _Fault:
    name: str
    day: date | None
    offset: int | None = None
    bit: int = 0
    status: int | None = None
    text: str | None = None
    retry_after: tuple[str, ...] = ()
    location: str | None = None
    seconds: float | None = None
    piece_bytes: int | None = None
    raw_bytes: int | None = None
    header_bytes: int | None = None
    gzip: bool | None = None
    framing: Framing | None = None


class _Stopped(Exception):  # noqa: N818  # not an error: the simulator stops and a thread leaves its work
    pass


class _ClientGone(Exception):  # noqa: N818  # not an error: a client may leave at any time
    pass


@dataclass(frozen=True, slots=True)
class _FileRange:
    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Body:
    """Bytes to send, partly in memory and partly in files, that can be cut and joined without reading them."""

    parts: tuple[bytes | _FileRange, ...] = ()

    @classmethod
    def of(cls, content: bytes | Path) -> _Body:
        if isinstance(content, Path):
            return cls((_FileRange(content, 0, content.stat().st_size),))
        return cls((content,))

    @property
    def size(self) -> int:
        return sum(_length(part) for part in self.parts)

    def __add__(self, other: _Body) -> _Body:
        return _Body(self.parts + other.parts)

    def slice(self, start: int, stop: int | None = None) -> _Body:
        stop = self.size if stop is None else stop
        kept: list[bytes | _FileRange] = []
        position = 0
        for part in self.parts:
            first, last = max(start - position, 0), min(stop - position, _length(part))
            position += _length(part)
            if first >= last:
                continue
            if isinstance(part, bytes):
                kept.append(part[first:last])
            else:
                kept.append(_FileRange(part.path, part.offset + first, last - first))
        return _Body(tuple(kept))

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                for start in range(0, len(part), piece_bytes):
                    yield part[start : start + piece_bytes]
                continue
            with part.path.open("rb") as file:
                file.seek(part.offset)
                remaining = part.length
                while remaining and (piece := file.read(min(piece_bytes, remaining))):
                    remaining -= len(piece)
                    yield piece

    def read(self) -> bytes:
        return b"".join(self.pieces(_PIECE_BYTES))

    def first_half_of_lines(self) -> _Body:
        r"""About half of the body, ending with ``\n``; nothing if the first half has no line end."""
        stop = self.size // 2
        while stop > 0:
            start = max(0, stop - _PIECE_BYTES)
            line_end = self.slice(start, stop).read().rfind(b"\n")
            if line_end >= 0:
                return self.slice(0, start + line_end + 1)
            stop = start
        return _Body()


def _length(part: bytes | _FileRange) -> int:
    return len(part) if isinstance(part, bytes) else part.length


class _MemoryDay:
    """A day set from Python; compressed once, however often it is asked for."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.compressed: bytes | None = None


_Source = _MemoryDay | Path


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: _Body = _Body()
    framing: Framing = "length"
    # None: the whole body and its proper end. Else what happens after so many bytes of it.
    stop_at: int | None = None
    ending: Literal["close", "reset", "hold", "bad_chunk_size"] = "close"
    piece_bytes: int = _PIECE_BYTES
    seconds_before: float = 0.0
    seconds_between: float | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    version: str

    @property
    def offers_gzip(self) -> bool:
        offers = self.headers.get("accept-encoding", "").lower().split(",")
        return any(re.fullmatch(r"\s*(gzip|\*)\s*(;\s*q=(0\.\d*[1-9]\d*|1(\.0*)?)\s*)?", offer) for offer in offers)

    @property
    def keeps_alive(self) -> bool:
        return (
            self.version == "HTTP/1.1"
            and "close" not in self.headers.get("connection", "").lower()
            and self.headers.get("content-length", "0") == "0"
            and "transfer-encoding" not in self.headers
        )


@dataclass(frozen=True, slots=True)
class _Query:
    """A valid query: the days asked for, and what a line must fulfil to be sent."""

    from_date: date
    to_date: date
    events: frozenset[str] | None
    where: Callable[[Mapping[str, object]], bool] | None
    limit: int | None

    @property
    def days(self) -> Iterator[date]:
        return (self.from_date + timedelta(days=n) for n in range((self.to_date - self.from_date).days + 1))

    @property
    def filters(self) -> bool:
        return self.events is not None or self.where is not None or self.limit is not None


class _Refused(Exception):  # noqa: N818  # an answer, not an error of the simulator
    def __init__(self, status: int, text: str, *, json: bool = True, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.json = json
        self.headers = headers

    def answer(self, target: str) -> _Answer:
        if self.json:
            return _Answer(self.status, (("Content-Type", _JSON), *self.headers), _error_body(self.text, target))
        return _Answer(self.status, (("Content-Type", _TEXT_PLAIN), *self.headers), _Body.of(self.text.encode()))


def _error_body(text: str, target: str) -> _Body:
    return _Body.of(orjson.dumps({"error": text, "request": target}))


class _Meter:
    """Counts the queries of the project against its quota."""

    def __init__(self, quota: Quota, project_id: str, clock: Callable[[], float]) -> None:
        self._quota = quota
        self._project_id = project_id
        self._clock = clock
        self._started: deque[float] = deque()
        self._running = 0

    def begin(self) -> None:
        """Count one query in, or raise ``_Refused`` (429) and count nothing."""
        now = self._clock()
        while self._started and self._started[0] <= now - 3600:
            self._started.popleft()
        last_second = [started for started in self._started if started > now - 1]
        if self._running >= self._quota.concurrent_queries:
            raise self._refusal("too many export requests in progress for this project", 1)
        if len(self._started) >= self._quota.queries_per_hour:
            raise self._refusal(
                f"Query rate limit exceeded for project_id: {self._project_id}. {self._running}/"
                f"{self._quota.concurrent_queries} queries running concurrently and {len(self._started) + 1}/"
                f"{self._quota.queries_per_hour} queries running in the last hour. For more information, please consult"
                " our documentation at https://help.mixpanel.com/hc/en-us/articles/115004602563-Rate-Limits-for-Export"
                "-API-Endpoints",
                self._started[0] + 3600 - now,
            )
        if len(last_second) >= self._quota.queries_per_second:
            raise self._refusal("rate limit reached", last_second[0] + 1 - now, json=False)
        self._started.append(now)
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def _refusal(self, text: str, wait_seconds: float, *, json: bool = True) -> _Refused:
        headers = (("Retry-After", str(int(wait_seconds) + 1)),) if self._quota.retry_after else ()
        return _Refused(429, text, json=json, headers=headers)


class Simulator:
    """Serves ``GET /api/2.0/export`` on loopback: an async context manager, or ``start`` and ``stop``.

    A day's content is what ``set_day`` gave, else ``YYYY-MM-DD.jsonl`` or ``YYYY-MM-DD.jsonl.gz`` of
    ``data_directory``, else ``events_per_day`` synthetic events (for ``days``, or any day if None), else nothing: an
    empty 200. Synthetic days are made on first demand, into ``cache_directory`` if given (and kept there), in a thread.

    A query of several days joins the days as they are; days stored as ``.jsonl.gz`` are sent as stored, so such an
    answer has one gzip member per day. A line of a filtered query that is no JSON object passes every filter.

    ``today`` decides what ``to_date`` is too late. ``gzip`` forces the encoding, None negotiates it as Mixpanel does:
    if offered, and above 1400 bytes. ``monotonic_seconds`` is the clock of the quota. ``on_request`` is called for
    each request before it is answered; if it returns an awaitable, the answer waits for it; what it raises, ``stop``
    raises.

    ``fault``, ``set_day``, ``requests``, ``clear_faults`` and ``clear_requests`` may be used from any thread.
    """

    def __init__(
        self,
        *,
        data_directory: Path | None = None,
        events_per_day: int = 0,
        days: Collection[date] | None = None,
        seed: int = 1,
        cache_directory: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        username: str = DEMO_USERNAME,
        password: str = DEMO_PASSWORD,
        project_id: str = DEMO_PROJECT_ID,
        project_secret: str = DEMO_PROJECT_SECRET,
        today: Callable[[], date] | None = None,
        quota: Quota | bool = False,
        framing: Framing = "chunked",
        gzip: bool | None = None,
        on_request: OnRequest | None = None,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self.framing: Framing = framing
        self.gzip = gzip
        self.on_request = on_request
        self._requested_port = port
        self._data_directory = data_directory
        self._events_per_day = events_per_day
        self._days = None if days is None else frozenset(days)
        self._seed = seed
        self._cache_directory = cache_directory
        self._username = username
        self._password = password
        self._project_id = project_id
        self._project_secret = project_secret
        self._today = today or (lambda: datetime.now(UTC).date())
        self._meter: _Meter | None = None
        if quota is not False:
            self._meter = _Meter(Quota() if quota is True else quota, project_id, monotonic_seconds)

        self._lock = threading.Lock()
        self._memory_days: dict[date, _MemoryDay] = {}
        self._faults: deque[_Fault] = deque()
        self._requests: list[RecordedRequest] = []
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._stopping = threading.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._work_directory: tempfile.TemporaryDirectory[str] | None = None
        self._made_files: dict[object, asyncio.Future[Path]] = {}
        self._numbers = count()

    @property
    def port(self) -> int:
        """The port listened on. Raises ``RuntimeError`` before ``start``."""
        if self._server is None:
            raise RuntimeError("the simulator is not started")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        """``http://host:port``, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, oldest first; the caller's own copy."""
        with self._lock:
            return list(self._requests)

    def clear_requests(self) -> None:
        """Forget the recorded requests."""
        with self._lock:
            self._requests.clear()

    def set_day(self, day: date, body: bytes) -> None:
        """Serve ``body``, plain bytes sent exactly as they are, for ``day`` from the next request on."""
        with self._lock:
            self._memory_days[day] = _MemoryDay(body)

    def fault(
        self,
        name: str,
        *,
        times: int = 1,
        day: date | None = None,
        offset: int | None = None,
        bit: int | None = None,
        status: int | None = None,
        text: str | None = None,
        retry_after: str | tuple[str, ...] | None = None,
        location: str | None = None,
        seconds: float | None = None,
        piece_bytes: int | None = None,
        raw_bytes: int | None = None,
        header_bytes: int | None = None,
        gzip: bool | None = None,
        framing: Framing | None = None,
    ) -> None:
        """Let the next ``times`` valid requests (of ``day`` only, if given) suffer the fault called ``name``.

        Faults wait in a queue; a request takes the first that fits, one that is refused as invalid or over the quota
        takes none. A fault of gzip is sent as gzip whatever the client offers. An ``offset`` beyond the body means
        its end. Raises ``ValueError`` for an unknown name, or an option that this fault does not have.
        """
        kind = _FAULTS.get(name)
        if kind is None:
            raise ValueError(f"unknown fault {name!r}, known: {', '.join(_FAULTS)}")
        options = {
            "offset": offset,
            "bit": bit,
            "status": status,
            "text": text,
            "retry_after": retry_after,
            "location": location,
            "seconds": seconds,
            "piece_bytes": piece_bytes,
            "raw_bytes": raw_bytes,
            "header_bytes": header_bytes,
            "gzip": gzip,
            "framing": framing,
        }
        foreign = [option for option, value in options.items() if value is not None and option not in kind.options]
        if foreign:
            raise ValueError(f"fault {name} has no option {', '.join(foreign)}; it has: {', '.join(kind.options)}")
        if times < 1 or (offset or 0) < 0 or not 0 <= (bit or 0) <= 7 or (piece_bytes or 1) < 1:
            raise ValueError("times and piece_bytes must be 1 or more, offset 0 or more, bit 0 to 7")
        fault = _Fault(
            name,
            day,
            offset=offset,
            bit=bit or 0,
            status=status,
            text=text,
            retry_after=(retry_after,) if isinstance(retry_after, str) else retry_after or (),
            location=location,
            seconds=seconds,
            piece_bytes=piece_bytes,
            raw_bytes=raw_bytes,
            header_bytes=header_bytes,
            gzip=gzip,
            framing=framing,
        )
        with self._lock:
            self._faults.extend([fault] * times)

    @property
    def pending_faults(self) -> list[str]:
        """The names of the faults that no request has met yet, in order, one per time."""
        with self._lock:
            return [fault.name for fault in self._faults]

    def clear_faults(self) -> None:
        """Drop the faults that no request has met yet."""
        with self._lock:
            self._faults.clear()

    async def wait_for_requests(self, number: int, *, timeout_seconds: float = 10.0) -> list[RecordedRequest]:
        """Return the requests once there are at least ``number``; raises ``TimeoutError`` when that takes too long.

        May be awaited in any event loop. A request counts as soon as it has arrived, before it is answered.
        """
        loop = asyncio.get_running_loop()
        waiter = (number, loop, loop.create_future())
        with self._lock:
            if len(self._requests) >= number:
                return list(self._requests)
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_seconds):
                await waiter[2]
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        return self.requests

    async def start(self) -> None:
        """Listen. Raises ``OSError`` if the port is taken."""
        if self._server is not None:
            raise RuntimeError("the simulator is started already")
        self._stopping.clear()
        self._server = await asyncio.start_server(
            self._connected, self.host, self._requested_port, limit=_REQUEST_HEAD_BYTES
        )
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="mixpanel-simulator")
        self._work_directory = tempfile.TemporaryDirectory(prefix="mixpanel-simulator-")

    async def stop(self) -> None:
        """Close the port and all connections at once, whatever they are doing, and remove all temporary files.

        Raises what an ``on_request`` hook raised, or what went wrong in the simulator itself. May be called again.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.gather(*self._made_files.values(), return_exceptions=True)
        await server.wait_closed()
        executor, work_directory = self._executor, self._work_directory
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)
        if work_directory is not None:
            work_directory.cleanup()
        self._made_files.clear()
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # One connection

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping.is_set():
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve_connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(partial(self._disconnected, writer))

    def _disconnected(self, writer: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which never runs if it is cancelled at once.
        writer.transport.abort()
        self._connections.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._errors.append(error)
            task.get_loop().call_exception_handler({"message": "the Mixpanel simulator failed", "exception": error})

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client may leave at any time, and no trace of that is worth keeping.
        with contextlib.suppress(_ClientGone, _Stopped, ConnectionError):
            while await self._serve_request(reader, writer):
                pass
            writer.close()
            await writer.wait_closed()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection may serve another."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            # The client asks no more, but may still be reading what was sent.
            return False
        except asyncio.LimitOverrunError:
            await self._send(reader, writer, _Answer(431), HTTPStatus(431).phrase, alive=False)
            return False
        request = _parse(head)
        if request is None:
            await self._send(reader, writer, _Answer(400), "Bad Request", alive=False)
            return False
        query: _Query | None = None
        fault: _Fault | None = None
        answer: _Answer | None = None
        metered = False
        try:
            query = self._accept(request)
            if self._meter is not None:
                self._meter.begin()
                metered = True
        except _Refused as refused:
            answer = refused.answer(request.target)
        else:
            fault = self._take_fault(query)
            if fault is not None:
                answer = self._refusing_answer(fault, request)
        try:
            await self._record(request, answer, fault)
            if fault is not None and fault.name == "close_before_response":
                return False
            with contextlib.ExitStack() as scratch:
                if answer is None:
                    assert query is not None
                    answer = await self._export(request, query, fault, scratch)
                alive = request.keeps_alive and answer.framing != "close" and answer.stop_at is None
                if request.version == "HTTP/1.0" and answer.framing == "chunked":
                    answer = replace(answer, framing="close")
                await self._send(reader, writer, answer, HTTPStatus(answer.status).phrase, alive=alive)
        finally:
            if metered:
                assert self._meter is not None
                self._meter.end()
        return alive

    async def _record(self, request: _Request, answer: _Answer | None, fault: _Fault | None) -> None:
        status = 200 if answer is None else answer.status
        recorded = RecordedRequest(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=MappingProxyType({**request.headers, **_reduced_authorization(request.headers)}),
            received_at=datetime.now(UTC),
            status=None if fault is not None and fault.name == "close_before_response" else status,
            fault=None if fault is None else fault.name,
        )
        with self._lock:
            self._requests.append(recorded)
            ready = [waiter for waiter in self._waiters if len(self._requests) >= waiter[0]]
            self._waiters = [waiter for waiter in self._waiters if waiter not in ready]
        for _, loop, future in ready:
            # A loop that is closed has nobody waiting in it any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake, future)
        if self.on_request is not None:
            waiting = self.on_request(recorded)
            if waiting is not None:
                await waiting

    # What the query asks for

    def _accept(self, request: _Request) -> _Query:
        """Raises ``_Refused`` in the order in which a server looks: route, credentials, parameters."""
        if request.path != EXPORT_PATH:
            raise _Refused(404, "Not Found")
        if request.method != "GET":
            raise _Refused(405, "Method Not Allowed", headers=(("Allow", "GET"),))
        self._authenticate(request)
        from_date, to_date = _date_parameter(request, "from_date"), _date_parameter(request, "to_date")
        if to_date > self._today():
            raise _Refused(400, "to_date cannot be later than today", json=False)
        if from_date > to_date:
            raise _Refused(400, "from_date cannot be later than to_date")
        if request.query.get("time_in_ms", "false").lower() != "false":
            raise _Refused(400, "time_in_ms is not simulated")
        return _Query(
            from_date,
            to_date,
            _event_parameter(request.query.get("event")),
            _where_parameter(request.query.get("where")),
            _limit_parameter(request.query.get("limit")),
        )

    def _authenticate(self, request: _Request) -> None:
        project_id = request.query.get("project_id")
        credentials = _credentials(request.headers.get("authorization", ""))
        service_account = credentials == (self._username, self._password) and project_id == self._project_id
        project_secret = credentials == (self._project_secret, "") and project_id is None
        if not service_account and not project_secret:
            raise _Refused(401, "Invalid credentials", headers=(("WWW-Authenticate", 'Basic realm="mixpanel"'),))

    def _take_fault(self, query: _Query) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.day is None or query.from_date <= fault.day <= query.to_date:
                    self._faults.remove(fault)
                    return fault
        return None

    # The body

    async def _export(
        self, request: _Request, query: _Query, fault: _Fault | None, scratch: contextlib.ExitStack
    ) -> _Answer:
        sources = [source for day in query.days if (source := await self._source(day)) is not None]
        name = None if fault is None else fault.name
        plain: _Body | None = None
        if query.filters:
            whole = await self._plain(sources)
            plain = await self._made(scratch, lambda file: self._filter(whole, query, file))
        if fault is not None and name in _TEXT_FAULTS:
            plain = plain if plain is not None else await self._plain(sources)
            plain = _TEXT_FAULTS[fault.name](plain, request.target)
        if name == "gzip_bomb":
            assert fault is not None
            raw_bytes = 1 << 30 if fault.raw_bytes is None else fault.raw_bytes
            encoded = await self._made(scratch, lambda file: self._write_bomb(raw_bytes, file))
            return self._transport(_encoded_answer(encoded, "gzip"), fault)

        forced = self.gzip
        if fault is not None and fault.gzip is not None:
            forced = fault.gzip
        if name in _GZIP_FAULTS:
            forced = True
        elif name in _PLAIN_FAULTS:
            forced = False
        if forced is None:
            forced = request.offers_gzip and await self._exceeds_threshold(sources, plain)
        if not forced:
            body = plain if plain is not None else await self._plain(sources)
        elif name == "two_members":
            whole = plain if plain is not None else await self._plain(sources)
            first, second = whole.slice(0, whole.size // 2), whole.slice(whole.size // 2)
            body = await self._compress(first, scratch) + await self._compress(second, scratch)
        elif plain is not None:
            body = await self._compress(plain, scratch)
        else:
            body = await self._compressed(sources, scratch)

        answer = _encoded_answer(body, "gzip" if forced else None)
        if fault is None:
            return replace(answer, framing=self.framing)
        if fault.name in _ENCODED_FAULTS:
            answer = replace(answer, body=_ENCODED_FAULTS[fault.name](body, fault))
        return self._transport(answer, fault)

    def _transport(self, answer: _Answer, fault: _Fault) -> _Answer:
        """The answer with what the fault does to its head and to the way it is sent."""
        answer = replace(answer, framing=fault.framing or self.framing)
        half = answer.body.size // 2
        offset = half if fault.offset is None else min(fault.offset, answer.body.size)
        match fault.name:
            case "html":
                return replace(answer, headers=_with(answer, "Content-Type", "text/html; charset=utf-8"))
            case "error_object":
                return replace(answer, headers=_with(answer, "Content-Type", _JSON))
            case "header_says_gzip_but_plain":
                return replace(answer, headers=_with(answer, "Content-Encoding", "gzip"))
            case "unknown_encoding":
                return replace(answer, headers=_with(answer, "Content-Encoding", "br"))
            case "gzip_without_header":
                return replace(answer, headers=_with(answer, "Content-Encoding", None))
            case "huge_header":
                size = 20_000 if fault.header_bytes is None else fault.header_bytes
                return replace(answer, headers=_with(answer, "X-Huge", "a" * size))
            case "cut_at":
                return replace(answer, stop_at=offset, ending="close")
            case "reset_at":
                return replace(answer, stop_at=offset, ending="reset")
            case "stall":
                return replace(answer, stop_at=offset, ending="hold")
            case "bad_chunk_size":
                return replace(answer, framing="chunked", stop_at=half, ending="bad_chunk_size")
            case "slow_first_byte":
                return replace(answer, seconds_before=1.0 if fault.seconds is None else fault.seconds)
            case "slow_loris":
                pause = 5.0 if fault.seconds is None else fault.seconds
                return replace(answer, piece_bytes=fault.piece_bytes or 1, seconds_between=pause)
            case "drip":
                pause = 0.0 if fault.seconds is None else fault.seconds
                return replace(answer, piece_bytes=fault.piece_bytes or 7, seconds_between=pause)
            case _:
                return answer

    def _refusing_answer(self, fault: _Fault, request: _Request) -> _Answer | None:
        """The answer of a fault that refuses the query, None for all other faults."""
        if fault.name == "redirect":
            location = fault.location or f"{self.base_url}/elsewhere"
            return _Answer(302, (("Location", location),))
        if fault.name not in _REFUSALS:
            return None
        status, text, json = _REFUSALS[fault.name]
        retry_after = tuple(("Retry-After", value) for value in fault.retry_after)
        if fault.status == HTTPStatus.GATEWAY_TIMEOUT:
            text, json = "Timeout Error.", True
        refused = _Refused(fault.status or status, fault.text or text, json=json, headers=retry_after)
        return refused.answer(request.target)

    async def _source(self, day: date) -> _Source | None:
        with self._lock:
            memory_day = self._memory_days.get(day)
        if memory_day is not None:
            return memory_day
        if self._data_directory is not None:
            for suffix in (".jsonl", ".jsonl.gz"):
                path = self._data_directory / f"{day.isoformat()}{suffix}"
                if path.exists():
                    return path
        if self._events_per_day == 0 or (self._days is not None and day not in self._days):
            return None
        return await self._made_once(("synthetic", day), lambda: self._write_synthetic(day))

    async def _exceeds_threshold(self, sources: list[_Source], plain: _Body | None) -> bool:
        # A gzip file larger than the threshold holds more than the threshold: text does not grow when compressed.
        sizes = [len(source.raw) if isinstance(source, _MemoryDay) else source.stat().st_size for source in sources]
        if plain is None and sum(sizes) <= GZIP_THRESHOLD_BYTES:
            plain = await self._plain(sources)
        return (sum(sizes) if plain is None else plain.size) > GZIP_THRESHOLD_BYTES

    async def _plain(self, sources: list[_Source]) -> _Body:
        body = _Body()
        for source in sources:
            if isinstance(source, _MemoryDay):
                body += _Body.of(source.raw)
            elif source.suffix == ".gz":
                body += _Body.of(await self._made_once(_identity(source), partial(self._inflate, source)))
            else:
                body += _Body.of(source)
        return body

    async def _compressed(self, sources: list[_Source], scratch: contextlib.ExitStack) -> _Body:
        stored = [source for source in sources if isinstance(source, Path) and source.suffix == ".gz"]
        if stored and len(stored) == len(sources):
            return _Body(tuple(part for path in stored for part in _Body.of(path).parts))
        if len(sources) == 1 and isinstance(sources[0], _MemoryDay):
            day = sources[0]
            if day.compressed is None:
                day.compressed = (await self._compress(_Body.of(day.raw), scratch)).read()
            return _Body.of(day.compressed)
        return await self._compress(await self._plain(sources), scratch)

    async def _compress(self, body: _Body, scratch: contextlib.ExitStack) -> _Body:
        if body.size <= _IN_LINE_BYTES:
            return _Body.of(_gzip(body.read()))
        return await self._made(scratch, lambda file: self._deflate(body, file))

    # Work in threads: everything that may take long. Each step ends early when the simulator stops.

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _made(self, scratch: contextlib.ExitStack, write: Callable[[BinaryIO], None]) -> _Body:
        """A body made for one answer, in a file that ``scratch`` removes."""
        path = self._new_path()
        scratch.callback(path.unlink, missing_ok=True)

        def work() -> None:
            with path.open("wb") as file:
                write(file)

        await self._in_thread(work)
        return _Body.of(path)

    async def _made_once(self, key: object, write: Callable[[], Path]) -> Path:
        """A file made by the first who asks for it and kept; the others wait for the same."""
        if key not in self._made_files:
            future = asyncio.get_running_loop().run_in_executor(self._executor, write)
            self._made_files[key] = future
        try:
            return await asyncio.shield(self._made_files[key])
        except Exception:
            self._made_files.pop(key, None)
            raise

    def _new_path(self) -> Path:
        assert self._work_directory is not None
        return Path(self._work_directory.name) / str(next(self._numbers))

    def _check_running(self, _made: object = None) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _write_synthetic(self, day: date) -> Path:
        assert self._work_directory is not None
        parent = self._cache_directory or Path(self._work_directory.name)
        # The name says what is inside, so that a cache kept for the next start never serves other events.
        directory = parent / f"seed-{self._seed}-events-{self._events_per_day}"
        path = directory / f"{day.isoformat()}.jsonl.gz"
        if path.exists():
            return path
        return synthetic.write_day(directory, day, self._events_per_day, self._seed, on_progress=self._check_running)

    def _inflate(self, source: Path) -> Path:
        path = self._new_path()
        # isal ships no annotation for this class.
        with igzip.IGzipFile(source) as compressed, path.open("wb") as file:  # type: ignore[no-untyped-call]
            while piece := compressed.read(_PIECE_BYTES):
                self._check_running()
                file.write(piece)
        return path

    def _deflate(self, body: _Body, file: BinaryIO) -> None:
        compressor = isal_zlib.compressobj(1, wbits=_GZIP_WINDOW_BITS)
        for piece in body.pieces(_PIECE_BYTES):
            self._check_running()
            file.write(compressor.compress(piece))
        file.write(compressor.flush())

    def _filter(self, body: _Body, query: _Query, file: BinaryIO) -> None:
        sent = 0
        rest = b""
        for piece in body.pieces(_PIECE_BYTES):
            self._check_running()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if sent == query.limit:
                    return
                if _passes(line, query):
                    file.write(line + b"\n")
                    sent += 1
        if rest and sent != query.limit and _passes(rest, query):
            file.write(rest)

    def _write_bomb(self, raw_bytes: int, file: BinaryIO) -> None:
        frame = b'{"event":"Bomb","properties":{"time":1700000000,"distinct_id":"bomb","padding":"%b"}}\n'
        line = frame % (b"0" * (1 << 20))
        compressor = isal_zlib.compressobj(2, wbits=_GZIP_WINDOW_BITS)
        for _ in range(max(1, -(-raw_bytes // len(line)))):
            self._check_running()
            file.write(compressor.compress(line))
        file.write(compressor.flush())

    # Sending

    async def _send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: _Answer,
        reason: str,
        *,
        alive: bool,
    ) -> None:
        if answer.seconds_before > 0:
            await _pause(reader, answer.seconds_before)
        headers = [("Server", "mixpanel-simulator"), ("Vary", "Accept-Encoding"), *answer.headers]
        if answer.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
        elif answer.framing == "length":
            headers.append(("Content-Length", str(answer.body.size)))
        headers.append(("Connection", "keep-alive" if alive else "close"))
        head = f"HTTP/1.1 {answer.status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(head.encode("latin-1") + b"\r\n")
        body = answer.body if answer.stop_at is None else answer.body.slice(0, answer.stop_at)
        await self._send_body(reader, writer, answer, body)
        if answer.stop_at is None:
            if answer.framing == "chunked":
                writer.write(b"0\r\n\r\n")
        elif answer.ending == "bad_chunk_size":
            writer.write(b"zz\r\n" + answer.body.slice(answer.stop_at, answer.stop_at + 1024).read() + b"\r\n")
        elif answer.ending == "hold":
            await writer.drain()
            await _pause(reader, None)
        elif answer.ending == "reset":
            await _reset(writer)
        await writer.drain()

    async def _send_body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: _Answer, body: _Body
    ) -> None:
        if answer.framing == "length" and answer.seconds_between is None:
            for part in body.parts:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                    continue
                if writer.transport.is_closing():
                    raise _ClientGone
                with part.path.open("rb") as file:
                    await asyncio.get_running_loop().sendfile(writer.transport, file, part.offset, part.length)
            return
        # Not closed here: a thread may still be reading when this task is cancelled.
        pieces = body.pieces(answer.piece_bytes)
        in_memory = all(isinstance(part, bytes) for part in body.parts)
        while True:
            piece = next(pieces, None) if in_memory else await self._in_thread(lambda: next(pieces, None))
            if piece is None:
                return
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.framing == "chunked" else piece)
            await writer.drain()
            if answer.seconds_between is not None:
                await _pause(reader, answer.seconds_between)


class SimulatorThread:
    """Runs a simulator in a thread with a loop of its own, for tests that are not async or start processes.

    A context manager; everything of the simulator that may be used from any thread is reached by ``simulator``.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mixpanel-simulator", daemon=True)

    @property
    def base_url(self) -> str:
        """As ``Simulator.base_url``."""
        return self.simulator.base_url

    def wait_for_requests(self, number: int, *, timeout_seconds: float = 10.0) -> list[RecordedRequest]:
        """As ``Simulator.wait_for_requests``, blocking."""
        return asyncio.run(self.simulator.wait_for_requests(number, timeout_seconds=timeout_seconds))

    def start(self) -> None:
        """Return when the simulator listens; raises what its start raised."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """As ``Simulator.stop``; the thread has ended when this returns."""
        if self._loop is not None and self._stop is not None:
            # The loop is closed already if the thread ended by itself.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  # kept for start or stop, which raise it in the caller's thread
            self._error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.simulator:
            self._started.set()
            await self._stop.wait()


# Faults, each beside what it does

_REFUSALS: Final[Mapping[str, tuple[int, str, bool]]] = MappingProxyType(
    {
        "unauthorized": (401, "Invalid credentials", True),
        "auth_400": (400, "Unable to authenticate request", False),
        "payment_required": (402, "Your account is blocked because payment is required.", True),
        "forbidden": (403, "Access to this project is not permitted", True),
        "rate_limited": (429, "too many export requests in progress for this project", True),
        "rate_limited_text": (429, "rate limit reached", False),
        "server_error": (500, "unknown error", False),
        "later_than_today": (400, "to_date cannot be later than today", False),
    }
)

_HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in to the network.</body></html>\n"


def _half_then(tail: bytes) -> Callable[[_Body, str], _Body]:
    return lambda plain, _target: plain.first_half_of_lines() + _Body.of(tail)


def _truncated_line(plain: _Body, _target: str) -> _Body:
    lines = plain.first_half_of_lines()
    # Half of the next line, or of the first: never a whole line, never none.
    following = plain.slice(lines.size, lines.size + _PIECE_BYTES).read().partition(b"\n")[0]
    return lines + _Body.of(following[: len(following) // 2])


_TEXT_FAULTS: Final[Mapping[str, Callable[[_Body, str], _Body]]] = MappingProxyType(
    {
        "html": lambda _plain, _target: _Body.of(_HTML),
        "error_object": lambda _plain, target: _error_body("Timeout Error.", target),
        "empty": lambda _plain, _target: _Body(),
        "terminated_early": _half_then(b"terminated early\n"),
        "export_terminated_early": _half_then(b"export terminated early\n"),
        "terminated_early_whole": lambda _plain, _target: _Body.of(b"terminated early"),
        "quoted_terminated_early": _half_then(b'"terminated early"\n'),
        "error_tail": _half_then(b'{"error":'),
        "truncated_line": _truncated_line,
    }
)


def _flip(body: _Body, position: int, mask: int) -> _Body:
    position = min(position, body.size - 1)
    if position < 0:
        return body
    byte = body.slice(position, position + 1).read()[0] ^ mask
    return body.slice(0, position) + _Body.of(bytes([byte])) + body.slice(position + 1)


_ENCODED_FAULTS: Final[Mapping[str, Callable[[_Body, _Fault], _Body]]] = MappingProxyType(
    {
        "cut_intact": lambda body, fault: body.slice(0, body.size // 2 if fault.offset is None else fault.offset),
        "flipped_bit": lambda body, fault: _flip(
            body, body.size // 2 if fault.offset is None else fault.offset, 1 << fault.bit
        ),
        "bad_crc": lambda body, _fault: _flip(body, body.size - 8, 0x01),
        "bad_length": lambda body, _fault: _flip(body, body.size - 4, 0x01),
        "missing_trailer": lambda body, _fault: body.slice(0, body.size - 8),
        "trailing_text": lambda body, _fault: body + _Body.of(b"terminated early"),
        "zero_padding": lambda body, _fault: body + _Body.of(bytes(512)),
    }
)

_GZIP_FAULTS: Final = frozenset(
    {
        *("bad_crc", "bad_length", "missing_trailer", "trailing_text", "two_members", "zero_padding"),
        "gzip_without_header",
    }
)
_PLAIN_FAULTS: Final = frozenset({"empty", "header_says_gzip_but_plain", "unknown_encoding"})


def _encoded_answer(body: _Body, encoding: str | None) -> _Answer:
    headers: tuple[tuple[str, str], ...] = (("Content-Type", _TEXT_PLAIN),)
    if encoding is not None:
        headers = (*headers, ("Content-Encoding", encoding))
    return _Answer(200, headers, body)


def _with(answer: _Answer, name: str, value: str | None) -> tuple[tuple[str, str], ...]:
    others = tuple(header for header in answer.headers if header[0] != name)
    return others if value is None else (*others, (name, value))


def _gzip(raw: bytes) -> bytes:
    compressor = isal_zlib.compressobj(2, wbits=_GZIP_WINDOW_BITS)
    return compressor.compress(raw) + compressor.flush()


def _identity(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _pause(reader: asyncio.StreamReader, seconds: float | None) -> None:
    """Wait so long (None: for ever). Raises ``_ClientGone`` as soon as the client closes its side."""
    if seconds == 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(1):
                pass
    except TimeoutError:
        return
    raise _ClientGone


async def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, after the peer's kernel has taken all bytes written so far: an RST overtakes what is unsent."""
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()
    connection: socket.socket = writer.get_extra_info("socket")
    for _ in range(5000):
        if writer.transport.is_closing():
            raise _ClientGone
        if _unsent_bytes(connection) == 0:
            break
        await asyncio.sleep(0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
    raise _ClientGone


def _unsent_bytes(connection: socket.socket) -> int:
    import fcntl  # noqa: PLC0415  # absent on some systems, which then have every fault but this one
    import termios  # noqa: PLC0415

    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    unsent: int = struct.unpack("i", answer)[0]
    return unsent


# Requests


def _parse(head: bytes) -> _Request | None:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in {"HTTP/1.0", "HTTP/1.1"}:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    parts = urlsplit(words[1])
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return _Request(words[0], words[1], parts.path, MappingProxyType(query), MappingProxyType(headers), words[2])


def _credentials(authorization: str) -> tuple[str, str] | None:
    """User name and password of a Basic header; Mixpanel takes them in base64 and as plain text."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    with contextlib.suppress(binascii.Error, ValueError):
        decoded = base64.b64decode(value.strip(), validate=True).decode()
        if ":" in decoded:
            value = decoded
    username, colon, password = value.strip().partition(":")
    return (username, password) if colon else None


def _reduced_authorization(headers: Mapping[str, str]) -> dict[str, str]:
    if "authorization" not in headers:
        return {}
    credentials = _credentials(headers["authorization"])
    if credentials is None:
        return {"authorization": "(unreadable)"}
    return {"authorization": credentials[0] if credentials[1] else "(project secret)"}


def _date_parameter(request: _Request, name: str) -> date:
    text = request.query.get(name)
    if text is None:
        raise _Refused(400, f"{name} is a required parameter")
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(text)
    raise _Refused(400, f"{name} must be a date of the form yyyy-mm-dd")


def _event_parameter(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    try:
        names = orjson.loads(text)
    except orjson.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Refused(400, "event must be a JSON array of strings")
    return frozenset(names)


def _limit_parameter(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not 1 <= int(text) <= LIMIT_MAXIMUM:
        raise _Refused(400, f"limit must be 1 to {LIMIT_MAXIMUM}")
    return int(text)


_EQUAL = re.compile(r'\s*properties\["(?P<name>[^"]*)"\]\s*==\s*(?P<value>"(?:[^"\\]|\\.)*")\s*')
_LESS = re.compile(r'\s*number\(properties\["(?P<name>[^"]*)"\]\)\s*<\s*(?P<value>-?\d+(?:\.\d+)?)\s*')


def _where_parameter(text: str | None) -> Callable[[Mapping[str, object]], bool] | None:
    """The two forms that are simulated: ``properties["a"] == "b"`` and ``number(properties["a"]) < 1``."""
    if text is None:
        return None
    equal, less = _EQUAL.fullmatch(text), _LESS.fullmatch(text)
    with contextlib.suppress(orjson.JSONDecodeError):
        if equal is not None:
            name, wanted = equal["name"], orjson.loads(equal["value"])
            return lambda properties: properties.get(name) == wanted
        if less is not None:
            name, bound = less["name"], float(less["value"])
            return lambda properties: _is_less(properties.get(name), bound)
    raise _Refused(400, f"could not parse the selector {text}")


def _is_less(value: object, bound: float) -> bool:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value) < bound
        return False
    return isinstance(value, int | float) and value < bound


def _passes(line: bytes, query: _Query) -> bool:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return True
    if not isinstance(event, dict):
        return True
    if query.events is not None and event.get("event") not in query.events:
        return False
    properties = event.get("properties")
    return query.where is None or query.where(properties if isinstance(properties, dict) else {})
