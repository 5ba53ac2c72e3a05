"""Dates in texts by the patterns of Java's `DateTimeFormatter`, whole columns at a time: `yyyy-MM-dd'T'HH:mm:ssX`.

`compile_pattern` takes a pattern apart into *elements*, each a field such as the month in two digits, a literal text or
a time zone. `Pattern.read` finds the texts that follow it and what they say, `Pattern.write` makes texts.

Where this differs from Java: names and `AM`/`PM` are English and read in any case; offsets are read in all their forms
(`Z`, `+02`, `+0200`, `+02:00`) whatever the letter; a date needs a year only: the month and day it does not name are
the first, the time is midnight, the zone UTC; 31 February is no date, where Java takes the last day of the month;
weeks are those of ISO 8601; years are 1 to 9999; digits beyond microseconds are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.time_zones import DAY, MICROSECONDS, zone_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from worker.mapping.time_zones import Offsets
    from worker.mapping.values import Mask, Positions, Texts

    Bytes = NDArray[np.uint8]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute
_pa: Any = pa

MAX_PATTERN_CHARACTERS = 256
"""Longer patterns are refused: what they write is bounded by this."""

FIRST_YEAR, LAST_YEAR = 1, 9999

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter")

_DAY = DAY * MICROSECONDS


class PatternError(Exception):
    """The pattern is none, or has something that is not supported; the text says what."""


# Calendar


def days_from_civil(year: Positions, month: Positions | int, day: Positions | int) -> Positions:
    """Days since 1970 of a date. Months and days beyond their range roll over into the next or the last."""
    # a year of March to February has its leap day at the end
    shifted = np.asarray(month) - 3
    year = year + shifted // 12
    start = year * 365 + year // 4 - year // 100 + year // 400
    days: Positions = start + ((shifted % 12) * 153 + 2) // 5 + day - 719_469
    return days


class Clock:
    """Parts of the local times of rows, each computed when it is asked for.

    `local` is what a clock shows, in microseconds since 1970. Weeks are those of ISO 8601, Monday is 1.
    """

    def __init__(self, local: Positions) -> None:
        self.local = local

    @cached_property
    def days(self) -> Positions:
        return self.local // _DAY

    @cached_property
    def micro_of_day(self) -> Positions:
        return self.local - self.days * _DAY

    @cached_property
    def second_of_day(self) -> Positions:
        return self.micro_of_day // MICROSECONDS

    @cached_property
    def _civil(self) -> tuple[Positions, Positions, Positions]:
        # 32 bits hold the days of all years that there are, and are half the work
        days = self.days.astype(np.int32) + 719_468
        era = days // 146_097
        of_era = days - era * 146_097
        year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
        of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
        shifted = (5 * of_year + 2) // 153
        day = of_year - (153 * shifted + 2) // 5 + 1
        month = np.where(shifted < 10, shifted + 3, shifted - 9)
        year = year_of_era + era * 400 + (month <= 2)  # January and February end a year
        return year.astype(np.int64), month.astype(np.int64), day.astype(np.int64)

    @property
    def year(self) -> Positions:
        return self._civil[0]

    @property
    def month(self) -> Positions:
        return self._civil[1]

    @property
    def day(self) -> Positions:
        return self._civil[2]

    @property
    def year_of_century(self) -> Positions:
        return self.year % 100

    @property
    def quarter(self) -> Positions:
        return (self.month + 2) // 3

    @cached_property
    def day_of_year(self) -> Positions:
        return self.days - days_from_civil(self.year, 1, 1) + 1

    @cached_property
    def weekday(self) -> Positions:
        return (self.days + 3) % 7 + 1

    @cached_property
    def _thursday(self) -> Clock:
        """The Thursday of the week, whose year the week belongs to."""
        return Clock((self.days - self.weekday + 4) * _DAY)

    @property
    def week_year(self) -> Positions:
        return self._thursday.year

    @property
    def week_year_of_century(self) -> Positions:
        return self.week_year % 100

    @property
    def week(self) -> Positions:
        return (self._thursday.day_of_year - 1) // 7 + 1

    @property
    def week_of_month(self) -> Positions:
        """0 before the first week that has four days in this month."""
        return (self.day - self.weekday + 10) // 7

    @property
    def half(self) -> Positions:
        """0 in the morning, 1 from noon on."""
        return self.second_of_day // 43_200

    @property
    def hour(self) -> Positions:
        return self.second_of_day // 3600

    @property
    def hour_from_1(self) -> Positions:
        return (self.hour - 1) % 24 + 1

    @property
    def half_hour(self) -> Positions:
        return self.hour % 12

    @property
    def half_hour_from_1(self) -> Positions:
        return (self.hour - 1) % 12 + 1

    @property
    def minute(self) -> Positions:
        return self.second_of_day // 60 % 60

    @property
    def second(self) -> Positions:
        return self.second_of_day % 60

    @property
    def micro(self) -> Positions:
        return self.micro_of_day - self.second_of_day * MICROSECONDS

    @property
    def nano(self) -> Positions:
        return self.micro * 1000

    @property
    def milli_of_day(self) -> Positions:
        return self.micro_of_day // 1000

    @property
    def nano_of_day(self) -> Positions:
        return self.micro_of_day * 1000

    def part(self, name: str) -> Positions:
        values: Positions = getattr(self, name)
        return values


def in_years(local: Positions) -> Mask:
    """The rows whose year is one that we read and write."""
    return (local >= _EARLIEST) & (local <= _LATEST)


_EARLIEST = int(days_from_civil(np.array([FIRST_YEAR]), 1, 1)[0]) * _DAY
_LATEST = int(days_from_civil(np.array([LAST_YEAR + 1]), 1, 1)[0]) * _DAY - 1


# Elements


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class Number:
    """A part of `Clock` in digits, at least and at most so many."""

    part: str
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Fraction:
    """The digits after the second's point: so many are written, from `least` to `most` read."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Name:
    """A part of `Clock` by name; the first name stands for `first`. `ambiguous`: it can be written, not read."""

    part: str
    first: int
    names: tuple[str, ...]
    ambiguous: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A time zone: its offset or its name are read, its offset is written as the letters say."""

    letters: str


@dataclass(frozen=True, slots=True)
class Section:
    """Elements that may be missing from a text that is read."""

    elements: tuple[Element, ...]


Element = Literal | Number | Fraction | Name | Place | Section

_MOST_DIGITS = 18  # of any integer of 64 bits; one less than Java takes

# letter: the part, its digits at most, the largest count of letters
_NUMBERS: dict[str, tuple[str, int, int]] = {
    "d": ("day", 2, 2),
    "D": ("day_of_year", 3, 3),
    "H": ("hour", 2, 2),
    "k": ("hour_from_1", 2, 2),
    "K": ("half_hour", 2, 2),
    "h": ("half_hour_from_1", 2, 2),
    "m": ("minute", 2, 2),
    "s": ("second", 2, 2),
    "n": ("nano", 9, _MOST_DIGITS),
    "N": ("nano_of_day", 14, _MOST_DIGITS),
    "A": ("milli_of_day", 8, _MOST_DIGITS),
    "w": ("week", 2, 2),
    "W": ("week_of_month", 1, 1),
}
# letters: the part, its names, their short forms
_NAMES: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "ML": ("month", MONTHS, [name[:3] for name in MONTHS]),
    "Ece": ("weekday", WEEKDAYS, [name[:3] for name in WEEKDAYS]),
    "Qq": ("quarter", QUARTERS, ["Q1", "Q2", "Q3", "Q4"]),
}
_YEARS = {"y": "year", "u": "year", "Y": "week_year"}
_ZONE_COUNTS = {"X": range(1, 6), "x": range(1, 6), "Z": range(1, 6), "O": (1, 4), "V": (2,), "z": range(1, 5)}


def _field(letter: str, count: int) -> Element:
    """What a run of one letter stands for."""
    if letter in _YEARS:
        return _year(_YEARS[letter], count)
    if letter in _NUMBERS:
        part, digits, largest = _NUMBERS[letter]
        if count <= largest:
            exact = digits == 2 and count == 2
            return Number(part, count, count if exact else max(digits, count))
    elif letter == "S" and count <= 9:  # nanoseconds
        return Fraction(count, count)
    elif letter == "a" and count == 1:
        return Name("half", 0, ("AM", "PM"))
    elif letter in _ZONE_COUNTS:
        if count in _ZONE_COUNTS[letter]:
            return Place(letter * count)
    else:
        for letters, (part, names, short) in _NAMES.items():
            if letter in letters:
                return _name(letter, count, part, names, short)
        if letter != "S" and letter != "a":
            raise PatternError(f"the letter {letter} is not supported")
    raise PatternError(f"{letter * min(count, 20)} has too many or too few letters")


def _year(part: str, count: int) -> Element:
    if count > _MOST_DIGITS:
        raise PatternError("a year has too many letters")
    if count == 2:
        return Number(f"{part}_of_century", 2, 2)
    # four letters are four digits: more of them would need a sign in Java
    return Number(part, count, max(count, 4))


def _name(letter: str, count: int, part: str, names: Sequence[str], short: Sequence[str]) -> Element:
    match count:
        case 1 | 2 if letter != "E" and (letter, count) != ("c", 2):
            digits = 2 if part == "month" else 1
            return Number(part, count, max(count, digits))
        case 1 | 2 | 3 if letter != "c" or count == 3:
            return Name(part, 1, tuple(short))
        case 4:
            return Name(part, 1, tuple(names))
        case 5:
            return Name(part, 1, tuple(name[0] for name in names), ambiguous=part != "quarter")
    raise PatternError(f"{letter * min(count, 20)} has too many or too few letters")


_TOKEN = re.compile(r"(?P<field>([A-Za-z])\2*)|'(?P<quoted>(?:[^']|'')*)'|(?P<other>[^A-Za-z'])|(?P<open>')")


def _elements(pattern: str) -> tuple[Element, ...]:
    opened: list[list[Element]] = [[]]
    for token in _TOKEN.finditer(pattern):
        if (run := token["field"]) is not None:
            opened[-1].append(_field(run[0], len(run)))
        elif (quoted := token["quoted"]) is not None:
            # two quotes are a quote, within quotes as outside of them
            opened[-1].append(Literal(quoted.replace("''", "'") or "'"))
        elif token["open"] is not None:
            raise PatternError("a quote is not closed")
        elif (other := token["other"]) == "[":
            opened.append([])
        elif other == "]":
            if len(opened) == 1:
                raise PatternError("a ] closes no [")
            section = Section(tuple(opened.pop()))
            opened[-1].append(section)
        elif other in "{}#":
            raise PatternError(f"{other} is reserved")
        else:
            opened[-1].append(Literal(other))
    # Java closes the sections that are open at the end
    while len(opened) > 1:
        section = Section(tuple(opened.pop()))
        opened[-1].append(section)
    return tuple(opened[0])


@lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> Pattern:
    """The pattern, taken apart. Raises `PatternError`."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise PatternError(f"it is longer than {MAX_PATTERN_CHARACTERS} characters")
    return Pattern(_elements(pattern))


