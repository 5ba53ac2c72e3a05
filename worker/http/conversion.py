"""Data Prep under `/data/foundation/conversion`: mapping sets (facts, aep 2 and 7.3).

The body of a mapping set has one of three forms (`worker.mapping.mapping_set`). What is given back has the keys of both
the newer and the older one, as Adobe's has. A mapping set keeps its id when it is replaced, and gets the next version;
earlier versions can still be read, as flows name the one that they use.

A preview maps records of which each has one of three shapes:

| a record                                             | is                                                          |
|------------------------------------------------------|-------------------------------------------------------------|
| `properties` is an object, and nothing else but      | a line of an export                                         |
| `event` is beside it                                 |                                                             |
| `data` is an object, and nothing is beside it        | the tutorial's view of one: `event_name` in it is the       |
|                                                      | event's name, all others are properties                     |
| any other object                                     | the properties; texts in `event` or `event_name` are the    |
|                                                      | event's name                                                |

No flow is known to it: `_flow.projectId` is `0`, `_flow.timezone` and `_flow.timeBasis` are UTC. What expressions make
for a client is bounded in size and time; so few records are mapped at once that no expression can make too much of
them, and each that something goes wrong with is mapped alone, which tells whose error it is.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
from aiohttp import web
from multidict import MultiDict

from worker.errors import ConfigurationError
from worker.http.bodies import json_object, parse_body
from worker.http.listing import parse_listing
from worker.http.problems import ApiError, bad_request, not_found, shorten
from worker.mapping.context import Context
from worker.mapping.expression import Expression, Outcome
from worker.mapping.functions import REGISTRY
from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mapping.operators import OPERATORS
from worker.mapping.xdm import XdmSchema, written
from worker.registry import MAPPING_SETS, compile_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from worker.mapping.attributes import Attributes
    from worker.mapping.functions.base import Function, Returns
    from worker.mapping.mapper import Mapped, Mapper
    from worker.mapping.mapping_set import MappingSet
    from worker.mapping.sources import SourcePath
    from worker.registry import Registry
    from worker.store.base import StoredObject

BASE: Final = "/data/foundation/conversion"
MAKER: Final = "mixpanel-worker"
"""Who has made and changed everything here, where Adobe names a user."""
DEFAULT_LIMIT: Final = 10
MOST_LIMIT: Final = 1000
FULL_SCHEMA: Final = "application/vnd.adobe.xed-full+json;version=1"
MOST_RECORDS: Final = 1000
MOST_PREVIEW_BYTES: Final = 16 << 20
"""Of what expressions make for one preview, and its answer: a few bytes can ask for a megabyte of text."""
MOST_SOURCE_CHARACTERS: Final = 1 << 17
"""Of all sources of a mapping set: it takes seconds to compile expressions of so many."""
BLOCK_RECORDS: Final = 64
BLOCK_BYTES: Final = 1 << 16
EVALUATION_SECONDS: Final = 20.0
EVALUATIONS_AT_ONCE: Final = 2
"""Threads that evaluate what clients sent; the other doors have the rest."""

_NUMBER = re.compile(r"[0-9]{1,9}")
_SHOWN_TYPES: Final = {"ATTRIBUTE": "text/x.schema-path"}
_NO_FLOW: Final = {"projectId": "0", "timezone": "UTC", "timeBasis": "utc"}
_JAVA_TYPES: Final[dict[Returns, str]] = {
    "string": "java.lang.String",
    "integer": "java.lang.Long",
    "double": "java.lang.Double",
    "boolean": "java.lang.Boolean",
    "date": "java.time.ZonedDateTime",
    "array": "java.util.List",
    "object": "java.util.Map",
    "any": "java.lang.Object",
}
_GROWING = re.compile(r"\b(?:lpad|rpad|replacestr|join|extract_regex|arrays_to_objects?)\s*\(")
"""Functions that can make far more of their arguments than these are: their expressions get one record at a time."""
_ORDERS: Final = {"createdDate": "created_at", "updatedDate": "updated_at", "lastUpdateDate": "updated_at"}


def routes(registry: Registry) -> list[web.RouteDef]:
    """Mapping sets: create, list, get, replace, delete, validate, preview, and their mappings; the language."""
    evaluations = asyncio.Semaphore(EVALUATIONS_AT_ONCE)

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
        body = json_object(request)
        async with evaluations:
            return _answer(await asyncio.to_thread(_validate, registry, body))

    async def preview(request: web.Request) -> web.Response:
        """Map some records."""
        body = json_object(request)
        async with evaluations:
            content = await asyncio.to_thread(_preview, registry, body)
        return web.Response(body=content, content_type="application/json")

    async def validate_expression(request: web.Request) -> web.Response:
        """Say whether an expression can be used, and evaluate it over sample data."""
        body = json_object(request)
        async with evaluations:
            return _answer(await asyncio.to_thread(_validate_expression, registry, body))

    async def functions(request: web.Request) -> web.Response:
        """List the functions of the mapping language, each alias on its own."""
        return _answer([function_document(name, made) for name, made in sorted(REGISTRY.by_name.items())])

    async def operators(request: web.Request) -> web.Response:
        """List the operators of the mapping language."""
        return _answer([operator.record() for operator in OPERATORS])

    one = f"{BASE}/mappingSets/{{mappingSetId}}"
    return [
        web.post(f"{BASE}/mappingSets", create),
        web.get(f"{BASE}/mappingSets", listed),
        web.post(f"{BASE}/mappingSets/validate", validate),
        web.post(f"{BASE}/mappingSets/preview", preview),
        web.post(f"{BASE}/languages/el/validate", validate_expression),
        web.get(f"{BASE}/languages/el/functions", functions),
        web.get(f"{BASE}/languages/el/operators", operators),
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
    _check_length(body.get("mappings"))
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
    _check_length(body.get("mappings"))
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
    entries = _mappings_of(body)
    schema = _schema(registry, body)
    # what is required speaks of the whole set, not of one mapping
    relaxed = None if schema is None else XdmSchema(_without_required(schema))
    found = [_verdict(number, [entry], relaxed) for number, entry in enumerate(entries, start=1)]
    good = next((entry for entry, verdict in zip(entries, found, strict=True) if verdict["errors"] is None), None)
    if good is not None:
        # a constant alone makes no set
        found = [
            _verdict(number, [entry, good], relaxed) if verdict["errors"] and entry != good else verdict
            for number, (entry, verdict) in enumerate(zip(entries, found, strict=True), start=1)
        ]
    if all(verdict["status"] == "SUCCESS" for verdict in found):
        try:
            _check(registry, body)
        except ConfigurationError as error:
            found = [_failed(entry, str(error)) for entry in entries]
    return {"validationResponse": found}


def _verdict(number: int, entries: list[Any], schema: XdmSchema | None) -> dict[str, Any]:
    """What is to be said of the first of these mappings, which has this number in its set."""
    try:
        compile_document({"mappings": entries}, schema)
    except ConfigurationError as error:
        return _failed(entries[0], re.sub("^mapping 1(?= |:)", f"mapping {number}", str(error)))
    return {"status": "SUCCESS", "errors": None}


def _without_required(node: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(node, dict):
        return {
            key: _without_required(value)
            for key, value in node.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [_without_required(item) for item in node] if isinstance(node, list) else node


def _failed(entry: object, exception: str) -> dict[str, Any]:
    return {"status": "FAILED", "errors": [_trouble(entry, exception)]}


def _trouble(entry: object, exception: str) -> dict[str, Any]:
    """What is wrong with a mapping, or with what it makes of a record."""
    shown: dict[str, Any] = {"exception": exception}
    if isinstance(entry, dict):
        for key, older in (("destination", "destinationXdmPath"), ("source", "sourceAttribute")):
            value = entry.get(key, entry.get(older))
            if isinstance(value, str):
                shown[key] = shorten(value)
    return shown


def _schema(registry: Registry, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema that the mapping set names, if it is here and whole."""
    reference = _schema_reference(body).get("id")
    stored = registry.find_schema(reference) if isinstance(reference, str) and reference else None
    return None if stored is None else registry.resolved_schema(stored.document)


