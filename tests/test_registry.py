"""The objects of the API and the rules that bind them."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from tests.support import FLOW_FILE, MAPPINGS, PASSWORD, Clock, settings_for
from worker.errors import ConfigurationError
from worker.flow_file import load_flow
from worker.model import flow_id_of
from worker.registry import (
    CONNECTIONS,
    DATA_LAKE_SPEC,
    DATASETS,
    FLOW_SPEC,
    FLOWS,
    MAPPING_SETS,
    MASK,
    MIXPANEL_SPEC,
    OLD_MAPPING_SETS,
    SCHEMAS,
    SOURCES,
    TARGETS,
    RefusedError,
    Registry,
)
from worker.secret_box import SecretBox, new_key
from worker.store import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from worker.flow_file import FlowFile

NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
SECRET = "canary-Pa55word/+é"
SPEC = {"id": MIXPANEL_SPEC, "version": "1.0"}
KINDS = (CONNECTIONS, SOURCES, TARGETS, MAPPING_SETS, FLOWS)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore, clock: Clock, tmp_path: Path) -> Registry:
    return Registry(store, SecretBox(new_key()), settings_for(tmp_path), allow_loopback=True, clock=clock)


def connection(**params: str) -> dict[str, Any]:
    access = {"username": "user.mp-service-account", "password": SECRET, **params}
    return {
        "name": "Base",
        "connectionSpec": SPEC,
        "auth": {"specName": "Basic Authentication", "params": access},
    }


def source(base_id: str, **params: object) -> dict[str, Any]:
    return {
        "name": "Source",
        "baseConnectionId": base_id,
        "connectionSpec": SPEC,
        "data": {"format": "json"},
        "params": {"projectId": "2671127", "timezone": "Pacific Standard Time", **params},
    }


def target(dataset_id: str = "events") -> dict[str, Any]:
    return {
        "name": "Target",
        "connectionSpec": {"id": DATA_LAKE_SPEC, "version": "1.0"},
        "data": {"format": "json"},
        "params": {"dataSetId": dataset_id},
    }


class Made:
    """A flow's objects, made one after the other."""

    def __init__(self, registry: Registry, dataset_id: str = "events", name: str = "My flow", **flow: object) -> None:
        self.base = registry.create(CONNECTIONS, connection()).id
        self.source = registry.create(SOURCES, source(self.base)).id
        self.target = registry.create(TARGETS, target(dataset_id)).id
        self.mapping = registry.create(MAPPING_SETS, {"mappings": MAPPINGS}).id
        body = {**self.flow_body(name), **flow}
        self.flow = registry.create(FLOWS, body).id

    def flow_body(self, name: str = "My flow") -> dict[str, Any]:
        return {
            "name": name,
            "flowSpec": {"id": FLOW_SPEC, "version": "1.0"},
            "sourceConnectionIds": [self.source],
            "targetConnectionIds": [self.target],
            "transformations": [{"name": "Mapping", "params": {"mappingId": self.mapping, "mappingVersion": "0"}}],
            "scheduleParams": {"startTime": "1625040887", "frequency": "minute", "interval": 15},
        }


def code_of(step: Any) -> str:
    with pytest.raises(RefusedError) as refused:
        step()
    return refused.value.code


# Flows


def test_a_flow_made_of_its_objects_can_be_run(registry: Registry) -> None:
    made = Made(registry)
    prepared = registry.prepared(made.flow)
    flow = prepared.flow
    assert (flow.id, flow.name) == (flow_id_of("My flow"), "My flow")
    assert flow.source.credentials.password.reveal() == SECRET
    assert (flow.source.project_id, flow.source.timezone.key) == ("2671127", "America/Los_Angeles")
    assert flow.target.dataset_id == "events"
    assert flow.schedule is not None
    assert (flow.schedule.start_time, flow.schedule.frequency, flow.schedule.interval) == (1625040887, "minute", 15)
    assert flow.options.partial_ingestion_percent is None
    assert SECRET not in json.dumps(dict(prepared.definition))


def test_the_scheduler_sees_all_flows_and_their_changes(registry: Registry) -> None:
    made = Made(registry)
    entry = registry.flows()[0]
    assert (entry.flow_id, entry.name, entry.state) == (made.flow, "My flow", "enabled")
    assert registry.flows()[0].schedule is entry.schedule
    registry.set_state(made.flow, "disabled")
    assert registry.flows()[0].state == "disabled"
    registry.delete(FLOWS, made.flow)
    assert list(registry.flows()) == []


