"""Time zones by name, over whole columns of moments.

Moments are microseconds since 1970 in UTC, local times the same count as a clock in the zone shows it; offsets are
seconds east of UTC.

Python's zones answer for one moment at a time. Here the moments at which a zone's offset changes are looked up once,
about a year at a time, and searched for all rows together.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.mapping.values import Positions

    Offsets = NDArray[np.int32]

MICROSECONDS = 1_000_000
DAY = 86_400

LARGEST_OFFSET = 18 * 3600
"""Java's: no zone is farther from UTC."""

_HOURS = {
    **dict.fromkeys(("Z", "z", "UTC", "UT", "GMT", "WET"), 0.0),
    **dict.fromkeys(("CET", "MET", "WEST", "BST"), 1.0),
    **dict.fromkeys(("CEST", "MEST", "EET"), 2.0),
    **dict.fromkeys(("EEST", "MSK"), 3.0),
    "IST": 5.5,
    **dict.fromkeys(("HKT", "SGT", "AWST"), 8.0),
    **dict.fromkeys(("JST", "KST"), 9.0),
    **dict.fromkeys(("ACST",), 9.5),
    "AEST": 10.0,
    "ACDT": 10.5,
    "AEDT": 11.0,
    "NZST": 12.0,
    "NZDT": 13.0,
    "NDT": -2.5,
    "ADT": -3.0,
    "NST": -3.5,
    **dict.fromkeys(("AST", "EDT"), -4.0),
    **dict.fromkeys(("EST", "CDT"), -5.0),
    **dict.fromkeys(("CST", "MDT"), -6.0),
    **dict.fromkeys(("MST", "PDT"), -7.0),
    **dict.fromkeys(("PST", "AKDT"), -8.0),
    "AKST": -9.0,
    "HST": -10.0,
}
SHORT_NAMES = {name: round(hours * 3600) for name, hours in _HOURS.items()}
"""Short names that we know, as fixed offsets. Of those with several meanings we take one: BST is British, CST
American, IST Indian."""

_OFFSET = re.compile(r"(?:UTC|GMT|UT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?")
# names that are files of the system's own, another on each machine or of no place
_NO_PLACES = {"localtime", "posixrules", "Factory"}

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _seconds(year: int) -> int:
    return int((datetime(year, 1, 1, tzinfo=UTC) - EPOCH).total_seconds())


# The calendar repeats after 400 years, and so do the rules that zones end with, which hold from 2038 on at the latest;
# before the first year no zone has ever changed.
_CYCLE = 146_097 * DAY
_FIRST, _LAST = _seconds(1800), _seconds(2038) + _CYCLE
_BUCKET_BITS = 25  # 388 days
_FEW = 64


@dataclass(frozen=True, slots=True)
class Zone:
    """One place's time (`place`, a key of the time zone database), or a fixed offset where that is None."""

    place: str | None
    fixed: int = 0

    def offsets_at(self, instants: Positions) -> Offsets:
        """The offset that holds at each of these moments."""
        if self.place is None:
            return np.full(len(instants), self.fixed, dtype=np.int32)
        if not len(instants):
            return np.zeros(0, dtype=np.int32)
        seconds = instants // MICROSECONDS
        lowest, highest = int(seconds.min()), int(seconds.max())
        if highest >= _LAST:
            seconds = np.where(seconds >= _LAST, _LAST - _CYCLE + (seconds - _LAST) % _CYCLE, seconds)
        if lowest < _FIRST:
            seconds = np.maximum(seconds, _FIRST)
        if len(seconds) <= _FEW:
            # each year that is looked up costs hundreds of questions
            zone = ZoneInfo(self.place)
            return np.array([_offset_at(zone, second) for second in seconds.tolist()], dtype=np.int32)
        buckets = seconds >> _BUCKET_BITS
        first, last = int(buckets.min()), int(buckets.max())
        used = [first] if first == last else np.unique(buckets).tolist()
        changes = [_changes(self.place, bucket) for bucket in used]
        starts = np.concatenate([starts for starts, _ in changes])
        offsets = np.concatenate([offsets for _, offsets in changes])
        if (offsets == offsets[0]).all():
            return np.full(len(instants), offsets[0], dtype=np.int32)
        held: Offsets = offsets[np.searchsorted(starts, seconds, side="right") - 1]
        return held

    def instants_of(self, local: Positions) -> Positions:
        """The moments at which a clock in this zone shows these times.

        A time that it shows twice is the earlier one; one that it skips is as much later as is skipped (both as Java).
        """
        if self.place is None:
            return local - self.fixed * MICROSECONDS
        before = self.offsets_at(local - DAY * MICROSECONDS)
        after = self.offsets_at(local + DAY * MICROSECONDS)
        earlier = local - before.astype(np.int64) * MICROSECONDS
        if (before == after).all():
            return earlier
        later = local - after.astype(np.int64) * MICROSECONDS
        only_later = (self.offsets_at(earlier) != before) & (self.offsets_at(later) == after)
        return np.where(only_later, later, earlier)


@lru_cache(maxsize=4096)
def zone_of(name: str) -> Zone | None:
    """A zone by the name of a place (`Europe/Paris`), by an offset (`+02:00`, `GMT+2`, `Z`) or by a short name (`PST`);
    None if there is none of this name.
    """
    if name in SHORT_NAMES:
        return Zone(None, SHORT_NAMES[name])
    if offset := _OFFSET.fullmatch(name):
        sign, hours, minutes = offset.groups()
        seconds = int(hours) * 3600 + int(minutes or 0) * 60
        return Zone(None, -seconds if sign == "-" else seconds) if seconds <= LARGEST_OFFSET else None
    return Zone(name) if name in _places() else None


@lru_cache(maxsize=1)
def _places() -> frozenset[str]:
    return frozenset(available_timezones() - _NO_PLACES)


@lru_cache(maxsize=4096)
def _changes(place: str, bucket: int) -> tuple[Positions, Offsets]:
    """From which seconds on which offsets hold; the first one is the start of the bucket."""
    zone = ZoneInfo(place)
    start, end = bucket << _BUCKET_BITS, (bucket + 1) << _BUCKET_BITS
    starts, offsets = [start], [_offset_at(zone, start)]
    # no zone has changed twice within a day
    for earlier, later in pairwise([*range(start, end, DAY), end - 1]):
        if (offset := _offset_at(zone, later)) != offsets[-1]:
            passed = range(earlier + 1, later + 1)
            starts.append(passed[bisect_left(passed, x=True, key=lambda second: _offset_at(zone, second) == offset)])
            offsets.append(offset)
    return np.array(starts, dtype=np.int64), np.array(offsets, dtype=np.int32)


def _offset_at(zone: ZoneInfo, second: int) -> int:
    offset = (EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())
