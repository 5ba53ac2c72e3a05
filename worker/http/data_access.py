"""Data Access under `/data/foundation/export`: what a batch wrote, and the rows that it refused.

The rejects table is the source: its rows of the batch's day, as the files that Adobe's error diagnostics have (facts,
aep 4.2). A refused line that is no event is in `parsing_errors_N.json`, an event that did not fit the mapping in
`conversion_errors_N.json`; each file has up to `ROWS_A_FILE` rows, one JSON object a line.

A name in a request is compared with names that were made here and never becomes a path. A batch that another one has
replaced has no rows any more, neither good nor bad: its lists are empty.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from worker.http.catalog import find_batch
from worker.http.problems import ApiError, bad_request, shorten, unavailable
from worker.lake import table_names
from worker.model import DAY_COLUMN

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from worker.http.catalog import Batch
    from worker.store import Store

BASE: Final = "/data/foundation/export"
ROWS_A_FILE: Final = 10_000
SAMPLES: Final = 50
"""How many rows `row_error_samples.json` shows."""
MOST_FILES: Final = 100
"""Most entries of one answer (Data Access API)."""

_KINDS: Final = {"decode": "parsing_errors", "map": "conversion_errors"}
_SAMPLES_NAMES: Final = ("row_error_samples.json", "row_errors_sample.json")
_INPUT_FILE: Final = "file_metadata_0.json"
_PART_ROWS: Final = 500
_NUMBER = re.compile(r"[0-9]{1,9}")
_BATCH_FILE = re.compile(r"[0-9]+-[0-9A-Za-z]+-[0-9a-f]{8}-[0-9]+\.parquet")


Entry = TypeVar("Entry")


class ErrorFile(NamedTuple):
    """A file of refused rows: those of one stage, in parts of `ROWS_A_FILE`."""

    stage: str
    number: int

    @property
    def name(self) -> str:
        return f"{_KINDS[self.stage]}_{self.number}.json"


class _File(NamedTuple):
    path: Path
    size_bytes: int
    rows: int


def routes(store: Store, lake: Path) -> list[web.RouteDef]:
    """The lists and files of a batch."""

    async def batch_of(request: web.Request) -> Batch:
        batch_id = request.match_info["batchId"]
        batch = await asyncio.to_thread(find_batch, store, batch_id)
        if batch is None:
            raise _missing(f"The batch {shorten(batch_id)} is not found.", batch_id)
        return batch

    async def listed(request: web.Request, batch: Batch, part: str, folder: str) -> web.Response:
        def entry_of(file: ErrorFile) -> dict[str, Any]:
            length = sum(len(line) for line in _lines(lake, batch, file))
            return _entry(_link(batch.id, part, folder + file.name), file.name, length)

        return await asyncio.to_thread(lambda: _page(request, _error_files(lake, batch), entry_of))

    async def files(request: web.Request) -> web.StreamResponse:
        """List the files that a batch wrote into its dataset."""
        batch = await batch_of(request)
        return _page(request, await asyncio.to_thread(_written_files, lake, batch), dict)

    async def failed(request: web.Request) -> web.StreamResponse:
        """List the files of refused rows of a batch, or give one (`path`)."""
        batch = await batch_of(request)
        path = request.query.get("path")
        if path is None:
            return await listed(request, batch, "failed", "")
        return await _content(request, lake, batch, path)

    async def meta(request: web.Request) -> web.StreamResponse:
        """List what is known of a batch's input and refused rows, or give one file (`path`)."""
        batch = await batch_of(request)
        path = (request.query.get("path") or "").strip("/")
        match path.split("/"):
            case [""]:
                return _page(request, _top(), lambda name: _entry(_link(batch.id, "meta", name), name))
            case ["row_errors"]:
                return await listed(request, batch, "meta", "row_errors/")
            case ["row_errors", name]:
                return await _content(request, lake, batch, name)
            case ["input_files"]:
                body = _input_metadata(batch)
                href = _link(batch.id, "meta", f"input_files/{_INPUT_FILE}")
                return _page(request, [_entry(href, _INPUT_FILE, len(body))], dict)
            case ["input_files", name] if name == _INPUT_FILE:
                return web.Response(body=_input_metadata(batch), content_type="application/json")
            case [name] if name in _SAMPLES_NAMES:
                body = await asyncio.to_thread(_samples, lake, batch)
                return web.Response(body=body, content_type="application/json")
        raise _missing(f"The path {shorten(path)} is not found in batch {batch.id}.", batch.id)

    async def file(request: web.Request) -> web.StreamResponse:
        """List a file of a dataset, or give it (`path`), whole or in ranges."""
        file_id = request.match_info["dataSetFileId"]
        batch_id, _, number = file_id.rpartition("-")
        batch = await asyncio.to_thread(find_batch, store, batch_id)
        found = [] if batch is None else await asyncio.to_thread(_files_of, lake, batch.run.dataset_id, batch)
        if not _NUMBER.fullmatch(number) or int(number) >= len(found):
            raise _missing(f"The file {shorten(file_id)} is not found.", file_id, "files")
        chosen = found[int(number)]
        path = request.query.get("path")
        if path is None:
            link = f"{BASE}/files/{batch_id}-{int(number)}?path={quote(chosen.path.name)}"
            return _page(request, [_entry(link, chosen.path.name, chosen.size_bytes)], dict)
        if path != chosen.path.name:
            raise _missing(f"The path {shorten(path)} is not found.", file_id, "files")
        if not await asyncio.to_thread(chosen.path.is_file):
            raise unavailable("The files of the batch cannot be read now.")
        return web.FileResponse(chosen.path, headers={"Content-Type": "application/octet-stream"})

    return [
        web.get(f"{BASE}/files/{{dataSetFileId}}", file),
        web.get(f"{BASE}/batches/{{batchId}}/files", files),
        web.get(f"{BASE}/batches/{{batchId}}/failed", failed),
        web.get(f"{BASE}/batches/{{batchId}}/meta", meta),
    ]


