"""XDM schemas: the type of every kind of field, references, and what is required of whom."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from worker.errors import ConfigurationError
from worker.mapping.xdm import XdmSchema

UTC_MILLISECONDS = pa.timestamp("us", tz="UTC")


def schema_of(**fields: Any) -> XdmSchema:
    return XdmSchema({"type": "object", "properties": fields})


def integer(minimum: int, maximum: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


@pytest.mark.parametrize(
    ("field", "data_type"),
    [
        ({"type": "string"}, pa.string()),
        ({"type": "string", "format": "date"}, pa.date32()),
        ({"type": "string", "format": "date-time"}, UTC_MILLISECONDS),
        ({"type": "string", "format": "uri"}, pa.string()),
        ({"type": ["null", "string"]}, pa.string()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "integer", "minimum": 0}, pa.int64()),
        (integer(-9007199254740991, 9007199254740991), pa.int64()),
        (integer(-2147483648, 2147483648), pa.int32()),
        (integer(-32768, 32768), pa.int16()),
        (integer(-128, 128), pa.int8()),
        (integer(0, 129), pa.int16()),
        ({"type": "integer", "meta:xdmType": "int"}, pa.int32()),
        ({"type": "integer", "meta:xdmType": "long", "minimum": 0, "maximum": 1}, pa.int64()),
        ({"type": "integer", "meta:xdmType": "short"}, pa.int16()),
        ({"type": "integer", "meta:xdmType": "byte"}, pa.int8()),
        ({"type": "string", "meta:xdmType": "date-time"}, UTC_MILLISECONDS),
        ({"type": "array", "items": {"type": "string"}}, pa.list_(pa.string())),
        (
            {"type": ["array", "null"], "items": {"type": "object", "properties": {"c": {"type": "number"}}}},
            pa.list_(pa.struct([pa.field("c", pa.float64())])),
        ),
        ({"properties": {"c": {"type": "boolean"}}}, pa.struct([pa.field("c", pa.bool_())])),
        (
            {"meta:xdmType": "map", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
            pa.map_(pa.string(), pa.list_(pa.string())),
        ),
    ],
)
def test_type_of_a_field(field: dict[str, Any], data_type: pa.DataType) -> None:
    assert schema_of(a={"properties": {"b": field}}).type_of(("a", "b")) == data_type


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"type": "array"}, "does not say what `a` is an array of"),
        ({"type": "object", "meta:xdmType": "map"}, "says of `a` that it is an object, and not of what"),
        ({"type": "object", "properties": {"b": {}, "c": {}}}, "gives `a.b` no type that is known"),
        ({"type": "array", "items": {"type": "array", "items": {}}}, r"gives `a\[\]\[\]` no type"),
        ({}, "gives `a` no type that is known"),
    ],
)
def test_fields_that_are_no_column(field: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        schema_of(a=field).type_of(("a",))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("_tenent", "item_id"), "no field `_tenent` at the top. Did you mean `_tenant`"),
        (("_tenant", "itemid"), "no field `itemid` in `_tenant`. Did you mean `item_id`"),
        (("_tenant", "item_id", "x"), "no field `x` in `_tenant.item_id`. `_tenant.item_id` has no fields"),
    ],
)
def test_a_field_that_is_not_there_names_the_nearest(path: tuple[str, ...], says: str) -> None:
    schema = schema_of(_tenant={"properties": {"item_id": {"type": "string"}, "time": {"type": "integer"}}}, other={})
    with pytest.raises(ConfigurationError, match=says):
        schema.type_of(path)


def test_references_into_its_own_definitions() -> None:
    schema = XdmSchema(
        {
            "allOf": [
                {"$ref": "#/definitions/custom"},
                {"properties": {"_id": {"type": "string"}}, "required": ["_id"]},
            ],
            "definitions": {
                "custom": {"properties": {"_tenant": {"$ref": "#/definitions/a~1b"}}},
                "a/b": {"properties": {"time": {"type": "integer"}, "self": {"$ref": "#/definitions/a~1b"}}},
            },
        }
    )
    assert schema.type_of(("_id",)) == pa.string()
    assert schema.type_of(("_tenant", "self", "self", "time")) == pa.int64()
    assert schema.requirements([("_id",)]) == {("_id",): ()}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"allOf": [{"$ref": "https://ns.adobe.com/xdm/context/profile"}]}, "refers to another document"),
        ({"allOf": [{"$ref": "#/definitions/none"}]}, "refers to a definition that it does not have"),
        ({"$ref": "#"}, "refers to itself"),
        ({"properties": []}, r"has a `properties` that is \[\]"),
        ({"properties": {"a": {}}, "required": True}, "has a `required` that is True"),
        ({"allOf": ["x"]}, "has 'x' where a schema object is expected"),
    ],
)
def test_broken_schemas(document: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        XdmSchema(document)


def test_required_fields_that_nobody_sets_are_all_named() -> None:
    schema = XdmSchema(
        {
            "properties": {
                "_id": {"type": "string"},
                "timestamp": {"type": "string", "format": "date-time"},
                "_tenant": {"properties": {"a": {}, "b": {}}, "required": ["b"]},
                "unused": {"properties": {"c": {}}, "required": ["c"]},
            },
            "required": ["_id", "timestamp"],
        }
    )
    with pytest.raises(ConfigurationError, match=r"no mapping sets: _id, timestamp, _tenant\.b\."):
        schema.requirements([("_tenant", "a")])


def test_required_within_which_object() -> None:
    leaf = {"properties": {"a": {}, "b": {}}, "required": ["a"]}
    schema = XdmSchema({"properties": {"must": leaf, "may": {"properties": {"in": leaf}}}, "required": ["must"]})
    paths = [("must", "a"), ("must", "b"), ("may", "in", "a"), ("may", "in", "b")]
    assert schema.requirements(paths) == {("must", "a"): (), ("may", "in", "a"): ("may", "in")}
