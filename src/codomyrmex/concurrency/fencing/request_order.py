"""``RequestOrder``: requests with fencing tokens, in order for each name.

A request with a higher token overtakes those with a lower one of the same name. One that has not begun is refused. One
that has begun goes on, and the higher one waits for its end. One that still waits for its own body will not get it: its
client may be stopped, and would stop the higher one too.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from codomyrmex.concurrency.fencing.fence import Fence
from codomyrmex.concurrency.fencing.token_stores import TokenStore


class Higher(NamedTuple):
    """The name for which a higher token was seen, and that token."""

    name: str
    token: int


class Request:
    """A request that has come and not ended."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.higher: Higher | None = None
        self.overtaken = asyncio.Event()
        self.changed = asyncio.Event()  # set when ``higher`` is, and when another request has ended

    def overtake(self, other: Request) -> None:
        """Compare with another request: of two that share a name, the one with the lower token is overtaken."""
        shared = set(self.fence.names).intersection(other.fence.names)
        if not shared or self.fence.token == other.fence.token:
            return
        lower, higher = sorted((self, other), key=lambda request: request.fence.token)
        lower.refuse(Higher(min(shared), higher.fence.token))

    def refuse(self, higher: Higher) -> None:
        """A higher token was seen."""
        if not self.higher or self.higher.token < higher.token:
            self.higher = higher
        self.overtaken.set()
        self.changed.set()

    def waits_for(self, other: Request) -> bool:
        """True if ``other`` must end before this request begins."""
        return other.fence.token < self.fence.token and not set(self.fence.names).isdisjoint(other.fence.names)


class RequestOrder:
    """The requests of one event loop that have come and not ended."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._requests: set[Request] = set()

    async def begin(self, request: Request) -> Higher | None:
        """Wait until the request may begin; returns the higher token if it may not. In any case, call ``end`` then.

        It joins the others before it asks the store, so a lower one that asks at the same time cannot begin after it.
        """
        for other in self._requests:
            request.overtake(other)
        self._requests.add(request)
        for name in request.fence.names:
            if request.higher:
                return request.higher
            highest = await self._store.advance(name, request.fence.token)
            if highest > request.fence.token:
                request.refuse(Higher(name, highest))
        while not request.higher and any(map(request.waits_for, self._requests)):
            request.changed.clear()
            await request.changed.wait()
        return request.higher

    def end(self, request: Request) -> None:
        """The request has ended, or has been refused."""
        self._requests.discard(request)
        for other in self._requests:
            other.changed.set()
