"""What holds for every request: who comes in, what is read, and how it is told what went wrong. F: fault catalogue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from aiohttp import ClientSession, DummyCookieJar, web
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tests.support import NOON, PASSWORD, Clock, settings_for, until_closed
from worker.errors import ConfigurationError, ExportRefusedError, StoreError
from worker.events import ServiceTrouble
from worker.http import openapi
from worker.http.app import Limits, host_name, is_documented, is_own_origin, make_app
from worker.http.auth import FAILURES, LIFE, MOST_TOKENS, TOKENS, Buckets, Gate, Rate, stale_tokens
from worker.http.bodies import MAX_DEPTH, parse_body
from worker.http.ims import login_fields
from worker.http.problems import ApiError
from worker.http.server import listening
from worker.model import Secret
from worker.registry import Registry
from worker.secret_box import SecretBox, new_key
from worker.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import date
    from pathlib import Path

    from aiohttp import ClientResponse

    from worker.events import Event
    from worker.model import Source

CLIENT, SECRET = "client-1", "canary-client-secret-4711"
STATIC = "canary-static-token-0815"
FLOW = "/data/foundation/flowservice"


class IdleKeeper:
    """Runs nothing, and lets every source in."""

    async def request_run(self, flow_id: str, first: date | None, last: date | None) -> str:
        return "run-1"

    async def test_connection(self, source: Source) -> None:
        return

    async def explore(self, source: Source, *, rows: int) -> dict[str, Any]:
        return {"format": "hierarchical", "schema": {"type": "object"}, "data": []}


@dataclass
class Service:
    """A server on loopback, and what lies behind it."""

    base: str
    session: ClientSession
    store: MemoryStore
    registry: Registry
    lake: Path
    clock: Clock
    gate: Gate
    app: web.Application
    events: list[Event] = field(default_factory=list)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        return self.session.request(method, URL(self.base + path, encoded=True), **options)

    async def json(self, method: str, path: str, *, status: int = 200, **options: Any) -> Any:
        async with self.ask(method, path, **options) as response:
            text = await response.text()
            assert response.status == status, (response.status, text)
            return json.loads(text) if text else None

    async def login(self, secret: str = SECRET, client: str = CLIENT) -> str:
        form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret, "scope": "a"}
        token: str = (await self.json("POST", "/ims/token/v3", data=form))["access_token"]
        return token


@asynccontextmanager
async def serving(
    folder: Path, *, closed: bool = False, listen: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Service]:
    store, clock = MemoryStore(), Clock()
    lake = folder / "lake"
    registry = Registry(store, SecretBox(new_key()), settings_for(folder), allow_loopback=True)
    credentials: dict[str, Any] = {"clients": [(CLIENT, Secret(SECRET))], "tokens": [Secret(STATIC)]} if closed else {}
    gate = Gate(store, clock=clock, monotonic=clock.monotonic, **credentials)
    seen: list[Event] = []
    wanted: dict[str, Any] = {"readiness": list, "metrics_text": lambda: b"up 1\n", "listener": seen.append, **options}
    app = make_app(registry=registry, store=store, keeper=IdleKeeper(), gate=gate, lake=lake, **wanted)
    async with (
        listening(app, "127.0.0.1", 0, listener=seen.append, **{"idle_seconds": 30.0, **(listen or {})}) as base,
        ClientSession(cookie_jar=DummyCookieJar()) as session,
    ):
        yield Service(base, session, store, registry, lake, clock, gate, app, seen)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def served_routes(app: web.Application) -> list[tuple[str, str, object]]:
    """Method, path and handler of every route; HEAD belongs to GET."""
    found = [(route.method, route.resource.canonical, route.handler) for route in app.router.routes() if route.resource]
    return [route for route in found if route[0] != "HEAD"]


async def problem_of(response: ClientResponse) -> dict[str, Any]:
    """The body of an answer that is a problem, checked for its shape."""
    body: dict[str, Any] = await response.json(content_type=None)
    if set(body) in ({"error_code", "message"}, {"error", "error_description"}):
        return body
    assert set(body) == {"type", "title", "status", "report", "errorMessage", "errorDetails"}, body
    assert body["status"] == response.status
    assert body["report"]["request-id"] == response.headers["X-Request-Id"]
    return body


# The gate


async def test_F140_every_route_with_every_kind_of_token(tmp_path: Path) -> None:
    # also the right ones of other kinds of authentication, and those that look like a token
    async with serving(tmp_path, closed=True, limits=Limits(requests=Rate(1e6, 10**6))) as service:
        right = await service.login()
        expired = await service.login()
        removed = await service.login()
        service.store.delete_object(TOKENS, removed.split("_")[1])
        service.clock.move(hours=23, minutes=59)
        right = await service.login()
        service.clock.move(minutes=2)
        refused: dict[str, dict[str, str]] = {
            "none": {},
            "empty": {"Authorization": ""},
            "scheme": {"Authorization": f"Basic {right}"},
            "bare": {"Authorization": right},
            "wrong": bearer("mpw_" + "0" * 16 + "_" + "A" * 43),
            "wrong secret": bearer(right[:-1] + ("A" if right[-1] != "A" else "B")),
            "of another": bearer(expired[:21] + right[21:]),
            "expired": bearer(expired),
            "removed": bearer(removed),
            "client secret": bearer(SECRET),
            "static, cut": bearer(STATIC[:-1]),
            "in the cookie": {"Cookie": f"token={right}"},
            "api key alone": {"x-api-key": CLIENT, "x-gw-ims-org-id": "ORG@AdobeOrg", "x-sandbox-name": "dev"},
        }
        routes = served_routes(service.app)
        assert len(routes) > 100
        for method, path, _ in routes:
            address = re.sub(r"\{[^}]*\}", "x", path)
            is_open = path.rstrip("/") in {"/healthz", "/readyz", "/ims/token/v2", "/ims/token/v3"}
            for kind, headers in refused.items():
                async with service.ask(method, address, headers=headers) as response:
                    where = (method, path, kind)
                    if is_open:
                        assert response.status in (200, 400), where
                    else:
                        assert response.status in (401, 403, 429), where
                        body = await problem_of(response)
                        expected = "403010" if "Authorization" not in headers else "401013"
                        assert response.status == 429 or body["error_code"] == expected, where
            for token in (right, STATIC):
                async with service.ask(method, address, headers=bearer(token)) as response:
                    assert response.status not in (401, 403, 429), (method, path)
                    assert response.status < 500 or response.status == 501, (method, path)
        for method in ("HEAD", "OPTIONS", "GET", "TRACE", "POST"):
            for address in (
                f"{FLOW}/flows",
                f"{FLOW}/flows/",
                f"/{FLOW}/flows",
                "//healthz",
                "/nowhere",
                "/%68ealthz/.",
            ):
                async with service.ask(method, address) as response:
                    assert response.status in (401, 403), (method, address)


async def test_metrics_are_for_prometheus(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, service.ask("GET", "/metrics") as response:
        assert response.status == 200
        assert await response.read() == b"up 1\n"
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


async def test_without_credentials_everybody_is_let_in_and_aepp_can_log_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        assert service.gate.is_open
        token = await service.login(secret="whatever it is")
        assert (await service.json("GET", f"{FLOW}/flows", headers=bearer(token)))["items"] == []
        assert (await service.json("GET", f"{FLOW}/flows"))["items"] == []
        assert service.store.objects(TOKENS) == []


async def test_a_login_by_form_and_by_address(tmp_path: Path) -> None:
    fields = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": SECRET}
    async with serving(tmp_path, closed=True) as service:
        for version in ("v2", "v3"):
            sent: tuple[dict[str, Any], ...] = ({"data": fields}, {"params": fields})
            for options in sent:
                async with service.session.post(f"{service.base}/ims/token/{version}", **options) as response:
                    body = await response.json()
                    assert response.status == 200
                    assert set(body) == {"access_token", "token_type", "expires_in"}
                    assert (body["token_type"], body["expires_in"]) == ("bearer", 86400)
                    assert response.headers["Cache-Control"] == "no-store"
                await service.json("GET", f"{FLOW}/flows", headers=bearer(body["access_token"]))


async def test_F149_tokens_are_stored_hashed(tmp_path: Path) -> None:
    async with serving(tmp_path, closed=True) as service:
        token = await service.login()
        stored = json.dumps([dict(one.document) for one in service.store.objects(TOKENS)])
        assert token not in stored
        assert token.split("_", 2)[2] not in stored
        assert SECRET not in stored


async def test_all_replicas_take_a_token_and_a_client_that_was_removed_takes_its_tokens_along() -> None:
    store, clock = MemoryStore(), Clock()
    first = Gate(store, clients=[(CLIENT, Secret(SECRET))], clock=clock)
    token = (await first.login(CLIENT, SECRET, "1.2.3.4")).text
    second = Gate(store, clients=[(CLIENT, Secret("another-secret-now"))], clock=clock)
    assert (await second.admit(f"bearer {token}", "1.2.3.4")).name == f"client:{CLIENT}"
    third = Gate(store, clients=[("other", Secret(SECRET))], clock=clock)
    with pytest.raises(ApiError, match="401013"):
        await third.admit(f"Bearer {token}", "1.2.3.4")


async def test_a_client_may_have_two_secrets_while_they_change() -> None:
    secrets = [(CLIENT, Secret("the-old-one-of-them")), (CLIENT, Secret("the-new-one-of-them"))]
    gate = Gate(MemoryStore(), clients=secrets)
    for secret in ("the-old-one-of-them", "the-new-one-of-them"):
        assert (await gate.login(CLIENT, secret, "::1")).text.startswith("mpw_")


async def test_F152_failed_logins_have_to_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, closed=True) as service:
        wrong = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": "canary-wrong"}
        unknown = {**wrong, "client_id": "nobody"}
        answers = []
        for form in [unknown] * FAILURES.burst + [wrong] * FAILURES.burst:
            async with service.ask("POST", "/ims/token/v3", data=form) as response:
                answers.append((response.status, await response.text()))
        assert set(answers) == {answers[0]}, "an unknown id and a wrong secret look alike"
        assert answers[0][0] == 401
        for form in (wrong, {**wrong, "client_secret": SECRET}, unknown):
            async with service.ask("POST", "/ims/token/v3", data=form) as response:
                assert response.status == 429
                assert 1 <= int(response.headers["Retry-After"]) <= 12
        service.clock.move(seconds=13)
        await service.login()


async def test_F152_the_right_token_is_let_in_between_wrong_ones(tmp_path: Path) -> None:
    async with serving(tmp_path, closed=True) as service:
        token = await service.login()
        statuses = set()
        for _ in range(20):
            async with service.ask("GET", f"{FLOW}/flows", headers=bearer("x" * 40)) as response:
                statuses.add(response.status)
            await service.json("GET", f"{FLOW}/flows", headers=bearer(token))
        assert statuses == {401, 429}


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "invalid_request"),
        ({"grant_type": "password", "client_id": CLIENT, "client_secret": SECRET}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": ""}, "invalid_request"),
        ([("client_id", "a"), ("client_id", "b")], "invalid_request"),
        (b"\xff\xfe", "invalid_request"),
        (b"&".join(b"a%d=1" % number for number in range(100)), "invalid_request"),
        (b"{}", "invalid_request"),
    ],
)
async def test_logins_that_are_none(tmp_path: Path, form: Any, error: str) -> None:
    async with serving(tmp_path, closed=True) as service, service.ask("POST", "/ims/token/v3", data=form) as response:
        assert (await response.json())["error"] == error
        assert response.status == 400


def test_the_body_of_a_login_counts_before_the_address() -> None:
    query = [("grant_type", "client_credentials"), ("client_id", "a"), ("client_secret", "b")]
    assert login_fields(b"client_id=c", query)["client_id"] == "c"


def test_tokens_that_nobody_needs() -> None:
    store = MemoryStore()
    for number in range(MOST_TOKENS + 3):
        document = {"clientId": "a", "sha256": "00", "expiresAt": (NOON + LIFE).isoformat()}
        store.create_object(TOKENS, f"{number:05d}", document, None, NOON + timedelta(seconds=number))
    store.create_object(TOKENS, "late", {"clientId": "b", "sha256": "00", "expiresAt": NOON.isoformat()}, None, NOON)
    store.create_object(TOKENS, "broken", {"clientId": 1}, None, NOON)
    assert set(stale_tokens(store.objects(TOKENS), NOON)) == {"00000", "00001", "00002", "late", "broken"}


@given(
    st.integers(1, 20),
    st.floats(0.01, 100),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 50)), max_size=60),
)
def test_a_bucket_gives_no_more_than_its_rate(burst: int, per_second: float, steps: list[tuple[str, float]]) -> None:
    buckets, now, given_at = Buckets(Rate(per_second, burst)), 0.0, dict[str, list[float]](a=[], b=[])
    for key, seconds in steps:
        now += seconds
        wait_seconds = buckets.take(key, now)
        if wait_seconds == 0:
            given_at[key].append(now)
        else:
            assert buckets.wait(key, now + wait_seconds * 1.001 + 1e-6) == 0
    for times in given_at.values():
        for index, start in enumerate(times):
            for count, end in enumerate(times[index:], start=1):
                assert count <= burst + (end - start) * per_second + 1e-3


def test_buckets_are_bounded() -> None:
    buckets = Buckets(Rate(0.001, 1), most_keys=3)
    for key in "abcd":
        assert buckets.take(key, 0) == 0
    assert buckets.wait("a", 0) == 0
    assert buckets.wait("d", 0) > 0


async def test_F152_a_client_that_asks_too_much_has_to_wait_and_health_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, closed=True, limits=Limits(requests=Rate(0.01, 5))) as service:
        statuses = []
        for _ in range(8):
            async with service.ask("GET", f"{FLOW}/flows", headers=bearer(STATIC)) as response:
                statuses.append(response.status)
                if response.status == 429:
                    assert int(response.headers["Retry-After"]) > 1
                    await problem_of(response)
        assert statuses == [200] * 5 + [429] * 3
        for _ in range(20):
            await service.json("GET", "/healthz")


# Names and origins


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8080", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("localhost.:80", "localhost"),
        ("[::1]:8080", "[::1]"),
        ("evil.example", "evil.example"),
        ("", None),
        ("a b", None),
        ("localhost@evil", None),
        ("localhost:80:80", None),
    ],
)
def test_the_name_in_a_host_header(host: str, name: str | None) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("origin", "fetch_site", "own"),
    [
        (None, None, True),
        ("http://localhost:8080", None, True),
        ("http://localhost:8080", "same-origin", True),
        ("http://localhost:9999", None, False),
        ("https://evil.example", None, False),
        ("null", None, False),
        ("http://[", None, False),
        (None, "cross-site", False),
        (None, "same-site", False),
        (None, "none", True),
    ],
)
def test_F160_web_pages_of_others(origin: str | None, fetch_site: str | None, own: bool) -> None:
    assert is_own_origin("localhost:8080", origin, fetch_site) is own


async def test_F160_a_name_that_was_made_to_point_here_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for host in ("evil.example", "127.0.0.1.evil.example:8080", "169.254.169.254", "localhost@evil"):
            async with service.ask("GET", f"{FLOW}/flows", headers={"Host": host}) as response:
                assert response.status == 421
                await problem_of(response)
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            async with service.ask("POST", f"{FLOW}/runs", data=b"{}", headers=headers) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
        port = service.base.rpartition(":")[2]
        for host in (f"localhost:{port}", f"[::1]:{port}"):
            await service.json("GET", f"{FLOW}/flows", headers={"Host": host})
        for path in ("/healthz", "/readyz/"):
            await service.json("GET", path, headers={"Host": "10.1.2.3:8080"})


# Errors


async def test_paths_that_are_not_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for method, path, status in (
            ("GET", "/", 404),
            ("GET", "/data/foundation/flowservice", 404),
            ("GET", f"{FLOW}/nothing", 404),
            ("GET", "/etc/passwd", 404),
            ("GET", "/..%2f..%2fetc/passwd", 404),
            ("PUT", f"{FLOW}/connections", 405),
            ("DELETE", "/healthz", 405),
            ("PATCH", "/ims/token/v3", 405),
            ("POST", f"{FLOW}/connections/search", 501),
            ("POST", f"{FLOW}/connections/search/", 501),
            ("PUT", f"{FLOW}/flowSpecs/x", 501),
            ("PUT", "/data/foundation/conversion/mappingSets/a/mappings/b", 501),
            ("PATCH", "/data/foundation/catalog/dataSets/a", 501),
            ("GET", "/data/foundation/catalog/batches", 501),
            ("GET", "/data/foundation/schemaregistry/global/fieldgroups", 501),
            ("PUT", "/data/foundation/schemaregistry/tenant/schemas/a", 501),
            ("POST", "/data/foundation/import/batches", 501),
            ("GET", "/data/foundation/export/datasets/a/preview", 501),
        ):
            async with service.ask(method, path) as response:
                assert response.status == status, (method, path)
                await problem_of(response)
                if status == 405:
                    assert response.headers["Allow"]


def test_what_adobe_documents() -> None:
    assert is_documented("GET", f"{FLOW}/connections/1/configs")
    assert not is_documented("GET", f"{FLOW}/connections/1/2/configs")
    assert not is_documented("DELETE", f"{FLOW}/runs/1")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("wrong"), 400),
        (StoreError("canary: the database says no"), 503),
        (ExportRefusedError("no", status=401), 400),
        (ApiError(418, "FLOW-1-418", "Teapot", "no"), 418),
        (web.HTTPGone(), 410),
        (RuntimeError("canary: something private"), 500),
        (KeyError("canary"), 500),
        (RecursionError("canary"), 500),
        (UnicodeDecodeError("utf-8", b"canary", 0, 1, "no"), 500),
        (AssertionError(), 500),
        (TimeoutError("canary"), 500),
    ],
)
async def test_whatever_goes_wrong_has_one_shape(tmp_path: Path, error: BaseException, status: int) -> None:
    def fail() -> bytes:
        raise error

    async with serving(tmp_path, metrics_text=fail) as service:
        async with service.ask("GET", "/metrics", headers={"X-Request-Id": "my-id"}) as response:
            assert response.status == status
            assert response.headers["X-Request-Id"] == "my-id"
            assert response.headers["Server"] == "mixpanel-worker"
            body = await problem_of(response)
        assert "canary" not in json.dumps(body)
        if status == 500:
            told = " ".join(str(event) for event in service.events)
            assert "my-id" in told
            assert type(error).__name__ in told
            assert "canary" not in told


async def test_F150_the_id_of_a_request_is_fit_for_a_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for asked in ("x" * 65, "a b", "a;b", "ü"):
            async with service.ask("GET", "/healthz", headers={"X-Request-Id": asked}) as response:
                assert str(UUID(response.headers["X-Request-Id"])) == response.headers["X-Request-Id"]


# Bodies


HOSTILE_BODIES = (
    b"{",
    b"nonsense",
    b"[]",
    b'"text"',
    b"null",
    b"1",
    b"NaN",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": 1e400}',
    b'{"a": ' + b"1" * 5000 + b"}",
    b'{"name": 9223372036854775808}',
    b'{"name": "\\u0000"}',
    b'{"\\u0000": 1}',
    b'{"name": "\\ud800"}',
    b'{"name": "\xff"}',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"[" * 500 + b"]" * 500,
    b'{"a":' * 200 + b"1" + b"}" * 200,
    b'{"a":' * 20000 + b"1" + b"}" * 20000,
    b"{" + b",".join(b'"k%d":1' % number for number in range(50_000)) + b"}",
    b'{"a": 1, "a": 2}',
    b"{}" + b" " * 1000,
    b'{"id": "x", "etag": "y", "state": "enabled", "imsOrgId": "z"}',
    b'{"name": [], "auth": 7, "connectionSpec": "x", "params": null, "mappings": {"a": 1}, "title": 7, "allOf": [[]]}',
    b'{"mappings": [null, 1, [], {}], "tags": [], "schemaRef": "x", "title": "t", "properties": [1]}',
    b'{"mappings": [{"source": 1, "destination": []}], "title": "t", "allOf": [{"$ref": "#/allOf/0"}]}',
    b"a=b&c=d",
    b'{"name": "\\u202e\\u001b[2J=cmd|A0"}',
)


async def test_F144_no_body_makes_a_500(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(requests=Rate(1e6, 10**6))) as service:
        writes = [route for route in served_routes(service.app) if route[0] in ("POST", "PUT", "PATCH")]
        writes = [route for route in writes if not route[1].endswith("/")]
        assert len(writes) > 20
        for method, path, _ in writes:
            address = re.sub(r"\{[^}]*\}", "x", path)
            for body in HOSTILE_BODIES:
                for content_type in ("application/json", "text/plain; charset=utf-99"):
                    headers = {"Content-Type": content_type, "If-Match": "*"}
                    async with service.ask(method, address, data=body, headers=headers) as response:
                        where = (method, path, body[:60], await response.text())
                        assert response.status < 500 or response.status == 501, where
                        assert "canary" not in where[3]
        assert not [event for event in service.events if "failed" in str(event)], service.events


async def test_F153_hostile_addresses_make_no_500(tmp_path: Path) -> None:
    names = (
        "%00",
        "..%2f..%2fetc%2fpasswd",
        "%ff",
        "%2e%2e",
        "a" * 3000,
        "%ud800",
        "'%22;--",
        "%0d%0aX:1",
        "{id}",
        "*",
    )
    queries: tuple[str, ...] = (
        "?limit=10%00",
        "?limit=-1",
        "?limit=1e9",
        "?start=x",
        "?property=%ff",
        "?property===",
        "?count=maybe",
    )
    queries += (
        "?continuationToken=%3d",
        "?orderBy=%20",
        "?orderby=-",
        "?path=../../x",
        "?version=9999999999",
        "?a=%zz",
    )
    async with serving(tmp_path, limits=Limits(requests=Rate(1e6, 10**6))) as service:
        for method, path, _ in served_routes(service.app):
            if method == "GET" and not path.endswith("/"):
                addresses = [re.sub(r"\{[^}]*\}", name, path) for name in names] if "{" in path else []
                addresses += [re.sub(r"\{[^}]*\}", "tenant", path) + query for query in queries]
                for address in addresses:
                    async with service.ask(method, address) as response:
                        assert response.status < 500 or response.status == 501, address
                        assert "root:" not in await response.text()


async def test_bodies_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 4096

    async with serving(tmp_path, limits=Limits(body_bytes=10_000)) as service:
        for data in (b"x" * 10_001, endless()):
            async with service.ask("POST", f"{FLOW}/flows", data=data) as response:
                assert response.status == 413
                await problem_of(response)
        async with service.ask("POST", f"{FLOW}/flows", data=b"x" * 10_000) as response:
            assert response.status == 400


async def test_F142_a_compressed_body_is_refused(tmp_path: Path) -> None:
    import zlib

    bomb = zlib.compress(b"[" * 10_000_000)
    async with serving(tmp_path) as service:
        headers = {"Content-Encoding": "deflate", "Content-Type": "application/json"}
        async with service.ask("POST", f"{FLOW}/flows", data=bomb, headers=headers) as response:
            assert response.status == 415
            await problem_of(response)


async def test_F143_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, limits=Limits(body_seconds=0.05)) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(service.base.rpartition(":")[2]))
        writer.write(f"POST {FLOW}/flows HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{{".encode())
        answer = await reader.readline()
        assert b"408" in answer
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("path", [f"{FLOW}/flows", "/not/served"])
async def test_a_body_that_trickles_ends_with_its_connection(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, limits=Limits(body_seconds=0.2), listen={"linger_seconds": 0.2}) as service:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{{"
        answer = await until_closed(service.base, head.encode(), trickle=b" ")
    assert answer.startswith(b"HTTP/1.1 404 " if path == "/not/served" else b"HTTP/1.1 408 ")


# Connections

HEALTHY = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = b"\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("opening", "trickle"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: local", b""),
        (b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"x"),
        (HEALTHY, b""),
        (HEALTHY + b"GET /", b"x"),
    ],
    ids=["silent", "part of a head", "head that trickles", "idle", "second head that trickles"],
)
async def test_a_connection_without_a_whole_head_is_closed(tmp_path: Path, opening: bytes, trickle: bytes) -> None:
    async with serving(tmp_path, listen={"idle_seconds": 0.3}) as service:
        answer = await until_closed(service.base, opening, trickle)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == opening.count(HEALTHY)


async def test_connections_beyond_the_limit_are_refused_until_there_is_room(tmp_path: Path) -> None:
    async with serving(tmp_path, listen={"connections": 2}) as service, contextlib.AsyncExitStack() as stack:
        held = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(service.base.rpartition(":")[2]))
            stack.callback(writer.close)
            writer.write(HEALTHY)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            held.append(writer)
        for _ in range(2):
            assert (await until_closed(service.base, b"")).startswith(b"HTTP/1.1 503 ")
        assert service.events == [ServiceTrouble(None, "2 connections are open; more are refused.")]
        held[0].close()
        await held[0].wait_closed()
        async with asyncio.timeout(20):
            # until the server has seen that one was closed
            while (await until_closed(service.base, HEALTHY.replace(b"\r\n\r\n", CLOSE))).startswith(b"HTTP/1.1 503 "):
                continue


def test_the_depth_of_a_body_is_limited() -> None:
    assert parse_body(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(ApiError, match="deeper"):
        parse_body(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_a_400(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        parse_body(body)


# Health, metrics, description


async def test_health_and_readiness(tmp_path: Path) -> None:
    reasons: list[str] = []
    async with serving(tmp_path, closed=True, readiness=lambda: reasons) as service:
        assert await service.json("GET", "/healthz") == {"status": "alive"}
        assert await service.json("GET", "/readyz") == {"status": "ready"}
        reasons.append("The state database cannot be written.")
        answer = await service.json("GET", "/readyz", status=503)
        assert answer == {"status": "not ready", "reasons": reasons}
        async with service.ask("HEAD", "/healthz") as response:
            assert response.status == 200


async def test_the_description_names_what_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        document = await service.json("GET", "/openapi.json")
        described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
        served = {
            (method, path)
            for method, path, handler in served_routes(service.app)
            if openapi.is_described(handler) and not path.endswith("/")
        }
        assert described == served
        assert document["openapi"].startswith("3.1")
        identifiers = [one["operationId"] for item in document["paths"].values() for one in item.values()]
        assert len(identifiers) == len(set(identifiers))
        assert all(one["summary"] for item in document["paths"].values() for one in item.values())
        references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
        assert references == set(document["components"]["schemas"])
        unguarded = {
            path for path, item in document["paths"].items() if any(one.get("security") == [] for one in item.values())
        }
        assert unguarded == {"/healthz", "/readyz", "/ims/token/v2", "/ims/token/v3"}


async def test_every_path_with_a_slash_at_its_end_is_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for path in ("/healthz", f"{FLOW}/flows", "/data/foundation/schemaregistry/stats"):
            assert await service.json("GET", path) == await service.json("GET", f"{path}/")


# Secrets


async def test_F148_a_password_given_never_comes_out(tmp_path: Path) -> None:
    connection = {
        "name": "Mixpanel",
        "connectionSpec": {"id": "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb", "version": "1.0"},
        "auth": {"specName": "Basic Authentication", "params": {"username": "user", "password": PASSWORD}},
    }
    async with serving(tmp_path) as service:
        made = await service.json("POST", f"{FLOW}/connections", json=connection, status=201)
        texts = []
        paths = [route[1] for route in served_routes(service.app) if route[0] == "GET"]
        for path in paths:
            async with service.ask("GET", re.sub(r"\{[^}]*\}", made["id"], path)) as response:
                texts.append(await response.text() + str(response.headers))
        for probe in (PASSWORD, "wrong"):
            patch = [{"op": "test", "path": "/auth/params/password", "value": probe}]
            headers = {"If-Match": made["etag"]}
            address = f"{FLOW}/connections/{made['id']}"
            async with service.ask("PATCH", address, json=patch, headers=headers) as response:
                texts.append(await response.text())
                assert response.status == 400
        assert texts[-1] == texts[-2] or re.sub(r'"request-id":"[^"]*"', "", texts[-1]) == re.sub(
            r'"request-id":"[^"]*"', "", texts[-2]
        )
        escaped = json.dumps(PASSWORD)[1:-1]
        stored = str([service.store.objects(kind) for kind in ("connections", TOKENS)])
        for text in [*texts, stored, str(service.events)]:
            assert PASSWORD not in text
            assert escaped not in text
