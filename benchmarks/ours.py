"""This library's lock: many names in one session, and one name fought over by processes."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from asyncio.subprocess import PIPE, Process
from functools import partial

from pydantic import TypeAdapter

from benchmarks.sample import Granted, Sample, repeat, shared
from codomyrmex.concurrency import DistributedLock, Session

NAMESPACE = "bench"
_GRACE = 60.0  # how much longer than asked a contender may take to start and to stop
_LONGEST_LINE = 1 << 26  # bytes; a contender answers in one
_GRANTS = TypeAdapter(list[Granted])


async def uncontended(endpoint: str, seconds: float, workers: int) -> Sample:
    """Each worker acquires and releases a name of its own."""
    async with Session(endpoints=endpoint, namespace=NAMESPACE) as session:

        async def cycle(lock: DistributedLock) -> None:
            async with lock:
                pass

        locks = [DistributedLock(f"own-{uuid.uuid4().hex}", session=session) for _ in range(workers)]
        return await repeat([partial(cycle, lock) for lock in locks], seconds)


async def contended(endpoint: str, seconds: float, sessions: int, kind: str = "lock") -> Sample:
    """Sessions in processes of their own acquire and release one lock, or a semaphore of one permit, all at once."""
    name = f"one-{uuid.uuid4().hex}"
    contenders = [await _contender(endpoint, kind, name) for _ in range(sessions)]
    try:
        async with asyncio.timeout(seconds + _GRACE):
            await asyncio.gather(*(_line(contender) for contender in contenders))
            start = time.monotonic() + 0.1  # the same clock in every process
            go = f"{start} {start + seconds}\n".encode()
            grants = await asyncio.gather(*(_run(contender, go) for contender in contenders))
    finally:
        for contender in contenders:
            if contender.returncode is None:
                contender.kill()
            await contender.wait()
    return shared(grants, seconds)


async def _contender(endpoint: str, kind: str, name: str) -> Process:
    command = (sys.executable, "-m", "benchmarks.contender", endpoint, kind, name)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE)


async def _run(contender: Process, go: bytes) -> list[Granted]:
    assert contender.stdin
    contender.stdin.write(go)
    grants = _GRANTS.validate_json(await _line(contender))
    contender.stdin.close()
    await contender.wait()
    return grants


async def _line(contender: Process) -> bytes:
    assert contender.stdout
    if line := await contender.stdout.readline():
        return line
    raise RuntimeError(f"a contender ended early with exit code {await contender.wait()}")
