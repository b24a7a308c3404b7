"""One entry's life in a queue: joined, granted, and gone; the thin shell that runs ``rules.py`` over a session.

    state       on                                   becomes
    NEW         its put is committed                 WAITING
    WAITING     the rule grants, the lease trusted   HELD
    WAITING     withdrawn (timeout, cancel)          OVER
    HELD        released                             OVER
    HELD        held for longer than its terms say   LOST
    WAITING     own key deleted, session lost        LOST
    HELD        the same, or the lease untrusted     LOST

Every way out of WAITING and HELD that leaves the key in etcd removes it, in the background if need be, whatever becomes
of the task that asked for it. Only when trust ends while the lease may live does the key stay until the holder lets
go, so that nobody is granted while a cancelled block still cleans up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from codomyrmex.concurrency import clock, keys, telemetry
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdUnavailable,
    FencedWriteRejected,
    LimitMismatch,
    LockLost,
    SessionLost,
)
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transport import (
    Compare,
    Delete,
    Get,
    GetResult,
    Op,
    OpResult,
    Put,
    Target,
    TxnResult,
    WatchRequest,
)
from codomyrmex.concurrency.etcd.watch import Changed, Follow, Notice, Refused, Started, Subscription
from codomyrmex.concurrency.models import ForcedRelease
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.queue.rules import Action, Ahead, Rule, Turn, View
from codomyrmex.concurrency.queue.terms import Terms
from codomyrmex.concurrency.session import Loss, Session, SessionClosed

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
    """The queue that an entry joins: what it is to people, its name, its keys."""

    what: str
    name: str
    queue: bytes
    queue_end: bytes

    @classmethod
    def of(cls, kind: keys.Kind, queue: bytes, name: str) -> Place:
        return cls(kind.what, name, queue, keys.prefix_end(queue))


class Entry:
    """A place in a queue, and what it is granted there. Used by one acquisition, once."""

    __slots__ = (
        "_aged",
        "_alarm",
        "_behind",
        "_checking",
        "_failure",
        "_guard",
        "_hurry",
        "_lingers",
        "_loss",
        "_lost_with",
        "_news",
        "_nonce",
        "_rule",
        "_since",
        "_turn",
        "_until",
        "_waiter",
        "contended",
        "fellows",
        "granted",
        "key",
        "on_lost",
        "place",
        "session",
        "state",
        "terms",
        "token",
        "value",
    )

    def __init__(self, session: Session, place: Place, value: bytes, rule: Rule, terms: Terms) -> None:
        self.session = session
        self.place = place
        self.value = value
        self.terms = terms
        self._since = 0.0  # when it joined; once it holds, when it was granted
        self._until = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._rule = rule
        self._turn = Turn(rule)
        self._loss: Loss | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._news: Action | None = None
        self._failure: ConcurrencyError | None = None
        self._hurry = False
        self._guard: Subscription | None = None
        self._aged = False
        self._checking: asyncio.Task[None] | None = None
        self._behind: set[Entry] | None = None  # those of this session who wait for its end
        self._nonce = session.nonces.take(place.queue)
        self.key = session.layout.entry(place.queue, session.id, self._nonce, rule.claim)
        self.token = 0
        self.state = State.NEW
        self.granted = False
        self.contended = False
        self.fellows: Sequence[Entry] = ()  # held with it, all or none
        self._lost_with: Entry | None = None
        self._lingers = False
        self.on_lost: Callable[[], None] | None = None

    @property
    def lost(self) -> Loss:
        if self._loss is None:
            self._loss = Loss()
        return self._loss

    def remaining(self) -> float:
        if self.state is not State.HELD:
            return 0.0
        left = self.session.deadline()
        return left if self._until == math.inf else max(0.0, min(left, self._until - clock.now()))

    def grant(self, waited: float) -> Grant:
        """It is granted: hold it."""
        self.state = State.HELD
        self.granted = True
        self._since = clock.now()
        if telemetry.observers:
            telemetry.tell("granted", self.place.what, self.place.name, waited, self.contended)
        if self.terms.max_hold is not None:
            self._limit_hold(self.terms.max_hold)
        return Grant(self.place.name, self.token, self.key.decode(), datetime.now(UTC), waited, self)

    def _limit_hold(self, seconds: float) -> None:
        """Trust in the grant ends after ``seconds``. As with a session's, a third of the TTL is left then for the
        holder to come to an end and release; after that the key is deleted, even if the event loop is blocked."""
        self._until = self._since + seconds
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._overstayed)
        self.session.overstays().limit(self.key, self.token, self._until + self.session.ttl / 3)

    def _overstayed(self) -> None:
        if self.state is State.HELD:
            self._lingers = True
            held = f"{self.place.what} {self.place.name!r} (token {self.token})"
            self._lose(LockLost(f"the {held} was held for longer than its max_hold of {self.terms.max_hold:g} s"))

    async def release(self) -> None:
        """Give the lock back; what is gone needs nothing. The removal goes on even if this is cancelled."""
        if not self._let_go():
            return
        with suppress(SessionLost):  # then the lease took the key along
            if self.fellows:
                await self.remove()
            else:
                await self.session.remover.removed(self.key, self._gone)

    def begin_release(self) -> asyncio.Future[bool] | None:
        """The same for one of several that are released together: it has begun when this returns."""
        return self.remove() if self._let_go() else None

    def _let_go(self) -> bool:
        """Whether there is anything to give back."""
        if self.state is not State.HELD and not self._lingers:
            return False
        self._lingers = False
        if telemetry.observers and self.state is State.HELD:
            telemetry.tell("released", self.place.what, self.place.name, clock.now() - self._since)
        self._finish(State.OVER if self.state is State.HELD else self.state)
        return True

    async def fenced(self, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> TxnResult:
        """Run ``ops`` in a transaction that commits only if this entry still holds."""
        self._check_keys(ops)
        if self.state is not State.HELD:
            raise self._rejected() from (self._loss.reason if self._loss else None)
        holds = Compare(self.key, Target.CREATE_REVISION, self.token)
        request = Request((self.key,), ops, compares=(holds, *compares), otherwise=(Get(self.key),), alone=True)
        try:
            reply = await self.session.committer.commit(request)
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
        layout = self.session.layout
        for op in ops:
            end = op.end if isinstance(op, Delete) else b""
            if not isinstance(op, Get) and layout.is_ours(op.key, end):
                raise ValueError(f"{op.key!r} is among the library's own keys; write outside {layout.root!r}")

    # What the session tells its members, and asks them

    def waits(self) -> tuple[str, float] | None:
        return (self.place.what, self._since) if self.state is State.WAITING else None

    def untrusted(self, reason: ConcurrencyError) -> None:
        if self.state is State.HELD:
            self._lingers = True
            self._lose(reason)

    def session_closing(self, reason: ConcurrencyError) -> None:
        if self.state in (State.WAITING, State.HELD):
            self.remove()
            self._lose(reason)

    def session_lost(self, reason: ConcurrencyError) -> None:
        self._lingers = False
        self._lose(reason)

    # Joining; ``joining.py`` sends it, maybe together with others

    def ask(self) -> tuple[Op, Op]:
        """Read the queue, then join it. The read comes first, so it shows the queue as it is ahead."""
        _, _, queue, end = self.place
        ahead = Get(queue, end) if self._rule.needs_all else Get(queue, end, limit=1, newest_first=True)
        return ahead, Put(self.key, self.value, self.session.id)

    def joined(self, revision: int, found: OpResult) -> Action:
        """The put was applied at ``revision``, behind what was found."""
        assert isinstance(found, GetResult)
        self.token = revision
        if self._rule.needs_all:
            return self._enter(self._whole(revision, found))
        nearest = _entries(found)
        if found.total and not nearest:
            return self._enter(View(0, (Ahead(found.kvs[0].key, 0),), 2))  # not an entry: the queue must be read
        return self._enter(View(revision, nearest, found.total))

    def found_joined(self, revision: int, found: OpResult) -> Action | None:
        """The put may have been applied before, and the whole queue was read; None if it was not."""
        assert isinstance(found, GetResult)
        own = next((kv for kv in found.kvs if kv.key == self.key), None)
        if own is None:
            return None
        self.token = own.create_revision
        return self._enter(self._whole(revision, found))

    async def grantable(self) -> bool:
        """Whether it would be granted if it joined now; for a try."""
        _, _, queue, end = self.place
        found = await self.session.transport.get(Get(queue, end))
        return Turn(self._rule).seen(self._whole(found.revision, found)) is Action.GRANT

    async def granted_now(self) -> bool:
        """Whether it is granted already, having joined."""
        return self._turn.seen(await self.look()) is Action.GRANT

    def _enter(self, view: View) -> Action:
        self.state = State.WAITING
        self._since = clock.now()
        self.session.join(self)
        self.session.places[self.key] = self
        if self.session.lost.is_set():
            self._lose(self.session.lost.reason or SessionLost("the session is over"))
        return self._turn.seen(view)

    def _whole(self, revision: int, found: GetResult) -> View:
        ahead = sorted(_entries(found), key=lambda entry: (entry.create_revision, entry.key))
        if self.token:
            ahead = [entry for entry in ahead if entry.create_revision < self.token]
        limits = [limit for kv in found.kvs if not kv.lease and (limit := keys.limit_of(kv.key)) is not None]
        return View(revision, ahead, len(ahead), limits[0] if limits else None)

    # Waiting

    async def wait(self, action: Action) -> None:
        """Until it is granted; raises when it is lost, or never will be."""
        queue, end = self.place.queue, self.place.queue_end
        follow: Follow | None = None
        watched: bytes | None = None
        ahead: Entry | None = None
        try:
            while action is not Action.GRANT:
                self.raise_if_lost()
                if action is Action.FAIL:
                    raise LimitMismatch(f"{self.place.what} {self.place.name!r}: {self._turn.reason}")
                if watched != self._turn.key:  # that is what WATCH means, whatever else has happened since
                    if follow:
                        follow.end(queue)
                        follow = None
                    if ahead:
                        ahead.behind.discard(self)
                    watched = key = self._turn.key
                    if ahead := self._own_ahead():
                        ahead.behind.add(self)
                        action = Action.WAIT
                    else:
                        follow = self.session.hub.follow(key or queue, b"" if key else end, self._notice)
                        # While a watch is being set up, have a look: the way may have become free already.
                        action = self._turn.watching(follow.revision) if follow.in_step else Action.LOOK
                elif action is Action.LOOK:
                    action = self._turn.seen(await self.look())
                else:
                    action = await self._wait_for_news()
                    if ahead and self not in ahead.behind:
                        ahead = watched = None
                if self._failure:
                    raise self._failure
                news, self._news = self._news, None
                if news and (news is Action.GRANT or action is Action.WAIT):
                    action = news
        finally:
            if follow:
                follow.end(queue)
            if ahead:
                ahead.behind.discard(self)

    @property
    def behind(self) -> set[Entry]:
        """The entries of this session that wait for the end of this one, and need no watch for it."""
        if self._behind is None:
            self._behind = set()
        return self._behind

    def _own_ahead(self) -> Entry | None:
        """The entry to wait for, if it is one of this session's: it will tell, and etcd need not."""
        ahead = self._turn.ahead
        entry = self.session.places.get(ahead.key) if ahead else None
        if ahead and isinstance(entry, Entry) and entry.token == ahead.create_revision:
            return None if entry.state is State.LOST else entry
        return None

    def _ahead_left(self, gone: bool, granted: bool) -> None:
        """The entry of this session that it waited for is gone from the queue, or can tell no more.

        One that was granted alone had nobody ahead, and nobody can have come between.
        """
        if gone and granted:
            self._news = Action.GRANT
        else:
            self._news = self._turn.forget()
        self._wake()

    async def _wait_for_news(self) -> Action:
        """After some seconds without any, what is known is read again.

        The first wait after a watch began is a short one. etcd takes "from now" as the revision after the one it read
        just before, and a write that slips in between leaves the watch behind: its events come up to 100 ms late.
        """
        patience, self._hurry = (_LOOK_SOON if self._hurry else _LOOK_AGAIN), False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await self._waiter
        except TimeoutError:
            return self._turn.missed()
        finally:
            self._waiter = None
        return Action.WAIT

    def _notice(self, notice: Notice) -> None:
        """What happened to the key, or queue, that is watched; what means nothing to this entry wakes nobody."""
        action = Action.WAIT
        if isinstance(notice, Changed):
            for event in notice.events:
                step = self._turn.deleted(event.kv.key, event.kv.mod_revision)
                action = action if step is Action.WAIT else step
                if step is Action.GRANT:
                    break
            if action is Action.WAIT:
                return
        elif isinstance(notice, Started):
            action = self._turn.watching(notice.revision)
            if notice.resumed or notice.gap:
                action = self._turn.missed()
            self._hurry = True
        else:
            assert isinstance(notice, Refused)
            self._failure = notice.error
        if self._news is not Action.GRANT:
            self._news = action
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def look(self) -> View:
        """The queue ahead as it is at ``Turn.needed`` or later; waits out an etcd that is away."""
        _, _, queue, end = self.place
        whole = Get(queue, end, serializable=True)
        nearest = whole._replace(limit=2, newest_first=True, before=self.token)
        while True:
            try:
                found = await self._read(whole if self._rule.needs_all else nearest)
                if not self._rule.needs_all and len(_entries(found)) < len(found.kvs):
                    found = await self._read(nearest._replace(limit=0))
            except EtcdUnavailable:
                self.raise_if_lost()
                await asyncio.sleep(_PAUSE)
                continue
            view = self._whole(found.revision, found)
            # The nearest two tell whether there is one ahead or more; how many more, nobody needs to know.
            return view if self._rule.needs_all or view.total < 2 else View(view.revision, view.entries[-1:], 2)

    async def _read(self, get: Get) -> GetResult:
        found = await self.session.transport.get(get)
        if found.revision < self._turn.needed:
            found = await self.session.transport.get(get._replace(serializable=False))
        return found

    # Its own key

    def looked_after(self) -> None:
        """The second patrol finds it alive for long enough that a watch on its own key pays."""
        if self._aged and self._guard is None:
            request = WatchRequest(self.key, deletes_only=True)
            self._guard = self.session.hub.subscribe(request, self._own_notice)
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
                found = await self.session.transport.get(Get(self.key))
                break
            except EtcdUnavailable:
                await asyncio.sleep(_PAUSE)
        if not any(kv.create_revision == self.token for kv in found.kvs):
            self._own_key_gone()

    def _own_key_gone(self) -> None:
        if self.state in (State.WAITING, State.HELD):
            self.remove()  # there is nothing to remove, but only this frees the nonce for certain
            what = self.place.what if self.state is State.HELD else "place in the queue of"
            self._lose(LockLost(f"the {what} {self.place.name!r} (token {self.token}) was deleted in etcd"))

    async def explain(self) -> str:
        """Why the lock was lost, with the operator's reason if it was released by force."""
        if self._lost_with:
            return await self._lost_with.explain()
        reason = str(self.lost.reason)
        try:
            found = await self.session.transport.get(Get(self.session.layout.audit(self.place.name)))
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
        if self.state is State.HELD and not isinstance(reason, SessionClosed):
            what, name, _, _ = self.place
            log.info("the %s %r (token %d) is lost: %s", what, name, self.token, reason, extra=self._facts())
            if telemetry.observers:
                telemetry.tell("lost", what, name, clock.now() - self._since)
        self._finish(State.LOST)
        self._tell_behind(gone=False)
        self.lost.tell(reason)
        self._wake()
        if self.on_lost:
            self.on_lost()
        for fellow in self.fellows:
            fellow.lose_with(self, reason)

    def lose_with(self, fellow: Entry, reason: ConcurrencyError) -> None:
        """An entry that is held together with this one was lost."""
        if self.state is State.WAITING:
            self.remove()
        elif self.state is State.HELD:
            self._lingers = True
        else:
            return
        self._lost_with = fellow
        self._lose(reason)

    def leave(self) -> None:
        """Withdraw from the queue."""
        if self.state is State.WAITING:
            self._finish(State.OVER)
            self.remove()

    def remove(self) -> asyncio.Future[bool]:
        return self.session.remover.remove(self.key, self._gone)

    def _gone(self, reusable: bool) -> None:
        """Its key is no longer in etcd."""
        if reusable:
            self.free_nonce()
        if self.session.places.get(self.key) is self:
            del self.session.places[self.key]
        self._tell_behind(gone=True)

    def _tell_behind(self, *, gone: bool) -> None:
        behind, self._behind = self._behind, None
        alone = self.granted and not keys.is_reader(self.key)
        for entry in behind or ():
            entry._ahead_left(gone, alone)

    def free_nonce(self) -> None:
        self.session.nonces.give_back(self.place.queue, self._nonce)

    def _finish(self, state: State) -> None:
        self.state = state
        self.session.leave(self)
        if self._guard:
            self._guard.cancel()
        if self._alarm:
            self._alarm.cancel()
            if not self._lingers:
                self.session.overstays().lift(self.key)
        if self._checking and self._checking is not asyncio.current_task():
            self._checking.cancel()

    def raise_if_lost(self) -> None:
        if self.state is State.LOST:
            raise self.lost.reason or LockLost(f"{self.place.name!r} was lost")

    def _facts(self) -> dict[str, object]:
        """For structured logs."""
        return {
            "codomyrmex_kind": self.place.what,
            "codomyrmex_name": self.place.name,
            "codomyrmex_token": self.token,
            "codomyrmex_session": f"{self.session.id:016x}",
        }

    def _rejected(self) -> FencedWriteRejected:
        if telemetry.observers:
            telemetry.tell("write_rejected", self.place.what, self.place.name)
        return FencedWriteRejected(
            f"{self.place.name!r} is no longer held with token {self.token}; nothing was written"
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
        elif keys.limit_of(kv.key) is None:
            warn_foreign(kv.key)
    return entries


def warn_foreign(key: bytes) -> None:
    """Say once per key that it is skipped."""
    if key not in _warned and len(_warned) < 1000:
        _warned.add(key)
        log.warning("skipping %r: it lies among lock entries but is not one (no lease, or no lock's name)", key)
