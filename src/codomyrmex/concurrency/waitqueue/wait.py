"""How an entry waits: what it watches, when it reads the queue, who tells it. The thin shell that runs ``rules.Turn``
over a session.

An entry of the same session tells by itself that it has gone. Any other is watched. If there are more ahead than that
one, its end alone does not say whether it held or left from mid-queue; what says so is its baton, written in the
transaction of its release. Where none comes, the queue is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from codomyrmex.concurrency import keys
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, LimitMismatch
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Follow, Notice, Refused, Started
from codomyrmex.concurrency.waitqueue.rules import Action, View
from codomyrmex.concurrency.waitqueue.view import entries_in, whole

if TYPE_CHECKING:
    from codomyrmex.concurrency.waitqueue.entry import Entry

_LOOK_AGAIN = 10.0  # seconds; etcd may lose a delete at a compacted revision (etcd#18089)
_LOOK_SOON = 0.005  # seconds
_BATON_FOLLOWS = 0.002  # seconds; it comes in the next message, if at all
_PAUSE = 0.1


class Waiting:
    """One entry's wait."""

    __slots__ = (
        "_ahead",
        "_baton",
        "_entry",
        "_failure",
        "_follow",
        "_grace",
        "_hurry",
        "_news",
        "_turn",
        "_waiter",
        "_watched",
    )

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._turn = entry.turn
        self._watched: bytes | None = None
        self._ahead: Entry | None = None
        self._follow: Follow | None = None
        self._baton: Follow | None = None
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
                if self._watched != self._turn.key:  # that is what WATCH means, whatever else has happened since
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

    def ahead_left(self, gone: bool, granted: bool) -> None:
        """The entry of this session that it waited for is gone from the queue, or can tell no more.

        One that was granted alone had nobody ahead, and nobody can have come between.
        """
        self._ahead = self._watched = None
        self._news = Action.GRANT if gone and granted else self._turn.forget()
        self.wake()

    def _watch(self) -> Action:
        """Begin to follow what the turn wants watched."""
        self._end()
        session, (_, _, queue, end) = self._entry.session, self._entry.queue_ref
        key = self._watched = self._turn.key
        if ahead := self._entry.own_ahead():
            ahead.behind.add(self)
            self._ahead = ahead
            return Action.WAIT
        watch = WatchRequest(key or queue, b"" if key else end, deletes_only=True)
        self._follow = session.hub.follow(watch, self._notice)
        if key and not self._turn.sees_all and keys.is_writer(key):
            self._baton = session.hub.follow(WatchRequest(session.layout.baton(key)), self._baton_notice)
        if not self._follow.in_step:
            return Action.LOOK  # while the watch is being set up: the way may have become free already
        if self._baton and self._passed_on(self._baton) is Action.GRANT:
            return Action.GRANT
        last = self._follow.last
        if key and last and last.kv.mod_revision > self._turn.revision:
            return self._turn.deleted(key, last.kv.mod_revision)
        return self._turn.watching(self._follow.revision)

    def _end(self) -> None:
        queue = self._entry.queue_ref.queue
        if self._ahead:
            self._ahead.behind.discard(self)
        if self._follow:
            self._follow.end(queue)
        if self._baton:
            self._baton.end(self._entry.session.layout.baton(queue))
        if self._grace:
            self._grace.cancel()
        self._ahead = self._follow = self._baton = self._grace = None

    async def _wait_for_news(self) -> Action:
        """After some seconds without any, what is known is read again.

        The first wait after a watch began is a short one. etcd takes "from now" as the revision after the one it read
        just before, and a write that slips in between leaves the watch behind: its events come up to 100 ms late.
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
        """What happened to the key, or queue, that is watched; what means nothing to this entry wakes nobody."""
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
        if action is Action.LOOK and isinstance(notice, Changed) and self._baton and self._baton.in_step:
            if self._grace:
                self._grace.cancel()
            self._grace = asyncio.get_running_loop().call_later(_BATON_FOLLOWS, self.wake)
        else:
            self.wake()

    def _baton_notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed) and self._baton and self._passed_on(self._baton) is Action.GRANT:
            self._news = Action.GRANT
            self.wake()

    def _passed_on(self, baton: Follow) -> Action:
        """What the baton's last life says; another entry's life of the same key has another token."""
        return self._turn.passed_on(baton.last.kv.value) if baton.last else Action.WAIT


async def look(entry: Entry) -> View:
    """The queue ahead as it is at ``Turn.needed`` or later; waits out an etcd that is away."""
    _, _, queue, end = entry.queue_ref
    every = Get(queue, end, serializable=True)
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
        view = whole(found, entry.token)
        # The nearest two tell whether there is one ahead or more; how many more, nobody needs to know.
        return view if entry.rule.needs_all or view.total < 2 else View(view.revision, view.entries[-1:], 2)


async def _read(entry: Entry, get: Get) -> GetResult:
    found = await entry.session.transport.get(get)
    if found.revision < entry.turn.needed:
        found = await entry.session.transport.get(get._replace(serializable=False))
    return found
