"""The behaviour of one lock for its user, on a real etcd."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest

from codomyrmex.concurrency import (
    Compare,
    Delete,
    DistributedLock,
    FencedWriteRejected,
    InvalidName,
    LockLost,
    LockManager,
    LockTimeout,
    NotHeld,
    Put,
    Session,
    SessionLost,
    Target,
    session_members,
)
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, entries, eventually, queue_of


async def test_a_lock_is_held_inside_its_block_and_free_after(session: Session) -> None:
    lock = DistributedLock("build", session)
    async with lock as grant:
        assert lock.held and lock.grant is grant
        assert grant.name == "build" and grant.token > 0 and grant.waited >= 0
        assert 0 < grant.deadline() <= 2.0  # two thirds of the TTL of 3 s
        assert [kv.create_revision for kv in await entries(session, "build")] == [grant.token]
    assert not lock.held and lock.grant is None
    assert await entries(session, "build") == []


async def test_two_sessions_exclude_each_other(session: Session, other: Session) -> None:
    async with DistributedLock("x", session) as first:
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", 2)
        await asyncio.sleep(0.1)
        assert not waiting.done()
    second = await waiting
    assert second.token > first.token and second.waited >= 0.1


async def test_tasks_of_one_process_are_served_in_order_of_arrival(session: Session) -> None:
    lock, order, inside = DistributedLock("x", session), [], 0

    async def visit(number: int) -> int:
        nonlocal inside
        async with lock as grant:
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            order.append(number)
            inside -= 1
            return grant.token

    tokens = await asyncio.gather(*(visit(number) for number in range(40)))
    assert order == list(range(40)) and tokens == sorted(set(tokens))


async def test_many_names_are_held_at_once(session: Session) -> None:
    locks = [DistributedLock(f"n{number}", session) for number in range(300)]
    grants = await asyncio.gather(*(lock.acquire() for lock in locks))
    assert all(lock.held for lock in locks) and len({grant.key for grant in grants}) == 300
    await asyncio.gather(*(lock.release() for lock in locks))
    assert await LockManager(session).locks() == []


async def test_a_timeout_raises_and_withdraws(session: Session, other: Session) -> None:
    async with DistributedLock("x", session):
        started = time.monotonic()
        with pytest.raises(LockTimeout, match=r"'x' was not granted within 0\.2 s") as caught:
            await DistributedLock("x", other).acquire(timeout=0.2)
        assert isinstance(caught.value, TimeoutError) and 0.2 <= time.monotonic() - started < 1
        await queue_of(session, "x", 1)


async def test_a_try_never_joins_the_queue(session: Session, other: Session) -> None:
    lock = DistributedLock("x", other)
    async with DistributedLock("x", session):
        with counting(other) as calls:
            assert await lock.try_acquire() is None
            assert calls["range"] == 1 and not calls["txn"]
            with pytest.raises(LockTimeout):
                await lock.acquire(timeout=0)
        assert calls["range"] == 2 and calls["txn"] == 1  # the second for what the error says
        assert len(await entries(session, "x")) == 1
    grant = await lock.try_acquire()
    assert grant is not None and lock.held
    await lock.release()


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
async def test_a_timeout_that_makes_no_sense_is_refused(session: Session, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be None or at least 0"):
        await DistributedLock("x", session).acquire(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        LockManager(session).acquire("x", timeout=timeout)


async def test_release_without_a_grant_is_an_error(session: Session) -> None:
    lock = DistributedLock("x", session)
    with pytest.raises(NotHeld, match="'x' is not held"):
        await lock.release()
    await lock.acquire()
    await lock.release()
    with pytest.raises(NotHeld):
        await lock.release()


async def test_releasing_a_lost_lock_does_nothing(session: Session, other: Session) -> None:
    lock = DistributedLock("x", session)
    grant = await lock.acquire()
    await LockManager(other).force_release("x", reason="test")
    async with DistributedLock("x", other):
        await asyncio.wait_for(grant.lost, 2)
        assert not lock.held
        await lock.release()
        assert len(await entries(other, "x")) == 1


async def test_a_lock_object_released_by_another_task(session: Session) -> None:
    lock = DistributedLock("x", session)
    await asyncio.create_task(lock.acquire())
    await lock.release()
    assert await entries(session, "x") == []


@pytest.mark.parametrize("name", ["/", "..", "a/b/../c", "%2F", "x" * 512, "file_edit:main.py", "😀 é", "\u202egnp"])
async def test_hostile_names_stay_within_their_own_queue(session: Session, name: str) -> None:
    async with DistributedLock(name, session) as grant, DistributedLock(f"{name[:500]}!", session):
        assert grant.key.startswith(f"/{core_of(session).layout.namespace}/v1/lock/")
        assert grant.key.count("/") == 5
        infos = await LockManager(session).locks(name[:3])
        assert sorted(info.name for info in infos) == sorted({name, f"{name[:500]}!"})


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\x1b[31m", "x" * 513, "\ud800", None, 7])
async def test_impossible_names_are_refused_before_anything_runs(session: Session, name: str) -> None:
    with pytest.raises(InvalidName):
        DistributedLock(name, session)
    with pytest.raises(InvalidName):
        LockManager(session).acquire(name)


async def test_metadata_is_shown_and_checked(session: Session) -> None:
    lock = DistributedLock("x", session, metadata={"ticket": 7, "who": "\x1b[1m"})
    async with lock as grant:
        info = await lock.info()
        assert info is not None
        owner = info.holders[0]
        assert owner.metadata == {"ticket": 7, "who": "\x1b[1m"} and owner.token == grant.token
        assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        assert owner.session == f"{session.id:016x}" and owner.since is not None
    assert await lock.info() is None
    for wrong in ({"x": object()}, {"x": float("nan")}, ["x"]):
        with pytest.raises(TypeError, match="metadata must be"):
            DistributedLock("x", session, metadata=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metadata may have"):
        DistributedLock("x", session, metadata={"x": "y" * 70_000})
    with pytest.raises(ValueError, match="on_loss"):
        DistributedLock("x", session, on_loss="ignore")  # type: ignore[arg-type]


async def test_fenced_writes_work_while_the_lock_is_held(session: Session) -> None:
    key = f"/{core_of(session).layout.namespace}/data"
    async with DistributedLock("x", session) as grant:
        revision = await grant.put(key, "one")
        assert revision > grant.token and await grant.get(key) == b"one"
        result = await grant.txn(Put(key.encode(), b"two"), compare=[Compare(key.encode(), Target.VALUE, b"one")])
        assert result.succeeded
        again = await grant.txn(Put(key.encode(), b"three"), compare=[Compare(key.encode(), Target.VALUE, b"one")])
        assert not again.succeeded and await grant.get(key) == b"two"
        assert await grant.delete(key) and not await grant.delete(key) and await grant.get(key) is None
        with pytest.raises(ValueError, match="at least one"):
            await grant.txn()
    with pytest.raises(FencedWriteRejected, match="no longer held"):
        await grant.put(key, "late")


async def test_the_library_s_own_keys_cannot_be_written_through_a_grant(session: Session) -> None:
    own = f"/{core_of(session).layout.namespace}/v1/lock/x/1"
    async with DistributedLock("x", session) as grant:
        for attempt in (
            grant.put(own, "1"),
            grant.delete(own),
            grant.txn(Delete(b"/", b"\0")),
            grant.txn(Put(f"/{core_of(session).layout.namespace}/data".encode(), b"1"), Put(own.encode(), b"1")),
        ):
            with pytest.raises(ValueError, match="the library's own keys"):
                await attempt
        assert await grant.get(own) is None
        with pytest.raises(TypeError, match="not int"):
            await grant.put("/x", 1)  # type: ignore[arg-type]


async def test_a_fenced_write_after_a_forced_release_is_refused_by_etcd(session: Session, other: Session) -> None:
    key = f"/{core_of(session).layout.namespace}/data"
    async with DistributedLock("x", session, on_loss="notify") as grant:
        await LockManager(other).force_release("x", reason="stuck")
        with pytest.raises(FencedWriteRejected):  # the holder has not been told yet: etcd itself refuses
            await grant.put(key, "late")
        assert grant.lost.is_set()


async def test_a_forced_release_cancels_the_block_and_says_who_and_why(session: Session, other: Session) -> None:
    started = time.monotonic()
    with pytest.raises(LockLost, match=r"released by force by .*: stuck since noon"):
        async with DistributedLock("x", session) as grant:
            await asyncio.sleep(0.6)  # long enough to watch its own key
            await LockManager(other).force_release("x", reason="stuck since noon", token=grant.token)
            await asyncio.sleep(30)
    assert time.monotonic() - started < 3
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)  # no cancel is left over


async def test_a_block_that_ends_before_it_hears_of_the_loss_still_raises(session: Session, other: Session) -> None:
    with pytest.raises(LockLost):
        async with DistributedLock("x", session) as grant:
            await LockManager(other).force_release("x", reason="test")
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(grant.lost.wait())), 3)
    await asyncio.sleep(0)


async def test_on_loss_notify_only_sets_the_event(session: Session, other: Session) -> None:
    async with DistributedLock("x", session, on_loss="notify") as grant:
        await LockManager(other).force_release("x", reason="test")
        await asyncio.wait_for(grant.lost, 3)
        assert grant.deadline() == 0


async def test_an_error_in_the_block_is_not_hidden_by_a_loss(session: Session, other: Session) -> None:
    with pytest.raises(RuntimeError, match="mine") as caught:
        async with DistributedLock("x", session) as grant:
            await LockManager(other).force_release("x", reason="test")
            try:
                await asyncio.sleep(30)
            finally:
                assert grant.lost.is_set()
                raise RuntimeError("mine")
    assert "was lost while this happened" in caught.value.__notes__[0]


async def test_an_outer_cancel_stays_a_cancel(session: Session) -> None:
    async def body() -> None:
        async with DistributedLock("x", session):
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    await queue_of(session, "x", 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await queue_of(session, "x", 0)


async def test_both_nested_locks_report_a_lost_session(session: Session) -> None:
    with pytest.raises(LockLost, match="lease is gone"):
        async with DistributedLock("outer", session), DistributedLock("inner", session):
            core_of(session)._end(SessionLost("the session's lease is gone: test"))
            await asyncio.sleep(30)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_waiter_whose_place_is_deleted_is_told(session: Session, other: Session) -> None:
    async with DistributedLock("x", session):
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        waiter = (await queue_of(session, "x", 2))[1]
        await core_of(session).remover.remove(waiter.key)
        with pytest.raises(LockLost, match="place in the queue"):
            await asyncio.wait_for(waiting, 3)


async def test_a_waiter_in_mid_queue_that_leaves_harms_nobody(session: Session, other: Session) -> None:
    lock = DistributedLock("x", session)
    await lock.acquire()
    middle = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(session, "x", 2)
    last = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(session, "x", 3)
    middle.cancel()
    await queue_of(session, "x", 2)
    await asyncio.sleep(0.1)
    assert not last.done()
    await lock.release()
    await asyncio.wait_for(last, 2)


async def test_a_foreign_key_is_skipped_with_one_warning(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    junk = core_of(session).layout.queue("x") + b"junk"
    await core_of(session).transport.txn((), (Put(junk, b"\xff not json"),))
    lock = DistributedLock("x", session)
    for _ in range(3):
        async with lock:
            assert await DistributedLock("x", session).try_acquire() is None
    assert await lock.try_acquire() is not None
    info = await lock.info()
    assert info is not None and len(info.holders) == 1 and not info.waiters
    assert len([record for record in caplog.records if "junk" in record.getMessage()]) == 1


async def test_an_uncontended_cycle_is_two_calls(session: Session) -> None:
    lock = DistributedLock("x", session)
    with counting(session) as calls:
        for _ in range(5):
            async with lock:
                pass
    assert calls["txn"] == calls["delete"] == 5 and calls["range"] == calls["events"] == 0


async def test_a_handoff_is_one_release_and_one_event(session: Session, other: Session) -> None:
    lock = DistributedLock("x", session)
    await lock.acquire()
    waiting = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(session, "x", 2)
    await asyncio.sleep(2.5)  # the watches stand, those on the own keys too
    with counting(session) as releasing, counting(other) as waking:
        await lock.release()
        await waiting
    assert waking["events"] == 1 and not waking["txn"] and not waking["range"]
    assert releasing["delete"] == 1 and not set(releasing) - {"delete", "created", "events"}


async def test_an_acquire_that_waits_costs_a_transaction_a_watch_and_two_looks(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_members, "TICK", 60.0)  # else a slow machine adds the watch on its own key
    await eventually(lambda: all(watch.in_step for watch in core_of(other).hub._sinks))
    async with DistributedLock("x", session):
        with counting(other) as calls:
            waiting = asyncio.create_task(DistributedLock("x", other).acquire())
            await queue_of(session, "x", 2)
            await eventually(lambda: calls["range"] == 2)
            await asyncio.sleep(0.2)
            assert calls["txn"] == 1 and calls["created"] == 1 and calls["range"] == 2
    await waiting


async def test_two_who_take_turns_watch_each_other_once(session: Session, other: Session) -> None:
    async def take_turns(session: Session) -> None:
        lock = DistributedLock("x", session)
        for _ in range(20):
            async with lock:
                await asyncio.sleep(0.02)  # long enough for the other to come back

    await asyncio.gather(take_turns(session), take_turns(other))
    with counting(session) as first, counting(other) as second:
        await asyncio.gather(take_turns(session), take_turns(other))
    for calls in (first, second):
        assert calls["txn"] == calls["delete"] == 20
        assert calls["created"] <= 1 and calls["range"] <= 2 and calls["events"] <= 21


async def test_a_watch_lingers_for_a_second_and_no_longer(session: Session, other: Session) -> None:
    hub = core_of(other).hub
    async with DistributedLock("x", session):
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", 2)
        await eventually(lambda: len(hub._sinks) == 2)  # the session's own and this one
    await waiting
    assert len(hub._sinks) == 2
    await core_of(other).remover.remove_and_wait(waiting.result().key.encode(), lambda _: None)
    await eventually(lambda: len(hub._sinks) == 1)


async def test_a_release_wakes_one_waiter_only(session: Session, other: Session) -> None:
    lock = DistributedLock("x", session)
    await lock.acquire()
    waiting = []
    for number in range(10):
        waiting.append(asyncio.create_task(DistributedLock("x", other).acquire()))
        await queue_of(session, "x", number + 2)
    await asyncio.sleep(1.0)
    with counting(other) as calls:
        await lock.release()
        await waiting[0]
        await asyncio.sleep(0.1)
    assert calls["events"] == 1
    for task in waiting[1:]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_group_commit_shares_transactions(session: Session) -> None:
    locks = [DistributedLock(f"n{number}", session) for number in range(60)]
    with counting(session) as calls:
        await asyncio.gather(*(lock.acquire() for lock in locks))
        await asyncio.gather(*(lock.release() for lock in locks))
    assert calls["txn"] <= 4


async def test_two_entries_for_one_lock_never_share_a_transaction(session: Session) -> None:
    async with DistributedLock("x", session):
        waiting = [asyncio.create_task(DistributedLock("x", session).acquire()) for _ in range(20)]
        found = await queue_of(session, "x", 21)
        assert len({kv.create_revision for kv in found}) == 21
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await queue_of(session, "x", 0)
