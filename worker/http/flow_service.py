"""The Flow Service under `/data/foundation/flowservice`: connections, flows and their runs (facts, aep 1 and 3).

Answers are those of the documents: 201 with `id` and `etag` for what is made, `items` for what is read, 204 for what is
deleted. An etag is a text with quotes of its own, `version` is the same text. `If-Match` counts with and without
quotes, several at once, as `*`, and as a parameter of the address, as Adobe's Postman collection sends it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
from aiohttp import web

from worker.http.bodies import BODY, MAX_BODY_BYTES, READ_SECONDS, parse_body, read_body
from worker.http.listing import apply, parse_listing
from worker.http.patching import patched
from worker.http.problems import (
    ApiError,
    bad_request,
    empty_body,
    missing_if_match,
    not_found,
    not_served,
    provider_refusal,
    shorten,
    stale_etag,
)
from worker.mixpanel.calendar import calendar_zone
from worker.model import RunState
from worker.registry import (
    CONNECTIONS,
    DATA_LAKE_SPEC,
    DISABLED,
    ENABLED,
    FLOW_SPEC,
    FLOWS,
    MIXPANEL_SPEC,
    SOURCES,
    TARGETS,
    RefusedError,
)
from worker.run_record import OWNER, RunContext, run_document, run_etag
from worker.runner import QUEUED
from worker.store import RunQuery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import date, tzinfo

    from multidict import MultiMapping

    from worker.http.listing import Condition, Listing
    from worker.model import Run, Source
    from worker.registry import Registry
    from worker.store import Store, StoredObject

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BASE: Final = "/data/foundation/flowservice"
PREVIEW_ROWS: Final = 100
"""Most rows that a preview of Adobe's shows (facts, aep 8)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MILLISECONDS_FROM = 100_000_000_000
_TIMESTAMP = re.compile(r"[0-9]{1,13}")
_MOST_ATTEMPTS = 20
_MOST_DAYS = 100
_FEW_RUNS = 200
_MOST_RUNS_LOOKED_AT = 20_000
"""A page of runs ends when so many did not fit its filter: the link leads on."""

_COMMON_FIELDS = ("id", "createdAt", "updatedAt", "name", "description", "state", "version", "etag", *OWNER)
_FIELDS: Final = {
    CONNECTIONS: (*_COMMON_FIELDS, "connectionSpec", "auth"),
    SOURCES: (*_COMMON_FIELDS, "connectionSpec", "baseConnectionId", "data", "params", "inheritedAttributes"),
    TARGETS: (*_COMMON_FIELDS, "connectionSpec", "data", "params", "inheritedAttributes"),
    FLOWS: (
        *(*_COMMON_FIELDS, "flowSpec", "sourceConnectionIds", "targetConnectionIds", "transformations", "labels"),
        *("scheduleParams", "options", "inheritedAttributes", "lastOperation", "lastRunDetails"),
    ),
}
_RUN_FIELDS: Final = ("id", "createdAt", "updatedAt", "flowId", "flowName", "state", "metrics", "activities", "etag")
_STARTED_AT: Final = ("createdAt", "metrics.durationSummary.startedAtUTC")
_STATE_FIELDS: Final = ("state", "metrics.statusSummary.status")
_SCHEDULED: Final = "scheduled"
"""The status of a run that was asked for and has not begun; the store has it in progress."""
_SECRET_PATHS: Final = {CONNECTIONS: ("/auth/params",)}