def test_a_state_that_is_there_already_keeps_its_etag(registry: Registry) -> None:
    made = Made(registry)
    before = registry.get(FLOWS, made.flow).etag
    assert registry.set_state(made.flow, "enabled").etag == before
    assert registry.set_state(made.flow, "disabled", before).etag != before
    assert code_of(lambda: registry.set_state(made.flow, "enabled", before)) == "FLOW-1404-412"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"state": "enabled"}, "FLOW-1410-400"),
        ({"scheduleParams": {}}, "CONNECTOR-1317-400"),
        ({"sourceConnectionIds": []}, "CONNECTOR-1320-400"),
        ({"sourceConnectionIds": ["a", "b"]}, "CONNECTOR-1321-400"),
        ({"sourceConnectionIds": ["nobody"]}, "FLOW-1439-400"),
        ({"targetConnectionIds": ["../etc/passwd"]}, "FLOW-1439-400"),
        ({"transformations": []}, "CONNECTOR-1328-400"),
        ({"transformations": [{"name": "Mapping", "params": {"mappingId": "0" * 32}}]}, "FLOW-1439-400"),
        ({"flowSpec": {"id": "nobody", "version": "1.0"}}, "FLOW-1413-400"),
        ({"scheduleParams": {"startTime": 1, "frequency": "once", "interval": 1}}, "CONNECTOR-1361-400"),
        ({"scheduleParams": {"startTime": 1, "frequency": "once", "backfill": True}}, "CONNECTOR-1364-400"),
        ({"scheduleParams": {"startTime": 1, "frequency": "minute", "interval": "14"}}, "CONNECTOR-1362-400"),
        ({"scheduleParams": {"startTime": 1, "frequency": "fortnight", "interval": 1}}, "CONNECTOR-1397-400"),
        ({"scheduleParams": {"startTime": "soon", "frequency": "day", "interval": 1}}, "FLOW-1100-400"),
        ({"nmae": "typo"}, "FLOW-1100-400"),
        ({"name": "bell\a"}, "FLOW-1100-400"),
    ],
)
def test_a_flow_that_cannot_be_is_refused(registry: Registry, change: dict[str, Any], code: str) -> None:
    made = Made(registry)
    registry.delete(FLOWS, made.flow)
    assert code_of(lambda: registry.create(FLOWS, {**made.flow_body(), **change})) == code
    assert registry.list(FLOWS) == []


def test_a_mapping_version_that_never_was_is_refused(registry: Registry) -> None:
    made = Made(registry)
    body = made.flow_body("Other")
    body["transformations"][0]["params"]["mappingVersion"] = 3
    assert code_of(lambda: registry.create(FLOWS, body)) == "FLOW-1412-400"


def test_a_flow_keeps_the_mapping_version_that_it_names(registry: Registry) -> None:
    made = Made(registry)
    changed = {"mappings": [{"sourceType": "ATTRIBUTE", "source": "event", "destination": "name"}]}
    newest = registry.replace(MAPPING_SETS, made.mapping, changed, etag=None)
    assert newest.document["version"] == 1
    assert registry.mapping_set(made.mapping, 0).document["mappings"] == MAPPINGS
    assert registry.prepared(made.flow).mapper.schema.names == ["id", "version"]
    flow = registry.get(FLOWS, made.flow)
    document = deepcopy(dict(flow.document))
    document["transformations"][0]["params"]["mappingVersion"] = 1
    registry.replace(FLOWS, made.flow, document, etag=flow.etag)
    assert registry.prepared(made.flow).mapper.schema.names == ["name"]


def test_two_flows_never_have_one_dataset(registry: Registry) -> None:
    made = Made(registry)
    assert code_of(lambda: registry.create(FLOWS, made.flow_body("Other"))) == "FLOW-1100-400"
    assert code_of(lambda: registry.create(FLOWS, made.flow_body())) == "FLOW-1100-400"
    other = Made(registry, "more", "Other")
    stored = registry.get(TARGETS, other.target)
    taken = {**stored.document, "params": {"dataSetId": "Events"}}
    assert code_of(lambda: registry.replace(TARGETS, other.target, taken, etag=None)) == "FLOW-1100-400"


def test_a_second_flow_of_a_name_gets_an_id_of_its_own(registry: Registry) -> None:
    assert Made(registry).flow == flow_id_of("My flow")
    assert Made(registry, "more").flow != flow_id_of("My flow")


