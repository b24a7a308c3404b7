"""Many watches over one stream, resumed after a break without losing or repeating an event.

A watch begins now, without a start revision: etcd then has it in step at once, while it serves a watch that starts in
the past only every 100 ms. The watcher is told the revision at which its watch began; if its view is at least that new,
it has missed nothing. A broken stream is reopened, at another endpoint if need be, and every watch is resumed behind
the last revision that it saw. If etcd has compacted that revision, the watch starts anew and its watcher is told of the
gap. ``watch_state.py`` decides all this. This module sends and receives.

``follow`` shares one watch among all followers of the same request and keeps it for a second after the last of them. A
waiter that comes back for the same key soon finds the watch in step.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial

from codomyrmex.concurrency.errors import EtcdAuthError, EtcdError, EtcdUnavailable, text_of
from codomyrmex.concurrency.etcd.supervision import Broken, supervise
from codomyrmex.concurrency.etcd.transports.protocol import Event, Transport, WatchMessage, WatchRequest, WatchStream
from codomyrmex.concurrency.etcd.watch_state import Changed, Notice, Refused, Started, Watch, WatchState

__all__ = ["Changed", "Follow", "Notice", "Refused", "Started", "Subscription", "WatchHub", "receive"]

log = logging.getLogger("codomyrmex.concurrency")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_LINGER = 1.0  # seconds

Sink = Callable[[Notice], None]
"""Called with each notice in the event loop; must not block. If it raises, its watch ends and it is told so."""


class Subscription:
    """One watch and its sink."""

    __slots__ = ("_hub", "watch")

    def __init__(self, hub: WatchHub, watch: Watch) -> None:
        self._hub = hub
        self.watch = watch

    def cancel(self) -> None:
        """End the watch. No notice comes afterwards."""
        self._hub.forget(self.watch)


class WatchHub:
    """The watch stream of a session and its subscriptions. The stream opens with the first subscription.

    ``broken`` is called if the stream's task ends although the hub was not closed.
    """

    def __init__(self, transport: Transport, broken: Broken) -> None:
        self._transport = transport
        self._broken = broken
        self._state = WatchState()
        self._sinks: dict[Watch, Sink] = {}
        self._wake = asyncio.Event()
        self._stream: WatchStream | None = None
        self._pause = _FIRST_PAUSE
        self._task: asyncio.Task[None] | None = None
        self._shared: dict[WatchRequest, _Shared] = {}
        self._lingering: dict[bytes, tuple[_Shared, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def subscribe(self, request: WatchRequest, sink: Sink) -> Subscription:
        """Begin a watch of its own for ``sink``."""
        watch = Watch(request, revision=max(0, request.start - 1))
        self._sinks[watch] = sink
        self._state.add(watch)
        if self._task is None:
            self._task = supervise(self._run(), "the watch stream", self._broken)
        self._wake.set()
        return Subscription(self, watch)

    def follow(self, request: WatchRequest, sink: Sink) -> Follow:
        """Watch ``request`` through one watch that all its followers share."""
        shared = self._shared.get(request)
        if shared is None or not shared.watch.active:
            shared = self._shared[request] = _Shared(self, request)
        return Follow(shared, sink)

    def linger(self, group: bytes, shared: _Shared) -> None:
        """Keep a watch without followers for a second. Only the last one of each group is kept."""
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
            shared.subscription.cancel()
            if self._shared.get(shared.request) is shared:
                del self._shared[shared.request]

    def forget(self, watch: Watch) -> None:
        """End ``watch``. No notice for it comes afterwards."""
        if self._sinks.pop(watch, None):
            self._state.remove(watch)
            self._wake.set()

    def leave(self, endpoint: str) -> None:
        """Close the stream if it goes to ``endpoint``, which seems to hang; a new one is opened."""
        if self._stream and self._stream.endpoint == endpoint:
            self._stream.close()

    async def close(self) -> None:
        """End the stream and every watch, without a notice."""
        self._sinks.clear()
        self._state.clear()
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            endpoint = ""
            try:
                stream = await self._transport.watch()
                endpoint = stream.endpoint
                await self._serve(stream)
            except EtcdError as error:
                if isinstance(error, EtcdAuthError) and not error.retryable:
                    self._refuse_all(error)
                self._transport.suspect(endpoint)
            self._state.broke()
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)

    async def _serve(self, stream: WatchStream) -> None:
        """Read and write until the stream ends; raises the reason. Both sides end together."""
        self._stream = stream
        sides = [asyncio.create_task(self._write(stream)), asyncio.create_task(self._read(stream))]
        try:
            ended, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in ended:
                if side.cancelled():
                    raise EtcdUnavailable("the watch stream was cancelled", retryable=True)
                side.result()
        finally:
            self._stream = None
            stream.close()
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)

    async def _write(self, stream: WatchStream) -> None:
        while True:
            self._wake.clear()
            for item in self._state.to_send():
                if isinstance(item, int):
                    await stream.cancel(item)
                else:
                    await stream.create(item)
            await self._wake.wait()

    async def _read(self, stream: WatchStream) -> None:
        while True:
            message = await receive(stream)
            self._dispatch(message)
            self._pause = _FIRST_PAUSE

    def _dispatch(self, message: WatchMessage) -> None:
        if told := self._state.received(message):
            self._tell(*told)
        if self._state.has_requests:
            self._wake.set()

    def _tell(self, watch: Watch, notice: Notice) -> None:
        sink = self._sinks.get(watch)
        if sink is None:
            return
        if isinstance(notice, Refused):
            del self._sinks[watch]
        deliver(sink, notice, partial(self.forget, watch))

    def _refuse_all(self, error: EtcdError) -> None:
        for watch in self._state.clear():
            self._tell(watch, Refused(error))


async def receive(stream: WatchStream) -> WatchMessage:
    """The next message, with its fragments joined if etcd sent it in fragments."""
    message = await stream.receive()
    if not message.fragment:
        return message
    events = list(message.events)
    while message.fragment:
        message = await stream.receive()
        events.extend(message.events)
    message.events = events
    return message


def deliver(sink: Sink, notice: Notice, end: Callable[[], object]) -> None:
    """Call a sink. If it raises, only its own watch is ended, by ``end``, and the sink is told."""
    try:
        sink(notice)
    except Exception as error:
        log.exception("a watcher failed at a notice, and its watch is over")
        end()
        if not isinstance(notice, Refused):
            failure = EtcdError(
                f"the watch is over, because its watcher failed: {type(error).__name__}: {text_of(error)}"
            )
            deliver(sink, Refused(failure), lambda: None)


class _Shared:
    """One watch and its followers."""

    def __init__(self, hub: WatchHub, request: WatchRequest) -> None:
        self.hub = hub
        self.request = request
        self.sinks: dict[Follow, Sink] = {}
        self.last: Event | None = None
        self.subscription = hub.subscribe(request, self._tell)

    @property
    def watch(self) -> Watch:
        return self.subscription.watch

    def _tell(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            self.last = notice.events[-1]
        for follow, sink in list(self.sinks.items()):
            deliver(sink, notice, partial(self.sinks.pop, follow, None))


class Follow:
    """One follower's share of a watch."""

    __slots__ = ("_shared",)

    def __init__(self, shared: _Shared, sink: Sink) -> None:
        self._shared = shared
        shared.sinks[self] = sink

    @property
    def in_step(self) -> bool:
        """True if the watch is known to cover everything after ``revision``."""
        return self._shared.watch.in_step

    @property
    def revision(self) -> int:
        """The revision up to which the watch has delivered its events."""
        return self._shared.watch.revision

    @property
    def last(self) -> Event | None:
        """The last event of the watch. It may be older than this follower."""
        return self._shared.last

    def end(self, group: bytes) -> None:
        """End this follower; no notice comes afterwards. The watch lingers as the last one of its ``group``."""
        if self._shared.sinks.pop(self, None) and not self._shared.sinks:
            self._shared.hub.linger(group, self._shared)
