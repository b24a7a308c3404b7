"""Groups: members that tell of themselves, and changes that all observers see alike, at the same revisions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdUnavailable,
    FencedWriteRejected,
    Group,
    LockLost,
    LockManager,
    Member,
    MemberEvent,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult, Put, TxnResult
from codomyrmex.concurrency.keys import GROUP, prefix_end
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.chaos.agent import MEMBERS
from tests.chaos.members import members
from tests.helpers import eventually, revoke
from tests.integration.test_faults import through_proxy
from tests.integration.test_watch import compact, put

Told = tuple[str, int, dict[str, object], int]


class Watched:
    """The changes that an observer is told."""

    def __init__(self, stack: AsyncExitStack, session: Session, name: str = "g") -> None:
        self.events: list[MemberEvent] = []
        self._task = asyncio.create_task(self._follow(Group(name, session)))
        stack.push_async_callback(self._end)

    @property
    def told(self) -> list[Told]:
        return [(one.kind, one.member.token, one.member.capabilities, one.revision) for one in self.events]

    @property
    def short(self) -> list[tuple[str, object]]:
        return [(one.kind, one.member.capabilities.get("n")) for one in self.events]

    def count(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.events)

    async def _follow(self, group: Group) -> None:
        async for event in group.watch():
            self.events.append(event)

    async def _end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def join(stack: AsyncExitStack, session: Session, count: int, name: str = "g") -> list[asyncio.Task[None]]:
    """Tasks that are members until they are cancelled, in no order."""

    async def be_one(number: int) -> None:
        async with Group(name, session).join({"n": number}):
            joined.append(number)
            await asyncio.Event().wait()

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    joined: list[int] = []
    tasks = [asyncio.create_task(be_one(number)) for number in range(count)]
    stack.push_async_callback(end)
    await eventually(lambda: len(joined) == count)
    return tasks


async def all_watch(watched: list[Watched], session: Session) -> None:
    """Wait until all watchers have begun; each is told of one member that comes and goes."""
    async with Group("g", session).join({"n": -1}):
        await eventually(lambda: all(one.events for one in watched), 15)
    await eventually(lambda: all(one.count("left") for one in watched), 15)
    for one in watched:
        one.events.clear()


async def capabilities(session: Session) -> list[dict[str, object]]:
    return [member.capabilities for member in await Group("g", session).members()]


# Members


async def test_members_join_change_and_leave_and_watchers_are_told(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    group = Group("g", session)
    assert await group.members() == ()
    async with group.join({"n": 1}) as first:
        watched = Watched(stack, other)
        await eventually(lambda: watched.events)
        async with Group("g", other, metadata={"agent": "a"}).join({"n": 2, "deep": [None, {}]}) as second:
            found = await group.members()
            assert [one.capabilities for one in found] == [{"n": 1}, {"n": 2, "deep": [None, {}]}]
            assert [one.token for one in found] == [first.grant.token, second.grant.token]
            assert [one.group for one in found] == ["g", "g"] and found[1].owner.agent == "a"
            assert isinstance(found[0], Member) and found[0].owner.session == f"{session.id:016x}"
            await first.update({"n": 3})
            assert first.capabilities == {"n": 3} and (await group.members())[0].capabilities == {"n": 3}
            await first.update({"n": True})  # in Python equal to 1, but another JSON value
            await first.update({"n": 1})
            await first.grant.progress("a note is no news")
        await eventually(lambda: watched.count("left") == 1)
    await eventually(lambda: watched.count("left") == 2)
    expected = [
        ("joined", 1),
        ("joined", 2),
        ("changed", 3),
        ("changed", True),
        ("changed", 1),
        ("left", 2),
        ("left", 1),
    ]
    assert list(map(repr, watched.short)) == list(map(repr, expected))
    revisions = [one.revision for one in watched.events[1:]]
    assert revisions == sorted(set(revisions)) and await group.members() == ()


async def test_a_member_may_have_no_capabilities(session: Session) -> None:
    async with Group("g", session).join() as one, Group("g", session).join(None) as two, Group("g", session).join({}):
        assert one.capabilities == two.capabilities == {}
        assert await capabilities(session) == [{}, {}, {}]
        await one.update({})
        assert await capabilities(session) == [{}, {}, {}]


async def test_many_members_of_one_session_are_apart(session: Session, other: Session, stack: AsyncExitStack) -> None:
    watched = Watched(stack, other)
    await all_watch([watched], other)
    tasks = await join(stack, session, 80)
    found = await Group("g", other).members()
    assert sorted(one.capabilities["n"] for one in found) == list(range(80))
    assert [one.token for one in found] == sorted({one.token for one in found})
    for task in tasks[:40]:
        task.cancel()
    await eventually(lambda: watched.count("left") == 40)
    assert watched.count("joined") == 80
    await join(stack, session, 40)  # with the keys of those that have left
    await eventually(lambda: watched.count("joined") == 120)
    assert len(await Group("g", other).members()) == 80 and watched.count("changed") == 0


async def test_a_group_and_a_lock_of_one_name_are_apart(session: Session, other: Session) -> None:
    async with DistributedLock("g", other), Group("g", session).join(), LockManager(session).acquire("h", shared=True):
        assert [info.name for info in await LockManager(session).locks()] == ["g", "h"]
        assert len(await Group("g", other).members()) == 1 and await Group("h", other).members() == ()


async def test_members_neither_wait_nor_read_the_others_nor_write_more_than_their_entries(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    core = core_of(session)
    foreign = core.layout.queue("g", GROUP) + b"not-a-member"
    await core_of(other).transport.txn((), (Put(foreign, b"x" * 100_000, other.id),))
    sizes: list[int] = []
    txn = core.transport.txn

    async def counted(*args: Any) -> TxnResult:
        result = await txn(*args)
        sizes.extend(len(one.kvs) for one in result.results if isinstance(one, GetResult))
        return result

    core.transport.txn = counted  # type: ignore[method-assign]
    tasks = await join(stack, session, 30)
    assert len(sizes) >= 30 and max(sizes) == 1  # each has read the newest entry only
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    markers = core.layout.below("baton")
    assert (await core.transport.get(Get(markers, prefix_end(markers)))).total == 0


# Losses


async def test_a_member_whose_session_is_lost_leaves(session: Session, other: Session, stack: AsyncExitStack) -> None:
    watched = Watched(stack, session)
    async with Group("g", session).join({"n": 1}):
        async with Group("g", other).join({"n": 2}) as mine:
            await eventually(lambda: watched.count("joined") == 2)
            await revoke(session, other.id)
            await asyncio.wait_for(mine.grant.lost.wait(), 5)
            with pytest.raises(FencedWriteRejected):
                await mine.update({"n": 3})
            assert mine.capabilities == {"n": 2}
        await eventually(lambda: watched.count("left") == 1)
        assert watched.short == [("joined", 1), ("joined", 2), ("left", 2)]
        assert await capabilities(session) == [{"n": 1}]
        with pytest.raises(LockLost):
            async with Group("g", session, on_loss="cancel").join():
                await revoke(session, session.id)
                await asyncio.sleep(10)
    with pytest.raises(SessionLost):
        await Group("g", session).members()


async def test_members_of_several_sessions_that_end_at_once_leave_for_all_observers_alike(
    etcd: EmbeddedEtcd, namespace: str, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    watched = [Watched(stack, session), Watched(stack, other)]
    await all_watch(watched, session)
    own = [
        await stack.enter_async_context(Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3))
        for _ in range(4)
    ]
    for one in own:
        await join(stack, one, 10)
    await asyncio.gather(*(revoke(session, one.id) for one in own))
    for observer in watched:
        await eventually(lambda observer=observer: observer.count("left") == 40)
        assert observer.count("joined") == 40
    assert _alike(watched) and await Group("g", session).members() == ()
    left = [one.revision for one in watched[0].events if one.kind == "left"]
    assert len(set(left)) == 4  # all members of a session leave at one revision


def _alike(watched: list[Watched]) -> bool:
    return all(one.told == watched[0].told for one in watched)


@pytest.mark.long
async def test_200_members_in_processes_die_at_once_and_all_observers_agree(
    etcd: EmbeddedEtcd, namespace: str, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    proxy, third = await stack.enter_async_context(through_proxy(etcd, namespace))
    watched = [Watched(stack, one) for one in (session, other, third)]
    await all_watch(watched, session)
    fleet = await stack.enter_async_context(members(etcd.endpoint, namespace))
    for _ in range(200 // MEMBERS):
        await fleet.start("join")
    await eventually(lambda: all(one.count("joined") == 200 for one in watched), 30)
    assert len(await Group("g", other).members()) == 200
    proxy.cut()
    for process in fleet.living:
        process.process.kill()
    await eventually(lambda: all(one.count("left") == 200 for one in watched), 20)
    assert _alike(watched) and len(watched[0].events) == 400
    assert await Group("g", session).members() == ()


# Faults of the network


async def test_over_broken_streams_watchers_are_told_every_change(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    watched = [Watched(stack, session), Watched(stack, other)]
    await all_watch(watched, other)
    for number in range(10):
        async with Group("g", other).join({"n": number}) as member:
            if number % 3 == 1:
                proxy.cut()
            await member.update({"n": [number]})
    await eventually(lambda: all(one.count("left") == 10 for one in watched))
    assert _alike(watched) and len(watched[0].told) == 30


async def test_after_a_compaction_watchers_are_told_the_result(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    watched = Watched(stack, session)
    async with Group("g", other).join({"n": 1}) as stays:
        async with Group("g", other).join({"n": 2}):
            await eventually(lambda: watched.count("joined") == 2)
            proxy.refuse()
            proxy.cut()
        async with Group("g", other).join({"n": 3}):
            pass
        async with Group("g", other).join({"n": 4}):  # with a key that had been used before
            await stays.update({"n": 5})
            await compact(etcd, await put(other, 1))
            proxy.resume()
            await eventually(lambda: len(watched.events) == 5)
        await eventually(lambda: len(watched.events) == 6)
    expected = [("joined", 1), ("joined", 2), ("left", 2), ("changed", 5), ("joined", 4), ("left", 4)]
    assert watched.short[:6] == expected
    assert len({one.revision for one in watched.events[2:5]}) == 1


async def test_lost_answers_to_a_join_and_to_an_update_double_nothing(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    queue = core_of(session).layout.below("group")
    async with core_of(session).member(LocalQueues).recording:  # the holder writes nothing by itself meanwhile
        proxy.drop_next_answer(queue)
        async with Group("g", session).join({"n": 1}) as member:
            assert proxy.dropped == 1 and await capabilities(other) == [{"n": 1}]
            proxy.drop_next_answer(queue)
            with suppress(EtcdUnavailable):
                await member.update({"n": 2})
            await member.update({"n": 3})
            assert proxy.dropped == 2 and await capabilities(other) == [{"n": 3}]
            assert (await Group("g", other).members())[0].token == member.grant.token
    assert await capabilities(other) == []
