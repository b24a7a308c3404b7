"""Looking at queues from outside: who holds, who waits, what changes; and releasing by force."""

from __future__ import annotations

import getpass
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.errors import EtcdQuotaExceeded, NotHeld
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import (
    KV,
    Compare,
    Delete,
    Event,
    Get,
    GetResult,
    Put,
    Target,
    WatchRequest,
)
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import (
    LOCK,
    SEMAPHORE,
    Kind,
    Layout,
    check_name,
    forms,
    next_key,
    nfc,
    prefix_end,
    session_of,
    starting_with,
)
from codomyrmex.concurrency.models import EventKind, ForcedRelease, LockEvent, LockInfo, Owner, SemaphoreInfo
from codomyrmex.concurrency.session import Session
from codomyrmex.concurrency.waitqueue.rules import holding
from codomyrmex.concurrency.waitqueue.view import is_entry, is_limit, limit_in, skip
from codomyrmex.concurrency.watching import notices

_PAGE = 1000


async def locks(session: Session, prefix: str = "") -> list[LockInfo]:
    """Every lock with a holder or a waiter whose name starts with ``prefix``, all at one revision, by name."""
    entries, _ = await _read_all(session, prefix, LOCK)
    return _infos(session.layout, entries, await _dead(session, entries))


async def info(session: Session, name: str) -> LockInfo | None:
    """One lock, with the record of its last forced release; None if nobody holds it or waits for it."""
    name, entries = await _read_one(session, name, LOCK)
    found = _infos(session.layout, entries, await _dead(session, entries))
    audit = await session.transport.get(Get(session.layout.audit(name)))
    record = ForcedRelease.decode(audit.kvs[0].value) if audit.kvs else None
    if not found:
        return None
    return LockInfo(name, found[0].holders, found[0].waiters, record)


async def semaphores(session: Session, prefix: str = "") -> list[SemaphoreInfo]:
    """Every semaphore whose name starts with ``prefix``, all at one revision, by name."""
    found, _ = await _read_all(session, prefix, SEMAPHORE)
    return [_semaphore(name, queue) for name, queue in queues_of(session.layout, found, SEMAPHORE).items()]


async def semaphore(session: Session, name: str) -> SemaphoreInfo:
    """One semaphore; without a limit if there is none of that name."""
    name, found = await _read_one(session, name, SEMAPHORE)
    return _semaphore(name, sorted(found, key=_by_age))


def _semaphore(name: str, queue: list[KV]) -> SemaphoreInfo:
    entries, limit = [kv for kv in queue if is_entry(kv)], limit_in(queue)
    owners, held = owners_of(entries), holding([kv.key for kv in entries], limit or 0)
    return SemaphoreInfo(name, limit, owners[:held], owners[held:])


async def force_release(session: Session, name: str, reason: str, token: int | None) -> Owner:
    """Delete the holder's entry and record who did it and why; see ``LockManager.force_release``."""
    if not reason.strip():
        raise ValueError("a forced release needs a reason, for those who find their lock gone")
    name, entries = await _read_one(session, name, LOCK)
    queue = sorted(entries, key=_by_age)
    holders = queue[: holding([kv.key for kv in queue])]
    if not holders:
        raise NotHeld(f"nobody holds the lock {name!r}")
    held = next((kv for kv in holders if token in (None, kv.create_revision)), None)
    if held is None:
        tokens = ", ".join(str(kv.create_revision) for kv in holders)
        raise NotHeld(f"the lock {name!r} is held with token {tokens} by now, not {token}; look again")
    (holder,) = owners_of([held])
    by = f"{_user()}@{session.host}"
    record = ForcedRelease(name, holder.token, decode.storable(reason), decode.storable(by), datetime.now(UTC))
    audit = Put(session.layout.audit(name), record.encode())
    try:
        reply = await _delete_entry(session, held.key, holder.token, (audit,))
    except EtcdQuotaExceeded:
        # A full database takes no record, but it must not keep a dead holder in place.
        reply = await _delete_entry(session, held.key, holder.token, ())
    if not reply.succeeded:
        raise NotHeld(f"the holder of {name!r} with token {holder.token} released it just now")
    return holder


