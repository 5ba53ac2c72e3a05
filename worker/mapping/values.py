"""A column of JSON values, each row of any kind, held so that a whole column is worked on at once.

`Values` keeps one *plane* a kind: a column of that kind alone, null in the rows that hold something else. Most columns
have one plane. Strings, numbers, booleans and dates are Arrow arrays; arrays and objects are `Items`: where each row's
items start and end in another column of values.

| kind    | in Java, for which Adobe's functions were made | plane                                         |
|---------|------------------------------------------------|-----------------------------------------------|
| STRING  | String                                         | string                                        |
| INTEGER | Integer, Long                                  | int64                                         |
| DECIMAL | Float, Double                                  | float64, always finite                        |
| BOOLEAN | Boolean                                        | bool                                          |
| DATE    | ZonedDateTime                                  | struct of `instant`, microseconds UTC, and    |
|         |                                                | `offset`, seconds east of it                  |
| ARRAY   | List                                           | `Items` without keys                          |
| OBJECT  | Map                                            | `Items` with keys; of equal ones the last one |
|         |                                                | counts                                        |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.conversions import conversion_to
from worker.mapping.java_dates import write_iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Positions = NDArray[np.int64]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array, and take others.
pc: Any = pyarrow.compute
_pa: Any = pa

Plane = Any
"""An Arrow array, or `Items`."""

# Arrays of Arrow by what they hold: its own stubs refuse much that it takes, and lose the type in most functions.
Texts = Any
Integers = Any
Decimals = Any
Booleans = Any
Dates = Any

Scalar = str | int | float | bool | None


class Kind(IntEnum):
    """What a row holds."""

    NULL = 0
    STRING = 1
    INTEGER = 2
    DECIMAL = 3
    BOOLEAN = 4
    DATE = 5
    ARRAY = 6
    OBJECT = 7


INSTANT = pa.timestamp("us", tz="UTC")
DATE_TYPE = pa.struct([pa.field("instant", INSTANT), pa.field("offset", pa.int32())])
ARROW_TYPES: dict[Kind, pa.DataType] = {
    Kind.STRING: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.DECIMAL: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.DATE: DATE_TYPE,
}
"""The kinds whose planes are Arrow arrays, and of which type."""

KIND_NAMES = {
    Kind.NULL: "null",
    Kind.STRING: "a string",
    Kind.INTEGER: "an integer",
    Kind.DECIMAL: "a decimal number",
    Kind.BOOLEAN: "a boolean",
    Kind.DATE: "a date",
    Kind.ARRAY: "an array",
    Kind.OBJECT: "an object",
}


class Values:
    """A column of values. Immutable.

    `constant`: whether all rows are known to hold the same, as a literal's do. `said`: gives the dates that are read
    from these strings by the default formats, where who wrote the strings knows them.
    """

    __slots__ = ("constant", "length", "planes", "said")

    def __init__(
        self,
        length: int,
        planes: Mapping[Kind, Plane],
        *,
        constant: bool = False,
        said: Callable[[], Dates] | None = None,
    ) -> None:
        """`planes`: each of `length` rows; a row is null in all of them but one at most."""
        self.length = length
        self.constant = constant
        self.said = said
        self.planes = {kind: plane for kind, plane in planes.items() if plane.null_count < length}

    # Making

    @classmethod
    def nulls(cls, length: int) -> Values:
        return cls(length, {}, constant=True)

    @classmethod
    def repeat(cls, value: Scalar, length: int) -> Values:
        """`value` in every row. An integer must fit 64 bits, a decimal be finite."""
        if value is None:
            return cls.nulls(length)
        kind = _kind_of(value)
        return cls(length, {kind: _pa.repeat(pa.scalar(value, ARROW_TYPES[kind]), length)}, constant=True)

    @classmethod
    def of(cls, array: Plane) -> Values:
        """An Arrow array of one of the `ARROW_TYPES`, or of another width of them."""
        column: Any = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        kind = _kind_of_type(column.type)
        if kind is Kind.NULL:
            return cls.nulls(len(column))
        if column.type != ARROW_TYPES[kind]:
            column = pc.cast(column, ARROW_TYPES[kind])
        return cls(len(column), {kind: column})

    @classmethod
    def dates(cls, instants: Positions, offsets: NDArray[np.int32], valid: Mask) -> Values:
        """Dates from microseconds since 1970 in UTC, and seconds east of it, in which they are shown."""
        fields = [pa.array(instants, pa.int64()).view(INSTANT), pa.array(offsets, pa.int32())]
        plane = pa.StructArray.from_arrays(fields, fields=list(DATE_TYPE), mask=pa.array(~valid))
        return cls(len(plane), {Kind.DATE: plane})

    @classmethod
    def items(cls, items: Items) -> Values:
        """Arrays, or objects when the items have keys."""
        return cls(len(items), {Kind.ARRAY if items.keys is None else Kind.OBJECT: items})

    @classmethod
    def from_python(cls, values: Sequence[object]) -> Values:
        """From what `json.loads` gives: a Python loop over all of it, for few rows or ones that are trees.

        An integer beyond 64 bits becomes a decimal, a number that is not finite a string.
        """
        found: dict[Kind, list[object]] = {}
        for row, value in enumerate(values):
            kind, plain = _of_python(value)
            if kind is not Kind.NULL:
                column = found.get(kind)
                if column is None:
                    column = found[kind] = [None] * len(values)
                column[row] = plain
        planes: dict[Kind, Plane] = {
            kind: Items.from_python(column) if kind not in ARROW_TYPES else pa.array(column, ARROW_TYPES[kind])
            for kind, column in found.items()
        }
        return cls(len(values), planes)

    @classmethod
    def from_json(cls, texts: Texts, kinds: NDArray[np.uint8]) -> Values:
        """From the texts of JSON values and the first byte of each value's JSON, 0 for null.

        A string's text is its own characters, any other value's its JSON. NaN and infinities become strings.
        """
        planes: dict[Kind, Plane] = {}
        strings = kinds == ord('"')
        if strings.all():
            return cls(len(texts), {Kind.STRING: texts})
        planes[Kind.STRING] = _where(texts, strings)
        literals = (kinds == ord("t")) | (kinds == ord("f"))
        if literals.any():
            planes[Kind.BOOLEAN] = pc.equal(_where(texts, literals), scalar("true"))
        trees = (kinds == ord("{")) | (kinds == ord("["))
        numbers = ~(strings | literals | trees | (kinds == 0))
        if numbers.any():
            integers, decimals = numbers_of(_where(texts, numbers))
            planes[Kind.INTEGER], planes[Kind.DECIMAL] = integers, decimals
            if integers.null_count + decimals.null_count > len(texts) + np.count_nonzero(~numbers):
                # what is no number to JSON, or too large for one
                rest = numbers & ~_is_valid(integers) & ~_is_valid(decimals)
                names = pa.array(
                    [_name_of(float(text)) for text in texts.filter(pa.array(rest)).to_pylist()], pa.string()
                )
                planes[Kind.STRING] = pc.replace_with_mask(planes[Kind.STRING], pa.array(rest), names)
        column = cls(len(texts), planes)
        if not trees.any():
            return column
        # there is no vectorised reader for trees of which each row has another shape
        parsed = cls.from_python([_tree(text) for text in texts.filter(pa.array(trees)).to_pylist()])
        places = np.full(len(texts), -1, dtype=np.int64)
        places[trees] = np.arange(parsed.length)
        return Values(len(texts), {**column.planes, **parsed.take(places).planes})

    @classmethod
    def concat(cls, columns: Sequence[Values]) -> Values:
        """One column after another; at least one."""
        if len(columns) == 1:
            return columns[0]
        kinds = dict.fromkeys(kind for column in columns for kind in column.planes)
        planes: dict[Kind, Plane] = {}
        for kind in kinds:
            parts = [column.plane(kind) for column in columns]
            planes[kind] = pa.concat_arrays(parts) if kind in ARROW_TYPES else Items.concat(parts)
        return cls(sum(column.length for column in columns), planes)

    @classmethod
    def choose(cls, index: Positions, columns: Sequence[Values]) -> Values:
        """In row i what `columns[index[i]]` has there; null where the index is -1. All columns have the same length."""
        length = len(index)
        if length and index[0] >= 0 and (index == index[0]).all():
            return columns[int(index[0])]
        kinds = dict.fromkeys(kind for column in columns for kind in column.planes)
        nowhere = index < 0
        chosen = pa.array(index, mask=nowhere)
        planes: dict[Kind, Plane] = {}
        for kind in kinds:
            if kind in ARROW_TYPES and kind is not Kind.DATE:
                planes[kind] = pc.choose(chosen, *(column.plane(kind) for column in columns))
                continue
            at = np.where(nowhere, -1, index * length + np.arange(length))
            if kind is Kind.DATE:
                dates = pa.concat_arrays([column.arrow(kind) for column in columns])
                planes[kind] = dates.take(pa.array(at, mask=nowhere))
            else:
                planes[kind] = Items.concat([column.trees(kind) for column in columns]).take(at)
        return cls(length, planes)

    # Looking

    def __len__(self) -> int:
        return self.length

    @property
    def present(self) -> frozenset[Kind]:
        """The kinds that some row has; without NULL."""
        return frozenset(self.planes)

    def plane(self, kind: Kind) -> Plane:
        """The column of this kind alone; all null where no row has it."""
        plane = self.planes.get(kind)
        if plane is not None:
            return plane
        return _pa.nulls(self.length, ARROW_TYPES[kind]) if kind in ARROW_TYPES else Items.nothing(self.length, kind)

    def arrow(self, kind: Kind) -> Any:  # noqa: ANN401 - an Arrow array, whose stubs differ by type
        """The plane of a kind that Arrow holds."""
        assert kind in ARROW_TYPES, kind
        return self.plane(kind)

    def trees(self, kind: Kind) -> Items:
        """The plane of ARRAY or OBJECT."""
        plane = self.plane(kind)
        assert isinstance(plane, Items), kind
        return plane

    def has(self, kind: Kind) -> Mask:
        """The rows of this kind."""
        if kind is Kind.NULL:
            return self.is_null()
        plane = self.planes.get(kind)
        return np.zeros(self.length, dtype=bool) if plane is None else _is_valid(plane)

    def is_null(self) -> Mask:
        null = np.ones(self.length, dtype=bool)
        for plane in self.planes.values():
            null &= ~_is_valid(plane)
        return null

    def kinds(self) -> NDArray[np.uint8]:
        """The kind of each row."""
        kinds = np.zeros(self.length, dtype=np.uint8)
        for kind, plane in self.planes.items():
            kinds[_is_valid(plane)] = kind
        return kinds

    @property
    def nbytes(self) -> int:
        """How much memory it takes, about."""
        # nulls take no room here, but where they are written
        return self.length + sum(int(plane.nbytes) for plane in self.planes.values())

    def row_bytes(self) -> Positions:
        """How much memory each row takes, about."""
        sizes = np.full(self.length, 8, dtype=np.int64)
        for kind, plane in self.planes.items():
            if isinstance(plane, Items):
                inner = plane.values.row_bytes()
                if plane.keys is not None:
                    inner += _byte_lengths(plane.keys)
                sizes += np.diff(np.append(0, np.cumsum(inner))[plane.offsets])
            elif kind is Kind.STRING:
                sizes += _byte_lengths(plane)
        return sizes

    # Rearranging

    def take(self, positions: Positions) -> Values:
        """The rows at these positions, null where one is -1."""
        at = pa.array(positions, mask=positions < 0)
        planes: dict[Kind, Plane] = {
            kind: plane.take(positions) if isinstance(plane, Items) else plane.take(at)
            for kind, plane in self.planes.items()
        }
        return Values(len(positions), planes, constant=self.constant and bool((positions >= 0).all()))

    def where(self, mask: Mask) -> Values:
        """The same rows, null where the mask does not hold."""
        if mask.all():
            return self
        planes: dict[Kind, Plane] = {
            kind: plane.where(mask) if isinstance(plane, Items) else _where(plane, mask)
            for kind, plane in self.planes.items()
        }
        return Values(self.length, planes)

    # Giving

    def to_texts(self) -> Texts:
        """What each row becomes as a string: strings as they are, the others as in JSON, dates in ISO 8601.

        A decimal without a fraction keeps a `.0`, as in Java.
        """
        texts: Any = self.planes.get(Kind.STRING)
        for kind, plane in self.planes.items():
            if kind is not Kind.STRING:
                written = _write_scalars(kind, plane) if kind in ARROW_TYPES else self.trees(kind).to_json()
                texts = written if texts is None else pc.coalesce(texts, written)
        return pa.nulls(self.length, pa.string()) if texts is None else texts

    def to_json(self) -> Texts:
        """The JSON of each row; null where the row is null. Dates are strings."""
        if self.present <= {Kind.INTEGER, Kind.DECIMAL, Kind.BOOLEAN, Kind.ARRAY, Kind.OBJECT}:
            return self.to_texts()
        texts: Any = self.to_texts()
        quoted = self.has(Kind.STRING) | self.has(Kind.DATE)
        json_texts: Texts = pc.if_else(pa.array(quoted), _quote(texts), texts)
        return json_texts

    def to_pylist(self) -> list[Any]:
        """The rows as `json.loads` would give them; dates as strings."""
        return [None if text is None else orjson.loads(text) for text in self.to_json().to_pylist()]


@dataclass(frozen=True)
class Items:
    """The items of arrays, or the members of objects, one array or object a row.

    Those of row i are `values` from `offsets[i]` to `offsets[i + 1]`; a row that is not `valid` is null and has none.
    `keys` are there for objects only, none of them null.
    """

    offsets: Positions
    valid: Mask
    values: Values
    keys: Texts | None = None

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.valid) + 1
        assert self.offsets[-1] == len(self.values)

    def __len__(self) -> int:
        return len(self.valid)

    @classmethod
    def nothing(cls, length: int, kind: Kind) -> Items:
        """No row has an array, or an object if `kind` is OBJECT."""
        keys = pa.array([], pa.string()) if kind is Kind.OBJECT else None
        return cls(np.zeros(length + 1, dtype=np.int64), np.zeros(length, dtype=bool), Values.nulls(0), keys)

    @classmethod
    def of_lengths(
        cls, lengths: Positions, values: Values, *, valid: Mask | None = None, keys: Texts | None = None
    ) -> Items:
        """So many items a row, one row after another; `lengths` is 0 where a row is not valid."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, np.ones(len(lengths), dtype=bool) if valid is None else valid, values, keys)

    @classmethod
    def rows_of(cls, columns: Sequence[Values], keys: Sequence[str] | None = None) -> Items:
        """In each row an array of what the columns have there, or an object with these keys. At least one column."""
        rows, width = columns[0].length, len(columns)
        # the items of a row lie side by side, those of a column `rows` apart
        at = (np.arange(width)[None, :] * rows + np.arange(rows)[:, None]).ravel()
        values = Values.concat(columns).take(at)
        names = None if keys is None else pa.array(list(keys) * rows, pa.string())
        return cls(np.arange(rows + 1, dtype=np.int64) * width, np.ones(rows, dtype=bool), values, names)

    @classmethod
    def of_list_array(cls, lists: Any) -> Items:  # noqa: ANN401 - a ListArray or LargeListArray of strings
        """Arrays from Arrow's lists of strings."""
        valid = _is_valid(lists)
        lengths = np.where(valid, np.asarray(pc.fill_null(pc.list_value_length(lists), 0)), 0).astype(np.int64)
        return cls.of_lengths(lengths, Values.of(lists.flatten()), valid=valid)

    @classmethod
    def from_python(cls, rows: Sequence[object]) -> Items:
        """Each row a list, a dict, or None; lists and dicts do not mix."""
        lengths = np.zeros(len(rows), dtype=np.int64)
        valid = np.zeros(len(rows), dtype=bool)
        values: list[object] = []
        keys: list[str] = []
        for number, row in enumerate(rows):
            if isinstance(row, dict):
                keys.extend(row)
                values.extend(row.values())
            elif isinstance(row, list):
                values.extend(row)
            else:
                continue
            lengths[number] = len(row)
            valid[number] = True
        named = any(isinstance(row, dict) for row in rows)
        names = pa.array(keys, pa.string()) if named else None
        return cls.of_lengths(lengths, Values.from_python(values), valid=valid, keys=names)

    @classmethod
    def concat(cls, parts: Sequence[Items]) -> Items:
        before = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
        offsets = np.concatenate(
            [[0], *(part.offsets[1:] + start for part, start in zip(parts, before, strict=True))]
        ).astype(np.int64)
        names = [part.keys for part in parts if part.keys is not None]
        return cls(
            offsets,
            np.concatenate([part.valid for part in parts]),
            Values.concat([part.values for part in parts]),
            pa.concat_arrays(names) if names else None,
        )

    @classmethod
    def side_by_side(cls, parts: Sequence[Items]) -> Items:
        """In each row the items of all parts, one part after another; null where one of them is. At least one part."""
        valid = all_of((part.valid for part in parts), len(parts[0]))
        parts = [part.where(valid) for part in parts]
        lengths = np.sum([part.lengths for part in parts], axis=0)
        starts = np.cumsum(lengths) - lengths
        # where each item goes, in the order in which `concat` has them
        targets = []
        for part in parts:
            targets.append(np.repeat(starts, part.lengths) + part.places)
            starts = starts + part.lengths
        at = np.empty(int(lengths.sum()), dtype=np.int64)
        at[np.concatenate(targets)] = np.arange(len(at))
        names = [part.keys for part in parts if part.keys is not None]
        keys = pa.concat_arrays(names).take(pa.array(at)) if names else None
        return cls.of_lengths(lengths, Values.concat([part.values for part in parts]).take(at), valid=valid, keys=keys)

    @property
    def null_count(self) -> int:
        return int(len(self.valid) - np.count_nonzero(self.valid))

    @property
    def nbytes(self) -> int:
        """How much memory they take, about."""
        keys = 0 if self.keys is None else int(self.keys.nbytes)
        return self.offsets.nbytes + self.valid.nbytes + self.values.nbytes + keys

    @cached_property
    def lengths(self) -> Positions:
        """How many items each row has; 0 where it is null."""
        return np.diff(self.offsets)

    @cached_property
    def rows(self) -> Positions:
        """The row of each item."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def places(self) -> Positions:
        """The place of each item within its row, from 0."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)

    def take(self, positions: Positions) -> Items:
        if not len(self.valid):
            return Items(
                np.zeros(len(positions) + 1, dtype=np.int64),
                np.zeros(len(positions), dtype=bool),
                self.values,
                self.keys,
            )
        at = np.maximum(positions, 0)
        valid = (positions >= 0) & self.valid[at]
        lengths = np.where(valid, self.lengths[at], 0)
        ends = np.cumsum(lengths)
        inner = np.repeat(self.offsets[at] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        keys = None if self.keys is None else self.keys.take(pa.array(inner))
        return Items.of_lengths(lengths, self.values.take(inner), valid=valid, keys=keys)

    def where(self, mask: Mask) -> Items:
        if mask.all():
            return self
        return self.take(np.where(mask, np.arange(len(self)), -1))

    def select(self, chosen: Mask) -> Items:
        """Only the items for which the mask holds; every valid row stays, be it empty."""
        at = np.flatnonzero(chosen)
        lengths = np.bincount(self.rows[at], minlength=len(self)).astype(np.int64)
        keys = None if self.keys is None else self.keys.take(pa.array(at))
        return Items.of_lengths(lengths, self.values.take(at), valid=self.valid, keys=keys)

    def item(self, places: Positions) -> Values:
        """The item at a place of each row, counted from 0, from the end if negative; null where there is none."""
        places = np.where(places < 0, places + self.lengths, places)
        there = (places >= 0) & (places < self.lengths)
        return self.values.take(np.where(there, self.offsets[:-1] + places, -1))

    def member(self, name: str) -> Values:
        """The value under a key of each row's object; null where there is none."""
        return self.values.take(self._last(np.asarray(pc.equal(self._keys, name))))

    def members(self, names: Texts) -> Values:
        """The value under another key in each row; null where there is none, or the key is null."""
        wanted = names.take(pa.array(self.rows))
        return self.values.take(self._last(np.asarray(pc.fill_null(pc.equal(self._keys, wanted), fill_value=False))))

    def with_values(self, values: Values) -> Items:
        """The same rows and keys with other values."""
        return Items(self.offsets, self.valid, values, self.keys)

    def without_older(self) -> Items:
        """Of equal keys in an object only the last one, in the place of the first."""
        first, last = _ends_of_equals(self._codes())
        if len(first) == len(self.values):
            return self
        keys = self._keys.take(pa.array(first))
        lengths = np.bincount(self.rows[first], minlength=len(self)).astype(np.int64)
        return Items.of_lengths(lengths, self.values.take(last), valid=self.valid, keys=keys)

    def without_newer(self) -> Items:
        """Of equal keys in an object only the first one."""
        first, _ = _ends_of_equals(self._codes())
        if len(first) == len(self.values):
            return self
        chosen = np.zeros(len(self.values), dtype=bool)
        chosen[first] = True
        return self.select(chosen)

    def to_json(self) -> Texts:
        items = self.without_older() if self.keys is not None else self
        return items.written(items.values.to_json())

    def written(self, texts: Texts) -> Texts:
        """The JSON of each row when that of its items is `texts`, null for null."""
        texts = pc.coalesce(texts, scalar("null"))
        if self.keys is not None:
            texts = pc.binary_join_element_wise(_quote(self.keys), texts, scalar(":"))
        lists = pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), texts)
        opening, closing = ("[", "]") if self.keys is None else ("{", "}")
        joined = pc.binary_join_element_wise(opening, pc.binary_join(lists, ","), closing, scalar(""))
        return _where(joined, self.valid)

    @property
    def _keys(self) -> Texts:
        assert self.keys is not None
        return self.keys

    def _codes(self) -> Positions:
        """A number for each member, the same for members of one object that have the same key."""
        keys = pc.dictionary_encode(self._keys)
        return self.rows * len(keys.dictionary) + np.asarray(keys.indices).astype(np.int64)

    def _last(self, chosen: Mask) -> Positions:
        """The last chosen item of each row, -1 where there is none."""
        last = np.full(len(self), -1, dtype=np.int64)
        at = np.flatnonzero(chosen)
        last[self.rows[at]] = at  # numpy keeps the last of equal indices
        return last


