"""The whole life of a flow through aepp 0.6.0, as it comes from its makers, pointed at the service as a process."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import MAPPINGS, PASSWORD, body_of, lake_rows, rows_of
from tests.test_documents import assert_untold
from tests.test_replicas import Replica, ended, state_of
from worker.mixpanel.simulator import DEMO_PROJECT_ID, DEMO_USERNAME, Simulator, SimulatorThread
from worker.registry import DATA_LAKE_SPEC, FLOW_SPEC, MIXPANEL_SPEC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT_ID, CLIENT_SECRET = "cid", "0123456789-canary-aepp"
TODAY = datetime.now(UTC).date()
DAYS = [TODAY - timedelta(days=number) for number in range(3, 0, -1)]


class Heard:
    """Every answer that aepp gets, as text; nothing of aepp is changed for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.statuses: list[tuple[str, str, int]] = []

    def __call__(self, answer: Any, *others: object, **more: object) -> None:
        self.texts.append(f"{answer.headers} {answer.text}")
        self.statuses.append((answer.request.method, answer.request.path_url, answer.status_code))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    requests = pytest.importorskip("requests", reason="aepp is not installed")
    heard = Heard()
    made = requests.sessions.Session.__init__

    def listening(session: Any) -> None:
        made(session)
        session.hooks["response"].append(heard)

    monkeypatch.setattr(requests.sessions.Session, "__init__", listening)
    return heard


@pytest.fixture
def mixpanel() -> Iterator[SimulatorThread]:
    with SimulatorThread(Simulator(password=PASSWORD)) as server:
        for day in DAYS:
            server.simulator.set_day(day, body_of(day, "v1"))
        yield server


@pytest.fixture
def replica(tmp_path: Path, mixpanel: SimulatorThread) -> Iterator[Replica]:
    replica = Replica(
        tmp_path, state_of(tmp_path), mixpanel.base_url, WORKER_API_CLIENTS=f"{CLIENT_ID}:{CLIENT_SECRET}"
    )
    with ended(replica):
        yield replica.ready()


