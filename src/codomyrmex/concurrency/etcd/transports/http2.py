"""The client's side of an HTTP/2 connection (RFC 9113), as far as gRPC needs it, without I/O.

Bytes from the peer go in by ``receive``, which returns events. Requests go in by ``request`` and ``send``, and ``take``
returns the bytes to be written. A request waits here while the peer's windows or its limit of streams hold it back.
After a failure of the protocol the last event is ``Failed``, and nothing more is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from codomyrmex.concurrency.etcd.transports import http2_frames as frames
from codomyrmex.concurrency.etcd.transports.http2_frames import ErrorCode, ProtocolError, Setting
from codomyrmex.concurrency.etcd.transports.http2_headers import Fields, HeaderDecoder, HeaderEncoder

_STREAM_WINDOW = 4 << 20  # bytes that a peer may send on a stream before the reader has taken them
_CONNECTION_WINDOW = 64 << 20  # the same on all streams; it is renewed at once, so no stream can block another
_MAX_HEADERS = 64 << 10  # bytes of a header list
_MAX_ANSWERS = 1_000  # of PINGs and SETTINGS that wait to be taken; a peer that wants more does not read them


class Stream:
    """One request and its answer. ``owner`` is its user's to set."""

    __slots__ = ("_credit", "_ended", "_fields", "_headed", "_room", "_to_send", "_window", "id", "owner", "written")

    def __init__(self, fields: Fields) -> None:
        self.id = 0  # until it is opened
        self.owner: Any = None
        self.written = False  # True once the end of the request has been taken
        self._fields = fields
        self._to_send: deque[memoryview] = deque()
        self._ended = False  # True once nothing more will be added to ``_to_send``
        self._headed = False  # True once headers have come
        self._window = 0  # bytes that may be sent
        self._room = _STREAM_WINDOW  # bytes that may come
        self._credit = 0  # bytes that were consumed, and that the peer has not been told of

    def _unprocessed(self, refused: bool) -> bool:
        """True if the peer has certainly not acted on the request; ``refused`` is True if it says so."""
        return (refused and not self._headed) or (self._ended and not self.written)


class Headers(NamedTuple):
    """Headers have come, or with ``end`` perhaps the trailers."""

    stream: Stream
    fields: Fields
    end: bool


class Data(NamedTuple):
    """Bytes of an answer have come. ``consumed`` must be told of ``size``, which includes padding."""

    stream: Stream
    data: bytes
    size: int
    end: bool


class Reset(NamedTuple):
    """The peer has given up a stream. With ``unprocessed`` it has certainly not acted on the request."""

    stream: Stream
    code: int
    unprocessed: bool


class Ready(NamedTuple):
    """The peer's first settings have come: it speaks HTTP/2, and requests may be sent."""


class Pinged(NamedTuple):
    """The peer asks for a sign of life, which ``pong`` gives."""


class GoingAway(NamedTuple):
    """The peer takes no new streams on this connection."""

    code: int
    text: str


class Failed(NamedTuple):
    """The peer broke the protocol; ``take`` has the last words, and the connection must be closed."""

    reason: str


Event = Headers | Data | Reset | Ready | Pinged | GoingAway | Failed


