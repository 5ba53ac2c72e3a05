"""Functions that read JSON."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow.compute

from worker.mapping.functions.base import Example, Parameter, function
from worker.mapping.values import Kind, Values

if TYPE_CHECKING:
    from worker.mapping.functions.base import Call

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

MAX_DEPTH = 100
"""So many arrays and objects may lie within each other: all that works on them calls itself for each."""

_DOCUMENT = '{"info":{"firstName":"John","lastName": "Doe"}}'
_BRACKETS_OR_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


@function(
    "json_to_object",
    category="JSON",
    description="What a string of JSON stands for.",
    parameters=(Parameter("STRING", "the string; an array or object is passed on"),),
    returns="any",
    examples=(
        Example(
            f"json_to_object({_DOCUMENT})",
            {"info": {"firstName": "John", "lastName": "Doe"}},
            note="the page gives it an object instead of a string, which is passed on",
        ),
        Example(
            f"json_to_object('{_DOCUMENT}')",
            {"info": {"firstName": "John", "lastName": "Doe"}},
            note="as the page means it",
        ),
    ),
    row_loop="each text has another shape, which no column has; equal texts of a block are read once",
    decisions=(
        "It may be a number, a string, true, false or null as well; numbers and booleans that are no strings fail.",
        "Of equal keys the last one counts; an integer beyond 64 bits becomes a decimal.",
        f"More than {MAX_DEPTH} arrays and objects within each other fail.",
    ),
)
def json_to_object(call: Call, string: Values) -> Values:
    trees = string.has(Kind.ARRAY) | string.has(Kind.OBJECT)
    wrong = ~(trees | string.has(Kind.STRING) | string.is_null())
    call.fail(wrong, "STRING is a number, a boolean or a date, not a string")
    encoded = pc.dictionary_encode(string.arrow(Kind.STRING))
    codes = np.asarray(encoded.indices.fill_null(-1)).astype(np.int64)
    documents: list[object] = []
    broken = np.zeros(len(encoded.dictionary), dtype=bool)
    for number, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document, broken[number] = None, True
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            document, broken[number] = None, True
        documents.append(document)
    call.fail((codes >= 0) & np.append(broken, False)[codes], "STRING is not JSON, or nested too deep")
    read = Values.from_python(documents).take(codes)
    if not trees.any():
        return read
    return Values.choose(np.where(trees, 1, 0), [read, string.where(trees)])


def _depth(text: str) -> int:
    """How many arrays and objects lie within each other in a text of JSON."""
    deepest = depth = 0
    for part in _BRACKETS_OR_STRINGS.findall(text):
        if part in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif part in "]}":
            depth -= 1
    return deepest
