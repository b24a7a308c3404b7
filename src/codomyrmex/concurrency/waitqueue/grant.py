"""What a holder is given: the fencing token, the time left, and writes that commit only while the grant holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from codomyrmex.concurrency.loss import Loss
    from codomyrmex.concurrency.waitqueue.entry import Entry


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
        await self._entry.release()

    async def put(self, key: str | bytes, value: str | bytes) -> int:
        """Write ``value`` if the grant still holds; returns the revision written."""
        result = await self._entry.fenced((Put(_bytes(key), _bytes(value)),))
        return result.revision

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if the grant still holds; None if there is none."""
        result = await self._entry.fenced((Get(_bytes(key)),))
        found = result.results[0]
        assert isinstance(found, GetResult)
        return found.kvs[0].value if found.kvs else None

    async def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if the grant still holds; returns whether it existed."""
        result = await self._entry.fenced((Delete(_bytes(key)),))
        deleted = result.results[0]
        assert isinstance(deleted, Deleted)
        return deleted.keys > 0

    async def txn(self, *ops: Op, compare: Sequence[Compare] = ()) -> TxnResult:
        """Run ``Put``, ``Get`` and ``Delete`` operations in one transaction, if the grant still holds.

        With ``compare``, they run only if these hold too; if not, the result's ``succeeded`` is False.
        """
        if not ops:
            raise ValueError("a transaction needs at least one Put, Get or Delete")
        return await self._entry.fenced(ops, compare)

    def __repr__(self) -> str:
        return f"<Grant of {self.name!r} with token {self.token}, {self._entry.describe()}>"

    def __del__(self) -> None:
        self._entry.forgotten()


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"keys and values are str or bytes, not {type(text).__name__}")
    return text
