"""Elections whose leaders are killed and whose network fails: one writer a term, no term missed, nothing done twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import pairwise

import pytest

from codomyrmex.concurrency import (
    Election,
    EmbeddedEtcd,
    EtcdUnavailable,
    FencedWriteRejected,
    Leader,
    LockLost,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.chaos.checker import violations
from tests.chaos.members import members
from tests.chaos.recorder import Recorder
from tests.helpers import eventually, revoke
from tests.integration.test_election import Observed, all_observe
from tests.integration.test_faults import through_proxy
from tests.integration.test_watch import compact, put

# Kills of leaders


async def _leaders_end(session: Session, kill: Callable[[Leader], Awaitable[object]], times: int) -> None:
    """End the leader again and again, each time once another leads."""
    token = 0
    for _ in range(times):

        async def next_one(after: int = token) -> Leader | None:
            leader = await Election("e", session).leader()
            return leader if leader and leader.token > after else None

        leader: Leader = await eventually(next_one, 20)
        token = leader.token
        await kill(leader)


async def test_each_term_has_one_writer_and_observers_miss_none_while_leaders_die(
    etcd: EmbeddedEtcd, namespace: str, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    recorder = Recorder(session, namespace)
    observed = [Observed(stack, session), Observed(stack, other)]
    await all_observe(observed, session)
    written: set[int] = set()

    async def campaign_for_ever() -> None:
        while True:
            with suppress(LockLost, SessionLost, FencedWriteRejected):
                async with (
                    Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as own,
                    Election("e", own).campaign() as term,
                ):
                    while True:
                        await term.grant.put(f"/{namespace}/elected", str(term.token))
                        written.add(term.token)
                        await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(campaign_for_ever()) for _ in range(3)]

    async def kill(leader: Leader) -> None:
        await eventually(lambda: leader.token in written)
        await revoke(session, int(leader.owner.session, 16))

    await _leaders_end(session, kill, 15)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: violations(recorder.election) == [])
    for one in observed:
        await eventually(lambda one=one: written <= set(one.tokens))
        assert all(a < b for a, b in pairwise(one.tokens))
    assert len(written) >= 15


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_200_kills_of_leaders_in_processes(
    etcd: EmbeddedEtcd, namespace: str, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    """Of the leaders 50 are killed. Of these ten are only missed when their leases end; of the others, and of those
    that live on, the leases are revoked."""
    recorder = Recorder(session, namespace)
    observed = [Observed(stack, session), Observed(stack, other)]
    await all_observe(observed, session)
    fleet = await stack.enter_async_context(members(etcd.endpoint, namespace))
    for _ in range(5):
        await fleet.start("reign")
    kinds = ["kill"] * 40 + ["kill and wait"] * 10 + ["revoke"] * 150
    random.shuffle(kinds)

    async def kill(leader: Leader) -> None:
        await eventually(lambda: any(said["token"] == leader.token for said in fleet.said("reign")), 20)
        kind = kinds.pop()
        if kind != "revoke":
            victim = next(one for one in fleet.living if one.process.pid == leader.value["pid"])
            await fleet.replace(victim)
        if kind != "kill and wait":
            await revoke(session, int(leader.owner.session, 16))

    await _leaders_end(session, kill, len(kinds))
    await fleet.end()
    led = {said["token"] for said in fleet.said("reign")}
    await eventually(lambda: violations(recorder.election) == [], 10)
    wrote = {change.token for change in recorder.election if change.kind == "wrote"}
    assert len(led) >= 200 and wrote <= led and len(wrote) > 150 and not recorder.gaps
    for one in observed:
        await eventually(lambda one=one: led <= set(one.tokens))
        assert all(a < b for a, b in pairwise(one.tokens))


# Faults of the network


async def test_over_broken_streams_observers_are_told_every_term_and_value(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    observed = Observed(stack, session)
    expected: list[tuple[int, object]] = []
    for number in range(12):
        async with Election("e", other).campaign([number]) as term:
            expected.append((term.token, [number]))
            await eventually(lambda: observed.leaders)
            if number % 3 == 1:
                proxy.cut()
            await term.proclaim(number)
            expected.append((term.token, number))
    await eventually(lambda: len(observed.leaders) >= len(expected))
    assert [(leader.token, leader.value) for leader in observed.leaders] == expected


async def test_after_a_compaction_observers_are_told_the_present_term(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    observed = Observed(stack, session)
    third = await stack.enter_async_context(Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3))
    async with Election("e", third).campaign("first"):  # its key is not used again by the later leaders
        await eventually(lambda: observed.values == ["first"])
        proxy.refuse()
        proxy.cut()
    async with Election("e", other).campaign("missed"):
        pass
    async with Election("e", other).campaign("present") as term:
        await compact(etcd, await put(other, 1))
        proxy.resume()
        await eventually(lambda: observed.values == ["first", "present"])
        await term.proclaim("next")
        await eventually(lambda: observed.values == ["first", "present", "next"])


async def test_lost_answers_to_a_campaign_and_to_a_proclamation_double_nothing(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace))
    observed = Observed(stack, other)
    queue = core_of(session).layout.below("election")
    async with core_of(session).member(LocalQueues).recording:  # the holder writes nothing by itself meanwhile
        proxy.drop_next_answer(queue)
        async with Election("e", session).campaign("one") as term:
            assert proxy.dropped == 1
            proxy.drop_next_answer(queue)
            with suppress(EtcdUnavailable):
                await term.proclaim("two")
                assert proxy.dropped == 2 and term.value == "two"
            await term.proclaim("three")
            leader = await Election("e", other).leader()
            assert leader and (leader.token, leader.value) == (term.token, "three")
    assert await Election("e", other).leader() is None
    await eventually(lambda: observed.values[-1:] == ["three"])
    assert set(observed.tokens) == {term.token}


async def test_a_value_that_was_refused_is_not_carried_by_a_later_report(
    etcd: EmbeddedEtcd, namespace: str, other: Session, stack: AsyncExitStack
) -> None:
    settings = {"request_timeout": 0.4, "session_ttl": 30}
    proxy, session = await stack.enter_async_context(through_proxy(etcd, namespace, **settings))
    async with Election("e", session).campaign("old") as term:
        proxy.blackhole()
        with pytest.raises(EtcdUnavailable):
            await term.proclaim("refused")
        assert term.value == "old"
        proxy.cut()  # it never arrived
        proxy.resume()

        async def reported() -> bool:
            with suppress(EtcdUnavailable):
                await term.grant.progress("note")
                return True
            return False

        await eventually(reported)
        leader = await Election("e", other).leader()
        assert leader and (leader.value, leader.owner.note) == ("old", "note")
