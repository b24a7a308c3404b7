"""The proxy of the fault tests does what its names say."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually


class Echo:
    """A server that answers each chunk with itself, and remembers what it got."""

    def __init__(self) -> None:
        self.received = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1000):
                self.received += chunk
                writer.write(chunk)
                await writer.drain()
        writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self, limit: float = 2.0) -> bytes:
        async with asyncio.timeout(limit):
            return await self.reader.read(1000)

    async def ask(self, data: bytes) -> bytes:
        self.send(data)
        return await self.read()

    async def is_silent(self) -> bool:
        try:
            await self.read(0.1)
        except TimeoutError:
            return True
        return False


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    yield Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, TcpProxy(*server.sockets[0].getsockname()) as proxy:
        yield proxy
    for writer in echo.writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def connect(proxy: TcpProxy) -> AsyncIterator[Client]:
    host, port = proxy.endpoint.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_bytes_pass_both_ways_and_an_end_is_passed_on(proxy: TcpProxy) -> None:
    async with connect(proxy) as client:
        assert await client.ask(b"hello") == b"hello"
        client.writer.write_eof()
        assert await client.read() == b""
    await eventually(lambda: not proxy._links)


@pytest.mark.parametrize(("up", "down"), [(True, True), (True, False), (False, True)])
async def test_a_blackhole_holds_until_resumed(proxy: TcpProxy, echo: Echo, up: bool, down: bool) -> None:
    async with connect(proxy) as client:
        await client.ask(b"1")
        proxy.blackhole(up=up, down=down)
        client.send(b"2")
        assert await client.is_silent()
        assert echo.received == (b"1" if up else b"12")
        proxy.resume()
        assert await client.read() == b"2"


async def test_a_delay_holds_each_direction(proxy: TcpProxy) -> None:
    proxy.delay(0.1)
    async with connect(proxy) as client:
        start = time.monotonic()
        assert await client.ask(b"1") == b"1"
        assert 0.19 < time.monotonic() - start < 1


async def test_a_cut_resets_every_connection(proxy: TcpProxy) -> None:
    async with connect(proxy) as one, connect(proxy) as two:
        await one.ask(b"1")
        await two.ask(b"2")
        proxy.cut()
        for client in (one, two):
            with pytest.raises(ConnectionResetError):
                await client.read()
    async with connect(proxy) as client:
        assert await client.ask(b"3") == b"3"


async def test_only_new_connections_are_refused(proxy: TcpProxy) -> None:
    async with connect(proxy) as old:
        await old.ask(b"1")
        proxy.refuse()
        async with connect(proxy) as new:
            with pytest.raises(ConnectionResetError):
                await new.read()
        assert await old.ask(b"2") == b"2"
        proxy.refuse(False)
        async with connect(proxy) as new:
            assert await new.ask(b"3") == b"3"


async def test_a_request_gets_through_and_its_answer_is_lost(proxy: TcpProxy, echo: Echo) -> None:
    proxy.drop_next_answer(b"/key")
    async with connect(proxy) as client:
        assert await client.ask(b"other") == b"other"
        client.send(b"a /k")  # in two chunks
        assert await client.read() == b"a /k"
        client.send(b"ey b")
        with pytest.raises(ConnectionResetError):
            await client.read()
    assert echo.received == b"othera /key b"
    assert proxy.dropped == 1
    async with connect(proxy) as client:
        assert await client.ask(b"/key") == b"/key", "once only"


async def test_a_straggler_arrives_after_its_connection_is_gone(proxy: TcpProxy, echo: Echo) -> None:
    proxy.delay_next_request(b"/key", 0.3)
    async with connect(proxy) as client:
        assert await client.ask(b"before") == b"before"
        with pytest.raises(ConnectionResetError):
            await client.ask(b"late /key")
        async with connect(proxy) as second:
            assert await second.ask(b"|second|") == b"|second|"
        assert proxy.delivered == 0
        proxy.cut()
        await eventually(lambda: proxy.delivered)
        await eventually(lambda: echo.received == b"before|second|late /key")


async def test_an_absent_server_resets_the_client() -> None:
    async with TcpProxy("127.0.0.1", 1) as proxy, connect(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.read()
