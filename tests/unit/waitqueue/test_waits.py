"""The wait-for graph against a simulation: whoever is stuck in it is never granted, in whatever order the others let
go, and nobody else is called stuck."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from codomyrmex.concurrency.etcd.transports.protocol import KV
from codomyrmex.concurrency.keys import LOCK, PATH, READER_SUFFIX, SEMAPHORE, Kind, Layout, permits_suffix
from codomyrmex.concurrency.wait_graph import QueueName, WaitEdge, WaitNode, Waits
from codomyrmex.concurrency.waitqueue.deadlocks import describe
from codomyrmex.concurrency.waitqueue.inspect import owners_of
from codomyrmex.concurrency.waitqueue.rules import Predecessor, holders
from codomyrmex.concurrency.waitqueue.scopes import Scopes
from codomyrmex.concurrency.waitqueue.waits import Queue, queue, stuck_in, victim, waits

LAYOUT = Layout("fleet")


@dataclass
class Fleet:
    """Queues that requesters have joined, one revision each. A requester is a number, or the name of an agent."""

    limits: dict[str, int] = field(default_factory=dict)
    queues: dict[tuple[Kind, str], list[KV]] = field(default_factory=dict)
    by: dict[int, list[int | str | None]] = field(default_factory=dict)
    revision: int = 1

    def join(
        self,
        who: int | str | None,
        name: str,
        *,
        reads: bool = False,
        permits: int = 1,
        paths: Iterable[str] = (),
        fails: bool = False,
        reserved: bool = False,
        task: int = 0,
        again: bool = False,
    ) -> int:
        """Join a queue: of a tree if there are paths, of a semaphore if the name has a limit. A name requester is an
        agent's, with a reservation that it holds if ``reserved``; else its ``task`` waits for one. With ``again``, the
        revision is that of the join before."""
        self.revision += not again
        kind, suffix, fields = LOCK, READER_SUFFIX if reads else b"", ""
        if name in self.limits:
            kind, suffix = SEMAPHORE, permits_suffix(permits)
        elif paths := tuple(paths):
            kind, fields = PATH, Scopes.of(paths, reads).fields()
        value = {"host": "h", "pid": 1, "since": 1.0, "requester": who if isinstance(who, int) else task}
        if isinstance(who, str):
            value |= {"metadata": {"agent": who}, "reserves": True} | ({"ttl": 60} if reserved else {})
        if fails:
            value["fails"] = True
        text = json.dumps(value)[:-1] + fields + "}"
        prefix = LAYOUT.queue(name, kind)
        entries = self.queues.setdefault((kind, name), [])
        key = LAYOUT.entry(prefix, 0xABC, self.revision * 100 + len(entries), suffix)
        entries.append(KV(key, text.encode(), self.revision, self.revision, 1, 7))
        self.by.setdefault(self.revision, []).append(who)
        return self.revision

    def read(self) -> list[Queue]:
        found = []
        for (kind, name), kvs in self.queues.items():
            found.append(queue(QueueName(kind.segment, name), kvs, owners_of(kvs), self.limits.get(name)))
        return found

    def graph(self) -> Waits:
        return waits(self.read(), self.revision)

    def never_granted(self) -> set[int]:
        """The requesters that are not granted in any order of releases. The others have left in some order."""
        left: set[int] = set()
        seen: set[frozenset[int]] = set()
        states = [frozenset[int]()]
        everybody = {who for whos in self.by.values() for who in whos if isinstance(who, int)}
        while states:
            gone = states.pop()
            if gone in seen:
                continue
            seen.add(gone)
            left |= gone
            states += [gone | {who} for who in everybody - gone if self._holds_all(who, gone)]
        return everybody - left

    def _holds_all(self, who: int, gone: frozenset[int]) -> bool:
        """True if each entry of ``who`` holds once ``gone`` are gone, and the unknown ones too."""
        for (_, name), kvs in self.queues.items():
            rest = [kv for kv in kvs if self.by[kv.create_revision][0] not in (None, *gone)]
            held = holders([Predecessor(kv.key, kv.create_revision, kv.value) for kv in rest], self.limits.get(name))
            for kv, holds in zip(rest, held, strict=True):
                if self.by[kv.create_revision][0] == who and not holds:
                    return False
        return True


def numbers(nodes: Iterable[WaitNode]) -> set[int]:
    return {int(node.id.split("-")[1], 16) for node in nodes}


def around(cycle: Sequence[WaitEdge]) -> list[int]:
    """The requesters of a cycle, which must be one."""
    for edge, following in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
        assert edge.predecessor == following.waiter
    return [int(edge.waiter.id.split("-")[1], 16) for edge in cycle]


def one_cycle(fleet: Fleet) -> tuple[WaitEdge, ...]:
    (cycle,) = fleet.graph().cycles
    return cycle


def generated(seed: int) -> Fleet:
    """A small history: some requesters join some queues of all kinds, in any order."""
    chance = random.Random(seed)
    fleet = Fleet({"s": chance.randint(1, 3), "t": 2})
    people: list[int | None] = [*range(1, chance.randint(2, 5) + 1), *[None] * (chance.random() < 0.2)]
    for _ in range(chance.randint(2, 9)):
        who, name = chance.choice(people), chance.choice(["a", "b", "c", "s", "t", "tree"])
        if name == "tree":
            paths = chance.sample(["x/", "x/1", "x/2", "y", ""], chance.randint(1, 2))
            fleet.join(who, name, paths=paths, reads=chance.random() < 0.3)
        else:
            fleet.join(who, name, reads=chance.random() < 0.4, permits=chance.randint(1, fleet.limits.get(name, 1)))
    return fleet


def test_the_stuck_are_those_who_are_never_granted() -> None:
    found = 0
    for seed in range(1500):
        fleet = generated(seed)
        expected = fleet.never_granted()
        assert numbers(stuck_in(fleet.read())) == expected, seed
        graph = fleet.graph()
        assert bool(graph.cycles) == bool(expected), seed
        for cycle in graph.cycles:
            assert set(around(cycle)) <= expected, seed
            found += 1
    assert found > 300


def test_ten_thousand_histories_in_one_order_have_no_deadlock() -> None:
    """Each requester takes its queues in the one order of their names, all but the last of which it holds."""
    chance = random.Random(19)
    waiters = 0
    for _ in range(10_000):
        fleet = Fleet({"n": 2})
        for who in range(1, chance.randint(3, 6)):
            for name in sorted(chance.sample(["a", "b", "c", "n", "tree"], chance.randint(1, 3))):
                kind = {"tree": PATH, "n": SEMAPHORE}.get(name, LOCK)
                mine = fleet.join(
                    who,
                    name,
                    reads=chance.random() < 0.3,
                    paths=[chance.choice(["x/", "x/1", "y"])] if kind is PATH else (),
                    permits=chance.randint(1, 2) if kind is SEMAPHORE else 1,
                )
                kvs = fleet.queues[kind, name]
                assert kvs[-1].create_revision == mine
                if not holders([Predecessor(*kv[:1], kv[2], kv[1]) for kv in kvs], fleet.limits.get(name))[-1]:
                    waiters += 1
                    break
        assert fleet.graph().cycles == ()
    assert waiters > 5_000


@pytest.mark.parametrize("size", range(1, 7))
def test_a_cycle_of_any_size_is_found_with_its_edges(size: int) -> None:
    fleet = Fleet()
    for who in range(1, size + 1):
        fleet.join(who, f"lock-{who}")
    tokens = [fleet.join(who, f"lock-{who % size + 1}") for who in range(1, size + 1)]
    fleet.join(9, "lock-1")  # behind the cycle, not on it
    fleet.join(10, "apart")
    cycle = one_cycle(fleet)
    assert around(cycle) == list(range(1, size + 1)) and [edge.token for edge in cycle] == tokens
    assert all(
        edge.holds and edge.queue == QueueName("lock", f"lock-{who % size + 1}") for who, edge in enumerate(cycle, 1)
    )


def test_no_cycle_while_one_of_the_chain_waits_for_nothing() -> None:
    fleet = Fleet()
    for who in (1, 2, 3):
        fleet.join(who, f"lock-{who}")
    fleet.join(1, "lock-2")
    fleet.join(2, "lock-3")
    graph = fleet.graph()
    assert graph.cycles == () and len(graph.edges) == 2


def test_permits_that_come_from_outside_break_a_cycle_through_a_semaphore() -> None:
    for holders_inside, expected in ((1, 0), (2, 1)):
        fleet = Fleet({"s": 2})
        for who in (1, 2):
            fleet.join(who, "s")
        fleet.join(3, "lock")
        for who in range(1, holders_inside + 1):
            fleet.join(who, "lock")
        fleet.join(3, "s")
        assert len(fleet.graph().cycles) == expected


def test_a_large_request_needs_the_permits_that_a_small_one_does_not() -> None:
    for permits, expected in ((2, 0), (3, 1)):
        fleet = Fleet({"s": 3})
        fleet.join(1, "s")
        fleet.join(2, "s", permits=2)
        fleet.join(3, "lock")
        fleet.join(1, "lock")
        fleet.join(3, "s", permits=permits)
        assert len(fleet.graph().cycles) == expected


def test_readers_of_one_name_do_not_wait_for_each_other_but_for_a_writer_between() -> None:
    fleet = Fleet()
    fleet.join(1, "a", reads=True)
    fleet.join(2, "b")
    fleet.join(1, "b")
    fleet.join(2, "a", reads=True)
    assert fleet.graph().cycles == ()

    fleet = Fleet()
    fleet.join(1, "a", reads=True)
    fleet.join(2, "b")
    fleet.join(3, "a")  # the writer waits for 1, and 2 for the writer
    fleet.join(1, "b")
    fleet.join(2, "a", reads=True)
    assert sorted(around(one_cycle(fleet))) == [1, 2, 3]


def test_paths_that_overlap_close_a_cycle_and_others_do_not() -> None:
    for path, expected in (("src/a", 1), ("docs/", 0)):
        fleet = Fleet()
        fleet.join(1, "tree", paths=["src/"])
        fleet.join(2, "lock")
        fleet.join(1, "lock")
        fleet.join(2, "tree", paths=[path])
        assert len(fleet.graph().cycles) == expected


def test_agents_with_reservations_lock_each_other_in() -> None:
    fleet = Fleet()
    fleet.join("ann", "a", reserved=True)
    fleet.join("bob", "b", reserved=True)
    fleet.join("ann", "b")
    fleet.join("bob", "a")
    cycle = one_cycle(fleet)
    assert [edge.waiter for edge in cycle] == [WaitNode("agent", "ann", ""), WaitNode("agent", "bob", "")]


def test_a_task_that_waits_for_a_reservation_keeps_what_it_holds() -> None:
    """Task 1 holds a lock and waits, as ann, for bob's reservation; bob waits for that lock."""
    for task, expected in ((1, 1), (2, 0)):
        fleet = Fleet()
        fleet.join(1, "lock")
        fleet.join("bob", "b", reserved=True)
        fleet.join("ann", "b", task=task)
        fleet.join("bob", "lock", task=3)
        assert len(fleet.graph().cycles) == expected


