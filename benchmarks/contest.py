"""Processes that acquire and release locks as fast as they can, all started at one moment."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from itertools import chain

from pydantic import TypeAdapter

from benchmarks.contender import KINDS, OURS
from benchmarks.sample import Granted, Sample, shared

_GRACE = 60.0  # how much longer than asked a contender may take to start and to stop
_LONGEST_LINE = 1 << 28  # bytes; a contender answers in one
_GRANTS = TypeAdapter(list[list[Granted]])


async def uncontended(endpoint: str, seconds: float, kind: str, workers: int) -> Sample:
    """Each worker of one process has a name of its own."""
    return await _contest(endpoint, seconds, kind, [[f"own-{uuid.uuid4().hex}" for _ in range(workers)]])


async def contended(endpoint: str, seconds: float, kind: str, processes: int, sessions: int = 1) -> Sample:
    """All want one name; each process has this many sessions."""
    name = f"one-{uuid.uuid4().hex}"
    return await _contest(endpoint, seconds, kind, [[name] * sessions for _ in range(processes)])


async def crowd(endpoint: str, seconds: float, kind: str, processes: int, workers: int) -> Sample:
    """Each process has so many locks of its own; with none, one that all want."""
    if not workers:
        return await contended(endpoint, seconds, kind, processes)
    names = [[f"own-{uuid.uuid4().hex}" for _ in range(workers)] for _ in range(processes)]
    return await _contest(endpoint, seconds, kind, names)


async def _contest(endpoint: str, seconds: float, kind: str, names: Sequence[Sequence[str]]) -> Sample:
    contenders = [await _contender(kind, endpoint, own) for own in names]
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
    return shared(list(chain.from_iterable(grants)), seconds)


async def _contender(kind: str, endpoint: str, names: Sequence[str]) -> Process:
    command = (sys.executable, "-m", "benchmarks.contender", kind, endpoint, *names)
    environment = dict(os.environ)
    if kind == "python-etcd3":  # its generated code is older than protobuf's faster implementations
        environment["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    errors = None if KINDS[kind.partition("+")[0]] == OURS else DEVNULL  # python-etcd3's threads complain at every end
    return await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=errors, limit=_LONGEST_LINE, env=environment
    )


async def _run(contender: Process, go: bytes) -> list[list[Granted]]:
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
