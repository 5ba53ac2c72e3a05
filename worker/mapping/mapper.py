"""A mapping set compiled to one function over blocks of texts: no Python code runs per row.

A property that goes into a column as it is stays the text that the decoder gives, from which the column's type is read
(`worker.mapping.conversions`). Anything else is an expression over values (`worker.mapping.expression`), whose result
is brought to the column's type (`worker.mapping.targets`): that also holds for arrays and objects that are copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.errors import ConfigurationError
from worker.mapping.arrow import is_null
from worker.mapping.attributes import MAX_RESULT_BYTES, Attributes, TooMuchError
from worker.mapping.context import FLOW
from worker.mapping.conversions import conversion_to
from worker.mapping.mapping_set import SourceType
from worker.mapping.sources import names_of
from worker.mapping.targets import to_column
from worker.mapping.values import Kind, Values
from worker.mapping.xdm import DATE_TIME, EVERY, Needs, never_set, written
from worker.model import Issue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from worker.mapping.context import Context
    from worker.mapping.expression import Expression, Outcome
    from worker.mapping.functions.base import Returns
    from worker.mapping.mapping_set import Destination, Mapping, MappingSet
    from worker.mapping.sources import SourcePath
    from worker.mapping.values import Mask, Plane, Positions
    from worker.mapping.xdm import XdmSchema

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute
_pa: Any = pa

WARNING_CODE = "MAPPER-3700-400"
"""A value that did not fit became null, the row stayed (Data Prep: a failing transformation sets the field to null)."""

REJECT_CODE = "INGEST-1555-400"
"""A required field is missing or null."""

TYPE_RULE = (
    "There is no XDM schema, so the name of the source property alone decides the type of a column, whatever "
    "the rows hold: time, $mp_api_timestamp_ms and mp_processing_time_ms are int64, $import is bool, all others are "
    "string; an expression's column has the type of what it gives, and is string where that hangs on the rows. A value "
    "that does not fit its type is stored as null and counted as a warning."
)
"""Types of the properties as Mixpanel's source gives them to explore (tutorial, "Explore your source")."""

SCHEMA_RULE = (
    "The XDM schema decides the type of a column. A value that does not fit its type is stored as null and counted as "
    "a warning; a row whose required field is null is rejected."
)

SAMPLE_CHARACTERS = 100

_KNOWN_TYPES: dict[SourcePath, pa.DataType] = {
    ("properties", "time"): pa.int64(),
    ("properties", "$mp_api_timestamp_ms"): pa.int64(),
    ("properties", "mp_processing_time_ms"): pa.int64(),
    ("properties", "$import"): pa.bool_(),
}
_TYPES_OF_RESULTS: dict[Returns, pa.DataType] = {
    "integer": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": DATE_TIME,
}
"""Of what expressions give; anything else is a string."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A block after mapping.

    `batch` has all rows of the block. `rejected` are the positions of rows that must not be loaded, ascending, and
    `reasons` says why for each of them. `warnings` counts, per column, the values that became null in the other rows.
    """

    batch: pa.RecordBatch
    warnings: tuple[Issue, ...]
    rejected: NDArray[np.int64]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class _Column:
    """One leaf of the target. Of these there is one:

    `sources`: positions in the mapper's paths, best first, of the texts that `convert` reads; `constant`: a scalar of
    Arrow; `expression`.

    `data_type`: behind a `[*]`, of one element. `required_within` is the object within which the field is required,
    `()` the whole row, None for an optional field.
    """

    destination: Destination
    data_type: pa.DataType
    required_within: Destination | None
    sources: tuple[int, ...] = ()
    constant: Any = None
    expression: Expression | None = None

    def __str__(self) -> str:
        return written(self.destination)


@dataclass(frozen=True, slots=True)
class _Elements:
    """What a column behind `[*]` has for the elements of each row's array."""

    offsets: Positions
    valid: Mask
    values: Plane


@dataclass(slots=True)
class _Leaf:
    """A column's values, and why some rows have none: each reason, its rows, and what stood there, as a text."""

    values: Plane | _Elements
    missing: Mask | None = None
    problems: list[tuple[str, Mask, Callable[[int], str]]] = field(default_factory=list)


