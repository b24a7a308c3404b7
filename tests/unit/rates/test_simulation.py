"""Simulated fleets spend never more than the limit in any window, whatever is stopped, killed, closed or late; and the
checker that tells so notices a fleet that breaks a rule."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.rates.slice_state import Part, Slice
from codomyrmex.concurrency.waitqueue.rules import Decision, Permits, View
from tests.unit.rates.simulation import Conditions, History, Process, Spent, World, excess, random_history

_SEEDS = 100  # of histories in which a broken variant must be found
_HARD = Conditions(delay=(0.01, 0.2), slow=0.05, lateness=0.0)  # leases end in time


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_no_window_has_more_than_the_limit(seed: int) -> None:
    assert random_history(seed).violation() == ""


@pytest.mark.parametrize("tens", range(20))
def test_no_window_has_more_than_the_limit_in_these_histories(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        assert random_history(seed).violation() == "", seed


def test_the_histories_have_refunds_overdrafts_cancels_and_faults() -> None:
    seen: set[str] = set()
    for seed in range(10):
        world = random_history(seed).play()
        owners = {spent.process for spends in world.spent.values() for spent in spends}
        seen.update(state for one in owners for state in ("killed", "over", "stopped") if getattr(one, state))
        seen.add(f"{len(world.rates)} dimensions")
        if any(spent.amount == 0 for spends in world.spent.values() for spent in spends):
            seen.add("refunds")
    assert seen >= {"killed", "over", "refunds", "1 dimensions", "2 dimensions", "3 dimensions"}


# Broken variants


def _life_from_the_grant(patch: pytest.MonkeyPatch) -> None:
    sound = Slice.__init__

    def init(self: Slice, dimension: str, per: float, parts: Sequence[Part], asked_at: float, now: float) -> None:
        sound(self, dimension, per, parts, now, now)

    patch.setattr(Slice, "__init__", init)


def _no_margin(patch: pytest.MonkeyPatch) -> None:
    sound = Slice.count

    def count(self: Slice, now: float) -> None:
        sound(self, now)
        self.counted_until -= timing.margin(self._per)

    patch.setattr(Slice, "count", count)


def _one_part_too_many(patch: pytest.MonkeyPatch) -> None:
    sound = timing.surplus

    def surplus(sizes: Sequence[int], amount: int) -> list[int]:
        chosen = sound(sizes, amount)
        return chosen + [index for index in range(len(sizes)) if index not in chosen][-1:]

    patch.setattr(timing, "surplus", surplus)


def _refund_twice(patch: pytest.MonkeyPatch) -> None:
    sound = Slice.give_back
    patch.setattr(Slice, "give_back", lambda self, amount: sound(self, 2 * amount))


def _parts_apart(patch: pytest.MonkeyPatch) -> None:
    sound = Permits.__call__

    def decide(self: Permits, view: View) -> Decision:
        return sound(Permits(self.permits), view)

    patch.setattr(Permits, "__call__", decide)


def _spent_though_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slice, "free", lambda self, now: self.weight - self.spent)


def _lease_too_short(patch: pytest.MonkeyPatch) -> None:
    sound = timing.ttl
    patch.setattr(timing, "ttl", lambda per: sound(per) - 1)


VARIANTS = (
    _life_from_the_grant,
    _no_margin,
    _one_part_too_many,
    _refund_twice,
    _parts_apart,
    _spent_though_closed,
    _lease_too_short,
)


@pytest.mark.parametrize("broken", VARIANTS, ids=lambda broken: broken.__name__.strip("_"))
def test_a_broken_variant_is_noticed(broken: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        assert any(replace(random_history(seed), conditions=_HARD, faults=0.7).violation() for seed in range(_SEEDS))


def test_a_lease_that_is_one_second_short_is_noticed_when_its_owner_dies() -> None:
    rates = {"": Rate(8, 20)}  # life, period and margin are whole seconds together
    conditions = Conditions(lateness=0.0)
    with pytest.MonkeyPatch.context() as patch:
        _lease_too_short(patch)
        assert any(History(seed, rates, faults=1.0, conditions=conditions).violation() for seed in range(60))


# The checker


def _naive(spends: Sequence[Spent], rate: Rate) -> bool:
    """Each spend is seen at once, or as late as it may be; every window that begins with one of them is counted."""
    late = timing.margin(rate.per)
    for seen in itertools.product(*[(spent.time, spent.time + late) for spent in spends]):
        for begin in seen:
            counted = (s.amount for s, at in zip(spends, seen, strict=True) if begin <= at < begin + rate.per)
            if sum(counted) > rate.amount:
                return True
    return False


def test_the_checker_agrees_with_brute_force() -> None:
    found = set()
    for seed in range(150):
        draw = random.Random(seed)
        rate = Rate(draw.randint(3, 12), 10)
        process = Process(World(seed, {"": rate}, Conditions()))
        spends = [Spent(draw.randrange(0, 250) / 10, draw.randint(1, 4), process) for _ in range(7)]
        wrong = _naive(spends, rate)
        assert bool(excess(spends, rate)) is wrong, seed
        found.add(wrong)
    assert found == {False, True}
