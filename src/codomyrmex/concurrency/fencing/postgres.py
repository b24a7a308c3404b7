"""The table of tokens in PostgreSQL, through ``psycopg`` (extra ``postgres``)."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from codomyrmex.concurrency.fencing import table
from codomyrmex.concurrency.fencing.unavailable import FencingUnavailable

_EXISTS = f"SELECT to_regclass('{table.NAME}') IS NOT NULL"


def is_autocommit(connection: psycopg.Connection[Any]) -> bool:
    """True if the next statement would be committed by itself."""
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def advance(connection: psycopg.Connection[Any], name: str, token: int) -> int:
    """Record ``token`` unless a higher one is there; returns the highest.

    READ COMMITTED waits for a concurrent transaction and compares with its token. REPEATABLE READ and SERIALIZABLE wait
    too, and then raise ``psycopg.errors.SerializationFailure``: the transaction is to be begun again.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        if not _exists(cursor):
            _make_table(connection, cursor)
        return table.advance(cursor, "%s", name, token)


def _exists(cursor: psycopg.Cursor[tuple[Any, ...]]) -> bool:
    found = cursor.execute(_EXISTS).fetchone()
    return found is not None and found[0] is True


def _make_table(connection: psycopg.Connection[Any], cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
    """Make the table in the user's transaction. A savepoint keeps that transaction alive if another one is quicker."""
    try:
        with connection.transaction():
            cursor.execute(table.TABLE)
    except (errors.DuplicateTable, errors.UniqueViolation):
        return
    except (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction) as error:
        raise FencingUnavailable(
            f"the table of tokens is missing and cannot be made here ({error}); run this once as a user who may: "
            f'{table.TABLE}; GRANT SELECT, INSERT, UPDATE ON {table.NAME} TO "{connection.info.user}";'
        ) from error