# Preview


class _Event(NamedTuple):
    """A record as it is mapped: a line of an export, of which the event's name may be missing."""

    line: dict[str, Any]

    @classmethod
    def of(cls, record: dict[str, Any]) -> _Event:
        """See the module's docstring."""
        if isinstance(record.get("properties"), dict) and record.keys() <= {"event", "properties"}:
            return cls(record)
        if isinstance(record.get("data"), dict) and len(record) == 1:
            names: tuple[str, ...] = ("event_name",)
            record = record["data"]
        else:
            names = ("event", "event_name")
        event = next((record[name] for name in names if isinstance(record.get(name), str)), None)
        properties = {name: value for name, value in record.items() if name not in names or value != event}
        return cls({"event": event, "properties": properties})

    def at(self, path: SourcePath) -> object:
        value: object = self.line
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


class _Allowance:
    """How much may still be made for one request, and until when. Raises ApiError 400 for more."""

    def __init__(self) -> None:
        self._left = MOST_PREVIEW_BYTES
        self._made = 0
        self._end = time.monotonic() + EVALUATION_SECONDS

    def begin(self) -> None:
        """A block: what was made for the one before is gone."""
        self.check_time()
        self._made = 0

    def check_time(self) -> None:
        if time.monotonic() > self._end:
            raise bad_request(
                f"The evaluation takes longer than {EVALUATION_SECONDS:g} seconds. "
                "Send fewer records, or fewer expressions."
            )

    def hold(self, size: int) -> None:
        """So many bytes, until the next block begins."""
        self._made += size
        if self._made > self._left:
            raise bad_request(
                f"The preview makes more than {MOST_PREVIEW_BYTES} bytes. Send fewer records, or map less of them."
            )

    def keep(self, content: bytes) -> None:
        """A part of the answer."""
        self.hold(len(content))
        self._made -= len(content)
        self._left -= len(content)


