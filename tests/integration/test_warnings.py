"""Silent mistakes cause a warning at the user's line that made them."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from pathlib import Path

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, LockTimeout, Semaphore, Session, sync
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.admission import ADMITTED
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import queue_of


def line_of(text: str) -> int:
    """The line of this file that has ``text`` and comes first."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line and "line_of" not in line)


async def test_who_waits_for_a_lock_that_it_holds_is_warned_at_its_line(session: Session) -> None:
    lock, manager = DistributedLock("x", session), LockManager(session)
    async with lock:  # held from here
        for wait in (
            lambda: lock.acquire(timeout=0.1),
            lambda: _awaited(manager),
        ):
            with (
                pytest.warns(RuntimeWarning, match="'x' is waited for by the very task") as told,
                pytest.raises(LockTimeout),
            ):
                await wait()
            assert told[0].filename == __file__
            assert f"since {__file__}:{line_of('# held from here')}:" in str(told[0].message)
        assert told[0].lineno == line_of("# waits for itself")


async def _awaited(manager: LockManager) -> None:
    await manager.acquire("x", timeout=0.1)  # waits for itself


async def test_a_waiter_for_itself_outside_a_full_queue_is_warned_too(session: Session) -> None:
    lock = DistributedLock("x", session)
    async with lock:
        tasks = [asyncio.create_task(lock.acquire()) for _ in range(ADMITTED)]
        await queue_of(session, "x", ADMITTED + 1, 20)
        with pytest.raises(LockTimeout), pytest.warns(RuntimeWarning, match="'x' is waited for by the very"):
            await lock.acquire(timeout=0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_for_another_task_or_after_its_release_is_not(session: Session) -> None:
    lock = DistributedLock("x", session)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with lock:
            waiting = asyncio.create_task(lock.acquire())
            with pytest.raises(LockTimeout):
                await asyncio.create_task(lock.acquire(timeout=0.1))
        grant = await waiting
        await grant.release()
        async with lock:
            pass
        permits = Semaphore("s", max_concurrent=1, session=session)
        async with permits:
            with pytest.raises(LockTimeout):
                await permits.acquire(timeout=0.1)
    assert not core_of(session).member(LocalQueues).by_holder


def test_a_thread_that_waits_for_its_own_lock_is_warned(etcd: EmbeddedEtcd, namespace: str) -> None:
    with sync.Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        lock, failures = sync.DistributedLock("x", session), []
        with lock:
            with (
                pytest.warns(RuntimeWarning, match="very task or thread that holds") as told,
                pytest.raises(LockTimeout),
            ):
                lock.acquire(timeout=0.1)  # a thread waits for itself
            assert (told[0].filename, told[0].lineno) == (__file__, line_of("# a thread waits for itself"))

            def wait() -> None:
                try:
                    lock.acquire(timeout=0.1)
                except LockTimeout:
                    failures.append("timeout")

            with warnings.catch_warnings():
                warnings.simplefilter("error")
                thread = threading.Thread(target=wait)
                thread.start()
                thread.join()
        assert failures == ["timeout"]


async def test_a_grant_that_is_dropped_is_told_with_the_line_that_took_it(session: Session) -> None:
    manager = LockManager(session)
    with pytest.warns(RuntimeWarning, match=r"the grant of the lock 'x' \(token \d+\) was dropped") as told:
        await manager.acquire("x")  # taken and dropped
        gc.collect()
    assert (told[0].filename, told[0].lineno) == (__file__, line_of("# taken and dropped"))
    with pytest.warns(RuntimeWarning, match=r"the grant of the semaphore 's' .* was dropped"):
        await Semaphore("s", max_concurrent=1, session=session).acquire()
        gc.collect()
    with pytest.warns(RuntimeWarning, match="the grant of the lock 'z'"):
        await asyncio.gather(asyncio.create_task(_fails(session)), return_exceptions=True)
        await asyncio.sleep(0)  # until then the loop holds what the task raised
        gc.collect()


async def _fails(session: Session) -> None:
    grant = await DistributedLock("z", session).acquire()
    raise ZeroDivisionError(grant)


def test_a_grant_that_a_thread_dropped_is_told_with_its_line(etcd: EmbeddedEtcd, namespace: str) -> None:
    with sync.Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        with pytest.warns(RuntimeWarning, match="the grant of the lock 'x'") as told:
            sync.LockManager(session).acquire("x")  # a thread drops it
            gc.collect()
        assert (told[0].filename, told[0].lineno) == (__file__, line_of("# a thread drops it"))


async def test_nothing_is_warned_of_what_was_given_back_or_lost(etcd: EmbeddedEtcd, namespace: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
            manager = LockManager(session)
            await (await manager.acquire("a")).release()
            async with manager.acquire("b"), manager.acquire_all(["c", "d"]), DistributedLock("e", session):
                gc.collect()
            await manager.release(await manager.acquire("f"))
            async with Semaphore("s", max_concurrent=1, session=session).hold():
                gc.collect()
            lock = DistributedLock("g", session)
            await lock.acquire()
            gc.collect()
            await lock.release()
            left = await manager.acquire("h")
        del left  # its session has ended
        gc.collect()


async def test_an_acquisition_that_nobody_awaits_is_told_with_its_line(session: Session) -> None:
    with pytest.warns(RuntimeWarning, match="the acquisition of 'x' was never awaited") as told:
        LockManager(session).acquire("x")  # not awaited
        gc.collect()
    assert (told[0].filename, told[0].lineno) == (__file__, line_of("# not awaited"))
    with pytest.warns(RuntimeWarning, match="hold\\(\\) of the semaphore 's' was never entered") as told:
        Semaphore("s", max_concurrent=1, session=session).hold()  # not entered
        gc.collect()
    assert (told[0].filename, told[0].lineno) == (__file__, line_of("# not entered"))
