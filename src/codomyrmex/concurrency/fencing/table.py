"""The table of tokens: its statements, and the step that both databases share. Pure SQL, no driver."""

from __future__ import annotations

from typing import Any

NAME = "codomyrmex_fencing"
TABLE = f"CREATE TABLE IF NOT EXISTS {NAME} (name TEXT PRIMARY KEY, token BIGINT NOT NULL)"
_ADVANCE = (
    f"INSERT INTO {NAME} (name, token) VALUES (?, ?) "
    f"ON CONFLICT (name) DO UPDATE SET token = excluded.token WHERE {NAME}.token <= excluded.token"
)
_HIGHEST = f"SELECT token FROM {NAME} WHERE name = ?"


def advance(cursor: Any, mark: str, name: str, token: int) -> int:
    """Record ``token`` unless a higher one is there; returns the highest. ``mark`` stands for a parameter.

    From then on the transaction has the row's lock, so a later holder waits for its end.
    """
    cursor.execute(_ADVANCE.replace("?", mark), (name, token))
    if cursor.rowcount == 1:
        return token
    cursor.execute(_HIGHEST.replace("?", mark), (name,))
    return int(cursor.fetchone()[0])
