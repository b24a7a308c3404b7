"""Deadlocks: a waiter that also holds something looks at the wait-for graph, after a second and then every two.

Only a requester that holds and waits can close a cycle, so everybody else pays nothing. One look serves all waiters of
a session. ``waits.py`` finds the cycles.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.errors import ConcurrencyError, Deadlock
from codomyrmex.concurrency.keys import ELECTION, LOCK, PATH, SEMAPHORE
from codomyrmex.concurrency.legible import legible
from codomyrmex.concurrency.records import RequesterRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.wait_graph import QueueName, WaitEdge, Waits
from codomyrmex.concurrency.waitqueue.inspect import owners_of, queues_of, read_queues
from codomyrmex.concurrency.waitqueue.view import is_entry, limit_in
from codomyrmex.concurrency.waitqueue.waits import Queue, queue, victim, waits

log = logging.getLogger("codomyrmex.concurrency")

_FIRST = 1.0  # seconds of a wait after which its requester looks
_AGAIN = 2.0  # seconds at most between further looks,
_FACTOR = 50  # unless a look takes long: then so many times as long,
_RARELY = 30.0  # seconds at most
_KINDS = (LOCK, PATH, SEMAPHORE, ELECTION)


class Waiter(Protocol):
    """An entry, as far as deadlocks concern it."""

    token: int
    value: bytes

    def waits(self) -> tuple[str, float] | None:
        """The kind of thing that it waits for, and since when; None if it does not wait."""

    def holds(self) -> tuple[str, float] | None:
        """The kind of thing that it holds, and since when; None if it does not hold."""

    def requester(self) -> object:
        """Its requester, which can be hashed; None if it is not known."""

    def in_group(self) -> bool:
        """True if it was joined with others, one of which may be granted already while this one waits."""

    def fail(self, reason: ConcurrencyError) -> None:
        """Stop waiting, for ``reason``."""


class Deadlocks:
    """The looks of one session."""

    def __init__(self, session: SessionCore) -> None:
        self._session = session
        self._next: dict[Waiter, float] = {}  # the waiters that may close a cycle, and when each looks next
        self._looking = False
        self._told: set[frozenset[int]] = set()

    def tick(self, entries: Sequence[Waiter]) -> None:
        """Look if one of these entries of the session has waited for long enough."""
        now = clock.now()
        waiting = [entry for entry in entries if (since := entry.waits()) and now - since[1] >= _FIRST]
        self._next = {entry: self._next.get(entry, now) for entry in _that_may_close_a_cycle(waiting, entries)}
        due = [entry for entry, at in self._next.items() if now >= at]
        if due and not self._looking:
            self._looking = True
            self._session.start(self._look(due), "the look for deadlocks")

    async def _look(self, due: Sequence[Waiter]) -> None:
        began, pause = clock.now(), _FIRST
        try:
            found = await read_waits(self._session)
            pause = min(_RARELY, max(_AGAIN * random.uniform(0.7, 1.0), _FACTOR * (clock.now() - began)))
        except ConcurrencyError as error:
            log.debug("the look for deadlocks failed and is repeated: %s", error)
            return
        finally:
            self._looking = False
            again = clock.now() + pause
            self._next.update({entry: again for entry in due if entry in self._next})
        self._told &= {_tokens(cycle) for cycle in found.cycles}
        for cycle in found.cycles:
            self._tell(cycle)

    def _tell(self, cycle: Sequence[WaitEdge]) -> None:
        """Tell of a deadlock in which a waiter of this session takes part, and fail that one if it is to fail."""
        own = {entry.token: entry for entry in self._next}
        tokens = _tokens(cycle)
        if not tokens & own.keys():
            return
        text = describe(cycle)
        if tokens not in self._told:
            self._told.add(tokens)
            log.warning("deadlock: %s", text)
            if telemetry.observers:
                telemetry.tell("deadlock", len(cycle))
        if entry := own.get(victim(cycle) or 0):
            entry.fail(
                Deadlock(
                    f"deadlock: {text}; of those that are to fail this is the youngest wait, so it gives up",
                    tuple(cycle),
                )
            )


def _that_may_close_a_cycle(waiting: Sequence[Waiter], entries: Iterable[Waiter]) -> list[Waiter]:
    """The waiters that have something for which others may wait."""
    if not waiting:
        return []
    holders = {entry.requester() for entry in entries if entry.holds()} - {None}
    return [
        entry
        for entry in waiting
        if entry.requester() in holders or entry.in_group() or RequesterRecord.decode(entry.value).reserves
    ]


def _tokens(cycle: Sequence[WaitEdge]) -> frozenset[int]:
    return frozenset(edge.token for edge in cycle)


def describe(cycle: Sequence[WaitEdge]) -> str:
    """A cycle in words, with the hidden characters of names as escapes."""
    text = "; ".join(
        f"{edge.waiter.label} waits for {describe_queue(edge.queue)}, which {edge.predecessor.label} "
        f"{'holds' if edge.holds else 'waits for, too, and came before'}"
        for edge in cycle
    )
    return legible(text)


def describe_queue(name: QueueName) -> str:
    """A queue in words."""
    return f"paths of the tree {name.name!r}" if name.kind == PATH.segment else f"the {name.kind} {name.name!r}"


async def read_waits(session: SessionCore) -> Waits:
    """The wait-for graph of the namespace, from one reading of its queues at one revision."""
    queues: list[Queue] = []
    revision = 0
    for kind in _KINDS:
        found, revision = await read_queues(session, session.layout.under(kind), kind, revision)
        for name, kvs in queues_of(session.layout, found, kind).items():
            entries = [kv for kv in kvs if is_entry(kv)]
            if len(entries) < 2:
                continue  # nobody waits for another one there
            limit = (limit_in(kvs) or 0) if kind is SEMAPHORE else None
            queues.append(queue(QueueName(kind.segment, name), entries, owners_of(entries), limit))
    return waits(queues, revision)
