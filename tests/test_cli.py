"""The command line as its user meets it: what is printed where, exit codes, and what each mistake is answered with."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
from deltalake import DeltaTable

from tests.support import DAYS, FLOW_FILE, PASSWORD, body_of, lake_rows, rows_of
from worker.cli import main
from worker.mixpanel.simulator import DEMO_PASSWORD, DEMO_PROJECT_ID, DEMO_USERNAME, Simulator, SimulatorThread
from worker.mixpanel.synthetic import iter_lines
from worker.model import flow_id_of
from worker.store import open_store

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
TWO = DAYS[:2]
FIRST, SECOND = TWO
ONCE = ("run", "flow.json", "--once", "--from", str(FIRST), "--to", str(SECOND))
COMMANDS = ("run", "runs", "recover", "validate", "preview", "functions", "query", "simulate")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Cli:
    """The command line in this process: an empty folder with a flow file, and a simulated Mixpanel."""

    def __init__(
        self,
        folder: Path,
        server: SimulatorThread,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self.server = server
        self.simulator = server.simulator
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        for name in [name for name in os.environ if name.startswith(("WORKER_", "MIXPANEL_", "PYTHONUNBUFFERED"))]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(folder)
        self.set(
            MIXPANEL_HOST=server.base_url,
            MIXPANEL_PASSWORD=PASSWORD,
            WORKER_SPOOL=str(folder / "spool"),
            WORKER_EXPORTS_PER_HOUR="1000000",
            WORKER_EXPORTS_PER_SECOND="1000000",
            WORKER_RETRY_WAIT_MAX_SECONDS="0.01",
        )
        self.write_flow()

    def set(self, **environ: str) -> None:
        for name, value in environ.items():
            self._monkeypatch.setenv(name, value)

    def write_flow(self, file: str = "flow.json", changes: Mapping[str, object] | None = None) -> None:
        """Write the flow file with other values; a key says where: `sourceConnection.params.timezone`."""
        document = deepcopy(FLOW_FILE)
        for path, value in (changes or {}).items():
            *parents, key = path.split(".")
            section = document
            for parent in parents:
                section = section[parent]
            section[key] = value
        (self.folder / file).write_text(json.dumps(document))

    def put(self, version: str) -> None:
        for day in TWO:
            self.simulator.set_day(day, body_of(day, version))

    def __call__(self, *arguments: str) -> Ended:
        self._monkeypatch.setattr("sys.argv", ["mixpanel-worker", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    def days(self) -> dict[date, Counter[tuple[str, str]]]:
        table = self.folder / "lake" / "events"
        return lake_rows(table) if table.exists() else {}

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "worker", *arguments], cwd=self.folder, text=True, **options)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with SimulatorThread(Simulator(password=PASSWORD)) as server:
        made = Cli(tmp_path, server, monkeypatch, capsys)
        made.put("v1")
        yield made


def told(err: str) -> str:
    """What stands on standard error beside the log."""
    return "\n".join(line for line in err.splitlines() if not line.startswith("{"))


# run


def test_run_prints_what_it_did_and_leaves_the_rows(cli: Cli) -> None:
    ended = cli(*ONCE)
    assert (ended.code, told(ended.err)) == (0, "")
    shown = dict(re.findall(r"^ *(\S.*?)  +(\S.*)$", ended.out, re.MULTILINE))
    assert shown["run"].endswith("success")
    assert shown["days"] == f"{FIRST} to {SECOND}: 2 of 2 committed"
    counted = ("rows in", "rows out", "deduplicated", "rejected", "skipped")
    assert [shown[name].split()[0] for name in counted] == ["46", "40", "2", "2", "2"]
    assert shown["table"] == "lake/events"
    assert cli.days() == {day: rows_of(day, "v1") for day in TWO}
    assert list((cli.folder / "spool").iterdir()) == []


def test_identical_run_changes_nothing_and_a_changed_day_replaces_it(cli: Cli) -> None:
    cli(*ONCE)
    before = cli.days()
    assert cli(*ONCE).code == 0
    assert cli.days() == before
    cli.simulator.set_day(SECOND, body_of(SECOND, "v2", 7))
    assert cli(*ONCE).code == 0
    assert cli.days() == {FIRST: rows_of(FIRST, "v1"), SECOND: rows_of(SECOND, "v2", 7)}


JSON_PATHS = (
    "items[].createdAt",
    "items[].updatedAt",
    "items[].id",
    "items[].flowId",
    "items[].metrics.durationSummary.startedAtUTC",
    "items[].metrics.durationSummary.completedAtUTC",
    "items[].metrics.sizeSummary.inputBytes",
    "items[].metrics.sizeSummary.outputBytes",
    "items[].metrics.recordSummary.inputRecordCount",
    "items[].metrics.recordSummary.outputRecordCount",
    "items[].metrics.recordSummary.failedRecordCount",
    "items[].metrics.fileSummary.inputFileCount",
    "items[].metrics.fileSummary.outputFileCount",
    "items[].metrics.fileSummary.activityRefs[]",
    "items[].metrics.statusSummary.status",
    "items[].metrics.statusSummary.activityRefs[]",
    "items[].metrics.statusSummary.errors[].code",
    "items[].metrics.statusSummary.errors[].message",
    "items[].activities[].id",
    "items[].activities[].updatedAtUTC",
    "items[].activities[].durationSummary.startedAtUTC",
    "items[].activities[].durationSummary.completedAtUTC",
    "items[].activities[].durationSummary.extensions.windowStart",
    "items[].activities[].durationSummary.extensions.windowEnd",
    "items[].activities[].sizeSummary.inputBytes",
    "items[].activities[].sizeSummary.outputBytes",
    "items[].activities[].recordSummary.inputRecordCount",
    "items[].activities[].recordSummary.failedRecordCount",
    "items[].activities[].fileSummary.inputFileCount",
    "items[].activities[].statusSummary.status",
    "items[].activities[].statusSummary.errors[].code",
    "items[].activities[].statusSummary.extensions.type",
    "items[].activities[].statusSummary.extensions.errors[].code",
    "items[].activities[].statusSummary.extensions.errors[].message",
    "items[].activities[].targetInfo[].id",
    "items[].activities[].targetInfo[].type",
    "items[].activities[].targetInfo[].reference.type",
    "items[].activities[].targetInfo[].reference.ids[]",
)
"""Where the values stand in an answer of Adobe's `GET /runs` about a run with row errors."""


