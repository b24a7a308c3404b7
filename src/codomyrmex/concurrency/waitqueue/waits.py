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

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from codomyrmex.concurrency.etcd.transports.protocol import KV
from codomyrmex.concurrency.keys import is_in_tree, is_reader, permits_of
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.records import RequesterRecord
from codomyrmex.concurrency.wait_graph import QueueName, WaitEdge, WaitNode, Waits
from codomyrmex.concurrency.waitqueue.scopes import scopes_in
from codomyrmex.concurrency.waitqueue.view import held_in


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An entry in a queue, with its requester; ``node`` is None for one that is not known.

    ``task`` is the task that waits on behalf of an agent, for a reservation.
    """

    kv: KV
    node: WaitNode | None
    holds: bool
    fails: bool
    task: WaitNode | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A whole queue in order of arrival. ``limit`` is a semaphore's."""

    name: QueueName
    entries: Sequence[QueueEntry]
    limit: int | None = None


def queue(name: QueueName, kvs: Sequence[KV], owners: Sequence[Owner], limit: int | None = None) -> Queue:
    """A queue from a reading of its entries, which are in order of arrival."""
    entries = []
    for kv, owner, holds in zip(kvs, owners, held_in(kvs, limit), strict=True):
        record = RequesterRecord.decode(kv.value)
        task, agent = _task(owner, record), _agent(owner)
        if owner.ttl is not None:
            entries.append(QueueEntry(kv, agent, holds, record.fails))
        elif record.reserves and agent:
            entries.append(QueueEntry(kv, agent, holds, record.fails, task))
        else:
            entries.append(QueueEntry(kv, task, holds, record.fails))
    return Queue(name, entries, limit)


def _agent(owner: Owner) -> WaitNode | None:
    return WaitNode("agent", owner.agent, owner.agent) if owner.agent else None


def _task(owner: Owner, record: RequesterRecord) -> WaitNode | None:
    if not record.requester:
        return None
    label = owner.agent or owner.task or f"task {record.requester}"
    return WaitNode(
        "task", f"{owner.session}-{record.requester:x}", f"{label} ({owner.host}:{owner.pid} #{record.requester})"
    )


def waits(queues: Iterable[Queue], revision: int) -> Waits:
    """The graph of all queues, which were read at ``revision``, with its deadlocks."""
    known = _with_tasks_as_agents(list(queues))
    edges = [edge for one in known for edge in _edges(one)]
    stuck = stuck_in(known)
    between = [edge for one in known for edge in _edges(one, stuck)] if stuck else []
    return Waits(revision, tuple(edges), tuple(_cycles(between)))


def victim(cycle: Sequence[WaitEdge]) -> int | None:
    """The token of the entry that is to fail: the youngest of those in a cycle that ask for it; None if none does."""
    return max((edge.token for edge in cycle if edge.fails), default=None)


def _with_tasks_as_agents(queues: Sequence[Queue]) -> Sequence[Queue]:
    """The queues, in which a task that waits for a reservation is one with its agent: what the task holds is not let go
    meanwhile either."""
    agents: dict[WaitNode | None, WaitNode | None]
    agents = {entry.task: entry.node for one in queues for entry in one.entries if entry.task}
    if not agents:
        return queues
    return [
        replace(one, entries=[replace(entry, node=agents.get(entry.node, entry.node)) for entry in one.entries])
        for one in queues
    ]


def _edges(queue: Queue, among: Container[WaitNode] | None = None) -> Iterator[WaitEdge]:
    """The edges of a queue, or those ``among`` some requesters only.

    A waiter waits for the holders in its way, and for the waiters just ahead: those farther ahead are in the way of
    these, so edges to them would tell nothing more. In a tree, it has an edge to each entry in its way.
    """
    known = [entry for entry in queue.entries if entry.node and (among is None or entry.node in among)]
    holders = [entry for entry in known if entry.holds]
    waiters: list[QueueEntry] = []  # in a tree all so far; elsewhere the last writer, and the readers after it
    for entry in known:
        if entry.holds or entry.node is None:
            continue
        in_tree, reads = is_in_tree(entry.kv.key), is_reader(entry.kv.key)
        nearest = waiters[:1] if reads and not in_tree else waiters
        for other in (*holders, *nearest):
            token = entry.kv.create_revision
            if other.node and other.kv.create_revision < token and in_the_way(other.kv, entry.kv):
                yield WaitEdge(entry.node, other.node, queue.name, token, other.holds, entry.fails)
        if not in_tree and not reads:
            waiters.clear()
        waiters.append(entry)


def in_the_way(predecessor: KV, own: KV) -> bool:
    """True if an entry must leave before a later one is granted, or is one of a semaphore's, of which some must."""
    if is_in_tree(own.key):
        return scopes_in(own.value).overlaps(scopes_in(predecessor.value))
    return not (is_reader(predecessor.key) and is_reader(own.key))


