"""Calls functions of the mapping language over columns of Python values, as the tests of all of them want."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from worker.mapping.attributes import Attributes
from worker.mapping.context import Context
from worker.mapping.expression import Expression
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import Call
from worker.mapping.values import Kind, Values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.mapping.functions.base import Example

FAILED = object()
"""Stands for a row that failed."""

TEXTS = st.sampled_from([
    "", " ", "a", "ab", "A", "é", "😀", "a😀b", "0", "1", " 1 ", "1.0", "-0", "2.5", "1e3", "007", "true", "NO", "y",
    "9223372036854775807", "9223372036854775808", "1e400", "null", '"', "\\", "[1,2]", '{"a":1}', "a:1,b:2", ",", ":",
    "2019-10-23", "2019-10-23T11:24:35Z", "2019-10-23T13:24:35+02:00", "a.*", "(", "\n", "\x00",
]) | st.text(max_size=4)  # fmt: skip
INTEGERS = st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]) | st.integers(
    -(2**63), 2**63 - 1
)
DECIMALS = st.sampled_from([0.0, 1.0, -1.0, 2.5, 0.1, 2.0**53, 2.0**63, -(2.0**63), 1e308, -1e308, 5e-324]) | st.floats(
    allow_nan=False, allow_infinity=False
)
MOMENT = datetime(2019, 10, 23, 13, 24, 35, tzinfo=timezone(timedelta(hours=2)))
DATES = st.sampled_from([datetime(2019, 10, 23, tzinfo=UTC), MOMENT]) | st.integers(-(10**9), 10**9).map(
    lambda seconds: MOMENT + timedelta(seconds=seconds)
)
SCALARS = st.none() | st.booleans() | INTEGERS | DECIMALS | TEXTS
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "", "é"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ANYTHING = TREES | DATES


def over(name: str, *columns: Sequence[object] | Values) -> list[object]:
    """What the function gives for each row of the columns, which have equal lengths; `FAILED` where it failed."""
    arguments = [column if isinstance(column, Values) else Values.from_python(column) for column in columns]
    call = Call(arguments[0].length if arguments else 1)
    result = REGISTRY.by_name[name].evaluate(call, *arguments)
    assert result.length == call.rows
    values = result.to_pylist()
    return [FAILED if failed else value for failed, value in zip(call.failed.tolist(), values, strict=True)]


def of(name: str, *arguments: object) -> object:
    """What the function gives for one row of these arguments."""
    return over(name, *([argument] for argument in arguments))[0]


def check_example(example: Example) -> None:
    """It gives what it says, of literals and of columns in which every other row is null."""
    event = Attributes({}, [pa.array([""])], [None], Context(datetime.now(UTC), {}))
    outcome = Expression.of(example.expression).evaluate(event)
    assert outcome.values.to_pylist() == [example.value]
    # literals and calls are written as in Python
    called = ast.parse(example.expression.replace("true", "True").replace("false", "False"), mode="eval").body
    assert isinstance(called, ast.Call)
    name, arguments = _called(called)
    columns = [[argument if row % 2 else None for row in range(10)] for argument in arguments]
    assert over(name, *columns)[1::2] == [example.value] * 5


def _called(node: ast.Call) -> tuple[str, list[object]]:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr, [_argument(node.func.value), *map(_argument, node.args)]
    assert isinstance(node.func, ast.Name)
    return node.func.id, [_argument(argument) for argument in node.args]


def _argument(node: ast.expr) -> object:
    if isinstance(node, ast.Call):
        name, arguments = _called(node)
        return of(name, *arguments)
    return ast.literal_eval(node)


def column_of(rows: Sequence[object]) -> Values:
    """A column of Python values, among which may be dates with a time zone."""
    is_date = np.array([isinstance(row, datetime) for row in rows], dtype=bool)
    plain = Values.from_python([None if isinstance(row, datetime) else row for row in rows])
    dates = [row if isinstance(row, datetime) else datetime(1970, 1, 1, tzinfo=UTC) for row in rows]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    instants = np.array([(date - epoch) // timedelta(microseconds=1) for date in dates], dtype=np.int64)
    offsets = np.array([(date.utcoffset() or timedelta(0)).total_seconds() for date in dates]).astype(np.int32)
    planes = {**plain.planes, Kind.DATE: Values.dates(instants, offsets, is_date).plane(Kind.DATE)}
    return Values(len(rows), planes)


def check_rows_alone(evaluate: Callable[..., Values], *columns: Sequence[object]) -> None:
    """A row gives the same, and fails for the same, whatever rows are beside it; a constant column, and none, too."""
    arguments = [column_of(column) for column in columns]
    rows = len(columns[0])
    together = _outcome(evaluate, arguments, rows)
    for row in range(rows):
        alone = _outcome(evaluate, [argument.take(np.array([row])) for argument in arguments], 1)
        assert together[row] == alone[0], (row, [column[row] for column in columns])
        # as literals
        constant = [Values(3, argument.take(np.full(3, row)).planes, constant=True) for argument in arguments]
        assert _outcome(evaluate, constant, 3) == alone * 3
    nulls = [Values.nulls(2) for _ in arguments]
    assert _outcome(evaluate, nulls, 2) == _outcome(evaluate, [Values.nulls(1) for _ in arguments], 1) * 2
    assert _outcome(evaluate, [argument.take(np.array([], dtype=np.int64)) for argument in arguments], 0) == []


def _outcome(evaluate: Callable[..., Values], arguments: Sequence[Values], rows: int) -> list[tuple[object, ...]]:
    """Of each row its kind and its JSON, or why it failed: what it has then is null in the end."""
    call = Call(rows)
    result = evaluate(call, *arguments)
    assert result.length == rows
    for plane in result.planes.values():
        assert len(plane) == rows
    reasons: list[str | None] = [None] * rows
    for reason, at in call.failures():
        for row in at.tolist():
            reasons[row] = reason
    rows_made = zip(result.kinds().tolist(), result.to_json().to_pylist(), reasons, strict=True)
    return [(kind, text, None) if reason is None else (None, None, reason) for kind, text, reason in rows_made]
