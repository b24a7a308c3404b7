"""Two workers take turns at one lock. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/quickstart.py
"""

import asyncio

from codomyrmex.concurrency import LockManager


async def worker(manager: LockManager, name: str) -> None:
    for _ in range(3):
        async with manager.acquire("file_edit:main.py", metadata={"worker": name}) as grant:
            print(f"{name} holds the lock with token {grant.token}, after {grant.waited * 1000:.0f} ms")
            await grant.put("/codomyrmex/examples/main.py", f"last edited by {name}")
            await asyncio.sleep(0.05)


async def main() -> None:
    manager = LockManager()
    await asyncio.gather(worker(manager, "anna"), worker(manager, "ben"))
    print(manager.stats())


asyncio.run(main())
