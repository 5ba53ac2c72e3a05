"""Functions of regular expressions, and explode, whose separator is one.

They are those of RE2, in which none can run away: no lookaround and no references to groups.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import scalar
from worker.mapping.functions.base import Example, Parameter, cut, function, laid_out, present, spread
from worker.mapping.values import Items, Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

_SYNTAX = (
    "The syntax is RE2's: lookahead, lookbehind and references to groups fail. `.` stands for any character but a line "
    r"feed, `$` for the very end, and `\d`, `\w`, `\s` and `\b` know ASCII only."
)

_PLAIN = re.compile(r"[^\\^$.|?*+()\[\]{}]+")
"""A regular expression that stands for itself."""

_TOKEN = re.compile(
    r"(?P<group>\((?:\?P?<\w+>|(?!\?)))|\\Q.*?(?:\\E|\Z)|\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|.", re.DOTALL
)
"""What a regular expression consists of, as far as it takes to tell which parentheses open groups."""


def by_pattern(call: Call, texts: Texts, patterns: Texts, name: str, work: Callable[[Texts, str], Values]) -> Values:
    """What `work` makes of the texts and the pattern beside them; null where one of them is null.

    Where a pattern is refused the row fails; `name` is what the reason calls it.
    """
    parts = []
    for pattern, rows in call.by_value(patterns):
        texts_here = texts if len(rows) == call.rows else texts.take(pa.array(rows))
        try:
            # on its own first: what is put around it could close parentheses that it lacks
            pc.match_substring_regex(scalar(""), pattern)
            parts.append((rows, work(texts_here, pattern)))
        except pa.ArrowInvalid as error:
            failed = np.zeros(call.rows, dtype=bool)
            failed[rows] = present(texts_here)
            call.fail(failed, f"{name} is refused: {_why(error)}")
    return spread(parts, call.rows)


def _why(error: pa.ArrowInvalid) -> str:
    problem = str(error).partition("\n")[0].partition(": ")[2]
    # RE2 quotes the pattern, which may be another one in each row
    kind = problem.partition(": ")[0]
    if re.match(
        r"invalid perl operator: \(\?(<?[=!]|>)|invalid escape sequence: \\[0-9k]|invalid named capture", problem
    ):
        return f"{kind}; lookaround and references to groups are not supported"
    return kind


@function(
    "matches_regex",
    category="Regular expression",
    description="Whether a regular expression matches the whole of a string.",
    parameters=(Parameter("STRING", "the string"), Parameter("REGEX", "the regular expression")),
    returns="boolean",
    examples=(Example('matches_regex("E259,E259B_009,1_1", "([^,]+),[^,]*,([^,]+)")', value=True),),
    decisions=("The whole string has to match, as in Java's `matches`.", _SYNTAX),
)
def matches_regex(call: Call, string: Values, regex: Values) -> Values:
    return by_pattern(call, call.texts(string, "STRING"), call.texts(regex, "REGEX"), "REGEX", whole_matches)


def whole_matches(texts: Texts, pattern: str) -> Values:
    """Whether the pattern, which `by_pattern` has found to be one, matches the whole of each text."""
    return Values.of(pc.match_substring_regex(texts, rf"\A(?:{pattern})\z"))


@function(
    "extract_regex",
    category="Regular expression",
    description="What a regular expression finds in a string: the match, then each of its groups.",
    parameters=(Parameter("STRING", "the string"), Parameter("REGEX", "the regular expression")),
    returns="array",
    examples=(
        Example('extract_regex("E259,E259B_009,1_1", "([^,]+),[^,]*,([^,]+)")', ["E259,E259B_009,1_1", "E259", "1_1"]),
    ),
    decisions=(
        "The first match counts, wherever it begins; without one the array is empty.",
        "A group that takes no part in the match is null.",
        _SYNTAX,
    ),
)
def extract_regex(call: Call, string: Values, regex: Values) -> Values:
    return by_pattern(call, call.texts(string, "STRING"), call.texts(regex, "REGEX"), "REGEX", _groups)


def _groups(texts: Texts, pattern: str) -> Values:
    named, count = _with_named_groups(pattern)
    spans = pc.extract_regex_span(texts, named)
    data, offsets = laid_out(texts)
    matched = present(spans)
    columns = []
    for number in range(count):
        span = pc.struct_field(spans, f"g{number}")
        took_part = present(span) & matched
        # where a group has no span lies nothing in particular
        places = np.asarray(pc.fill_null(span.values, 0))[2 * span.offset : 2 * (span.offset + len(span))].reshape(
            -1, 2
        )
        starts = offsets[:-1] + np.where(took_part, places[:, 0], 0)
        columns.append(Values.of(cut(data, starts, starts + np.where(took_part, places[:, 1], 0), took_part)))
    found = Items.rows_of(columns)
    found = found.select(matched[found.rows])
    return Values.items(found.where(present(texts)))


def _with_named_groups(pattern: str) -> tuple[str, int]:
    """The pattern as group `g0`, its groups named `g1`, `g2` …, as Arrow wants them, and how many there are in all."""
    parts, count = [], 1
    for token in _TOKEN.finditer(pattern):
        if token["group"]:
            parts.append(f"(?P<g{count}>")
            count += 1
        else:
            parts.append(token[0])
    return f"(?P<g0>{''.join(parts)})", count


@function(
    "explode",
    category="String",
    description="The parts of a string between what a regular expression matches; empty ones too, unlike split.",
    parameters=(
        Parameter("STRING", "the string"),
        Parameter("REGEX", "the regular expression of what separates, by default a comma", required=False),
    ),
    returns="array",
    examples=(
        Example(
            'explode("Hi, there!", " ")', ["Hi,", "there!"], note="The page prints the second part without its `!`."
        ),
    ),
    decisions=(
        "Empty parts are empty strings, those at the end too, which Java would drop.",
        "A REGEX that matches nothing, such as `x*`, also separates between any two characters and at both ends.",
        _SYNTAX,
    ),
)
def explode(call: Call, string: Values, regex: Values | None = None) -> Values:
    regex = regex or Values.repeat(",", call.rows)
    return call.few(by_pattern(call, call.texts(string, "STRING"), call.texts(regex, "REGEX"), "REGEX", _parts))


def _parts(texts: Texts, pattern: str) -> Values:
    if _PLAIN.fullmatch(pattern):
        return Values.items(Items.of_list_array(pc.split_pattern(texts, pattern)))
    # Arrow's own splitting by a regular expression never ends where that matches nothing
    mark = _unused(texts)
    return Values.items(Items.of_list_array(pc.split_pattern(pc.replace_substring_regex(texts, pattern, mark), mark)))


def _unused(texts: Texts) -> str:
    """A string that occurs in none of these."""
    # it begins with the only one of its first character, so that it cannot overlap another one or what is before it
    mark = "\x00"
    while pc.any(pc.match_substring(texts, mark)).as_py():
        mark += "\x01" * len(mark)
    return mark
