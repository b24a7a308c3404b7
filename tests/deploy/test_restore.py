"""``backup.sh`` and ``restore.sh`` on a real etcd: after the restore the tokens go on rising."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.etcd.transport import Get
from tests.gobuild import NEWEST, built

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "etcd"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for program in ("server", "etcdctl", "etcdutl"):
        if not built(program, NEWEST["3.7"], folder / f"{program}.d"):
            pytest.skip(f"not run: backup and restore (etcd {NEWEST['3.7']} cannot be built without Go)")
        (folder / program).symlink_to(folder / f"{program}.d" / program)
    return folder


def run(programs: Path, script: str, *arguments: str, endpoint: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "ETCDCTL_ENDPOINTS": endpoint}
    command = (str(DEPLOY / script), *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


async def test_tokens_rise_over_a_restore(programs: Path, tmp_path: Path) -> None:
    snapshot, restored = tmp_path / "snapshot.db", tmp_path / "restored"
    binary = str(programs / "server")
    async with EmbeddedEtcd(binary=binary, data_dir=tmp_path / "data") as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with DistributedLock("x", session) as grant:
                await grant.put("/restored/x", "before")
                saved = await asyncio.to_thread(run, programs, "backup.sh", str(snapshot), endpoint=own.endpoint)
                assert saved.returncode == 0, saved.stderr
                await grant.put("/restored/x", "after")
            for _ in range(20):  # the future that is lost
                async with DistributedLock("x", session) as last:
                    pass
    made = (str(snapshot), str(restored), "restored", "http://127.0.0.1:2380", "restored=http://127.0.0.1:2380")
    done = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert done.returncode == 0, done.stderr
    again = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert again.returncode == 1 and "move it away first" in again.stderr
    async with EmbeddedEtcd(binary=binary, data_dir=restored) as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with LockManager(session).acquire("x", timeout=20) as grant:
                assert grant.token > last.token + 900_000_000
                found = await session.transport.get(Get(b"/restored/x"))
                assert found.kvs[0].value == b"before"
                await grant.put("/restored/x", "again")
