"""Acquisitions: the request on which locks and semaphores are built."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

from codomyrmex.concurrency import clock, decode
from codomyrmex.concurrency.affinity import current_task, running_loop
from codomyrmex.concurrency.callsite import users_line
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import LockTimeout
from codomyrmex.concurrency.keys import Kind
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.metadata import encode_metadata, encode_note, with_agent
from codomyrmex.concurrency.recipes.timeout_reason import timeout_reason
from codomyrmex.concurrency.session import Session, core_of, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.entry import Entry, QueueRef, Requester, warn_if_it_waits_for_itself
from codomyrmex.concurrency.waitqueue.group import Group
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.join import acquire
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from codomyrmex.concurrency.waitqueue.rules import Rule

_NO_OPTIONS = HoldOptions()
OnDeadlock = Literal["fail", "report"]

T = TypeVar("T")
Ending = Callable[[Sequence[Entry], float, bool], Awaitable[T | None]]
"""The last step of an attempt: it joins the queues, and returns what is held; None if it was to try once only."""


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """A text as JSON, with lone surrogates replaced."""
    return json.dumps(decode.storable(text))


class AcquireRequest:
    """A reusable acquire request: the queues and options of one acquisition.

    ``queues`` are pairs of a kind and a name, which are acquired together. ``attempt`` joins them and returns a
    ``Hold``, or raises ``LockTimeout``. Without a ``session`` the process's default one is used. ``prepare`` is awaited
    once for each session before the request uses it, and again after ``forget_session``. ``reserves`` marks the request
    of a reservation. With ``deadlock="fail"`` a wait that is the youngest in a deadlock raises ``Deadlock``.
    """

    __slots__ = (
        "_given",
        "_metadata",
        "_options",
        "_owner",
        "_prepare",
        "_queue_refs",
        "_used",
        "on_loss",
        "queues",
    )

    def __init__(
        self,
        *,
        session: Session | None,
        queues: Sequence[tuple[Kind, str]],
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
        note: str = "",
        reserves: bool = False,
        deadlock: OnDeadlock = "report",
        options: HoldOptions = _NO_OPTIONS,
        prepare: Callable[[SessionCore], Awaitable[None]] | None = None,
    ) -> None:
        check_session(session)
        if on_loss not in ("cancel", "notify"):
            raise ValueError(f"on_loss must be 'cancel' or 'notify', not {on_loss!r}")
        self._given = session
        self._prepare = prepare
        self._options = options
        self.queues = queues
        self.on_loss: OnLoss = on_loss
        if deadlock not in ("fail", "report"):
            raise ValueError(f"deadlock must be 'fail' or 'report', not {deadlock!r}")
        marks = ',"reserves":true' * reserves + ',"fails":true' * (deadlock == "fail")
        self._metadata = encode_metadata(with_agent(metadata)) + encode_note(note) + marks
        self._used: SessionCore | None = None
        self._queue_refs: list[QueueRef] = []
        self._owner = ""

    def attempt(
        self, rules: Sequence[Rule], timeout: float | None, by: Requester | None = None
    ) -> Coroutine[Any, Any, Hold]:
        """Acquire all the queues, each by its rule, or none.

        ``timeout`` is in seconds and covers the opening of the session too; 0 tries once, None waits as long as it
        takes. ``by`` is the requester if it is not the current task. Raises ``LockTimeout``.
        """
        return self.attempt_to(self._hold, rules, timeout, by) if self.queues else self._hold_nothing()

    async def _hold_nothing(self) -> Hold:
        self._session_here()
        return Hold((), (), self.on_loss, asyncio.current_task())

    async def attempt_to(
        self, ending: Ending[T], rules: Sequence[Rule], timeout: float | None, by: Requester | None = None
    ) -> T:
        """As ``attempt``, with another last step than to hold the queues on the session's lease."""
        check_timeout(timeout)
        session, task = self._session_here(), current_task()
        by = by or Requester.of(task, users_line())
        entries: list[Entry] = []
        got = None
        if not timeout:
            got = await self._try(ending, session, task, rules, by, entries, only_if_free=timeout == 0)
        else:
            try:
                async with asyncio.timeout(timeout) as limit:
                    got = await self._try(ending, session, task, rules, by, entries, only_if_free=False)
            except TimeoutError:
                if not limit.expired():
                    raise
        if got is None:
            were = "were" if len(self.queues) > 1 else "was"
            reason = await timeout_reason(self._used, self._queue_refs, rules, entries)
            raise LockTimeout(f"{self.describe()} {were} not granted within {timeout:g} s: {reason}")
        return got

    async def attempt_now(self, rules: Sequence[Rule], by: Requester | None = None) -> Hold | None:
        """Try once to acquire all the queues; None if one of them is not free."""
        session, task = self._session_here(), current_task()
        by = by or Requester.of(task, users_line())
        return await self._try(self._hold, session, task, rules, by, [], only_if_free=True)

    async def session(self) -> SessionCore:
        """The session of this request, open and prepared."""
        session = await ready(self._given)
        if session is not self._used:
            if self._prepare:
                await self._prepare(session)
            layout = session.layout
            self._queue_refs = [QueueRef.of(kind, layout.queue(name, kind), name) for kind, name in self.queues]
            self._owner = json.dumps({"host": session.host, "pid": os.getpid()})[:-1]
            self._used = session
        return session

    def forget_session(self) -> None:
        """Have the session prepared anew before the next attempt."""
        self._used = None

    def describe(self) -> str:
        """The queues in words, such as "the locks 'a', 'b'"."""
        names: dict[str, list[str]] = {}
        for kind, name in self.queues:
            names.setdefault(kind.what, []).append(repr(name))
        texts = [f"the {what}{'s' if len(of) > 1 else ''} {', '.join(of)}" for what, of in names.items()]
        return " and ".join(texts)

    def _session_here(self) -> SessionCore | None:
        """The session of this request, or None if it is still to be opened and prepared. Raises ``UsedElsewhere``."""
        if self._used and self._used.usable_here():
            return self._used
        if self._given:
            core_of(self._given).home.check("session")
        running_loop()
        return None

    async def _try(
        self,
        ending: Ending[T],
        session: SessionCore | None,
        task: asyncio.Task[Any] | None,
        rules: Sequence[Rule],
        by: Requester,
        entries: list[Entry],
        *,
        only_if_free: bool,
    ) -> T | None:
        """One attempt. It fills ``entries``, from which the reason of a timeout is told."""
        session = session or await self.session()
        first, admission = self._queue_refs[0], session.member(LocalQueues).admission
        queue = first.queue, rules[0].fields
        if admission.is_full(queue):
            if only_if_free:
                return None
            warn_if_it_waits_for_itself(session, first, rules[0], by)
        since, started = time.time(), clock.now()
        await admission.enter(queue, first.what)
        try:
            self._make_entries(session, task, rules, by, entries, since)
            return await ending(entries, started, only_if_free)
        finally:
            admission.leave(queue)

    def _make_entries(
        self,
        session: SessionCore,
        task: asyncio.Task[Any] | None,
        rules: Sequence[Rule],
        by: Requester,
        entries: list[Entry],
        since: float,
    ) -> None:
        # An ``OwnerRecord`` as JSON, put together from parts since it is on the hot path.
        name = _quoted(task.get_name()) if task else '""'
        requester = session.member(LocalQueues).requester(by.who and by.who())
        head = f"{self._owner}{self._metadata}"
        end = f',"task":{name},"requester":{requester},"since":{since:.3f}}}'
        for queue_ref, rule in zip(self._queue_refs, rules, strict=True):
            value = f"{head}{rule.fields}{end}".encode()
            entries.append(Entry(session, queue_ref, value, rule, self._options, by))
        if len(entries) > 1:
            Group(entries)

    async def _hold(self, entries: Sequence[Entry], started: float, only_if_free: bool) -> Hold | None:
        grants = await acquire(entries, started, only_if_free=only_if_free)
        return Hold(entries, grants, self.on_loss, asyncio.current_task()) if grants else None


def check_session(session: object) -> None:
    """Raise ``TypeError`` unless ``session`` is None or a session of the asyncio classes."""
    if session is not None and not isinstance(session, Session):
        raise TypeError(
            f"session must be a codomyrmex.concurrency.Session, not {type(session).__module__}."
            f"{type(session).__qualname__}"
        )
