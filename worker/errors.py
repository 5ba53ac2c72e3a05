"""Everything that can go wrong, as one tree: a stable code, whose fault it is, whether trying again helps, what to do.

WorkerError
├── ConfigurationError        the command, a setting, the flow file or the mapping set is wrong       exit 2
├── SourceError
│   ├── ExportRefusedError    400, 401, 402, 403, a host that is not allowed: a person must act
│   ├── ExportThrottledError  429: wait, then ask again
│   ├── ExportUnavailableError  5xx, no connection, a time limit: ask again
│   ├── ExportBrokenError     a 200 whose body is not whole: fetch the day again
│   └── DayNotBegunError      the day lies after Mixpanel's today
├── RejectLimitError          more rejects than the flow accepts
├── SinkError
│   ├── SchemaConflictError   the table's columns and the mapping set do not fit
│   ├── OwnerConflictError    the table belongs to another flow
│   ├── StaleGenerationError  a later attempt has committed this day
│   └── CommitUnknownError    the answer to a commit is lost: ask the sink
├── StoreError                the state database is broken, newer than this worker, or full
│   ├── ObjectExistsError     an object of the API is there already
│   ├── ObjectMissingError    or it is not
│   └── EtagConflictError     or somebody else has changed it
├── ResourceError             disk or memory is not enough
├── FlowBusyError             another process works on the flow
└── InterruptedRunError       Ctrl-C or SIGTERM
"""

from __future__ import annotations

import traceback

_SHOWN_FRAMES = 4


class WorkerError(Exception):
    """Base of all errors that a user may see.

    `code` is stable and fit for a metric label; `advice` says what to do; `retry` whether the worker tries
    again itself. No message holds a credential.
    """

    code = "WORKER-1000-500"
    retry = False

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        if not self.advice:
            return self.message
        # what a server said may end without a full stop
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        return f"{self.message}{stop} {self.advice}"


class ConfigurationError(WorkerError):
    """The command, a setting, the flow file or the mapping set is wrong; nothing was started."""

    code = "CONFIG-1000-400"


class SourceError(WorkerError):
    """The export failed."""

    code = "CONNECTOR-1001-500"


class ExportRefusedError(SourceError):
    """Mixpanel refuses for a reason that time does not mend."""

    def __init__(self, message: str, *, status: int, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.code = f"CONNECTOR-1001-{status}"


class ExportThrottledError(SourceError):
    """429. `retry_after_seconds` is what the server asked for, or None."""

    code = "CONNECTOR-1001-429"
    retry = True

    def __init__(self, message: str, *, retry_after_seconds: float | None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ExportUnavailableError(SourceError):
    """The server could not be reached, answered 5xx, or a time limit passed."""

    code = "CONNECTOR-1001-503"
    retry = True


class ExportBrokenError(SourceError):
    """A 200 whose body is not the whole day; `reason` is a stable word for the metric."""

    code = "CONNECTOR-1001-502"
    retry = True

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DayNotBegunError(SourceError):
    """`to_date cannot be later than today`: the day has not begun where Mixpanel keeps the calendar."""

    code = "CONNECTOR-1001-400"


class RejectLimitError(WorkerError):
    """The share of rejected rows is over `partialIngestionPercent`; the day was not committed."""

    code = "INGEST-1212-400"


class SinkError(WorkerError):
    """The target could not be prepared, staged or committed."""

    code = "CONNECTOR-2001-500"


class SchemaConflictError(SinkError):
    """A column of the mapping set has another type than the same column of the table."""

    code = "CONNECTOR-2001-409"


class OwnerConflictError(SinkError):
    """The table belongs to another flow."""

    code = "CONNECTOR-2001-403"


class StaleGenerationError(SinkError):
    """A later or equal generation of the same day is already in the target."""

    code = "CONNECTOR-2001-412"


class CommitUnknownError(SinkError):
    """Whether the commit landed is not known; only `landed` may answer."""

    code = "CONNECTOR-2001-504"
    retry = True


class StoreError(WorkerError):
    """The state database cannot be used."""

    code = "STATE-1000-500"


class ObjectExistsError(StoreError):
    """There is an object of this kind and id."""


class ObjectMissingError(StoreError):
    """There is no object of this kind and id."""


class EtagConflictError(StoreError):
    """The object was changed by somebody else since it was read."""


class ResourceError(WorkerError):
    """The machine has too little disk or memory."""

    code = "RESOURCE-1000-507"


class FlowBusyError(WorkerError):
    """Another process works on the flow, so this one does not."""

    code = "WORKER-1002-409"


class InterruptedRunError(WorkerError):
    """A signal ended the run; what was committed stays, the rest is as it was."""

    code = "WORKER-1001-499"

    def __init__(self) -> None:
        super().__init__("Interrupted: days that were committed stay, all others are as they were.")


def place_of(error: BaseException) -> str:
    """Which error that nobody foresaw, and where: not its text, which may hold what was sent."""
    frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
    return f"{type(error).__name__} at " + " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
