"""The behaviour of a pool that its user sees; no etcd is involved."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency import AsyncWorkerPool, PoolClosed, PoolStats, RetryPolicy, TaskResult
from codomyrmex.concurrency.models import Routed
from codomyrmex.concurrency.pool.histogram import Histogram

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
QUICK = RetryPolicy(max_attempts=3, initial=0.01, jitter=0)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail_odd(number: int) -> int:
    if number % 2:
        raise ValueError(f"odd: {number}")
    return number


def plain(number: int) -> tuple[int, str, str]:
    return number, threading.current_thread().name, variable.get()


def whose(number: int) -> tuple[int, int]:
    return number, os.getpid()


def balanced(stats: PoolStats) -> bool:
    ended = stats.completed + stats.failed + stats.timed_out + stats.cancelled
    return stats.submitted == ended + stats.running + stats.queued and stats.queued >= 0 and stats.running >= 0


async def test_results_come_in_the_order_of_the_items() -> None:
    pool = AsyncWorkerPool(max_workers=4)
    results: list[TaskResult] = await pool.map(double, range(50))
    assert [result.unwrap() for result in results] == [2 * n for n in range(50)]
    assert all(r.success and r.status == "ok" and r.attempts == 1 and r.error == "" for r in results)
    assert len({result.task_id for result in results}) == 50
    stats = pool.stats()
    assert (stats.submitted, stats.completed, stats.queued, stats.running) == (50, 50, 0, 0)
    assert len(asyncio.all_tasks()) == 1  # an idle pool runs nothing


async def test_no_more_than_max_workers_run_at_once() -> None:
    running = most = 0

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    async with AsyncWorkerPool(max_workers=3) as pool:
        await asyncio.gather(pool.map(work, range(20)), pool.map(work, range(20)), pool.submit(work, 1))
    assert most == 3


async def test_a_failure_is_in_its_result_and_nowhere_else() -> None:
    async with AsyncWorkerPool() as pool:
        results = await pool.map(fail_odd, range(4))
    assert [result.success for result in results] == [True, False, True, False]
    bad = results[1]
    assert bad.status == "failed" and bad.error == "odd: 1" and bad.error_type == "ValueError"
    assert "raise ValueError" in bad.traceback and bad.result is None
    with pytest.raises(ValueError, match="odd: 1"):
        bad.unwrap()


@pytest.mark.parametrize("error", [ValueError(), KeyError(""), RuntimeError("x" * 10_000), asyncio.CancelledError()])
async def test_an_error_is_never_empty_and_bounded(error: BaseException) -> None:
    async def raise_it() -> None:
        raise error

    result = await AsyncWorkerPool().submit(raise_it)
    assert not result.success and 0 < len(result.error) <= 2048
    assert result.status == ("cancelled" if isinstance(error, asyncio.CancelledError) else "failed")


async def test_submit_takes_arguments_and_an_id() -> None:
    async def add(one: int, *, two: int) -> int:
        return one + two

    pool = AsyncWorkerPool()
    result = await pool.submit(add, 1, two=2, task_id="mine")
    assert result.result == 3 and result.task_id == "mine" and result.elapsed_ms >= 0 and result.wait_ms >= 0


async def test_plain_functions_run_in_threads_with_the_callers_context() -> None:
    variable.set("caller")
    async with AsyncWorkerPool(max_workers=2, name="crew") as pool:
        results = await pool.map(plain, range(10))
    assert all(result.result[1].startswith("crew") and result.result[2] == "caller" for result in results)
    assert len({result.result[1] for result in results}) <= 2


async def test_each_async_task_has_a_context_of_its_own() -> None:
    async def read_and_set(number: int) -> str:
        seen = variable.get()
        variable.set(str(number))
        await asyncio.sleep(0.001)
        assert variable.get() == str(number)
        return seen

    async def caller(name: str) -> list[str]:
        variable.set(name)
        return [result.unwrap() for result in await pool.map(read_and_set, range(5))]

    async with AsyncWorkerPool(max_workers=3) as pool:
        seen = await asyncio.gather(*(asyncio.create_task(caller(name)) for name in "ab"))
    assert seen == [["a"] * 5, ["b"] * 5]


async def test_plain_functions_run_in_processes() -> None:
    async with AsyncWorkerPool(max_workers=2, executor="process") as pool:
        results = await pool.map(whose, range(4))
        assert [result.unwrap()[0] for result in results] == [0, 1, 2, 3]
        assert os.getpid() not in {result.unwrap()[1] for result in results}
        with pytest.raises(TypeError, match="cannot be pickled"):
            await pool.map(lambda number: number, [1])
        with pytest.raises(TypeError, match="is async"):
            await pool.map(double, [1])
        assert pool.stats().submitted == 4


class Doubler:
    async def __call__(self, number: int) -> int:
        return number

    async def method(self, number: int) -> int:
        return number


@pytest.mark.parametrize("function", [Doubler(), Doubler().method, functools.partial(double)])
async def test_whatever_is_async_runs_on_the_loop(function: Any) -> None:
    result = await AsyncWorkerPool().submit(function, 1)
    assert result.success


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 1.5}, ValueError),
        ({"max_workers": True}, ValueError),
        ({"task_timeout": 0}, ValueError),
        ({"task_timeout": float("nan")}, ValueError),
        ({"executor": "fork"}, ValueError),
        ({"report": -1.0}, ValueError),
        ({"name": ""}, ValueError),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        AsyncWorkerPool(**wrong)


async def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="must be callable"):
        await AsyncWorkerPool().submit(42)  # type: ignore[arg-type]


async def test_an_attempt_that_takes_too_long_times_out() -> None:
    pool = AsyncWorkerPool(task_timeout=0.05)
    result = await pool.submit(asyncio.sleep, 5)
    assert result.status == "timeout" and "0.05 s" in result.error and pool.stats().timed_out == 1

    async def own() -> None:
        raise TimeoutError("the task's own")

    assert (await pool.submit(own)).status == "failed"


async def test_threads_that_cannot_be_ended_count_until_they_are_done() -> None:
    running = most = 0

    def slow(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.15)
        running -= 1

    async with AsyncWorkerPool(max_workers=2, task_timeout=0.05) as pool:
        results = await pool.map(slow, range(4))
        assert {result.status for result in results} == {"timeout"}
        await asyncio.sleep(0.3)
    assert most <= 2


async def test_a_failed_task_is_tried_again() -> None:
    tries: list[int] = []

    async def third_time() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return "ok"

    pool = AsyncWorkerPool(retry=QUICK)
    result = await pool.submit(third_time)
    assert result.success and result.attempts == 3 and pool.stats().retried == 2
    tries.clear()
    assert (await AsyncWorkerPool(retry=RetryPolicy(give_up_on=OSError)).submit(third_time)).attempts == 1  # type: ignore[arg-type]


class Sink:
    def __init__(self, answer: Routed | Exception) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    async def route(self, **what: Any) -> Routed:
        self.calls.append(what)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_what_fails_for_good_goes_to_the_dead_letters() -> None:
    sink = Sink(Routed("id-1", ""))
    async with AsyncWorkerPool(name="crew", dlq=sink, retry=QUICK) as pool:
        result = await pool.submit(fail_odd, 1, task_id="t")
        assert (await pool.submit(fail_odd, 2)).dead_letter_id is None
    assert result.dead_letter_id == "id-1" and result.attempts == 3 and pool.stats().dead_lettered == 1
    (call,) = sink.calls
    assert call["operation"] == "tests.unit.pool.test_worker_pool.fail_odd" and call["args"] == {
        "args": [1],
        "kwargs": {},
    }
    assert isinstance(call["error"], ValueError)
    assert call["metadata"].items() >= {"pool": "crew", "task_id": "t", "attempts": 3, "pid": os.getpid()}.items()


async def test_a_dead_letter_that_cannot_be_stored_is_said_in_the_result() -> None:
    pool = AsyncWorkerPool(dlq=Sink(RuntimeError("etcd is on fire")))
    result = await pool.submit(fail_odd, 1)
    assert result.error == "odd: 1" and result.dead_letter_id is None and "etcd is on fire" in result.dead_letter_note
    assert pool.stats().dead_lettered == 0


async def test_results_come_as_they_are_ready_or_in_order() -> None:
    async def sleep(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    times = [0.08, 0.01, 0.04, 0.02]
    async with AsyncWorkerPool(max_workers=4) as pool:
        assert [r.result async for r in pool.imap(sleep, times)] == sorted(times)
        assert [r.result async for r in pool.imap(sleep, times, ordered=True)] == times


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_endless_iterable_is_taken_only_as_results_are(ordered: bool) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with AsyncWorkerPool(max_workers=3) as pool:
        results = pool.imap(double, endless(), ordered=ordered)
        for count in range(1, 11):
            await anext(results)
            await asyncio.sleep(0.002)
            assert taken <= count + 6
        await results.aclose()  # type: ignore[attr-defined]
        assert balanced(pool.stats()) and pool.stats().running == pool.stats().queued == 0


async def test_an_async_iterable_is_taken_likewise() -> None:
    taken = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal taken
        for number in itertools.count(1):
            await asyncio.sleep(0)
            taken = number
            yield number

    async def few() -> AsyncIterator[int]:
        for number in range(7):
            yield number

    async with AsyncWorkerPool(max_workers=3) as pool:
        results = pool.imap(double, endless())
        for count in range(1, 11):
            await anext(results)
            await asyncio.sleep(0.002)
            assert taken <= count + 8
        await results.aclose()  # type: ignore[attr-defined]
        assert [r.result for r in await pool.map(double, few())] == [2 * n for n in range(7)]


async def test_news_reach_both_the_caller_and_the_items() -> None:
    """While the window is full, an ``imap`` waits for a result, and its async items wait for room."""

    async def items() -> AsyncIterator[int]:
        for number in range(6):
            yield number

    async def work(number: int) -> int:
        await asyncio.sleep(0.002)
        return number

    async with AsyncWorkerPool(1) as pool, asyncio.timeout(5):
        assert [result.unwrap() async for result in pool.imap(work, items())] == list(range(6))


async def test_what_the_items_raise_is_raised_once_all_has_ended() -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from (1, 2)
        raise RuntimeError("no more items")

    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        done.append(number)

    async with AsyncWorkerPool() as pool:
        with pytest.raises(RuntimeError, match="no more items"):
            await pool.map(work, items())
        assert sorted(done) == [1, 2]


async def test_many_items_run_in_flat_memory() -> None:
    async def nothing(_: int) -> None: ...

    async with AsyncWorkerPool(max_workers=8) as pool:
        tracemalloc.start()
        count = 0
        async for _ in pool.imap(nothing, range(30_000)):
            count += 1
            if count == 2_000:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == 30_000 and peak - before < 500_000


@pytest.mark.parametrize("way", ["submit", "map", "imap"])
async def test_cancelling_the_caller_cancels_its_tasks_and_leaks_nothing(way: str) -> None:
    began: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        began.append(number)
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.01)
            ended.append(number)

    async def call(pool: AsyncWorkerPool) -> None:
        if way == "submit":
            await pool.submit(work, 1)
        elif way == "map":
            await pool.map(work, range(10))
        else:
            async for _ in pool.imap(work, range(10)):
                pass

    async with AsyncWorkerPool(max_workers=3) as pool:
        other = asyncio.create_task(pool.submit(double, 4))
        caller = asyncio.create_task(call(pool))
        await asyncio.sleep(0.05)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert set(began) == set(ended) and len(began) == (1 if way == "submit" else 3)
        assert (await other).result == 8
        assert (await pool.submit(double, 1)).result == 2
        stats = pool.stats()
        assert balanced(stats) and stats.running == stats.queued == 0
    assert len(asyncio.all_tasks()) == 1


async def test_shutdown_drains() -> None:
    pool = AsyncWorkerPool(max_workers=2)
    mapping = asyncio.create_task(pool.map(lambda n: time.sleep(0.01), range(10)))
    await asyncio.sleep(0.01)
    await asyncio.gather(pool.shutdown(), pool.shutdown())
    assert all(result.success for result in await mapping)
    for closed in (pool.submit(double, 1), pool.map(double, [1])):
        with pytest.raises(PoolClosed):
            await closed
    with pytest.raises(PoolClosed):
        await anext(pool.imap(double, [1]))
    await pool.shutdown()


@pytest.mark.parametrize("how", [{"drain": False}, {"timeout": 0.05}])
async def test_shutdown_cancels_what_may_not_finish(how: dict[str, Any]) -> None:
    pool = AsyncWorkerPool(max_workers=2)
    mapping = asyncio.create_task(pool.map(asyncio.sleep, [10] * 6))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await pool.shutdown(**how)
    assert time.monotonic() - started < 1
    results = await mapping
    assert [result.status for result in results] == ["cancelled"] * 6 and all(result.error for result in results)
    assert balanced(pool.stats()) and pool.stats().cancelled == 6


async def test_a_block_that_fails_cancels_its_tasks() -> None:
    with pytest.raises(RuntimeError, match="the block"):
        async with AsyncWorkerPool() as pool:
            mapping = asyncio.create_task(pool.map(asyncio.sleep, [10] * 6))
            await asyncio.sleep(0.01)
            raise RuntimeError("the block fails")
    assert {result.status for result in await mapping} == {"cancelled"}


def test_a_pool_serves_one_loop_after_another() -> None:
    pool = AsyncWorkerPool()
    for _ in range(3):
        assert [result.result for result in asyncio.run(pool.map(double, [1, 2]))] == [2, 4]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_at_every_moment_each_task_is_counted_once(seed: int, workers: int) -> None:
    asyncio.run(_anything_goes(random.Random(seed), workers))


async def _anything_goes(chance: random.Random, workers: int) -> None:
    pool = AsyncWorkerPool(workers, retry=chance.choice([None, QUICK]), task_timeout=chance.choice([None, 0.004]))

    async def work(_: int) -> None:
        assert balanced(pool.stats())
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.008]))
        assert balanced(pool.stats())
        if chance.random() < 0.2:
            raise ValueError("bad")

    async def collect(count: int) -> None:
        async for _ in pool.imap(work, range(count)):
            assert balanced(pool.stats())
            if chance.random() < 0.05:
                break

    calls: list[asyncio.Task[Any]] = []
    for _ in range(6):
        count = chance.randint(0, 8)
        way = chance.choice(["sized", "unsized", "imap"])
        if way == "imap":
            calls.append(asyncio.create_task(collect(count)))
        else:
            calls.append(asyncio.create_task(pool.map(work, range(count) if way == "sized" else iter(range(count)))))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 0.002]))
            chance.choice(calls).cancel()
        assert balanced(pool.stats())
    if chance.random() < 0.5:
        await pool.shutdown(drain=chance.random() < 0.5)
    await asyncio.gather(*calls, return_exceptions=True)
    await pool.shutdown()
    stats = pool.stats()
    assert balanced(stats) and stats.running == stats.queued == 0


async def test_progress_is_told() -> None:
    told: list[tuple[int, int | None]] = []
    async with AsyncWorkerPool(progress=lambda done, total: told.append((done, total))) as pool:
        await pool.map(double, [1, 2, 3])
        async for _ in pool.imap(double, iter([1, 2])):
            pass
    assert told == [(1, 3), (2, 3), (3, 3), (1, None), (2, None)]


async def test_the_figures_tell_times_and_origin() -> None:
    async with AsyncWorkerPool(2, name="crew") as pool:
        await pool.map(asyncio.sleep, [0.02] * 6)
        stats = pool.stats()
    assert 15 < stats.p50_ms < 60 and stats.p50_ms <= stats.p95_ms <= stats.p99_ms
    assert stats.total_elapsed_ms >= 6 * 20 and stats.throughput > 0 and stats.loop_lag_ms >= 0
    assert (stats.name, stats.pid, stats.max_workers) == ("crew", os.getpid(), 2) and stats.host and stats.instance


@given(st.lists(st.floats(0.001, 1e8), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_right_to_within_a_bucket(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-len(values) * share // 1).__int__() - 1)]
    assert exact / 1.11 <= histogram.percentile(share) <= exact * 1.11


def test_the_pool_imports_no_etcd() -> None:
    code = (
        "import sys, codomyrmex.concurrency.pool.worker_pool\n"
        "bad = [m for m in sys.modules if m in ('google.protobuf', 'hpack') or "
        "m.startswith('codomyrmex.concurrency.') and "
        "m.split('.')[2] in ('session', 'etcd', 'queue', 'locks', 'manager', 'fleet')]\n"
        "assert not bad, bad"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_operation_has_the_name_by_which_it_can_be_imported(tmp_path: Path) -> None:
    code = "from codomyrmex.concurrency.pool.executors import describe\ndef work(): pass\nprint(describe(work))\n"
    (tmp_path / "jobs.py").write_text(code)
    for command in (["jobs.py"], ["-m", "jobs"], ["-c", "import jobs"]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout == "jobs.work\n"


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_a_function_that_exits_or_cannot_say_its_error_fails_and_harms_nobody() -> None:
    def exits(_: int) -> None:
        sys.exit(3)

    async def exits_too(_: int) -> None:
        raise SystemExit(4)

    async def mute(_: int) -> None:
        raise _Mute

    async with AsyncWorkerPool(2) as pool:
        for function, kind in ((exits, "SystemExit"), (exits_too, "SystemExit"), (mute, "_Mute")):
            results = await pool.map(function, range(3))
            assert {(result.status, result.error_type) for result in results} == {("failed", kind)}
            assert all(result.error for result in results)
        assert (await pool.map(abs, [-1]))[0].unwrap() == 1
        assert balanced(pool.stats())


async def _items(_: int) -> AsyncIterator[int]:
    yield 1


def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    for wrong in ({"retry": 5}, {"dlq": 5}, {"progress": 5}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            AsyncWorkerPool(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "more", "text"),
    [
        (_items, {}, "async generator"),
        (abs, {"lock": "x"}, "lock must be"),
        (abs, {"semaphore": 5}, "semaphore must be"),
    ],
)
async def test_a_map_that_makes_no_sense_is_refused(function: Any, more: dict[str, Any], text: str) -> None:
    async with AsyncWorkerPool() as pool:
        with pytest.raises(TypeError, match=text):
            await pool.map(function, [1], **more)
        assert pool.stats().submitted == 0
