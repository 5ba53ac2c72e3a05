"""Hostile exports end to end: through a socket, the pipeline and a commit. Nothing crashes, nothing is lost unsaid."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.source_side import DAY, Landed, Worker, mapper_of, sample, source_at
from tests.test_decode import BAD, LENIENT, LINES, reference
from worker.errors import ExportBrokenError, RejectLimitError
from worker.mapping.mapper import REJECT_CODE, compile_mapper
from worker.mapping.mapping_set import parse_mapping_set
from worker.mapping.xdm import XdmSchema
from worker.mixpanel.decode import CORRUPT
from worker.mixpanel.simulator import Simulator
from worker.model import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOOD_LINES = 4000
SMALL = {name: line for name, line in LINES.items() if len(line) < 200_000}
PATHS = [("event",), ("properties", "time"), ("properties", "distinct_id"), ("properties", "$insert_id")]


def good(number: int) -> bytes:
    properties = {"time": 1_700_000_000 + number, "distinct_id": f"user {number % 97}", "$insert_id": f"id-{number}"}
    return json.dumps({"event": "good", "properties": {**properties, "p": f"größe {number}", "q": number / 8}}).encode()


def hostile_day(seed: int) -> list[bytes]:
    """Thousands of good lines, and every kind of hostile line a few times among them."""
    chance = random.Random(seed)
    lines = [good(number) for number in range(GOOD_LINES)]
    lines += [line for line in SMALL.values() for _ in range(3)]
    # the same event in five exports of a client, processed one after the other
    for number in range(50):
        lines += [good(number)[:-2] + b',"mp_processing_time_ms":%d}}' % at for at in (5, 3, 9, 9, 1)]
    chance.shuffle(lines)
    return lines


def is_event(line: bytes) -> bool:
    return reference(line, PATHS).values is not None


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


async def load(worker: Worker, simulator: Simulator, lines: list[bytes], options: Options | None = None) -> Landed:
    simulator.set_day(DAY, b"".join(line + b"\n" for line in lines))
    return await worker.load(source_at(simulator.base_url), options=options)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    async with Worker(tmp_path, max_reject_bytes=300) as worker:
        yield worker


async def test_F023_F037_a_hostile_day(worker: Worker, simulator: Simulator) -> None:
    lines = hostile_day(1)
    landed = await load(worker, simulator, lines)
    events = [line for line in lines if is_event(line)]
    blank = [line for line in lines if not line.strip()]
    bad = {number: line for number, line in enumerate(lines, start=1) if line.strip() and not is_event(line)}

    tally = landed.tally
    assert (tally.input, tally.skipped, tally.failed) == (len(lines), len(blank), len(bad))
    assert tally.output + tally.deduplicated == len(events)

    assert {reject["line"] for reject in landed.rejects} == set(bad)
    for reject in landed.rejects:
        assert reject["raw"] == bad[reject["line"]][:300].decode("utf-8", "backslashreplace")
        assert (reject["stage"], reject["code"]) == ("decode", CORRUPT)
        assert reject["reason"]

    rows = {row["insert_id"]: row for row in landed.rows if row["name"] == "good" and row["p"] != "1"}
    assert len(rows) >= GOOD_LINES
    for number in range(GOOD_LINES):
        row = rows[f"id-{number}"]
        assert (row["time"], row["who"]) == (1_700_000_000 + number, f"user {number % 97}")
        assert row["p"] == f"größe {number}"
        assert float(row["q"]) == number / 8
    # of the six that are one event one stays, and rows without an insert_id all stay
    assert tally.deduplicated >= 250
    without = Counter(row["insert_id"] for row in landed.rows if not row["insert_id"])
    expected = Counter(values[3] for line in events if not (values := reference(line, PATHS).values or [0] * 4)[3])
    assert without == expected


def shape(worker: Worker, **sizes: int) -> None:
    """Give parts of the budget other sizes than the memory would give."""
    for name, size in sizes.items():
        assert hasattr(worker._pipeline._budget, name)
        object.__setattr__(worker._pipeline._budget, name, size)


def comparable(landed: Landed) -> tuple[Counter[str], Counter[str], Any]:
    """A day without the order of its lines."""
    rejects = [{**reject, "line": None} for reject in landed.rejects]
    issues = sorted((issue.code, issue.message, issue.count) for issue in landed.issues)
    return Counter(map(repr, landed.rows)), Counter(map(repr, rejects)), (landed.tally, issues)


async def test_F031_F040_a_day_hangs_neither_on_blocks_nor_on_pieces_nor_on_order(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = hostile_day(2)
    found = []
    sizes = [
        # pieces, blocks, what is read and inflated at once, rows that are handed on together
        (4 << 20, 4 << 20, 1 << 20, 16_384),
        (20_000, 4_000, 4_999, 7),
        (150_000, 20_000, 65_536, 500),
    ]
    for number, (piece_bytes, block_bytes, read_bytes, stream_rows) in enumerate(sizes):
        for name in ("spool.READ_BYTES", "body.INFLATE_BYTES", "body.DEFLATED_BYTES", "decode.READ_BYTES"):
            monkeypatch.setattr(f"worker.mixpanel.{name}", read_bytes)
        monkeypatch.setattr("worker.mixpanel.decode.STREAM_ROWS", stream_rows)
        async with Worker(tmp_path, max_reject_bytes=300) as worker:
            shape(worker, piece_bytes=piece_bytes, block_bytes=block_bytes)
            found.append(await load(worker, simulator, lines))
            random.Random(number).shuffle(lines)
            found.append(await load(worker, simulator, lines))
    first_rejects = [(reject["line"], reject["raw"]) for reject in found[0].rejects]
    assert first_rejects == sorted(first_rejects)
    assert len(first_rejects) > 100
    for landed in found[1:]:
        for ours, theirs in zip(comparable(landed), comparable(found[0]), strict=True):
            assert ours == theirs


@pytest.mark.parametrize("piece_bytes", [1, 1000, 1 << 20])
async def test_F023_rejects_name_their_lines_whichever_way_these_are_read(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """Pieces that DuckDB reads and pieces that it does not; rejects of decoding and of mapping; blank lines."""
    monkeypatch.setattr("worker.mixpanel.spool.READ_BYTES", 500)
    monkeypatch.setattr("worker.mixpanel.body.INFLATE_BYTES", 500)
    monkeypatch.setattr("worker.mixpanel.decode.STREAM_ROWS", 3)
    mapper = mapper_of(
        {"who": "properties.distinct_id", "time": "properties.time"},
        {"type": "object", "properties": {"who": {"type": "string"}, "time": {"type": "integer"}}, "required": ["who"]},
    )
    odd = {
        4: b'{"event":null,"properties":{"distinct_id":"d"}}',
        9: b"",
        10: b'{"event":"nobody","properties":{"time":1.50}}',
        15: b'{"event":["x"],"properties":{}}',
        31: b" \t",
        32: BAD,
        33: b'{"event":"nobody"}',
        50: b'{"event":"nobody","properties":{"distinct_id":null}}',
        58: b"",
        59: b'{"event":5}',
    }
    lines = [odd.get(number, good(number)) for number in range(60)]
    async with Worker(tmp_path, mapper=mapper) as worker:
        shape(worker, piece_bytes=piece_bytes, block_bytes=300)
        landed = await load(worker, simulator, lines)
    assert [(reject["line"], reject["stage"], reject["raw"]) for reject in landed.rejects] == [
        (number + 1, "map" if b"nobody" in line else "decode", line.decode())
        for number, line in odd.items()
        if line.strip()
    ]
    assert landed.tally.skipped == 3
    # pieces keep the order of the export
    assert [row["time"] for row in landed.rows] == [1_700_000_000 + number for number in range(60) if number not in odd]


TIED = [
    b'{"event":"E","properties":{"time":5,"distinct_id":"d","$insert_id":"i","mp_processing_time_ms":7,%b}}' % text
    for text in (
        b'"p":"a","q":1',
        b'"p":"a","q":1.50',
        b'"p":"b"',
        b'"q":"\\u00e9"',
        b'"p":"","q":""',
        b'"p":null',
        b'"p":{}',
    )
]
EARLIER = TIED[0].replace(b":7", b":6").replace(b'"a"', b'"zzz"')


@pytest.mark.parametrize(
    ("destinations", "key_bytes"), [(("p", "q"), 1 << 20), (("p", "q"), 1), (("chosen", "content"), 1 << 20)]
)
async def test_F039_F040_of_events_processed_at_once_the_same_one_stays(
    tmp_path: Path, simulator: Simulator, destinations: tuple[str, str], key_bytes: int
) -> None:
    chance = random.Random(39)
    columns = dict(zip(destinations, ("properties.p", "properties.q"), strict=True))
    mapper = mapper_of({"insert_id": "properties.$insert_id", **columns, "deep.p": "properties.p"})
    stayed = set()
    async with Worker(tmp_path, mapper=mapper) as worker:
        # the last two map to the same row
        for pair in (
            TIED[:2],
            TIED[2:4],
            TIED,
            [*TIED, EARLIER],
            [TIED[5], TIED[0].replace(b'"p":"a","q":1', b'"r":1')],
        ):
            rows = set()
            for piece_bytes in (1, 1 << 20):
                shape(worker, piece_bytes=piece_bytes, key_bytes=key_bytes)
                for _ in range(3):
                    lines = [*pair, *pair, *(good(number) for number in range(3))]
                    chance.shuffle(lines)
                    landed = await load(worker, simulator, lines)
                    assert landed.tally.deduplicated == 2 * len(pair) - 1
                    (row,) = [row for row in landed.rows if row["insert_id"] == "i"]
                    rows.add(repr(row))
            assert len(rows) == 1
            stayed |= rows
    assert len(stayed) >= 3
    assert not any("zzz" in row for row in stayed)


async def test_F030_F040_paths_above_each_other_land_in_rows(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole day of such lines, of which DuckDB can read all, or all but some."""
    monkeypatch.setattr("worker.mixpanel.decode.STREAM_ROWS", 1000)
    mapper = mapper_of({"all": "properties", "x": "properties.x", "y": "properties.x.y", "name": "event"})
    lines = [b'{"event":"E","properties":{"x":{"y":%d.50},"z":"s"}}' % number for number in range(4000)]
    rows: list[dict[str, Any]] = [
        {"all": f'{{"x":{{"y":{n}.50}},"z":"s"}}', "x": f'{{"y":{n}.50}}', "y": f"{n}.50", "name": "E"}
        for n in range(4000)
    ]
    async with Worker(tmp_path, mapper=mapper) as worker:
        shape(worker, piece_bytes=50_000)
        assert (await load(worker, simulator, lines)).rows == rows
        lines[2000] = b'{"event":"E","properties":{"x":"text"}}'
        rows[2000] = {"all": '{"x":"text"}', "x": "text", "y": None, "name": "E"}
        assert (await load(worker, simulator, lines)).rows == rows


