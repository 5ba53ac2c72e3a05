"""Catalog and Schema Registry: datasets, schemas, and how batches ended."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from ulid import ULID

from tests import support
from tests.support import NOON, receipt_of
from tests.test_http_app import Service, problem_of, serving
from worker.http.catalog import find_batch
from worker.http.problems import ApiError
from worker.http.schema_registry import accepted, flattened, without_texts
from worker.model import LoadState, Run, RunState, Tally
from worker.store import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from worker.model import Load

CATALOG = "/data/foundation/catalog"
REGISTRY = "/data/foundation/schemaregistry"
FULL = "application/vnd.adobe.xed-full+json; version=1"
CLASS = "https://ns.adobe.com/xdm/context/experienceevent"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Events",
    "description": "What people did",
    "definitions": {
        "own": {
            "properties": {
                "_tenant": {
                    "type": "object",
                    "title": "Own fields",
                    "properties": {
                        "title": {"type": "string", "title": "A field that is called title"},
                        "price": {"type": "number", "meta:xdmType": "double"},
                    },
                }
            }
        }
    },
    "allOf": [{"$ref": CLASS}, {"$ref": "#/definitions/own"}],
}
DAY = date(2024, 3, 1)


def run_of(number: int = 1, **changes: Any) -> Run:
    known = {"id": f"run-{number}", "started_at": NOON + timedelta(hours=number), "last_day": DAY + timedelta(days=2)}
    return support.run_of(**{**known, **changes})


def tally_of(rows: int = 3, failed: int = 1) -> Tally:
    return Tally(input=rows + failed, output=rows, failed=failed)


def begun(store: MemoryStore, run: Run, day: date = DAY) -> Load:
    store.save_run(run)
    return store.begin_load(run.flow_id, day, run.id, run.started_at + timedelta(minutes=1), 0)


def committed(store: MemoryStore, run: Run, load: Load, **counts: int) -> Run:
    receipt = receipt_of(load, tally=tally_of(**counts))
    store.save_load(load, LoadState.COMMITTING)
    store.save_load(load, LoadState.SUCCEEDED, receipt=receipt)
    ended = replace(
        run,
        state=RunState.SUCCESS,
        completed_at=receipt.committed_at,
        batch_ids=(*run.batch_ids, load.batch_id),
    )
    store.save_run(ended)
    return ended


# Schemas


async def test_a_schema_is_made_and_looked_up_in_all_its_names_and_forms(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        made = await service.json("POST", f"{REGISTRY}/tenant/schemas", json=SCHEMA, status=201)
        assert re.fullmatch(r"https://ns\.adobe\.com/\w+/schemas/[0-9a-f]{48}", made["$id"])
        tenant = (await service.json("GET", f"{REGISTRY}/stats"))["tenantId"]
        assert made["$id"].split("/")[3] == tenant
        assert made["meta:altId"] == f"_{tenant}.schemas.{made['$id'].rpartition('/')[2]}"
        assert made["meta:tenantNamespace"] == f"_{tenant}"
        assert (made["title"], made["version"], made["meta:class"]) == ("Events", "1.0", CLASS)
        for name in (quote(made["$id"], safe=""), made["meta:altId"], made["$id"].rpartition("/")[2]):
            for accept in (FULL, "application/vnd.adobe.xdm-full+json;version=1", "application/json", "*/*"):
                found = await service.json("GET", f"{REGISTRY}/tenant/schemas/{name}", headers={"Accept": accept})
                assert found["$id"] == made["$id"]
                assert found["properties"]["timestamp"]["format"] == "date-time"
                assert found["properties"]["_tenant"]["properties"]["price"]["type"] == "number"
            headers = {"Accept": "application/vnd.adobe.xed+json; version=1"}
            basic = await service.json("GET", f"{REGISTRY}/tenant/schemas/{name}", headers=headers)
            assert "properties" not in basic
            assert basic["allOf"] == SCHEMA["allOf"]
            headers = {"Accept": "application/vnd.adobe.xed-full-notext+json; version=1"}
            silent = await service.json("GET", f"{REGISTRY}/tenant/schemas/{name}", headers=headers)
            assert "title" not in silent
            assert "title" not in silent["properties"]["_tenant"]
            assert silent["properties"]["_tenant"]["properties"]["title"] == {"type": "string"}
            await service.json("GET", f"{REGISTRY}/global/schemas/{name}", status=404)
        assert (await service.json("GET", f"{REGISTRY}/global/schemas"))["results"] == []
        await service.json("GET", f"{REGISTRY}/other/schemas", status=404)


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/vnd.adobe.xed+json", 400),
        ("application/vnd.adobe.xed+json; version=7", 404),
        ("application/vnd.adobe.xed+json; version=x", 406),
        ("text/html", 406),
    ],
)
async def test_accept_headers_that_are_refused(tmp_path: Path, accept: str, status: int) -> None:
    async with serving(tmp_path) as service:
        made = await service.json("POST", f"{REGISTRY}/tenant/schemas", json=SCHEMA, status=201)
        address = f"{REGISTRY}/tenant/schemas/{made['meta:altId']}"
        async with service.ask("GET", address, headers={"Accept": accept}) as response:
            assert response.status == status
            await problem_of(response)
    with pytest.raises(ApiError):
        accepted(accept)


async def test_a_schema_of_adobes_keeps_its_id(tmp_path: Path) -> None:
    address = "https://ns.adobe.com/extconndev/schemas/995dabbea86d58e3"
    async with serving(tmp_path) as service:
        made = await service.json("POST", f"{REGISTRY}/tenant/schemas", json={**SCHEMA, "$id": address}, status=201)
        assert (made["$id"], made["meta:altId"]) == (address, "_extconndev.schemas.995dabbea86d58e3")
        await service.json("POST", f"{REGISTRY}/tenant/schemas", json={**SCHEMA, "$id": address}, status=409)
        for wrong in ("x", "https://ns.adobe.com/xdm/schemas/a", "https://ns.adobe.com/a/schemas/../../b", 7):
            await service.json("POST", f"{REGISTRY}/tenant/schemas", json={**SCHEMA, "$id": wrong}, status=400)
        await service.json("GET", f"{REGISTRY}/tenant/schemas/{quote(address, safe='')}")
        await service.json("DELETE", f"{REGISTRY}/tenant/schemas/{quote(address, safe='')}", status=204)
        await service.json("DELETE", f"{REGISTRY}/tenant/schemas/{quote(address, safe='')}", status=404)


async def test_lists_of_schemas(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        titles = [f"schema {number}" for number in (3, 1, 2)]
        for title in titles:
            await service.json("POST", f"{REGISTRY}/tenant/schemas", json={**SCHEMA, "title": title}, status=201)
        brief = await service.json("GET", f"{REGISTRY}/tenant/schemas")
        assert [set(one) for one in brief["results"]] == [{"$id", "meta:altId", "version", "title"}] * 3
        headers = {"Accept": "application/vnd.adobe.xed+json"}
        full = await service.json("GET", f"{REGISTRY}/tenant/schemas", headers=headers)
        assert full["results"][0]["allOf"] == SCHEMA["allOf"]
        ordered = await service.json("GET", f"{REGISTRY}/tenant/schemas?orderby=-title&limit=2")
        assert [one["title"] for one in ordered["results"]] == ["schema 3", "schema 2"]
        following = quote(ordered["_page"]["next"], safe="")
        rest = await service.json("GET", f"{REGISTRY}/tenant/schemas?orderby=-title&limit=2&start={following}")
        assert [one["title"] for one in rest["results"]] == ["schema 1"]
        assert rest["_page"]["next"] is None
        path = f"{REGISTRY}/tenant/schemas?property=meta:extends!=https://ns.adobe.com/xdm/data/adhoc"
        assert len((await service.json("GET", path))["results"]) == 3
        assert (await service.json("GET", f"{REGISTRY}/tenant/schemas?property=title==schema%201"))["_page"][
            "count"
        ] == 1
        await service.json("GET", f"{REGISTRY}/tenant/schemas?orderby=x", status=400)
        await service.json("GET", f"{REGISTRY}/tenant/schemas?limit=x", status=400)


def laughs(levels: int) -> dict[str, Any]:
    """A schema whose fields double with every level."""
    definitions: dict[str, Any] = {"d0": {"properties": {"a": {"type": "string"}}}}
    for level in range(1, levels):
        twice = {"$ref": f"#/definitions/d{level - 1}"}
        definitions[f"d{level}"] = {"properties": {"a": twice, "b": twice}}
    return {"title": "t", "definitions": definitions, "allOf": [{"$ref": f"#/definitions/d{levels - 1}"}]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": ""},
        {"title": "x" * 1001},
        {"title": "t", "type": "string"},
        {"title": "t", "description": 1},
        {"title": "t", "properties": []},
        {"title": "t", "properties": {"a": 1}, "allOf": {}},
        {"title": "t", "properties": {"a": {}}, "required": "a"},
        {"title": "t", "allOf": [{"$ref": "#/definitions/none"}]},
        {"title": "t", "properties": {"a": {}}, "allOf": [{"$ref": "#/allOf/0"}]},
        {"title": "t", "definitions": {"a": {"properties": {"b": {"$ref": "#/definitions/a"}}}}, "allOf": []},
        laughs(40),
    ],
)
async def test_what_makes_no_schema_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path) as service:
        await service.json("POST", f"{REGISTRY}/tenant/schemas", json=body, status=400)
        assert (await service.json("GET", f"{REGISTRY}/stats"))["counts"]["schemas"] == 0


async def test_schemas_that_refer_to_one_another_without_an_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        before = None
        for number in range(30):
            address = f"https://ns.adobe.com/t/schemas/s{number}"
            twice = {"$ref": before} if before else {"type": "string"}
            body = {"$id": address, "title": "t", "properties": {"a": twice, "b": twice}}
            async with service.ask("POST", f"{REGISTRY}/tenant/schemas", json=body) as response:
                assert response.status in (201, 400)
                if response.status == 400:
                    break
            before = address
        else:
            pytest.fail("a few lines stand for more than fits into memory")
        assert 10 < number < 20


def test_what_allof_and_references_add() -> None:
    schema = {
        "title": "t",
        "definitions": {"x/y": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]}},
        "properties": {"o": {"properties": {"c": {"type": "string"}}}, "a": {"type": "number"}},
        "required": ["a"],
        "allOf": [
            {"$ref": "#/definitions/x~1y"},
            {"properties": {"o": {"type": "object", "properties": {"d": {"type": "string"}}}}},
        ],
    }
    found = flattened(schema)
    assert found["required"] == ["a", "b"]
    assert found["properties"]["a"]["type"] == "number"
    assert found["properties"]["b"] == {"type": "integer"}
    assert found["properties"]["o"]["properties"] == {"c": {"type": "string"}, "d": {"type": "string"}}
    assert "allOf" not in found
    assert without_texts({"title": "t", "description": "d"}, "-full-desc") == {"description": "d"}


# Datasets


async def test_a_dataset_is_made_read_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        schema = await service.json("POST", f"{REGISTRY}/tenant/schemas", json=SCHEMA, status=201)
        body = {
            "name": "Events",
            "description": "All of them",
            "schemaRef": {"id": schema["$id"], "contentType": FULL},
            "tags": {"unifiedProfile": ["enabled: true"]},
            "fileDescription": {"format": "parquet"},
            "id": "mine",
            "imsOrg": "mine",
            "created": 1,
        }
        async with service.ask("POST", f"{CATALOG}/dataSets?requestDataSource=False", json=body) as response:
            assert response.status == 201
            (reference,) = await response.json()
            location = response.headers["Location"]
        match = re.fullmatch("@/dataSets/([0-9a-f]{24})", reference)
        assert match is not None
        dataset_id = match[1]
        ((key, found),) = (await service.json("GET", location)).items()
        assert key == dataset_id
        assert (found["name"], found["schemaRef"], found["tags"]) == (body["name"], body["schemaRef"], body["tags"])
        assert found["imsOrg"] != "mine"
        assert found["created"] == found["updated"] > 1_600_000_000_000
        listed = await service.json("GET", f"{CATALOG}/dataSets")
        assert listed == {dataset_id: found}
        chosen = await service.json("GET", f"{location}?properties=name,created")
        assert set(chosen[dataset_id]) == {"name", "created"}
        # its schema gives the columns their types
        schema_of = service.registry.schema_of(dataset_id)
        assert schema_of is not None
        assert str(schema_of.type_of(("_tenant", "price"))) == "double"
        name = quote(schema["$id"], safe="")
        await service.json("DELETE", f"{REGISTRY}/tenant/schemas/{name}", status=400)
        assert await service.json("DELETE", location) == [reference]
        await service.json("GET", location, status=404)
        await service.json("DELETE", f"{REGISTRY}/tenant/schemas/{name}", status=204)


async def test_lists_of_datasets(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for number in range(25):
            await service.json("POST", f"{CATALOG}/dataSets", json={"name": f"set {number:02d}"}, status=201)
        assert len(await service.json("GET", f"{CATALOG}/dataSets")) == 20
        assert len(await service.json("GET", f"{CATALOG}/dataSets?limit=100")) == 25
        page = await service.json("GET", f"{CATALOG}/dataSets?orderBy=desc:name&limit=3&start=2")
        assert [one["name"] for one in page.values()] == ["set 22", "set 21", "set 20"]
        for query in ("name=set%2007", "property=name==set%2007"):
            assert [one["name"] for one in (await service.json("GET", f"{CATALOG}/dataSets?{query}")).values()] == [
                "set 07"
            ]
        for wrong in ("orderBy=name", "limit=x", "start=-1", "property=x"):
            await service.json("GET", f"{CATALOG}/dataSets?{wrong}", status=400)


@pytest.mark.parametrize(
    "body",
    [
        {"name": 1},
        {"name": "x" * 1001},
        {"tags": []},
        {"tags": {"a": "b"}},
        {"tags": {"a": [1]}},
        {"enableErrorDiagnostics": "true"},
        {"fileDescription": "parquet"},
        {"schemaRef": "x"},
        {"schemaRef": {}},
        {"schemaRef": {"id": "https://ns.adobe.com/tenant/schemas/unknown"}},
        {"schemaRef": {"id": "https://ns.adobe.com/xdm/context/profile", "contentType": 1}},
    ],
)
async def test_what_makes_no_dataset_is_refused(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path) as service:
        await service.json("POST", f"{CATALOG}/dataSets", json=body, status=400)
        assert await service.json("GET", f"{CATALOG}/dataSets") == {}


async def test_a_dataset_of_adobes_own_schema(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        body = {"schemaRef": {"id": "https://ns.adobe.com/xdm/context/profile"}}
        await service.json("POST", f"{CATALOG}/dataSets", json=body, status=201)


# Batches


async def batch(service: Service, batch_id: str) -> dict[str, Any]:
    answer = await service.json("GET", f"{CATALOG}/batches/{batch_id}")
    assert set(answer) == {batch_id}
    found: dict[str, Any] = answer[batch_id]
    return found


async def test_a_batch_in_each_of_its_states(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        store, run = service.store, run_of()
        load = begun(store, run)
        found = await batch(service, load.batch_id)
        assert (found["status"], found["errors"]) == ("processing", [])
        assert "metrics" not in found
        store.save_load(load, LoadState.COMMITTING)
        assert (await batch(service, load.batch_id))["status"] == "staging"
        store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load, tally=tally_of()))
        # the run's record is written after the load's
        assert (await batch(service, load.batch_id))["status"] == "success"
        store.save_run(
            replace(run, state=RunState.SUCCESS, batch_ids=(load.batch_id,), completed_at=NOON + timedelta(hours=2))
        )
        found = await batch(service, load.batch_id)
        assert found["status"] == "success"
        assert found["metrics"] == {
            "inputByteSize": 1234,
            "inputFileCount": 1,
            "inputRecordCount": 4,
            "outputByteSize": 567,
            "outputFileCount": 1,
            "outputRecordCount": 3,
            "failedRecordCount": 1,
        }
        assert found["relatedObjects"] == [{"type": "dataSet", "id": "events"}]
        assert found["completed"] - found["started"] == 60_000
        assert found["errors"][0]["recordCount"] == 1
        assert found["tags"]["day"] == ["2024-03-01"]


async def test_a_batch_that_failed_and_one_that_was_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        store = service.store
        run = run_of(1)
        first = begun(store, run)
        committed(store, run, first)
        later = run_of(2)
        failed = begun(store, later)
        store.save_load(failed, LoadState.FAILED, error_code="CONNECTOR-1001-503", error_message="gone")
        store.save_run(replace(later, state=RunState.FAILED, completed_at=later.started_at + timedelta(minutes=5)))
        found = await batch(service, failed.batch_id)
        assert (found["status"], found["errors"]) == ("failed", [{"code": "CONNECTOR-1001-503", "description": "gone"}])
        assert (await batch(service, first.batch_id))["status"] == "success"
        last = run_of(3)
        committed(store, last, begun(store, last))
        found = await batch(service, first.batch_id)
        assert found["status"] == "inactive"
        assert (found["tags"]["day"], found["errors"]) == (["2024-03-01"], [])
        assert found["metrics"]["inputRecordCount"] == 4


async def test_batches_that_are_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for name in (str(ULID()), "7" * 26, "8" + "Z" * 25, "Z" * 26, "x", "..%2f..", "%00"):
            async with service.ask("GET", f"{CATALOG}/batches/{name}") as response:
                assert response.status == 404
                assert (await problem_of(response))["report"]["type"] == "batches"


def test_a_batch_is_found_among_many_runs() -> None:
    store = MemoryStore()
    loads = []
    for number in range(300):
        run = run_of(number, flow_id=f"flow-{number % 7}")
        load = begun(store, run)
        committed(store, run, load)
        loads.append(load)
    for load in loads[::37]:
        found = find_batch(store, load.batch_id)
        assert found is not None
        assert found.run.id == load.run_id


def test_a_batch_is_found_however_long_ago_its_run_was_and_none_whose_run_is_lost() -> None:
    store = MemoryStore()
    run = run_of()
    load = begun(store, run)
    committed(store, run, load)
    for number in range(2, 2500):
        store.save_run(run_of(number, flow_id="other"))
    found = find_batch(store, load.batch_id)
    assert found is not None
    assert (found.run.id, found.day, found.is_newest) == (run.id, DAY, True)
    lost = replace(receipt_of(load), batch_id=str(ULID()), run_id="lost", generation=9)
    store.adopt(lost)
    assert find_batch(store, lost.batch_id) is None
    found = find_batch(store, load.batch_id)
    assert found is not None
    assert found.status == "inactive"
