"""A waiter's shell: it runs a ``Turn`` over a session's watches and readings until the entry is granted.

A local predecessor tells by itself that it has gone. Any other one is watched. With several entries ahead, a deletion
is ambiguous: the predecessor may have released the lock or stopped waiting. The release marker, written in the
transaction of a release, resolves that. Where no marker comes, the queue is read.
"""

from __future__ import annotations

import asyncio

from codomyrmex.concurrency import keys
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, LimitMismatch
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Follow, Notice, Refused, Started
from codomyrmex.concurrency.waitqueue.entry import Entry
from codomyrmex.concurrency.waitqueue.rules import Overlap, View
from codomyrmex.concurrency.waitqueue.turn import Action
from codomyrmex.concurrency.waitqueue.view import entries_in, whole

_LOOK_AGAIN = 10.0  # seconds; etcd may lose a delete at a compacted revision (etcd#18089)
_LOOK_SOON = 0.005  # seconds
_MARKER_FOLLOWS = 0.002  # seconds; the release marker comes in the next message, if at all
_PAUSE = 0.1


class Waiting:
    """One entry's wait. It is a local successor of the entry that it waits for, if that one is of the same session."""

    __slots__ = (
        "_entry",
        "_failure",
        "_follow",
        "_grace",
        "_hurry",
        "_local_predecessor",
        "_marker",
        "_news",
        "_turn",
        "_waiter",
        "_watched",
    )

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._turn = entry.turn
        self._watched: bytes | None = None
        self._local_predecessor: Entry | None = None
        self._follow: Follow | None = None
        self._marker: Follow | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._news: Action | None = None
        self._failure: ConcurrencyError | None = None
        self._hurry = False

    async def until_granted(self, action: Action) -> None:
        """Wait, beginning with ``action``; raises when the entry is lost, or never will be granted."""
        entry = self._entry
        try:
            while action is not Action.GRANT:
                entry.raise_if_lost()
                if action is Action.FAIL:
                    raise LimitMismatch(f"{entry.queue_ref.what} {entry.queue_ref.name!r}: {self._turn.reason}")
                if self._watched != self._turn.key:  # the turn wants another key than the one watched
                    action = self._watch()
                elif action is Action.LOOK:
                    action = self._turn.seen(await look(entry))
                else:
                    action = await self._wait_for_news()
                if self._failure:
                    raise self._failure
                news, self._news = self._news, None
                if news and (news is Action.GRANT or action is Action.WAIT):
                    action = news
        finally:
            self._end()

    def wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def predecessor_left(self, gone: bool, granted: bool) -> None:
        """The local predecessor can tell no more. ``gone``: its key is no longer in etcd.

        If it was granted, alone, it was the first, and no entry can have come between: its end is the grant.
        """
        self._local_predecessor = self._watched = None
        self._news = Action.GRANT if gone and granted else self._turn.forget()
        self.wake()

    def _watch(self) -> Action:
        """Follow the key that the turn wants watched."""
        self._end()
        session, queue_ref = self._entry.session, self._entry.queue_ref
        key = self._watched = self._turn.key
        if predecessor := local_predecessor(self._entry):
            predecessor.successors.add(self)
            self._local_predecessor = predecessor
            return Action.WAIT
        watch = WatchRequest(key or queue_ref.queue, b"" if key else queue_ref.queue_end, deletes_only=True)
        self._follow = session.hub.follow(watch, self._notice)
        if key and not self._turn.sees_all and keys.is_writer(key):
            self._marker = session.hub.follow(WatchRequest(session.layout.release_marker(key)), self._marker_notice)
        if not self._follow.in_step:
            return Action.LOOK  # while the watch is being set up: the entry may be granted already
        if self._marker and self._handed_off(self._marker) is Action.GRANT:
            return Action.GRANT
        last = self._follow.last
        if key and last and last.kv.mod_revision > self._turn.revision:
            return self._turn.deleted(key, last.kv.mod_revision)
        return self._turn.watching(self._follow.revision)

    def _end(self) -> None:
        queue = self._entry.queue_ref.queue
        if self._local_predecessor:
            self._local_predecessor.successors.discard(self)
        if self._follow:
            self._follow.end(queue)
        if self._marker:
            self._marker.end(self._entry.session.layout.release_marker(queue))
        if self._grace:
            self._grace.cancel()
        self._local_predecessor = self._follow = self._marker = self._grace = None

    async def _wait_for_news(self) -> Action:
        """Wait until there are news; after some seconds without any, the queue is to be read again.

        The first wait after a watch began lasts 5 ms. etcd starts a watch "from now" at the revision after the one that
        it read just before. A write between the two leaves the watch behind, and its events come up to 100 ms late.
        """
        patience, self._hurry = (_LOOK_SOON if self._hurry else _LOOK_AGAIN), False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                await self._waiter
        except TimeoutError:
            return self._turn.missed()
        finally:
            self._waiter = None
        return Action.WAIT

    def _notice(self, notice: Notice) -> None:
        """News of the key, or queue, that is watched. News that mean nothing to this entry do not wake it."""
        action = Action.WAIT
        if isinstance(notice, Changed):
            for event in notice.events:
                step = self._turn.deleted(event.kv.key, event.kv.mod_revision)
                action = action if step is Action.WAIT else step
                if step is Action.GRANT:
                    break
            if action is Action.WAIT:
                return
        elif isinstance(notice, Started):
            action = self._turn.watching(notice.revision)
            if notice.resumed or notice.gap:
                action = self._turn.missed()
            self._hurry = True
        else:
            assert isinstance(notice, Refused)
            self._failure = notice.error
        if self._news is not Action.GRANT:
            self._news = action
        if action is Action.LOOK and isinstance(notice, Changed) and self._marker and self._marker.in_step:
            if self._grace:
                self._grace.cancel()
            self._grace = asyncio.get_running_loop().call_later(_MARKER_FOLLOWS, self.wake)
        else:
            self.wake()

    def _marker_notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed) and self._marker and self._handed_off(self._marker) is Action.GRANT:
            self._news = Action.GRANT
            self.wake()

    def _handed_off(self, marker: Follow) -> Action:
        """The step that the last value of the release marker means. An earlier entry's marker under the same key has
        another token."""
        return self._turn.handed_off(marker.last.kv.value) if marker.last else Action.WAIT


