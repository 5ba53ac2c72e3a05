"""From lines to columns of text: which lines are events, and what stands under the wanted paths.

DuckDB's JSON reader does the work, vectorised and without the GIL, on a file of lines whose rows it hands out as it
goes. It takes any bytes, and it stops at a line that is no JSON, no object, or has a wanted key twice. Such a file is
then taken from its start, in blocks; a refused block is halved until the bad lines are among few, and those few are
read by `read_exactly`, which is slow, exact, and the definition of what this module does.

In one thing DuckDB is not exact where it succeeds: it passes numbers with a point or an exponent through a double. So a
column is first read as text, which is fastest, and that will do for as long as no text could be such a number, or an
object or array that holds one. From the first one on the column is read as JSON, which tells numbers from strings, and
such values are compared with the bytes they came from, and read exactly where the two differ.

The text of a JSON value: a string's own characters; a number's JSON text; `true`, `false`; the JSON text of an object
or array; null for null and for what is absent. Of two equal keys in one object the last counts, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import duckdb
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from worker import duck
from worker.mixpanel.body import Block, OversizedLine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from worker.mixpanel.body import Piece

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
STREAM_ROWS = 32_768
"""Rows that are handed on together: each step of the work on them costs something, however many they are."""
READ_BYTES = 1 << 20
LOOK_BYTES = 1 << 15
"""So few bytes of usual events have not as many objects as one line may have, which spares a look at each line."""
LOOKED_AT_BYTES = 3
"""So many bytes of a key leave few places where it does not stand; each costs a look at all bytes."""
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
    """Some lines, decoded.

    `texts[i]` belongs to the decoder's `paths[i]` and has one value an *event*; `kinds[i]` has the first byte of each
    value's JSON, 0 for null, where kinds were asked for, else it is None. `rows` gives each event's line, counted from
    0. `lines` counts all lines, `blank` those without a character. `keys` holds 128 bits of Mixpanel's key
    (0 for an event without `$insert_id`), `processed` its `mp_processing_time_ms` (-1 when there is none).

    `raw` gives the lines themselves; to be called before more is decoded.
    """

    lines: int
    blank: int
    rows: NDArray[np.int64]
    texts: list[pa.StringArray]
    kinds: list[NDArray[np.uint8] | None]
    rejects: list[LineReject]
    keys: NDArray[np.uint64]
    processed: NDArray[np.int64]
    duplicate_keys: int
    duplicate_key_sample: str | None
    last_line_rejected: bool
    raw: Callable[[], RawLines]

    def refused(
        self, positions: NDArray[np.int64], code: str, reasons: Sequence[str], max_raw_bytes: int
    ) -> list[LineReject]:
        """Rejects, with their raw lines, for events that a later step refuses."""
        lines = self.raw()
        return [
            LineReject(int(row), code, reason, lines[int(row)][:max_raw_bytes])
            for row, reason in zip(self.rows[positions], reasons, strict=True)
        ]


class NotAnEvent(Exception):  # noqa: N818 - a verdict on a line, not an error of the program
    """The line is no event; the text says why."""


class NotPlainError(Exception):
    """What was decoded of a piece is void: it must be decoded in blocks."""


class _Refused(Exception):  # noqa: N818 - an answer, not an error of the program
    """DuckDB does not read these lines, or not so many of them at once."""


class _KindsChanged(Exception):  # noqa: N818 - an answer, not an error of the program
    """More columns than before must be read as JSON."""


class Decoder:
    """Decodes lines for one set of paths. Not for use by two threads at once: each thread has its own.

    `paths`: what `Decoded.texts` gives, in this order: those asked for, then KEY_PATHS and PROCESSED. `kinds_of`: those
    of which it must be told what JSON the texts were. `rounded`: those of them whose numbers need only be right to the
    precision of a double, which saves to look them up in the lines; not so the keys.
    """

    def __init__(
        self,
        wanted: Sequence[Path],
        *,
        max_line_bytes: int,
        max_raw_bytes: int,
        kinds_of: Collection[Path] = (),
        rounded: Collection[Path] = (),
    ) -> None:
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys((*wanted, *KEY_PATHS, PROCESSED)))
        self._with_kinds = [path in kinds_of for path in self.paths]
        self._rounded = [path in rounded and path not in (*KEY_PATHS, PROCESSED) for path in self.paths]
        self._event = self.paths.index(EVENT)
        self._keys = [self.paths.index(path) for path in KEY_PATHS]
        self._max_line_bytes = max_line_bytes
        self._max_raw_bytes = max_raw_bytes
        self._block = _BlockFile()
        self._connection = duck.cursor()
        self._layers = _layers(self.paths)
        # rows of several streams are read side by side, and a cursor has one
        self._cursors = [duck.cursor() for _ in self._layers]
        self._json: set[int] = set(np.flatnonzero(self._with_kinds).tolist())
        """The columns that are read as JSON, by position in `paths`; the others are read as text."""
        self._relations: dict[str, list[duckdb.DuckDBPyRelation]] = {}

    def close(self) -> None:
        for cursor in (self._connection, *self._cursors):
            cursor.close()
        self._block.close()

    def decode(self, block: Block | OversizedLine) -> Decoded:
        """Decode whole lines. Never raises for what the lines hold."""
        if isinstance(block, OversizedLine):
            reason = _too_long(block.length, block.sha256)
            reject = LineReject(0, CORRUPT, reason, block.start[: self._max_raw_bytes])
            return self._assemble(1, [], _Careful(rejects=[reject]), lambda: [block.start])
        lines = _Lines(block.data)
        careful = _Careful()
        parts: list[_Part] = []
        suspects = _suspects(lines, self._max_line_bytes)
        careful.lines.extend(np.flatnonzero(suspects).tolist())
        self._read(lines, np.flatnonzero(~suspects), parts, careful)
        return self._assemble(len(lines), parts, careful, lambda: lines)

    def decode_piece(self, piece: Piece) -> Generator[Decoded, None, None]:
        """Decode a plain piece, some thousand lines at a time: the same as `decode` gives for its lines.

        Raises NotPlainError at a line that DuckDB does not read, or at the end when it skipped one. To be closed by who
        leaves it before its end: until then nothing else can be decoded.
        """
        given = 0
        with piece.path.open("rb") as file:
            reader = _LineReader(file)
            while True:
                try:
                    with contextlib.closing(self._stream(str(piece.path), given)) as batches:
                        for batch in batches:
                            count = batch.num_rows
                            lines = cache(partial(reader.lines, given, count))
                            careful = _Careful()
                            part = self._part(batch, np.arange(count), lines, careful)
                            given += count
                            yield self._assemble(count, [part], careful, lines)
                    break
                except _KindsChanged:
                    continue
                except _Refused as error:
                    raise NotPlainError from error
        if given != piece.lines:
            raise NotPlainError

    def decode_blocks(self, piece: Piece, block_bytes: int) -> Iterator[Decoded]:
        """Decode any piece, about `block_bytes` at a time. Never raises for what the lines hold."""
        with piece.path.open("rb") as file:
            while data := file.read(block_bytes):
                yield self.decode(Block(data if data.endswith(b"\n") else data + file.readline()))

    def _read(
        self, lines: _Lines, rows: NDArray[np.int64], parts: list[_Part], careful: _Careful, *, sifted: bool = False
    ) -> None:
        """Read these lines fast; those that cannot be read so are left to `careful`.

        A refused part is first sifted of what is no JSON object, then halved until few lines are left.
        """
        if not len(rows):
            return
        try:
            parts.append(self._read_at_once(lines, rows, careful))
        except _Refused:
            if len(rows) <= EXACT_LINES:
                careful.lines.extend(rows.tolist())
            elif not sifted:
                good = self._sift(lines, rows)
                careful.lines.extend(rows[~good].tolist())
                self._read(lines, rows[good], parts, careful, sifted=True)
            else:
                for half in np.array_split(rows, 2):
                    self._read(lines, half, parts, careful, sifted=True)

    def _read_at_once(self, lines: _Lines, rows: NDArray[np.int64], careful: _Careful) -> _Part:
        self._block.replace(lines.joined(rows))
        while True:
            batches = list(self._stream(self._block.path, 0))
            if sum(batch.num_rows for batch in batches) != len(rows):
                raise _Refused
            try:
                return self._part(_joined(batches), rows, lambda: lines, careful)
            except _KindsChanged:
                continue

    def _part(
        self, batch: pa.RecordBatch, rows: NDArray[np.int64], lines: Callable[[], _Lines], careful: _Careful
    ) -> _Part:
        """Texts and keys of rows as DuckDB read them; rows of which something is not certain are left to `careful`.

        Raises _KindsChanged when a column that was read as text may hold something else.
        """
        changed = {
            index
            for index in range(len(self.paths))
            if index not in self._json and _may_not_be_text(batch.column(index), event=index == self._event)
        }
        if changed:
            self._json |= changed
            self._relations.clear()
            raise _KindsChanged
        doubtful = np.zeros(len(rows), dtype=bool)
        texts: list[pa.StringArray] = []
        kinds: list[NDArray[np.uint8] | None] = [None] * len(self.paths)
        for index, path in enumerate(self.paths):
            text: Any = batch.column(index)
            if index in self._json:
                column = text
                text, kind = _unquoted(column)
                if self._with_kinds[index]:
                    kinds[index] = kind
                if index == self._event:
                    doubtful |= kind != QUOTE
                elif not self._rounded[index]:
                    text = _with_numbers_as_written(lines, rows, path, column, kind, text, doubtful)
            elif index == self._event and text.null_count:
                doubtful |= np.asarray(text.is_null())
            texts.append(text)
        keys = self._keys_of(texts, batch if self._hashes_are_read else None)
        if doubtful.any():
            careful.lines.extend(rows[doubtful].tolist())
            sure = pa.array(~doubtful)
            texts = [text.filter(sure) for text in texts]
            kinds = [None if kind is None else kind[~doubtful] for kind in kinds]
            rows, keys = rows[~doubtful], keys[~doubtful]
        return _Part(rows, texts, kinds, keys)

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

    # Queries

    @property
    def _hashes_are_read(self) -> bool:
        """Whether the hashes of the key come with the rows: all its columns are read at once, and as text."""
        return len(self._layers) == 1 and self._json.isdisjoint(self._keys)

    def _bound(self, path: str) -> list[duckdb.DuckDBPyRelation]:
        """The query of each layer for a file; each look at such a relation runs it anew.

        Binding takes as long as reading some thousand lines, and the files that are read are few.
        """
        if path not in self._relations:
            self._relations[path] = [
                cursor.sql(self._sql(path, layer)) for cursor, layer in zip(self._cursors, self._layers, strict=True)
            ]
        return self._relations[path]

    def _stream(self, path: str, skipped: int) -> Generator[pa.RecordBatch, None, None]:
        """The rows from row `skipped` on: the columns in the order of the paths, and the hashes if they are read.

        Raises _Refused at a line that is no row.
        """
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(_opened(relation)) for relation in self._bound(path)]
            while (batch := self._side_by_side([_next(reader) for reader in readers])) is not None:
                if skipped >= batch.num_rows:
                    skipped -= batch.num_rows
                    continue
                yield batch.slice(skipped)
                skipped = 0

    def _side_by_side(self, batches: Sequence[pa.RecordBatch | None]) -> pa.RecordBatch | None:
        """The columns of all layers as one batch. Raises _Refused when they have not as many rows."""
        if len(batches) == 1:
            return batches[0]
        if all(batch is None for batch in batches):
            return None
        columns: list[Any] = [None] * len(self.paths)
        for batch, layer in zip(batches, self._layers, strict=True):
            for position, index in enumerate(layer):
                columns[index] = None if batch is None else batch.column(position)
        if len({len(column) if column is not None else -1 for column in columns}) != 1:
            raise _Refused
        return pa.RecordBatch.from_arrays(columns, names=[f"c{index}" for index in range(len(columns))])

    def _sql(self, path: str, layer: Sequence[int]) -> str:
        """The query for some paths, none of which lies above another, and for the hashes, if they are read."""
        tree: dict[str, Any] = {}
        for index in layer:
            node = tree
            for name in self.paths[index][:-1]:
                node = node.setdefault(name, {})
            node[self.paths[index][-1]] = "JSON" if index in self._json else "VARCHAR"
        kinds = ", ".join(f"{_identifier(name)}: {_literal(_type_of(node))}" for name, node in tree.items())
        columns = [".".join(map(_identifier, self.paths[index])) + f"::varchar as c{index}" for index in layer]
        # were it not told that lines are records, it would look into the file for that where one column is wanted
        read = (
            f"select {', '.join(columns)} from read_ndjson({_literal(path)}, columns = {{{kinds}}}, "  # noqa: S608 - quoted
            f"records = true, maximum_object_size = {FAST_LINE_BYTES})"
        )
        return f"select *, {self._hashes()} from ({read})" if self._hashes_are_read else read  # noqa: S608 - quoted

    def _hashes(self) -> str:
        """Two numbers a row that stand for Mixpanel's key."""
        keys = [f"c{index}" for index in self._keys]
        return f"hash({', '.join(keys)}) as h0, hash({', '.join(reversed(keys))}) as h1"

    def _keys_of(self, texts: Sequence[pa.StringArray], read: pa.RecordBatch | None) -> NDArray[np.uint64]:
        """The two hashes of each row, zero where there is no `$insert_id`; those that were read, or made here."""
        hashed: Any = read
        if hashed is None:
            named = {f"c{index}": texts[index] for index in self._keys}
            self._connection.register("texts", pa.table(named))
            hashed = self._connection.sql(f"select {self._hashes()} from texts").to_arrow_table()  # noqa: S608 - names made here
            self._connection.unregister("texts")
        keys = np.column_stack([np.asarray(hashed.column(name)) for name in ("h0", "h1")])
        without = pc.fill_null(pc.equal(texts[self._keys[-1]], _EMPTY), _TRUE)
        keys[np.asarray(without)] = 0
        return keys

    def _wanted_kinds(self, kinds: Callable[[int], NDArray[np.uint8]]) -> list[NDArray[np.uint8] | None]:
        return [kinds(index) if wanted else None for index, wanted in enumerate(self._with_kinds)]

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

    def _assemble(self, count: int, parts: list[_Part], careful: _Careful, lines: Callable[[], RawLines]) -> Decoded:
        for line in sorted(careful.lines):
            self._read_exactly(line, lines()[line], careful)
        if careful.found:
            exact = [
                pa.array([found.texts[index] for found in careful.found], type=pa.string())
                for index in range(len(self.paths))
            ]
            kinds = self._wanted_kinds(
                lambda index: np.array([found.kinds[index] for found in careful.found], dtype=np.uint8)
            )
            parts = [*parts, _Part(np.array(careful.rows, dtype=np.int64), exact, kinds, self._keys_of(exact, None))]
        if not parts:
            nothing = pa.array([], type=pa.string())
            kinds = self._wanted_kinds(lambda _: np.zeros(0, dtype=np.uint8))
            keys = np.zeros((0, 2), dtype=np.uint64)
            parts = [_Part(np.zeros(0, dtype=np.int64), [nothing] * len(self.paths), kinds, keys)]
        if len(parts) == 1:
            rows, texts, kinds, keys = parts[0]
        else:
            order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
            rows = np.concatenate([part.rows for part in parts])[order]
            keys = np.concatenate([part.keys for part in parts])[order]
            at = _positions(order)
            texts = [
                pa.concat_arrays([part.texts[index] for part in parts]).take(at) for index in range(len(self.paths))
            ]
            kinds = self._wanted_kinds(lambda index: np.concatenate([part.kinds[index] for part in parts])[order])
        rejects = sorted(careful.rejects)
        duplicates = [exact.duplicate_key for exact in careful.found if exact.duplicate_key is not None]
        return Decoded(
            lines=count,
            blank=careful.blank,
            rows=rows,
            texts=texts,
            kinds=kinds,
            rejects=rejects,
            keys=keys,
            processed=_milliseconds(texts[self.paths.index(PROCESSED)]),
            duplicate_keys=len(duplicates),
            duplicate_key_sample=duplicates[0] if duplicates else None,
            last_line_rejected=bool(rejects) and rejects[-1].row == count - 1,
            raw=lines,
        )


