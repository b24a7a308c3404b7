"""A process that uses etcd forks workers, as gunicorn and Celery do: parent and children both go on.

``preforking.py`` is that process. It goes on for longer than its lease would last without the keepalive.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from tests.helpers import queue_of
from tests.integration.preforking import FORKED
from tests.integration.test_security import Certificates, TlsEtcd

_WORKS_AFTER_FORK = ("gateway", "native")
_CHILDREN = FORKED + 2

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux"),
]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("prefork")
    its = Certificates(folder)
    server = TlsEtcd(folder, its)
    yield {"endpoints": server.url, "ca_file": its.ca, "cert_file": its.cert, "key_file": its.key}
    server.stop()


class Parent:
    """The process that forks, and the lines that it and its children print."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def until(self, event: str) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        while line := await asyncio.wait_for(self.process.stdout.readline(), 25):
            self.lines.append(json.loads(line))
            if self.lines[-1].get("event") == event:
                return self.lines[-1]
        raise AssertionError(f"the parent has ended: {(await self.process.stderr.read()).decode()}")


@asynccontextmanager
async def preforking(kind: str, role: str, **settings: Any) -> AsyncIterator[Parent]:
    options = {f"CODOMYRMEX_ETCD_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.preforking", kind, role),
        env={**os.environ, **options},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        yield Parent(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def check(kind: str, transport: str, settings: dict[str, Any]) -> None:
    """Run the process, release the lock that it waits for, and judge what it and its children tell."""
    works = transport in _WORKS_AFTER_FORK
    async with (
        Session(**settings, transport=transport, session_ttl=10) as session,
        preforking(kind, "work" if works else "refused", transport=transport, **settings) as parent,
    ):
        signal = DistributedLock("signal", session)
        await signal.acquire()
        await parent.until("waiting")
        assert {info.name for info in await LockManager(session).locks()} == {"parent", "signal"}
        await queue_of(session, "signal", 2)
        await signal.release()
        told = await parent.until("signalled")
        assert (told["lost"], told["alive"]) == (False, True)
        children = {line.pop("child"): line for line in parent.lines if "child" in line}
        if works:
            assert children == {number: {"inherited": "UsedElsewhere", "own": ""} for number in range(_CHILDREN)}
            assert told["codes"] == [0] * _CHILDREN
        else:  # gRPC's leftovers crash a child now and then before it can tell
            assert children and all(child == {"own": "UsedElsewhere"} for child in children.values())
        if transport != "gateway":  # its connections come and go
            assert told["before"] and told["after"] == told["before"]
        assert await asyncio.wait_for(parent.process.wait(), 10) == 0
        assert not [line for line in parent.lines if line.get("event") == "failed"]
        assert parent.process.stderr
        said = (await parent.process.stderr.read()).decode()
        assert not works or said == ""


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_parent_and_children_go_on_after_a_fork(
    etcd: EmbeddedEtcd, namespace: str, transport: str, kind: str
) -> None:
    await check(kind, transport, {"endpoints": etcd.endpoint, "namespace": namespace})


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_parent_and_children_go_on_after_a_fork_with_tls(
    secured: dict[str, Any], namespace: str, transport: str, kind: str
) -> None:
    await check(kind, transport, {**secured, "namespace": namespace})


async def test_a_child_of_blocking_code_that_ends_by_sys_exit_ends_at_once(
    etcd: EmbeddedEtcd, namespace: str, transport: str
) -> None:
    settings = {"endpoints": etcd.endpoint, "namespace": namespace, "transport": transport}
    async with preforking("exit", "work", **settings) as parent:
        assert (await parent.until("ended"))["seconds"] < 2
