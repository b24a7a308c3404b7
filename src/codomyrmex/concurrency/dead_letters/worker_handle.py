"""``async with dlq.worker()``: a worker for the time of a block. When a session is lost it begins again on the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.dead_letters.handlers import Handler
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.dead_letters.transitions import UNSETTLED
from codomyrmex.concurrency.dead_letters.worker import SessionWorker
from codomyrmex.concurrency.errors import EtcdQuotaExceeded, EtcdUnavailable, SessionLost
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE = 1.0  # seconds between tries to open another session
_BRIEFLY = 0.05  # seconds between looks for unsettled entries


@dataclass(frozen=True, slots=True)
class Work:
    """The parts of a queue that its workers need.

    ``open_store`` returns its store on a usable session. ``is_over`` is true if there will be no such session any more:
    the user gave the session, and it is lost.
    """

    queue: str
    handlers: dict[str, Handler]
    policy: RetryPolicy
    redact: Callable[[str], str]
    open_store: Callable[[], Awaitable[Store]]
    is_over: Callable[[], bool]


class Worker(AsyncOnly):
    """A worker of a queue for the time of a block. ``DeadLetterQueue.worker`` makes one for each block."""

    def __init__(self, work: Work, concurrency: int, drain_timeout: float | None) -> None:
        self._work = work
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._worker: SessionWorker | None = None
        self._stopping = False
        self._block: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled_block = False

    def _handled_now(self, operation: str) -> None:
        """A handler for ``operation`` was registered."""
        if self._worker:
            self._worker.handled_now(operation)

    async def settled(self) -> None:
        """Wait until no entry of an operation that is handled here is waiting, delayed or running, on any host.

        Raises the error that ended the worker, if the worker cannot go on.
        """
        while True:
            if self._task and self._task.done():
                return self._task.result()
            # The watch may not have told the worker of the newest entries yet, so etcd is read too.
            if self._worker and await self._worker.settled():
                store = await self._work.open_store()
                if not await store.has_any(self._work.handlers, UNSETTLED):
                    return None
            await asyncio.sleep(_BRIEFLY)

    async def __aenter__(self) -> Worker:
        if self._task:
            raise RuntimeError("a worker is used once; call worker() for each block")
        self._block = asyncio.current_task()
        store = await self._work.open_store()
        self._task = asyncio.create_task(self._run(store))
        self._task.add_done_callback(self._done)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task
        self._stopping = True
        try:
            if self._worker:
                await self._worker.stop(self._drain_timeout if kind is None else 0.0)
        finally:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._task.cancelled():
            return
        if failure := self._task.exception():
            if self._cancelled_block and self._block:
                self._block.uncancel()
            raise failure

    def _done(self, task: asyncio.Task[None]) -> None:
        """Cancel the block if the worker cannot go on: else the block would run on without a worker, unnoticed."""
        if not self._stopping and not task.cancelled() and task.exception() and self._block:
            self._cancelled_block = True
            self._block.cancel()

    async def _run(self, store: Store) -> None:
        work = self._work
        while not self._stopping:
            worker = SessionWorker(store, work.handlers, work.policy, self._concurrency, work.redact)
            self._worker = worker
            try:
                await worker.run()
            except (SessionLost, EtcdUnavailable) as error:
                await worker.stop(0.0)
                if work.is_over():
                    raise
                log.warning("the worker of %r begins anew: %s", work.queue, error)
                store = await self._reopen()

    async def _reopen(self) -> Store:
        """The queue's store on another session. Waits for as long as etcd is away, or has no space for a new lease."""
        while True:
            try:
                return await self._work.open_store()
            except (EtcdUnavailable, EtcdQuotaExceeded, SessionLost) as error:
                if self._work.is_over():
                    raise
                log.debug("the worker of %r waits for a session: %s", self._work.queue, error)
                await asyncio.sleep(_PAUSE)
