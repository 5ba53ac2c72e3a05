"""A mapping set: which property of an event goes into which column.

Three forms of the body of `POST /conversion/mappingSets` are read, and what Adobe gives back for them:

* `{"outputSchema": {"schemaRef": {"id", "contentType"}}, "mappings": [{"sourceType", "source", "destination"}]}`
  (Data Prep API);
* `{"version", "xdmSchema", "xdmVersion", "id", "mappings": [as above, "name", "description"]}` (Mixpanel tutorial);
* mappings of `{"destinationXdmPath", "sourceAttribute", "identity", "primaryIdentity", "identityGroup",
  "namespaceCode", "version"}` (older tutorials), where a missing `sourceType` means ATTRIBUTE.

A source of sourceType ATTRIBUTE is a path, see `worker.mapping.sources`, in which elements of arrays may occur. STATIC
is a constant: the source is the value itself; one pair of equal quotes around it (`"web"` or `'web'`) is taken off, as
no document says whether Adobe writes it with quotes. EXPRESSION is one of Data Prep's language, see
`worker.mapping.expression`. Other keys of what Adobe gives back (`matchScore`, `createdBy`, `strictMapping`, …) are
read and have no effect.

A destination is a path of names. `emails[0].address` is a field of one element of an array; `emails[*].address` is that
field of as many elements as the source has, whose value must be an array. Mappings with equal paths up to `[*]` fill
the same elements, the first with the first. One `[*]`, or any `[n]`, may stand in a destination.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from worker.errors import ConfigurationError
from worker.mapping.sources import SourcePath, resolve
from worker.mapping.xdm import EVERY, XdmSchema, written
from worker.model import DAY_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from worker.mapping.expression import Expression

Destination = tuple[str | int, ...]
"""What leads to a column: `("_extconndev", "item_id")`; a number is an element of an array, EVERY all of them."""

MAX_ELEMENTS = 100
"""Elements of an array that can be mapped one by one."""


class SourceType(StrEnum):
    ATTRIBUTE = "ATTRIBUTE"
    STATIC = "STATIC"
    EXPRESSION = "EXPRESSION"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping. `number` counts from 1 in the body; `alternatives` are the places of an ATTRIBUTE, best first.

    `expression` is there for an EXPRESSION, and for an ATTRIBUTE with elements of arrays instead of `alternatives`.
    `source` is the text of the body, for STATIC the value without its quotes.
    """

    number: int
    source_type: SourceType
    source: str
    alternatives: tuple[SourcePath, ...]
    expression: Expression | None
    destination: Destination
    name: str | None = None
    description: str | None = None
    identity: bool = False
    primary_identity: bool = False
    identity_group: str | None = None
    namespace_code: str | None = None

    def __str__(self) -> str:
        return f"mapping {self.number} → {written(self.destination)}"


@dataclass(frozen=True, slots=True)
class MappingSet:
    """At least one mapping; no two destinations are equal, and none lies within another.

    `document` is the body as it came.
    """

    mappings: tuple[Mapping, ...]
    version: int
    xdm_schema_id: str | None
    document: dict[str, Any]


_KNOWN_KEYS = frozenset(
    (
        *("sourceType", "source", "destination", "sourceAttribute", "destinationXdmPath", "name", "description"),
        *("identity", "primaryIdentity", "identityGroup", "namespaceCode"),
        *("id", "version", "createdDate", "createdBy", "modifiedDate", "modifiedBy"),
        *("matchScore", "functionVersion", "strictMapping", "allowNullValues", "expressionAttributes"),
    )
)
_SOURCE_TYPES = {
    "ATTRIBUTE": SourceType.ATTRIBUTE,
    "text/x.schema-path": SourceType.ATTRIBUTE,
    "STATIC": SourceType.STATIC,
    "EXPRESSION": SourceType.EXPRESSION,
    "text/x.aep-xl": SourceType.EXPRESSION,
}
_NAME = r"[A-Za-z_][A-Za-z0-9_-]*(?:\[(?:\*|[0-9]{1,4})\])?"
_DESTINATION = re.compile(rf"{_NAME}(?:\.{_NAME})*")
_STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)|\[(\*|[0-9]+)\]")


