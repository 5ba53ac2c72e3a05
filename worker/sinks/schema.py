"""How the columns of a table grow: new ones are added, old ones stay, and none changes its type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as kinds

from worker.errors import SchemaConflictError
from worker.model import DAY_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCALARS = (
    pa.bool_(),
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.binary(),
    pa.date32(),
    pa.timestamp("us", "UTC"),
)


def widened(table_name: str, present: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """`present` with the columns and nested fields of `wanted` that it lacks behind those it has, all nullable.

    `wanted` does not name the day column. Raises SchemaConflictError when a column has another type on the two sides,
    differs from another only in case, takes the place of the day column, or has a type that targets cannot hold.
    """
    for name in wanted.names:
        if name.lower() == DAY_COLUMN:
            raise SchemaConflictError(
                f"Table {table_name}: column {name} of the mapping set takes the place of the partition column.",
                advice="Rename it in the mapping set.",
            )
    return pa.schema(_widened_fields(table_name, "", present, wanted))


def _widened_fields(
    table_name: str, parent: str, present: Iterable[pa.Field[Any]], wanted: Iterable[pa.Field[Any]]
) -> list[pa.Field[Any]]:
    fields = {field.name: field for field in present}
    spellings = {name.lower(): name for name in fields}
    for field in wanted:
        path = f"{parent}{field.name}"
        spelling = spellings.setdefault(field.name.lower(), field.name)
        if spelling != field.name:
            raise SchemaConflictError(
                f"Table {table_name}: columns {parent}{spelling} and {path} differ only in case.",
                advice="Give both the same spelling in the mapping set, or rename one.",
            )
        old = fields.get(field.name)
        if old is None:
            fields[field.name] = pa.field(field.name, _widened_type(table_name, path, None, field.type))
        else:
            fields[field.name] = old.with_type(_widened_type(table_name, path, old.type, field.type))
    return list(fields.values())


def _widened_type(table_name: str, path: str, present: pa.DataType | None, wanted: pa.DataType) -> pa.DataType:
    if isinstance(wanted, pa.StructType) and (present is None or isinstance(present, pa.StructType)):
        return pa.struct(_widened_fields(table_name, f"{path}.", present or (), wanted))
    if isinstance(wanted, pa.ListType) and (present is None or isinstance(present, pa.ListType)):
        return pa.list_(_widened_type(table_name, f"{path}[]", present and present.value_type, wanted.value_type))
    if isinstance(wanted, pa.MapType) and (present is None or isinstance(present, pa.MapType)):
        return pa.map_(
            _widened_type(table_name, f"{path}{{key}}", present and present.key_type, wanted.key_type),
            _widened_type(table_name, f"{path}{{value}}", present and present.item_type, wanted.item_type),
        )
    if present is not None and present != wanted:
        raise SchemaConflictError(
            f"Table {table_name}: column {path} is {present} in the table and {wanted} in the mapping set.",
            advice="Map to another column, or to another table; no column changes its type.",
        )
    if wanted not in _SCALARS and not kinds.is_decimal128(wanted):
        raise SchemaConflictError(
            f"Table {table_name}: column {path} has the type {wanted}, which the table cannot hold.",
            advice="Choose another type in the mapping set.",
        )
    return wanted
