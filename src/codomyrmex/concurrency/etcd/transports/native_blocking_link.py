"""One HTTP/2 connection of a thread that blocks: a plain socket's side of ``native_calls.py``."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

from google.protobuf.empty_pb2 import Empty

from codomyrmex.concurrency.etcd.transports.auth import NO_ALPN, Metadata, agreed_on_http2
from codomyrmex.concurrency.etcd.transports.native_calls import Call, Calls


class BlockingLink:
    """A connection on which one thread makes one call after another. An error of its socket ends it."""

    def __init__(self, endpoint: str, connected: socket.socket) -> None:
        self._socket = connected
        self._calls = Calls(endpoint)
        self._heard = False  # True once something has come since the last call began
        self._pinged: tuple[Call, float] | None = None

    @property
    def usable(self) -> bool:
        """True if a new call may begin here."""
        return self._calls.usable

    def greet(self, deadline: float) -> None:
        """Wait until the peer has said that it speaks HTTP/2. Raises ``OSError``."""
        if not agreed_on_http2(self._socket if isinstance(self._socket, ssl.SSLSocket) else None):
            raise ConnectionError(NO_ALPN)
        while not self._calls.ready:
            self._exchange(deadline)

    def answer(self, path: str, metadata: Metadata, message: bytes, deadline: float) -> Call:
        """Make a call and wait until it is over. Its status tells of any failure.

        The connection is given up if it fails, and if nothing at all comes on it until ``deadline``.
        """
        call = self._calls.begin(path, metadata, message)
        self._heard = False
        try:
            while not call.status:
                self._exchange(deadline)
        except OSError as error:
            if isinstance(error, TimeoutError) and self._heard:
                call.end("DEADLINE_EXCEEDED", "no answer in time")
                self._calls.cancel(call)
            else:
                self.close(str(error))
        return call

    def ping(self, path: str, limit: float) -> None:
        """Send a call and do not wait for its answer, which the next ping reads. After ``limit`` s without, close."""
        try:
            self._read_what_is_there()
            if self._pinged is None or self._pinged[0].status:
                call = self._calls.begin(path, (), Empty().SerializeToString())
                self._pinged = call, time.monotonic() + limit
            elif self._pinged[1] < time.monotonic():
                raise TimeoutError("no answer to a ping")
            self._write(time.monotonic() + limit)
        except OSError as error:
            self.close(str(error))

    def close(self, reason: str = "it was closed") -> None:
        """Close the connection, and end its calls."""
        self._calls.lost(reason)
        self._socket.close()

    def _exchange(self, deadline: float) -> None:
        """Write what is to be written, and read once."""
        self._write(deadline)
        self._socket.settimeout(seconds_until(deadline))
        self._read()

    def _write(self, deadline: float) -> None:
        data = self._calls.take()
        if data:
            self._socket.settimeout(seconds_until(deadline))
            try:
                self._socket.sendall(data)
            except TimeoutError:  # perhaps in the middle of a frame
                raise ConnectionError("it takes no more bytes") from None

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError(self._calls.ended())
        self._heard = True
        self._calls.receive(data)
        self._calls.pong()
        if self._calls.failure:
            raise ConnectionError(self._calls.failure)

    def _read_what_is_there(self) -> None:
        self._socket.settimeout(0.0)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            while True:
                self._read()


def seconds_until(deadline: float) -> float:
    """The seconds left, for a socket's time limit. Raises ``TimeoutError`` if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