_TEXT = {"type": "string"}
CONNECTION_SPECS: Final[tuple[dict[str, Any], ...]] = (
    {
        "id": MIXPANEL_SPEC,
        "name": "Mixpanel",
        "providerId": "0ed90a81-07f4-4586-8190-b40eccef1c5a",
        "version": "1.0",
        "authSpec": [
            {
                "name": "Basic Authentication",
                "type": "BasicAuthentication",
                "spec": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "description": "a service account, or a project's secret as user name without a password",
                    "properties": {
                        "username": _TEXT,
                        "password": {**_TEXT, "format": "password"},
                        "region": {**_TEXT, "enum": ["us", "eu", "in"]},
                        "host": {**_TEXT, "format": "uri"},
                    },
                    "required": ["username"],
                },
            }
        ],
        "sourceSpec": {
            "name": "Mixpanel",
            "type": "Mixpanel",
            "spec": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {
                    "projectId": {**_TEXT, "pattern": "^[0-9]+$"},
                    "timezone": _TEXT,
                    "events": {"type": "array", "items": _TEXT},
                    "where": _TEXT,
                    "timeBasis": {**_TEXT, "enum": ["utc", "project"]},
                    "lookbackDays": {"type": "integer", "minimum": 0},
                    "deduplicate": {**_TEXT, "enum": ["mixpanel", "none"]},
                },
                "required": ["projectId", "timezone"],
            },
        },
        "exploreSpec": {"name": "Resource", "type": "Resource"},
        "attributes": {
            "category": "Analytics",
            "connectorName": "Mixpanel",
            "isSource": True,
            "uiAttributes": {"apiFeatures": {"explorePaginationSupported": False}},
        },
    },
    {
        "id": DATA_LAKE_SPEC,
        "name": "dataLake",
        "providerId": "0ed90a81-07f4-4586-8190-b40eccef1c5a",
        "version": "1.0",
        "authSpec": [],
        "targetSpec": {
            "name": "Delta Lake",
            "type": "Delta",
            "spec": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {"dataSetId": _TEXT},
                "required": ["dataSetId"],
            },
        },
        "attributes": {"category": "Data Lake", "connectorName": "Delta Lake", "isSource": False},
    },
)

_MINUTES = {"properties": {"interval": {"minimum": 15}}}
_OTHERS = {"properties": {"interval": {"minimum": 1}}}
FLOW_SPECS: Final[tuple[dict[str, Any], ...]] = (
    {
        "id": FLOW_SPEC,
        "name": "RestStorageToAEP",
        "providerId": "0ed90a81-07f4-4586-8190-b40eccef1c5a",
        "version": "1.0",
        "sourceConnectionSpecIds": [MIXPANEL_SPEC],
        "targetConnectionSpecIds": [DATA_LAKE_SPEC, MIXPANEL_SPEC],
        "optionSpec": {
            "name": "OptionSpec",
            "spec": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {
                    "errorDiagnosticsEnabled": {
                        "title": "Error diagnostics.",
                        "description": "whether the rows that were refused are kept",
                        "type": "boolean",
                        "default": True,
                    },
                    "partialIngestionPercent": {
                        "title": "Partial ingestion threshold.",
                        "description": "a day with a larger share of refused rows is not committed",
                        "type": "number",
                        "exclusiveMinimum": 0,
                    },
                },
            },
        },
        "transformationSpecs": [
            {
                "name": "Mapping",
                "spec": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "description": "which mapping set, and which version of it",
                    "properties": {"mappingId": _TEXT, "mappingVersion": _TEXT},
                },
            }
        ],
        "scheduleSpec": {
            "name": "PeriodicSchedule",
            "type": "Periodic",
            "spec": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {
                    "startTime": {"description": "epoch time", "type": "integer"},
                    "frequency": {**_TEXT, "enum": ["once", "minute", "hour", "day", "week"]},
                    "interval": {"type": "integer"},
                    "backfill": {"type": "boolean", "default": True},
                },
                "required": ["startTime", "frequency"],
                "if": {"properties": {"frequency": {"const": "once"}}},
                "then": {"allOf": [{"not": {"required": ["interval"]}}, {"not": {"required": ["backfill"]}}]},
                "else": {
                    "required": ["interval"],
                    "if": {"properties": {"frequency": {"const": "minute"}}},
                    "then": _MINUTES,
                    "else": _OTHERS,
                },
            },
        },
        "attributes": {"notification": {"category": "sources", "flowRun": {"enabled": True}}},
    },
)
"""The schedule's rules are those of Adobe's flow spec (facts, aep_samples)."""


class Keeper(Protocol):
    """What runs flows and talks to Mixpanel for this door."""

    async def request_run(self, flow_id: str, first: date | None, last: date | None) -> str:
        """Ask for a run of these days, or of those that are due; the id of the run."""

    async def test_connection(self, source: Source) -> None:
        """Raises WorkerError when Mixpanel does not let this source in. Its project id may be empty: none is known."""

    async def explore(self, source: Source, *, rows: int) -> dict[str, Any]:
        """`{"format", "schema", "data"}` for the first `rows` events of a recent day. Raises WorkerError."""


