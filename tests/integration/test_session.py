"""One lease per process: what it is made from, how it ends, and who is told."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdUnavailable,
    LockLost,
    LockManager,
    LockTimeout,
    Session,
    SessionLost,
    UsedElsewhere,
)
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.session_core import open_sessions
from tests.helpers import eventually, queue_of, revoke
from tests.integration.test_faults import through_proxy


@pytest.fixture
def environment(etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    monkeypatch.setenv("CODOMYRMEX_ETCD_SESSION_TTL", "60")


async def sessions(session: Session) -> int:
    return (
        await core_of(session).transport.get(
            Get(core_of(session).layout.leases, prefix_end(core_of(session).layout.leases))
        )
    ).total


async def test_primitives_without_a_session_share_the_default_one(environment: None, session: Session) -> None:
    async with DistributedLock("a"), LockManager().acquire("b"):
        assert await sessions(session) == 2  # the test's own, and the default one


async def test_the_default_session_ends_with_its_loop(environment: None, session: Session) -> None:
    async def hold() -> None:
        await DistributedLock("x").acquire()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    await asyncio.to_thread(thread.join)
    await queue_of(session, "x", 0, limit=2)  # although its TTL is 60 s


async def test_the_default_session_never_falls_back_to_an_embedded_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", "http://127.0.0.1:1")
    monkeypatch.setenv("CODOMYRMEX_ETCD_DIAL_TIMEOUT", "0.3")
    with pytest.raises(EtcdUnavailable, match=r"127\.0\.0\.1:1"):
        async with LockManager().acquire("x"):
            pass


async def test_a_revoked_lease_is_told_within_a_second(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=60) as session:
        blocker = DistributedLock("y", other)
        await blocker.acquire()
        waiting = asyncio.create_task(DistributedLock("y", session).acquire())
        await queue_of(other, "y", 2)
        started = time.monotonic()
        with pytest.raises(LockLost, match="lease is gone"):
            async with DistributedLock("x", session):
                started = time.monotonic()
                await revoke(other, session.id)
                await asyncio.sleep(30)
        assert time.monotonic() - started < 1
        with pytest.raises(SessionLost):
            await waiting
        await asyncio.wait_for(session.lost, 1)
        assert not session.alive and session.deadline() == 0
        with pytest.raises(SessionLost, match="over"):
            await DistributedLock("x", session).acquire()


async def test_after_a_loss_the_default_session_is_made_anew(environment: None, session: Session) -> None:
    lock = DistributedLock("x", on_loss="notify")
    grant = await lock.acquire()
    await revoke(session, int((await queue_of(session, "x", 1))[0].lease))
    await asyncio.wait_for(grant.lost, 2)
    await lock.release()
    assert (await lock.acquire()).token > grant.token
    await lock.release()


async def test_closing_releases_at_once_and_may_be_repeated(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    session = await Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=60).open()
    grant = await DistributedLock("x", session).acquire()
    waiting = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(other, "x", 2)
    await session.close()
    await asyncio.wait_for(waiting, 1)
    assert grant.lost.is_set() and session.lost.is_set()
    await session.close()
    assert await sessions(other) == 1


async def test_a_session_says_what_it_is(session: Session) -> None:
    assert session.alive and 0 < session.deadline() <= 2 and session.id > 0
    assert not session.lost.is_set() and f"{session.id:016x}" in repr(session)
    await asyncio.sleep(0.3)
    before = session.deadline()
    await eventually(lambda: session.deadline() > before, 3)  # a keepalive was answered


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"session_ttl": 1}, "session_ttl must be a whole number of seconds from 2 to 86400, not 1"),
        ({"endpoints": "ftp://x"}, "not of the form http"),
        ({"endpoints": "http://10.0.0.1", "username": "u", "password": "secret"}, "plain http"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match="invalid etcd settings") as caught:
        asyncio.run(_make(settings))
    assert text in str(caught.value) and "secret" not in str(caught.value)


async def _make(settings: dict[str, object]) -> None:
    Session(**settings)


async def test_an_embedded_session_takes_its_etcd_along() -> None:
    async with Session(endpoints="embedded") as session:
        async with DistributedLock("x", session):
            pass
        endpoint = core_of(session).transport.endpoints[0]
    with pytest.raises(EtcdUnavailable):
        await Session(endpoints=endpoint, dial_timeout=0.3).open()


async def test_a_timeout_covers_an_etcd_that_cannot_be_reached() -> None:
    async with asyncio.timeout(2):
        with pytest.raises(LockTimeout):
            await DistributedLock("x", Session(endpoints="http://127.0.0.1:1", dial_timeout=30)).acquire(timeout=0.3)


async def test_a_session_of_another_loop_is_refused(session: Session) -> None:
    def elsewhere() -> None:
        asyncio.run(DistributedLock("x", session).acquire(timeout=2))

    with pytest.raises(UsedElsewhere, match="another event loop"):
        await asyncio.to_thread(elsewhere)
    async with DistributedLock("x", session):
        pass


async def test_the_deadline_counts_from_when_a_keepalive_was_sent(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with through_proxy(etcd, namespace, session_ttl=3) as (proxy, session):
        proxy.delay(0.15)  # each way
        longest = 0.0
        renewed = 0
        deadline = session.deadline()
        while renewed < 2:
            await asyncio.sleep(0.02)
            now = session.deadline()
            if now > deadline:
                renewed += 1
                longest = max(longest, now)
            deadline = now
        proxy.resume()
        assert longest < 3 * 2 / 3 - 0.25


def test_a_session_whose_loop_was_closed_is_no_open_one(etcd: EmbeddedEtcd, namespace: str) -> None:
    """A session whose event loop ends without a close must not stay in the figures for ever."""

    async def use() -> Session:
        session = await Session(endpoints=etcd.endpoint, namespace=namespace).open()
        assert core_of(session) in open_sessions()
        return session

    session = asyncio.run(use())
    assert core_of(session).is_over and core_of(session) not in open_sessions()
