"""The connections of a transport, one to each endpoint. They can be replaced while calls are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from codomyrmex.concurrency.errors import EtcdUnavailable

T = TypeVar("T")


class Connection(Generic[T]):
    """A client connected to one endpoint, and the number of calls and streams that use it."""

    __slots__ = ("client", "endpoint", "users")

    def __init__(self, endpoint: str, client: T) -> None:
        self.endpoint = endpoint
        self.client = client
        self.users = 0


class Connections(Generic[T]):
    """Opens clients with ``connect`` and closes them with ``close``.

    ``renew`` puts new connections in place of the old ones. An old one takes no new calls and closes when the last call
    or stream on it has ended, so replacing TLS files harms nothing that is under way.
    """

    def __init__(self, connect: Callable[[str], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._connect = connect
        self._close = close
        self._current: dict[str, Connection[T]] = {}
        self._old: set[Connection[T]] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False

    def to(self, endpoint: str) -> Connection[T]:
        """The connection for a new call to ``endpoint``; raises ``EtcdUnavailable`` after ``close``."""
        connection = self._current.get(endpoint)
        if connection is None:
            if self._closed:
                raise EtcdUnavailable(f"the connection to etcd at {endpoint} was closed", applied="no")
            connection = self._current[endpoint] = Connection(endpoint, self._connect(endpoint))
        return connection

    @contextmanager
    def using(self, connection: Connection[T]) -> Iterator[T]:
        """The connection's client, which stays open until the block ends."""
        self.enter(connection)
        try:
            yield connection.client
        finally:
            self.leave(connection)

    def enter(self, connection: Connection[T]) -> None:
        """Count a call or stream that begins; its end calls ``leave``."""
        connection.users += 1

    def leave(self, connection: Connection[T]) -> None:
        """Count a call or stream that has ended."""
        connection.users -= 1
        self._close_if_unused(connection)

    def renew(self) -> None:
        """Let new calls take new connections."""
        for connection in list(self._current.values()):
            self.replace(connection)

    def replace(self, connection: Connection[T]) -> None:
        """Let new calls to an endpoint take another connection than this one."""
        if self._current.get(connection.endpoint) is connection:
            del self._current[connection.endpoint]
            self._old.add(connection)
            self._close_if_unused(connection)

    async def close(self) -> None:
        """Close every connection, and end the calls under way on them."""
        self._closed = True
        connections = [*self._current.values(), *self._old]
        self._current.clear()
        self._old.clear()
        for connection in connections:
            await self._close(connection.client)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close_if_unused(self, connection: Connection[T]) -> None:
        if connection in self._old and not connection.users:
            self._old.discard(connection)
            closing = asyncio.ensure_future(self._close(connection.client))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