class Mapper:
    """Turns the texts of a block into the rows of the target. Immutable: one mapper serves several threads at once.

    `paths` are the places of an export line whose texts `map` wants, all different; `kinds_of` those of which it wants
    to know what JSON the texts were; `rounded` those of them whose numbers it takes for doubles. `schema` are the
    columns it makes: all may be null, structs and fields stand in the order in which the mapping set first names them.
    `notes` says where the types come from, to be stored with the dataset.
    """

    def __init__(
        self,
        paths: tuple[SourcePath, ...],
        kinds_of: frozenset[SourcePath],
        columns: tuple[_Column, ...],
        notes: str,
        needs: dict[tuple[str, ...], Needs],
    ) -> None:
        self.paths = paths
        self.kinds_of = kinds_of
        copied = {paths[position] for column in columns for position in column.sources}
        self.rounded = kinds_of - copied
        self.notes = notes
        self._positions = {path: position for position, path in enumerate(paths)}
        self._columns = columns
        self._converts = [None if column.expression else conversion_to(column.data_type) for column in columns]
        expressions = [column.expression for column in columns if column.expression is not None]
        self._groups = _groups_of(expressions) if expressions else {}
        self._tree = _tree_of(columns)
        self.schema = pa.schema(_fields(self._tree, columns))
        self._needs = {path: _possible(needs[path], _type_within(self.schema, path), path) for path in needs}

    def map(
        self,
        texts: Sequence[pa.StringArray],
        kinds: Sequence[NDArray[np.uint8] | None],
        context: Context,
    ) -> Mapped:
        """Map a block: `texts[i]` holds, row by row, the text of the JSON value at `paths[i]`.

        That text is a string's own characters, a number's JSON text, `true` or `false`, or the JSON text of an object
        or an array; null where the value is null or absent. `kinds[i]` has the first byte of the value's JSON, 0 for
        null, for the paths of `kinds_of`. All arrays have the length of the block, which may be 0. Raises TooMuchError
        for blocks of several rows, which `map_parts` halves.
        """
        assert len(texts) == len(self.paths), f"{len(texts)} arrays of texts for {len(self.paths)} paths"
        attributes = Attributes(self._positions, texts, kinds, context, self._groups)
        rows, made_bytes = attributes.rows, 0
        leafs: list[_Leaf] = []
        for column, convert in zip(self._columns, self._converts, strict=True):
            if column.expression is not None:
                outcome = column.expression.evaluate(attributes)
                made_bytes += outcome.values.nbytes
                if rows > 1 and made_bytes > MAX_RESULT_BYTES:
                    raise TooMuchError(rows)
                leafs.append(_expressed(column, outcome, attributes))
            elif column.constant is not None:
                leafs.append(_Leaf(pa.repeat(column.constant, rows)))
            else:
                assert convert is not None
                leafs.append(_converted(column, _first_not_null([texts[index] for index in column.sources]), convert))
        arrays = _arrays(self._tree, [leaf.values for leaf in leafs], self.schema, rows)
        rejected, reasons = self._rejects(rows, leafs, arrays)
        warnings = []
        for column, leaf in zip(self._columns, leafs, strict=True):
            for reason, mask, sample in leaf.problems:
                mask[rejected] = False
                if len(kept := np.flatnonzero(mask)):
                    message = f"{column}: {reason}; the field is null."
                    warnings.append(Issue(WARNING_CODE, message, len(kept), sample(int(kept[0]))[:SAMPLE_CHARACTERS]))
        return Mapped(pa.RecordBatch.from_arrays(arrays, schema=self.schema), tuple(warnings), rejected, reasons)

    def map_parts(
        self,
        texts: Sequence[pa.StringArray],
        kinds: Sequence[NDArray[np.uint8] | None],
        context: Context,
    ) -> Iterator[Mapped]:
        """The same as `map` in as many parts as it takes, one after another."""
        try:
            parts = [self.map(texts, kinds, context)]
        except TooMuchError:
            parts = []
        if parts:
            yield from parts
            return
        middle = len(texts[0]) // 2
        for half in (slice(None, middle), slice(middle, None)):
            halved = [None if kind is None else kind[half] for kind in kinds]
            yield from self.map_parts([text[half] for text in texts], halved, context)

    def _rejects(
        self, rows: int, leafs: Sequence[_Leaf], arrays: Sequence[Plane]
    ) -> tuple[NDArray[np.int64], list[str]]:
        """Rows without a required field, and for each row the first such field."""
        masks: list[NDArray[np.bool_]] = []
        texts: list[str] = []
        for column, leaf in zip(self._columns, leafs, strict=True):
            scope = column.required_within
            if scope is None or isinstance(leaf.values, _Elements) or leaf.values.null_count == 0:
                continue
            missing = is_null(leaf.values)
            if scope:
                missing = missing & self._is_present(scope, rows, leafs)
            for reason, mask, _ in leaf.problems:
                masks.append(missing & mask)
                texts.append(f"The required field {column} is null: {reason}.")
            masks.append(missing)
            texts.append(f"The required field {column} is missing or null.")
        for path, needs in self._needs.items():
            values: Any = arrays[self.schema.get_field_index(path[0])]
            if path[1:]:
                values = pc.struct_field(values, list(path[1:]))
            for lacking, mask in _lacking(values, needs, path):
                masks.append(mask)
                texts.append(f"The required field {written(lacking)} is missing or null.")
        if not masks:
            return np.empty(0, dtype=np.int64), []
        table = np.stack(masks)
        rejected = np.flatnonzero(table.any(axis=0)).astype(np.int64, copy=False)
        return rejected, [texts[first] for first in table[:, rejected].argmax(axis=0)]

    def _is_present(self, scope: Destination, rows: int, leafs: Sequence[_Leaf]) -> NDArray[np.bool_]:
        """Rows that have something in the object `scope`."""
        present = np.zeros(rows, dtype=np.bool_)
        for column, leaf in zip(self._columns, leafs, strict=True):
            if column.destination[: len(scope)] == scope:
                present |= leaf.values.valid if isinstance(leaf.values, _Elements) else ~is_null(leaf.values)
        return present


