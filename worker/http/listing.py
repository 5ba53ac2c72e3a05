"""Lists as the Flow Service gives them: filtered, ordered, in pages (dataflows API, "Sort and filter responses").

* `property=path==v1,v2`: commas mean or, several `property` mean and. Operators are ==, !=, <, >, <=, >=. A path goes
  through objects by dots; what is a list on the way, written with `[]` or not, meets the filter if one element does.
  Upper and lower case in values are the same: the documents print `Failed` for what the data spell `failed`.
* `orderby=name,-createdAt`: several fields, `-` for descending. In an address, `+` is a space.
* `count=true` gives the number alone.
* `limit` and `continuationToken`: the link to the next page holds the token and nothing else, since aepp takes what
  follows the first `=` for the token; so the token carries the whole question, and has no `=` of its own. It is no
  secret: what it says is checked like any other question.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any, Final

import orjson

from worker.http.problems import bad_request, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from multidict import MultiMapping

    from worker.http.problems import ApiError

MAX_LIMIT: Final = 100
"""Most items of a page. A larger `limit` is taken and gives this many, with a link to the rest."""

_MAX_CONDITIONS = 20
_MAX_VALUES = 100
_MAX_ORDERS = 5
_MAX_TOKEN_CHARACTERS = 6000

_CONDITION = re.compile(r"([^=<>!~]*)([=<>!~]+)(.*)", re.DOTALL)
_FIELD = re.compile(r"[A-Za-z0-9_@$:-]{1,64}(\[\])?(\.[A-Za-z0-9_@$:-]{1,64}(\[\])?){0,9}")
_ORDER = re.compile(r"([+-]?)([A-Za-z0-9_@$:.-]{1,200})")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")

Key = tuple[int, int | float | str]
"""How a value sorts: what is not there, then numbers, then texts."""

_ABSENT: Key = (0, 0)


@dataclass(frozen=True, slots=True)
class Condition:
    """One `property`: some value at `field` stands in this relation to one of `values`."""

    field: tuple[str, ...]
    operator: str
    values: tuple[str, ...]

    @property
    def path(self) -> str:
        return ".".join(self.field)


@dataclass(frozen=True, slots=True)
class Order:
    """One field of `orderby`."""

    field: tuple[str, ...]
    descending: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """A question, checked. `after` is where the last page ended: the keys of its last item."""

    conditions: tuple[Condition, ...] = ()
    orders: tuple[Order, ...] = ()
    limit: int = MAX_LIMIT
    count: bool = False
    after: tuple[Key, ...] | None = None
    properties: tuple[str, ...] = ()
    orderby: str = ""

    def selects(self, document: Mapping[str, Any]) -> bool:
        """Whether the document meets all conditions."""
        return all(_meets(condition, document) for condition in self.conditions)

    def position(self, document: Mapping[str, Any]) -> tuple[Key, ...]:
        """Where the document stands in the order. No two documents stand at one place: their ids differ."""
        fields = [order.field for order in self.orders]
        return tuple(_key(_first(document, field)) for field in (*fields, ("createdAt",), ("id",)))

    def link(self, path: str, last: Sequence[Key]) -> dict[str, Any]:
        """`_links` with the way from the page that ended at `last` to the next one."""
        token = {"p": self.properties, "o": self.orderby, "l": self.limit, "a": last}
        text = base64.urlsafe_b64encode(orjson.dumps(token)).decode().rstrip("=")
        return {"next": {"href": f"{path}?continuationToken={text}"}}


def parse_listing(query: MultiMapping[str], *, fields: Collection[str] | None = None) -> Listing:
    """The question in the parameters of a request. Raises ApiError with the codes of the Flow Service.

    `fields` are the names at the top of the documents that may be asked for; None for any. A token brings its own
    question: of what stands beside it only `limit` counts.
    """
    limit = _limit(query.get("limit"))
    count = _flag(query.get("count"))
    if count and limit is not None:
        raise bad_request(
            "The limit and count parameters cannot be given together in the same request. "
            "Please provide either only the limit or the count parameter and try again.",
            "FLOW-1401-400",
        )
    properties: Sequence[str] = query.getall("property", [])
    orderby = query.get("orderby") or query.get("orderBy") or ""
    after: object = None
    token = query.get("continuationToken")
    if token:
        content = _token_content(token)
        properties, orderby, after = content["p"], content["o"], content["a"]
        limit = limit or _limit(str(content["l"]))
    conditions = _conditions(properties, fields)
    orders = _orders(orderby, fields)
    if after is not None:
        after = _keys(after, len(orders) + 2)
        if after is None:
            raise _bad_token()
    return Listing(
        conditions,
        orders,
        min(limit or MAX_LIMIT, MAX_LIMIT),
        count,
        after,
        tuple(properties),
        orderby,
    )


def apply(listing: Listing, documents: Iterable[Mapping[str, Any]], path: str) -> dict[str, Any]:
    """The answer: `{"items", "_links"}`, or `{"count"}`. Without `orderby` the oldest comes first.

    The documents are as they are shown, with an `id`. `path` is that of the collection: `/connections`.
    """
    found = [(listing.position(document), document) for document in documents if listing.selects(document)]
    if listing.count:
        return {"count": len(found)}

    def compare(one: tuple[Key, ...], other: tuple[Key, ...]) -> int:
        for index, (mine, others) in enumerate(zip(one, other, strict=True)):
            if mine != others:
                descending = index < len(listing.orders) and listing.orders[index].descending
                return -1 if (mine < others) != descending else 1
        return 0

    by_position = cmp_to_key(compare)
    if listing.after is not None:
        found = [item for item in found if compare(item[0], listing.after) > 0]
    found.sort(key=lambda item: by_position(item[0]))
    page = found[: listing.limit]
    links = listing.link(path, page[-1][0]) if len(found) > len(page) else {}
    return {"items": [document for _, document in page], "_links": links}


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise bad_request(f"Invalid query value {shorten(text)} provided in query param.", "FLOW-1453-400")
    return int(text)


def _flag(text: str | None) -> bool:
    word = (text or "false").lower()
    if word not in ("true", "false"):
        raise bad_request(f"Invalid query value {shorten(word)} provided in query param.", "FLOW-1453-400")
    return word == "true"


def _conditions(properties: Sequence[str], fields: Collection[str] | None) -> tuple[Condition, ...]:
    if len(properties) > _MAX_CONDITIONS:
        raise bad_request(f"A request takes up to {_MAX_CONDITIONS} filters.", "FLOW-1451-400")
    return tuple(_condition(text, fields) for text in properties)


def _condition(text: str, fields: Collection[str] | None) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise bad_request(f"Invalid operator {shorten(text)} in filter params.", "FLOW-1450-400")
    name, operator, value = match[1].strip(), match[2], match[3]
    if operator not in ("==", "!=", "<", ">", "<=", ">="):
        raise bad_request(f"Operator '{operator[:10]}' not implemented.", "FLOW-1440-400")
    field = _field(name, fields)
    if field is None:
        raise bad_request(f"Invalid field {shorten(name)} in filter params.", "FLOW-1449-400")
    values = tuple(part.strip() for part in value.split(","))
    if operator not in ("==", "!=") and len(values) > 1:
        raise bad_request(f"Operator '{operator}' is not allowed for multiple values.", "FLOW-1443-400")
    if not all(values) or len(values) > _MAX_VALUES:
        raise bad_request(f"Invalid value {shorten(value)} for field {shorten(name)}.", "FLOW-1452-400")
    return Condition(field, operator, values)


def _orders(text: str, fields: Collection[str] | None) -> tuple[Order, ...]:
    orders: list[Order] = []
    for part in text.split(",") if text else ():
        match = _ORDER.fullmatch(part.strip())
        if match is None:
            raise bad_request(
                "Sort order specified is not correct, prepend + for ascending order and - for descending order in "
                "the fieldName.",
                "FLOW-1432-400",
            )
        field = _field(match[2], fields)
        if field is None or len(orders) == _MAX_ORDERS:
            raise bad_request(
                f"Incorrect field= #{shorten(match[2])} passed in orderBy, example are +name, -name, name.",
                "FLOW-1433-400",
            )
        orders.append(Order(field, match[1] == "-"))
    return tuple(orders)


def _field(text: str, fields: Collection[str] | None) -> tuple[str, ...] | None:
    if not _FIELD.fullmatch(text):
        return None
    names = tuple(name.removesuffix("[]") for name in text.split("."))
    return names if fields is None or names[0] in fields else None


def _values(node: object, field: Sequence[str]) -> list[object]:
    """Everything at the end of the path; lists are gone through."""
    found = [node]
    for name in field:
        found = [
            inner[name] for item in found for inner in _elements(item) if isinstance(inner, dict) and name in inner
        ]
    return [value for item in found for value in _elements(item)]


def _elements(node: object) -> list[object]:
    return node if isinstance(node, list) else [node]


def _first(document: Mapping[str, Any], field: Sequence[str]) -> object:
    return next(iter(_values(dict(document), field)), None)


def _meets(condition: Condition, document: Mapping[str, Any]) -> bool:
    found = [_key(value) for value in _values(dict(document), condition.field)]
    asked = [_asked(text) for text in condition.values]
    if condition.operator in ("==", "!="):
        equal = any(key == one or _number(key) == one for key in found for one in asked)
        return equal == (condition.operator == "==")
    bound = asked[0]
    return any(_compare(condition.operator, _number(key) if bound[0] == 1 else key, bound) for key in found)


def _compare(operator: str, key: Key, bound: Key) -> bool:
    if key[0] != bound[0]:
        return False
    less, equal = key < bound, key == bound
    match operator:
        case "<":
            return less
        case "<=":
            return less or equal
        case ">":
            return not less and not equal
        case _:
            return not less


def _key(value: object) -> Key:
    if isinstance(value, bool):
        return (2, str(value).lower())
    if isinstance(value, int | float):
        return (1, value)
    if isinstance(value, str):
        return (2, value.casefold())
    return _ABSENT


def _asked(text: str) -> Key:
    return _number((2, text.casefold()))


def _number(key: Key) -> Key:
    """A text that is a number, as that number: the tutorials write numbers as texts."""
    value = key[1]
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return key
    return (1, float(value) if "." in value else int(value))


def _token_content(token: str) -> dict[str, Any]:
    if len(token) > _MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        raise _bad_token()
    try:
        content = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, orjson.JSONDecodeError):
        raise _bad_token() from None
    match content:
        case {"p": list(properties), "o": str(), "l": int(limit), "a": list()} if limit > 0:
            if all(isinstance(text, str) for text in properties):
                return dict(content)
    raise _bad_token()


def _keys(content: object, length: int) -> tuple[Key, ...] | None:
    """The position that a token carries, or None where it is none."""
    if not isinstance(content, list) or len(content) != length:
        return None
    keys: list[Key] = []
    for item in content:
        match item:
            case [0, 0]:
                keys.append(_ABSENT)
            case [1, int() | float() as number] if not isinstance(number, bool):
                keys.append((1, number))
            case [2, str(text)]:
                keys.append((2, text))
            case _:
                return None
    return tuple(keys)


def _bad_token() -> ApiError:
    return bad_request("Invalid query value provided in query param continuationToken.", "FLOW-1453-400")
