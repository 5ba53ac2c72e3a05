"""Mapping by twenty expressions: what they add to a whole run, and how they do beside Python, row by row.

Whole runs read one project day as gzip over loopback HTTP from the simulated Mixpanel into a Delta table: with the
tutorial's set, with twenty more properties copied, and with twenty expressions instead of the copies. More columns cost
more to write, whatever makes them: what the expressions add beside the copies is the mapping.

Then the mapper alone maps the rows of that day, and Python does the same twenty rules on the same rows, one after
another: this engine on blocks of one row; an interpreter of the same expression trees, which is what a row-by-row
engine of the language is; and the rules written out by hand. Rounds alternate, medians are printed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import statistics
import time
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks.bench import FIRST_DAY, ROOT, SEED, TUTORIAL, Measure, run_worker
from worker.mapping.context import Context
from worker.mapping.expression import FUNCTION_NAMES
from worker.mapping.language.parser import parse
from worker.mapping.language.tree import Binary, Call, Item, Literal, Member, Name, Ternary
from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mixpanel.decode import Decoder
from worker.mixpanel.pieces import PieceFiles, read_pieces
from worker.mixpanel.simulator import Simulator, SimulatorThread
from worker.mixpanel.spool import Spool
from worker.mixpanel.synthetic import write_day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from worker.mapping.mapper import Mapper

    Row = dict[str, Any]
    Json = Any

RULES = (
    "upper(data.item_name)",
    "concat(data.item_name, ' (', data.item_id, ')')",
    "lower(trim(event))",
    "replacestr(data.distinct_id, '@', ' at ')",
    "substr(data.insert_id, 0, 8)",
    "left(data.browser_version, 4)",
    "lpad(data.item_id, 10, '0')",
    "explode(data.distinct_id, '@')[1]",
    "instr(data.current_url, '//')",
    "get_url_host(data.current_url)",
    "sha256(data.distinct_id)",
    "md5(concat(event, data.time))",
    "crc32(data.item_id)",
    "dformat(data.time * 1000, \"yyyy-MM-dd'T'HH:mm:ssX\")",
    "date_part('hour', dformat(data.time * 1000, \"yyyy-MM-dd'T'HH:mm:ssX\"))",
    "format(dformat(data.mp_processing_time_ms, \"yyyy-MM-dd'T'HH:mm:ss.SSSX\"), 'dd.MM.yyyy')",
    "to_decimal(data.item_price) > 500 ? 'high' : 'low'",
    "decode(event, 'Items purchased', 'purchase', 'Items sold', 'sale', 'other')",
    "coalesce(data.city, data.region, 'nowhere')",
    "matches_regex(data.distinct_id, '[^@]+@[^@]+') && data.item_id != null ? 'known' : 'unknown'",
)
COPIES = (
    "item_name",
    "item_id",
    "distinct_id",
    "insert_id",
    "browser_version",
    "current_url",
    "city",
    "region",
    "time",
    "mp_processing_time_ms",
)
"""What the rules read; each is copied twice."""
SINGLE_ROWS = 300
FACTS = {"projectId": "2384945", "timezone": "UTC", "timeBasis": "utc"}


def mappings(kind: str) -> list[dict[str, str]]:
    """The mappings of the tutorial, and what is beside them: nothing, copies or expressions."""
    tutorial: list[dict[str, str]] = json.loads(TUTORIAL.read_text(encoding="utf-8"))["mappings"]
    match kind:
        case "expressions":
            return [*tutorial, *rules()]
        case "copies":
            copied = [f"data.{name}" for name in COPIES * 2]
            return [*tutorial, *(_mapping("ATTRIBUTE", source, number) for number, source in enumerate(copied))]
    return tutorial


def rules() -> list[dict[str, str]]:
    return [_mapping("EXPRESSION", rule, number) for number, rule in enumerate(RULES)]


def _mapping(source_type: str, source: str, number: int) -> dict[str, str]:
    return {"sourceType": source_type, "source": source, "destination": f"more.c{number:02}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python-rows", type=int, default=50_000, help="rows that Python maps one by one")
    arguments = parser.parse_args()
    folder = ROOT / ".bench" / f"{arguments.rows}"
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not (data / f"{FIRST_DAY}.jsonl.gz").exists():
        write_day(data, FIRST_DAY, arguments.rows, SEED)
    whole_runs(folder, data, arguments.rows, arguments.rounds)
    mappers(folder, data, arguments.rows, arguments.rounds, arguments.python_rows)


def whole_runs(folder: Path, data: Path, rows: int, rounds: int) -> None:
    found: dict[str, list[Measure]] = {"tutorial": [], "copies": [], "expressions": []}
    with SimulatorThread(Simulator(data_directory=data)) as simulated:
        for _ in range(rounds):
            for kind, measures in found.items():
                mapping = folder / f"mapping-{kind}.json"
                mapping.write_text(json.dumps({"mappings": mappings(kind)}), encoding="utf-8")
                measures.append(run_worker(folder, simulated.base_url, [FIRST_DAY], mapping))
    print(f"\none day of {rows:,} rows, {rounds} rounds, medians")
    print(f"{'':34}{'wall s':>9}{'rows/s':>12}{'CPU s/1M rows':>15}{'peak MiB':>10}")
    for kind, measures in found.items():
        name = kind if kind == "tutorial" else f"tutorial and 20 {kind}"
        wall = statistics.median(one.wall_seconds for one in measures)
        cpu = statistics.median(one.cpu_seconds for one in measures) * 1e6 / rows
        peak = max(one.peak_mebibytes for one in measures)
        print(f"{name:34}{wall:>9.2f}{rows / wall:>12,.0f}{cpu:>15.2f}{peak:>10.0f}")
    for less in ("copies", "tutorial"):
        shares = [
            (more.wall_seconds - one.wall_seconds) / whole.wall_seconds
            for more, one, whole in zip(found["expressions"], found[less], found["tutorial"], strict=True)
        ]
        share = f"{statistics.median(shares):.0%}, {min(shares):.0%} to {max(shares):.0%}"
        print(f"expressions add to {less}, as a share of the run with the tutorial's set: {share}")


def mappers(folder: Path, data: Path, rows: int, rounds: int, python_rows: int) -> None:
    """The mapper over decoded blocks, and Python over the same events."""
    mapper = compile_mapper(parse_mapping_set({"mappings": rules()}), None)
    context = Context(datetime.now(UTC), FACTS)
    blocks = list(decoded_blocks(folder, data, mapper))
    lines = first_lines(data, python_rows)
    trees = [parse(rule, functions=FUNCTION_NAMES) for rule in RULES]
    texts, kinds = blocks[0]
    single = [
        ([text.slice(row, 1) for text in texts], [None if kind is None else kind[row : row + 1] for kind in kinds])
        for row in range(SINGLE_ROWS)
    ]
    seconds: dict[str, list[float]] = {"columns": [], "one row a block": [], "interpreted": [], "by hand": []}
    for _ in range(rounds):
        started = time.process_time()
        for texts, kinds in blocks:
            mapper.map(texts, kinds, context)
        seconds["columns"].append((time.process_time() - started) * 1e6 / rows)
        started = time.process_time()
        for texts, kinds in single:
            mapper.map(texts, kinds, context)
        seconds["one row a block"].append((time.process_time() - started) * 1e6 / len(single))
        started = time.process_time()
        for row in lines:
            for tree in trees:
                interpret(tree, row)
        seconds["interpreted"].append((time.process_time() - started) * 1e6 / len(lines))
        started = time.process_time()
        for row in lines:
            by_hand(row)
        seconds["by hand"].append((time.process_time() - started) * 1e6 / len(lines))
    check(mapper, blocks[0], context, trees, lines)
    ours = statistics.median(seconds["columns"])
    print(f"\n20 expressions alone, {rows:,} rows, medians of {rounds}")
    print(f"{'':34}{'rows/s':>12}{'CPU s/1M rows':>15}{'ratio':>8}")
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:34}{1e6 / median:>12,.0f}{median:>15.2f}{median / ours:>8.1f}")


def decoded_blocks(folder: Path, data: Path, mapper: Mapper) -> Iterator[tuple[list[Any], list[Any]]]:
    with Spool(folder / "spooled") as spool:
        spool.write((data / f"{FIRST_DAY}.jsonl.gz").read_bytes())
        spool.finish(proves_end=True)
        files = PieceFiles(folder, 1)
        decoder = Decoder(
            mapper.paths,
            max_line_bytes=1 << 20,
            max_raw_bytes=1 << 16,
            kinds_of=mapper.kinds_of,
            rounded=mapper.rounded,
        )
        for piece in read_pieces(spool, files, piece_bytes=32 << 20, max_line_bytes=1 << 20, max_raw_bytes=1 << 16):
            for decoded in decoder.decode_piece(piece):  # type: ignore[arg-type]  # no line of these is oversized
                yield decoded.texts[: len(mapper.paths)], decoded.kinds[: len(mapper.paths)]
            files.give_back(piece.path)  # type: ignore[union-attr]
        decoder.close()


def first_lines(data: Path, count: int) -> list[Row]:
    with gzip.open(data / f"{FIRST_DAY}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


# Row by row: the functions that the rules use, as one would write them in Python


def _dformat(milliseconds: int | None, pattern: str) -> str | None:
    if milliseconds is None:
        return None
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    text = moment.strftime(_strftime(pattern))
    return text.replace("%f", f"{milliseconds % 1000:03}")


def _strftime(pattern: str) -> str:
    for java, python in (("yyyy", "%Y"), ("MM", "%m"), ("dd", "%d"), ("HH", "%H"), ("mm", "%M"), ("ss", "%S")):
        pattern = pattern.replace(java, python)
    return pattern.replace("SSS", "%%f").replace("'T'", "T").replace("X", "Z")


def _host(url: str | None) -> str | None:
    found = re.match(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]*)", url or "", re.IGNORECASE)
    return found[1] if found else None


def _decode(key: Json, *options: Json) -> Json:
    pairs = dict(zip(options[::2], options[1::2], strict=False))
    return pairs.get(key, options[-1] if len(options) % 2 else None)


def _on_text(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(text: Json, *rest: Json) -> Json:
        return None if text is None else function(str(text), *rest)

    return call


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "upper": _on_text(str.upper),
    "lower": _on_text(str.lower),
    "trim": _on_text(str.strip),
    "concat": lambda *texts: None if None in texts else "".join(map(str, texts)),
    "replacestr": _on_text(str.replace),
    "substr": _on_text(lambda text, start, length: text[start : start + length]),
    "left": _on_text(lambda text, count: text[:count]),
    "lpad": _on_text(lambda text, count, padding: text.rjust(count, padding)),
    "explode": _on_text(lambda text, pattern: re.split(pattern, text)),
    "instr": _on_text(str.find),
    "get_url_host": _host,
    "sha256": _on_text(lambda text: hashlib.sha256(text.encode()).hexdigest()),
    "md5": _on_text(lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()),
    "crc32": _on_text(lambda text: zlib.crc32(text.encode()).to_bytes(4, "little").hex()),
    "dformat": _dformat,
    "date_part": lambda part, text: None if text is None else getattr(datetime.fromisoformat(text), part),
    "format": lambda text, pattern: None if text is None else datetime.fromisoformat(text).strftime(_strftime(pattern)),
    "to_decimal": _on_text(float),
    "decode": _decode,
    "coalesce": lambda *values: next((value for value in values if value is not None), None),
    "matches_regex": _on_text(lambda text, pattern: re.fullmatch(pattern, text) is not None),
}


def interpret(node: Json, row: Row) -> Json:
    """What an expression gives for one event."""
    match node:
        case Literal(value=value):
            return value
        case Call(function=name, arguments=arguments):
            return FUNCTIONS[name](*(interpret(argument, row) for argument in arguments))
        case Name(name="event"):
            return row["event"]
        case Member(target=Name(name="data"), name=name):
            properties = row["properties"]
            value = properties.get(name)
            return properties.get(f"${name}") if value is None else value
        case Item(target=target, index=index):
            items, place = interpret(target, row), interpret(index, row)
            return items[place] if items is not None and place < len(items) else None
        case Ternary(condition=condition, yes=yes, no=no):
            return interpret(yes if interpret(condition, row) else no, row)
        case Binary(operator="&&", left=left, right=right):
            return interpret(left, row) and interpret(right, row)
        case Binary(operator=operator, left=left, right=right):
            one, other = interpret(left, row), interpret(right, row)
            match operator:
                case "!=":
                    return one != other
                case ">":
                    return one is not None and one > other
                case "*":
                    return None if one is None else one * other
    raise AssertionError(node)


def by_hand(row: Row) -> list[Any]:
    """The rules as a Python programmer would write them out."""
    event, properties = row["event"], row["properties"]

    def get(name: str) -> Json:
        value = properties.get(name)
        return properties.get("$" + name) if value is None else value

    item_id, item_name, distinct_id = get("item_id"), get("item_name"), get("distinct_id")
    url, seconds, price, processed = get("current_url"), get("time"), get("item_price"), get("mp_processing_time_ms")
    insert_id, version = get("insert_id"), get("browser_version")
    parts = None if distinct_id is None else distinct_id.split("@")
    moment = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return [
        None if item_name is None else item_name.upper(),
        None if item_name is None or item_id is None else f"{item_name} ({item_id})",
        event.strip().lower(),
        None if distinct_id is None else distinct_id.replace("@", " at "),
        None if insert_id is None else insert_id[:8],
        None if version is None else str(version)[:4],
        None if item_id is None else item_id.rjust(10, "0"),
        None if parts is None or len(parts) < 2 else parts[1],
        None if url is None else url.find("//"),
        _host(url),
        None if distinct_id is None else hashlib.sha256(distinct_id.encode()).hexdigest(),
        None if seconds is None else hashlib.md5(f"{event}{seconds}".encode(), usedforsecurity=False).hexdigest(),
        None if item_id is None else zlib.crc32(item_id.encode()).to_bytes(4, "little").hex(),
        None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        None if moment is None else moment.hour,
        None if processed is None else datetime.fromtimestamp(processed / 1000, UTC).strftime("%d.%m.%Y"),
        "high" if price is not None and float(price) > 500 else "low",
        {"Items purchased": "purchase", "Items sold": "sale"}.get(event, "other"),
        get("city") or get("region") or "nowhere",
        "known" if parts is not None and len(parts) == 2 and all(parts) and item_id is not None else "unknown",
    ]


def check(
    mapper: Mapper, block: tuple[list[Any], list[Any]], context: Context, trees: list[Any], lines: list[Row]
) -> None:
    """All three must say the same, or nothing is compared."""
    mapped = mapper.map(*block, context).batch.to_pylist()
    for line, found in zip(lines[:2000], mapped, strict=False):
        expected = [interpret(tree, line) for tree in trees]
        rules = list(found["more"].values())
        assert rules == expected == by_hand(line), (line, rules, expected)


if __name__ == "__main__":
    main()
