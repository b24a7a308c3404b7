"""Readers beside writers, and several locks at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from codomyrmex.concurrency import (
    FencedWriteRejected,
    InvalidName,
    LockLost,
    LockManager,
    LockTimeout,
    Session,
)
from tests.helpers import counting, entries, eventually, queue_of


async def test_readers_hold_together_and_a_writer_alone(session: Session, other: Session) -> None:
    here, there = LockManager(session), LockManager(other)
    async with here.acquire("doc", shared=True) as one, there.acquire("doc", shared=True) as two:
        assert one.token != two.token
        with pytest.raises(LockTimeout):
            await there.acquire("doc", timeout=0)
        writing = asyncio.create_task(there.acquire("doc")._first())
        await queue_of(session, "doc", 3)
        info = await here.info("doc")
        assert info and [o.shared for o in info.holders] == [True, True] and [o.shared for o in info.waiters] == [False]
    grant = await asyncio.wait_for(writing, 2)
    with pytest.raises(LockTimeout):
        await here.acquire("doc", shared=True, timeout=0)
    await there.release(grant)
    await queue_of(session, "doc", 0)


async def test_a_reader_does_not_pass_a_writer_that_waits(session: Session, other: Session) -> None:
    here, there = LockManager(session), LockManager(other)
    order: list[str] = []

    async def use(name: str, manager: LockManager, shared: bool) -> None:
        async with manager.acquire("doc", shared=shared):
            order.append(name)
            await asyncio.sleep(0.05)

    async with here.acquire("doc", shared=True):
        tasks = []
        for number, (name, shared) in enumerate([("writer", False), ("reader", True), ("reader2", True)]):
            tasks.append(asyncio.create_task(use(name, there, shared)))
            await queue_of(session, "doc", number + 2)
        await asyncio.sleep(0.1)
        assert order == []
    await asyncio.gather(*tasks)
    assert order[0] == "writer" and set(order[1:]) == {"reader", "reader2"}


async def test_many_readers_and_writers_keep_the_rule(session: Session, other: Session) -> None:
    reading = writing = most = 0
    chance = random.Random(7)

    async def use(manager: LockManager, shared: bool) -> None:
        nonlocal reading, writing, most
        async with manager.acquire("doc", shared=shared):
            assert not writing and (shared or not reading)
            reading, writing = reading + shared, writing + (not shared)
            most = max(most, reading)
            await asyncio.sleep(0.003)
            reading, writing = reading - shared, writing - (not shared)

    managers = [LockManager(session), LockManager(other)]
    await asyncio.gather(*(use(chance.choice(managers), chance.random() < 0.7) for _ in range(60)))
    assert most > 1 and await entries(session, "doc") == []


async def test_all_or_none_in_one_transaction(session: Session, other: Session) -> None:
    here, there = LockManager(session), LockManager(other)
    with counting(session) as calls:
        async with here.acquire_all(["b", "a", "b"]) as grants:
            assert [grant.name for grant in grants] == ["b", "a"]
            assert len({grant.token for grant in grants}) == 1
            await grants[0].put("doc/b", "1")
    assert calls["txn"] == 3  # to acquire, to write, to release
    async with there.acquire("a"):
        with pytest.raises(LockTimeout, match="'b', 'a' were not granted"):
            await here.acquire_all(["b", "a"], timeout=0)
        with pytest.raises(LockTimeout):
            await here.acquire_all(["b", "a"], timeout=0.2)
        await queue_of(session, "b", 0)
        assert await there.acquire("b", timeout=0)


async def test_no_names_are_granted_at_once_and_too_many_refused(session: Session) -> None:
    manager = LockManager(session)
    with counting(session) as calls:
        async with manager.acquire_all([]) as grants:
            assert grants == ()
    assert not calls
    names = [f"n{number}" for number in range(61)]
    async with manager.acquire_all(names[:60]) as grants:
        assert len(grants) == 60
    with pytest.raises(ValueError, match="at most 60"):
        manager.acquire_all(names)
    with pytest.raises(TypeError, match="several names"):
        manager.acquire_all("abc")
    with pytest.raises(InvalidName):
        manager.acquire_all(["ok", ""])


async def test_crossed_orders_never_wait_for_each_other(session: Session, other: Session) -> None:
    names = ["a", "b", "c", "d"]
    holding: set[str] = set()

    async def use(manager: LockManager, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(10):
            wanted = chance.sample(names, chance.randint(1, 4))
            async with manager.acquire_all(wanted):
                assert not holding & set(wanted)
                holding.update(wanted)
                await asyncio.sleep(0.001)
                holding.difference_update(wanted)

    managers = [LockManager(session), LockManager(other)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(use(managers[seed % 2], seed) for seed in range(8)))


async def test_one_loss_loses_all(session: Session, other: Session) -> None:
    here, operator = LockManager(session), LockManager(other)
    with pytest.raises(LockLost, match="by force"):
        async with here.acquire_all(["a", "b"]) as grants:
            await asyncio.sleep(1.2)  # until own keys are watched
            await operator.force_release("b", reason="test")
            await asyncio.sleep(5)
    assert all(grant.lost.is_set() for grant in grants)
    with pytest.raises(FencedWriteRejected):
        await grants[0].put("doc/a", "1")
    assert await entries(session, "a") == [] == await entries(session, "b")


async def test_a_loss_while_waiting_for_another_of_the_names_is_told(session: Session, other: Session) -> None:
    here, there = LockManager(session), LockManager(other)
    async with there.acquire("b"):
        waiting = asyncio.create_task(here.acquire_all(["a", "b"])._all())
        await queue_of(session, "b", 2)
        await asyncio.sleep(1.2)
        await there.force_release("a", reason="test")
        with pytest.raises(LockLost):
            await asyncio.wait_for(waiting, 2)
        await queue_of(session, "b", 1)


async def test_a_cancelled_joint_acquisition_leaves_nothing(session: Session, other: Session) -> None:
    here, there = LockManager(session), LockManager(other)
    for step in range(20):
        grant = await there.acquire("b")

        async def wait() -> None:
            await here.acquire_all(["a", "b", "c"])

        waiting = asyncio.create_task(wait())
        for _ in range(step):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await queue_of(session, "b", 1)
        await there.release(grant)
        for name in "abc":
            await queue_of(session, name, 0)


async def test_joint_grants_can_be_released_one_by_one(session: Session, other: Session) -> None:
    manager = LockManager(session)
    one, two = await manager.acquire_all(["a", "b"])
    await manager.release(one)
    assert not one.lost.is_set() and two.deadline() > 0
    assert await LockManager(other).acquire("a", timeout=0)
    assert manager.stats().active_locks == 1
    await manager.release(two)


async def test_readers_are_seen_in_the_events(session: Session, other: Session) -> None:
    manager = LockManager(session)
    seen: list[tuple[str, bool]] = []

    async def watch() -> None:
        async for event in LockManager(other).watch("doc"):
            seen.append((event.kind, event.owner.shared))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.3)
    async with manager.acquire("doc", shared=True), manager.acquire("doc", shared=True):
        pass
    await eventually(lambda: len(seen) == 6)
    watching.cancel()
    assert seen == [("enqueued", True), ("granted", True)] * 2 + [("released", True)] * 2