@pytest.fixture
def configured(replica: Replica, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """aepp pointed at the service (facts, aep 7.1); what it keeps in its modules is put back at the end."""
    config = pytest.importorskip("aepp.config", reason="aepp is not installed")
    from aepp import configs  # type: ignore[import-untyped]

    for name in ("config_object", "header"):
        kept = getattr(config, name)
        for key, value in list(kept.items()):
            monkeypatch.setitem(kept, key, value)
    configs.configure(org_id="ORG@AdobeOrg", client_id=CLIENT_ID, secret=CLIENT_SECRET, scopes="a", sandbox="dev")
    # after the line before, which writes an address of its own
    monkeypatch.setitem(config.endpoints, "global", replica.url)
    config.config_object.update(imsEndpoint=replica.url, oauthTokenEndpointV2=f"{replica.url}/ims/token/v3")


# aepp's own code has escapes that Python does not know: it says so when it compiles them
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@pytest.mark.usefixtures("configured")
def test_the_life_of_a_flow(tmp_path: Path, mixpanel: SimulatorThread, replica: Replica, heard: Heard) -> None:
    from aepp import catalog, dataprep, flowservice, schema

    # log in, which aepp does on its own
    flows, prep = flowservice.FlowService(), dataprep.DataPrep()
    assert flows.getConnections() == []

    # a base connection
    base = flows.createConnection(
        name="Mixpanel",
        auth={
            "specName": "Basic Authentication",
            "params": {"host": mixpanel.base_url, "username": DEMO_USERNAME, "password": "wrong"},
        },
        connectionSpec={"id": MIXPANEL_SPEC, "version": "1.0"},
    )["id"]
    spec = {"id": MIXPANEL_SPEC, "version": "1.0"}
    params = {"host": mixpanel.base_url, "username": DEMO_USERNAME, "password": PASSWORD}
    operations = [
        {"op": "replace", "path": "/auth/params", "value": params},
        {"op": "Add", "path": "/description", "value": "By aepp"},
    ]
    assert flows.patchConnection(base, operations)["id"] == base
    shown = flows.getConnection(base)
    assert (shown["description"], shown["auth"]["params"]["password"]) == ("By aepp", "***")
    assert flows.connectionTest(base) == {"result": True}
    assert [one["id"] for one in flows.getConnections()] == [base]

    # specs
    assert flows.getConnectionSpecsMap() == {"Mixpanel": MIXPANEL_SPEC, "dataLake": DATA_LAKE_SPEC}
    assert flows.getConnectionSpec(MIXPANEL_SPEC)["items"][0]["name"] == "Mixpanel"
    assert flows.getFlowSpecIdFromNames("RestStorageToAEP", "Mixpanel", "dataLake") == FLOW_SPEC
    assert flows.getFlowSpec(FLOW_SPEC)["name"] == "RestStorageToAEP"

    # source and target; the target's dataset has a schema
    source = flows.createSourceConnection(
        {
            "name": "Events",
            "baseConnectionId": base,
            "connectionSpec": spec,
            "data": {"format": "json"},
            "params": {"projectId": DEMO_PROJECT_ID, "timezone": "UTC", "lookbackDays": 3},
        }
    )["id"]
    etag = flows.getSourceConnection(source)["etag"]
    renamed = [{"op": "Replace", "path": "/name", "value": "All events"}]
    assert flows.updateSourceConnection(source, etag, renamed)["id"] == source
    text = {"type": "string"}
    schema_id = schema.Schema().createSchema(
        {
            "title": "Events",
            "type": "object",
            "allOf": [
                {"$ref": "https://ns.adobe.com/xdm/context/experienceevent"},
                {"properties": {"id": text, "version": text}},
            ],
        }
    )["$id"]
    reference = {"id": schema_id, "contentType": "application/vnd.adobe.xed+json;version=1"}
    [made] = catalog.Catalog().createDataSet(data={"name": "Lake", "schemaRef": reference})
    dataset = made.rpartition("/")[2]
    target = flows.createTargetConnection("Lake", DATA_LAKE_SPEC, dataset)["id"]
    etag = flows.getTargetConnection(target)["etag"]
    assert flows.updateTargetConnection(target, etag, renamed)["id"] == target
    assert [one["name"] for one in flows.getSourceConnections()] == ["All events"]
    assert [one["id"] for one in flows.getTargetConnections()] == [target]

    # the mapping set
    mapping = prep.createMappingSet(mappingSet={"mappings": MAPPINGS}, validate=True)["id"]
    assert [one["id"] for one in prep.getMappingSets()] == [mapping]
    assert prep.updateMappingSet(mapping, MAPPINGS)["version"] == 1
    record = {"event": "Signed up", "properties": {"$insert_id": "i1", "version": "v1", "price": "2.5"}}
    total = {"sourceType": "EXPRESSION", "source": "data.price * 4", "destination": "total"}
    [row] = prep.previewDataOutput(record, {"mappings": [*MAPPINGS, total]})
    assert row["errors"] is None
    assert row["data"]["total"] == "10.0"
    assert prep.validateExpression(total["source"], mappingSetId=mapping, sampleData='{"price": 1}') == {
        "validationStatus": "succeeded",
        "error": "none",
    }
    assert prep.validateExpression("data.price *")["validationStatus"] == "failed"
    assert {"iif", "to_array"} <= {one["function"] for one in prep.getMappingSetFunctions()}
    assert {"+", "&&"} <= {one["operatorSymbol"] for one in prep.getMappingSetOperators()}
    spare = prep.createMappingSet(mappingSet={"mappings": [*MAPPINGS, total]}, validate=True)["id"]
    prep.deleteMappingSet(spare)
    assert heard.statuses[-1][::2] == ("DELETE", 204)
    assert [one["id"] for one in prep.getMappingSets()] == [mapping]

    # the flow; it runs once by itself, as its start has passed
    flow = flows.createFlow(
        FLOW_SPEC,
        name="By aepp",
        source_connection_id=source,
        target_connection_id=target,
        schedule_start_time="1625040887",
        schedule_frequency="hour",
        schedule_interval=1,
        transformation_mapping_id=mapping,
        transformation_name="Mapping",
    )["id"]
    replica.wait_for(lambda: len(replica.ended_runs()) == 1)
    run = flows.createRun(flow)["id"]
    replica.wait_for(lambda: run in replica.ended_runs())
    [shown] = flows.getRun(run)
    assert shown["metrics"]["statusSummary"]["status"] == "success"
    assert [one["id"] for one in flows.getFlows()] == [flow]
    everything = flows.getRuns(limit=1, prop=[f"flowId=={flow}", "metrics.statusSummary.status==Success"])
    assert [one["id"] for one in everything[:1]] == [run]
    assert {one["id"] for one in everything} == replica.ended_runs()
    rows = {day: found for day, found in lake_rows(tmp_path / "lake" / dataset).items() if found}
    assert rows == {day: rows_of(day, "v1") for day in DAYS}
    manager = flowservice.FlowManager(flow)
    assert (manager.name, manager.flowType, manager.flowMapping["id"]) == ("By aepp", "source", mapping)
    assert manager.flowTargetConnection["params"]["datasetName"] == "Lake"
    assert {one["id"] for one in manager.getRuns()} == replica.ended_runs()

    # changes
    changed = flows.updateFlow(
        flow,
        flows.getFlow(flow)["etag"],
        [
            {"op": "Replace", "path": "/name", "value": "By aepp, daily"},
            {"op": "Replace", "path": "/scheduleParams/frequency", "value": "day"},
            {"op": "Replace", "path": "/scheduleParams/interval", "value": "2"},
        ],
    )
    shown = flows.getFlow(flow)
    assert (shown["etag"], shown["name"]) == (changed["etag"], "By aepp, daily")
    assert (shown["scheduleParams"]["frequency"], int(shown["scheduleParams"]["interval"])) == ("day", 2)
    for action, state in (("disable", "disabled"), ("enable", "enabled")):
        assert flows.postFlowAction(flow, action)["id"] == flow
        assert flows.getFlow(flow)["state"] == state

    # what is used is kept; then everything goes, from the flow down
    assert flows.deleteConnection(base)["status"] == 400
    assert heard.statuses[-1][2] == 400
    for delete, object_id in (
        (flows.deleteFlow, flow),
        (prep.deleteMappingSet, mapping),
        (flows.deleteTargetConnection, target),
        (flows.deleteSourceConnection, source),
        (flows.deleteConnection, base),
    ):
        delete(object_id)
        assert heard.statuses[-1][::2] == ("DELETE", 204), heard.texts[-1]
    assert [flows.getFlows(), flows.getConnections(), flows.getSourceConnections(), prep.getMappingSets()] == [[]] * 4

    assert {status for _, _, status in heard.statuses} == {200, 201, 204, 400}
    assert replica.end(signal.SIGTERM) == 0
    # each token is in the one answer that gives it
    tokens = re.findall(r"mpw_[0-9a-zA-Z_-]+", "".join(heard.texts))
    assert len(tokens) == len([path for _, path, _ in heard.statuses if path == "/ims/token/v3"]) > 0
    assert_untold(tmp_path, [PASSWORD, CLIENT_SECRET], [*replica.said, *heard.texts])
    assert_untold(tmp_path, tokens, replica.said)
