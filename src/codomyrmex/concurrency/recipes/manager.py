"""``LockManager``: acquires locks by name, shows all locks of the namespace, and lets an operator intervene."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.keys import LOCK, PATH, Kind, check_name
from codomyrmex.concurrency.models import History, LockEvent, LockInfo, LockStats, Owner, QueueKind, ReservationInfo
from codomyrmex.concurrency.recipes.acquire import AcquireRequest, OnDeadlock, check_session
from codomyrmex.concurrency.recipes.handle import Handle
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.lock import DistributedLock
from codomyrmex.concurrency.recipes.metadata import check_owner
from codomyrmex.concurrency.recipes.reservation import Reservation, check_ttl
from codomyrmex.concurrency.recipes.reservation_list import reservations
from codomyrmex.concurrency.recipes.reserving import Reserving
from codomyrmex.concurrency.session import Session, default_session, ready
from codomyrmex.concurrency.wait_graph import Waits
from codomyrmex.concurrency.waitqueue import inspect, past
from codomyrmex.concurrency.waitqueue.deadlocks import read_waits
from codomyrmex.concurrency.waitqueue.entry import Entry, Requester
from codomyrmex.concurrency.waitqueue.force_release import force_release
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import Overlap, Rule, exclusive
from codomyrmex.concurrency.waitqueue.rules import shared as shared_rule
from codomyrmex.concurrency.waitqueue.scopes import Scopes

MAX_RESERVED = 40  # each name takes three of them: its entry, its note, and the reading of notes
MAX_TOGETHER = 60  # each name takes two of the 128 operations that etcd allows a transaction


@dataclass(frozen=True, slots=True)
class Shared:
    """A name that ``acquire_all`` acquires as a reader."""

    name: str


class _Acquisition(AsyncOnly):
    """An acquisition that begins when it is awaited or entered, and can be used once."""

    def __init__(
        self, manager: LockManager, request: AcquireRequest, rules: Sequence[Rule], timeout: float | None
    ) -> None:
        self._manager = manager
        self._request = request
        self._rules = rules
        self._timeout = timeout
        self._line = users_line()
        self._begun = False
        self._hold: Hold | None = None

    def _acquire(self, who: object = None) -> Coroutine[Any, Any, Hold]:
        """``who`` is the requester if it is not the current task."""
        self._begun = True
        return self._acquired(who)

    async def _acquired(self, who: object) -> Hold:
        by = Requester.of(who or current_task(), self._line)
        self._hold = await self._request.attempt(self._rules, self._timeout, by)
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
            named = ", ".join(repr(name) for _, name in self._request.queues)
            warn(self._line, f"the acquisition of {named} was never awaited: nothing was acquired", RuntimeWarning)


class Acquisition(_Acquisition):
    """The result of ``LockManager.acquire``: await it for a grant, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, Grant]:
        self._begun = True
        return self._first().__await__()

    async def _first(self) -> Grant:
        return (await self._acquire()).grants[0]

    async def __aenter__(self) -> Grant:
        return (await self._enter()).grants[0]


class JointAcquisition(_Acquisition):
    """The result of ``LockManager.acquire_all``: await it for the grants, or use it with ``async with``."""

    def __await__(self) -> Generator[Any, None, tuple[Grant, ...]]:
        self._begun = True
        return self._all().__await__()

    async def _all(self) -> tuple[Grant, ...]:
        return tuple((await self._acquire()).grants)

    async def __aenter__(self) -> tuple[Grant, ...]:
        return tuple((await self._enter()).grants)


