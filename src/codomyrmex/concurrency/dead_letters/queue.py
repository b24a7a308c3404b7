"""``DeadLetterQueue``: what users call. How records change is in ``record.py``, how they are kept in ``store.py``,
how they are retried in ``worker.py``; this file puts them on a session, and says what is asked for wrongly.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.dead_letters import record, steps, texts, transitions
from codomyrmex.concurrency.dead_letters.handlers import Handler
from codomyrmex.concurrency.dead_letters.record import DeadLetter, Stored
from codomyrmex.concurrency.dead_letters.spiller import Spiller
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.dead_letters.transitions import Event, State
from codomyrmex.concurrency.dead_letters.worker_handle import Work, Worker
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    DeadLetterNotFound,
    EtcdError,
    QueueFull,
    SessionLost,
    UsedElsewhere,
    text_of,
)
from codomyrmex.concurrency.etcd.transports.protocol import WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import check_name, forms, prefix_end
from codomyrmex.concurrency.models import Routed
from codomyrmex.concurrency.retry import RetryPolicy
from codomyrmex.concurrency.session import Session, make_settings, ready
from codomyrmex.concurrency.watching import notices

log = logging.getLogger("codomyrmex.concurrency")

WEEK = 7 * 86_400.0
_TRIES = 20

AnyHandler = TypeVar("AnyHandler", bound=Handler)


class DeadLetterQueue(AsyncOnly):
    """What failed, kept in etcd until it is dealt with: retried by any number of hosts, once each time.

    Args:
        name: as a lock's.
        session: the session to use; the process's default one when left out.
        retry: when and how often the worker retries; see ``RetryPolicy``.
        retention: seconds for which resolved entries stay to be seen (within an eighth), 7 days when left out. Entries
            that are not resolved stay for ever.
        max_entries: how many entries the queue may hold. When it is full, ``add`` first removes the oldest resolved
            ones and, if there are none, raises ``QueueFull``: nothing is dropped in silence. Adders that meet may pass
            the number by as many as they are.
        redact: applied to every error text and traceback before it is stored.

    Every call raises an ``EtcdError`` or ``SessionLost`` when etcd cannot do it.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        session: Session | None = None,
        retry: RetryPolicy | None = None,
        retention: float | None = None,
        max_entries: int | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._name = check_name(name)
        self._other_forms = forms(name)[1:]
        self._session = session
        self._retry = retry or RetryPolicy()
        self._retention = WEEK if retention is None else _positive("retention", retention)
        if max_entries is not None and (isinstance(max_entries, bool) or max_entries < 1):
            raise ValueError(f"max_entries must be at least 1, not {max_entries!r}")
        self._max_entries = max_entries
        self._redact = texts.safe_redact(redact or str)
        self._handlers: dict[str, Handler] = {}
        self._workers: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._store: Store | None = None
        self._spiller: Spiller | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def operations(self) -> tuple[str, ...]:
        """Those for which a handler is registered here."""
        return tuple(sorted(self._handlers))

    async def add(
        self,
        *,
        operation: str,
        args: dict[str, Any],
        error: BaseException | str,
        metadata: dict[str, Any] | None = None,
        dedup_key: str | None = None,
    ) -> str:
        """Store a failure, due for its first retry at once; returns its id when etcd has it for certain.

        ``args`` and ``metadata`` are JSON. With ``dedup_key`` a failure that is stored already, and not resolved, is
        not stored twice: the id is that of the first. Raises ``TypeError`` for what is not JSON, ``PayloadTooLarge``,
        ``QueueFull``.
        """
        entry = record.new(operation, args, error, metadata, self._redact, dedup_key)
        record.encode(entry)
        return await self._add(entry)

    async def get(self, id: str) -> DeadLetter | None:
        """One entry, or None if there is none of that id."""
        stored = await (await self._opened()).get(id)
        return stored.entry if stored else None

    async def count(self) -> int:
        """The number of entries, in any state; whatever else lies among them is counted too."""
        return await (await self._opened()).count()

    async def list_entries(
        self,
        operation: str | None = None,
        since: datetime | None = None,
        state: State | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """Entries in order of their creation, all at one revision. For very many use ``entries``."""
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be at least 0, not {limit}")
        found: list[DeadLetter] = []
        async with aclosing(self.entries(operation, since, state)) as entries:
            async for entry in entries:
                if limit is not None and len(found) >= limit:
                    break
                found.append(entry)
        return found

    async def entries(
        self, operation: str | None = None, since: datetime | None = None, state: State | None = None
    ) -> AsyncGenerator[DeadLetter, None]:
        """The same one by one, read page by page: flat in memory."""
        _check_zone("since", since)
        async for stored in (await self._opened()).all():
            entry = stored.entry
            if (
                (operation is None or entry.operation == operation)
                and (since is None or entry.created_at >= since)
                and (state is None or entry.state == state)
            ):
                yield entry

    async def watch(self) -> AsyncGenerator[DeadLetter, None]:
        """Every entry that is there, then each again whenever it is added or changes, in etcd's order."""
        store = await self._opened()
        request = WatchRequest(store.entries, prefix_end(store.entries))
        told: dict[str, int] = {}
        async with aclosing(notices(store.session, request)) as news:
            async for notice in news:
                found: list[Stored] = []
                if isinstance(notice, Changed):
                    decoded = [None if event.deleted else store.decode(event.kv) for event in notice.events]
                    found = [stored for stored in decoded if stored]
                elif not told or notice.gap:
                    found = [stored async for stored in store.all()]
                for stored in found:
                    if told.get(stored.entry.id, 0) < stored.revision:
                        told[stored.entry.id] = stored.revision
                        yield stored.entry

    def handler(self, operation: str) -> Callable[[AnyHandler], AnyHandler]:
        """Register the decorated ``async def handle(entry, attempt)`` to retry ``operation``; nothing else runs.

        What a worker pool stored when a function failed has the operation ``AsyncWorkerPool.operation_of(function)``.
        """
        if not isinstance(operation, str) or not operation:
            raise ValueError(
                f"a handler is registered for an operation's name, not {operation!r}: @dlq.handler('name')"
            )

        def register(function: AnyHandler) -> AnyHandler:
            if not _is_async(function) or not _takes_two(function):
                raise TypeError(
                    f"the handler of {operation!r} must be an async def with two arguments, (entry, attempt), "
                    f"not {function!r}"
                )
            if operation in self._handlers:
                raise ValueError(f"{operation!r} has a handler already")
            self._handlers[operation] = function
            for worker in list(self._workers):
                worker._handled_now(operation)
            return function

        return register

    def worker(self, concurrency: int = 4, *, drain_timeout: float | None = 20.0) -> Worker:
        """Retry what is due while the block runs: ``async with dlq.worker(): ...``.

        At most ``concurrency`` handlers run at a time in this process. Leaving the block waits for those that run, at
        most ``drain_timeout`` seconds (None: for as long as they take), then cancels them; an error or a cancel of the
        block cancels them at once. That costs their entries nothing. A handler that does not end within 5 s of its
        cancel is left to run and keeps its claim until it ends, or the session.

        ``async with dlq.worker() as worker`` gives ``await worker.settled()``, which waits until nothing handled here
        is left to do. If the worker cannot go on (its session, given by you, was lost; or it failed) the block is
        cancelled and the error raised at its end.
        """
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
        check_timeout(drain_timeout, "drain_timeout")
        work = Work(self._name, self._handlers, self._retry, self._redact, self._opened, self._is_over)
        worker = Worker(work, concurrency, drain_timeout)
        self._workers.add(worker)
        return worker

    async def replay(self, id: str) -> DeadLetter:
        """Make an entry due now, with all its attempts before it; returns it. Its history stays.

        Raises ``DeadLetterNotFound``, or ``ConcurrencyError`` for an entry that is being retried right now.
        """
        return await self._change(id, Event.REDRIVEN, lambda entry: steps.redriven(entry, record.now()), "replayed")

    async def replay_all(
        self, operation: str | None = None, rate: float | None = None, state: State | None = None
    ) -> int:
        """Replay every parked and waiting entry there is now, or those of one ``state``, at most ``rate`` a second;
        returns how many were.

        It works on a snapshot: what fails again meanwhile is not swept up twice.
        """
        if rate is not None:
            _positive("rate", rate)
        states = (state,) if state else ("parked", "waiting")
        store = await self._opened()
        snapshot = [
            (stored.entry.id, stored.revision)
            async for stored in store.all()
            if stored.entry.state in states and operation in (None, stored.entry.operation)
        ]
        started, done = time.monotonic(), 0
        for number, (entry_id, revision) in enumerate(snapshot):
            if rate is not None:
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            stored = await store.get(entry_id)
            if stored and stored.revision == revision:
                done += await store.change(stored, steps.redriven(stored.entry, record.now()))
        return done

    async def discard(self, id: str, *, reason: str) -> DeadLetter:
        """Resolve an entry without retrying it; it stays to be seen, with ``reason``, for the retention time.

        Raises as ``replay``.
        """
        if not reason.strip():
            raise ValueError("a discard needs a reason, for those who ask later")
        return await self._change(
            id, Event.DISMISSED, lambda entry: steps.dismissed(entry, self._redact(reason), record.now()), "discarded"
        )

    async def purge(self, before: datetime | None = None, state: State | None = None) -> int:
        """Delete resolved and parked entries, or those of one ``state``, created ``before`` then; returns how many.

        It works on a snapshot, and leaves alone what changed meanwhile and what is being retried.
        """
        _check_zone("before", before)
        states = (state,) if state else ("resolved", "parked")
        store = await self._opened()
        snapshot = [
            stored._replace(entry=_slim(stored.entry))
            async for stored in store.all()
            if stored.entry.state in states and (before is None or stored.entry.created_at < before)
        ]
        return sum([await store.remove(stored) for stored in snapshot])

    async def __aenter__(self) -> DeadLetterQueue:
        self._spilling().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End what sends spilled entries; what is not sent stays in its file. The session is left alone."""
        if self._spiller:
            await self._spiller.close()

    # For a worker pool

    async def route(
        self, *, operation: str, args: dict[str, Any], error: BaseException, metadata: dict[str, Any]
    ) -> Routed:
        """Store the failure of a pool's task; where etcd does not take it, spill it to a local file that is sent later.
        Raises ``OSError`` if that cannot be written either, and ``QueueFull``.

        Arguments that are not JSON are stored as their ``repr``, under ``"repr"``, and ``metadata`` says so.
        """
        try:
            entry = record.new(operation, args, error, metadata, self._redact)
        except TypeError:
            plain = {"repr": {key: texts.shown(value) for key, value in args.items()}}
            entry = record.new(operation, plain, error, {**metadata, "args_not_json": True}, self._redact)
        record.encode(entry)
        spiller = self._spilling()
        if not spiller.away:
            try:
                return Routed(await self._add(entry), "")
            except (EtcdError, SessionLost, UsedElsewhere) as problem:
                log.warning("dead letters are spilled to a local file, for etcd does not take them: %s", problem)
                spiller.went_away(text_of(problem))
        path = await spiller.keep(entry)
        return Routed(entry.id, f"not in etcd yet ({spiller.trouble}); kept in {path} and sent from there")

    def _spilling(self) -> Spiller:
        if self._spiller is None:
            settings = self._session.settings if self._session else make_settings(None, {})
            self._spiller = Spiller(settings.namespace, self._name, self._add, self._is_over)
        return self._spiller

    def _is_over(self) -> bool:
        """True if no session will come any more: the one that was given is lost."""
        return self._session is not None and self._session.lost.is_set()

    # Inside

    async def _opened(self) -> Store:
        session = await ready(self._session)
        if self._store is None or self._store.session is not session:
            store = Store(session, self._name, self._retention)
            await self._adopt(store)
            self._store = store
            self._spilling().wake()
        return self._store

    async def _adopt(self, store: Store) -> None:
        try:
            for form in self._other_forms:
                await store.adopt(form)
        except EtcdError as error:
            log.warning("what lies under another form of the name %r stays there for now: %s", self._name, error)

    async def _add(self, entry: DeadLetter) -> str:
        store = await self._opened()
        if self._max_entries is not None:
            surplus = await store.count() - self._max_entries + 1
            if surplus > 0:
                # An entry that is stored already needs no room; to make some might remove that very entry.
                if known := await store.known(entry):
                    return known
                await self._make_room(store, surplus)
        return await store.add(entry)

    async def _make_room(self, store: Store, surplus: int) -> None:
        oldest = []
        async for stored in store.all():
            if stored.entry.state == "resolved":
                oldest.append(stored)
                if len(oldest) == surplus:
                    break
        for stored in oldest:
            await store.remove(stored)
        if len(oldest) < surplus:
            raise QueueFull(
                f"the dead letter queue {self._name!r} holds {self._max_entries} entries, its max_entries, and none "
                "is resolved; replay, discard or purge some"
            )

    async def _change(
        self, entry_id: str, event: Event, step: Callable[[DeadLetter], DeadLetter], done: str
    ) -> DeadLetter:
        store = await self._opened()
        for _ in range(_TRIES):
            stored = await store.get(entry_id)
            if stored is None:
                raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} in {self._name!r}")
            if not transitions.allows(stored.entry.state, event, claimed=True):  # it may be: its claim is not looked at
                raise ConcurrencyError(f"the dead letter {entry_id} is being retried right now and cannot be {done}")
            changed = step(stored.entry)
            if await store.change(stored, changed):
                return changed
        raise ConcurrencyError(f"others keep changing the dead letter {entry_id}; try again")


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function)


def _slim(entry: DeadLetter) -> DeadLetter:
    """What is needed to delete it: a snapshot of very many must not hold their arguments."""
    return DeadLetter(entry.id, entry.operation, {}, "", entry.created_at, dedup=entry.dedup)


def _positive(what: str, value: float) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{what} must be a number greater than 0, not {value!r}")
    return value


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _check_zone(what: str, value: datetime | None) -> None:
    if value is not None and value.tzinfo is None:
        raise ValueError(f"{what} must have a time zone; try datetime.now(UTC)")
