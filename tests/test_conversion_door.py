"""Data Prep: the three forms of a mapping set, its versions, its answers, and the client that people use for it."""

from __future__ import annotations

import asyncio
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_http_app import CLIENT, SECRET, bearer, problem_of, serving
from worker.http import conversion
from worker.mapping.functions import REGISTRY

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
        {"mappings": [{"sourceType": "EXPRESSION", "source": "1 +", "destination": "a"}]},
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


# Preview, and the language


LINE = {"event": "Signed up", "properties": {"$insert_id": "i1", "distinct_id": "d1", "price": "12.50", "tags": ["a"]}}
WRAPPED = {"data": {"event_name": "Signed up", "insert_id": "i1", "distinct_id": "d1", "price": "12.50", "tags": ["a"]}}
FLAT = {"event": "Signed up", "insert_id": "i1", "distinct_id": "d1", "price": "12.50", "tags": ["a"]}
PREVIEW_SET: dict[str, Any] = {
    "mappings": [
        {"sourceType": "ATTRIBUTE", "source": "data.event_name", "destination": "name"},
        {"sourceType": "ATTRIBUTE", "source": "data.insert_id", "destination": "_tenant.id"},
        {"sourceType": "ATTRIBUTE", "source": "data.nothing", "destination": "_tenant.inner.nothing"},
        {"sourceType": "EXPRESSION", "source": "data.price + 1.0", "destination": "_tenant.price"},
        {"sourceType": "EXPRESSION", "source": "data.tags", "destination": "_tenant.tags[*]"},
        {"sourceType": "STATIC", "source": "web", "destination": "origin"},
        {"sourceType": "EXPRESSION", "source": "_flow.timezone", "destination": "zone"},
    ]
}


async def preview(service: Any, data: object, mapping_set: object, *, status: int = 200) -> Any:
    return await service.json("POST", f"{BASE}/preview", json={"data": data, "mappingSet": mapping_set}, status=status)


async def test_a_preview_maps_each_shape_of_a_record(tmp_path: Path) -> None:
    mapped = {
        "name": "Signed up",
        "_tenant": {"id": "i1", "price": "13.5", "tags": ["a"]},
        "origin": "web",
        "zone": "UTC",
    }
    async with serving(tmp_path) as service:
        for record in (LINE, WRAPPED, FLAT):
            assert await preview(service, record, PREVIEW_SET) == [{"data": mapped, "errors": None}]
        assert await preview(service, [LINE, FLAT, {}], PREVIEW_SET) == [
            *[{"data": mapped, "errors": None}] * 2,
            {"data": {"origin": "web", "zone": "UTC"}, "errors": None},
        ]
        assert await preview(service, [], PREVIEW_SET) == []


async def test_the_preview_of_adobes_document(tmp_path: Path) -> None:
    pairs = (("id", "_id"), ("firstName", "person.name.firstName"), ("lastName", "person.name.lastName"))
    reference = {"id": "https://ns.adobe.com/stardust/schemas/89abc189258b1cb1a816d8f2b2341a6d", "contentType": FULL}
    mapping_set = {
        "outputSchema": {"schemaRef": reference},
        "mappings": [{"sourceType": "ATTRIBUTE", "source": one, "destination": other} for one, other in pairs],
    }
    record = {"id": 1234, "firstName": "Jim", "lastName": "Seltzer"}
    async with serving(tmp_path) as service:
        assert await preview(service, record, mapping_set) == [
            {"data": {"_id": "1234", "person": {"name": {"firstName": "Jim", "lastName": "Seltzer"}}}, "errors": None}
        ]


