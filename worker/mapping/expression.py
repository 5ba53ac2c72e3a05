"""An expression of the mapping language, compiled to one function over columns.

Each part of an expression becomes a step that makes a column of values from the columns of its parts. Steps do not
stop for rows they can make nothing of: such a row is marked, goes on as null, and is null in the end. A branch that is
not taken marks nothing: that of `?:` and `iif`, the right side of `&&`, `||`, `??` and `a ?: b`.

Where an expression reads the events, it does so by the paths of `worker.mapping.sources`. `[n]` takes an element of an
array, from the end if n is negative, `["name"]` a field of an object, `[*]` all elements: what follows it is done with
each of them. What is not there is null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from worker.errors import ConfigurationError
from worker.mapping.attributes import MAX_RESULT_BYTES, TooMuchError
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.base import Call, spread
from worker.mapping.functions.refused import REFUSED
from worker.mapping.language.parser import ExpressionError, parse
from worker.mapping.language.tree import (
    ArrayLiteral,
    Binary,
    Elvis,
    Every,
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
from worker.mapping.language.tree import Call as CallNode
from worker.mapping.operators import BINARY, UNARY, truth
from worker.mapping.sources import alternatives_of, resolve
from worker.mapping.values import Items, Kind, Values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from worker.mapping.attributes import Attributes
    from worker.mapping.functions.base import Function, Returns
    from worker.mapping.language.tree import Expression as Node
    from worker.mapping.sources import SourcePath
    from worker.mapping.values import Mask, Positions, Scalar

    Alternatives = tuple[SourcePath, ...]
    Step = Callable[["Block"], Values]
    Branch = Callable[["Block", Mask], Values]
    # the column of an attribute, in these rows of a block or in all
    Read = Callable[[Alternatives, Positions | None], Values]

METHODS = {name: made for name, made in REGISTRY.by_name.items() if made.method}
LAZY_FUNCTION = "iif"
PATH_FUNCTION = "contains_key"
"""Its argument is a path in a string."""
FIELD_FUNCTION = "object_to_map"
"""Its second argument, of two, may be the bare name of a field."""
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Shared:
    """What several expressions call alike is evaluated once for the same rows of a block.

    `groups` numbers such calls, by the `id` of their nodes; `results` has what they gave, and the call they failed in.
    """

    groups: Mapping[int, int]
    results: dict[int, tuple[Values, Call]]


@dataclass(frozen=True, slots=True)
class Block:
    """The rows that an expression, or a branch of it, is evaluated over: these of all that `read` knows, or all."""

    call: Call
    read: Read
    rows: Positions | None = None
    shared: Shared | None = None

    def part(self, at: Positions) -> Block:
        """Some of the rows; nothing is shared there."""
        return Block(Call(len(at), self.call.moment), self.read, at if self.rows is None else self.rows[at])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an expression gives for a block: null where it failed; `failures` has each reason and its rows."""

    values: Values
    failures: tuple[tuple[str, Positions], ...]


