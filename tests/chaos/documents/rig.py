"""What a scenario runs on: an etcd it may stop and fill, proxies before it, sessions, and its instruments."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codomyrmex.concurrency import Session
from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.documents.gateway import Gateway
from tests.chaos.documents.instruments import Instruments
from tests.chaos.documents.tls import client_context

MARK = "/chaos/mark"
NAMESPACE = "chaos"
SETTLES = 1.0  # seconds for the outcome of a run that has just ended to be written


def state_folder() -> Path:
    """Where, by the README, dead letters are kept while etcd is away."""
    return Path(os.environ["XDG_STATE_HOME"]) / "codomyrmex" / "dead-letters"


class Rig:
    """One scenario's means. Whatever it opens is closed when it ends."""

    def __init__(self, given: argparse.Namespace, stack: AsyncExitStack) -> None:
        self.endpoint: str = given.endpoint
        self.folder = Path(given.folder)
        self.pid: int = given.pid
        self.tls = Path(given.tls) if given.tls else None
        self.does = Instruments(self.folder, given.name, NAMESPACE)
        self.gateway = Gateway(self.endpoint, client_context(self.tls) if self.tls else None)
        self.stack = stack

    async def proxy(self) -> TcpProxy:
        address = urlsplit(self.endpoint)
        return await self.stack.enter_async_context(TcpProxy(str(address.hostname), int(address.port or 0)))

    async def session(self, proxy: TcpProxy | None = None, **settings: Any) -> Session:
        """An open session, through a proxy if one is given, that is closed when the scenario ends."""
        settings = {"request_timeout": 1.0, "session_ttl": 15, "namespace": NAMESPACE, **settings}
        endpoint = proxy.endpoint if proxy else self.endpoint
        if self.tls:
            settings |= {name: self.tls / f"{name}.pem" for name in ("ca_file", "cert_file", "key_file")}
            endpoint = endpoint.replace("http://", "https://")
        return await self.stack.enter_async_context(Session(endpoints=endpoint, **settings))

    async def command(self, *arguments: str, proxy: TcpProxy | None = None) -> asyncio.subprocess.Process:
        """A command of the command line, started."""
        environment = {
            **os.environ,
            "CODOMYRMEX_ETCD_ENDPOINTS": proxy.endpoint if proxy else self.endpoint,
            "CODOMYRMEX_ETCD_NAMESPACE": NAMESPACE,
            "PYTHONUNBUFFERED": "1",
        }
        program, pipe = str(Path(sys.executable).parent / "codomyrmex"), asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            program, "concurrency", *arguments, env=environment, stdout=pipe, stderr=pipe
        )

    @contextlib.asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Etcd stopped by a signal meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def mark(self) -> None:
        """Here the scenario is judged: what etcd holds now, and which runs are under way."""
        await asyncio.sleep(SETTLES)
        await asyncio.to_thread(self.gateway.put, MARK)
        self.does.say("mark")

    async def until(self, condition: Any, limit: float) -> bool:
        """Wait for a condition, at most so long; whether it came."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True
