"""From the text of an expression to its tree.

The grammar is `grammar.lark`. What JEXL reads but most people do not mean is refused with advice: `010` (eight), `=`
(an assignment), reserved words as names. Behind a dot, where nothing but a name can stand, every word is a name.
"""

from __future__ import annotations

import difflib
import math
import re
from functools import cache
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput, UnexpectedToken, v_args

from worker.errors import ConfigurationError
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

MAX_LENGTH = 4096
"""Characters of an expression. (Data Prep, mapping sets.)"""
MAX_DEPTH = 100
"""Nodes on the way from the whole expression to a name or literal. An operand more in a chain is a node more."""
MAX_NODES = 2000


class ExpressionError(ConfigurationError):
    """A text is no expression. `column` counts characters from 1; one past the last is the end."""

    def __init__(self, column: int, message: str, *, advice: str | None = None) -> None:
        super().__init__(f"column {column}: {message}", advice=advice)
        self.column = column


def parse(text: str, *, functions: frozenset[str] = frozenset(), max_length: int = MAX_LENGTH) -> Expression:
    """The tree of `text`, not deeper than `MAX_DEPTH`, so that functions over it may call themselves.

    `functions` are the functions there are: a call of any other is refused, and so is a field that is called like one
    and not wrapped. Without them every call is accepted. A greater `max_length` is for texts that `to_text` wrote.
    Raises nothing but `ExpressionError`.
    """
    if len(text) > max_length:
        raise ExpressionError(
            max_length + 1, f"the expression has {len(text)} characters: {max_length} are the most there may be"
        )
    if found := _SURROGATE.search(text):
        raise ExpressionError(found.start() + 1, "half of a surrogate pair is no character")
    if not text.strip():
        raise ExpressionError(1, "the expression is empty", advice="Name a field, for example data.item_id.")
    parser: Any = _lark().parse_interactive(text)  # most of its methods have no types
    tokens: list[Token] = []
    try:
        for token in parser.iter_parse():
            if refused := _refused(token, functions):
                raise refused
            tokens.append(token)
        expression: Expression = parser.feed_eof()
    except UnexpectedInput as error:
        raise _syntax_error(text, error, tokens) from None
    _check_size(expression)
    return expression


@cache
def _lark() -> Lark:
    return Lark.open(
        "grammar.lark", rel_to=__file__, parser="lalr", lexer="contextual", start="expression", transformer=_Builder()
    )


