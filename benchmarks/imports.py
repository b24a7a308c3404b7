"""How often a second a new interpreter can import the library, and what it needs."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from benchmarks.sample import Sample, repeat

STATEMENTS = {
    "import": "import codomyrmex.concurrency",
    "import-protobuf-and-pydantic": "import google.protobuf.message, pydantic",
    # These packages put off most of their own imports until a name of theirs is used.
    "import-names": "from codomyrmex.concurrency import DistributedLock, Session",
    "import-names-of-those": "import asyncio, hpack, google.protobuf.descriptor_pool; from pydantic import BaseModel",
}


async def run(endpoint: str, seconds: float, name: str) -> Sample:
    return await repeat([partial(_import, STATEMENTS[name])], seconds)


async def _import(statement: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", statement)
    if await process.wait():
        raise RuntimeError(f"failed: {statement}")
