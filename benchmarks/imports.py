"""How often a second a new interpreter can import the library, and what it needs."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from benchmarks.sample import Sample, repeat


async def ours(endpoint: str, seconds: float) -> Sample:
    return await repeat([partial(_import, "from codomyrmex.concurrency import DistributedLock, Session")], seconds)


async def what_it_needs(endpoint: str, seconds: float) -> Sample:
    return await repeat([partial(_import, "import grpc, pydantic")], seconds)


async def _import(statement: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", statement)
    if await process.wait():
        raise RuntimeError(f"failed: {statement}")
