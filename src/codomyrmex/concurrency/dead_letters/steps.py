"""The events of ``transitions.py`` applied to records: each function returns the record after one event.

``store.py`` writes the result, in a transaction that compares what the event's phase demands. Each function raises
``ImpossibleEvent`` for a record to which its event cannot happen. ``now`` is the writer's wall clock; it is only shown,
or used where no worker has watched the entry (see ``schedule.py``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from codomyrmex.concurrency.dead_letters import transitions
from codomyrmex.concurrency.dead_letters.record import AttemptRecord, DeadLetter, Outcome, changed
from codomyrmex.concurrency.dead_letters.texts import MAX_TEXT, brief
from codomyrmex.concurrency.dead_letters.transitions import Event, Life, phase_of
from codomyrmex.concurrency.retry import RetryPolicy

MAX_HISTORY = 20
_USED_UP = "attempts are used up"
_NOT_RETRIED = "such an error is not to be retried"


# Written by the worker that has the claim, or takes it


def claimed(entry: DeadLetter, host: str, pid: int, now: datetime) -> DeadLetter:
    """A worker takes the entry."""
    life = transitions.step(_life(entry, claim=False), Event.CLAIMED, now)
    attempt = AttemptRecord(life.attempts, host, pid, now)
    return _lived(entry, life, attempts=(*entry.attempts, attempt)[-MAX_HISTORY:])


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
    return _over(entry, event, now, "failed", _because(text, why), text)


def asked_again(entry: DeadLetter, asked: str, delay: float | None, policy: RetryPolicy, now: datetime) -> DeadLetter:
    """The handler raised ``Retry``: the entry waits for the next attempt, or is parked after the last.

    ``delay`` is in seconds; None takes the policy's.
    """
    event = transitions.event_of_failure(_life(entry, claim=True), policy)
    if event is Event.FAILED:
        delay = policy.delay(entry.attempt_count) if delay is None else delay
        return _waiting(entry, event, now, "failed", asked, delay)
    told = f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
    return _over(entry, event, now, "failed", _because(told, _USED_UP), asked)


def interrupted(entry: DeadLetter, now: datetime) -> DeadLetter:
    """The worker stops, or its claim is undone: the attempt does not count, and the entry is due again at once."""
    return _waiting(entry, Event.INTERRUPTED, now, "interrupted")


# Written by anyone, while there is no claim


def crashed(entry: DeadLetter, policy: RetryPolicy, now: datetime) -> DeadLetter:
    """The worker is gone and the claim with it: that costs the entry an attempt and a crash."""
    event = transitions.event_of_crash(_life(entry, claim=False), policy)
    if event is Event.CRASHED:
        return _waiting(entry, event, now, "crashed", _DIED, policy.delay(entry.attempt_count), claim=False)
    crashes = entry.crash_count + 1
    reason = f"killed {crashes} workers" if crashes >= transitions.MAX_CRASHES else _because(_DIED, _USED_UP)
    return _over(entry, event, now, "crashed", reason, _DIED, claim=False)


_DIED = "the worker died"


def redriven(entry: DeadLetter, now: datetime) -> DeadLetter:
    """A person sends the entry back: it is due now, with all its attempts before it. The history stays."""
    return _lived(entry, transitions.step(_life(entry, claim=False), Event.REDRIVEN, now), reason="")


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
    life = transitions.step(_life(entry, claim), event, now, delay)
    return _lived(entry, life, attempts=_ended(entry.attempts, outcome, error), reason="")


def _over(
    entry: DeadLetter,
    event: Event,
    now: datetime,
    outcome: Outcome,
    reason: str = "",
    error: str | None = None,
    claim: bool = True,
) -> DeadLetter:
    """The entry parked or resolved for ``reason``; its attempt ended with ``error``, or with the reason."""
    life = transitions.step(_life(entry, claim), event, now)
    attempts = _ended(entry.attempts, outcome, reason if error is None else error)
    return _lived(entry, life, attempts=attempts, reason=brief(reason))


def _lived(entry: DeadLetter, life: Life, **changes: Any) -> DeadLetter:
    """The entry with the numbers of ``life`` and ``changes``."""
    return changed(
        entry,
        state=life.state,
        attempt_count=life.attempts,
        crash_count=life.crashes,
        delay=life.delay,
        next_attempt_at=life.due,
        **changes,
    )


def _life(entry: DeadLetter, claim: bool) -> Life:
    phase = phase_of(entry.state, claimed=claim)
    return Life(phase, entry.attempt_count, entry.crash_count, entry.delay, entry.next_attempt_at)


def _ended(attempts: tuple[AttemptRecord, ...], outcome: Outcome, error: str) -> tuple[AttemptRecord, ...]:
    """The attempts with the one under way ended; without one, unchanged."""
    if not attempts or attempts[-1].outcome != "running":
        return attempts
    last = attempts[-1]
    return (*attempts[:-1], AttemptRecord(last.number, last.host, last.pid, last.time, outcome, brief(error)))


def _because(error: str, why: str) -> str:
    """The reason to park an entry: first its error, which readers look for, then why it is not tried again."""
    room = MAX_TEXT - len(why) - len(" ()")
    return f"{brief(error, room)} ({why})"
