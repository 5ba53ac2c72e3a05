"""Functions of maps, which are objects: whose keys are data, such as the name of an address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.functions.base import MAX_ITEMS, Example, Parameter, function, side_by_side
from worker.mapping.functions.hierarchies import OBJECTS, objects_of_pairs
from worker.mapping.values import Items, Kind, Values

if TYPE_CHECKING:
    from worker.mapping.functions.base import Call
    from worker.mapping.values import Mask, Positions, Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

MAPS = "Hierarchies - Map"

_BOOK = '{"author":"George R. R. Martin","price":17.99,"ISBN":"ISBN-978-0553801477"}'
_OTHER_BOOK = '{"author":"Neil Gaiman","price":17.99,"ISBN":"ISBN-0-380-97365-0","publisher":"William Morrow"}'
_NAMED = "the page gives names to what stands here written out"

_KEY = Parameter("KEY", "a key, or an array of keys; numbers, booleans and dates count as they are written")


def _find(objects: Items, rows: Positions, keys: Texts) -> Positions:
    """Where each key stands among the members of the object in its row, the last one if it is there more than once; -1
    where it is not, or is null."""
    known = pc.dictionary_encode(objects.keys)
    wanted = pc.index_in(keys, value_set=known.dictionary)
    count = len(known.dictionary)
    members = objects.rows * count + np.asarray(known.indices).astype(np.int64)
    if not len(members):
        return np.full(len(keys), -1, dtype=np.int64)
    codes = np.where(np.asarray(wanted.is_valid()), rows * count + np.asarray(wanted.fill_null(0)), -1)
    order = np.argsort(members, kind="stable")
    last = order[np.maximum(np.searchsorted(members, codes, side="right", sorter=order) - 1, 0)]
    return np.where(members[last] == codes, last, -1)


def _keys(call: Call, values: Values) -> tuple[Items, Mask]:
    """The keys in each row, as strings without nulls, and where there is a key or an array; what is neither fails."""
    arrays = values.trees(Kind.ARRAY)
    single = call.texts(values.where(~arrays.valid), "KEY")
    listed = arrays.values
    no_keys = listed.has(Kind.ARRAY) | listed.has(Kind.OBJECT)
    call.fail_items(arrays, no_keys, "KEY has an item that is an array or an object")
    texts = listed.where(~no_keys).to_texts()
    of_arrays = arrays.with_values(Values.of(texts)).select(np.asarray(texts.is_valid()))
    of_one = np.asarray(single.is_valid())
    if not of_one.any():
        return of_arrays, arrays.valid
    ones = Items.of_lengths(of_one.astype(np.int64), Values.of(single.drop_null()))
    every = Items.of_lengths(of_arrays.lengths, of_arrays.values)
    return Items.side_by_side([every, ones]), arrays.valid | of_one


@function(
    "map_get_values",
    category=OBJECTS,
    description="What a map has under a key, or a map of what it has under several keys.",
    parameters=(Parameter("MAP", "the map"), _KEY),
    returns="any",
    examples=(
        Example(
            f'map_get_values({_BOOK}, "author")',
            "George R. R. Martin",
            note=f"the page prints a map of this one entry, though its text says that one key gives the value, and its "
            f"advice on lower(map_get_values(…)) needs the value; {_NAMED}",
        ),
        Example(
            f'map_get_values({_BOOK}, ["author"])',
            {"author": "George R. R. Martin"},
            note="this gives what the page prints for one key",
        ),
    ),
    decisions=(
        "One key gives its value, or null; an array of keys gives a map of those that are there.",
        "Keys in the array that are null are skipped.",
    ),
)
def map_get_values(call: Call, maps: Values, key: Values) -> Values:
    objects = call.objects(maps, "MAP")
    arrays = key.has(Kind.ARRAY)
    values = objects.members(call.texts(key.where(~arrays), "KEY"))
    if not arrays.any():
        return values
    keys, _ = _keys(call, key.where(arrays))
    keys = keys.where(objects.valid)
    names = keys.values.arrow(Kind.STRING)
    at = _find(objects, keys.rows, names)
    members = Items(keys.offsets, keys.valid, objects.values.take(at), names).select(at >= 0).without_older()
    return Values.choose(np.where(arrays, 1, 0), [values, Values.items(members)])


@function(
    "map_has_keys",
    category=OBJECTS,
    description="Whether a map has a key, or one of several keys.",
    parameters=(Parameter("MAP", "the map"), _KEY),
    returns="boolean",
    examples=(Example(f'map_has_keys({_BOOK}, "author")', value=True, note=_NAMED),),
    decisions=(
        "A key whose value is null is there.",
        "An array of no keys gives false, a key that is null gives null.",
    ),
)
def map_has_keys(call: Call, maps: Values, key: Values) -> Values:
    objects = call.objects(maps, "MAP")
    keys, there = _keys(call, key)
    keys = keys.where(objects.valid)
    at = _find(objects, keys.rows, keys.values.arrow(Kind.STRING))
    found = np.zeros(call.rows, dtype=bool)
    found[keys.rows[at >= 0]] = True
    return Values.of(pa.array(found, mask=~(objects.valid & there)))


@function(
    "add_to_map",
    category=OBJECTS,
    description="One map of the entries of several.",
    parameters=(
        Parameter("MAP", "the map that comes first"),
        Parameter("MORE", "the maps behind it", repeated=True),
    ),
    returns="object",
    examples=(
        Example(
            f"add_to_map({_BOOK}, {_OTHER_BOOK})",
            {
                "author": "George R. R. Martin",
                "price": 17.99,
                "ISBN": "ISBN-978-0553801477",
                "publisher": "William Morrow",
            },
            note=f"the page prints the map within another one, under the name of the first; {_NAMED}",
        ),
    ),
    decisions=("Of equal keys in several maps the first one counts.", "A map that is null gives null."),
)
def add_to_map(call: Call, *maps: Values) -> Values:
    parts = [call.objects(values, "MAP").without_older() for values in maps]
    return Values.items(side_by_side(call, parts, f"the map would have more than {MAX_ITEMS} entries").without_newer())


_PAIRS = (
    Parameter("KEY", "a key; or an object"),
    Parameter("VALUE", "what the map has there", required=False),
    Parameter("MORE", "more keys and values in turn", required=False, repeated=True),
)
_PAIRS_DECISIONS = (
    "Of equal keys the last one counts.",
    "A key that is null fails; a value that is null stays as null.",
    "A single argument is an object, which is a map already.",
)


@function(
    "to_map",
    category=MAPS,
    description="A map of the keys and values that are given in turn.",
    parameters=_PAIRS,
    returns="object",
    examples=(Example('to_map("firstName", "John", "lastName", "Doe")', {"firstName": "John", "lastName": "Doe"}),),
    decisions=_PAIRS_DECISIONS,
)
def to_map(call: Call, *pairs: Values) -> Values:
    if len(pairs) == 1:
        return Values.items(call.objects(pairs[0], "OBJECT"))
    return objects_of_pairs(call, pairs)


@function(
    "object_to_map",
    category=OBJECTS,
    description="A map of keys and values given in turn, or of an object; or of the objects in an array by a field.",
    parameters=(
        Parameter("KEY", "a key; or an object; or an array of objects"),
        Parameter("VALUE", "what the map has there; or the name of the field, for an array of objects", required=False),
        Parameter("MORE", "more keys and values in turn", required=False, repeated=True),
    ),
    returns="object",
    examples=(
        Example('object_to_map("firstName", "John", "lastName", "Doe")', {"firstName": "John", "lastName": "Doe"}),
        Example(
            'object_to_map({"line1":"345 park ave","line2":"bldg 2","City":"san jose","State":"CA","type":"office"})',
            {"line1": "345 park ave", "line2": "bldg 2", "City": "san jose", "State": "CA", "type": "office"},
            note=_NAMED,
        ),
        Example(
            'object_to_map([{"line1":"345 park ave","type":"home"},{"line1":"345 park ave","type":"work"}], "type")',
            {
                "home": {"line1": "345 park ave", "type": "home"},
                "work": {"line1": "345 park ave", "type": "work"},
            },
            note=f"the page has the name of the field without quotes, and longer addresses; {_NAMED}",
        ),
    ),
    decisions=(
        *_PAIRS_DECISIONS,
        "Of two arguments an array does what array_to_map does; null there gives null.",
    ),
)
def object_to_map(call: Call, *pairs: Values) -> Values:
    if len(pairs) != 2:
        return to_map(call, *pairs)
    arrays = pairs[0].has(Kind.ARRAY)
    # null is taken for an array that is not there, not for a key
    keys = ~(arrays | pairs[0].is_null())
    no_key = Values.repeat("", call.rows)
    named = objects_of_pairs(call, [Values.choose(np.where(keys, 0, 1), [pairs[0], no_key]), pairs[1]]).where(keys)
    if not arrays.any():
        return named
    listed = array_to_map(call, pairs[0].where(arrays), pairs[1].where(arrays))
    return Values.choose(np.where(arrays, 1, 0), [named, listed])


@function(
    "array_to_map",
    category=MAPS,
    description="A map of the objects in an array, each under what it has in a field.",
    parameters=(Parameter("INPUT", "the array of objects"), Parameter("KEY", "the name of the field")),
    returns="object",
    examples=(
        Example(
            'array_to_map([{"line1":"345 park ave","type":"home"},{"line1":"345 park ave","type":"work"}], "type")',
            {
                "home": {"line1": "345 park ave", "type": "home"},
                "work": {"line1": "345 park ave", "type": "work"},
            },
            note=f"the page has three longer addresses; {_NAMED}",
        ),
    ),
    decisions=(
        "An item that is no object, or has nothing in the field, fails.",
        "Of objects with the same in the field the last one counts.",
    ),
)
def array_to_map(call: Call, array: Values, key: Values) -> Values:
    arrays = call.arrays(array, "INPUT")
    names = call.texts(key, "KEY")
    arrays = arrays.where(np.asarray(names.is_valid()))
    objects = arrays.values.trees(Kind.OBJECT)
    call.fail_items(arrays, ~objects.valid, "INPUT has an item that is no object")
    fields = objects.members(names.take(pa.array(arrays.rows)))
    trees = fields.has(Kind.ARRAY) | fields.has(Kind.OBJECT)
    call.fail_items(arrays, trees, "the field KEY of an item is an array or an object")
    keys = fields.where(~trees).to_texts()
    call.fail_items(arrays, objects.valid & fields.is_null(), "an item has nothing in the field KEY")
    unfit = np.zeros(call.rows, dtype=bool)
    unfit[arrays.rows[np.asarray(keys.is_null())]] = True
    return Values.items(Items(arrays.offsets, arrays.valid, arrays.values, keys.fill_null("")).where(~unfit))
