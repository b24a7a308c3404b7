"""Faults of a whole etcd: a full database, a state restored from the past."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from codomyrmex.concurrency import (
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    EtcdQuotaExceeded,
    EtcdRegressed,
    FencedWriteRejected,
    Session,
)
from tests.helpers import eventually, queue_of
from tests.integration.test_together import fill


async def test_in_a_full_database_held_locks_renew_and_can_be_released(namespace: str) -> None:
    async with (
        EmbeddedEtcd(args=[f"--quota-backend-bytes={16 << 20}"]) as own,
        Session(endpoints=own.endpoint, namespace=namespace, session_ttl=3) as session,
    ):
        lock = DistributedLock("held", session, on_loss="notify")
        grant = await lock.acquire()

        await fill(session)
        with pytest.raises(EtcdQuotaExceeded):
            await DeadLetterQueue("q", session=session).add(operation="x", args={}, error="e")
        await asyncio.sleep(4)  # longer than the lease
        assert session.alive and not grant.lost.is_set()
        await asyncio.wait_for(lock.release(), 5)
        await queue_of(session, "held", 0)


async def test_an_etcd_restored_from_the_past_is_noticed_and_refused(namespace: str, tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    settings = {"namespace": namespace, "session_ttl": 30}
    async with EmbeddedEtcd(data_dir=data) as own:
        session = await Session(endpoints=own.endpoint, **settings).open()
        lock = DistributedLock("x", session, on_loss="notify")
        await lock.acquire()
        await asyncio.to_thread(own.kill)
        shutil.copytree(data, backup)
        await own.start()
        await lock.release()
        grant = await lock.acquire()
        for number in range(20):
            await grant.put("/restored/x", str(number))
        await asyncio.to_thread(own.kill)
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        await own.start()
        with pytest.raises((EtcdRegressed, FencedWriteRejected)):
            await grant.put("/restored/x", "late")
        await eventually(lambda: session.lost.is_set() and grant.lost.is_set(), 10)
        with pytest.raises(EtcdRegressed, match="bump-revision"):
            await Session(endpoints=own.endpoint, **settings).open()
        await session.close()
