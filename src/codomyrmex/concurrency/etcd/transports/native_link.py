"""One HTTP/2 connection of an event loop: asyncio's side of ``native_calls.py``."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from codomyrmex.concurrency.etcd.transports.auth import NO_ALPN, Metadata, agreed_on_http2
from codomyrmex.concurrency.etcd.transports.call_timeouts import CallTimeouts
from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.native_calls import Call, Calls

_QUIET = 10.0  # seconds without a byte, with calls under way, until the peer is asked for a sign of life
_PONG_LIMIT = 5.0  # seconds for its answer; etcd answers PINGs more often than every 5 s with GOAWAY
_PONG_DELAY = 0.2  # seconds until the peer's own PINGs are answered: etcd sends one with every request otherwise


class Link(asyncio.Protocol):
    """A connection to ``endpoint``. It takes calls once ``opened`` has returned, as long as it is ``usable``.

    ``closed`` is done when the connection is closed.
    """

    def __init__(self, endpoint: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls = Calls(endpoint)
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._paused = False
        self._writable: list[asyncio.Future[None]] = []
        self._heard_at = time.monotonic()
        self._timeouts = CallTimeouts()
        self._retired = False
        self._watching: asyncio.Task[None] | None = None
        self._pong_timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """True if a new call may begin here."""
        return not self._retired and self._calls.usable

    @property
    def made(self) -> bool:
        """True once the connection exists, and closes its socket itself."""
        return self._transport is not None

    async def opened(self) -> None:
        """Return once the peer has said that it speaks HTTP/2. Raises ``OSError``."""
        await self._opened

    async def call(self, path: str, metadata: Metadata, message: bytes, limit: float) -> Call:
        """Make a call with one message, and return when it is over, after ``limit`` seconds at the latest."""
        call = self._calls.begin(path, metadata, message)
        if call.status:
            return call
        call.waiter = self._loop.create_future()
        began = time.monotonic()
        self._flush()
        try:
            await self._timeouts.answer(call.waiter, limit)
        except TimeoutError:
            call.end("DEADLINE_EXCEEDED", "no answer in time" if call.stream.written else f"{NOT_SENT} in time")
            self.cancel(call)
            if self._heard_at < began:  # a connection on which nothing comes may be dead
                self.retire()
        finally:
            if not call.status:
                self.cancel(call)
        return call

    def begin_stream(self, path: str, metadata: Metadata) -> Call:
        """Begin a call whose messages follow by ``send``."""
        call = self._calls.begin_stream(path, metadata)
        self._flush()
        return call

    async def send(self, call: Call, message: bytes) -> None:
        """Send one more message, once earlier bytes have left."""
        while self._paused and not call.status:
            self._writable.append(self._loop.create_future())
            await self._writable[-1]
        self._calls.send(call, message)
        self._flush()

    async def receive(self, call: Call) -> bytes | None:
        """The next message of a call, or None when the call is over. One task may wait at a time."""
        while (message := self._calls.next_message(call)) is None and not call.status:
            call.waiter = self._loop.create_future()
            await call.waiter
        self._flush()
        return message

    def cancel(self, call: Call) -> None:
        """End a call whose answer nobody wants. After its end this does nothing."""
        self._calls.cancel(call)
        _wake(call)
        self._flush()
        self._close_if_unused()

    def retire(self) -> None:
        """Take no new calls, and close once the last one is over."""
        self._retired = True
        self._close_if_unused()

    async def close(self) -> None:
        """Close the connection, and end its calls."""
        self._abort()
        if self._transport:
            await self.closed
        if self._watching:
            await asyncio.gather(self._watching, return_exceptions=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer, if TLS has agreed on HTTP/2."""
        self._transport = made = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        made.set_write_buffer_limits(high=1, low=0)  # a request that waits here is known not to be sent
        if not agreed_on_http2(made.get_extra_info("ssl_object")):
            self._calls.take()  # it would not understand them
            self._lose(NO_ALPN)
            return
        self._flush()
        self._watching = self._loop.create_task(self._watch_over())

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the calls, and wake those with news."""
        self._heard_at = time.monotonic()
        news = self._calls.receive(data)
        for call in news:
            _wake(call)
        if self._calls.pinged and self._pong_timer is None:
            self._pong_timer = self._loop.call_later(_PONG_DELAY, self._pong)
        self._flush()
        if self._calls.failure:
            self._abort()
        elif not self._opened.done() and self._calls.ready:
            self._opened.set_result(None)
        self._close_if_unused()

    def pause_writing(self) -> None:
        """Keep further requests back until the peer has taken the earlier ones."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what was kept back."""
        self._paused = False
        self._flush()
        writable, self._writable = self._writable, []
        for waiter in writable:
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """End every call: those that were not sent are known not to be applied."""
        self._lose(reason_of(error) if error else "")
        if not self.closed.done():
            self.closed.set_result(None)

    def _lose(self, reason: str) -> None:
        for call in self._calls.lost(reason):
            _wake(call)
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(self._calls.failure))
            self._opened.exception()  # whoever opens it may be gone
        self.resume_writing()
        self._abort()

    def _abort(self) -> None:
        for timer in (self._watching, self._pong_timer):
            if timer:
                timer.cancel()
        if self._transport:
            self._transport.abort()

    def _flush(self) -> None:
        if not self._paused and self._transport and not self._transport.is_closing():
            data = self._calls.take()
            if data:
                self._transport.write(data)

    def _close_if_unused(self) -> None:
        if not self.usable and not self._calls.count:
            self._abort()

    def _pong(self) -> None:
        self._pong_timer = None
        self._calls.pong()
        self._flush()

    async def _watch_over(self) -> None:
        """Ask a quiet peer for a sign of life, and give it up if none comes.

        A loop that ends by ``asyncio.run`` cancels this task, which closes the connection if nobody else has.
        """
        asked_at, pause = 0.0, _QUIET
        try:
            while True:
                await asyncio.sleep(pause)
                now = time.monotonic()
                quiet = now - self._heard_at
                if asked_at > self._heard_at:
                    self._lose(f"it gave no sign of life for {quiet:.0f} s")
                    return
                if quiet >= _QUIET and self._calls.count:
                    asked_at, pause = now, _PONG_LIMIT
                    self._calls.ping()
                    self._flush()
                else:
                    pause = _QUIET - quiet if quiet < _QUIET else _QUIET
        finally:
            self._abort()


def _wake(call: Call) -> None:
    waiter = call.waiter
    if waiter is not None and (call.status or not call.unary) and not waiter.done():
        waiter.set_result(None)


def reason_of(error: Exception) -> str:
    """The text of an error of a socket, some of which have none."""
    return str(error) or type(error).__name__
