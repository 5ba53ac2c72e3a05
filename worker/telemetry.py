"""Listeners to the worker's events: log lines as JSON or for reading, and a progress bar on a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from worker import events
from worker.errors import InterruptedRunError

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

    from worker.events import Event, Listener
    from worker.settings import Settings

LEVELS: dict[type[Any], int] = {
    events.ExportProgressed: logging.NOTSET,
    events.ExportFailed: logging.WARNING,
    events.ExportWaiting: logging.INFO,
    events.DayFailed: logging.ERROR,
    events.DayLeftOut: logging.WARNING,
    events.FlowAwaited: logging.WARNING,
    events.ServiceTrouble: logging.WARNING,
}
"""How loud each event is; events that are not here are DEBUG, except RunStarted, RunEnded and DaySucceeded: INFO."""

NOTABLE_SECONDS = 1.0
"""A wait for the quota that is shorter happens between any two exports."""

INFORMING = (events.RunStarted, events.RunEnded, events.DaySucceeded, events.DayRecovered)


def tell(*listeners: Listener) -> Listener:
    """One listener that tells several."""

    def all_of_them(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return all_of_them


class LogListener:
    """Writes each event as one line to standard error: JSON for machines, or words for people."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self._as_json = as_json
        self._least = getattr(logging, settings.log_level.upper())
        self._runs: dict[str, str] = {}

    @cached_property
    def _logger(self) -> Any:  # noqa: ANN401 - structlog's loggers are made of what they are given
        """Made for the first line: a quiet run does without the library's start-up."""
        import structlog

        renderer: Any = (
            structlog.processors.JSONRenderer()
            if self._as_json
            else structlog.dev.ConsoleRenderer(pad_event_to=20, colors=sys.stderr.isatty())
        )
        return structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
        )

    def __call__(self, event: Event) -> None:
        found = event_fields(event)
        if isinstance(event, events.RunStarted):
            self._runs[event.run.flow_id] = event.run.id
        if isinstance(event, events.DayRecovered):
            found["recovered_run_id"] = found.pop("run_id")
        found.setdefault("run_id", self._runs.get(found["flow_id"]))
        level = LEVELS.get(type(event), logging.INFO if isinstance(event, INFORMING) else logging.DEBUG)
        if isinstance(event, events.ExportWaiting) and event.seconds < NOTABLE_SECONDS:
            level = logging.DEBUG
        if isinstance(event, events.DayFailed) and event.code == InterruptedRunError.code:
            # its own error is told where it happened: on another day, or by a signal
            level = logging.INFO
        if level >= self._least and level:
            method = logging.getLevelName(level).lower()
            # a log that nobody takes any more (EPIPE, a full disk) must not stop a commit
            with suppress(OSError, ValueError):
                getattr(self._logger, method)(event_name(event), **found)


def event_name(event: Event) -> str:
    """`DaySucceeded` as `day_succeeded`."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in type(event).__name__).lstrip("_")


def event_fields(event: Event) -> dict[str, Any]:
    """The fields of an event flat and fit for JSON; of a run, a load or a receipt only what a reader wants."""
    found: dict[str, Any] = {}
    for field in fields(event):
        value = getattr(event, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            for name in (
                "id",
                "flow_id",
                "flow_name",
                "day",
                "generation",
                "batch_id",
                "run_id",
                "state",
                "error_message",
            ):
                if getattr(value, name, None) is not None:
                    found["run_id" if name == "id" else name] = _plain(getattr(value, name))
            if tally := getattr(value, "tally", None):
                found.update({part.name: getattr(tally, part.name) for part in fields(tally)})
        elif field.name == "days":
            found["days"] = len(value)
        else:
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever an event holds
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class ProgressListener:
    """A progress bar on a terminal: days done, the export under way, rows. Use as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("days"),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._rows = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case events.RunStarted(run, days):
                self._task = self._progress.add_task(run.flow_name, total=len(days), detail="")
            case events.ExportOpened(load, attempt):
                self._detail(f"{load.day} asked for" + (f", attempt {attempt}" if attempt > 1 else ""))
            case events.ExportWaiting(_, day, seconds, reason) if seconds >= NOTABLE_SECONDS:
                self._detail(f"{day} waits {_duration(seconds)} for the {reason}")
            case events.ExportProgressed(load, received_bytes, rows):
                self._detail(f"{load.day}  {received_bytes / 1e6:,.1f} MB  {rows:,} rows")
            case events.ExportFailed(_, day, _, message, retry_seconds):
                then = f"trying again in {_duration(retry_seconds)}" if retry_seconds is not None else "giving up"
                self.console.print(f"[yellow]{day}[/yellow]  {_escape(message)} ({then})")
            case events.DayLeftOut(_, day):
                self.console.print(f"[yellow]{day}[/yellow]  has not begun where Mixpanel keeps the calendar; left out")
            case events.FlowAwaited(_, flow_name, holder, seconds):
                self.console.print(
                    f"[yellow]{_escape(flow_name)}[/yellow]  is held by {_escape(holder)}; it is taken over in "
                    f"{_duration(seconds)}, unless that still works on it"
                )
            case events.DayRecovered(receipt):
                self.console.print(f"[green]{receipt.day}[/green]  was committed by an earlier run that ended early")
            case events.DaySucceeded():
                if self._task is not None:
                    self._progress.advance(self._task)
            case events.RunEnded():
                if self._task is not None:
                    self._progress.remove_task(self._task)
                    self._task = None
            case _:
                pass

    def _detail(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, detail=text)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
