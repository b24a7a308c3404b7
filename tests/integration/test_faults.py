"""Lost answers, stragglers, cancels at the worst moment, an etcd that goes away: nothing doubled or left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import (
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    EtcdUnavailable,
    Grant,
    LockManager,
    LockTimeout,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import entries, eventually, queue_of
from tests.stepping import AtStep


@asynccontextmanager
async def through_proxy(etcd: EmbeddedEtcd, namespace: str, **settings: Any) -> AsyncIterator[tuple[TcpProxy, Session]]:
    address = urlsplit(etcd.endpoint)
    async with TcpProxy(address.hostname, address.port) as proxy:
        settings = {"session_ttl": 6, "request_timeout": 5.0, **settings}
        async with Session(endpoints=proxy.endpoint, namespace=namespace, **settings) as session:
            yield proxy, session


async def test_a_lost_answer_to_an_acquire_leaves_no_ghost_and_no_double_grant(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        proxy.drop_next_answer(core_of(session).layout.queue("x"))
        async with DistributedLock("x", session) as grant:
            assert proxy.dropped == 1
            assert [kv.create_revision for kv in await entries(other, "x")] == [grant.token]
            assert await DistributedLock("x", other).try_acquire() is None
        await queue_of(other, "x", 0)


async def test_a_lost_answer_in_a_shared_transaction_is_settled_for_everybody(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        names = [f"n{number}" for number in range(20)]
        proxy.drop_next_answer(core_of(session).layout.queue("n19"))
        grants = await asyncio.gather(*(DistributedLock(name, session).acquire() for name in names))
        assert proxy.dropped == 1
        for name, grant in zip(names, grants, strict=True):
            assert [kv.create_revision for kv in await entries(other, name)] == [grant.token]


async def test_a_lost_answer_to_a_release_is_a_release(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        lock = DistributedLock("x", session)
        await lock.acquire()
        proxy.drop_next_answer(core_of(session).layout.queue("x"))
        try:
            await lock.release()
        except EtcdUnavailable as error:
            assert error.applied == "unknown"  # told so; the removal goes on by itself
        assert proxy.dropped == 1
        async with asyncio.timeout(2):
            grant = await DistributedLock("x", other).acquire()
        again = asyncio.create_task(lock.acquire())
        await queue_of(other, "x", 2)
        await asyncio.sleep(0.5)  # a repeated removal must not hit the newer entries
        assert (await entries(other, "x"))[0].create_revision == grant.token
        assert len(await entries(other, "x")) == 2
        again.cancel()


async def test_what_a_caller_was_told_to_be_in_doubt_is_not_carried_out_afterwards(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace, request_timeout=0.4, session_ttl=30) as (proxy, session):
        proxy.blackhole()
        with pytest.raises(EtcdUnavailable) as caught:
            await DeadLetterQueue("q", session=session).add(operation="x", args={}, error="e")
        assert caught.value.applied == "unknown"
        proxy.cut()  # it never arrived
        proxy.resume()
        await eventually(lambda: _works(session))  # so the doubt is settled
        assert await DeadLetterQueue("q", session=other).count() == 0


async def _works(session: Session) -> bool:
    with suppress(EtcdUnavailable):
        async with DistributedLock("any", session):
            return True
    return False


async def test_a_straggler_is_fenced_off(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    """The connection breaks, the transaction arrives at etcd a second later: it must not commit any more."""
    async with through_proxy(etcd, namespace) as (proxy, session):
        proxy.delay_next_request(core_of(session).layout.queue("x"), 1.0)
        async with (
            core_of(session).member(LocalQueues).recording,
            DistributedLock("x", session) as grant,
        ):  # the holder writes nothing more meanwhile
            before = [kv.create_revision for kv in await entries(other, "x")]
            assert before == [grant.token]
            delivered = proxy.delivered
            await eventually(lambda: proxy.delivered > delivered or proxy.delivered, 3)
            await asyncio.sleep(1.3)
            after = await entries(other, "x")
            assert [kv.create_revision for kv in after] == [grant.token]
            assert after[0].version == 1  # not even written over
        await queue_of(other, "x", 0)
        await asyncio.sleep(0.3)
        assert await entries(other, "x") == []


async def test_a_cancelled_acquire_whose_answer_is_lost_leaves_no_key(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        proxy.drop_next_answer(core_of(session).layout.queue("x"))
        task = asyncio.create_task(DistributedLock("x", session).acquire())
        await queue_of(other, "x", 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await queue_of(other, "x", 0)
        async with DistributedLock("x", session):
            pass


class _CancelAt(AtStep):
    """Runs a coroutine and throws a cancel into it at its ``step``-th suspension."""

    def strike(self) -> Generator[Any, None, None]:
        task = asyncio.current_task()
        assert task
        task.cancel()
        yield from ()


@pytest.mark.parametrize(("contended", "lingering", "least"), [(False, False, 3), (True, False, 5), (True, True, 4)])
async def test_an_acquire_cancelled_at_any_await_point_leaves_no_key(
    session: Session, other: Session, contended: bool, lingering: bool, least: int
) -> None:
    async def cycle() -> None:
        async with DistributedLock("x", session):
            await asyncio.sleep(0)

    async def attempt(step: int) -> bool:
        runner = _CancelAt(cycle(), step)
        holder = DistributedLock("x", other)
        if not lingering:
            for shared, _ in core_of(session).hub._lingering.values():
                shared.subscription.cancel()
        if contended:
            await holder.acquire()
            asyncio.get_running_loop().call_later(0.05, lambda: releases.append(asyncio.create_task(holder.release())))

        async def run() -> None:
            await runner

        task = asyncio.create_task(run())
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 5)
        await asyncio.gather(*releases)
        releases.clear()
        await queue_of(other, "x", 0)
        async with asyncio.timeout(2), DistributedLock("x", other):  # nobody is harmed
            pass
        return runner.reached

    releases: list[asyncio.Task[None]] = []
    steps = 0
    while await attempt(steps):
        steps += 1
    assert steps >= least


async def test_an_acquire_cancelled_as_its_answer_arrives_leaves_no_key(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer has handed the answer over, and nobody takes it."""
    tasks: dict[bytes, asyncio.Task[Any]] = {}
    answer = Request.answer

    def answer_and_cancel(request: Request, reply: Reply) -> None:
        answer(request, reply)
        task = tasks.get(request.groups[0])
        if task and task is not asyncio.current_task():  # one that is sent by its own task is cancelled elsewhere
            task.cancel()

    monkeypatch.setattr(Request, "answer", answer_and_cancel)
    names = [f"x{number}" for number in range(40)]
    for name in names:
        tasks[core_of(session).layout.queue(name)] = asyncio.create_task(DistributedLock(name, session).acquire())
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    monkeypatch.undo()
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 20
    for name, result in zip(names, results, strict=True):
        await queue_of(other, name, 1 if isinstance(result, Grant) else 0)


