"""From lines to texts: the decoder against a reference of a few lines, and that no line depends on its neighbours."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import random
import tracemalloc
from collections import Counter
from contextlib import closing, contextmanager
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.source_side import pieces_of, sample
from worker import duck
from worker.mapping.values import Values
from worker.mixpanel import decode, pieces, spool
from worker.mixpanel.body import BYTE_ORDER_MARK, Block, OversizedLine, Piece
from worker.mixpanel.decode import (
    CORRUPT,
    FAST_LINE_BYTES,
    KEY_PATHS,
    MAX_DEPTH,
    SCAN_BYTES,
    Decoder,
    NotAnEvent,
    NotPlainError,
    read_exactly,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from worker.mixpanel.decode import Decoded

WANTED: list[tuple[str, ...]] = [
    ("event",),
    ("properties", "p"),
    ("properties", "price"),
    ("properties", "$city"),
    ("properties", "city"),
    ("properties", "a.b"),
    ("properties", "deep", "x"),
    ("properties", "deep", "price"),
    ("properties", "größe"),
]
MAX_LINE_BYTES = 8 << 20
MAX_RAW_BYTES = 1 << 10
GOOD = b'{"event":"good","properties":{"time":1700000000,"distinct_id":"d","$insert_id":"i","p":1}}'
BAD = b'{"event":"bad","properties":{"p":'

LENIENT = {
    "nan": rb'{"event":"x","properties":{"p":nan}}',
    "NaN": rb'{"event":"x","properties":{"p":NaN}}',
    "Infinity": rb'{"event":"x","properties":{"p":Infinity}}',
    "minus Infinity": rb'{"event":"x","properties":{"p":-Infinity}}',
    "inf": rb'{"event":"x","properties":{"p":inf}}',
    "unwanted nan": rb'{"event":"x","properties":{"z":nan,"p":1}}',
    "trailing comma": rb'{"event":"x","properties":{"p":1,}}',
    "trailing comma in an array": rb'{"event":"x","properties":{"z":[1,],"p":1}}',
}
"""Lines that strict JSON does not know and that some readers take."""


# The reference


class Number(str):
    __slots__ = ()


class Seen(NamedTuple):
    """What a line shows: a value of JSON by path, or nothing at all where the line is no event."""

    values: list[Any] | None


def pairs_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key.encode() is not None}


def refuse(constant: str) -> None:
    raise ValueError(constant)


def reference(line: bytes, paths: Sequence[tuple[str, ...]]) -> Seen:
    """The values of a line in strict JSON, the last of equal keys; half a surrogate pair is no text (encode raises)."""
    try:
        value = json.loads(
            line.decode(), parse_int=Number, parse_float=Number, parse_constant=refuse, object_pairs_hook=pairs_of
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return Seen(None)
    if not isinstance(value, dict) or type(value.get("event")) is not str:
        return Seen(None)
    if not isinstance(value.get("properties"), dict | None):
        return Seen(None)
    values = []
    for path in paths:
        inner: Any = value
        for name in path:
            inner = inner.get(name) if isinstance(inner, dict) else None
        values.append(inner)
    return Seen(values)


def exact(value: Any) -> Any:
    """The same value with numbers that compare by what they are worth."""
    if isinstance(value, Number):
        return ("number", Decimal(value))
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return value


def shows(text: str | None, value: Any) -> bool:
    """Whether `text` is what the decoder may give for a value of JSON."""
    if value is None or text is None:
        return value is text
    if type(value) is str:
        return text == value
    read = json.loads(text, parse_int=Number, parse_float=Number, object_pairs_hook=pairs_of)
    return bool(exact(read) == exact(value)) and type(read) is type(value)


# The decoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def flipped() -> Iterator[Decoder]:
    """A decoder that has met something in every column that a text does not tell: it reads all of them as JSON."""
    decoder = Decoder(WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    flip(decoder)
    yield decoder
    assert decoder._json == set(range(len(decoder.paths)))
    decoder.close()


def flip(decoder: Decoder) -> None:
    names = {path[1] for path in decoder.paths if path[1:]}
    inner = {path[2]: 1.5 for path in decoder.paths if len(path) == 3}
    values = dict.fromkeys(names, 1.5) | {"deep": inner}
    decoder.decode(block(json.dumps({"event": "5", "properties": values}).encode()))
    assert decoder._json == set(range(len(decoder.paths)))


def as_new(decoder: Decoder) -> Decoder:
    """The same decoder with all columns read as text. To make another one takes ten times as long."""
    decoder._json.clear()
    decoder._relations.clear()
    return decoder


@pytest.fixture(scope="module")
def telling() -> Iterator[Decoder]:
    """A decoder that tells for all columns what JSON the texts were."""
    decoder = Decoder(WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES, kinds_of=WANTED)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def rounding() -> Iterator[Decoder]:
    """The same, with numbers only as exact as a double."""
    decoder = Decoder(
        WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES, kinds_of=WANTED, rounded=WANTED
    )
    yield decoder
    decoder.close()


class Outcome(NamedTuple):
    """What became of one line. An event: its texts, its key, when it was processed."""

    kind: str
    detail: tuple[Any, ...] = ()


def outcomes(decoder: Decoder, items: Iterable[Block | OversizedLine | Piece]) -> list[Outcome]:
    """What became of each line, in order; pieces are decoded as the pipeline does it."""
    found: list[Outcome] = []
    for item in items:
        if isinstance(item, Piece):
            fast = fast_outcomes(decoder, item) if item.plain else None
            found += in_blocks(decoder, item) if fast is None else fast
        else:
            found += outcomes_of(decoder, decoder.decode(item))
    return found


def fast_outcomes(decoder: Decoder, piece: Piece) -> list[Outcome] | None:
    """What `decode_piece` makes of each line; None where it says that the piece must be decoded in blocks."""
    found: list[Outcome] = []
    try:
        for decoded in decoder.decode_piece(piece):
            found += outcomes_of(decoder, decoded)
    except NotPlainError:
        return None
    assert len(found) == piece.lines
    return found


def in_blocks(decoder: Decoder, piece: Piece, block_bytes: int = 1 << 20) -> list[Outcome]:
    found = [
        outcome for decoded in decoder.decode_blocks(piece, block_bytes) for outcome in outcomes_of(decoder, decoded)
    ]
    assert len(found) == piece.lines
    return found


def outcomes_of(decoder: Decoder, decoded: Decoded) -> list[Outcome]:
    """What became of each line; checks on the way that every line became something."""
    assert decoded.lines == len(decoded.rows) + len(decoded.rejects) + decoded.blank
    assert len(decoded.texts) == len(decoder.paths)
    for text in decoded.texts:
        text.validate(full=True)
        assert len(text) == len(decoded.rows)
        assert text.type == pa.string()
    assert decoded.keys.shape == (len(decoded.rows), 2)
    assert len(decoded.processed) == len(decoded.rows)
    lines = [Outcome("blank")] * decoded.lines
    columns = [text.to_pylist() for text in decoded.texts]
    for number, row in enumerate(decoded.rows.tolist()):
        texts = tuple(column[number] for column in columns)
        lines[row] = Outcome("event", (texts, tuple(decoded.keys[number].tolist()), int(decoded.processed[number])))
    for reject in decoded.rejects:
        assert lines[reject.row].kind == "blank"
        assert reject.code == CORRUPT
        lines[reject.row] = Outcome("reject", (reject.reason, reject.raw))
    assert [reject.row for reject in decoded.rejects] == sorted(reject.row for reject in decoded.rejects)
    assert decoded.last_line_rejected == (lines[-1].kind == "reject")
    assert sum(line.kind == "blank" for line in lines) == decoded.blank
    return lines


def block(*lines: bytes, terminated: bool = True) -> Block:
    return Block(b"\n".join(lines) + (b"\n" if terminated else b""), unterminated=not terminated)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


def piece_of(folder: Path, *lines: bytes, terminated: bool = True) -> Piece:
    """The lines as one piece, which is there until the next one is."""
    # one byte order mark at the start of an export is taken off
    data = BYTE_ORDER_MARK + block(*lines, terminated=terminated).data
    with patch.object(pieces, "FIRST_PIECE_BYTES", 1 << 30):
        (piece,) = pieces_of(folder, data, piece_bytes=1 << 30, max_line_bytes=MAX_LINE_BYTES)
    assert isinstance(piece, Piece)
    return piece


def agree(outcome: Outcome, line: bytes, paths: Sequence[tuple[str, ...]]) -> bool:
    """Whether that may become of the line, by the reference."""
    values = reference(line, paths).values
    if not line.strip():
        return outcome.kind == "blank"
    if values is None:
        return outcome.kind == "reject" and outcome.detail[1] == line[:MAX_RAW_BYTES]
    if outcome.kind != "event":
        return False
    texts, key, processed = outcome.detail
    insert_id, processed_at = values[paths.index(KEY_PATHS[3])], texts[-1] or ""
    milliseconds = processed_at if processed_at.isascii() and processed_at.isdecimal() else "-1"
    return (
        all(shows(text, value) for text, value in zip(texts, values, strict=True))
        and (key == (0, 0)) == (insert_id is None or insert_id == "")
        and processed == (int(milliseconds) if len(milliseconds) <= 18 else -1)
    )


def in_properties(text: str) -> bytes:
    return f'{{"event":"x","properties":{{{text}}}}}'.encode()


NUMBERS = [
    "0",
    "-0",
    "-0.0",
    "0.0",
    "1.0",
    "1.10",
    "-1.5",
    "2.50",
    "1e3",
    "1E3",
    "1e-3",
    "1E-7",
    "1.5e300",
    "1e400",
    "-1e400",
    "1e-400",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "1234567890123456789012345678901234567890",
    "0.1000000000000000055",
    "0.1000000000000000055511151231",
    "12345678901234567890.5",
    "123456789012345.6",
    "1234567890123456.7",
    "100000000000000000000",
    "1e22",
    "1e23",
    "3.14159265358979323846264338327950288",
    "2.5E-5",
    "0.30000000000000004",
]

LINES: dict[str, bytes] = {
    **{
        f"F033_F034_number {number[:30]}": in_properties(f'"p":{number},"price":{number},"deep":{{"x":[{number}]}}')
        for number in NUMBERS
    },
    **{f"F034_number alone {number}": in_properties(f'"p":{number}') for number in ("1.10", "-0", "2.50", "1e3", "-7")},
    "F034_time with a fraction": in_properties('"time":1700000000.50,"distinct_id":"d","$insert_id":"i"'),
    "F033_number of 5,000 digits": in_properties('"p":' + "7" * 5000),
    **{
        f"F034_white space {before!r} {space!r} {number}": in_properties(f'"p"{before}:{space}{number}')
        for number in ("0.1000000000000000055", "1.10", '{"a":0.1000000000000000055}', "true", '"s"')
        for before, space in (("", " "), ("", "\t"), (" ", ""), (" ", " "), ("\r", "\r"))
    },
    "F032_half a number": in_properties('"p":1.'),
    "F034_leading zero": in_properties('"p":01'),
    "F034_plus": in_properties('"p":+1'),
    "F034_hexadecimal": in_properties('"p":0x10'),
    "F034_no digit before the point": in_properties('"p":.5'),
    "F037_null": b"null",
    "F037_number": b"1",
    "F037_text": b'"x"',
    "F037_array": b"[1]",
    "F037_array of an event": b'[{"event":"x","properties":{"p":1}}]',
    "F037_event in a text": rb'"{\"event\":\"x\"}"',
    "F037_empty object": b"{}",
    "F037_no properties": b'{"event":"x"}',
    "F037_properties null": b'{"event":"x","properties":null}',
    "F037_properties array": b'{"event":"x","properties":[]}',
    "F037_properties text": b'{"event":"x","properties":"p"}',
    "F037_properties number": b'{"event":"x","properties":5}',
    "F037_properties twice, then no object": b'{"event":"x","properties":{"p":1},"properties":3}',
    "F037_event number": b'{"event":1}',
    "F037_event null": b'{"event":null}',
    "F037_event true": b'{"event":true}',
    "F037_event empty": b'{"event":""}',
    "F037_event array": b'{"event":["x"]}',
    "F037_event object": b'{"event":{"event":"x"}}',
    "F037_event deeper": b'{"properties":{"event":"x"}}',
    "F037_event in something else": b'{"a":{"event":"x"}}',
    "F037_event capital": b'{"Event":"x","properties":{}}',
    "F037_text of numbers": in_properties('"p":"1.10","price":"1e3","$city":"true","city":"null"'),
    "F037_literals": in_properties('"p":true,"price":false,"$city":null,"city":[],"a.b":{}'),
    "F037_missing key parts": in_properties('"time":1,"$insert_id":null'),
    "F037_insert_id empty": in_properties('"time":1,"distinct_id":"d","$insert_id":""'),
    "F037_insert_id number": in_properties('"time":1,"distinct_id":"d","$insert_id":17'),
    "F037_insert_id object": in_properties('"time":1,"distinct_id":"d","$insert_id":{"a":[1]}'),
    "F037_processed text": in_properties('"mp_processing_time_ms":"123"'),
    "F037_processed odd": in_properties('"mp_processing_time_ms":1.5e3'),
    "F037_processed long": in_properties('"mp_processing_time_ms":1234567890123456789012'),
    "F030_equal keys": in_properties('"p":1,"p":2'),
    "F030_equal keys, null last": in_properties('"p":1,"p":null'),
    "F030_equal keys, one escaped": in_properties(r'"p":1,"\u0070":2'),
    "F030_equal keys, first escaped": in_properties(r'"\u0070":1,"p":2'),
    "F030_equal events": b'{"event":1,"event":"x"}',
    "F030_equal events, number last": b'{"event":"x","event":1}',
    "F030_equal properties": b'{"event":"x","properties":{"p":1,"price":3},"properties":{"p":2}}',
    **{
        f"F030_equal keys beside much that is not ASCII {pad}": in_properties(
            f'"p":1,"p":2,"z":"{"a" * pad}{"€" * 100}"'
        )
        for pad in range(3)
    },
    "F030_equal keys nobody wants": in_properties('"z":1,"z":2,"p":3'),
    "F030_equal keys within a value": in_properties('"p":{"a":1,"a":2}'),
    "F030_equal keys within an array": in_properties('"p":[{"a":1,"a":2}]'),
    "F030_equal keys, deeper": in_properties('"deep":{"x":1,"x":2}'),
    "F030_equal objects": in_properties('"deep":{"x":1},"deep":{"price":2}'),
    "F030_keys in capitals": in_properties('"P":1,"PRICE":2'),
    "F030_keys in capitals beside": in_properties('"P":1,"p":2,"$City":3,"city":4'),
    "F030_key escaped": in_properties(r'"\u0070":0.1000000000000000055'),
    "F030_key escaped otherwise": in_properties(r'"a\u002eb":1,"gr\u00f6\u00dfe":2,"\u0024city":3'),
    "F030_key escaped in capitals": in_properties(r'"gr\u00F6\u00DFe":"x"'),
    "F030_key with a dot": in_properties('"a.b":1,"a":{"b":2}'),
    "F030_key empty": in_properties('"":1,"p":2'),
    "F030_decoys in other objects": in_properties('"z":{"p":1,"price":1.12345678901234567},"p":2,"price":3.5'),
    "F030_decoys at the top": b'{"p":9,"price":1.12345678901234567,"event":"x","properties":{"price":2.5}}',
    "F030_decoys in texts": in_properties(r'"z":"\"p\":1.5,\"price\":2","price":0.1000000000000000055'),
    "F030_decoy ends like a wanted name": in_properties(r'"xp":1.5,"\"price":2.5,"nice price":3.5'),
    "F030_wanted below a text": in_properties('"deep":"x"'),
    "F030_wanted below an array": in_properties('"deep":[{"x":1}]'),
    "F026_escaped NUL": in_properties(r'"p":"a\u0000b","pr\u0000ice":1'),
    "F026_raw NUL": in_properties('"p":"a\0b"'),
    "F026_raw NUL behind": b'{"event":"x"}\0',
    "F026_raw NUL alone": b"\0",
    "F026_raw control character": in_properties('"p":"a\x01b"'),
    "F026_raw tab": in_properties('"p":"a\tb"'),
    "F026_delete": in_properties('"p":"a\x7fb"'),
    "F027_invalid UTF-8 in a value": b'{"event":"x","properties":{"p":"\xff"}}',
    "F027_invalid UTF-8 nobody wants": b'{"event":"x","properties":{"z":"\xff"}}',
    "F027_invalid UTF-8 in a key": b'{"event":"x","properties":{"\xc3":1}}',
    "F027_surrogate in UTF-8": b'{"event":"x","properties":{"p":"\xed\xa0\x80"}}',
    "F027_overlong": b'{"event":"x","properties":{"p":"\xc0\xaf"}}',
    "F027_nothing but invalid UTF-8": b"\xff\xfe",
    "F027_latin 1": b'{"event":"x","properties":{"p":"gr\xf6\xdfe"}}',
    "F028_half a pair": in_properties(r'"p":"\ud800"'),
    "F028_second half": in_properties(r'"p":"\udc00x"'),
    "F028_half a pair nobody wants": in_properties(r'"z":"\uD800","p":1'),
    "F028_half a pair in a key": in_properties(r'"\ud800":1'),
    "F028_a pair": in_properties(r'"p":"\ud83d\ude00","price":"😀"'),
    "F029_separators": in_properties('"p":"a\u2028b\u2029c\u0085d"'),
    "F029_other white space": b'\x0b{"event":"x"}',
    "F029_form feed": b'{"event":"x"}\x0c',
    "F029_no-break space": '\u00a0{"event":"x"}'.encode(),
    "F029_escapes": in_properties(r'"p":"\"\\\/\b\f\n\r\t\u00e9","price":["\/","\u00e9","\n"]'),
    "F029_text of a backslash": in_properties(r'"p":"\\","price":"\\\\"'),
    "F023_two events": b'{"event":"x"}{"event":"y"}',
    "F023_two events and a comma": b'{"event":"x"},{"event":"y"}',
    "F023_text behind": b'{"event":"x"} x',
    "F023_comment": b'{"event":"x"} // c',
    "F023_comment before": b'/* c */{"event":"x"}',
    "F023_comment alone": b"//c",
    "F023_cut": b'{"event":"x","properties":{"p":1',
    "F023_only the end": b'"p":1}}',
    "F023_single quotes": b"{'event':'x'}",
    "F023_no quotes": b'{event:"x"}',
    "F023_capital literal": in_properties('"p":True'),
    "F023_missing colon": in_properties('"p" 1'),
    "F023_missing comma": in_properties('"p":1 "price":2'),
    "F023_HTML": b"<!DOCTYPE html>",
    "F024_byte order mark": b"\xef\xbb\xbf" + GOOD,
    "F024_half a byte order mark": b"\xef\xbb" + GOOD,
    "F024_UTF-16": GOOD.decode().encode("utf-16-le"),
    "indented": b'\t \t{ "event" : "x" , "properties" : { "p" : 1.10 , "price" : [ 1 , 2.50 ] } } \r',
    "carriage return behind": GOOD + b"\r",
    "blank": b"",
    "white space": b" \t \r",
    "long text": in_properties('"p":"' + "ä" * 100_000 + '"'),
    "longer than DuckDB likes": in_properties('"z":"' + "z" * (5 << 20) + '","p":0.1000000000000000055'),
    "many keys": in_properties(",".join(f'"k{number}":{number}' for number in range(3000)) + ',"p":1.5'),
}


@pytest.mark.parametrize("name", LINES)
def test_one_line_among_all_kinds_of_neighbours(decoder: Decoder, folder: Path, name: str) -> None:
    line = LINES[name]
    expected = outcomes(decoder, [block(line)])[0]
    assert agree(expected, line, decoder.paths), expected
    # in a block that must be read with care, and where lines are read fast
    with_care, fast = ([BAD], [b"", GOOD]), ([GOOD] * 300, [GOOD])
    for read, (before, after) in ((block, with_care), (block, fast), (partial(piece_of, folder), fast)):
        found = outcomes(decoder, [read(*before, line, *after)])
        assert found[len(before)] == expected, before[:1]
        neighbours = [*zip(before, found, strict=False), *zip(reversed(after), reversed(found), strict=False)]
        assert all((other.kind == "event") == (neighbour == GOOD) for neighbour, other in neighbours)
    if line.strip():
        assert outcomes(decoder, [block(GOOD, line, terminated=False)])[1] == expected


@pytest.mark.parametrize("name", [*LINES, *LENIENT])
def test_F040_a_line_becomes_the_same_whatever_was_read_before(
    decoder: Decoder, flipped: Decoder, folder: Path, name: str
) -> None:
    line = {**LINES, **LENIENT}[name]
    expected = outcomes(as_new(decoder), [block(line)])
    assert outcomes(flipped, [block(line)]) == expected
    piece = piece_of(folder, line, terminated=not line.strip())
    assert outcomes(as_new(decoder), [piece]) == expected
    assert outcomes(flipped, [piece]) == expected


@pytest.mark.parametrize("name", LINES)
def test_the_decoder_gives_what_the_exact_reader_gives(decoder: Decoder, name: str) -> None:
    line = LINES[name]
    outcome = outcomes(decoder, [block(line)])[0]
    values = reference(line, decoder.paths).values
    if values is None:
        with pytest.raises(NotAnEvent) as verdict:
            read_exactly(line, decoder.paths)
        assert outcome.kind == ("reject" if line.strip() else "blank")
        assert outcome.kind == "blank" or outcome.detail == (str(verdict.value), line[:MAX_RAW_BYTES])
        return
    assert outcome.kind == "event"
    assert outcome.detail[0] == tuple(read_exactly(line, decoder.paths).texts)


@pytest.mark.parametrize("name", LENIENT)
def test_F032_what_strict_json_does_not_know_does_not_hang_on_neighbours(
    decoder: Decoder, folder: Path, name: str
) -> None:
    line = LENIENT[name]
    alone = outcomes(decoder, [block(line)])[0]
    assert outcomes(decoder, [block(BAD, line)])[1] == alone
    for read in (block, partial(piece_of, folder)):
        assert outcomes(decoder, [read(*[GOOD] * 300, line, *[GOOD] * 300)])[300] == alone
    if alone.kind == "event":
        # never silently null
        text = alone.detail[0][1]
        assert text == "1" or str(Decimal(text)) in {"NaN", "Infinity", "-Infinity"}


@pytest.mark.parametrize("depth", [100, 260, 1000, 1030, 2000, 100_000])
@pytest.mark.parametrize("key", ["p", "z"])
@pytest.mark.parametrize("inner", ["1", "1.10"])
@pytest.mark.parametrize("around", [("[", "]"), ('{"a":', "}")])
def test_F035_deep_nesting(
    decoder: Decoder, folder: Path, depth: int, key: str, inner: str, around: tuple[str, str]
) -> None:
    value = around[0] * depth + inner + around[1] * depth
    line = in_properties(f'"price":1,"{key}":{value}')
    alone = outcomes(decoder, [block(line)])[0]
    assert outcomes(decoder, [block(BAD, line)])[1] == alone
    assert outcomes(decoder, [block(*[GOOD] * 300, line, GOOD)])[300] == alone
    assert outcomes(decoder, [piece_of(folder, *[GOOD] * 300, line, GOOD)])[300] == alone
    if alone.kind == "event":
        assert alone.detail[0][1] == (None if key == "z" else value)
    else:
        assert alone.kind == "reject"
        assert depth > 100


# the line itself and its properties are two levels
DEEPEST = b'{"event":"x","properties":{"z":' + b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2) + b"}}"
TOO_DEEP = DEEPEST.replace(b"[]", b"[[]]")


@pytest.mark.parametrize("around", [b'{"event":"x"}', GOOD, in_properties('"p":[[],[],[]]')])
def test_F035_F040_how_deep_a_line_may_be_does_not_hang_on_neighbours(
    decoder: Decoder, folder: Path, around: bytes
) -> None:
    lines = [*[around] * 300, DEEPEST, *[around] * 300, TOO_DEEP, around]
    broad = in_properties('"p":[' + ",".join(["[]"] * 2 * MAX_DEPTH) + "]")
    for item in (block(*lines, broad), piece_of(folder, *lines, broad)):
        found = outcomes(decoder, [item])
        assert [number for number, outcome in enumerate(found) if outcome.kind != "event"] == [601]
        assert found[601].detail[0] == f"Objects and arrays are more than {MAX_DEPTH} deep within each other."
        assert found[601] == outcomes(decoder, [block(TOO_DEEP)])[0]


@pytest.mark.parametrize("read_bytes", [1, 7, 100, 150, 399, 1 << 19])
def test_F035_a_deep_line_is_noticed_wherever_it_is_cut(decoder: Decoder, folder: Path, read_bytes: int) -> None:
    lines = [GOOD, DEEPEST, GOOD, GOOD, TOO_DEEP, GOOD, b'{"event":"x"}', DEEPEST]
    with patch.object(spool, "READ_BYTES", read_bytes):
        for piece_bytes in (1, 700, 1 << 20):
            items = pieces_of(
                folder, block(*lines).data, piece_bytes=piece_bytes, max_line_bytes=MAX_LINE_BYTES, file_count=1
            )
            found = outcomes(decoder, items)
            assert [number for number, outcome in enumerate(found) if outcome.kind != "event"] == [4]


@pytest.mark.parametrize("name", ["F024_byte order mark", "F029_other white space", "F029_form feed"])
def test_F024_F029_what_duckdb_skips_is_noticed_wherever_it_is_cut(decoder: Decoder, folder: Path, name: str) -> None:
    lines = [GOOD, LINES[name], GOOD]
    data = block(*lines).data
    expected = outcomes(decoder, [block(line) for line in lines])
    assert [outcome.kind for outcome in expected] == ["event", "reject", "event"]
    for read_bytes in range(1, len(data) + 2):
        with patch.object(spool, "READ_BYTES", read_bytes):
            whole = pieces_of(folder, data, piece_bytes=1 << 20, max_line_bytes=MAX_LINE_BYTES)
            assert [isinstance(piece, Piece) and piece.plain for piece in whole] == [False], read_bytes
            # by lines: what is noticed in one piece must not be forgotten for the next
            for piece in pieces_of(folder, data, piece_bytes=1, max_line_bytes=MAX_LINE_BYTES):
                assert isinstance(piece, Piece)
                assert LINES[name] not in piece.path.read_bytes() or not piece.plain, read_bytes
    assert outcomes(decoder, [piece_of(folder, *lines)]) == expected


def test_a_blank_line_in_a_piece_is_blank_and_shifts_nothing(decoder: Decoder, folder: Path) -> None:
    nobody = b'{"event":null,"properties":{"p":%d}}'
    number = in_properties('"p":0.1000000000000000055')
    lines = [GOOD, nobody % 1, number, nobody % 2, GOOD, nobody % 3, number]
    alone = {line: outcomes(decoder, [block(line)])[0] for line in (*lines, number)}
    assert [alone[line].kind for line in lines[:3]] == ["event", "reject", "event"]
    for blank in (b"", b" \t", b"\r"):
        for some in (lines, lines[::-1], [number], [nobody % 1]):
            for at in (0, len(some) // 2, len(some)):
                shifted = [*some[:at], blank, *some[at:]]
                piece = piece_of(folder, *shifted)
                assert piece.plain
                assert fast_outcomes(decoder, piece) is None
                found = outcomes(decoder, [piece])
                assert found.pop(at) == Outcome("blank")
                same_lines(found, [alone[line] for line in some], some)
    assert fast_outcomes(decoder, piece_of(folder, *lines)) == [alone[line] for line in lines]


# What a text does not tell


@pytest.mark.parametrize(
    "value", ["5", "-1", "0", "1.5", "1e3", "true", "false", "null", "NaN", "-Infinity", "{}", '{"a":1}', "[]", '["x"]']
)
def test_F037_only_a_text_is_the_name_of_an_event(decoder: Decoder, flipped: Decoder, folder: Path, value: str) -> None:
    line = f'{{"event":{value},"properties":{{"p":1}}}}'.encode()
    reject = Outcome("reject", ("The line has no event name.", line))
    for lines in ([line], [GOOD, line, GOOD]):
        items = (block(*lines), piece_of(folder, *lines))
        for item in items:
            assert outcomes(as_new(decoder), [item])[len(lines) // 2] == reject
            assert outcomes(flipped, [item])[len(lines) // 2] == reject


@pytest.mark.parametrize(
    "name",
    [
        *("3rd", "[x] y", "[1]", "{}", "{x}", "true", "false", "null", "Infinity", "-Infinity", "inf", "NaN", "nan"),
        *("5", "-5", "1.5", "1e3", "-", "e", " 5", "5 ", "", "i", '"', "n\0"),
    ],
)
def test_F037_any_text_is_the_name_of_an_event(decoder: Decoder, flipped: Decoder, folder: Path, name: str) -> None:
    line = json.dumps({"event": name, "properties": {"p": name, "$insert_id": name}}).encode()
    expected = outcomes(flipped, [block(line)])[0]
    assert expected.kind == "event"
    texts = dict(zip(decoder.paths, expected.detail[0], strict=True))
    assert (texts["event",], texts["properties", "p"], texts["properties", "$insert_id"]) == (name, name, name)
    for lines in ([line], [line, line], [GOOD, line, GOOD]):
        piece = piece_of(folder, *lines)
        for found in (
            outcomes(as_new(decoder), [block(*lines)]),
            outcomes(as_new(decoder), [piece]),
            fast_outcomes(flipped, piece),
            fast_outcomes(decoder, piece),
        ):
            assert found is not None
            assert found[len(lines) // 2] == expected


def test_a_column_of_nothing_but_empty_texts(decoder: Decoder, flipped: Decoder, folder: Path) -> None:
    empty = b'{"event":"","properties":{"p":"","time":"","distinct_id":"","$insert_id":"","deep":{"x":""}}}'
    for lines in ([empty], [empty] * 3, [empty, b'{"event":""}']):
        expected = outcomes(flipped, [block(*lines)])
        assert all(agree(outcome, line, decoder.paths) for outcome, line in zip(expected, lines, strict=True))
        assert outcomes(as_new(decoder), [block(*lines)]) == expected
        assert fast_outcomes(as_new(decoder), piece_of(folder, *lines)) == expected


@pytest.mark.parametrize("stream_rows", [1, 2, 3, 5, 1000])
def test_a_column_that_turns_out_to_be_no_text_in_the_middle_of_a_piece(
    decoder: Decoder, flipped: Decoder, folder: Path, stream_rows: int
) -> None:
    key = b'"time":1700000000,"distinct_id":"d","$insert_id":"i"'
    same = b'{"event":"E","properties":{%b,"p":7,"price":"s"}}' % key
    lines = [
        *[same] * 4,
        b'{"event":"E","properties":{%b,"p":1.10,"price":2}}' % key,
        same,
        b'{"event":"E","properties":{"time":1700000000.50,"distinct_id":{"a":1},"$insert_id":"i","p":[1]}}',
        same,
        b'{"event":"5","properties":{%b,"price":0.1000000000000000055}}' % key,
        *[same] * 3,
    ]
    expected = outcomes(flipped, [block(line) for line in lines])
    assert all(agree(outcome, line, decoder.paths) for outcome, line in zip(expected, lines, strict=True))
    piece = piece_of(folder, *lines)
    as_new(decoder)
    with patch.object(decode, "STREAM_ROWS", stream_rows), patch.object(decode, "READ_BYTES", 100):
        found = fast_outcomes(decoder, piece)
        assert found == expected
        assert {decoder.paths[index] for index in decoder._json} == {
            ("event",),
            ("properties", "p"),
            ("properties", "price"),
            ("properties", "time"),
            ("properties", "distinct_id"),
        }
        assert fast_outcomes(decoder, piece) == expected
    # however the columns of the key are read, equal events have equal keys
    assert len({outcome.detail[1] for outcome, line in zip(expected, lines, strict=True) if line == same}) == 1


def test_a_column_turns_out_to_be_no_text_and_rows_come_in_other_numbers(decoder: Decoder, folder: Path) -> None:
    lines = [in_properties(f'"p":{number}') for number in ("1", "2", "3", "4", "5.0", "6", "7", "8")]
    expected = outcomes(decoder, [block(line) for line in lines])
    found: list[Outcome] = []
    as_new(decoder)
    with patch.object(decode, "STREAM_ROWS", 2), closing(decoder.decode_piece(piece_of(folder, *lines))) as parts:
        found += outcomes_of(decoder, next(parts))
        with patch.object(decode, "STREAM_ROWS", 3):
            for decoded in parts:
                found += outcomes_of(decoder, decoded)
    assert found == expected


def test_large_values_are_compared_with_their_lines_in_little_memory(decoder: Decoder) -> None:
    sizes = [10, 5000, SCAN_BYTES - 60, SCAN_BYTES - 30, SCAN_BYTES, 3 * SCAN_BYTES, *[100] * 50, 20_000, 2 << 20]
    # DuckDB writes 1.10 shorter and 1e1 longer by a byte
    numbers = [("0.1000000000000000055", "1"), ("0.5", "0.5"), ("1.10", "1e1"), ("7", "7")]
    lines = [
        in_properties(f'"p":{{"a":"{"y" * size}","n":[{one},{other}]}},"price":{one}')
        for size, (one, other) in itertools.product(sizes, numbers)
    ]
    outcomes(decoder, [block(in_properties('"p":{},"price":1.5'))])
    content = block(*lines)
    tracemalloc.start()
    try:
        decoder.decode(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # beside what DuckDB and Arrow hold
    assert peak < 5 * len(content.data)
    for outcome, line in zip(outcomes(decoder, [content]), lines, strict=True):
        assert agree(outcome, line, decoder.paths), line[-100:]
        assert outcome.detail[0] == tuple(read_exactly(line, decoder.paths).texts), line[-100:]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param([("properties", "City"), ("properties", "city")], id="F030_names equal but for case"),
        pytest.param([("properties", "Time"), ("properties", "Event")], id="F030_like a key but for case"),
        pytest.param([("Event",), ("Properties", "time")], id="F030_like the top but for case"),
        pytest.param([("properties", "STRASSE"), ("properties", "straße")], id="F030_names that fold to one"),
        pytest.param([("properties",), ("properties", "p"), ("properties", "p", "q")], id="one above the other"),
        pytest.param([("properties", "p", "0"), ("properties", "p", "0", "x")], id="a number for a name"),
        pytest.param(
            [("properties", name) for name in ('q"q', "it's", "b\\c", "a/b", "a~b", "*", "$", "?")], id="signs"
        ),
        pytest.param([("properties", name) for name in ("n\0l", "t\tb", "n\nl")], id="control characters"),
        pytest.param([("properties", "x" * 300), ("properties", "é" * 300)], id="long"),
        pytest.param([("properties", "😀"), ("properties", "\u2028")], id="beyond the plane"),
        pytest.param(
            [("properties", name) for name in ("select", "s", "l", "c0", "texts", "columns")], id="words of SQL"
        ),
        pytest.param([("properties", f"k{number}") for number in range(300)], id="many"),
    ],
)
def test_F030_any_name_can_be_wanted(folder: Path, wanted: list[tuple[str, ...]]) -> None:
    properties: dict[str, Any] = {
        "time": 1700000000,
        "Time": "T",
        "$insert_id": "i",
        "city": "c",
        "City": "C",
        "Event": 2,
    }
    for path in wanted:
        if len(path) == 2:
            properties.setdefault(path[1], {"q": 1.25, "0": {"x": "zero"}} if path[1] == "p" else f"value of {path[1]}")
    documents: list[dict[str, Any]] = [
        {"event": "x", "properties": properties},
        {"event": "x", "Event": "y", "properties": {}, "Properties": {"time": 5}},
        {"event": "x", "properties": {"p": ["a"], "city": 1}},
    ]
    lines = [json.dumps(document, ensure_ascii=plain).encode() for document in documents for plain in (False, True)]
    decoder = Decoder(wanted, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    try:
        for together in ([*lines], [BAD, *lines], [*lines]):
            for items in ([piece_of(folder, *together)], [block(*together)], [block(line) for line in together]):
                found = [outcome for outcome in outcomes(decoder, items) if outcome.kind != "reject"]
                for outcome, line in zip(found, lines, strict=True):
                    assert agree(outcome, line, decoder.paths), (outcome, line)
    finally:
        decoder.close()


def test_many_decoders_read_at_once(tmp_path: Path) -> None:
    """They share one database, and none takes the room of another."""
    line = json.dumps({"event": "x", "properties": {"city": "y" * 600}}).encode()
    piece = piece_of(tmp_path, *[line] * 30_000)
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(16):
            decoder = Decoder(WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
            stack.callback(decoder.close)
            streams.append(stack.enter_context(contextlib.closing(decoder.decode_piece(piece))))
        with patch.object(decode, "STREAM_ROWS", 1000):
            lines = [next(stream).lines for stream in streams]
        lines = [count + sum(decoded.lines for decoded in stream) for count, stream in zip(lines, streams, strict=True)]
    assert lines == [piece.lines] * 16


def test_a_database_that_cannot_be_used_any_more_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # one of this test's own: the other decoders here go on with theirs
    monkeypatch.setattr(duck, "_database", functools.cache(duck._database.__wrapped__))
    duck._database().connection.close()
    decoder = Decoder(WANTED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    assert len(outcomes(decoder, [block(GOOD, BAD)])) == 2
    decoder.close()


def test_a_key_that_stands_everywhere_takes_no_memory() -> None:
    """Those of its bytes that are rare at first are everywhere later."""
    name = "#@!" + "k" * 200
    properties = {"first": 'k":' * 100_000, "later": "#@!" * 300_000, name: 1.5}
    lines = [json.dumps({"event": "x", "properties": properties}).encode()]
    decoder = Decoder([("properties", name)], max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    tracemalloc.start()
    try:
        decoded = decoder.decode(block(*lines))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        decoder.close()
    assert decoded.texts[0].to_pylist() == ["1.5"]
    assert peak < 60 << 20


# Paths of which DuckDB reads no two at once


LAYERED: list[tuple[str, ...]] = [
    ("properties",),
    ("properties", "x"),
    ("properties", "x", "y"),
    ("properties", "City"),
    ("properties", "city"),
]


@pytest.fixture(scope="module")
def layered() -> Iterator[Decoder]:
    decoder = Decoder(LAYERED, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    assert len(decoder._layers) == 3
    yield decoder
    decoder.close()


@pytest.mark.parametrize("stream_rows", [1, 4, 1000])
def test_F030_paths_above_each_other_are_read_side_by_side(layered: Decoder, folder: Path, stream_rows: int) -> None:
    lines = [
        in_properties('"x":{"y":"a"},"city":"c","$insert_id":"i"'),
        in_properties('"x":{"y":"a"},"City":"C","$insert_id":"i"'),
        b'{"event":"x"}',
        b'{"event":null,"properties":{"x":{"y":1}}}',
        in_properties('"x":{"y":0.1000000000000000055},"city":1.10,"$insert_id":"i"'),
        in_properties('"x":null,"time":1.50,"$insert_id":"i"'),
        in_properties('"x":{},"City":"","city":[1.50]'),
        in_properties('"time":1.50,"$insert_id":"i"'),
    ]
    piece = piece_of(folder, *lines)
    expected = outcomes(layered, [block(line) for line in lines])
    for outcome, line in zip(expected, lines, strict=True):
        assert agree(outcome, line, layered.paths)
    assert expected[0].detail[1] == expected[1].detail[1] != expected[5].detail[1] == expected[7].detail[1]
    with patch.object(decode, "STREAM_ROWS", stream_rows):
        assert fast_outcomes(as_new(layered), piece) == expected
        assert fast_outcomes(layered, piece) == expected
        # each of these is refused by some layers only
        for refused in ('"x":"s"', '"x":{"y":1,"y":2}', '"city":1,"city":2', '"x":[]', '"x":{},"x":{"y":1}'):
            line = in_properties(refused)
            mixed = [*lines, line, *lines]
            piece = piece_of(folder, *mixed)
            assert fast_outcomes(as_new(layered), piece) is None
            wanted = [*expected, outcomes(layered, [block(line)])[0], *expected]
            assert agree(wanted[len(lines)], line, layered.paths)
            assert outcomes(layered, [piece]) == wanted
            assert outcomes(layered, [block(*mixed)]) == wanted


@pytest.mark.parametrize(("levels", "line_bytes"), [(10, 0), (3, 1 << 20)])
def test_paths_above_each_other_that_need_much_memory(folder: Path, levels: int, line_bytes: int) -> None:
    wanted = [("properties", *"abcdefghij"[:level]) for level in range(levels)]
    decoder = Decoder(wanted, max_line_bytes=MAX_LINE_BYTES, max_raw_bytes=MAX_RAW_BYTES)
    value = '"' + "y" * line_bytes + '"'
    for name in reversed("abcdefghij"[:levels]):
        value = f'{{"{name}":{value}}}'
    lines = [f'{{"event":"x","properties":{value}}}'.encode()] * 9
    try:
        for item in (piece_of(folder, *lines), block(*lines)):
            for outcome, line in zip(outcomes(decoder, [item]), lines, strict=True):
                assert agree(outcome, line, decoder.paths)
    finally:
        decoder.close()


# Keys


def test_F039_equal_events_have_equal_keys_however_they_are_written(
    decoder: Decoder, flipped: Decoder, folder: Path
) -> None:
    same = [
        b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"i","p":0.5}}',
        b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d\\u00e9","$insert_id":"i","p":1}}',
        b'{"properties":{"$insert_id":"\\u0069","distinct_id":"d\xc3\xa9","\\u0074ime":1700000000},"event":"E"}',
        b'{ "event" : "E" , "properties" : {"time" :1700000000 ,"distinct_id": "d\xc3\xa9","$insert_id"\t:"i"} }',
        b'{"event":"E","properties":{"time":5,"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"i"}}',
        b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"i","p":0.1000000000000000055}}',
    ]
    others = [
        b'{"event":"F","properties":{"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"i"}}',
        b'{"event":"E","properties":{"time":1700000001,"distinct_id":"d\xc3\xa9","$insert_id":"i"}}',
        b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d","$insert_id":"i"}}',
        b'{"event":"E","properties":{"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"j"}}',
        b'{"event":"E","properties":{"time":1700000000,"$insert_id":"i"}}',
        b'{"event":"E","properties":{"distinct_id":"d\xc3\xa9","$insert_id":"i"}}',
        # the same four texts, but one key apart
        b'{"event":"i","properties":{"time":1700000000,"distinct_id":"d\xc3\xa9","$insert_id":"E"}}',
    ]
    lines = same + others
    # each line by a decoder that has read nothing yet
    apart = [outcomes(as_new(decoder), [block(line)])[0].detail[1] for line in lines]
    assert len(set(apart[: len(same)])) == 1
    assert len(set(apart)) == 1 + len(others)
    for items in ([block(*lines)], [block(BAD, *lines)], [piece_of(folder, *lines)]):
        for reader in (as_new(decoder), flipped):
            assert [found.detail[1] for found in outcomes(reader, items) if found.kind == "event"] == apart


def test_F030_equal_keys_are_counted_with_a_sample(decoder: Decoder) -> None:
    decoded = decoder.decode(block(GOOD, in_properties('"p":1,"p":2'), in_properties('"deep":{"x":1,"x":2}')))
    assert (decoded.duplicate_keys, decoded.duplicate_key_sample) == (2, "p")
    decoded = decoder.decode(block(GOOD, GOOD))
    assert (decoded.duplicate_keys, decoded.duplicate_key_sample) == (0, None)


# Rejects


def test_F023_a_reject_carries_its_line(decoder: Decoder) -> None:
    long = b'{"event":"x","p":' + b"9" * 5000
    decoded = decoder.decode(block(GOOD, b"", b"nonsense", GOOD, long, b" ", b"[1]"))
    assert (decoded.lines, decoded.blank, decoded.rows.tolist()) == (7, 2, [0, 3])
    assert [(reject.row, reject.raw) for reject in decoded.rejects] == [
        (2, b"nonsense"),
        (4, long[:MAX_RAW_BYTES]),
        (6, b"[1]"),
    ]
    assert decoded.rejects[2].reason == "The line is not a JSON object."
    assert decoded.last_line_rejected


def test_a_later_step_rejects_with_the_raw_line(decoder: Decoder, folder: Path) -> None:
    lines = [b"", GOOD, BAD, GOOD + b" " * 2000, GOOD]
    (decoded_piece,) = decoder.decode_blocks(piece_of(folder, *lines, terminated=False), 1 << 20)
    for decoded in (decoder.decode(block(*lines, terminated=False)), decoded_piece):
        rejects = decoded.refused(np.array([1, 2]), "CODE", ["one", "two"], MAX_RAW_BYTES)
        assert [(reject.row, reject.code, reject.reason, reject.raw) for reject in rejects] == [
            (3, "CODE", "one", (GOOD + b" " * 2000)[:MAX_RAW_BYTES]),
            (4, "CODE", "two", GOOD),
        ]


def test_a_piece_may_be_left_before_its_end(decoder: Decoder, folder: Path) -> None:
    piece = piece_of(folder, *[GOOD] * 5)
    expected = outcomes(decoder, [block(GOOD)])
    with patch.object(decode, "STREAM_ROWS", 2):
        with closing(decoder.decode_piece(piece)) as parts:
            assert outcomes_of(decoder, next(parts)) == expected * 2
        # the exception keeps what was under way when it was raised
        with pytest.raises(RuntimeError) as left, closing(decoder.decode_piece(piece)) as parts:
            raise RuntimeError(next(parts))
        assert outcomes(decoder, [block(GOOD)]) == expected
        assert fast_outcomes(decoder, piece) == expected * 5
    assert left.traceback


@pytest.mark.parametrize("read_bytes", [1, 13, 400, 1 << 20])
@pytest.mark.parametrize("stream_rows", [1, 3, 1000])
def test_a_later_step_rejects_with_the_raw_line_of_a_piece(
    decoder: Decoder, folder: Path, read_bytes: int, stream_rows: int
) -> None:
    chance = random.Random(read_bytes + stream_rows)
    # those with an odd number are no events, and those in the middle must be looked at anyhow
    lines = [
        (
            b'{"event":%b,"properties":{"p":%d%b}}'
            % (b"null" if number % 4 == 3 else b'"x"', number, b".50" * (number > 9))
        )
        + b" " * chance.randrange(60)
        for number in range(30)
    ]
    first = 0
    with patch.object(decode, "STREAM_ROWS", stream_rows), patch.object(decode, "READ_BYTES", read_bytes):
        for decoded in decoder.decode_piece(piece_of(folder, *lines, terminated=False)):
            if chance.random() < 0.7:
                positions = np.flatnonzero(np.array([chance.random() < 0.6 for _ in decoded.rows]))
                rejects = decoded.refused(positions, "CODE", [str(position) for position in positions], 50)
                assert [first + reject.row for reject in rejects] == (first + decoded.rows[positions]).tolist()
                assert [reject.raw for reject in rejects] == [lines[first + reject.row][:50] for reject in rejects]
            assert [reject.raw for reject in decoded.rejects] == [
                lines[first + reject.row] for reject in decoded.rejects
            ]
            first += decoded.lines
    assert first == len(lines)


@pytest.mark.parametrize("read_bytes", [1, 5, 64, 1 << 20])
def test_lines_of_a_piece_are_found_by_number(tmp_path: Path, read_bytes: int) -> None:
    chance = random.Random(read_bytes)
    lines = [b"%d" % number + b"x" * chance.randrange(20) for number in range(60)]
    for end in (b"", b"\n"):
        (tmp_path / "lines").write_bytes(b"\n".join(lines) + end)
        with (tmp_path / "lines").open("rb") as file, patch.object(decode, "READ_BYTES", read_bytes):
            reader = decode._LineReader(file)
            first = 0
            while first < len(lines):
                # those that nobody asks for are passed over, and some are asked for again
                for count in (1, chance.randrange(1, 9), len(lines) - first):
                    found = reader.lines(first, count)
                    assert [found[number] for number in range(len(found))] == lines[first : first + count]
                first += chance.randrange(9)


@pytest.mark.parametrize(
    ("limit", "length"),
    [
        *((200, length) for length in (199, 200, 201, 202, 5000, 70_000)),
        *((FAST_LINE_BYTES - 5, FAST_LINE_BYTES + more) for more in (-5, -4, 0, 1)),
        *((FAST_LINE_BYTES + 900_000, FAST_LINE_BYTES + more) for more in (0, 1, 900_000, 900_001, 1_500_000)),
    ],
)
def test_F025_a_line_too_long_is_the_same_reject_in_every_block(tmp_path: Path, limit: int, length: int) -> None:
    line = in_properties('"p":"' + "y" * (length - len(in_properties('"p":""'))) + '"')
    assert len(line) == length
    content = b"".join((b'{"event":"first"}\n', line + b"\n", b'{"event":"last"}\n'))
    decoder = Decoder(WANTED, max_line_bytes=limit, max_raw_bytes=100_000)
    small = [(1, 1), (64, 1000), (1000, 64)] if length < 100_000 else [(1 << 18, 1)]
    found = [outcomes(decoder, [block(content.removesuffix(b"\n"))])] if length < 2 * limit else []
    for read_bytes, piece_bytes in [*small, (1 << 19, 1), (1 << 19, 250), (1 << 23, 1), (1 << 23, 1 << 20)]:
        with patch.object(spool, "READ_BYTES", read_bytes):
            items = pieces_of(tmp_path, content, piece_bytes=piece_bytes, max_line_bytes=limit, max_raw_bytes=100_000)
            found.append(outcomes(decoder, items))
    decoder.close()
    assert all(outcome == found[0] for outcome in found)
    assert [outcome.kind for outcome in found[0]] == ["event", "reject" if length > limit else "event", "event"]
    if length > limit:
        reason, raw = found[0][1].detail
        assert f"{length} bytes" in reason
        assert hashlib.sha256(line).hexdigest() in reason
        assert raw == line[:100_000]


# Laws over generated lines

TIMES = ["time", "distinct_id", "$insert_id", "mp_processing_time_ms"]
OTHERS = [
    "",
    "z",
    "P",
    "Price",
    "xp",
    "a",
    "b",
    "nice price",
    "$",
    'q"',
    "b\\",
    "\u2028",
    "n\0",
    "😀",
    "event",
    "properties",
]
TEXTS = [
    "1.10",
    "true",
    "null",
    'a"p":1.5',
    "\\",
    "d",
    "i",
    "terminated early",
    "{}",
    "größe",
    "\t\n",
    "😀\u2029",
    "",
    "a\0b",
]
DAMAGE = [b"", b"\xff", b"\0", b'"', b"}", b",", b"\\", b" ", b"-", b"\x0b", b":", b"[", b"NaN"]


class Writer:
    """Writes events as odd as JSON allows."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def _often(self, share: float) -> bool:
        return self._chance.random() < share

    def _space(self) -> str:
        return self._chance.choice([" ", "\t", "  ", "\r"]) if self._often(0.08) else ""

    def _text(self, text: str) -> str:
        """A text as JSON, in which each character is written in one of the ways there are."""
        if self._often(0.8):
            return json.dumps(text, ensure_ascii=self._often(0.5))
        written = []
        for character in text:
            if self._often(0.7):
                written.append(json.dumps(character, ensure_ascii=False)[1:-1])
                continue
            units = character.encode("utf-16-be")
            for at in range(0, len(units), 2):
                hexed = units[at : at + 2].hex()
                written.append("\\u" + (hexed.upper() if self._often(0.5) else hexed))
        return '"' + "".join(written) + '"'

    def _number(self) -> str:
        chance = self._chance
        match chance.randrange(5):
            case 0:
                return str(chance.randint(-(10**40), 10**40))
            case 1:
                return f"{chance.randint(-(10**12), 10**12)}.{chance.randrange(10 ** chance.randrange(1, 26))}"
            case 2:
                return repr(chance.uniform(-1e3, 1e3))
            case 3:
                return f"{chance.randint(-999, 999)}e{chance.randint(-30, 30)}"
            case _:
                return chance.choice(NUMBERS)

    def _value(self, depth: int) -> str:
        chance = self._chance.random()
        if chance < 0.45:
            return self._number()
        if chance < 0.7:
            return self._text(self._chance.choice(TEXTS))
        if chance < 0.8 or depth > 4:
            return self._chance.choice(["true", "false", "null"])
        if chance < 0.9:
            return self._object([self._pair(depth + 1) for _ in range(self._chance.randrange(4))])
        items = [self._space() + self._value(depth + 1) + self._space() for _ in range(self._chance.randrange(4))]
        return "[" + ",".join(items) + "]"

    def _pair(self, depth: int) -> str:
        wanted = [path[-1] for path in WANTED[1:]] + ["deep"]
        name = self._chance.choice(self._chance.choice([wanted, wanted, TIMES, OTHERS]))
        return self._written(name, self._value(depth))

    def _written(self, name: str, value: str) -> str:
        return f"{self._space()}{self._text(name)}{self._space()}:{self._space()}{value}{self._space()}"

    def _object(self, pairs: list[str]) -> str:
        self._chance.shuffle(pairs)
        return "{" + ",".join(pairs) + "}"

    def event(self) -> bytes:
        properties = self._object([self._pair(0) for _ in range(self._chance.randrange(9))])
        pairs = [self._written("event", self._text("E")), self._written("properties", properties)]
        if self._often(0.1):
            pairs.append(self._pair(0))
        return (self._space() + self._object(pairs) + self._space()).encode()

    def line(self) -> bytes:
        """An event, or something else."""
        chance = self._chance.random()
        if chance < 0.6:
            return self.event()
        if chance < 0.7:
            return self._chance.choice([GOOD, BAD, b"", b" ", b"null", self._value(0).encode()])
        if chance < 0.85:
            return self._chance.choice([line for line in LINES.values() if len(line) < 1000])
        line, damage = self.event(), self._chance.choice(DAMAGE)
        at = self._chance.randrange(len(line))
        return line[:at] + damage + line[at + self._chance.randrange(2) :]


