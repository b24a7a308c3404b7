"""gRPC calls over one HTTP/2 connection, without I/O: requests in, bytes out, bytes in, calls with news out.

This module follows gRPC's description "gRPC over HTTP/2": a message has a prefix of five bytes, the status comes in the
trailers, and an answer without ``grpc-status`` is not gRPC's. It knows exactly which calls were not applied: those that
were never written whole, and those that the server refused before it began with them.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any
from urllib.parse import unquote_to_bytes

from google.protobuf.message import DecodeError

from codomyrmex.concurrency.etcd.transports import failures
from codomyrmex.concurrency.etcd.transports.auth import Metadata
from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.http2 import Connection
from codomyrmex.concurrency.etcd.transports.http2_frames import ErrorCode, code_name
from codomyrmex.concurrency.etcd.transports.http2_headers import Fields
from codomyrmex.concurrency.etcd.transports.http2_streams import (
    Data,
    Failed,
    GoingAway,
    Headers,
    Pinged,
    Reset,
    Stream,
)
from codomyrmex.concurrency.etcd.transports.methods import STATUS_NAMES

MAX_MESSAGE = 64 << 20  # bytes of an answer

_PREFIX = struct.Struct(">BL")  # compressed or not, and the length

_STATUS = {str(number): name for number, name in enumerate(STATUS_NAMES)}
_HTTP_STATUS = {
    "400": "INTERNAL",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}  # gRPC's meaning of an HTTP status without a gRPC status


def request_fields(endpoint: str, path: str, metadata: Metadata) -> Fields:
    """The headers of a call."""
    scheme, _, authority = endpoint.partition("://")
    return (
        (":method", "POST"),
        (":scheme", scheme),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    )


def result(call: Call, response: Any, endpoint: str) -> Any:
    """The one message of a call that is over, read by the protobuf class ``response``. Raises ``EtcdError``."""
    if call.status == "OK":
        try:
            (message,) = call.messages
            return response.FromString(message)
        except (ValueError, DecodeError):
            call.status, call.details = "INTERNAL", "its answer cannot be read"
    raise failures.to_error(call.status, call.details, endpoint)


def _framed(message: bytes) -> bytes:
    return _PREFIX.pack(0, len(message)) + message


class Call:
    """One call: the messages that have come and, once it is over, its status, by gRPC's name, and the status's text."""

    __slots__ = ("_part", "details", "fresh", "messages", "partial", "status", "stream", "unary", "unread", "waiter")

    def __init__(self, *, unary: bool) -> None:
        self.unary = unary  # True if its user waits for its end, and not for each message
        self.stream: Stream
        self.messages: deque[bytes] = deque()
        self.status = ""  # until the call is over
        self.details = ""
        self.waiter: Any = None  # its user's to set
        self.fresh = False  # True while it is listed among the calls with news
        self.unread = 0  # bytes of the messages that the peer has not been given credit for
        self.partial = False  # True while the last message has not come whole
        self._part = bytearray()  # of that message

    def end(self, status: str, details: str) -> None:
        """Set the status, unless the call is over."""
        if not self.status:
            self.status, self.details = status, details

    def add(self, data: bytes) -> None:
        """Take bytes of the answer; whole messages go to ``messages``."""
        if self.partial:
            self._part += data
            data = bytes(self._part) if self._whole() else b""
            if not data:
                return
            self._part.clear()
            self.partial = False
        at, end = 0, len(data)
        while end - at >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(data, at)
            if compressed or size > MAX_MESSAGE:
                self._refuse(compressed, size)
                return
            following = at + _PREFIX.size + size
            if following > end:
                break
            self.messages.append(data[at + _PREFIX.size : following])
            at = following
        if at < end:
            self._part += data[at:]
            self.partial = True

    def _whole(self) -> bool:
        """True if the part holds a whole message, or the beginning of one that must be refused."""
        if len(self._part) < _PREFIX.size:
            return False
        compressed, size = _PREFIX.unpack_from(self._part)
        return bool(compressed) or size > MAX_MESSAGE or len(self._part) >= _PREFIX.size + size

    def _refuse(self, compressed: int, size: int) -> None:
        if compressed:
            self.end("INTERNAL", "it sent a compressed message, although it was not asked to")
        else:
            self.end("RESOURCE_EXHAUSTED", f"its answer of {size} bytes is larger than {MAX_MESSAGE}")


class Calls:
    """The calls of one connection to ``endpoint``."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._http2 = Connection()
        self._fields: dict[tuple[str, Metadata], Fields] = {}
        self._news: list[Call] = []
        self._usual_start: Fields | None = None  # the last sound headers: the decoder gives the same tuple again
        self._usual_end: Fields | None = None  # trailers that say OK
        self.pinged = False  # True while the peer waits for ``pong``
        self.failure = ""  # why the connection must be closed
        self.leaving = ""  # why the peer takes no new calls

    @property
    def ready(self) -> bool:
        """True once the peer has said that it speaks HTTP/2."""
        return self._http2.ready

    @property
    def usable(self) -> bool:
        """True if the connection takes a new call."""
        return self._http2.usable

    @property
    def count(self) -> int:
        """The number of calls under way."""
        return self._http2.stream_count

    def begin(self, path: str, metadata: Metadata, message: bytes) -> Call:
        """Begin a call with one message. On a connection that is not usable it is over at once."""
        return self._begin(path, metadata, _framed(message), end=True)

    def begin_stream(self, path: str, metadata: Metadata) -> Call:
        """Begin a call whose messages follow by ``send``."""
        return self._begin(path, metadata, b"", end=False)

    def send(self, call: Call, message: bytes) -> None:
        """Send one more message."""
        self._http2.send(call.stream, _framed(message))

    def cancel(self, call: Call) -> None:
        """End a call whose answer nobody wants. After its end this does nothing."""
        self._http2.cancel(call.stream)
        call.end("CANCELLED", "the call was cancelled")

    def next_message(self, call: Call) -> bytes | None:
        """Take the next message of a call, or None. After the last one the peer may send as much again."""
        if not call.messages:
            return None
        message = call.messages.popleft()
        if not call.messages and call.unread:
            self._http2.consumed(call.stream, call.unread)
            call.unread = 0
        return message

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._http2.ping()

    def pong(self) -> None:
        """Answer the peer's PINGs."""
        self.pinged = False
        self._http2.pong()

    def take(self) -> bytes:
        """Return the bytes that are to be written now."""
        return self._http2.take()

    def receive(self, data: bytes) -> list[Call]:
        """Take bytes from the peer, and return the calls that have a new message or are over."""
        for event in self._http2.receive(data):
            if isinstance(event, Headers):
                self._headed(event)
            elif isinstance(event, Data):
                self._received(event)
            elif isinstance(event, Reset):
                self._was_reset(event)
            elif isinstance(event, Pinged):
                self.pinged = True
            elif isinstance(event, GoingAway):
                self.leaving = f"it is going away ({code_name(event.code)}: {event.text})"
            elif isinstance(event, Failed):
                self.failure = event.reason
        news = self._news
        if news:
            self._news = []
            for call in news:
                call.fresh = False
        return news

    def ended(self) -> str:
        """The reason to tell when the peer has closed the connection."""
        return self._http2.ended()

    def lost(self, reason: str = "") -> list[Call]:
        """End every call, because the connection is lost; returns them."""
        self.failure = self.failure or reason or self._http2.ended()
        ended = []
        for stream in self._http2.abandon():
            call: Call = stream.owner
            unsent = not (stream.written if call.unary else stream.id)
            call.end("UNAVAILABLE", f"{NOT_SENT}: {self.failure}" if unsent else self.failure)
            ended.append(call)
        return ended

    def _begin(self, path: str, metadata: Metadata, data: bytes, *, end: bool) -> Call:
        fields = self._fields.get((path, metadata))
        if fields is None:
            if len(self._fields) > 100:  # tokens change
                self._fields.clear()
            fields = self._fields[path, metadata] = request_fields(self._endpoint, path, metadata)
        call = Call(unary=end)
        if self._http2.usable:
            call.stream = self._http2.request(fields, data, end=end)
        else:
            call.stream = Stream(fields)
            call.end("UNAVAILABLE", f"{NOT_SENT}: {self.failure or self.leaving or 'its connection is used up'}")
        call.stream.owner = call
        return call

    def _tell(self, call: Call) -> None:
        if not call.fresh:
            call.fresh = True
            self._news.append(call)

    def _headed(self, event: Headers) -> None:
        call: Call = event.stream.owner
        if event.end:
            if event.fields is self._usual_end and not call.partial:
                call.end("OK", "")
            else:
                call.end(*_status_of(dict(event.fields), partial=call.partial))
                if call.status == "OK":
                    self._usual_end = event.fields
            self._tell(call)
        elif event.fields is not self._usual_start:
            fields = dict(event.fields)
            if fields.get(":status") != "200" or not fields.get("content-type", "").startswith("application/grpc"):
                self._give_up(call, *_foreign(fields))
            else:
                self._usual_start = event.fields

    def _received(self, event: Data) -> None:
        call: Call = event.stream.owner
        had = len(call.messages)
        call.add(event.data)
        if call.status:
            self._give_up(call, call.status, call.details)
        elif event.end:
            self._give_up(call, "INTERNAL", "it ended an answer without a status")
        elif not call.messages:  # a part of a message that its reader waits for
            self._http2.consumed(event.stream, event.size)
        elif call.unary and len(call.messages) + call.partial > 1:
            self._give_up(call, "INTERNAL", "it answered with more than one message")
        else:
            call.unread += event.size
            if len(call.messages) > had:
                self._tell(call)

    def _give_up(self, call: Call, status: str, details: str) -> None:
        self._http2.cancel(call.stream)
        call.end(status, details)
        self._tell(call)

    def _was_reset(self, event: Reset) -> None:
        call: Call = event.stream.owner
        reason = self.leaving or f"it reset the call ({code_name(event.code)})"
        if event.unprocessed:
            call.end("UNAVAILABLE", f"{NOT_SENT}: {reason}")
        else:
            call.end("CANCELLED" if event.code == ErrorCode.CANCEL else "UNAVAILABLE", reason)
        self._tell(call)


def _status_of(fields: dict[str, str], *, partial: bool) -> tuple[str, str]:
    """The status and text that the trailers give."""
    number = fields.get("grpc-status")
    if number is None:
        return _foreign(fields) if ":status" in fields else ("INTERNAL", "it ended an answer without a status")
    status = _STATUS.get(number, "UNKNOWN")
    if status == "OK":
        return ("INTERNAL", "it ended in the middle of a message") if partial else (status, "")
    return status, unquote_to_bytes(fields.get("grpc-message", "")).decode(errors="replace")


def _foreign(fields: dict[str, str]) -> tuple[str, str]:
    """The status of an answer that does not come from a gRPC server."""
    status = fields.get(":status", "none")
    kind = fields.get("content-type", "no type")
    text = f"it answered with HTTP status {status} ({kind}), and not as etcd does; is there a proxy in between?"
    return _HTTP_STATUS.get(status, "UNKNOWN"), text
