"""The past of one queue, told from every change since etcd's last compaction. Pure.

etcd has revisions and no clock. The times in a past hold are those that the owners recorded, by their own hosts'
clocks. The entries of all queues that the changes show are time marks: an entry was created at its ``since``, so a
revision before its own lies before that time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import LOCK, PATH, Layout, queue_of, session_of
from codomyrmex.concurrency.models import ForcedRelease, HowEnded, Owner, PastHold, QueueKind
from codomyrmex.concurrency.waitqueue.rules import Predecessor, holders


@dataclass(slots=True)
class _Life:
    """An entry of the queue. ``granted`` is the revision of its grant; None while it waits. An ``older`` one holds when
    the history begins."""

    entry: Predecessor
    owner: Owner
    lease: int
    granted: int | None = None
    older: bool = False
    session_ended: bool = False


class Replay:
    """The holds of one lock or tree. The history begins at revision 1, where etcd is empty, unless ``begin`` says
    otherwise."""

    def __init__(self, layout: Layout, name: str, kind: QueueKind = "lock") -> None:
        self._layout = layout
        self._name = name
        self._kind = kind
        self._queue = layout.queue(name, PATH if kind == "path" else LOCK)
        self._living: dict[bytes, _Life] = {}  # in queue order
        self._over: list[tuple[_Life, int, HowEnded]] = []
        self._marks: list[tuple[int, datetime]] = []  # by revision
        self.begins_at = 1

    def begin(self, kvs: Iterable[KV], revision: int, ended: Iterable[int] = ()) -> None:
        """The history begins at ``revision`` with these keys of the queue; all that was told before is forgotten.
        ``ended`` are sessions that were over by then."""
        self._living, self._over, self._marks = {}, [], []
        self.begins_at = revision
        for kv in sorted(filter(self._is_entry, kvs), key=_by_age):
            self._add(kv)
        self._end_sessions(set(ended))
        self._grant(revision)
        for life in self._living.values():
            life.older = life.granted is not None

    def changed(self, events: Iterable[Event]) -> None:
        """The next changes, in etcd's order. All changes of one revision come together."""
        for revision, together in groupby(events, key=lambda event: event.kv.mod_revision):
            self._step(list(together), revision)

    def holds(self, forced: Mapping[int, ForcedRelease]) -> tuple[PastHold, ...]:
        """Every hold, in the order of the grants. ``forced`` are the forced releases by revision, each
        that of the entry which it deleted."""
        held = [(life, end, how) for life, end, how in self._over if life.granted is not None]
        held += [(life, 0, "held") for life in self._living.values() if life.granted is not None]
        ordered = sorted(held, key=lambda one: (one[0].granted or 0, one[0].owner.token))
        grants = {life.granted: at for life, _, _ in ordered if (at := self._granted_at(life))}
        return tuple(self._hold(life, end, how, forced, grants) for life, end, how in ordered)

    @property
    def first_mark(self) -> datetime | None:
        """The earliest time mark: the history begins before it. None if no entry has joined since."""
        return self._marks[0][1] if self._marks else None

    def waits(self) -> tuple[Owner, ...]:
        """The owners of the entries that went without having held, in the order of their ends."""
        return tuple(life.owner for life, _, _ in self._over if life.granted is None)

    def _hold(
        self,
        life: _Life,
        end: int,
        how: HowEnded,
        forced: Mapping[int, ForcedRelease],
        grants: Mapping[int | None, datetime],
    ) -> PastHold:
        record = forced.get(end)
        return PastHold(
            name=self._name,
            kind=self._kind,
            owner=life.owner,
            token=life.owner.token,
            granted_at=self._granted_at(life),
            ended_at=record.at if record else grants.get(end),
            ended_before=self._mark_after(end) if end else None,
            how="forced" if record else how,
            granted_revision=None if life.older else life.granted,
            ended_revision=end or None,
            forced=record,
        )

    def _granted_at(self, life: _Life) -> datetime | None:
        """The time of a grant: as recorded, or that of the join if the entry held at once."""
        if life.owner.granted_at:
            return life.owner.granted_at
        return life.owner.since if life.granted == life.owner.token else None

    def _mark_after(self, revision: int) -> datetime | None:
        """The time of the first entry that was created after ``revision``."""
        index = bisect_left(self._marks, (revision + 1,))
        return self._marks[index][1] if index < len(self._marks) else None

    def _step(self, changes: list[Event], revision: int) -> None:
        ended = {lease for change in changes if change.deleted and (lease := self._layout.lease_of(change.kv.key))}
        joined, before = [], len(self._over)
        for change in changes:
            if not change.deleted:
                joined += self._put(change.kv)
            elif life := self._living.pop(change.kv.key, None):
                self._over.append((life, revision, self._how(life, ended)))
        for kv in sorted(joined, key=_by_age):
            self._add(kv)
        if ended:
            self._end_sessions(ended)
        if joined or len(self._over) > before:
            self._grant(revision)

    def _end_sessions(self, ended: set[int]) -> None:
        for life in self._living.values():
            life.session_ended |= session_of(life.entry.key) in ended

    @staticmethod
    def _how(life: _Life, ended: set[int]) -> HowEnded:
        """An entry goes with its lease in one revision; one that its ``lock_delay`` kept was lost with its session."""
        if life.lease in ended:
            return "expired"
        return "lost" if life.session_ended and life.owner.ttl is None else "released"

    def _put(self, kv: KV) -> list[KV]:
        """Take a put of any key; returns it if it joins the queue."""
        owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        if kv.version == 1 and owner.since and session_of(kv.key):
            self._marks.append((kv.create_revision, owner.since))
        if not self._is_entry(kv):
            return []
        if life := self._living.get(kv.key):
            life.owner, life.lease = owner, kv.lease
            return []
        return [kv]

    def _add(self, kv: KV) -> None:
        owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        self._living[kv.key] = _Life(Predecessor(kv.key, kv.create_revision, kv.value), owner, kv.lease)

    def _is_entry(self, kv: KV) -> bool:
        return bool(kv.lease) and queue_of(kv.key) == self._queue

    def _grant(self, revision: int) -> None:
        """Let the entries hold that may, now that ``revision`` is applied."""
        queue = list(self._living.values())
        for life, holds in zip(queue, holders([life.entry for life in queue]), strict=True):
            if holds and life.granted is None:
                life.granted = revision


def _by_age(kv: KV) -> tuple[int, bytes]:
    """The sort key of queue order."""
    return kv.create_revision, kv.key
