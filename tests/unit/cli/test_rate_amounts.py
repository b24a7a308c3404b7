"""Amounts and limits of rate limiters on a command line: read, or refused with a message that says what to give."""

from __future__ import annotations

import click
import pytest

from codomyrmex.concurrency import Rate
from codomyrmex.concurrency.cli.rate_amounts import (
    Amount,
    AmountType,
    Limit,
    LimitType,
    amounts,
    check_dimensions,
    limits,
)


@pytest.mark.parametrize(("text", "read"), [("5", ("", 5)), ("tokens=400", ("tokens", 400)), ("a b=1", ("a b", 1))])
def test_an_amount_is_read(text: str, read: tuple[str, int]) -> None:
    assert AmountType().convert(text, None, None) == Amount(*read)


@pytest.mark.parametrize("text", ["", "x", "=5", "tokens=", "tokens", "1.5", "5=5=5", "٣", "9" * 5000, "tokens= 5"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as 5 or tokens=400"):
        AmountType().convert(text, None, None)


@pytest.mark.parametrize("text", ["0", "-5", "tokens=0", "tokens=-1"])
def test_an_amount_below_1_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="at least 1"):
        AmountType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "dimension", "rate"),
    [
        ("100/60s", "", Rate(100, 60)),
        ("requests=100/60", "requests", Rate(100, 60)),
        ("tokens=5000/1h30m", "tokens", Rate(5000, 5400)),
    ],
)
def test_a_limit_is_read(text: str, dimension: str, rate: Rate) -> None:
    assert LimitType().convert(text, None, None) == Limit(dimension, rate)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("100", "such as 100/60s"),
        ("100/", "not a duration"),
        ("/60s", "not an amount"),
        ("0/60s", "at least 1"),
        ("100/0", "per must be from 1 second"),
        ("100/8d", "to 7 days"),
        ("1/2/60s", "not an amount"),
        (f"{'9' * 30}/60s", "at most"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_to_give(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        LimitType().convert(text, None, None)


def test_a_dimension_is_given_once() -> None:
    assert amounts([Amount("a", 1), Amount("b", 2)]) == {"a": 1, "b": 2}
    for given in ([Amount("a", 1), Amount("a", 2)], [Amount("", 1), Amount("", 1)]):
        with pytest.raises(click.UsageError, match="given twice"):
            amounts(given)
    with pytest.raises(click.UsageError, match="stands alone"):
        limits([Limit("", Rate(1, 1)), Limit("a", Rate(1, 1))])


@pytest.mark.parametrize(
    ("known", "given", "said"),
    [
        (["requests", "tokens"], {"tokns": 1}, "has no dimension 'tokns'; give requests=N or tokens=N"),
        (["requests", "tokens"], {"": 1}, "has named dimensions; give requests=N or tokens=N"),
        ([""], {"tokens": 1}, "has no dimension 'tokens'; give N"),
    ],
)
def test_an_unknown_dimension_is_refused_with_those_known(known: list[str], given: dict[str, int], said: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        check_dimensions("x\u202e", known, given)
    assert raised.value.message == f"the rate limiter x\\u202e {said}"
