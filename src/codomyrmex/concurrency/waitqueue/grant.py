"""``Grant``, which a holder is given: the fencing token, the time left, and writes that commit only while it holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from codomyrmex.concurrency import clock, telemetry
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
from codomyrmex.concurrency.waitqueue.fenced import check_keys, in_bytes, run_fenced
from codomyrmex.concurrency.waitqueue.progress import check_note
from codomyrmex.concurrency.waitqueue.rules import Overlap


class Grant:
    """A granted lock.

    ``token`` is the fencing token: it strictly increases with every grant of the name, across processes, restarts and
    sessions. ``waited`` is in seconds. Keys and values of the fenced writes are ``bytes`` or ``str`` (UTF-8), and
    keys are etcd's own, not relative to the namespace; those under ``/<namespace>/v1/`` are the library's and refused.
    Each fenced call raises ``FencedWriteRejected`` when the grant no longer holds, and then nothing was written;
    ``EtcdUnavailable`` says in ``applied`` whether it may have been.
    """

    __slots__ = ("_acquired_at", "_entry", "_waited")

    def __init__(self, entry: Entry, waited: float) -> None:
        self._entry = entry
        self._waited = waited
        self._acquired_at = datetime.now(UTC)

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._entry.queue_ref.name

    @property
    def token(self) -> int:
        """The fencing token."""
        return self._entry.token

    @property
    def key(self) -> str:
        """The key of the holder's entry in etcd."""
        return self._entry.key.decode()

    @property
    def acquired_at(self) -> datetime:
        """The time of the grant, in UTC."""
        return self._acquired_at

    @property
    def waited(self) -> float:
        """The seconds for which the acquisition waited."""
        return self._waited

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

    async def progress(self, note: str = "") -> None:
        """Report progress, so that ``max_idle`` counts anew from this call, for all grants that were acquired together.

        ``note`` is text for people, shown with the holder, of at most 4 KiB in UTF-8. Without one the last note stays.
        It costs one write, and returns when etcd has confirmed it. Raises ``FencedWriteRejected``, as a fenced write
        does, when the grant no longer holds; an ``EtcdError`` if etcd does not confirm it in time, and then it does not
        count; ``TypeError`` or ``ValueError`` for another note.
        """
        check_note(note)
        self._entry.check_here()
        await _report(self._entry, note)

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


async def put_again(entry: Entry, value: bytes) -> None:
    """Put the entry of a holder again, with another ``value``. It counts as a report of progress, and raises as that
    does. After an error a later report does not carry ``value``."""
    entry.check_here()
    former, entry.value = entry.value, value
    try:
        await _report(entry, "")
    except BaseException:
        if entry.value is value:
            entry.value = former
        raise


async def _report(entry: Entry, note: str) -> None:
    """Report progress for ``entry`` and for the entries that are held together with it."""
    sent_at = clock.now()
    while True:
        if entry.state is not State.HELD:
            raise _rejected(entry) from entry.lost.reason
        together = entry.held_together()
        try:
            if await _reported(together, note):
                break
        except SessionLost as error:
            raise _rejected(entry) from error
    for one in together:
        one.progressed(sent_at)
    if entry.is_lost:  # it was lost before the answer came
        raise _rejected(entry, "this progress does not count") from entry.lost.reason


async def _reported(entries: Sequence[Entry], note: str) -> bool:
    """Report the progress of entries in one transaction; False if one of them is gone."""
    puts = [one.report_progress(note) for one in entries]
    request = Request(
        [one.key for one in entries],
        puts,
        compares=[Compare(one.key, Target.CREATE_REVISION, one.token) for one in entries],
        otherwise=[Get(one.key) for one in entries],
        again=(),
        alone=True,
        size=sum(len(put.value) for put in puts),
    )
    reply = await entries[0].session.committer.commit(request)
    if not reply.succeeded:
        for one, own in zip(entries, reply.results, strict=True):
            assert isinstance(own, GetResult)
            if not any(kv.create_revision == one.token for kv in own.kvs):
                one.key_deleted()  # unless it was released meanwhile
    return reply.succeeded


def _rejected(entry: Entry, outcome: str = "nothing was written") -> FencedWriteRejected:
    name = entry.queue_ref.name
    if telemetry.observers:
        telemetry.tell("write_rejected", entry.queue_ref.what, name)
    return FencedWriteRejected(f"{name!r} is no longer held with token {entry.token}; {outcome}")
