"""Data Prep under `/data/foundation/conversion`: mapping sets (facts, aep 2 and 7.3).

The body of a mapping set has one of three forms (`worker.mapping.mapping_set`). What is given back has the keys of both
the newer and the older one, as Adobe's has. A mapping set keeps its id when it is replaced, and gets the next version;
earlier versions can still be read, as flows name the one that they use.
"""

from __future__ import annotations

import asyncio
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web
from multidict import MultiDict

from worker.errors import ConfigurationError
from worker.http.bodies import json_object
from worker.http.listing import parse_listing
from worker.http.problems import bad_request, not_found, shorten
from worker.mapping.xdm import XdmSchema
from worker.registry import MAPPING_SETS, compile_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from worker.registry import Registry
    from worker.store.base import StoredObject

BASE: Final = "/data/foundation/conversion"
MAKER: Final = "mixpanel-worker"
"""Who has made and changed everything here, where Adobe names a user."""
DEFAULT_LIMIT: Final = 10
MOST_LIMIT: Final = 1000
FULL_SCHEMA: Final = "application/vnd.adobe.xed-full+json;version=1"

_NUMBER = re.compile(r"[0-9]{1,9}")
_SHOWN_TYPES: Final = {"ATTRIBUTE": "text/x.schema-path"}
_ORDERS: Final = {"createdDate": "created_at", "updatedDate": "updated_at", "lastUpdateDate": "updated_at"}


def routes(registry: Registry) -> list[web.RouteDef]:
    """Mapping sets: create, list, get, replace, delete, validate, and their mappings."""

    async def create(request: web.Request) -> web.Response:
        """Create a mapping set."""
        body = json_object(request)
        stored = await asyncio.to_thread(_create, registry, body, _flag(request, "validate"))
        return _answer(_summary(stored, stored.id))

    async def listed(request: web.Request) -> web.Response:
        """List mapping sets."""
        return _answer(await asyncio.to_thread(_list, registry, request))

    async def get(request: web.Request) -> web.Response:
        """Get a mapping set, in its newest version or an older one."""
        version = _number(request, "version", None)
        return _answer(await asyncio.to_thread(_get, registry, _id(request), version, _flag(request, "expandSchema")))

    async def replace(request: web.Request) -> web.Response:
        """Replace a mapping set: it keeps its id and gets the next version."""
        body = json_object(request)
        mapping_id = _id(request)
        if body.get("id") not in (None, mapping_id):
            raise bad_request("The id of the request body is not that of the address.")
        stored = await asyncio.to_thread(_replace, registry, mapping_id, body, _flag(request, "validate"))
        return _answer(set_document(stored, stored.id))

    async def delete(request: web.Request) -> web.Response:
        """Delete a mapping set that no flow uses."""
        await asyncio.to_thread(registry.delete, MAPPING_SETS, _id(request))
        return web.Response(status=204)

    async def mappings(request: web.Request) -> web.Response:
        """List the mappings of a mapping set."""
        version = _number(request, "version", None)
        document = await asyncio.to_thread(_get, registry, _id(request), version, False)  # noqa: FBT003
        return _answer(document["mappings"])

    async def mapping(request: web.Request) -> web.Response:
        """Get one mapping of a mapping set."""
        document = await asyncio.to_thread(_get, registry, _id(request), None, False)  # noqa: FBT003
        wanted = request.match_info["mappingId"]
        for found in document["mappings"]:
            if found["id"] == wanted:
                return _answer(found)
        raise not_found("mappings", wanted)

    async def validate(request: web.Request) -> web.Response:
        """Say of each mapping whether it can be used."""
        return _answer(await asyncio.to_thread(_validate, registry, json_object(request)))

    one = f"{BASE}/mappingSets/{{mappingSetId}}"
    return [
        web.post(f"{BASE}/mappingSets", create),
        web.get(f"{BASE}/mappingSets", listed),
        web.post(f"{BASE}/mappingSets/validate", validate),
        web.get(one, get),
        web.put(one, replace),
        web.delete(one, delete),
        web.get(f"{one}/mappings", mappings),
        web.get(f"{one}/mappings/{{mappingId}}", mapping),
        # the tutorial's own line for the path leaves the beginning out (spec 000, "Create a mapping")
        web.post("/conversion/mappingSets", create),
    ]


