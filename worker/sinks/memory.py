"""Tables in the memory of this process: for tests, with the semantics of a real target."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import pyarrow as pa

from worker.errors import OwnerConflictError, SinkError, StaleGenerationError
from worker.sinks.schema import widened

if TYPE_CHECKING:
    from datetime import date

    from worker.model import Load, Receipt
    from worker.sinks.base import Table


@dataclass(slots=True)
class _Content:
    flow_id: str
    schema: pa.Schema
    days: dict[date, list[pa.RecordBatch]] = field(default_factory=dict)
    receipts: dict[date, Receipt] = field(default_factory=dict)


class MemorySink:
    """Keeps tables in dictionaries; everything is gone with the process."""

    def __init__(self) -> None:
        self._contents: dict[str, _Content] = {}
        self._lock = Lock()

    def prepare(self, table: Table) -> None:
        with self._lock:
            content = self._contents.get(table.name)
            if content is None:
                self._contents[table.name] = _Content(table.flow_id, widened(table.name, pa.schema([]), table.schema))
                return
            _require_owner(content, table)
            content.schema = widened(table.name, content.schema, table.schema)

    def stage(self, table: Table, load: Load) -> MemoryStage:
        return MemoryStage(self._contents, self._lock, table, load)

    def landed(self, table_name: str, flow_id: str, day: date) -> Receipt | None:
        with self._lock:
            content = self._contents.get(table_name)
            if content is None or content.flow_id != flow_id:
                return None
            return content.receipts.get(day)

    def receipts(self, table_name: str, flow_id: str) -> list[Receipt]:
        with self._lock:
            content = self._contents.get(table_name)
            if content is None or content.flow_id != flow_id:
                return []
            return [content.receipts[day] for day in sorted(content.receipts)]

    def rows(self, table_name: str, day: date) -> pa.Table:
        """The rows that a reader of the table sees for `day`, in all columns of the table but the day column."""
        with self._lock:
            content = self._contents[table_name]
            batches = content.days.get(day, [])
            return pa.Table.from_pylist([row for batch in batches for row in batch.to_pylist()], schema=content.schema)


class MemoryStage:
    """One load of one table."""

    def __init__(self, contents: dict[str, _Content], lock: Lock, table: Table, load: Load) -> None:
        self._contents = contents
        self._lock = lock
        self._table = table
        self._load = load
        self._batches: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        assert batch.schema.equals(self._table.schema), (
            f"the table's schema is {self._table.schema}, not {batch.schema}"
        )
        self._batches.append(batch)

    def seal(self) -> tuple[int, int]:
        return sum(batch.nbytes for batch in self._batches), int(any(batch.num_rows for batch in self._batches))

    def commit(self, receipt: Receipt) -> None:
        load = self._load
        with self._lock:
            content = self._contents.get(self._table.name)
            if content is None:
                raise SinkError(f"Table {self._table.name} does not exist.")
            _require_owner(content, self._table)
            newest = content.receipts.get(load.day)
            if newest is not None and newest.generation >= load.generation:
                if (newest.generation, newest.batch_id) == (load.generation, load.batch_id):
                    return
                raise StaleGenerationError(
                    f"Table {self._table.name}: {load.day} holds generation {newest.generation},"
                    f" which generation {load.generation} of this batch may not replace."
                )
            content.days[load.day] = self._batches
            content.receipts[load.day] = receipt

    def abandon(self) -> None:
        self._batches = []


def _require_owner(content: _Content, table: Table) -> None:
    if content.flow_id != table.flow_id:
        raise OwnerConflictError(
            f"Table {table.name} belongs to flow {content.flow_id}, not to flow {table.flow_id}.",
            advice="Give each flow a dataset of its own.",
        )
