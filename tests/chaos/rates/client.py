"""A client: a process whose tasks spend from a rate limit and call the provider, until SIGTERM.

``python -m tests.chaos.rates.client --name … --endpoints … --folder … --socket … --limits JSON --demand JSON --seed …``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.documents.journal import Journal
from tests.chaos.rates.provider import Costs

NAMESPACE, LIMITER = "rated", "provider"
SESSION_TTL = 5
FOREVER = 1e12  # the deadline of a call that no deadline was told


@dataclass(frozen=True)
class Demand:
    """The work of one client. ``rate``: calls a second; None: each task calls again at once.

    ``cost`` is reserved; of it the call uses ``uses`` if that is given, and more than reserved is an overdraft.
    """

    cost: Costs
    tasks: int = 4
    rate: float | None = None
    uses: Costs | None = None
    acquire: bool = False  # the simple form, which tells no deadline
    called: bool = True  # whether the provider is called; if not, requests are counted and not written down
    hesitates: float = 0.0  # seconds at most before a call's deadline is checked, and again until the call is sent
    takes: float = 0.0  # seconds between the provider's answer and the end of the block
    timeout: float | None = None
    hours: float = 0.0  # by which the wall clock is wrong
    saturating: bool = False

    def text(self) -> str:
        return json.dumps(asdict(self))


def set_clock(hours: float) -> None:
    """Shift this process's time of day."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + 3600 * hours
    time.time_ns = lambda: right_ns() + int(3600e9 * hours)


class Client:
    """One process: its journal, its limiter and its connections to the provider."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.name, self.endpoints, self.socket = given.name, given.endpoints, given.socket
        self.demand = Demand(**json.loads(given.demand))
        self.limits: dict[str, tuple[int, float]] = json.loads(given.limits)
        self.chance = random.Random(given.seed)
        self.journal = Journal(Path(given.folder), self.name)
        self.stopping = asyncio.Event()
        self.numbers = itertools.count()
        self.limiter: Any = None
        self.used = {**self.demand.cost, **(self.demand.uses or {})}
        self.counted = 0

    def until_told(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def live(self) -> None:
        """Work in one session after another until told to stop."""
        from codomyrmex.concurrency import ConcurrencyError, Rate, RateLimiter, Session

        limits = {dimension: Rate(amount, per=per) for dimension, (amount, per) in self.limits.items()}
        settings = {"endpoints": self.endpoints, "namespace": NAMESPACE, "session_ttl": SESSION_TTL}
        while not self.stopping.is_set():
            try:
                async with Session(request_timeout=3.0, **settings) as session:
                    self.limiter = RateLimiter(LIMITER, limits=limits, session=session)
                    self.journal.say("session")
                    await self._work(session)
            except ConcurrencyError as error:
                self._tell_error("session", error)
                await asyncio.sleep(0.2)

    async def _work(self, session: Any) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._repeat(session, number)) for number in range(self.demand.tasks)]
            await self._ended(session)
            for task in tasks:
                task.cancel()

    async def _ended(self, session: Any) -> None:
        while session.alive and not self.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), 0.2)

    async def _repeat(self, session: Any, number: int) -> None:
        pause = self.demand.tasks / self.demand.rate if self.demand.rate else 0.0
        async with self._provider() as call:
            following = time.monotonic() + pause * self.chance.random()
            while session.alive:
                await asyncio.sleep(max(0.0, following - time.monotonic()))
                following = max(following + pause, time.monotonic() - pause)
                await self._once(call)

    @contextlib.asynccontextmanager
    async def _provider(self) -> AsyncIterator[Any]:
        if not self.demand.called:
            yield None
            return
        reader, writer = await asyncio.open_unix_connection(self.socket)

        async def call(identity: str, due: float, cost: Costs) -> str:
            writer.write((json.dumps({"id": identity, "due": due, "cost": cost}) + "\n").encode())
            return (await reader.readline()).decode().strip()

        try:
            yield call
        finally:
            writer.close()

    async def _once(self, call: Any) -> None:
        """One spend and its call; errors are written down."""
        if not self.demand.called:
            await self.limiter.acquire(**self.demand.cost)
            self.counted += 1
            return
        identity = f"{self.name}-{next(self.numbers)}"
        self.journal.say("ask", id=identity, cost=self.demand.cost)
        try:
            await (self._acquire if self.demand.acquire else self._reserve)(identity, call)
        except Exception as error:
            self._tell_error(identity, error)
            await asyncio.sleep(0.05)

    async def _acquire(self, identity: str, call: Any) -> None:
        await self.limiter.acquire(timeout=self.demand.timeout, **self.demand.cost)
        self.journal.say("granted", id=identity, cost=self.demand.cost, deadline=FOREVER)
        answer = await call(identity, FOREVER, self.demand.cost)
        self.journal.say("over", id=identity, used=self.demand.cost, answer=answer, overdraft={})

    async def _reserve(self, identity: str, call: Any) -> None:
        async with self.limiter.reserve(timeout=self.demand.timeout, **self.demand.cost) as spend:
            due = time.monotonic() + spend.deadline()
            self.journal.say("granted", id=identity, cost=dict(spend.cost), deadline=due)
            answer = await self._call(call, identity, spend)
            await asyncio.sleep(self.demand.takes)
            if self.demand.uses:
                spend.used(**self.demand.uses)
            self.journal.say("over", id=identity, used=self.used, answer=answer, overdraft=dict(spend.overdraft))

    async def _call(self, call: Any, identity: str, spend: Any) -> str:
        """Call the provider, or skip the call: half of those whose deadline is over are made all the same."""
        await self._hesitate()
        now = time.monotonic()  # read first: a stop in between makes the deadline earlier, never later
        left = spend.deadline()
        if left <= 0 and self.chance.random() < 0.5:
            return "skipped"
        await self._hesitate()
        granted = {dimension: min(self.used[dimension], amount) for dimension, amount in self.demand.cost.items()}
        answer: str = await call(identity, now + left, granted)
        return answer

    async def _hesitate(self) -> None:
        await asyncio.sleep(self.demand.hesitates * self.chance.random())

    def _tell_error(self, identity: str, error: BaseException) -> None:
        import codomyrmex.concurrency as library

        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = [kind for kind in kinds if kind in library.__all__ and kind != "ConcurrencyError"]
        self.journal.say("error", id=identity, error=(known or kinds)[0], text=str(error), documented=bool(known))


async def main(given: argparse.Namespace) -> None:
    client = Client(given)
    client.until_told()
    set_clock(client.demand.hours)
    client.journal.say("began", demand=asdict(client.demand))
    await client.live()
    client.journal.say("ended", counted=client.counted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("name", "endpoints", "folder", "socket", "limits", "demand"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
