"""One process at a time has a flow: kept while it works, given back whatever happens, taken over from the dead."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from worker.errors import FlowBusyError, StoreError
from worker.lease import FlowLease, holder_name
from worker.store import Lease, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "flow:f1"
SECONDS = 0.3


def lease_of(store: Any, seconds: float = SECONDS) -> FlowLease:
    return FlowLease(store, "f1", "one", seconds)


def counting(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None]) -> None:
    """Call `then` with the number of times that the lease has been asked for."""
    take, times = store.take_lease, 0

    def counted(*arguments: Any) -> bool:
        nonlocal times
        times += 1
        then(times)
        return take(*arguments)

    monkeypatch.setattr(store, "take_lease", counted)


def test_no_two_holders_have_one_name() -> None:
    assert holder_name("x") != holder_name("x")


async def test_it_is_kept_while_the_work_lasts_and_then_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    loop, renewed = asyncio.get_running_loop(), asyncio.Event()

    def enough(times: int) -> None:
        if times > 4:
            loop.call_soon_threadsafe(renewed.set)

    counting(store, monkeypatch, enough)

    async def work() -> str:
        await renewed.wait()
        return "done"

    began = datetime.now(UTC)
    async with lease_of(store) as lease:
        assert await lease.take()
        assert await lease.keep_while(work()) == "done"
        held = store.lease(NAME)
        assert held is not None
        assert held.until > began + timedelta(seconds=SECONDS)
        assert not store.take_lease(NAME, "other", held.until - timedelta(microseconds=1), SECONDS)
    assert store.lease(NAME) is None


async def test_who_loses_it_stops_its_work_and_leaves_it_to_the_other_one() -> None:
    store = MemoryStore()
    stopped = False

    async def work() -> None:
        nonlocal stopped
        store.take_lease(NAME, "other", datetime.now(UTC) + timedelta(seconds=60), 60)
        try:
            await asyncio.Event().wait()
        finally:
            stopped = True

    async with lease_of(store) as lease:
        assert await lease.take()
        with pytest.raises(FlowBusyError):
            await lease.keep_while(work())
        assert stopped
    held = store.lease(NAME)
    assert held is not None
    assert held.holder == "other"


async def test_a_store_that_is_away_ends_the_work_before_another_one_may_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()

    def away(times: int) -> None:
        if times > 1:
            raise StoreError("away")

    counting(store, monkeypatch, away)
    async with lease_of(store) as lease:
        assert await lease.take()
        with pytest.raises(FlowBusyError):
            await lease.keep_while(asyncio.Event().wait())
        held = store.lease(NAME)
        assert held is not None
        assert datetime.now(UTC) < held.until


async def test_it_is_taken_over_when_a_dead_holder_has_run_out() -> None:
    store = MemoryStore()
    store.take_lease(NAME, "dead", datetime.now(UTC), SECONDS)
    waited: list[tuple[str, float]] = []
    async with lease_of(store) as lease:
        await lease.take_over(lambda holder, seconds: waited.append((holder, seconds)))
        held = store.lease(NAME)
        assert held is not None
        assert held.holder == "one"
    [(holder, seconds)] = waited
    assert holder == "dead"
    assert 0 < seconds <= SECONDS


@pytest.mark.parametrize("heir", ["living", "another"])
async def test_it_is_not_waited_for_while_somebody_lives(heir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    now = datetime.now(UTC)
    store._leases[NAME] = Lease("living", now + timedelta(seconds=60))

    def renew(times: int) -> None:
        if times == 2:
            store._leases[NAME] = Lease(heir, now + timedelta(seconds=90))

    counting(store, monkeypatch, renew)
    monkeypatch.setattr("worker.lease.LOOK_SECONDS", 0.01)
    async with lease_of(store) as lease:
        with pytest.raises(FlowBusyError, match=f"run by {heir}"):
            await lease.take_over(lambda holder, seconds: None)
    assert store.lease(NAME) == Lease(heir, now + timedelta(seconds=90))


async def test_who_is_cancelled_while_it_takes_it_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    asked, go_on, taken = asyncio.Event(), threading.Event(), threading.Event()
    loop, take_lease = asyncio.get_running_loop(), store.take_lease

    def slow(*arguments: Any) -> bool:
        loop.call_soon_threadsafe(asked.set)
        go_on.wait(20)
        found = take_lease(*arguments)
        taken.set()
        return found

    monkeypatch.setattr(store, "take_lease", slow)

    async def take() -> None:
        async with lease_of(store) as lease:
            await lease.take()

    taking = asyncio.create_task(take())
    await asked.wait()
    taking.cancel()
    # whoever does not wait for the thread has given it back by then
    loop.call_later(0.2, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await asyncio.to_thread(taken.wait, 20)
    assert store.lease(NAME) is None
