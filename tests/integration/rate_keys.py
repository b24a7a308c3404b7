"""Reads for tests of rate limits: the keys that they have in etcd, and the leases of the whole server."""

from __future__ import annotations

from codomyrmex.concurrency import EmbeddedEtcd, Session
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get
from codomyrmex.concurrency.keys import RATE, prefix_end
from codomyrmex.concurrency.session import core_of
from tests.helpers import gateway


async def under(session: Session, prefix: bytes) -> list[KV]:
    """The keys under a prefix, in order of creation."""
    found = await core_of(session).transport.get(Get(prefix, prefix_end(prefix)))
    return sorted(found.kvs, key=lambda kv: (kv.create_revision, kv.key))


async def parts(session: Session) -> list[KV]:
    """The parts of slices that are in etcd, counted or waited for."""
    return [kv for kv in await under(session, core_of(session).layout.under(RATE)) if kv.lease]


async def pauses(session: Session) -> list[KV]:
    """The pauses that are in etcd."""
    return await under(session, core_of(session).layout.below("pause"))


async def nothing_left(session: Session) -> bool:
    """True if no rate limiter counts anything, is waited for, or is paused."""
    return not (await parts(session) or await pauses(session))


def leases(etcd: EmbeddedEtcd) -> set[str]:
    """The ids of all leases of the server."""
    return {lease["ID"] for lease in gateway(etcd.endpoint, "lease/leases").get("leases", [])}
