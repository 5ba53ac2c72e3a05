"""The operators against a reference that takes one row after another."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any, TypeGuard

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
    TREES,
    check_rows_alone,
    column_of,
)
from worker.mapping.conversions import FALSE_TEXTS, TRUE_TEXTS
from worker.mapping.functions.base import MAX_TEXT_CHARACTERS, Call
from worker.mapping.operators import BINARY, OPERATORS, UNARY, truth
from worker.mapping.values import Items, Values

Reference = Callable[..., object]


def evaluated(evaluate: Callable[..., Values], *columns: list[Any]) -> list[object]:
    call = Call(len(columns[0]))
    found = evaluate(call, *(column_of(column) for column in columns))
    assert found.length == call.rows
    rows = zip(call.failed.tolist(), found.to_pylist(), strict=True)
    return [FAILED if failed else value for failed, value in rows]


def unary(symbol: str, value: object) -> object:
    return evaluated(UNARY[symbol], [value])[0]


def binary(left: object, symbol: str, right: object) -> object:
    return evaluated(BINARY[symbol], [left], [right])[0]


# The reference

TRUE, FALSE = TRUE_TEXTS.to_pylist(), FALSE_TEXTS.to_pylist()


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_in(text: str) -> int | float | None:
    """A number of JSON's grammar in a string, and leading zeros."""
    stripped = text.strip(" \t\n\v\f\r")
    digits = stripped.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        whole = int(stripped)
        if -(2**63) <= whole < 2**63:
            return whole
        return float(whole) if math.isfinite(float(stripped)) else None
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", stripped):
        return None
    return float(stripped) if math.isfinite(float(stripped)) else None


def as_number(value: object) -> int | float | None:
    if is_number(value):
        return value
    return number_in(value) if isinstance(value, str) else None


def instant(value: object, other: object) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and isinstance(other, datetime):
        texts = {
            "2019-10-23": datetime(2019, 10, 23, tzinfo=UTC),
            "2019-10-23T11:24:35Z": datetime(2019, 10, 23, 11, 24, 35, tzinfo=UTC),
            "2019-10-23T13:24:35+02:00": datetime(2019, 10, 23, 11, 24, 35, tzinfo=UTC),
        }
        return texts.get(value)
    return None


def order_of(left: object, right: object) -> int | None:
    one: Any
    other: Any
    if isinstance(left, str) and isinstance(right, str):
        one, other = left, right
    elif isinstance(left, bool) or isinstance(right, bool):
        one, other = (left, right) if isinstance(left, bool) and isinstance(right, bool) else (None, None)
    elif is_number(left) or is_number(right):
        one, other = as_number(left), as_number(right)
        if one is not None and other is not None:
            one, other = Fraction(one), Fraction(other)
    else:
        one, other = instant(left, right), instant(right, left)
    return None if one is None or other is None else (one > other) - (one < other)


def same_content(left: object, right: object) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_content, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_content(left[key], right[key]) for key in left)
    if is_number(left) and is_number(right):
        return Fraction(left) == Fraction(right)
    return type(left) is type(right) and left == right


def equals(left: object, right: object) -> bool:
    if left is None or right is None:
        return left is right
    for one, other in ((left, right), (right, left)):
        if isinstance(one, bool) and not isinstance(other, bool):
            if isinstance(other, str):
                return other in (TRUE if one else FALSE)
            return is_number(other) and one == (other != 0)
    return order_of(left, right) == 0 or (isinstance(left, list | dict) and same_content(left, right))


def related(compare: Callable[[int], bool]) -> Reference:
    def reference(left: object, right: object) -> object:
        if left is None or right is None:
            return False
        order = order_of(left, right)
        return FAILED if order is None else compare(order)

    return reference


def arithmetic(of_integers: Callable[[int, int], int], of_decimals: Callable[[float, float], float]) -> Reference:
    def reference(left: object, right: object) -> object:
        one, other = as_number(left), as_number(right)
        if any(side is not None and number is None for side, number in ((left, one), (right, other))):
            return FAILED
        if one is None or other is None:
            return None
        try:
            if isinstance(one, int) and isinstance(other, int):
                whole = of_integers(one, other)
                return whole if -(2**63) <= whole < 2**63 else FAILED
            broken = of_decimals(float(one), float(other))
        except (ArithmeticError, ValueError):
            return FAILED
        return broken if math.isfinite(broken) else FAILED

    return reference


