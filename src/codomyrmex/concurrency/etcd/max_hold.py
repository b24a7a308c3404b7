"""Entries that must be gone by a time, whatever the event loop does: a blocked loop gives nothing up by itself.

Kept by the event loop's thread, carried out by the keepalive's. The deletion compares the entry's create revision: one
that arrives late can never delete a newer entry under the same key.
"""

from __future__ import annotations

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import LeaseClient


class HoldLimits:
    def __init__(self, client: LeaseClient) -> None:
        self._client = client
        self._limits: dict[bytes, tuple[int, float]] = {}

    def limit(self, key: bytes, create_revision: int, until: float) -> None:
        """``key`` is deleted at ``until``, a time of ``clock.now``, unless that is lifted before."""
        self._limits[key] = create_revision, until

    def lift(self, key: bytes) -> None:
        self._limits.pop(key, None)

    def enforce(self, timeout: float) -> None:
        """Delete what is due; what etcd does not answer for is tried again the next time."""
        for key, (create_revision, until) in self._limits.copy().items():
            if clock.now() < until:
                continue
            try:
                self._client.remove(key, create_revision, timeout)
            except EtcdError:
                return
            self.lift(key)
