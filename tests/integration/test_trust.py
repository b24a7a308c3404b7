"""The end of trust at every moment of an acquisition, of a hold and of its end: nobody relies on what is not there."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdAuthError,
    EtcdUnavailable,
    Grant,
    LockLost,
    LockManager,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.etcd.commit import Committer, Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get, GetResult, Lease
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from tests.helpers import eventually, queue_of
from tests.integration.test_faults import through_proxy
from tests.stepping import AtStep

Acquire = Callable[[Session], Coroutine[Any, Any, Sequence[Grant]]]
Block = Callable[..., AbstractAsyncContextManager[Any]]


# While it acquires


async def lock(session: Session, **options: Any) -> Sequence[Grant]:
    return [await DistributedLock("x", session, **options).acquire(timeout=30)]


async def reader(session: Session, **options: Any) -> Sequence[Grant]:
    return [await LockManager(session).acquire("x", shared=True, **options)]


async def joint(session: Session, **options: Any) -> Sequence[Grant]:
    return await LockManager(session).acquire_all(["w", "x"], **options)


async def permits(session: Session, **options: Any) -> Sequence[Grant]:
    return [(await Semaphore("x", max_concurrent=2, session=session, **options).acquire(2)).grant]


async def tried_lock(session: Session, **options: Any) -> Sequence[Grant]:
    grant = await DistributedLock("x", session, **options).try_acquire()
    return [grant] if grant else []


async def tried_permits(session: Session) -> Sequence[Grant]:
    permit = await Semaphore("x", max_concurrent=2, session=session).try_acquire(2)
    return [permit.grant] if permit else []


ACQUIRED: dict[str, Acquire] = {
    "lock": lock,
    "reader": reader,
    "joint": joint,
    "permits": permits,
    "tried lock": tried_lock,
    "tried permits": tried_permits,
    **{f"{name} with max_hold": partial(f, max_hold=30) for name, f in [("lock", lock), ("permits", permits)]},
    **{
        f"{name} with lock_delay": partial(f, lock_delay=5)
        for name, f in [("lock", lock), ("reader", reader), ("joint", joint), ("tried lock", tried_lock)]
    },
}


class _ExpireAt(AtStep):
    """Runs a coroutine, and ends trust in its session at its ``step``-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int, session: Session) -> None:
        super().__init__(coroutine, step)
        self._session = session

    def strike(self) -> Generator[Any, None, None]:
        expire(self._session)
        yield from asyncio.sleep(0.01).__await__()  # its members are told


def expire(session: Session) -> None:
    """The end of a keepalive that gets no more answers, at once."""
    keepalive = core_of(session)._keepalive
    assert keepalive
    keepalive._trust.next_renewal, keepalive._trust.deadline = math.inf, 0.0
    keepalive._check_trust()


def renew(session: Session) -> None:
    """The next keepalive is answered."""
    keepalive = core_of(session)._keepalive
    assert keepalive
    keepalive._trust.next_renewal = 0.0


@pytest.fixture
async def member(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[Session]:
    """A session whose keepalives are far apart, so that none comes between by chance."""
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=60) as opened:
        yield opened


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("kind", ACQUIRED)
async def test_trust_that_ends_at_any_await_point_of_an_acquire_leaves_no_grant_without_trust(
    member: Session, other: Session, kind: str, contended: bool
) -> None:
    async with Semaphore("x", max_concurrent=2, session=other):
        pass
    for step in range(100):
        held = await joint(other) if contended else []
        blocker = await Semaphore("x", max_concurrent=2, session=other).acquire(2) if contended else None
        stepping = _ExpireAt(ACQUIRED[kind](member), step, member)

        async def run(stepping: _ExpireAt = stepping) -> Sequence[Grant]:
            return await stepping

        task = asyncio.create_task(run())
        await asyncio.wait({task}, timeout=0.02)
        for grant in held:
            await grant._entry.release()
        if blocker:
            await blocker.release()
        await asyncio.wait({task}, timeout=0.1)
        if task.done():
            assert all(grant.deadline() > 0 or grant.lost.is_set() for grant in task.result())
        renew(member)
        grants = await asyncio.wait_for(task, 5)
        assert all(grant.deadline() > 0 or grant.lost.is_set() for grant in grants)
        for grant in grants:
            await grant._entry.release()
        await eventually(lambda: _nobody_there(other))
        await core_of(member).trusted()
        if not stepping.reached:
            break
    assert step >= 1


async def _nobody_there(session: Session) -> bool:
    semaphore = await inspect.semaphore(core_of(session), "x")
    return not (await LockManager(session).locks() or semaphore.holders or semaphore.waiters)


