"""``LockManager``: locks by name, everybody's locks in view, and the operator's ways to intervene."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.claim import Claim, check_timeout
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.hold import Hold, OnLoss
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.locks import DistributedLock
from codomyrmex.concurrency.models import LockEvent, LockInfo, LockStats, Owner
from codomyrmex.concurrency.queue import observe
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.queue.rules import Rule, exclusive
from codomyrmex.concurrency.queue.rules import shared as shared_rule
from codomyrmex.concurrency.queue.terms import Terms
from codomyrmex.concurrency.session import Session, ready

MAX_TOGETHER = 60  # each name takes two of the 128 operations that etcd allows a transaction


class _Acquisition:
    """One acquisition to come; good for one use."""

    def __init__(self, manager: LockManager, claim: Claim, rule: Rule, timeout: float | None) -> None:
        self._manager = manager
        self._claim = claim
        self._rule = rule
        self._timeout = timeout
        self._hold: Hold | None = None

    async def _acquire(self) -> Hold:
        self._hold = await self._claim.attempt(self._rule, self._timeout)
        self._manager._got(self._hold)
        return self._hold

    async def _enter(self) -> Hold:
        hold = await self._acquire()
        hold.protect()
        return hold

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold
        for grant in self._hold.grants:
            self._manager._forget(grant)
        await self._hold.leave(kind, error)


class Acquisition(_Acquisition):
    """What ``LockManager.acquire`` returns: await it for a grant, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, Grant]:
        return self._first().__await__()

    async def _first(self) -> Grant:
        return (await self._acquire()).grants[0]

    async def __aenter__(self) -> Grant:
        return (await self._enter()).grants[0]


class JointAcquisition(_Acquisition):
    """What ``LockManager.acquire_all`` returns: await it for the grants, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, tuple[Grant, ...]]:
        return self._all().__await__()

    async def _all(self) -> tuple[Grant, ...]:
        return tuple((await self._acquire()).grants)

    async def __aenter__(self) -> tuple[Grant, ...]:
        return tuple((await self._enter()).grants)


class LockManager:
    """Locks by name on one session, the process's default one when left out.

    Unlike a ``DistributedLock`` it is not bound to a name, sees all locks of the namespace, and keeps count.
    """

    def __init__(self, session: Session | None = None) -> None:
        self._session = session
        self._locks: dict[str, DistributedLock] = {}
        self._names: set[str] = set()
        self._grants: set[Grant] = set()
        self._acquisitions = self._releases = self._contended = 0

    def acquire(
        self,
        name: str,
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
    ) -> Acquisition:
        """Acquire ``name``: ``async with manager.acquire(name) as grant``, or ``grant = await
        manager.acquire(name)`` and later ``await manager.release(grant)``.

        ``shared``: as a reader. Readers hold together, a writer alone, and all in order of arrival: a reader that comes
        after a waiting writer waits for it, so that neither starves. Each has a token of its own. The other arguments
        and the errors are those of ``DistributedLock``.
        """
        check_timeout(timeout)
        claim = Claim(self._session, LOCK, (check_name(name),), on_loss, metadata, Terms.checked(max_hold, lock_delay))
        return Acquisition(self, claim, shared_rule if shared else exclusive, timeout)

    def acquire_all(
        self,
        names: Iterable[str],
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
    ) -> JointAcquisition:
        """Acquire all of up to 60 ``names`` or none: ``async with manager.acquire_all([a, b]) as grants``.

        One transaction joins all the queues, so two such acquisitions never wait for each other, whatever the order of
        their names. The grants come in the order of the names; a name given twice counts once, and no names at all are
        granted at once. If one is lost, all are. ``shared``: as a reader of each. Raises ``ValueError`` for more than
        60 names, else as ``acquire``.
        """
        check_timeout(timeout)
        if isinstance(names, str):
            raise TypeError(f"acquire_all takes several names, not one str; did you mean acquire({names!r})?")
        distinct = tuple(dict.fromkeys(check_name(name) for name in names))
        if len(distinct) > MAX_TOGETHER:
            raise ValueError(f"at most {MAX_TOGETHER} names fit one transaction; {len(distinct)} were given")
        claim = Claim(self._session, LOCK, distinct, on_loss, metadata, Terms.checked(max_hold, lock_delay))
        return JointAcquisition(self, claim, shared_rule if shared else exclusive, timeout)

    async def release(self, grant: Grant) -> None:
        """Release a grant of this manager; does nothing if it was lost, raises ``NotHeld`` if it is not held. An
        ``EtcdError`` means, as with ``DistributedLock``, that etcd has not confirmed it yet."""
        if not self._forget(grant):
            raise NotHeld(f"{grant.name!r} with token {grant.token} is not held through this manager")
        await grant._entry.release()

    def lock(self, name: str) -> DistributedLock:
        """The ``DistributedLock`` of ``name`` on this manager's session; the same object each time."""
        name = check_name(name)
        if name not in self._locks:
            self._locks[name] = DistributedLock(name, self._session)
        return self._locks[name]

    async def locks(self, prefix: str = "") -> list[LockInfo]:
        """Every lock that is held or waited for and whose name starts with ``prefix``, by name."""
        return await observe.locks(await ready(self._session), prefix)

    async def info(self, name: str) -> LockInfo | None:
        """Holders and waiters of one lock, or None if there are none."""
        return await observe.info(await ready(self._session), name)

    async def watch(self, prefix: str = "") -> AsyncIterator[LockEvent]:
        """Follow every step of every lock whose name starts with ``prefix``, beginning with what is there now."""
        async for event in observe.watch(await ready(self._session), prefix):
            yield event

    async def force_release(self, name: str, *, reason: str, token: int | None = None) -> Owner:
        """Take the lock away from its holder and return who that was.

        The holder is told (its block is cancelled, its fenced writes are refused), the next waiter is granted, and
        ``reason`` is recorded with your user name. With ``token`` only the holder with that token is released.
        Raises ``NotHeld`` if nobody holds it, or somebody else by now.
        """
        return await observe.force_release(await ready(self._session), name, reason, token)

    def stats(self) -> LockStats:
        """Counters since this manager was made; ``total_locks`` is the number of distinct names acquired."""
        return LockStats(
            total_locks=len(self._names),
            total_acquisitions=self._acquisitions,
            total_releases=self._releases,
            active_locks=sum(grant.deadline() > 0 for grant in self._grants),
            lock_contention=self._contended,
        )

    def _got(self, hold: Hold) -> None:
        for entry, grant in zip(hold.entries, hold.grants, strict=True):
            self._contended += entry.contended
            self._names.add(grant.name)
            self._acquisitions += 1
            self._grants.add(grant)

    def _forget(self, grant: Grant) -> bool:
        known = grant in self._grants
        self._grants.discard(grant)
        self._releases += known
        return known
