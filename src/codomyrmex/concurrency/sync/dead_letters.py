"""The blocking twin of ``DeadLetterQueue``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.dead_letters import handlers, worker_handle
from codomyrmex.concurrency.dead_letters import queue as twin
from codomyrmex.concurrency.dead_letters.record import DeadLetter, State
from codomyrmex.concurrency.retry import RetryPolicy
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Attempt:
    """One attempt of a handler. ``number`` counts from 1; ``token`` strictly increases with every attempt."""

    def __init__(self, attempt: handlers.Attempt) -> None:
        self._attempt = attempt
        self.number = attempt.number
        self.token = attempt.token

    def checkpoint(self) -> None:
        """Raise ``LockLost`` if the claim is gone, so that a long handler stops before it does harm."""
        portal().run(self._attempt.checkpoint())


Handler = Callable[[DeadLetter, Attempt], object]
AnyHandler = TypeVar("AnyHandler", bound=Handler)


class DeadLetterQueue(BlockingOnly):
    """``codomyrmex.concurrency.DeadLetterQueue`` for code without an event loop. Handlers are plain functions of
    ``(entry, attempt)`` and run in threads."""

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
        self._queue = twin.DeadLetterQueue(
            name,
            session=unwrapped(session),
            retry=retry,
            retention=retention,
            max_entries=max_entries,
            redact=redact,
        )

    @property
    def name(self) -> str:
        return self._queue.name

    @property
    def operations(self) -> tuple[str, ...]:
        return self._queue.operations

    def add(
        self,
        *,
        operation: str,
        args: dict[str, Any],
        error: BaseException | str,
        metadata: dict[str, Any] | None = None,
        dedup_key: str | None = None,
    ) -> str:
        """Store a failure; returns its id when etcd has it for certain. Raises as the asyncio class."""
        return portal().run(
            self._queue.add(operation=operation, args=args, error=error, metadata=metadata, dedup_key=dedup_key)
        )

    def get(self, id: str) -> DeadLetter | None:
        """One entry, or None if there is none of that id."""
        return portal().run(self._queue.get(id))

    def count(self) -> int:
        """How many entries there are, in any state."""
        return portal().run(self._queue.count())

    def list_entries(
        self,
        operation: str | None = None,
        since: datetime | None = None,
        state: State | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """Entries in order of their creation, all at one revision. For very many use ``entries``."""
        return portal().run(self._queue.list_entries(operation, since, state, limit))

    def entries(
        self, operation: str | None = None, since: datetime | None = None, state: State | None = None
    ) -> Iterator[DeadLetter]:
        """The same one by one, read page by page: flat in memory."""
        return portal().iterate(self._queue.entries(operation, since, state))

    def watch(self) -> Iterator[DeadLetter]:
        """Every entry that is there, then each again whenever it is added or changes, in etcd's order."""
        return portal().iterate(self._queue.watch())

    def handler(self, operation: str) -> Callable[[AnyHandler], AnyHandler]:
        """Register the decorated ``def handle(entry, attempt)`` to retry ``operation``; nothing else runs.

        It may raise ``Retry``, ``Park`` or ``Discard``. A thread cannot be ended: one that still runs some seconds
        after its worker's block was left keeps its claim until it ends.
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
        self._queue.handler(operation)(handle)

    def worker(self, concurrency: int = 4, *, drain_timeout: float | None = 20.0) -> Worker:
        """Retry what is due while the block runs: ``with dlq.worker() as worker: worker.settled()``."""
        return Worker(self._queue.worker(concurrency, drain_timeout=drain_timeout))

    def replay(self, id: str) -> DeadLetter:
        """Make an entry due now, with all its attempts before it; returns it. Its history stays."""
        return portal().run(self._queue.replay(id))

    def replay_all(self, operation: str | None = None, rate: float | None = None, state: State | None = None) -> int:
        """Replay every parked and waiting entry there is now, at most ``rate`` a second; returns how many were."""
        return portal().run(self._queue.replay_all(operation, rate, state))

    def discard(self, id: str, *, reason: str) -> DeadLetter:
        """Resolve an entry without retrying it; it stays to be seen, with ``reason``, for the retention time."""
        return portal().run(self._queue.discard(id, reason=reason))

    def purge(self, before: datetime | None = None, state: State | None = None) -> int:
        """Delete resolved and parked entries, or those of one ``state``, created ``before`` then; returns how many."""
        return portal().run(self._queue.purge(before, state))

    def close(self) -> None:
        """End what sends spilled entries; what is not sent stays in its file. The session is left alone."""
        portal().run(self._queue.close())

    def __enter__(self) -> DeadLetterQueue:
        portal().run(self._queue.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _to_its_end(function: Handler, entry: DeadLetter, attempt: Attempt) -> None:
    """Run it in a thread, which no cancel ends: the claim is kept until it has."""
    running = asyncio.ensure_future(asyncio.to_thread(_call, function, entry, attempt))
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    running.result()


def _call(function: Handler, entry: DeadLetter, attempt: Attempt) -> None:
    try:
        function(entry, attempt)
    except StopIteration as error:  # no future can carry one: its thread's end would never be told
        raise RuntimeError("the handler raised StopIteration") from error


class Worker(BlockingOnly):
    """A worker for the time of a block."""

    def __init__(self, running: worker_handle.Worker) -> None:
        self._running = running

    def settled(self, timeout: float | None = None) -> None:
        """Wait until nothing that is handled here is waiting, delayed or running, on any host; raises ``TimeoutError``
        after ``timeout`` seconds."""
        portal().run(self._settled(timeout))

    async def _settled(self, timeout: float | None) -> None:
        async with asyncio.timeout(timeout):
            await self._running.settled()

    def __enter__(self) -> Worker:
        portal().run(self._running.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._running.__aexit__(kind, error, trace))