async def test_a_preview_by_a_schema_tells_what_is_wrong_with_which_record(tmp_path: Path) -> None:
    records = [
        {"distinct_id": "d1", "time": 5, "at": "2024-02-29T10:00:00.250Z"},
        {"distinct_id": "d2", "time": "soon"},
        {"time": 1.0, "properties": {}},
    ]
    schema = {
        **SCHEMA,
        "properties": {**SCHEMA["properties"], "at": {"type": "string", "format": "date-time"}},
    }
    at = {"sourceType": "ATTRIBUTE", "source": "at", "destination": "at"}
    total = {"sourceType": "EXPRESSION", "source": "to_integer(time) / 5", "destination": "_tenant.origin"}
    mapping_set = {**TUTORIAL, "mappings": [*TUTORIAL["mappings"], at, total]}
    async with serving(tmp_path) as service:
        await service.json("POST", "/data/foundation/schemaregistry/tenant/schemas", json=schema, status=201)
        good, warned, rejected = await preview(service, records, mapping_set)
        assert good == {
            "data": {"_tenant": {"distinct_id": "d1", "time": 5, "origin": "1"}, "at": "2024-02-29T10:00:00.250000Z"},
            "errors": None,
        }
        assert warned["data"] == {"_tenant": {"distinct_id": "d2"}}
        misfit, failed = warned["errors"]
        assert misfit == {
            "exception": "_tenant.time: the value does not fit the type int64; the field is null.",
            "destination": "_tenant.time",
            "source": "data.time",
        }
        assert (failed["destination"], failed["source"]) == ("_tenant.origin", "to_integer(time) / 5")
        assert failed["exception"].startswith("_tenant.origin: to_integer")
        assert rejected["data"] == {"_tenant": {"time": 1, "origin": "0"}}
        assert rejected["errors"] == [
            {
                "exception": "The required field _tenant.distinct_id is missing or null. The row would be rejected.",
                "destination": "_tenant.distinct_id",
                "source": "data.distinct_id",
            }
        ]
        refused = await preview(service, {}, {**TUTORIAL, "mappings": TUTORIAL["mappings"][1:]}, status=400)
        assert "_tenant.distinct_id" in refused["errorMessage"]


async def test_an_error_stands_with_its_record_among_many(tmp_path: Path) -> None:
    mappings = [
        {"sourceType": "EXPRESSION", "source": "100 / data.n", "destination": "share"},
        {"sourceType": "ATTRIBUTE", "source": "data.text", "destination": "text"},
    ]
    records: list[dict[str, Any]] = [{"n": number % 97, "text": "x" * (number % 50) * 10} for number in range(1000)]
    async with serving(tmp_path) as service:
        rows = await preview(service, records, {"mappings": mappings})
    assert [row["data"].get("share") for row in rows] == [
        str(100 // record["n"]) if record["n"] else None for record in records
    ]
    assert [row["data"]["text"] for row in rows] == [record["text"] for record in records]
    assert [bool(row["errors"]) for row in rows] == [record["n"] == 0 for record in records]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"data": {}}, "has no mappingSet"),
        ({"data": {}, "mappingSet": []}, "has no mappingSet"),
        ({"mappingSet": PREVIEW_SET}, "data is neither"),
        ({"data": "{}", "mappingSet": PREVIEW_SET}, "data is neither"),
        ({"data": [{}, 5], "mappingSet": PREVIEW_SET}, "Record 2 of data"),
        ({"data": [{}] * 1001, "mappingSet": PREVIEW_SET}, "data has 1001 records; up to 1000"),
        ({"data": {}, "mappingSet": {"mappings": []}}, "has no mappings"),
        ({"data": {}, "mappingSet": {"mappings": [{"source": "a" * 4096}] * 100}}, "more than 131072 characters"),
        ({"data": {}, "mappingSet": {"mappings": PREVIEW_SET["mappings"] * 200}}, "Up to 1000 mappings"),
        (
            {
                "data": {},
                "mappingSet": {"mappings": [{"sourceType": "EXPRESSION", "source": "a +", "destination": "a"}]},
            },
            "mapping 1 → a: column 4",
        ),
    ],
)
async def test_a_preview_of_something_else_is_refused(tmp_path: Path, body: dict[str, Any], words: str) -> None:
    async with serving(tmp_path) as service:
        async with service.ask("POST", f"{BASE}/preview", json=body) as response:
            assert response.status == 400
            assert words in (await problem_of(response))["errorMessage"]
        await service.json("POST", f"{BASE}/preview", status=400)


