"""All functions of the mapping language at once, by the registry: that they are all there, their examples, any values.

What single functions do is in the tests of their families.
"""

from __future__ import annotations

import json
import random
import resource
import time
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, TEXTS, check_rows_alone, column_of
from tests.test_language import EXHAUSTIVE, MUTATIONS, PAGE, SEEDS, mutated, needs_facts
from worker.mapping.attributes import Attributes
from worker.mapping.context import Context
from worker.mapping.expression import FUNCTION_NAMES, PATH_FUNCTION, Expression
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import Call
from worker.mapping.functions.refused import REFUSED
from worker.mapping.language.parser import ExpressionError, parse
from worker.mapping.language.tree import Call as CallNode
from worker.mapping.language.tree import Literal, Member, Name
from worker.mapping.operators import OPERATORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.mapping.expression import Outcome
    from worker.mapping.functions.base import Example, Function
    from worker.mapping.values import Values

CONTEXT = Context(
    datetime(2026, 3, 2, 12, tzinfo=UTC), {"projectId": "1", "timezone": "Europe/Paris", "timeBasis": "utc"}
)
DISTINCT = sorted({made.name: made for made in REGISTRY.by_name.values()}.values(), key=lambda made: made.name)
EXAMPLES = [example for made in DISTINCT for example in made.examples]
FAILING = {'fpid_to_ecid("4ed70bee-b654-420a-a3fd-b58b6b65e991")'}
"""Examples whose note says that they fail, which the language tells before anything is mapped."""


# Which there are


def test_there_are_all_functions_of_ingestion_and_a_method_of_objects() -> None:
    names = {made.name for made in DISTINCT}
    # `get` stands in examples and in no table
    assert len(names - {"get"}) == 84
    assert len(REFUSED) == 14
    assert not REFUSED.keys() & REGISTRY.by_name.keys()


@needs_facts
def test_the_functions_are_those_of_adobes_page() -> None:
    served: set[str] = set()
    refused: set[str] = set()
    for function in PAGE["functions"]:
        names = {name.partition(" ")[0] for name in (function["name"], *function["aliases"])}
        if function["availability"] == "ingestion":
            served |= names
            assert {REGISTRY.by_name[name].name for name in names} == {REGISTRY.by_name[function["name"]].name}
        else:
            refused |= names
    assert served | {"get"} == REGISTRY.by_name.keys()
    assert refused == REFUSED.keys()


@pytest.mark.parametrize("made", DISTINCT, ids=lambda made: made.name)
def test_a_function_is_described(made: Function) -> None:
    assert made.description.endswith(".")
    assert made.examples or not made.deterministic or made.name == PATH_FUNCTION
    for text in made.decisions:
        assert text.endswith("."), text
    assert not any(parameter.repeated for parameter in made.parameters[:-1])


# Examples


def attributes_of(expression: Expression, rows: Sequence[dict[str, Any]]) -> Attributes:
    """Rows of properties, as an expression reads them out of events."""
    paths = list(dict.fromkeys(path for alternatives in expression.attributes for path in alternatives))
    texts, kinds = [], []
    for path in paths:
        found = []
        for row in rows:
            value: Any = {"event": "Buy", "properties": row}
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            found.append(value)
        written = [value if isinstance(value, str) else orjson.dumps(value).decode() for value in found]
        texts.append(
            pa.array([None if value is None else text for value, text in zip(found, written, strict=True)], pa.string())
        )
        first = [0 if value is None else ord(json.dumps(value)[0]) for value in found]
        kinds.append(np.array(first, dtype=np.uint8))
    nothing = pa.nulls(len(rows), pa.string())
    positions = {path: position for position, path in enumerate(paths)}
    return Attributes(positions, [*texts, nothing], [*kinds, None], CONTEXT)


def evaluated(expression: Expression, rows: Sequence[dict[str, Any]]) -> Outcome:
    return expression.evaluate(attributes_of(expression, rows))


