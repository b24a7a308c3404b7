"""One entry's life in a queue: joined, granted, and gone; the thin shell that runs ``rules.py`` over a session.

    state       on                                   becomes
    NEW         its put is committed                 WAITING
    WAITING     the rule grants, the lease trusted   HELD
    WAITING     withdrawn (timeout, cancel)          OVER
    HELD        released                             OVER
    WAITING     own key deleted, session lost        LOST
    HELD        the same, or the lease untrusted     LOST

Every way out of WAITING and HELD that leaves the key in etcd removes it, in the background if need be, whatever becomes
of the task that asked for it. Only when trust ends while the lease may live does the key stay until the holder lets
go, so that nobody is granted while a cancelled block still cleans up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    EtcdUnavailable,
    FencedWriteRejected,
    LockLost,
    SessionLost,
)
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transport import (
    Compare,
    Delete,
    Get,
    GetResult,
    Op,
    Put,
    Target,
    TxnResult,
    WatchRequest,
)
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started, Subscription
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.models import ForcedRelease
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.queue.rules import Action, Ahead, Rule, Turn, View
from codomyrmex.concurrency.session import Loss, Session

log = logging.getLogger("codomyrmex.concurrency")

_LOOK_AGAIN = 10.0  # seconds; etcd may lose a delete at a compacted revision (etcd#18089)
_LOOK_SOON = 0.005  # seconds
_PAUSE = 0.1


class State(Enum):
    NEW = auto()
    WAITING = auto()
    HELD = auto()
    LOST = auto()
    OVER = auto()


class Place(NamedTuple):
    """Where an entry stands: the name it is for and the queue it joins."""

    name: str
    queue: bytes
    queue_end: bytes

    @classmethod
    def of(cls, session: Session, name: str) -> Place:
        queue = session.layout.queue(name)
        return cls(name, queue, prefix_end(queue))


class Entry:
    """A place in a queue, and the lock that comes with its head. Used by one acquisition, once."""

    __slots__ = (
        "_aged",
        "_checking",
        "_guard",
        "_inbox",
        "_lingers",
        "_loss",
        "_nonce",
        "_place",
        "_session",
        "_turn",
        "_value",
        "contended",
        "key",
        "on_lost",
        "state",
        "token",
    )

    def __init__(self, session: Session, place: Place, value: bytes, rule: Rule) -> None:
        self._session = session
        self._place = place
        self._value = value
        self._turn = Turn(rule)
        self._loss: Loss | None = None
        self._inbox: asyncio.Queue[Notice | ConcurrencyError] | None = None
        self._guard: Subscription | None = None
        self._aged = False
        self._checking: asyncio.Task[None] | None = None
        self._nonce = session.nonces.take(place.queue)
        self.key = session.layout.entry(place.queue, session.id, self._nonce)
        self.token = 0
        self.state = State.NEW
        self.contended = False
        self._lingers = False
        self.on_lost: Callable[[], None] | None = None

    @property
    def lost(self) -> Loss:
        if self._loss is None:
            self._loss = Loss()
        return self._loss

    def remaining(self) -> float:
        return self._session.deadline() if self.state is State.HELD else 0.0

    async def acquire(self, *, only_if_free: bool = False) -> Grant | None:
        """Join the queue and wait for the head; None if ``only_if_free`` and it was not. However this ends
        otherwise, by an error or a cancel, no key stays behind."""
        started = clock.now()
        action = await self._join(only_if_free)
        if action is None:
            return None
        try:
            if action is not Action.GRANT:
                if only_if_free:
                    if self._turn.seen(await self._look()) is not Action.GRANT:
                        self._leave()
                        return None
                else:
                    self.contended = True
                    await self._wait(action)
            if not self._session.alive:
                await self._session.trusted()
            self._raise_if_lost()
        except BaseException:
            self._leave()
            raise
        self.state = State.HELD
        waited = clock.now() - started
        return Grant(self._place.name, self.token, self.key.decode(), datetime.now(UTC), waited, self)

    async def release(self) -> None:
        """Give the lock back; what is gone needs nothing. The removal goes on even if this is cancelled."""
        if self.state is not State.HELD and not self._lingers:
            return
        self._lingers = False
        self._finish(State.OVER if self.state is State.HELD else self.state)
        try:
            await self._session.remover.removed(self.key, self._free_nonce)
        except SessionLost:
            return  # the lease took the key along

    async def fenced(self, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> TxnResult:
        """Run ``ops`` in a transaction that commits only if this entry still holds."""
        self._check_keys(ops)
        if self.state is not State.HELD:
            raise self._rejected() from (self._loss.reason if self._loss else None)
        holds = Compare(self.key, Target.CREATE_REVISION, self.token)
        request = Request(self.key, ops, compares=(holds, *compares), otherwise=(Get(self.key),), alone=True)
        try:
            reply = await self._session.committer.commit(request)
        except SessionLost as error:
            raise self._rejected() from error
        if not reply.succeeded:
            own = reply.results[0]
            assert isinstance(own, GetResult)
            if not any(kv.create_revision == self.token for kv in own.kvs):
                self._own_key_gone()
                raise self._rejected()
            return TxnResult(False, reply.revision, ())
        return TxnResult(True, reply.revision, reply.results)

    def _check_keys(self, ops: Sequence[Op]) -> None:
        layout = self._session.layout
        for op in ops:
            end = op.end if isinstance(op, Delete) else b""
            if not isinstance(op, Get) and layout.is_ours(op.key, end):
                raise ValueError(f"{op.key!r} is among the library's own keys; write outside {layout.root!r}")

    # What the session tells its members

    def untrusted(self, reason: ConcurrencyError) -> None:
        if self.state is State.HELD:
            self._lingers = True
            self._lose(reason)

    def session_closing(self, reason: ConcurrencyError) -> None:
        if self.state in (State.WAITING, State.HELD):
            self._remove()
            self._lose(reason)

    def session_lost(self, reason: ConcurrencyError) -> None:
        self._lingers = False
        self._lose(reason)

    # Joining

    async def _join(self, only_if_free: bool) -> Action | None:
        reply = await self._put(only_if_free)
        view = self._joined(reply)
        if view is None and only_if_free:
            if _entries(reply.results[0]):
                self._free_nonce()
                return None
            # Nothing but other people's keys in the way: queue up, and leave again if that does not grant.
            view = self._joined(await self._put(False))
        if view is None:
            self._remove()
            raise LockLost(f"the place of {self._place.name!r} in its queue was deleted by somebody")
        self.state = State.WAITING
        self._session.join(self)
        if self._session.lost.is_set():
            self._lose(self._session.lost.reason or SessionLost("the session is over"))
        return self._turn.seen(view)

    async def _put(self, only_if_free: bool) -> Reply:
        _, queue, end = self._place
        # The read comes first, so it shows the queue as it is ahead of the put.
        request = Request(
            queue,
            (
                Get(queue, end, limit=1, newest_first=True),
                Put(self.key, self._value, self._session.id),
            ),
            compares=(Compare(queue, Target.CREATE_REVISION, 0, end),) if only_if_free else (),
            otherwise=(Get(queue, end),),
            again=(Compare(self.key, Target.CREATE_REVISION, 0),),
            alone=only_if_free,
            undo=self._remove,
        )
        reply = request.reply
        try:
            return await self._session.committer.commit(request)
        except BaseException as error:
            if isinstance(error, EtcdError) and error.applied == "no":
                self._free_nonce()
            # Cancelled just as the answer arrived: the committer thinks it was taken.
            if reply.done() and not reply.cancelled() and not reply.exception() and reply.result().succeeded:
                self._remove()
            raise

    def _joined(self, reply: Reply) -> View | None:
        """The queue ahead, once the put is known to be applied; None if it was not."""
        found = reply.results[0]
        assert isinstance(found, GetResult)
        if reply.succeeded:
            self.token = reply.revision
            nearest = _entries(found)
            if found.total and not nearest:
                return View(0, (Ahead(found.kvs[0].key, 0),), 2)  # not an entry: the queue must be read
            return View(reply.revision, nearest, found.total)
        own = next((kv for kv in found.kvs if kv.key == self.key), None)
        if own is None:
            return None
        self.token = own.create_revision
        ahead = [entry for entry in _entries(found) if entry.create_revision < self.token]
        return View(reply.revision, ahead, len(ahead))

    # Waiting

    async def _wait(self, action: Action) -> None:
        inbox = self._inbox = asyncio.Queue()
        watch: Subscription | None = None
        fresh = False
        try:
            while action is not Action.GRANT:
                self._raise_if_lost()
                if action is Action.LOOK:
                    action = self._turn.seen(await self._look())
                    continue
                if action is Action.WATCH:
                    if watch:
                        watch.cancel()
                    watch = self._session.hub.follow(self._place.queue, self._turn.key, inbox.put_nowait)
                    # While a watch is being set up, have a look: the lock may have become free already.
                    action = self._turn.watching(watch.revision) if watch.in_step else Action.LOOK
                    continue
                began = self._turn.watched
                action = await self._next(inbox, _LOOK_SOON if fresh else _LOOK_AGAIN)
                fresh = self._turn.watched and not began
        finally:
            self._inbox = None
            if watch:
                self._session.hub.linger(self._place.queue, watch)

    async def _next(self, inbox: asyncio.Queue[Notice | ConcurrencyError], patience: float) -> Action:
        """What the next news means; after ``patience`` seconds without any, what is known is read again.

        The first wait after a watch began is a short one. etcd takes "from now" as the revision after the one it read
        just before, and a write that slips in between leaves the watch behind: its events come up to 100 ms late.
        """
        try:
            async with asyncio.timeout(patience):
                notice = await inbox.get()
        except TimeoutError:
            return self._turn.missed()
        if isinstance(notice, Changed):
            return self._turn.deleted(notice.events[-1].kv.mod_revision)
        if isinstance(notice, Started):
            action = self._turn.watching(notice.revision)
            return self._turn.missed() if notice.resumed or notice.gap else action
        raise notice.error if isinstance(notice, Refused) else notice

    async def _look(self) -> View:
        """The queue ahead as it is at ``Turn.needed`` or later; waits out an etcd that is away."""
        _, queue, end = self._place
        nearest = Get(queue, end, limit=2, newest_first=True, before=self.token, serializable=True)
        while True:
            try:
                found = await self._session.transport.get(nearest)
                if found.revision < self._turn.needed:
                    found = await self._session.transport.get(nearest._replace(serializable=False))
                entries = _entries(found)
                if len(entries) < len(found.kvs):
                    found = await self._session.transport.get(nearest._replace(limit=0, serializable=False))
                    entries = _entries(found)
            except EtcdUnavailable:
                self._raise_if_lost()
                await asyncio.sleep(_PAUSE)
                continue
            entries.reverse()
            return View(found.revision, entries, len(entries))

    # Its own key

    def looked_after(self) -> None:
        """The second patrol finds it alive for long enough that a watch on its own key pays."""
        if self._aged and self._guard is None:
            request = WatchRequest(self.key, deletes_only=True)
            self._guard = self._session.hub.subscribe(request, self._own_notice)
        self._aged = True

    def _own_notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            self._own_key_gone()
        elif isinstance(notice, Started) and (notice.revision > self.token or notice.resumed or notice.gap):
            if self._checking:
                self._checking.cancel()
            self._checking = asyncio.create_task(self._check_own_key())

    async def _check_own_key(self) -> None:
        """Was the key still there when the watch on it began?"""
        while True:
            try:
                found = await self._session.transport.get(Get(self.key))
                break
            except EtcdUnavailable:
                await asyncio.sleep(_PAUSE)
        if not any(kv.create_revision == self.token for kv in found.kvs):
            self._own_key_gone()

    def _own_key_gone(self) -> None:
        if self.state in (State.WAITING, State.HELD):
            self._remove()  # there is nothing to remove, but only this frees the nonce for certain
            what = "the lock" if self.state is State.HELD else "the place in the queue of"
            self._lose(LockLost(f"{what} {self._place.name!r} (token {self.token}) was deleted in etcd"))

    async def explain(self) -> str:
        """Why the lock was lost, with the operator's reason if it was released by force."""
        reason = str(self.lost.reason)
        try:
            found = await self._session.transport.get(Get(self._session.layout.audit(self._place.name)))
        except ConcurrencyError:
            return reason
        record = ForcedRelease.decode(found.kvs[0].value) if found.kvs else None
        if record and record.token == self.token:
            return f"{reason}: released by force by {record.by}: {record.reason}"
        return reason

    # Ends

    def _lose(self, reason: ConcurrencyError) -> None:
        if self.state not in (State.WAITING, State.HELD):
            return
        self._finish(State.LOST)
        self.lost.tell(reason)
        if self._inbox:
            self._inbox.put_nowait(reason)
        if self.on_lost:
            self.on_lost()

    def _leave(self) -> None:
        """Withdraw from the queue."""
        if self.state is State.WAITING:
            self._finish(State.OVER)
            self._remove()

    def _remove(self) -> asyncio.Future[bool]:
        return self._session.remover.remove(self.key, self._free_nonce)

    def _free_nonce(self) -> None:
        self._session.nonces.give_back(self._place.queue, self._nonce)

    def _finish(self, state: State) -> None:
        self.state = state
        self._session.leave(self)
        if self._guard:
            self._guard.cancel()
        if self._checking and self._checking is not asyncio.current_task():
            self._checking.cancel()

    def _raise_if_lost(self) -> None:
        if self.state is State.LOST:
            raise self.lost.reason or LockLost(f"{self._place.name!r} was lost")

    def _rejected(self) -> FencedWriteRejected:
        return FencedWriteRejected(
            f"{self._place.name!r} is no longer held with token {self.token}; nothing was written"
        )


_warned: set[bytes] = set()


def _entries(found: object) -> list[Ahead]:
    """The entries among what was read. A key without a lease is nobody's place in a queue: it is skipped, with one
    warning, since it would never go away."""
    assert isinstance(found, GetResult)
    entries = []
    for kv in found.kvs:
        if kv.lease:
            entries.append(Ahead(kv.key, kv.create_revision))
        else:
            warn_foreign(kv.key)
    return entries


def warn_foreign(key: bytes) -> None:
    """Say once per key that it is skipped."""
    if key not in _warned and len(_warned) < 1000:
        _warned.add(key)
        log.warning("skipping %r: it lies among lock entries but is not one (no lease, or no lock's name)", key)
