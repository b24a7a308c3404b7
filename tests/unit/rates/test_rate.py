"""Rates, and the errors of bad costs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from codomyrmex.concurrency.rates.rate import (
    UNNAMED,
    Rate,
    check_cost,
    check_limits,
    check_used,
    check_within,
    length,
    period,
)

ONE = {UNNAMED: Rate(100, 60)}
TWO = {"requests": Rate(10, 60), "tokens": Rate(1000, 60)}


def test_a_rate_says_what_it_is() -> None:
    assert str(Rate(100, per=60)) == "100 per minute" and Rate(1, 1.5).per == 1.5


@pytest.mark.parametrize(
    ("per", "told", "spelled"),
    [
        (1, "1 s", "1 s"),
        (1.5, "1.5 s", "1.5 s"),
        (60, "minute", "1 minute"),
        (90, "90 s", "90 s"),
        (7_200, "2 hours", "2 hours"),
        (86_400, "day", "1 day"),
        (604_800, "7 days", "7 days"),
    ],
)
def test_whole_days_hours_and_minutes_are_told_as_such(per: float, told: str, spelled: str) -> None:
    assert (period(per), length(per)) == (told, spelled)
    assert Rate(1, 1) and Rate(1, 7 * 86_400)


@pytest.mark.parametrize(
    ("amount", "per", "error", "text"),
    [
        (True, 60, TypeError, "the amount of a rate must be an int, not bool"),
        (1.5, 60, TypeError, "the amount of a rate must be an int, not float"),
        ("5", 60, TypeError, "the amount of a rate must be an int, not str"),
        (None, 60, TypeError, "the amount of a rate must be an int, not NoneType"),
        (0, 60, ValueError, "the amount of a rate must be at least 1"),
        (-1, 60, ValueError, "the amount of a rate must be at least 1 .* not -1"),
        (2**70, 60, ValueError, "the amount of a rate must be at least 1 and at most"),
        (5, 0.5, ValueError, "per must be from 1 second to 7 days .* not 0.5"),
        (5, 8 * 86_400, ValueError, "per must be from 1 second to 7 days .* not 691200"),
        (5, 0, ValueError, "per must be from 1 second"),
        (5, -60, ValueError, "per must be from 1 second"),
        (5, math.inf, ValueError, "per must be from 1 second"),
        (5, math.nan, ValueError, "per must be from 1 second"),
        (5, True, TypeError, "per must be a number of seconds, not True"),
        (5, "60", TypeError, "per must be a number of seconds, not '60'"),
    ],
)
def test_a_bad_rate_is_refused(amount: Any, per: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Rate(amount, per)


def test_the_limits_of_a_limiter() -> None:
    assert check_limits(Rate(100, 60), None) == ONE
    given = dict(TWO)
    found = check_limits(None, given)
    assert found == TWO and found is not given
    eight = {f"d{number}": Rate(1, 1) for number in range(8)}
    assert check_limits(None, eight) == eight


@pytest.mark.parametrize(
    ("rate", "limits", "error", "text"),
    [
        (None, None, TypeError, "give either one rate"),
        (Rate(1, 1), TWO, TypeError, "give either one rate"),
        (60, None, TypeError, "the limit must be a Rate, such as .*, not 60"),
        (None, {"requests": 60}, TypeError, "the limit of 'requests' must be a Rate, .*, not 60"),
        (None, {}, ValueError, "limits must name 1 to 8 dimensions, not 0"),
        (None, {f"d{n}": Rate(1, 1) for n in range(9)}, ValueError, "limits must name 1 to 8 dimensions, not 9"),
        (None, {"timeout": Rate(1, 1)}, ValueError, "a dimension must not be named 'timeout'"),
        (None, {"self": Rate(1, 1)}, ValueError, "a dimension must not be named 'self'"),
        (None, {"": Rate(1, 1)}, ValueError, "a dimension must be named by an identifier, such as 'tokens', not ''"),
        (None, {"a/b": Rate(1, 1)}, ValueError, "a dimension must be named by an identifier"),
        (None, {"t" * 65: Rate(1, 1)}, ValueError, "a dimension must be named by an identifier"),
        (None, {5: Rate(1, 1)}, ValueError, "a dimension must be named by an identifier, .* not 5"),
    ],
)
def test_bad_limits_are_refused(rate: Any, limits: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_limits(rate, limits)


def test_the_cost_of_a_call() -> None:
    assert check_cost(ONE, None, {}) == {UNNAMED: 1}
    assert check_cost(ONE, 5, {}) == {UNNAMED: 5}
    assert check_cost(TWO, None, {"tokens": 7}) == {"tokens": 7}
    assert check_cost(TWO, None, {"requests": 1, "tokens": 7}) == {"requests": 1, "tokens": 7}


@pytest.mark.parametrize(
    ("limits", "amount", "named", "error", "text"),
    [
        (ONE, True, {}, TypeError, "the cost must be an int, not bool"),
        (ONE, 1.0, {}, TypeError, "the cost must be an int, not float"),
        (ONE, 0, {}, ValueError, "the cost must be at least 1"),
        (ONE, -3, {}, ValueError, "the cost must be at least 1 .* not -3"),
        (ONE, None, {"tokens": 1}, ValueError, "there is no dimension 'tokens' here; .* one without a name"),
        (ONE, 1, {"tokens": 1}, ValueError, "there is no dimension 'tokens' here"),
        (TWO, None, {}, TypeError, "give the cost of the call in one dimension at least, such as requests=1"),
        (TWO, 5, {}, TypeError, "name the dimension of 5: requests=..., tokens=..."),
        (TWO, 5, {"tokens": 1}, TypeError, "name the dimension of 5"),
        (TWO, None, {"tokens": 1.5}, TypeError, "the cost in tokens must be an int, not float"),
        (TWO, None, {"tokens": 0}, ValueError, "the cost in tokens must be at least 1"),
        (TWO, None, {"words": 1}, ValueError, "no dimension 'words' here; the dimensions are: 'requests', 'tokens'"),
    ],
)
def test_a_bad_cost_is_refused(limits: Any, amount: Any, named: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_cost(limits, amount, named)


def test_a_cost_above_a_limit_is_refused() -> None:
    check_within(TWO, {"requests": 10, "tokens": 1000})
    with pytest.raises(ValueError, match="the cost in tokens is 1001, but the limit is 1000 per minute"):
        check_within(TWO, {"requests": 1, "tokens": 1001})
    with pytest.raises(ValueError, match="the cost is 101, but the limit is 100 per minute"):
        check_within(ONE, {UNNAMED: 101})


def test_the_amounts_that_were_used() -> None:
    assert check_used({UNNAMED: 5}, 0, {}) == {UNNAMED: 0}
    assert check_used({UNNAMED: 5}, None, {}) == {}
    assert check_used({"requests": 1, "tokens": 5}, None, {"tokens": 9}) == {"tokens": 9}


@pytest.mark.parametrize(
    ("reserved", "amount", "named", "error", "text"),
    [
        ({UNNAMED: 5}, -1, {}, ValueError, "the amount used must be at least 0"),
        ({UNNAMED: 5}, 2.5, {}, TypeError, "the amount used must be an int, not float"),
        ({UNNAMED: 5}, False, {}, TypeError, "the amount used must be an int, not bool"),
        ({"tokens": 5}, None, {"requests": 1}, ValueError, "there is no dimension 'requests' here"),
        ({"tokens": 5}, 5, {}, TypeError, "name the dimension of 5: tokens=..."),
    ],
)
def test_bad_amounts_used_are_refused(
    reserved: Any, amount: Any, named: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_used(reserved, amount, named)
