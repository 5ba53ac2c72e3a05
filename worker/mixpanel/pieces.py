"""From the plain bytes of an export to files of whole lines, which decoding reads while the next one is being written.

The files lie in the spool, not in memory, and are used again and again: a file system takes bytes fastest into pages
that it has already.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
from typing import TYPE_CHECKING

from worker.errors import ExportBrokenError
from worker.mixpanel.body import OversizedLine, Piece, inflate, without_mark
from worker.mixpanel.decode import Look, looks_strange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from worker.mixpanel.spool import Spool


FIRST_PIECE_BYTES = 8 << 20
"""The first piece is soon there, and a small day has pieces for all threads; from then on they double."""


class PieceFiles:
    """A few files in `folder`, taken and given back by any thread."""

    def __init__(self, folder: Path, count: int, name: str = "piece") -> None:
        self._paths = [folder / f"{name}-{number}" for number in range(count)]
        self._free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for path in self._paths:
            self._free.put(path)

    def take(self) -> Path:
        """Wait for a file that nobody reads. It is there or not, and what it holds means nothing."""
        return self._free.get()

    def give_back(self, path: Path) -> None:
        self._free.put(path)

    def remove(self) -> None:
        """Free the disk, if it lets us; to be called while all files are given back. They can be taken again."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink()


def read_pieces(
    spool: Spool, files: PieceFiles, *, piece_bytes: int, max_line_bytes: int, max_raw_bytes: int
) -> Iterator[Piece | OversizedLine]:
    """Yield the lines of the export in order, as files of about `piece_bytes`; the first ones are smaller.

    Who takes a piece gives its file back. Of a line that is longer than `max_line_bytes` and not yet in a piece only
    the first `max_raw_bytes` are kept. Raises ExportBrokenError as soon as the body proves not to be whole.
    """
    lines = done_bytes = 0
    start: list[bytes] = []
    start_bytes = 0
    strange = False
    oversized: _Oversized | None = None
    writer: _Writer | None = None
    try:
        for inflated in without_mark(inflate(spool)):
            data = inflated
            if oversized is not None:
                end = data.find(b"\n")
                if end < 0:
                    oversized.add(data)
                    continue
                oversized.add(data[:end])
                yield oversized.line(lines)
                lines += 1
                oversized = None
                data = data[end + 1 :]
            data_strange = looks_strange(data)
            cut = data.rfind(b"\n") + 1
            if cut:
                writer = writer or _Writer(files.take(), lines, max_line_bytes)
                writer.write([*start, memoryview(data)[:cut]], strange=strange or data_strange)
                start, start_bytes = [], 0
                data = data[cut:]
                if writer.size >= min(piece_bytes, max(FIRST_PIECE_BYTES, done_bytes)):
                    done_bytes += writer.size
                    piece, writer = writer.piece(), None
                    lines += piece.lines
                    yield piece
                strange = False
            strange = strange or data_strange
            start.append(data)
            start_bytes += len(data)
            if start_bytes > max_line_bytes:
                oversized = _Oversized(b"".join(start), max_raw_bytes)
                start, start_bytes = [], 0
                if writer is not None:
                    piece, writer = writer.piece(), None
                    lines += piece.lines
                    yield piece
        if oversized is not None:
            raise ExportBrokenError("The export ends inside a line.", reason="truncated_line")
        if start_bytes:
            writer = writer or _Writer(files.take(), lines, max_line_bytes)
            writer.write(start, strange=strange)
        if writer is not None:
            piece, writer = writer.piece(unterminated=start_bytes > 0), None
            yield piece
    finally:
        if writer is not None:
            writer.close()
            files.give_back(writer.path)


class _Writer:
    """A piece that is being written."""

    def __init__(self, path: Path, first_line: int, max_line_bytes: int) -> None:
        self.path = path
        self.size = 0
        self._first_line = first_line
        self._look = Look(max_line_bytes)
        path.touch(mode=0o600)
        self._file = path.open("r+b", buffering=0)

    def write(self, parts: Sequence[bytes | memoryview], *, strange: bool) -> None:
        """Add whole lines; the last one of all may lack its end."""
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._file.write(view) :]
            self.size += len(part)
            self._look.at(part, strange=strange)

    def piece(self, *, unterminated: bool = False) -> Piece:
        self._file.truncate(self.size)
        self._file.close()
        lines = self._look.newlines + unterminated
        return Piece(self.path, self._first_line, lines, self._look.plain, unterminated)

    def close(self) -> None:
        self._file.close()


class _Oversized:
    """The length, hash and start of a line that is too long to keep."""

    def __init__(self, data: bytes, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._start = b""
        self._length = 0
        self._hash = hashlib.sha256()
        self.add(data)

    def add(self, data: bytes) -> None:
        if len(self._start) < self._kept_bytes:
            self._start += data[: self._kept_bytes - len(self._start)]
        self._length += len(data)
        self._hash.update(data)

    def line(self, number: int) -> OversizedLine:
        return OversizedLine(self._start, self._length, self._hash.hexdigest(), number)
