"""``rate=`` and ``cost=`` of a pool, on a real etcd."""

from __future__ import annotations

import asyncio
import time

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, LockManager, Rate, RateLimiter, Session
from tests.helpers import eventually
from tests.integration.test_cancel import until_cancelled


async def double(number: int) -> int:
    return 2 * number


def most_within(seconds: float, times: list[float]) -> int:
    return max(sum(begin <= at < begin + seconds for at in times) for begin in times)


async def test_the_pools_of_two_sessions_keep_one_limit(session: Session, other: Session) -> None:
    times: list[float] = []

    async def call(_: int) -> None:
        times.append(time.monotonic())

    async def run(of: Session) -> None:
        limiter = RateLimiter("provider", Rate(20, per=1), session=of)
        async with AsyncWorkerPool(4, session=of, report=False) as pool:
            assert all(result.success for result in await pool.map(call, range(14), rate=limiter))

    await asyncio.gather(run(session), run(other))
    assert len(times) == 28 and most_within(0.95, times) <= 20
    assert times[-1] - times[0] > 0.95


async def test_a_task_waits_for_its_lock_before_it_takes_its_cost(session: Session, other: Session) -> None:
    limiter = RateLimiter("provider", limits={"tokens": Rate(100, per=60)}, session=session)
    async with AsyncWorkerPool(session=session, report=False) as pool:
        async with LockManager(other).acquire("file"):
            cost = {"tokens": 7}
            running = asyncio.create_task(pool.map(double, [1], lock=lambda _: "file", rate=limiter, cost=cost))
            await eventually(lambda: pool.stats().waiting)
            await asyncio.sleep(0.1)
            assert not (await limiter.info()).uses
        (result,) = await running
        assert result.unwrap() == 2
        (use,) = (await limiter.info()).uses
        assert use.dimension == "tokens" and use.used >= 7


async def test_errors_of_the_limiter_are_the_tasks(session: Session, other: Session) -> None:
    await RateLimiter("provider", Rate(10, per=60), session=other).acquire()
    limiters = [RateLimiter("provider", Rate(10, per=per), session=session) for per in (60, 30)]
    async with AsyncWorkerPool(session=session, report=False) as pool:
        small, large = await pool.map(double, [1, 11], rate=limiters[0], cost=lambda item: item)
        (mismatch,) = await pool.map(double, [1], rate=limiters[1])
    assert small.unwrap() == 2 and (large.error_type, large.status) == ("ValueError", "failed")
    assert mismatch.error_type == "LimitMismatch"


@pytest.mark.parametrize("paused", [False, True])
async def test_nothing_waits_or_is_held_after_a_cancel_at_any_step(
    session: Session, other: Session, paused: bool
) -> None:
    limiter, theirs = (RateLimiter("provider", Rate(1_000, per=1), session=of) for of in (session, other))
    rivals: list[asyncio.Task[None]] = []
    begun = asyncio.Event()

    async def pause_for_a_moment() -> None:
        await theirs.throttled(30)
        begun.set()
        await asyncio.sleep(0.03)
        await theirs.resume()

    async def tasks(session: Session) -> None:
        if paused:
            begun.clear()
            rivals.append(asyncio.create_task(pause_for_a_moment()))
            await begun.wait()
        async with AsyncWorkerPool(2, session=session, report=False) as pool:
            try:
                await pool.map(double, range(3), lock=lambda item: f"item:{item}", rate=limiter, cost=2)
            finally:
                stats = pool.stats()
                ended = stats.completed + stats.cancelled + stats.failed + stats.timed_out
                assert stats.running == stats.queued == stats.waiting == 0 and stats.submitted == ended

    async def free() -> bool:
        info = await limiter.info()
        return not (await LockManager(other).locks() or info.waiting or info.paused_until)

    async def nothing_left() -> None:
        await asyncio.gather(*rivals)
        rivals.clear()
        await eventually(free)

    await limiter.acquire()
    assert await until_cancelled(session, tasks, nothing_left) >= 1