class LockManager:
    """Locks by name on one session, the process's default one when left out.

    A manager, unlike a ``DistributedLock``, is not bound to a name. It shows all locks of the namespace, and counts its
    own acquisitions.
    """

    def __init__(self, session: Session | None = None) -> None:
        check_session(session)
        self._session = session
        self._locks: dict[str, DistributedLock] = {}
        self._names: set[tuple[str, str]] = set()
        self._held: set[Entry] = set()  # a reference to the grant would hide that its owner dropped it
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
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> Acquisition:
        """Acquire ``name``: ``async with manager.acquire(name) as grant``, or ``grant = await
        manager.acquire(name)`` and later ``await manager.release(grant)``.

        ``shared`` acquires as a reader. Readers hold together, a writer holds alone, and all are granted in order of
        arrival: a reader that comes after a waiting writer waits for it, so that neither starves. Each reader has its
        own token. With ``deadlock="fail"`` this wait raises ``Deadlock`` if it is the youngest of those that wait for
        each other in a cycle and ask for it; by default a deadlock is only reported. The other arguments and the errors
        are those of ``DistributedLock``.
        """
        check_timeout(timeout)
        queues = ((LOCK, check_name(name)),)
        request = self._request(
            queues, on_loss, metadata, HoldOptions.checked(max_hold, lock_delay, max_idle), deadlock
        )
        return Acquisition(self, request, (shared_rule if shared else exclusive,), timeout)

    def acquire_all(
        self,
        names: Iterable[str | Shared],
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> JointAcquisition:
        """Acquire all of up to 60 ``names`` or none: ``async with manager.acquire_all([a, b]) as grants``.

        One transaction joins all the queues, so two such acquisitions never wait for each other, whatever the order of
        their names. The grants come in the order of the names. A name that is given twice counts once. An empty list
        is granted at once. If one grant is lost, all are. ``shared`` acquires every name as a reader, and
        ``Shared(name)`` among the names acquires that one as a reader; a name that is given both ways is acquired as a
        writer. Raises ``ValueError`` for more than 60 names, and the errors of ``acquire``.
        """
        check_timeout(timeout)
        if isinstance(names, str):
            raise TypeError(f"acquire_all takes several names, not one str; did you mean acquire({names!r})?")
        rules = _rules(names, shared)
        if len(rules) > MAX_TOGETHER:
            raise ValueError(f"at most {MAX_TOGETHER} names fit one transaction; {len(rules)} were given")
        queues = [(LOCK, name) for name in rules]
        request = self._request(
            queues, on_loss, metadata, HoldOptions.checked(max_hold, lock_delay, max_idle), deadlock
        )
        return JointAcquisition(self, request, tuple(rules.values()), timeout)

    def reserve(
        self,
        *names: str | Shared | Iterable[str | Shared],
        ttl: float,
        timeout: float | None = None,
        note: str = "",
        owner: str | None = None,
        shared: bool = False,
        paths: Iterable[str] = (),
        tree: str = "default",
        metadata: dict[str, Any] | None = None,
        keepalive: bool = False,
        deadlock: OnDeadlock = "report",
    ) -> Reserving:
        """Reserve names and paths for ``ttl`` seconds, whatever becomes of this process: ``reservation = await
        manager.reserve("x", ttl=900)``, or ``async with manager.reserve("x", ttl=900) as reservation``.

        It waits in order of arrival, as ``acquire`` does, for all of up to 40 ``names`` and the ``paths`` of ``tree``,
        or none. Then nothing in this process has to live for it: ``renew`` is what keeps it. ``ttl`` is from 10 seconds
        to 24 hours. ``note`` is shown to everyone, and told to the next holder as ``reservation.left`` if it expires
        without a release. ``owner`` names the agent; by default ``CODOMYRMEX_AGENT`` does. With ``keepalive``, this
        process renews it until the session ends, by a task: an event loop that is blocked for the TTL loses it. Raises
        ``LockTimeout``, ``InvalidName`` and the errors of ``acquire``.
        """
        check_timeout(timeout)
        rules: dict[tuple[Kind, str], Rule] = {
            (LOCK, name): rule for name, rule in _rules(_each(names), shared).items()
        }
        if isinstance(paths, str) or (paths := tuple(paths)):
            rules[PATH, check_name(tree)] = Overlap(Scopes.of(paths, shared))
        if not rules:
            raise ValueError("reserve needs a name or a path at least")
        if len(rules) > MAX_RESERVED:
            raise ValueError(f"at most {MAX_RESERVED} names fit one reservation; {len(rules)} were given")
        seconds = check_ttl(ttl)
        request = AcquireRequest(
            session=self._session,
            queues=tuple(rules),
            metadata=metadata if owner is None else {**(metadata or {}), "agent": check_owner(owner)},
            note=note,
            reserves=True,
            deadlock=deadlock,
        )
        return Reserving(self._session, request, tuple(rules.values()), seconds, timeout, keepalive=keepalive)

    def reservation(self, handle: str) -> Reservation:
        """The reservation with this handle, in any process, on any host, at any later time. Asks etcd nothing.

        Raises ``InvalidHandle`` for a text that is no handle, and for one of another namespace or a newer version.
        """
        session = self._session or default_session()
        return Reservation(self._session, Handle.decode(handle, session.settings.namespace))

    async def reservations(self, owner: str | None = None) -> list[ReservationInfo]:
        """All reservations of the namespace, or those of one ``owner``, by age: with time left, note and owner."""
        return await reservations(await ready(self._session), owner)

    def acquire_paths(
        self,
        paths: Iterable[str],
        tree: str = "default",
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> Acquisition:
        """Acquire up to 200 paths of a tree or none: ``async with manager.acquire_paths(["src/parser/", "README.md"],
        tree="main") as grant``.

        A path with a trailing slash is a directory and everything below it; ``""`` is the whole tree. Two requests
        overlap if a path of one equals, contains or lies in a path of the other. Requests that do not overlap never
        wait for each other. Those that do are granted in order of arrival, a waiting directory before the files that
        come after it. ``shared`` acquires as a reader: readers of one path hold together. All paths have one token.

        Paths are relative to the tree's root, in Unicode NFC, with ``/`` between their parts. A glob
        (``src/**/*.py``) is taken as the directory of its literal beginning (``src/``). ``grant.paths`` tells the paths
        that are held. Trees and locks of one name are apart. Raises ``InvalidName`` for ``..``, an absolute path and
        control characters, ``ValueError`` for no path and for too many. The other arguments and the errors are those of
        ``acquire``.
        """
        check_timeout(timeout)
        queues = ((PATH, check_name(tree)),)
        request = self._request(
            queues, on_loss, metadata, HoldOptions.checked(max_hold, lock_delay, max_idle), deadlock
        )
        return Acquisition(self, request, (Overlap(Scopes.of(paths, shared)),), timeout)

    async def release(self, grant: Grant) -> None:
        """Release a grant of this manager; does nothing if it was lost.

        Raises ``NotHeld`` if it is not held. An ``EtcdError`` means, as with ``DistributedLock``, that etcd has not
        confirmed the release yet.
        """
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
        """Every lock and tree that is held or waited for and whose name starts with ``prefix``, by name.

        A tree has the ``kind`` ``"path"``, and its owners have ``paths``.
        """
        return await inspect.locks(await ready(self._session), prefix)

    async def info(self, name: str, kind: QueueKind = "lock") -> LockInfo | None:
        """Holders and waiters of one lock, or with ``kind="path"`` of one tree; None if there are none."""
        return await inspect.info(await ready(self._session), name, kind)

    async def watch(self, prefix: str = "") -> AsyncIterator[LockEvent]:
        """Follow every step of every lock and path lock whose name starts with ``prefix``, beginning with the entries
        that exist."""
        async for event in inspect.watch(await ready(self._session), prefix):
            yield event

    async def waits(self) -> Waits:
        """The wait-for graph of the namespace at one revision: the requesters that wait for others, over locks, paths,
        semaphores, elections and reservations, and the deadlocks among them."""
        return await read_waits(await ready(self._session))

    async def history(self, name: str, kind: QueueKind = "lock") -> History:
        """Every hold of a lock since etcd's last compaction: the owner, the token, from when to when, and how it ended.

        It is read from etcd's own past, so nothing had to be recorded. With ``kind="path"`` the name is that of a tree.
        A name that never was has no holds. etcd has no clock: see ``PastHold`` for the times. Raises ``InvalidName``,
        and an ``EtcdError`` if etcd does not answer.
        """
        return await past.history(await ready(self._session), name, kind)

    async def force_release(
        self, name: str, *, reason: str, token: int | None = None, kind: QueueKind = "lock"
    ) -> Owner:
        """Take the lock away from its holder; returns that holder.

        The holder loses the lock: an asyncio block is cancelled, and its fenced writes are refused. The next waiter is
        granted.
        ``reason`` is recorded with your user name. With ``token`` only the holder with that token is released. With
        ``kind="path"`` the name is that of a tree, and a ``token`` is needed. Raises ``NotHeld`` if the lock has no
        holder, or none with that token. The command ``elections release`` ends the term of a leader.
        """
        return await force_release(await ready(self._session), name, reason, token, inspect.KINDS[kind])

    def stats(self) -> LockStats:
        """Counters since this manager was made; ``total_locks`` is the number of distinct names acquired."""
        return LockStats(
            total_locks=len(self._names),
            total_acquisitions=self._acquisitions,
            total_releases=self._releases,
            active_locks=sum(entry.remaining() > 0 for entry in self._held),
            lock_contention=self._contended,
        )

    def _request(
        self,
        queues: Sequence[tuple[Kind, str]],
        on_loss: OnLoss,
        metadata: dict[str, Any] | None,
        options: HoldOptions,
        deadlock: OnDeadlock,
    ) -> AcquireRequest:
        return AcquireRequest(
            session=self._session,
            queues=queues,
            on_loss=on_loss,
            metadata=metadata,
            deadlock=deadlock,
            options=options,
        )

    def _got(self, hold: Hold) -> None:
        for entry, grant in zip(hold.entries, hold.grants, strict=True):
            self._contended += entry.contended
            self._names.add((entry.queue_ref.what, grant.name))
            self._acquisitions += 1
            self._held.add(entry)
            entry.on_release = self._forget

    def _forget(self, entry: Entry) -> bool:
        known = entry in self._held
        self._held.discard(entry)
        self._releases += known
        return known


def _rules(names: Iterable[str | Shared], shared: bool) -> dict[str, Rule]:
    """The rule for each name."""
    rules: dict[str, Rule] = {}
    for given in names:
        name = check_name(given.name if isinstance(given, Shared) else given)
        reads = (shared or isinstance(given, Shared)) and rules.get(name) is not exclusive
        rules[name] = shared_rule if reads else exclusive
    return rules


def _each(names: Iterable[str | Shared | Iterable[str | Shared]]) -> Iterator[str | Shared]:
    """The names, of which several may be given in one list."""
    for one in names:
        if isinstance(one, str | bytes | Shared) or not isinstance(one, Iterable):
            yield one  # ``check_name`` refuses what is no name
        else:
            yield from one
