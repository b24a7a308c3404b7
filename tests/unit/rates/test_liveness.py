"""Simulated fleets under load: nearly all of the limit is used, in fair shares, and no call waits for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from codomyrmex.concurrency.rates.rate import Rate
from tests.unit.rates.simulation import Conditions, Process, World, by_process, excess, spent_between

_LAN = Conditions(delay=(0.004, 0.006), slow=0.0, lateness=1.0)


def fleet(rates: dict[str, Rate], processes: int, conditions: Conditions = _LAN) -> tuple[World, list[Process]]:
    world = World(1, rates, conditions)
    return world, [Process(world, f"p{number}") for number in range(processes)]


def works(process: Process, cost: dict[str, int], workers: int = 10) -> None:
    """So many workers call again as soon as they are served."""

    def again() -> None:
        process.world.at(process.world.now, lambda: process.told(lambda: process.ask(cost, again)))

    for _ in range(workers):
        again()


def calls(process: Process, per_second: float) -> None:
    """Calls arrive at random times, at a steady rate."""

    def arrive() -> None:
        process.told(lambda: process.ask({"": 1}))
        process.world.at(process.world.now + process.world.random.expovariate(per_second), arrive)

    arrive()


def jain(amounts: Sequence[int]) -> float:
    return sum(amounts) ** 2 / (len(amounts) * sum(amount**2 for amount in amounts))


def check(world: World, processes: Sequence[Process], periods: int) -> None:
    """From the second period on 90 % of the limit is used, in fair shares."""
    rate = world.rates[""]
    world.run(periods * rate.per)
    assert excess(world.spent[""], rate) == ""
    used = spent_between(world, "", rate.per, periods * rate.per)
    assert used >= 0.9 * rate.amount * (periods - 1)
    shares = by_process(world, "", rate.per)
    assert jain([shares.get(process.name, 0) for process in processes]) >= 0.95, shares


@pytest.mark.parametrize("per", [10.0, 60.0])
@pytest.mark.parametrize("processes", [1, 4, 8])
@pytest.mark.parametrize("load", ["workers", "arrivals"])
def test_nearly_all_is_used_in_fair_shares(load: str, processes: int, per: float) -> None:
    rate = Rate(200, per)
    world, fleets = fleet({"": rate}, processes)
    for process in fleets:
        if load == "workers":
            works(process, {"": 1})
        else:
            calls(process, 1.3 * rate.amount / rate.per / processes)
    check(world, fleets, periods=6)


def test_a_process_with_few_workers_gets_as_much_as_one_with_many() -> None:
    world, processes = fleet({"": Rate(200, 10)}, 8)
    for process, workers in zip(processes, (1, 2, 4, 6, 8, 10, 15, 20), strict=True):
        works(process, {"": 1}, workers)
    check(world, processes, periods=8)


def test_one_process_with_few_workers_uses_a_large_limit() -> None:
    world, processes = fleet({"": Rate(1000, 10)}, 1)
    works(processes[0], {"": 1})
    check(world, processes, periods=4)


def test_every_call_is_served_while_other_processes_are_stopped() -> None:
    world, processes = fleet({"": Rate(20, 10)}, 4)
    for process in processes[:2]:
        works(process, {"": 1})
    for number, process in enumerate(processes[:2]):
        world.at(3.0 + number, process.stop)
    world.run(10)
    waiting = [processes[2 + number % 2].ask({"": 1 + number % 3}) for number in range(12)]
    world.run(45)
    assert all(call.spent_at is not None for call in waiting)


def test_a_large_call_is_not_passed_by_small_ones_for_ever() -> None:
    world, (small, large) = fleet({"": Rate(20, 10)}, 2)
    works(small, {"": 1})
    world.run(10)
    call = large.ask({"": 20})
    world.run(40)
    assert call.spent_at is not None


@pytest.mark.parametrize(
    "rates",
    [
        {"short": Rate(10, 1), "long": Rate(50, 60)},
        {"short": Rate(10, 1), "long": Rate(1000, 3600)},
        {"short": Rate(10, 1), "middle": Rate(50, 20), "long": Rate(100, 400)},
    ],
    ids=lambda rates: "+".join(f"{rate.per:g}" for rate in rates.values()),
)
def test_short_and_long_periods_together_are_used(rates: dict[str, Rate]) -> None:
    world, processes = fleet(rates, 2)
    for process in processes:
        works(process, dict.fromkeys(rates, 1), 3)
    length = 100.0
    world.run(length)
    tightest = min(rate.amount * max(1.0, length / (1.3 * rate.per)) for rate in rates.values())
    assert min(sum(spent.amount for spent in spends) for spends in world.spent.values()) >= 0.8 * tightest
    assert not any(excess(spends, rates[one]) for one, spends in world.spent.items())


def test_a_slice_that_is_over_before_another_is_granted_is_asked_for_again_with_it() -> None:
    rates = {"hours": Rate(16, 3000), "minutes": Rate(16, 400)}
    world, (both, hours, minutes) = fleet(rates, 3)
    first = both.ask({"hours": 2})
    world.run(1)
    both.used(first, {"hours": 1})  # its slice has room for one more, for a while
    works(hours, {"hours": 1})
    works(minutes, {"minutes": 1})
    world.run(10)
    call = both.ask({"hours": 1, "minutes": 1})
    world.run(4_000)
    assert call.spent_at is not None


def test_nothing_is_asked_for_and_nothing_wakes_up_when_nobody_calls() -> None:
    world, (process,) = fleet({"": Rate(20, 10)}, 1)
    process.ask({"": 3})
    world.run(30)
    assert process.budget.next_at() == math.inf
    assert not any(world.etcd.queues.values())


def _slow(seconds: float) -> Conditions:
    return Conditions(delay=(seconds, seconds), slow=0.0, lateness=0.0)


@pytest.mark.parametrize(("per", "delay"), [(1.0, 0.1), (10.0, 0.2)])
def test_a_limit_is_used_although_etcd_answers_late(per: float, delay: float) -> None:
    world, (process,) = fleet({"": Rate(40, per)}, 1, _slow(delay))
    works(process, {"": 1}, 5)
    world.run(10 * per)
    assert sum(spent.amount for spent in world.spent[""]) >= 80
