"""The transport's calls on one lease: renew it, ask for its time left, and revoke it.

The lease may be gone, and an endpoint may hang or be down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, EtcdUnavailable
from codomyrmex.concurrency.etcd.transports import factory
from codomyrmex.concurrency.etcd.transports.protocol import Get, Put, Transport
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.testing import TcpProxy
from tests.cluster import cluster

_KEY = b"/codomyrmex/lease-calls"
_LIMIT = 0.8

Call = Callable[[Transport, int], Awaitable[Any]]

each_call = pytest.mark.parametrize(
    "call",
    [
        lambda transport, lease: transport.keep_alive(lease),
        lambda transport, lease: transport.time_to_live(lease),
        lambda transport, lease: transport.revoke(lease),
    ],
    ids=["keep_alive", "time_to_live", "revoke"],
)


@asynccontextmanager
async def _connected(kind: str, *endpoints: str, **settings: Any) -> AsyncIterator[Transport]:
    transport = factory.transport_for(EtcdSettings(endpoints=endpoints, transport=kind, **settings))  # type: ignore[arg-type]
    try:
        await transport.connect(_KEY)
        yield transport
    finally:
        await transport.close()


@pytest.fixture
async def client(etcd: EmbeddedEtcd, transport: str) -> AsyncIterator[Transport]:
    async with _connected(transport, etcd.endpoint) as connected:
        yield connected


@pytest.fixture
async def proxy(etcd: EmbeddedEtcd) -> AsyncIterator[TcpProxy]:
    address = urlsplit(etcd.endpoint)
    async with TcpProxy(str(address.hostname), address.port or 0) as made:
        yield made


async def _gone(client: Transport) -> int:
    """The id of a lease that was granted and is gone."""
    lease = await client.grant(60)
    await client.revoke(lease.id)
    return lease.id


async def test_time_to_live_counts_down_and_a_renewal_starts_it_anew(client: Transport) -> None:
    lease = await client.grant(60)
    assert 58 <= await client.time_to_live(lease.id) <= 60
    await asyncio.sleep(2.1)
    assert 55 <= await client.time_to_live(lease.id) <= 57
    assert await client.keep_alive(lease.id) == 60
    assert 58 <= await client.time_to_live(lease.id) <= 60


async def test_renewals_keep_a_lease_past_its_ttl(client: Transport) -> None:
    lease = await client.grant(2)
    await client.txn((), (Put(_KEY, b"", lease.id),))
    until = time.monotonic() + lease.ttl + 2
    while time.monotonic() < until:
        assert await client.keep_alive(lease.id) == lease.ttl
        await asyncio.sleep(0.5)
    assert (await client.get(Get(_KEY))).kvs
    await client.revoke(lease.id)


async def test_a_gone_lease_has_no_time_left_and_cannot_be_renewed(client: Transport) -> None:
    gone = await _gone(client)
    assert await client.keep_alive(gone) == 0
    assert await client.time_to_live(gone) == 0


async def test_revoke_deletes_the_keys_of_the_lease_and_a_gone_lease_is_no_error(client: Transport) -> None:
    lease = await client.grant(60)
    await client.txn((), (Put(_KEY, b"", lease.id),))
    await client.revoke(lease.id)
    assert not (await client.get(Get(_KEY))).kvs
    await client.revoke(lease.id)


async def test_many_calls_at_once_do_not_mix_up_their_leases(client: Transport) -> None:
    leases = [await client.grant(60 + number) for number in range(20)]
    assert await asyncio.gather(*(client.keep_alive(lease.id) for lease in leases)) == [lease.ttl for lease in leases]
    await asyncio.gather(*(client.revoke(lease.id) for lease in leases))


@each_call
async def test_an_endpoint_that_hangs_ends_the_call_in_time(proxy: TcpProxy, transport: str, call: Call) -> None:
    async with _connected(transport, proxy.endpoint, request_timeout=_LIMIT) as client:
        lease = await client.grant(60)
        proxy.blackhole()
        began = time.monotonic()
        with pytest.raises(EtcdUnavailable) as caught:
            await call(client, lease.id)
        assert time.monotonic() - began < _LIMIT + 1 and caught.value.retryable
        proxy.resume()


@each_call
async def test_an_endpoint_that_is_down_ends_the_call_in_time(proxy: TcpProxy, transport: str, call: Call) -> None:
    async with _connected(transport, proxy.endpoint, request_timeout=_LIMIT) as client:
        lease = await client.grant(60)
        await proxy.stop()
        began = time.monotonic()
        with pytest.raises(EtcdUnavailable):
            await call(client, lease.id)
        assert time.monotonic() - began < _LIMIT + 1


@each_call
@pytest.mark.usefixtures("first_endpoint")
async def test_a_call_whose_answer_is_missing_is_made_again_at_the_next_endpoint(
    proxy: TcpProxy, etcd: EmbeddedEtcd, transport: str, call: Call
) -> None:
    async with _connected(transport, proxy.endpoint, etcd.endpoint, request_timeout=4.0) as client:
        lease = await client.grant(60)
        proxy.blackhole(up=False)  # etcd gets the request
        answer = await call(client, lease.id)
        left = await client.time_to_live(lease.id)
        assert left == 0 if answer is None else min(answer, left) > 50  # only a revocation answers with None
        proxy.resume()


@pytest.mark.cluster
@pytest.mark.usefixtures("first_endpoint")
async def test_followers_serve_the_calls_and_a_dead_leader_does_not_end_them(
    request: pytest.FixtureRequest, transport: str
) -> None:
    async with cluster(request.config.getoption("--etcd-binary")) as three:
        leader = await three.leader()
        followers = [member for member in three.members if member is not leader]
        for member in followers:
            async with _connected(transport, member.endpoint) as client:
                lease = await client.grant(60)
                assert await client.keep_alive(lease.id) == 60
                assert 58 <= await client.time_to_live(lease.id) <= 60
                await client.revoke(lease.id)
                assert await client.keep_alive(lease.id) == await client.time_to_live(lease.id) == 0
                await client.revoke(lease.id)
        endpoints = [leader.endpoint, *(member.endpoint for member in followers)]
        async with _connected(transport, *endpoints, request_timeout=20.0) as client:
            lease = await client.grant(60)
            await leader.kill()
            assert await client.keep_alive(lease.id) == 60
            assert 0 < await client.time_to_live(lease.id) <= 60
            await client.revoke(lease.id)
            assert await client.keep_alive(lease.id) == 0
