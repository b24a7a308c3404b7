"""Three processes share a provider that allows three calls at once in all. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/rate_limited_provider.py

The provider is simulated by the parent, which answers on a local port and refuses what exceeds its limit. A large call
counts twice, and takes two permits.
"""

import asyncio
import sys

from codomyrmex.concurrency import Semaphore

LIMIT = 3
PROCESSES = 3
CALLS = (1, 1, 1, 2)


class Provider:
    """Answers ``ok``, or ``refused`` when more than its limit is under way."""

    def __init__(self) -> None:
        self.under_way = self.peak = self.answered = self.refused = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int(await reader.readline())
        self.under_way += size
        self.peak = max(self.peak, self.under_way)
        allowed = self.under_way <= LIMIT
        await asyncio.sleep(0.05)
        self.under_way -= size
        self.answered += allowed
        self.refused += not allowed
        writer.write(b"ok\n" if allowed else b"refused\n")
        writer.close()
        await writer.wait_closed()


async def call(port: int, size: int) -> None:
    async with Semaphore("provider", max_concurrent=LIMIT).hold(permits=size):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{size}\n".encode())
            if await reader.readline() != b"ok\n":
                raise RuntimeError("the provider refused a call: too many at once")
        finally:
            writer.close()
            await writer.wait_closed()


async def work(port: int) -> None:
    async with asyncio.TaskGroup() as calls:
        for size in CALLS:
            calls.create_task(call(port, size))


async def main() -> None:
    provider = Provider()
    async with await asyncio.start_server(provider.answer, "127.0.0.1", 0) as server:
        port = str(server.sockets[0].getsockname()[1])
        callers = [await asyncio.create_subprocess_exec(sys.executable, __file__, port) for _ in range(PROCESSES)]
        codes = [await caller.wait() for caller in callers]
    print(f"{provider.answered} calls answered, {provider.refused} refused, at most {provider.peak} units at once")
    print("permits free at the end:", await Semaphore("provider", max_concurrent=LIMIT).available())
    if any(codes):
        raise SystemExit("a caller failed")


if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1])) if sys.argv[1:] else main())
