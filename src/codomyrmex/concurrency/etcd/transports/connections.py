"""The connections of a transport, one to each endpoint, and their replacement while calls are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from codomyrmex.concurrency.errors import EtcdUnavailable

T = TypeVar("T")


class Link(Generic[T]):
    """A connection to one endpoint, and how many calls and streams use it."""

    __slots__ = ("connection", "endpoint", "users")

    def __init__(self, endpoint: str, connection: T) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.users = 0


class Links(Generic[T]):
    """Opens connections with ``connect`` and closes them with ``close``.

    ``renew`` opens new connections beside the old ones. An old one takes no new calls, and is closed when the last call
    or stream on it has ended: replacing TLS files harms nothing that is under way.
    """

    def __init__(self, connect: Callable[[str], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._connect = connect
        self._close = close
        self._current: dict[str, Link[T]] = {}
        self._old: set[Link[T]] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False

    def to(self, endpoint: str) -> Link[T]:
        """The link that a new call to ``endpoint`` takes; raises ``EtcdUnavailable`` after ``close``."""
        link = self._current.get(endpoint)
        if link is None:
            if self._closed:
                raise EtcdUnavailable(f"the connection to etcd at {endpoint} was closed", applied="no")
            link = self._current[endpoint] = Link(endpoint, self._connect(endpoint))
        return link

    @contextmanager
    def using(self, link: Link[T]) -> Iterator[T]:
        """The link's connection, which stays open for as long as the block lasts."""
        self.enter(link)
        try:
            yield link.connection
        finally:
            self.leave(link)

    def enter(self, link: Link[T]) -> None:
        """A call or stream begins; ``leave`` is called at its end."""
        link.users += 1

    def leave(self, link: Link[T]) -> None:
        link.users -= 1
        self._close_if_unused(link)

    def renew(self) -> None:
        """From here on, new calls take new connections."""
        old, self._current = list(self._current.values()), {}
        self._old.update(old)
        for link in old:
            self._close_if_unused(link)

    async def close(self) -> None:
        """Close everything, whatever is under way."""
        self._closed = True
        links = [*self._current.values(), *self._old]
        self._current.clear()
        self._old.clear()
        for link in links:
            await self._close(link.connection)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close_if_unused(self, link: Link[T]) -> None:
        if link in self._old and not link.users:
            self._old.discard(link)
            closing = asyncio.ensure_future(self._close(link.connection))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
