"""Three agents, each a process of its own, edit one file of a shared disk and lose no edit. A holder that has lost its
lock cannot replace the file any more. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/fenced_files.py
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from codomyrmex.concurrency import FencedWriteRejected, LockManager, fencing

AGENTS = ("agent-1", "agent-2", "agent-3")
EDITS = 5


async def edit(manager: LockManager, path: Path, added: str) -> None:
    async with manager.acquire(f"file_edit:{path}") as grant:
        content = await asyncio.to_thread(fencing.files.read, path, grant)
        await asyncio.sleep(0.01)  # where another agent's edit would be lost without the lock
        await asyncio.to_thread(fencing.files.replace, path, content + f"{added}\n".encode(), grant)


async def work(agent: str, path: Path) -> None:
    manager = LockManager()
    for number in range(EDITS):
        await edit(manager, path, f"# edit {number} by {agent}")


async def write_too_late(manager: LockManager, path: Path) -> None:
    async with manager.acquire(f"file_edit:{path}", on_loss="notify") as lost:
        await manager.force_release(lost.name, reason="to show fencing", token=lost.token)
        await edit(manager, path, "# by the next holder")
        try:
            fencing.files.replace(path, "too late", lost)
        except FencedWriteRejected as error:
            print("a replacement after the lock was taken away is refused:", error)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.py"
        path.touch()
        agents = [await asyncio.create_subprocess_exec(sys.executable, __file__, agent, path) for agent in AGENTS]
        if any([await agent.wait() for agent in agents]):
            raise SystemExit("an agent failed")
        print(f"{len(path.read_text().splitlines())} edits are there")
        await write_too_late(LockManager(), path)
        print(f"the last line is: {path.read_text().splitlines()[-1]}")


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])) if sys.argv[1:] else main())
