"""A worker's schedule over generated histories: delays, claims, failed claims, gaps in the watch, wrong clocks.

The model is a queue in etcd, its events on their way to one worker, and that worker's clock. The checker keeps its own
account of what the worker was told and judges each entry that the schedule hands out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from codomyrmex.concurrency.dead_letters.record import DeadLetter, Stored
from codomyrmex.concurrency.dead_letters.schedule import Schedule
from codomyrmex.concurrency.dead_letters.transitions import State

START = datetime(2026, 1, 1, tzinfo=UTC)
IDS = ("a", "b", "c")
HANDLED = "x"
PAUSE = 5.0  # seconds after which a worker looks again at an entry that it could not claim


class Event(NamedTuple):
    revision: int
    entry_id: str
    kind: str  # "entry" or "claim"
    stored: Stored | None  # None: the key was deleted


@dataclass
class Told:
    """The last news of one entry that has reached the worker."""

    stored: Stored
    first_due: float
    due: float  # later than that if a claim failed
    taken: bool = False

    def unclaimed(self) -> None:
        self.due, self.taken = self.first_due, False


class World:
    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.random = random.Random(seed)
        self.schedule = schedule
        self.skew = timedelta(seconds=self.random.choice([0, 0, 3600, -3600]))
        self.clock = 100.0
        self.revision = 1
        self.entries: dict[str, Stored] = {}
        self.claims: set[str] = set()
        self.events: list[Event] = []
        self.told: dict[str, Told] = {}
        self.told_claims: set[str] = set()
        self.problems: list[str] = []
        self.read()

    # etcd

    def put(self, entry_id: str, state: State, delay: float = 0.0) -> None:
        self.revision += 1
        due = START + self.skew + timedelta(seconds=self.clock + delay)
        entry = DeadLetter(
            entry_id,
            HANDLED,
            {},
            "",
            START,
            state=state,
            delay=delay,
            next_attempt_at=due if state == "waiting" else None,
        )
        self.entries[entry_id] = Stored(entry, self.revision)
        self.events.append(Event(self.revision, entry_id, "entry", self.entries[entry_id]))

    def delete(self, entry_id: str) -> None:
        self.revision += 1
        del self.entries[entry_id]
        self.events.append(Event(self.revision, entry_id, "entry", None))

    def set_claim(self, entry_id: str, there: bool) -> None:
        """Written in the transaction of the record that follows, and told first."""
        stored = self.entries[entry_id] if there else None
        (self.claims.add if there else self.claims.discard)(entry_id)
        self.events.append(Event(self.revision + 1, entry_id, "claim", stored))

    def claim(self, entry_id: str) -> None:
        self.set_claim(entry_id, True)
        self.put(entry_id, "running")

    def is_claimable(self, entry_id: str) -> bool:
        stored = self.entries.get(entry_id)
        return stored is not None and stored.entry.state == "waiting" and entry_id not in self.claims

    def changes(self) -> None:
        """Something happens in etcd, by other workers and by persons."""
        entry_id = self.random.choice(IDS)
        stored = self.entries.get(entry_id)
        delay = self.random.choice([0.0, 1.0, 30.0])
        if stored is None:
            self.put(entry_id, "waiting", delay)
        elif entry_id in self.claims:
            if self.random.random() < 0.3:  # its worker dies, or a claim that no worker has is deleted
                self.set_claim(entry_id, False)
                self.revision += 1
                return
            self.set_claim(entry_id, False)
            self.put(entry_id, self.random.choice(["waiting", "waiting", "resolved", "parked"]), delay)
        elif stored.entry.state == "running":
            self.put(entry_id, "waiting", delay)
        elif self.random.random() < 0.4 and stored.entry.state == "waiting":
            self.claim(entry_id)
        elif self.random.random() < 0.2 and stored.entry.state == "waiting":  # a claim without an attempt
            self.set_claim(entry_id, True)
            self.revision += 1
        elif self.random.random() < 0.2:
            self.delete(entry_id)
        else:
            self.put(entry_id, "waiting", delay)

    # The worker

    def read(self) -> None:
        """The watch begins, or has a gap; what is on its way stays on its way."""
        self.schedule.restart()
        self.told, self.told_claims = {}, set(self.claims)
        for entry_id in self.claims:
            self.schedule.claimed(entry_id)
        wall = START + timedelta(seconds=self.clock)
        for stored in self.entries.values():
            self.schedule.found(stored, self.clock, wall)
            self.note(stored, found=True)
        self.schedule.complete(self.revision)
        self.read_at = self.revision

    def gap(self) -> None:
        """Events are lost, for good, up to some revision; the others come late."""
        self.events = self.events[self.random.randint(0, len(self.events)) :]
        self.read()

    def note(self, stored: Stored, found: bool = False) -> None:
        delay = stored.entry.delay
        left = delay
        if found and stored.entry.next_attempt_at:
            left = (stored.entry.next_attempt_at - (START + timedelta(seconds=self.clock))).total_seconds()
        due = self.clock + min(max(0.0, left), delay)
        self.told[stored.entry.id] = Told(stored, due, due)

    def deliver(self) -> None:
        if not self.events:
            return
        event = self.events.pop(0)
        if not self.schedule.is_old(event.revision):
            self.tell(event)
        if event.revision > self.read_at:
            self.account(event)

    def tell(self, event: Event) -> None:
        if event.kind == "claim":
            (self.schedule.claimed if event.stored else self.schedule.unclaimed)(event.entry_id)
        elif event.stored is None:
            self.schedule.removed(event.entry_id)
        else:
            self.schedule.changed(event.stored, self.clock)

    def account(self, event: Event) -> None:
        if event.kind == "entry" and event.stored:
            self.note(event.stored)
        elif event.kind == "entry":
            self.told.pop(event.entry_id, None)
        elif event.stored:
            self.told_claims.add(event.entry_id)
        elif event.entry_id in self.told_claims:
            self.told_claims.discard(event.entry_id)
            if told := self.told.get(event.entry_id):
                told.unclaimed()

    def expected(self) -> dict[str, float]:
        """The entries that are to be offered, and when."""
        return {
            entry_id: told.due
            for entry_id, told in self.told.items()
            if told.stored.entry.state == "waiting" and entry_id not in self.told_claims and not told.taken
        }

    def take(self) -> None:
        """Take what is due; the claim succeeds, meets another worker's, or fails for want of etcd."""
        expected = self.expected()
        entry_id = self.schedule.take_due(self.clock)
        due = {one: at for one, at in expected.items() if at <= self.clock}
        if entry_id is None:
            self.expect(not due, "something is due and is not handed out")
            return
        self.expect(entry_id in due, "an entry is handed out that is not due")
        if entry_id in due:
            self.expect(due[entry_id] == min(due.values()), "an entry overtakes one that was due before")
            self.told[entry_id].taken = True
        if self.is_claimable(entry_id) and self.random.random() < 0.5:
            self.claim(entry_id)
        elif told := self.told.get(entry_id):
            self.schedule.offer_again(entry_id, self.clock + PAUSE)
            told.taken, told.due = False, self.clock + PAUSE

    def look(self) -> None:
        """Now and then an event is lost without a gap; the next look at the claims tells."""
        lost = [event for event in self.events if event.kind == "claim" and event.stored is None]
        if not lost:
            return
        self.events.remove(lost[0])
        while self.events:
            self.deliver()
        orphans = self.schedule.compare_claims(self.schedule.claims(), self.claims)
        for entry_id in self.told_claims - self.claims:
            self.told_claims.discard(entry_id)
            if told := self.told.get(entry_id):
                told.unclaimed()
        self.expect(set(orphans) <= self.orphans(), "an entry is taken for an orphan that is none")

    def orphans(self) -> set[str]:
        running = {entry_id for entry_id, told in self.told.items() if told.stored.entry.state == "running"}
        return running - self.told_claims

    def wait(self) -> None:
        self.clock += self.random.choice([0.1, 1.0, 20.0])

    def judge(self) -> None:
        """Compare all that can be asked of the schedule with the account."""
        self.expect(set(self.schedule.orphans()) == self.orphans(), "the orphans are others")
        unsettled = any(told.stored.entry.state in ("waiting", "running") for told in self.told.values())
        self.expect(self.schedule.has_unsettled([HANDLED]) == unsettled, "what is left to do is counted wrongly")
        upcoming = min(self.expected().values(), default=None)
        self.expect(self.schedule.next_due() == upcoming, "the worker would sleep too long, or wake for nothing")

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def run(seed: int, schedule: Schedule) -> list[str]:
    world = World(seed, schedule)
    steps = [world.changes] * 4 + [world.deliver] * 6 + [world.take] * 4 + [world.wait] * 2
    steps += [world.gap] if seed % 2 else [world.look]
    for _ in range(60):
        world.random.choice(steps)()
        world.judge()
    while world.events:
        world.deliver()
    world.clock += 1000.0
    for _ in IDS:  # nothing is forgotten
        world.take()
        while world.events:
            world.deliver()
    world.judge()
    return world.problems


