"""Mixpanel's raw event export, one project day a request, streamed into a spool.

What the server really does, and what a client must not trust, is in the docstrings of this module and of `body`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import json
import socket
import ssl
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import quote, quote_plus

import aiohttp

from worker.errors import (
    DayNotBegunError,
    ExportBrokenError,
    ExportRefusedError,
    ExportThrottledError,
    ExportUnavailableError,
    SourceError,
)
from worker.mixpanel.body import GZIP_MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date
    from types import TracebackType

    from worker.mixpanel.spool import Spool
    from worker.model import Credentials, Source
    from worker.settings import Settings

EXPORT_PATH = "/api/2.0/export"
WRITE_BYTES = 1 << 20
ERROR_BODY_BYTES = 4096
ERROR_TEXT_CHARACTERS = 500
LEAST_BYTES_PER_WINDOW = 16 << 10
"""A body that brings less than this in WORKER_IDLE_SECONDS has stalled; no socket time-out sees that."""

REASONS: dict[type[BaseException], str] = {
    ConnectionRefusedError: "connection refused",
    ConnectionResetError: "connection reset",
    socket.gaierror: "the name is not known",
    aiohttp.ServerDisconnectedError: "it closed the connection without an answer",
}

ADVICE = {
    400: "Check events, where and the dates of the flow.",
    401: "Check user name, password and projectId, and that params.region is the region of the project.",
    402: "Mixpanel asks for payment; see the plan and billing page of the organization.",
    403: "Give the service account a role in the project that may export raw data.",
    404: "Check that params.host or params.region is a host of Mixpanel.",
}


class Exports(Protocol):
    """Where exports come from: Mixpanel, or a test's memory."""

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        """Write the body of `day` into `spool` as it arrives and finish the spool.

        `on_bytes` is called with the size of each piece. Raises SourceError; the spool is then left unfinished.
        """


class MixpanelExports:
    """The real exports, over one connection pool. Use as an async context manager.

    No redirect is followed, no proxy or netrc of the environment is used, no cookie is kept: credentials go in the
    header of the one request to the one host that the flow names.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # long exports must outlive any total time limit; the limits that make sense are kept below
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_seconds),
            headers={"User-Agent": "mixpanel-worker"},
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, source: Source, day: date, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        assert self._session is not None, "use MixpanelExports as a context manager"
        url = source.base_url + EXPORT_PATH
        headers = {
            "Authorization": authorization(source.credentials),
            "Accept": "text/plain",
            "Accept-Encoding": "gzip",
        }
        try:
            async with asyncio.timeout(self._settings.first_byte_seconds):
                response = await self._session.get(
                    url, params=parameters(source, day), headers=headers, allow_redirects=False
                )
            async with response:
                if response.status != 200:
                    raise await _refusal(response, source.credentials, self._settings.idle_seconds)
                await self._receive(response, spool, on_bytes)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = _unreachable(error, source, self._settings)
        else:
            return
        # out here it has no cause: aiohttp's error holds the request with its Authorization, and prints it
        raise failure

    async def _receive(self, response: aiohttp.ClientResponse, spool: Spool, on_bytes: Callable[[int], None]) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"gzip", "x-gzip", "identity", ""}:
            raise ExportBrokenError(
                f"The export came in an encoding nobody asked for: {encoding[:40]!r}.", reason="encoding"
            )
        proves_end = response.headers.get("Content-Length") is not None or (
            response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        )
        loop = asyncio.get_running_loop()
        gathered = bytearray()
        window_bytes = 0
        window_seconds = self._settings.idle_seconds
        try:
            # a server may send its headers at once and think before the first byte of the body
            async with asyncio.timeout(self._settings.first_byte_seconds) as window:
                async for piece in response.content.iter_any():
                    if not spool.size and not gathered:
                        window.reschedule(loop.time() + window_seconds)
                    gathered += piece
                    window_bytes += len(piece)
                    if window_bytes >= LEAST_BYTES_PER_WINDOW:
                        window.reschedule(loop.time() + window_seconds)
                        window_bytes = 0
                    if len(gathered) >= WRITE_BYTES:
                        data, gathered = bytes(gathered), bytearray()
                        on_bytes(len(data))
                        await asyncio.to_thread(spool.write, data)
        except TimeoutError as error:
            raise ExportBrokenError(
                f"The export stalled: less than {LEAST_BYTES_PER_WINDOW} bytes in {window_seconds:g} seconds.",
                reason="stalled",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ExportBrokenError(f"The export broke off ({type(error).__name__}).", reason="transport") from error
        if encoding in {"gzip", "x-gzip"} and not gathered and not spool.size:
            # gzip of nothing has 20 bytes, and Mixpanel does not compress an empty day
            raise ExportBrokenError("The export was to be gzip and not a byte of it came.", reason="cut_gzip")
        if gathered:
            on_bytes(len(gathered))
            await asyncio.to_thread(spool.write, bytes(gathered))
        spool.finish(proves_end=proves_end)


def authorization(credentials: Credentials) -> str:
    """The header of Basic authentication; a project secret is a user name with an empty password."""
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def parameters(source: Source, day: date) -> dict[str, str]:
    """The query of one day's export. `project_id` goes with a service account only (Mixpanel, project secret)."""
    query = {"from_date": day.isoformat(), "to_date": day.isoformat()}
    if not source.credentials.is_project_secret:
        query["project_id"] = source.project_id
    if source.events:
        query["event"] = json.dumps(list(source.events), ensure_ascii=False)
    if source.where:
        query["where"] = source.where
    return query


