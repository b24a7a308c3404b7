"""The worker: runs handlers for due entries, on any number of hosts, each entry with one worker at a time.

It follows the queue by one watch and reads nothing while nothing is due, but for a look at the claims four times
a minute. The transaction in ``store.py`` that writes the claim decides who runs an entry, ``handling.py`` runs its
handler, ``record.py`` decides what an outcome means, and ``schedule.py`` when an entry is due.

A claim is a hold. Each way out of an attempt gives it back: the handler's end, the worker's stop, an error that nobody
expected, and an etcd that answers too late, where ``store.py`` undoes a claim that its worker gave up waiting for.
Whatever fails for want of etcd, or of space in it, is tried again, at pauses that grow to some seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.handlers import Attempt, Handler, outcome
from codomyrmex.concurrency.dead_letters.presence import Presence
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.schedule import Schedule
from codomyrmex.concurrency.dead_letters.store import Claim, Store, Stored
from codomyrmex.concurrency.errors import EtcdError, PayloadTooLarge, SessionLost
from codomyrmex.concurrency.etcd.transports.protocol import Event, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between tries of what etcd refuses, or does not answer
_LOOK_ROUND = 15.0  # seconds between two looks at the claims
_GRACE = 5.0  # seconds in which a handler that is cancelled must come to an end
_KEPT = 16 << 20  # bytes of records


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
        self._redact = redact
        self._presence = Presence(store, handlers)
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
        self._failure: BaseException | None = None
        self._pause = _PAUSE
        self._resting_until = 0.0  # on the monotonic clock: etcd refuses claims, or does not answer

    def handled_now(self, operation: str) -> None:
        """A handler for ``operation`` was registered while the worker runs."""
        self._schedule.handled_now(operation)
        self._presence.changed()
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
        """Follow the queue and run what is due until ``stop``. Raises ``SessionLost`` when the session is gone, and
        whatever unexpected ends an attempt or a part of the worker."""
        hub, prefix = self._store.session.hub, self._store.prefix
        watch = hub.subscribe(WatchRequest(prefix, prefix_end(prefix)), self._inbox.put_nowait)
        running = (self._follow(), self._look_round(), self._notice_loss(), self._presence.keep())
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
            self._stopping = True
            self._tell_settled(over=True)
            watch.cancel()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def stop(self, limit: float | None) -> None:
        """Start nothing more, and wait for what runs, at most ``limit`` seconds; None waits for as long as it takes.

        Then the handlers are cancelled, and no other step is: a claim that is under way is given back, and how an
        attempt ended is written in any case. A handler that does not end of that either is left to run, with its
        claim, for as long as the session lasts. A cancel of this call is such a limit too.
        """
        self._stopping = True
        self._news.set()
        try:
            if await self._all_ended(limit):
                return
        except asyncio.CancelledError:
            await self._cancel_handlers()
            raise
        await self._cancel_handlers()

    async def _cancel_handlers(self) -> None:
        self._hurry = True
        for task in self._handling:
            task.cancel()
        if not await self._all_ended(_GRACE):
            log.error(
                "%d dead letters of %r stay claimed until their handlers end, or the session: these ignore that they "
                "were cancelled, or etcd does not answer",
                len(self._tasks),
                self._store.queue,
            )

    async def _all_ended(self, limit: float | None) -> bool:
        """Wait until nothing runs any more, at most ``limit`` seconds; whether it is so."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit)
        return not self._tasks

    async def _notice_loss(self) -> None:
        session = self._store.session
        await session.lost.wait()
        raise session.lost.reason or SessionLost("the session is over")

    async def _wait(self) -> None:
        """Until there is news, or the next entry is due and there is room for it."""
        due = self._schedule.next_due() if self._has_room() else None
        if due is not None:
            due = max(due, self._resting_until)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._news.wait()

    def _start_due(self) -> None:
        """Start what is due, as far as there is room. An entry whose worker died runs alone here: if it is to blame, it
        takes nobody else along, and if it is not, it shows."""
        while self._has_room() and time.monotonic() >= self._resting_until:
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
        self._store.session.keep(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._news.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("an attempt at a dead letter failed in a way that nobody expected", exc_info=error)
            self._failure = self._failure or error

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
                if event.kv.lease:
                    schedule.claimed(entry_id)
                return
            schedule.unclaimed(entry_id)
            if attempt := self._attempts.get(entry_id):
                attempt.lose()
        elif key.startswith(store.entries):
            entry_id = store.id_of(key)
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
        self._kept, self._room = {}, _KEPT
        revision = 0
        async for page in store.pages(store.claims):
            revision = revision or page.revision
            for kv in page.kvs:
                if kv.lease:
                    self._schedule.claimed(store.id_of(kv.key))
        async for page in store.pages(store.entries, revision):
            for kv in page.kvs:
                if stored := store.decode(kv):
                    self._schedule.found(stored, time.monotonic(), record.now())
                    self._remember(stored, len(kv.value))
        self._revision = revision
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
                # Whatever became of that is told by an event; if none comes, it is tried again.
                asyncio.get_running_loop().call_later(_LONGEST_PAUSE, self._adopt, entry_id)
        except SessionLost:
            return
        except PayloadTooLarge as error:
            log.error("dead letter %s: nobody runs it, and it cannot be put back: %s", entry_id, error)
        except EtcdError as error:
            self._rest(f"dead letter {entry_id} could not be put back", error)
            asyncio.get_running_loop().call_later(self._pause, self._adopt, entry_id)

    async def _look_round(self) -> None:
        """Look at the claims from time to time. One of this session that nobody here runs is given back; one that is
        gone, although no event said so (etcd may lose one), counts as gone."""
        while True:
            await asyncio.sleep(_LOOK_ROUND)
            known = self._schedule.claims()
            try:
                found = {self._store.id_of(kv.key): kv async for kv in self._store.all_claims()}
            except EtcdError as error:
                log.debug("the claims could not be looked at: %s", error)
                continue
            for entry_id, kv in found.items():
                if self._store.is_stray(kv) and not self._stopping:
                    self._spawn(self._store.give_back(entry_id, kv.value))
            for entry_id in known - found.keys():
                self._schedule.unclaimed(entry_id)
                if self._schedule.is_orphan(entry_id):
                    self._adopt(entry_id)
            self._news.set()

    def _rest(self, problem: str, error: EtcdError) -> None:
        """etcd takes nothing at the moment: claim nothing more until a pause is over."""
        if self._pause == _PAUSE:
            log.warning("%s; the worker goes on trying: %s", problem, error)
        self._resting_until = time.monotonic() + self._pause
        self._pause = min(_LONGEST_PAUSE, self._pause * 2)
        self._news.set()

    # Running handlers

    async def _attempt(self, entry_id: str, handler: Handler) -> None:
        claim = await self._claim(entry_id)
        if claim is None:
            return
        attempt = self._attempts[entry_id] = Attempt(claim, self._store)
        entry = record.interrupted(claim.entry)
        try:
            if not self._hurry and self._store.session.alive:  # the answer to the claim may have come late
                entry = await self._handle(handler, claim, attempt)
        finally:
            try:
                await self._finish(claim, entry)
            finally:
                self._attempts.pop(entry_id, None)
                self._store.let_go(claim)

    async def _claim(self, entry_id: str) -> Claim | None:
        """The claim on a due entry; None if another worker was quicker, or etcd takes none at the moment."""
        try:
            kept = self._forget(entry_id)
            claim = await self._store.claim(kept) if kept else None
            if claim is None:
                stored = await self._store.get(entry_id)
                if stored is None or stored.entry.state != "waiting":
                    return None
                claim = await self._store.claim(stored) if stored != kept else None
        except SessionLost:
            return None  # so is the worker; whoever adopts the entry goes on
        except PayloadTooLarge as error:
            log.error("dead letter %s cannot be retried: %s", entry_id, error)
            return None
        except EtcdError as error:
            self._rest(f"dead letter {entry_id} could not be claimed", error)
            self._schedule.again(entry_id, self._resting_until)
            return None
        self._pause = _PAUSE
        if claim is None:  # if no event tells of whoever was quicker, there is nobody
            self._schedule.again(entry_id, time.monotonic() + _LONGEST_PAUSE)
        return claim

    async def _handle(self, handler: Handler, claim: Claim, attempt: Attempt) -> DeadLetter:
        """Run the handler in a task of its own, so that no cancel that it leaves behind strikes at what comes after."""
        entry = claim.entry
        task = asyncio.create_task(outcome(handler, entry, attempt, self._policy, self._redact))
        self._handling.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._handling.discard(task)
            task.cancel()
        if not task.cancelled():
            return task.result()
        if self._stopping:
            return record.interrupted(entry)
        error = asyncio.CancelledError()
        return record.failed(entry, error, "CancelledError: raised by the handler", self._policy)

    async def _finish(self, claim: Claim, entry: DeadLetter) -> None:
        """Write the outcome, for as long as the claim lasts: only this worker can."""
        pause = _PAUSE
        while True:
            try:
                if not await self._store.finish(claim, entry):
                    log.warning("dead letter %s: the claim was lost before its outcome could be written", entry.id)
                return
            except SessionLost:
                return  # the claim went with the session; whoever adopts the entry counts a crash
            except EtcdError as error:
                if pause in (_PAUSE, _LONGEST_PAUSE):
                    log.warning("dead letter %s: its outcome could not be written yet: %s", entry.id, error)
                self._store.forget_lease()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
