"""The run of one task of a pool: its attempts, the delays between them, its dead letter, and its result."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any
from weakref import getweakrefcount

from codomyrmex.concurrency.errors import text_of
from codomyrmex.concurrency.models import Routed
from codomyrmex.concurrency.pool.context import begin, call_in
from codomyrmex.concurrency.pool.counters import Meter
from codomyrmex.concurrency.pool.executors import describe
from codomyrmex.concurrency.pool.outcome import outcome
from codomyrmex.concurrency.pool.results import DeadLetterSink, Status, TaskResult, succeeded
from codomyrmex.concurrency.pool.source import Job
from codomyrmex.concurrency.retry import RetryPolicy

if TYPE_CHECKING:
    from codomyrmex.concurrency.session import Session

MAX_ERROR = 2 * 1024  # characters
MAX_TRACEBACK = 8 * 1024
_NOT_STORED = "no dead letter was stored: the task was cancelled before it could be"


class Course:
    """Runs the tasks of a pool, one at a time per worker, and makes their results."""

    def __init__(
        self,
        name: str,
        meter: Meter,
        retry: RetryPolicy | None,
        dlq: DeadLetterSink | None,
        task_timeout: float | None,
        session: Session | None,
    ) -> None:
        self._name = name
        self._meter = meter
        self._retry = retry
        self._dlq = dlq
        self._task_timeout = task_timeout
        self._session = session
        self._numbers = 0

    async def run(self, job: Job, worker: asyncio.Task[None]) -> bool:
        """Run ``job`` and settle it. Returns True if nothing that the task left behind can reach the ``worker``.

        A task that waited, or that may have kept a reference to its worker, can cancel the worker later. So a worker
        goes on only after a task without lock, semaphore, rate and time limit that succeeded at its first attempt,
        never waited and kept no reference to it; any other worker is replaced. A new asyncio task costs as much as a
        small task of the pool.
        """
        source = job.source
        work = source.work
        plain = work.lock is None and work.semaphore is None and work.share is None and self._task_timeout is None
        self._meter.begin()
        job.began = True
        began = time.perf_counter()
        attempts = 0
        status: Status = "cancelled"
        value: Any = None
        failure: BaseException | None = None
        routed: Routed | None = None
        untouched = False
        try:
            while True:
                attempts += 1
                try:
                    if plain:  # not a method: a further coroutine would cost much for a short task
                        references = sys.getrefcount(worker), getweakrefcount(worker)
                        value, rest = begin(job.context, work.call, job.args, source.kwargs)
                        if rest:
                            value = await rest
                        elif attempts == 1:
                            untouched = (sys.getrefcount(worker), getweakrefcount(worker)) == references
                    else:
                        value = await self._attempt(job)
                    if worker.cancelling():
                        untouched = False
                        await asyncio.sleep(0)  # a task that cancels itself and returns is cancelled, as in asyncio
                    status, failure = "ok", None
                    break
                except BaseException as error:  # a SystemExit of the function must not end the process
                    if _is_the_workers(error, worker):
                        raise
                    status, failure = _failure(error)
                    if work.on_loop and _is_ctrl_c(error):
                        raise
                if not await self._tries_again(job, worker, failure, attempts):
                    break
            if failure and self._dlq:
                routed = await self._route(job, failure, attempts)
        except asyncio.CancelledError as error:
            if failure is None:  # else the task had failed before: the cancel came in its delay or with its dead letter
                status, failure = "cancelled", error
            elif self._dlq:
                routed = Routed(None, _NOT_STORED)
        finally:
            ended = time.perf_counter()
            elapsed = (ended - began) * 1000
            waited = (began - source.began) * 1000
            task_id = source.task_id or self._new_id()
            if status == "ok":
                result = succeeded(task_id, value, elapsed, attempts, waited)
            else:
                result = _failed(task_id, status, failure, routed, elapsed, attempts, waited)
            if job in source.running:  # else its loop was closed, and the task was settled then
                self._meter.end(status, elapsed, ended)
                source.settle(job, result)
        return untouched

    def dropped(self, task_id: str) -> TaskResult:
        """The result of a task that was cancelled before it began. ``task_id`` is its caller's, or empty."""
        return TaskResult(
            task_id=task_id or self._new_id(), success=False, error="cancelled", status="cancelled", attempts=0
        )

    def lost(self, job: Job, error: BaseException | None) -> TaskResult:
        """The result of a task whose worker died."""
        text = f"the pool's worker died: {_text('failed', error) if error else 'it was cancelled'}"[:MAX_ERROR]
        return TaskResult(
            task_id=job.source.task_id or self._name,  # no new id: the making of one may be the failure
            success=False,
            error=text,
            status="failed",
            error_type=type(error).__qualname__ if error else "CancelledError",
            exception=error,
            traceback=_trace(error) if error else "",
        )

    async def _tries_again(self, job: Job, worker: asyncio.Task[None], failure: BaseException, attempts: int) -> bool:
        """Wait for the time of a failed task's next attempt. Returns False at once if it has no more attempts."""
        if worker.cancelling():
            await _absorb()
        if job.cancelled or not (self._retry and self._retry.again(failure, attempts)):
            return False
        self._meter.retried += 1
        with self._meter.wait():
            await asyncio.sleep(self._retry.delay(attempts))
        return True

    async def _attempt(self, job: Job) -> Any:
        work = job.source.work
        async with AsyncExitStack() as held:
            with self._meter.wait():
                if work.lock is not None and (name := work.lock(job.args[0])) is not None:
                    from codomyrmex.concurrency.recipes.manager import LockManager

                    await held.enter_async_context(LockManager(self._session).acquire(name))
                if work.semaphore is not None:
                    await held.enter_async_context(
                        work.semaphore.hold() if hasattr(work.semaphore, "hold") else work.semaphore
                    )
                if work.share is not None:  # last: a share must be used soon after its grant
                    await work.share.acquire(job.args[0])
            return await self._call(job)

    async def _call(self, job: Job) -> Any:
        if self._task_timeout is None:
            return await call_in(job.context, job.source.work.call, job.args, job.source.kwargs)
        try:
            async with asyncio.timeout(self._task_timeout) as limit:
                return await call_in(job.context, job.source.work.call, job.args, job.source.kwargs)
        except TimeoutError as error:
            if limit.expired():
                raise _TimedOut(TimeoutError(f"no result within {self._task_timeout:g} s")) from None
            raise error

    async def _route(self, job: Job, failure: BaseException, attempts: int) -> Routed:
        """Store the dead letter of a task that has failed for good."""
        assert self._dlq
        try:
            routed = await self._dlq.route(
                operation=describe(job.source.work.function),
                args={"args": list(job.args), "kwargs": dict(job.source.kwargs)},
                error=failure,
                metadata={
                    "pool": self._name,
                    "task_id": job.source.task_id,
                    "attempts": attempts,
                    **self._meter.where(),
                },
            )
        except Exception as error:
            return Routed(None, f"no dead letter could be stored: {type(error).__qualname__}: {text_of(error)}")
        self._meter.dead_lettered += 1
        return routed

    def _new_id(self) -> str:
        self._numbers += 1
        return f"{self._name}-{self._numbers}"


