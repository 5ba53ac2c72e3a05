"""A body that is not whole is never a day: cut transports, damaged gzip, and the broken 200s seen in the wild."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import resource
import threading
import tracemalloc
import zlib
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.source_side import DAY, MAPPER, Worker, pieces_of, sample, settings_for, source_at
from worker import pipeline
from worker.errors import ExportBrokenError, ExportUnavailableError, ResourceError, SourceError
from worker.mapping.context import Context
from worker.mixpanel import body, decode, pieces, spool
from worker.mixpanel.body import BYTE_ORDER_MARK, MAX_UNPROVEN_BYTES, OversizedLine, Piece, is_sentinel
from worker.mixpanel.decode import SKIPPED_BY_DUCKDB, Decoder
from worker.mixpanel.pieces import PieceFiles, read_pieces
from worker.mixpanel.simulator import FRAMINGS, Framing, Simulator
from worker.mixpanel.spool import ExportAbandonedError, Spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

EXHAUSTIVE = os.environ.get("MIXPANEL_WORKER_EXHAUSTIVE") == "1"
STRIDE = 1 if EXHAUSTIVE else 97
OPEN_FILES = Path("/proc/self/fd")

Way = tuple[str, Framing]
WAYS: tuple[Way, ...] = tuple(
    (ending, framing) for ending in ("cut_at", "reset_at", "cut_intact") for framing in FRAMINGS
)


def line_of(size: int, number: int) -> bytes:
    r"""An event of exactly `size` bytes with its `\n`, which hardly compresses."""
    frame = b'{"event":"E","properties":{"time":%d,"p":"%b"}}\n'
    padding = b"".join(hashlib.sha256(b"%d %d" % (number, part)).hexdigest().encode() for part in range(size // 64 + 1))
    empty = len(frame % (number, b""))
    assert size >= empty
    return frame % (number, padding[: size - empty])


BODY = b"".join(line_of(size, number) for number, size in enumerate([60, 61, 600, 300, 500, 900, *[650] * 96]))
LINES = BODY.splitlines(keepends=True)
NUMBERS = list(range(len(LINES)))


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    (tmp_path / "days").mkdir()
    async with Simulator(data_directory=tmp_path / "days") as simulator:
        yield simulator


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    """A worker that keeps its decoders from one day to the next: they take longer to make than these days to load."""
    own = threading.local()

    def kept(wanted: Sequence[tuple[str, ...]], **limits: Any) -> Decoder:
        if not hasattr(own, "decoder"):
            own.decoder = Decoder(wanted, **limits)
        decoder: Decoder = own.decoder
        return decoder

    monkeypatch.setattr("worker.pipeline.Decoder", kept)
    async with Worker(tmp_path) as worker:
        yield worker


def unknowable(plain: bytes, way: Way) -> set[int]:
    r"""The cuts of a plain body that nobody can notice: what is left is an export as Mixpanel may send it.

    A proxy that closes the framing properly leaves nothing but the last line to judge by, and it is whole where the cut
    stands behind a line, or between a line and its `\n`, for Mixpanel does not promise the last `\n`. Before the first
    byte the rest is an empty day. Where closing the connection is the framing, that goes for every kind of cut, but
    only up to the size from which Mixpanel compresses.
    """
    ending, framing = way
    if ending != "cut_intact" and framing != "close":
        return set()
    ends = [position for position, byte in enumerate(plain) if byte == ord("\n")]
    cuts = {0, *ends, *(end + 1 for end in ends)} - {len(plain)}
    return {cut for cut in cuts if 0 < cut <= MAX_UNPROVEN_BYTES} if framing == "close" else cuts


def cuts_of(size: int, edges: set[int]) -> list[tuple[int, Way]]:
    """Where and how to cut a body of `size` bytes: everywhere in one way or another, at the edges in all."""
    intact = [way for way in WAYS if way[0] == "cut_intact"]
    broken = cycle(way for way in WAYS if way[0] != "cut_intact")
    chosen: list[tuple[int, Way]] = []
    for number, offset in enumerate(range(0, size, STRIDE)):
        if EXHAUSTIVE:
            chosen += [(offset, way) for way in WAYS]
            continue
        chosen += [(offset, way) for way in islice(broken, 1)]
        # takes ten times as long, for the lines before the cut are all decoded
        if number % 6 == 0:
            chosen.append((offset, intact[number // 6 % len(intact)]))
    return list(dict.fromkeys([*chosen, *((offset, way) for offset in sorted(edges) for way in WAYS)]))


async def outcome(worker: Worker, simulator: Simulator) -> list[int] | SourceError:
    """The numbers of the events that a load brings, or why there is none."""
    try:
        landed = await worker.load(source_at(simulator.base_url))
    except SourceError as error:
        return error
    assert not landed.rejects
    return [row["time"] for row in landed.rows]


@pytest.mark.timeout(0 if EXHAUSTIVE else 60)
async def test_F012_F013_every_cut_of_a_plain_body_is_noticed(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    some_ends = [60, 121, 721, 1021, 1521, len(BODY) - 650]
    edges = {end + step for end in some_ends for step in (-2, -1, 0, 1)}
    edges |= {0, 1, 2, 3, MAX_UNPROVEN_BYTES, MAX_UNPROVEN_BYTES + 1, len(BODY) - 2, len(BODY) - 1}
    for offset, way in cuts_of(len(BODY), edges):
        simulator.fault(way[0], offset=offset, framing=way[1], gzip=False)
        found = await outcome(worker, simulator)
        if offset in unknowable(BODY, way):
            whole_lines = BODY[: offset + 1].count(b"\n")
            assert found == NUMBERS[:whole_lines], (offset, way)
        else:
            assert isinstance(found, ExportBrokenError), (offset, way, found)
            assert found.reason in {"transport", "truncated_line", "unproven_end"}


@pytest.mark.timeout(0 if EXHAUSTIVE else 60)
async def test_F012_F014_every_cut_of_a_gzip_body_is_noticed(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    await worker.load(source_at(simulator.base_url))
    encoded = simulator._memory_days[DAY].compressed
    assert encoded is not None
    size = len(encoded)
    edges = {*range(12), *range(size - 10, size)}
    for offset, way in cuts_of(size, edges):
        simulator.fault(way[0], offset=offset, framing=way[1], gzip=True)
        found = await outcome(worker, simulator)
        assert isinstance(found, ExportBrokenError), (offset, way, found)
        assert found.reason in {"transport", "truncated_line", "cut_gzip"}


@pytest.mark.parametrize("first_line", [MAX_UNPROVEN_BYTES - 1, MAX_UNPROVEN_BYTES, MAX_UNPROVEN_BYTES + 1])
async def test_F013_a_small_plain_body_that_ends_with_the_connection(
    worker: Worker, simulator: Simulator, first_line: int
) -> None:
    plain = line_of(first_line, 0) + line_of(100, 1)
    simulator.set_day(DAY, plain)
    for ending in ("cut_at", "reset_at", "cut_intact"):
        unnoticed = set()
        for offset in range(first_line - 3, first_line + 3):
            simulator.fault(ending, offset=offset, framing="close", gzip=False)
            found = await outcome(worker, simulator)
            if isinstance(found, list):
                unnoticed.add(offset)
                assert found == [0]
        cuts = {first_line - 1, first_line}
        assert unnoticed == {cut for cut in cuts if cut <= MAX_UNPROVEN_BYTES}


async def test_F013_a_large_plain_body_without_a_proven_end_is_not_believed(
    worker: Worker, simulator: Simulator
) -> None:
    simulator.set_day(DAY, BODY)
    simulator.gzip, simulator.framing = False, "close"
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportBrokenError)
    assert found.reason == "unproven_end"
    simulator.gzip = None
    assert await outcome(worker, simulator) == NUMBERS


async def test_F012_no_answer_at_all(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    # aiohttp asks a second time by itself where a connection from the pool was closed
    simulator.fault("close_before_response", times=2)
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportUnavailableError)
    assert found.retry


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_in_small_pieces_is_whole(
    worker: Worker, simulator: Simulator, framing: Framing, *, gzipped: bool
) -> None:
    small = b"".join(LINES[:3]) if framing == "close" else BODY
    simulator.set_day(DAY, small)
    simulator.fault("drip", framing=framing, gzip=gzipped, piece_bytes=613)
    assert await outcome(worker, simulator) == NUMBERS[: small.count(b"\n")]


async def test_F048_an_answer_that_is_not_http(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    simulator.fault("bad_chunk_size", times=5)
    for _ in range(5):
        found = await outcome(worker, simulator)
        # it depends on how the bytes arrive whether the head was read before the bad size
        assert isinstance(found, ExportBrokenError | ExportUnavailableError)
        assert found.retry
        assert "reached" not in str(found)
    simulator.fault("huge_header", header_bytes=60_000)
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportUnavailableError)
    assert "not proper HTTP" in str(found)


# gzip


async def load_encoded(worker: Worker, simulator: Simulator, tmp_path: Path, encoded: bytes) -> list[int] | str:
    """Load a body that is announced as gzip, whatever it is: the events' numbers, or the reason why there are none."""
    (tmp_path / "days" / f"{DAY}.jsonl.gz").write_bytes(encoded)
    simulator.gzip = True
    found = await outcome(worker, simulator)
    if isinstance(found, list):
        return found
    assert isinstance(found, ExportBrokenError), found
    return found.reason


