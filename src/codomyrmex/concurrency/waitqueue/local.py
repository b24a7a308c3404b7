"""A session's share of the wait queues: its own entries, admission, key slots and release markers.

It is one session member. The engine finds it by ``session.member(LocalQueues)``, which makes it at the first call; the
session itself knows nothing of queues.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Protocol

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.session_members import tell_each
from codomyrmex.concurrency.waitqueue.admission import Admission
from codomyrmex.concurrency.waitqueue.deadlocks import Deadlocks, Waiter
from codomyrmex.concurrency.waitqueue.handoff import ReleaseMarkers
from codomyrmex.concurrency.waitqueue.key_slots import KeySlots
from codomyrmex.concurrency.waitqueue.known import KnownTrees


class LocalEntry(Waiter, Protocol):
    """An entry, as far as the session's share of the queues knows it."""

    def waits(self) -> tuple[str, float] | None:
        """The kind of thing that it waits for, and the time on ``clock`` since when; None if it does not wait."""

    def holds(self) -> tuple[str, float] | None:
        """The kind of thing that it holds, and the time on ``clock`` since when; None if it does not hold."""

    def tick(self) -> None: ...
    def untrusted(self, reason: ConcurrencyError) -> None: ...
    def session_closing(self, reason: ConcurrencyError) -> None: ...
    def session_lost(self, reason: ConcurrencyError) -> None: ...


class LocalQueues:
    """A session's share of the wait queues.

    ``admission``, ``key_slots`` and ``release_markers`` are per queue. ``trees`` has the entries of others in the trees
    that it uses. ``by_key`` has every entry of the session whose key may be in etcd, ``by_holder`` those that hold, by
    queue and by requester. ``recording`` is held by the one holder that writes its waiting time at the moment.
    ``deadlocks`` looks for cycles of waits.
    """

    def __init__(self, session: SessionCore) -> None:
        self.session = session
        self.admission = Admission()
        self.key_slots = KeySlots()
        self.release_markers = ReleaseMarkers()
        self.trees = KnownTrees(session)
        self.by_key: dict[bytes, LocalEntry] = {}
        self.by_holder: dict[tuple[bytes, object], LocalEntry] = {}
        self.recording = asyncio.Lock()
        self.deadlocks = Deadlocks(session)
        self._requesters: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._last_requester = 0
        self._living: set[LocalEntry] = set()

    def add(self, key: bytes, entry: LocalEntry) -> None:
        """Tell ``entry``, which has joined its queue under ``key``, from now on what becomes of the session."""
        self.by_key[key] = entry
        self._living.add(entry)
        self.session.members.need_tick()

    def discard(self, entry: LocalEntry) -> None:
        """Tell ``entry`` no more: it neither waits nor holds."""
        self._living.discard(entry)

    def requester(self, who: object) -> int:
        """The number of a task or thread in this session; 0 for none."""
        if who is None:
            return 0
        number = self._requesters.get(who)
        if number is None:
            self._last_requester += 1
            number = self._requesters[who] = self._last_requester
        return number

    # The session's calls to its member

    def waits(self) -> Iterator[tuple[str, float]]:
        inside = (entry.waits() for entry in list(self._living))
        return chain((wait for wait in inside if wait), self.admission.waits())

    def holds(self) -> Iterator[tuple[str, float]]:
        return (hold for entry in list(self._living) if (hold := entry.holds()))

    def tick(self) -> bool:
        for entry in list(self._living):
            entry.tick()
        self.deadlocks.tick(list(self._living))
        self.trees.expire()
        if not self.session.lost.is_set():
            self._remove_expired_markers()
        return bool(self._living or self.release_markers or self.trees)

    def untrusted(self, reason: ConcurrencyError) -> None:
        self._tell(lambda entry: entry.untrusted(reason))

    def session_closing(self, reason: ConcurrencyError) -> None:
        self.admission.close(reason)
        self.trees.clear()
        self._tell(lambda entry: entry.session_closing(reason))

    def session_lost(self, reason: ConcurrencyError) -> None:
        self.admission.close(reason)
        self.trees.clear()
        self._tell(lambda entry: entry.session_lost(reason))

    def _tell(self, tell: Callable[[LocalEntry], None]) -> None:
        tell_each(self._living, tell, self.session.id)

    def _remove_expired_markers(self) -> None:
        for key in self.release_markers.expired(clock.now()):
            self.session.remover.remove(key, partial(self._marker_gone, key))

    def _marker_gone(self, key: bytes, _: bool) -> None:
        self.release_markers.removed(key)
