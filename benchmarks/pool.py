"""Tasks that do nothing, run by the worker pool and by the loop that anybody would write by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks.sample import Sample
from codomyrmex.concurrency import AsyncWorkerPool, TaskResult

_WORKERS = 4
_BATCH = 2_000


async def _nothing(item: int) -> int:
    return item


async def ours(endpoint: str, seconds: float) -> Sample:
    """``AsyncWorkerPool.map``, with its results, figures and ways out."""
    async with AsyncWorkerPool(_WORKERS) as pool:
        return await _repeat(lambda: pool.map(_nothing, range(_BATCH)), seconds)


async def by_hand(endpoint: str, seconds: float, telling: bool = False) -> Sample:
    """Workers on an ``asyncio.Queue`` that collect what each call returns or raises; with ``telling``, as the result
    that ours gives, with its times."""

    async def batch() -> None:
        queued_at = time.perf_counter()
        queue: asyncio.Queue[int] = asyncio.Queue()
        results: dict[int, object] = {}

        async def work() -> None:
            while True:
                item = await queue.get()
                began = time.perf_counter()
                try:
                    results[item] = await _nothing(item)
                    if telling:
                        elapsed, waited = 1000 * (time.perf_counter() - began), 1000 * (began - queued_at)
                        results[item] = TaskResult(
                            task_id=f"task-{item}", success=True, result=item, elapsed_ms=elapsed, wait_ms=waited
                        )
                except Exception as error:
                    results[item] = error
                finally:
                    queue.task_done()

        workers = [asyncio.create_task(work()) for _ in range(_WORKERS)]
        for item in range(_BATCH):
            queue.put_nowait(item)
        await queue.join()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    return await _repeat(batch, seconds)


async def _repeat(batch: Callable[[], Awaitable[object]], seconds: float) -> Sample:
    await batch()  # warms up
    start = time.perf_counter()
    done = 0
    while (now := time.perf_counter()) < start + seconds:
        await batch()
        done += _BATCH
    return Sample(cycles=done, seconds=now - start)