@dataclass(frozen=True, slots=True)
class Moments:
    """What a column of texts says: microseconds UTC, seconds east of it; both 0 where it is not `valid`."""

    instants: Positions
    offsets: Offsets
    valid: Mask

    @classmethod
    def nothing(cls, rows: int) -> Moments:
        return cls(np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=bool))


class Pattern:
    """A pattern's elements, and the ways to read and write by them."""

    def __init__(self, elements: tuple[Element, ...]) -> None:
        self.elements = elements

    def read(self, texts: Texts) -> Moments:
        """What the texts say that follow the pattern and name a date that exists.

        Raises `PatternError` if nothing could be read by it, as without a year.
        """
        return self._reader.read(texts)

    def write(self, local: Positions, offsets: Offsets) -> Texts:
        """A text for each local time, whose years are 1 to 9999, and its offset."""
        return _Writer(Clock(local), offsets).write(self.elements)

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader(self.elements)


_ISO = tuple(compile_pattern(f"yyyy-MM-dd'T'HH:mm:ss{fraction}XXXXX") for fraction in ("", ".SSS", ".SSSSSS"))


def write_iso(local: Positions, offsets: Offsets) -> Texts:
    """ISO 8601 with the offset; a fraction, if any, of three digits or six. Years are 1 to 9999."""
    micro = local % MICROSECONDS
    form = (micro != 0).astype(np.int64) + (micro % 1000 != 0)
    if not len(form) or (form == form[0]).all():
        return _ISO[int(form[0]) if len(form) else 0].write(local, offsets)
    rows = [np.flatnonzero(form == number) for number in range(len(_ISO))]
    parts = [pattern.write(local[at], offsets[at]) for pattern, at in zip(_ISO, rows, strict=True)]
    return _pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(rows))))


