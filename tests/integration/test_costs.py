"""Costs, counted and never timed: calls, events, batches, bytes."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    LockManager,
    LockTimeout,
    Rate,
    RateLimiter,
    Semaphore,
    Session,
    session_members,
)
from codomyrmex.concurrency.etcd.transports.protocol import MAX_OPS, Get
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.admission import ADMITTED
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import Calls, counting, entries, eventually, queue_of


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watch on own keys, which come by the clock and not by the handoff."""
    monkeypatch.setattr(session_members, "TICK", 600.0)


async def drained(session: Session, name: str, count: int) -> Calls:
    """The calls that hand a lock through ``count`` tasks of one process, in order."""
    order: list[int] = []

    async def wait(number: int) -> None:
        async with DistributedLock(name, session):
            order.append(number)

    with counting(session) as calls:
        async with DistributedLock(name, session):
            tasks = [asyncio.create_task(wait(number)) for number in range(count)]
            await queue_of(session, name, ADMITTED + 1, 20)
            calls["range"] = 0
        await asyncio.gather(*tasks)
    assert order == list(range(count))
    return calls


@pytest.mark.usefixtures("patient")
async def test_a_handoff_in_a_crowd_costs_the_same_however_large_the_crowd(session: Session) -> None:
    for count in (100, 600):
        calls = await drained(session, f"x{count}", count)
        # To join and to leave; who comes in by a door that a release has opened travels with that release's successor.
        assert calls["txn"] + calls["delete"] <= 2 * (count + 1)
        # Its own entries tell each other, but for one whose answer comes just before the next one's.
        assert max(calls["created"], calls["events"], calls["range"]) <= 0.2 * count


async def test_a_crowd_takes_no_more_places_in_the_queue_than_a_few(session: Session, other: Session) -> None:
    async with DistributedLock("x", session):
        tasks = [asyncio.create_task(DistributedLock("x", session).acquire()) for _ in range(3 * ADMITTED)]
        await queue_of(session, "x", ADMITTED + 1, 20)
        await eventually(lambda: len(core_of(session).waits()) == 3 * ADMITTED)  # when the last answer has come too
        theirs = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", ADMITTED + 2)
        assert await DistributedLock("x", session).try_acquire() is None
        with pytest.raises(LockTimeout), pytest.warns(RuntimeWarning, match="the very task"):
            await DistributedLock("x", session).acquire(timeout=0.2)
        assert len(await entries(session, "x")) == ADMITTED + 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.wait_for(theirs, 5)
    await queue_of(session, "x", 1)
    assert not core_of(session).waits() and not core_of(session).member(LocalQueues).admission._admitted


