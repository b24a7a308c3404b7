"""Gathers what meets in one event-loop turn, or while calls are under way, into batches. Knows nothing of etcd."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from codomyrmex.concurrency.etcd.supervision import Broken, guarded, supervise

T = TypeVar("T")


class Batcher(Generic[T]):
    """Hands waiting items to ``send``, at most ``depth`` batches at a time; under load batches grow by themselves.

    ``take`` removes the next batch from the queue and returns it; ``broken`` is told what it, or ``send``, raises.
    """

    def __init__(
        self,
        take: Callable[[deque[T]], list[T]],
        send: Callable[[list[T]], Coroutine[Any, Any, None]],
        depth: int,
        broken: Broken,
    ) -> None:
        self._broken = broken
        self._flush_soon = guarded(self._flush, "gathering batches", broken)
        self._take = take
        self._send = send
        self._depth = depth
        self._queue: deque[T] = deque()
        self._active = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._paused = False
        self._scheduled = False

    @property
    def free(self) -> bool:
        """Whether an item would be sent by itself, right now."""
        return not (self._active or self._queue or self._paused)

    async def send_now(self, item: T) -> None:
        """Send an item from the caller's own task, which spares it two turns of the event loop; only when ``free``.

        What happens to it when the caller is cancelled is for ``send`` to settle.
        """
        self._active += 1
        try:
            await self._send([item])
        finally:
            self._sent()

    def submit(self, item: T) -> None:
        self._queue.append(item)
        self._wake()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def empty_queue(self) -> list[T]:
        """Remove and return what has not been sent."""
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    async def quiet(self) -> None:
        """Wait until nothing is under way."""
        while self._active:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    async def idle(self) -> None:
        """Wait until everything submitted has been sent and answered."""
        while self._queue or self._active:
            await self.quiet()
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Give up what is under way; returns when its tasks have ended."""
        self._paused = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        if not self._scheduled and not self._paused and self._active < self._depth:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_soon)

    def _flush(self) -> None:
        self._scheduled = False
        while self._queue and not self._paused and self._active < self._depth:
            batch = self._take(self._queue)
            if not batch:
                return
            self._active += 1
            task = supervise(self._run(batch), "sending a batch", self._broken)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[T]) -> None:
        try:
            await self._send(batch)
        finally:
            self._sent()

    def _sent(self) -> None:
        self._active -= 1
        if not self._active:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)
        if self._queue:
            self._wake()
