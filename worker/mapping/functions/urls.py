"""Functions of URLs, which are taken apart by the generic syntax of RFC 3986."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.functions.base import (
    Example,
    Parameter,
    cut,
    function,
    laid_out,
    present,
)
from worker.mapping.values import Items, Kind, Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Mask, Positions, Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

_NOT = r"\x00-\x20\x7f"
_PORT = r"(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])?"
_AUTHORITY = rf"(?:[^/?#@{_NOT}]*@)?(?:\[[0-9A-Za-z.:%~_-]*\]|[^/?#@:\[\]{_NOT}]*)(?::{_PORT})?"
# what follows no authority must not look like one
_PATH = rf"(?:/(?:[^/?#{_NOT}][^?#{_NOT}]*)?|[^/?#{_NOT}][^?#{_NOT}]*)?"
URL = rf"^[A-Za-z][A-Za-z0-9+.-]*:(?://{_AUTHORITY}(?:/[^?#{_NOT}]*)?|{_PATH})(?:\?[^#{_NOT}]*)?(?:#[^{_NOT}]*)?$"
"""A URL. Letters beyond ASCII and characters that ought to be encoded, such as `|`, may stand as they are, as browsers
write them; white space and control characters may not."""

_DEFAULT_PORTS = {
    "ftp": 21,
    "ftps": 990,
    "gopher": 70,
    "http": 80,
    "https": 443,
    "imap": 143,
    "imaps": 993,
    "ldap": 389,
    "ldaps": 636,
    "nntp": 119,
    "rtsp": 554,
    "sftp": 22,
    "sip": 5060,
    "sips": 5061,
    "smtp": 25,
    "ssh": 22,
    "telnet": 23,
    "ws": 80,
    "wss": 443,
}

_WHAT_IS_A_URL = (
    "A URL begins with its scheme; characters that ought to be encoded may stand as they are, but for white space "
    "and control characters."
)


class Parts:
    """Where the parts of each URL begin and end in the bytes of all; in a row that is not `valid` it says nothing."""

    def __init__(self, texts: Texts) -> None:
        self.data, self.offsets = laid_out(texts)
        self.valid: Mask = np.asarray(pc.fill_null(pc.match_substring_regex(texts, URL), fill_value=False))
        self.starts, self.ends = self.offsets[:-1], self.offsets[1:]
        self.scheme_end = self.first(b":", self.starts)
        after = self.scheme_end + 1
        self.has_authority = self._has(after, b"/") & self._has(after + 1, b"/") & self.valid
        self.authority = np.minimum(np.where(self.has_authority, after + 2, after), self.ends)

    @cached_property
    def path(self) -> Positions:
        return np.where(self.has_authority, self.first(b"/?#", self.authority), self.authority)

    @cached_property
    def path_end(self) -> Positions:
        return self.first(b"?#", self.path)

    @cached_property
    def anchor(self) -> Positions:
        """The place of its `#`, or the end."""
        return self.first(b"#", self.path_end)

    @cached_property
    def host(self) -> Positions:
        user_end = self.first(b"@", self.authority)
        return np.where(user_end < self.path, user_end + 1, self.authority)

    @cached_property
    def host_end(self) -> Positions:
        # an address of IPv6 has colons of its own
        bracket = np.where(self._has(self.host, b"["), self.first(b"]", self.host), self.host)
        return np.minimum(self.first(b":", bracket), self.path)

    def first(self, characters: bytes, since: Positions) -> Positions:
        """In each row the first place of one of these characters from a place on, or the end of the row."""
        return _first(self.data, characters, since, self.ends)

    def text(self, starts: Positions, ends: Positions, chosen: Mask) -> Texts:
        """What lies between two places of the URLs."""
        return cut(self.data, starts, ends, chosen & self.valid)

    def _has(self, places: Positions, character: bytes) -> Mask:
        inside = places < self.ends
        found: Mask = inside & (self.data[np.where(inside, places, 0)] == character[0]) if len(self.data) else inside
        return found


def _first(data: NDArray[np.uint8], characters: bytes, since: Positions, ends: Positions) -> Positions:
    chosen = data == characters[0]
    for character in characters[1:]:
        chosen |= data == character
    # one beyond all rows, for those behind the last
    places = np.append(np.flatnonzero(chosen), len(data))
    found: Positions = np.minimum(places[np.searchsorted(places, np.minimum(since, len(data)))], ends)
    return found


_URL = Parameter("URL", "the URL")


@function(
    "get_url_protocol",
    category="URL",
    description="The scheme of a URL, such as https; null if it is no URL.",
    parameters=(_URL,),
    returns="string",
    examples=(Example('get_url_protocol("https://platform.adobe.com/home")', "https"),),
    decisions=(_WHAT_IS_A_URL, "Upper and lower case stay as they are."),
)
def get_url_protocol(call: Call, url: Values) -> Values:
    parts = Parts(call.texts(url, "URL"))
    return Values.of(parts.text(parts.starts, parts.scheme_end, parts.valid))


@function(
    "get_url_host",
    category="URL",
    description="The host of a URL; null if it has none or is no URL.",
    parameters=(_URL,),
    returns="string",
    examples=(Example('get_url_host("https://platform.adobe.com/home")', "platform.adobe.com"),),
    decisions=(
        _WHAT_IS_A_URL,
        "Without the user and the port before and behind it; an IPv6 address keeps its brackets.",
        "Upper and lower case stay as they are.",
    ),
)
def get_url_host(call: Call, url: Values) -> Values:
    parts = Parts(call.texts(url, "URL"))
    return Values.of(parts.text(parts.host, parts.host_end, parts.has_authority & (parts.host < parts.host_end)))


@function(
    "get_url_port",
    category="URL",
    description="The port of a URL, or the one that its scheme has by default; null if there is none or it is no URL.",
    parameters=(_URL,),
    returns="integer",
    examples=(Example('get_url_port("sftp://example.com//home/joe/employee.csv")', 22),),
    decisions=(
        _WHAT_IS_A_URL,
        f"Ports by default: {', '.join(f'{scheme} {port}' for scheme, port in _DEFAULT_PORTS.items())}.",
        "Without a host there is no port; a URL with a port above 65535 is none.",
    ),
)
def get_url_port(call: Call, url: Values) -> Values:
    parts = Parts(call.texts(url, "URL"))
    there = parts.has_authority & (parts.host < parts.host_end)
    written = parts.text(parts.host_end + 1, parts.path, there & (parts.host_end + 1 < parts.path))
    schemes = pc.ascii_lower(parts.text(parts.starts, parts.scheme_end, there))
    known = pc.index_in(schemes, value_set=pa.array(list(_DEFAULT_PORTS)))
    ports = pa.array(list(_DEFAULT_PORTS.values()), pa.int64()).take(known)
    return Values.of(pc.coalesce(pc.cast(written, pa.int64()), ports))


@function(
    "get_url_path",
    category="URL",
    description="The path of a URL.",
    parameters=(
        _URL,
        Parameter(
            "FULL_PATH",
            "whether the whole path is wanted, as by default, or only what follows its last slash",
            required=False,
        ),
    ),
    returns="string",
    examples=(Example('get_url_path("sftp://example.com//home/joe/employee.csv")', "//home/joe/employee.csv"),),
    decisions=(
        _WHAT_IS_A_URL,
        "What is no URL fails; the path of a URL without one is empty, as is the end of one that ends with a slash.",
        "What is percent-encoded stays so.",
    ),
)
def get_url_path(call: Call, url: Values, full_path: Values | None = None) -> Values:
    parts = _parts_of_urls(call, url)
    whole = call.booleans(full_path or Values.repeat(value=True, length=call.rows), "FULL_PATH")
    slashes = np.flatnonzero(parts.data == ord("/"))
    last = np.append(-1, slashes)[np.searchsorted(slashes, parts.path_end)]
    starts = np.where(np.asarray(pc.fill_null(whole, fill_value=True)), parts.path, np.maximum(parts.path, last + 1))
    return Values.of(parts.text(starts, parts.path_end, present(whole)))


def _parts_of_urls(call: Call, url: Values) -> Parts:
    """The parts of what is a URL; what is none fails."""
    texts = call.texts(url, "URL")
    parts = Parts(texts)
    call.fail(present(texts) & ~parts.valid, "URL is no URL")
    return parts


ANCHOR_KEY = "_anchor_"
_ANCHORS = ("retain", "remove", "append")


@function(
    "get_url_query_str",
    category="URL",
    description="The parameters in the query of a URL, as an object.",
    parameters=(
        _URL,
        Parameter(
            "ANCHOR",
            "what becomes of the anchor: retain leaves it at the end of the last value, remove takes it away, append "
            f"makes it a member {ANCHOR_KEY}",
        ),
    ),
    returns="object",
    examples=(
        Example(
            'get_url_query_str("foo://example.com:8042/over/there?name=ferret#nose", "retain")',
            {"name": "ferret#nose"},
        ),
        Example(
            'get_url_query_str("foo://example.com:8042/over/there?name=ferret#nose", "remove")', {"name": "ferret"}
        ),
        Example(
            'get_url_query_str("foo://example.com:8042/over/there?name=ferret#nose", "append")',
            {"name": "ferret", ANCHOR_KEY: "nose"},
        ),
    ),
    decisions=(
        _WHAT_IS_A_URL,
        "What is no URL fails; a URL without a query gives an empty object.",
        "Of equal names the last one counts; a parameter without `=` has an empty value.",
        "What is percent-encoded stays so; get_url_decoded decodes it.",
        "An empty anchor is none; without parameters there is nothing that could retain one.",
    ),
)
def get_url_query_str(call: Call, url: Values, anchor: Values) -> Values:
    parts, modes = _parts_of_urls(call, url), call.texts(anchor, "ANCHOR")
    given = present(modes)
    known = np.asarray(pc.is_in(modes, value_set=pa.array(_ANCHORS)))
    call.fail(given & ~known, f"ANCHOR is none of {', '.join(_ANCHORS)}")
    query = np.minimum(parts.path_end + 1, parts.anchor)
    lists = pc.split_pattern(parts.text(query, parts.anchor, known), "&")
    pairs = Items.of_list_array(lists)
    pairs = pairs.select(np.asarray(pc.not_equal(pairs.values.arrow(Kind.STRING), scalar(""))))
    data, offsets = laid_out(pairs.values.arrow(Kind.STRING))
    everywhere = np.ones(len(pairs.values), dtype=bool)
    equals = _first(data, b"=", offsets[:-1], offsets[1:])
    names = cut(data, offsets[:-1], equals, everywhere)
    values = cut(data, np.minimum(equals + 1, offsets[1:]), offsets[1:], everywhere)

    anchored = (parts.anchor + 1 < parts.ends) & parts.valid & known
    retaining = anchored & np.asarray(pc.fill_null(pc.equal(modes, scalar("retain")), fill_value=False))
    if retaining.any():
        last = pairs.places == pairs.lengths[pairs.rows] - 1
        tails = pc.fill_null(parts.text(parts.anchor, parts.ends, retaining), "").take(pa.array(pairs.rows))
        values = pc.binary_join_element_wise(values, pc.if_else(pa.array(last), tails, scalar("")), scalar(""))
    members = Items(pairs.offsets, pairs.valid, Values.of(values), names)
    appending = anchored & np.asarray(pc.fill_null(pc.equal(modes, scalar("append")), fill_value=False))
    if appending.any():
        anchors = parts.text(parts.anchor + 1, parts.ends, appending)
        added = Items.of_lengths(
            appending.astype(np.int64),
            Values.of(anchors.drop_null()),
            keys=pa.array([ANCHOR_KEY] * int(appending.sum())),
        )
        members = Items.side_by_side([members, added])
    return Values.items(members)


_KEPT = np.zeros(256, dtype=bool)
_KEPT[np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.", dtype=np.uint8)] = True
_HEXADECIMAL = np.frombuffer(b"0123456789ABCDEF", dtype=np.uint8)
_NO_DIGIT = 255
_DIGITS = np.full(256, _NO_DIGIT, dtype=np.uint8)
for _digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
    _DIGITS[np.frombuffer(_digits, dtype=np.uint8)] = np.arange(16)


@function(
    "get_url_encoded",
    category="URL",
    description="A string with its special characters percent-encoded, as it may stand within a URL.",
    parameters=(Parameter("URL", "the string"),),
    returns="string",
    examples=(
        Example(
            'get_url_encoded("https://example.com/partneralliance_asia-pacific_2022")',
            "https%3A%2F%2Fexample.com%2Fpartneralliance_asia-pacific_2022",
        ),
    ),
    decisions=(
        "All is encoded but letters and digits of ASCII, `-`, `_` and `.`: a space is %20, what is beyond ASCII the "
        "bytes of its UTF-8.",
        "The page's table prints `|` as %5C, which is the backslash: here it is %7C.",
    ),
)
def get_url_encoded(call: Call, url: Values) -> Values:
    texts = call.texts(url, "URL")
    data, offsets = laid_out(texts)
    special = np.flatnonzero(~_KEPT[data])
    # each takes two bytes more, and moves what is behind it so far
    places = special + 2 * np.arange(len(special))
    written = np.empty(len(data) + 2 * len(special), dtype=np.uint8)
    as_before = np.ones(len(written), dtype=bool)
    as_before[places + 1] = as_before[places + 2] = False
    written[as_before] = data
    written[places] = ord("%")
    written[places + 1] = _HEXADECIMAL[data[special] >> 4]
    written[places + 2] = _HEXADECIMAL[data[special] & 0x0F]
    offsets = offsets + 2 * np.searchsorted(special, offsets)
    return Values.of(call.short(cut(written, offsets[:-1], offsets[1:], present(texts))))


_UTF_8 = (
    r"\A(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*\z"
)


@function(
    "get_url_decoded",
    category="URL",
    description="A string in which what is percent-encoded is decoded.",
    parameters=(Parameter("URL", "the string"),),
    returns="string",
    examples=(
        Example(
            'get_url_decoded("https%3A%2F%2Fexample.com%2Fpartneralliance_asia-pacific_2022")',
            "https://example.com/partneralliance_asia-pacific_2022",
        ),
    ),
    decisions=(
        "It undoes get_url_encoded: a `+` stays a `+`, since a space is %20.",
        "A `%` without two hexadecimal digits fails, and so does what is not UTF-8 once it is decoded.",
    ),
)
def get_url_decoded(call: Call, url: Values) -> Values:
    texts = call.texts(url, "URL")
    if not pc.any(pc.match_substring(texts, "%")).as_py():
        return Values.of(texts)
    data, offsets = laid_out(texts)
    there = present(texts)
    signs = np.flatnonzero(data == ord("%"))
    rows = np.searchsorted(offsets, signs, side="right") - 1
    # what lies before the first text or in the place of a null belongs to no row
    mine = (rows >= 0) & there[rows]
    signs, rows = signs[mine], rows[mine]
    padded = np.append(data, [0, 0]).astype(np.uint8)
    high, low = _DIGITS[padded[signs + 1]], _DIGITS[padded[signs + 2]]
    broken = (high == _NO_DIGIT) | (low == _NO_DIGIT) | (signs + 2 >= offsets[rows + 1])
    failed = np.zeros(call.rows, dtype=bool)
    failed[rows[broken]] = True
    call.fail(failed, "URL has a % without two hexadecimal digits")
    there &= ~failed

    whole = there[rows]
    signs, high, low = signs[whole], high[whole], low[whole]
    decoded = data.copy()
    decoded[signs] = high << 4 | low
    kept = np.ones(len(data), dtype=bool)
    kept[signs + 1] = kept[signs + 2] = False
    # each moves what is behind it by two bytes
    offsets = offsets - 2 * np.searchsorted(signs, offsets)
    result = cut(decoded[kept], offsets[:-1], offsets[1:], there)
    if (high >= 8).any():
        utf_8 = np.asarray(
            pc.fill_null(pc.match_substring_regex(pc.cast(result, pa.binary()), _UTF_8), fill_value=True)
        )
        call.fail(~utf_8, "URL is not UTF-8 once it is decoded")
        result = pc.if_else(pa.array(utf_8), result, NULL)
    return Values.of(result)