def test_a_task_whose_reservation_is_granted_is_no_longer_its_agent() -> None:
    fleet = Fleet()
    fleet.join("ann", "a", reserved=True, task=1)
    fleet.join(2, "lock")
    fleet.join(2, "a")
    fleet.join(1, "lock")
    assert fleet.graph().cycles == ()


def test_names_that_were_acquired_together_close_a_cycle_with_one_that_waits() -> None:
    fleet = Fleet()
    fleet.join(2, "b")
    fleet.join(1, "a")
    fleet.join(1, "b", again=True)
    fleet.join(2, "a")
    assert sorted(around(one_cycle(fleet))) == [1, 2]


def test_the_unknown_are_taken_to_let_go() -> None:
    fleet = Fleet()
    fleet.join(None, "a")
    fleet.join(2, "b")
    fleet.join(None, "b")
    fleet.join(2, "a")
    assert fleet.graph().cycles == ()


def test_each_of_several_deadlocks_is_found_the_oldest_first() -> None:
    fleet = Fleet()
    for who in (1, 2, 3, 4):
        fleet.join(who, f"lock-{who}")
    for who, other in ((3, 4), (1, 2), (4, 3), (2, 1)):
        fleet.join(who, f"lock-{other}")
    assert [around(cycle) for cycle in fleet.graph().cycles] == [[3, 4], [1, 2]]


