"""Connections to every endpoint: opened early, kept open, and without a cost for the session where one is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdUnavailable, Session
from codomyrmex.concurrency.etcd.transports import base, factory
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually

_TRANSPORTS = get_args(EtcdSettings.model_fields["transport"].annotation)


@pytest.fixture
async def proxies(etcd: EmbeddedEtcd) -> AsyncIterator[list[TcpProxy]]:
    address = urlsplit(etcd.endpoint)
    async with AsyncExitStack() as stack:
        made = [TcpProxy(str(address.hostname), address.port or 0) for _ in range(3)]
        yield [await stack.enter_async_context(proxy) for proxy in made]


@pytest.fixture(params=_TRANSPORTS)
def options(request: pytest.FixtureRequest, proxies: list[TcpProxy], namespace: str) -> dict[str, Any]:
    endpoints = ",".join(proxy.endpoint for proxy in proxies)
    return {"endpoints": endpoints, "namespace": namespace, "session_ttl": 3, "transport": request.param}


@pytest.mark.usefixtures("first_endpoint")
async def test_a_session_and_its_keepalive_connect_to_every_endpoint_at_once(
    proxies: list[TcpProxy], options: dict[str, Any]
) -> None:
    async with Session(**options):
        await eventually(lambda: all(proxy.accepted >= 2 for proxy in proxies))


@pytest.mark.usefixtures("first_endpoint")
async def test_a_connection_that_broke_while_it_took_no_calls_is_opened_again(
    proxies: list[TcpProxy], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PING_PAUSE", 0.2)
    async with Session(**options) as session:
        await eventually(lambda: proxies[1].accepted >= 2)
        before = proxies[1].accepted
        proxies[1].cut()
        await eventually(lambda: proxies[1].accepted >= before + 2)  # the keepalive's after a renewal
        assert session.alive


@pytest.mark.usefixtures("first_endpoint")
@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "is silent"])
async def test_an_endpoint_that_is_away_delays_neither_open_nor_close(
    proxies: list[TcpProxy], options: dict[str, Any], silent: bool
) -> None:
    for proxy in proxies[1:]:
        if silent:
            proxy.blackhole()
        else:
            await proxy.stop()
    began = time.monotonic()
    async with Session(**options) as session, DistributedLock("x", session):
        pass
    assert time.monotonic() - began < 2


@pytest.mark.usefixtures("first_endpoint")
@pytest.mark.parametrize("options", ["grpc"], indirect=True)
async def test_a_channel_that_cannot_connect_is_replaced_because_grpc_asks_dns_ever_less_often(
    proxies: list[TcpProxy], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PING_PAUSE", 0.1)
    async with Session(**options) as session:
        transport: Any = core_of(session).transport
        client: Any = core_of(session)._keepalive._client
        away = proxies[1].endpoint
        await eventually(lambda: away in client._channels)
        ours, theirs = transport._connections.to(away), client._channels[away]
        await proxies[1].stop()
        await eventually(lambda: transport._connections.to(away) is not ours)
        await eventually(lambda: client._channels.get(away) not in (theirs, None))
        assert session.alive


async def test_a_ping_that_fails_reads_replaced_tls_files(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a standby would go on with the old certificate until a call needs it."""
    monkeypatch.setattr(base, "_PING_PAUSE", 0.1)
    async with Session(**options) as session:
        transport: Any = core_of(session).transport
        read: list[str] = []

        async def fails(endpoint: str, timeout: float) -> None:
            raise EtcdUnavailable(f"{endpoint} refuses the certificate")

        monkeypatch.setattr(transport, "_reload_tls", lambda: read.append("again"))
        monkeypatch.setattr(transport, "_ping", fails)
        await eventually(lambda: len(read) >= 2)
        assert session.alive


async def test_sessions_begin_at_random_endpoints(
    options: dict[str, Any], proxies: list[TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "randrange", Random(3).randrange)
    begun = set()
    for _ in range(8):
        async with Session(**options) as session:
            transport: Any = core_of(session).transport
            keepalive: Any = core_of(session)._keepalive
            assert keepalive._client.endpoint == transport._endpoints.current
            begun.add(keepalive._client.endpoint)
    assert begun == {proxy.endpoint for proxy in proxies}
