"""Session members: the objects whose life depends on a session, and the session's calls to them.

A session knows its members by this protocol alone. The wait queues are one member, made at their first use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.supervision import Broken, guarded

log = logging.getLogger("codomyrmex.concurrency")

TICK = 0.5  # seconds


class SessionMember(Protocol):
    """An object whose life depends on the session."""

    def waits(self) -> Iterable[tuple[str, float]]:
        """The kind of each thing that it waits for, and the time on ``clock`` since when. Any thread may call it."""

    def holds(self) -> Iterable[tuple[str, float]]:
        """The kind of each thing that it holds, and the time on ``clock`` since when. Any thread may call it."""

    def tick(self) -> bool:
        """The periodic call, every ``TICK`` seconds. Returns whether the member needs another one."""

    def untrusted(self, reason: ConcurrencyError) -> None:
        """The lease can no longer be trusted, though it may live."""

    def session_closing(self, reason: ConcurrencyError) -> None:
        """The session is about to close in good order."""

    def session_lost(self, reason: ConcurrencyError) -> None:
        """The lease is gone, and every key with it."""


T = TypeVar("T")


def tell_each(members: Iterable[T], tell: Callable[[T], object], session: int) -> None:
    """Call ``tell`` with each of ``members``. An error in one call is logged and does not stop the others."""
    for member in list(members):
        try:
            tell(member)
        except Exception:
            log.exception("a member of the session %016x failed when it was told", session)


class SessionMembers:
    """The members of one session, and the timer of their ticks. The timer runs only while a member needs it: most
    locks are released before it first rings. ``broken`` is called when a tick fails."""

    def __init__(self, broken: Broken) -> None:
        self._members: set[SessionMember] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ring = guarded(self._tick, "the session's tick", broken)
        self._stopped = False

    def add(self, member: SessionMember) -> None:
        self._members.add(member)
        self.need_tick()

    def discard(self, member: SessionMember) -> None:
        self._members.discard(member)

    def need_tick(self) -> None:
        """Make sure that the members get a tick within ``TICK`` seconds."""
        if self._timer is None and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._ring)

    def _tick(self) -> None:
        self._timer = None
        again = [member.tick() for member in list(self._members)]
        if any(again):
            self.need_tick()

    def tell(self, tell: Callable[[SessionMember], object], session: int) -> None:
        """Call ``tell`` with each member; ``session`` is the id for the log."""
        tell_each(self._members, tell, session)

    def stop_ticks(self) -> None:
        self._stopped = True
        if self._timer:
            self._timer.cancel()

    def waits(self) -> list[tuple[str, float]]:
        return [wait for member in list(self._members) for wait in member.waits()]

    def holds(self) -> list[tuple[str, float]]:
        return [hold for member in list(self._members) for hold in member.holds()]
