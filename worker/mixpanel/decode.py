"""From blocks of lines to columns of text: which lines are events, and what stands under the wanted paths.

DuckDB's `json_transform` does the reading, vectorised and without the GIL. It is fast and takes any bytes, but it is not
exact: of two equal keys it keeps the first, it rounds numbers to doubles, and it shows a number and a string alike. So
numpy finds, in the same bytes, where each wanted key stands. Where that proves that the text is what the line says, the
text is taken; the few other lines are read again by `read_exactly`, which is slow, exact, and the definition of what
this module does.

The text of a JSON value: a string's own characters; a number's JSON text; `true`, `false`; the JSON text of an object or
array; null for null and for what is absent. Of two equal keys in one object the last counts, with a warning.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from worker.mixpanel.body import Block, OversizedLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Path = tuple[str, ...]
"""Keys from the top of a line: ("event",), ("properties", "$insert_id")."""

EVENT: Path = ("event",)
PROPERTIES: Path = ("properties",)
KEY_PATHS: tuple[Path, ...] = (
    EVENT,
    ("properties", "distinct_id"),
    ("properties", "time"),
    ("properties", "$insert_id"),
)
"""Mixpanel's own key of an event (event deduplication)."""
PROCESSED_PATH: Path = ("properties", "mp_processing_time_ms")

QUOTE, COLON, COMMA, BACKSLASH, NEWLINE, SPACE = 34, 58, 44, 92, 10, 32
BRACE_OPEN, BRACKET_OPEN, BRACE_CLOSE, BRACKET_CLOSE, MINUS = 123, 91, 125, 93, 45
SAFE_NUMBER_BYTES = 16
"""A decimal of at most 15 digits and a point comes back from a double with the same value."""
SCAN_BYTES = 1 << 17
"""The scan's temporaries stay in the processor's cache."""


class LineReject(NamedTuple):
    """A line that is no event. `row` counts from 0 within the block; `raw` may be cut to the limit."""

    row: int
    code: str
    reason: str
    raw: bytes


CORRUPT = "INGEST-1401-400"
"""Adobe's code for a row that cannot be read (batch ingestion, partial)."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One block, decoded.

    `texts[i]` belongs to the decoder's `paths[i]` and has one value a *event*; `rows` gives each event's line within the
    block. `lines` counts all lines, `blank` those without a character. `keys` holds 128 bits of Mixpanel's key (zero for
    an event without `$insert_id`), `processed` its `mp_processing_time_ms` (-1 when there is none), `content` 64 bits of
    the line, for a choice that does not hang on the order of rows.
    """

    lines: int
    blank: int
    rows: NDArray[np.int32]
    texts: list[pa.StringArray]
    rejects: list[LineReject]
    keys: NDArray[np.uint64]
    processed: NDArray[np.int64]
    content: NDArray[np.uint64]
    duplicate_keys: int = 0
    duplicate_key_sample: str | None = None
    last_line_rejected: bool = False


class NotAnEvent(Exception):  # noqa: N818 - a verdict on a line, not an error of the program
    """The line is no event; the text says why."""


@dataclass
class _Found:
    """Where the wanted key names stand in a block: the position of the closing quote, -1 where absent."""

    where: NDArray[np.int64]
    doubtful: NDArray[np.bool_]