def quotient(left: int, right: int) -> int:
    whole = abs(left) // abs(right)
    return whole if (left < 0) == (right < 0) else -whole


def text_of(value: object) -> str:
    return column_of([value]).to_texts().to_pylist()[0]  # type: ignore[no-any-return]


def add(left: object, right: object) -> object:
    sides = ((left, right), (right, left))
    joins = any(isinstance(one, str) and not (is_number(other) and as_number(one) is not None) for one, other in sides)
    if not joins:
        return arithmetic(lambda one, other: one + other, lambda one, other: one + other)(left, right)
    if any(isinstance(side, list | dict) for side in (left, right)):
        return FAILED
    if left is None or right is None:
        return None
    return text_of(left) + text_of(right)


def integer_of(value: object) -> int | None:
    number = as_number(value)
    if number is None or number != math.floor(number) or not -(2**63) <= number < 2**63:
        return None
    # a decimal of -2**63 is left out
    return None if isinstance(number, float) and abs(number) >= 2**63 else int(number)


def bits(of_integers: Callable[[int, int], int]) -> Reference:
    def reference(left: object, right: object) -> object:
        one, other = integer_of(left), integer_of(right)
        if any(side is not None and number is None for side, number in ((left, one), (right, other))):
            return FAILED
        return None if one is None or other is None else of_integers(one, other)

    return reference


def affix(matches: Callable[[str, str], bool]) -> Reference:
    def reference(left: object, right: object) -> object:
        if left is None or right is None:
            return left is right
        if isinstance(left, list | dict) or isinstance(right, list | dict):
            return FAILED
        return matches(text_of(left), text_of(right))

    return reference


def contains(left: object, right: object) -> object:
    """But for patterns."""
    if left is None or right is None:
        return left is right
    if isinstance(right, list):
        return any(item is not None and equals(left, item) for item in right)
    if isinstance(right, dict):
        return FAILED if isinstance(left, list | dict) else text_of(left) in right
    return FAILED


def negated(reference: Reference) -> Reference:
    def opposite(left: object, right: object) -> object:
        found = reference(left, right)
        return FAILED if found is FAILED else not found

    return opposite


REFERENCES: dict[str, Reference] = {
    "+": add,
    "-": arithmetic(lambda left, right: left - right, lambda left, right: left - right),
    "*": arithmetic(lambda left, right: left * right, lambda left, right: left * right),
    "/": arithmetic(quotient, lambda left, right: left / right),
    "%": arithmetic(lambda left, right: left - right * quotient(left, right), math.fmod),
    "&": bits(lambda left, right: left & right),
    "|": bits(lambda left, right: left | right),
    "^": bits(lambda left, right: left ^ right),
    "==": equals,
    "!=": negated(equals),
    "<": related(lambda order: order < 0),
    "<=": related(lambda order: order <= 0),
    ">": related(lambda order: order > 0),
    ">=": related(lambda order: order >= 0),
    "=^": affix(str.startswith),
    "!^": negated(affix(str.startswith)),
    "=$": affix(str.endswith),
    "!$": negated(affix(str.endswith)),
}


NUMERIC = INTEGERS | DECIMALS | st.integers(-9, 9) | st.integers(-(2**33), 2**33)
NUMERIC_TEXTS = NUMERIC.map(str) | TEXTS
SIDES = st.one_of(NUMERIC, NUMERIC, NUMERIC_TEXTS, DATES, st.booleans(), st.none(), ANYTHING)
ROWS = st.lists(
    st.one_of(
        st.tuples(NUMERIC, NUMERIC),
        st.tuples(NUMERIC, NUMERIC_TEXTS),
        st.tuples(TEXTS, TEXTS),
        st.tuples(DATES, DATES | TEXTS),
        st.tuples(TREES, TREES),
        TREES.map(lambda value: (value, value)),
        st.tuples(SIDES, SIDES),
    ),
    min_size=1,
    max_size=6,
)
EXTREMES = [
    -(2**63),
    -(2**63) + 1,
    -(2**62),
    -(2**32),
    -3,
    -2,
    -1,
    0,
    1,
    2,
    3,
    2**31,
    2**32,
    2**53 + 1,
    2**62,
    2**63 - 1,
]


