"""Time zones over columns, against Python's zones one moment at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.mapping.time_zones import EPOCH, zone_of

PLACES = ["Europe/Paris", "America/New_York", "Africa/Casablanca", "Pacific/Apia", "Asia/Kolkata", "Europe/Dublin",
          "Africa/Cairo", "Australia/Lord_Howe", "America/Sao_Paulo", "Europe/Amsterdam"]  # fmt: skip
MICROSECOND = timedelta(microseconds=1)
# near changes of the clocks in Paris and New York, and a day that Apia skipped
NEAR = ["2024-03-31T02", "2024-10-27T02", "2024-03-10T02", "2024-11-03T01", "2011-12-30T12", "2012-08-20T02"]
TIMES = st.datetimes(datetime.fromisoformat("0002-01-01"), datetime.fromisoformat("9998-12-31")) | st.builds(
    lambda near, minutes: datetime.fromisoformat(near) + timedelta(minutes=minutes),
    st.sampled_from(NEAR),
    st.integers(-1500, 1500),
)


def micros(time: datetime) -> int:
    return (time.replace(tzinfo=UTC) - EPOCH) // MICROSECOND


@settings(deadline=None)
@given(st.sampled_from(PLACES), st.lists(TIMES, min_size=1, max_size=20))
def test_offsets_and_moments_are_those_of_python(place: str, times: list[datetime]) -> None:
    zone, reference = zone_of(place), ZoneInfo(place)
    assert zone is not None
    column = np.array([micros(time) for time in times], dtype=np.int64)
    offsets = [time.replace(tzinfo=UTC).astimezone(reference).utcoffset() for time in times]
    assert zone.offsets_at(column).tolist() == [offset.total_seconds() for offset in offsets if offset is not None]
    # Python moves a time that is skipped on, and takes the earlier of two, as wanted here
    moments = [(time.replace(tzinfo=reference).astimezone(UTC) - EPOCH) // MICROSECOND for time in times]
    assert zone.instants_of(column).tolist() == moments
    # many moments are looked up in another way
    assert zone.offsets_at(np.tile(column, 65)).tolist() == zone.offsets_at(column).tolist() * 65
    assert zone.instants_of(np.tile(column, 65)).tolist() == moments * 65


@pytest.mark.parametrize(
    ("name", "hours"),
    [("Z", 0), ("UTC", 0), ("PST", -8), ("CET", 1), ("+02:00", 2), ("-0330", -3.5), ("+5", 5), ("GMT+2", 2),
     ("UTC-08:00", -8), ("+18:00", 18)],
)  # fmt: skip
def test_offsets_have_names(name: str, hours: float) -> None:
    zone = zone_of(name)
    assert zone is not None
    assert zone.place is None
    assert zone.offsets_at(np.array([0, 2**60])).tolist() == [hours * 3600] * 2
    assert zone.instants_of(np.array([0])).tolist() == [-hours * 3600_000_000]
    assert zone.offsets_at(np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize(
    "name", ["", "nowhere", "Europe", "../etc/passwd", "+19:00", "+02:60", "localtime", "pst", "\0"]
)
def test_other_names_are_no_zones(name: str) -> None:
    assert zone_of(name) is None


def test_no_moment_is_also_none_in_a_place() -> None:
    zone = zone_of("Europe/Paris")
    assert zone is not None
    assert zone.offsets_at(np.array([], dtype=np.int64)).tolist() == []
    assert zone.instants_of(np.array([], dtype=np.int64)).tolist() == []
