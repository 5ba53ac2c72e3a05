"""Functions of strings and regular expressions: the documented examples, Python as a reference, rows on their own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, FAILED, TEXTS, check_example, check_rows_alone, of, over
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import MAX_TEXT_CHARACTERS, Call
from worker.mapping.functions.strings import MAX_PADDED_CHARACTERS
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.mapping.functions.base import Example

NAMES = [
    "concat",
    "explode",
    "instr",
    "replacestr",
    "substr",
    "lower",
    "upper",
    "split",
    "join",
    "lpad",
    "rpad",
    "left",
]
NAMES += ["right", "ltrim", "rtrim", "trim", "equals", "equalsIgnoreCase", "extract_regex", "matches_regex"]

# few characters, so that strings occur in one another
SHORT = st.text("aAbé😀ß ,|\x00", max_size=8)
STRINGS = SHORT | TEXTS
COUNTS = st.sampled_from([0, 1, 2, 3, 8, -1, 2**62, 2**63 - 1, -(2**63), "2", "x", 1.0, 1.5, None, True]) | st.integers(
    0, 9
)
REGEXES = (
    st.sampled_from(
        ["a", "(a)|(b)", "[aé]+", ".", "", "x*", "^", "$", r"\b", "(", "a)(b", "(?=a)", r"(a)\1", r"\Qa(\E(.)"]
    )
    | st.sampled_from(
        ["(?i)A(?:b)(?P<name>.)?", "[(]", r"[]()\]a]", "[[:alpha:]]", r"\(", r"\pL", "|", ",", "(?s).*", r"\Qa"]
    )
    | SHORT
)
MAYBE = st.none() | ANYTHING

OPERANDS: list[tuple[str, tuple[st.SearchStrategy[object], ...]]] = [
    ("concat", (STRINGS,)),
    ("concat", (STRINGS, STRINGS, STRINGS)),
    ("explode", (STRINGS,)),
    ("explode", (STRINGS, REGEXES)),
    ("instr", (STRINGS, SHORT)),
    ("instr", (STRINGS, SHORT, COUNTS)),
    ("instr", (STRINGS, SHORT, COUNTS, COUNTS)),
    ("replacestr", (STRINGS, SHORT, STRINGS)),
    ("substr", (STRINGS, COUNTS, COUNTS)),
    ("lower", (STRINGS,)),
    ("upper", (STRINGS,)),
    ("split", (STRINGS, st.text(",|a^]-\\😀", max_size=3))),
    ("join", (SHORT, st.lists(STRINGS | st.none() | st.integers(-99, 99), max_size=4))),
    ("lpad", (STRINGS, COUNTS, SHORT)),
    ("rpad", (STRINGS, COUNTS, SHORT)),
    ("left", (STRINGS, COUNTS)),
    ("right", (STRINGS, COUNTS)),
    ("ltrim", (STRINGS,)),
    ("rtrim", (STRINGS,)),
    ("trim", (STRINGS,)),
    ("equals", (STRINGS, STRINGS)),
    ("equalsIgnoreCase", (STRINGS, STRINGS)),
    ("extract_regex", (STRINGS, REGEXES)),
    ("matches_regex", (STRINGS, REGEXES)),
]
IDS = [f"{name}-{len(operands)}" for name, operands in OPERANDS]


@pytest.mark.parametrize(
    "example",
    [example for name in NAMES for example in REGISTRY.by_name[name].examples],
    ids=lambda example: example.expression,
)
def test_the_documented_examples(example: Example) -> None:
    check_example(example)


def test_every_function_is_tested_and_has_an_example() -> None:
    assert {name for name, _ in OPERANDS} == set(NAMES)
    assert all(REGISTRY.by_name[name].examples for name in NAMES)


@pytest.mark.parametrize(("name", "operands"), OPERANDS, ids=IDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    name: str, operands: tuple[st.SearchStrategy[object], ...], data: st.DataObject
) -> None:
    row = st.tuples(*(operand | MAYBE for operand in operands))
    rows = data.draw(st.lists(row | st.tuples(*operands), min_size=1, max_size=6))
    check_rows_alone(REGISTRY.by_name[name].evaluate, *zip(*rows, strict=True))


# A plain reference, for strings and numbers


def _find(text: str, needle: str, start: int = 0, number: int = 1) -> int:
    places = [at for at in range(start, len(text) - len(needle) + 1) if text.startswith(needle, at)]
    return places[number - 1] if number <= len(places) else -1


def _pad(text: str, count: int, padding: str) -> str:
    lacking = max(0, count - len(text))
    return ((padding or " ") * lacking)[:lacking]


REFERENCES: dict[str, Callable[..., object]] = {
    "concat": lambda *texts: "".join(texts),
    "instr": _find,
    "replacestr": lambda text, find, replacement: text.replace(find, replacement) if find else text,
    "substr": lambda text, start, length: text[start : start + length],
    "lower": str.lower,
    "upper": str.upper,
    "split": lambda text, separators: [
        part for part in re.split("|".join(map(re.escape, separators)) if separators else r"(?!)", text) if part
    ],
    "join": lambda separator, items: separator.join("" if item is None else str(item) for item in items),
    "lpad": lambda text, count, padding: _pad(text, count, padding) + text,
    "rpad": lambda text, count, padding: text + _pad(text, count, padding),
    "left": lambda text, count: text[:count],
    "right": lambda text, count: text[max(0, len(text) - count) :],
    "ltrim": str.lstrip,
    "rtrim": str.rstrip,
    "trim": str.strip,
    "equals": lambda one, other: one == other,
    "explode": lambda text, separator=",": text.split(separator),
}
# none that fails, and no count that Python would run out of memory for
_PLAIN_COUNTS = st.integers(0, 12)
_REFERENCE_OPERANDS = {
    "replacestr": (SHORT, SHORT, SHORT),
    "instr": (SHORT, st.text("ab😀", max_size=2), st.integers(0, 6), st.integers(1, 4)),
    "explode": (SHORT, st.sampled_from([",", " ", "a", "é", "😀", "ab"])),
}


@pytest.mark.parametrize("name", list(REFERENCES))
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_strings_are_those_of_python(name: str, data: st.DataObject) -> None:
    operands = _REFERENCE_OPERANDS.get(name) or next(given for entry, given in OPERANDS if entry == name)
    row = st.tuples(*(_PLAIN_COUNTS if operand is COUNTS else operand for operand in operands))
    rows = data.draw(st.lists(row, min_size=1, max_size=8))
    columns = [list(column) for column in zip(*rows, strict=True)]
    assert over(name, *columns) == [REFERENCES[name](*row) for row in rows]
    # and beside nulls
    columns[0][::2] = [None] * len(columns[0][::2])
    assert over(name, *columns)[1::2] == [REFERENCES[name](*row) for row in rows][1::2]


@settings(deadline=None)
@given(
    texts=st.lists(SHORT, min_size=1, max_size=8), separator=st.sampled_from([r"\|", "[ab]", "a+", "(?:é|😀)", "[^a]"])
)
def test_explode_and_matches_and_extract_are_those_of_python(texts: list[str], separator: str) -> None:
    separators = [separator] * len(texts)
    assert over("explode", texts, separators) == [re.split(separator, text) for text in texts]
    assert over("matches_regex", texts, separators) == [re.fullmatch(separator, text) is not None for text in texts]
    grouped = f"(b)?({separator})|(A)"
    found = [re.search(grouped, text) for text in texts]
    assert over("extract_regex", texts, [grouped] * len(texts)) == [
        [match[0], *match.groups()] if match else [] for match in found
    ]


def test_every_character_has_the_case_that_python_gives_it() -> None:
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    changing = [
        character for character in everything if character.upper() != character or character.lower() != character
    ]
    assert over("upper", changing) == [character.upper() for character in changing]
    assert over("lower", changing) == [character.lower() for character in changing]


def test_all_white_space_is_trimmed() -> None:
    spaces = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace()]
    assert over("trim", [f"{space}a{space}" for space in spaces]) == ["a"] * len(spaces)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (("concat", "a", None), None),
        (("concat", "a", 1, 2.0, True), "a12.0true"),
        (("concat", "a", ["b"]), FAILED),
        (("instr", "é😀com", "com"), 2),
        (("instr", "abc", "d"), -1),
        (("instr", "aaaa", "aa", 1, 2), 2),
        (("instr", "abc", "", 3), 3),
        (("instr", "abc", "", 4), -1),
        (("instr", "abc", "", 0, 2**63 - 1), -1),
        (("instr", "abc", "a", -1), FAILED),
        (("instr", "abc", "a", 0, 0), FAILED),
        (("instr", "abc", "c", 2**63 - 1), -1),
        (("replacestr", "aXbX", "X", ""), "ab"),
        (("replacestr", "a.b", ".", r"\1"), r"a\1b"),
        (("substr", "a😀b", 1, 1), "😀"),
        (("substr", "abc", 5, 1), ""),
        (("substr", "abc", 1, 2**63 - 1), "bc"),
        (("substr", "abc", -1, 1), FAILED),
        (("substr", "abc", 0, -1), FAILED),
        (("left", "abc", -1), FAILED),
        (("right", "abc", "2"), "bc"),
        (("left", 12345, 2), "12"),
        (("lpad", "bat", 5, None), "  bat"),
        (("lpad", "bat", 5, ""), "  bat"),
        (("rpad", None, 5, "x"), None),
        (("rpad", "bat", -5, "x"), "bat"),
        (("rpad", "bat", MAX_PADDED_CHARACTERS + 1, "x"), FAILED),
        (("rpad", "x" * 20_000, 15_000, "x"), "x" * 20_000),
        (("split", ",a,,b;c", ",;"), ["a", "b", "c"]),
        (("split", "abc", ""), ["abc"]),
        (("split", "", ""), []),
        (("explode", "a,,b,"), ["a", "", "b", ""]),
        (("explode", ""), [""]),
        (("explode", "a||b", r"\|\|"), ["a", "b"]),
        (("explode", "ab", ""), ["", "a", "b", ""]),
        (("explode", "a\x00b\x00\x01c", "[bc]"), ["a\x00", "\x00\x01", ""]),
        (("join", ",", ["a", None, 1, 2.5, False]), "a,,1,2.5,false"),
        (("join", ",", []), ""),
        (("join", ",", [["a"]]), FAILED),
        (("join", ",", "a"), FAILED),
        (("equals", "1", 1), True),
        (("equals", None, "a"), None),
        (("equals", "a", None), False),
        (("equals", "a", {}), FAILED),
        (("equalsIgnoreCase", "ÄÖ", "äö"), True),
        (("equalsIgnoreCase", "ß", "SS"), False),
        (("matches_regex", "abc", "b"), False),
        (("matches_regex", "abc", "a|abc"), True),
        (("matches_regex", "abc\n", "abc"), False),
        (("matches_regex", "abc", None), None),
        (("extract_regex", "abc", "x"), []),
        (("extract_regex", "abc", "(?i)(B)|(x)"), ["b", "b", None]),
        (("extract_regex", "a(b)c", r"\Q(b\E(.)"), ["(b)", ")"]),
        (("extract_regex", "é]b", r"([]a(])(?P<name>b)"), ["]b", "]", "b"]),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_decisions(call: tuple[str, object], value: object) -> None:
    assert of(*call) == value


@pytest.mark.parametrize("name", ["explode", "extract_regex", "matches_regex"])
@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(", "REGEX is refused: missing )"),
        ("a)(b", "REGEX is refused: unexpected )"),
        ("(?=a)", "REGEX is refused: invalid perl operator; lookaround and references to groups are not supported"),
        ("(?<!a)b", "lookaround and references to groups are not supported"),
        (r"(a)\1", "invalid escape sequence; lookaround and references to groups are not supported"),
        ("(?:a{1000}){1000}", "invalid repetition size"),
    ],
)
def test_a_regular_expression_that_re2_refuses_fails_and_says_why(name: str, regex: str, reason: str) -> None:
    call = Call(3)
    columns = [Values.from_python(["ab", None, "ab"]), Values.from_python([regex, regex, "b"])]
    made = REGISTRY.by_name[name].evaluate(call, *columns)
    assert call.failed.tolist() == [True, False, False]
    assert [reason in said for said, _ in call.failures()] == [True]
    assert made.is_null().tolist() == [True, True, False]


def test_the_functions_have_their_other_names() -> None:
    assert REGISTRY.by_name["lcase"] is REGISTRY.by_name["lower"]
    assert REGISTRY.by_name["ucase"] is REGISTRY.by_name["upper"]
    assert [name for name in NAMES if REGISTRY.by_name[name].method] == ["equals", "equalsIgnoreCase"]


def _long(*columns: Sequence[object]) -> list[Values]:
    return [Values.from_python(column) for column in columns]


def test_no_string_becomes_too_long() -> None:
    most = MAX_TEXT_CHARACTERS
    half = "a" * (most // 2)
    cases: list[tuple[str, list[Values]]] = [
        ("concat", _long([half, half], [half, f"{half}b"])),
        ("join", _long([half, f"{half}b"], [["", "", ""], ["", "", ""]])),
        # so much as this would never fit
        ("join", _long(["", half], [[""] * 2, [""] * 100_000])),
        ("replacestr", _long([half, half], ["a", "a"], ["éé", "ééé"])),
        ("replacestr", _long(["b", half], ["a", "a"], [half, half])),
        ("upper", _long(["ß" * (most // 2), "ß" * (most // 2 + 1)])),
    ]
    for name, columns in cases:
        call = Call(2)
        made = REGISTRY.by_name[name].evaluate(call, *columns)
        assert call.failed.tolist() == [False, True], name
        assert made.is_null().tolist() == [False, True], name


def test_a_long_needle_and_long_strings() -> None:
    text = "ab" * 50_000
    assert of("instr", text, "ab" * 1_000 + "a", 3) == 4
    assert of("instr", text, "b" * 3) == -1
    assert of("explode", "\x00" + "\x01" * 100_000, "[a]") == ["\x00" + "\x01" * 100_000]


def test_slices_of_larger_columns_and_bytes_behind_nulls_do_not_matter() -> None:
    texts = pa.array(["😀abc", "xabx", "ab", "éab", None, "b"])[1:]
    array_type: Any = pa.StringArray
    _, offsets, data = pa.array(["xabx", "ab", "éab", "ab", "b"]).buffers()
    hidden = array_type.from_buffers(5, offsets, data, pa.py_buffer(b"\x17"))
    for column in (texts, hidden):
        values = Values.of(column)
        needles, twos = Values.repeat("ab", 5), Values.repeat(2, 5)
        for name, others, expected in [
            ("instr", [needles], [1, 0, 1, None, -1]),
            ("left", [twos], ["xa", "ab", "éa", None, "b"]),
            ("right", [twos], ["bx", "ab", "ab", None, "b"]),
            ("upper", [], ["XABX", "AB", "ÉAB", None, "B"]),
            ("explode", [needles], [["x", "x"], ["", ""], ["é", ""], None, ["b"]]),
            ("extract_regex", [needles], [["ab"], ["ab"], ["ab"], None, []]),
            ("replacestr", [needles, twos], ["x2x", "2", "é2", None, "b"]),
        ]:
            call = Call(5)
            assert REGISTRY.by_name[name].evaluate(call, values, *others).to_pylist() == expected, name
            assert not np.any(call.failed)
