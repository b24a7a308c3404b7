"""The worker: runs handlers for due entries, on any number of hosts, each entry with one worker at a time.

It follows the queue by one watch and reads nothing while nothing is due. Who runs an entry is decided by the
transaction in ``store.py`` that writes the claim; what the outcome means, by ``record.py``; when an entry is due, by
``schedule.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.schedule import Schedule
from codomyrmex.concurrency.dead_letters.store import Claim, Store, Stored
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    EtcdUnavailable,
    LockLost,
    PayloadTooLarge,
    SessionLost,
    text_of,
)
from codomyrmex.concurrency.etcd.transport import Event, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE = 0.2
_KEPT = 16 << 20  # bytes of records


class Retry(Exception):
    """Raised by a handler: try again, after ``delay`` seconds if given, else as the policy says."""

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None and not 0 <= delay < float("inf"):
            raise ValueError(f"delay must be at least 0 seconds, not {delay!r}")
        super().__init__("retry asked for" + (f" in {delay:g} s" if delay is not None else ""))
        self.delay = delay


class Park(Exception):
    """Raised by a handler: do not try again; a person must look at it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason) or "parked by its handler"


class Discard(Exception):
    """Raised by a handler: the entry needs no more; it is resolved, with the reason on record."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason) or "discarded by its handler"


class Attempt:
    """One attempt of a handler. ``number`` counts from 1, anew after a replay; ``token`` strictly increases with every
    attempt of an entry."""

    def __init__(self, claim: Claim, store: Store) -> None:
        self.number = claim.entry.attempt_count
        self.token = claim.token
        self._store = store
        self._lost: ConcurrencyError | None = None

    async def checkpoint(self) -> None:
        """Raise ``LockLost`` if the claim is gone, so that a long handler stops before it does harm."""
        await asyncio.sleep(0)
        if self._lost is None and not self._store.session.alive:
            self._lost = LockLost("the worker's lease can no longer be trusted")
        if self._lost:
            raise self._lost

    def lose(self) -> None:
        self._lost = LockLost("the claim on this dead letter is gone; another worker may have it")


Handler = Callable[[DeadLetter, Attempt], Awaitable[object]]


class Worker:
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
        self._redact = redact
        self._schedule = Schedule()
        self._inbox: asyncio.Queue[Notice] = asyncio.Queue()
        self._news = asyncio.Event()
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._handling: set[asyncio.Task[Any]] = set()  # those of them that are inside a handler
        self._hurry = False
        self._suspect: str | None = None  # due, and waits until it can run alone
        self._alone = False
        self._stopping = False
        self._read_all = False
        self._revision = 0  # of what was read
        self._kept: dict[str, tuple[Stored, int]] = {}
        self._room = _KEPT
        self._settling: set[asyncio.Future[bool]] = set()

    def handled_now(self, operation: str) -> None:
        """A handler for ``operation`` was registered while the worker runs."""
        self._schedule.handled_now(operation)
        self._news.set()

    async def settled(self) -> bool:
        """Wait until nothing that is handled here waits or runs; False if the worker ends before."""
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
        settled = self._read_all and not self._tasks and not self._schedule.unsettled(self._handlers)
        for told in self._settling:
            if (settled or over) and not told.done():
                told.set_result(settled)

    async def run(self) -> None:
        """Follow the queue and run what is due until ``stop``; raises ``SessionLost`` when the session is gone."""
        hub, prefix = self._store.session.hub, self._store.prefix
        watch = hub.subscribe(WatchRequest(prefix, prefix_end(prefix)), self._inbox.put_nowait)
        follower = asyncio.create_task(self._follow())
        loss = asyncio.create_task(self._store.session.lost.wait())
        for task in (follower, loss):
            task.add_done_callback(lambda _: self._news.set())
        try:
            while not self._stopping:
                self._news.clear()
                self._start_due()
                self._tell_settled()
                await self._wait()
                if follower.done():
                    follower.result()
                if loss.done():
                    raise self._store.session.lost.reason or SessionLost("the session is over")
        finally:
            self._stopping = True
            self._tell_settled(over=True)
            watch.cancel()
            for task in (follower, loss):
                task.cancel()
            await asyncio.gather(follower, loss, return_exceptions=True)

    async def stop(self, *, drain: bool) -> None:
        """Start nothing more, and wait for the handlers that run; without ``drain`` they are cancelled, and no other
        step is: a claim that is under way is given back, and how an attempt ended is written in any case."""
        self._stopping = True
        self._hurry = self._hurry or not drain
        self._news.set()
        if not drain:
            for task in self._handling:
                task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait(self) -> None:
        """Until there is news, or the next entry is due and there is room for it."""
        due = self._schedule.next_due() if self._has_room() else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._news.wait()

    def _start_due(self) -> None:
        """Start what is due, as far as there is room. An entry whose worker died runs alone here: if it is to blame, it
        takes nobody else along, and if it is not, it shows."""
        while self._has_room():
            entry_id = self._suspect or self._schedule.due(time.monotonic())
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()
        if not task.cancelled() and task.exception():
            log.error("a dead letter could not be handled", exc_info=task.exception())

    # Following the queue

    async def _follow(self) -> None:
        begun = False
        while True:
            notice = await self._inbox.get()
            if isinstance(notice, Refused):
                raise notice.error
            if isinstance(notice, Started):
                if not begun or notice.gap:
                    await self._read()
                begun = self._read_all = True
            elif isinstance(notice, Changed):
                for event in notice.events:
                    self._changed(event)
            self._news.set()

    def _changed(self, event: Event) -> None:
        if event.kv.mod_revision <= self._revision:
            return  # older than what was read
        store, schedule, key, deleted = self._store, self._schedule, event.kv.key, event.deleted
        if key.startswith(store.claims):
            entry_id = store.id_of(key)
            if not deleted:
                schedule.claimed(entry_id)
                return
            schedule.unclaimed(entry_id)
            if attempt := self._attempts.get(entry_id):
                attempt.lose()
        elif key.startswith(store.entries):
            entry_id = key[len(store.entries) :].decode(errors="replace")
            if deleted:
                schedule.removed(entry_id)
                self._forget(entry_id)
            elif stored := store.decode(event.kv):
                schedule.changed(stored, time.monotonic())
                self._remember(stored, len(event.kv.value))
        else:
            return
        # A finished attempt deletes its claim and rewrites the record in one revision, in this order of keys.
        if schedule.is_orphan(entry_id):
            asyncio.get_running_loop().call_soon(self._adopt, entry_id)

    def _adopt(self, entry_id: str) -> None:
        """Somebody died over this entry: whoever is quicker puts it back."""
        if self._schedule.is_orphan(entry_id) and entry_id not in self._attempts and not self._stopping:
            self._spawn(self._put_back(entry_id))

    async def _read(self) -> None:
        """All there is; what was claimed is read first, so that nobody is taken for dead who has just begun."""
        store, self._schedule = self._store, Schedule()
        revision = 0
        async for page in store.pages(store.claims):
            revision = revision or page.revision
            for kv in page.kvs:
                self._schedule.claimed(store.id_of(kv.key))
        async for page in store.pages(store.entries, revision):
            for kv in page.kvs:
                if stored := store.decode(kv):
                    self._schedule.found(stored, time.monotonic(), record.now())
                    self._remember(stored, len(kv.value))
        for entry_id in self._schedule.orphans():
            self._adopt(entry_id)

    def _remember(self, stored: Stored, size: int) -> None:
        """Keep what waits, as far as there is room, so that it need not be read again before it is claimed."""
        self._forget(stored.entry.id)
        if stored.entry.state == "waiting" and self._room >= size:
            self._room -= size
            self._kept[stored.entry.id] = stored, size

    def _forget(self, entry_id: str) -> Stored | None:
        stored, size = self._kept.pop(entry_id, (None, 0))
        self._room += size
        return stored

    async def _put_back(self, entry_id: str) -> None:
        try:
            stored = await self._store.get(entry_id)
            if stored and stored.entry.state == "running" and self._schedule.is_orphan(entry_id):
                await self._store.change(stored, record.crashed(stored.entry, self._policy))
        except EtcdUnavailable:
            asyncio.get_running_loop().call_later(_PAUSE, self._adopt, entry_id)
        except SessionLost:
            return

    # Running handlers

    async def _attempt(self, entry_id: str, handler: Handler) -> None:
        try:
            kept = self._forget(entry_id)
            claim = await self._store.claim(kept) if kept else None
            if claim is None:
                stored = await self._store.get(entry_id)
                if stored is None or stored.entry.state != "waiting" or stored == kept:
                    return
                claim = await self._store.claim(stored)
        except EtcdUnavailable as error:
            log.warning("dead letter %s: could not be claimed yet: %s", entry_id, error)
            self._schedule.again(entry_id, time.monotonic() + _PAUSE)
            return
        except SessionLost:
            return  # so is the worker; whoever adopts the entry goes on
        if claim is None:
            return  # another worker was quicker
        attempt = self._attempts[entry_id] = Attempt(claim, self._store)
        try:
            entry = await self._handle(handler, claim, attempt)
            await self._finish(claim, entry)
        finally:
            self._attempts.pop(entry_id, None)

    async def _handle(self, handler: Handler, claim: Claim, attempt: Attempt) -> DeadLetter:
        """Run the handler; returns the entry as its outcome leaves it."""
        entry = claim.entry
        if self._hurry:
            return record.interrupted(entry)
        task = asyncio.current_task()
        assert task
        self._handling.add(task)
        try:
            await handler(entry, attempt)
        except Retry as error:
            left = entry.attempt_count < self._policy.max_attempts
            if not left:
                return record.parked(entry, "attempts are used up", "failed")
            delay = self._policy.delay(entry.attempt_count) if error.delay is None else error.delay
            return record.waiting(record.ended(entry, "failed", str(error)), delay)
        except Park as error:
            return record.parked(entry, self._redact(error.reason))
        except Discard as error:
            return record.resolved(entry, "discarded", self._redact(error.reason))
        except asyncio.CancelledError as error:
            if self._stopping:
                return record.interrupted(entry)
            return record.failed(entry, error, "CancelledError: raised by the handler", self._policy)
        except (Exception, SystemExit) as error:  # a handler that exits must not end its worker
            text = self._redact(f"{type(error).__qualname__}: {text_of(error)}")
            return record.failed(entry, error, text, self._policy)
        finally:
            self._handling.discard(task)
        return record.resolved(entry)

    async def _finish(self, claim: Claim, entry: DeadLetter) -> None:
        """Write the outcome, for as long as the claim lasts: only this worker can."""
        while True:
            try:
                if not await self._store.finish(claim, entry):
                    log.warning("dead letter %s: the claim was lost before its outcome could be written", entry.id)
                return
            except PayloadTooLarge:
                entry = record.shortened(entry)
            except SessionLost:
                return  # the claim went with the session; whoever adopts the entry counts a crash
            except EtcdError as error:
                log.warning("dead letter %s: its outcome could not be written yet: %s", entry.id, error)
                self._store.forget_lease()
                await asyncio.sleep(_PAUSE)
