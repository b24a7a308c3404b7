"""The acts about locks: agents take turns at files; one is killed while it holds a lock, and one freezes for long."""

from __future__ import annotations

import asyncio
import signal
import time
from itertools import pairwise
from pathlib import Path

from rich.table import Table

from codomyrmex.concurrency import DistributedLock, LockManager, Session
from codomyrmex.concurrency.cli.demo.stage import TTL, Agent, Stage
from codomyrmex.concurrency.cli.views import text

_COLOURS = ("cyan", "magenta", "yellow", "blue", "green", "bright_cyan", "bright_magenta", "bright_yellow")
_TOLD = 16


class Locks:
    """The three acts about locks."""

    def __init__(self, stage: Stage, agents: int, edits: int, folder: Path) -> None:
        self._stage = stage
        self._count = agents
        self._edits = edits
        self._files = [folder / name for name in ("main.py", "README.md", "config.yaml")]
        self._edited: dict[str, list[int]] = {}
        self._waited: list[float] = []

    async def play(self, session: Session) -> None:
        """Play the acts, one after another."""
        for file in self._files:
            file.write_text("")
        await self._take_turns(session)
        await self._kill_a_holder(session, self._files[0])
        await self._stop_a_holder(session, self._files[1])

    async def _take_turns(self, session: Session) -> None:
        files = len(self._files)
        self._stage.act(f"{self._count} agents, each a process, edit {files} files. One lock per file, in order.")
        self._stage.say(
            "  Whoever queues up for a lock is given a token at that moment: a number that is higher than all before.\n"
            "  It goes along with each write, so that etcd can refuse the writes of an agent that no longer holds.\n"
        )
        started = time.monotonic()
        watching = asyncio.create_task(self._narrate(session))
        async with self._stage.started("worker", self._count, str(self._edits), *self._files) as agents:
            await asyncio.gather(*(self._listen(agent) for agent in agents))
        await asyncio.sleep(0.2)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        total, longest = sum(map(len, self._edited.values())), max(self._waited, default=0.0)
        self._stage.say(
            f"  … {total} edits in {time.monotonic() - started:.1f} s; the longest wait was {longest:.2f} s."
        )
        self._check()

    async def _narrate(self, session: Session, most: int = _TOLD) -> None:
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
                self._stage.say(f"  [{colour}]{agent:8}[/] {text:13} {event.name:22} token {event.owner.token}")
            elif shown == most + 1:
                self._stage.say("  … and so on")

    async def _kill_a_holder(self, session: Session, file: Path) -> None:
        self._stage.act(f"An agent is killed (kill -9) while it holds the lock. Its lease of {TTL} s frees it.")
        async with self._stage.started("stuck", 1, file) as (agent,):
            held = await agent.until("holding")
            self._stage.say(f"  {agent.name} holds {file.name} with token {held['token']}")
            agent.process.kill()
            killed = time.monotonic()
            self._stage.say(f"  {agent.name} is killed; the next agent waits")
            async with DistributedLock(f"file_edit:{file.name}", session) as grant:
                after = time.monotonic() - killed
                self._stage.say(f"  granted to the next after {after:.1f} s, with the higher token {grant.token}\n")
                self._stage.expect(grant.token > held["token"], "the token did not rise after a kill")
                self._stage.expect(after <= TTL + 1.0, f"a killed holder blocked the lock for {after:.1f} s")

    async def _stop_a_holder(self, session: Session, file: Path) -> None:
        self._stage.act("An agent freezes (SIGSTOP) past its lease and wakes up believing it still holds the lock.")
        async with self._stage.started("stuck", 1, file) as (agent,):
            held = await agent.until("holding")
            self._stage.say(f"  {agent.name} holds {file.name} with token {held['token']} and freezes")
            agent.process.send_signal(signal.SIGSTOP)
            async with DistributedLock(f"file_edit:{file.name}", session) as grant:
                self._stage.say(f"  the next agent is granted token {grant.token} and writes")
                await grant.put(f"/codomyrmex/demo/{file.name}", str(grant.token))
                agent.process.send_signal(signal.SIGCONT)
                lost = await agent.until("lost")
                self._stage.say(f"  {agent.name} wakes; its block is cancelled at once: {text.visible(lost['reason'])}")
                refused = await agent.until("refused")
                self._stage.say(
                    f"  its late write with token {refused['token']} is refused by etcd: nothing is overwritten"
                )
                await agent.end()
                kept = await grant.get(f"/codomyrmex/demo/{file.name}")
                self._stage.say("")
                self._stage.expect(kept == str(grant.token).encode(), "a late write got through")

    def _check(self) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("FILE", "EDITS", "LINES", "TOKENS RISE"):
            table.add_column(column)
        for file in self._files:
            tokens = [int(line.split()[0]) for line in file.read_text().splitlines()]
            reported = self._edited.get(file.name, [])
            rising = all(one < two for one, two in pairwise(tokens))
            self._stage.expect(sorted(reported) == tokens, f"{file.name}: an edit was lost")
            self._stage.expect(rising, f"{file.name}: tokens did not rise")
            table.add_row(file.name, str(len(reported)), str(len(tokens)), "yes" if rising else "NO")
        self._stage.show(table)
        self._stage.say("")

    async def _listen(self, agent: Agent) -> None:
        async for said in agent.lines():
            if said["event"] == "edited":
                self._edited.setdefault(said["file"], []).append(said["token"])
                self._waited.append(said["waited"])
        self._stage.expect(await agent.process.wait() == 0, f"{agent.name} failed")