def load_mapping_set(path: Path) -> tuple[MappingSet, XdmSchema | None]:
    """Read the mapping set at `path` and, if it stands beside it, `schema.json`, the XDM schema as JSON Schema.

    Raises `ConfigurationError` that names the file.
    """
    schema_path = path.parent / "schema.json"
    try:
        mapping_set = parse_mapping_set(_read_object(path))
        path = schema_path
        return mapping_set, XdmSchema(_read_object(path)) if path.exists() else None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}", advice=error.advice) from error


def parse_mapping_set(document: dict[str, Any]) -> MappingSet:
    """Read the body of a mapping set in any of the three forms of the module's docstring.

    Raises `ConfigurationError` for the first mistake, with the number of the mapping, its destination and what to do.
    """
    entries = document.get("mappings")
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(
            "the mapping set has no mappings.",
            advice='It needs "mappings": [{"sourceType": "ATTRIBUTE", "source": …, "destination": …}, …].',
        )
    mappings = tuple(_parse_mapping(number, entry) for number, entry in enumerate(entries, start=1))
    _check_destinations(mappings)
    return MappingSet(mappings, _version(document), _xdm_schema_id(document), document)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}.") from error
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ConfigurationError("is not a JSON object.")
    return document


def _parse_mapping(number: int, entry: object) -> Mapping:
    where = f"mapping {number}"
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} is not a JSON object.")
    destination = _text(where, entry, "destination", "destinationXdmPath")
    where = f"{where} → {destination}"
    for key in entry:
        if key not in _KNOWN_KEYS:
            nearest = get_close_matches(key, _KNOWN_KEYS, n=1, cutoff=0)[0]
            raise ConfigurationError(f"{where}: unknown key `{key}`.", advice=f"Did you mean `{nearest}`?")
    source_type = _source_type(where, entry)
    source = _text(where, entry, "source", "sourceAttribute")
    alternatives: tuple[SourcePath, ...] = ()
    expression = None
    try:
        match source_type:
            case SourceType.EXPRESSION:
                expression = _language().of(source)
            case SourceType.ATTRIBUTE if "[" in source:
                expression = _language().of_path(source)
            case SourceType.ATTRIBUTE:
                alternatives = resolve(source)
            case SourceType.STATIC:
                source = _unquoted(source)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error.message}", advice=error.advice) from error
    return Mapping(
        number=number,
        source_type=source_type,
        source=source,
        alternatives=alternatives,
        expression=expression,
        destination=_parse_destination(where, destination),
        name=_optional_text(where, entry, "name"),
        description=_optional_text(where, entry, "description"),
        identity=_flag(where, entry, "identity"),
        primary_identity=_flag(where, entry, "primaryIdentity"),
        identity_group=_optional_text(where, entry, "identityGroup"),
        namespace_code=_optional_text(where, entry, "namespaceCode"),
    )


def _language() -> type[Expression]:
    from worker.mapping.expression import Expression  # noqa: PLC0415 - most sets need no parser

    return Expression


def _source_type(where: str, entry: dict[str, Any]) -> SourceType:
    word = _optional_text(where, entry, "sourceType") or "ATTRIBUTE"
    if word not in _SOURCE_TYPES:
        nearest = get_close_matches(word, _SOURCE_TYPES, n=1, cutoff=0)[0]
        raise ConfigurationError(f"{where}: unknown sourceType `{word}`.", advice=f"Did you mean `{nearest}`?")
    return _SOURCE_TYPES[word]


def _parse_destination(where: str, destination: str) -> Destination:
    if not _DESTINATION.fullmatch(destination):
        raise ConfigurationError(
            f"{where}: the destination is not a path of names.",
            advice="A name starts with a letter or _ and goes on with letters, digits, _ and -; dots separate names, "
            "[0] or [*] stands behind the name of an array.",
        )
    path = tuple(name or (EVERY if index == "*" else int(index)) for name, index in _STEP.findall(destination))
    elements = [step for step in path if isinstance(step, int)]
    if EVERY in elements and len(elements) > 1:
        raise ConfigurationError(
            f"{where}: [*] stands beside another element of an array.", advice="Only one [*] can be in a destination."
        )
    if max(elements, default=0) >= MAX_ELEMENTS:
        raise ConfigurationError(
            f"{where}: an array has no element [{max(elements)}] here.",
            advice=f"The last one that can be mapped is [{MAX_ELEMENTS - 1}].",
        )
    if str(path[0]).lower() == DAY_COLUMN:
        raise ConfigurationError(
            f"{where}: the column `{DAY_COLUMN}` is the worker's own (the project day).",
            advice="Choose another name.",
        )
    return path


