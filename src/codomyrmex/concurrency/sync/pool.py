"""The blocking twin of ``AsyncWorkerPool``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.pool import worker_pool as twin
from codomyrmex.concurrency.pool.executors import Executor
from codomyrmex.concurrency.pool.outcome import Outcome, outcome
from codomyrmex.concurrency.pool.progress import Callback
from codomyrmex.concurrency.pool.results import TaskResult
from codomyrmex.concurrency.pool.share import Cost
from codomyrmex.concurrency.retry import RetryPolicy
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.dead_letters import DeadLetterQueue
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.rate_limiter import RateLimiter
from codomyrmex.concurrency.sync.semaphore import Semaphore
from codomyrmex.concurrency.sync.session import Session, unwrapped

log = logging.getLogger("codomyrmex.concurrency")
_END = object()

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


class AsyncWorkerPool(BlockingOnly):
    """``codomyrmex.concurrency.AsyncWorkerPool`` for code without an event loop: ``with AsyncWorkerPool(4) as pool``.

    Plain functions run in threads and may use the blocking twin. Async functions run on its event loop.
    """

    def __init__(
        self,
        max_workers: int = 4,
        *,
        name: str = "pool",
        dlq: DeadLetterQueue | None = None,
        retry: RetryPolicy | None = None,
        task_timeout: float | None = None,
        executor: Executor = "auto",
        report: bool | float | None = None,
        session: Session | None = None,
        progress: bool | Callback = False,
    ) -> None:
        self._twin = twin.AsyncWorkerPool(
            max_workers,
            name=name,
            dlq=dlq._twin if dlq else None,
            retry=retry,
            task_timeout=task_timeout,
            executor=executor,
            report=report,
            session=unwrapped(session),
            progress=progress,
        )

    @property
    def name(self) -> str:
        """The pool's name in reports and dead letters."""
        return self._twin.name

    @overload  # one is needed for each: nothing may stand between `*args: P.args` and `**kwargs: P.kwargs`
    def submit(
        self, function: Callable[..., Awaitable[T]], *args: Any, task_id: str, **kwargs: Any
    ) -> TaskResult[T]: ...
    @overload
    def submit(self, function: Callable[..., T], *args: Any, task_id: str, **kwargs: Any) -> TaskResult[T]: ...
    @overload
    def submit(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @overload
    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    @text_of(twin.AsyncWorkerPool.submit)
    def submit(self, function: Callable[..., Any], *args: Any, task_id: Any = "", **kwargs: Any) -> TaskResult[Any]:
        return portal().run(self._twin.submit(function, *args, task_id=task_id, **kwargs))

    @overload
    def map(
        self,
        function: Callable[[Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> list[TaskResult[T]]: ...
    @overload
    def map(
        self,
        function: Callable[[Item], T],
        items: Iterable[Item],
        *,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> list[TaskResult[T]]: ...
    @text_of(twin.AsyncWorkerPool.map)
    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Any] | None = None,
    ) -> list[TaskResult[Any]]:
        results = self._twin.map(
            function, _without_blocking(items), lock=lock, semaphore=_inner(semaphore), rate=_inner(rate), cost=cost
        )
        return portal().run(results)

    @overload
    def imap(
        self,
        function: Callable[[Item], Awaitable[T]],
        items: Iterable[Item],
        *,
        ordered: bool = False,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> Iterator[TaskResult[T]]: ...
    @overload
    def imap(
        self,
        function: Callable[[Item], T],
        items: Iterable[Item],
        *,
        ordered: bool = False,
        lock: Callable[[Item], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Item] | None = None,
    ) -> Iterator[TaskResult[T]]: ...
    @text_of(twin.AsyncWorkerPool.imap)
    def imap(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        ordered: bool = False,
        lock: Callable[[Any], str | None] | None = None,
        semaphore: Semaphore | None = None,
        rate: RateLimiter | None = None,
        cost: Cost[Any] | None = None,
    ) -> Iterator[TaskResult[Any]]:
        results = self._imap(
            function, items, ordered=ordered, lock=lock, semaphore=_inner(semaphore), rate=_inner(rate), cost=cost
        )
        return portal().iterate(results)

    async def _imap(
        self, function: Callable[[Any], Any], items: Iterable[Any], **options: Any
    ) -> AsyncGenerator[TaskResult[Any], None]:
        results = self._twin.imap(function, _without_blocking(items), **options)
        async for result in results:
            yield result

    operation_of = staticmethod(twin.AsyncWorkerPool.operation_of)

    stats = blocking(twin.AsyncWorkerPool.stats)
    cluster_stats = blocking(twin.AsyncWorkerPool.cluster_stats)
    shutdown = blocking(twin.AsyncWorkerPool.shutdown)

    def __enter__(self) -> AsyncWorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(drain=kind is None)

    def __repr__(self) -> str:
        return repr(self._twin)


def _inner(given: Any) -> Any:
    """The asyncio twin of a semaphore or a rate limiter. The pool refuses what is neither."""
    return getattr(given, "_twin", given)


def _without_blocking(items: Iterable[Any]) -> Any:
    """An async form of items that may block, such as a file or a generator. A thread takes them, not the event loop."""
    return items if isinstance(items, Sized) or not isinstance(items, Iterable) else _threaded(iter(items))


async def _threaded(items: Iterator[Any]) -> AsyncGenerator[Any, None]:
    """Yield ``items``, each of which is taken in a thread.

    The thread returns an error of the items as a value, because a raised one could end the portal's loop.
    """
    asked = _ask(lambda: next(items, _END))
    try:
        while True:
            item, error = await asyncio.shield(asked)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            asked = _ask(lambda: next(items, _END))
    finally:
        if isinstance(items, Generator):
            closing = asyncio.create_task(_close(items, asked))  # not awaited: the thread may never answer
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


async def _close(items: Generator[Any, Any, Any], asked: asyncio.Future[Outcome]) -> None:
    """Close ``items`` in a thread, so that they release their resources without blocking the event loop."""
    await asyncio.wait([asked])
    closed = await _ask(items.close)
    if closed.error is not None:
        log.warning("the items of a pool failed as they were closed: %s", type(closed.error).__qualname__)


def _ask(call: Callable[[], Any]) -> asyncio.Future[Outcome]:
    return asyncio.ensure_future(asyncio.to_thread(outcome, call))