class _TimedOut(Exception):
    """An attempt took longer than ``task_timeout``. ``reason`` is the error that the user is given."""

    def __init__(self, reason: TimeoutError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _is_the_workers(error: BaseException, worker: asyncio.Task[None]) -> bool:
    """True for an error that the worker must raise again: a cancel, or the end of the worker's own coroutine."""
    return isinstance(error, asyncio.CancelledError) or (isinstance(error, GeneratorExit) and _loop_is_gone(worker))


def _failure(error: BaseException) -> tuple[Status, BaseException]:
    """The status of a task after an attempt that ended by ``error``, and the error that its user is given."""
    return ("timeout", error.reason) if isinstance(error, _TimedOut) else ("failed", error)


def _failed(
    task_id: str,
    status: Status,
    failure: BaseException | None,
    routed: Routed | None,
    elapsed_ms: float,
    attempts: int,
    wait_ms: float,
) -> TaskResult:
    """The result of a task that failed, with the texts of its failure, and with its dead letter if there is one."""
    return TaskResult(
        task_id=task_id,
        success=False,
        error=_text(status, failure),
        elapsed_ms=elapsed_ms,
        status=status,
        error_type=type(failure).__qualname__ if failure else "",
        exception=failure,
        traceback=_trace(failure) if failure else "",
        attempts=attempts,
        wait_ms=wait_ms,
        dead_letter_id=routed.id if routed else None,
        dead_letter_note=routed.note if routed else "",
    )


async def _absorb() -> None:
    """Absorb a cancel that a failed function left behind, so that it does not end the handling of the failure."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def _loop_is_gone(worker: asyncio.Task[None]) -> bool:
    """True if a ``GeneratorExit`` closes the worker's own coroutine because its loop is gone; False if the function
    raised it."""
    return outcome(asyncio.current_task).value is not worker


def _is_ctrl_c(error: BaseException) -> bool:
    """True if ``error`` may come from a Ctrl-C, which interrupts only the main thread."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _text(status: Status, failure: BaseException | None) -> str:
    text = _safe_text(lambda: text_of(failure) if failure else "")
    return (text or (status if status == "cancelled" else f"{type(failure).__qualname__}()"))[:MAX_ERROR]


def _trace(failure: BaseException) -> str:
    return _safe_text(lambda: "".join(traceback.format_exception(failure)))[-MAX_TRACEBACK:]


def _safe_text(text: Callable[[], str]) -> str:
    """The text that ``text`` returns, or a substitute: the code of an exception may raise while its text is made."""
    told = outcome(text)
    return told.value if told.error is None else f"(it cannot be told: {type(told.error).__qualname__})"
