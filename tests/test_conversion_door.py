"""Data Prep: the three forms of a mapping set, its versions, its answers, and the client that people use for it."""

from __future__ import annotations

import asyncio
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_http_app import CLIENT, SECRET, bearer, problem_of, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = "/data/foundation/conversion/mappingSets"
SCHEMA_ID = "https://ns.adobe.com/tenant/schemas/995dabbea86d58e3"
FULL = "application/vnd.adobe.xed-full+json;version=1"

NEWER: dict[str, Any] = {
    "outputSchema": {"schemaRef": {"id": SCHEMA_ID, "contentType": FULL}},
    "mappings": [
        {"sourceType": "ATTRIBUTE", "source": "data.distinct_id", "destination": "_tenant.distinct_id"},
        {"sourceType": "STATIC", "source": "web", "destination": "_tenant.origin"},
    ],
}
TUTORIAL: dict[str, Any] = {
    "version": 0,
    "xdmSchema": SCHEMA_ID,
    "xdmVersion": "1.0",
    "id": None,
    "mappings": [
        {
            "sourceType": "ATTRIBUTE",
            "source": "data.distinct_id",
            "destination": "_tenant.distinct_id",
            "name": "distinct_id",
            "description": "Mixpanel",
        },
        {"sourceType": "ATTRIBUTE", "source": "data.time", "destination": "_tenant.time"},
    ],
}
OLDER: dict[str, Any] = {
    "version": 0,
    "xdmSchema": SCHEMA_ID,
    "mappings": [
        {
            "destinationXdmPath": "_tenant.distinct_id",
            "sourceAttribute": "data.distinct_id",
            "identity": True,
            "primaryIdentity": True,
            "identityGroup": None,
            "namespaceCode": "mixpanel",
            "version": 0,
        }
    ],
}
SCHEMA: dict[str, Any] = {
    "$id": SCHEMA_ID,
    "title": "Events",
    "type": "object",
    "properties": {
        "_tenant": {
            "type": "object",
            "properties": {
                "distinct_id": {"type": "string"},
                "time": {"type": "integer"},
                "origin": {"type": "string"},
            },
            "required": ["distinct_id"],
        }
    },
}


@pytest.mark.parametrize("body", [NEWER, TUTORIAL, OLDER])
async def test_each_form_is_made_and_read_back(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path) as service:
        made = await service.json("POST", BASE, json=body)
        assert set(made) == {"id", "version", "createdDate", "modifiedDate", "createdBy", "modifiedBy"}
        assert re.fullmatch("[0-9a-f]{32}", made["id"])
        assert made["version"] == 0
        assert made["createdDate"] == made["modifiedDate"] > 1_600_000_000_000

        read = await service.json("GET", f"{BASE}/{made['id']}")
        assert {key: read[key] for key in made} == made
        assert read["xdmSchema"] == SCHEMA_ID
        assert read["outputSchema"]["schemaRef"] == read["schemaRef"] == {"id": SCHEMA_ID, "contentType": FULL}
        first = read["mappings"][0]
        assert first["sourceType"] == "text/x.schema-path"
        assert first["source"] == first["sourceAttribute"] == "data.distinct_id"
        assert first["destination"] == first["destinationXdmPath"] == "_tenant.distinct_id"
        assert (first["matchScore"], first["functionVersion"]) == (0.0, 1)
        for key in ("identity", "primaryIdentity"):
            assert first[key] is bool(body["mappings"][0].get(key))
        for key in ("name", "description", "namespaceCode"):
            assert first.get(key) == body["mappings"][0].get(key)

        assert await service.json("GET", f"{BASE}/{made['id']}/mappings") == read["mappings"]
        assert await service.json("GET", f"{BASE}/{made['id']}/mappings/{first['id']}") == first
        assert len({one["id"] for one in read["mappings"]}) == len(read["mappings"])

        # what was read can be sent again
        again = await service.json("POST", BASE, json=read)
        assert again["id"] != made["id"]
        same = await service.json("GET", f"{BASE}/{again['id']}")
        assert [one["destination"] for one in same["mappings"]] == [one["destination"] for one in read["mappings"]]


