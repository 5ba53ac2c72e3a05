"""Conversions of texts against slow references in plain Python, and the forms that the documentation promises."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.mapping.conversions import conversion_to

if TYPE_CHECKING:
    from collections.abc import Sequence

DATE_TIME = pa.timestamp("us", tz="UTC")
INTEGERS: dict[pa.DataType, int] = {pa.int8(): 8, pa.int16(): 16, pa.int32(): 32, pa.int64(): 64}


def converted(data_type: pa.DataType, texts: Sequence[str | None]) -> list[Any]:
    array = conversion_to(data_type)(pa.array(texts, pa.string()))
    array.validate(full=True)
    assert array.type == data_type
    values: list[Any] = array.to_pylist()
    return values


def integer_reference(text: str | None, bits: int) -> int | None:
    if text is None or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE]\+?[0-9]{1,2})?", text):
        return None
    value = Decimal(text)
    whole = int(value)
    return whole if whole == value and -(2 ** (bits - 1)) <= whole < 2 ** (bits - 1) else None


NUMBERS = st.from_regex(r"-?[0-9]{1,21}(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
TEXTS = (
    st.none() | st.integers(-(2**65), 2**65).map(str) | st.integers(-300, 300).map(str) | NUMBERS | st.text(max_size=8)
)


@pytest.mark.parametrize(("data_type", "bits"), INTEGERS.items())
@given(texts=st.lists(TEXTS, max_size=12))
@example(texts=["9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"])
@example(
    texts=["0x1F", "+1", " 1", "1 ", "1\n", "-", "", "12.", ".5", "1e", "NaN", "Infinity", "1_000", "\uff11", "\u0663"]
)
@example(texts=["12.0", "12.5", "1.5e3", "1.25e1", "-0", "-0.0", "0e99", "1e99", "1e-1", "0.05e2", "007", "1E+2"])
@example(texts=["0.0000000000000000000000000001e28", "0" * 40 + "7", "127", "128", "-128", "-129"])
@example(texts=["1704784217.602", "undefined", None])
def test_integers_are_exact(data_type: pa.DataType, bits: int, texts: list[str | None]) -> None:
    assert converted(data_type, texts) == [integer_reference(text, bits) for text in texts]


def float_reference(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


@given(st.lists(TEXTS | st.floats().map(repr), max_size=12))
@example(["NaN", "Infinity", "-Infinity", "nan", "inf", "1e400", "-1e400", "+1", ".5", "5.", "0x10", " 1", "1e5", ""])
def test_floats(texts: list[str | None]) -> None:
    assert converted(pa.float64(), texts) == [float_reference(text) for text in texts]


def test_booleans_are_adobes_strings_and_no_other_case() -> None:
    true = ["true", "TRUE", "y", "Y", "yes", "YES", "on", "ON"]
    false = ["false", "FALSE", "n", "N", "no", "NO", "off", "OFF"]
    assert converted(pa.bool_(), true) == [True] * 8
    assert converted(pa.bool_(), [*false, None]) == [False] * 8 + [None]
    assert converted(pa.bool_(), ["True", "Yes", "1", "0", "", " true", "t"]) == [None] * 7


@given(st.lists(st.none() | st.dates().map(str) | st.from_regex(r"\d{4}-[01]\d-[0-3]\d", fullmatch=True), max_size=12))
@example(
    ["2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "2024-04-31", "0000-01-01", "0001-01-01", "9999-12-31"]
)
@example(["2024-2-3", "20240203", "2024-02-03T00:00:00Z", "2024-13-01", "2024-00-01", "2024-01-00", "-2024-01-01", ""])
def test_dates(texts: list[str | None]) -> None:
    assert converted(pa.date32(), texts) == [date_reference(text) for text in texts]


def date_reference(text: str | None) -> date | None:
    if text is None or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-29T10:00:00Z", datetime(2024, 2, 29, 10, tzinfo=UTC)),
        ("2024-02-29t10:00:00z", datetime(2024, 2, 29, 10, tzinfo=UTC)),
        ("2024-02-29 10:00:00.1Z", datetime(2024, 2, 29, 10, 0, 0, 100_000, tzinfo=UTC)),
        ("2024-02-29T10:00:00.123999Z", datetime(2024, 2, 29, 10, 0, 0, 123_000, tzinfo=UTC)),
        ("1969-12-31T23:59:59.9999Z", datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        ("2024-02-29T10:00:00+05:30", datetime(2024, 2, 29, 4, 30, tzinfo=UTC)),
        ("2024-02-29T20:00:00.500-08:00", datetime(2024, 3, 1, 4, 0, 0, 500_000, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999Z", datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        ("9999-12-31T23:59:59-01:00", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("0000-06-01T00:00:00Z", None),
        ("2023-02-29T10:00:00Z", None),
        ("2024-02-29T24:00:00Z", None),
        ("2024-02-29T23:59:60Z", None),
        ("2024-02-29T10:00:00+24:00", None),
        ("2024-02-29T10:00:00", None),
        ("2024-02-29T10:00Z", None),
        ("2024-02-29T10:00:00+0530", None),
        ("2024-02-29T10:00:00.Z", None),
        ("2024-02-29", None),
        ("1709200800", None),
        ("", None),
        (None, None),
    ],
)
def test_date_times(text: str | None, moment: datetime | None) -> None:
    neighbours = ["2024-02-29T10:00:00Z", None, "no date"]
    assert converted(DATE_TIME, [text, *neighbours])[0] == moment
    assert converted(DATE_TIME, [text]) == [moment]


OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timedelta(minutes=minutes))


@given(st.datetimes().filter(lambda moment: 1 < moment.year < 9999), OFFSETS)
def test_date_times_of_any_offset(local: datetime, offset: timedelta) -> None:
    minutes = abs(offset) // timedelta(minutes=1)
    text = f"{local.isoformat()}{'-' if offset < timedelta() else '+'}{minutes // 60:02}:{minutes % 60:02}"
    moment = local.replace(tzinfo=UTC) - offset
    assert converted(DATE_TIME, [text]) == [moment.replace(microsecond=moment.microsecond // 1000 * 1000)]


@given(st.lists(st.none() | st.text(), max_size=8))
def test_strings_are_as_they_are(texts: list[str | None]) -> None:
    assert converted(pa.string(), texts) == texts


@pytest.mark.parametrize("data_type", [*INTEGERS, pa.float64(), pa.bool_(), pa.date32(), DATE_TIME, pa.string()])
def test_slices_and_nothing(data_type: pa.DataType) -> None:
    texts = pa.array(["x", None, "12", "true", "2024-02-29", "2024-02-29T10:00:00Z", "1.5", None, "300"])
    convert = conversion_to(data_type)
    whole = convert(texts).to_pylist()
    for start in range(len(texts)):
        for stop in range(start, len(texts) + 1):
            assert convert(texts[start:stop]).to_pylist() == whole[start:stop]
