"""A follower of locks over generated histories: what it believes, and what it has told, equals a fresh reading."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import Layout
from codomyrmex.concurrency.models import LockEvent
from codomyrmex.concurrency.waitqueue.inspect import _Book

LAYOUT = Layout("fleet")


class Locks:
    """Two locks and three sessions whose entries' keys are used again, as the library's are."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.revision = 10
        self.entries: dict[bytes, KV] = {}
        self.unseen: list[Event] = []

    def step(self) -> None:
        self.revision += 1
        queue = LAYOUT.queue(self.chance.choice("ab"))
        lease = self.chance.randrange(1, 4)
        key = LAYOUT.entry(queue, lease, self.chance.randrange(2))
        if key in self.entries:
            gone = self.entries.pop(key)
            self.unseen.append(Event(True, KV(key, b"", 0, self.revision, 0, 0), gone))
        else:
            kv = self.entries[key] = KV(key, b"{}", self.revision, self.revision, 1, lease)
            self.unseen.append(Event(False, kv, None))


class Follower:
    """It believes what it was told: who stands in each queue, and who holds."""

    def __init__(self) -> None:
        self.queues: dict[str, list[int]] = {}
        self.holders: dict[str, set[int]] = {}
        self.problems: list[str] = []

    def told(self, events: Iterable[LockEvent]) -> None:
        for event in events:
            queue, token = self.queues.setdefault(event.name, []), event.owner.token
            holders = self.holders.setdefault(event.name, set())
            if event.kind == "enqueued":
                queue.append(token)
            elif event.kind == "granted":
                if queue[:1] != [token] or holders:
                    self.problems.append(f"{token} is granted with {queue} in the queue and {holders} holding")
                holders.add(token)
            elif token in queue:
                queue.remove(token)
                holders.discard(token)
            else:
                self.problems.append(f"{token} left, which was not there")


def run(seed: int, book: _Book) -> list[str]:
    chance = random.Random(seed)
    locks, follower = Locks(chance), Follower()
    follower.told(book.read((), locks.revision))
    for _ in range(60):
        kind = chance.choice(["step", "step", "step", "events", "gap"])
        if kind == "step":
            locks.step()
        elif kind == "events":
            count = chance.randrange(len(locks.unseen) + 1)
            follower.told(book.changed(locks.unseen[:count]))
            del locks.unseen[:count]
        elif locks.unseen:  # etcd has compacted what it had not seen; what comes late is passed over
            late = locks.unseen[:2]
            locks.unseen.clear()
            follower.told(book.read(locks.entries.values(), locks.revision))
            follower.told(book.changed(late))
    follower.told(book.changed(locks.unseen))
    fresh: dict[str, list[int]] = {}
    for kv in sorted(locks.entries.values(), key=lambda kv: kv.create_revision):
        fresh.setdefault(LAYOUT.name_of(kv.key) or "", []).append(kv.create_revision)
    believed = {name: queue for name, queue in follower.queues.items() if queue}
    if believed != fresh:
        follower.problems.append(f"believes {believed}, not {fresh}")
    holding = {name: holders for name, holders in follower.holders.items() if holders}
    if holding != {name: {queue[0]} for name, queue in fresh.items()}:
        follower.problems.append(f"believes {holding} to hold, of {fresh}")
    return follower.problems


def test_over_any_history_a_follower_believes_what_a_fresh_reading_says() -> None:
    for seed in range(600):
        assert run(seed, _Book(LAYOUT, "")) == [], seed


class TakesALifeForAnother(_Book):
    """Goes by keys alone after a gap, though they are used again."""

    def read(self, entries: Iterable[KV], revision: int) -> list[LockEvent]:
        known = {key: owner.token for queue in self._queues.values() for key, owner in queue.items()}
        return super().read(
            [kv._replace(create_revision=known.get(kv.key, kv.create_revision)) for kv in entries], revision
        )


class BelievesWhatComesLate(_Book):
    """Takes events that are older than its reading."""

    def changed(self, changes: Iterable[Event]) -> list[LockEvent]:
        self.revision = 0
        return super().changed(changes)


@pytest.mark.parametrize("broken", [TakesALifeForAnother, BelievesWhatComesLate])
def test_the_checker_rejects_broken_followers(broken: Callable[[Layout, str], _Book]) -> None:
    assert any(run(seed, broken(LAYOUT, "")) for seed in range(600))
