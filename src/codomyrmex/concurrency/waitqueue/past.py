"""Reads the past of a queue from etcd: every change since the last compaction, up to now.

A marker tells when all is read: the key of a lease that is taken for this, which lies among the keys that are watched.
When its put comes, every earlier change has come. Progress notifications cannot tell that, for some releases of etcd
send them ahead of events.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd.scan import pages
from codomyrmex.concurrency.etcd.transports.failures import COMPACTED
from codomyrmex.concurrency.etcd.transports.protocol import KV, Event, Get, Put, WatchMessage, WatchRequest
from codomyrmex.concurrency.etcd.watch import receive
from codomyrmex.concurrency.keys import PATH, check_name, prefix_end, session_of
from codomyrmex.concurrency.models import ForcedRelease, History, QueueKind
from codomyrmex.concurrency.records import LeaseRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import KINDS
from codomyrmex.concurrency.waitqueue.lease_end import revoke
from codomyrmex.concurrency.waitqueue.replay import Replay

_MARKER_TTL = 60  # seconds, after which a marker ends whose reader has died
_TRIES = 5  # of a reading that meets compactions
# Revisions of its past that etcd looks through in a second at least. It is silent about those of other keys. (It takes
# 1,000 every 100 ms.)
_PACE = 2000


class _Base(NamedTuple):
    """The history begins at ``revision``, with these entries. ``ended`` are sessions of theirs that were over."""

    revision: int
    kvs: Sequence[KV]
    ended: Sequence[int]


class Past(NamedTuple):
    """A history, which begins before the time ``begins_before``; None if that is unknown."""

    history: History
    begins_before: datetime | None


async def history(session: SessionCore, name: str, kind: QueueKind = "lock") -> History:
    """The past of a lock or a tree; see ``LockManager.history``."""
    return (await read(session, name, kind)).history


async def read(session: SessionCore, name: str, kind: QueueKind) -> Past:
    """The past of a lock or a tree, and a bound for the time of its beginning."""
    name, layout = check_name(name), session.layout
    replay, queue = Replay(layout, name, kind), layout.queue(name, KINDS[kind])
    lease = (await session.transport.grant(_MARKER_TTL)).id
    marker = Put(layout.lease(lease), LeaseRecord(session.host, os.getpid()).encode(), lease)
    try:
        now = (await session.transport.txn((), (marker,))).revision
        async with aclosing(_past(session, queue, now)) as told:
            async for part in told:
                if isinstance(part, _Base):
                    replay.begin(part.kvs, part.revision, part.ended)
                else:
                    replay.changed(part)
    finally:
        revoke(session, lease)
    forced = await _forced(session, layout.audit(name, KINDS[kind]), replay.begins_at)
    found = History(name, replay.begins_at, replay.holds(forced), replay.waits(), kind)
    return Past(found, replay.first_mark)


async def _past(session: SessionCore, queue: bytes, now: int) -> AsyncGenerator[_Base | Sequence[Event], None]:
    """The keys at the last compaction if there was one, then every change up to the revision ``now``, that of the
    marker."""
    request = WatchRequest(session.layout.leases, prefix_end(session.layout.under(PATH)), start=1)
    stream = await session.transport.watch()
    seen = 0
    try:
        await stream.create(request)
        for _ in range(_TRIES):
            compacted = 0
            while not compacted:
                patience = session.settings.request_timeout + (now - seen) / _PACE
                message = await _within(patience, receive(stream))
                if message.canceled and not message.compact_revision:
                    raise EtcdError(f"etcd refused a watch of its history: {message.reason}")
                compacted = message.compact_revision
                if message.events:
                    yield message.events
                    seen = message.events[-1].kv.mod_revision
                    if seen >= now:
                        return
            base = await _base(session, queue, compacted)
            if base:
                yield base
                seen = base.revision
                if base.revision >= now:
                    return
            await stream.create(request._replace(start=compacted + 1 if base else 1))
    finally:
        stream.close()
    raise EtcdError("etcd compacts its history faster than it can be read; try again", retryable=True)


async def _base(session: SessionCore, queue: bytes, revision: int) -> _Base | None:
    """The entries of the queue at the revision of the last compaction; None if there has been another one since."""
    transport, lease_key = session.transport, session.layout.lease
    try:
        kvs = [kv async for page in pages(transport, queue, revision=revision) for kv in page.kvs]
        delayed = {owner for kv in kvs if (owner := session_of(kv.key)) and owner != kv.lease}
        found = [(one, await transport.get(Get(lease_key(one), revision=revision))) for one in delayed]
    except EtcdError as error:
        if COMPACTED not in str(error):
            raise
        return None
    return _Base(revision, kvs, [one for one, answer in found if not answer.kvs])


async def _within(seconds: float, receiving: Coroutine[Any, Any, WatchMessage]) -> WatchMessage:
    try:
        async with asyncio.timeout(seconds):
            return await receiving
    except TimeoutError:
        raise EtcdUnavailable(f"etcd told nothing more of its history within {seconds:g} s", retryable=True) from None


async def _forced(session: SessionCore, audit: bytes, since: int) -> dict[int, ForcedRelease]:
    """The forced releases since a revision, by their own: the versions of the audit key, from the newest back."""
    found: dict[int, ForcedRelease] = {}
    revision = 0
    while kvs := await _version(session, audit, revision):
        if record := ForcedRelease.decode(kvs[0].value):
            found[kvs[0].mod_revision] = record
        revision = kvs[0].mod_revision - 1
        if kvs[0].version == 1 or revision < since:
            break
    return found


async def _version(session: SessionCore, key: bytes, revision: int) -> Sequence[KV]:
    """The key at a revision; nothing if etcd has compacted it."""
    try:
        return (await session.transport.get(Get(key, revision=revision))).kvs
    except EtcdError as error:
        if COMPACTED not in str(error):
            raise
        return ()
