"""The requests that Adobe's documents print, sent in their order to the service as a process.

Each request is read from the document and sent as it stands. Replaced are only: the host, the placeholders in braces,
and the ids and etags that the document prints by those that the service gave. Each answer has the status that Adobe
documents and, where the document prints it, at least the printed fields with values of the printed types. Mixpanel is
simulated, and has the events of the printed preview.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote, quote_plus
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.support import PASSWORD
from tests.test_flow_service import SPECS, curls
from tests.test_replicas import GENEROUS_SECONDS, SERVICE, Replica, ended, state_of
from worker.mixpanel.simulator import DEMO_USERNAME, Simulator, SimulatorThread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PROJECT_ID = "2671127"
"""The project of the source parameters that the documents print in base64."""
DATASET_ID = "5ef4551c52e054191a61a99f"
CLIENT_SECRET = "0123456789-canary-client"
SOURCE_PARAMS = base64.b64encode(b'{"projectId":"2671127","timezone":"Pacific Standard Time"}').decode()
NO_EVENT = '["no event"]'

PRINTED_IDS = {
    "70383d02-2777-4be7-a309-9dd6eea1b46d": "connections",
    "246d052c-da4a-494a-937f-a0d17b1c6cf5": "sourceConnections",
    "7c96c827-3ffd-460c-a573-e9558f72f263": "targetConnections",
    "bf5286a9c1ad4266baca76ba3adc9366": "mappingSets",
    "993f908f-3342-4d9c-9f3c-5aa9a189ca1a": "flows",
}
FOREIGN_IDS = ("139f6a5f-a78b-4744-9f6a-5fa78bd74431", "dd3631cd-d0ea-4fea-b631-cdd0ea6fea21")
"""Connections of other tutorials, which no step of this document makes."""
STATUSES = {"POST": 201, "GET": 200, "PATCH": 200, "DELETE": 204}
"""Adobe's OpenAPI documents; Data Prep answers 200 to what it creates."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass
class Walk:
    """One document, on its way through the service. Where it has a client, its token is known as `token`."""

    replica: Replica
    folder: Path
    mixpanel: str
    token: str | None
    ids: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def send(self, method: str, address: str, headers: Mapping[str, str], body: str | None) -> Answer:
        request = Request(
            re.sub(r"^https://[^/]+", self.replica.url, address),
            None if body is None else body.encode(),
            dict(headers),
            method=method,
        )
        try:
            with urlopen(request, timeout=GENEROUS_SECONDS) as answer:
                status, found, text = answer.status, answer.headers, answer.read()
        except HTTPError as error:
            with error:
                status, found, text = error.code, error.headers, error.read()
        self.said.append(f"{found} {text.decode()}")
        return Answer(status, found, json.loads(text) if text else None)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """What no document prints: with the token, if there is one."""
        allowed = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        text = None if body is None else json.dumps(body)
        return self.send(
            method, self.replica.url + path, {"Content-Type": "application/json", **allowed, **headers}, text
        )

    def filled(self, text: str) -> str:
        """The text with what placeholders and printed ids stand for."""
        values = {
            "USERNAME": DEMO_USERNAME,
            "PASSWORD": PASSWORD,
            "PROJECT_ID": PROJECT_ID,
            "TIMEZONE": "Pacific Standard Time",
            "TENANT_ID": "mixpanelworker",
            "NEW_PASSWORD": f"{PASSWORD}-new",
            "NEW_SECURITY_TOKEN": f"{PASSWORD}-token",
            "ACCESS_TOKEN": self.token or "none",
            "API_KEY": "me",
            "ORG_ID": "org@AdobeOrg",
            "SANDBOX_NAME": "prod",
        }
        for printed, kind in PRINTED_IDS.items():
            text = text.replace(printed, self.ids.get(kind, printed))
        for name, value in values.items():
            # the braces of {Mixpanel} belong to the names that are printed
            text = text.replace(f"{{{name}}}", value)
        return text


