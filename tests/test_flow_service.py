"""The Flow Service's door, over a real connection."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from multidict import MultiDict

from tests import support
from tests.support import MAPPINGS, receipt_of, settings_for
from worker.errors import ExportRefusedError, WorkerError
from worker.http.flow_service import BASE, routes
from worker.http.listing import apply, parse_listing
from worker.http.patching import patched
from worker.http.problems import ApiError, gateway, of_worker_error, problem_document, problem_response
from worker.model import LoadState, Run, RunState, Tally
from worker.registry import FLOW_SPEC, FLOWS, MAPPING_SETS, MIXPANEL_SPEC, Registry
from worker.runner import QUEUED
from worker.secret_box import SecretBox, new_key
from worker.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from worker.model import Source

SPECS = Path(__file__).resolve().parents[2] / "shared" / "spec"
DOCUMENTS = ("000", "001", "003")
NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
SECRET = "canary-Pa55word/+é"
PREVIEW = {"format": "hierarchical", "schema": {"type": "object"}, "data": [{"event": "a", "properties": {}}]}


class FakeKeeper:
    """Writes down what it is asked for."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.asked: list[tuple[str, date | None, date | None]] = []
        self.sources: list[Source] = []
        self.error: WorkerError | None = None

    async def request_run(self, flow_id: str, first: date | None, last: date | None) -> str:
        self.asked.append((flow_id, first, last))
        run = run_of(flow_id, 100 + len(self.asked), RunState.IN_PROGRESS)
        self.store.save_run(run)
        return run.id

    async def test_connection(self, source: Source) -> None:
        self.sources.append(source)
        if self.error is not None:
            raise self.error

    async def explore(self, source: Source, *, rows: int) -> dict[str, Any]:
        await self.test_connection(source)
        return PREVIEW


def run_of(flow_id: str, number: int, state: RunState = RunState.SUCCESS, name: str = "Flow") -> Run:
    return support.run_of(
        id=f"run-{flow_id[:8]}-{number:04}",
        flow_id=flow_id,
        flow_name=name,
        state=state,
        started_at=NOW + timedelta(hours=number),
        last_day=date(2024, 3, 2),
        window_start=NOW,
        window_end=NOW,
    )


class Service:
    """The service and a client of it that keeps everything that came back."""

    def __init__(
        self, client: TestClient[web.Request, web.Application], registry: Registry, keeper: FakeKeeper
    ) -> None:
        self.client = client
        self.registry = registry
        self.keeper = keeper
        self.store = keeper.store
        self.said: list[str] = []

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> Any:
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.client.request(method, BASE + path, data=raw, headers=headers) as answer:
            text = await answer.text()
            self.said.append(f"{dict(answer.headers)} {text}")
            assert answer.status == status, (answer.status, text)
            self.headers = answer.headers
            return json.loads(text) if text else None

    async def create(self, kind: str, body: dict[str, Any]) -> str:
        made = await self.ask("POST", f"/{kind}", body, status=201)
        assert set(made) == {"id", "etag"}
        assert self.headers["Location"] == f"{BASE}/{kind}/{made['id']}"
        assert self.headers["ETag"] == made["etag"]
        assert re.fullmatch(r'"[^"]+"', made["etag"])
        return str(made["id"])

    async def read(self, path: str) -> dict[str, Any]:
        items = (await self.ask("GET", path))["items"]
        assert len(items) == 1
        return dict(items[0])

    async def flow(self, name: str = "My flow", dataset_id: str = "events", **changes: object) -> str:
        base = await self.create("connections", connection())
        source = await self.create("sourceConnections", source_of(base))
        target = await self.create("targetConnections", target_of(dataset_id))
        mapping = self.registry.create(MAPPING_SETS, {"mappings": MAPPINGS}).id
        body = {
            "name": name,
            "flowSpec": {"id": FLOW_SPEC, "version": "1.0"},
            "sourceConnectionIds": [source],
            "targetConnectionIds": [target],
            "transformations": [{"name": "Mapping", "params": {"mappingId": mapping, "mappingVersion": 0}}],
            "scheduleParams": {"startTime": "1625040887", "frequency": "minute", "interval": "15"},
            **changes,
        }
        return await self.create("flows", body)

    async def patch(self, path: str, operations: object, status: int = 200, **headers: str) -> Any:
        if not headers:
            headers = {"If-Match": (await self.read(path))["etag"]}
        return await self.ask("PATCH", path, operations, headers, status)


def connection() -> dict[str, Any]:
    return {
        "name": "Base",
        "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
        "auth": {"specName": "Basic Authentication", "params": {"username": "user", "password": SECRET}},
    }


def source_of(base_id: str) -> dict[str, Any]:
    return {
        "name": "Source",
        "baseConnectionId": base_id,
        "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
        "data": {"format": "json"},
        "params": {"projectId": "2671127", "timezone": "Pacific Standard Time"},
    }


def target_of(dataset_id: str) -> dict[str, Any]:
    return {
        "name": "Target",
        "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
        "data": {"format": "json"},
        "params": {"dataSetId": dataset_id},
    }


def with_slashes(found: list[web.RouteDef]) -> Iterator[web.RouteDef]:
    for route in found:
        yield route
        yield replace_path(route, f"{route.path}/")


def replace_path(route: web.RouteDef, path: str) -> web.RouteDef:
    return web.RouteDef(route.method, path, route.handler, route.kwargs)


