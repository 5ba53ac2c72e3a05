"""Functions that hash, that take URLs apart, and that make identifiers: examples, references, rows on their own."""

from __future__ import annotations

import hashlib
import re
import uuid
import zlib
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, FAILED, TEXTS, check_example, check_rows_alone, of, over
from worker.errors import ConfigurationError
from worker.mapping.expression import Expression
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import MAX_TEXT_CHARACTERS, Call
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mapping.functions.base import Example

HASHES = ["sha1", "sha256", "sha512", "md5", "crc32"]
URLS = ["get_url_protocol", "get_url_host", "get_url_port", "get_url_path", "get_url_query_str", "get_url_encoded"]
URLS += ["get_url_decoded"]

CHARSETS = st.sampled_from(["UTF-8", "utf-8", "UTF-16", "ISO-8859-1", "US-ASCII", "latin1", "", "UTF-8 ", 8])
STRINGS = st.text("aé😀ÿĀ?\x00", max_size=6) | TEXTS
ENCODED = st.text("a%é+ 04eEfFgC3A9", max_size=10) | st.sampled_from(
    ["%C3%A9", "%F0%9F%98%80", "%ED%A0%80", "%C0%80", "%"]
)
# pieces in any order, so that many are nearly URLs
NEARLY_URLS = st.lists(
    st.sampled_from(
        ["http", "HTTPS", "sftp", "foo", ":", "//", "/", "?", "#", "@", "a", "h.com", "[::1]", "[", "]", ":80"]
    )
    | st.sampled_from([":65535", ":65536", ":007", "=", "&", "a=1", "é", "😀", "%20", "|", " ", "\n", "+", "-", "."]),
    max_size=9,
).map("".join)
WHOLE_URLS = st.builds(
    "{}://{}{}{}{}{}{}".format,
    st.sampled_from(["http", "https", "sftp", "Foo", "wss"]),
    st.sampled_from(["", "me@", "me:pw@", "@"]),
    st.sampled_from(["h", "www.example.com", "[::1]", "é.de", ""]),
    st.sampled_from(["", ":", ":1", ":8080"]),
    st.sampled_from(["", "/", "/a/b", "//a", "/a/", "/é@b:c"]),
    st.sampled_from(["", "?", "?a=1", "?a=1&b=2&a=3", "?&&", "?a", "?=1", "?a=1=2&é=/?"]),
    st.sampled_from(["", "#", "#top", "#a=1&b", "#?", "##"]),
)
URL = NEARLY_URLS | WHOLE_URLS
MAYBE = st.none() | ANYTHING

OPERANDS: list[tuple[str, tuple[st.SearchStrategy[object], ...]]] = [
    *((name, (STRINGS,)) for name in HASHES),
    *((name, (STRINGS, CHARSETS)) for name in HASHES),
    ("get_url_protocol", (URL,)),
    ("get_url_host", (URL,)),
    ("get_url_port", (URL,)),
    ("get_url_path", (URL,)),
    ("get_url_path", (URL, st.booleans() | st.sampled_from(["no", "x"]))),
    ("get_url_query_str", (URL, st.sampled_from(["retain", "remove", "append", "keep"]))),
    ("get_url_encoded", (STRINGS | URL,)),
    ("get_url_decoded", (STRINGS | URL | ENCODED,)),
    ("fpid_to_ecid", (STRINGS,)),
]
IDS = [f"{name}-{len(operands)}" for name, operands in OPERANDS]


@pytest.mark.parametrize(
    "example",
    [example for name in HASHES + URLS for example in REGISTRY.by_name[name].examples],
    ids=lambda example: example.expression[:60],
)
def test_the_documented_examples(example: Example) -> None:
    check_example(example)


@pytest.mark.parametrize(("name", "operands"), OPERANDS, ids=IDS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    name: str, operands: tuple[st.SearchStrategy[object], ...], data: st.DataObject
) -> None:
    row = st.tuples(*(operand | MAYBE for operand in operands))
    rows = data.draw(st.lists(row | st.tuples(*operands), min_size=1, max_size=5))
    check_rows_alone(REGISTRY.by_name[name].evaluate, *zip(*rows, strict=True))


# Hashes

DIGESTS: dict[str, Callable[[bytes], str]] = {
    "sha1": lambda data: hashlib.sha1(data).hexdigest(),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "sha512": lambda data: hashlib.sha512(data).hexdigest(),
    "md5": lambda data: hashlib.md5(data).hexdigest(),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "little").hex(),
}


