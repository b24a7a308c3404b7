"""Members in trouble that is not their death: disks that hang, one-way silence, defragmentation, replacement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from codomyrmex.concurrency import DistributedLock, Session
from codomyrmex.concurrency.etcd.transports.protocol import Delete
from codomyrmex.concurrency.health import renews_wrongly
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.agent import LIMIT
from tests.chaos.checker import crowds, overlaps, semaphore_violations, violations
from tests.chaos.members import Members, members
from tests.chaos.recorder import Recorder
from tests.cluster import Cluster, Member, cluster
from tests.helpers import eventually, gateway, queue_of

pytestmark = pytest.mark.cluster


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> str | None:
    given: str | None = request.config.getoption("--etcd-binary")
    return given


@pytest.fixture
async def three(binary: str | None) -> AsyncIterator[Cluster]:
    async with cluster(binary) as started:
        yield started


@asynccontextmanager
async def slow_disk(victims: Sequence[Member], seconds: float) -> AsyncIterator[None]:
    """Every fdatasync of these members takes so long."""
    delay = f"inject=fdatasync,fsync:delay_enter={int(seconds * 1_000_000)}"
    tracers = []
    for victim in victims:
        command = ("strace", "-qq", "-f", "-p", str(victim.pid), "-e", "trace=fdatasync,fsync", "-e", delay)
        tracers.append(await asyncio.create_subprocess_exec(*command, "-o", os.devnull))
    try:
        await asyncio.sleep(0.5)
        assert all(tracer.returncode is None for tracer in tracers)
        yield
    finally:
        for tracer in tracers:
            with contextlib.suppress(ProcessLookupError):
                tracer.send_signal(signal.SIGTERM)
            await tracer.wait()


async def _judge(fleet: Members, recorder: Recorder, *, beliefs: bool) -> None:
    """The promise about writes always; what holders believed where etcd allows it."""
    await fleet.end()
    await eventually(lambda: not violations(recorder.lock), 30)  # the leases of the ended run out
    await eventually(lambda: not semaphore_violations(recorder.semaphore), 30)
    assert not recorder.gaps
    if beliefs:
        assert overlaps(fleet.holds("lock")) == [] and crowds(fleet.holds("semaphore"), LIMIT) == []


async def _another_leads(three: Cluster, former: Member) -> None:
    """Wait for the effect of the fault: the other members follow another leader."""
    other = next(member for member in three.members if member is not former)
    known = gateway(other.endpoint, "cluster/member/list")["members"]
    [number] = [member["ID"] for member in known if member["name"] == former.name]

    def led() -> bool:
        with contextlib.suppress(OSError):
            return gateway(other.endpoint, "maintenance/status").get("leader", "0") not in (number, "0")
        return False

    await eventually(led, 15)


async def _more(fleet: Members, what: str, number: int, limit: float) -> None:
    before = len(fleet.said(what))
    await eventually(lambda: len(fleet.said(what)) > before + number, limit)


@pytest.mark.skipif(not shutil.which("strace"), reason="not run: a hanging disk needs strace")
async def test_a_leader_whose_disk_hangs_keeps_nobodys_trust(three: Cluster, namespace: str) -> None:
    """The clients are attached to it. On servers older than SPEC.md's table it renews leases that the new leader
    expires; there only the order of fenced writes is judged."""
    leader = await three.leader()
    watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0)
    async with watcher, members(three.endpoints_from(leader), namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        for _ in range(4):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 20, 20)
        version = (await core_of(watcher).transport.member(leader.endpoint)).version
        async with slow_disk([leader], 6):
            await _another_leads(three, leader)
            await _more(fleet, "lock", 20, 30)
            await _more(fleet, "semaphore", 20, 30)
            await asyncio.sleep(4)
        await _more(fleet, "lock", 20, 30)
        await _judge(fleet, recorder, beliefs=not renews_wrongly(version))


@pytest.mark.skipif(not shutil.which("strace"), reason="not run: a slow disk needs strace")
@pytest.mark.parametrize("count", [1, 2])
async def test_slow_disks_slow_the_fleet_and_no_more(three: Cluster, namespace: str, count: int) -> None:
    """On one follower, and on a majority; 100 ms for each write."""
    leader = await three.leader()
    followers = [member for member in three.members if member is not leader]
    watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60)
    async with watcher, members(three.endpoints, namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        for _ in range(4):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 10, 20)
        async with slow_disk(followers[:count], 0.1):
            await _more(fleet, "lock", 10, 40)
            await _more(fleet, "semaphore", 10, 40)
        await _judge(fleet, recorder, beliefs=True)


@pytest.mark.parametrize("deaf", [False, True], ids=["is not heard", "does not hear"])
async def test_a_leader_in_a_one_way_partition_stops_nobody(binary: str | None, namespace: str, deaf: bool) -> None:
    """Between members all goes through proxies, one before each. Streams are opened by those who listen."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(TcpProxy("127.0.0.1", 1)) for _ in range(3)]
        three = await stack.enter_async_context(cluster(binary, proxies=proxies))
        leader = await three.leader()
        number = three.members.index(leader)
        watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0)
        await stack.enter_async_context(watcher)
        fleet = await stack.enter_async_context(members(three.endpoints_from(leader), namespace))
        recorder = Recorder(watcher, namespace)
        for _ in range(3):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 20, 20)
        version = (await core_of(watcher).transport.member(leader.endpoint)).version
        for other, proxy in enumerate(proxies):
            if deaf and other != number:
                proxy.blackhole(up=False)  # nothing that the others say reaches anybody; the leader is heard
            elif not deaf and other == number:
                proxy.blackhole(up=False)  # nobody hears the leader
        if not deaf:
            await _another_leads(three, leader)
        await asyncio.sleep(4)
        for proxy in proxies:
            proxy.resume()
        await _more(fleet, "lock", 20, 30)
        await _more(fleet, "semaphore", 20, 30)
        await _judge(fleet, recorder, beliefs=not renews_wrongly(version))


