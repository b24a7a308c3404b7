"""Many watches over one stream, resumed after a break without losing or repeating an event.

A watch begins now, with no start revision: etcd then has it in step at once, where one that starts in the past is
served only every 100 ms. It is told the revision it began at; a reader whose view is at least that new has missed
nothing. A broken stream is reopened (at another endpoint if need be) and every watch resumed behind the last
revision it saw; where etcd has compacted that away, the watch starts anew and says so.

``follow`` shares a watch among all who want the same, and keeps it for a second after the last of them:
whoever waits for the same key again soon finds it in step.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from codomyrmex.concurrency.errors import EtcdAuthError, EtcdError
from codomyrmex.concurrency.etcd.transport import Event, Transport, WatchMessage, WatchRequest, WatchStream

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_LINGER = 1.0  # seconds


class Changed(NamedTuple):
    """Events of a watch, in order, none of them delivered before."""

    revision: int
    events: Sequence[Event]


class Started(NamedTuple):
    """The watch covers everything after ``revision``. ``resumed``: a break lies behind it, so what is known should
    be read again. ``gap``: etcd had compacted events away, so what is known must be read again."""

    revision: int
    resumed: bool
    gap: bool


class Refused(NamedTuple):
    """etcd will not serve this watch."""

    error: EtcdError


Notice = Changed | Started | Refused


@dataclass(slots=True, eq=False)
class Subscription:
    """One watch. ``sink`` is called with each notice in the event loop and must not block."""

    hub: WatchHub
    request: WatchRequest
    sink: Callable[[Notice], None]
    revision: int = 0
    watch_id: int | None = None
    active: bool = True
    resumed: bool = False
    gap: bool = False

    @property
    def in_step(self) -> bool:
        """Whether it is known to cover everything after ``revision``."""
        return self.watch_id is not None and self.active

    def cancel(self) -> None:
        """End the watch; no notice comes after."""
        if self.active:
            self.active = False
            self.hub.forget(self)


class WatchHub:
    """The watch stream of a session and the subscriptions it carries. The stream opens with the first of them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._subscriptions: set[Subscription] = set()
        self._by_id: dict[int, Subscription] = {}
        self._asked: deque[Subscription] = deque()
        self._outbox: deque[Subscription | int] = deque()
        self._wake = asyncio.Event()
        self._stream: WatchStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._shared: dict[WatchRequest, _Shared] = {}
        self._lingering: dict[bytes, tuple[_Shared, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def subscribe(self, request: WatchRequest, sink: Callable[[Notice], None]) -> Subscription:
        subscription = Subscription(self, request, sink, revision=max(0, request.start - 1))
        self._subscriptions.add(subscription)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._post(subscription)
        return subscription

    def follow(self, request: WatchRequest, sink: Callable[[Notice], None]) -> Follow:
        """Watch ``request`` together with all others who do."""
        shared = self._shared.get(request)
        if shared is None or not shared.watch.active:
            shared = self._shared[request] = _Shared(self, request)
        return Follow(shared, sink)

    def linger(self, group: bytes, shared: _Shared) -> None:
        """Keep a watch that nobody follows any more for a second; of each group only the last one is kept."""
        former, _ = self._lingering.pop(group, (None, 0.0))
        if former and former is not shared:
            self._let_go(former)
        self._lingering[group] = shared, time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self._end_lingering)

    def _end_lingering(self) -> None:
        now = time.monotonic()
        for group, (shared, since) in list(self._lingering.items()):
            if now - since >= _LINGER:
                del self._lingering[group]
                self._let_go(shared)
        self._timer = None
        if self._lingering:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self._end_lingering)

    def _let_go(self, shared: _Shared) -> None:
        if not shared.sinks:
            shared.watch.cancel()
            if self._shared.get(shared.request) is shared:
                del self._shared[shared.request]

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if subscription.watch_id is not None:
            self._by_id.pop(subscription.watch_id, None)
            self._post(subscription.watch_id)

    def leave(self, endpoint: str) -> None:
        """Leave the stream for a new one if it is with ``endpoint``, which seems to hang."""
        if self._stream and self._stream.endpoint == endpoint:
            self._stream.close()

    async def close(self) -> None:
        self._subscriptions.clear()
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _post(self, item: Subscription | int) -> None:
        self._outbox.append(item)
        self._wake.set()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            endpoint = ""
            try:
                self._stream = await self._transport.watch()
                endpoint = self._stream.endpoint
                writer = asyncio.create_task(self._write(self._stream))
                try:
                    while True:
                        message = await self._receive(self._stream)
                        self._dispatch(message)
                        pause = _FIRST_PAUSE
                finally:
                    self._stream.close()
                    self._stream = None
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)
            except EtcdError as error:
                if isinstance(error, EtcdAuthError) and not error.retryable:
                    self._refuse_all(error)
                self._transport.suspect(endpoint)
            self._reset()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _write(self, stream: WatchStream) -> None:
        while True:
            while self._outbox:
                item = self._outbox.popleft()
                if isinstance(item, int):
                    await stream.cancel(item)
                elif item.active:
                    self._asked.append(item)
                    start = item.revision + 1 if item.revision else 0
                    await stream.create(item.request._replace(start=start))
            self._wake.clear()
            await self._wake.wait()

    @staticmethod
    async def _receive(stream: WatchStream) -> WatchMessage:
        """The next message, put together again if etcd sent it in fragments."""
        message = await stream.receive()
        if not message.fragment:
            return message
        events = list(message.events)
        while message.fragment:
            message = await stream.receive()
            events.extend(message.events)
        message.events = events
        return message

    def _dispatch(self, message: WatchMessage) -> None:
        if message.created:
            self._created(message)
            return
        subscription = self._by_id.get(message.watch_id)
        if subscription is None:
            return
        if message.canceled:
            del self._by_id[message.watch_id]
            subscription.watch_id = None
            if message.compact_revision:
                # What lies between is gone for good: begin anew from now.
                subscription.revision, subscription.gap = 0, True
            self._post(subscription)
            return
        events = [event for event in message.events if event.kv.mod_revision > subscription.revision]
        if events:
            subscription.revision = max(message.revision, events[-1].kv.mod_revision)
            subscription.sink(Changed(subscription.revision, events))

    def _created(self, message: WatchMessage) -> None:
        # Answers come in the order of the requests; a refused one carries no usable id.
        subscription = self._asked.popleft()
        if message.canceled:
            if message.compact_revision and subscription.active:
                subscription.revision, subscription.gap = 0, True
                self._post(subscription)
            elif subscription.active:
                subscription.active = False
                self._subscriptions.discard(subscription)
                subscription.sink(Refused(EtcdAuthError(f"etcd refused a watch: {message.reason}")))
            return
        if not subscription.active:
            self._post(message.watch_id)
            return
        subscription.watch_id = message.watch_id
        self._by_id[message.watch_id] = subscription
        if not subscription.revision:
            subscription.revision = message.revision
        resumed, gap = subscription.resumed, subscription.gap
        subscription.resumed = subscription.gap = False
        subscription.sink(Started(subscription.revision, resumed, gap))

    def _reset(self) -> None:
        """Ask for every watch again on the next stream."""
        self._by_id.clear()
        self._asked.clear()
        self._outbox.clear()
        for subscription in self._subscriptions:
            subscription.watch_id = None
            subscription.resumed = True
            self._post(subscription)

    def _refuse_all(self, error: EtcdError) -> None:
        subscriptions, self._subscriptions = self._subscriptions, set()
        for subscription in subscriptions:
            subscription.active = False
            subscription.sink(Refused(error))


class _Shared:
    """One watch and those who follow it."""

    def __init__(self, hub: WatchHub, request: WatchRequest) -> None:
        self.hub = hub
        self.request = request
        self.sinks: dict[Follow, Callable[[Notice], None]] = {}
        self.last: Event | None = None
        self.watch = hub.subscribe(request, self._tell)

    def _tell(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            self.last = notice.events[-1]
        for sink in list(self.sinks.values()):
            sink(notice)


class Follow:
    """One follower's share of a watch."""

    __slots__ = ("_shared",)

    def __init__(self, shared: _Shared, sink: Callable[[Notice], None]) -> None:
        self._shared = shared
        shared.sinks[self] = sink

    @property
    def in_step(self) -> bool:
        """Whether the watch is known to cover everything after ``revision``."""
        return self._shared.watch.in_step

    @property
    def revision(self) -> int:
        return self._shared.watch.revision

    @property
    def last(self) -> Event | None:
        """The last event of the watch, which may have come before this follower."""
        return self._shared.last

    def end(self, group: bytes) -> None:
        """No notice comes after. The watch itself lingers, as the last one of its ``group``."""
        if self._shared.sinks.pop(self, None) and not self._shared.sinks:
            self._shared.hub.linger(group, self._shared)