class _Metered(Expression):
    """An expression that stops a preview in which it makes too much."""

    def __init__(self, inner: Expression, allowance: _Allowance) -> None:
        # all that the inner one was compiled to
        vars(self).update(vars(inner))
        self._allowance = allowance

    def evaluate(self, attributes: Attributes) -> Outcome:
        self._allowance.check_time()
        outcome = super().evaluate(attributes)
        self._allowance.hold(outcome.values.nbytes)
        return outcome


def _preview(registry: Registry, body: dict[str, Any]) -> bytes:
    """The answer, as JSON: it is measured as it is made."""
    document = body.get("mappingSet")
    if not isinstance(document, dict):
        raise bad_request("The request body has no mappingSet, which is the object that is sent to create one.")
    records = _records(body.get("data"), "data")
    entries = _mappings_of(document)
    allowance = _Allowance()
    mapping_set = _metered(parse_mapping_set(document), allowance)
    schema = _schema(registry, document)
    mapper = compile_mapper(mapping_set, None if schema is None else XdmSchema(schema))
    columns = {written(mapping.destination): entries[mapping.number - 1] for mapping in mapping_set.mappings}
    preview = _Preview(mapper, columns, allowance)
    grows = any(mapping.expression and _GROWING.search(mapping.source) for mapping in mapping_set.mappings)
    for block in _blocks(records, 1 if grows else BLOCK_RECORDS):
        preview.map(block)
    return b"[" + b",".join(preview.shown) + b"]"


def _mappings_of(document: Mapping[str, Any]) -> list[Any]:
    """The mappings of a set, if they are not too many to be compiled for an answer."""
    entries = document.get("mappings")
    if not isinstance(entries, list) or not entries:
        raise bad_request("The mapping set has no mappings.")
    if len(entries) > MOST_LIMIT:
        raise bad_request(f"Up to {MOST_LIMIT} mappings are taken at once.")
    _check_length(entries)
    return entries


