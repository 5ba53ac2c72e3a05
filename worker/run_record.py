"""A run as Adobe's `GET /runs` prints it (Flow Service, monitor dataflow runs; facts, aep §3).

A run has two activities: `copyActivity` is the export, `promotionActivity` the commits. Where Adobe's samples and its
OpenAPI differ (`etag`, `activities`), this is as the samples are. What goes beyond the samples: `flowName`, `inputs`
with the days, all batches of the run beside the one that Adobe's links lead to, and counts of Adobe's OpenAPI that the
samples leave out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

from worker.model import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from worker.model import Issue, Receipt, Run

PROMOTION_ERROR: Final = {"code": "CONNECTOR-2001-500", "message": "Error occurred at promotion activity."}
ROWS_IN_ERROR: Final = "INGEST-1212-400"
COPY_FAMILY: Final = "CONNECTOR-1"
"""Codes of what fails in the export begin so."""
AFTER_COPY_FAMILIES: Final = ("CONNECTOR-2", "INGEST-")
"""Codes of what fails once the export is whole. Other failures, as a signal, may come at any time."""
FLOW_SPEC: Final = {"id": "6499120c-0b15-42dc-936e-847ea3c24d72", "version": "1.0"}
"""RestStorageToAEP, the flow specification of Adobe's Mixpanel source (tutorial, create a flow)."""
EXPORT_PATH: Final = "/api/2.0/export"
BATCHES_PATH: Final = "/data/foundation/export/batches"
"""Where this server answers as Adobe's Data Access does (facts, aep §4.2)."""
ETAGS: Final = UUID("4e9d24c7-35a4-5a5b-8f02-9a3f6a1b7c50")
"""Namespace of the etags: one follows from everything that the record holds."""
ORGANISATION: Final = "mixpanel-worker@AdobeOrg"
"""Whose everything here is, where Adobe names an organisation."""


OWNER: Final = {
    "createdBy": "mixpanel-worker",
    "updatedBy": "mixpanel-worker",
    "createdClient": "mixpanel-worker",
    "updatedClient": "mixpanel-worker",
    "sandboxId": "00000000-0000-0000-0000-000000000000",
    "sandboxName": "prod",
    "imsOrgId": ORGANISATION,
}
"""Who made an object and where, as Adobe fills it from its identity service. Opaque there, constant here: one
organisation and one sandbox live in one state database."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a document says beyond its run; the defaults are right for a run of the command line.

    `base_url` stands before the links, which are relative to the server without it. `receipts`: those of the run's
    commits that are known; they say which day a batch holds and where the rejects are. `queued`: the run was asked for
    and has not begun.
    """

    base_url: str = ""
    source_connection_id: str | None = None
    target_connection_id: str | None = None
    one_time: bool = False
    queued: bool = False
    receipts: Sequence[Receipt] = ()


_PLAIN: Final = RunContext()