@pytest.mark.parametrize("symbol", REFERENCES)
@settings(deadline=None, max_examples=150)
@given(rows=ROWS)
@example(rows=[(left, right) for left in EXTREMES for right in EXTREMES])
@example(rows=[(left, float(right)) for left in EXTREMES for right in EXTREMES])
@example(rows=[(2**53 + 1, 2.0**53), (2**63 - 1, 2.0**63), (-(2**63), -(2.0**63)), (1, 1.5), (-1, -1.5), (0, -0.0)])
@example(rows=[("2019-10-23", datetime(2019, 10, 23, tzinfo=UTC)), ("x", datetime(2019, 10, 23, tzinfo=UTC))])
@example(rows=[({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0}), ([1], ["1"]), ([True], [1]), ([None], [None]), ({}, [])])
def test_an_operator_does_what_the_reference_does(symbol: str, rows: list[tuple[object, object]]) -> None:
    left, right = (list(column) for column in zip(*rows, strict=True))
    expected = [REFERENCES[symbol](*row) for row in rows]
    found = evaluated(BINARY[symbol], left, right)
    for row, one, other in zip(rows, found, expected, strict=True):
        assert type(one) is type(other), (row, symbol, one, other)
        assert one == other, (row, symbol, one, other)


MEMBERS = st.lists(SCALARS, max_size=4) | st.dictionaries(st.sampled_from(["a", "", "1"]), SCALARS)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(ANYTHING, MEMBERS | st.none() | st.booleans() | NUMERIC | DATES), min_size=1, max_size=6)
)
def test_what_is_in_an_array_or_an_object(rows: list[tuple[Any, Any]]) -> None:
    left, right = (list(column) for column in zip(*rows, strict=True))
    expected = [contains(*row) for row in rows]
    assert evaluated(BINARY["=~"], left, right) == expected
    assert evaluated(BINARY["!~"], left, right) == [negated(contains)(*row) for row in rows]


@pytest.mark.parametrize("symbol", BINARY)
@settings(deadline=None, max_examples=60)
@given(rows=ROWS | st.lists(st.tuples(TEXTS, TEXTS | st.lists(SCALARS)), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_neighbours(symbol: str, rows: list[tuple[object, object]]) -> None:
    check_rows_alone(BINARY[symbol], *zip(*rows, strict=True))


@pytest.mark.parametrize("symbol", UNARY)
@settings(deadline=None, max_examples=60)
@given(rows=st.lists(SIDES, min_size=1, max_size=8))
def test_a_row_of_one_operand_does_not_depend_on_its_neighbours(symbol: str, rows: list[object]) -> None:
    check_rows_alone(UNARY[symbol], rows)


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ("abcdef", "abc.*", True), ("abcdef", "abc", False), ("abcdef", "bcd", False), ("a", "a|b", True),
        ("ab", "a|b", False), ("a\nb", "a.b", False), ("a\nb", "(?s)a.b", True), ("a\nb", "(?m)^a$", False),
        ("a\n", "a", False), ("", "", True), ("é😀", "..", True), (12, "[0-9]+", True), (True, "true", True),
        ("a", "(", FAILED), ("a", "a)|(b", FAILED), ("a", "(?=a)a", FAILED), ("aa", r"(a)\1", FAILED),
        ([1], "1", FAILED), (None, "(", False), ("a", None, False), (None, None, True), ("a", 1, FAILED),
    ],
)  # fmt: skip
def test_a_string_matches_a_pattern_as_a_whole(text: object, pattern: object, found: object) -> None:
    assert binary(text, "=~", pattern) is found
    assert binary(text, "!~", pattern) is (FAILED if found is FAILED else not found)


def test_patterns_differ_by_row() -> None:
    rows = [("a", "a"), ("b", "a"), ("b", "["), ("b", ["b"]), ("b", {"b": None}), (None, "a")]
    left, right = (list(column) for column in zip(*rows, strict=True))
    assert evaluated(BINARY["=~"], left, right) == [True, False, FAILED, True, True, False]


# What the documents say, and what was decided


def test_strings_and_numbers_are_added_or_joined() -> None:
    assert binary(1, "+", 2) == 3
    assert binary("1", "+", 2) == 3
    assert binary(1, "+", "2.5") == 3.5
    assert binary("1", "+", "2") == "12"
    assert binary("a", "+", 1) == "a1"
    assert binary(1.0, "+", "a") == "1.0a"
    assert binary("is ", "+", True) == "is true"
    assert (
        binary("on ", "+", datetime(2019, 10, 23, tzinfo=timezone(timedelta(hours=2))))
        == "on 2019-10-23T00:00:00+02:00"
    )
    assert binary(True, "+", 1) is FAILED
    assert binary("a", "+", [1]) is FAILED
    assert binary("a", "+", None) is None
    assert binary("a" * MAX_TEXT_CHARACTERS, "+", "a") is FAILED
    assert binary("a" * (MAX_TEXT_CHARACTERS - 1), "+", "a") == "a" * MAX_TEXT_CHARACTERS


