"""One entry's life in a queue, as a table of states and events.

``rules.py`` and ``turn.py`` decide when an entry is granted, ``wait.py`` waits for that.

When an entry stops waiting or holding, its key is deleted, in the background if need be. A cancel of the task that
asked for it does not stop that.

LINGERING is the exception: a lost entry keeps its key until its holder lets go, so that a cancelled block can clean up
before another entry is granted. The key goes earlier if the lease ends, if an operator deletes it, or a third of the
TTL after ``max_hold`` or ``max_idle`` is over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Awaitable, Callable
from enum import IntEnum, auto
from typing import NamedTuple, Protocol

from codomyrmex.concurrency import callsite, clock, keys, telemetry
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, LockLost, SessionLost, fresh
from codomyrmex.concurrency.etcd.transports.protocol import Get, Put
from codomyrmex.concurrency.loss import Loss, SessionClosed
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.group import Group
from codomyrmex.concurrency.waitqueue.handoff import marker_value
from codomyrmex.concurrency.waitqueue.hold_limit import HoldLimit, HoldTimes
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from codomyrmex.concurrency.waitqueue.own_key import KeyDeleted, OwnKey, explain_deletion
from codomyrmex.concurrency.waitqueue.progress import Progress
from codomyrmex.concurrency.waitqueue.record_wait import LASTING, record_wait
from codomyrmex.concurrency.waitqueue.rules import Overlap, Predecessor, Rule, View
from codomyrmex.concurrency.waitqueue.turn import Action, Turn

log = logging.getLogger("codomyrmex.concurrency")


class State(IntEnum):
    """The states of an entry."""

    NEW = auto()  # it has not joined its queue
    WAITING = auto()
    HELD = auto()
    LINGERING = auto()  # it is lost, but its key stays in etcd until the holder lets go
    LOST = auto()
    OVER = auto()  # it was released, or has stopped waiting
    DETACHED = auto()  # it holds on a lease of its own, and this session is no longer concerned with it


class Event(IntEnum):
    """The events in the life of an entry."""

    JOINED = auto()  # its put is committed
    GRANTED = auto()  # the rule grants it, and the lease is trusted
    WITHDRAWN = auto()  # its waiter gave up: a timeout, a cancel
    RELEASED = auto()  # its holder let go
    TRUST_ENDED = auto()  # the lease is untrusted, its hold options end it, or another entry of its group is lost
    KEY_LOST = auto()  # its key is deleted or about to be, or the session is lost
    MOVED = auto()  # it was granted, and its key is on a lease of its own


TRANSITIONS: dict[tuple[int, int], State] = {
    (State.NEW, Event.JOINED): State.WAITING,
    (State.WAITING, Event.GRANTED): State.HELD,
    (State.WAITING, Event.WITHDRAWN): State.OVER,
    (State.WAITING, Event.KEY_LOST): State.LOST,
    (State.WAITING, Event.MOVED): State.DETACHED,
    (State.HELD, Event.RELEASED): State.OVER,
    (State.HELD, Event.TRUST_ENDED): State.LINGERING,
    (State.HELD, Event.KEY_LOST): State.LOST,
    (State.LINGERING, Event.RELEASED): State.LOST,
    (State.LINGERING, Event.KEY_LOST): State.LOST,
}


def next_state(state: State, event: Event) -> State:
    """The state after ``event``; raises ``RuntimeError`` for an event that is impossible in ``state``."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise RuntimeError(f"{event.name} is impossible for an entry that is {state.name}")
    return after


class Requester(NamedTuple):
    """The requester of an entry: a task, or a thread of the blocking twin, held weakly; and the line that asked."""

    who: weakref.ref[object] | None
    line: callsite.Line | None

    @classmethod
    def of(cls, who: object, line: callsite.Line | None) -> Requester:
        return cls(weakref.ref(who) if who else None, line)


