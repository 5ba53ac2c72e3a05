"""From values to columns of the target's types.

What becomes of a value depends on that value alone. One that does not fit its type becomes null, as does an element or
a field within it that does not fit:

* string: what a value is as a string; arrays, objects and maps as JSON;
* numbers, booleans, date32 and timestamps: by their text, see `worker.mapping.conversions`; a date keeps its instant;
* list: an array, each element converted;
* struct: an object, its fields by name, those that the struct does not have left out;
* map: an object, each of its values converted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import is_null, scalar
from worker.mapping.conversions import conversion_to
from worker.mapping.values import Kind, Values
from worker.mapping.xdm import DATE_TIME

if TYPE_CHECKING:
    from worker.mapping.values import Mask, Plane

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute
_pa: Any = pa

_TREES = frozenset((Kind.ARRAY, Kind.OBJECT))
_SAME_TYPE = {pa.int64(): Kind.INTEGER, pa.float64(): Kind.DECIMAL, pa.bool_(): Kind.BOOLEAN}


def to_column(values: Values, data_type: pa.DataType) -> tuple[Plane, Mask]:
    """The values as a column of `data_type`, and the rows of which something did not fit."""
    if pa.types.is_string(data_type):
        return values.to_texts(), np.zeros(values.length, dtype=bool)
    if pa.types.is_list(data_type):
        return _lists(values, data_type)
    if pa.types.is_map(data_type):
        return _maps(values, data_type)
    if pa.types.is_struct(data_type):
        return _structs(values, data_type)
    return _scalars(values, data_type)


def _scalars(values: Values, data_type: pa.DataType) -> tuple[Plane, Mask]:
    kind = _SAME_TYPE.get(data_type)
    if kind is not None and values.present <= {kind}:
        return values.plane(kind), np.zeros(values.length, dtype=bool)
    null = values.is_null()
    moments = None
    if Kind.DATE in values.present and data_type in (DATE_TIME, pa.date32()):
        moments = _moments(values, data_type)
        values = values.where(~values.has(Kind.DATE))
    if values.present & _TREES:
        values = values.where(~(values.has(Kind.ARRAY) | values.has(Kind.OBJECT)))
    column: Any = conversion_to(data_type)(values.to_texts())
    if moments is not None:
        column = pc.coalesce(moments, column)
    return column, is_null(column) & ~null


def _moments(values: Values, data_type: pa.DataType) -> Plane:
    dates = values.arrow(Kind.DATE)
    instants = pc.struct_field(dates, "instant")
    if data_type == DATE_TIME:
        # milliseconds, as all timestamps of a target have
        return pc.floor_temporal(instants, unit="millisecond").cast(DATE_TIME)
    local = pc.add(
        instants.cast(pa.int64()), pc.multiply(pc.struct_field(dates, "offset").cast(pa.int64()), scalar(1_000_000))
    )
    return local.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)


def _lists(values: Values, data_type: Any) -> tuple[Plane, Mask]:  # noqa: ANN401 - a ListType
    arrays = values.trees(Kind.ARRAY)
    inner, misfits = to_column(arrays.values, data_type.value_type)
    column = pa.ListArray.from_arrays(
        pa.array(arrays.offsets, pa.int32()), inner, type=data_type, mask=pa.array(~arrays.valid)
    )
    failed = ~values.is_null() & ~arrays.valid
    failed[arrays.rows[misfits]] = True
    return column, failed


def _maps(values: Values, data_type: Any) -> tuple[Plane, Mask]:  # noqa: ANN401 - a MapType
    objects = values.trees(Kind.OBJECT).without_older()
    inner, misfits = to_column(objects.values, data_type.item_type)
    column = _pa.MapArray.from_arrays(
        pa.array(objects.offsets, pa.int32()), objects.keys, inner, type=data_type, mask=pa.array(~objects.valid)
    )
    failed = ~values.is_null() & ~objects.valid
    failed[objects.rows[misfits]] = True
    return column, failed


def _structs(values: Values, data_type: Any) -> tuple[Plane, Mask]:  # noqa: ANN401 - a StructType
    objects = values.trees(Kind.OBJECT)
    failed = ~values.is_null() & ~objects.valid
    columns = []
    for field in data_type:
        column, misfits = to_column(objects.member(field.name), field.type)
        columns.append(column)
        failed |= misfits
    return pa.StructArray.from_arrays(columns, fields=list(data_type), mask=pa.array(~objects.valid)), failed
