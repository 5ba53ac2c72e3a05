"""The application: all doors, and what holds for every request.

A request passes, in this order: its id, the names that this machine goes by, the gate, the rate of its client, the
limits of its body. Whatever goes wrong is told in the shape of `worker.http.problems`; what nobody foresaw becomes a
500 that tells nothing, and its place in the code goes to the log (facts, reliability 2.6 and 4).

Secrets may stand in the address of a login, so the server that runs this writes no log of requests.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import orjson
from aiohttp import web

from worker import events
from worker.errors import WorkerError, place_of
from worker.http import catalog, conversion, data_access, flow_service, ims, openapi, schema_registry
from worker.http.auth import LOOPBACK_HOSTS, REQUESTS, Buckets, Caller, Rate
from worker.http.bodies import BODY, MAX_BODY_BYTES, READ_SECONDS, parse_body, read_body
from worker.http.problems import (
    ApiError,
    bad_request,
    forbidden,
    internal_error,
    method_not_allowed,
    not_served,
    of_worker_error,
    problem_response,
    too_many_requests,
)
from worker.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from worker.events import Listener
    from worker.http.auth import Gate
    from worker.registry import Registry
    from worker.store import Store

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID: Final = web.RequestKey("request_id", str)
CALLER: Final = web.RequestKey("caller", Caller)
"""Who asks, once the gate has let the request in."""

_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/ims/token/v2", "/ims/token/v3"})
_PROBES: Final = frozenset({"/healthz", "/readyz"})
_READINESS_SECONDS: Final = 5.0
_LARGE_BODY_BYTES: Final = 1 << 16
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?")

# The operations that Adobe documents, by service: those among them that no route serves answer 501.
_DOCUMENTED: Final = {
    "flowservice": """
        /connections GET POST
        /connections/search POST
        /connections/{} DELETE GET PATCH
        /connections/{}/(test|explore|configs) GET
        /connections/{}/action POST
        /(connectionSpecs|flowSpecs|runs) GET POST
        /(connectionSpecs|flowSpecs|runs)/{} GET PUT
        /connectionSpecs/{}/(explore|configs) GET
        /(flows|flowSpecs)/search POST
        /(flows|sourceConnections|targetConnections) GET POST
        /(flows|sourceConnections|targetConnections)/{} DELETE GET PATCH
        /(flows|runs|sourceConnections|targetConnections)/{}/action POST
    """,
    "conversion": """
        /languages/el/validate POST
        /languages/el/(functions|operators) GET
        /mappingSets GET POST
        /mappingSets/(validate|preview) POST
        /mappingSets/suggestion GET
        /mappingSets/{} DELETE GET PUT
        /mappingSets/{}/mappings GET POST
        /mappingSets/{}/mappings/{} DELETE GET PUT
        /xdmBatchConversions(/.*)? GET POST
    """,
    "catalog": """
        (/lastBatches|/batches/uniques/{}|/dataSets/{}/credentials) GET
        /(batches|dataSets)? GET POST
        /batches/{} DELETE GET PATCH POST PUT
        /dataSets/{} DELETE GET PATCH PUT
        /tags/{} GET PATCH
        /v2/dataSets/{} PATCH
    """,
    "schemaregistry": """
        /stats GET
        /{}/(behaviors|classes|datatypes|descriptors|fieldgroups|mixins|schemas|unions)(/{})? GET
        /tenant/(classes|datatypes|descriptors|fieldgroups|mixins|schemas) POST
        /tenant/(classes|datatypes|descriptors|fieldgroups|mixins|schemas)/{} DELETE PATCH PUT
        /rpc/(export|sampledata|auditlog)/{} GET
        /rpc/import POST
    """,
    "export": """
        /batches/{}/(files|failed|meta) GET
        /files/{} GET HEAD
        /datasets/{}/preview GET
    """,
    "import": """
        /batches POST
        /batches/{} POST
        /batches/{}/datasets/{}/files/.* HEAD PATCH POST PUT
        /batches/{}/datasets/{}/preview GET
    """,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one client may ask for."""

    body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = READ_SECONDS
    requests: Rate = REQUESTS


