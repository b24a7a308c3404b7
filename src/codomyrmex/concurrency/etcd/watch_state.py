"""The state of the watches on one stream: pure. It turns messages and breaks into notices for the watchers.

The revision of a watch is the revision up to which its events have been delivered. Only three things move it: the
answer to its creation, the events themselves, and a gap. The header of a message with events does not. etcd serves a
watcher that lags in batches of 1,000 revisions, and their header carries the *store's* current revision. A client that
took that revision for the watch's own would drop the following batches as old.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from codomyrmex.concurrency.errors import EtcdAuthError, EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import Event, WatchMessage, WatchRequest


class Changed(NamedTuple):
    """Events of a watch, in order, none of them delivered before. ``revision`` is that of the last one."""

    revision: int
    events: Sequence[Event]


class Started(NamedTuple):
    """The watch covers everything after ``revision``.

    ``resumed`` is true after a broken stream: the watcher should read again. ``gap`` is true if etcd had compacted
    events away: the watcher must read again.
    """

    revision: int
    resumed: bool
    gap: bool


class Refused(NamedTuple):
    """The watch is over: etcd does not serve it, or its sink failed."""

    error: EtcdError


Notice = Changed | Started | Refused


@dataclass(slots=True, eq=False)
class Watch:
    """One watch. ``watch_id`` is etcd's; None until etcd has created the watch on the present stream."""

    request: WatchRequest
    revision: int = 0
    watch_id: int | None = None
    active: bool = True
    resumed: bool = False
    gap: bool = False

    @property
    def in_step(self) -> bool:
        """True if the watch is known to cover everything after ``revision``."""
        return self.watch_id is not None and self.active


class WatchState:
    """Every watch, the requests to send next, and the creations that etcd has not answered yet."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._by_id: dict[int, Watch] = {}
        self._asked: deque[Watch] = deque()
        self._outbox: deque[Watch | int] = deque()

    def add(self, watch: Watch) -> None:
        """Create ``watch`` with the next requests."""
        self._watches.add(watch)
        self._outbox.append(watch)

    def remove(self, watch: Watch) -> None:
        """Cancel ``watch``; no notice for it comes afterwards."""
        watch.active = False
        self._watches.discard(watch)
        if watch.watch_id is not None:
            self._by_id.pop(watch.watch_id, None)
            self._outbox.append(watch.watch_id)

    def clear(self) -> list[Watch]:
        """Remove every watch without cancelling it in etcd; returns the watches."""
        watches = list(self._watches)
        for watch in watches:
            watch.active = False
        self._watches.clear()
        return watches

    @property
    def has_requests(self) -> bool:
        """True if there is anything to send."""
        return bool(self._outbox)

    def to_send(self) -> Iterator[WatchRequest | int]:
        """The requests to send, in order: a watch to create, or the id of one to cancel."""
        while self._outbox:
            item = self._outbox.popleft()
            if isinstance(item, int):
                yield item
            elif item.active:
                self._asked.append(item)
                yield item.request._replace(start=item.revision + 1 if item.revision else 0)

    def received(self, message: WatchMessage) -> tuple[Watch, Notice] | None:
        """The watch and the notice that a message (with its fragments joined) results in; None if in none."""
        if message.created:
            return self._created(message)
        watch = self._by_id.get(message.watch_id)
        if watch is None:
            return None
        if message.canceled:
            del self._by_id[message.watch_id]
            watch.watch_id = None
            self._again(watch, message)
            return None
        events = [event for event in message.events if event.kv.mod_revision > watch.revision]
        if not events:
            return None
        watch.revision = events[-1].kv.mod_revision
        return watch, Changed(watch.revision, events)

    def broke(self) -> None:
        """The stream has broken: every watch is created again on the next one."""
        self._by_id.clear()
        self._asked.clear()
        self._outbox.clear()
        for watch in self._watches:
            watch.watch_id = None
            watch.resumed = True
            self._outbox.append(watch)

    def _created(self, message: WatchMessage) -> tuple[Watch, Notice] | None:
        # Answers come in the order of the requests; a refused one carries no usable id.
        watch = self._asked.popleft()
        if message.canceled:
            if not watch.active:
                return None
            if message.compact_revision:
                self._again(watch, message)
                return None
            watch.active = False
            self._watches.discard(watch)
            return watch, Refused(EtcdAuthError(f"etcd refused a watch: {message.reason}"))
        if not watch.active:
            self._outbox.append(message.watch_id)
            return None
        watch.watch_id = message.watch_id
        self._by_id[message.watch_id] = watch
        watch.revision = watch.revision or message.revision
        notice = Started(watch.revision, watch.resumed, watch.gap)
        watch.resumed = watch.gap = False
        return watch, notice

    def _again(self, watch: Watch, message: WatchMessage) -> None:
        """Create again a watch that etcd ended. It starts from now if etcd has compacted the events in between."""
        if message.compact_revision:
            watch.revision, watch.gap = 0, True
        self._outbox.append(watch)