@web.middleware
async def told(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return problem_response(error, "request-1")
    except WorkerError as error:
        return problem_response(of_worker_error(error), "request-1")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    store = MemoryStore()
    registry = Registry(store, SecretBox(new_key()), settings_for(tmp_path), allow_loopback=True)
    keeper = FakeKeeper(store)
    app = web.Application(middlewares=[told])
    app.add_routes(list(with_slashes(routes(registry, store, keeper))))
    async with TestClient(TestServer(app)) as client:
        service = Service(client, registry, keeper)
        yield service
        assert not [text for text in service.said if "canary" in text or base64.b64encode(b"canary").decode() in text]


# The tutorials, as they stand


def curls(number: str) -> list[tuple[str, str, dict[str, str], str | None]]:
    """Method, address, headers and body of each example request of a document."""
    if not SPECS.is_dir():
        pytest.skip("the documents with the examples are not beside the checkout")
    lines = next(SPECS.glob(f"{number}*.txt")).read_text().splitlines()
    found = []
    for index, line in enumerate(lines):
        if not line.startswith("curl -X"):
            continue
        text = ""
        for part in lines[index:]:
            text += part.removesuffix("\\") + "\n"
            if (
                text.count("'") % 2 == 0
                and not part.endswith("\\")
                and not following(lines, part).lstrip().startswith("-")
            ):
                break
        words = shlex.split(text)
        method, address = words[2], words[3]
        options = list(zip(words[4::2], words[5::2], strict=True))
        headers = dict(value.split(": ", 1) for flag, value in options if flag == "-H")
        found.append((method, address, headers, next((value for flag, value in options if flag == "-d"), None)))
    return found


def following(lines: list[str], line: str) -> str:
    places = [index for index, one in enumerate(lines) if one is line]
    return lines[places[0] + 1] if places[0] + 1 < len(lines) else ""


@pytest.mark.parametrize("number", DOCUMENTS)
async def test_the_requests_of_the_tutorials_get_the_answers_of_the_tutorials(service: Service, number: str) -> None:
    ids: dict[str, str] = {}
    values = {"USERNAME": "u", "PASSWORD": SECRET, "PROJECT_ID": "2671127", "TIMEZONE": "Pacific Standard Time"}
    values |= {"NEW_PASSWORD": f"{SECRET}2", "NEW_SECURITY_TOKEN": f"{SECRET}3", "TENANT_ID": "t"}
    printed = {
        "70383d02-2777-4be7-a309-9dd6eea1b46d": "connections",
        "246d052c-da4a-494a-937f-a0d17b1c6cf5": "sourceConnections",
        "7c96c827-3ffd-460c-a573-e9558f72f263": "targetConnections",
        "bf5286a9c1ad4266baca76ba3adc9366": "mappingSets",
        "993f908f-3342-4d9c-9f3c-5aa9a189ca1a": "flows",
        # connections of other tutorials: ours stands in for them
        "139f6a5f-a78b-4744-9f6a-5fa78bd74431": "connections",
        "dd3631cd-d0ea-4fea-b631-cdd0ea6fea21": "connections",
    }
    done: list[str] = []
    for method, address, headers, body in curls(number):
        path = address.removeprefix("https://platform.adobe.io")
        sent = body or ""
        for old, kind in printed.items():
            path, sent = path.replace(old, ids.get(kind, old)), sent.replace(old, ids.get(kind, old))
        for name, value in values.items():
            sent = sent.replace(f"{{{name}}}", value)
        done.append(f"{method} {path.split('?')[0].removeprefix(BASE).split('/')[1]}")
        if path.endswith("/conversion/mappingSets"):
            # another door
            ids["mappingSets"] = service.registry.create(MAPPING_SETS, json.loads(sent)).id
            continue
        path = path.removeprefix(BASE)
        if "/explore?" in path:
            # the printed parameters are {"listId": …}, of another source than Mixpanel
            refused = await service.ask("GET", path, headers=headers, status=400)
            assert "sourceParams.projectId: is missing" in refused["errorMessage"]
            wanted = base64.b64encode(b'{"projectId":"2671127","timezone":"Pacific Standard Time"}').decode()
            path = re.sub(r"(?<=sourceParams=).*", wanted, path)
            assert await service.ask("GET", path, headers=headers) == PREVIEW
            continue
        if method == "PATCH":
            etag = (await service.read(path))["etag"]
            headers["If-Match"] = etag if headers["If-Match"].startswith('"') else etag.strip('"')
        answer = await service.ask(
            method, path, sent.encode() or None, headers, {"POST": 201, "DELETE": 204}.get(method, 200)
        )
        match method:
            case "POST":
                ids[path.strip("/")] = answer["id"]
                assert set(answer) == {"id", "etag"}
            case "PATCH":
                assert answer["id"] in path
                assert answer["etag"] != etag
                assert answer["etag"] == (await service.read(path))["etag"]
            case "DELETE":
                assert (await service.ask("GET", path, status=404))["title"] == "Resource not found"
            case "GET":
                assert answer == {"items": [], "_links": {}}
    counted = Counter(done)
    assert counted["POST connections"] == 1
    if number != "003":
        assert all(counted[f"POST {kind}"] == 1 for kind in ("sourceConnections", "targetConnections", "flows"))
    if number == "001":
        assert (counted["PATCH flows"], counted["PATCH connections"], counted["DELETE connections"]) == (1, 1, 1)


# A flow's life


async def test_a_flow_looks_as_adobe_prints_it(service: Service) -> None:
    flow_id = await service.flow(options={"partialIngestionPercent": "10"})
    service.store.save_run(run_of(flow_id, 1, RunState.FAILED))
    flow = await service.read(f"/flows/{flow_id}")
    assert flow["state"] == "enabled"
    assert flow["version"] == flow["etag"] == service.headers["ETag"]
    assert flow["scheduleParams"] == {"startTime": 1625040887, "frequency": "minute", "interval": "15"}
    assert flow["options"] == {"partialIngestionPercent": 10}
    inherited = flow["inheritedAttributes"]
    assert inherited["sourceConnections"][0]["id"] == flow["sourceConnectionIds"][0]
    assert inherited["sourceConnections"][0]["baseConnection"]["connectionSpec"]["id"] == MIXPANEL_SPEC
    assert inherited["targetConnections"][0]["id"] == flow["targetConnectionIds"][0]
    assert flow["lastRunDetails"]["state"] == "failed"
    assert flow["lastOperation"]["operation"] == "create"
    assert flow["runs"] == f"/flows/{flow_id}/runs"
    assert [run["flowId"] for run in (await service.ask("GET", flow["runs"]))["items"]] == [flow_id]
    for key in ("createdAt", "updatedAt", "createdBy", "updatedClient", "sandboxName", "imsOrgId"):
        assert flow[key], key


async def test_every_object_is_made_read_changed_and_deleted(service: Service) -> None:
    flow_id = await service.flow()
    flow = await service.read(f"/flows/{flow_id}")
    source = await service.read(f"/sourceConnections/{flow['sourceConnectionIds'][0]}")
    paths = [
        f"/flows/{flow_id}",
        f"/sourceConnections/{source['id']}",
        f"/targetConnections/{flow['targetConnectionIds'][0]}",
        f"/connections/{source['baseConnectionId']}",
    ]
    for path in paths:
        changed = await service.patch(f"{path}/", [{"op": "REPLACE", "path": "/name", "value": "New"}])
        shown = await service.read(path)
        assert (shown["name"], shown["etag"], shown["updatedAt"] >= shown["createdAt"]) == (
            "New",
            changed["etag"],
            True,
        )
        collection = path.rpartition("/")[0]
        assert (await service.ask("GET", f"{collection}?count=true")) == {"count": 1}
    refused = await service.ask("DELETE", paths[3], status=400)
    assert refused["type"].endswith("/FLOW-1418-400")
    for path in paths:
        await service.ask("DELETE", f"{path}/", headers={"If-Match": '"stale"'}, status=412)
        await service.ask("DELETE", f"{path}/", status=204)
        await service.ask("DELETE", path, status=404)


async def test_a_flow_is_enabled_and_disabled(service: Service) -> None:
    flow_id = await service.flow()
    for operation, state in (("disable", "disabled"), ("ENABLE", "enabled")):
        changed = await service.ask("POST", f"/flows/{flow_id}/action?op={operation}")
        flow = await service.read(f"/flows/{flow_id}")
        assert (flow["state"], changed) == (state, {"id": flow_id, "etag": flow["etag"]})
    stale = {"If-Match": "other"}
    assert (await service.ask("POST", f"/flows/{flow_id}/action?op=disable", None, stale, 412))["status"] == 412
    unknown = await service.ask("POST", f"/flows/{flow_id}/action?op=FINALIZE", status=400)
    assert unknown["type"].endswith("CONNECTOR-1398-400")
    assert (await service.ask("POST", f"/flows/{flow_id}/action", status=400))["type"].endswith("1359-400")
    await service.ask("POST", "/flows/nobody/action?op=enable", status=404)


async def test_credentials_are_changed_and_never_shown(service: Service) -> None:
    base = await service.create("connections", connection())
    path = f"/connections/{base}"
    assert (await service.read(path))["auth"]["params"] == {"username": "user", "password": "***"}
    new = {"username": "other", "password": "canary-2", "securityToken": "canary-3"}
    await service.patch(path, [{"op": "replace", "path": "/auth/params", "value": new}])
    shown = (await service.read(path))["auth"]["params"]
    assert shown == {"username": "other", "password": "***", "securityToken": "***"}
    await service.patch(path, [{"op": "add", "path": "/description", "value": "x"}])
    assert service.registry.source_of(base, None).credentials.password.reveal() == "canary-2"
    await service.patch(path, [{"op": "replace", "path": "/auth/params/password", "value": "canary-4"}])
    assert service.registry.source_of(base, None).credentials.password.reveal() == "canary-4"
    elsewhere = [{"op": "add", "path": "/auth/params/host", "value": "http://127.0.0.1:1"}]
    refused = await service.patch(path, elsewhere, status=400)
    assert "host changes" in refused["errorMessage"]
    for query in ("auth.params.password==canary-4", "auth.params.password>c"):
        assert await service.ask("GET", f"/connections?count=true&property={query}") == {"count": 0}


# If-Match


async def test_of_fifty_changes_with_one_etag_one_wins(service: Service) -> None:
    flow_id = await service.flow()
    etag = (await service.read(f"/flows/{flow_id}"))["etag"]

    async def change(number: int) -> int:
        operations = [{"op": "replace", "path": "/description", "value": f"{number}"}]
        operations[0]["op"] = "add"
        async with service.client.patch(
            f"{BASE}/flows/{flow_id}", json=operations, headers={"If-Match": etag}
        ) as answer:
            return answer.status

    statuses = Counter(await asyncio.gather(*(change(number) for number in range(50))))
    assert statuses == {200: 1, 412: 49}


async def test_of_changes_and_deletions_with_one_etag_one_wins(service: Service) -> None:
    flow_id = await service.flow()
    headers = {"If-Match": (await service.read(f"/flows/{flow_id}"))["etag"]}
    operations = [{"op": "add", "path": "/description", "value": "x"}]

    async def act(method: str, body: object) -> int:
        async with service.client.request(method, f"{BASE}/flows/{flow_id}", json=body, headers=headers) as answer:
            return answer.status

    asked = [act("PATCH", operations) if number % 2 else act("DELETE", None) for number in range(30)]
    statuses = Counter(await asyncio.gather(*asked))
    assert statuses[200] + statuses[204] == 1
    assert set(statuses) <= {200, 204, 404, 412}
    await service.ask("GET", f"/flows/{flow_id}", status=404 if statuses[204] else 200)


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ("{}", 200),
        ('"{}"', 200),
        ('"a", "{}"', 200),
        ("*", 200),
        ('W/"{}"', 412),
        ('"other"', 412),
        (",,", 412),
        ("", 400),
    ],
)
async def test_if_match(service: Service, tag: str, status: int) -> None:
    base = await service.create("connections", connection())
    etag = (await service.read(f"/connections/{base}"))["etag"].strip('"')
    operations = [{"op": "add", "path": "/description", "value": "x"}]
    answer = await service.patch(f"/connections/{base}", operations, status, **{"if-match": tag.format(etag)})
    if status == 412:
        assert answer["type"].endswith("FLOW-1404-412")
        assert etag in answer["errorMessage"]
    if status == 400:
        assert answer["type"].endswith("FLOW-1403-400")


