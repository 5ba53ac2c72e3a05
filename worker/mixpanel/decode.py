"""From blocks of lines to columns of text: which lines are events, and what stands under the wanted paths.

DuckDB's JSON reader does the work, vectorised and without the GIL. It takes any bytes, and it refuses a block with a
line that is no JSON, no object, or has a wanted key twice: such a block is halved until the bad lines are among few,
and those few are read by `read_exactly`, which is slow, exact, and the definition of what this module does. In one
thing DuckDB is not exact where it succeeds: it passes numbers with a point or an exponent through a double. So such
values are compared with the bytes they came from, and read exactly where the two differ.

The text of a JSON value: a string's own characters; a number's JSON text; `true`, `false`; the JSON text of an object
or array; null for null and for what is absent. Of two equal keys in one object the last counts, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
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
KEY_PATHS: tuple[Path, ...] = (
    EVENT,
    ("properties", "distinct_id"),
    ("properties", "time"),
    ("properties", "$insert_id"),
)
"""Mixpanel's own key of an event (event deduplication)."""
INSERT_ID = KEY_PATHS[-1]
PROCESSED: Path = ("properties", "mp_processing_time_ms")

CORRUPT = "INGEST-1401-400"
"""Adobe's code for a row that cannot be read (batch ingestion, partial)."""

NEWLINE, QUOTE = 10, 34
EXACT_LINES = 128
"""A refused piece of so few lines is read line by line."""
FAST_LINE_BYTES = 2 << 20
"""Mixpanel's events have at most 1 MB; DuckDB sets aside twice this size for each reader."""
MAX_DECIMAL_BYTES = 40
"""Longer decimals are read exactly; so are those with an exponent."""
MAX_DEPTH = 200
"""Objects and arrays within each other, above which a line is rejected; Mixpanel takes 3 (import events)."""
BRACE, BRACKET = ord("{"), ord("[")
SKIPPED_BY_DUCKDB = (b"\xef\xbb\xbf", b"\x0b", b"\x0c")
"""A byte order mark at the start, and white space that is none in JSON; the last two stand in no text either."""
SCAN_BYTES = 1 << 17
"""What is scanned at once stays, with all that is made of it, in the processor's cache."""


class LineReject(NamedTuple):
    """A line that is no event. `row` counts from 0 within the block; `raw` may be cut to the limit."""

    row: int
    code: str
    reason: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Decoded:
    """One block, decoded.

    `texts[i]` belongs to the decoder's `paths[i]` and has one value an *event*; `rows` gives each event's line within
    the block. `lines` counts all lines, `blank` those without a character. `keys` holds 128 bits of Mixpanel's key (0
    for an event without `$insert_id`), `processed` its `mp_processing_time_ms` (-1 when there is none), `content` 64
    bits of all other texts, for a choice between duplicates that does not hang on the order of rows.
    """

    lines: int
    blank: int
    rows: NDArray[np.int64]
    texts: list[pa.StringArray]
    rejects: list[LineReject]
    keys: NDArray[np.uint64]
    processed: NDArray[np.int64]
    content: NDArray[np.uint64]
    duplicate_keys: int
    duplicate_key_sample: str | None
    last_line_rejected: bool


class NotAnEvent(Exception):  # noqa: N818 - a verdict on a line, not an error of the program
    """The line is no event; the text says why."""


