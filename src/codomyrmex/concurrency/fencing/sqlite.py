"""The table of tokens in SQLite, through ``sqlite3``."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from codomyrmex.concurrency.fencing import table
from codomyrmex.concurrency.fencing.unavailable import FencingUnavailable

_MISSING = f"no such table: {table.NAME}"
_REFUSED = {"SQLITE_READONLY", "SQLITE_AUTH"}  # and their extended codes


def is_autocommit(connection: sqlite3.Connection) -> bool:
    """True if the next statement would be committed by itself."""
    if connection.in_transaction:
        return False
    mode = getattr(connection, "autocommit", -1)  # from Python 3.12 on; -1 leaves it to isolation_level
    return mode is True or connection.isolation_level is None


def advance(connection: sqlite3.Connection, name: str, token: int) -> int:
    """Record ``token`` unless a higher one is there; returns the highest.

    The statement comes before any reading, since a transaction that has read may have to begin again to write.
    """
    with closing(connection.cursor()) as cursor:
        cursor.row_factory = None  # the user's may make no tuples
        try:
            return table.advance(cursor, "?", name, token)
        except sqlite3.OperationalError as error:
            if _MISSING not in str(error):
                raise
        _make_table(cursor)
        return table.advance(cursor, "?", name, token)


def _make_table(cursor: sqlite3.Cursor) -> None:
    try:
        cursor.execute(table.TABLE)
    except sqlite3.DatabaseError as error:
        if not any(error.sqlite_errorname.startswith(code) for code in _REFUSED):
            raise
        raise FencingUnavailable(
            f"the table of tokens is missing and cannot be made here ({error}); run this once where it can: "
            f"{table.TABLE};"
        ) from error
