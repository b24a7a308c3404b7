"""The order of endpoints, and its use by the common part of all transports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import base
from codomyrmex.concurrency.etcd.transports.auth import Token
from codomyrmex.concurrency.etcd.transports.base import BaseLeaseClient, BaseTransport
from codomyrmex.concurrency.etcd.transports.endpoints import Endpoints
from codomyrmex.concurrency.settings import EtcdSettings
from tests.helpers import eventually

A, B, C = THREE = ("http://a:1", "http://b:1", "http://c:1")
SETTINGS = EtcdSettings(endpoints=THREE)


def test_the_first_is_handed_in_and_the_others_follow_around_the_ring() -> None:
    endpoints = Endpoints(THREE, 1)
    assert endpoints.current == B and endpoints.others == (C, A) and len(endpoints) == 3
    assert Endpoints(THREE).current == A


def test_a_failure_of_the_current_endpoint_moves_on_and_comes_back_last() -> None:
    endpoints = Endpoints(THREE, 1)
    used = []
    for _ in range(4):
        used.append(endpoints.current)
        endpoints.failed(endpoints.current)
    assert used == [B, C, A, B]


def test_the_failure_of_an_endpoint_that_was_left_changes_nothing() -> None:
    endpoints = Endpoints(THREE)
    endpoints.failed(A)
    endpoints.failed(A)  # of a call that had begun earlier
    endpoints.failed("http://unknown:1")
    assert endpoints.current == B


def test_a_copy_begins_at_the_current_endpoint_and_moves_by_itself() -> None:
    endpoints = Endpoints(THREE)
    endpoints.failed(A)
    copy = endpoints.copy()
    copy.failed(B)
    assert copy.current == C and endpoints.current == B


def test_one_endpoint_is_used_again_after_its_failure() -> None:
    endpoints = Endpoints((A,))
    endpoints.failed(A)
    assert endpoints.current == A and endpoints.others == ()


class FakeTransport(BaseTransport):
    """Answers every call, unless its endpoint is among those that are ``away``."""

    def __init__(self, settings: EtcdSettings = SETTINGS, choose: Callable[[int], int] = lambda count: 0) -> None:
        super().__init__(settings, choose)
        self.away: set[str] = set()
        self.sent: list[str] = []
        self.pinged: list[str] = []
        self.closed = False

    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        self.sent.append(endpoint)
        self._fail_if_away(endpoint)
        return pb.LeaseGrantResponse(ID=1, TTL=15)

    async def _ping(self, endpoint: str, timeout: float) -> None:
        self.pinged.append(endpoint)
        self._fail_if_away(endpoint)

    async def _close_connections(self) -> None:
        self.closed = True

    def _reload_tls(self) -> bool:
        return False

    def _fail_if_away(self, endpoint: str) -> None:
        if endpoint in self.away:
            raise EtcdUnavailable("away", applied="no", retryable=True)

    async def watch(self) -> Any:
        raise NotImplementedError

    def lease_client(self) -> Any:
        return FakeLeaseClient(self._endpoints, self._token)


class FakeLeaseClient(BaseLeaseClient):
    def __init__(self, endpoints: Endpoints, token: Token) -> None:
        super().__init__(endpoints, token)
        self.away: set[str] = set()
        self.pinged: list[str] = []

    def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        if endpoint in self.away:
            raise EtcdUnavailable("away", retryable=True)
        return pb.LeaseKeepAliveResponse(ID=1, TTL=15)

    def _ping(self, endpoints: Sequence[str], timeout: float) -> None:
        self.pinged += endpoints

    def _reload_tls(self) -> None:
        pass

    def close(self) -> None:
        pass


async def test_a_transport_begins_where_it_is_told_and_moves_on_after_a_failure() -> None:
    asked = []

    def choose(count: int) -> int:
        asked.append(count)
        return 2

    transport = FakeTransport(choose=choose)
    transport.away = {C}
    await transport.grant(15)
    await transport.grant(15)
    assert asked == [3] and transport.sent == [C, A, A]


async def test_the_other_endpoints_are_pinged_again_and_again_also_those_that_are_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_PING_PAUSE", 0.001)
    transport = FakeTransport(choose=lambda count: 1)
    transport.away = {C}
    transport.connect_all()
    transport.connect_all()  # once is enough
    await eventually(lambda: len(transport.pinged) >= 4)
    assert transport.pinged[:4] == [C, A, C, A] and B not in transport.pinged
    transport.suspect(B)
    await eventually(lambda: B in transport.pinged)  # it takes no calls any more
    await transport.close()
    pinged = len(transport.pinged)
    await asyncio.sleep(0.01)
    assert transport.closed and len(transport.pinged) == pinged


async def test_with_one_endpoint_nothing_is_pinged() -> None:
    transport = FakeTransport(EtcdSettings(endpoints=(A,)))
    client = transport.lease_client()
    transport.connect_all()
    client.connect_all()
    await asyncio.sleep(0)
    assert transport._pinging is None and client.pinged == []
    await transport.close()


async def test_a_lease_client_begins_where_the_transport_is_and_moves_by_its_own_failures() -> None:
    transport = FakeTransport(choose=lambda count: 1)
    transport.suspect(B)
    client = transport.lease_client()
    client.connect_all()
    assert client.endpoint == C and client.pinged == [C, A, B]
    client.away = {C}
    with pytest.raises(EtcdUnavailable):
        client.renew(1, 1.0)
    assert client.endpoint == A and client.renew(1, 1.0) == 15
    assert transport._endpoints.current == C