def paths_of(document: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(document, dict):
        for name, value in document.items():
            yield from paths_of(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(document, list):
        for value in document:
            yield from paths_of(value, f"{prefix}[]")
    else:
        yield prefix


def test_json_is_the_only_output_and_has_the_shape_of_adobes_runs(cli: Cli) -> None:
    ended = cli(*ONCE, "--json")
    document = json.loads(ended.out)
    assert ended.code == 0
    assert set(JSON_PATHS) - set(paths_of(document)) == set()
    [item] = document["items"]
    metrics = item["metrics"]
    counts = {name: metrics["recordSummary"][f"{name}RecordCount"] for name in ("input", "output", "failed", "skipped")}
    assert counts == {"input": 46, "output": 40, "failed": 2, "skipped": 2}
    assert metrics["statusSummary"]["status"] == "success"
    assert [activity["id"] for activity in item["activities"]] == ["copyActivity", "promotionActivity"]
    extensions = item["activities"][1]["statusSummary"]["extensions"]["errors"]
    assert (extensions[0]["code"], extensions[0]["recordCount"]) == ("INGEST-1212-400", 2)
    window = metrics["durationSummary"]["extensions"]
    days = (window["windowEnd"] - window["windowStart"]) / 86_400_000
    assert (days, len(item["activities"][1]["targetInfo"][0]["reference"]["ids"])) == (2, 2)
    assert json.loads(cli("runs", "--json").out) == document


def test_run_without_dates_covers_the_lookback_and_today_then_what_is_new(cli: Cli) -> None:
    cli.write_flow(changes={"sourceConnection.params.lookbackDays": 1})
    today = datetime.now(UTC).date()
    assert cli("run", "flow.json", "--once").code == 0
    asked = [request.query["from_date"] for request in cli.simulator.requests]
    assert asked == [str(today - timedelta(days=1)), str(today)]


def test_days_that_have_not_begun_are_left_out_with_a_note(cli: Cli) -> None:
    today = datetime.now(UTC).date()
    tomorrow, later = today + timedelta(days=1), today + timedelta(days=3)
    ended = cli("run", "flow.json", "--once", "--from", str(today), "--to", str(later))
    assert (ended.code, told(ended.err)) == (0, f"Left out: {tomorrow} to {later}, which have not begun.")
    cli.simulator.clear_requests()
    ended = cli("run", "flow.json", "--once", "--from", str(tomorrow), "--to", str(later))
    assert (ended.code, ended.out) == (2, "")
    assert "has begun" in ended.err
    assert f"Today is {today}" in ended.err
    assert cli.simulator.requests == []


def test_day_that_has_not_begun_at_mixpanel_is_left_out(cli: Cli) -> None:
    cli.simulator.fault("later_than_today", day=SECOND)
    ended = cli(*ONCE)
    assert ended.code == 0
    assert "1 of 2 committed" in ended.out
    assert set(cli.days()) == {FIRST}


def test_f1_wrong_password_is_one_request_and_a_message_that_helps(cli: Cli) -> None:
    wrong = "another-canary-987"
    cli.set(MIXPANEL_PASSWORD=wrong)
    ended = cli(*ONCE)
    assert ended.code == 1
    assert told(ended.err) == (
        f"Error: Flow: {FIRST}: Mixpanel answered 401: Invalid credentials. Check user name, password and projectId, "
        f"and that params.region is the region of the project."
    )
    assert len(cli.simulator.requests) == 1
    assert wrong not in ended.out + ended.err
    assert "0 of 2 committed" in ended.out


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("payment_required", "402"),
        ("forbidden", "role in the project"),
        ("redirect", "redirect, which is not followed"),
    ],
)
def test_f2_f3_f44_refusals_say_what_to_do(cli: Cli, fault: str, words: str) -> None:
    cli.simulator.fault(fault, times=9)
    ended = cli(*ONCE)
    assert (ended.code, len(cli.simulator.requests)) == (1, 1)
    assert str(FIRST) in told(ended.err)
    assert words in told(ended.err)


