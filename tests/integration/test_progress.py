"""``grant.progress`` and ``max_idle``: a holder keeps its grant for as long as it reports progress."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdError,
    FencedWriteRejected,
    LockLost,
    LockManager,
    LockTimeout,
    Owner,
    Semaphore,
    Session,
    sync,
)
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.record_wait import record_wait
from tests.helpers import counting, entries, eventually
from tests.integration.fleet import fleet
from tests.integration.test_cancel import until_cancelled
from tests.integration.test_faults import through_proxy

TTL = 3.0
IDLE = 0.5
MARGIN = 1.5  # seconds for the keepalive's round, and for a loaded machine


async def holder(session: Session, name: str = "x") -> Owner:
    info = await LockManager(session).info(name)
    assert info
    return info.holders[0]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_an_idle_time_that_cannot_be_is_refused(wrong: float) -> None:
    for make in (
        lambda: DistributedLock("x", max_idle=wrong),
        lambda: LockManager().acquire("x", max_idle=wrong),
        lambda: LockManager().acquire_all(["x"], max_idle=wrong),
        lambda: Semaphore("x", max_concurrent=1, max_idle=wrong),
        lambda: sync.DistributedLock("x", max_idle=wrong),
        lambda: sync.LockManager().acquire("x", max_idle=wrong),
        lambda: sync.LockManager().acquire_all(["x"], max_idle=wrong),
        lambda: sync.Semaphore("x", max_concurrent=1, max_idle=wrong),
    ):
        with pytest.raises(ValueError, match="max_idle must be None or more than 0"):
            make()


# The note


async def test_a_note_is_shown_and_the_token_stays(session: Session, other: Session) -> None:
    async with DistributedLock("x", session, metadata={"step": 1}) as grant:
        (before,) = await entries(other, "x")
        with counting(session) as calls:
            await grant.progress('half "done"\u2028')
        assert calls == {"txn": 1}
        (after,) = await entries(other, "x")
        assert (after.create_revision, after.lease) == (grant.token, before.lease)
        found = await holder(other)
        assert (found.note, found.progress, found.metadata) == ('half "done"\u2028', 1, {"step": 1})
        assert found.granted_at  # it tells of the wait too
        await grant.progress()
        found = await holder(other)
        assert (found.note, found.progress) == ('half "done"\u2028', 2)
        with pytest.raises(LockTimeout, match=r"note: 'half \"done\"\\u2028'"):
            await DistributedLock("x", other).acquire(timeout=0.2)


async def test_progress_stays_on_the_delayed_lease(session: Session, other: Session) -> None:
    async with DistributedLock("x", session, lock_delay=1) as grant:
        (before,) = await entries(other, "x")
        await grant.progress("a")
        (after,) = await entries(other, "x")
        assert after.lease == before.lease != session.id and after.mod_revision > before.mod_revision


async def test_neither_write_of_a_holder_loses_the_fields_of_the_other(session: Session, other: Session) -> None:
    grant = await DistributedLock("x", session).acquire()
    await record_wait(grant._entry, 7.0)
    assert (await holder(other)).waited == 7.0
    await grant.progress("first")
    await record_wait(grant._entry, 7.0)  # as if it had been under way for long
    found = await holder(other)
    assert (found.note, found.progress, found.waited) == ("first", 1, pytest.approx(grant.waited, abs=0.002))
    await asyncio.gather(*(grant.progress(f"{number}") for number in range(20)))
    found = await holder(other)
    assert (found.note, found.progress) == ("19", 21)
    await grant.release()


@pytest.mark.parametrize(
    ("note", "error", "text"),
    [
        (7, TypeError, "note must be a str, not int"),
        (None, TypeError, "note must be a str, not NoneType"),
        ("\udc80", ValueError, "without lone surrogates"),
        ("é" * 2049, ValueError, "4096 bytes in UTF-8; this has 4098"),
    ],
)
async def test_another_note_is_refused(session: Session, note: Any, error: type[Exception], text: str) -> None:
    async with DistributedLock("x", session) as grant:
        with pytest.raises(error, match=text):
            await grant.progress(note)
        await grant.progress("é" * 2048)


async def test_a_grant_that_is_gone_reports_no_progress(session: Session, other: Session) -> None:
    lock = DistributedLock("x", session, on_loss="notify")
    grant = await lock.acquire()
    await grant.release()
    with pytest.raises(FencedWriteRejected, match="no longer held"):
        await grant.progress()
    grant = await lock.acquire()
    await LockManager(other).force_release("x", reason="test")
    with pytest.raises(FencedWriteRejected, match="no longer held"):
        await grant.progress()
    assert await entries(other, "x") == []
    await asyncio.wait_for(grant.lost.wait(), 1)


async def test_grants_that_are_held_together_progress_together(session: Session, other: Session) -> None:
    manager = LockManager(session)
    async with manager.acquire_all(["a", "b", "c"], max_idle=IDLE) as (first, second, third):
        await first.release()
        for _ in range(4):
            await asyncio.sleep(IDLE * 0.6)
            await second.progress("both")
        assert not third.lost.is_set() and not second.lost.is_set()
        assert [(await holder(other, name)).note for name in "bc"] == ["both", "both"]
        releasing = asyncio.create_task(third.release())
        await second.progress("with one that leaves")
        await releasing
    assert not await LockManager(other).locks()


async def test_readers_and_permits_report_too(session: Session, other: Session) -> None:
    async with LockManager(session).acquire("r", shared=True) as grant:
        await grant.progress("reading")
        assert (await holder(other, "r")).note == "reading"
    async with Semaphore("s", max_concurrent=2, session=session) as grant:
        await grant.progress("computing")
        assert (await inspect.semaphore(core_of(other), "s")).holders[0].note == "computing"


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "behind another"])
async def test_a_cancel_at_any_step_of_progress_leaves_a_whole_value(
    session: Session, other: Session, busy: bool
) -> None:
    lock = DistributedLock("x", session, max_idle=30)
    grant = await lock.acquire()
    noted = 0
    first: list[asyncio.Task[None]] = []

    async def report(_: Session) -> None:
        nonlocal noted
        noted += 1
        if busy:
            first.append(asyncio.create_task(grant.progress()))
            await asyncio.sleep(0)
        await grant.progress(f"note {noted}")

    async def whole() -> None:
        await asyncio.gather(*first)
        first.clear()
        found = await holder(other)
        assert found.host and found.token == grant.token and grant.deadline() > 0
        assert found.note in ("", f"note {noted}", f"note {noted - 1}")

    assert await until_cancelled(session, report, whole) >= 1
    assert (await holder(other)).note == f"note {noted}"
    await lock.release()
    assert await entries(other, "x") == []


async def test_a_watcher_is_told_of_no_progress_but_of_the_last_note(session: Session, other: Session) -> None:
    told: list[tuple[str, str]] = []

    async def follow() -> None:
        async for event in LockManager(other).watch():
            told.append((event.kind, event.owner.note))

    following = asyncio.create_task(follow())
    async with DistributedLock("before", session):
        await eventually(lambda: len(told) == 2)
    await eventually(lambda: len(told) == 3)
    async with DistributedLock("x", session) as grant:
        for note in ("one", "two"):
            await grant.progress(note)
    await eventually(lambda: len(told) >= 6)
    following.cancel()
    assert told[3:] == [("enqueued", ""), ("granted", ""), ("released", "two")]


# max_idle


async def test_a_holder_that_reports_keeps_its_lock_and_a_silent_one_loses_it(session: Session, other: Session) -> None:
    started = time.monotonic()
    reported = 0.0
    with pytest.raises(LockLost, match=r"without progress for longer than its max_idle of 0\.5 s; report progress"):
        async with DistributedLock("x", session, max_idle=IDLE) as grant:
            while time.monotonic() - started < 10 * IDLE:
                await asyncio.sleep(IDLE / 2)
                reported = time.monotonic()
                await grant.progress()
            await asyncio.sleep(30)
    assert IDLE <= time.monotonic() - reported < IDLE + 1
    async with DistributedLock("x", other):
        pass
    assert session.alive


async def test_max_hold_ends_a_holder_that_reports(session: Session) -> None:
    with pytest.raises(LockLost, match="max_hold"):
        async with DistributedLock("x", session, max_hold=2 * IDLE, max_idle=IDLE) as grant:
            while True:
                await asyncio.sleep(IDLE / 3)
                await grant.progress()


async def test_a_silent_holder_that_does_not_let_go_is_put_out(session: Session, other: Session) -> None:
    grant = await DistributedLock("x", session, on_loss="notify", max_idle=IDLE).acquire()
    started = time.monotonic()
    await asyncio.wait_for(grant.lost.wait(), IDLE + 1)
    with pytest.raises(FencedWriteRejected):
        await grant.progress("too late")
    await asyncio.wait_for(DistributedLock("x", other).acquire(), 5)
    assert time.monotonic() - started <= IDLE + core_of(session).ttl / 3 + MARGIN


async def test_a_call_that_is_not_answered_does_not_count(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=0.3) as (proxy, session):
        grant = await DistributedLock("x", session, on_loss="notify", max_idle=1.5).acquire()
        until = time.monotonic() + grant.deadline()
        await asyncio.sleep(1)
        proxy.blackhole()
        with pytest.raises(EtcdError):
            await grant.progress()
        await asyncio.wait_for(grant.lost.wait(), 3)
        assert abs(time.monotonic() - until) < 0.5


async def test_an_answer_that_comes_after_the_end_brings_nothing_back(session: Session) -> None:
    grant = await DistributedLock("x", session, on_loss="notify", max_idle=IDLE).acquire()
    reporting = asyncio.create_task(grant.progress("just in time"))
    await asyncio.sleep(0)
    time.sleep(IDLE + 0.1)  # the answer is there, but the event loop is blocked
    with pytest.raises(FencedWriteRejected, match="this progress does not count"):
        await reporting
    assert grant.deadline() == 0 and grant.lost.is_set()


@pytest.mark.parametrize("blocks", [False, True], ids=["asleep", "blocked"])
async def test_a_process_without_progress_loses_and_one_with_progress_does_not(
    etcd: EmbeddedEtcd, namespace: str, session: Session, blocks: bool
) -> None:
    told = {"max_idle": IDLE, "reports": 15, "every": IDLE * 2 / 3, "blocks": blocks}
    async with fleet(etcd, namespace) as members:
        agent = await members.start("report", "x", json.dumps(told))
        first = await agent.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        silent = await agent.until("silent")
        assert not waiting.done() and silent["at"] - first["at"] >= 10 * IDLE
        grant = await asyncio.wait_for(waiting, IDLE + TTL / 3 + MARGIN)
        assert grant.token > first["token"]
        lost = await agent.until("lost")
        assert "max_idle" in lost["reason"] and lost["alive"]
        assert (await agent.next())["event"] == "late progress refused"
        await grant.release()


async def test_a_stopped_process_loses_and_its_late_progress_is_refused(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    """A stopped process has no keepalive either, so its lease ends the hold if that comes first."""
    told = {"max_idle": IDLE, "reports": 3, "every": IDLE / 2, "blocks": False}
    async with fleet(etcd, namespace) as members:
        agent = await members.start("report", "x", json.dumps(told))
        first = await agent.until("granted")
        waiting = asyncio.create_task(DistributedLock("x", session).acquire())
        await asyncio.sleep(IDLE)
        agent.process.send_signal(signal.SIGSTOP)
        grant = await asyncio.wait_for(waiting, TTL + MARGIN)
        agent.process.send_signal(signal.SIGCONT)
        assert grant.token > first["token"]
        await agent.until("lost")
        assert (await agent.next())["event"] == "late progress refused"
        assert (await holder(session)).token == grant.token
        await grant.release()


async def test_a_process_that_is_stopped_for_longer_than_max_idle_has_lost(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    """It goes on before its lease ends, and is put out as one whose event loop is blocked."""
    told = {"max_idle": IDLE, "reports": 100, "every": IDLE / 5, "blocks": False}
    async with fleet(etcd, namespace) as members:
        agent = await members.start("report", "x", json.dumps(told))
        await agent.until("granted")
        await asyncio.sleep(IDLE)
        agent.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.2 * IDLE)
        agent.process.send_signal(signal.SIGCONT)
        lost = await agent.until("lost")
        assert "max_idle" in lost["reason"] and lost["alive"]
        await eventually(lambda: _free(session))


async def _free(session: Session) -> bool:
    return not await LockManager(session).locks()


# The blocking twin


async def test_a_thread_reports_progress(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    def work() -> str:
        with sync.Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as blocking:
            try:
                with sync.DistributedLock("x", blocking, max_idle=IDLE) as grant:
                    for _ in range(4):
                        time.sleep(IDLE * 0.6)
                        grant.progress("in a thread")
                    noted.set()
                    while True:
                        time.sleep(0.05)
                        grant.check()
            except LockLost as error:
                return str(error.__cause__ or error)

    noted = threading.Event()
    working = asyncio.create_task(asyncio.to_thread(work))
    assert await asyncio.to_thread(noted.wait, 10)
    assert (await holder(session)).note == "in a thread"
    assert "max_idle" in await asyncio.wait_for(working, 5)
