"""The entries of a reservation in etcd: how they are read, put again, and removed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.detach import lease_put, left_puts
from codomyrmex.concurrency.waitqueue.early_lease import TakenLease
from codomyrmex.concurrency.waitqueue.fenced import still_there


class Reading(NamedTuple):
    """The entries of a reservation that are there at one revision, and the lease of the note that it leaves; 0 if it
    leaves none."""

    entries: list[KV]
    left_lease: int

    @property
    def lease(self) -> int:
        """The lease of the entries; 0 if none is there."""
        return self.entries[0].lease if self.entries else 0

    @property
    def leases(self) -> tuple[int, int]:
        """Both leases."""
        return self.lease, self.left_lease


def leases_in(reply: Reply) -> list[int]:
    """The leases that a removal has left without entries: that of the reservation, and that of its note."""
    return [kv.lease for one in reply.results[:2] if reply.succeeded and isinstance(one, GetResult) for kv in one.kvs]


async def read_entries(session: SessionCore, keys: Sequence[bytes], token: int) -> Reading:
    """Those of the entries with ``token`` that are under ``keys``."""
    gets = [Get(key) for key in (session.layout.left(keys[0]), *keys)]
    try:
        results = (await session.transport.txn((), gets)).results
    except EtcdError as error:
        if not error.retryable:
            raise
        results = (await session.transport.txn((), gets)).results  # a reading may be repeated
    left, *entries = [one.kvs for one in results if isinstance(one, GetResult)]
    alive = [kv for kvs in entries for kv in kvs if kv.create_revision == token]
    return Reading(alive, left[0].lease if left else 0)


def rewriting(
    session: SessionCore, entries: Sequence[KV], note: str, ttl: int, moved: TakenLease | None, left: int
) -> Request:
    """The request that puts ``entries`` again if they are as they were read: with ``note``, which is left on the lease
    ``left``, and on the lease ``moved`` if there is one."""
    changes: dict[str, Any] = {"note": note, "ttl": moved.ttl if moved else ttl}
    puts = [Put(kv.key, _with(kv.value, changes), moved.id if moved else kv.lease) for kv in entries]
    ops: list[Op] = [*puts]
    if note:
        ops += left_puts(session, puts, entries[0].create_revision, left)
    else:
        ops += [Delete(session.layout.left(kv.key)) for kv in entries]
    if moved:
        ops.append(lease_put(session, moved.id))
    keys = [kv.key for kv in entries]
    same = [Compare(kv.key, Target.MOD_REVISION, kv.mod_revision) for kv in entries]
    size = sum(len(put.value) for put in puts)
    return Request(keys, ops, compares=same, again=(), alone=True, size=size)


def removal(session: SessionCore, keys: Sequence[bytes], token: int) -> Request:
    """The request that deletes the entries and their notes. Its first two results are the first entry and its note."""
    deletes = [Delete(key) for entry in keys for key in (entry, session.layout.left(entry))]
    ops: list[Op] = [Get(keys[0]), Get(session.layout.left(keys[0])), *deletes]
    return Request(keys, ops, compares=still_there(keys, token), otherwise=[Get(key) for key in keys], alone=True)


def _with(value: bytes, changes: dict[str, Any]) -> bytes:
    """An entry's value with other fields. A report of progress comes with each."""
    try:
        record = json.loads(value)
    except ValueError:
        record = None
    known = record if isinstance(record, dict) else {}
    progress = known.get("progress", 0)
    counted = {"progress": progress + 1} if isinstance(progress, int) else {}
    return json.dumps({**known, **changes, **counted}).encode()
