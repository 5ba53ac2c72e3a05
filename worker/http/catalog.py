"""Catalog under `/data/foundation/catalog`: datasets, and how a batch ended (facts, aep 4.1).

A dataset is a table of the lake, which is called as the dataset's id; its schema gives the columns their types. A batch
is one attempt to write one day of a flow.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web
from multidict import MultiDict

from worker.http.bodies import json_object
from worker.http.listing import parse_listing
from worker.http.problems import bad_request, not_found
from worker.model import LoadState
from worker.registry import DATASETS
from worker.run_record import ORGANISATION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime

    from worker.model import LoadRecord, Receipt, Run
    from worker.registry import Registry
    from worker.store import Store
    from worker.store.base import StoredObject

BASE: Final = "/data/foundation/catalog"
MAKER: Final = "mixpanel-worker"
"""Who has made everything here, where Adobe names a user or a client."""
DEFAULT_LIMIT: Final = 20
MOST_LIMIT: Final = 100

_BATCH_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_STANDARD_SCHEMA = re.compile(r"https://ns\.adobe\.com/xdm/[A-Za-z0-9/_.-]{1,200}")
_ORDER = re.compile(r"(asc|desc):(name|created|updated)")
_MOST_TEXT: Final = 1000
_STATES: Final = {
    LoadState.STARTED: "processing",
    LoadState.COMMITTING: "staging",
    LoadState.SUCCEEDED: "success",
    LoadState.FAILED: "failed",
}
REPLACED: Final = "inactive"
"""The status of a batch whose day another batch has written since."""


def routes(registry: Registry, store: Store) -> list[web.RouteDef]:
    """Datasets: create, list, get, delete. Batches: get."""
    registry.hooks[DATASETS] = lambda body: checked_dataset(registry, body)

    async def create(request: web.Request) -> web.Response:
        """Create a dataset."""
        body = json_object(request)
        stored = await asyncio.to_thread(lambda: registry.create(DATASETS, body, object_id=token_hex(12)))
        headers = {"Location": f"{BASE}/dataSets/{stored.id}"}
        return _answer([f"@/dataSets/{stored.id}"], status=201, headers=headers)

    async def listed(request: web.Request) -> web.Response:
        """List datasets."""
        return _answer(await asyncio.to_thread(_list, registry, request))

    async def get(request: web.Request) -> web.Response:
        """Get a dataset."""
        stored = await asyncio.to_thread(registry.get, DATASETS, request.match_info["dataSetId"])
        return _answer({stored.id: _selected(dataset_document(stored), request)})

    async def delete(request: web.Request) -> web.Response:
        """Delete a dataset that no flow uses; the table of the lake stays."""
        dataset_id = request.match_info["dataSetId"]
        await asyncio.to_thread(registry.delete, DATASETS, dataset_id)
        return _answer([f"@/dataSets/{dataset_id}"])

    async def batch(request: web.Request) -> web.Response:
        """Get how a batch ended, with its counts."""
        batch_id = request.match_info["batchId"]
        found = await asyncio.to_thread(find_batch, store, batch_id)
        if found is None:
            raise not_found("batches", batch_id)
        return _answer({found.id: batch_document(found)})

    return [
        web.post(f"{BASE}/dataSets", create),
        web.get(f"{BASE}/dataSets", listed),
        web.get(f"{BASE}/dataSets/{{dataSetId}}", get),
        web.delete(f"{BASE}/dataSets/{{dataSetId}}", delete),
        web.get(f"{BASE}/batches/{{batchId}}", batch),
    ]


# Datasets


def checked_dataset(registry: Registry, body: Mapping[str, Any]) -> dict[str, Any]:
    """The document to keep for a body; what Catalog sets itself, and keys that mean nothing here, are left out.

    Raises ApiError. The schema must be here, or be one of Adobe's own.
    """
    document: dict[str, Any] = {}
    for key in ("name", "description"):
        if body.get(key) is not None:
            document[key] = _text(key, body[key])
    if body.get("enableErrorDiagnostics") is not None:
        if not isinstance(body["enableErrorDiagnostics"], bool):
            raise bad_request("enableErrorDiagnostics takes true or false.")
        document["enableErrorDiagnostics"] = body["enableErrorDiagnostics"]
    if body.get("tags") is not None:
        document["tags"] = _tags(body["tags"])
    for key in ("fileDescription", "observableSchema"):
        if body.get(key) is not None:
            if not isinstance(body[key], dict):
                raise bad_request(f"{key} takes an object.")
            document[key] = body[key]
    reference = body.get("schemaRef")
    if reference is not None:
        if not isinstance(reference, dict) or not isinstance(reference.get("id"), str):
            raise bad_request("schemaRef takes an object with the id of a schema.")
        identifier = _text("schemaRef.id", reference["id"])
        if not _STANDARD_SCHEMA.fullmatch(identifier) and registry.find_schema(identifier) is None:
            raise bad_request("schemaRef.id names a schema that is not here: create it first.")
        document["schemaRef"] = {"id": identifier}
        if reference.get("contentType") is not None:
            document["schemaRef"]["contentType"] = _text("schemaRef.contentType", reference["contentType"])
    return document


def dataset_document(stored: StoredObject) -> dict[str, Any]:
    """A dataset as it is given back, under its id."""
    document = dict(stored.document)
    return {
        "name": stored.id,
        **document,
        "tags": document.get("tags", {}),
        "imsOrg": ORGANISATION,
        "version": "1.0.0",
        "created": _milliseconds(stored.created_at),
        "updated": _milliseconds(stored.updated_at),
        "createdClient": MAKER,
        "createdUser": MAKER,
        "updatedUser": MAKER,
        "viewId": stored.id,
        "state": "ACTIVE",
        "files": f"@/dataSets/{stored.id}/views/{stored.id}/files",
    }


def _list(registry: Registry, request: web.Request) -> dict[str, Any]:
    """All that match, by id. `limit` is at most 100, `start` counts from 0, `orderBy` is `asc:name` or the like."""
    query = request.query
    start = _number(request, "start", 0)
    limit = min(_number(request, "limit", DEFAULT_LIMIT), MOST_LIMIT)
    found = {stored.id: dataset_document(stored) for stored in registry.list(DATASETS)}
    # `property=name==x`, and each field as a parameter of its own
    texts = [*query.getall("property", []), *(f"{key}=={query[key]}" for key in ("name", "version") if query.get(key))]
    listing = parse_listing(MultiDict([("property", text) for text in texts]))
    chosen = [(key, document) for key, document in found.items() if listing.selects({**document, "id": key})]
    order = query.get("orderBy")
    if order is not None:
        match = _ORDER.fullmatch(order)
        if match is None:
            raise bad_request("The parameter orderBy takes asc: or desc: before name, created or updated.")
        field = match[2]
        chosen.sort(key=lambda item: item[1][field], reverse=match[1] == "desc")
    return {key: _selected(document, request) for key, document in chosen[start : start + limit]}


def _selected(document: dict[str, Any], request: web.Request) -> dict[str, Any]:
    """`properties=name,created`: only these."""
    wanted = request.query.get("properties")
    names = {name.strip() for name in wanted.split(",")} if wanted else None
    return document if names is None else {key: value for key, value in document.items() if key in names}


def _tags(tags: object) -> dict[str, list[str]]:
    if isinstance(tags, dict) and all(
        isinstance(values, list) and all(isinstance(value, str) for value in values) for values in tags.values()
    ):
        return tags
    raise bad_request("tags takes an object of lists of texts.")


def _text(key: str, value: object) -> str:
    if isinstance(value, str) and len(value) <= _MOST_TEXT:
        return value
    raise bad_request(f"{key} takes a text of up to {_MOST_TEXT} characters.")


# Batches


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a batch. `is_newest`: what its day holds is of this batch."""

    run: Run
    record: LoadRecord
    is_newest: bool

    @property
    def id(self) -> str:
        return self.record.load.batch_id

    @property
    def day(self) -> date:
        return self.record.load.day

    @property
    def receipt(self) -> Receipt | None:
        return self.record.receipt

    @property
    def status(self) -> str:
        """The word of Catalog's list of states."""
        is_replaced = self.record.state is LoadState.SUCCEEDED and not self.is_newest
        return REPLACED if is_replaced else _STATES[self.record.state]

    @property
    def updated_at(self) -> datetime:
        if self.receipt is not None:
            return self.receipt.committed_at
        return self.run.completed_at or self.run.updated_at or self.run.started_at


