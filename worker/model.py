"""The nouns of the worker: frozen values without I/O. Words are those of the architecture page."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal
from uuid import UUID, uuid5

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime
    from zoneinfo import ZoneInfo

FLOW_NAMESPACE = UUID("b7a4e2a0-5d1c-5f7e-9d34-6d69787061e1")
"""Namespace of flow ids: the id follows from the name, so a lost state database gives the same ids again."""

DAY_COLUMN = "mp_date"
"""The partition column of every table: the project day that was asked for (date32)."""

TimeBasis = Literal["utc", "project"]
Deduplication = Literal["mixpanel", "none"]


def flow_id_of(name: str) -> str:
    """The id of the flow called `name`: the same name always gives the same id."""
    return str(uuid5(FLOW_NAMESPACE, name))


class Secret:
    """A text that never prints itself. `reveal()` is called where the bytes leave for the wire, and nowhere else."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        raise TypeError("a secret is not pickled")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


@dataclass(frozen=True, slots=True)
class Credentials:
    """Basic authentication for the export: a service account, or a project secret as user with an empty password."""

    username: str
    password: Secret

    @property
    def is_project_secret(self) -> bool:
        """A project secret names its project itself: `project_id` must not be sent with it (Mixpanel's reference)."""
        return not self.password


@dataclass(frozen=True, slots=True)
class Source:
    """Where the events come from: base connection and source connection of a flow.

    `base_url` is scheme, host and optional port. `time_basis` says which calendar `from_date` and `to_date` follow:
    UTC for projects created since 2023, the project's own zone for older ones.
    """

    base_url: str
    credentials: Credentials = field(repr=False)
    project_id: str
    timezone: ZoneInfo
    time_basis: TimeBasis = "utc"
    events: tuple[str, ...] = ()
    where: str | None = None
    lookback_days: int = 5
    deduplicate: Deduplication = "mixpanel"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the rows go: the target connection of a flow."""

    dataset_id: str
    format: Literal["delta"] = "delta"

    @property
    def rejects_table(self) -> str:
        return f"{self.dataset_id}_rejects"


@dataclass(frozen=True, slots=True)
class Schedule:
    """`scheduleParams` of a flow (Flow Service): start in epoch seconds, the interval counted in `frequency`.

    `backfill` says what the first run covers: True from the day of the start on, False nothing before that day and
    nothing before the lookback, None (not given) the lookback.
    """

    start_time: int
    frequency: Literal["once", "minute", "hour", "day", "week"]
    interval: int | None = None
    backfill: bool | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """`options` of a flow: percent of rejected rows above which a day is not committed; None accepts any share."""

    partial_ingestion_percent: float | None = None
    error_diagnostics_enabled: bool = True


@dataclass(frozen=True, slots=True)
class Flow:
    """A source, a target and how often; the mapping set is compiled apart from it."""

    id: str
    name: str
    source: Source
    target: Target
    options: Options
    schedule: Schedule | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts of a load or a run: input = output + failed + skipped + deduplicated, checked on construction.

    input: lines of the export. output: rows committed. failed: rejects. skipped: blank lines.
    deduplicated: rows that Mixpanel's rule drops. warnings: values that became null, the row stayed.
    """

    input: int = 0
    output: int = 0
    failed: int = 0
    skipped: int = 0
    deduplicated: int = 0
    warnings: int = 0

    def __post_init__(self) -> None:
        assert self.input == self.output + self.failed + self.skipped + self.deduplicated, f"rows do not add up: {self}"

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.input + other.input,
            self.output + other.output,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.deduplicated + other.deduplicated,
            self.warnings + other.warnings,
        )


@dataclass(frozen=True, slots=True)
class Issue:
    """Something wrong with rows, counted: a code of Adobe's families, a message, how many rows, one sample."""

    code: str
    message: str
    count: int
    sample: str | None = None


class LoadState(StrEnum):
    """`STARTED` before the work, `COMMITTING` before the target changes, then one of the ends."""

    STARTED = "started"
    COMMITTING = "committing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Load:
    """One attempt to write one day of one flow. `generation` grows with every attempt; `batch_id` is a ULID."""

    flow_id: str
    day: date
    generation: int
    batch_id: str
    run_id: str
    started_at: datetime

    @property
    def scope(self) -> str:
        """What the generation counts within, as it is written into the target: one flow, one day."""
        return f"mixpanel-worker:{self.flow_id}:{self.day.isoformat()}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a commit says, stored in the target with the rows: it is enough to rebuild the state from."""

    flow_id: str
    day: date
    generation: int
    batch_id: str
    run_id: str
    exported_at: datetime
    committed_at: datetime
    tally: Tally
    input_bytes: int = 0
    output_bytes: int = 0
    file_count: int = 0


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """What the store knows of a load. `receipt` is there once it succeeded; `error_*` once it failed."""

    load: Load
    state: LoadState
    receipt: Receipt | None = None
    error_code: str | None = None
    error_message: str | None = None


class RunState(StrEnum):
    """Status words of `/runs` (Flow Service)."""

    IN_PROGRESS = "inProgress"
    SUCCESS = "success"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a flow over the days `first_day` to `last_day`, both inclusive."""

    id: str
    flow_id: str
    flow_name: str
    dataset_id: str
    state: RunState
    started_at: datetime
    first_day: date
    last_day: date
    window_start: datetime
    window_end: datetime
    completed_at: datetime | None = None
    updated_at: datetime | None = None
    days_committed: int = 0
    tally: Tally = field(default_factory=Tally)
    input_bytes: int = 0
    output_bytes: int = 0
    input_files: int = 0
    output_files: int = 0
    batch_ids: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