def test_a_flow_that_is_made_again_has_its_old_id(registry: Registry) -> None:
    made = Made(registry)
    registry.delete(FLOWS, made.flow)
    assert registry.create(FLOWS, made.flow_body()).id == made.flow


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"startTime": 1625040888}, "CONNECTOR-1366-400"),
        ({"frequency": "once"}, "CONNECTOR-1403-400"),
        ({"backfill": False}, "CONNECTOR-1404-400"),
    ],
)
def test_what_a_schedule_that_has_begun_keeps(registry: Registry, change: dict[str, Any], code: str) -> None:
    made = Made(registry)
    flow = registry.get(FLOWS, made.flow)
    document = {**flow.document, "scheduleParams": {**flow.document["scheduleParams"], **change}}
    assert code_of(lambda: registry.replace(FLOWS, made.flow, document, etag=flow.etag)) == code


def test_a_schedule_that_has_not_begun_may_change(registry: Registry, clock: Clock) -> None:
    start = int((NOW + timedelta(days=1)).timestamp())
    made = Made(registry, scheduleParams={"startTime": start, "frequency": "day", "interval": "1", "backfill": "true"})
    flow = registry.get(FLOWS, made.flow)
    schedule = {"startTime": start + 60, "frequency": "once"}
    changed = registry.replace(FLOWS, made.flow, {**flow.document, "scheduleParams": schedule}, etag=flow.etag)
    assert changed.document["scheduleParams"] == schedule


def test_schedule_and_options_are_kept_in_adobes_types(registry: Registry) -> None:
    made = Made(
        registry,
        options={"partialIngestionPercent": "10"},
        scheduleParams={"startTime": "1625040887", "frequency": "week", "interval": 15, "backfill": "true"},
    )
    document = registry.get(FLOWS, made.flow).document
    assert document["scheduleParams"] == {
        "startTime": 1625040887,
        "frequency": "week",
        "interval": "15",
        "backfill": True,
    }
    assert document["options"] == {"partialIngestionPercent": 10}


# What needs what


def test_what_a_flow_needs_stays(registry: Registry) -> None:
    made = Made(registry)
    assert code_of(lambda: registry.delete(CONNECTIONS, made.base)) == "FLOW-1418-400"
    for kind, object_id in ((SOURCES, made.source), (TARGETS, made.target), (MAPPING_SETS, made.mapping)):
        assert code_of(lambda kind=kind, object_id=object_id: registry.delete(kind, object_id)) == "FLOW-1447-400"
    registry.delete(FLOWS, made.flow)
    for kind, object_id in (
        (CONNECTIONS, made.base),
        (SOURCES, made.source),
        (TARGETS, made.target),
        (MAPPING_SETS, made.mapping),
    ):
        registry.delete(kind, object_id)
        assert code_of(lambda kind=kind, object_id=object_id: registry.get(kind, object_id)) == "FLOW-1439-404"


@pytest.mark.parametrize("with_etag", [True, False])
def test_what_changes_right_before_it_is_deleted_is_not_deleted_as_it_was(
    registry: Registry, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, with_etag: bool
) -> None:
    known = registry.create(MAPPING_SETS, {"mappings": MAPPINGS})
    delete = store.delete_object

    def change_and_delete(*arguments: Any, **options: Any) -> bool:
        monkeypatch.undo()
        registry.replace(MAPPING_SETS, known.id, {"mappings": MAPPINGS[:1]}, etag=None)
        return delete(*arguments, **options)

    monkeypatch.setattr(store, "delete_object", change_and_delete)
    if with_etag:
        assert code_of(lambda: registry.delete(MAPPING_SETS, known.id, etag=known.etag)) == "FLOW-1404-412"
        assert registry.get(MAPPING_SETS, known.id).document["version"] == 1
    else:
        registry.delete(MAPPING_SETS, known.id)
        assert [*registry.list(MAPPING_SETS), *registry.list(OLD_MAPPING_SETS)] == []


def test_a_flow_whose_connection_is_gone_cannot_be_run(registry: Registry, store: MemoryStore) -> None:
    made = Made(registry)
    store.delete_object(SOURCES, made.source)
    with pytest.raises(ConfigurationError, match=made.source):
        registry.prepared(made.flow)


# Connections


def test_secrets_lie_sealed_in_the_store(registry: Registry, store: MemoryStore) -> None:
    stored = registry.create(CONNECTIONS, connection(securityToken="canary-token"))
    assert stored.document["auth"]["params"] == {
        "username": "user.mp-service-account",
        "password": MASK,
        "securityToken": MASK,
    }
    assert stored.sealed is not None
    assert b"canary" not in stored.sealed
    assert registry.source_of(stored.id, None).credentials.password.reveal() == SECRET


