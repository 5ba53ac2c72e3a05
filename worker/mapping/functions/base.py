"""What a function of the mapping language is, and what it may ask of its call.

A function is a Python function over columns, with its documentation beside it:

    @function(
        "left",
        category="String",
        description="The first characters of a string.",
        parameters=(Parameter("STRING", "the string"), Parameter("COUNT", "how many characters")),
        returns="string",
        examples=(Example('left("abcde", 2)', "ab"),),
    )
    def left(call: Call, string: Values, count: Values) -> Values: ...

It never raises for what the columns hold: it marks the rows of which it can make nothing with `call.fail` and leaves
them null. Such a row's field is null in the end, whatever the expression goes on to make of it, and counts as a warning
(Data Prep: a failing transformation sets the field to null).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, is_null, scalar
from worker.mapping.conversions import conversion_to
from worker.mapping.values import KIND_NAMES, Items, Kind, Values, all_of, numbers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from worker.mapping.values import Booleans, Decimals, Integers, Mask, Positions, Texts

    Bytes = NDArray[np.uint8]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute
_pa: Any = pa

Returns = Literal["string", "integer", "double", "boolean", "date", "array", "object", "any"]
"""What a function gives where it gives anything; `any` hangs on its arguments."""

MAX_TEXT_CHARACTERS = 1 << 20
"""No function makes a longer string: Mixpanel's events have at most 1 MB."""

TOO_LONG = f"the result is longer than {MAX_TEXT_CHARACTERS} characters"

MAX_MADE_BYTES = 128 << 20
"""All that one expression makes for a block on its way; a block that makes more is taken in halves."""
MAX_ITEMS = 1 << 20
"""No function makes an array or an object of more."""