async def _delete_entry(session: Session, key: bytes, token: int, puts: tuple[Put, ...]) -> Reply:
    same = Compare(key, Target.CREATE_REVISION, token)
    request = Request((key,), (Delete(key), *puts), compares=(same,), alone=True)
    return await session.committer.commit(request)


async def watch(session: Session, prefix: str = "") -> AsyncGenerator[LockEvent, None]:
    """Every step of every lock under ``prefix`` from now on, in etcd's order, none twice.

    After a break during which etcd compacted its history, the state is read again and what must have happened in
    between is told. Begins by telling what is there already.
    """
    layout = session.layout
    book = _Book(layout, prefix)
    request = WatchRequest(layout.leases, prefix_end(layout.under(LOCK)), previous=True)
    async with aclosing(notices(session, request)) as told:
        async for notice in told:
            if isinstance(notice, Changed):
                for event in book.changed(notice.events):
                    yield event
            elif not book.revision or notice.gap:
                entries, revision = await _read_all(session, prefix, LOCK)
                for event in book.read(entries, revision):
                    yield event


class _Book:
    """The queues as the watcher knows them, from which it can tell what each change means. Pure."""

    def __init__(self, layout: Layout, prefix: str) -> None:
        self._layout = layout
        self._prefixes = forms(prefix)
        self._queues: dict[str, dict[bytes, Owner]] = {}
        self._holders: set[bytes] = set()
        self._seen: dict[bytes, datetime] = {}  # when those that joined before our eyes did, by our clock
        self._longer: dict[bytes, int] = {}  # entries that outlive their session, by ``lock_delay``; and that session
        self._closed: set[bytes] = set()  # those that have
        self.revision = 0

    def read(self, entries: Iterable[KV], revision: int) -> list[LockEvent]:
        """The whole state was read: what is new has joined, what is missing was released unseen. Keys are used again,
        so one that is there in another life has left, too."""
        seen = {kv.key: kv for kv in entries}
        lives = {kv.key: kv.create_revision for kv in seen.values()}
        events = []
        for name, queue in list(self._queues.items()):
            for key in [key for key, owner in queue.items() if lives.get(key) != owner.token]:
                events += self._left(name, key, "released", revision, seen=False)
        for kv in sorted(seen.values(), key=_by_age):
            events += self._joined(kv, seen=False)
        self.revision = max(self.revision, revision)
        return events

    def changed(self, changes: Iterable[Event]) -> list[LockEvent]:
        events: list[LockEvent] = []
        by_revision: dict[int, list[Event]] = {}
        for change in changes:
            if change.kv.mod_revision > self.revision:
                by_revision.setdefault(change.kv.mod_revision, []).append(change)
        for revision, together in by_revision.items():
            # A lease's end deletes the session's key and its entries in one revision.
            ended = {self._layout.lease_of(c.kv.key) for c in together if c.deleted} - {None}
            for change in together:
                if not change.deleted:
                    events += self._joined(change.kv, seen=True)
                elif (name := self._layout.name_of(change.kv.key)) is not None:
                    lease = change.previous.lease if change.previous else 0
                    died = lease in ended or change.kv.key in self._closed
                    kind: EventKind = "expired" if died else "released"
                    events += self._left(name, change.kv.key, kind, revision, seen=True)
            self._closed |= {key for key, session in self._longer.items() if session in ended}
            self.revision = revision
        return events

    def _joined(self, kv: KV, *, seen: bool) -> list[LockEvent]:
        name = self._layout.name_of(kv.key)
        if name is None or not name.startswith(self._prefixes):
            return []
        if not kv.lease:
            skip(kv.key)
            return []
        queue = self._queues.setdefault(name, {})
        session = session_of(kv.key)
        if session and session != kv.lease:
            self._longer[kv.key] = session
        owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
        if kv.key in queue:
            if queue[kv.key].granted_at is None:  # its holder tells when that was
                queue[kv.key] = owner
            return []
        queue[kv.key] = owner
        if seen:
            self._seen[kv.key] = datetime.now(UTC)
        events = [self._event("enqueued", name, owner, kv.create_revision)]
        return events + self._granted(name, kv.create_revision, seen=seen)

    def _left(self, name: str, key: bytes, kind: EventKind, revision: int, *, seen: bool) -> list[LockEvent]:
        queue = self._queues.get(name, {})
        if key not in queue:
            return []
        events = [self._event(kind, name, queue.pop(key), revision)]
        self._holders.discard(key)
        self._closed.discard(key)
        self._longer.pop(key, None)
        self._seen.pop(key, None)
        if not queue:
            del self._queues[name]
        return events + self._granted(name, revision, seen=seen)

    def _granted(self, name: str, revision: int, *, seen: bool) -> list[LockEvent]:
        """The grants that follow from a change of the queue; ``seen``: they happened just now."""
        queue = self._queues.get(name, {})
        keys = list(queue)
        new = [key for key in keys[: holding(keys)] if key not in self._holders]
        self._holders.update(new)
        if seen:
            now = datetime.now(UTC)
            for key in new:
                joined = self._seen.get(key)
                waited = (now - joined).total_seconds() if joined else queue[key].waited
                queue[key] = replace(queue[key], granted_at=now, waited=waited)
        return [self._event("granted", name, queue[key], revision) for key in new]

    @staticmethod
    def _event(kind: EventKind, name: str, owner: Owner, revision: int) -> LockEvent:
        return LockEvent(kind, name, owner, revision, datetime.now(UTC))