def numbers_of(texts: Texts) -> tuple[Integers, Decimals]:
    """Integers, and the other numbers as decimals, from JSON's numbers; null where a text is null or no finite number.

    An integer beyond 64 bits is a decimal.
    """
    plain = pc.and_(pc.ascii_is_decimal(texts), pc.less_equal(pc.binary_length(texts), scalar(_LONGEST_DIGITS)))
    if pc.all(plain, min_count=0).as_py():
        return pc.cast(texts, pa.int64()), pa.nulls(len(texts), pa.float64())
    whole = pc.match_substring_regex(texts, r"^-?[0-9]{1,18}$")
    integers = pc.cast(pc.if_else(whole, texts, NULL), pa.int64())
    rest = pc.if_else(whole, NULL, texts)
    if rest.null_count == len(rest):
        return integers, pa.nulls(len(texts), pa.float64())
    long = pc.fill_null(pc.match_substring_regex(rest, r"^-?[0-9]+$"), fill_value=False)
    decimals = _decimals(rest)
    if pc.any(long).as_py():
        # the few that have 19 digits and fit; Python reads no thousands of digits
        digits = pc.replace_substring_regex(pc.if_else(long, rest, NULL), "^(-?)0+([0-9])", r"\1\2")
        short = pc.less_equal(pc.binary_length(digits), scalar(_LONG_DIGITS))
        long = pc.fill_null(short, fill_value=False)
        exact = [0 if text is None else int(text) for text in pc.if_else(long, digits, NULL).to_pylist()]
        fits = np.array([-(2**63) <= number < 2**63 for number in exact]) & np.asarray(long)
        values = pa.array([number if fit else None for number, fit in zip(exact, fits, strict=True)], pa.int64())
        integers = pc.coalesce(integers, values)
        decimals = pc.if_else(pa.array(fits), NULL, decimals)
    return integers, decimals


