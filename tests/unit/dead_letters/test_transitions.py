"""The life of a dead letter over generated histories of workers that claim, end, stop and die, and of persons.

The model holds what etcd holds: one record and at most one claim. Writers act on copies that may be stale; a write is
refused as ``store.py`` refuses it. The checker watches every event, and knows nothing of the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import NamedTuple

import pytest

from codomyrmex.concurrency.dead_letters import transitions
from codomyrmex.concurrency.dead_letters.transitions import (
    MAX_CRASHES,
    MAX_DELAY,
    TABLE,
    Event,
    ImpossibleEvent,
    Life,
    Phase,
    allows,
    check_write,
    event_of_crash,
    event_of_failure,
    next_phase,
    phase_of,
    step,
)
from codomyrmex.concurrency.retry import RetryPolicy

POLICY = RetryPolicy(max_attempts=3, initial=1.0, jitter=0.0)
START = datetime(2026, 1, 1, tzinfo=UTC)
HANDLER_ENDS = {Event.SUCCEEDED, Event.DISCARDED, Event.PARKED, Event.FAILED, Event.INTERRUPTED}
BY_PERSONS = (Event.REDRIVEN, Event.DISMISSED, Event.REMOVED)


class Copy(NamedTuple):
    """The record as a writer has read it."""

    life: Life
    revision: int


class Checker:
    """Judges one letter's history by the promises made to users."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.seen: set[tuple[Phase, Event]] = set()
        self.runs = 0  # handlers that run now
        self.tries = 0  # attempts that count, since the letter was added or redriven
        self.deaths = 0
        self.may_run = False
        self.over = False  # succeeded or dismissed, and not redriven since
        self.removed = False

    def saw(self, event: Event, before: Life, after: Life, now: datetime) -> None:
        self.seen.add((before.phase, event))
        if event is Event.CLAIMED:
            self.runs += 1
            self.tries += 1
            self.expect(self.runs == 1, "two workers run it")
            self.expect(self.may_run, "it runs, although it was parked, resolved or removed")
            self.expect(before.due is not None and before.due <= now, "it runs before it is due")
            self.expect(self.tries <= POLICY.max_attempts, "it has more attempts than the policy allows")
            self.expect(self.deaths < MAX_CRASHES, "it runs on after it killed too many workers")
        elif event in HANDLER_ENDS or event in (Event.FAILED_FOR_GOOD, Event.CLAIM_LOST):
            self.runs -= 1
        if event is Event.INTERRUPTED:
            self.tries -= 1
            self.expect(after.state == "waiting", "a worker that stops costs the entry something")
        if event in (Event.CRASHED, Event.CRASHED_FOR_GOOD):
            self.deaths += 1
        if event in (Event.ADDED, Event.REDRIVEN):
            self.expect(self.runs == 0, "it is sent back while it runs")
            self.tries = self.deaths = 0
            self.may_run, self.over = True, False
        if event in (Event.SUCCEEDED, Event.DISCARDED, Event.DISMISSED):
            self.over = True
        if event is Event.REMOVED:
            self.expect(self.runs == 0, "it is removed while it runs")
            self.removed, self.may_run = True, False
        elif after.phase is Phase.ABSENT:
            self.problems.append(f"it vanished when it was {event.value}")
        elif after.state in ("parked", "resolved"):
            self.may_run = False
            self.expect(self.over == (after.state == "resolved"), f"it is {after.state} by being {event.value}")
        if after.phase is Phase.WAITING:
            self.expect(after.due is not None, "it waits for nothing")
            self.expect(after.attempts == self.tries, f"{after.attempts} attempts are counted, not {self.tries}")
            self.expect(after.crashes == self.deaths, f"{after.crashes} crashes are counted, not {self.deaths}")

    def ended(self, life: Life, claimed: bool) -> None:
        """Once every fault is over and the workers have had time."""
        self.expect(not claimed and self.runs == 0, "its claim is never given back")
        done = life.phase in (Phase.PARKED, Phase.RESOLVED) or (self.removed and life.phase is Phase.ABSENT)
        self.expect(done, f"it stays {life.phase.value} for ever")

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