async def test_trust_that_ends_between_the_second_write_and_the_grant_is_waited_for(
    etcd: EmbeddedEtcd, namespace: str, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=6) as (proxy, session):
        commit, written, go_on = Committer.commit, asyncio.Event(), asyncio.Event()

        async def commit_and_stop(committer: Committer, request: Request) -> Reply:
            reply = await commit(committer, request)
            if request.compares:  # the second write
                written.set()
                await go_on.wait()
            return reply

        monkeypatch.setattr(Committer, "commit", commit_and_stop)
        acquiring = asyncio.create_task(DistributedLock("x", session, lock_delay=20).acquire())
        await written.wait()
        proxy.blackhole()
        await eventually(lambda: not session.alive, 6)
        await asyncio.sleep(0.5)  # whoever held has been told
        go_on.set()
        await asyncio.sleep(0.2)
        assert not acquiring.done()
        proxy.resume()  # the lease still lives
        grant = await asyncio.wait_for(acquiring, 5)
        assert grant.deadline() > 0 and not grant.lost.is_set()
        assert (await queue_of(other, "x", 1))[0].create_revision == grant.token


async def test_a_waiter_keeps_its_place_while_its_session_is_not_trusted(member: Session, other: Session) -> None:
    holder = DistributedLock("x", other)
    await holder.acquire()
    waiting = asyncio.create_task(DistributedLock("x", member).acquire())
    waiter = (await queue_of(other, "x", 2))[1]
    expire(member)
    await asyncio.sleep(0.05)
    await holder.release()
    await asyncio.sleep(0.1)
    assert not waiting.done()
    renew(member)
    grant = await asyncio.wait_for(waiting, 2)
    assert grant.token == waiter.create_revision and grant.deadline() > 0


@pytest.mark.parametrize("kind", [name for name in ACQUIRED if name.startswith("tried")])
async def test_a_try_does_not_wait_for_trust_longer_than_for_an_answer(
    etcd: EmbeddedEtcd, namespace: str, other: Session, kind: str
) -> None:
    settings: dict[str, Any] = {"session_ttl": 60, "request_timeout": 0.3}
    async with Session(endpoints=etcd.endpoint, namespace=namespace, **settings) as member:
        expire(member)
        started = time.monotonic()
        with pytest.raises(EtcdUnavailable, match="lease was not renewed") as caught:
            await ACQUIRED[kind](member)
        assert time.monotonic() - started < 2
        assert caught.value.applied == "no" and caught.value.retryable
        await eventually(lambda: _nobody_there(other))
        renew(member)
        await core_of(member).trusted()
        assert await ACQUIRED[kind](member)