async def test_if_match_in_the_address(service: Service) -> None:
    base = await service.create("connections", connection())
    etag = (await service.read(f"/connections/{base}"))["etag"].strip('"')
    operations = [{"op": "add", "path": "/description", "value": "x"}]
    await service.ask("PATCH", f"/connections/{base}/?if-match={etag}", operations)
    await service.ask("PATCH", f"/connections/{base}/?if-match={etag}", operations, status=412)
    await service.ask("PATCH", f"/connections/{base}", operations, status=400)


# Patches


DOCUMENT = {"name": "a", "auth": {"params": {"password": "***"}}, "list": [{"x": 1}], "state": "enabled"}


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        (None, "FLOW-1405-400"),
        ([], "FLOW-1405-400"),
        ({}, "FLOW-1455-400"),
        (["x"], "FLOW-1455-400"),
        ([{"path": "/name", "value": 1}], "FLOW-1455-400"),
        ([{"op": "add", "path": "/name"}], "FLOW-1455-400"),
        ([{"op": "add", "value": 1}], "FLOW-1455-400"),
        ([{"op": "move", "from": "/auth/params/password", "path": "/name"}], "FLOW-1434-400"),
        ([{"op": "Copy", "from": "/auth/params/password", "path": "/name"}], "FLOW-1434-400"),
        ([{"op": "test", "path": "/auth/params/password", "value": "***"}], "FLOW-1434-400"),
        ([{"op": "test", "path": "/auth/params/password~0", "value": "***"}], "FLOW-1434-400"),
        ([{"op": "TEST", "path": "/auth", "value": {}}], "FLOW-1434-400"),
        ([{"op": "test", "path": "/name", "value": "b"}], "FLOW-1100-400"),
        ([{"op": "replace", "path": "/nobody", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "/name/x/y", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "/list/9", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "/list/x", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "remove", "path": "/list/0/x/y"}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "/a~2", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "replace", "path": "", "value": {}}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "name", "value": 1}], "CONNECTOR-1365-400"),
        ([{"op": "add", "path": "/x", "value": 1}] * 101, "FLOW-1455-400"),
    ],
)
def test_a_patch_that_is_refused(operations: object, code: str) -> None:
    before = json.dumps(DOCUMENT)
    with pytest.raises(ApiError) as refused:
        patched(DOCUMENT, operations, secret_paths=("/auth/params",))
    assert (refused.value.status, refused.value.code) == (400, code)
    assert json.dumps(DOCUMENT) == before


