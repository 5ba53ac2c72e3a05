"""JSON Patch (RFC 6902) as the Flow Service takes it: add, replace, remove and test, in upper or lower case.

`move` and `copy` are refused as every other operation is (1434-400): they could bring a secret to where it is shown.
A `test` of a secret, or of something that holds one, is refused, or it would tell whether a guess is right.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import jsonpatch
import jsonpointer

from worker.http.problems import bad_request, empty_body, provider_refusal, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

OPERATIONS: Final = ("add", "replace", "remove", "test")
MAX_OPERATIONS: Final = 100
_MAX_PATH_CHARACTERS = 500


def patched(document: Mapping[str, Any], operations: object, *, secret_paths: Collection[str] = ()) -> dict[str, Any]:
    """A copy of `document` after `operations`, all of them or none. Raises ApiError: 1405, 1434, 1455, 1365-400.

    `secret_paths` are the places of secrets, as JSON Pointers: `/auth/params`.
    """
    if operations is None or operations == []:
        raise empty_body()
    if not isinstance(operations, list):
        raise bad_request("A patch is a list of operations.", "FLOW-1455-400")
    if len(operations) > MAX_OPERATIONS:
        raise bad_request(f"A patch takes up to {MAX_OPERATIONS} operations.", "FLOW-1455-400")
    checked = [_checked(operation, secret_paths) for operation in operations]
    result: Any = deepcopy(dict(document))
    for operation in checked:
        result = _after(result, operation)
    if not isinstance(result, dict):
        raise provider_refusal(
            "1365-400", "The path provided in ops is invalid. Please provide valid path and try again."
        )
    return result


def _checked(operation: object, secret_paths: Collection[str]) -> dict[str, Any]:
    if not isinstance(operation, dict):
        raise bad_request("An operation of a patch is an object with op, path and value.", "FLOW-1455-400")
    for key in ("op", "path"):
        if not isinstance(operation.get(key), str):
            raise _missing_field(key)
    name, path = operation["op"].lower(), operation["path"]
    if name not in OPERATIONS:
        raise bad_request(
            f"Unsupported operation '{shorten(operation['op'], 20)}' received. "
            "Please use one of the supported operation types and try again.",
            "FLOW-1434-400",
        )
    if name != "remove" and "value" not in operation:
        raise _missing_field("value")
    if len(path) > _MAX_PATH_CHARACTERS or not path.startswith("/"):
        raise _invalid_path(path)
    if name == "test" and any(_touch(path, secret) for secret in secret_paths):
        raise bad_request("A secret cannot be tested.", "FLOW-1434-400")
    return {"op": name, "path": path, **({} if name == "remove" else {"value": deepcopy(operation["value"])})}


def _after(document: Any, operation: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    try:
        return jsonpatch.JsonPatch([operation]).apply(document)
    except jsonpatch.JsonPatchTestFailed:
        raise bad_request(f"The test of {shorten(operation['path'])} failed; nothing was changed.") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, AttributeError):
        # the libraries do not foresee every path: through a number, for one
        raise _invalid_path(operation["path"]) from None


def _touch(path: str, secret: str) -> bool:
    """Whether one place lies within the other, in whatever way the pointer spells it."""
    try:
        one, other = jsonpointer.JsonPointer(path).parts, jsonpointer.JsonPointer(secret).parts
    except jsonpointer.JsonPointerException:
        return False
    length = min(len(one), len(other))
    return bool(one[:length] == other[:length])


def _missing_field(name: str) -> Exception:
    return bad_request(
        f'An error has occurred while validating patch instructions: Missing field "{name}".', "FLOW-1455-400"
    )


def _invalid_path(path: str) -> Exception:
    shown = shorten(path)
    return provider_refusal(
        "1365-400", f"The path {shown} provided in ops is invalid. Please provide valid path {shown} and try again."
    )
