"""The login of Adobe's clients: `POST /ims/token/v3` with client credentials (facts, aep 4.4).

The parameters stand in a form body, as aepp sends them, or in the address, as the Postman collection does. Refusals
have the shape of OAuth (RFC 6749, 5.2), which is what a login answers with.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from worker.http.auth import RefusedLoginError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.http.auth import Gate

_NEEDED: Final = ("grant_type", "client_id", "client_secret")
_MOST_FIELDS: Final = 20
_HEADERS: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def routes(gate: Gate) -> list[web.RouteDef]:
    """The login; v2 is what older clients ask."""

    async def token(request: web.Request) -> web.Response:
        """Log in with client credentials and get a token."""
        try:
            fields = login_fields(await request.read(), list(request.query.items()))
            issued = await gate.login(fields["client_id"], fields["client_secret"], request.remote or "")
        except RefusedLoginError as error:
            headers = dict(_HEADERS)
            if error.retry_seconds is not None:
                headers["Retry-After"] = str(ceil(error.retry_seconds))
            return _answer({"error": error.error, "error_description": error.message}, error.status, headers)
        body = {"access_token": issued.text, "token_type": "bearer", "expires_in": issued.seconds}
        return _answer(body, 200, _HEADERS)

    return [web.post("/ims/token/v2", token), web.post("/ims/token/v3", token)]


def login_fields(body: bytes, query: list[tuple[str, str]]) -> dict[str, str]:
    """The parameters of a login; those of the body count where the address has them too. Raises RefusedLoginError."""
    try:
        form = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise _invalid("The body is not a form.") from None
    fields = {**_single(query), **_single(form)}
    missing = [name for name in _NEEDED if not fields.get(name)]
    if missing:
        raise _invalid(f"The request has no {', '.join(missing)}.")
    if fields["grant_type"] != "client_credentials":
        raise RefusedLoginError(
            "unsupported_grant_type", "The grant type that is taken is client_credentials.", status=400
        )
    return fields


def _single(pairs: list[tuple[str, str]]) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _invalid("A parameter is given twice.")
    return fields


def _invalid(message: str) -> RefusedLoginError:
    return RefusedLoginError("invalid_request", message, status=400)


def _answer(body: Mapping[str, object], status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)