def test_a_patch_changes_a_copy() -> None:
    before = json.dumps(DOCUMENT)
    operations = [
        {"op": "test", "path": "/name", "value": "a"},
        {"op": "Replace", "path": "/name", "value": "b"},
        {"op": "ADD", "path": "/list/-", "value": 2},
        {"op": "remove", "path": "/list/0/x", "value": "aepp sends one"},
    ]
    changed = patched(DOCUMENT, operations, secret_paths=("/auth/params",))
    assert (changed["name"], changed["list"]) == ("b", [{}, 2])
    assert json.dumps(DOCUMENT) == before


@pytest.mark.parametrize("path", ["/id", "/etag", "/createdAt", "/imsOrgId", "/version"])
async def test_what_the_service_says_of_an_object_is_not_patched(service: Service, path: str) -> None:
    base = await service.create("connections", connection())
    await service.patch(f"/connections/{base}", [{"op": "replace", "path": path, "value": "x"}], 400)
    await service.patch(f"/connections/{base}", [{"op": "add", "path": path, "value": "x"}], 400)


async def test_the_patches_of_the_documents(service: Service) -> None:
    flow_id = await service.flow()
    path = f"/flows/{flow_id}"
    await service.patch(path, [{"op": "add", "path": "/options", "value": {"partialIngestionPercent": "10"}}])
    await service.patch(path, [{"op": "add", "path": "/options/errorDiagnosticsEnabled", "value": True}])
    assert (await service.read(path))["options"] == {"partialIngestionPercent": 10, "errorDiagnosticsEnabled": True}
    await service.patch(path, [{"op": "replace", "path": "/scheduleParams/frequency", "value": "day"}])
    await service.patch(path, [{"op": "add", "path": "/labels", "value": ["a"]}])
    flow = await service.read(path)
    assert (flow["scheduleParams"]["interval"], flow["labels"]) == ("15", ["a"])
    start = [{"op": "replace", "path": "/scheduleParams/startTime", "value": "1"}]
    assert (await service.patch(path, start, 400))["type"].endswith("CONNECTOR-1366-400")
    once = [{"op": "replace", "path": "/scheduleParams/frequency", "value": "once"}]
    assert (await service.patch(path, once, 400))["type"].endswith("CONNECTOR-1403-400")
    mapping = {"name": "Mapping", "params": {"mappingId": "0" * 32, "mappingVersion": 0}}
    await service.patch(path, [{"op": "replace", "path": "/transformations/0", "value": mapping}], 400)
    spec = [{"op": "replace", "path": "/connectionSpec/version", "value": "2.0"}]
    target = f"/targetConnections/{flow['targetConnectionIds'][0]}"
    assert (await service.patch(target, spec, 400))["type"].endswith("FLOW-1414-400")


