"""The times and the parts of a slice."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.rates import timing

periods = st.floats(1.0, 7 * 86_400.0)
weights = st.integers(1, 10**9)


@pytest.mark.parametrize(
    ("per", "life", "margin", "idle", "ttl"),
    [
        (1, 1.0, 0.05, 1.0, 3),
        (10, 1.0, 0.5, 1.0, 12),
        (20, 2.0, 1.0, 2.0, 23),
        (60, 6.0, 1.0, 2.0, 67),
        (3600, 360.0, 1.0, 36.0, 3961),
    ],
)
def test_these_periods(per: float, life: float, margin: float, idle: float, ttl: int) -> None:
    found = (timing.life(per), timing.margin(per), timing.idle(per), timing.ttl(per))
    assert found == pytest.approx((life, margin, idle, ttl))


@given(periods)
def test_the_lease_covers_the_last_spend_for_a_period_and_the_margin(per: float) -> None:
    assert timing.ttl(per) >= timing.life(per) + per + timing.margin(per)
    assert timing.ttl(per) < timing.life(per) + per + timing.margin(per) + 1
    assert 0 < timing.margin(per) <= 1 and timing.idle(per) <= timing.life(per)


@given(st.integers(1, 10**9), st.integers(1, 10_000))
def test_every_process_has_room_for_two_slices(limit: int, sessions: int) -> None:
    cap = timing.cap(limit, sessions)
    assert 1 <= cap <= limit
    assert cap == 1 or (cap * 2 * sessions <= limit and cap * 8 <= limit)


def test_the_cap_of_a_limit() -> None:
    assert [timing.cap(160, sessions) for sessions in (1, 4, 8, 80, 1000)] == [20, 20, 10, 1, 1]


@given(weights)
def test_the_parts_sum_up(weight: int) -> None:
    parts = timing.parts(weight)
    assert sum(parts) == weight and 1 <= len(parts) <= 5 and min(parts) >= 1
    assert parts == sorted(parts, reverse=True)


def test_the_parts_are_halves() -> None:
    assert [timing.parts(weight) for weight in (1, 2, 3, 7, 100)] == [
        [1],
        [1, 1],
        [2, 1],
        [4, 2, 1],
        [50, 25, 13, 6, 6],
    ]


@given(weights, st.data())
def test_the_surplus_never_exceeds_and_comes_near(weight: int, data: st.DataObject) -> None:
    parts = timing.parts(weight)
    amount = data.draw(st.integers(0, weight))
    chosen = timing.surplus(parts, amount)
    assert len(set(chosen)) == len(chosen)
    given_back = sum(parts[index] for index in chosen)
    assert given_back <= amount
    assert amount - given_back <= max(parts[-1], math.ceil(weight / 16))


def test_the_surplus_is_the_best_of_all_choices_for_small_slices() -> None:
    for weight in range(1, 80):
        parts = timing.parts(weight)
        sums = {sum(some) for count in range(len(parts) + 1) for some in combinations(parts, count)}
        for amount in range(weight + 1):
            found = sum(parts[index] for index in timing.surplus(parts, amount))
            best = max(one for one in sums if one <= amount)
            assert best - found <= 1, (weight, amount)


def test_nothing_and_everything_may_be_surplus() -> None:
    assert timing.surplus([4, 2, 1], 0) == []
    assert timing.surplus([4, 2, 1], 7) == [0, 1, 2]
    assert timing.surplus([4, 2, 1], 5) == [0, 2]
