"""Deadlocks: a waiter that also holds something looks at the wait-for graph, after a second and then rarely.

Only a requester that holds and waits can close a cycle, so everybody else pays nothing. One look serves all waiters of
a session. ``waits.py`` finds the cycles.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.errors import ConcurrencyError, Deadlock
from codomyrmex.concurrency.keys import ELECTION, LOCK, PATH, SEMAPHORE
from codomyrmex.concurrency.models import QueueName, RequesterRecord, WaitEdge, Waits
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import owners_of, queues_of, read_queues
from codomyrmex.concurrency.waitqueue.view import is_entry, limit_in
from codomyrmex.concurrency.waitqueue.waits import Queue, queue, victim, waits

log = logging.getLogger("codomyrmex.concurrency")

_FIRST = 1.0  # seconds of a wait after which its requester looks
_AGAIN = 5.0  # seconds, on average, between further looks
_KINDS = (LOCK, PATH, SEMAPHORE, ELECTION)


class Waiter(Protocol):
    """An entry, as far as deadlocks concern it."""

    token: int
    value: bytes

    def waits(self) -> tuple[str, float] | None:
        """The kind of thing that it waits for, and since when; None if it does not wait."""

    def holds_too(self) -> bool:
        """True if its requester holds something."""

    def fail(self, reason: ConcurrencyError) -> None:
        """Stop waiting, for ``reason``."""


class Deadlocks:
    """The looks of one session."""

    def __init__(self, session: SessionCore) -> None:
        self._session = session
        self._next: dict[Waiter, float] = {}
        self._looking: asyncio.Task[None] | None = None
        self._told: set[frozenset[int]] = set()

    def tick(self, entries: Iterable[Waiter]) -> None:
        """Look if one of these entries of the session has waited for long enough."""
        now = clock.now()
        waiting = {entry: since[1] for entry in entries if (since := entry.waits()) and now - since[1] >= _FIRST}
        self._next = {entry: self._next.get(entry, 0.0) for entry in waiting if _may_close_a_cycle(entry)}
        due = [entry for entry, at in self._next.items() if now >= at]
        if due and self._looking is None:
            again = now + _AGAIN * random.uniform(0.8, 1.2)
            self._next.update(dict.fromkeys(due, again))
            self._looking = self._session.start(self._look(), "the look for deadlocks")

    async def _look(self) -> None:
        try:
            found = await read_waits(self._session)
        except ConcurrencyError:
            return  # the next look comes
        finally:
            self._looking = None
        for cycle in found.cycles:
            self._tell(cycle)

    def _tell(self, cycle: Sequence[WaitEdge]) -> None:
        """Tell of a deadlock, and fail the waiter of this session that is to fail."""
        own = {entry.token: entry for entry in self._next}
        tokens = frozenset(edge.token for edge in cycle)
        if not tokens & own.keys():
            return
        text = describe(cycle)
        if tokens not in self._told:
            self._told.add(tokens)
            log.warning("deadlock: %s", text)
            if telemetry.observers:
                telemetry.tell("deadlock", len(cycle))
        if entry := own.get(victim(cycle) or 0):
            entry.fail(Deadlock(f"deadlock: {text}; this is the youngest wait of it, so it gives up", tuple(cycle)))


def _may_close_a_cycle(entry: Waiter) -> bool:
    return entry.holds_too() or RequesterRecord.decode(entry.value).reserves


def describe(cycle: Sequence[WaitEdge]) -> str:
    """A cycle in words."""
    return "; ".join(
        f"{edge.waiter.label} waits for the {edge.queue.kind} {edge.queue.name!r}, which {edge.ahead.label} "
        f"{'holds' if edge.holds else 'waits for, too, and came before'}"
        for edge in cycle
    )


async def read_waits(session: SessionCore) -> Waits:
    """The wait-for graph of the namespace, from one reading of its queues at one revision."""
    queues: list[Queue] = []
    revision = 0
    for kind in _KINDS:
        found, revision = await read_queues(session, session.layout.under(kind), kind, revision)
        for name, kvs in queues_of(session.layout, found, kind).items():
            entries = [kv for kv in kvs if is_entry(kv)]
            limit = (limit_in(kvs) or 0) if kind is SEMAPHORE else None
            queues.append(queue(QueueName(kind.segment, name), entries, owners_of(entries), limit))
    return waits(queues, revision)