# Answers


def _top() -> tuple[str, ...]:
    return "row_errors", "input_files", _SAMPLES_NAMES[0]


def _link(batch_id: str, part: str, path: str) -> str:
    return f"{BASE}/batches/{batch_id}/{part}?path={quote(path, safe='')}"


def _entry(href: str, name: str, length: int | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name}
    if length is not None:
        entry["length"] = str(length)
    entry["_links"] = {"self": {"href": href}}
    return entry


def _page(
    request: web.Request, entries: Sequence[Entry], shown_as: Callable[[Entry], Mapping[str, Any]]
) -> web.Response:
    """A part of a list: `start` counts entries from 0, `limit` is at most 100. Entries are completed when shown."""
    start, limit = _parameter(request, "start", 0), min(_parameter(request, "limit", MOST_FILES), MOST_FILES)
    shown = [shown_as(entry) for entry in entries[start : start + limit]]
    body: dict[str, Any] = {"data": shown, "_page": {"limit": limit, "count": len(shown)}}
    if start + limit < len(entries) and limit:
        query = request.rel_url.update_query(start=str(start + limit), limit=str(limit))
        body["_links"] = {"next": {"href": str(query)}}
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def _parameter(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise bad_request(f"The parameter {name} takes a whole number.")
    return int(text)


async def _content(request: web.Request, lake: Path, batch: Batch, name: str) -> web.StreamResponse:
    """One file of refused rows, a part at a time: however large it is, little of it is in memory."""
    found = next((file for file in await asyncio.to_thread(_error_files, lake, batch) if file.name == name), None)
    if found is None:
        raise _missing(f"The file {shorten(name)} is not found in batch {batch.id}.", batch.id)
    lines = _lines(lake, batch, found)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    try:
        part = await asyncio.to_thread(_next_part, lines)
        await response.prepare(request)
        # a client that goes away in the middle is no trouble
        with suppress(ConnectionError):
            while part:
                await response.write(part)
                part = await asyncio.to_thread(_next_part, lines)
            await response.write_eof()
    except ApiError:
        if not response.prepared:
            raise
        # too late for another answer: a body that breaks off tells the client that it is not whole
        if request.transport is not None:
            request.transport.abort()
    finally:
        await asyncio.to_thread(lines.close)
    return response


def _next_part(lines: Iterator[bytes]) -> bytes:
    return b"".join(islice(lines, _PART_ROWS))


def _samples(lake: Path, batch: Batch) -> bytes:
    """The first rows, as a JSON array: aepp reads the answer as JSON."""
    found: list[dict[str, Any]] = []
    for file in _error_files(lake, batch):
        if file.number == 0:
            found += islice(_documents(lake, batch, file), SAMPLES - len(found))
    return orjson.dumps(found)


def _input_metadata(batch: Batch) -> bytes:
    """The one input of a batch is the export of its day."""
    document: dict[str, Any] = {"path": f"export-{batch.day}.json", "batchId": batch.id}
    if batch.receipt is not None:
        document |= {"length": batch.receipt.input_bytes, "records": batch.receipt.tally.input}
    return orjson.dumps(document)


# The tables of the lake


def _written_files(lake: Path, batch: Batch) -> list[dict[str, Any]]:
    created = str(round(batch.run.started_at.timestamp() * 1000))
    updated = str(round(batch.updated_at.timestamp() * 1000))
    return [
        {
            "dataSetFileId": f"{batch.id}-{number}",
            "dataSetViewId": batch.run.dataset_id,
            "version": "1.0.0",
            "created": created,
            "updated": updated,
            "isValid": True,
            "records": str(file.rows),
            "size": str(file.size_bytes),
            "_links": {"self": {"href": f"{BASE}/files/{batch.id}-{number}"}},
        }
        for number, file in enumerate(_files_of(lake, batch.run.dataset_id, batch))
    ]


def _files_of(lake: Path, table: str, batch: Batch) -> list[_File]:
    """The files that `batch` has in `table` now.

    A file names its batch. Where somebody has rewritten the files of a day, some name none: then all rows of the day
    are those of the batch that was committed last.
    """
    if table not in table_names(lake):
        return []
    with _reading():
        actions = pa.table(DeltaTable(str(lake / table)).get_add_actions(flatten=True)).to_pylist()
    found = [
        _File(lake / table / unquote(row["path"]), row["size_bytes"], row["num_records"] or 0)
        for row in actions
        if str(row[f"partition.{DAY_COLUMN}"]) == batch.day.isoformat()
    ]
    if batch.is_newest and not all(_BATCH_FILE.fullmatch(file.path.name) for file in found):
        return sorted(found)
    return sorted(file for file in found if f"-{batch.id}-" in file.path.name)


def _error_files(lake: Path, batch: Batch) -> list[ErrorFile]:
    """The files that the refused rows of a batch make, in order."""
    counts = dict.fromkeys(_KINDS, 0)
    for path in _reject_paths(lake, batch):
        with _reading():
            stages = pq.ParquetFile(path).read(["stage"]).column("stage").to_pylist()
        for stage, count in Counter(str(stage) for stage in stages).items():
            counts[stage] = counts.get(stage, 0) + count
    return [ErrorFile(stage, number) for stage in _KINDS for number in range(-(-counts[stage] // ROWS_A_FILE))]


def _lines(lake: Path, batch: Batch, file: ErrorFile) -> Generator[bytes]:
    for document in _documents(lake, batch, file):
        yield orjson.dumps(document) + b"\n"


def _documents(lake: Path, batch: Batch, file: ErrorFile) -> Iterator[dict[str, Any]]:
    """The rows of a file, in the order of the table."""
    rows = (row for path in _reject_paths(lake, batch) for row in _rows(path) if row["stage"] == file.stage)
    first = file.number * ROWS_A_FILE
    return (error_document(row, file) for row in islice(rows, first, first + ROWS_A_FILE))


def _reject_paths(lake: Path, batch: Batch) -> list[Path]:
    table = f"{batch.run.dataset_id}_rejects"
    return [file.path for file in _files_of(lake, table, batch)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with _reading():
        file = pq.ParquetFile(path)
        for part in file.iter_batches(_PART_ROWS, columns=["line", "stage", "code", "reason", "raw"]):
            yield from part.to_pylist()


def error_document(row: Mapping[str, Any], file: ErrorFile) -> dict[str, Any]:
    """One refused row in Adobe's shape: the event with what is wrong with it, or the line where it is no event.

    The code is the number in the middle: `1401` of `INGEST-1401-400`. `_line` counts the lines of the export from 1.
    """
    raw = row["raw"] or ""
    record: object = None
    if file.stage == "map":
        with suppress(orjson.JSONDecodeError):
            record = orjson.loads(raw)
    parts = (row["code"] or "").split("-")
    error = {"code": parts[1] if len(parts) == 3 else row["code"], "message": row["reason"]}
    shown = record if isinstance(record, dict) else {"_corrupt_record": raw}
    return {**shown, "_errors": [error], "_filename": file.name, "_line": row["line"]}


@contextmanager
def _reading() -> Iterator[None]:
    """Files that somebody removes meanwhile, or a lake that is gone, are no fault of the request."""
    try:
        yield
    except (OSError, pa.ArrowException, DeltaError) as error:
        raise unavailable("The files of the batch cannot be read now.") from error


def _missing(message: str, object_id: str, kind: str = "batches") -> ApiError:
    return ApiError(
        404, "FLOW-1439-404", "Resource not found", message, resource_type=kind, resource_id=shorten(object_id)
    )
