"""Run records have the shape of Adobe's: of its samples, of its OpenAPI, and of what a run really knows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support import load_of, receipt_of
from worker.errors import ExportUnavailableError, InterruptedRunError, RejectLimitError, SinkError
from worker.model import Issue, Receipt, Run, RunState, Tally
from worker.run_record import RunContext, run_document, run_etag, runs_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FACTS = Path(__file__).parent.parent.parent / "shared" / "facts"
SAMPLES = FACTS / "aep_samples"
OPENAPI = FACTS / "openapi" / "flow-service.yaml"
needs_facts = pytest.mark.skipif(not OPENAPI.exists(), reason=f"Adobe's samples and OpenAPI are not at {FACTS.name}/")

START = datetime(2024, 3, 3, 1, tzinfo=UTC)
FIRST, LAST = date(2024, 3, 1), date(2024, 3, 2)
BATCHES = ("01HR0000000000000000000001", "01HR0000000000000000000002")
RUN = Run(
    id="9830305a-985f-47d0-b030-5a985fd7d004",
    flow_id="993f908f-3342-4d9c-9f3c-5aa9a189ca1a",
    flow_name="Flow",
    dataset_id="events",
    state=RunState.SUCCESS,
    started_at=START,
    first_day=FIRST,
    last_day=LAST,
    window_start=datetime(2024, 3, 1, tzinfo=UTC),
    window_end=datetime(2024, 3, 3, tzinfo=UTC),
    completed_at=START + timedelta(seconds=55),
    updated_at=START + timedelta(seconds=55),
    days_committed=2,
    tally=Tally(input=100, output=95, failed=1, skipped=1, deduplicated=3, warnings=2),
    input_bytes=24012,
    output_bytes=17128,
    input_files=2,
    output_files=3,
    batch_ids=BATCHES,
    issues=(Issue("MAPPER-3700-400", "Mapper Transform Error", 2, "x"),),
)
CONTEXT = RunContext(
    base_url="https://worker.example/",
    source_connection_id="c0e18602-f9ea-44f9-a186-02f9ea64f9ac",
    target_connection_id="47166b83-01c7-4b65-966b-8301c70b6562",
)
IN_PROGRESS = replace(
    RUN, state=RunState.IN_PROGRESS, completed_at=None, days_committed=1, batch_ids=BATCHES[:1], input_files=1
)
NOTHING_YET = replace(
    IN_PROGRESS, tally=Tally(), batch_ids=(), issues=(), days_committed=0, input_bytes=0, output_bytes=0, input_files=0
)
FAILED_COPY = replace(
    NOTHING_YET, state=RunState.FAILED, completed_at=START, error_code="CONNECTOR-1001-401", error_message="401: no."
)
FAILED_LATER_COPY = replace(
    IN_PROGRESS, state=RunState.FAILED, completed_at=START, error_code=ExportUnavailableError.code, error_message="503."
)
FAILED_PROMOTION = replace(FAILED_COPY, error_code=SinkError.code, error_message="The disk is full.")
TOO_MANY_REJECTS = replace(FAILED_COPY, error_code=RejectLimitError.code, error_message="Too many.")
INTERRUPTED = replace(FAILED_COPY, error_code=InterruptedRunError.code, error_message="Interrupted.")
ALL = {
    "success": RUN,
    "clean": replace(RUN, tally=Tally(input=5, output=5), issues=()),
    "in progress": IN_PROGRESS,
    "nothing yet": NOTHING_YET,
    "failed at copy": FAILED_COPY,
    "failed at a later copy": FAILED_LATER_COPY,
    "failed at promotion": FAILED_PROMOTION,
    "too many rejects": TOO_MANY_REJECTS,
    "interrupted": INTERRUPTED,
}


def receipt_for(batch_id: str, day: date, failed: int) -> Receipt:
    return receipt_of(load_of(batch_id=batch_id, day=day), tally=Tally(input=failed, failed=failed))


def activities_of(document: Mapping[str, Any]) -> dict[str, Any]:
    return {activity["id"]: activity for activity in document["activities"]}


# Adobe's shapes


def keys_of(document: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a document with its place; activities by their id, items of other lists as one."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield f"{prefix}.{name}"
            yield from keys_of(value, f"{prefix}.{name}")
    elif isinstance(document, list):
        for value in document:
            own = value.get("id") if prefix.endswith(".activities") else ""
            yield from keys_of(value, f"{prefix}[{own}]")


@needs_facts
@pytest.mark.parametrize(
    ("file", "name", "run"),
    [
        ("runs_list_success_with_row_errors.json", None, RUN),
        ("runs_failed.json", "failedAtCopy", FAILED_COPY),
        ("runs_failed.json", "failedAtPromotion", replace(FAILED_PROMOTION, batch_ids=BATCHES[:1])),
    ],
)
def test_every_key_of_adobes_samples_is_there(file: str, name: str | None, run: Run) -> None:
    sample = json.loads((SAMPLES / file).read_text(encoding="utf-8"))
    item = sample["items"][0] if name is None else sample[name]
    assert set(keys_of(item)) - set(keys_of(run_document(run, context=CONTEXT))) == set()


@needs_facts
def test_values_that_adobe_fixes_are_adobes() -> None:
    sample = json.loads((SAMPLES / "runs_list_success_with_row_errors.json").read_text(encoding="utf-8"))["items"][0]
    document = run_document(RUN, context=replace(CONTEXT, one_time=True))
    for there, here in zip(sample["activities"], document["activities"], strict=True):
        assert here["id"] == there["id"]
        for info in ("sourceInfo", "targetInfo"):
            for one, other in zip(there.get(info, []), here.get(info, []), strict=True):
                assert (one["type"], one["reference"]["type"]) == (other["type"], other["reference"]["type"])
        assert here["statusSummary"].get("errors") == there["statusSummary"].get("errors")
        assert here["statusSummary"]["extensions"].get("type") == there["statusSummary"]["extensions"].get("type")
    assert document["metrics"]["statusSummary"] == sample["metrics"]["statusSummary"]
    assert document["metrics"]["fileSummary"]["activityRefs"] == sample["metrics"]["fileSummary"]["activityRefs"]


def mismatches(value: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Where a value is not what an OpenAPI schema says; of the keywords, those that Adobe's file uses for runs."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: {value!r} is no {kind}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{at}: {value!r} is not among {schema['enum']}"
    if isinstance(value, dict):
        yield from (f"{at}.{name} is missing" for name in schema.get("required", []) if name not in value)
        for name, inner in value.items():
            expected = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(expected, dict):
                yield from mismatches(inner, expected, schemas, f"{at}.{name}")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from mismatches(inner, schema.get("items", {}), schemas, f"{at}[{index}]")


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(OPENAPI.read_text(encoding="utf-8"), yaml.CSafeLoader)["components"]["schemas"]
    return loaded


@needs_facts
@pytest.mark.parametrize("run", ALL.values(), ids=ALL)
def test_records_are_valid_by_adobes_openapi(schemas: dict[str, Any], run: Run) -> None:
    context = replace(CONTEXT, receipts=(receipt_for(BATCHES[0], FIRST, 1),))
    document = {"items": [run_document(run, context=context)], "_links": {}}
    assert list(mismatches(document, schemas["FlowRunsListResponse"], schemas)) == []
    # the list's schema misspells activities and leaves metrics open; the update's has both
    [item] = document["items"]
    assert list(mismatches(item, schemas["UpdateFlowRunRequest"], schemas)) == []


@needs_facts
def test_the_check_itself_finds_what_is_wrong(schemas: dict[str, Any]) -> None:
    document = run_document(RUN)
    document["createdAt"] = "yesterday"
    document["metrics"]["sizeSummary"]["inputBytes"] = True
    document["activities"] = {}
    found = set(mismatches(document, schemas["FlowRunItemDTO"], schemas))
    found |= set(mismatches(document, schemas["UpdateFlowRunRequest"], schemas))
    assert {text.partition(":")[0] for text in found} == {
        ".createdAt",
        ".metrics.sizeSummary.inputBytes",
        ".activities",
    }


# What a run knows


def test_counts_windows_and_references() -> None:
    document = run_document(RUN, context=CONTEXT)
    activities = activities_of(document)
    assert document["metrics"]["recordSummary"] == {
        "inputRecordCount": 100,
        "outputRecordCount": 95,
        "createdRecordCount": 95,
        "failedRecordCount": 1,
        "skippedRecordCount": 1,
        "deduplicatedRecordCount": 3,
        "warningRecordCount": 2,
    }
    window = {"windowStart": 1709251200000, "windowEnd": 1709424000000}
    for part in (document["metrics"], *activities.values()):
        assert part["durationSummary"] == {
            "startedAtUTC": 1709427600000,
            "completedAtUTC": 1709427655000,
            "extensions": window,
        }
    assert activities["copyActivity"]["sourceInfo"] == [
        {
            "id": CONTEXT.source_connection_id,
            "type": "SourceConnection",
            "reference": {"type": "AdfRunId", "ids": [RUN.id]},
            "inputs": [
                {
                    "entityName": "2024-03-01",
                    "path": "/api/2.0/export?from_date=2024-03-01&to_date=2024-03-01",
                    "batchId": BATCHES[0],
                },
                {
                    "entityName": "2024-03-02",
                    "path": "/api/2.0/export?from_date=2024-03-02&to_date=2024-03-02",
                    "batchId": BATCHES[1],
                },
            ],
        }
    ]
    assert activities["promotionActivity"]["targetInfo"] == [
        {
            "id": CONTEXT.target_connection_id,
            "type": "TargetConnection",
            "reference": {"type": "Batch", "ids": list(BATCHES)},
        }
    ]
    assert document["providerRefId"] == f"M-{RUN.flow_id}-incremental-0:{RUN.id}"


def test_links_lead_to_the_batch_with_the_rejects_on_this_server() -> None:
    def links(context: RunContext) -> dict[str, str]:
        summary = activities_of(run_document(RUN, context=context))["promotionActivity"]["statusSummary"]
        manifest: dict[str, str] = summary["extensions"]["manifest"]
        return manifest

    receipts = (receipt_for(BATCHES[0], FIRST, 1), receipt_for(BATCHES[1], LAST, 0))
    base = f"/data/foundation/export/batches/{BATCHES[0]}/meta?path="
    expected = {"failedRecords": f"{base}row_errors", "sampleErrors": f"{base}row_error_samples.json"}
    assert links(RunContext(receipts=receipts)) == expected
    absolute = {name: f"https://worker.example{path}" for name, path in expected.items()}
    assert links(replace(CONTEXT, receipts=receipts)) == absolute
    assert BATCHES[1] in links(RunContext())["failedRecords"]


def test_every_batch_has_its_link_to_the_input() -> None:
    document = run_document(RUN)
    for summary in (document["metrics"]["fileSummary"], activities_of(document)["promotionActivity"]["fileSummary"]):
        paths = [file["path"] for file in summary["manifest"]["fileInfo"]]
        assert paths == [f"/data/foundation/export/batches/{batch}/meta?path=input_files" for batch in BATCHES]
        assert summary["extensions"]["manifest"]["fileInfo"] == paths[-1]


def test_a_day_is_named_only_where_it_is_known() -> None:
    gap = replace(RUN, first_day=FIRST - timedelta(days=3))
    assert activities_of(run_document(gap))["copyActivity"]["sourceInfo"][0]["inputs"] == []
    told = RunContext(receipts=(receipt_for(BATCHES[1], LAST, 0),))
    inputs = activities_of(run_document(gap, context=told))["copyActivity"]["sourceInfo"][0]["inputs"]
    assert [(entry["entityName"], entry["batchId"]) for entry in inputs] == [(str(LAST), BATCHES[1])]


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("success", {"copyActivity": "success", "promotionActivity": "success"}),
        ("in progress", {"copyActivity": "inProgress", "promotionActivity": "inProgress"}),
        ("nothing yet", {"copyActivity": "inProgress", "promotionActivity": "inProgress"}),
        ("failed at copy", {"copyActivity": "failed"}),
        ("failed at a later copy", {"copyActivity": "failed", "promotionActivity": "success"}),
        ("failed at promotion", {"copyActivity": "success", "promotionActivity": "failed"}),
        ("too many rejects", {"copyActivity": "success", "promotionActivity": "failed"}),
        ("interrupted", {"copyActivity": "failed", "promotionActivity": "failed"}),
    ],
)
def test_each_activity_has_its_own_status(name: str, statuses: dict[str, str]) -> None:
    run = ALL[name]
    document = run_document(run)
    found = {key: activity["statusSummary"]["status"] for key, activity in activities_of(document).items()}
    assert found == statuses
    summary = document["metrics"]["statusSummary"]
    assert summary["status"] == run.state
    assert set(summary["activityRefs"]) <= set(found)
    if run.state is RunState.FAILED:
        assert summary["errors"] == [{"code": run.error_code, "message": run.error_message}]


def test_a_run_in_progress_shows_its_counts_so_far_and_no_end() -> None:
    document = run_document(IN_PROGRESS)
    assert document["metrics"]["recordSummary"]["outputRecordCount"] == 95
    assert "completedAtUTC" not in document["metrics"]["durationSummary"]
    queued = run_document(NOTHING_YET, context=RunContext(queued=True))
    assert queued["metrics"]["statusSummary"]["status"] == "scheduled"


def test_etag_changes_with_the_record_and_only_then() -> None:
    documents = [run_document(run) for run in ALL.values()]
    assert len({document["etag"] for document in documents}) == len(ALL)
    assert run_etag(RUN) == run_etag(replace(RUN)) == run_document(RUN, context=CONTEXT)["etag"]
    assert all(document["etag"] == document["version"] for document in documents)
    assert documents[0]["etag"][0] == documents[0]["etag"][-1] == '"'


def test_a_list_has_the_records_in_its_order() -> None:
    assert runs_document([RUN, IN_PROGRESS]) == {
        "items": [run_document(RUN), run_document(IN_PROGRESS)],
        "_links": {},
    }