def test_a_project_secret_is_a_secret(registry: Registry) -> None:
    body = connection()
    body["auth"]["params"] = {"username": SECRET, "region": "eu"}
    stored = registry.create(CONNECTIONS, body)
    assert stored.document["auth"]["params"] == {"username": MASK, "region": "eu"}
    source = registry.source_of(stored.id, {"projectId": "1", "timezone": "UTC"})
    assert (source.credentials.username, source.base_url) == (SECRET, "https://data-eu.mixpanel.com")


def test_what_is_masked_stays_as_it_was(registry: Registry) -> None:
    stored = registry.create(CONNECTIONS, connection())
    changed = registry.replace(CONNECTIONS, stored.id, {**stored.document, "name": "New"}, etag=stored.etag)
    assert changed.sealed == stored.sealed
    assert registry.source_of(stored.id, None).credentials.password.reveal() == SECRET


@pytest.mark.parametrize(
    "params",
    [
        {"username": "u", "password": MASK, "host": "https://data-eu.mixpanel.com"},
        {"username": "u", "password": MASK, "region": "eu"},
        {"username": MASK, "password": "x"},
        {"username": "u", "password": MASK, "token": MASK},
    ],
    ids=["host", "region", "no such secret", "more secrets"],
)
def test_a_mask_does_not_carry_a_secret_elsewhere(registry: Registry, params: dict[str, str]) -> None:
    stored = registry.create(CONNECTIONS, connection())
    body = connection()
    body["auth"]["params"] = params
    assert code_of(lambda: registry.replace(CONNECTIONS, stored.id, body, etag=None)) == "FLOW-1100-400"


def test_a_project_secret_never_becomes_the_name_of_a_user(registry: Registry) -> None:
    body = connection()
    body["auth"]["params"] = {"username": SECRET}
    stored = registry.create(CONNECTIONS, body)
    body["auth"]["params"] = {"username": MASK, "password": "x"}
    assert code_of(lambda: registry.replace(CONNECTIONS, stored.id, body, etag=None)) == "FLOW-1100-400"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"connectionSpec": {"id": DATA_LAKE_SPEC, "version": "1.0"}}, "FLOW-1413-400"),
        ({"connectionSpec": None}, "FLOW-1100-400"),
        ({"auth": {"specName": "OAuth2", "params": {}}}, "FLOW-1415-400"),
        ({"auth": {"specName": "Basic Authentication"}}, "FLOW-1100-400"),
        ({"auth": {"specName": "Basic Authentication", "params": {"username": "a:b"}}}, "FLOW-1100-400"),
        ({"auth": {"specName": "Basic Authentication", "params": {"username": "a", "password": 1}}}, "FLOW-1100-400"),
        ({"auth": {"specName": "Basic Authentication", "params": {"username": "a", "x": {}}}}, "FLOW-1100-400"),
        ({"password": SECRET}, "FLOW-1100-400"),
        ({"state": "broken"}, "FLOW-1456-400"),
    ],
)
def test_a_connection_that_cannot_be_is_refused(registry: Registry, change: dict[str, Any], code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        registry.create(CONNECTIONS, {**connection(), **change})
    assert refused.value.code == code
    assert SECRET not in str(refused.value) + str(refused.value.problems)


@pytest.mark.parametrize(
    "host", ["http://169.254.169.254", "https://data.mixpanel.com@evil.example", "http://data.mixpanel.com", "ftp://x"]
)
def test_credentials_go_to_hosts_that_are_allowed_only(registry: Registry, host: str) -> None:
    assert code_of(lambda: registry.create(CONNECTIONS, connection(host=host))) == "FLOW-1100-400"


def test_beyond_loopback_a_loopback_host_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    registry = Registry(store, SecretBox(new_key()), settings_for(tmp_path), allow_loopback=False)
    assert code_of(lambda: registry.create(CONNECTIONS, connection(host="http://127.0.0.1:1"))) == "FLOW-1100-400"


def test_the_spec_of_a_connection_stays(registry: Registry) -> None:
    stored = registry.create(TARGETS, target())
    body = {**target(), "connectionSpec": SPEC}
    assert code_of(lambda: registry.replace(TARGETS, stored.id, body, etag=None)) == "FLOW-1414-400"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"connectionSpec": {"id": "x", "version": "1.0"}}, "CONNECTOR-1307-400"),
        ({"params": {"dataSetId": ""}}, "CONNECTOR-1325-400"),
        ({"params": {"dataSetId": "../up"}}, "FLOW-1100-400"),
        ({"params": {"dataSetId": "x_rejects"}}, "FLOW-1100-400"),
        ({"data": {"format": "avro"}}, "FLOW-1100-400"),
        ({"data": {"format": "json", "path": "/etc"}}, "FLOW-1100-400"),
    ],
)
def test_a_target_that_cannot_be_is_refused(registry: Registry, change: dict[str, Any], code: str) -> None:
    assert code_of(lambda: registry.create(TARGETS, {**target(), **change})) == code