async def test_trust_that_is_renewed_before_its_end_was_noticed_is_told_all_the_same(
    member: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    keepalive = core_of(member)._keepalive
    assert keepalive
    answer = keepalive._client.renew

    def late(lease: int, limit: float) -> int:
        keepalive._trust.deadline = 0.0  # trust ends while the answer is on its way
        time.sleep(0.3)
        return answer(lease, limit)

    monkeypatch.setattr(keepalive._client, "renew", late)
    renew(member)
    await eventually(lambda: not member.alive)
    async with asyncio.timeout(3):
        grant = await DistributedLock("x", member).acquire()
    assert grant.deadline() > 0


async def test_a_longer_lease_that_came_late_is_not_relied_upon(
    etcd: EmbeddedEtcd, namespace: str, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end before trust in the session does, for that one is renewed meanwhile."""
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=2) as member:
        granted = core_of(member).transport.grant

        async def late(ttl: int) -> Lease:
            lease = await granted(ttl)
            await asyncio.sleep(1)
            return lease

        monkeypatch.setattr(core_of(member).transport, "grant", late)
        with pytest.raises(EtcdUnavailable, match="delayed lease came too late"):
            await DistributedLock("x", member, lock_delay=0.1).acquire()
        await queue_of(other, "x", 0)
        monkeypatch.undo()
        async with DistributedLock("x", member, lock_delay=0.1) as grant:
            assert grant.deadline() > 0


# While it holds


async def test_a_holder_looks_for_its_key_until_it_gets_an_answer(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is deleted before it watches it, and the first look fails."""
    get, refused = core_of(session).transport.get, []

    async def refuse_once(what: Get) -> GetResult:
        if not refused:
            refused.append(what)
            raise EtcdAuthError("permission denied", applied="no")
        return await get(what)

    grant = await DistributedLock("x", session, on_loss="notify").acquire()
    monkeypatch.setattr(core_of(session).transport, "get", refuse_once)
    await core_of(other).transport.delete(Delete(grant.key.encode()))
    await asyncio.wait_for(grant.lost.wait(), 3)
    assert refused and isinstance(grant.lost.reason, LockLost)


async def test_an_end_of_trust_that_no_thread_tells_is_noticed_all_the_same(member: Session) -> None:
    grant = await DistributedLock("x", member, on_loss="notify").acquire()
    keepalive = core_of(member)._keepalive
    assert keepalive
    keepalive.stop(revoke=False)
    await asyncio.to_thread(keepalive.join)
    keepalive._trust.deadline = 0.0
    await asyncio.wait_for(grant.lost.wait(), 2)
    assert "no keepalive was answered" in str(grant.lost.reason)


# At the end of a block


def the_lock(session: Session, **options: Any) -> AbstractAsyncContextManager[Any]:
    return DistributedLock("x", session, **options)


def the_reader(session: Session, **options: Any) -> AbstractAsyncContextManager[Any]:
    return LockManager(session).acquire("x", shared=True, **options)


def the_joint(session: Session, **options: Any) -> AbstractAsyncContextManager[Any]:
    return LockManager(session).acquire_all(["w", "x"], **options)


def the_semaphore(session: Session, **options: Any) -> AbstractAsyncContextManager[Any]:
    return Semaphore("x", max_concurrent=2, session=session, **options)


def the_permits(session: Session, **options: Any) -> AbstractAsyncContextManager[Any]:
    return Semaphore("x", max_concurrent=2, session=session, **options).hold(2)


BLOCKS: dict[str, Block] = {
    "lock": the_lock,
    "reader": the_reader,
    "joint": the_joint,
    "semaphore": the_semaphore,
    "permits": the_permits,
    "lock with max_hold": partial(the_lock, max_hold=60),
    "lock with lock_delay": partial(the_lock, lock_delay=1),
}


@pytest.mark.parametrize("kind", BLOCKS)
async def test_a_block_whose_lock_is_lost_because_etcd_is_away_ends_with_lock_lost_at_once(
    etcd: EmbeddedEtcd, namespace: str, other: Session, kind: str
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=3, request_timeout=2.0) as (proxy, session):
        cancelled = math.inf
        with pytest.raises(LockLost, match="no keepalive was answered") as caught:
            async with BLOCKS[kind](session):
                proxy.blackhole()
                try:
                    await asyncio.sleep(30)
                finally:
                    cancelled = time.monotonic()
        assert time.monotonic() - cancelled < 0.3
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        proxy.resume()
        await eventually(lambda: _nobody_there(other))  # the release has gone on


async def test_a_lock_lost_while_etcd_is_away_is_given_back_when_it_is_there_again(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=9, request_timeout=0.5) as (proxy, session):
        with pytest.raises(LockLost):
            async with DistributedLock("x", session):
                proxy.blackhole()
                await asyncio.sleep(30)
        proxy.resume()
        await queue_of(other, "x", 0, limit=2)
        await core_of(session).trusted()
        async with DistributedLock("x", session) as again:  # the session goes on
            assert again.deadline() > 0


@pytest.mark.parametrize("kind", BLOCKS)
async def test_a_block_that_ends_by_itself_while_etcd_is_away_has_succeeded(
    etcd: EmbeddedEtcd, namespace: str, other: Session, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=0.5) as (proxy, session):
        async with BLOCKS[kind](session):
            proxy.blackhole()
        assert "release" in caplog.text and "goes on" in caplog.text
        proxy.resume()
        await eventually(lambda: _nobody_there(other))
        assert session.alive


@pytest.mark.parametrize("kind", BLOCKS)
async def test_a_block_that_ran_past_its_trust_unnoticed_ends_with_lock_lost(
    member: Session, other: Session, kind: str
) -> None:
    """The process was stopped in a block that awaits nothing."""
    with pytest.raises(LockLost, match="no keepalive was answered"):
        async with BLOCKS[kind](member):
            assert core_of(member)._keepalive
            core_of(member)._keepalive._trust.next_renewal, core_of(member)._keepalive._trust.deadline = math.inf, 0.0
    renew(member)
    await eventually(lambda: _nobody_there(other))


async def test_a_block_that_blocks_the_event_loop_beyond_max_hold_ends_with_lock_lost(session: Session) -> None:
    with pytest.raises(LockLost, match="max_hold"):
        async with DistributedLock("x", session, max_hold=0.2):
            time.sleep(0.3)


@pytest.mark.parametrize("kind", BLOCKS)
async def test_trust_that_ends_at_any_await_point_of_a_block_ends_it_well_or_with_lock_lost(
    member: Session, other: Session, kind: str
) -> None:
    async def cycle(passed: list[float]) -> None:
        async with BLOCKS[kind](member) as got:
            await asyncio.sleep(0)
            passed.append(min(grant.deadline() for grant in (got if isinstance(got, tuple) else [got])))

    outcomes: set[str] = set()
    for step in range(100):
        passed: list[float] = []
        stepping = _ExpireAt(cycle(passed), step, member)

        async def run(stepping: _ExpireAt = stepping) -> None:
            await stepping

        task = asyncio.create_task(run())
        await asyncio.wait({task}, timeout=0.1)
        renew(member)
        try:
            await asyncio.wait_for(task, 5)
        except LockLost:
            outcomes.add("lost")
            assert passed in ([], [0.0])
        else:
            outcomes.add("passed")
            assert passed[0] > 0
        await eventually(lambda: _nobody_there(other))
        await core_of(member).trusted()
        if not stepping.reached:
            break
    assert outcomes == {"lost", "passed"} and step >= 3


async def test_an_error_of_the_body_comes_through_while_etcd_is_away(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=0.5) as (proxy, session):
        with pytest.raises(RuntimeError, match="mine"):
            async with DistributedLock("x", session):
                proxy.blackhole()
                raise RuntimeError("mine")


@pytest.mark.parametrize("kind", ["lock", "joint", "permits"])
async def test_an_error_of_the_body_comes_through_when_trust_ended_under_it(
    etcd: EmbeddedEtcd, namespace: str, kind: str
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=2, request_timeout=1.0) as (proxy, session):
        with pytest.raises(RuntimeError, match="mine") as caught:
            async with BLOCKS[kind](session):
                proxy.blackhole()
                try:
                    await asyncio.sleep(30)
                finally:
                    raise RuntimeError("mine")
        assert "was lost while this happened: no keepalive was answered" in caught.value.__notes__[0]
        lost = caught.value.__context__
        assert isinstance(lost, LockLost) and isinstance(lost.__cause__, asyncio.CancelledError)


async def test_a_block_that_is_only_notified_ends_in_peace(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with (
        through_proxy(etcd, namespace, session_ttl=2, request_timeout=1.0) as (proxy, session),
        DistributedLock("x", session, on_loss="notify") as grant,
    ):
        proxy.blackhole()
        await grant.lost.wait()


async def test_a_release_says_that_etcd_is_away_and_goes_on(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=0.5) as (proxy, session):
        manager = LockManager(session)
        lock = DistributedLock("a", session)
        await lock.acquire()
        grant = await manager.acquire("b")
        permit = await Semaphore("x", max_concurrent=1, session=session).acquire()
        proxy.blackhole()
        releases = lock.release(), manager.release(grant), permit.release()
        results = await asyncio.gather(*releases, return_exceptions=True)
        assert all(isinstance(result, EtcdUnavailable) for result in results)
        assert not lock.held and grant.deadline() == 0 and session.alive
        proxy.resume()
        await eventually(lambda: _nobody_there(other))


async def test_the_release_of_what_was_lost_does_nothing_also_while_etcd_is_away(
    etcd: EmbeddedEtcd, namespace: str
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=2, request_timeout=1.0) as (proxy, session):
        manager = LockManager(session)
        lock = DistributedLock("a", session)
        await lock.acquire()
        grant, *more = await manager.acquire_all(["b", "c"])
        permit = await Semaphore("x", max_concurrent=1, session=session).acquire()
        proxy.blackhole()
        await grant.lost.wait()
        started = time.monotonic()
        await lock.release()
        await permit.release()
        for each in (grant, *more):
            await manager.release(each)
        assert time.monotonic() - started < 0.5


async def test_a_hold_that_is_over_while_etcd_stands_still_ends_with_lock_lost(
    etcd: EmbeddedEtcd, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=0.5) as (proxy, session):
        lock = DistributedLock("y", session, max_hold=0.2)
        grant = await lock.acquire()
        with pytest.raises(LockLost, match="max_hold"):
            async with DistributedLock("x", session, max_hold=0.2):
                proxy.blackhole()
                await asyncio.sleep(30)
        assert grant.lost.is_set() and session.alive
        await lock.release()  # of what was lost: no error
        assert "not confirmed" not in caplog.text


async def test_a_permit_s_block_is_the_task_that_entered_it(session: Session) -> None:
    semaphore = Semaphore("x", max_concurrent=1, session=session, max_hold=0.5)
    permit = await asyncio.create_task(semaphore.acquire())
    with pytest.raises(LockLost, match="max_hold"):
        async with permit:
            await asyncio.sleep(2)
            pytest.fail("the block was not cancelled")


async def test_a_session_that_closes_under_a_release_ends_it_without_an_error(
    etcd: EmbeddedEtcd, namespace: str
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=10.0) as (proxy, session):
        manager = LockManager(session)
        grants = [await manager.acquire(f"x{number}") for number in range(4)]
        joined = await manager.acquire_all(["a", "b"])
        proxy.blackhole()
        under_way = asyncio.create_task(manager.release(grants[0]))
        await asyncio.sleep(0.1)
        queued = [asyncio.create_task(manager.release(grant)) for grant in (*grants[1:], *joined)]
        await asyncio.sleep(0.1)
        await session.close()
        assert await asyncio.gather(under_way, *queued) == [None] * 6
