"""``AsyncWorkerPool``: a few workers take tasks from many sources. Local: it needs no etcd, and imports none.

A worker is a task of the event loop that runs one task after another and ends when there are none left, so a pool that
is idle has nothing running and nothing to clean up. Dead letters and reports are handed to what the user gives.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sized
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from codomyrmex.concurrency.errors import PoolClosed, text_of
from codomyrmex.concurrency.pool.context import in_context
from codomyrmex.concurrency.pool.meter import Meter
from codomyrmex.concurrency.pool.progress import Callback, Progress
from codomyrmex.concurrency.pool.results import DeadLetterSink, PoolStats, Status, TaskResult
from codomyrmex.concurrency.pool.runner import Executor, Runner, describe
from codomyrmex.concurrency.pool.source import Job, Single, Source, Work
from codomyrmex.concurrency.retry import RetryPolicy

if TYPE_CHECKING:
    from codomyrmex.concurrency.fleet import ClusterPoolStats, Reporter
    from codomyrmex.concurrency.session import Session

MAX_ERROR = 2 * 1024  # characters
MAX_TRACEBACK = 8 * 1024
_INTERVAL = 5.0  # seconds between reports


_pools: dict[int, weakref.ref[AsyncWorkerPool]] = {}


def pools() -> list[AsyncWorkerPool]:
    """Those of this process, for those who look on. Any thread may ask."""
    living = {number: pool for number, known in _pools.copy().items() if (pool := known())}
    for number in _pools.copy().keys() - living.keys():
        del _pools[number]
    return list(living.values())


class AsyncWorkerPool:
    """Runs functions on items, at most ``max_workers`` at a time, and says exactly what became of each.

    Args:
        max_workers: how many tasks run at a time.
        name: what the pool is called in reports and dead letters.
        dlq: a ``DeadLetterQueue`` for tasks that fail for good, retries included. The operation is
            ``operation_of`` the function; ``args`` are ``{"args": [item], "kwargs": {}}``.
        retry: tries a failed task again, in the same worker, which waits meanwhile; None: one attempt.
        task_timeout: seconds for each attempt. A function in a thread or process cannot be ended: it runs on, its
            result is thrown away, and its thread counts as taken until it is done.
        executor: ``"auto"`` runs async functions on the event loop and plain ones in threads, as does ``"thread"``;
            ``"process"`` runs plain functions, that can be pickled, in processes.
        report: whether to report the pool's figures to etcd for ``cluster_stats`` and ``pools``: True, False, or
            seconds between reports (5); left out, it reports if a ``session`` is given.
        session: the session for reports, ``lock=`` and ``cluster_stats``; the default one when left out.
        progress: True shows a bar on a terminal; a callable is told ``(done, total)`` after each task.

    A task's exception is in its ``TaskResult``, never raised. Context variables of the caller reach the task.
    Use it with ``async with``, which waits for all tasks, or call ``shutdown``.

    Raises ``ValueError`` or ``TypeError`` for settings that make no sense.
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
        self.name = name
        self._max_workers = max_workers
        self._dlq = dlq
        self._retry = retry
        self._task_timeout = task_timeout
        self._runner = Runner(executor, max_workers, name)
        self._report = _interval(report, session)
        self._session = session
        self._progress = progress
        self._meter = Meter(name, max_workers)
        self._sources: deque[Source] = deque()
        self._workers: dict[asyncio.Task[None], Job] = {}  # each with the task it runs, or ran last
        self._closed = False
        self._reporter: Reporter | None = None
        self._numbers = 0
        _pools[id(self)] = weakref.ref(self)

    async def submit(self, function: Callable[..., Any], *args: Any, task_id: str = "", **kwargs: Any) -> TaskResult:
        """Run ``function(*args, **kwargs)`` and return its result. Raises ``PoolClosed`` after ``shutdown``."""
        source = Single(self._work(function, None, None), args, kwargs, task_id, time.perf_counter())
        try:
            self._start(source, 1)
            result = await source.result()
        finally:
            await self._finish(source)
        assert result
        return result

    async def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Any = None,
    ) -> list[TaskResult]:
        """Run ``function(item)`` for every item; the results come in the items' order.

        ``lock``: called with an item, names the lock to hold around it, or None. ``semaphore``: a ``Semaphore`` of
        which one permit is held around each item. What ``items`` itself raises is raised here, once the tasks begun
        have ended.
        """
        return [result async for result in self._each(function, items, lock, semaphore, ordered=True, window=None)]

    async def imap(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = False,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Any = None,
    ) -> AsyncIterator[TaskResult]:
        """``map``, result by result as they come, or in the items' order. In bounded memory: at most twice
        ``max_workers`` items are taken beyond the results that were. Leaving the loop early cancels what runs."""
        each = self._each(function, items, lock, semaphore, ordered=ordered, window=2 * self._max_workers)
        try:
            async for result in each:
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
        """The figures of all pools of this name in the fleet that report, summed and one by one."""
        from codomyrmex.concurrency import fleet

        return await fleet.cluster_stats(self._session, self.name)

    async def shutdown(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more tasks and wait for those there are; after ``timeout`` seconds, or at once without ``drain``,
        the rest is cancelled, and their results say so. Calling it again does no harm."""
        self._closed = True
        try:
            async with asyncio.timeout(timeout if drain else 0):
                while self._workers or self._sources:
                    await self._next_end()
        except TimeoutError:
            for source in list(self._sources):
                self._cancel(source)
            while self._workers:
                await self._next_end()
        self._runner.close()
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

    def _work(self, function: Callable[..., Any], lock: Callable[[Any], str | None] | None, semaphore: Any) -> Work:
        if self._closed:
            raise PoolClosed(f"the pool {self.name!r} has been shut down")
        if lock is not None and not callable(lock):
            raise TypeError(f"lock must be a function from an item to a lock's name, not {lock!r}")
        if semaphore is not None and not hasattr(semaphore, "__aenter__"):
            raise TypeError(f"semaphore must be a Semaphore, not {semaphore!r}")
        return Work(self._runner.call(function), describe(function), lock, semaphore)

    async def _each(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        lock: Callable[[Any], str | None] | None,
        semaphore: Any,
        *,
        ordered: bool,
        window: int | None,
    ) -> AsyncGenerator[TaskResult, None]:
        work = self._work(function, lock, semaphore)
        source = Source(work, items, time.perf_counter(), window=window, ordered=ordered)
        total = len(items) if isinstance(items, Sized) else None
        feeder = asyncio.create_task(self._feed(source)) if source.feed is not None else None
        try:
            with Progress(self._progress, self.name, total) as progress:
                self._start(source, total if window is None and total else 0)
                while result := source.ready() or await source.result():
                    progress.step()
                    yield result
                    if window is not None:
                        self._wake()
            if source.error:
                raise source.error
        finally:
            if feeder:
                feeder.cancel()
            await self._finish(source)

    async def _feed(self, source: Source) -> None:
        """Takes the items of an async iterable as there is room for them."""
        assert source.feed is not None
        try:
            async for item in source.feed:
                while source.full:
                    await source.news()
                source.arrive(item)
                self._wake()
            source.end()
        except Exception as error:
            source.end(error)

    def _start(self, source: Source, known: int) -> None:
        source.uncounted = known
        self._meter.submitted += known
        self._meter.queued += known
        self._meter.changes += 1
        self._sources.append(source)
        self._start_reporting()
        self._wake()

    async def _finish(self, source: Source) -> None:
        """The caller is done with it, or gone: whatever of it still runs is cancelled and waited for."""
        if source.over and not source.uncounted:
            return
        self._cancel(source)
        settling = asyncio.ensure_future(source.settled())
        while not settling.done():
            try:
                await asyncio.shield(settling)
            except asyncio.CancelledError:
                if settling.done():
                    raise
                # The caller is being cancelled, or is again; its tasks were told and end soon.

    def _cancel(self, source: Source) -> None:
        source.end()
        source.drop_arrived()
        if source in self._sources:
            self._sources.remove(source)
        while source.uncounted:
            source.uncounted -= 1
            self._meter.drop()
            source.settle_dropped(self._dropped())
        for job in list(source.running):
            job.cancelled = True
            if job.began and job.worker:
                job.worker.cancel()

    # Workers

    def _wake(self) -> None:
        while len(self._workers) < self._max_workers and (job := self._take()):
            worker = asyncio.create_task(self._run_jobs(job), name=f"{self.name}-worker")
            job.worker = worker
            self._workers[worker] = job
            worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        job = self._workers.pop(worker)
        if job in job.source.running:  # the worker was cancelled before its first step, by the loop's end
            self._drop(job)
        self._wake()  # there may be room again for what it did not find

    def _take(self) -> Job | None:
        """The next task, from each source in turn."""
        for _ in range(len(self._sources)):
            source = self._sources[0]
            job = source.take()
            if job is None and source.exhausted:
                self._sources.popleft()
                self._forget_missing(source)
                continue
            if len(self._sources) > 1:
                self._sources.rotate(-1)
            if job:
                if source.uncounted:
                    source.uncounted -= 1
                else:
                    self._meter.submit()
                return job
        return None

    def _forget_missing(self, source: Source) -> None:
        """Its length promised more items than it had."""
        self._meter.submitted -= source.uncounted
        self._meter.queued -= source.uncounted
        source.uncounted = 0

    async def _run_jobs(self, job: Job | None) -> None:
        worker = asyncio.current_task()
        assert worker
        while job:
            job.worker = worker
            self._workers[worker] = job
            if job.cancelled:
                self._drop(job)
            else:
                await self._run(job, worker)
            job = self._take()

    def _drop(self, job: Job) -> None:
        """A task ends that never began."""
        self._meter.drop()
        job.source.settle(job, self._dropped())

    def _dropped(self) -> TaskResult:
        return TaskResult(self._new_id(), False, error="cancelled", status="cancelled", attempts=0)

    async def _run(self, job: Job, worker: asyncio.Task[None]) -> None:
        """One task, from its beginning to its result. Only the end of the worker itself is raised from here."""
        job.began = True
        work = job.source.work
        plain = work.lock is None and work.semaphore is None and self._task_timeout is None
        self._meter.begin()
        began = time.perf_counter()
        attempts = 0
        status: Status = "cancelled"
        value: Any = None
        failure: BaseException | None = None
        routed = None
        try:
            while True:
                attempts += 1
                try:
                    if plain:  # spares what most tasks do not need: a fifth of the time of one that does nothing
                        value = await in_context(job.context, work.call, job.args, job.kwargs)
                    else:
                        value = await self._attempt(job)
                    status, failure = "ok", None
                    break
                except _TimedOut as error:
                    status, failure = "timeout", error.reason
                except (Exception, SystemExit) as error:  # a function that exits must not end its host
                    status, failure = "failed", error
                assert failure
                if not (self._retry and self._retry.again(failure, attempts)):
                    break
                self._meter.retried += 1
                await asyncio.sleep(self._retry.delay(attempts))
            if failure and self._dlq:
                routed = await self._route(job, failure, attempts)
        except asyncio.CancelledError as error:
            if failure is None:  # else it had failed already, and was only waiting for another attempt or being stored
                status, failure = "cancelled", error
            if job.cancelled:
                worker.uncancel()
            elif worker.cancelling():
                raise
        finally:
            ended = time.perf_counter()
            elapsed = (ended - began) * 1000
            self._meter.end(status, elapsed, ended)
            result = TaskResult(
                job.task_id or self._new_id(),
                status == "ok",
                value if status == "ok" else None,
                "" if status == "ok" else _text(status, failure),
                elapsed,
                status,
                type(failure).__qualname__ if failure else "",
                failure,
                _trace(failure) if failure else "",
                attempts,
                (began - job.queued_at) * 1000,
                routed.id if routed else None,
                routed.note if routed else "",
            )
            job.source.settle(job, result)

    async def _attempt(self, job: Job) -> Any:
        work = job.source.work
        async with AsyncExitStack() as held:
            if work.lock is not None and (name := work.lock(job.item)) is not None:
                from codomyrmex.concurrency.manager import LockManager

                await held.enter_async_context(LockManager(self._session).acquire(name))
            if work.semaphore is not None:
                await held.enter_async_context(
                    work.semaphore.hold() if hasattr(work.semaphore, "hold") else work.semaphore
                )
            return await self._call(job)

    async def _call(self, job: Job) -> Any:
        if self._task_timeout is None:
            return await in_context(job.context, job.source.work.call, job.args, job.kwargs)
        try:
            async with asyncio.timeout(self._task_timeout) as limit:
                return await in_context(job.context, job.source.work.call, job.args, job.kwargs)
        except TimeoutError as error:
            if limit.expired():
                raise _TimedOut(TimeoutError(f"no result within {self._task_timeout:g} s")) from None
            raise error

    async def _route(self, job: Job, failure: BaseException, attempts: int) -> Any:
        from codomyrmex.concurrency.models import Routed

        assert self._dlq
        stats = self._meter
        try:
            routed = await self._dlq.route(
                operation=job.source.work.operation,
                args={"args": list(job.args), "kwargs": job.kwargs},
                error=failure,
                metadata={"pool": self.name, "task_id": job.task_id, "attempts": attempts, **stats.where()},
            )
        except Exception as error:
            return Routed(None, f"no dead letter could be stored: {type(error).__qualname__}: {text_of(error)}")
        stats.dead_lettered += 1
        return routed

    async def _next_end(self) -> None:
        if self._workers:
            await asyncio.wait(self._workers, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(0.01)  # an async iterable of items that is yet to give one

    def _new_id(self) -> str:
        self._numbers += 1
        return f"{self.name}-{self._numbers}"

    def _start_reporting(self) -> None:
        if self._report and self._reporter is None:
            from codomyrmex.concurrency.fleet import Reporter

            self._reporter = Reporter(self._session, self._report, self.stats, lambda: self._meter.changes)
            self._reporter.start()


class _TimedOut(Exception):
    def __init__(self, reason: TimeoutError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _interval(report: bool | float | None, session: Session | None) -> float:
    """Seconds between reports; 0 for none."""
    if report is None:
        return _INTERVAL if session is not None else 0.0
    if isinstance(report, bool):
        return _INTERVAL if report else 0.0
    if not (math.isfinite(report) and report > 0):
        raise ValueError(f"report must be True, False or a number of seconds greater than 0, not {report!r}")
    return float(report)


def _text(status: Status, failure: BaseException | None) -> str:
    text = text_of(failure) if failure else ""
    return (text or (status if status == "cancelled" else f"{type(failure).__qualname__}()"))[:MAX_ERROR]


def _trace(failure: BaseException) -> str:
    return "".join(traceback.format_exception(failure))[-MAX_TRACEBACK:]