def stuck_in(queues: Sequence[Queue]) -> Mapping[WaitNode, object]:
    """The requesters that will never be granted, however the others let go."""
    blocked: dict[WaitNode, set[tuple[int, int]]] = defaultdict(set)
    for index, one in enumerate(queues):
        for number, entry in enumerate(one.entries):
            if entry.node and not entry.holds:
                blocked[entry.node].add((index, number))
    contended = sorted({index for numbers in blocked.values() for index, _ in numbers})
    blocked = dict(blocked)
    freed = True
    while freed:
        freed = False
        for index in contended:
            freed |= _let_go(index, queues[index], blocked)
    return blocked


def _let_go(index: int, queue: Queue, blocked: dict[WaitNode, set[tuple[int, int]]]) -> bool:
    """Take the requesters out of ``blocked`` whose last wait, in this queue, will be granted; True if there are any."""
    freed = False
    predecessors = _Predecessors(queue.limit)
    for number, entry in enumerate(queue.entries):
        if entry.node is None or entry.node not in blocked:
            continue
        if not entry.holds and predecessors.lets_pass(entry.kv):
            blocked[entry.node].discard((index, number))
        if blocked[entry.node]:
            predecessors.add(entry.kv)
        else:
            del blocked[entry.node]
            freed = True
    return freed


@dataclass(slots=True)
class _Predecessors:
    """The entries of blocked requesters that are ahead in a queue."""

    limit: int | None
    entries: list[KV] = field(default_factory=list)
    permits: int = 0

    def add(self, entry: KV) -> None:
        self.entries.append(entry)
        self.permits += permits_of(entry.key)

    def lets_pass(self, own: KV) -> bool:
        """True if an entry behind them would hold once all the others ahead are gone."""
        if self.limit is None:
            return not any(in_the_way(kv, own) for kv in self.entries)
        return self.permits + permits_of(own.key) <= self.limit


def _cycles(edges: Sequence[WaitEdge]) -> Iterable[tuple[WaitEdge, ...]]:
    """A shortest cycle of each set of requesters that have locked each other in, the smallest token first."""
    following: dict[WaitNode, list[WaitEdge]] = defaultdict(list)
    for edge in edges:
        following[edge.waiter].append(edge)
    component = {node: number for number, nodes in enumerate(_Search(following).components()) for node in nodes}
    inside: dict[int, dict[WaitNode, list[WaitEdge]]] = defaultdict(lambda: defaultdict(list))
    for edge in edges:
        if component[edge.waiter] == component[edge.predecessor]:
            inside[component[edge.waiter]][edge.waiter].append(edge)
    found = [min((_shortest(one, node) for node in one), key=_size_and_token) for one in inside.values()]
    return sorted(found, key=lambda cycle: cycle[0].token)


def _size_and_token(cycle: Sequence[WaitEdge]) -> tuple[int, int]:
    return len(cycle), min(edge.token for edge in cycle)


def _shortest(following: Mapping[WaitNode, Sequence[WaitEdge]], start: WaitNode) -> tuple[WaitEdge, ...]:
    """A shortest cycle through ``start``, which lies on one; it begins with its smallest token."""
    came: dict[WaitNode, WaitEdge] = {}
    level = [start]
    while start not in came:
        reached = []
        for edge in (edge for node in level for edge in following[node]):
            if edge.predecessor not in came:
                came[edge.predecessor] = edge
                reached.append(edge.predecessor)
        level = reached
    cycle = [came[start]]
    while cycle[0].waiter != start:
        cycle.insert(0, came[cycle[0].waiter])
    first = min(range(len(cycle)), key=lambda number: cycle[number].token)
    return (*cycle[first:], *cycle[:first])


@dataclass(slots=True)
class _Search:
    """The strongly connected components of a graph (Tarjan, 1972), without recursion."""

    following: Mapping[WaitNode, Sequence[WaitEdge]]
    index: dict[WaitNode, int] = field(default_factory=dict)
    low: dict[WaitNode, int] = field(default_factory=dict)
    path: list[WaitNode] = field(default_factory=list)
    on_path: set[WaitNode] = field(default_factory=set)

    def components(self) -> Iterator[list[WaitNode]]:
        for node in list(self.following):
            if node not in self.index:
                yield from self._from(node)

    def _from(self, root: WaitNode) -> Iterator[list[WaitNode]]:
        work = [self._enter(root)]
        while work:
            node, rest = work[-1]
            edge = next(rest, None)
            if edge is None:
                work.pop()
                if work:
                    above = work[-1][0]
                    self.low[above] = min(self.low[above], self.low[node])
                if self.low[node] == self.index[node]:
                    yield self._leave(node)
            elif edge.predecessor not in self.index:
                work.append(self._enter(edge.predecessor))
            elif edge.predecessor in self.on_path:
                self.low[node] = min(self.low[node], self.index[edge.predecessor])

    def _enter(self, node: WaitNode) -> tuple[WaitNode, Iterator[WaitEdge]]:
        self.index[node] = self.low[node] = len(self.index)
        self.path.append(node)
        self.on_path.add(node)
        return node, iter(self.following.get(node, ()))

    def _leave(self, root: WaitNode) -> list[WaitNode]:
        component: list[WaitNode] = []
        while not component or component[-1] != root:
            component.append(self.path.pop())
        self.on_path.difference_update(component)
        return component
