"""What is in deploy/ fits the worker: settings, metrics, commands, tools' own checks, and nothing secret in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml

from worker import cli
from worker.metrics import Metrics
from worker.service import prepare_flow
from worker.settings import SETTINGS, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
YAML_FILES = sorted(DEPLOY.rglob("*.yaml")) + sorted(DEPLOY.rglob("*.yml"))
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
ENVIRONMENT_FILES = sorted(DEPLOY.glob("*.env.example"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
[WORKLOAD] = yaml.safe_load_all((DEPLOY / "kubernetes" / "statefulset.yaml").read_text(encoding="utf-8"))
POD = WORKLOAD["spec"]["template"]["spec"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))

FLOWS_FOLDER = "/etc/mixpanel-worker/flows"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")


def run(*command: str, folder: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def documents_of(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def names_of(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


@pytest.mark.parametrize("path", YAML_FILES, ids=names_of)
def test_yaml_parses(path: Path) -> None:
    assert all(documents_of(path))


# Prometheus and Grafana


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    checked = run("promtool", "check", "config", "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


@needs_promtool
def test_alerts_pass_their_unit_tests() -> None:
    tested = run("promtool", "test", "rules", "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_its_unit_test_in_both_ways() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {rule["alertname"] for test in tests for rule in test.get("alert_rule_test", []) if rule.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}
    assert any("promql_expr_test" in test for test in tests), "a healthy worker alerts nobody"


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    sections = {
        re.sub(r"\W+", "-", title.lower()): text
        for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", runbook, re.MULTILINE)
    }
    for alert in ALERTS:
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert file == "RUNBOOK.md"
        assert f"`{alert['alert']}`" in sections[anchor]
        assert {"summary", "description", "runbook"} == set(alert["annotations"])
        assert alert["labels"]["severity"] in {"warning", "critical"}
    named = set(re.findall(r"`(Mixpanel[A-Za-z]+)`", runbook))
    assert named == {alert["alert"] for alert in ALERTS}
    parts = ("You see:", "Why:", "Do:")
    for anchor in {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS}:
        assert all(part in sections[anchor] for part in parts), anchor


def queries_of_the_dashboard() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@needs_promtool
def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$flow", ".*")}
        for number, query in enumerate(queries_of_the_dashboard())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    checked = run("promtool", "check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_every_metric_that_is_asked_for_exists() -> None:
    text = Metrics().text().decode()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        known |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    [flows] = [variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "flow"]
    tests = (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8")
    runbook = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    texts = [*queries_of_the_dashboard(), *(alert["expr"] for alert in ALERTS), flows["query"], tests, runbook]
    asked = {name for part in texts for name in re.findall(r"\b(?:mixpanel_worker|process)_[a-z_]+", part)}
    assert asked - known == set()
    unused = {"export_wait_seconds_bucket", "export_wait_seconds_count", "step_seconds_sum", "step_seconds_count"}
    unused |= {"days_total", "listener_errors_total"}
    own = {name for name in known if name.startswith("mixpanel_worker_")}
    assert own - asked <= {f"mixpanel_worker_{name}" for name in unused}, "metrics that nobody looks at"


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_prometheus_asks_for_the_job_that_the_alerts_know() -> None:
    [job] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["job_name"] == "mixpanel-worker"
    asked = "\n".join([*queries_of_the_dashboard(), *(alert["expr"] for alert in ALERTS)])
    named = set(re.findall(r'job="([^"]+)"', asked))
    assert named == {job["job_name"]}
    [target] = job["static_configs"][0]["targets"]
    assert target == COMPOSE["services"]["worker"]["environment"]["WORKER_HTTP"]
    # and both are where that address is the same one
    assert COMPOSE["services"]["prometheus"]["network_mode"] == COMPOSE["services"]["worker"]["network_mode"]


# Settings


FULL_ENVIRONMENT_START = """\
# All settings of the worker with their defaults, and what the example flow takes: for `docker run --env-file`, for
# env_file of compose, or for a shell. The few that most need are in worker.env.example. Copy it, fill it in, keep the
# copy out of version control:
#   cp deploy/worker.full.env.example worker.env && chmod 600 worker.env

