"""The processes of a chaos fleet (``agent.py``): started, hurt, healed, listened to, and never left behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.chaos.checker import Hold
from tests.network import Host


class Member:
    """One process. What it said stays after its end."""

    def __init__(self, process: asyncio.subprocess.Process, roles: tuple[str, ...]) -> None:
        self.process = process
        self.roles = roles
        self.said: list[dict[str, Any]] = []
        self.was_stopped = False
        self._reading = asyncio.create_task(self._read())

    @property
    def lives(self) -> bool:
        return self.process.returncode is None

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.said.append(json.loads(line))

    def stop(self) -> None:
        self.was_stopped = True
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        if self.lives:
            self.process.kill()
        await self.process.wait()
        await self._reading


class Members:
    def __init__(self, endpoint: str, namespace: str) -> None:
        self.endpoint = endpoint
        self._namespace = namespace
        self.all: list[Member] = []

    @property
    def living(self) -> list[Member]:
        return [member for member in self.all if member.lives]

    async def start(self, *roles: str, host: Host | None = None) -> Member:
        """Start one, on a host of its own if so wished."""
        command = (
            *(host.prefix if host else ()),
            sys.executable,
            "-m",
            "tests.chaos.agent",
            self.endpoint,
            self._namespace,
            *roles,
        )
        member = Member(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE), roles)
        self.all.append(member)
        return member

    async def replace(self, member: Member) -> Member:
        """Kill a member, and start another in its place."""
        await member.end()
        return await self.start(*member.roles)

    async def end(self) -> None:
        await asyncio.gather(*(member.end() for member in self.all))

    def said(self, what: str) -> list[dict[str, Any]]:
        return [said for member in self.all for said in member.said if said["what"] == what]

    def holds(self, what: str) -> list[Hold]:
        """The holds that holders believed in, without those of stopped processes.

        A stopped process believes in its hold until it wakes; fencing protects the lock from it.
        """
        fields = Hold._fields
        return [
            Hold(**{name: said[name] for name in fields if name in said})
            for member in self.all
            if not member.was_stopped
            for said in member.said
            if said["what"] == what
        ]


@asynccontextmanager
async def members(endpoint: str, namespace: str) -> AsyncIterator[Members]:
    fleet = Members(endpoint, namespace)
    try:
        yield fleet
    finally:
        await fleet.end()