async def test_F032_lenient_lines_are_counted_once(worker: Worker, simulator: Simulator) -> None:
    lines = [*LENIENT.values(), *(good(number) for number in range(10))]
    landed = await load(worker, simulator, lines)
    assert landed.tally.input == len(lines)
    assert landed.tally.output + landed.tally.failed == len(lines)
    assert landed.tally.output >= 10


async def test_F025_long_lines_among_good_ones(tmp_path: Path, simulator: Simulator) -> None:
    long = b'{"event":"long","properties":{"p":"%b"}}'
    padding = bytes(random.Random(25).choices(b"abcdefgh0123456789", k=9 << 20))
    allowed, too_long = long % padding[: 1 << 20], long % padding
    lines = [good(0), too_long, good(1), allowed, too_long + b"}", good(2)]
    async with Worker(tmp_path, max_line_bytes=3 << 20, max_reject_bytes=1000) as worker:
        landed = await load(worker, simulator, lines)
    assert [row["name"] for row in landed.rows] == ["good", "good", "long", "good"]
    assert landed.rows[2]["p"] == padding[: 1 << 20].decode()
    assert [(reject["line"], reject["raw"]) for reject in landed.rejects] == [
        (2, too_long[:1000].decode()),
        (5, too_long[:1000].decode()),
    ]
    assert f"{len(too_long)} bytes" in landed.rejects[0]["reason"]


