"""What somebody wants: names of one kind, by a rule, for at most so long. Locks and semaphores are built on it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any

from codomyrmex.concurrency import clock, decode
from codomyrmex.concurrency.affinity import current_task, running_loop
from codomyrmex.concurrency.callsite import users_line
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import ConcurrencyError, LockTimeout
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult
from codomyrmex.concurrency.keys import Kind
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue.entry import By, Entry, QueueRef, warn_of_itself
from codomyrmex.concurrency.waitqueue.explain import READ, Wanted, describe, why
from codomyrmex.concurrency.waitqueue.group import Group
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.join import acquire
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from codomyrmex.concurrency.waitqueue.rules import Rule
from codomyrmex.concurrency.waitqueue.wait import local_predecessor

AGENT = "CODOMYRMEX_AGENT"
MAX_METADATA = 64 * 1024
_MOMENT = 0.5  # seconds that the reason of a timeout may take
_PLAIN = HoldOptions()
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
        terms: HoldOptions = _PLAIN,
        prepare: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        check_session(session)
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
        self._places: list[QueueRef] = []
        self._owner = ""

    async def attempt(self, rules: Sequence[Rule], timeout: float | None, by: By | None = None) -> Hold:
        """Acquire all the names, each by its rule, or none. The timeout covers the opening of the session too; 0 tries
        once. ``by``: who asks, if that is not the current task."""
        check_timeout(timeout)
        self._check_here()
        by = by or By.of(current_task(), users_line())
        entries: list[Entry] = []
        hold = None
        if not timeout:
            hold = await self._try(rules, by, entries, only_if_free=timeout == 0)
        else:
            try:
                async with asyncio.timeout(timeout) as limit:
                    hold = await self._try(rules, by, entries, only_if_free=False)
            except TimeoutError:
                if not limit.expired():
                    raise
        if hold is None:
            many = len(self.names) > 1
            named = f"{self._kind.what}{'s' if many else ''} {', '.join(map(repr, self.names))}"
            why = await self._why(rules, entries)
            raise LockTimeout(f"the {named} {'were' if many else 'was'} not granted within {timeout:g} s: {why}")
        return hold

    async def attempt_now(self, rules: Sequence[Rule], by: By | None = None) -> Hold | None:
        """The same for a try that asks for no reason: None if a name was not free."""
        self._check_here()
        return await self._try(rules, by or By.of(current_task(), users_line()), [], only_if_free=True)

    def _check_here(self) -> None:
        if self._given:
            self._given.home.check("session")
        running_loop()

    async def _why(self, rules: Sequence[Rule], entries: Sequence[Entry]) -> str:
        """Why it was not granted, by one look at the queues; etcd has a moment to answer."""
        session = self._used
        if session is None or not session.usable_here():
            return "the session was not open by then"
        gets = [Get(place.queue, place.queue_end, limit=READ, oldest_first=True) for place in self._places]
        try:
            async with asyncio.timeout(_MOMENT):
                results = (await session.transport.txn((), gets)).results
        except (ConcurrencyError, TimeoutError):
            return _known(entries)
        tokens = [entry.token for entry in entries] or [0] * len(self.names)
        found = [result for result in results if isinstance(result, GetResult)]
        return why(self._kind.what, [Wanted(*one) for one in zip(self.names, rules, tokens, found, strict=True)])

    async def session(self) -> Session:
        """The session to use, open and prepared."""
        session = await ready(self._given)
        if session is not self._used:
            if self._prepare:
                await self._prepare(session)
            self._places = [
                QueueRef.of(self._kind, session.layout.queue(name, self._kind), name) for name in self.names
            ]
            self._owner = json.dumps({"host": session.host, "pid": os.getpid()})[:-1]
            self._used = session
        return session

    def forget_session(self) -> None:
        """Forget what was agreed on: the session is prepared anew before the next attempt."""
        self._used = None

    async def _try(self, rules: Sequence[Rule], by: By, entries: list[Entry], *, only_if_free: bool) -> Hold | None:
        """``entries`` is filled with those that are made."""
        if not self.names:
            return Hold((), (), self.on_loss)
        session = await self.session()
        queue, admission = self._places[0].queue, session.member(LocalQueues).admission
        if admission.is_full(queue):
            if only_if_free:
                return None
            warn_of_itself(session, self._places[0], by)
        since, started = time.time(), clock.now()
        await admission.enter(queue, self._kind.what)
        try:
            return await self._join(session, rules, by, entries, since, started, only_if_free)
        finally:
            admission.leave(queue)

    async def _join(
        self,
        session: Session,
        rules: Sequence[Rule],
        by: By,
        entries: list[Entry],
        since: float,
        started: float,
        only_if_free: bool,
    ) -> Hold | None:
        # An ``OwnerRecord`` as JSON, put together from parts since it is on the hot path.
        task = asyncio.current_task()
        name = _quoted(task.get_name()) if task else '""'
        value = f'{self._owner}{self._metadata},"task":{name},"since":{since:.3f}}}'.encode()
        for place, rule in zip(self._places, rules, strict=True):
            entries.append(Entry(session, place, value, rule, self._terms, by))
        if len(entries) > 1:
            Group(entries)
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


def _known(entries: Sequence[Entry]) -> str:
    """Why the names were not granted, as far as this process knows without etcd."""
    ahead = [(entry.queue_ref.name, own) for entry in entries if (own := local_predecessor(entry))]
    told = [f"{name!r} was waited for behind {_described(own)}, in this process" for name, own in ahead]
    return "; ".join(["etcd does not answer, so who holds it is not known", *told])


def _described(entry: Entry) -> str:
    return describe(Owner.from_entry(entry.key, entry.value, entry.token, entry.session.id))


def check_session(session: object) -> None:
    """Raise ``TypeError`` for what is no session of the asyncio classes."""
    if session is not None and not isinstance(session, Session):
        raise TypeError(
            f"session must be a codomyrmex.concurrency.Session, not {type(session).__module__}."
            f"{type(session).__qualname__}"
        )