def _type_within(schema: pa.Schema, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - a nested type
    data_type: Any = schema.field(path[0]).type
    for name in path[1:]:
        data_type = data_type.field(name).type
    return data_type


def _possible(needs: Needs, data_type: Any, path: Destination) -> Needs:  # noqa: ANN401 - a nested type
    """The needs within the fields that there are. Raises ConfigurationError for needed fields that no mapping sets."""
    if pa.types.is_list(data_type) or pa.types.is_map(data_type):
        inner = data_type.value_type if pa.types.is_list(data_type) else data_type.item_type
        return Needs((), {EVERY: _possible(needs.within[EVERY], inner, (*path, EVERY))})
    names = {data_type.field(number).name for number in range(data_type.num_fields)}
    missing = [written((*path, name)) for name in needs.fields if name not in names]
    if missing:
        raise never_set(missing)
    within = {
        name: _possible(inner, data_type.field(name).type, (*path, name))
        for name, inner in needs.within.items()
        if name in names
    }
    return Needs(needs.fields, within)


def _lacking(values: Any, needs: Needs, path: Destination) -> Iterator[tuple[Destination, Mask]]:  # noqa: ANN401 - a nested Arrow array
    """The required fields that some rows lack within these objects, arrays or maps, and which rows."""
    if pa.types.is_map(values.type):
        values = pa.ListArray.from_arrays(values.offsets, values.items)
    if pa.types.is_list(values.type):
        rows = np.repeat(np.arange(len(values)), np.asarray(pc.fill_null(pc.list_value_length(values), 0)))
        for below, mask in _lacking(values.flatten(), needs.within[EVERY], (*path, EVERY)):
            of_rows = np.zeros(len(values), dtype=bool)
            of_rows[rows[mask]] = True
            yield below, of_rows
        return
    there = ~is_null(values)
    for name in needs.fields:
        mask = there & is_null(pc.struct_field(values, [name]))
        if mask.any():
            yield (*path, name), mask
    for field_name, inner in needs.within.items():
        yield from _lacking(pc.struct_field(values, [field_name]), inner, (*path, field_name))


def _converted(column: _Column, source: pa.StringArray, convert: Callable[[pa.StringArray], Plane]) -> _Leaf:
    values = convert(source)
    leaf = _Leaf(values)
    if values.null_count > source.null_count:
        misfit = is_null(values) & ~is_null(source)
        leaf.problems.append((_misfit(column), misfit, lambda row: str(source[row].as_py())))
    return leaf


def _expressed(column: _Column, outcome: Outcome, attributes: Attributes) -> _Leaf:
    assert column.expression is not None
    values = outcome.values
    if EVERY in column.destination:
        arrays = values.trees(Kind.ARRAY)
        elements, inner = to_column(arrays.values, column.data_type)
        leaf = _Leaf(_Elements(arrays.offsets, arrays.valid, elements))
        misfit = ~values.is_null() & ~arrays.valid
        misfit[arrays.rows[inner]] = True
    else:
        plane, misfit = to_column(values, column.data_type)
        leaf = _Leaf(plane)
    if misfit.any():
        leaf.problems.append((_misfit(column), misfit, lambda row: _sample([values], row)))
    sources = column.expression.attributes
    for reason, at in outcome.failures:
        mask = np.zeros(values.length, dtype=np.bool_)
        mask[at] = True
        leaf.problems.append(
            (reason, mask, lambda row: _sample([attributes.read(source, np.array([row])) for source in sources], 0))
        )
    return leaf


def _misfit(column: _Column) -> str:
    what = "the value, or something in it," if pa.types.is_nested(column.data_type) else "the value"
    return f"{what} does not fit the type {column.data_type}"


def _sample(columns: Sequence[Values], row: int) -> str:
    """What stood there: one text, or the JSON of several."""
    at = np.array([row])
    if len(columns) == 1:
        return str(columns[0].take(at).to_texts()[0].as_py())
    return ", ".join(str(column.take(at).to_json()[0].as_py()) for column in columns)


def compile_mapper(mapping_set: MappingSet, schema: XdmSchema | None) -> Mapper:
    """Compile a mapping set against an XDM schema, or, without one, by `TYPE_RULE`.

    Raises `ConfigurationError` for a destination that the schema does not have, a required field that no mapping sets,
    a constant that does not fit, and a set that takes nothing from the events.
    """
    data_types = [_type_of(mapping, schema) for mapping in mapping_set.mappings]
    expressions = [
        _expression(mapping, data_type) for mapping, data_type in zip(mapping_set.mappings, data_types, strict=True)
    ]
    kinds_of = frozenset(
        path
        for expression in expressions
        if expression is not None
        for alternatives in expression.attributes
        for path in alternatives
        if path[0] != FLOW
    )
    read = (
        path
        for mapping, expression in zip(mapping_set.mappings, expressions, strict=True)
        if expression is None
        for path in mapping.alternatives
    )
    paths = tuple(dict.fromkeys((*read, *sorted(kinds_of))))
    if not paths:
        raise ConfigurationError(
            "the mapping set has only constants.", advice="Map at least one property of the events (ATTRIBUTE)."
        )
    positions = {path: position for position, path in enumerate(paths)}
    fields = [_before_elements(mapping.destination) for mapping in mapping_set.mappings]
    required: dict[Any, Destination] = dict(schema.requirements(fields)) if schema else {}
    nested = dict.fromkeys(
        path
        for path, mapping, data_type in zip(fields, mapping_set.mappings, data_types, strict=True)
        if len(path) < len(mapping.destination) or pa.types.is_nested(data_type)
    )
    needs = {path: needed for path in nested if schema and (needed := schema.needs_at(path)) is not None}
    columns = []
    for mapping, data_type, expression in zip(mapping_set.mappings, data_types, expressions, strict=True):
        columns.append(
            _Column(
                destination=mapping.destination,
                data_type=data_type,
                required_within=required.get(mapping.destination),
                sources=() if expression else tuple(positions[path] for path in mapping.alternatives),
                constant=_constant(mapping, data_type) if mapping.source_type is SourceType.STATIC else None,
                expression=expression,
            )
        )
    return Mapper(paths, kinds_of, tuple(columns), SCHEMA_RULE if schema else TYPE_RULE, needs)


def _groups_of(expressions: Sequence[Expression]) -> dict[int, int]:
    from worker.mapping.expression import groups_of  # noqa: PLC0415 - as in mapping_set

    return groups_of(expressions)


def _before_elements(destination: Destination) -> tuple[str, ...]:
    """The names up to the first element of an array."""
    return tuple(takewhile(lambda step: isinstance(step, str), destination))  # type: ignore[arg-type]  # they are str


def _expression(mapping: Mapping, data_type: pa.DataType) -> Expression | None:
    """The expression that makes the column, if it is none whose texts can be read as they are."""
    if mapping.expression is not None:
        return mapping.expression
    if not mapping.alternatives:
        return None
    if pa.types.is_nested(data_type) or EVERY in mapping.destination or mapping.alternatives[0][0] == FLOW:
        from worker.mapping.expression import Expression  # noqa: PLC0415 - as in mapping_set

        return Expression.of_names(names_of(mapping.source))
    return None


def _type_of(mapping: Mapping, schema: XdmSchema | None) -> pa.DataType:
    known = next((_KNOWN_TYPES[path] for path in mapping.alternatives if path in _KNOWN_TYPES), None)
    if schema is None:
        if mapping.expression is not None:
            return _TYPES_OF_RESULTS.get(mapping.expression.returns, pa.string())
        return known or pa.string()
    try:
        data_type = schema.type_of(mapping.destination)
    except ConfigurationError as error:
        raise ConfigurationError(f"{mapping}: {error.message}", advice=error.advice) from error
    if mapping.source_type is SourceType.STATIC and pa.types.is_nested(data_type):
        raise ConfigurationError(
            f"{mapping}: a constant is no {data_type}.", advice="Write it as an EXPRESSION: [1, 2] or {'key': 1}."
        )
    if known is not None and not _can_hold(data_type, known):
        raise ConfigurationError(
            f"{mapping}: `{mapping.source}` is always of type {known} and never fits the type {data_type}.",
            advice=f"Map it to a field of type {'boolean' if known == pa.bool_() else 'long'} or string.",
        )
    return data_type


def _can_hold(data_type: pa.DataType, known: pa.DataType) -> bool:
    if pa.types.is_string(data_type):
        return True
    if known == pa.bool_():
        return data_type == known
    return pa.types.is_signed_integer(data_type) or pa.types.is_float64(data_type)


def _constant(mapping: Mapping, data_type: pa.DataType) -> Any:  # noqa: ANN401 - a scalar of Arrow, which its stubs want named type by type
    if EVERY in mapping.destination:
        raise ConfigurationError(
            f"{mapping}: a constant is not an array.", advice="Map an array, or choose one element: [0]."
        )
    constant = conversion_to(data_type)(pa.array([mapping.source], pa.string()))[0]
    if not constant.is_valid:
        raise ConfigurationError(
            f"{mapping}: the constant `{mapping.source:.{SAMPLE_CHARACTERS}}` does not fit the type {data_type}.",
            advice="Correct the constant or choose another destination.",
        )
    return constant


def _first_not_null(candidates: Sequence[pa.StringArray]) -> pa.StringArray:
    chosen = candidates[0]
    for candidate in candidates[1:]:
        if chosen.null_count == 0:
            break
        if chosen.null_count == len(chosen):
            chosen = candidate
        elif candidate.null_count < len(candidate):
            chosen = pc.coalesce(chosen, candidate)
    return chosen


_Tree = dict[str | int, "int | _Tree"]
"""Name, or element of an array → position of a leaf, or what is within it."""


def _tree_of(columns: Sequence[_Column]) -> _Tree:
    tree: _Tree = {}
    for position, column in enumerate(columns):
        *parents, last = column.destination
        within = tree
        for parent in parents:
            inner = within.setdefault(parent, {})
            assert not isinstance(inner, int), f"{column} lies within another column"
            within = inner
        within[last] = position
    return tree


def _type_of_tree(tree: int | _Tree, columns: Sequence[_Column]) -> pa.DataType:
    if isinstance(tree, int):
        return columns[tree].data_type
    if isinstance(next(iter(tree)), int):
        return pa.list_(_common_type([_type_of_tree(inner, columns) for inner in tree.values()]))
    return pa.struct(_fields(tree, columns))


def _common_type(data_types: Sequence[pa.DataType]) -> pa.DataType:
    """The type of elements that were mapped one by one: with all their fields; string where they differ."""
    if all(data_type == data_types[0] for data_type in data_types):
        return data_types[0]
    if not all(pa.types.is_struct(data_type) for data_type in data_types):
        return pa.string()
    fields: dict[str, list[pa.DataType]] = {}
    for data_type in data_types:
        struct: Any = data_type
        for inner in struct:
            fields.setdefault(inner.name, []).append(inner.type)
    return pa.struct([pa.field(name, _common_type(types)) for name, types in fields.items()])


def _fields(tree: _Tree, columns: Sequence[_Column]) -> list[pa.Field[Any]]:
    return [pa.field(str(name), _type_of_tree(inner, columns)) for name, inner in tree.items()]


def _arrays(
    tree: _Tree, leafs: Sequence[Plane | _Elements], fields: Sequence[pa.Field[Any]] | pa.Schema, rows: int
) -> list[Plane]:
    """The columns of an object's fields; `fields` may have more than the tree, which are null."""
    by_name = {str(name): inner for name, inner in tree.items()}
    return [
        _array(by_name[field.name], leafs, field.type, rows) if field.name in by_name else _nulls(rows, field.type)
        for field in fields
    ]


def _array(tree: int | _Tree, leafs: Sequence[Plane | _Elements], data_type: Any, rows: int) -> Plane:  # noqa: ANN401 - a DataType with parts
    if isinstance(tree, int):
        leaf = leafs[tree]
        assert not isinstance(leaf, _Elements)
        return leaf if leaf.type == data_type else pc.cast(leaf, data_type)
    if EVERY in tree:
        return _all_elements(tree[EVERY], leafs, data_type, rows)
    if isinstance(next(iter(tree)), int):
        return _some_elements(tree, leafs, data_type, rows)
    return pa.StructArray.from_arrays(_arrays(tree, leafs, list(data_type), rows), fields=list(data_type))


def _some_elements(tree: _Tree, leafs: Sequence[Plane | _Elements], data_type: Any, rows: int) -> Plane:  # noqa: ANN401 - a ListType
    """Arrays up to the last element that is mapped; null where none of them has anything."""
    width = max(step for step in tree if isinstance(step, int)) + 1
    columns = [
        _array(tree[n], leafs, data_type.value_type, rows) if n in tree else _nulls(rows, data_type.value_type)
        for n in range(width)
    ]
    empty = np.stack([_is_empty(column) for column in columns])
    at = (np.arange(width)[None, :] * rows + np.arange(rows)[:, None]).ravel()
    elements = pa.concat_arrays(columns).take(pa.array(at, mask=empty.T.ravel()))
    offsets = pa.array(np.arange(rows + 1) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, elements, type=data_type, mask=_pa.array(empty.all(axis=0)))


def _is_empty(column: Plane) -> Mask:
    """Rows with nothing: null, or an object of nothing but such fields."""
    empty = is_null(column)
    if pa.types.is_struct(column.type):
        inner = np.ones(len(column), dtype=bool)
        for number in range(column.type.num_fields):
            inner &= _is_empty(column.field(number))
        empty = empty | inner
    return empty


def _all_elements(tree: int | _Tree, leafs: Sequence[Plane | _Elements], data_type: Any, rows: int) -> Plane:  # noqa: ANN401 - a ListType
    """As many elements as the longest of the columns has; null where none of them has an array."""
    found = {position: leaf for position in _positions_in(tree) if isinstance(leaf := leafs[position], _Elements)}
    lengths = np.zeros(rows, dtype=np.int64)
    valid = np.zeros(rows, dtype=bool)
    for leaf in found.values():
        np.maximum(lengths, np.diff(leaf.offsets), out=lengths)
        valid |= leaf.valid
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    row = np.repeat(np.arange(rows), lengths)
    place = np.arange(int(offsets[-1])) - offsets[:-1][row]
    spread: list[Any] = [None] * len(leafs)
    for position, leaf in found.items():
        there = place < np.diff(leaf.offsets)[row]
        spread[position] = leaf.values.take(pa.array(leaf.offsets[:-1][row] + place, mask=~there))
    elements = _array(tree, spread, data_type.value_type, int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements, type=data_type, mask=pa.array(~valid))


def _positions_in(tree: int | _Tree) -> list[int]:
    if isinstance(tree, int):
        return [tree]
    return [position for inner in tree.values() for position in _positions_in(inner)]


def _nulls(rows: int, data_type: pa.DataType) -> Plane:
    return _pa.nulls(rows, data_type)
