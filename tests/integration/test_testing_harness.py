"""The harness on a real etcd: the recording tells what locks did, and a cluster outlasts its leader."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdUnavailable, LockManager, Session, Shared, sync
from codomyrmex.concurrency.testing import Cluster, Fleet, Recording, RecordingLost, check_locks
from codomyrmex.concurrency.testing.gateway import call, coded


async def write(session: Session, name: str, key: str) -> int:
    async with DistributedLock(name, session) as grant:
        await asyncio.sleep(0.01)
        await grant.put(key, str(grant.token))
        return grant.token


async def test_the_recording_tells_joins_holds_writes_and_leaves(
    session: Session, other: Session, namespace: str, etcd_recording: Recording
) -> None:
    key = f"/{namespace}/files/a"
    await asyncio.gather(*(write(one, "file_edit:é", key) for one in (session, other, session, other)))
    changes = etcd_recording.changes({key: "file_edit:é"})
    verdict = check_locks(changes)
    assert verdict.ok and (verdict.entries, verdict.writes) == (4, 4), str(verdict)
    assert [change.kind for change in changes].count("left") == 4
    assert {change.lock for change in changes} == {"file_edit:é"}


async def test_readers_are_told_from_writers(session: Session, other: Session, etcd_recording: Recording) -> None:
    manager = LockManager(session)
    async with manager.acquire_all([Shared("x")]), LockManager(other).acquire_all([Shared("x")]):
        pass
    assert [change.shared for change in etcd_recording.changes()] == [True] * 4


async def test_a_write_that_went_past_the_lock_is_found(
    session: Session, etcd: EmbeddedEtcd, namespace: str, etcd_recording: Recording
) -> None:
    key = f"/{namespace}/files/a"
    token = await write(session, "x", key)
    call(etcd.endpoint, "kv/put", {"key": coded(key.encode()), "value": coded(b"%d" % token)})
    (violation,) = check_locks(etcd_recording.changes({key: "x"})).violations
    assert violation.rule == "fenced writes" and f"token {token} wrote while none held" in violation.text


async def test_a_recording_knows_the_holders_from_before_it_began(
    session: Session, etcd: EmbeddedEtcd, namespace: str
) -> None:
    async with DistributedLock("x", session) as grant:
        recording = Recording(etcd.endpoint, namespace)
        await grant.put(f"/{namespace}/y", str(grant.token))
    assert check_locks(recording.changes({f"/{namespace}/y": "x"})).ok


def test_a_recording_of_nothing_is_empty(etcd_recording: Recording) -> None:
    assert check_locks(etcd_recording.changes()).entries == 0


def test_a_past_that_is_compacted_is_not_judged() -> None:
    server = EmbeddedEtcd()
    server.start_sync()
    try:
        recording = Recording(server.endpoint, "x")
        for _ in range(3):
            answer = call(server.endpoint, "kv/put", {"key": coded(b"x"), "value": ""})
        call(server.endpoint, "kv/compaction", {"revision": answer["header"]["revision"], "physical": True})
        with pytest.raises(RecordingLost, match="has compacted its past up to revision 4"):
            recording.changes()
    finally:
        server.stop_sync()


@pytest.mark.cluster
async def test_a_cluster_elects_another_leader() -> None:
    with Cluster(members=3) as cluster:
        async with Session(endpoints=cluster.endpoints, session_ttl=10) as session:
            first = cluster.leader()
            first.kill()
            assert cluster.leader() is not first
            async with DistributedLock("x", session):
                cluster.start(first)
            third = cluster.leader()
            third.stop()
            assert await asyncio.to_thread(cluster.leader) is not third
            third.resume()
            async with DistributedLock("x", session):
                pass


def test_a_cluster_of_one_keeps_its_data_and_leaves_nothing_behind() -> None:
    with Cluster(members=1) as cluster:
        (member,) = cluster.members
        assert cluster.leader() is member
        call(member.endpoint, "kv/put", {"key": coded(b"x"), "value": coded(b"1")})
        member.kill()
        with pytest.raises(EtcdUnavailable, match="no leader after 0"):
            cluster.leader(limit=0)
        cluster.start()
        assert call(member.endpoint, "kv/range", {"key": coded(b"x")})["kvs"]
        folder = Path(cluster._folder.name)
    assert not folder.exists() and member.process and member.process.returncode is not None


def test_a_cluster_that_does_not_start_says_why() -> None:
    with pytest.raises(EtcdUnavailable, match=r"m0 at .* does not serve"), Cluster(1, binary="/bin/false"):
        pass


def test_a_member_that_was_not_started_is_not_stopped() -> None:
    cluster = Cluster(1)
    with pytest.raises(ValueError, match=r"m0 was not started; call Cluster\.start"):
        cluster.members[0].kill()
    cluster.close()


def write_again_and_again(key: str) -> None:
    while True:
        with sync.DistributedLock("x") as grant:
            grant.put(key, str(grant.token))
            print("written", flush=True)


@pytest.mark.long
def test_a_fleet_whose_members_are_killed_and_stopped_keeps_the_rules(
    fleet: Fleet, namespace: str, etcd_recording: Recording
) -> None:
    key = f"/{namespace}/y"
    first, second, third = [fleet.start(write_again_and_again, key, ready="written") for _ in range(3)]
    first.kill()
    second.stop()  # for longer than its lease lasts
    for _ in range(2):
        third.wait_for("written")
    second.resume()
    third.wait_for("written")
    third.kill()
    verdict = check_locks(etcd_recording.changes({key: "x"}))
    assert verdict.ok and verdict.writes >= 5, verdict
