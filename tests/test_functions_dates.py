"""Functions of dates: the documented examples, Python's own dates as a reference, and rows on their own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, DATES, FAILED, INTEGERS, check_rows_alone, column_of, of, over
from worker.mapping.attributes import Attributes
from worker.mapping.context import Context
from worker.mapping.expression import Expression
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import Call
from worker.mapping.functions.dates import DEFAULT_FORMATS, SAID_TO, dates_of
from worker.mapping.values import Values

SAMPLE = datetime(2019, 10, 23, 13, 24, 35, 250_000, tzinfo=timezone(timedelta(hours=2)))
MOMENT = datetime(2021, 10, 26, 10, 10, 24, 123_456, tzinfo=UTC)

EXAMPLES: list[tuple[str, tuple[object, ...], object]] = [
    ("format", ("2019-10-23T11:24:35Z", "yyyy-MM-dd HH:mm:ss"), "2019-10-23 11:24:35"),
    ("dformat", (1571829875000, "yyyy-MM-dd'T'HH:mm:ss.SSSX"), "2019-10-23T11:24:35.000Z"),
    ("date", ("2019-10-23 11:24", "yyyy-MM-dd HH:mm", "2000-01-01"), "2019-10-23T11:24:00Z"),
    ("date", ("2019-10-23 11:24", "yyyy-MM-dd HH:mm"), "2019-10-23T11:24:00Z"),
    ("date", ("2019-10-23 11:24",), "2019-10-23T11:24:00Z"),
    ("date_part", ("MM", "2019-10-17 11:55:12"), 10),
    ("set_date_part", ("m", 4, "2016-11-09T11:44:44.797"), "2016-04-09T11:44:44.797Z"),
    ("make_date_time", (2019, 10, 17, 11, 55, 12, 999, "America/Los_Angeles"), "2019-10-17T11:55:12-07:00"),
    ("make_timestamp", (2019, 10, 17, 11, 55, 12, 999, "America/Los_Angeles"), "2019-10-17T11:55:12-07:00"),
    ("zone_date_to_utc", ("2019-10-17T11:55:12 PST",), "2019-10-17T19:55:12Z"),
    ("zone_date_to_zone", ("2021-10-26T13:43:59Z", "Europe/Paris"), "2021-10-26T15:43:59+02:00"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "value"), EXAMPLES)
def test_the_documented_examples(name: str, arguments: tuple[object, ...], value: object) -> None:
    assert of(name, *arguments) == value
    rows = [[argument if row % 2 else None for row in range(10)] for argument in arguments]
    assert over(name, *rows) == [None, value] * 5
    literals = [Values.repeat(argument, 4) for argument in arguments if isinstance(argument, str | int)]
    assert over(name, *literals) == [value] * 4
    assert value in [example.value for example in REGISTRY.by_name[name].examples]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in EXAMPLES}))
def test_the_documented_expressions(name: str) -> None:
    block = Attributes({}, [pa.nulls(10, pa.string())], [None], Context(MOMENT, {}))
    for example in REGISTRY.by_name[name].examples:
        outcome = Expression.of(example.expression).evaluate(block)
        assert outcome.values.to_pylist() == [example.value] * 10
        assert not outcome.failures


def test_now_is_one_moment() -> None:
    call = Call(3, MOMENT)
    now = REGISTRY.by_name["now"].evaluate(call)
    assert now.to_pylist() == ["2021-10-26T10:10:24.123456Z"] * 3
    assert now.constant
    assert REGISTRY.by_name["timestamp"].evaluate(call).to_pylist() == [1635243024123] * 3
    assert REGISTRY.by_name["now"].evaluate(Call(0, MOMENT)).to_pylist() == []
    assert not REGISTRY.by_name["now"].deterministic


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2019-10-23 11:24:35+0200", "2019-10-23T11:24:35+02:00"),
        ("2019-10-23 11:24:35.678-0330", "2019-10-23T11:24:35.678-03:30"),
        ("2019-10-23 11:24:35.678", "2019-10-23T11:24:35.678Z"),
        ("2019-10-23T11:24:35.678+02", "2019-10-23T11:24:35.678+02:00"),
        ("2019-10-23T11:24:35Z", "2019-10-23T11:24:35Z"),
        ("2019-10-23", "2019-10-23T00:00:00Z"),
        ("2019/10/23", "2019-10-23T00:00:00Z"),
        ("2019.10.23", "2019-10-23T00:00:00Z"),
        ("2019-Oct-23", "2019-10-23T00:00:00Z"),
        ("20191023", "2019-10-23T00:00:00Z"),
        ("10-23-2019", "2019-10-23T00:00:00Z"),
        ("10232019", "2019-10-23T00:00:00Z"),
        ("2/23/2019", "2019-02-23T00:00:00Z"),
        ("23.2.2019", "2019-02-23T00:00:00Z"),
        ("2/23/2019 12:24:35 AM", "2019-02-23T00:24:35Z"),
        ("23.2.2019 11:24:35 PM", "2019-02-23T23:24:35Z"),
        ("23.Oct.2019", "2019-10-23T00:00:00Z"),
        ("23-Oct-2019", "2019-10-23T00:00:00Z"),
    ],
)
def test_the_listed_formats_are_read(text: str, date: str) -> None:
    assert of("date", text) == date
    assert over("date", ["2019", text, None, "2019-10-23"]) == [FAILED, date, None, "2019-10-23T00:00:00Z"]


def test_each_listed_format_has_a_sample_above() -> None:
    marks = test_the_listed_formats_are_read.pytestmark  # type: ignore[attr-defined]
    texts = [text for text, _ in marks[0].args[1]]
    assert len(texts) == len(DEFAULT_FORMATS)
    for text, pattern in zip(texts, DEFAULT_FORMATS, strict=True):
        assert of("date", text, pattern) == of("date", text)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2019-10-23T11:24", "2019-10-23T11:24:00Z"),
        ("2019-10-23 11:24:35", "2019-10-23T11:24:35Z"),
        ("2019-10-23T11:24:35", "2019-10-23T11:24:35Z"),
        ("2019-10-23t11:24:35z", "2019-10-23T11:24:35Z"),
        ("2019-10-23T11:24:35-07:00", "2019-10-23T11:24:35-07:00"),
        ("2019-10-23T11:24:35.678901234+02:00", "2019-10-23T11:24:35.678901+02:00"),
        ("2019-10-23 11:24:35.5 +0200", "2019-10-23T11:24:35.500+02:00"),
        ("2019-10-23 11:24 CET", "2019-10-23T11:24:00+01:00"),
        ("2019-10-23T11:24:35 Europe/Paris", "2019-10-23T11:24:35+02:00"),
        ("2019-10-23T11:24:35.123456Z", "2019-10-23T11:24:35.123456Z"),
        ("2019-02-29", FAILED),
        ("2019-10-23 24:00:00", FAILED),
        ("2019-10-23T11:24:60Z", FAILED),
        ("2019-10-23T11:24:35 Nowhere", FAILED),
        (" 2019-10-23", FAILED),
        ("1571829875000", FAILED),
        ("", FAILED),
        (20191023, FAILED),
        (True, FAILED),
        ([1], FAILED),
    ],
)
def test_other_forms(text: object, date: object) -> None:
    assert of("date", text) == date


def test_the_arguments_of_date() -> None:
    assert of("date", None, "yyyy", "2019-10-23") == "2019-10-23T00:00:00Z"
    assert of("date", None, None, "2019-10-23") == "2019-10-23T00:00:00Z"
    assert of("date", None, "yyyy", None) is None
    assert of("date", "x", "yyyy", "2019-10-23") is FAILED
    assert of("date", "2019", None, "2019-10-23") is None
    # what is not used cannot fail
    assert of("date", "2019", "yyyy", "x") == "2019-01-01T00:00:00Z"
    assert of("date", None, "yyyy", "x") is FAILED
    assert of("date", None, "not a format") is None
    assert of("date", "2019", "not a format") is FAILED
    assert of("date", "11:24", "HH:mm") is FAILED
    assert of("date", 20191023, "yyyyMMdd") == "2019-10-23T00:00:00Z"
    assert of("date", ["2019"], "yyyy") is FAILED
    date = column_of([SAMPLE])
    assert over("date", date, ["yyyy"]) == ["2019-10-23T13:24:35.250+02:00"]
    assert over("date", date) == ["2019-10-23T13:24:35.250+02:00"]
    many = over("date", ["2019", "10/2019", None, "23"], ["yyyy", "MM/yyyy", "yyyy", "yyyy"], ["2000-01-01"] * 4)
    assert many == ["2019-01-01T00:00:00Z", "2019-10-01T00:00:00Z", "2000-01-01T00:00:00Z", FAILED]


def test_other_families_read_dates_too() -> None:
    call = Call(5)
    column = column_of([SAMPLE, "2019-10-23", "x", 5, None])
    assert Values.of(dates_of(call, column, "max: MORE")).to_pylist() == [
        "2019-10-23T13:24:35.250+02:00",
        "2019-10-23T00:00:00Z",
        None,
        None,
        None,
    ]
    assert [(reason, rows.tolist()) for reason, rows in call.failures()] == [
        ("max: MORE is an integer, not a date", [3]),
        ("max: MORE is a string that does not make a date", [2]),
    ]


@pytest.mark.parametrize(
    ("component", "part"),
    [("year", 2019), ("YYYY", 2019), ("yy", 2019), ("quarter", 4), ("q", 4), ("month", 10), ("mm", 10), ("m", 10),
     ("M", 10), ("dayofyear", 296), ("dy", 296), ("y", 296), ("day", 23), ("d", 23), ("week", 43), ("ww", 43),
     ("w", 43), ("weekday", 3), ("dw", 3), ("hour", 13), ("hh", 13), ("HH24", 13), ("hh12", 1), ("minute", 24),
     ("mi", 24), ("n", 24), ("second", 35), ("ss", 35), ("SS", 35), ("s", 35), ("millisecond", 250), ("SSS", 250),
     ("sss", FAILED), ("century", FAILED), ("", FAILED), (None, None)],
)  # fmt: skip
def test_parts_are_those_that_are_shown(component: str | None, part: object) -> None:
    assert over("date_part", [component], column_of([SAMPLE])) == [part]
    assert over("date_part", ["year", component], column_of([SAMPLE] * 2)) == [2019, part]


@pytest.mark.parametrize(
    ("component", "value", "date"),
    [
        ("year", 2020, "2020-10-23T13:24:35.250+02:00"),
        ("yy", 20, "0020-10-23T13:24:35.250+02:00"),
        ("MM", 2, "2019-02-23T13:24:35.250+02:00"),
        ("dd", "1", "2019-10-01T13:24:35.250+02:00"),
        ("hh", 0, "2019-10-23T00:24:35.250+02:00"),
        ("n", 59, "2019-10-23T13:59:35.250+02:00"),
        ("s", 1.0, "2019-10-23T13:24:01.250+02:00"),
        ("year", 0, FAILED),
        ("year", 10000, FAILED),
        ("month", 13, FAILED),
        ("day", 32, FAILED),
        ("hour", 24, FAILED),
        ("minute", -1, FAILED),
        ("second", 2**62, FAILED),
        ("second", 1.5, FAILED),
        ("week", 1, FAILED),
        ("hh24", 1, FAILED),
        ("SSS", 1, FAILED),
        ("year", None, None),
        (None, 1, None),
    ],
)
def test_parts_are_set(component: str | None, value: object, date: object) -> None:
    assert over("set_date_part", [component], [value], column_of([SAMPLE])) == [date]


def test_days_that_a_month_lacks() -> None:
    assert of("set_date_part", "month", 2, "2019-10-31") == "2019-02-28T00:00:00Z"
    assert of("set_date_part", "year", 2019, "2020-02-29") == "2019-02-28T00:00:00Z"
    assert of("set_date_part", "day", 31, "2019-04-01") is FAILED
    assert of("set_date_part", "day", 29, "2020-02-01") == "2020-02-29T00:00:00Z"
    assert of("make_date_time", 2019, 2, 29, 0, 0, 0, 0, "UTC") is FAILED
    # the date as shown would be in a year that there is not, or the moment
    assert of("set_date_part", "year", 1, "2019-01-01T00:00:00+02:00") is FAILED
    assert of("zone_date_to_zone", "9999-12-31T23:00:00Z", "+02:00") is FAILED


@pytest.mark.parametrize(
    ("changed", "date"),
    [
        ({}, "2019-10-23T11:24:35.678901+02:00"),
        ({0: 0}, FAILED),
        ({0: 10_000}, FAILED),
        ({1: 13}, FAILED),
        ({2: 0}, FAILED),
        ({3: 24}, FAILED),
        ({4: 60}, FAILED),
        ({5: 60}, FAILED),
        ({6: 10**9}, FAILED),
        ({6: "x"}, FAILED),
        ({6: None}, None),
        ({7: "PST"}, "2019-10-23T11:24:35.678901-08:00"),
        ({7: "Nowhere"}, FAILED),
        ({7: None}, None),
        ({1: 3, 2: 31, 3: 2, 4: 30}, "2019-03-31T03:30:35.678901+02:00"),
        ({1: 10, 2: 27, 3: 2, 4: 30}, "2019-10-27T02:30:35.678901+02:00"),
    ],
)
def test_dates_are_made_of_parts(changed: dict[int, object], date: object) -> None:
    arguments: list[object] = [2019, 10, 23, 11, 24, 35, 678_901_999, "Europe/Paris"]
    for place, value in changed.items():
        arguments[place] = value
    assert of("make_date_time", *arguments) == date


def test_formats_and_zones_may_differ_by_row() -> None:
    dates = column_of([SAMPLE] * 5)
    formats = ["yyyy", "MM", None, "G", "yyyy"]
    assert over("format", dates, formats) == ["2019", "10", None, FAILED, "2019"]
    milliseconds = [0, 1, None, 3, 4]
    assert over("dformat", milliseconds, formats) == ["1970", "01", None, FAILED, "1970"]
    zones = ["UTC", "Asia/Kolkata", None, "Nowhere", "EST"]
    assert over("zone_date_to_zone", dates, zones) == [
        "2019-10-23T11:24:35.250Z",
        "2019-10-23T16:54:35.250+05:30",
        None,
        FAILED,
        "2019-10-23T06:24:35.250-05:00",
    ]


def test_moments_beyond_the_years_fail() -> None:
    assert of("dformat", 253_402_300_799_999, "yyyy-MM-dd HH:mm:ss.SSS") == "9999-12-31 23:59:59.999"
    assert of("dformat", 253_402_300_800_000, "yyyy") is FAILED
    assert of("dformat", -62_135_596_800_000, "yyyy-MM-dd") == "0001-01-01"
    assert of("dformat", -62_135_596_800_001, "yyyy") is FAILED
    assert of("dformat", 2**63 - 1, "yyyy") is FAILED
    assert of("dformat", -(2**63), "yyyy") is FAILED


MILLISECONDS = st.integers(-62_135_596_800_000, 253_402_300_799_999) | st.sampled_from(
    [-62_135_596_800_000, 253_402_300_799_999, -1, 0, 951_782_400_000, 2**63 - 1, None]
)


@pytest.mark.parametrize("form", SAID_TO)
@settings(deadline=None)
@given(numbers=st.lists(MILLISECONDS, min_size=1, max_size=5))
def test_what_is_written_is_read_again_without_reading(form: str, numbers: list[int | None]) -> None:
    """Whoever reads the strings finds the dates that whoever wrote them knows."""
    call = Call(len(numbers))
    column = Values.from_python(numbers)
    written = REGISTRY.by_name["dformat"].evaluate(call, column, Values.repeat(form, len(numbers)))
    assert written.said is not None
    read = dates_of(call, Values.of(written.to_texts()), "DATE")
    assert written.said().equals(read)


def test_what_was_written_in_another_form_is_read() -> None:
    for forms in (["yyyy-MM-dd", "yyyy-MM"], ["yyyy-MM-dd", "yyyy-MM-dd"], None):
        pattern = Values.repeat("yyyy-MM-dd'T'HH", 2) if forms is None else Values.from_python(forms)
        written = REGISTRY.by_name["dformat"].evaluate(Call(2), Values.repeat(0, 2), pattern)
        assert written.said is None


PLACES = ["Europe/Paris", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]


@settings(deadline=None)
@given(st.lists(DATES, min_size=1, max_size=6), st.sampled_from(PLACES))
def test_zones_and_parts_are_those_of_python(dates: list[datetime], place: str) -> None:
    column = column_of(dates)
    # whole minutes: text has no seconds of an offset
    there = [date.astimezone(ZoneInfo(place)) for date in dates]
    zones = [place] * len(dates)
    call = Call(len(dates))
    moved = REGISTRY.by_name["zone_date_to_zone"].evaluate(call, column, Values.from_python(zones))
    pattern = Values.from_python(["yyyy-MM-dd'T'HH:mm:ss.SSSSSS"] * len(dates))
    texts = REGISTRY.by_name["format"].evaluate(call, moved, pattern).to_pylist()
    assert texts == [date.replace(tzinfo=None).isoformat(timespec="microseconds") for date in there]
    weeks = REGISTRY.by_name["date_part"].evaluate(call, Values.repeat("week", len(dates)), moved)
    assert weeks.to_pylist() == [date.isocalendar().week for date in there]
    back = REGISTRY.by_name["zone_date_to_utc"].evaluate(call, moved)
    assert back.to_pylist() == REGISTRY.by_name["zone_date_to_utc"].evaluate(call, column).to_pylist()


DATE_TEXTS = st.builds(
    lambda date, form: date.strftime(form),
    DATES,
    st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%m/%d/%Y", "%d.%m.%Y", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S%z",
                     "%Y-%m-%dT%H:%M:%S.%f CET", "%d-%b-%Y", "%m/%d/%Y %I:%M:%S %p", "%Y-%m-31"]),
)  # fmt: skip
SOME_DATES = DATES | DATE_TEXTS | ANYTHING
FORMATS = (
    st.sampled_from(
        [
            "yyyy-MM-dd",
            "M/dd/yyyy",
            "yyyyMMdd",
            "EEE d MMM yyyy XXX",
            "HH",
            "G",
            "yyyy-MM-dd'T'HH:mm:ss[.SSS]X",
            "'",
            "",
            "é😀 yyyy",
            "yyyy z",
            None,
            5,
        ]
    )
    | ANYTHING
)
COMPONENTS = st.sampled_from(["year", "m", "dd", "hour", "SSS", "sss", "n", "w", "", None, "é"]) | ANYTHING
ZONES = st.sampled_from(["UTC", "Europe/Paris", "PST", "+05:30", "Nowhere", "", None]) | ANYTHING
SMALL = st.integers(-1, 62) | INTEGERS | st.sampled_from([2019, 2020, "7", 7.0, None]) | ANYTHING

OPERANDS: dict[str, tuple[tuple[st.SearchStrategy[object], ...], ...]] = {
    "format": ((SOME_DATES, FORMATS),),
    "dformat": ((INTEGERS | SMALL, FORMATS),),
    "date": ((SOME_DATES,), (SOME_DATES, FORMATS), (SOME_DATES, FORMATS, SOME_DATES)),
    "date_part": ((COMPONENTS, SOME_DATES),),
    "set_date_part": ((COMPONENTS, SMALL, SOME_DATES),),
    "make_date_time": ((*[SMALL] * 7, ZONES), (st.just(2019), *[st.integers(0, 12)] * 6, ZONES)),
    "zone_date_to_utc": ((SOME_DATES,),),
    "zone_date_to_zone": ((SOME_DATES, ZONES),),
}
SIGNATURES = [(name, operands) for name, signatures in OPERANDS.items() for operands in signatures]


@pytest.mark.parametrize(("name", "operands"), SIGNATURES)
@settings(deadline=None)
@given(data=st.data())
def test_rows_do_not_see_each_other(
    name: str, operands: tuple[st.SearchStrategy[object], ...], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.tuples(*operands), min_size=1, max_size=6))
    columns = [[row[place] for row in rows] for place in range(len(operands))]
    check_rows_alone(REGISTRY.by_name[name].evaluate, *columns)