def test_a_source_needs_its_base_connection(registry: Registry) -> None:
    assert code_of(lambda: registry.create(SOURCES, source(""))) == "CONNECTOR-1320-400"
    assert code_of(lambda: registry.create(SOURCES, source("nobody"))) == "FLOW-1439-400"
    base = registry.create(CONNECTIONS, connection()).id
    body = {**source(base), "data": {"format": "delimited"}}
    assert code_of(lambda: registry.create(SOURCES, body)) == "CONNECTOR-1327-400"
    with pytest.raises(RefusedError) as refused:
        registry.create(SOURCES, source(base, timezone="Pacific Standrd Time", projectId="x"))
    assert len(refused.value.problems) == 2
    assert all(problem.startswith("params.") for problem in refused.value.problems)


def test_a_connection_is_tested_as_its_source_uses_it(registry: Registry) -> None:
    base = registry.create(CONNECTIONS, connection()).id
    assert registry.source_of(base, None).project_id == ""
    registry.create(SOURCES, source(base))
    assert registry.source_of(base, None).project_id == "2671127"
    with pytest.raises(RefusedError, match=r"sourceParams\.listId"):
        registry.source_of(base, {"listId": "1"})


# Schemas


def columns(registry: Registry, flow_id: str) -> dict[str, pa.DataType]:
    schema = registry.prepared(flow_id).mapper.schema
    return dict(zip(schema.names, schema.types, strict=True))


def test_a_datasets_schema_gives_the_columns_their_types(registry: Registry) -> None:
    made = Made(registry)
    assert columns(registry, made.flow) == {"id": pa.string(), "version": pa.string()}
    identifier = "https://ns.adobe.com/_tenant/schemas/abc"
    group: dict[str, Any] = {
        "$id": "https://ns.adobe.com/_tenant/mixins/g",
        "definitions": {"own": {"properties": {"version": {"type": "integer"}}}},
    }
    group["allOf"] = [{"$ref": "#/definitions/own"}]
    registry.create(SCHEMAS, group)
    registry.create(
        SCHEMAS,
        {
            "$id": identifier,
            "type": "object",
            "properties": {"id": {"type": "string"}},
            "allOf": [{"$ref": "https://ns.adobe.com/xdm/context/experienceevent"}, {"$ref": group["$id"]}],
        },
        object_id="abc",
    )
    registry.create(DATASETS, {"name": "events", "schemaRef": {"id": identifier}}, object_id="events")
    assert columns(registry, made.flow) == {"id": pa.string(), "version": pa.int64()}
    assert code_of(lambda: registry.delete(DATASETS, "events")) == "FLOW-1447-400"
    assert code_of(lambda: registry.delete(SCHEMAS, "abc")) == "FLOW-1447-400"


def test_a_schema_that_refers_to_what_is_not_here_gives_no_types(registry: Registry) -> None:
    made = Made(registry)
    document = {
        "allOf": [{"$ref": "https://ns.adobe.com/xdm/mixins/unknown"}],
        "properties": {"id": {"type": "number"}},
    }
    schema = registry.create(SCHEMAS, document)
    registry.create(DATASETS, {"schemaRef": {"id": schema.id}}, object_id="events")
    assert columns(registry, made.flow) == {"id": pa.string(), "version": pa.string()}


def test_schemas_that_refer_to_each_other_end(registry: Registry) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        registry.create(SCHEMAS, {"allOf": [{"$ref": other}]}, object_id=one)
    assert registry.resolved_schema(registry.get(SCHEMAS, "a").document) is None


def test_a_mapping_that_does_not_fit_the_schema_is_refused(registry: Registry) -> None:
    registry.create(SCHEMAS, {"properties": {"other": {"type": "string"}}}, object_id="s")
    registry.create(DATASETS, {"schemaRef": {"id": "s"}}, object_id="events")
    assert code_of(lambda: Made(registry)) == "FLOW-1419-400"


