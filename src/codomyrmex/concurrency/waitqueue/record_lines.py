"""The lines of a record of locks and path locks: what to write for a reading and for changes. Pure.

    {"begin": {"revision", "at", "namespace", "prefix"}}    the first line: the record begins after this revision
    {"gap": {"from", "to", "at"}}                           etcd had compacted these revisions away
    {"kind": "holds" | "waits", …}                          an entry that was there at the beginning, or after a gap
    {"kind": "enqueued" | "granted" | "released" | "expired", …}    a step

Each entry has ``revision``, ``at``, ``late``, ``kind``, ``queue_kind``, ``name``, ``token`` and ``owner``; its end has
``how`` and ``forced`` too. ``at`` is when the recorder read it, by its own clock. ``late`` is true if it happened
earlier than that: while no recorder ran, or while etcd could not be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import LOCK, PATH, Layout, session_of
from codomyrmex.concurrency.models import ForcedRelease, HowEnded, LockEvent, Owner, to_json
from codomyrmex.concurrency.waitqueue.events import EventTracker

Line = dict[str, Any]


class RecordLines:
    """Turns readings and changes into lines. ``revision`` is the one up to which it was told everything."""

    def __init__(self, layout: Layout, prefix: str, skip: Callable[[bytes], None]) -> None:
        self._layout = layout
        self._prefix = prefix
        self._skip = skip
        self._tracker = EventTracker(layout, prefix, skip)
        self._ended: frozenset[int] = frozenset()

    @property
    def revision(self) -> int:
        return self._tracker.revision

    def read(self, entries: Iterable[KV], revision: int, at: datetime, ended: Iterable[int] = ()) -> list[Line]:
        """The entries at a revision. All that was known before is forgotten. ``ended`` are sessions that were over, of
        which entries are left."""
        self._tracker = EventTracker(self._layout, self._prefix, self._skip)
        self._ended = frozenset(ended)
        events = self._tracker.read(entries, revision, at)
        holding = {event.owner.key for event in events if event.kind == "granted"}
        return [
            _line(event, "holds" if event.owner.key in holding else "waits", revision, late=True)
            for event in events
            if event.kind == "enqueued"
        ]

    def changed(self, changes: Sequence[Event], at: datetime, late_until: int) -> Iterator[Line]:
        """The steps of changes in etcd's order. Those up to the revision ``late_until`` are late."""
        for revision, group in groupby(changes, key=lambda change: change.kv.mod_revision):
            together = list(group)
            audits = {change.kv.key: change.kv.value for change in together if not change.deleted}
            leases = {change.kv.key: change.previous.lease for change in together if change.previous}
            late = revision <= late_until
            for event in self._tracker.changed(together, at, seen=not late):
                line = _line(event, event.kind, revision, late=late)
                if event.kind in ("released", "expired"):
                    forced = self._forced(event, audits)
                    line["how"] = "forced" if forced else self._how(event, leases.get(event.owner.key.encode(), 0))
                    line["forced"] = to_json(forced)
                yield line

    def _forced(self, event: LockEvent, puts: dict[bytes, bytes]) -> ForcedRelease | None:
        """The record of a forced release, which is written in the transaction that deletes the entry."""
        audit = puts.get(self._layout.audit(event.name, PATH if event.queue_kind == "path" else LOCK))
        record = ForcedRelease.decode(audit) if audit else None
        return record if record and record.token == event.owner.token else None

    def _how(self, event: LockEvent, lease: int) -> HowEnded:
        session = session_of(event.owner.key.encode())
        delayed = event.owner.ttl is None and session not in (None, lease)
        if delayed and (event.kind == "expired" or session in self._ended):
            return "lost"
        return "expired" if event.kind == "expired" else "released"


def begin_line(revision: int, at: datetime, namespace: str, prefix: str) -> Line:
    return {"begin": {"revision": revision, "at": to_json(at), "namespace": namespace, "prefix": prefix}}


def gap_line(first: int, last: int, at: datetime) -> Line:
    return {"gap": {"from": first, "to": last, "at": to_json(at)}}


def _line(event: LockEvent, kind: str, revision: int, *, late: bool) -> Line:
    owner: Owner = event.owner
    return {
        "revision": revision,
        "at": to_json(event.at),
        "late": late,
        "kind": kind,
        "queue_kind": event.queue_kind,
        "name": event.name,
        "token": owner.token,
        "owner": to_json(owner),
    }
