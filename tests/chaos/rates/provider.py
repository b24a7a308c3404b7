"""A provider of its own process: it counts an exact sliding window and answers 429 above the limit.

``python -m tests.chaos.rates.provider --socket … --folder … --limits JSON``. A call is a line ``{"id", "due", "cost"}``
on a UNIX socket. The answer is a line: ``200``, ``429``, or ``late`` for a call that came after ``due``, by the
monotonic clock. A refused or late call does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections import deque
from pathlib import Path

from tests.chaos.documents.journal import Journal

Costs = dict[str, int]
SERVED, REFUSED, LATE = "200", "429", "late"


class Window:
    """The calls of the last ``per`` seconds in one dimension."""

    def __init__(self, amount: int, per: float) -> None:
        self.amount, self.per, self.used = amount, per, 0
        self._calls: deque[tuple[float, int]] = deque()

    def fits(self, now: float, cost: int) -> bool:
        """True if the window that ends now has room for the cost."""
        while self._calls and self._calls[0][0] <= now - self.per:
            self.used -= self._calls.popleft()[1]
        return self.used + cost <= self.amount

    def add(self, now: float, cost: int) -> None:
        self._calls.append((now, cost))
        self.used += cost


class Provider:
    """All dimensions: a call counts in each of them or in none."""

    def __init__(self, limits: dict[str, tuple[int, float]]) -> None:
        self.windows = {dimension: Window(amount, per) for dimension, (amount, per) in limits.items()}

    def answer(self, now: float, due: float, cost: Costs) -> str:
        if now > due:
            return LATE
        if not all(self.windows[dimension].fits(now, amount) for dimension, amount in cost.items()):
            return REFUSED
        for dimension, amount in cost.items():
            self.windows[dimension].add(now, amount)
        return SERVED


async def serve(given: argparse.Namespace) -> None:
    provider, journal = Provider(json.loads(given.limits)), Journal(Path(given.folder), "provider")

    async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):  # clients are killed
            while line := await reader.readline():
                call = json.loads(line)
                now = time.monotonic()
                answer = provider.answer(now, call["due"], call["cost"])
                journal.say("call", id=call["id"], arrived=now, due=call["due"], cost=call["cost"], answer=answer)
                writer.write(f"{answer}\n".encode())

    server = await asyncio.start_unix_server(serve_client, given.socket)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("socket", "folder", "limits"):
        parser.add_argument(f"--{option}", required=True)
    asyncio.run(serve(parser.parse_args()))