SEEDS = st.integers(0, 2**32)
QUIET = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)


@settings(QUIET, max_examples=15)
@given(seed=SEEDS)
def test_F031_F033_F034_the_texts_are_what_the_lines_say(decoder: Decoder, seed: int) -> None:
    writer = Writer(seed)
    for line in [writer.event() for _ in range(12)]:
        outcome = outcomes(decoder, [block(line)])[0]
        assert agree(outcome, line, decoder.paths), (outcome, line)


@settings(QUIET, max_examples=15)
@given(seed=SEEDS)
def test_the_kinds_are_those_of_the_lines(telling: Decoder, decoder: Decoder, folder: Path, seed: int) -> None:
    writer = Writer(seed)
    lines = [writer.line() for _ in range(20)]
    assert outcomes(telling, [block(*lines)]) == outcomes(decoder, [block(*lines)])
    piece = piece_of(folder, *lines)
    parts = [telling.decode(block(*lines))]
    with contextlib.suppress(NotPlainError):
        if piece.plain:
            parts = [*telling.decode_piece(piece)]
    first = 0
    for part in parts:
        columns = [(column, kinds) for column, kinds in zip(part.texts, part.kinds, strict=True) if kinds is not None]
        assert len(columns) == len(WANTED)
        for number, row in enumerate(part.rows.tolist()):
            values = reference(lines[first + row], telling.paths).values
            if values is None:
                continue  # read leniently: what it holds is no strict JSON
            for (_, kinds), value in zip(columns, values, strict=False):
                assert chr(kinds[number]) in starts_of(value), (lines[first + row], value)
        first += part.lines


