"""An event loop in a thread of its own, which runs all blocking calls of the process.

Any number of threads may call at once. A thread that runs an event loop itself (as in Jupyter) may call too; the call
blocks that loop, as any blocking call does. An interrupted call (Ctrl-C) cancels its coroutine and waits for its end.
If the coroutine returns a result all the same, the call undoes it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from codomyrmex.concurrency.errors import SessionLost, UsedElsewhere
from codomyrmex.concurrency.pool.outcome import Outcome
from codomyrmex.concurrency.session import default_session

T = TypeVar("T")
_EXIT_LIMIT = 5.0  # seconds
_THREADS = 64  # for handlers of dead letters and slow iterables; started when they are needed


class Portal:
    """Runs coroutines on its own event loop, for threads that wait for the results."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="codomyrmex-portal", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, object]] | None = None) -> T:
        """Run ``work`` and return its result. If the caller is interrupted, pass the result to ``undo`` instead.

        Raises ``UsedElsewhere`` in the portal's own thread, and ``SessionLost`` while the interpreter exits.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise UsedElsewhere(
                "a blocking call inside the library's own event loop would wait for itself; use the asyncio classes in "
                "async functions, or hand over a plain function, which runs in a thread"
            )
        self._check_open(work)
        done: Future[T] = Future()
        task: list[asyncio.Task[Outcome]] = []
        name = threading.current_thread().name

        def start() -> None:
            task.append(self._loop.create_task(_carried_out(work), name=name))
            task[0].add_done_callback(lambda ended: _deliver(ended, done))

        self._loop.call_soon_threadsafe(start, context=copy_context())
        try:
            return done.result()
        except BaseException as error:
            if not done.done() or done.exception() is not error:  # then the caller was interrupted
                self._loop.call_soon_threadsafe(lambda: task[0].cancel())
                with suppress(Exception):
                    result = done.result()
                    if undo:
                        self.run(undo(result))
            raise

    async def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` and return its result, as ``run`` does, to a coroutine of another event loop. A cancel reaches
        ``work``."""
        self._check_open(work)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _check_open(self, work: Coroutine[Any, Any, Any]) -> None:
        """Raise ``SessionLost`` while the interpreter exits."""
        if self._loop.is_closed():
            work.close()
            raise SessionLost("the interpreter is exiting: blocking calls are over")

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield ``items`` one by one. Leaving the loop early closes ``items``."""
        try:
            while True:
                item = self.run(_next(items))
                if isinstance(item, _End):
                    return
                yield item
        finally:
            if threading.current_thread() is not self._thread:  # else it is garbage, and the loop closes ``items``
                self.run(_close(items))

    def close_default_session(self) -> None:
        """Close the process's default session, which releases all it holds. The next call makes another."""
        self.run(_close_default())

    def close(self) -> None:
        """Close the default session, cancel the calls that still run, and end the thread."""
        if self._loop.is_closed():
            return
        with suppress(Exception):
            closing = asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop)
            closing.result(_EXIT_LIMIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_EXIT_LIMIT)

    async def _wind_up(self) -> None:
        await _close_default()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "codomyrmex"))
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _carried_out(work: Coroutine[Any, Any, Any]) -> Outcome:
    """Run ``work`` and return its result or its error as a value.

    A raised ``SystemExit`` would end the event loop of all calls.
    """
    try:
        return Outcome(await work, None)
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise
        return Outcome(None, error)


def _deliver(task: asyncio.Task[Outcome], done: Future[T]) -> None:
    if task.cancelled():
        done.set_exception(SessionLost("the call was cancelled, because blocking calls are over in this process"))
    elif error := task.exception() or task.result().error:
        done.set_exception(error)
    else:
        done.set_result(task.result().value)


async def _close_default() -> None:
    await default_session().close()


class _End:
    pass


async def _next(items: AsyncGenerator[T, None]) -> T | _End:
    return await anext(items, _End())


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


_portal: Portal | None = None
_making = threading.Lock()


def portal() -> Portal:
    """The process's portal, made at first use."""
    global _portal
    with _making:
        if _portal is None:
            _portal = Portal()
            atexit.register(_portal.close)
        return _portal


def _forget() -> None:
    """Drop the portal in a forked child, which has none of its parent's threads."""
    global _portal, _making
    if _portal:
        atexit.unregister(_portal.close)
    _portal, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
