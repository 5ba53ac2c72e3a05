"""Functions that read, write and take apart dates.

A date is a moment and the offset from UTC in which it is shown; its year, in UTC as there, is 1 to 9999.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute

from worker.mapping.functions.base import Example, Parameter, function, present, spread
from worker.mapping.java_dates import (
    FIRST_YEAR,
    LAST_YEAR,
    Clock,
    Fraction,
    Literal,
    Moments,
    Number,
    Pattern,
    PatternError,
    Place,
    Section,
    compile_pattern,
    days_from_civil,
    in_years,
)
from worker.mapping.time_zones import DAY, EPOCH, MICROSECONDS, zone_of
from worker.mapping.values import KIND_NAMES, Kind, Values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.mapping.functions.base import Call
    from worker.mapping.time_zones import Offsets, Zone
    from worker.mapping.values import Dates, Integers, Mask, Positions, Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

DATES = "Date and time"

DEFAULT_FORMATS = (
    "yyyy-MM-dd HH:mm:ssZ",
    "yyyy-MM-dd HH:mm:ss.SSSZ",
    "yyyy-MM-dd HH:mm:ss.SSS",
    "yyyy-MM-dd'T'HH:mm:ss.SSSX",
    "yyyy-MM-dd'T'HH:mm:ss'Z'",
    "yyyy-MM-dd",
    "yyyy/MM/dd",
    "yyyy.MM.dd",
    "yyyy-MMM-dd",
    "yyyyMMdd",
    "MM-dd-yyyy",
    "MMddyyyy",
    "M/dd/yyyy",
    "dd.M.yyyy",
    "M/dd/yyyy hh:mm:ss a",
    "dd.M.yyyy hh:mm:ss a",
    "dd.MMM.yyyy",
    "dd-MMM-yyyy",
)
"""The formats of dates that Data Prep lists, in its order."""


SAID_TO = {
    "yyyy-MM-dd'T'HH:mm:ss.SSSX": 1000,
    "yyyy-MM-dd'T'HH:mm:ss.SSS'Z'": 1000,
    "yyyy-MM-dd'T'HH:mm:ssX": MICROSECONDS,
    "yyyy-MM-dd'T'HH:mm:ss'Z'": MICROSECONDS,
    "yyyy-MM-dd HH:mm:ss.SSS": 1000,
    "yyyy-MM-dd HH:mm:ss": MICROSECONDS,
    "yyyy-MM-dd": DAY * MICROSECONDS,
}
"""Formats of which the default formats read again, to so many microseconds, what they wrote of a date in UTC."""


def _iso(between: str) -> Pattern:
    """ISO 8601 with less or more than the formats of the list have: no seconds, any fraction, an offset or zone."""
    zone = Section((Section((Literal(" "),)), Place("VV")))
    fraction = Section((Literal("."), Fraction(1, 9)))
    seconds = Section((Literal(":"), Number("second", 2, 2), fraction))
    day = (Number("year", 4, 4), Literal("-"), Number("month", 2, 2), Literal("-"), Number("day", 2, 2))
    time = (Literal(between), Number("hour", 2, 2), Literal(":"), Number("minute", 2, 2), seconds, zone)
    return Pattern((*day, *time))


# Those in the middle are ISO too; a pattern of fixed places is read much faster.
_DEFAULT_PATTERNS = (
    *map(compile_pattern, DEFAULT_FORMATS),
    *map(
        compile_pattern,
        (
            "yyyy-MM-dd HH:mm:ss",
            "yyyy-MM-dd'T'HH:mm:ss",
            "yyyy-MM-dd'T'HH:mm:ssX",
            "yyyy-MM-dd'T'HH:mm:ss.SSSSSSX",
        ),
    ),
    *map(_iso, "T t"),
)

_READ_DECISIONS = (
    "A string where a date is wanted is read by the listed default formats, tried in their order, each row by itself; "
    "after them by ISO 8601, with `T` or a space, seconds or none, a fraction of up to 9 digits, an offset or the name "
    "of a zone (`2019-10-17T11:55:12 PST`).",
    "A string without a zone is in UTC.",
    "Names of months and days are English, in any case of letters; names shorter than a format's are not read.",
    "A date that the calendar does not have, as 31 February, fails; Java's usual resolver takes the last day of the "
    "month.",
    "Fractions of a second are kept to the microsecond, also where Data Prep says that batch ingestion drops them.",
    "A number is no date, as it could be seconds or milliseconds, and fails.",
    "Years are 1 to 9999.",
)
_ZONE_DECISIONS = (
    "A zone is the name of a place (`Europe/Paris`), an offset (`+02:00`, `GMT+2`), or a short name: PST, EST, CET and "
    "other usual ones are fixed offsets, in summer too.",
    "A local time that the clocks show twice is the earlier one; one that they skip moves on by what they skip.",
)
_FORMAT_DECISIONS = (
    "Formats have the letters y u M L Q q D d E e c w W Y a H k K h m s S n N A X x Z O V z of Java's "
    "DateTimeFormatter, quotes and [ ]; a format with others fails, as does one longer than 256 characters.",
    "Weeks are those of ISO 8601 and start on Monday, which is day 1.",
)
_WRITE_DECISIONS = (
    *_FORMAT_DECISIONS,
    "Names are English. A date knows its offset, not the name of its zone, so z and VV write the offset.",
)
_READ_FORMAT_DECISIONS = (
    *_FORMAT_DECISIONS,
    "A format needs a year; a month and a day that it does not have are the first, the time is midnight.",
    "Offsets are read in all forms, whatever the letter: Z, +02, +0200, +02:00.",
)


# Dates of columns, for the functions of other families too


def dates_of(call: Call, values: Values, name: str) -> Dates:
    """The column as dates: dates, and strings that are dates by the default formats; what else it holds fails."""
    if values.present <= {Kind.DATE}:
        return values.arrow(Kind.DATE)
    for kind in sorted(values.present - {Kind.DATE, Kind.STRING}):
        call.fail(values.has(kind), f"{name} is {KIND_NAMES[kind]}, not a date")
    if Kind.STRING not in values.present:
        return values.arrow(Kind.DATE)
    if values.said is not None:
        return values.said()
    read = read_dates(values.arrow(Kind.STRING))
    call.fail(values.has(Kind.STRING) & ~present(read), f"{name} is a string that does not make a date")
    return read if Kind.DATE not in values.present else pc.coalesce(values.arrow(Kind.DATE), read)


def read_dates(texts: Texts) -> Dates:
    """Dates by the default formats; null where a text is null or none of them fits."""
    rows = len(texts)
    found = Moments.nothing(rows)
    left = np.flatnonzero(present(texts))
    rest = texts
    for pattern in _DEFAULT_PATTERNS:
        if not len(left):
            break
        if len(left) < len(rest):
            rest = texts.take(left)
        read = pattern.read(rest)
        if not read.valid.any():
            continue
        if read.valid.all() and len(left) == rows:
            return _dates(read).arrow(Kind.DATE)
        at = left[read.valid]
        found.instants[at], found.offsets[at] = read.instants[read.valid], read.offsets[read.valid]
        found.valid[at] = True
        left = left[~read.valid]
    return _dates(found).arrow(Kind.DATE)


def _dates(moments: Moments) -> Values:
    return Values.dates(moments.instants, moments.offsets, moments.valid)


def _moments(dates: Dates) -> Moments:
    instants = pc.fill_null(pc.cast(pc.struct_field(dates, "instant"), pyarrow.int64()), 0)
    offsets = pc.fill_null(pc.struct_field(dates, "offset"), 0)
    return Moments(np.asarray(instants), np.asarray(offsets), present(dates))


def _moments_of(call: Call, values: Values, name: str) -> Moments:
    return _moments(dates_of(call, values, name))


def _local(moments: Moments) -> Positions:
    """What a clock at each date's offset shows."""
    return moments.instants + moments.offsets.astype(np.int64) * MICROSECONDS