@settings(QUIET, max_examples=15)
@given(seed=SEEDS)
def test_rounded_numbers_are_the_same_doubles_in_any_company(
    telling: Decoder, rounding: Decoder, folder: Path, seed: int
) -> None:
    writer = Writer(seed)
    lines = [writer.event() for _ in range(12)]

    def values(decoded: Iterable[Decoded]) -> list[list[Any]]:
        columns: list[list[Any]] = [[] for _ in WANTED]
        for part in decoded:
            for column, text, kind in zip(columns, part.texts, part.kinds, strict=False):
                assert kind is not None
                column.extend(Values.from_json(text, kind).to_pylist())
        return columns

    exact = values([telling.decode(block(*lines))])
    assert values([rounding.decode(block(*lines))]) == exact
    assert values(rounding.decode(block(line)) for line in lines) == exact
    piece = piece_of(folder, *lines)
    with contextlib.suppress(NotPlainError):
        if piece.plain:
            assert values(list(rounding.decode_piece(piece))) == exact


def starts_of(value: Any) -> str:
    """The characters with which the JSON of such a value may start."""
    match value:
        case None:
            return "\0"
        case bool():
            return str(value)[0].lower()
        case Number():
            return "-0123456789"
        case str():
            return '"'
        case dict():
            return "{"
    return "["