def test_f9_refused_connection_is_tried_again_and_then_told(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        cli.set(MIXPANEL_HOST=f"http://127.0.0.1:{taken.getsockname()[1]}", WORKER_EXPORT_ATTEMPTS="3")
        ended = cli(*ONCE)
    assert ended.code == 1
    failed = [json.loads(line) for line in ended.err.splitlines() if "export_failed" in line]
    assert [line["retry_seconds"] is None for line in failed if line["day"] == str(FIRST)] == [False, False, True]
    assert f"{FIRST}: {os.environ['MIXPANEL_HOST']} could not be reached" in told(ended.err)
    assert "Given up after 3 attempts; run the flow again later." in told(ended.err)


def test_broken_exports_are_fetched_again(cli: Cli) -> None:
    for fault in ("terminated_early", "cut_at", "rate_limited", "server_error"):
        cli.simulator.fault(fault)
    ended = cli(*ONCE)
    assert (ended.code, told(ended.err)) == (0, "")
    assert cli.days() == {day: rows_of(day, "v1") for day in TWO}


def test_failed_run_prints_its_record_as_json_too(cli: Cli) -> None:
    cli.simulator.fault("forbidden")
    ended = cli(*ONCE, "--json")
    [item] = json.loads(ended.out)["items"]
    assert ended.code == 1
    assert item["metrics"]["statusSummary"]["status"] == "failed"
    assert item["metrics"]["statusSummary"]["errors"][0]["code"] == "CONNECTOR-1001-403"


def test_a_run_that_fails_leaves_metrics_of_the_last_success(cli: Cli) -> None:
    success, lag = "mixpanel_worker_flow_last_success_timestamp_seconds", "mixpanel_worker_flow_lag_seconds"
    failure = "mixpanel_worker_flow_last_failure_timestamp_seconds"

    def series() -> dict[str, float]:
        found = re.findall(r'^(\w+)\{flow="Flow"\} (\S+)$', (cli.folder / "worker.prom").read_text(), re.MULTILINE)
        return {name: float(value) for name, value in found if name in {success, lag, failure}}

    assert cli(*ONCE, "--metrics-file", "worker.prom").code == 0
    before = series()
    assert set(before) == {success, lag}
    midnight = datetime(SECOND.year, SECOND.month, SECOND.day, tzinfo=UTC) + timedelta(days=1)
    assert before[lag] == pytest.approx(before[success] - midnight.timestamp(), abs=60)
    cli.simulator.fault("forbidden")
    assert cli(*ONCE, "--metrics-file", "worker.prom").code == 1
    after = series()
    assert after[success] == before[success] < after[failure]
    assert after[lag] > before[lag]


def test_flow_that_fails_does_not_keep_the_next_from_running(cli: Cli) -> None:
    cli.write_flow("other.json", {"flow.name": "Other", "targetConnection.params.dataSetId": "others"})
    cli.simulator.fault("forbidden")
    ended = cli("run", "flow.json", "other.json", *ONCE[2:])
    assert ended.code == 1
    assert told(ended.err).startswith("Error: Flow: ")
    assert cli.days() == {}
    assert set(lake_rows(cli.folder / "lake" / "others")) == set(TWO)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targetConnection.params.dataSetId": "others"}, "the name 'Flow'"),
        ({"flow.name": "Other"}, "one dataset, events"),
    ],
)
def test_two_flows_with_one_name_or_one_dataset(cli: Cli, changes: dict[str, object], words: str) -> None:
    cli.write_flow("other.json", changes)
    ended = cli("run", "flow.json", "other.json", *ONCE[2:])
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert cli.simulator.requests == []


