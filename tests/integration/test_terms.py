"""``max_hold`` and ``lock_delay``: grants that end by themselves, names that stay closed after a death."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    FencedWriteRejected,
    LockLost,
    LockManager,
    LockTimeout,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, entries, eventually, queue_of, revoke
from tests.integration.fleet import fleet
from tests.integration.test_cancel import until_cancelled

TTL = 3.0
DELAY = 2.0


@pytest.mark.parametrize("options", [{"max_hold": 0}, {"max_hold": -1}, {"max_hold": float("nan")}])
def test_a_hold_of_no_time_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_hold must be None or more than 0"):
        DistributedLock("x", **options)
    with pytest.raises(ValueError, match="max_hold must be None or more than 0"):
        LockManager().acquire("x", **options)
    with pytest.raises(ValueError, match="max_hold must be None or more than 0"):
        Semaphore("x", max_concurrent=1, **options)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e300])
def test_a_delay_that_cannot_be_is_refused(delay: float) -> None:
    with pytest.raises(ValueError, match="lock_delay must be from 0"):
        DistributedLock("x", lock_delay=delay)


# max_hold


async def test_a_block_that_holds_too_long_is_cancelled_and_the_next_is_granted_when_it_has_ended(
    session: Session, other: Session
) -> None:
    waiting: asyncio.Task[Any] | None = None
    ended = 0.0
    started = time.monotonic()
    with pytest.raises(LockLost, match=r"held for longer than its max_hold of 0\.3 s"):
        async with DistributedLock("x", session, max_hold=0.3) as grant:
            waiting = asyncio.create_task(DistributedLock("x", other).acquire())
            assert 0 < grant.deadline() <= 0.3
            try:
                await asyncio.sleep(30)
            finally:
                assert 0.3 <= time.monotonic() - started < 1
                assert grant.deadline() == 0 and grant.lost.is_set()
                await asyncio.sleep(0.2)
                assert not waiting.done()  # nobody is let in while the cancelled block still cleans up
                ended = time.monotonic()
    assert waiting
    theirs = await asyncio.wait_for(waiting, 1)
    assert theirs.token > grant.token and time.monotonic() - ended < 1
    with pytest.raises(FencedWriteRejected):
        await grant.put("/elsewhere", "late")
    assert session.alive


async def test_a_block_that_ends_in_time_loses_nothing(session: Session) -> None:
    async with DistributedLock("x", session, max_hold=0.3):
        pass
    assert not core_of(session).hold_limits()._limits  # nothing is kept, and no call made, for a hold that is over
    async with DistributedLock("x", session) as again:
        await asyncio.sleep(0.3 + core_of(session).ttl / 3 + 0.6)  # the first one's limit means nothing to the second
        assert again.deadline() > 0
        assert len(await entries(session, "x")) == 1


async def test_a_late_deletion_strikes_nobody_who_has_the_key_since(session: Session) -> None:
    client = core_of(session).transport.lease_client()
    async with DistributedLock("x", session) as first:
        pass
    async with DistributedLock("x", session) as second:
        assert second.key == first.key
        await asyncio.to_thread(client.remove, first.key.encode(), first.token, 2.0)
        assert len(await entries(session, "x")) == 1
        await asyncio.to_thread(client.remove, second.key.encode(), second.token, 2.0)
        assert await entries(session, "x") == []
    client.close()


async def test_a_holder_that_does_not_let_go_is_put_out(session: Session, other: Session) -> None:
    grant = await DistributedLock("x", session, on_loss="notify", max_hold=0.3).acquire()
    started = time.monotonic()
    await asyncio.wait_for(grant.lost.wait(), 1)
    await asyncio.wait_for(DistributedLock("x", other).acquire(), 3)
    assert time.monotonic() - started <= 0.3 + core_of(session).ttl / 3 + 1


async def test_a_blocked_event_loop_keeps_no_lock_beyond_max_hold(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        agent = await members.start("exceed", "x", 2 * TTL)
        first = await agent.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        grant = await asyncio.wait_for(waiting, 1 + TTL / 3 + 1.5)
        assert grant.token > first["token"]
        await grant._entry.release()
        lost = await agent.until("lost")
        assert "max_hold" in lost["reason"] and lost["alive"]
        assert (await agent.until("granted"))["token"] > grant.token


async def test_a_permit_and_joint_locks_end_too(session: Session, other: Session) -> None:
    semaphore = Semaphore("s", max_concurrent=1, session=session, max_hold=0.3)
    with pytest.raises(LockLost, match="max_hold"):
        async with semaphore:
            await asyncio.sleep(30)
    with pytest.raises(LockLost, match="max_hold"):
        async with LockManager(session).acquire_all(["a", "b"], max_hold=0.3):
            await asyncio.sleep(30)
    async with Semaphore("s", max_concurrent=1, session=other), LockManager(other).acquire_all(["a", "b"]):
        pass


# lock_delay


async def test_a_killed_holder_leaves_the_name_closed_for_the_delay(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        agents = [
            await members.start("hold", "plain"),
            await members.start("hold", "delayed", f'{{"lock_delay": {DELAY}}}'),
        ]
        tokens = [(await agent.until("granted"))["token"] for agent in agents]
        for agent in agents:
            agent.process.kill()
        killed = time.monotonic()
        await asyncio.wait_for(DistributedLock("plain", session).acquire(), TTL + 1)
        [holder] = (await LockManager(session).info("delayed")).holders
        assert holder.session == f"{agents[1].said[0]['id']:016x}" and holder.token == tokens[1]
        await asyncio.wait_for(DistributedLock("delayed", session).acquire(), TTL + DELAY + 1)
        # Its last keepalive was sent up to a third of the TTL before it was killed.
        assert TTL * 2 / 3 + DELAY - 0.1 <= time.monotonic() - killed <= TTL + DELAY + 1


async def test_a_release_opens_the_name_at_once_and_so_does_a_closed_session(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as member:
        delayed = DistributedLock("x", member, lock_delay=30)
        async with delayed:
            pass
        async with LockManager(session).acquire("x", timeout=1):
            pass
        async with LockManager(member).acquire_all(["a", "b"], lock_delay=30):
            pass
        await LockManager(member).acquire("y", lock_delay=30)
    async with LockManager(session).acquire_all(["a", "b", "y"], timeout=1):
        pass


async def test_one_that_dies_waiting_closes_nothing(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    async with fleet(etcd, namespace) as members:
        lock = DistributedLock("x", session)
        await lock.acquire()
        waiter = await members.start("hold", "x", '{"lock_delay": 60}')
        await queue_of(session, "x", 2, limit=15)
        waiter.process.kill()
        await queue_of(session, "x", 1, limit=TTL + 2)
        await lock.release()
        await DistributedLock("x", session).acquire(timeout=1)


async def test_a_lost_session_closes_the_name_to_itself_too(etcd: EmbeddedEtcd, namespace: str) -> None:
    settings: dict[str, Any] = {"endpoints": etcd.endpoint, "namespace": namespace, "session_ttl": 2}
    async with Session(**settings) as member, Session(**settings) as next_life:
        grant = await DistributedLock("x", member, on_loss="notify", lock_delay=DELAY).acquire()
        await revoke(member, member.id)
        await asyncio.wait_for(grant.lost.wait(), 1)
        with pytest.raises(LockTimeout):
            await DistributedLock("x", next_life).acquire(timeout=DELAY / 2)
        await DistributedLock("x", next_life).acquire(timeout=2 + DELAY + 1)


async def test_a_watcher_is_told_of_the_death_when_the_delay_is_over(etcd: EmbeddedEtcd, namespace: str) -> None:
    settings: dict[str, Any] = {"endpoints": etcd.endpoint, "namespace": namespace, "session_ttl": 2}
    async with Session(**settings) as member, Session(**settings) as watcher:
        told: list[tuple[str, str]] = []

        async def follow() -> None:
            async for event in LockManager(watcher).watch():
                told.append((event.kind, event.name))

        async with DistributedLock("before", watcher):
            following = asyncio.create_task(follow())
            await eventually(lambda: len(told) == 2)
        await eventually(lambda: len(told) == 3)
        told.clear()
        lock = DistributedLock("x", member, on_loss="notify", lock_delay=1)
        async with lock:
            pass
        await lock.acquire()
        await revoke(member, member.id)
        await eventually(lambda: len(told) >= 6, 8)
        following.cancel()
        kinds = [kind for kind, _ in told]
        assert kinds == ["enqueued", "granted", "released", "enqueued", "granted", "expired"]


async def test_the_delay_costs_one_write_more_and_one_lease(session: Session) -> None:
    lock = DistributedLock("x", session, lock_delay=5)
    async with lock:
        pass
    with counting(session) as calls:
        async with lock:
            pass
    assert calls == {"txn": 2, "delete": 1}
    found = await core_of(session).transport.get(
        Get(core_of(session).layout.root, prefix_end(core_of(session).layout.root))
    )
    assert [core_of(session).layout.lease_of(kv.key) for kv in found.kvs] == [session.id]


async def test_a_hold_outlasts_the_delayed_lease(session: Session, other: Session) -> None:
    """The delayed lease is renewed with the session's."""
    async with DistributedLock("x", session, lock_delay=0.5) as grant:
        await asyncio.sleep(core_of(session).ttl + 3)
        assert not grant.lost.is_set()
        assert len(await entries(other, "x")) == 1
        assert await DistributedLock("x", other).try_acquire() is None


async def test_a_cancel_at_any_step_leaves_nothing(session: Session, other: Session) -> None:
    async def cycle(session: Session) -> None:
        async with LockManager(session).acquire_all(["a", "b"], lock_delay=30, max_hold=30):
            await asyncio.sleep(0)

    async def nothing_left() -> None:
        await eventually(lambda: _free(other))

    assert await until_cancelled(session, cycle, nothing_left) >= 3


async def _free(session: Session) -> bool:
    return not await LockManager(session).locks()
