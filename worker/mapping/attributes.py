"""What the expressions of a mapping set read of a block of events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.errors import ResourceError
from worker.mapping.context import FLOW
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from worker.mapping.context import Context
    from worker.mapping.functions.base import Call
    from worker.mapping.sources import SourcePath
    from worker.mapping.values import Positions, Texts

    Alternatives = tuple[SourcePath, ...]

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute
_pa: Any = pa


SAMPLE_ROWS, MOST_DIFFER = 1024, 0.97
"""Where so large a share of so many rows differs, the others will: they are identifiers or moments."""


MAX_RESULT_BYTES = 256 << 20
"""What expressions may give for the rows of a block that are mapped together."""


class TooMuchError(ResourceError):
    """The expressions make too much for so many rows at once; for one row they never do."""

    def __init__(self, rows: int) -> None:
        super().__init__(
            f"The expressions make more than {MAX_RESULT_BYTES >> 20} MiB for {rows} rows.",
            advice="Make shorter values, or take fewer rows.",
        )


class Distinct(NamedTuple):
    """The rows of a block that differ: `rows` has one of each, `codes` says for every row which of them it equals."""

    rows: Positions
    codes: Positions


class _Codes(NamedTuple):
    """Rows with equal codes are equal; codes go from 0 to before `end`, and every one occurs."""

    codes: Positions
    end: int


class Attributes:
    """The columns that a block of events has, by the places that an attribute may have there, best first."""

    def __init__(
        self,
        positions: Mapping[SourcePath, int],
        texts: Sequence[pa.StringArray],
        kinds: Sequence[NDArray[np.uint8] | None],
        context: Context,
        groups: Mapping[int, int] | None = None,
    ) -> None:
        """`positions` says where in `texts` and `kinds` a path has its column; see `Mapper.map`.

        `groups`: the calls that several expressions have, see `worker.mapping.expression`.
        """
        self.groups = groups or {}
        self.rows = len(texts[0])
        self.moment = context.moment
        self._positions = positions
        self._texts = texts
        self._kinds = kinds
        self._facts = context.facts
        self._read: dict[Alternatives, Values] = {}
        self._codes: dict[Alternatives, _Codes | None] = {}
        self._distinct: dict[tuple[Alternatives, ...], Distinct | None] = {}
        self._results: dict[tuple[Alternatives, ...] | None, dict[int, tuple[Values, Call]]] = {}

    def read(self, alternatives: Alternatives, rows: Positions | None) -> Values:
        """An attribute in these rows of the block, or in all."""
        if alternatives[0][0] == FLOW:
            return Values.repeat(self._facts[alternatives[0][1]], self.rows if rows is None else len(rows))
        if (known := self._read.get(alternatives)) is not None:
            return known if rows is None else known.take(rows)
        columns = self._columns(alternatives)
        if rows is not None:
            # a tree is read only in the rows where it is wanted
            columns = [(text.take(_pa.array(rows)), kind[rows]) for text, kind in columns]
        candidates = [Values.from_json(text, kind) for text, kind in columns]
        values = _first_value(candidates) if candidates else Values.nulls(self.rows if rows is None else len(rows))
        if rows is None:
            self._read[alternatives] = values
        return values

    def results_for(self, attributes: tuple[Alternatives, ...] | None) -> dict[int, tuple[Values, Call]]:
        """Where expressions keep what they share: over the rows that differ in these attributes, or over all."""
        return self._results.setdefault(attributes, {})

    def distinct(self, attributes: tuple[Alternatives, ...]) -> Distinct | None:
        """The rows in which something of these attributes differs; None where most of all rows do."""
        if attributes not in self._distinct:
            self._distinct[attributes] = self._find_distinct(attributes)
        return self._distinct[attributes]

    def _columns(self, alternatives: Alternatives) -> list[tuple[Texts, NDArray[np.uint8]]]:
        """The columns that have anything."""
        columns = []
        for position in (self._positions[path] for path in alternatives):
            text, kind = self._texts[position], self._kinds[position]
            assert kind is not None, "the kinds of what expressions read were not asked for"
            if text.null_count < len(text):
                columns.append((text, kind))
        return columns

    def _find_distinct(self, attributes: tuple[Alternatives, ...]) -> Distinct | None:
        codes = _Codes(np.zeros(self.rows, dtype=np.int64), 1)
        for alternatives in attributes:
            if alternatives[0][0] == FLOW:
                continue
            if alternatives not in self._codes:
                self._codes[alternatives] = self._codes_of(alternatives)
            theirs = self._codes[alternatives]
            together = None if theirs is None else self._together(codes, theirs)
            if together is None:
                return None
            codes = together
        first = np.empty(codes.end, dtype=np.int64)
        # numpy keeps the last of equal indices: the first row of each code
        first[codes.codes[::-1]] = np.arange(self.rows - 1, -1, -1)
        return Distinct(first, codes.codes)

    def _codes_of(self, alternatives: Alternatives) -> _Codes | None:
        codes: _Codes | None = _Codes(np.zeros(self.rows, dtype=np.int64), 1)
        for text, kind in self._columns(alternatives):
            for column in (text, _pa.array(kind)) if _several(kind) else (text,):
                theirs = self._encoded(column)
                codes = None if theirs is None or codes is None else self._together(codes, theirs)
                if codes is None:
                    return None
        return codes

    def _together(self, ours: _Codes, theirs: _Codes) -> _Codes | None:
        if ours.end == 1:
            return theirs
        if theirs.end == 1:
            return ours
        return self._encoded(_pa.array(ours.codes * theirs.end + theirs.codes))

    def _encoded(self, column: Any) -> _Codes | None:  # noqa: ANN401 - an array of any type
        """None where most values differ."""
        sample = column.slice(0, SAMPLE_ROWS)
        if len(column) > SAMPLE_ROWS and pc.count_distinct(sample, mode="all").as_py() > SAMPLE_ROWS * MOST_DIFFER:
            return None
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        count = len(encoded.dictionary)
        if count * 2 > self.rows:
            return None
        return _Codes(np.asarray(encoded.indices).astype(np.int64), count)


def _several(kind: NDArray[np.uint8]) -> bool:
    """Whether there are several kinds beside null, which the texts tell."""
    there = kind[kind != 0]
    return bool(len(there)) and bool((there != there[0]).any())


def _first_value(candidates: Sequence[Values]) -> Values:
    chosen = candidates[0]
    for candidate in candidates[1:]:
        null = chosen.is_null()
        if null.any():
            chosen = Values.choose(null.astype(np.int64), [chosen, candidate])
    return chosen
