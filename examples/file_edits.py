"""Three agents, each a process of its own, edit the same two files and lose no edit. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/file_edits.py

An agent first records the hash of what it is about to write in etcd. That write is fenced: etcd refuses it once the
lock is lost, and then the agent does not touch the file.
"""

import asyncio
import hashlib
import sys
import tempfile
from pathlib import Path

from codomyrmex.concurrency import FencedWriteRejected, LockManager

AGENTS = ("agent-1", "agent-2", "agent-3")
EDITS = 5


def hash_key(path: Path) -> str:
    return f"/codomyrmex/files{path}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def line(agent: str, number: int) -> str:
    return f"# edit {number} by {agent}"


async def edit(manager: LockManager, path: Path, added: str) -> None:
    async with manager.acquire(f"file_edit:{path}") as grant:
        text = path.read_text() + added + "\n"
        await asyncio.sleep(0.01)  # where another agent's edit would be lost without the lock
        await grant.put(hash_key(path), digest(text))
        path.write_text(text)


async def work(agent: str, folder: Path) -> None:
    manager = LockManager()
    for number in range(EDITS):
        for path in sorted(folder.iterdir()):
            await edit(manager, path, line(agent, number))


async def check(manager: LockManager, path: Path) -> None:
    async with manager.acquire(f"file_edit:{path}") as grant:
        text = path.read_text()
        if sorted(text.splitlines()) != [line(agent, number) for number in range(EDITS) for agent in AGENTS]:
            raise SystemExit(f"{path.name}: an edit was lost")
        if await grant.get(hash_key(path)) != digest(text).encode():
            raise SystemExit(f"{path.name} is not what etcd has on record")
        print(f"{path.name}: all {len(text.splitlines())} edits are there, last fencing token {grant.token}")
        await grant.delete(hash_key(path))


async def write_too_late(manager: LockManager, path: Path) -> None:
    async with manager.acquire(f"file_edit:{path}", on_loss="notify") as grant:
        await manager.force_release(grant.name, reason="to show fencing", token=grant.token)
        try:
            await grant.put(hash_key(path), "too late")
        except FencedWriteRejected as error:
            print("a write after the lock was taken away is refused:", error)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("main.py", "tests.py"):
            (folder / file).touch()
        agents = [await asyncio.create_subprocess_exec(sys.executable, __file__, agent, name) for agent in AGENTS]
        if any([await agent.wait() for agent in agents]):
            raise SystemExit("an agent failed")
        manager = LockManager()
        for path in sorted(folder.iterdir()):
            await check(manager, path)
        await write_too_late(manager, folder / "main.py")


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])) if sys.argv[1:] else main())
