"""The queue's decisions on generated histories: never two granted, all served in order, however late the news.

The model is etcd's side: a set of entries and a revision. Each waiter sees it only through views that may be stale and
deletions that may come late, as the protocol allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.queue.rules import Action, Ahead, Decision, Granted, Rule, Turn, View, WaitFor, exclusive


class Waiter:
    """One entry and its turn, driven by a scheduler that delays what it likes."""

    def __init__(self, queue: Queue, rule: Rule) -> None:
        self.queue = queue
        ahead = list(queue.entries)
        queue.revision += 1
        self.entry = Ahead(queue.new_key(), queue.revision)
        queue.entries.append(self.entry)
        queue.history.append(list(queue.entries))
        self.turn = Turn(rule)
        self.watch_from = -1
        self.granted = False
        self.told: set[int] = set()
        self.apply(self.turn.seen(View(queue.revision, ahead, len(ahead))))

    def apply(self, action: Action) -> None:
        self.granted = action is Action.GRANT
        self.action = action
        if action is Action.WATCH:
            self.watch_from = -1
            self.told.clear()

    def steps(self) -> list[Callable[[], None]]:
        """What may happen to this waiter next."""
        if self.granted:
            return []
        if self.action is Action.LOOK:
            return [self.look]
        if self.watch_from < 0:
            return [self.watch]
        deleted = [r for r in self.queue.deleted.get(self.turn.key, []) if r > self.watch_from and r not in self.told]
        if deleted:
            return [lambda: self.tell(deleted[0])]
        return [self.miss] if self.queue.random.random() < 0.05 else []

    def watch(self) -> None:
        """From now, or one that was there before and may still have to tell of the key's earlier lives."""
        lingering = self.queue.random.random() < 0.5
        self.watch_from = self.queue.random.randint(0, self.queue.revision) if lingering else self.queue.revision
        self.apply(self.turn.watching(self.watch_from))

    def look(self) -> None:
        """A view at any revision from the one needed to now."""
        revision = self.queue.random.randint(max(self.turn.needed, self.entry.create_revision), self.queue.revision)
        ahead = [e for e in self.queue.history[revision] if e.create_revision < self.entry.create_revision]
        self.apply(self.turn.seen(View(revision, ahead[-2:], len(ahead[-2:]))))

    def tell(self, revision: int) -> None:
        self.told.add(revision)
        self.apply(self.turn.deleted(revision))

    def miss(self) -> None:
        self.apply(self.turn.missed())


class Queue:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.revision = 0
        self.entries: list[Ahead] = []
        self.history: list[list[Ahead]] = [[]]
        self.deleted: dict[bytes, list[int]] = {}

    def new_key(self) -> bytes:
        """Keys are used again as soon as they are free, as nonces are."""
        taken = {entry.key for entry in self.entries}
        return self.random.choice([key for key in (b"%d" % number for number in range(12)) if key not in taken])

    def remove(self, entry: Ahead) -> None:
        self.entries.remove(entry)
        self.revision += 1
        self.deleted.setdefault(entry.key, []).append(self.revision)
        self.history.append(list(self.entries))


def violations(seed: int, rule: Rule, rounds: int = 300) -> str:
    """Play a random history; says what went wrong, or nothing."""
    queue = Queue(seed)
    living: list[Waiter] = []
    served: list[int] = []
    for step in range(rounds):
        joining = step < rounds // 2
        choices: list[Callable[[], None]] = [move for waiter in living for move in waiter.steps()]
        if joining and len(living) < 8:
            choices.append(lambda: living.append(Waiter(queue, rule)))
        leaving = [w for w in living if w.granted or (joining and queue.random.random() < 0.1)]
        if leaving:
            waiter = queue.random.choice(leaving)

            def leave(waiter: Waiter = waiter) -> None:
                living.remove(waiter)
                queue.remove(waiter.entry)
                if waiter.granted:
                    served.append(waiter.entry.create_revision)

            choices.append(leave)
        if choices:
            queue.random.choice(choices)()
        if sum(waiter.granted for waiter in living) > 1:
            return "two hold at once"
        if any(w.granted and w.entry != queue.entries[0] for w in living):
            return "granted out of turn"
    for _ in range(2000):
        if not living:
            break
        moves = [move for waiter in living for move in waiter.steps()]
        if moves:
            queue.random.choice(moves)()
        for waiter in [w for w in living if w.granted]:
            living.remove(waiter)
            queue.remove(waiter.entry)
            served.append(waiter.entry.create_revision)
    if living:
        return "somebody waits for ever"
    return "" if served == sorted(served) else "served out of order"


@given(st.integers(0, 2**32))
def test_never_two_granted_and_all_served_in_order(seed: int) -> None:
    assert violations(seed, exclusive) == ""


def _always_decisive(view: View) -> Decision:
    return WaitFor(view.entries[-1].key, decisive=True) if view.total else Granted()


def _second_may_enter(view: View) -> Decision:
    return exclusive(view) if view.total > 1 else Granted()


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (_always_decisive, ("two hold at once", "granted out of turn")),
        (_second_may_enter, ("two hold at once", "granted out of turn")),
    ],
)
def test_the_checker_catches_a_broken_rule(broken: Rule, seen: tuple[str, ...]) -> None:
    assert {violations(seed, broken) for seed in range(50)} & set(seen)


def test_a_view_older_than_the_watch_is_read_again() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Ahead(b"a", 1)], 1)) is Action.WATCH
    assert turn.watching(7) is Action.LOOK and turn.needed == 7
    assert turn.seen(View(7, [Ahead(b"a", 1)], 1)) is Action.WAIT
    assert turn.deleted(9) is Action.GRANT


def test_the_end_of_a_keys_earlier_life_means_nothing() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Ahead(b"a", 4)], 1)) is Action.WATCH
    assert turn.watching(1) is Action.WAIT
    assert turn.deleted(3) is Action.WAIT and turn.deleted(5) is Action.WAIT
    assert turn.deleted(6) is Action.GRANT


def test_the_end_of_a_predecessor_in_mid_queue_grants_nothing() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Ahead(b"b", 2)], 2)) is Action.WATCH
    assert turn.watching(5) is Action.WAIT
    assert turn.deleted(6) is Action.LOOK and turn.needed == 6
