"""Items that end in odd ways, pools that are left or shut down, and both cancelled: nothing is lost or leaked."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, PoolClosed, TaskResult
from codomyrmex.concurrency.models import Routed
from tests.helpers import eventually
from tests.unit.pool.test_worker_pool import balanced

LIMIT = 5  # seconds; what hangs fails by it


async def identity(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def nobody_left() -> None:
    """No task but the test's own."""
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def over(pool: AsyncWorkerPool) -> bool:
    stats = pool.stats()
    return balanced(stats) and stats.running == stats.queued == 0


def no_thread_of(name: str) -> Callable[[], Awaitable[bool]]:
    async def none() -> bool:
        return not any(thread.name.startswith(name) for thread in threading.enumerate())

    return none


# Items that end in odd ways


ENDS = [
    asyncio.CancelledError,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    StopAsyncIteration,
    BaseException,
    ValueError,
]


class Plain:
    """Gives two items and then raises; a generator would turn some errors into others."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.left = 2

    def step(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.kind
        return self.left

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return self.step()


class Async(Plain):
    __iter__ = None  # type: ignore[assignment]

    def __aiter__(self) -> AsyncIterator[int]:
        return self  # type: ignore[return-value]

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        return self.step()


@pytest.mark.parametrize("way", ["map", "imap", "ordered"])
@pytest.mark.parametrize("source", [Plain, Async])
@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.__name__)
async def test_whatever_the_items_end_with_is_raised_to_the_consumer(
    kind: type[BaseException], source: Callable[[type[BaseException]], Any], way: str
) -> None:
    results: list[TaskResult] = []

    async def consume(pool: AsyncWorkerPool) -> BaseException | None:
        try:
            if way == "map":
                results.extend(await pool.map(identity, source(kind)))
            else:
                async for result in pool.imap(identity, source(kind), ordered=way == "ordered"):
                    results.append(result)
        except BaseException as error:
            return error
        return None

    async with AsyncWorkerPool(1) as pool, asyncio.timeout(LIMIT) as limit:
        raised = await consume(pool)
        assert not limit.expired()  # that would be a cancel too
        if source is Async and kind is StopAsyncIteration:
            assert raised is None  # which is how such items end
        elif kind is StopAsyncIteration:
            assert isinstance(raised, RuntimeError) and isinstance(raised.__cause__, StopAsyncIteration)
        else:
            assert type(raised) is kind
        assert pool.stats().completed == 2 and (way == "map" or len(results) == 2)
        assert (await pool.submit(identity, 1)).result == 1 and over(pool)
        await nobody_left()


async def test_a_source_that_is_left_ends_before_the_call_does() -> None:
    events: list[str] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            events.append("given back")

    async with AsyncWorkerPool(1) as pool, asyncio.timeout(LIMIT):
        results = pool.imap(identity, items())
        assert (await anext(results)).result == 1
        await results.aclose()  # type: ignore[attr-defined]
        assert events == ["given back"]
        await nobody_left()


async def test_a_cancel_while_an_imap_is_left_is_not_lost() -> None:
    """The caller's own cancel comes while it waits for its tasks to end."""
    ended: list[int] = []

    async def work(number: int) -> int:
        if number:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                ended.append(number)
        return number

    async def leave(pool: AsyncWorkerPool) -> None:
        results = pool.imap(work, range(2))
        await anext(results)
        await results.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async with AsyncWorkerPool(2) as pool, asyncio.timeout(LIMIT):
        leaving = asyncio.create_task(leave(pool))
        await asyncio.sleep(0.02)
        leaving.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert time.monotonic() - started < LIMIT / 2 and over(pool)


# Leaving


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("how", [{"drain": False}, {"timeout": 0.02}])
async def test_a_shutdown_cancels_what_runs_however_few_there_are(how: dict[str, Any], count: int) -> None:
    """Sources of which every item has been taken are cancelled like those with some left."""
    pool = AsyncWorkerPool(4)
    mapping = asyncio.create_task(pool.map(asyncio.sleep, [60] * count))
    single = asyncio.create_task(pool.submit(asyncio.sleep, 60))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(LIMIT):
        await pool.shutdown(**how)
        assert {result.status for result in [*await mapping, await single]} == {"cancelled"}
    assert over(pool) and pool.stats().cancelled == count + 1
    await nobody_left()


