"""Calls functions of the mapping language over columns of Python values, as the tests of all of them want."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import Call
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED = object()
"""Stands for a row that failed."""


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
