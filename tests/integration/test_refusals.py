"""The text of a timeout: the holders, the number of predecessors, and the missing ones of several names."""

from __future__ import annotations

import asyncio
import os

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, LockTimeout, Semaphore, Session
from codomyrmex.concurrency.waitqueue.admission import ADMITTED
from tests.helpers import counting, queue_of
from tests.integration.test_faults import through_proxy


async def test_a_timeout_says_who_holds_and_how_many_waited_ahead(session: Session, other: Session) -> None:
    async with DistributedLock("x", other, metadata={"agent": "parser\u202e"}):
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", 2)
        with counting(session) as calls, pytest.raises(LockTimeout) as caught:
            await DistributedLock("x", session).acquire(timeout=0.2)
        assert calls["txn"] == 2  # the join, and one look
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    text = str(caught.value)
    assert text.startswith(f"the lock 'x' was not granted within 0.2 s: it is held by pid {os.getpid()} on ")
    assert "agent 'parser\\u202e', who joined the queue at 20" in text
    assert text.endswith("UTC by its own clock; 1 other waited ahead of this request")


async def test_of_several_names_only_those_that_were_missing_are_told(session: Session, other: Session) -> None:
    async with DistributedLock("b", other):
        with pytest.raises(LockTimeout) as caught:
            await LockManager(session).acquire_all(["a", "b"], timeout=0.2)
    said = str(caught.value).partition("within 0.2 s: ")[2]
    assert said.startswith("'b' is held by pid ") and "'a'" not in said
    assert said.endswith("this request was the next in the queue")


async def test_a_semaphores_timeout_counts_permits(session: Session, other: Session) -> None:
    permit = await Semaphore("s", max_concurrent=3, session=other).acquire(3)
    with pytest.raises(LockTimeout, match=r"it is held by pid \d+ on .* \(3 permits\); this request was the next"):
        await Semaphore("s", max_concurrent=3, session=session).acquire(timeout=1)
    await permit.release()


async def test_one_that_never_came_to_join_is_told_so(session: Session, other: Session) -> None:
    async with DistributedLock("x", other):
        tasks = [asyncio.create_task(DistributedLock("x", session).acquire()) for _ in range(ADMITTED)]
        await queue_of(session, "x", ADMITTED + 1, 20)
        with pytest.raises(LockTimeout, match=r"it is held by pid .*; this request had not joined the queue yet"):
            await DistributedLock("x", session).acquire(timeout=0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_with_etcd_away_it_says_what_is_known_and_soon(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with through_proxy(etcd, namespace, session_ttl=30) as (proxy, session), DistributedLock("x", session):
        waiting = asyncio.create_task(DistributedLock("x", session).acquire(timeout=1.5))
        await queue_of(session, "x", 2)
        proxy.blackhole()
        async with asyncio.timeout(3.5):
            with pytest.raises(LockTimeout) as caught:
                await waiting
        proxy.resume()
    assert "etcd does not answer, so the holder is not known" in str(caught.value)
    assert "'x' was waited for behind pid" in str(caught.value) and "in this process" in str(caught.value)


async def test_a_session_that_never_opened_is_told_so() -> None:
    lock = DistributedLock("x", Session(endpoints="http://127.0.0.1:1", dial_timeout=30))
    with pytest.raises(LockTimeout, match="the session was not open by then"):
        await lock.acquire(timeout=0.2)