async def test_a_preview_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [{"sourceType": "ATTRIBUTE", "source": "text", "destination": f"a{number}"} for number in range(1000)]
    doubled = " + ".join(["text"] * 16)
    grown = [
        {"sourceType": "EXPRESSION", "source": f"[{doubled}]", "destination": f"a{number}"} for number in range(60)
    ]
    squared = [{"sourceType": "EXPRESSION", "source": "replacestr(text, 'x', text)", "destination": "a"}]
    long = [{"sourceType": "EXPRESSION", "source": "a + " * 1000 + "a", "destination": f"a{n}"} for n in range(40)]
    record = {"text": "x" * 60_000}
    async with serving(tmp_path) as service:
        for mappings in (copies, grown):
            refused = await preview(service, [record] * 10, {"mappings": mappings}, status=400)
            assert "more than 16777216 bytes" in refused["errorMessage"]
        assert len(await preview(service, [{"text": "x" * 1000}] * 10, {"mappings": squared})) == 10
        refused = await preview(service, [{"text": "x" * 1000}] * 20, {"mappings": squared}, status=400)
        assert "more than 16777216 bytes" in refused["errorMessage"]
        for method, path in (("POST", BASE), ("POST", f"{BASE}/validate"), ("PUT", f"{BASE}/none")):
            refused = await service.json(method, path, json={"mappings": long}, status=400)
            assert "more than 131072 characters" in refused["errorMessage"]
        monkeypatch.setattr(conversion, "EVALUATION_SECONDS", -1.0)
        refused = await preview(service, FLAT, PREVIEW_SET, status=400)
        assert "takes longer" in refused["errorMessage"]


async def test_a_validation_names_the_column_of_an_expression(tmp_path: Path) -> None:
    mappings = [
        {"source": "data.a", "destination": "a"},
        {"sourceType": "EXPRESSION", "source": "data.a + ", "destination": "b"},
        {"sourceType": "EXPRESSION", "source": "data.a == 1 ? 'x' : nothing(data.b)", "destination": "c"},
        {"sourceType": "EXPRESSION", "source": "1 / 0", "destination": "d"},
        {"sourceType": "EXPRESSION", "source": "1 + 1", "destination": "e"},
        {"sourceType": "EXPRESSION", "source": "data.${a", "destination": "f"},
    ]
    async with serving(tmp_path) as service:
        answer = await service.json("POST", f"{BASE}/validate", json={"mappings": mappings})
    found = answer["validationResponse"]
    assert [one["status"] for one in found] == ["SUCCESS", "FAILED", "FAILED", "FAILED", "SUCCESS", "FAILED"]
    told = [one["errors"] and one["errors"][0]["exception"] for one in found]
    for number, column in ((2, 9), (3, 21), (4, 3), (6, 6)):
        assert told[number - 1].startswith(
            f"mapping {number} → {mappings[number - 1]['destination']}: column {column}:"
        )
    assert found[2]["errors"][0]["source"] == mappings[2]["source"]


LANGUAGE = "/data/foundation/conversion/languages/el"


