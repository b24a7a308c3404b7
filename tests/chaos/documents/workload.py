"""One process of the generated workload: adds, works, fails in pools, holds, or follows, until it is told to stop.

``python -m tests.chaos.documents.workload ROLE --name … --endpoints … --folder … --seed …``; SIGTERM ends it in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import ConcurrencyError, Session
from tests.chaos.documents import roles, roles_pool
from tests.chaos.documents.instruments import Instruments

NAMESPACE = "work"
TTL, REQUEST = 6, 1.5
Role = Callable[["Member"], Awaitable[None]]
ROLES: dict[str, Role] = {**roles.ROLES, **roles_pool.ROLES}


class Member:
    """What a role works with: its session, its chances, its instruments, and whether it shall stop."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.name: str = given.name
        self.chance = random.Random(given.seed)
        self.does = Instruments(Path(given.folder), given.name, NAMESPACE)
        self.stopping = asyncio.Event()
        self.sessions = 0
        self._settings: dict[str, Any] = {
            "endpoints": given.endpoints,
            "namespace": NAMESPACE,
            "session_ttl": TTL,
            "request_timeout": REQUEST,
            "dial_timeout": REQUEST,
        }
        if given.tls:
            self._settings |= {name: f"{given.tls}/{name}.pem" for name in ("ca_file", "cert_file", "key_file")}
        self.session: Session

    async def live(self, role: Role) -> None:
        """Play the role in one session after another: one that is lost is followed by a new one."""
        while not self.stopping.is_set():
            try:
                async with Session(**self._settings) as self.session:
                    self.sessions += 1
                    await role(self)
            except ConcurrencyError as error:
                self.does.raised("a session's work", error)
                await self.rest(0.2)
            except Exception as error:
                self.does.raised("a session's work", error)
                raise

    @property
    def on(self) -> bool:
        """Whether to go on in this session."""
        return not self.stopping.is_set() and self.session.alive

    async def rest(self, seconds: float) -> None:
        """Sleep, or less where the process is told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)


async def main(given: argparse.Namespace) -> None:
    member = Member(given)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, member.stopping.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the driver blocked it until now
    async with member.does:
        await member.live(ROLES[given.role])
    member.does.say("over")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=sorted(ROLES))
    for option in ("name", "endpoints", "folder", "tls"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--seed", type=int)
    asyncio.run(main(parser.parse_args()))
