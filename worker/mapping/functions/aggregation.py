"""Functions that make one value of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute

from worker.mapping.functions.base import Example, Parameter, function
from worker.mapping.functions.comparison import compare
from worker.mapping.values import Items, Kind, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Mask

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

AGGREGATION = "Aggregation"

_PARAMETERS = (
    Parameter("OPTIONS", "an array, or the first of several values"),
    Parameter("MORE", "more values", required=False, repeated=True),
)
_DECISIONS = (
    "A single argument that is an array stands for its items; one of nothing gives null.",
    "A value among them that is null gives null.",
    "The values have to be of one kind: numbers, strings, booleans or dates; integers and decimals are one kind and "
    "are compared exactly. Strings follow the numbers of their characters in Unicode.",
    "Of values that compare as equal the first one counts.",
)


@function(
    "min",
    category=AGGREGATION,
    description="The value that comes first in order.",
    parameters=_PARAMETERS,
    returns="any",
    examples=(Example("min(3, 1, 4)", 1),),
    decisions=_DECISIONS,
)
def least(call: Call, *values: Values) -> Values:
    return _best(call, values, -1)


@function(
    "max",
    category=AGGREGATION,
    description="The value that comes last in order.",
    parameters=_PARAMETERS,
    returns="any",
    examples=(Example("max(3, 1, 4)", 4),),
    decisions=_DECISIONS,
)
def greatest(call: Call, *values: Values) -> Values:
    return _best(call, values, 1)


def _best(call: Call, columns: Sequence[Values], sign: int) -> Values:
    """The value that beats the others: next to it, `compare` gives no `-sign`."""
    if len(columns) == 1:
        column = columns[0]
        arrays = column.trees(Kind.ARRAY)
        single = column.where(~arrays.valid)
        _check_kinds(call, [single])
        single = single.where(~single.has(Kind.OBJECT))
        if Kind.ARRAY not in column.present:
            return single
        return Values.choose(np.where(arrays.valid, 1, 0), [single, _best_item(call, arrays, sign)])
    if kind := _common_kind(columns):
        pick = pc.min_element_wise if sign < 0 else pc.max_element_wise
        return Values(call.rows, {kind: pick(*(column.arrow(kind) for column in columns), skip_nulls=False)})
    fit = _check_kinds(call, columns)
    best = columns[0].where(fit)
    for column in columns[1:]:
        best = Values.choose(np.where(_beats(column, best, sign), 1, 0), [best, column])
    return best.where(fit)


def _common_kind(columns: Sequence[Values]) -> Kind | None:
    """The kind that all columns have, if Arrow has its order."""
    present = frozenset().union(*(column.present for column in columns))
    return next(iter(present)) if present in ({Kind.INTEGER}, {Kind.STRING}) else None


def _beats(values: Values, others: Values, sign: int) -> Mask:
    signs, comparable = compare(values, others)
    beats: Mask = comparable & (signs == sign)
    return beats


def _families(values: Values) -> NDArray[np.uint8]:
    """The kind of each row, that of integers for decimals."""
    families = values.kinds()
    families[families == Kind.DECIMAL] = Kind.INTEGER
    return families


def _check_kinds(call: Call, columns: Sequence[Values]) -> Mask:
    """The rows whose values are all of one kind that has an order; other rows without a null fail."""
    families = [_families(column) for column in columns]
    null = np.any([family == Kind.NULL for family in families], axis=0)
    trees = np.any([family >= Kind.ARRAY for family in families], axis=0)
    mixed = np.any([family != families[0] for family in families], axis=0)
    call.fail(trees & ~null, "arrays and objects have no order")
    call.fail(mixed & ~null, "the values are of several kinds")
    fit: Mask = ~(null | trees | mixed)
    return fit


def _best_item(call: Call, arrays: Items, sign: int) -> Values:
    families = _families(arrays.values)
    first = np.repeat(_families(arrays.item(np.zeros(len(arrays), dtype=np.int64))), arrays.lengths)
    null = _some(arrays, families == Kind.NULL)
    trees = _some(arrays, families >= Kind.ARRAY)
    mixed = _some(arrays, families != first)
    call.fail(trees & ~null, "arrays and objects have no order")
    call.fail(mixed & ~null, "the values are of several kinds")
    arrays = arrays.where(~(null | trees | mixed))
    # the winners of pairs of neighbours, then of pairs of winners, until each row has but one
    while len(arrays.values) and arrays.lengths.max() > 1:
        left = arrays.places % 2 == 0
        at = np.flatnonzero(left)
        paired = arrays.places[at] + 1 < arrays.lengths[arrays.rows[at]]
        after = arrays.values.take(np.where(paired, at + 1, -1))
        wins = _beats(after, arrays.values.take(at), sign)
        chosen = np.zeros(len(left), dtype=bool)
        chosen[np.where(wins, at + 1, at)] = True
        arrays = arrays.select(chosen)
    return arrays.item(np.zeros(len(arrays), dtype=np.int64))


def _some(arrays: Items, items: Mask) -> Mask:
    """The rows that have such an item."""
    rows: Mask = np.zeros(len(arrays), dtype=bool)
    rows[arrays.rows[items]] = True
    return rows