@settings(QUIET, max_examples=10)
@given(seed=SEEDS)
def test_F040_a_line_becomes_the_same_in_any_company(decoder: Decoder, folder: Path, seed: int) -> None:
    writer, chance = Writer(seed), random.Random(seed)
    lines = [writer.line() for _ in range(12)]
    expected = [outcomes(decoder, [block(line)])[0] for line in lines]
    for outcome, line in zip(expected, lines, strict=True):
        assert agree(outcome, line, decoder.paths), (outcome, line)
    bounds = [0, *sorted(chance.sample(range(1, len(lines)), chance.randrange(6))), len(lines)]
    pieces = [lines[first:last] for first, last in itertools.pairwise(bounds)]
    whole = chance.random() < 0.5 or not lines[-1]
    blocks = [block(*piece, terminated=whole or number < len(pieces) - 1) for number, piece in enumerate(pieces)]
    same_lines(outcomes(decoder, blocks), expected, lines)
    same_lines(outcomes(decoder, [block(*lines)]), expected, lines)
    data = BYTE_ORDER_MARK + block(*lines, terminated=whole).data
    with small_reads(chance):
        for piece_bytes in (1, chance.randrange(1, 2000)):
            cut = pieces_of(folder, data, piece_bytes=piece_bytes, max_line_bytes=MAX_LINE_BYTES, file_count=1)
            same_lines(outcomes(decoder, cut), expected, lines)
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert Counter(outcomes(decoder, [block(*shuffled)])) == Counter(expected)