@pytest.mark.parametrize("name", HASHES)
@settings(deadline=None, max_examples=50)
@given(texts=st.lists(STRINGS, min_size=1, max_size=8))
def test_hashes_are_those_of_python(name: str, texts: list[str]) -> None:
    digest = DIGESTS[name]
    assert over(name, texts) == [digest(text.encode()) for text in texts]
    for charset, codec in (("UTF-8", "utf-8"), ("us-ascii", "ascii"), ("ISO-8859-1", "latin-1")):
        assert over(name, texts, [charset] * len(texts)) == [digest(text.encode(codec, "replace")) for text in texts]


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (("md5", "é", "UTF-16"), hashlib.md5(b"\xfe\xff\x00\xe9").hexdigest()),
        (("md5", "😀", "utf-16"), hashlib.md5(b"\xfe\xff\xd8\x3d\xde\x00").hexdigest()),
        (("md5", "", "UTF-16"), hashlib.md5(b"").hexdigest()),
        (("md5", "a😀ÿĀ", "ISO-8859-1"), hashlib.md5(b"a?\xff?").hexdigest()),
        (("md5", "a😀é", "US-ASCII"), hashlib.md5(b"a??").hexdigest()),
        (("md5", 1.0), hashlib.md5(b"1.0").hexdigest()),
        (("md5", "a", "latin1"), FAILED),
        (("md5", "a", None), None),
        (("md5", None, "latin1"), None),
        (("md5", []), FAILED),
        (("crc32", ""), "00000000"),
    ],
    ids=repr,
)
def test_decisions_of_hashes(call: tuple[str, object], value: object) -> None:
    assert of(*call) == value


# URLs


@settings(deadline=None, max_examples=200)
@given(urls=st.lists(WHOLE_URLS, min_size=1, max_size=6))
def test_urls_come_apart_as_in_python(urls: list[str]) -> None:
    split = [urlsplit(url) for url in urls]
    assert over("get_url_protocol", urls) == [url.partition(":")[0] for url in urls]
    # Python lowers the host and takes off its brackets
    hosts = [parts.netloc.rpartition("@")[2] for parts in split]
    hosts = [re.sub(r":\d*$", "", host) for host in hosts]
    assert over("get_url_host", urls) == [host or None for host in hosts]
    defaults = {"http": 80, "https": 443, "sftp": 22, "wss": 443}
    assert over("get_url_port", urls) == [
        (parts.port or defaults.get(parts.scheme)) if host else None for parts, host in zip(split, hosts, strict=True)
    ]
    assert over("get_url_path", urls) == [parts.path for parts in split]
    ends = [parts.path.rpartition("/")[2] for parts in split]
    assert over("get_url_path", urls, [False] * len(urls)) == ends
    pairs = [[pair.partition("=") for pair in parts.query.split("&") if pair] for parts in split]
    queries = [{name: value for name, _, value in row} for row in pairs]
    assert over("get_url_query_str", urls, ["remove"] * len(urls)) == queries
    anchored = [
        query | ({"_anchor_": parts.fragment} if parts.fragment else {})
        for query, parts in zip(queries, split, strict=True)
    ]
    assert over("get_url_query_str", urls, ["append"] * len(urls)) == anchored
    for row, query, parts in zip(pairs, queries, split, strict=True):
        if row and parts.fragment:
            query[row[-1][0]] += f"#{parts.fragment}"
    assert over("get_url_query_str", urls, ["retain"] * len(urls)) == queries


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        # scheme, host, port, path, end of the path
        ("HTTP://user:pw@Example.COM:8080/a/B.html?x#y", ("HTTP", "Example.COM", 8080, "/a/B.html", "B.html")),
        ("https://[2001:db8::1]:99/p", ("https", "[2001:db8::1]", 99, "/p", "p")),
        ("http://h:00080", ("http", "h", 80, "", "")),
        ("http://h:/x/", ("http", "h", 80, "/x/", "")),
        ("http://h?a/b", ("http", "h", 80, "", "")),
        ("http://h/a?b/c@d:e", ("http", "h", 80, "/a", "a")),
        ("file:///etc/hosts", ("file", None, None, "/etc/hosts", "hosts")),
        ("mailto:me@example.com", ("mailto", None, None, "me@example.com", "me@example.com")),
        ("custom+app://open", ("custom+app", "open", None, "", "")),
        ("https://h/ü|{}?a=^", ("https", "h", 443, "/ü|{}", "ü|{}")),
        ("x:", ("x", None, None, "", "")),
        ("http://h:65536/", None),
        ("http://h:-1/", None),
        ("http://a@b@c/", None),
        ("http://[::1/", None),
        ("http://a b/", None),
        ("http://a/\n", None),
        ("www.example.com/p", None),
        ("//h/p", None),
        ("/p", None),
        ("1http://h", None),
        ("", None),
    ],
)
def test_parts_of_urls(url: str, parts: tuple[object, ...] | None) -> None:
    found = (
        of("get_url_protocol", url),
        of("get_url_host", url),
        of("get_url_port", url),
        of("get_url_path", url),
        of("get_url_path", url, False),
    )
    assert found == (parts or (None, None, None, FAILED, FAILED))


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (("get_url_query_str", "http://h", "retain"), {}),
        (("get_url_query_str", "http://h#top", "retain"), {}),
        (("get_url_query_str", "http://h#top", "append"), {"_anchor_": "top"}),
        (("get_url_query_str", "http://h?a=1#", "retain"), {"a": "1"}),
        (("get_url_query_str", "http://h?a=1#b#c", "retain"), {"a": "1#b#c"}),
        (("get_url_query_str", "http://h?a%20b=1+2", "remove"), {"a%20b": "1+2"}),
        (("get_url_query_str", "http://h?a", "keep"), FAILED),
        (("get_url_query_str", "http://h?a", None), None),
        (("get_url_query_str", "no url", "remove"), FAILED),
        (("get_url_path", "http://h/a", None), None),
        (("get_url_path", "http://h/a", "no"), "a"),
        (("get_url_path", "http://h/a", "x"), FAILED),
        (("get_url_host", 12), None),
        (("get_url_host", {}), FAILED),
        (("get_url_encoded", "a b|\\~*é😀+-_."), "a%20b%7C%5C%7E%2A%C3%A9%F0%9F%98%80%2B-_."),
        (("get_url_decoded", "%7c+%2B%20%c3%A9é"), "|++ éé"),
        (("get_url_decoded", "100%"), FAILED),
        (("get_url_decoded", "%4"), FAILED),
        (("get_url_decoded", "%zz"), FAILED),
        (("get_url_decoded", "%%41"), FAILED),
        (("get_url_decoded", "%E9"), FAILED),
        (("get_url_decoded", "%00"), "\x00"),
    ],
    ids=repr,
)
def test_decisions_of_urls(call: tuple[str, object], value: object) -> None:
    assert of(*call) == value


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(STRINGS | URL, min_size=1, max_size=6))
def test_what_is_encoded_is_decoded_again(texts: list[str]) -> None:
    encoded = over("get_url_encoded", texts)
    # Python leaves `~` as it is
    assert encoded == [quote(text, safe="").replace("~", "%7E") for text in texts]
    assert over("get_url_decoded", encoded) == texts


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(ENCODED, min_size=1, max_size=6))
def test_decoding_is_that_of_python_or_fails(texts: list[str]) -> None:
    assert over("get_url_decoded", texts) == [_decoded(text) for text in texts]


