"""Functions that choose, compare and convert: the documented examples, a plain reference, and rows on their own."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import (
    ANYTHING,
    DATES,
    DECIMALS,
    FAILED,
    INTEGERS,
    SCALARS,
    TEXTS,
    check_rows_alone,
    column_of,
    of,
    over,
)
from worker.mapping.functions import REGISTRY

STATES = ("ca", "California", "pa", "Pennsylvania", "N/A")
EXAMPLES: list[tuple[str, tuple[object, ...], object]] = [
    ("decode", ("ca", *STATES), "California"),
    ("decode", ("pa", *STATES), "Pennsylvania"),
    ("decode", ("wa", *STATES), "N/A"),
    ("iif", (True, "True", "False"), "True"),
    ("min", (3, 1, 4), 1),
    ("max", (3, 1, 4), 4),
    ("to_bigint", ("1000000",), 1000000),
    ("to_decimal", ("20.5",), 20.5),
    ("to_float", ("12.3456",), 12.345600128173828),
    ("to_integer", ("12",), 12),
]


@pytest.mark.parametrize(("name", "arguments", "value"), EXAMPLES)
def test_the_documented_examples(name: str, arguments: tuple[object, ...], value: object) -> None:
    assert of(name, *arguments) == value
    # of columns in which every other row is null: what these give is each function's own matter
    rows = [[argument if row % 2 else None for row in range(10)] for argument in arguments]
    assert over(name, *rows)[1::2] == [value] * 5
    assert value in [made.value for made in REGISTRY.by_name[name].examples]


NUMERIC = INTEGERS | DECIMALS | st.integers(-9, 9)
CONDITIONS = st.sampled_from([True, False, None, 0, 1, -0.0, 0.5, "yes", "NO", "true", "maybe"])
OPERANDS: dict[str, tuple[st.SearchStrategy[object], ...]] = {
    "iif": (CONDITIONS, ANYTHING, ANYTHING),
    "decode": (SCALARS, SCALARS, ANYTHING, SCALARS, ANYTHING, ANYTHING),
    "min": (NUMERIC, NUMERIC, NUMERIC),
    "max": (NUMERIC | TEXTS, NUMERIC | TEXTS),
    "to_bigint": (SCALARS,),
    "to_integer": (SCALARS,),
    "to_decimal": (SCALARS,),
    "to_float": (SCALARS,),
}


@pytest.mark.parametrize(("name", "operands"), OPERANDS.items())
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    name: str, operands: tuple[st.SearchStrategy[object], ...], data: st.DataObject
) -> None:
    widened = [st.one_of(operand, operand, operand, operand, st.none(), ANYTHING) for operand in operands]
    rows = data.draw(st.lists(st.tuples(*widened), min_size=1, max_size=6))
    check_rows_alone(REGISTRY.by_name[name].evaluate, *zip(*rows, strict=True))


SAME_KIND = st.one_of(*(st.lists(kind, max_size=6) for kind in (NUMERIC, TEXTS, st.booleans(), INTEGERS, SCALARS)))


@pytest.mark.parametrize("name", ["min", "max", "decode"])
@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(SAME_KIND | ANYTHING), min_size=1, max_size=6))
def test_a_row_of_one_array_does_not_depend_on_its_neighbours(name: str, rows: list[tuple[object]]) -> None:
    arrays = [row for (row,) in rows]
    key = [0] * len(arrays)
    check_rows_alone(REGISTRY.by_name[name].evaluate, *([key, arrays] if name == "decode" else [arrays]))


# One value of several


def family(value: object) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def best(values: list[Any], *, largest: bool) -> object:
    if not values or any(value is None for value in values):
        return None
    families = {family(value) for value in values}
    if len(families) > 1 or families & {list, dict}:
        return FAILED
    exact = [Fraction(value) if families == {float} else value for value in values]
    # the first of several
    return values[exact.index(max(exact) if largest else min(exact))]


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(SAME_KIND | st.lists(DATES.map(str)), min_size=1, max_size=6))
@example(rows=[[2**53 + 1, 2.0**53], [2.0**53, 2**53 + 1], [2**63 - 1, 2.0**63], [1, 1.0], [1.0, 1], [True, 1]])
@example(rows=[["b", "a", "é", "😀"], ["10", "9"], [[1]], [None, [1]], [{}, 1], [], [None]])
@example(rows=[list(range(99)), list(range(99, 0, -1))])
def test_the_best_of_an_array(rows: list[list[Any]]) -> None:
    for name, largest in (("min", False), ("max", True)):
        expected = [best(row, largest=largest) for row in rows]
        found = over(name, rows)
        assert [(type(value), value) for value in found] == [(type(value), value) for value in expected]


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(st.lists(NUMERIC | SCALARS, min_size=3, max_size=3), min_size=1, max_size=6))
@example(rows=[[1, 2, 3], [3, 2, 1], [2, 3, 1]])
@example(rows=[["a", "b", "c"], ["c", "b", "a"]])
@example(rows=[["a", "b", "c"], ["c", "b", None]])
def test_the_best_of_several_arguments(rows: list[list[Any]]) -> None:
    columns = list(zip(*rows, strict=True))
    for name, largest in (("min", False), ("max", True)):
        expected = [best(row, largest=largest) for row in rows]
        found = over(name, *columns)
        assert [(type(value), value) for value in found] == [(type(value), value) for value in expected]


@settings(deadline=None)
@given(rows=st.lists(st.tuples(DATES, DATES), min_size=1, max_size=6))
def test_dates_have_the_order_of_their_instants(rows: list[tuple[Any, Any]]) -> None:
    left, right = (column_of(column) for column in zip(*rows, strict=True))
    assert over("min", left, right) == column_of([min(row) for row in rows]).to_pylist()
    assert over("max", left, right) == column_of([max(row) for row in rows]).to_pylist()


def test_a_single_value_is_the_best() -> None:
    assert over("min", [1, "a", None, [2, 1], [], {"a": 1}]) == [1, "a", None, 1, None, FAILED]
    assert of("max", "b", "a", 1) is FAILED
    assert of("max", [1], [2]) is FAILED
    assert of("max", 1, None) is None


# Choosing


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("abcde"), st.lists(st.sampled_from("abcde"), max_size=7)), min_size=1))
def test_decode_of_an_array(rows: list[tuple[str, list[str]]]) -> None:
    expected = []
    for key, options in rows:
        pairs = dict(reversed(list(zip(options[::2], options[1::2], strict=False))))
        expected.append(pairs.get(key, options[-1] if len(options) % 2 else None))
    keys, options = (list(column) for column in zip(*rows, strict=True))
    assert over("decode", keys, options) == expected
    for (key, arguments), value in zip(rows, expected, strict=True):
        if arguments:
            assert of("decode", key, *arguments) == value


def test_decode_compares_as_the_operator_does() -> None:
    assert of("decode", "1", 1, "one", "none") == "one"
    assert of("decode", 1, 1.0, "one", "none") == "one"
    assert of("decode", None, None, "nothing", "some") == "nothing"
    assert of("decode", None, "ca", "California", "N/A") == "N/A"
    assert of("decode", "wa", "ca", "California") is None
    assert of("decode", "ca", "ca", "first", "ca", "second") == "first"
    assert of("decode", "ca", "N/A") == "N/A"
    assert of("decode", "ca", "ca", None, "N/A") is None


def test_iif_takes_one_of_two() -> None:
    conditions: list[object] = [True, False, None, 1, 0, 0.5, "yes", "off", "maybe", [], {}]
    expected = ["yes", "no", "no", "yes", "no", "yes", "yes", "no", FAILED, FAILED, FAILED]
    assert over("iif", conditions, ["yes"] * 11, ["no"] * 11) == expected


# Numbers


@pytest.mark.parametrize(
    ("value", "integer", "decimal"),
    [
        ("12", 12, 12.0), (" 12\n", 12, 12.0), ("12.0", 12, 12.0), ("12.5", FAILED, 12.5), ("1e3", 1000, 1000.0),
        ("1000000.34", FAILED, 1000000.34), ("007", 7, 7.0), ("-0", 0, 0.0), ("", FAILED, FAILED),
        (".5", FAILED, FAILED),
        ("+1", FAILED, FAILED), ("1,000", FAILED, FAILED), ("NaN", FAILED, FAILED), ("1e400", FAILED, FAILED),
        ("9223372036854775807", 2**63 - 1, 2.0**63), ("9223372036854775808", FAILED, 2.0**63), (None, None, None),
        (7, 7, 7.0), (2.5, FAILED, 2.5), (True, FAILED, FAILED), ([1], FAILED, FAILED), ("\uff11", FAILED, FAILED),
    ],
)  # fmt: skip
def test_numbers_in_strings(value: object, integer: object, decimal: object) -> None:
    assert of("to_integer", value) == of("to_bigint", value) == integer
    assert of("to_decimal", value) == decimal


@settings(deadline=None)
@given(numbers=st.lists(DECIMALS | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_floats_are_those_of_32_bits(numbers: list[float]) -> None:
    expected: list[object] = []
    for number in numbers:
        try:
            rounded = struct.unpack("f", struct.pack("f", number))[0]
        except OverflowError:
            rounded = math.inf
        expected.append(rounded if math.isfinite(rounded) else FAILED)
    assert over("to_float", numbers) == expected
    assert over("to_float", [repr(number) for number in numbers]) == expected