def make_app(
    *,
    registry: Registry,
    store: Store,
    keeper: flow_service.Keeper,
    gate: Gate,
    lake: Path,
    readiness: Callable[[], Sequence[str]],
    metrics_text: Callable[[], bytes],
    listener: Listener = lambda event: None,
    hosts: frozenset[str] | None = LOOPBACK_HOSTS,
    limits: Limits = Limits(),
) -> web.Application:
    """All doors in one application.

    `readiness` gives the reasons why no work can be done, fit for strangers; none: ready. It and `metrics_text` are
    called on threads. `hosts` are the names by which a request may call this machine, None any: on loopback the list
    keeps a web page from reaching the service by a name of its own (facts, reliability F160); probes of health may use
    any.
    """
    app = web.Application(
        client_max_size=limits.body_bytes,
        middlewares=[
            _identified,
            _told(listener),
            _known_by(hosts),
            _admitted(gate),
            _paced(limits.requests),
            _read(limits),
        ],
        # a body that is compressed is refused, so it is not inflated either
        handler_args={"auto_decompress": False},
    )
    served = [
        *_own_routes(readiness, metrics_text),
        *ims.routes(gate),
        *flow_service.routes(registry, store, keeper),
        *conversion.routes(registry),
        *catalog.routes(registry, store),
        *schema_registry.routes(registry),
        *data_access.routes(store, lake),
    ]

    async def described(request: web.Request) -> web.Response:
        """What is served here, as OpenAPI."""
        return web.Response(body=document, content_type="application/json")

    served.append(web.get("/openapi.json", described))
    document = orjson.dumps(openapi.document(served), option=orjson.OPT_INDENT_2)
    app.add_routes(_with_slashes(served))
    app.on_response_prepare.append(_add_headers)
    return app


def _own_routes(readiness: Callable[[], Sequence[str]], metrics_text: Callable[[], bytes]) -> list[web.RouteDef]:
    async def alive(request: web.Request) -> web.Response:
        """Whether the process lives."""
        return web.json_response({"status": "alive"})

    async def ready(request: web.Request) -> web.Response:
        """Whether work can be done, and if not, why."""
        try:
            async with asyncio.timeout(_READINESS_SECONDS):
                reasons = list(await asyncio.to_thread(readiness))
        except TimeoutError:
            reasons = [f"The state did not answer within {_READINESS_SECONDS:g} seconds."]
        if reasons:
            return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
        return web.json_response({"status": "ready"})

    async def metrics(request: web.Request) -> web.Response:
        """The metrics as text for Prometheus."""
        text = await asyncio.to_thread(metrics_text)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/healthz", alive), web.get("/readyz", ready), web.get("/metrics", metrics)]