class World:
    """One letter in etcd, two workers and a person."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = START
        self.life = Life()
        self.claimed = False
        self.revision = 0
        self.checker = Checker()
        self.runners = 0  # workers that believe they run it
        self.copies: list[Copy] = []

    def happens(self, event: Event, delay: float = 0.0) -> None:
        before = self.life
        self.life = transitions.step(before, event, self.now, delay)
        self.revision += 1
        self.claimed = self.life.phase is Phase.RUNNING
        self.checker.saw(event, before, self.life, self.now)

    def allows(self, event: Event) -> bool:
        return (self.life.phase, event) in transitions.TABLE

    def read(self) -> None:
        if self.life.phase is not Phase.ABSENT:
            self.copies.append(Copy(self.life, self.revision))

    def claim(self) -> None:
        """A worker claims what it takes to be due; the write compares the record as it was read."""
        copy = self.random.choice(self.copies) if self.copies else None
        due = self.life.due is None or self.life.due <= self.now
        if copy and copy.revision == self.revision and self.allows(Event.CLAIMED) and due:
            self.happens(Event.CLAIMED)

    def end(self) -> None:
        """The handler ends in one way or another; only the worker with the claim can write how."""
        if not self.claimed:
            return
        event = self.random.choice(sorted(HANDLER_ENDS, key=lambda event: event.value) + [Event.FAILED] * 3)
        if event is Event.FAILED:
            event = transitions.event_of_failure(self.life, POLICY, ValueError("again"))
        self.happens(event, POLICY.delay(self.life.attempts))

    def die(self) -> None:
        if self.claimed:
            self.happens(Event.CLAIM_LOST)

    def put_back(self) -> None:
        event = transitions.event_of_crash(self.life, POLICY)
        if self.allows(event):
            self.happens(event, POLICY.delay(self.life.attempts))

    def person(self) -> None:
        copy = self.random.choice(self.copies) if self.copies else None
        event = self.random.choice(BY_PERSONS)
        if copy and copy.revision == self.revision and self.allows(event):
            self.happens(event)

    def add(self) -> None:
        if self.life.phase is Phase.ABSENT and not self.checker.removed:
            self.happens(Event.ADDED)

    def wait(self) -> None:
        self.now += timedelta(seconds=self.random.choice([0.1, 1.0, 10.0]))


def run(seed: int) -> Checker:
    world = World(seed)
    steps = [world.read] * 6 + [world.claim] * 6 + [world.end] * 2 + [world.wait] * 3
    steps += [world.die, world.put_back, world.put_back]
    steps += [world.person] if seed % 2 else []
    world.add()
    for _ in range(80):
        world.random.choice(steps)()
    for _ in range(40):  # nobody dies and nobody interferes any more
        for each in (world.put_back, world.wait, world.read, world.claim, world.end):
            world.copies = world.copies[-1:]
            each()
    world.checker.ended(world.life, world.claimed)
    return world.checker


def test_over_any_history_every_promise_is_kept() -> None:
    seen: set[tuple[Phase, Event]] = set()
    for seed in range(1500):
        checker = run(seed)
        assert checker.problems == [], seed
        seen |= checker.seen
    assert seen == set(TABLE)  # no row is left untried


BROKEN_TABLES: dict[str, dict[tuple[Phase, Event], Phase | None]] = {
    "two workers run one entry": {(Phase.RUNNING, Event.CLAIMED): Phase.RUNNING},
    "a parked entry runs without a redrive": {(Phase.PARKED, Event.CLAIMED): Phase.RUNNING},
    "a resolved entry runs again": {(Phase.RESOLVED, Event.CLAIMED): Phase.RUNNING},
    "an orphan is forgotten": {(Phase.ORPHANED, Event.CRASHED): None, (Phase.ORPHANED, Event.CRASHED_FOR_GOOD): None},
    "a running entry is purged": {(Phase.RUNNING, Event.REMOVED): Phase.ABSENT},
    "a running entry is redriven": {(Phase.RUNNING, Event.REDRIVEN): Phase.WAITING},
    "a failure counts as done": {(Phase.RUNNING, Event.FAILED): Phase.RESOLVED},
    "a failure drops the entry": {(Phase.RUNNING, Event.FAILED_FOR_GOOD): Phase.ABSENT},
    "attempts never end": {(Phase.RUNNING, Event.FAILED_FOR_GOOD): Phase.WAITING},
    "a worker's stop parks": {(Phase.RUNNING, Event.INTERRUPTED): Phase.PARKED},
    "a worker's killer is retried for ever": {(Phase.ORPHANED, Event.CRASHED_FOR_GOOD): Phase.WAITING},
    "a dead worker's entry counts as done": {(Phase.RUNNING, Event.CLAIM_LOST): Phase.RESOLVED},
    "a success is tried again": {(Phase.RUNNING, Event.SUCCEEDED): Phase.PARKED},
}


@pytest.mark.parametrize("changes", BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_the_checker_rejects_broken_tables(
    changes: dict[tuple[Phase, Event], Phase | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {move: then for move, then in {**TABLE, **changes}.items() if then is not None}
    monkeypatch.setattr(transitions, "TABLE", broken)
    assert any(run(seed).problems for seed in range(1500))


def _counts_no_crash(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    return step(life, event, now, delay)._replace(crashes=0)


def _counts_no_attempt(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    after = step(life, event, now, delay)
    return after._replace(attempts=life.attempts) if event is Event.CLAIMED else after


def _counts_the_interrupted(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    after = step(life, event, now, delay)
    return after._replace(attempts=life.attempts) if event is Event.INTERRUPTED else after


def _is_never_due(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    after = step(life, event, now, delay)
    return after._replace(due=None) if event is Event.FAILED else after


def _redrives_with_few_attempts(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    after = step(life, event, now, delay)
    return after._replace(attempts=life.attempts) if event is Event.REDRIVEN else after


@pytest.mark.parametrize(
    "broken",
    [_counts_no_crash, _counts_no_attempt, _counts_the_interrupted, _is_never_due, _redrives_with_few_attempts],
)
def test_the_checker_rejects_broken_numbers(broken: Callable[..., Life], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "step", broken)
    assert any(run(seed).problems for seed in range(1500))


def test_every_event_that_is_not_in_the_table_raises() -> None:
    for phase, event in product(Phase, Event):
        if (phase, event) in TABLE:
            assert step(Life(phase), event, START).phase is next_phase(phase, event)
        else:
            with pytest.raises(ImpossibleEvent):
                step(Life(phase), event, START)
    assert {phase for phase, _ in TABLE} == set(Phase) and {event for _, event in TABLE} == set(Event)


def test_a_record_that_says_running_is_orphaned_without_its_claim() -> None:
    assert phase_of("running", claimed=True) is Phase.RUNNING
    assert phase_of("running", claimed=False) is Phase.ORPHANED
    assert phase_of("parked", claimed=False) is Phase.PARKED
    assert allows("running", Event.REDRIVEN, claimed=False) and not allows("running", Event.REDRIVEN, claimed=True)


def test_a_write_that_no_event_explains_raises() -> None:
    check_write("running", "waiting", claimed=True)
    check_write("running", "parked", claimed=False)
    for before, after, claimed in (
        ("running", "running", True),
        ("waiting", "parked", False),
        ("parked", "running", False),
    ):
        with pytest.raises(ImpossibleEvent):
            check_write(before, after, claimed=claimed)


def test_the_numbers_of_each_event() -> None:
    waiting = step(Life(), Event.ADDED, START)
    assert waiting == Life(Phase.WAITING, 0, 0, 0.0, START)
    running = step(waiting, Event.CLAIMED, START)
    assert running == Life(Phase.RUNNING, 1, 0, 0.0, None)
    assert step(running, Event.FAILED, START, 7.0) == Life(Phase.WAITING, 1, 0, 7.0, START + timedelta(seconds=7))
    assert step(running, Event.FAILED, START, 1e12).delay == MAX_DELAY
    assert step(running, Event.INTERRUPTED, START) == waiting
    orphaned = step(running, Event.CLAIM_LOST, START)
    assert step(orphaned, Event.CRASHED, START, 2.0) == Life(Phase.WAITING, 1, 1, 2.0, START + timedelta(seconds=2))
    parked = Life(Phase.PARKED, 3, 2)
    assert step(parked, Event.REDRIVEN, START) == waiting


def test_a_failure_is_final_when_no_attempt_is_left_or_the_policy_gives_up() -> None:
    policy = RetryPolicy(max_attempts=2, give_up_on=(KeyError,))
    first, second = Life(Phase.RUNNING, 1), Life(Phase.RUNNING, 2)
    assert event_of_failure(first, policy, ValueError()) is Event.FAILED
    assert event_of_failure(first, policy, KeyError()) is Event.FAILED_FOR_GOOD
    assert event_of_failure(second, policy, ValueError()) is Event.FAILED_FOR_GOOD
    assert event_of_failure(first, policy) is Event.FAILED
    assert event_of_failure(second, policy) is Event.FAILED_FOR_GOOD


def test_a_crash_is_final_when_too_many_workers_died_or_no_attempt_is_left() -> None:
    many = RetryPolicy(max_attempts=99)
    assert event_of_crash(Life(Phase.ORPHANED, 1, MAX_CRASHES - 2), many) is Event.CRASHED
    assert event_of_crash(Life(Phase.ORPHANED, 1, MAX_CRASHES - 1), many) is Event.CRASHED_FOR_GOOD
    assert event_of_crash(Life(Phase.ORPHANED, 99, 0), many) is Event.CRASHED_FOR_GOOD
