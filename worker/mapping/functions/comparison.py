"""What holds between values of different kinds: which are equal, which comes first, which count as true.

Two values compare as

- numbers, exactly, if both are numbers, or one is and the other is a string of one;
- dates, by their instants, if both are dates, or one is and the other is a string of a default format;
- strings, character by character; booleans, false before true.

Anything else has no order. It is equal if it is a boolean beside a string that is one, or beside a number that is 0 or
not; or two arrays or objects of the same content, in which `1` and `1.0` are the same and `1` and `"1"` are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.functions.base import booleans_of, present
from worker.mapping.functions.dates import read_dates
from worker.mapping.values import Items, Kind, Values, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Booleans, Decimals, Integers, Mask

    Signs = NDArray[np.int8]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

NUMBERS = frozenset((Kind.INTEGER, Kind.DECIMAL))

_FIRST = np.zeros(1, dtype=np.int64)


def holds(booleans: Booleans) -> Mask:
    """Where these are true; not where they are null."""
    mask: Mask = booleans.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003 - pyarrow's own
    return mask


def truth(call: Call, values: Values) -> Mask:
    """Where a condition holds: booleans, Data Prep's strings of them, numbers but 0; null does not, all else fails."""
    if values.present <= {Kind.BOOLEAN}:
        return holds(values.arrow(Kind.BOOLEAN))
    numbers = values.has(Kind.INTEGER) | values.has(Kind.DECIMAL)
    others = holds(call.booleans(values.where(~numbers), "the condition"))
    return others | _is_not_zero(values)


def numeric(values: Values) -> tuple[Integers, Decimals]:
    """Numbers and the strings that are numbers, as integers and as decimals; null for all else."""
    integers, decimals = values.arrow(Kind.INTEGER), values.arrow(Kind.DECIMAL)
    if Kind.STRING not in values.present:
        return integers, decimals
    if values.constant and values.length > 1:
        whole, broken = numeric(values.take(_FIRST))
        return _repeated(whole, values.length), _repeated(broken, values.length)
    whole, broken = numbers_of(pc.ascii_trim_whitespace(values.arrow(Kind.STRING)))
    return pc.coalesce(integers, whole), pc.coalesce(decimals, broken)


def _repeated(array: Any, length: int) -> Any:  # noqa: ANN401 - an Arrow array
    """An array of one row, repeated: what a literal stands for is read once."""
    return array.take(pa.array(np.zeros(length, dtype=np.int64)))


def equal(left: Values, right: Values) -> Mask:
    """Where two columns have the same; null is null, and nothing else."""
    same = left.is_null() & right.is_null()
    if Kind.STRING in left.present & right.present:
        same |= holds(pc.equal(left.arrow(Kind.STRING), right.arrow(Kind.STRING)))
        if left.present == right.present == {Kind.STRING}:
            return same
    signs, comparable = compare(left, right)
    same |= comparable & (signs == 0)
    for one, other in ((left, right), (right, left)):
        if Kind.BOOLEAN in one.present and other.present & {*NUMBERS, Kind.STRING}:
            same |= _equal_booleans(one, other)
    for kind in left.present & right.present & {Kind.ARRAY, Kind.OBJECT}:
        same |= _equal_trees(left.trees(kind), right.trees(kind))
    return same


def compare(left: Values, right: Values) -> tuple[Signs, Mask]:
    """-1 where the left one comes first, 1 where the right one does, 0 where neither; and where there is an order."""
    signs = np.zeros(left.length, dtype=np.int8)
    comparable = np.zeros(left.length, dtype=bool)

    def note(found: Signs, among: Mask) -> None:
        signs[among] = found[among]
        comparable[among] = True

    kinds, other_kinds = left.present, right.present
    for kind in (Kind.STRING, Kind.BOOLEAN):
        if kind in kinds & other_kinds:
            note(*_signs(left.arrow(kind), right.arrow(kind)))
    if (kinds & NUMBERS and other_kinds & {*NUMBERS, Kind.STRING}) or (Kind.STRING in kinds and other_kinds & NUMBERS):
        note(*_compare_numbers(left, right))
    if Kind.DATE in kinds | other_kinds:
        note(*_signs(_instants(left, right), _instants(right, left)))
    return signs, comparable


def _equal_trees(left: Items, right: Items) -> Mask:
    """Where two arrays, or two objects, have the same content."""
    same: Mask = left.valid & right.valid
    if left.keys is not None:
        left, right = left.where(same).without_older(), right.where(same).without_older()
    same &= left.lengths == right.lengths
    left, right = left.where(same), right.where(same)
    if left.keys is not None and not left.keys.equals(right.keys):
        left, right = _in_order_of_keys(left), _in_order_of_keys(right)
        same[left.rows[~holds(pc.equal(left.keys, right.keys))]] = False
    same[left.rows[~_equal_contents(left.values, right.values)]] = False
    return same


