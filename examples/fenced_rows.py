"""Two workers write one row of a database, each under the lock. The first loses its lock in the middle of its work, and
its late write is refused by the database. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/fenced_rows.py
"""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from codomyrmex.concurrency import FencedWriteRejected, fencing
from codomyrmex.concurrency.sync import Grant, LockManager


def book(database: Path, seats: int, grant: Grant) -> int:
    """Take seats in one transaction; returns how many are left."""
    with closing(sqlite3.connect(database)) as connection, connection:
        fencing.sql(connection, grant)  # first, before anything is read
        (free,) = connection.execute("SELECT free FROM seats").fetchone()
        connection.execute("UPDATE seats SET free = ?", (free - seats,))
        return int(free) - seats


def prepare(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE seats (free INTEGER)")
        connection.execute("INSERT INTO seats VALUES (10)")


def main() -> None:
    manager = LockManager()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "seats.db"
        prepare(database)
        with manager.acquire("seats", on_loss="notify") as first:
            print(f"the first worker takes 2 seats, {book(database, 2, first)} are left")
            manager.force_release("seats", reason="to show fencing", token=first.token)
            with manager.acquire("seats") as second:
                print(f"the second worker takes 3 seats, {book(database, 3, second)} are left")
            try:
                book(database, 4, first)
            except FencedWriteRejected as error:
                print("the first worker is refused:", error)


if __name__ == "__main__":
    main()