def test_f112_dataset_of_another_flow_is_refused(cli: Cli) -> None:
    assert cli(*ONCE).code == 0
    cli.write_flow(changes={"flow.name": "Somebody else's"})
    ended = cli(*ONCE)
    assert ended.code == 1
    assert "Give each flow a dataset of its own." in told(ended.err)
    assert cli.days() == {day: rows_of(day, "v1") for day in TWO}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORKER_LAKE": "flow.json"}, "Not a directory"),
        ({"WORKER_STATE": "sqlite:////no/such/folder/state.db"}, "/no/such/folder"),
        ({"WORKER_STATE": "sqlite:///flow.json"}, "not a database"),
        ({"WORKER_SPOOL": "flow.json/spool"}, "spool folder"),
    ],
)
def test_f93_place_that_cannot_be_written(cli: Cli, environ: dict[str, str], words: str) -> None:
    cli.set(**environ)
    ended = cli(*ONCE)
    assert ended.code == 1
    assert words in told(ended.err)
    assert told(ended.err).startswith("Error: ")
    assert len(told(ended.err).splitlines()) == 1


MISTAKES: list[Any] = [
    (["run", "flow.json", "--from", "2024-03-01"], "--from goes with --once"),
    (["run", "flow.json", "--json"], "--json goes with --once"),
    (["run", "nowhere"], "no flow file and no folder at nowhere"),
    (["run", "--once"], "No flow file was given"),
    (["run", "flow.json", "--twice"], "No such option: --twice"),
    (["fun"], "No such command 'fun'"),
    (["run", "nowhere.yaml", "--once"], "nowhere.yaml cannot be read"),
    (["run", ".", "--once"], "directory"),
    (["run", "bad.yaml", "--once"], "bad.yaml, line 3"),
    (["run", "unknown_key.json", "--once"], "timezone"),
    (["run", "unset.json", "--once"], "NOT_SET_ANYWHERE"),
    (["run", "flow.json", "--once", "--from", "2024-03-02", "--to", "2024-03-01"], "is after the last one"),
    (["run", "flow.json", "--once", "--from", "2024-02-30"], "--from takes a date as YYYY-MM-DD, not '2024-02-30'"),
    (["run", "flow.json", "--once", "--to", "2024-W09-5"], "--to takes a date as YYYY-MM-DD"),
    (["run", "flow.json", "--once", "--to", "yesterday"], "--to takes a date as YYYY-MM-DD"),
    (["run", "flow.json", "--once", "--from", "1969-12-31", "--to", "1970-02-01"], "no events before"),
    (["validate", "unknown_key.json"], "timezone"),
    (["validate"], "flow"),
    (["preview", "nowhere.yaml"], "nowhere.yaml"),
    (["preview", "flow.json", "--rows", "101"], "'--rows'"),
    (["preview", "flow.json", "--day", "2999-01-01"], "has not begun"),
    (["runs", "--limit", "0"], "'--limit'"),
    (["runs"], "nothing has run here yet"),
    (["query"], "sql"),
    (["query", "select 1"], "There is no table in lake"),
    (["simulate", "--fault", "earthquake", "--port", "0"], "earthquake"),
    (["simulate", "--fault", "stall:often", "--port", "0"], "stall:often"),
    (["simulate", "--data", "nowhere", "--port", "0"], "nowhere"),
    (["simulate", "--seed", "-1", "--port", "0"], "'--seed'"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistake_is_told_and_nothing_is_started(cli: Cli, arguments: list[str], words: str) -> None:
    (cli.folder / "bad.yaml").write_text("flow:\n  name: [\n")
    cli.write_flow("unknown_key.json", {"sourceConnection.params.timezon": "UTC"})
    cli.write_flow("unset.json", {"sourceConnection.params.projectId": "${NOT_SET_ANYWHERE}"})
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert cli.simulator.requests == []
    assert not (cli.folder / "lake").exists()


def test_setting_that_is_wrong_or_unknown(cli: Cli) -> None:
    cli.set(WORKER_DAYS_AHEAD="many", WORKER_LAK="here")
    ended = cli(*ONCE)
    assert ended.code == 2
    assert "WORKER_LAK is no setting; did you mean WORKER_LAKE?" in ended.err
    assert "WORKER_DAYS_AHEAD: it takes a whole number" in ended.err


def test_options_win_over_the_environment(cli: Cli) -> None:
    cli.set(WORKER_LAKE="not-this", WORKER_STATE="sqlite:///not-this.db")
    assert cli(*ONCE, "--lake", "here", "--state", "sqlite:///here.db").code == 0
    assert sorted(path.name for path in cli.folder.iterdir()) == ["flow.json", "here", "here.db", "spool"]
    assert cli("runs", "--state", "sqlite:///here.db").code == 0
    assert "40" in cli("query", "select count(*) from events", "--lake", "here").out


def test_f149_password_is_nowhere(cli: Cli) -> None:
    outputs = [cli(*ONCE), cli(*ONCE, "--json"), cli("validate", "flow.json"), cli("preview", "flow.json")]
    cli.set(WORKER_LOG_LEVEL="debug")
    cli.simulator.fault("unauthorized", text=f"no user {DEMO_USERNAME} with {PASSWORD}")
    outputs += [cli(*ONCE), cli("runs"), cli("runs", "--json")]
    cli.set(WORKER_LOG_FORMAT="console", MIXPANEL_HOST="http://127.0.0.1:1", WORKER_EXPORT_ATTEMPTS="1")
    outputs += [cli(*ONCE)]
    written = [path for path in cli.folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    texts = [output.out.encode() + output.err.encode() for output in outputs]
    texts += [path.read_bytes() + str(path).encode() for path in written]
    pair = base64.b64encode(f"{DEMO_USERNAME}:{PASSWORD}".encode()).decode()
    forms = (PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1], pair)
    assert [form for form in forms for text in texts if form.encode() in text] == []


def test_log_for_reading_has_no_colours_in_a_file(cli: Cli) -> None:
    cli.set(WORKER_LOG_FORMAT="console")
    ended = cli(*ONCE)
    assert "run_started" in ended.err
    assert "\x1b" not in ended.err


def test_progress_bar_on_a_terminal(cli: Cli) -> None:
    """Standard error is a terminal, standard output is not: the bar is on one, the result alone on the other."""
    cli.simulator.fault("server_error", day=FIRST)
    leader, follower = pty.openpty()
    with cli.process(*ONCE, stdout=subprocess.PIPE, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while piece := os.read(leader, 65536):
                shown += piece
        except OSError:  # how a terminal says that nobody is there any more
            pass
        assert process.stdout is not None
        output = process.stdout.read()
    os.close(leader)
    assert process.returncode == 0
    assert b"Traceback" not in shown
    assert b"trying again" in shown
    assert b"days" in shown
    assert "2 of 2 committed" in output
    assert "\x1b" not in output


# runs


def test_runs_are_listed_newest_first(cli: Cli) -> None:
    cli(*ONCE)
    cli.simulator.fault("forbidden")
    cli(*ONCE)
    cli.write_flow("other.json", {"flow.name": "Other", "targetConnection.params.dataSetId": "others"})
    cli("run", "other.json", *ONCE[2:])
    listed = cli("runs")
    heading, *lines = listed.out.splitlines()
    assert listed.code == 0
    assert heading.split()[:2] == ["started", "(UTC)"]
    assert [line.split()[2] for line in lines if re.match(r"\d{4}", line)] == ["success", "failed", "success"]
    assert "Mixpanel answered 403" in listed.out
    assert f"{FIRST}..{SECOND}" in lines[0]
    assert len(cli("runs", "--flow", "Flow", "--json", "--limit", "1").out) > 0
    [item] = json.loads(cli("runs", "--flow", "Flow", "--json", "--limit", "1").out)["items"]
    assert (item["flowName"], item["metrics"]["statusSummary"]["status"]) == ("Flow", "failed")
    ended = cli("runs", "--flow", "Flo")
    assert ended.code == 2
    assert "'Flow', 'Other'" in ended.err


# validate


def test_validate_prints_the_columns_and_asks_nobody(cli: Cli) -> None:
    cli.write_flow(changes={"mappingSet": str(ROOT / "mappings" / "mixpanel-tutorial")})
    ended = cli("validate", "flow.json")
    assert (ended.code, ended.err) == (0, "")
    columns = dict(re.findall(r"^  (\S+) +(\S+)", ended.out, re.MULTILINE))
    assert columns["mp_date"] == "date32"
    assert columns["_extconndev.time"] == "int64"
    assert columns["_extconndev.import"] == "bool"
    assert columns["_extconndev.item_price"] == "string"
    assert cli.simulator.requests == []
    assert sorted(path.name for path in cli.folder.iterdir()) == ["flow.json"]


def test_validate_names_what_is_wrong_with_the_mapping_set(cli: Cli) -> None:
    mapping = {"sourceType": "EXPRESSION", "source": "concat(a, b", "destination": "c"}
    cli.write_flow(changes={"mappingSet": {"mappings": [mapping]}})
    ended = cli("validate", "flow.json")
    assert (ended.code, ended.out) == (2, "")
    assert "flow.json: mappingSet" in ended.err
    # the caret stands where the expression ends
    assert "column 12: " in ended.err
    assert "\n    concat(a, b\n               ^" in ended.err


# preview


def test_preview_shows_fields_rows_and_rejects_of_the_newest_day_with_events(cli: Cli) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    lines = [*iter_lines(yesterday, 30, 1), b"not an event\n"]
    cli.simulator.set_day(yesterday, lines[-1] + b"".join(lines[:-1]))
    cli.write_flow(changes={"mappingSet": str(ROOT / "mappings" / "mixpanel-tutorial")})
    ended = cli("preview", "flow.json", "--rows", "10")
    assert ended.code == 0
    assert ended.out.startswith(f"Source fields of {yesterday}, over 9 rows:")
    fields = dict(re.findall(r"^  (\S+) +(\w+)$", ended.out, re.MULTILINE))
    assert (fields["event"], fields["properties.time"]) == ("string", "integer")
    mapped = [json.loads(line) for line in ended.out.splitlines() if line.startswith('  {"')]
    assert len(mapped) == 9
    assert isinstance(mapped[0]["_extconndev"]["time"], int)
    assert ended.err.strip().startswith("! line 1: ")
    document = json.loads(cli("preview", "flow.json", "--json").out)
    assert (document["day"], document["explore"]["format"]) == (str(yesterday), "hierarchical")
    assert document["explore"]["schema"]["properties"]["event"] == {"type": "string"}
    assert document["explore"]["schema"]["properties"]["properties"]["properties"]["time"]["type"] == "integer"
    assert (len(document["explore"]["data"]), len(document["mapped"]), len(document["rejects"])) == (30, 30, 1)
    assert not (cli.folder / "lake").exists()
    assert list((cli.folder / "spool").iterdir()) == []


def test_preview_of_a_day_and_of_nothing(cli: Cli) -> None:
    assert json.loads(cli("preview", "flow.json", "--day", str(FIRST), "--json").out)["day"] == str(FIRST)
    ended = cli("preview", "flow.json")
    assert ended.code == 0
    assert "no events" in ended.out + ended.err


def test_preview_tells_failures(cli: Cli) -> None:
    cli.simulator.fault("unauthorized")
    ended = cli("preview", "flow.json", "--day", str(FIRST))
    assert (ended.code, ended.out) == (1, "")
    assert "Check user name, password" in ended.err
    cli.simulator.fault("terminated_early_whole")
    ended = cli("preview", "flow.json", "--day", str(FIRST))
    assert (ended.code, ended.out) == (1, "")
    assert "ended the export before its end" in ended.err


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"E","properties":{"time":1,"big":123456789012345678901234567890}}',
        b'{"event":"E","properties":{"time":1,"version":NaN}}',
        b'{"event":"E","properties":{"time":1,"version":"\\ud800"}}',
        b'{"event":"E","properties":{"time":1,"version":"\xff"}}',
        b'{"event":"E","properties":{"time":1,"version":1,"version":2}}',
        b'{"event":"E","properties":{"time":1,"n":1e400}}',
        b'{"event":"E","properties":{"time":1,"deep":' + b'{"a":' * 900 + b"1" + b"}" * 902,
        b"[" * 2000,
    ],
    ids=["big", "nan", "surrogate", "not_utf8", "equal_keys", "infinite", "deep", "too_deep"],
)
def test_preview_of_hostile_lines(cli: Cli, line: bytes) -> None:
    cli.simulator.set_day(FIRST, body_of(FIRST, "v1", 2) + line + b"\n")
    ended = cli("preview", "flow.json", "--day", str(FIRST), "--json")
    document = json.loads(ended.out)
    assert ended.code == 0
    assert len(document["mapped"]) + len(document["rejects"]) == 5


