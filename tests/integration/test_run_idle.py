"""``run --max-idle``: a command that reports progress keeps its locks, and a silent one is ended."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time

import pytest

from codomyrmex.concurrency import LockManager, Session
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from tests.helpers import eventually
from tests.integration.command_line import Cli, ended

NOTIFY = """
import os, socket, sys, time
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
assert os.environ["WATCHDOG_USEC"] == "1500000" and "WATCHDOG_PID" not in os.environ
for number in range(int(sys.argv[1])):
    time.sleep(0.3)
    told.sendto(b"STATUS=step %d" % number, os.environ["NOTIFY_SOCKET"])
time.sleep(float(sys.argv[2]))
"""


def notifying(reports: int, then: float) -> tuple[str, ...]:
    """A command that reports progress some times, then none for some seconds."""
    return (sys.executable, "-c", NOTIFY, str(reports), str(then))


async def test_a_command_that_reports_keeps_everything(cli: Cli, session: Session) -> None:
    cli.environment["WATCHDOG_PID"] = "1"
    names = ("--lock", "a", "--lock", "b", "--semaphore", "s", "--max", "1")

    async def told() -> bool:
        locks = await LockManager(session).locks()
        holders = (await inspect.semaphore(core_of(session), "s")).holders
        notes = {one.note for info in locks for one in info.holders} | {one.note for one in holders}
        return len(locks) == 2 and len(notes) == 1 and notes.pop().startswith("step ")

    started = time.monotonic()
    async with cli.started("run", *names, "--max-idle", "1500ms", "--", *notifying(12, 0)) as running:
        await eventually(told)
        assert await ended(running) == 0
    assert time.monotonic() - started > 3.6


async def test_a_silent_command_is_ended_with_76(cli: Cli, session: Session) -> None:
    async with cli.started("run", "--lock", "x", "--max-idle", "1500ms", "--", *notifying(2, 60)) as running:
        assert await ended(running) == 76
        assert running.stderr and "max_idle of 1.5 s" in (await running.stderr.read()).decode()
    assert not await LockManager(session).locks()
    assert (await cli("run", "--lock", "x", "--max-idle", "0", "--", "true")).code == 2


async def test_without_max_idle_the_socket_of_systemd_is_left_to_the_command(cli: Cli) -> None:
    cli.environment |= {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_PID": "1"}
    result = await cli("run", "--lock", "x", "--", "sh", "-c", 'echo "$NOTIFY_SOCKET $WATCHDOG_PID"')
    assert (result.code, result.out) == (0, "/run/systemd/notify 1\n")


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="systemd-notify is not installed")
async def test_systemd_notify_reports_progress(cli: Cli, session: Session) -> None:
    async def note() -> str:
        info = await LockManager(session).info("x")
        return info.holders[0].note if info else ""

    script = "systemd-notify --status='half done' && systemd-notify WATCHDOG=1 && sleep 1"
    async with cli.started("run", "--lock", "x", "--max-idle", "5s", "--", "sh", "-c", script) as running:
        assert await eventually(note) == "half done"
        assert await asyncio.wait_for(ended(running), 10) == 0