def _shown(call: Call, instants: Positions, offsets: Offsets, wanted: Mask, name: str) -> Values:
    """Dates in the `wanted` rows; those beyond the years that there are fail."""
    local = instants + offsets.astype(np.int64) * MICROSECONDS
    valid = wanted & in_years(instants) & in_years(local)
    call.fail(wanted & ~valid, f"{name}: the date is not in the years {FIRST_YEAR} to {LAST_YEAR}")
    return Values.dates(np.where(valid, instants, 0), np.where(valid, offsets, np.int32(0)), valid)


def _numbers(integers: Integers) -> tuple[Positions, Mask]:
    """An integer each row, 0 where it is null, and where it is not."""
    return np.asarray(pc.fill_null(integers, 0)), present(integers)


def _patterns(call: Call, formats: Texts, wanted: Mask) -> Iterator[tuple[Pattern, Positions]]:
    """The patterns with their rows among the `wanted` ones, which fail if their format is none."""
    for text, rows in call.by_value(formats):
        at = rows if wanted.all() else rows[wanted[rows]]
        if len(at):
            try:
                yield compile_pattern(text), at
            except PatternError as error:
                call.fail(_rows(at, call.rows), f"FORMAT is not usable: {error}")


def _zones(call: Call, names: Texts, wanted: Mask, name: str) -> Iterator[tuple[Zone, Positions]]:
    """The zones with their rows among the `wanted` ones, which fail if there is no zone of that name."""
    for text, rows in call.by_value(names):
        at = rows if wanted.all() else rows[wanted[rows]]
        if not len(at):
            continue
        zone = zone_of(text)
        if zone is None:
            call.fail(_rows(at, call.rows), f"{name} is no time zone")
        else:
            yield zone, at