class QueueRef(NamedTuple):
    """The queue that an entry joins: its kind in words, its name, the range of its keys, and the two reads of it:
    of the newest key, and of the whole queue."""

    what: str
    name: str
    queue: bytes
    queue_end: bytes
    newest: Get
    whole: Get

    @classmethod
    def of(cls, kind: keys.Kind, queue: bytes, name: str) -> QueueRef:
        end = keys.prefix_end(queue)
        return cls(kind.what, name, queue, end, Get(queue, end, limit=1, newest_first=True), Get(queue, end))


class LocalSuccessor(Protocol):
    """A waiter of the same session that waits for the end of an entry. The entry tells it, so it needs no watch."""

    def predecessor_left(self, gone: bool, granted: bool) -> None:
        """The entry can tell no more. ``gone``: its key is no longer in etcd. ``granted``: it held exclusively."""


def warn_if_it_waits_for_itself(session: SessionCore, queue_ref: QueueRef, rule: Rule, by: Requester) -> None:
    """Warn if the lock that ``by`` is about to wait for is held by ``by``."""
    held = session.member(LocalQueues).by_holder.get((queue_ref.queue, by.who)) if by.who else None
    if isinstance(held, Entry) and _excludes(held, queue_ref, rule):
        since = f", since {held.by.line}" if held.by.line else ""
        callsite.warn(
            by.line,
            f"the {queue_ref.what} {queue_ref.name!r} is waited for by the very task or thread that holds it{since}: "
            "locks are not reentrant, so it waits for itself until another one releases it",
            RuntimeWarning,
        )


def _excludes(held: Entry, queue_ref: QueueRef, rule: Rule) -> bool:
    if isinstance(rule, Overlap):
        return rule.waits_for(Predecessor(held.key, held.token, held.value))
    return queue_ref.what == keys.LOCK.what


