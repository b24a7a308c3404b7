"""The command line in a process of its own, as its users run it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

CLI = (sys.executable, "-m", "codomyrmex.concurrency.cli.root", "concurrency")


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Cli:
    """Starts the command line against one namespace, and leaves no process behind."""

    def __init__(self, endpoint: str, namespace: str) -> None:
        self.environment = {
            **os.environ,
            "CODOMYRMEX_ETCD_ENDPOINTS": endpoint,
            "CODOMYRMEX_ETCD_NAMESPACE": namespace,
            "CODOMYRMEX_ETCD_SESSION_TTL": "3",
        }

    @asynccontextmanager
    async def started(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *CLI, *args, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def __call__(self, *args: str, stdin: str = "") -> Result:
        async with self.started(*args) as process:
            out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 20)
            assert process.returncode is not None
            return Result(process.returncode, out.decode(), err.decode())


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout
    return (await asyncio.wait_for(process.stdout.readline(), 15)).decode().strip()


async def ended(process: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(process.wait(), 15)
