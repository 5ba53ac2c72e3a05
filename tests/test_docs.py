"""The documents say what the code does: settings, commands, exit codes, the printed flow file, links, tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import typer
import yaml

from worker import cli
from worker.flow_file import EXPORT_URLS
from worker.lake import open_lake
from worker.mapping.functions.refused import REFUSED
from worker.mapping.operators import OPERATORS
from worker.mixpanel.simulator import Simulator, SimulatorThread
from worker.mixpanel.synthetic import write_day
from worker.service import prepare_flow
from worker.settings import SETTINGS, load_settings

if TYPE_CHECKING:
    from worker.mapping.functions.base import Function

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAPPINGS = ROOT / "mappings" / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), MAPPINGS, *ROOT.glob("mappings/*/*.md"), *ROOT.glob("deploy/*.md")])
FLOW_FILE = ROOT / "deploy" / "flow.example.yaml"
ENVIRONMENT_FILE = ROOT / "deploy" / "worker.env.example"
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(cli.app), "commands")  # noqa: B009 - typer's own click is not public
DAY = date(2024, 2, 29)


def settings_table() -> str:
    """The table of the settings as it stands in the README.

    `python -m tests.test_docs` prints it, and writes the generated parts of `mappings/README.md` into it.
    """
    rows = ["| variable | default | unit | meaning |", "|----------|---------|------|---------|"]
    for setting in SETTINGS:
        default = setting.default if setting.computed or not setting.default else f"`{setting.default}`"
        default = default.replace("<", "&lt;")
        rows.append(f"| `{setting.name}` | {default} | {setting.unit} | {setting.meaning} |")
    return "\n".join(rows)


def code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def json_of(value: object) -> str:
    return orjson.dumps(value).decode()


def operators_table() -> str:
    rows = ["| operator | what it gives | example |", "|----------|---------------|---------|"]
    rows += [row(code(operator.symbol), operator.description, code(operator.example)) for operator in OPERATORS]
    return "\n".join(rows)


def functions_table() -> str:
    rows = ["| function | gives | what it gives |", "|----------|-------|---------------|"]
    for category, functions in cli.functions_by_category().items():
        rows.append(f"| **{category}** | | |")
        for made in functions:
            names = [made.signature, *made.aliases]
            rows.append(row(", ".join(map(code, names)), made.returns, made.description))
    return "\n".join(rows)


def loops_list() -> str:
    loops: dict[str, list[str]] = {}
    for made in all_functions():
        if made.row_loop:
            loops.setdefault(made.row_loop, []).append(code(made.name))
    return "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in loops.items())


def refused_list() -> str:
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(code(name))
    return "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())


def decisions_list() -> str:
    """What was decided, each with all that it holds for; then the examples with a note."""
    decisions: dict[str, list[str]] = {}
    decided = [(operator.symbol, operator.decisions) for operator in OPERATORS]
    decided += [(made.name, made.decisions) for made in all_functions()]
    for name, texts in decided:
        for text in texts:
            if (shown := code(name)) not in decisions.setdefault(text, []):
                decisions[text].append(shown)
    by_names: dict[str, list[str]] = {}
    for text, names in decisions.items():
        by_names.setdefault(", ".join(names), []).append(text)
    lines = [f"- {names}: {' '.join(texts)}" for names, texts in by_names.items()]
    lines += [
        f"- {code(example.expression)} gives {code(json_of(example.value))}: {example.note.rstrip('.')}."
        for made in all_functions()
        for example in made.examples
        if example.note
    ]
    return "\n".join(lines)


def all_functions() -> list[Function]:
    return [made for functions in cli.functions_by_category().values() for made in functions]


GENERATED = {
    "operators": operators_table,
    "functions": functions_table,
    "loops": loops_list,
    "refused": refused_list,
    "decisions": decisions_list,
}
"""Parts of `mappings/README.md`, by what stands in the comment before them."""


def with_generated(document: str) -> str:
    for name, generate in GENERATED.items():
        before, mark, rest = document.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark, name
        assert end, name
        document = f"{before}{mark}{generate()}\n{end}{after}"
    return document


def rows_of(document: str, first_cell: str) -> list[str]:
    """The rows of all tables whose first cell begins so."""
    return [line for line in document.splitlines() if line.startswith(f"| {first_cell}")]


def test_the_settings_table_is_the_one_of_the_code() -> None:
    assert settings_table() in README, "paste the output of: python -m tests.test_docs"


def test_the_language_is_described_as_the_code_has_it() -> None:
    document = MAPPINGS.read_text(encoding="utf-8")
    assert document == with_generated(document), "run: python -m tests.test_docs"


def test_the_command_line_tells_of_functions() -> None:
    listed = worker("functions").stdout
    told = {line.strip() for line in listed.splitlines()}
    assert [made.name for made in all_functions() if not any(line.startswith(made.signature) for line in told)] == []
    assert all(name in listed for name in REFUSED)
    one = worker("functions", "is_set").stdout
    assert one.startswith("contains_key(INPUT)")
    assert "is_set" in one
    slow = worker("functions", "ua_os_name").stdout
    assert "loops over rows" in slow
    assert "Examples" in slow
    assert REFUSED["filterArray"] in worker("functions", "filterArray").stdout
    unknown = worker("functions", "Uper")
    assert (unknown.returncode, unknown.stdout) == (cli.EXIT_WRONG, "")
    assert "Did you mean upper?" in unknown.stderr


def test_the_command_line_tells_of_functions_as_json() -> None:
    everything = orjson.loads(worker("functions", "--json").stdout)
    assert len(everything) == len(all_functions()) + len(REFUSED)
    [one] = [made for made in everything if made["name"] == "upper"]
    assert orjson.loads(worker("functions", "ucase", "--json").stdout) == one
    assert one["examples"][0].keys() == {"expression", "value", "note"}
    assert orjson.loads(worker("functions", "filterArray", "--json").stdout)["refused"] == REFUSED["filterArray"]


def flow_file(folder: Path, *expressions: tuple[str, str]) -> str:
    """The example with these expressions, by destination."""
    document = yaml.safe_load(FLOW_FILE.read_text(encoding="utf-8"))
    document["mappingSet"] = {
        "mappings": [{"sourceType": "EXPRESSION", "source": text, "destination": name} for name, text in expressions]
    }
    path = folder / "flow.json"
    path.write_bytes(orjson.dumps(document))
    return str(path)


def test_validate_prints_expressions_and_points_at_mistakes(tmp_path: Path) -> None:
    good = flow_file(tmp_path, ("many", "data.count > 10"), ("skus[*].sku", "data.items[*].sku"))
    shown = worker("validate", good).stdout
    assert re.search(r"^  many +bool  = data\.count > 10$", shown, re.MULTILINE)
    assert re.search(r"^  skus\[\*\]\.sku += data\.items\[\*\]\.sku$", shown, re.MULTILINE)
    wrong = flow_file(tmp_path, ("fine", "data.a"), ("broken", "// two lines\n'😀' + data.count >> 10"))
    told = worker("validate", wrong)
    assert (told.returncode, told.stdout) == (cli.EXIT_WRONG, "")
    message, line, caret = told.stderr.splitlines()
    assert "mapping 2 → broken: column 32" in message
    assert line == "    '😀' + data.count >> 10"
    # the sign takes two places on a terminal
    assert caret == " " * (line.index(">> ") + 2) + "^"


def test_help_lists_the_settings() -> None:
    shown = worker("--help").stdout
    assert [setting.name for setting in SETTINGS if setting.name not in shown] == []


def test_every_command_has_its_row_with_all_its_options() -> None:
    assert len(rows_of(README, "`mixpanel-worker ")) == len(COMMANDS)
    for name, command in COMMANDS.items():
        [row] = rows_of(README, f"`mixpanel-worker {name} ") or rows_of(README, f"`mixpanel-worker {name}` ")
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        missing = {option for option in options - {"--help"} if not re.search(rf"{option}\b(?!-)", row)}
        assert not missing, f"{name}: {missing}"
        unknown = set(re.findall(r"--[a-z-]+", row)) - options
        assert not unknown, f"{name}: {unknown}"


def printed_commands() -> list[str]:
    documents = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    return re.findall(r"^ {4}(?:.*\W)?mixpanel-worker (\w+ .*|\w+)$", "\n".join(documents), re.MULTILINE)


def test_printed_commands_are_known_to_the_command_line() -> None:
    printed = [shlex.split(line, comments=True) for line in printed_commands()]
    assert {name for name, *_ in printed} == set(COMMANDS)
    for name, *arguments in printed:
        COMMANDS[name].make_context(name, arguments)


def test_every_exit_code_is_documented() -> None:
    rows = "\n".join(line for line in README.splitlines() if re.match(r"\| \d+[ ,]", line))
    documented = {int(code) for code in re.findall(r"^\| ([\d, ]+) \|", rows, re.MULTILINE) for code in code.split(",")}
    assert documented == {cli.EXIT_OK, cli.EXIT_FAILED, cli.EXIT_WRONG, 130, 143}


def test_the_printed_flow_file_is_the_example() -> None:
    [printed] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert printed == FLOW_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("beyond", [{}, {"MIXPANEL_HOST": EXPORT_URLS["eu"]}])
def test_the_example_flow_is_right(monkeypatch: pytest.MonkeyPatch, beyond: dict[str, str]) -> None:
    monkeypatch.chdir(ROOT)
    prepared = prepare_flow(FLOW_FILE, beyond, load_settings({}))
    assert prepared.flow.target.dataset_id == "mixpanel_events"


def test_the_example_flow_runs_as_printed(tmp_path: Path) -> None:
    exports, lake = tmp_path / "exports", tmp_path / "lake"
    write_day(exports, DAY, events=300, seed=1)
    state = f"sqlite:///{tmp_path}/worker.db"
    with SimulatorThread(Simulator(data_directory=exports)) as mixpanel:
        environ = {"MIXPANEL_HOST": mixpanel.base_url, "WORKER_SPOOL": str(tmp_path / "spool")}
        span = ["--from", str(DAY), "--to", str(DAY), "--lake", str(lake), "--state", state]
        ran = worker("run", str(FLOW_FILE), "--once", *span, **environ)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"rows in +300\n", ran.stdout)
    for sql in re.findall(r"^ {4}(SELECT .*)$", README, re.MULTILINE):
        asked = worker("query", "--lake", str(lake), sql)
        assert asked.returncode == 0, asked.stderr
    with open_lake(lake) as tables:
        assert tables.sql("select distinct mp_date from mixpanel_events").fetchall() == [(DAY,)]


def test_a_run_that_fails_exits_as_documented(tmp_path: Path) -> None:
    with SimulatorThread(Simulator()) as mixpanel:
        mixpanel.simulator.fault("forbidden")
        environ = {"MIXPANEL_HOST": mixpanel.base_url, "WORKER_SPOOL": str(tmp_path / "spool")}
        span = [
            "--from",
            str(DAY),
            "--to",
            str(DAY),
            "--lake",
            f"{tmp_path}/lake",
            "--state",
            f"sqlite:///{tmp_path}/db",
        ]
        ran = worker("run", str(FLOW_FILE), "--once", *span, **environ)
    assert ran.returncode == cli.EXIT_FAILED
    assert worker("run", str(tmp_path / "none.yaml"), "--once").returncode == cli.EXIT_WRONG


def test_the_example_environment_fits_the_flow_and_the_settings() -> None:
    given = set(re.findall(r"^([A-Z_]+)=", ENVIRONMENT_FILE.read_text(encoding="utf-8"), re.MULTILINE))
    wanted = set(re.findall(r"\$\{(\w+)", FLOW_FILE.read_text(encoding="utf-8")))
    assert wanted <= given
    assert given - wanted <= {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    anchors = {"#" + re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", document, re.MULTILINE)}
    for link in re.findall(r"\]\(([^)]+)\)", document):
        assert link in anchors or "://" in link or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    for name, test in re.findall(r"`((?:worker|tests|benchmarks|deploy|mappings)/[\w./-]+?)(?:::(\w+))?`", document):
        assert (ROOT / name).exists(), name
        if test:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE), test


def worker(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


if __name__ == "__main__":
    MAPPINGS.write_text(with_generated(MAPPINGS.read_text(encoding="utf-8")), encoding="utf-8")
    print(settings_table())