def _with_slashes(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """Each route with and without a slash at its end: Adobe's clients send both (facts, aep 1.1)."""
    found = list(routes)
    known = {(route.method, route.path) for route in found}
    slashed = [
        web.RouteDef(route.method, f"{route.path}/", route.handler, route.kwargs)
        for route in found
        if not route.path.endswith("/") and (route.method, f"{route.path}/") not in known
    ]
    return [*found, *slashed]


# What every request passes, outermost first


@web.middleware
async def _identified(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Its own id, or the client's where that is fit for a header and a log."""
    asked = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = asked if _REQUEST_ID.fullmatch(asked) else str(uuid4())
    return await handler(request)


def _told(listener: Listener) -> Any:  # noqa: ANN401 - aiohttp has no name for a middleware
    """Whatever is raised, as an answer."""

    @web.middleware
    async def told(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            found = error
        except WorkerError as error:
            found = of_worker_error(error)
            if found.status >= 500:
                listener(events.ServiceTrouble(None, f"Request {request[REQUEST_ID]}: {error.code}: {error.message}"))
        except web.HTTPException as error:
            found = _of_http_exception(request, error)
        except Exception as error:  # noqa: BLE001 - the door answers, whatever happens behind it
            listener(events.ServiceTrouble(None, f"Request {request[REQUEST_ID]} failed: {place_of(error)}"))
            found = internal_error()
        return problem_response(found, request[REQUEST_ID])

    return told


def _known_by(hosts: frozenset[str] | None) -> Any:  # noqa: ANN401
    """Only under the names of this machine, and not out of a web page of somebody else."""

    @web.middleware
    async def known_by(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        # probes of a container's surroundings call it by its address
        if hosts is not None and host_name(host) not in hosts and route_path(request) not in _PROBES:
            raise ApiError(421, "FLOW-2120-421", "Misdirected Request", "The service does not go by this name.")
        if not is_own_origin(host, request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")):
            raise forbidden("A web page of another origin may not use this service.")
        return await handler(request)

    return known_by


def _admitted(gate: Gate) -> Any:  # noqa: ANN401
    @web.middleware
    async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        # by the route, not by the text of the path: nothing else is open
        if route_path(request) not in _OPEN_PATHS:
            authorization = request.headers.getall("Authorization", [])
            request[CALLER] = await gate.admit(
                authorization[0] if len(authorization) == 1 else None, request.remote or ""
            )
        return await handler(request)

    return admitted


def _paced(rate: Rate) -> Any:  # noqa: ANN401
    buckets = Buckets(rate)

    @web.middleware
    async def paced(request: web.Request, handler: Handler) -> web.StreamResponse:
        if route_path(request) not in _PROBES:
            caller = request.get(CALLER)
            key = caller.name if caller is not None and caller.name != "local" else f"address {request.remote}"
            wait_seconds = buckets.take(key, time.monotonic())
            if wait_seconds:
                raise too_many_requests(ceil(wait_seconds))
        return await handler(request)

    return paced


def _read(limits: Limits) -> Any:  # noqa: ANN401
    @web.middleware
    async def read(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.http_exception is None and request.can_read_body:
            body = await read_body(request, limits.body_bytes, limits.body_seconds)
            if body.strip() and not (route_path(request) or "").startswith("/ims/"):
                large = len(body) > _LARGE_BODY_BYTES
                value = await asyncio.to_thread(parse_body, body) if large else parse_body(body)
                if request.method != "PATCH" and not isinstance(value, dict):
                    raise bad_request("The request body is not a JSON object.")
                request[BODY] = value
        return await handler(request)

    return read


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "mixpanel-worker"
    response.headers.setdefault("Cache-Control", "no-store")


# Decisions, without I/O


def host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None for what is no name."""
    match = _HOST.fullmatch(host.lower())
    return match[1].rstrip(".") if match else None


def is_own_origin(host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Whether a request comes from no web page, or from one of this service: browsers say so."""
    if fetch_site not in (None, "none", "same-origin"):
        return False
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def is_documented(method: str, path: str) -> bool:
    """Whether Adobe documents this operation."""
    return any(method in methods and pattern.fullmatch(path) for pattern, methods in _PATTERNS)


def route_path(request: web.Request) -> str | None:
    """The template of the route that was found, without a slash at its end; None where there is none."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical.rstrip("/")


def _patterns() -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    found = []
    for service, text in _DOCUMENTED.items():
        for line in text.strip().splitlines():
            template, *methods = line.split()
            pattern = f"/data/foundation/{service}" + template.replace("{}", "[^/]+") + "/?"
            found.append((re.compile(pattern), tuple(methods)))
    return found


_PATTERNS: Final = _patterns()


def _of_http_exception(request: web.Request, error: web.HTTPException) -> ApiError:
    method, path = request.method, request.path
    match error:
        case web.HTTPMethodNotAllowed() if not is_documented(method, path):
            return method_not_allowed(method, path, sorted(error.allowed_methods))
        case web.HTTPNotFound() | web.HTTPMethodNotAllowed():
            return not_served(method, path, known=is_documented(method, path))
    return ApiError(error.status, f"FLOW-1100-{error.status}", error.reason, error.reason)