async def test_the_path_of_the_tutorial_works_as_it_is_printed(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        made = await service.json("POST", "/conversion/mappingSets", json=TUTORIAL)
        assert (await service.json("GET", f"{BASE}/{made['id']}"))["version"] == 0


async def test_a_replaced_set_keeps_its_id_and_its_earlier_versions(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        one = f"{BASE}/{(await service.json('POST', BASE, json=TUTORIAL))['id']}"
        for version, body in ((1, NEWER), (2, OLDER)):
            replaced = await service.json("PUT", one, json=body)
            assert replaced["version"] == version
            assert len(replaced["mappings"]) == len(body["mappings"])
        assert (await service.json("GET", one))["version"] == 2
        for version, size in ((0, 2), (1, 2), (2, 1)):
            old = await service.json("GET", f"{one}?version={version}")
            assert (old["version"], len(old["mappings"]), old["id"]) == (version, size, one.rpartition("/")[2])
        await service.json("GET", f"{one}?version=3", status=404)
        await service.json("GET", f"{one}?version=-1", status=400)
        await service.json("PUT", one, json={**NEWER, "id": "another"}, status=400)
        await service.json("DELETE", one, status=204)
        for query in ("", "?version=0", "?version=2"):
            await service.json("GET", one + query, status=404)
        await service.json("DELETE", one, status=404)
        await service.json("PUT", one, json=NEWER, status=404)


async def test_lists(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        ids = []
        for number in range(12):
            body = {**NEWER, "name": f"set {number % 2}"}
            ids.append((await service.json("POST", BASE, json=body))["id"])
        listed = await service.json("GET", f"{BASE}?limit=5&start=0")
        assert listed["_page"] == {"count": 5, "limit": 5}
        found, following = [one["id"] for one in listed["data"]], listed["_links"]
        while following:
            page = await service.json("GET", following["next"]["href"])
            found += [one["id"] for one in page["data"]]
            following = page["_links"]
        assert sorted(found) == sorted(ids)
        assert len((await service.json("GET", f"{BASE}?limit=100"))["data"]) == 12
        named = await service.json("GET", f"{BASE}?limit=100&name=set%201")
        assert {one["name"] for one in named["data"]} == {"set 1"}
        assert len(named["data"]) == 6
        filtered = await service.json("GET", f"{BASE}?limit=100&property=xdmSchema=={SCHEMA_ID}")
        assert len(filtered["data"]) == 12
        assert (await service.json("GET", f"{BASE}?limit=100&property=xdmSchema==x"))["data"] == []
        for order in ("createdDate", "+createdDate", "-createdDate", "-updatedDate", "%2BupdatedDate"):
            dates = [one["createdDate"] for one in (await service.json("GET", f"{BASE}?orderBy={order}"))["data"]]
            assert dates == sorted(dates, reverse=order.startswith("-"))
        for wrong in ("limit=0", "limit=x", "limit=100000", "orderBy=name", "start=-1"):
            await service.json("GET", f"{BASE}?{wrong}", status=400)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"mappings": []},
        {"mappings": "x"},
        {"mappings": [{"source": "data.a"}]},
        {"mappings": [{"sourceType": "EXPRESSION", "source": "1 + 1", "destination": "a"}]},
        {"mappings": [{"sourceType": "OTHER", "source": "data.a", "destination": "a"}]},
        {"mappings": [{"source": "data.a", "destination": "a b"}]},
        {"mappings": [{"source": "data.a", "destination": "a"}, {"source": "data.b", "destination": "a"}]},
        {"mappings": [{"source": "data.a", "destination": "mp_date"}]},
        {"mappings": [{"source": "data.a", "destination": "a"}], "version": "x"},
    ],
)
async def test_a_wrong_set_is_refused_with_what_to_do(tmp_path: Path, body: dict[str, Any]) -> None:
    async with serving(tmp_path) as service:
        async with service.ask("POST", BASE, json=body) as response:
            if body == {"mappings": [{"source": "data.a", "destination": "a"}], "version": "x"}:
                # the first version is 0, whatever the body says
                assert response.status == 200
                return
            assert response.status == 400
            assert (await problem_of(response))["errorMessage"]
        assert (await service.json("GET", BASE))["data"] == []


async def test_a_set_is_validated_against_its_schema(tmp_path: Path) -> None:
    unknown = {**NEWER, "mappings": [{"source": "data.a", "destination": "_tenant.nothing"}, *NEWER["mappings"]]}
    incomplete = {**NEWER, "mappings": TUTORIAL["mappings"][1:]}
    async with serving(tmp_path) as service:
        assert await service.json("POST", f"{BASE}/validate", json=unknown) == {
            "validationResponse": [{"status": "SUCCESS", "errors": None}] * 3
        }
        await service.json("POST", "/data/foundation/schemaregistry/tenant/schemas", json=SCHEMA, status=201)
        for validate, status in (("False", 200), ("false", 200), ("True", 400), ("maybe", 400)):
            await service.json("POST", f"{BASE}?validate={validate}", json=unknown, status=status)
            await service.json("POST", f"{BASE}?validate={validate}", json=incomplete, status=status)
        await service.json("POST", f"{BASE}?validate=true", json=NEWER)
        answer = await service.json("POST", f"{BASE}/validate", json=unknown)
        assert [one["status"] for one in answer["validationResponse"]] == ["FAILED", "SUCCESS", "SUCCESS"]
        (error,) = answer["validationResponse"][0]["errors"]
        assert (error["destination"], error["source"]) == ("_tenant.nothing", "data.a")
        assert "nothing" in error["exception"]
        answer = await service.json("POST", f"{BASE}/validate", json=incomplete)
        assert [one["status"] for one in answer["validationResponse"]] == ["FAILED"]
        assert "distinct_id" in answer["validationResponse"][0]["errors"][0]["exception"]

        made = await service.json("POST", BASE, json=NEWER)
        assert "jsonSchema" not in (await service.json("GET", f"{BASE}/{made['id']}"))["outputSchema"]
        expanded = await service.json("GET", f"{BASE}/{made['id']}?expandSchema=True")
        assert "_tenant" in expanded["outputSchema"]["jsonSchema"]["properties"]


