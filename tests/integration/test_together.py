"""Entries that join and leave in one transaction: each is answered by itself, and none fails for another."""

from __future__ import annotations

import asyncio

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdError, EtcdQuotaExceeded, LockManager, Session
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import wait
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import counting, entries, queue_of
from tests.integration.test_faults import through_proxy


async def test_who_joins_as_the_holder_leaves_is_granted_at_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "_LOOK_SOON", 2.0)  # a slow machine would read the queue again
    lock = DistributedLock("x", session)
    for _ in range(20):
        await lock.acquire()
        busy = [asyncio.create_task(DistributedLock(f"busy{n}", session).acquire()) for n in range(2)]
        await asyncio.sleep(0)  # two calls are under way, so what comes now travels together
        with counting(session) as calls:
            release, join = asyncio.create_task(lock.release()), asyncio.create_task(lock.acquire())
            grants = await asyncio.wait_for(asyncio.gather(join, release, *busy), 2)
        assert calls["range"] == calls["delete"] == 0
        assert [kv.create_revision for kv in await entries(session, "x")] == [grants[0].token]
        await lock.release()
        await core_of(session).committer.idle()
        for grant in grants[2:]:  # one that is held for a second has its own key read
            await grant.release()


async def test_a_refused_request_does_not_keep_anybody_from_leaving(session: Session) -> None:
    grants = [await DistributedLock(f"n{number}", session).acquire() for number in range(3)]
    no_such_lease = Request((b"other",), (Put(core_of(session).layout.queue("bad") + b"x", b"", 12345),))
    refused = core_of(session).committer.submit(no_such_lease)
    leaving = [core_of(session).remover.remove(grant.key.encode()) for grant in grants]
    assert await asyncio.wait_for(asyncio.gather(*leaving), 2) == [True] * 3
    assert isinstance(refused.exception(), EtcdError) and "lease" in str(refused.exception())


async def test_what_leaves_is_gone_even_if_the_session_was_fenced(session: Session) -> None:
    """A transaction with an old version of the session's key is refused; what it was to delete is deleted."""
    lock = DistributedLock("x", session)
    grant = await lock.acquire()
    core_of(session).committer._ledger.version = 99
    joining = asyncio.create_task(DistributedLock("y", session).acquire())
    blocked = asyncio.create_task(DistributedLock("z", session).acquire())
    await asyncio.sleep(0)
    leaving = core_of(session).remover.remove(grant.key.encode())
    assert await asyncio.wait_for(leaving, 2)
    assert (await asyncio.wait_for(joining, 2)).token > grant.token and await asyncio.wait_for(blocked, 2)


async def test_a_lost_answer_is_settled_for_those_who_join_and_those_who_leave(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        held = [DistributedLock(f"old{number}", session) for number in range(10)]
        for lock in held:
            await lock.acquire()
        new = [DistributedLock(f"new{number}", session) for number in range(10)]
        proxy.drop_next_answer(core_of(session).layout.queue("new9"))
        await asyncio.gather(*(lock.release() for lock in held), *(lock.acquire() for lock in new))
        assert proxy.dropped == 1
        for lock in held:
            assert await DistributedLock(lock.name, other).try_acquire()
        for lock in new:
            assert lock.grant
            assert [kv.create_revision for kv in await entries(other, lock.name)] == [lock.grant.token]


async def test_joins_that_are_cancelled_before_they_are_sent_leave_nothing_behind(session: Session) -> None:
    for _ in range(5):
        joining = [asyncio.create_task(DistributedLock(f"n{number}", session).acquire()) for number in range(50)]
        same = [asyncio.create_task(DistributedLock("x", session).acquire()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in (*joining[2:], *same[2:]):  # two calls are under way
            task.cancel()
        await asyncio.gather(*joining[2:], *same[2:], return_exceptions=True)
        for task in (*joining[:2], *same[:2]):
            grant = await asyncio.wait_for(task, 2)
            await grant._entry.release()
    await core_of(session).committer.idle()
    assert not core_of(session).member(LocalQueues).key_slots._queues


async def test_a_full_database_lets_a_crowd_take_turns(namespace: str) -> None:
    """A release that cannot write its release marker is still a release."""
    async with EmbeddedEtcd(args=[f"--quota-backend-bytes={16 << 20}"]) as own:
        settings = {"endpoints": own.endpoint, "namespace": namespace}
        async with Session(**settings) as first, Session(**settings) as second:
            sessions = [first, second, first, second, first]
            managers = [LockManager(session) for session in sessions]
            waiting = []
            for number, manager in enumerate(managers):
                waiting.append(asyncio.ensure_future(manager.acquire("x")))
                await queue_of(first, "x", number + 1)
            await fill(first)
            for manager, grant in zip(managers, waiting, strict=True):
                await manager.release(await asyncio.wait_for(grant, 2))
            await queue_of(first, "x", 0)
            assert isinstance(
                (await asyncio.gather(DistributedLock("y", first).acquire(), return_exceptions=True))[0],
                EtcdQuotaExceeded,
            )


async def fill(session: Session) -> None:
    try:
        for number in range(100):
            await core_of(session).transport.txn((), (Put(b"/filler/%d" % number, b"x" * (1 << 20)),))
    except EtcdQuotaExceeded:
        return
    raise AssertionError("the database is not full")