def routes(registry: Registry, store: Store, keeper: Keeper) -> list[web.RouteDef]:
    """Everything under BASE, without slashes at the end."""
    served: list[tuple[str, str, Handler]] = []
    for kind in (CONNECTIONS, SOURCES, TARGETS):
        served += _crud(kind, registry, store)
    served += _crud(FLOWS, registry, store)
    served += _flow_actions(registry)
    served += _explorations(registry, keeper)
    served += _specs("connectionSpecs", CONNECTION_SPECS)
    served += _specs("flowSpecs", FLOW_SPECS)
    served += _runs(registry, store, keeper)
    served += [(method, path, _unserved) for method, path in _UNSERVED]
    return [web.RouteDef(method, BASE + path, handler, {}) for method, path, handler in served]


_UNSERVED: Final = (
    ("POST", "/connections/search"),
    ("POST", "/connections/{id}/action"),
    ("GET", "/connections/{id}/configs"),
    ("POST", "/connectionSpecs"),
    ("PUT", "/connectionSpecs/{id}"),
    ("GET", "/connectionSpecs/{id}/explore"),
    ("GET", "/connectionSpecs/{id}/configs"),
    ("POST", "/flows/search"),
    ("POST", "/flowSpecs"),
    ("PUT", "/flowSpecs/{id}"),
    ("POST", "/flowSpecs/search"),
    ("PUT", "/runs/{id}"),
    ("POST", "/sourceConnections/{id}/action"),
    ("POST", "/targetConnections/{id}/action"),
)


async def _unserved(request: web.Request) -> web.Response:
    """An operation of Adobe's that this worker does not have."""
    raise not_served(request.method, request.path, known=True)


# Connections and flows


def _crud(kind: str, registry: Registry, store: Store) -> list[tuple[str, str, Handler]]:
    def shown(found: Iterable[StoredObject], *, with_runs: bool) -> list[dict[str, Any]]:
        return [*_shown_objects(kind, found, registry, store, with_runs=with_runs)]

    async def create(request: web.Request) -> web.Response:
        """Make one; its id and etag."""
        body = await _json_object(request)
        stored = await asyncio.to_thread(registry.create, kind, body)
        return _created(request, stored.id, _quoted(stored.etag))

    async def read_all(request: web.Request) -> web.Response:
        """All that meet a filter, in pages."""
        listing = parse_listing(request.query, fields=_FIELDS[kind])
        asked = [*(condition.field for condition in listing.conditions), *(order.field for order in listing.orders)]
        asks_runs = any(field[0] == "lastRunDetails" for field in asked)

        def answer() -> dict[str, Any]:
            page = apply(listing, shown(registry.list(kind), with_runs=asks_runs), f"/{kind}")
            if kind == FLOWS and not asks_runs:
                items = page.get("items", ())
                runs = store.newest_runs([item["id"] for item in items])
                for item in items:
                    item.update(_last_run(runs.get(item["id"])))
            return page

        return _json(await asyncio.to_thread(answer))

    async def read_one(request: web.Request) -> web.Response:
        """One, as the only item."""

        def answer() -> tuple[StoredObject, list[dict[str, Any]]]:
            stored = registry.get(kind, request.match_info["id"])
            return stored, shown([stored], with_runs=True)

        stored, items = await asyncio.to_thread(answer)
        return _json({"items": items}, etag=_quoted(stored.etag))

    async def patch(request: web.Request) -> web.Response:
        """Change one by JSON Patch, if it is still the one of If-Match; its id and new etag."""
        tags = _if_match(request)
        object_id = request.match_info["id"]
        stored = await asyncio.to_thread(registry.get, kind, object_id)
        if tags is None:
            raise missing_if_match()
        operations = await _json_body(request)
        attempts = _MOST_ATTEMPTS if "*" in tags else 1
        while True:
            _check_tags(tags, kind, object_id, stored.etag)
            document = patched(stored.document, operations, secret_paths=_SECRET_PATHS.get(kind, ()))
            try:
                return _changed(await asyncio.to_thread(registry.replace, kind, object_id, document, etag=stored.etag))
            except RefusedError as error:
                attempts -= 1
                if error.status != 412 or not attempts:
                    raise
            stored = await asyncio.to_thread(registry.get, kind, object_id)

    async def delete(request: web.Request) -> web.Response:
        """Remove one that nothing else needs."""
        tags = _if_match(request)
        object_id = request.match_info["id"]

        def remove() -> None:
            registry.delete(kind, object_id, etag=_agreed(tags, registry.get(kind, object_id)))

        await asyncio.to_thread(remove)
        return web.Response(status=204)

    return [
        ("POST", f"/{kind}", create),
        ("GET", f"/{kind}", read_all),
        ("GET", f"/{kind}/{{id}}", read_one),
        ("PATCH", f"/{kind}/{{id}}", patch),
        ("DELETE", f"/{kind}/{{id}}", delete),
    ]


