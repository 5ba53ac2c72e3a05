"""Answers that say what went wrong, in the shapes of Adobe's services.

The Flow Service's body holds `type`, `title`, `status`, `report`, `errorMessage` and `errorDetails` (facts, 1.5); what
is refused before a service is reached has the gateway's body, `error_code` and `message`. Codes with `FLOW-` are those
of the Flow Service's table. Adobe prints the codes of its sources provider without a prefix, and some of its numbers
mean something else there: here they have `CONNECTOR-`, as the provider's errors in runs do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from worker.errors import (
    ConfigurationError,
    EtagConflictError,
    ObjectExistsError,
    ObjectMissingError,
    ResourceError,
    StoreError,
    WorkerError,
)
from worker.registry import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TYPE_PREFIX: Final = "https://ns.adobe.com/aep/errors/"
PROBLEM_TYPE: Final = "application/problem+json"

_GATEWAY_CODE = re.compile(r"[0-9]{6}")
_STATUS_OF_CODE = re.compile(r"-([45][0-9]{2})$")


class ApiError(Exception):
    """One answer that is an error. No field holds a secret, nor a text of the request longer than a name.

    A `code` of six digits is the gateway's and gets its body. `errors` are further problems of the same request, each
    with `code` and `message`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        message: str,
        *,
        resource_type: str | None = None,
        resource_id: str | None = None,
        errors: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.title = title
        self.message = message
        self.resource_type = resource_type
        self.resource_id = resource_id
        self.errors = errors
        self.headers = dict(headers or {})


def problem_document(error: ApiError, request_id: str) -> dict[str, Any]:
    """The body of the answer."""
    if _GATEWAY_CODE.fullmatch(error.code):
        return {"error_code": error.code, "message": error.message}
    report: dict[str, Any] = {"detailed-message": error.message, "request-id": request_id}
    if error.resource_id is not None:
        report["id"] = error.resource_id
    if error.resource_type is not None:
        report["type"] = error.resource_type
    if error.errors:
        report["errors"] = error.errors
    return {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "report": report,
        "errorMessage": error.message,
        "errorDetails": error.message,
    }


def problem_response(error: ApiError, request_id: str) -> web.Response:
    """The answer for `error`; `request_id` is the one of the request, as it is in the answer's headers and the log."""
    body = orjson.dumps(problem_document(error, request_id))
    content_type = "application/json" if _GATEWAY_CODE.fullmatch(error.code) else PROBLEM_TYPE
    return web.Response(status=error.status, body=body, content_type=content_type, headers=error.headers)


def bad_request(message: str, code: str = "FLOW-1100-400", *, errors: list[dict[str, Any]] | None = None) -> ApiError:
    return ApiError(400, code, "Invalid request", message, errors=errors)


def provider_refusal(code: str, message: str) -> ApiError:
    """A refusal of the sources provider; `code` as in its table: `1366-400`."""
    return ApiError(400, f"CONNECTOR-{code}", "Bad Request", message)


def not_found(kind: str, object_id: str) -> ApiError:
    """`kind` is the name of the collection, as in the path."""
    shown = shorten(object_id)
    message = f"The requested {kind} resource {shown} is not found. Verify the resource ID before trying again."
    return ApiError(404, "FLOW-1439-404", "Resource not found", message, resource_type=kind, resource_id=shown)


def missing_if_match() -> ApiError:
    message = "The header 'If-Match' is missing in the request. Please provide the header and try again."
    return ApiError(400, "FLOW-1403-400", "Header is missing", message)


def stale_etag(kind: str, object_id: str, supplied: str, current: str) -> ApiError:
    """412; both etags without quotes."""
    message = (
        f"The supplied version '{shorten(supplied)}' does not match the current version on entity '{current}'. "
        "Please ensure that the supplied version matches the current version on entity and try again."
    )
    return ApiError(
        412, "FLOW-1404-412", "Version not matching", message, resource_type=kind, resource_id=shorten(object_id)
    )


