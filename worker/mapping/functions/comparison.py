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

from worker.mapping.functions.base import FALSE_TEXTS, TRUE_TEXTS
from worker.mapping.values import Items, Kind, Values, numbers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Booleans, Decimals, Integers, Mask, Texts

    Signs = NDArray[np.int8]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

NUMBERS = frozenset((Kind.INTEGER, Kind.DECIMAL))


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
    whole, broken = numbers_of(pc.ascii_trim_whitespace(values.arrow(Kind.STRING)))
    return pc.coalesce(integers, whole), pc.coalesce(decimals, broken)


def equal(left: Values, right: Values) -> Mask:
    """Where two columns have the same; null is null, and nothing else."""
    same = left.is_null() & right.is_null()
    if Kind.STRING in left.present & right.present:
        same |= holds(pc.equal(left.arrow(Kind.STRING), right.arrow(Kind.STRING)))
        if left.present == right.present == {Kind.STRING}:
            return same
    signs, comparable = compare(left, right)
    same |= comparable & (signs == 0)
    if Kind.BOOLEAN in left.present | right.present:
        same |= _equal_booleans(left, right) | _equal_booleans(right, left)
    for kind in (Kind.ARRAY, Kind.OBJECT):
        if kind in left.present & right.present:
            both = left.has(kind) & right.has(kind)
            ours, theirs = (_content(side.trees(kind).where(both)) for side in (left, right))
            same |= holds(pc.equal(ours, theirs))
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
        ours, theirs = _instants(left, right), _instants(right, left)
        if ours is not None and theirs is not None:
            note(*_signs(ours, theirs))
    return signs, comparable


def content(values: Values) -> Texts:
    """A text for each row, the same for rows of the same content; null for null."""
    texts: Any = pa.nulls(values.length, pa.string())
    for kind, plane in values.planes.items():
        if kind is Kind.DATE:
            # no JSON begins so
            instants = pc.cast(pc.cast(pc.struct_field(plane, "instant"), pa.int64()), pa.string())
            found = pc.binary_join_element_wise("@", instants, "")
        elif kind is Kind.DECIMAL:
            whole, broken = _whole(plane)
            found = pc.coalesce(pc.cast(whole, pa.string()), pc.cast(broken, pa.string()))
        elif kind in (Kind.ARRAY, Kind.OBJECT):
            found = _content(plane)
        else:
            found = Values(values.length, {kind: plane}).to_json()
        texts = pc.coalesce(texts, found)
    return texts


def _content(items: Items) -> Texts:
    if items.keys is not None:
        items = _in_order_of_keys(items.without_older())
    return items.written(content(items.values))


def _in_order_of_keys(items: Items) -> Items:
    keys = pc.dictionary_encode(items.keys)
    ranks = np.empty(len(keys.dictionary), dtype=np.int64)
    ranks[np.asarray(pc.array_sort_indices(keys.dictionary))] = np.arange(len(ranks))
    order = np.lexsort((ranks[np.asarray(keys.indices)], items.rows))
    return Items(items.offsets, items.valid, items.values.take(order), keys.dictionary_decode().take(pa.array(order)))


def _is_not_zero(values: Values) -> Mask:
    return holds(pc.not_equal(values.arrow(Kind.INTEGER), 0)) | holds(pc.not_equal(values.arrow(Kind.DECIMAL), 0.0))


def _equal_booleans(left: Values, right: Values) -> Mask:
    """Where the left one is a boolean, and the right one a number or a string that says the same."""
    booleans = left.arrow(Kind.BOOLEAN)
    texts = right.arrow(Kind.STRING)
    true = _is_not_zero(right) | holds(pc.is_in(texts, value_set=TRUE_TEXTS))
    false = right.has(Kind.INTEGER) | right.has(Kind.DECIMAL) | holds(pc.is_in(texts, value_set=FALSE_TEXTS))
    return (holds(booleans) & true) | (holds(pc.invert(booleans)) & false & ~true)


def _signs(left: Any, right: Any) -> tuple[Signs, Mask]:  # noqa: ANN401 - Arrow arrays of one type
    less, greater = pc.less(left, right), pc.greater(left, right)
    return holds(greater).astype(np.int8) - holds(less).astype(np.int8), _valid(greater)


def _compare_numbers(left: Values, right: Values) -> tuple[Signs, Mask]:
    """Two numbers, or a number and a string of one; two strings of numbers have the order of strings."""
    strings = left.has(Kind.STRING) & right.has(Kind.STRING)
    (integers, decimals), (others, other_decimals) = (
        numeric(side.where(~strings) if strings.any() else side) for side in (left, right)
    )
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
    fits = pc.and_(pc.greater_equal(below, -(2.0**63)), pc.less(below, 2.0**63))
    floors = pc.cast(pc.if_else(fits, below, 0.0), pa.int64())
    signs, comparable = _signs(integers, floors)
    signs[(signs == 0) & holds(pc.greater(decimals, below))] = -1
    signs[holds(pc.greater_equal(decimals, 2.0**63))] = -1
    signs[holds(pc.less(decimals, -(2.0**63)))] = 1
    return signs, comparable & _valid(decimals)


def _negated(signs: Signs, comparable: Mask) -> tuple[Signs, Mask]:
    return -signs, comparable


def _whole(decimals: Decimals) -> tuple[Integers, Decimals]:
    """Decimals that are integers of 64 bits, and the others."""
    fits = pc.and_(pc.equal(decimals, pc.floor(decimals)), pc.less(pc.abs(decimals), 2.0**63))
    return pc.cast(pc.if_else(fits, decimals, None), pa.int64()), pc.if_else(fits, None, decimals)


def _instants(values: Values, others: Values) -> Any:  # noqa: ANN401 - an Arrow array of instants, or None
    """The instants of dates, and of strings beside dates; None if there are neither."""
    if Kind.STRING not in values.present or Kind.DATE not in others.present:
        return pc.struct_field(values.arrow(Kind.DATE), "instant") if Kind.DATE in values.present else None
    raise NotImplementedError


def _valid(array: Any) -> Mask:  # noqa: ANN401 - an Arrow array
    valid: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return valid
