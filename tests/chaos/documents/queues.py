"""Who holds what by SPEC's grant rules, replayed over etcd's history: locks, readers and permits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.chaos.documents.history import Event


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One entry of a queue, ordered as it is served."""

    token: int
    key: str
    shared: bool = field(compare=False, default=False)
    permits: int = field(compare=False, default=1)


@dataclass
class Queue:
    """One lock's or semaphore's queue at some revision."""

    places: dict[str, Place] = field(default_factory=dict)
    limit: int = 1
    semaphore: bool = False

    def holders(self) -> list[Place]:
        """Those whom the grant rule lets hold now."""
        ordered = sorted(self.places.values())
        if self.semaphore:
            return _fitting(ordered, self.limit)
        if ordered and not ordered[0].shared:
            return ordered[:1]
        readers: list[Place] = []
        for place in ordered:
            if not place.shared:
                break
            readers.append(place)
        return readers


def _fitting(ordered: list[Place], limit: int) -> list[Place]:
    fitting, taken = [], 0
    for place in ordered:
        taken += place.permits
        if taken > limit:
            break
        fitting.append(place)
    return fitting


def replay(events: Iterable[Event]) -> tuple[dict[str, Queue], dict[str, set[int]]]:
    """The queues at the end, and every token that the rule ever let hold, both by ``/<namespace>/v1/<kind>/<name>``."""
    queues: dict[str, Queue] = defaultdict(Queue)
    granted: dict[str, set[int]] = defaultdict(set)
    pending: set[str] = set()
    revision = 0
    for event in events:
        if event.revision != revision:
            _look(queues, granted, pending)
            revision = event.revision
        parts = event.key.split("/")
        if len(parts) != 6 or parts[2] != "v1" or parts[3] not in ("lock", "semaphore"):
            continue
        name, last = event.key.rsplit("/", 1)
        queue = queues[name]
        queue.semaphore = parts[3] == "semaphore"
        pending.add(name)
        if last.startswith("limit-") and not event.lease:
            if event.value is not None and last[6:].isdigit() and len(last) < 16:
                queue.limit = int(last[6:])
        elif event.value is None:
            queue.places.pop(event.key, None)
        elif event.lease and event.key not in queue.places:
            queue.places[event.key] = _place(event, last)
    _look(queues, granted, pending)
    return dict(queues), dict(granted)


def _place(event: Event, last: str) -> Place:
    _, _, suffix = last.partition(".")
    permits = int(suffix) if suffix.isdigit() and len(suffix) < 10 else 1
    return Place(event.created, event.key, suffix == "r", permits)


def _look(queues: dict[str, Queue], granted: dict[str, set[int]], pending: set[str]) -> None:
    for name in pending:
        granted[name].update(place.token for place in queues[name].holders())
    pending.clear()
