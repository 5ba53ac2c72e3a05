"""Our own description of what is served, as an OpenAPI 3.1 document.

It is made of the routes themselves: summaries are the first lines of their handlers, and a route that `_OPERATIONS`
does not know cannot be described, so the two cannot drift apart. Every operation may answer with a problem instead of
what is listed here; that is its `default`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from worker.http.problems import PROBLEM_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

JSON: Final = "application/json"
_FOUNDATION: Final = "/data/foundation"
_VARIABLE = re.compile(r"\{([^}]*)\}")

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_NUMBER: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_FLAG: Final[dict[str, Any]] = {"type": "string", "enum": ["true", "false", "True", "False"]}
_OBJECT: Final[dict[str, Any]] = {"type": "object"}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _shape(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


@dataclass(frozen=True, slots=True)
class _Operation:
    """What one operation takes and gives. `answer` is None for an empty answer; `body` names what is sent."""

    answer: Mapping[str, Any] | None = None
    status: int = 200
    body: str | None = None
    body_type: str = JSON
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answer_types: tuple[str, ...] = (JSON,)
    is_open: bool = False
    others: tuple[int, ...] = ()


_LISTING: Final = {
    "property": {"type": "array", "items": _TEXT},
    "orderby": _TEXT,
    "limit": {"type": "integer", "minimum": 1},
    "continuationToken": _TEXT,
    "count": _FLAG,
}
_PAGE: Final = {"start": _NUMBER, "limit": {"type": "integer", "minimum": 1}}
_CHANGED: Final = _ref("IdAndEtag")
_ITEMS: Final = _ref("Items")
_PAGE_OF_ITEMS: Final = {"oneOf": [_ref("ItemPage"), _ref("Count")]}

_SCHEMAS: Final[dict[str, Any]] = {
    "IdAndEtag": _shape({"id": _TEXT, "etag": _TEXT}, "id", "etag"),
    "Items": _shape({"items": {"type": "array", "items": _OBJECT}}, "items"),
    "ItemPage": _shape({"items": {"type": "array", "items": _OBJECT}, "_links": _OBJECT}, "items", "_links"),
    "Count": _shape({"count": _NUMBER}, "count"),
    "Patch": {
        "type": "array",
        "minItems": 1,
        "items": _shape({"op": _TEXT, "path": _TEXT, "value": {}}, "op", "path"),
    },
    "Spec": _shape({"id": _TEXT, "version": _TEXT}, "id"),
    "Connection": _shape(
        {
            "name": _TEXT,
            "description": _TEXT,
            "connectionSpec": _ref("Spec"),
            "auth": _shape({"specName": _TEXT, "params": _OBJECT}, "params"),
        },
        "connectionSpec",
        "auth",
    ),
    "SourceConnection": _shape(
        {
            "name": _TEXT,
            "description": _TEXT,
            "baseConnectionId": _TEXT,
            "connectionSpec": _ref("Spec"),
            "data": _shape({"format": _TEXT}),
            "params": _OBJECT,
        },
        "baseConnectionId",
        "connectionSpec",
        "data",
        "params",
    ),
    "TargetConnection": _shape(
        {
            "name": _TEXT,
            "description": _TEXT,
            "connectionSpec": _ref("Spec"),
            "data": _shape({"format": _TEXT}),
            "params": _shape({"dataSetId": _TEXT}, "dataSetId"),
        },
        "connectionSpec",
        "data",
        "params",
    ),
    "Flow": _shape(
        {
            "name": _TEXT,
            "description": _TEXT,
            "flowSpec": _ref("Spec"),
            "sourceConnectionIds": {"type": "array", "items": _TEXT},
            "targetConnectionIds": {"type": "array", "items": _TEXT},
            "transformations": {"type": "array", "items": _OBJECT},
            "scheduleParams": _OBJECT,
            "options": _OBJECT,
        },
        "name",
        "flowSpec",
        "sourceConnectionIds",
        "targetConnectionIds",
        "transformations",
        "scheduleParams",
    ),
    "RunRequest": _shape({"flowId": _TEXT, "params": _OBJECT, "status": _TEXT}, "flowId"),
    "Mapping": _shape(
        {
            "sourceType": _TEXT,
            "source": _TEXT,
            "destination": _TEXT,
            "sourceAttribute": _TEXT,
            "destinationXdmPath": _TEXT,
            "name": _TEXT,
            "description": _TEXT,
        }
    ),
    "MappingSet": _shape(
        {
            "id": {"type": ["string", "null"]},
            "version": {"type": "integer"},
            "xdmSchema": _TEXT,
            "xdmVersion": _TEXT,
            "outputSchema": _OBJECT,
            "mappings": {"type": "array", "items": _ref("Mapping"), "minItems": 1},
        },
        "mappings",
    ),
    "Preview": _shape(
        {"data": {"type": ["object", "array"], "items": _OBJECT}, "mappingSet": _ref("MappingSet")},
        *("data", "mappingSet"),
    ),
    "Previewed": _shape(
        {"data": _OBJECT, "errors": {"type": ["array", "null"], "items": _ref("MappingError")}}, "data", "errors"
    ),
    "MappingError": _shape({"exception": _TEXT, "destination": _TEXT, "source": _TEXT}, "exception"),
    "Expression": _shape(
        {
            "expression": {"type": ["string", "object"]},
            "mappingSetId": _TEXT,
            "sampleData": _TEXT,
            "sampleDataType": _TEXT,
        },
        "expression",
    ),
    "ExpressionVerdict": _shape(
        {"validationStatus": {"enum": ["succeeded", "failed"]}, "error": _TEXT}, "validationStatus", "error"
    ),
    "Function": _shape(
        {
            **dict.fromkeys(("category", "function", "description", "syntax", "returns", "returnType"), _TEXT),
            **dict.fromkeys(("example", "result"), _TEXT),
            "params": {"type": "array", "items": _OBJECT},
            "since": _NUMBER,
        },
        *("category", "function", "description", "syntax", "returns", "returnType", "example", "result", "params"),
    ),
    "Operator": _shape(
        {
            **dict.fromkeys(("operatorSymbol", "methodName", "description", "example"), _TEXT),
            "numberOfOperands": _NUMBER,
        },
        *("operatorSymbol", "methodName", "numberOfOperands", "description", "example"),
    ),
    "MappingSetSummary": _shape(
        {
            "id": _TEXT,
            "version": _NUMBER,
            "createdDate": _NUMBER,
            "modifiedDate": _NUMBER,
            "createdBy": _TEXT,
            "modifiedBy": _TEXT,
        },
        *("id", "version", "createdDate", "modifiedDate", "createdBy", "modifiedBy"),
    ),
    "DataPage": _shape({"data": {"type": "array", "items": _OBJECT}, "_page": _OBJECT, "_links": _OBJECT}, "data"),
    "Dataset": _shape(
        {
            "name": _TEXT,
            "description": _TEXT,
            "enableErrorDiagnostics": {"type": "boolean"},
            "tags": {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
            "schemaRef": _shape({"id": _TEXT, "contentType": _TEXT}, "id"),
        }
    ),
    "Schema": _shape(
        {
            "$id": _TEXT,
            "title": _TEXT,
            "type": {"const": "object"},
            "description": _TEXT,
            "properties": _OBJECT,
            "definitions": _OBJECT,
            "allOf": {"type": "array", "items": _OBJECT},
        },
        "title",
    ),
    "Login": _shape(
        {"grant_type": {"const": "client_credentials"}, "client_id": _TEXT, "client_secret": _TEXT, "scope": _TEXT}
    ),
    "Token": _shape(
        {"access_token": _TEXT, "token_type": {"const": "bearer"}, "expires_in": _NUMBER},
        *("access_token", "token_type", "expires_in"),
    ),
    "Problem": _shape(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer"},
            "report": _OBJECT,
            "errorMessage": _TEXT,
            "errorDetails": _TEXT,
        },
        *("type", "title", "status", "report", "errorMessage", "errorDetails"),
    ),
    "GatewayProblem": _shape({"error_code": _TEXT, "message": _TEXT}, "error_code", "message"),
    "LoginProblem": _shape({"error": _TEXT, "error_description": _TEXT}, "error"),
}


def _operations() -> dict[tuple[str, str], _Operation]:
    flow, prep = f"{_FOUNDATION}/flowservice", f"{_FOUNDATION}/conversion/mappingSets"
    language = f"{_FOUNDATION}/conversion/languages/el"
    catalog, registry, export = (f"{_FOUNDATION}/{name}" for name in ("catalog", "schemaregistry", "export"))
    found: dict[tuple[str, str], _Operation] = {}
    for kind, body in (
        ("connections", "Connection"),
        ("sourceConnections", "SourceConnection"),
        ("targetConnections", "TargetConnection"),
        ("flows", "Flow"),
    ):
        found["POST", f"{flow}/{kind}"] = _Operation(_CHANGED, 201, body)
        found["GET", f"{flow}/{kind}"] = _Operation(_PAGE_OF_ITEMS, query=_LISTING)
        found["GET", f"{flow}/{kind}/{{id}}"] = _Operation(_ITEMS)
        found["PATCH", f"{flow}/{kind}/{{id}}"] = _Operation(_CHANGED, body="Patch")
        found["DELETE", f"{flow}/{kind}/{{id}}"] = _Operation(status=204)
    for kind in ("connectionSpecs", "flowSpecs"):
        found["GET", f"{flow}/{kind}"] = _Operation(_PAGE_OF_ITEMS, query=_LISTING)
        found["GET", f"{flow}/{kind}/{{id}}"] = _Operation(_ITEMS)
    params = {"sourceParams": _TEXT}
    explore = {"objectType": _TEXT, "object": _TEXT, "fileType": _TEXT, "preview": _FLAG, **params}
    summary, one = _ref("MappingSetSummary"), f"{prep}/{{mappingSetId}}"
    part = _Operation(_ref("DataPage"), query={**_PAGE, "path": _TEXT}, answer_types=(JSON, "application/octet-stream"))
    login = _Operation(
        _ref("Token"),
        body="Login",
        body_type="application/x-www-form-urlencoded",
        query={"grant_type": _TEXT, "client_id": _TEXT},
        is_open=True,
    )
    text = "text/plain"
    found |= {
        ("GET", "/healthz"): _Operation(_OBJECT, is_open=True),
        ("GET", "/readyz"): _Operation(_OBJECT, is_open=True, others=(503,)),
        ("GET", "/metrics"): _Operation(_TEXT, answer_types=(text,)),
        ("GET", "/openapi.json"): _Operation(_OBJECT),
        ("POST", "/ims/token/v2"): login,
        ("POST", "/ims/token/v3"): login,
        ("GET", f"{flow}/connections/{{id}}/test"): _Operation(_OBJECT, query=params),
        ("GET", f"{flow}/connections/{{id}}/explore"): _Operation(_OBJECT, query=explore),
        ("POST", f"{flow}/flows/{{id}}/action"): _Operation(_CHANGED, query={"op": _TEXT}),
        ("GET", f"{flow}/flows/{{id}}/runs"): _Operation(_PAGE_OF_ITEMS, query=_LISTING),
        ("GET", f"{flow}/runs"): _Operation(_PAGE_OF_ITEMS, query=_LISTING),
        ("POST", f"{flow}/runs"): _Operation(_CHANGED, 201, "RunRequest"),
        ("GET", f"{flow}/runs/{{id}}"): _Operation(_ITEMS),
        ("POST", f"{flow}/runs/{{id}}/action"): _Operation(_CHANGED, query={"op": _TEXT}),
        ("POST", prep): _Operation(summary, body="MappingSet", query={"validate": _FLAG}),
        ("POST", "/conversion/mappingSets"): _Operation(summary, body="MappingSet", query={"validate": _FLAG}),
        ("GET", prep): _Operation(
            _ref("DataPage"), query={**_PAGE, "name": _TEXT, "orderBy": _TEXT, "expandSchema": _FLAG}
        ),
        ("POST", f"{prep}/validate"): _Operation(_OBJECT, body="MappingSet"),
        ("POST", f"{prep}/preview"): _Operation(_list_of("Previewed"), body="Preview"),
        ("POST", f"{language}/validate"): _Operation(_ref("ExpressionVerdict"), body="Expression"),
        ("GET", f"{language}/functions"): _Operation(_list_of("Function")),
        ("GET", f"{language}/operators"): _Operation(_list_of("Operator")),
        ("GET", one): _Operation(summary, query={"version": _NUMBER, "expandSchema": _FLAG}),
        ("PUT", one): _Operation(summary, body="MappingSet", query={"validate": _FLAG}),
        ("DELETE", one): _Operation(status=204),
        ("GET", f"{one}/mappings"): _Operation(_list_of("MappingSetSummary"), query={"version": _NUMBER}),
        ("GET", f"{one}/mappings/{{mappingId}}"): _Operation(summary),
        ("POST", f"{catalog}/dataSets"): _Operation({"type": "array", "items": _TEXT}, 201, "Dataset"),
        ("GET", f"{catalog}/dataSets"): _Operation(
            _OBJECT, query={**_PAGE, "name": _TEXT, "orderBy": _TEXT, "properties": _TEXT}
        ),
        ("GET", f"{catalog}/dataSets/{{dataSetId}}"): _Operation(_OBJECT, query={"properties": _TEXT}),
        ("DELETE", f"{catalog}/dataSets/{{dataSetId}}"): _Operation({"type": "array", "items": _TEXT}),
        ("GET", f"{catalog}/batches/{{batchId}}"): _Operation(_OBJECT),
        ("GET", f"{registry}/stats"): _Operation(_OBJECT),
        ("POST", f"{registry}/tenant/schemas"): _Operation(_OBJECT, 201, "Schema"),
        ("GET", f"{registry}/{{containerId}}/schemas"): _Operation(
            _OBJECT, query={"orderby": _TEXT, "limit": _NUMBER, "start": _TEXT}
        ),
        ("GET", f"{registry}/{{containerId}}/schemas/{{schemaId}}"): _Operation(_OBJECT),
        ("DELETE", f"{registry}/tenant/schemas/{{schemaId}}"): _Operation(status=204),
        ("GET", f"{export}/batches/{{batchId}}/files"): _Operation(_ref("DataPage"), query=_PAGE),
        ("GET", f"{export}/files/{{dataSetFileId}}"): replace(part, others=(206,)),
        ("GET", f"{export}/batches/{{batchId}}/failed"): part,
        ("GET", f"{export}/batches/{{batchId}}/meta"): part,
    }
    return found


_OPERATIONS: Final = _operations()


def document(routes: Iterable[web.RouteDef]) -> dict[str, Any]:
    """The document for these routes. A route that only says that it is not served is left out.

    KeyError for a route that `_OPERATIONS` does not know.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if is_described(route.handler):
            operation = _OPERATIONS[route.method, route.path]
            paths.setdefault(route.path, {})[route.method.lower()] = _described(
                route.method, route.path, operation, _summary(route.handler)
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mixpanel-worker",
            "version": _version(),
            "description": "The parts of Adobe's platform APIs that a Mixpanel dataflow needs, and the worker's own.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def is_described(handler: object) -> bool:
    """Whether the operation is served: the handler of those that are not says so by its name."""
    return getattr(handler, "__name__", "") != "_unserved"


def _described(method: str, path: str, operation: _Operation, summary: str) -> dict[str, Any]:
    responses = {str(status): _answer(operation) for status in (operation.status, *operation.others)}
    problem: dict[str, Any] = {
        PROBLEM_TYPE: {"schema": _ref("Problem")},
        JSON: {"schema": _ref("LoginProblem" if path.startswith("/ims/") else "GatewayProblem")},
    }
    responses["default"] = {"description": "why there is no such answer", "content": problem}
    found: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": summary,
        "tags": [path.split("/")[3] if path.startswith(_FOUNDATION) else "worker"],
        "parameters": [*_path_parameters(path), *_query_parameters(operation)],
        "responses": responses,
    }
    if method in ("PATCH", "DELETE") and path.startswith(f"{_FOUNDATION}/flowservice"):
        found["parameters"].append({"name": "If-Match", "in": "header", "schema": _TEXT})
    if operation.body is not None:
        content = {operation.body_type: {"schema": _ref(operation.body)}}
        found["requestBody"] = {"required": not path.startswith("/ims/"), "content": content}
    if operation.is_open:
        found["security"] = []
    return found


def _answer(operation: _Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "done"}
    content = {
        kind: {"schema": dict(operation.answer)} if kind != "application/octet-stream" else {}
        for kind in operation.answer_types
    }
    return {"description": "the answer", "content": content}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in _VARIABLE.findall(path)]


def _query_parameters(operation: _Operation) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": dict(schema)} for name, schema in operation.query.items()]


def _operation_id(method: str, path: str) -> str:
    named = path.removeprefix(_FOUNDATION) if path.startswith(_FOUNDATION) else f"worker{path}"
    return method.lower() + "".join(f"_{part}" for part in re.split(r"[^A-Za-z0-9]+", named) if part)


def _summary(handler: object) -> str:
    lines = (getattr(handler, "__doc__", None) or "").strip().splitlines()
    return lines[0] if lines else ""


def _version() -> str:
    try:
        return version("mixpanel-worker")
    except PackageNotFoundError:
        return "0"
