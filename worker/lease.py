"""The right to work on a flow: one process at a time has it, of all that share a state database.

It saves work, and exports of the quota. The promise does not hang on it: the target refuses whoever was paused and
comes back too late.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from worker.errors import FlowBusyError, StoreError
from worker.runner import now_utc, to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from worker.store import Lease, Store

Result = TypeVar("Result")

LEASE_MARGIN = 1 / 6
"""The share of a lease at its end in which a process that could not renew it stops its work."""
LOOK_SECONDS = 1.0
"""Between two looks at a lease that another process has."""


def holder_name(what: str) -> str:
    """A name for this process that no other one has, and by which a person finds it."""
    return f"{what}, process {os.getpid()} on {socket.gethostname()} [{uuid4().hex[:12]}]"


def lease_name(flow_id: str) -> str:
    """Under which name the store has the lease of a flow."""
    return f"flow:{flow_id}"


class FlowLease:
    """The lease of one flow for `holder`, which runs out `seconds` after it was taken or renewed.

    Use as an async context manager: at its end the lease is given back.
    """

    def __init__(
        self, store: Store, flow_id: str, holder: str, seconds: float, clock: Callable[[], datetime] = now_utc
    ) -> None:
        self._store = store
        self._name = lease_name(flow_id)
        self._holder = holder
        self._seconds = seconds
        self._clock = clock
        self._may_be_ours = False
        self._sure_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._may_be_ours:
            # what is not given back runs out
            with contextlib.suppress(StoreError):
                await to_end(asyncio.to_thread(self._store.release_lease, self._name, self._holder))

    async def take(self) -> bool:
        """Take or renew it; False when another process has it. Raises StoreError."""
        # by the clock that no one sets
        asked_at = asyncio.get_running_loop().time()
        self._may_be_ours = True
        self._may_be_ours = await to_end(
            asyncio.to_thread(self._store.take_lease, self._name, self._holder, self._clock(), self._seconds)
        )
        self._sure_until = asked_at + self._seconds * (1 - LEASE_MARGIN)
        return self._may_be_ours

    async def take_over(self, on_wait: Callable[[str, float], None]) -> None:
        """Take it, from a holder that died as soon as it has run out: `on_wait` gets who has it and for how long.

        Raises FlowBusyError when the holder lives, which shows when it renews its lease.
        """
        seen: Lease | None = None
        while not await self.take():
            held = await asyncio.to_thread(self._store.lease, self._name)
            if held is None:
                continue
            seconds = max((held.until - self._clock()).total_seconds(), 0.0)
            if seen is None:
                seen = held
                on_wait(held.holder, seconds)
            elif held != seen:
                raise FlowBusyError(
                    f"It is being run by {held.holder}.", advice="Wait until that has ended, or end it, then run again."
                )
            await asyncio.sleep(min(seconds, LOOK_SECONDS))

    async def keep_while(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do `work` under the lease, which has been taken.

        Raises FlowBusyError when another process has taken it over; the work is cancelled then, and has ended.
        """
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=min(self._seconds / 3, self._sure_seconds())))[0]:
                if not await self._is_kept():
                    raise FlowBusyError("Another process has taken the flow over.")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return task.result()

    async def _is_kept(self) -> bool:
        try:
            return await self.take()
        except StoreError:
            return self._sure_seconds() > 0

    def _sure_seconds(self) -> float:
        """For how long nobody else can have it, whatever becomes of the store."""
        return max(self._sure_until - asyncio.get_running_loop().time(), 0.0)
