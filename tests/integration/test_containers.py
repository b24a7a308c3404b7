"""Three etcd members in Docker, on a network of their own: one is cut off, one is killed, under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("testcontainers", reason="not run: containers (the extra `containers` is not installed)")

from codomyrmex.concurrency import EtcdSettings, Session
from codomyrmex.concurrency.health import cluster_status, renews_wrongly
from codomyrmex.concurrency.session import core_of
from tests import containers
from tests.chaos.agent import LIMIT
from tests.chaos.checker import crowds, overlaps, semaphore_violations, violations
from tests.chaos.members import members
from tests.chaos.recorder import Recorder
from tests.helpers import eventually

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(containers.missing() is not None, reason=f"not run: {containers.missing()}"),
]


@pytest.fixture
def three(request: pytest.FixtureRequest) -> Iterator[list[containers.ContainerMember]]:
    with containers.three(request.config.getoption("--etcd-binary")) as started:
        yield started


async def _leader(endpoints: str) -> str | None:
    settings = EtcdSettings(endpoints=endpoints, dial_timeout=1.0, request_timeout=1.0)
    try:
        status = await cluster_status(settings)
    except Exception:
        return None
    leaders = [member.endpoint for member in status.members if member.leader]
    return leaders[0] if len(leaders) == 1 else None


@pytest.mark.parametrize("fault", ["cut off", "killed"])
async def test_a_leader_in_a_container_is_lost_under_load(
    three: list[containers.ContainerMember], namespace: str, fault: str
) -> None:
    endpoints = ",".join(member.endpoint for member in three)
    leading = await eventually(lambda: _leader(endpoints), 30)
    victim = next(member for member in three if member.endpoint == leading)
    watcher = Session(endpoints=endpoints, namespace="watcher", session_ttl=60, request_timeout=2.0)
    async with watcher, members(endpoints, namespace) as fleet:
        recorder = Recorder(watcher, namespace)
        version = (await core_of(watcher).transport.member(leading)).version
        for _ in range(4):
            await fleet.start("lock", "semaphore")
        await eventually(lambda: len(fleet.said("lock")) > 20, 20)
        await asyncio.to_thread(victim.cut if fault == "cut off" else victim.kill)
        before = len(fleet.said("lock")), len(fleet.said("semaphore"))
        await eventually(lambda: len(fleet.said("lock")) > before[0] + 20, 30)
        await eventually(lambda: len(fleet.said("semaphore")) > before[1] + 20, 30)
        await asyncio.to_thread(victim.heal if fault == "cut off" else victim.start)
        await asyncio.sleep(1)
        await fleet.end()
        await eventually(lambda: not violations(recorder.lock), 20)
        await eventually(lambda: not semaphore_violations(recorder.semaphore), 20)
        assert not recorder.gaps
    if fault == "killed" or not renews_wrongly(version):
        assert overlaps(fleet.holds("lock")) == [] and crowds(fleet.holds("semaphore"), LIMIT) == []
