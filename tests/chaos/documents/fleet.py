"""The processes of a random run: started, killed, stopped, and told to end in order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.documents.journal import Journal
from tests.chaos.documents.servers import die_with_parent

ROLES = ("add", "work", "work", "pool", "hold", "hold", "follow", "serve")
ENDS_WITHIN = 45.0  # seconds in which a process must end once it is told to


def _begin() -> None:
    """Between fork and exec: SIGTERM waits until the process can end in order, however long its imports take."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


class Fleet:
    """Processes by name, each with its role; one that was killed is followed by another of its role."""

    def __init__(self, folder: Path, endpoints: dict[str, str], tls: Path | None, seed: int) -> None:
        """``endpoints``: what the processes of a role connect to, and all others under the name of ``""``."""
        self.folder, self.endpoints, self.tls, self.seed = folder, endpoints, tls, seed
        self.journal = Journal(folder, "driver")
        self.processes: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
        self.halted: set[str] = set()
        self._numbers = itertools.count(1)

    def start(self, role: str) -> str:
        """Start a process; its name tells its role."""
        number = next(self._numbers)
        name = f"{role}-{number}"
        command = [sys.executable, "-m", "tests.chaos.documents.workload", role, "--name", name]
        command += ["--endpoints", self.endpoints.get(role, self.endpoints[""]), "--folder", str(self.folder)]
        command += ["--seed", str(self.seed + number), *(["--tls", str(self.tls)] if self.tls else [])]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        with open(self.folder / f"{name}.stderr", "wb") as errors:
            process = subprocess.Popen(command, env=environment, stderr=errors, preexec_fn=_begin)
        self.processes[name] = role, process
        return name

    def any(self, chance: random.Random, *roles: str) -> str | None:
        """One that runs and is not stopped, of these roles if any are named."""
        running = sorted(set(self.processes) - self.halted)
        names = [name for name in running if not roles or self.processes[name][0] in roles]
        return chance.choice(names) if names else None

    async def kill(self, name: str) -> None:
        """End one by SIGKILL, and start another in its place."""
        role, process = self.processes.pop(name)
        self.journal.say("killed", of=name)
        process.kill()
        await asyncio.to_thread(process.wait)
        self._ended(name, process)
        if role in ROLES:
            self.start(role)

    def stop(self, name: str) -> None:
        self.halted.add(name)
        self.journal.say("stopped", of=name)
        self.processes[name][1].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self.processes[name][1].send_signal(signal.SIGCONT)
        self.journal.say("continued", of=name)
        self.halted.discard(name)

    async def end(self, *roles: str) -> None:
        """Tell all of these roles to end; one that does not is a violation, and is killed."""
        ending = {name: process for name, (role, process) in self.processes.items() if role in roles}
        for process in ending.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await self.ended(ending)

    async def ended(self, ending: dict[str, subprocess.Popen[bytes]]) -> None:
        """Wait until these have ended."""
        deadline = time.monotonic() + ENDS_WITHIN
        for name, process in ending.items():
            try:
                await asyncio.to_thread(process.wait, max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.journal.say("hung", of=name, limit=ENDS_WITHIN)
                self.journal.say("killed", of=name)
                process.kill()
                await asyncio.to_thread(process.wait)
            self.processes.pop(name)
            self._ended(name, process)

    def died(self) -> None:
        """Write down those that ended by themselves, and fill their places."""
        for name, (role, process) in list(self.processes.items()):
            if process.poll() is not None:
                self.processes.pop(name)
                self._ended(name, process)
                if role in ROLES:
                    self.start(role)

    def _ended(self, name: str, process: subprocess.Popen[bytes]) -> None:
        text = (self.folder / f"{name}.stderr").read_text(errors="replace")
        self.journal.say("exit", of=name, code=process.returncode, stderr=text[-4000:])

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for _, process in self.processes.values():
            process.kill()
            process.wait()
        self.journal.close()