class Decoder:
    """Decodes blocks for one set of paths. Not for use by two threads at once: each thread has its own.

    `paths`: what `Decoded.texts` gives, in this order; it holds KEY_PATHS and PROCESSED_PATH besides what was asked.
    """

    def __init__(self, wanted: Sequence[Path], *, max_line_bytes: int, max_raw_bytes: int) -> None:
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys((*wanted, *KEY_PATHS, PROCESSED_PATH)))
        self._max_line_bytes = max_line_bytes
        self._max_raw_bytes = max_raw_bytes
        self._scanner = _KeyScanner({name for path in self.paths for name in path} | {"properties"})
        self._connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "128MB"})
        self._query = self._sql()

    def close(self) -> None:
        self._connection.close()

    def _sql(self) -> str:
        # json_transform takes one tree; a path that is the parent of another wanted path is extracted by itself
        parents = {path[:length] for path in self.paths for length in range(1, len(path))}
        tree: dict[str, Any] = {}
        columns = []
        for index, path in enumerate(self.paths):
            if path in parents:
                pointer = "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in path)
                columns.append(f"try(json_extract_string(l, {_literal(pointer)})) as c{index}")
                continue
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = "VARCHAR"
            columns.append("s" + "".join("." + _identifier(name) for name in path) + f" as c{index}")
        spec = orjson.dumps(tree).decode()
        names = [f"c{self.paths.index(path)}" for path in KEY_PATHS]
        return (
            f"select *, hash({', '.join(names)}) as k0, hash({', '.join(reversed(names))}) as k1 from ("
            f"select s is not null as parsed, hash(l) as content, {', '.join(columns)} from ("
            f"select l, try(json_transform(l, {_literal(spec)})) as s from lines))"
        )

    def decode(self, block: Block | OversizedLine) -> Decoded:
        """Decode whole lines. Never raises for what the lines hold."""
        if isinstance(block, OversizedLine):
            reject = LineReject(0, CORRUPT, _too_long(block.length, block.sha256), block.start[: self._max_raw_bytes])
            return self._nothing(lines=1, reject=reject)
        data = np.frombuffer(block.data, dtype=np.uint8)
        newlines = np.flatnonzero(data == NEWLINE)
        ends = np.append(newlines, len(data)) if block.unterminated else newlines
        count = len(ends)
        offsets = np.zeros(count + 1, dtype=np.int32)
        offsets[1:] = ends + 1
        if block.unterminated:
            offsets[-1] = len(data)
        # the line's own newline stays in its text: JSON allows white space after the value, and nothing is copied
        lines = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(block.data))
        table = self._run(lines)
        found = self._scanner.scan(data, ends)
        lengths = np.diff(offsets)
        oversized = lengths > self._max_line_bytes
        parsed = _booleans(table["parsed"]) & ~oversized
        texts = [_single(table[f"c{index}"]) for index in range(len(self.paths))]
        doubtful = found.doubtful | self._unproven(data, texts, found)
        return self._assemble(block, data, offsets, table, texts, parsed, doubtful & parsed, oversized)

    def _run(self, lines: pa.StringArray) -> pa.Table:
        self._connection.register("lines", pa.table({"l": lines}))
        table: pa.Table = self._connection.sql(self._query).to_arrow_table()
        self._connection.unregister("lines")
        return table

    def _unproven(self, data: NDArray[np.uint8], texts: list[pa.StringArray], found: _Found) -> NDArray[np.bool_]:
        """Rows with a text that the bytes do not prove: no event name, no object of properties, an inexact number."""
        names = self._scanner.names
        unproven = np.zeros(len(texts[0]), dtype=bool)
        event = _byte_after(data, found.where[names["event"]])
        unproven |= event != QUOTE
        properties = found.where[names["properties"]]
        unproven |= (properties >= 0) & (_byte_after(data, properties) != BRACE_OPEN)
        for path, text in zip(self.paths, texts, strict=True):
            where = found.where[names[path[-1]]]
            kind = _byte_after(data, where)
            present = np.flatnonzero(~_booleans(text.is_null()) & (kind != QUOTE))
            if not len(present):
                continue
            if (where[present] < 0).any():
                unproven[present[where[present] < 0]] = True
                present = present[where[present] >= 0]
            values = text.take(pa.array(present))
            plain = _booleans(pc.or_(pc.ascii_is_decimal(values), pc.is_in(values, _LITERALS)))
            rest = np.flatnonzero(~plain)
            if len(rest):
                rows = present[rest]
                proven = _same_bytes(data, where[rows] + 2, values.take(pa.array(rest)))
                proven |= _is_short_number(data, where[rows] + 2)
                unproven[rows[~proven]] = True
        return unproven

    def _assemble(
        self,
        block: Block,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int32],
        table: pa.Table,
        texts: list[pa.StringArray],
        parsed: NDArray[np.bool_],
        doubtful: NDArray[np.bool_],
        oversized: NDArray[np.bool_],
    ) -> Decoded:
        view = memoryview(data)
        rejects: list[LineReject] = []
        blank = 0
        # the loops run over the lines that are broken or doubtful, not over the rows
        for row in np.flatnonzero(~parsed):
            line = bytes(view[offsets[row] : offsets[row + 1]]).rstrip(b"\n")
            if oversized[row]:
                reason = _too_long(len(line), hashlib.sha256(line).hexdigest())
            elif not line.strip():
                blank += 1
                continue
            else:
                reason = _why_not_json(line)
            rejects.append(LineReject(int(row), CORRUPT, reason, line[: self._max_raw_bytes]))
        accepted = parsed.copy()
        replaced: dict[int, list[str | None]] = {}
        duplicate_keys = 0
        sample: str | None = None
        for row in np.flatnonzero(doubtful):
            line = bytes(view[offsets[row] : offsets[row + 1]]).rstrip(b"\n")
            try:
                exact = read_exactly(line, self.paths)
            except NotAnEvent as verdict:
                accepted[row] = False
                rejects.append(LineReject(int(row), CORRUPT, str(verdict), line[: self._max_raw_bytes]))
                continue
            replaced[int(row)] = exact.texts
            if exact.duplicate_key is not None:
                duplicate_keys += 1
                sample = exact.duplicate_key if sample is None else sample
        rejects.sort()
        keys = np.column_stack((_numbers(table["k0"], np.uint64), _numbers(table["k1"], np.uint64)))
        content = _numbers(table["content"], np.uint64)
        if replaced:
            texts = _replace_rows(texts, replaced)
            rows = np.fromiter(replaced, dtype=np.int64)
            keys[rows] = self._hash_again([texts[self.paths.index(path)] for path in KEY_PATHS], rows)
        insert_id = texts[self.paths.index(KEY_PATHS[-1])]
        keys[_booleans(pc.fill_null(pc.equal(insert_id, ""), True))] = 0  # noqa: FBT003 - pyarrow's fill value
        processed = _milliseconds(texts[self.paths.index(PROCESSED_PATH)])
        rows = np.flatnonzero(accepted).astype(np.int32)
        if len(rows) < len(accepted):
            keep = pa.array(accepted)
            texts = [text.filter(keep) for text in texts]
            keys, processed, content = keys[rows], processed[rows], content[rows]
        last = len(accepted) - 1
        return Decoded(
            lines=len(accepted),
            blank=blank,
            rows=rows,
            texts=texts,
            rejects=rejects,
            keys=keys,
            processed=processed,
            content=content,
            duplicate_keys=duplicate_keys,
            duplicate_key_sample=sample,
            last_line_rejected=bool(rejects) and rejects[-1].row == last,
        )

    def rejects(
        self, block: Block | OversizedLine, decoded: Decoded, at: NDArray[np.int64], code: str, reasons: Sequence[str]
    ) -> list[LineReject]:
        """Rejects, with their raw lines, for events of `decoded` that a later step refuses; `at` are their positions."""
        assert not isinstance(block, OversizedLine)
        data = np.frombuffer(block.data, dtype=np.uint8)
        ends = np.append(np.flatnonzero(data == NEWLINE), len(data))
        rows = decoded.rows[at]
        starts = np.where(rows > 0, ends[rows - 1] + 1, 0)
        return [
            LineReject(int(row), code, reason, data[start : ends[row]][: self._max_raw_bytes].tobytes())
            for row, start, reason in zip(rows, starts, reasons, strict=True)
        ]

    def _hash_again(self, texts: list[pa.StringArray], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        at = pa.array(rows)
        self._connection.register("again", pa.table({f"c{i}": text.take(at) for i, text in enumerate(texts)}))
        names = [f"c{i}" for i in range(len(texts))]
        table = self._connection.sql(
            f"select hash({', '.join(names)}) as k0, hash({', '.join(reversed(names))}) as k1 from again"  # noqa: S608 - names made here
        ).to_arrow_table()
        self._connection.unregister("again")
        return np.column_stack((_numbers(table["k0"], np.uint64), _numbers(table["k1"], np.uint64)))

    def _nothing(self, *, lines: int, reject: LineReject) -> Decoded:
        empty = pa.array([], type=pa.string())
        return Decoded(
            lines=lines,
            blank=0,
            rows=np.zeros(0, dtype=np.int32),
            texts=[empty for _ in self.paths],
            rejects=[reject],
            keys=np.zeros((0, 2), dtype=np.uint64),
            processed=np.zeros(0, dtype=np.int64),
            content=np.zeros(0, dtype=np.uint64),
            last_line_rejected=True,
        )


class _KeyScanner:
    """Finds `"name":` for a set of names in a block, and the lines where that alone decides nothing.

    A line is doubtful when a name stands in it twice (at any depth), when white space stands between a key and its colon,
    or when an escape may spell a name. Names are told apart by their last and first eight bytes and their length, so a
    key of another name may be taken for a wanted one: the line is then read exactly, or the text is null anyway.
    """

    MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
    SHIFT = np.uint64(48)
    WORD = 8

    def __init__(self, names: set[str]) -> None:
        self.names = {name: number for number, name in enumerate(sorted(names), start=1)}
        self._any_escape = any(not name.isascii() or set(name) & set('"\\/') for name in names)
        quoted = {number: b'"' + name.encode() for name, number in self.names.items()}
        size = len(quoted) + 1
        self._lengths = np.zeros(size, dtype=np.int64)
        self._tails, self._heads = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
        self._short: list[tuple[int, np.uint64, np.uint64]] = []
        slots: dict[int, list[int]] = {}
        for number, text in quoted.items():
            self._lengths[number] = len(text)
            if len(text) < self.WORD:
                mask, code = (b"\xff" * len(text)).rjust(self.WORD, b"\0"), text.rjust(self.WORD, b"\0")
                self._short.append((number, np.uint64(_word(mask)), np.uint64(_word(code))))
                continue
            self._tails[number], self._heads[number] = _word(text[-self.WORD :]), _word(text[: self.WORD])
            slot = (_word(text[-self.WORD :]) * int(self.MULTIPLIER) & 0xFFFF_FFFF_FFFF_FFFF) >> int(self.SHIFT)
            slots.setdefault(slot, []).append(number)
        depth = max(map(len, slots.values()), default=1)
        kind = np.uint8 if size < 1 << 8 else np.uint16
        self._table = np.zeros(1 << 16, dtype=kind)
        self._others = np.zeros((depth, size), dtype=kind)
        for slot, numbers in slots.items():
            self._table[slot] = numbers[0]
            self._others[: len(numbers), numbers[0]] = numbers

    def scan(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> _Found:
        """`ends`: for each line the position of its newline, or the end of the block."""
        count = len(ends)
        doubtful = np.zeros(count, dtype=bool)
        where = np.full((len(self._lengths), count), -1, dtype=np.int64)
        found = _Found(where, doubtful)
        closing, spaced = self._closing_quotes(data)
        doubtful[np.searchsorted(ends, spaced)] = True
        self._mark_escapes(data, ends, doubtful)
        if not len(closing) or len(data) < self.WORD:
            doubtful[:] = True
            return found
        words = np.lib.stride_tricks.as_strided(data[: self.WORD].view("<u8"), (len(data) - self.WORD + 1,), (1,))
        codes = words[np.maximum(closing - self.WORD, 0)]
        for index in range(np.searchsorted(closing, self.WORD)):
            codes[index] = _word(data[: closing[index]].tobytes().rjust(self.WORD, b"\0"))
        with np.errstate(over="ignore"):
            number = self._table[(codes * self.MULTIPLIER) >> self.SHIFT]
        hits = np.flatnonzero(number)
        first = self._others[0].take(number[hits])
        position, code = closing[hits], codes[hits]
        named = np.zeros_like(first)
        for others in self._others:
            other = others.take(first)
            opening = position - self._lengths[other]
            same = (code == self._tails[other]) & (words[np.maximum(opening, 0)] == self._heads[other]) & (other > 0)
            named[same] = other[same]
        number[hits] = named
        for short, mask, code_of_short in self._short:
            number[(codes & mask) == code_of_short] = short
        hits = np.flatnonzero(number)
        line = np.repeat(np.arange(count, dtype=np.int32), np.diff(np.searchsorted(closing, ends), prepend=0))
        cell = number[hits] * np.int64(count) + line[hits]
        twice = np.bincount(cell, minlength=where.size) > 1
        if twice.any():
            doubtful |= twice.reshape(where.shape).any(axis=0)
        where.reshape(-1)[cell] = closing[hits]
        return found

    @staticmethod
    def _closing_quotes(data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        closing = []
        spaced = []
        for start in range(0, len(data), SCAN_BYTES):
            piece = data[start : start + SCAN_BYTES + 1]
            following = piece[1:]
            quote = piece[:-1] == QUOTE
            at = np.flatnonzero(quote & (following == COLON))
            at += start
            closing.append(at)
            quote &= following <= SPACE
            if quote.any():
                odd = np.flatnonzero(quote)
                odd = odd[following[odd] != NEWLINE] + start
                spaced.append(odd)
        if not closing:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(closing), np.concatenate(spaced) if spaced else np.zeros(0, dtype=np.int64)

    def _mark_escapes(self, data: NDArray[np.uint8], ends: NDArray[np.int64], doubtful: NDArray[np.bool_]) -> None:
        """An escape can spell a wanted name otherwise: `\\u0074ime`. For names of plain ASCII only `\\u00xx` can."""
        escapes = np.flatnonzero(data == BACKSLASH)
        if not len(escapes):
            return
        if not self._any_escape:
            padded = np.append(data, np.zeros(4, dtype=np.uint8))
            escapes = escapes[
                (padded[escapes + 1] == ord("u"))
                & (padded[escapes + 2] == ord("0"))
                & (padded[escapes + 3] == ord("0"))
                & (padded[escapes + 4] < ord("8"))
            ]
        doubtful[np.searchsorted(ends, escapes)] = True


class Exact(NamedTuple):
    texts: list[str | None]
    duplicate_key: str | None


class _Number(str):
    """A number's JSON text."""

    __slots__ = ()


def read_exactly(line: bytes, paths: Sequence[Path]) -> Exact:
    """The texts under `paths` of one line, every digit kept: what `Decoder` must give, in the plainest way.

    Raises NotAnEvent when the line is not a JSON object with a text under `event` and, if there is one, an object under
    `properties`.
    """
    duplicates: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            seen: set[str] = set()
            duplicates.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return built

    try:
        value = json.loads(
            line.decode(), object_pairs_hook=build, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
        if b"\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError) as error:
        raise NotAnEvent(_why_not_json(line)) from error
    if not isinstance(value, dict):
        raise NotAnEvent("The line is not a JSON object.")
    event = value.get("event")
    if not isinstance(event, str) or isinstance(event, _Number):
        raise NotAnEvent("The line has no event name.")
    if not isinstance(value.get("properties"), dict | None):
        raise NotAnEvent("properties is not an object.")
    return Exact([_text(_at(value, path)) for path in paths], duplicates[0] if duplicates else None)


def _at(value: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str(value)
    return orjson.dumps(
        value, default=lambda number: orjson.Fragment(str(number)), option=orjson.OPT_PASSTHROUGH_SUBCLASS
    ).decode()


def _why_not_json(line: bytes) -> str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"The line is not JSON: {error}."
    if isinstance(value, dict):
        return "The line has no event name."
    return "The line is not a JSON object."


def _too_long(length: int, sha256: str) -> str:
    return f"The line is too long: {length} bytes, SHA-256 {sha256}."


_LITERALS = pa.array(["true", "false"])


def _byte_after(data: NDArray[np.uint8], closing: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The first byte of the value behind each `":`, 0 where the key is absent."""
    first = data[np.minimum(np.maximum(closing, 0) + 2, len(data) - 1)]
    first[closing < 0] = 0
    return first


def _same_bytes(data: NDArray[np.uint8], starts: NDArray[np.int64], texts: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each text stands at its start, followed by the end of a value."""
    lengths = np.asarray(pc.binary_length(texts)).astype(np.int64)
    ends = starts + lengths
    same = (ends < len(data)) & (lengths > 0)
    same[same] = _ENDS_VALUE[data[ends[same]]]
    rows = np.flatnonzero(same)
    lengths = lengths[rows]
    total = int(lengths.sum())
    firsts = np.cumsum(lengths) - lengths
    at = np.arange(total) + np.repeat(starts[rows] - firsts, lengths)
    joined = np.frombuffer("".join(texts.take(pa.array(rows)).to_pylist()).encode(), dtype=np.uint8)
    differs = np.add.reduceat(data[at] != joined, firsts) if total else np.zeros(0, dtype=np.int64)
    same[rows] = differs == 0
    return same


def _is_short_number(data: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether at each start stands a decimal so short that a double gives its value back, and no exponent."""
    short = np.zeros(len(starts), dtype=bool)
    for length in range(SAFE_NUMBER_BYTES + 1):
        at = np.minimum(starts + length, len(data) - 1)
        short |= _ENDS_VALUE[data[at]]
        starts = np.where(short | _IN_DECIMAL[data[at]], starts, len(data))
    return short & (starts < len(data))


_ENDS_VALUE = np.zeros(256, dtype=bool)
_ENDS_VALUE[[COMMA, BRACE_CLOSE, BRACKET_CLOSE, SPACE, 9, 13, NEWLINE]] = True
_IN_DECIMAL = np.zeros(256, dtype=bool)
_IN_DECIMAL[[*range(48, 58), ord("."), MINUS]] = True


def _replace_rows(texts: list[pa.StringArray], rows: dict[int, list[str | None]]) -> list[pa.StringArray]:
    mask = np.zeros(len(texts[0]), dtype=bool)
    order = sorted(rows)
    mask[order] = True
    keep = pa.array(mask)
    return [
        pc.replace_with_mask(text, keep, pa.array([rows[row][column] for row in order], type=pa.string()))
        for column, text in enumerate(texts)
    ]


def _milliseconds(texts: pa.StringArray) -> NDArray[np.int64]:
    """Whole milliseconds; -1 where there is no such number."""
    whole = pc.and_(pc.ascii_is_decimal(texts), pc.less_equal(pc.binary_length(texts), 18))
    numbers = pc.cast(pc.if_else(whole, texts, "-1"), pa.int64())
    return np.asarray(pc.fill_null(numbers, -1))


def _single(column: pa.ChunkedArray) -> pa.StringArray:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _booleans(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column).astype(bool)


def _numbers(column: pa.ChunkedArray, kind: type[np.uint64]) -> NDArray[np.uint64]:
    return np.array(column, dtype=kind)


def _word(eight: bytes) -> int:
    return int.from_bytes(eight, "little")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
