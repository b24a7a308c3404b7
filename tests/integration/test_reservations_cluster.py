"""Reservations across hosts, with three members: each tool call is a process of its own. Judged from etcd's history."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.documents.gateway import Gateway
from tests.chaos.documents.history import Event, Follower
from tests.chaos.documents.servers import die_with_parent
from tests.chaos.reservations.queues import replay
from tests.cluster import Cluster, cluster
from tests.helpers import eventually
from tests.network import Host, hosts, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
NAME = "file_edit:main.py"
FILE = "/codomyrmex/files/main.py"


@pytest.fixture
def machines() -> Iterator[list[Host]]:
    with hosts(5) as made:
        yield made


@pytest.fixture
async def three(machines: list[Host], request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with cluster(request.config.getoption("--etcd-binary"), machines[:3]) as started:
        yield started


@pytest.fixture
async def history(three: Cluster) -> AsyncIterator[Follower]:
    follower = Follower([member.endpoint for member in three.members])
    follower.start()
    yield follower
    await asyncio.to_thread(follower.end)


class Calls:
    """Tool calls on one of two hosts, each a process of its own."""

    def __init__(self, three: Cluster, namespace: str) -> None:
        self.three, self.namespace = three, namespace
        self.queue = f"/{namespace}/v1/lock/{NAME}"

    @asynccontextmanager
    async def started(self, host: Host, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, "ETCDCTL_API": "3"}
        process = await asyncio.create_subprocess_exec(
            *host.prefix, *command, stdin=pipe, stdout=pipe, env=environment, preexec_fn=die_with_parent
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def command(self, step: str, **given: Any) -> tuple[str, ...]:
        program = (sys.executable, "-m", "tests.integration.reserver")
        return *program, self.three.endpoints, self.namespace, step, json.dumps(given)

    async def __call__(self, host: Host, step: str, handle: str = "", **given: Any) -> dict[str, Any]:
        async with self.started(host, *self.command(step, **given)) as process:
            out, _ = await asyncio.wait_for(process.communicate(handle.encode()), 60)
            answer: dict[str, Any] = json.loads(out)
            return answer

    def lock(self, *command: str) -> tuple[str, ...]:
        """A command that runs while etcdctl holds the name."""
        program = str(Path(sys.executable).with_name("etcdctl"))
        return program, f"--endpoints={self.three.endpoints}", "lock", self.queue, *command


async def events(three: Cluster, history: Follower) -> list[Event]:
    """All events up to now. The member that is asked may have been started again just now."""
    gateway = Gateway(three.endpoints.split(",")[-1])
    await eventually(lambda: asyncio.to_thread(_answers, gateway), 20)
    return await asyncio.to_thread(history.caught_up, gateway)


def _answers(gateway: Gateway) -> bool:
    with suppress(OSError):
        return gateway.revision() > 0
    return False


@pytest.fixture
def calls(three: Cluster, namespace: str) -> Calls:
    return Calls(three, namespace)


async def test_four_tool_calls_on_two_hosts_hold_one_reservation(
    three: Cluster, machines: list[Host], history: Follower, calls: Calls, namespace: str
) -> None:
    here, there = machines[3:]
    made = await calls(here, "reserve", name=NAME, ttl=30, note="renaming the parser", owner="agent-7")
    async with calls.started(there, *calls.lock("echo", "etcdctl holds")) as waiting:
        await eventually(lambda: len([event for event in history.events if event.key.startswith(calls.queue)]) >= 3, 20)
        leader = await three.leader()
        await leader.kill()
        renewed = await calls(there, "renew", made["handle"], note="half done")
        assert renewed["token"] == made["token"] and 0 < renewed["lives"] <= 30
        assert await calls(here, "write", made["handle"], key=FILE, value="text") == {"token": made["token"]}
        assert waiting.returncode is None
        assert await calls(there, "release", made["handle"], note="done") == {"token": made["token"]}
        out, _ = await asyncio.wait_for(waiting.communicate(), 30)
        assert b"etcdctl holds" in out
        await leader.start(three.members)

    happened = await events(three, history)
    mine, others = replay(happened, namespace, lambda ask: ())
    assert mine.token == made["token"] and mine.granted == mine.token
    assert len(set(mine.leases)) == len(mine.leases) == 2 and others.leases[0] not in mine.leases
    written = [event.revision for event in happened if event.key == FILE]
    assert len(written) == 1 and mine.holds(written[0])
    assert mine.ended and others.granted == mine.ended and mine.token < others.token < written[0]
    noted = [event.revision for event in happened if event.key == mine.key and b"half done" in (event.value or b"")]
    assert noted and noted[-1] < written[0], "the note is put on the entry"
    left = [event for event in happened if event.key.startswith(f"/{namespace}/v1/left/")]
    assert not left or left[-1].value is None, "no note stays after a release"


async def test_after_all_was_killed_the_next_one_is_told_and_the_old_handle_is_refused(
    three: Cluster, machines: list[Host], history: Follower, calls: Calls, namespace: str
) -> None:
    here, there = machines[3:]
    async with calls.started(
        here, *calls.command("reserve", name=NAME, ttl=10, note="renaming the parser", owner="agent-7", stay=600)
    ) as reserving:
        assert reserving.stdout
        old = json.loads(await asyncio.wait_for(reserving.stdout.readline(), 30))
        renewed = await calls(there, "renew", old["handle"], note="half done")
        assert 0 < renewed["lives"] <= 10
        await events(three, history)
        reserving.kill()
        await asyncio.gather(*(member.kill() for member in three.members))
    await asyncio.gather(*(member.start(three.members) for member in three.members))
    await three.leader()
    new = await calls(there, "reserve", name=NAME, ttl=60, timeout=40, note="the next one", owner="agent-8")
    assert new["token"] > old["token"]
    assert "half done" in new["left"]
    for step, given in (("write", {"key": FILE, "value": "late"}), ("renew", {}), ("release", {})):
        refused = await calls(here, step, old["handle"], **given)
        assert refused.get("error") == "LockLost", (step, refused)
        assert "expired" in refused["text"] and "agent-8" in refused["text"], (step, refused)
    happened = await events(three, history)
    first, second = replay(happened, namespace, lambda ask: ())
    assert first.token == old["token"] and first.ended and second.granted == first.ended
    assert second.token == new["token"] and second.ended is None
    assert not [event for event in happened if event.key == FILE]
