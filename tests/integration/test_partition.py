"""Real partitions, between hosts that are network namespaces: the leader is cut off, or a host with holders is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from codomyrmex.concurrency import Session
from tests.chaos.agent import LIMIT
from tests.chaos.checker import crowds, overlaps, semaphore_violations, violations
from tests.chaos.members import members
from tests.chaos.recorder import Recorder
from tests.cluster import Cluster, cluster
from tests.helpers import eventually
from tests.network import Host, hosts, missing

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(missing() is not None, reason=f"not run: {missing()}")]


@pytest.fixture
def five() -> Iterator[list[Host]]:
    with hosts(5) as made:
        yield made


@pytest.fixture
async def three(five: list[Host], request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with cluster(request.config.getoption("--etcd-binary"), five[:3]) as started:
        yield started


async def test_a_leader_cut_off_from_everybody_stops_nobody(five: list[Host], three: Cluster, namespace: str) -> None:
    watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0)
    async with watcher, members(three.endpoints, namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        for host in (five[3], five[3], five[4], five[4]):
            await fleet.start("lock", "semaphore", host=host)
        await eventually(lambda: len(fleet.said("lock")) > 20, 20)
        leader = three.members.index(await three.leader())
        five[leader].cut()
        before = len(fleet.said("lock")), len(fleet.said("semaphore"))
        await eventually(lambda: len(fleet.said("lock")) > before[0] + 20, 30)
        await eventually(lambda: len(fleet.said("semaphore")) > before[1] + 20, 30)
        five[leader].heal()
        await asyncio.sleep(1)
        await fleet.end()
        await eventually(lambda: not violations(recorder.lock), 20)
        await eventually(lambda: not semaphore_violations(recorder.semaphore), 20)
    assert overlaps(fleet.holds("lock")) == [] and crowds(fleet.holds("semaphore"), LIMIT) == []


async def test_holders_on_a_host_that_is_cut_off_are_told_before_anybody_else_is_granted(
    five: list[Host], three: Cluster, namespace: str
) -> None:
    watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0)
    async with watcher, members(three.endpoints, namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        alone = [await fleet.start("lock", "semaphore", host=five[3]) for _ in range(2)]
        others = [await fleet.start("lock", "semaphore", host=five[4]) for _ in range(2)]
        await eventually(lambda: len(fleet.said("lock")) > 20, 20)
        for _ in range(2):
            five[3].cut()
            seen = sum(len(member.said) for member in others)
            await eventually(lambda n=seen: sum(len(member.said) for member in others) > n + 40, 20)
            five[3].heal()
            said = [len(member.said) for member in alone]
            await eventually(lambda s=said: all(len(m.said) > n + 3 for m, n in zip(alone, s, strict=True)), 30)
        await fleet.end()
        await eventually(lambda: not violations(recorder.lock), 20)
        await eventually(lambda: not semaphore_violations(recorder.semaphore), 20)
    assert overlaps(fleet.holds("lock")) == [] and crowds(fleet.holds("semaphore"), LIMIT) == []
