"""The command line: it parses, calls the service, and prints. Results go to standard output; only they do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from worker.errors import ConfigurationError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from worker.errors import FlowBusyError
    from worker.events import Listener
    from worker.mapping.functions.base import Function
    from worker.model import Flow, Run
    from worker.service import Planned, PreparedFlow
    from worker.settings import Settings

Result = TypeVar("Result")

EXIT_OK, EXIT_FAILED, EXIT_WRONG = 0, 1, 2
LARGEST_DAYS = 3660
SHOWN_CHARACTERS = 80
"""Of an expression, before and behind a mistake."""


def _epilog() -> str:
    """The settings as a table; the first line of it keeps typer from wrapping it."""
    from worker.settings import SETTINGS

    width = max(len(setting.name) for setting in SETTINGS)
    lines = ["\b", "Settings, from the environment:"]
    for setting in SETTINGS:
        lines.append(f"  {setting.name:{width}}  {setting.meaning}")
        counted = f"{setting.default} {setting.unit}" if setting.default.isdigit() else setting.default or "none"
        lines.append(f"  {'':{width}}  default: {counted}")
    return "\n".join(lines)


app = typer.Typer(
    name="mixpanel-worker",
    help="Moves Mixpanel events into your own lake: whole days, exactly once.",
    epilog=_epilog(),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

LakeOption = Annotated[
    Path | None, typer.Option("--lake", help="Folder of the tables (WORKER_LAKE).", show_default=False)
]
StateOption = Annotated[str | None, typer.Option("--state", help="State database (WORKER_STATE).", show_default=False)]
FlowArgument = Annotated[Path, typer.Argument(help="A flow file, YAML or JSON.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def main() -> NoReturn:
    """Entry point: turn what users do wrong into a message and an exit code, never into a stack trace."""
    # numpy's linear algebra is not used, and its threads would only spin
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        sys.exit(_exit_code())
    finally:
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _exit_code() -> int:
    try:
        # typer gives the code of an Exit back, as it is told not to end the process itself
        code = app(prog_name="mixpanel-worker", standalone_mode=False)
        sys.stdout.flush()
    except ConfigurationError as error:
        _say(f"Error: {error}")
        return EXIT_WRONG
    except WorkerError as error:
        _say(f"Error: {error}")
        return EXIT_FAILED
    except Interrupted as interrupted:
        _say("Interrupted: days that were committed stay, all others are as they were.")
        return 128 + interrupted.signal_number
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:
        # a wrong use of the command line can show itself; anything else is a bug and keeps its stack trace
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", EXIT_WRONG))
    return code if isinstance(code, int) else EXIT_OK


def _say(text: str) -> None:
    """Tell it on standard error; a reader who has gone must not stop a run."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Send what is left; where the reader has gone, nowhere, or Python would end with an exit code of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _settings(lake: Path | None = None, state: str | None = None, **others: object) -> Settings:
    from worker.settings import load_settings, unknown_settings

    environ = dict(os.environ)
    for name, value in {"WORKER_LAKE": lake, "WORKER_STATE": state, **others}.items():
        if value is not None:
            environ[name] = str(value)
    for name, nearest in unknown_settings(environ):
        _say(f"Warning: {name} is no setting" + (f"; did you mean {nearest}?" if nearest else "."))
    return load_settings(environ)


