"""A member of the chaos fleet: takes turns for ever, survives every loss, and says each hold it believed in.

python -m tests.chaos.agent ENDPOINT NAMESPACE
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time

from codomyrmex.concurrency import ConcurrencyError, DistributedLock, Session


async def turns(session: Session) -> None:
    lock = DistributedLock("x", session)
    while True:
        async with lock as grant:
            since = time.monotonic()
            await asyncio.sleep(random.uniform(0, 0.03))
            await grant.put(f"/{session.layout.namespace}/register", str(grant.token))
            print(json.dumps({"token": grant.token, "since": since, "until": time.monotonic()}), flush=True)


async def main() -> None:
    endpoint, namespace = sys.argv[1:]
    while True:
        with contextlib.suppress(ConcurrencyError):
            async with Session(endpoints=endpoint, namespace=namespace, session_ttl=2) as session:
                await turns(session)
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
