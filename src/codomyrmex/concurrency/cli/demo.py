"""``demo``: a fleet of real agent processes on a real etcd, told as a story of three acts, and checked at the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.cli import views
from codomyrmex.concurrency.cli.options import EXIT_FAILED, common_options, run

_TTL = 3
_LIMIT = 60.0
_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "bright_cyan", "bright_magenta", "bright_yellow")


@click.command()
@click.option("--agents", type=click.IntRange(2, 16), default=4, show_default=True, help="How many processes edit.")
@click.option("--edits", type=click.IntRange(1, 500), default=12, show_default=True, help="Edits by each of them.")
@common_options
@click.pass_context
def demo(context: click.Context, agents: int, edits: int) -> None:
    """A fleet of agent processes takes turns at files, on an etcd started for the occasion. About 20 seconds.

    \b
    Example:  codomyrmex concurrency demo --agents 8
    """
    run(_Demo(views.console(context), agents, edits).play())


class _Agent:
    """An agent process and what it has said so far."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        assert self.process.stdout
        async for line in self.process.stdout:
            yield json.loads(line)

    async def until(self, event: str) -> dict[str, Any]:
        async for said in self.lines():
            if said["event"] == event:
                return said
        raise RuntimeError(f"{self.name} ended without a word about {event!r}")


