"""Bodies of requests: how much is read, for how long, and what passes as JSON.

The `Content-Type` is not asked about, as curl and aepp do not always send a true one; but a body is UTF-8, and not
compressed. What passed lies in the request under `BODY`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from worker.http.problems import ApiError, bad_request, empty_body, too_large

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BODY_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 100
READ_SECONDS: Final = 30.0

BODY: Final = web.RequestKey("body", object)
"""The JSON value of the body; the key is not there when the request has none."""


async def read_body(request: web.Request, limit_bytes: int, seconds: float) -> bytes:
    """All bytes. Raises ApiError: 408, 413, 415. Read again, the same bytes come at once."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _unsupported("A body is taken as it is, without a Content-Encoding.")
    if (request.content_length or 0) > limit_bytes:
        raise too_large(limit_bytes)
    try:
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        message = f"The body did not arrive within {seconds:g} seconds."
        raise ApiError(408, "FLOW-1100-408", "Request timeout", message) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit_bytes) from None
    except (web.RequestPayloadError, ConnectionError):
        raise bad_request("The body ended before its end.") from None


def parse_body(body: bytes) -> object:
    """The JSON value in `body`. Raises ApiError 400 for what is no JSON, and for values that no store can keep."""
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # the text of the error never repeats the body
        raise bad_request(f"The request body is not JSON: {error.msg} (line {error.lineno}).") from None
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for node in level for inner in _inner(node)]
        if not level:
            return value
    raise bad_request(f"The request body is nested deeper than {MAX_DEPTH} levels.")


def json_object(request: web.Request) -> dict[str, Any]:
    """The body as an object. Raises ApiError 400 when there is none, and when it is something else."""
    if BODY not in request:
        raise empty_body()
    body = request[BODY]
    if not isinstance(body, dict):
        raise bad_request("The request body is not a JSON object.")
    return body


def _inner(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        for name in node:
            _check_text(name)
        return node.values()
    if isinstance(node, list):
        return node
    if isinstance(node, str):
        _check_text(node)
    elif isinstance(node, int) and not -(1 << 63) <= node < 1 << 63:
        raise bad_request("A number of the request body does not fit into 64 bits.")
    return ()


def _check_text(text: str) -> None:
    if "\0" in text:
        raise bad_request("A text of the request body holds the character U+0000.")


def _unsupported(message: str) -> ApiError:
    return ApiError(415, "FLOW-1100-415", "Unsupported media type", message)