async def _read_one(session: Session, name: str, kind: Kind) -> tuple[str, list[KV]]:
    """The queue of a name, under the form given, which an earlier release may have left, else under another."""
    check_name(name)
    for form in dict.fromkeys((name, *forms(name))):
        entries, _ = await read_queues(session, session.layout.queue(form, kind), kind)
        if entries:
            return form, entries
    return nfc(name), []


async def _read_all(session: Session, prefix: str, kind: Kind) -> tuple[list[KV], int]:
    """Every queue whose name starts with ``prefix``, in any form, at one revision."""
    entries: list[KV] = []
    revision = 0
    for form in forms(prefix):
        found, revision = await read_queues(session, starting_with(session.layout.under(kind), form), kind, revision)
        entries += found
    return entries, revision


async def read_queues(session: Session, prefix: bytes, kind: Kind = LOCK, revision: int = 0) -> tuple[list[KV], int]:
    """Every entry, and limit, under ``prefix`` at one revision, page by page."""
    start, end = prefix, prefix_end(prefix)
    entries: list[KV] = []
    while True:
        page: GetResult = await session.transport.get(Get(start, end, limit=_PAGE, revision=revision))
        revision = revision or page.revision
        for kv in page.kvs:
            known = is_entry(kv) or is_limit(kv)
            if known and session.layout.name_of(kv.key, kind) is not None:
                entries.append(kv)
            else:
                skip(kv.key)
        if len(page.kvs) < _PAGE:
            return entries, revision
        start = next_key(page.kvs[-1].key)


def queues_of(layout: Layout, entries: list[KV], kind: Kind = LOCK) -> dict[str, list[KV]]:
    """What was read, by name, in queue order."""
    queues: dict[str, list[KV]] = {}
    for kv in sorted(entries, key=_by_age):
        queues.setdefault(layout.name_of(kv.key, kind) or "", []).append(kv)
    return dict(sorted(queues.items()))


def owners_of(queue: list[KV]) -> tuple[Owner, ...]:
    return tuple(Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease) for kv in queue)


async def _dead(session: Session, entries: list[KV]) -> frozenset[int]:
    """The sessions that are over although entries of theirs are there, for the time of their ``lock_delay``."""
    longer = {owner for kv in entries if (owner := session_of(kv.key)) and owner != kv.lease}
    found = [(one, await session.transport.get(Get(session.layout.lease(one)))) for one in longer]
    return frozenset(one for one, answer in found if not answer.kvs)


def _infos(layout: Layout, entries: list[KV], dead: frozenset[int]) -> list[LockInfo]:
    lost = {f"{session:016x}" for session in dead}
    infos = []
    for name, queue in queues_of(layout, entries).items():
        held = holding([kv.key for kv in queue])
        owners = tuple(replace(one, lost=True) if one.session in lost else one for one in owners_of(queue))
        infos.append(LockInfo(name, owners[:held], owners[held:]))
    return infos


def _by_age(kv: KV) -> tuple[int, bytes]:
    return kv.create_revision, kv.key


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