def _flow_actions(registry: Registry) -> list[tuple[str, str, Handler]]:
    async def act(request: web.Request) -> web.Response:
        """Enable or disable a flow; its id and etag."""
        operation = request.query.get("op")
        if not operation:
            raise _missing_param("op")
        state = {"enable": ENABLED, "disable": DISABLED}.get(operation.lower())
        if state is None:
            raise _unsupported(operation)
        tags = _if_match(request)
        flow_id = request.match_info["id"]

        def change() -> StoredObject:
            return registry.set_state(flow_id, state, _agreed(tags, registry.get(FLOWS, flow_id)))

        return _changed(await asyncio.to_thread(change))

    return [("POST", "/flows/{id}/action", act)]


def _shown_objects(
    kind: str, found: Iterable[StoredObject], registry: Registry, store: Store, *, with_runs: bool
) -> Iterable[dict[str, Any]]:
    """Objects as they are shown: their documents, and what the worker knows of them."""
    bases = {one.id: one for one in registry.list(CONNECTIONS)} if kind in (SOURCES, FLOWS) else {}
    sources = {one.id: one for one in registry.list(SOURCES)} if kind == FLOWS else {}
    targets = {one.id: one for one in registry.list(TARGETS)} if kind == FLOWS else {}
    found = list(found)
    runs = store.newest_runs([one.id for one in found]) if with_runs and kind == FLOWS else {}
    for stored in found:
        document = _shown(stored)
        if kind == SOURCES:
            document["inheritedAttributes"] = _base_of(stored, bases)
        if kind == FLOWS:
            document["inheritedAttributes"] = {
                "properties": {"isSourceFlow": True},
                "sourceConnections": [
                    {**_spec_of(sources[one]), **_base_of(sources[one], bases)}
                    for one in document["sourceConnectionIds"]
                    if one in sources
                ],
                "targetConnections": [
                    _spec_of(targets[one]) for one in document["targetConnectionIds"] if one in targets
                ],
            }
            document["runs"] = f"/flows/{stored.id}/runs"
            document["lastOperation"] = {
                "started": document["updatedAt"],
                "updated": document["updatedAt"],
                "percentCompleted": 100.0,
                "status": {"value": "completed", "errors": []},
                "operation": "create" if document["updatedAt"] == document["createdAt"] else "update",
            }
            if with_runs:
                document.update(_last_run(runs.get(stored.id)))
        yield document


def _shown(stored: StoredObject) -> dict[str, Any]:
    etag = _quoted(stored.etag)
    return {
        "id": stored.id,
        "createdAt": _milliseconds(stored.created_at),
        "updatedAt": _milliseconds(stored.updated_at),
        **OWNER,
        **stored.document,
        "version": etag,
        "etag": etag,
    }


def _spec_of(stored: StoredObject) -> dict[str, Any]:
    return {"id": stored.id, "connectionSpec": stored.document["connectionSpec"]}


def _base_of(source: StoredObject, bases: Mapping[str, StoredObject]) -> dict[str, Any]:
    base = bases.get(source.document["baseConnectionId"])
    return {} if base is None else {"baseConnection": _spec_of(base)}


def _last_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {}
    details: dict[str, Any] = {
        "id": run.id,
        "state": run.state.value,
        "startedAtUTC": _milliseconds(run.started_at),
    }
    if run.completed_at is not None:
        details["completedAtUTC"] = _milliseconds(run.completed_at)
    return {"lastRunDetails": details}


# Mixpanel behind a connection


