"""Functions that choose between values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.mapping.functions.base import Example, Parameter, function
from worker.mapping.functions.comparison import equal, truth
from worker.mapping.values import Kind, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.mapping.functions.base import Call

LOGIC = "Logical operators"


@function(
    "iif",
    category=LOGIC,
    description="One value if a condition holds, else another.",
    parameters=(
        Parameter("EXPRESSION", "the condition"),
        Parameter("TRUE_VALUE", "what it gives if the condition holds"),
        Parameter("FALSE_VALUE", "what it gives if not"),
    ),
    returns="any",
    examples=(Example('iif("s".equalsIgnoreCase("S"), "True", "False")', "True"),),
    decisions=(
        "As a condition null is false, a number true unless it is 0, and a string what Data Prep takes it for; other "
        "strings, dates, arrays and objects fail.",
        "A value that is not taken cannot fail.",
    ),
)
def iif(call: Call, condition: Values, yes: Values, no: Values) -> Values:
    return Values.choose(np.where(truth(call, condition), 0, 1), [yes, no])


@function(
    "decode",
    category=LOGIC,
    description="The value that goes with a key among keys and values in turn, else what comes last.",
    parameters=(
        Parameter("KEY", "the key to look for"),
        Parameter("OPTIONS", "keys and values in turn, then a value for all other keys; or an array of these"),
        Parameter("MORE", "more keys and values", required=False, repeated=True),
    ),
    returns="any",
    examples=(
        Example(
            'decode("ca", "ca", "California", "pa", "Pennsylvania", "N/A")',
            "California",
            note="the page has an attribute where the first argument is",
        ),
        Example('decode("pa", "ca", "California", "pa", "Pennsylvania", "N/A")', "Pennsylvania"),
        Example('decode("wa", "ca", "California", "pa", "Pennsylvania", "N/A")', "N/A"),
    ),
    decisions=(
        "Keys are compared as `==` does; the first that is equal counts.",
        "A key that is null is like any other: it gives the last value unless null is among the keys.",
        "Without a value for all other keys they give null.",
    ),
)
def decode(call: Call, key: Values, *options: Values) -> Values:
    if len(options) == 1:
        arrays = options[0].has(Kind.ARRAY)
        if not arrays.any():
            return options[0]
        return Values.choose(np.where(arrays, 1, 0), [options[0], _decode_from_array(key, options[0])])
    return _decode(call, key, options)


def _decode(call: Call, key: Values, options: Sequence[Values]) -> Values:
    keys, values = options[: len(options) // 2 * 2 : 2], [*options[1::2], *options[len(options) // 2 * 2 :]]
    index = np.full(call.rows, len(keys) if len(options) % 2 else -1, dtype=np.int64)
    for number in reversed(range(len(keys))):
        index[equal(key, keys[number])] = number
    return Values.choose(index, values)


def _decode_from_array(key: Values, options: Values) -> Values:
    arrays = options.trees(Kind.ARRAY)
    lengths = arrays.lengths[arrays.rows]
    is_key = (arrays.places % 2 == 0) & (arrays.places + 1 < lengths)
    # an odd one out is the value for all other keys
    place = np.where(arrays.lengths % 2 == 1, arrays.lengths - 1, arrays.lengths)
    same = np.flatnonzero(is_key & equal(key.take(arrays.rows), arrays.values))[::-1]
    # numpy keeps the last of equal indices, here the first item
    place[arrays.rows[same]] = arrays.places[same] + 1
    return arrays.item(place)