def test_division_is_that_of_java() -> None:
    assert [binary(left, "/", right) for left, right in ((1, 2), (-7, 2), (7, -2), (-7, -2))] == [0, -3, -3, 3]
    assert [binary(left, "%", right) for left, right in ((-7, 2), (7, -2), (-5.5, 2))] == [-1, 1, -1.5]
    assert binary(1.0, "/", 2) == 0.5
    assert binary(1, "/", 0) is FAILED
    assert binary(1.0, "%", 0) is FAILED
    assert binary(-(2**63), "/", -1) is FAILED
    assert binary(-(2**63), "%", -1) == 0
    assert binary(None, "/", 0) is None


@pytest.mark.parametrize(
    ("symbol", "value", "expected"),
    [
        ("-", 12, -12), ("-", "2.5", -2.5), ("-", -(2**63), FAILED), ("-", True, FAILED), ("-", None, None),
        ("+", "7", 7), ("+", "a", FAILED), ("+", 2.5, 2.5), ("~", 44, -45), ("~", 2.5, FAILED), ("~", None, None),
        ("!", True, False), ("!", None, True), ("!", "no", True), ("!", 0, True), ("!", 0.1, False), ("!", "a", FAILED),
        ("!", [], FAILED), ("empty", None, True), ("empty", "", True), ("empty", 0, False), ("empty", [], True),
        ("empty", {}, True), ("empty", [None], False), ("size", "Hello", 5), ("size", "😀", 1), ("size", None, 0),
        ("size", [1, None], 2), ("size", {"a": 1}, 1), ("size", 7, FAILED),
    ],
)  # fmt: skip
def test_operators_of_one_operand(symbol: str, value: object, expected: object) -> None:
    assert unary(symbol, value) == expected


@settings(deadline=None)
@given(rows=st.lists(ANYTHING, min_size=1, max_size=8))
def test_what_counts_as_true(rows: list[object]) -> None:
    call = Call(len(rows))
    found = truth(call, column_of(rows)).tolist()
    for row, holds, failed in zip(rows, found, call.failed.tolist(), strict=True):
        if row is None or isinstance(row, bool):
            assert (holds, failed) == (bool(row), False)
        elif is_number(row):
            assert (holds, failed) == (row != 0, False)
        else:
            assert (holds, failed) == (row in TRUE, row not in TRUE + FALSE)


def test_every_operator_is_documented() -> None:
    lazy = {"&&", "||", "??", "?:"}
    documented = {(made.symbol, made.operands) for made in OPERATORS}
    assert documented == {
        *((symbol, 1) for symbol in UNARY), *((symbol, 2) for symbol in BINARY),
        *((symbol, 3 if symbol == "?:" else 2) for symbol in lazy),
    }  # fmt: skip
    assert len(documented) == len(OPERATORS)
    assert OPERATORS[0].record() == {
        "operatorSymbol": "+",
        "methodName": "add",
        "numberOfOperands": 2,
        "description": OPERATORS[0].description,
        "example": "1 + 2",
    }
    assert all(made.description.endswith(".") for made in OPERATORS)


def test_dates_in_arrays_are_equal_by_their_instants() -> None:
    here = datetime(2019, 10, 23, 2, tzinfo=timezone(timedelta(hours=2)))
    rows = [
        (here, datetime(2019, 10, 23, tzinfo=UTC), True),
        (here, datetime(2019, 10, 23, 2, tzinfo=UTC), False),
        (here, "2019-10-23", False),
        (1, 1.0, True),
        ("a", None, False),
    ]
    left, right, expected = (list(column) for column in zip(*rows, strict=True))
    arrays = [Values.items(Items.rows_of([column_of(side)])) for side in (left, right)]
    assert BINARY["=="](Call(len(rows)), *arrays).to_pylist() == expected
    objects = [Values.items(Items.rows_of([column_of(side)], ["a"])) for side in (left, right)]
    assert BINARY["=="](Call(len(rows)), *objects).to_pylist() == expected