def _explorations(registry: Registry, keeper: Keeper) -> list[tuple[str, str, Handler]]:
    async def test(request: web.Request) -> web.Response:
        """Whether Mixpanel takes the credentials of a connection."""
        params = _source_params(request.query)
        source = await asyncio.to_thread(registry.source_of, request.match_info["id"], params)
        await keeper.test_connection(source)
        return _json({"result": True})

    async def explore(request: web.Request) -> web.Response:
        """Some real events of a project, and the schema that they have."""
        query = {key.lower(): value for key, value in request.query.items()}
        await asyncio.to_thread(registry.get, CONNECTIONS, request.match_info["id"])
        if not query.get("objecttype"):
            raise _missing_param("objectType")
        if query["objecttype"].lower() != "rest":
            raise provider_refusal(
                "1358-400",
                "The provided param 'objectType' is invalid. Please provide a valid objectType and try again.",
            )
        for name in ("object", "fileType"):
            if query.get(name.lower(), "json").lower() != "json":
                raise provider_refusal(
                    "1337-400", f"The {name} for objectType=rest is json. Please provide valid {name} and try again."
                )
        preview = query.get("preview", "true").lower()
        if preview not in ("true", "false"):
            raise bad_request(f"Invalid query value {shorten(preview)} provided in query param.", "FLOW-1453-400")
        params = _source_params(request.query)
        source = await asyncio.to_thread(registry.source_of, request.match_info["id"], params)
        if not source.project_id:
            raise provider_refusal(
                "1334-400",
                "The query param : sourceParams cannot be empty. Please provide valid sourceParams and try again.",
            )
        document = await keeper.explore(source, rows=PREVIEW_ROWS)
        return _json(document if preview == "true" else {key: document[key] for key in document if key != "data"})

    return [("GET", "/connections/{id}/test", test), ("GET", "/connections/{id}/explore", explore)]


def _source_params(query: MultiMapping[str]) -> dict[str, Any] | None:
    """`sourceParams`: a JSON object in base64 of either alphabet, padded or not."""
    text = query.get("sourceParams")
    if not text:
        return None
    # in an address, a plus is a space
    text = text.replace(" ", "+").replace("-", "+").replace("_", "/").rstrip("=")
    try:
        params = parse_body(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError, ApiError):
        params = None
    if not isinstance(params, dict):
        raise provider_refusal(
            "1389-400",
            "An error occurred while parsing the provided base64-encoded string. "
            "Please provide a valid encoded filter string and try again.",
        )
    return params


# Specs


def _specs(kind: str, specs: Sequence[dict[str, Any]]) -> list[tuple[str, str, Handler]]:
    async def read_all(request: web.Request) -> web.Response:
        """All specs that meet a filter."""
        return _json(apply(parse_listing(request.query), specs, f"/{kind}"))

    async def read_one(request: web.Request) -> web.Response:
        """One spec, as the only item."""
        spec_id = request.match_info["id"]
        found = [spec for spec in specs if spec["id"] == spec_id]
        if not found:
            raise not_found(kind, spec_id)
        return _json({"items": found})

    return [("GET", f"/{kind}", read_all), ("GET", f"/{kind}/{{id}}", read_one)]


# Runs


