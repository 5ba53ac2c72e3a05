"""Days of a project's calendar: they tile time in every zone, whatever clocks do."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.mixpanel.calendar import calendar_zone, day_bounds, day_exists, existing_days, parse_timezone, today
from worker.model import Credentials, Secret, Source

ODD_ZONES = (
    "UTC",
    "America/Los_Angeles",
    "Europe/Berlin",
    "Africa/Cairo",  # midnight does not exist in spring
    "America/Sao_Paulo",  # until 2019: no midnight in spring, 23:00 twice in autumn
    "America/Havana",  # 00:00 twice in autumn
    "America/St_Johns",  # until 2011: 00:01 back to 23:01 of the day before
    "America/Goose_Bay",
    "America/Scoresbysund",
    "America/Nuuk",
    "America/Asuncion",
    "America/Santiago",
    "Asia/Amman",
    "Asia/Beirut",
    "Asia/Damascus",
    "Asia/Dhaka",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Pyongyang",
    "Asia/Tehran",
    "Africa/Casablanca",
    "Antarctica/Casey",
    "Antarctica/Troll",  # two hours
    "Atlantic/Azores",
    "Australia/Lord_Howe",  # half an hour
    "Pacific/Apia",  # lost 2011-12-30
    "Pacific/Fakaofo",  # lost 2011-12-30
    "Pacific/Chatham",
    "Pacific/Easter",
    "Pacific/Norfolk",
)


def hours_of(day: str, zone: str) -> float:
    start, end = day_bounds(date.fromisoformat(day), ZoneInfo(zone))
    return (end - start) / timedelta(hours=1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Pacific Standard Time", "America/Los_Angeles"),
        ("pacific standard time", "America/Los_Angeles"),
        ("W. Europe Standard Time", "Europe/Berlin"),
        ("Tokyo Standard Time", "Asia/Tokyo"),
        ("America/Los_Angeles", "America/Los_Angeles"),
        ("europe/berlin", "Europe/Berlin"),
        ("US/Pacific", "US/Pacific"),
        (" UTC ", "UTC"),
    ],
)
def test_a_zone_has_a_windows_name_or_an_iana_name(name: str, key: str) -> None:
    assert parse_timezone(name).key == key


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Pacific Time", "Pacific Standard Time"),
        ("Pacific Standart Time", "Pacific Standard Time"),
        ("Pacific Daylight Time", "Pacific Standard Time"),
        ("Los Angeles", "America/Los_Angeles"),
        ("New York", "America/New_York"),
        ("Berlin", "Europe/Berlin"),
        ("Eurpe/Berlin", "Europe/Berlin"),
    ],
)
def test_an_unknown_zone_is_answered_with_the_nearest_name(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_timezone(name)
    assert str(caught.value) == f"{name!r} is not a time zone; did you mean {suggestion!r}?"


@pytest.mark.parametrize("name", ["PST", "GMT+1", "UTC+02:00", "", "zzzzzzzzzzzz"])
def test_no_name_is_suggested_where_the_nearest_one_lies_hours_away(name: str) -> None:
    with pytest.raises(ConfigurationError, match="take a name like"):
        parse_timezone(name)


@pytest.mark.parametrize(
    "name", ["localtime", "posixrules", "Factory", "../etc/localtime", "America", "/etc/localtime"]
)
def test_a_zone_that_depends_on_the_machine_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_timezone(name)


def test_days_are_utc_or_the_projects_by_time_basis() -> None:
    pacific = ZoneInfo("America/Los_Angeles")
    source = Source("https://data.mixpanel.com", Credentials("user", Secret("x")), "1", pacific, time_basis="project")
    assert calendar_zone(source) is pacific
    assert calendar_zone(Source("https://data.mixpanel.com", source.credentials, "1", pacific)).key == "UTC"


def test_today_is_the_date_in_the_zone() -> None:
    now = datetime(2024, 3, 10, 7, 30, tzinfo=UTC)
    assert today(ZoneInfo("UTC"), now) == date(2024, 3, 10)
    assert today(ZoneInfo("America/Los_Angeles"), now) == date(2024, 3, 9)
    assert today(ZoneInfo("Pacific/Kiritimati"), now.astimezone(ZoneInfo("Asia/Tokyo"))) == date(2024, 3, 10)


def test_now_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        today(ZoneInfo("UTC"), datetime(2024, 3, 10))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2024-03-10", "America/Los_Angeles", 23),
        ("2024-11-03", "America/Los_Angeles", 25),
        ("2024-11-04", "America/Los_Angeles", 24),
        ("2024-10-06", "Australia/Lord_Howe", 23.5),
        ("2024-04-07", "Australia/Lord_Howe", 24.5),
        ("2024-04-26", "Africa/Cairo", 23),
        ("2018-11-04", "America/Sao_Paulo", 23),
        ("2018-02-17", "America/Sao_Paulo", 25),
        ("2024-11-03", "America/Havana", 25),
        ("2024-11-02", "America/Havana", 24),
        ("2011-12-29", "Pacific/Apia", 24),
        ("2011-12-31", "Pacific/Apia", 24),
    ],
)
def test_f55_f56_length_of_a_day(day: str, zone: str, hours: float) -> None:
    assert hours_of(day, zone) == hours


@pytest.mark.parametrize(
    ("day", "zone", "start"),
    [
        ("2024-03-10", "America/Los_Angeles", "2024-03-10T08:00:00+00:00"),
        ("2024-03-11", "America/Los_Angeles", "2024-03-11T07:00:00+00:00"),
        ("2024-04-26", "Africa/Cairo", "2024-04-25T22:00:00+00:00"),  # 00:00 does not exist, 01:00 is the first
        ("2024-11-03", "America/Havana", "2024-11-03T04:00:00+00:00"),  # the first of two midnights
        ("2010-11-07", "America/St_Johns", "2010-11-07T03:30:00+00:00"),  # the second: Saturday is back in between
        ("2011-12-31", "Pacific/Apia", "2011-12-30T10:00:00+00:00"),
    ],
)
def test_start_of_a_day(day: str, zone: str, start: str) -> None:
    assert day_bounds(date.fromisoformat(day), ZoneInfo(zone))[0].isoformat() == start


@pytest.mark.parametrize(("zone", "day"), [("Pacific/Apia", "2011-12-30"), ("Pacific/Kwajalein", "1993-08-21")])
def test_f56_a_day_that_the_dateline_took_does_not_exist(zone: str, day: str) -> None:
    lost = date.fromisoformat(day)
    info = ZoneInfo(zone)
    before, after = lost - timedelta(days=1), lost + timedelta(days=1)
    assert not day_exists(lost, info)
    assert list(existing_days(before, after, info)) == [before, after]
    assert day_bounds(before, info)[1] == day_bounds(after, info)[0]
    with pytest.raises(ValueError, match="does not exist"):
        day_bounds(lost, info)


def check_days_around(zone: ZoneInfo, first: date, last: date) -> None:
    """The law: each day ends where the next one starts, and after its end its date is never shown again."""
    previous_end = None
    for day in existing_days(first, last, zone):
        start, end = day_bounds(day, zone)
        assert start.tzinfo is UTC
        assert start < end
        assert previous_end in {None, start}
        assert start.astimezone(zone).date() == day
        last_second = (end - timedelta(seconds=1)).astimezone(zone)
        assert last_second.date() == day
        for minutes in (0, 1, 30, 59, 61, 119, 121, 1439):
            assert (end + timedelta(minutes=minutes)).astimezone(zone).date() > day
            assert (start - timedelta(minutes=minutes, seconds=1)).astimezone(zone).date() <= day
        previous_end = end


def offset_changes(zone: ZoneInfo, first_year: int, last_year: int) -> list[date]:
    changes = []
    noon = datetime(first_year, 1, 1, 12, tzinfo=UTC)
    offset = noon.astimezone(zone).utcoffset()
    while noon.year <= last_year:
        noon += timedelta(days=1)
        if (current := noon.astimezone(zone).utcoffset()) != offset:
            changes.append(noon.date())
            offset = current
    return changes


@pytest.mark.parametrize("name", ODD_ZONES)
def test_f55_f56_days_tile_time_around_every_change_of_offset(name: str) -> None:
    zone = ZoneInfo(name)
    for change in offset_changes(zone, 2000, 2040):
        check_days_around(zone, change - timedelta(days=3), change + timedelta(days=2))


@given(
    zone=st.timezone_keys(allow_prefix=False).filter(lambda key: key not in {"Factory", "localtime"}).map(ZoneInfo),
    first=st.dates(date(2000, 1, 1), date(2040, 1, 1)),
)
@settings(deadline=None, max_examples=150)
def test_days_tile_time_in_any_zone(zone: ZoneInfo, first: date) -> None:
    check_days_around(zone, first, first + timedelta(days=8))


@given(zone=st.sampled_from(ODD_ZONES).map(ZoneInfo), now=st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)))  # noqa: DTZ001
@settings(deadline=None, max_examples=150)
def test_today_exists_and_has_not_ended(zone: ZoneInfo, now: datetime) -> None:
    instant = now.replace(tzinfo=UTC)
    day = today(zone, instant)
    assert day_exists(day, zone)
    assert instant < day_bounds(day, zone)[1]
