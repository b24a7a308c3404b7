"""Sends batches from a ``SendQueue`` in tasks of the event loop. It knows nothing of etcd.

Items that are submitted in one turn of the event loop, or while calls are under way, travel together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from codomyrmex.concurrency.etcd.send_queue import SendQueue
from codomyrmex.concurrency.etcd.supervision import Broken, supervise

T = TypeVar("T")


class Batcher(Generic[T]):
    """Sends the items of ``queue`` in batches, as many at a time as the queue allows.

    ``take`` removes the next batch from the queue and returns it. ``send`` sends a batch. ``broken`` is called with an
    exception that either of them raises.
    """

    def __init__(
        self,
        queue: SendQueue[T],
        take: Callable[[], list[T]],
        send: Callable[[list[T]], Coroutine[Any, Any, None]],
        broken: Broken,
    ) -> None:
        self._queue = queue
        self._take = take
        self._send = send
        self._broken = broken
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._scheduled = False
        self._late: asyncio.TimerHandle | None = None  # the next look at a batch whose answer takes long

    @property
    def free(self) -> bool:
        """True if a new item would be sent at once and by itself."""
        return self._queue.is_free

    async def send_now(self, item: T) -> None:
        """Send an item from the caller's own task, which saves two turns of the event loop. Allowed only when ``free``.

        ``send`` settles the item's fate if the caller is cancelled.
        """
        self._queue.begin(time.monotonic())
        try:
            await self._send([item])
        finally:
            self._ended()

    def submit(self, item: T) -> None:
        """Queue an item; it is sent in the next turn of the event loop, or when there is room."""
        self._queue.items.append(item)
        self.wake()

    def wake(self) -> None:
        """Send a batch soon if the queue has room. It takes the items that are submitted in this turn of the event loop
        too."""
        if self._scheduled:
            return
        if self._queue.has_room(time.monotonic()):
            self._scheduled = True
            task = supervise(self._run(), "sending a batch", self._broken)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._late is None and not self._queue.paused and self._queue.active < self._queue.depth:
            self._late = asyncio.get_running_loop().call_later(self._queue.late, self._wake_late)

    def _wake_late(self) -> None:
        self._late = None
        if self._queue.items:
            self.wake()

    async def quiet(self) -> None:
        """Wait until no batch is under way."""
        while self._queue.active:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    async def idle(self) -> None:
        """Wait until every item has been sent and answered."""
        while self._queue.items or self._queue.active:
            await self.quiet()
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Cancel the batches under way and send nothing more. Returns when their tasks have ended."""
        self._queue.paused = True
        if self._late:
            self._late.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        self._scheduled = False
        now = time.monotonic()
        batch = self._take() if self._queue.items and self._queue.has_room(now) else []
        if not batch:
            return
        self._queue.begin(now)
        try:
            if self._queue.items:
                self.wake()
            await self._send(batch)
        finally:
            self._ended()

    def _ended(self) -> None:
        self._queue.end()
        if not self._queue.active:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)
        if self._queue.items:
            self.wake()
