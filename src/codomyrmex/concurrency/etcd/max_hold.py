"""Limits of holds: entries that must be deleted by a time, also when the event loop is blocked.

The event loop sets the limits and the keepalive's thread enforces them. A deletion compares the entry's create
revision, so one that arrives late cannot delete a newer entry under the same key.
"""

from __future__ import annotations

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import LeaseClient


class HoldLimits:
    """The keys of a session's limited entries, each with its create revision and its time limit."""

    def __init__(self, client: LeaseClient) -> None:
        self._client = client
        self._limits: dict[bytes, tuple[int, float]] = {}

    def limit(self, key: bytes, create_revision: int, until: float) -> None:
        """Delete ``key`` at ``until``, a time of ``clock.now``, unless the limit is lifted before."""
        self._limits[key] = create_revision, until

    def lift(self, key: bytes) -> None:
        """Remove the limit of ``key``."""
        self._limits.pop(key, None)

    def due(self, now: float) -> list[tuple[bytes, int]]:
        """The keys whose time is over, each with its create revision."""
        return [(key, revision) for key, (revision, until) in self._limits.copy().items() if now >= until]

    def enforce(self, timeout: float) -> None:
        """Delete the entries whose time is over. One that etcd does not answer for is tried again the next time."""
        if not self._limits:
            return
        for key, create_revision in self.due(clock.now()):
            try:
                self._client.remove(key, create_revision, timeout)
            except EtcdError:
                return
            self.lift(key)
