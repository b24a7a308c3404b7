"""``Reservation``: a hold on a lease of its own, which ends when it is released or when its time is over.

A reservation waits as a lock does, and is granted as a lock is. Then its entries move to a lease of their own
(``waitqueue/detach.py``), and the session is no longer concerned with them. Whoever has the handle renews, writes and
releases it, from any process. Every write compares the create revision of every entry: one lost, all lost.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.affinity import Home
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_number
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdUnavailable, InvalidHandle, LockLost, fresh
from codomyrmex.concurrency.etcd.commit import Reply
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
from codomyrmex.concurrency.keys import LOCK, PATH, is_reader, kind_and_name
from codomyrmex.concurrency.loss import Loss
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.recipes.handle import Handle
from codomyrmex.concurrency.recipes.reservation_end import explain_end
from codomyrmex.concurrency.recipes.reservation_entries import Reading, leases_in, read_entries, removal, rewriting
from codomyrmex.concurrency.records import LeftNote
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.detach import LEFT_FOR
from codomyrmex.concurrency.waitqueue.early_lease import EarlyLease
from codomyrmex.concurrency.waitqueue.fenced import check_keys, in_bytes, run_fenced
from codomyrmex.concurrency.waitqueue.lease_end import revoke
from codomyrmex.concurrency.waitqueue.progress import check_note

SHORTEST, LONGEST = 10, 24 * 3600  # seconds
_ATTEMPTS = 2  # of a release whose answer is lost
_REWRITES = 30  # attempts while other processes rewrite the same reservation


def check_ttl(ttl: float) -> int:
    """The TTL in whole seconds. Raises ``TypeError`` or ``ValueError`` for one that cannot be."""
    check_number("ttl", ttl)
    if not SHORTEST <= ttl <= LONGEST:
        raise ValueError(f"ttl must be from {SHORTEST} seconds to 24 hours ({LONGEST} seconds), not {ttl:g}")
    return math.ceil(ttl)


class Reservation(AsyncOnly):
    """Names and paths that are held until they are released or their time is over, whatever becomes of this process.

    It has no keepalive of its own: ``renew`` gives it its whole time again. Each call that finds it gone raises
    ``LockLost``, which says when it expired, if this process knows, and names the present holder. An ``EtcdError`` says
    nothing about the reservation: ask again.
    """

    def __init__(self, session: Session | None, handle: Handle) -> None:
        self._session = session
        self._handle = handle
        self._text = handle.encode()
        self._queues = [queue for key in handle.keys if (queue := kind_and_name(key))]
        self._lease = handle.lease
        self._ttl = handle.ttl
        self._until: float | None = None  # the time on ``clock`` at which it expires; None while that is not known
        self._note = ""
        self._paths: tuple[str, ...] = ()
        self._left: tuple[LeftNote, ...] = ()
        self._released = self._release_in_doubt = False
        self._lost = Loss(Home())
        self._keeping: asyncio.Task[None] | None = None

    @property
    def handle(self) -> str:
        """The text with which any process may renew, write under and release it. Keep it secret: it is a capability."""
        return self._text

    @property
    def token(self) -> int:
        """The fencing token, one for all names and paths: it is higher than that of every earlier holder of them."""
        return self._handle.token

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it holds, in the order in which they were given."""
        return tuple(name for kind, name in self._queues if kind is LOCK)

    @property
    def tree(self) -> str | None:
        """The tree of its paths; None if it holds no paths."""
        return next((name for kind, name in self._queues if kind is PATH), None)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that it holds, normalised. One opened from a handle knows them after ``check`` or ``renew``."""
        return self._paths

    @property
    def ttl(self) -> int:
        """The seconds that a renewal gives it."""
        return self._ttl

    @property
    def shared(self) -> bool:
        """True if it holds everything as a reader."""
        return all(is_reader(key) for key in self._handle.keys)

    @property
    def note(self) -> str:
        """Its last note. One opened from a handle knows it after ``check`` or ``renew``."""
        return self._note

    @property
    def left(self) -> str:
        """The note of a predecessor that expired without a release; empty if there is none, and for a reservation that
        was opened from a handle. Of several predecessors, a line each with its owner, the last one at the end."""
        if len(self._left) == 1:
            return self._left[0].note
        return "\n".join(f"{one.by}: {one.note}" for one in self._left)

    @property
    def left_by(self) -> str:
        """The owner who left that note, or all owners: the agent's name, else its host and pid; empty if there is
        none."""
        return ", ".join(dict.fromkeys(one.by for one in self._left))

    @property
    def lost(self) -> Loss:
        """An event, awaitable, that is set when a call of this object, or the renewal of ``keepalive=True``, finds it
        gone. Time alone does not set it: another process may have renewed it."""
        return self._lost

    def expires_in(self) -> float:
        """The seconds until it expires, counted from when the last answered renewal was sent; 0 if it has expired,
        and for one opened from a handle, until ``check`` or ``renew`` has asked etcd."""
        return 0.0 if self._until is None else max(0.0, self._until - clock.now())

    async def check(self) -> float:
        """Ask etcd if it is held, without renewing it; returns ``expires_in()``. Raises ``LockLost``."""
        core = await self._core()
        while True:
            lease, asked_at = self._lease, clock.now()
            left, found = await asyncio.gather(core.transport.time_to_live(lease), self._read(core))
            if not left:
                found = await self._read(core)  # it may have moved to another lease meanwhile
            self._learn(found)
            if found.lease == lease:
                break
        self._until = max(self._until or 0.0, asked_at + left)
        return self.expires_in()

    async def renew(self, note: str | None = None, ttl: float | None = None) -> float:
        """Give it its whole time again, from now; returns ``expires_in()``.

        ``note`` replaces its note; it has at most 4 KiB. ``ttl`` gives it another TTL, in seconds, from now on. The
        handle stays valid. Raises ``LockLost``.
        """
        if note is not None:
            check_note(note)
        longer = None if ttl is None else check_ttl(ttl)
        core = await self._core()
        found = await self._renew(core)
        if found.left_lease:
            _in_background(core, core.transport.keep_alive(found.left_lease))
        if note is not None or longer not in (None, self._ttl):
            await _to_its_end(core, self._rewrite(core, found, note, longer))
        if self._until is None:  # another process moved it to another lease meanwhile
            return await self.check()
        return self.expires_in()

    async def put(self, key: str | bytes, value: str | bytes) -> int:
        """Write ``value`` if it is still held; returns the revision written. Raises ``LockLost``, and then nothing was
        written."""
        return (await self._fenced((Put(in_bytes(key), in_bytes(value)),))).revision

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if it is still held; None if there is none. Raises ``LockLost``."""
        found = (await self._fenced((Get(in_bytes(key)),))).results[0]
        assert isinstance(found, GetResult)
        return found.kvs[0].value if found.kvs else None

    async def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if it is still held; returns whether the key existed. Raises ``LockLost``."""
        deleted = (await self._fenced((Delete(in_bytes(key)),))).results[0]
        assert isinstance(deleted, Deleted)
        return deleted.keys > 0

    async def txn(self, *ops: Op, compare: Sequence[Compare] = ()) -> TxnResult:
        """Run ``Put``, ``Get`` and ``Delete`` operations in one transaction if it is still held, as ``Grant.txn`` does.
        Raises ``LockLost``."""
        if not ops:
            raise ValueError("a transaction needs at least one Put, Get or Delete")
        return await self._fenced(ops, compare)

    async def release(self, note: str | None = None) -> None:
        """Give everything back, and return when etcd has confirmed it; does nothing if this object has released it.

        ``note`` is told with the events of ``LockManager.watch``. Raises ``LockLost`` if it was gone before, and
        ``EtcdError`` if etcd does not confirm in time; then call it again.
        """
        if note is not None:
            check_note(note)
        if not self._released:
            core = await self._core()
            await _to_its_end(core, self._release(core, note))

    def __repr__(self) -> str:
        named = ", ".join(map(repr, [*self.names, *self.paths])) or f"paths in the tree {self.tree!r}"
        state = "released" if self._released else "lost" if self._lost.is_set() else f"{self.expires_in():.0f} s left"
        return f"<Reservation of {named} with token {self.token}, {state}>"

    # For the code that makes it

    def _begun(self, asked_at: float, values: Sequence[bytes], left: Sequence[LeftNote]) -> None:
        """It was granted with these values of its entries, and its lease was asked for at ``asked_at``. ``left`` are
        the notes of predecessors, the newest last."""
        self._until = asked_at + self._ttl
        self._learn_from(values)
        self._left = tuple(left)

    def _keep_alive(self, core: SessionCore) -> None:
        """Renew it every third of its TTL, until it ends or the session does."""
        self._keeping = asyncio.create_task(self._keep_renewing())
        core.keep(self._keeping)

    async def _keep_renewing(self) -> None:
        pause = self._ttl / 3
        while not self._released:
            await asyncio.sleep(pause)
            try:
                await self.renew()
                pause = self._ttl / 3
            except LockLost:
                return  # ``lost`` tells it
            except ConcurrencyError as error:
                pause = min(1.0, self._ttl / 10)
                if not self.expires_in():
                    self._lost.tell(LockLost(f"{self._described()} was not renewed in time: {error}"))
                    return

    # The parts of its calls

    async def _core(self) -> SessionCore:
        if self._released:
            raise LockLost(f"{self._described()} was released by this object")
        core = await ready(self._session)
        if core.layout.namespace != self._handle.namespace:
            raise InvalidHandle(
                f"this handle is of the namespace {self._handle.namespace!r}, not of {core.layout.namespace!r}"
            )
        return core

    async def _renew(self, core: SessionCore) -> Reading:
        """Renew its lease. Another process may give it another TTL meanwhile, and with it another lease."""
        while True:
            lease, asked_at = self._lease, clock.now()
            left, found = await asyncio.gather(core.transport.keep_alive(lease), self._read(core))
            if not left:
                found = await self._read(core)
                if found.lease == lease:  # it has just ended, and its entries are about to be deleted
                    raise await self._gone(core)
            self._learn(found)
            if found.lease == lease:
                self._until, self._ttl = asked_at + left, left
                return found

    async def _read(self, core: SessionCore) -> Reading:
        """Its entries, all of them; raises ``LockLost`` if one is gone."""
        found = await read_entries(core, self._handle.keys, self.token)
        if len(found.entries) < len(self._handle.keys):
            raise await self._gone(core)
        return found

    def _learn(self, found: Reading) -> None:
        """Keep what its entries tell of it. With another lease it has another end, which is to be asked for."""
        if found.lease != self._lease:
            self._lease, self._until = found.lease, None
        self._learn_from([kv.value for kv in found.entries])

    def _learn_from(self, values: Sequence[bytes]) -> None:
        entries = zip(self._handle.keys, values, strict=True)
        owners = [Owner.from_entry(key, value, self.token, self._lease) for key, value in entries]
        self._note = owners[0].note
        self._ttl = owners[0].ttl or self._ttl
        self._paths = tuple(path for owner in owners for path in owner.paths)

    async def _rewrite(self, core: SessionCore, found: Reading, note: str | None, ttl: int | None) -> None:
        """Put its entries again, with another note, or on a lease of another TTL, which counts from now on.

        Another process may do the same at this moment. So its entries must be as they were read, or are read again: to
        put them on a lease that the other one is about to revoke would end the reservation.
        """
        moved = None if ttl in (None, self._ttl) else await EarlyLease(core, ttl or 0).ready()
        left_ttl = (moved.ttl if moved else self._ttl) + LEFT_FOR
        new_left = 0
        for attempt in range(1, _REWRITES + 1):
            text = self._note if note is None else note
            left = 0 if moved else found.left_lease
            if text and not left:
                left = new_left = new_left or (await core.transport.grant(left_ttl)).id
            try:
                reply = await core.committer.commit(rewriting(core, found.entries, text, self._ttl, moved, left))
            except EtcdError as error:
                again = await self._read(core)
                if error.applied != "no" or again.leases == found.leases or attempt == _REWRITES:
                    raise
            else:
                if reply.succeeded:
                    break
                again = await self._read(core)
                if attempt == _REWRITES:
                    raise EtcdUnavailable(f"other processes keep rewriting {self._described()}", retryable=True)
            self._learn(again)
            found = again
        self._note = text
        if moved:
            self._lease, self._ttl, self._until = moved.id, moved.ttl, moved.asked_at + moved.ttl
            self._revoke(core, found.lease)
        for unused in {found.left_lease, new_left} - {left if text else 0, 0}:
            revoke(core, unused)

    async def _fenced(self, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> TxnResult:
        core = await self._core()
        check_keys(core, ops)
        result = await run_fenced(core, self._handle.keys, self.token, ops, compares)
        if result is None:
            raise await self._gone(core)
        return result

    async def _release(self, core: SessionCore, note: str | None) -> None:
        if note:
            await self._rewrite(core, await self._read(core), note, None)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reply = await core.committer.commit(removal(core, self._handle.keys, self.token))
                break
            except EtcdError as error:
                self._release_in_doubt |= error.applied == "unknown"
                if error.applied != "unknown" or attempt == _ATTEMPTS:
                    raise
        if not reply.succeeded and not (self._release_in_doubt and _all_gone(reply)):
            raise await self._gone(core)
        self._released, self._until = True, None
        if self._keeping:
            self._keeping.cancel()
        for lease in leases_in(reply) or [self._lease]:
            self._revoke(core, lease)

    def _revoke(self, core: SessionCore, lease: int) -> None:
        """Revoke a lease that serves no more, in the background. If that fails, the lease ends by itself."""
        core.remover.remove(core.layout.lease(lease))
        revoke(core, lease)

    async def _gone(self, core: SessionCore) -> LockLost:
        """The error that says how it ended and by whom its names are held now. What is left of it is given up."""
        with suppress(ConcurrencyError):
            found = await read_entries(core, self._handle.keys, self.token)
            if len(found.entries) < len(self._handle.keys):
                self._lease = found.lease or self._lease
        self._revoke(core, self._lease)
        text = await explain_end(core, self._described(), self._handle.keys, self.token, self._until, self._paths)
        error = LockLost(text)
        self._lost.tell(error)
        return fresh(error)

    def _described(self) -> str:
        named = ", ".join(map(repr, self.names))
        tree = f"paths in the tree {self.tree!r}" if self.tree is not None else ""
        return f"the reservation of {' and '.join(filter(None, (named, tree)))} (token {self.token})"


def _all_gone(reply: Reply) -> bool:
    return not any(result.kvs for result in reply.results if isinstance(result, GetResult))


def _in_background(core: SessionCore, call: Coroutine[Any, Any, object]) -> None:
    """Make a call on a lease that does no harm if it fails: the lease ends by itself."""

    async def made() -> None:
        with suppress(ConcurrencyError):
            await call

    core.keep(asyncio.create_task(made()))


async def _to_its_end(core: SessionCore, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``, which goes on if the caller is cancelled, until the session ends."""
    task = asyncio.create_task(work)
    core.keep(task)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # its caller may be gone
    await asyncio.shield(task)