async def test_an_expression_is_validated(tmp_path: Path) -> None:
    good = {"validationStatus": "succeeded", "error": "none"}
    async with serving(tmp_path) as service:

        async def verdict(**body: object) -> Any:
            return await service.json("POST", f"{LANGUAGE}/validate", json=body)

        assert await verdict(expression="data.a + 1") == good
        # as in the example of Adobe's document
        assert await verdict(expression={"expression": "iif(a, 'x', 'y')"}) == good
        for expression, words in (
            ("a +", "column 4: expected a value"),
            ("", "column 1: the expression is empty"),
            ("iff(a, 1, 2)", "did you mean `iif`?"),
            ("iif(a)", "It is iif(EXPRESSION, TRUE_VALUE, FALSE_VALUE)."),
            ("aa_get_event_id(a)", "cannot be used here"),
            ("[" * 4096, "column 4097"),
            ("a" * 4097, "4096 are the most"),
            ("1 / 0", "division by zero"),
        ):
            found = await verdict(expression=expression)
            assert found["validationStatus"] == "failed"
            assert words in found["error"]

        made = await service.json("POST", BASE, json=TUTORIAL)
        assert await verdict(expression="a", mappingSetId=made["id"], sampleDataType="application/json") == good
        assert await verdict(expression="a / b", sampleData='{"a": 1, "b": 2}') == good
        assert await verdict(expression="a / b", sampleData="[]") == good
        found = await verdict(expression="data.a / $b", sampleData='[{"a": 1, "$b": 2}, {"data": {"a": 1, "b": 0}}]')
        assert found["validationStatus"] == "succeeded"
        found = await verdict(
            expression="data.a / data.b", sampleData='[{"a": 1, "$b": 2}, {"data": {"a": 1, "b": 0}}]'
        )
        assert found == {"validationStatus": "failed", "error": "record 2: /: division by zero"}
        assert await verdict(expression="_flow.projectId + event", sampleData='{"event": "x"}') == good

        for wrong in (
            {},
            {"expression": 5},
            {"expression": {"expression": None}},
            {"expression": "a", "mappingSetId": 5},
            {"expression": "a", "sampleData": {"a": 1}},
            {"expression": "a", "sampleData": "{"},
            {"expression": "a", "sampleData": "5"},
            {"expression": "a", "sampleData": "[" * 200 + "]" * 200},
            {"expression": "a", "sampleData": "{}", "sampleDataType": "xml"},
        ):
            problem = await service.json("POST", f"{LANGUAGE}/validate", json=wrong, status=400)
            assert "request body is not JSON" not in problem["errorMessage"]
        unknown = {"expression": "a", "mappingSetId": "nothing"}
        await service.json("POST", f"{LANGUAGE}/validate", json=unknown, status=404)


async def test_functions_and_operators_are_listed_as_adobe_does(tmp_path: Path) -> None:
    async with serving(tmp_path, closed=True) as service:
        headers = bearer(await service.login())
        await service.json("GET", f"{LANGUAGE}/functions", status=403)
        functions = await service.json("GET", f"{LANGUAGE}/functions", headers=headers)
        operators = await service.json("GET", f"{LANGUAGE}/operators", headers=headers)
    by_name = {one["function"]: one for one in functions}
    assert len(by_name) == len(functions)
    assert by_name.keys() == REGISTRY.by_name.keys()
    for one in functions:
        assert list(one) == [
            *("category", "function", "description", "syntax", "returns", "returnType"),
            *("example", "result", "params", "since"),
        ]
    assert by_name["to_array"]["params"] == [
        {
            "name": "INCLUDE_NULLS",
            "description": by_name["to_array"]["params"][0]["description"],
            "type": "object",
            "dataType": "java.lang.Object",
            "position": 1,
        },
        {**by_name["to_array"]["params"][1], "dataType": "[Ljava.lang.Object;", "position": 2},
    ]
    iif = by_name["iif"]
    assert iif["syntax"] == "Object iif(EXPRESSION, TRUE_VALUE, FALSE_VALUE)"
    assert (iif["category"], iif["returnType"], iif["result"]) == ("Logical operators", "java.lang.Object", '"True"')
    # an alias is a record of its own
    own, alias = by_name["contains_key"], by_name["is_set"]
    assert alias == {**own, "function": "is_set", "syntax": own["syntax"].replace("contains_key", "is_set")}
    complement = next(one for one in operators if one["operatorSymbol"] == "~")
    assert list(complement) == ["operatorSymbol", "methodName", "numberOfOperands", "description", "example"]
    assert (complement["methodName"], complement["numberOfOperands"]) == ("complement", 1)


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
