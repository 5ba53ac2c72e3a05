"""An XDM schema (JSON Schema as Adobe's Schema Registry gives it) as a source of column types.

| JSON Schema                                    | meta:xdmType       | column               |
|------------------------------------------------|--------------------|----------------------|
| string                                         | string             | string               |
| string, format date                            | date               | date32               |
| string, format date-time                       | date-time          | timestamp[ms, UTC]   |
| number                                         | number, double     | float64              |
| integer, both bounds within ±2^7 / ±2^15 / ±2^31 | byte / short / int | int8 / int16 / int32 |
| integer, any other                             | long               | int64                |
| boolean                                        | boolean            | bool                 |
| array                                          | array              | list of its `items`  |
| object with properties                         | object             | struct of them       |
| object with `additionalProperties`             | map                | map of string to it  |

meta:xdmType wins where both are given. Adobe's own bounds include 2^7, 2^15 and 2^31, one more than the type of the
file holds; such a value does not fit. (XDM, "XDM field type constraints": JSON Schema and Parquet types.)

`minimum`, `maximum`, `pattern` and `enum` choose types here but do not judge values.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

DATE_TIME = pa.timestamp("us", tz="UTC")

_TYPES_OF_XDM: dict[str, pa.DataType] = {
    "string": pa.string(),
    "date": pa.date32(),
    "date-time": DATE_TIME,
    "number": pa.float64(),
    "double": pa.float64(),
    "long": pa.int64(),
    "int": pa.int32(),
    "short": pa.int16(),
    "byte": pa.int8(),
    "boolean": pa.bool_(),
}
_TYPES_OF_FORMAT: dict[str, pa.DataType] = {"date": pa.date32(), "date-time": DATE_TIME}
_TYPES_OF_WIDTH: tuple[tuple[int, pa.DataType], ...] = ((7, pa.int8()), (15, pa.int16()), (31, pa.int32()))
MAX_DEPTH = 32
"""Objects and arrays within each other; a schema that goes on is a mistake."""
EVERY = -1
"""In a path: every element of an array; other numbers are one of them."""


def written(path: Sequence[str | int]) -> str:
    """A path as it is written: `a.b[0].c`, `a[*].b`."""
    parts = [("[*]" if step == EVERY else f"[{step}]") if isinstance(step, int) else f".{step}" for step in path]
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Needs:
    """What an object must have, wherever there is one: `fields`, and what is needed within some of its fields.

    Under EVERY it has what each element of an array, or each value of a map, must have.
    """

    fields: tuple[str, ...]
    within: dict[str | int, Needs]


class XdmSchema:
    """The fields of an XDM schema. `document` is the JSON Schema as it came.

    `allOf` and `$ref` into the schema's own definitions are followed; other references are mistakes, but only where a
    mapping comes across them.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._top = self._expand(document)
        if not _names(self._top):
            raise ConfigurationError(
                "the XDM schema has no properties.", advice="It is a JSON Schema with `properties`."
            )

    @property
    def identifier(self) -> str | None:
        """`$id` of the schema."""
        identifier = self.document.get("$id")
        return identifier if isinstance(identifier, str) else None

    def type_of(self, path: Sequence[str | int]) -> pa.DataType:
        """The column type of the field at `path`, in which a number stands for any element of an array.

        Raises `ConfigurationError` for a field that is not there, naming the nearest, and for one without a type.
        """
        return self._type(self._node(path), written(path), MAX_DEPTH)

    def _type(self, node: list[dict[str, Any]], where: str, depth: int) -> pa.DataType:
        if not depth:
            raise ConfigurationError(f"the XDM schema has no end below `{where}`.")
        kind, types = _keyword(node, "meta:xdmType"), _keyword(node, "type")
        if isinstance(types, list):
            types = next((name for name in types if name != "null"), None)
        if "array" in (kind, types):
            return pa.list_(self._type(self._items(node, where), f"{where}[]", depth - 1))
        if names := _names(node):
            return pa.struct(
                [
                    pa.field(name, self._type(self._expanded(raws), f"{where}.{name}", depth - 1))
                    for name, raws in names.items()
                ]
            )
        if (inner := _keyword(node, "additionalProperties")) and isinstance(inner, dict):
            return pa.map_(pa.string(), self._type(self._expand(inner), f"{where}.*", depth - 1))
        if "object" in (kind, types) or "map" in (kind, types):
            raise ConfigurationError(f"the XDM schema says of `{where}` that it is an object, and not of what.")
        if isinstance(kind, str) and kind in _TYPES_OF_XDM:
            return _TYPES_OF_XDM[kind]
        match types:
            case "string":
                return _TYPES_OF_FORMAT.get(str(_keyword(node, "format")), pa.string())
            case "number":
                return pa.float64()
            case "boolean":
                return pa.bool_()
            case "integer":
                return _integer_type(_keyword(node, "minimum"), _keyword(node, "maximum"))
        raise ConfigurationError(f"the XDM schema gives `{where}` no type that is known: {types!r}.")

    def requirements(self, paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Which of the mapped fields `paths` are required, and the object within which each is: `()` is the whole row.

        A field that is required within an optional object must be there only in rows that have something in the object.
        Raises `ConfigurationError` with all required fields that no path sets, at the top or within a mapped object.
        """
        objects = dict.fromkeys(path[:length] for path in paths for length in range(len(path)))
        beginnings = {path[: length + 1] for path in paths for length in range(len(path))}
        required = {(*parent, name): parent for parent in objects for name in _required(self._node(parent))}
        missing = [".".join(path) for path in required if path not in beginnings]
        if missing:
            raise never_set(missing)
        scopes = {}
        for path in paths:
            if path in required:
                scope = required[path]
                while scope in required:
                    scope = required[scope]
                scopes[path] = scope
        return scopes

    def needs_at(self, path: Sequence[str]) -> Needs | None:
        """What is required within the field at `path`; None where nothing is."""
        return self._needs(self._node(path), written(path))

    def _needs(self, node: list[dict[str, Any]], where: str) -> Needs | None:
        """To be asked of what has a type, which has an end."""
        within: dict[str | int, Needs] = {}
        fields: tuple[str, ...] = ()
        names = _names(node)
        inner = _keyword(node, "additionalProperties")
        if _keyword(node, "items") is not None:
            if (needs := self._needs(self._items(node, where), where)) is not None:
                within[EVERY] = needs
        elif names:
            fields = tuple(dict.fromkeys(_required(node)))
            for name, raws in names.items():
                if (needs := self._needs(self._expanded(raws), f"{where}.{name}")) is not None:
                    within[name] = needs
        elif isinstance(inner, dict) and (needs := self._needs(self._expand(inner), where)) is not None:
            within[EVERY] = needs
        return Needs(fields, within) if fields or within else None

    def _items(self, node: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        items = _keyword(node, "items")
        if not isinstance(items, dict):
            raise ConfigurationError(f"the XDM schema does not say what `{where}` is an array of.")
        return self._expand(items)

    def _node(self, path: Sequence[str | int]) -> list[dict[str, Any]]:
        node = self._top
        for depth, name in enumerate(path):
            if isinstance(name, int):
                if _keyword(node, "items") is None:
                    raise ConfigurationError(f"in the XDM schema `{written(path[:depth])}` is no array.")
                node = self._items(node, written(path[:depth]))
                continue
            names = _names(node)
            if name not in names:
                parent = written(path[:depth])
                nearest = get_close_matches(name, names, n=1, cutoff=0)
                raise ConfigurationError(
                    f"the XDM schema has no field `{name}` {f'in `{parent}`' if parent else 'at the top'}.",
                    advice=f"Did you mean `{nearest[0]}`?" if nearest else f"`{parent}` has no fields to map to.",
                )
            node = self._expanded(names[name])
        return node

    def _expanded(self, raws: list[object]) -> list[dict[str, Any]]:
        return [part for raw in raws for part in self._expand(raw)]

    def _expand(self, raw: Any, references: tuple[str, ...] = ()) -> list[dict[str, Any]]:  # noqa: ANN401 - foreign JSON
        """The schema object itself and everything that its `allOf` and `$ref` add to it."""
        if not isinstance(raw, dict):
            raise ConfigurationError(f"the XDM schema has {repr(raw)[:100]} where a schema object is expected.")
        for key, kind in (("properties", dict), ("required", list), ("allOf", list)):
            if not isinstance(raw.get(key, kind()), kind):
                raise ConfigurationError(f"the XDM schema has a `{key}` that is {repr(raw[key])[:100]}.")
        parts = [raw]
        for part in raw.get("allOf", ()):
            parts += self._expand(part, references)
        reference = raw.get("$ref")
        if reference is not None:
            if reference in references:
                raise ConfigurationError(f"the XDM schema refers to itself: {reference}.")
            parts += self._expand(self._referred(reference), (*references, reference))
        return parts

    def _referred(self, reference: object) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ConfigurationError(
                f"the XDM schema refers to another document: {reference}.",
                advice="Ask the registry for the schema with all references resolved: "
                "Accept: application/vnd.adobe.xed-full+json;version=1.",
            )
        target: object = self.document
        for key in unquote(reference[1:]).split("/")[1:]:
            target = target.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        if target is None:
            raise ConfigurationError(f"the XDM schema refers to a definition that it does not have: {reference}.")
        return target


def never_set(fields: Sequence[str]) -> ConfigurationError:
    """The error for required fields that would be missing in every row."""
    return ConfigurationError(
        f"the XDM schema requires fields that no mapping sets: {', '.join(fields)}.",
        advice="Map something to each of them, or leave them out of `required`.",
    )


def _names(node: list[dict[str, Any]]) -> dict[str, list[object]]:
    """The fields of an object, each with all schema objects that speak of it."""
    names: dict[str, list[object]] = {}
    for part in node:
        for name, raw in part.get("properties", {}).items():
            names.setdefault(name, []).append(raw)
    return names


def _required(node: list[dict[str, Any]]) -> list[str]:
    return [name for part in node for name in part.get("required", ())]


def _keyword(node: list[dict[str, Any]], key: str) -> object:
    return next((part[key] for part in node if key in part), None)


def _integer_type(minimum: object, maximum: object) -> pa.DataType:
    if isinstance(minimum, int | float) and isinstance(maximum, int | float):
        for bits, data_type in _TYPES_OF_WIDTH:
            if -(2**bits) <= minimum and maximum <= 2**bits:
                return data_type
    return pa.int64()
