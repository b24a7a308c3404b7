"""A git work tree with the hook of ``guard install``, and the commands of an agent in it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

from tests.chaos.reservations.editor import FILES, NAMESPACE


class Result(NamedTuple):
    code: int
    told: str


class Repository:
    """Commands run in the work tree, each in the name of an agent."""

    def __init__(self, root: Path, state: Path, endpoints: str) -> None:
        self.root = root
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CODOMYRMEX_ETCD_ENDPOINTS": endpoints,
            "CODOMYRMEX_ETCD_NAMESPACE": NAMESPACE,
            "XDG_STATE_HOME": str(state),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "agent",
            "GIT_AUTHOR_EMAIL": "agent@example.org",
            "GIT_COMMITTER_NAME": "agent",
            "GIT_COMMITTER_EMAIL": "agent@example.org",
        }

    async def run(self, *command: str, agent: str = "judge") -> Result:
        environment = {**self.environment, "CODOMYRMEX_AGENT": agent}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.root, env=environment, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return Result(process.returncode or 0, out.decode(errors="replace"))

    async def git(self, *arguments: str, agent: str = "judge") -> Result:
        return await self.run("git", *arguments, agent=agent)

    async def cli(self, *arguments: str, agent: str = "judge") -> Result:
        return await self.run("codomyrmex", "concurrency", *arguments, agent=agent)

    async def create(self) -> None:
        """The first commit, of every file, made before there is a hook."""
        self.root.mkdir()
        assert (await self.git("init", "-q", "-b", "main")).code == 0
        for file in (*FILES, "vault/a.txt", "vault/b.txt"):
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / file).write_text("at first")
        assert (await self.git("add", "-A")).code == 0
        committed = await self.git("commit", "-q", "-m", "Begin")
        assert committed.code == 0, committed.told

    async def commit(self, message: str, agent: str = "judge") -> Result:
        return await self.git("commit", "-m", message, agent=agent)

    async def commits(self) -> list[str]:
        return (await self.git("log", "--format=%s")).told.split("\n")[:-1]
