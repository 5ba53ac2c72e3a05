"""The nodes of an expression.

Nodes are values: two are equal when they mean the same syntax, wherever it stands. Spaces, parentheses, quotes, and the
two ways to write a name or an operator (`${a.b}` and `a.b`, `and` and `&&`) leave no trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

SYMBOLS = {
    "or": "||",
    "and": "&&",
    "not": "!",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "div": "/",
    "mod": "%",
}
"""The operators that may be written as words. Nodes have the symbol."""

STATEMENT_WORDS = frozenset(
    ["break", "continue", "do", "else", "for", "function", "if", "new", "return", "var", "while"]
)
"""Words of JEXL that stand in no expression."""

RESERVED_WORDS = STATEMENT_WORDS | SYMBOLS.keys() | {"_errors", "empty", "false", "null", "size", "true"}
"""Words that are no names unless they are wrapped, `${size}`. (Data Prep, "Data Prep functions", reserved words.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    column: int = field(default=0, compare=False, repr=False)
    """Where it stands, from 1: an operator's, bracket's or name's first character. 0 when it was not read."""


@dataclass(frozen=True, slots=True)
class Literal(_Node):
    """A text, a number from 0 up, true, false or null."""

    value: str | int | float | bool | None

    def __eq__(self, other: object) -> bool:
        """As `1`, `1.0` and `true` are three literals, and Python finds their values equal."""
        if not isinstance(other, Literal):
            return NotImplemented
        return type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@dataclass(frozen=True, slots=True)
class Name(_Node):
    """A field, or a parameter of the lambda around it."""

    name: str


@dataclass(frozen=True, slots=True)
class Member(_Node):
    """`target.name`"""

    target: Expression
    name: str


@dataclass(frozen=True, slots=True)
class Item(_Node):
    """`target[index]`"""

    target: Expression
    index: Expression


@dataclass(frozen=True, slots=True)
class Every(_Node):
    """`target[*]`"""

    target: Expression


@dataclass(frozen=True, slots=True)
class Call(_Node):
    """`function(arguments)`"""

    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Method(_Node):
    """`target.name(arguments)`"""

    target: Expression
    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Unary(_Node):
    """`operator` is one of `! ~ - + empty size`."""

    operator: str
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(_Node):
    """`operator` is one of `+ - * / % & | ^ == != < <= > >= =~ !~ =^ !^ =$ !$ && || ??`."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Ternary(_Node):
    """`condition ? yes : no`"""

    condition: Expression
    yes: Expression
    no: Expression


@dataclass(frozen=True, slots=True)
class Elvis(_Node):
    """`condition ?: otherwise`"""

    condition: Expression
    otherwise: Expression


@dataclass(frozen=True, slots=True)
class ArrayLiteral(_Node):
    """`[1, 2]`"""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class MapLiteral(_Node):
    """`{"k": v}`; whether a bare key means itself or a field is not syntax: it is a `Name`."""

    entries: tuple[tuple[Expression, Expression], ...]


@dataclass(frozen=True, slots=True)
class Lambda(_Node):
    """`x -> body` and `(x, y) -> body`; stands nowhere but among arguments."""

    parameters: tuple[str, ...]
    body: Expression


Expression: TypeAlias = (
    Literal
    | Name
    | Member
    | Item
    | Every
    | Call
    | Method
    | Unary
    | Binary
    | Ternary
    | Elvis
    | ArrayLiteral
    | MapLiteral
    | Lambda
)


def children(node: Expression) -> tuple[Expression, ...]:
    """The nodes right below `node`, in the order in which they are written."""
    match node:
        case Literal() | Name():
            return ()
        case Member(target=child) | Every(target=child) | Unary(operand=child) | Lambda(body=child):
            return (child,)
        case Item(target=first, index=second):
            return (first, second)
        case Binary(left=first, right=second) | Elvis(condition=first, otherwise=second):
            return (first, second)
        case Ternary(condition, yes, no):
            return (condition, yes, no)
        case Call(arguments=several) | ArrayLiteral(items=several):
            return several
        case Method(target=target, arguments=arguments):
            return (target, *arguments)
        case MapLiteral(entries):
            return tuple(part for entry in entries for part in entry)
