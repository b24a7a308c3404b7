"""Granted entries move from their session's lease to one of their own: they become a reservation.

One transaction moves all of them, so they keep one token and end together. It is fenced by the session, so a session
that is lost cannot move them any more. A ``EarlyLease`` is taken while the entries join, so that an uncontended
reservation takes two round trips.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import LockLost
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, GetResult, Op, Put
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.records import LeaseRecord, LeftNote
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.early_lease import EarlyLease, TakenLease
from codomyrmex.concurrency.waitqueue.entry import Entry
from codomyrmex.concurrency.waitqueue.fenced import still_there
from codomyrmex.concurrency.waitqueue.join import join_and_wait, withdraw
from codomyrmex.concurrency.waitqueue.lease_end import revoke
from codomyrmex.concurrency.waitqueue.rules import Overlap
from codomyrmex.concurrency.waitqueue.scopes import scopes_in

LEFT_FOR = 24 * 3600  # seconds for which a note is left after the reservation has expired


class Detached(NamedTuple):
    """A reservation that holds now: its lease, its entries, and the notes that predecessors left."""

    lease: TakenLease
    token: int
    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]
    left: tuple[LeftNote, ...]


async def detach(entries: Sequence[Entry], started: float, ttl: int, *, only_if_free: bool = False) -> Detached | None:
    """Join the queues, wait until each entry is granted, and move all of them to a lease of ``ttl`` seconds; None if
    ``only_if_free`` and one was not free.

    If this ends otherwise, by an error or a cancel, no key stays in etcd.
    """
    session = entries[0].session
    noted = bool(_owner(entries[0]).note)
    own, left = EarlyLease(session, ttl), EarlyLease(session, ttl + LEFT_FOR) if noted else None

    def let_go() -> None:
        for lease in filter(None, (own, left)):
            lease.let_go()

    moved = None
    try:
        if await join_and_wait(entries, only_if_free=only_if_free, waits=let_go):
            moved = await _move(entries, started, own, left)
        return moved
    finally:
        if moved is None:
            let_go()


async def _move(entries: Sequence[Entry], started: float, own: EarlyLease, left: EarlyLease | None) -> Detached:
    session, token = entries[0].session, entries[0].token
    keys = tuple(entry.key for entry in entries)
    try:
        lease, left_lease = await own.ready(), await left.ready() if left else None
        waited = clock.now() - started
        values = [_as_holder(entry.value, waited, lease.ttl) for entry in entries]
        puts = [Put(key, value, lease.id) for key, value in zip(keys, values, strict=True)]
        notes = [] if left_lease is None else left_puts(session, puts, token, left_lease.id)
        ranges = [session.layout.left(entry.queue_ref.queue) for entry in entries]
        found = [Get(prefix, prefix_end(prefix)) for prefix in ranges]
        ops: list[Op] = [*found, *puts, lease_put(session, lease.id), *notes]
        request = Request(
            keys, ops, compares=still_there(keys, token), again=(), alone=True, size=sum(map(len, values))
        )
        reply = await session.committer.commit(request)
        if not reply.succeeded:
            raise LockLost(f"the entry of {entries[0].queue_ref.name!r} in its queue was deleted by another client")
        for entry in entries:
            entry.raise_if_lost()
    except BaseException:
        withdraw(entries)
        raise
    for entry in entries:
        entry.detach(waited)
    results = [one for one in reply.results if isinstance(one, GetResult)]
    return Detached(lease, token, keys, tuple(values), _left(entries, results, token))


def lease_put(session: SessionCore, lease: int) -> Put:
    """The put of the key that ends with a reservation's lease, by which its end is told from a release."""
    record = LeaseRecord(session.host, os.getpid(), reservation=True)
    return Put(session.layout.lease(lease), record.encode(), lease)


def left_puts(session: SessionCore, puts: Sequence[Put], token: int, lease: int) -> list[Put]:
    """The puts of the note in each of ``puts``, which are those of entries, for the next holder of each queue."""
    notes = []
    for put in puts:
        one = Owner.from_entry(put.key, put.value, token, lease)
        note = LeftNote(one.note, one.agent, one.host, one.pid, token, one.paths, keys=len(puts))
        notes.append(Put(session.layout.left(put.key), note.encode(), lease))
    return notes


def _left(entries: Sequence[Entry], results: Sequence[GetResult], token: int) -> tuple[LeftNote, ...]:
    """The notes of predecessors that have expired, the oldest first. Their keys are removed: they are told once. So is
    the lease of a note that no other queue has."""
    session = entries[0].session
    found: dict[int, tuple[LeftNote, list[KV]]] = {}
    for entry, result in zip(entries, results, strict=True):
        alive = entry.turn.living_predecessors()
        for kv in result.kvs:
            left = LeftNote.decode(kv.value)
            if left and left.token < token and left.token not in alive and _concerns(entry, kv.value):
                found.setdefault(left.token, (left, []))[1].append(kv)
    for left, kvs in found.values():
        for kv in kvs:
            session.remover.remove(kv.key)
        if len(kvs) == left.keys:
            revoke(session, kvs[0].lease)
    return tuple(left for _, (left, _) in sorted(found.items()))


def _concerns(entry: Entry, left: bytes) -> bool:
    """False for a note that was left in other paths of a tree than those of ``entry``."""
    return not isinstance(entry.rule, Overlap) or entry.rule.scopes.overlaps(scopes_in(left))


def _owner(entry: Entry) -> Owner:
    return Owner.from_entry(entry.key, entry.value, 0, entry.lease)


def _as_holder(value: bytes, waited: float, ttl: int) -> bytes:
    """An entry's value with the seconds that it waited, and the TTL that marks a reservation that holds."""
    return f'{value[:-1].decode()},"waited":{waited:.3f},"ttl":{ttl}}}'.encode()
