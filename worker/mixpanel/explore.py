"""Sample records described as Adobe's explore call describes them (Flow Service, "Explore your source")."""

from __future__ import annotations

from typing import Any

SMALLEST_INTEGER, LARGEST_INTEGER = -9007199254740992, 9007199254740991
"""The bounds that explore prints for every integer field (tutorial, explore response)."""


def explore_document(records: list[dict[str, Any]]) -> dict[str, Any]:
    """`{"format", "schema", "data"}` for some records; fields stand in the order in which they first appear."""
    schema: dict[str, Any] = {}
    for record in records:
        schema = _merged(schema, record)
    return {"format": "hierarchical", "schema": schema or {"type": "object", "properties": {}}, "data": records}


def _merged(schema: dict[str, Any], value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """`schema` widened so that it describes `value` too; of two types that differ, string describes both."""
    if value is None:
        return schema
    if isinstance(value, dict):
        if schema and schema.get("type") != "object":
            return {"type": "string"}
        fields = dict(schema.get("properties", {}))
        for name, inner in value.items():
            fields[name] = _merged(fields.get(name, {}), inner)
        return {"type": "object", "properties": fields}
    found = _type_of(value)
    if not schema or schema == found:
        return found
    if {schema.get("type"), found["type"]} == {"integer", "number"}:
        return {"type": "number"}
    return {"type": "string"}


def _type_of(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": SMALLEST_INTEGER, "maximum": LARGEST_INTEGER}
    if isinstance(value, float):
        return {"type": "number"}
    if isinstance(value, list):
        return {"type": "array"}
    return {"type": "string"}
