"""Reading mapping sets: the three forms of the body, and a mistake in each place says what, where and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from worker.errors import ConfigurationError
from worker.mapping.mapping_set import SourceType, load_mapping_set, parse_mapping_set
from worker.mapping.xdm import written

TUTORIAL = Path(__file__).parent.parent / "mappings" / "mixpanel-tutorial"
SCHEMA_ID = "https://ns.adobe.com/tenant/schemas/89abc189258b1cb1"


def attribute(source: str, destination: str, **more: Any) -> dict[str, Any]:
    return {"sourceType": "ATTRIBUTE", "source": source, "destination": destination, **more}


def mapping_set(*mappings: object, **more: Any) -> dict[str, Any]:
    return {"mappings": list(mappings), **more}


def test_the_shipped_set_is_the_tutorials() -> None:
    parsed, schema = load_mapping_set(TUTORIAL / "mapping.json")
    assert schema is None
    assert parsed.version == 0
    assert parsed.xdm_schema_id is not None
    assert parsed.xdm_schema_id.startswith("https://ns.adobe.com/{TENANT_ID}/schemas/995d")
    assert parsed.document == orjson.loads((TUTORIAL / "mapping.json").read_bytes())
    assert [(mapping.source, written(mapping.destination)) for mapping in parsed.mappings] == [
        (f"data.{name}", f"_extconndev.{name}")
        for name in (
            *("distinct_id", "event_name", "import", "insert_id", "item_id", "item_name", "item_price"),
            *("mp_api_endpoint", "mp_api_timestamp_ms", "mp_processing_time_ms", "time"),
        )
    ]
    assert parsed.mappings[0].name == "distinct_id"
    assert parsed.mappings[0].description == "Mixpanel"


@pytest.mark.parametrize(
    "body",
    [
        mapping_set(
            attribute("data.item_id", "_x.item_id"),
            version=3,
            outputSchema={"schemaRef": {"id": SCHEMA_ID, "contentType": "application/json"}},
        ),
        mapping_set(attribute("data.item_id", "_x.item_id"), version=3, xdmSchema=SCHEMA_ID, xdmVersion="1.0", id=None),
        mapping_set(
            {
                "destinationXdmPath": "_x.item_id",
                "sourceAttribute": "data.item_id",
                "identity": False,
                "primaryIdentity": False,
                "identityGroup": None,
                "namespaceCode": None,
                "version": 0,
            },
            version=3,
            schemaRef={"id": SCHEMA_ID, "contentType": "1.0"},
        ),
        mapping_set(
            {
                "id": "af809223484341009ce0db13d4b32a3a",
                "version": 0,
                "createdDate": 1582250953000,
                "createdBy": "someone",
                "sourceType": "text/x.schema-path",
                "source": "data.item_id",
                "destination": "_x.item_id",
                "identity": False,
                "primaryIdentity": False,
                "matchScore": 0.0,
                "functionVersion": 1,
                "sourceAttribute": "data.item_id",
                "destinationXdmPath": "_x.item_id",
            },
            version=3,
            xdmSchema=SCHEMA_ID,
            status="PUBLISHED",
            strictMapping=False,
        ),
    ],
    ids=["data prep", "tutorial", "older", "read back"],
)
def test_all_forms_of_the_body_say_the_same(body: dict[str, Any]) -> None:
    parsed = parse_mapping_set(body)
    (mapping,) = parsed.mappings
    assert parsed.version == 3
    assert parsed.xdm_schema_id == SCHEMA_ID
    assert parsed.document is body
    assert mapping.source_type is SourceType.ATTRIBUTE
    assert mapping.source == "data.item_id"
    assert mapping.alternatives == (("properties", "item_id"), ("properties", "$item_id"))
    assert mapping.destination == ("_x", "item_id")
    assert not mapping.identity


def test_identity_is_kept() -> None:
    (mapping,) = parse_mapping_set(
        mapping_set(attribute("data.email", "_x.email", identity=True, primaryIdentity=True, namespaceCode="EMAIL"))
    ).mappings
    assert (mapping.identity, mapping.primary_identity, mapping.namespace_code) == (True, True, "EMAIL")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("web", "web"),
        ('"web"', "web"),
        ("'web'", "web"),
        ("", ""),
        ('"', '"'),
        ("\"web'", "\"web'"),
        ("a + b", "a + b"),
    ],
)
def test_static_is_its_text_without_quotes(written: str, value: str) -> None:
    (mapping,) = parse_mapping_set(
        mapping_set({"sourceType": "STATIC", "source": written, "destination": "_x.a"})
    ).mappings
    assert (mapping.source_type, mapping.source, mapping.alternatives) == (SourceType.STATIC, value, ())


GOOD = attribute("data.a", "_x.a")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "has no mappings"),
        (mapping_set(), "has no mappings"),
        ({"mappings": {}}, "has no mappings"),
        (mapping_set("x"), "mapping 1 is not a JSON object"),
        (mapping_set(GOOD, {"source": "data.b"}), "mapping 2 has no `destination`"),
        (mapping_set({"destination": "_x.b"}), "mapping 1 → _x.b has no `source`"),
        (mapping_set(attribute("data.b", "_x.b", sourceAttribute="data.c")), "`source` is `data.b` but"),
        (mapping_set({"source": 5, "destination": "_x.b"}), "`source` is not a text"),
        (
            mapping_set(GOOD, GOOD | {"destination": "_x.b"}, attribute("uper(a)", "_x.y", sourceType="EXPRESSION")),
            "mapping 3 → _x.y: column 1: there is no function .?uper.?.*upper",
        ),
        (mapping_set(attribute("a +", "_x.y", sourceType="text/x.aep-xl")), "mapping 1 → _x.y: column 4: "),
        (mapping_set(attribute("a", "_x.y") | {"sourceType": "ATTRIBUT"}), "Did you mean `ATTRIBUTE`"),
        (mapping_set(attribute("a", "_x.y", sorceType="STATIC")), "unknown key `sorceType`. Did you mean `sourceType`"),
        (mapping_set(attribute("lower(a)", "_x.y")), r'mapping 1 → _x\.y: source `lower\(a\)` .*"EXPRESSION"'),
        (mapping_set(attribute("a", "_x.y", identity="yes")), "`identity` is neither true nor false"),
        (mapping_set(GOOD, version="first"), "`version` of the mapping set is not a whole number"),
        (mapping_set(GOOD, GOOD), "mapping 2 → _x.a: mapping 1 → _x.a has the same destination"),
        (mapping_set(GOOD, attribute("b", "_x.A")), "has the same destination"),
        (mapping_set(GOOD, attribute("b", "_X.b")), "spells `_X` differently"),
        (mapping_set(GOOD, attribute("b", "_x.a.b")), "lies within the destination of mapping 1 → _x.a"),
        (mapping_set(GOOD, attribute("b", "_x")), "mapping 1 → _x.a lies within this destination"),
        (mapping_set(attribute("a", "_x.list[1000]")), r"an array has no element \[1000\] here. .*\[99\]"),
        (mapping_set(attribute("a", "_x.list[*][*]")), "the destination is not a path of names"),
        (mapping_set(attribute("a", "_x.list[*].b[*]")), r"only one \[\*\]|Only one \[\*\]"),
        (mapping_set(attribute("a", "_x.l[0]"), attribute("a", "_x.l[*]")), r"takes `_x.l` for an array with \[n\]"),
        (mapping_set(attribute("a", "_x.l[0]"), attribute("a", "_x.l.b")), "takes `_x.l` for an array"),
        (mapping_set(attribute("a[", "_x.l")), "mapping 1 → _x.l: column 3: "),
        (mapping_set(attribute("a[0] + 1", "_x.l")), "this is not a path"),
        (mapping_set(attribute("a", "_x..a")), "the destination is not a path of names"),
        (mapping_set(attribute("a", "")), "the destination is not a path of names"),
        (mapping_set(attribute("a", "_x.first name")), "the destination is not a path of names"),
        (mapping_set(attribute("a", "_{TENANT_ID}.a")), "the destination is not a path of names"),
        (mapping_set(attribute("a", "mp_date")), "`mp_date` is the worker's own"),
        (mapping_set(attribute("a", "MP_Date.x")), "`mp_date` is the worker's own"),
    ],
)
def test_a_mistake_says_where_and_what(body: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_mapping_set(body)


def test_the_day_column_is_only_reserved_at_the_top() -> None:
    assert parse_mapping_set(mapping_set(attribute("a", "_x.mp_date"))).mappings[0].destination == ("_x", "mp_date")


def test_reads_the_schema_that_stands_beside(tmp_path: Path) -> None:
    (tmp_path / "mapping.json").write_bytes(orjson.dumps(mapping_set(GOOD)))
    (tmp_path / "schema.json").write_text('{"$id": "urn:x", "properties": {"_x": {"type": "object"}}}')
    _, schema = load_mapping_set(tmp_path / "mapping.json")
    assert schema is not None
    assert schema.identifier == "urn:x"


@pytest.mark.parametrize(
    ("mapping", "schema", "says"),
    [
        (None, None, r"mapping\.json: cannot be read: No such file"),
        ("{", None, r"mapping\.json: is not JSON"),
        ("[]", None, r"mapping\.json: is not a JSON object"),
        ("{}", None, r"mapping\.json: the mapping set has no mappings"),
        (orjson.dumps(mapping_set(GOOD)).decode(), "{", r"schema\.json: is not JSON"),
        (orjson.dumps(mapping_set(GOOD)).decode(), "{}", r"schema\.json: the XDM schema has no properties"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, mapping: str | None, schema: str | None, says: str) -> None:
    for name, text in (("mapping.json", mapping), ("schema.json", schema)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        load_mapping_set(tmp_path / "mapping.json")