class _Part(NamedTuple):
    """Some events: their lines, their texts and kinds by path, the two hashes of their keys."""

    rows: NDArray[np.int64]
    texts: list[pa.StringArray]
    kinds: list[NDArray[np.uint8] | None]
    keys: NDArray[np.uint64]


class _Careful:
    """The lines of a block that are read one by one, and what they turned out to be."""

    def __init__(self, rejects: Sequence[LineReject] = ()) -> None:
        self.lines: list[int] = []
        self.blank = 0
        self.rejects = list(rejects)
        self.rows: list[int] = []
        self.found: list[Exact] = []


class _Lines:
    """The lines of a block by number, without their `\n`; the last one may have none.

    `newlines`: where they are, if that is known.
    """

    def __init__(self, data: bytes, newlines: NDArray[np.int64] | None = None) -> None:
        self.bytes = np.frombuffer(data, dtype=np.uint8)
        self._data = data
        self._view = memoryview(data)
        self._newlines = newlines
        self._open_end = int(self.bytes[-1] != NEWLINE)
        self._count = (_count(self.bytes, NEWLINE) if newlines is None else len(newlines)) + self._open_end

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, line: int) -> bytes:
        return self._data[self.starts[line] : self.ends[line]]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """For each line the position of its `\n`. Most blocks never need it."""
        ends = self._newlines if self._newlines is not None else np.flatnonzero(self.bytes == NEWLINE)
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


