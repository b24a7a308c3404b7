"""``Rate``, and checks of the amounts that calls cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from codomyrmex.concurrency.decode import MAX_NUMBER
from codomyrmex.concurrency.durations import check_number

SHORTEST, LONGEST = 1.0, 7 * 86_400.0  # seconds of a period
MOST_DIMENSIONS = 8
UNNAMED = ""  # the dimension of a limiter with one rate
_UNITS = {86_400: "day", 3_600: "hour", 60: "minute"}
_LONGEST_NAME = 64  # bytes of a dimension in UTF-8
_RESERVED = frozenset({"timeout", "self"})  # keyword arguments of ``acquire``


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``amount`` in any window of ``per`` seconds: ``Rate(100, per=60)``.

    Raises ``ValueError`` for an amount below 1 and a period outside 1 second to 7 days, ``TypeError`` for other types.
    """

    amount: int
    per: float

    def __post_init__(self) -> None:
        check_amount("the amount of a rate", self.amount)
        check_number("per", self.per)
        if not (math.isfinite(self.per) and SHORTEST <= self.per <= LONGEST):
            raise ValueError(f"per must be from 1 second to 7 days (604800 seconds), not {self.per}")

    def __str__(self) -> str:
        return f"{self.amount} per {period(self.per)}"


def length(seconds: float) -> str:
    """The length of a period in words: ``1 day``, ``2 hours``, ``90 s``."""
    for of, unit in _UNITS.items():
        if seconds and seconds % of == 0:
            number = int(seconds // of)
            return f"1 {unit}" if number == 1 else f"{number} {unit}s"
    return f"{seconds:g} s"


def period(per: float) -> str:
    """The words that follow "per": ``day``, ``2 hours``, ``90 s``."""
    return length(per).removeprefix("1 ") if per > SHORTEST else length(per)


def check_amount(what: str, amount: object, least: int = 1) -> int:
    """Return ``amount`` if it is a whole number of at least ``least``; raises ``TypeError`` or ``ValueError``."""
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise TypeError(f"{what} must be an int, not {type(amount).__name__}")
    if not least <= amount <= MAX_NUMBER:
        raise ValueError(f"{what} must be at least {least} and at most {MAX_NUMBER}, not {amount}")
    return amount


def check_limits(rate: Rate | None, limits: Mapping[str, Rate] | None) -> dict[str, Rate]:
    """The rates of a limiter by dimension, from its two arguments; the one ``rate`` is that of the unnamed dimension.

    Raises ``TypeError`` or ``ValueError`` unless there is exactly one of the two.
    """
    if (rate is None) == (limits is None):
        raise TypeError("give either one rate, as in RateLimiter('x', Rate(100, per=60)), or limits={...} by dimension")
    if limits is None:
        return {UNNAMED: _checked_rate("the limit", rate)}
    if not isinstance(limits, Mapping):
        raise TypeError(
            f"limits must be a dict with a Rate for each dimension, such as {{'tokens': Rate(100, per=60)}}, not "
            f"{limits!r}; a rate without dimensions is the second argument: RateLimiter('x', Rate(100, per=60))"
        )
    rates = dict(limits)
    if not 1 <= len(rates) <= MOST_DIMENSIONS:
        raise ValueError(f"limits must name 1 to {MOST_DIMENSIONS} dimensions, not {len(rates)}")
    for dimension, one in rates.items():
        _checked_rate(f"the limit of {dimension!r}", one)
        check_dimension(dimension)
    return rates


def check_new_rates(known: Mapping[str, Rate], rate: Rate | None, rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """The new rates of some dimensions, from the arguments of ``resize``. Raises ``TypeError``.

    A dimension that is not ``known`` here may be in etcd.
    """
    form = "resize(Rate(80, per=60))" if UNNAMED in known else f"resize({next(iter(known))}=Rate(80, per=60))"
    if rate is None and not rates:
        raise TypeError(f"give the new rate, such as {form}")
    if rate is not None and UNNAMED not in known:
        raise TypeError(f"name the dimension of {rate}, such as {form}")
    new = {**({} if rate is None else {UNNAMED: rate}), **rates}
    return {one: _checked_rate(f"the new limit of {one or 'the limiter'}", new[one], form) for one in new}


def _checked_rate(what: str, rate: object, form: str = "Rate(100, per=60)") -> Rate:
    if not isinstance(rate, Rate):
        raise TypeError(f"{what} must be a Rate, such as {form}, not {rate!r}")
    return rate


def check_dimension(dimension: object) -> None:
    """Raise ``ValueError`` unless ``dimension`` can name a dimension, which calls give as a keyword argument."""
    if not (isinstance(dimension, str) and dimension.isidentifier() and len(dimension.encode()) <= _LONGEST_NAME):
        raise ValueError(f"a dimension must be named by an identifier, such as 'tokens', not {dimension!r}")
    if dimension in _RESERVED:
        raise ValueError(f"a dimension must not be named {dimension!r}")


def check_cost(limits: Mapping[str, Rate], amount: int | None, named: Mapping[str, int]) -> dict[str, int]:
    """The cost of one call by dimension, from the arguments of ``acquire`` and ``reserve``.

    Raises ``ValueError`` for a dimension that is not limited and for a cost below 1, ``TypeError`` for no cost at all.
    """
    cost = _by_dimension(limits, 1 if amount is None and not named and UNNAMED in limits else amount, named)
    if not cost:
        raise TypeError(f"give the cost of the call in one dimension at least, such as {next(iter(limits))}=1")
    for dimension, one in cost.items():
        check_amount(f"the cost{_of(dimension)}", one)
    return cost


def check_used(reserved: Mapping[str, int], amount: int | None, named: Mapping[str, int]) -> dict[str, int]:
    """The amounts that a call used, by dimension, from the arguments of ``Spend.used``; 0 is one."""
    used = _by_dimension(reserved, amount, named)
    for dimension, one in used.items():
        check_amount(f"the amount used{_of(dimension)}", one, 0)
    return used


def check_within(limits: Mapping[str, Rate], cost: Mapping[str, int]) -> None:
    """Raise ``ValueError`` if a call costs more than a limit, since it would wait for ever."""
    for dimension, amount in cost.items():
        if amount > limits[dimension].amount:
            raise ValueError(f"the cost{_of(dimension)} is {amount}, but the limit is {limits[dimension]}")


def _by_dimension(known: Mapping[str, object], amount: int | None, named: Mapping[str, int]) -> dict[str, int]:
    amounts = dict(named)
    if amount is not None:
        if UNNAMED not in known:
            raise TypeError(f"name the dimension of {amount!r}: {', '.join(f'{name}=...' for name in known)}")
        amounts[UNNAMED] = amount
    for dimension in amounts:
        if dimension not in known:
            names = ", ".join(map(repr, known)) if UNNAMED not in known else "one without a name"
            raise ValueError(f"there is no dimension {dimension!r} here; the dimensions are: {names}")
    return amounts


def _of(dimension: str) -> str:
    return f" in {dimension}" if dimension else ""