# Lists


def documents() -> list[dict[str, Any]]:
    return [
        {"id": f"id-{number}", "createdAt": number, "name": name, "n": {"x": number}, "ids": [f"s{number}", "s9"]}
        for number, name in enumerate(["Ada", "bea", "Cyd", "dan", "Eve"])
    ]


def asked(*properties: str, **query: str) -> list[str]:
    listing = parse_listing(MultiDict([*(("property", text) for text in properties), *query.items()]))
    return [item["id"][3:] for item in apply(listing, documents(), "/x")["items"]]


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        (["name==Ada,EVE"], "04"),
        (["name!=Ada"], "1234"),
        (["n.x>=1", "n.x<3"], "12"),
        (["n.x>1"], "234"),
        (["n.x<=0"], "0"),
        (["n.x==2.0"], "2"),
        (["ids[]==s1,s4"], "14"),
        (["ids==s9"], "01234"),
        (["nobody==1"], ""),
        (["nobody!=1"], "01234"),
        (["name>c"], "234"),
        (["n>1"], ""),
    ],
)
def test_filters(properties: list[str], found: str) -> None:
    assert "".join(asked(*properties)) == found


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"property": "name"}, "1450"),
        ({"property": "name~a"}, "1440"),
        ({"property": "name=a"}, "1440"),
        ({"property": "name==" + "," * 5}, "1452"),
        ({"property": "n.x>1,2"}, "1443"),
        ({"property": "a b==1"}, "1449"),
        ({"property": "other==1"}, "1449"),
        ({"property": "(a+)+$==1"}, "1449"),
        ({"orderby": "na me"}, "1432"),
        ({"orderby": "name,"}, "1432"),
        ({"orderby": "other"}, "1433"),
        ({"limit": "0"}, "1453"),
        ({"limit": "-1"}, "1453"),
        ({"limit": "ten"}, "1453"),
        ({"count": "maybe"}, "1453"),
        ({"count": "true", "limit": "5"}, "1401"),
        ({"continuationToken": "nonsense"}, "1453"),
        ({"continuationToken": "e30"}, "1453"),
        ({"continuationToken": "=" * 9}, "1453"),
    ],
)
def test_a_question_that_is_refused(query: dict[str, str], code: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_listing(MultiDict(query), fields=("name", "n", "a b"))
    assert refused.value.code == f"FLOW-{code}-400"


def test_order() -> None:
    assert "".join(asked()) == "01234"
    assert "".join(asked(orderby="-name")) == "43210"
    assert "".join(asked(orderby=" name")) == "01234"
    assert "".join(asked(orderby="nobody,-n.x")) == "43210"


@pytest.mark.parametrize("orderby", ["", "-name", "nobody,name"])
def test_pages_hold_every_item_once_whatever_comes_and_goes(orderby: str) -> None:
    every = documents()
    listing = parse_listing(MultiDict({"limit": "2", "orderby": orderby, "property": "n.x!=3"}))
    seen: list[str] = []
    for _ in range(9):
        page = apply(listing, every, "/x")
        seen += [item["id"] for item in page["items"]]
        if not page["_links"]:
            break
        href = page["_links"]["next"]["href"]
        path, token = href.split("=")
        assert path == "/x?continuationToken"
        # what has been seen goes away
        every = [item for item in every if item["id"] not in seen]
        listing = parse_listing(MultiDict({"continuationToken": token, "limit": "2"}))
    order = ["id-0", "id-1", "id-2", "id-4"]
    assert seen == (order[::-1] if orderby == "-name" else order)


def test_a_page_has_a_most() -> None:
    listing = parse_listing(MultiDict({"limit": "999999999"}))
    assert listing.limit == 100


async def test_lists_of_flows(service: Service) -> None:
    ids = [await service.flow(f"Flow {number}", f"events{number}") for number in range(3)]
    service.store.save_run(run_of(ids[1], 1))
    mapping = (await service.read(f"/flows/{ids[2]}"))["transformations"][0]["params"]["mappingId"]
    for query, found in (
        ("", ids),
        ("limit=100&count=False", ids),
        ("property=inheritedAttributes.properties.isSourceFlow==true", ids),
        ("property=inheritedAttributes.properties.isDestinationFlow==true", []),
        (f"property=transformations[].params.mappingId=={mapping}", ids[2:]),
        (f"property=id=={ids[0]},{ids[2]}&property=state==Enabled", [ids[0], ids[2]]),
        ("property=lastRunDetails.startedAtUTC>1", ids[1:2]),
        ("orderby=-name", ids[::-1]),
    ):
        answer = await service.ask("GET", f"/flows?{query}")
        assert [item["id"] for item in answer["items"]] == found, query
        assert "_links" in answer
    first = await service.ask("GET", "/flows?limit=2&orderby=-name")
    second = await service.ask("GET", first["_links"]["next"]["href"])
    assert [item["id"] for item in second["items"]] == ids[:1]
    assert second["_links"] == {}
    assert (await service.ask("GET", "/flows?property=secret==1", status=400))["type"].endswith("1449-400")
    assert (await service.ask("GET", "/flows?limit=2&count=true", status=400))["type"].endswith("1401-400")


# Specs


async def test_specs(service: Service) -> None:
    flow_spec = await service.read(f"/flowSpecs/{FLOW_SPEC}")
    sample = SPECS.parent / "facts" / "aep_samples" / "flowSpec_RestStorageToAEP.json"
    if sample.exists():
        expected = json.loads(sample.read_text())["items"][0]
        assert flow_spec["scheduleSpec"] == expected["scheduleSpec"]
        assert flow_spec["name"] == expected["name"]
    specs = (await service.ask("GET", "/connectionSpecs"))["items"]
    assert {spec["name"] for spec in specs} == {"Mixpanel", "dataLake"}
    assert (await service.ask("GET", "/connectionSpecs?property=name==mixpanel"))["items"][0]["id"] == MIXPANEL_SPEC
    assert (await service.read(f"/connectionSpecs/{MIXPANEL_SPEC}"))["authSpec"][0]["name"] == "Basic Authentication"
    await service.ask("GET", "/flowSpecs/nobody", status=404)
    assert (await service.ask("POST", "/flowSpecs", {}, status=501))["status"] == 501


# Test and explore


async def test_a_connection_is_tested(service: Service) -> None:
    base = await service.create("connections", connection())
    assert await service.ask("GET", f"/connections/{base}/test") == {"result": True}
    assert service.keeper.sources[-1].credentials.password.reveal() == SECRET
    service.keeper.error = ExportRefusedError("Mixpanel refuses the credentials.", status=401)
    refused = await service.ask("GET", f"/connections/{base}/test", status=400)
    assert refused["type"].endswith("CONNECTOR-1001-401")
    await service.ask("GET", "/connections/nobody/test", status=404)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "CONNECTOR-1359-400"),
        ("objectType=table", "CONNECTOR-1358-400"),
        ("objectType=rest&object=/etc/passwd", "CONNECTOR-1337-400"),
        ("objectType=rest&FileType=Delimited", "CONNECTOR-1337-400"),
        ("objectType=rest&preview=perhaps", "FLOW-1453-400"),
        ("objectType=rest&object=json", "CONNECTOR-1334-400"),
        ("objectType=rest&sourceParams=%25", "CONNECTOR-1389-400"),
        ("objectType=rest&sourceParams=W10=", "CONNECTOR-1389-400"),
        ("objectType=rest&sourceParams=e30=", "FLOW-1100-400"),
    ],
)
async def test_an_exploration_that_is_refused(service: Service, query: str, code: str) -> None:
    base = await service.create("connections", connection())
    refused = await service.ask("GET", f"/connections/{base}/explore?{query}", status=400)
    assert refused["type"].endswith(code)
    assert not service.keeper.sources