def member(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


HALF = len(BODY) // 2 + 5
EMPTY = member(b"")
WHOLE = member(BODY)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(WHOLE, id="one_member"),
        pytest.param(member(BODY[:HALF]) + member(BODY[HALF:]), id="two_members_split_within_a_line"),
        pytest.param(b"".join(member(BODY[at : at + 977]) for at in range(0, len(BODY), 977)), id="many_members"),
        pytest.param(EMPTY + WHOLE, id="empty_member_first"),
        pytest.param(member(BODY[:HALF]) + EMPTY * 3 + member(BODY[HALF:]), id="empty_members_between"),
        pytest.param(WHOLE + EMPTY, id="empty_member_last"),
        pytest.param(WHOLE + b"\0", id="one_zero_byte"),
        pytest.param(WHOLE + bytes(1 << 19), id="much_zero_padding"),
        # extra field, name, comment and checksum of the header
        pytest.param(
            b"\x1f\x8b\x08\x1e"
            + bytes(6)
            + b"\x03\x00abcn\0c\0"
            + (zlib.crc32(b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\x00abcn\0c\0") & 0xFFFF).to_bytes(2, "little")
            + WHOLE[10:],
            id="all_header_fields",
        ),
    ],
)
async def test_F015_gzip_that_is_whole(worker: Worker, simulator: Simulator, tmp_path: Path, encoded: bytes) -> None:
    assert await load_encoded(worker, simulator, tmp_path, encoded) == NUMBERS


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        pytest.param(WHOLE + b"terminated early", "trailing_text", id="F018_terminated_early"),
        pytest.param(WHOLE + b"\n", "trailing_text", id="F018_newline"),
        pytest.param(WHOLE + b"\0\0{}", "trailing_text", id="F018_text_behind_padding"),
        pytest.param(WHOLE + bytes(1 << 19) + b"x", "trailing_text", id="F018_text_behind_much_padding"),
        pytest.param(WHOLE + b"\0" + WHOLE, "trailing_text", id="F018_member_behind_padding"),
        pytest.param(WHOLE + b"\x1f\x00", "trailing_text", id="F018_half_a_magic_number"),
        pytest.param(WHOLE + b"\x1f", "cut_gzip", id="F014_first_byte_of_another_member"),
        pytest.param(WHOLE + b"\x1f\x8b", "cut_gzip", id="F014_magic_number_of_another_member"),
        pytest.param(WHOLE + EMPTY[:-1], "cut_gzip", id="F014_second_member_without_its_last_byte"),
        pytest.param(member(BODY[:HALF]) + member(BODY[HALF:])[:-8], "cut_gzip", id="F014_second_trailer_missing"),
        pytest.param(WHOLE[:-8], "cut_gzip", id="F014_trailer_missing"),
        pytest.param(WHOLE[:-4], "cut_gzip", id="F014_half_a_trailer"),
        pytest.param(WHOLE[:10], "cut_gzip", id="F014_nothing_but_a_header"),
        pytest.param(WHOLE[:3], "cut_gzip", id="F014_half_a_header"),
        pytest.param(b"", "cut_gzip", id="F014_nothing_at_all"),
        pytest.param(WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], "damaged_gzip", id="F016_wrong_checksum"),
        pytest.param(WHOLE[:-4] + b"\0\0\0\0", "damaged_gzip", id="F016_wrong_length"),
        pytest.param(member(BODY[:HALF]), "truncated_line", id="a_line_cut_before_it_was_compressed"),
        pytest.param(member(WHOLE), "no_events", id="F017_gzip_in_gzip"),
        pytest.param(zlib.compress(BODY) + b"\n", "no_events", id="F017_zlib_for_gzip"),
    ],
)
async def test_gzip_that_is_not_whole(
    worker: Worker, simulator: Simulator, tmp_path: Path, encoded: bytes, reason: str
) -> None:
    found = await load_encoded(worker, simulator, tmp_path, encoded)
    # of binary rubbish both may be true: no event in it, and no end of line at its end
    assert found in ({reason, "truncated_line"} if reason == "no_events" else {reason})


