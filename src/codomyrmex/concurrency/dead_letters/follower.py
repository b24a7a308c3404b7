"""A worker's view of its queue: it follows the queue by one watch and keeps the worker's ``Schedule`` right.

It reads nothing while nothing is due, but for a look at the claims four times a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from codomyrmex.concurrency.dead_letters import record, transitions
from codomyrmex.concurrency.dead_letters.record import Stored
from codomyrmex.concurrency.dead_letters.schedule import Schedule
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import KV, Event, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started
from codomyrmex.concurrency.keys import prefix_end

log = logging.getLogger("codomyrmex.concurrency")

_LOOK_ROUND = 15.0  # seconds between two looks at the claims
_KEPT = 16 << 20  # bytes of records


class Listener(Protocol):
    """The worker, as its follower tells it of the queue. No method blocks."""

    def news(self) -> None:
        """The schedule has changed."""

    def claim_gone(self, entry_id: str) -> None:
        """The claim on an entry was deleted, by this worker or another client."""

    def found_orphan(self, entry_id: str) -> None:
        """A worker died while it ran the entry."""

    def found_stray(self, entry_id: str, claim: KV) -> None:
        """A claim of this session has no runner."""


class Follower:
    """Follows the queue of ``store`` and tells ``listener``."""

    def __init__(self, store: Store, listener: Listener) -> None:
        self._store = store
        self._listener = listener
        self._inbox: asyncio.Queue[Notice] = asyncio.Queue()
        self.schedule = Schedule()
        self._records = _Records(_KEPT)

    def subscribe(self) -> Callable[[], None]:
        """Begin to watch; returns the function that ends it."""
        prefix = self._store.prefix
        request = WatchRequest(prefix, prefix_end(prefix))
        return self._store.session.hub.subscribe(request, self._inbox.put_nowait).cancel

    def take_record(self, entry_id: str) -> Stored | None:
        """The record of a waiting entry as the watch or the last reading showed it, if there was room to keep it. It is
        kept no longer."""
        return self._records.take(entry_id)

    async def follow(self) -> None:
        """Handle the watch's notices until this is cancelled."""
        begun = False
        while True:
            notice = await self._inbox.get()
            if isinstance(notice, Refused):
                raise notice.error
            if isinstance(notice, Started):
                if not begun or notice.gap:
                    await self._read()
                begun = True
            elif isinstance(notice, Changed):
                self._handle(notice.events)
            self._listener.news()

    async def look_round(self) -> None:
        """Look at the claims from time to time, until this is cancelled.

        A claim of this session without a runner is stray. A claim that is gone, although no event said so (etcd may
        lose one), counts as gone.
        """
        while True:
            await asyncio.sleep(_LOOK_ROUND)
            known = self.schedule.claims()
            try:
                found = {self._store.id_of(kv.key): kv async for kv in self._store.all_claims()}
            except EtcdError as error:
                log.debug("the claims could not be looked at: %s", error)
                continue
            for entry_id, kv in found.items():
                if self._store.is_stray(kv):
                    self._listener.found_stray(entry_id, kv)
            for entry_id in self.schedule.compare_claims(known, found):
                self._listener.found_orphan(entry_id)
            self._listener.news()

    async def _read(self) -> None:
        """Read the whole queue at one revision.

        Claims come first: an entry that is found before its claim would look orphaned. The worker hears of each page
        of entries, so a long queue does not keep it waiting.
        """
        store, schedule = self._store, self.schedule
        schedule.restart()
        self._records = _Records(_KEPT)
        revision = 0
        async for page in store.pages(store.claims):
            revision = revision or page.revision
            for kv in page.kvs:
                if kv.lease:  # a claim without a lease was not written by a worker
                    schedule.claimed(store.id_of(kv.key))
        async for page in store.pages(store.entries, revision):
            for kv in page.kvs:
                if stored := store.decode(kv):
                    schedule.found(stored, time.monotonic(), record.now())
                    self._records.keep(stored, len(kv.value))
            self._listener.news()
        schedule.complete(revision)
        for entry_id in schedule.orphans():
            self._listener.found_orphan(entry_id)

    def _handle(self, events: Sequence[Event]) -> None:
        orphans = [entry_id for event in events if (entry_id := self._changed(event))]
        # The transaction that ends an attempt deletes the claim and rewrites the record, and is told in this order of
        # keys. So whether an entry is an orphan is known only once the events of its revision are handled.
        if orphans:
            asyncio.get_running_loop().call_soon(self._tell_orphans, orphans)

    def _tell_orphans(self, entry_ids: Sequence[str]) -> None:
        for entry_id in entry_ids:
            if self.schedule.is_orphan(entry_id):
                self._listener.found_orphan(entry_id)

    def _changed(self, event: Event) -> str | None:
        """Handle an event; returns the id of its entry if that looks orphaned after it."""
        if self.schedule.is_old(event.kv.mod_revision):
            return None
        key = event.kv.key
        if key.startswith(self._store.claims):
            entry_id = self._store.id_of(key)
            self._claim_changed(entry_id, event)
        elif key.startswith(self._store.entries):
            entry_id = self._store.id_of(key)
            self._entry_changed(entry_id, event)
        else:
            return None
        return entry_id if self.schedule.is_orphan(entry_id) else None

    def _claim_changed(self, entry_id: str, event: Event) -> None:
        if event.deleted:
            self.schedule.unclaimed(entry_id)
            self._listener.claim_gone(entry_id)
        elif event.kv.lease:
            self.schedule.claimed(entry_id)

    def _entry_changed(self, entry_id: str, event: Event) -> None:
        if event.deleted:
            self.schedule.removed(entry_id)
            self._records.take(entry_id)
        elif stored := self._store.decode(event.kv):
            self.schedule.changed(stored, time.monotonic())
            self._records.keep(stored, len(event.kv.value))


class _Records:
    """The records of waiting entries, up to ``room`` bytes: a kept one need not be read again before it is claimed."""

    def __init__(self, room: int) -> None:
        self._kept: dict[str, tuple[Stored, int]] = {}
        self._room = room

    def keep(self, stored: Stored, size: int) -> None:
        self.take(stored.entry.id)
        claimable = transitions.allows(stored.entry.state, transitions.Event.CLAIMED, claimed=False)
        if claimable and self._room >= size:
            self._room -= size
            self._kept[stored.entry.id] = stored, size

    def take(self, entry_id: str) -> Stored | None:
        stored, size = self._kept.pop(entry_id, (None, 0))
        self._room += size
        return stored
