"""Amounts and limits of rate limiters as arguments and options take them: ``5``, ``tokens=400``, ``tokens=400/60s``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from codomyrmex.concurrency import Rate
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.views.text import visible

UNNAMED = ""  # the dimension of a rate limiter that has only one


class Amount(NamedTuple):
    """So much in one dimension."""

    dimension: str
    amount: int


class Limit(NamedTuple):
    """The limit of one dimension."""

    dimension: str
    rate: Rate


class AmountType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.5
    """``N`` or ``DIMENSION=N``."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Amount:
        if isinstance(value, Amount):
            return value
        found = re.fullmatch(r"(?:([^=]+)=)?(-?[0-9]{1,30})", value)
        if not found:
            self.fail(f"{value!r} is not an amount such as 5 or tokens=400", param, ctx)
        if int(found[2]) < 1:
            self.fail(f"{value!r} is less than 1; give a whole number of at least 1", param, ctx)
        return Amount(found[1] or UNNAMED, int(found[2]))


class LimitType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.5
    """``N/TIME`` or ``DIMENSION=N/TIME``."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Limit:
        if isinstance(value, Limit):
            return value
        amount, slash, period = value.rpartition("/")
        if not slash:
            self.fail(f"{value!r} is not a limit such as 100/60s or requests=100/60s", param, ctx)
        dimension, most = AmountType().convert(amount, param, ctx)
        try:
            return Limit(dimension, Rate(most, Duration().convert(period, param, ctx)))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def amounts(given: Sequence[Amount]) -> dict[str, int]:
    """The amounts by dimension. A dimension that is given twice is a usage error."""
    _check_once(one.dimension for one in given)
    return dict(given)


def limits(given: Sequence[Limit]) -> dict[str, Rate]:
    """The limits by dimension. A dimension that is given twice is a usage error, and so is a limit without a dimension
    beside others."""
    _check_once(one.dimension for one in given)
    found = dict(given)
    if UNNAMED in found and len(found) > 1:
        raise click.UsageError("a limit without a dimension stands alone; name the dimension of each limit")
    return found


def check_dimensions(name: str, known: Iterable[str], given: Mapping[str, int]) -> None:
    """Raise a usage error if ``given`` has a dimension that the rate limiter does not have."""
    known = list(known)
    forms = " or ".join(f"{visible(dimension)}=N" if dimension else "N" for dimension in known)
    for dimension in given:
        if dimension not in known:
            lacks = f"has no dimension {dimension!r}" if dimension else "has named dimensions"
            raise click.UsageError(f"the rate limiter {visible(name)} {lacks}; give {forms}")


def in_dimension(dimension: str) -> str:
    """The part of a message that names a dimension; nothing for the one without a name."""
    return f" in {visible(dimension)}" if dimension else ""


def _check_once(dimensions: Iterable[str]) -> None:
    seen: set[str] = set()
    for dimension in dimensions:
        if dimension in seen:
            which = f"the dimension {dimension!r}" if dimension else "an amount without a dimension"
            raise click.UsageError(f"{which} is given twice; give it once")
        seen.add(dimension)
