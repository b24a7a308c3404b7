"""How many dead letters of each operation there are, and in which state: what an operator looks at first."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency.dead_letters.record import DeadLetter


@dataclass(frozen=True, slots=True)
class OperationSummary:
    """The entries of one operation in one queue, counted by state. ``fingerprints``: how many different failures they
    are. ``oldest``: when the oldest one that is not resolved was added."""

    queue: str
    operation: str
    waiting: int = 0
    running: int = 0
    parked: int = 0
    resolved: int = 0
    fingerprints: int = 0
    oldest: datetime | None = None


async def summarize(queue: str, entries: AsyncIterable[DeadLetter]) -> list[OperationSummary]:
    """One summary for each operation, by name."""
    counts: dict[str, dict[str, int]] = {}
    kinds: dict[str, set[str]] = {}
    oldest: dict[str, datetime] = {}
    async for entry in entries:
        states = counts.setdefault(entry.operation, {})
        states[entry.state] = states.get(entry.state, 0) + 1
        kinds.setdefault(entry.operation, set()).add(entry.fingerprint)
        if entry.state != "resolved":
            oldest[entry.operation] = min(entry.created_at, oldest.get(entry.operation, entry.created_at))
    return [
        OperationSummary(queue, name, **counts[name], fingerprints=len(kinds[name]), oldest=oldest.get(name))
        for name in sorted(counts)
    ]