# Reading and writing


def _create(registry: Registry, body: dict[str, Any], validate: bool) -> StoredObject:  # noqa: FBT001
    if validate:
        _check(registry, body)
    # the first version is 0, whatever the body says
    return registry.create(MAPPING_SETS, {**body, "version": 0})


def _replace(
    registry: Registry,
    mapping_id: str,
    body: dict[str, Any],
    validate: bool,  # noqa: FBT001
) -> StoredObject:
    if validate:
        _check(registry, body)
    return registry.replace(MAPPING_SETS, mapping_id, body, etag=None)


def _get(registry: Registry, mapping_id: str, version: int | None, expand: bool) -> dict[str, Any]:  # noqa: FBT001
    stored = registry.mapping_set(mapping_id, version)
    document = set_document(stored, mapping_id)
    if expand:
        schema = _schema(registry, stored.document)
        if schema is not None:
            document["outputSchema"]["jsonSchema"] = schema
    return document


def _list(registry: Registry, request: web.Request) -> dict[str, Any]:
    start, limit = _number(request, "start", 0) or 0, _number(request, "limit", DEFAULT_LIMIT) or 0
    if not 1 <= limit <= MOST_LIMIT:
        raise bad_request(f"The parameter limit takes a number from 1 to {MOST_LIMIT}.")
    stored = registry.list(MAPPING_SETS)
    order = request.query.get("orderBy", "").strip()
    # a plus in an address is a space
    field = _ORDERS.get(order.lstrip("+-"))
    if order and field is None:
        raise bad_request("The parameter orderBy takes createdDate or updatedDate, with + or - before it.")
    if field is not None:
        stored.sort(key=lambda one: getattr(one, field), reverse=order.startswith("-"))
    name = request.query.get("name")
    conditions = parse_listing(MultiDict([("property", text) for text in request.query.getall("property", [])]))
    found = [set_document(one, one.id) for one in stored if name is None or one.document.get("name") == name]
    found = [document for document in found if conditions.selects(document)]
    page = found[start : start + limit]
    links: dict[str, Any] = {}
    if start + limit < len(found):
        query = request.rel_url.update_query(start=str(start + limit), limit=str(limit))
        links["next"] = {"href": str(query)}
    return {"data": page, "_page": {"count": len(page), "limit": limit}, "_links": links}


def _check(registry: Registry, body: Mapping[str, Any]) -> None:
    """Raises ConfigurationError when the mapping set cannot be compiled for its schema."""
    schema = _schema(registry, body)
    compile_document(body, None if schema is None else XdmSchema(schema))


def _validate(registry: Registry, body: dict[str, Any]) -> dict[str, Any]:
    """One answer a mapping; the answers of a set that is wrong as a whole all say so."""
    entries = body.get("mappings")
    if not isinstance(entries, list) or not entries:
        raise bad_request("The mapping set has no mappings.")
    if len(entries) > MOST_LIMIT:
        raise bad_request(f"Up to {MOST_LIMIT} mappings are validated at once.")
    schema = _schema(registry, body)
    # what is required speaks of the whole set, not of one mapping
    relaxed = None if schema is None else XdmSchema(_without_required(schema))
    found = [_verdict([entry], relaxed) for entry in entries]
    good = next((entry for entry, verdict in zip(entries, found, strict=True) if verdict["errors"] is None), None)
    if good is not None:
        # a constant alone makes no set
        found = [
            _verdict([entry, good], relaxed) if verdict["errors"] and entry != good else verdict
            for entry, verdict in zip(entries, found, strict=True)
        ]
    if all(verdict["status"] == "SUCCESS" for verdict in found):
        try:
            _check(registry, body)
        except ConfigurationError as error:
            found = [_failed(entry, error) for entry in entries]
    return {"validationResponse": found}


def _verdict(entries: list[Any], schema: XdmSchema | None) -> dict[str, Any]:
    """What is to be said of the first of these mappings."""
    try:
        compile_document({"mappings": entries}, schema)
    except ConfigurationError as error:
        return _failed(entries[0], error)
    return {"status": "SUCCESS", "errors": None}