# query


def test_query_knows_tables_and_structs(cli: Cli) -> None:
    body = b"".join(iter_lines(FIRST, 50, 1))
    cli.simulator.set_day(FIRST, body + b"[]\n")
    cli.write_flow(changes={"mappingSet": str(ROOT / "mappings" / "mixpanel-tutorial")})
    assert cli(*ONCE).code == 0
    sql = "select mp_date, _extconndev.event_name as name from events where mp_date = '2024-03-01' order by 2 limit 1"
    ended = cli("query", sql, "--json")
    [row] = json.loads(ended.out)
    assert (ended.code, row["mp_date"], type(row["name"])) == (0, str(FIRST), str)
    names = json.loads(cli("query", "select table_name from information_schema.tables order by 1", "--json").out)
    assert [name["table_name"] for name in names] == ["events", "events_rejects"]
    rejects = json.loads(
        cli("query", "select line, raw from events_rejects where mp_date = '2024-03-01'", "--json").out
    )
    assert rejects == [{"line": 51, "raw": "[]"}]
    assert "count" in cli("query", "select count(*) from events").out


def test_query_of_a_table_without_rows_and_in_odd_folders(cli: Cli) -> None:
    cli.simulator.set_day(FIRST, b"")
    cli.write_flow(changes={"targetConnection.params.dataSetId": "empty"})
    lake = "it's a=lake, ü"
    arguments = ("run", "flow.json", "--once", "--from", str(FIRST), "--to", str(FIRST), "--lake", lake)
    assert cli(*arguments).code == 0
    assert json.loads(cli("query", "select * from empty", "--lake", lake, "--json").out) == []
    cli.put("v1")
    assert cli(*arguments).code == 0
    assert json.loads(cli("query", "select count(*) as n from empty", "--lake", lake, "--json").out) == [{"n": 20}]


