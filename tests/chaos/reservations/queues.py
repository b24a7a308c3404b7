"""Entries of locks and path trees, replayed from etcd's history: when each joined, held, changed its lease, and went.

The grant rule is the documents': an entry holds when no entry that joined before it conflicts with it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.chaos.documents.history import Event

KINDS = ("lock", "path")
Scopes = Sequence[str]


@dataclass
class Entry:
    """One entry's whole life. An entry holds from ``granted`` until ``ended``; times are of the follower's clock."""

    queue: str  # "lock/<name>" or "path/<tree>"
    key: str
    token: int
    ask: str | None  # the request that made it, by its metadata
    shared: bool
    scopes: Scopes
    joined_at: float
    leases: list[int] = field(default_factory=list)
    moved_at: float | None = None  # when it was put on a second lease
    granted: int | None = None
    granted_at: float = 0.0
    ended: int | None = None
    ended_at: float = float("inf")

    def holds(self, revision: int) -> bool:
        """True if it holds just before the writes of a revision, and still after them."""
        held = self.granted is not None and self.granted < revision
        return held and (self.ended is None or self.ended > revision)

    def covers(self, file: str) -> bool:
        """True if it is an entry for a file, given as ``lock/<name>`` or ``path/<tree>/<path>``."""
        if self.queue.startswith("lock/"):
            return self.queue == file
        root = f"{self.queue}/"
        return file.startswith(root) and any(_meet(scope, file[len(root) :]) for scope in self.scopes)


def _meet(one: str, other: str) -> bool:
    first, second = (tuple(filter(None, path.split("/"))) for path in (one, other))
    shortest = min(len(first), len(second))
    return first[:shortest] == second[:shortest]


def conflict(one: Entry, other: Entry) -> bool:
    """True if two entries of one queue may not hold together."""
    return not (one.shared and other.shared) and overlap(one, other)


def overlap(one: Entry, other: Entry) -> bool:
    """True if two entries of one queue are for the same name, or for paths of which one contains the other."""
    if one.queue.startswith("lock/"):
        return True
    return any(_meet(mine, theirs) for mine in one.scopes for theirs in other.scopes)


def replay(events: Iterable[Event], namespace: str, scopes_of: Callable[[str], Scopes]) -> list[Entry]:
    """Every entry that there was, in order of arrival. ``scopes_of`` gives the paths of a request."""
    queues: dict[str, dict[str, Entry]] = defaultdict(dict)
    entries: list[Entry] = []
    touched: set[str] = set()
    last: Event | None = None
    for event in events:
        if last and event.revision != last.revision:
            _grant(queues, touched, last)
        last = event
        parts = event.key.split("/")
        if len(parts) != 6 or parts[1:3] != [namespace, "v1"] or parts[3] not in KINDS:
            continue
        name = f"{parts[3]}/{unquote(parts[4])}"
        queue, known = queues[name], queues[name].get(event.key)
        touched.add(name)
        if event.value is None:
            if known:
                known.ended, known.ended_at = event.revision, event.seen
                del queue[event.key]
        elif known:
            if event.lease != known.leases[-1]:
                known.leases.append(event.lease)
                known.moved_at = known.moved_at or event.seen
        elif event.lease:
            ask = _ask(event.value)
            shared = parts[5].endswith(".r")
            scopes = scopes_of(ask) if ask and parts[3] == "path" else ()
            made = Entry(name, event.key, event.created, ask, shared, scopes, event.seen, [event.lease])
            queue[event.key] = made
            entries.append(made)
    if last:
        _grant(queues, touched, last)
    return entries


def _grant(queues: dict[str, dict[str, Entry]], touched: set[str], event: Event) -> None:
    for name in touched:
        ordered = sorted(queues[name].values(), key=lambda entry: entry.token)
        for number, entry in enumerate(ordered):
            if entry.granted is None and not any(conflict(first, entry) for first in ordered[:number]):
                entry.granted, entry.granted_at = event.revision, event.seen
    touched.clear()


def _ask(value: bytes) -> str | None:
    try:
        ask = json.loads(value)["metadata"]["ask"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return ask if isinstance(ask, str) else None
