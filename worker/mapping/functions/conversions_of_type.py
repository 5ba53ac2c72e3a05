"""Functions that make numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.functions.base import Example, Parameter, function
from worker.mapping.values import Values

if TYPE_CHECKING:
    from worker.mapping.functions.base import Call

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

CONVERSIONS = "Type conversions"

_STRING = (Parameter("STRING", "the string; a number is taken too"),)
_DECIMAL_DECISIONS = (
    "White space around a number goes. The number is written as in JSON: digits, a point and digits, an exponent.",
)
_INTEGER_DECISIONS = (
    *_DECIMAL_DECISIONS,
    "A number with a fraction fails, one whose fraction is 0 does not.",
    "Numbers beyond 64 bits fail.",
)


@function(
    "to_bigint",
    category=CONVERSIONS,
    description="The integer that a string stands for.",
    parameters=_STRING,
    returns="integer",
    examples=(
        Example('to_bigint("1000000")', 1000000, note='the page has "1000000.34", which is no integer and fails here'),
    ),
    decisions=(*_INTEGER_DECISIONS, "Java's BigInteger has no bounds; tables and JSON readers have."),
)
def to_bigint(call: Call, string: Values) -> Values:
    return Values.of(call.integers(string, "STRING"))


@function(
    "to_integer",
    category=CONVERSIONS,
    description="The integer that a string stands for.",
    parameters=_STRING,
    returns="integer",
    examples=(Example('to_integer("12")', 12),),
    decisions=(*_INTEGER_DECISIONS, "32 bits, which Java's Integer has, are no bound: the field has its own."),
)
def to_integer(call: Call, string: Values) -> Values:
    return Values.of(call.integers(string, "STRING"))


@function(
    "to_decimal",
    category=CONVERSIONS,
    description="The number that a string stands for.",
    parameters=_STRING,
    returns="double",
    examples=(Example('to_decimal("20.5")', 20.5),),
    decisions=_DECIMAL_DECISIONS,
)
def to_decimal(call: Call, string: Values) -> Values:
    return Values.of(call.numbers(string, "STRING"))


@function(
    "to_float",
    category=CONVERSIONS,
    description="The number that a string stands for, as near as 32 bits can have it.",
    parameters=_STRING,
    returns="double",
    examples=(
        Example(
            'to_float("12.3456")',
            12.345600128173828,
            note="the page prints 12.34566; this is the number of 32 bits that is nearest to 12.3456",
        ),
    ),
    decisions=(*_DECIMAL_DECISIONS, "Numbers beyond 32 bits fail."),
)
def to_float(call: Call, string: Values) -> Values:
    numbers = call.numbers(string, "STRING")
    with np.errstate(over="ignore"):
        rounded = np.asarray(numbers.fill_null(0.0)).astype(np.float32).astype(np.float64)
    finite = np.isfinite(rounded)
    call.fail(~finite, "STRING is a number beyond 32 bits")
    return Values.of(pa.array(rounded, mask=~finite | np.asarray(numbers.is_null())))
