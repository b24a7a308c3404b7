"""Takes a lock or a term away from its holder, and records the user and the reason."""

from __future__ import annotations

import getpass
from contextlib import suppress
from datetime import UTC, datetime

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdQuotaExceeded, NotHeld
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Delete, Get, GetResult, Put, Target
from codomyrmex.concurrency.keys import LOCK, PATH, Kind
from codomyrmex.concurrency.models import ForcedRelease, Owner
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import by_age, is_reservation, owners_of, read_one
from codomyrmex.concurrency.waitqueue.view import held_in


async def force_release(session: SessionCore, name: str, reason: str, token: int | None, kind: Kind = LOCK) -> Owner:
    """Delete the holder's entry, and record the user and the reason; see ``LockManager.force_release``.

    ``kind`` is that of locks, paths or elections.
    """
    if not reason.strip():
        raise ValueError("a forced release needs a reason, for those who find their lock gone")
    if kind is PATH and token is None:
        raise ValueError("a tree may have many holders; name one of them by its token")
    name, entries = await read_one(session, name, kind)
    queue = sorted(entries, key=by_age)
    holding = [kv for kv, held in zip(queue, held_in(queue), strict=True) if held]
    if not holding:
        raise NotHeld(f"nobody holds the {kind.what} {name!r}")
    held = next((kv for kv in holding if token in (None, kv.create_revision)), None)
    if held is None:
        tokens = ", ".join(str(kv.create_revision) for kv in holding)
        raise NotHeld(f"the {kind.what} {name!r} is held with token {tokens} by now, not {token}; look again")
    (holder,) = owners_of([held])
    by = f"{_user()}@{session.host}"
    record = ForcedRelease(name, holder.token, decode.storable(reason), decode.storable(by), datetime.now(UTC))
    audit = Put(session.layout.audit(name, kind), record.encode())
    note = session.layout.left(held.key) if is_reservation(held) else b""
    try:
        reply = await _delete_entry(session, held.key, note, holder.token, (audit,))
    except EtcdQuotaExceeded:
        # A full database takes no record, but it must not keep a dead holder in place.
        reply = await _delete_entry(session, held.key, note, holder.token, ())
    if not reply.succeeded:
        raise NotHeld(f"the holder of {name!r} with token {holder.token} released it just now")
    if note:
        left = [kv.lease for one in reply.results if isinstance(one, GetResult) for kv in one.kvs]
        with suppress(ConcurrencyError):  # then the rest of the reservation ends when it is used, or by itself
            for lease in (held.lease, *left):
                await session.transport.revoke(lease)
    return holder


async def _delete_entry(session: SessionCore, key: bytes, note: bytes, token: int, puts: tuple[Put, ...]) -> Reply:
    """Delete an entry, and the ``note`` that its reservation would leave."""
    same = Compare(key, Target.CREATE_REVISION, token)
    ops = (Get(note), Delete(key), Delete(note)) if note else (Delete(key),)
    return await session.committer.commit(Request((key,), (*ops, *puts), compares=(same,), alone=True))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
