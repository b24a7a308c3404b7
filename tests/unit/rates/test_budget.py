"""A budget in small histories: which calls it serves, which slices it asks for, what goes back."""

from __future__ import annotations

import math

from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.budget import Budget, Taken
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.rates.slice_state import Part


def taken(weight: int, asked_at: float = 0.0) -> Taken:
    return Taken(asked_at, [Part(b"%d" % number, size) for number, size in enumerate(timing.parts(weight))])


def budget_of(**rates: Rate) -> Budget:
    return Budget(rates or {"": Rate(80, 10)})


def with_slice(weight: int, spent: int = 0) -> Budget:
    budget = budget_of()
    budget.ask({"": max(1, spent)}, 0.0)
    assert budget.request(0.0)
    budget.granted({"": taken(weight)}, 0.0)
    budget.serve(0.0)
    return budget


def test_calls_are_served_in_order_of_arrival() -> None:
    budget = with_slice(8, 4)
    large, small = budget.ask({"": 5}, 0.1), budget.ask({"": 1}, 0.1)
    assert budget.serve(0.1) == [] and not budget.can_serve({"": 1}, 0.1)
    budget.withdraw(large)
    assert budget.serve(0.2) == [small] and small.spent_at == 0.2
    assert budget.free(0.2) == {"": 3} and budget.can_serve({"": 3}, 0.2) and not budget.can_serve({"": 4}, 0.2)


def test_one_slice_is_asked_for_at_a_time() -> None:
    budget = budget_of()
    assert budget.request(0.0) is None
    budget.ask({"": 3}, 0.0)
    assert budget.request(0.0) == {"": 3} and budget.request(0.0) is None
    budget.refused()
    assert budget.request(0.0) == {"": 3}


def test_the_first_calls_ask_for_what_they_cost() -> None:
    budget = Budget({"": Rate(80, 60)})
    budget.ask({"": 3}, 0.0)
    budget.ask({"": 2}, 0.0)
    assert budget.request(0.0) == {"": 5}


def test_a_slice_serves_as_many_waiting_calls_as_fit_the_cap() -> None:
    budget = budget_of()  # its cap is 10
    for amount in (4, 5, 3):
        budget.ask({"": amount}, 0.0)
    found = budget.request(0.0)
    assert found and 9 <= found[""] <= 10


def test_a_call_above_the_cap_gets_its_own_slice() -> None:
    budget = budget_of()
    budget.ask({"": 40}, 0.0)
    budget.ask({"": 1}, 0.0)
    assert budget.request(0.0) == {"": 40}


def test_the_foretold_amount_grows_until_it_is_the_cap() -> None:
    budget = Budget({"": Rate(800, 20)})  # a life is 2 s, as long as the span of the demand; the cap is 100
    asked = []
    for second in range(9):
        now = second / 10
        budget.ask({"": 1}, now)
        if wanted := budget.request(now):
            asked.append(wanted[""])
            budget.granted({"": taken(wanted[""], now)}, now)
            for _ in range(wanted[""] - 1):
                budget.ask({"": 1}, now)
            budget.serve(now)
    assert asked[:6] == [1, 3, 9, 27, 81, 100]


def test_calls_that_do_not_wait_ask_for_no_more_than_they_need() -> None:
    budget = with_slice(8, 8)
    budget.ask({"": 1}, 0.1)
    assert budget.request(0.1, exact=True) == {"": 1}
    budget.refused()
    assert budget.request(0.1) == {"": 8}


def test_nothing_is_served_or_asked_for_in_a_pause() -> None:
    budget = with_slice(8)
    budget.paused = True
    call = budget.ask({"": 1}, 0.1)
    assert budget.serve(0.1) == [] and budget.request(0.1) is None and not budget.can_serve({"": 1}, 0.1)
    budget.paused = False
    assert budget.serve(0.1) == [call]


def test_a_call_gets_all_its_dimensions_or_none() -> None:
    budget = budget_of(requests=Rate(80, 10), tokens=Rate(800, 10))
    call = budget.ask({"requests": 1, "tokens": 50}, 0.0)
    assert set(budget.request(0.0) or ()) == {"requests", "tokens"}
    budget.granted({"requests": taken(1)}, 0.0)
    assert budget.serve(0.0) == [] and budget.free(0.0) == {"requests": 1, "tokens": 0}
    budget.granted({"tokens": taken(60)}, 0.0)
    assert budget.serve(0.0) == [call] and budget.free(0.0) == {"requests": 0, "tokens": 10}


