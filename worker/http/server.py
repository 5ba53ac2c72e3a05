"""Where the application listens: how many connections there may be, and for how long each may send nothing of use.

How slow a client may be at each step: a TLS handshake and the head of a request have `idle_seconds`, and so has a
connection that is kept alive until its next request; a body has `Limits.body_seconds`; of a body that was refused the
rest is read for `LINGER_SECONDS`. An answer is sent for as long as its client takes: only what was admitted gets one
that does not fit into the buffers of a connection.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from worker import events
from worker.errors import ResourceError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from worker.events import Listener

CONNECTIONS: Final = 500
"""Half of the files that a process may usually open: runs need files too, and must not fail for who only connects."""
SHUTDOWN_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 10.0
"""A connection that is closed on a client that still sends is reset, and the client would not see why."""
_TELLING_SECONDS: Final = 60.0


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    *,
    idle_seconds: float,
    tls: ssl.SSLContext | None = None,
    connections: int = CONNECTIONS,
    linger_seconds: float = LINGER_SECONDS,
    listener: Listener = lambda event: None,
) -> AsyncIterator[str]:
    """Serve `app`, and give its URL. A connection beyond `connections` gets a 503 and is closed.

    Raises ResourceError where it cannot listen. At the end no connection is taken any more, and requests under way
    have SHUTDOWN_SECONDS.
    """
    # it closes a connection on which no whole head has come for so long, be it new or kept alive
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        keepalive_timeout=idle_seconds,
        lingering_time=linger_seconds,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        entrance = _Entrance(runner.server, connections, listener)
        try:
            server = await asyncio.get_running_loop().create_server(
                entrance, host, port, ssl=tls, ssl_handshake_timeout=idle_seconds if tls else None
            )
        except OSError as error:
            raise ResourceError(
                f"The service cannot listen on {host}:{port}: {error.strerror or error}.",
                advice="Let WORKER_HTTP name another address or port.",
            ) from error
        try:
            bound = server.sockets[0].getsockname()
            shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            yield f"{'https' if tls else 'http'}://{shown}:{bound[1]}"
        finally:
            server.close()
    finally:
        await runner.cleanup()


class _Entrance:
    """Makes the protocol of each connection that comes in."""

    def __init__(self, server: web.Server, most: int, listener: Listener) -> None:
        self._server = server
        self._most = most
        self._listener = listener
        self._quiet_until = 0.0

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) < self._most:
            return self._server()
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _TELLING_SECONDS
            self._listener(events.ServiceTrouble(None, f"{self._most} connections are open; more are refused."))
        return _Refusal()


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        transport.close()
