"""A generated workload of reservations, judged from etcd's history: processes killed and stopped, answers lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.documents.gateway import Gateway
from tests.chaos.documents.history import Followers
from tests.chaos.documents.journal import Journal, read
from tests.chaos.documents.judge import report
from tests.chaos.documents.servers import Server, Servers, servers
from tests.chaos.reservations.agent import NAMESPACE, SESSION_TTL, TTLS
from tests.chaos.reservations.drive import begin
from tests.chaos.reservations.judge import judge
from tests.chaos.reservations.run import Run

AGENTS = 4
LATE = 4.0  # seconds after its time to live in which etcd ends a lease while its leader stands
ELECTION = 20.0  # the same where leaders are killed: etcd gives every lease its whole time again
ANSWERS = (b"/v1/lock/", b"/v1/path/", b"/v1/left/", b"/files/")  # in the requests whose answers are lost
SECONDS = int(os.environ.get("CHAOS_SECONDS", "60"))
COUNTS = (1, 3) if SECONDS >= 60 else (3,)  # a short run leaves the one member to `make long`


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize(
    ("members", "seconds"),
    [
        pytest.param(1, 25, marks=pytest.mark.long),
        *(pytest.param(count, SECONDS, marks=pytest.mark.chaos) for count in COUNTS),
    ],
)
async def test_reservations_are_as_documented(
    members: int, seconds: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print(f"\nreservations, members {members}: seed {seed}, {seconds} s")
    with servers(members, request.config.getoption("--etcd-binary")) as cluster:
        run = await _run(cluster, tmp_path, seconds, seed)
    print(_volume(run))
    if kept := os.environ.get("CHAOS_KEEP"):  # a file, for judging the run again
        Path(kept).write_bytes(pickle.dumps(run))
    assert any(call.what == "reserve" and call.done for call in run.calls), "nothing was reserved"
    ended = [fact for fact in run.facts if fact["fact"] == "exit" and fact["code"] and not fact["killed"]]
    assert not ended, ended[0]["stderr"]
    violations = judge(run)
    assert not violations, f"seed {seed}\n{report(violations, 40)}"


async def _run(cluster: Servers, folder: Path, seconds: int, seed: int) -> Run:
    (folder / "handles").mkdir()
    followers = Followers([member.endpoint for member in cluster.members])
    followers.start()
    try:
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(_proxy(member)) for member in cluster.members]
            fleet = stack.enter_context(_agents(proxies, folder, seed))
            until = time.monotonic() + seconds
            if len(cluster.members) > 1:
                leaders = asyncio.create_task(_kill_leaders(cluster, until))
            while time.monotonic() < until:
                await asyncio.sleep(fleet.chance.uniform(0.5, 3))
                await fleet.fault()
            if len(cluster.members) > 1:
                await leaders
            await asyncio.to_thread(fleet.end)
        late = ELECTION if len(cluster.members) > 1 else LATE
        await asyncio.sleep(max(*TTLS, SESSION_TTL) + late)
        gateway = cluster.gateway()
        leases = await asyncio.to_thread(_leases, gateway)
        events = await asyncio.to_thread(followers.caught_up, gateway)
        return Run(NAMESPACE, events, read(folder), leases, late, lost=fleet.lost)
    finally:
        followers.end()


async def _kill_leaders(cluster: Servers, until: float) -> None:
    while time.monotonic() < until - 20:
        await asyncio.sleep(15)
        if leader := await asyncio.to_thread(cluster.leader):
            await asyncio.to_thread(leader.kill)
            await asyncio.sleep(3)
            cluster.start(leader)
            await asyncio.to_thread(cluster.ready)


def _leases(gateway: Gateway) -> dict[int, int]:
    """The leases that etcd has, and for how many seconds each was granted."""
    ids = [int(one["ID"]) for one in gateway.call("lease/leases").get("leases", ())]
    granted = {lease: int(gateway.call("lease/timetolive", ID=str(lease)).get("grantedTTL", 0)) for lease in ids}
    return {lease: seconds for lease, seconds in granted.items() if seconds}  # without: it ended meanwhile


class _Fleet:
    """The agents that run: started, killed, stopped past every time to live."""

    def __init__(self, proxies: list[TcpProxy], folder: Path, seed: int) -> None:
        self.proxies, self.folder, self.chance = proxies, folder, random.Random(seed)
        self.journal = Journal(folder, "driver")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: dict[str, float] = {}
        self.made = self.lost = 0

    def start(self) -> None:
        self.made += 1
        name = f"agent{self.made}"
        command = [sys.executable, "-m", "tests.chaos.reservations.agent", f"--name={name}"]
        command += [
            "--endpoints=" + ",".join(proxy.endpoint for proxy in self.proxies),
            f"--folder={self.folder}",
            f"--seed={self.chance.randrange(1 << 30)}",
        ]
        with open(self.folder / f"{name}.stderr", "wb") as told:
            self.running[name] = subprocess.Popen(command, stderr=told, preexec_fn=begin)

    async def fault(self) -> None:
        """Lose an answer, kill one, stop one, or let one go on that was stopped past its time to live."""
        for name, since in list(self.stopped.items()):
            if time.monotonic() > since:
                del self.stopped[name]
                self.running[name].send_signal(signal.SIGCONT)
        for proxy in self.proxies:
            proxy.drop_next_answer(self.chance.choice(ANSWERS))
            self.lost += 1
        name = self.chance.choice(sorted(self.running))
        if name in self.stopped or self.running[name].poll() is not None:
            return
        if self.chance.random() < 0.5:
            process = self.running.pop(name)
            process.kill()
            await asyncio.to_thread(process.wait)
            self._exit(name, process, killed=True)
            self.start()
        elif len(self.stopped) < AGENTS - 2:
            self.running[name].send_signal(signal.SIGSTOP)
            self.stopped[name] = time.monotonic() + self.chance.choice((2, SESSION_TTL + 2, max(TTLS) + 2))

    def end(self) -> None:
        """All end in order; what they have reserved goes on."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for name, process in self.running.items():
            killed = False
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            self._exit(name, process, killed)
        self.running.clear()

    def _exit(self, name: str, process: subprocess.Popen[bytes], killed: bool) -> None:
        told = (self.folder / f"{name}.stderr").read_text(errors="replace")[-4000:]
        self.journal.say("exit", of=name, code=process.wait(), killed=killed, stderr=told)


def _proxy(member: Server) -> TcpProxy:
    address = urlsplit(member.endpoint)
    return TcpProxy(str(address.hostname), int(address.port or 0))


@contextlib.contextmanager
def _agents(proxies: list[TcpProxy], folder: Path, seed: int) -> Iterator[_Fleet]:
    fleet = _Fleet(proxies, folder, seed)
    try:
        for _ in range(AGENTS):
            fleet.start()
        yield fleet
    finally:
        for process in fleet.running.values():
            process.kill()
            process.wait()
        fleet.journal.close()


def _volume(run: Run) -> str:
    done = Counter(call.what for call in run.calls if call.done)
    refused = Counter(call.error for call in run.calls if call.error)
    endings = Counter(run.ending(entry) for entry in run.entries)
    told = sum(bool(call.about.get("left")) for call in run.calls)
    return f"done {dict(done)}; refused {dict(refused)}; entries {dict(endings)}; {told} were told what was left"
