"""``rate=`` and ``cost=`` of a pool, with a limiter that grants at once; no etcd is involved."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    EtcdUnavailable,
    LimitMismatch,
    Rate,
    RateLimiter,
    RetryPolicy,
    sync,
)
from tests.helpers import eventually

QUICK = RetryPolicy(max_attempts=3, initial=0.01, jitter=0)
NAMED = {"requests": Rate(100, per=60), "tokens": Rate(5_000, per=60)}


class Granting(RateLimiter):
    """A limiter that notes each cost and grants it after ``delay`` seconds, or raises ``error``."""

    def __init__(self, *args: Any, delay: float = 0.0, error: Exception | None = None, **kwargs: Any) -> None:
        super().__init__("provider", *args, **kwargs)
        self.costs: list[Any] = []
        self.delay = delay
        self.error = error

    async def acquire(self, amount: int | None = None, /, *, timeout: float | None = None, **cost: int) -> None:
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        assert timeout is None
        self.costs.append(cost or amount)


def unnamed(**options: Any) -> Granting:
    return Granting(Rate(100, per=60), **options)


def named(**options: Any) -> Granting:
    return Granting(limits=NAMED, **options)


async def double(number: int) -> int:
    return 2 * number


def process_id(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize(
    ("limiter", "cost", "taken"),
    [
        (unnamed, None, [None, None]),
        (unnamed, 5, [5, 5]),
        (unnamed, lambda item: item * 10, [10, 20]),
        (named, {"requests": 1}, [{"requests": 1}] * 2),
        (named, lambda item: {"requests": 1, "tokens": item}, [{"requests": 1, "tokens": n} for n in (1, 2)]),
    ],
)
async def test_each_item_takes_its_cost(limiter: Any, cost: Any, taken: list[Any]) -> None:
    rate = limiter()
    async with AsyncWorkerPool(1) as pool:
        results = await pool.map(double, [1, 2], rate=rate, cost=cost)
        assert [result.unwrap() for result in results] == [2, 4] and rate.costs == taken
        rate.costs.clear()
        assert [result.unwrap() async for result in pool.imap(double, [1, 2], rate=rate, cost=cost)] == [2, 4]
        assert rate.costs == taken


async def test_each_attempt_takes_the_cost_before_it_runs() -> None:
    rate, seen = unnamed(), []

    async def fails_twice(item: int) -> int:
        seen.append(len(rate.costs))
        if len(seen) < 3:
            raise OSError
        return item

    async with AsyncWorkerPool(retry=QUICK) as pool:
        (result,) = await pool.map(fails_twice, [7], rate=rate, cost=2)
    assert result.unwrap() == 7 and seen == [1, 2, 3] and rate.costs == [2, 2, 2]


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_plain_functions_wait_too(executor: Any) -> None:
    rate = unnamed()
    async with AsyncWorkerPool(2, executor=executor) as pool:
        results = await pool.map(process_id, range(2), rate=rate)
    assert all((result.unwrap() == os.getpid()) == (executor == "thread") for result in results)
    assert rate.costs == [None, None]


async def test_the_wait_is_counted_and_is_no_part_of_the_time_limit() -> None:
    rate = unnamed(delay=0.3)
    async with AsyncWorkerPool(1, task_timeout=0.2) as pool:
        running = asyncio.create_task(pool.map(double, [1], rate=rate))
        await eventually(lambda: pool.stats().waiting == 1)
        (result,) = await running
        assert result.unwrap() == 2 and pool.stats().waiting == 0


async def test_a_wait_that_is_cancelled_runs_nothing() -> None:
    ran = []
    pool = AsyncWorkerPool(1)
    running = asyncio.create_task(pool.map(ran.append, [1, 2], rate=unnamed(delay=30)))
    await asyncio.sleep(0.02)
    await pool.shutdown(drain=False)
    assert [result.status for result in await running] == ["cancelled"] * 2 and ran == []


async def test_a_semaphore_is_held_before_the_cost_is_taken() -> None:
    rate, held_at = unnamed(), []

    class Held:
        async def __aenter__(self) -> None:
            held_at.append(len(rate.costs))

        async def __aexit__(self, *_: object) -> None:
            """Release nothing."""

    async with AsyncWorkerPool(1) as pool:
        await pool.map(double, [1, 2], rate=rate, semaphore=Held())  # type: ignore[call-overload]
    assert held_at == [0, 1] and len(rate.costs) == 2


async def test_a_cost_function_that_fails_fails_only_its_task() -> None:
    costs: dict[int, Any] = {1: 1, 3: None, 4: {"timeout": 5}}
    async with AsyncWorkerPool(retry=RetryPolicy(max_attempts=2, initial=0.01)) as pool:
        one, two, three, four = await pool.map(double, [1, 2, 3, 4], rate=unnamed(), cost=lambda item: costs[item])
    assert one.unwrap() == 2
    assert (two.status, two.error_type, two.attempts) == ("failed", "KeyError", 2)
    assert three.error_type == "TypeError" and "must return an int or a dict, not None" in three.error
    assert four.error_type == "TypeError" and "timeout" in four.error


@pytest.mark.parametrize("error", [EtcdUnavailable("no answer"), LimitMismatch("others"), ValueError("too much")])
async def test_an_error_of_the_limiter_is_the_tasks(error: Exception) -> None:
    async with AsyncWorkerPool() as pool:
        (result,) = await pool.map(double, [1], rate=unnamed(error=error))
    assert result.status == "failed" and result.exception is error and result.error == str(error)


@pytest.mark.parametrize(
    ("rate", "cost", "kind", "text"),
    [
        (None, 1, TypeError, "give the limiter as rate="),
        (5, None, TypeError, "rate must be a RateLimiter"),
        (lambda: sync.RateLimiter("x", Rate(1, per=60)), None, TypeError, "RateLimiter of codomyrmex.concurrency, not"),
        (unnamed, "1", TypeError, "must be an int"),
        (unnamed, 0, ValueError, "at least 1"),
        (unnamed, 1_000_001, ValueError, "the cost is 1000001, but the limit is"),
        (unnamed, {"tokens": 1}, ValueError, "no dimension 'tokens'"),
        (unnamed, {"timeout": 1}, ValueError, "no dimension 'timeout'"),
        (named, None, TypeError, "such as requests=1"),
        (named, {}, TypeError, "such as requests=1"),
        (named, 5, TypeError, "name the dimension"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_runs(
    rate: Any, cost: Any, kind: type[Exception], text: str
) -> None:
    async with AsyncWorkerPool() as pool:
        with pytest.raises(kind, match=text):
            await pool.map(double, [1], rate=rate() if callable(rate) else rate, cost=cost)
        assert pool.stats().submitted == 0