def test_query_tells_what_is_wrong_with_the_sql(cli: Cli) -> None:
    cli(*ONCE)
    for sql, words in [
        ("selec 1", "syntax error"),
        ("select * from nothing", "nothing"),
        ("select idd from events", "id"),
    ]:
        ended = cli("query", sql)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("Error: DuckDB says: ")
        assert words in ended.err


# simulate


def test_simulate_lists_its_faults(cli: Cli) -> None:
    ended = cli("simulate", "--fault", "list")
    assert ended.code == 0
    assert re.search(r"^rate_limited +429", ended.out, re.MULTILINE)


def test_simulate_says_that_a_port_is_taken(cli: Cli) -> None:
    ended = cli("simulate", "--port", str(cli.simulator.port))
    assert ended.code == 2
    assert f"Port {cli.simulator.port} cannot be opened" in ended.err


def test_simulate_serves_until_it_is_stopped(cli: Cli) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    arguments = ("--port", "0", "--days", "1", "--events-per-day", "5", "--fault", "server_error:1")
    with cli.process("simulate", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        query = f"from_date={yesterday}&to_date={yesterday}&project_id={DEMO_PROJECT_ID}"
        pair = base64.b64encode(f"{DEMO_USERNAME}:{DEMO_PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            f"{address}/api/2.0/export?{query}", headers={"Authorization": f"Basic {pair}"}
        )
        with pytest.raises(HTTPError) as failed:
            urllib.request.urlopen(request, timeout=20)
        failed.value.close()
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert len(answer.read().splitlines()) == 5
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors


# Help, entry points, pipes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: mixpanel-worker " + command in ended.out


def test_entry_points_are_one_program(cli: Cli) -> None:
    helps = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=cli.folder).stdout
        for command in ([sys.executable, "-m", "worker"], [str(Path(sys.executable).with_name("mixpanel-worker"))])
    ]
    assert [text.splitlines()[1:] for text in helps] == [helps[0].splitlines()[1:]] * 2
    assert all(re.search(rf"^  {command} ", helps[0], re.MULTILINE) for command in COMMANDS)


