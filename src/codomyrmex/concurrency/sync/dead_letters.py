"""The blocking twin of ``DeadLetterQueue``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.dead_letters import handlers, worker_handle
from codomyrmex.concurrency.dead_letters import queue as twin
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.retry import RetryPolicy
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Attempt:
    """One attempt of a handler on a dead letter.

    ``number`` counts from 1 and begins again after a replay. ``token`` rises with every attempt on an entry.
    """

    def __init__(self, attempt: handlers.Attempt) -> None:
        self._twin = attempt
        self.number = attempt.number
        self.token = attempt.token

    checkpoint = blocking(handlers.Attempt.checkpoint)


Handler = Callable[[DeadLetter, Attempt], object]
AnyHandler = TypeVar("AnyHandler", bound=Handler)


class DeadLetterQueue(BlockingOnly):
    """``codomyrmex.concurrency.DeadLetterQueue`` for code without an event loop.

    Handlers are plain functions of ``(entry, attempt)`` and run in threads.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        session: Session | None = None,
        retry: RetryPolicy | None = None,
        retention: float | None = None,
        max_entries: int | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._twin = twin.DeadLetterQueue(
            name,
            session=unwrapped(session),
            retry=retry,
            retention=retention,
            max_entries=max_entries,
            redact=redact,
        )

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._twin.name

    @property
    @text_of(twin.DeadLetterQueue.operations)
    def operations(self) -> tuple[str, ...]:
        return self._twin.operations

    add = blocking(twin.DeadLetterQueue.add)
    get = blocking(twin.DeadLetterQueue.get)
    count = blocking(twin.DeadLetterQueue.count)
    list_entries = blocking(twin.DeadLetterQueue.list_entries)
    entries = blocking(twin.DeadLetterQueue.entries)
    watch = blocking(twin.DeadLetterQueue.watch)

    def handler(self, operation: str) -> Callable[[AnyHandler], AnyHandler]:
        """Register the decorated ``def handle(entry, attempt)`` as the handler that retries ``operation``.

        Only operations with a handler are retried.

        The handler may raise ``Retry``, ``Park`` or ``Discard``. It runs in a thread, which cannot be ended. A
        handler that still runs some seconds after the end of its worker's block keeps its claim until it ends.
        """

        def register(function: AnyHandler) -> AnyHandler:
            if asyncio.iscoroutinefunction(function) or not callable(function):
                raise TypeError(f"the handler of {operation!r} must be a plain function here, not {function!r}")

            async def handle(entry: DeadLetter, attempt: handlers.Attempt) -> None:
                await _to_its_end(function, entry, Attempt(attempt))

            portal().run(self._register(operation, handle))
            return function

        return register

    async def _register(self, operation: str, handle: handlers.Handler) -> None:
        self._twin.handler(operation)(handle)

    def worker(self, concurrency: int = 4, *, drain_timeout: float | None = 20.0) -> Worker:
        """Retry the entries that are due while the block runs: ``with dlq.worker() as worker: worker.settled()``.

        At most ``concurrency`` handlers run at a time in this process. The end of the block waits at most
        ``drain_timeout`` seconds for the handlers that run; None sets no limit.
        """
        return Worker(self._twin.worker(concurrency, drain_timeout=drain_timeout))

    replay = blocking(twin.DeadLetterQueue.replay)
    replay_all = blocking(twin.DeadLetterQueue.replay_all)
    discard = blocking(twin.DeadLetterQueue.discard)
    purge = blocking(twin.DeadLetterQueue.purge)
    close = blocking(twin.DeadLetterQueue.close)

    def __enter__(self) -> DeadLetterQueue:
        portal().run(self._twin.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _to_its_end(function: Handler, entry: DeadLetter, attempt: Attempt) -> None:
    """Run a handler in a thread and wait for its end, even when cancelled.

    A cancel does not end a thread, and the claim must last as long as the handler runs.
    """
    running = asyncio.ensure_future(asyncio.to_thread(_call, function, entry, attempt))
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    running.result()


def _call(function: Handler, entry: DeadLetter, attempt: Attempt) -> None:
    try:
        function(entry, attempt)
    except StopIteration as error:  # a future refuses StopIteration, and its waiter would wait for ever
        raise RuntimeError("the handler raised StopIteration") from error


class Worker(BlockingOnly):
    """A worker that retries dead letters during a ``with`` block."""

    def __init__(self, worker: worker_handle.Worker) -> None:
        self._twin = worker

    def settled(self, timeout: float | None = None) -> None:
        """Wait until no entry of an operation that has a handler here is waiting, delayed or running on any host.

        Raises ``TimeoutError`` after ``timeout`` seconds; None sets no limit. If an error ended the worker, raises that
        error.
        """
        portal().run(self._settled(timeout))

    async def _settled(self, timeout: float | None) -> None:
        async with asyncio.timeout(timeout):
            await self._twin.settled()

    def __enter__(self) -> Worker:
        portal().run(self._twin.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._twin.__aexit__(kind, error, trace))
