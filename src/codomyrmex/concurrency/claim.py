"""What somebody wants: names of one kind, by a rule, for at most so long. Locks and semaphores are built on it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

from codomyrmex.concurrency import clock, decode
from codomyrmex.concurrency.errors import LockTimeout
from codomyrmex.concurrency.hold import Hold, OnLoss
from codomyrmex.concurrency.keys import Kind
from codomyrmex.concurrency.queue.entry import Entry, Place
from codomyrmex.concurrency.queue.joining import acquire
from codomyrmex.concurrency.queue.rules import Rule
from codomyrmex.concurrency.queue.terms import Terms
from codomyrmex.concurrency.session import Session, ready

AGENT = "CODOMYRMEX_AGENT"
MAX_METADATA = 64 * 1024
_PLAIN = Terms()
_DEEP = f"metadata may nest {decode.MAX_DEPTH} levels, of numbers that are finite and texts without lone surrogates"


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """A text as JSON, in Unicode that can be read back."""
    return json.dumps(decode.storable(text))


class Claim:
    """Names of one kind, wanted any number of times, on one session, the default one when left out.

    ``prepare`` is awaited once for each session before it is used.
    """

    __slots__ = ("_given", "_kind", "_metadata", "_owner", "_places", "_prepare", "_terms", "_used", "names", "on_loss")

    def __init__(
        self,
        session: Session | None,
        kind: Kind,
        names: Sequence[str],
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
        terms: Terms = _PLAIN,
        prepare: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        if on_loss not in ("cancel", "notify"):
            raise ValueError(f"on_loss must be 'cancel' or 'notify', not {on_loss!r}")
        self._given = session
        self._prepare = prepare
        self._terms = terms
        self._kind = kind
        self.names = names
        self.on_loss: OnLoss = on_loss
        self._metadata = encode_metadata(_named(metadata))
        self._used: Session | None = None
        self._places: list[Place] = []
        self._owner = ""

    async def attempt(self, rule: Rule, timeout: float | None) -> Hold:
        """Acquire all the names or none. The timeout covers the opening of the session too; 0 tries once."""
        check_timeout(timeout)
        hold = None
        if not timeout:
            hold = await self._try(rule, only_if_free=timeout == 0)
        else:
            try:
                async with asyncio.timeout(timeout) as limit:
                    hold = await self._try(rule, only_if_free=False)
            except TimeoutError:
                if not limit.expired():
                    raise
        if hold is None:
            named = ", ".join(map(repr, self.names))
            raise LockTimeout(f"the {self._kind.what} {named} was not granted within {timeout:g} s")
        return hold

    async def session(self) -> Session:
        """The session to use, open and prepared."""
        session = await ready(self._given)
        if session is not self._used:
            if self._prepare:
                await self._prepare(session)
            self._places = [Place.of(self._kind, session.layout.queue(name, self._kind), name) for name in self.names]
            self._owner = json.dumps({"host": session.host, "pid": os.getpid()})[:-1]
            self._used = session
        return session

    async def _try(self, rule: Rule, *, only_if_free: bool) -> Hold | None:
        if not self.names:
            return Hold((), (), self.on_loss)
        session = await self.session()
        queue = self._places[0].queue
        if only_if_free and session.doors.crowded(queue):
            return None
        since, started = time.time(), clock.now()
        await session.doors.enter(queue, self._kind.what)
        try:
            return await self._join(session, rule, since, started, only_if_free)
        finally:
            session.doors.leave(queue)

    async def _join(
        self, session: Session, rule: Rule, since: float, started: float, only_if_free: bool
    ) -> Hold | None:
        # An ``OwnerRecord`` as JSON, put together from parts since it is on the hot path.
        task = asyncio.current_task()
        by = _quoted(task.get_name()) if task else '""'
        value = f'{self._owner}{self._metadata},"task":{by},"since":{since:.3f}}}'.encode()
        entries = [Entry(session, place, value, rule, self._terms) for place in self._places]
        if len(entries) > 1:
            for entry in entries:
                entry.fellows = entries
        grants = await acquire(entries, started, only_if_free=only_if_free)
        return Hold(entries, grants, self.on_loss) if grants else None


def _named(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """``metadata`` with the ``agent`` that the environment names, where it names none itself."""
    agent = os.environ.get(AGENT)
    if not agent or not isinstance(metadata, dict | None):
        return metadata
    return {"agent": decode.storable(agent), **(metadata or {})}


def encode_metadata(metadata: dict[str, Any] | None) -> str:
    """``metadata`` as the part of an owner's JSON that it becomes; raises if it cannot be JSON or is too large."""
    if metadata is None:
        return ""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        text = json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be JSON: {error}") from None
    except RecursionError:
        raise ValueError(_DEEP) from None
    if len(text) > MAX_METADATA:
        raise ValueError(f"metadata may have {MAX_METADATA} bytes as JSON; this has {len(text)}")
    if not decode.is_plain(json.loads(text)):
        raise ValueError(_DEEP)
    return f',"metadata":{text}'


def check_timeout(timeout: float | None) -> None:
    """Raise ``ValueError`` for a timeout that is negative or not a number."""
    if timeout is not None and (math.isnan(timeout) or timeout < 0):
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout}")