def test_the_shortest_cycle_of_those_that_hang_together_is_told() -> None:
    fleet = Fleet()
    for who in (1, 2, 3):
        fleet.join(who, "readers", reads=True)
        fleet.join(who, f"lock-{who}")
    fleet.join(4, "x")
    fleet.join(4, "readers")  # waits for the three
    fleet.join(1, "lock-2")
    fleet.join(2, "lock-3")
    fleet.join(3, "x")
    assert sorted(around(one_cycle(fleet))) == [3, 4]


@pytest.mark.parametrize(("failing", "expected"), [((), None), ((1,), 1), ((1, 2, 3), 3), ((2, 1), 2)])
def test_the_victim_is_the_youngest_of_those_that_are_to_fail(failing: tuple[int, ...], expected: int | None) -> None:
    fleet = Fleet()
    for who in (1, 2, 3):
        fleet.join(who, f"lock-{who}")
    tokens = {who: fleet.join(who, f"lock-{who % 3 + 1}", fails=who in failing) for who in (1, 2, 3)}
    assert victim(one_cycle(fleet)) == (tokens[expected] if expected else None)


def test_a_cycle_in_words() -> None:
    fleet = Fleet()
    fleet.join("ann", "a", reserved=True)
    fleet.join("bob", "tree", paths=["src/"], reserved=True)
    fleet.join("ann", "tree", paths=["src/x"])
    fleet.join("bob", "a")
    assert describe(one_cycle(fleet)) == (
        "ann waits for paths of the tree 'tree', which bob holds; bob waits for the lock 'a', which ann holds"
    )


def test_a_waiter_has_an_edge_to_the_holders_and_to_the_waiter_before_it() -> None:
    fleet = Fleet()
    for who in range(1, 2001):
        fleet.join(who, "crowd")
    began = time.perf_counter()
    graph = fleet.graph()
    assert len(graph.edges) == 2 * 1998 + 1 and graph.cycles == ()
    assert [edge.holds for edge in graph.edges[-2:]] == [True, False]
    assert time.perf_counter() - began < 3  # a quadratic one takes far longer


def test_many_who_are_stuck_behind_a_deadlock_are_seen_through_quickly() -> None:
    fleet = Fleet({"s": 3})
    fleet.join(1, "a")
    fleet.join(2, "b")
    fleet.join(1, "b")
    fleet.join(2, "a")
    fleet.join(1, "s", permits=3)
    for who in range(3, 2003):
        fleet.join(who, "a", reads=who % 5 == 0)
        fleet.join(who + 2000, "s")
    began = time.perf_counter()
    assert around(one_cycle(fleet)) == [1, 2]
    assert time.perf_counter() - began < 5
