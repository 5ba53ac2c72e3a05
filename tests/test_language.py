"""The syntax of mapping expressions: what each text means, what is refused and how, and that trees survive printing."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.mapping.language.parser import MAX_DEPTH, MAX_LENGTH, MAX_NODES, ExpressionError, parse
from worker.mapping.language.printer import to_text
from worker.mapping.language.tree import (
    RESERVED_WORDS,
    STATEMENT_WORDS,
    SYMBOLS,
    ArrayLiteral,
    Binary,
    Call,
    Elvis,
    Every,
    Expression,
    Item,
    Lambda,
    Literal,
    MapLiteral,
    Member,
    Method,
    Name,
    Ternary,
    Unary,
    children,
)

FACTS = Path(__file__).parent.parent.parent / "shared" / "facts" / "dataprep_functions.json"
needs_facts = pytest.mark.skipif(not FACTS.exists(), reason=f"Data Prep's functions are not at {FACTS.name}")
PAGE = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.exists() else {"functions": []}
EXAMPLES = [example["expression"] for function in PAGE["functions"] for example in function["examples"]]
FUNCTIONS = frozenset(name for function in PAGE["functions"] for name in (function["name"], *function["aliases"]))

BROKEN_EXAMPLES = {
    'format(2019-10-23T11:24:00+00:00, "yyyy-MM-dd HH:mm:ss")': "a date without quotes",
    "zone_date_to_utc(2019-10-17T11:55:12 PST)": "a date without quotes",
}

EXHAUSTIVE = os.environ.get("MIXPANEL_WORKER_EXHAUSTIVE") == "1"
MUTATIONS = 100_000 if EXHAUSTIVE else 10_000
NO_LIMIT = sys.maxsize

a, b, c, d, x, y = (Name(name) for name in "abcdxy")
one, two = Literal(1), Literal(2)


def beginning(value: object) -> str:
    """An id for a case whose text may be long."""
    return ascii(value)[:40] if isinstance(value, str) else ""


@needs_facts
@pytest.mark.parametrize("example", dict.fromkeys(EXAMPLES))
def test_examples_of_the_function_page(example: str) -> None:
    expression, _, _ = example.partition(" where ")
    if expression in BROKEN_EXAMPLES:
        with pytest.raises(ExpressionError, match=r"Put a text or a date between quotes"):
            parse(expression, functions=FUNCTIONS)
        return
    tree = parse(expression, functions=FUNCTIONS)
    text = to_text(tree, functions=FUNCTIONS)
    assert parse(text, functions=FUNCTIONS) == tree
    assert to_text(parse(text, functions=FUNCTIONS), functions=FUNCTIONS) == text


@needs_facts
def test_reserved_words_are_those_of_the_page() -> None:
    assert frozenset(PAGE["reservedKeywords"]) == RESERVED_WORDS


@needs_facts
def test_operators_of_the_page() -> None:
    for operator in PAGE["operatorsDocumented"]:
        tree = parse(operator["example"])
        assert isinstance(tree, Binary if operator["numberOfOperands"] == 2 else Unary)
        assert tree.operator == operator["operatorSymbol"]


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", a),
        ("$insert_id", Name("$insert_id")),
        ("_a1$", Name("_a1$")),
        ("größe", Name("größe")),
        ("$", Name("$")),
        (r"street\.name", Name("street.name")),
        (r"a.street\.name", Member(a, "street.name")),
        (r"true\.x", Name("true.x")),
        ("trueish", Name("trueish")),
        ("${First Name}", Name("First Name")),
        ("${ a }", Name(" a ")),
        ("${size}", Name("size")),
        ("${a.b}", Member(a, "b")),
        (r"${a\.b}", Name("a.b")),
        (r"${a\}\{\\b}", Name("a}{\\b")),
        (r"${\a}", a),
        ("data.${First Name}.x", Member(Member(Name("data"), "First Name"), "x")),
        ("data.${a b.c d}", Member(Member(Name("data"), "a b"), "c d")),
        ("data.size", Member(Name("data"), "size")),
        ("data.new", Member(Name("data"), "new")),
        ("a.b[0].c", Member(Item(Member(a, "b"), Literal(0)), "c")),
        ("a[*].b", Member(Every(a), "b")),
        ("a[ * ][1]", Item(Every(a), one)),
        ("a[-1]", Item(a, Unary("-", one))),
        ("a['key']", Item(a, Literal("key"))),
        ("a[b.c]", Item(a, Member(b, "c"))),
        ("now()", Call("now", ())),
        ("f (a, 1)", Call("f", (a, one))),
        ("a.get('k').size()", Method(Method(a, "get", (Literal("k"),)), "size", ())),
        ('"s".equals(a)', Method(Literal("s"), "equals", (a,))),
        ("(a + b).c", Member(Binary("+", a, b), "c")),
        ("f(a)[0]", Item(Call("f", (a,)), Literal(0))),
        ("[]", ArrayLiteral(())),
        ("[1, [2]]", ArrayLiteral((one, ArrayLiteral((two,))))),
        ("{}", MapLiteral(())),
        ("{ : }", MapLiteral(())),
        ('{"k": 1, a: {}}', MapLiteral(((Literal("k"), one), (a, MapLiteral(()))))),
        ("{a ? b : c : d}", MapLiteral(((Ternary(a, b, c), d),))),
        ("f(x -> x > 1)", Call("f", (Lambda(("x",), Binary(">", x, one)),))),
        ("f((x) -> x)", Call("f", (Lambda(("x",), x),))),
        ("f((x, y) -> x ? y : 1, 2)", Call("f", (Lambda(("x", "y"), Ternary(x, y, one)), two))),
        ("f(() -> 1)", Call("f", (Lambda((), one),))),
        ("f((x), (y))", Call("f", (x, y))),
        ("a.f(x->x)", Method(a, "f", (Lambda(("x",), x),))),
        ("a - -1", Binary("-", a, Unary("-", one))),
        ("a ?: b", Elvis(a, b)),
        ("a?b:c", Ternary(a, b, c)),
        ("((((a))))", a),
        ("a /* one */ + // two\nb ## three", Binary("+", a, b)),
        ("\ta\r\n+\fb ", Binary("+", a, b)),
        ("!$a", Unary("!", Name("$a"))),
        ("a =$b", Binary("=$", a, b)),
        ("a == $b", Binary("==", a, Name("$b"))),
        ("size(a) > 1", Binary(">", Unary("size", a), one)),
        ("empty a.b", Unary("empty", Member(a, "b"))),
        ("not empty(a)", Unary("!", Unary("empty", a))),
        ("sizeable(a)", Call("sizeable", (a,))),
    ],
)
def test_text_means(text: str, tree: Expression) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("0", 0),
        ("12", 12),
        ("12L", 12),
        ("12h", 12),
        ("9" * 4096, int("9" * 4096)),
        ("0xff", 255),
        ("0XfFl", 255),
        ("0x" + "f" * 3000, 16**3000 - 1),
        ("1.5", 1.5),
        ("01.50", 1.5),
        ("1.0", 1.0),
        ("1d", 1.0),
        ("1.5f", 1.5),
        ("1.5B", 1.5),
        ("1e3", 1000.0),
        ("1.5E-3d", 0.0015),
        ('""', ""),
        ("'it\"s'", 'it"s'),
        (r"'it\'s'", "it's"),
        (r'"a\"b"', 'a"b'),
        (r"'a\"b'", 'a"b'),
        (r"'\\|'", r"\|"),
        (r"'\|'", r"\|"),
        (r"'\d\.'", r"\d\."),
        (r"'\n\t\r\b\f'", "\n\t\r\b\f"),
        (r"'\u00e9\u00E9'", "éé"),
        (r"'\\u00e9'", r"\u00e9"),
        (r"'\u12'", r"\u12"),
        (r"'\ud83d\ude00'", "😀"),
        ("'😀\t${a} // no comment'", "😀\t${a} // no comment"),
    ],
    ids=beginning,
)
def test_literals(text: str, value: str | float | None) -> None:
    assert parse(text) == Literal(value)
    assert parse(to_text(Literal(value)), max_length=NO_LIMIT) == Literal(value)


def test_literals_of_other_types_are_not_equal() -> None:
    assert len({Literal(1), Literal(1.0), Literal(True), Literal("1"), Literal(None)}) == 5
    assert Literal(1) == Literal(1, column=7)
    assert Literal(1) != 1


LEVELS = [
    ["||"],
    ["&&"],
    ["|"],
    ["^"],
    ["&"],
    ["==", "!="],
    ["<", "<=", ">", ">=", "=~", "!~", "=^", "!^", "=$", "!$"],
    ["+", "-"],
    ["*", "/", "%"],
]


ALL_BINARY = ["??", *itertools.chain(*LEVELS)]


@pytest.mark.parametrize("level", LEVELS, ids=" ".join)
def test_precedence(level: list[str]) -> None:
    begin = ALL_BINARY.index(level[0])
    for loose, tight in itertools.product(ALL_BINARY[:begin], level):
        assert parse(f"a {loose} b {tight} c") == Binary(loose, a, Binary(tight, b, c))
        assert parse(f"a {tight} b {loose} c") == Binary(loose, Binary(tight, a, b), c)
    for first, second in itertools.product(level, repeat=2):
        if level[0] in {"==", "<"}:
            with pytest.raises(ExpressionError, match="Two comparisons are joined by &&"):
                parse(f"a {first} b {second} c")
        else:
            assert parse(f"a {first} b {second} c") == Binary(second, Binary(first, a, b), c)
    for operator in level:
        assert parse(f"-a {operator} !b") == Binary(operator, Unary("-", a), Unary("!", b))
        assert parse(f"a {operator} b ? c : d") == Ternary(Binary(operator, a, b), c, d)
        assert parse(f"a {operator} b ?: c") == Elvis(Binary(operator, a, b), c)


@pytest.mark.parametrize(("word", "symbol"), SYMBOLS.items())
def test_words_for_operators(word: str, symbol: str) -> None:
    if symbol == "!":
        assert parse(f"{word} a") == Unary(symbol, a)
        assert parse(f"{word}a") == Name(f"{word}a")
    else:
        assert parse(f"a {word} b") == parse(f"a {symbol} b") == Binary(symbol, a, b)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a ? b : c ? d : 1", "a ? b : c ? d : 1"),
        ("a ? b : (c ? d : 1)", "a ? b : c ? d : 1"),
        ("(a ? b : c) ? d : 1", "(a ? b : c) ? d : 1"),
        ("a ? (b ? c : d) : 1", "a ? b ? c : d : 1"),
        ("a ?? (b ?? c)", "a ?? b ?? c"),
        ("(a ?? b) ?? c", "(a ?? b) ?? c"),
        ("a ?: (b ?: c)", "a ?: b ?: c"),
        ("(a ?: b) ?: c", "(a ?: b) ?: c"),
        ("a ?? (b ? c : d)", "a ?? b ? c : d"),
        ("(a + b) + c", "a + b + c"),
        ("a + (b + c)", "a + (b + c)"),
        ("(a * b) + (c / d)", "a * b + c / d"),
        ("(a + b) * c", "(a + b) * c"),
        ("(a == b) == c", "(a == b) == c"),
        ("a == (b < c)", "a == b < c"),
        ("(a < b) < c", "(a < b) < c"),
        ("-(a)", "-a"),
        ("-(-a)", "- -a"),
        ("+ + a", "+ +a"),
        ("!!a", "!!a"),
        ("!$a", "! $a"),
        ("!(~a)", "! ~a"),
        ("-(a.b)", "-a.b"),
        ("(-a).b", "(-a).b"),
        ("-(a * b)", "-(a * b)"),
        ("-a * b", "-a * b"),
        ("(size (a)) > (size(b + c))", "size a > size(b + c)"),
        ("a.size", "a.${size}"),
        ("a.upper", "a.upper"),
        ("${upper}", "${upper}"),
        ("${a}.${b c}", "a.${b c}"),
        (r"${a\.b.c\}}", r"a\.b.${c\}}"),
        ("f((x)->(x))", "f(x -> x)"),
        ("f((x,y)->x ?? y)", "f((x, y) -> x ?? y)"),
        ("'a'", '"a"'),
        ("'\"'", "'\"'"),
        ("'\\'\"'", '"\'\\""'),
        (r"'\|'", r'"\\|"'),
        ("'\\u0001\\u2028é\\n'", r'"\u0001\u2028é\n"'),
        ("1e3", "1000.0"),
        ("0xFF", "255"),
        ("{:}", "{}"),
        ("{k:1,'l':[2]}", '{k: 1, "l": [2]}'),
        ("a[*].b[ 0 ]", "a[*].b[0]"),
        ("a and b or not c", "a && b || !c"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    functions = frozenset({"upper", "f"})
    tree = parse(text, functions=functions)
    assert to_text(tree, functions=functions) == canonical
    assert parse(canonical, functions=functions) == tree


def test_columns() -> None:
    tree = parse("f(a.b, c[0]) + (x ? -1 : ${y.d}) ?: {'k': [z[*]]}.get('k', q -> 1)")
    columns = {}
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        label = next((getattr(node, key) for key in ("name", "function", "operator") if hasattr(node, key)), "")
        columns[f"{type(node).__name__} {label}".strip()] = node.column
        nodes += children(node)
    assert columns == {
        "Elvis": 34,
        "Binary +": 14,
        "Call f": 1,
        "Member b": 5,
        "Name a": 3,
        "Item": 9,
        "Name c": 8,
        "Ternary": 19,
        "Name x": 17,
        "Unary -": 21,
        "Member d": 26,
        "Name y": 26,
        "Method get": 51,
        "MapLiteral": 37,
        "ArrayLiteral": 43,
        "Every": 45,
        "Name z": 44,
        "Lambda": 60,
        "Literal": columns["Literal"],
    }


@pytest.mark.parametrize(
    ("text", "column", "message", "advice"),
    [
        ("", 1, "the expression is empty", "Name a field"),
        (" \n", 1, "the expression is empty", "Name a field"),
        ("concat(a, bc", 13, 'expected ")" or "," but found the end', None),
        ("concat(a b)", 10, 'expected ")", "," or an operator but found `b`', "Wrap a name that has spaces: ${a b}."),
        ("concat(", 8, 'expected a value or ")" but found the end', None),
        ("concat(a,)", 10, "expected a value but found `)`", None),
        ("concat(a))", 10, "expected an operator or the end but found `)`", None),
        ("First Name", 7, "expected an operator or the end but found `Name`", "${First Name}"),
        ("a.First Name", 9, "expected an operator or the end but found `Name`", "${First Name}"),
        ("a[", 3, "expected a value but found the end", None),
        ("a[1", 4, 'expected "]" but found the end', None),
        ("a[*", 4, 'expected "]" but found the end', None),
        ("a[1, 2]", 4, 'expected "]" or an operator but found `,`', None),
        ("a.", 3, "expected a name but found the end", None),
        ("a..b", 3, "expected a name but found `.`", None),
        ("a.5", 3, "expected a name but found `5`", None),
        (".a", 1, "expected a value but found `.`", None),
        ("{1", 3, 'expected ":" but found the end', None),
        ("{1, 2}", 3, 'expected ":" or an operator but found `,`', None),
        ("{1: 2", 6, 'expected "}" or "," but found the end', None),
        ("a ? b", 6, 'expected ":" but found the end', None),
        ("a ? b c", 7, 'expected ":" or an operator but found `c`', "${b c}"),
        ("a +", 4, "expected a value but found the end", None),
        ("a + * b", 5, "expected a value but found `*`", None),
        ("a == b == c", 8, "expected an operator or the end but found `==`", "joined by &&"),
        ("x -> x", 4, "expected a value but found `>`", None),
        ("f(x -> )", 8, "expected a value but found `)`", None),
        ("f((x, x) -> x)", 7, "the parameter `x` is there already", None),
        ("f((true, x) -> x)", 4, "the word `true` is reserved", "${true}"),
        ('concat("ab', 8, "the text that begins here has no closing quote", None),
        ("'it''s", 5, "the text that begins here has no closing quote", None),
        ("'a\nb'", 1, "the text that begins here has no closing quote", None),
        ("'\\'", 1, "the text that begins here has no closing quote", None),
        ("${", 1, "`${` begins no name here", "ends with }"),
        ("a + ${}", 5, "`${` begins no name here", "not empty"),
        ("${a{b}", 1, "`${` begins no name here", "escaped"),
        ("a.${b..c}", 3, "a name in `${b..c}` is empty", r"\."),
        ("${.}", 1, "a name in `${.}` is empty", r"\."),
        ("'\\ud800'", 1, "half of a surrogate pair is no character", None),
        ("'\ud800'", 2, "half of a surrogate pair is no character", None),
        ("a = b", 3, "expected an operator or the end but found `=`", "Compare with =="),
        ("a;", 2, "expected an operator or the end but found `;`", "Only expressions"),
        ("“a”", 1, "expected a value but found `“`", "straight quotes"),
        ("a\u00a0+ b", 2, "expected an operator or the end but found the character U+00A0", "a plain space"),
        ("a \x00", 3, "expected an operator or the end but found the character U+0000", None),
        ("2019-10-23T11:00", 9, "expected a value but found `23T11`", "between quotes"),
        ("007", 1, "the number `007` begins with 0", '"007"'),
        ("0x" + "f" * 4094, 1, f"the number `0x{'f' * 38}…` is too large", None),
        ("1e999", 1, "the number `1e999` is too large", None),
        ("a && or", 6, "the word `or` is reserved", "${or}"),
        ("size", 5, "expected a value but found the end", "${size}"),
        ("size > 0", 6, "expected a value but found `>`", "${size}"),
        ("_errors", 1, "the word `_errors` is reserved", "${_errors}"),
        ("or(a)", 1, "the word `or` is reserved", "${or}"),
        ("a ? b : if", 9, "`if` begins a statement", "a ? b : c"),
        ("a if b", 3, "`if` begins a statement", "a ? b : c"),
        ("return a", 1, "`return` begins a statement", "${return}"),
        ("uper(a)", 1, "there is no function `uper`: did you mean `upper`?", None),
        ("upper(Lowr(a))", 7, "there is no function `Lowr`: did you mean `lower`?", None),
        ("zzz(a", 1, "there is no function `zzz`", None),
        ("upper + 1", 1, "`upper` is a function", "upper(…)"),
        ("f(lower -> 1)", 3, "`lower` is a function", "${lower}"),
        ("a" * 4097, 4097, "the expression has 4097 characters: 4096 are the most there may be", None),
        ("(" * 4096, 4097, "expected a value but found the end", None),
        ("a" + ")" * 4095, 2, "expected an operator or the end but found `)`", None),
        ("!" * 4095 + "a", MAX_DEPTH + 1, f"the expression is nested deeper than {MAX_DEPTH} levels", "long chain"),
        ("[" * 2000 + "]" * 2000, MAX_DEPTH + 1, f"the expression is nested deeper than {MAX_DEPTH} levels", None),
        ("+".join("a" * 2048), 3894, f"the expression is nested deeper than {MAX_DEPTH} levels", "array"),
        ("[" + ",".join("1" * 2001) + "]", 4000, f"the expression has more than {MAX_NODES} parts", None),
    ],
    ids=beginning,
)
def test_refused(text: str, column: int, message: str, advice: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, functions=frozenset({"f", "upper", "lower", "concat"}))
    error = caught.value
    assert isinstance(error, ExpressionError)
    assert error.column == column
    assert error.message.startswith(f"column {column}: {message}")
    if advice is not None:
        assert error.advice is not None
        assert advice in error.advice


@pytest.mark.parametrize("word", sorted(RESERVED_WORDS))
def test_reserved_words_are_names_behind_a_dot_and_in_a_wrap(word: str) -> None:
    assert parse(f"${{{word}}}") == Name(word)
    assert parse(f"a.{word}.b({word}1)") == Method(Member(a, word), "b", (Name(f"{word}1"),))
    if word in STATEMENT_WORDS:
        with pytest.raises(ExpressionError, match="only expressions are supported"):
            parse(f"f({word})")


def test_the_greatest_trees_are_read_printed_and_compared() -> None:
    deep = "-" * (MAX_DEPTH - 1) + "a"
    assert parse(to_text(parse(deep))) == parse(deep)
    assert hash(parse(deep)) == hash(parse(deep))
    assert repr(parse(deep)).count("Unary") == MAX_DEPTH - 1
    wide = parse("[" + ",".join("1" * (MAX_NODES - 1)) + "]")
    assert parse(to_text(wide), max_length=NO_LIMIT) == wide
    assert parse("(" * 2047 + "a" + ")" * 2047) == a


def test_calls_are_not_checked_without_functions() -> None:
    assert parse("zzz(upper)") == Call("zzz", (Name("upper"),))


def test_grammar_is_read_at_the_first_use_and_not_before() -> None:
    code = "import worker.mapping.language.parser as p; print(p._lark.cache_info().currsize); p.parse('a')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"


BARE_NAMES = st.from_regex(r"[^\W\d][\w$.]{0,6}|\$[\w$.]{0,6}", fullmatch=True)
NAMES = st.one_of(
    st.sampled_from(["a", "b", "$insert_id", "First Name", *sorted(RESERVED_WORDS)]),
    BARE_NAMES,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
CALLED = BARE_NAMES.filter(lambda name: name not in RESERVED_WORDS)
LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=0),
    st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("\\'\"|nu0a{}$")),
)


def trees_over(trees: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(trees, max_size=3).map(tuple)
    lambdas = st.builds(Lambda, st.lists(CALLED, max_size=3, unique=True).map(tuple), trees)
    arguments = st.lists(trees | lambdas, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Member, trees, NAMES),
        st.builds(Item, trees, trees),
        st.builds(Every, trees),
        st.builds(Call, CALLED, arguments),
        st.builds(Method, trees, BARE_NAMES, arguments),
        st.builds(Unary, st.sampled_from(["!", "~", "-", "+", "empty", "size"]), trees),
        st.builds(Binary, st.sampled_from(ALL_BINARY), trees, trees),
        st.builds(Ternary, trees, trees, trees),
        st.builds(Elvis, trees, trees),
        st.builds(ArrayLiteral, several),
        st.builds(MapLiteral, st.lists(st.tuples(trees, trees), max_size=3).map(tuple)),
    )


@settings(max_examples=500)
@given(st.recursive(st.builds(Literal, LITERALS) | st.builds(Name, NAMES), trees_over, max_leaves=25))
def test_printed_trees_are_read_again(tree: Expression) -> None:
    text = to_text(tree)
    assert parse(text, max_length=NO_LIMIT) == tree


SEEDS = [
    "concat(upper(data.${First Name}), \" \", lower($last), '\\\\|')",
    "a.b[0].c + a[*].b * -3 / (2 - 0x1F) % 7",
    "price > 100 && (country == 'de' || not empty(tags)) ? \"big\" : size(tags) ?: null",
    "filterArray(items, x -> x > 0 and x le 10.5e3)",
    "transformArray(items, (x, y) -> x ?? y)",
    "{\"a\": [1, 2.5, true], key: {:}}.get('a')",
    r"street\.name =~ '^\\d+$' ? ${a\.b.c} : data.$insert_id =^ '\u00e9'",
    "// comment\n a /* b */ | 1 ^ 2 & ~3",
]
PIECES = [*"()[]{}.,:;?!~+-*/%&|^=<>\"'\\$ \n09aé\u00a0😀\ud800", "${", "->", "[*]", "??", "?:", "!$", "//", "/*", "##"]
PIECES += ["and ", "size ", "if ", "null", "upper", "1e9", "0x", "\\u00", "(x) ->", "((((", "!!!!"]


def mutated(expressions: list[str], dice: random.Random) -> str:
    text = dice.choice(expressions)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(text))
        end = dice.randint(start, min(len(text), start + 8))
        match dice.randrange(5):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:start] + dice.choice(PIECES) + text[start:]
            case 2:
                text = text[:start] + dice.choice(PIECES) + text[end:]
            case 3:
                text = text[:end] + text[start:end] * dice.randint(1, 40) + text[end:]
            case 4:
                other = dice.choice(expressions)
                text = text[:start] + other[dice.randint(0, len(other)) :]
    return text


def read_or_refused(text: str, functions: frozenset[str]) -> Expression | ExpressionError:
    try:
        return parse(text, functions=functions)
    except ExpressionError as error:
        return error


@pytest.mark.timeout(0 if EXHAUSTIVE else 120)
def test_mutated_expressions_are_read_or_refused() -> None:
    """10,000 of them; 100,000 with MIXPANEL_WORKER_EXHAUSTIVE=1."""
    dice = random.Random(20260729)
    expressions = [*SEEDS, *EXAMPLES]
    functions = FUNCTIONS or frozenset({"upper", "concat"})
    read = 0
    for _ in range(MUTATIONS):
        text = mutated(expressions, dice)
        known = functions if dice.random() < 0.5 else frozenset()
        begin = time.process_time()
        outcome = read_or_refused(text, known)
        assert time.process_time() - begin < 1, text
        if isinstance(outcome, ExpressionError):
            assert 1 <= outcome.column <= len(text) + 1
            continue
        read += 1
        again = to_text(outcome, functions=known)
        tree = parse(again, functions=known, max_length=NO_LIMIT)
        assert tree == outcome
        assert to_text(tree, functions=known) == again
    assert MUTATIONS * 0.05 < read < MUTATIONS * 0.95


def test_time_grows_with_the_length_alone() -> None:
    worst = [
        "(",
        "!",
        "a.",
        "a+",
        "[",
        "'",
        "\\",
        "a\\.",
        "${",
        "(a,",
        "f(",
        "/*",
        "-> ",
        "a ?",
        "{a:",
        "((a,a",
        "9",
        "a",
    ]
    for piece in worst:
        text = (piece * MAX_LENGTH)[:MAX_LENGTH]
        begin = time.process_time()
        read_or_refused(text, frozenset())
        assert time.process_time() - begin < 2, piece