def _equal_contents(left: Values, right: Values) -> Mask:
    """Where two columns have the same, strings being no numbers and no dates."""
    same = left.is_null() & right.is_null()
    for kind in left.present & right.present - NUMBERS:
        if kind in (Kind.ARRAY, Kind.OBJECT):
            same |= _equal_trees(left.trees(kind), right.trees(kind))
        elif kind is Kind.DATE:
            same |= holds(pc.equal(_instants(left, left), _instants(right, right)))
        else:
            same |= holds(pc.equal(left.arrow(kind), right.arrow(kind)))
    if left.present & NUMBERS and right.present & NUMBERS:
        signs, comparable = _compare_planes(
            (left.arrow(Kind.INTEGER), left.arrow(Kind.DECIMAL)), (right.arrow(Kind.INTEGER), right.arrow(Kind.DECIMAL))
        )
        same |= comparable & (signs == 0)
    return same


def _in_order_of_keys(items: Items) -> Items:
    keys = pc.dictionary_encode(items.keys)
    ranks = np.empty(len(keys.dictionary), dtype=np.int64)
    ranks[np.asarray(pc.array_sort_indices(keys.dictionary))] = np.arange(len(ranks))
    order = np.lexsort((ranks[np.asarray(keys.indices)], items.rows))
    return Items(items.offsets, items.valid, items.values.take(order), keys.dictionary_decode().take(pa.array(order)))


def _is_not_zero(values: Values) -> Mask:
    return holds(pc.not_equal(values.arrow(Kind.INTEGER), scalar(0))) | holds(
        pc.not_equal(values.arrow(Kind.DECIMAL), scalar(0.0))
    )


def _equal_booleans(left: Values, right: Values) -> Mask:
    """Where the left one is a boolean, and the right one a number or a string that says the same."""
    booleans = left.arrow(Kind.BOOLEAN)
    said = booleans_of(right.arrow(Kind.STRING))
    true = _is_not_zero(right) | holds(said)
    false = right.has(Kind.INTEGER) | right.has(Kind.DECIMAL) | holds(pc.invert(said))
    return (holds(booleans) & true) | (holds(pc.invert(booleans)) & false & ~true)


def _signs(left: Any, right: Any) -> tuple[Signs, Mask]:  # noqa: ANN401 - Arrow arrays of one type
    less, greater = pc.less(left, right), pc.greater(left, right)
    return holds(greater).astype(np.int8) - holds(less).astype(np.int8), present(greater)


def numbers_beside(values: Values, others: Values) -> tuple[Integers, Decimals]:
    """Numbers, and the strings of numbers that stand beside numbers."""
    if Kind.STRING not in values.present:
        return numeric(values)
    beside = others.has(Kind.INTEGER) | others.has(Kind.DECIMAL)
    if values.constant:
        integers, decimals = numeric(values)
        return pc.if_else(pa.array(beside), integers, NULL), pc.if_else(pa.array(beside), decimals, NULL)
    return numeric(values.where(beside | ~values.has(Kind.STRING)))


def _compare_numbers(left: Values, right: Values) -> tuple[Signs, Mask]:
    """Two numbers, or a number and a string of one; two strings of numbers have the order of strings."""
    return _compare_planes(numbers_beside(left, right), numbers_beside(right, left))


def _compare_planes(left: tuple[Integers, Decimals], right: tuple[Integers, Decimals]) -> tuple[Signs, Mask]:
    """Integers and decimals with integers and decimals."""
    (integers, decimals), (others, other_decimals) = left, right
    signs, comparable = _signs(integers, others)
    if decimals.null_count == other_decimals.null_count == len(signs):
        return signs, comparable
    for found, among in (
        _signs(decimals, other_decimals),
        _compare_exactly(integers, other_decimals),
        _negated(*_compare_exactly(others, decimals)),
    ):
        signs[among] = found[among]
        comparable |= among
    return signs, comparable


def _compare_exactly(integers: Integers, decimals: Decimals) -> tuple[Signs, Mask]:
    """Integers with decimals; as decimals, large integers would lose their last digits."""
    below = pc.floor(decimals)
    fits = pc.and_(pc.greater_equal(below, scalar(-(2.0**63))), pc.less(below, scalar(2.0**63)))
    floors = pc.cast(pc.if_else(fits, below, scalar(0.0)), pa.int64())
    signs, comparable = _signs(integers, floors)
    signs[(signs == 0) & holds(pc.greater(decimals, below))] = -1
    signs[holds(pc.greater_equal(decimals, scalar(2.0**63)))] = -1
    signs[holds(pc.less(decimals, scalar(-(2.0**63))))] = 1
    return signs, comparable & present(decimals)


def _negated(signs: Signs, comparable: Mask) -> tuple[Signs, Mask]:
    return -signs, comparable


def _instants(values: Values, others: Values) -> Any:  # noqa: ANN401 - an Arrow array of timestamps
    """The instants of dates, and of strings beside dates."""
    dates: Any = values.arrow(Kind.DATE)
    if Kind.STRING in values.present and Kind.DATE in others.present:
        if values.constant and values.length > 1:
            read = _repeated(read_dates(values.take(_FIRST).arrow(Kind.STRING)), values.length)
        else:
            read = read_dates(values.where(others.has(Kind.DATE)).arrow(Kind.STRING))
        dates = pc.coalesce(dates, read)
    return pc.struct_field(dates, "instant")
