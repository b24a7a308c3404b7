"""``fencing.sql`` with ``sqlite3``."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codomyrmex.concurrency import fencing
from codomyrmex.concurrency.errors import FencedWriteRejected
from tests.unit.fencing.holds import entry, held, kept, permit

Connect = Callable[..., sqlite3.Connection]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Makes connections to one database with a table ``data`` of one row."""
    made: list[sqlite3.Connection] = []

    def new(**options: object) -> sqlite3.Connection:
        made.append(sqlite3.connect(tmp_path / "data.db", check_same_thread=False, **options))  # type: ignore[call-overload]
        return made[-1]

    with new() as connection:
        connection.execute("CREATE TABLE data (value TEXT)")
        connection.execute("INSERT INTO data VALUES ('first')")
    yield new
    for connection in made:
        connection.close()


def write(connection: sqlite3.Connection, hold: fencing.Granted | fencing.Reserved, value: str) -> None:
    with connection:
        fencing.sql(connection, hold)
        connection.execute("UPDATE data SET value = ?", (value,))


def value(connection: sqlite3.Connection) -> str:
    found: str = connection.execute("SELECT value FROM data").fetchone()[0]
    return found


def test_a_lower_token_is_refused_and_both_are_named(connect: Connect) -> None:
    connection = connect()
    write(connection, held(7), "by 7")
    write(connection, held(9), "by 9")
    with pytest.raises(FencedWriteRejected, match=r"token 7 .*'deploy'.* token 9"):
        write(connection, held(7), "late")
    assert value(connection) == "by 9"


def test_without_it_the_late_write_lands(connect: Connect) -> None:
    connection = connect()
    write(connection, held(9), "by 9")
    with connection:
        connection.execute("UPDATE data SET value = 'late'")
    assert value(connection) == "late"


def test_a_holder_writes_any_number_of_times(connect: Connect) -> None:
    connection = connect()
    for number in range(3):
        write(connection, held(7), str(number))
    assert value(connection) == "2"


def test_a_transaction_that_is_rolled_back_leaves_no_token(connect: Connect) -> None:
    connection = connect()
    write(connection, held(7), "by 7")
    fencing.sql(connection, held(9))
    connection.rollback()
    write(connection, held(7), "again by 7")
    assert value(connection) == "again by 7"


def test_namespaces_and_names_are_apart(connect: Connect) -> None:
    connection = connect()
    write(connection, held(9, namespace="other"), "x")
    write(connection, held(9, "other"), "x")
    write(connection, held(7), "by 7")
    assert value(connection) == "by 7"


def test_each_name_of_a_reservation_is_fenced(connect: Connect) -> None:
    connection = connect()
    write(connection, kept(8, entry("a"), entry("b")), "by 8")
    for name in ("a", "b"):
        with pytest.raises(FencedWriteRejected):
            write(connection, held(7, name), "late")
    write(connection, held(9, "b"), "by 9")
    with pytest.raises(FencedWriteRejected, match="'b'"):
        write(connection, kept(8, entry("a"), entry("b")), "late")


def test_a_holder_that_reads_first_keeps_earlier_ones_out(connect: Connect) -> None:
    later, earlier = connect(), connect(timeout=0)
    with later:
        fencing.sql(later, held(9))
        text = value(later)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write(earlier, held(7), "late")
        earlier.rollback()
        later.execute("UPDATE data SET value = ?", (f"{text}, second",))
    with pytest.raises(FencedWriteRejected):
        write(earlier, held(7), "late")
    assert value(later) == "first, second"


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
def test_a_later_holder_waits_for_an_earlier_one_under_way(connect: Connect, begin: str) -> None:
    earlier, later = connect(), connect()
    write(earlier, held(1), "made")  # so that only the guard is waited for
    earlier.execute(begin)
    fencing.sql(earlier, held(7))
    thread = threading.Thread(target=write, args=(later, held(9), "by 9"))
    thread.start()
    earlier.execute("UPDATE data SET value = 'by 7'")
    thread.join(0.1)
    assert thread.is_alive()
    earlier.commit()
    thread.join()
    assert value(later) == "by 9"


def test_a_transaction_that_read_too_early_begins_again(connect: Connect) -> None:
    later, earlier = connect(timeout=0), connect()
    later.execute("PRAGMA journal_mode = wal")
    write(earlier, held(7), "by 7")
    later.execute("BEGIN")
    assert value(later) == "by 7"
    write(earlier, held(7), "again by 7")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        fencing.sql(later, held(9))
    later.rollback()
    write(later, held(9), value(later) + ", by 9")
    assert value(later) == "again by 7, by 9"


def test_row_factories_of_users_do_no_harm(connect: Connect) -> None:
    connection = connect()
    write(connection, held(9), "by 9")
    connection.row_factory = lambda cursor, row: {"row": row}
    with pytest.raises(FencedWriteRejected, match="token 9"):
        fencing.sql(connection, held(7))


def test_autocommit_is_refused(connect: Connect) -> None:
    connection = connect(isolation_level=None)
    with pytest.raises(ValueError, match="autocommit"):
        fencing.sql(connection, held(7))
    connection.execute("BEGIN")
    fencing.sql(connection, held(7))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit= from Python 3.12 on")
def test_the_other_autocommit_is_refused_too(connect: Connect) -> None:
    with pytest.raises(ValueError, match="autocommit"):
        fencing.sql(connect(autocommit=True), held(7))
    write(connect(autocommit=False), held(7), "by 7")


def test_the_table_can_be_made_by_its_statement(connect: Connect, tmp_path: Path) -> None:
    connect()
    reading = sqlite3.connect(f"file:{tmp_path / 'data.db'}?mode=ro", uri=True)
    with pytest.raises(fencing.FencingUnavailable) as raised:
        fencing.sql(reading, held(7))
    reading.close()
    assert fencing.TABLE in str(raised.value)
    with connect() as connection:
        connection.execute(fencing.TABLE)
        fencing.sql(connection, held(7))


def test_the_error_of_a_locked_database_stays_the_drivers(connect: Connect) -> None:
    other, connection = connect(), connect(timeout=0)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        fencing.sql(connection, held(7))


class Pooled:
    """A connection that wraps another."""


@pytest.mark.parametrize("other", [None, "dsn", 7, Pooled()])
def test_other_connections_are_refused(other: object) -> None:
    with pytest.raises(TypeError, match=f"{type(other).__name__}; of a pool or an ORM"):
        fencing.sql(other, held(7))  # type: ignore[arg-type]


def test_a_permit_is_refused(connect: Connect) -> None:
    with pytest.raises(ValueError, match="semaphore"):
        fencing.sql(connect(), permit(7))