@settings(deadline=None, max_examples=300)
@given(data=st.binary(min_size=1, max_size=5))
def test_what_is_not_utf_8_is_not_decoded(data: bytes) -> None:
    text = "".join(f"%{byte:02x}" for byte in data)
    assert of("get_url_decoded", text) == _decoded(text)


def _decoded(text: str) -> object:
    try:
        return FAILED if re.search("%(?![0-9A-Fa-f]{2})", text) else unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return FAILED


def test_what_is_encoded_becomes_no_longer_than_a_string_may_be() -> None:
    third = MAX_TEXT_CHARACTERS // 3
    call = Call(2)
    made = REGISTRY.by_name["get_url_encoded"].evaluate(call, Values.from_python([" " * third, " " * (third + 1)]))
    assert call.failed.tolist() == [False, True]
    assert made.is_null().tolist() == [False, True]


# Identifiers


def test_identifiers_are_random_and_of_version_4() -> None:
    made = REGISTRY.by_name["uuid"]
    assert REGISTRY.by_name["guid"] is made
    assert not made.deterministic
    texts = [text for _ in range(2) for text in made.evaluate(Call(500)).to_pylist()]
    assert len(set(texts)) == 1000
    for text in texts:
        read = uuid.UUID(text)
        assert str(read) == text
        assert (read.version, read.variant) == (4, uuid.RFC_4122)
    assert made.evaluate(Call(0)).to_pylist() == []
    # every bit but the six of version and variant is seen set and unset
    bits = [f"{uuid.UUID(text).int:0128b}" for text in texts]
    assert sum(len({row[place] for row in bits}) == 1 for place in range(128)) == 6


def test_an_ecid_cannot_be_computed() -> None:
    made = REGISTRY.by_name["fpid_to_ecid"]
    assert over("fpid_to_ecid", ["4ed70bee-b654-420a-a3fd-b58b6b65e991", None]) == [FAILED, None]
    assert made.examples[0].note is not None
    with pytest.raises(ConfigurationError, match="does not publish"):
        Expression.of(made.examples[0].expression)
