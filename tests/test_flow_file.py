"""The flow file: what is taken, what is refused and how that is said, and that no secret is printed."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.flow_file import FlowFile, check_export_host, load_flow
from worker.model import Credentials, Options, Schedule, Secret, Source, Target, flow_id_of
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENTED = """\
baseConnection:                       # body of POST /connections
  name: Mixpanel base connection
  auth: {specName: Basic Authentication, params: {username: "${MIXPANEL_USERNAME}", password: "${MIXPANEL_PASSWORD}"}}
sourceConnection:                     # body of POST /sourceConnections
  data: {format: json}
  params: {projectId: "2384945", timezone: Pacific Standard Time}
targetConnection:                     # body of POST /targetConnections
  data: {format: delta}
  params: {dataSetId: 5ef4551c52e054191a61a99f}
mappingSet: mapping.json
flow:                                 # body of POST /flows
  name: Mixpanel dataflow
  scheduleParams: {startTime: "1625040887", frequency: minute, interval: 15}
  options: {partialIngestionPercent: 10, errorDiagnosticsEnabled: true}
"""
ENVIRON = {"MIXPANEL_USERNAME": "Test8.6d4ee7.mp-service-account", "MIXPANEL_PASSWORD": "p: {ä} #'\"&*!\\ %"}
SETTINGS = load_settings({})


def small_document() -> dict[str, Any]:
    return {
        "baseConnection": {
            "auth": {"specName": "Basic Authentication", "params": {"username": "user", "password": "pw"}}
        },
        "sourceConnection": {"data": {"format": "json"}, "params": {"projectId": "1", "timezone": "UTC"}},
        "targetConnection": {"data": {"format": "delta"}, "params": {"dataSetId": "events"}},
        "mappingSet": {"mappings": []},
        "flow": {"name": "Flow"},
    }


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(document)
    *parents, key = path.split(".")
    section = changed
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    return changed


def write(folder: Path, text: str | bytes, name: str = "flow.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_text(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> FlowFile:
    return load_flow(write(folder, text), ENVIRON if environ is None else environ, SETTINGS)


def load(folder: Path, document: dict[str, Any], environ: dict[str, str] | None = None) -> FlowFile:
    return load_text(folder, json.dumps(document), environ)


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        call()
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


# What is taken


def test_the_documented_flow(tmp_path: Path) -> None:
    write(tmp_path, "{}", "mapping.json")
    assert load_text(tmp_path, DOCUMENTED) == FlowFile(
        name="Mixpanel dataflow",
        flow_id=flow_id_of("Mixpanel dataflow"),
        description="",
        source=Source(
            base_url="https://data.mixpanel.com",
            credentials=Credentials(ENVIRON["MIXPANEL_USERNAME"], Secret(ENVIRON["MIXPANEL_PASSWORD"])),
            project_id="2384945",
            timezone=ZoneInfo("America/Los_Angeles"),
        ),
        target=Target("5ef4551c52e054191a61a99f"),
        schedule=Schedule(1625040887, "minute", 15),
        options=Options(10, error_diagnostics_enabled=True),
        mapping_document=None,
        mapping_path=tmp_path / "mapping.json",
        definition=put(yaml.safe_load(DOCUMENTED), "baseConnection.auth.params.password", "***"),
    )


def test_json_is_known_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, "{}", "mapping.json")
    as_yaml = load_text(tmp_path, DOCUMENTED)
    document = yaml.safe_load(DOCUMENTED)
    assert load_text(tmp_path, "\ufeff" + json.dumps(document, indent="\t")) == as_yaml
    assert load_flow(write(tmp_path, json.dumps(document), "flow.json"), ENVIRON, SETTINGS) == as_yaml


def test_the_bodies_of_adobes_tutorial_can_be_pasted(tmp_path: Path) -> None:
    spec = {"id": "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb", "version": "1.0"}
    document = {
        "baseConnection": {
            "name": "Mixpanel base connection",
            "description": "Mixpanel base connection to authenticate to Platform",
            "connectionSpec": spec,
            "auth": {
                "specName": "Basic Authentication",
                "params": {"host": "https://data.mixpanel.com", "username": "user", "password": "pw"},
            },
        },
        "sourceConnection": {
            "name": "Mixpanel source connection",
            "description": "Mixpanel source connection",
            "baseConnectionId": "70383d02-2777-4be7-a309-9dd6eea1b46d",
            "connectionSpec": spec,
            "data": {"format": "json"},
            "params": {"projectId": "2384945", "timezone": "Pacific Standard Time"},
        },
        "targetConnection": {
            "name": "{Mixpanel} Target Connection",
            "description": "{Mixpanel} Target Connection",
            "connectionSpec": spec,
            "data": {"format": "delta"},
            "params": {"dataSetId": "5ef4551c52e054191a61a99f"},
        },
        "mappingSet": {"version": 0, "id": None, "mappings": []},
        "flow": {
            "name": "{Mixpanel} dataflow",
            "description": "{Mixpanel} dataflow",
            "flowSpec": {"id": "6499120c-0b15-42dc-936e-847ea3c24d72", "version": "1.0"},
            "sourceConnectionIds": ["246d052c-da4a-494a-937f-a0d17b1c6cf5"],
            "targetConnectionIds": ["7c96c827-3ffd-460c-a573-e9558f72f263"],
            "transformations": [{"name": "Mapping", "params": {"mappingId": "bf5286a9", "mappingVersion": "0"}}],
            "scheduleParams": {"startTime": "1625040887", "frequency": "minute", "interval": 15},
        },
    }
    flow = load(tmp_path, document)
    assert flow.description == "{Mixpanel} dataflow"
    assert flow.mapping_document == {"version": 0, "id": None, "mappings": []}
    assert flow.mapping_path is None


@pytest.mark.parametrize(
    ("path", "value", "attribute", "expected"),
    [
        ("sourceConnection.params.projectId", 2384945, "source.project_id", "2384945"),
        ("sourceConnection.params.timezone", "europe/berlin", "source.timezone", ZoneInfo("Europe/Berlin")),
        ("sourceConnection.params.timeBasis", "project", "source.time_basis", "project"),
        ("sourceConnection.params.events", ["a, b", "c", "a, b"], "source.events", ("a, b", "c")),
        ("sourceConnection.params.events", "Sign in, Sign off", "source.events", ("Sign in", "Sign off")),
        ("sourceConnection.params.events", None, "source.events", ()),
        ("sourceConnection.params.where", 'properties["$os"]=="x"', "source.where", 'properties["$os"]=="x"'),
        ("sourceConnection.params.lookbackDays", 0, "source.lookback_days", 0),
        ("sourceConnection.params.lookbackDays", "60", "source.lookback_days", 60),
        ("sourceConnection.params.deduplicate", "none", "source.deduplicate", "none"),
        ("baseConnection.auth.params.region", "eu", "source.base_url", "https://data-eu.mixpanel.com"),
        ("baseConnection.auth.params.region", "in", "source.base_url", "https://data-in.mixpanel.com"),
        ("baseConnection.auth.params.host", "http://127.0.0.1:8091/", "source.base_url", "http://127.0.0.1:8091"),
        ("baseConnection.auth.params.password", None, "source.credentials.is_project_secret", True),
        ("targetConnection.params.dataSetId", 20240101, "target.dataset_id", "20240101"),
        ("flow.options", {}, "options", Options()),
        ("flow.options", {"partialIngestionPercent": "0.5"}, "options", Options(0.5)),
        (
            "flow.options",
            {"errorDiagnosticsEnabled": "false"},
            "options",
            Options(None, error_diagnostics_enabled=False),
        ),
        ("flow.scheduleParams", None, "schedule", None),
        ("flow.scheduleParams", {"startTime": 0, "frequency": "once"}, "schedule", Schedule(0, "once")),
        (
            "flow.scheduleParams",
            {"startTime": 1625040887.0, "frequency": "hour", "interval": "1", "backfill": "false"},
            "schedule",
            Schedule(1625040887, "hour", 1, backfill=False),
        ),
    ],
)
def test_values(tmp_path: Path, path: str, value: object, attribute: str, expected: object) -> None:
    found: Any = load(tmp_path, put(small_document(), path, value))
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


def test_what_yaml_1_1_would_change_silently_stays_as_it_is_written(tmp_path: Path) -> None:
    text = (
        DOCUMENTED.replace('"2384945"', "02384")
        .replace("Mixpanel dataflow", "2024-01-01")
        .replace("5ef4551c52e054191a61a99f", "5e4")
    )
    write(tmp_path, "{}", "mapping.json")
    flow = load_text(tmp_path, text)
    assert (flow.source.project_id, flow.name, flow.target.dataset_id) == ("02384", "2024-01-01", "5e4")


# The environment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "alpha"),
        ("x-${A}-${A}", "x-alpha-alpha"),
        ("${UNSET:-d:e-f}", "d:e-f"),
        ("${EMPTY:-default}", "default"),
        ("${A:-default}", "alpha"),
        ("x${EMPTY}", "x"),
        ("x${UNSET:-}", "x"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A $ {A} a$", "$A $ {A} a$"),
        ("${REFERENCE}", "${A}"),
    ],
)
def test_environment_variables(tmp_path: Path, text: str, expected: str) -> None:
    environ = {"A": "alpha", "EMPTY": "", "REFERENCE": "${A}"}
    assert (
        load(tmp_path, put(small_document(), "sourceConnection.params.where", text), environ).source.where == expected
    )


@given(password=st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
@example(": {[*&!%@`'\"#|>-?\n\t\\")
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_password_from_the_environment_arrives_as_it_is(tmp_path: Path, password: str) -> None:
    write(tmp_path, "{}", "mapping.json")
    flow = load_text(tmp_path, DOCUMENTED, {"MIXPANEL_USERNAME": "user", "MIXPANEL_PASSWORD": password})
    assert flow.source.credentials.password.reveal() == password


def test_a_mapping_set_keeps_the_field_names_of_data_prep(tmp_path: Path) -> None:
    mapping_set = {"mappings": [{"sourceType": "ATTRIBUTE", "source": "${First Name}", "destination": "a.${HOME}"}]}
    assert load(tmp_path, {**small_document(), "mappingSet": mapping_set}).mapping_document == mapping_set


def test_an_unset_variable_names_the_key_that_wants_it(tmp_path: Path) -> None:
    write(tmp_path, "{}", "mapping.json")
    assert problems(lambda: load_text(tmp_path, DOCUMENTED, {"MIXPANEL_PASSWORD": "pw"})) == [
        "baseConnection.auth.params.username: the environment variable MIXPANEL_USERNAME is not set"
    ]


@pytest.mark.parametrize("text", ["${}", "${A", "${1A}", "${A-b}", "${A:-${B}}"])
def test_a_reference_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(lambda: load(tmp_path, put(small_document(), "sourceConnection.params.where", text))) == [
        "sourceConnection.params.where: "
        "takes ${NAME} or ${NAME:-default}; the two characters themselves are written $${"
    ]


def test_a_value_from_the_environment_is_shown_as_it_is_written(tmp_path: Path) -> None:
    document = put(small_document(), "sourceConnection.params.projectId", "${A}")
    document = put(document, "sourceConnection.params.timezone", "${A}")
    assert problems(lambda: load(tmp_path, document, {"A": "hunter2 hunter2"})) == [
        "sourceConnection.params.projectId: '${A}' is not a project id, which is digits",
        "sourceConnection.params.timezone: '${A}' is not a time zone; "
        "take a name like 'Pacific Standard Time' or 'Europe/Berlin'",
    ]


# What is refused


PAST_DELTA = "is not taken; it takes delta"
INTERVAL_15 = "is not a whole number from 15 to 525600"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("baseConnection.auth.specName", "OAuth", "'OAuth' is not taken; it takes Basic Authentication"),
        ("baseConnection.auth.params.region", "us-east", "'us-east' is not taken; it takes us or eu or in"),
        ("baseConnection.auth.params.username", "", "must not be empty"),
        ("baseConnection.auth.params.username", None, "is missing"),
        (
            "baseConnection.auth.params.username",
            "a:b",
            "a colon or a control character cannot be sent as a user name (RFC 7617)",
        ),
        ("baseConnection.auth.params.password", 12345, "must be a text; put it in quotes"),
        ("baseConnection.auth.params.host", "data.mixpanel.com", "a host begins with https://"),
        ("baseConnection.auth", "secret", "must have keys below it: specName, params"),
        ("sourceConnection.data.format", "csv", "'csv' is not taken; it takes json"),
        ("sourceConnection.data.format", None, "is missing"),
        (
            "sourceConnection.params.timezone",
            "Pacific Time",
            "'Pacific Time' is not a time zone; did you mean 'Pacific Standard Time'?",
        ),
        ("sourceConnection.params.timeZone", "UTC", "there is no such key; did you mean timezone?"),
        (
            "sourceConnection.timezone",
            "UTC",
            "there is no such key; the keys are name, description, baseConnectionId, connectionSpec, data, params",
        ),
        ("sourceConnection.params.projectId", "23a", "'23a' is not a project id, which is digits"),
        ("sourceConnection.params.projectId", True, "true is not a project id, which is digits"),
        ("sourceConnection.params.projectId", None, "is missing"),
        ("sourceConnection.params.events", [], "must be a list of one or more texts, or one text with commas between"),
        (
            "sourceConnection.params.events",
            "a,,b",
            "must be a list of one or more texts, or one text with commas between",
        ),
        (
            "sourceConnection.params.events",
            ["a", 1],
            "must be a list of one or more texts, or one text with commas between",
        ),
        ("sourceConnection.params.where", "", "must not be empty"),
        ("sourceConnection.params.timeBasis", "local", "'local' is not taken; it takes utc or project"),
        ("sourceConnection.params.lookbackDays", 61, "61 is not a whole number from 0 to 60"),
        ("sourceConnection.params.lookbackDays", 1.5, "1.5 is not a whole number from 0 to 60"),
        ("sourceConnection.params.lookbackDays", "many", "'many' is not a number"),
        ("sourceConnection.params.deduplicate", "mixpannel", "'mixpannel' is not taken; did you mean mixpanel?"),
        ("targetConnection.data.format", "json", f"'json' {PAST_DELTA}"),
        ("targetConnection.data.format", "parquet_delta", f"'parquet_delta' {PAST_DELTA}"),
        (
            "targetConnection.params.dataSetId",
            "../events",
            "'../events' is not a table name: up to 64 of A-Z, a-z, 0-9, _ and -",
        ),
        (
            "targetConnection.params.dataSetId",
            "a" * 65,
            f"'{'a' * 65}' is not a table name: up to 64 of A-Z, a-z, 0-9, _ and -",
        ),
        (
            "targetConnection.params.dataSetId",
            "events_rejects",
            "a name that ends in _rejects is the table of another data set's rejects",
        ),
        ("mappingSet", [], "must be a text; put it in quotes"),
        ("flow.name", "", "must not be empty"),
        ("flow.name", "a\nb", "takes up to 200 printable characters, without spaces around them"),
        ("flow.name", "a" * 201, "takes up to 200 printable characters, without spaces around them"),
        ("flow.name", "\ud800", "is not valid Unicode"),
        ("flow.transformations", "Mapping", "must be a list"),
        ("flow.options.partialIngestionPercent", 0, "0 is not above 0 and up to 100"),
        ("flow.options.partialIngestionPercent", "100.5", "'100.5' is not above 0 and up to 100"),
        ("flow.options.errorDiagnosticsEnabled", "yes", "'yes' is neither true nor false"),
        (
            "flow.scheduleParams.startTime",
            1625040887000,
            "1625040887000 looks like milliseconds; it takes seconds since 1970",
        ),
        ("flow.scheduleParams.startTime", "-1", "'-1' is not a whole number of at least 0"),
        ("flow.scheduleParams.startTime", "now", "'now' is not a number"),
        ("flow.scheduleParams.startTime", None, "is missing"),
        ("flow.scheduleParams.frequency", "minutes", "'minutes' is not taken; did you mean minute?"),
        ("flow.scheduleParams.interval", 14, f"14 {INTERVAL_15}"),
        ("flow.scheduleParams.interval", 10**15, f"{10**15} {INTERVAL_15}"),
        ("flow.scheduleParams.interval", None, "is missing; how often, counted in frequency minute"),
        ("flow.scheduleParams.backfill", 1, "1 is neither true nor false"),
    ],
)
def test_a_problem_is_told_with_its_path(tmp_path: Path, path: str, value: object, problem: str) -> None:
    document = put(small_document(), "flow.scheduleParams", {"startTime": 1, "frequency": "minute", "interval": 15})
    document = put(document, path, value)
    assert problems(lambda: load(tmp_path, document)) == [f"{path}: {problem}"]


def test_a_flow_that_runs_once_has_neither_interval_nor_backfill(tmp_path: Path) -> None:
    schedule = {"startTime": 1, "frequency": "once", "interval": 15, "backfill": True}
    assert problems(lambda: load(tmp_path, put(small_document(), "flow.scheduleParams", schedule))) == [
        "flow.scheduleParams.interval: must be left out where frequency is once",
        "flow.scheduleParams.backfill: must be left out where frequency is once",
    ]


def test_host_and_region_are_not_both_given(tmp_path: Path) -> None:
    document = put(small_document(), "baseConnection.auth.params.region", "eu")
    document = put(document, "baseConnection.auth.params.host", "https://data.mixpanel.com")
    assert problems(lambda: load(tmp_path, document)) == [
        "baseConnection.auth.params.host: give host or region, not both"
    ]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    document = put(small_document(), "sourceConection", {})
    document = put(document, "sourceConnection.params.timezone", "Pacific Time")
    document = put(document, "flow.options.partialIngestionPercent", -1)
    del document["targetConnection"]
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, document)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'flow.yaml'} is not a flow file that can be run:",
        "  sourceConection: there is no such key; did you mean sourceConnection?",
        "  targetConnection: is missing",
        "  sourceConnection.params.timezone: 'Pacific Time' is not a time zone; did you mean 'Pacific Standard Time'?",
        "  flow.options.partialIngestionPercent: -1 is not above 0 and up to 100",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("flow:\n  name: [a\n", ", line 3, column 1: expected ',' or ']', but got '<stream end>'."),
        ("flow: a: b\n", ", line 1, column 8: mapping values are not allowed here."),
        ("flow:\n\tname: a\n", ", line 2, column 1: found character '\\t' that cannot start any token."),
        (
            "a: &x [1]\nb: *x\n",
            ", line 1, column 4: anchors and aliases are not taken; a text that begins with & or * needs quotes.",
        ),
        (
            "b: *x\n",
            ", line 1, column 4: anchors and aliases are not taken; a text that begins with & or * needs quotes.",
        ),
        (
            "a: !!python/name:os.system x\n",
            ", line 1, column 4: tags are not taken; a text that begins with ! needs quotes.",
        ),
        ("flow: {}\nflow: {}\n", ", line 2, column 1: this key is given twice."),
        ("? [a]\n: b\n", ", line 1, column 3: a key is a text; a text that begins with { or [ needs quotes."),
        ("--- {}\n--- {}\n", ", line 2, column 1: a second document begins."),
        ("a: b\x07\n", ", line 1: a control character."),
        (b"a: b\nc: \xff\n", ", line 2: the text is not UTF-8."),
        ("a: " + "[" * 100_000, ", line 1, column 67: nested more than 64 deep."),
        ("[" * 100_000, ": nested more than 64 deep."),
        ('{"flow": {"name": 1, "name": 2}}', ": the key name is given twice."),
        ('{"flow": NaN}', ": NaN is not JSON."),
        ("", " has no keys; a flow file has baseConnection, sourceConnection, targetConnection, mappingSet, flow."),
        (
            "# nothing",
            " has no keys; a flow file has baseConnection, sourceConnection, targetConnection, mappingSet, flow.",
        ),
        ("[]", " has no keys; a flow file has baseConnection, sourceConnection, targetConnection, mappingSet, flow."),
        (b" " * (1024 * 1024 + 1), " is larger than 1048576 bytes: that is not a flow file."),
    ],
)
def test_a_text_that_is_no_document_is_told_with_its_place(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_text(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'flow.yaml'}{problem}"


def test_broken_json_is_told_as_json_where_the_name_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, '{"flow": {\n  "name": }}', "flow.json")
    with pytest.raises(ConfigurationError) as caught:
        load_flow(path, ENVIRON, SETTINGS)
    assert str(caught.value) == f"{path}, line 2, column 11: Expecting value."


def test_deep_json_is_refused(tmp_path: Path) -> None:
    for depth in (65, 900, 50_000):
        text = '{"mappingSet": ' * depth + "1" + "}" * depth
        with pytest.raises(ConfigurationError, match="nested more than 64 deep"):
            load_text(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load_flow(path, ENVIRON, SETTINGS)


# Secrets


def test_the_definition_and_every_representation_are_free_of_secrets(tmp_path: Path) -> None:
    document = put(small_document(), "baseConnection.auth.params", {"username": "visible", "password": "hunter2"})
    flow = load(tmp_path, document)
    assert flow.definition == put(document, "baseConnection.auth.params.password", "***")
    assert "hunter2" not in repr(flow)


def test_a_project_secret_is_masked_although_it_is_a_user_name(tmp_path: Path) -> None:
    flow = load(tmp_path, put(small_document(), "baseConnection.auth.params", {"username": "hunter2"}))
    assert flow.source.credentials.is_project_secret
    assert flow.definition["baseConnection"]["auth"]["params"] == {"username": "***"}
    assert "hunter2" not in repr(flow)


@pytest.mark.parametrize(
    "auth",
    [
        "params: {username: hunter2:x, password: ''}",
        "params: {username: u, password: hunter2, host: 'https://u:hunter2@data.mixpanel.com'}",
        "params: {username: u, password: hunter2, host: 'hunter2'}",
        "params: {username: u, passwort: hunter2}",
        "params: {username: u, password: x,hunter2}",
        "params: {username: u, password: *hunter2}",
        "params: {username: u, password: &hunter2 x}",
        "params: {username: u, password: !hunter2 x}",
        "params: {username: u, password: !hunter2!x x}",
        "params: {username: u, password: %hunter2}",
        "params: {username: u, password: 'it's hunter2'}",
        'params: {username: u, password: "\\hunter2"}',
        "params: {username: u, password: a: hunter2}",
        "params: {username: u, password: {hunter2}}",
        "params: {username: u, password: [hunter2]}",
        "params: u hunter2",
        "params: [u, hunter2]",
        "params: {username: u, password: '${hunter2 '}",
    ],
)
def test_no_message_holds_a_secret(tmp_path: Path, auth: str) -> None:
    text = DOCUMENTED.replace(DOCUMENTED.splitlines()[2], f"  auth:\n    specName: Basic Authentication\n    {auth}")
    with pytest.raises(ConfigurationError) as caught:
        load_text(tmp_path, text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


# The mapping set


def test_the_mapping_set_lies_beside_the_flow_file_or_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows, working = tmp_path / "flows", tmp_path / "working"
    for folder in (flows, working / "mappings" / "tutorial"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(working)
    in_working = write(working / "mappings" / "tutorial", "{}", "mapping.json")
    for name in ("mappings/tutorial", "mappings/tutorial/mapping.json", str(in_working), "${WHERE}/tutorial"):
        assert load(flows, {**small_document(), "mappingSet": name}, {"WHERE": "mappings"}).mapping_path == in_working
    (flows / "mappings" / "tutorial").mkdir(parents=True)
    beside = write(flows / "mappings" / "tutorial", "{}", "mapping.json")
    assert load(flows, {**small_document(), "mappingSet": "mappings/tutorial"}).mapping_path == beside
    assert (
        load_flow(Path("../flows/flow.yaml"), {}, SETTINGS).mapping_path
        == working / "../flows/mappings/tutorial/mapping.json"
    )


@pytest.mark.parametrize("name", ["none.json", "none/mappings", "a\0b"])
def test_a_missing_mapping_set_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    assert problems(lambda: load(tmp_path, {**small_document(), "mappingSet": name})) == [
        f"mappingSet: there is no file {tmp_path / name} and none {tmp_path / 'working' / name}"
    ]


def test_a_mapping_set_that_cannot_be_looked_for(tmp_path: Path) -> None:
    name = "x" * 5000
    assert problems(lambda: load(tmp_path, {**small_document(), "mappingSet": name})) == [
        f"mappingSet: {tmp_path / name} cannot be read: File name too long"
    ]


# Hosts


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://data.mixpanel.com", "https://data.mixpanel.com"),
        ("HTTPS://Data-EU.Mixpanel.com:443/", "https://data-eu.mixpanel.com"),
        ("https://data-in.mixpanel.com/", "https://data-in.mixpanel.com"),
        ("http://127.0.0.1:8091", "http://127.0.0.1:8091"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("https://localhost:8443", "https://localhost:8443"),
        ("http://LocalHost:80", "http://localhost"),
        ("http://[0:0::1]:8091", "http://[::1]:8091"),
        ("https://proxy.example", "https://proxy.example"),
        ("https://10.0.0.5:8443", "https://10.0.0.5:8443"),
    ],
)
def test_hosts_that_may_be_asked(url: str, expected: str) -> None:
    hosts = load_settings({"WORKER_EXPORT_HOSTS": "proxy.example,10.0.0.5:8443"}).export_hosts
    assert check_export_host(url, hosts, allow_loopback=True) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://data.mixpanel.com", "by https"),
        ("http://proxy.example", "by https"),
        ("https://data.mixpanel.com:8443", "port 443 only"),
        ("https://proxy.example:8443", "WORKER_EXPORT_HOSTS"),
        ("https://10.0.0.5", "WORKER_EXPORT_HOSTS"),
        ("https://169.254.169.254", "WORKER_EXPORT_HOSTS"),
        ("https://mixpanel.com", "WORKER_EXPORT_HOSTS"),
        ("https://data.mixpanel.com.example", "WORKER_EXPORT_HOSTS"),
        ("https://xn--dt-uia.mixpanel.com", "WORKER_EXPORT_HOSTS"),
        ("https://0.0.0.0", "WORKER_EXPORT_HOSTS"),
        ("https://[::ffff:127.0.0.1]", "WORKER_EXPORT_HOSTS"),
        ("https://localhost.example", "WORKER_EXPORT_HOSTS"),
        ("http://[::ffff:127.0.0.1]:8091", "by https"),
        ("http://localhost.", "host name"),
        ("https://data.mixpanel.com.", "host name"),
        ("http://127.1", "decimal"),
        ("http://0x7f000001", "decimal"),
        ("http://2130706433", "decimal"),
        ("http://0177.0.0.1", "decimal"),
        ("https://user@data.mixpanel.com", "user name"),
        ("https://data.mixpanel.com@evil.example", "user name"),
        ("https://data.mixpanel.com\\@evil.example", "user name"),
        ("https://data.mixpanel.com\\.evil.example", "nothing else"),
        ("https://data.mixpanel.com#.evil.example", "nothing else"),
        ("https://data.mixpanel.com?x", "nothing else"),
        ("https://data.mixpanel.com/api", "nothing else"),
        ("https://data.mixpanel.com//", "nothing else"),
        ("https://data.mixpanel.com:443:8443", "nothing else"),
        ("https://data.mixpanel.com:99999", "port"),
        ("https://data.mіxpanel.com", "nothing else"),  # noqa: RUF001  # a Cyrillic letter
        ("https://data.mixpanel.com\n", "nothing else"),
        ("https://%64ata.mixpanel.com", "nothing else"),
        ("https://[::1%25lo]", "nothing else"),
        ("https://", "nothing else"),
        ("https:data.mixpanel.com", "begins with https"),
        ("ftp://data.mixpanel.com", "begins with https"),
        ("//data.mixpanel.com", "begins with https"),
    ],
)
def test_f146_other_hosts_and_tricks_are_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        check_export_host(url, frozenset({"proxy.example", "10.0.0.5:8443"}), allow_loopback=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8091", "https://localhost", "https://[::1]"])
def test_f146_loopback_is_refused_where_others_can_reach_the_worker(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"by https|WORKER_EXPORT_HOSTS"):
        check_export_host(url, frozenset(), allow_loopback=False)
    path = write(tmp_path, json.dumps(put(small_document(), "baseConnection.auth.params.host", url)))
    with pytest.raises(ConfigurationError, match=r"baseConnection\.auth\.params\.host"):
        load_flow(path, {}, SETTINGS, listens_beyond_loopback=True)


def test_a_host_that_the_settings_name_is_taken(tmp_path: Path) -> None:
    path = write(
        tmp_path, json.dumps(put(small_document(), "baseConnection.auth.params.host", "https://proxy.example"))
    )
    named = replace(SETTINGS, export_hosts=frozenset({"proxy.example"}))
    assert load_flow(path, {}, named).source.base_url == "https://proxy.example"


@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "https://",
                    "http://",
                    "data.mixpanel.com",
                    "localhost",
                    "127.0.0.1",
                    "[::1]",
                    "evil.example",
                    "1",
                    "0x7f",
                ),
                *".:/@\\#?%[]- \t\n",
                *("\u3002", "\uff0f", "\u200b"),  # a full stop and a slash of other scripts, a space without width
            ]
        ),
        max_size=7,
    ).map("".join)
)
@settings(max_examples=300)
def test_f146_whatever_is_taken_leads_to_an_allowed_host(url: str) -> None:
    try:
        base_url = check_export_host(url, frozenset(), allow_loopback=True)
    except ConfigurationError:
        return
    parts = urlsplit(base_url)
    assert base_url == f"{parts.scheme}://{parts.netloc}"
    if parts.hostname not in {"data.mixpanel.com", "localhost"}:
        assert ip_address(parts.hostname or "").is_loopback
    assert parts.scheme == "https" or parts.hostname != "data.mixpanel.com"
    assert check_export_host(base_url, frozenset(), allow_loopback=True) == base_url


def test_the_start_time_is_in_the_range_of_datetime(tmp_path: Path) -> None:
    schedule = {"startTime": 99_999_999_999, "frequency": "week", "interval": 1}
    loaded = load(tmp_path, put(small_document(), "flow.scheduleParams", schedule)).schedule
    assert loaded is not None
    assert datetime.fromtimestamp(loaded.start_time, UTC).year == 5138
