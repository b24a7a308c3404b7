"""Waiters behind an entry of their own process: it tells them, and etcd need not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdUnavailable, LockManager, Session, session_members
from codomyrmex.concurrency.etcd.transports.protocol import Delete
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import counting, entries, eventually, queue_of

Waiters = Callable[..., Awaitable[list[asyncio.Future[Any]]]]


@pytest.fixture
async def waiters(session: Session, other: Session) -> AsyncIterator[Waiters]:
    """A function that starts waiters for "x", one behind the other, each with a grant as its result."""
    for own in (session, other):
        await eventually(lambda own=own: all(watch.in_step for watch in core_of(own).hub._sinks))
    made: list[asyncio.Future[Any]] = []

    async def start(session: Session, count: int, before: int = 1) -> list[asyncio.Future[Any]]:
        started = []
        for number in range(count):
            started.append(asyncio.ensure_future(LockManager(session).acquire("x")))
            made.append(started[-1])
            await queue_of(session, "x", before + number + 1)
        return started

    yield start
    for waiter in made:
        waiter.cancel()
    await asyncio.gather(*made, return_exceptions=True)


async def test_they_need_no_watch_and_no_look(
    session: Session, monkeypatch: pytest.MonkeyPatch, waiters: Waiters
) -> None:
    monkeypatch.setattr(session_members, "TICK", 600.0)
    manager = LockManager(session)
    grant = await manager.acquire("x")
    with counting(session) as calls:
        waiting = await waiters(session, 5)
        calls["range"] = 0
        for task in waiting:
            await grant._entry.release()
            grant = await asyncio.wait_for(task, 5)
        await grant._entry.release()
    assert calls["txn"] + calls["delete"] == 5 + 6
    assert not calls["created"] and not calls["events"] and not calls["range"]


async def test_one_that_gives_up_in_the_middle_lets_nobody_pass(session: Session, waiters: Waiters) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x")
    waiting = await waiters(session, 4)
    for number in (1, 2):
        waiting[number].cancel()
    await queue_of(session, "x", 3)
    await asyncio.sleep(0.2)
    assert not waiting[0].done() and not waiting[3].done()
    await grant._entry.release()
    first = await asyncio.wait_for(waiting[0], 5)
    await asyncio.sleep(0.2)
    assert not waiting[3].done()
    await first._entry.release()
    assert (await asyncio.wait_for(waiting[3], 5)).token > first.token


async def test_a_waiter_of_another_process_in_between_is_served_in_between(
    session: Session, other: Session, waiters: Waiters
) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x")
    [ours] = await waiters(session, 1)
    [theirs] = await waiters(other, 1, before=2)
    [last] = await waiters(session, 1, before=3)
    await grant._entry.release()
    grant = await asyncio.wait_for(ours, 5)
    assert not theirs.done() and not last.done()
    await grant._entry.release()
    grant = await asyncio.wait_for(theirs, 5)
    await asyncio.sleep(0.2)
    assert not last.done()
    await grant._entry.release()
    assert await asyncio.wait_for(last, 5)


async def test_a_holder_whose_key_is_deleted_by_hand_makes_way(
    session: Session, other: Session, waiters: Waiters
) -> None:
    await LockManager(session).acquire("x")
    [waiting] = await waiters(session, 1)
    await core_of(other).transport.delete(Delete((await entries(other, "x"))[0].key))
    assert await asyncio.wait_for(waiting, 3)


async def test_a_forced_release_makes_way(session: Session, other: Session, waiters: Waiters) -> None:
    grant = await LockManager(session).acquire("x")
    waiting = await waiters(session, 2)
    await asyncio.sleep(1.2)  # past a tick
    await LockManager(other).force_release("x", reason="stuck")
    assert await asyncio.wait_for(waiting[0], 2)
    assert grant.lost.is_set() and not waiting[1].done()


async def test_one_whose_place_is_deleted_by_hand_lets_nobody_pass(
    session: Session, other: Session, waiters: Waiters
) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x")
    waiting = await waiters(session, 2)
    await core_of(other).transport.delete(Delete((await entries(other, "x"))[1].key))
    await asyncio.sleep(1.5)
    assert waiting[0].done() and waiting[0].exception() and not waiting[1].done()
    await grant._entry.release()
    assert await asyncio.wait_for(waiting[1], 5)


async def test_who_holds_for_too_long_and_never_lets_go_makes_way(
    etcd: EmbeddedEtcd, namespace: str, session: Session, waiters: Waiters
) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as brief:
        lock = DistributedLock("x", brief, on_loss="notify", max_hold=0.5)
        await lock.acquire()
        [waiting] = await waiters(brief, 1)
        assert await asyncio.wait_for(waiting, 0.5 + 1 + 2)


async def test_a_writer_waits_for_all_readers_of_its_process(session: Session, waiters: Waiters) -> None:
    manager = LockManager(session)
    readers = [await manager.acquire("x", shared=True) for _ in range(3)]
    [writer] = await waiters(session, 1, before=3)
    for reader in (readers[2], readers[0]):
        await reader._entry.release()
        await asyncio.sleep(0.2)
        assert not writer.done()
    await readers[1]._entry.release()
    assert await asyncio.wait_for(writer, 5)


async def test_readers_enter_together_behind_a_writer_of_their_process(session: Session, waiters: Waiters) -> None:
    manager = LockManager(session)
    writer = await manager.acquire("x")
    readers = [asyncio.ensure_future(manager.acquire("x", shared=True)) for _ in range(3)]
    await queue_of(session, "x", 4)
    [last] = await waiters(session, 1, before=4)
    await writer._entry.release()
    grants = await asyncio.wait_for(asyncio.gather(*readers), 5)
    assert not last.done()
    for grant in grants:
        await grant._entry.release()
    assert await asyncio.wait_for(last, 5)


async def test_a_release_whose_answer_is_lost_makes_way_all_the_same(
    session: Session, monkeypatch: pytest.MonkeyPatch, waiters: Waiters
) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x")
    [waiting] = await waiters(session, 1)
    delete, lost = core_of(session).transport.delete, 0

    async def losing(request: Delete) -> int:
        nonlocal lost
        answer = await delete(request)
        if not lost:
            lost += 1
            raise EtcdUnavailable("the answer was lost", applied="unknown", retryable=True)
        return answer

    monkeypatch.setattr(core_of(session).transport, "delete", losing)
    await grant._entry.release()
    assert (await asyncio.wait_for(waiting, 5)).token > grant.token and lost == 1
    assert grant.key not in core_of(session).member(LocalQueues).by_key
