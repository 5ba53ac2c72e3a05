"""What the worker counts, as Prometheus reads it: a listener to the worker's events, and a page of text.

Names and units keep to Prometheus' rules: base units, `_total` behind counters, `_seconds` and `_bytes` in the name.
Labels are bounded: a flow's name, a project's number, a status, an outcome, an error code, a step. Histograms have no
flow, for each of their series is a dozen. What belongs to a flow is forgotten with it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker import events
from worker.errors import InterruptedRunError, ResourceError
from worker.model import RunState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from datetime import date

    from worker.events import Event
    from worker.model import Receipt, Run

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The Content-Type of what `text` gives."""

STEP_BUCKETS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200)
"""From a commit, which is over in a moment, to an export, which Mixpanel may think about for an hour."""
WAIT_BUCKETS: Final = (0.1, 1, 10, 60, 300, 900, 3600)
"""The quota counts seconds and hours; Retry-After asks for an hour at most."""
LOOP_SECONDS: Final = 60.0
"""The loop's lag is the longest of so many seconds, so that it is seen by whoever asks less often than it is taken."""

STATUSES: Final = ("success", "failed", "interrupted")
OUTCOMES: Final = ("success", "refused", "throttled", "unavailable", "broken", "interrupted", "not_begun")
ROW_OUTCOMES: Final = ("output", "rejected", "deduplicated", "skipped")
STEPS: Final = ("export", "stage", "commit", "day", "run")
UNKNOWN_CODE: Final = "unknown"

_CODE = re.compile(r"[A-Z]{1,16}-[0-9]{1,5}-[0-9]{1,3}")
_MOST_CODES = 50

Family = TypeVar("Family", Counter, Gauge)