async def test_a_set_that_a_flow_uses_stays(tmp_path: Path) -> None:
    flow_service = "/data/foundation/flowservice"
    spec = {"id": "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb", "version": "1.0"}
    async with serving(tmp_path) as service:

        async def make(kind: str, body: dict[str, Any]) -> str:
            made: str = (await service.json("POST", f"{flow_service}/{kind}", json=body, status=201))["id"]
            return made

        auth = {"specName": "Basic Authentication", "params": {"username": "u", "password": "p"}}
        base = await make("connections", {"name": "base", "connectionSpec": spec, "auth": auth})
        params = {"projectId": "1", "timezone": "UTC"}
        source = await make(
            "sourceConnections",
            {
                "name": "source",
                "baseConnectionId": base,
                "connectionSpec": spec,
                "data": {"format": "json"},
                "params": params,
            },
        )
        target = await make(
            "targetConnections",
            {"name": "target", "connectionSpec": spec, "data": {"format": "json"}, "params": {"dataSetId": "events"}},
        )
        mapping = (await service.json("POST", BASE, json=TUTORIAL))["id"]
        flow = await make(
            "flows",
            {
                "name": "flow",
                "flowSpec": {"id": "6499120c-0b15-42dc-936e-847ea3c24d72", "version": "1.0"},
                "sourceConnectionIds": [source],
                "targetConnectionIds": [target],
                "transformations": [{"name": "Mapping", "params": {"mappingId": mapping, "mappingVersion": "0"}}],
                "scheduleParams": {"startTime": "1625040887", "frequency": "minute", "interval": 15},
            },
        )
        await service.json("DELETE", f"{BASE}/{mapping}", status=400)
        await service.json("DELETE", f"{flow_service}/flows/{flow}", status=204)
        await service.json("DELETE", f"{BASE}/{mapping}", status=204)


# The client that people use


@pytest.fixture
def aepp_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """aepp, unmodified, pointed at a service (facts, aep 7.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import aepp  # type: ignore[import-untyped]
        import aepp.config  # type: ignore[import-untyped]
        from aepp import configs

    def pointed_at(base: str) -> Any:
        configs.configure(org_id="ORG@AdobeOrg", client_id=CLIENT, secret=SECRET, scopes="a", sandbox="dev")
        monkeypatch.setitem(aepp.config.endpoints, "global", base)
        aepp.config.config_object.update(imsEndpoint=base, oauthTokenEndpointV2=f"{base}/ims/token/v3")
        return aepp

    return pointed_at


@pytest.mark.filterwarnings("ignore")
async def test_aepp_logs_in_and_keeps_mapping_sets(tmp_path: Path, aepp_at: Callable[[str], Any]) -> None:
    def life(base: str) -> dict[str, Any]:
        aepp_at(base)
        from aepp import catalog, dataprep, schema

        prep = dataprep.DataPrep()
        made = prep.createMappingSet(schemaId=SCHEMA_ID, mappingList=NEWER["mappings"])
        validated = prep.createMappingSet(mappingSet=TUTORIAL, validate=True)
        listed = prep.getMappingSets()
        rules = prep.getMappingSet(made["id"], mappingRulesOnly=True)
        replaced = prep.updateMappingSet(made["id"], rules[:1])
        mappings = prep.getMappingSetMappings(made["id"])
        one = prep.getMappingSetMapping(made["id"], mappings[0]["id"])
        deleted = prep.deleteMappingSet(validated["id"])
        schemas = schema.Schema()
        kept = schemas.createSchema({**SCHEMA, "allOf": [{"$ref": "https://ns.adobe.com/xdm/context/experienceevent"}]})
        return {
            "made": made,
            "listed": listed,
            "rules": rules,
            "replaced": replaced,
            "mappings": mappings,
            "one": one,
            "deleted": deleted,
            "left": prep.getMappingSets(),
            "schema": schemas.getSchema(kept["$id"]),
            "schemas": schemas.getSchemas(),
            "stats": schemas.getStats(),
            "dataset": catalog.Catalog().createDataSet(
                data={"name": "events", "schemaRef": {"id": kept["$id"], "contentType": FULL}}
            ),
        }

    async with serving(tmp_path, closed=True) as service:
        found = await asyncio.to_thread(life, service.base)
        assert len(found["listed"]) == 2
        assert found["rules"][0] == {
            "sourceType": "text/x.schema-path",
            "source": "data.distinct_id",
            "destination": "_tenant.distinct_id",
        }
        assert (found["replaced"]["id"], found["replaced"]["version"]) == (found["made"]["id"], 1)
        assert found["one"] == found["mappings"][0]
        assert [one["id"] for one in found["left"]] == [found["made"]["id"]]
        assert found["schema"]["properties"]["_tenant"]["properties"]["time"]["type"] == "integer"
        assert [one["title"] for one in found["schemas"]] == ["Events"]
        assert found["stats"]["tenantId"]
        assert re.fullmatch(r"@/dataSets/[0-9a-f]{24}", found["dataset"][0])
        token = await service.login()
        assert (await service.json("GET", BASE, headers=bearer(token)))["data"]
