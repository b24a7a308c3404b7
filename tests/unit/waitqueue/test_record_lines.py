"""The lines of a record, and the past that is read from them, against a model that made every hold."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.models import History, QueueKind
from codomyrmex.concurrency.waitqueue.record_lines import Line, RecordLines, begin_line, gap_line
from codomyrmex.concurrency.waitqueue.recorded import recorded
from tests.unit.waitqueue.test_replay import (
    CHOICES,
    LAYOUT,
    QUEUES,
    START,
    Choices,
    Hold,
    World,
    at,
    in_order,
    told,
    world_of,
)

LATER = START + timedelta(hours=1)


def world_alone(choices: Choices) -> World:
    """A world in which no two entries of a queue join in one revision, as this library's do not."""
    return world_of([("join" if what == "join both" else what, *rest) for what, *rest in choices])  # type: ignore[misc]


def lines_of(world: World, first: int, last: int, late_until: int, lines: RecordLines) -> list[Line]:
    """The lines of the revisions from ``first`` to ``last``. Those that are late are read an hour later."""
    found: list[Line] = []
    events = [event for event in world.events if first <= event.kv.mod_revision <= last]
    for revision, together in groupby(events, key=lambda event: event.kv.mod_revision):
        when = LATER if revision <= late_until else at(revision)
        found += lines.changed(list(together), when, late_until)
    return found


def begun(world: World, revision: int = 1) -> RecordLines:
    lines = RecordLines(LAYOUT, "", lambda key: None)
    entries, over = world.pictures.get(revision, ([], set()))
    lines.read(entries, revision, LATER, over)
    return lines


def read_back(lines: list[Line], kind: QueueKind) -> History:
    beginning = begin_line(1, START, "fleet", "")
    return recorded((json.dumps(line).encode() for line in [beginning, *lines]), "a", kind).past


@settings(max_examples=100)
@given(CHOICES, st.data())
def test_a_record_tells_every_hold_and_times_what_it_saw(choices: Choices, data: st.DataObject) -> None:
    """The recorder is replaced once, and the first steps happened before it could see them."""
    world = world_alone(choices)
    late_until = data.draw(st.integers(1, world.revision))
    replaced = data.draw(st.integers(1, world.revision))
    found = lines_of(world, 2, replaced, late_until, begun(world))
    found += lines_of(world, replaced + 1, world.revision, late_until, begun(world, replaced))
    for queue, kind in QUEUES.items():
        past = read_back(found, kind)
        assert past.begins_at == 1
        assert in_order(told(past.holds)) == in_order([_row(world, one, late_until) for one in world.holds[queue]])
        assert sorted(one.token for one in past.waits) == sorted(world.withdrawn[queue])
        assert {one.token: one.forced for one in past.holds if one.forced} == {
            one.token: world.forced[one.ended] for one in world.holds[queue] if one.how == "forced"
        }


def _row(world: World, one: Hold, late_until: int) -> tuple[object, ...]:
    at_join = one.granted == one.token and one.token in world.created
    timed = one.granted > late_until or at_join or (one.told and one.ended)
    ended_at: datetime | None = None
    if one.ended and (one.ended > late_until or one.how == "forced"):
        ended_at = at(one.ended)
    bound = at(one.ended) if one.ended > late_until else LATER
    granted_at = at(one.granted) if timed else None
    return one.token, one.granted, granted_at, one.ended or None, one.how, ended_at, bound if one.ended else None


@settings(max_examples=100)
@given(CHOICES, st.data())
def test_what_ended_in_a_gap_ended_nobody_knows_how(choices: Choices, data: st.DataObject) -> None:
    world = world_alone(choices)
    last = data.draw(st.integers(1, world.revision))
    after = data.draw(st.integers(last, world.revision))
    found = lines_of(world, 2, last, 0, begun(world))
    lines = RecordLines(LAYOUT, "", lambda key: None)
    entries, over = world.pictures.get(after, ([], set()))
    found += [gap_line(last + 1, after, LATER), *lines.read(entries, after, LATER, over)]
    found += lines_of(world, after + 1, world.revision, 0, lines)
    for queue, kind in QUEUES.items():
        known = [one for one in world.holds[queue] if one.granted <= last or not one.ended or one.ended > after]
        expected = [(one.token, "unknown" if last < one.ended <= after else one.how) for one in known]
        holds = read_back(found, kind).holds
        assert sorted((one.token, one.how) for one in holds) == sorted(expected)
        assert all(one.ended_before == LATER for one in holds if one.how == "unknown")


def test_a_beginning_shows_who_holds_and_who_waits() -> None:
    world = world_alone([("join", 1, 0, 2), ("join", 2, 0, 2), ("foreign", 1, 0, 0)])
    lines = RecordLines(LAYOUT, "", lambda key: None)
    found = lines.read(world.entries.values(), world.revision, LATER)
    assert [(line["kind"], line["token"], line["revision"], line["late"]) for line in found] == [
        ("holds", 2, world.revision, True),
        ("waits", 3, world.revision, True),
    ]
    assert lines.revision == world.revision


def test_every_gap_of_a_record_is_told_whatever_ended_in_it() -> None:
    lines = [begin_line(5, START, "fleet", ""), gap_line(9, 20, START), gap_line(31, 31, LATER)]
    found = recorded((json.dumps(line).encode() for line in lines), "a", "lock")
    assert (found.past.begins_at, found.past.holds, found.gaps) == (5, (), ((9, 20), (31, 31)))


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"notes", b'{"kind":"granted"}', b'{"gap":null}', b'{"gap":{"to":9}}', b"\xff"]
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    beginning = json.dumps(begin_line(1, START, "fleet", "")).encode()
    with pytest.raises(ValueError, match="line 2 is none of a record"):
        recorded([beginning, line], "a", "lock")
    with pytest.raises(ValueError, match="it is no record"):
        recorded([], "a", "lock")