def printed_answers(number: str) -> list[Any]:
    """The JSON that the document prints as the answer of each of its requests; None where it prints none."""
    [path] = SPECS.glob(f"{number}*.txt")
    found = []
    for section in re.split(r"^curl -X", path.read_text(), flags=re.MULTILINE)[1:]:
        starts = [match.start() for match in re.finditer(r"^\{$", section, re.MULTILINE)]
        found.append(json.JSONDecoder().raw_decode(section[starts[-1] :])[0] if starts else None)
    return found


def shape(value: object, path: str = "") -> set[tuple[str, str]]:
    """Every place in a document with the kind of what is there; all elements of a list are one place."""
    if isinstance(value, dict):
        return {(path, "object")}.union(*(shape(inner, f"{path}/{key}") for key, inner in value.items()))
    if isinstance(value, list):
        return {(path, "list")}.union(*(shape(inner, f"{path}[]") for inner in value))
    return {(path, "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "text")}


@pytest.fixture(params=["open", "clients"])
def gate(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def preview() -> dict[str, Any]:
    """The answer to the exploration, as printed."""
    if not SPECS.is_dir():
        pytest.skip("the documents with the examples are not beside the checkout")
    found = next(answer for answer in printed_answers("000") if "format" in answer)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def mixpanel(preview: dict[str, Any]) -> Iterator[SimulatorThread]:
    """Every day has the events of the printed preview; those before today have a line that is no event, too."""
    events = [json.dumps(event) for event in preview["data"]]
    with SimulatorThread(Simulator(password=PASSWORD, project_id=PROJECT_ID)) as server:
        today = datetime.now(UTC).date()
        for offset in range(-7, 2):
            # a test that begins before midnight may end after it: tomorrow is there as well
            lines = events if offset >= 0 else [*events, NO_EVENT]
            server.simulator.set_day(today + timedelta(days=offset), "\n".join([*lines, ""]).encode())
        yield server


@pytest.fixture
def walk(tmp_path: Path, mixpanel: SimulatorThread, gate: str) -> Iterator[Walk]:
    clients = {"WORKER_API_CLIENTS": f"me:{CLIENT_SECRET}"} if gate == "clients" else {}
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, **clients)
    with ended(replica):
        replica.ready()
        token = None
        if clients:
            body = f"grant_type=client_credentials&client_id=me&client_secret={CLIENT_SECRET}"
            with urlopen(f"{replica.url}/ims/token/v3", body.encode(), timeout=GENEROUS_SECONDS) as answer:
                token = json.loads(answer.read())["access_token"]
        walk = Walk(replica, tmp_path, mixpanel.base_url, token)
        yield walk
    assert_untold(tmp_path, [PASSWORD, CLIENT_SECRET, *([token] if token else [])], [*walk.said, *replica.said])


def assert_untold(folder: Path, secrets: Sequence[str], said: Sequence[str]) -> None:
    """No secret is in a file below the folder, nor in what was said, in whatever way it is spelt there."""
    stored = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = "\n".join(said)
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in text
            assert not [path for path, content in stored.items() if spelling.encode() in content]


def spellings(secret: str) -> set[str]:
    """As it is, within JSON, in an address, and in the header of the requests to Mixpanel."""
    basic = base64.b64encode(f"{DEMO_USERNAME}:{secret}".encode()).decode()
    return {
        *(secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.replace("/", r"\/")),
        *(quote(secret), quote(secret, safe=""), quote_plus(secret)),
        *(basic.rstrip("="), base64.b64encode(secret.encode()).decode().rstrip("=")),
    }


@pytest.mark.parametrize("number", ["000", "001", "003"])
def test_the_requests_of_the_documents_get_their_answers(walk: Walk, preview: dict[str, Any], number: str) -> None:
    requests, printed = curls(number), printed_answers(number)
    assert len(requests) == len(printed)
    for (method, address, headers, body), expected in zip(requests, printed, strict=True):
        step(walk, preview, method, address, headers, body, expected)
    if number == "000":
        # this document ends before it looks at the runs; what it then finds is printed in the other one
        assert_flow_ran(walk, preview)
    if number == "003":
        assert walk.ask("GET", f"{SERVICE}/connections/{walk.ids['connections']}/test").body == {"result": True}
    expected_steps = {
        "003": ["POST connections"],
        "000": [
            *("POST connections", "GET connections", "POST sourceConnections", "POST targetConnections"),
            *("POST mappingSets", "POST flows"),
        ],
    }
    expected_steps["001"] = [
        *expected_steps["000"],
        *("GET runs", "PATCH flows", "DELETE flows", "PATCH connections", "DELETE connections"),
    ]
    assert walk.steps == expected_steps[number]


def step(
    walk: Walk,
    preview: dict[str, Any],
    method: str,
    printed_address: str,
    printed_headers: dict[str, str],
    printed_body: str | None,
    expected: Any,
) -> None:
    """Send one request and compare its answer."""
    address = walk.filled(printed_address)
    headers = {name: walk.filled(value) for name, value in printed_headers.items()}
    body = None if printed_body is None else walk.filled(printed_body)
    kind, *rest = address.split("?")[0].partition("/data/foundation/")[2].split("/")[1:]
    walk.steps.append(f"{method} {kind}")
    status = 200 if kind == "mappingSets" else STATUSES[method]

    if walk.token is not None and "Authorization" not in headers:
        # the documents leave the token out of the request that creates the flow; Adobe would refuse that as well
        refused = walk.send(method, address, headers, body)
        assert (refused.status, refused.body["error_code"]) == (403, "403010")
        headers["Authorization"] = f"Bearer {walk.token}"
    if "/explore?" in address:
        # the printed sourceParams are {"listId": …}, of another source; those meant stand in the text above
        assert SOURCE_PARAMS in next(SPECS.glob("000*.txt")).read_text()
        refused = walk.send(method, address, headers, body)
        assert (refused.status, refused.body["type"].rpartition("/")[2]) == (400, "FLOW-1100-400")
        address = re.sub(r"(?<=sourceParams=).*", SOURCE_PARAMS, address)
    for foreign in FOREIGN_IDS:
        if foreign in address:
            # no step has made this connection; the one that was made stands in for it
            refused = walk.send(method, address, headers, body)
            assert (refused.status, refused.body["title"]) == (404, "Resource not found")
            address = address.replace(foreign, walk.ids["connections"])
    path = address.partition("?")[0].removeprefix("https://platform.adobe.io")
    if method == "PATCH":
        # the printed etag is that of an object of Adobe's
        refused = walk.send(method, address, headers, body)
        assert (refused.status, refused.body["title"]) == (412, "Version not matching")
        etag = walk.ask("GET", path).body["items"][0]["etag"]
        # the documents print it with quotes for a flow, and without for a connection
        headers["If-Match"] = etag if headers["If-Match"].startswith('"') else etag.strip('"')
    if kind == "runs":
        # the document looks at a run that has ended
        walk.replica.wait_for(walk.replica.ended_runs)

    answer = walk.send(method, address, headers, body)
    assert answer.status == status, answer
    if method == "DELETE":
        assert answer.body is None
        assert expected is None
        # as the documents say: who then looks for it is told that it is not there
        assert walk.ask("GET", path).status == 404
        return
    missing = shape(expected) - shape(answer.body)
    assert not missing, (missing, answer.body)
    if method == "POST":
        walk.ids[kind] = answer.body["id"]
        assert answer.body.keys() == expected.keys()
    if method == "POST" and kind == "connections":
        point_at_the_simulator(walk)
    if method == "PATCH":
        assert answer.body["id"] == rest[-1] or rest[-1] in FOREIGN_IDS
        assert answer.body["etag"] == walk.ask("GET", path).body["items"][0]["etag"] != etag
        assert answer.body.keys() == expected.keys()
    if "explore" in path:
        assert (answer.body["format"], answer.body["data"]) == (expected["format"], preview["data"])
        assert types_of(answer.body["schema"]) == types_of(expected["schema"])
    if kind == "runs":
        assert_flow_ran(walk, preview)


def point_at_the_simulator(walk: Walk) -> None:
    """Lead the connection to the simulated Mixpanel: the documents name Mixpanel's own host, or none."""
    path = f"{SERVICE}/connections/{walk.ids['connections']}"
    etag = walk.ask("GET", path).body["items"][0]["etag"]
    params = {"host": walk.mixpanel, "username": DEMO_USERNAME, "password": PASSWORD}
    operations = [{"op": "replace", "path": "/auth/params", "value": params}]
    assert walk.ask("PATCH", path, operations, **{"If-Match": etag}).status == 200


def types_of(schema: dict[str, Any]) -> object:
    """A schema as an exploration gives it, reduced to the types of the fields: the order of fields and the bounds of
    integers, which are those of any number in JavaScript, say nothing of the data."""
    if "properties" in schema:
        return {name: types_of(inner) for name, inner in schema["properties"].items()}
    return schema["type"]


def assert_flow_ran(walk: Walk, preview: dict[str, Any]) -> None:
    """The first run of the flow has loaded every event of its days, and kept what is none."""
    walk.replica.wait_for(walk.replica.ended_runs)
    answer = walk.ask("GET", f"{SERVICE}/runs?property=flowId=={walk.ids['flows']}").body
    printed = next(found for found in printed_answers("001") if found is not None and "items" in found)
    missing = shape(printed) - shape(answer)
    assert not missing, (missing, answer)
    [run] = answer["items"]
    window = run["metrics"]["durationSummary"]["extensions"]
    first, last = (datetime.fromtimestamp(window[name] / 1000, UTC).date() for name in ("windowStart", "windowEnd"))
    days = [first + timedelta(days=number) for number in range((last - first).days)]
    rows = len(preview["data"])
    # the newest day may be without the line that is no event
    rejects = {len(days), len(days) - 1}
    summary = run["metrics"]["recordSummary"]
    assert run["metrics"]["statusSummary"]["status"] == "success"
    assert (summary["outputRecordCount"], summary["failedRecordCount"] in rejects) == (rows * len(days), True), summary
    [source] = run["activities"][0]["sourceInfo"]
    [target] = run["activities"][1]["targetInfo"]
    assert (source["id"], target["id"]) == (walk.ids["sourceConnections"], walk.ids["targetConnections"])
    expected = sorted(json.dumps(mapped(event), sort_keys=True) for event in preview["data"])
    assert table_rows(walk.folder / "lake" / DATASET_ID) == dict.fromkeys(days, expected)
    # the links that are printed lead to what they promise
    extensions = run["activities"][1]["statusSummary"]["extensions"]
    for link in extensions["manifest"].values():
        assert walk.ask("GET", link.removeprefix(walk.replica.url)).status == 200


def mapped(event: dict[str, Any]) -> dict[str, Any]:
    """An event as the printed mapping set makes a row of it: without dollars, and with its name."""
    fields = {name.removeprefix("$"): value for name, value in event["properties"].items()}
    return {"import": None, **fields, "event_name": event["event"]}


def table_rows(table: Path) -> dict[date, list[str]]:
    """The rows of each day, as JSON, in order."""
    found: dict[date, list[str]] = {}
    for uri in DeltaTable(str(table)).file_uris():
        day = date.fromisoformat(re.findall(r"mp_date=([0-9-]+)", uri)[-1])
        rows = pq.ParquetFile(uri).read(columns=["_extconndev"]).to_pylist()
        found.setdefault(day, []).extend(json.dumps(row["_extconndev"], sort_keys=True) for row in rows)
    return {day: sorted(rows) for day, rows in found.items()}