def _runs(registry: Registry, store: Store, keeper: Keeper) -> list[tuple[str, str, Handler]]:
    async def read_all(request: web.Request) -> web.Response:
        """Runs that meet a filter, newest first, in pages."""
        listing = parse_listing(request.query, fields=_RUN_FIELDS)
        shown = partial(_shown_runs, registry, store, _base_url(request))
        return _json(await asyncio.to_thread(_run_page, store, listing, _query(listing), "/runs", shown))

    async def read_of_flow(request: web.Request) -> web.Response:
        """Runs of one flow, newest first, in pages."""
        listing = parse_listing(request.query, fields=_RUN_FIELDS)
        flow_id = request.match_info["id"]
        shown = partial(_shown_runs, registry, store, _base_url(request))

        def answer() -> dict[str, Any]:
            registry.get(FLOWS, flow_id)
            query = _query(listing)
            if query.flow_ids is not None and flow_id not in query.flow_ids:
                return {"count": 0} if listing.count else {"items": [], "_links": {}}
            query = replace(query, flow_ids=(flow_id,))
            return _run_page(store, listing, query, f"/flows/{flow_id}/runs", shown)

        return _json(await asyncio.to_thread(answer))

    async def read_one(request: web.Request) -> web.Response:
        """One run, as the only item."""
        run = await _run_of(request)
        items = await asyncio.to_thread(_shown_runs, registry, store, _base_url(request), [run])
        return _json({"items": items}, etag=run_etag(run))

    async def start(request: web.Request) -> web.Response:
        """Run a flow now: the days of a window, or those that are due; the run's id and etag."""
        body = await _json_object(request)
        flow_id = body.get("flowId")
        if not isinstance(flow_id, str) or not flow_id:
            raise bad_request(
                "The flow ID cannot be null or empty. Please update the flow ID and try again.", "FLOW-1446-400"
            )
        window = _window(body.get("params"))
        zone = await asyncio.to_thread(_runnable, registry, flow_id)
        first, last = _days_of(window, zone)
        run_id = await keeper.request_run(flow_id, first, last)
        etag = await asyncio.to_thread(_etag_of_new, store, run_id)
        made = {"id": run_id, "etag": etag}
        # the tutorial prints a list, the OpenAPI document the run itself
        return _created(request, run_id, etag, {"items": [made], **made})

    async def act(request: web.Request) -> web.Response:
        """Run the days of a failed run again; the new run's id and etag."""
        operation = request.query.get("op")
        if not operation:
            raise _missing_param("op")
        if operation.lower().replace("_", "-") != "re-trigger":
            raise _unsupported(operation)
        run = await _run_of(request)
        tags = _if_match(request)
        if tags is not None:
            _check_tags(tags, "runs", run.id, run_etag(run).strip('"'))
        if run.state is not RunState.FAILED:
            raise provider_refusal(
                "1387-400",
                f"The flowRunId={run.id} is in an invalid state={run.state.value} for re-triggering. Please try again "
                "after some time and contact customer support if the problem persists.",
            )
        flow = await asyncio.to_thread(registry.find, FLOWS, run.flow_id)
        if flow is None:
            raise _no_flow(run.flow_id)
        if flow.document["state"] != ENABLED:
            raise provider_refusal(
                "1388-400",
                f"The flow={flow.id} is in state={flow.document['state']} and cannot be re-triggered. "
                "The flow must be in enabled state for re-triggering.",
            )
        run_id = await keeper.request_run(run.flow_id, run.first_day, run.last_day)
        etag = await asyncio.to_thread(_etag_of_new, store, run_id)
        return _json({"id": run_id, "etag": etag}, etag=etag)

    async def _run_of(request: web.Request) -> Run:
        run_id = request.match_info["id"]
        run = await asyncio.to_thread(store.run, run_id) if len(run_id) <= 128 and run_id.isprintable() else None
        if run is None:
            raise not_found("runs", run_id)
        return run

    return [
        ("GET", "/runs", read_all),
        ("POST", "/runs", start),
        ("GET", "/runs/{id}", read_one),
        ("POST", "/runs/{id}/action", act),
        ("GET", "/flows/{id}/runs", read_of_flow),
    ]


def _runnable(registry: Registry, flow_id: str) -> tzinfo:
    """The calendar of a flow that may be run on demand.

    Adobe refuses flows with another frequency than once (1386-400). Here they may be run too: days may be asked for
    that the schedule's own runs do not cover again.
    """
    stored = registry.find(FLOWS, flow_id)
    if stored is None:
        raise _no_flow(flow_id)
    prepared = registry.prepared(flow_id)
    if stored.document["state"] != ENABLED:
        raise provider_refusal("1380-400", "Failed to create flow run. Error message: the flow is disabled")
    return calendar_zone(prepared.flow.source)


