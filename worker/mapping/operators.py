"""The operators of the mapping language over columns: those of Apache Commons JEXL 3 in its lenient form.

Where JEXL counts null as 0 in arithmetic we leave null: what is missing is not a number. A row that an operator can
make nothing of is marked as a function marks it; see `worker.mapping.functions.base`.

`&&`, `||`, `??` and `?:` are not here: they evaluate their right side only where it counts, which a function of two
columns cannot. They are documented here with the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import scalar
from worker.mapping.functions.base import present, spread
from worker.mapping.functions.comparison import NUMBERS, compare, equal, holds, numbers_beside, numeric, truth
from worker.mapping.functions.hierarchies import is_empty, size_of
from worker.mapping.functions.regular_expressions import by_pattern, whole_matches
from worker.mapping.values import KIND_NAMES, Kind, Values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from worker.mapping.functions.base import Call
    from worker.mapping.functions.comparison import Signs
    from worker.mapping.values import Decimals, Integers, Mask, Texts

    Whole = NDArray[np.int64]
    Broken = NDArray[np.float64]
    UnaryOperator = Callable[[Call, Values], Values]
    BinaryOperator = Callable[[Call, Values, Values], Values]

__all__ = ["BINARY", "OPERATORS", "UNARY", "Operator", "truth"]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

_LEAST = -(2**63)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator as it is listed to users. `decisions`: what we chose where JEXL or Adobe leave a choice."""

    symbol: str
    method_name: str
    operands: int
    description: str
    example: str
    decisions: tuple[str, ...] = ()

    def record(self) -> dict[str, object]:
        """As `GET /languages/el/operators` gives it."""
        return {
            "operatorSymbol": self.symbol,
            "methodName": self.method_name,
            "numberOfOperands": self.operands,
            "description": self.description,
            "example": self.example,
        }


# Arithmetic


def _numbers(call: Call, values: Values, name: str) -> tuple[Integers, Decimals]:
    """Numbers as integers and as decimals; what is neither fails."""
    integers, decimals = numeric(values)
    if not values.present <= NUMBERS and not (present(integers) | present(decimals) | values.is_null()).all():
        # for its reasons
        call.numbers(values, name)
    return integers, decimals


def _filled(array: Integers | Decimals, value: float) -> Any:  # noqa: ANN401 - a numpy array of the same type
    return array.fill_null(value).to_numpy(zero_copy_only=False)


def _arithmetic(
    symbol: str,
    of_integers: Callable[[Whole, Whole], tuple[Whole, Mask]],
    of_decimals: Callable[[Broken, Broken], Broken],
    *,
    divides: bool = False,
) -> BinaryOperator:
    """`of_integers` gives the results, and where they do not fit 64 bits; a divisor is never 0."""

    def evaluate(call: Call, left: Values, right: Values) -> Values:
        integers, decimals = _numbers(call, left, f"{symbol}: the left side")
        others, other_decimals = _numbers(call, right, f"{symbol}: the right side")
        planes: dict[Kind, Any] = {}
        both = present(integers, others)
        if both.any():
            one, other = _filled(integers, 0), _filled(others, 1)
            if divides:
                call.fail(both & (other == 0), f"{symbol}: division by zero")
                both &= other != 0
                other = np.where(other == 0, 1, other)
            with np.errstate(over="ignore"):
                found, too_large = of_integers(one, other)
            call.fail(both & too_large, f"{symbol}: the result does not fit 64 bits")
            planes[Kind.INTEGER] = pa.array(found, pa.int64(), mask=~(both & ~too_large))
        some = present(decimals) | present(other_decimals)
        if some.any():
            numbers, other_numbers = _as_decimals(integers, decimals), _as_decimals(others, other_decimals)
            some &= present(numbers, other_numbers)
            dividend, divisor = _filled(numbers, 0.0), _filled(other_numbers, 1.0)
            if divides:
                call.fail(some & (divisor == 0), f"{symbol}: division by zero")
                some &= divisor != 0
            with np.errstate(all="ignore"):
                result = of_decimals(dividend, divisor)
            finite = np.isfinite(result)
            call.fail(some & ~finite, f"{symbol}: the result is too large for a decimal number")
            planes[Kind.DECIMAL] = pa.array(result, pa.float64(), mask=~(some & finite))
        return Values(call.rows, planes)

    return evaluate