def runs_document(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs of the command line as `GET /runs` lists them."""
    return {"items": [run_document(run) for run in runs], "_links": {}}


def run_document(run: Run, *, context: RunContext = _PLAIN) -> dict[str, Any]:
    """One item of `GET /runs`. Times are epoch milliseconds; counts are those of the days committed so far.

    A run whose export failed before any commit has no `promotionActivity`, as in Adobe's samples.
    """
    status = "scheduled" if context.queued and run.state is RunState.IN_PROGRESS else run.state.value
    failed_at_copy = run.state is RunState.FAILED and (run.error_code or "").startswith(COPY_FAMILY)
    promoted = not failed_at_copy or bool(run.batch_ids)
    refs = ["promotionActivity"] if promoted else ["copyActivity"]
    sizes = {"inputBytes": run.input_bytes, "outputBytes": run.output_bytes}
    copied = run.state is RunState.FAILED and (run.error_code or "").startswith(AFTER_COPY_FAMILIES)
    activities = [_copy(run, context, "success" if copied else status, failed=failed_at_copy)]
    if promoted:
        # the days before the one whose export failed are committed
        promotion = "success" if failed_at_copy else status
        activities.append(_promotion(run, context, promotion, failed_at_copy=failed_at_copy))
    etag = run_etag(run)
    return {
        "id": run.id,
        "createdAt": _milliseconds(run.started_at),
        "updatedAt": _updated(run),
        **OWNER,
        "flowId": run.flow_id,
        "flowName": run.flow_name,
        "flowSpec": FLOW_SPEC,
        "providerRefId": f"M-{run.flow_id}-{_kind(context)}-0:{run.id}",
        "version": etag,
        "etag": etag,
        "metrics": {
            "durationSummary": _duration(run),
            "sizeSummary": sizes,
            "recordSummary": _records(run),
            "fileSummary": {
                "inputFileCount": run.input_files,
                "outputFileCount": run.output_files,
                **_manifest(run, context),
                "activityRefs": refs,
            },
            "statusSummary": {**_status(run, status), "activityRefs": refs},
        },
        "activities": activities,
    }


def run_etag(run: Run) -> str:
    """The etag of a run, in the quotes that belong to it: another one after every change of the record."""
    return f'"{uuid5(ETAGS, repr(run))}"'


def batch_link(base_url: str, batch_id: str, what: str) -> str:
    """Where Data Access tells `what` (`row_errors`, `row_error_samples.json`, `input_files`) of a batch."""
    return f"{base_url.rstrip('/')}{BATCHES_PATH}/{batch_id}/meta?path={what}"


def _copy(run: Run, context: RunContext, status: str, *, failed: bool) -> dict[str, Any]:
    summary: dict[str, Any] = {"status": status, "extensions": {"type": _kind(context)}}
    if failed:
        error = {"code": run.error_code, "message": run.error_message}
        summary["errors"] = [error]
        summary["extensions"] |= {"errorDetail": run.error_message, "errors": [error]}
    known = context.source_connection_id is not None
    return {
        "id": "copyActivity",
        "name": "Mixpanel export",
        "updatedAtUTC": _updated(run),
        "durationSummary": _duration(run),
        "sizeSummary": {"inputBytes": run.input_bytes, "outputBytes": run.input_bytes},
        "recordSummary": {},
        "fileSummary": {"inputFileCount": run.input_files, "outputFileCount": run.input_files},
        "statusSummary": summary,
        "sourceInfo": [
            {
                "id": context.source_connection_id if known else run.flow_id,
                "type": "SourceConnection" if known else "Flow",
                "reference": {"type": "AdfRunId", "ids": [run.id]},
                "inputs": _inputs(run, context),
            }
        ],
    }


def _promotion(run: Run, context: RunContext, status: str, *, failed_at_copy: bool) -> dict[str, Any]:
    summary: dict[str, Any] = {"status": status} if failed_at_copy else _status(run, status)
    if failed_at_copy and run.tally.failed:
        summary["errors"] = [PROMOTION_ERROR]
    extensions: dict[str, Any] = {}
    if run.tally.failed and run.batch_ids:
        batch_id = _batch_with_rejects(run, context)
        extensions["manifest"] = {
            "failedRecords": batch_link(context.base_url, batch_id, "row_errors"),
            "sampleErrors": batch_link(context.base_url, batch_id, "row_error_samples.json"),
        }
    errors = _row_errors(run)
    if run.state is RunState.FAILED and not failed_at_copy:
        errors.insert(0, {"code": run.error_code, "message": run.error_message})
    if errors:
        extensions["errors"] = errors
    if extensions:
        summary["extensions"] = extensions
    known = context.target_connection_id is not None
    return {
        "id": "promotionActivity",
        "name": "Commit to the target",
        "updatedAtUTC": _updated(run),
        "durationSummary": _duration(run),
        "sizeSummary": {"inputBytes": run.input_bytes, "outputBytes": run.output_bytes},
        "recordSummary": _records(run),
        "fileSummary": {
            "inputFileCount": run.input_files,
            "outputFileCount": run.output_files,
            **_manifest(run, context),
        },
        "statusSummary": summary,
        "targetInfo": [
            {
                "id": context.target_connection_id if known else run.dataset_id,
                "type": "TargetConnection" if known else "DataSet",
                "reference": {"type": "Batch", "ids": list(run.batch_ids)},
            }
        ],
    }


def _kind(context: RunContext) -> str:
    return "one-time" if context.one_time else "incremental"


def _duration(run: Run) -> dict[str, Any]:
    duration: dict[str, Any] = {"startedAtUTC": _milliseconds(run.started_at)}
    if run.completed_at is not None:
        duration["completedAtUTC"] = _milliseconds(run.completed_at)
    duration["extensions"] = {
        "windowStart": _milliseconds(run.window_start),
        "windowEnd": _milliseconds(run.window_end),
    }
    return duration


def _records(run: Run) -> dict[str, int]:
    tally = run.tally
    return {
        "inputRecordCount": tally.input,
        "outputRecordCount": tally.output,
        "createdRecordCount": tally.output,
        "failedRecordCount": tally.failed,
        "skippedRecordCount": tally.skipped,
        "deduplicatedRecordCount": tally.deduplicated,
        "warningRecordCount": tally.warnings,
    }


def _status(run: Run, status: str) -> dict[str, Any]:
    if run.state is RunState.FAILED:
        return {"status": status, "errors": [{"code": run.error_code, "message": run.error_message}]}
    # a run is a success although some of its rows were rejected, and says so
    return {"status": status, "errors": [PROMOTION_ERROR]} if run.tally.failed else {"status": status}


def _manifest(run: Run, context: RunContext) -> dict[str, Any]:
    """The links to the files of the batches: as the samples have it, one; as the OpenAPI has it, all."""
    if not run.batch_ids:
        return {}
    days = _days_of_batches(run, context)
    files = [
        {
            "path": batch_link(context.base_url, batch_id, "input_files"),
            **({"pathPrefix": _export_path(days[batch_id])} if batch_id in days else {}),
        }
        for batch_id in run.batch_ids
    ]
    newest = batch_link(context.base_url, run.batch_ids[-1], "input_files")
    return {"extensions": {"manifest": {"fileInfo": newest}}, "manifest": {"fileInfo": files}}


def _batch_with_rejects(run: Run, context: RunContext) -> str:
    """The newest batch that is known to have rejects, else the newest one."""
    rejected = {receipt.batch_id for receipt in context.receipts if receipt.tally.failed}
    return next((batch_id for batch_id in reversed(run.batch_ids) if batch_id in rejected), run.batch_ids[-1])


def _inputs(run: Run, context: RunContext) -> list[dict[str, str]]:
    """The days that were exported and committed, each as the entity that Mixpanel was asked for."""
    days = _days_of_batches(run, context)
    return [
        {"entityName": day.isoformat(), "path": _export_path(day), "batchId": batch_id}
        for batch_id in run.batch_ids
        if (day := days.get(batch_id)) is not None
    ]


def _days_of_batches(run: Run, context: RunContext) -> dict[str, date]:
    """The day of each batch, as the receipts say, or where only one answer is possible.

    Days are committed in order. A run may leave days out, so without receipts they are known if none was.
    """
    known = {receipt.batch_id: receipt.day for receipt in context.receipts}
    if not known and len(run.batch_ids) == (run.last_day - run.first_day).days + 1:
        known = {batch_id: run.first_day + timedelta(days=number) for number, batch_id in enumerate(run.batch_ids)}
    return known


def _export_path(day: date) -> str:
    return f"{EXPORT_PATH}?from_date={day}&to_date={day}"


def _row_errors(run: Run) -> list[dict[str, Any]]:
    errors: list[dict[str, Any]] = []
    if run.tally.failed:
        message = (
            f"Encountered {run.tally.failed} errors in the data. Successfully ingested {run.tally.output} rows. "
            f"Review the rejects table for additional details."
        )
        errors.append({"code": ROWS_IN_ERROR, "recordCount": run.tally.failed, "message": message})
    errors.extend(_issue(issue) for issue in run.issues)
    return errors


def _issue(issue: Issue) -> dict[str, Any]:
    document: dict[str, Any] = {"code": issue.code, "recordCount": issue.count, "message": issue.message}
    if issue.sample is not None:
        document["sample"] = issue.sample
    return document


def _updated(run: Run) -> int:
    return _milliseconds(run.updated_at or run.started_at)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