@dataclass(slots=True)
class _Flow:
    """What is under way in a flow, by a clock that never steps, and which series it has."""

    name: str
    series: set[tuple[Counter | Gauge, tuple[str, ...]]] = field(default_factory=set)
    run_started: float | None = None
    days: dict[date, float] = field(default_factory=dict)
    requests: dict[date, bool] = field(default_factory=dict)
    """Requests under way; True once the whole body has come."""
    committing: float | None = None
    rejects: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Rejects by code of the batch that is being committed."""


class Metrics:
    """Counts what the worker's events tell; `text` is the answer of /metrics.

    A listener: callable from any thread, never raises. `quota_left` gives for each project the exports that may be
    asked for at once. It is called at every scrape, on the thread that calls `text`, and may raise: its series are left
    out then, and that is counted. `clock` never steps, `now` is the time in Unix seconds.
    """

    def __init__(
        self,
        *,
        quota_left: Callable[[], Mapping[str, float]] = dict,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        # the time at which each counter was made would double the series, and nothing reads it
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._flows: dict[str, _Flow] = {}
        self._codes: set[str] = set()
        self._loop_lag = 0.0
        self._registry = registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mixpanel_worker_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"mixpanel_worker_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"mixpanel_worker_{name}", text, (label,), buckets=buckets, registry=registry)

        self._runs = counter("runs_total", "Runs that have ended, by status.", "flow", "status")
        self._run_failures = counter("run_failures_total", "Runs that failed, by error code.", "flow", "code")
        self._running = gauge("runs_in_progress", "Runs under way.", "flow")
        self._last_success = gauge(
            "flow_last_success_timestamp_seconds", "When the newest successful run ended, in Unix time.", "flow"
        )
        self._last_failure = gauge(
            "flow_last_failure_timestamp_seconds", "When the newest failed run ended, in Unix time.", "flow"
        )
        self._lag = gauge("flow_lag_seconds", "Time since the end of the newest complete day.", "flow")
        self._days = counter("days_total", "Days that have ended, by status.", "flow", "status")
        self._input_rows = counter("input_rows_total", "Lines of the exports of committed days.", "flow")
        self._rows = counter("rows_total", "Lines of committed days by what became of them.", "flow", "outcome")
        self._rejected = counter("rejected_rows_total", "Rejects of committed days, by code.", "flow", "code")
        self._warnings = counter("warnings_total", "Values that became null in rows that stayed.", "flow")
        self._input_bytes = counter("input_bytes_total", "Exports of committed days, as they came.", "flow")
        self._output_bytes = counter("output_bytes_total", "Files that were committed.", "flow")
        self._requests = counter("export_requests_total", "Exports asked for, by outcome.", "flow", "outcome")
        self._waits = histogram("export_wait_seconds", "Waits before an export is asked for.", "reason", WAIT_BUCKETS)
        self._steps = histogram("step_seconds", "How long the steps of the work take.", "step", STEP_BUCKETS)
        self._trouble = counter("service_troubles_total", "What failed outside of runs and is tried again.")
        unread = counter("collect_failures_total", "Scrapes in which something could not be told.", "what")
        self._lost = counter("listener_errors_total", "Events that could not be counted.")
        gauge(
            "event_loop_lag_seconds", f"Longest time in {LOOP_SECONDS:.0f} s for which nothing else had its turn."
        ).set_function(lambda: self._loop_lag)
        for step in STEPS:
            self._steps.labels(step)
        for reason in ("quota", "retry"):
            self._waits.labels(reason)
        Info("mixpanel_worker_build", "Which worker this is.", registry=registry).info(
            {"version": _own_version(), "python": platform.python_version()}
        )
        ProcessCollector(registry=registry)
        registry.register(
            _Asked(
                "mixpanel_worker_export_quota_left",
                "Exports that the project may ask for at once.",
                "project",
                quota_left,
                unread.labels("quota"),
            )
        )

    def __call__(self, event: Event) -> None:
        try:
            with self._lock:
                self._count(event)
        except Exception:  # noqa: BLE001 - what cannot be counted must not stop a commit
            self._lost.inc()

    async def watch_loop(
        self, interval: float = 1.0, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        """Measure, until cancelled, how much later than asked for the event loop comes back (fault F175)."""
        measured: deque[float] = deque(maxlen=max(1, round(LOOP_SECONDS / interval)))
        while True:
            before = self._clock()
            await sleep(interval)
            measured.append(max(0.0, self._clock() - before - interval))
            self._loop_lag = max(measured)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus. May block for as long as `lag_of` and `quota_left` do."""
        return generate_latest(self._registry)

    def write_file(self, path: Path) -> None:
        """Put the text at `path`, whole or not at all, readable by all: what a node exporter collects.

        Raises ResourceError.
        """
        text = self.text()
        draft: str | None = None
        try:
            # a collector reads each *.prom of the folder, so the draft has another ending
            descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)
                file.write(text)
            Path(draft).replace(path)
        except OSError as error:
            if draft is not None:
                with suppress(OSError):
                    Path(draft).unlink()
            raise ResourceError(
                f"The metrics cannot be written to {path}: {error.strerror or error}.",
                advice="Let --metrics-file name a file in a folder that the worker may write to.",
            ) from error

    def _count(self, event: Event) -> None:
        now = self._clock()
        flow: _Flow | None
        match event:
            case events.RunStarted(run):
                flow = self._begin(run)
                flow.run_started = now
                self._of(self._running, flow).set(1)
            case events.RunEnded(run):
                # a run that could not be prepared has only an end
                flow = self._flows.get(run.flow_id) or self._begin(run)
                if flow.run_started is not None:
                    self._steps.labels("run").observe(now - flow.run_started)
                self._of(self._running, flow).set(0)
                status = _status(run.error_code) if run.state is RunState.FAILED else "success"
                self._of(self._runs, flow, status).inc()
                if status == "failed":
                    self._of(self._run_failures, flow, self._code(run.error_code)).inc()
                if status != "interrupted" and run.completed_at is not None:
                    newest = self._last_success if status == "success" else self._last_failure
                    self._of(newest, flow).set(run.completed_at.timestamp())
                # whatever did not tell its end
                flow.run_started = flow.committing = None
                flow.days.clear()
                flow.requests.clear()
                flow.rejects.clear()
            case events.ExportWaiting(_, _, seconds, reason):
                self._waits.labels("quota" if reason == "quota" else "retry").observe(seconds)
            case events.ExportOpened(load) if flow := self._flows.get(load.flow_id):
                flow.days.setdefault(load.day, now)
                flow.requests[load.day] = False
            case events.ExportEnded(load, _, seconds):
                self._steps.labels("export").observe(seconds)
                if (flow := self._flows.get(load.flow_id)) and load.day in flow.requests:
                    flow.requests[load.day] = True
            case events.ExportFailed(flow_id, day, code, _, retry_seconds):
                if flow := self._flows.get(flow_id):
                    flow.requests.pop(day, None)
                    self._of(self._requests, flow, _outcome(code)).inc()
                if retry_seconds is not None:
                    self._waits.labels("retry").observe(retry_seconds)
            case events.DayStaged(load, _, _, seconds):
                self._steps.labels("stage").observe(seconds)
                self._answered(load.flow_id, load.day, "success")
            case events.DayLeftOut(flow_id, day):
                self._answered(flow_id, day, "not_begun")
                if flow := self._flows.get(flow_id):
                    flow.days.pop(day, None)
            case events.DayFailed(load, code) if flow := self._flows.get(load.flow_id):
                # an export that came whole did succeed, whatever happened to its day
                self._answered(load.flow_id, load.day, "success" if flow.requests.get(load.day) else "interrupted")
                flow.days.pop(load.day, None)
                self._of(self._days, flow, _status(code)).inc()
            case events.DayCommitting(load) if flow := self._flows.get(load.flow_id):
                flow.committing = now
            case events.RejectsCommitted(load, _, codes) if flow := self._flows.get(load.flow_id):
                flow.rejects = {load.batch_id: codes}
            case events.RowsCommitted(receipt) if flow := self._flows.get(receipt.flow_id):
                if flow.committing is not None:
                    self._steps.labels("commit").observe(now - flow.committing)
                    flow.committing = None
            case events.DaySucceeded(receipt) if flow := self._flows.get(receipt.flow_id):
                if (started := flow.days.pop(receipt.day, None)) is not None:
                    self._steps.labels("day").observe(now - started)
                self._committed(flow, receipt)
            case events.DayRecovered(receipt) if flow := self._flows.get(receipt.flow_id):
                # its own process died before it could say so
                self._committed(flow, receipt)
            case events.FlowKnown(flow_id, name, last_success, complete_until):
                flow = self._flow(flow_id, name)
                if last_success is not None:
                    gauge = self._of(self._last_success, flow)
                    # a success that was counted here meanwhile stays
                    gauge.set(max(last_success.timestamp(), _value_of(gauge)))
                if complete_until is not None:
                    self._of(self._lag, flow).set_function(partial(self._seconds_since, complete_until.timestamp()))
            case events.FlowGone(flow_id):
                self._drop(flow_id)
            case events.ServiceTrouble():
                self._trouble.inc()
            case _:
                pass

    def _seconds_since(self, moment: float) -> float:
        return max(self._now() - moment, 0.0)

    def _committed(self, flow: _Flow, receipt: Receipt) -> None:
        tally = receipt.tally
        self._of(self._days, flow, "success").inc()
        self._of(self._input_rows, flow).inc(tally.input)
        for outcome, count in zip(
            ROW_OUTCOMES, (tally.output, tally.failed, tally.deduplicated, tally.skipped), strict=True
        ):
            self._of(self._rows, flow, outcome).inc(count)
        self._of(self._warnings, flow).inc(tally.warnings)
        self._of(self._input_bytes, flow).inc(receipt.input_bytes)
        self._of(self._output_bytes, flow).inc(receipt.output_bytes)
        by_code = dict(flow.rejects.pop(receipt.batch_id, {}))
        if rest := tally.failed - sum(by_code.values()):
            by_code[UNKNOWN_CODE] = rest
        for code, count in by_code.items():
            self._of(self._rejected, flow, self._code(code)).inc(count)

    def _answered(self, flow_id: str, day: date, outcome: str) -> None:
        """The request for a day has ended, unless that was told before."""
        flow = self._flows.get(flow_id)
        if flow is not None and flow.requests.pop(day, None) is not None:
            self._of(self._requests, flow, outcome).inc()

    def _begin(self, run: Run) -> _Flow:
        """Show the counters of a flow from its first run on: an increase from nothing to one would not be seen."""
        flow = self._flow(run.flow_id, run.flow_name)
        for status in STATUSES:
            self._of(self._runs, flow, status)
            self._of(self._days, flow, status)
        for outcome in ROW_OUTCOMES:
            self._of(self._rows, flow, outcome)
        for outcome in OUTCOMES:
            self._of(self._requests, flow, outcome)
        for family in (self._input_rows, self._warnings, self._input_bytes, self._output_bytes):
            self._of(family, flow)
        return flow

    def _flow(self, flow_id: str, name: str) -> _Flow:
        flow = self._flows.get(flow_id)
        if flow is not None and flow.name != name:
            self._drop(flow_id)
            flow = None
        if flow is None:
            flow = self._flows[flow_id] = _Flow(name)
        return flow

    def _of(self, family: Family, flow: _Flow, *labels: str) -> Family:
        values = (flow.name, *labels)
        flow.series.add((family, values))
        return family.labels(*values)

    def _drop(self, flow_id: str) -> None:
        gone = self._flows.pop(flow_id, None)
        if gone is None or any(other.name == gone.name for other in self._flows.values()):
            return
        for family, values in gone.series:
            family.remove(*values)

    def _code(self, code: str | None) -> str:
        """The code as a label: one that looks like a code, and no more different ones than there may be."""
        if code is None or not _CODE.fullmatch(code):
            return UNKNOWN_CODE
        if code not in self._codes and len(self._codes) >= _MOST_CODES:
            return UNKNOWN_CODE
        self._codes.add(code)
        return code


class _Asked(Collector):
    """A gauge that asks for its values at every scrape."""

    def __init__(
        self, name: str, text: str, label: str, values_of: Callable[[], Mapping[str, float]], failures: Counter
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._values_of = values_of
        self._failures = failures

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=(self._label,))
        try:
            values = dict(self._values_of())
        except Exception:  # noqa: BLE001 - a database that is away is what the rest of the page is read for
            self._failures.inc()
            values = {}
        for value in values.items():
            family.add_metric((value[0],), value[1])
        yield family


def _status(code: str | None) -> str:
    return "interrupted" if code == InterruptedRunError.code else "failed"


def _outcome(code: str) -> str:
    """What an export's error code says in a word (worker/errors.py)."""
    return {"429": "throttled", "503": "unavailable", "502": "broken", "500": "unavailable"}.get(
        code.rpartition("-")[2], "refused"
    )


def _value_of(gauge: Gauge) -> float:
    return next(sample.value for family in gauge.collect() for sample in family.samples)


def _own_version() -> str:
    with suppress(PackageNotFoundError):
        return version("mixpanel-worker")
    return "unknown"