@contextmanager
def small_reads(chance: random.Random) -> Iterator[None]:
    """Everything that is read or handed on at once is so small that these few lines are many times as large."""
    with (
        patch.object(spool, "READ_BYTES", chance.randrange(1, 300)),
        patch.object(decode, "READ_BYTES", chance.randrange(1, 300)),
        patch.object(decode, "STREAM_ROWS", chance.randrange(1, 6)),
        patch.object(decode, "SCAN_BYTES", chance.randrange(8, 300)),
        patch.object(decode, "LOOK_BYTES", chance.randrange(1, 300)),
    ):
        yield


@settings(QUIET, max_examples=6)
@given(seed=SEEDS)
def test_F040_a_piece_gives_what_its_lines_give(decoder: Decoder, flipped: Decoder, folder: Path, seed: int) -> None:
    writer, chance = Writer(seed), random.Random(seed)
    lines = [writer.event() for _ in range(8)] + [writer.line() for _ in range(6)] + [GOOD, b"", BAD]
    chance.shuffle(lines)
    expected = {line: outcomes(as_new(decoder), [block(line)])[0] for line in lines}
    fast = []
    for line in lines:
        assert outcomes(flipped, [block(line)]) == [expected[line]]
        alone = piece_of(folder, line)
        found = fast_outcomes(as_new(decoder), alone) if alone.plain else None
        if found is not None:
            assert found == [expected[line]], line
            fast.append(line)
    with small_reads(chance):
        piece = piece_of(folder, *fast)
        for reader in (as_new(decoder), decoder, flipped):
            assert fast_outcomes(reader, piece) == [expected[line] for line in fast]
        # one line that cannot be read so, and none of the piece can
        slow = chance.choice([line for line in lines if line not in fast])
        fast.insert(chance.randrange(len(fast) + 1), slow)
        piece = piece_of(folder, *fast)
        for reader in (as_new(decoder), flipped):
            assert not piece.plain or fast_outcomes(reader, piece) is None
            same_lines(in_blocks(reader, piece, chance.randrange(1, 900)), [expected[line] for line in fast], fast)


