"""The native transport's own promises: dead peers, silent addresses, requests kept back, no thread, no delay."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdError, EtcdUnavailable, Session
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import addresses, native_link
from codomyrmex.concurrency.etcd.transports.native import NativeTransport
from codomyrmex.concurrency.etcd.transports.native_lease_client import NativeLeaseClient
from codomyrmex.concurrency.etcd.transports.native_link import Link
from codomyrmex.concurrency.etcd.transports.protocol import Get, Put, WatchRequest
from codomyrmex.concurrency.session import core_of, default_session
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.testing import TcpProxy
from tests.endpoints import WrongServer, html, http2
from tests.helpers import eventually

_GET = Get(b"/codomyrmex/x")


@asynccontextmanager
async def _connected(endpoint: str, **settings: Any) -> AsyncIterator[NativeTransport]:
    transport = NativeTransport(EtcdSettings(endpoints=endpoint, **settings), lambda count: 0)
    try:
        await transport.connect(b"/codomyrmex/x")
        yield transport
    finally:
        await transport.close()


@pytest.fixture
async def proxy(etcd: EmbeddedEtcd) -> AsyncIterator[TcpProxy]:
    address = urlsplit(etcd.endpoint)
    async with TcpProxy(str(address.hostname), address.port or 0) as made:
        yield made


def _link(transport: NativeTransport) -> Link:
    (channel,) = transport._channels.values()
    assert channel.link
    return channel.link


async def test_no_byte_waits_for_the_answer_to_the_one_before(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, transport="native", session_ttl=3) as session:
        client: Any = core_of(session)._keepalive._client  # type: ignore[union-attr]
        await eventually(lambda: client._links)
        ours: Any = core_of(session).transport
        for connected in (
            _link(ours)._transport.get_extra_info("socket"),  # type: ignore[union-attr]
            client._links[etcd.endpoint]._socket,
        ):
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_peer_that_gives_no_sign_of_life_ends_a_watch(proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_link, "_QUIET", 0.2)
    monkeypatch.setattr(native_link, "_PONG_LIMIT", 0.2)
    async with _connected(proxy.endpoint) as transport:
        stream = await transport.watch()
        await stream.create(WatchRequest(b"/codomyrmex/x"))
        assert (await stream.receive()).created
        await asyncio.sleep(0.7)  # etcd answers PINGs, so a quiet watch lives
        reading = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        assert not reading.done()
        proxy.blackhole(up=False)
        began = time.monotonic()
        with pytest.raises(EtcdUnavailable, match="no sign of life"):
            await asyncio.wait_for(reading, 5)
        assert time.monotonic() - began < 2
        proxy.resume()
        await transport.get(_GET)


async def test_a_connection_without_calls_sends_no_ping(proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Etcd ends a connection that sends PINGs without a call under way."""
    monkeypatch.setattr(native_link, "_QUIET", 0.05)
    monkeypatch.setattr(native_link, "_PONG_LIMIT", 0.05)
    async with _connected(proxy.endpoint) as transport:
        link = _link(transport)
        await asyncio.sleep(0.3)  # what etcd asked is answered
        heard_at = link._heard_at
        await asyncio.sleep(0.5)
        assert link._heard_at == heard_at
        await transport.get(_GET)
        assert _link(transport) is link


async def test_after_a_timeout_in_silence_calls_take_another_connection(proxy: TcpProxy) -> None:
    async with _connected(proxy.endpoint, request_timeout=0.3) as transport:
        accepted = proxy.accepted
        proxy.blackhole()
        with pytest.raises(EtcdUnavailable) as caught:
            await transport.txn((), (Put(b"/codomyrmex/x", b""),))
        assert caught.value.applied == "unknown"
        with pytest.raises(EtcdUnavailable, match="waiting for its first words") as caught:
            await transport.txn((), (Put(b"/codomyrmex/x", b""),))
        assert caught.value.applied == "no"
        assert proxy.accepted > accepted
        proxy.resume()
        await transport.get(_GET)