async def test_F016_no_flipped_bit_changes_what_is_loaded(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    assert await outcome(worker, simulator) == NUMBERS
    size = len(simulator._memory_days[DAY].compressed or b"")
    chance = random.Random(16)
    header = [(offset, bit) for offset in range(10) for bit in range(8)]
    others = [(chance.randrange(10, size), chance.randrange(8)) for _ in range(420)]
    harmless = 0
    for offset, bit in header + others:
        simulator.fault("flipped_bit", offset=offset, bit=bit, gzip=True)
        found = await outcome(worker, simulator)
        if isinstance(found, list):
            # in the header: flags without a meaning, the time, a hint at the effort, the system
            assert 3 <= offset < 10, (offset, bit)
            assert found == NUMBERS
            harmless += 1
        else:
            assert isinstance(found, ExportBrokenError), (offset, bit, found)
    assert harmless >= 48


@pytest.mark.parametrize("gzipped", [False, True])
async def test_F017_the_first_bytes_decide_and_not_the_header(
    worker: Worker, simulator: Simulator, *, gzipped: bool
) -> None:
    simulator.set_day(DAY, BODY)
    simulator.fault("gzip_without_header" if gzipped else "header_says_gzip_but_plain")
    assert await outcome(worker, simulator) == NUMBERS


async def test_F017_an_encoding_that_was_not_offered(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    simulator.fault("unknown_encoding")
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportBrokenError)
    assert found.reason == "encoding"
    assert "'br'" in str(found)


async def test_F038_a_bomb_is_refused_in_flat_memory(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, BODY)
    assert await outcome(worker, simulator) == NUMBERS
    simulator.fault("gzip_bomb", raw_bytes=512 << 20)
    tracemalloc.start()
    try:
        found = await outcome(worker, simulator)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found, ExportBrokenError)
    assert found.reason == "gzip_bomb"
    assert peak < 128 << 20