_TOO_LARGE = 10**MAX_LENGTH
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPE = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|([\\'"ntrbf]))""")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NAME_IN_WRAP = re.compile(r"(?:[^\\.]|\\.)+", re.DOTALL)
_ESCAPE_IN_WRAP = re.compile(r"\\(.)", re.DOTALL)
_SUFFIX = "lLhHfFdDbB"


@v_args(inline=True)
class _Builder(Transformer[Token, Expression]):
    """Makes a node of each rule of the grammar as soon as it is read: no tree of Lark's is built, none is walked."""

    def name(self, name: Token) -> Expression:
        return Name(_unescaped(name), column=_column(name))

    def wrapped_name(self, wrapped: Token) -> Expression:
        first, *others = _names_in(wrapped)
        return _members(Name(first, column=_column(wrapped)), others, wrapped)

    def member(self, target: Expression, name: Token) -> Expression:
        return Member(target, _unescaped(name), column=_column(name))

    def wrapped_member(self, target: Expression, wrapped: Token) -> Expression:
        return _members(target, _names_in(wrapped), wrapped)

    def item(self, target: Expression, bracket: Token, index: Expression) -> Expression:
        return Item(target, index, column=_column(bracket))

    def every(self, target: Expression, bracket: Token) -> Expression:
        return Every(target, column=_column(bracket))

    def call(self, function: Token, arguments: tuple[Expression, ...]) -> Expression:
        return Call(_unescaped(function), arguments, column=_column(function))

    def method(self, target: Expression, name: Token, arguments: tuple[Expression, ...]) -> Expression:
        return Method(target, _unescaped(name), arguments, column=_column(name))

    def arguments(self, *arguments: Expression) -> tuple[Expression, ...]:
        return arguments

    def unary(self, operator: Token, operand: Expression) -> Expression:
        return Unary(_symbol(operator), operand, column=_column(operator))

    def binary(self, left: Expression, operator: Token, right: Expression) -> Expression:
        return Binary(_symbol(operator), left, right, column=_column(operator))

    def ternary(self, condition: Expression, mark: Token, yes: Expression, no: Expression) -> Expression:
        return Ternary(condition, yes, no, column=_column(mark))

    def elvis(self, condition: Expression, mark: Token, otherwise: Expression) -> Expression:
        return Elvis(condition, otherwise, column=_column(mark))

    def array(self, bracket: Token, *items: Expression) -> Expression:
        return ArrayLiteral(items, column=_column(bracket))

    def map(self, brace: Token, *entries: tuple[Expression, Expression]) -> Expression:
        return MapLiteral(entries, column=_column(brace))

    def entry(self, key: Expression, value: Expression) -> tuple[Expression, Expression]:
        return key, value

    def lambda_of_one(self, parameter: Token, body: Expression) -> Expression:
        return Lambda((_unescaped(parameter),), body, column=_column(parameter))

    def lambda_of_several(self, bracket: Token, parameters: tuple[str, ...], body: Expression) -> Expression:
        return Lambda(parameters, body, column=_column(bracket))

    def parameters(self, *tokens: Token) -> tuple[str, ...]:
        names: list[str] = []
        for token in tokens:
            name = _unescaped(token)
            if name in names:
                raise ExpressionError(_column(token), f"the parameter `{name}` is there already")
            names.append(name)
        return tuple(names)

    def string(self, token: Token) -> Expression:
        value = _ESCAPE.sub(_character, token[1:-1])
        if _SURROGATE.search(value):
            try:
                value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
            except UnicodeDecodeError:
                raise ExpressionError(_column(token), "half of a surrogate pair is no character") from None
        return Literal(value, column=_column(token))

    def integer(self, token: Token) -> Expression:
        digits = token.rstrip("lLhH")
        is_decimal = digits.isdecimal()
        if is_decimal and digits.startswith("0") and digits != "0":
            raise ExpressionError(
                _column(token),
                f"the number `{_short(token)}` begins with 0, which JEXL takes for the sign of an octal number",
                advice='Leave the 0 out, or write a text: "007".',
            )
        # Python writes and reads no more than 4300 decimal digits
        value = int(digits, 10 if is_decimal else 16) if len(digits) <= MAX_LENGTH else _TOO_LARGE
        if value >= _TOO_LARGE:
            raise ExpressionError(_column(token), f"the number `{_short(token)}` is too large")
        return Literal(value, column=_column(token))

    def decimal(self, token: Token) -> Expression:
        value = float(token.rstrip(_SUFFIX))
        if math.isinf(value):
            raise ExpressionError(_column(token), f"the number `{_short(token)}` is too large")
        return Literal(value, column=_column(token))

    def constant(self, token: Token) -> Expression:
        return Literal({"true": True, "false": False, "null": None}[token], column=_column(token))


def _column(token: Token) -> int:
    assert token.start_pos is not None
    return token.start_pos + 1


def _symbol(operator: Token) -> str:
    return SYMBOLS.get(operator, str(operator))


def _unescaped(name: Token) -> str:
    return name.replace(r"\.", ".")


def _names_in(wrapped: Token) -> list[str]:
    """The names between the dots that are not escaped."""
    content = wrapped[2:-1]
    names: list[str] = _NAME_IN_WRAP.findall(content)
    if len(".".join(names)) != len(content):
        raise ExpressionError(
            _column(wrapped),
            f"a name in `{_short(wrapped)}` is empty",
            advice=r"Escape a dot that belongs to a name: \.",
        )
    return [_ESCAPE_IN_WRAP.sub(r"\1", name) for name in names]


def _members(target: Expression, names: list[str], wrapped: Token) -> Expression:
    for name in names:
        target = Member(target, name, column=_column(wrapped))
    return target


def _character(escape: re.Match[str]) -> str:
    code, character = escape.groups()
    return chr(int(code, 16)) if code else _ESCAPED.get(character, character)


def _refused(token: Token, functions: frozenset[str]) -> ExpressionError | None:
    """What is wrong with a name that may not stand bare, or with a function that does not exist."""
    name = _unescaped(token)
    advice: str | None = None
    match token.type:
        case "NAME" | "FUNCTION" if token in STATEMENT_WORDS:
            message = f"`{name}` begins a statement, and only expressions are supported"
            advice = f"A choice is written `a ? b : c`; a field that is called `{name}` is written ${{{name}}}."
        case "NAME" | "FUNCTION" if token in RESERVED_WORDS:
            message = f"the word `{name}` is reserved"
            advice = f"Wrap it if it is a field: ${{{name}}}."
        case "NAME" if name in functions:
            message = f"`{name}` is a function"
            advice = f"Call it, {name}(…), or wrap it if it is a field: ${{{name}}}."
        case "FUNCTION" if functions and name not in functions:
            message = f"there is no function `{_short(name)}`{_nearest(name, functions)}"
        case _:
            return None
    return ExpressionError(_column(token), message, advice=advice)


def _nearest(name: str, functions: frozenset[str]) -> str:
    known = {function.lower(): function for function in sorted(functions)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f": did you mean `{known[near[0]]}`?" if near else ""


def _check_size(expression: Expression) -> None:
    open_nodes: list[tuple[Expression, int]] = [(expression, 1)]
    count = 0
    while open_nodes:
        node, depth = open_nodes.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ExpressionError(
                node.column,
                f"the expression is nested deeper than {MAX_DEPTH} levels",
                advice="An array or a function of many arguments takes the place of a long chain.",
            )
        if count > MAX_NODES:
            raise ExpressionError(node.column, f"the expression has more than {MAX_NODES} parts")
        open_nodes += [(child, depth + 1) for child in reversed(children(node))]


_FOUND = re.compile(r"[\w$]+|.", re.DOTALL)
_SIGNS = {"RPAR": '")"', "RSQB": '"]"', "RBRACE": '"}"', "COLON": '":"', "COMMA": '","'}
_CURLY_QUOTES = frozenset("\u201c\u201d\u201e\u2018\u2019\u201a\u00b4`")
_MOST_SHOWN = 40


def _syntax_error(text: str, error: UnexpectedInput, tokens: list[Token]) -> ExpressionError:
    """What `error` says, in words of a user; `tokens` have been read, at most the last of them is the wrong one."""
    token = error.token if isinstance(error, UnexpectedToken) else None
    if token is not None and (refused := _refused(token, frozenset())):
        return refused
    at_end = token is not None and token.type == "$END"
    position: Any = len(text) if at_end else error.pos_in_stream
    before = [good for good in tokens if _column(good) <= position]
    last = before[-1] if before else None
    # the wrong token has led the first parser away from where it was
    parser: Any = _lark().parse_interactive()
    for good in before:
        parser.feed_token(good)
    accepted: set[str] = parser.accepts()
    if at_end:
        message = f"expected {_expected(accepted, at_end=True)} but found the end"
        return ExpressionError(len(text.rstrip()) + 1, message, advice=_advice("", None, last, accepted))
    if token is None and text[position] in "\"'":
        return ExpressionError(position + 1, "the text that begins here has no closing quote")
    if token is None and text.startswith("${", position):
        return ExpressionError(
            position + 1,
            "`${` begins no name here",
            advice=r"A wrapped name ends with } and is not empty; a brace or dot within is escaped: ${First\.Name}.",
        )
    word = _FOUND.match(text, position)
    assert word is not None
    found = word[0] if token is None else str(token)
    shown = f"`{_short(found)}`" if found.isprintable() else f"the character U+{ord(found[0]):04X}"
    message = f"expected {_expected(accepted, at_end=False)} but found {shown}"
    return ExpressionError(position + 1, message, advice=_advice(found, token, last, accepted))


def _expected(accepted: set[str], *, at_end: bool) -> str:
    """The kinds of tokens in `accepted`; at the end of the text without operators, as what is open must be closed."""
    words = [sign for name, sign in _SIGNS.items() if name in accepted]
    if "INTEGER" in accepted:
        words.insert(0, "a value")
    elif "FIELD" in accepted or "NAME" in accepted:
        words.insert(0, "a name")
    elif "SUM" in accepted and not at_end:
        words.append("an operator")
    if "$END" in accepted:
        words.append("the end")
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _advice(found: str, token: Token | None, last: Token | None, accepted: set[str]) -> str | None:
    """What a person who wrote `found` behind `last` may have meant."""
    if last is not None and last.type == "UNARY" and last.isalpha():
        return f"A field that is called `{last}` is written ${{{last}}}."
    if token is not None and token.type == "NAME" and last is not None and last.type in {"NAME", "FIELD"}:
        return f"Wrap a name that has spaces: ${{{last} {token}}}."
    if token is not None and token.type in {"EQUALITY", "RELATION"} and "INTEGER" not in accepted:
        return "Two comparisons are joined by &&; the outcome of one is compared only from within parentheses."
    if found == "=":
        return "Compare with ==; there are no assignments."
    if found == ";":
        return "Only expressions are supported, no statements."
    if found in _CURLY_QUOTES:
        return "Put texts between straight quotes."
    if found.isspace():
        return "Write a plain space."
    if found[:1].isdigit() and not found.isdigit():
        return f"Put a text or a date between quotes, and wrap a name that begins with a digit: ${{{_short(found)}}}."
    return None


def _short(found: str) -> str:
    return found if len(found) <= _MOST_SHOWN else f"{found[:_MOST_SHOWN]}…"