RawLines = _Lines | list[bytes]


class _LineReader:
    """The lines of a file by number, asked for in ascending order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._known = [(0, 0)]
        """Lines, and where they start."""

    def lines(self, first: int, count: int) -> _Lines:
        """`count` lines from line `first` on, which is not before the first one of the call before."""
        line, at = max(known for known in self._known if known[0] <= first)
        while line < first:
            data, newlines = self._read(at, first - line)
            if not data:  # there are fewer lines than DuckDB has given rows
                raise _Refused
            line, at = line + len(newlines), at + len(data)
        self._known = [(line, at)]
        parts: list[bytes] = []
        ends = [np.zeros(0, dtype=np.int64)]
        size = 0
        while line < first + count:
            data, newlines = self._read(at + size, first + count - line)
            if not data:
                break
            parts.append(data)
            ends.append(newlines + size)
            line, size = line + len(newlines), size + len(data)
        if line == first + count:
            self._known.append((line, at + size))
        return _Lines(b"".join(parts), np.concatenate(ends))

    def _read(self, at: int, lines: int) -> tuple[bytes, NDArray[np.int64]]:
        """Some bytes of the next `lines` lines, and where in these lines end."""
        self._file.seek(at)
        data = self._file.read(READ_BYTES)
        newlines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == NEWLINE)[:lines]
        return (data if len(newlines) < lines else data[: int(newlines[-1]) + 1]), newlines


class _BlockFile:
    """A file that DuckDB reads by its path: in memory, where such a file has one."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("block")
            self.path = f"/proc/self/fd/{self._descriptor}"
            if os.access(self.path, os.R_OK):
                return
            # a root folder of its own, without /proc
            os.close(self._descriptor)
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
    """One event: its texts by path, the first byte of each value's JSON, and a wanted key that an object had twice."""

    texts: list[str | None]
    kinds: list[int]
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
    wanted = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    texts = [_text(item) for item in found]
    kinds = [_kind(item, text) for item, text in zip(found, texts, strict=True)]
    return Exact(texts, kinds, _twice(value, (), wanted))


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


