"""The workers of a pool: tasks of the event loop, each of which runs one task of the pool after another.

A worker ends when there is nothing left to run, so an idle pool has no running tasks and nothing to clean up. A worker
is also replaced after a task that may have kept a reference to it; so a cancel that one task leaves behind never
reaches the next. Any other end of a worker is logged here, and fails only the task that it ran.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from codomyrmex.concurrency.affinity import Home
from codomyrmex.concurrency.pool.counters import Meter
from codomyrmex.concurrency.pool.job import Course
from codomyrmex.concurrency.pool.source import Job, Source

log = logging.getLogger("codomyrmex.concurrency")

_POLL = 0.01  # seconds


class Crew:
    """At most ``size`` workers, which take tasks from the sources in turn."""

    def __init__(self, name: str, size: int, meter: Meter, course: Course) -> None:
        self._name = name
        self._worker_name = f"{name}-worker"
        self._size = size
        self._meter = meter
        self._course = course
        self._sources: deque[Source] = deque()
        self._workers: dict[asyncio.Task[None], Job] = {}  # each with the pool's task that it runs
        self._feeders: set[asyncio.Task[None]] = set()
        self._home: Home | None = None  # the process and the event loop that it ran in last

    def check_here(self) -> None:
        """Raise ``UsedElsewhere`` if the pool was used in another process, or has tasks in another open event loop."""
        home = self._home
        if home and not (home.in_process and (self._is_idle() or (home.loop and home.loop.is_closed()))):
            home.check("pool", self._name)

    def _is_idle(self) -> bool:
        return not (self._workers or self._feeders or self._sources)

    def add(self, source: Source, known: int) -> None:
        """Run the tasks of ``source``. ``known`` of them are counted as queued from now on."""
        self._leave_closed_loop()
        source.untaken = known
        self._meter.submitted += known
        self._meter.queued += known
        self._meter.changes += 1
        self._sources.append(source)
        if source.feed is not None:
            source.feeder = asyncio.create_task(self._feed(source), name=f"{self._name}-feeder")
            self._feeders.add(source.feeder)
            source.feeder.add_done_callback(self._feeders.discard)
        self.wake()

    def wake(self) -> None:
        """Start as many workers as there is work for."""
        while len(self._workers) < self._size and (job := self._take()):
            steps = self._run_jobs(job)
            try:
                worker = asyncio.create_task(steps, name=self._worker_name)
            except Exception as error:
                steps.close()
                self._lose(job, error)
                continue
            job.worker = worker
            self._workers[worker] = job
            worker.add_done_callback(self._worker_ended)

    def cancel(self, source: Source) -> None:
        """Cancel the tasks of ``source``. The queued ones settle now, the others when they have ended."""
        source.end()
        source.drop_arrived()
        if source.feeder:
            source.feeder.cancel()
        if source in self._sources:
            self._sources.remove(source)
        while source.untaken:
            source.untaken -= 1
            self._meter.drop()
            source.settle_dropped(self._course.dropped(source.task_id))
        for job in list(source.running):
            job.cancelled = True
            if job.began and job.worker:
                job.worker.cancel()

    def cancel_all(self) -> None:
        """Cancel the tasks of all sources."""
        for source in {*self._sources, *(job.source for job in self._workers.values())}:
            self.cancel(source)

    async def over(self) -> None:
        """Wait until no task is left and no feeder takes items."""
        self._leave_closed_loop()
        while not self._is_idle():
            if busy := {*self._workers, *self._feeders}:
                await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(_POLL)  # an ``imap`` whose results are not taken

    async def finish(self, source: Source) -> None:
        """Cancel the tasks of ``source`` that still run, and wait for their end. Its caller takes no more results."""
        if source.over and not source.untaken:
            return
        self.cancel(source)
        await patiently(source.settled(), lambda: self.cancel(source))

    async def _feed(self, source: Source) -> None:
        """Take the items of an async iterable while the window has room for them."""
        assert source.feed is not None
        try:
            async for item in source.feed:
                while source.full:
                    await source.news()
                source.arrive(item)
                self.wake()
            source.end()
        except BaseException as error:  # any error of the items is raised to the caller that gave them
            if not source.exhausted:  # else ``cancel`` has ended this feeder
                source.end(error)

    def _take(self) -> Job | None:
        """The next task, from each source in turn."""
        for _ in range(len(self._sources)):
            source = self._sources[0]
            try:
                job = source.take()
            except Exception as error:
                source.end(error)
                job = None
            if job is None and source.exhausted:
                self._sources.popleft()
                self._forget_missing(source)
                continue
            if len(self._sources) > 1:
                self._sources.rotate(-1)
            if job:
                if source.untaken:
                    source.untaken -= 1
                else:
                    self._meter.submit()
                return job
        return None

    def _forget_missing(self, source: Source) -> None:
        """Correct the counters for a source that had fewer items than its length promised."""
        self._meter.submitted -= source.untaken
        self._meter.queued -= source.untaken
        source.untaken = 0

    async def _run_jobs(self, job: Job | None) -> None:
        """Run ``job`` and then the tasks that follow, until none is left or this worker must be replaced."""
        worker = asyncio.current_task()
        assert worker
        untouched = True
        while job and untouched:
            job.worker = worker
            self._workers[worker] = job
            if job.cancelled:
                self._drop(job)
            else:
                untouched = await self._course.run(job, worker)
            job = self._take() if untouched else None
        del self._workers[worker]
        self.wake()

    def _drop(self, job: Job) -> None:
        """End a task that never began."""
        self._meter.drop()
        job.source.settle(job, self._course.dropped(job.source.task_id))

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        """Settle the task of a worker that died, and replace the worker."""
        job = self._workers.pop(worker, None)
        error = None if worker.cancelled() else worker.exception()
        if job is None and error is None:
            return  # it ended in the ordinary way, without work
        try:
            if job and job in job.source.running:
                self._lose(job, error)
            elif error and not isinstance(error, KeyboardInterrupt):  # the loop has raised that already
                log.error("a worker of the pool %r died between two tasks", self._name, exc_info=error)
        finally:
            self.wake()  # starts a worker in its place

    def _lose(self, job: Job, error: BaseException | None) -> None:
        """Settle the task of a worker that died before it made a result."""
        if error is None and not job.began:  # cancelled before its first step, by the loop's end
            self._drop(job)
            return
        log.error("a worker of the pool %r died; its task fails", self._name, exc_info=error)
        try:
            if job.began:
                self._meter.end("failed", 0.0, time.perf_counter())
            else:
                self._meter.drop("failed")
        finally:
            job.source.settle(job, self._course.lost(job, error))

    def _leave_closed_loop(self) -> None:
        """Settle the tasks of an event loop that was closed before their end as cancelled: none of them goes on."""
        before, self._home = self._home, Home()
        self._home.settle()
        if before is None or before.loop is None or not before.loop.is_closed():
            return
        self._meter.leave_loop()
        for job in self._workers.values():
            if job in job.source.running:
                if job.began:
                    self._meter.end("cancelled", 0.0, time.perf_counter())
                else:
                    self._meter.drop()
                job.source.settle(job, self._course.dropped(job.source.task_id))
        self._workers.clear()
        self._feeders.clear()
        for source in list(self._sources):
            source.feeder = None
            self.cancel(source)


async def patiently(work: Coroutine[Any, Any, None], insist: Callable[[], None]) -> None:
    """Wait until ``work`` has ended, even when the wait is cancelled.

    Each cancel calls ``insist``; the last one is raised again after the end of ``work``.
    """
    waiting = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError as error:
            cancelled = error
            insist()
    if not (cancelled and waiting.cancelled()):
        waiting.result()
    if cancelled:
        raise cancelled