def _rows(at: Positions, rows: int) -> Mask:
    mask = np.zeros(rows, dtype=bool)
    mask[at] = True
    return mask


# The clock


@function(
    "now",
    category=DATES,
    description="The current moment, in UTC.",
    parameters=(),
    returns="date",
    examples=(),
    deterministic=False,
    decisions=("All rows that are mapped together have the same moment.",),
)
def now(call: Call) -> Values:
    return _constant_date(call)


def _constant_date(call: Call) -> Values:
    moment = np.full(call.rows, _microseconds(call), dtype=np.int64)
    dates = Values.dates(moment, np.zeros(call.rows, dtype=np.int32), np.ones(call.rows, dtype=bool))
    return Values(dates.length, dates.planes, constant=True)


def _microseconds(call: Call) -> int:
    return (call.moment - EPOCH) // timedelta(microseconds=1)


@function(
    "timestamp",
    category=DATES,
    description="The current moment, in milliseconds since 1970.",
    parameters=(),
    returns="integer",
    examples=(),
    deterministic=False,
    decisions=("All rows that are mapped together have the same moment.",),
)
def timestamp(call: Call) -> Values:
    return Values.repeat(_microseconds(call) // 1000, call.rows)


# Writing


@function(
    "format",
    category=DATES,
    description="A date as a string.",
    parameters=(
        Parameter("DATE", "the date"),
        Parameter("FORMAT", "the form of the string, by the letters of Java's DateTimeFormatter"),
    ),
    returns="string",
    examples=(
        Example(
            'format(date("2019-10-23T11:24:35Z"), "yyyy-MM-dd HH:mm:ss")',
            "2019-10-23 11:24:35",
            note="Adobe's page has the date without quotes and with other seconds than in its result.",
        ),
    ),
    decisions=(*_WRITE_DECISIONS, "The date is written at its own offset.", *_READ_DECISIONS),
)
def format_date(call: Call, date: Values, pattern: Values) -> Values:
    return _written(call, _moments_of(call, date, "DATE"), call.texts(pattern, "FORMAT"))


@function(
    "dformat",
    category=DATES,
    description="A moment in milliseconds since 1970 as a string, in UTC.",
    parameters=(
        Parameter("TIMESTAMP", "milliseconds since 1970"),
        Parameter("FORMAT", "the form of the string, by the letters of Java's DateTimeFormatter"),
    ),
    returns="string",
    examples=(Example("dformat(1571829875000, \"yyyy-MM-dd'T'HH:mm:ss.SSSX\")", "2019-10-23T11:24:35.000Z"),),
    decisions=(*_WRITE_DECISIONS, "Years are 1 to 9999."),
)
def dformat(call: Call, milliseconds: Values, pattern: Values) -> Values:
    numbers, there = _numbers(call.integers(milliseconds, "TIMESTAMP"))
    # milliseconds that are too many for microseconds are too many for a year
    near = np.abs(numbers // 1000) < 1 << 40
    instants = np.where(near, numbers, np.int64(2**53)) * 1000
    dates = _shown(call, instants, np.zeros(call.rows, dtype=np.int32), there, "TIMESTAMP")
    moments, formats = _moments(dates.arrow(Kind.DATE)), call.texts(pattern, "FORMAT")
    written = _written(call, moments, formats)
    unit = SAID_TO.get(formats[0].as_py()) if pattern.constant and call.rows else None
    if unit is None:
        return written

    def said() -> Dates:
        instants = moments.instants // unit * unit
        return Values.dates(instants, moments.offsets, moments.valid).arrow(Kind.DATE)

    return Values(written.length, written.planes, said=said)


def _written(call: Call, moments: Moments, formats: Texts) -> Values:
    local = _local(moments)
    parts = [
        (at, Values.of(pattern.write(local[at], moments.offsets[at])))
        for pattern, at in _patterns(call, formats, moments.valid)
    ]
    return spread(parts, call.rows)


# Reading


@function(
    "date",
    category=DATES,
    description="The date that a string says.",
    parameters=(
        Parameter("DATE", "the string"),
        Parameter(
            "FORMAT",
            "the form of that string, by the letters of Java's DateTimeFormatter; without it the default formats",
            required=False,
        ),
        Parameter("DEFAULT_DATE", "the date where there is no string", required=False),
    ),
    returns="date",
    examples=(
        Example('date("2019-10-23 11:24", "yyyy-MM-dd HH:mm", now())', "2019-10-23T11:24:00Z"),
        Example('date("2019-10-23 11:24", "yyyy-MM-dd HH:mm")', "2019-10-23T11:24:00Z"),
        Example('date("2019-10-23 11:24")', "2019-10-23T11:24:00Z"),
    ),
    decisions=(
        *_READ_FORMAT_DECISIONS,
        "What is a date already stays as it is, whatever the format.",
        "With a format a number is read as its digits are written.",
        "DEFAULT_DATE stands in for null only, not for a string that is no date.",
        *_READ_DECISIONS,
    ),
)
def date(call: Call, value: Values, pattern: Values | None = None, default: Values | None = None) -> Values:
    if pattern is None:
        return Values.of(dates_of(call, value, "DATE"))
    given = value.has(Kind.DATE)
    texts = call.texts(value.where(~given), "DATE")
    found = _read(call, texts, call.texts(pattern, "FORMAT"))
    null = value.is_null()
    if not given.any() and (default is None or not null.any()):
        return _dates(found)
    columns = [value.where(given), _dates(found)]
    if default is not None:
        columns.append(Values.of(dates_of(call, default.where(null), "DEFAULT_DATE")))
    return Values.choose(np.where(given, 0, np.where(null, len(columns) - 1, 1)), columns)


def _read(call: Call, texts: Texts, formats: Texts) -> Moments:
    found = Moments.nothing(call.rows)
    wanted = present(texts)
    for pattern, at in _patterns(call, formats, wanted):
        all_rows = len(at) == call.rows
        try:
            read = pattern.read(texts if all_rows else texts.take(at))
        except PatternError as error:
            call.fail(_rows(at, call.rows), f"FORMAT is not usable: {error}")
            continue
        if not read.valid.all():
            call.fail(_rows(at[~read.valid], call.rows), "DATE is no date as FORMAT says it")
        if all_rows:
            return read
        found.instants[at], found.offsets[at], found.valid[at] = read.instants, read.offsets, read.valid
    return found


# Parts

_COMPONENTS = {
    **dict.fromkeys(("year", "yyyy", "yy"), "year"),
    **dict.fromkeys(("quarter", "qq", "q"), "quarter"),
    **dict.fromkeys(("month", "mm", "m"), "month"),
    **dict.fromkeys(("dayofyear", "dy", "y"), "day_of_year"),
    **dict.fromkeys(("day", "dd", "d"), "day"),
    **dict.fromkeys(("week", "ww", "w"), "week"),
    **dict.fromkeys(("weekday", "dw"), "weekday"),
    **dict.fromkeys(("hour", "hh", "hh24"), "hour"),
    "hh12": "half_hour_from_1",
    **dict.fromkeys(("minute", "mi", "n"), "minute"),
    **dict.fromkeys(("second", "ss", "s"), "second"),
    "millisecond": "millisecond",
}
_SETTABLE = ("year", "month", "day", "hour", "minute", "second")
_UNSETTABLE_NAMES = frozenset({"hh12", "hh24"})
_IN_DAY = {"hour": (24, 3600), "minute": (60, 60), "second": (60, 1)}


def _component(text: str) -> str | None:
    return "millisecond" if text == "SSS" else _COMPONENTS.get(text.lower())


_COMPONENT_DECISION = "Names of components are taken in any case of letters, but `SSS`, which is milliseconds."


@function(
    "date_part",
    category=DATES,
    description="One part of a date, as a number.",
    parameters=(
        Parameter(
            "COMPONENT",
            "year yyyy yy; quarter qq q; month mm m; dayofyear dy y; day dd d; week ww w; weekday dw; "
            "hour hh hh24; hh12; minute mi n; second ss s; millisecond SSS",
        ),
        Parameter("DATE", "the date"),
    ),
    returns="integer",
    examples=(Example('date_part("MM", date("2019-10-17 11:55:12"))', 10),),
    decisions=(
        _COMPONENT_DECISION,
        "`w`, which Adobe's page has for the week and for the weekday, is the week.",
        "Weeks are those of ISO 8601; weekdays count from Monday, which is 1, as in Java.",
        "`hh12` is 1 to 12. Parts are taken at the date's own offset.",
        *_READ_DECISIONS,
    ),
)
def date_part(call: Call, component: Values, date: Values) -> Values:
    moments = _moments_of(call, date, "DATE")
    local = _local(moments)
    parts = []
    for text, rows in call.by_value(call.texts(component, "COMPONENT")):
        at = rows if moments.valid.all() else rows[moments.valid[rows]]
        part = _component(text)
        if part is None:
            call.fail(_rows(at, call.rows), "COMPONENT is none of a date")
        elif len(at):
            clock = Clock(local[at])
            numbers = clock.micro // 1000 if part == "millisecond" else clock.part(part)
            parts.append((at, Values.of(pyarrow.array(numbers))))
    return spread(parts, call.rows)


@function(
    "set_date_part",
    category=DATES,
    description="The date with one part replaced.",
    parameters=(
        Parameter("COMPONENT", "year yyyy yy; month mm m; day dd d; hour hh; minute mi n; second ss s"),
        Parameter("VALUE", "the part's new number"),
        Parameter("DATE", "the date"),
    ),
    returns="date",
    examples=(
        Example(
            'set_date_part("m", 4, date("2016-11-09T11:44:44.797"))',
            "2016-04-09T11:44:44.797Z",
            note="Adobe's page lacks a parenthesis, and prints the result without its milliseconds.",
        ),
    ),
    decisions=(
        _COMPONENT_DECISION,
        "Where the new month or year has fewer days, the day becomes its last one, as in Java; a day that the month "
        "does not have fails.",
        "The date stays at its offset, and keeps its fraction of a second.",
        *_READ_DECISIONS,
    ),
)
def set_date_part(call: Call, component: Values, value: Values, date: Values) -> Values:
    moments = _moments_of(call, date, "DATE")
    numbers, there = _numbers(call.integers(value, "VALUE"))
    wanted = moments.valid & there
    local, changed = _local(moments), np.zeros(call.rows, dtype=bool)
    for text, rows in call.by_value(call.texts(component, "COMPONENT")):
        at = rows if wanted.all() else rows[wanted[rows]]
        part = _component(text)
        if part not in _SETTABLE or text.lower() in _UNSETTABLE_NAMES:
            call.fail(_rows(at, call.rows), "COMPONENT is none that can be set")
            continue
        replaced, fits = _replaced(Clock(local[at]), part, numbers[at])
        call.fail(_rows(at[~fits], call.rows), f"VALUE is no {part} of the date")
        local[at], changed[at] = replaced, fits
    return _shown(
        call,
        local - moments.offsets.astype(np.int64) * MICROSECONDS,
        moments.offsets,
        changed,
        "set_date_part",
    )


def _replaced(clock: Clock, part: str, numbers: Positions) -> tuple[Positions, Mask]:
    """The local times with one part replaced, and where that makes a date."""
    if part in _IN_DAY:
        limit, seconds = _IN_DAY[part]
        fits = (numbers >= 0) & (numbers < limit)
        return clock.local + (np.where(fits, numbers, 0) - clock.part(part)) * seconds * MICROSECONDS, fits
    lowest, highest = {"year": (FIRST_YEAR, LAST_YEAR), "month": (1, 12), "day": (1, 31)}[part]
    fits = (numbers >= lowest) & (numbers <= highest)
    numbers = np.where(fits, numbers, 1)
    year = numbers if part == "year" else clock.year
    month = numbers if part == "month" else clock.month
    days = _days_in_month(year, month)
    if part == "day":
        fits &= numbers <= days
    day = numbers if part == "day" else np.minimum(clock.day, days)
    return days_from_civil(year, month, day) * DAY * MICROSECONDS + clock.micro_of_day, fits


def _days_in_month(year: Positions, month: Positions) -> Positions:
    return days_from_civil(year, month + 1, 1) - days_from_civil(year, month, 1)


_RANGES = {
    "YEAR": (FIRST_YEAR, LAST_YEAR),
    "MONTH": (1, 12),
    "DAY": (1, 31),
    "HOUR": (0, 23),
    "MINUTE": (0, 59),
    "SECOND": (0, 59),
    "NANOSECOND": (0, 999_999_999),
}


@function(
    "make_date_time",
    aliases=("make_timestamp",),
    category=DATES,
    description="A date from its parts.",
    parameters=(
        *(Parameter(name, f"{lowest} to {highest}") for name, (lowest, highest) in _RANGES.items()),
        Parameter("TIMEZONE", "the zone in which the parts are meant"),
    ),
    returns="date",
    examples=(
        Example(
            'make_date_time(2019, 10, 17, 11, 55, 12, 999, "America/Los_Angeles")',
            "2019-10-17T11:55:12-07:00",
            note="Adobe's page prints the local time as though it were UTC.",
        ),
    ),
    decisions=(
        "Nanoseconds are cut to microseconds.",
        "The date is shown at the offset of its zone.",
        "31 February fails.",
        *_ZONE_DECISIONS,
    ),
)
def make_date_time(call: Call, *arguments: Values) -> Values:
    *components, timezone = arguments
    wanted = ~timezone.is_null()
    fitting = np.ones(call.rows, dtype=bool)
    columns: dict[str, Positions] = {}
    for (name, (lowest, highest)), component in zip(_RANGES.items(), components, strict=True):
        numbers, there = _numbers(call.integers(component, name))
        fits = (numbers >= lowest) & (numbers <= highest)
        call.fail(there & ~fits, f"{name} is not {lowest} to {highest}")
        columns[name] = np.where(fits, numbers, lowest)
        fitting &= fits
        wanted &= there
    days = _days_in_month(columns["YEAR"], columns["MONTH"])
    call.fail(wanted & fitting & (columns["DAY"] > days), "the month does not have the DAY")
    fitting &= columns["DAY"] <= days
    seconds = columns["HOUR"] * 3600 + columns["MINUTE"] * 60 + columns["SECOND"]
    seconds += days_from_civil(columns["YEAR"], columns["MONTH"], columns["DAY"]) * DAY
    local = seconds * MICROSECONDS + columns["NANOSECOND"] // 1000
    names = call.texts(timezone, "TIMEZONE")
    instants, offsets, known = local.copy(), np.zeros(call.rows, dtype=np.int32), np.zeros(call.rows, dtype=bool)
    for zone, at in _zones(call, names, wanted & fitting, "TIMEZONE"):
        instants[at] = zone.instants_of(local[at])
        offsets[at] = zone.offsets_at(instants[at])
        known[at] = True
    return _shown(call, instants, offsets, known, "make_date_time")


# Zones


@function(
    "zone_date_to_utc",
    category=DATES,
    description="The same moment, shown in UTC.",
    parameters=(Parameter("DATE", "the date"),),
    returns="date",
    examples=(
        Example(
            'zone_date_to_utc("2019-10-17T11:55:12 PST")',
            "2019-10-17T19:55:12Z",
            note="Adobe's page lacks the quotes and a parenthesis.",
        ),
    ),
    decisions=(_ZONE_DECISIONS[0], *_READ_DECISIONS),
)
def zone_date_to_utc(call: Call, date: Values) -> Values:
    moments = _moments_of(call, date, "DATE")
    return Values.dates(moments.instants, np.zeros(call.rows, dtype=np.int32), moments.valid)


@function(
    "zone_date_to_zone",
    category=DATES,
    description="The same moment, shown in another zone.",
    parameters=(Parameter("DATE", "the date"), Parameter("ZONE", "the zone to show it in")),
    returns="date",
    examples=(
        Example(
            'zone_date_to_zone("2021-10-26T13:43:59Z", "Europe/Paris")',
            "2021-10-26T15:43:59+02:00",
            note="Adobe's page has now() as the date, and prints the local time as though it were UTC.",
        ),
    ),
    decisions=(*_ZONE_DECISIONS, *_READ_DECISIONS),
)
def zone_date_to_zone(call: Call, date: Values, zone_name: Values) -> Values:
    moments = _moments_of(call, date, "DATE")
    names = call.texts(zone_name, "ZONE")
    offsets, known = np.zeros(call.rows, dtype=np.int32), np.zeros(call.rows, dtype=bool)
    for zone, at in _zones(call, names, moments.valid, "ZONE"):
        offsets[at] = zone.offsets_at(moments.instants[at])
        known[at] = True
    return _shown(call, moments.instants, offsets, known, "zone_date_to_zone")
