"""Which batons of this session are in etcd: who releases a lock that many wait for says there that it held it.

A baton is read by whoever watches it at that moment, and rubbish a second later. Writing and removing one must not meet
in a transaction, so there is one step at a time. Pure.
"""

from __future__ import annotations

_LASTS = 1.0  # seconds


class Batons:
    def __init__(self) -> None:
        self._written: dict[bytes, float | None] = {}  # when; None while it is being written or removed

    def __bool__(self) -> bool:
        return bool(self._written)

    def take(self, key: bytes) -> bool:
        """Whether it may be written now; then ``written`` must follow."""
        if key in self._written and self._written[key] is None:
            return False
        self._written[key] = None
        return True

    def written(self, key: bytes, now: float) -> None:
        self._written[key] = now

    def stale(self, now: float) -> list[bytes]:
        """Those to remove; of each, ``gone`` must be told."""
        old = [key for key, when in self._written.items() if when is not None and now - when >= _LASTS]
        for key in old:
            self._written[key] = None
        return old

    def gone(self, key: bytes) -> None:
        del self._written[key]