# What deploy/flow.example.yaml takes: a service account of the project, and where the project lives
# (data.mixpanel.com, data-eu.mixpanel.com or data-in.mixpanel.com).
MIXPANEL_HOST=https://data.mixpanel.com
MIXPANEL_PROJECT_ID=
MIXPANEL_USERNAME=
MIXPANEL_PASSWORD="""
KNOWN_SETTINGS = {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("path", FILES, ids=names_of)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"\bWORKER_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
    assert named - KNOWN_SETTINGS == set()


def assignments(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def full_environment() -> str:
    """deploy/worker.full.env.example as it follows from the settings. Prints itself: python -m tests.test_deploy."""
    parts = [FULL_ENVIRONMENT_START]
    for setting in SETTINGS:
        unit = f" ({setting.unit})" if setting.unit else ""
        lines = textwrap.wrap(f"{setting.meaning[0].upper()}{setting.meaning[1:]}{unit}.", 118)
        if setting.computed:
            lines.append(f"Default: {setting.default}.")
        default = "" if setting.computed else setting.default
        parts.append("\n".join([*(f"# {line}" for line in lines), f"{setting.name}={default}"]))
    return "\n\n".join(parts) + "\n"


def test_the_full_environment_has_every_setting_with_its_default() -> None:
    path = DEPLOY / "worker.full.env.example"
    assert path.read_text(encoding="utf-8") == full_environment(), "put there: python -m tests.test_deploy"
    assert load_settings(assignments(path)) == load_settings({})


@pytest.mark.parametrize("path", ENVIRONMENT_FILES, ids=names_of)
def test_environment_files_hold_no_comment_behind_a_value_and_no_secret(path: Path) -> None:
    for name, value in assignments(path).items():
        assert not re.search(r"\s#|^['\"]", value), f"{name}: docker would take it as a part of the value"
        assert not value or not is_secret(name), name


def settings_of_the_image() -> dict[str, str]:
    return dict(re.findall(r"\b(WORKER_[A-Z_]+)=(\S+)", DOCKERFILE))


def configuration_of_the_cluster() -> dict[str, dict[str, str]]:
    return {document["metadata"]["name"]: document["data"] for document in documents_of(MANIFESTS[0])}


def test_the_service_starts_with_the_settings_of_image_compose_and_cluster() -> None:
    from worker.daemon import check_exposure, key_path

    compose = COMPOSE["services"]["worker"]["environment"]
    cluster = {**configuration_of_the_cluster()["mixpanel-worker"], "WORKER_API_CLIENTS": "client:" + "s" * 16}
    for environ in (settings_of_the_image(), compose, cluster):
        check_exposure(load_settings(environ))
        assert key_path(load_settings(environ)).is_absolute()


# Compose and Kubernetes


def test_the_flow_of_compose_is_the_example_with_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    [mounted] = [volume for volume in COMPOSE["services"]["worker"]["volumes"] if FLOWS_FOLDER in volume]
    path = DEPLOY / mounted.partition(":")[0]
    example = yaml.safe_load((DEPLOY / "flow.example.yaml").read_text(encoding="utf-8"))
    scheduled = yaml.safe_load(path.read_text(encoding="utf-8"))
    del scheduled["flow"]["scheduleParams"]
    assert scheduled == example
    monkeypatch.chdir(ROOT)
    assert prepare_flow(path, {}, load_settings({})).flow.schedule is not None


def test_the_network_that_is_shared_outlives_its_sharers() -> None:
    services = COMPOSE["services"]
    sharers = {name: service for name, service in services.items() if "network_mode" in service}
    assert set(sharers) == {"worker", "mixpanel", "prometheus"}
    assert {service["network_mode"] for service in sharers.values()} == {"service:loopback"}
    assert all(service["depends_on"]["loopback"]["restart"] for service in sharers.values())
    assert not any("ports" in service for service in sharers.values())
    assert services["loopback"]["entrypoint"] == ["sleep", "infinity"]
    [source] = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))["datasources"]
    [port] = services["loopback"]["ports"]
    assert source["url"] == f"http://loopback:{port.rpartition(':')[2]}"


def test_the_flow_of_the_cluster_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [(name, text)] = configuration_of_the_cluster()["mixpanel-worker-flows"].items()
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    [secret] = [
        document["stringData"]
        for document in documents_of(DEPLOY / "kubernetes" / "secret.example.yaml")
        if document["metadata"]["name"] == "mixpanel-worker"
    ]
    wanted = set(re.findall(r"\$\{(\w+)\}", text))
    assert wanted == {name for name in secret if name.startswith("MIXPANEL_")}
    prepared = prepare_flow(path, dict.fromkeys(wanted, "12345"), load_settings({}))
    assert prepared.flow.schedule is not None


def kubernetes_validate() -> list[str] | None:
    # it is one of the development dependencies, so it lies beside the interpreter
    found = shutil.which("kubernetes-validate", path=str(Path(sys.executable).parent))
    return [found] if found else None


@pytest.mark.skipif(kubernetes_validate() is None, reason="kubernetes-validate is not installed")
@pytest.mark.parametrize("path", MANIFESTS, ids=names_of)
def test_kubernetes_validate_accepts_the_manifests(path: Path) -> None:
    command = kubernetes_validate()
    assert command is not None
    checked = run(*command, "--strict", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_pod_is_confined_and_fits_together() -> None:
    [service] = documents_of(DEPLOY / "kubernetes" / "service.yaml")
    labels = WORKLOAD["spec"]["template"]["metadata"]["labels"]
    assert WORKLOAD["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert WORKLOAD["spec"]["serviceName"] == service["metadata"]["name"]
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert f"USER {POD['securityContext']['runAsUser']}:" in DOCKERFILE
    volumes = {volume["name"] for volume in POD["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in WORKLOAD["spec"]["volumeClaimTemplates"]}
    for container in [*POD["initContainers"], *POD["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    [worker] = POD["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(worker)
    [port] = [port["containerPort"] for port in worker["ports"]]
    settings = configuration_of_the_cluster()["mixpanel-worker"]
    assert settings["WORKER_HTTP"].endswith(f":{port}")
    mounted = {mount["mountPath"] for mount in worker["volumeMounts"]}
    assert {settings["WORKER_SPOOL"], FLOWS_FOLDER} <= mounted
    assert str(Path(settings["WORKER_KEY_FILE"]).parent) in mounted
    configured = {next(iter(source.values()))["name"] for source in worker["envFrom"]}
    assert configured == {"mixpanel-worker"}
    assert load_settings(settings).max_memory_bytes < 768 << 20, "the pod asks for 768Mi"


def test_compose_confines_the_worker_and_opens_ports_to_this_machine_only() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"loopback", "worker", "mixpanel", "postgres", "prometheus", "grafana"}
    for name in ("loopback", "worker", "mixpanel"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    for service in services.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    assert (DEPLOY / services["worker"]["build"]["context"] / services["worker"]["build"]["dockerfile"]).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(COMPOSE["services"]["worker"]["command"], id="worker"),
        pytest.param(COMPOSE["services"]["mixpanel"]["command"], id="mixpanel"),
        pytest.param(POD["containers"][0]["args"], id="cluster"),
        pytest.param(json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1]), id="image"),
    ],
)
def test_the_commands_of_containers_exist(arguments: list[str]) -> None:
    commands: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009 - typer's own click is not public
    name, *rest = arguments
    command = commands[name]
    command.make_context(name, list(rest))
    assert name != "run" or rest == [FLOWS_FOLDER]


# The image


def test_the_image_starts_the_worker_as_process_1_without_a_shell() -> None:
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE)
    last_stage = lines[lines.rindex("FROM ") :]
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", last_stage, re.MULTILINE)[0]) == ["mixpanel-worker"]
    assert json.loads(re.findall(r"^CMD (.+)$", last_stage, re.MULTILINE)[-1]) == ["run", FLOWS_FOLDER]
    assert f"install -d {FLOWS_FOLDER}" in last_stage
    user = re.findall(r"^USER (\d+):(\d+)$", last_stage, re.MULTILINE)
    assert user == [("10001", "0")]
    assert re.match(r"(#.*\n)*ARG BASE=", DOCKERFILE)
    assert DOCKERFILE.count("FROM ${BASE}") == DOCKERFILE.count("\nFROM ") == 2
    assert "ADD " not in DOCKERFILE
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


def health_command() -> list[str]:
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE)
    [command] = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", lines, re.MULTILINE)
    python, *arguments = json.loads(command)
    assert python == "python"
    return [sys.executable, *arguments]


@pytest.fixture
def health_server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server: Any = self.server
            server.asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def is_healthy(**environ: str) -> bool:
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", **environ}
    return subprocess.run(health_command(), env=environ, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_the_health_check_of_the_image_tells_well_from_ill(health_server: Any, host: str) -> None:
    address = f"{host}:{health_server.server_port}"
    assert is_healthy(WORKER_HTTP=address, WORKER_TLS_CERTIFICATE="")
    health_server.status = 503
    assert not is_healthy(WORKER_HTTP=address)
    assert health_server.asked == ["/healthz", "/healthz"]


def test_the_health_check_speaks_tls_with_a_worker_that_does(health_server: Any, tmp_path: Path) -> None:
    from tests.test_replicas import self_signed

    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    health_server.socket = context.wrap_socket(health_server.socket, server_side=True)
    environ = {"WORKER_HTTP": f"0.0.0.0:{health_server.server_port}", "WORKER_TLS_CERTIFICATE": str(certificate)}
    assert is_healthy(**environ)
    health_server.status = 503
    assert not is_healthy(**environ)
    assert health_server.asked == ["/healthz", "/healthz"]


def test_without_proc_blocks_are_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.mixpanel.body import Block
    from worker.mixpanel.decode import Decoder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    decoder = Decoder([("event",)], max_line_bytes=1000, max_raw_bytes=100)
    [file] = tmp_path.iterdir()
    decoded = decoder.decode(Block(b'{"event": "a"}\n{"event": "b"}\n'))
    assert decoded.texts[0].to_pylist() == ["a", "b"]
    decoder.close()
    assert not file.exists()


# Secrets


def is_secret(name: str) -> bool:
    return bool(re.search(r"PASSWORD|SECRET|TOKEN|CLIENTS|\.key$|USERNAME", name))


def test_manifests_and_compose_hold_no_secret() -> None:
    def values(document: Any, name: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(document, dict):
            for key, value in document.items():
                yield from values(value, str(key))
        elif isinstance(document, list):
            for value in document:
                yield from values(value, name)
        elif isinstance(document, str):
            yield name, document

    for path in [*MANIFESTS, DEPLOY / "compose.yaml", *sorted((DEPLOY / "grafana").glob("*.yaml"))]:
        for document in documents_of(path):
            for name, value in values(document):
                assert not is_secret(name) or re.fullmatch(r"|\$\{\w+:\?[^}]*\}", value), f"{path.name}: {name}"
                for password in re.findall(r"://[^/@\s]*:([^/@\s]+)@", value):
                    assert password.startswith("${"), f"{path.name}: {name}"


@pytest.mark.parametrize("path", FILES, ids=names_of)
def test_no_file_looks_like_it_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"-----BEGIN|\b(?:sk|ghp|xox[bp])[_-][A-Za-z0-9]{12,}|\bAKIA[A-Z0-9]{12,}", text)
    assert not re.search(r"\b[A-Za-z0-9+]{32,}", text), "a key in hexadecimal digits or base64"


if __name__ == "__main__":
    sys.stdout.write(full_environment())
