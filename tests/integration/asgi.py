"""A small HTTP server for one ASGI application, in the event loop of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from codomyrmex.concurrency.fencing.http import App


@asynccontextmanager
async def served(app: App) -> AsyncIterator[str]:
    """Serve ``app``; yields the address of its root. Each connection carries one request."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _exchange(app, reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def _exchange(app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    method, *_ = (await reader.readline()).decode().split()
    headers = []
    while line := (await reader.readline()).strip():
        key, _, value = line.partition(b":")
        headers.append((key.lower(), value.strip()))
    length = int(dict(headers).get(b"content-length", 0))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await reader.readexactly(length), "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            lines = [b"HTTP/1.1 %d -" % message["status"], b"connection: close"]
            lines += [key + b": " + value for key, value in message["headers"]]
            writer.write(b"\r\n".join([*lines, b"", b""]))
        else:
            writer.write(message["body"])
            await writer.drain()

    await app({"type": "http", "method": method, "headers": headers}, receive, send)
