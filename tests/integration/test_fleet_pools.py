"""Every pool of the fleet in view, and pools together with locks, semaphores and dead letters, on a real etcd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Attempt,
    DeadLetter,
    DeadLetterQueue,
    EtcdUnavailable,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.pool.cluster import pools
from codomyrmex.concurrency.pool.reporting import Reporter
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, eventually


async def double(number: int) -> int:
    return 2 * number


async def fail(number: int) -> None:
    raise ValueError(f"no {number}")


async def test_pools_of_two_processes_are_summed_and_go_with_their_sessions(session: Session, other: Session) -> None:
    async with (
        AsyncWorkerPool(2, name="crew", session=session, report=0.1) as here,
        AsyncWorkerPool(3, name="crew", session=other, report=0.1) as there,
    ):
        await here.map(double, range(5))
        await there.map(fail, range(2))

        async def both() -> bool:
            seen = await here.cluster_stats()
            return (seen.submitted, seen.completed, seen.failed) == (7, 5, 2)

        await eventually(both)
        seen = await there.cluster_stats()
        assert len(seen.instances) == 2 and seen.max_workers == 5 and len(seen.hosts) == 1
        await other.close()

        async def one() -> bool:
            return len((await here.cluster_stats()).instances) == 1

        await eventually(one)
    assert await pools(core_of(session)) == []


async def test_nothing_is_written_while_nothing_changes(session: Session) -> None:
    async with AsyncWorkerPool(name="quiet", session=session, report=0.05) as pool:
        await pool.map(double, range(3))
        await asyncio.sleep(0.2)
        with counting(session) as calls:
            await asyncio.sleep(0.5)
        assert not calls


async def test_a_lock_and_a_semaphore_are_held_around_each_item(session: Session) -> None:
    inside: set[str] = set()
    most = 0

    async def work(name: str) -> None:
        nonlocal most
        assert name not in inside
        inside.add(name)
        most = max(most, len(inside))
        await asyncio.sleep(0.01)
        inside.discard(name)

    sem = Semaphore("provider", max_concurrent=2, session=session)
    async with AsyncWorkerPool(6, session=session, report=False) as pool:
        results = await pool.map(work, list("aabbccdd"), lock=lambda name: f"file:{name}", semaphore=sem)
    assert all(result.success for result in results) and most == 2


async def test_a_failed_task_becomes_a_dead_letter(session: Session) -> None:
    dlq = DeadLetterQueue("failed", session=session)
    async with AsyncWorkerPool(name="crew", session=session, report=False, dlq=dlq) as pool:
        (result,) = await pool.map(fail, [7])
    assert result.dead_letter_id
    entry = await dlq.get(result.dead_letter_id)
    assert entry and entry.operation.endswith("fail") and entry.args == {"args": [7], "kwargs": {}}
    assert entry.error == "no 7" and entry.error_type == "ValueError" and entry.metadata["pool"] == "crew"
    await dlq.close()


async def test_a_handler_is_registered_for_the_function_that_failed(session: Session) -> None:
    async with DeadLetterQueue("failed", session=session) as dlq:
        async with AsyncWorkerPool(session=session, report=False, dlq=dlq) as pool:
            await pool.map(fail, [7])
        retried: list[object] = []

        @dlq.handler(AsyncWorkerPool.operation_of(fail))
        async def again(entry: DeadLetter, attempt: Attempt) -> None:
            retried.append(entry.args)

        async with dlq.worker() as worker:
            await asyncio.wait_for(worker.settled(), 5)
    assert retried == [{"args": [7], "kwargs": {}}]


async def test_an_item_whose_lock_is_none_needs_none(session: Session) -> None:
    async with AsyncWorkerPool(session=session, report=False) as pool:
        results = await pool.map(double, [1, 2], lock=lambda item: None if item == 1 else "file")
    assert [result.unwrap() for result in results] == [2, 4]


# A reporter never dies in silence


def failing_first(errors: list[BaseException]) -> Callable[[Reporter], Any]:
    """``Reporter._write``, which raises ``errors`` before it writes anything."""
    write = Reporter._write

    async def written(reporter: Reporter) -> None:
        if errors:
            raise errors.pop(0)
        await write(reporter)

    return written


async def reported(pool: AsyncWorkerPool) -> bool:
    return (await pool.cluster_stats()).completed == 3


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "pool 'crew'" in r.getMessage()]


async def test_a_reporter_that_fails_says_why_and_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = [KeyError("bug"), KeyError("bug"), EtcdUnavailable("away"), KeyError("again")]
    monkeypatch.setattr(Reporter, "_write", failing_first(errors))
    async with AsyncWorkerPool(name="crew", session=session, report=0.02) as pool:
        await pool.map(double, range(3))
        await eventually(lambda: reported(pool))
    said = warnings(caplog)
    assert len(said) == 3 and "KeyError: 'bug'" in said[0] and "EtcdUnavailable: away" in said[1]
    assert [bool(record.exc_info) for record in caplog.records if record.getMessage() in said] == [True, False, True]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), BaseException("worse")])
async def test_a_reporter_that_ends_is_told_and_begins_again(
    error: BaseException, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reporter, "_write", failing_first([error]))
    async with AsyncWorkerPool(name="crew", session=session, report=0.02) as pool:
        await pool.map(double, range(3))
        await eventually(lambda: reported(pool))
    (said,) = warnings(caplog)
    assert "begins again" in said and ("cancelled" in said or "worse" in said)
    assert not any(task.get_name() == "pool-reporter" for task in asyncio.all_tasks())


async def test_a_reporter_that_is_cancelled_begins_again(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncWorkerPool(name="crew", session=session, report=0.02) as pool:
        await pool.map(double, range(2))
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "pool-reporter"]
        task.cancel()
        await asyncio.wait([task])
        await pool.map(double, range(1))
        await eventually(lambda: reported(pool))
    assert len(warnings(caplog)) == 1


async def test_leaving_that_is_cancelled_takes_the_report_back(session: Session) -> None:
    begun = asyncio.Event()

    async def leave() -> None:
        async with AsyncWorkerPool(2, name="crew", session=session, report=0.02) as pool:
            await pool.map(double, range(3))
            await eventually(lambda: reported(pool))
            running.append(asyncio.create_task(pool.map(asyncio.sleep, [60] * 3)))
            await asyncio.sleep(0)
            begun.set()

    running: list[asyncio.Task[Any]] = []
    leaving = asyncio.create_task(leave())
    await begun.wait()
    await asyncio.sleep(0.02)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert {result.status for result in await running[0]} == {"cancelled"}
    assert await pools(core_of(session)) == []
    assert not any(task.get_name().startswith(("pool-reporter", "crew")) for task in asyncio.all_tasks())


def test_a_reporter_follows_its_pool_to_another_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = set()

    async def written(_: Reporter) -> None:
        loops.add(asyncio.get_running_loop())

    monkeypatch.setattr(Reporter, "_write", written)
    pool = AsyncWorkerPool(name="crew", report=0.01)

    async def work() -> None:
        await pool.map(double, range(3))
        await asyncio.sleep(0.01)

    for _ in range(2):
        asyncio.run(work())
    assert len(loops) == 2
