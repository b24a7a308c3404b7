"""``fencing.sql`` on a real PostgreSQL."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (extra postgres)")

from psycopg.rows import dict_row  # noqa: E402

from codomyrmex.concurrency import EmbeddedEtcd, FencedWriteRejected, Session, fencing  # noqa: E402
from tests import postgres  # noqa: E402
from tests.integration.stopped_holder import stopped_and_late  # noqa: E402
from tests.unit.fencing.holds import entry, held, kept  # noqa: E402

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing()),
]

_numbers = itertools.count(1)
ISOLATIONS = [psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.REPEATABLE_READ]
SNAPSHOTS = [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.served() as address:
        yield address


@pytest.fixture
def address(server: str) -> str:
    """The address of a schema of its own, with a table ``data`` of one row."""
    schema = f"test{next(_numbers)}"
    with psycopg.connect(server) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"CREATE TABLE {schema}.data (value text)")
        connection.execute(f"INSERT INTO {schema}.data VALUES ('first')")
    return f"{server} options='-c search_path={schema}'"


@pytest.fixture
def connect(address: str) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def new(isolation: Any = None, **options: Any) -> Any:
        made.append(psycopg.connect(address, **options))
        made[-1].isolation_level = isolation
        return made[-1]

    yield new
    for connection in made:
        connection.close()


def write(connection: Any, hold: Any, value: str) -> None:
    with connection.transaction():
        fencing.sql(connection, hold)
        connection.execute("UPDATE data SET value = %s", (value,))


def value(connection: Any) -> Any:
    found = connection.execute("SELECT value FROM data").fetchone()[0]
    connection.commit()
    return found


class InThread(threading.Thread):
    """Writes in a thread, and keeps the error."""

    def __init__(self, connection: Any, hold: Any, value: str) -> None:
        super().__init__()
        self.error: Exception | None = None
        self._write = lambda: write(connection, hold, value)
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except Exception as error:
            self.error = error

    def waits(self, watching: Any) -> bool:
        """Wait until a transaction waits for the lock of another one."""
        for _ in range(500):
            found = watching.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]
            watching.rollback()
            if found or not self.is_alive():
                return bool(found)
            time.sleep(0.01)
        return False

    def ended(self) -> Exception | None:
        self.join(10)
        assert not self.is_alive()
        return self.error


@pytest.mark.parametrize("kind", ["lock", "reservation"])
async def test_a_stopped_holder(etcd: EmbeddedEtcd, session: Session, namespace: str, address: str, kind: str) -> None:
    def read() -> str:
        with psycopg.connect(address) as connection:
            return str(value(connection))

    await stopped_and_late(etcd, session, namespace, kind, "postgres", address, read)


def test_a_lower_token_is_refused_and_both_are_named(connect: Callable[..., Any]) -> None:
    connection = connect()
    write(connection, held(7), "by 7")
    write(connection, held(7), "again by 7")
    write(connection, held(9), "by 9")
    with pytest.raises(FencedWriteRejected, match=r"token 7 .*'deploy'.* token 9"):
        write(connection, held(7), "late")
    write(connection, held(7, namespace="other"), "by 7 of another namespace")
    write(connection, kept(10, entry("deploy"), entry("other")), "by 10")
    for name in ("deploy", "other"):
        with pytest.raises(FencedWriteRejected):
            write(connection, held(9, name), "late")
    assert value(connection) == "by 10"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_later_holder_waits_for_an_earlier_one_under_way(connect: Callable[..., Any], isolation: Any) -> None:
    earlier, later = connect(isolation), connect(isolation)
    write(earlier, held(6), "by 6")
    fencing.sql(earlier, held(7))
    earlier.execute("UPDATE data SET value = 'by 7'")
    waiting = InThread(later, held(9), "by 9")
    assert waiting.waits(connect())
    earlier.commit()
    error = waiting.ended()
    if isolation is psycopg.IsolationLevel.READ_COMMITTED:
        assert error is None
    else:
        assert isinstance(error, psycopg.errors.SerializationFailure), "its snapshot is from before the end of 7"
        write(later, held(9), "by 9")
    assert value(later) == "by 9"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_earlier_holder_that_waits_for_a_later_one_does_not_write(
    connect: Callable[..., Any], isolation: Any
) -> None:
    earlier, later = connect(isolation), connect(isolation)
    write(earlier, held(7), "by 7")
    fencing.sql(later, held(9))
    waiting = InThread(earlier, held(7), "late")
    assert waiting.waits(connect())
    later.execute("UPDATE data SET value = 'by 9'")
    later.commit()
    assert isinstance(waiting.ended(), FencedWriteRejected | psycopg.errors.SerializationFailure)
    with pytest.raises(FencedWriteRejected):
        write(earlier, held(7), "late")
    assert value(later) == "by 9"


@pytest.mark.parametrize("isolation", SNAPSHOTS)
def test_a_snapshot_from_before_an_earlier_holders_write_cannot_commit(
    connect: Callable[..., Any], isolation: Any
) -> None:
    earlier, later = connect(), connect(isolation)
    write(earlier, held(7), "by 7")
    assert later.execute("SELECT value FROM data").fetchone()[0] == "by 7"
    write(earlier, held(7), "again by 7")
    with pytest.raises(psycopg.errors.SerializationFailure):
        fencing.sql(later, held(9))
    later.rollback()
    write(later, held(9), f"{value(later)}, by 9")
    assert value(later) == "again by 7, by 9"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_several_make_the_table_at_once(connect: Callable[..., Any], isolation: Any) -> None:
    first, second = connect(isolation), connect(isolation)
    second.execute("SELECT 1 FROM data")  # its snapshot is from before the table
    fencing.sql(first, held(7, "a"))
    waiting = InThread(second, held(7, "b"), "by the second")
    assert waiting.waits(connect())
    first.commit()
    assert waiting.ended() is None
    second.commit()
    assert value(first) == "by the second"


def test_a_table_that_was_rolled_back_is_made_again(connect: Callable[..., Any]) -> None:
    connection = connect()
    fencing.sql(connection, held(9))
    connection.rollback()
    write(connection, held(7), "by 7")
    assert value(connection) == "by 7"


def test_a_user_who_may_make_no_table_is_told_the_statement(
    connect: Callable[..., Any], server: str, address: str
) -> None:
    owner = connect()
    schema = owner.execute("SELECT current_schema()").fetchone()[0]
    user = f"user_{schema}"
    owner.execute(f"CREATE USER {user}; GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT ALL ON data TO {user}")
    owner.commit()
    connection = connect(user=user)
    with pytest.raises(fencing.FencingUnavailable) as raised:
        fencing.sql(connection, held(7))
    connection.execute("SELECT 1")  # the transaction is alive
    connection.rollback()
    statements = str(raised.value).partition("as a user who may: ")[2]
    assert statements.startswith(fencing.TABLE)
    owner.execute(statements)
    owner.commit()
    write(connection, held(7), "by 7")
    with pytest.raises(FencedWriteRejected):
        write(connection, held(6), "late")
    assert value(connection) == "by 7"


def test_a_read_only_transaction_is_told_the_statement(connect: Callable[..., Any]) -> None:
    connection = connect()
    connection.read_only = True
    with pytest.raises(fencing.FencingUnavailable, match="CREATE TABLE"):
        fencing.sql(connection, held(7))


def test_autocommit_is_refused_outside_a_transaction(connect: Callable[..., Any]) -> None:
    connection = connect(autocommit=True)
    with pytest.raises(ValueError, match="autocommit"):
        fencing.sql(connection, held(7))
    write(connection, held(7), "by 7")


async def test_an_asynchronous_connection_is_refused(address: str) -> None:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        with pytest.raises(TypeError, match="asynchronous"):
            fencing.sql(connection, held(7))  # type: ignore[arg-type]


def test_row_factories_cursors_and_pipelines_of_users_do_no_harm(connect: Callable[..., Any]) -> None:
    connection = connect(row_factory=dict_row, cursor_factory=psycopg.ClientCursor)
    write(connection, held(9), "by 9")
    with pytest.raises(FencedWriteRejected, match="token 9"):
        write(connection, held(7), "late")
    piped = connect()
    with piped.pipeline():
        write(piped, held(10), "by 10")
        with pytest.raises(FencedWriteRejected, match="token 10"):
            write(piped, held(9), "late")
    assert value(piped) == "by 10"


async def test_a_store_for_http(address: str) -> None:
    store = fencing.http.SqlStore(lambda: psycopg.connect(address))
    name = "/fleet/v1/lock/deploy/"
    assert [await store.advance(name, token) for token in (7, 9, 7, 9)] == [7, 9, 9, 9]