async def test_a_required_field_that_is_missing_rejects_the_row(tmp_path: Path, simulator: Simulator) -> None:
    mapper = mapper_of(
        {"who": "properties.distinct_id", "time": "properties.time"},
        {"type": "object", "properties": {"who": {"type": "string"}, "time": {"type": "integer"}}, "required": ["who"]},
    )
    lines = [good(0), b'{"event":"nobody","properties":{"time":1}}', b"nonsense", good(1), b"", b'{"event":"x"}']
    async with Worker(tmp_path, mapper=mapper) as worker:
        landed = await load(worker, simulator, lines)
    assert [(reject["line"], reject["stage"], reject["code"], reject["raw"]) for reject in landed.rejects] == [
        (2, "map", REJECT_CODE, lines[1].decode()),
        (3, "decode", CORRUPT, "nonsense"),
        (6, "map", REJECT_CODE, '{"event":"x"}'),
    ]
    assert [row["who"] for row in landed.rows] == ["user 0", "user 1"]
    assert landed.tally.skipped == 1


async def test_expressions_that_make_too_much_at_once_are_worked_off_in_parts(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "string"}, "n": {"type": "integer"}, "y": {"type": "string"}},
        "required": ["x"],
    }
    sources = {
        "x": "right(concat('long', event, data.p), 900 / data.n)",
        "n": "to_integer(data.q)",
        "y": "[event, properties]",
    }
    entries = [{"sourceType": "EXPRESSION", "source": source, "destination": name} for name, source in sources.items()]
    mapper = compile_mapper(parse_mapping_set({"mappings": entries}), XdmSchema(schema))
    lines = [
        b'{"event":"%b","properties":{"time":1,"distinct_id":"d","$insert_id":"%d","p":"%b","n":%d,"q":"%b"}}'
        % (b"E" * 100, number, b"p" * 200, number % 7, b"many" if number % 5 == 3 else b"5")
        for number in range(500)
    ]
    lines[100] = b"nonsense"
    async with Worker(tmp_path, mapper=mapper) as worker:
        whole = await load(worker, simulator, lines)
        for name in ("attributes", "expression", "mapper"):
            monkeypatch.setattr(f"worker.mapping.{name}.MAX_RESULT_BYTES", 10_000)
        parts = await load(worker, simulator, lines)
    assert parts == whole
    assert whole.tally.failed == 73
    assert [issue.count for issue in whole.issues] == [86]


