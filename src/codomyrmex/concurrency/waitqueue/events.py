"""The steps of locks and path locks, told from a reading of their queues and the changes that follow it. Pure.

An entry that the tracker knows waits or holds:

    state      on                                                   LockEvent                 becomes
    (unknown)  its key is read or put                               enqueued                  waiting
    waiting    the rule of the queue lets it hold                   granted                   holding
    either     its key is put again                                 none                      the same
    either     its key is deleted                                   released                  (unknown)
    either     its key is deleted with, or after, its session's     expired                   (unknown)
    either     its key is missing in a reading, or has another life released                  (unknown)

The tracker raises ``ValueError`` for input that etcd cannot give: a change before the first reading, and a key that
gets another life without a deletion. It passes over a reading that is older than what it knows, a change that a reading
already contains, and the deletion of a key that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import LOCK, PATH, Kind, Layout, forms, session_of
from codomyrmex.concurrency.models import EventKind, LockEvent, Owner, QueueKind
from codomyrmex.concurrency.waitqueue.rules import Predecessor, holders


@dataclass(slots=True)
class _Tracked:
    """An entry that is in etcd.

    ``enqueued_at`` is None for an entry that a reading showed first. ``survives`` is the session that the entry
    outlasts by its ``lock_delay``, or None. ``session_ended`` tells that this session is over.
    """

    entry: Predecessor
    owner: Owner
    enqueued_at: datetime | None = None
    holds: bool = False
    survives: int | None = None
    session_ended: bool = False


class _Moment(NamedTuple):
    """The time at which a step is told, and the revision that made it.

    ``seen`` is True if the step happened at that time, False if a reading found its result later.
    """

    at: datetime
    revision: int
    seen: bool


class _Queue(NamedTuple):
    """A queue that is followed: that of a lock, or of a tree."""

    kind: Kind
    name: str


class EventTracker:
    """The queues of the locks and trees under a prefix, as far as it was told of them. ``skip`` is called with each key
    without a lease, which is no entry; keys outside these queues are ignored. ``revision`` is that of the last reading
    or change; 0 before the first reading."""

    def __init__(self, layout: Layout, prefix: str, skip: Callable[[bytes], None]) -> None:
        self._layout = layout
        self._prefixes = forms(prefix)
        self._skip = skip
        self._queues: dict[_Queue, dict[bytes, _Tracked]] = {}
        self.revision = 0

    def read(self, entries: Iterable[KV], revision: int, now: datetime) -> list[LockEvent]:
        """The events that explain a reading of all entries. Keys are used again, so an entry is the same only if its
        create revision is, too."""
        if revision < self.revision:
            return []
        self.revision = revision
        moment = _Moment(now, revision, seen=False)
        read = {kv.key: kv for kv in entries}
        lives = {kv.key: kv.create_revision for kv in read.values()}
        events = []
        for queue, entries_of in list(self._queues.items()):
            for key in [key for key, tracked in entries_of.items() if lives.get(key) != tracked.owner.token]:
                events += self._left(queue, key, "released", moment)
            events += self._granted(queue, moment)
        for kv in sorted(read.values(), key=lambda kv: (kv.create_revision, kv.key)):
            events += self._put(kv, moment._replace(revision=kv.create_revision))
        return events

    def changed(self, changes: Iterable[Event], now: datetime, *, seen: bool = True) -> list[LockEvent]:
        """The events of changes in etcd's order. All changes of one revision come in one call. ``seen`` is False if
        they are told later than they happened, so that ``now`` times nothing."""
        if not self.revision:
            raise ValueError("a change came before the first reading")
        events: list[LockEvent] = []
        for revision, together in groupby(changes, key=lambda change: change.kv.mod_revision):
            if revision > self.revision:
                events += self._changed_together(list(together), _Moment(now, revision, seen))
                self.revision = revision
        return events

    def _changed_together(self, changes: list[Event], moment: _Moment) -> list[LockEvent]:
        """The events of one revision. The end of a lease deletes the session's key and its entries in one revision."""
        events: list[LockEvent] = []
        left: list[_Queue] = []
        ended = {self._layout.lease_of(change.kv.key) for change in changes if change.deleted} - {None}
        for change in changes:
            queue = self._queue_of(change.kv.key)
            if not change.deleted:
                events += self._put(change.kv, moment)
            elif queue is not None:
                kind: EventKind = "expired" if self._expired(queue, change, ended) else "released"
                events += self._left(queue, change.kv.key, kind, moment)
                left.append(queue)
        for queue in left:  # not before all have left that leave together
            events += self._granted(queue, moment)
        if ended:
            self._end_sessions(ended)
        return events

    def _queue_of(self, key: bytes) -> _Queue | None:
        """The queue that an entry's key lies in."""
        for kind in (LOCK, PATH):
            name = self._layout.name_of(key, kind)
            if name is not None:
                return _Queue(kind, name)
        return None

    def _expired(self, queue: _Queue, deletion: Event, ended: set[int | None]) -> bool:
        lease = deletion.previous.lease if deletion.previous else 0
        tracked = self._queues.get(queue, {}).get(deletion.kv.key)
        return lease in ended or (tracked is not None and tracked.session_ended)

    def _end_sessions(self, ended: set[int | None]) -> None:
        for queue in self._queues.values():
            for tracked in queue.values():
                if tracked.survives is not None and tracked.survives in ended:
                    tracked.session_ended = True

    def _put(self, kv: KV, moment: _Moment) -> list[LockEvent]:
        queue = self._queue_of(kv.key)
        if queue is None or not queue.name.startswith(self._prefixes):
            return []
        if not kv.lease:
            self._skip(kv.key)
            return []
        entries = self._queues.setdefault(queue, {})
        owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        known = entries.get(kv.key)
        entry = Predecessor(kv.key, kv.create_revision, kv.value)
        tracked = known or _Tracked(entry, owner, moment.at if moment.seen else None)
        session = session_of(kv.key)
        if session and session != kv.lease and owner.ttl is None:  # a reservation has nothing to do with the session
            tracked.survives = session
        if known:
            self._put_again(known, owner)
            return []
        entries[kv.key] = tracked
        return [self._event("enqueued", queue, owner, moment), *self._granted(queue, moment)]

    @staticmethod
    def _put_again(known: _Tracked, owner: Owner) -> None:
        """A holder puts its entry again to tell how long it had waited, to report progress, and to change its lease."""
        if owner.token != known.owner.token:
            raise ValueError(f"{owner.key} has another life, at {owner.token}, but was not deleted")
        if (granted := known.owner.granted_at) is not None:
            owner = replace(owner, granted_at=granted, waited=known.owner.waited)
        known.owner = owner

    def _left(self, queue: _Queue, key: bytes, kind: EventKind, moment: _Moment) -> list[LockEvent]:
        entries = self._queues.get(queue, {})
        tracked = entries.pop(key, None)
        if tracked is None:
            return []
        if not entries:
            del self._queues[queue]
        return [self._event(kind, queue, tracked.owner, moment)]

    def _granted(self, queue: _Queue, moment: _Moment) -> list[LockEvent]:
        """The grants that follow from a change of the queue."""
        entries = list(self._queues.get(queue, {}).values())
        held = zip(entries, holders([tracked.entry for tracked in entries]), strict=True)
        new = [tracked for tracked, holds in held if holds and not tracked.holds]
        for tracked in new:
            tracked.holds = True
            if moment.seen:
                tracked.owner = self._timed(tracked, moment.at)
        return [self._event("granted", queue, tracked.owner, moment) for tracked in new]

    @staticmethod
    def _timed(tracked: _Tracked, granted: datetime) -> Owner:
        """The owner with the time of its grant, by the clock of this process."""
        enqueued = tracked.enqueued_at
        waited = (granted - enqueued).total_seconds() if enqueued else tracked.owner.waited
        return replace(tracked.owner, granted_at=granted, waited=waited)

    @staticmethod
    def _event(kind: EventKind, queue: _Queue, owner: Owner, moment: _Moment) -> LockEvent:
        of: QueueKind = "path" if queue.kind is PATH else "lock"
        return LockEvent(kind, queue.name, owner, moment.revision, moment.at, of)
