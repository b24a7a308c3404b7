"""``LockManager``: locks by name, everybody's locks in view, and the operator's ways to intervene."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.models import LockEvent, LockInfo, LockStats, Owner
from codomyrmex.concurrency.recipes.acquire import Claim, check_session
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.lock import DistributedLock
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.entry import By, Entry
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import Rule, exclusive
from codomyrmex.concurrency.waitqueue.rules import shared as shared_rule

MAX_TOGETHER = 60  # each name takes two of the 128 operations that etcd allows a transaction


@dataclass(frozen=True, slots=True)
class Shared:
    """A name that ``acquire_all`` is to acquire as a reader."""

    name: str


class _Acquisition(AsyncOnly):
    """One acquisition to come; good for one use."""

    def __init__(self, manager: LockManager, claim: Claim, rules: Sequence[Rule], timeout: float | None) -> None:
        self._manager = manager
        self._claim = claim
        self._rules = rules
        self._timeout = timeout
        self._line = users_line()
        self._begun = False
        self._hold: Hold | None = None

    def _acquire(self, who: object = None) -> Coroutine[Any, Any, Hold]:
        """``who`` asks, if that is not the current task."""
        self._begun = True
        return self._acquired(who)

    async def _acquired(self, who: object) -> Hold:
        by = By.of(who or current_task(), self._line)
        self._hold = await self._claim.attempt(self._rules, self._timeout, by)
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
        for entry in self._hold.entries:
            self._manager._forget(entry)
        await self._hold.leave(kind, error)

    def __del__(self) -> None:
        if not self._begun:
            named = ", ".join(map(repr, self._claim.names))
            warn(self._line, f"the acquisition of {named} was never awaited: nothing was acquired", RuntimeWarning)


class Acquisition(_Acquisition):
    """What ``LockManager.acquire`` returns: await it for a grant, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, Grant]:
        self._begun = True
        return self._first().__await__()

    async def _first(self) -> Grant:
        return (await self._acquire()).grants[0]

    async def __aenter__(self) -> Grant:
        return (await self._enter()).grants[0]


class JointAcquisition(_Acquisition):
    """What ``LockManager.acquire_all`` returns: await it for the grants, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, tuple[Grant, ...]]:
        self._begun = True
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
        check_session(session)
        self._session = session
        self._locks: dict[str, DistributedLock] = {}
        self._names: set[str] = set()
        self._held: set[Entry] = set()  # not the grants: one that everybody else has dropped is to be told of
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
        claim = Claim(
            self._session, LOCK, (check_name(name),), on_loss, metadata, HoldOptions.checked(max_hold, lock_delay)
        )
        return Acquisition(self, claim, (shared_rule if shared else exclusive,), timeout)

    def acquire_all(
        self,
        names: Iterable[str | Shared],
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
        granted at once. If one is lost, all are. ``shared``: as a reader of each; ``Shared(name)`` among the names: as
        a reader of that one (a name that is given both ways is acquired alone). Raises ``ValueError`` for more than 60
        names, else as ``acquire``.
        """
        check_timeout(timeout)
        if isinstance(names, str):
            raise TypeError(f"acquire_all takes several names, not one str; did you mean acquire({names!r})?")
        rules = _rules(names, shared)
        if len(rules) > MAX_TOGETHER:
            raise ValueError(f"at most {MAX_TOGETHER} names fit one transaction; {len(rules)} were given")
        claim = Claim(self._session, LOCK, tuple(rules), on_loss, metadata, HoldOptions.checked(max_hold, lock_delay))
        return JointAcquisition(self, claim, tuple(rules.values()), timeout)

    async def release(self, grant: Grant) -> None:
        """Release a grant of this manager; does nothing if it was lost, raises ``NotHeld`` if it is not held. An
        ``EtcdError`` means, as with ``DistributedLock``, that etcd has not confirmed it yet."""
        if not isinstance(grant, Grant):
            raise TypeError(
                f"release takes the Grant that acquire gave, not {type(grant).__name__}; "
                "a name is released by lock(name).release()"
            )
        grant._entry.check_here()
        if not self._forget(grant._entry):
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
        return await inspect.locks(await ready(self._session), prefix)

    async def info(self, name: str) -> LockInfo | None:
        """Holders and waiters of one lock, or None if there are none."""
        return await inspect.info(await ready(self._session), name)

    async def watch(self, prefix: str = "") -> AsyncIterator[LockEvent]:
        """Follow every step of every lock whose name starts with ``prefix``, beginning with what is there now."""
        async for event in inspect.watch(await ready(self._session), prefix):
            yield event

    async def force_release(self, name: str, *, reason: str, token: int | None = None) -> Owner:
        """Take the lock away from its holder and return who that was.

        The holder is told (its block is cancelled, its fenced writes are refused), the next waiter is granted, and
        ``reason`` is recorded with your user name. With ``token`` only the holder with that token is released.
        Raises ``NotHeld`` if nobody holds it, or somebody else by now.
        """
        return await inspect.force_release(await ready(self._session), name, reason, token)

    def stats(self) -> LockStats:
        """Counters since this manager was made; ``total_locks`` is the number of distinct names acquired."""
        return LockStats(
            total_locks=len(self._names),
            total_acquisitions=self._acquisitions,
            total_releases=self._releases,
            active_locks=sum(entry.remaining() > 0 for entry in self._held),
            lock_contention=self._contended,
        )

    def _got(self, hold: Hold) -> None:
        for entry, grant in zip(hold.entries, hold.grants, strict=True):
            self._contended += entry.contended
            self._names.add(grant.name)
            self._acquisitions += 1
            self._held.add(entry)
            entry.on_release = self._forget

    def _forget(self, entry: Entry) -> bool:
        known = entry in self._held
        self._held.discard(entry)
        self._releases += known
        return known


def _rules(names: Iterable[str | Shared], shared: bool) -> dict[str, Rule]:
    """By which rule each name is to be acquired."""
    rules: dict[str, Rule] = {}
    for given in names:
        name = check_name(given.name if isinstance(given, Shared) else given)
        reads = (shared or isinstance(given, Shared)) and rules.get(name) is not exclusive
        rules[name] = shared_rule if reads else exclusive
    return rules
