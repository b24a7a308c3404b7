"""Nothing that one task of a pool does, raises or leaves behind reaches another task, the workers or the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, RetryPolicy
from codomyrmex.concurrency.models import Routed
from tests.unit.pool.test_worker_pool import balanced

LIMIT = 10  # seconds; what hangs fails by it


async def identity(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def unharmed(pool: AsyncWorkerPool, count: int = 20) -> None:
    """The pool runs on as if nothing had been."""
    async with asyncio.timeout(LIMIT):
        assert [result.unwrap() for result in await pool.map(identity, range(count))] == list(range(count))
        assert (await pool.submit(abs, -1)).unwrap() == 1
    stats = pool.stats()
    assert balanced(stats) and stats.running == stats.queued == 0


# What functions raise


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Deadly(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Cancels(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class BadSyntax(SyntaxError):
    """Breaks the formatting of its traceback."""

    @property
    def text(self) -> Any:  # type: ignore[override]
        raise GeneratorExit


class BadNotes(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit(5)


RAISED = {
    StopIteration: "failed",
    StopAsyncIteration: "failed",
    GeneratorExit: "failed",
    SystemExit: "failed",
    BaseException: "failed",
    BaseExceptionGroup: "failed",
    asyncio.CancelledError: "cancelled",
    FutureCancelled: "failed",
    Mute: "failed",
    Deadly: "failed",
    Cancels: "failed",
    BadSyntax: "failed",
    BadNotes: "failed",
}


def make(kind: type[BaseException]) -> BaseException:
    return BaseExceptionGroup("several", [ValueError("x")]) if kind is BaseExceptionGroup else kind()


def raiser(kind: type[BaseException]) -> None:
    raise make(kind)


async def async_raiser(kind: type[BaseException]) -> None:
    raise make(kind)


async def cancel_late(parent: asyncio.Task[Any], seconds: float) -> None:
    """As a child that a task leaves behind."""
    await asyncio.sleep(seconds)
    parent.cancel()


async def late_raiser(kind: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise make(kind)


@pytest.mark.parametrize("kind", [*RAISED, KeyboardInterrupt], ids=lambda kind: kind.__name__)
async def test_whatever_a_thread_raises_is_a_result(kind: type[BaseException]) -> None:
    async with AsyncWorkerPool(1, retry=RetryPolicy(max_attempts=2, initial=0)) as pool:
        async with asyncio.timeout(LIMIT):
            results = await pool.map(raiser, [kind] * 3)
        assert {result.status for result in results} == {RAISED.get(kind, "failed")}
        expected = "RuntimeError" if kind is StopIteration else kind.__qualname__
        assert all(result.error_type in (expected, "ExceptionGroup") and result.error for result in results)
        await unharmed(pool)


@pytest.mark.parametrize("function", [async_raiser, late_raiser])
@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
async def test_whatever_an_async_function_raises_is_a_result(function: Any, kind: type[BaseException]) -> None:
    async with AsyncWorkerPool(1, task_timeout=5) as timed, AsyncWorkerPool(1) as plain:
        for pool in (timed, plain):
            async with asyncio.timeout(LIMIT):
                results = await pool.map(function, [kind] * 3)
            assert {result.status for result in results} == {RAISED[kind]}
            assert all(result.error and result.traceback for result in results)
            await unharmed(pool)


async def test_a_stop_iteration_is_told_as_python_tells_it() -> None:
    async with AsyncWorkerPool() as pool:
        result = await pool.submit(next, iter(()))
    assert result.error == "builtins.next raised StopIteration" and isinstance(result.exception, RuntimeError)
    assert isinstance(result.exception.__cause__, StopIteration)


def test_ctrl_c_within_an_async_function_ends_the_program_and_is_counted() -> None:
    code = (
        "import asyncio\n"
        "from codomyrmex.concurrency import AsyncWorkerPool\n"
        "pool = AsyncWorkerPool(2)\n"
        "async def pressed(_): raise KeyboardInterrupt\n"
        "async def main():\n"
        "    async with pool: await pool.map(pressed, [1])\n"
        "try: asyncio.run(main())\n"
        "except KeyboardInterrupt: s = pool.stats(); print('ended', s.submitted, s.failed, s.running + s.queued)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.split() == ["ended", "1", "1", "0"] and not done.stderr


# Cancels that are left behind


def cancel_current() -> None:
    task = asyncio.current_task()
    assert task
    task.cancel()


async def cancels_itself(_: int) -> str:
    cancel_current()
    return "returned"


async def cancels_itself_and_waits(_: int) -> None:
    cancel_current()
    await asyncio.sleep(1)


async def cancels_itself_and_fails(_: int) -> None:
    cancel_current()
    raise ValueError("failed")


async def swallows_its_own_cancel(_: int) -> str:
    cancel_current()
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        return "swallowed"
    return "not cancelled"


@pytest.mark.parametrize("timeout", [None, 5])
@pytest.mark.parametrize(
    ("function", "status"),
    [
        (cancels_itself, "cancelled"),
        (cancels_itself_and_waits, "cancelled"),
        (cancels_itself_and_fails, "failed"),
        (swallows_its_own_cancel, "ok"),
    ],
)
async def test_a_task_that_cancels_itself_harms_no_other(
    function: Callable[[int], Any], status: str, timeout: float | None
) -> None:
    async def mixed(number: int) -> Any:
        return await (function(number) if number % 2 else identity(number))

    async with AsyncWorkerPool(1, task_timeout=timeout) as pool:
        async with asyncio.timeout(LIMIT):
            results = await pool.map(mixed, range(8))
        assert [result.status for result in results] == ["ok", status] * 4
        await unharmed(pool)


async def test_a_failure_beside_a_cancel_is_retried_and_becomes_a_dead_letter() -> None:
    class Sink:
        async def route(self, **what: Any) -> Routed:
            await asyncio.sleep(0)
            return Routed("id", "")

    async with AsyncWorkerPool(1, dlq=Sink(), retry=RetryPolicy(max_attempts=3, initial=0)) as pool:
        result = await pool.submit(cancels_itself_and_fails, 1)
    assert (result.status, result.attempts, result.dead_letter_id) == ("failed", 3, "id")


@pytest.mark.parametrize("suspends", [True, False])
@pytest.mark.parametrize("how", ["child", "timer", "weak"])
async def test_a_late_cancel_of_the_tasks_parent_reaches_no_other_task(how: str, suspends: bool) -> None:
    children: list[asyncio.Task[None]] = []
    kept: list[weakref.ref[Any]] = []

    async def work(number: int) -> int:
        parent = asyncio.current_task()
        assert parent
        if number == 0:
            if how == "child":
                children.append(asyncio.create_task(cancel_late(parent, 0.01)))
            elif how == "weak":
                known = weakref.ref(parent)
                kept.append(known)
                asyncio.get_running_loop().call_later(0.01, lambda: (task := known()) and task.cancel())
            else:
                asyncio.get_running_loop().call_later(0.01, parent.cancel)
            if suspends:
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.02)
        return number

    async with AsyncWorkerPool(1) as pool:
        async with asyncio.timeout(LIMIT):
            results = await pool.map(work, range(6))
        assert [result.status for result in results] == ["ok"] * 6
        await unharmed(pool)
    await asyncio.gather(*children)


async def test_a_late_cancel_reaches_no_other_task_whoever_looked_on() -> None:
    """Other code held the worker as the task began, and lets go of it while the task's own child still holds it."""
    children: list[asyncio.Task[None]] = []

    async def work(number: int) -> int:
        parent = asyncio.current_task()
        assert parent
        if number == 0:
            children.append(asyncio.create_task(cancel_late(parent, 0.02)))
        await asyncio.sleep(0.01 * (1 + number))
        return number

    async with AsyncWorkerPool(1) as pool, asyncio.timeout(LIMIT):
        mapping = asyncio.create_task(pool.map(work, range(3)))
        await asyncio.sleep(0)
        seen = asyncio.all_tasks()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert children
        seen.clear()
        assert [result.status for result in await mapping] == ["ok"] * 3
    await asyncio.gather(*children)


