"""Agents lock files and directories of one tree; no two of them ever work on one path. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/path_locks.py

Each agent has a session of its own, and so stands for a process on any host.
"""

import asyncio

from codomyrmex.concurrency import LockManager, LockTimeout, Session

WISHES = {
    "anna": ["src/parser/"],
    "ben": ["src/parser/lexer.py", "README.md"],
    "cleo": ["docs/", "README.md"],
    "dora": ["docs/index.md"],
    "emil": [""],  # the whole tree
}
ROUNDS = 5


def overlap(one: str, other: str) -> bool:
    """True if one of two paths is the other, or lies below it."""
    one, other = one.rstrip("/"), other.rstrip("/")
    return one == other or not one or not other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


async def show() -> None:
    async with Session() as one, Session() as another:
        anna, ben = LockManager(one), LockManager(another)
        async with anna.acquire_paths(["src/parser/"], tree="main"):
            async with ben.acquire_paths(["docs/"], tree="main", timeout=10) as grant:
                print("beside src/parser/ there is room for", *grant.paths)
            try:
                await ben.acquire_paths(["src/**/*.py"], tree="main", timeout=0.1)
            except LockTimeout:
                print("beside src/parser/ there is no room for src/**/*.py, which is taken as src/")


async def work(agent: str, at_work: dict[str, list[str]]) -> None:
    async with Session() as session:
        manager = LockManager(session)
        for _ in range(ROUNDS):
            async with manager.acquire_paths(WISHES[agent], tree="main", metadata={"agent": agent}) as grant:
                others = [path for paths in at_work.values() for path in paths]
                if met := [path for path in others if any(overlap(path, own) for own in grant.paths)]:
                    raise SystemExit(f"{agent} met another agent at {met}")
                at_work[agent] = list(grant.paths)
                await asyncio.sleep(0.01)
                del at_work[agent]


async def main() -> None:
    await show()
    at_work: dict[str, list[str]] = {}
    async with asyncio.TaskGroup() as agents:
        for agent in WISHES:
            agents.create_task(work(agent, at_work))
    print(f"{len(WISHES)} agents worked {ROUNDS} times each, and no two of them met")


asyncio.run(main())
