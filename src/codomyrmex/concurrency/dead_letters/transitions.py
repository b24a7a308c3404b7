"""The life of a dead letter as a table of phases and events. Pure: the time and the delay are given.

A phase is the state in the record together with the claim. A record says "running" until the next write, even when the
worker has died: with its claim it is RUNNING, without one it is ORPHANED.

    phase      event                                                     becomes
    ABSENT     added                                                     WAITING
    WAITING    claimed by a worker                                       RUNNING
    RUNNING    succeeded, or discarded by the handler                    RESOLVED
    RUNNING    failed, attempts are left                                 WAITING, due after a delay
    RUNNING    failed for good, or parked by the handler                 PARKED
    RUNNING    interrupted: the worker stops, or a claim without a runner WAITING, due now, the attempt not counted
    RUNNING    the claim is lost: the worker or its session is gone      ORPHANED
    ORPHANED   put back by another worker, which counts a crash          WAITING, or PARKED after too many
    all but RUNNING and ABSENT   redriven by a person                    WAITING, due now, counted from zero
    WAITING, PARKED, RESOLVED   dismissed: discarded by a person         RESOLVED
    all but RUNNING and ABSENT   removed: purged, evicted or expired     ABSENT

The phase also says what a write must compare. RUNNING: the writer's own claim. ABSENT: that the id is free. All others:
the record as it was read, and that there is no claim.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import Literal, NamedTuple, get_args

from codomyrmex.concurrency.retry import RetryPolicy

State = Literal["waiting", "running", "resolved", "parked"]

UNSETTLED: frozenset[State] = frozenset({"waiting", "running"})  # states in which workers still have something to do
MAX_CRASHES = 3  # the worker that dies as the third over an entry parks it
MAX_DELAY = 10 * 365 * 86_400.0  # seconds; a longer delay is cut to this


class Phase(Enum):
    """The state in the record together with the claim."""

    __hash__ = object.__hash__  # that of Enum is Python code, and phases and events are looked up for each write

    ABSENT = "absent"  # not added yet, or removed
    WAITING = "waiting"
    RUNNING = "running"  # a worker has the claim
    ORPHANED = "orphaned"  # the record says "running", and the claim is gone
    PARKED = "parked"
    RESOLVED = "resolved"


class Event(Enum):
    """Something that happens to a dead letter."""

    __hash__ = object.__hash__

    ADDED = "added"
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"  # the handler returned
    DISCARDED = "discarded"  # by the handler
    PARKED = "parked"  # by the handler
    FAILED = "failed"
    FAILED_FOR_GOOD = "failed for good"  # no attempt is left, or the policy does not retry such an error
    INTERRUPTED = "interrupted"
    CLAIM_LOST = "claim lost"  # nobody writes this: etcd deletes the claim with its lease
    CRASHED = "crashed"
    CRASHED_FOR_GOOD = "crashed for good"  # it killed too many workers, or no attempt is left
    REDRIVEN = "redriven"
    DISMISSED = "dismissed"  # discarded by a person
    REMOVED = "removed"


TABLE: dict[tuple[Phase, Event], Phase] = {
    (Phase.ABSENT, Event.ADDED): Phase.WAITING,
    (Phase.WAITING, Event.CLAIMED): Phase.RUNNING,
    (Phase.RUNNING, Event.SUCCEEDED): Phase.RESOLVED,
    (Phase.RUNNING, Event.DISCARDED): Phase.RESOLVED,
    (Phase.RUNNING, Event.PARKED): Phase.PARKED,
    (Phase.RUNNING, Event.FAILED): Phase.WAITING,
    (Phase.RUNNING, Event.FAILED_FOR_GOOD): Phase.PARKED,
    (Phase.RUNNING, Event.INTERRUPTED): Phase.WAITING,
    (Phase.RUNNING, Event.CLAIM_LOST): Phase.ORPHANED,
    (Phase.ORPHANED, Event.CRASHED): Phase.WAITING,
    (Phase.ORPHANED, Event.CRASHED_FOR_GOOD): Phase.PARKED,
    (Phase.WAITING, Event.REDRIVEN): Phase.WAITING,
    (Phase.ORPHANED, Event.REDRIVEN): Phase.WAITING,
    (Phase.PARKED, Event.REDRIVEN): Phase.WAITING,
    (Phase.RESOLVED, Event.REDRIVEN): Phase.WAITING,
    (Phase.WAITING, Event.DISMISSED): Phase.RESOLVED,
    (Phase.PARKED, Event.DISMISSED): Phase.RESOLVED,
    (Phase.RESOLVED, Event.DISMISSED): Phase.RESOLVED,  # with another reason
    (Phase.WAITING, Event.REMOVED): Phase.ABSENT,
    (Phase.ORPHANED, Event.REMOVED): Phase.ABSENT,
    (Phase.PARKED, Event.REMOVED): Phase.ABSENT,
    (Phase.RESOLVED, Event.REMOVED): Phase.ABSENT,
}

_STATES: dict[Phase, State] = {
    Phase.WAITING: "waiting",
    Phase.RUNNING: "running",
    Phase.ORPHANED: "running",
    Phase.PARKED: "parked",
    Phase.RESOLVED: "resolved",
}

_PHASES: dict[State, Phase] = {state: Phase(state) for state in get_args(State)}

_WRITTEN: dict[Phase, set[State | None]] = {
    phase: {
        _STATES.get(then) for (start, event), then in TABLE.items() if start is phase and event is not Event.CLAIM_LOST
    }
    for phase in Phase
}


class ImpossibleEvent(RuntimeError):
    """The library tried what cannot happen to a dead letter in its phase: a bug, not a fault of etcd or of a user."""


class Life(NamedTuple):
    """The numbers of a dead letter that its events change.

    ``attempts`` and ``crashes`` count since the entry was added or redriven. ``delay`` is in seconds; ``due`` is None
    for an entry that runs, or that was parked or resolved after it ran. One that is dismissed while it waits keeps it.
    """

    phase: Phase = Phase.ABSENT
    attempts: int = 0
    crashes: int = 0
    delay: float = 0.0
    due: datetime | None = None

    @property
    def state(self) -> State:
        return _STATES[self.phase]


def phase_of(state: State, *, claimed: bool) -> Phase:
    """The phase of an entry whose record has ``state``; ``claimed`` tells whether its claim exists."""
    if state == "running" and not claimed:
        return Phase.ORPHANED
    return _PHASES[state]


def allows(state: State, event: Event, *, claimed: bool) -> bool:
    """True if ``event`` can happen to an entry whose record has ``state``."""
    return (phase_of(state, claimed=claimed), event) in TABLE


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that follows; raises ``ImpossibleEvent``."""
    try:
        return TABLE[phase, event]
    except KeyError:
        raise ImpossibleEvent(f"a dead letter that is {phase.value} cannot be {event.value}") from None