def _kind(value: Any, text: str | None) -> int:  # noqa: ANN401 - any JSON
    if text is None:
        return 0
    return QUOTE if isinstance(value, str) and not isinstance(value, _Number) else ord(text[0])


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
        return f"Objects and arrays are more than {MAX_DEPTH} deep within each other."
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


def _type_of(node: dict[str, Any] | str) -> str:
    """The DuckDB type that reads a tree of wanted keys with the types of the values."""
    if isinstance(node, str):
        return node
    return "STRUCT(" + ", ".join(f"{_identifier(name)} {_type_of(inner)}" for name, inner in node.items()) + ")"


def _opened(relation: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    try:
        reader: pa.RecordBatchReader = relation.to_arrow_reader(STREAM_ROWS)
    except (duckdb.InvalidInputException, UnicodeDecodeError) as error:  # its message may be cut within a character
        raise _Refused from error
    except duckdb.OutOfMemoryException as error:  # fewer lines need less
        raise _Refused from error
    return reader


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except UnicodeDecodeError as error:
        raise _Refused from error
    except (OSError, pa.ArrowException) as error:
        # Arrow's stream passes the text of an error on, not its class
        if "Invalid Input Error" in str(error) or "Out of Memory Error" in str(error):
            raise _Refused from error
        raise


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


_NUMBER = r"(?i)^-?(\d+(\.\d+(e[+-]?\d+)?|e[+-]?\d+)|inf(inity)?|nan)$"
"""A number that is no integer, as DuckDB writes it."""
LONGEST_DOUBLE = 32
"""Bytes, and more than any double has when it is written in the shortest way."""


def _may_not_be_text(column: Any, *, event: bool) -> bool:  # noqa: ANN401 - a StringArray, which the stubs lose
    """Whether a value may be something that a text does not tell: an object or array, a number that is no integer.

    Of an event's name, whether it may be anything but a string.
    """
    if column.null_count == len(column):
        return False
    offsets, data = _bytes_of(column)
    if not len(data):
        return False
    starts, ends = offsets[:-1], offsets[1:]
    kinds = _STARTS.take(data.take(starts, mode="clip"))
    if not kinds.any():
        return event and _holds_literals(column)
    lengths = ends - starts
    kinds[lengths == 0] = 0
    if (kinds == STARTS_TREE).any():
        return True
    if event and ((kinds == STARTS_NUMBER).any() or _holds_literals(column)):
        return True
    numbers = np.flatnonzero((kinds >= STARTS_NUMBER) & (lengths <= LONGEST_DOUBLE))
    numbers = numbers[_STARTS[data[ends[numbers] - 1]] >= STARTS_NUMBER]
    if not len(numbers):
        return False
    texts = column if len(numbers) * 2 > len(column) else column.take(_positions(numbers))
    digits = pc.ascii_is_decimal(texts)
    if pc.all(digits).as_py():
        return False
    rest = texts.filter(pc.invert(digits))
    return bool(pc.any(pc.match_substring_regex(rest, _NUMBER)).as_py())


def _holds_literals(column: pa.StringArray) -> bool:
    return bool(pc.any(pc.is_in(column, _LITERALS)).as_py())


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


class Look:
    """What a quick look at some lines tells about how to read them; their bytes come in any parts.

    `plain`: nothing is in the lines of which DuckDB and JSON may make different things, but for blank lines. No line is
    longer than `max_line_bytes`, and none has so many objects and arrays that they may lie too deep in each other. It
    may be False where a closer look finds nothing, never the other way round.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self.newlines = 0
        self.plain = True
        self._max_line_bytes = max_line_bytes
        # what the line that has not ended has at most
        self._length = self._openings = 0

    def at(self, part: bytes | memoryview, *, strange: bool) -> None:
        """Look at the next bytes; `strange` tells whether what they were cut from looked so."""
        octets = np.frombuffer(part, dtype=np.uint8)
        for start in range(0, len(octets), LOOK_BYTES):
            self._scan(octets[start : start + LOOK_BYTES])
        self.plain &= not strange

    def _scan(self, octets: NDArray[np.uint8]) -> None:
        is_newline = octets == NEWLINE
        # { and [ are one bit apart
        is_opening = octets & ~np.uint8(BRACE ^ BRACKET) == (BRACE & BRACKET)
        newlines, openings = int(np.count_nonzero(is_newline)), int(np.count_nonzero(is_opening))
        self.newlines += newlines
        most_bytes, most_openings = self._length + len(octets), self._openings + openings
        if most_bytes <= self._max_line_bytes and most_openings <= MAX_DEPTH:
            # all of it together would not be too much for one line
            self._length, self._openings = (len(octets), openings) if newlines else (most_bytes, most_openings)
            return
        ends = np.flatnonzero(is_newline)
        lengths = np.diff(ends, prepend=-1, append=len(octets)) - 1
        each = np.diff(np.searchsorted(np.flatnonzero(is_opening), ends), prepend=0, append=openings)
        lengths[0] += self._length
        each[0] += self._openings
        self._length, self._openings = int(lengths[-1]), int(each[-1])
        self.plain &= bool(lengths.max() <= self._max_line_bytes and each.max() <= MAX_DEPTH)


def looks_strange(data: bytes) -> bool:
    """Whether something is in the bytes that DuckDB skips and JSON does not, or the start of it at their end."""
    # one byte is looked for at the speed of memory
    found = any(needle[:1] in data and needle in data for needle in SKIPPED_BY_DUCKDB)
    return found or data.endswith((b"\xef", b"\xef\xbb"))


def _suspects(lines: _Lines, max_line_bytes: int) -> NDArray[np.bool_]:
    """Lines on which DuckDB and JSON differ, or may: they are read exactly, whatever stands beside them.

    That is: a byte order mark or a form feed, which DuckDB skips; nesting that may be too deep; a line too long.
    """
    suspects = np.zeros(len(lines), dtype=bool)
    for needle in SKIPPED_BY_DUCKDB:
        suspects[lines.find(needle)] = True
    look = Look(max_line_bytes)
    look.at(lines.bytes.data, strange=False)
    if not look.plain:
        at = np.flatnonzero((lines.bytes == BRACE) | (lines.bytes == BRACKET))
        suspects |= np.bincount(np.searchsorted(lines.ends, at), minlength=len(lines)) > MAX_DEPTH
        suspects |= lines.ends - lines.starts > max_line_bytes
    return suspects


def _with_numbers_as_written(
    raw: Callable[[], _Lines],
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
    lines = raw()
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
    needle = np.frombuffer(f'"{name}":'.encode(), dtype=np.uint8)
    starts = np.full(len(rows), -1, dtype=np.int64)
    times = np.zeros(len(rows), dtype=np.int64)
    data = lines.bytes
    row_starts, row_ends = lines.starts[rows], lines.ends[rows]
    places = _rare_places(needle, data[:SCAN_BYTES])
    begin = 0
    while begin < len(rows):
        # the wanted lines that lie within one piece; what lies between them is scanned too
        base = int(row_starts[begin])
        end = max(int(np.searchsorted(row_ends, base + SCAN_BYTES)), begin + 1)
        at = _occurrences(data[base : int(row_ends[end - 1])], needle, places) + base
        row = np.searchsorted(row_ends[begin:end], at)
        inside = at >= row_starts[begin + row]
        at, row = at[inside], row[inside]
        times[begin:end] = np.bincount(row, minlength=end - begin)
        starts[begin + row] = at + len(needle)
        begin = end
    starts[times != 1] = -1
    return starts


def _rare_places(needle: NDArray[np.uint8], sample: NDArray[np.uint8]) -> list[int]:
    """The places of the needle whose bytes are rare, each byte once: they tell best where it may stand."""
    counts = np.bincount(sample, minlength=256)[needle]
    first = np.unique(needle, return_index=True)[1]
    rare: list[int] = first[np.argsort(counts[first], kind="stable")][:LOOKED_AT_BYTES].tolist()
    return rare


def _occurrences(data: NDArray[np.uint8], needle: NDArray[np.uint8], places: Sequence[int]) -> NDArray[np.int64]:
    """Where the needle starts, ascending; `places` are looked at in it first."""
    count = len(data) - len(needle) + 1
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    there = data[places[0] : places[0] + count] == needle[places[0]]
    for place in places[1:]:
        there &= data[place : place + count] == needle[place]
    at = np.flatnonzero(there)
    found = [np.zeros(0, dtype=np.int64)]
    # many at once are no usual events, and each takes ten times the needle's length
    several = max(SCAN_BYTES // len(needle), 1)
    for begin in range(0, len(at), several):
        some = at[begin : begin + several]
        found.append(some[(data[some[:, None] + np.arange(len(needle))] == needle).all(axis=1)])
    return np.concatenate(found)


def _same_bytes(data: NDArray[np.uint8], starts: NDArray[np.int64], texts: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each text stands at its start, followed by the end of a value."""
    offsets, text = _bytes_of(texts)
    lengths = np.diff(offsets).astype(np.int64)
    ends = starts + lengths
    same = (ends < len(data)) & (lengths > 0)
    same[same] = _ENDS_VALUE[data[ends[same]]]
    rows = np.flatnonzero(same)
    totals = np.cumsum(lengths[rows])
    begin = 0
    while begin < len(rows):
        # each byte costs some dozens here, unless it is one of a value that is compared alone
        before = int(totals[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(totals, before + SCAN_BYTES)), begin + 1)
        some = rows[begin:end]
        if len(some) == 1:
            start, offset, length = int(starts[some[0]]), int(offsets[some[0]]), int(lengths[some[0]])
            same[some] = np.array_equal(data[start : start + length], text[offset : offset + length])
        else:
            firsts = totals[begin:end] - lengths[some] - before
            every = np.arange(int(totals[end - 1]) - before)
            differs = (
                data[every + np.repeat(starts[some] - firsts, lengths[some])]
                != text[every + np.repeat(offsets[some] - firsts, lengths[some])]
            )
            same[some] = np.add.reduceat(differs, firsts) == 0
        begin = end
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
_EMPTY = pa.scalar("")
_LONGEST_DIGITS = pa.scalar(18)
_NO_NUMBER = pa.scalar("-1")
_NO_MILLISECONDS = pa.scalar(-1)
_LITERALS = pa.array(["true", "false"])
_ENDS_VALUE = np.zeros(256, dtype=bool)
_ENDS_VALUE[list(b",}] \t\r\n")] = True
STARTS_TREE, STARTS_NUMBER, STARTS_CONSTANT = 1, 2, 3
_STARTS = np.zeros(256, dtype=np.uint8)
_STARTS[list(b"{[")] = STARTS_TREE
_STARTS[list(b"0123456789-")] = STARTS_NUMBER
# NaN and Infinity; with these letters they end, too
_STARTS[list(b"iInNfFyY")] = STARTS_CONSTANT
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


def _count(data: NDArray[np.uint8], value: int) -> int:
    """How often a byte value occurs."""
    return sum(
        int(np.count_nonzero(data[start : start + SCAN_BYTES] == value)) for start in range(0, len(data), SCAN_BYTES)
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
