"""Locks between real processes that are killed, stopped, blocked and forked."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any, Literal

import pytest

from codomyrmex.concurrency import (
    ConcurrencyError,
    DistributedLock,
    EmbeddedEtcd,
    EtcdSettings,
    LockManager,
    Session,
    UsedElsewhere,
)
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.session import core_of
from tests.forks import in_child
from tests.helpers import entries, queue_of
from tests.integration.fleet import fleet

pytestmark = pytest.mark.long

TTL = 3.0


async def test_eight_processes_are_served_in_order_of_arrival(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        lock = DistributedLock("x", session)
        await lock.acquire()
        agents = await asyncio.gather(*(members.start("once", "x", 0.01) for _ in range(8)))
        await queue_of(session, "x", 9, limit=30)
        arrived = [kv.create_revision for kv in (await entries(session, "x"))[1:]]
        await lock.release()
        said = await asyncio.gather(*(agent.rest() for agent in agents))
    grants = sorted((line for lines in said for line in lines if line["event"] == "granted"), key=lambda s: s["at"])
    ends = sorted((line for lines in said for line in lines if line["event"] == "releasing"), key=lambda s: s["at"])
    assert [grant["token"] for grant in grants] == arrived
    assert [end["token"] for end in ends] == arrived
    assert all(end["at"] <= grant["at"] for end, grant in zip(ends, grants[1:], strict=False))


async def test_processes_that_compete_exclude_each_other_and_tokens_rise(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        agents = await asyncio.gather(*(members.start("cycles", "x", 25) for _ in range(4)))
        said = await asyncio.gather(*(agent.rest() for agent in agents))
    counted = sorted((line["count"], line["token"]) for lines in said for line in lines if line["event"] == "counted")
    assert [count for count, _ in counted] == list(range(1, 101))  # no update was lost
    tokens = [token for _, token in counted]
    assert tokens == sorted(set(tokens))
    assert await entries(session, "x") == []


async def test_a_killed_holder_is_followed_within_its_ttl_and_a_second(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        holder = await members.start("hold")
        before = await holder.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        await queue_of(session, "x", 2)
        holder.process.kill()
        killed = time.monotonic()
        grant = await asyncio.wait_for(waiting, TTL + 2)
        assert time.monotonic() - killed <= TTL + 1
        assert grant.token > before["token"]
        assert len(await entries(session, "x")) == 1
        leases = await core_of(session).transport.get(
            Get(core_of(session).layout.leases, core_of(session).layout.leases[:-1] + b"0")
        )
        assert [core_of(session).layout.lease_of(kv.key) for kv in leases.kvs] == [session.id]


async def test_a_waiter_killed_in_mid_queue_harms_nobody(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    async with fleet(etcd, namespace) as members:
        lock = DistributedLock("x", session)
        await lock.acquire()
        middle = await members.start("once")
        await queue_of(session, "x", 2, limit=15)
        last = asyncio.create_task(DistributedLock("x", session).acquire())
        await queue_of(session, "x", 3)
        middle.process.kill()
        await queue_of(session, "x", 2, limit=TTL + 2)
        await asyncio.sleep(0.2)
        assert not last.done()
        await lock.release()
        await asyncio.wait_for(last, 2)


async def test_a_stopped_holder_is_told_on_waking_and_its_late_write_refused(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        holder = await members.start("hold")
        before = await holder.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        await queue_of(session, "x", 2)
        holder.process.send_signal(signal.SIGSTOP)
        grant = await asyncio.wait_for(waiting, TTL + 2)
        assert grant.token > before["token"]
        await grant.put(f"/{namespace}/register", "new holder")
        holder.process.send_signal(signal.SIGCONT)
        woken = time.monotonic()
        lost = await holder.until("lost")
        assert lost["at"] - woken < 1.0
        assert (await holder.next())["event"] == "late write refused"
        assert await grant.get(f"/{namespace}/register") == b"new holder"


async def test_a_blocked_event_loop_keeps_its_lock_for_three_ttls(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with fleet(etcd, namespace) as members:
        holder = await members.start("block", "x", 3 * TTL)
        await holder.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        telling = asyncio.create_task(holder.until("still held", limit=4 * TTL))
        await asyncio.sleep(3 * TTL - 2)
        assert not waiting.done()
        held = await telling
        assert not held["lost"] and held["deadline"] > 0
        await asyncio.wait_for(waiting, 3)


async def test_a_process_that_exits_while_holding_gives_its_lease_back(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    code = (
        "import asyncio\n"
        "from codomyrmex.concurrency import DistributedLock\n"
        "async def main():\n"
        "    await DistributedLock('x').acquire()\n"
        "asyncio.run(main())\n"
    )
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
        "CODOMYRMEX_ETCD_SESSION_TTL": "60",
    }
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert time.monotonic() - started < 15
    await queue_of(session, "x", 0, limit=1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("transport", ["native", "gateway"])
async def test_a_forked_child_has_a_session_of_its_own_and_its_parent_goes_on(
    etcd: EmbeddedEtcd, namespace: str, transport: Literal["native", "gateway"]
) -> None:
    settings = EtcdSettings(endpoints=etcd.endpoint, namespace=namespace, transport=transport, session_ttl=2)
    async with Session(settings) as session, DistributedLock("x", session) as grant:

        async def work() -> list[Any]:
            with pytest.raises(UsedElsewhere, match="make a new Session here"):
                await DistributedLock("y", session).acquire()
            async with Session(settings) as own, DistributedLock("y", own) as ours:
                held = await DistributedLock("x", own).try_acquire()
                return [ours.token, held is None, session.id != own.id]

        token, refused, its_own = await asyncio.to_thread(in_child, lambda: asyncio.run(work()))
        assert token > grant.token and refused and its_own
        await asyncio.sleep(1.5)
        assert not grant.lost.is_set() and session.alive
        assert await grant.put(f"/{namespace}/file", "still ours") > 0


def _told_in_child(inherited: Session) -> list[str]:
    """The error in a forked child at its first step. The child runs no event loop, which gRPC's leftovers may crash."""
    told = []
    for attempt in (inherited.open, lambda: Session(endpoints="http://127.0.0.1:1", transport="grpc").open()):
        try:
            attempt().send(None)
        except ConcurrencyError as error:
            told.append(str(error))
    return told


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_with_grpc_a_forked_child_is_told_at_once_and_its_parent_unharmed(
    etcd: EmbeddedEtcd, namespace: str
) -> None:
    async with (
        Session(endpoints=etcd.endpoint, namespace=namespace, transport="grpc") as session,
        DistributedLock("x", session) as grant,
    ):
        inherited, own = in_child(lambda: _told_in_child(session))
        assert "belongs to process" in inherited
        assert "'spawn' or 'forkserver'" in own
        await asyncio.sleep(1.5)
        assert not grant.lost.is_set() and session.alive
        assert [info.name for info in await LockManager(session).locks()] == ["x"]
