"""What the worker can say happened. Logs, progress, metrics and tests are listeners to this one vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date, datetime

    from worker.model import Load, Receipt, Run


@dataclass(frozen=True, slots=True)
class RunStarted:
    run: Run
    days: tuple[date, ...]


@dataclass(frozen=True, slots=True)
class RunEnded:
    run: Run


@dataclass(frozen=True, slots=True)
class ExportWaiting:
    """The next request waits for the quota, a Retry-After or a back-off."""

    flow_id: str
    day: date
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class ExportOpened:
    load: Load
    attempt: int


@dataclass(frozen=True, slots=True)
class ExportProgressed:
    """Bytes as they came over the wire, and lines decoded so far; sent a few times a second at most."""

    load: Load
    received_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class ExportEnded:
    load: Load
    received_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportFailed:
    """One attempt failed and another follows after `retry_seconds`, or none does (None)."""

    flow_id: str
    day: date
    code: str
    message: str
    retry_seconds: float | None


@dataclass(frozen=True, slots=True)
class DayStaged:
    load: Load
    rows: int
    output_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DayCommitting:
    load: Load


@dataclass(frozen=True, slots=True)
class RejectsCommitted:
    """`codes`: how many of the rejects have which code."""

    load: Load
    rejects: int
    codes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowsCommitted:
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class DaySucceeded:
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class DayFailed:
    load: Load
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class DayRecovered:
    """A load that was committing when its process ended: the target says that it landed."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class DayLeftOut:
    """A day that was asked for but has not begun where Mixpanel keeps the calendar."""

    flow_id: str
    day: date


@dataclass(frozen=True, slots=True)
class FlowKnown:
    """What the state says of a flow: when its newest successful run ended, and when the newest complete day did.

    None where there is nothing new: what was told before stays.
    """

    flow_id: str
    flow_name: str
    last_success: datetime | None
    complete_until: datetime | None


@dataclass(frozen=True, slots=True)
class FlowGone:
    """A flow was deleted, and no run of it is under way here any more."""

    flow_id: str


@dataclass(frozen=True, slots=True)
class FlowAwaited:
    """Another process has the flow, for so many seconds; then it is taken over, unless that one still works on it."""

    flow_id: str
    flow_name: str
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ServiceTrouble:
    """Something of the long-running service failed and is tried again by itself; no run knows of it."""

    flow_id: str | None
    message: str


Event = (
    RunStarted
    | RunEnded
    | ExportWaiting
    | ExportOpened
    | ExportProgressed
    | ExportEnded
    | ExportFailed
    | DayStaged
    | DayCommitting
    | RejectsCommitted
    | RowsCommitted
    | DaySucceeded
    | DayFailed
    | DayRecovered
    | DayLeftOut
    | FlowKnown
    | FlowGone
    | FlowAwaited
    | ServiceTrouble
)
Listener = Callable[[Event], None]
"""Called from any thread; must not block and must not raise."""
