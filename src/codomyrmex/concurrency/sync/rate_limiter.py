"""The blocking twin of ``RateLimiter``."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.rates import limiter as twin
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Spend:
    """The amounts that a call may use, inside ``with limiter.reserve(...) as spend``."""

    def __init__(self, spend: twin.Spend) -> None:
        self._twin = spend

    @property
    def cost(self) -> dict[str, int]:
        """The amounts that were reserved, by dimension."""
        return self._twin.cost

    @property
    def overdraft(self) -> dict[str, int]:
        """The amounts that the call used beyond its cost, by dimension, once ``used`` has told."""
        return self._twin.overdraft

    @text_of(twin.Spend.used)
    def used(self, amount: int | None = None, /, **amounts: int) -> None:
        portal().run(_used(self._twin, amount, amounts))

    deadline = blocking(twin.Spend.deadline)

    def __repr__(self) -> str:
        return repr(self._twin)


class Reserve(BlockingOnly):
    """Amounts for the time of a block: ``with limiter.reserve(tokens=4_000) as spend``. It can be used once."""

    def __init__(self, reserve: twin.Reserve) -> None:
        self._twin = reserve

    def __enter__(self) -> Spend:
        return Spend(portal().run(self._twin.__aenter__(), self._give_back))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._twin.__aexit__(kind, error, trace))

    async def _give_back(self, spend: twin.Spend) -> None:
        """Give everything back: the call that waited for it was interrupted."""
        await _used(spend, None, dict.fromkeys(spend.cost, 0))
        await self._twin.__aexit__(None, None, None)


class RateLimiter(BlockingOnly):
    """``codomyrmex.concurrency.RateLimiter`` for code without an event loop: ``limiter.acquire()``.

    Any number of threads may share it.
    """

    def __init__(
        self,
        name: str,
        rate: Rate | None = None,
        *,
        limits: Mapping[str, Rate] | None = None,
        session: Session | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._twin = twin.RateLimiter(name, rate, limits=limits, session=unwrapped(session), metadata=metadata)

    @property
    @text_of(twin.RateLimiter.name)
    def name(self) -> str:
        return self._twin.name

    @property
    @text_of(twin.RateLimiter.limits)
    def limits(self) -> dict[str, Rate]:
        return self._twin.limits

    acquire = blocking(twin.RateLimiter.acquire)

    @text_of(twin.RateLimiter.reserve)
    def reserve(self, amount: int | None = None, /, *, timeout: float | None = None, **cost: int) -> Reserve:
        return Reserve(self._twin.reserve(amount, timeout=timeout, **cost))

    throttled = blocking(twin.RateLimiter.throttled)
    resume = blocking(twin.RateLimiter.resume)
    info = blocking(twin.RateLimiter.info)
    resize = blocking(twin.RateLimiter.resize)
    delete = blocking(twin.RateLimiter.delete)

    def __repr__(self) -> str:
        return repr(self._twin)


async def _used(spend: twin.Spend, amount: int | None, amounts: Mapping[str, int]) -> None:
    spend.used(amount, **amounts)
