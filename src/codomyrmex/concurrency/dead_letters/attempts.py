"""The attempts of one worker, each from its claim to its written outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from codomyrmex.concurrency.dead_letters import record, steps, transitions
from codomyrmex.concurrency.dead_letters.handlers import Attempt, Handler, outcome
from codomyrmex.concurrency.dead_letters.persistence import persist
from codomyrmex.concurrency.dead_letters.record import DeadLetter, Stored
from codomyrmex.concurrency.dead_letters.store import Claim, Store
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")


class Attempts:
    """The attempts that run on one session, by the ids of their entries."""

    def __init__(self, store: Store, policy: RetryPolicy, redact: Callable[[str], str]) -> None:
        self._store = store
        self._policy = policy
        self._redact = redact
        self._running: dict[str, Attempt] = {}
        self._handling: set[asyncio.Task[Any]] = set()  # the tasks of handlers
        self._cancelled = False
        self.stopping = False  # then a cancelled handler is an interrupted one, whoever cancelled it

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._running

    def lose(self, entry_id: str) -> None:
        """The claim on the entry is gone: its attempt's ``checkpoint`` raises from here on."""
        if attempt := self._running.get(entry_id):
            attempt.lose()

    def cancel_handlers(self) -> None:
        """Cancel all handlers, also those of claims that are still under way. Their attempts count as interrupted."""
        self._cancelled = True
        for task in self._handling:
            task.cancel()

    async def claim(self, entry_id: str, kept: Stored | None) -> Claim | None:
        """Claim an entry, by its record as ``kept`` or, if that is out of date, as read anew.

        Returns None if another worker was quicker; raises as the store does.
        """
        claim = await self._store.claim(kept) if kept else None
        if claim:
            return claim
        stored = await self._store.get(entry_id)
        if stored is None or stored == kept:
            return None
        claimable = transitions.allows(stored.entry.state, transitions.Event.CLAIMED, claimed=False)
        return await self._store.claim(stored) if claimable else None

    async def run(self, claim: Claim, handler: Handler) -> None:
        """Run the handler of a claimed entry and write the outcome, whatever happens; that ends the claim."""
        attempt = self._running[claim.entry.id] = Attempt(claim, self._store)
        entry: DeadLetter | None = None
        try:
            if not self._cancelled and self._store.session.alive:  # the answer to the claim may have come late
                entry = await self._handle(handler, claim.entry, attempt)
        finally:
            try:
                await self._finish(claim, entry or steps.interrupted(claim.entry, record.now()))
            finally:
                self._running.pop(claim.entry.id, None)
                self._store.let_go(claim)

    async def _handle(self, handler: Handler, entry: DeadLetter, attempt: Attempt) -> DeadLetter:
        """The entry as its handler leaves it. The handler has its own task, so that a cancel it leaves behind strikes
        at nothing that comes later."""
        task = asyncio.create_task(outcome(handler, entry, attempt, self._policy, self._redact))
        self._handling.add(task)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(partial(_tell, ended))
        try:
            await ended
        finally:
            self._handling.discard(task)
            task.cancel()
        if not task.cancelled():
            return task.result()
        if self.stopping:
            return steps.interrupted(entry, record.now())
        error = asyncio.CancelledError()
        return steps.failed(entry, error, "CancelledError: raised by the handler", self._policy, record.now())

    async def _finish(self, claim: Claim, entry: DeadLetter) -> None:
        """Write the outcome, for as long as the claim lasts: only this worker can."""

        async def write() -> None:
            if not await self._store.finish(claim, entry):
                log.warning("dead letter %s: the claim was lost before its outcome could be written", entry.id)

        # If the session is lost the claim goes with it, and the worker that adopts the entry counts a crash.
        await persist(write, f"dead letter {entry.id}: its outcome could not be written yet")


def _tell(ended: asyncio.Future[None], _: object) -> None:
    if not ended.done():
        ended.set_result(None)
