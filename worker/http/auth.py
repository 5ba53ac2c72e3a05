"""Who may use the API: clients that log in for a token of a day, and tokens out of the configuration.

Secrets and tokens are kept as SHA-256 only and compared in constant time; they are long and random, so that no slow
hash is needed (facts, reliability 4.2). A token that was issued is an object in the store, so that all replicas take
it. It names its own record, so that one comparison decides.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import ceil
from secrets import token_bytes, token_hex, token_urlsafe
from typing import TYPE_CHECKING, Final

from worker.http.problems import gateway, too_many_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from worker.http.problems import ApiError
    from worker.model import Secret
    from worker.store import Store
    from worker.store.base import StoredObject

LIFE: Final = timedelta(hours=24)
"""How long a token lives (facts, aep 4.4)."""
TOKENS: Final = "accessTokens"
"""The kind of object that a token is kept as, under its key id."""
MOST_TOKENS: Final = 1000
"""So many live tokens a client may have: the oldest go."""
LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a request to a loopback address may call this machine. Any other name was made to point here."""

_TOKEN = re.compile(r"mpw_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_BEARER = re.compile(r"bearer +([!-~]{1,4096})", re.IGNORECASE)
_MOST_KEYS = 10_000
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and `burst` at once."""

    per_second: float
    burst: int


REQUESTS: Final = Rate(100, 500)
"""Of one client. The bound is far from people and scripts; it keeps a loop that went wrong from taking the machine."""
FAILURES: Final = Rate(5 / 60, 5)
"""Failed logins of one address."""


class Buckets:
    """A token bucket for each key. The keys are bounded: the one that was used longest ago is forgotten first.

    Times are seconds of a clock that never steps.
    """

    def __init__(self, rate: Rate, most_keys: int = _MOST_KEYS) -> None:
        self._rate = rate
        self._most_keys = most_keys
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """Seconds until one can be taken; 0.0 now."""
        return max(1 - self._level(key, now), 0.0) / self._rate.per_second

    def take(self, key: str, now: float) -> float:
        """Take one and give 0.0, or take none and give the seconds to wait."""
        wait_seconds = self.wait(key, now)
        level = self._level(key, now)
        self._levels[key] = (level if wait_seconds else level - 1, now)
        self._levels.move_to_end(key)
        while len(self._levels) > self._most_keys:
            self._levels.popitem(last=False)
        return wait_seconds

    def _level(self, key: str, now: float) -> float:
        level, since = self._levels.get(key, (float(self._rate.burst), now))
        return min(level + (now - since) * self._rate.per_second, self._rate.burst)


@dataclass(frozen=True, slots=True)
class Issued:
    """A token just made. `text` is told once, to the client that logged in."""

    text: str
    seconds: int


@dataclass(frozen=True, slots=True)
class _Record:
    """What is remembered of a token."""

    digest: bytes
    client_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `client:<id>`, `token:<number>`, or `local` where no credentials are configured."""

    name: str


LOCAL: Final = Caller("local")


class RefusedLoginError(Exception):
    """A login that failed; `error` is the word of OAuth (RFC 6749, 5.2). `retry_seconds` where waiting helps."""

    def __init__(self, error: str, message: str, *, status: int, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.status = status
        self.retry_seconds = retry_seconds


class Gate:
    """Decides who comes in. Open, everybody does; closed, clients with a token.

    All methods are called on the event loop. `monotonic` and `clock` are the times of limits and of tokens.
    """

    def __init__(
        self,
        store: Store,
        *,
        clients: Iterable[tuple[str, Secret]] = (),
        tokens: Iterable[Secret] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clients: dict[str, list[bytes]] = {}
        for client_id, secret in clients:
            # a client with two entries has two secrets: the old and the new one while they change
            self._clients.setdefault(client_id, []).append(_digest(secret.reveal()))
        self._tokens = [_digest(token.reveal()) for token in tokens]
        self._clock = clock
        self._monotonic = monotonic
        self._known: OrderedDict[str, _Record] = OrderedDict()
        self._failed_logins = Buckets(FAILURES)
        self._failed_tokens = Buckets(FAILURES)
        self._nobody = token_bytes(32)

    @property
    def is_open(self) -> bool:
        """There are no credentials: everybody is let in."""
        return not self._clients and not self._tokens

    async def login(self, client_id: str, secret: str, address: str) -> Issued:
        """A new token for the client. Raises RefusedLoginError, with one text whether id or secret is wrong.

        After some failures of an address with a client, that address waits, even with the right secret: else guesses
        would cost nothing.
        """
        now = self._clock()
        if self.is_open:
            return Issued(_new_token(token_hex(8)), _seconds(LIFE))
        known = client_id in self._clients
        key = f"{address} {client_id if known else ''}"
        wait_seconds = self._failed_logins.wait(key, self._monotonic())
        if wait_seconds:
            raise RefusedLoginError(
                "temporarily_unavailable", "Too many failed logins.", status=429, retry_seconds=wait_seconds
            )
        if not _is_any(_digest(secret), self._clients.get(client_id, [self._nobody])):
            self._failed_logins.take(key, self._monotonic())
            raise RefusedLoginError("invalid_client", "The client id or the client secret is wrong.", status=401)
        return await asyncio.to_thread(self._issue, client_id, now)

    async def admit(self, authorization: str | None, address: str) -> Caller:
        """Who comes with this header. Raises ApiError with the gateway's codes (facts, aep 1.5).

        The right token is let in however often wrong ones came from its address: it cannot be guessed.
        """
        if self.is_open:
            return LOCAL
        if authorization is None:
            raise gateway(403, "403010", "Oauth token is missing.")
        match = _BEARER.fullmatch(authorization.strip())
        caller = None if match is None else await self._caller(match[1])
        if caller is None:
            raise self._refused(address)
        return caller

    async def _caller(self, token: str) -> Caller | None:
        digest = _digest(token)
        static = [hmac.compare_digest(digest, known) for known in self._tokens]
        if any(static):
            return Caller(f"token:{static.index(True) + 1}")
        match = _TOKEN.fullmatch(token)
        record = None if match is None else await self._record(match[1])
        right = hmac.compare_digest(digest, self._nobody if record is None else record.digest)
        if record is None or not right:
            return None
        # a client that was taken out of the configuration takes its tokens along
        if self._clock() >= record.expires_at or record.client_id not in self._clients:
            return None
        return Caller(f"client:{record.client_id}")

    async def _record(self, key_id: str) -> _Record | None:
        record = self._known.get(key_id)
        if record is None:
            found = await asyncio.to_thread(self._store.object, TOKENS, key_id)
            record = None if found is None else _record_of(found.document)
            if record is None:
                return None
            self._remember(key_id, record)
        return record

    def _remember(self, key_id: str, record: _Record) -> None:
        self._known[key_id] = record
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def _refused(self, address: str) -> ApiError:
        wait_seconds = self._failed_tokens.take(address, self._monotonic())
        if wait_seconds:
            return too_many_requests(ceil(wait_seconds))
        return gateway(401, "401013", "Oauth token is not valid", headers={"WWW-Authenticate": "Bearer"})

    def _issue(self, client_id: str, now: datetime) -> Issued:
        key_id = token_hex(8)
        token = _new_token(key_id)
        document = {
            "clientId": client_id,
            "sha256": _digest(token).hex(),
            "expiresAt": (now + LIFE).isoformat(),
        }
        self._store.create_object(TOKENS, key_id, document, None, now)
        for stale in stale_tokens(self._store.objects(TOKENS), now):
            self._store.delete_object(TOKENS, stale)
        return Issued(token, _seconds(LIFE))


def stale_tokens(stored: Iterable[StoredObject], now: datetime) -> list[str]:
    """The ids of the tokens that nobody needs: run out, unreadable, or beyond MOST_TOKENS of a client; oldest first."""
    stale: list[str] = []
    live: dict[str, list[str]] = {}
    for found in stored:
        record = _record_of(found.document)
        if record is None or now >= record.expires_at:
            stale.append(found.id)
        else:
            live.setdefault(record.client_id, []).append(found.id)
    for ids in live.values():
        stale += ids[: max(len(ids) - MOST_TOKENS, 0)]
    return stale


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _is_any(digest: bytes, known: Iterable[bytes]) -> bool:
    # a list, not a generator: all are compared, whichever is right
    return any([hmac.compare_digest(digest, one) for one in known])  # noqa: C419


def _new_token(key_id: str) -> str:
    return f"mpw_{key_id}_{token_urlsafe(32)}"


def _seconds(life: timedelta) -> int:
    return int(life.total_seconds())


def _record_of(document: Mapping[str, object]) -> _Record | None:
    match document:
        case {"clientId": str(client_id), "sha256": str(digest), "expiresAt": str(expires_at)}:
            try:
                return _Record(bytes.fromhex(digest), client_id, datetime.fromisoformat(expires_at))
            except ValueError:
                return None
    return None
