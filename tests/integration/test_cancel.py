"""A cancel at every await point of semaphores, elections, joint locks, pools, dead letters: nothing stays behind.

For locks see ``test_faults.py``, whose injector is used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Attempt,
    DeadLetter,
    DeadLetterQueue,
    Election,
    Group,
    LockManager,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.recipes import election as elections
from codomyrmex.concurrency.recipes import membership as groups
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect, shared_values
from tests.helpers import eventually
from tests.integration.test_faults import _CancelAt

Cycle = Callable[[Session], Coroutine[Any, Any, object]]


async def semaphore(session: Session) -> None:
    async with Semaphore("s", max_concurrent=2, session=session).hold(2):
        await asyncio.sleep(0)


async def campaign(session: Session) -> None:
    async with Election("e", session).campaign("value") as term:
        await term.proclaim("another")
        assert term.value == "another"


async def member(session: Session) -> None:
    async with Group("g", session).join({"n": 1}) as mine:
        await mine.update({"n": 2})


async def joint(session: Session) -> None:
    async with LockManager(session).acquire_all(["a", "b"]):
        await asyncio.sleep(0)


async def reader(session: Session) -> None:
    async with LockManager(session).acquire("a", shared=True):
        await asyncio.sleep(0)


async def paths(session: Session) -> None:
    async with LockManager(session).acquire_paths(["src/", "README.md"]):
        await asyncio.sleep(0)


async def guarded_task(session: Session) -> None:
    async with AsyncWorkerPool(2, session=session, report=False) as pool:
        provider = Semaphore("s", max_concurrent=2, session=session)
        try:
            await pool.map(_work, range(3), lock=lambda item: f"item:{item}", semaphore=provider)
        finally:
            stats = pool.stats()
            ended = stats.completed + stats.cancelled + stats.failed + stats.timed_out
            assert stats.running == stats.queued == 0 and stats.submitted == ended


async def _work(_: int) -> None:
    await asyncio.sleep(0)


async def until_cancelled(session: Session, cycle: Cycle, after: Callable[[], Awaitable[object]]) -> int:
    """Run ``cycle`` again and again, cancelled one step later each time; returns how many steps it has."""
    for step in range(500):
        runner = _CancelAt(cycle(session), step)

        async def run(runner: _CancelAt = runner) -> None:
            await runner

        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.create_task(run()), 10)
        await after()
        if not runner.reached:
            return step
    raise AssertionError("endless")


@pytest.mark.parametrize(
    ("cycle", "least"),
    [(semaphore, 3), (campaign, 3), (member, 3), (joint, 2), (reader, 2), (paths, 2), (guarded_task, 1)],
)
@pytest.mark.parametrize("contended", [False, True])
async def test_nothing_is_held_after_a_cancel_at_any_step(
    session: Session, other: Session, cycle: Cycle, least: int, contended: bool
) -> None:
    async def hold_for_a_moment() -> None:
        manager = LockManager(other)
        async with (
            Semaphore("s", max_concurrent=2, session=other).hold(2),
            manager.acquire_all(["a", "b"]),
            manager.acquire_paths(["src/a.py"]),
            Election("e", other).campaign(),
        ):
            held.set()
            await asyncio.sleep(0.03)

    held = asyncio.Event()

    async def with_a_rival(session: Session) -> None:
        held.clear()
        rivals.append(asyncio.create_task(hold_for_a_moment()))
        await held.wait()
        await cycle(session)

    async def free() -> bool:
        found = await inspect.semaphore(core_of(other), "s")
        if await LockManager(other).locks() or found.holders or found.waiters:
            return False
        for queues in (elections.queues(), groups.queues()):
            if (await shared_values.read(core_of(other), queues)).entries:
                return False
        return True

    async def nothing_left() -> None:
        await asyncio.gather(*rivals)
        rivals.clear()
        await eventually(free)

    rivals: list[asyncio.Task[None]] = []
    assert await until_cancelled(session, with_a_rival if contended else cycle, nothing_left) >= least


async def test_an_add_that_is_cancelled_is_whole_or_not_at_all(session: Session) -> None:
    queue = DeadLetterQueue("q", session=session)
    runs = 0

    async def add(session: Session) -> None:
        nonlocal runs
        runs += 1
        await queue.add(operation="x", args={"run": runs}, error="e", dedup_key=f"run-{runs}")

    async def look() -> None:
        entries = [entry for entry in await queue.list_entries() if entry.args["run"] == runs]
        assert len(entries) <= 1

    assert await until_cancelled(session, add, look) >= 1
    assert (await queue.list_entries())[-1].args == {"run": runs}  # the one that was not cancelled


async def test_a_worker_that_is_cancelled_at_any_step_leaves_its_entry_to_others(session: Session) -> None:
    queue = DeadLetterQueue("q", session=session)

    @queue.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        await asyncio.sleep(0)

    async def work(session: Session) -> None:
        await queue.add(operation="x", args={}, error="e")
        async with queue.worker(concurrency=1) as worker:
            await worker.settled()

    async def resolved_by_another() -> None:
        async with queue.worker() as worker:
            await asyncio.wait_for(worker.settled(), 5)
        entries = await queue.list_entries()
        assert all(entry.state == "resolved" and not entry.crash_count for entry in entries)
        await queue.purge()

    assert await until_cancelled(session, work, resolved_by_another) >= 3
