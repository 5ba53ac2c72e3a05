"""An expression as text again: one text for one tree, with the fewest parentheses."""

from __future__ import annotations

import re

from worker.mapping.language.tree import (
    RESERVED_WORDS,
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
)

# How tightly a node holds together: an operand that holds less tightly than its place demands needs parentheses.
_CONDITIONAL = 0
_EQUALITY, _RELATION = 6, 7
_LEVEL_OF = {
    "??": _CONDITIONAL,
    "||": 1,
    "&&": 2,
    "|": 3,
    "^": 4,
    "&": 5,
    **dict.fromkeys(["==", "!="], _EQUALITY),
    **dict.fromkeys(["<", "<=", ">", ">=", "=~", "!~", "=^", "!^", "=$", "!$"], _RELATION),
    **dict.fromkeys(["+", "-"], 8),
    **dict.fromkeys(["*", "/", "%"], 9),
}
_UNARY = 10
_REFERENCE = 11

_BARE_NAME = re.compile(r"(?:[^\W\d]|\$)[\w$.]*")
_ESCAPED_IN_WRAP = re.compile(r"[\\.{}]")
_ESCAPED_IN_TEXT = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ESCAPES = {"\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r", "\b": r"\b", "\f": r"\f"}
# these begin an operator of two characters, in JEXL also where a value is due: `! $price` but `!$price` is `!$` there
_APART = re.compile(r"![$~^]|--|\+\+")


def to_text(expression: Expression, *, functions: frozenset[str] = frozenset()) -> str:
    """The text of a tree that `parse` gave: `parse` makes the same tree of it, and it never changes again.

    Pass the `functions` that `parse` got: a field that is called like one of them is wrapped. The text may be longer
    than the one that was parsed, and then longer than what `parse` allows unless it is told.
    """
    return _Printer(functions).text(expression, _CONDITIONAL)


class _Printer:
    def __init__(self, functions: frozenset[str]) -> None:
        self._not_bare = RESERVED_WORDS | functions

    def text(self, node: Expression, place: int) -> str:
        """The text of `node` for a place where nothing may stand that holds less tightly than `place`."""
        level = _level(node)
        text = self._plain(node, level)
        return text if level >= place else f"({text})"

    def _plain(self, node: Expression, level: int) -> str:
        match node:
            case Binary(operator, left, right):
                # `??` holds together from the right, `==` and `<` not at all, all others from the left
                on_the_left = level + (level in {_CONDITIONAL, _EQUALITY, _RELATION})
                on_the_right = level + (level != _CONDITIONAL)
                return f"{self.text(left, on_the_left)} {operator} {self.text(right, on_the_right)}"
            case Ternary(condition, yes, no):
                branches = f"{self._whole(yes)} : {self._whole(no)}"
                return f"{self.text(condition, level + 1)} ? {branches}"
            case Elvis(condition, otherwise):
                return f"{self.text(condition, level + 1)} ?: {self._whole(otherwise)}"
            case Unary(operator, operand):
                text = self.text(operand, level)
                is_apart = _APART.match(operator + text) or (operator.isalpha() and not text.startswith("("))
                return f"{operator}{' ' if is_apart else ''}{text}"
            case Lambda(parameters, body):
                names = ", ".join(map(_bare, parameters))
                return f"{names if len(parameters) == 1 else f'({names})'} -> {self._whole(body)}"
            case Literal(value):
                return _literal(value)
            case Name(name):
                return _wrapped(name) if name in self._not_bare else _name(name)
            case Member(target, name):
                # behind a dot JEXL needs the wrap for its own words only
                member = _wrapped(name) if name in RESERVED_WORDS else _name(name)
                return f"{self.text(target, level)}.{member}"
            case Item(target, index):
                return f"{self.text(target, level)}[{self._whole(index)}]"
            case Every(target):
                return f"{self.text(target, level)}[*]"
            case Call(function, arguments):
                return f"{_bare(function)}({self._list(arguments)})"
            case Method(target, name, arguments):
                return f"{self.text(target, level)}.{_bare(name)}({self._list(arguments)})"
            case ArrayLiteral(items):
                return f"[{self._list(items)}]"
            case MapLiteral(entries):
                return f"{{{', '.join(f'{self._whole(key)}: {self._whole(value)}' for key, value in entries)}}}"

    def _whole(self, node: Expression) -> str:
        return self.text(node, _CONDITIONAL)

    def _list(self, nodes: tuple[Expression, ...]) -> str:
        return ", ".join(map(self._whole, nodes))


def _level(node: Expression) -> int:
    match node:
        case Binary(operator):
            return _LEVEL_OF[operator]
        case Ternary() | Elvis() | Lambda():
            return _CONDITIONAL
        case Unary():
            return _UNARY
        case _:
            return _REFERENCE


def _name(name: str) -> str:
    return _bare(name) if _BARE_NAME.fullmatch(name) else _wrapped(name)


def _bare(name: str) -> str:
    return name.replace(".", r"\.")


def _wrapped(name: str) -> str:
    return f"${{{_ESCAPED_IN_WRAP.sub(_with_backslash, name)}}}"


def _with_backslash(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _literal(value: str | float | None) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
    quote = "'" if value.count('"') > value.count("'") else '"'
    escaped = _ESCAPED_IN_TEXT.sub(_escape, value).replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def _escape(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[0], f"\\u{ord(found[0]):04x}")