async def test_a_late_cancel_by_a_first_attempt_reaches_no_other_task() -> None:
    """The second attempt neither waits nor keeps its worker, but the first one has kept it."""
    children: list[asyncio.Task[None]] = []

    async def work(number: int) -> int:
        parent = asyncio.current_task()
        assert parent
        if number == 0 and not children:
            children.append(asyncio.create_task(cancel_late(parent, 0.01)))
            raise ValueError("once more")
        if number:
            await asyncio.sleep(0.02)
        return number

    async with AsyncWorkerPool(1, retry=RetryPolicy(max_attempts=2, initial=0)) as pool, asyncio.timeout(LIMIT):
        results = await pool.map(work, range(3))
    assert [(result.status, result.attempts) for result in results] == [("ok", 2), ("ok", 1), ("ok", 1)]
    await asyncio.gather(*children)


async def test_tasks_that_neither_wait_nor_keep_their_worker_share_it() -> None:
    """A worker for each of them would double what a task costs."""
    workers = 0
    kept: list[asyncio.Task[Any] | None] = []

    async def quick(_: int) -> None:
        nonlocal workers
        task = asyncio.current_task()
        assert task
        if task.get_name() != "seen":  # an id would be that of another worker once this one has ended
            workers += 1
            task.set_name("seen")

    async def keeps(_: int) -> None:
        kept.append(asyncio.current_task())

    async with AsyncWorkerPool(1) as pool:
        await pool.map(quick, range(50))
        assert workers == 1
        await pool.map(keeps, range(10))
        assert len(set(kept)) == 10


async def test_a_cancel_that_became_an_error_is_not_tried_again() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise ValueError("cut short") from None

    pool = AsyncWorkerPool(1, retry=RetryPolicy(max_attempts=9, initial=60))
    submitted = asyncio.create_task(pool.submit(stubborn))
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await pool.shutdown(drain=False)
    assert time.monotonic() - started < LIMIT
    result = await submitted
    assert (result.status, result.error, result.attempts) == ("failed", "cut short", 1)


async def test_a_dead_letter_that_a_cancel_prevents_is_said() -> None:
    class Slow:
        async def route(self, **what: Any) -> Routed:
            await asyncio.sleep(60)
            return Routed("id", "")

    pool = AsyncWorkerPool(1, dlq=Slow())
    submitted = asyncio.create_task(pool.submit(async_raiser, ValueError))
    await asyncio.sleep(0.01)
    await pool.shutdown(drain=False)
    result = await submitted
    assert result.status == "failed" and result.dead_letter_id is None and "no dead letter" in result.dead_letter_note
