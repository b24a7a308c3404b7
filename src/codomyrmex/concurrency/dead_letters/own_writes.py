"""Records that this process has written and that its watch has not shown yet. Pure."""

from __future__ import annotations

from codomyrmex.concurrency.dead_letters.record import DeadLetter


class OwnWrites:
    """Records by their keys and values in etcd: the event that brings such a value back need not be decoded.

    Above ``room`` bytes the oldest records go, for their events were lost, or nobody watches.
    """

    def __init__(self, room: int = 16 << 20) -> None:
        self._records: dict[tuple[bytes, bytes], DeadLetter] = {}
        self._room = room

    def note(self, key: bytes, value: bytes, entry: DeadLetter) -> None:
        """``entry`` is about to be written as ``value``."""
        self.take(key, value)
        self._records[key, value] = entry
        self._room -= len(value)
        while self._room < 0:
            self.take(*next(iter(self._records)))

    def take(self, key: bytes, value: bytes) -> DeadLetter | None:
        """The record that was written as ``value``, once; None if it was not written here."""
        entry = self._records.pop((key, value), None)
        if entry:
            self._room += len(value)
        return entry