def _check_destinations(mappings: Iterable[Mapping]) -> None:
    """Every destination is one column: no duplicates, no leaf that is also a parent.

    Names that differ only in upper and lower case count as equal, as they do to Delta's readers.
    """
    leafs: dict[Destination, Mapping] = {}
    spellings: dict[Destination, Mapping] = {}
    forms: dict[Destination, tuple[str, Mapping]] = {}
    for mapping in mappings:
        path = mapping.destination
        lower = tuple(step.lower() if isinstance(step, str) else step for step in path)
        for length in range(1, len(path)):
            form = _form_of(path[length])
            known, first = forms.setdefault(lower[:length], (form, mapping))
            if known != form:
                raise ConfigurationError(
                    f"{mapping}: {first} takes `{written(path[:length])}` for {known}, not {form}.",
                    advice="It must be the same in all mappings.",
                )
        if lower in leafs:
            raise ConfigurationError(
                f"{mapping}: {leafs[lower]} has the same destination.",
                advice="Remove one; names that differ only in upper and lower case are the same column.",
            )
        if lower in spellings:
            raise ConfigurationError(
                f"{mapping}: {spellings[lower]} lies within this destination.",
                advice="Map either the one or the other.",
            )
        for length in range(1, len(path)):
            if lower[:length] in leafs:
                raise ConfigurationError(
                    f"{mapping}: lies within the destination of {leafs[lower[:length]]}.",
                    advice="Map either the one or the other.",
                )
            other = spellings.setdefault(lower[:length], mapping)
            if other.destination[:length] != path[:length]:
                raise ConfigurationError(
                    f"{mapping}: {other} spells `{written(path[:length])}` differently.",
                    advice="Spell it the same; tables do not tell upper and lower case in names of columns apart.",
                )
        leafs[lower] = mapping


def _form_of(step: str | int) -> str:
    """What an object or array is of which this step takes a part."""
    if isinstance(step, str):
        return "an object"
    return "an array with [*]" if step == EVERY else "an array with [n]"


def _text(where: str, entry: dict[str, Any], key: str, older_key: str) -> str:
    """The text under `key` or its older name; read-back bodies have both, and they must agree."""
    value, older = _optional_text(where, entry, key), _optional_text(where, entry, older_key)
    if value is None and older is None:
        raise ConfigurationError(f"{where} has no `{key}`.", advice=f"Add `{key}` (in older bodies `{older_key}`).")
    if value is not None and older is not None and value != older:
        raise ConfigurationError(
            f"{where}: `{key}` is `{value}` but `{older_key}` is `{older}`.", advice="Remove the wrong one."
        )
    return value if value is not None else older or ""


def _optional_text(where: str, entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    raise ConfigurationError(f"{where}: `{key}` is not a text.", advice=f'Write "{key}": "…".')


def _flag(where: str, entry: dict[str, Any], key: str) -> bool:
    value = entry.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigurationError(f"{where}: `{key}` is neither true nor false.")


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def _version(document: dict[str, Any]) -> int:
    version = document.get("version")
    if version is None:
        return 0
    if isinstance(version, int) and not isinstance(version, bool):
        return version
    raise ConfigurationError("`version` of the mapping set is not a whole number.")


def _xdm_schema_id(document: dict[str, Any]) -> str | None:
    output = document.get("outputSchema")
    references = [output.get("schemaRef") if isinstance(output, dict) else None, document.get("schemaRef")]
    identifiers = [document.get("xdmSchema"), *(ref.get("id") for ref in references if isinstance(ref, dict))]
    return next((identifier for identifier in identifiers if isinstance(identifier, str)), None)