def _day(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    # fromisoformat takes the number of a week, too
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        with suppress(ValueError):
            return date.fromisoformat(text)
    raise ConfigurationError(f"{option} takes a date as YYYY-MM-DD, not {text!r}.")


def _run_interruptibly(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`; Ctrl-C and SIGTERM cancel it once, and it ends in order. A second signal ends the process at once."""

    async def watched() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        received: list[int] = []

        def interrupt(number: int) -> None:
            if received:
                os._exit(128 + number)
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        try:
            return await task
        except asyncio.CancelledError:
            if received:
                raise Interrupted(received[0]) from None
            raise

    return asyncio.run(watched())


@app.command()
def run(
    flows: Annotated[
        list[Path] | None,
        typer.Argument(help="Flow files, YAML or JSON; for the service also folders of them.", show_default=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Run each flow once and end.")] = False,
    first: Annotated[str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="First project day.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="YYYY-MM-DD", help="Last project day, inclusive.")] = None,
    as_json: JsonOption = False,
    lake: LakeOption = None,
    state: StateOption = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-file", help="With --once: write Prometheus metrics there at the end.", show_default=False
        ),
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Where the service listens (WORKER_HTTP).")
    ] = None,
) -> None:
    """Export, map and load days of Mixpanel events: once, or as a service for as long as it lives.

    The service applies the flow files, runs flows as their schedules ask, and answers Adobe's Flow Service API.

    With --once and without --from and --to: the days since the flow's last complete day, today included, and the
    lookback before it. A day is replaced as a whole, so any day may be run again. Exit codes: 0 every day committed,
    1 a run failed or another process works on its flow, 2 the command or a flow file is wrong and nothing was started,
    130 and 143 interrupted by Ctrl-C and SIGTERM; 0 for a service that SIGTERM has ended.
    """
    settings = _settings(lake, state, WORKER_HTTP=http)
    if not once:
        once_only = {"--from": first, "--to": last, "--json": as_json, "--metrics-file": metrics_file}
        for option, given in once_only.items():
            if given:
                raise ConfigurationError(f"{option} goes with --once.")
        _serve(settings, flows or [])
        return

    from worker.service import failed_runs, prepare_flow, run_once

    if not flows:
        raise ConfigurationError("No flow file was given.", advice="Name one: mixpanel-worker run FLOW.yaml --once")
    prepared = [prepare_flow(path, os.environ, settings) for path in flows]
    first_day, last_day = _day(first, "--from"), _day(last, "--to")

    def on_planned(plan: Planned) -> None:
        if plan.not_begun is not None:
            _say(f"Left out: {plan.not_begun[0]} to {plan.not_begun[1]}, which have not begun.")

    busy: list[str] = []

    def on_busy(flow: Flow, error: FlowBusyError) -> None:
        busy.append(f"Error: {flow.name}: {error}")

    with _listening(settings) as shown, _measuring(metrics_file, shown) as listener:
        runs = _run_interruptibly(
            run_once(
                prepared, settings, listener, first=first_day, last=last_day, on_planned=on_planned, on_busy=on_busy
            )
        )
    if as_json:
        _print_json_runs(runs)
    else:
        for record in runs:
            _print_run(record, settings)
    for record in failed_runs(runs):
        _say(f"Error: {record.flow_name}: {record.error_message}")
    for text in busy:
        _say(text)
    if failed_runs(runs) or busy:
        raise typer.Exit(EXIT_FAILED)


def _serve(settings: Settings, paths: list[Path]) -> None:
    import faulthandler

    from worker.daemon import serve

    # a crash of a library leaves where it was (F88), where standard error is a file
    with suppress(OSError):
        faulthandler.enable()
    closed = settings.api_clients or settings.api_tokens

    def on_ready(url: str) -> None:
        _say(f"Serving at {url}" + ("" if closed else ", open to everybody on this machine"))

    try:
        _run_interruptibly(serve(settings, paths, os.environ, _log_lines(settings), on_ready=on_ready))
    except Interrupted as interrupted:
        if interrupted.signal_number != signal.SIGTERM:
            raise


@contextmanager
def _measuring(path: Path | None, listener: Listener) -> Iterator[Listener]:
    """A listener that counts as well, and leaves the metrics at `path` however the runs end."""
    if path is None:
        yield listener
        return
    from worker.metrics import Metrics
    from worker.telemetry import tell

    metrics = Metrics()
    try:
        yield tell(metrics, listener)
    finally:
        metrics.write_file(path)


@contextmanager
def _listening(settings: Settings) -> Iterator[Listener]:
    """A progress bar where a person watches and asked for nothing else, log lines elsewhere."""
    if settings.log_format == "auto" and sys.stderr.isatty():
        from worker.telemetry import ProgressListener

        with ProgressListener() as bar:
            yield bar
    else:
        yield _log_lines(settings)


def _log_lines(settings: Settings) -> Listener:
    """Lines for people where they watch or were asked for, else JSON."""
    from worker.telemetry import LogListener

    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    return LogListener(settings, as_json=as_json)


def _print_json_runs(runs: Sequence[Run]) -> None:
    import orjson

    from worker.run_record import runs_document

    sys.stdout.write(orjson.dumps(runs_document(runs), option=orjson.OPT_INDENT_2).decode() + "\n")


def _print_run(run: Run, settings: Settings) -> None:
    tally = run.tally
    seconds = ((run.completed_at or run.started_at) - run.started_at).total_seconds()
    days = (run.last_day - run.first_day).days + 1
    rows = [
        ("run", f"{run.id}  {run.state}"),
        ("flow", run.flow_name),
        ("days", f"{run.first_day} to {run.last_day}: {run.days_committed} of {days} committed"),
    ]
    if run.days_committed:
        rows += [
            ("rows in", f"{tally.input:,}"),
            ("rows out", f"{tally.output:,}"),
            ("deduplicated", f"{tally.deduplicated:,}"),
            ("rejected", f"{tally.failed:,}"),
            ("skipped", f"{tally.skipped:,}  (blank lines)"),
            ("warnings", f"{tally.warnings:,}  (values that became null)"),
            ("bytes", f"{run.input_bytes:,} in, {run.output_bytes:,} out"),
            ("time", f"{seconds:.1f} s, {tally.input / max(seconds, 1e-9):,.0f} rows a second"),
            ("table", str(settings.lake / run.dataset_id)),
        ]
    for name, value in rows:
        print(f"{name:>13}  {value}")
    for issue in run.issues:
        sample = f"  first: {issue.sample!r}" if issue.sample is not None else ""
        print(f"{'warning':>13}  {issue.code}  {issue.count:,} x {issue.message}{sample}")


@app.command()
def runs(
    flow: Annotated[str | None, typer.Option("--flow", help="Only runs of the flow with this name.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")] = 20,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """List the runs, newest first."""
    from worker.service import list_runs

    found = list_runs(_settings(state=state), flow, limit)
    if as_json:
        _print_json_runs(found)
        return
    print(f"{'started (UTC)':19}  {'status':10}  {'days':23}  {'in':>12}  {'out':>12}  {'rejected':>9}  flow")
    for record in found:
        tally = record.tally
        days = f"{record.first_day}..{record.last_day}"
        print(
            f"{record.started_at:%Y-%m-%d %H:%M:%S}  {record.state:10}  {days:23}  {tally.input:>12,}  "
            f"{tally.output:>12,}  {tally.failed:>9,}  {record.flow_name}"
        )
        if record.error_message:
            print(f"{'':19}  {record.error_message}")


@app.command()
def recover(
    flows: Annotated[list[Path], typer.Argument(help="Flow files, YAML or JSON.", show_default=False)],
    lake: LakeOption = None,
    state: StateOption = None,
) -> None:
    """Rebuild a lost state database from the tables: which days are complete, and since when.

    Changes no table, and may be repeated. Afterwards a run without --from goes on where the last one ended.
    """
    from worker.service import prepare_flow
    from worker.service import recover as recover_state

    settings = _settings(lake, state)
    prepared = [prepare_flow(path, os.environ, settings) for path in flows]
    for name, receipts in recover_state(prepared, settings).items():
        days = f", {receipts[0].day} to {receipts[-1].day}" if receipts else ""
        rows = sum(receipt.tally.output for receipt in receipts)
        print(f"{name}: {len(receipts)} days{days}, {rows:,} rows")


@app.command()
def validate(flow: FlowArgument, lake: LakeOption = None) -> None:
    """Check a flow file and its mapping set without a network; print its columns and their expressions."""
    from worker.service import prepare_flow

    settings = _settings(lake)
    try:
        prepared = prepare_flow(flow, os.environ, settings)
    except ConfigurationError as error:
        _say(f"Error: {error}")
        _point_at_mistake(flow, settings, error)
        raise typer.Exit(EXIT_WRONG) from None
    target = prepared.flow.target
    expressions = {
        name: " ".join(source.split()) for name, source in _expressions(_mapping_document(flow, settings)).items()
    }
    print(f"{flow}: {prepared.flow.name!r} is right. It fills {target.dataset_id} with these columns:")
    print(f"  {'mp_date':40} date32  (the project day, the partition)")
    for name, kind in _leafs(prepared):
        made = f"  = {expressions.pop(name)}" if name in expressions else ""
        print(f"  {name:40} {kind}{made}")
    if expressions:
        # a column may be made of several, or several columns of one
        print("Parts of columns, and objects, that expressions make:")
        for name, source in expressions.items():
            print(f"  {name:40} = {source}")


def _mapping_document(flow: Path, settings: Settings) -> dict[str, Any]:
    """The mapping set of a flow file that can be read, as it was written."""
    import orjson

    from worker.flow_file import load_flow

    file = load_flow(flow, os.environ, settings)
    if file.mapping_path is None:
        return file.mapping_document or {}
    document: dict[str, Any] = orjson.loads(file.mapping_path.read_bytes())
    return document


def _expressions(document: dict[str, Any]) -> dict[str, str]:
    """By destination."""
    return {
        entry.get("destination", entry.get("destinationXdmPath")): entry.get("source", entry.get("sourceAttribute"))
        for entry in document["mappings"]
        if entry.get("sourceType") in ("EXPRESSION", "text/x.aep-xl")
    }


def _point_at_mistake(flow: Path, settings: Settings, error: BaseException) -> None:
    """Show the line of the expression that caused the error, if one did, and a caret below the place."""
    from rich.cells import cell_len

    from worker.mapping.expression import Expression
    from worker.mapping.language.parser import ExpressionError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ExpressionError):
        cause = cause.__cause__
    if cause is None:
        return
    for source in _expressions(_mapping_document(flow, settings)).values():
        try:
            Expression.of(source)
        except ExpressionError as found:
            if str(found) == str(cause):
                before = source[: found.column - 1].rpartition("\n")[2][-SHOWN_CHARACTERS:]
                after = source[found.column - 1 :].partition("\n")[0][:SHOWN_CHARACTERS]
                _say(f"    {before}{after}\n    {' ' * cell_len(before)}^")
                return


def _leafs(prepared: PreparedFlow) -> list[tuple[str, str]]:
    import pyarrow as pa

    def walk(prefix: str, fields: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - a schema or a struct
        found: list[tuple[str, str]] = []
        for field in fields:
            name = prefix + field.name
            if pa.types.is_struct(field.type):
                found += walk(name + ".", [field.type.field(index) for index in range(field.type.num_fields)])
            else:
                found.append((name, str(field.type)))
        return found

    return walk("", prepared.mapper.schema)


@app.command()
def preview(
    flow: FlowArgument,
    day: Annotated[
        str | None, typer.Option("--day", metavar="YYYY-MM-DD", help="A project day. Default: the newest with events.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=100, help="How many rows.")] = 100,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Show real rows: the source fields with their types, and the rows as the mapping set makes them."""
    import orjson

    from worker.service import prepare_flow
    from worker.service import preview as preview_flow

    settings = _settings(state=state)
    prepared = prepare_flow(flow, os.environ, settings)
    seen = _run_interruptibly(preview_flow(prepared, settings, day=_day(day, "--day"), rows=rows))
    if as_json:
        document = {
            "day": seen.day,
            "explore": seen.explore,
            "mapped": seen.mapped,
            "rejects": seen.rejects,
            "warnings": seen.warnings,
        }
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    if not seen.explore["data"] and not seen.rejects:
        print(f"There are no events on {seen.day}" + (", nor on the days before." if day is None else "."))
        return
    print(f"Source fields of {seen.day}, over {len(seen.explore['data'])} rows:")
    for name, kind in _fields_of(seen.explore["schema"]):
        print(f"  {name:50} {kind}")
    print("\nMapped rows:")
    for row in seen.mapped:
        print("  " + orjson.dumps(row).decode())
    for text in (*seen.warnings, *seen.rejects):
        _say(f"  ! {text}")


def _fields_of(schema: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, inner in schema.get("properties", {}).items():
        if inner.get("type") == "object":
            found += _fields_of(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, inner.get("type", "null")))
    return found


@app.command()
def query(
    sql: Annotated[
        str, typer.Argument(help="SQL; the tables of the lake are views of their names.", show_default=False)
    ],
    lake: LakeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run SQL over the lake's tables through DuckDB."""
    import duckdb

    from worker.service import query as query_lake

    try:
        result = query_lake(_settings(lake), sql)
        if result is None:
            return
        if as_json:
            import orjson

            names = result.columns
            rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
            sys.stdout.write(orjson.dumps(rows, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")
        else:
            print(result)
    except duckdb.Error as error:
        raise ConfigurationError(f"DuckDB says: {error}") from None


@app.command()
def functions(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A function or an alias of one.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the functions of the mapping language, or say everything about one."""
    from worker.mapping.functions import REGISTRY
    from worker.mapping.functions.refused import REFUSED

    known = {**REGISTRY.by_name, **REFUSED}
    if name is not None and name not in known:
        from difflib import get_close_matches

        spellings = {other.lower(): other for other in known}
        nearest = spellings[get_close_matches(name.lower(), spellings, n=1, cutoff=0)[0]]
        raise ConfigurationError(f"There is no function {name!r}.", advice=f"Did you mean {nearest}?")
    if as_json:
        import orjson

        shown = {made.name: _function_document(made) for made in REGISTRY.by_name.values()}
        shown |= {other: {"name": other, "refused": reason} for other, reason in REFUSED.items()}
        document: object = list(shown.values())
        if name is not None:
            document = shown[REGISTRY.by_name[name].name if name in REGISTRY.by_name else name]
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif name is None:
        _print_functions()
    elif name in REFUSED:
        print(f"{name} is a function of Adobe's that cannot be used here: {REFUSED[name]}.")
    else:
        _print_function(REGISTRY.by_name[name])


def functions_by_category() -> dict[str, list[Function]]:
    """Categories and names in alphabetical order."""
    from worker.mapping.functions import REGISTRY

    found: dict[str, list[Function]] = {}
    distinct = {made.name: made for made in REGISTRY.by_name.values()}
    for made in sorted(distinct.values(), key=lambda made: (made.category, made.name.lower())):
        found.setdefault(made.category, []).append(made)
    return found


def _print_functions() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from worker.mapping.functions.refused import REFUSED

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for category, found in functions_by_category().items():
        table.add_row(Text(category, style="bold"))
        for made in found:
            table.add_row(Text(f"  {made.signature}"), Text(made.returns), Text(made.description))
    # a file or a pipe has no width
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    console.print(Text(f"Adobe's functions that cannot be used here: {', '.join(REFUSED)}"))


def _print_function(made: Function) -> None:
    import orjson

    print(f"{made.signature}  →  {made.returns}")
    print(f"  {made.description}")
    print(f"\n{'category':>10}  {made.category}")
    if made.aliases:
        print(f"{'aliases':>10}  {', '.join(made.aliases)}")
    if not made.deterministic:
        print(f"{'note':>10}  equal events do not give equal results")
    if made.row_loop:
        print(f"{'note':>10}  slow, as it loops over rows: {made.row_loop}")
    if made.parameters:
        print("\nParameters")
        width = max(len(parameter.name) for parameter in made.parameters)
        for parameter in made.parameters:
            how = ", any number of times" if parameter.repeated else "" if parameter.required else ", may be left out"
            print(f"  {parameter.name:{width}}  {parameter.description}{how}")
    if made.examples:
        print("\nExamples")
        for example in made.examples:
            note = f"  ({example.note})" if example.note else ""
            print(f"  {example.expression}  →  {orjson.dumps(example.value).decode()}{note}")
    if made.decisions:
        print("\nWhat Adobe leaves open, or says in two ways, is decided so")
        for decision in made.decisions:
            print(f"  {decision}")


def _function_document(made: Function) -> dict[str, Any]:
    from dataclasses import asdict, fields

    left_out = {"evaluate", "parameters", "examples"}
    plain = {field.name: getattr(made, field.name) for field in fields(made) if field.name not in left_out}
    return {
        **plain,
        "syntax": made.signature,
        "parameters": [asdict(parameter) for parameter in made.parameters],
        "examples": [asdict(example) for example in made.examples],
    }


@app.command()
def simulate(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 8093,
    days: Annotated[
        int, typer.Option("--days", min=1, max=LARGEST_DAYS, help="Days with events, up to yesterday.")
    ] = 7,
    events_per_day: Annotated[int, typer.Option("--events-per-day", min=0, max=100_000_000)] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other events.")] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Serve YYYY-MM-DD.jsonl or .jsonl.gz of this folder.", show_default=False
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="NAME[:TIMES]",
            help="A fault for the next exports; may be repeated. `--fault list` lists them.",
            show_default=False,
        ),
    ] = None,
    quota: Annotated[
        bool, typer.Option("--quota", help="Refuse more than 60 exports an hour and 3 a second, as Mixpanel does.")
    ] = False,
) -> None:
    """Serve a simulated Mixpanel on loopback: realistic events, or files, with faults by name."""
    from worker.mixpanel import simulator as simulated

    if fault and "list" in fault:
        for name, text in simulated.describe_faults().items():
            print(f"{name:32} {text}")
        return
    _run_interruptibly(_simulate(port, days, events_per_day, seed, data, fault or [], quota=quota))


async def _simulate(
    port: int, days: int, events_per_day: int, seed: int, data: Path | None, faults: list[str], *, quota: bool
) -> None:
    from datetime import UTC, datetime, timedelta

    from worker.mixpanel import simulator as simulated

    if data is not None and not data.is_dir():  # noqa: ASYNC240 - before anything runs
        raise ConfigurationError(f"--data: there is no folder {data}.")
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    served = [yesterday - timedelta(days=back) for back in range(days)][::-1]
    server = simulated.Simulator(
        data_directory=data,
        events_per_day=0 if data else events_per_day,
        days=served,
        seed=seed,
        port=port,
        quota=quota,
    )
    for text in faults:
        name, _, times = text.partition(":")
        try:
            server.fault(name, times=int(times or 1))
        except ValueError as error:
            raise ConfigurationError(f"--fault {text}: {error}", advice="`--fault list` lists the names.") from None
    try:
        await server.start()
    except OSError as error:
        raise ConfigurationError(
            f"Port {port} cannot be opened: {error.strerror}.", advice="Choose another --port."
        ) from None
    try:
        print(f"Simulated Mixpanel on {server.base_url}", file=sys.stderr)
        print(
            f"  user {simulated.DEMO_USERNAME}, password {simulated.DEMO_PASSWORD}, "
            f"projectId {simulated.DEMO_PROJECT_ID}",
            file=sys.stderr,
        )
        print(f"  days {data or f'{served[0]} to {served[-1]}, {events_per_day:,} events each'}", file=sys.stderr)
        await asyncio.Event().wait()
    finally:
        await server.stop()
