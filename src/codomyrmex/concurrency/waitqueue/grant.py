"""``Grant``, which a holder is given: the fencing token, the time left, and writes that commit only while it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import FencedWriteRejected, SessionLost
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import (
    Compare,
    Delete,
    Deleted,
    Get,
    GetResult,
    Op,
    Put,
    Target,
    TxnResult,
)
from codomyrmex.concurrency.loss import Loss
from codomyrmex.concurrency.waitqueue.entry import Entry, State
from codomyrmex.concurrency.waitqueue.rules import Overlap


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
    def paths(self) -> tuple[str, ...]:
        """The paths of a path lock, normalised, with globs widened to directories; empty for other locks."""
        rule = self._entry.rule
        return rule.scopes.paths if isinstance(rule, Overlap) else ()

    @property
    def tree(self) -> str:
        """The tree of a path lock, which is also its ``name``; empty for other locks."""
        return self.name if self.paths else ""

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
        result = await _fenced(self._entry, (Put(_bytes(key), _bytes(value)),))
        return result.revision

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if the grant still holds; None if there is none."""
        result = await _fenced(self._entry, (Get(_bytes(key)),))
        found = result.results[0]
        assert isinstance(found, GetResult)
        return found.kvs[0].value if found.kvs else None

    async def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if the grant still holds; returns whether it existed."""
        result = await _fenced(self._entry, (Delete(_bytes(key)),))
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
    _check_keys(entry, ops)
    if entry.state is not State.HELD:
        raise _rejected(entry) from entry.lost.reason
    holds = Compare(entry.key, Target.CREATE_REVISION, entry.token)
    request = Request((entry.key,), ops, compares=(holds, *compares), otherwise=(Get(entry.key),), alone=True)
    try:
        reply = await entry.session.committer.commit(request)
    except SessionLost as error:
        raise _rejected(entry) from error
    if reply.succeeded:
        return TxnResult(True, reply.revision, reply.results)
    own = reply.results[0]
    assert isinstance(own, GetResult)
    if not any(kv.create_revision == entry.token for kv in own.kvs):
        entry.key_deleted()
        raise _rejected(entry)
    return TxnResult(False, reply.revision, ())


def _check_keys(entry: Entry, ops: Sequence[Op]) -> None:
    layout = entry.session.layout
    for op in ops:
        end = op.end if isinstance(op, Delete) else b""
        if not isinstance(op, Get) and layout.is_ours(op.key, end):
            raise ValueError(f"{op.key!r} is among the library's own keys; write outside {layout.root!r}")


def _rejected(entry: Entry) -> FencedWriteRejected:
    name = entry.queue_ref.name
    if telemetry.observers:
        telemetry.tell("write_rejected", entry.queue_ref.what, name)
    return FencedWriteRejected(f"{name!r} is no longer held with token {entry.token}; nothing was written")


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"keys and values are str or bytes, not {type(text).__name__}")
    return text
