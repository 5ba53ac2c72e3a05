"""Functions of strings.

Places and lengths count characters, that is code points of Unicode: Java counts a character beyond U+FFFF twice, and
would cut it in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.functions.base import (
    MAX_TEXT_CHARACTERS,
    TOO_LONG,
    Example,
    Parameter,
    cut,
    function,
    laid_out,
    present,
    spread,
)
from worker.mapping.values import Items, Kind, Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mapping.functions.base import Bytes, Call
    from worker.mapping.values import Integers, Mask, Positions, Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

MAX_PADDED_CHARACTERS = 1_000
"""To how many characters a string is padded: every row of a block may grow to it from nothing."""

_CHARACTERS = "Places and lengths count whole characters, also those that take two units of UTF-16 in Java."
_TEXTS = "Numbers, booleans and dates are taken as they are written; arrays and objects fail."


class Layout:
    """Where the characters of a column of texts lie in its UTF-8."""

    def __init__(self, texts: Texts) -> None:
        self.data: Bytes
        self.data, self.offsets = laid_out(texts)
        self.valid = present(texts)
        read = self.data[self.offsets[0] :]
        # the first byte of each character, and one past the last; None where each byte is a character
        self._firsts: Positions | None = None
        if len(read) and read.max() >= 0x80:
            firsts = np.flatnonzero((read & 0xC0) != 0x80) + self.offsets[0]
            self._firsts = np.append(firsts, self.offsets[-1])
        self._ranks = self._rank(self.offsets)
        self.lengths = np.diff(self._ranks)
        """How many characters each text has."""

    def bytes_of(self, places: Positions) -> Positions:
        """In each text the byte at which the character at this place begins, or the text ends."""
        ranks = self._ranks[:-1] + places
        return ranks if self._firsts is None else self._firsts[ranks]

    def places_of(self, rows: Positions, at: Positions) -> Positions:
        """The places of the characters that begin at these bytes of these rows."""
        return self._rank(at) - self._ranks[rows]

    def slice(self, starts: Positions, ends: Positions) -> Texts:
        """Of each text the characters from one place to before another, neither beyond its end."""
        return cut(self.data, self.bytes_of(starts), self.bytes_of(ends), self.valid)

    def _rank(self, at: Positions) -> Positions:
        return at if self._firsts is None else np.searchsorted(self._firsts, at)


def _counts(call: Call, values: Values, name: str, *, least: int = 0) -> tuple[Positions, Mask]:
    """Integers, and where there are such; one below `least` fails."""
    numbers: Integers = call.integers(values, name)
    counts = np.asarray(pc.fill_null(numbers, least)).astype(np.int64)
    low = counts < least
    call.fail(low, f"{name} is {'negative' if least == 0 else f'less than {least}'}")
    return np.maximum(counts, least), present(numbers) & ~low


@function(
    "concat",
    category="String",
    description="The given strings, one behind the other.",
    parameters=(Parameter("STRING", "a string", repeated=True),),
    returns="string",
    examples=(Example('concat("Hi, ", "there", "!")', "Hi, there!"),),
    decisions=(_TEXTS, "If one of them is null, so is the result."),
)
def concat(call: Call, *strings: Values) -> Values:
    texts = [call.texts(string, "STRING") for string in strings]
    call.check_room(sum(int(text.nbytes) for text in texts))
    return Values.of(call.short(pc.binary_join_element_wise(*texts, scalar(""))))


@function(
    "instr",
    category="String",
    description="The place at which one string occurs in another, counted from 0.",
    parameters=(
        Parameter("INPUT", "the string in which to look"),
        Parameter("SUBSTRING", "what to look for"),
        Parameter("START_POSITION", "the place from which to look, by default 0", required=False),
        Parameter("OCCURRENCE", "which occurrence from there on counts, by default 1, the first", required=False),
    ),
    returns="integer",
    examples=(Example('instr("adobe.com", "com")', 6),),
    decisions=(
        _CHARACTERS,
        "What does not occur is at -1, as in Java.",
        "START_POSITION counts from 0, as the result does; a negative one, and an OCCURRENCE below 1, fail.",
        "Occurrences may overlap; the empty string occurs at every place, also at the end.",
    ),
)
def instr(
    call: Call, given: Values, substring: Values, start_position: Values | None = None, occurrence: Values | None = None
) -> Values:
    texts, needles = call.texts(given, "INPUT"), call.texts(substring, "SUBSTRING")
    starts, has_start = _counts(call, start_position or Values.repeat(0, call.rows), "START_POSITION")
    numbers, has_number = _counts(call, occurrence or Values.repeat(1, call.rows), "OCCURRENCE", least=1)
    parts = []
    for needle, rows in call.by_value(needles):
        layout = Layout(texts if len(rows) == call.rows else texts.take(pa.array(rows)))
        parts.append((rows, Values.of(pa.array(_find(layout, needle.encode(), starts[rows], numbers[rows])))))
    return spread(parts, call.rows).where(present(texts, needles) & has_start & has_number)


def _find(layout: Layout, needle: bytes, starts: Positions, numbers: Positions) -> Positions:
    """In each text the place of the n-th occurrence from a place on, -1 where there is none."""
    beyond = starts > layout.lengths
    starts = np.minimum(starts, layout.lengths)
    if not needle:
        # no text has as many places as a huge number could name
        places = starts + np.minimum(numbers - 1, np.iinfo(np.int32).max)
        return np.where(beyond | (places > layout.lengths), -1, places)
    found = _occurrences(layout.data, needle)
    rows = np.searchsorted(layout.offsets, found, side="right") - 1
    # not across the end of a text, nor before the first one
    inside = (rows >= 0) & (found + len(needle) <= layout.offsets[np.minimum(rows + 1, len(layout.offsets) - 1)])
    found, rows = found[inside], rows[inside]
    if not len(found):
        return np.full(len(starts), -1, dtype=np.int64)
    which = np.searchsorted(found, layout.bytes_of(starts)) + np.minimum(numbers - 1, len(found))
    there = np.minimum(which, len(found) - 1)
    hit = (which < len(found)) & (rows[there] == np.arange(len(starts))) & ~beyond
    return np.where(hit, layout.places_of(rows[there], found[there]), -1)


def _occurrences(data: Bytes, needle: bytes) -> Positions:
    """Where these bytes occur, ascending."""
    at = np.flatnonzero(data[: max(0, len(data) - len(needle) + 1)] == needle[0])
    for place in range(1, len(needle)):
        if not len(at):
            break
        at = at[data[at + place] == needle[place]]
    return at


@function(
    "replacestr",
    category="String",
    description="A string in which every occurrence of another one is replaced.",
    parameters=(
        Parameter("INPUT", "the string"),
        Parameter("TO_FIND", "what to look for"),
        Parameter("TO_REPLACE", "what to put in its place"),
    ),
    returns="string",
    examples=(Example('replacestr("This is a string re test", "re", "replace")', "This is a string replace test"),),
    decisions=("An empty TO_FIND changes nothing.", "TO_FIND is plain text, no regular expression."),
)
def replacestr(call: Call, given: Values, to_find: Values, to_replace: Values) -> Values:
    texts, finds = call.texts(given, "INPUT"), call.texts(to_find, "TO_FIND")
    replacements = call.texts(to_replace, "TO_REPLACE")
    parts = []
    for find, rows in call.by_value(finds):
        texts_here, replacements_here = texts, replacements
        if len(rows) < call.rows:
            texts_here, replacements_here = texts.take(pa.array(rows)), replacements.take(pa.array(rows))
        if not find:
            parts.append((rows, Values.of(texts_here)))
            continue
        pieces = pc.split_pattern(texts_here, find)
        counts = np.asarray(pc.fill_null(pc.list_value_length(pieces), 1)).astype(np.int64) - 1
        growth = np.asarray(pc.fill_null(pc.utf8_length(replacements_here), 0)).astype(np.int64) - len(find)
        lengths = np.asarray(pc.fill_null(pc.utf8_length(texts_here), 0)) + counts * growth
        long = lengths > MAX_TEXT_CHARACTERS
        if long.any():
            failed = np.zeros(call.rows, dtype=bool)
            failed[rows] = long & present(texts_here, replacements_here)
            call.fail(failed, TOO_LONG)
            replacements_here = pc.if_else(pa.array(long), NULL, replacements_here)
        call.check_room(int(lengths[~long].sum()))
        parts.append((rows, Values.of(pc.binary_join(pieces, replacements_here))))
    return spread(parts, call.rows).where(present(texts, finds, replacements))


@function(
    "substr",
    category="String",
    description="A part of a string.",
    parameters=(
        Parameter("INPUT", "the string"),
        Parameter("START_INDEX", "the place at which the part begins, counted from 0"),
        Parameter("LENGTH", "how many characters it has"),
    ),
    returns="string",
    examples=(Example('substr("This is a substring test", 7, 8)', " a subst"),),
    decisions=(
        _CHARACTERS,
        "A part that goes beyond the end of the string ends there; one that begins beyond it is empty.",
        "A negative START_INDEX or LENGTH fails.",
    ),
)
def substr(call: Call, given: Values, start_index: Values, length: Values) -> Values:
    layout = Layout(call.texts(given, "INPUT"))
    starts, has_start = _counts(call, start_index, "START_INDEX")
    lengths, has_length = _counts(call, length, "LENGTH")
    starts = np.minimum(starts, layout.lengths)
    ends = starts + np.minimum(lengths, layout.lengths - starts)
    return Values.of(layout.slice(starts, ends)).where(has_start & has_length)


@function(
    "left",
    category="String",
    description="The first characters of a string.",
    parameters=(Parameter("STRING", "the string"), Parameter("COUNT", "how many characters")),
    returns="string",
    examples=(Example('left("abcde", 2)', "ab"),),
    decisions=(_CHARACTERS, "A shorter string is given whole; a negative COUNT fails."),
)
def left(call: Call, string: Values, count: Values) -> Values:
    layout = Layout(call.texts(string, "STRING"))
    counts, there = _counts(call, count, "COUNT")
    return Values.of(layout.slice(np.zeros_like(counts), np.minimum(counts, layout.lengths))).where(there)


@function(
    "right",
    category="String",
    description="The last characters of a string.",
    parameters=(Parameter("STRING", "the string"), Parameter("COUNT", "how many characters")),
    returns="string",
    examples=(Example('right("abcde", 2)', "de"),),
    decisions=(_CHARACTERS, "A shorter string is given whole; a negative COUNT fails."),
)
def right(call: Call, string: Values, count: Values) -> Values:
    layout = Layout(call.texts(string, "STRING"))
    counts, there = _counts(call, count, "COUNT")
    return Values.of(layout.slice(layout.lengths - np.minimum(counts, layout.lengths), layout.lengths)).where(there)


_PADS = (
    Parameter("INPUT", "the string"),
    Parameter("COUNT", "how many characters the result has at least"),
    Parameter("PADDING", "what to pad with, as often as it takes; a space if it is null or empty"),
)
_PAD_DECISIONS = (
    _CHARACTERS,
    "A string of COUNT characters or more stays as it is, also when COUNT is negative.",
    f"Padding to more than {MAX_PADDED_CHARACTERS:,} characters fails.",
)


@function(
    "lpad",
    category="String",
    description="A string, padded on the left to a length.",
    parameters=_PADS,
    returns="string",
    examples=(Example('lpad("bat", 8, "yz")', "yzyzybat"),),
    decisions=_PAD_DECISIONS,
)
def lpad(call: Call, given: Values, count: Values, padding: Values) -> Values:
    texts, pads, there = _padding(call, given, count, padding)
    return Values.of(pc.binary_join_element_wise(pads, texts, scalar(""))).where(there)


@function(
    "rpad",
    category="String",
    description="A string, padded on the right to a length.",
    parameters=_PADS,
    returns="string",
    examples=(Example('rpad("bat", 8, "yz")', "batyzyzy"),),
    decisions=_PAD_DECISIONS,
)
def rpad(call: Call, given: Values, count: Values, padding: Values) -> Values:
    texts, pads, there = _padding(call, given, count, padding)
    return Values.of(pc.binary_join_element_wise(texts, pads, scalar(""))).where(there)


def _padding(call: Call, given: Values, count: Values, padding: Values) -> tuple[Texts, Texts, Mask]:
    """The strings, what each lacks to its count, and for which rows there is both."""
    texts, counts = call.texts(given, "INPUT"), call.integers(count, "COUNT")
    written = call.texts(padding, "PADDING")
    fillings = pc.fill_null(pc.if_else(pc.equal(written, scalar("")), scalar(" "), written), " ")
    lengths = np.asarray(pc.fill_null(pc.utf8_length(texts), 0)).astype(np.int64)
    wanted = np.asarray(pc.fill_null(counts, 0)).astype(np.int64)
    there = present(texts, counts)
    long = there & (wanted > MAX_PADDED_CHARACTERS) & (wanted > lengths)
    call.fail(long, f"COUNT is more than {MAX_PADDED_CHARACTERS}")
    there &= ~long
    lacking = np.where(there, np.maximum(wanted, lengths) - lengths, 0)
    widths = np.asarray(pc.utf8_length(fillings)).astype(np.int64)
    repeated = Layout(pc.binary_repeat(fillings, pa.array(-(-lacking // widths))))
    return texts, repeated.slice(np.zeros_like(lacking), lacking), there


def _cased(ascii_only: Callable[[Texts], Texts], any_case: Callable[[str], str]) -> Callable[[Call, Values], Values]:
    """A function that changes case: Arrow knows no mapping of one character to several, Python does."""

    def evaluate(call: Call, given: Values) -> Values:
        texts = call.texts(given, "INPUT")
        plain = pc.string_is_ascii(texts)
        if pc.all(plain, min_count=0).as_py():
            return Values.of(ascii_only(texts))
        others = pc.dictionary_encode(pc.if_else(plain, NULL, texts))
        changed = pa.array([any_case(text) for text in others.dictionary.to_pylist()], pa.string())
        plain_changed = ascii_only(pc.if_else(plain, texts, NULL))
        return Values.of(call.short(pc.coalesce(changed.take(others.indices), plain_changed)))

    return evaluate


_CASES = (_TEXTS, "All of Unicode counts, and one character may become several: the capitals of `ß` are `SS`.")

lower = function(
    "lower",
    category="String",
    description="A string in lower case.",
    parameters=(Parameter("INPUT", "the string"),),
    returns="string",
    examples=(Example('lower("HeLLo")', "hello"), Example('lcase("HeLLo")', "hello")),
    aliases=("lcase",),
    decisions=_CASES,
)(_cased(pc.ascii_lower, str.lower))

upper = function(
    "upper",
    category="String",
    description="A string in capitals.",
    parameters=(Parameter("INPUT", "the string"),),
    returns="string",
    examples=(Example('upper("HeLLo")', "HELLO"), Example('ucase("HeLLo")', "HELLO")),
    aliases=("ucase",),
    decisions=_CASES,
)(_cased(pc.ascii_upper, str.upper))


_WHITE_SPACE = (
    "White space is all that Unicode counts as such, also the no-break space, and the separators U+001C to U+001F."
)


def _trimmed(trim_texts: Callable[[Texts], Texts]) -> Callable[[Call, Values], Values]:
    return lambda call, string: Values.of(trim_texts(call.texts(string, "STRING")))


ltrim = function(
    "ltrim",
    category="String",
    description="A string without the white space at its beginning.",
    parameters=(Parameter("STRING", "the string"),),
    returns="string",
    examples=(Example('ltrim(" hello")', "hello"),),
    decisions=(_WHITE_SPACE,),
)(_trimmed(pc.utf8_ltrim_whitespace))

rtrim = function(
    "rtrim",
    category="String",
    description="A string without the white space at its end.",
    parameters=(Parameter("STRING", "the string"),),
    returns="string",
    examples=(Example('rtrim("hello ")', "hello"),),
    decisions=(_WHITE_SPACE,),
)(_trimmed(pc.utf8_rtrim_whitespace))

trim = function(
    "trim",
    category="String",
    description="A string without the white space at its beginning and its end.",
    parameters=(Parameter("STRING", "the string"),),
    returns="string",
    examples=(Example('trim(" hello ")', "hello"),),
    decisions=(_WHITE_SPACE,),
)(_trimmed(pc.utf8_trim_whitespace))


@function(
    "split",
    category="String",
    description="The parts of a string between separators, without empty ones; explode keeps those.",
    parameters=(
        Parameter("INPUT", "the string"),
        Parameter("SEPARATOR", "the characters, each of which separates"),
    ),
    returns="array",
    examples=(Example('split("Hello world", " ")', ["Hello", "world"]),),
    decisions=(
        "Each character of SEPARATOR separates on its own, and separators side by side count as one.",
        "An empty SEPARATOR separates nothing; an empty string has no parts.",
    ),
)
def split(call: Call, given: Values, separator: Values) -> Values:
    texts, separators = call.texts(given, "INPUT"), call.texts(separator, "SEPARATOR")
    parts = []
    for characters, rows in call.by_value(separators):
        texts_here = texts if len(rows) == call.rows else texts.take(pa.array(rows))
        match sorted(set(characters)):
            case []:
                items = Items.rows_of([Values.of(texts_here)]).where(present(texts_here))
            case [one, *others]:
                for other in others:
                    texts_here = pc.replace_substring(texts_here, other, one)
                items = Items.of_list_array(pc.split_pattern(texts_here, one))
        filled = np.asarray(pc.not_equal(items.values.arrow(Kind.STRING), scalar("")))
        parts.append((rows, Values.items(items if filled.all() else items.select(filled))))
    return call.few(spread(parts, call.rows))


@function(
    "join",
    category="String",
    description="The items of an array as one string, with a separator between them.",
    parameters=(
        Parameter("SEPARATOR", "what stands between two items"),
        Parameter("OBJECTS", "the array"),
    ),
    returns="string",
    examples=(Example('join(" ", to_array(true, "Hello", "world"))', "Hello world"),),
    decisions=("An item that is null counts as empty; one that is an array or an object fails the row.",),
)
def join(call: Call, separator: Values, objects: Values) -> Values:
    separators, items = call.texts(separator, "SEPARATOR"), call.arrays(objects, "OBJECTS")
    trees = items.values.has(Kind.ARRAY) | items.values.has(Kind.OBJECT)
    call.fail_items(items, trees, "OBJECTS holds an array or an object, not a string")
    texts = pc.fill_null(items.values.where(~trees).to_texts(), "")
    widths = np.asarray(pc.fill_null(pc.utf8_length(separators), 0)).astype(np.int64)
    ends = np.append(0, np.cumsum(np.asarray(pc.utf8_length(texts)).astype(np.int64)))[items.offsets]
    lengths = np.diff(ends) + widths * np.maximum(items.lengths - 1, 0)
    long = lengths > MAX_TEXT_CHARACTERS
    there = items.valid & present(separators)
    call.fail(long & there, TOO_LONG)
    call.check_room(int(lengths[~long].sum()))
    if long.any():
        separators = pc.if_else(pa.array(long), NULL, separators)
    lists = pa.ListArray.from_arrays(pa.array(items.offsets, pa.int32()), texts)
    return Values.of(pc.binary_join(lists, separators)).where(there)


_EQUALITY = (
    "Numbers, booleans and dates are compared as they are written; arrays and objects fail.",
    "Called on null it gives null; no string equals null.",
)


def _compared(as_compared: Callable[[Texts], Texts]) -> Callable[[Call, Values, Values], Values]:
    def evaluate(call: Call, string1: Values, string2: Values) -> Values:
        texts, others = call.texts(string1, "STRING1"), call.texts(string2, "STRING2")
        same = pc.fill_null(pc.equal(as_compared(texts), as_compared(others)), fill_value=False)
        return Values.of(same).where(present(texts))

    return evaluate


equals = function(
    "equals",
    category="String",
    description="Whether two strings are the same.",
    parameters=(Parameter("STRING1", "one string"), Parameter("STRING2", "the other string")),
    returns="boolean",
    examples=(Example('"string1".equals("STRING1")', value=False),),
    method=True,
    decisions=_EQUALITY,
)(_compared(lambda texts: texts))

equals_ignore_case = function(
    "equalsIgnoreCase",
    category="String",
    description="Whether two strings are the same but for upper and lower case.",
    parameters=(Parameter("STRING1", "one string"), Parameter("STRING2", "the other string")),
    returns="boolean",
    examples=(
        Example(
            '"string1".equalsIgnoreCase("STRING1")',
            value=True,
            note="The page prints it without the second quote of STRING1.",
        ),
    ),
    method=True,
    decisions=(*_EQUALITY, "Character by character, as in Java: `ß` does not equal `SS`."),
)(_compared(lambda texts: pc.utf8_lower(pc.utf8_upper(texts))))
