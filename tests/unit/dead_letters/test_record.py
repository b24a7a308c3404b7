"""A record's copies with changes, its value, and the two fields that can be read without the rest."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from codomyrmex.concurrency.dead_letters import record, steps
from codomyrmex.concurrency.dead_letters.own_writes import OwnWrites
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.transitions import Event, ImpossibleEvent
from codomyrmex.concurrency.retry import RetryPolicy

ENTRY = record.new("send", {"to": ["a"]}, "ConnectionError: away", {"n": 1}, str)
RUNNING = steps.claimed(ENTRY, "host", 7, record.now())
VALUE = record.encode(RUNNING)


def test_a_change_is_that_of_dataclasses() -> None:
    changes: dict[str, Any] = {"state": "parked", "attempt_count": 3, "reason": "broken", "key": "k"}
    assert record.changed(RUNNING, **changes) == replace(RUNNING, **changes)
    assert record.changed(RUNNING) == RUNNING and record.changed(RUNNING) is not RUNNING


def test_a_change_of_no_field_is_an_error() -> None:
    with pytest.raises(KeyError):
        record.changed(ENTRY, colour="red")


def test_the_value_holds_every_field_but_the_key() -> None:
    entry = record.changed(RUNNING, key="where it lies")
    assert record.encode(entry) == VALUE
    read = record.decode(b"where it lies", VALUE)
    assert read == entry
    assert all(b'"%s":' % one.name.encode() in VALUE for one in fields(DeadLetter) if one.name != "key")


def test_each_event_changes_the_fields_it_should() -> None:
    over = steps.succeeded(RUNNING, record.now())
    assert (RUNNING.state, RUNNING.attempt_count, RUNNING.next_attempt_at) == ("running", 1, None)
    assert (over.state, over.reason, over.attempts[-1].outcome) == ("resolved", "", "ok")
    assert (
        replace(over, state=ENTRY.state, attempts=(), attempt_count=0, next_attempt_at=ENTRY.next_attempt_at) == ENTRY
    )
    with pytest.raises(ImpossibleEvent, match=Event.SUCCEEDED.value):
        steps.succeeded(over, record.now())


def test_the_last_attempt_has_the_error_and_the_record_the_reason() -> None:
    policy = RetryPolicy(max_attempts=1)
    over = steps.failed(RUNNING, ValueError("bad"), "ValueError: bad", policy, record.now())
    assert over.state == "parked" and over.attempts[-1].error == "ValueError: bad"
    assert over.reason == "ValueError: bad (attempts are used up)"
    dead = steps.crashed(RUNNING, policy, record.now())
    assert (dead.attempts[-1].error, dead.attempts[-1].outcome) == ("the worker died", "crashed")
    assert dead.reason == "the worker died (attempts are used up)"
    thrice = steps.crashed(record.changed(RUNNING, crash_count=2), policy, record.now())
    assert (thrice.crash_count, thrice.reason) == (3, "killed 3 workers")


def test_a_peek_reads_operation_and_state() -> None:
    assert record.peek(VALUE) == ("send", "running")


@pytest.mark.parametrize("value", [b"", b"[]", b'{"operation": "x"}', b'{"operation": 1, "state": "waiting"}', b"\xff"])
def test_a_peek_at_something_else_finds_nothing(value: bytes) -> None:
    assert record.peek(value) is None


# Own writes


def test_an_own_write_is_known_by_its_value_once() -> None:
    written = OwnWrites()
    written.note(b"k", VALUE, RUNNING)
    assert written.take(b"k", VALUE + b" ") is None and written.take(b"other", VALUE) is None
    assert written.take(b"k", VALUE) is RUNNING
    assert written.take(b"k", VALUE) is None


def test_own_writes_whose_events_do_not_come_are_forgotten() -> None:
    written = OwnWrites(room=2 * len(VALUE))
    for key in (b"1", b"2", b"2", b"3"):
        written.note(key, VALUE, RUNNING)
    assert [written.take(key, VALUE) is RUNNING for key in (b"1", b"2", b"3")] == [False, True, True]
    written.note(b"large", VALUE * 3, RUNNING)
    assert written.take(b"large", VALUE * 3) is None
    written.note(b"4", VALUE, RUNNING)
    assert written.take(b"4", VALUE) is RUNNING