def test_over_any_history_what_is_due_is_handed_out_in_order_and_nothing_is_forgotten() -> None:
    for seed in range(1500):
        assert run(seed, Schedule()) == [], seed


class ForgetsTheClaimed(Schedule):
    """Does not offer an entry again that was passed over because of its claim."""

    def unclaimed(self, entry_id: str) -> None:
        self._claimed.discard(entry_id)


class ForgetsFailedClaims(Schedule):
    def offer_again(self, entry_id: str, clock: float) -> None:
        known = self._known.get(entry_id)
        if known and clock <= known.due:
            super().offer_again(entry_id, clock)


class IgnoresDelays(Schedule):
    def changed(self, stored: Stored, clock: float) -> None:
        super().changed(Stored(stored.entry, stored.revision), clock - stored.entry.delay)


class TrustsWallClocks(Schedule):
    """Believes the record's time where it had better not."""

    def found(self, stored: Stored, clock: float, wall: datetime) -> None:
        due = stored.entry.next_attempt_at
        self._put(stored.entry, stored.revision, clock + ((due - wall).total_seconds() if due else 0.0))


class HandsOutTheClaimed(Schedule):
    def claimed(self, entry_id: str) -> None:
        pass


class ServesTheLatestFirst(Schedule):
    def take_due(self, clock: float) -> str | None:
        due = [offer for offer in self._offers if offer[0] <= clock and self._stands(*offer)]
        if not due:
            return None
        self._known[max(due)[2]].offered = None
        return max(due)[2]