def find_batch(store: Store, batch_id: str) -> Batch | None:
    """The batch, or None; also for an attempt that failed and was followed by another one.

    None too for one whose run is not known, as after the state was lost: the run says which dataset it wrote.
    """
    record = store.load(batch_id) if _BATCH_ID.fullmatch(batch_id) else None
    run = store.run(record.load.run_id) if record is not None else None
    if record is None or run is None:
        return None
    newest = store.succeeded_receipts(run.flow_id).get(record.load.day) if record.receipt is not None else None
    return Batch(run, record, is_newest=newest is not None and newest.batch_id == batch_id)


def batch_document(batch: Batch) -> dict[str, Any]:
    """A batch as it is given back, under its id."""
    run, record, receipt = batch.run, batch.record, batch.receipt
    started = record.load.started_at
    document: dict[str, Any] = {
        "imsOrg": ORGANISATION,
        "status": batch.status,
        "created": _milliseconds(started),
        "createdClient": MAKER,
        "createdUser": MAKER,
        "updatedUser": MAKER,
        "updated": _milliseconds(batch.updated_at),
        "started": _milliseconds(started),
        "version": "1.0.0",
        "relatedObjects": [{"type": "dataSet", "id": run.dataset_id}],
        "tags": {"flowId": [run.flow_id], "runId": [run.id], "day": [batch.day.isoformat()]},
        "inputFormat": {"format": "json"},
        "errors": [],
    }
    if receipt is not None:
        tally = receipt.tally
        document["completed"] = _milliseconds(receipt.committed_at)
        document["recordCount"] = tally.input
        document["failedRecordCount"] = tally.failed
        document["metrics"] = {
            "inputByteSize": receipt.input_bytes,
            "inputFileCount": 1,
            "inputRecordCount": tally.input,
            "outputByteSize": receipt.output_bytes,
            "outputFileCount": receipt.file_count,
            "outputRecordCount": tally.output,
            "failedRecordCount": tally.failed,
        }
        if tally.failed and batch.is_newest:
            message = f"{tally.failed} rows were refused; the diagnostic files say why."
            document["errors"] = [{"code": "INGEST-1212-400", "description": message, "recordCount": tally.failed}]
    if record.error_code is not None:
        document["errors"] = [{"code": record.error_code, "description": record.error_message or ""}]
    return document


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise bad_request(f"The parameter {name} takes a whole number.")
    return int(text)


def _answer(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)
