"""The service as processes: from the first request to rows, signals, and replicas that die and are paused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support import FLOW_FILE, PASSWORD, body_of, free_port, lake_rows, rows_of
from worker.mixpanel.simulator import DEMO_PROJECT_ID, DEMO_USERNAME, Simulator, SimulatorThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

ROUNDS = int(os.environ.get("MIXPANEL_WORKER_ROUNDS", "8"))
SERVICE = "/data/foundation/flowservice"
GENEROUS_SECONDS = 60.0
TODAY = datetime.now(UTC).date()
DAYS = [TODAY - timedelta(days=number) for number in range(4, 0, -1)]


class Replica:
    """One process of the service, what it says, and how to ask it."""

    def __init__(self, folder: Path, state: str, mixpanel: str, *paths: str, **environ: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.url = ""
        self._changed = threading.Condition()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WORKER_")},
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "WORKER_STATE": state,
            "WORKER_LAKE": str(folder / "lake"),
            "WORKER_SPOOL": str(folder / "spool"),
            "WORKER_KEY_FILE": str(folder / "key"),
            "WORKER_HTTP": f"127.0.0.1:{free_port()}",
            "WORKER_EXPORTS_PER_HOUR": "1000000",
            "WORKER_EXPORTS_PER_SECOND": "1000000",
            "WORKER_RETRY_WAIT_MAX_SECONDS": "0.05",
            "WORKER_TICK_SECONDS": "0.2",
            "WORKER_LEASE_SECONDS": "2",
            "MIXPANEL_HOST": mixpanel,
            "MIXPANEL_PASSWORD": PASSWORD,
            **environ,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run", *paths],
            cwd=folder,
            text=True,
            stderr=subprocess.PIPE,
            env=self.environ,
        )
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                elif found := re.match(r"Serving at ([^\s,]+)", line):
                    self.url = found[1]
                self.said.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the process if it has not ended, and let go of what it says."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._listening.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def wait_for(self, what: Callable[[], object]) -> None:
        """Until it is so, by what the process has said."""
        with self._changed:
            assert self._changed.wait_for(what, GENEROUS_SECONDS), "".join(self.said)

    def ready(self) -> Replica:
        self.wait_for(lambda: self.url or self.process.poll() is not None)
        assert self.url, "".join(self.said)
        return self

    def ended_runs(self) -> set[str]:
        return {event["run_id"] for event in self.events if event["event"] == "run_ended"}

    def ask(self, path: str, body: object = None, method: str | None = None, **headers: str) -> Any:
        request = Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **headers},
            method=method,
        )
        try:
            with urlopen(request, timeout=GENEROUS_SECONDS) as answer:
                text = answer.read()
        except HTTPError as error:
            error.add_note(error.read().decode())
            raise
        return json.loads(text) if text else None

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(GENEROUS_SECONDS)


@pytest.fixture
def mixpanel() -> Iterator[SimulatorThread]:
    with SimulatorThread(Simulator(password=PASSWORD)) as server:
        yield server


@contextmanager
def ended(*replicas: Replica) -> Iterator[None]:
    try:
        yield
    finally:
        for replica in replicas:
            replica.close()


def write_flow(folder: Path, name: str = "Flow", dataset: str = "events") -> None:
    document = json.loads(json.dumps(FLOW_FILE))
    document["flow"]["name"] = name
    document["targetConnection"]["params"]["dataSetId"] = dataset
    (folder / "flows").mkdir(exist_ok=True)
    (folder / "flows" / f"{dataset}.json").write_text(json.dumps(document))


def state_of(folder: Path) -> str:
    return f"sqlite:///{folder}/worker.db"


def test_from_the_first_request_to_rows(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    for day in DAYS:
        mixpanel.simulator.set_day(day, body_of(day, "v1"))
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url)
    with ended(replica):
        replica.ready()
        base = replica.ask(
            f"{SERVICE}/connections",
            {
                "name": "Mixpanel",
                "connectionSpec": {"id": "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb", "version": "1.0"},
                "auth": {
                    "specName": "Basic Authentication",
                    "params": {"username": DEMO_USERNAME, "password": PASSWORD, "host": mixpanel.base_url},
                },
            },
        )["id"]
        assert replica.ask(f"{SERVICE}/connections/{base}/test") == {"result": True}
        source = replica.ask(
            f"{SERVICE}/sourceConnections",
            {
                "name": "Events",
                "baseConnectionId": base,
                "connectionSpec": {"id": "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb", "version": "1.0"},
                "data": {"format": "json"},
                "params": {"projectId": DEMO_PROJECT_ID, "timezone": "UTC", "lookbackDays": 4},
            },
        )["id"]
        target = replica.ask(
            f"{SERVICE}/targetConnections",
            {
                "name": "Lake",
                "connectionSpec": {"id": "c604ff05-7f1a-43c0-8e18-33bf874cb11c", "version": "1.0"},
                "data": {"format": "delta"},
                "params": {"dataSetId": "events"},
            },
        )["id"]
        mapping = replica.ask("/data/foundation/conversion/mappingSets", FLOW_FILE["mappingSet"])["id"]
        flow = replica.ask(
            f"{SERVICE}/flows",
            {
                "name": "By API",
                "flowSpec": {"id": "6499120c-0b15-42dc-936e-847ea3c24d72", "version": "1.0"},
                "sourceConnectionIds": [source],
                "targetConnectionIds": [target],
                "transformations": [{"name": "Mapping", "params": {"mappingId": mapping, "mappingVersion": "0"}}],
                "scheduleParams": {"startTime": "1625040887", "frequency": "minute", "interval": 15},
            },
        )["id"]
        replica.wait_for(replica.ended_runs)
        [run] = replica.ask(f"{SERVICE}/runs?property=flowId=={flow}")["items"]
        assert run["metrics"]["statusSummary"]["status"] == "success", run
        assert run["metrics"]["recordSummary"]["outputRecordCount"] == 20 * len(DAYS)
        assert {day: rows for day, rows in lake_rows(tmp_path / "lake" / "events").items() if rows} == {
            day: rows_of(day, "v1") for day in DAYS
        }
        with urlopen(replica.url + "/metrics", timeout=GENEROUS_SECONDS) as answer:
            metrics = answer.read().decode()
        assert 'mixpanel_worker_runs_total{flow="By API",status="success"} 1.0' in metrics
        assert re.search(r'mixpanel_worker_flow_lag_seconds\{flow="By API"\} \d', metrics)
        left = re.search(rf'mixpanel_worker_export_quota_left\{{project="{DEMO_PROJECT_ID}"\}} (\S+)', metrics)
        assert left is not None
        assert 0 < float(left[1]) < 1_000_000
        assert replica.end(signal.SIGTERM) == 0
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert PASSWORD.encode() not in everything
    assert PASSWORD not in "".join(replica.said)


def test_flow_files_are_applied_again_without_harm(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    write_flow(tmp_path)
    flows = []
    for number in (signal.SIGTERM, signal.SIGINT):
        replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, "flows")
        with ended(replica):
            flows.append(replica.ready().ask(f"{SERVICE}/flows")["items"])
            assert replica.end(number) == (0 if number == signal.SIGTERM else 130)
    assert flows[0] == flows[1]
    assert [flow["name"] for flow in flows[0]] == ["Flow"]


def test_SIGTERM_ends_a_run_in_order_and_the_next_process_goes_on(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    write_flow(tmp_path)
    for day in DAYS:
        mixpanel.simulator.set_day(day, body_of(day, "v1"))
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, "flows", WORKER_LOG_LEVEL="debug")
    with ended(replica):
        flow = replica.ready().ask(f"{SERVICE}/flows")["items"][0]["id"]
        replica.ask(f"{SERVICE}/runs", {"flowId": flow, "status": "active"})
        replica.wait_for(lambda: any(event["event"] == "export_opened" for event in replica.events))
        assert replica.end(signal.SIGTERM) == 0
    again = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, "flows")
    with ended(again):
        run = again.ready().ask(f"{SERVICE}/runs", {"flowId": flow, "status": "active"})["id"]
        again.wait_for(lambda: run in again.ended_runs())
        assert again.ask(f"{SERVICE}/runs/{run}")["items"][0]["metrics"]["statusSummary"]["status"] == "success"
        assert again.end(signal.SIGTERM) == 0
    assert {day: rows for day, rows in lake_rows(tmp_path / "lake" / "events").items() if rows} == {
        day: rows_of(day, "v1") for day in DAYS
    }


def test_a_new_process_shows_how_far_the_flows_are_and_forgets_those_that_are_deleted(
    tmp_path: Path, mixpanel: SimulatorThread
) -> None:
    def series(replica: Replica) -> dict[str, float]:
        with urlopen(replica.url + "/metrics", timeout=GENEROUS_SECONDS) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(r'^(\w+)\{flow="Flow"\} (\S+)$', text, re.MULTILINE)}

    def told(replica: Replica, name: str) -> None:
        replica.wait_for(lambda: any(event["event"] == name for event in replica.events))

    write_flow(tmp_path)
    debug = {"WORKER_LOG_LEVEL": "debug"}
    first = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, "flows", **debug)
    with ended(first):
        flow = first.ready().ask(f"{SERVICE}/flows")["items"][0]
        run = first.ask(f"{SERVICE}/runs", {"flowId": flow["id"], "status": "active"})["id"]
        first.wait_for(lambda: run in first.ended_runs())
        before = series(first)
        assert first.end(signal.SIGTERM) == 0
    success, lag = "mixpanel_worker_flow_last_success_timestamp_seconds", "mixpanel_worker_flow_lag_seconds"
    again = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, **debug)
    with ended(again):
        again.ready()
        told(again, "flow_known")
        after = series(again)
        assert set(after) == {success, lag}
        assert after[success] == before[success]
        assert after[lag] >= before[lag] > 0
        again.ask(f"{SERVICE}/flows/{flow['id']}", method="DELETE")
        told(again, "flow_gone")
        assert series(again) == {}
        assert again.end(signal.SIGTERM) == 0


def test_a_single_run_leaves_a_flow_alone_that_the_service_runs(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    write_flow(tmp_path)
    mixpanel.simulator.fault("stall")
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, "flows")
    with ended(replica):
        flow = replica.ready().ask(f"{SERVICE}/flows")["items"][0]["id"]
        replica.ask(f"{SERVICE}/runs", {"flowId": flow, "status": "active"})
        mixpanel.wait_for_requests(1, timeout_seconds=GENEROUS_SECONDS)
        single = subprocess.run(
            [sys.executable, "-m", "worker", "run", "flows/events.json", "--once"],
            cwd=tmp_path,
            env=replica.environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=GENEROUS_SECONDS,
        )
        assert replica.end(signal.SIGTERM) == 0
    assert (single.returncode, single.stdout) == (1, "")
    *_, last = single.stderr.splitlines()
    assert last.startswith(f"Error: Flow: It is being run by the service, process {replica.process.pid} on "), last
    assert "Traceback" not in single.stderr


@pytest.mark.parametrize(
    ("environ", "code", "told"),
    [
        ({"WORKER_HTTP": "0.0.0.0:0"}, 2, "WORKER_HTTP"),
        ({"WORKER_HTTP": "0.0.0.0:18081"}, 2, "WORKER_API_CLIENTS"),
        ({"WORKER_HTTP": "0.0.0.0:18081", "WORKER_API_CLIENTS": "me:0123456789abcdef"}, 2, "WORKER_TLS_PROXY=yes"),
        ({"WORKER_HTTP": "192.0.2.1:18081", "WORKER_API_CLIENTS": "me:short"}, 2, "16 characters"),
    ],
)
def test_what_would_not_be_safe_is_not_started(tmp_path: Path, environ: dict[str, str], code: int, told: str) -> None:
    replica = Replica(tmp_path, state_of(tmp_path), "http://127.0.0.1:9", **environ)
    with ended(replica):
        assert replica.process.wait(GENEROUS_SECONDS) == code
        replica.wait_for(lambda: any(told in line for line in replica.said))
    assert not (tmp_path / "worker.db").exists()


def test_a_port_that_is_taken_is_told(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    port = mixpanel.base_url.rpartition(":")[2]
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, WORKER_HTTP=f"127.0.0.1:{port}")
    with ended(replica):
        assert replica.process.wait(GENEROUS_SECONDS) == 1
        replica.wait_for(lambda: any("WORKER_HTTP" in line for line in replica.said))


def test_with_clients_only_they_come_in(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    secret = "0123456789-canary-abcdef"
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, WORKER_API_CLIENTS=f"me:{secret}")
    with ended(replica):
        replica.ready()
        with pytest.raises(HTTPError) as refused:
            replica.ask(f"{SERVICE}/flows")
        assert refused.value.code in {401, 403}
        refused.value.close()
        request = Request(
            replica.url + "/ims/token/v3",
            f"grant_type=client_credentials&client_id=me&client_secret={secret}".encode(),
        )
        with urlopen(request, timeout=GENEROUS_SECONDS) as answer:
            token = json.loads(answer.read())["access_token"]
        assert replica.ask(f"{SERVICE}/flows", Authorization=f"Bearer {token}")["items"] == []
        assert replica.end(signal.SIGTERM) == 0
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in everything
    assert token.encode() not in everything


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


def test_it_speaks_tls_itself(tmp_path: Path, mixpanel: SimulatorThread) -> None:
    certificate, key = self_signed(tmp_path)
    files = {"WORKER_TLS_CERTIFICATE": str(certificate), "WORKER_TLS_KEY": str(key)}
    replica = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, **files)
    with ended(replica):
        assert replica.ready().url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with urlopen(replica.url + "/healthz", timeout=GENEROUS_SECONDS, context=trusting) as answer:
            assert answer.status == 200
        assert replica.end(signal.SIGTERM) == 0
    for wrong, told in (
        ({"WORKER_TLS_CERTIFICATE": str(certificate)}, "go together"),
        (files | {"WORKER_TLS_KEY": str(certificate)}, "cannot be used as certificate and key"),
        (files | {"WORKER_TLS_KEY": str(tmp_path / "none")}, "cannot be used as certificate and key"),
    ):
        refused = Replica(tmp_path, state_of(tmp_path), mixpanel.base_url, **wrong)
        with ended(refused):
            assert refused.process.wait(GENEROUS_SECONDS) == 2
            refused.wait_for(lambda: any(told in line for line in refused.said))  # noqa: B023 - called in this round


# Replicas


@pytest.fixture(params=["sqlite", "postgres"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield state_of(tmp_path)
        return
    from tests.test_store_postgres import postgres_state

    with postgres_state() as url:
        yield url


def test_F084_F085_replicas_that_die_and_are_paused_lose_and_double_nothing(
    tmp_path: Path, mixpanel: SimulatorThread, state: str
) -> None:
    """Random kills and pauses, while versions of the days come and go; every look at the table shows whole days."""
    chance = random.Random(84)
    write_flow(tmp_path)
    version = 1

    def put() -> None:
        for day in DAYS:
            mixpanel.simulator.set_day(day, body_of(day, f"v{version}"))

    put()
    replicas = [Replica(tmp_path, state, mixpanel.base_url, "flows") for _ in range(2)]
    try:
        for replica in replicas:
            replica.ready()
        flow = replicas[0].ask(f"{SERVICE}/flows")["items"][0]["id"]
        window = {"first": DAYS[0], "last": DAYS[-1]}
        for _ in range(ROUNDS):
            version += 1
            put()
            asked = chance.choice(replicas)
            asked.ask(f"{SERVICE}/runs", run_request(flow, **window))
            # the moment is part of the chance, and not waited for
            time.sleep(chance.random() * 0.8)
            victim = chance.choice(replicas)
            if chance.random() < 0.5:
                victim.close()
                replicas[replicas.index(victim)] = Replica(tmp_path, state, mixpanel.base_url, "flows").ready()
            else:
                victim.process.send_signal(signal.SIGSTOP)
                time.sleep(chance.random() * 3)
                victim.process.send_signal(signal.SIGCONT)
            assert_whole_days(tmp_path / "lake" / "events", version)
        run = replicas[0].ask(f"{SERVICE}/runs", run_request(flow, **window))["id"]
        deadline = time.monotonic() + GENEROUS_SECONDS
        while (state_word := status_of(replicas[0], run)) not in {"success", "failed"}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert state_word == "success"
        assert lake_rows(tmp_path / "lake" / "events") == {day: rows_of(day, f"v{version}") for day in DAYS}
        codes = [replica.end(signal.SIGTERM) for replica in replicas]
        assert codes == [0, 0]
    finally:
        with ended(*replicas):
            pass


def run_request(flow: str, first: date, last: date) -> dict[str, Any]:
    """The body of POST /runs with a window: the start of the first day to the end of the last, in seconds."""
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    return {
        "flowId": flow,
        "status": "active",
        "params": {"windowStartTime": int(start.timestamp()), "windowEndTime": int(end.timestamp())},
    }


def status_of(replica: Replica, run: str) -> str:
    [item] = replica.ask(f"{SERVICE}/runs/{run}")["items"]
    return str(item["metrics"]["statusSummary"]["status"])


def assert_whole_days(table: Path, newest: int) -> None:
    if not (table / "_delta_log").exists():
        return
    for day, rows in lake_rows(table).items():
        versions = {version for _, version in rows}
        assert len(versions) == 1, f"{day} holds rows of {versions}"
        version = versions.pop()
        assert int(version[1:]) <= newest
        assert rows == rows_of(day, version), day
