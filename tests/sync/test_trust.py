"""The blocking twin while etcd is away: blocks end with ``LockLost``, or with success, never with a failed release."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex import concurrency as twin
from codomyrmex.concurrency import EmbeddedEtcd, EtcdUnavailable, LockLost
from codomyrmex.concurrency.sync import DistributedLock, LockManager, Semaphore, Session
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually

Block = Callable[[Session], AbstractContextManager[Any]]


def the_lock(session: Session, **options: Any) -> AbstractContextManager[Any]:
    return DistributedLock("x", session, **options)


def the_acquired(session: Session) -> AbstractContextManager[Any]:
    return LockManager(session).acquire("x", shared=True)


def the_joint(session: Session) -> AbstractContextManager[Any]:
    return LockManager(session).acquire_all(["w", "x"])


def the_semaphore(session: Session) -> AbstractContextManager[Any]:
    return Semaphore("x", max_concurrent=2, session=session)


def the_permits(session: Session) -> AbstractContextManager[Any]:
    return Semaphore("x", max_concurrent=2, session=session).hold(2)


BLOCKS: dict[str, Block] = {
    "lock": the_lock,
    "lock with lock_delay": partial(the_lock, lock_delay=1),
    "acquired": the_acquired,
    "joint": the_joint,
    "semaphore": the_semaphore,
    "permits": the_permits,
}


@pytest.fixture
async def proxy(etcd: EmbeddedEtcd) -> AsyncIterator[TcpProxy]:
    address = urlsplit(etcd.endpoint)
    async with TcpProxy(address.hostname, address.port) as started:
        yield started


def cutter(proxy: TcpProxy) -> Callable[[], None]:
    """Lets a thread stop the proxy, which lives in the test's event loop."""
    loop = asyncio.get_running_loop()

    def cut() -> None:
        loop.call_soon_threadsafe(proxy.blackhole)
        time.sleep(0.05)

    return cut


@pytest.mark.parametrize("kind", BLOCKS)
async def test_a_block_whose_lock_is_lost_because_etcd_is_away_ends_with_lock_lost(
    proxy: TcpProxy, namespace: str, kind: str
) -> None:
    cut = cutter(proxy)

    def work() -> None:
        settings: dict[str, Any] = {"namespace": namespace, "session_ttl": 2, "request_timeout": 1.0}
        with Session(endpoints=proxy.endpoint, **settings) as session:
            ended = float("inf")
            with pytest.raises(LockLost, match="no keepalive was answered") as caught, BLOCKS[kind](session) as got:
                grant = got[0] if isinstance(got, list) else got
                cut()
                assert grant.lost.wait(5) and grant.deadline() == 0
                ended = time.monotonic()
            assert time.monotonic() - ended < 0.3
            assert isinstance(caught.value.__cause__, twin.SessionLost)

    await asyncio.to_thread(work)


@pytest.mark.parametrize("kind", BLOCKS)
async def test_a_block_that_ends_by_itself_while_etcd_is_away_has_succeeded(
    proxy: TcpProxy, namespace: str, other: twin.Session, kind: str
) -> None:
    cut = cutter(proxy)

    def work() -> Session:
        settings: dict[str, Any] = {"namespace": namespace, "session_ttl": 60, "request_timeout": 0.5}
        session = Session(endpoints=proxy.endpoint, **settings).open()
        with BLOCKS[kind](session):
            cut()
        with pytest.raises(EtcdUnavailable):
            DistributedLock("y", session).acquire()
        return session

    session = await asyncio.to_thread(work)
    proxy.resume()
    await eventually(lambda: _free(other))
    await asyncio.to_thread(session.close)


async def test_an_error_of_the_body_comes_through_while_etcd_is_away(proxy: TcpProxy, namespace: str) -> None:
    cut = cutter(proxy)

    def work() -> None:
        settings: dict[str, Any] = {"namespace": namespace, "session_ttl": 2, "request_timeout": 0.5}
        with Session(endpoints=proxy.endpoint, **settings) as session:
            with pytest.raises(RuntimeError, match="lost") as caught, DistributedLock("x", session) as grant:
                cut()
                grant.lost.wait(5)
                raise RuntimeError("lost")
            assert "was lost while this happened: no keepalive" in caught.value.__notes__[0]

    await asyncio.to_thread(work)


async def _free(session: twin.Session) -> bool:
    semaphore = await twin.Semaphore("x", max_concurrent=2, session=session).info()
    return not (await twin.LockManager(session).locks() or semaphore.holders)
