"""The past of locks as etcd tells it: it equals what the owners themselves wrote down, and says where it begins."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdUnavailable,
    InvalidName,
    LockManager,
    Session,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Put, WatchMessage, WatchRequest
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue import past
from tests.helpers import eventually, gateway, queue_of, revoke
from tests.integration.fleet import fleet

SLACK = timedelta(seconds=1)


@pytest.fixture
async def fresh() -> AsyncIterator[EmbeddedEtcd]:
    """An etcd of its own, whose history is whole."""
    async with EmbeddedEtcd() as server:
        yield server


async def compact(etcd: EmbeddedEtcd, revision: int) -> None:
    await asyncio.to_thread(gateway, etcd.endpoint, "kv/compaction", revision=str(revision), physical=True)


async def revision_of(session: Session) -> int:
    return (await core_of(session).transport.txn((), (Put(b"/elsewhere", b""),))).revision


async def test_it_equals_what_processes_wrote_down_themselves(etcd: EmbeddedEtcd, namespace: str) -> None:
    """Three take turns, one is killed, and one has the lock taken away."""
    async with fleet(etcd, namespace) as members, Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        manager = LockManager(session)
        log: list[tuple[int, str]] = []
        counting = [await members.start("cycles", argument=3) for _ in range(3)]
        for agent in counting:
            log += [(said["token"], "released") for said in await agent.rest() if said["event"] == "counted"]
        killed = await members.start("hold")
        log.append(((await killed.until("granted"))["token"], "expired"))
        forced = await members.start("hold")
        await queue_of(session, "x", 2, 15)
        killed.process.kill()
        log.append(((await forced.until("granted"))["token"], "forced"))
        await eventually(lambda: _recorded(manager), 15)
        await manager.force_release("x", reason="it is gone")
        async with manager.acquire("x") as grant:
            log.append((grant.token, "held"))
            found = await manager.history("x")
    assert [(one.token, one.how) for one in found.holds] == sorted(log)
    (by_force,) = (one for one in found.holds if one.how == "forced")
    assert by_force.forced and by_force.forced.reason == "it is gone" and by_force.ended_at == by_force.forced.at
    assert by_force.waited and by_force.held is not None and by_force.held > 0.4
    revisions = [(one.granted_revision, one.ended_revision) for one in found.holds]
    assert all(end and began and end <= began for (_, end), (began, _) in itertools.pairwise(revisions))


async def test_times_are_those_of_the_owners_and_else_bounds(session: Session, other: Session) -> None:
    manager = LockManager(session)
    began = datetime.now(UTC)
    async with manager.acquire("x"):
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", 2)
        await asyncio.sleep(0.2)
    await waiting
    await asyncio.sleep(1)  # it records how long it has waited
    held = datetime.now(UTC)
    await eventually(lambda: _recorded(manager))
    await LockManager(other).force_release("x", reason="over")
    async with manager.acquire("y"):
        first, second = (await manager.history("x")).holds
    assert began - SLACK < first.granted_at < first.ended_at < held  # type: ignore[operator]
    assert first.ended_at == second.granted_at and first.waited == 0 and second.waited > 0.1  # type: ignore[operator]
    assert first.held == pytest.approx(second.waited, abs=1)
    assert second.ended_before and second.ended_before > held - SLACK


async def _recorded(manager: LockManager) -> bool:
    info = await manager.info("x")
    return bool(info and info.holders[0].waited is not None)


async def test_readers_paths_reservations_and_waiters_that_gave_up(session: Session, other: Session) -> None:
    manager, second = LockManager(session), LockManager(other)
    async with manager.acquire("x", shared=True) as one, second.acquire("x", shared=True) as two:
        assert await DistributedLock("x", other).try_acquire() is None
        waiting = asyncio.create_task(second.lock("x").acquire())
        await queue_of(session, "x", 3)
        waiting.cancel()
        await queue_of(session, "x", 2)
    reservation = await manager.reserve("x", paths=["src/"], tree="x", ttl=10)
    async with second.acquire_paths(["docs/"], tree="x") as path:
        await reservation.release()
    expired = await manager.reserve("x", ttl=60)
    (lease,) = [int(found.lease, 16) for found in await manager.reservations()]
    await revoke(session, lease)
    locks, tree = await manager.history("x"), await manager.history("x", kind="path")
    assert [(hold.token, hold.how, hold.owner.shared) for hold in locks.holds] == [
        (one.token, "released", True),
        (two.token, "released", True),
        (reservation.token, "released", False),
        (expired.token, "expired", False),
    ]
    assert [owner.session for owner in locks.waits] == [f"{other.id:016x}"]
    assert [(hold.token, hold.how, hold.owner.paths, hold.kind) for hold in tree.holds] == [
        (reservation.token, "released", ("src/",), "path"),
        (path.token, "released", ("docs/",), "path"),
    ]


async def test_each_forced_release_is_told_since_the_last_compaction(fresh: EmbeddedEtcd) -> None:
    """etcd keeps one record a name. The earlier ones are its former versions."""
    async with Session(endpoints=fresh.endpoint, session_ttl=3) as session:
        manager, revisions = LockManager(session), []
        for reason in ("one", "two", "three"):
            await manager.acquire("x", on_loss="notify")
            await manager.force_release("x", reason=reason)
            revisions.append(await revision_of(session))
        whole = await manager.history("x")
        await compact(fresh, revisions[0])
        rest = await manager.history("x")
    assert [one.forced and one.forced.reason for one in whole.holds] == ["one", "two", "three"]
    assert [one.forced and one.forced.reason for one in rest.holds] == ["two", "three"]
    assert {one.how for one in whole.holds} == {"forced"}


async def test_foreign_clients_have_a_past_too(session: Session) -> None:
    """``etcdctl lock`` writes neither a value nor the key of its lease, so its end cannot be told from a release."""
    key = core_of(session).layout.queue("x") + b"%x" % session.id
    joined = await core_of(session).transport.txn((), (Put(key, b"", session.id),))
    await core_of(session).transport.txn((), (Delete(key),))
    (hold,) = (await LockManager(session).history("x")).holds
    assert (hold.token, hold.owner.host, hold.how, hold.granted_at) == (joined.revision, "", "released", None)


async def test_a_name_that_never_was_has_no_past_and_an_impossible_one_is_refused(session: Session) -> None:
    manager = LockManager(session)
    never = await manager.history("never")
    assert (never.name, never.holds, never.waits) == ("never", (), ())
    with pytest.raises(InvalidName):
        await manager.history("a\0b")


async def test_it_begins_at_the_last_compaction(fresh: EmbeddedEtcd) -> None:
    async with Session(endpoints=fresh.endpoint, session_ttl=3) as session:
        manager = LockManager(session)
        async with manager.acquire("x"):
            pass
        whole = await manager.history("x")
        assert whole.begins_at == 1 and [hold.how for hold in whole.holds] == ["released"]
        grant = await manager.acquire("x")
        revision = await revision_of(session)
        await compact(fresh, revision)
        await manager.release(grant)
        async with manager.acquire("x") as last:
            found = await manager.history("x")
    assert found.begins_at == revision
    assert [(one.token, one.how) for one in found.holds] == [(grant.token, "released"), (last.token, "held")]
    assert [one.granted_revision for one in found.holds] == [None, last.token]


async def test_a_dead_holder_is_lost_although_its_session_ended_before_the_history_begins(fresh: EmbeddedEtcd) -> None:
    async with Session(endpoints=fresh.endpoint, session_ttl=3) as session:
        manager = LockManager(session)
        dead = await Session(endpoints=fresh.endpoint, session_ttl=3).open()
        await LockManager(dead).acquire("x", lock_delay=1, on_loss="notify")
        await revoke(session, dead.id)
        await compact(fresh, await revision_of(session))
        (entry,) = await queue_of(session, "x", 1)
        await revoke(session, entry.lease)
        assert [one.how for one in (await manager.history("x")).holds] == ["lost"]
        await dead.close()


async def test_a_compaction_while_it_reads_begins_the_history_anew(
    fresh: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch is told of the compaction; or the reading at the compaction's revision meets another one."""
    async with Session(endpoints=fresh.endpoint, session_ttl=3) as session:
        manager = LockManager(session)
        for _ in range(3):
            async with manager.acquire("x"):
                pass
        await compact(fresh, 3)
        read_base, compactions = past._base, []

        async def compacting(core: SessionCore, queue: bytes, revision: int) -> object:
            if len(compactions) < 2:
                compactions.append(await revision_of(session))
                await compact(fresh, compactions[-1])
            return await read_base(core, queue, revision)

        monkeypatch.setattr(past, "_base", compacting)
        found = await manager.history("x")
    assert (found.begins_at, found.holds) == (compactions[-1], ())


