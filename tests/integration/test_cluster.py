"""Three real members: leaders that die or hang, rolling restarts, clients cut off from one of them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import DistributedLock, Session
from codomyrmex.concurrency.health import renews_wrongly
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.agent import LIMIT
from tests.chaos.checker import crowds, overlaps, semaphore_violations, violations
from tests.chaos.members import members
from tests.chaos.recorder import Recorder
from tests.cluster import Cluster, cluster
from tests.helpers import eventually, queue_of

pytestmark = pytest.mark.cluster


@pytest.fixture
async def three(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with cluster(request.config.getoption("--etcd-binary")) as started:
        yield started


@pytest.mark.parametrize("fault", ["leader killed", "leader stopped"])
async def test_work_goes_on_after_an_election_and_no_grant_is_lost_or_doubled(
    three: Cluster, namespace: str, fault: str
) -> None:
    async with (
        Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0) as session,
        members(three.endpoints, namespace) as fleet,
    ):
        recorder = Recorder(session, namespace)
        for _ in range(4):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 20 and len(fleet.said("semaphore")) > 20, 20)
        leader = await three.leader()
        version = (await core_of(session).transport.member(leader.endpoint)).version
        if fault == "leader killed":
            await leader.kill()
        else:
            leader.send(signal.SIGSTOP)
        before = len(fleet.said("lock")), len(fleet.said("semaphore"))
        await eventually(lambda: len(fleet.said("lock")) > before[0] + 20, 30)
        await eventually(lambda: len(fleet.said("semaphore")) > before[1] + 20, 30)
        if fault == "leader killed":
            await leader.start(three.members)
        else:
            leader.send(signal.SIGCONT)
        await asyncio.sleep(1)
        await fleet.end()
        await eventually(lambda: not violations(recorder.lock), 20)  # the leases of the killed run out
        await eventually(lambda: not semaphore_violations(recorder.semaphore), 20)
        assert not recorder.gaps
        if fault == "leader killed" or not renews_wrongly(version):  # see SPEC.md, servers
            assert overlaps(fleet.holds("lock")) == [] and crowds(fleet.holds("semaphore"), LIMIT) == []


async def test_a_rolling_restart_takes_no_lock_and_no_place(three: Cluster, namespace: str) -> None:
    settings = {"endpoints": three.endpoints, "namespace": namespace, "session_ttl": 15, "request_timeout": 3.0}
    async with Session(**settings) as one, Session(**settings) as two:
        lock = DistributedLock("x", one)
        grant = await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", two).acquire())
        waiter = (await queue_of(one, "x", 2))[1]
        for member in three.members:
            await three.restart(member)
            await three.leader()
        assert not grant.lost.is_set() and not waiting.done()
        await lock.release()
        assert (await asyncio.wait_for(waiting, 10)).token == waiter.create_revision


@pytest.mark.usefixtures("first_endpoint")
async def test_a_client_cut_off_from_its_member_goes_on_with_another(three: Cluster, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        proxies = []
        for member in three.members:
            address = urlsplit(member.endpoint)
            proxies.append(await stack.enter_async_context(TcpProxy(address.hostname, address.port)))
        endpoints = ",".join(proxy.endpoint for proxy in proxies)
        settings = {"namespace": namespace, "session_ttl": 6, "request_timeout": 1.0}
        session = await stack.enter_async_context(Session(endpoints=endpoints, **settings))
        other = await stack.enter_async_context(Session(endpoints=three.endpoints, **settings))
        mine, theirs = DistributedLock("mine", session), DistributedLock("theirs", other)
        grant = await mine.acquire()
        await theirs.acquire()
        waiting = asyncio.create_task(DistributedLock("theirs", session).acquire())
        await queue_of(other, "theirs", 2)
        proxies[0].blackhole()
        await asyncio.sleep(7)  # longer than the lease
        assert session.alive and not grant.lost.is_set() and not waiting.done()
        await theirs.release()
        await asyncio.wait_for(waiting, 5)
        proxies[0].resume()
