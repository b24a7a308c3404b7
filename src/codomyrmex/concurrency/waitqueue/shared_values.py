"""Values that the entries of queues carry for everybody: read once, and followed change by change."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from itertools import groupby
from typing import NamedTuple

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event, Get, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import Kind, Layout, nfc, prefix_end, starting_with
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.records import SharedRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import read_queues
from codomyrmex.concurrency.waitqueue.view import is_entry
from codomyrmex.concurrency.watching import notices, snapshots


class Queues(NamedTuple):
    """Queues of one kind: that of a name, or without one those whose names start with ``prefix``."""

    kind: Kind
    name: str | None = None
    prefix: str = ""

    def under(self, layout: Layout) -> bytes:
        """The prefix of their keys."""
        if self.name is not None:
            return layout.queue(self.name, self.kind)
        return starting_with(layout.under(self.kind), nfc(self.prefix))


class SharedEntry(NamedTuple):
    """An entry: the name of its queue, its owner, and the fields that it shares."""

    name: str
    owner: Owner
    shared: SharedRecord


class SharedEntries(NamedTuple):
    """The entries of one queue or of several at one revision, in order of arrival."""

    revision: int
    entries: tuple[SharedEntry, ...]


def replaced(entry: bytes, field: str, text: str) -> bytes:
    """An entry's value, a JSON object, with ``text``, which is JSON, in the place of a field."""
    head, rest = json.loads(entry), {field: json.loads(text)}
    return json.dumps({**head, **rest}).encode()


def is_same(one: object, other: object) -> bool:
    """True if two values are the same JSON. In Python ``True == 1 == 1.0``; as JSON they differ."""
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


async def read(session: SessionCore, queues: Queues) -> SharedEntries:
    """The entries of queues, as etcd has them now."""
    kvs, revision = await read_queues(session, queues.under(session.layout), queues.kind)
    return _ordered(revision, _known(session, queues.kind, kvs))


async def first(session: SessionCore, queue: Queues) -> SharedEntry | None:
    """The first entry of a queue, read without the others; None if there is none."""
    prefix = queue.under(session.layout)
    found = await session.transport.get(Get(prefix, prefix_end(prefix), limit=1, oldest_first=True))
    if all(map(is_entry, found.kvs)):
        return next(iter(_known(session, queue.kind, found.kvs).values()), None)
    return next(iter((await read(session, queue)).entries), None)  # a foreign key is older


def latest(session: SessionCore, queues: Queues) -> AsyncGenerator[SharedEntries, None]:
    """The entries of queues now, and again after changes, for a live view. Raises ``SessionLost`` when the session is
    over."""
    return snapshots(session, queues.under(session.layout), lambda: read(session, queues))


async def follow(session: SessionCore, queues: Queues) -> AsyncGenerator[SharedEntries, None]:
    """The entries of queues now, and after each revision that changes them, with none left out.

    After a break during which etcd compacted its history, the entries are read again. Raises ``SessionLost`` when the
    session is over.
    """
    prefix, kind = queues.under(session.layout), queues.kind
    known: dict[bytes, SharedEntry] = {}
    revision = 0
    async with aclosing(notices(session, WatchRequest(prefix, prefix_end(prefix)))) as told:
        async for notice in told:
            if isinstance(notice, Changed):
                for changed, events in _after(notice.events, revision):
                    for event in events:
                        known.pop(event.kv.key, None)
                    known |= _known(session, kind, (event.kv for event in events if not event.deleted))
                    revision = changed
                    yield _ordered(revision, known)
            elif not revision or notice.gap:
                kvs, revision = await read_queues(session, prefix, kind)
                known = _known(session, kind, kvs)
                yield _ordered(revision, known)


def _after(events: Iterable[Event], revision: int) -> Iterator[tuple[int, list[Event]]]:
    """The events after ``revision``, by their own."""
    for changed, together in groupby(events, key=lambda event: event.kv.mod_revision):
        if changed > revision:
            yield changed, list(together)


def _known(session: SessionCore, kind: Kind, kvs: Iterable[KV]) -> dict[bytes, SharedEntry]:
    """The entries among some keys. Each is decoded once, however often its queue is told."""
    return {
        kv.key: SharedEntry(
            name, Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease), SharedRecord.decode(kv.value)
        )
        for kv in kvs
        if is_entry(kv) and (name := session.layout.name_of(kv.key, kind)) is not None
    }


def _ordered(revision: int, known: dict[bytes, SharedEntry]) -> SharedEntries:
    return SharedEntries(revision, tuple(sorted(known.values(), key=lambda one: (one.owner.token, one.owner.key))))
