"""Which days are due. Pure: what is known goes in, days come out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError, InterruptedRunError
from worker.mixpanel.calendar import day_bounds, existing_days, today
from worker.model import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from zoneinfo import ZoneInfo

    from worker.model import Run, Schedule

EARLIEST_DAY: Final = date(1970, 1, 2)
"""The first day that begins after 1970-01-01T00:00Z everywhere: event times are seconds since then."""

UNIT_SECONDS: Final = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
FAILED_RETRY: Final = timedelta(hours=1)
"""A run that failed is tried again so long after its end, if its schedule does not ask for one before."""
CLOCK_STEP: Final = timedelta(days=1)
"""A run that began so far in the future was given its time by a clock that has been set right since."""


def newest_slot(schedule: Schedule, now: datetime) -> datetime | None:
    """The newest moment up to `now` at which the schedule asks for a run, None before its start.

    Slots lie `interval` units apart from `startTime` on, in seconds: a day is 86,400 of them.
    """
    start = datetime.fromtimestamp(schedule.start_time, UTC)
    if now < start:
        return None
    if schedule.frequency == "once":
        return start
    seconds = UNIT_SECONDS[schedule.frequency] * (schedule.interval or 1)
    return start + timedelta(seconds=int((now - start).total_seconds()) // seconds * seconds)


def is_due(schedule: Schedule, newest: Run | None, now: datetime) -> bool:
    """Whether a run is to be started: the newest slot is later than the start of the flow's `newest` run.

    Slots that were missed count as one, for a run covers all days since the last complete one. A failed run is due
    again after FAILED_RETRY, one that was interrupted at once: its process was told to end.
    """
    slot = newest_slot(schedule, now)
    if slot is None:
        return False
    if newest is None:
        return True
    if newest.started_at > now + CLOCK_STEP or slot > newest.started_at:
        return True
    if newest.error_code == InterruptedRunError.code:
        return True
    ended = newest.completed_at
    return newest.state is RunState.FAILED and ended is not None and now >= ended + FAILED_RETRY


def scheduled_days(
    zone: ZoneInfo,
    now: datetime,
    receipts: Mapping[date, datetime],
    *,
    lookback_days: int,
    schedule: Schedule | None,
) -> tuple[date, ...]:
    """The days that a scheduled run at `now` covers, oldest first: those since the last complete day, today included.

    Events arrive late, so a day is exported again once a project day until `lookback_days` after it. Where nothing ran
    meanwhile, that is made up for: the last export of a day is not earlier than that. `receipts` says when the
    committed export of each day was begun.
    """
    current = today(zone, now)
    earliest = current - timedelta(days=lookback_days)
    start_day = None
    if schedule is not None and schedule.backfill is not None:
        start_day = today(zone, datetime.fromtimestamp(schedule.start_time, UTC))
    complete = complete_until(receipts, zone)
    if complete is not None:
        first = complete + timedelta(days=1)
    elif start_day is None or start_day > current:
        first = earliest
    else:
        first = start_day if schedule is not None and schedule.backfill else max(start_day, earliest)
    midnight = day_bounds(current, zone)[0]
    late = [
        day
        for day, exported_at in sorted(receipts.items())
        if day < first and exported_at < min(midnight, day_bounds(day + timedelta(days=lookback_days), zone)[0])
    ]
    return (*late, *existing_days(min(first, current), current, zone))


@dataclass(frozen=True, slots=True)
class DuePlan:
    """The days to work on, oldest first. `not_begun`: first and last day that was asked for but has not begun."""

    days: tuple[date, ...]
    not_begun: tuple[date, date] | None = None


def days_due(
    zone: ZoneInfo,
    now: datetime,
    *,
    complete_until: date | None,
    lookback_days: int,
    first: date | None = None,
    last: date | None = None,
) -> DuePlan:
    """The days that a run at `now` covers. `zone` is that of the calendar; only days that exist in it come out.

    With `first` and `last`, the days between, both inclusive. Without `last`, up to today. Without `first`, from the
    day after `complete_until` or from `lookback_days` before today, whichever is earlier: late events still arrive for
    days that are over. A flow that never ran starts with the lookback. Days after today have not begun and
    cannot be exported; they are left out and told apart.

    Raises ConfigurationError where the first day is after the last one.
    """
    current = today(zone, now)
    start = first or _default_start(current, complete_until, lookback_days)
    end = last or max(current, start)
    if start < EARLIEST_DAY:
        raise ConfigurationError(f"The first day is {start}, but there are no events before {EARLIEST_DAY}.")
    if start > end:
        if first is None:
            raise ConfigurationError(
                f"No day up to {end} is due; the first one is {start}.", advice="Give the first day too."
            )
        raise ConfigurationError(f"The first day, {start}, is after the last one, {end}.")
    days = tuple(existing_days(start, min(end, current), zone))
    return DuePlan(days, (max(start, current + timedelta(days=1)), end) if end > current else None)


def _default_start(current: date, complete_until: date | None, lookback_days: int) -> date:
    lookback_start = current - timedelta(days=lookback_days)
    return lookback_start if complete_until is None else min(complete_until + timedelta(days=1), lookback_start)


def is_complete(day: date, exported_at: datetime, zone: ZoneInfo) -> bool:
    """Whether an export of `day` that was begun at `exported_at` (aware) could see all of it: the day was over."""
    return exported_at.astimezone(UTC) >= day_bounds(day, zone)[1]


def complete_until(receipts: Mapping[date, datetime], zone: ZoneInfo) -> date | None:
    """The newest day such that it and every day back to the oldest known one is complete. None without receipts.

    `receipts` says when the committed export of each day was begun. A gap is never skipped: the run that closes it
    covers everything after it again. Where the oldest day itself is not complete, this is the day before it, so that
    a flow whose only day was exported while it lasted goes on there, and not at a later day.
    """
    if not receipts:
        return None
    oldest = min(receipts)
    newest = oldest - timedelta(days=1)
    for day in existing_days(oldest, max(receipts), zone):
        exported_at = receipts.get(day)
        if exported_at is None or not is_complete(day, exported_at, zone):
            break
        newest = day
    return newest
