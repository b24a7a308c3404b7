"""The end of a grant after its ``max_hold``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.session_core import SessionCore


class HoldLimit:
    """The limit of one hold: trust in the grant ends at ``until``, a time on ``clock``, and ``over`` is called.

    As with a session's trust, a third of the TTL is left then for the holder to come to an end and release. After that
    the keepalive's thread deletes the key, even if the event loop is blocked.
    """

    __slots__ = ("_session", "_timer", "key", "until")

    def __init__(self, session: SessionCore, key: bytes, token: int, until: float, over: Callable[[], None]) -> None:
        self._session = session
        self.key = key
        self.until = until
        self._timer = asyncio.get_running_loop().call_later(until - clock.now(), over)
        session.hold_limits().limit(key, token, until + session.ttl / 3)

    def stop(self, *, lift: bool) -> None:
        """End the timer; with ``lift``, the key is not deleted either."""
        self._timer.cancel()
        if lift:
            self._session.hold_limits().lift(self.key)
