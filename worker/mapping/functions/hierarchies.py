"""Functions that make arrays and objects, and take them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worker.mapping.arrow import scalar
from worker.mapping.functions.base import MAX_ITEMS, Example, Parameter, function, side_by_side, spread
from worker.mapping.values import KIND_NAMES, Items, Kind, Values, all_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.mapping.functions.base import Call
    from worker.mapping.values import Positions, Texts

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

OBJECTS = "Hierarchies - Objects"
ARRAYS = "Hierarchies - Arrays"

_TOO_MANY = f"the array would have more than {MAX_ITEMS} items"


# Whether something is there


@function(
    "is_empty",
    category=OBJECTS,
    description="Whether there is nothing in an object, an array or a string.",
    parameters=(Parameter("INPUT", "the object, array or string"),),
    returns="boolean",
    examples=(Example("is_empty([1, null, 2, 3])", value=False),),
    decisions=(
        "Null is empty, as for the operator `empty`: what is missing would else count as not empty in `!is_empty(x)`.",
        "Numbers, booleans and dates are not empty.",
    ),
)
def is_empty(_: Call, values: Values) -> Values:
    found = values.is_null()
    if Kind.STRING in values.present:
        found |= np.asarray(pc.equal(values.arrow(Kind.STRING), scalar("")).fill_null(False))  # noqa: FBT003 - pyarrow's own
    for kind in values.present & {Kind.ARRAY, Kind.OBJECT}:
        found |= values.has(kind) & (values.trees(kind).lengths == 0)
    return Values.of(pa.array(found))


@function(
    "contains_key",
    category=OBJECTS,
    description="Whether an event has something at a path.",
    parameters=(Parameter("INPUT", "the path, a string written out: it is looked up as an attribute would be"),),
    returns="boolean",
    examples=(),
    aliases=("is_set",),
    decisions=("A null there counts as nothing there.",),
)
def contains_key(_: Call, attribute: Values) -> Values:
    """Takes what the attribute at the path has: whoever compiles the expression looks the path up."""
    return Values.of(pa.array(~attribute.is_null()))


@function(
    "nullify",
    category=OBJECTS,
    description="Null, for a field that is to stay empty.",
    parameters=(),
    returns="any",
    examples=(Example("nullify()", None),),
)
def nullify(call: Call) -> Values:
    return Values.nulls(call.rows)


@function(
    "size_of",
    category=ARRAYS,
    description="How many items an array has, keys an object, or characters a string.",
    parameters=(Parameter("INPUT", "the array, object or string"),),
    returns="integer",
    examples=(Example("size_of([1, 2, 3, 4])", 4),),
    decisions=("Numbers, booleans and dates have no size and fail.",),
)
def size_of(call: Call, values: Values) -> Values:
    sizes: Any = pa.nulls(call.rows, pa.int64())
    for kind in values.present:
        if kind is Kind.STRING:
            sizes = pc.coalesce(sizes, pc.cast(pc.utf8_length(values.arrow(kind)), pa.int64()))
        elif kind in (Kind.ARRAY, Kind.OBJECT):
            items = values.trees(kind)
            lengths = items.lengths if kind is Kind.ARRAY else items.without_older().lengths
            sizes = pc.coalesce(sizes, pa.array(lengths, pa.int64(), mask=~items.valid))
        else:
            call.fail(values.has(kind), f"INPUT is {KIND_NAMES[kind]}, which has no size")
    return Values.of(sizes)


# Objects


def objects_of_pairs(call: Call, pairs: Sequence[Values]) -> Values:
    """An object in each row from keys and values in turn. A null key fails, and a key that is an array or object."""
    if len(pairs) % 2:
        call.fail(np.ones(call.rows, dtype=bool), "a value has no key: there is an odd number of arguments")
        return Values.nulls(call.rows)
    keys = [call.texts(key, "KEY") for key in pairs[::2]]
    missing = np.zeros(call.rows, dtype=bool)
    for key in keys:
        missing |= np.asarray(key.is_null())
    call.fail(missing, "KEY is null")
    return Values.items(_members(keys, pairs[1::2])).where(~missing)


def _members(keys: Sequence[Texts], values: Sequence[Values]) -> Items:
    """An object in each row with these keys; a null one is an empty string."""
    names = Items.rows_of([Values.of(key) for key in keys]).values.arrow(Kind.STRING)
    members = Items.rows_of(values)
    return Items(members.offsets, members.valid, members.values, names.fill_null(""))


@function(
    "to_object",
    category=OBJECTS,
    description="An object of the keys and values that are given in turn.",
    parameters=(
        Parameter("KEY", "a key"),
        Parameter("VALUE", "what the object has there"),
        Parameter("MORE", "more keys and values in turn", required=False, repeated=True),
    ),
    returns="object",
    examples=(Example('to_object("firstName", "John", "lastName", "Doe")', {"firstName": "John", "lastName": "Doe"}),),
    decisions=(
        "Of equal keys the last one counts.",
        "A key that is null fails; a value that is null stays as null.",
    ),
)
def to_object(call: Call, *pairs: Values) -> Values:
    return objects_of_pairs(call, pairs)


@function(
    "arrays_to_object",
    category=OBJECTS,
    description="An array of objects: the first has the first items of all the arrays, each under its key, and so on.",
    parameters=(
        Parameter("KEY", "a key"),
        Parameter("ARRAY", "what the objects have there, one after another"),
        Parameter("MORE", "more keys and arrays in turn", required=False, repeated=True),
    ),
    returns="array",
    examples=(
        Example(
            "arrays_to_objects('sku', explode(\"id1|id2\", '\\\\|'), 'price', [22.5,14.35])",
            [{"sku": "id1", "price": 22.5}, {"sku": "id2", "price": 14.35}],
            note="the page has it as arrays_to_object in its table, and as arrays_to_objects in its example",
        ),
    ),
    aliases=("arrays_to_objects",),
    decisions=(
        "Arrays that differ in length fail: which items belong together would be a guess.",
        "An array that is null gives null; a key that is null fails.",
    ),
)
def arrays_to_object(call: Call, *pairs: Values) -> Values:
    if len(pairs) % 2:
        return objects_of_pairs(call, pairs)
    keys = [call.texts(key, "KEY") for key in pairs[::2]]
    arrays = [call.arrays(array, "ARRAY") for array in pairs[1::2]]
    there = all_of((array.valid for array in arrays), call.rows)
    alike = all_of((array.lengths == arrays[0].lengths for array in arrays), call.rows)
    call.fail(there & ~alike, "the arrays differ in length")
    named = all_of((np.asarray(key.is_valid()) for key in keys), call.rows)
    call.fail(~named, "KEY is null")
    chosen = [array.where(there & alike & named) for array in arrays]
    rows = pa.array(chosen[0].rows)
    objects = Values.items(_members([key.take(rows) for key in keys], [array.values for array in chosen]))
    return Values.items(chosen[0].with_values(objects))


@function(
    "get_keys",
    category=OBJECTS,
    description="The keys of an object.",
    parameters=(Parameter("OBJECT", "the object"),),
    returns="array",
    examples=(Example('get_keys({"book1": "Pride and Prejudice", "book2": "1984"})', ["book1", "book2"]),),
)
def get_keys(call: Call, values: Values) -> Values:
    objects = call.objects(values, "OBJECT").without_older()
    assert objects.keys is not None
    return Values.items(Items(objects.offsets, objects.valid, Values.of(objects.keys)))


@function(
    "get",
    category=OBJECTS,
    description="What an object has under a key.",
    parameters=(Parameter("OBJECT", "the object"), Parameter("KEY", "the key")),
    returns="any",
    examples=(
        Example(
            'str_to_object("firstName - John ; lastName - ; phone - 123 456 7890", "-", ";").get("firstName")', "John"
        ),
    ),
    method=True,
    decisions=("A key that the object has not gives null.",),
)
def get(call: Call, values: Values, key: Values) -> Values:
    return call.objects(values, "OBJECT").members(call.texts(key, "KEY"))


# Strings of keys and values


def _read_pairs(call: Call, texts: Texts, value_delimiter: Values | None, field_delimiter: Values | None) -> Items:
    """Objects of the keys and values in each text; a field that is no pair fails."""
    parts = []
    for between, after, rows in _by_delimiters(call, value_delimiter, field_delimiter):
        chosen = texts if len(rows) == call.rows else texts.take(pa.array(rows))
        fields = Items.of_list_array(pc.split_pattern(chosen, after))
        pairs = Items.of_list_array(pc.split_pattern(fields.values.arrow(Kind.STRING), between, max_splits=1))
        keys, values = (_trimmed(pairs, place) for place in (0, 1))
        alone = np.asarray(values.is_null())
        blank = alone & np.asarray(pc.equal(keys, scalar("")))
        unpaired = np.zeros(call.rows, dtype=bool)
        unpaired[rows[fields.rows[alone & ~blank]]] = True
        call.fail(unpaired, "STRING has a field without VALUE_DELIMITER")
        members = Items(fields.offsets, fields.valid & ~unpaired[rows], Values.of(values), keys)
        parts.append((rows, Values.items(members.select(~blank & members.valid[members.rows]))))
    return spread(parts, call.rows).trees(Kind.OBJECT)


def _by_delimiters(
    call: Call, value_delimiter: Values | None, field_delimiter: Values | None
) -> Iterator[tuple[str, str, Positions]]:
    """Each two delimiters that some rows have, and these rows."""
    betweens = _delimiters(call, value_delimiter, "VALUE_DELIMITER", ":")
    afters = _delimiters(call, field_delimiter, "FIELD_DELIMITER", ",")
    for between, rows in call.by_value(betweens):
        for after, inner in call.by_value(afters.take(pa.array(rows))):
            yield between, after, rows[inner]


def _delimiters(call: Call, values: Values | None, name: str, default: str) -> Texts:
    if values is None:
        return pa.repeat(pa.scalar(default), call.rows)
    texts = call.texts(values, name)
    return pc.if_else(pc.equal(texts, scalar("")).fill_null(True), default, texts)  # noqa: FBT003 - pyarrow's own


def _trimmed(pairs: Items, place: int) -> Texts:
    return pc.utf8_trim_whitespace(pairs.item(np.full(len(pairs), place, dtype=np.int64)).arrow(Kind.STRING))


_STRING_DECISIONS = (
    "White space around keys and values goes.",
    "A field ends at the next FIELD_DELIMITER, a key at the first VALUE_DELIMITER in its field; both are taken as they "
    "are written, not as regular expressions. There is no way to quote them.",
    "A blank field is skipped; a field that is not blank and has no VALUE_DELIMITER fails.",
    "Of equal keys the last one counts.",
)
_DELIMITER_PARAMETERS = (
    Parameter(
        "VALUE_DELIMITER", "what stands between a key and its value; `:` if null, empty or left out", required=False
    ),
    Parameter("FIELD_DELIMITER", "what stands between two fields; `,` if null, empty or left out", required=False),
)


@function(
    "str_to_object",
    category=OBJECTS,
    description="An object of the keys and values that stand in a string.",
    parameters=(Parameter("STRING", "the string"), *_DELIMITER_PARAMETERS),
    returns="object",
    examples=(
        Example(
            'str_to_object("firstName - John ; lastName - ; - 123 345 7890", "-", ";")',
            {"firstName": "John", "lastName": "", "": "123 345 7890"},
            note="the page prints a last name, a key `phone` and another number, none of which are in the string",
        ),
        Example(
            'str_to_object("firstName - John ; lastName - ; phone - 123 456 7890", "-", ";").get("firstName")', "John"
        ),
    ),
    decisions=_STRING_DECISIONS,
)
def str_to_object(
    call: Call, string: Values, value_delimiter: Values | None = None, field_delimiter: Values | None = None
) -> Values:
    return Values.items(_read_pairs(call, call.texts(string, "STRING"), value_delimiter, field_delimiter))


@function(
    "get_values",
    category=OBJECTS,
    description="What stands under a key in a string of keys and values.",
    parameters=(
        Parameter("STRING", "the string; an object is taken too"),
        Parameter("KEY", "the key"),
        *_DELIMITER_PARAMETERS,
    ),
    returns="string",
    examples=(
        Example(
            'get_values("firstName - John , lastName - Cena , phone - 555 420 8692", "firstName", "-", ",")', "John"
        ),
    ),
    decisions=(
        *_STRING_DECISIONS,
        "A key that is not there gives null.",
        "VALUE_DELIMITER may be left out, as for str_to_object.",
        "For an object it does what map_get_values does with one key: the page lists that under this name.",
    ),
)
def get_values(
    call: Call,
    string: Values,
    key: Values,
    value_delimiter: Values | None = None,
    field_delimiter: Values | None = None,
) -> Values:
    names = call.texts(key, "KEY")
    objects = string.has(Kind.OBJECT)
    texts = call.texts(string.where(~objects), "STRING")
    found = _read_pairs(call, texts, value_delimiter, field_delimiter).members(names)
    if not objects.any():
        return found
    return Values.choose(np.where(objects, 1, 0), [found, string.trees(Kind.OBJECT).members(names)])


# Arrays


def _is_one_array(arguments: Sequence[Values]) -> bool:
    """Whether there is but one argument, whose arrays stand for several."""
    return len(arguments) == 1 and Kind.ARRAY in arguments[0].present


_ONE_ARRAY = "A single argument that is an array stands for its items; anything else single is taken as it is."
_VALUES = Parameter("INPUT", "an array, or the first of several values")
_MORE_VALUES = Parameter("MORE", "more values", required=False, repeated=True)


@function(
    "coalesce",
    category=ARRAYS,
    description="The first value that is not null.",
    parameters=(_VALUES, _MORE_VALUES),
    returns="any",
    examples=(Example('coalesce(null, null, null, "first", null, "second")', "first"),),
    decisions=(_ONE_ARRAY,),
)
def coalesce(_: Call, *values: Values) -> Values:
    if _is_one_array(values):
        arrays = values[0].trees(Kind.ARRAY)
        some = arrays.select(~arrays.values.is_null())
        return _or_itself(values[0], some.item(np.zeros(len(arrays), dtype=np.int64)))
    index = np.full(values[0].length, -1, dtype=np.int64)
    for number, column in enumerate(values):
        open_rows = index < 0
        if not open_rows.any():
            break
        index[open_rows & ~column.is_null()] = number
    return Values.choose(index, values)


def _or_itself(values: Values, items: Values) -> Values:
    """The item where there is an array, else the value."""
    if values.present == {Kind.ARRAY}:
        return items
    return Values.choose(np.where(values.has(Kind.ARRAY), 1, 0), [values, items])


@function(
    "first",
    category=ARRAYS,
    description="The first item of an array, or the first of the arguments.",
    parameters=(_VALUES, _MORE_VALUES),
    returns="any",
    examples=(Example('first("1", "2", "3")', "1"),),
    decisions=(_ONE_ARRAY, "It may be null. An array of nothing gives null."),
)
def first(_: Call, *values: Values) -> Values:
    if not _is_one_array(values):
        return values[0]
    arrays = values[0].trees(Kind.ARRAY)
    return _or_itself(values[0], arrays.item(np.zeros(len(arrays), dtype=np.int64)))


@function(
    "last",
    category=ARRAYS,
    description="The last item of an array, or the last of the arguments.",
    parameters=(_VALUES, _MORE_VALUES),
    returns="any",
    examples=(Example('last("1", "2", "3")', "3"),),
    decisions=(_ONE_ARRAY, "It may be null. An array of nothing gives null."),
)
def last(_: Call, *values: Values) -> Values:
    if not _is_one_array(values):
        return values[-1]
    arrays = values[0].trees(Kind.ARRAY)
    return _or_itself(values[0], arrays.item(np.full(len(arrays), -1, dtype=np.int64)))


@function(
    "to_array",
    category=ARRAYS,
    description="An array of the values.",
    parameters=(
        Parameter("INCLUDE_NULLS", "whether values that are null are kept"),
        Parameter("VALUES", "the values", required=False, repeated=True),
    ),
    returns="array",
    examples=(Example("to_array(false, 1, null, 2, 3)", [1, 2, 3]),),
    decisions=("An INCLUDE_NULLS that is null gives null.",),
)
def to_array(call: Call, include_nulls: Values, *values: Values) -> Values:
    included = call.booleans(include_nulls, "INCLUDE_NULLS")
    columns = values or (Values.nulls(call.rows),)
    arrays = Items.rows_of(columns).where(np.asarray(included.is_valid()))
    if not values:
        kept = np.zeros(len(arrays.values), dtype=bool)
    else:
        kept = np.asarray(included.fill_null(False))[arrays.rows] | ~arrays.values.is_null()  # noqa: FBT003 - pyarrow's own
    return Values.items(arrays if kept.all() else arrays.select(kept))


@function(
    "add_to_array",
    category=ARRAYS,
    description="An array with more items behind its own.",
    parameters=(
        Parameter("ARRAY", "the array"),
        Parameter("VALUES", "the items to add", repeated=True),
    ),
    returns="array",
    examples=(
        Example(
            "add_to_array(['a', 'b'], 'c', 'd')",
            ["a", "b", "c", "d"],
            note="the page has a stray quote in front of the closing parenthesis",
        ),
    ),
    decisions=(
        "A value that is null is added as null, one that is an array as one item.",
        "An array that is null gives null.",
    ),
)
def add_to_array(call: Call, array: Values, *values: Values) -> Values:
    return Values.items(side_by_side(call, [call.arrays(array, "ARRAY"), Items.rows_of(values)], _TOO_MANY))


@function(
    "join_arrays",
    category=ARRAYS,
    description="One array of the items of several.",
    parameters=(
        Parameter("ARRAY", "the array that comes first"),
        Parameter("VALUES", "the arrays behind it", repeated=True),
    ),
    returns="array",
    examples=(Example("join_arrays(['a', 'b'], ['c'], ['d', 'e'])", ["a", "b", "c", "d", "e"]),),
    decisions=("An array that is null gives null.",),
)
def join_arrays(call: Call, *arrays: Values) -> Values:
    return Values.items(side_by_side(call, [call.arrays(array, "ARRAY") for array in arrays], _TOO_MANY))


_UPSERT = (
    "There is no profile here whose array could be changed: the array is passed on, as Adobe does for new records."
)


@function(
    "upsert_array_append",
    category=ARRAYS,
    description="The array as it is.",
    parameters=(Parameter("ARRAY", "the array"),),
    returns="array",
    examples=(Example("upsert_array_append([123, 456])", [123, 456]),),
    decisions=(_UPSERT,),
)
def upsert_array_append(call: Call, array: Values) -> Values:
    return Values.items(call.arrays(array, "ARRAY"))


@function(
    "upsert_array_replace",
    category=ARRAYS,
    description="The array as it is.",
    parameters=(
        Parameter("ARRAY", "the array"),
        Parameter("INDEX", "not used", required=False),
    ),
    returns="array",
    examples=(Example("upsert_array_replace([123, 456], 1)", [123, 456]),),
    decisions=(_UPSERT, "INDEX is in Adobe's example only; it makes no difference."),
)
def upsert_array_replace(call: Call, array: Values, _: Values | None = None) -> Values:
    return Values.items(call.arrays(array, "ARRAY"))
