"""Mapping sets with expressions, arrays and objects, over whole events."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.mapping.context import Context
from worker.mapping.mapper import REJECT_CODE, WARNING_CODE, Mapper, compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mapping.xdm import XdmSchema
from worker.mixpanel.body import Block
from worker.mixpanel.decode import Decoder

CONTEXT = Context(
    datetime(2026, 3, 2, 12, tzinfo=UTC),
    {"projectId": "2384945", "timezone": "America/Los_Angeles", "timeBasis": "project"},
)

STRING, LONG, NUMBER = {"type": "string"}, {"type": "integer", "meta:xdmType": "long"}, {"type": "number"}


def of(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def mapper_of(expressions: dict[str, str], schema: dict[str, Any] | None = None, kind: str = "EXPRESSION") -> Mapper:
    """A mapper of destination → source."""
    entries = [
        {"sourceType": kind, "source": source, "destination": destination}
        for destination, source in expressions.items()
    ]
    return compile_mapper(parse_mapping_set({"mappings": entries}), XdmSchema(schema) if schema else None)


class Result:
    """What became of some events, from their lines on."""

    def __init__(self, mapper: Mapper, events: list[dict[str, Any]]) -> None:
        lines = [json.dumps({"event": "Buy", "properties": {"$insert_id": "i", **event}}).encode() for event in events]
        decoder = Decoder(mapper.paths, max_line_bytes=1 << 20, max_raw_bytes=1 << 10, kinds_of=mapper.kinds_of)
        decoded = decoder.decode(Block(b"\n".join([*lines, b""])))
        decoder.close()
        assert len(decoded.rows) == len(events)
        wanted = len(mapper.paths)
        mapped = mapper.map(decoded.texts[:wanted], decoded.kinds[:wanted], CONTEXT)
        mapped.batch.validate(full=True)
        assert mapped.batch.schema == mapper.schema
        self.rows = mapped.batch.to_pylist()
        self.warnings = {issue.message: (issue.count, issue.sample) for issue in mapped.warnings}
        self.codes = {issue.code for issue in mapped.warnings}
        self.rejected = dict(zip(mapped.rejected.tolist(), mapped.reasons, strict=True))


def values(expression: str, *events: dict[str, Any], schema: dict[str, Any] | None = None) -> list[Any]:
    result = Result(mapper_of({"x": expression}, schema), list(events))
    assert not result.warnings
    return [row["x"] for row in result.rows]


def test_an_expression_reads_the_kinds_of_json() -> None:
    events: list[dict[str, Any]] = [
        {"p": 5},
        {"p": "5"},
        {"p": None},
        {},
        {"p": True},
        {"p": [1, "a"]},
        {"p": {"k": 1.5}},
        {"p": ""},
    ]
    assert values("data.p", *events) == ["5", "5", None, None, "true", '[1,"a"]', '{"k":1.5}', ""]
    assert values("data.p == 5", *events[:4]) == [True, True, False, False]
    assert values("[data.p, event]", *events[:5]) == [
        '[5,"Buy"]',
        '["5","Buy"]',
        '[null,"Buy"]',
        '[null,"Buy"]',
        '[true,"Buy"]',
    ]


def test_what_takes_too_much_memory_at_once_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = mapper_of({"x": "concat(upper(data.p), lower(data.p), data.q)"})
    events = [{"p": f"Event{number}" * 10, "q": number} for number in range(40)]
    whole = Result(mapper, events)
    monkeypatch.setattr("worker.mapping.functions.base.MAX_MADE_BYTES", 2000)
    parts = Result(mapper, events)
    assert (parts.rows, parts.warnings) == (whole.rows, {})
    monkeypatch.setattr("worker.mapping.functions.base.MAX_MADE_BYTES", 100)
    nothing = Result(mapper, events)
    assert [row["x"] for row in nothing.rows] == [None] * 40
    ((message, (count, _)),) = nothing.warnings.items()
    assert (count, "MiB would be made" in message) == (40, True)


@pytest.mark.parametrize(
    "expression",
    [
        # one value for all rows; another one for each
        f"replacestr(replacestr(left(data.p, 1), 'a', '{'b' * 1000}'), 'b', '{'c' * 900}')",
        f"replacestr(replacestr(data.p, 'a', '{'b' * 1000}'), 'b', '{'c' * 900}')",
        f"join('{'c' * 900}', explode(replacestr(data.p, 'a', '{'b' * 1000}'), 'b'))",
    ],
)
def test_no_expression_makes_more_than_there_is_room_for(expression: str) -> None:
    mapper = mapper_of({"x": expression})
    lines = b"".join(b'{"event": "Buy", "properties": {"p": "a%d"}}\n' % number for number in range(3000))
    decoder = Decoder(mapper.paths, max_line_bytes=1 << 20, max_raw_bytes=100, kinds_of=mapper.kinds_of)
    decoded = decoder.decode(Block(lines))
    decoder.close()
    rows = 0
    for mapped in mapper.map_parts(decoded.texts[: len(mapper.paths)], decoded.kinds[: len(mapper.paths)], CONTEXT):
        assert mapped.batch.nbytes < 300 << 20
        assert not mapped.warnings
        rows += mapped.batch.num_rows
    assert rows == 3000


def test_an_array_of_the_same_again_and_again_is_made_in_parts() -> None:
    mapper = mapper_of({"x": f"[{','.join(['properties'] * 370)}]", "y": f"{{'k': [{','.join(['data.p'] * 300)}]}}"})
    events: list[dict[str, Any]] = [{"p": "x" * 2000, "n": number} for number in range(100)]
    long = Result(mapper, events)
    assert not long.warnings
    assert {len(row["x"]) for row in long.rows} <= {370 * length + 1 for length in range(2030, 2050)}
    too_long = Result(mapper, [{"p": "x" * 500_000}, {"p": "y", "n": 1}])
    assert [row["x"] is None for row in too_long.rows] == [True, False]
    assert [count for count, _ in too_long.warnings.values()] == [1, 1]


def test_numbers_of_thousands_of_digits() -> None:
    digits = "9" * 5000
    result = Result(
        mapper_of({"x": "to_integer(data.p)", "y": "data.p == 1"}), [{"p": digits}, {"p": "0" * 5000 + "7"}]
    )
    assert [row["x"] for row in result.rows] == [None, 7]
    assert [count for count, _ in result.warnings.values()] == [1]
    mapper = mapper_of({"x": "data.p"})
    line = b'{"event": "Buy", "properties": {"$insert_id": "i", "p": %s}}\n'
    decoder = Decoder(mapper.paths, max_line_bytes=1 << 20, max_raw_bytes=100, kinds_of=mapper.kinds_of)
    decoded = decoder.decode(Block(line % digits.encode() + line % b"[-9223372036854775808, NaN]"))
    decoder.close()
    batch = mapper.map(decoded.texts[: len(mapper.paths)], decoded.kinds[: len(mapper.paths)], CONTEXT).batch
    assert batch.to_pylist() == [{"x": "Infinity"}, {"x": '[-9223372036854775808,"NaN"]'}]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("explode(data.p, data.q)", "REGEX is refused: missing )"),
        ("data.p =~ data.q", "=~: the pattern is refused: missing )"),
        ("str_to_object(data.p, data.q)", "STRING has a field without VALUE_DELIMITER"),
    ],
)
def test_there_are_not_as_many_warnings_as_rows_that_fail(expression: str, reason: str) -> None:
    events = [{"p": "a", "q": f"x{number}("} for number in range(20)]
    result = Result(mapper_of({"x": expression}), events)
    ((message, (count, sample)),) = result.warnings.items()
    assert reason in message
    assert (count, sample) == (20, '"a", "x0("')


def test_one_reason_at_several_places_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = mapper_of({"x": "to_integer(data.p) + to_integer(data.q)"})
    pairs = [(1, "first"), ("second", 1), (1, 1), ("third", 1)]
    events = [{"p": one, "q": other} for one, other in pairs]
    message = "x: to_integer: STRING is a string that does not make an integer; the field is null."
    assert Result(mapper, events).warnings == {message: (3, '1, "first"')}
    # the same of a block that is taken in halves
    monkeypatch.setattr("worker.mapping.functions.base.MAX_MADE_BYTES", 70)
    assert Result(mapper, events).warnings == {message: (3, '1, "first"')}


def test_facts_of_the_flow() -> None:
    result = Result(mapper_of({"a": "[_flow.projectId, _flow.timezone, _flow.timeBasis]", "b": "data._flow.x"}), [{}])
    assert result.rows == [{"a": '["2384945","America/Los_Angeles","project"]', "b": None}]
    assert Result(mapper_of({"a": "_flow.projectId", "b": "event"}, kind="ATTRIBUTE"), [{}]).rows[0]["a"] == "2384945"
    with pytest.raises(ConfigurationError, match=r"no such fact of a flow\. There are _flow\.projectId"):
        mapper_of({"a": "_flow.project"})


def test_the_type_of_a_column_without_a_schema_is_that_of_the_result() -> None:
    mapper = mapper_of(
        {
            "a": "size_of(data.p)",
            "b": "data.p == 1",
            "c": "data.p + 1",
            "d": "true ? to_integer(data.p) : 5",
            "e": "data.p == 1 ? 1 : 'x'",
            "f": "to_decimal(data.p)",
            "g": "[data.p]",
        }
    )
    types = {field.name: field.type for field in mapper.schema}
    assert types == {
        "a": pa.int64(),
        "b": pa.bool_(),
        "c": pa.string(),
        "d": pa.int64(),
        "e": pa.string(),
        "f": pa.float64(),
        "g": pa.string(),
    }


def test_what_fails_is_null_counted_and_shown() -> None:
    result = Result(
        mapper_of({"x": "to_integer(data.p)", "y": "data.q"}), [{"p": "12"}, {"p": "many", "q": 1}, {"p": "few"}, {}]
    )
    assert [row["x"] for row in result.rows] == [12, None, None, None]
    assert [row["y"] for row in result.rows] == [None, "1", None, None]
    ((message, (count, sample)),) = result.warnings.items()
    assert message.startswith("x: ")
    assert message.endswith("; the field is null.")
    assert (count, sample) == (2, "many")
    assert result.codes == {WARNING_CODE}


def test_what_fails_within_is_not_made_good_again() -> None:
    """Adobe: a failing transformation sets the field to null, whatever is around what failed."""
    result = Result(mapper_of({"x": "coalesce(to_integer(data.p), 7)"}), [{"p": "1"}, {"p": "a"}, {}])
    assert [row["x"] for row in result.rows] == ["1", None, "7"]
    assert len(result.warnings) == 1


@pytest.mark.parametrize(
    "expression",
    [
        "data.p =~ '[0-9]+' ? to_integer(data.p) : 0",
        "iif(data.p =~ '[0-9]+', to_integer(data.p), 0)",
        "data.p =~ '[0-9]+' && to_integer(data.p) > 0 ? to_integer(data.p) : 0",
    ],
)
def test_a_branch_that_is_not_taken_does_not_fail(expression: str) -> None:
    assert [int(value) for value in values(expression, {"p": "12"}, {"p": "x"}, {"p": "y1"})] == [12, 0, 0]


def test_logic_stops_where_it_is_decided() -> None:
    events: list[dict[str, Any]] = [{"p": None}, {"p": False}, {"p": "a"}, {"p": 0}]
    assert values("data.p ?? 'none'", *events) == ["none", "false", "a", "0"]
    assert values("data.p ?: 'none'", *events) == ["none", "none", "a", "0"]
    assert values("data.p == null || data.p == 'a'", *events) == [True, False, True, False]
    assert values("not (data.p eq 'a') and data.p ne null", *events) == [False, True, False, True]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("data.list[0].name", "a"),
        ("data.list[-1].name", "c"),
        ("data.list[1]['name']", None),
        ("data.list[7].name", None),
        ("data.list.name", None),
        ("data.list[*].name", '["a",null,"c"]'),
        ("data.list[*].tags[*]", '[["x","y"],null,[]]'),
        ("data.list[*].tags[0]", '["x",null,null]'),
        ("data.tree.a.b", "1"),
        ("data['tree']['a']['b']", "1"),
        ("data.tree['a'].b + 1", "2"),
        ("data.tree.missing.b", None),
        ("{'n': data.tree.a, data.key: 'v'}", '{"n":{"b":1},"k":"v"}'),
        ("[]", "[]"),
        ("{}", "{}"),
        ("$insert_id", "i"),
        ("${insert_id}", "i"),
        ("properties.$insert_id", "i"),
        ("event", "Buy"),
        ("data.event_name", "Buy"),
    ],
)
def test_paths_and_literals(expression: str, expected: str | None) -> None:
    event = {
        "list": [{"name": "a", "tags": ["x", "y"]}, {"nam": "b"}, {"name": "c", "tags": []}],
        "tree": {"a": {"b": 1}},
        "key": "k",
    }
    # one that reads nothing needs a neighbour that does
    result = Result(mapper_of({"x": expression, "y": "event"}), [event, {}])
    assert result.rows[0]["x"] == expected


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("filterArray(data.p, x -> x > 0)", "destinations only"),
        ("aa_get_event_id(data.p, 'e')", "Web SDK or Adobe Analytics"),
        ("data.p.toLowerCase()", r"no method \.toLowerCase\(\)\. The methods are .*equals"),
        ("equals(data.p, 'a')", r"equals is a method\. Write it behind its value"),
        ("size_of()", r"size_of does not take 0 arguments\. It is size_of\(INPUT\)"),
        ("99999999999999999999", "does not fit 64 bits"),
        ("contains_key(1)", "wants a path in quotes"),
        ("to_integer('x')", "to_integer"),
        ("data.event_name.x", "the event's name is a text"),
        ("data.p -> data.p", "column"),
    ],
)
def test_what_cannot_work_is_refused_before_any_row(expression: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        mapper_of({"a": "event", "x": expression})
    assert "mapping 2 → x: column " in str(refused.value)


# Types of the target


SCHEMA = of(
    list=array(of(name=STRING, amount=LONG)),
    tags=array(STRING),
    cart=of(id=STRING, total=NUMBER, items=array(of(sku=STRING))),
    any={"type": "object", "meta:xdmType": "map", "additionalProperties": LONG},
    when={"type": "string", "format": "date-time"},
    day={"type": "string", "format": "date"},
    flag={"type": "boolean"},
    count=LONG,
)


@pytest.mark.parametrize("kind", ["ATTRIBUTE", "EXPRESSION"])
def test_arrays_and_objects_are_copied(kind: str) -> None:
    mapper = mapper_of({"list": "data.l", "tags": "data.t", "cart": "data.c", "any": "data.m"}, SCHEMA, kind)
    result = Result(
        mapper,
        [
            {
                "l": [{"name": "a", "amount": 1, "more": 2}, {"name": None}, None],
                "t": ["x", 5, None],
                "c": {"id": 7, "total": "1.5", "items": [{"sku": "s"}], "else": 0},
                "m": {"a": 1, "b": "2"},
            },
            {},
            {"l": [], "t": [], "c": {}, "m": {}},
        ],
    )
    assert result.rows == [
        {
            "list": [{"name": "a", "amount": 1}, {"name": None, "amount": None}, None],
            "tags": ["x", "5", None],
            "cart": {"id": "7", "total": 1.5, "items": [{"sku": "s"}]},
            "any": [("a", 1), ("b", 2)],
        },
        {"list": None, "tags": None, "cart": None, "any": None},
        {"list": [], "tags": [], "cart": {"id": None, "total": None, "items": None}, "any": []},
    ]
    assert not result.warnings


def test_what_does_not_fit_within_a_copy_is_null_and_counted() -> None:
    result = Result(
        mapper_of({"list": "data.l", "count": "data.n", "flag": "data.f"}, SCHEMA, "ATTRIBUTE"),
        [{"l": [{"name": "a", "amount": "many"}, {"name": "b", "amount": 2}]}, {"l": "text"}, {"n": [1], "f": "maybe"}],
    )
    assert result.rows[0]["list"] == [{"name": "a", "amount": None}, {"name": "b", "amount": 2}]
    assert result.rows[1]["list"] is None
    (about_list,) = [message for message in result.warnings if message.startswith("list: ")]
    assert result.warnings[about_list] == (2, '[{"name":"a","amount":"many"},{"name":"b","amount":2}]')
    assert sum(count for count, _ in result.warnings.values()) == 4


def test_elements_of_arrays_as_destinations() -> None:
    """Adobe's one sample of `[*]` can be read two ways: here a field gets the element's value itself."""
    mapper = mapper_of(
        {"pi[*].names": "data.emails[*].name", "pi[*].n": "data.numbers", "two[1].a": "data.a", "two[0].b": "data.b"},
        of(pi=array(of(names=STRING, n=LONG)), two=array(of(a=STRING, b=STRING))),
    )
    result = Result(
        mapper,
        [
            {"emails": [{"name": "John"}, {"name": "Ann"}], "numbers": [1, 2, 3], "a": "x"},
            {"emails": [], "b": "y"},
            {"a": "x", "b": "y"},
            {},
        ],
    )
    assert result.rows == [
        {
            "pi": [{"names": "John", "n": 1}, {"names": "Ann", "n": 2}, {"names": None, "n": 3}],
            "two": [None, {"b": None, "a": "x"}],
        },
        {"pi": [], "two": [{"b": "y", "a": None}, None]},
        {"pi": None, "two": [{"b": "y", "a": None}, {"b": None, "a": "x"}]},
        {"pi": None, "two": None},
    ]


def test_a_required_field_that_ends_null_rejects_the_row_and_says_why() -> None:
    schema = of(count=LONG, _id=STRING) | {"required": ["count", "_id"]}
    result = Result(
        mapper_of({"count": "to_integer(data.n)", "_id": "data.i"}, schema),
        [{"n": "1", "i": "a"}, {"n": "x", "i": "b"}, {"n": "2"}, {"i": "c"}],
    )
    assert set(result.rejected) == {1, 2, 3}
    assert result.rejected[1].startswith("The required field count is null: ")
    assert result.rejected[2] == "The required field _id is missing or null."
    assert not result.warnings
    assert REJECT_CODE.startswith("INGEST-")


ITEM = of(sku=STRING, price=NUMBER, maker=of(name=STRING, city=STRING) | {"required": ["name"]}) | {"required": ["sku"]}
BY_KEY = {"type": "object", "additionalProperties": ITEM}


@pytest.mark.parametrize("kind", ["ATTRIBUTE", "EXPRESSION"])
def test_what_elements_must_have_rejects_the_row(kind: str) -> None:
    schema = of(cart=of(items=array(ITEM)), by=BY_KEY, one=ITEM, two=array(array(ITEM)))
    sources = {"cart.items": "data.items", "by": "data.by", "one": "data.one", "two": "data.two"}
    whole, lacking, no_maker = {"sku": "a"}, {"price": 1}, {"sku": "a", "maker": {"city": "Oslo"}}
    result = Result(
        mapper_of(sources, schema, kind),
        [
            {},
            {"items": [], "by": {}, "two": [[], [whole]]},
            {"items": [whole, None, {**whole, "maker": None}], "by": {"x": whole, "y": None}, "one": whole},
            {"items": [whole, lacking]},
            {"items": None, "by": {"x": whole, "y": lacking}},
            {"one": lacking},
            {"items": [whole, no_maker]},
            {"two": [[whole], [whole, lacking]]},
            {"items": [whole], "two": [None, []]},
        ],
    )
    assert result.rejected == {
        3: "The required field cart.items[*].sku is missing or null.",
        4: "The required field by[*].sku is missing or null.",
        5: "The required field one.sku is missing or null.",
        6: "The required field cart.items[*].maker.name is missing or null.",
        7: "The required field two[*][*].sku is missing or null.",
    }


def test_what_mapped_elements_must_have() -> None:
    schema = of(items=array(ITEM), first=array(ITEM))
    sources = {"items[*].sku": "data.items[*].sku", "items[*].price": "data.items[*].price", "first[0].sku": "data.s",
               "first[0].price": "data.p", "first[1].sku": "data.t"}  # fmt: skip
    result = Result(
        mapper_of(sources, schema),
        [
            {"items": [{"sku": "a", "price": 1}, {"sku": "b"}], "s": "x"},
            {"items": [{"sku": "a"}, {"price": 2}]},
            {"p": 5, "t": "y"},
            {"t": "y"},
        ],
    )
    assert result.rejected == {
        1: "The required field items[*].sku is missing or null.",
        2: "The required field first[*].sku is missing or null.",
    }
    with pytest.raises(ConfigurationError, match=r"requires fields that no mapping sets: items\[\*\]\.sku\."):
        mapper_of({"items[*].price": "data.items[*].price"}, schema)


PROPERTIES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["1", "2.5", "true", "2024-02-29", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
EVENTS = st.lists(st.fixed_dictionaries({}, optional={"p": PROPERTIES, "q": PROPERTIES}), min_size=1, max_size=8)
EXPRESSIONS = [
    "data.p",
    "[data.p, data.q]",
    "data.p == data.q ? data.p : {'other': data.q}",
    "data.p[*].a",
    "data.p[0]",
    "data.p ?? data.q",
    "size_of(data.p)",
    "data.p + data.q",
    "data.p && data.q",
    "coalesce(data.p, data.q)",
]


@settings(deadline=None, max_examples=50)
@given(events=EVENTS, expression=st.sampled_from(EXPRESSIONS))
def test_a_row_becomes_the_same_whatever_its_neighbours_are(events: list[dict[str, Any]], expression: str) -> None:
    mapper = mapper_of({"x": expression, "list[*].y": "data.q", "two[1]": "data.p"})
    together = Result(mapper, events)
    alone = [Result(mapper, [event]) for event in events]
    assert together.rows == [one.rows[0] for one in alone]
    counts: dict[str, int] = {}
    for one in alone:
        for message, (count, _) in one.warnings.items():
            counts[message] = counts.get(message, 0) + count
    assert {message: count for message, (count, _) in together.warnings.items()} == counts


ALIKE = [
    "upper(data.p)",
    "concat(upper(data.p), lower(data.q))",
    "to_integer(data.p) + 1",
    "size_of(data.p) > 1 ? to_integer(data.p) : upper(data.q)",
    "[upper(data.p), to_integer(data.p), upper(data.p)]",
    "lower(data.q) ?? to_integer(data.p)",
]


@settings(deadline=None, max_examples=40)
@given(events=EVENTS, chosen=st.lists(st.sampled_from(ALIKE), min_size=2, max_size=5))
def test_calls_that_expressions_share_give_what_they_give_alone(
    events: list[dict[str, Any]], chosen: list[str]
) -> None:
    together = Result(mapper_of({f"x{number}": expression for number, expression in enumerate(chosen)}), events)
    for number, expression in enumerate(chosen):
        alone = Result(mapper_of({f"x{number}": expression}), events)
        assert [row[f"x{number}"] for row in together.rows] == [row[f"x{number}"] for row in alone.rows]
        theirs = {message: found for message, found in together.warnings.items() if message.startswith(f"x{number}:")}
        assert theirs == alone.warnings


def test_every_row_and_every_call_gets_its_own_identifier() -> None:
    result = Result(mapper_of({"a": "uuid()", "b": "uuid()", "c": "[uuid(), event]"}), [{"p": 1}] * 20)
    assert len({row[name] for row in result.rows for name in "abc"}) == 60


@settings(deadline=None, max_examples=50)
@given(events=EVENTS)
def test_a_copy_into_text_is_the_json_of_the_event(events: list[dict[str, Any]]) -> None:
    rows = Result(mapper_of({"x": "[data.p]"}), events).rows
    for event, row in zip(events, rows, strict=True):
        assert json.loads(row["x"]) == [event.get("p")]
