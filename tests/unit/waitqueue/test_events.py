"""Lock events over generated histories: they match what etcd did, and lead to what a fresh reading says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import LOCK, PATH, Layout
from codomyrmex.concurrency.models import LockEvent, Owner
from codomyrmex.concurrency.waitqueue.events import EventTracker
from codomyrmex.concurrency.waitqueue.rules import holding
from codomyrmex.concurrency.waitqueue.scopes import Scopes

LAYOUT = Layout("fleet")
START = datetime(2026, 1, 1, tzinfo=UTC)
DELAY_LEASE = 100  # added to a session's id: the lease of its entries with a lock_delay
QUEUES = ((LOCK, "a"), (LOCK, "b"), (PATH, "a"))
PATHS = (["x"], ["x/"], ["x/y", "z"], ["z/"], [""])
Tracker = Callable[[Layout, str, Callable[[bytes], None]], EventTracker]


class Locks:
    """Two locks, a tree and three sessions whose entries' keys are used again, as the library's are."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.revision = 10
        self.entries: dict[bytes, KV] = {}
        self.unseen: list[Event] = []
        self.over: set[int] = set()  # sessions that have ended, while entries with a lock_delay are left of them
        self.expired: set[int] = set()  # tokens of the entries that were not released, but ended with their session

    def step(self) -> None:
        self.revision += 1
        lease = self.chance.randrange(1, 4)
        step = self.chance.choice([self._join_or_release] * 6 + [self._delay, self._foreign, self._end])
        step(lease)

    def _join_or_release(self, lease: int) -> None:
        reader = b".r" if self.chance.random() < 0.4 else b""
        kind, name = self.chance.choice(QUEUES)
        key = LAYOUT.entry(LAYOUT.queue(name, kind), lease, self.chance.randrange(2), reader)
        if key in self.entries:
            self._remove(key)
        elif lease not in self.over:
            fields = Scopes.of(self.chance.choice(PATHS), bool(reader)).fields() if kind is PATH else ""
            value = f'{{"host":"h","pid":1,"since":1.0{fields}}}'.encode()
            kv = self.entries[key] = KV(key, value, self.revision, self.revision, 1, lease)
            self.unseen.append(Event(False, kv, None))

    def _delay(self, lease: int) -> None:
        """A holder puts its entry again, on a lease that lives longer than its session."""
        own = [kv for kv in self.entries.values() if kv.lease == lease]
        if own:
            kv = self.chance.choice(own)
            kv = self.entries[kv.key] = kv._replace(mod_revision=self.revision, version=2, lease=lease + DELAY_LEASE)
            self.unseen.append(Event(False, kv, None))

    def _foreign(self, lease: int) -> None:
        """A key without a lease is no entry; a key outside the queues is none of the tracker's business."""
        key = self.chance.choice([LAYOUT.queue("a") + b"no lease", LAYOUT.below("left") + b"lock/a/x"])
        leases = lease if key.endswith(b"x") else 0
        self.unseen.append(Event(False, KV(key, b"", self.revision, self.revision, 1, leases), None))

    def _end(self, lease: int) -> None:
        """A session ends; if it has ended before, the last of its entries go now."""
        if lease not in self.over:
            self._remove_at(LAYOUT.lease(lease), None)
        for key in [kv.key for kv in self.entries.values() if kv.lease == lease + DELAY_LEASE * (lease in self.over)]:
            self._remove(key, expired=True)
        delayed = any(kv.lease == lease + DELAY_LEASE for kv in self.entries.values())
        (self.over.add if delayed else self.over.discard)(lease)

    def _remove(self, key: bytes, *, expired: bool = False) -> None:
        gone = self.entries.pop(key)
        if expired or gone.lease - DELAY_LEASE in self.over:
            self.expired.add(gone.create_revision)
        self._remove_at(key, gone)

    def _remove_at(self, key: bytes, gone: KV | None) -> None:
        self.unseen.append(Event(True, KV(key, b"", 0, self.revision, 0, 0), gone))

    def see(self) -> list[Event]:
        """Changes up to some revision, in their order."""
        last = self.revision - self.chance.randrange(4)
        seen = [event for event in self.unseen if event.kv.mod_revision <= last]
        del self.unseen[: len(seen)]
        return seen


QueueName = tuple[str, str]


def holding_tokens(queue: dict[int, Owner]) -> set[int]:
    """The tokens of the holders among the entries of a queue. In a tree each path is compared with each."""
    owners = list(queue.values())
    if not any(one.paths for one in owners):
        return set(list(queue)[: holding([one.key.encode() for one in owners])])
    return {
        one.token for number, one in enumerate(owners) if not any(_overlap(one, other) for other in owners[:number])
    }


def _overlap(one: Owner, other: Owner) -> bool:
    pairs = [(mine.rstrip("/"), theirs.rstrip("/")) for mine in one.paths for theirs in other.paths]
    return not (one.shared and other.shared) and any(
        not a or not b or f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a, b in pairs
    )


