"""Many at once: thousands who reconnect, hundreds who die, links that are slow."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually, queue_of

pytestmark = pytest.mark.long


async def test_thousands_of_waiters_reconnect_at_once_and_keep_their_places(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    address = urlsplit(etcd.endpoint)
    names = [f"n{number}" for number in range(50)]
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(TcpProxy(str(address.hostname), int(address.port or 0)))
        manager = LockManager(session)
        grants = await asyncio.gather(*(manager.acquire(name) for name in names))
        served: dict[str, list[int]] = {name: [] for name in names}

        async def serve(member: Session, name: str) -> None:
            async with LockManager(member).acquire(name) as grant:
                served[name].append(grant.token)

        waiting = []
        for _ in range(4):
            member = Session(endpoints=proxy.endpoint, namespace=namespace, session_ttl=15)
            await stack.enter_async_context(member)
            waiting += [asyncio.create_task(serve(member, name)) for name in names for _ in range(10)]
        queues = [await queue_of(session, name, 41, 20) for name in names]
        for _ in range(2):
            proxy.cut()
            await asyncio.sleep(0.5)
        for grant in grants:
            await manager.release(grant)
        await asyncio.wait_for(asyncio.gather(*waiting), 40)
        assert [[kv.create_revision for kv in queue[1:]] for queue in queues] == list(served.values())


async def test_hundreds_of_sessions_die_at_once_ahead_of_a_waiter(session: Session) -> None:
    queue = core_of(session).layout.queue("x")
    for _ in range(300):
        lease = await core_of(session).transport.grant(2)
        await core_of(session).transport.txn(
            (), (Put(core_of(session).layout.entry(queue, lease.id, 0), b"", lease.id),)
        )
    waiting = asyncio.create_task(DistributedLock("x", session).acquire())
    started = time.monotonic()
    await asyncio.wait_for(waiting, 6)
    assert time.monotonic() - started < 2 + 1 + 1


async def test_a_slow_link_slows_and_loses_nothing(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    address = urlsplit(etcd.endpoint)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(TcpProxy(str(address.hostname), int(address.port or 0)))
        far = Session(endpoints=proxy.endpoint, namespace=namespace, session_ttl=3)
        async with far:
            proxy.delay(0.1)
            async with DistributedLock("x", session):
                waiting = asyncio.create_task(DistributedLock("x", far).acquire())
                await queue_of(session, "x", 2)
                await asyncio.sleep(4)
                assert far.alive
            grant = await asyncio.wait_for(waiting, 2)
            await grant.put("/slow", "written")
            proxy.resume()


def _in_a_child(endpoint: str, namespace: str, pipe: Any) -> None:
    async def hold() -> None:
        session = Session(endpoints=endpoint, namespace=namespace)
        async with session, DistributedLock("x", session) as grant:
            pipe.send((session.id, grant.token))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(hold())


async def test_a_spawned_child_has_a_session_of_its_own(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_in_a_child, args=(etcd.endpoint, namespace, theirs))
    await asyncio.to_thread(child.start)
    try:
        their_session, token = await asyncio.wait_for(asyncio.to_thread(ours.recv), 20)
        assert their_session != session.id
        assert await DistributedLock("x", session).try_acquire() is None
        ours.send("enough")
        assert (await asyncio.wait_for(DistributedLock("x", session).acquire(), 5)).token > token
        await eventually(lambda: child.exitcode == 0, 10)
    finally:
        child.kill()
        child.join()