async def test_F039_a_row_that_mapping_rejects_is_no_duplicate_of_another(tmp_path: Path, simulator: Simulator) -> None:
    mapper = mapper_of(
        {"p": "properties.p", "time": "properties.time"},
        {"type": "object", "properties": {"p": {"type": "string"}, "time": {"type": "integer"}}, "required": ["p"]},
    )
    event = b'{"event":"E","properties":{"time":%d,"distinct_id":"d","$insert_id":"i","mp_processing_time_ms":%d%b}}'
    lines = [
        event % (time, processed, text)
        for time in range(20)
        for processed, text in ((3, b',"p":"stays"'), (9, b""), (1, b',"p":"goes"'), (2, b',"q":1'))[time % 3 :]
    ]
    random.Random(39).shuffle(lines)
    async with Worker(tmp_path, mapper=mapper) as worker:
        landed = await load(worker, simulator, lines)
    stays, goes = range(0, 20, 3), [*range(1, 20, 3), *range(2, 20, 3)]
    assert sorted((row["time"], row["p"]) for row in landed.rows) == sorted(
        [*((time, "stays") for time in stays), *((time, "goes") for time in goes)]
    )
    assert [reject["line"] for reject in landed.rejects] == [
        number for number, line in enumerate(lines, start=1) if b'"p"' not in line
    ]
    assert landed.tally.deduplicated == len(stays)


@pytest.mark.parametrize(
    ("percent", "accepted"), [(None, True), (10.0, True), (9.9, False), (0.0, False), (100.0, True)]
)
async def test_F023_the_share_of_rejects_decides(
    worker: Worker, simulator: Simulator, percent: float | None, *, accepted: bool
) -> None:
    lines = [*(good(number) for number in range(9)), BAD, b"", b" "]
    options = Options(partial_ingestion_percent=percent)
    if accepted:
        landed = await load(worker, simulator, lines, options)
        assert (landed.tally.output, landed.tally.failed, landed.tally.skipped) == (9, 1, 2)
    else:
        with pytest.raises(RejectLimitError, match="1 of 10 rows"):
            await load(worker, simulator, lines, options)