async def test_explore(service: Service) -> None:
    base = await service.create("connections", connection())
    text = base64.urlsafe_b64encode(b'{"projectId":"77","timezone":"UTC","where":"\xc3\xbf?>"}').decode().rstrip("=")
    path = f"/connections/{base}/explore?objectType=REST&object=json&FileType=JSON&sourceParams={text}"
    assert await service.ask("GET", path) == PREVIEW
    assert service.keeper.sources[-1].project_id == "77"
    assert set(await service.ask("GET", f"{path}&preview=False")) == {"format", "schema"}


# Runs


ONCE = {"startTime": "1625040887", "frequency": "once"}


async def test_a_flow_is_run_now(service: Service) -> None:
    flow_id = await service.flow(scheduleParams=ONCE)
    answer = await service.ask("POST", "/runs", {"flowId": flow_id, "status": "active"}, status=201)
    assert service.headers["Location"] == f"{BASE}/runs/{answer['id']}"
    assert answer["items"] == [{"id": answer["id"], "etag": answer["etag"]}]
    run = await service.read(f"/runs/{answer['id']}")
    assert (run["etag"], run["metrics"]["statusSummary"]["status"]) == (answer["etag"], "inProgress")
    # 1 March 2024, 00:00 to 3 March, 00:00 in UTC, the calendar of the project's exports
    window = {"windowStartTime": "1709251200", "windowEndTime": "1709424000"}
    await service.ask("POST", "/runs/", {"flowId": flow_id, "params": {"startTime": "1", **window}}, status=201)
    milliseconds = {"windowStartTime": 1709251200000}
    await service.ask("POST", "/runs", {"flowId": flow_id, "params": milliseconds}, status=201)
    assert service.keeper.asked == [
        (flow_id, None, None),
        (flow_id, date(2024, 3, 1), date(2024, 3, 2)),
        (flow_id, date(2024, 3, 1), None),
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"flowId": ""}, "FLOW-1446-400"),
        ({"flowId": "nobody"}, "FLOW-1430-400"),
        ({}, "FLOW-1405-400"),
        ({"params": {"windowStartTime": "9", "windowEndTime": "8"}}, "CONNECTOR-1381-400"),
        ({"params": {"windowEndTime": "8"}}, "CONNECTOR-1384-400"),
        ({"params": {"windowStartTime": "soon"}}, "CONNECTOR-1384-400"),
        ({"params": []}, "CONNECTOR-1384-400"),
    ],
)
async def test_a_run_that_is_refused(service: Service, body: dict[str, Any], code: str) -> None:
    flow_id = await service.flow(scheduleParams=ONCE)
    body = {"flowId": flow_id, **body} if body else body
    assert (await service.ask("POST", "/runs", body, status=400))["type"].endswith(code)
    assert not service.keeper.asked