async def test_who_waits_outside_is_told_of_the_end(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    async with DistributedLock("x", session):
        busy = Session(endpoints=etcd.endpoint, namespace=namespace)
        async with busy:
            tasks = [asyncio.create_task(DistributedLock("x", busy).acquire()) for _ in range(2 * ADMITTED)]
            await queue_of(session, "x", ADMITTED + 1, 20)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert {type(end).__name__ for end in ends} == {"SessionClosed"}
        await queue_of(session, "x", 1)


async def test_permits_held_take_no_places_from_those_who_wait(session: Session) -> None:
    semaphore = Semaphore("many", max_concurrent=3 * ADMITTED, session=session)
    holds = (semaphore.acquire() for _ in range(3 * ADMITTED))
    granted = await asyncio.wait_for(asyncio.gather(*holds), 20)
    assert await semaphore.available() == 0
    await asyncio.gather(*(permit.release() for permit in granted))


async def bytes_each(count: int, make: Callable[[], Awaitable[Any]], ready: Callable[[], bool]) -> float:
    gc.collect()
    tracemalloc.start()
    tasks = [asyncio.ensure_future(make()) for _ in range(count)]
    await eventually(ready, 30)
    await asyncio.sleep(0.2)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return held / count


@pytest.mark.skipif(sys.gettrace() is not None, reason="not run: memory per waiter (a debugger or coverage is on)")
async def test_a_waiter_takes_less_than_four_kib(session: Session) -> None:
    bare = await bytes_each(1_000, asyncio.Event().wait, lambda: True)
    async with DistributedLock("x", session):

        async def wait() -> None:
            await DistributedLock("x", session).acquire()

        inside = await bytes_each(ADMITTED, wait, lambda: len(core_of(session).waits()) == ADMITTED)
        crowd = await bytes_each(2_000, wait, lambda: len(core_of(session).waits()) == 2_000)
    assert crowd - bare < 4096, f"{crowd - bare:.0f} bytes"
    assert inside - bare < 4 * 4096, f"{inside - bare:.0f} bytes"  # with its entry, its key and its watch


@pytest.mark.usefixtures("patient")
async def test_events_of_a_handoff_do_not_grow_with_the_processes_that_wait(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with AsyncExitStack() as stack:
        for size in (1, 10, 30):
            opened = (Session(endpoints=etcd.endpoint, namespace=namespace) for _ in range(size))
            members = [await stack.enter_async_context(member) for member in opened]
            locks = [DistributedLock(f"x{size}", member) for member in members]
            waiting = []
            async with AsyncExitStack() as counted:
                async with DistributedLock(f"x{size}", session):
                    for number, lock in enumerate(locks):
                        waiting.append(asyncio.create_task(lock.acquire()))
                        await queue_of(session, f"x{size}", number + 2)
                    await asyncio.sleep(0.5)  # the watches stand
                    calls = [counted.enter_context(counting(member)) for member in members]
                await asyncio.wait_for(waiting[0], 5)
                await asyncio.sleep(0.1)
                assert sum(call["events"] for call in calls) == 1
                assert sum(call["range"] for call in calls) <= 1
                for lock, task in zip(locks, waiting, strict=True):
                    await task
                    await lock.release()
                # From the third on, the deletion of the predecessor and its release marker: no queue is read.
                assert sum(call["events"] for call in calls) <= 2 * size
                assert sum(call["range"] for call in calls) <= 2
                if size > 2:
                    assert await release_markers(session)


async def release_markers(session: Session) -> int:
    prefix = core_of(session).layout.release_marker(core_of(session).layout.root)
    return (await core_of(session).transport.get(Get(prefix, prefix_end(prefix)))).total


async def gone(session: Session) -> bool:
    return not await release_markers(session)


@pytest.mark.usefixtures("patient")
async def test_release_markers_are_removed_while_the_session_lives(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_members, "TICK", 0.1)
    blocking = DistributedLock("x", other)
    await blocking.acquire()
    manager = LockManager(session)
    waiting = []
    for number in range(4):
        waiting.append(asyncio.ensure_future(manager.acquire("x")))
        await queue_of(session, "x", number + 2)
    await blocking.release()
    for grant in waiting:
        await manager.release(await asyncio.wait_for(grant, 5))
    assert await release_markers(session)
    await eventually(lambda: gone(session))
    await eventually(lambda: not core_of(session).member(LocalQueues).release_markers)


@pytest.mark.usefixtures("patient")
async def test_a_batch_is_as_full_as_etcd_takes_it(session: Session) -> None:
    locks = [DistributedLock(f"n{number}", session) for number in range(1_000)]
    with counting(session) as calls:
        await asyncio.gather(*(lock.acquire() for lock in locks))
        joined = calls["txn"]
        await asyncio.gather(*(lock.release() for lock in locks))
    # Two operations to join, one to leave; the first of each went ahead by itself.
    assert joined <= 2 + 2 * 1_000 // (MAX_OPS - 2) + 1
    assert calls["txn"] - joined <= 2 + 1_000 // MAX_OPS + 1


async def test_dead_letters_added_together_share_transactions(session: Session) -> None:
    queue = DeadLetterQueue("costs", session=session)
    await queue.add(operation="warm", args={}, error="x")
    with counting(session) as calls:
        await asyncio.gather(*(queue.add(operation="send", args={"n": n}, error="x") for n in range(500)))
    assert sum(calls[method] for method in ("txn", "range", "delete")) <= 500 / 25


async def test_only_a_hold_that_lasts_costs_one_write_more(session: Session) -> None:
    with counting(session) as calls:
        for number in range(20):
            async with DistributedLock(f"short{number}", session):
                pass
        assert calls["txn"] + calls["delete"] == 40
    async with DistributedLock("x", session):
        with counting(session) as calls:
            await eventually(lambda: calls["txn"])
            await asyncio.sleep(3 * session_members.TICK)
            assert calls["txn"] == 1 and not calls["delete"]
    await queue_of(session, "x", 0)


async def test_holds_that_last_are_told_of_one_at_a_time(session: Session) -> None:
    """However many there are, a waiter that joins meanwhile does not wait behind all of them."""
    under_way = most = 0
    transport: Any = core_of(session).transport
    txn = transport.txn

    async def counted(*args: Any) -> Any:
        nonlocal under_way, most
        under_way, most = under_way + 1, max(most, under_way + 1)
        try:
            return await txn(*args)
        finally:
            under_way -= 1

    locks = [DistributedLock(f"n{number}", session) for number in range(200)]
    await asyncio.gather(*(lock.acquire() for lock in locks))
    transport.txn = counted
    manager = LockManager(session)

    async def all_told() -> bool:
        return all(info.holders[0].granted_at for info in await manager.locks("n"))

    await eventually(all_told, 15)
    transport.txn = txn
    assert most == 1
    await asyncio.gather(*(lock.release() for lock in locks))


async def revision_of(session: Session) -> int:
    return (await core_of(session).transport.get(Get(b"/nowhere"))).revision


async def test_a_call_served_from_an_open_slice_costs_no_round_trip(session: Session) -> None:
    limiter = RateLimiter("x", Rate(1000, per=600), session=session)
    async with limiter.reserve(100) as spend:
        with counting(session) as calls:
            spend.used(0)
            for _ in range(50):
                await limiter.acquire(2)
    assert not calls, calls


@pytest.mark.usefixtures("patient")
async def test_a_first_call_costs_a_handful_of_round_trips(session: Session, other: Session) -> None:
    """It reads the limits, sets them, reads the pauses, and takes a slice: a lease, the join, the move."""
    with counting(session) as calls:
        await RateLimiter("x", Rate(1000, per=600), session=session).acquire()
    assert (calls["grant"], calls["txn"], calls["range"]) == (1, 3, 2), calls
    with counting(other) as calls:
        await RateLimiter("x", Rate(1000, per=600), session=other).acquire()
    assert (calls["grant"], calls["txn"], calls["range"]) == (1, 2, 2), calls


async def test_calls_at_once_agree_on_the_limits_together(session: Session) -> None:
    limiter = RateLimiter("x", Rate(8000, per=600), session=session)
    with counting(session) as calls:
        await asyncio.gather(*(limiter.acquire() for _ in range(500)))
    assert calls["txn"] + calls["range"] + calls["grant"] <= 8, calls


async def test_calls_at_once_cost_one_slice_of_a_few_revisions(session: Session) -> None:
    limiter = RateLimiter("x", Rate(80_000, per=1), session=session)
    await limiter.acquire()
    await eventually(lambda: _nothing_counted(limiter))
    for number in (1, 10, 1000):
        before = await revision_of(session)
        with counting(session) as calls:
            await asyncio.gather(*(limiter.acquire() for _ in range(number)))
        assert (calls["grant"], calls["txn"]) == (1, 2), calls  # the join and the move
        await eventually(lambda: _nothing_counted(limiter))
        # The unspent rest goes back first, the spent part later; a deletion may be sent ahead of the others.
        assert await revision_of(session) - before <= 6


async def _nothing_counted(limiter: RateLimiter) -> bool:
    return not any(use.used for use in (await limiter.info()).uses)


async def test_a_hundred_times_the_calls_write_as_much(session: Session) -> None:
    """50 and 5,000 calls, each in two seconds; a slow machine takes longer, and has more slices meanwhile."""
    written, seconds = {}, {}
    for calls in (50, 5000):
        limiter = RateLimiter(f"x{calls}", Rate(100_000, per=10), session=session)
        await limiter.acquire()
        before, began = await revision_of(session), time.monotonic()
        for _ in range(50):
            await asyncio.gather(*(limiter.acquire() for _ in range(calls // 50)))
            await asyncio.sleep(0.04)
        written[calls] = await revision_of(session) - before
        seconds[calls] = time.monotonic() - began
    longer = max(0.0, seconds[5000] - seconds[50])
    assert written[5000] <= written[50] + 15 + 10 * longer, (written, seconds)