_decimals = conversion_to(pa.float64())
booleans_of = conversion_to(pa.bool_())
"""Booleans from the strings that are such (Data Prep, data handling), null from any other."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """`repeated`: the last one, which may be given any number of times, not at all if it is not `required`."""

    name: str
    description: str
    required: bool = True
    repeated: bool = False

    def __str__(self) -> str:
        """As it stands in a signature: `NAME`, `NAME…`, or `[NAME]` when it may be left out."""
        if self.repeated:
            return f"{self.name}…"
        return self.name if self.required else f"[{self.name}]"


@dataclass(frozen=True, slots=True)
class Example:
    """`value` is what the expression gives, as JSON; `note` says where Adobe's page prints something else."""

    expression: str
    value: object
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language.

    `evaluate` takes a `Call` and a column an argument. `row_loop` says why nothing vectorised does its work, if it
    loops over rows. `method`: it is called on its first argument, `"a".equals("b")`. `deterministic`: equal arguments
    give an equal result. `decisions`: what we chose where Adobe's documents are silent or disagree.
    """

    name: str
    category: str
    description: str
    parameters: tuple[Parameter, ...]
    returns: Returns
    examples: tuple[Example, ...]
    evaluate: Callable[..., Values]
    aliases: tuple[str, ...] = ()
    method: bool = False
    deterministic: bool = True
    row_loop: str | None = None
    decisions: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """How it is called: `left(STRING, COUNT)`, `STRING1.equals(STRING2)`."""
        names = list(map(str, self.parameters))
        receiver = f"{names.pop(0)}." if self.method else ""
        return f"{receiver}{self.name}({', '.join(names)})"

    @property
    def least_arguments(self) -> int:
        return sum(parameter.required for parameter in self.parameters)

    @property
    def most_arguments(self) -> int | None:
        """None for any number."""
        return None if any(parameter.repeated for parameter in self.parameters) else len(self.parameters)


@dataclass(slots=True)
class Registry:
    """The functions of the language by name and alias."""

    by_name: dict[str, Function] = field(default_factory=dict)

    def add(self, made: Function) -> None:
        for name in (made.name, *made.aliases):
            assert name not in self.by_name, f"there are two functions {name}"
            self.by_name[name] = made


REGISTRY = Registry()


def function(
    name: str,
    *,
    category: str,
    description: str,
    parameters: tuple[Parameter, ...],
    returns: Returns,
    examples: tuple[Example, ...],
    aliases: tuple[str, ...] = (),
    method: bool = False,
    deterministic: bool = True,
    row_loop: str | None = None,
    decisions: tuple[str, ...] = (),
) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    """Enter the decorated function into `REGISTRY`; see `Function`."""

    def enter(evaluate: Callable[..., Values]) -> Callable[..., Values]:
        REGISTRY.add(
            Function(
                name,
                category,
                description,
                parameters,
                returns,
                examples,
                evaluate,
                aliases,
                method,
                deterministic,
                row_loop,
                decisions,
            )
        )
        return evaluate

    return enter


class Call:
    """One evaluation of an expression over a block of rows, as its functions see it."""

    def __init__(self, rows: int, moment: datetime | None = None) -> None:
        """`moment`, aware, is what `now()` gives; by default it is now."""
        self.rows = rows
        self.moment = moment or datetime.now(UTC)
        self.made_bytes = 0
        """What all functions have made, as far as they were counted."""
        self.function: str | None = None
        """The function that is being evaluated, which begins its reasons."""
        self._reason = np.full(rows, -1, dtype=np.int64)
        self._reasons: list[str] = []

    # Failing

    def fail(self, failed: Mask, reason: str) -> None:
        """These rows have no value: `reason` is a sentence without its full stop, such as `COUNT is negative`.

        It says nothing of what the rows hold: there are as many warnings as reasons.
        """
        at = failed & (self._reason < 0)
        if at.any():
            reason = f"{self.function}: {reason}" if self.function else reason
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._reason[at] = self._reasons.index(reason)

    def fail_as(self, part: Call, rows: Positions) -> None:
        """Fail the rows that failed in a call over some of them, for the same reasons."""
        for reason, at in part.failures():
            failed = np.zeros(self.rows, dtype=bool)
            failed[rows[at]] = True
            self.fail(failed, reason)

    @property
    def failed(self) -> Mask:
        return self._reason >= 0

    def failures(self) -> Iterator[tuple[str, Positions]]:
        """Each reason with the rows that failed for it first."""
        for number, reason in enumerate(self._reasons):
            yield reason, np.flatnonzero(self._reason == number)

    # Arguments as one kind; what is null stays null, what does not fit fails

    def texts(self, values: Values, name: str) -> Texts:
        """Strings; numbers, booleans and dates as they are written. Arrays and objects fail."""
        trees = values.has(Kind.ARRAY) | values.has(Kind.OBJECT)
        if not trees.any():
            return values.to_texts()
        self._fail_kinds(values, trees, name, "a string")
        return values.where(~trees).to_texts()

    def integers(self, values: Values, name: str) -> Integers:
        """Integers, decimals without a fraction, and strings of such; of 64 bits."""
        result: Any = values.arrow(Kind.INTEGER)
        if values.present <= {Kind.INTEGER}:
            return result
        decimals = values.arrow(Kind.DECIMAL)
        if Kind.STRING in values.present:
            whole, broken = numbers_of(pc.ascii_trim_whitespace(values.arrow(Kind.STRING)))
            result, decimals = pc.coalesce(result, whole), pc.coalesce(decimals, broken)
        fits = pc.and_(pc.equal(decimals, pc.floor(decimals)), pc.less(pc.abs(decimals), scalar(2.0**63)))
        result = pc.coalesce(result, pc.cast(pc.if_else(fits, decimals, NULL), pa.int64()))
        self._fail_kinds(values, ~values.is_null() & is_null(result), name, "an integer")
        return result

    def numbers(self, values: Values, name: str) -> Decimals:
        """Numbers, and strings of JSON's grammar of numbers, as decimals."""
        result: Any = values.arrow(Kind.DECIMAL)
        if values.present <= {Kind.DECIMAL}:
            return result
        result = pc.coalesce(result, pc.cast(values.arrow(Kind.INTEGER), pa.float64(), safe=False))
        if Kind.STRING in values.present:
            texts = pc.ascii_trim_whitespace(values.arrow(Kind.STRING))
            result = pc.coalesce(result, _decimals(texts))
        self._fail_kinds(values, ~values.is_null() & is_null(result), name, "a number")
        return result

    def booleans(self, values: Values, name: str) -> Booleans:
        """Booleans, and the strings that Data Prep takes for such."""
        result: Any = values.arrow(Kind.BOOLEAN)
        if values.present <= {Kind.BOOLEAN}:
            return result
        if Kind.STRING in values.present:
            result = pc.coalesce(result, booleans_of(values.arrow(Kind.STRING)))
        self._fail_kinds(values, ~values.is_null() & is_null(result), name, "a boolean")
        return result

    def arrays(self, values: Values, name: str) -> Items:
        return self._trees(values, Kind.ARRAY, name)

    def objects(self, values: Values, name: str) -> Items:
        return self._trees(values, Kind.OBJECT, name)

    def by_value(self, texts: Texts) -> Iterator[tuple[str, Positions]]:
        """Each text that some row has, and these rows: for arguments such as formats, which are few or one."""
        if len(texts) and texts.null_count == 0 and pc.all(pc.equal(texts, texts[0])).as_py():
            # as a literal is
            yield texts[0].as_py(), np.arange(len(texts))
            return
        encoded = pc.dictionary_encode(texts)
        codes = np.asarray(pc.fill_null(encoded.indices, -1))
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            yield text, order[starts[code] : starts[code + 1]]

    def short(self, texts: Texts) -> Texts:
        """The texts but for those beyond `MAX_TEXT_CHARACTERS`, which fail."""
        # no text has more characters than bytes
        if not (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_TEXT_CHARACTERS:
            return texts
        long = np.asarray(pc.fill_null(pc.greater(pc.utf8_length(texts), MAX_TEXT_CHARACTERS), fill_value=False))
        self.fail(long, TOO_LONG)
        return pc.if_else(pa.array(long), NULL, texts)

    def check_room(self, size: int) -> None:
        """Raise MemoryError if so many bytes are too many to be made at once: before they are."""
        if size > MAX_MADE_BYTES:
            raise MemoryError(f"more than {MAX_MADE_BYTES >> 20} MiB would be made")

    def few(self, arrays: Values) -> Values:
        """The arrays but for those of more than `MAX_ITEMS`, which fail."""
        many = arrays.trees(Kind.ARRAY).lengths > MAX_ITEMS
        self.fail(many, f"the array would have more than {MAX_ITEMS} items")
        return arrays.where(~many)

    def fail_items(self, items: Items, failed: Mask, reason: str) -> None:
        """Fail the rows in which one of these items failed."""
        rows = np.zeros(self.rows, dtype=bool)
        rows[items.rows[failed]] = True
        self.fail(rows, reason)

    def _trees(self, values: Values, kind: Kind, name: str) -> Items:
        if not values.present <= {kind}:
            self._fail_kinds(values, ~values.is_null() & ~values.has(kind), name, KIND_NAMES[kind])
        return values.trees(kind)

    def _fail_kinds(self, values: Values, failed: Mask, name: str, wanted: str) -> None:
        if not failed.any():
            return
        kinds = values.kinds()
        for kind in map(Kind, np.unique(kinds[failed]).tolist()):
            # a string that is no number, a decimal too large
            close = kind in (Kind.STRING, Kind.DECIMAL)
            what = f"{KIND_NAMES[kind]} that does not make {wanted}" if close else f"{KIND_NAMES[kind]}, not {wanted}"
            self.fail(failed & (kinds == kind), f"{name} is {what}")


def side_by_side(call: Call, parts: Sequence[Items], too_many: str) -> Items:
    """The items of all parts in each row; a row of more than `MAX_ITEMS` fails for the reason `too_many`."""
    there = all_of((part.valid for part in parts), call.rows)
    beyond: Mask = there & (np.sum([part.lengths for part in parts], axis=0) > MAX_ITEMS)
    if beyond.any():
        call.fail(beyond, too_many)
        parts = [part.where(~beyond) for part in parts]
    return Items.side_by_side(parts)


def spread(parts: Sequence[tuple[Positions, Values]], rows: int) -> Values:
    """One column from the results for some rows each; null in the rows that none of them has."""
    if not parts:
        return Values.nulls(rows)
    if len(parts) == 1 and len(parts[0][0]) == rows:
        return parts[0][1]
    at: NDArray[np.int64] = np.full(rows, -1, dtype=np.int64)
    at[np.concatenate([positions for positions, _ in parts])] = np.arange(sum(len(positions) for positions, _ in parts))
    return Values.concat([values for _, values in parts]).take(at)


def present(*columns: Any) -> Mask:  # noqa: ANN401 - Arrow arrays
    """The rows that are null in none of these, which are one at least."""
    return all_of((~is_null(column) for column in columns), len(columns[0]))


def laid_out(texts: Texts) -> tuple[Bytes, Positions]:
    """The UTF-8 of the texts, and where they lie in it: the i-th from `offsets[i]` to before `offsets[i + 1]`.

    What lies in the place of a null is no one's.
    """
    if not len(texts):
        return np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    read = np.zeros(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    return read[: places[-1]], places.astype(np.int64)


def texts_of_bytes(data: Bytes, lengths: Positions, valid: Mask) -> Texts:
    """Texts from their UTF-8, so many bytes each, one after another; null where they are not valid."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise pa.ArrowCapacityError(f"{offsets[-1]} bytes are more than a column of strings can hold")
    valid_bits = None if valid.all() else pa.array(valid).buffers()[1]
    read = _pa.py_buffer(np.ascontiguousarray(data))
    return _pa.StringArray.from_buffers(len(lengths), _pa.py_buffer(offsets.astype(np.int32)), read, valid_bits)


def cut(data: Bytes, starts: Positions, ends: Positions, valid: Mask) -> Texts:
    """The texts whose UTF-8 lies in `data` from each start to before the end beside it."""
    lengths = ends - starts
    if (starts[1:] == ends[:-1]).all() and (lengths >= 0).all():
        # side by side: what lies in the place of a null may stay
        return texts_of_bytes(data[starts[0] : ends[-1]] if len(starts) else data[:0], lengths, valid)
    lengths = np.where(valid, lengths, 0)
    shifts = starts - (np.cumsum(lengths) - lengths)
    return texts_of_bytes(data[np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))], lengths, valid)