def _check_length(entries: object) -> None:
    sources = (
        entry.get("source", entry.get("sourceAttribute"))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    )
    if sum(len(source) for source in sources if isinstance(source, str)) > MOST_SOURCE_CHARACTERS:
        raise bad_request(f"The sources of all mappings have more than {MOST_SOURCE_CHARACTERS} characters.")


def _blocks(records: Sequence[_Event], most: int) -> Iterator[Sequence[_Event]]:
    first = size = 0
    for number, record in enumerate(records):
        length = len(orjson.dumps(record.line))
        if number - first == most or (number > first and size + length > BLOCK_BYTES):
            yield records[first:number]
            first, size = number, 0
        size += length
    if records:
        yield records[first:]


class _Preview:
    """Records mapped, each as the JSON of its answer; `columns` are the mappings by destination."""

    def __init__(self, mapper: Mapper, columns: Mapping[str, Any], allowance: _Allowance) -> None:
        self.shown: list[bytes] = []
        self._mapper = mapper
        self._columns = columns
        self._allowance = allowance
        self._context = Context(datetime.now(UTC), _NO_FLOW)

    def map(self, records: Sequence[_Event]) -> None:
        self._allowance.begin()
        mapped = self._mapper.map(*_texts(self._mapper, records), self._context)
        if len(records) > 1 and (mapped.warnings or mapped.reasons):
            # they do not say of which record they speak
            middle = len(records) // 2
            self.map(records[:middle])
            self.map(records[middle:])
            return
        self._allowance.hold(mapped.batch.nbytes)
        errors = self._errors(mapped)
        for row in range(len(records)):
            answer = {"data": _row(mapped.batch, row), "errors": errors}
            content = orjson.dumps(answer, option=orjson.OPT_UTC_Z)
            self._allowance.keep(content)
            self.shown.append(content)

    def _errors(self, mapped: Mapped) -> list[dict[str, Any]] | None:
        """What went wrong with one record, each with its mapping: messages begin, or nearly so, with the column."""
        messages = [issue.message for issue in mapped.warnings]
        messages += [f"{reason} The row would be rejected." for reason in mapped.reasons]
        found = []
        for message in messages:
            column = message.removeprefix("The required field ").partition(" ")[0].rstrip(":")
            found.append(_trouble(self._columns[column], message))
        return found or None


def _metered(mapping_set: MappingSet, allowance: _Allowance) -> MappingSet:
    mappings = tuple(
        mapping if mapping.expression is None else replace(mapping, expression=_Metered(mapping.expression, allowance))
        for mapping in mapping_set.mappings
    )
    return replace(mapping_set, mappings=mappings)


def _records(data: object, name: str) -> list[_Event]:
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise bad_request(f"{name} is neither a record nor a list of records.")
    if len(data) > MOST_RECORDS:
        raise bad_request(f"{name} has {len(data)} records; up to {MOST_RECORDS} are taken at once.")
    for number, record in enumerate(data, start=1):
        if not isinstance(record, dict):
            raise bad_request(f"Record {number} of {name} is not a JSON object.")
    return [_Event.of(record) for record in data]


def _texts(
    mapper: Mapper, records: Sequence[_Event]
) -> tuple[list[pa.StringArray], list[np.ndarray[Any, np.dtype[np.uint8]]]]:
    """What the mapper wants of the records: texts, and which JSON they were."""
    texts, kinds = [], []
    for path in mapper.paths:
        found = [_text(record.at(path)) for record in records]
        texts.append(pa.array([text for text, _ in found], pa.string()))
        kinds.append(np.array([kind for _, kind in found], dtype=np.uint8))
    return texts, kinds


def _text(value: object) -> tuple[str | None, int]:
    """The text of a JSON value as the decoder of exports gives it, and the first byte of its JSON, 0 for null."""
    if value is None:
        return None, 0
    if isinstance(value, str):
        return value, ord('"')
    text = orjson.dumps(value).decode()
    return text, ord(text[0])


