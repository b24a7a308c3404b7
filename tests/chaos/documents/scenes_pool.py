"""Scenario 14: functions that break what runs them, and the tasks that come after."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from codomyrmex.concurrency import AsyncWorkerPool, TaskResult
from tests.chaos.documents.rig import Rig


class Opaque(Exception):
    """An exception that pickles, and cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def double(number: int) -> int:
    """What an innocent task does."""
    return 2 * number


def kill_itself(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def raise_opaque(number: int) -> int:
    raise Opaque("one", "two")


def stop_iteration(number: int) -> int:
    raise StopIteration(number)


async def double_soon(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number


def me() -> asyncio.Task[Any]:
    """The task that runs this."""
    task = asyncio.current_task()
    assert task
    return task


async def cancel_itself(number: int) -> int:
    me().cancel()
    await asyncio.sleep(0)
    return number


async def cancel_at_end(number: int) -> int:
    """Cancels itself without awaiting, so that the cancel is still to come when it has returned."""
    me().cancel()
    return 2 * number


async def cancel_late(number: int) -> int:
    """Leaves a child behind that cancels the task that ran this, a moment later."""
    parent = me()

    async def child() -> None:
        await asyncio.sleep(0.005)
        parent.cancel()

    _children.add(asyncio.create_task(child()))
    return 2 * number


_children: set[asyncio.Task[None]] = set()


async def ends_with_cancel() -> AsyncIterator[int]:
    """Items whose source ends as a cancelled task does."""
    yield 1
    yield 2
    raise asyncio.CancelledError


async def one_after_another(
    rig: Rig, what: str, executor: str, bad: Callable[..., Any], good: Callable[..., Any]
) -> None:
    """A bad task, then innocent ones in the same pool; each ends, as what it is, and the figures add up."""
    pool = AsyncWorkerPool(1, executor=executor, task_timeout=10)
    results: list[TaskResult] = []
    for number in range(3):
        for function in (bad, good, good):
            name = f"{function.__name__} in {what}"
            result = await rig.does.within(6, f"{name}, number {number}", pool.submit(function, number))
            if result is None:
                return
            results.append(result)
            wanted = ["ok"] if function is good else ["ok", "failed", "cancelled"]
            rig.does.say("task", what=name, status=result.status, wanted=wanted, error=result.error)
    await rig.does.within(6, f"shutdown() of {what}", pool.shutdown())
    say_figures(rig, pool, results)


def say_figures(rig: Rig, pool: AsyncWorkerPool, results: list[TaskResult]) -> None:
    """Say what the pool says of itself, beside what it gave."""
    figures = pool.stats()
    names = ("submitted", "completed", "failed", "timed_out", "cancelled", "running", "queued")
    counted = Counter(result.status for result in results)
    rig.does.say("pool", figures={name: getattr(figures, name) for name in names}, results=counted)


async def children(rig: Rig) -> None:
    """Child processes are killed, and raise what cannot be unpickled."""
    await one_after_another(rig, "a process pool", "process", kill_itself, double)
    await one_after_another(rig, "a process pool", "process", raise_opaque, double)
    await rig.mark()


async def threads(rig: Rig) -> None:
    """A function in a thread raises `StopIteration`, which no future can carry."""
    await one_after_another(rig, "a thread pool", "thread", stop_iteration, double)
    await rig.mark()


async def cancels(rig: Rig) -> None:
    """Tasks cancel themselves, at once and late, and the ones after them must not be harmed."""
    for bad in (cancel_itself, cancel_at_end, cancel_late):
        await one_after_another(rig, "an async pool", "auto", bad, double_soon)
        await _mapped(rig, bad)
    await rig.mark()


async def _mapped(rig: Rig, bad: Callable[..., Any]) -> None:
    """Bad tasks among innocent ones in one `map`, which gives a result for each."""

    async def either(number: int) -> int:
        return await (bad if number % 3 == 0 else double_soon)(number)

    pool = AsyncWorkerPool(1)
    results = await rig.does.within(8, f"map() with {bad.__name__}", pool.map(either, range(12)))
    for number, result in enumerate(results or ()):
        wanted = ["ok"] if number % 3 else ["ok", "failed", "cancelled"]
        what = f"item {number} of a map() with {bad.__name__}"
        rig.does.say("task", what=what, status=result.status, wanted=wanted, error=result.error)
    await rig.does.within(6, "shutdown()", pool.shutdown())
    if results:
        say_figures(rig, pool, results)


async def source_cancelled(rig: Rig) -> None:
    """The iterable that `imap` reads ends with `CancelledError`; `imap` ends too."""

    async def read_all() -> list[TaskResult]:
        pool = AsyncWorkerPool(2)
        try:
            return [result async for result in pool.imap(double_soon, ends_with_cancel())]
        except asyncio.CancelledError:
            return []  # what the source raised, passed on

    await rig.does.within(6, "imap() of a source that ends with CancelledError", read_all())
    await rig.mark()


SCENES = {
    "14-children": children,
    "14-threads": threads,
    "14-cancels": cancels,
    "14-source-cancelled": source_cancelled,
}