# What §1.6 of the notes on Mixpanel lists


SENTINEL_BODIES = {
    "whole_body": b"terminated early",
    "whole_body_with_newline": b"terminated early\n",
    "last_line": b"%bterminated early\n",
    "last_line_without_newline": b"%bterminated early",
    "export_whole_body": b"export terminated early",
    "export_last_line": b"%bexport terminated early\n",
    "in_quotes": b'%b"terminated early"\n',
    "in_quotes_without_newline": b'%b"terminated early"',
    "in_capitals": b"%bTerminated Early\r\n",
    "in_the_middle": b"%bterminated early\n%b",
    "in_the_middle_in_quotes": b'%b"export terminated early"\n%b',
    "behind_half_a_line": b'%b{"event":"E","propterminated early\n',
    "behind_a_whole_line": b'%b{"event":"E","properties":{}}terminated early\n',
    "between_blank_lines": b"%b\n \nterminated early\n\n\t\n",
    "error_tail": b'%b{"error":',
    "error_tail_with_newline": b'%b{"error":\n',
    "error_object": b'{"error": "Timeout Error.", "request": "/api/2.0/export"}',
    "error_object_spaced": b'%b{ "error" : "Timeout Error."}\n',
    "error_object_request_first": b'%b{"request": "/api/2.0/export", "error": "Timeout Error."}\n',
}


@pytest.mark.parametrize("name", SENTINEL_BODIES)
async def test_F019_F020_an_export_that_says_it_ended_early(worker: Worker, simulator: Simulator, name: str) -> None:
    text = SENTINEL_BODIES[name]
    plain = text % ((b"".join(LINES[:3]),) * text.count(b"%b"))
    simulator.set_day(DAY, plain)
    for gzipped in (False, True):
        simulator.gzip = gzipped
        found = await outcome(worker, simulator)
        assert isinstance(found, ExportBrokenError), (gzipped, found)
        assert found.reason == "terminated_early"
        assert found.retry


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b'{"event":"E","properties":{"time":1,"$inser', "truncated_line"),
        (b'{"event":"E","properties":{"time":1}', "truncated_line"),
        (b"{", "truncated_line"),
        (b"null", "truncated_line"),
        (b"1", "truncated_line"),
        (b'{"properties":{"time":1}}', "truncated_line"),
    ],
)
async def test_a_last_line_without_newline_counts_only_as_an_event(
    worker: Worker, simulator: Simulator, tail: bytes, reason: str
) -> None:
    simulator.set_day(DAY, b"".join(LINES[:3]) + tail)
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportBrokenError)
    assert found.reason == reason
    simulator.set_day(DAY, b"".join(LINES[:3]) + LINES[3].rstrip(b"\n"))
    assert await outcome(worker, simulator) == NUMBERS[:4]


@pytest.mark.parametrize("padding", [b"\n", b"\t\t", b" ", b"\r\n", b"\n\n  \n "])
async def test_white_space_at_the_end_is_no_line_that_was_cut(
    worker: Worker, simulator: Simulator, padding: bytes
) -> None:
    simulator.set_day(DAY, b"".join(LINES[:3]) + padding)
    assert await outcome(worker, simulator) == NUMBERS[:3]


