"""Servers that are not etcd, or not a sound one: each behaves in one wrong way at a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import StreamEnded
from h2.exceptions import ProtocolError

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answer = Callable[[H2Connection, int], None]

HTML = b"<html><head><title>Not here</title></head><body><h1>Not here</h1></body></html>"
_EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_DATA = 0


class WrongServer:
    """A server that treats every connection in the way of ``behave``; with ``tls`` it first makes a handshake."""

    def __init__(self, behave: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self._behave = behave
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def connections(self) -> int:
        """The number of connections that the client has not closed."""
        return len(self._connections)

    async def __aenter__(self) -> WrongServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server
        self._server.close()
        await asyncio.sleep(0.01)  # a connection that is being accepted is served
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections[task] = writer
        try:
            with contextlib.suppress(OSError, ProtocolError):
                await self._behave(reader, writer)
        finally:
            del self._connections[task]
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


# Behaviours


def http1(status: str, body: bytes = HTML) -> Behaviour:
    """Answers each request as an HTTP/1 server does, and closes after the first bytes of HTTP/2 (RFC 9113, 3.4)."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            close = head.startswith(b"PRI ")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            writer.write(
                f"HTTP/1.1 {'400 Bad Request' if close and status.startswith('200') else status}\r\n"
                f"Content-Type: text/html\r\nContent-Length: {len(body)}\r\n"
                f"{'Connection: close' if close else 'Server: wrong'}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            if close:
                if writer.can_write_eof():
                    writer.write_eof()
                await _until_closed(reader)
                return

    return _until_eof(behave)


def http2(answer: Answer) -> Behaviour:
    """Speaks HTTP/2, and gives each request this answer."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False, validate_inbound_headers=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, StreamEnded):
                    answer(connection, event.stream_id)
            writer.write(connection.data_to_send())

    return behave


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads everything and says nothing."""
    await _until_closed(reader)


async def bad_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuses the first bytes as an HTTP/1 server does that cannot read them, such as those of TLS."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.write_eof()
    await _until_closed(reader)


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes at once."""
    writer.close()


async def closing_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes after the first bytes."""
    await reader.read(1)
    writer.close()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins an HTTP/1 answer that does not end, a byte at a time."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 200 OK\r\nX-Wrong: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def oversized_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins a frame of 16 MiB, although a client that announces nothing else takes 16 KiB (RFC 9113, 4.2)."""
    writer.write(_EMPTY_SETTINGS)
    await reader.read(1 << 16)
    writer.write(b"\xff\xff\xff" + struct.pack("!BBI", _DATA, 0, 1) + bytes(1 << 16))
    await _until_closed(reader)


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Writes bytes without a meaning; the same in each run."""
    writer.write(random.Random(16).randbytes(1 << 16))
    await _until_closed(reader)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


def _until_eof(behave: Behaviour) -> Behaviour:
    async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await behave(reader, writer)

    return until_eof


# Answers over HTTP/2


def html(status: str) -> Answer:
    """A page, as a proxy sends that does not know gRPC."""

    def answer(connection: H2Connection, stream: int) -> None:
        connection.send_headers(stream, [(":status", status), ("content-type", "text/html")])
        connection.send_data(stream, HTML, end_stream=True)

    return answer


def nothing(connection: H2Connection, stream: int) -> None:
    """No answer."""


def no_such_service(connection: H2Connection, stream: int) -> None:
    """The answer of a gRPC server that is not etcd."""
    head = [(":status", "200"), ("content-type", "application/grpc")]
    trailers = [("grpc-status", "12"), ("grpc-message", "unknown service etcdserverpb.KV")]
    connection.send_headers(stream, head + trailers, end_stream=True)


def no_message(connection: H2Connection, stream: int) -> None:
    """A success without a message."""
    head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")]
    connection.send_headers(stream, head, end_stream=True)


def garbled_message(connection: H2Connection, stream: int) -> None:
    """A success whose message is not protobuf."""
    message = b"\xff" * 100
    connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    connection.send_data(stream, b"\x00" + struct.pack("!I", len(message)) + message)
    connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)


def endless_message(connection: H2Connection, stream: int) -> None:
    """The beginning of a message that claims to have 4 GiB, and the end of the answer."""
    connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    connection.send_data(stream, b"\x00\xff\xff\xff\xff" + bytes(100))
    connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)


def goaway(connection: H2Connection, stream: int) -> None:
    """The end of the connection, and no answer."""
    connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM, last_stream_id=0)


def refused_stream(connection: H2Connection, stream: int) -> None:
    """No answer, for the server takes no more streams."""
    connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)


# TLS


def server_context(authority: trustme.CA, *names: str, alpn: Sequence[str] = ("h2", "http/1.1")) -> ssl.SSLContext:
    """The TLS of a server with a certificate for ``names``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