class Connection:
    """The state of a connection; its first bytes are there to be taken."""

    def __init__(self) -> None:
        self.ready = False
        self.usable = True  # False once no new request can be sent, now or later
        self.going_away = False
        self.failed = ""
        self._out: list[bytes] = [
            frames.PREFACE,
            frames.settings(
                (
                    (Setting.ENABLE_PUSH, 0),
                    (Setting.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
                    (Setting.MAX_HEADER_LIST_SIZE, _MAX_HEADERS),
                )
            ),
            frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW),
        ]
        self._in = b""
        self._encoder = HeaderEncoder()
        self._decoder = HeaderDecoder(_MAX_HEADERS)
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()  # for the limit of streams
        self._blocked: dict[Stream, None] = {}  # by a window, in the order of their requests
        self._completed: list[Stream] = []  # those whose end lies in ``_out``
        self._next_id = 1
        self._max_streams = 1 << 31
        self._max_frame = frames.MAX_FRAME_SIZE
        self._first_window = frames.DEFAULT_WINDOW
        self._window = frames.DEFAULT_WINDOW
        self._credit = 0
        self._pings: list[bytes] = []  # that are not answered yet
        self._answers = 0  # to PINGs and SETTINGS, in ``_out``
        self._block: tuple[int, int, bytearray] | None = None  # a header block that goes on in the next frame
        self._events: list[Event] = []

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
        if stream._credit >= _STREAM_WINDOW // 2 and stream.id in self._streams:
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

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the peer, and return what they mean."""
        if self.failed:
            return []
        buffer = self._in + data if self._in else data
        at, end = 0, len(buffer)
        events = self._events = []
        try:
            while end - at >= frames.HEADER_SIZE:
                high, low, kind, flags, stream_id = frames.HEAD.unpack_from(buffer, at)
                size = high << 16 | low
                if not self.ready and (kind != frames.SETTINGS or flags & frames.ACK):
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, _first_words(buffer))
                if size > frames.MAX_FRAME_SIZE:
                    text = f"it sent a frame of {size} bytes, larger than it may"
                    raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, text)
                following = at + frames.HEADER_SIZE + size
                if following > end:
                    break
                payload = buffer[at + frames.HEADER_SIZE : following]
                at = following
                stream_id &= frames.MAX_STREAM_ID
                if self._block and kind != frames.CONTINUATION:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "it interrupts a header block")
                if kind < len(_READERS):
                    _READERS[kind](self, flags, stream_id, payload)
        except ProtocolError as error:
            self._fail(error)
        self._in = buffer[at:]
        return events

    def ended(self) -> str:
        """The reason to tell when the peer has closed the connection."""
        if self.ready:
            return "it closed the connection"
        if self._in:
            return _first_words(self._in)
        return "it closed the connection before it said that it speaks HTTP/2"

    def _fail(self, error: ProtocolError) -> None:
        self.usable = False
        self.failed = str(error)
        self._out.append(frames.goaway(error.code, self.failed))
        self._events.append(Failed(self.failed))

    def _open_stream(self, stream_id: int) -> Stream | None:
        """The stream of a frame; None if it has ended. Raises ``ProtocolError`` if it never began."""
        if stream_id == 0 or stream_id % 2 == 0 or stream_id >= self._next_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"it sent a frame for stream {stream_id}, which is not open")
        return self._streams.get(stream_id)

    def _read_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        stream = self._open_stream(stream_id)
        data = frames.unpadded(flags, payload)
        self._credit += size
        if self._credit >= _CONNECTION_WINDOW // 2:
            self._out.append(frames.window_update(0, self._credit))
            self._credit = 0
        if stream is None:
            return
        stream._room -= size
        if not stream._headed or stream._room < 0:
            self._give_up(stream, ErrorCode.FLOW_CONTROL_ERROR if stream._headed else ErrorCode.PROTOCOL_ERROR)
            return
        end = bool(flags & frames.END_STREAM)
        self._events.append(Data(stream, data, size, end))
        if end:
            self._answered(stream)

    def _read_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._open_stream(stream_id)
        block = frames.unpadded(flags, payload)
        if flags & frames.HAS_PRIORITY:
            if len(block) < 5:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "its HEADERS are too short")
            block = block[5:]
        if flags & frames.END_HEADERS:
            self._headed(stream_id, flags, block)
        else:
            self._block = stream_id, flags, bytearray(block)

    def _read_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "it continues a header block that it did not begin")
        _, began, block = self._block
        block += payload
        if len(block) > _MAX_HEADERS or not (payload or flags & frames.END_HEADERS):
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "it sends headers without an end")
        if flags & frames.END_HEADERS:
            self._block = None
            self._headed(stream_id, began, bytes(block))

    def _headed(self, stream_id: int, flags: int, block: bytes) -> None:
        """Read a whole header block. It must be decoded even if nobody wants it, for it may change the table."""
        fields = self._decoder.decode(block)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        end = bool(flags & frames.END_STREAM)
        if not end:
            if stream._headed:
                self._give_up(stream, ErrorCode.PROTOCOL_ERROR)  # trailers end a stream
                return
            if fields and fields[0][0] == ":status" and fields[0][1].startswith("1"):
                return  # an interim answer
        stream._headed = True
        self._events.append(Headers(stream, fields, end))
        if end:
            self._answered(stream)

    def _answered(self, stream: Stream) -> None:
        """The peer has said all. If we have not, the rest is of no use."""
        if stream._to_send or not stream._ended:
            self._reset(stream, ErrorCode.CANCEL)
        else:
            self._forget(stream)

    def _give_up(self, stream: Stream, code: ErrorCode) -> None:
        self._events.append(Reset(stream, code, stream._unprocessed(False)))
        self._reset(stream, code)

    def _read_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0 or len(payload) != 5:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "its PRIORITY has a wrong form")

    def _read_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        (code,) = _numbers(frames.NUMBER.size, payload, "RST_STREAM")
        stream = self._open_stream(stream_id)
        if stream:
            self._events.append(Reset(stream, code, stream._unprocessed(code == ErrorCode.REFUSED_STREAM)))
            self._forget(stream)

    def _read_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "it sent SETTINGS for a stream")
        if flags & frames.ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "it acknowledged settings with settings")
            return
        for key, value in frames.read_settings(payload):
            self._set(key, value)
        self._check_flood()
        self._answers += 1
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if not self.ready:
            self.ready = True
            self._events.append(Ready())
        self._send_blocked()
        self._open_waiting()

    def _set(self, key: int, value: int) -> None:
        if key == Setting.HEADER_TABLE_SIZE:
            self._encoder.resize(value)
        elif key == Setting.ENABLE_PUSH and value:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "it wants to push, as only a client may allow")
        elif key == Setting.MAX_CONCURRENT_STREAMS:
            self._max_streams = value
        elif key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "its first window is too large")
            for stream in self._streams.values():
                self._widen(stream, value - self._first_window)
            self._first_window = value
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.MAX_FRAME_SIZE <= value < 1 << 24:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"it allows frames of {value} bytes, which cannot be")
            self._max_frame = value

    def _widen(self, stream: Stream, increment: int) -> None:
        stream._window += increment
        if stream._window > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "it widens a window too far")

    def _read_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "it pushes, although that was forbidden")

    def _read_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "its PING has a wrong form")
        if not flags & frames.ACK:  # an answer is a sign of life, as any byte is
            self._check_flood()
            self._pings.append(payload)
            self._events.append(Pinged())
            if self._blocked or self.going_away:
                self.pong()

    def _check_flood(self) -> None:
        if self._answers + len(self._pings) >= _MAX_ANSWERS:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "it floods the connection with PINGs or SETTINGS")

    def _read_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < frames.TWO_NUMBERS.size:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "its GOAWAY has a wrong form")
        last, code = frames.TWO_NUMBERS.unpack_from(payload)
        last &= frames.MAX_STREAM_ID
        self.usable = False
        self.going_away = True
        text = payload[frames.TWO_NUMBERS.size :].decode(errors="replace")
        self._events.append(GoingAway(code, text))
        refused = [stream for stream in self._streams.values() if stream.id > last]
        for stream in refused:
            del self._streams[stream.id]
            self._blocked.pop(stream, None)
        for stream in (*refused, *self._waiting):
            self._events.append(Reset(stream, ErrorCode.REFUSED_STREAM, stream._unprocessed(True)))
        self._waiting.clear()

    def _read_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        (increment,) = _numbers(frames.NUMBER.size, payload, "WINDOW_UPDATE")
        increment &= frames.MAX_WINDOW
        if stream_id == 0:
            self._window += increment
            if not increment or self._window > frames.MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "it widens the connection's window wrongly")
            self._send_blocked()
            return
        stream = self._open_stream(stream_id)
        if stream is None:
            return
        if not increment or stream._window + increment > frames.MAX_WINDOW:
            self._give_up(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        self._widen(stream, increment)
        if stream in self._blocked:
            self._send(stream)


_READERS: tuple[Callable[[Connection, int, int, bytes], None], ...] = (
    Connection._read_data,
    Connection._read_headers,
    Connection._read_priority,
    Connection._read_reset,
    Connection._read_settings,
    Connection._read_push,
    Connection._read_ping,
    Connection._read_goaway,
    Connection._read_window_update,
    Connection._read_continuation,
)  # by the number of the frame's type; other types are ignored


def _numbers(size: int, payload: bytes, name: str) -> tuple[int, ...]:
    if len(payload) != size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"its {name} has a wrong length")
    return frames.NUMBER.unpack(payload)


def _first_words(data: bytes) -> str:
    """The reason for which a peer's first bytes are not HTTP/2."""
    if data.startswith(b"HTTP/"):
        return "it speaks HTTP/1, not HTTP/2"
    if data[:2] in (b"\x15\x03", b"\x16\x03"):  # an alert or a handshake
        return "it speaks TLS"
    return "it does not speak HTTP/2"
