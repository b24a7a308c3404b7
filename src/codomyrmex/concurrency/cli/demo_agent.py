"""One agent of the demo, a process of its own: it edits shared files, each under its lock.

    python -m codomyrmex.concurrency.cli.demo_agent NAME ROLE EDITS FILE...

It says what it does on stdout, one JSON object a line. Roles: ``worker`` edits and ends; ``stuck`` takes the first
file's lock and edits for ever, so that the demo can kill or stop it while it holds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import DistributedLock, FencedWriteRejected, Grant, LockLost, Session


def say(event: str, **what: Any) -> None:
    print(json.dumps({"event": event, **what}), flush=True)  # noqa: T201


async def edit(name: str, file: Path, grant: Grant) -> None:
    """Read, think, write: without the lock, agents would overwrite each other's lines."""
    text = await asyncio.to_thread(file.read_text)
    await asyncio.sleep(random.uniform(0.02, 0.08))
    await asyncio.to_thread(file.write_text, f"{text}{grant.token} {name}\n")
    await grant.put(f"/codomyrmex/demo/{file.name}", str(grant.token))


async def work(session: Session, name: str, edits: int, files: list[Path]) -> None:
    for _ in range(edits):
        file = random.choice(files)
        async with DistributedLock(f"file_edit:{file.name}", session, metadata={"agent": name}) as grant:
            await edit(name, file, grant)
            say("edited", agent=name, file=file.name, token=grant.token, waited=round(grant.waited, 3))


async def hold(session: Session, name: str, file: Path) -> None:
    grant = None
    try:
        async with DistributedLock(f"file_edit:{file.name}", session, metadata={"agent": name}) as grant:
            say("holding", agent=name, file=file.name, token=grant.token)
            await asyncio.sleep(3600)
    except LockLost as error:
        say("lost", agent=name, file=file.name, reason=str(error))
        assert grant
        try:
            await grant.put(f"/codomyrmex/demo/{file.name}", "late")
            say("overwrote", agent=name, file=file.name)
        except FencedWriteRejected:
            say("refused", agent=name, file=file.name, token=grant.token)


async def main() -> None:
    name, role, edits, *paths = sys.argv[1:]
    files = [Path(path) for path in paths]
    async with Session() as session:
        say("ready", agent=name)
        await (work(session, name, int(edits), files) if role == "worker" else hold(session, name, files[0]))


if __name__ == "__main__":
    asyncio.run(main())
