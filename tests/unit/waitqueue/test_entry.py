"""The table of an entry's life, over generated histories.

The model keeps no state. From the events that happened it derives the state that an entry must be in, and the events
that are possible.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.waitqueue import entry
from codomyrmex.concurrency.waitqueue.entry import TRANSITIONS, Event, State, next_state

Table = Mapping[tuple[State, Event], State]
ENDS_OF_THE_KEY = {Event.WITHDRAWN, Event.RELEASED, Event.KEY_LOST, Event.MOVED}  # as far as its session knows


class Facts:
    """The facts about an entry after the events of a history."""

    def __init__(self, history: list[Event]) -> None:
        happened = set(history)
        self.joined = Event.JOINED in happened
        self.granted = Event.GRANTED in happened
        self.has_key = self.joined and not happened & ENDS_OF_THE_KEY
        self.moved = Event.MOVED in happened
        self.lost = bool(happened & {Event.TRUST_ENDED, Event.KEY_LOST})

    def state(self) -> State:
        if not self.joined:
            return State.NEW
        if self.moved:
            return State.DETACHED
        if not self.has_key:
            return State.LOST if self.lost else State.OVER
        if self.lost:
            return State.LINGERING
        return State.HELD if self.granted else State.WAITING

    def possible(self) -> set[Event]:
        """A key can be lost as long as it is there; trust can end only in a grant; and each thing happens once."""
        possible = set() if self.joined else {Event.JOINED}
        if self.has_key:
            possible |= {Event.KEY_LOST, Event.RELEASED if self.granted else Event.WITHDRAWN}
            if not self.lost:
                possible |= {Event.TRUST_ENDED} if self.granted else {Event.GRANTED, Event.MOVED}
        return possible


def violations(choices: list[int], table: Table) -> str:
    """Live one history, chosen by the numbers, by ``table``; says what went wrong, or nothing."""
    history: list[Event] = []
    state = State.NEW
    for choice in choices:
        facts = Facts(history)
        if state is not facts.state():
            return f"{state} after {history}"
        allowed = {event for event in Event if (state, event) in table}
        if allowed != facts.possible():
            return f"{allowed} are possible after {history}"
        if not allowed:
            break
        event = sorted(allowed, key=lambda event: event.value)[choice % len(allowed)]
        history.append(event)
        state = table[state, event]
    return ""


histories = st.lists(st.integers(0, 11), max_size=8)


@given(histories)
def test_over_any_history_the_state_says_what_happened(choices: list[int]) -> None:
    assert violations(choices, TRANSITIONS) == ""


def _found(table: Table) -> bool:
    """True if a history of up to five events shows that ``table`` is broken."""
    return any(violations([n // 12**k % 12 for k in range(5)], table) for n in range(0, 12**5, 7))


def _with(change: dict[tuple[State, Event], State]) -> Table:
    return {**TRANSITIONS, **change}


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_with({(State.HELD, Event.TRUST_ENDED): State.HELD}), id="a grant outlasts its trust"),
        pytest.param(_with({(State.HELD, Event.TRUST_ENDED): State.LOST}), id="a key that stays is forgotten"),
        pytest.param(_with({(State.LINGERING, Event.RELEASED): State.OVER}), id="a loss becomes a release"),
        pytest.param(_with({(State.WAITING, Event.KEY_LOST): State.OVER}), id="a lost waiter only left"),
        pytest.param(_with({(State.WAITING, Event.TRUST_ENDED): State.LOST}), id="a waiter does not wait for trust"),
        pytest.param(_with({(State.LOST, Event.GRANTED): State.HELD}), id="a lost entry is granted"),
        pytest.param(_with({(State.OVER, Event.RELEASED): State.OVER}), id="an entry is released twice"),
        pytest.param(_with({(State.NEW, Event.GRANTED): State.HELD}), id="an entry is granted before it joined"),
        pytest.param(
            _with({(State.DETACHED, Event.KEY_LOST): State.LOST}), id="a reservation is lost with its session"
        ),
        pytest.param(_with({(State.HELD, Event.MOVED): State.DETACHED}), id="a grant of the session becomes another's"),
        pytest.param(
            {step: after for step, after in TRANSITIONS.items() if step != (State.HELD, Event.KEY_LOST)},
            id="a holder does not hear that its key is deleted",
        ),
    ],
)
def test_the_checker_rejects_a_broken_table(broken: Table) -> None:
    assert _found(broken)


def test_the_checker_accepts_the_table() -> None:
    assert not _found(TRANSITIONS)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_impossible_event_raises(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(RuntimeError, match=f"{event.name} is impossible for an entry that is {state.name}"):
            next_state(state, event)


def test_nothing_comes_after_an_end_and_every_other_state_has_a_way_to_one() -> None:
    for state in State:
        ways = [after for (before, _), after in TRANSITIONS.items() if before is state]
        assert bool(ways) is (state not in (State.LOST, State.OVER, State.DETACHED))


def test_an_entry_changes_its_state_by_the_table_alone() -> None:
    """Each assignment to ``state`` after the first is the table's answer."""
    assigned = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(entry)))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and node.targets[0].attr == "state"
    ]
    first, *others = [ast.unparse(value) for value in assigned]
    assert first == "State.NEW"
    assert others and all(other.startswith("next_state(self.state, ") for other in others)
