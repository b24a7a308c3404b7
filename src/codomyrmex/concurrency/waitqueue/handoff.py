"""Release markers: a releasing holder writes one in the transaction of its release, and its successor reads it.

The end of an entry in mid-queue is ambiguous: it may have released the lock or stopped waiting. The marker says that it
held, so the successor need not read the queue. Only a watch that is open at that moment reads a marker, and a second
later it is rubbish. This session removes it then. The time is handed in.
"""

from __future__ import annotations

_LASTS = 1.0  # seconds


def marker_value(token: int) -> bytes:
    """The value of the release marker of the entry with ``token``."""
    return b"%d" % token


class ReleaseMarkers:
    """The release markers of one session that may be in etcd, by key.

    Writing and removing one marker must not meet in a transaction, so for each key there is one step at a time.
    """

    def __init__(self) -> None:
        self._written: dict[bytes, float | None] = {}  # the time; None while it is being written or removed

    def __bool__(self) -> bool:
        return bool(self._written)

    def begin(self, key: bytes) -> bool:
        """Begin to write the marker. False if it may not be written now; after True, ``written`` must follow."""
        if key in self._written and self._written[key] is None:
            return False
        self._written[key] = None
        return True

    def written(self, key: bytes, now: float) -> None:
        """The marker was written, at ``now`` at the latest."""
        self._written[key] = now

    def expired(self, now: float) -> list[bytes]:
        """The markers to remove. After the removal of each, ``removed`` must follow."""
        old = [key for key, when in self._written.items() if when is not None and now - when >= _LASTS]
        for key in old:
            self._written[key] = None
        return old

    def removed(self, key: bytes) -> None:
        """The marker is no longer in etcd."""
        del self._written[key]
