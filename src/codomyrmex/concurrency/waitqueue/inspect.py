"""Lists queues with their holders and waiters, and follows the events of locks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

from codomyrmex.concurrency.etcd.scan import pages
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import (
    LOCK,
    PATH,
    SEMAPHORE,
    Kind,
    Layout,
    check_name,
    forms,
    nfc,
    prefix_end,
    session_of,
    starting_with,
)
from codomyrmex.concurrency.models import ForcedRelease, LockEvent, LockInfo, Owner, QueueKind, SemaphoreInfo
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.events import EventTracker
from codomyrmex.concurrency.waitqueue.view import held_in, is_entry, is_limit, limit_in, skip
from codomyrmex.concurrency.watching import notices

KINDS: dict[QueueKind, Kind] = {"lock": LOCK, "path": PATH}


async def locks(session: SessionCore, prefix: str = "") -> list[LockInfo]:
    """Every lock and tree with a holder or a waiter whose name starts with ``prefix``, all at one revision, by name."""
    entries, _ = await _read_locks(session, prefix)
    dead = await _dead(session, entries)
    found = [info for kind in KINDS for info in _infos(session.layout, entries, dead, kind)]
    return sorted(found, key=lambda info: info.name)


async def info(session: SessionCore, name: str, kind: QueueKind = "lock") -> LockInfo | None:
    """One lock or tree, with the record of its last forced release; None if it has no holder and no waiter."""
    name, entries = await read_one(session, name, KINDS[kind])
    found = _infos(session.layout, entries, await _dead(session, entries), kind)
    audit = await session.transport.get(Get(session.layout.audit(name, KINDS[kind])))
    record = ForcedRelease.decode(audit.kvs[0].value) if audit.kvs else None
    return replace(found[0], last_forced_release=record) if found else None


async def semaphores(session: SessionCore, prefix: str = "") -> list[SemaphoreInfo]:
    """Every semaphore whose name starts with ``prefix``, all at one revision, by name."""
    found, _ = await _read_all(session, prefix, SEMAPHORE)
    return [_semaphore(name, queue) for name, queue in queues_of(session.layout, found, SEMAPHORE).items()]


async def semaphore(session: SessionCore, name: str) -> SemaphoreInfo:
    """One semaphore; without a limit if it is not in etcd."""
    name, found = await read_one(session, name, SEMAPHORE)
    return _semaphore(name, sorted(found, key=by_age))


def _semaphore(name: str, queue: list[KV]) -> SemaphoreInfo:
    entries, limit = [kv for kv in queue if is_entry(kv)], limit_in(queue)
    return SemaphoreInfo(name, limit, *_divided(entries, owners_of(entries), limit or 0))


def _divided(
    queue: Sequence[KV], owners: Sequence[Owner], limit: int | None = None
) -> tuple[tuple[Owner, ...], tuple[Owner, ...]]:
    """The owners of a queue's entries: the holders, and the waiters."""
    pairs = list(zip(owners, held_in(queue, limit), strict=True))
    return tuple(one for one, holds in pairs if holds), tuple(one for one, holds in pairs if not holds)


async def watch(session: SessionCore, prefix: str = "") -> AsyncGenerator[LockEvent, None]:
    """Every step of every lock and path lock under ``prefix``, in etcd's order, none twice. The locks that exist come
    first.

    After a break during which etcd compacted its history, the queues are read again, and the events tell the steps that
    must have happened in between.
    """
    layout = session.layout
    tracker = EventTracker(layout, prefix, skip)
    request = WatchRequest(layout.leases, prefix_end(layout.under(PATH)), previous=True)
    async with aclosing(notices(session, request)) as told:
        async for notice in told:
            if isinstance(notice, Changed):
                for event in tracker.changed(notice.events, datetime.now(UTC)):
                    yield event
            elif not tracker.revision or notice.gap:
                entries, revision = await _read_locks(session, prefix)
                for event in tracker.read(entries, revision, datetime.now(UTC)):
                    yield event


async def read_one(session: SessionCore, name: str, kind: Kind) -> tuple[str, list[KV]]:
    """The queue of a name, in the form given, which an earlier release may have written, else in another form."""
    check_name(name)
    for form in dict.fromkeys((name, *forms(name))):
        entries, _ = await read_queues(session, session.layout.queue(form, kind), kind)
        if entries:
            return form, entries
    return nfc(name), []


async def _read_locks(session: SessionCore, prefix: str) -> tuple[list[KV], int]:
    """Every lock and tree whose name starts with ``prefix``, at one revision."""
    entries, revision = await _read_all(session, prefix, LOCK)
    in_trees, _ = await _read_all(session, prefix, PATH, revision)
    return entries + in_trees, revision


async def _read_all(session: SessionCore, prefix: str, kind: Kind, revision: int = 0) -> tuple[list[KV], int]:
    """Every queue whose name starts with ``prefix``, in any Unicode form, at one revision: the newest if it is 0."""
    entries: list[KV] = []
    for form in forms(prefix):
        found, revision = await read_queues(session, starting_with(session.layout.under(kind), form), kind, revision)
        entries += found
    return entries, revision


async def read_queues(
    session: SessionCore, prefix: bytes, kind: Kind = LOCK, revision: int = 0
) -> tuple[list[KV], int]:
    """Every entry and every limit under ``prefix``, and the one revision at which they were read."""
    entries: list[KV] = []
    async for page in pages(session.transport, prefix, revision=revision):
        revision = revision or page.revision
        for kv in page.kvs:
            known = is_entry(kv) or is_limit(kv)
            if known and session.layout.name_of(kv.key, kind) is not None:
                entries.append(kv)
            else:
                skip(kv.key)
    return entries, revision


def queues_of(layout: Layout, entries: list[KV], kind: Kind = LOCK) -> dict[str, list[KV]]:
    """The entries and limits of a reading that are in queues of a kind, by name, in queue order."""
    queues: dict[str, list[KV]] = {}
    for kv in sorted(entries, key=by_age):
        if (name := layout.name_of(kv.key, kind)) is not None:
            queues.setdefault(name, []).append(kv)
    return dict(sorted(queues.items()))


def owners_of(queue: Sequence[KV]) -> tuple[Owner, ...]:
    return tuple(Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease) for kv in queue)


def is_reservation(kv: KV) -> bool:
    """True for the entry of a reservation that holds: it is on a lease of its own, whatever becomes of the session."""
    session = session_of(kv.key)
    moved = session is not None and session != kv.lease
    return moved and owners_of([kv])[0].ttl is not None


async def _dead(session: SessionCore, entries: list[KV]) -> frozenset[int]:
    """The sessions that have ended although entries of theirs are left, for the time of their ``lock_delay``."""
    delayed = {
        owner for kv in entries if (owner := session_of(kv.key)) and owner != kv.lease and not is_reservation(kv)
    }
    found = [(one, await session.transport.get(Get(session.layout.lease(one)))) for one in delayed]
    return frozenset(one for one, answer in found if not answer.kvs)


def _infos(layout: Layout, entries: list[KV], dead: frozenset[int], kind: QueueKind) -> list[LockInfo]:
    lost = {f"{session:016x}" for session in dead}
    infos = []
    for name, queue in queues_of(layout, entries, KINDS[kind]).items():
        owners = [
            replace(one, lost=True) if one.session in lost and one.ttl is None else one for one in owners_of(queue)
        ]
        infos.append(LockInfo(name, *_divided(queue, owners), kind=kind))
    return infos


def by_age(kv: KV) -> tuple[int, bytes]:
    """The sort key of queue order."""
    return kv.create_revision, kv.key
