"""``Loss``, the event that says that a grant or a session is lost, and the reason of a session's orderly end.

Users await it, so it stands apart from the session that sets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Literal

from codomyrmex.concurrency.affinity import Home
from codomyrmex.concurrency.errors import ConcurrencyError, SessionLost


class Loss(asyncio.Event):
    """An event that is set when a grant or a session is lost; it can be awaited directly. ``reason`` is the cause."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.reason: ConcurrencyError | None = None
        self._home = home

    async def wait(self) -> Literal[True]:
        """Wait until the loss; raises ``UsedElsewhere`` in another event loop or process."""
        self._home.check("event")
        return await super().wait()

    def __await__(self) -> Generator[Any, None, bool]:
        return self.wait().__await__()

    def tell(self, reason: ConcurrencyError) -> None:
        """Set the event, with its reason. Only the first reason is kept."""
        if not self.is_set():
            self.reason = reason
            self.set()


class SessionClosed(SessionLost):
    """The session was closed in good order."""
