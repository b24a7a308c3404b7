"""What the library tells of itself while it runs: one small interface, for metrics, traces or tests.

Nobody observes by default, and that costs nothing but a look at an empty tuple.
"""

from __future__ import annotations

import logging

log = logging.getLogger("codomyrmex.concurrency")


class Observer:
    """Override what you need. Each method is called on the event loop, in the middle of things: it must be quick.

    What it raises is logged and goes no further. ``kind`` is ``"lock"`` or ``"semaphore"``; times are seconds."""

    def granted(self, kind: str, name: str, waited: float, contended: bool) -> None:
        """A lock or permit was granted; ``contended``: it had to be handed over by somebody."""

    def released(self, kind: str, name: str, held: float) -> None:
        """It was given back by its holder."""

    def lost(self, kind: str, name: str, held: float) -> None:
        """Its holder can no longer trust it."""

    def write_rejected(self, kind: str, name: str) -> None:
        """A fenced write was refused, because the grant no longer held."""

    def committed(self, requests: int) -> None:
        """So many requests, of those who join and those who leave, were sent to etcd together."""

    def session_lost(self, session: int) -> None:
        """The lease of that id is gone, and not because the session was closed."""


observers: tuple[Observer, ...] = ()


def observe(observer: Observer) -> None:
    """From here on ``observer`` is told; does nothing if it is already."""
    global observers
    if observer not in observers:
        observers = (*observers, observer)


def ignore(observer: Observer) -> None:
    """``observer`` is told no more."""
    global observers
    observers = tuple(one for one in observers if one is not observer)


def tell(what: str, *facts: object) -> None:
    """Call the method ``what`` of every observer; for the library itself, behind ``if observers``."""
    for observer in observers:
        try:
            getattr(observer, what)(*facts)
        except Exception:
            log.exception("an observer failed: %r", observer)
