"""The compiled mapper: rows in, columns out, misfits counted, rows without a required field rejected."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.mapping.context import Context
from worker.mapping.mapper import REJECT_CODE, SCHEMA_RULE, TYPE_RULE, WARNING_CODE, Mapped, Mapper, compile_mapper
from worker.mapping.mapping_set import load_mapping_set, parse_mapping_set
from worker.mapping.xdm import XdmSchema
from worker.model import Issue

Texts = list[list[str | None]]
CONTEXT = Context(
    datetime(2026, 3, 2, 12, tzinfo=UTC),
    {"projectId": "2384945", "timezone": "America/Los_Angeles", "timeBasis": "project"},
)

TUTORIAL = compile_mapper(
    *load_mapping_set(Path(__file__).parent.parent / "mappings" / "mixpanel-tutorial" / "mapping.json")
)


def mapper_of(mappings: dict[str, str], schema: dict[str, Any] | None = None) -> Mapper:
    """A mapper of destination → source; a source in quotes is a constant."""
    body = {
        "mappings": [
            {"sourceType": "STATIC" if source[:1] == '"' else "ATTRIBUTE", "source": source, "destination": destination}
            for destination, source in mappings.items()
        ]
    }
    return compile_mapper(parse_mapping_set(body), XdmSchema(schema) if schema else None)


def text_at(record: Any, path: tuple[str, ...]) -> str | None:
    """What the decoder gives for one row, the slow way."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    if record is None or isinstance(record, str):
        return record
    return orjson.dumps(record).decode()


