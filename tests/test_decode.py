"""From lines to texts: the decoder against a reference of a few lines, and that no line depends on its neighbours."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.source_side import sample
from worker.mixpanel.body import Block, OversizedLine, read_blocks
from worker.mixpanel.decode import CORRUPT, KEY_PATHS, Decoder, NotAnEvent, read_exactly
from worker.mixpanel.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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


class Outcome(NamedTuple):
    """What became of one line. An event: its texts, its key, when it was processed, its content."""

    kind: str
    detail: tuple[Any, ...] = ()


def outcomes(decoder: Decoder, blocks: Sequence[Block | OversizedLine]) -> list[Outcome]:
    """What became of each line, in order; checks on the way that every line became something."""
    found: list[Outcome] = []
    for block in blocks:
        decoded = decoder.decode(block)
        assert decoded.lines == len(decoded.rows) + len(decoded.rejects) + decoded.blank
        assert len(decoded.texts) == len(decoder.paths)
        for text in decoded.texts:
            text.validate(full=True)
            assert len(text) == len(decoded.rows)
            assert text.type == pa.string()
        assert decoded.keys.shape == (len(decoded.rows), 2)
        assert len(decoded.processed) == len(decoded.content) == len(decoded.rows)
        lines = [Outcome("blank")] * decoded.lines
        columns = [text.to_pylist() for text in decoded.texts]
        for number, row in enumerate(decoded.rows.tolist()):
            detail = (
                tuple(column[number] for column in columns),
                tuple(decoded.keys[number].tolist()),
                int(decoded.processed[number]),
                int(decoded.content[number]),
            )
            lines[row] = Outcome("event", detail)
        for reject in decoded.rejects:
            assert lines[reject.row].kind == "blank"
            assert reject.code == CORRUPT
            lines[reject.row] = Outcome("reject", (reject.reason, reject.raw))
        assert [reject.row for reject in decoded.rejects] == sorted(reject.row for reject in decoded.rejects)
        assert decoded.last_line_rejected == (lines[-1].kind == "reject")
        assert sum(line.kind == "blank" for line in lines) == decoded.blank
        found += lines
    return found


def block(*lines: bytes, terminated: bool = True) -> Block:
    return Block(b"\n".join(lines) + (b"\n" if terminated else b""), unterminated=not terminated)


def agree(outcome: Outcome, line: bytes, paths: Sequence[tuple[str, ...]]) -> bool:
    """Whether that may become of the line, by the reference."""
    values = reference(line, paths).values
    if not line.strip():
        return outcome.kind == "blank"
    if values is None:
        return outcome.kind == "reject" and outcome.detail[1] == line[:MAX_RAW_BYTES]
    if outcome.kind != "event":
        return False
    texts, key, processed, _ = outcome.detail
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
def test_one_line_among_all_kinds_of_neighbours(decoder: Decoder, name: str) -> None:
    line = LINES[name]
    expected = outcomes(decoder, [block(line)])[0]
    assert agree(expected, line, decoder.paths), expected
    # in a block that must be read with care, and in one that is read fast
    for before, after in [([BAD], [b"", GOOD]), ([GOOD] * 300, [GOOD])]:
        found = outcomes(decoder, [block(*before, line, *after)])
        assert found[len(before)] == expected, before[:1]
        neighbours = [*zip(before, found, strict=False), *zip(reversed(after), reversed(found), strict=False)]
        assert all((other.kind == "event") == (neighbour == GOOD) for neighbour, other in neighbours)
    if line.strip():
        assert outcomes(decoder, [block(GOOD, line, terminated=False)])[1] == expected


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
def test_F032_what_strict_json_does_not_know_does_not_hang_on_neighbours(decoder: Decoder, name: str) -> None:
    line = LENIENT[name]
    alone = outcomes(decoder, [block(line)])[0]
    assert outcomes(decoder, [block(BAD, line)])[1] == alone
    assert outcomes(decoder, [block(*[GOOD] * 300, line, *[GOOD] * 300)])[300] == alone
    if alone.kind == "event":
        # never silently null
        text = alone.detail[0][1]
        assert text == "1" or str(Decimal(text)) in {"NaN", "Infinity", "-Infinity"}


@pytest.mark.parametrize("depth", [100, 260, 1000, 1030, 2000, 100_000])
@pytest.mark.parametrize("key", ["p", "z"])
@pytest.mark.parametrize("inner", ["1", "1.10"])
@pytest.mark.parametrize("around", [("[", "]"), ('{"a":', "}")])
def test_F035_deep_nesting(decoder: Decoder, depth: int, key: str, inner: str, around: tuple[str, str]) -> None:
    value = around[0] * depth + inner + around[1] * depth
    line = in_properties(f'"price":1,"{key}":{value}')
    alone = outcomes(decoder, [block(line)])[0]
    assert outcomes(decoder, [block(BAD, line)])[1] == alone
    assert outcomes(decoder, [block(*[GOOD] * 300, line, GOOD)])[300] == alone
    if alone.kind == "event":
        assert alone.detail[0][1] == (None if key == "z" else value)
    else:
        assert alone.kind == "reject"
        assert depth > 100


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
def test_F030_any_name_can_be_wanted(wanted: list[tuple[str, ...]]) -> None:
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
        for blocks in ([block(*lines)], [block(line) for line in lines], [block(BAD, *lines)]):
            found = [outcome for outcome in outcomes(decoder, blocks) if outcome.kind != "reject"]
            for outcome, line in zip(found, lines, strict=True):
                assert agree(outcome, line, decoder.paths), (outcome, line)
    finally:
        decoder.close()


# Keys


def test_F039_equal_events_have_equal_keys_however_they_are_written(decoder: Decoder) -> None:
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
    for blocks in ([block(*same, *others)], [block(line) for line in same + others], [block(BAD, *same, *others)]):
        keys = [outcome.detail[1] for outcome in outcomes(decoder, blocks) if outcome.kind == "event"]
        assert len(keys) == len(same) + len(others)
        assert len(set(keys[: len(same)])) == 1
        assert len(set(keys)) == 1 + len(others)


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


def test_a_later_step_rejects_with_the_raw_line(decoder: Decoder) -> None:
    content = block(b"", GOOD, BAD, GOOD + b" " * 2000, GOOD, terminated=False)
    decoded = decoder.decode(content)
    rejects = decoder.rejects(content, decoded.rows[[1, 2]], "CODE", ["one", "two"])
    assert [(reject.row, reject.code, reject.reason, reject.raw) for reject in rejects] == [
        (3, "CODE", "one", (GOOD + b" " * 2000)[:MAX_RAW_BYTES]),
        (4, "CODE", "two", GOOD),
    ]


@pytest.mark.parametrize("length", [199, 200, 201, 202, 5000, 70_000])
def test_F025_a_line_too_long_is_the_same_reject_in_every_block(tmp_path: Path, length: int) -> None:
    limit = 200
    line = in_properties('"p":"' + "y" * (length - len(in_properties('"p":""'))) + '"')
    assert len(line) == length
    content = b"".join((b'{"event":"first"}\n', line + b"\n", b'{"event":"last"}\n'))
    decoder = Decoder(WANTED, max_line_bytes=limit, max_raw_bytes=100_000)
    found = []
    for block_bytes in (1, 64, 250, 1000, 1 << 20):
        with Spool(tmp_path / "export") as export:
            export.write(content)
            export.finish(proves_end=True)
            blocks = read_blocks(export, block_bytes=block_bytes, max_line_bytes=limit)
            found.append([outcome[:2] for outcome in outcomes(decoder, list(blocks))])
    decoder.close()
    assert all(outcome == found[0] for outcome in found)
    assert [kind for kind, _ in found[0]] == ["event", "reject" if length > limit else "event", "event"]
    if length > limit:
        reason, raw = found[0][1][1]
        assert f"{length} bytes" in reason
        assert hashlib.sha256(line).hexdigest() in reason
        assert line.startswith(raw)
        assert len(raw) >= min(length, 1 << 16)


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


@settings(QUIET, max_examples=10)
@given(seed=SEEDS)
def test_F040_a_line_becomes_the_same_in_any_company(decoder: Decoder, seed: int) -> None:
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
    shuffled = list(lines)
    chance.shuffle(shuffled)
    assert Counter(outcomes(decoder, [block(*shuffled)])) == Counter(expected)


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


def test_a_large_block_with_rubbish_here_and_there(decoder: Decoder) -> None:
    chance = random.Random(23)
    hostile = [line for line in LINES.values() if len(line) < 5000]
    alone = {line: outcomes(decoder, [block(line)])[0] for line in [*hostile, GOOD]}
    lines = [chance.choice(hostile) if chance.random() < 0.01 else GOOD for _ in range(8_000)]
    found = outcomes(decoder, [block(*lines)])
    same_lines(found, [alone[line] for line in lines], lines)


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
