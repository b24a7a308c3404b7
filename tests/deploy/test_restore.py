"""``backup.sh`` and ``restore.sh`` on a real etcd: after the restore the tokens go on rising."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.session import core_of
from tests.cluster import cluster
from tests.gobuild import NEWEST, built

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

STAMP = "1700000000"
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
    made = (str(snapshot), str(restored), "restored", "http://127.0.0.1:2380", "restored=http://127.0.0.1:2380", STAMP)
    done = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert done.returncode == 0, done.stderr
    again = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert again.returncode == 1 and "move it away first" in again.stderr
    async with EmbeddedEtcd(binary=binary, data_dir=restored) as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with LockManager(session).acquire("x", timeout=20) as grant:
                assert grant.token > last.token + 10_000 * (int(STAMP) - 1)
                found = await core_of(session).transport.get(Get(b"/restored/x"))
                assert found.kvs[0].value == b"before"
                await grant.put("/restored/x", "again")


async def test_three_members_come_back_as_one_cluster(programs: Path, tmp_path: Path) -> None:
    """Each is made anew by a call of its own, seconds apart, and they must still know one another."""
    snapshot = tmp_path / "snapshot.db"
    async with cluster(str(programs / "server")) as three:
        async with Session(endpoints=three.endpoints, session_ttl=5) as session, DistributedLock("x", session) as grant:
            await grant.put("/restored/x", "before")
            endpoint = three.members[0].endpoint
            saved = await asyncio.to_thread(run, programs, "backup.sh", str(snapshot), endpoint=endpoint)
            assert saved.returncode == 0, saved.stderr
        known = ",".join(f"{member.name}={member.peer}" for member in three.members)
        for member in three.members:
            await member.kill()
        for member in three.members:
            shutil.rmtree(member.data)
            made = (str(snapshot), str(member.data), member.name, member.peer, known, STAMP)
            done = await asyncio.to_thread(run, programs, "restore.sh", *made)
            assert done.returncode == 0, done.stderr
            await asyncio.sleep(1.1)  # a stamp taken anew would differ
        for member in three.members:
            await member.start(three.members)
        await three.leader()
        async with Session(endpoints=three.endpoints, session_ttl=5) as session, DistributedLock("x", session) as again:
            assert again.token > grant.token + 10_000 * (int(STAMP) - 1)


def test_a_stamp_must_be_given(programs: Path, tmp_path: Path) -> None:
    done = run(programs, "restore.sh", "snapshot", str(tmp_path / "x"), "m", "http://127.0.0.1:2380", "m=…", "now")
    assert done.returncode == 2 and "same snapshot, cluster and stamp" in done.stderr
