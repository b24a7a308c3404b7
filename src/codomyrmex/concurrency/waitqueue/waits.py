"""The wait-for graph of a namespace, and the deadlocks in it. Pure.

A node is a requester: a task or a thread of a session, or for reservations an agent. An edge leads from one that waits
to one whose entry is ahead in the way. Locks and paths are granted when everything in the way is gone; a semaphore is
granted when enough of it is. So a cycle of edges alone is no proof of a deadlock, and the graph is reduced first (Holt,
"Some deadlock properties of computer systems", 1972): a requester that waits for nothing will let go of what it has,
so will each one that can be granted then, and so on. The requesters that remain are stuck, and those of them on a cycle
have locked each other in.

A requester that is not known, such as another client's, counts as one that will let go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from codomyrmex.concurrency.etcd.transports.protocol import KV
from codomyrmex.concurrency.keys import is_in_tree, is_reader, permits_of
from codomyrmex.concurrency.models import Owner, QueueName, RequesterRecord, WaitEdge, WaitNode, Waits
from codomyrmex.concurrency.waitqueue.scopes import scopes_in
from codomyrmex.concurrency.waitqueue.view import held_in


@dataclass(frozen=True, slots=True)
class Place:
    """An entry in a queue, with its requester; ``node`` is None for one that is not known."""

    kv: KV
    node: WaitNode | None
    holds: bool
    fails: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """A whole queue in order of arrival. ``limit`` is a semaphore's."""

    name: QueueName
    places: Sequence[Place]
    limit: int | None = None


def queue(name: QueueName, kvs: Sequence[KV], owners: Sequence[Owner], limit: int | None = None) -> Queue:
    """A queue from a reading of its entries, which are in order of arrival."""
    places = []
    for kv, owner, holds in zip(kvs, owners, held_in(kvs, limit), strict=True):
        record = RequesterRecord.decode(kv.value)
        places.append(Place(kv, _node(owner, record), holds, record.fails))
    return Queue(name, places, limit)


def _node(owner: Owner, record: RequesterRecord) -> WaitNode | None:
    """The requester of an entry; None if its entry does not tell."""
    if record.reserves or owner.ttl is not None:
        return WaitNode("agent", owner.agent, owner.agent) if owner.agent else None
    if not record.requester:
        return None
    label = owner.agent or owner.task or f"task {record.requester}"
    return WaitNode("task", f"{owner.session}-{record.requester:x}", f"{label} ({owner.host}:{owner.pid})")


def waits(queues: Iterable[Queue], revision: int) -> Waits:
    """The graph of all queues, which were read at ``revision``, with its deadlocks."""
    known = list(queues)
    edges = [edge for one in known for edge in _edges(one)]
    stuck = _stuck(known)
    between = [edge for edge in edges if edge.waiter in stuck and edge.ahead in stuck]
    return Waits(revision, tuple(edges), tuple(_cycles(between)))


def victim(cycle: Sequence[WaitEdge]) -> int | None:
    """The token of the entry that is to fail: the youngest of those in a cycle that ask for it; None if none does."""
    return max((edge.token for edge in cycle if edge.fails), default=None)


def _edges(queue: Queue) -> Iterable[WaitEdge]:
    for number, place in enumerate(queue.places):
        if place.holds or place.node is None:
            continue
        for ahead in queue.places[:number]:
            if ahead.node is not None and in_the_way(ahead.kv, place.kv):
                yield WaitEdge(place.node, ahead.node, queue.name, place.kv.create_revision, ahead.holds, place.fails)


def in_the_way(ahead: KV, behind: KV) -> bool:
    """True if an entry must leave before one behind it is granted, or is one of a semaphore's, of which some must."""
    if is_in_tree(behind.key):
        return scopes_in(behind.value).overlaps(scopes_in(ahead.value))
    return not (is_reader(ahead.key) and is_reader(behind.key))


def _stuck(queues: Sequence[Queue]) -> set[WaitNode]:
    """The requesters that will never be granted, however the others let go."""
    waiting: dict[WaitNode, list[tuple[Queue, int]]] = {}
    for one in queues:
        for number, place in enumerate(one.places):
            if not place.holds and place.node is not None:
                waiting.setdefault(place.node, []).append((one, number))
    stuck = set(waiting)
    while free := {node for node in stuck if all(_granted(one, at, stuck) for one, at in waiting[node])}:
        stuck -= free
    return stuck


def _granted(queue: Queue, number: int, stuck: set[WaitNode]) -> bool:
    """True if an entry would hold once all entries ahead of it are gone but those of ``stuck`` requesters."""
    own = queue.places[number]
    left = [place for place in queue.places[:number] if place.node in stuck and in_the_way(place.kv, own.kv)]
    if queue.limit is None:
        return not left
    return sum(permits_of(place.kv.key) for place in left) + permits_of(own.kv.key) <= queue.limit


@dataclass(slots=True)
class _Search:
    """The strongly connected components of a graph (Tarjan, 1972), without recursion."""

    successors: Mapping[WaitNode, Sequence[WaitNode]]
    index: dict[WaitNode, int] = field(default_factory=dict)
    low: dict[WaitNode, int] = field(default_factory=dict)
    path: list[WaitNode] = field(default_factory=list)

    def components(self) -> Iterable[set[WaitNode]]:
        for node in self.successors:
            if node not in self.index:
                yield from self._from(node)

    def _from(self, root: WaitNode) -> Iterable[set[WaitNode]]:
        work = [(root, iter(self.successors.get(root, ())))]
        self._enter(root)
        while work:
            node, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                if work:
                    above = work[-1][0]
                    self.low[above] = min(self.low[above], self.low[node])
                if self.low[node] == self.index[node]:
                    start = self.path.index(node)
                    yield set(self.path[start:])
                    del self.path[start:]
            elif following not in self.index:
                self._enter(following)
                work.append((following, iter(self.successors.get(following, ()))))
            elif following in self.path:
                self.low[node] = min(self.low[node], self.index[following])

    def _enter(self, node: WaitNode) -> None:
        self.index[node] = self.low[node] = len(self.index)
        self.path.append(node)


def _cycles(edges: Sequence[WaitEdge]) -> Iterable[tuple[WaitEdge, ...]]:
    """A shortest cycle of each set of requesters that have locked each other in, the smallest token first."""
    successors: dict[WaitNode, list[WaitNode]] = {}
    for edge in edges:
        successors.setdefault(edge.waiter, []).append(edge.ahead)
    found = []
    for component in _Search(successors).components():
        inside = [edge for edge in edges if edge.waiter in component and edge.ahead in component]
        if inside:
            found.append(min((_shortest(inside, node) for node in component), key=_size_and_token))
    return sorted(found, key=lambda cycle: cycle[0].token)


def _size_and_token(cycle: Sequence[WaitEdge]) -> tuple[int, int]:
    return len(cycle), min(edge.token for edge in cycle)


def _shortest(edges: Sequence[WaitEdge], start: WaitNode) -> tuple[WaitEdge, ...]:
    """A shortest cycle through ``start``, which lies on one; it begins with its smallest token."""
    came: dict[WaitNode, WaitEdge] = {}
    level = [start]
    while start not in came:
        following = []
        for node in level:
            for edge in edges:
                if edge.waiter == node and edge.ahead not in came:
                    came[edge.ahead] = edge
                    following.append(edge.ahead)
        level = following
    cycle = [came[start]]
    while cycle[0].waiter != start:
        cycle.insert(0, came[cycle[0].waiter])
    first = min(range(len(cycle)), key=lambda number: cycle[number].token)
    return (*cycle[first:], *cycle[:first])