async def test_history_that_is_compacted_twice_begins_at_the_second_time(
    fresh: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second compaction is by one revision only, so that etcd would serve the changes behind the first one."""
    async with Session(endpoints=fresh.endpoint, session_ttl=3) as session:
        manager = LockManager(session)
        async with manager.acquire("x") as grant:
            compacted = await revision_of(session)
            await compact(fresh, compacted)
            read_base, readings = past._base, []

            async def compacting(core: SessionCore, queue: bytes, revision: int) -> object:
                if not readings:
                    await compact(fresh, compacted + 1)
                readings.append(revision)
                return await read_base(core, queue, revision)

            monkeypatch.setattr(past, "_base", compacting)
            found = await manager.history("x")
    assert readings == [compacted, compacted + 1] and found.begins_at == compacted + 1
    assert [one.token for one in found.holds] == [grant.token]


async def test_many_revisions_and_large_values_come_whole(session: Session) -> None:
    """etcd serves a watcher that lags in batches of 1,000 revisions, and a batch of more than 1.5 MiB in fragments."""
    manager, transport = LockManager(session), core_of(session).transport
    async with manager.acquire("x", metadata={"big": "x" * 60_000}) as first:
        for number in range(40):
            await first.progress(str(number))
    noise = core_of(session).layout.queue("noise") + b"%016x-0" % session.id
    for number in range(1200):
        await transport.txn((), (Put(noise, b"%d" % number, session.id),))
    async with manager.acquire("x") as last:
        holds = (await manager.history("x")).holds
    assert [(one.token, one.how) for one in holds] == [(first.token, "released"), (last.token, "held")]
    assert holds[0].owner.note == "39" and len(holds[0].owner.metadata["big"]) == 60_000


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedEtcd]:
    """An etcd whose user may use /fleet/ alone."""
    server = EmbeddedEtcd()
    server.start_sync()

    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    for user in ("root", "agent"):
        gateway(server.endpoint, "auth/user/add", name=user, password="secret")
        gateway(server.endpoint, "auth/role/add", name=user)
        gateway(server.endpoint, "auth/user/grant", user=user, role=user)
    permission = {"permType": 2, "key": b64("/fleet/"), "range_end": b64("/fleet0")}
    gateway(server.endpoint, "auth/role/grant", name="agent", perm=permission)
    gateway(server.endpoint, "auth/enable")
    yield server
    server.stop_sync()


async def test_a_role_for_the_namespace_is_enough(guarded: EmbeddedEtcd) -> None:
    async with Session(endpoints=guarded.endpoint, namespace="fleet", username="agent", password="secret") as session:
        manager = LockManager(session)
        async with manager.acquire("x") as grant:
            assert [one.token for one in (await manager.history("x")).holds] == [grant.token]


async def test_an_etcd_that_looks_through_many_revisions_may_be_silent_for_longer(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is 0.2 s, and a second more for each 2,000 revisions."""
    core = core_of(session)
    watch, noise = core.transport.watch, core.layout.queue("noise") + b"%016x-0" % session.id
    while await revision_of(session) < 2000:
        await core.transport.txn((), (Put(noise, b"", session.id),))

    async def slow() -> object:
        stream: Any = await watch()
        receive = stream.receive

        async def late() -> object:
            await asyncio.sleep(0.5)
            stream.receive = receive
            return await receive()

        stream.receive = late
        return stream

    monkeypatch.setattr(core.transport, "watch", slow)
    core.settings = core.settings.model_copy(update={"request_timeout": 0.2})
    assert (await LockManager(session).history("x")).holds == ()


async def test_an_etcd_that_falls_silent_is_an_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        endpoint = ""

        async def create(self, request: WatchRequest) -> None: ...

        async def receive(self) -> WatchMessage:
            await asyncio.Event().wait()
            raise AssertionError

        def close(self) -> None: ...

    async def silent() -> Silent:
        return Silent()

    monkeypatch.setattr(core_of(session).transport, "watch", silent)
    monkeypatch.setattr(past, "_PACE", 10**9)
    core_of(session).settings = core_of(session).settings.model_copy(update={"request_timeout": 0.2})
    with pytest.raises(EtcdUnavailable, match="told nothing more of its history"):
        await LockManager(session).history("x")
