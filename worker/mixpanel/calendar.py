"""The calendar that Mixpanel counts days by. Pure: no clock, no I/O but the time zone data.

`from_date` and `to_date` are UTC days for projects made since 2023, days of the project's own zone for older ones
(Mixpanel, "Manage projects"; openapi of the raw export). Instants are compared in UTC only: Python compares two times
of one zone by what the clock on the wall shows, which is wrong twice a year.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tzlocal.windows_tz import win_tz

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.model import Source

_ONE_DAY = timedelta(days=1)
_ONE_SECOND = timedelta(seconds=1)
_SHORTEST_NAME_TO_GUESS = 5


@cache
def _zone_keys() -> dict[str, tuple[str, str]]:
    """Name in lower case → (name, IANA key), for Windows and IANA names; an IANA name wins.

    The list of the tzdata package is used, not what the machine has on disk: there, `localtime` and `posixrules` are
    zones too, and mean something else on every machine.
    """
    iana = files("tzdata").joinpath("zones").read_text(encoding="ascii").split()
    names = {name.lower(): (name, key) for name, key in win_tz.items()}
    names.update({key.lower(): (key, key) for key in iana if key != "Factory"})
    return names


def parse_timezone(name: str) -> ZoneInfo:
    """The zone that `name` means, upper or lower case: an IANA name, or a Windows name by Unicode CLDR's table.

    Raises ConfigurationError with the nearest name.
    """
    known = _zone_keys().get(name.strip().lower())
    if known is None:
        nearest = _nearest(name)
        hint = (
            f"did you mean {nearest!r}?" if nearest else "take a name like 'Pacific Standard Time' or 'Europe/Berlin'"
        )
        raise ConfigurationError(f"{name!r} is not a time zone; {hint}")
    return ZoneInfo(known[1])


def _nearest(name: str) -> str | None:
    """The time zone that someone who wrote `name` most likely meant, or None where a guess would mislead."""
    # PST is one letter from EST, and GMT+1 from GMT+0: near in spelling, hours apart.
    if len(name.strip()) < _SHORTEST_NAME_TO_GUESS or any(sign in name for sign in "+0123456789"):
        return None
    names = _zone_keys()
    wanted = _words(name)
    having_all_words = [known for known, _ in names.values() if wanted <= _words(known)]
    if having_all_words:
        return min(having_all_words, key=lambda known: (len(known), known))
    near = get_close_matches(name.strip().lower(), names, n=1)
    return names[near[0]][0] if near else None


def _words(name: str) -> set[str]:
    return set(name.lower().replace("/", " ").replace("_", " ").split())


def calendar_zone(source: Source) -> ZoneInfo:
    """The zone whose days `from_date` and `to_date` are for this source."""
    return source.timezone if source.time_basis == "project" else ZoneInfo("UTC")


def today(zone: ZoneInfo, now: datetime) -> date:
    """The day that it is in `zone` at the aware instant `now`."""
    return _utc(now).astimezone(zone).date()


def day_bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of `day` in UTC. The end of a day is the start of the next day that exists.

    A day starts at the first instant after which the zone's date is never again an earlier one. That is its first
    instant, but where clocks go back across midnight (St. John's until 2011: 00:01 to 23:01): there the minute that is
    followed by the day before belongs to the day before, so that nothing of a day ever happens after its end.
    Raises ValueError for a day that does not exist.
    """
    if not day_exists(day, zone):
        raise ValueError(f"{day} does not exist in {zone.key}")
    return _start(day, zone), _start(day + _ONE_DAY, zone)


def day_exists(day: date, zone: ZoneInfo) -> bool:
    """Whether `zone` has the date `day`: Samoa, for one, went from 2011-12-29 to 2011-12-31 (F56)."""
    return _start(day, zone).astimezone(zone).date() == day


def existing_days(first: date, last: date, zone: ZoneInfo) -> Iterator[date]:
    """The days from `first` to `last`, both inclusive, that exist in `zone`; none where `first` is after `last`."""
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        if day_exists(day, zone):
            yield day


def _start(day: date, zone: ZoneInfo) -> datetime:
    """Where the time before `day` ends. For a day that does not exist this is where the next one starts."""
    midnight = datetime.combine(day, time())
    earlier = midnight.replace(tzinfo=zone, fold=0).astimezone(UTC)
    later = midnight.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if earlier > later:
        return _end_of_gap(midnight, later, earlier, zone)
    # Midnight comes twice where clocks go back; the second counts only if the day before is shown again in between.
    return later if (later - _ONE_SECOND).astimezone(zone).date() < day else earlier


def _end_of_gap(midnight: datetime, before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The second between `before` and `after` at which clocks jump over `midnight` (PEP 495: the gap lies between)."""
    while after - before > _ONE_SECOND:
        middle = before + timedelta(seconds=(after - before) // _ONE_SECOND // 2)
        if middle.astimezone(zone).replace(tzinfo=None) < midnight:
            before = middle
        else:
            after = middle
    return after


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("an instant needs its time zone")
    return instant.astimezone(UTC)
