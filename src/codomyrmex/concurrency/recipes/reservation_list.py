"""Lists the reservations of a namespace, with the time that etcd says they have left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from codomyrmex.concurrency import keys
from codomyrmex.concurrency.etcd.transports.protocol import KV
from codomyrmex.concurrency.keys import LOCK, PATH
from codomyrmex.concurrency.models import ReservationInfo
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import is_reservation, owners_of, read_queues

_AT_ONCE = 32  # calls


async def reservations(session: SessionCore, owner: str | None = None) -> list[ReservationInfo]:
    """All reservations that hold, or those of one ``owner``, the oldest first; all at one revision."""
    locks, revision = await read_queues(session, session.layout.under(LOCK), LOCK)
    paths, _ = await read_queues(session, session.layout.under(PATH), PATH, revision)
    together: dict[int, list[KV]] = {}
    for kv in [*locks, *paths]:
        together.setdefault(kv.lease, []).append(kv)
    found = {lease: entries for lease, entries in together.items() if is_reservation(entries[0])}
    wanted = {lease: kvs for lease, kvs in found.items() if owner in (None, owners_of(kvs)[0].agent)}
    room = asyncio.Semaphore(_AT_ONCE)

    async def told(lease: int, entries: Sequence[KV]) -> ReservationInfo:
        async with room:
            return _info(lease, entries, await session.transport.time_to_live(lease))

    infos = await asyncio.gather(*(told(lease, entries) for lease, entries in wanted.items()))
    return sorted(infos, key=lambda info: (info.token, info.names))


def _info(lease: int, entries: Sequence[KV], left: int) -> ReservationInfo:
    owners = owners_of(entries)
    queues = [queue for kv in entries if (queue := keys.kind_and_name(kv.key))]
    first = owners[0]
    return ReservationInfo(
        names=tuple(sorted(name for kind, name in queues if kind is LOCK)),
        paths=tuple(path for owner in owners for path in owner.paths),
        tree=next((name for kind, name in queues if kind is PATH), None),
        owner=first.agent,
        note=first.note,
        token=first.token,
        since=first.since,
        expires_in=float(left),
        ttl=first.ttl or 0,
        host=first.host,
        pid=first.pid,
        lease=f"{lease:016x}",
        shared=all(owner.shared for owner in owners),
        metadata=first.metadata,
        granted_at=first.granted_at,
    )
