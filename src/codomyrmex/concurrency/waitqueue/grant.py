"""``Grant``, which a holder is given: the fencing token, the time left, and writes that commit only while it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import FencedWriteRejected, SessionLost
from codomyrmex.concurrency.etcd.transports.protocol import (
    Compare,
    Delete,
    Deleted,
    Get,
    GetResult,
    Op,
    Put,
    TxnResult,
)
from codomyrmex.concurrency.loss import Loss
from codomyrmex.concurrency.waitqueue.entry import Entry, State
from codomyrmex.concurrency.waitqueue.fenced import check_keys, in_bytes, run_fenced


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Grant:
    """A granted lock.

    ``token`` is the fencing token: it strictly increases with every grant of the name, across processes, restarts and
    sessions. ``waited`` is in seconds. Keys and values of the fenced writes are ``bytes`` or ``str`` (UTF-8), and
    keys are etcd's own, not relative to the namespace; those under ``/<namespace>/v1/`` are the library's and refused.
    Each fenced call raises ``FencedWriteRejected`` when the grant no longer holds, and then nothing was written;
    ``EtcdUnavailable`` says in ``applied`` whether it may have been.
    """

    name: str
    token: int
    key: str
    acquired_at: datetime
    waited: float
    _entry: Entry

    @property
    def lost(self) -> Loss:
        """An event, awaitable, that is set when the grant can no longer be trusted."""
        return self._entry.lost

    def deadline(self) -> float:
        """Seconds left in which the holder may still trust the grant; 0 when it may not."""
        return self._entry.remaining()

    async def release(self) -> None:
        """Give the lock back; does nothing if it was lost or released before. Of several that were acquired together it
        gives back this one. An ``EtcdError`` means, as with ``DistributedLock``, that etcd has not confirmed it yet."""
        self._entry.check_here()
        await self._entry.release()

    async def put(self, key: str | bytes, value: str | bytes) -> int:
        """Write ``value`` if the grant still holds; returns the revision written."""
        result = await _fenced(self._entry, (Put(in_bytes(key), in_bytes(value)),))
        return result.revision

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if the grant still holds; None if there is none."""
        result = await _fenced(self._entry, (Get(in_bytes(key)),))
        found = result.results[0]
        assert isinstance(found, GetResult)
        return found.kvs[0].value if found.kvs else None

    async def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if the grant still holds; returns whether it existed."""
        result = await _fenced(self._entry, (Delete(in_bytes(key)),))
        deleted = result.results[0]
        assert isinstance(deleted, Deleted)
        return deleted.keys > 0

    async def txn(self, *ops: Op, compare: Sequence[Compare] = ()) -> TxnResult:
        """Run ``Put``, ``Get`` and ``Delete`` operations in one transaction, if the grant still holds.

        With ``compare``, they run only if these hold too; if not, the result's ``succeeded`` is False.
        """
        if not ops:
            raise ValueError("a transaction needs at least one Put, Get or Delete")
        return await _fenced(self._entry, ops, compare)

    def __repr__(self) -> str:
        return f"<Grant of {self.name!r} with token {self.token}, {self._entry.describe()}>"

    def __del__(self) -> None:
        self._entry.dropped()


async def _fenced(entry: Entry, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> TxnResult:
    """Run ``ops`` in a transaction that commits only if ``entry`` still holds."""
    entry.check_here()
    check_keys(entry.session, ops)
    if entry.state is not State.HELD:
        raise _rejected(entry) from entry.lost.reason
    try:
        result = await run_fenced(entry.session, (entry.key,), entry.token, ops, compares)
    except SessionLost as error:
        raise _rejected(entry) from error
    if result is None:
        entry.key_deleted()
        raise _rejected(entry)
    return result


def _rejected(entry: Entry) -> FencedWriteRejected:
    name = entry.queue_ref.name
    if telemetry.observers:
        telemetry.tell("write_rejected", entry.queue_ref.what, name)
    return FencedWriteRejected(f"{name!r} is no longer held with token {entry.token}; nothing was written")