def _tree(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # as lenient as the decoder: NaN, infinities, and numbers too large
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _LONG_DIGITS else float(digits))


def _name_of(number: float) -> str:
    return "NaN" if number != number else "-Infinity" if number < 0 else "Infinity"


_LONGEST_DIGITS = 18
"""Of any integer of 64 bits."""
_LONG_DIGITS = 20
"""Of any integer of 64 bits, and a sign; what has more is none."""
_decimals = conversion_to(pa.float64())


def _kind_of(value: Scalar) -> Kind:
    match value:
        case bool():
            return Kind.BOOLEAN
        case str():
            return Kind.STRING
        case int():
            return Kind.INTEGER
        case float():
            return Kind.DECIMAL
        case None:
            return Kind.NULL


def _of_python(value: object) -> tuple[Kind, object]:
    match value:
        case bool() | str() | None:
            return _kind_of(value), value
        case int():
            return (Kind.INTEGER, value) if -(2**63) <= value < 2**63 else (Kind.DECIMAL, float(value))
        case float():
            return (Kind.DECIMAL, value) if np.isfinite(value) else (Kind.STRING, _name_of(value))
        case list() | tuple():
            return Kind.ARRAY, list(value)
        case dict():
            return Kind.OBJECT, value
    raise TypeError(f"{type(value)} is no JSON")


