"""Which entries are due, as one worker sees them; pure, with the clock handed in.

No two hosts' clocks are compared where that can be helped. An entry whose failure this worker saw happen is due when
its delay has passed on the worker's own monotonic clock. Only of what was there before the worker began does the
record's wall time tell how much of the delay is left, and never more than the delay. So a clock that is wrong may
bring one attempt forward when its host starts, and no more.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.store import Stored
from codomyrmex.concurrency.dead_letters.transitions import UNSETTLED, State


@dataclass(slots=True)
class _Known:
    """What is remembered of an entry: not its arguments, so that many fit."""

    operation: str
    state: State
    revision: int
    due: float
    suspect: bool


class Schedule:
    """The entries of a queue and when each is due, in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._claimed: set[str] = set()
        self._heap: list[tuple[float, int, str]] = []
        self._unsettled: Counter[str] = Counter()  # by operation

    def found(self, stored: Stored, clock: float, wall: datetime) -> None:
        """The entry was there when this worker began."""
        entry = stored.entry
        left = (entry.next_attempt_at - wall).total_seconds() if entry.next_attempt_at else 0.0
        self._put(entry, stored.revision, clock + min(max(0.0, left), entry.delay))

    def changed(self, stored: Stored, clock: float) -> None:
        """The entry was written just now."""
        self._put(stored.entry, stored.revision, clock + stored.entry.delay)

    def removed(self, entry_id: str) -> None:
        self._forget(entry_id)

    def unsettled(self, operations: Iterable[str]) -> bool:
        """Whether an entry of these operations waits or runs."""
        return any(self._unsettled[operation] for operation in operations)

    def claimed(self, entry_id: str) -> None:
        self._claimed.add(entry_id)

    def unclaimed(self, entry_id: str) -> None:
        """The claim is gone; an entry that waits, and was passed over for the claim's sake, is told again."""
        if entry_id in self._claimed:
            self._claimed.discard(entry_id)
            if known := self._known.get(entry_id):
                self.again(entry_id, known.due)

    def claims(self) -> set[str]:
        """The entries that are claimed."""
        return set(self._claimed)

    def orphans(self) -> list[str]:
        """Entries that are running, but nobody's: their worker died."""
        running = (entry_id for entry_id, known in self._known.items() if known.state == "running")
        return [entry_id for entry_id in running if entry_id not in self._claimed]

    def is_orphan(self, entry_id: str) -> bool:
        known = self._known.get(entry_id)
        return known is not None and known.state == "running" and entry_id not in self._claimed

    def due(self, clock: float) -> str | None:
        """Take the entry that has been due longest, if there is one; it is not told again until it changes."""
        while self._heap and self._heap[0][0] <= clock:
            _, revision, entry_id = heapq.heappop(self._heap)
            known = self._known.get(entry_id)
            if known and known.revision == revision and known.state == "waiting" and entry_id not in self._claimed:
                return entry_id
        return None

    def again(self, entry_id: str, clock: float) -> None:
        """Tell the entry again at ``clock``, if it still waits then."""
        known = self._known.get(entry_id)
        if known and known.state == "waiting":
            heapq.heappush(self._heap, (clock, known.revision, entry_id))

    def handled_now(self, operation: str) -> None:
        """There is a handler for ``operation`` from here on: what was passed over for want of one is told again."""
        for entry_id, known in self._known.items():
            if known.operation == operation:
                self.again(entry_id, known.due)

    def next_due(self) -> float | None:
        """When the next entry is due, if any waits."""
        return self._heap[0][0] if self._heap else None

    def is_suspect(self, entry_id: str) -> bool:
        """Whether a worker died while it ran the entry, be it for this entry or for one beside it."""
        known = self._known.get(entry_id)
        return known is not None and known.suspect

    def operation(self, entry_id: str) -> str:
        known = self._known.get(entry_id)
        return known.operation if known else ""

    def _put(self, entry: DeadLetter, revision: int, due: float) -> None:
        known = self._known.get(entry.id)
        if known and known.revision >= revision:
            return
        self._forget(entry.id)
        if entry.state == "resolved":
            return  # it is over, and very many may lie there
        self._known[entry.id] = _Known(entry.operation, entry.state, revision, due, entry.crash_count > 0)
        self._unsettled[entry.operation] += entry.state in UNSETTLED
        if entry.state == "waiting":
            heapq.heappush(self._heap, (due, revision, entry.id))

    def _forget(self, entry_id: str) -> None:
        if known := self._known.pop(entry_id, None):
            self._unsettled[known.operation] -= known.state in UNSETTLED
