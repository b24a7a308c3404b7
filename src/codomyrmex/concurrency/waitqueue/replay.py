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
from codomyrmex.concurrency.keys import Layout, queue_of, session_of
from codomyrmex.concurrency.models import ForcedRelease, HowEnded, Owner, PastHold
from codomyrmex.concurrency.waitqueue.rules import Predecessor, holders


@dataclass(slots=True)
class _Life:
    """An entry of the queue. ``granted`` is the revision of its grant; None while it waits. A ``first`` one was there
    when the history begins, so its grant may be older."""

    entry: Predecessor
    owner: Owner
    lease: int
    granted: int | None = None
    first: bool = False
    session_ended: bool = False


class Replay:
    """The holds of the queue with the prefix ``queue``, up to ``revision``."""

    def __init__(self, layout: Layout, queue: bytes) -> None:
        self._layout = layout
        self._queue = queue
        self._living: dict[bytes, _Life] = {}
        self._over: list[tuple[_Life, int, HowEnded]] = []
        self._marks: list[tuple[int, datetime]] = []  # by revision
        self.revision = 0

    def begin(self, kvs: Iterable[KV], revision: int) -> None:
        """The history begins with these keys at ``revision``."""
        self.revision = revision
        for kv in sorted(kvs, key=lambda kv: (kv.create_revision, kv.key)):
            if self._is_entry(kv):
                self._add(kv, first=True)
        self._grant(revision)

    def changed(self, events: Iterable[Event]) -> None:
        """The next changes, in etcd's order. All changes of one revision come together."""
        for revision, together in groupby(events, key=lambda event: event.kv.mod_revision):
            self._step(list(together), revision)
            self.revision = revision

    def holds(self, forced: Mapping[int, ForcedRelease]) -> tuple[PastHold, ...]:
        """Every hold, in the order of the grants. ``forced`` are the forced releases by token."""
        held = [(life, end, how) for life, end, how in self._over if life.granted is not None]
        held += [(life, 0, "held") for life in self._living.values() if life.granted is not None]
        ordered = sorted(held, key=lambda one: (one[0].granted or 0, one[0].owner.token))
        grants = {life.granted: at for life, _, _ in ordered if (at := self._granted_at(life))}
        return tuple(self._hold(life, end, how, forced, grants) for life, end, how in ordered)

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
        record = forced.get(life.owner.token)
        return PastHold(
            owner=life.owner,
            token=life.owner.token,
            granted_at=self._granted_at(life),
            ended_at=record.at if record else grants.get(end),
            ended_before=self._mark_after(end) if end else None,
            how="forced" if record and how != "held" else how,
            granted_revision=None if life.first else life.granted,
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
        ended = {self._layout.lease_of(change.kv.key) for change in changes if change.deleted} - {None}
        for change in changes:
            if not change.deleted:
                self._put(change.kv)
            elif (life := self._living.pop(change.kv.key, None)) is not None:
                self._over.append((life, revision, self._how(life, ended)))
        for life in self._living.values():
            life.session_ended |= session_of(life.entry.key) in ended
        self._grant(revision)

    def _how(self, life: _Life, ended: set[int | None]) -> HowEnded:
        """An entry goes with its lease in one revision; one that outlives its session for a while was lost with it."""
        if life.lease in ended:
            return "expired"
        return "lost" if life.session_ended and life.owner.ttl is None else "released"

    def _put(self, kv: KV) -> None:
        if self._is_entry(kv):
            if known := self._living.get(kv.key):
                known.owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
                known.lease = kv.lease
            else:
                self._add(kv)
        if kv.version == 1 and kv.lease and session_of(kv.key):
            since = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease).since
            if since:
                self._marks.append((kv.create_revision, since))

    def _add(self, kv: KV, *, first: bool = False) -> None:
        owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        self._living[kv.key] = _Life(Predecessor(kv.key, kv.create_revision, kv.value), owner, kv.lease, first=first)

    def _is_entry(self, kv: KV) -> bool:
        return bool(kv.lease) and queue_of(kv.key) == self._queue

    def _grant(self, revision: int) -> None:
        """Let the entries hold that may, now that ``revision`` is applied."""
        queue = list(self._living.values())
        for life, holds in zip(queue, holders([life.entry for life in queue]), strict=True):
            if holds and life.granted is None:
                life.granted = revision
