"""A rate limiter as a command opens it: with the limits that it has in etcd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from codomyrmex.concurrency import NotHeld, Rate, RateLimiter, RateLimitInfo, Session
from codomyrmex.concurrency.cli.options import where
from codomyrmex.concurrency.cli.rate_amounts import UNNAMED
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.rates import overview
from codomyrmex.concurrency.session import core_of


async def existing(context: click.Context, session: Session, name: str) -> RateLimitInfo:
    """The rate limiter of this name. Raises ``NotHeld`` if there is none in etcd."""
    info = await overview.limiter(core_of(session), checked(name))
    if not info.uses:
        raise NotHeld(f"there is no rate limiter {name!r} {where(context)}")
    return info


def rates(info: RateLimitInfo) -> dict[str, Rate]:
    """The limits of a rate limiter by dimension."""
    return {use.dimension: Rate(use.limit, use.per) for use in info.uses}


def limiter(info: RateLimitInfo, session: Session) -> RateLimiter:
    """The rate limiter with the limits that it has in etcd."""
    return of(info.name, rates(info), session)


def of(name: str, limits: Mapping[str, Rate], session: Session, metadata: dict[str, Any] | None = None) -> RateLimiter:
    """The rate limiter with these limits."""
    if UNNAMED in limits:
        return RateLimiter(name, limits[UNNAMED], session=session, metadata=metadata)
    return RateLimiter(name, limits=limits, session=session, metadata=metadata)