# Reading

_OFFSET_REGEX = r"[Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?"
_ZONE_REGEX = rf"{_OFFSET_REGEX}|[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*(?::[0-5][0-9])?"
_LONGEST_OFFSET, _LONGEST_ZONE = 6, 48  # the longest name of a place has 32 bytes


def _is_offset(letters: str) -> bool:
    """Whether these letters stand for an offset only, not for the name of a zone."""
    return letters[0] in "Xx" or letters in ("Z", "ZZ", "ZZZ", "ZZZZZ")


def _regex(element: Element, numbers: Iterator[int]) -> str:
    """A regular expression of one element, in which whatever it holds is a group of its own number."""
    match element:
        case Literal(text):
            return re.escape(text)
        case Section(elements):
            return f"(?:{''.join(_regex(inner, numbers) for inner in elements)})?"
        case Number(_, least, most) | Fraction(least, most):
            held = f"[0-9]{{{least},{most}}}"
        case Name(_, _, names, ambiguous):
            if ambiguous:
                raise PatternError("a name of one letter can be written, but not read")
            held = f"(?i:{'|'.join(map(re.escape, names))})"
        case Place(letters):
            held = _OFFSET_REGEX if _is_offset(letters) else _ZONE_REGEX
    return f"(?P<g{next(numbers)}>{held})"


