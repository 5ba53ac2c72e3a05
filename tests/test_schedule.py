"""Which days a run covers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import run_of
from worker.errors import ConfigurationError
from worker.mixpanel.calendar import day_bounds, day_exists, existing_days
from worker.model import Run, RunState, Schedule
from worker.schedule import (
    DuePlan,
    complete_until,
    days_due,
    is_complete,
    is_due,
    newest_slot,
    scheduled_days,
)

UTC_ZONE = ZoneInfo("UTC")
PACIFIC = ZoneInfo("America/Los_Angeles")
APIA = ZoneInfo("Pacific/Apia")
NOW = datetime(2024, 6, 15, 12, tzinfo=UTC)


def june(day: int) -> date:
    return date(2024, 6, day)


def junes(first: int, last: int) -> tuple[date, ...]:
    return tuple(june(day) for day in range(first, last + 1))


def due(
    first: date | None = None, last: date | None = None, *, complete: date | None = None, lookback_days: int = 5
) -> DuePlan:
    return days_due(UTC_ZONE, NOW, complete_until=complete, lookback_days=lookback_days, first=first, last=last)


def test_the_first_run_covers_today_and_the_lookback() -> None:
    assert due() == DuePlan(junes(10, 15))
    assert due(lookback_days=0) == DuePlan(junes(15, 15))


@pytest.mark.parametrize(
    ("complete", "first"),
    [
        (june(3), 4),  # the days since the last complete one
        (june(9), 10),
        (june(14), 10),  # the lookback goes again over days that were complete
        (june(20), 10),  # the clock was set back: still the lookback, never nothing
    ],
)
def test_a_run_covers_what_is_not_complete_and_the_lookback(complete: date, first: int) -> None:
    assert due(complete=complete) == DuePlan(junes(first, 15))


def test_both_dates_are_inclusive_and_need_no_lookback() -> None:
    assert due(june(1), june(3), complete=june(2)) == DuePlan(junes(1, 3))
    assert due(june(1), june(1)) == DuePlan((june(1),))


def test_only_the_first_day_means_until_today() -> None:
    assert due(june(12)) == DuePlan(junes(12, 15))


def test_only_the_last_day_means_from_where_a_run_would_start() -> None:
    assert due(last=june(12)) == DuePlan(junes(10, 12))
    assert due(last=june(12), complete=june(3)) == DuePlan(junes(4, 12))


def test_days_that_have_not_begun_are_told_apart() -> None:
    assert due(june(14), june(18)) == DuePlan(junes(14, 15), not_begun=(june(16), june(18)))
    assert due(june(17), june(18)) == DuePlan((), not_begun=(june(17), june(18)))
    assert due(june(17)) == DuePlan((), not_begun=(june(17), june(17)))


def test_today_is_that_of_the_calendars_zone() -> None:
    just_after_utc_midnight = datetime(2024, 6, 15, 0, 30, tzinfo=UTC)
    plan = days_due(
        PACIFIC, just_after_utc_midnight, complete_until=None, lookback_days=5, first=june(14), last=june(15)
    )
    assert plan == DuePlan((june(14),), not_begun=(june(15), june(15)))


def test_f56_a_day_that_does_not_exist_is_not_asked_for() -> None:
    plan = days_due(APIA, NOW, complete_until=None, lookback_days=5, first=date(2011, 12, 29), last=date(2011, 12, 31))
    assert plan.days == (date(2011, 12, 29), date(2011, 12, 31))


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (june(3), june(2), "The first day, 2024-06-03, is after the last one, 2024-06-02."),
        (None, june(2), "No day up to 2024-06-02 is due; the first one is 2024-06-10. Give the first day too."),
        (date.min, june(2), "The first day is 0001-01-01, but there are no events before 1970-01-02."),
    ],
)
def test_dates_that_cannot_be_meant_are_refused(first: date | None, last: date, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        due(first, last)
    assert str(caught.value) == message


def test_a_day_is_complete_if_it_was_over_when_its_export_began() -> None:
    end = datetime(2024, 6, 15, 7, tzinfo=UTC)
    assert is_complete(june(14), end, PACIFIC)
    assert is_complete(june(14), end.astimezone(ZoneInfo("Asia/Tokyo")), PACIFIC)
    assert not is_complete(june(14), end - timedelta(microseconds=1), PACIFIC)


def test_the_25_hour_day_is_complete_an_hour_later() -> None:
    autumn = date(2024, 11, 3)
    assert not is_complete(autumn, datetime(2024, 11, 4, 7, 30, tzinfo=UTC), PACIFIC)
    assert is_complete(autumn, datetime(2024, 11, 4, 8, tzinfo=UTC), PACIFIC)


def test_nothing_is_complete_without_a_receipt() -> None:
    assert complete_until({}, UTC_ZONE) is None


def test_a_day_exported_while_it_lasted_is_not_complete() -> None:
    assert complete_until({june(14): NOW, june(15): NOW}, UTC_ZONE) == june(14)


def test_a_flow_whose_only_day_was_exported_while_it_lasted_goes_on_there() -> None:
    assert complete_until({june(15): NOW}, UTC_ZONE) == june(14)


def test_a_gap_is_never_skipped() -> None:
    later = datetime(2024, 7, 1, tzinfo=UTC)
    receipts = {june(day): later for day in (10, 11, 13, 14)}
    assert complete_until(receipts, UTC_ZONE) == june(11)
    receipts[june(12)] = datetime(2024, 6, 12, 23, 59, tzinfo=UTC)
    assert complete_until(receipts, UTC_ZONE) == june(11)
    receipts[june(12)] = later
    assert complete_until(receipts, UTC_ZONE) == june(14)


def test_f56_a_day_that_does_not_exist_is_no_gap() -> None:
    receipts = {date(2011, 12, 29): NOW, date(2011, 12, 31): NOW}
    assert complete_until(receipts, APIA) == date(2011, 12, 31)


@given(
    zone=st.sampled_from(["UTC", "America/Los_Angeles", "America/St_Johns", "Africa/Cairo", "Pacific/Apia"]).map(
        ZoneInfo
    ),
    start=st.dates(date(2010, 1, 1), date(2013, 1, 1)),
    hours_between_runs=st.lists(st.integers(1, 24 * 9), min_size=1, max_size=6),
    lookback_days=st.integers(0, 7),
)
@settings(deadline=None, max_examples=60)
def test_runs_at_any_times_leave_no_day_behind(
    zone: ZoneInfo, start: date, hours_between_runs: list[int], lookback_days: int
) -> None:
    """The law: after any series of runs, each day since the first run's start that is over is complete or due."""
    now = datetime(start.year, start.month, start.day, 5, tzinfo=UTC)
    receipts: dict[date, datetime] = {}
    for hours in [*hours_between_runs, 1]:
        known = complete_until(receipts, zone)
        plan = days_due(zone, now, complete_until=known, lookback_days=lookback_days)
        assert plan.not_begun is None
        assert all(day_exists(day, zone) for day in plan.days)
        if receipts:
            over = [day for day in existing_days(min(receipts), plan.days[-1], zone) if day_bounds(day, zone)[1] <= now]
            assert all(day in plan.days or is_complete(day, receipts[day], zone) for day in over)
        receipts.update(dict.fromkeys(plan.days, now))
        now += timedelta(hours=hours)


