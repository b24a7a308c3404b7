"""The client's side of an HTTP/2 connection (RFC 9113), as far as gRPC needs it, without I/O.

This module has the receiving half: bytes from the peer go in by ``receive``, which returns events. The sending half is
``http2_sending.py``: requests go in by ``request`` and ``send``, and ``take`` returns the bytes to be written. After a
failure of the protocol the last event is ``Failed``, and nothing more is read.
"""

from __future__ import annotations

from collections.abc import Callable

from codomyrmex.concurrency.etcd.transports import http2_frames as frames
from codomyrmex.concurrency.etcd.transports import http2_streams as streams
from codomyrmex.concurrency.etcd.transports.http2_frames import ErrorCode, ProtocolError, Setting
from codomyrmex.concurrency.etcd.transports.http2_headers import HeaderDecoder
from codomyrmex.concurrency.etcd.transports.http2_sending import Sender
from codomyrmex.concurrency.etcd.transports.http2_streams import (
    Data,
    Event,
    Failed,
    GoingAway,
    Headers,
    Pinged,
    Ready,
    Reset,
    Stream,
)

_CONNECTION_WINDOW = 64 << 20  # bytes that a peer may send; it is renewed at once, so no stream can block another
_MAX_HEADERS = 64 << 10  # bytes of a header list
_MAX_ANSWERS = 1_000  # of PINGs and SETTINGS that wait to be taken; a peer that wants more does not read them


class Connection(Sender):
    """The state of a connection; its first bytes are there to be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.going_away = False
        self.failed = ""
        self._in = b""
        self._decoder = HeaderDecoder(_MAX_HEADERS)
        self._credit = 0
        self._block: tuple[int, int, bytearray] | None = None  # a header block that goes on in the next frame
        self._events: list[Event] = []
        limits = (
            (Setting.ENABLE_PUSH, 0),
            (Setting.INITIAL_WINDOW_SIZE, streams.STREAM_WINDOW),
            (Setting.MAX_HEADER_LIST_SIZE, _MAX_HEADERS),
        )
        self._out += (
            frames.PREFACE,
            frames.settings(limits),
            frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW),
        )

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
    if data[:4] == b"HTTP":
        return "it speaks HTTP/1, not HTTP/2"
    if data[:2] in (b"\x15\x03", b"\x16\x03"):  # an alert or a handshake
        return "it speaks TLS"
    return "it does not speak HTTP/2"