def exactly(value: object) -> str:
    """A text that tells 1 from 1.0, and does not hang on the order of keys."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.expression[:60])
def test_an_example_gives_its_value(example: Example) -> None:
    if example.expression in FAILING:
        assert example.note is not None
        with pytest.raises(ExpressionError, match="column 1: fpid_to_ecid"):
            Expression.of(example.expression)
        return
    outcome = evaluated(Expression.of(example.expression), [{}])
    assert outcome.failures == ()
    assert [exactly(value) for value in outcome.values.to_pylist()] == [exactly(example.value)]


class Replaced:
    """A tree in which a property stands in the place of each string and number."""

    def __init__(self, tree: Any) -> None:
        self.values: dict[str, str | int | float] = {}
        self.tree = self._replaced(tree)

    def _replaced(self, node: Any) -> Any:
        if isinstance(node, Literal):
            if node.value is None or isinstance(node.value, bool):
                return node
            name = f"p{len(self.values)}"
            self.values[name] = node.value
            # a bare name is not read everywhere: in `object_to_map` it stands for itself
            return Member(Name("data"), name)
        if isinstance(node, tuple):
            return tuple(self._replaced(part) for part in node)
        if not is_dataclass(node):
            return node
        parts = {field.name: self._replaced(getattr(node, field.name)) for field in fields(node) if field.compare}
        return replace(node, **parts)  # type: ignore[type-var]  # an instance, not a class


def calls_of(node: Any) -> Iterator[str]:
    if isinstance(node, CallNode):
        yield node.function
    parts = node if isinstance(node, tuple) else [getattr(node, field.name) for field in fields(node)]
    for part in parts:
        if isinstance(part, tuple) or is_dataclass(part):
            yield from calls_of(part)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.expression[:60])
def test_an_example_gives_its_value_of_columns(example: Example) -> None:
    tree = parse(example.expression, functions=FUNCTION_NAMES)
    replaced = Replaced(tree)
    if not replaced.values or PATH_FUNCTION in {REGISTRY.by_name[name].name for name in calls_of(tree)}:
        pytest.skip("nothing in it can be a column")
    outcome = evaluated(Expression(replaced.tree), [replaced.values if row % 3 else {} for row in range(10)])
    wanted = [row for row in range(10) if row % 3]
    failed = {row for _, rows in outcome.failures for row in rows.tolist()}
    if example.expression in FAILING:
        assert set(wanted) <= failed
        return
    assert not failed & set(wanted), outcome.failures
    values = outcome.values.to_pylist()
    assert [exactly(values[row]) for row in wanted] == [exactly(example.value)] * len(wanted)


# Any values


def literals_of(node: Any) -> Iterator[str | int | float]:
    yield from Replaced(node).values.values()


HINTS = {
    made.name: [
        literal
        for example in made.examples
        for literal in literals_of(parse(example.expression, functions=FUNCTION_NAMES))
    ]
    for made in DISTINCT
}


@st.composite
def calls(draw: st.DrawFn, made: Function) -> list[list[Any]]:
    """Columns for the arguments of a call, of equal length: what stands in its examples among anything."""
    least, most = made.least_arguments, made.most_arguments
    count = draw(st.integers(least, least + 4 if most is None else most))
    rows = draw(st.integers(1, 6))
    values = ANYTHING
    if HINTS[made.name]:
        values = st.sampled_from(HINTS[made.name]) | values
    columns = st.lists(values, min_size=rows, max_size=rows) | st.lists(TEXTS, min_size=rows, max_size=rows)
    return [draw(columns) for _ in range(count)]


@pytest.mark.parametrize("made", DISTINCT, ids=lambda made: made.name)
def test_a_row_gives_the_same_in_any_company(made: Function) -> None:
    @settings(max_examples=250 if EXHAUSTIVE else 20, deadline=None)
    @given(calls(made), st.integers(0, 6))
    def holds(columns: list[list[Any]], cut: int) -> None:
        if not columns or not made.deterministic:
            rows = len(columns[0]) if columns else 3
            assert len(made.evaluate(Call(rows), *map(column_of, columns))) == rows
            return
        check_rows_alone(made.evaluate, *columns)
        arguments = [column_of(column) for column in columns]
        parts = [[column.take(part) for column in arguments] for part in halves(len(columns[0]), cut)]
        assert outcome_of(made, [arguments]) == outcome_of(made, parts)

    holds()


def halves(rows: int, cut: int) -> list[Any]:
    at = np.arange(rows)
    return [at[:cut], at[cut:]]


def outcome_of(made: Function, parts: Sequence[Sequence[Values]]) -> list[tuple[object, object]]:
    """What the rows of all parts give, and why they fail."""
    found: list[tuple[object, object]] = []
    for arguments in parts:
        call = Call(arguments[0].length)
        values = made.evaluate(call, *arguments)
        reasons = {row: reason for reason, rows in call.failures() for row in rows.tolist()}
        for row, text in enumerate(values.to_json().to_pylist()):
            found.append((reasons[row], None) if row in reasons else (None, text))
    return found


# Any expressions


ROWS: list[dict[str, Any]] = [
    {"a": 1, "b": "x", "c": [1, "2", {"a": 3}], "price": 2.5, "items": [{"a": 1}, {"b": 2}], "$last": "Doe"},
    {"a": "1", "b": None, "c": {"a": {"b": [1]}}, "price": -(2**63), "tags": "a,b", "First Name": "Jim"},
    {},
    {"a": "😀" * 3, "b": True, "c": "2024-02-29T10:00:00Z", "price": "1e308", "items": [], "data": [[1], [2]]},
    {"a": [[], None, [1, [2]]], "b": "(", "c": 0, "price": 1e308, "items": "https://a.example/?b=c", "key": "a"},
]
MOST_SECONDS = 5.0
MOST_BYTES = 1 << 30


def compiled(text: str) -> Expression | ExpressionError:
    try:
        return Expression.of(text)
    except ExpressionError as error:
        return error


@pytest.mark.timeout(0 if EXHAUSTIVE else 300)
def test_mutated_expressions_give_a_result_or_a_clear_error() -> None:
    """10,000 of them; 100,000 with MIXPANEL_WORKER_EXHAUSTIVE=1."""
    dice = random.Random(20260730)
    expressions = [
        *(text.replace("filterArray", "to_array").replace("transformArray", "to_array") for text in SEEDS),
        *(example.expression for example in EXAMPLES),
        *(operator.example for operator in OPERATORS),
        *(f"{made.name}({', '.join('abc'[n % 3] for n in range(made.least_arguments))})" for made in DISTINCT),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = 0
    for _ in range(MUTATIONS):
        text = mutated(expressions, dice)
        begin = time.process_time()
        found = compiled(text)
        if isinstance(found, ExpressionError):
            assert str(found).startswith(f"column {found.column}: ")
            assert 1 <= found.column <= len(text) + 1
        else:
            read += 1
            outcome = evaluated(found, ROWS)
            assert outcome.values.length == len(ROWS)
            assert len(outcome.values.to_json()) == len(ROWS)
            assert all(reason and len(reason) < 500 for reason, _ in outcome.failures), (text, outcome.failures)
        assert time.process_time() - begin < MOST_SECONDS, text
    assert read > MUTATIONS * 0.05
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_BYTES