def empty_body() -> ApiError:
    return bad_request(
        "The request body cannot be null or empty. Please provide a request body and try again.", "FLOW-1405-400"
    )


def forbidden(message: str | None = None) -> ApiError:
    return ApiError(
        403,
        "FLOW-2120-403",
        "Forbidden",
        message
        or "You do not have sufficient permissions to perform the operation. "
        "Please contact your administrator to resolve permissions and try again.",
    )


def gateway(status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> ApiError:
    """What the gateway refuses: `403010` no token, `401013` a wrong one, `400003` a missing header, and so on."""
    assert _GATEWAY_CODE.fullmatch(code), code
    return ApiError(status, code, "", message, headers=headers)


def not_served(method: str, path: str, *, known: bool = False) -> ApiError:
    """501 for an operation of Adobe's that is `known` but not served here, 404 for a path that nothing is known of."""
    if known:
        message = f"{method} {shorten(path)} is an operation of Adobe's API that this worker does not serve."
        return ApiError(501, "FLOW-1440-501", "Not implemented", message)
    message = f"There is nothing at {shorten(path)}."
    return ApiError(404, "FLOW-1101-404", "Resource not found", message)


def method_not_allowed(method: str, path: str, allowed: Sequence[str]) -> ApiError:
    message = f"{shorten(path)} does not take {method}; it takes {', '.join(sorted(allowed))}."
    headers = {"Allow": ", ".join(sorted(allowed))}
    return ApiError(405, "FLOW-1100-405", "Method not allowed", message, headers=headers)


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, "FLOW-1100-413", "Request too large", f"A request takes up to {limit_bytes} bytes.")


def too_many_requests(retry_after_seconds: int) -> ApiError:
    message = "Too many requests. Please wait and try again."
    headers = {"Retry-After": str(retry_after_seconds)}
    return ApiError(429, "FLOW-1100-429", "Too many requests", message, headers=headers)


def unavailable(message: str | None = None) -> ApiError:
    return ApiError(
        503,
        "FLOW-1103-503",
        "Service Unavailable",
        message
        or "The service is temporarily unavailable. Please try again. "
        "If the problem persists, please contact customer support.",
    )


def internal_error() -> ApiError:
    """500: nothing of the cause is told outside; it is in the log under the id of the request."""
    return ApiError(
        500,
        "FLOW-1102-500",
        "Internal Error",
        "An internal error has occurred. Please try again. If the problem persists, please contact customer support.",
    )


def of_worker_error(error: WorkerError) -> ApiError:
    """The answer for an error of the layers below; their messages hold no secrets."""
    match error:
        case RefusedError():
            return ApiError(
                error.status,
                error.code,
                error.title,
                str(error),
                resource_type=error.kind,
                resource_id=error.object_id,
                errors=[{"message": problem} for problem in error.problems] or None,
            )
        case ConfigurationError():
            return bad_request(str(error))
        case EtagConflictError():
            return ApiError(412, "FLOW-1404-412", "Version not matching", str(error))
        case ObjectMissingError():
            return ApiError(404, "FLOW-1439-404", "Resource not found", str(error))
        case ObjectExistsError():
            return ApiError(409, "FLOW-1100-409", "Conflict", str(error))
        case StoreError() | ResourceError():
            # what the database says is for the log
            return unavailable()
    found = _STATUS_OF_CODE.search(error.code)
    status = int(found[1]) if found else 500
    # what the export was refused for is not this request's doing: nobody shall take it for a wrong token
    return ApiError(400 if status in (401, 402, 403, 404) else status, error.code, "Bad Request", str(error))


def shorten(text: str, most: int = 100) -> str:
    """A text of the request that may be shown again: printable ASCII, and not long."""
    shown = "".join(character if " " <= character <= "~" else "?" for character in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}..."