async def test_a_flow_with_a_schedule_is_run_on_demand_too(service: Service) -> None:
    flow_id = await service.flow()
    await service.ask("POST", "/runs", {"flowId": flow_id}, status=201)
    assert [asked[0] for asked in service.keeper.asked] == [flow_id]


async def test_a_failed_run_is_triggered_again(service: Service) -> None:
    flow_id = await service.flow()
    failed, good = run_of(flow_id, 1, RunState.FAILED), run_of(flow_id, 2)
    for run in (failed, good):
        service.store.save_run(run)
    for operation in ("re-trigger", "RE_TRIGGER"):
        answer = await service.ask("POST", f"/runs/{failed.id}/action?op={operation}")
        assert answer["id"] != failed.id
        assert service.keeper.asked[-1] == (flow_id, failed.first_day, failed.last_day)
    refused = await service.ask("POST", f"/runs/{good.id}/action?op=re-trigger", status=400)
    assert refused["type"].endswith("CONNECTOR-1387-400")
    service.registry.set_state(flow_id, "disabled")
    refused = await service.ask("POST", f"/runs/{failed.id}/action?op=re-trigger", status=400)
    assert refused["type"].endswith("CONNECTOR-1388-400")
    service.registry.delete(FLOWS, flow_id)
    refused = await service.ask("POST", f"/runs/{failed.id}/action?op=re-trigger", status=400)
    assert refused["type"].endswith("FLOW-1430-400")
    await service.ask("POST", "/runs/nobody/action?op=re-trigger", status=404)


@pytest.fixture
def runs(service: Service) -> list[Run]:
    states = [RunState.SUCCESS, RunState.FAILED, RunState.IN_PROGRESS]
    every = [run_of(f"flow-{number % 2}", number, states[number % 3], f"Flow {number % 2}") for number in range(12)]
    for run in every:
        service.store.save_run(run)
    return every


def milliseconds(run: Run) -> int:
    return round(run.started_at.timestamp() * 1000)


@pytest.mark.parametrize(
    "path", ["/runs", "/runs?property=state==success", "/flows", "/flows?orderby=lastRunDetails.id"]
)
async def test_a_page_asks_the_store_as_often_for_many_items_as_for_few(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    asked = Counter[str]()

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(service.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return method(*arguments, **options)

        return call

    for name in ("find_runs", "newest_receipts", "newest_runs", "object", "objects", "run"):
        monkeypatch.setattr(service.store, name, counted(name))
    times, sizes = [], []
    flow = service.registry.get(FLOWS, await service.flow())
    for number in range(12):
        flow_id = f"{flow.id[:-2]}{number:02}"
        service.store.create_object(FLOWS, flow_id, flow.document, None, flow.created_at)
        run = run_of(flow_id, number)
        tally = Tally(input=3, output=2, failed=1)
        service.store.save_run(replace(run, tally=tally, batch_ids=(f"batch-{number}",)))
        if number in {2, 11}:
            asked.clear()
            sizes.append(len((await service.ask("GET", path))["items"]))
            times.append(dict(asked))
    assert sizes in ([3, 12], [4, 13])
    assert times[0] == times[1]


async def test_lists_of_runs(service: Service, runs: list[Run]) -> None:
    newest = runs[::-1]
    middle = milliseconds(runs[5])
    for query, found in (
        ("", newest),
        ("property=flowId==flow-1", [run for run in newest if run.flow_id == "flow-1"]),
        ("property=flowId==flow-1,FLOW-0", newest),
        ("property=flowId!=flow-1", [run for run in newest if run.flow_id != "flow-1"]),
        ("property=state==inProgress", [run for run in newest if run.state is RunState.IN_PROGRESS]),
        ("property=metrics.statusSummary.status==Failed", [run for run in newest if run.state is RunState.FAILED]),
        ("property=state==Failed&property=state==success", []),
        ("property=state==nonsense", []),
        (f"property=metrics.durationSummary.startedAtUTC>{middle}", newest[:6]),
        (f"property=metrics.durationSummary.startedAtUTC>={middle}", newest[:7]),
        (f"property=createdAt<{middle}", newest[7:]),
        (f"property=createdAt<={middle}&property=createdAt>={middle}", [runs[5]]),
        (f"property=createdAt=={middle}", [runs[5]]),
        ("property=state==scheduled", []),
        ("property=flowName==flow 0", [run for run in newest if run.flow_name == "Flow 0"]),
        ("orderby=createdAt", runs),
        ("orderby=-metrics.durationSummary.startedAtUTC", newest),
    ):
        for size in (5, 100):
            answer = await service.ask("GET", f"/runs?{query}&limit={size}")
            seen = answer["items"]
            while answer["_links"]:
                href = answer["_links"]["next"]["href"]
                assert href.count("=") == 1
                answer = await service.ask("GET", href)
                seen += answer["items"]
            assert [item["id"] for item in seen] == [run.id for run in found], query
        assert await service.ask("GET", f"/runs?{query}&count=True") == {"count": len(found)}
    assert (await service.ask("GET", "/runs?orderby=flowName", status=400))["type"].endswith("1433-400")
    assert (await service.ask("GET", "/runs?property=other==1", status=400))["type"].endswith("1449-400")


async def test_a_run_that_has_not_begun_is_scheduled(service: Service) -> None:
    run = replace(run_of("flow-1", 1, RunState.IN_PROGRESS), extra={QUEUED: "true"})
    service.store.save_run(run)
    assert (await service.read(f"/runs/{run.id}"))["metrics"]["statusSummary"]["status"] == "scheduled"
    for state, found in (("scheduled", 1), ("inProgress", 0), ("inProgress,Scheduled", 1), ("success", 0)):
        assert await service.ask("GET", f"/runs?property=state=={state}&count=true") == {"count": found}


async def test_a_run_leads_to_what_it_used_and_wrote(service: Service) -> None:
    flow_id = await service.flow()
    flow = await service.read(f"/flows/{flow_id}")
    loads = [service.store.begin_load(flow_id, date(2024, 3, day), "run", NOW, 0) for day in (1, 2)]
    for load, failed in zip(loads, (1, 0), strict=True):
        tally = Tally(input=2, output=2 - failed, failed=failed)
        service.store.save_load(load, LoadState.COMMITTING)
        service.store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load, tally=tally))
    batch_ids = tuple(load.batch_id for load in loads)
    run = replace(run_of(flow_id, 1), batch_ids=batch_ids, tally=Tally(input=4, output=3, failed=1))
    service.store.save_run(run)
    copied, promoted = (await service.read(f"/runs/{run.id}"))["activities"]
    assert copied["sourceInfo"][0]["id"] == flow["sourceConnectionIds"][0]
    assert promoted["targetInfo"][0]["id"] == flow["targetConnectionIds"][0]
    manifest = promoted["statusSummary"]["extensions"]["manifest"]
    path = f"/data/foundation/export/batches/{batch_ids[0]}/meta?path=row_errors"
    assert manifest["failedRecords"] == str(service.client.make_url("/")).rstrip("/") + path


