"""The share of a ``RateLimiter`` that each task of a pool takes: the arguments ``rate`` and ``cost`` of ``map``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from codomyrmex.concurrency.rates.rate import check_cost, check_within

if TYPE_CHECKING:
    from codomyrmex.concurrency.rates.limiter import RateLimiter

Item = TypeVar("Item")
Cost: TypeAlias = int | Mapping[str, int] | Callable[[Item], int | Mapping[str, int]]


class Share(NamedTuple):
    """A rate limiter, and the cost of a task: an amount, amounts by dimension, or a function of the item."""

    limiter: RateLimiter
    cost: Cost[Any] | None

    async def acquire(self, item: Any) -> None:
        """Wait until the limiter grants the cost of ``item``."""
        cost = self.cost
        if callable(cost):
            cost = cost(item)
            if cost is None:
                raise TypeError("the function cost must return an int or a dict, not None")
        amount, named = _arguments(cost)
        await self.limiter.acquire(amount, timeout=None, **named)  # or a dimension could pass for the timeout


def share_of(rate: RateLimiter | None, cost: Cost[Any] | None) -> Share | None:
    """The share of each task; None without a limiter.

    Raises ``TypeError`` or ``ValueError`` for a limiter or a cost that can be seen to be wrong before a task runs.
    """
    if rate is None:
        if cost is not None:
            raise TypeError("cost is what an item takes of a rate limiter: give the limiter as rate=")
        return None
    from codomyrmex.concurrency.rates.limiter import RateLimiter

    if not isinstance(rate, RateLimiter):
        raise TypeError(f"rate must be a RateLimiter of codomyrmex.concurrency, not {type(rate).__module__}: {rate!r}")
    if not callable(cost):
        check_within(rate.limits, check_cost(rate.limits, *_arguments(cost)))
    return Share(rate, cost)


def _arguments(cost: Any) -> tuple[Any, Mapping[str, int]]:
    """The arguments of ``RateLimiter.acquire`` for a cost."""
    return (None, cost) if isinstance(cost, Mapping) else (cost, {})
