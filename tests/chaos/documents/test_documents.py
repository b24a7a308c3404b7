"""The generated workload under random faults, one member and three, judged by etcd's history and the documents."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.documents.evidence import Evidence
from tests.chaos.documents.faults import QUOTA, Faults
from tests.chaos.documents.fleet import ROLES, Fleet
from tests.chaos.documents.history import Follower
from tests.chaos.documents.journal import read
from tests.chaos.documents.judge import judge, report
from tests.chaos.documents.roles import STEADY
from tests.chaos.documents.servers import Servers, servers
from tests.chaos.documents.tls import Authority, client_context
from tests.chaos.documents.workload import NAMESPACE, TTL

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("members", [1, 3])
async def test_the_documents_are_true(members: int, request: pytest.FixtureRequest) -> None:
    """Half of the time against one member, half against three."""
    seconds = float(os.environ.get("CHAOS_SECONDS", "60")) / 2
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print(f"\ndocuments, members {members}: seed {seed}, {seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="chaos-") as text:
        folder = Path(text)
        tls = Authority(folder / "tls") if members == 1 else None
        arguments = [f"--quota-backend-bytes={QUOTA}", *(tls.arguments if tls else [])]
        context = client_context(tls.folder) if tls else None
        with servers(members, request.config.getoption("--etcd-binary"), arguments, context) as cluster:
            evidence = await _run(cluster, folder, tls, seconds, seed)
        print(_volume(evidence))
        if kept := os.environ.get("CHAOS_KEEP"):  # a file, for judging the run again
            Path(kept).write_bytes(pickle.dumps((evidence.events, evidence.facts, evidence.clock)))
        violations = judge(evidence)
        assert not violations, f"seed {seed}\n{report(violations, 40)}"


async def _run(cluster: Servers, folder: Path, tls: Authority | None, seconds: float, seed: int) -> Evidence:
    async with AsyncExitStack() as stack:
        follower = Follower([member.endpoint for member in cluster.members], cluster.tls)
        follower.start()
        stack.callback(follower.end)
        near, far = [await _proxies(stack, cluster) for _ in range(2)]
        ways = {"": near, "pool": far}
        endpoints = {role: ",".join(_endpoint(proxy, tls) for proxy in way) for role, way in ways.items()}
        endpoints["burst"] = cluster.endpoints
        fleet = Fleet(folder, endpoints, tls.folder if tls else None, seed)
        stack.callback(fleet.close)
        faults = Faults(cluster, follower, fleet, near, far, seed)
        faults.tls = tls.folder if tls else None
        for role in ROLES:
            fleet.start(role)
        until = time.monotonic() + seconds
        await asyncio.sleep(4)
        while time.monotonic() < until:
            await faults.one()
            fleet.died()
            await asyncio.sleep(faults.chance.uniform(0.5, 4))
        await _calm_down(cluster, faults, fleet)
        print("faults:", ", ".join(f"{name} {count}" for name, count in sorted(faults.done.items())))
        events = await asyncio.to_thread(follower.caught_up, cluster.gateway())
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        return Evidence(events, read(folder), clock)


async def _calm_down(cluster: Servers, faults: Faults, fleet: Fleet) -> None:
    """The faults are over: all end in order, one sweeps up what is left, and followers say what they believe."""
    await asyncio.to_thread(cluster.ready)
    await asyncio.to_thread(faults.free)
    await asyncio.sleep(3)
    await fleet.end("add", "burst", "hold", "pool")
    await asyncio.sleep(3 * TTL)
    await _worked_off(cluster)
    await asyncio.to_thread(_say_calm, cluster, fleet)
    await fleet.end("work", "serve")
    name = fleet.start("sweep")
    await fleet.ended({name: fleet.processes[name][1]})
    await asyncio.sleep(TTL)
    await fleet.end("follow")
    await asyncio.sleep(TTL + 3)
    fleet.journal.say("quiet")


async def _worked_off(cluster: Servers) -> None:
    """Wait while workers make progress: on a busy machine thousands of entries are due when the last is added."""
    revision = 0
    for _ in range(40):
        before, revision = revision, await asyncio.to_thread(lambda: cluster.gateway().revision())
        if revision - before < 20:
            return
        await asyncio.sleep(TTL)


def _say_calm(cluster: Servers, fleet: Fleet) -> None:
    """By now the worker that goes on all the while has done whatever was due."""
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - TTL))
    revision = cluster.gateway().revision()
    fleet.journal.say("calm", ns=NAMESPACE, queue=STEADY, revision=revision, clock=clock)


async def _proxies(stack: AsyncExitStack, cluster: Servers) -> list[TcpProxy]:
    addresses = [urlsplit(member.endpoint) for member in cluster.members]
    return [
        await stack.enter_async_context(TcpProxy(str(address.hostname), int(address.port or 0)))
        for address in addresses
    ]


def _endpoint(proxy: TcpProxy, tls: Authority | None) -> str:
    return proxy.endpoint.replace("http://", "https://") if tls else proxy.endpoint


def _volume(evidence: Evidence) -> str:
    facts = Counter(fact["fact"] for fact in evidence.facts)
    last = evidence.events[-1].revision if evidence.events else 0
    return (
        f"{last} revisions, {facts['added']} adds, {facts['run']} runs, {facts['failed']} dead letters of pools, "
        f"{facts['hold']} holds, {facts['task']} tasks, {facts['call']} calls, {facts['fault']} faults, "
        f"{facts['killed']} killed, {facts['stopped']} stopped"
    )