async def test_F019_a_sentinel_is_no_bad_row(worker: Worker, simulator: Simulator) -> None:
    lines = [*(good(number) for number in range(GOOD_LINES)), b"terminated early"]
    with pytest.raises(ExportBrokenError, match="terminated early"):
        await load(worker, simulator, lines, Options(partial_ingestion_percent=100))


async def test_F030_equal_keys_are_said_to_the_user(worker: Worker, simulator: Simulator) -> None:
    landed = await load(worker, simulator, [good(0), b'{"event":"x","properties":{"p":1,"p":2}}'] * 3)
    (issue,) = landed.issues
    assert (issue.count, issue.sample) == (3, "p")
    assert [row["p"] for row in landed.rows if row["name"] == "x"] == ["2", "2", "2"]


async def test_F036_the_poison_of_third_parties(worker: Worker, simulator: Simulator) -> None:
    names = ("01_adobe_docs_seed000", "02_openapi_export", "04_react_native_utc_reshuffled", "10_web_2017_no_insert_id")
    lines = b"".join(sample(f"{name}.jsonl").rstrip(b"\n") + b"\n" for name in names).splitlines()
    landed = await load(worker, simulator, lines)
    assert landed.tally.input == len(lines)
    assert landed.tally.failed == 0
    values = [reference(line, PATHS).values or [] for line in lines]
    named = {repr(value) for value in values if value[3]}
    assert landed.tally.output == len(named) + sum(not value[3] for value in values)


# Poison: what crashed native readers in the wild. Each corpus is loaded in a process of its own.

POISON: dict[str, list[bytes]] = {
    "null first": [b"null", good(0)],
    "scalars": [b"null", b"1", b'"x"', b"true", b"[]", b"{}", b"[null]", good(0)],
    "empty keys": [b'{"":{"":{"":1}}}', b'{"event":"","properties":{"":""}}', good(0)],
    "nesting": [
        b'{"event":"x","properties":{"p":' + opening * 100_000 + b"1" + closing * 100_000 + b"}}"
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"))
    ]
    + [good(0)],
    "nesting without end": [b"[" * 1_000_000, b'{"event":' * 200_000, good(0)],
    "numbers without end": [
        b'{"event":"x","properties":{"p":' + b"9" * 1_000_000 + b"}}",
        b'{"event":"x","properties":{"p":1e' + b"9" * 100_000 + b"}}",
        good(0),
    ],
    "bytes": [bytes([byte]) * 50 for byte in range(256) if byte != 10] + [good(0)],
    "half of everything": [good(0)[:length] for length in range(len(good(0)) + 1)],
    "escapes": [b'{"event":"' + b"\\" * number + b'"}' for number in range(1, 40)]
    + [b'{"event":"\\u"}', b'{"event":"\\u00"}', good(0)],
    "every hostile line": [*LINES.values(), *LENIENT.values(), good(0)],
    "rubbish": [random.Random(number).randbytes(300).replace(b"\n", b"") for number in range(300)] + [good(0)],
    "many keys": [
        b'{"event":"x","properties":{' + b",".join(b'"k%d":%d' % (n, n) for n in range(50_000)) + b"}}",
        good(0),
    ],
}


async def load_poison(name: str) -> Landed:
    with tempfile.TemporaryDirectory() as folder:
        # as plain text: so many equal bytes are a bomb once they are compressed
        async with Simulator(gzip=False) as simulator, Worker(Path(folder)) as worker:
            return await load(worker, simulator, POISON[name])


def test_F036_poison_does_not_crash_the_process() -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-m", "tests.test_hostile"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    tallies = json.loads(child.stdout)
    assert set(tallies) == set(POISON)
    for name, (lines, rows, failed, skipped, deduplicated) in tallies.items():
        assert lines == len(POISON[name])
        assert rows >= 1
        assert lines == rows + failed + skipped + deduplicated


async def main() -> dict[str, list[int]]:
    tallies = {}
    for name in POISON:
        tally = (await load_poison(name)).tally
        tallies[name] = [tally.input, tally.output, tally.failed, tally.skipped, tally.deduplicated]
    return tallies


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main())))