def kind_at(record: Any, path: tuple[str, ...]) -> int:
    """The first byte of the JSON of what is there, 0 for null."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return 0 if record is None else orjson.dumps(record)[0]


def map_records(mapper: Mapper, *records: dict[str, Any]) -> Mapped:
    texts = [[text_at(record, path) for record in records] for path in mapper.paths]
    return map_texts(mapper, texts, [[kind_at(record, path) for record in records] for path in mapper.paths])


def map_texts(mapper: Mapper, texts: Texts, kinds: list[list[int]] | None = None) -> Mapped:
    told = [
        np.array(kinds[number], dtype=np.uint8) if kinds is not None and path in mapper.kinds_of else None
        for number, path in enumerate(mapper.paths)
    ]
    mapped = mapper.map([pa.array(column, pa.string()) for column in texts], told, CONTEXT)
    mapped.batch.validate(full=True)
    assert mapped.batch.schema == mapper.schema
    return mapped


def event(**properties: Any) -> dict[str, Any]:
    return {"event": "Items sold", "properties": properties}


def test_the_tutorials_rows() -> None:
    record = {
        "event": "Sign in",
        "properties": {
            "time": 1648140614,
            "distinct_id": "test1@test.com",
            "$import": True,
            "$insert_id": "935d87b1-00cd-41b7-be34-b9d98dd08b75",
            "$mp_api_endpoint": "api.mixpanel.com",
            "$mp_api_timestamp_ms": 1648556032401,
            "item_id": "29073",
            "item_name": "Watch",
            "item_price": "50000.00",
            "mp_processing_time_ms": 1648556032462,
        },
    }
    mapped = map_records(TUTORIAL, record, {"event": "bare", "properties": {}})
    assert mapped.batch.to_pylist() == [
        {
            "_extconndev": {
                "distinct_id": "test1@test.com",
                "event_name": "Sign in",
                "import": True,
                "insert_id": "935d87b1-00cd-41b7-be34-b9d98dd08b75",
                "item_id": "29073",
                "item_name": "Watch",
                "item_price": "50000.00",
                "mp_api_endpoint": "api.mixpanel.com",
                "mp_api_timestamp_ms": 1648556032401,
                "mp_processing_time_ms": 1648556032462,
                "time": 1648140614,
            }
        },
        {"_extconndev": dict.fromkeys(TUTORIAL.schema.field(0).type.names) | {"event_name": "bare"}},
    ]
    assert mapped.warnings == ()
    assert mapped.rejected.tolist() == []
    assert mapped.reasons == []


def test_types_follow_from_the_names_of_the_source() -> None:
    sources = {
        "data.time": pa.int64(),
        "mp_processing_time_ms": pa.int64(),
        "data.mp_api_timestamp_ms": pa.int64(),
        "properties.$import": pa.bool_(),
        "properties.import": pa.string(),
        "properties.cart.time": pa.string(),
        "properties": pa.string(),
        "event_name": pa.string(),
        '"5"': pa.string(),
    }
    mapper = mapper_of({f"column_{number}": source for number, source in enumerate(sources)})
    assert mapper.schema.types == list(sources.values())
    assert mapper.notes == TYPE_RULE


def test_columns_stand_in_the_order_of_first_mention() -> None:
    mapper = mapper_of({"_t.b": "b", "z": "z", "_t.inner.c": "c", "_t.a": "a", "_t.inner.b": "event"})
    inner = pa.struct([("c", pa.string()), ("b", pa.string())])
    assert mapper.schema == pa.schema(
        [("_t", pa.struct([("b", pa.string()), ("inner", inner), ("a", pa.string())])), ("z", pa.string())]
    )
    row = map_records(mapper, event(a=1, b="two", c=[3], z={"four": 4})).batch.to_pylist()[0]
    assert row == {"_t": {"b": "two", "inner": {"c": "[3]", "b": "Items sold"}, "a": "1"}, "z": '{"four":4}'}


def test_paths_are_asked_for_once() -> None:
    mapper = mapper_of({"a": "data.item", "b": "properties.item", "c": "$item"})
    assert mapper.paths == (("properties", "item"), ("properties", "$item"))


def test_constants_fill_every_row() -> None:
    mapped = map_records(mapper_of({"_x.source": '"web"', "_x.a": "a"}), event(a="1"), event())
    assert mapped.batch.to_pylist() == [{"_x": {"source": "web", "a": "1"}}, {"_x": {"source": "web", "a": None}}]


@given(st.lists(st.tuples(st.none() | st.text(max_size=3), st.none() | st.text(max_size=3)), max_size=8))
def test_an_exact_name_wins_over_one_without_its_dollar(rows: list[tuple[str | None, str | None]]) -> None:
    mapped = map_texts(mapper_of({"a": "data.city"}), [[exact for exact, _ in rows], [dollar for _, dollar in rows]])
    assert mapped.batch.column(0).to_pylist() == [dollar if exact is None else exact for exact, dollar in rows]


def test_a_misfit_becomes_null_is_counted_and_shown() -> None:
    records = [event(time=1), event(time="undefined" * 50), event(time=1704784217.602), event(), event(time=2)]
    mapped = map_records(mapper_of({"_x.time": "data.time", "_x.import": "data.import"}), *records)
    assert [row["_x"]["time"] for row in mapped.batch.to_pylist()] == [1, None, None, None, 2]
    assert mapped.warnings == (
        Issue(
            code="MAPPER-3700-400",
            message="_x.time: the value does not fit the type int64; the field is null.",
            count=2,
            sample=("undefined" * 50)[:100],
        ),
    )
    assert mapped.warnings[0].code == WARNING_CODE


ENTRIES = st.none() | st.sampled_from(["12", "-3", "12.0", "1e2", "99999999999999999999", "true", "no", "x", "", "é"])


@given(st.data())
def test_mapping_blocks_is_mapping_the_whole(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*[ENTRIES] * len(REQUIRING.paths)), max_size=10))
    cut = data.draw(st.integers(0, len(rows)))
    whole, first, second = (
        map_texts(REQUIRING, [[row[column] for row in part] for column in range(len(REQUIRING.paths))])
        for part in (rows, rows[:cut], rows[cut:])
    )
    assert whole.batch.to_pylist() == first.batch.to_pylist() + second.batch.to_pylist()
    assert whole.rejected.tolist() == first.rejected.tolist() + [cut + row for row in second.rejected.tolist()]
    assert whole.reasons == first.reasons + second.reasons
    assert len(whole.rejected) == len(whole.reasons)
    assert whole.rejected.dtype == np.int64
    assert sum(issue.count for issue in whole.warnings) == sum(
        issue.count for issue in first.warnings + second.warnings
    )


SCHEMA: dict[str, Any] = {
    "properties": {
        "_id": {"type": "string"},
        "_t": {
            "properties": {
                "count": {"type": "integer", "minimum": -128, "maximum": 128},
                "price": {"type": "number"},
                "cart": {
                    "properties": {"id": {"type": "integer"}, "paid": {"type": "boolean"}},
                    "required": ["id"],
                },
            }
        },
    },
    "required": ["_id"],
}
REQUIRING = mapper_of(
    {"_id": "$insert_id", "_t.count": "count", "_t.price": "price", "_t.cart.id": "cart", "_t.cart.paid": "paid"},
    SCHEMA,
)


def test_types_follow_from_the_schema() -> None:
    cart = pa.struct([("id", pa.int64()), ("paid", pa.bool_())])
    fields = pa.struct([("count", pa.int8()), ("price", pa.float64()), ("cart", cart)])
    assert REQUIRING.schema == pa.schema([("_id", pa.string()), ("_t", fields)])
    assert REQUIRING.notes == SCHEMA_RULE


def test_rows_without_a_required_field_are_rejected_and_stay_in_the_batch() -> None:
    mapped = map_records(
        REQUIRING,
        event(**{"$insert_id": "a", "cart": 7, "paid": "yes"}),
        event(cart=7),
        event(**{"$insert_id": "b"}),
        event(**{"$insert_id": "c", "paid": True}),
        event(**{"$insert_id": "d", "paid": True, "cart": "seven"}),
        event(paid=True),
    )
    assert mapped.batch.num_rows == 6
    assert mapped.rejected.tolist() == [1, 3, 4, 5]
    assert mapped.reasons == [
        "The required field _id is missing or null.",
        "The required field _t.cart.id is missing or null.",
        "The required field _t.cart.id is null: the value does not fit the type int64.",
        "The required field _id is missing or null.",
    ]
    assert REJECT_CODE == "INGEST-1555-400"


def test_warnings_are_of_rows_that_stay() -> None:
    mapped = map_records(REQUIRING, event(count="x"), event(**{"$insert_id": "a", "count": 128}))
    assert mapped.rejected.tolist() == [0]
    assert [(issue.count, issue.sample) for issue in mapped.warnings] == [(1, "128")]


@pytest.mark.parametrize(
    ("mappings", "says"),
    [
        ({"_id": "a", "_t.cuont": "b"}, r"mapping 2 → _t\.cuont: the XDM schema has no field `cuont` in `_t`.*`count`"),
        ({"_t.count": "b"}, "requires fields that no mapping sets: _id"),
        ({"_id": "a", "_t.cart.paid": "b"}, r"requires fields that no mapping sets: _t\.cart\.id"),
        ({"_id": "a", "_t.cart": '"x"'}, r"mapping 2 → _t\.cart: a constant is no struct"),
        ({"_id": "a", "_t.count": '"many"'}, r"mapping 2 → _t\.count: the constant `many` does not fit the type int8"),
        ({"_id": "a", "_t.cart.id": "b", "_t.cart.paid": "data.time"}, "`data.time` is always of type int64"),
        ({"_id": "a", "_t.price": "data.import"}, "`data.import` is always of type bool"),
        ({"_id": '"1"'}, "has only constants"),
    ],
)
def test_what_cannot_work_is_refused_before_any_row(mappings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        mapper_of(mappings, SCHEMA)


def test_a_constant_takes_the_type_of_the_schema() -> None:
    mapped = map_records(mapper_of({"_id": "$insert_id", "_t.count": '"12"'}, SCHEMA), event(**{"$insert_id": "a"}))
    assert mapped.batch.to_pylist() == [{"_id": "a", "_t": {"count": 12}}]


def test_no_rows() -> None:
    for mapper in (TUTORIAL, REQUIRING, mapper_of({"a": "a", "b": '"x"'})):
        mapped = map_texts(mapper, [[] for _ in mapper.paths])
        assert mapped.batch.num_rows == 0
        assert mapped.rejected.tolist() == []


def test_one_mapper_serves_several_threads() -> None:
    blocks: list[Texts] = [[[str(number), None, "x"] for _ in REQUIRING.paths] for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: map_texts(REQUIRING, block), blocks))
    for block, mapped in zip(blocks, together, strict=True):
        alone = map_texts(REQUIRING, block)
        assert mapped.batch.equals(alone.batch)
        assert mapped.reasons == alone.reasons