async def test_a_timeout_at_any_moment_leaves_no_key(session: Session, other: Session) -> None:
    lock = DistributedLock("x", other)
    for step in range(40):
        try:
            await lock.acquire(timeout=step * 0.0001 + 1e-9)
            await lock.release()
        except LockTimeout:
            pass
    await queue_of(session, "x", 0)
    assert await DistributedLock("x", session).try_acquire() is not None


async def test_a_broken_connection_while_waiting_does_not_lose_the_place(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace) as (proxy, session):
        lock = DistributedLock("x", other)
        await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        waiter = (await queue_of(other, "x", 2))[1]
        proxy.refuse()
        proxy.cut()
        await asyncio.sleep(0.3)
        await lock.release()  # the event is lost on the broken stream
        await asyncio.sleep(0.3)
        assert not waiting.done()
        proxy.resume()
        grant = await asyncio.wait_for(waiting, 5)
        assert grant.token == waiter.create_revision


async def test_a_holder_cut_off_is_told_before_anyone_else_is_granted(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=3) as (proxy, session):
        lock = DistributedLock("x", session, on_loss="notify")
        grant = await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(other, "x", 2)
        proxy.blackhole()
        told = asyncio.create_task(grant.lost.wait())
        await asyncio.wait([told, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert told.done() and not waiting.done()
        assert grant.deadline() == 0 and not session.alive
        await asyncio.wait_for(waiting, 5)
        proxy.resume()
        with pytest.raises(SessionLost):
            await asyncio.wait_for(core_of(session).trusted(), 10)
        assert session.lost.is_set()


async def test_waiters_resume_after_an_etcd_restart(namespace: str) -> None:
    async with EmbeddedEtcd() as own:
        settings = {"endpoints": own.endpoint, "namespace": namespace, "session_ttl": 10}
        async with Session(**settings) as first, Session(**settings) as second:
            lock = DistributedLock("x", first)
            grant = await lock.acquire()
            waiting = [asyncio.create_task(DistributedLock("x", second).acquire()) for _ in range(3)]
            queue = await queue_of(first, "x", 4)
            await asyncio.to_thread(own.kill)
            await asyncio.sleep(0.5)
            await own.start()
            assert not any(task.done() for task in waiting) and not grant.lost.is_set()
            await lock.release()
            tokens = []
            for task in waiting:
                tokens.append((await asyncio.wait_for(task, 10)).token)
                await core_of(second).remover.remove((await entries(second, "x"))[0].key)
            assert tokens == [entry.create_revision for entry in queue[1:]]


async def test_calls_fail_within_their_time_limit_while_etcd_is_away(namespace: str) -> None:
    async with EmbeddedEtcd() as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, namespace=namespace, request_timeout=1.0) as session:
            lock = DistributedLock("held", session, on_loss="notify")
            await lock.acquire()
            await asyncio.to_thread(own.kill)
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(EtcdUnavailable, match=r"no etcd answered|did not answer") as caught:
                    await DistributedLock("x", session).acquire()
                assert time.monotonic() - started < 3 and caught.value.retryable
            with pytest.raises(EtcdUnavailable):
                await LockManager(session).locks()
            await own.start()
            async with asyncio.timeout(5):
                await eventually(lambda: _works(session))
            await queue_of(session, "x", 0)


async def test_who_lines_up_behind_a_call_in_doubt_waits_no_longer_than_its_time(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace, request_timeout=1.0, session_ttl=30) as (proxy, session):
        proxy.blackhole()
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(EtcdUnavailable):
                await DistributedLock("x", session).acquire()
            assert time.monotonic() - started < 4
        proxy.resume()
        await eventually(lambda: _works(session), 10)
        await queue_of(other, "x", 0)


async def _works(session: Session) -> bool:
    try:
        async with DistributedLock("y", session):
            return True
    except EtcdUnavailable:
        return False


async def test_an_unreachable_etcd_fails_within_the_dial_timeout_and_says_what_to_do() -> None:
    endpoints = "http://127.0.0.1:1,http://127.0.0.1:2"
    started = time.monotonic()
    with pytest.raises(EtcdUnavailable) as caught:
        await Session(endpoints=endpoints, dial_timeout=0.5).open()
    assert time.monotonic() - started < 2
    text = str(caught.value)
    assert "http://127.0.0.1:1, http://127.0.0.1:2" in text and "CODOMYRMEX_ETCD_ENDPOINTS" in text
    assert caught.value.applied == "no"


@pytest.mark.usefixtures("first_endpoint")
async def test_a_second_endpoint_takes_over(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    address = urlsplit(etcd.endpoint)
    async with TcpProxy(address.hostname, address.port) as one, TcpProxy(address.hostname, address.port) as two:
        endpoints = f"{one.endpoint},{two.endpoint}"
        async with Session(endpoints=endpoints, namespace=namespace, session_ttl=4) as session:
            lock = DistributedLock("x", session)
            grant = await lock.acquire()
            waiting = asyncio.create_task(DistributedLock("x", session).acquire())
            await queue_of(other, "x", 2)
            one.blackhole()
            await asyncio.sleep(4.5)
            assert session.alive and not grant.lost.is_set()
            await lock.release()
            await asyncio.wait_for(waiting, 5)
            one.resume()