@pytest.mark.parametrize("fault", ["html", "error_object", "terminated_early_whole"])
@pytest.mark.parametrize("gzipped", [False, True])
async def test_F021_something_else_than_events(
    worker: Worker, simulator: Simulator, fault: str, *, gzipped: bool
) -> None:
    simulator.set_day(DAY, BODY)
    simulator.fault(fault, gzip=gzipped)
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportBrokenError)
    assert found.reason == ("no_events" if fault == "html" else "terminated_early")


@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_F022_an_empty_day_is_an_empty_day(worker: Worker, simulator: Simulator, framing: Framing) -> None:
    simulator.fault("empty", framing=framing)
    landed = await worker.load(source_at(simulator.base_url))
    assert (landed.rows, landed.rejects, landed.tally.input) == ([], [], 0)


async def test_F013_F022_a_connection_that_closes_without_a_byte_is_no_empty_day(
    worker: Worker, simulator: Simulator
) -> None:
    simulator.fault("empty", framing="close")
    found = await outcome(worker, simulator)
    assert isinstance(found, ExportBrokenError)
    assert found.reason == "unproven_end"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("error_json_tail", "terminated_early"),
        ("export_terminated_early_tail", "terminated_early"),
        ("terminated_early_tail", "terminated_early"),
        ("terminated_early_whole_body", "terminated_early"),
        ("truncated_last_line", "truncated_line"),
    ],
)
async def test_F019_F020_broken_samples(worker: Worker, simulator: Simulator, name: str, reason: str) -> None:
    simulator.set_day(DAY, sample(f"broken/{name}.body"))
    for gzipped in (False, True):
        simulator.gzip = gzipped
        found = await outcome(worker, simulator)
        assert isinstance(found, ExportBrokenError)
        assert found.reason == reason


async def test_F022_F029_whole_samples(worker: Worker, simulator: Simulator) -> None:
    simulator.set_day(DAY, sample("broken/empty_day.body"))
    assert await outcome(worker, simulator) == []
    simulator.set_day(DAY, sample("broken/unicode_line_separators_valid.jsonl"))
    found = await outcome(worker, simulator)
    assert isinstance(found, list)
    assert len(found) == 4
    # a leading blank line, indented lines, and white space for a last line
    simulator.set_day(DAY, sample("06_mixpanel_go_no_distinct_id.body"))
    assert await outcome(worker, simulator) == [1684951135, 1684951332]


def test_F019_what_an_event_says_is_no_sentinel() -> None:
    assert not is_sentinel(b'{"event":"terminated early","properties":{"error":"terminated early"}}')
    assert not is_sentinel(b'{"event":"E","error":"x","properties":{"time":null}}')
    assert not is_sentinel(b'{"properties":{"error":1}}')
    assert not is_sentinel(b'["error"]')
    assert not is_sentinel(b"\xff\xfe")
    assert not is_sentinel(b"")


async def test_F019_a_text_in_an_event_ends_nothing(worker: Worker, simulator: Simulator) -> None:
    lines = [
        b'{"event":"terminated early","properties":{"time":%d,"p":"export terminated early"}}\n' % n for n in (0, 1)
    ]
    simulator.set_day(DAY, b"".join(lines))
    assert await outcome(worker, simulator) == [0, 1]


# The byte order mark


@pytest.mark.parametrize("gzipped", [False, True])
async def test_F024_one_byte_order_mark_at_the_start_is_taken_off(
    worker: Worker, simulator: Simulator, *, gzipped: bool
) -> None:
    simulator.gzip = gzipped
    simulator.set_day(DAY, BYTE_ORDER_MARK + BODY)
    assert await outcome(worker, simulator) == NUMBERS
    simulator.set_day(DAY, BYTE_ORDER_MARK)
    assert await outcome(worker, simulator) == []
    simulator.set_day(DAY, BYTE_ORDER_MARK * 2 + b"".join(LINES[:3]) + BYTE_ORDER_MARK + LINES[3])
    landed = await worker.load(source_at(simulator.base_url))
    assert [row["time"] for row in landed.rows] == [1, 2]
    assert [reject["line"] for reject in landed.rejects] == [1, 4]


def test_F024_a_byte_order_mark_in_pieces(tmp_path: Path) -> None:
    in_members = b"".join(member(bytes([byte])) for byte in BYTE_ORDER_MARK) + member(b"x\n")
    for content in (BYTE_ORDER_MARK + b"x\n", in_members):
        for size in range(1, 6):
            with patch.object(spool, "READ_BYTES", size):
                (item,) = pieces_of(tmp_path, content, piece_bytes=1 << 20, max_line_bytes=1 << 20)
            assert item == Piece(tmp_path / "piece-0", first_line=0, lines=1, plain=True, unterminated=False)
            assert item.path.read_bytes() == b"x\n"