def _window(params: object) -> tuple[int | None, int | None]:
    """`windowStartTime` and `windowEndTime` of a request, in epoch seconds; milliseconds are taken too."""
    if params is None:
        return None, None
    if not isinstance(params, dict):
        raise _invalid_params()
    found: list[int | None] = []
    for key in ("windowStartTime", "windowEndTime"):
        value = params.get(key)
        if value is None:
            found.append(None)
        elif isinstance(value, int | str) and not isinstance(value, bool) and _TIMESTAMP.fullmatch(str(value)):
            number = int(value)
            found.append(number // 1000 if number >= _MILLISECONDS_FROM else number)
        else:
            raise _invalid_params()
    start, end = found
    if end is not None and start is None:
        raise _invalid_params()
    if start is not None and end is not None and end < start:
        raise provider_refusal(
            "1381-400",
            f"WindowEndTime={end} cannot be before Window StartTime={start}. "
            "Please provide a valid end time and try again.",
        )
    return start, end


def _days_of(window: tuple[int | None, int | None], zone: tzinfo) -> tuple[date | None, date | None]:
    """The days that a window touches; its end lies outside of it."""
    start, end = window
    if start is None:
        return None, None
    first = (_EPOCH + timedelta(seconds=start)).astimezone(zone).date()
    if end is None:
        return first, None
    return first, (_EPOCH + timedelta(seconds=max(end - 1, start))).astimezone(zone).date()


def _query(listing: Listing) -> RunQuery:
    """As much of the question as the store can answer. Raises ApiError for an order that it does not keep."""
    newest_first = True
    if listing.orders:
        order = listing.orders[0]
        if ".".join(order.field) not in _STARTED_AT:
            raise bad_request(
                f"Incorrect field= #{shorten('.'.join(order.field))} passed in orderBy: runs are ordered by "
                f"{' or '.join(_STARTED_AT)}.",
                "FLOW-1433-400",
            )
        newest_first = order.descending
    flow_ids: tuple[str, ...] | None = None
    states: tuple[RunState, ...] | None = None
    spelled = {**{state.value.casefold(): state for state in RunState}, _SCHEDULED: RunState.IN_PROGRESS}
    after: datetime | None = None
    before: datetime | None = None
    for condition in listing.conditions:
        if condition.path == "flowId" and condition.operator == "==":
            # ids are written in lower case here
            asked = tuple(dict.fromkeys(form for value in condition.values for form in (value, value.lower())))
            flow_ids = asked if flow_ids is None else tuple(one for one in flow_ids if one in asked)
        elif condition.path in _STATE_FIELDS and condition.operator == "==":
            wanted = {spelled.get(value.casefold()) for value in condition.values}
            states = tuple(state for state in (RunState if states is None else states) if state in wanted)
        elif condition.path in _STARTED_AT and re.fullmatch(r"[0-9]{1,14}", condition.values[0]):
            # a millisecond more on both sides: documents have whole ones
            moment = _EPOCH + min(int(condition.values[0]), 10**14) * _MILLISECOND
            if condition.operator in (">", ">=") or (condition.operator == "==" and len(condition.values) == 1):
                after = max(after or _EPOCH, moment - _MILLISECOND)
            if condition.operator in ("<", "<=") or (condition.operator == "==" and len(condition.values) == 1):
                before = min(before or moment + _MILLISECOND, moment + _MILLISECOND)
    last = None
    if listing.after is not None:
        last = str(listing.after[-1][1])
    return RunQuery(flow_ids, states, after, before, newest_first, last)


def _is_exact(condition: Condition) -> bool:
    """Whether the store's answer to the condition needs no second look: a run in progress may be a scheduled one."""
    if condition.operator != "==":
        return False
    if condition.path == "flowId":
        return True
    settled = (RunState.SUCCESS.value, RunState.FAILED.value)
    return condition.path in _STATE_FIELDS and all(value.casefold() in settled for value in condition.values)


def _run_page(
    store: Store,
    listing: Listing,
    query: RunQuery,
    path: str,
    shown: Callable[[Sequence[Run]], list[dict[str, Any]]],
) -> dict[str, Any]:
    """One page of runs, or their number."""
    exact = all(_is_exact(condition) for condition in listing.conditions)
    if listing.count and exact:
        return {"count": store.count_runs(query)}
    page: list[Run] = []
    found = looked_at = 0
    links: dict[str, Any] = {}
    while not links:
        wanted = listing.limit + 1 if exact or not looked_at else _FEW_RUNS
        runs = store.find_runs(query, wanted)
        for run in runs:
            if not exact and not _selects(listing, run):
                continue
            found += 1
            if listing.count:
                continue
            if len(page) == listing.limit:
                links = _run_link(listing, path, page[-1].id)
                break
            page.append(run)
        if len(runs) < wanted:
            break
        looked_at += len(runs)
        if not links and not listing.count and looked_at >= _MOST_RUNS_LOOKED_AT:
            links = _run_link(listing, path, runs[-1].id)
        query = replace(query, after=runs[-1].id)
    return {"count": found} if listing.count else {"items": shown(page), "_links": links}


def _selects(listing: Listing, run: Run) -> bool:
    document = run_document(run, context=RunContext(queued=bool(run.extra.get(QUEUED))))
    return listing.selects({**document, "state": document["metrics"]["statusSummary"]["status"]})


def _run_link(listing: Listing, path: str, last_id: str) -> dict[str, Any]:
    return listing.link(path, [*[(0, 0)] * (len(listing.orders) + 1), (2, last_id)])


def _shown_runs(registry: Registry, store: Store, base_url: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs as they are shown, with what their flows and their commits say of them."""
    flows = {stored.id: stored.document for stored in registry.list(FLOWS, {run.flow_id for run in runs})}
    days = {run.id: _days_in_question(run) for run in runs}
    receipts = store.newest_receipts({(run.flow_id, day) for run in runs for day in days[run.id]})
    shown = []
    for run in runs:
        flow = flows.get(run.flow_id, {})
        found = (receipts.get((run.flow_id, day)) for day in days[run.id])
        context = RunContext(
            base_url=base_url,
            source_connection_id=next(iter(flow.get("sourceConnectionIds", ())), None),
            target_connection_id=next(iter(flow.get("targetConnectionIds", ())), None),
            one_time=flow.get("scheduleParams", {}).get("frequency") == "once",
            queued=bool(run.extra.get(QUEUED)),
            # a commit that a later run has replaced tells nothing any more
            receipts=[receipt for receipt in found if receipt is not None and receipt.batch_id in run.batch_ids],
        )
        shown.append(run_document(run, context=context))
    return shown


def _days_in_question(run: Run) -> list[date]:
    """The days of which the run's document depends on receipts."""
    days = (run.last_day - run.first_day).days + 1
    # without rejects, and with a batch for each day, they tell nothing new
    if not run.batch_ids or days > _MOST_DAYS or (not run.tally.failed and len(run.batch_ids) == days):
        return []
    return [run.first_day + timedelta(days=day) for day in range(days)]


def _etag_of_new(store: Store, run_id: str) -> str:
    run = store.run(run_id)
    return _quoted(run_id) if run is None else run_etag(run)


def _base_url(request: web.Request) -> str:
    """Where links lead: the address by which the client came."""
    return f"{request.scheme}://{request.host}"


# Requests and answers


async def _json_body(request: web.Request) -> object:
    """The JSON value of the body, None without one; the application may have read it already."""
    if BODY in request:
        return request[BODY]
    raw = await read_body(request, MAX_BODY_BYTES, READ_SECONDS)
    return parse_body(raw) if raw.strip() else None


async def _json_object(request: web.Request) -> dict[str, Any]:
    body = await _json_body(request)
    if body is None or body == {}:
        raise empty_body()
    if not isinstance(body, dict):
        raise bad_request("The request body is not a JSON object.")
    return body


def _if_match(request: web.Request) -> list[str] | None:
    """The etags that the client takes, without quotes; None where it does not say.

    A weak one keeps its `W/` and so fits none: who compares for a change needs more (RFC 9110).
    """
    text = request.headers.get("If-Match")
    if text is None:
        text = next((value for key, value in request.query.items() if key.lower() == "if-match"), None)
    if text is None or not text.strip():
        return None
    return [tag.strip().strip('"') for tag in text.split(",")]


def _check_tags(tags: Sequence[str], kind: str, object_id: str, current: str) -> None:
    if "*" not in tags and current not in tags:
        raise stale_etag(kind, object_id, ", ".join(tags), current)


def _agreed(tags: Sequence[str] | None, stored: StoredObject) -> str | None:
    """The etag at which the object has to be when it is changed; None where the client takes any."""
    if tags is None or "*" in tags:
        return None
    _check_tags(tags, stored.kind, stored.id, stored.etag)
    return stored.etag


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _json(document: Mapping[str, Any], *, etag: str | None = None, status: int = 200) -> web.Response:
    headers = {"ETag": etag} if etag else {}
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json", headers=headers)


def _created(
    request: web.Request, object_id: str, etag: str, document: Mapping[str, Any] | None = None
) -> web.Response:
    response = _json(document or {"id": object_id, "etag": etag}, etag=etag, status=201)
    response.headers["Location"] = f"{request.path.rstrip('/')}/{object_id}"
    return response


def _changed(stored: StoredObject) -> web.Response:
    etag = _quoted(stored.etag)
    return _json({"id": stored.id, "etag": etag}, etag=etag)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _missing_param(name: str) -> Exception:
    return provider_refusal(
        "1359-400", f"The param {name} is missing in the request. Please provide a valid {name} and try again."
    )


def _unsupported(operation: str) -> Exception:
    return provider_refusal(
        "1398-400",
        f"The provided operation : {shorten(operation, 30)} is unsupported. "
        "Please check the operation provided and try again.",
    )


def _invalid_params() -> Exception:
    return provider_refusal(
        "1384-400",
        "The params provided for creating flow run are invalid or empty: windowStartTime and windowEndTime are epoch "
        "seconds. Please provide valid params and try again.",
    )


def _no_flow(flow_id: str) -> RefusedError:
    return RefusedError("FLOW-1430-400", f"Flow not found with id {shorten(flow_id)}.")