def _width(element: Element) -> tuple[int, int]:
    """How many bytes an element has at least and at most."""
    match element:
        case Literal(text):
            width = len(text.encode())
            return width, width
        case Number(_, least, most) | Fraction(least, most):
            return least, most
        case Name(_, _, names):
            lengths = [len(name) for name in names]
            return min(lengths), max(lengths)
        case Place(letters):
            return 1, _LONGEST_OFFSET if _is_offset(letters) else _LONGEST_ZONE
        case Section(elements):
            return 0, sum(_width(element)[1] for element in elements)


def _flat(elements: tuple[Element, ...]) -> Iterator[tuple[Element, bool]]:
    """The elements that hold something, and whether they may be missing."""
    for element in elements:
        if isinstance(element, Section):
            yield from ((inner, True) for inner, _ in _flat(element.elements))
        elif not isinstance(element, Literal):
            yield element, False


def _fixed_places(elements: tuple[Element, ...], widths: list[tuple[int, int]]) -> list[int] | None:
    """Where in the bytes of a text the elements that hold something stand, if that is the same in all texts."""
    for number, (element, (least, most)) in enumerate(zip(elements, widths, strict=True)):
        at_the_end = isinstance(element, Place) and number == len(elements) - 1
        if least != most and not at_the_end:
            return None
        # a zone is cut out of characters, not of bytes
        if isinstance(element, Literal) and not element.text.isascii():
            return None
    starts = [0, *accumulate(least for least, _ in widths)]
    return [start for start, element in zip(starts, elements, strict=False) if not isinstance(element, Literal)]


