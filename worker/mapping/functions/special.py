"""Functions that make identifiers."""

from __future__ import annotations

import os

import numpy as np

from worker.mapping.functions.base import Call, Example, Parameter, function, present, texts_of_bytes
from worker.mapping.values import Values

_HEXADECIMAL = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_LENGTH = 36
_DASHES = [8, 13, 18, 23]
_DIGITS = np.setdiff1d(np.arange(_LENGTH), _DASHES)


@function(
    "uuid",
    category="Special operations",
    description="A random identifier, another one for every event.",
    parameters=(),
    returns="string",
    examples=(),
    aliases=("guid",),
    deterministic=False,
    decisions=(
        "A UUID of version 4, of 122 random bits from the operating system.",
        "An event that is exported again gets another one, so it is no key: hash what identifies the event for that.",
    ),
)
def uuid(call: Call) -> Values:
    random = np.frombuffer(os.urandom(16 * call.rows), dtype=np.uint8).reshape(call.rows, 16).copy()
    random[:, 6] = random[:, 6] & 0x0F | 0x40  # version 4
    random[:, 8] = random[:, 8] & 0x3F | 0x80  # the variant of RFC 9562
    digits = np.stack([random >> 4, random & 0x0F], axis=2).reshape(call.rows, 32)
    written = np.full((call.rows, _LENGTH), ord("-"), dtype=np.uint8)
    written[:, _DIGITS] = _HEXADECIMAL[digits]
    lengths = np.full(call.rows, _LENGTH, dtype=np.int64)
    return Values.of(texts_of_bytes(written.ravel(), lengths, np.ones(call.rows, dtype=bool)))


_UNPUBLISHED = "Adobe does not publish how an ECID follows from an FPID"


@function(
    "fpid_to_ecid",
    category="Special operations",
    description="The ECID of a first-party device ID. It cannot be computed outside Adobe: every string fails.",
    parameters=(Parameter("STRING", "the first-party device ID"),),
    returns="string",
    examples=(
        Example(
            'fpid_to_ecid("4ed70bee-b654-420a-a3fd-b58b6b65e991")',
            None,
            note=f"The page prints 28880788470263023831040523038280731744. {_UNPUBLISHED}, so here it fails.",
        ),
    ),
    decisions=(f"{_UNPUBLISHED}: a value made up here would name another person's device.",),
)
def fpid_to_ecid(call: Call, string: Values) -> Values:
    call.fail(present(call.texts(string, "STRING")), _UNPUBLISHED)
    return Values.nulls(call.rows)
