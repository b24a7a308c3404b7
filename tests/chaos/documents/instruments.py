"""A process's use of the library, written down: each call, run, hold and belief becomes a fact of its journal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from codomyrmex.concurrency import (
    Attempt,
    ConcurrencyError,
    DeadLetter,
    DeadLetterQueue,
    Discard,
    LockManager,
    Park,
)
from tests.chaos.documents.journal import Journal

T = TypeVar("T")
Handler = Callable[[DeadLetter, Attempt], Awaitable[None]]
BEAT = 0.05  # seconds between two looks at the event loop's clock


class Instruments:
    """The instruments of one process: it uses the library through them, and they write down its facts."""

    def __init__(self, folder: Path, process: str, namespace: str) -> None:
        self.journal = Journal(folder, process)
        self.namespace = namespace
        self._numbers = itertools.count(1)
        self._holding: dict[int, tuple[Any, float]] = {}  # grants, and when trust in each was last seen
        self._beating: asyncio.Task[None] | None = None
        self.say = self.journal.say

    async def __aenter__(self) -> Instruments:
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    async def _beat(self) -> None:
        """Say when the event loop stood still; look at the trust in what is held."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(BEAT)
            for number, (grant, _) in list(self._holding.items()):
                if grant.deadline() > 0:
                    self._holding[number] = grant, time.monotonic()
            if (late := time.monotonic() - before - BEAT) > 1.0:
                self.say("stall", seconds=late)

    async def call(self, what: str, limit: float, awaitable: Awaitable[T]) -> T:
        """A call with its time limit; whatever it raises is written down and raised."""
        began = time.monotonic()
        try:
            return await awaitable
        except BaseException as error:
            self.raised(what, error)
            raise
        finally:
            self.say("call", what=what, took=time.monotonic() - began, limit=limit)

    def raised(self, what: str, error: BaseException) -> None:
        """Write down what was raised; a cancel is documented where somebody asked for it."""
        me = asyncio.current_task()
        asked = isinstance(error, asyncio.CancelledError) and me is not None and me.cancelling() > 0
        documented = asked or isinstance(error, (ConcurrencyError, TimeoutError, LookupError, ValueError))
        text = f"{type(error).__name__}: {str(error)[:300]}"
        if not documented:
            text += " " + "".join(traceback.format_exception(error)[-2:])[-300:]
        self.say("raised", what=what, error=text, documented=documented)

    async def within(self, limit: float, what: str, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """What must come within a limit; if it does not, that is a fact, and it is left alone."""
        task = asyncio.ensure_future(coroutine)
        done, _ = await asyncio.wait([task], timeout=limit)
        if not done:
            self.say("never", what=f"{what}: not within {limit} s")
            task.cancel()
            await asyncio.wait([task], timeout=2.0)
            return None
        if task.cancelled():
            self.say("raised", what=what, error="CancelledError that nobody asked for", documented=False)
            return None
        if error := task.exception():
            self.raised(what, error)
            return None
        return task.result()

    async def add(self, queue: DeadLetterQueue, operation: str, *, limit: float = 5.0, **about: Any) -> str | None:
        """Add a dead letter; None if it was refused with a documented error."""
        about.setdefault("args", {})
        about.setdefault("error", "it failed")
        try:
            number = await self.call(f"add to {queue.name}", limit, queue.add(operation=operation, **about))
        except ConcurrencyError:
            return None
        self.say("added", ns=self.namespace, queue=queue.name, id=number, dedup=about.get("dedup_key"))
        return number

    def handle(self, queue: DeadLetterQueue, **handlers: Handler) -> None:
        """Register handlers whose runs are written down."""
        for operation, handler in handlers.items():
            queue.handler(operation)(self._watched(queue.name, handler))
        self.say("handled", ns=self.namespace, queue=queue.name, operations=list(handlers))

    def _watched(self, queue: str, handler: Handler) -> Handler:
        async def run(entry: DeadLetter, attempt: Attempt) -> None:
            number = next(self._numbers)
            self.say(
                "run",
                ns=self.namespace,
                queue=queue,
                id=entry.id,
                number=attempt.number,
                token=attempt.token,
                run=number,
            )
            outcome = "cancelled"
            try:
                await handler(entry, attempt)
                outcome = "ok"
            except Park:
                outcome = "park"
                raise
            except Discard:
                outcome = "discard"
                raise
            except Exception:
                outcome = "failed"
                raise
            finally:
                self.say("ran", run=number, outcome=outcome)

        return run

    @contextlib.asynccontextmanager
    async def hold(self, kind: str, name: str, acquiring: Any, *, shared: bool = False) -> AsyncIterator[Any]:
        """A lock's or semaphore's block, as its holder believes in it; the block's own end is judged, not raised."""
        number, error, facts = next(self._numbers), "", {}
        try:
            async with acquiring as got:
                grant = getattr(got, "grant", got)
                self.say(
                    "hold",
                    hold=number,
                    ns=self.namespace,
                    kind=kind,
                    name=name,
                    token=grant.token,
                    shared=shared,
                    permits=getattr(got, "permits", 1),
                    trust=grant.deadline(),
                )
                self._holding[number] = grant, time.monotonic()
                try:
                    yield got
                finally:
                    ended = time.monotonic()
                    _, trusted = self._holding.pop(number)
                    overrun = ended - trusted if grant.deadline() <= 0 else 0.0
                    facts = {"overrun": overrun, "lost": grant.lost.is_set()}
        except asyncio.CancelledError:
            error = "cancelled"
            raise
        except ConcurrencyError as raised:
            if not facts:
                raise  # it was not granted
            error = type(raised).__name__
        finally:
            if facts:
                self.say("held", hold=number, error=error, at=ended, **facts)

    @contextlib.asynccontextmanager
    async def hold_all(self, names: list[str], acquiring: Any) -> AsyncIterator[Any]:
        """Several locks at once, each a hold of its own."""
        async with acquiring as grants, contextlib.AsyncExitStack() as stack:
            for name, grant in zip(names, grants, strict=True):
                await stack.enter_async_context(self.hold("lock", name, contextlib.nullcontext(grant)))
            yield grants

    async def spill_file(self, folder: Path, wanted: int) -> None:
        """Say how large the files of spilled dead letters are."""
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        texts = [path.read_bytes() for path in files]
        size, lines = sum(map(len, texts)), sum(text.count(b"\n") for text in texts)
        self.say("spill file", bytes=size, lines=lines, wanted=wanted)

    async def believe_locks(self, manager: LockManager, belief: dict[str, set[int]], prefix: str = "") -> None:
        """Follow the locks for ever, keeping who is believed to hold what."""
        async for event in manager.watch(prefix):
            holders = belief.setdefault(event.name, set())
            if event.kind == "granted":
                holders.add(event.owner.token)
            elif event.kind in ("released", "expired"):
                holders.discard(event.owner.token)

    def say_locks(self, belief: dict[str, set[int]], prefix: str = "", partial: bool = False) -> None:
        named = {name: sorted(tokens) for name, tokens in belief.items()}
        self.say("belief", what="locks", ns=self.namespace, prefix=prefix, believed=named, partial=partial)


def cli_belief(lines: list[str]) -> dict[str, set[int]]:
    """What a reader of `locks --watch -o jsonl` believes."""
    belief: dict[str, set[int]] = {}
    for line in lines:
        event = json.loads(line)
        holders = belief.setdefault(event["name"], set())
        if event["kind"] == "granted":
            holders.add(event["owner"]["token"])
        elif event["kind"] in ("released", "expired"):
            holders.discard(event["owner"]["token"])
    return belief
