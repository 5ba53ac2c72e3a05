"""Patterns of Java's DateTimeFormatter: what they write and read, against tables and Python's own dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.mapping.java_dates import (
    MAX_PATTERN_CHARACTERS,
    Clock,
    PatternError,
    compile_pattern,
    days_from_civil,
    write_iso,
)
from worker.mapping.time_zones import EPOCH

MICROSECOND = timedelta(microseconds=1)
SAMPLE = datetime(2019, 10, 3, 0, 4, 5, 678_901, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
NOON = datetime(2021, 1, 2, 12, 34, 56, tzinfo=UTC)


def written(pattern: str, *dates: datetime) -> list[str]:
    local = np.array([(date.replace(tzinfo=UTC) - EPOCH) // MICROSECOND for date in dates], dtype=np.int64)
    offsets = np.array([(date.utcoffset() or timedelta()).total_seconds() for date in dates], dtype=np.int32)
    texts = compile_pattern(pattern).write(local, offsets)
    texts.validate(full=True)
    made: list[str] = texts.to_pylist()
    return made


def read(pattern: str, *texts: str | None) -> list[datetime | None]:
    moments = compile_pattern(pattern).read(pa.array(texts, pa.string()))
    assert not moments.instants[~moments.valid].any()
    return [
        (EPOCH + int(instant) * MICROSECOND).astimezone(timezone(timedelta(seconds=int(offset)))) if valid else None
        for instant, offset, valid in zip(moments.instants, moments.offsets, moments.valid, strict=True)
    ]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "2019-10-03T00:04:05.678-03:30"),
        ("y yy yyy yyyyy u uu", "2019 19 2019 02019 2019 19"),
        ("M MM MMM MMMM MMMMM L LLL", "10 10 Oct October O 10 Oct"),
        ("d dd D DDD", "3 03 276 276"),
        ("E EEE EEEE EEEEE e ee eee c cccc", "Thu Thu Thursday T 4 04 Thu 4 Thursday"),
        ("Q QQ QQQ QQQQ QQQQQ q", "4 04 Q4 4th quarter 4 4"),
        ("h hh H HH k kk K KK a", "12 12 0 00 24 24 0 00 AM"),
        ("m mm s ss", "4 04 5 05"),
        ("S SS SSS SSSSSS SSSSSSSSS", "6 67 678 678901 678901000"),
        ("n A N", "678901000 245678 245678901000"),
        ("Y YY YYYY w ww W", "2019 19 2019 40 40 1"),
        ("X XX XXX XXXX XXXXX", "-0330 -0330 -03:30 -0330 -03:30"),
        ("x xx xxx", "-0330 -0330 -03:30"),
        ("Z ZZZ ZZZZ ZZZZZ", "-0330 -0330 GMT-03:30 -03:30"),
        ("O OOOO z VV", "GMT-3:30 GMT-03:30 -03:30 -03:30"),
        ("h 'o''clock' '' é😀 ''''", "12 o'clock ' é😀 '"),
        ("yyyy[-MM[-dd", "2019-10-03"),
        ("", ""),
    ],
)
def test_letters_write(pattern: str, text: str) -> None:
    assert written(pattern, SAMPLE) == [text]
    assert written(pattern, NOON, SAMPLE, SAMPLE)[1:] == [text, text]


def test_letters_write_at_noon_in_utc() -> None:
    assert written("h K k H a", NOON) == ["12 0 12 12 PM"]
    assert written("X x XXX xxx Z ZZZZ ZZZZZ O z", NOON) == ["Z +00 Z +00:00 +0000 GMT Z GMT Z"]
    # a Saturday that belongs to the last week of the year before
    assert written("YYYY-'W'ww-e W", NOON) == ["2020-W53-6 0"]
    assert written("X O", NOON.replace(tzinfo=timezone(timedelta(hours=2)))) == ["+02 GMT+2"]
    odd = NOON.replace(tzinfo=timezone(timedelta(minutes=19, seconds=32)))
    assert written("XXX XXXXX XXXX O", odd) == ["+00:19 +00:19:32 +001932 GMT+0:19:32"]


@pytest.mark.parametrize(
    ("pattern", "text", "date"),
    [
        ("yyyy-MM-dd", "2019-10-23", datetime(2019, 10, 23, tzinfo=UTC)),
        ("yyyyMMddHHmmssSSS", "20191023112435678", datetime(2019, 10, 23, 11, 24, 35, 678_000, tzinfo=UTC)),
        ("yyyyMMddHHmmss.S", "20191023112435.6", datetime(2019, 10, 23, 11, 24, 35, 600_000, tzinfo=UTC)),
        ("yyyy-MM-dd ss.SSSSSSSSS", "2019-10-23 35.678901999", datetime(2019, 10, 23, 0, 0, 35, 678_901, tzinfo=UTC)),
        ("yyyy D n", "2019 296 678901999", datetime(2019, 10, 23, 0, 0, 0, 678_901, tzinfo=UTC)),
        ("yyyy-MM-dd N", "2019-10-23 86399999999999", datetime(2019, 10, 23, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("yyyy-MM-dd A", "2019-10-23 1001", datetime(2019, 10, 23, 0, 0, 1, 1000, tzinfo=UTC)),
        ("M/dd/yyyy", "2/03/2019", datetime(2019, 2, 3, tzinfo=UTC)),
        ("M/dd/yyyy", "12/03/2019", datetime(2019, 12, 3, tzinfo=UTC)),
        ("Mddyyyy", "2032019", datetime(2019, 2, 3, tzinfo=UTC)),
        ("d. MMMM uuuu, h a", "3. mAY 2019, 12 am", datetime(2019, 5, 3, tzinfo=UTC)),
        ("yyyy-MMM-dd hh:mm a", "2019-FEB-03 12:59 pm", datetime(2019, 2, 3, 12, 59, tzinfo=UTC)),
        ("yyyy-MM-dd kk", "2019-02-03 24", datetime(2019, 2, 3, tzinfo=UTC)),
        ("EEEE, dd MMM yy", "Wednesday, 23 Oct 19", datetime(2019, 10, 23, tzinfo=UTC)),
        ("yyyy", "2019", datetime(2019, 1, 1, tzinfo=UTC)),
        ("yyyy QQQ", "2019 q3", datetime(2019, 7, 1, tzinfo=UTC)),
        ("YYYY-'W'ww-e", "2020-W53-6", datetime(2021, 1, 2, tzinfo=UTC)),
        ("YYYY ww", "2019 01", datetime(2018, 12, 31, tzinfo=UTC)),
        ("yyyy[-MM[-dd]]", "2019", datetime(2019, 1, 1, tzinfo=UTC)),
        ("yyyy[-MM[-dd]]", "2019-10-23", datetime(2019, 10, 23, tzinfo=UTC)),
        ("yyyy[-MM-dd][-DDD]", "2019-296", datetime(2019, 10, 23, tzinfo=UTC)),
        ("yyyy-MM-dd HHX", "2019-10-23 11Z", datetime(2019, 10, 23, 11, tzinfo=UTC)),
        ("yyyy-MM-dd HHX", "2019-10-23 11+02:30", datetime(2019, 10, 23, 8, 30, tzinfo=UTC)),
        ("yyyy-MM-dd HHXXX", "2019-10-23 11-02", datetime(2019, 10, 23, 13, tzinfo=UTC)),
        ("yyyy-MM-dd HHZ", "2019-10-23 11+0230", datetime(2019, 10, 23, 8, 30, tzinfo=UTC)),
        ("yyyy-MM-dd HH z", "2019-10-23 11 PST", datetime(2019, 10, 23, 19, tzinfo=UTC)),
        ("yyyy-MM-dd HH VV", "2019-10-23 11 America/New_York", datetime(2019, 10, 23, 15, tzinfo=UTC)),
        ("yyyy-MM-dd HHX'['VV']'", "2024-10-27 02+01[Europe/Paris]", datetime(2024, 10, 27, 1, tzinfo=UTC)),
        ("yyyy年MM月dd日", "2019年10月23日", datetime(2019, 10, 23, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_letters_read(pattern: str, text: str, date: datetime) -> None:
    assert read(pattern, text) == [date]
    assert read(pattern, None, text, "", text + " ", text) == [None, date, None, None, date]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("yyyy-MM-dd", "2019-02-29"),
        ("yyyy-MM-dd", "2019-13-01"),
        ("yyyy-MM-dd", "2019-00-01"),
        ("yyyy-MM-dd", "0000-01-01"),
        ("yyyy-MM-dd", "2019-1-01"),
        ("yyyy-MM-dd", "2019-10-23\n"),
        ("yyyy-MM-dd", "\uff12019-10-23"),
        ("yyyyy-MM-dd", "10000-01-01"),
        ("yyyyyyyyyyyyyyyyyy", "999999999999999999"),
        ("yyyy N", "2019 99999999999999999"),
        ("yyyy D", "2019 366"),
        ("yyyy-MM-dd HH", "2019-10-23 24"),
        ("yyyy-MM-dd HH:mm", "2019-10-23 10:60"),
        ("yyyy-MM-dd hh a", "2019-10-23 13 PM"),
        ("yyyy-MM-dd hh a", "2019-10-23 00 AM"),
        ("yyyy-MM-dd HH a", "2019-10-23 11 PM"),
        ("EEE yyyy-MM-dd", "Mon 2019-10-23"),
        ("yyyy yy", "2019 20"),
        ("yyyy yyyy", "2019 2020"),
        ("YYYY-'W'ww", "2019-W53"),
        ("yyyy-MM-dd HHX", "2019-10-23 11+19:00"),
        ("yyyy-MM-dd VV", "2019-10-23 Europe/Nowhere"),
        ("yyyy-MM-ddX", "0001-01-01+01:00"),
    ],
)
def test_what_is_no_date_is_not_read(pattern: str, text: str) -> None:
    assert read(pattern, text) == [None]


@pytest.mark.parametrize(
    "pattern",
    ["yyyy-MM-dd'T", "yyyy]", "G", "B", "p", "v", "F", "ddd", "aa", "SSSSSSSSSS", "V", "OO", "ZZZZZZ", "cc", "MMMMMM",
     "y" * 19, "{yyyy}", "#", "P" * (MAX_PATTERN_CHARACTERS + 1), "-" * (MAX_PATTERN_CHARACTERS + 1)],
)  # fmt: skip
def test_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ["HH:mm", "", "MM-dd", "yyyy hh", "yyyy EEEEE", "YYYY-MM-dd"])
def test_patterns_that_cannot_be_read_can_be_written(pattern: str) -> None:
    with pytest.raises(PatternError):
        read(pattern, "2019")
    assert len(written(pattern, SAMPLE)) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(*(st.integers(0, limit) for limit in (2100, 14, 33, 25, 61, 61))), max_size=8))
@example([(2000, 2, 29, 0, 0, 0), (1900, 2, 29, 0, 0, 0), (2019, 4, 31, 23, 59, 59)])
def test_the_calendar_is_that_of_python(rows: list[tuple[int, ...]]) -> None:
    def reference(row: tuple[int, ...]) -> datetime | None:
        year, month, day, hour, minute, second = row
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None

    fixed = ["{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*row) for row in rows]
    loose = ["{:04}-{}-{} {}:{}:{}".format(*row) for row in rows]
    dates = [reference(row) for row in rows]
    assert read("yyyy-MM-dd HH:mm:ss", *fixed) == dates
    assert read("yyyy-M-d H:m:s", *loose) == dates


DATES = st.datetimes(
    datetime.fromisoformat("0002-01-01"),
    datetime.fromisoformat("9998-12-31"),
    timezones=st.integers(-18 * 60, 18 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@settings(deadline=None)
@given(st.lists(DATES, max_size=6))
def test_parts_are_those_of_python(dates: list[datetime]) -> None:
    clock = Clock(np.array([(date.replace(tzinfo=UTC) - EPOCH) // MICROSECOND for date in dates], dtype=np.int64))
    assert clock.year.tolist() == [date.year for date in dates]
    assert clock.month.tolist() == [date.month for date in dates]
    assert clock.day.tolist() == [date.day for date in dates]
    assert clock.day_of_year.tolist() == [date.timetuple().tm_yday for date in dates]
    assert clock.week_year.tolist() == [date.isocalendar().year for date in dates]
    assert clock.week.tolist() == [date.isocalendar().week for date in dates]
    assert clock.weekday.tolist() == [date.isoweekday() for date in dates]
    assert clock.hour.tolist() == [date.hour for date in dates]
    assert clock.micro.tolist() == [date.microsecond for date in dates]
    assert days_from_civil(clock.year, clock.month, clock.day).tolist() == clock.days.tolist()


@pytest.mark.parametrize(
    "pattern",
    ["yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX", "dd.M.yyyy hh:mm:ss a nZ", "EEEE d MMMM u N xxx", "YYYY'W'ww'-'e A ns Z",
     "yyyy DDD H:m:s.SSSSSSSSS OOOO", "yyyyMMddHHmmssSSSSSSz", "MMM d, yyyy K:mm:ss.SSSSSS a X"],
)  # fmt: skip
@settings(deadline=None)
@given(st.lists(DATES, max_size=6))
def test_what_is_written_is_read_again(pattern: str, dates: list[datetime]) -> None:
    if "A" in pattern:
        dates = [date.replace(microsecond=0) for date in dates]
        pattern = pattern.replace("ns ", "")
    texts = written(pattern, *dates)
    assert read(pattern, *texts) == dates
    assert [found and found.utcoffset() for found in read(pattern, *texts)] == [date.utcoffset() for date in dates]


PATTERNS = st.lists(
    st.sampled_from([*"yuMLdDEeahHKkmsSnNAzZXxVOQqwWYcGBFpv'[]#{} -/:.,T\n\0\\(é", "yyyy", "MM", "dd", "MMM", "XXX"]),
    max_size=12,
).map("".join)  # fmt: skip


@settings(deadline=None)
@given(PATTERNS, st.lists(DATES, max_size=3))
def test_no_pattern_breaks_anything(pattern: str, dates: list[datetime]) -> None:
    try:
        texts = written(pattern, *dates)
    except PatternError:
        return
    assert [written(pattern, date)[0] for date in dates] == texts
    try:
        together = read(pattern, *texts, None)
    except PatternError:
        return
    assert [read(pattern, text)[0] for text in [*texts, None]] == together


def test_slices_of_columns_are_read() -> None:
    texts = pa.array(["x", "2019-10-23", None, "2019-10-24"])[1:]
    assert compile_pattern("yyyy-MM-dd").read(texts).valid.tolist() == [True, False, True]
    assert compile_pattern("yyyy-MM-dd").read(texts[:0]).valid.tolist() == []


@settings(deadline=None)
@given(st.lists(DATES, max_size=6))
@example([NOON, SAMPLE, SAMPLE.replace(microsecond=678_000), SAMPLE.replace(microsecond=100)])
def test_iso_is_that_of_python(dates: list[datetime]) -> None:
    local = np.array([(date.replace(tzinfo=UTC) - EPOCH) // MICROSECOND for date in dates], dtype=np.int64)
    offsets = np.array([(date.utcoffset() or timedelta()).total_seconds() for date in dates], dtype=np.int32)

    def reference(date: datetime) -> str:
        micro = date.microsecond
        precision = "microseconds" if micro % 1000 else "milliseconds" if micro else "seconds"
        return date.isoformat(timespec=precision).replace("+00:00", "Z")

    assert write_iso(local, offsets).to_pylist() == [reference(date) for date in dates]
