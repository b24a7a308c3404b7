"""A slice's table of states and events, and the times at which it counts."""

from __future__ import annotations

import random

import pytest

from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.slice_state import TRANSITIONS, Event, Part, Slice, State, next_state

PER = 20.0  # a life is 2 s, the margin 1 s, and a slice is idle after 2 s
EXPECTED = {
    (State.OPEN, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.END): State.OVER,
}


def slice_of(*sizes: int, asked_at: float = 100.0, now: float = 100.5) -> Slice:
    return Slice("tokens", PER, [Part(b"%d" % number, size) for number, size in enumerate(sizes)], asked_at, now)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_of_state_and_event(state: State, event: Event) -> None:
    after = EXPECTED.get((state, event))
    if after:
        assert next_state(state, event) is after
    else:
        with pytest.raises(RuntimeError, match=f"{event.name} is impossible for a slice that is {state.name}"):
            next_state(state, event)


def test_the_table_has_these_transitions_only() -> None:
    assert TRANSITIONS == EXPECTED


def test_its_life_begins_when_its_lease_was_asked_for() -> None:
    one = slice_of(4, 2, 1)
    assert (one.weight, one.free(100.5), one.free(101.999), one.free(102.0)) == (7, 7, 7, 0)


def test_a_spend_is_counted_for_a_period_and_the_margin() -> None:
    one = slice_of(4, 2, 1)
    one.spend(7, 101.0)
    one.close()
    assert one.due(121.999) == [] and one.next_at() == 122.0
    assert [part.size for part in one.due(122.0)] == [4, 2, 1]
    assert one.state is State.OVER and one.weight == 0


def test_the_last_spend_tells_how_long_it_counts() -> None:
    one = slice_of(4, 2, 1)
    one.spend(1, 100.6)
    one.spend(1, 101.5)
    one.close()
    one.due(102.0)
    assert one.due(122.499) == [] and one.due(122.5)


def test_at_the_end_of_its_life_what_is_not_spent_goes_back() -> None:
    one = slice_of(50, 25, 13, 6, 6)
    one.spend(20, 101.9)
    assert one.due(101.999) == []
    assert [part.size for part in one.due(102.0)] == [50, 25]
    assert (one.weight, one.state, one.free(102.0)) == (25, State.CLOSED, 0)


def test_it_closes_when_it_is_idle() -> None:
    one = Slice("", 600.0, [Part(b"a", 4)], 0.0, 1.0)  # a life is 60 s, and a slice is idle after 6 s
    one.spend(1, 3.0)
    assert one.next_at() == 9.0
    assert one.due(8.999) == [] and one.state is State.OPEN
    assert one.due(9.0) == [] and one.free(9.0) == 0
    assert one.next_at() == 3.0 + 600 + 1


def test_one_of_which_nothing_was_spent_ends_at_once() -> None:
    one = slice_of(2, 1)
    one.close()
    assert len(one.due(101.0)) == 2 and one.state is State.OVER


def test_closing_again_changes_nothing() -> None:
    one = slice_of(2, 1)
    one.spend(3, 101.0)
    one.close()
    one.close()
    assert one.free(101.0) == 0
    one.due(200.0)
    one.close()
    assert one.state is State.OVER and one.due(201.0) == []


def test_a_refund_to_an_open_slice_is_spent_again_and_to_a_closed_one_goes_back() -> None:
    one = slice_of(4, 2, 1)
    one.spend(7, 101.0)
    one.give_back(4)
    assert one.free(101.0) == 4 and one.due(101.0) == []
    one.close()
    assert [part.size for part in one.due(101.5)] == [4]
    one.give_back(3)
    assert [part.size for part in one.due(101.6)] == [2, 1] and one.state is State.OVER


@pytest.mark.parametrize("seed", range(200))
def test_its_parts_always_cover_what_was_spent(seed: int) -> None:
    draw = random.Random(seed)
    now = 100.5
    one = slice_of(*timing.parts(draw.randint(1, 200)))
    while one.state is not State.OVER:
        if free := one.free(now):
            one.spend(draw.randint(0, free), now)
        if one.spent and draw.random() < 0.3:
            one.give_back(draw.randint(0, one.spent))
        one.due(now)
        assert one.weight >= one.spent or now >= one.counted_until
        now = max(now + draw.expovariate(2), min(one.next_at(), now + 5))