async def test_runs_of_one_flow(service: Service) -> None:
    flow_id = await service.flow()
    for number in range(3):
        service.store.save_run(run_of(flow_id, number))
    service.store.save_run(run_of("another", 9))
    answer = await service.ask("GET", f"/flows/{flow_id}/runs?limit=2")
    rest = await service.ask("GET", answer["_links"]["next"]["href"])
    assert [item["flowId"] for item in answer["items"] + rest["items"]] == [flow_id] * 3
    assert (await service.ask("GET", f"/flows/{flow_id}/runs?property=flowId==another"))["items"] == []
    await service.ask("GET", "/flows/nobody/runs", status=404)
    await service.ask("GET", "/runs/nobody", status=404)


# What is wrong with requests


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'"x"', b'{"name": NaN}', b"\xff", b'{"name": "\\ud800"}', b"[" * 3000, b"", b"null", b" "]
)
@pytest.mark.parametrize("kind", ["connections", "sourceConnections", "targetConnections", "flows", "runs"])
async def test_a_bad_body_is_400(service: Service, kind: str, body: bytes) -> None:
    assert (await service.ask("POST", f"/{kind}", body, status=400))["status"] == 400


@pytest.mark.parametrize("value", [None, True, 1, -1.5, "x", [], [1], [{}], {}, {"x": None}])
@pytest.mark.parametrize("kind", ["connections", "sourceConnections", "targetConnections", "flows", "runs"])
async def test_a_value_of_a_wrong_kind_is_400(service: Service, kind: str, value: object) -> None:
    flow_id = await service.flow()
    flow = await service.read(f"/flows/{flow_id}")
    service.registry.delete(FLOWS, flow_id)
    base = await service.create("connections", connection())
    bodies = {
        "connections": connection(),
        "sourceConnections": source_of(base),
        "targetConnections": target_of("more"),
        "flows": {
            "name": "x",
            "flowSpec": {"id": FLOW_SPEC, "version": "1.0"},
            **{key: flow[key] for key in ("sourceConnectionIds", "targetConnectionIds", "transformations")},
            "scheduleParams": {"startTime": 1, "frequency": "minute", "interval": 15},
            "options": {},
            "labels": [],
            "description": "",
        },
        "runs": {"flowId": "x", "params": {"windowStartTime": 1}},
    }
    body = bodies[kind]
    places: list[tuple[str | int, ...]] = [(key,) for key in body]
    places += [(key, inner) for key, inside in body.items() if isinstance(inside, dict) for inner in inside]
    places += [(key, 0) for key, inside in body.items() if isinstance(inside, list) and inside]
    for place in places:
        changed = json.loads(json.dumps(body))
        node: Any = changed
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value
        async with service.client.post(f"{BASE}/{kind}", json=changed) as answer:
            assert answer.status in (201, 400), (place, await answer.text())


@pytest.mark.parametrize("object_id", ["..%2f..%2fetc%2fpasswd", "%00", "a%20b", "x" * 500, "%F0%9F%92%A9", "%ff"])
async def test_what_cannot_be_an_id_is_404(service: Service, object_id: str) -> None:
    for kind in ("connections", "flows", "runs", "flowSpecs"):
        refused = await service.ask("GET", f"/{kind}/{object_id}", status=404)
        assert refused["report"]["id"].isascii()


# Problems


def test_a_problem_has_the_shape_of_the_sample() -> None:
    sample = SPECS.parent / "facts" / "aep_samples" / "errors.json"
    missing = ApiError(404, "FLOW-1439-404", "Resource not found", "m", resource_type="flows", resource_id="i")
    document = problem_document(missing, "r")
    assert document["report"] == {"detailed-message": "m", "request-id": "r", "id": "i", "type": "flows"}
    assert (document["errorMessage"], document["errorDetails"], document["status"]) == ("m", "m", 404)
    assert problem_document(gateway(401, "401013", "x"), "r") == {"error_code": "401013", "message": "x"}
    if not sample.exists():
        pytest.skip("the samples are not beside the checkout")
    bodies = json.loads(sample.read_text())["bodies"]
    assert document.keys() == bodies["flows404"].keys()
    assert document["report"].keys() == bodies["flows404"]["report"].keys()
    assert document["type"] == bodies["flows404"]["type"]