@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("how", ["block", "drain", "now"])
async def test_leaving_that_is_cancelled_ends_everything_and_delivers_it(how: str, cancels: int) -> None:
    pool = AsyncWorkerPool(3)
    cleaned: list[int] = []

    async def work(number: int) -> int:
        assert balanced(pool.stats())
        if number < 2:
            return number
        try:
            await asyncio.sleep(60)
        finally:
            assert balanced(pool.stats())
            await asyncio.sleep(0.02)
            cleaned.append(number)
        return number

    async def endless() -> AsyncIterator[int]:
        yield 2
        await asyncio.sleep(60)

    begun = asyncio.Event()

    async def leave() -> None:
        if how == "block":
            async with pool:
                await asyncio.sleep(0.01)
                begun.set()
        else:
            await asyncio.sleep(0.01)
            begun.set()
            await pool.shutdown(drain=how == "drain")

    mapping = asyncio.create_task(pool.map(work, range(6)))
    other = asyncio.create_task(pool.map(work, endless()))
    leaving = asyncio.create_task(leave())
    await begun.wait()
    await asyncio.sleep(0.01)
    for _ in range(cancels):
        leaving.cancel()
        await asyncio.sleep(0.001)
        assert balanced(pool.stats())
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert over(pool)
        results = await mapping
        assert [result.status for result in results] == ["ok"] * 2 + ["cancelled"] * 4
        assert {result.status for result in await other} <= {"cancelled"}
    if cancels == 1 and how != "now":  # a second cancel reaches the tasks too, even their clean-up
        assert cleaned
    with pytest.raises(PoolClosed):
        await pool.submit(identity, 1)
    await nobody_left()


async def test_a_function_that_will_not_be_cancelled_is_told_at_each_cancel_of_who_leaves() -> None:
    """The wait has a way out: who is cancelled again passes it on."""
    told = 0

    async def stubborn() -> None:
        nonlocal told
        while told < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told += 1

    pool = AsyncWorkerPool(1)
    running = asyncio.create_task(pool.submit(stubborn))
    await asyncio.sleep(0.01)
    leaving = asyncio.create_task(pool.shutdown(drain=False))
    async with asyncio.timeout(LIMIT):
        while not leaving.done():
            await asyncio.sleep(0.005)
            leaving.cancel()
        assert (await running).status == "ok" and told == 3 and over(pool)


async def test_an_imap_that_nobody_reads_does_not_keep_its_items_after_the_shutdown() -> None:
    async def endless() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield 1

    pool = AsyncWorkerPool(1)
    results = pool.imap(identity, endless())
    await anext(results)
    async with asyncio.timeout(LIMIT):
        await pool.shutdown(timeout=0.02)
        await nobody_left()
        rest = [result.status async for result in results]
    assert set(rest) <= {"ok", "cancelled"} and over(pool)


async def test_a_thread_that_cannot_be_ended_is_said(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    pool = AsyncWorkerPool(2, name="crew")
    running = asyncio.create_task(pool.submit(release.wait, 60))
    await asyncio.sleep(0.05)
    with caplog.at_level(logging.WARNING, "codomyrmex.concurrency"):
        await pool.shutdown(drain=False)
    assert (await running).status == "cancelled" and over(pool)
    assert [record.message for record in caplog.records] == [
        "the pool 'crew' leaves 1 threads behind, which cannot be ended"
    ]
    release.set()
    await eventually(no_thread_of("crew"))


async def test_a_drained_pool_leaves_no_thread() -> None:
    async with AsyncWorkerPool(2, name="drained") as pool:
        await pool.map(time.sleep, [0.01] * 4)
    await eventually(no_thread_of("drained"))


@pytest.mark.parametrize("way", ["submit", "map", "imap", "shutdown"])
async def test_a_cancel_at_any_step_leaves_the_counters_whole(way: str) -> None:
    """Cancels the caller after each number of steps of the loop, up to the one at which it ends by itself."""

    class Sink:
        async def route(self, **what: Any) -> Routed:
            await asyncio.sleep(0)
            return Routed("id", "")

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        if number % 3 == 1:
            raise ValueError(number)
        return number

    async def items() -> AsyncIterator[int]:
        for number in range(4):
            await asyncio.sleep(0)
            yield number

    async def call(pool: AsyncWorkerPool) -> None:
        if way == "submit":
            await pool.submit(work, 1)
        elif way == "map":
            await pool.map(work, range(4))
        elif way == "imap":
            async for _ in pool.imap(work, items()):
                assert balanced(pool.stats())
        else:
            beside = asyncio.create_task(pool.map(work, range(4)))
            try:
                await asyncio.sleep(0)
                await pool.shutdown()
            finally:
                assert len(await beside) == 4

    for steps in range(100):
        pool = AsyncWorkerPool(2, dlq=Sink())
        caller = asyncio.create_task(call(pool))
        for _ in range(steps):
            await asyncio.sleep(0)
            assert balanced(pool.stats())
        if caller.done():
            break
        caller.cancel()
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(caller, return_exceptions=True)
            await pool.shutdown()
        assert over(pool)
        await nobody_left()
    else:
        pytest.fail("it never ended")
    assert steps > 3


async def test_a_task_that_never_began_keeps_the_id_of_its_caller() -> None:
    pool = AsyncWorkerPool(1)
    began = asyncio.Event()

    async def waits() -> None:
        began.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(pool.submit(waits, task_id="a"))
    second = asyncio.create_task(pool.submit(waits, task_id="b"))
    await began.wait()
    await pool.shutdown(drain=False)
    results = await asyncio.wait_for(asyncio.gather(first, second), LIMIT)
    assert [(result.task_id, result.status) for result in results] == [("a", "cancelled"), ("b", "cancelled")]
