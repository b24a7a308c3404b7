"""The entries that are due, as one worker sees them. Pure: the time is given.

The hosts' clocks are compared as little as possible. An entry whose failure this worker saw is due when its delay is
over on the worker's own monotonic clock. Only for an entry that was there before the worker began does the record's
wall time tell how much of the delay is left, and never more than the delay. So a wrong clock brings one attempt forward
when its host starts, and does no other harm.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency.dead_letters.record import DeadLetter, Stored
from codomyrmex.concurrency.dead_letters.transitions import UNSETTLED, State


@dataclass(slots=True)
class _Known:
    """The part of an entry that a worker remembers. Without the arguments very many fit."""

    operation: str
    state: State
    revision: int
    due: float
    suspect: bool
    offered: float | None = None  # when it is to be taken; None once it was


class Schedule:
    """The entries of a queue and when each is due, in seconds of a monotonic clock.

    A reading of the queue fills it: ``restart``, then ``claimed`` for every claim, ``found`` for every entry, and
    ``complete``. Events of the watch keep it up to date. After a gap in the watch it is read anew, since deletions may
    have gone unseen.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._claimed: set[str] = set()
        self._offers: list[tuple[float, int, str]] = []  # a heap; an offer that was replaced stays in it until its time
        self._unsettled: Counter[str] = Counter()  # by operation
        self._revision: int | None = None

    # Readings

    def restart(self) -> None:
        """Forget everything: a reading begins."""
        self._known, self._claimed, self._offers = {}, set(), []
        self._unsettled = Counter()
        self._revision = None

    def found(self, stored: Stored, clock: float, wall: datetime) -> None:
        """A reading found the entry. ``wall`` is this host's time of day."""
        entry = stored.entry
        left = (entry.next_attempt_at - wall).total_seconds() if entry.next_attempt_at else 0.0
        self._put(entry, stored.revision, clock + min(max(0.0, left), entry.delay))

    def complete(self, revision: int) -> None:
        """The reading is over; it shows the queue as of ``revision``."""
        self._revision = revision

    @property
    def is_complete(self) -> bool:
        return self._revision is not None

    def is_old(self, revision: int) -> bool:
        """True for an event that the reading included."""
        return self._revision is not None and revision <= self._revision

    # Events

    def changed(self, stored: Stored, clock: float) -> None:
        """The entry was written just now."""
        self._put(stored.entry, stored.revision, clock + stored.entry.delay)

    def removed(self, entry_id: str) -> None:
        """The entry was deleted."""
        if known := self._known.pop(entry_id, None):
            self._unsettled[known.operation] -= known.state in UNSETTLED

    def claimed(self, entry_id: str) -> None:
        """A worker, here or elsewhere, has the claim."""
        self._claimed.add(entry_id)

    def unclaimed(self, entry_id: str) -> None:
        """The claim is gone. An entry that waits, and was passed over because of the claim, is offered again."""
        if entry_id in self._claimed:
            self._claimed.discard(entry_id)
            if known := self._known.get(entry_id):
                self.offer_again(entry_id, known.due)

    def compare_claims(self, before: set[str], found: Iterable[str]) -> list[str]:
        """Correct the claims by a look at etcd, for etcd may lose an event; returns the orphans among the corrected.

        ``before`` is the result of ``claims`` before the look, ``found`` what the look found.
        """
        gone = before.difference(found)
        for entry_id in gone:
            self.unclaimed(entry_id)
        return [entry_id for entry_id in sorted(gone) if self.is_orphan(entry_id)]

    def handled_now(self, operation: str) -> None:
        """``operation`` has a handler from here on: entries that were passed over for want of one are offered again."""
        for entry_id, known in self._known.items():
            if known.operation == operation:
                self.offer_again(entry_id, known.due)

    # Due entries

    def take_due(self, clock: float) -> str | None:
        """Take the entry that has been due longest; None if there is none.

        A taken entry is not offered again until it changes, its claim goes, or ``offer_again`` is called.
        """
        if (due := self.next_due()) is None or due > clock:
            return None
        _, _, entry_id = heapq.heappop(self._offers)
        self._known[entry_id].offered = None
        return entry_id

    def next_due(self) -> float | None:
        """When the next entry is due; None if none waits."""
        while self._offers and not self._stands(*self._offers[0]):
            heapq.heappop(self._offers)
        return self._offers[0][0] if self._offers else None

    def offer_again(self, entry_id: str, clock: float) -> None:
        """Offer the entry at ``clock``, if it waits, and is not offered earlier."""
        known = self._known.get(entry_id)
        if known is None or known.state != "waiting" or (known.offered is not None and known.offered <= clock):
            return
        known.offered = clock
        heapq.heappush(self._offers, (clock, known.revision, entry_id))

    def _stands(self, clock: float, revision: int, entry_id: str) -> bool:
        """True unless the offer was replaced, or its entry has changed. One for a claimed entry is withdrawn."""
        known = self._known.get(entry_id)
        if known is None or (known.revision, known.offered) != (revision, clock):
            return False
        if entry_id in self._claimed:
            known.offered = None
            return False
        return True

    # Questions

    def claims(self) -> set[str]:
        """The entries that are claimed."""
        return set(self._claimed)

    def orphans(self) -> list[str]:
        """The entries whose worker died: their records say "running", and they have no claim."""
        return [entry_id for entry_id in self._known if self.is_orphan(entry_id)]

    def is_orphan(self, entry_id: str) -> bool:
        known = self._known.get(entry_id)
        return known is not None and known.state == "running" and entry_id not in self._claimed

    def is_suspect(self, entry_id: str) -> bool:
        """True if a worker died while it ran the entry, which may or may not be to blame."""
        known = self._known.get(entry_id)
        return known is not None and known.suspect

    def has_unsettled(self, operations: Iterable[str]) -> bool:
        """True if an entry of these operations waits or runs."""
        return any(self._unsettled[operation] for operation in operations)

    def operation(self, entry_id: str) -> str:
        """The operation of an entry, "" if the entry is not known."""
        known = self._known.get(entry_id)
        return known.operation if known else ""

    def _put(self, entry: DeadLetter, revision: int, due: float) -> None:
        known = self._known.get(entry.id)
        if known and known.revision >= revision:
            return
        self.removed(entry.id)
        if entry.state == "resolved":
            return  # nothing more is to be done for it, and there may be very many
        self._known[entry.id] = _Known(entry.operation, entry.state, revision, due, entry.crash_count > 0)
        self._unsettled[entry.operation] += entry.state in UNSETTLED
        self.offer_again(entry.id, due)