async def test_a_member_that_defragments_again_and_again_stops_nobody(three: Cluster, namespace: str) -> None:
    first = three.members[0]
    watcher = Session(endpoints=three.endpoints, namespace="watcher", session_ttl=60)
    async with watcher, members(three.endpoints_from(first), namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        for _ in range(3):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 10, 20)
        defragmented = 0
        end = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < end:
            await asyncio.to_thread(gateway, first.endpoint, "maintenance/defragment")
            defragmented += 1
        assert defragmented > 3
        await _more(fleet, "lock", 20, 20)
        await _judge(fleet, recorder, beliefs=True)


async def test_a_member_is_replaced_under_holders_and_waiters(three: Cluster, namespace: str) -> None:
    """Its data are gone: it is removed, and another joins at its address."""
    settings = {"endpoints": three.endpoints, "namespace": namespace, "session_ttl": 6, "request_timeout": 2.0}
    async with Session(**settings) as one, Session(**settings) as two:
        lock = DistributedLock("x", one)
        grant = await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", two).acquire())
        waiter = (await queue_of(one, "x", 2))[1]
        lost, other = three.members[0], three.members[1]
        known = gateway(other.endpoint, "cluster/member/list")["members"]
        [number] = [member["ID"] for member in known if member["name"] == lost.name]
        await lost.kill()
        await three.leader()
        await eventually(lambda: _accepted(other, "cluster/member/remove", ID=number), 10)
        await eventually(lambda: _accepted(other, "cluster/member/add", peerURLs=[lost.peer]), 10)
        lost.become_new()
        await lost.start(three.members)
        await eventually(lambda: _serves(lost, namespace), 20)
        assert not grant.lost.is_set() and not waiting.done()
        await lock.release()
        assert (await asyncio.wait_for(waiting, 10)).token == waiter.create_revision


def _accepted(member: Member, path: str, **body: object) -> bool:
    """A cluster that has just lost a member may say "unhealthy" for a moment."""
    with contextlib.suppress(OSError):
        gateway(member.endpoint, path, **body)
        return True
    return False


async def _serves(member: Member, namespace: str) -> bool:
    with contextlib.suppress(Exception):
        async with Session(endpoints=member.endpoint, namespace=namespace, dial_timeout=1.0) as session:
            await core_of(session).transport.delete(Delete(b"/nothing"))
            return True
    return False
