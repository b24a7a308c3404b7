"""A plain script that holds a lock is sent SIGTERM, without and with the lines of docs/how-to/end-on-sigterm.md."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, LockEvent, Session
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "end-on-sigterm.md").read_text()
(LINES,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "SIGTERM" in code]

ASYNC = """
import asyncio
from codomyrmex.concurrency import DistributedLock

async def main():
    async with DistributedLock("job"):
        print("held", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""
BLOCKING = """
import time
from codomyrmex.concurrency.sync import DistributedLock

with DistributedLock("job"):
    print("held", flush=True)
    time.sleep(3600)
"""


async def end_of(script: str, etcd: EmbeddedEtcd, session: Session) -> LockEvent:
    """The event that ends the lock of a script that is sent SIGTERM while it holds the lock."""
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": session.settings.namespace,
        "CODOMYRMEX_ETCD_SESSION_TTL": "3",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=environment, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout and await asyncio.wait_for(process.stdout.readline(), 30) == b"held\n"
        async with asyncio.timeout(30), aclosing(inspect.watch(core_of(session))) as events:
            async for event in events:
                if event.kind == "granted":
                    process.send_signal(signal.SIGTERM)
                elif event.kind in ("released", "expired"):
                    return event
        raise AssertionError("the watch ended")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("script", [ASYNC, BLOCKING], ids=["async", "blocking"])
async def test_a_plain_script_ends_at_once_and_its_lease_must_run_out(
    script: str, etcd: EmbeddedEtcd, session: Session
) -> None:
    assert (await end_of(script, etcd, session)).kind == "expired"


@pytest.mark.parametrize("before", ["", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
@pytest.mark.parametrize("script", [ASYNC, BLOCKING], ids=["async", "blocking"])
async def test_with_the_lines_of_the_page_it_gives_back_what_it_holds(
    before: str, script: str, etcd: EmbeddedEtcd, session: Session
) -> None:
    """Also where SIGINT is ignored, as in a shell's background jobs."""
    assert (await end_of(before + LINES + script, etcd, session)).kind == "released"
