"""The streams of an HTTP/2 connection, and the events that its peer causes. Plain data."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from codomyrmex.concurrency.etcd.transports.http2_headers import Fields

STREAM_WINDOW = 4 << 20  # bytes that a peer may send on a stream before the reader has taken them


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
        self._room = STREAM_WINDOW  # bytes that may come
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