def same_lines(found: list[Outcome], expected: list[Outcome], lines: list[bytes]) -> None:
    assert len(found) == len(expected)
    for one, other, line in zip(found, expected, lines, strict=True):
        assert one == other, line


@settings(QUIET, max_examples=30)
@given(seed=SEEDS, around=st.integers(100, 300))
def test_F040_one_line_among_many_good_ones(decoder: Decoder, seed: int, around: int) -> None:
    line = Writer(seed).line()
    found = outcomes(decoder, [block(*[GOOD] * around, line, *[GOOD] * around)])
    assert found[around] == outcomes(decoder, [block(line)])[0], line
    assert {outcome for number, outcome in enumerate(found) if number != around} == {found[0]}


@settings(QUIET, max_examples=100)
@given(data=st.binary(max_size=200))
def test_F036_any_bytes_are_lines(decoder: Decoder, data: bytes) -> None:
    lines = data.split(b"\n")
    if not any(lines):
        return
    found = outcomes(decoder, [Block(data, unterminated=not data.endswith(b"\n"))])
    for outcome, line in zip(found, lines if lines[-1] else lines[:-1], strict=True):
        assert agree(outcome, line, decoder.paths)


def test_a_block_of_blank_lines(decoder: Decoder) -> None:
    assert outcomes(decoder, [block(b"", b"", b" \t", b"\r")]) == [Outcome("blank")] * 4


