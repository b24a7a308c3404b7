"""The acts about pools: three hosts work under one semaphore; their failures become dead letters and are retried."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import accumulate
from typing import Any

from codomyrmex.concurrency import DeadLetterQueue, Session
from codomyrmex.concurrency.cli.demo.stage import Agent, Stage
from codomyrmex.concurrency.cli.views import dead_letter_table, operation_table, pool_table, semaphore_table
from codomyrmex.concurrency.dead_letters.stats import summarize
from codomyrmex.concurrency.pool import cluster
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect

HOSTS, ITEMS, LIMIT = 3, 15, 3


class Pools:
    """The two acts about pools."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._calls: list[dict[str, Any]] = []
        self._retries: list[dict[str, Any]] = []
        self._failed: list[int] = []

    async def play(self, session: Session) -> None:
        """Play the acts, one after another."""
        stage, queue = self._stage, DeadLetterQueue("analysis", session=session)
        stage.act(
            f"{HOSTS} hosts, each a process with a pool of 4 workers, analyse {ITEMS} items each with a provider "
            f"that takes {LIMIT} calls at a time from all of them together."
        )
        async with stage.started("host", HOSTS, kind="host") as hosts:
            looking = asyncio.create_task(self._look(session))
            await asyncio.gather(*(self._map(host) for host in hosts))
            await looking
            await self._check_calls(queue)

            stage.act("The provider has recovered. Whichever host is free retries each of them, once.")
            for host in hosts:
                host.go_on()
            await asyncio.gather(*(self._retry(host) for host in hosts))
        stage.show(operation_table.summaries(await summarize(queue.name, queue.entries())))
        stage.say("")
        retried = Counter(retry["item"] for retry in self._retries)
        stage.expect(retried == Counter(self._failed), f"retried were {retried}, not each of {self._failed} once")
        stage.expect(not [entry async for entry in queue.entries() if entry.state != "resolved"], "a failure is left")

    async def _map(self, host: Agent) -> None:
        async for said in host.lines():
            if said["event"] == "mapped":
                return
            self._calls.append(said)
            if said["failed"]:
                self._failed.append(said["item"])

    async def _look(self, session: Session) -> None:
        """Show the tables that an operator sees while the hosts work."""
        while len(self._calls) < HOSTS * ITEMS / 2:  # noqa: ASYNC110 # other processes make the calls
            await asyncio.sleep(0.05)
        self._stage.say("  An operator who looks at the semaphores in the middle of it sees:\n")
        self._stage.show(semaphore_table.semaphores(await inspect.semaphores(core_of(session))))
        self._stage.say("\n  and at the pools:\n")
        self._stage.show(pool_table.pools(await cluster.pools(core_of(session))))

    async def _check_calls(self, queue: DeadLetterQueue) -> None:
        steps = sorted([(call["since"], 1) for call in self._calls] + [(call["until"], -1) for call in self._calls])
        most = max(accumulate(step for _, step in steps), default=0)
        self._stage.say(
            f"\n  … {len(self._calls)} calls, never more than {most} at once; {len(self._failed)} failed, as was to be "
            "shown, and wait as dead letters:\n"
        )
        self._stage.show(dead_letter_table.dead_letters(await queue.list_entries()))
        self._stage.say("")
        self._stage.expect(len(self._calls) == HOSTS * ITEMS, f"{len(self._calls)} calls were made")
        self._stage.expect(most <= LIMIT, f"{most} calls were made at once")
        self._stage.expect(await queue.count() == len(self._failed) > 0, "a failure is not among the dead letters")

    async def _retry(self, host: Agent) -> None:
        async for said in host.lines():
            self._retries.append(said)
            self._stage.say(f"  {host.name} retries item {said['item']:2}, attempt {said['attempt']}: done")
        self._stage.expect(await host.process.wait() == 0, f"{host.name} failed")
