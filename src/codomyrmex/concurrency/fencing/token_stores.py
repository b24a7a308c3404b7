"""Stores of the tokens that an HTTP server has seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from codomyrmex.concurrency.fencing.sql import advance

if TYPE_CHECKING:
    import sqlite3

    import psycopg


class TokenStore(Protocol):
    """A store of the highest token of each name; the methods that a store of your own needs."""

    async def advance(self, name: str, token: int) -> int:
        """Record ``token`` unless a higher one is there, in one step; returns the highest."""


class MemoryStore:
    """Tokens in this process. They are forgotten when it ends, and other processes of the server do not see them."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    async def advance(self, name: str, token: int) -> int:
        """Record ``token`` unless a higher one is there; returns the highest."""
        highest = self._tokens[name] = max(token, self._tokens.get(name, 0))
        return highest


class SqlStore:
    """Tokens in the table that ``fencing.sql`` keeps, for a server of several processes, or one that restarts.

    Args:
        connect: makes a connection of ``sqlite3`` or of psycopg 3. It is called in a thread, once for each request, and
            the connection is closed.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection | psycopg.Connection[Any]]) -> None:
        self._connect = connect

    async def advance(self, name: str, token: int) -> int:
        """Record ``token`` unless a higher one is there; returns the highest."""
        return await asyncio.to_thread(self._advance, name, token)

    def _advance(self, name: str, token: int) -> int:
        with closing(self._connect()) as connection:
            highest = advance(connection, name, token)
            connection.commit()
            return highest