def test_a_large_block_with_rubbish_here_and_there(decoder: Decoder, folder: Path) -> None:
    chance = random.Random(23)
    hostile = [line for line in LINES.values() if len(line) < 5000]
    alone = {line: outcomes(decoder, [block(line)])[0] for line in [*hostile, GOOD]}
    lines = [chance.choice(hostile) if chance.random() < 0.01 else GOOD for _ in range(8_000)]
    expected = [alone[line] for line in lines]
    same_lines(outcomes(decoder, [block(*lines)]), expected, lines)
    same_lines(in_blocks(decoder, piece_of(folder, *lines), 150_000), expected, lines)


def test_F036_real_lines_by_people_unknown(decoder: Decoder) -> None:
    for name in (
        "01_adobe_docs_seed000",
        "02_openapi_export",
        "04_react_native_utc_reshuffled",
        "10_web_2017_no_insert_id",
        "11_segment_web_airbyte_docstring",
        "13_old_docs_viewed_report",
        "broken/unicode_line_separators_valid",
    ):
        lines = sample(f"{name}.jsonl").removesuffix(b"\n").split(b"\n")
        found = outcomes(decoder, [block(*lines)])
        for outcome, line in zip(found, lines, strict=True):
            assert outcome.kind == "event"
            assert agree(outcome, line, decoder.paths)


def test_an_oversized_line_is_one_reject(decoder: Decoder) -> None:
    decoded = decoder.decode(OversizedLine(b"x" * 5000, 70_000, "abc"))
    assert (decoded.lines, len(decoded.rows), decoded.last_line_rejected) == (1, 0, True)
    assert decoded.rejects[0].raw == b"x" * MAX_RAW_BYTES
    assert "70000 bytes, SHA-256 abc" in decoded.rejects[0].reason
    assert np.array_equal(decoded.keys, np.zeros((0, 2), dtype=np.uint64))
