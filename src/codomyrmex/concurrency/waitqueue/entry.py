"""One entry's life in a queue: joined, granted, and gone. ``rules.py`` says when, ``waiting.py`` waits for it.

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
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from typing import NamedTuple

from codomyrmex.concurrency import callsite, clock, keys, telemetry
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    FencedWriteRejected,
    LockLost,
    SessionLost,
)
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import (
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
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started, Subscription
from codomyrmex.concurrency.loss import Loss, SessionClosed
from codomyrmex.concurrency.models import ForcedRelease
from codomyrmex.concurrency.session import Session
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.handoff import marker_value
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from codomyrmex.concurrency.waitqueue.record_wait import LASTING, tell_wait
from codomyrmex.concurrency.waitqueue.rules import Action, Ahead, Rule, Turn, View
from codomyrmex.concurrency.waitqueue.view import entries_in, whole
from codomyrmex.concurrency.waitqueue.wait import Waiting, look

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds


class State(Enum):
    NEW = auto()
    WAITING = auto()
    HELD = auto()
    LOST = auto()
    OVER = auto()


class _Deleted(LockLost):
    """Its key was deleted by somebody, who may have said why."""


class By(NamedTuple):
    """A requester: a task, or a thread of the blocking twin, held weakly; and the line of code that asked."""

    who: weakref.ref[object] | None
    line: callsite.Line | None

    @classmethod
    def of(cls, who: object, line: callsite.Line | None) -> By:
        return cls(weakref.ref(who) if who else None, line)


class QueueRef(NamedTuple):
    """The queue that an entry joins: what it is to people, its name, its keys."""

    what: str
    name: str
    queue: bytes
    queue_end: bytes

    @classmethod
    def of(cls, kind: keys.Kind, queue: bytes, name: str) -> QueueRef:
        return cls(kind.what, name, queue, keys.prefix_end(queue))


def warn_of_itself(session: Session, queue_ref: QueueRef, by: By) -> None:
    """Warn if what is about to be waited for is held by the task, or thread, that waits."""
    held = session.member(LocalQueues).by_holder.get((queue_ref.queue, by.who)) if by.who else None
    if isinstance(held, Entry) and queue_ref.what == keys.LOCK.what:
        since = f", since {held.by.line}" if held.by.line else ""
        callsite.warn(
            by.line,
            f"the lock {queue_ref.name!r} is waited for by the very task or thread that holds it{since}: locks are not "
            "reentrant, so it waits for itself until another one releases it",
            RuntimeWarning,
        )


class Entry:
    """A place in a queue, and what it is granted there. Used by one acquisition, once."""

    __slots__ = (
        "_aged",
        "_alarm",
        "_behind",
        "_checking",
        "_guard",
        "_in_a_crowd",
        "_key_slot",
        "_lingers",
        "_loss",
        "_lost_with",
        "_passes_on",
        "_since",
        "_told",
        "_until",
        "_waited",
        "_waiting",
        "by",
        "contended",
        "fellows",
        "granted",
        "hold_options",
        "key",
        "lease",
        "local",
        "on_lost",
        "on_release",
        "queue_ref",
        "rule",
        "session",
        "state",
        "token",
        "turn",
        "value",
    )

    def __init__(
        self, session: Session, queue_ref: QueueRef, value: bytes, rule: Rule, hold_options: HoldOptions, by: By
    ) -> None:
        self.session = session
        self.by = by
        self.queue_ref = queue_ref
        self.value = value
        self.hold_options = hold_options
        self.lease = session.id
        self._since = 0.0  # when it joined; once it holds, when it was granted
        self._waited = 0.0
        self._told = False
        self._until = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self.rule = rule
        self.turn = Turn(rule)
        self._loss: Loss | None = None
        self._waiting: Waiting | None = None
        self._in_a_crowd = self._passes_on = False
        self._guard: Subscription | None = None
        self._aged = False
        self._checking: asyncio.Task[None] | None = None
        self._behind: set[Waiting] | None = None
        self.local = session.member(LocalQueues)
        self._key_slot = self.local.key_slots.take(queue_ref.queue)
        self.key = session.layout.entry(queue_ref.queue, session.id, self._key_slot, rule.claim)
        self.token = 0
        self.state = State.NEW
        self.granted = False
        self.contended = False
        self.fellows: Sequence[Entry] = ()  # held with it, all or none
        self._lost_with: Entry | None = None
        self._lingers = False
        self.on_lost: Callable[[], None] | None = None
        self.on_release: Callable[[Entry], object] | None = None

    @property
    def lost(self) -> Loss:
        if self._loss is None:
            self._loss = Loss(self.session.home)
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
        self._waited = waited
        self.local.by_holder[self.queue_ref.queue, self.by.who] = self
        if telemetry.observers:
            telemetry.tell("granted", self.queue_ref.what, self.queue_ref.name, waited, self.contended)
        if self.hold_options.max_hold is not None:
            self._limit_hold(self.hold_options.max_hold)
        return Grant(self.queue_ref.name, self.token, self.key.decode(), datetime.now(UTC), waited, self)

    def _limit_hold(self, seconds: float) -> None:
        """Trust in the grant ends after ``seconds``. As with a session's, a third of the TTL is left then for the
        holder to come to an end and release; after that the key is deleted, even if the event loop is blocked."""
        self._until = self._since + seconds
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._overstayed)
        self.session.hold_limits().limit(self.key, self.token, self._until + self.session.ttl / 3)

    def _overstayed(self) -> None:
        if self.state is State.HELD:
            self._lingers = True
            held = f"{self.queue_ref.what} {self.queue_ref.name!r} (token {self.token})"
            self._lose(
                LockLost(f"the {held} was held for longer than its max_hold of {self.hold_options.max_hold:g} s")
            )

    def notice_loss(self) -> None:
        """Lose what it holds if that can no longer be trusted and nobody has told yet: the event loop was blocked, or
        the process stopped."""
        if self.state is not State.HELD or self.remaining() > 0:
            return
        if clock.now() >= self._until:
            self._overstayed()
        else:
            self.session.notice_distrust()

    async def release(self) -> None:
        """Give the lock back, and return when etcd has confirmed it; what is gone needs nothing.

        Raises ``EtcdError`` if etcd does not confirm it in time, unless it was lost before. The removal goes on all the
        same, also if this is cancelled.
        """
        self.check_here()
        if self.state is not State.HELD or self.fellows:
            if removal := self.begin_release():
                await self.confirmed(removal)
        elif self._let_go():
            with suppress(SessionLost):  # then the lease took the key along
                await self.session.remover.removed(self.key, self._gone, self._baton())

    def _baton(self) -> Put | None:
        """What says, in the transaction of a release, that it held: whoever waits behind it need not read the queue to
        tell this from a departure in mid-queue. Only worth it where many wait, and the next is not of this session."""
        if not self._in_a_crowd or self._behind:
            return None
        key = self.session.layout.baton(self.key)
        self._passes_on = self.local.release_markers.begin(key)
        return Put(key, marker_value(self.token), self.session.id) if self._passes_on else None

    def begin_release(self) -> asyncio.Future[bool] | None:
        """The same for one of several that are released together: it has begun when this returns."""
        return self.remove() if self._let_go() else None

    async def confirmed(self, removal: asyncio.Future[bool]) -> None:
        """Wait until etcd has confirmed a removal that was begun. A loss has been told already: after one an error is
        no news, and while the session is not trusted, which means that etcd does not answer, nothing is waited for."""
        lost = self.state is State.LOST
        if lost and not self.session.alive:
            return
        try:
            await removal
        except SessionLost:
            pass  # the lease took the key along
        except EtcdError:
            if not lost:
                raise

    def _let_go(self) -> bool:
        """Whether there is anything to give back."""
        if self.state is not State.HELD and not self._lingers:
            return False
        self._lingers = False
        if self.on_release:
            self.on_release(self)
        if telemetry.observers and self.state is State.HELD:
            telemetry.tell("released", self.queue_ref.what, self.queue_ref.name, clock.now() - self._since)
        self._finish(State.OVER if self.state is State.HELD else self.state)
        return True

    async def fenced(self, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> TxnResult:
        """Run ``ops`` in a transaction that commits only if this entry still holds."""
        self.check_here()
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

    # Wrong uses

    def check_here(self) -> None:
        """Raise ``UsedElsewhere`` unless this is the process and the event loop of the session."""
        self.session.home.check(self.queue_ref.what, self.queue_ref.name)

    def forgotten(self) -> None:
        """Warn if it still holds now that nobody can release it any more."""
        if self.remaining() <= 0 or self.session.is_over or sys.is_finalizing():
            return
        callsite.warn(
            self.by.line,
            f"the grant of the {self.queue_ref.what} {self.queue_ref.name!r} (token {self.token}) was dropped and "
            "never released: it is held until its session ends; use `async with` or `with`, or keep the grant and "
            "release it",
            RuntimeWarning,
        )

    def describe(self) -> str:
        """The state, in a word."""
        if not self.session.home.in_process:
            return "of another process"
        if self.state is State.HELD:
            return "held" if self.remaining() > 0 else "not trusted any more"
        return "lost" if self.state is State.LOST else "released"

    # What the session tells its members, and asks them

    def waits(self) -> tuple[str, float] | None:
        return (self.queue_ref.what, self._since) if self.state is State.WAITING else None

    def holds(self) -> tuple[str, float] | None:
        return (self.queue_ref.what, self._since) if self.state is State.HELD else None

    def untrusted(self, reason: ConcurrencyError) -> None:
        """One that waits keeps its place, and is granted when the session is trusted again: ``joining.py`` looks."""
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
        _, _, queue, end = self.queue_ref
        ahead = Get(queue, end) if self.rule.needs_all else Get(queue, end, limit=1, newest_first=True)
        return ahead, Put(self.key, self.value, self.session.id)

    def joined(self, revision: int, found: OpResult) -> Action:
        """The put was applied at ``revision``, behind what was found."""
        assert isinstance(found, GetResult)
        self.token = revision
        if self.rule.needs_all:
            return self._enter(whole(found, revision))
        nearest = entries_in(found)
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
        return self._enter(whole(found, self.token))

    async def grantable(self) -> bool:
        """Whether it would be granted if it joined now; for a try."""
        _, _, queue, end = self.queue_ref
        return Turn(self.rule).seen(whole(await self.session.transport.get(Get(queue, end)))) is Action.GRANT

    async def granted_now(self) -> bool:
        """Whether it is granted already, having joined."""
        return self.turn.seen(await look(self)) is Action.GRANT

    def _enter(self, view: View) -> Action:
        self.state = State.WAITING
        self._since = clock.now()
        self.local.add(self.key, self)
        self._in_a_crowd = view.total > 1 and not self.rule.needs_all
        if self.session.lost.is_set():
            self._lose(self.session.lost.reason or SessionLost("the session is over"))
        return self.turn.seen(view)

    # Waiting; ``waiting.py`` does it

    async def wait(self, action: Action) -> None:
        """Until it is granted; raises when it is lost, or never will be."""
        self._waiting = Waiting(self)
        try:
            await self._waiting.until_granted(action)
        finally:
            self._waiting = None

    def own_ahead(self) -> Entry | None:
        """The entry to wait for, if it is one of this session's: it will tell, and etcd need not."""
        ahead = self.turn.ahead
        entry = self.local.by_key.get(ahead.key) if ahead else None
        if ahead and isinstance(entry, Entry) and entry.token == ahead.create_revision:
            return None if entry.state is State.LOST else entry
        return None

    @property
    def behind(self) -> set[Waiting]:
        """Those of this session that wait for the end of this one, and need no watch for it."""
        if self._behind is None:
            self._behind = set()
        return self._behind

    # Its own key

    def tick(self) -> None:
        """The second patrol finds it alive for long enough that a watch on its own key pays."""
        self.notice_loss()
        if self.state not in (State.WAITING, State.HELD):
            return
        if self._aged and self._guard is None:
            request = WatchRequest(self.key, deletes_only=True)
            self._guard = self.session.hub.subscribe(request, self._own_notice)
        self._aged = True
        if self.state is State.HELD and not self._told and clock.now() - self._since >= LASTING:
            self._told = True
            self.session.start(tell_wait(self, self._waited), "telling since when something is held")

    def _own_notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            self._own_key_gone()
        elif isinstance(notice, Started) and (notice.revision > self.token or notice.resumed or notice.gap):
            if self._checking:
                self._checking.cancel()
            self._checking = self.session.start(self._check_own_key(), "the look for an entry's key")

    async def _check_own_key(self) -> None:
        """Was the key still there when the watch on it began?"""
        pause = _PAUSE
        while True:
            try:
                found = await self.session.transport.get(Get(self.key))
                break
            except EtcdError:  # it looks again for as long as the entry lasts, and nothing else depends on it
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
        if not any(kv.create_revision == self.token for kv in found.kvs):
            self._own_key_gone()

    def _own_key_gone(self) -> None:
        if self.state in (State.WAITING, State.HELD):
            self.remove()  # there is nothing to remove, but only this frees the nonce for certain
            what = self.queue_ref.what if self.state is State.HELD else "place in the queue of"
            self._lose(_Deleted(f"the {what} {self.queue_ref.name!r} (token {self.token}) was deleted in etcd"))

    async def explain(self) -> str:
        """Why the lock was lost, with the operator's reason if it was released by force."""
        if self._lost_with:
            return await self._lost_with.explain()
        reason = str(self.lost.reason)
        if not isinstance(self.lost.reason, _Deleted):
            return reason
        try:
            found = await self.session.transport.get(Get(self.session.layout.audit(self.queue_ref.name)))
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
            what, name, _, _ = self.queue_ref
            log.info("the %s %r (token %d) is lost: %s", what, name, self.token, reason, extra=self._facts())
            if telemetry.observers:
                telemetry.tell("lost", what, name, clock.now() - self._since)
        self._finish(State.LOST)
        self._tell_behind(gone=False)
        self.lost.tell(reason)
        if self._waiting:
            self._waiting.wake()
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
        if self._passes_on:
            self.local.release_markers.written(self.session.layout.baton(self.key), clock.now())
        if reusable:
            self.free_key_slot()
        if self.local.by_key.get(self.key) is self:
            del self.local.by_key[self.key]
        self._tell_behind(gone=True)

    def _tell_behind(self, *, gone: bool) -> None:
        behind, self._behind = self._behind, None
        alone = self.granted and not keys.is_reader(self.key)
        for waiting in behind or ():
            waiting.ahead_left(gone, alone)

    def free_key_slot(self) -> None:
        self.local.key_slots.give_back(self.queue_ref.queue, self._key_slot)

    def _finish(self, state: State) -> None:
        if self.state is State.HELD and self.local.by_holder.get(mine := (self.queue_ref.queue, self.by.who)) is self:
            del self.local.by_holder[mine]
        self.state = state
        self.local.discard(self)
        if self._guard:
            self._guard.cancel()
        if self._alarm:
            self._alarm.cancel()
            if not self._lingers:
                self.session.hold_limits().lift(self.key)
        if self._checking and self._checking is not asyncio.current_task():
            self._checking.cancel()

    def raise_if_lost(self) -> None:
        if self.state is State.LOST:
            raise self.lost.reason or LockLost(f"{self.queue_ref.name!r} was lost")

    def _facts(self) -> dict[str, object]:
        """For structured logs."""
        return {
            "codomyrmex_kind": self.queue_ref.what,
            "codomyrmex_name": self.queue_ref.name,
            "codomyrmex_token": self.token,
            "codomyrmex_session": f"{self.session.id:016x}",
        }

    def _rejected(self) -> FencedWriteRejected:
        if telemetry.observers:
            telemetry.tell("write_rejected", self.queue_ref.what, self.queue_ref.name)
        return FencedWriteRejected(
            f"{self.queue_ref.name!r} is no longer held with token {self.token}; nothing was written"
        )