# Pieces of lines


def digests(lines: Sequence[bytes]) -> list[tuple[int, str]]:
    return [(len(line), hashlib.sha256(line).hexdigest()) for line in lines]


PARTS = st.sampled_from(
    [
        *(b"a", b"bc", b'{"event":"x"}', b"[{[{", b"}]", b"\n", b"\r\n", b"\n\n", "\u2028\u0085".encode()),
        *(b"\xef", b"\xbb\xbf", *SKIPPED_BY_DUCKDB),
    ]
)


@given(
    content=st.lists(PARTS, max_size=60).map(b"".join),
    read_bytes=st.integers(1, 40),
    inflate_bytes=st.integers(1, 40),
    deflated_bytes=st.integers(1, 40),
    look_bytes=st.integers(1, 40),
    piece_bytes=st.integers(1, 60),
    max_line_bytes=st.integers(1, 60),
    file_count=st.integers(1, 3),
    gzipped=st.booleans(),
)
def test_pieces_hold_the_lines_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    read_bytes: int,
    inflate_bytes: int,
    deflated_bytes: int,
    look_bytes: int,
    piece_bytes: int,
    max_line_bytes: int,
    file_count: int,
    *,
    gzipped: bool,
) -> None:
    encoded = member(content[:7]) + member(content[7:]) if gzipped else content
    plain_content = content.removeprefix(BYTE_ORDER_MARK)
    lines = plain_content.split(b"\n")
    last = lines.pop()
    found: list[tuple[int, str]] = []
    unterminated = []
    error: ExportBrokenError | None = None
    folder = tmp_path_factory.getbasetemp()
    chunk_bytes = inflate_bytes if gzipped else read_bytes
    with (
        patch.object(spool, "READ_BYTES", read_bytes),
        patch.object(body, "INFLATE_BYTES", inflate_bytes),
        patch.object(body, "DEFLATED_BYTES", deflated_bytes),
        patch.object(decode, "LOOK_BYTES", look_bytes),
        patch.object(decode, "MAX_DEPTH", 5),
    ):
        try:
            for item in pieces_of(
                folder, encoded, piece_bytes=piece_bytes, max_line_bytes=max_line_bytes, file_count=file_count
            ):
                assert item.first_line == len(found)
                if isinstance(item, OversizedLine):
                    assert item.length > max_line_bytes
                    found.append((item.length, item.sha256))
                    unterminated.append(False)
                    continue
                data = item.path.read_bytes()
                in_piece = data.removesuffix(b"\n").split(b"\n")
                assert item.unterminated == (not data.endswith(b"\n"))
                assert item.lines == len(in_piece)
                # it was given as soon as it was large enough
                assert len(data) < piece_bytes + max_line_bytes + chunk_bytes + len(BYTE_ORDER_MARK)
                assert not item.plain or (
                    not any(needle in data for needle in SKIPPED_BY_DUCKDB)
                    and all(len(line) <= max_line_bytes for line in in_piece)
                    and all(line.count(b"{") + line.count(b"[") <= 5 for line in in_piece)
                )
                found += digests(in_piece)
                unterminated.append(item.unterminated)
        except ExportBrokenError as broken:
            error = broken
    if error is not None:
        assert error.reason == "truncated_line"
        assert len(last) > max_line_bytes
        assert found == digests(lines)
        return
    assert found == digests([*lines, *filter(None, [last])])
    assert not any(unterminated[:-1])
    assert not unterminated or unterminated[-1] == bool(last)


@pytest.mark.parametrize("longest", [10, 38, 39, 40])
@pytest.mark.parametrize("openings", [0, 4, 5, 6])
def test_a_look_at_lines_hangs_on_none_of_their_parts(longest: int, openings: int) -> None:
    odd = (b"[" * openings + b"x" * 40)[: max(longest, openings)]
    lines = b"[{]}\n{{[[[\n\n" * 3 + odd + b"\n" + b"[[[[\n" * 3
    for content, part_bytes, scan_bytes in product((lines, lines + odd), [*range(1, 60, 8), 1000], (1, 7, 1000)):
        look = decode.Look(39)
        with patch.object(decode, "LOOK_BYTES", scan_bytes), patch.object(decode, "MAX_DEPTH", 5):
            for start in range(0, len(content), part_bytes):
                look.at(content[start : start + part_bytes], strange=False)
        assert look.newlines == content.count(b"\n")
        fine = longest <= 39 and openings <= 5
        assert fine or not look.plain, (part_bytes, scan_bytes)
        if part_bytes == scan_bytes == 1000:
            assert look.plain == fine


