"""The mapping sets that users start from: each with its schema, sample events, and the rows that they must become."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from worker.mapping.context import FACTS, Context
from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import load_mapping_set
from worker.mixpanel.body import Block
from worker.mixpanel.decode import Decoder

MAPPINGS = Path(__file__).parent.parent / "mappings"
SETS = sorted(path.parent for path in MAPPINGS.glob("*/mapping.json"))


def rows_of(folder: Path, sample: dict[str, Any]) -> tuple[list[Any], list[str], list[str]]:
    """The rows, the warnings, and why rows were rejected."""
    mapper = compile_mapper(*load_mapping_set(folder / "mapping.json"))
    assert set(sample["flow"]) == set(FACTS)
    lines = [json.dumps(event).encode() + b"\n" for event in sample["events"]]
    decoder = Decoder(mapper.paths, max_line_bytes=1 << 20, max_raw_bytes=1 << 10, kinds_of=mapper.kinds_of)
    decoded = decoder.decode(Block(b"".join(lines)))
    decoder.close()
    wanted = len(mapper.paths)
    context = Context(datetime(2026, 3, 2, 12, tzinfo=UTC), sample["flow"])
    mapped = mapper.map(decoded.texts[:wanted], decoded.kinds[:wanted], context)
    mapped.batch.validate(full=True)
    rows = [row for number, row in enumerate(mapped.batch.to_pylist()) if number not in mapped.rejected]
    return [plain(row) for row in rows], [str(issue.message) for issue in mapped.warnings], mapped.reasons


def plain(value: Any) -> Any:
    """As JSON has it: without nulls, maps as objects, moments in ISO 8601."""
    match value:
        case dict():
            found = {key: plain(inner) for key, inner in value.items() if inner is not None}
            return {key: inner for key, inner in found.items() if inner != {}}
        case list() if value and all(isinstance(entry, tuple) for entry in value):
            return {key: plain(inner) for key, inner in value}
        case list():
            return [plain(inner) for inner in value]
        case datetime():
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


@pytest.mark.parametrize("folder", SETS, ids=[folder.name for folder in SETS])
def test_the_sample_becomes_what_it_must(folder: Path) -> None:
    sample = json.loads((folder / "sample.json").read_text())
    rows, warnings, rejected = rows_of(folder, sample)
    assert rows == sample["rows"]
    assert warnings == sample.get("warnings", [])
    assert rejected == sample.get("rejected", [])


def test_there_are_the_three_sets_with_all_that_belongs_to_them() -> None:
    assert [folder.name for folder in SETS] == ["experience-event", "mixpanel-tutorial", "warehouse"]
    for folder in SETS:
        assert (folder / "README.md").is_file()
        assert json.loads((folder / "sample.json").read_text())["events"]


def test_an_experience_event_has_another_id_where_anything_of_its_key_differs() -> None:
    folder = MAPPINGS / "experience-event"
    sample = json.loads((folder / "sample.json").read_text())
    event = sample["events"][0]
    others = [event, {**event, "event": "Other"}]
    for name, value in (("time", 1), ("distinct_id", "other"), ("$insert_id", "other")):
        others.append({**event, "properties": {**event["properties"], name: value}})
    # without an insert id the moment of processing is in its place
    bare = {key: value for key, value in event["properties"].items() if key != "$insert_id"}
    others += [{**event, "properties": bare}, {**event, "properties": {**bare, "mp_processing_time_ms": 1}}]
    rows, _, _ = rows_of(folder, {**sample, "events": others})
    elsewhere, _, _ = rows_of(folder, {**sample, "events": others, "flow": {**sample["flow"], "projectId": "1"}})
    identifiers = [row["_id"] for row in rows + elsewhere]
    assert len(set(identifiers)) == len(identifiers)
    again, _, _ = rows_of(folder, {**sample, "events": others[::-1]})
    assert [row["_id"] for row in again] == [row["_id"] for row in rows][::-1]


@pytest.mark.parametrize("name", ["experience-event", "warehouse"])
@pytest.mark.parametrize(
    ("local", "utc"),
    [
        ("2024-02-29T10:00:00", "2024-02-29T18:00:00.000Z"),
        ("2024-07-01T23:30:00", "2024-07-02T06:30:00.000Z"),
        # the clocks of Los Angeles skip 02:00 to 03:00, and show 01:00 to 02:00 twice
        ("2024-03-10T02:30:00", "2024-03-10T10:30:00.000Z"),
        ("2024-11-03T01:30:00", "2024-11-03T08:30:00.000Z"),
    ],
)
def test_time_is_corrected_where_it_counts_by_the_projects_clock(name: str, local: str, utc: str) -> None:
    seconds = int(datetime.fromisoformat(local).replace(tzinfo=UTC).timestamp())
    event = {"event": "x", "properties": {"time": seconds, "distinct_id": "a", "$insert_id": "i"}}
    flow = {"projectId": "1", "timezone": "America/Los_Angeles", "timeBasis": "project"}
    column = "timestamp" if name == "experience-event" else "event_time"
    [row], _, _ = rows_of(MAPPINGS / name, {"flow": flow, "events": [event]})
    assert row[column] == utc
    [row], _, _ = rows_of(MAPPINGS / name, {"flow": {**flow, "timeBasis": "utc"}, "events": [event]})
    assert row[column] == f"{local}.000Z"


def test_nothing_of_an_event_is_lost_in_the_warehouse() -> None:
    folder = MAPPINGS / "warehouse"
    sample = json.loads((folder / "sample.json").read_text())
    properties = {"a b": [1, {"c": None}], "$x": "é", "time": 1, "n": 12345678901234567890.5, "e": ""}
    [row], _, _ = rows_of(folder, {**sample, "events": [{"event": "x", "properties": properties}]})
    assert json.loads(row["properties"]) == properties
    assert row["event_name"] == "x"
