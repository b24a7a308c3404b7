"""The sources of a pool's tasks: each has the items of one ``map``, ``imap`` or ``submit``, taken one at a time.

A source makes a task of the next item only when a worker is free and the window has room. The window bounds the results
that the caller has not taken yet, so an endless iterable runs in bounded memory.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any, NamedTuple

from codomyrmex.concurrency.pool.executors import Call
from codomyrmex.concurrency.pool.results import TaskResult
from codomyrmex.concurrency.pool.share import Share


class Work(NamedTuple):
    """The function that a source runs on every item, with its lock, its semaphore and its share of a rate limit."""

    function: Callable[..., Any]
    call: Call  # the awaitable form of the function
    lock: Callable[[Any], str | None] | None
    semaphore: Any
    share: Share | None

    @property
    def on_loop(self) -> bool:
        """True if the function is async: then it is its own awaitable form."""
        return self.call is self.function


class Job:
    """One task: its arguments, its worker, and whether it has begun or was cancelled."""

    __slots__ = ("args", "began", "cancelled", "context", "index", "source", "worker")

    def __init__(self, source: Source, index: int, args: tuple[Any, ...]) -> None:
        self.source = source
        self.index = index
        self.args = args
        self.context = source.context.copy()
        self.worker: asyncio.Task[None] | None = None
        self.began = False
        self.cancelled = False


class Source:
    """The items and the results of one call.

    ``window`` bounds the number of tasks that have begun and whose results were not taken; None sets no bound.
    """

    def __init__(
        self, work: Work, items: Iterable[Any] | AsyncIterable[Any], began: float, *, window: int | None, ordered: bool
    ) -> None:
        self.work = work
        self.began = began
        self.context = contextvars.copy_context()
        self.ordered = ordered
        self.exhausted = False
        self.error: BaseException | None = None
        self.running: set[Job] = set()
        self.task_id = ""  # of the caller, for the one task of a ``submit``
        self.kwargs: dict[str, Any] = {}  # of every task
        self.untaken = 0  # items that are counted as queued and were not taken yet
        self._window = window
        self._begun = 0
        self._taken = 0
        self._ended = 0
        self._ready: dict[int, TaskResult] = {}  # each under its turn to be taken
        self._arrived: deque[Any] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._iterator: Iterator[Any] | None = None
        self.feed: AsyncIterable[Any] | None = None
        self.feeder: asyncio.Task[None] | None = None  # takes the items of ``feed``
        if isinstance(items, AsyncIterable):
            self.feed = items
        else:
            self._iterator = iter(items)

    @property
    def full(self) -> bool:
        """True when the window has no room for another task."""
        return self._window is not None and self._begun + len(self._arrived) - self._taken >= self._window

    @property
    def over(self) -> bool:
        """True when nothing runs and nothing more will run."""
        return self.exhausted and not self.running and not self._arrived

    def take(self) -> Job | None:
        """The next task, if there is one and room for its result."""
        if self._arrived:
            item = self._arrived.popleft()
        elif self.exhausted or self._iterator is None or self.full:
            return None
        else:
            try:
                item = next(self._iterator)
            except StopIteration:
                self.end()
                return None
            except BaseException as error:  # any error of the items is raised to the caller that gave them
                self.end(error)
                return None
        job = self.make(self._begun, item)
        self._begun += 1
        self.running.add(job)
        return job

    def make(self, index: int, item: Any) -> Job:
        """The task of an item."""
        return Job(self, index, (item,))

    def arrive(self, item: Any) -> None:
        """Take in an item of an async iterable."""
        self._arrived.append(item)

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end of the items; ``error`` is the error that they raised."""
        self.exhausted = True
        self.error = self.error or error
        self._tell()

    def settle(self, job: Job, result: TaskResult) -> None:
        """Store the result of a task that has ended."""
        self.running.discard(job)
        self._ready[job.index if self.ordered else self._ended] = result
        self._ended += 1
        if self._waiters:
            self._tell()

    def drop_arrived(self) -> None:
        """Drop the items of an async iterable that have not begun."""
        self._arrived.clear()

    def settle_dropped(self, result: TaskResult) -> None:
        """Store the result of a task that never began."""
        self._ready[self._begun if self.ordered else self._ended] = result
        self._ended += 1
        self._begun += 1
        self._tell()

    async def results(self) -> list[TaskResult]:
        """The next results, in the order of the items if the source is ``ordered``; none after the last.

        With a window it is one result, since each that is taken makes room for another task.
        """
        while not (results := self.ready()) and not self.over:
            await self.news()
        return results

    def ready(self) -> list[TaskResult]:
        """The next results that are there already."""
        results = []
        while (result := self._ready.pop(self._taken, None)) is not None:
            results.append(result)
            self._taken += 1
            if self._window is not None:
                break
        if results and self.feed:
            self._tell()  # the feeder has room for another item
        return results

    async def settled(self) -> None:
        """Wait until no task runs and no feeder takes items."""
        while self.running:
            await self.news()
        if self.feeder:
            await asyncio.wait([self.feeder])

    async def news(self) -> None:
        """Wait for the next change: a result, the end of the items, or room for another item."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)


class Single(Source):
    """The one task of a ``submit``."""

    def __init__(self, work: Work, args: tuple[Any, ...], kwargs: dict[str, Any], task_id: str, began: float) -> None:
        super().__init__(work, (None,), began, window=None, ordered=True)
        self._args = args
        self.kwargs = kwargs
        self.task_id = task_id

    def make(self, index: int, item: Any) -> Job:
        """The task, with the arguments of ``submit``."""
        return Job(self, index, self._args)