def check_write(before: State, after: State, *, claimed: bool) -> None:
    """Raise ``ImpossibleEvent`` unless one event that is written leads from the state ``before`` to ``after``."""
    phase = phase_of(before, claimed=claimed)
    if after not in _WRITTEN[phase]:
        raise ImpossibleEvent(f"a dead letter that is {phase.value} cannot become {after} by one write")


def event_of_failure(life: Life, policy: RetryPolicy, error: BaseException | None = None) -> Event:
    """The event that a failed attempt is. ``error`` is None for a handler that asked for another attempt itself."""
    again = life.attempts < policy.max_attempts if error is None else policy.again(error, life.attempts)
    return Event.FAILED if again else Event.FAILED_FOR_GOOD


def event_of_crash(life: Life, policy: RetryPolicy) -> Event:
    """The event that a lost worker is, for the entry that it ran."""
    again = life.crashes + 1 < MAX_CRASHES and life.attempts < policy.max_attempts
    return Event.CRASHED if again else Event.CRASHED_FOR_GOOD


def step(life: Life, event: Event, now: datetime, delay: float = 0.0) -> Life:
    """The life after ``event``; raises ``ImpossibleEvent``.

    ``delay``: the seconds from ``now`` to the next attempt, for FAILED and CRASHED.
    """
    after = Life(next_phase(life.phase, event), *life[1:])
    match event:
        case Event.ADDED | Event.REDRIVEN:
            return Life(after.phase, due=now)
        case Event.CLAIMED:  # the attempt counts, also if the worker dies; an interruption takes it back
            return Life(after.phase, life.attempts + 1, life.crashes)
        case Event.INTERRUPTED:
            return _due(after._replace(attempts=max(0, life.attempts - 1)), now)
        case Event.FAILED:
            return _due(after, now, delay)
        case Event.CRASHED:
            return _due(after._replace(crashes=life.crashes + 1), now, delay)
        case Event.CRASHED_FOR_GOOD:
            return after._replace(crashes=life.crashes + 1)
    return after


def _due(life: Life, now: datetime, delay: float = 0.0) -> Life:
    delay = min(delay, MAX_DELAY)
    return life._replace(delay=delay, due=now + timedelta(seconds=delay))
