"""The foretold demand, against a list of all that was asked for."""

from __future__ import annotations

import random

import pytest

from codomyrmex.concurrency.rates.demand import Demand


def expected(asked: list[tuple[float, int]], span: float, seconds: float, now: float) -> int:
    """All of the present bucket, and as much of the one before as the last ``span`` seconds still cover."""
    bucket = now // span
    present = sum(amount for at, amount in asked if at // span == bucket)
    former = sum(amount for at, amount in asked if at // span == bucket - 1)
    return int((present + former * (1 - (now / span - bucket))) * seconds / span)


@pytest.mark.parametrize("seed", range(100))
def test_it_is_what_brute_force_tells(seed: int) -> None:
    draw = random.Random(seed)
    span = draw.choice([2.0, 6.0, 360.0])
    demand, asked, now = Demand(span), [], draw.uniform(0, 1e6)
    for _ in range(100):
        now += draw.expovariate(draw.choice([0.2, 1, 20]) / span)
        if draw.random() < 0.7:
            asked.append((now, draw.randint(1, 50)))
            demand.add(asked[-1][1], now)
        seconds = draw.uniform(0.1, 10)
        assert abs(demand.over(seconds, now) - expected(asked, span, seconds, now)) <= 1  # rounding


def test_a_steady_demand_is_foretold() -> None:
    demand = Demand(2.0)
    for tenth in range(100):
        demand.add(5, tenth / 10)
    assert demand.over(6.0, 9.99) == pytest.approx(300, rel=0.1)


def test_it_forgets_what_was_long_ago() -> None:
    demand = Demand(2.0)
    assert demand.over(6.0, 0.0) == 0
    demand.add(10, 1.0)
    assert demand.over(2.0, 1.0) == 10
    assert demand.over(2.0, 3.0) == 5
    assert demand.over(2.0, 4.0) == 0
