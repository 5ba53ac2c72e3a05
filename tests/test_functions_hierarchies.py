"""Functions of objects, maps, arrays and JSON: the documented examples, a plain reference, and rows on their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, FAILED, SCALARS, TEXTS, TREES, check_rows_alone, of, over
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import MAX_ITEMS, Call
from worker.mapping.functions.json_documents import MAX_DEPTH
from worker.mapping.values import Items, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOK = {"author": "George R. R. Martin", "price": 17.99, "ISBN": "ISBN-978-0553801477"}
OTHER_BOOK = {"author": "Neil Gaiman", "price": 17.99, "ISBN": "ISBN-0-380-97365-0", "publisher": "William Morrow"}
ADDRESS = {"line1": "345 park ave", "line2": "bldg 2", "City": "san jose", "State": "CA", "type": "office"}
HOME = {"line1": "345 park ave", "type": "home"}
WORK = {"line1": "345 park ave", "type": "work"}
PERSON = "firstName - John ; lastName - ; phone - 123 456 7890"
INFO = {"info": {"firstName": "John", "lastName": "Doe"}}
JOHN = {"firstName": "John", "lastName": "Doe"}

EXAMPLES: list[tuple[str, tuple[object, ...], object]] = [
    ("is_empty", ([1, None, 2, 3],), False),
    ("arrays_to_objects", ("sku", ["id1", "id2"], "price", [22.5, 14.35]), [
        {"sku": "id1", "price": 22.5}, {"sku": "id2", "price": 14.35}
    ]),
    ("to_object", ("firstName", "John", "lastName", "Doe"), JOHN),
    ("str_to_object", ("firstName - John ; lastName - ; - 123 345 7890", "-", ";"),
     {"firstName": "John", "lastName": "", "": "123 345 7890"}),
    ("get_keys", ({"book1": "Pride and Prejudice", "book2": "1984"},), ["book1", "book2"]),
    ("get_values", ("firstName - John , lastName - Cena , phone - 555 420 8692", "firstName", "-", ","), "John"),
    ("map_get_values", (BOOK, "author"), "George R. R. Martin"),
    ("map_get_values", (BOOK, ["author"]), {"author": "George R. R. Martin"}),
    ("map_has_keys", (BOOK, "author"), True),
    ("add_to_map", (BOOK, OTHER_BOOK), {**BOOK, "publisher": "William Morrow"}),
    ("object_to_map", ("firstName", "John", "lastName", "Doe"), JOHN),
    ("object_to_map", (ADDRESS,), ADDRESS),
    ("object_to_map", ([HOME, WORK], "type"), {"home": HOME, "work": WORK}),
    ("array_to_map", ([HOME, WORK], "type"), {"home": HOME, "work": WORK}),
    ("to_map", ("firstName", "John", "lastName", "Doe"), JOHN),
    ("coalesce", (None, None, None, "first", None, "second"), "first"),
    ("first", ("1", "2", "3"), "1"),
    ("last", ("1", "2", "3"), "3"),
    ("add_to_array", (["a", "b"], "c", "d"), ["a", "b", "c", "d"]),
    ("join_arrays", (["a", "b"], ["c"], ["d", "e"]), ["a", "b", "c", "d", "e"]),
    ("to_array", (False, 1, None, 2, 3), [1, 2, 3]),
    ("size_of", ([1, 2, 3, 4],), 4),
    ("upsert_array_append", ([123, 456],), [123, 456]),
    ("upsert_array_replace", ([123, 456], 1), [123, 456]),
    ("json_to_object", (INFO,), INFO),
    ("json_to_object", (json.dumps(INFO),), INFO),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "value"), EXAMPLES)
def test_the_documented_examples(name: str, arguments: tuple[object, ...], value: object) -> None:
    assert of(name, *arguments) == value
    # of columns in which every other row is null: what these give is each function's own matter
    rows = [[argument if row % 2 else None for row in range(10)] for argument in arguments]
    assert over(name, *rows)[1::2] == [value] * 5
    assert value in [example.value for example in REGISTRY.by_name[name].examples]


def test_get_takes_what_str_to_object_makes() -> None:
    made = of("str_to_object", PERSON, "-", ";")
    assert made == {"firstName": "John", "lastName": "", "phone": "123 456 7890"}
    assert of("get", made, "firstName") == "John"
    assert of("get", made, "nickname") is None


def test_nullify_is_null() -> None:
    call = Call(3)
    assert REGISTRY.by_name["nullify"].evaluate(call).to_pylist() == [None] * 3
    assert not call.failed.any()


KEYS = st.sampled_from(["a", "b", "", "é", "c"])
OBJECTS = st.dictionaries(KEYS, TREES, max_size=3)
ARRAYS = st.lists(TREES, max_size=4)
PAIRS = (
    st.sampled_from(["a:1,b:2", " a : 1 ", "a;1|b;2", "a::1", "a", "a:1,,", ":", "a:1,a:2", "é:😀,b", "a-1,b-2"])
    | TEXTS
)
DELIMITERS = st.sampled_from([":", ",", "-", "", None, "::", ";", "|", "é"])
BOOLEANS = st.sampled_from([True, False, "yes", "NO", None])
DOCUMENTS = TREES.map(json.dumps) | TEXTS | OBJECTS

OPERANDS: dict[str, tuple[st.SearchStrategy[object], ...]] = {
    "is_empty": (ANYTHING,),
    "contains_key": (ANYTHING,),
    "size_of": (ANYTHING,),
    "to_object": (KEYS, ANYTHING, SCALARS, SCALARS),
    "arrays_to_object": (KEYS, ARRAYS, SCALARS, ARRAYS),
    "get_keys": (OBJECTS,),
    "get": (OBJECTS, KEYS),
    "str_to_object": (PAIRS, DELIMITERS, DELIMITERS),
    "get_values": (PAIRS | OBJECTS, KEYS, DELIMITERS, DELIMITERS),
    "coalesce": (ANYTHING,),
    "first": (ANYTHING,),
    "last": (ANYTHING,),
    "to_array": (BOOLEANS, ANYTHING, SCALARS),
    "add_to_array": (ARRAYS, ANYTHING, SCALARS),
    "join_arrays": (ARRAYS, ARRAYS, ARRAYS),
    "upsert_array_append": (ARRAYS,),
    "upsert_array_replace": (ARRAYS, SCALARS),
    "map_get_values": (OBJECTS, KEYS | st.lists(KEYS | SCALARS, max_size=4)),
    "map_has_keys": (OBJECTS, KEYS | st.lists(KEYS | SCALARS, max_size=4)),
    "add_to_map": (OBJECTS, OBJECTS, OBJECTS),
    "to_map": (KEYS, ANYTHING, KEYS, SCALARS),
    "object_to_map": (KEYS | st.lists(OBJECTS, max_size=3), KEYS),
    "array_to_map": (st.lists(OBJECTS, max_size=3), KEYS),
    "json_to_object": (DOCUMENTS,),
}


def columns(operands: Sequence[st.SearchStrategy[object]]) -> st.SearchStrategy[list[tuple[object, ...]]]:
    """Rows of what a function expects; now and then something else, or null."""
    widened = [st.one_of(operand, operand, operand, operand, st.none(), ANYTHING) for operand in operands]
    return st.lists(st.tuples(*widened), min_size=1, max_size=6)


@pytest.mark.parametrize(("name", "operands"), OPERANDS.items())
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    name: str, operands: tuple[st.SearchStrategy[object], ...], data: st.DataObject
) -> None:
    rows = data.draw(columns(operands))
    check_rows_alone(REGISTRY.by_name[name].evaluate, *zip(*rows, strict=True))


@pytest.mark.parametrize("name", ["coalesce", "first", "last"])
@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING), min_size=1, max_size=6))
def test_a_row_of_several_arguments_does_not_depend_on_its_neighbours(
    name: str, rows: list[tuple[object, ...]]
) -> None:
    check_rows_alone(REGISTRY.by_name[name].evaluate, *zip(*rows, strict=True))


@settings(deadline=None)
@given(rows=st.lists(st.tuples(OBJECTS, KEYS, st.lists(KEYS, max_size=4)), min_size=1, max_size=6))
def test_maps_are_looked_up_as_dicts(rows: list[tuple[dict[str, object], str, list[str]]]) -> None:
    maps, keys, several = (list(column) for column in zip(*rows, strict=True))
    single = [json.loads(json.dumps(row.get(key))) for row, key in zip(maps, keys, strict=True)]
    assert over("map_get_values", maps, keys) == over("get", maps, keys) == _as_json(single)
    assert over("map_get_values", maps, several) == _as_json(
        [{key: row[key] for key in wanted if key in row} for row, wanted in zip(maps, several, strict=True)]
    )
    assert over("map_has_keys", maps, keys) == [key in row for row, key in zip(maps, keys, strict=True)]
    assert over("map_has_keys", maps, several) == [
        any(key in row for key in wanted) for row, wanted in zip(maps, several, strict=True)
    ]
    assert over("get_keys", maps) == [list(row) for row in maps]


def _as_json(rows: list[Any]) -> list[Any]:
    """What a column of values keeps of these: no number but finite ones of 64 bits."""
    return Values.from_python(rows).to_pylist()


@settings(deadline=None)
@given(rows=st.lists(st.tuples(OBJECTS, OBJECTS, OBJECTS), min_size=1, max_size=6))
def test_of_several_maps_the_first_counts(rows: list[tuple[dict[str, object], ...]]) -> None:
    assert over("add_to_map", *zip(*rows, strict=True)) == _as_json([{**row[2], **row[1], **row[0]} for row in rows])


@settings(deadline=None)
@given(rows=st.lists(st.tuples(ARRAYS, ARRAYS), min_size=1, max_size=6))
def test_arrays_are_joined_as_lists(rows: list[tuple[list[object], list[object]]]) -> None:
    arrays, others = (list(column) for column in zip(*rows, strict=True))
    assert over("join_arrays", arrays, others) == _as_json([left + right for left, right in rows])
    assert over("add_to_array", arrays, others) == _as_json([[*left, right] for left, right in rows])
    assert over("first", arrays) == _as_json([row[0] if row else None for row in arrays])
    assert over("last", arrays) == _as_json([row[-1] if row else None for row in arrays])
    assert over("coalesce", arrays) == [
        next((item for item in row if item is not None), None) for row in _as_json(arrays)
    ]
    assert over("size_of", arrays) == [len(row) for row in arrays]
    assert over("is_empty", arrays) == [not row for row in arrays]


def pairs_reference(text: str, between: str, after: str) -> object:
    made: dict[str, str] = {}
    for field in text.split(after):
        key, delimiter, value = field.partition(between)
        if delimiter:
            made[key.strip()] = value.strip()
        elif field.strip():
            return FAILED
    return made


@settings(deadline=None)
@given(rows=st.lists(st.tuples(PAIRS, DELIMITERS, DELIMITERS, KEYS), min_size=1, max_size=6))
def test_strings_are_split_into_pairs(rows: list[tuple[str, str | None, str | None, str]]) -> None:
    texts, betweens, afters, keys = (list(column) for column in zip(*rows, strict=True))
    expected = [pairs_reference(text, between or ":", after or ",") for text, between, after, _ in rows]
    assert over("str_to_object", texts, betweens, afters) == expected
    assert over("get_values", texts, keys, betweens, afters) == [
        made.get(key) if isinstance(made, dict) else made for made, key in zip(expected, keys, strict=True)
    ]
    plain = [pairs_reference(text, ":", ",") for text in texts]
    assert over("str_to_object", texts) == plain


def test_delimiters_are_no_regular_expressions() -> None:
    assert of("str_to_object", "a.1|b.2", ".", "|") == {"a": "1", "b": "2"}
    assert of("get_values", "a=1=2;b=3", "a", "=", ";") == "1=2"


def test_arrays_of_objects_and_what_cannot_be_made_of_them() -> None:
    assert of("arrays_to_object", "a", [1, None], "b", [[], {}]) == [{"a": 1, "b": []}, {"a": None, "b": {}}]
    assert of("arrays_to_object", "a", [1, 2], "b", [1]) is FAILED
    assert of("arrays_to_object", "a", [1], "b", None) is None
    assert of("arrays_to_object", None, [1]) is FAILED
    assert of("arrays_to_object", "a", []) == []
    assert of("arrays_to_object", "a", [1], "b") is FAILED
    assert of("to_object", "a", 1, "b") is FAILED
    assert of("to_object", None, 1) is FAILED
    assert of("to_object", "a", None) == {"a": None}
    assert of("to_object", "a", 1, "a", 2) == {"a": 2}
    assert of("to_object", 1, True, False, None) == {"1": True, "false": None}
    assert of("to_object", [], 1) is FAILED


def test_maps_of_what_is_missing() -> None:
    assert of("to_map", None) is None
    assert of("object_to_map", None) is None
    assert of("object_to_map", None, "type") is None
    assert of("array_to_map", None, "type") is None
    assert of("array_to_map", [HOME], None) is None
    assert of("array_to_map", [HOME, None], "type") is FAILED
    assert of("array_to_map", [HOME, 1], "type") is FAILED
    assert of("array_to_map", [HOME, {"type": None}], "type") is FAILED
    assert of("array_to_map", [HOME, {"type": []}], "type") is FAILED
    assert of("array_to_map", [{"type": 7}], "type") == {"7": {"type": 7}}
    assert of("array_to_map", [], "type") == {}
    assert of("map_get_values", BOOK, None) is None
    assert of("map_get_values", BOOK, ["title", None]) == {}
    assert of("map_get_values", BOOK, [["title"]]) is FAILED
    assert of("map_has_keys", BOOK, None) is None
    assert of("map_has_keys", BOOK, []) is False
    assert of("map_has_keys", {"a": None}, "a") is True
    assert of("map_has_keys", "a", "a") is FAILED
    assert of("add_to_map", BOOK, None) is None
    assert of("get_values", {"a": 1}, "a", ":") == 1


def test_what_is_empty_and_what_has_a_size() -> None:
    empty = [None, "", [], {}, " ", 0, False, [None], {"": None}]
    assert over("is_empty", empty) == [True, True, True, True, False, False, False, False, False]
    assert over("size_of", empty) == [None, 0, 0, 0, 1, FAILED, FAILED, 1, 1]
    assert of("size_of", "a😀é") == 3
    assert over("contains_key", empty) == [False] + [True] * 8


def test_arrays_of_nothing() -> None:
    assert of("to_array", True) == []
    assert of("to_array", False) == []
    assert of("to_array", None, 1) is None
    assert of("to_array", True, None, 1) == [None, 1]
    assert of("to_array", "perhaps", 1) is FAILED
    assert of("add_to_array", None, 1) is None
    assert of("add_to_array", [1], None) == [1, None]
    assert of("join_arrays", [1], None) is None
    assert of("join_arrays", [1], 2) is FAILED
    assert of("coalesce", None, [None, 1]) == [None, 1]
    assert of("coalesce", "a") == "a"
    assert over("first", [[7, 8], "a", [], None]) == [7, "a", None, None]


def test_an_array_does_not_grow_without_bounds() -> None:
    half = MAX_ITEMS // 2 + 1
    arrays = Values.items(Items.of_lengths(np.array([half, 1]), Values.repeat(1, half + 1)))
    call = Call(2)
    joined = REGISTRY.by_name["join_arrays"].evaluate(call, arrays, arrays)
    assert call.failed.tolist() == [True, False]
    assert joined.is_null().tolist() == [True, False]


def documents(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("1", 1), ("1.0", 1.0), ('"a"', "a"), ("true", True), (" [1, 2] ", [1, 2]),
        ('{"a":1,"a":2}', {"a": 2}), ("18446744073709551616", 2.0**64), ("", FAILED), ("{", FAILED), ("NaN", FAILED),
        ("1 2", FAILED), ("1e999", FAILED), ('"\\ud800"', FAILED), ("{'a':1}", FAILED),
        (documents(MAX_DEPTH + 1), FAILED), (json.dumps(["[" * (MAX_DEPTH + 1)]), ["[" * (MAX_DEPTH + 1)]),
        (json.dumps(['"' + "{" * (MAX_DEPTH + 1)]), ['"' + "{" * (MAX_DEPTH + 1)]),
        ("[" + "[]," * MAX_DEPTH + "[]]", [[]] * (MAX_DEPTH + 1)),
        (documents(100_000), FAILED),
    ],
)  # fmt: skip
def test_json_is_read_or_refused(text: str, value: object) -> None:
    assert of("json_to_object", text) == value


def test_json_of_the_greatest_depth_is_read_and_written() -> None:
    text = documents(MAX_DEPTH)
    call = Call(1)
    value = REGISTRY.by_name["json_to_object"].evaluate(call, Values.repeat(text, 1))
    assert value.to_json().to_pylist() == [text]


def test_json_is_wanted_as_a_string() -> None:
    assert over("json_to_object", [1, True, 2.5, None, [1], {"a": 1}]) == [FAILED, FAILED, FAILED, None, [1], {"a": 1}]