class Decoder:
    """Decodes blocks for one set of paths. Not for use by two threads at once: each thread has its own.

    `paths`: what `Decoded.texts` gives, in this order: those asked for, then KEY_PATHS and PROCESSED.
    """

    def __init__(self, wanted: Sequence[Path], *, max_line_bytes: int, max_raw_bytes: int) -> None:
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys((*wanted, *KEY_PATHS, PROCESSED)))
        self._max_line_bytes = max_line_bytes
        self._max_raw_bytes = max_raw_bytes
        self._file = _BlockFile()
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": "256MB",
                # the file keeps its name and changes its content
                "enable_external_file_cache": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._hashes = self._hash_expressions()
        queries = [self._sql(layer) for layer in _layers(self.paths)]
        self._hashed = len(queries) == 1
        if self._hashed:
            queries = [f"select *, {self._hashes} from ({queries[0]})"]  # noqa: S608 - quoted above
        # bound once, for that takes as long as to read some thousand lines; each look at a relation runs it anew
        self._relations = [self._connection.sql(query) for query in queries]

    def close(self) -> None:
        self._connection.close()
        self._file.close()

    def _hash_expressions(self) -> str:
        """Three numbers a row, from its JSON texts: two for Mixpanel's key, one for all the rest."""
        keys = [f"c{self.paths.index(path)}" for path in KEY_PATHS]
        rest = [name for name in (f"c{index}" for index in range(len(self.paths))) if name not in keys]
        return f"hash({', '.join(keys)}) as h0, hash({', '.join(reversed(keys))}) as h1, hash({', '.join(rest)}) as h2"

    def _sql(self, layer: Sequence[int]) -> str:
        """The query for the JSON texts of some paths, none of which lies above another, as columns c0, c1, …"""
        tree: dict[str, Any] = {}
        for index in layer:
            node = tree
            for name in self.paths[index]:
                node = node.setdefault(name, {})
        kinds = ", ".join(f"{_identifier(name)}: {_literal(_type_of(node))}" for name, node in tree.items())
        columns = ", ".join(".".join(map(_identifier, self.paths[index])) + f"::varchar as c{index}" for index in layer)
        return (
            f"select {columns} from read_ndjson({_literal(self._file.path)}, columns = {{{kinds}}}, "  # noqa: S608 - quoted
            f"maximum_object_size = {FAST_LINE_BYTES})"
        )

    def decode(self, block: Block | OversizedLine) -> Decoded:
        """Decode whole lines. Never raises for what the lines hold."""
        if isinstance(block, OversizedLine):
            reason = _too_long(block.length, block.sha256)
            reject = LineReject(0, CORRUPT, reason, block.start[: self._max_raw_bytes])
            return self._assemble(1, [], _Careful(rejects=[reject]))
        lines = _Lines(block.data)
        careful = _Careful()
        pieces: list[_Piece] = []
        suspects = _suspects(lines, self._max_line_bytes)
        careful.lines.extend(np.flatnonzero(suspects).tolist())
        self._read(lines, np.flatnonzero(~suspects), pieces, careful)
        for line in sorted(careful.lines):
            self._read_exactly(line, lines[line], careful)
        return self._assemble(len(lines), pieces, careful)

    def _read(
        self, lines: _Lines, rows: NDArray[np.int64], pieces: list[_Piece], careful: _Careful, *, sifted: bool = False
    ) -> None:
        """Read these lines fast; those that cannot be read so are left to `careful`.

        A refused piece is first sifted of what is no JSON object, then halved until few lines are left.
        """
        if not len(rows):
            return
        table = self._try(lines.joined(rows), len(rows))
        if table is None:
            if len(rows) <= EXACT_LINES:
                careful.lines.extend(rows.tolist())
            elif not sifted:
                good = self._sift(lines, rows)
                careful.lines.extend(rows[~good].tolist())
                self._read(lines, rows[good], pieces, careful, sifted=True)
            else:
                for half in np.array_split(rows, 2):
                    self._read(lines, half, pieces, careful, sifted=True)
            return
        doubtful = np.zeros(len(rows), dtype=bool)
        texts = []
        for index, path in enumerate(self.paths):
            column = _single(table[f"c{index}"])
            text, kind = _unquoted(column)
            if path == EVENT:
                doubtful |= kind != QUOTE
            else:
                text = _with_numbers_as_written(lines, rows, path, column, kind, text, doubtful)
            texts.append(text)
        hashes = self._hashes_of(table)
        if doubtful.any():
            careful.lines.extend(rows[doubtful].tolist())
            sure = pa.array(~doubtful)
            texts = [text.filter(sure) for text in texts]
            rows, hashes = rows[~doubtful], hashes[~doubtful]
        pieces.append(_Piece(rows, texts, hashes))

    def _sift(self, lines: _Lines, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these lines are JSON objects with an object, or nothing, under `properties`."""
        joined = lines.joined(rows)
        ends = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == NEWLINE) + 1
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        offsets[1 : len(ends) + 1] = ends
        offsets[-1] = len(joined)
        texts = pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets.tobytes()), pa.py_buffer(joined))
        self._connection.register("lines", pa.table({"l": texts}))
        table = self._connection.sql(
            "select coalesce(kind[1] = 'OBJECT' and coalesce(kind[2], 'NULL') in ('OBJECT', 'NULL'), false) as good "
            "from (select try(json_type(l, ['', '/properties'])) as kind from lines)"
        ).to_arrow_table()
        self._connection.unregister("lines")
        return np.asarray(table["good"]).astype(bool)

    def _try(self, data: memoryview, count: int) -> pa.Table | None:
        """The JSON texts of `count` lines as c0, c1, … in the order of the paths, and their hashes.

        None if DuckDB refuses the lines or sees another number of them.
        """
        self._file.replace(data)
        whole: pa.Table | None = None
        for relation in self._relations:
            try:
                table = relation.to_arrow_table()
            except (duckdb.InvalidInputException, UnicodeDecodeError):  # its message may be cut within a character
                return None
            if table.num_rows != count:
                return None
            if whole is None:
                whole = table
            else:
                for name in table.column_names:
                    whole = whole.append_column(name, table[name])
        assert whole is not None
        return whole if self._hashed else self._with_hashes(whole)

    def _with_hashes(self, texts: pa.Table) -> pa.Table:
        self._connection.register("texts", texts)
        table: pa.Table = self._connection.sql(f"select *, {self._hashes} from texts").to_arrow_table()  # noqa: S608
        self._connection.unregister("texts")
        return table

    def _hashes_of(self, table: pa.Table) -> NDArray[np.uint64]:
        """The three hashes of each row; the two of the key are zero where there is no `$insert_id`."""
        hashes = np.column_stack([np.asarray(table[name]) for name in ("h0", "h1", "h2")])
        insert_id = table[f"c{self.paths.index(INSERT_ID)}"]
        without = pc.fill_null(pc.equal(insert_id, _EMPTY), _TRUE)
        hashes[np.asarray(without), :2] = 0
        return hashes

    def _read_exactly(self, line: int, raw: bytes, careful: _Careful) -> None:
        if not raw.strip():
            careful.blank += 1
            return
        kept = raw[: self._max_raw_bytes]
        if len(raw) > self._max_line_bytes:
            reason = _too_long(len(raw), hashlib.sha256(raw).hexdigest())
            careful.rejects.append(LineReject(line, CORRUPT, reason, kept))
            return
        try:
            exact = read_exactly(raw, self.paths)
        except NotAnEvent as verdict:
            careful.rejects.append(LineReject(line, CORRUPT, str(verdict), kept))
            return
        careful.rows.append(line)
        careful.found.append(exact)

    def _careful_piece(self, careful: _Careful) -> _Piece:
        """The lines that were read exactly, as a piece like the others: their hashes come from the same JSON texts."""
        texts = []
        table = pa.table({"row": pa.array(careful.rows, type=pa.int64())})
        for index in range(len(self.paths)):
            text = pa.array([exact.texts[index] for exact in careful.found], type=pa.string())
            quoted = pa.array([exact.quoted[index] for exact in careful.found], type=pa.bool_())
            texts.append(text)
            table = table.append_column(f"t{index}", text).append_column(f"q{index}", quoted)
        self._connection.register("exact", table)
        columns = ", ".join(
            f"case when q{index} then to_json(t{index})::varchar else json(t{index})::varchar end as c{index}"
            for index in range(len(self.paths))
        )
        json_texts = self._connection.sql(f"select {columns} from exact").to_arrow_table()  # noqa: S608 - names made here
        self._connection.unregister("exact")
        hashes = self._hashes_of(self._with_hashes(json_texts))
        return _Piece(np.array(careful.rows, dtype=np.int64), texts, hashes)

    def _assemble(self, lines: int, pieces: list[_Piece], careful: _Careful) -> Decoded:
        if careful.found:
            pieces = [*pieces, self._careful_piece(careful)]
        if not pieces:
            nothing = pa.array([], type=pa.string())
            pieces = [
                _Piece(np.zeros(0, dtype=np.int64), [nothing] * len(self.paths), np.zeros((0, 3), dtype=np.uint64))
            ]
        if len(pieces) == 1:
            rows, texts, hashes = pieces[0]
        else:
            order = np.argsort(np.concatenate([piece.rows for piece in pieces]), kind="stable")
            rows = np.concatenate([piece.rows for piece in pieces])[order]
            hashes = np.concatenate([piece.hashes for piece in pieces])[order]
            at = _positions(order)
            texts = [
                pa.concat_arrays([piece.texts[index] for piece in pieces]).take(at) for index in range(len(self.paths))
            ]
        rejects = sorted(careful.rejects)
        duplicates = [exact.duplicate_key for exact in careful.found if exact.duplicate_key is not None]
        return Decoded(
            lines=lines,
            blank=careful.blank,
            rows=rows,
            texts=texts,
            rejects=rejects,
            keys=hashes[:, :2],
            processed=_milliseconds(texts[self.paths.index(PROCESSED)]),
            content=hashes[:, 2],
            duplicate_keys=len(duplicates),
            duplicate_key_sample=duplicates[0] if duplicates else None,
            last_line_rejected=bool(rejects) and rejects[-1].row == lines - 1,
        )

    def rejects(
        self, block: Block | OversizedLine, rows: NDArray[np.int64], code: str, reasons: Sequence[str]
    ) -> list[LineReject]:
        """Rejects, with their raw lines, for events that a later step refuses; `rows` are their lines in the block."""
        assert isinstance(block, Block)
        lines = _Lines(block.data)
        return [
            LineReject(int(row), code, reason, lines[int(row)][: self._max_raw_bytes])
            for row, reason in zip(rows, reasons, strict=True)
        ]


class _Piece(NamedTuple):
    """Events of a block: their lines, their texts by path, their three hashes."""

    rows: NDArray[np.int64]
    texts: list[pa.StringArray]
    hashes: NDArray[np.uint64]


class _Careful:
    """The lines of a block that are read one by one, and what they turned out to be."""

    def __init__(self, rejects: Sequence[LineReject] = ()) -> None:
        self.lines: list[int] = []
        self.blank = 0
        self.rejects = list(rejects)
        self.rows: list[int] = []
        self.found: list[Exact] = []


class _Lines:
    """The lines of a block by number, without their `\n`; the last one may have none."""

    def __init__(self, data: bytes) -> None:
        self.bytes = np.frombuffer(data, dtype=np.uint8)
        self._data = data
        self._view = memoryview(data)
        self._open_end = int(self.bytes[-1] != NEWLINE)
        newlines, braces, brackets = _count(self.bytes, (NEWLINE, BRACE, BRACKET))
        self._count = newlines + self._open_end
        self.openings = braces + brackets
        """How many objects and arrays begin in all lines together."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, line: int) -> bytes:
        return self._data[self.starts[line] : self.ends[line]]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """For each line the position of its `\n`. Most blocks never need it."""
        ends = np.flatnonzero(self.bytes == NEWLINE)
        return np.append(ends, len(self.bytes)) if self._open_end else ends

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.concatenate(([0], self.ends[:-1] + 1))

    @cached_property
    def escaped(self) -> NDArray[np.bool_]:
        """Lines with a `\\u` escape, which may spell a key otherwise."""
        marked = np.zeros(len(self.ends), dtype=bool)
        at = np.flatnonzero(self.bytes[:-1] == BACKSLASH)
        marked[np.searchsorted(self.ends, at[self.bytes[at + 1] == ord("u")])] = True
        return marked

    def find(self, needle: bytes) -> list[int]:
        """The lines in which `needle` stands. That there is none is found out at the speed of memory."""
        found: list[int] = []
        if needle[:1] not in self._data:
            return found
        at = self._data.find(needle)
        while at >= 0:
            line = int(np.searchsorted(self.ends, at))
            found.append(line)
            at = self._data.find(needle, int(self.ends[line]))
        return found

    def joined(self, rows: NDArray[np.int64]) -> memoryview:
        """The bytes of these lines, each with its end; `rows` ascend."""
        if len(rows) == len(self):
            return self._view
        if rows[-1] - rows[0] == len(rows) - 1:
            return self._view[self.starts[rows[0]] : self.ends[rows[-1]] + 1]
        chosen = np.zeros(len(self), dtype=bool)
        chosen[rows] = True
        lengths = np.minimum(self.ends + 1, len(self.bytes)) - self.starts
        return memoryview(self.bytes[np.repeat(chosen, lengths)])


class _BlockFile:
    """A file in memory, where there is such a thing, that DuckDB reads by its path."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("block")
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._descriptor, self.path = tempfile.mkstemp(prefix="mixpanel-worker-block-")

    def replace(self, data: memoryview) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], written)
        # cut afterwards: the pages of the block before are written over, not given back and taken again
        os.ftruncate(self._descriptor, len(data))

    def close(self) -> None:
        os.close(self._descriptor)
        if not self.path.startswith("/proc/"):
            pathlib.Path(self.path).unlink()


class Exact(NamedTuple):
    """One event: its texts by path, which of them are JSON strings, and a wanted key that an object had twice."""

    texts: list[str | None]
    quoted: list[bool]
    duplicate_key: str | None


class _Number(str):
    """A number's JSON text."""

    __slots__ = ()


class _Object(list[tuple[str, Any]]):
    """The members of an object in their order, equal keys and all."""

    def get(self, name: str) -> Any:  # noqa: ANN401 - any JSON
        """The last member of this name, or None."""
        return next((value for key, value in reversed(self) if key == name), None)


def read_exactly(line: bytes, paths: Sequence[Path]) -> Exact:
    """The texts under `paths` of one line, every digit kept: what `Decoder` must give, in the plainest way.

    JSON as DuckDB takes it: with NaN and Infinity, in any case, and one comma too many at an end. Raises NotAnEvent
    when the line is not a JSON object with a text under `event` and, if there is one, an object under `properties`.
    """
    try:
        value = _loads(line)
    except ValueError as error:
        raise NotAnEvent(_why_not_json(line)) from error
    if not isinstance(value, _Object):
        raise NotAnEvent("The line is not a JSON object.")
    event = value.get("event")
    if not isinstance(event, str) or isinstance(event, _Number):
        raise NotAnEvent("The line has no event name.")
    if not isinstance(value.get("properties"), _Object | None):
        raise NotAnEvent("properties is not an object.")
    found = [_at(value, path) for path in paths]
    quoted = [isinstance(item, str) and not isinstance(item, _Number) for item in found]
    wanted = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    return Exact([_text(item) for item in found], quoted, _twice(value, (), wanted))


def _loads(line: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Raises ValueError for what is no JSON, is nested too deep, or holds half a surrogate pair."""
    text = line.decode()
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"objects and arrays are more than {MAX_DEPTH} deep within each other")
    constants: dict[str, str] = {}

    def number(digits: str) -> _Number:
        return _Number(constants.get(digits, digits))

    def parse(json_text: str) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(
            json_text,
            object_pairs_hook=_Object,
            parse_int=lambda digits: _Number("0" if digits == "-0" else digits),
            parse_float=number,
            parse_constant=_Number,
        )

    try:
        value = parse(text)
    except ValueError:
        value = parse(_without_leniencies(text, constants))
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


_TOKENS = re.compile(
    r'"(?:[^"\\]|\\.)*"'  # a text, in which the others mean nothing
    r"|(?<![\w.+-])-?(?:infinity|inf|nan)(?![\w.+-])"
    r"|,(?=[ \t\r\n]*[}\]])",
    re.IGNORECASE | re.DOTALL,
)


def _without_leniencies(text: str, constants: dict[str, str]) -> str:
    """Strict JSON for `text`: constants become numbers that nobody writes, told in `constants`."""

    def mend(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith('"'):
            return found
        if found == ",":
            before = text[: match.start()].rstrip(" \t\r\n")
            return found if before.endswith(("{", "[", ",", ":")) else ""
        digits = f"9e{10**9 + len(constants)}"
        constants[digits] = found
        return digits

    return _TOKENS.sub(mend, text)


def _depth(text: str) -> int:
    """How deep objects and arrays lie within each other."""
    deepest = depth = 0
    for sign in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL)):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _at(value: Any, path: Path) -> Any:  # noqa: ANN401 - any JSON
    for name in path:
        if not isinstance(value, _Object):
            return None
        value = value.get(name)
    return value


def _twice(value: Any, path: Path, wanted: set[Path]) -> str | None:  # noqa: ANN401 - any JSON
    """The first wanted key that an object on the way to a wanted value has twice."""
    if not isinstance(value, _Object):
        return None
    seen: set[str] = set()
    for key, inner in value:
        below = (*path, key)
        if below not in wanted:
            continue
        if key in seen:
            return key
        seen.add(key)
        if (deeper := _twice(inner, below, wanted)) is not None:
            return deeper
    return None


def _text(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str(value)
    return _json_text(value)


def _json_text(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Compact JSON, as DuckDB writes it, with numbers and equal keys as they came."""
    if isinstance(value, _Object):
        return "{" + ",".join(f"{_json_text(key)}:{_json_text(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json_text, value)) + "]"
    if isinstance(value, _Number):
        return str(value)
    written = orjson.dumps(value).decode()
    return re.sub(r"\\u00[0-9a-f]{2}", lambda escape: "\\u" + escape[0][2:].upper(), written)


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


def _layers(paths: Sequence[Path]) -> list[list[int]]:
    """Numbers of paths, split so that one query can read a layer as one tree.

    Within a layer no path lies above another, and no two names of one object are equal but for case: DuckDB's structs
    do not tell those apart.
    """
    layers: list[list[int]] = []
    for index, path in enumerate(paths):
        for layer in layers:
            if not any(_clash(path, paths[other]) for other in layer):
                layer.append(index)
                break
        else:
            layers.append([index])
    return layers


def _clash(one: Path, other: Path) -> bool:
    for name, another in zip(one, other, strict=False):
        if name != another:
            return name.casefold() == another.casefold()
    return True


def _type_of(node: dict[str, Any]) -> str:
    """The DuckDB type that reads a tree of wanted keys."""
    if not node:
        return "JSON"
    return "STRUCT(" + ", ".join(f"{_identifier(name)} {_type_of(inner)}" for name, inner in node.items()) + ")"


def _unquoted(column: pa.StringArray) -> tuple[pa.StringArray, NDArray[np.uint8]]:
    """Texts from JSON texts, and the first byte of each JSON text, 0 for null."""
    count = len(column)
    if column.null_count == count:
        return column, np.zeros(count, dtype=np.uint8)
    offsets, data = _bytes_of(column)
    kind = data[np.minimum(offsets[:-1], len(data) - 1)]
    kind[offsets[:-1] == offsets[1:]] = 0
    quoted = kind == QUOTE
    if not quoted.any():
        return column, kind
    text = pc.binary_slice(column.cast(pa.binary()), 1, -1).view(pa.string())
    escapes = np.flatnonzero(data[offsets[0] : offsets[-1]] == BACKSLASH)
    if len(escapes):
        rows = np.unique(np.searchsorted(offsets, escapes + offsets[0], side="right") - 1)
        rows = rows[quoted[rows]]
        mask = np.zeros(count, dtype=bool)
        mask[rows] = True
        escaped = column.take(_positions(rows)).to_pylist()
        values = orjson.loads("[" + ",".join(text for text in escaped if text is not None) + "]")
        text = pc.replace_with_mask(text, pa.array(mask), pa.array(values, type=pa.string()))
    if quoted.sum() + column.null_count < count:
        text = pc.if_else(pa.array(quoted), text, column)
    assert isinstance(text, pa.StringArray)
    return text, kind


def _suspects(lines: _Lines, max_line_bytes: int) -> NDArray[np.bool_]:
    """Lines on which DuckDB and JSON differ, or may: they are read exactly, whatever stands beside them.

    That is: a byte order mark or a form feed, which DuckDB skips; nesting that may be too deep; a line too long.
    """
    suspects = np.zeros(len(lines), dtype=bool)
    for needle in SKIPPED_BY_DUCKDB:
        suspects[lines.find(needle)] = True
    # an event has two objects: only where there are many more can a line be deep
    if lines.openings > 2 * len(lines) + MAX_DEPTH:
        at = np.flatnonzero((lines.bytes == BRACE) | (lines.bytes == BRACKET))
        suspects |= np.bincount(np.searchsorted(lines.ends, at), minlength=len(lines)) > MAX_DEPTH
    if max_line_bytes < FAST_LINE_BYTES:
        suspects |= lines.ends - lines.starts > max_line_bytes
    return suspects


def _with_numbers_as_written(
    lines: _Lines,
    rows: NDArray[np.int64],
    path: Path,
    column: pa.StringArray,
    kind: NDArray[np.uint8],
    text: pa.StringArray,
    doubtful: NDArray[np.bool_],
) -> pa.StringArray:
    """`text`, with every number as its line has it. Rows of which that is not certain become doubtful.

    Only numbers beyond integers, objects and arrays can differ. Where the path's last key stands once in the line and
    the same bytes, or a plain decimal, stand behind it, that is what the line says.
    """
    unquoted = kind != QUOTE
    if column.null_count == len(column) or not unquoted.any():
        return text
    digits = pc.fill_null(pc.ascii_is_decimal(column), _TRUE)
    at = np.flatnonzero(unquoted & ~np.asarray(digits))
    values = column.take(_positions(at))
    inexact = np.flatnonzero(~np.asarray(pc.is_in(values, _LITERALS)))
    if not len(inexact):
        return text
    at, values = at[inexact], values.take(_positions(inexact))
    starts = _values_of(lines, rows[at], path[-1])
    certain = (starts >= 0) & ~lines.escaped[rows[at]]
    doubtful[at[~certain]] = True
    at, starts, values = at[certain], starts[certain], values.filter(pa.array(certain))
    different = np.flatnonzero(~_same_bytes(lines.bytes, starts, values))
    if not len(different):
        return text
    at, starts = at[different], starts[different]
    lengths = _decimal_lengths(lines.bytes, starts)
    doubtful[at[lengths == 0]] = True
    at, starts, lengths = at[lengths > 0], starts[lengths > 0], lengths[lengths > 0]
    mask = np.zeros(len(text), dtype=bool)
    mask[at] = True
    written = pc.replace_with_mask(text, pa.array(mask), _slices(lines.bytes, starts, lengths))
    assert isinstance(written, pa.StringArray)
    return written


def _values_of(lines: _Lines, rows: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Where the value of `"name":` starts in each of these lines; -1 where that does not stand in it just once."""
    needle = f'"{name}":'.encode()
    word = needle[-8:]
    code, mask = np.uint64(_word(word.rjust(8, b"\0"))), np.uint64(_word((b"\xff" * len(word)).rjust(8, b"\0")))
    starts = np.full(len(rows), -1, dtype=np.int64)
    times = np.zeros(len(rows), dtype=np.int64)
    gap = len(needle)
    data = lines.bytes
    begin = 0
    while begin < len(rows):
        # the wanted lines that lie within one piece; what lies between them is scanned too
        base = max(int(lines.starts[rows[begin]]) - 8, 0)
        end = max(int(np.searchsorted(lines.ends[rows], base + SCAN_BYTES)), begin + 1)
        piece = data[base : int(lines.ends[rows[end - 1]])]
        words = np.lib.stride_tricks.as_strided(piece[:8].view("<u8"), (len(piece) - 7,), (1,))
        at = np.flatnonzero((words & mask) == code) + base + 8
        row = np.searchsorted(lines.ends[rows[begin:end]], at) + begin
        inside = (row < end) & (at - gap >= lines.starts[rows[np.minimum(row, end - 1)]])
        at, row = at[inside], row[inside]
        if gap > len(word) and len(at):
            head = data[(at - gap)[:, None] + np.arange(gap - len(word))]
            whole = (head == np.frombuffer(needle[: -len(word)], dtype=np.uint8)).all(axis=1)
            at, row = at[whole], row[whole]
        np.add.at(times, row, 1)
        starts[row] = at
        begin = end
    starts[times != 1] = -1
    return starts


def _same_bytes(data: NDArray[np.uint8], starts: NDArray[np.int64], texts: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each text stands at its start, followed by the end of a value."""
    offsets, text = _bytes_of(texts)
    lengths = np.diff(offsets).astype(np.int64)
    ends = starts + lengths
    same = (ends < len(data)) & (lengths > 0)
    same[same] = _ENDS_VALUE[data[ends[same]]]
    rows = np.flatnonzero(same)
    if not len(rows):
        return same
    lengths = lengths[rows]
    firsts = np.cumsum(lengths) - lengths
    every = np.arange(int(lengths.sum()))
    differs = (
        data[every + np.repeat(starts[rows] - firsts, lengths)]
        != text[every + np.repeat(offsets[rows] - firsts, lengths)]
    )
    same[rows] = np.add.reduceat(differs, firsts) == 0
    return same


def _decimal_lengths(data: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The length of the decimal at each start, 0 where none of moderate length stands there, or an exponent does."""
    lengths = np.zeros(len(starts), dtype=np.int64)
    open_ended = np.ones(len(starts), dtype=bool)
    for length in range(MAX_DECIMAL_BYTES + 1):
        byte = data[np.minimum(starts + length, len(data) - 1)]
        lengths[open_ended & _ENDS_VALUE[byte]] = length
        open_ended &= _IN_DECIMAL[byte]
        if not open_ended.any():
            break
    return lengths


def _slices(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> pa.StringArray:
    """The texts of these lengths at these starts."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    at = np.arange(int(offsets[-1])) + np.repeat(starts - offsets[:-1], lengths)
    buffers = (pa.py_buffer(offsets.astype(np.int32).tobytes()), pa.py_buffer(data[at].tobytes()))
    return pa.StringArray.from_buffers(len(starts), *buffers)


BACKSLASH = ord("\\")
# made once: making a scalar looks for an optional package each time
_TRUE = pa.scalar(value=True)
_EMPTY = pa.scalar('""')
_LONGEST_DIGITS = pa.scalar(18)
_NO_NUMBER = pa.scalar("-1")
_NO_MILLISECONDS = pa.scalar(-1)
_LITERALS = pa.array(["true", "false"])
_ENDS_VALUE = np.zeros(256, dtype=bool)
_ENDS_VALUE[list(b",}] \t\r\n")] = True
_IN_DECIMAL = np.zeros(256, dtype=bool)
_IN_DECIMAL[list(b"0123456789.-")] = True


def _milliseconds(texts: pa.StringArray) -> NDArray[np.int64]:
    """Whole milliseconds; -1 where there is no such number."""
    whole = pc.and_(pc.ascii_is_decimal(texts), pc.less_equal(pc.binary_length(texts), _LONGEST_DIGITS))
    numbers = pc.cast(pc.if_else(whole, texts, _NO_NUMBER), pa.int64())
    return np.asarray(pc.fill_null(numbers, _NO_MILLISECONDS))


def _bytes_of(texts: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The offsets and the bytes of an array, without a copy."""
    _, offsets, data = texts.buffers()
    assert offsets is not None
    ends = np.frombuffer(memoryview(offsets), dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return ends, np.zeros(0, dtype=np.uint8) if data is None else np.frombuffer(memoryview(data), dtype=np.uint8)


def _positions(numbers: NDArray[np.int64]) -> pa.Int64Array:
    return pa.array(numbers, type=pa.int64())


def _single(column: pa.ChunkedArray[Any]) -> Any:  # noqa: ANN401 - the type of the column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _count(data: NDArray[np.uint8], values: Sequence[int]) -> list[int]:
    """How often each byte value occurs; in pieces that stay in the processor's cache."""
    counts = [0] * len(values)
    same = np.empty(SCAN_BYTES, dtype=bool)
    for start in range(0, len(data), SCAN_BYTES):
        piece = data[start : start + SCAN_BYTES]
        found = same[: len(piece)]
        for index, value in enumerate(values):
            np.equal(piece, value, out=found)
            counts[index] += int(np.count_nonzero(found))
    return counts


def _word(eight: bytes) -> int:
    return int.from_bytes(eight, "little")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
