"""Short deterministic scenarios, one or more for each kind of fault; each is a process of its own that is judged.

``python -m tests.chaos.documents.scenarios NAME`` runs one and prints its violations.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from tests.chaos.documents import (
    scenes_dead,
    scenes_garbage,
    scenes_holds,
    scenes_pool,
    scenes_spill,
    scenes_watches,
)
from tests.chaos.documents.evidence import Evidence, Violation
from tests.chaos.documents.history import Follower
from tests.chaos.documents.journal import Journal, of, read
from tests.chaos.documents.judge import judge, report
from tests.chaos.documents.rig import MARK, Rig
from tests.chaos.documents.servers import die_with_parent, servers
from tests.chaos.documents.tls import Authority, client_context

LIMIT = 35.0  # seconds until a scenario that does not end is one that hangs
SCENES = {
    **scenes_watches.SCENES,
    **scenes_dead.SCENES,
    **scenes_spill.SCENES,
    **scenes_holds.SCENES,
    **scenes_garbage.SCENES,
    **scenes_pool.SCENES,
}
TLS = ("02-tls-replaced",)
QUOTA = {"05-full-while-due": 16 << 20}


async def play(given: argparse.Namespace) -> None:
    """In the scenario's own process: play it."""
    async with AsyncExitStack() as stack:
        rig = Rig(given, stack)
        async with rig.does:
            await SCENES[given.name](rig)
    rig.does.say("over")


def run(name: str, program: str | None = None, facts: bool = False) -> list[Violation]:
    """Start an etcd, play the scenario in a process beside it, and judge what both left."""
    arguments = [f"--quota-backend-bytes={QUOTA[name]}"] if name in QUOTA else []
    with tempfile.TemporaryDirectory(prefix="chaos-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        tls = Authority(folder / "tls") if name in TLS else None
        if tls:
            arguments += tls.arguments
        cluster = stack.enter_context(servers(1, program, arguments, client_context(tls.folder) if tls else None))
        follower = Follower([cluster.members[0].endpoint], cluster.tls)
        follower.start()
        stack.callback(follower.end)
        command = [sys.executable, "-m", "tests.chaos.documents.scenarios", name, "--play", "--folder", text]
        command += ["--endpoint", cluster.members[0].endpoint, "--pid", str(cluster.members[0].pid)]
        command += ["--tls", str(folder / "tls")] if tls else []
        _await(name, command, folder)
        cluster.members[0].send(signal.SIGCONT)
        events = follower.caught_up(cluster.gateway())
        if facts:
            print(*read(folder), sep="\n")
        return judge(_at_mark(Evidence(events, read(folder))))


def _await(name: str, command: list[str], folder: Path) -> None:
    """Run the scenario's process to its end, or kill it, with all that it started, where it does not end."""
    journal = Journal(folder, "parent")
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONFAULTHANDLER": "1"}
    with open(folder / "stderr", "wb") as errors:
        process = subprocess.Popen(
            command, env=environment, stderr=errors, start_new_session=True, preexec_fn=die_with_parent
        )
    try:
        code: int | None = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        journal.say("hung", of=name, limit=LIMIT)
        code = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if code is None:
        journal.say("killed", of=name)
    journal.say("exit", of=name, code=code, stderr=(folder / "stderr").read_text(errors="replace"))
    journal.close()


def _at_mark(evidence: Evidence) -> Evidence:
    """The run as it was at its mark, if it came so far; what is said of calls and ends is kept."""
    marks, stones = of(evidence.facts, "mark"), [event for event in evidence.events if event.key == MARK]
    if not marks or not stones:
        return evidence
    events = [event for event in evidence.events if event.revision <= stones[-1].revision]
    until = float(marks[-1]["at"])
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - (time.monotonic() - until)))
    facts = []
    for fact in evidence.facts:
        if float(fact["at"]) <= until or fact["fact"] not in ("run", "ran", "hold", "held", "killed", "exit"):
            facts.append(fact)
        elif fact["fact"] == "exit":
            facts.append({**fact, "fact": "end"})
    return Evidence(events, facts, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SCENES))
    parser.add_argument("--play", action="store_true")
    for option in ("endpoint", "folder", "tls", "binary"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--facts", action="store_true", help="print all facts too")
    given = parser.parse_args()
    if given.play:
        asyncio.run(play(given))
    else:
        print(report(run(given.name, given.binary, given.facts)) or "no violation")


if __name__ == "__main__":
    main()