async def wait_until_granted(entry: Entry, action: Action) -> None:
    """Wait until ``entry`` is granted; ``action`` is the first step of its turn. Raises the reason when the entry is
    lost, and ``LimitMismatch`` when it never will be granted."""
    waiting = Waiting(entry)
    entry.on_lost = waiting.wake
    try:
        await waiting.until_granted(action)
    finally:
        entry.on_lost = None


def local_predecessor(entry: Entry) -> Entry | None:
    """The entry that ``entry`` waits for, if it is of the same session and will tell its end; etcd need not, then."""
    predecessor = entry.turn.predecessor
    local = entry.local.by_key.get(predecessor.key) if predecessor else None
    if predecessor and isinstance(local, Entry) and local.token == predecessor.create_revision:
        return None if local.is_lost else local
    return None


async def look(entry: Entry) -> View:
    """Read the queue ahead, as it is at ``Turn.needed`` or later; waits while etcd is unavailable."""
    every = entry.queue_ref.whole._replace(serializable=True)
    nearest = every._replace(limit=2, newest_first=True, before=entry.token)
    while True:
        try:
            found = await _read(entry, every if entry.rule.needs_all else nearest)
            if not entry.rule.needs_all and len(entries_in(found)) < len(found.kvs):
                found = await _read(entry, nearest._replace(limit=0))
        except EtcdUnavailable:
            entry.raise_if_lost()
            await asyncio.sleep(_PAUSE)
            continue
        if isinstance(entry.rule, Overlap):
            entry.local.trees.looked(entry.queue_ref.queue, found)
        view = whole(found, entry.token)
        # The nearest two tell whether there is one ahead or more; the number beyond that does not matter.
        return view if entry.rule.needs_all or view.total < 2 else View(view.revision, view.entries[-1:], 2)


async def _read(entry: Entry, get: Get) -> GetResult:
    found = await entry.session.transport.get(get)
    if found.revision < entry.turn.needed:
        found = await entry.session.transport.get(get._replace(serializable=False))
    return found
