"""A run as Adobe's `GET /runs` prints it (Flow Service, monitor dataflow runs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.model import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from worker.model import Issue, Run

PROMOTION_ERROR = {"code": "CONNECTOR-2001-500", "message": "Error occurred at promotion activity."}
ROWS_IN_ERROR = "INGEST-1212-400"


def runs_document(runs: Sequence[Run]) -> dict[str, Any]:
    """The answer of `GET /runs`: the runs under `items`."""
    return {"items": [run_document(run) for run in runs], "_links": {}}


def run_document(run: Run) -> dict[str, Any]:
    """One item of `GET /runs`. Times are epoch milliseconds; counts are those of the run's tally."""
    tally = run.tally
    ended = run.completed_at
    records: dict[str, Any] = {
        "inputRecordCount": tally.input,
        "outputRecordCount": tally.output,
        "failedRecordCount": tally.failed,
        "skippedRecordCount": tally.skipped,
        "deduplicatedRecordCount": tally.deduplicated,
        "warningRecordCount": tally.warnings,
    }
    duration: dict[str, Any] = {
        "startedAtUTC": _milliseconds(run.started_at),
        "extensions": {"windowStart": _milliseconds(run.window_start), "windowEnd": _milliseconds(run.window_end)},
    }
    if ended is not None:
        duration["completedAtUTC"] = _milliseconds(ended)
    status: dict[str, Any] = {"status": run.state.value}
    if errors := _errors(run):
        status["errors"] = errors
    updated = run.updated_at or run.started_at
    sizes = {"inputBytes": run.input_bytes, "outputBytes": run.output_bytes}
    promotion_status: dict[str, Any] = dict(status)
    if run.issues or tally.failed:
        promotion_status["extensions"] = {"errors": _row_errors(run)}
    return {
        "createdAt": _milliseconds(run.started_at),
        "updatedAt": _milliseconds(updated),
        "id": run.id,
        "flowId": run.flow_id,
        "flowName": run.flow_name,
        "metrics": {
            "durationSummary": duration,
            "sizeSummary": sizes,
            "recordSummary": records,
            "fileSummary": {
                "inputFileCount": run.input_files,
                "outputFileCount": run.output_files,
                "activityRefs": ["promotionActivity"],
            },
            "statusSummary": {**status, "activityRefs": ["promotionActivity"]},
        },
        "activities": [
            {
                "id": "copyActivity",
                "updatedAtUTC": _milliseconds(updated),
                "durationSummary": duration,
                "sizeSummary": {"inputBytes": run.input_bytes, "outputBytes": run.input_bytes},
                "recordSummary": {},
                "fileSummary": {"inputFileCount": run.input_files, "outputFileCount": run.input_files},
                "statusSummary": {"status": run.state.value, "extensions": {"type": "incremental"}},
                "sourceInfo": [],
            },
            {
                "id": "promotionActivity",
                "updatedAtUTC": _milliseconds(updated),
                "durationSummary": duration,
                "sizeSummary": sizes,
                "recordSummary": records,
                "fileSummary": {"inputFileCount": run.input_files, "outputFileCount": run.output_files},
                "statusSummary": promotion_status,
                "targetInfo": [
                    {
                        "id": run.dataset_id,
                        "type": "DataSet",
                        "reference": {"type": "Batch", "ids": list(run.batch_ids)},
                    }
                ],
            },
        ],
    }


def _errors(run: Run) -> list[dict[str, Any]]:
    if run.state is RunState.FAILED:
        return [{"code": run.error_code, "message": run.error_message}]
    return [PROMOTION_ERROR] if run.tally.failed else []


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


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