class Expression:
    """A compiled expression. Immutable; any number of threads may evaluate it at once.

    `attributes`: what it reads of an event, each with the places it may have there, best first. `returns`: what it
    gives where it gives anything. `deterministic`: equal events give equal results, today and tomorrow. `calls`: its
    calls of functions, if it is.
    """

    def __init__(self, node: Node) -> None:
        """Compile a tree. Raises ExpressionError, which says where what is wrong."""
        compiler = _Compiler()
        self._step = compiler.compile(node)
        self.attributes: tuple[Alternatives, ...] = tuple(compiler.attributes)
        self.deterministic = compiler.deterministic
        self.calls: tuple[Node, ...] = tuple(compiler.calls) if compiler.deterministic else ()
        # to find equal rows costs more than to copy a value
        self._shareable = compiler.deterministic and not isinstance(node, Name | Member | Item | Every)
        self.returns: Returns = _returns(node)
        if not self.attributes:
            self._check_constant(node)

    @classmethod
    def of(cls, text: str) -> Expression:
        """Compile a text. Raises ExpressionError."""
        return cls(parse(text, functions=FUNCTION_NAMES))

    @classmethod
    def of_path(cls, text: str) -> Expression:
        """Compile a path, in which elements of arrays may occur. Raises ExpressionError for anything else."""
        node = parse(text)
        if not isinstance(node, Name | Member | Item | Every):
            raise ExpressionError(
                node.column, "this is not a path", advice='An expression needs "sourceType": "EXPRESSION".'
            )
        return cls(node)

    @classmethod
    def of_names(cls, names: SourcePath) -> Expression:
        """Compile a path of names."""
        node: Node = Name(names[0])
        for name in names[1:]:
            node = Member(node, name)
        return cls(node)

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Evaluate over a block of events; of rows that are equal in what is read, only one is.

        Raises TooMuchError for blocks of several rows.
        """
        distinct = attributes.distinct(self.attributes) if self._shareable else None
        results = attributes.results_for(self.attributes if distinct is not None else None)
        shared = Shared(attributes.groups, results)
        if distinct is None:
            return self._evaluate(Block(Call(attributes.rows, attributes.moment), attributes.read, None, shared))
        call = Call(len(distinct.rows), attributes.moment)
        outcome = self._evaluate(Block(call, attributes.read, distinct.rows, shared))
        failures = []
        for reason, at in outcome.failures:
            failed = np.zeros(len(distinct.rows), dtype=bool)
            failed[at] = True
            failures.append((reason, np.flatnonzero(failed[distinct.codes])))
        # one long value may stand for many rows
        if (
            outcome.values.nbytes * attributes.rows > MAX_RESULT_BYTES
            and int(outcome.values.row_bytes()[distinct.codes].sum()) > MAX_RESULT_BYTES
        ):
            raise TooMuchError(attributes.rows)
        return Outcome(outcome.values.take(distinct.codes), tuple(failures))

    def _evaluate(self, block: Block) -> Outcome:
        rows = block.call.rows
        try:
            values = self._step(block)
        except (pa.ArrowException, MemoryError, OverflowError) as error:
            # a kernel refuses a whole block for what is in one row, such as more than it has room for
            if rows == 1:
                reason = str(error).partition("\n")[0] or type(error).__name__
                return Outcome(Values.nulls(1), ((reason, np.zeros(1, dtype=np.int64)),))
        else:
            failures = tuple((reason, at) for reason, at in block.call.failures() if len(at))
            return Outcome(values.where(~block.call.failed) if failures else values, failures)
        middle = rows // 2
        first = self._evaluate(block.part(np.arange(middle)))
        second = self._evaluate(block.part(np.arange(middle, rows)))
        rows_of = dict(first.failures)
        for reason, at in second.failures:
            rows_of[reason] = np.concatenate([rows_of.get(reason, at[:0]), at + middle])
        if first.values.nbytes + second.values.nbytes > MAX_RESULT_BYTES:
            raise TooMuchError(rows)
        return Outcome(Values.concat([first.values, second.values]), tuple(rows_of.items()))

    def _check_constant(self, node: Node) -> None:
        """An expression that reads nothing and fails would fail for every event."""
        outcome = self._evaluate(Block(Call(1), _nothing))
        if outcome.failures:
            raise ExpressionError(node.column, outcome.failures[0][0])


def _nothing(_: Alternatives, __: Positions | None) -> Values:
    raise AssertionError("the expression reads nothing")


class _Compiler:
    """Turns nodes into steps, and notes what they read on the way."""

    def __init__(self) -> None:
        self.attributes: dict[Alternatives, None] = {}
        self.calls: list[Node] = []
        self.deterministic = True

    def compile(self, node: Node) -> Step:
        match node:
            case Literal(value=value):
                return self._literal(node, value)
            case Name() | Member() | Item() | Every():
                return self._access(node)
            case CallNode(function=name, arguments=arguments):
                return self._call(node, name, arguments)
            case Method(target=target, name=name, arguments=arguments):
                made = METHODS.get(name)
                if made is None:
                    known = ", ".join(f".{method}()" for method in METHODS)
                    raise ExpressionError(
                        node.column, f"there is no method .{name}()", advice=f"The methods are {known}."
                    )
                return self._evaluation(node, made, (target, *arguments))
            case Unary(operator=operator, operand=operand):
                of_one = UNARY[operator]
                inner = self.compile(operand)
                return lambda block: of_one(block.call, inner(block))
            case Binary(operator="&&" | "||" | "??" as operator, left=left, right=right):
                otherwise = self.compile(right)
                return _lazy(operator, self.compile(left), otherwise if operator == "??" else _truth(otherwise))
            case Binary(operator=operator, left=left, right=right):
                of_two = BINARY[operator]
                one, other = self.compile(left), self.compile(right)
                return lambda block: _made(block, of_two(block.call, one(block), other(block)))
            case Ternary(condition=condition, yes=yes, no=no):
                return _ternary(self.compile(condition), self._branch(yes), self._branch(no))
            case Elvis(condition=condition, otherwise=otherwise):
                return _lazy("?:", self.compile(condition), self.compile(otherwise))
            case ArrayLiteral(items=items):
                steps = [self.compile(item) for item in items]
                return lambda block: _array(block, [_made(block, step(block)) for step in steps])
            case MapLiteral(entries=entries):
                pairs = [(self.compile(key), self.compile(value)) for key, value in entries]
                return lambda block: _object(
                    block, [(_made(block, key(block)), _made(block, value(block))) for key, value in pairs]
                )
            case Lambda():
                raise ExpressionError(
                    node.column,
                    "`x -> …` is for filterArray and transformArray, which Adobe has for destinations only",
                )
        raise AssertionError(node)

    def _literal(self, node: Node, value: Scalar) -> Step:
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise ExpressionError(node.column, f"{value} does not fit 64 bits")
        if isinstance(value, float) and not np.isfinite(value):
            raise ExpressionError(node.column, "the number is too large")
        return lambda block: Values.repeat(value, block.call.rows)

    def _branch(self, node: Node) -> Branch:
        """What a node gives for the rows that take it; in the others anything may stand."""
        step = self.compile(node)
        if isinstance(node, Literal):
            # it cannot fail
            return lambda block, _: step(block)
        return lambda block, mask: _under(block, mask, step)

    def _attribute(self, alternatives: Alternatives) -> Step:
        self.attributes[alternatives] = None
        return lambda block: block.read(alternatives, block.rows)

    # Paths

    def _access(self, node: Node) -> Step:
        names = _names(node)
        if names is not None:
            try:
                return self._attribute(alternatives_of(names))
            except ConfigurationError as error:
                raise ExpressionError(node.column, error.message, advice=error.advice) from error
        match node:
            case Every(target=target):
                return self.compile(target)
            case Member(target=target, name=name):
                return _within(_every_count(target), self.compile(target), lambda _, values: _member(values, name))
            case Item(target=target, index=index):
                step = self.compile(index)
                if _every_count(target) and not isinstance(index, Literal):
                    raise ExpressionError(index.column, "behind [*] only a number or a name can stand in [ ]")
                return self._item(_every_count(target), self.compile(target), step)
        raise AssertionError(node)

    def _item(self, depth: int, target: Step, index: Step) -> Step:
        def step(block: Block) -> Values:
            wanted = index(block)

            def chosen(rows: Positions | None, values: Values) -> Values:
                return _item(values, wanted if rows is None else wanted.take(rows))

            return _within(depth, target, chosen)(block)

        return step

    # Calls

    def _call(self, node: Node, name: str, arguments: tuple[Node, ...]) -> Step:
        if (reason := REFUSED.get(name)) is not None:
            raise ExpressionError(node.column, f"{name} cannot be used here: {reason}")
        made = REGISTRY.by_name[name]
        if made.method:
            raise ExpressionError(
                node.column, f"{name} is a method", advice=f'Write it behind its value: x.{name}("…").'
            )
        return self._evaluation(node, made, arguments)

    def _evaluation(self, node: Node, made: Function, arguments: tuple[Node, ...]) -> Step:
        _check_arguments(node, made, len(arguments))
        self.deterministic &= made.deterministic
        if made.name == LAZY_FUNCTION:
            condition, yes, no = arguments
            return _ternary(self.compile(condition), self._branch(yes), self._branch(no))
        if made.name == PATH_FUNCTION:
            return self._path_function(made, arguments[0])
        if made.name == FIELD_FUNCTION and len(arguments) == 2 and isinstance(arguments[1], Name):
            arguments = (arguments[0], Literal(arguments[1].name, column=arguments[1].column))
        self.calls.append(node)
        return _shared(node, _called(made, [self.compile(argument) for argument in arguments]))

    def _path_function(self, made: Function, argument: Node) -> Step:
        if isinstance(argument, Literal) and isinstance(argument.value, str):
            try:
                inner = self._attribute(resolve(argument.value))
            except ConfigurationError as error:
                raise ExpressionError(argument.column, error.message, advice=error.advice) from error
        elif isinstance(argument, Name | Member | Item | Every):
            inner = self.compile(argument)
        else:
            raise ExpressionError(
                argument.column, f"{made.name} wants a path in quotes", advice=f'{made.name}("data.item_id")'
            )
        return _called(made, [inner])


def _under(block: Block, mask: Mask, step: Step) -> Values:
    """What a step gives for the rows of the mask, the only ones for which it is evaluated and can fail."""
    if mask.all():
        return step(block)
    at = np.flatnonzero(mask)
    if not len(at):
        return Values.nulls(block.call.rows)
    part = block.part(at)
    values = step(part)
    block.call.fail_as(part.call, at)
    block.call.made_bytes += part.call.made_bytes
    return spread([(at, values)], block.call.rows)


def _called(made: Function, arguments: Sequence[Step]) -> Step:
    def step(block: Block) -> Values:
        columns = [argument(block) for argument in arguments]
        block.call.function = made.name
        try:
            values = made.evaluate(block.call, *columns)
        finally:
            block.call.function = None
        return _made(block, values)

    return step


def _shared(node: Node, step: Step) -> Step:
    """A step that is done once for all expressions of a mapping set that have this call."""

    def once(block: Block) -> Values:
        shared = block.shared
        group = None if shared is None else shared.groups.get(id(node))
        if shared is None or group is None:
            return step(block)
        known = shared.results.get(group)
        if known is None:
            inner = Block(Call(block.call.rows, block.call.moment), block.read, block.rows, shared)
            known = shared.results[group] = (step(inner), inner.call)
        values, call = known
        block.call.fail_as(call, np.arange(block.call.rows))
        return _made(block, values)

    return once


def groups_of(expressions: Iterable[Expression]) -> dict[int, int]:
    """The calls that occur more than once in these expressions, numbered: equal ones alike, by the `id` of each."""
    alike: dict[Node, list[Node]] = {}
    for expression in expressions:
        for node in expression.calls:
            alike.setdefault(node, []).append(node)
    return {id(node): number for number, nodes in enumerate(alike.values()) if len(nodes) > 1 for node in nodes}


def _made(block: Block, values: Values) -> Values:
    """Count what is made, or put into something that is made. Raises MemoryError when that is too much."""
    block.call.made_bytes += values.nbytes
    block.call.check_room(block.call.made_bytes)
    return values


def _lazy(operator: str, left: Step, right: Step) -> Step:
    """`&&`, `||`, `??`, or `?:` for `a ?: b`; the right side counts for the rows that the left one does not decide."""

    def step(block: Block) -> Values:
        first = left(block)
        match operator:
            case "&&":
                decided, values = ~truth(block.call, first), Values.repeat(value=False, length=block.call.rows)
            case "||":
                decided, values = truth(block.call, first), Values.repeat(value=True, length=block.call.rows)
            case "??":
                decided, values = ~first.is_null(), first
            case _:
                yes = np.asarray(first.arrow(Kind.BOOLEAN).fill_null(pa.scalar(value=True)))
                decided, values = ~first.is_null() & yes, first
        return Values.choose(np.where(decided, 0, 1), [values, _under(block, ~decided, right)])

    return step


def _truth(step: Step) -> Step:
    return lambda block: Values.of(pa.array(truth(block.call, step(block))))


def _ternary(condition: Step, yes: Branch, no: Branch) -> Step:
    def step(block: Block) -> Values:
        holds = truth(block.call, condition(block))
        return Values.choose(np.where(holds, 0, 1), [yes(block, holds), no(block, ~holds)])

    return step


def _array(block: Block, columns: Sequence[Values]) -> Values:
    rows = block.call.rows
    if not columns:
        lengths = np.zeros(rows, dtype=np.int64)
        return Values.items(Items.of_lengths(lengths, Values.nulls(0)))
    return Values.items(Items.rows_of(columns))


def _object(block: Block, pairs: Sequence[tuple[Values, Values]]) -> Values:
    rows = block.call.rows
    if not pairs:
        lengths = np.zeros(rows, dtype=np.int64)
        return Values.items(Items.of_lengths(lengths, Values.nulls(0), keys=pa.array([], pa.string())))
    keys = Items.rows_of([Values.of(block.call.texts(key, "a key")) for key, _ in pairs])
    block.call.fail_items(keys, keys.values.is_null(), "a key is null")
    members = Items.rows_of([value for _, value in pairs])
    names = keys.values.arrow(Kind.STRING).fill_null("")
    return Values.items(Items(members.offsets, members.valid, members.values, names))


def _names(node: Node) -> SourcePath | None:
    """The names of a path of nothing but names."""
    match node:
        case Name(name=name):
            return (name,)
        case Member(target=target, name=name):
            names = _names(target)
            return None if names is None else (*names, name)
    return None


def _every_count(node: Node) -> int:
    """How many `[*]` stand in a path."""
    match node:
        case Every(target=target):
            return 1 + _every_count(target)
        case Member(target=target) | Item(target=target):
            return _every_count(target)
    return 0


def _within(depth: int, target: Step, change: Callable[[Positions | None, Values], Values]) -> Step:
    """Do something with the values of a step, or with the elements of its arrays, so many levels down.

    `change` takes, for elements, the row of each, else None, and the values.
    """

    def below(level: int, rows: Positions | None, values: Values) -> Values:
        if level == 0:
            return change(rows, values)
        arrays = values.trees(Kind.ARRAY)
        inner = arrays.rows if rows is None else rows[arrays.rows]
        return Values.items(arrays.with_values(below(level - 1, inner, arrays.values)))

    return lambda block: below(depth, None, target(block))


def _member(values: Values, name: str) -> Values:
    return values.trees(Kind.OBJECT).member(name) if Kind.OBJECT in values.present else Values.nulls(values.length)


def _item(values: Values, index: Values) -> Values:
    """Elements of arrays by number, fields of objects by name; null for anything else."""
    found: list[Values] = []
    places = index.arrow(Kind.INTEGER)
    if Kind.ARRAY in values.present and places.null_count < len(places):
        # no array has so many elements that the least number is one of them
        at = np.asarray(places.fill_null(-_LARGEST)).clip(-(2**40), 2**40)
        found.append(values.trees(Kind.ARRAY).item(at))
    names = index.arrow(Kind.STRING)
    if Kind.OBJECT in values.present and names.null_count < len(names):
        found.append(values.trees(Kind.OBJECT).members(names))
    if not found:
        return Values.nulls(values.length)
    if len(found) == 1:
        return found[0]
    return Values.choose(np.where(values.has(Kind.ARRAY), 0, 1), found)


def _check_arguments(node: Node, made: Function, count: int) -> None:
    least, most = made.least_arguments, made.most_arguments
    if least <= count and (most is None or count <= most):
        return
    raise ExpressionError(
        node.column,
        f"{made.name} does not take {count} argument{'' if count == 1 else 's'}",
        advice=f"It is {made.signature}.",
    )


_OF_KIND: dict[type, Returns] = {str: "string", bool: "boolean", int: "integer", float: "double"}
_COMPARISONS = frozenset(("==", "!=", "<", "<=", ">", ">=", "=~", "!~", "=^", "!^", "=$", "!$", "&&", "||"))
_BITS = frozenset("&|^")


def _returns(node: Node) -> Returns:
    """What an expression gives where it gives anything."""
    match node:
        case Literal(value=value):
            return _OF_KIND.get(type(value), "any")
        case CallNode(function="iif", arguments=(_, yes, no)) | Ternary(yes=yes, no=no):
            return _common(yes, no)
        case CallNode(function=name) | Method(name=name):
            return REGISTRY.by_name[name].returns
        case Unary(operator="!" | "empty"):
            return "boolean"
        case Unary(operator="size" | "~"):
            return "integer"
        case Binary(operator=operator) if operator in _COMPARISONS:
            return "boolean"
        case Binary(operator=operator) if operator in _BITS:
            return "integer"
        case Binary(operator="??", left=left, right=right) | Elvis(condition=left, otherwise=right):
            return _common(left, right)
        case ArrayLiteral():
            return "array"
        case MapLiteral():
            return "object"
    return "any"


def _common(one: Node, other: Node) -> Returns:
    """What two branches have in common; one that is null has anything."""
    kinds = {_returns(branch) for branch in (one, other) if not (isinstance(branch, Literal) and branch.value is None)}
    return kinds.pop() if len(kinds) == 1 else "any"


FUNCTION_NAMES = frozenset((*REGISTRY.by_name, *REFUSED))
