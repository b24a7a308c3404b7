"""The stage of the demo: its agent processes, what is told of them, and what is expected of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

TTL = 3


class Agent:
    """An agent process and what it has said so far."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        assert self.process.stdout
        async for line in self.process.stdout:
            yield json.loads(line)

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    async def until(self, event: str) -> dict[str, Any]:
        async for said in self.lines():
            if said["event"] == event:
                return said
        raise RuntimeError(f"{self.name} ended without a word about {event!r}")


class Stage:
    """``failures`` holds what was expected and did not happen."""

    def __init__(self, console: Console, endpoint: str) -> None:
        self._console = console
        self._endpoint = endpoint
        self._agents: list[Agent] = []
        self._acts = 0
        self.failures: list[str] = []

    def act(self, text: str) -> None:
        self._acts += 1
        self.say(f"[bold]{self._acts}. {text}[/]")

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, picture: RenderableType) -> None:
        self._console.print(picture)

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.failures.append(otherwise)

    @asynccontextmanager
    async def started(
        self, role: str, count: int, *arguments: str | Path, kind: str = "agent"
    ) -> AsyncIterator[list[Agent]]:
        """``count`` agent processes of a role; see ``agent.py``."""
        agents = []
        for _ in range(count):
            name = f"{kind}-{len([one for one in self._agents if one.name.startswith(kind)]) + 1}"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "codomyrmex.concurrency.cli.demo.agent", name, role, *map(str, arguments)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={
                    **os.environ,
                    "CODOMYRMEX_ETCD_ENDPOINTS": self._endpoint,
                    "CODOMYRMEX_ETCD_SESSION_TTL": str(TTL),
                },
                start_new_session=True,  # Ctrl-C is for the demo to handle; it ends its agents itself
            )
            agents.append(Agent(name, process))
            self._agents.append(agents[-1])
        yield agents

    async def end(self) -> None:
        for agent in self._agents:
            if agent.process.returncode is None:
                agent.process.kill()
            await agent.process.communicate()