class Entry:
    """One entry in a queue, and its hold once it is granted. It serves one acquisition, once."""

    __slots__ = (
        "_has_marker",
        "_key_slot",
        "_limit",
        "_long_queue",
        "_loss",
        "_own_key",
        "_recorded",
        "_since",
        "_successors",
        "_ticks",
        "_waited",
        "by",
        "contended",
        "granted",
        "group",
        "hold_options",
        "key",
        "lease",
        "local",
        "on_lost",
        "on_release",
        "progress",
        "queue_ref",
        "rule",
        "session",
        "state",
        "token",
        "turn",
        "value",
    )

    def __init__(
        self,
        session: SessionCore,
        queue_ref: QueueRef,
        value: bytes,
        rule: Rule,
        hold_options: HoldOptions,
        by: Requester,
    ) -> None:
        self.session = session
        self.local = session.member(LocalQueues)
        self.queue_ref = queue_ref
        self.value = value
        self.rule = rule
        self.hold_options = hold_options
        self.by = by
        self.turn = Turn(rule)
        self._key_slot = self.local.key_slots.take(queue_ref.queue)
        self.key = session.layout.entry(queue_ref.queue, session.id, self._key_slot, rule.key_suffix)
        self.lease = session.id
        self.token = 0
        self.state = State.NEW
        self.granted = self.contended = False
        self.group: Group | None = None  # the entries that are held together with it
        self.on_lost: Callable[[], None] | None = None
        self.on_release: Callable[[Entry], object] | None = None
        self._since = 0.0  # when it joined; once it is granted, when it was granted
        self._waited = 0.0
        self._limit: HoldLimit | None = None
        self.progress: Progress | None = None  # once it has reported any
        self._loss: Loss | None = None
        self._own_key: OwnKey | None = None
        self._successors: set[LocalSuccessor] | None = None
        self._ticks = 0
        self._recorded = self._long_queue = self._has_marker = False

    # Its state

    @property
    def lost(self) -> Loss:
        """The event that is set when it is lost."""
        if self._loss is None:
            self._loss = Loss(self.session.home)
        return self._loss

    @property
    def lives(self) -> bool:
        """True if it waits or holds."""
        return self.state is State.WAITING or self.state is State.HELD

    @property
    def is_lost(self) -> bool:
        return self.state is State.LOST or self.state is State.LINGERING

    def remaining(self) -> float:
        """Seconds for which its grant may still be trusted; 0 if it may not."""
        if self.state is not State.HELD:
            return 0.0
        left = self.session.deadline()
        return left if self._limit is None else max(0.0, min(left, self._limit.until - clock.now()))

    def raise_if_lost(self) -> None:
        if self.is_lost:
            raise fresh(self.lost.reason or LockLost(f"{self.queue_ref.name!r} was lost"))

    def check_here(self) -> None:
        """Raise ``UsedElsewhere`` unless this is the process and the event loop of the session."""
        self.session.home.check(self.queue_ref.what, self.queue_ref.name)

    # Joining, waiting, holding

    def joined(self, token: int, view: View) -> Action:
        """Its put was applied at the revision ``token``, behind the entries in ``view``."""
        self.token = token
        self.state = next_state(self.state, Event.JOINED)
        self._since = clock.now()
        self._long_queue = view.total > 1 and not (self.rule.needs_all or keys.is_reader(self.key))
        self.local.add(self.key, self)
        if self.session.lost.is_set():
            self._lose(Event.KEY_LOST, self.session.lost.reason or SessionLost("the session is over"))
        return self.turn.seen(view)

    def grant(self, waited: float) -> None:
        """Hold from now on. ``waited`` is in seconds."""
        self.state = next_state(self.state, Event.GRANTED)
        self.granted = True
        self._since = clock.now()
        self._waited = waited
        self.local.by_holder[self.queue_ref.queue, self.by.who] = self
        if telemetry.observers:
            telemetry.tell("granted", self.queue_ref.what, self.queue_ref.name, waited, self.contended)
        if self.hold_options.has_end:
            times = HoldTimes(self.hold_options, self._since, self._since)
            self._limit = HoldLimit(self.session, self.key, self.token, times, self._hold_over)

    def held_together(self) -> list[Entry]:
        """The entries of its group that hold; itself if it has no group and holds."""
        entries = self.group.entries if self.group else (self,)
        return [entry for entry in entries if isinstance(entry, Entry) and entry.state is State.HELD]

    def report_progress(self, note: str) -> Put:
        """The put that reports progress. ``progressed`` counts it once it is answered."""
        self.progress = self.progress or Progress()
        self.progress.report(note)
        return Put(self.key, self.progress.record(self.value, self._waited), self.lease)

    def progressed(self, sent_at: float) -> None:
        """Count a report of progress that was sent at ``sent_at`` and is answered now."""
        if self._limit and self.state is State.HELD:
            self._limit.progressed(sent_at)

    def detach(self, waited: float) -> None:
        """Leave its key, which is on a lease of its own now, to the reservation that it has become. ``waited`` is in
        seconds. The key slot is not given back: the session cannot know when the key goes."""
        self._finish(Event.MOVED)
        del self.local.by_key[self.key]
        if telemetry.observers:
            telemetry.tell("granted", self.queue_ref.what, self.queue_ref.name, waited, self.contended)
        self._tell_successors(gone=False)

    def withdraw(self) -> None:
        """Stop waiting, and leave the queue."""
        if self.state is State.WAITING:
            self._finish(Event.WITHDRAWN)
            self.remove()

    # Releasing

    async def release(self) -> None:
        """Give the hold back, and return when etcd has confirmed it; does nothing for an entry that is gone.

        The caller has called ``check_here``.
        Raises ``EtcdError`` if etcd does not confirm it in time, unless it was lost before. The removal goes on all the
        same, also if this is cancelled.
        """
        if self.state is not State.HELD or self.group:
            if removal := self.begin_release():
                await self.confirmed(removal)
        elif self._let_go():
            removing = self.session.remover.remove_and_wait(self.key, self._removed, self._release_marker())
            await self.confirmed(removing)

    def begin_release(self) -> asyncio.Future[bool] | None:
        """Begin to give the hold back, for a group or after a loss. Returns the removal; None if there was no hold."""
        return self.remove() if self._let_go() else None

    async def confirmed(self, removal: Awaitable[bool]) -> None:
        """Wait until etcd has confirmed ``removal``.

        The caller knows of a loss already, so after a loss errors are passed over; and if the session is untrusted too,
        etcd does not answer, and this does not wait.
        """
        lost = self.is_lost
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
        """End the hold; False if there is none."""
        if self.state is not State.HELD and self.state is not State.LINGERING:
            return False
        if self.on_release:
            self.on_release(self)
        if telemetry.observers and self.state is State.HELD:
            telemetry.tell("released", self.queue_ref.what, self.queue_ref.name, clock.now() - self._since)
        self._finish(Event.RELEASED)
        return True

    def _release_marker(self) -> Put | None:
        """The release marker that is written with the release; None where it does not pay: few entries wait, or the
        successor is local and is told."""
        if not self._long_queue or self._successors:
            return None
        key = self.session.layout.release_marker(self.key)
        self._has_marker = self.local.release_markers.begin(key)
        return Put(key, marker_value(self.token), self.session.id) if self._has_marker else None

    def remove(self) -> asyncio.Future[bool]:
        """Remove its key from etcd."""
        return self.session.remover.remove(self.key, self._removed)

    def _removed(self, reusable: bool) -> None:
        """Its key is no longer in etcd; ``reusable``: it may be used again."""
        if self._has_marker:
            self.local.release_markers.written(self.session.layout.release_marker(self.key), clock.now())
        if reusable:
            self.free_key_slot()
        if self.local.by_key.get(self.key) is self:
            del self.local.by_key[self.key]
        self.local.trees.removed(self.queue_ref.queue, self.key, self.token)
        self._tell_successors(gone=True)

    def free_key_slot(self) -> None:
        self.local.key_slots.give_back(self.queue_ref.queue, self._key_slot)

    # Its local successors

    @property
    def successors(self) -> set[LocalSuccessor]:
        """The waiters of this session that wait for its end."""
        if self._successors is None:
            self._successors = set()
        return self._successors

    def _tell_successors(self, *, gone: bool) -> None:
        successors, self._successors = self._successors, None
        alone = self.granted and not keys.is_reader(self.key)
        for successor in successors or ():
            successor.predecessor_left(gone, alone)

    # The calls of its session

    def waits(self) -> tuple[str, float] | None:
        return (self.queue_ref.what, self._since) if self.state is State.WAITING else None

    def holds(self) -> tuple[str, float] | None:
        return (self.queue_ref.what, self._since) if self.state is State.HELD else None

    def requester(self) -> object:
        """The task or thread that asked for it, as a weak reference; None if it is not known."""
        return self.by.who

    def in_group(self) -> bool:
        """True if it was joined together with others."""
        return self.group is not None

    def tick(self) -> None:
        """Notice a loss; from the second tick on, watch the own key; record the wait of a hold that lasts."""
        self.notice_loss()
        if not self.lives:
            return
        self._ticks += 1
        if self._ticks == 2:
            self._own_key = OwnKey(self.session, self.key, self.token, self.key_deleted)
        if self.state is State.HELD and not self._recorded and clock.now() - self._since >= LASTING:
            self._recorded = True
            self.session.start(record_wait(self, self._waited), "recording for how long a holder waited")

    def untrusted(self, reason: ConcurrencyError) -> None:
        """A waiter keeps its entry, and is granted when the session is trusted again; ``join.py`` checks that."""
        if self.state is State.HELD:
            self._lose(Event.TRUST_ENDED, reason)

    def session_closing(self, reason: ConcurrencyError) -> None:
        if self.lives:
            self.remove()
            self._lose(Event.KEY_LOST, reason)

    def session_lost(self, reason: ConcurrencyError) -> None:
        if self.lives:
            self._lose(Event.KEY_LOST, reason)
        elif self.state is State.LINGERING:
            self._finish(Event.KEY_LOST)

    # Other losses

    def key_deleted(self) -> None:
        """Its key is gone from etcd, though this session has not removed it."""
        if self.lives:
            self.remove()  # there is nothing to remove, but only this frees the key slot for certain
            what = self.queue_ref.what if self.state is State.HELD else "place in the queue of"
            text = f"the {what} {self.queue_ref.name!r} (token {self.token}) was deleted in etcd"
            self._lose(Event.KEY_LOST, KeyDeleted(text))

    def lose_with_group(self, reason: ConcurrencyError) -> None:
        """Another entry of its group is lost."""
        if self.state is State.WAITING:
            self.remove()
            self._lose(Event.KEY_LOST, reason)
        elif self.state is State.HELD:
            self._lose(Event.TRUST_ENDED, reason)

    def fail(self, reason: ConcurrencyError) -> None:
        """Stop waiting, for ``reason``."""
        if self.state is State.WAITING:
            self.lose_with_group(reason)

    def _hold_over(self, option: str) -> None:
        if self.state is State.HELD:
            text = f"the {self.queue_ref.what} {self.queue_ref.name!r} (token {self.token}) {self._over(option)}"
            self._lose(Event.TRUST_ENDED, LockLost(text))

    def _over(self, option: str) -> str:
        if option == "max_hold":
            return f"was held for longer than its max_hold of {self.hold_options.max_hold:g} s"
        return (
            f"was held without progress for longer than its max_idle of {self.hold_options.max_idle:g} s; "
            "report progress more often (grant.progress), or give a longer max_idle"
        )

    def notice_loss(self) -> None:
        """Lose a hold that can no longer be trusted and was not told yet: the event loop was blocked, or the process
        stopped."""
        if self.state is not State.HELD or self.remaining() > 0:
            return
        if not (self._limit and self._limit.notice()):
            self.session.notice_distrust()

    def _lose(self, event: Event, reason: ConcurrencyError) -> None:
        if self.state is State.HELD and not isinstance(reason, SessionClosed):
            self._report_loss(reason)
        self._finish(event)
        self._tell_successors(gone=False)
        self.lost.tell(reason)
        if self.on_lost:
            self.on_lost()
        if self.group:
            self.group.lose(self, reason)

    def _report_loss(self, reason: ConcurrencyError) -> None:
        what, name = self.queue_ref.what, self.queue_ref.name
        facts = {
            "codomyrmex_kind": what,
            "codomyrmex_name": name,
            "codomyrmex_token": self.token,
            "codomyrmex_session": f"{self.session.id:016x}",
        }
        log.info("the %s %r (token %d) is lost: %s", what, name, self.token, reason, extra=facts)
        if telemetry.observers:
            telemetry.tell("lost", what, name, clock.now() - self._since)

    def _finish(self, event: Event) -> None:
        """Go to the state after ``event``, in which it neither waits nor holds."""
        if self.state is State.HELD and self.local.by_holder.get(mine := (self.queue_ref.queue, self.by.who)) is self:
            del self.local.by_holder[mine]
        self.state = next_state(self.state, event)
        self.local.discard(self)
        if self._own_key:
            self._own_key.stop()
        if self._limit:
            self._limit.stop(lift=self.state is not State.LINGERING)

    async def explain(self) -> str:
        """The reason of its loss, with the operator's reason if the lock was released by force."""
        first = self.group.first_lost if self.group else self
        if isinstance(first, Entry) and isinstance(first.lost.reason, KeyDeleted):
            of = keys.kind_and_name(first.key)
            kind = of[0] if of else keys.LOCK
            audit = first.session.layout.audit(first.queue_ref.name, kind)
            return await explain_deletion(first.session, audit, first.token, first.lost.reason)
        return str(self.lost.reason)

    def describe(self) -> str:
        """Its state as text, for a repr."""
        if not self.session.home.in_process:
            return "of another process"
        if self.state is State.HELD:
            return "held" if self.remaining() > 0 else "not trusted any more"
        return "lost" if self.is_lost else "released"

    def dropped(self) -> None:
        """Warn if it still holds now that its grant is gone and nothing can release it any more."""
        if self.remaining() <= 0 or self.session.is_over or sys.is_finalizing():
            return
        callsite.warn(
            self.by.line,
            f"the grant of the {self.queue_ref.what} {self.queue_ref.name!r} (token {self.token}) was dropped and "
            "never released: it is held until its session ends; use `async with` or `with`, or keep the grant and "
            "release it",
            RuntimeWarning,
        )
