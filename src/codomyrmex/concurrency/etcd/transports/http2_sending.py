"""The sending half of an HTTP/2 client, without I/O: requests in, bytes out.

A request waits here while the peer's windows or its limit of streams hold it back.
"""

from __future__ import annotations

from collections import deque

from codomyrmex.concurrency.etcd.transports import http2_frames as frames
from codomyrmex.concurrency.etcd.transports import http2_streams as streams
from codomyrmex.concurrency.etcd.transports.http2_frames import ErrorCode, ProtocolError
from codomyrmex.concurrency.etcd.transports.http2_headers import Fields, HeaderEncoder
from codomyrmex.concurrency.etcd.transports.http2_streams import Stream


class Sender:
    """The requests of a connection, and the bytes to be written. ``Connection`` adds what the peer says."""

    def __init__(self) -> None:
        self.ready = False
        self.usable = True  # False once no new request can be sent, now or later
        self._out: list[bytes] = []
        self._encoder = HeaderEncoder()
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()  # for the limit of streams
        self._blocked: dict[Stream, None] = {}  # by a window, in the order of their requests
        self._completed: list[Stream] = []  # those whose end lies in ``_out``
        self._next_id = 1
        self._max_streams = 1 << 31
        self._max_frame = frames.MAX_FRAME_SIZE
        self._first_window = frames.DEFAULT_WINDOW
        self._window = frames.DEFAULT_WINDOW
        self._pings: list[bytes] = []  # that are not answered yet
        self._answers = 0  # to PINGs and SETTINGS, in ``_out``

    @property
    def stream_count(self) -> int:
        """The number of streams that are open or wait to be."""
        return len(self._streams) + len(self._waiting)

    def request(self, fields: Fields, data: bytes, *, end: bool) -> Stream:
        """Open a stream, now or when the peer allows one more, and send ``data``; with ``end`` that is all.

        The connection must be ``usable``, and a request that ends must have data.
        """
        stream = Stream(fields)
        if data:
            stream._to_send.append(memoryview(data))
        stream._ended = end
        if self.ready and not self._waiting and len(self._streams) < self._max_streams:
            self._open(stream)
        else:
            self._waiting.append(stream)
        if self._next_id + 2 * len(self._waiting) > frames.MAX_STREAM_ID:
            self.usable = False
        return stream

    def send(self, stream: Stream, data: bytes) -> None:
        """Send more on a stream whose request has not ended. After the stream's end this does nothing."""
        stream._to_send.append(memoryview(data))
        if stream.id in self._streams:
            self._send(stream)

    def cancel(self, stream: Stream) -> None:
        """Give up a stream: no event for it comes any more, and what is not written never is.

        After the stream's end this does nothing.
        """
        if self._streams.get(stream.id) is stream:
            self._reset(stream, ErrorCode.CANCEL)
        elif stream in self._waiting:
            self._waiting.remove(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """Let the peer send ``size`` more bytes on a stream, because so many have found their place."""
        stream._credit += size
        if stream._credit >= streams.STREAM_WINDOW // 2 and stream.id in self._streams:
            self._out.append(frames.window_update(stream.id, stream._credit))
            stream._room += stream._credit
            stream._credit = 0

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._out.append(frames.frame(frames.PING, 0, 0, b"alive?!\n"))

    def pong(self) -> None:
        """Answer the peer's PINGs.

        A server of gRPC in Go measures by a PING how wide a window it should offer, and sends one with every request if
        each is answered. So an answer may wait a little, but not while requests wait for a window.
        """
        for payload in self._pings:
            self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        self._answers += len(self._pings)
        self._pings.clear()

    def take(self) -> bytes:
        """Return the bytes that are to be written now, and forget them."""
        for stream in self._completed:
            stream.written = True
        self._completed.clear()
        self._answers = 0
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def abandon(self) -> list[Stream]:
        """End every stream, because the connection is lost; returns them. Nothing more is written."""
        self.usable = False
        left = [*self._streams.values(), *self._waiting]
        self._streams.clear()
        self._waiting.clear()
        self._blocked.clear()
        self._completed.clear()
        self._out.clear()
        return left

    def _open_waiting(self) -> None:
        waiting = self._waiting
        while waiting and self.ready and len(self._streams) < self._max_streams:
            self._open(waiting.popleft())

    def _open(self, stream: Stream) -> None:
        stream.id = self._next_id
        self._next_id += 2
        stream._window = self._first_window
        self._streams[stream.id] = stream
        self._send_headers(stream)
        self._send(stream)

    def _send_headers(self, stream: Stream) -> None:
        block = self._encoder.encode(stream._fields)
        size = self._max_frame
        if len(block) <= size:
            self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream.id, block))
            return
        self._out.append(frames.frame(frames.HEADERS, 0, stream.id, block[:size]))
        for start in range(size, len(block), size):
            last = frames.END_HEADERS if start + size >= len(block) else 0
            self._out.append(frames.frame(frames.CONTINUATION, last, stream.id, block[start : start + size]))

    def _send(self, stream: Stream) -> None:
        """Send of a stream's data as much as the windows allow, each frame as large as the peer allows."""
        parts = stream._to_send
        while parts:
            part = parts[0]
            size = min(len(part), self._max_frame, self._window, stream._window)
            if size <= 0:
                self._blocked[stream] = None
                self.pong()
                return
            if size < len(part):
                parts[0] = part[size:]
                flags = 0
            else:
                parts.popleft()
                flags = frames.END_STREAM if stream._ended and not parts else 0
            self._window -= size
            stream._window -= size
            self._out.append(frames.frame(frames.DATA, flags, stream.id, part[:size]))
            if flags:
                self._completed.append(stream)
        self._blocked.pop(stream, None)

    def _send_blocked(self) -> None:
        for stream in list(self._blocked):
            if self._window <= 0:
                return
            self._send(stream)

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        if stream in self._completed:
            self._take_back(stream)
        self._out.append(frames.reset(stream.id, code))
        self._forget(stream)

    def _take_back(self, stream: Stream) -> None:
        """Remove the data of a request from the bytes to be written: since ``written`` is False, it must stay so."""
        self._completed.remove(stream)
        number = frames.NUMBER.pack(stream.id)
        out, self._out = self._out, []
        for each in out:
            if each[3] == frames.DATA and each[5 : frames.HEADER_SIZE] == number:
                self._window += len(each) - frames.HEADER_SIZE
            else:
                self._out.append(each)
        self._send_blocked()

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        if stream in self._blocked:
            del self._blocked[stream]
        if self._waiting:
            self._open_waiting()

    def _widen(self, stream: Stream, increment: int) -> None:
        stream._window += increment
        if stream._window > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "it widens a window too far")