async def _refusal(response: aiohttp.ClientResponse, credentials: Credentials, seconds: float) -> SourceError:
    """The error for a status other than 200. The body may be JSON or plain text, at any status."""
    body = bytearray()
    # what the status says counts also where the text behind it never comes
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with asyncio.timeout(seconds):
            while len(body) < ERROR_BODY_BYTES and (piece := await response.content.read(ERROR_BODY_BYTES)):
                body += piece
    said = _error_text(bytes(body[:ERROR_BODY_BYTES]), credentials)
    status = response.status
    message = f"Mixpanel answered {status}: {said}" if said else f"Mixpanel answered {status}."
    if status == 429:
        return ExportThrottledError(message, retry_after_seconds=_retry_after(response))
    if status >= 500 or status == 408:
        return ExportUnavailableError(message)
    if status == 400 and "later than today" in said.lower():
        return DayNotBegunError(message)
    if status == 400 and "authenticate" in said.lower():
        return ExportRefusedError(message, status=401, advice=ADVICE[401])
    if 300 <= status < 400:
        return ExportRefusedError(
            f"The server answered {status}, a redirect, which is not followed.", status=status, advice=ADVICE[404]
        )
    return ExportRefusedError(message, status=status, advice=ADVICE.get(status))


def _error_text(body: bytes, credentials: Credentials) -> str:
    if body.startswith(GZIP_MAGIC):
        with contextlib.suppress(zlib.error):
            body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, ERROR_BODY_BYTES)
    text = body.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
    except ValueError:
        pass
    else:
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            text = document["error"]
    # scrubbed before it is cut: the start of a secret is a secret, too
    text = scrub(text, credentials)
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable[:ERROR_TEXT_CHARACTERS]


def scrub(text: str, credentials: Credentials) -> str:
    """`text` without the password and without the header made of it, should a server repeat them.

    A server may repeat them as they are, in base64, or as JSON, HTML or a URL writes them.
    """
    secret = credentials.username if credentials.is_project_secret else credentials.password.reveal()
    in_base64 = authorization(credentials).removeprefix("Basic ")
    forms = {secret, in_base64, in_base64.rstrip("=")}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    forms |= {html.escape(secret), html.escape(secret, quote=False)}
    for form in sorted(filter(None, forms), key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """`Retry-After` in seconds, from a number or an HTTP date; the longest of several; None without a usable one."""
    waits = []
    for value in response.headers.getall("Retry-After", []):
        text = value.strip()
        try:
            if text.isascii() and text.isdigit():
                waits.append(float(text))
            else:
                when = parsedate_to_datetime(text)
                when = when if when.tzinfo else when.replace(tzinfo=UTC)
                waits.append((when - datetime.now(UTC)).total_seconds())
        except (ValueError, OverflowError):
            continue
    return max(waits) if waits and max(waits) > 0 else None


def _unreachable(error: BaseException, source: Source, settings: Settings) -> SourceError:
    host = source.base_url
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError) or isinstance(
        getattr(error, "os_error", None), ssl.SSLError
    ):
        return ExportRefusedError(f"The certificate of {host} is not valid.", status=495, advice=ADVICE[404])
    if isinstance(error, aiohttp.ServerTimeoutError):
        return ExportUnavailableError(f"{host} did not answer within {settings.connect_seconds:g} seconds.")
    if isinstance(error, TimeoutError):
        return ExportUnavailableError(f"{host} sent nothing within {settings.first_byte_seconds:g} seconds.")
    if isinstance(error, aiohttp.ClientResponseError):
        return ExportUnavailableError(f"{host} sent an answer that is not proper HTTP.")
    # the text of an aiohttp error can hold the whole URL: only its kind is passed on
    cause = getattr(error, "os_error", error)
    reason = next((text for kind, text in REASONS.items() if isinstance(cause, kind)), type(error).__name__)
    return ExportUnavailableError(f"{host} could not be reached ({reason}).")
