"""Values that the entries of a queue carry for everybody: read once, and followed change by change."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from itertools import groupby
from typing import NamedTuple

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import Kind, prefix_end
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import by_age, read_queues
from codomyrmex.concurrency.waitqueue.view import is_entry
from codomyrmex.concurrency.watching import notices


class SharedEntry(NamedTuple):
    """An entry with its owner and its value, as JSON."""

    owner: Owner
    value: bytes


class SharedQueue(NamedTuple):
    """The entries of a queue at one revision, in order of arrival."""

    revision: int
    entries: tuple[SharedEntry, ...]


def replaced(entry: bytes, field: str, text: str) -> bytes:
    """An entry's value, a JSON object, with ``text``, which is JSON, in the place of a field."""
    head, rest = json.loads(entry), {field: json.loads(text)}
    return json.dumps({**head, **rest}).encode()


async def read(session: SessionCore, name: str, kind: Kind) -> SharedQueue:
    """The queue of a name, as etcd has it now."""
    kvs, revision = await read_queues(session, session.layout.queue(name, kind), kind)
    return _queue(revision, kvs)


async def follow(session: SessionCore, name: str, kind: Kind) -> AsyncGenerator[SharedQueue, None]:
    """The queue of a name now, and after each revision that changes it, with none left out.

    After a break during which etcd compacted its history, the queue is read again. Raises ``SessionLost`` when the
    session is over.
    """
    prefix = session.layout.queue(name, kind)
    known: dict[bytes, KV] = {}
    revision = 0
    async with aclosing(notices(session, WatchRequest(prefix, prefix_end(prefix)))) as told:
        async for notice in told:
            if isinstance(notice, Changed):
                for changed, events in _after(notice.events, revision):
                    _apply(known, events)
                    revision = changed
                    yield _queue(revision, known.values())
            elif not revision or notice.gap:
                kvs, revision = await read_queues(session, prefix, kind)
                known = {kv.key: kv for kv in kvs}
                yield _queue(revision, kvs)


def _after(events: Iterable[Event], revision: int) -> Iterator[tuple[int, list[Event]]]:
    """The events after ``revision``, by their own."""
    for changed, together in groupby(events, key=lambda event: event.kv.mod_revision):
        if changed > revision:
            yield changed, list(together)


def _apply(known: dict[bytes, KV], events: Iterable[Event]) -> None:
    for event in events:
        if event.deleted:
            known.pop(event.kv.key, None)
        elif is_entry(event.kv):
            known[event.kv.key] = event.kv


def _queue(revision: int, kvs: Iterable[KV]) -> SharedQueue:
    ordered = sorted((kv for kv in kvs if is_entry(kv)), key=by_age)
    return SharedQueue(
        revision,
        tuple(
            SharedEntry(Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease), kv.value) for kv in ordered
        ),
    )
