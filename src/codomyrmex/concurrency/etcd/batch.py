"""Gathers what meets in one event-loop turn, or while calls are under way, into batches. Knows nothing of etcd."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Hands waiting items to ``send``, at most ``depth`` batches at a time.

    ``take`` removes the next batch from the queue and returns it. With nothing under way a single item leaves in
    the same event-loop turn; under load the batches grow by themselves.
    """

    def __init__(
        self, take: Callable[[deque[T]], list[T]], send: Callable[[list[T]], Awaitable[None]], depth: int
    ) -> None:
        self._take = take
        self._send = send
        self._depth = depth
        self._queue: deque[T] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._paused = False
        self._scheduled = False

    def submit(self, item: T) -> None:
        self._queue.append(item)
        self._wake()

    def pause(self) -> None:
        self._paused = True

    def resume(self, items: Iterable[T] = ()) -> None:
        self._queue.extendleft(items)
        self._paused = False
        self._wake()

    def empty_queue(self) -> list[T]:
        """Remove and return what has not been sent."""
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    async def quiet(self) -> None:
        """Wait until no batch of any other task is under way. (The caller may itself be sending one.)"""
        mine = asyncio.current_task()
        while others := [task for task in self._running if task is not mine]:
            await asyncio.wait(others)

    async def idle(self) -> None:
        """Wait until everything submitted has been sent and answered."""
        while self._queue or self._running:
            await asyncio.sleep(0)
            await self.quiet()

    async def close(self) -> None:
        """Give up what is under way; returns when its tasks have ended."""
        self._paused = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _wake(self) -> None:
        if not self._scheduled and not self._paused and len(self._running) < self._depth:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while self._queue and not self._paused and len(self._running) < self._depth:
            batch = self._take(self._queue)
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)

    async def _run(self, batch: list[T]) -> None:
        try:
            await self._send(batch)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            if self._queue and not self._paused:
                self._flush()
