"""From the bytes of an export to blocks of whole lines, and the proof that the body is whole.

Mixpanel sends neither a count nor a checksum, so the end is judged by the transport, the gzip trailer and the last line
(broken 200s: `terminated early`, cut gzip, cut lines). Lines end at the byte `\\n` alone: U+2028 and its like are legal
inside a JSON string.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import orjson
from isal import isal_zlib

from worker.errors import ExportBrokenError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.mixpanel.spool import Spool

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
INFLATE_BYTES = 4 << 20
MAX_GZIP_RATIO = 250
"""Events differ in id and time, so real exports stay far below; deflate itself can reach 1,030."""
GZIP_RATIO_FROM_BYTES = 1 << 20
MAX_UNPROVEN_BYTES = 1400
"""Mixpanel compresses every body above this size, so a longer plain body without a proven end may be cut. So may be one
without a byte: only a proven end makes an empty day."""
SENTINEL = b"terminated early"
ERROR_OBJECT = re.compile(rb'\s*\{\s*"error"')


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines. `unterminated`: the last line of the export has no `\\n`; it counts only if it is an event."""

    data: bytes
    unterminated: bool = False


@dataclass(frozen=True, slots=True)
class OversizedLine:
    """A line longer than the limit, of which only the start was kept."""

    start: bytes
    length: int
    sha256: str


def is_sentinel(line: bytes) -> bool:
    """Whether a line that is no event says that the server gave up, in words or by an error object.

    The text may stand behind the line that was being written.
    """
    if line.strip().strip(b'"').strip().lower().endswith(SENTINEL) or ERROR_OBJECT.match(line):
        return True
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and "error" in value and "event" not in value


def read_blocks(
    spool: Spool, *, block_bytes: int, max_line_bytes: int, max_raw_bytes: int = 1 << 16
) -> Iterator[Block | OversizedLine]:
    """Yield the lines of the export in order, as blocks of about `block_bytes`.

    Of a line that is longer than a block and `max_line_bytes` only the first `max_raw_bytes` are kept. Raises
    ExportBrokenError as soon as the body proves not to be whole.
    """
    pending: list[bytes] = []
    pending_bytes = 0
    oversized: _Oversized | None = None
    for inflated in _without_mark(inflate(spool)):
        data = inflated
        if oversized is not None:
            end = data.find(b"\n")
            if end < 0:
                oversized.add(data)
                continue
            oversized.add(data[:end])
            yield oversized.line()
            oversized = None
            data = data[end + 1 :]
        pending_bytes += len(data)
        if pending_bytes < block_bytes:
            pending.append(data)
            continue
        cut = data.rfind(b"\n") + 1
        if not cut:
            # a line longer than a piece: what is whole before it must be looked for
            data = b"".join((*pending, data))
            pending, cut = [], data.rfind(b"\n") + 1
        if cut:
            yield Block(b"".join((*pending, memoryview(data)[:cut])))
        rest = data[cut:]
        if len(rest) > max_line_bytes:
            oversized = _Oversized(rest, max_raw_bytes)
            rest = b""
        pending, pending_bytes = [rest], len(rest)
    if oversized is not None:
        raise ExportBrokenError("The export ends inside a line.", reason="truncated_line")
    joined = b"".join(pending)
    if joined:
        yield Block(joined, unterminated=not joined.endswith(b"\n"))


def _without_mark(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Without the byte order mark at the very start, which the pieces may cut in two."""
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= len(BYTE_ORDER_MARK):
            break
    yield start.removeprefix(BYTE_ORDER_MARK)
    yield from pieces


def inflate(spool: Spool) -> Iterator[bytes]:
    """The plain bytes of a spooled body, whether it is gzip or not, in pieces of at most INFLATE_BYTES.

    What the body is follows from its first bytes, not from its headers. Every gzip member must end with its trailer
    (CRC and length are checked), nothing but zero bytes may follow the last. Raises ExportBrokenError.
    """
    chunks = spool.chunks()
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(GZIP_MAGIC):
            break
    if head.startswith(GZIP_MAGIC):
        yield from _inflate_members(chain((head,), chunks))
        return
    yield head
    yield from chunks
    if not spool.proves_end and not 0 < spool.size <= MAX_UNPROVEN_BYTES:
        raise ExportBrokenError(
            f"The connection closed after {spool.size} plain bytes and nothing proves that this was all.",
            reason="unproven_end",
        )


def _inflate_members(chunks: Iterator[bytes]) -> Iterator[bytes]:
    received = produced = 0
    member: isal_zlib.Decompress | None = None
    padding = False
    start = b""
    for chunk in chunks:
        received += len(chunk)
        data = start + chunk
        start = b""
        more = False
        while data or more:
            if member is None:
                if padding or data.startswith(b"\0"):
                    padding = True
                    if data.strip(b"\0"):
                        raise _trailing_text()
                    break
                if not GZIP_MAGIC.startswith(data[: len(GZIP_MAGIC)]):
                    raise _trailing_text()
                if len(data) < len(GZIP_MAGIC):
                    start = data
                    break
                member = isal_zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            try:
                plain = member.decompress(data, INFLATE_BYTES)
            except isal_zlib.IsalError as error:  # type: ignore[misc]  # the stubs forget that it is a class
                raise ExportBrokenError(f"The gzip body is damaged ({error}).", reason="damaged_gzip") from error
            produced += len(plain)
            if produced > GZIP_RATIO_FROM_BYTES and produced > received * MAX_GZIP_RATIO:
                raise ExportBrokenError(
                    f"The gzip body grows to more than {MAX_GZIP_RATIO} times its size.", reason="gzip_bomb"
                )
            if plain:
                yield plain
            if member.eof:
                data, member, more = member.unused_data, None, False
            else:
                # a full piece may leave output inside the decompressor although all input is taken
                data, more = member.unconsumed_tail, len(plain) == INFLATE_BYTES
    if member is not None or start:
        raise ExportBrokenError("The gzip body ends before its trailer.", reason="cut_gzip")


def _trailing_text() -> ExportBrokenError:
    return ExportBrokenError("Text follows the end of the gzip body.", reason="trailing_text")


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

    def line(self) -> OversizedLine:
        return OversizedLine(self._start, self._length, self._hash.hexdigest())
