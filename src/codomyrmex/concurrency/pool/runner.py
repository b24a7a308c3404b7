"""How a function is run: on the loop, in a thread, or in a process. Decided before anything runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import multiprocessing
import pickle
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, get_args

Executor = Literal["auto", "thread", "process"]
Call = Callable[..., Awaitable[Any]]


class Runner:
    """Runs functions, at most ``workers`` in threads or processes. What it starts ends with ``close``."""

    def __init__(self, executor: Executor, workers: int, name: str) -> None:
        if executor not in get_args(Executor):
            raise ValueError(f"executor must be one of {', '.join(map(repr, get_args(Executor)))}, not {executor!r}")
        self._kind = executor
        self._workers = workers
        self._name = name
        self._pool: concurrent.futures.Executor | None = None
        self.busy: set[asyncio.Future[Any]] = set()  # threads that run on after their task has ended

    def call(self, function: Callable[..., Any]) -> Call:
        """``function`` as something to await; raises ``TypeError`` if it cannot be run this way."""
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
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
        context = contextvars.copy_context()
        result = await self._answer(self._pool, functools.partial(context.run, function, *args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def _in_process(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, mp_context=spawn)
        return await self._answer(self._pool, functools.partial(function, *args, **kwargs))

    async def _answer(self, pool: concurrent.futures.Executor, work: Callable[[], Any]) -> Any:
        while len(self.busy) >= self._workers:  # threads of tasks that timed out; they cannot be ended
            await asyncio.wait(self.busy, return_when=asyncio.FIRST_COMPLETED)
        future = asyncio.get_running_loop().run_in_executor(pool, work)
        self.busy.add(future)
        future.add_done_callback(self.busy.discard)
        future.add_done_callback(_seen)
        return await asyncio.shield(future)

    def close(self) -> None:
        """End threads and processes once they have nothing to do; does not wait for them."""
        pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def _seen(future: asyncio.Future[Any]) -> None:
    """An error of a thread whose task has ended already is nobody's to report."""
    if not future.cancelled():
        future.exception()


def is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def describe(function: Callable[..., Any]) -> str:
    """``module.name``, as dead letters name the operation; what runs as ``__main__`` goes by its importable name."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")
    module = getattr(function, "__module__", "")
    return f"{_main() if module == '__main__' else module}.{name}".lstrip(".")


def _main() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(getattr(main, "__file__", None) or "__main__").stem