async def test_a_connection_that_opens_slowly_serves_a_later_keepalive(proxy: TcpProxy) -> None:
    async with _connected(proxy.endpoint) as transport:
        lease = await transport.grant(60)
        client = transport.lease_client()
        accepted = proxy.accepted
        proxy.blackhole(up=False)
        assert not await asyncio.to_thread(_renew, client, lease.id, 0.2)
        assert not await asyncio.to_thread(_renew, client, lease.id, 0.2)
        proxy.resume()
        assert await asyncio.to_thread(_renew, client, lease.id, 2.0)
        assert proxy.accepted == accepted + 1
        client.close()


def _renew(client: NativeLeaseClient, lease: int, limit: float) -> bool:
    try:
        return client.renew(lease, limit) > 0
    except EtcdUnavailable:
        return False


async def test_a_request_that_was_kept_back_is_known_not_to_be_applied(proxy: TcpProxy) -> None:
    async with _connected(proxy.endpoint) as transport:
        proxy.blackhole()
        value = b"x" * 1_400_000
        calls = [asyncio.create_task(transport.txn((), (Put(b"/codomyrmex/x", value),))) for _ in range(20)]
        await eventually(lambda: _link(transport)._paused or _link(transport)._calls._http2._blocked)
        last = asyncio.create_task(transport._send(proxy.endpoint, "range", pb.RangeRequest(key=b"/x"), 5.0))
        await asyncio.sleep(0.05)
        for task in calls:
            task.cancel()
        proxy.cut()
        proxy.resume()
        with pytest.raises(EtcdError, match="the request was not sent") as caught:
            await last
        assert caught.value.applied == "no"
        await asyncio.gather(*calls, return_exceptions=True)
        await transport.get(_GET)


@pytest.mark.parametrize("first", ["refuses", "is silent"])
async def test_every_address_of_a_name_is_tried(
    etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    port = urlsplit(etcd.endpoint).port or 0
    async with AsyncExitStack() as stack:
        where = ("127.0.0.9", port) if first == "refuses" else await stack.enter_async_context(_silent())
        real = socket.getaddrinfo

        def look_up(host: Any, *args: Any, **options: Any) -> Any:
            if host != "etcd.test":
                return real(host, *args, **options)
            if options["flags"]:
                raise socket.gaierror(socket.EAI_NONAME, "not an address")
            return [(socket.AF_INET, 0, 0, "", address) for address in (where, ("127.0.0.1", port))]

        monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
        began = time.monotonic()
        async with _connected(f"http://etcd.test:{port}") as transport:
            assert time.monotonic() - began < 1.0
            client = transport.lease_client()
            lease = await transport.grant(5)
            began = time.monotonic()
            assert await asyncio.to_thread(client.renew, lease.id, 4.0) > 0
            assert time.monotonic() - began < 2.0
            client.close()


@asynccontextmanager
async def _silent() -> AsyncIterator[tuple[str, int]]:
    """An address that answers no attempt to connect: its queue of connections is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        where = server.getsockname()
        loop = asyncio.get_running_loop()
        fillers = []
        try:
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                fillers.append(filler)
                try:
                    async with asyncio.timeout(0.2):
                        await loop.sock_connect(filler, where)
                except TimeoutError:
                    break
            yield where
        finally:
            for filler in fillers:
                filler.close()


def test_a_loop_that_ends_closes_the_connections_of_its_default_session(
    etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    monkeypatch.setenv("CODOMYRMEX_ETCD_TRANSPORT", "native")
    ours = []

    async def use() -> None:
        async with DistributedLock("x"):
            ours.append(_link(core_of(default_session()).transport))  # type: ignore[arg-type]

    asyncio.run(use())
    assert ours[0].closed.done() and ours[0]._transport.is_closing()  # type: ignore[union-attr]


async def test_an_endpoint_that_is_no_etcd_is_passed_over(etcd: EmbeddedEtcd) -> None:
    async with WrongServer(http2(html("404"))) as other:
        both = f"http://127.0.0.1:{other.port},{etcd.endpoint}"
        async with _connected(both, request_timeout=2) as transport:
            assert transport._endpoints.current == etcd.endpoint


def test_a_loop_of_uvloop_serves_as_well(etcd: EmbeddedEtcd, namespace: str) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def use() -> int:
        async with (
            Session(endpoints=etcd.endpoint, namespace=namespace, transport="native") as session,
            DistributedLock("x", session) as grant,
        ):
            return grant.token

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use()) > 0
