r"""From the text of a JSON value to a column's type, whole blocks at a time.

What becomes of a text depends on that text alone, never on its neighbours. A text that does not fit becomes null:

* string: every text as it is.
* int8 to int64: digits with an optional `-`, in range. Also a number written with a fraction or a positive exponent
  (two digits at most) if its value is whole: `12.0`, `1.5e3`. Not `+1`, `0x1F`, `1_000`, `1500e-2`, nor with spaces.
* float64: numbers of JSON's grammar, and leading zeros. Not `NaN`, `Infinity`, `+1`, `.5`, or what overflows.
* bool: exactly these strings, no other case (Data Prep, data handling, booleans): true TRUE y Y yes YES on ON and
  false FALSE n N no NO off OFF. Not `1` and `0`.
* date32: `2024-02-29`, years 0001 to 9999.
* timestamp: RFC 3339, `2024-02-29T10:00:00.123Z`, with `T`, `t` or a space between; `Z`, `z` or an offset must be
  there. Digits after milliseconds are cut off. Second 60 does not fit, nor what is outside 0001 to 9999 in UTC.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import NULL, scalar
from worker.mapping.xdm import DATE_TIME

if TYPE_CHECKING:
    from collections.abc import Callable

    Column = pa.Array[Any]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

TRUE_TEXTS = pa.array(["true", "TRUE", "y", "Y", "yes", "YES", "on", "ON"])
FALSE_TEXTS = pa.array(["false", "FALSE", "n", "N", "no", "NO", "off", "OFF"])

_DIGITS_OF_ANY_INT64 = 18
_DIGITS_OF_ANY_UINT64 = 19
_PLAIN_INTEGER = rf"^-?[0-9]{{1,{_DIGITS_OF_ANY_INT64}}}$"
_INTEGER = (
    r"^(?P<sign>-?)(?P<whole>[0-9]+)(?:\.(?:(?P<fraction>[0-9]*[1-9])0*|0+))?(?:[eE]\+?(?P<exponent>[0-9]{1,2}))?$"
)
_NUMBER = r"^-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"

# A date that exists, so that the cast, which fails for a whole block, cannot fail.
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
_OFFSET = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"


def conversion_to(data_type: pa.DataType) -> Callable[[pa.StringArray], Column]:
    """The function that turns texts into `data_type`, null where a text is null or does not fit."""
    if pa.types.is_string(data_type):
        return _strings
    if pa.types.is_int64(data_type):
        return _int64
    if pa.types.is_signed_integer(data_type):
        return _narrow_integers(data_type)
    return {pa.float64(): _float64, pa.bool_(): _bool, pa.date32(): _date, DATE_TIME: _date_time}[data_type]


def _strings(texts: pa.StringArray) -> Column:
    return texts


def _int64(texts: pa.StringArray) -> Column:
    plain = pc.and_(pc.ascii_is_decimal(texts), pc.less_equal(pc.binary_length(texts), scalar(_DIGITS_OF_ANY_INT64)))
    numbers: Column
    if pc.all(plain, min_count=0).as_py():
        numbers = pc.cast(texts, pa.int64())
    else:
        plain = pc.match_substring_regex(texts, _PLAIN_INTEGER)
        numbers = pc.cast(pc.if_else(plain, texts, NULL), pa.int64())
        other = pc.and_not_kleene(pc.is_valid(texts), plain)
        numbers = pc.replace_with_mask(numbers, other, _unusual_int64(pc.filter(texts, other)))
    return numbers


def _unusual_int64(texts: pa.StringArray) -> Column:
    """Long, fractional and exponential forms: digits are moved as text, so that nothing is rounded."""
    parts = pc.extract_regex(texts, _INTEGER)
    sign, whole, fraction, exponent = (pc.fill_null(pc.struct_field(parts, position), "") for position in range(4))
    exponents = pc.cast(pc.binary_join_element_wise(scalar("0"), exponent, scalar("")), pa.int32())
    zeros = pc.subtract(exponents, pc.binary_length(fraction))
    padding = pc.binary_repeat(scalar("0"), pc.max_element_wise(zeros, scalar(0)))
    digits = pc.ascii_ltrim(pc.binary_join_element_wise(whole, fraction, padding, scalar("")), characters="0")
    is_whole = pc.and_(pc.is_valid(parts), pc.greater_equal(zeros, scalar(0)))
    fits = pc.and_(is_whole, pc.less_equal(pc.binary_length(digits), scalar(_DIGITS_OF_ANY_UINT64)))
    digits = pc.binary_join_element_wise(scalar("0"), pc.if_else(fits, digits, scalar("")), scalar(""))
    magnitudes = pc.cast(digits, pa.uint64()).to_numpy()
    negative = pc.equal(sign, scalar("-")).to_numpy(zero_copy_only=False)
    in_range = magnitudes <= np.uint64(2**63 - 1) + negative.astype(np.uint64)
    values = np.where(negative, np.negative(magnitudes), magnitudes).view(np.int64)
    numbers: Column = pa.array(values, mask=~(in_range & fits.to_numpy(zero_copy_only=False)))
    return numbers


def _narrow_integers(data_type: pa.DataType) -> Callable[[pa.StringArray], Column]:
    limit = 2 ** (data_type.bit_width - 1)

    def convert(texts: pa.StringArray) -> Column:
        numbers: Column = pc.cast(_within(_int64(texts), pa.scalar(-limit), pa.scalar(limit - 1)), data_type)
        return numbers

    return convert


def _float64(texts: pa.StringArray) -> Column:
    numbers = pc.cast(_where(pc.match_substring_regex(texts, _NUMBER), texts), pa.float64())
    return _where(pc.is_finite(numbers), numbers)


def _bool(texts: pa.StringArray) -> Column:
    true = pc.is_in(texts, value_set=TRUE_TEXTS)
    return _where(pc.or_(true, pc.is_in(texts, value_set=FALSE_TEXTS)), true)


def _date(texts: pa.StringArray) -> Column:
    dates = pc.cast(_where(pc.match_substring_regex(texts, f"^{_DATE}$"), texts), pa.date32())
    return _within(dates, pa.scalar(date.min), pa.scalar(date.max))


def _date_time(texts: pa.StringArray) -> Column:
    upper = pc.ascii_upper(texts)
    moments = _where(pc.match_substring_regex(upper, f"^{_DATE}[T ]{_TIME}{_OFFSET}$"), upper)
    moments = pc.replace_substring_regex(moments, r"(\.[0-9]{3})[0-9]+", r"\1")
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC, microsecond=999_000)
    return _within(pc.cast(moments, DATE_TIME), pa.scalar(first, DATE_TIME), pa.scalar(last, DATE_TIME))


def _where(condition: pa.BooleanArray, values: Column) -> Column:
    """The values where the condition holds, else null; no copy when it holds everywhere."""
    if condition.null_count == values.null_count and pc.all(condition, min_count=0).as_py():
        return values
    kept: Column = pc.if_else(condition, values, NULL)
    return kept


def _within(values: Column, lowest: pa.Scalar[Any], highest: pa.Scalar[Any]) -> Column:
    return _where(pc.and_(pc.greater_equal(values, lowest), pc.less_equal(values, highest)), values)
