"""The task that sends spilled dead letters. Each queue object owns one and ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from codomyrmex.concurrency.dead_letters import old_spill
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.spill import Spill
from codomyrmex.concurrency.errors import (
    EtcdAuthError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdUnavailable,
    PayloadTooLarge,
    QueueFull,
    SessionLost,
    UsedElsewhere,
)

log = logging.getLogger("codomyrmex.concurrency")

SEND_EVERY = 2.0  # seconds between tries
FAILURES = 5  # unexpected errors in a row after which it gives up
_HINDERS_ALL = (EtcdUnavailable, EtcdAuthError, EtcdQuotaExceeded, SessionLost, QueueFull)


class Spiller:
    """Keeps dead letters in files and sends them by ``add``. ``over`` is true once this queue can send no more."""

    def __init__(
        self, namespace: str, queue: str, add: Callable[[DeadLetter], Awaitable[str]], over: Callable[[], bool]
    ) -> None:
        self.spill = Spill(namespace, queue)
        self._names = namespace, queue
        self._add = add
        self._over = over
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""  # the error of the last call to etcd, if that failed
        self._away_until = 0.0  # on the monotonic clock: before that etcd need not be asked
        self._more = False  # something was kept since the last look
        self._unsent = False  # as far as is known
        self._closed = False
        self._said = ""

    @property
    def away(self) -> bool:
        """True if etcd was away just now, so that a call would only cost time."""
        return time.monotonic() < self._away_until

    def went_away(self, trouble: str) -> None:
        """etcd took nothing: do not call it for a while."""
        self.trouble = trouble
        self._away_until = time.monotonic() + SEND_EVERY

    async def keep(self, entry: DeadLetter) -> Path:
        """Write a record to its file, to be sent later; raises ``OSError``."""
        try:
            path = await asyncio.to_thread(self.spill.write, entry)
            self._unsent = True
            return path
        finally:
            self.wake()  # the thread writes on even if its caller is cancelled

    def wake(self) -> None:
        """Begin to send, if there are files."""
        self._more = True
        if self._closed or self._runs_here():
            return
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def open(self) -> None:
        """Begin to send, also after ``close``. Files that earlier processes left are sent too."""
        self._closed = False
        self.wake()

    async def close(self) -> None:
        """End the task; unsent records stay in their files."""
        self._closed = True
        if self._task and self._runs_here():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _runs_here(self) -> bool:
        """True if the task runs in this event loop: a task of a parent process, or of a closed loop, does not run."""
        task = self._task
        return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error:
            log.error("the task that sends spilled dead letters died; they stay in their files", exc_info=error)
        elif task.cancelled() and not self._closed and self._unsent:
            log.warning("the task that sends spilled dead letters was cancelled; they stay in their files")

    async def _run(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(self._away_until - time.monotonic())
            try:
                self._more = False
                self._unsent = await asyncio.to_thread(self._waiting)
                if not self._unsent and not self._more:
                    return
                sent = await self._send()
                failures = 0
                if sent:
                    continue
            except UsedElsewhere as error:  # this process can never send them; the one that can does
                self._say(error)
                return
            except (EtcdError, SessionLost, QueueFull, OSError) as error:
                self._say(error)
                if self._over():
                    return
                if isinstance(error, EtcdUnavailable):
                    self.went_away(str(error))
            except (Exception, asyncio.CancelledError):
                if _is_cancelled():
                    raise
                failures += 1
                log.exception("spilled dead letters could not be sent, for a reason that was not expected")
                if failures == FAILURES:
                    log.error("no more tries: spilled dead letters stay in their files until more are spilled")
                    return
            await asyncio.sleep(SEND_EVERY)

    def _waiting(self) -> bool:
        return not self.spill.is_empty() or bool(old_spill.left(*self._names))

    async def _send(self) -> int:
        """Send all files; returns the number of records sent. Raises the error that hindered it."""
        spill, sent = self.spill, 0
        hindered: Exception | None = None
        with spill.lock() as ours:
            if not ours:
                return 0  # another process sends them
            try:
                for old in await asyncio.to_thread(old_spill.left, *self._names):
                    await asyncio.to_thread(old_spill.take_over, spill, old)
                for path in await asyncio.to_thread(spill.waiting):
                    try:
                        sent += await self._send_one(path)
                    except _HINDERS_ALL:
                        raise
                    except Exception as error:  # the trouble of one record must not hold up the others
                        hindered = hindered or error
            finally:
                if sent:
                    self._said, self._away_until = "", 0.0
                    log.warning("etcd is back: %d spilled dead letters were sent", sent)
        if hindered:
            raise hindered
        return sent

    async def _send_one(self, path: Path) -> bool:
        entry = await asyncio.to_thread(self.spill.read, path)
        if entry is None:
            return False
        try:
            await self._add(entry)
        except PayloadTooLarge as error:
            await asyncio.to_thread(self.spill.reject, path, str(error))
            return False
        self.spill.remove(path)  # here and now: a cancel that came between would send the record again
        return True

    def _say(self, error: Exception) -> None:
        """Log the reason why nothing can be sent; a warning the first time, then at debug level until it changes."""
        level = logging.DEBUG if str(error) == self._said else logging.WARNING
        self._said = str(error)
        log.log(level, "spilled dead letters cannot be sent yet: %s", error)


def _is_cancelled() -> bool:
    """True if the running task is cancelled. If not, a ``CancelledError`` comes from a call that was ended."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
