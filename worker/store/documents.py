"""Values of the model as JSON text and back. Times are ISO 8601 in UTC, always as long, so that they sort as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from worker.errors import StoreError
from worker.model import Issue, Receipt, Run, RunState, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import DataclassInstance

    Value = TypeVar("Value", bound=DataclassInstance)


def time_text(moment: datetime) -> str:
    """An aware datetime as text of fixed length, in UTC."""
    assert moment.utcoffset() is not None, "a time without a zone is not a moment"
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def decode_time(text: str) -> datetime:
    """The moment that `time_text` wrote."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise StoreError(f"A time in the state database is not one: {error}.") from error


def decode_day(text: str) -> date:
    """The date that was written in ISO 8601."""
    try:
        return date.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise StoreError(f"A day in the state database is not one: {error}.") from error


def encode(value: object) -> str:
    """JSON text of a JSON value, or of a value of the model."""
    return orjson.dumps(value, default=_encode_other, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()


def decode_document(text: str) -> dict[str, Any]:
    """The JSON object that `encode` wrote: the definition of a flow, the document of an object."""
    document = _parse(text)
    if not isinstance(document, dict):
        raise StoreError("A record in the state database is not a JSON object.")
    return document


def decode_run(text: str) -> Run:
    """The run that `encode` wrote; fields that this version does not know are left out."""
    return _build(
        Run,
        _parse(text),
        state=RunState,
        started_at=decode_time,
        first_day=decode_day,
        last_day=decode_day,
        window_start=decode_time,
        window_end=decode_time,
        completed_at=_optional_time,
        updated_at=_optional_time,
        tally=_tally,
        batch_ids=tuple,
        issues=_issues,
    )


def decode_receipt(text: str) -> Receipt:
    """The receipt that `encode` wrote; fields that this version does not know are left out."""
    return _build(
        Receipt,
        _parse(text),
        day=decode_day,
        exported_at=decode_time,
        committed_at=decode_time,
        tally=_tally,
    )


def _encode_other(value: object) -> object:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not part of a record")


def _parse(text: str) -> Any:  # noqa: ANN401  a JSON document has no narrower type
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise StoreError(f"A record in the state database is not JSON: {error}.") from error


def _build(kind: type[Value], document: dict[str, Any], **convert: Callable[[Any], object]) -> Value:
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: convert.get(name, _unchanged)(value) for name, value in document.items() if name in known})
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise StoreError(f"A record in the state database is not a {kind.__name__.lower()}: {error}.") from error


def _unchanged(value: object) -> object:
    return value


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else decode_time(text)


def _tally(document: dict[str, Any]) -> Tally:
    return _build(Tally, document)


def _issues(documents: list[dict[str, Any]]) -> tuple[Issue, ...]:
    return tuple(_build(Issue, document) for document in documents)
