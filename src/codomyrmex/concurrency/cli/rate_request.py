"""The rate that ``run`` keeps to: the limits that the limiter has or gets, and the cost of the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from codomyrmex.concurrency import Rate, Session
from codomyrmex.concurrency.cli import rate_limiters, rate_rows
from codomyrmex.concurrency.cli.rate_amounts import UNNAMED, check_dimensions, in_dimension
from codomyrmex.concurrency.cli.views import rate_table, text
from codomyrmex.concurrency.rates import overview
from codomyrmex.concurrency.session import core_of


class RateRequest(NamedTuple):
    """The rate limiter to spend from, and how much. ``limits`` are those of a new one; empty for those in etcd."""

    name: str
    cost: Mapping[str, int]
    limits: Mapping[str, Rate]


async def spend(session: Session, wanted: RateRequest, metadata: dict[str, Any], patience: float | None) -> None:
    """Wait for the turn in the rate limiter, and spend the cost. An impossible cost is a usage error."""
    limits = wanted.limits or rate_limiters.rates(await overview.limiter(core_of(session), wanted.name))
    if not limits:
        raise click.UsageError(
            f"there is no rate limiter {text.visible(wanted.name)} yet; give its limit by --rate-limit, such as "
            "--rate-limit 100/60s or --rate-limit requests=100/60s"
        )
    cost = _checked(wanted, limits)
    unnamed = cost.pop(UNNAMED, None)
    limiter = rate_limiters.of(wanted.name, limits, session, metadata)
    await limiter.acquire(unnamed, timeout=patience, **cost)


def _checked(wanted: RateRequest, limits: Mapping[str, Rate]) -> dict[str, int]:
    """The cost by dimension, which the limits can grant; else a usage error."""
    cost = dict(wanted.cost) or ({UNNAMED: 1} if UNNAMED in limits else {})
    if not cost:
        forms = " or ".join(f"--cost {text.visible(dimension)}=N" for dimension in limits)
        raise click.UsageError(f"the rate limiter {text.visible(wanted.name)} has named dimensions; give {forms}")
    check_dimensions(wanted.name, limits, cost)
    for dimension, amount in cost.items():
        if amount > limits[dimension].amount:
            raise click.UsageError(
                f"the cost{in_dimension(dimension)} is {amount}, but the limit of {text.visible(wanted.name)} is "
                f"{limits[dimension]}; give a lower --cost"
            )
    return cost


async def use(session: Session, wanted: RateRequest) -> str:
    """The end of a message: what is used of the limiter's limits, the processes that wait, of which this is one, and
    its pause; nothing if it is not in etcd."""
    info = await overview.limiter(core_of(session), wanted.name)
    waiting = len(rate_rows.waiters(info) | {f"{session.id:016x}"})
    return f"; {text.visible(wanted.name)}: {rate_table.figures(info, waiting)}" if info.uses else ""
