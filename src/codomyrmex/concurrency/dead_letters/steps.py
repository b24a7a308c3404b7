"""The events of ``transitions.py`` applied to records: each function returns the record after one event.

``store.py`` writes the result, in a transaction that compares what the event's phase demands. Each function raises
``ImpossibleEvent`` for a record to which its event cannot happen. ``now`` is the writer's wall clock; it is only shown,
or used where no worker has watched the entry (see ``schedule.py``).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from codomyrmex.concurrency.dead_letters import transitions
from codomyrmex.concurrency.dead_letters.record import AttemptRecord, DeadLetter, Outcome
from codomyrmex.concurrency.dead_letters.texts import MAX_TEXT, brief
from codomyrmex.concurrency.dead_letters.transitions import Event, Life, phase_of
from codomyrmex.concurrency.retry import RetryPolicy

MAX_HISTORY = 20
_USED_UP = "attempts are used up"
_NOT_RETRIED = "such an error is not to be retried"


# Written by the worker that has the claim, or takes it


def claimed(entry: DeadLetter, host: str, pid: int, now: datetime) -> DeadLetter:
    """A worker takes the entry."""
    entry = _stepped(entry, Event.CLAIMED, now, claim=False)
    attempt = AttemptRecord(entry.attempt_count, host, pid, now)
    return replace(entry, attempts=(*entry.attempts, attempt)[-MAX_HISTORY:])


def succeeded(entry: DeadLetter, now: datetime) -> DeadLetter:
    """The handler returned."""
    return _over(entry, Event.SUCCEEDED, now, "ok")


def discarded(entry: DeadLetter, reason: str, now: datetime) -> DeadLetter:
    """The handler raised ``Discard``."""
    return _over(entry, Event.DISCARDED, now, "discarded", reason)


def parked(entry: DeadLetter, reason: str, now: datetime) -> DeadLetter:
    """The handler raised ``Park``."""
    return _over(entry, Event.PARKED, now, "parked", reason)


def failed(entry: DeadLetter, error: BaseException, text: str, policy: RetryPolicy, now: datetime) -> DeadLetter:
    """The handler raised ``error``: the entry waits for the next attempt, or is parked after the last."""
    why = _USED_UP if entry.attempt_count >= policy.max_attempts else _NOT_RETRIED
    event = transitions.event_of_failure(_life(entry, claim=True), policy, error)
    if event is Event.FAILED:
        return _waiting(entry, event, now, "failed", text, policy.delay(entry.attempt_count))
    return _over(_ended(entry, "failed", text), event, now, "failed", _because(text, why))


def asked_again(entry: DeadLetter, asked: str, delay: float | None, policy: RetryPolicy, now: datetime) -> DeadLetter:
    """The handler raised ``Retry``: the entry waits for the next attempt, or is parked after the last.

    ``delay`` is in seconds; None takes the policy's.
    """
    event = transitions.event_of_failure(_life(entry, claim=True), policy)
    if event is Event.FAILED:
        delay = policy.delay(entry.attempt_count) if delay is None else delay
        return _waiting(entry, event, now, "failed", asked, delay)
    told = f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
    return _over(_ended(entry, "failed", asked), event, now, "failed", _because(told, _USED_UP))


def interrupted(entry: DeadLetter, now: datetime) -> DeadLetter:
    """The worker stops, or its claim is undone: the attempt does not count, and the entry is due again at once."""
    return _waiting(entry, Event.INTERRUPTED, now, "interrupted")


# Written by anyone, while there is no claim


def crashed(entry: DeadLetter, policy: RetryPolicy, now: datetime) -> DeadLetter:
    """The worker is gone and the claim with it: that costs the entry an attempt and a crash."""
    event = transitions.event_of_crash(_life(entry, claim=False), policy)
    if event is Event.CRASHED:
        return _waiting(entry, event, now, "crashed", _DIED, policy.delay(entry.attempt_count), claim=False)
    entry = _over(_ended(entry, "crashed", _DIED), event, now, "crashed", claim=False)
    if entry.crash_count >= transitions.MAX_CRASHES:
        return replace(entry, reason=f"killed {entry.crash_count} workers")
    return replace(entry, reason=_because(_DIED, _USED_UP))


_DIED = "the worker died"


def redriven(entry: DeadLetter, now: datetime) -> DeadLetter:
    """A person sends the entry back: it is due now, with all its attempts before it. The history stays."""
    return replace(_stepped(entry, Event.REDRIVEN, now, claim=False), reason="")


def dismissed(entry: DeadLetter, reason: str, now: datetime) -> DeadLetter:
    """A person discards the entry."""
    return _over(entry, Event.DISMISSED, now, "discarded", reason, claim=False)


# Parts


def _waiting(
    entry: DeadLetter,
    event: Event,
    now: datetime,
    outcome: Outcome,
    error: str = "",
    delay: float = 0.0,
    claim: bool = True,
) -> DeadLetter:
    return replace(_stepped(_ended(entry, outcome, error), event, now, delay, claim), reason="")


def _over(
    entry: DeadLetter, event: Event, now: datetime, outcome: Outcome, reason: str = "", claim: bool = True
) -> DeadLetter:
    return replace(_stepped(_ended(entry, outcome, reason), event, now, claim=claim), reason=brief(reason))


def _stepped(entry: DeadLetter, event: Event, now: datetime, delay: float = 0.0, claim: bool = True) -> DeadLetter:
    life = transitions.step(_life(entry, claim), event, now, delay)
    return replace(
        entry,
        state=life.state,
        attempt_count=life.attempts,
        crash_count=life.crashes,
        delay=life.delay,
        next_attempt_at=life.due,
    )


def _life(entry: DeadLetter, claim: bool) -> Life:
    phase = phase_of(entry.state, claimed=claim)
    return Life(phase, entry.attempt_count, entry.crash_count, entry.delay, entry.next_attempt_at)


def _ended(entry: DeadLetter, outcome: Outcome, error: str) -> DeadLetter:
    """The entry with its attempt under way ended; without one, unchanged."""
    if not entry.attempts or entry.attempts[-1].outcome != "running":
        return entry
    last = replace(entry.attempts[-1], outcome=outcome, error=brief(error))
    return replace(entry, attempts=(*entry.attempts[:-1], last))


def _because(error: str, why: str) -> str:
    """The reason to park an entry: first its error, which readers look for, then why it is not tried again."""
    room = MAX_TEXT - len(why) - len(" ()")
    return f"{brief(error, room)} ({why})"
