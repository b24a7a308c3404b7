"""A TCP proxy that imitates faults of a network: delays, silence, resets, lost answers, late requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from types import TracebackType
from urllib.parse import urlsplit

CHUNK = 1 << 16
LOST_ANSWER_RESET = 0.3  # seconds until the connection with a lost answer is reset
STRAGGLER_AFTERLIFE = 1.0  # seconds for which the server's side stays open after a late request, so that etcd runs it


class TcpProxy:
    """A proxy that runs in the caller's event loop, on a free port of 127.0.0.1 or where ``start`` is told to listen.

    "Up" is from client to server. Requests are matched by bytes in the stream: HTTP/2 carries protobuf uncompressed,
    so an etcd key can be matched as it is. Each match is used once.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.endpoint = ""
        self.accepted = 0  # connections so far
        self.dropped = 0  # answers lost by `drop_next_answer`
        self.delivered = 0  # late requests of `delay_next_request` that have reached the server
        self.target = target_host, target_port
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._delay = 0.0
        self._refusing = False
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._lost_answers: list[bytes] = []
        self._stragglers: list[tuple[bytes, float]] = []
        self.resume()

    @classmethod
    def to(cls, endpoint: str) -> TcpProxy:
        """A proxy before the server at this http address: ``async with TcpProxy.to(etcd.endpoint) as proxy``."""
        address = urlsplit(endpoint)
        return cls(address.hostname or "", address.port or 2379)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> TcpProxy:
        """Listen, and set ``endpoint``."""
        self._server = await asyncio.start_server(self._accept, host, port)
        self.endpoint = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        """End all connections, and listen no more."""
        if self._server:
            self._server.close()
            await asyncio.sleep(0)  # a connection that is being accepted becomes a link
            while links := list(self._links):
                for link in links:
                    link.task.cancel()
                await asyncio.gather(*(link.task for link in links), return_exceptions=True)
                for link in links:
                    link.client[
                        1
                    ].transport.abort()  # a task that was cancelled before its first step has closed nothing
                self._links.difference_update(links)
                await asyncio.sleep(0)
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> TcpProxy:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Hold all bytes of these directions, on old and new connections, until `resume` lets them through."""
        for direction, held in (("up", up), ("down", down)):
            if held:
                self._open[direction].clear()

    def delay(self, seconds: float) -> None:
        """Hold each chunk for ``seconds``, in each direction. Chunks that come meanwhile wait up to twice as long."""
        self._delay = seconds

    def refuse(self, on: bool = True) -> None:
        """Reset new connections at once. Existing connections go on."""
        self._refusing = on

    def resume(self) -> None:
        """End `blackhole`, `delay` and `refuse`."""
        self._delay, self._refusing = 0.0, False
        for gate in self._open.values():
            gate.set()

    def cut(self) -> None:
        """Reset all connections now, on both sides. Bytes that are held are lost."""
        for link in list(self._links):
            link.cut()

    def drop_next_answer(self, match: bytes) -> None:
        """Let the next request with `match` through, lose all later bytes of the server, then reset the connection."""
        self._lost_answers.append(match)

    def delay_next_request(self, match: bytes, seconds: float) -> None:
        """Reset the client's side at the next request with `match`, and deliver the request after ``seconds``."""
        self._stragglers.append((match, seconds))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            reset(writer)
        else:
            link = _Link(self, reader, writer)
            self._links.add(link)
            link.task.add_done_callback(lambda _: self._links.discard(link))

    async def _hold(self, direction: str) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._open[direction].wait()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: TcpProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = reader, writer
        self.server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.recent = b""  # the last bytes of the client, for a match that two chunks share
        self.answers_lost = False
        self.straggling = False
        self.task = asyncio.create_task(self._run())

    def cut(self) -> None:
        reset(self.client[1])
        if self.server and not self.straggling:
            reset(self.server[1])

    async def _run(self) -> None:
        try:
            self.server = await asyncio.open_connection(*self.proxy.target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._up(self.client[0], self.server[1]))
                group.create_task(self._down(self.server[0], self.client[1]))
        except* OSError:
            pass  # both sides are reset below
        finally:
            self.straggling = False
            self.cut()
            for _, writer in filter(None, (self.client, self.server)):
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _up(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while chunk := await client.read(CHUNK):
            await self.proxy._hold("up")
            seen, self.recent = self.recent + chunk, (self.recent + chunk)[-256:]
            if wait := self._straggler(seen, len(chunk)):
                await self._straggle(chunk, wait, client, server)
                return
            if match := self._matching(self.proxy._lost_answers, seen, len(chunk)):
                self.proxy._lost_answers.remove(match)
                self.proxy.dropped += 1
                self.answers_lost = True
                asyncio.get_running_loop().call_later(LOST_ANSWER_RESET, self.cut)
            server.write(chunk)
            await server.drain()
        server.write_eof()

    async def _down(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while chunk := await server.read(CHUNK):
            await self.proxy._hold("down")
            if not self.answers_lost:
                client.write(chunk)
                await client.drain()
        if not self.answers_lost:
            client.write_eof()

    @staticmethod
    def _matching(matches: list[bytes], seen: bytes, fresh: int) -> bytes | None:
        """The first match that ends in the last `fresh` bytes of `seen`, as it is or, for the gateway, in base64."""
        for match in matches:
            coded = base64.b64encode(match[: len(match) // 3 * 3])
            if match in seen[-(fresh + len(match) - 1) :] or coded in seen[-(fresh + len(coded) - 1) :]:
                return match
        return None

    def _straggler(self, seen: bytes, fresh: int) -> float | None:
        stragglers = self.proxy._stragglers
        match = self._matching([match for match, _ in stragglers], seen, fresh)
        if match is None:
            return None
        index = [match for match, _ in stragglers].index(match)
        return stragglers.pop(index)[1]

    async def _straggle(
        self, chunk: bytes, wait: float, client: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        self.straggling = self.answers_lost = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):  # the rest of the request, which may come in pieces
                while more := await client.read(CHUNK):
                    chunk += more
        reset(self.client[1])
        await asyncio.sleep(wait)
        server.write(chunk)
        await server.drain()
        self.proxy.delivered += 1
        await asyncio.sleep(STRAGGLER_AFTERLIFE)
        self.straggling = False
        self.cut()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side sees a reset, not an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection and connection.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
