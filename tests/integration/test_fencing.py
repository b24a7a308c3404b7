"""A holder that was stopped past its lease and writes then: refused with the kit, and landed without it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import (
    Election,
    EmbeddedEtcd,
    FencedWriteRejected,
    Group,
    LockManager,
    Semaphore,
    Session,
    Shared,
    fencing,
)
from tests.integration.asgi import served
from tests.integration.stopped_holder import stopped_and_late

pytestmark = pytest.mark.long
both = pytest.mark.parametrize("kind", ["lock", "reservation"])


@both
async def test_in_sqlite(etcd: EmbeddedEtcd, session: Session, namespace: str, tmp_path: Path, kind: str) -> None:
    def read() -> str:
        with closing(sqlite3.connect(database)) as connection:
            return str(connection.execute("SELECT value FROM data").fetchone()[0])

    database = tmp_path / "data.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("CREATE TABLE data (value TEXT); INSERT INTO data VALUES ('')")
    await stopped_and_late(etcd, session, namespace, kind, "sqlite", str(database), read)


@both
async def test_in_a_file(etcd: EmbeddedEtcd, session: Session, namespace: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.txt"
    await stopped_and_late(etcd, session, namespace, kind, "file", str(path), path.read_text)


@both
async def test_over_http(etcd: EmbeddedEtcd, session: Session, namespace: str, kind: str) -> None:
    resource = [""]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        resource[0] = (await receive())["body"].decode()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with served(fencing.http.FencingMiddleware(app)) as address:
        await stopped_and_late(etcd, session, namespace, kind, "http", address, lambda: resource[0])


async def test_holds_that_exclude_no_other_are_refused(session: Session, tmp_path: Path) -> None:
    manager, path = LockManager(session), tmp_path / "data.txt"
    async with Semaphore("permits", max_concurrent=2, session=session) as permit:
        with pytest.raises(ValueError, match="semaphore"):
            fencing.files.replace(path, "x", permit)
    async with Group("g", session).join() as membership:
        with pytest.raises(ValueError, match="a member's grant"):
            fencing.files.replace(path, "x", membership.grant)
    async with manager.acquire_all([Shared("a")]) as (reader,):
        with pytest.raises(ValueError, match="reader"):
            fencing.files.replace(path, "x", reader)
    async with manager.acquire_paths(["src/"], shared=True) as reader:
        with pytest.raises(ValueError, match="reader"):
            fencing.files.replace(path, "x", reader)
    async with manager.acquire_paths(["src/"]) as grant:
        fencing.files.replace(path, "by the paths' holder", grant)
        with pytest.raises(ValueError, match="paths alone"):
            fencing.http.headers(grant)
    async with manager.acquire("a") as grant, manager.reserve("b", ttl=60) as reservation:
        assert fencing.http.headers(grant)["Fencing-Names"].endswith("/v1/lock/a/")
        assert fencing.http.headers(reservation)["Fencing-Token"] == str(reservation.token)


async def test_a_term_fences_its_data_against_the_term_before(session: Session, tmp_path: Path) -> None:
    election, path = Election("e", session), tmp_path / "data.txt"
    async with election.campaign() as former:
        assert fencing.http.headers(former) == fencing.http.headers(former.grant)
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        async with election.campaign() as term:
            for holder in (term, term.grant):
                fencing.sql(connection, holder)
                fencing.files.replace(path, "by the leader", holder)
        late = f"the token {former.token} of the election 'e' is too old: the token {term.token} of a later holder"
        for holder in (former, former.grant):
            with pytest.raises(FencedWriteRejected, match=late):
                fencing.sql(connection, holder)
            with pytest.raises(FencedWriteRejected, match=late):
                fencing.files.replace(path, "late", holder)
    assert path.read_text() == "by the leader"