class Follower:
    """It believes the events: the entries that stand in each queue, and the holders among them."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks
        self.queues: dict[QueueName, dict[int, Owner]] = {}
        self.holders: dict[QueueName, set[int]] = {}
        self.enqueued: dict[int, datetime] = {}  # tokens that were seen to join
        self.unsure: set[int] = set()  # tokens that were there at a reading, which tells of no session that had ended
        self.problems: list[str] = []

    def told(self, events: Iterable[LockEvent], now: datetime, *, seen: bool) -> None:
        for event in events:
            if event.at != now:
                self.problems.append(f"{event} is told at {now}")
            if event.kind == "enqueued":
                self._enqueued(event, seen)
            elif event.kind == "granted":
                self._granted(event, seen)
            else:
                self._left(event, seen)

    def _enqueued(self, event: LockEvent, seen: bool) -> None:
        queue, token = self.queues.setdefault((event.queue_kind, event.name), {}), event.owner.token
        if queue and token <= max(queue):
            self.problems.append(f"{token} is enqueued behind {list(queue)}")
        queue[token] = event.owner
        if seen:
            self.enqueued[token] = event.at
        else:
            self.unsure.add(token)

    def _granted(self, event: LockEvent, seen: bool) -> None:
        queue, token = self.queues.get((event.queue_kind, event.name), {}), event.owner.token
        holders = self.holders.setdefault((event.queue_kind, event.name), set())
        if token in holders or token not in holding_tokens(queue):
            self.problems.append(f"{token} is granted with {list(queue)} in the queue and {holders} holding")
        holders.add(token)
        if event.owner.granted_at != (event.at if seen else None):
            self.problems.append(f"{token} is granted at {event.owner.granted_at}, seen {seen}")
        joined = self.enqueued.get(token)
        if seen and event.owner.waited != ((event.at - joined).total_seconds() if joined else None):
            self.problems.append(f"{token} waited {event.owner.waited} from {joined} to {event.at}")

    def _left(self, event: LockEvent, seen: bool) -> None:
        token = event.owner.token
        if not self.queues.get((event.queue_kind, event.name), {}).pop(token, None):
            self.problems.append(f"{token} left, which was not there")
        self.holders.get((event.queue_kind, event.name), set()).discard(token)
        expired = seen and token in self.locks.expired
        if (event.kind == "expired") != expired and token not in self.unsure:
            self.problems.append(f"{token} {event.kind}, expired {expired}")

    def compare(self, entries: Iterable[KV]) -> None:
        """Compare the beliefs with a fresh reading."""
        fresh: dict[QueueName, dict[int, Owner]] = {}
        for kv in sorted(entries, key=lambda kv: kv.create_revision):
            kind, name = next((kind, name) for kind, name in QUEUES if LAYOUT.name_of(kv.key, kind) == name)
            owner = Owner.from_entry(kv.key, kv.value, kv.create_revision, kv.lease)
            fresh.setdefault((kind.segment, name), {})[kv.create_revision] = owner
        believed = {name: list(queue) for name, queue in self.queues.items() if queue}
        if believed != {name: list(queue) for name, queue in fresh.items()}:
            self.problems.append(f"believes {believed}, not {fresh}")
        holders = {name: tokens for name, tokens in self.holders.items() if tokens}
        expected = {name: holding_tokens(queue) for name, queue in fresh.items()}
        if holders != expected:
            self.problems.append(f"believes {holders} to hold, of {fresh}")


def run(seed: int, tracker: Tracker) -> list[str]:
    chance = random.Random(seed)
    locks, skipped = Locks(chance), list[bytes]()
    follower, tracked = Follower(locks), tracker(LAYOUT, "", skipped.append)
    now = START
    follower.told(tracked.read((), locks.revision, now), now, seen=False)
    for _ in range(60):
        now += timedelta(seconds=chance.randrange(1, 9))
        kind = chance.choice(["step", "step", "step", "events", "gap", "outdated"])
        if kind == "step":
            locks.step()
        elif kind == "events":
            follower.told(tracked.changed(locks.see(), now), now, seen=True)
        elif kind == "gap" and locks.unseen:  # etcd has compacted the changes; those that come late are passed over
            late = locks.unseen[:2]
            locks.unseen.clear()
            follower.unsure |= {token for queue in follower.queues.values() for token in queue}
            follower.told(tracked.read(locks.entries.values(), locks.revision, now), now, seen=False)
            follower.told(tracked.changed(late, now), now, seen=True)
        elif kind == "outdated":
            follower.told(tracked.read((), 5, now), now, seen=False)
    follower.told(tracked.changed(locks.unseen, now), now, seen=True)
    follower.compare(locks.entries.values())
    if any(not key.endswith(b"no lease") for key in skipped):
        follower.problems.append(f"skipped {skipped}")
    return follower.problems


def test_over_any_history_a_follower_believes_what_a_fresh_reading_says() -> None:
    for seed in range(600):
        assert run(seed, EventTracker) == [], seed


class TakesALifeForAnother(EventTracker):
    """Goes by keys alone after a gap, though they are used again."""

    def read(self, entries: Iterable[KV], revision: int, now: datetime) -> list[LockEvent]:
        known = {key: one.owner.token for queue in self._queues.values() for key, one in queue.items()}
        alike = [kv._replace(create_revision=known.get(kv.key, kv.create_revision)) for kv in entries]
        return super().read(alike, revision, now)


class BelievesLateChanges(EventTracker):
    """Takes changes that are older than its reading."""

    def changed(self, changes: Iterable[Event], now: datetime) -> list[LockEvent]:
        self.revision = 1
        return super().changed(changes, now)


class BelievesOutdatedReadings(EventTracker):
    """Takes a reading that is older than the changes it was told of."""

    def read(self, entries: Iterable[KV], revision: int, now: datetime) -> list[LockEvent]:
        return super().read(entries, max(revision, self.revision), now)


class TakesExpiryForARelease(EventTracker):
    """Does not see that a session has ended."""

    def _expired(self, queue: object, deletion: Event, ended: set[int | None]) -> bool:
        return False


class ForgetsLockDelay(EventTracker):
    """Does not remember that the session of an entry with a lock_delay has ended."""

    def _end_sessions(self, ended: set[int | None]) -> None:
        pass


class GrantsOneReaderOnly(EventTracker):
    """Tells only the first of several grants."""

    def _granted(self, queue: object, moment: object) -> list[LockEvent]:
        return super()._granted(queue, moment)[:1]  # type: ignore[arg-type]


class TakesATreeForALock(EventTracker):
    """Grants the first entries of a tree alone."""

    def _put(self, kv: KV, moment: object) -> list[LockEvent]:
        return super()._put(kv._replace(value=b"{}"), moment)  # type: ignore[arg-type]


class GrantsTwice(EventTracker):
    """Forgets its holders when a queue changes."""

    def _granted(self, queue: object, moment: object) -> list[LockEvent]:
        for one in self._queues.get(queue, {}).values():
            one.holds = False
        return super()._granted(queue, moment)  # type: ignore[arg-type]


class TimesAReading(EventTracker):
    """Takes a grant that a reading shows for one that happens now."""

    def _granted(self, queue: object, moment: object) -> list[LockEvent]:
        return super()._granted(queue, moment._replace(seen=True))  # type: ignore[attr-defined]


BROKEN = [
    TakesALifeForAnother,
    BelievesLateChanges,
    BelievesOutdatedReadings,
    TakesExpiryForARelease,
    ForgetsLockDelay,
    GrantsOneReaderOnly,
    TakesATreeForALock,
    GrantsTwice,
    TimesAReading,
]


def problems(seed: int, broken: Tracker) -> list[str]:
    """The problems that the checker finds; a tracker that raises has noticed a contradiction of its own."""
    try:
        return run(seed, broken)
    except ValueError as error:
        return [str(error)]


@pytest.mark.parametrize("broken", BROKEN)
def test_the_checker_rejects_broken_followers(broken: Tracker) -> None:
    assert any(problems(seed, broken) for seed in range(600))


def entry(number: int, revision: int) -> KV:
    return KV(LAYOUT.entry(LAYOUT.queue("a"), 1, number), b"{}", revision, revision, 1, 1)


def test_a_change_before_the_first_reading_is_impossible() -> None:
    with pytest.raises(ValueError, match="before the first reading"):
        EventTracker(LAYOUT, "", print).changed([Event(False, entry(0, 5), None)], START)


def test_another_life_without_a_deletion_is_impossible() -> None:
    tracker = EventTracker(LAYOUT, "", print)
    tracker.read([entry(0, 5)], 5, START)
    with pytest.raises(ValueError, match="was not deleted"):
        tracker.changed([Event(False, entry(0, 6), None)], START)


def test_entries_outside_the_prefix_and_the_deletion_of_unknown_keys_tell_nothing() -> None:
    tracker = EventTracker(LAYOUT, "b", print)
    assert tracker.read([entry(0, 5)], 5, START) == []
    assert tracker.changed([Event(True, entry(0, 6), None), Event(True, entry(1, 7), None)], START) == []
    assert tracker.revision == 7


def test_a_holder_that_tells_how_long_it_waited_is_shown_with_it() -> None:
    tracker = EventTracker(LAYOUT, "", print)
    value = b'{"host":"h","pid":1,"since":1.0}'
    held = entry(0, 5)._replace(value=value)
    assert [event.kind for event in tracker.read([held], 5, START)] == ["enqueued", "granted"]
    again = held._replace(value=value[:-1] + b',"waited":2.0}', mod_revision=6, version=2)
    assert tracker.changed([Event(False, again, held)], START) == []
    gone = Event(True, KV(held.key, b"", 0, 7, 0, 0), again)
    assert [event.owner.waited for event in tracker.changed([gone], START)] == [2.0]
