"""``AsyncWorkerPool``: a few workers take tasks from many sources. It runs in one process, and imports no etcd code.

``workers.py`` has the workers, ``job.py`` the run of one task. The user passes in the dead-letter queue, and the
session that reports are sent with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_number, check_timeout
from codomyrmex.concurrency.errors import PoolClosed
from codomyrmex.concurrency.keys import nfc
from codomyrmex.concurrency.pool.counters import Meter
from codomyrmex.concurrency.pool.executors import Executor, Runner, describe
from codomyrmex.concurrency.pool.job import Course
from codomyrmex.concurrency.pool.progress import Callback, Progress
from codomyrmex.concurrency.pool.results import DeadLetterSink, PoolStats, TaskResult
from codomyrmex.concurrency.pool.share import Cost, share_of
from codomyrmex.concurrency.pool.source import Single, Source, Work
from codomyrmex.concurrency.pool.workers import Crew, patiently
from codomyrmex.concurrency.retry import RetryPolicy

if TYPE_CHECKING:
    from codomyrmex.concurrency.pool.cluster import ClusterPoolStats
    from codomyrmex.concurrency.pool.reporting import Reporter
    from codomyrmex.concurrency.rates.limiter import RateLimiter
    from codomyrmex.concurrency.recipes.semaphore import Semaphore
    from codomyrmex.concurrency.session import Session

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

log = logging.getLogger("codomyrmex.concurrency")
_INTERVAL = 5.0  # seconds between reports


_pools: dict[int, weakref.ref[AsyncWorkerPool]] = {}


def pools() -> list[AsyncWorkerPool]:
    """The pools of this process, for observers. Any thread may call it."""
    living = {number: pool for number, known in _pools.copy().items() if (pool := known())}
    for number in _pools.copy().keys() - living.keys():
        del _pools[number]
    return list(living.values())


class AsyncWorkerPool(AsyncOnly):
    """Runs functions on items, at most ``max_workers`` at a time, and returns one ``TaskResult`` per item.

    Args:
        max_workers: the number of tasks that run at a time.
        name: the pool's name in reports and dead letters.
        dlq: a ``DeadLetterQueue`` for the tasks that still fail after their last attempt. The operation is
            ``operation_of`` the function; ``args`` are ``{"args": [item], "kwargs": {}}``.
        retry: the policy by which a failed task is tried again. Its worker waits between the attempts. None allows one
            attempt.
        task_timeout: seconds for each attempt. A function in a thread cannot be ended: it runs on, its result is
            thrown away, and its thread stays busy until the end. A function in a process is killed.
        executor: ``"auto"`` and ``"thread"`` run async functions on the event loop and plain ones in threads.
            ``"process"`` runs plain functions in processes, if they can be pickled. A process that dies fails the task
            that ran in it (``BrokenProcessPool``) and no other.
        report: True reports the pool's figures to etcd for ``cluster_stats`` and ``pools`` every 5 seconds, a number
            sets the seconds between reports, and False reports nothing. Left out, it reports if a ``session`` is given.
        session: the session for reports, ``lock=`` and ``cluster_stats``; the default one when left out.
        progress: True shows a bar on a terminal; a callable is called with ``(done, total)`` after each task.

    A task's exception is stored in its ``TaskResult`` and never raised. A task sees its caller's context variables.
    Use the pool with ``async with``, which waits for all tasks, or call ``shutdown``.

    Raises ``ValueError`` or ``TypeError`` for invalid settings.
    """

    def __init__(
        self,
        max_workers: int = 4,
        *,
        name: str = "pool",
        dlq: DeadLetterSink | None = None,
        retry: RetryPolicy | None = None,
        task_timeout: float | None = None,
        executor: Executor = "auto",
        report: bool | float | None = None,
        session: Session | None = None,
        progress: bool | Callback = False,
    ) -> None:
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
            raise ValueError(f"max_workers must be a whole number of at least 1, not {max_workers!r}")
        if task_timeout is not None:
            check_number("task_timeout", task_timeout)
        if task_timeout is not None and not (math.isfinite(task_timeout) and task_timeout > 0):
            raise ValueError(f"task_timeout must be a number of seconds greater than 0, not {task_timeout!r}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a pool's name must be a str that is not empty, not {name!r}")
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise TypeError(f"retry must be a RetryPolicy, not {retry!r}")
        if dlq is not None and not hasattr(dlq, "route"):
            raise TypeError(f"dlq must be a DeadLetterQueue, not {dlq!r}")
        if not (isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False or a function, not {progress!r}")
        self.name = name = nfc(name)
        self._max_workers = max_workers
        self._runner = Runner(executor, max_workers, name)
        self._report = _interval(report, session)
        self._session = session
        self._progress = progress
        self._meter = Meter(name, max_workers)
        course = Course(name, self._meter, retry, dlq, task_timeout, session)
        self._crew = Crew(name, max_workers, self._meter, course)
        self._closed = False
        self._reporter: Reporter | None = None
        _pools[id(self)] = weakref.ref(self)

    @overload  # one is needed for each: nothing may stand between `*args: P.args` and `**kwargs: P.kwargs`
    async def submit(
        self, function: Callable[..., Awaitable[T]], *args: Any, task_id: str, **kwargs: Any
    ) -> TaskResult[T]: ...
    @overload
    async def submit(self, function: Callable[..., T], *args: Any, task_id: str, **kwargs: Any) -> TaskResult[T]: ...
    @overload
    async def submit(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    async def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    async def submit(
        self, function: Callable[..., Any], *args: Any, task_id: Any = "", **kwargs: Any
    ) -> TaskResult[Any]:
        """Run ``function(*args, **kwargs)`` and return its result. Raises ``PoolClosed`` after ``shutdown``."""
        source = Single(self._work(function), args, kwargs, task_id, time.perf_counter())
        try:
            self._start(source, 1)
            (result,) = await source.results()
        finally:
            await self._crew.finish(source)
        return result

    @overload
    async def map(
        self,
        function: Callable[[Item], Awaitable[T]],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> list[TaskResult[T]]: ...
    @overload
    async def map(
        self,
        function: Callable[[Item], T],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> list[TaskResult[T]]: ...
    async def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Any] | None = None,
    ) -> list[TaskResult[Any]]:
        """Run ``function(item)`` for every item; the results come in the items' order.

        ``lock`` is called with an item and returns the name of the lock to hold while the item runs, or None.
        ``semaphore`` is a ``Semaphore`` of which one permit is held while an item runs. An error of ``items`` itself is
        raised here, after the tasks that have begun have ended.

        ``rate`` is a ``RateLimiter`` from which each attempt takes ``cost`` before it runs: a number, a dict of amounts
        by dimension, or a function that is called with the item and returns one of them. Left out, it is 1 of a limiter
        without named dimensions. The attempt has the lock and the semaphore before it takes its cost, since what a
        limiter grants must be used at once. ``task_timeout`` does not count the waits.
        """
        work = self._work(function, lock, semaphore, rate, cost)
        each = self._each(work, items, ordered=True, window=None)
        return [result async for batch in each for result in batch]

    @overload
    def imap(
        self,
        function: Callable[[Item], Awaitable[T]],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool = False,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> AsyncGenerator[TaskResult[T], None]: ...
    @overload
    def imap(
        self,
        function: Callable[[Item], T],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool = False,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> AsyncGenerator[TaskResult[T], None]: ...
    async def imap(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = False,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Any] | None = None,
    ) -> AsyncGenerator[TaskResult[Any], None]:
        """Run ``function(item)`` for every item, and yield each result as its task ends, or in the items' order.

        Memory is bounded: at most twice ``max_workers`` items are taken whose results have not been taken yet. Leaving
        the loop early cancels the tasks that run. ``lock``, ``semaphore``, ``rate`` and ``cost`` are those of ``map``.
        """
        work = self._work(function, lock, semaphore, rate, cost)
        each = self._each(work, items, ordered=ordered, window=2 * self._max_workers)
        try:
            async for batch in each:
                for result in batch:
                    yield result
        finally:
            await each.aclose()

    @staticmethod
    def operation_of(function: Callable[..., Any]) -> str:
        """The operation of the dead letters of ``function``: its ``module.name``, for ``@dlq.handler``."""
        return describe(function)

    def stats(self) -> PoolStats:
        """The pool's figures right now."""
        return self._meter.stats()

    async def cluster_stats(self) -> ClusterPoolStats:
        """The figures of all pools of this name that report to etcd: the sums, and those of each pool."""
        from codomyrmex.concurrency.pool import cluster

        return await cluster.cluster_stats(self._session, self.name)

    async def shutdown(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more tasks, and wait for the end of those that the pool has.

        After ``timeout`` seconds, or at once without ``drain``, the remaining tasks are cancelled, and their results
        have the status ``"cancelled"``. If ``shutdown`` itself is cancelled, it cancels the remaining tasks and waits
        for their end; each further cancel reaches them too. A second call does no harm.
        """
        check_timeout(timeout)
        self._crew.check_here()
        self._closed = True
        cancelled: asyncio.CancelledError | None = None
        if drain:
            try:
                async with asyncio.timeout(timeout):
                    await self._crew.over()
            except TimeoutError:
                pass
            except asyncio.CancelledError as error:
                cancelled = error
        self._crew.cancel_all()
        await patiently(self._end(), self._crew.cancel_all)
        if cancelled:
            raise cancelled

    async def _end(self) -> None:
        try:
            await self._crew.over()
        finally:
            if left := self._runner.close():
                log.warning("the pool %r leaves %d threads behind, which cannot be ended", self.name, left)
        reporter, self._reporter = self._reporter, None
        if reporter:
            await reporter.close()

    async def __aenter__(self) -> AsyncWorkerPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown(drain=kind is None)

    def __repr__(self) -> str:
        return f"<AsyncWorkerPool {self.name!r} {self._meter.running} of {self._max_workers} busy>"

    # Sources

    def _work(
        self,
        function: Callable[..., Any],
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Any] | None = None,
    ) -> Work:
        self._crew.check_here()
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} has been shut down")
        if lock is not None and not callable(lock):
            raise TypeError(f"lock must be a function from an item to a lock's name, not {lock!r}")
        if semaphore is not None and not hasattr(semaphore, "__aenter__"):
            raise TypeError(f"semaphore must be a Semaphore, not {semaphore!r}")
        return Work(function, self._runner.call(function), lock, semaphore, share_of(rate, cost))

    async def _each(
        self, work: Work, items: Iterable[Any] | AsyncIterable[Any], *, ordered: bool, window: int | None
    ) -> AsyncGenerator[list[TaskResult[Any]], None]:
        """The results: all that are there at a time, or one at a time with a ``window``."""
        source = Source(work, items, time.perf_counter(), window=window, ordered=ordered)
        total = len(items) if isinstance(items, Sized) else None
        try:
            with Progress(self._progress, self.name, total) as progress:
                self._start(source, total if window is None and total else 0)
                while batch := await source.results():
                    progress.step(len(batch))
                    yield batch
                    if window is not None:
                        self._crew.wake()
            if source.error:
                raise source.error
        finally:
            await self._crew.finish(source)

    def _start(self, source: Source, known: int) -> None:
        self._start_reporting()
        self._crew.add(source, known)

    def _start_reporting(self) -> None:
        if self._report and self._reporter is None:
            from codomyrmex.concurrency.pool.reporting import Reporter

            self._reporter = Reporter(self._session, self._report, self.stats, lambda: self._meter.changes)
        if self._reporter:
            self._reporter.start()


def _interval(report: bool | float | None, session: Session | None) -> float:
    """Seconds between reports; 0 for none."""
    if report is None:
        return _INTERVAL if session is not None else 0.0
    if isinstance(report, bool):
        return _INTERVAL if report else 0.0
    if not (math.isfinite(report) and report > 0):
        raise ValueError(f"report must be True, False or a number of seconds greater than 0, not {report!r}")
    return float(report)
