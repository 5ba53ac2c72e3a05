"""The least of the Schema Registry, under `/data/foundation/schemaregistry`: schemas of the tenant (facts, aep 5).

There are no field groups here: a schema says its fields itself, in `properties` or in its own `definitions`. The class
that Adobe wants in `allOf` may stand there. What is looked up in the `-full` formats has all of its fields in
`properties`.
"""

from __future__ import annotations

import asyncio
import re
from math import inf
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web
from multidict import MultiDict

from worker.http.bodies import json_object
from worker.http.listing import parse_listing
from worker.http.problems import ApiError, bad_request, not_found, shorten
from worker.mapping.xdm import XdmSchema
from worker.registry import SCHEMAS
from worker.run_record import ORGANISATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from worker.registry import Registry
    from worker.store.base import StoredObject

BASE: Final = "/data/foundation/schemaregistry"
TENANT: Final = "mixpanelworker"
"""The tenant id: the middle of the ids of schemas, and with `_` before it where Adobe puts a tenant's own fields."""
MAKER: Final = "mixpanel-worker"
DEFAULT_LIMIT: Final = 300
MOST_LIMIT: Final = 500

_ADDRESS: Final = "https://ns.adobe.com/{tenant}/schemas/{id}"
_FOREIGN = re.compile(r"https://ns\.adobe\.com/([A-Za-z0-9_-]{1,64})/schemas/([A-Za-z0-9_-]{1,100})")
_ACCEPT = re.compile(
    r"application/vnd\.adobe\.(?:xed|xdm)(?P<form>(?:-full|-notext|-desc|-deprecated|-flat|-id)*)\+json"
    r"(?:;\s*version=(?P<version>[0-9.]{1,10}))?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_TEXT: Final = 1000
_MOST_LEVELS: Final = 50
_MOST_PARTS: Final = 100_000
_OWN_KEYS: Final = frozenset({"$id", "version", "imsOrg", "refs"})


def routes(registry: Registry) -> list[web.RouteDef]:
    """Schemas: create, list, get, delete; and the tenant."""
    registry.hooks[SCHEMAS] = lambda body: checked_schema(registry, body)

    async def create(request: web.Request) -> web.Response:
        """Create a schema."""
        body = json_object(request)
        tenant, schema_id = new_id(body.get("$id"))
        address = _ADDRESS.format(tenant=tenant, id=schema_id)

        def make() -> StoredObject:
            return registry.create(SCHEMAS, {**body, "$id": address}, object_id=schema_id)

        stored = await asyncio.to_thread(make)
        return _answer(schema_document(stored), status=201)

    async def listed(request: web.Request) -> web.Response:
        """List schemas."""
        tenant = _is_tenant(request)
        stored = await asyncio.to_thread(registry.list, SCHEMAS) if tenant else []
        return _answer(_page(request, stored))

    async def get(request: web.Request) -> web.Response:
        """Get a schema by its `$id` or `meta:altId`."""
        name = request.match_info["schemaId"]
        form = accepted(request.headers.get("Accept", "*/*"))
        stored = await asyncio.to_thread(_find, registry, name) if _is_tenant(request) else None
        if stored is None:
            raise _missing(name)
        document = schema_document(stored)
        if "-full" in form or "-flat" in form:
            resolved = await asyncio.to_thread(registry.resolved_schema, stored.document)
            if resolved is not None and expanded_size(resolved) <= _MOST_PARTS:
                document.update(flattened(resolved))
        return _answer(without_texts(document, form))

    async def delete(request: web.Request) -> web.Response:
        """Delete a schema that no dataset uses."""
        name = request.match_info["schemaId"]

        def remove() -> None:
            stored = _find(registry, name)
            if stored is None:
                raise _missing(name)
            registry.delete(SCHEMAS, stored.id)

        await asyncio.to_thread(remove)
        return web.Response(status=204)

    async def stats(request: web.Request) -> web.Response:
        """The tenant id, and how many schemas there are."""
        stored = await asyncio.to_thread(registry.list, SCHEMAS)
        newest = [_short(schema_document(one)) for one in reversed(stored[-10:])]
        updated = sorted(stored, key=lambda one: one.updated_at, reverse=True)[:10]
        body = {
            "imsOrg": ORGANISATION,
            "tenantId": TENANT,
            "counts": {"schemas": len(stored), "mixins": 0, "datatypes": 0, "classes": 0, "unions": 0},
            "recentlyCreatedResources": newest,
            "recentlyUpdatedResources": [_short(schema_document(one)) for one in updated],
            "classUsage": [],
        }
        return _answer(body)

    return [
        web.get(f"{BASE}/stats", stats),
        web.post(f"{BASE}/tenant/schemas", create),
        web.get(f"{BASE}/{{containerId}}/schemas", listed),
        web.get(f"{BASE}/{{containerId}}/schemas/{{schemaId}}", get),
        web.delete(f"{BASE}/tenant/schemas/{{schemaId}}", delete),
    ]


# Rules


def new_id(address: object) -> tuple[str, str]:
    """Tenant and id of a new schema: those of the `$id` that a schema of Adobe's brings along, or new ones."""
    if address is None:
        return TENANT, token_hex(24)
    match = _FOREIGN.fullmatch(address) if isinstance(address, str) else None
    if match is None or match[1] == "xdm":
        raise bad_request("$id takes https://ns.adobe.com/<tenant>/schemas/<id>, or is left out.")
    return match[1], match[2]


def checked_schema(registry: Registry, body: dict[str, Any]) -> dict[str, Any]:
    """The document to keep for a body; what the registry sets itself is left out.

    Raises ApiError, and ConfigurationError for fields that do not make a schema. References to what is not here are
    kept as they are: such a schema gives no types.
    """
    title = body.get("title")
    if not isinstance(title, str) or not title.strip() or len(title) > _MOST_TEXT:
        raise bad_request(f"title takes a text of up to {_MOST_TEXT} characters.")
    if body.get("type", "object") != "object":
        raise bad_request("type takes object.")
    if not isinstance(body.get("description", ""), str):
        raise bad_request("description takes a text.")
    for key, kind in (("properties", dict), ("definitions", dict), ("required", list), ("allOf", list)):
        if not isinstance(body.get(key, kind()), kind):
            raise bad_request(f"{key} takes {'an object' if kind is dict else 'a list'}.")
    if _levels(body) > _MOST_LEVELS:
        raise bad_request(f"The schema is nested deeper than {_MOST_LEVELS} levels.")
    document = {
        key: value
        for key, value in body.items()
        if key not in _OWN_KEYS and (not key.startswith("meta:") or key == "meta:class")
    }
    # before anything is put in the place of a reference: a few lines can stand for more than fits into memory
    if expanded_size(document, registry) > _MOST_PARTS:
        raise bad_request(f"The schema has more than {_MOST_PARTS} parts with all references resolved, or has no end.")
    resolved = registry.resolved_schema(document)
    if resolved is not None:
        XdmSchema(resolved)
    return {**document, "$id": body["$id"]} if isinstance(body.get("$id"), str) else document


def expanded_size(document: Mapping[str, Any], registry: Registry | None = None) -> float:
    """How many parts a schema has once its references are resolved; infinity for one that refers to itself.

    Found without resolving them: each target is counted once, and taken as often as it is referred to.
    """
    known: dict[str, float] = {}

    def size(node: object, root: Mapping[str, Any], name: str) -> float:
        if isinstance(node, list):
            return 1 + sum(size(item, root, name) for item in node)
        if not isinstance(node, dict):
            return 1
        found = 1 + sum(size(value, root, name) for value in node.values())
        reference = node.get("$ref")
        return found + (target_size(reference, root, name) if isinstance(reference, str) else 0)

    def target_size(reference: str, root: Mapping[str, Any], name: str) -> float:
        key = f"{name} {reference}" if reference.startswith("#") else reference
        if key not in known:
            known[key] = inf
            if reference.startswith("#"):
                known[key] = size(_definition(root, reference), root, name)
            else:
                stored = registry.find_schema(reference) if registry is not None else None
                known[key] = size(stored.document, stored.document, reference) if stored is not None else 1
        return known[key]

    return size(document, document, "")


def accepted(header: str) -> str:
    """The form that an Accept header asks for: `-full`, `-full-notext`, nothing. Whoever does not say gets all fields.

    Raises ApiError: 400 for one of Adobe's types without a version, 404 for a version that is not here, 406.
    """
    for part in header.split(","):
        match = _ACCEPT.fullmatch(part.strip())
        if match is None:
            continue
        if match["version"] is None:
            message = (
                f"The supplied Accept header is not valid: {shorten(part.strip())} - A valid Accept value should look "
                "like application/vnd.adobe.xed+json; version=1 (Version should be specified)"
            )
            raise ApiError(400, "XDM-1007-400", "Accept header invalid", message)
        if match["version"] not in ("1", "1.0"):
            message = f"There is no version {match['version']} of the resource."
            raise ApiError(404, "XDM-1012-404", "Resource Not Found", message)
        return match["form"].lower()
    types = {part.partition(";")[0].strip().lower() for part in header.split(",")}
    if types & {"*/*", "application/*", "application/json", ""}:
        return "-full"
    raise ApiError(406, "XDM-1006-406", "Accept header invalid", "The format that Accept names is not available.")


def flattened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`properties` and `required` of a schema without references to others, with what `allOf` and its definitions add.

    Where two parts speak of one field, the first says what it is, and an object has the fields of both.
    """
    return _merged(schema, schema, 0)


def _merged(node: Mapping[str, Any], root: Mapping[str, Any], level: int) -> dict[str, Any]:
    found: dict[str, Any] = {key: value for key, value in node.items() if key not in ("$ref", "allOf", "definitions")}
    if level > _MOST_LEVELS:
        return found
    parts: list[object] = list(node.get("allOf") or ())
    reference = node.get("$ref")
    if isinstance(reference, str):
        parts.append(_definition(root, reference))
    properties: dict[str, Any] = {}
    required: list[str] = []
    for part in (found, *(_merged(part, root, level + 1) for part in parts if isinstance(part, dict))):
        for key, value in part.items():
            if key == "required" and isinstance(value, list):
                required += [name for name in value if name not in required]
            elif key == "properties" and isinstance(value, dict):
                for name, field in value.items():
                    known = properties.get(name)
                    both = {"allOf": [known, field]} if isinstance(known, dict) and known != field else field
                    properties[name] = _merged(both, root, level + 1) if isinstance(both, dict) else both
            elif part is not found:
                found.setdefault(key, value)
    if properties:
        found["properties"] = properties
    if required:
        found["required"] = required
    return found


def _definition(root: Mapping[str, Any], reference: str) -> object:
    target: object = root
    for key in reference.removeprefix("#").split("/")[1:]:
        target = target.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
    return target


def without_texts(document: Any, form: str) -> Any:  # noqa: ANN401 - any JSON
    """`-notext` leaves out titles and descriptions, `-desc` the titles alone."""
    names = {"title", "description"} if "-notext" in form else {"title"} if "-desc" in form else set[str]()
    return _without(document, names) if names else document


def _without(node: Any, names: set[str], *, fields: bool = False) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        # below `properties`, `title` is the name of a field
        return {
            key: _without(value, names, fields=key == "properties" and not fields)
            for key, value in node.items()
            if fields or key not in names or not isinstance(value, str)
        }
    return [_without(item, names) for item in node] if isinstance(node, list) else node


def _levels(node: object) -> int:
    level, count = [node], 0
    while level:
        count += 1
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return count


# Documents


def schema_document(stored: StoredObject) -> dict[str, Any]:
    """A schema as it is given back."""
    body = stored.document
    address = body.get("$id")
    match = _FOREIGN.fullmatch(address) if isinstance(address, str) else None
    tenant, schema_id = (match[1], match[2]) if match else (TENANT, stored.id)
    parts = body.get("allOf")
    refs = [part["$ref"] for part in parts if isinstance(part, dict) and "$ref" in part] if parts else []
    outer = [reference for reference in refs if isinstance(reference, str) and not reference.startswith("#")]
    document: dict[str, Any] = {
        "$id": _ADDRESS.format(tenant=tenant, id=schema_id),
        "meta:altId": f"_{tenant}.schemas.{schema_id}",
        "meta:resourceType": "schemas",
        "version": "1.0",
        "title": body.get("title") or stored.id,
        "type": "object",
        "description": body.get("description") or "",
        **{key: value for key, value in body.items() if key not in ("$id", "title", "type", "description")},
        "refs": outer,
        "imsOrg": ORGANISATION,
        "meta:extensible": False,
        "meta:abstract": False,
        "meta:extends": outer,
        "meta:xdmType": "object",
        "meta:registryMetadata": {
            "repo:createdDate": _milliseconds(stored.created_at),
            "repo:lastModifiedDate": _milliseconds(stored.updated_at),
            "xdm:createdClientId": MAKER,
            "xdm:lastModifiedClientId": MAKER,
            "xdm:createdUserId": MAKER,
            "xdm:lastModifiedUserId": MAKER,
            "eTag": stored.etag,
        },
        "meta:containerId": "tenant",
        "meta:tenantNamespace": f"_{tenant}",
    }
    document.setdefault("allOf", [])
    if outer:
        document.setdefault("meta:class", outer[0])
    return document


def _short(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: document[key] for key in ("$id", "meta:altId", "version", "title")}


def _page(request: web.Request, stored: Sequence[StoredObject]) -> dict[str, Any]:
    """Oldest first; `start` is the `$id` behind which the page begins."""
    query = request.query
    conditions = parse_listing(MultiDict([("property", text) for text in query.getall("property", [])]))
    documents = [schema_document(one) for one in stored]
    documents = [document for document in documents if conditions.selects(document)]
    order = query.get("orderby", "")
    if order:
        field = order.lstrip("+- ")
        if field not in ("title", "version", "updated"):
            raise bad_request("The parameter orderby takes title, version or updated, with - before it.")
        documents.sort(key=lambda one: _place(one, field), reverse=order.startswith("-"))
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not _NUMBER.fullmatch(limit):
        raise bad_request("The parameter limit takes a whole number.")
    start = query.get("start")
    if start:
        places = [index for index, document in enumerate(documents) if document["$id"] == start]
        documents = documents[places[0] + 1 :] if places else []
    size = min(max(int(limit), 1), MOST_LIMIT)
    shown = documents[:size]
    brief = "-id+json" in request.headers.get("Accept", "-id+json") or "vnd.adobe" not in request.headers["Accept"]
    return {
        "results": [_short(document) for document in shown] if brief else shown,
        "_page": {
            "orderby": order or "updated",
            "next": shown[-1]["$id"] if len(documents) > len(shown) else None,
            "count": len(shown),
        },
        "_links": {
            "next": None,
            "global_schemas": {"href": f"{BASE}/global/schemas"},
        },
    }


def _place(document: Mapping[str, Any], field: str) -> str | int:
    value: str | int = (
        document["meta:registryMetadata"]["repo:lastModifiedDate"] if field == "updated" else document[field]
    )
    return value


def _is_tenant(request: web.Request) -> bool:
    container = request.match_info["containerId"]
    if container not in ("tenant", "global"):
        raise not_found("containers", container)
    return container == "tenant"


def _find(registry: Registry, name: str) -> StoredObject | None:
    """By `$id`, by `meta:altId` (`_tenant.schemas.id`), or by the id alone."""
    return registry.find_schema(name) or registry.find(SCHEMAS, name.rpartition(".schemas.")[2])


def _missing(name: str) -> ApiError:
    message = f"Requested resource {shorten(name)} with version 1 is not found"
    return ApiError(404, "XDM-1012-404", "Resource Not Found", message, resource_type="schemas")


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _answer(body: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