def _as_decimals(integers: Integers, decimals: Decimals) -> Decimals:
    return pc.coalesce(decimals, pc.cast(integers, pa.float64(), safe=False))


def _sum(left: Whole, right: Whole) -> tuple[Whole, Mask]:
    found = left + right
    # both have the sign that the result has not
    return found, ((left ^ found) & (right ^ found)) < 0


def _difference(left: Whole, right: Whole) -> tuple[Whole, Mask]:
    found = left - right
    return found, ((left ^ right) & (left ^ found)) < 0


def _product(left: Whole, right: Whole) -> tuple[Whole, Mask]:
    found = left * right
    large = (left != 0) & (np.abs(left.astype(np.float64)) * np.abs(right.astype(np.float64)) > 2.0**62)
    if large.any():
        # what overflowed does not divide back; the least number by -1 would, by another overflow
        one, other = np.where(large, left, 1), np.where(large, right, 1)
        product = np.where(large, found, 1)
        negates = (one == _LEAST) & (other == -1) | (other == _LEAST) & (one == -1)
        other = np.where(negates, 1, other)
        large = negates | (large & ((product // other != one) | (product % other != 0)))
    return found, large


def _quotient(left: Whole, right: Whole) -> tuple[Whole, Mask]:
    too_large = (left == _LEAST) & (right == -1)
    right = np.where(too_large, 1, right)
    found = left // right
    # numpy rounds down, Java towards zero
    found += (found * right != left) & ((left < 0) != (right < 0))
    return found, too_large


def _remainder(left: Whole, right: Whole) -> tuple[Whole, Mask]:
    # the least number by -1 is no quotient of 64 bits, but leaves nothing
    return np.fmod(left, np.where(right == -1, 1, right)), np.zeros(len(left), dtype=bool)


_add_numbers = _arithmetic("+", _sum, np.add)


def _add(call: Call, left: Values, right: Values) -> Values:
    if left.present <= NUMBERS and right.present <= NUMBERS:
        return _add_numbers(call, left, right)
    texts = left.has(Kind.STRING) | right.has(Kind.STRING)
    ours, theirs = _numbers_for(left, right), _numbers_for(right, left)
    adds = ~texts | ~(ours.is_null() | theirs.is_null())
    sums = _add_numbers(call, ours.where(adds), theirs.where(adds)) if adds.any() else Values.nulls(call.rows)
    if adds.all():
        return sums
    return Values(call.rows, {**sums.planes, Kind.STRING: _joined(call, left.where(~adds), right.where(~adds))})


def _numbers_for(values: Values, others: Values) -> Values:
    """The same, with numbers for the strings of numbers that stand beside numbers, and null for other strings."""
    integers, decimals = numbers_beside(values, others)
    rest = {kind: plane for kind, plane in values.planes.items() if kind not in (*NUMBERS, Kind.STRING)}
    return Values(values.length, {**rest, Kind.INTEGER: integers, Kind.DECIMAL: decimals})


def _joined(call: Call, left: Values, right: Values) -> Texts:
    one, other = call.texts(left, "+: the left side"), call.texts(right, "+: the right side")
    return call.short(pc.binary_join_element_wise(one, other, scalar("")))


def _negate(call: Call, values: Values) -> Values:
    return _subtract(call, Values.repeat(0, call.rows), values)


def _positivize(call: Call, values: Values) -> Values:
    integers, decimals = _numbers(call, values, "+")
    return Values(call.rows, {Kind.INTEGER: integers, Kind.DECIMAL: decimals})


_subtract = _arithmetic("-", _difference, np.subtract)


def _bits(symbol: str, of_integers: Callable[[Whole, Whole], Whole]) -> BinaryOperator:
    def evaluate(call: Call, left: Values, right: Values) -> Values:
        ours = call.integers(left, f"{symbol}: the left side")
        theirs = call.integers(right, f"{symbol}: the right side")
        found = of_integers(_filled(ours, 0), _filled(theirs, 0))
        return Values(call.rows, {Kind.INTEGER: pa.array(found, pa.int64(), mask=~present(ours, theirs))})

    return evaluate


def _complement(call: Call, values: Values) -> Values:
    return Values.of(pc.bit_wise_not(call.integers(values, "~")))


# Comparison


def _booleans(found: Mask, failed: Mask | None = None) -> Values:
    return Values(len(found), {Kind.BOOLEAN: pa.array(found, mask=failed)})


def _equals(_: Call, left: Values, right: Values) -> Values:
    return _booleans(equal(left, right))


def _differs(_: Call, left: Values, right: Values) -> Values:
    return _booleans(~equal(left, right))


def _related(symbol: str, holds_for: Callable[[Signs], Mask]) -> BinaryOperator:
    def evaluate(call: Call, left: Values, right: Values) -> Values:
        signs, comparable = compare(left, right)
        failed = ~(comparable | left.is_null() | right.is_null())
        if failed.any():
            _fail_pairs(call, symbol, left, right, failed)
        return _booleans(comparable & holds_for(signs), failed)

    return evaluate


def _fail_pairs(call: Call, symbol: str, left: Values, right: Values, failed: Mask) -> None:
    kinds, other_kinds = left.kinds(), right.kinds()
    pairs = np.unique(np.stack([kinds[failed], other_kinds[failed]], axis=1), axis=0)
    for kind, other in pairs.tolist():
        names = f"{KIND_NAMES[Kind(kind)]} and {KIND_NAMES[Kind(other)]}"
        call.fail(failed & (kinds == kind) & (other_kinds == other), f"{symbol}: {names} have no order")


def _matched(call: Call, left: Values, right: Values, symbol: str) -> tuple[Mask, Mask]:
    """Where the left side is in the right one, or matches it; and where neither can be said."""
    nulls, other_nulls = left.is_null(), right.is_null()
    found = nulls & other_nulls
    neither = nulls | other_nulls
    failed = np.zeros(call.rows, dtype=bool)
    for kind in sorted(right.present - {Kind.STRING, Kind.ARRAY, Kind.OBJECT}):
        wrong = right.has(kind) & ~nulls
        call.fail(wrong, f"{symbol}: the right side is {KIND_NAMES[kind]}, not a pattern, an array or an object")
        failed |= wrong
    if Kind.ARRAY in right.present:
        items = right.trees(Kind.ARRAY).where(~nulls)
        same = equal(left.take(items.rows), items.values) & ~items.values.is_null()
        found[items.rows[same]] = True
    if Kind.OBJECT in right.present:
        among = right.has(Kind.OBJECT) & ~neither
        names = call.texts(left.where(among), f"{symbol}: the left side")
        failed |= among & ~present(names)
        objects = right.trees(Kind.OBJECT)
        same = holds(pc.equal(objects.keys, names.take(pa.array(objects.rows))))
        found[objects.rows[same]] = True
    if Kind.STRING in right.present:
        among = right.has(Kind.STRING) & ~neither
        names = call.texts(left.where(among), f"{symbol}: the left side")
        patterns = right.arrow(Kind.STRING)
        matching = by_pattern(call, names, patterns, f"{symbol}: the pattern", whole_matches).arrow(Kind.BOOLEAN)
        failed |= among & ~present(matching)
        found |= holds(matching)
    return found, failed


def _contains(symbol: str, *, negated: bool) -> BinaryOperator:
    def evaluate(call: Call, left: Values, right: Values) -> Values:
        found, failed = _matched(call, left, right, symbol)
        return _booleans(~found if negated else found, failed)

    return evaluate


def _affix(symbol: str, match: Callable[[Texts, str], Any], *, negated: bool) -> BinaryOperator:
    def evaluate(call: Call, left: Values, right: Values) -> Values:
        nulls, other_nulls = left.is_null(), right.is_null()
        neither = nulls | other_nulls
        texts = call.texts(left.where(~neither), f"{symbol}: the left side")
        affixes = call.texts(right.where(~neither), f"{symbol}: the right side")
        parts = [(rows, Values.of(match(texts.take(pa.array(rows)), affix))) for affix, rows in call.by_value(affixes)]
        matching = spread(parts, call.rows).arrow(Kind.BOOLEAN)
        found = (nulls & other_nulls) | holds(matching)
        return _booleans(~found if negated else found, ~(neither | present(matching)))

    return evaluate


def _starts(texts: Texts, affix: str) -> Any:  # noqa: ANN401 - a BooleanArray
    return pc.starts_with(texts, affix)


def _ends(texts: Texts, affix: str) -> Any:  # noqa: ANN401 - a BooleanArray
    return pc.ends_with(texts, affix)


# Of one operand


def _not(call: Call, values: Values) -> Values:
    before = call.failed.copy()
    return _booleans(~truth(call, values), call.failed & ~before)


def _size(call: Call, values: Values) -> Values:
    sizes = size_of(call, values).arrow(Kind.INTEGER)
    return Values.of(pc.if_else(pa.array(values.is_null()), scalar(0), sizes))


UNARY: Mapping[str, UnaryOperator] = {
    "!": _not,
    "~": _complement,
    "-": _negate,
    "+": _positivize,
    "empty": is_empty,
    "size": _size,
}

BINARY: Mapping[str, BinaryOperator] = {
    "+": _add,
    "-": _subtract,
    "*": _arithmetic("*", _product, np.multiply),
    "/": _arithmetic("/", _quotient, np.divide, divides=True),
    "%": _arithmetic("%", _remainder, np.fmod, divides=True),
    "&": _bits("&", np.bitwise_and),
    "|": _bits("|", np.bitwise_or),
    "^": _bits("^", np.bitwise_xor),
    "==": _equals,
    "!=": _differs,
    "<": _related("<", lambda signs: signs < 0),
    "<=": _related("<=", lambda signs: signs <= 0),
    ">": _related(">", lambda signs: signs > 0),
    ">=": _related(">=", lambda signs: signs >= 0),
    "=~": _contains("=~", negated=False),
    "!~": _contains("!~", negated=True),
    "=^": _affix("=^", _starts, negated=False),
    "!^": _affix("!^", _starts, negated=True),
    "=$": _affix("=$", _ends, negated=False),
    "!$": _affix("!$", _ends, negated=True),
}

_NULL_STAYS = "Null on a side gives null, where JEXL counts it as 0."
_NUMBERS_ONLY = "Numbers, and strings of numbers; anything else fails, booleans too, which JEXL counts as 0 and 1."
_OVERFLOW = "An integer beyond 64 bits fails, as does a decimal number beyond the largest."
_ARITHMETIC = (_NULL_STAYS, _NUMBERS_ONLY, _OVERFLOW)
_ZERO = "Division by zero fails."
_BITWISE = (_NULL_STAYS, "The sides are integers, or decimals and strings that are such.")
_EQUALITY = (
    "Null equals null and nothing else.",
    "A number equals a string of that number, a date a string of a default date format with that instant, a boolean a "
    "string that stands for it; a boolean equals a number if that is not 0 just where the boolean is true.",
    "Integers and decimals compare exactly, where JEXL makes both decimals first.",
    "Arrays and objects are equal if their content is: the same kinds, numbers by value, keys in any order.",
)
_ORDER = (
    "A comparison with null is false.",
    "Strings follow the numbers of their characters in Unicode, false comes before true.",
    "A string beside a number or a date counts as one if it is one; sides that cannot be compared fail.",
)
_MATCH = (
    "The pattern has to match the whole string, as in Java.",
    "Patterns are RE2's, which has no lookaround and no references back; one that is none fails.",
    "In an array the items are compared as == does; beside an object it looks for a key.",
    "Null matches null and nothing else.",
)
_AFFIX = (
    "Numbers, booleans and dates count as they are written; arrays and objects fail.",
    "Null begins and ends with null and nothing else.",
)

OPERATORS: tuple[Operator, ...] = (
    Operator(
        "+",
        "add",
        2,
        "The sum of two numbers, or two strings one after the other.",
        "1 + 2",
        (
            _NULL_STAYS,
            "Two strings are joined, be they numbers or not; a string beside a number is added if it is a number, "
            "else joined, as beside a boolean or a date.",
            "Two sides of which neither is a string have to be numbers.",
            _OVERFLOW,
        ),
    ),
    Operator("-", "subtract", 2, "The left number less the right one.", "3 - 2", _ARITHMETIC),
    Operator("*", "multiply", 2, "The product of two numbers.", "2 * 3", _ARITHMETIC),
    Operator(
        "/",
        "divide",
        2,
        "The left number divided by the right one.",
        "1 / 2",
        (*_ARITHMETIC, "Of two integers it is an integer, rounded towards zero: 1 / 2 is 0, 1.0 / 2 is 0.5.", _ZERO),
    ),
    Operator(
        "%",
        "mod",
        2,
        "What division leaves over.",
        "5 % 2",
        (*_ARITHMETIC, "It has the sign of the left side.", _ZERO),
    ),
    Operator("&", "and", 2, "The bits that both integers have.", "6 & 3", _BITWISE),
    Operator("|", "or", 2, "The bits that one of two integers has.", "6 | 3", _BITWISE),
    Operator("^", "xor", 2, "The bits that just one of two integers has.", "6 ^ 3", _BITWISE),
    Operator("==", "equals", 2, "Whether both sides are the same.", "a == b", _EQUALITY),
    Operator("!=", "notEquals", 2, "Whether the sides differ.", "a != b", _EQUALITY),
    Operator("<", "lessThan", 2, "Whether the left side comes first.", "1 < 2", _ORDER),
    Operator("<=", "lessThanOrEqual", 2, "Whether the left side comes first, or both are the same.", "1 <= 2", _ORDER),
    Operator(">", "greaterThan", 2, "Whether the right side comes first.", "2 > 1", _ORDER),
    Operator(
        ">=", "greaterThanOrEqual", 2, "Whether the right side comes first, or both are the same.", "2 >= 1", _ORDER
    ),
    Operator(
        "=~",
        "contains",
        2,
        "Whether the left side matches the regular expression on the right, or is one of the items of the array there.",
        '"abc" =~ "a.*"',
        _MATCH,
    ),
    Operator("!~", "notContains", 2, "The opposite of =~.", '"abc" !~ ["a", "b"]', _MATCH),
    Operator("=^", "startsWith", 2, "Whether the left string begins with the right one.", '"abc" =^ "ab"', _AFFIX),
    Operator("!^", "notStartsWith", 2, "The opposite of =^.", '"abc" !^ "bc"', _AFFIX),
    Operator("=$", "endsWith", 2, "Whether the left string ends with the right one.", '"abc" =$ "bc"', _AFFIX),
    Operator("!$", "notEndsWith", 2, "The opposite of =$.", '"abc" !$ "ab"', _AFFIX),
    Operator(
        "!",
        "not",
        1,
        "Whether a condition does not hold.",
        "!cond1",
        (
            "As a condition null is false, a number true unless it is 0, and a string what Data Prep takes it for; "
            "other strings, dates, arrays and objects fail.",
        ),
    ),
    Operator("~", "complement", 1, "An integer with every bit turned round.", "~44", (_NULL_STAYS,)),
    Operator("-", "negate", 1, "A number with its sign turned round.", "-12", _ARITHMETIC),
    Operator("+", "positivize", 1, "The number itself; a string of a number becomes that number.", "+12", _ARITHMETIC),
    Operator(
        "empty",
        "empty",
        1,
        "Whether there is null, an empty string, or an array or object of nothing.",
        "empty a",
        ("A number is not empty, be it 0.",),
    ),
    Operator(
        "size",
        "size",
        1,
        "How many characters a string has, items an array, or keys an object.",
        'size "Hello"',
        ("Null has the size 0; numbers, booleans and dates fail.",),
    ),
    Operator(
        "&&", "and", 2, "Whether both conditions hold; the right one counts only if the left one holds.", "a && b"
    ),
    Operator("||", "or", 2, "Whether a condition holds; the right one counts only if the left one does not.", "a || b"),
    Operator("??", "nullCoalesce", 2, "The left side, or the right one where that is null.", 'a ?? "none"'),
    Operator("?:", "ternary", 3, "The second value if the condition holds, else the third.", 'a > 0 ? "yes" : "no"'),
)
