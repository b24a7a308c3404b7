"""A service elects its leader and lists its members. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/elected_service.py

Three processes join a group and campaign. The first leader is killed; another one leads when its lease has ended.
"""

import asyncio
import os
import signal
import sys

from codomyrmex.concurrency import Election, Group, Session

PROCESSES = 3


async def serve() -> None:
    """Be a member, and lead when it is this process's turn."""
    async with (
        Session(session_ttl=2) as session,
        Group("service", session).join({"pid": os.getpid()}),
        Election("service", session).campaign({"pid": os.getpid()}) as term,
    ):
        await term.grant.put("/service/leader", str(os.getpid()))  # refused once the term is lost
        await asyncio.Event().wait()


async def members(session: Session, count: int) -> None:
    """Wait until the service has so many members."""
    async for _ in Group("service", session).watch():
        if len(await Group("service", session).members()) == count:
            return


async def main() -> None:
    started = [await asyncio.create_subprocess_exec(sys.executable, __file__, "serve") for _ in range(PROCESSES)]
    try:
        async with Session() as session:
            await members(session, PROCESSES)
            print(f"{PROCESSES} members")
            tokens: list[int] = []
            async for leader in Election("service", session).observe():
                tokens.append(leader.token)
                if len(tokens) == 2:
                    break
                os.kill(leader.value["pid"], signal.SIGKILL)
                print("the leader is killed")
            await members(session, PROCESSES - 1)
            print(f"another one leads, its token is higher: {tokens[1] > tokens[0]}")
            print(f"{PROCESSES - 1} members")
    finally:
        for process in started:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in started))


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1:] == ["serve"] else main())
