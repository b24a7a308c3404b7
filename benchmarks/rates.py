"""The use and the cost of a rate limit over many processes: ``python -m benchmarks.rates``.

Rows: ``use`` (processes that always wait share one limit), ``calls`` (etcd's revisions with 10 and with 2,000 calls a
second), ``refund`` (calls that reserve ten times their use). Use is the part of the limit that a provider of its own
process counted from the second period on.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.documents.gateway import Gateway
from tests.chaos.documents.journal import of
from tests.chaos.documents.servers import servers
from tests.chaos.rates.client import Demand
from tests.chaos.rates.figures import jain, leases, revisions, saturating, use
from tests.chaos.rates.fleet import Fleet, run
from tests.chaos.rates.provider import REFUSED
from tests.chaos.rates.run import Limits, Run

PROCESSES = (1, 8, 32)
CALLS = (10, 2_000)
CALLERS = 4


@dataclass(frozen=True)
class Measured:
    """One run, and the bytes by which the database grew meanwhile."""

    run: Run
    bytes: int

    def a_minute(self, count: float) -> float:
        return 60 * count / (self.run.ended - self.run.began)

    def cost(self) -> str:
        span = self.run.events, self.run.began, self.run.ended
        figures = {"revisions": revisions(*span), "leases": leases(*span), "bytes": self.bytes}
        return ", ".join(f"{self.a_minute(count):,.0f} {name}" for name, count in figures.items()) + " a minute"

    def use(self) -> str:
        refused = sum(call.answer == REFUSED for call in self.run.calls)
        parts = [f"{use(self.run, name):.1%} of {name or 'the limit'} used" for name in self.run.limits]
        return ", ".join(parts) + f", {refused} refused"


async def measure(limits: Limits, demands: Sequence[Demand], seconds: float) -> Measured:
    with servers() as cluster, tempfile.TemporaryDirectory() as folder:
        sizes = []

        async def work(fleet: Fleet, until: float) -> None:
            sizes.append(await asyncio.to_thread(_bytes, cluster.gateway()))
            await asyncio.sleep(until - time.monotonic())
            sizes.append(await asyncio.to_thread(_bytes, cluster.gateway()))

        made = await run(cluster, Path(folder), limits, demands, seconds, work, expire=False)
        return Measured(made, sizes[1] - sizes[0])


def _bytes(gateway: Gateway) -> int:
    """The bytes that the database uses; nothing is compacted here."""
    return int(gateway.call("maintenance/status")["dbSizeInUse"])


async def shared(given: argparse.Namespace) -> None:
    for processes in given.processes:
        wanted = [Demand({"requests": 1}, tasks=4, saturating=True)] * processes
        found = await measure({"requests": (int(40 * given.per), given.per)}, wanted, given.seconds)
        index = jain(saturating(found.run, "requests").values())
        print(f"{processes:3} processes, per {given.per:.0f} s: {found.use()}, Jain {index:.3f}; {found.cost()}")


async def calls(given: argparse.Namespace) -> None:
    for rate in CALLS:
        wanted = [Demand({"requests": 1}, tasks=max(1, rate // 80), rate=rate / CALLERS, called=False)] * CALLERS
        found = await measure({"requests": (1_000_000, given.per)}, wanted, given.seconds)
        made = sum(fact["counted"] for fact in of(found.run.facts, "ended"))
        print(f"{rate:5} calls a second of {CALLERS} processes ({found.a_minute(made) / 60:.0f} made): {found.cost()}")


async def refund(given: argparse.Namespace) -> None:
    demand = Demand({"tokens": 4_000}, tasks=4, uses={"tokens": 400}, takes=0.1, saturating=True)
    found = await measure({"tokens": (given.tokens, given.per)}, [demand] * 4, given.seconds)
    print(f"reserve 4,000 and use 400, of {given.tokens:,} per {given.per:.0f} s: {found.use()}; {found.cost()}")


ROWS: dict[str, Callable[[argparse.Namespace], Awaitable[None]]] = {"use": shared, "calls": calls, "refund": refund}


async def main(given: argparse.Namespace) -> None:
    for row in given.row:
        await ROWS[row](given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__)
    parser.add_argument("--row", nargs="+", choices=list(ROWS), default=list(ROWS), help="only these rows")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each run works (default 40)")
    parser.add_argument("--per", type=float, default=10.0, help="the period, in seconds (default 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES), help="of the row `use`")
    parser.add_argument("--tokens", type=int, default=50_000, help="the limit of the row `refund` (default 50,000)")
    asyncio.run(main(parser.parse_args()))
