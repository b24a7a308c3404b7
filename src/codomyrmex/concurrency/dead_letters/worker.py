"""The worker on one session: starts an attempt for each due entry, puts orphaned entries back, and stops in order.

Any number of workers on any number of hosts share a queue. The claim, written by ``store.py``, decides which of them
runs an entry. ``follower.py`` tells what is due, ``attempts.py`` makes one attempt from its claim to its outcome.

A claim is a hold. Each way out of an attempt gives it back: the end of the handler, the stop of the worker, an
unexpected error, and an etcd that answers too late (``store.py`` undoes a claim whose worker gave up waiting for it).
Writes that fail for want of etcd, or of space in it, are tried again, after pauses that grow to some seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from codomyrmex.concurrency.dead_letters import record, steps, transitions
from codomyrmex.concurrency.dead_letters.attempts import Attempts
from codomyrmex.concurrency.dead_letters.follower import Follower
from codomyrmex.concurrency.dead_letters.handlers import Handler
from codomyrmex.concurrency.dead_letters.persistence import LONGEST_PAUSE, Pauses
from codomyrmex.concurrency.dead_letters.presence import Presence
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.errors import EtcdError, PayloadTooLarge, SessionLost, fresh
from codomyrmex.concurrency.etcd.transports.protocol import KV
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")

_GRACE = 5.0  # seconds in which a cancelled handler must end


class SessionWorker:
    """Runs at most ``concurrency`` handlers at a time on one session."""

    def __init__(
        self,
        store: Store,
        handlers: dict[str, Handler],
        policy: RetryPolicy,
        concurrency: int,
        redact: Callable[[str], str],
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._policy = policy
        self._concurrency = concurrency
        self._presence = Presence(store, handlers)
        self._follower = Follower(store, self)
        self._schedule = self._follower.schedule
        self._attempts = Attempts(store, policy, redact)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspect: str | None = None  # due, and waits until it can run alone
        self._alone = False
        self._stopping = False
        self._settling: set[asyncio.Future[bool]] = set()
        self._failure: BaseException | None = None
        self._pauses = Pauses()
        self._resting_until = 0.0  # on the monotonic clock; etcd refuses claims, or does not answer

    def handled_now(self, operation: str) -> None:
        """A handler for ``operation`` was registered while the worker runs."""
        self._schedule.handled_now(operation)
        self._presence.changed()
        self._news.set()

    async def run(self) -> None:
        """Follow the queue and run due entries until ``stop``.

        Raises ``SessionLost`` when the session is gone, and any unexpected error that ends an attempt or a part of the
        worker.
        """
        end_watch = self._follower.subscribe()
        running = (self._follower.follow(), self._follower.look_round(), self._notice_loss(), self._presence.keep())
        parts = [asyncio.create_task(part) for part in running]
        for part in parts:
            part.add_done_callback(lambda _: self._news.set())
        try:
            while not self._stopping:
                self._news.clear()
                for part in parts:
                    if part.done():
                        part.result()
                if self._failure:
                    raise self._failure
                self._start_due()
                self._tell_settled()
                await self._wait()
        finally:
            self._begin_to_stop()
            self._tell_settled(over=True)
            end_watch()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _notice_loss(self) -> None:
        session = self._store.session
        await session.lost.wait()
        raise fresh(session.lost.reason or SessionLost("the session is over"))

    # Settling

    async def settled(self) -> bool:
        """Wait until no entry that is handled here waits or runs; False if the worker ends before."""
        if self._stopping:
            return False
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._settling.add(told)
        self._news.set()
        try:
            return await told
        finally:
            self._settling.discard(told)

    def _tell_settled(self, over: bool = False) -> None:
        complete, busy = self._schedule.is_complete, self._tasks or self._schedule.has_unsettled(self._handlers)
        settled = complete and not busy
        for told in self._settling:
            if (settled or over) and not told.done():
                told.set_result(settled)

    # Stopping

    async def stop(self, limit: float | None) -> None:
        """Start nothing more, and wait at most ``limit`` seconds for running attempts; None waits without a limit.

        After the limit, or a cancel of this call, the handlers are cancelled. No other step is: a claim under way is
        given back, and the outcome of an attempt is written in any case. A handler that ignores its cancel is left to
        run, with its claim, for as long as the session lasts.
        """
        self._begin_to_stop()
        self._news.set()
        try:
            if await self._all_ended(limit):
                return
        except asyncio.CancelledError:
            await self._cancel_handlers()
            raise
        await self._cancel_handlers()

    def _begin_to_stop(self) -> None:
        self._stopping = self._attempts.stopping = True

    async def _cancel_handlers(self) -> None:
        self._attempts.cancel_handlers()
        if not await self._all_ended(_GRACE):
            log.error(
                "%d dead letters of %r stay claimed until their handlers end, or the session: these ignore that they "
                "were cancelled, or etcd does not answer",
                len(self._tasks),
                self._store.queue,
            )

    async def _all_ended(self, limit: float | None) -> bool:
        """Wait at most ``limit`` seconds for the tasks; True if none runs any more."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit)
        return not self._tasks

    # Starting what is due

    async def _wait(self) -> None:
        """Wait for news, or until the next entry is due and there is room for it."""
        due = self._schedule.next_due() if self._has_room() else None
        if due is not None:
            due = max(due, self._resting_until)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._news.wait()

    def _start_due(self) -> None:
        """Start attempts at due entries, as far as there is room.

        An entry whose worker died runs alone here. If it is to blame it harms no other entry; if not, that shows.
        """
        while self._has_room() and time.monotonic() >= self._resting_until:
            entry_id = self._suspect or self._schedule.take_due(time.monotonic())
            if entry_id is None:
                return
            self._alone = self._schedule.is_suspect(entry_id)
            if self._alone and self._tasks:
                self._suspect = entry_id
                return
            self._suspect = None
            handler = self._handlers.get(self._schedule.operation(entry_id))
            if handler:  # without one the entry stays waiting, for a worker that has it
                self._spawn(self._attempt(entry_id, handler))

    def _has_room(self) -> bool:
        most = 1 if self._alone else self._concurrency
        return len(self._tasks) < most and not self._stopping

    async def _attempt(self, entry_id: str, handler: Handler) -> None:
        """Claim a due entry and run its handler. It may fail to get the claim, and is then offered again later."""
        try:
            claim = await self._attempts.claim(entry_id, self._follower.take_record(entry_id))
        except SessionLost:
            return  # the worker ends too; the worker that adopts the entry goes on
        except PayloadTooLarge as error:
            log.error("dead letter %s cannot be retried: %s", entry_id, error)
            return
        except EtcdError as error:
            self._rest(f"dead letter {entry_id} could not be claimed", error)
            self._schedule.offer_again(entry_id, self._resting_until)
            return
        self._pauses.reset()
        if claim:
            await self._attempts.run(claim, handler)
        else:  # another worker may have it; if no event tells of one, there is none
            self._schedule.offer_again(entry_id, time.monotonic() + LONGEST_PAUSE)

    def _rest(self, problem: str, error: EtcdError) -> None:
        """etcd takes nothing at the moment: claim nothing more until a pause is over."""
        if self._pauses.is_first:
            log.warning("%s; the worker goes on trying: %s", problem, error)
        self._resting_until = time.monotonic() + self._pauses.take()
        self._news.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        self._store.session.keep(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("an attempt at a dead letter failed in a way that nobody expected", exc_info=error)
            self._failure = self._failure or error

    # The calls of the follower

    def news(self) -> None:
        self._news.set()

    def claim_gone(self, entry_id: str) -> None:
        self._attempts.lose(entry_id)

    def found_stray(self, entry_id: str, claim: KV) -> None:
        if not self._stopping:
            self._spawn(self._store.give_back(entry_id, claim.value))

    def found_orphan(self, entry_id: str) -> None:
        """Put the entry back; of all workers the quickest does."""
        if self._schedule.is_orphan(entry_id) and entry_id not in self._attempts and not self._stopping:
            self._spawn(self._put_back(entry_id))

    async def _put_back(self, entry_id: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            stored = await self._store.get(entry_id)
            crashed = stored and transitions.allows(stored.entry.state, transitions.Event.CRASHED, claimed=False)
            if stored and crashed and self._schedule.is_orphan(entry_id):
                await self._store.change(stored, steps.crashed(stored.entry, self._policy, record.now()))
                # An event tells the outcome; if none comes, it is tried again.
                loop.call_later(LONGEST_PAUSE, self.found_orphan, entry_id)
        except SessionLost:
            return
        except PayloadTooLarge as error:
            log.error("dead letter %s: nobody runs it, and it cannot be put back: %s", entry_id, error)
        except EtcdError as error:
            self._rest(f"dead letter {entry_id} could not be put back", error)
            loop.call_later(self._pauses.next, self.found_orphan, entry_id)
