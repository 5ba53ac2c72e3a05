"""From the bytes of an export to plain bytes, and the proof that the body is whole.

Mixpanel sends neither a count nor a checksum, so the end is judged by the transport, the gzip trailer and the last line
(broken 200s: `terminated early`, cut gzip, cut lines). Lines end at the byte `\\n` alone: U+2028 and its like are legal
inside a JSON string.
"""

from __future__ import annotations

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
    from pathlib import Path

    from worker.mixpanel.spool import Spool

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
INFLATE_BYTES = 1 << 19
"""What is inflated at once stays in the processor's cache until it has been looked at and written."""
DEFLATED_BYTES = 1 << 16
"""What is given to the decompressor at once: it copies what it could not take."""
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
class Piece:
    """Whole lines in a file.

    `first_line` counts the lines of the export before it. `plain`: nothing in it needs a careful look (decoding).
    `unterminated`: as with a block.
    """

    path: Path
    first_line: int
    lines: int
    plain: bool
    unterminated: bool


@dataclass(frozen=True, slots=True)
class OversizedLine:
    """A line longer than the limit, of which only the start was kept."""

    start: bytes
    length: int
    sha256: str
    first_line: int = 0


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


def without_mark(pieces: Iterator[bytes]) -> Iterator[bytes]:
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
    for chunk in _slices(chunks):
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


def _slices(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), DEFLATED_BYTES):
            yield chunk[start : start + DEFLATED_BYTES]


def _trailing_text() -> ExportBrokenError:
    return ExportBrokenError("Text follows the end of the gzip body.", reason="trailing_text")
