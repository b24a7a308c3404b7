"""A worker that dies of what nobody foresaw is noticed: its task fails, it is logged, and the pool runs on."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import AsyncWorkerPool
from codomyrmex.concurrency.pool.counters import Meter
from codomyrmex.concurrency.pool.job import Course
from codomyrmex.concurrency.pool.source import Source
from tests.unit.pool.test_worker_pool import balanced

LIMIT = 10  # seconds; what hangs fails by it


async def identity(number: int) -> int:
    await asyncio.sleep(0)
    return number


class Injected(Exception):
    pass


def breaks_once(whole: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """``whole``, whose third call raises ``error``."""
    calls = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return whole(*args, **kwargs)

    return broken


@pytest.mark.parametrize("error", [Injected("a bug"), BaseException("worse"), MemoryError()])
@pytest.mark.parametrize(("owner", "name"), [(Meter, "begin"), (Meter, "end"), (Course, "_new_id"), (Course, "run")])
async def test_a_worker_that_dies_costs_its_task_alone(
    owner: type, name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owner, name, breaks_once(getattr(owner, name), error))
    async with AsyncWorkerPool(2) as pool, asyncio.timeout(LIMIT):
        results = await pool.map(identity, range(8))
        (lost,) = [result for result in results if not result.success]
        assert lost.status == "failed" and "worker died" in lost.error and lost.exception is error
        assert pool.stats().completed == 7 and pool.stats().failed == 1 and balanced(pool.stats())
        assert (await pool.submit(identity, 5)).result == 5
    (told,) = [record for record in caplog.records if record.name == "codomyrmex.concurrency"]
    assert told.levelno == logging.ERROR and told.exc_info and told.exc_info[1] is error


async def test_workers_that_always_die_leave_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise Injected

    monkeypatch.setattr(Meter, "begin", broken)
    async with AsyncWorkerPool(2) as pool, asyncio.timeout(LIMIT):
        assert {result.status for result in await pool.map(identity, range(20))} == {"failed"}
        assert [result.status async for result in pool.imap(identity, iter(range(20)))] == ["failed"] * 20
        assert balanced(pool.stats()) and pool.stats().failed == 40


async def test_tasks_for_which_no_worker_can_be_started_fail(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()

    def refuse(loop: asyncio.AbstractEventLoop, steps: Any, **_: Any) -> Any:
        if steps.__qualname__.startswith("Crew._run_jobs"):
            raise Injected("no task today")
        return asyncio.Task(steps, loop=loop)

    pool = AsyncWorkerPool(2)
    loop.set_task_factory(refuse)
    try:
        async with asyncio.timeout(LIMIT):
            results = await pool.map(identity, range(5))
    finally:
        loop.set_task_factory(None)
    assert ["no task today" in result.error for result in results] == [True] * 5 and pool.stats().failed == 5
    assert (await pool.submit(identity, 1)).result == 1 and balanced(pool.stats())


async def test_a_source_that_breaks_is_told_to_its_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "make", breaks_once(Source.make, Injected("a bug")))
    async with AsyncWorkerPool(1) as pool, asyncio.timeout(LIMIT):
        with pytest.raises(Injected):
            await pool.map(identity, iter(range(5)))
        assert (await pool.submit(identity, 1)).result == 1
        assert balanced(pool.stats()) and pool.stats().running == pool.stats().queued == 0


async def test_workers_that_are_cancelled_are_replaced() -> None:
    async def work(number: int) -> int:
        await asyncio.sleep(0.005)
        return number

    async with AsyncWorkerPool(2, name="crew") as pool, asyncio.timeout(LIMIT):
        mapping = asyncio.create_task(pool.map(work, range(12)))
        for _ in range(3):
            await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                if task.get_name() == "crew-worker":
                    task.cancel()
            await asyncio.sleep(0.006)
        statuses = [result.status for result in await mapping]
        assert set(statuses) == {"ok", "cancelled"} and balanced(pool.stats())


def test_a_pool_whose_loop_was_closed_under_its_tasks_serves_another_loop(caplog: pytest.LogCaptureFixture) -> None:
    pool = AsyncWorkerPool(2)
    loop = asyncio.new_event_loop()
    left = loop.create_task(pool.map(asyncio.sleep, [60] * 5))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert pool.stats().running == 2 and pool.stats().queued == 3

    async def go_on() -> None:
        async with asyncio.timeout(LIMIT):
            assert (await pool.submit(identity, 1)).result == 1
            await pool.shutdown()

    asyncio.run(go_on())
    stats = pool.stats()
    assert balanced(stats) and (stats.completed, stats.cancelled, stats.running, stats.queued) == (1, 5, 0, 0)
    del left
    gc.collect()
    assert {record.name for record in caplog.records} == {"asyncio"}  # which says that tasks were destroyed, as ever