def test_f89_reader_that_leaves_early_is_no_stack_trace(cli: Cli) -> None:
    cli(*ONCE)
    reader, writer = os.pipe()
    os.close(reader)
    with cli.process("runs", stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.communicate(timeout=20)[1] == ""
    sql = "select range, repeat('x', 100) as x from range(20000)"
    with cli.process("query", sql, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_f89_log_that_nobody_reads_stops_no_run(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with cli.process(*ONCE, "--json", stdout=subprocess.PIPE, stderr=writer) as process:
        os.close(writer)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(output)["items"][0]["metrics"]["statusSummary"]["status"] == "success"
    assert cli.days() == {day: rows_of(day, "v1") for day in TWO}


# A lost state database


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_lost_state_database_is_rebuilt_from_the_tables(cli: Cli, *, cleaned: bool) -> None:
    assert cli(*ONCE).code == 0
    state = cli.folder / "worker.db"
    with open_store(f"sqlite:///{state}") as store:
        known = store.succeeded_receipts(flow_id_of("Flow"))
    before = cli.days()
    for file in cli.folder.glob("worker.db*"):
        file.unlink()
    if cleaned:
        # somebody has removed what the table's log told of the commits
        table = DeltaTable(str(cli.folder / "lake" / "events"))
        table.create_checkpoint()
        for file in sorted((cli.folder / "lake" / "events" / "_delta_log").glob("*.json"))[:-1]:
            file.unlink()
    ended = cli("recover", "flow.json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"Flow: 2 days, {FIRST} to {SECOND}, 40 rows\n"
    with open_store(f"sqlite:///{state}") as store:
        found = store.succeeded_receipts(flow_id_of("Flow"))
    assert list(found) == list(known)
    assert [receipt.generation for receipt in found.values()] == [receipt.generation for receipt in known.values()]
    if not cleaned:
        assert found == known
    assert cli("recover", "flow.json").out == ended.out
    cli.put("v2")
    assert cli(*ONCE).code == 0
    assert {day: sum(rows.values()) for day, rows in cli.days().items()} == {
        day: sum(rows.values()) for day, rows in before.items()
    }


def test_recover_with_nothing_to_recover(cli: Cli) -> None:
    assert cli("recover", "flow.json").out == "Flow: 0 days, 0 rows\n"
