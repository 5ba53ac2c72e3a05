"""Functions that hash strings."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker import duck
from worker.mapping.functions.base import Example, Parameter, function, present, spread
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute


def _utf_8(texts: Texts) -> list[bytes]:
    read: list[bytes] = pc.cast(texts, pa.binary()).to_pylist()
    return read


def _utf_16(texts: Texts) -> list[bytes]:
    # Java writes its mark before the first character, so that there is none where there is no character
    return [b"\xfe\xff" + text.encode("utf-16-be") if text else b"" for text in texts.to_pylist()]


def _latin_1(texts: Texts) -> list[bytes]:
    return [text.encode("iso-8859-1", "replace") for text in texts.to_pylist()]


def _ascii(texts: Texts) -> list[bytes]:
    return [text.encode("ascii", "replace") for text in texts.to_pylist()]


_CHARSETS = {"UTF-8": _utf_8, "UTF-16": _utf_16, "ISO-8859-1": _latin_1, "US-ASCII": _ascii}


def _hexadecimal(name: str, texts: Texts) -> Texts:
    """The hashes of the texts by DuckDB's function of this name, null for null.

    It takes half the time of one text after another, and does without the GIL.
    """
    with duck.cursor() as cursor:
        cursor.register("texts", pa.table({"text": texts}))
        found = cursor.sql(f"select {name}(text) as hash from texts").to_arrow_table()  # noqa: S608 - a name made here
    hashes: pa.ChunkedArray[Any] = found["hash"]
    return hashes.combine_chunks()


def _hashing(digest: Callable[[bytes], str], column: str | None) -> Callable[..., Values]:
    """A function that hashes UTF-8 by DuckDB's function `column`, the rest by `digest`, distinct strings one by one."""

    def evaluate(call: Call, given: Values, charset: Values | None = None) -> Values:
        texts = call.texts(given, "INPUT")
        names = call.texts(charset or Values.repeat("UTF-8", call.rows), "CHARSET")
        parts = []
        for name, rows in call.by_value(pc.ascii_upper(names)):
            encode = _CHARSETS.get(name)
            if encode is None:
                unknown = np.zeros(call.rows, dtype=bool)
                unknown[rows] = True
                call.fail(unknown & present(texts), f"CHARSET is none of {', '.join(_CHARSETS)}")
                continue
            chosen = texts if len(rows) == call.rows else texts.take(pa.array(rows))
            if column is not None and encode is _utf_8:
                parts.append((rows, Values.of(_hexadecimal(column, chosen))))
                continue
            distinct = pc.dictionary_encode(chosen)
            hashes = pa.array([digest(data) for data in encode(distinct.dictionary)], pa.string())
            parts.append((rows, Values.of(hashes.take(distinct.indices))))
        return spread(parts, call.rows)

    return evaluate


def _swapped_crc32(data: bytes) -> str:
    return zlib.crc32(data).to_bytes(4, "little").hex()


def _enter(
    name: str, description: str, value: str, digest: Callable[[bytes], str], *decisions: str, column: str | None = None
) -> None:
    function(
        name,
        category="Hashing",
        description=description,
        parameters=(
            Parameter("INPUT", "the string"),
            Parameter("CHARSET", f"how it becomes bytes: {', '.join(_CHARSETS)}; by default UTF-8", required=False),
        ),
        returns="string",
        examples=(Example(f'{name}("my text", "UTF-8")', value),),
        decisions=(
            *decisions,
            "Numbers, booleans and dates are hashed as they are written; arrays and objects fail.",
            "UTF-16 is big-endian with a byte order mark, as in Java; the name of a charset may be in lower case.",
            "A character that a charset lacks becomes `?`; any other charset fails.",
        ),
    )(_hashing(digest, column))


_enter(
    "sha1",
    "The SHA-1 of a string, in hexadecimal.",
    "c3599c11e47719df18a2448690840c5dfcce3c80",
    lambda data: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
    column="sha1",
)
_enter(
    "sha256",
    "The SHA-256 of a string, in hexadecimal.",
    "7330d2b39ca35eaf4cb95fc846c21ee6a39af698154a83a586ee270a0d372104",
    lambda data: hashlib.sha256(data, usedforsecurity=False).hexdigest(),
    column="sha256",
)
_enter(
    "sha512",
    "The SHA-512 of a string, in hexadecimal.",
    "a3d7e45a0d9be5fd4e4b9a3b8c9c2163c21ef708bf11b4232bb21d2a8704ada2"
    "cdcd7b367dd0788a89a5c908cfe377aceb1072a7b386b7d4fd2ff68a8fd24d16",
    lambda data: hashlib.sha512(data, usedforsecurity=False).hexdigest(),
)
_enter(
    "md5",
    "The MD5 of a string, in hexadecimal.",
    "d3b96ce8c9fb4e9bd0198d03ba6852c7",
    lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    column="md5",
)
_enter(
    "crc32",
    "The CRC-32 of a string, in hexadecimal.",
    "8df92e80",
    _swapped_crc32,
    "Its four bytes come lowest first, as the page prints them: the number 0x802ef98d is written 8df92e80.",
)
