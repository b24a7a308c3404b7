"""The story that fencing is for: a holder is stopped past its lease, another one writes, and the first writes then."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from tests.integration.fenced_writer import MEDIA

LIMIT = 25.0


async def stopped_and_late(
    etcd: EmbeddedEtcd, session: Session, namespace: str, kind: str, medium: str, target: str, read: Callable[[], str]
) -> None:
    """Check that the late write is refused with the kit and lands without it. ``read`` tells what is in the medium."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.fenced_writer", etcd.endpoint, namespace, kind, medium, target,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdin and writer.stdout
    try:
        async with asyncio.timeout(LIMIT):
            token = int(await writer.stdout.readline())
            writer.send_signal(signal.SIGSTOP)
            manager = LockManager(session)
            if kind == "reservation":  # its time is over later than a test can wait for
                await manager.force_release("data", reason="a test")
            async with manager.acquire("data") as grant:
                await asyncio.to_thread(MEDIA[medium], target, "by the second holder", grant)
                writer.send_signal(signal.SIGCONT)

                writer.stdin.write(b"fenced\n")
                refused = (await writer.stdout.readline()).decode()
                assert f"token {token} " in refused and f"token {grant.token} " in refused
                assert await asyncio.to_thread(read) == "by the second holder"

                writer.stdin.write(b"plain\n")
                assert await writer.stdout.readline() == b"written\n"
                assert await asyncio.to_thread(read) == "late, plain"
    finally:
        writer.kill()
        await writer.wait()
