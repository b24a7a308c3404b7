"""Runs a function on the event loop, in a thread, or in a process. The choice is made before the function runs."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import pickle
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from codomyrmex.concurrency.pool.outcome import Outcome, outcome
from codomyrmex.concurrency.pool.processes import Errand, Processes

Executor = Literal["auto", "thread", "process"]
Call = Callable[..., Awaitable[Any]]


class Runner:
    """Runs functions, at most ``workers`` of them in threads or processes. ``close`` ends the threads and processes."""

    def __init__(self, executor: Executor, workers: int, name: str) -> None:
        if executor not in get_args(Executor):
            raise ValueError(f"executor must be one of {', '.join(map(repr, get_args(Executor)))}, not {executor!r}")
        self._kind = executor
        self._workers = workers
        self._name = name
        self._threads: ThreadPoolExecutor | None = None
        self._processes = Processes()
        self._ending: set[Future[Outcome]] = set()  # the busy threads whose process was killed, and which end soon
        self.busy: set[Future[Outcome]] = set()  # threads at work; a thread runs on after its task has timed out

    def call(self, function: Callable[..., Any]) -> Call:
        """An awaitable form of ``function``. Raises ``TypeError`` if the executor cannot run it."""
        if not callable(function):
            raise TypeError(f"a task's function must be callable, not {function!r}")
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{describe(function)} is an async generator; a task's function returns, and does not yield"
            )
        if is_async(function):
            if self._kind == "process":
                raise TypeError(f"{describe(function)} is async; executor='process' runs plain functions")
            return function
        if self._kind == "process":
            try:
                pickle.dumps(function)
            except Exception as error:
                raise TypeError(
                    f"{describe(function)} cannot be pickled for executor='process' ({error}); "
                    "use a function at a module's top level"
                ) from None
            return functools.partial(self._in_process, function)
        return functools.partial(self._in_thread, function)

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        result = await self._answer(function, functools.partial(context.run, function, *args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def _in_process(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function`` in a process. A thread packs, waits and unpacks, so the event loop is not blocked by it."""
        errand = Errand()
        run = functools.partial(self._processes.run, errand, describe(function), function, args, kwargs)
        return await self._answer(function, run, errand.end)

    async def _answer(
        self, function: Callable[..., Any], work: Callable[[], Any], end: Callable[[], None] | None = None
    ) -> Any:
        """Run ``work`` in a thread and return its result. If the wait is cancelled, ``end`` ends the work; without
        ``end`` the work runs on."""
        while len(self.busy) >= self._workers:  # threads of tasks that timed out; they cannot be ended
            await asyncio.wait([_heard(running) for running in tuple(self.busy)], return_when=asyncio.FIRST_COMPLETED)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
        running = self._threads.submit(outcome, work)
        self.busy.add(running)
        running.add_done_callback(self.busy.discard)
        try:
            done: Outcome = await _heard(running)
        except BaseException:
            running.cancel()  # this has an effect only before the work has begun
            if end:
                self._ending.add(running)
                running.add_done_callback(self._ending.discard)
                end()
            raise
        if isinstance(done.error, StopIteration):  # a coroutine cannot raise it; Python raises RuntimeError too
            raise RuntimeError(f"{describe(function)} raised StopIteration") from done.error
        if done.error is not None:
            raise done.error
        return done.value

    def close(self) -> int:
        """End the threads and processes when their work is done, without waiting.

        Returns the number of threads that run on.
        """
        threads, self._threads = self._threads, None
        if threads:
            threads.shutdown(wait=False)
        self._processes.close()
        return len(self.busy - self._ending) if threads else 0


def _heard(running: Future[Outcome]) -> asyncio.Future[Outcome]:
    """A future of this event loop for the work of a thread.

    A cancel of the future does not reach the work. The work may end after the loop was closed.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[Outcome] = loop.create_future()

    def deliver(done: Future[Outcome]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nothing waits for the answer
            loop.call_soon_threadsafe(_hear, heard, done)

    running.add_done_callback(deliver)
    return heard


def _hear(heard: asyncio.Future[Outcome], done: Future[Outcome]) -> None:
    if not heard.done():
        heard.set_result(Outcome(None, asyncio.CancelledError()) if done.cancelled() else done.result())


def is_async(function: Callable[..., Any]) -> bool:
    """True if ``function`` is a coroutine function, or an object whose ``__call__`` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def describe(function: Callable[..., Any]) -> str:
    """The ``module.name`` of a function, which dead letters use as the operation.

    For a function of ``__main__``, it is the name under which other programs import the module.
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")
    module = getattr(function, "__module__", "")
    return f"{_main() if module == '__main__' else module}.{name}".lstrip(".")


def _main() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(getattr(main, "__file__", None) or "__main__").stem
