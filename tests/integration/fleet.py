"""Starts agents (``agent.py``) as real processes, reads what they say, and leaves none behind."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from codomyrmex.concurrency import EmbeddedEtcd

Said = dict[str, Any]


class Agent:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[Said] = []

    async def next(self, limit: float = 15.0) -> Said:
        assert self.process.stdout
        line = await asyncio.wait_for(self.process.stdout.readline(), limit)
        if not line:
            assert self.process.stderr
            raise AssertionError(f"the agent has ended: {(await self.process.stderr.read()).decode()}")
        said: Said = json.loads(line)
        self.said.append(said)
        return said

    async def until(self, event: str, limit: float = 15.0) -> Said:
        while (said := await self.next(limit))["event"] != event:
            pass
        return said

    async def rest(self, limit: float = 30.0) -> list[Said]:
        """Everything it still says, until it ends well."""
        assert self.process.stdout and self.process.stderr
        async with asyncio.timeout(limit):
            self.said += [json.loads(line) async for line in self.process.stdout]
            assert await self.process.wait() == 0, (await self.process.stderr.read()).decode()
        return self.said

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


class Fleet:
    def __init__(self, endpoint: str, namespace: str) -> None:
        self.endpoint = endpoint
        self.namespace = namespace
        self.agents: list[Agent] = []

    async def start(self, role: str, name: str = "x", argument: str | float = "") -> Agent:
        command = (sys.executable, "-W", "error", "-m", "tests.integration.agent", self.endpoint, self.namespace, role)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, name, str(argument), stdout=pipe, stderr=pipe)
        agent = Agent(process)
        self.agents.append(agent)
        return agent


@asynccontextmanager
async def fleet(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[Fleet]:
    members = Fleet(etcd.endpoint, namespace)
    try:
        yield members
    finally:
        await asyncio.gather(*(agent.end() for agent in members.agents))
