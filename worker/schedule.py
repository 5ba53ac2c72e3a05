"""Which days are due. Pure: what is known goes in, days come out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from worker.errors import ConfigurationError
from worker.mixpanel.calendar import day_bounds, existing_days, today

if TYPE_CHECKING:
    from collections.abc import Mapping
    from zoneinfo import ZoneInfo

EARLIEST_DAY: Final = date(1970, 1, 2)
"""The first day that begins after 1970-01-01T00:00Z everywhere: event times are seconds since then."""


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
