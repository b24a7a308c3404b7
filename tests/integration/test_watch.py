"""Watches over breaks: nothing lost, nothing told twice; and what happens when etcd has compacted the history away."""

from __future__ import annotations

import asyncio

from codomyrmex.concurrency import DeadLetterQueue, DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.etcd.transports.protocol import Put, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually, gateway, queue_of
from tests.integration.test_faults import through_proxy


async def put(session: Session, number: int) -> int:
    done = await core_of(session).transport.txn((), (Put(b"/watched/x", b"%d" % number),))
    return done.revision


async def compact(etcd: EmbeddedEtcd, revision: int) -> None:
    await asyncio.to_thread(gateway, etcd.endpoint, "kv/compaction", revision=str(revision), physical=True)


class Told:
    def __init__(self, session: Session) -> None:
        self.notices: list[Notice] = []
        core_of(session).hub.subscribe(WatchRequest(b"/watched/x"), self.notices.append)

    @property
    def values(self) -> list[int]:
        changes = [notice for notice in self.notices if isinstance(notice, Changed)]
        return [int(event.kv.value) for change in changes for event in change.events]

    @property
    def starts(self) -> list[Started]:
        return [notice for notice in self.notices if isinstance(notice, Started)]


async def test_over_broken_streams_every_event_comes_once_and_in_order(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        told = Told(session)
        await eventually(lambda: told.starts)
        for number in range(60):
            await put(other, number)
            if number % 15 == 7:
                await eventually(lambda n=number: n in told.values)
                proxy.cut()
            elif number % 15 == 12:
                proxy.cut()
            await asyncio.sleep(0.005)
        await eventually(lambda: 59 in told.values)
        await asyncio.sleep(0.2)
        assert told.values == list(range(60))
        assert len(told.starts) > 1 and not any(start.gap for start in told.starts)


async def test_a_watch_whose_history_was_compacted_begins_anew_and_says_so(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        told = Told(session)
        await eventually(lambda: told.starts)
        await put(other, 1)
        await eventually(lambda: told.values == [1])
        proxy.refuse()
        proxy.cut()
        await put(other, 2)
        await compact(etcd, await put(other, 3))
        proxy.resume()
        await eventually(lambda: any(start.gap for start in told.starts))
        await put(other, 4)
        await eventually(lambda: told.values[-1] == 4)
        assert told.values == [1, 4]


async def test_a_waiter_still_wakes_when_the_release_was_compacted_away(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        lock = DistributedLock("x", other)
        await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        await queue_of(other, "x", 2)
        proxy.refuse()
        proxy.cut()
        await lock.release()
        await compact(etcd, await put(other, 1))
        proxy.resume()
        await asyncio.wait_for(waiting, 5)


async def test_followers_of_locks_and_dead_letters_are_told_the_truth_after_a_compaction(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    """Unseen changes are found by reading: a lock that was released, an entry that was added."""
    async with through_proxy(etcd, namespace) as (proxy, session):
        seen: list[str] = []

        async def locks() -> None:
            async for event in LockManager(session).watch():
                seen.append(f"{event.kind} {event.name}")

        async def letters() -> None:
            async for entry in DeadLetterQueue("q", session=session).watch():
                seen.append(entry.operation)

        lock = DistributedLock("x", other)
        await lock.acquire()
        queue = DeadLetterQueue("q", session=other)
        await queue.add(operation="first", args={}, error="e")
        following = [asyncio.create_task(locks()), asyncio.create_task(letters())]
        await eventually(lambda: {"granted x", "first"} <= set(seen))
        proxy.refuse()
        proxy.cut()
        await lock.release()
        await DistributedLock("y", other).acquire()
        await queue.add(operation="second", args={}, error="e")
        await compact(etcd, await put(other, 1))
        proxy.resume()
        await eventually(lambda: {"released x", "granted y", "second"} <= set(seen))
        assert len(seen) == len(set(seen))
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def many(session: Session, first: int, last: int) -> None:
    """Puts in as many revisions, many at a time."""
    for start in range(first, last, 100):
        await asyncio.gather(*(put(session, number) for number in range(start, min(last, start + 100))))


async def test_a_watcher_that_lags_by_thousands_of_revisions_misses_nothing(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    """etcd serves it in batches of 1,000 revisions, each under a header with the store's current revision."""
    async with through_proxy(etcd, namespace) as (proxy, session):
        told = Told(session)
        await eventually(lambda: told.starts)
        await put(other, 0)
        await eventually(lambda: told.values)
        proxy.refuse()
        proxy.cut()
        await many(other, 1, 3500)
        proxy.resume()
        await eventually(lambda: len(told.values) >= 3500, 20)
        assert sorted(told.values) == list(range(3500))
        assert not any(start.gap for start in told.starts)