def _without_required(node: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(node, dict):
        return {
            key: _without_required(value)
            for key, value in node.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [_without_required(item) for item in node] if isinstance(node, list) else node


def _failed(entry: object, error: ConfigurationError) -> dict[str, Any]:
    shown: dict[str, Any] = {"exception": str(error)}
    if isinstance(entry, dict):
        for key, older in (("destination", "destinationXdmPath"), ("source", "sourceAttribute")):
            value = entry.get(key, entry.get(older))
            if isinstance(value, str):
                shown[key] = shorten(value)
    return {"status": "FAILED", "errors": [shown]}


def _schema(registry: Registry, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema that the mapping set names, if it is here and whole."""
    reference = _schema_reference(body).get("id")
    stored = registry.find_schema(reference) if isinstance(reference, str) and reference else None
    return None if stored is None else registry.resolved_schema(stored.document)


# Documents


def set_document(stored: StoredObject, mapping_id: str) -> dict[str, Any]:
    """A mapping set as it is given back. `stored` may be an older version; `mapping_id` is the set's own id."""
    body = stored.document
    reference = _schema_reference(body)
    summary = _summary(stored, mapping_id)
    document: dict[str, Any] = {
        **summary,
        "supportVersion": "1.1",
        "inputSchema": body.get("inputSchema") or {},
        "outputSchema": {"version": 0, "schemaRef": reference},
        "mappings": [
            mapping_document(entry, summary, number) for number, entry in enumerate(body.get("mappings") or (), start=1)
        ],
        "status": "PUBLISHED",
        "strictMapping": False,
        "allowNullValues": False,
        "xdmVersion": body.get("xdmVersion") or "1.0",
        "schemaRef": reference,
    }
    if "id" in reference:
        document["xdmSchema"] = reference["id"]
    for key in ("name", "description", "tags"):
        if body.get(key) is not None:
            document[key] = body[key]
    return document


def mapping_document(entry: Mapping[str, Any], summary: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One mapping as it is given back; it can be sent again as it is. Its id follows from its place in the set."""
    source = entry.get("source", entry.get("sourceAttribute"))
    destination = entry.get("destination", entry.get("destinationXdmPath"))
    source_type = entry.get("sourceType") or "ATTRIBUTE"
    document: dict[str, Any] = {
        **summary,
        "id": sha256(f"{summary['id']}/{number}".encode()).hexdigest()[:32],
        "version": 0,
        "sourceType": _SHOWN_TYPES.get(source_type, source_type),
        "source": source,
        "destination": destination,
        "identity": bool(entry.get("identity")),
        "primaryIdentity": bool(entry.get("primaryIdentity")),
        "matchScore": 0.0,
        "functionVersion": 1,
        "sourceAttribute": source,
        "destinationXdmPath": destination,
    }
    for key in ("name", "description", "identityGroup", "namespaceCode"):
        if entry.get(key) is not None:
            document[key] = entry[key]
    return document


def _summary(stored: StoredObject, mapping_id: str) -> dict[str, Any]:
    return {
        "id": mapping_id,
        "version": stored.document.get("version", 0),
        "createdDate": _milliseconds(stored.created_at),
        "modifiedDate": _milliseconds(stored.updated_at),
        "createdBy": MAKER,
        "modifiedBy": MAKER,
    }


def _schema_reference(body: Mapping[str, Any]) -> dict[str, Any]:
    output = body.get("outputSchema")
    for candidate in (output.get("schemaRef") if isinstance(output, dict) else None, body.get("schemaRef")):
        if isinstance(candidate, dict) and isinstance(candidate.get("id"), str):
            content_type = candidate.get("contentType")
            return {
                "id": candidate["id"],
                "contentType": content_type if isinstance(content_type, str) else FULL_SCHEMA,
            }
    identifier = body.get("xdmSchema")
    return {"id": identifier, "contentType": FULL_SCHEMA} if isinstance(identifier, str) else {}


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


# Requests


def _id(request: web.Request) -> str:
    return request.match_info["mappingSetId"]


def _flag(request: web.Request, name: str) -> bool:
    """aepp spells it `False`."""
    word = request.query.get(name, "false").lower()
    if word not in ("true", "false"):
        raise bad_request(f"The parameter {name} takes true or false.")
    return word == "true"


def _number(request: web.Request, name: str, default: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise bad_request(f"The parameter {name} takes a whole number.")
    return int(text)


def _answer(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
