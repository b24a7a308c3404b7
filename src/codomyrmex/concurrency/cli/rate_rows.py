"""The dimensions of rate limiters as plain data, one row each, as ``rates`` lists them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency import RateLimitInfo


@dataclass(frozen=True, slots=True)
class RateRow:
    """One dimension of a rate limiter; ``dimension`` is empty for a limiter that has only one.

    ``used`` is the amount that counts at this moment, ``waiting`` the amount that ``waiters`` processes wait for in the
    queue. During a pause more wait, since they join no queue then.
    ``per`` is in seconds. ``paused_until`` and ``paused_by`` are None while the limiter is not paused.
    """

    name: str
    dimension: str
    limit: int
    per: float
    used: int
    free: int
    waiting: int
    waiters: int
    paused_until: datetime | None
    paused_by: str | None


def rows(infos: Iterable[RateLimitInfo]) -> list[RateRow]:
    """A row for each dimension of each rate limiter."""
    return [
        RateRow(
            name=info.name,
            dimension=use.dimension,
            limit=use.limit,
            per=use.per,
            used=use.used,
            free=use.free,
            waiting=use.waiting,
            waiters=len({owner.session for owner in use.waiters}),
            paused_until=info.paused_until,
            paused_by=info.paused_by,
        )
        for info in infos
        for use in info.uses
    ]


def waiters(info: RateLimitInfo) -> set[str]:
    """The sessions that stand in the limiter's queues."""
    return {owner.session for use in info.uses for owner in use.waiters}
