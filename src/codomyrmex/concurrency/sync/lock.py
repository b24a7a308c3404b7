"""The blocking twins of ``Grant``, ``DistributedLock`` and ``LockManager``.

A thread cannot be cancelled: when a lock is lost, ``grant.lost`` is set at once, ``grant.check()`` raises, fenced
writes are refused, and ``LockLost`` is raised at the end of the block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal

from codomyrmex.concurrency.callsite import users_line
from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.errors import LockLost, NotHeld
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Op, TxnResult
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.models import LockEvent, LockInfo, LockStats, Owner
from codomyrmex.concurrency.recipes import manager as twin
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.recipes.hold import OnLoss as AsyncOnLoss
from codomyrmex.concurrency.session import ready
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Loss, Session, unwrapped
from codomyrmex.concurrency.waitqueue import grant as grants
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.entry import By
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import exclusive

OnLoss = Literal["raise", "notify"]
_RULES = (exclusive,)


def this_thread() -> By:
    """The requester: the calling thread, and the line of the user's code that it is at."""
    return By.of(threading.current_thread(), users_line())


def at_loss(on_loss: OnLoss) -> AsyncOnLoss:
    """What to tell the asyncio classes; raises ``ValueError`` for anything else."""
    if on_loss not in ("raise", "notify"):
        raise ValueError(f"on_loss must be 'raise' or 'notify' here, where no block can be cancelled, not {on_loss!r}")
    return "cancel" if on_loss == "raise" else "notify"


class Grant(BlockingOnly):
    """A granted lock: ``with grant: ...`` releases it at the block's end, or call ``release``.

    ``token`` is the fencing token; ``waited`` is in seconds. The fenced writes and their errors are those of
    ``codomyrmex.concurrency.Grant``.
    """

    def __init__(self, hold: Hold, grant: grants.Grant, forget: Callable[[], object] = lambda: None) -> None:
        self._hold = hold
        self._grant = grant
        self._forget = forget
        self.lost = Loss(grant.lost)

    @property
    def name(self) -> str:
        return self._grant.name

    @property
    def token(self) -> int:
        return self._grant.token

    @property
    def key(self) -> str:
        return self._grant.key

    @property
    def acquired_at(self) -> datetime:
        return self._grant.acquired_at

    @property
    def waited(self) -> float:
        return self._grant.waited

    def deadline(self) -> float:
        """Seconds left in which the holder may still trust the grant; 0 when it may not."""
        return self._grant.deadline()

    def check(self) -> None:
        """Raise ``LockLost`` if the grant can no longer be trusted; for use between the steps of long work."""
        if self._grant.lost.is_set() or self.deadline() <= 0:
            raise LockLost(f"{self.name!r} is no longer held with token {self.token}") from self.lost.reason

    def put(self, key: str | bytes, value: str | bytes) -> int:
        """Write ``value`` if the grant still holds; returns the revision written."""
        return portal().run(self._grant.put(key, value))

    def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if the grant still holds; None if there is none."""
        return portal().run(self._grant.get(key))

    def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if the grant still holds; returns whether it existed."""
        return portal().run(self._grant.delete(key))

    def txn(self, *ops: Op, compare: Sequence[Compare] = ()) -> TxnResult:
        """Run operations in one transaction, if the grant still holds."""
        return portal().run(self._grant.txn(*ops, compare=compare))

    def release(self) -> None:
        """Give the lock back; does nothing if it was lost or released before."""
        portal().run(self._release())

    async def _release(self) -> None:
        self._hold.check_here()
        self._forget()
        await self._hold.release()

    async def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._forget()
        await self._hold.leave(kind, error)

    def __enter__(self) -> Grant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._leave(kind, error))

    def __repr__(self) -> str:
        return repr(self._grant)


class Grants(BlockingOnly, list[Grant]):
    """Locks that were acquired together: ``with grants: ...`` releases them together."""

    def release(self) -> None:
        """Give all of them back."""
        if self:
            self[0].release()  # they are one hold

    def __enter__(self) -> Grants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self:
            self[0].__exit__(kind, error, trace)