class _Demo:
    def __init__(self, console: Console, agents: int, edits: int) -> None:
        self._console = console
        self._count = agents
        self._edits = edits
        self._agents: list[_Agent] = []
        self._edited: dict[str, list[int]] = {}
        self._waited: list[float] = []
        self._failures: list[str] = []
        self._environment: dict[str, str] = {}

    async def play(self) -> int:
        async with asyncio.timeout(_LIMIT), EmbeddedEtcd() as etcd:
            self._environment = {
                **os.environ,
                "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
                "CODOMYRMEX_ETCD_SESSION_TTL": str(_TTL),
            }
            self._say(f"A real etcd {etcd.version} serves at {etcd.endpoint}. To watch from a second terminal:")
            self._say(f"  codomyrmex concurrency locks --watch --endpoints {etcd.endpoint}\n")
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / name for name in ("main.py", "README.md", "config.yaml")]
                for file in files:
                    file.write_text("")
                try:
                    async with Session(endpoints=etcd.endpoint, session_ttl=_TTL) as session:
                        await self._take_turns(session, files)
                        await self._kill_a_holder(session, files[0])
                        await self._stop_a_holder(session, files[1])
                finally:
                    await self._end_agents()
                self._check(files)
        return EXIT_FAILED if self._failures else 0

    async def _take_turns(self, session: Session, files: list[Path]) -> None:
        self._act(1, f"{self._count} agents, each a process, edit {len(files)} files. One lock per file, in order.")
        started = time.monotonic()
        watching = asyncio.create_task(self._narrate(session))
        async with self._started("worker", self._count, files) as agents:
            await asyncio.gather(*(self._listen(agent) for agent in agents))
        await asyncio.sleep(0.2)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        total = sum(map(len, self._edited.values()))
        self._say(f"  … {total} edits in {time.monotonic() - started:.1f} s; the longest wait was {self._longest()}.\n")

    async def _narrate(self, session: Session, most: int = 24) -> None:
        """Show the first steps of the fleet as an operator would see them."""
        colours: dict[str, str] = {}
        shown = 0
        async for event in LockManager(session).watch("file_edit:"):
            agent = str(event.owner.metadata.get("agent", "?"))
            colour = colours.setdefault(agent, _COLOURS[len(colours) % len(_COLOURS)])
            text = {
                "enqueued": "queues up for",
                "granted": "holds",
                "released": "releases",
                "expired": "died holding",
            }[event.kind]
            shown += 1
            if shown <= most:
                self._say(f"  [{colour}]{agent:8}[/] {text:13} {event.name:22} token {event.owner.token}")
            elif shown == most + 1:
                self._say("  … and so on")

    async def _kill_a_holder(self, session: Session, file: Path) -> None:
        self._act(2, f"An agent is killed (kill -9) while it holds the lock. Its lease of {_TTL} s frees it.")
        async with self._started("stuck", 1, [file]) as (agent,):
            held = await agent.until("holding")
            self._say(f"  {agent.name} holds {file.name} with token {held['token']}")
            agent.process.kill()
            killed = time.monotonic()
            self._say(f"  {agent.name} is killed; the next agent waits")
            async with DistributedLock(f"file_edit:{file.name}", session) as grant:
                after = time.monotonic() - killed
                self._say(f"  granted to the next after {after:.1f} s, with the higher token {grant.token}\n")
                self._expect(grant.token > held["token"], "the token did not rise after a kill")
                self._expect(after <= _TTL + 1.0, f"a killed holder blocked the lock for {after:.1f} s")

    async def _stop_a_holder(self, session: Session, file: Path) -> None:
        self._act(3, "An agent freezes (SIGSTOP) past its lease and wakes up believing it still holds the lock.")
        async with self._started("stuck", 1, [file]) as (agent,):
            held = await agent.until("holding")
            self._say(f"  {agent.name} holds {file.name} with token {held['token']} and freezes")
            agent.process.send_signal(signal.SIGSTOP)
            async with DistributedLock(f"file_edit:{file.name}", session) as grant:
                self._say(f"  the next agent is granted token {grant.token} and writes")
                await grant.put(f"/codomyrmex/demo/{file.name}", str(grant.token))
                agent.process.send_signal(signal.SIGCONT)
                lost = await agent.until("lost")
                self._say(f"  {agent.name} wakes; its block is cancelled at once: {views.visible(lost['reason'])}")
                refused = await agent.until("refused")
                self._say(
                    f"  its late write with token {refused['token']} is refused by etcd: nothing is overwritten\n"
                )
                kept = await grant.get(f"/codomyrmex/demo/{file.name}")
                self._expect(kept == str(grant.token).encode(), "a late write got through")

    def _check(self, files: list[Path]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("FILE", "EDITS", "LINES", "TOKENS RISE"):
            table.add_column(column)
        for file in files:
            tokens = [int(line.split()[0]) for line in file.read_text().splitlines()]
            reported = self._edited.get(file.name, [])
            rising = all(one < two for one, two in pairwise(tokens))
            self._expect(sorted(reported) == tokens, f"{file.name}: an edit was lost")
            self._expect(rising, f"{file.name}: tokens did not rise")
            table.add_row(file.name, str(len(reported)), str(len(tokens)), "yes" if rising else "NO")
        self._console.print(table)
        for failure in self._failures:
            self._say(f"[bold red]failed:[/] {failure}")
        if not self._failures:
            self._say("\n[bold green]No edit was lost, none overlapped, and nobody waited for the dead.[/]")
        self._say("\nYour own: in one terminal  codomyrmex concurrency dev")
        self._say("          in another       codomyrmex concurrency locks --watch")

    @asynccontextmanager
    async def _started(self, role: str, count: int, files: list[Path]) -> AsyncIterator[list[_Agent]]:
        agents = []
        for _ in range(count):
            name = f"agent-{len(self._agents) + 1}"
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "codomyrmex.concurrency.cli.demo_agent",
                *(name, role, str(self._edits), *map(str, files)),
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the demo to handle; it ends its agents itself
            )
            agents.append(_Agent(name, process))
            self._agents.append(agents[-1])
        yield agents

    async def _listen(self, agent: _Agent) -> None:
        async for said in agent.lines():
            if said["event"] == "edited":
                self._edited.setdefault(said["file"], []).append(said["token"])
                self._waited.append(said["waited"])
        self._expect(await agent.process.wait() == 0, f"{agent.name} failed")

    async def _end_agents(self) -> None:
        for agent in self._agents:
            if agent.process.returncode is None:
                agent.process.kill()
            await agent.process.wait()

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self._failures.append(otherwise)

    def _longest(self) -> str:
        return f"{max(self._waited, default=0.0):.2f} s"

    def _act(self, number: int, text: str) -> None:
        self._say(f"[bold]{number}. {text}[/]")

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