def test_hooks_check_the_kinds_of_other_doors(registry: Registry) -> None:
    def hook(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "checked": True}

    registry.hooks[DATASETS] = hook
    assert registry.create(DATASETS, {"name": "d"}).document == {"name": "d", "checked": True}


# Flow files


@pytest.fixture
def flow_file(tmp_path: Path) -> FlowFile:
    document = deepcopy(FLOW_FILE)
    document["flow"] |= {
        "scheduleParams": {"startTime": "1625040887", "frequency": "day", "interval": 1},
        "options": {"partialIngestionPercent": 10},
    }
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(document))
    environ = {"MIXPANEL_HOST": "http://127.0.0.1:9", "MIXPANEL_PASSWORD": PASSWORD}
    return load_flow(path, environ, settings_for(tmp_path))


def snapshot(registry: Registry) -> dict[tuple[str, str], str]:
    return {(kind, one.id): one.etag for kind in (*KINDS, SCHEMAS, DATASETS) for one in registry.list(kind)}


def test_a_flow_file_applied_twice_changes_nothing(registry: Registry, flow_file: FlowFile) -> None:
    registry.apply_file(flow_file)
    before = snapshot(registry)
    assert len(before) == 5
    registry.apply_file(flow_file)
    assert snapshot(registry) == before
    flow = registry.prepared(flow_file.flow_id).flow
    assert (flow.source, flow.target) == (flow_file.source, flow_file.target)
    assert (flow.schedule, flow.options, flow.name) == (flow_file.schedule, flow_file.options, flow_file.name)
    shown = json.dumps([dict(one.document) for kind in KINDS for one in registry.list(kind)])
    assert PASSWORD not in shown


def test_a_flow_file_needs_no_old_key(
    registry: Registry, store: MemoryStore, flow_file: FlowFile, tmp_path: Path
) -> None:
    registry.apply_file(flow_file)
    later = Registry(store, SecretBox(new_key()), settings_for(tmp_path), allow_loopback=True)
    with pytest.raises(ConfigurationError, match="key"):
        later.prepared(flow_file.flow_id)
    later.apply_file(flow_file)
    assert later.prepared(flow_file.flow_id).flow.source == flow_file.source


def test_a_flow_file_that_changed_changes_what_it_says(registry: Registry, flow_file: FlowFile) -> None:
    registry.apply_file(flow_file)
    before = snapshot(registry)
    registry.set_state(flow_file.flow_id, "disabled")
    changed = {"mappings": [*MAPPINGS, {"sourceType": "ATTRIBUTE", "source": "event", "destination": "name"}]}
    registry.apply_file(replace(flow_file, mapping_document=changed, schedule=None))
    after = snapshot(registry)
    assert {kind for (kind, object_id), etag in after.items() if before[kind, object_id] != etag} == {
        MAPPING_SETS,
        FLOWS,
    }
    prepared = registry.prepared(flow_file.flow_id)
    assert (prepared.mapper.schema.names, prepared.flow.schedule) == (["id", "version", "name"], None)
    assert registry.flows()[0].state == "disabled"


def test_the_schema_beside_a_mapping_set_comes_with_the_file(
    registry: Registry, flow_file: FlowFile, tmp_path: Path
) -> None:
    folder = tmp_path / "mapping"
    folder.mkdir()
    (folder / "mapping.json").write_text(json.dumps({"mappings": MAPPINGS}))
    schema = folder / "schema.json"
    schema.write_text(json.dumps({"properties": {"id": {"type": "string"}, "version": {"type": "integer"}}}))
    file = replace(flow_file, mapping_document=None, mapping_path=folder / "mapping.json")
    registry.apply_file(file)
    assert columns(registry, file.flow_id)["version"] == pa.int64()
    before = snapshot(registry)
    assert len(before) == 7
    registry.apply_file(file)
    assert snapshot(registry) == before
    schema.unlink()
    registry.apply_file(file)
    assert columns(registry, file.flow_id)["version"] == pa.string()
    assert len(snapshot(registry)) == 5


def test_a_flow_file_does_not_take_the_dataset_of_another_flow(registry: Registry, flow_file: FlowFile) -> None:
    Made(registry)
    assert code_of(lambda: registry.apply_file(flow_file)) == "FLOW-1100-400"
    assert len(registry.list(FLOWS)) == 1
