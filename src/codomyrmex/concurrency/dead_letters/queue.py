"""``DeadLetterQueue``, the class that users call: it checks arguments and puts the parts on a session.

``steps.py`` changes records, ``store.py`` keeps them in etcd, ``worker.py`` retries them, ``spiller.py`` keeps them in
files while etcd is away.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.dead_letters import record, steps, sweeps, texts, transitions
from codomyrmex.concurrency.dead_letters.checks import (
    check_concurrency,
    check_handler,
    check_max_entries,
    check_operation,
    check_positive,
    check_zone,
)
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
    """A queue of failed operations in etcd. Workers on any number of hosts retry each entry, one at a time.

    Args:
        name: follows the rules of a lock's name.
        session: the session to use; the process's default one when left out.
        retry: the times and the number of the worker's retries; see ``RetryPolicy``.
        retention: seconds for which resolved entries stay visible (within an eighth), 7 days when left out. Entries
            that are not resolved stay for ever.
        max_entries: the most entries the queue may hold. When it is full, ``add`` first removes the oldest resolved
            ones. If there are none, it raises ``QueueFull``: nothing is dropped in silence. Simultaneous adders may
            exceed the limit by their number.
        redact: applied to every error text and traceback before it is stored.

    Every call raises an ``EtcdError`` or ``SessionLost`` when etcd cannot carry it out.
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
        self._retention = WEEK if retention is None else check_positive("retention", retention)
        check_max_entries(max_entries)
        self._max_entries = max_entries
        self._redact = texts.safe_redact(redact or str)
        self._handlers: dict[str, Handler] = {}
        self._workers: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._store: Store | None = None
        self._spiller: Spiller | None = None

    @property
    def name(self) -> str:
        """The name of the queue, in NFC."""
        return self._name

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations for which a handler is registered here, sorted."""
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
        """Store a failure, due for its first retry at once; returns its id once etcd has it for certain.

        ``args`` and ``metadata`` must be JSON. With ``dedup_key`` a failure that is stored already and not resolved is
        not stored again: the id is that of the first. Raises ``TypeError`` for values that are not JSON,
        ``PayloadTooLarge`` and ``QueueFull``.
        """
        entry = record.new(operation, args, error, metadata, self._redact, dedup_key)
        return await self._add(entry, record.encode(entry))

    async def get(self, id: str) -> DeadLetter | None:
        """The entry with this id; None if there is none."""
        stored = await (await self._opened()).get(id)
        return stored.entry if stored else None

    async def count(self) -> int:
        """The number of entries in any state, including foreign keys among them."""
        return await (await self._opened()).count()

    async def list_entries(
        self,
        operation: str | None = None,
        since: datetime | None = None,
        state: State | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """The entries in the order of their creation, all at one revision. For very many use ``entries``.

        ``since`` needs a time zone; it selects entries created then or later.
        """
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
        """The entries as ``list_entries`` gives them, one by one. They are read page by page, in constant memory."""
        check_zone("since", since)
        async for stored in (await self._opened()).all():
            entry = stored.entry
            if (
                (operation is None or entry.operation == operation)
                and (since is None or entry.created_at >= since)
                and (state is None or entry.state == state)
            ):
                yield entry

    async def watch(self) -> AsyncGenerator[DeadLetter, None]:
        """All entries there are, then each entry that is added or changes, in etcd's order; without end."""
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
        """Register the decorated ``async def handle(entry, attempt)`` to retry ``operation``. Only registered handlers
        ever run.

        An entry that a worker pool stored has the operation ``AsyncWorkerPool.operation_of(function)``.
        """
        check_operation(operation)

        def register(function: AnyHandler) -> AnyHandler:
            check_handler(operation, function)
            if operation in self._handlers:
                raise ValueError(f"{operation!r} has a handler already")
            self._handlers[operation] = function
            for worker in list(self._workers):
                worker._handled_now(operation)
            return function

        return register

    def worker(self, concurrency: int = 4, *, drain_timeout: float | None = 20.0) -> Worker:
        """A worker that retries due entries while its block runs: ``async with dlq.worker(): ...``.

        At most ``concurrency`` handlers of this worker run at a time. Leaving the block waits for running handlers, at
        most ``drain_timeout`` seconds (None waits without a limit), then cancels them. An error or a cancel of the
        block cancels them at once. A cancelled attempt does not count against its entry. A handler that does not end
        within 5 s of its cancel is left to run; it keeps its claim until it ends or the session does.

        With ``async with dlq.worker() as worker``, ``await worker.settled()`` waits until nothing is left to do for the
        handlers here. If the worker cannot go on, since it failed or the session that you gave is lost, the block is
        cancelled, and the error is raised at its end.
        """
        check_concurrency(concurrency)
        check_timeout(drain_timeout, "drain_timeout")
        work = Work(self._name, self._handlers, self._retry, self._redact, self._opened, self._is_over)
        worker = Worker(work, concurrency, drain_timeout)
        self._workers.add(worker)
        return worker

    async def replay(self, id: str) -> DeadLetter:
        """Redrive an entry: it is due now, with all its attempts before it. Its history stays. Returns the entry.

        Raises ``DeadLetterNotFound``, and ``ConcurrencyError`` for an entry that is being retried right now.
        """
        return await self._change(id, Event.REDRIVEN, lambda entry: steps.redriven(entry, record.now()), "replayed")

    async def replay_all(
        self, operation: str | None = None, rate: float | None = None, state: State | None = None
    ) -> int:
        """Redrive every parked and waiting entry, or those of one ``state``, at most ``rate`` a second; returns their
        number. With ``operation``, only its entries.

        It works on a snapshot: an entry that fails again meanwhile is not redriven twice.
        """
        if rate is not None:
            check_positive("rate", rate)
        states = (state,) if state else ("parked", "waiting")
        return await sweeps.redrive(await self._opened(), states, operation, rate)

    async def discard(self, id: str, *, reason: str) -> DeadLetter:
        """Resolve an entry without a retry; it stays visible, with ``reason``, for the retention time. Returns it.

        Raises as ``replay`` does, and ``ValueError`` for an empty reason.
        """
        if not reason.strip():
            raise ValueError("a discard needs a reason, for those who ask later")
        return await self._change(
            id, Event.DISMISSED, lambda entry: steps.dismissed(entry, self._redact(reason), record.now()), "discarded"
        )

    async def purge(self, before: datetime | None = None, state: State | None = None) -> int:
        """Delete resolved and parked entries, or those of one ``state``, created ``before`` then; returns their number.

        ``before`` needs a time zone. It works on a snapshot: entries that change meanwhile stay, and so do entries that
        are being retried.
        """
        check_zone("before", before)
        states = (state,) if state else ("resolved", "parked")
        return await sweeps.purge(await self._opened(), states, before)

    async def __aenter__(self) -> DeadLetterQueue:
        self._spilling().open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop sending spilled entries; those that were not sent stay in their files. The session stays open."""
        if self._spiller:
            await self._spiller.close()

    # For a worker pool

    async def route(
        self, *, operation: str, args: dict[str, Any], error: BaseException, metadata: dict[str, Any]
    ) -> Routed:
        """Store the failure of a pool's task. If etcd does not take it, it is spilled to a local file and sent later.

        Arguments that are not JSON are stored as their ``repr``, under ``"repr"``, and ``metadata`` says so. Raises
        ``QueueFull``, and ``OSError`` if the file cannot be written either.
        """
        try:
            entry = record.new(operation, args, error, metadata, self._redact)
        except TypeError:
            plain = {"repr": {key: texts.shown(value) for key, value in args.items()}}
            entry = record.new(operation, plain, error, {**metadata, "args_not_json": True}, self._redact)
        value = record.encode(entry)
        spiller = self._spilling()
        if not spiller.away:
            try:
                return Routed(await self._add(entry, value), "")
            except (EtcdError, SessionLost, UsedElsewhere) as problem:
                log.warning("dead letters are spilled to a local file, for etcd does not take them: %s", problem)
                spiller.went_away(text_of(problem))
        path = await spiller.keep(entry)
        return Routed(entry.id, f"not in etcd yet ({spiller.trouble}); kept in {path} and sent from there")

    def _spilling(self) -> Spiller:
        if self._spiller is None:
            settings = self._session.settings if self._session else make_settings(None, {})
            self._spiller = Spiller(settings.namespace, self._name, self._add_spilled, self._is_over)
        return self._spiller

    def _is_over(self) -> bool:
        """True if there will be no session any more: the one that the user gave is lost."""
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

    async def _add_spilled(self, entry: DeadLetter) -> str:
        return await self._add(entry, record.encode(entry))

    async def _add(self, entry: DeadLetter, value: bytes) -> str:
        store = await self._opened()
        if self._max_entries is not None:
            surplus = await store.count() - self._max_entries + 1
            if surplus > 0:
                # An entry that is stored already needs no room, and an eviction might delete that very entry.
                if known := await store.known(entry):
                    return known
                if not await sweeps.evict(store, surplus):
                    raise QueueFull(
                        f"the dead letter queue {self._name!r} holds {self._max_entries} entries, its max_entries, and "
                        "none is resolved; replay, discard or purge some"
                    )
        return await store.add(entry, value)

    async def _change(
        self, entry_id: str, event: Event, step: Callable[[DeadLetter], DeadLetter], done: str
    ) -> DeadLetter:
        store = await self._opened()
        for _ in range(_TRIES):
            stored = await store.get(entry_id)
            if stored is None:
                raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} in {self._name!r}")
            if not transitions.allows(stored.entry.state, event, claimed=True):  # its claim is not read
                raise ConcurrencyError(f"the dead letter {entry_id} is being retried right now and cannot be {done}")
            changed = step(stored.entry)
            if await store.change(stored, changed):
                return changed
        raise ConcurrencyError(f"others keep changing the dead letter {entry_id}; try again")