def test_the_first_pieces_are_small_and_then_they_double(tmp_path: Path) -> None:
    with patch.object(spool, "READ_BYTES", 100), patch.object(pieces, "FIRST_PIECE_BYTES", 2000):
        items = pieces_of(tmp_path, BODY, piece_bytes=20_000, max_line_bytes=1000)
        sizes = [item.path.stat().st_size for item in items if isinstance(item, Piece)]
    assert sum(sizes) == len(BODY)
    done = 0
    for size in sizes[:-1]:
        least = min(20_000, max(2000, done))
        # a line or two that came with what was missing
        assert least <= size < least + 1000
        done += size
    assert len(sizes) == 7


def test_events_as_mixpanel_sends_them_are_plain(tmp_path: Path) -> None:
    some = b'{"event":"E","properties":{"p":"\xe2\x82\xac \xef\xbc\x81 {[{[","list":[1,{"a":[]}],"q":{}}}\r\n' * 500
    for read_bytes in (613, 1 << 19):
        with patch.object(spool, "READ_BYTES", read_bytes):
            plain = [
                item.plain
                for item in pieces_of(tmp_path, some, piece_bytes=10_000, max_line_bytes=1000)
                if isinstance(item, Piece)
            ]
        # only where a character is cut that begins as a byte order mark does
        assert plain
        assert plain.count(False) <= len(plain) // 3


def test_the_files_of_pieces_are_used_again(tmp_path: Path) -> None:
    """A longer piece leaves nothing behind a shorter one, nor does one that was given up."""
    read = partial(pieces_of, tmp_path, piece_bytes=1 << 20, max_line_bytes=1000, file_count=1)
    with pytest.raises(ExportBrokenError):
        list(read(member(BODY)[:-5000]))
    assert (tmp_path / "piece-0").stat().st_size > 0
    for content in (BODY, b"x\n" * 3):
        (item,) = read(content)
        assert isinstance(item, Piece)
        assert item.path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["piece-0"]


@pytest.mark.parametrize("fails", [True, False])
def test_who_takes_a_piece_gives_its_file_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """Nobody else would, and the reading would wait for it for ever."""

    def no_decoder(*_: object, **__: object) -> Decoder:
        raise MemoryError("too little for a decoder")

    if fails:
        monkeypatch.setattr(pipeline, "Decoder", no_decoder)
    converter = pipeline._Converter(MAPPER, pipeline.Budget.of(settings_for(tmp_path)))
    files = PieceFiles(tmp_path, 1)
    path = files.take()
    path.write_bytes(LINES[0] if fails else LINES[0] + b"{")
    converted = pipeline._Converted(tmp_path / "rows", tmp_path / "rejects")
    piece = Piece(path, first_line=0, lines=1 if fails else 2, plain=True, unterminated=not fails)
    with pytest.raises(MemoryError if fails else ExportBrokenError):
        converter(piece, files, converted, Context(datetime(2026, 3, 2, tzinfo=UTC), {}))
    assert files._free.get_nowait() == path


