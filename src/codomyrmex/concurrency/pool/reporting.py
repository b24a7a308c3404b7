"""A pool reports its figures to etcd: each pool keeps one leased key with them, which any process can read.

A report never slows or fails a task: a task of its own writes it, at most once an interval and only when the figures
have changed. An error is logged, once until a report is written again, and the next interval tries again. A reporter
that ends although nobody closed it is logged too, and begins again. The key is bound to the session's lease, so it
goes with the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable

from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.models import to_json
from codomyrmex.concurrency.pool.results import PoolStats
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore

log = logging.getLogger("codomyrmex.concurrency")

_JITTER = 0.2


def reports(session: SessionCore) -> bytes:
    """The prefix of every pool's report."""
    return session.layout.pools


class Reporter:
    """Writes a pool's figures to etcd every ``interval`` seconds, with jitter, if ``changes()`` has changed."""

    def __init__(
        self,
        session: Session | None,
        interval: float,
        stats: Callable[[], PoolStats],
        changes: Callable[[], int],
    ) -> None:
        self._given = session
        self._interval = interval
        self._stats = stats
        self._changes = changes
        self._name = stats().name
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._written: tuple[int, SessionCore] | None = None
        self._told = ""
        self._closed = False

    def start(self) -> None:
        """Report from now on. A reporter of another event loop moves to the running one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._begin()

    async def close(self) -> None:
        """End the reporter and remove its report; waits at most 1 s for etcd."""
        self._closed = True
        if self._task and self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._written:
            session = self._written[1]
            try:
                async with asyncio.timeout(1.0):
                    await session.remover.remove(self._key(session))
            except (ConcurrencyError, TimeoutError):
                pass  # the lease takes it along
            except Exception as error:
                log.warning("the report of the pool %r may stay as long as its session: %r", self._name, error)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="pool-reporter")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Begin again after the interval, for a reporter never ends by itself. In a loop that ends, the timer never
        rings."""
        why = "it was cancelled" if task.cancelled() else repr(task.exception())
        if not self._closed:
            task.get_loop().call_later(self._interval, self._again, task, why)

    def _again(self, ended: asyncio.Task[None], why: str) -> None:
        if not self._closed and self._task is ended:
            log.warning("the reporter of the pool %r ended (%s) and begins again", self._name, why)
            self._begin()

    async def _run(self) -> None:
        while True:
            try:
                await self._write()
                self._told = ""
            except Exception as error:  # whatever it is, the tasks of the pool have nothing to do with it
                self._tell(error)
            await asyncio.sleep(self._interval * random.uniform(1 - _JITTER, 1 + _JITTER))

    def _tell(self, error: Exception) -> None:
        """Log an error, once in a row for each kind; with its traceback unless it is an error that etcd may cause."""
        kind = type(error).__qualname__
        if self._told != kind:
            unexpected = None if isinstance(error, ConcurrencyError) else error
            log.warning("the pool %r cannot report its figures: %s: %s", self._name, kind, error, exc_info=unexpected)
        self._told = kind

    async def _write(self) -> None:
        session = await ready(self._given)
        changes = self._changes()
        if self._written == (changes, session):
            return
        stats = self._stats()
        key = self._key(session)
        put = Put(key, json.dumps(to_json(stats)).encode(), session.id)
        await session.committer.commit(Request((key,), (put,), again=()))
        self._written = changes, session

    def _key(self, session: SessionCore) -> bytes:
        stats = self._stats()
        return session.layout.pool_report(stats.name, session.id, stats.instance)
