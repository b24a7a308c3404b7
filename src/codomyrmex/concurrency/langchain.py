"""The rate limits of the fleet for LangChain's chat models (extra ``langchain``).

    limiter = RateLimiter("anthropic", Rate(100, per=60))  # of codomyrmex.concurrency.sync
    model = init_chat_model("anthropic:...", rate_limiter=FleetRateLimiter(limiter))

Import it where it is used: it needs ``langchain-core``.
"""

from __future__ import annotations

from langchain_core.rate_limiters import BaseRateLimiter

from codomyrmex.concurrency.errors import LockTimeout
from codomyrmex.concurrency.rates.rate import check_cost
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.rate_limiter import RateLimiter


class FleetRateLimiter(BaseRateLimiter):
    """Lets a chat model wait for a ``RateLimiter``, so that the models of all processes keep one limit together.

    Args:
        limiter: a ``RateLimiter`` of ``codomyrmex.concurrency.sync``. It serves ``invoke`` and ``ainvoke``, from any
            thread and any event loop.
        amount, cost: the cost of each call, as ``RateLimiter.acquire`` takes it. LangChain does not tell a limiter how
            long a prompt is, so a cost in tokens must be enough for a long call.

    Raises ``TypeError`` or ``ValueError`` for another limiter and for a cost without a limit.
    """

    def __init__(self, limiter: RateLimiter, amount: int | None = None, /, **cost: int) -> None:
        if not isinstance(limiter, RateLimiter):
            raise TypeError(f"limiter must be a codomyrmex.concurrency.sync.RateLimiter, not {limiter!r}")
        check_cost(limiter.limits, amount, cost)
        self._limiter = limiter
        self._amount = amount
        self._cost = cost

    def acquire(self, *, blocking: bool = True) -> bool:
        """Wait for the cost of a call and return True. Without ``blocking``, return False if it is not free."""
        return portal().run(self._acquire(blocking))

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Wait for the cost of a call and return True. Without ``blocking``, return False if it is not free."""
        return await portal().awaited(self._acquire(blocking))

    async def _acquire(self, blocking: bool) -> bool:
        try:
            await self._limiter._twin.acquire(self._amount, timeout=None if blocking else 0, **self._cost)
        except LockTimeout:
            return False
        return True