def _kind_of_type(data_type: pa.DataType) -> Kind:
    if pa.types.is_null(data_type):
        return Kind.NULL
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return Kind.STRING
    if pa.types.is_integer(data_type):
        return Kind.INTEGER
    if pa.types.is_floating(data_type):
        return Kind.DECIMAL
    if pa.types.is_boolean(data_type):
        return Kind.BOOLEAN
    assert data_type == DATE_TYPE, data_type
    return Kind.DATE


def _ends_of_equals(numbers: Positions) -> tuple[Positions, Positions]:
    """The places of the first and of the last of all equal numbers, in the order of the first ones."""
    # a stable sort is many times as fast as the default one for numbers that are nearly in order
    ordered = np.sort(numbers, kind="stable")
    differs = ordered[1:] != ordered[:-1]
    if differs.all():
        every = np.arange(len(numbers))
        return every, every
    order = np.argsort(numbers, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    first, last = order[starts], order[np.append(starts[1:], len(order)) - 1]
    sequence = np.argsort(first, kind="stable")
    return first[sequence], last[sequence]


def _byte_lengths(texts: Texts) -> Positions:
    return np.asarray(pc.fill_null(pc.binary_length(texts), 0)).astype(np.int64)


def _is_valid(plane: Plane | Any) -> Mask:  # noqa: ANN401 - an Arrow array
    if isinstance(plane, Items):
        return plane.valid
    if plane.null_count == 0:
        return np.ones(len(plane), dtype=bool)
    valid: Mask = plane.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _where(array: Any, mask: Mask) -> Any:  # noqa: ANN401 - an Arrow array of the same type
    return array if mask.all() else pc.if_else(pa.array(mask), array, NULL)


def _write_scalars(kind: Kind, plane: Plane) -> Texts:
    if kind is Kind.DATE:
        return iso_texts(plane)
    texts = pc.cast(plane, pa.string())
    if kind is Kind.DECIMAL:
        bare = pc.match_substring_regex(texts, "^-?[0-9]+$")
        texts = pc.if_else(bare, pc.binary_join_element_wise(texts, scalar(".0"), scalar("")), texts)
    return texts


def iso_texts(dates: Any) -> Any:  # noqa: ANN401 - a StructArray of DATE_TYPE, a StringArray
    """ISO 8601 with the offset: `2019-10-23T11:24:35Z`, `2019-10-23T13:24:35.250+02:00`; a fraction if any."""
    instants = np.asarray(pc.fill_null(pc.cast(pc.struct_field(dates, "instant"), pa.int64()), 0))
    offsets = np.asarray(pc.fill_null(pc.struct_field(dates, "offset"), 0))
    texts = write_iso(instants + offsets.astype(np.int64) * 1_000_000, offsets)
    return _where(texts, _is_valid(dates))


_CONTROLS = {chr(code): orjson.dumps(chr(code)).decode()[1:-1] for code in range(32)}


def _quote(texts: Texts) -> Texts:
    """JSON strings from texts."""
    if pc.any(pc.match_substring_regex(texts, r'["\\\x00-\x1f]')).as_py():
        texts = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
        if pc.any(pc.match_substring_regex(texts, r"[\x00-\x1f]")).as_py():
            for control, escape in _CONTROLS.items():
                texts = pc.replace_substring(texts, control, escape)
    return pc.binary_join_element_wise(scalar('"'), texts, scalar('"'), scalar(""))


def all_of(masks: Iterable[Mask], length: int) -> Mask:
    """Where all masks hold."""
    together = np.ones(length, dtype=bool)
    for mask in masks:
        together &= mask
    return together