# Slots


START = int(datetime(2021, 6, 30, 8, 1, 27, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("frequency", "interval", "seconds"),
    [("minute", 15, 900), ("hour", 1, 3600), ("day", 1, 86_400), ("week", 2, 1_209_600)],
)
def test_slots_lie_an_interval_apart_from_the_start_on(frequency: Any, interval: int, seconds: int) -> None:
    schedule = Schedule(START, frequency, interval)
    start = datetime.fromtimestamp(START, UTC)
    for after, slot in [(0, 0), (1, 0), (seconds - 1, 0), (seconds, seconds), (10 * seconds + 5, 10 * seconds)]:
        assert newest_slot(schedule, start + timedelta(seconds=after)) == start + timedelta(seconds=slot)
    assert newest_slot(schedule, start - timedelta(seconds=1)) is None


def ended_run(started_at: datetime, state: RunState = RunState.SUCCESS) -> Run:
    return run_of(state=state, started_at=started_at)


def test_a_flow_that_runs_once_is_due_once() -> None:
    schedule = Schedule(START, "once")
    start = datetime.fromtimestamp(START, UTC)
    assert not is_due(schedule, None, start - timedelta(seconds=1))
    assert is_due(schedule, None, start + timedelta(days=900))
    assert not is_due(schedule, ended_run(start), start + timedelta(days=900))
    assert is_due(schedule, ended_run(start, RunState.FAILED), start + timedelta(days=900))


def test_F059_a_clock_that_steps_back_does_not_repeat_a_slot_and_locks_nobody_out() -> None:
    schedule = Schedule(START, "hour", 1)
    now = datetime.fromtimestamp(START, UTC) + timedelta(days=100)
    assert not is_due(schedule, ended_run(now + timedelta(hours=2)), now)
    assert is_due(schedule, ended_run(now + timedelta(days=400)), now)


def test_a_day_is_exported_a_last_time_when_its_lookback_is_over() -> None:
    zone = ZoneInfo("UTC")
    now = datetime(2024, 3, 20, 12, tzinfo=UTC)
    receipts = {
        date(2024, 3, 1): datetime(2024, 3, 6, 0, tzinfo=UTC),
        date(2024, 3, 2): datetime(2024, 3, 6, 23, tzinfo=UTC),
        date(2024, 3, 3): datetime(2024, 3, 6, 23, tzinfo=UTC),
        date(2024, 3, 4): datetime(2024, 3, 6, 23, tzinfo=UTC),
        date(2024, 3, 5): datetime(2024, 3, 6, 23, tzinfo=UTC),
        date(2024, 3, 6): datetime(2024, 3, 6, 23, tzinfo=UTC),
    }
    days = scheduled_days(zone, now, receipts, lookback_days=5, schedule=None)
    assert days == tuple(date(2024, 3, day) for day in range(2, 21))
    done = {day: now - timedelta(hours=1) for day in days} | {date(2024, 3, 1): receipts[date(2024, 3, 1)]}
    assert scheduled_days(zone, now, done, lookback_days=5, schedule=None) == (date(2024, 3, 20),)
