"""Three processes share a provider's limit of 40 requests and 4,000 tokens in any 10 seconds. Run it with an etcd:

codomyrmex concurrency dev -- python examples/rate_limits.py

The provider is a process of its own. It counts exactly, and answers 429 to a call above its limit. A client does not
know how many tokens a call will use: it reserves the most, and gives back the rest when it has the answer.
"""

import asyncio
import json
import random
import sys
import time
from collections import deque
from typing import Any

from codomyrmex.concurrency import LockTimeout, Rate, RateLimiter

PER = 10
LIMITS = {"requests": Rate(40, per=PER), "tokens": Rate(4_000, per=PER)}
MOST = 200  # tokens of a call
CLIENTS = 3
SECONDS = 14  # in which the clients call: at most twice what the limits say can be served


class Provider:
    """Serves a call if the calls of the last 10 seconds, with this one, are within the limits."""

    def __init__(self) -> None:
        self.served: deque[tuple[float, int]] = deque()  # the times and the tokens of the last 10 seconds
        self.totals = {"served": 0, "refused": 0, "tokens": 0}

    def call(self, tokens: int) -> int:
        now = time.monotonic()
        while self.served and self.served[0][0] <= now - PER:
            self.served.popleft()
        recent = [tokens, *(before for _, before in self.served)]
        if len(recent) > LIMITS["requests"].amount or sum(recent) > LIMITS["tokens"].amount:
            self.totals["refused"] += 1
            return 429
        self.served.append((now, tokens))
        self.totals["served"] += 1
        self.totals["tokens"] += tokens
        return 200

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each line of a connection: the tokens of a call by its status, and ``totals`` by the totals."""
        while line := await reader.readline():
            question = json.loads(line)
            answer = self.totals if question == "totals" else self.call(question)
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()


async def provide() -> None:
    server = await asyncio.start_server(Provider().answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def ask(port: int, question: object) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        return json.loads(await reader.readline())
    finally:
        writer.close()
        await writer.wait_closed()


async def work(port: int) -> None:
    limiter = RateLimiter("provider", limits=LIMITS)
    end = time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0:
        try:
            async with limiter.reserve(requests=1, tokens=MOST, timeout=left) as spend:
                tokens = random.randint(MOST // 4, MOST)
                if await ask(port, tokens) == 429:
                    await limiter.throttled(retry_after=1)
                spend.used(tokens=tokens)
        except LockTimeout:
            return  # the time is over


async def main() -> None:
    run = (sys.executable, __file__)
    provider = await asyncio.create_subprocess_exec(*run, "provider", stdout=asyncio.subprocess.PIPE)
    assert provider.stdout
    try:
        port = int(await provider.stdout.readline())
        clients = [await asyncio.create_subprocess_exec(*run, str(port)) for _ in range(CLIENTS)]
        codes = [await client.wait() for client in clients]
        totals = await ask(port, "totals")
    finally:
        provider.terminate()
        await provider.wait()
    share = totals["tokens"] / (2 * LIMITS["tokens"].amount)
    print(f"{totals['served']} calls served, {totals['refused']} refused, {share:.0%} of the tokens used")
    if any(codes):
        raise SystemExit("a client failed")


if __name__ == "__main__":
    asyncio.run(main() if not sys.argv[1:] else provide() if sys.argv[1] == "provider" else work(int(sys.argv[1])))