def _row(batch: pa.RecordBatch, row: int) -> dict[str, Any]:
    """A row of a batch, as JSON without nulls."""
    fields = zip(batch.schema, batch.columns, strict=True)
    return _without_nulls((field.name, _shown(column[row].as_py(), column.type)) for field, column in fields)


def _shown(value: Any, data_type: Any) -> Any:  # noqa: ANN401 - any JSON, a type with parts
    """What Arrow gives for a value, as JSON; an object of nothing but nulls is null."""
    if value is None:
        return None
    if pa.types.is_struct(data_type):
        return _without_nulls((field.name, _shown(value[field.name], field.type)) for field in data_type) or None
    if pa.types.is_list(data_type):
        return [_shown(item, data_type.value_type) for item in value]
    if pa.types.is_map(data_type):
        return {name: _shown(inner, data_type.item_type) for name, inner in value}
    return value


def _without_nulls(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}


# The language


def _validate_expression(registry: Registry, body: dict[str, Any]) -> dict[str, str]:
    text = body.get("expression")
    if isinstance(text, dict):
        # as in the example of Adobe's document
        text = text.get("expression")
    if not isinstance(text, str):
        raise bad_request("The request body has no expression, which is a text.")
    mapping_id = body.get("mappingSetId")
    if isinstance(mapping_id, str):
        registry.mapping_set(mapping_id, None)
    elif mapping_id is not None:
        raise bad_request("mappingSetId is not a text.")
    records = _sample(body)
    try:
        problem = _first_failure(text, records)
    except ConfigurationError as error:
        problem = str(error)
    return {"validationStatus": "succeeded" if problem is None else "failed", "error": problem or "none"}


def _sample(body: Mapping[str, Any]) -> list[_Event]:
    """The records of the sample data, if there are any."""
    kind = body.get("sampleDataType")
    if kind is not None and not (isinstance(kind, str) and "json" in kind.lower()):
        raise bad_request("sampleDataType takes json: no other sample data is read.")
    text = body.get("sampleData")
    if text is None:
        return []
    if not isinstance(text, str):
        raise bad_request("sampleData is not a text. Send the JSON of a record as a text.")
    try:
        return _records(parse_body(text.encode()), "sampleData")
    except ApiError as error:
        raise bad_request(
            error.message.replace("The request body", "sampleData").replace("the request body", "sampleData")
        ) from None


def _first_failure(text: str, records: Iterable[_Event]) -> str | None:
    """Why the expression fails for one of the records, if it does. Raises ConfigurationError for what is none."""
    if not Expression.of(text).attributes:
        # it was evaluated as it was compiled, and a set of nothing but constants is none
        return None
    mapping = {"sourceType": "EXPRESSION", "source": text, "destination": "value"}
    mapper = compile_document({"mappings": [mapping]}, None)
    allowance, context = _Allowance(), Context(datetime.now(UTC), _NO_FLOW)
    for number, record in enumerate(records, start=1):
        allowance.check_time()
        for issue in mapper.map(*_texts(mapper, [record]), context).warnings:
            reason = issue.message.removeprefix("value: ").removesuffix("; the field is null.")
            return f"record {number}: {reason}"
    return None


def function_document(name: str, made: Function) -> dict[str, Any]:
    """A function as Adobe lists it; `name` is its own or one of its aliases."""
    java = _JAVA_TYPES[made.returns]
    example = made.examples[0] if made.examples else None
    return {
        "category": made.category,
        "function": name,
        "description": made.description,
        "syntax": f"{java.rpartition('.')[2]} {name}({', '.join(map(str, made.parameters))})",
        # what it gives is what it is described by
        "returns": made.description,
        "returnType": java,
        "example": example.expression if example else "",
        "result": orjson.dumps(example.value).decode() if example else "",
        "params": [
            {
                "name": parameter.name,
                "description": parameter.description,
                "type": "object",
                # values of any kind come in; which of them fail is known by their content
                "dataType": "[Ljava.lang.Object;" if parameter.repeated else "java.lang.Object",
                "position": position,
            }
            for position, parameter in enumerate(made.parameters, start=1)
        ],
        "since": 1,
    }


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