def test_a_long_dimension_is_not_asked_for_again_while_its_slice_has_room() -> None:
    budget = budget_of(short=Rate(8, 1), long=Rate(8000, 3600))
    first = budget.ask({"short": 1, "long": 1}, 0.0)
    assert budget.request(0.0)
    budget.granted({"short": taken(1), "long": taken(10)}, 0.0)
    assert budget.serve(0.0) == [first]
    budget.ask({"short": 1, "long": 1}, 0.1)
    assert set(budget.request(0.1) or ()) == {"short"}
    budget.refused()
    assert set(budget.request(335.0) or ()) == {"short", "long"}  # its slice has less than 30 s left


def test_a_refund_goes_to_the_open_slice() -> None:
    budget = budget_of()
    call = budget.ask({"": 8}, 0.0)
    budget.request(0.0)
    budget.granted({"": taken(8)}, 0.0)
    budget.serve(0.0)
    assert budget.used(call, {"": 3}, 0.1) == {} and budget.free(0.1) == {"": 5}


def test_what_was_used_beyond_is_taken_from_an_open_slice_first() -> None:
    budget = budget_of()
    call = budget.ask({"": 5}, 0.0)
    budget.request(0.0)
    budget.granted({"": taken(8)}, 0.0)
    budget.serve(0.0)
    assert budget.used(call, {"": 7}, 0.1) == {} and budget.free(0.1) == {"": 1}
    late = budget.ask({"": 1}, 0.2)
    budget.serve(0.2)
    assert budget.used(late, {"": 4}, 0.2) == {"": 3}
    budget.overdrawn("", taken(3, 0.3), 0.3)
    assert budget.free(0.3) == {"": 0}
    assert [len(budget.due(now)) for now in (10.69, 10.71, 10.79, 10.81)] == [0, 4, 0, 2]
    assert budget.next_at() == math.inf


def test_a_served_call_that_is_withdrawn_gives_all_back() -> None:
    budget = budget_of()
    call = budget.ask({"": 8}, 0.0)
    budget.request(0.0)
    budget.granted({"": taken(8)}, 0.0)
    budget.serve(0.0)
    budget.withdraw(call)
    assert budget.free(0.1) == {"": 8}


def test_a_refund_to_a_closed_slice_is_due_at_once() -> None:
    budget = budget_of()
    call = budget.ask({"": 8}, 0.0)
    budget.request(0.0)
    budget.granted({"": taken(8)}, 0.0)
    budget.serve(0.0)
    assert budget.due(1.0) == [] and budget.free(1.0) == {"": 0} and budget.next_at() == 10.5
    budget.used(call, {"": 3}, 2.0)
    assert sum(part.size for part in budget.due(2.0)) == 5 and budget.next_at() == 10.5


def test_a_closed_budget_spends_nothing_more() -> None:
    budget = with_slice(8, 2)
    assert budget.due(0.1) == []
    budget.close()
    assert not budget.can_serve({"": 1}, 0.1) and budget.free(0.1) == {"": 0}
    assert sum(part.size for part in budget.due(0.1)) == 6
    assert budget.next_at() == 10.5


def test_what_is_too_little_for_the_next_call_goes_back_before_more_is_asked_for() -> None:
    budget = Budget({"": Rate(100, 10)})
    budget.ask({"": 5}, 0.0)
    assert budget.request(0.0) == {"": 5}
    budget.granted({"": taken(7)}, 0.1)
    assert len(budget.serve(0.1)) == 1
    budget.ask({"": 5}, 0.2)
    assert budget.request(0.2)
    assert sum(part.size for part in budget.due(0.2)) == 2


def test_nothing_is_foretold_where_the_next_call_does_not_fit() -> None:
    budget = Budget({"calls": Rate(1000, 10), "tokens": Rate(8000, 10)})
    for _ in range(3):
        budget.ask({"calls": 1, "tokens": 600}, 0.0)
    wanted = budget.request(0.0)
    assert wanted and wanted["tokens"] == 600 and wanted["calls"] > 1


def test_a_dimension_in_which_calls_give_back_has_finer_parts() -> None:
    budget = Budget({"": Rate(8000, 10)})
    coarse = budget.sizes("", 1000)
    call = budget.ask({"": 1000}, 0.0)
    budget.request(0.0)
    budget.granted({"": taken(1000)}, 0.1)
    budget.serve(0.1)
    budget.used(call, {"": 100}, 0.2)
    fine = budget.sizes("", 1000)
    assert sum(coarse) == sum(fine) == 1000 and min(fine) < min(coarse) / 8