def _fixed_bytes(elements: tuple[Element, ...], widths: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Bytes that are the same in all texts, and where they stand: those before anything that varies in width."""
    found: list[tuple[int, int]] = []
    place = 0
    for element, (least, most) in zip(elements, widths, strict=True):
        if isinstance(element, Literal):
            found += enumerate(element.text.encode(), place)
        if least != most:
            break
        place += least
    return found


def _bytes_of(texts: Texts) -> tuple[NDArray[np.int32], Bytes]:
    """Where each text starts, and the bytes of all."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts)]
    return starts, np.frombuffer(data, dtype=np.uint8)


class _Reader:
    """Finds texts by a regular expression, then takes numbers out of them: from the bytes at fixed places where all
    elements but a zone at the end have a fixed width, which is much faster, else from the expression's groups.
    """

    def __init__(self, elements: tuple[Element, ...]) -> None:
        self.held = list(_flat(elements))
        parts = {element.part for element, _ in self.held if isinstance(element, Number | Name)}
        if not parts & {"year", "year_of_century"} and not (
            parts & {"week_year", "week_year_of_century"} and "week" in parts
        ):
            raise PatternError("it has no year to read")
        halved = parts & {"half_hour", "half_hour_from_1"}
        if halved and not parts & {"half", "hour", "hour_from_1"}:
            raise PatternError("h and K need a to tell morning from afternoon")
        widths = [_width(element) for element in elements]
        self.shortest, self.longest = sum(least for least, _ in widths), sum(most for _, most in widths)
        self.places = _fixed_places(elements, widths)
        self.fixed_bytes = _fixed_bytes(elements, widths)
        numbers = iter(range(len(self.held)))
        self.regex = rf"\A{''.join(_regex(element, numbers) for element in elements)}\z"
        try:
            pc.match_substring_regex(pa.array([], pa.string()), self.regex)
        except pa.ArrowInvalid:
            raise PatternError("it is too large") from None

    def read(self, texts: Texts) -> Moments:
        rows = len(texts)
        lengths = np.asarray(pc.fill_null(pc.binary_length(texts), -1))
        fitting = (lengths >= self.shortest) & (lengths <= self.longest)
        if not fitting.any():
            return Moments.nothing(rows)
        chosen = None if fitting.all() else np.flatnonzero(fitting)
        if chosen is not None:
            texts = texts.take(pa.array(chosen))
        if not self._may_follow(texts):
            return Moments.nothing(rows)
        follows = pc.match_substring_regex(texts, self.regex).to_numpy(zero_copy_only=False)
        if not follows.any():
            return Moments.nothing(rows)
        if not follows.all():
            at = np.flatnonzero(follows)
            texts = texts.take(pa.array(at))
            chosen = at if chosen is None else chosen[at]
        found = self._resolve(
            _Found(self._by_group(texts) if self.places is None else self._by_place(texts, self.places))
        )
        if chosen is None:
            return found
        whole = Moments.nothing(rows)
        whole.instants[chosen], whole.offsets[chosen], whole.valid[chosen] = found.instants, found.offsets, found.valid
        return whole

    def _may_follow(self, texts: Texts) -> bool:
        """Whether some text has the literal bytes where they must be, which is found out faster than by a match."""
        starts, content = _bytes_of(texts)
        there = np.ones(len(texts), dtype=bool)
        for place, byte in self.fixed_bytes:
            there &= content[starts + place] == byte
        return bool(there.any())

    def _by_place(self, texts: Texts, places: list[int]) -> Iterator[_Said]:
        starts, content = _bytes_of(texts)
        for (element, _), place in zip(self.held, places, strict=True):
            if isinstance(element, Place):
                yield element, pc.utf8_slice_codeunits(texts, place), None
                continue
            width = _width(element)[0]
            columns = [content[starts + (place + column)] for column in range(width)]
            if isinstance(element, Name):
                yield element, _name_numbers(columns, element), None
                continue
            value = columns[0].astype(np.int64) - ord("0")
            for column in columns[1:]:
                value = value * 10 + (column - ord("0"))
            yield element, _scaled(element, value, np.int64(width)), None

    def _by_group(self, texts: Texts) -> Iterator[_Said]:
        groups = pc.extract_regex(texts, self.regex)
        for number, (element, optional) in enumerate(self.held):
            text = pc.struct_field(groups, number)
            there: Mask | None = None
            if optional:
                present = pc.not_equal(text, scalar(""))
                there = present.to_numpy(zero_copy_only=False)
                if there.all():
                    there = None
            if isinstance(element, Place):
                yield element, text if there is None else pc.if_else(present, text, NULL), there
            elif isinstance(element, Name):
                names = pa.array([name.lower() for name in element.names])
                values = np.asarray(pc.fill_null(pc.index_in(pc.utf8_lower(text), value_set=names), 0))
                yield element, values.astype(np.int64) + element.first, there
            else:
                digits = text if there is None else pc.if_else(present, text, scalar("0"))
                value = np.asarray(pc.cast(digits, pa.int64()))
                yield element, _scaled(element, value, np.asarray(pc.binary_length(digits)).astype(np.int64)), there

    def _resolve(self, found: _Found) -> Moments:
        local = found.days() * _DAY + found.micro_of_day()
        valid = in_years(local)
        clock = Clock(local)
        # what does not come out again as it was read is no date: 31 February, minute 61, the wrong weekday
        for part, values, there in found.said:
            agrees = clock.part(part) == values
            valid &= agrees if there is None else agrees | ~there
        instants, offsets, known = found.instants(local)
        valid &= known & in_years(instants)
        return Moments(np.where(valid, instants, 0), np.where(valid, offsets, np.int32(0)), valid)


def _scaled(element: Element, value: Positions, digits: Any) -> Positions:  # noqa: ANN401 - an array or a scalar
    """Microseconds from a fraction of so many digits; other numbers as they are."""
    if not isinstance(element, Fraction):
        return value
    scaled: Positions = value * 10 ** np.maximum(6 - digits, 0) // 10 ** np.maximum(digits - 6, 0)
    return scaled


def _name_numbers(columns: list[Bytes], element: Name) -> Positions:
    """Which of names of equal width stand in these columns of bytes."""
    values = np.full(len(columns[0]), element.first, dtype=np.int64)
    lowered = [column | 0x20 for column in columns]
    for number, name in enumerate(element.names):
        same = np.ones(len(values), dtype=bool)
        for column, byte in zip(lowered, name.encode(), strict=True):
            same &= column == (byte | 0x20)
        values[same] = element.first + number
    return values


_Said = tuple[Element, Any, "Mask | None"]


class _Found:
    """What texts say, part by part."""

    def __init__(self, elements: Iterator[_Said]) -> None:
        self.said: list[tuple[str, Positions, Mask | None]] = []
        self.fraction: Any = None
        self.zones: list[tuple[Texts, Mask | None]] = []
        for element, values, there in elements:
            match element:
                case Fraction():
                    self.fraction = (
                        values if there is None or self.fraction is None else np.where(there, values, self.fraction)
                    )
                case Place():
                    self.zones.append((values, there))
                case Number(part="nano" | "nano_of_day" as part):
                    # digits beyond microseconds are dropped
                    self.said.append((part, values // 1000 * 1000, there))
                case Number(part=part) | Name(part=part):
                    self.said.append((part, values, there))

    def _part(self, default: Positions | int, *names: str) -> Positions | int:
        """The first of these parts that a row has."""
        result = default
        for name in reversed(names):
            for part, values, there in self.said:
                if part == name:
                    result = values if there is None else np.where(there, values, result)
        return result

    def _year(self, part: str) -> Positions | None:
        century = self._part(-1, f"{part}_of_century")
        year = self._part(np.where(np.asarray(century) < 0, -1, np.asarray(century) + 2000), part)
        return None if np.ndim(year) == 0 else np.asarray(year)

    def days(self) -> Positions:
        year = self._year("year")
        if year is None:
            return self._days_of_week()
        # a year that is missing becomes -1, which is no valid one
        month = np.asarray(self._part(-1, "month"))
        quarter = np.asarray(self._part(1, "quarter"))
        first = np.where(month < 0, quarter * 3 - 2, month)
        of_year = np.asarray(self._part(-1, "day_of_year"))
        by_month = days_from_civil(year, first, self._part(1, "day"))
        return np.where((month < 0) & (of_year >= 0), days_from_civil(year, 1, of_year), by_month)

    def _days_of_week(self) -> Positions:
        week_year = self._year("week_year")
        assert week_year is not None
        # 4 January lies in the first week
        fourth = days_from_civil(week_year, 1, 4)
        monday = fourth - (fourth + 3) % 7
        days: Positions = monday + (np.asarray(self._part(1, "week")) - 1) * 7 + self._part(1, "weekday") - 1
        return days

    def micro_of_day(self) -> Positions:
        half_hour = np.asarray(self._part(0, "half_hour", "half_hour_from_1")) % 12
        hour = self._part(half_hour + 12 * np.asarray(self._part(0, "half")), "hour", "hour_from_1")
        second = np.asarray(hour) % 24 * 3600 + np.asarray(self._part(0, "minute")) * 60 + self._part(0, "second")
        nano = np.asarray(self._part(0, "nano")) // 1000
        micro = second * MICROSECONDS + (nano if self.fraction is None else self.fraction)
        milli_of_day = np.asarray(self._part(-1, "milli_of_day"))
        micro = np.where(milli_of_day < 0, micro, milli_of_day * 1000)
        nano_of_day = np.asarray(self._part(-1, "nano_of_day"))
        return np.where(nano_of_day < 0, micro, nano_of_day // 1000)

    def instants(self, local: Positions) -> tuple[Positions, Offsets, Mask]:
        """The moments, their offsets, and the rows whose zone there is; UTC where none is said."""
        instants, offsets = local.copy(), np.zeros(len(local), dtype=np.int32)
        known = np.ones(len(local), dtype=bool)
        # the first zone of a text counts: an offset before a place says which of two equal times is meant
        for texts, _ in reversed(self.zones):
            encoded = pc.dictionary_encode(texts)
            codes = np.asarray(pc.fill_null(encoded.indices, -1))
            zones = [zone_of(name) for name in encoded.dictionary.to_pylist()]
            said = codes >= 0
            fixed = np.array([0 if zone is None else zone.fixed for zone in [*zones, None]], dtype=np.int32)[codes]
            offsets = np.where(said, fixed, offsets)
            instants = np.where(said, local - fixed.astype(np.int64) * MICROSECONDS, instants)
            known = np.where(said, np.array([zone is not None for zone in [*zones, None]])[codes], known)
            for code, zone in enumerate(zones):
                if zone is not None and zone.place is not None:
                    at = codes == code
                    instants[at] = zone.instants_of(local[at])
                    offsets[at] = zone.offsets_at(instants[at])
        return instants, offsets, known


# Writing

_PAD = 0xFF  # no byte of UTF-8: it is taken out again


class _Block(NamedTuple):
    """Columns of bytes side by side, a text a row or one for all rows; `padded`: shorter texts are filled up."""

    columns: Bytes
    padded: bool = False

    def at(self, rows: Positions) -> _Block:
        """These rows."""
        columns = self.columns
        width = columns.shape[1]
        if width in (2, 4):
            # taken as one number each
            columns = columns.view(f"u{width}")[:, 0][rows].view(np.uint8).reshape(-1, width)
        else:
            columns = columns[rows]
        return _Block(columns, self.padded)


class _Writer:
    """Writes each element into columns of bytes side by side, as wide as it can get."""

    def __init__(self, clock: Clock, offsets: Offsets) -> None:
        self.clock = clock
        self.offsets = offsets
        self.rows = len(offsets)

    def write(self, elements: tuple[Element, ...]) -> Texts:
        blocks = list(self._blocks(elements))
        width = sum(columns.shape[-1] for columns, _ in blocks)
        page = np.empty((self.rows, width), dtype=np.uint8)
        start = 0
        for columns, _ in blocks:
            page[:, start : start + columns.shape[-1]] = columns
            start += columns.shape[-1]
        ends = np.arange(self.rows + 1, dtype=np.int32) * np.int32(width)
        if any(padded for _, padded in blocks):
            used = page != _PAD
            np.cumsum(np.count_nonzero(used, axis=1), out=ends[1:])
            page = page[used]
        return _pa.StringArray.from_buffers(self.rows, _pa.py_buffer(ends), _pa.py_buffer(page))

    def _blocks(self, elements: tuple[Element, ...]) -> Iterator[_Block]:
        for element in elements:
            match element:
                case Literal(text):
                    yield _Block(np.frombuffer(text.encode(), dtype=np.uint8))
                case Number(part, least, most):
                    yield _digits(self.clock.part(part), least, most)
                case Fraction(digits, _):
                    micro = self.clock.micro
                    scaled = micro // 10 ** (6 - digits) if digits <= 6 else micro * 10 ** (digits - 6)
                    yield _digits(scaled, digits, digits)
                case Name(part, first, names):
                    yield _table(names).at(self.clock.part(part) - first)
                case Place(letters):
                    yield self._zones(letters)
                case Section(inner):
                    yield from self._blocks(inner)

    def _zones(self, letters: str) -> _Block:
        if len(self.offsets) and (self.offsets == self.offsets[0]).all():
            return _Block(np.frombuffer(_zone_text(letters, int(self.offsets[0])).encode(), dtype=np.uint8))
        different, places = np.unique(self.offsets, return_inverse=True)
        return _table(tuple(_zone_text(letters, offset) for offset in different.tolist())).at(places)


_TABLE_DIGITS = 4


def _digits(values: Positions, least: int, most: int) -> _Block:
    """Decimal digits of numbers from 0, with leading zeros up to `least`; no number has more than `most`."""
    if most <= _TABLE_DIGITS:
        return _digit_table(least, most).at(values)
    block = np.full((len(values), most), _PAD, dtype=np.uint8)
    # 64 bits have 19 digits, and no part has more than 14
    for column in range(min(most, 19)):
        power = 10**column
        digits = (values // power % 10 + ord("0")).astype(np.uint8)
        block[:, most - 1 - column] = digits if column < least else np.where(values >= power, digits, np.uint8(_PAD))
    return _Block(block, padded=least < most)


@lru_cache(maxsize=16)
def _digit_table(least: int, most: int) -> _Block:
    return _table(tuple(str(number).zfill(least) for number in range(10**most)))


def _table(texts: tuple[str, ...]) -> _Block:
    encoded = [text.encode() for text in texts]
    widths = set(map(len, encoded))
    width = max(widths, default=0)
    rows = b"".join(text.ljust(width, bytes([_PAD])) for text in encoded)
    return _Block(np.frombuffer(rows, dtype=np.uint8).reshape(len(encoded), width), padded=len(widths) > 1)


def _zone_text(letters: str, offset: int) -> str:
    """An offset as these letters have it; those that name a zone write its offset too, as no name is known."""
    minutes, second = divmod(abs(offset), 60)
    hour, minute = divmod(minutes, 60)
    sign = "-" if offset < 0 else "+"
    seconds = f":{second:02}" if second else ""
    letter, count = letters[0], len(letters)
    if letter == "O" or letters == "ZZZZ":
        if offset == 0:
            return "GMT"
        if count == 1:
            return f"GMT{sign}{hour}{f':{minute:02}' if minute or second else ''}{seconds}"
        return f"GMT{sign}{hour:02}:{minute:02}{seconds}"
    if letter in "Vz":
        return "Z" if offset == 0 else f"{sign}{hour:02}:{minute:02}{seconds}"
    if offset == 0 and (letter == "X" or letters == "ZZZZZ"):
        return "Z"
    if letter == "Z":
        return f"{sign}{hour:02}:{minute:02}{seconds}" if count == 5 else f"{sign}{hour:02}{minute:02}"
    return (
        sign
        + {
            1: f"{hour:02}{f'{minute:02}' if minute else ''}",
            2: f"{hour:02}{minute:02}",
            3: f"{hour:02}:{minute:02}",
            4: f"{hour:02}{minute:02}{seconds[1:]}",
            5: f"{hour:02}:{minute:02}{seconds}",
        }[count]
    )