class RemembersOverAGap(Schedule):
    """Takes a gap for nothing, and so keeps entries and claims whose deletion went unseen."""

    def restart(self) -> None:
        pass


class BelievesOldEvents(Schedule):
    """Takes events for news that the reading included."""

    def is_old(self, revision: int) -> bool:
        return False


class OffersTwice(Schedule):
    """Leaves a second offer standing when one is taken."""

    def take_due(self, clock: float) -> str | None:
        entry_id = super().take_due(clock)
        if entry_id and self._known[entry_id].revision % 5 == 0:
            self.offer_again(entry_id, self._known[entry_id].due)
        return entry_id


class DoesNotCompareClaims(Schedule):
    def compare_claims(self, before: set[str], found: Iterable[str]) -> list[str]:
        return []


@pytest.mark.parametrize(
    "broken",
    [
        ForgetsTheClaimed,
        ForgetsFailedClaims,
        IgnoresDelays,
        TrustsWallClocks,
        HandsOutTheClaimed,
        ServesTheLatestFirst,
        RemembersOverAGap,
        BelievesOldEvents,
        OffersTwice,
        DoesNotCompareClaims,
    ],
)
def test_the_checker_rejects_broken_variants(broken: Callable[[], Schedule]) -> None:
    assert any(run(seed, broken()) for seed in range(1500))


def entry(delay: float, due_in: float, **fields: object) -> Stored:
    letter = DeadLetter("a", HANDLED, {}, "", START, delay=delay, next_attempt_at=START + timedelta(seconds=due_in))
    for name, value in fields.items():
        object.__setattr__(letter, name, value)
    return Stored(letter, 7)


@pytest.mark.parametrize(
    ("due_in", "expected"),
    [(10.0, 10.0), (-5.0, 0.0), (3600.0, 30.0)],
    ids=["part of the delay is left", "the delay is over", "another host's clock is an hour ahead"],
)
def test_an_entry_that_was_there_waits_for_the_rest_of_its_delay_and_no_longer(due_in: float, expected: float) -> None:
    schedule = Schedule()
    schedule.found(entry(30.0, due_in), 100.0, START)
    assert schedule.next_due() == 100.0 + expected


def test_an_entry_that_changes_now_waits_for_its_whole_delay_whatever_its_record_says() -> None:
    schedule = Schedule()
    schedule.changed(entry(30.0, -3600.0), 100.0)
    assert schedule.take_due(129.9) is None and schedule.take_due(130.0) == "a" and schedule.take_due(999.0) is None


def test_an_entry_without_a_handler_is_offered_again_when_there_is_one() -> None:
    schedule = Schedule()
    schedule.changed(entry(0.0, 0.0), 100.0)
    assert schedule.take_due(100.0) == "a" and schedule.take_due(200.0) is None
    schedule.handled_now("another")
    assert schedule.take_due(200.0) is None
    schedule.handled_now(HANDLED)
    schedule.handled_now(HANDLED)
    assert schedule.take_due(200.0) == "a" and schedule.take_due(200.0) is None


def test_an_entry_that_was_run_when_a_worker_died_is_a_suspect() -> None:
    schedule = Schedule()
    schedule.changed(entry(0.0, 0.0, crash_count=1), 100.0)
    assert schedule.is_suspect("a") and not schedule.is_suspect("b")
    assert schedule.operation("a") == HANDLED and schedule.operation("b") == ""


def test_a_schedule_is_complete_only_after_its_reading() -> None:
    schedule = Schedule()
    assert not schedule.is_complete and not schedule.is_old(5)
    schedule.complete(7)
    assert schedule.is_complete and schedule.is_old(7) and not schedule.is_old(8)
    schedule.restart()
    assert not schedule.is_complete
