"""``sql``: a transaction that commits only if no later holder of the lock was seen in this database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codomyrmex.concurrency.fencing.fence import Granted, Reserved, fence_of, rejected
from codomyrmex.concurrency.fencing.table import TABLE as TABLE

if TYPE_CHECKING:
    import sqlite3

    import psycopg


def sql(connection: sqlite3.Connection | psycopg.Connection[Any], grant: Granted | Reserved) -> None:
    """Guard the transaction of ``connection`` by the token of ``grant``. Call it first, before you read.

    It records the token in the table ``codomyrmex_fencing``, in your own transaction. The row stays locked until you
    commit or roll back, so transactions of two holders run one after the other. The table is made on first use;
    ``TABLE`` is the statement that makes it. It lies in the first schema of the search path, which all writers share.

    Args:
        connection: of ``sqlite3`` or of psycopg 3, with a transaction open or about to be opened by this statement.
        grant: the grant of a lock or the term of an election, asyncio or blocking, or a reservation of names. Paths do
            not count.

    Raises ``FencedWriteRejected`` if a higher token was seen: roll back, the lock is another's. Raises ``TypeError``
    for other connections, ``ValueError`` for one in autocommit mode and for a grant that does not exclude others, and
    ``FencingUnavailable`` if the table is missing and cannot be made. Errors of the driver stay as they are.
    """
    fence = fence_of(grant)
    for name in fence.names:
        highest = advance(connection, name, fence.token)
        if highest > fence.token:
            raise rejected(name, fence.token, highest, "roll this transaction back")


def advance(connection: object, name: str, token: int) -> int:
    """Record ``token`` in the transaction of ``connection`` unless a higher one is there; returns the highest."""
    driver: Any = _driver_of(connection)
    if driver.is_autocommit(connection):
        raise ValueError(
            "this connection is in autocommit mode, so the check and your writes would not be one transaction; turn "
            "autocommit off, or begin a transaction first"
        )
    highest: int = driver.advance(connection, name, token)
    return highest


def _driver_of(connection: object) -> object:
    """The module that speaks to ``connection``. A driver is imported only by users who have imported it already."""
    if _is_a(connection, "sqlite3", "Connection"):
        from codomyrmex.concurrency.fencing import sqlite

        return sqlite
    if _is_a(connection, "psycopg", "Connection"):
        from codomyrmex.concurrency.fencing import postgres

        return postgres
    if _is_a(connection, "psycopg", "AsyncConnection"):
        raise TypeError("an asynchronous connection cannot be fenced; use psycopg.Connection in asyncio.to_thread")
    raise TypeError(
        f"fencing takes a connection of sqlite3 or of psycopg 3, not {type(connection).__module__}."
        f"{type(connection).__qualname__}; of a pool or an ORM, give the driver's own connection"
    )


def _is_a(connection: object, package: str, name: str) -> bool:
    return any((one.__module__, one.__name__) == (package, name) for one in type(connection).__mro__)