class DistributedLock(BlockingOnly):
    """``codomyrmex.concurrency.DistributedLock`` for code without an event loop: ``with DistributedLock("x"): ...``.

    One object may be used by many threads at once; each releases its own grant. The arguments are those of the asyncio
    class, but for ``on_loss``: ``"raise"`` raises ``LockLost`` at the block's end, ``"notify"`` only sets
    ``grant.lost``.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "raise",
        metadata: dict[str, Any] | None = None,
        lock_delay: float = 0.0,
        max_hold: float | None = None,
    ) -> None:
        self._name = check_name(name)
        self._session = unwrapped(session)
        terms = HoldOptions.checked(max_hold, lock_delay)
        self._request = AcquireRequest(
            session=self._session,
            kind=LOCK,
            names=(self._name,),
            on_loss=at_loss(on_loss),
            metadata=metadata,
            options=terms,
        )
        self._held: list[tuple[int, Grant]] = []
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def held(self) -> bool:
        """Whether a thread of this process holds the lock through this object and may trust it."""
        return self.grant is not None

    @property
    def grant(self) -> Grant | None:
        """The grant held through this object, if any."""
        with self._guard:
            return next((grant for _, grant in self._held if grant.deadline() > 0), None)

    def acquire(self, timeout: float | None = None) -> Grant:
        """Wait for the lock and return the grant; ``timeout`` and errors as in the asyncio class."""
        return self._keep(portal().run(self._request.attempt(_RULES, timeout, this_thread()), Hold.release))

    def try_acquire(self) -> Grant | None:
        """The grant if the lock is free right now, else None. Never joins the queue."""
        hold = portal().run(self._request.attempt_now(_RULES, this_thread()), _release_if_any)
        return self._keep(hold) if hold else None

    def release(self) -> None:
        """Release the grant of the current thread if it has one, else the one held through this object.

        Does nothing for a lock that was lost; raises ``NotHeld`` if there is nothing to release.
        """
        self._latest().release()

    def info(self) -> LockInfo | None:
        """Who holds and who waits, as etcd has it; None if nobody does."""
        return portal().run(self._info())

    async def _info(self) -> LockInfo | None:
        return await inspect.info(await ready(self._session), self._name)

    def __enter__(self) -> Grant:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._latest().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<DistributedLock {self._name!r} {'held' if self.held else 'not held'}>"

    def _keep(self, hold: Hold) -> Grant:
        grant = Grant(hold, hold.grants[0], lambda: self._drop(hold))
        with self._guard:
            self._held.append((threading.get_ident(), grant))
        return grant

    def _latest(self) -> Grant:
        mine = threading.get_ident()
        with self._guard:
            if not self._held:
                raise NotHeld(f"the lock {self._name!r} is not held through this object")
            return next((grant for thread, grant in reversed(self._held) if thread == mine), self._held[-1][1])

    def _drop(self, hold: Hold) -> None:
        with self._guard:
            self._held = [held for held in self._held if held[1]._hold is not hold]


async def _release_if_any(hold: Hold | None) -> None:
    if hold:
        await hold.release()


class LockManager:
    """``codomyrmex.concurrency.LockManager`` for code without an event loop."""

    def __init__(self, session: Session | None = None) -> None:
        self._session = session
        self._manager = twin.LockManager(unwrapped(session))
        self._locks: dict[str, DistributedLock] = {}

    def acquire(
        self,
        name: str,
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "raise",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
    ) -> Grant:
        """Acquire ``name`` and return the grant: ``with manager.acquire(name) as grant``, or release it yourself."""
        wish = self._manager.acquire(name, timeout, shared, metadata, at_loss(on_loss), lock_delay, max_hold)
        return self._wrap(portal().run(wish._acquire(threading.current_thread()), self._undo))[0]

    def acquire_all(
        self,
        names: Iterable[str | twin.Shared],
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "raise",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
    ) -> Grants:
        """Acquire all of up to 60 ``names`` or none: ``with manager.acquire_all([a, b]) as grants``."""
        wish = self._manager.acquire_all(names, timeout, shared, metadata, at_loss(on_loss), lock_delay, max_hold)
        return self._wrap(portal().run(wish._acquire(threading.current_thread()), self._undo))

    def release(self, grant: Grant) -> None:
        """Release a grant of this manager; does nothing if it was lost, raises ``NotHeld`` if it is not held."""
        if not isinstance(grant, Grant):
            raise TypeError(
                f"release takes the Grant that acquire gave, not {type(grant).__name__}; "
                "a name is released by lock(name).release()"
            )
        portal().run(self._manager.release(grant._grant))

    def lock(self, name: str) -> DistributedLock:
        """The ``DistributedLock`` of ``name`` on this manager's session; the same object each time."""
        return self._locks.setdefault(check_name(name), DistributedLock(name, self._session))

    def locks(self, prefix: str = "") -> list[LockInfo]:
        """Every lock that is held or waited for and whose name starts with ``prefix``, by name."""
        return portal().run(self._manager.locks(prefix))

    def info(self, name: str) -> LockInfo | None:
        """Holders and waiters of one lock, or None if there are none."""
        return portal().run(self._manager.info(name))

    def watch(self, prefix: str = "") -> Iterator[LockEvent]:
        """Follow every step of every lock whose name starts with ``prefix``, beginning with what is there now."""
        return portal().iterate(self._watch(prefix))

    async def _watch(self, prefix: str) -> Any:
        async for event in self._manager.watch(prefix):
            yield event

    def force_release(self, name: str, *, reason: str, token: int | None = None) -> Owner:
        """Take the lock away from its holder and return who that was."""
        return portal().run(self._manager.force_release(name, reason=reason, token=token))

    def stats(self) -> LockStats:
        """Counters since this manager was made."""
        return self._manager.stats()

    def _wrap(self, hold: Hold) -> Grants:
        def forget() -> None:
            for entry in hold.entries:
                self._manager._forget(entry)

        return Grants(Grant(hold, grant, forget) for grant in hold.grants)

    async def _undo(self, hold: Hold) -> None:
        for entry in hold.entries:
            self._manager._forget(entry)
        await hold.release()
