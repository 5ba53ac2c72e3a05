"""A mapping set compiled to one function over blocks of texts: no Python code runs per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.errors import ConfigurationError
from worker.mapping.conversions import conversion_to
from worker.mapping.mapping_set import SourceType
from worker.model import Issue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from worker.mapping.mapping_set import Destination, Mapping, MappingSet
    from worker.mapping.sources import SourcePath
    from worker.mapping.xdm import XdmSchema

    Column = pa.Array[Any]

WARNING_CODE = "MAPPER-3700-400"
"""A value that did not fit became null, the row stayed (Data Prep: a failing transformation sets the field to null)."""

REJECT_CODE = "INGEST-1555-400"
"""A required field is missing or null."""

TYPE_RULE = (
    "There is no XDM schema, so the name of the source property alone decides the type of a column, whatever "
    "the rows hold: time, $mp_api_timestamp_ms and mp_processing_time_ms are int64, $import is bool, all others are "
    "string. A value that does not fit its type is stored as null and counted as a warning."
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
    """One leaf of the target. `sources` are positions in the mapper's paths, best first.

    `constant` is a scalar of Arrow and takes the place of sources, or None.

    `required_within` is the object within which the field is required, `()` the whole row, None for an optional field.
    """

    destination: Destination
    data_type: pa.DataType
    sources: tuple[int, ...]
    convert: Callable[[pa.StringArray], Column]
    constant: Any
    required_within: Destination | None

    def __str__(self) -> str:
        return ".".join(self.destination)


class Mapper:
    """Turns the texts of a block into the rows of the target. Immutable: one mapper serves several threads at once.

    `paths` are the places of an export line whose texts `map` wants, all different. `schema` are the columns it makes:
    all may be null, structs and fields stand in the order in which the mapping set first names them. `notes` says where
    the types come from, to be stored with the dataset.
    """

    def __init__(self, paths: tuple[SourcePath, ...], columns: tuple[_Column, ...], notes: str) -> None:
        self.paths = paths
        self.notes = notes
        self._columns = columns
        self._tree = _tree_of(columns)
        self.schema = pa.schema(_fields(self._tree, columns))

    def map(self, texts: Sequence[pa.StringArray]) -> Mapped:
        """Map a block: `texts[i]` holds, row by row, the text of the JSON value at `paths[i]`.

        That text is a string's own characters, a number's JSON text, `true` or `false`, or the JSON text of an object
        or an array; null where the value is null or absent. All arrays have the length of the block, which may be 0.
        """
        assert len(texts) == len(self.paths), f"{len(texts)} arrays of texts for {len(self.paths)} paths"
        rows = len(texts[0])
        leafs: list[Column] = []
        misfits: dict[int, NDArray[np.bool_]] = {}
        sources: dict[int, pa.StringArray] = {}
        for position, column in enumerate(self._columns):
            if column.constant is not None:
                leafs.append(pa.repeat(column.constant, rows))
                continue
            source = _first_not_null([texts[index] for index in column.sources])
            leaf = column.convert(source)
            leafs.append(leaf)
            if leaf.null_count > source.null_count:
                sources[position] = source
                misfits[position] = _is_null(leaf) & ~_is_null(source)
        rejected, reasons = self._rejects(rows, leafs, misfits)
        warnings = []
        for position, misfit in misfits.items():
            misfit[rejected] = False
            kept = np.flatnonzero(misfit)
            if len(kept):
                warnings.append(_warning(self._columns[position], len(kept), sources[position][int(kept[0])].as_py()))
        batch = pa.RecordBatch.from_arrays(_arrays(self._tree, leafs, self.schema), schema=self.schema)
        return Mapped(batch, tuple(warnings), rejected, reasons)

    def _rejects(
        self, rows: int, leafs: Sequence[Column], misfits: dict[int, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.int64], list[str]]:
        """Rows without a required field, and for each row the first such field."""
        masks: list[NDArray[np.bool_]] = []
        texts: list[str] = []
        for position, column in enumerate(self._columns):
            scope = column.required_within
            if scope is None or leafs[position].null_count == 0:
                continue
            missing = _is_null(leafs[position])
            if scope:
                missing = missing & self._is_present(scope, rows, leafs)
            misfit = misfits.get(position, np.zeros(rows, dtype=np.bool_))
            masks += [missing & misfit, missing & ~misfit]
            texts += [
                f"The value of the required field {column} does not fit the type {column.data_type}.",
                f"The required field {column} is missing or null.",
            ]
        if not masks:
            return np.empty(0, dtype=np.int64), []
        table = np.stack(masks)
        rejected = np.flatnonzero(table.any(axis=0)).astype(np.int64, copy=False)
        return rejected, [texts[first] for first in table[:, rejected].argmax(axis=0)]

    def _is_present(self, scope: Destination, rows: int, leafs: Sequence[Column]) -> NDArray[np.bool_]:
        """Rows that have something in the object `scope`."""
        present = np.zeros(rows, dtype=np.bool_)
        for column, leaf in zip(self._columns, leafs, strict=True):
            if column.destination[: len(scope)] == scope:
                present |= ~_is_null(leaf)
        return present


def compile_mapper(mapping_set: MappingSet, schema: XdmSchema | None) -> Mapper:
    """Compile a mapping set against an XDM schema, or, without one, by `TYPE_RULE`.

    Raises `ConfigurationError` for a destination that the schema does not have, a required field that no mapping sets,
    a constant that does not fit, and a set that takes nothing from the events.
    """
    paths = tuple(dict.fromkeys(path for mapping in mapping_set.mappings for path in mapping.alternatives))
    if not paths:
        raise ConfigurationError(
            "the mapping set has only constants.", advice="Map at least one property of the events (ATTRIBUTE)."
        )
    positions = {path: position for position, path in enumerate(paths)}
    data_types = [_type_of(mapping, schema) for mapping in mapping_set.mappings]
    required = schema.requirements([mapping.destination for mapping in mapping_set.mappings]) if schema else {}
    columns = []
    for mapping, data_type in zip(mapping_set.mappings, data_types, strict=True):
        convert = conversion_to(data_type)
        columns.append(
            _Column(
                destination=mapping.destination,
                data_type=data_type,
                sources=tuple(positions[path] for path in mapping.alternatives),
                convert=convert,
                constant=_constant(mapping, data_type, convert) if mapping.source_type is SourceType.STATIC else None,
                required_within=required.get(mapping.destination),
            )
        )
    return Mapper(paths, tuple(columns), SCHEMA_RULE if schema else TYPE_RULE)


def _type_of(mapping: Mapping, schema: XdmSchema | None) -> pa.DataType:
    known = next((_KNOWN_TYPES[path] for path in mapping.alternatives if path in _KNOWN_TYPES), None)
    if schema is None:
        return known or pa.string()
    try:
        data_type = schema.type_of(mapping.destination)
    except ConfigurationError as error:
        raise ConfigurationError(f"{mapping}: {error.message}", advice=error.advice) from error
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


def _constant(mapping: Mapping, data_type: pa.DataType, convert: Callable[[pa.StringArray], Column]) -> Any:  # noqa: ANN401 - a scalar of Arrow, which its stubs want named type by type
    constant = convert(pa.array([mapping.source], pa.string()))[0]
    if not constant.is_valid:
        raise ConfigurationError(
            f"{mapping}: the constant `{mapping.source:.{SAMPLE_CHARACTERS}}` does not fit the type {data_type}.",
            advice="Correct the constant or choose another destination.",
        )
    return constant


def _warning(column: _Column, count: int, sample: str) -> Issue:
    return Issue(
        code=WARNING_CODE,
        message=f"{column}: the value does not fit the type {column.data_type} and was stored as null.",
        count=count,
        sample=sample[:SAMPLE_CHARACTERS],
    )


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


def _is_null(array: Column) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


_Tree = dict[str, "int | _Tree"]
"""Name → position of a leaf, or the fields of a struct."""


def _tree_of(columns: Sequence[_Column]) -> _Tree:
    tree: _Tree = {}
    for position, column in enumerate(columns):
        *parents, name = column.destination
        fields = tree
        for parent in parents:
            inner = fields.setdefault(parent, {})
            assert not isinstance(inner, int), f"{column} lies within another column"
            fields = inner
        fields[name] = position
    return tree


def _fields(tree: _Tree, columns: Sequence[_Column]) -> list[pa.Field[Any]]:
    return [
        pa.field(name, columns[inner].data_type if isinstance(inner, int) else pa.struct(_fields(inner, columns)))
        for name, inner in tree.items()
    ]


def _arrays(tree: _Tree, leafs: Sequence[Column], fields: Sequence[pa.Field[Any]] | pa.Schema) -> list[Column]:
    return [
        leafs[inner]
        if isinstance(inner, int)
        else pa.StructArray.from_arrays(_arrays(inner, leafs, list(field.type)), fields=list(field.type))
        for inner, field in zip(tree.values(), fields, strict=True)
    ]
