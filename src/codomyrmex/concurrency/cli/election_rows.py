"""Elections as plain data, as ``elections`` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.waitqueue.shared_values import SharedEntries, SharedEntry


@dataclass(frozen=True, slots=True)
class ElectionRow:
    """An election: its leader, with the value and the token of its term, and the candidates in order of arrival.

    ``since`` is when the term began, by the leader's clock, and None until the leader has recorded it.
    """

    name: str
    leader: Owner
    value: Any
    token: int
    since: datetime | None
    candidates: tuple[Owner, ...]


def rows(found: SharedEntries) -> list[ElectionRow]:
    """A row for each election, by name."""
    queues: dict[str, list[SharedEntry]] = {}
    for entry in found.entries:
        queues.setdefault(entry.name, []).append(entry)
    return [_row(name, *queue) for name, queue in sorted(queues.items())]


def _row(name: str, first: SharedEntry, *others: SharedEntry) -> ElectionRow:
    leader, candidates = first.owner, tuple(one.owner for one in others)
    return ElectionRow(name, leader, first.shared.value, leader.token, leader.granted_at, candidates)