async def test_pieces_that_nobody_will_decode_give_their_files_back(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body proves broken while its pieces wait for a thread; the days after it need their files."""
    monkeypatch.setattr("worker.mixpanel.body.INFLATE_BYTES", 5_000)
    monkeypatch.setattr("worker.mixpanel.pieces.FIRST_PIECE_BYTES", 10_000)
    free = threading.Event()
    async with Worker(tmp_path, processors=1) as worker:
        busy = worker._pipeline._pool.submit(free.wait)
        try:
            # it looks that all files are given back
            assert await load_encoded(worker, simulator, tmp_path, member(BODY[:25_000])[:-4]) == "cut_gzip"
        finally:
            free.set()
            await asyncio.wrap_future(busy)
        assert await load_encoded(worker, simulator, tmp_path, member(BODY)) == NUMBERS


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="needs a list of the files that are open")
async def test_decoders_are_closed_with_their_pipeline(tmp_path: Path, simulator: Simulator) -> None:
    def open_blocks() -> int:
        return sum("memfd:block" in str(link.resolve()) for link in OPEN_FILES.iterdir())

    simulator.set_day(DAY, BODY)
    before = open_blocks()
    async with Worker(tmp_path) as worker:
        await worker.load(source_at(simulator.base_url))
        assert open_blocks() > before
    assert open_blocks() == before


def test_F025_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    part = random.Random(25).randbytes(1 << 20).replace(b"\n", b" ")
    files = PieceFiles(tmp_path, 2)
    with Spool(tmp_path / "export") as export:
        export.write(b"first\n")
        for _ in range(96):
            export.write(part)
        export.write(b"\nlast\n")
        export.finish(proves_end=True)
        tracemalloc.start()
        try:
            items = list(read_pieces(export, files, piece_bytes=1 << 20, max_line_bytes=2 << 20, max_raw_bytes=1000))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 12 << 20
    first, line, last = items
    assert isinstance(first, Piece)
    assert isinstance(last, Piece)
    assert isinstance(line, OversizedLine)
    assert (first.path.read_bytes(), last.path.read_bytes()) == (b"first\n", b"last\n")
    assert (first.first_line, line.first_line, last.first_line) == (0, 1, 2)
    assert (line.length, line.sha256) == (96 << 20, hashlib.sha256(part * 96).hexdigest())
    assert line.start == part[:1000]


def test_a_large_piece_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.mixpanel.pieces.FIRST_PIECE_BYTES", 1 << 30)
    files = PieceFiles(tmp_path, 1)
    lines = b"".join(LINES) * 8
    with Spool(tmp_path / "export") as export:
        for _ in range(80):
            export.write(lines)
        export.finish(proves_end=True)
        tracemalloc.start()
        try:
            (piece,) = read_pieces(export, files, piece_bytes=1 << 30, max_line_bytes=2 << 20, max_raw_bytes=1000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 6 << 20
    assert isinstance(piece, Piece)
    assert piece.path.stat().st_size == 80 * len(lines) > 30 << 20
    assert piece.lines == 80 * 8 * len(LINES)


# The spool


def test_F051_the_reader_follows_the_writer(tmp_path: Path) -> None:
    pieces = [random.Random(number).randbytes(number * 997 % 5000 + 1) for number in range(200)]
    read: list[bytes] = []
    with Spool(tmp_path / "new" / "export") as export:
        asked = threading.Semaphore(0)

        def follow() -> None:
            for chunk in export.chunks():
                read.append(chunk)
                asked.release()

        reader = threading.Thread(target=follow)
        reader.start()
        for piece in pieces:
            export.write(piece)
        # what was written is read although the export has not ended
        while sum(map(len, read)) < export.size:
            assert asked.acquire(timeout=20)
        export.finish(proves_end=False)
        reader.join(20)
        assert not reader.is_alive()
    assert b"".join(read) == b"".join(pieces)
    assert not (tmp_path / "new" / "export").exists()


@pytest.mark.parametrize("how", ["failed", "abandoned"])
def test_a_reader_that_waits_hears_of_the_end(tmp_path: Path, how: str) -> None:
    heard: list[Exception] = []
    waiting = threading.Event()

    def follow(export: Spool) -> None:
        chunks = export.chunks()
        assert next(chunks) == b"x"
        waiting.set()
        try:
            next(chunks)
        except Exception as error:  # noqa: BLE001 - handed to the test
            heard.append(error)

    error = ExportBrokenError("broken", reason="transport")
    with Spool(tmp_path / "export") as export:
        export.write(b"x")
        reader = threading.Thread(target=follow, args=(export,))
        reader.start()
        assert waiting.wait(20)
        if how == "failed":
            export.fail(error)
            reader.join(20)
    reader.join(20)
    assert not reader.is_alive()
    assert heard == [error] if how == "failed" else isinstance(heard[0], ExportAbandonedError)


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Spool(tmp_path / "export") as export:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
        try:
            with pytest.raises(ResourceError, match="WORKER_SPOOL") as caught:
                export.write(bytes(20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert str(tmp_path) in str(caught.value)


async def test_a_disk_that_is_full_of_pieces_is_told_apart(worker: Worker, simulator: Simulator) -> None:
    lines = b"".join(LINES[:3]) * 2000
    simulator.set_day(DAY, lines)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    # enough for what comes over the wire
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, usual[1]))
    try:
        with pytest.raises(ResourceError, match="spool folder"):
            await worker.load(source_at(simulator.base_url))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    landed = await worker.load(source_at(simulator.base_url))
    assert landed.tally.output == lines.count(b"\n")


def test_F025_as_much_of_a_long_line_is_kept_as_asked_for(tmp_path: Path) -> None:
    line = b"x" * 3_000_000
    with Spool(tmp_path / "export") as export:
        export.write(line + b"\n")
        export.finish(proves_end=True)
        files = PieceFiles(tmp_path, 1)
        (item,) = read_pieces(export, files, piece_bytes=1000, max_line_bytes=1000, max_raw_bytes=900_000)
    assert isinstance(item, OversizedLine)
    assert (item.start, item.length) == (line[:900_000], len(line))
