"""The interface for observers of the running library, such as metrics, traces or tests.

By default there is no observer, which costs one look at an empty tuple per event.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger("codomyrmex.concurrency")


class Observer:
    """An observer; override the methods you need.

    The event loop calls them in the middle of its work, so they must be quick. An error that one raises is logged and
    goes no further. ``kind`` is ``"lock"``, ``"semaphore"``, ``"path lock"``, ``"election"`` for a term, ``"group"``
    for a membership, or ``"rate limit"`` for a part of a slice. Times are seconds.
    """

    def granted(self, kind: str, name: str, waited: float, contended: bool) -> None:
        """A lock or permit was granted; ``contended`` means that another holder had to release it first."""

    def released(self, kind: str, name: str, held: float) -> None:
        """The holder released a lock or permit."""

    def lost(self, kind: str, name: str, held: float) -> None:
        """The holder of a lock or permit can no longer trust it."""

    def write_rejected(self, kind: str, name: str) -> None:
        """A fenced write was refused, because its grant no longer holds."""

    def committed(self, requests: int) -> None:
        """One transaction carried this number of requests of entries that join or leave."""

    def deadlock(self, waiters: int) -> None:
        """A waiter of this session is one of so many waiters that wait for each other in a cycle."""

    def session_lost(self, session: int) -> None:
        """The session with this lease id lost its lease, although it was not closed."""

    def rate_granted(self, name: str, cost: Mapping[str, int], waited: float) -> None:
        """A rate limiter granted a call its cost, which has an amount for each dimension."""

    def rate_used(self, name: str, given_back: Mapping[str, int], overdraft: Mapping[str, int]) -> None:
        """A call told what it used: the amounts by dimension that it gives back, and those beyond its cost."""

    def rate_paused(self, name: str, seconds: float) -> None:
        """This process paused a rate limiter for the whole fleet."""


observers: tuple[Observer, ...] = ()


def observe(observer: Observer) -> None:
    """Add an observer, unless it is there already."""
    global observers
    if observer not in observers:
        observers = (*observers, observer)


def ignore(observer: Observer) -> None:
    """Remove an observer."""
    global observers
    observers = tuple(one for one in observers if one is not observer)


def tell(what: str, *facts: object) -> None:
    """Call the method ``what`` of every observer; the library calls this behind ``if observers``."""
    for observer in observers:
        try:
            getattr(observer, what)(*facts)
        except Exception:
            log.exception("an observer failed: %r", observer)
